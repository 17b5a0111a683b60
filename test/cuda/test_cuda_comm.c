/* Collectives through NCCL between forked processes with a GPU each: 1 to 4 simulated devices with the
 * simulated NCCL, or the GPUs of this machine. Also the simulated NCCL itself.
 *
 *     LLMC_TEST_SIZE=small test_cuda_comm     two processes, few sizes: for a race checker */
#include "test/test.h"

#include "llmc/ranks/comm.h"
#include "llmc/ranks/nccl_api.h"
#include "test/ranks/ranks.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- running ranks --- */

enum { GPUS = 4 };

static bool small(void) {
    const char *size = getenv("LLMC_TEST_SIZE");
    return size && strcmp(size, "small") == 0;
}

/* The GPUs of this machine. A child process finds out, because CUDA does not survive a fork. */
static struct {
    bool simulated, nccl;
    int devices;
    char text[1200];
} machine;

static void look_around(int out) {
    struct error err = {""};
    struct nccl_api api;
    int version;
    struct device *d = device_open_cuda(0, NULL, &err);
    check(d, "these tests need a GPU, or the simulated one (make sim): %s", err.message);
    machine.simulated = strcmp(d->name, "simulated device") == 0;
    machine.devices = device_count_cuda(&err);
    machine.nccl = nccl_load(&api, &version, &err);
    snprintf(machine.text, sizeof machine.text, "%s",
             machine.nccl ? nccl_version_text(version) : err.message);
    d->close(d);
    _exit(write(out, &machine, sizeof machine) == sizeof machine ? 0 : 1);
}

static int find_machine(void **state) {
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) look_around(ends[1]);
    close(ends[1]);
    bool ok = read(ends[0], &machine, sizeof machine) == sizeof machine;
    close(ends[0]);
    waitpid(child, &status, 0);
    check(ok && status == 0, "no device");
    print_message("# %s%s, devices: %d\n", machine.nccl ? "NCCL " : "left out: ", machine.text,
                  machine.devices);
    return 0;
}

/* A process of the run with its GPU. */
struct side {
    struct group *group;
    struct device *device;
    struct ctx ctx;
    struct comm *comm;
};

static void side_open_teams(struct side *s, const struct ranks *r, int64_t parts) {
    struct error err = {""};
    s->group = ranks_open(r);
    s->device = device_open_cuda((int)s->group->local_rank, NULL, &err);
    check(s->device, "%s", err.message);
    ctx_init(&s->ctx, s->device, s->device->ops, false);
    s->comm = comm_open_nccl(s->group, s->device, parts, &err);
    check(s->comm, "%s", err.message);
}
static void side_open(struct side *s, const struct ranks *r) { side_open_teams(s, r, r->world); }
static void side_close(struct side *s) {
    s->comm->close(s->comm);
    ctx_free(&s->ctx);
    s->device->close(s->device);
    group_close(s->group);
}

/* Runs the ranks, which must succeed and print nothing. */
static void run(int64_t world, rank_body body, const void *arg) {
    struct ranks r;
    ranks_init(&r, world, 20.0);
    r.arg = arg;
    ranks_start(&r, body);
    ranks_finish(&r, 60.0);
    ranks_expect_all(&r, 0, NULL);
    ranks_free(&r);
}

static void run_worlds(rank_body body, const void *arg) {
    if (!machine.nccl) skip();
    for (int64_t world = small() ? 2 : 1; world <= (small() ? 2 : GPUS); world++)
        if (world <= machine.devices) run(world, body, arg);
}

/* --- collectives --- */

/* Small integers, so that every sum is exact, in bf16, too. */
static float value_of(int64_t rank, int64_t i) { return (float)((i * 7 + rank * 13 + i / 128) % 17 - 8); }

enum { GUARD = 64 }; /* elements before and behind the tensor */

struct exchange {
    struct side side;
    enum dtype dtype;
    int64_t n;
    char *device; /* GUARD + n + GUARD elements */
    float *host;
    uint16_t *halves;
    struct tensor tensor;
};

