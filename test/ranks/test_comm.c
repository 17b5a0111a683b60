/* Collectives between CPU ranks: every kind x dtype x size x world, with integers whose sums are exact;
 * the order of additions; ranks that call different collectives; ranks that end, stop or hang; ranks on
 * different machines. */
#include "test/test.h"

#include "llmc/ranks/comm.h"
#include "llmc/ranks/rank_timing.h"
#include "test/ranks/ranks.h"

#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FINISH 30.0 /* seconds: only a defect takes that long */

enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, GATHER, SCATTER, KINDS };

static struct comm *open_teams(struct group *g, int64_t parts) {
    struct error err;
    struct device *device = device_open_cpu();
    struct comm *c = comm_open(g, device, parts, &err);
    check(c, "%s", err.message);
    device->close(device);
    check(c->rank == g->rank && c->world == g->world, "comm has other ranks than the group");
    check(c->parts == (parts ? parts : g->world) && c->part == g->rank % c->parts, "other parts");
    return c;
}
static struct comm *open_comm(struct group *g) { return open_teams(g, 0); }

static void close_both(struct comm *c, struct group *g) {
    c->close(c);
    group_close(g);
}

/* tensor_make() refuses a tensor without elements, but a bucket may be empty. */
static struct tensor make(const char *name, enum dtype dtype, int64_t n) {
    return (struct tensor){.data = xmalloc((size_t)n * dtype_size(dtype) + 16),
                           .name = name,
                           .dtype = dtype,
                           .rank = 1,
                           .dim = {n}};
}

/* --- values --- */

/* Whole numbers, different for each kind; fp32 and bf16 hold them and their sums exactly. Of fp8, which is
 * only copied, the byte is the number. */
static int value(int64_t i, int64_t rank, int kind) {
    return (int)((i * 7 + rank * 13 + kind * 5) % 31) - 15;
}

static void put(struct tensor *t, int64_t i, float v) {
    if (t->dtype == DTYPE_F32) f32(t)[i] = v;
    if (t->dtype == DTYPE_BF16) ((uint16_t *)t->data)[i] = bf16_from_f32(v);
    if (t->dtype == DTYPE_I32) i32(t)[i] = (int32_t)v;
    if (dtype_is_fp8(t->dtype)) ((int8_t *)t->data)[i] = (int8_t)v;
}
static float get(const struct tensor *t, int64_t i) {
    if (t->dtype == DTYPE_F32) return f32(t)[i];
    if (t->dtype == DTYPE_BF16) return f32_from_bf16(((uint16_t *)t->data)[i]);
    return t->dtype == DTYPE_I32 ? (float)i32(t)[i] : (float)((int8_t *)t->data)[i];
}

/* The part that element i is in. */
static int64_t part_of(int64_t n, int64_t parts, int64_t i) {
    int64_t k = 0;
    for (struct comm_part p = comm_part(n, parts, k); i >= p.first + p.count; p = comm_part(n, parts, k)) k++;
    return k;
}
/* The rank that owns the part in the own team. */
static int64_t owner(const struct comm *c, int64_t part) { return c->rank - c->part + part; }

static void prepare(struct comm *c, struct tensor *t, enum kind kind, int64_t root) {
    int64_t n = tensor_count(t);
    memset((char *)t->data + tensor_bytes(t), 0x5a, 16);
    for (int64_t i = 0; i < n; i++) {
        bool mine = (kind != ALL_GATHER && kind != GATHER) || part_of(n, c->parts, i) == c->part;
        if (kind == BROADCAST) mine = c->rank == root;
        if (kind == SCATTER) mine = c->part == root;
        put(t, i, mine ? (float)value(i, c->rank, kind) : 99.0f);
    }
}

