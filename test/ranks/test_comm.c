/* Collectives between processes on CPUs: every kind x dtype x size x world x transport, with integers whose
 * sums are exact; the order of additions; many at once; ranks that have lost step; ranks that end in the
 * middle. */
#include "test/test.h"

#include "llmc/ranks/comm.h"
#include "test/ranks/ranks.h"

#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FINISH 30.0 /* seconds: only a defect takes that long */

enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, KINDS };

static struct comm *open_comm(struct group *g) {
    struct error err;
    struct device *device = device_open_cpu();
    struct comm *c = comm_open(g, device, &err);
    check(c, "%s", err.message);
    device->close(device);
    check(c->rank == g->rank && c->world == g->world, "comm has other ranks than the group");
    return c;
}

static void close_both(struct comm *c, struct group *g) {
    c->close(c);
    group_close(g);
}

/* tensor_make() refuses a tensor without elements; an empty bucket is one. */
static struct tensor make(const char *name, enum dtype dtype, int64_t n) {
    return (struct tensor){.data = xmalloc((size_t)n * dtype_size(dtype) + 16),
                           .name = name,
                           .dtype = dtype,
                           .rank = 1,
                           .dim = {n}};
}

/* --- values --- */

/* Whole numbers that fp32 and bf16 hold exactly, as they do the sums over the ranks; another for each
 * kind. */
static int value(int64_t i, int64_t rank, int kind) {
    return (int)((i * 7 + rank * 13 + kind * 5) % 31) - 15;
}

static void put(struct tensor *t, int64_t i, float v) {
    if (t->dtype == DTYPE_F32) f32(t)[i] = v;
    if (t->dtype == DTYPE_BF16) ((uint16_t *)t->data)[i] = bf16_from_f32(v);
    if (t->dtype == DTYPE_I32) i32(t)[i] = (int32_t)v;
}
static float get(const struct tensor *t, int64_t i) {
    if (t->dtype == DTYPE_F32) return f32(t)[i];
    return t->dtype == DTYPE_BF16 ? f32_from_bf16(((uint16_t *)t->data)[i]) : (float)i32(t)[i];
}

static int64_t owner(int64_t n, int64_t world, int64_t i) {
    int64_t r = 0;
    for (struct comm_part p = comm_part(n, world, r); i >= p.first + p.count; p = comm_part(n, world, r)) r++;
    return r;
}

static void prepare(struct comm *c, struct tensor *t, enum kind kind, int64_t root) {
    int64_t n = tensor_count(t);
    memset((char *)t->data + tensor_bytes(t), 0x5a, 16);
    for (int64_t i = 0; i < n; i++) {
        bool mine = kind != ALL_GATHER || owner(n, c->world, i) == c->rank;
        put(t, i, mine && (kind != BROADCAST || c->rank == root) ? (float)value(i, c->rank, kind) : 99.0f);
    }
}

static float expected(struct comm *c, int64_t n, int64_t i, enum kind kind, int64_t root) {
    if (kind == BROADCAST) return (float)value(i, root, kind);
    if (kind == ALL_GATHER) return (float)value(i, owner(n, c->world, i), kind);
    float sum = 0;
    for (int64_t r = 0; r < c->world; r++) sum += (float)value(i, r, kind);
    return sum;
}

static void compare(struct comm *c, const struct tensor *t, enum kind kind, int64_t root) {
    int64_t n = tensor_count(t);
    struct comm_part own = comm_part(n, c->world, c->rank);
    for (int64_t i = 0; i < n; i++) {
        if (kind == REDUCE_SCATTER && (i < own.first || i >= own.first + own.count)) continue;
        float want = expected(c, n, i, kind, root), got = get(t, i);
        check(got == want, "kind %d, root %lld, %s: element %lld is %g, expected %g", kind, (long long)root,
              tensor_text(t), (long long)i, got, want);
    }
    for (int64_t i = 0; i < 16; i++)
        check(((uint8_t *)t->data)[tensor_bytes(t) + i] == 0x5a, "%s: written beyond the end",
              tensor_text(t));
}

