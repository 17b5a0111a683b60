/* The group: messages, refused connections, and every way in which a rank can fail.
 *
 * A run with a fault takes as long as its timeout, so the runs of a test all start before the first is
 * examined. */
#include "test/test.h"

#include "llmc/process/group_impl.h"
#include "llmc/process/net.h"
#include "llmc/process/rank_facts.h"
#include "test/ranks/ranks.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define FINISH 30.0 /* seconds: only a defect takes that long */

/* --- calls --- */

/* Without a launcher the group has one process and no sockets. */
static void test_alone(void **state) {
    static const char *const names[] = {
        "RANK",     "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
        "PMI_SIZE", "PMI_RANK",   "SLURM_STEP_ID"};
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) unsetenv(names[i]);
    struct group_options options = {.timeout = 1.0};
    struct error err;
    struct group *g = group_open(&options, &err);
    assert_non_null(g);
    assert_null(g->state);
    assert_int_equal(g->world, 1);
    assert_int_equal(g->local_world, 1);
    int all = 0, mine = 42;
    group_exchange(g, &all, &mine, sizeof mine);
    assert_int_equal(all, 42);
    group_broadcast(g, &all, sizeof all, 0);
    group_barrier(g);
    group_progress(g, "step", 1);
    group_waiting(g, "step", 1);
    group_set_poll(g, NULL, NULL);
    assert_true(group_agree(g, true, NULL));
    (fail)(&err, "a reason");
    assert_false(group_agree(g, false, &err));
    assert_string_equal(err.message, "a reason");
    group_close(g);
    group_close(NULL);
}

static int calls(const struct ranks *r, int64_t rank) {
    struct group *g = ranks_open(r);
    struct error err;
    check(g->rank == rank && g->world == r->world && g->local_rank == rank && g->local_world == r->world,
          "wrong place: %d of %d, %d of %d", (int)g->rank, (int)g->world, (int)g->local_rank,
          (int)g->local_world);
    enum { LARGE = 300000 };
    static uint8_t all[5 * LARGE], mine[LARGE];
    for (size_t bytes = 0; bytes <= LARGE; bytes = bytes * 7 + 1) {
        for (size_t i = 0; i < bytes; i++) mine[i] = (uint8_t)(i * 3 + (size_t)rank);
        group_exchange(g, all, mine, bytes);
        for (int64_t p = 0; p < g->world; p++)
            for (size_t i = 0; i < bytes; i++)
                check(all[(size_t)p * bytes + i] == (uint8_t)(i * 3 + (size_t)p),
                      "exchange of %zu: byte %zu of rank %d", bytes, i, (int)p);
        for (int64_t root = 0; root < g->world; root++) {
            for (size_t i = 0; i < bytes; i++) mine[i] = (uint8_t)(rank == root ? i + (size_t)root : 0);
            group_broadcast(g, mine, bytes, root);
            for (size_t i = 0; i < bytes; i++)
                check(mine[i] == (uint8_t)(i + (size_t)root), "broadcast of %zu from %d: byte %zu", bytes,
                      (int)root, i);
        }
    }
    check(group_agree(g, true, &err), "all agree, but: %s", err.message);
    for (int64_t bad = 0; bad < g->world; bad++) { /* ranks from `bad` on fail */
        char want[64];
        (fail)(&err, "reason %d", (int)rank);
        check(!group_agree(g, rank < bad, &err), "agreed");
        snprintf(want, sizeof want, "): reason %d", (int)bad);
        check(strstr(err.message, want) && strncmp(err.message, "rank ", 5) == 0 &&
                  err.message[5] == '0' + bad,
              "the lowest rank's reason is: %s", err.message);
    }
    check(!group_agree(g, rank > 0, NULL), "agreed");
    /* no rank leaves a barrier before all have entered it */
    int *shared = (int *)r->arg;
    for (int round = 0; round < 20; round++) {
        if (round % (int)g->world == rank) usleep(2000);
        __atomic_add_fetch(shared, 1, __ATOMIC_SEQ_CST);
        group_barrier(g);
        int came = __atomic_load_n(shared, __ATOMIC_SEQ_CST);
        check(came >= (round + 1) * g->world, "only %d ranks have entered barrier %d", came, round);
        group_barrier(g);
    }
    if (rank == 1) usleep(100000); /* the others wait for this rank and do not call it stuck */
    group_close(g);
    return 0;
}