static float expected(struct comm *c, int64_t n, int64_t i, enum kind kind, int64_t root) {
    if (kind == BROADCAST) return (float)value(i, root, kind);
    int64_t part = part_of(n, c->parts, i);
    bool own = part == c->part, at_root = c->part == root;
    if (kind == GATHER && !own && !at_root) return 99.0f; /* nothing changes */
    if (kind == SCATTER) return own || at_root ? (float)value(i, owner(c, root), kind) : 99.0f;
    if (kind == ALL_GATHER || kind == GATHER) return (float)value(i, owner(c, part), kind);
    float sum = 0;
    for (int64_t r = 0; r < c->world; r++) sum += (float)value(i, r, kind);
    return sum;
}

static void compare(struct comm *c, const struct tensor *t, enum kind kind, int64_t root) {
    int64_t n = tensor_count(t);
    struct comm_part own = comm_part(n, c->parts, c->part);
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
    if (kind == GATHER) return c->gather(c, t, root, NULL);
    if (kind == SCATTER) return c->scatter(c, t, root, NULL);
    return kind == ALL_GATHER ? c->all_gather(c, t, NULL) : c->broadcast(c, t, root, NULL);
}

/* --- every kind x dtype x size --- */

static int every_collective(const struct ranks *r, int64_t rank) {
    /* with 131072 fp32 elements, each of two ranks has exactly the largest piece of a round */
    static const int64_t sizes[] = {0, 1, 127, 128, 129, 641, 1009, 131072};
    struct group *g = ranks_open(r);
    struct comm *c = open_teams(g, *(const int64_t *)r->arg);
    check(strcmp(c->kind, g->world > 1 ? "shared memory" : "one process") == 0, "kind is %s", c->kind);
    struct {
        struct tensor t;
        enum kind kind;
        int64_t root, ticket;
    } jobs[ARRAY_LENGTH(sizes) * DTYPE_COUNT * KINDS + 8];
    int count = 0;
    for (size_t s = 0; s <= ARRAY_LENGTH(sizes); s++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
                bool added = dtype == DTYPE_F32 || dtype == DTYPE_BF16;
                if (!added && kind < ALL_GATHER) continue;
                if (s == ARRAY_LENGTH(sizes) && dtype != kind % 2)
                    continue; /* large: one dtype for each kind */
                int64_t n = s < ARRAY_LENGTH(sizes) ? sizes[s] : 1000003,
                        root = (count + 1) % (kind == BROADCAST ? c->world : c->parts);
                jobs[count].t = make("tensor", (enum dtype)dtype, n);
                jobs[count].kind = (enum kind)kind;
                jobs[count].root = root;
                prepare(c, &jobs[count].t, (enum kind)kind, root);
                count++;
            }
    for (int i = 0; i < count; i++) jobs[i].ticket = issue(c, &jobs[i].t, jobs[i].kind, jobs[i].root);
    /* waits are out of order by one; the ranks take turns in being late */
    for (int i = 0; i < count; i++) {
        int k = (i ^ 1) < count ? i ^ 1 : i;
        if (i % (int)g->world == rank) usleep(500);
        c->wait(c, jobs[k].ticket, NULL);
        compare(c, &jobs[k].t, jobs[k].kind, jobs[k].root);
        free(jobs[k].t.data);
    }
    close_both(c, g);
    return 0;
}

