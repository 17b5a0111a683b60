/* Training on several GPUs, or on simulated ones: every level of ZeRO over NCCL, in fp32 and bf16, against
 * one GPU with the same tokens. test_zero.c has many more cases, on the CPU; this test is about streams,
 * and with SIM_LAZY=1 notices a collective for which no operation waits. */
#include "test/test.h"

#include "llmc/base/rng.h"
#include "llmc/ranks/zero.h"
#include "test/ranks/ranks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* --- one rank of a run --- */

/* Heads of 16 columns, which attention's tensor-core variants take in bf16; odd sizes otherwise. */
static const struct gpt_config model = GPT2_CONFIG("small", 12, 70, 3, 2, 32);
enum {
    B = 2,
    T = 9,
    STEPS = 3,
    MICRO = 2 /* micro-batches of a step, over all ranks, but at least one for each */
};

struct result { /* in shared memory */
    float loss[STEPS], norm[STEPS];
    float params[]; /* (layout.total) as fp32 */
};

struct run {
    int64_t world, team;
    enum zero_level level;
    enum dtype dtype;
    enum optimizer_kind optimizer;
    struct result *result;
};

static void batch(int64_t index, int32_t *tokens, int32_t *targets) {
    for (int i = 0; i < B * T; i++) {
        double u = rng_uniform(3, RNG_TEST, (uint64_t)(index * B * T + i));
        tokens[i] = (int32_t)(u * (double)model.vocab_size);
        targets[i] = (3 * tokens[i] + 1) % (int32_t)model.vocab_size;
    }
}

static void train(struct zero *z, struct result *out) {
    struct gpt *g = z->gpt;
    struct comm *c = z->comm;
    int64_t all = max_i64(MICRO, c->world), micro = all / c->world;
    for (int64_t step = 0; step < STEPS; step++) {
        gpt_set_loss_scale(g, 1.0f / (float)(all * B * T));
        for (int64_t i = 0; i < micro; i++) {
            int32_t tokens[B * T], targets[B * T];
            batch(i * c->world + c->rank, tokens, targets);
            gpt_set_batch(g, tokens, targets);
            g->ctx->device->synchronize(g->ctx->device, g->ctx->stream); /* the batch is on the stack */
            zero_micro_step(z, i == 0, i == micro - 1);
        }
        struct update_args args = {.lr = 3e-3f,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.95f,
                                   .eps = 3e-2f, /* divisions by tiny roots would magnify rounding */
                                   .weight_decay = 0.1f,
                                   .max_norm = 0.5f,
                                   .step = step + 1,
                                   .seed = 5,
                                   .momentum = 0.9f,
                                   .muon_lr = 3e-3f,
                                   .embedding_lr = 6e-3f,
                                   .no_embedding_decay = true};
        zero_update(z, &args);
        float numbers[STEP_NUMBERS];
        ctx_download(g->ctx, numbers, g->numbers.data, sizeof numbers);
        out->loss[step] = numbers[STEP_LOSS];
        out->norm[step] = sqrtf(numbers[STEP_SUMSQ]);
    }
    for (int64_t i = 0; i < zero_bucket_count(&model); i++) {
        struct zero_bucket b = zero_bucket(&g->layout, &model, i);
        struct tensor t = zero_whole(z, ZERO_PARAMS, i);
        ctx_download_f32(g->ctx, out->params + b.first, &t);
    }
}

static int body(const struct ranks *ranks, int64_t rank) {
    const struct run *r = (const struct run *)ranks->arg;
    struct error err = {""};
    struct group *group = ranks_open(ranks);
    struct device *device = device_open_cuda((int)group->local_rank, NULL, &err);
    check(device, "%s", err.message);
    struct comm *comm = comm_open(group, device, r->team, &err);
    check(comm, "%s", err.message);
    check(r->world == 1 || strncmp(comm->kind, "NCCL", 4) == 0, "the collectives are not NCCL's: %s",
          comm->kind);
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer optimizer;
    struct zero z;
    struct gpt_options options = {.B = B, .T = T, .train = true, .dtype = r->dtype, .init_std = 0.1f};
    ctx_init(&ctx, device, device->ops, false);
    zero_gpt_options(&options, r->level, r->world);
    gpt_create(&gpt, &ctx, &model, &options);
    zero_create(&z, &gpt, &optimizer, comm, r->level,
                (struct optimizer_options){.kind = r->optimizer, .master_weights = r->dtype != DTYPE_F32});
    gpt_init_weights(&gpt, rank == 0 ? 1 : 2); /* all ranks must get those of rank 0 */
    zero_parameters_changed(&z);
    optimizer_copy_master(&optimizer, &gpt);
    size_t bytes = sizeof(struct result) + (size_t)gpt.layout.total * sizeof(float);
    struct result *own = rank == 0 ? r->result : (struct result *)xcalloc(1, bytes);
    train(&z, own);
    group_barrier(group);
    check(memcmp(own, r->result, bytes) == 0, "rank %d has other losses or parameters than rank 0",
          (int)rank);
    if (rank) free(own);
    zero_free(&z);
    comm->close(comm);
    ctx_free(&ctx);
    device->close(device);
    group_close(group);
    return 0;
}