static void test_calls(void **state) {
    for (int64_t world = 2; world <= 5; world += 3) {
        struct ranks r;
        int *shared =
            (int *)mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(shared != MAP_FAILED);
        ranks_init(&r, world, 20.0);
        r.arg = shared;
        ranks_start(&r, calls);
        ranks_finish(&r, FINISH);
        ranks_expect_all(&r, 0, NULL);
        ranks_free(&r);
        munmap(shared, sizeof *shared);
    }
}

static int different_calls(const struct ranks *r, int64_t rank) {
    struct group *g = ranks_open(r);
    char data[64] = "", all[3 * 64];
    if (rank == 1)
        group_broadcast(g, data, 8, 0);
    else
        group_exchange(g, all, data, sizeof data);
    group_close(g);
    return 0;
}

static void test_calls_that_differ(void **state) {
    struct ranks r;
    ranks_init(&r, 3, 20.0);
    ranks_start(&r, different_calls);
    ranks_finish(&r, FINISH);
    for (int64_t rank = 0; rank < 3; rank++)
        rank_expect(&r, rank, rank_exit(&r, rank) == 1 ? 1 : GROUP_EXIT_STATUS,
                    "the ranks make different calls");
    ranks_free(&r);
}

static void test_first_difference_is_named(void **state) {
    struct rank_facts zero = {0}, same = {0}, other = {0}, longer = {0};
    struct error err;
    rank_facts_add(&zero, "--batch-size", "%d", 8);
    rank_facts_add(&zero, "--learning-rate", "%g", 3e-4);
    rank_facts_add(&same, "--batch-size", "%d", 8);
    rank_facts_add(&same, "--learning-rate", "%g", 3e-4);
    rank_facts_add(&other, "--batch-size", "%d", 8);
    rank_facts_add(&other, "--learning-rate", "%g", 1e-3);
    rank_facts_add(&longer, "--batch-size", "%d", 8);
    rank_facts_add(&longer, "--learning-rate", "%g", 3e-4);
    rank_facts_add(&longer, "--new", "x");
    assert_true(rank_facts_compare(&same, &zero, &err));
    assert_false(rank_facts_compare(&other, &zero, &err));
    assert_string_equal(err.message, "--learning-rate is 0.001, rank 0 has 0.0003");
    assert_false(rank_facts_compare(&longer, &zero, &err));
    assert_non_null(strstr(err.message, "has --new where rank 0 has nothing"));
    assert_false(rank_facts_compare(&zero, &longer, &err));
    rank_facts_free(&zero);
    rank_facts_free(&same);
    rank_facts_free(&other);
    rank_facts_free(&longer);
}

/* --- strangers that connect --- */

static int open_and_close(const struct ranks *r, int64_t rank) {
    struct group *g = ranks_open(r);
    group_barrier(g);
    group_close(g);
    return 0;
}

static int connect_to(int port) {
    struct error err;
    int fd = net_connect("127.0.0.1", port, now_seconds() + 5.0, &err);
    if (fd < 0) fail_msg("%s", err.message);
    return fd;
}