static void put(struct exchange *x) {
    int64_t all = x->n + 2 * GUARD;
    for (int64_t i = 0; i < all; i++) {
        x->host[i] = i < GUARD || i >= GUARD + x->n ? 99.0f : value_of(x->side.comm->rank, i - GUARD);
        x->halves[i] = bf16_from_f32(x->host[i]);
    }
    const void *from = x->dtype == DTYPE_BF16 ? (const void *)x->halves : (const void *)x->host;
    ctx_upload(&x->side.ctx, x->device, from, all * (int64_t)dtype_size(x->dtype));
}

/* Downloads behind the collective; the guards around the tensor must be unchanged. */
static void get(struct exchange *x, int64_t ticket, const char *what) {
    int64_t all = x->n + 2 * GUARD;
    x->side.comm->wait(x->side.comm, ticket, x->side.ctx.stream);
    void *to = x->dtype == DTYPE_BF16 ? (void *)x->halves : (void *)x->host;
    ctx_download(&x->side.ctx, to, x->device, all * (int64_t)dtype_size(x->dtype));
    for (int64_t i = 0; i < all; i++) {
        if (x->dtype == DTYPE_BF16) x->host[i] = f32_from_bf16(x->halves[i]);
        if (i < GUARD || i >= GUARD + x->n)
            check(x->host[i] == 99.0f, "%s of %s wrote beside it, at %lld", what, tensor_text(&x->tensor),
                  (long long)(i - GUARD));
    }
}

static void expect(const struct exchange *x, int64_t i, float expected, const char *what) {
    float got = x->host[GUARD + i];
    check(got == expected, "%s of %s: element %lld is %g instead of %g", what, tensor_text(&x->tensor),
          (long long)i, (double)got, (double)expected);
}
static float sum_of(int64_t world, int64_t i) {
    float sum = 0.0f;
    for (int64_t r = 0; r < world; r++) sum += value_of(r, i);
    return sum;
}

static void exchange(struct exchange *x) {
    struct comm *c = x->side.comm;
    void *stream = x->side.ctx.stream;
    put(x);
    get(x, c->all_reduce(c, &x->tensor, stream), "all_reduce");
    for (int64_t i = 0; i < x->n; i++) expect(x, i, sum_of(c->world, i), "all_reduce");

    int64_t team = c->rank - c->part; /* its first rank */
    struct comm_part own = comm_part(x->n, c->parts, c->part);
    put(x);
    get(x, c->reduce_scatter(c, &x->tensor, stream), "reduce_scatter");
    for (int64_t i = own.first; i < own.first + own.count; i++)
        expect(x, i, sum_of(c->world, i), "reduce_scatter");

    put(x);
    get(x, c->all_gather(c, &x->tensor, stream), "all_gather");
    for (int64_t p = 0; p < c->parts; p++) {
        struct comm_part part = comm_part(x->n, c->parts, p);
        for (int64_t i = part.first; i < part.first + part.count; i++)
            expect(x, i, value_of(team + p, i), "all_gather");
    }
    for (int64_t root = 0; root < c->world; root++) {
        put(x);
        get(x, c->broadcast(c, &x->tensor, root, stream), "broadcast");
        for (int64_t i = 0; i < x->n; i++) expect(x, i, value_of(root, i), "broadcast");
    }
    for (int64_t root = 0; root < c->parts; root++)
        for (int64_t p = 0; p < c->parts; p++) {
            struct comm_part part = comm_part(x->n, c->parts, p);
            put(x);
            get(x, c->gather(c, &x->tensor, root, stream), "gather");
            for (int64_t i = part.first; i < part.first + part.count; i++)
                expect(x, i, value_of(c->part == root ? team + p : c->rank, i), "gather");
            put(x);
            get(x, c->scatter(c, &x->tensor, root, stream), "scatter");
            for (int64_t i = part.first; i < part.first + part.count; i++)
                expect(x, i, value_of(p == c->part ? team + root : c->rank, i), "scatter");
        }
}

/* 384 divides evenly among 1 and 3 ranks, 1024 among 1, 2 and 4. */
static const int64_t sizes[] = {0, 1, 127, 129, 384, 1024, 1009, 100003};

