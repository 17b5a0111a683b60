/* A group over two machines with two ranks each; the machines are network namespaces. */
#include "test/test.h"

#include "test/ranks/ranks.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FINISH = 30 /* seconds: only a defect takes that long */, TIMEOUT = 4 };

struct hosts {
    char name[2][32];
    const char *address; /* of rank 0 */
    bool endless;        /* the ranks work until something happens */
};

static bool shell(const char *fmt, ...) LLMC_PRINTF(1, 2);
static bool shell(const char *fmt, ...) {
    char command[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(command, sizeof command - 16, fmt, ap);
    va_end(ap);
    strcpy(command + n, " >/dev/null 2>&1");
    return system(command) == 0;
}

static void name_hosts(struct hosts *h) {
    for (int i = 0; i < 2; i++) snprintf(h->name[i], sizeof h->name[i], "llmc-%d-%c", (int)getpid(), 'a' + i);
}

static int remove_hosts(void **state) {
    struct hosts h;
    name_hosts(&h);
    for (int i = 0; i < 2; i++) shell("ip netns del %s", h.name[i]);
    return 0;
}

/* False where that is not permitted. */
static bool make_hosts(struct hosts *h) {
    name_hosts(h);
    const char *a = h->name[0], *b = h->name[1];
    if (!shell("ip netns add %s && ip netns add %s && ip -n %s link add eth type veth peer name eth netns %s",
               a, b, a, b))
        return false;
    bool ok = true;
    for (int i = 0; i < 2; i++)
        ok &=
            shell("ip -n %s addr add 10.77.0.%d/24 dev eth && ip -n %s addr add fd77::%d/64 dev eth nodad && "
                  "ip -n %s link set lo up && ip -n %s link set eth up",
                  h->name[i], i + 1, h->name[i], i + 1, h->name[i], h->name[i]);
    return ok;
}

static int on_host(const struct ranks *r, int64_t rank) {
    const struct hosts *h = (const struct hosts *)r->arg;
    char path[64];
    snprintf(path, sizeof path, "/run/netns/%s", h->name[rank / 2]);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    check(fd >= 0 && setns(fd, CLONE_NEWNET) == 0, "%s: cannot enter the namespace", path);
    close(fd);
    unsetenv("LOCAL_WORLD_SIZE");
    struct group *g = ranks_open(r);
    check(g->local_rank == rank % 2 && g->local_world == 2, "place on the machine: %d of %d",
          (int)g->local_rank, (int)g->local_world);
    for (int64_t a = 0; a < 4; a++)
        for (int64_t b = 0; b < 4; b++)
            check(group_same_host(g, a, b) == (a / 2 == b / 2), "ranks %d and %d", (int)a, (int)b);
    for (int64_t step = 0; step < (h->endless ? INT64_MAX : 50); step++) {
        int64_t mine = 10 * step + rank, all[4];
        group_progress(g, "step", step);
        group_exchange(g, all, &mine, sizeof mine);
        for (int64_t k = 0; k < 4; k++) check(all[k] == 10 * step + k, "exchange %d", (int)step);
    }
    group_close(g);
    return 0;
}

static void start_on_hosts(struct ranks *r, const struct hosts *h, double timeout) {
    ranks_init(r, 4, timeout);
    close(r->listener); /* it is in this namespace */
    r->listener = -1;
    snprintf(r->address, sizeof r->address, "%s", h->address);
    r->arg = h;
    ranks_start(r, on_host);
}

static void test_two_machines(void **state) {
    struct hosts h;
    struct ranks r;
    if (!make_hosts(&h)) {
        print_message(
            "    skipped: two machines as network namespaces need root and the program ip (iproute2)\n");
        return;
    }
    static const char *const addresses[] = {"10.77.0.1", "fd77::1"};
    h.endless = false;
    for (size_t i = 0; i < ARRAY_LENGTH(addresses); i++) {
        h.address = addresses[i];
        start_on_hosts(&r, &h, 20.0);
        ranks_finish(&r, FINISH);
        ranks_expect_all(&r, 0, NULL);
        ranks_free(&r);
    }
    /* the cable is pulled at work */
    h.address = addresses[0];
    h.endless = true;
    start_on_hosts(&r, &h, TIMEOUT);
    usleep(1200000);
    for (int64_t rank = 0; rank < 4; rank++) assert_int_equal(waitpid(r.p[rank].pid, NULL, WNOHANG), 0);
    assert_true(shell("ip -n %s link set eth down", h.name[1]));
    ranks_finish(&r, TIMEOUT + 15.0);
    for (int64_t rank = 0; rank < 2; rank++)
        rank_expect(&r, rank, GROUP_EXIT_STATUS, "no message from rank ");
    for (int64_t rank = 2; rank < 4; rank++)
        rank_expect(&r, rank, GROUP_EXIT_STATUS, "no message from rank 0 (");
    ranks_free(&r);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_two_machines, remove_hosts),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