/* --- runs --- */

static int64_t total(void) {
    struct gpt_params layout;
    gpt_params_layout(&layout, &model);
    return layout.total;
}
static size_t result_bytes(void) { return sizeof(struct result) + (size_t)total() * sizeof(float); }

static struct result *run(int64_t world, int64_t team, enum zero_level level, enum dtype dtype,
                          enum optimizer_kind optimizer) {
    struct result *out = (struct result *)mmap(NULL, result_bytes(), PROT_READ | PROT_WRITE,
                                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(out != MAP_FAILED, "no shared memory");
    struct run r = {world, team, level, dtype, optimizer, out};
    struct ranks ranks;
    ranks_init(&ranks, world, 60.0);
    ranks.arg = &r;
    ranks_start(&ranks, body);
    ranks_finish(&ranks, 120.0);
    ranks_expect_all(&ranks, 0, NULL);
    ranks_free(&ranks);
    return out;
}
static void run_free(struct result *r) { munmap(r, result_bytes()); }

/* --- comparisons --- */

static void near(int level, const char *what, int64_t i, double got, double want, double allowed) {
    if (!(fabs(got - want) <= allowed))
        fail_msg("level %d: %s %d is %.9g, not %.9g", level, what, (int)i, got, want);
}

/* `loss`, `params`: the allowed relative differences. */
static void check_levels(enum dtype dtype, enum optimizer_kind optimizer, double loss, double params) {
    struct result *one = run(1, 0, ZERO_NONE, dtype, optimizer), *first = NULL;
    assert_true(one->loss[STEPS - 1] < one->loss[0]);
    for (int level = ZERO_NONE; level <= ZERO_PARAMETERS; level++) {
        struct result *two = run(2, 0, (enum zero_level)level, dtype, optimizer);
        for (int i = 0; i < STEPS; i++) {
            near(level, "the loss of step", i, (double)two->loss[i], (double)one->loss[i],
                 loss * (double)one->loss[i]);
            near(level, "the norm of step", i, (double)two->norm[i], (double)one->norm[i],
                 10.0 * loss * (double)one->norm[i]);
        }
        for (int64_t i = 0; i < total(); i++)
            near(level, "parameter", i, (double)two->params[i], (double)one->params[i],
                 params * fabs((double)one->params[i]) + 1e-2 * params);
        /* the sum of two values does not depend on their order: all levels give the same bits */
        if (first && memcmp(first, two, result_bytes()) != 0)
            fail_msg("level %d differs from level 0", level);
        if (first)
            run_free(two);
        else
            first = two;
    }
    run_free(first);
    run_free(one);
}

static bool can_run(void) {
    const char *size = getenv("LLMC_TEST_SIZE");
    if (size && strcmp(size, "small") == 0) return false; /* other tests check these kernels for races */
    setenv("SIM_GPUS", "2", 1);
    setenv("SIM_WORKERS", "1", 1); /* two processes already share the cores */
    return true;
}

static void test_fp32(void **state) {
    if (!can_run()) skip();
    check_levels(DTYPE_F32, OPTIMIZER_ADAMW, 1e-6, 1e-6);
}
/* Two ranks round their gradients to bf16 separately, one rank rounds the sum. A parameter may end one bf16
 * number off, which is at most 2^-7 of it. */
static void test_bf16(void **state) {
    if (!can_run()) skip();
    check_levels(DTYPE_BF16, OPTIMIZER_ADAMW, 3e-4, 1.0 / 128.0);
}

/* Small singular values grow, and with them rounding. */
static void test_muon(void **state) {
    if (!can_run()) skip();
    check_levels(DTYPE_F32, OPTIMIZER_MUON, 1e-5, 1e-5);
}

/* Four GPUs in two teams: a sum is first within a team and then over the teams, another order than in one
 * team. */
static void test_teams(void **state) {
    if (!can_run()) skip();
    setenv("SIM_GPUS", "4", 1);
    for (int level = ZERO_OPTIMIZER; level <= ZERO_PARAMETERS; level++) {
        struct result *one = run(4, 0, (enum zero_level)level, DTYPE_F32, OPTIMIZER_ADAMW);
        struct result *two = run(4, 2, (enum zero_level)level, DTYPE_F32, OPTIMIZER_ADAMW);
        for (int i = 0; i < STEPS; i++) {
            near(level, "the loss of step", i, (double)two->loss[i], (double)one->loss[i],
                 1e-6 * (double)one->loss[i]);
            near(level, "the norm of step", i, (double)two->norm[i], (double)one->norm[i],
                 1e-5 * (double)one->norm[i]);
        }
        for (int64_t i = 0; i < total(); i++)
            near(level, "parameter", i, (double)two->params[i], (double)one->params[i],
                 1e-6 * fabs((double)one->params[i]) + 1e-8);
        run_free(one);
        run_free(two);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_muon),
        cmocka_unit_test(test_teams),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