static int collectives_body(const struct ranks *r, int64_t rank) {
    struct exchange x;
    side_open_teams(&x.side, r, r->arg ? *(const int64_t *)r->arg : r->world);
    check(strncmp(x.side.comm->kind, "NCCL 2.", 7) == 0, "kind: %s", x.side.comm->kind);
    check(x.side.comm->rank == rank && x.side.comm->world == r->world, "rank or world is wrong");
    for (size_t k = 0; k < ARRAY_LENGTH(sizes); k++) {
        if (small() && sizes[k] > 1024) break;
        for (int half = 0; half < 2; half++) {
            x.dtype = half ? DTYPE_BF16 : DTYPE_F32;
            x.n = sizes[k];
            size_t all = (size_t)(x.n + 2 * GUARD);
            x.device = (char *)x.side.device->alloc(x.side.device, all * 4);
            check(x.device, "out of memory");
            x.host = (float *)xmalloc(all * sizeof *x.host);
            x.halves = (uint16_t *)xmalloc(all * sizeof *x.halves);
            x.tensor =
                tensor_make("t", x.dtype, x.device + GUARD * dtype_size(x.dtype), max_i64(x.n, 1), 0, 0, 0);
            x.tensor.dim[0] = x.n;
            exchange(&x);
            x.side.device->free(x.side.device, x.device);
            free(x.host);
            free(x.halves);
        }
    }
    side_close(&x.side);
    return 0;
}
static void test_collectives(void **state) { run_worlds(collectives_body, NULL); }

static void test_teams(void **state) {
    if (!machine.nccl || machine.devices < GPUS || small()) skip();
    for (int64_t parts = 1; parts < GPUS; parts *= 2) run(GPUS, collectives_body, &parts);
}

/* --- order on the device --- */

enum { ROUNDS = 100, N = 300, OUTSTANDING = 7 };

static struct tensor vector_of(struct side *s, const char *name) {
    struct tensor t =
        tensor_make(name, DTYPE_F32, s->device->alloc(s->device, N * sizeof(float)), N, 0, 0, 0);
    check(t.data, "out of memory");
    return t;
}

/* More collectives than there are events for tickets, several running at once, awaited in another order.
 * Kernels before each write its operand, kernels behind wait() read the result. */
static int order_body(const struct ranks *r, int64_t rank) {
    struct side s;
    side_open(&s, r);
    struct comm *c = s.comm;
    struct tensor t[OUTSTANDING], total = vector_of(&s, "total"),
                                  out = tensor_make("out", DTYPE_F32, NULL, 1, 0, 0, 0);
    out.data = s.device->alloc(s.device, 256);
    struct tensor scale = tensor_make("scale", DTYPE_F32, s.device->alloc(s.device, 4), 1, 0, 0, 0);
    fill(&s.ctx, &scale, 1.0f / N);
    for (int i = 0; i < OUTSTANDING; i++) t[i] = vector_of(&s, "t");
    for (int round = 0; round < ROUNDS / OUTSTANDING; round++) {
        int64_t ticket[OUTSTANDING];
        for (int i = 0; i < OUTSTANDING; i++) {
            fill(&s.ctx, &t[i], (float)(round + i + rank));
            ticket[i] = i % 2 ? c->all_reduce(c, &t[i], s.ctx.stream)
                              : c->broadcast(c, &t[i], i % c->world, s.ctx.stream);
        }
        for (int k = 0; k < OUTSTANDING; k++) {
            int i = (k * 3 + round) % OUTSTANDING;
            c->wait(c, ticket[i], s.ctx.stream);
            cast(&s.ctx, &total, &t[i]);
            sum(&s.ctx, &out, &total, &scale, k > 0);
        }
        float expected = 0.0f, got;
        for (int i = 0; i < OUTSTANDING; i++)
            expected += i % 2 ? (float)(c->world * (round + i)) + (float)(c->world * (c->world - 1)) / 2.0f
                              : (float)(round + i + i % c->world);
        ctx_download(&s.ctx, &got, out.data, sizeof got);
        check(got > expected - 0.01f && got < expected + 0.01f, "round %d: %g instead of %g", round,
              (double)got, (double)expected);
    }
    side_close(&s);
    return 0;
}
static void test_order(void **state) { run_worlds(order_body, NULL); }