static int64_t issue(struct comm *c, struct tensor *t, enum kind kind, int64_t root) {
    if (kind == ALL_REDUCE) return c->all_reduce(c, t, NULL);
    if (kind == REDUCE_SCATTER) return c->reduce_scatter(c, t, NULL);
    return kind == ALL_GATHER ? c->all_gather(c, t, NULL) : c->broadcast(c, t, root, NULL);
}

/* --- every kind x dtype x size --- */

struct transport {
    const char *variable, *kind;
};
static const struct transport transports[] = {{"1", "shared memory"}, {"0", "TCP"}};

static int every_collective(const struct ranks *r, int64_t rank) {
    static const int64_t sizes[] = {0, 1, 127, 128, 129, 641, 1009, 30011};
    const struct transport *transport = (const struct transport *)r->arg;
    setenv("LLMC_SHARED_MEMORY", transport->variable, 1);
    struct group *g = ranks_open(r);
    struct comm *c = open_comm(g);
    const char *kind_text = g->world > 1 ? transport->kind : "one process";
    check(strcmp(c->kind, kind_text) == 0, "transport is %s, expected %s", c->kind, kind_text);
    struct {
        struct tensor t;
        enum kind kind;
        int64_t root, ticket;
    } jobs[ARRAY_LENGTH(sizes) * DTYPE_COUNT * KINDS + 8];
    int count = 0;
    for (size_t s = 0; s <= ARRAY_LENGTH(sizes); s++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
                if (dtype == DTYPE_I32 && kind < ALL_GATHER) continue;
                if (s == ARRAY_LENGTH(sizes) && dtype != kind % 2) continue; /* large: once a kind */
                int64_t n = s < ARRAY_LENGTH(sizes) ? sizes[s] : 1000003, root = (count + 1) % g->world;
                jobs[count].t = make("tensor", (enum dtype)dtype, n);
                jobs[count].kind = (enum kind)kind;
                jobs[count].root = root;
                prepare(c, &jobs[count].t, (enum kind)kind, root);
                count++;
            }
    /* all in flight at once; each rank is in another place of the row at any time */
    for (int i = 0; i < count; i++) {
        if (i % (int)g->world == rank) usleep(500);
        jobs[i].ticket = issue(c, &jobs[i].t, jobs[i].kind, jobs[i].root);
    }
    for (int i = count - 1; i >= 0; i--) {
        c->wait(c, jobs[i].ticket, NULL);
        /* of a single process, other parts do not exist */
        compare(c, &jobs[i].t, jobs[i].kind, jobs[i].root);
        free(jobs[i].t.data);
    }
    close_both(c, g);
    return 0;
}

static void test_every_collective(void **state) {
    for (int64_t world = 1; world <= 5; world++)
        for (size_t i = 0; i < ARRAY_LENGTH(transports); i++) {
            struct ranks r;
            ranks_init(&r, world, 20.0);
            r.arg = &transports[i];
            ranks_start(&r, every_collective);
            ranks_finish(&r, FINISH);
            ranks_expect_all(&r, 0, NULL);
            ranks_free(&r);
        }
}

/* --- the order of additions --- */