static void test_every_collective(void **state) {
    static const struct {
        int64_t world, parts;
    } runs[] = {{1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}, {4, 2}, {6, 2}, {6, 3}, {3, 1}};
    for (size_t i = 0; i < ARRAY_LENGTH(runs); i++) {
        struct ranks r;
        ranks_init(&r, runs[i].world, 20.0);
        r.arg = &runs[i].parts;
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
        if (round % 4 == rank) usleep(1000); /* the order of arrival must not matter */
        c->all_reduce(c, &a, NULL);
        c->wait(c, c->all_reduce(c, &b, NULL), NULL);
        for (int64_t i = 0; i < N; i++) {
            check(get(&a, i) == sum, "fp32: %g, expected %g", get(&a, i), sum);
            check(get(&b, i) == 260.0f, "bf16: %g, expected 260 (259 rounded)", get(&b, i));
        }
    }
    /* NaN and infinity reach all ranks */
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

/* --- ranks that call different collectives --- */

struct slip {
    const char *what, *said; /* by the slipping rank's neighbours */
};
static const struct slip slips[] = {{"kind", "all_gather of second"},   {"size", "1008 elements"},
                                    {"dtype", "elements of bf16"},      {"root", "from rank 1"},
                                    {"order", "second, 1009 elements"}, {"number", "number 3"}};

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

static void test_different_collectives(void **state) {
    struct ranks r[ARRAY_LENGTH(slips)];
    for (size_t i = 0; i < ARRAY_LENGTH(slips); i++) {
        ranks_init(&r[i], 3, 20.0);
        r[i].arg = &slips[i];
        ranks_start(&r[i], slip_body);
    }
    for (size_t i = 0; i < ARRAY_LENGTH(slips); i++) {
        ranks_finish(&r[i], FINISH);
        for (int64_t rank = 0; rank < 3; rank++) {
            /* one rank finds the difference and fails; the watch ends the others */
            int status = rank_exit(&r[i], rank);
            rank_expect(&r[i], rank, status == 1 ? 1 : GROUP_EXIT_STATUS,
                        "the ranks call different collectives");
        }
        if (strcmp(slips[i].what, "number") != 0) rank_expect(&r[i], 0, rank_exit(&r[i], 0), slips[i].said);
        ranks_free(&r[i]);
    }
}

static int wrong_sum(const struct ranks *r, int64_t rank) {
    struct group *g = ranks_open(r);
    struct comm *c = open_comm(g);
    struct tensor t = make("tokens", *(const enum dtype *)r->arg, 5);
    c->all_reduce(c, &t, NULL);
    return 0;
}

static void test_what_is_not_added(void **state) {
    enum dtype dtypes[] = {DTYPE_I32, DTYPE_E4M3, DTYPE_E5M2};
    for (size_t i = 0; i < ARRAY_LENGTH(dtypes); i++) {
        struct ranks r;
        ranks_init(&r, 2, 20.0);
        r.arg = &dtypes[i];
        ranks_start(&r, wrong_sum);
        ranks_finish(&r, FINISH);
        for (int64_t rank = 0; rank < 2; rank++)
            rank_expect(&r, rank, rank_exit(&r, rank) == 1 ? 1 : GROUP_EXIT_STATUS,
                        "all_reduce is for fp32 and bf16");
        ranks_free(&r);
    }
}

/* --- ranks that end, stop or hang --- */

struct fault {
    int64_t victim;
    int signal; /* SIGALRM: sent in the middle of a collective; 0: none, it hangs */
    const char *said;
};
static const struct fault faults[] = {
    {0, SIGKILL, "rank 0 (%s) ended without a message; last activity: "},
    {1, SIGKILL, "rank 1 (%s) ended without a message; last activity: step 7"},
    {2, SIGKILL, "rank 2 (%s) ended without a message; last activity: step 7"},
    {0, SIGALRM, "rank 0 (%s) ended without a message"},
    {1, SIGALRM, "rank 1 (%s) ended without a message"},
    {0, SIGSTOP, "no message from rank 0 (%s) for "},
    {1, SIGSTOP, "no message from rank 1 (%s) for "},
    {0, 0, "no progress for 4 s while the other ranks wait: rank 0 (%s), last activity: step 7"},
    {1, 0, "no progress for 4 s while the other ranks wait: rank 1 (%s), last activity: step 7"},
};
#define FAULT_TIMEOUT 4.0

static int fault_body(const struct ranks *r, int64_t rank) {
    const struct fault *f = (const struct fault *)r->arg;
    struct group *g = ranks_open(r);
    struct comm *c = open_comm(g);
    group_progress(g, "step", 7);
    struct tensor t = make("gradients", DTYPE_F32, 1 << 20);
    memset(t.data, 0, (size_t)tensor_bytes(&t));
    if (rank == f->victim && f->signal == SIGALRM) ualarm(30000, 0);
    for (int64_t step = 0; step < INT64_MAX; step++) {
        int64_t ticket = 0;
        for (int i = 0; i < 8; i++) ticket = c->all_reduce(c, &t, NULL);
        if (rank == f->victim && f->signal != SIGALRM) { /* the others wait for this rank */
            usleep(f->signal == SIGKILL ? 1300000
                                        : 400000); /* the watch tells once a second what a rank does */
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
        bool ends = faults[i].signal == SIGKILL || faults[i].signal == SIGALRM;
        ranks_init(&r[i], 3, ends ? 20.0 : FAULT_TIMEOUT);
        r[i].arg = &faults[i];
        ranks_start(&r[i], fault_body);
    }
    for (size_t i = 0; i < ARRAY_LENGTH(faults); i++) {
        const struct fault *f = &faults[i];
        double left = started + FAULT_TIMEOUT + 15.0 - now_seconds();
        if (f->signal == SIGSTOP) { /* it cannot end by itself */
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
            else if (f->signal == 0) /* its main thread hangs, but not its watch */
                rank_expect(&r[i], rank, GROUP_EXIT_STATUS, said);
            else
                rank_expect(&r[i], rank, 128 + (f->signal == SIGALRM ? SIGALRM : SIGKILL), NULL);
        ranks_free(&r[i]);
    }
}

/* --- ranks on different machines --- */

/* A host name of its own makes a process look as if it ran on another machine. */
static bool enter_other_machine(void) {
    int flags = CLONE_NEWUTS | (geteuid() == 0 ? 0 : CLONE_NEWUSER);
    return unshare(flags) == 0 && sethostname("node7", 5) == 0;
}

static int other_machine(const struct ranks *r, int64_t rank) {
    if (rank == 2) check(enter_other_machine(), "no namespace");
    struct group *g = ranks_open(r);
    struct device *device = device_open_cpu();
    struct error err;
    check(!comm_open(g, device, 0, &err), "it was opened");
    device->close(device);
    group_close(g);
    fprintf(stderr, "%s\n", err.message);
    return 5;
}

static void test_one_machine_only(void **state) {
    int status;
    pid_t child = fork();
    if (child == 0) _exit(enter_other_machine() ? 0 : 1);
    waitpid(child, &status, 0);
    if (status != 0) {
        print_message("    skipped: the system does not permit a namespace\n");
        return;
    }
    struct ranks r;
    ranks_init(&r, 3, 20.0);
    ranks_start(&r, other_machine);
    ranks_finish(&r, FINISH);
    ranks_expect_all(&r, 5,
                     ") and rank 2 (node7) are on different machines: CPU ranks share the memory of one");
    ranks_free(&r);
}

/* --- timing --- */

static void test_slow_ranks_are_found(void **state) {
    double even[] = {1.0, 1.02, 1.01, 0.99}, slow[] = {1.0, 1.01, 0.99, 1.14}, two[] = {1.3, 1.0};
    struct slowest_rank s = find_slowest_rank(even, 4, 1.2);
    assert_false(s.slow);
    s = find_slowest_rank(slow, 4, 1.3);
    assert_true(s.slow && s.rank == 3);
    assert_float_equal(s.excess, 0.14, 1e-9); /* of the lower median, 1.00 */
    s = find_slowest_rank(two, 2, 1.3);
    assert_true(s.slow && s.rank == 0);
    s = find_slowest_rank(slow, 4, 100.0); /* little of a step that the network dominates */
    assert_false(s.slow);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_collective),
        cmocka_unit_test(test_order_of_sums),
        cmocka_unit_test(test_different_collectives),
        cmocka_unit_test(test_what_is_not_added),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_one_machine_only),
        cmocka_unit_test(test_slow_ranks_are_found),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