/* With lazy streams (SIM_LAZY=1) a copy that does not wait for the collective reads the old values. Other
 * tests find a missing wait() by that. */
static int missing_wait_body(const struct ranks *r, int64_t rank) {
    struct side s;
    side_open(&s, r);
    struct tensor t = vector_of(&s, "t");
    int early = 0;
    for (int round = 0; round < 16; round++) {
        float got;
        fill(&s.ctx, &t, 1.0f);
        int64_t ticket = s.comm->all_reduce(s.comm, &t, s.ctx.stream);
        ctx_download(&s.ctx, &got, t.data, sizeof got);
        early += got == 1.0f;
        s.comm->wait(s.comm, ticket, s.ctx.stream);
        ctx_download(&s.ctx, &got, t.data, sizeof got);
        check(got == (float)r->world, "after wait(): %g", (double)got);
    }
    check(early > 0, "nothing shows that wait() was missing");
    side_close(&s);
    return 0;
}
static void test_missing_wait_is_noticed(void **state) {
    const char *lazy = getenv("SIM_LAZY");
    if (!machine.simulated || !lazy || strcmp(lazy, "1") != 0) skip();
    run(2, missing_wait_body, NULL);
}

/* Rank 0 alone waits for its device, while the other ranks wait for rank 0 on the host: their GPUs must
 * still finish the collective. */
static int alone_body(const struct ranks *r, int64_t rank) {
    struct side s;
    side_open(&s, r);
    struct tensor t = vector_of(&s, "t");
    fill(&s.ctx, &t, (float)(rank + 1));
    int64_t ticket = s.comm->all_reduce(s.comm, &t, s.ctx.stream);
    s.comm->wait(s.comm, ticket, s.ctx.stream);
    float got = 0.0f;
    if (rank == 0) ctx_download(&s.ctx, &got, t.data, sizeof got);
    group_broadcast(s.group, &got, sizeof got, 0);
    check(got == (float)(r->world * (r->world + 1)) / 2.0f, "%g", (double)got);
    side_close(&s);
    return 0;
}
static void test_one_rank_waits_alone(void **state) { run_worlds(alone_body, NULL); }

/* --- what goes wrong --- */

static void need_simulation(void) {
    if (!machine.simulated || small()) skip();
}

/* All ranks must end with this status, having said this. */
static void run_failing(int64_t world, rank_body body, const void *arg, int status, const char *text) {
    struct ranks r;
    ranks_init(&r, world, 20.0);
    r.arg = arg;
    ranks_start(&r, body);
    ranks_finish(&r, 60.0);
    ranks_expect_all(&r, status, text);
    ranks_free(&r);
}

/* Opening must fail on every rank with the same words. */
static int refused_body(const struct ranks *r, int64_t rank) {
    const char *fault = (const char *)r->arg;
    struct error err = {""};
    if (rank == 1 && strcmp(fault, "version") == 0) setenv("SIM_NCCL_VERSION", "22105", 1);
    if (rank == 1 && strcmp(fault, "old") == 0) setenv("SIM_NCCL_VERSION", "2804", 1);
    if (rank == 1 && strcmp(fault, "missing") == 0) setenv("LLMC_NCCL", "/nonexistent/libnccl.so.2", 1);
    if (rank == 1 && strcmp(fault, "foreign") == 0) setenv("LLMC_NCCL", "libm.so.6", 1);
    struct group *g = ranks_open(r);
    int64_t index = strcmp(fault, "one GPU") == 0 ? 0 : rank;
    bool cpu = rank == 1 && strcmp(fault, "cpu") == 0;
    struct device *d = cpu ? device_open_cpu() : device_open_cuda((int)index, NULL, &err);
    check(d, "%s", err.message);
    struct comm *c = comm_open(g, d, 0, &err);
    check(!c, "it was opened");
    d->close(d);
    group_close(g);
    fprintf(stderr, "%s\n", err.message);
    return 5;
}
static void test_refusals(void **state) {
    need_simulation();
    run_failing(2, refused_body, "version", 5, "has 2.28.9, rank 1 (");
    run_failing(2, refused_body, "old", 5, "NCCL 2.8.4 is too old: bf16 needs 2.10.0");
    run_failing(2, refused_body, "missing", 5, "cannot be loaded: /nonexistent/libnccl.so.2");
    run_failing(2, refused_body, "foreign", 5, "libm.so.6 is not NCCL");
    run_failing(2, refused_body, "one GPU", 5, "use one GPU, GPU-00000000-");
    run_failing(2, refused_body, "cpu", 5, ") uses the device cuda, rank 1 (");
}