/* Values whose sum depends on the order; bf16 is rounded once, not after each. */
static int order_of_sums(const struct ranks *r, int64_t rank) {
    static const float values[4] = {1e8f, 3.0f, -1e8f, 2.5f};
    static const float halves[4] = {256.0f, 1.0f, 1.0f, 1.0f};
    enum { N = 700 };
    struct group *g = ranks_open(r);
    struct comm *c = open_comm(g);
    struct tensor a = make("fp32", DTYPE_F32, N), b = make("bf16", DTYPE_BF16, N);
    float sum = 0;
    for (int64_t i = 0; i < g->world; i++) sum = i == 0 ? values[0] : sum + values[i];
    for (int round = 0; round < 20; round++) {
        for (int64_t i = 0; i < N; i++) {
            put(&a, i, values[rank]);
            put(&b, i, halves[rank]);
        }
        if (round % 4 == rank) usleep(1000); /* whoever comes last, the order is that of the ranks */
        c->all_reduce(c, &a, NULL);
        c->wait(c, c->all_reduce(c, &b, NULL), NULL);
        for (int64_t i = 0; i < N; i++) {
            check(get(&a, i) == sum, "fp32: %g, expected %g", get(&a, i), sum);
            check(get(&b, i) == 260.0f, "bf16: %g, expected 260 (259 rounded)", get(&b, i));
        }
    }
    /* NaN and infinity arrive */
    put(&a, 1, rank == 2 ? NAN : 1.0f);
    put(&a, 500, rank == 1 ? INFINITY : 1.0f);
    c->wait(c, c->all_reduce(c, &a, NULL), NULL);
    check(isnan(get(&a, 1)) && isinf(get(&a, 500)), "a gradient that is not finite became %g and %g",
          get(&a, 1), get(&a, 500));
    free(a.data);
    free(b.data);
    close_both(c, g);
    return 0;
}

static void test_order_of_sums(void **state) {
    struct ranks r;
    ranks_init(&r, 4, 20.0);
    ranks_start(&r, order_of_sums);
    ranks_finish(&r, FINISH);
    ranks_expect_all(&r, 0, NULL);
    ranks_free(&r);
}

/* --- ranks that have lost step --- */

struct slip {
    const char *what, *said; /* by the slipping rank's neighbours */
};
static const struct slip slips[] = {{"kind", "all_gather of second"},   {"size", "1008 elements"},
                                    {"dtype", "elements of bf16"},      {"root", "from rank 1"},
                                    {"order", "second, 1009 elements"}, {"number", "as number 3"}};

static int slip_body(const struct ranks *r, int64_t rank) {
    const struct slip *slip = (const struct slip *)r->arg;
    bool slips_here = rank == 1;
    struct group *g = ranks_open(r);
    struct comm *c = open_comm(g);
    const char *what = slips_here ? slip->what : "";
    struct tensor first = make("first", DTYPE_F32, 4096), second = make("second", DTYPE_F32, 1009),
                  third = make("second", DTYPE_BF16, 1009);
    memset(first.data, 0, (size_t)tensor_bytes(&first));
    memset(second.data, 0, (size_t)tensor_bytes(&second));
    memset(third.data, 0, (size_t)tensor_bytes(&third));
    if (strcmp(what, "order") != 0) c->all_reduce(c, &first, NULL);
    if (strcmp(what, "size") == 0) second.dim[0]--;
    if (strcmp(what, "number") == 0) c->all_reduce(c, &first, NULL);
    int64_t ticket = strcmp(what, "dtype") == 0        ? c->all_reduce(c, &third, NULL)
                     : strcmp(what, "kind") == 0       ? c->all_gather(c, &second, NULL)
                     : strcmp(slip->what, "root") == 0 ? c->broadcast(c, &second, slips_here, NULL)
                                                       : c->all_reduce(c, &second, NULL);
    if (strcmp(what, "number") == 0) ticket = c->all_reduce(c, &second, NULL);
    c->wait(c, ticket, NULL);
    if (strcmp(slip->what, "order") == 0) c->wait(c, c->all_reduce(c, &first, NULL), NULL);
    close_both(c, g);
    return 0;
}

static void test_lost_step(void **state) {
    struct ranks r[ARRAY_LENGTH(slips)];
    for (size_t i = 0; i < ARRAY_LENGTH(slips); i++) {
        ranks_init(&r[i], 3, 20.0);
        r[i].arg = &slips[i];
        ranks_start(&r[i], slip_body);
    }
    for (size_t i = 0; i < ARRAY_LENGTH(slips); i++) {
        ranks_finish(&r[i], FINISH);
        for (int64_t rank = 0; rank < 3; rank++) {
            /* who finds it fails; who is told by the watch ends like all others */
            int status = rank_exit(&r[i], rank);
            rank_expect(&r[i], rank, status == 1 ? 1 : GROUP_EXIT_STATUS, "the ranks have lost step");
        }
        if (strcmp(slips[i].what, "number") != 0) rank_expect(&r[i], 0, rank_exit(&r[i], 0), slips[i].said);
        ranks_free(&r[i]);
    }
}