/* A port scanner, a browser, noise, half a hello, silence: the run starts all the same. */
static void test_strangers(void **state) {
    static const char request[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    struct ranks r;
    ranks_init(&r, 3, 20.0);
    ranks_start_one(&r, 0, open_and_close);
    int silent = connect_to(r.port), half = connect_to(r.port), browser = connect_to(r.port),
        noise = connect_to(r.port);
    close(connect_to(r.port));
    net_send(half, "llmc-g1\nhalf", 12, now_seconds() + 1.0);
    net_send(browser, request, sizeof request - 1, now_seconds() + 1.0);
    for (uint64_t x = 1; x < 200; x++) {
        uint64_t word = x * 0x9e3779b97f4a7c15u;
        net_send(noise, &word, sizeof word, now_seconds() + 1.0);
    }
    char answer;
    assert_int_equal(net_receive(browser, &answer, 1, now_seconds() + 5.0), NET_CLOSED); /* dropped at once */
    ranks_start_one(&r, 1, open_and_close);
    ranks_start_one(&r, 2, open_and_close);
    ranks_finish(&r, FINISH);
    ranks_expect_all(&r, 0, NULL);
    close(silent);
    close(half);
    close(browser);
    close(noise);
    ranks_free(&r);
}

/* The same address as `r`, for processes that do not belong to the run. */
static struct ranks visitors(const struct ranks *r) {
    struct ranks v = *r;
    memset(v.p, 0, sizeof v.p);
    v.listener = -1;
    return v;
}

static void test_wrong_token(void **state) {
    struct ranks r, v;
    ranks_init(&r, 2, 20.0);
    v = visitors(&r);
    strcpy(v.token, "another run");
    ranks_start_one(&r, 0, open_and_close);
    ranks_start_one(&v, 1, open_and_close);
    ranks_finish(&v, FINISH);
    rank_expect(&v, 1, 3, "refused: its token");
    ranks_start_one(&r, 1, open_and_close);
    ranks_finish(&r, FINISH);
    rank_expect(&r, 0, 0, "calls itself rank 1 was refused: its token");
    rank_expect(&r, 1, 0, NULL);
    ranks_free(&v);
    ranks_free(&r);
}

static void test_started_twice(void **state) {
    struct ranks r, v;
    ranks_init(&r, 3, 20.0);
    v = visitors(&r);
    ranks_start_one(&r, 0, open_and_close);
    ranks_start_one(&r, 1, open_and_close);
    usleep(300000);
    ranks_start_one(&v, 1, open_and_close);
    ranks_finish(&v, FINISH);
    rank_expect(&v, 1, 3, "refused: rank 1 is already connected");
    ranks_start_one(&r, 2, open_and_close);
    ranks_finish(&r, FINISH);
    rank_expect(&r, 0, 0, "was refused: rank 1 is already connected");
    rank_expect(&r, 1, 0, NULL);
    rank_expect(&r, 2, 0, NULL);
    ranks_free(&v);
    ranks_free(&r);
}

static void test_other_world_size(void **state) {
    struct ranks r, v;
    ranks_init(&r, 2, 20.0);
    v = visitors(&r);
    v.world = 3;
    ranks_start_one(&r, 0, open_and_close);
    ranks_start_one(&v, 2, open_and_close);
    ranks_finish(&v, FINISH);
    ranks_finish(&r, FINISH);
    rank_expect(&v, 2, 3, "refused: it was started for 3 ranks, rank 0 for 2");
    rank_expect(&r, 0, 3, "group_open: rank 2 (");
    rank_expect(&r, 0, 3, "it was started for 3 ranks, rank 0 for 2");
    ranks_free(&v);
    ranks_free(&r);
}

/* A correct hello of another build: caught from a real process by a listener that is not rank 0. That
 * process learns that another program answers. */
static void test_other_version(void **state) {
    static const char response[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
    struct group_hello hello;
    struct group_reply reply;
    struct ranks r, v;
    ranks_init(&v, 2, 20.0);
    ranks_start_one(&v, 1, open_and_close);
    struct pollfd p = {v.listener, POLLIN, 0};
    assert_int_equal(poll(&p, 1, 20000), 1);
    int fd = net_accept(v.listener);
    assert_int_equal(net_receive(fd, &hello, sizeof hello, now_seconds() + 5.0), NET_OK);
    net_send(fd, response, sizeof response - 1, now_seconds() + 1.0);
    ranks_finish(&v, FINISH);
    close(fd);
    rank_expect(&v, 1, 3, "another program answers there, not rank 0 of a run");

    ranks_init(&r, 2, 20.0);
    strcpy(r.token, v.token);
    ranks_start_one(&r, 0, open_and_close);
    fd = connect_to(r.port);
    hello.version ^= 1;
    net_send(fd, &hello, sizeof hello, now_seconds() + 1.0);
    assert_int_equal(net_receive(fd, &reply, sizeof reply, now_seconds() + 5.0), NET_OK);
    assert_int_equal(reply.answer, GROUP_REFUSED);
    assert_non_null(strstr(reply.reason, "another build of the program"));
    close(fd);
    ranks_finish(&r, FINISH);
    rank_expect(&r, 0, 3, "runs another build of the program");
    ranks_free(&v);
    ranks_free(&r);
}

static void test_port_in_use(void **state) {
    struct ranks r, v;
    ranks_init(&r, 2, 20.0);
    v = visitors(&r);
    ranks_start_one(&v, 0, open_and_close);
    ranks_finish(&v, FINISH);
    rank_expect(&v, 0, 3, "the port is in use by another program or run; set MASTER_PORT to a free one");
    ranks_free(&v);
    ranks_free(&r);
}

static int with_bad_descriptor(const struct ranks *r, int64_t rank) {
    setenv("LLMC_LISTEN_FD", "0", 1);
    return open_and_close(r, rank);
}

static void test_bad_descriptor(void **state) {
    struct ranks r;
    ranks_init(&r, 2, 20.0);
    ranks_start_one(&r, 0, with_bad_descriptor);
    ranks_finish(&r, FINISH);
    rank_expect(&r, 0, 3, "LLMC_LISTEN_FD=0 is not a socket that listens");
    ranks_free(&r);
}

/* --- ranks that do not connect --- */

static void test_missing(void **state) {
    struct ranks r, v, late;
    ranks_init(&r, 7, 1.0);
    for (int64_t rank = 0; rank < 7; rank++)
        if (rank != 2 && rank < 4) ranks_start_one(&r, rank, open_and_close);
    ranks_init(&v, 3, 1.0); /* no process listens there */
    close(v.listener);
    v.listener = -1;
    ranks_start_one(&v, 1, open_and_close);
    ranks_start_one(&v, 2, open_and_close);
    ranks_init(&late, 2, 20.0); /* rank 0 may start last */
    close(late.listener);
    late.listener = -1;
    ranks_start_one(&late, 1, open_and_close);
    usleep(200000);
    ranks_start_one(&late, 0, open_and_close);
    ranks_finish(&late, FINISH);
    ranks_expect_all(&late, 0, NULL);
    ranks_finish(&v, FINISH);
    ranks_finish(&r, FINISH);
    for (int64_t rank = 0; rank < 4; rank++)
        if (rank != 2) rank_expect(&r, rank, 3, "4 of 7 ranks did not connect within 1 s: missing 2, 4-6.");
    for (int64_t rank = 1; rank < 3; rank++) rank_expect(&v, rank, 3, "rank 0 did not answer at 127.0.0.1:");
    rank_expect(&v, 1, 3, "within 1 s (");
    rank_expect(&v, 1, 3, "Connection refused");
    ranks_free(&r);
    ranks_free(&v);
    ranks_free(&late);
}

/* A rank is killed, or rank 0 is stopped, while others have not connected. */
static void test_ended_while_connecting(void **state) {
    struct ranks r[3];
    for (int i = 0; i < 3; i++) {
        ranks_init(&r[i], 3, i == 2 ? 1.0 : 20.0);
        ranks_start_one(&r[i], 0, open_and_close);
        ranks_start_one(&r[i], 1, open_and_close);
        close(r[i].listener); /* as a launcher does */
        r[i].listener = -1;
    }
    usleep(400000);
    kill(r[0].p[0].pid, SIGKILL);
    kill(r[1].p[1].pid, SIGKILL);
    pid_t stopped = r[2].p[0].pid;
    kill(stopped, SIGSTOP);
    r[2].p[0].pid = 0;
    for (int i = 0; i < 3; i++) ranks_finish(&r[i], FINISH);
    kill(stopped, SIGKILL);
    waitpid(stopped, NULL, 0);
    rank_expect(&r[0], 1, 3, "ended before all ranks were connected");
    rank_expect(&r[1], 0, 3, "group_open: rank 1 (");
    rank_expect(&r[1], 0, 3, "ended before all ranks were connected");
    rank_expect(&r[2], 1, 3, "has not answered for 4 s: it hangs");
    for (int i = 0; i < 3; i++) ranks_free(&r[i]);
}

/* --- ranks that end --- */

enum how { KILLED, EXITS, DIES, STOPS, HANGS, POLL_FAILS, INTERRUPTED };
enum where { EXCHANGE, IDLE, CLOSE };

struct fault {
    enum how how;
    enum where where;
    int64_t victim; /* -1: all */
    const char *said;
};
#define GONE "rank %d (%s) ended without a message; last activity: "
static const struct fault faults[] = {
    {KILLED, EXCHANGE, 0, GONE},
    {KILLED, EXCHANGE, 1, GONE},
    {KILLED, EXCHANGE, 2, GONE},
    {KILLED, IDLE, 0, GONE},
    {KILLED, IDLE, 2, GONE},
    {KILLED, CLOSE, 0, GONE},
    {KILLED, CLOSE, 1, GONE},
    {EXITS, EXCHANGE, 1, GONE},
    {EXITS, IDLE, 0, GONE},
    {DIES, EXCHANGE, 1, "error: rank %d (%s): the disk is full"},
    {DIES, IDLE, 0, "error: rank %d (%s): the disk is full"},
    {DIES, IDLE, 2, "error: rank %d (%s): the disk is full"},
    {DIES, IDLE, -1, "the disk is full"},
    {STOPS, EXCHANGE, 0, "error: no message from rank %d (%s) for "},
    {STOPS, EXCHANGE, 1, "error: no message from rank %d (%s) for "},
    {HANGS, EXCHANGE, 0,
     "error: no progress for 4 s while the other ranks wait: rank %d (%s), last activity: reading data 5"},
    {HANGS, EXCHANGE, 2,
     "error: no progress for 4 s while the other ranks wait: rank %d (%s), last activity: reading data 5"},
    {POLL_FAILS, IDLE, 0, "error: rank %d (%s): an asynchronous error"},
    {POLL_FAILS, IDLE, 1, "error: rank %d (%s): an asynchronous error"},
    {INTERRUPTED, IDLE, -1, NULL},
};
#define FAULT_TIMEOUT 4.0

static bool poll_fails(void *arg, struct error *err) { return (fail)(err, "an asynchronous error"); }

static int fault_body(const struct ranks *r, int64_t rank) {
    const struct fault *f = (const struct fault *)r->arg;
    struct group *g = ranks_open(r);
    group_progress(g, "reading data", 5);
    if (f->victim == rank || f->victim < 0) {
        usleep(f->how == STOPS ? 600000 : 100000); /* the watch has sent its activity */
        if (f->how == KILLED) raise(SIGKILL);
        if (f->how == EXITS) _exit(0);
        if (f->how == DIES) die("the disk is %s", "full");
        if (f->how == STOPS) raise(SIGSTOP);
        if (f->how == POLL_FAILS) group_set_poll(g, poll_fails, NULL);
        if (f->how == INTERRUPTED) {
            signal(SIGINT, SIG_DFL); /* ignored in what a shell starts in the background */
            raise(SIGINT);
        }
        for (;;) pause(); /* HANGS */
    }
    int64_t mine = rank, all[3];
    if (f->where == EXCHANGE) group_exchange(g, all, &mine, sizeof mine);
    if (f->where == CLOSE) group_close(g);
    for (int64_t step = 0; step < 3000; step++) {
        group_progress(g, "step", step);
        usleep(10000);
    }
    return 0;
}

static void test_faults(void **state) {
    char host[64] = "", said[256];
    gethostname(host, sizeof host - 1);
    struct ranks r[ARRAY_LENGTH(faults)];
    pid_t stopped[ARRAY_LENGTH(faults)] = {0};
    for (size_t i = 0; i < ARRAY_LENGTH(faults); i++) {
        const struct fault *f = &faults[i];
        ranks_init(&r[i], 3, f->how == STOPS || f->how == HANGS ? FAULT_TIMEOUT : 20.0);
        r[i].arg = f;
        ranks_start(&r[i], fault_body);
        if (f->how != STOPS) continue;
        stopped[i] = r[i].p[f->victim].pid; /* it cannot end */
        r[i].p[f->victim].pid = 0;
    }
    double deadline = now_seconds() + FAULT_TIMEOUT + 15.0;
    for (size_t i = 0; i < ARRAY_LENGTH(faults); i++) {
        const struct fault *f = &faults[i];
        ranks_finish(&r[i], deadline - now_seconds());
        if (stopped[i]) kill(stopped[i], SIGKILL);
        if (stopped[i]) waitpid(stopped[i], NULL, 0);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        if (f->said) snprintf(said, sizeof said, f->said, (int)f->victim, host);
#pragma GCC diagnostic pop
        for (int64_t rank = 0; rank < 3; rank++) {
            int status = GROUP_EXIT_STATUS;
            if (rank == f->victim || f->victim < 0)
                status = f->how == KILLED        ? 128 + SIGKILL
                         : f->how == EXITS       ? 0
                         : f->how == DIES        ? 1
                         : f->how == INTERRUPTED ? 128 + SIGINT
                                                 : GROUP_EXIT_STATUS;
            if (f->how == STOPS && rank == f->victim) continue;
            /* On a busy machine the watch may end the last of them before it fails itself. */
            if (f->how == DIES && f->victim < 0 && rank_exit(&r[i], rank) == GROUP_EXIT_STATUS)
                status = GROUP_EXIT_STATUS;
            if (rank == f->victim && (f->how == KILLED || f->how == EXITS))
                rank_expect(&r[i], rank, status, NULL);
            else if (rank == f->victim && f->how == DIES)
                rank_expect(&r[i], rank, status, "error: the disk is full\n");
            else
                rank_expect(&r[i], rank, status, f->said ? said : NULL);
        }
        ranks_free(&r[i]);
    }
}

/* Ranks that handle SIGINT close in turn and without a message, even if one needs longer than the
 * timeout to close. */
static volatile sig_atomic_t interrupted;
static void on_interrupt(int signal_number) { interrupted = 1; }

static int handles_interrupt(const struct ranks *r, int64_t rank) {
    struct group *g = ranks_open(r);
    signal(SIGINT, on_interrupt);
    group_barrier(g);
    raise(SIGINT);
    while (!interrupted) usleep(1000);
    if (rank == 1) usleep(1500000);
    group_close(g);
    return 0;
}

static void test_orderly_interrupt(void **state) {
    struct ranks r;
    ranks_init(&r, 3, 0.5);
    ranks_start(&r, handles_interrupt);
    ranks_finish(&r, FINISH);
    ranks_expect_all(&r, 0, NULL);
    ranks_free(&r);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_calls_that_differ),
        cmocka_unit_test(test_first_difference_is_named),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_wrong_token),
        cmocka_unit_test(test_started_twice),
        cmocka_unit_test(test_other_world_size),
        cmocka_unit_test(test_other_version),
        cmocka_unit_test(test_port_in_use),
        cmocka_unit_test(test_bad_descriptor),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_ended_while_connecting),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_orderly_interrupt),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