/* Rank 1 dies or does not take part; rank 0 waits for its device, and the watch ends it. */
static int lost_body(const struct ranks *r, int64_t rank) {
    const char *fault = (const char *)r->arg;
    struct side s;
    side_open(&s, r);
    struct tensor t = vector_of(&s, "t");
    float got;
    fill(&s.ctx, &t, 1.0f);
    if (rank == 1 && strcmp(fault, "killed") == 0) raise(SIGKILL);
    if (rank == 1 && strcmp(fault, "check") == 0) die("the disk is full");
    if (rank == 1) setenv("SIM_NCCL_CUT", "1", 1);
    int64_t ticket = s.comm->all_reduce(s.comm, &t, s.ctx.stream);
    s.comm->wait(s.comm, ticket, s.ctx.stream);
    ctx_download(&s.ctx, &got, t.data, sizeof got);
    fprintf(stderr, "came back\n");
    return 0;
}
static void run_lost(const char *fault, int status_of_1, const char *said_by_0) {
    struct ranks r;
    ranks_init(&r, 2, 20.0);
    r.arg = fault;
    ranks_start(&r, lost_body);
    ranks_finish(&r, 60.0);
    rank_expect(&r, 0, GROUP_EXIT_STATUS, said_by_0);
    if (status_of_1) assert_int_equal(rank_exit(&r, 1), status_of_1);
    ranks_free(&r);
}
static void test_lost_ranks(void **state) {
    if (!machine.nccl || machine.devices < 2) skip();
    run_lost("killed", 128 + SIGKILL, "rank 1");
    run_lost("check", 1, "the disk is full");
    if (machine.simulated)
        run_lost("cut", 0, "NCCL lost its connection to the other GPUs: remote process exited");
}

/* --- the simulated NCCL itself --- */

static int differing_body(const struct ranks *r, int64_t rank) {
    struct side s;
    side_open(&s, r);
    struct tensor t = vector_of(&s, "t");
    struct tensor some = tensor_make("some", DTYPE_F32, t.data, rank == 1 ? N - 1 : N, 0, 0, 0);
    fill(&s.ctx, &t, 1.0f);
    s.comm->all_reduce(s.comm, &some, s.ctx.stream);
    s.device->synchronize(s.device, NULL);
    s.comm->close(s.comm);
    return 0;
}
static void test_differing_calls_are_noticed(void **state) {
    need_simulation();
    struct ranks r;
    ranks_init(&r, 2, 20.0);
    ranks_start(&r, differing_body);
    ranks_finish(&r, 60.0);
    /* the rank that notices it first ends the other */
    bool said = false;
    for (int i = 0; i < 2; i++)
        said |= rank_exit(&r, i) == 99 && strstr(r.p[i].said, "the ranks differ in operation 0") &&
                strstr(r.p[i].said, "AllReduce of 299 float32");
    if (!said) fail_msg("%s%s", r.p[0].said, r.p[1].said);
    ranks_free(&r);
}