static int int32_sum(const struct ranks *r, int64_t rank) {
    struct group *g = ranks_open(r);
    struct comm *c = open_comm(g);
    struct tensor t = make("tokens", DTYPE_I32, 5);
    c->all_reduce(c, &t, NULL);
    return 0;
}

static void test_int32_is_not_added(void **state) {
    struct ranks r;
    ranks_init(&r, 2, 20.0);
    ranks_start(&r, int32_sum);
    ranks_finish(&r, FINISH);
    for (int64_t rank = 0; rank < 2; rank++)
        rank_expect(&r, rank, rank_exit(&r, rank) == 1 ? 1 : GROUP_EXIT_STATUS,
                    "all_reduce is for fp32 and bf16");
    ranks_free(&r);
}

/* --- ranks that end, stop or stay away in the middle --- */

struct fault {
    int64_t victim;
    int signal; /* 0: it stays away */
    const char *shared_memory;
    const char *said;
    bool midway; /* at once, with all its collectives under way */
};
static const struct fault faults[] = {
    {0, SIGKILL, "1", "rank 0 (%s) ended without a word; it was in: ", false},
    {1, SIGKILL, "1", "rank 1 (%s) ended without a word; it was in: step 7", false},
    {2, SIGKILL, "1", "rank 2 (%s) ended without a word; it was in: step 7", false},
    {0, SIGKILL, "0", "rank 0 (%s) ended without a word; it was in: ", false},
    {2, SIGKILL, "0", "rank 2 (%s) ended without a word; it was in: step 7", false},
    {0, SIGSTOP, "1", "nothing was heard of rank 0 (%s) for ", false},
    {1, SIGSTOP, "0", "nothing was heard of rank 1 (%s) for ", false},
    {1, 0, "1", "no progress for 4 s while the other ranks wait: rank 1 (%s) is in: step 7", false},
    {0, 0, "0", "no progress for 4 s while the other ranks wait: rank 0 (%s) is in: step 7", false},
    {0, SIGKILL, "1", "rank 0 (%s) ended without a word", true},
    {1, SIGKILL, "1", "rank 1 (%s) ended without a word", true},
    {1, SIGKILL, "0", "rank 1 (%s) ended without a word", true},
};
#define FAULT_TIMEOUT 4.0

static int fault_body(const struct ranks *r, int64_t rank) {
    const struct fault *f = (const struct fault *)r->arg;
    setenv("LLMC_SHARED_MEMORY", f->shared_memory, 1);
    struct group *g = ranks_open(r);
    struct comm *c = open_comm(g);
    group_progress(g, "step", 7);
    struct tensor t = make("gradients", DTYPE_F32, 1 << 20);
    memset(t.data, 0, (size_t)tensor_bytes(&t));
    for (int64_t step = 0; step < INT64_MAX; step++) {
        int64_t ticket = 0;
        for (int i = 0; i < 8; i++) ticket = c->all_reduce(c, &t, NULL);
        if (rank == f->victim) { /* some are done, the others wait for this one */
            /* what it was in is told once a second */
            usleep(f->midway ? 1000 : f->signal == SIGKILL ? 1300000 : 400000);
            if (f->signal)
                raise(f->signal);
            else
                pause();
        }
        c->wait(c, ticket, NULL);
    }
    return 0;
}

static void test_faults(void **state) {
    char host[64] = "", said[256];
    gethostname(host, sizeof host - 1);
    struct ranks r[ARRAY_LENGTH(faults)];
    double started = now_seconds();
    for (size_t i = 0; i < ARRAY_LENGTH(faults); i++) {
        ranks_init(&r[i], 3, faults[i].signal == SIGKILL ? 20.0 : FAULT_TIMEOUT);
        r[i].arg = &faults[i];
        ranks_start(&r[i], fault_body);
    }
    for (size_t i = 0; i < ARRAY_LENGTH(faults); i++) {
        const struct fault *f = &faults[i];
        double left = started + FAULT_TIMEOUT + 15.0 - now_seconds();
        if (f->signal == SIGSTOP) { /* it cannot end: only the others are waited for */
            pid_t victim = r[i].p[f->victim].pid;
            r[i].p[f->victim].pid = 0;
            ranks_finish(&r[i], left);
            kill(victim, SIGKILL);
            r[i].p[f->victim].pid = victim;
        }
        ranks_finish(&r[i], left);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(said, sizeof said, f->said, host);
#pragma GCC diagnostic pop
        for (int64_t rank = 0; rank < 3; rank++)
            if (rank != f->victim)
                rank_expect(&r[i], rank, GROUP_EXIT_STATUS, said);
            else if (f->signal == 0) /* it hangs, but its watch does not */
                rank_expect(&r[i], rank, GROUP_EXIT_STATUS, said);
            else
                rank_expect(&r[i], rank, 128 + SIGKILL, NULL);
        ranks_free(&r[i]);
    }
}

/* --- two machines with two ranks each, as network namespaces --- */

struct hosts {
    char name[2][32];
    const char *address; /* of rank 0 */
    bool collectives;    /* check results, else work until something happens */
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
    struct comm *c = open_comm(g);
    check(strcmp(c->kind, "shared memory and TCP") == 0, "transport is %s", c->kind);
    struct tensor t = make("gradients", DTYPE_F32, 300007);
    for (int64_t step = 0; step < (h->collectives ? KINDS : INT64_MAX); step++) {
        enum kind kind = (enum kind)(step % KINDS);
        int64_t root = step % g->world;
        prepare(c, &t, kind, root);
        group_progress(g, "step", step);
        c->wait(c, issue(c, &t, kind, root), NULL);
        compare(c, &t, kind, root);
    }
    free(t.data);
    close_both(c, g);
    return 0;
}

static void start_on_hosts(struct ranks *r, const struct hosts *h, double timeout) {
    ranks_init(r, 4, timeout);
    close(r->listener); /* it would be in this namespace */
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
    h.collectives = true;
    for (size_t i = 0; i < ARRAY_LENGTH(addresses); i++) {
        h.address = addresses[i];
        start_on_hosts(&r, &h, 20.0);
        ranks_finish(&r, FINISH);
        ranks_expect_all(&r, 0, NULL);
        ranks_free(&r);
    }
    /* the cable is pulled while collectives are under way */
    h.address = addresses[0];
    h.collectives = false;
    start_on_hosts(&r, &h, FAULT_TIMEOUT);
    usleep(1200000);
    for (int64_t rank = 0; rank < 4; rank++) assert_int_equal(waitpid(r.p[rank].pid, NULL, WNOHANG), 0);
    assert_true(shell("ip -n %s link set eth down", h.name[1]));
    ranks_finish(&r, FAULT_TIMEOUT + 15.0);
    for (int64_t rank = 0; rank < 2; rank++)
        rank_expect(&r, rank, GROUP_EXIT_STATUS, "nothing was heard of rank ");
    for (int64_t rank = 2; rank < 4; rank++)
        rank_expect(&r, rank, GROUP_EXIT_STATUS, "nothing was heard of rank 0 (");
    ranks_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_collective), cmocka_unit_test(test_order_of_sums),
        cmocka_unit_test(test_lost_step),        cmocka_unit_test(test_int32_is_not_added),
        cmocka_unit_test(test_faults),           cmocka_unit_test_teardown(test_two_machines, remove_hosts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