struct stuck {
    struct nccl_api api;
    void *comm;
};
static void *abort_later(void *arg) {
    struct stuck *s = (struct stuck *)arg;
    usleep(200000);
    s->api.comm_abort(s->comm);
    return NULL;
}
/* Rank 0 waits on the device for rank 1, which never joins, until another thread aborts the communicator. */
static int abort_body(const struct ranks *r, int64_t rank) {
    struct stuck s = {0};
    struct error err = {""};
    int version;
    struct group *g = ranks_open(r);
    struct device *d = device_open_cuda((int)rank, NULL, &err);
    check(d && nccl_load(&s.api, &version, &err), "%s", err.message);
    struct nccl_id id;
    if (rank == 0) s.api.get_unique_id(&id);
    group_broadcast(g, &id, sizeof id, 0);
    check(s.api.comm_init_rank(&s.comm, 2, id, (int)rank) == NCCL_SUCCESS, "init");
    if (rank == 0) {
        pthread_t thread;
        char *p = (char *)d->alloc(d, 400);
        pthread_create(&thread, NULL, abort_later, &s);
        check(s.api.all_reduce(p, p, 100, NCCL_FLOAT32, NCCL_SUM, s.comm, d->stream) == NCCL_SUCCESS,
              "all_reduce");
        d->synchronize(d, d->stream);
        pthread_join(thread, NULL);
        d->free(d, p);
    }
    group_barrier(g);
    int error = NCCL_SUCCESS;
    for (int i = 0; rank == 1 && error == NCCL_SUCCESS && i < 500; i++) {
        s.api.comm_get_async_error(s.comm, &error);
        usleep(10000);
    }
    check(rank == 0 || error == NCCL_REMOTE_ERROR, "rank 1 does not notice: %d", error);
    d->close(d);
    group_close(g);
    return 0;
}
static void test_abort_ends_a_wait(void **state) {
    need_simulation();
    run(2, abort_body, NULL);
}

/* Mistakes that only a bug in the engine can make end the process with a message. */
static int misuse_body(const struct ranks *r, int64_t rank) {
    const char *fault = (const char *)r->arg;
    struct nccl_api api;
    struct error err = {""};
    int version;
    float host[128] = {0};
    void *comm;
    struct nccl_id id;
    struct device *d = device_open_cuda(0, NULL, &err);
    check(d && nccl_load(&api, &version, &err), "%s", err.message);
    api.get_unique_id(&id);
    check(api.comm_init_rank(&comm, 1, id, 0) == NCCL_SUCCESS, "init");
    float *p = (float *)d->alloc(d, sizeof host);
    if (strcmp(fault, "host") == 0) api.all_reduce(host, host, 128, NCCL_FLOAT32, NCCL_SUM, comm, d->stream);
    if (strcmp(fault, "beyond") == 0) api.broadcast(p, p, 129, NCCL_FLOAT32, 0, comm, d->stream);
    if (strcmp(fault, "overlap") == 0) api.all_reduce(p, p + 32, 64, NCCL_FLOAT32, NCCL_SUM, comm, d->stream);
    if (strcmp(fault, "capture") == 0) {
        d->capture_begin(d, d->stream);
        api.all_reduce(p, p, 128, NCCL_FLOAT32, NCCL_SUM, comm, d->stream);
    }
    api.comm_abort(comm);
    if (strcmp(fault, "aborted") == 0) api.all_reduce(p, p, 128, NCCL_FLOAT32, NCCL_SUM, comm, d->stream);
    return 0;
}
static void test_misuse_is_noticed(void **state) {
    need_simulation();
    run_failing(1, misuse_body, "host", 99, "ncclAllReduce: 512 bytes at 0x");
    run_failing(1, misuse_body, "beyond", 99, "ncclBroadcast: 516 bytes at 0x");
    run_failing(1, misuse_body, "overlap", 99, "overlap in a way that NCCL does not allow");
    run_failing(1, misuse_body, "capture", 99, "ncclAllReduce while a stream is being captured");
    run_failing(1, misuse_body, "aborted", 99, "the communicator was aborted or destroyed");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_teams),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_missing_wait_is_noticed),
        cmocka_unit_test(test_one_rank_waits_alone),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_lost_ranks),
        cmocka_unit_test(test_differing_calls_are_noticed),
        cmocka_unit_test(test_abort_ends_a_wait),
        cmocka_unit_test(test_misuse_is_noticed),
    };
    setenv("SIM_GPUS", "4", 1);
    setenv("SIM_WORKERS", "1", 1); /* several processes share the cores as it is */
    return test_main(argc, argv, tests, find_machine, NULL);
}
