/* Every CUDA operation, every variant, in fp32 and bf16, against the CPU op: the cases of op_<stem>.c.
 *     test_cuda_ops [OP]                  only the ops whose name matches ("norm*")
 *     LLMC_TEST_SIZE=large test_cuda_ops  also the shapes of GPT-2: for a real GPU
 *     LLMC_TEST_LADDERS=0 test_cuda_ops   without the teaching ladders of dev/variants
 *     test_cuda_ops --rows                lists "OP:VARIANT:DTYPE ARCH"; ARCH 0: for every architecture
 *     LLMC_TEST_ROW=OP:VARIANT:DTYPE test_cuda_ops OP    only this row; prints each case before it runs
 * profiling/measure_gpu.sh gives each row a process, so that one which dies or hangs costs no other. To test
 * that, LLMC_TEST_FAULT=OP:VARIANT:DTYPE=wrong|illegal|hang,... plants faults in rows.
 * Besides the results this checks that an op's last variant takes every case and that every variant takes
 * some. */
#include "test/test.h"

#include "dev/variants/ladder.h"
#include "test/ops/op_harness.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct gpu {
    struct device *device;
    struct ctx ctx;
    bool large, small, ladders;
};

static int open_gpu(void **state) {
    struct error err;
    struct gpu *gpu = (struct gpu *)xcalloc(1, sizeof *gpu);
    const char *size = getenv("LLMC_TEST_SIZE"), *ladders = getenv("LLMC_TEST_LADDERS");
    gpu->device = device_open_cuda(0, NULL, &err);
    check(gpu->device, "these tests need a GPU, or the simulated one (make sim): %s", err.message);
    gpu->large = size && strcmp(size, "large") == 0;
    gpu->ladders = !ladders || strcmp(ladders, "0") != 0;
    gpu->small = size && strcmp(size, "small") == 0;
    ctx_init(&gpu->ctx, gpu->device, gpu->device->ops, false);
    *state = gpu;
    return 0;
}

static int close_gpu(void **state) {
    struct gpu *gpu = (struct gpu *)*state;
    ctx_free(&gpu->ctx);
    gpu->device->close(gpu->device);
    free(gpu);
    return 0;
}

/* --- every variant --- */

/* LLMC_TEST_ROW: does it leave this row out? */
static bool left_out(const char *row) {
    const char *only = getenv("LLMC_TEST_ROW");
    return only && *only && strcmp(only, row) != 0;
}

/* Commits the fault that LLMC_TEST_FAULT plants in this row, if it is not "wrong". Returns whether it is. */
static bool plant_fault(struct gpu *gpu, const char *row) {
    const char *faults = getenv("LLMC_TEST_FAULT"), *at = faults ? strstr(faults, row) : NULL;
    if (!at || at[strlen(row)] != '=') return false;
    const char *kind = at + strlen(row) + 1;
    if (strncmp(kind, "hang", 4) == 0)
        for (;;) pause();
    if (strncmp(kind, "illegal", 7) == 0) {
        struct tensor nowhere = tensor_make("out", DTYPE_F32, (void *)4096, 1024, 0, 0, 0);
        fill(&gpu->ctx, &nowhere, 1.0f);
        gpu->device->synchronize(gpu->device, gpu->ctx.stream);
    }
    return strncmp(kind, "wrong", 5) == 0;
}

/* Runs all cases of one variant and counts failures; the last variant has no other to fall back on. */
static int check_variant(struct gpu *gpu, const struct op_test *op, const char *variant, bool last) {
    int passed = 0, failed = 0, skipped = 0;
    double worst[DTYPE_COUNT] = {0};
    const char *only_row = getenv("LLMC_TEST_ROW");
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        char row[96];
        snprintf(row, sizeof row, "%s:%s:%s", op_name(op->id), variant, dtype_name((enum dtype)dtype));
        if (left_out(row)) continue;
        bool wrong = plant_fault(gpu, row);
        for (size_t i = 0; i < op->case_count; i++) {
            const struct op_case *c = &op->cases[i];
            if ((c->size == SIZE_LARGE && !gpu->large) || (c->size == SIZE_MEDIUM && gpu->small)) continue;
            if (c->only && strcmp(c->only, variant) != 0) continue;
            if (c->only && (dtype != DTYPE_BF16 || (gpu->small && !(c->flags & EVERYWHERE)))) continue;
            struct error err;
            struct op_target target = {
                .ctx = &gpu->ctx, .variant = variant, .once = gpu->small, .wrong = wrong};
            if (only_row) print_message("# case %s\n", op_case_text(op, c, (enum dtype)dtype, variant));
            enum op_verdict verdict = op_check(op, c, (enum dtype)dtype, &target, &worst[dtype], &err);
            if (verdict == OP_FAILED) print_error("%s\n", err.message);
            if (verdict == OP_SKIPPED && last)
                print_error("%s: the last variant must take every case\n",
                            op_case_text(op, c, (enum dtype)dtype, variant));
            passed += verdict == OP_PASSED;
            skipped += verdict == OP_SKIPPED;
            failed += verdict == OP_FAILED || (verdict == OP_SKIPPED && last);
        }
    }
    bool untested =
        passed + failed == 0 && !only_row; /* a row has one type, which the variant may not take */
    if (untested) print_error("%s:%s takes no case: nothing tests it\n", op_name(op->id), variant);
    print_message("# %s:%s %d passed, %d failed, %d not taken; largest error, as a share of what is allowed: "
                  "fp32 %.2f, bf16 %.2f\n",
                  op_name(op->id), variant, passed, failed, skipped, worst[DTYPE_F32], worst[DTYPE_BF16]);
    return failed + untested;
}

static int print_rows(void) {
    for (int id = 0; id < OP_COUNT; id++)
        for (int i = 0; op_tests[id]->variant(&cuda_ops, i); i++)
            for (int dtype = DTYPE_BF16; dtype >= DTYPE_F32; dtype--)
                printf("%s:%s:%s %d\n", op_name((enum op_id)id), op_tests[id]->variant(&cuda_ops, i),
                       dtype_name((enum dtype)dtype), op_tests[id]->arch(&cuda_ops, i));
    return 0;
}

static void test_op(void **state, enum op_id id) {
    struct gpu *gpu = (struct gpu *)*state;
    const struct op_test *op = op_tests[id];
    const char *name;
    int failed = 0, count = 0;
    for (; (name = op->variant(gpu->ctx.ops, count)); count++)
        if (op_runs_on(&gpu->ctx, op->arch(gpu->ctx.ops, count)))
            failed += check_variant(gpu, op, name, !op->variant(gpu->ctx.ops, count + 1));
        else
            print_message("# %s:%s is made for another device than %s\n", op_name(id), name,
                          gpu->device->name);
    assert_true(count > 0);
    const struct ops *production = gpu->ctx.ops;
    gpu->ctx.ops = &ladder_ops;
    for (count = 0;
         gpu->ladders && (name = op->variant(&ladder_ops, count)) && isdigit((unsigned char)name[0]); count++)
        failed += check_variant(gpu, op, name, false); /* a step may refuse cases */
    gpu->ctx.ops = production;
    if (failed) fail_msg("%d failures", failed);
}

#define X(op)                                                                                                \
    static void test_##op(void **state) { test_op(state, OP_##op); }
LLMC_OPS(X)
#undef X

/* --- stochastic rounding --- */

/* One update of N parameters from 1 towards 1 + 1/4 of the spacing above, in `pieces` calls. The first
 * element has the number `offset` in the whole buffer. */
enum { N = 16384 };
static void round_stochastically(struct gpu *gpu, uint16_t *out, int pieces, int64_t offset, int step) {
    struct device *d = gpu->device;
    uint16_t *half = (uint16_t *)xmalloc(N * sizeof *half);
    float *zero = (float *)xcalloc(N, sizeof *zero), one = 1.0f;
    void *memory[5];
    const size_t bytes[5] = {N * 2, N * 4, N * 4, N * 2, 4};
    for (int k = 0; k < 5; k++) memory[k] = d->alloc(d, bytes[k]);
    for (int i = 0; i < N; i++) half[i] = bf16_from_f32(1.0f);
    ctx_upload(&gpu->ctx, memory[0], half, N * 2);
    for (int i = 0; i < N; i++) half[i] = bf16_from_f32(-1.0f);
    ctx_upload(&gpu->ctx, memory[1], zero, N * 4);
    ctx_upload(&gpu->ctx, memory[2], zero, N * 4);
    ctx_upload(&gpu->ctx, memory[3], half, N * 2);
    ctx_upload(&gpu->ctx, memory[4], &one, 4);
    /* with beta1 = beta2 = 0, m / (sqrt(v) + eps) is -1 in every step, so that w grows by lr; the spacing
     * above 1 is 2^-7 */
    struct update_args args = {.lr = 1.0f / 512.0f,
                               .beta1 = 0.0f,
                               .beta2 = 0.0f,
                               .eps = 1e-8f,
                               .step = step,
                               .seed = 3,
                               .stochastic = true};
    for (int piece = 0; piece < pieces; piece++) {
        int64_t n = N / pieces, first = piece * n;
        struct tensor w = tensor_make("param", DTYPE_BF16, (char *)memory[0] + 2 * first, n, 0, 0, 0);
        struct tensor m = tensor_make("m", DTYPE_F32, (char *)memory[1] + 4 * first, n, 0, 0, 0);
        struct tensor v = tensor_make("v", DTYPE_F32, (char *)memory[2] + 4 * first, n, 0, 0, 0);
        struct tensor g = tensor_make("grad", DTYPE_BF16, (char *)memory[3] + 2 * first, n, 0, 0, 0);
        struct tensor sumsq_of_grad = tensor_make("sumsq", DTYPE_F32, memory[4], 1, 0, 0, 0);
        args.offset = offset + first;
        adamw(&gpu->ctx, &w, NULL, &m, &v, &g, &sumsq_of_grad, &args);
    }
    ctx_download(&gpu->ctx, out, memory[0], N * 2);
    for (int k = 0; k < 5; k++) d->free(d, memory[k]);
    free(half);
    free(zero);
}

/* A quarter of the parameters is rounded up. Which ones depends on their place in the whole buffer and on
 * the step, not on how calls or variants divide the buffer. */
static void test_stochastic_rounding(void **state) {
    struct gpu *gpu = (struct gpu *)*state;
    uint16_t *whole = (uint16_t *)xmalloc(N * sizeof *whole), *other = (uint16_t *)xmalloc(N * sizeof *other);
    int up = 0, both = 0;
    round_stochastically(gpu, whole, 1, 8, 1);
    for (int i = 0; i < N; i++) {
        assert_true(whole[i] == bf16_from_f32(1.0f) || whole[i] == bf16_from_f32(1.0f) + 1);
        up += whole[i] != bf16_from_f32(1.0f);
    }
    /* four standard deviations of N draws with probability 1/4 */
    if (!(fabs(up - N / 4.0) <= 4.0 * sqrt(N * 3.0 / 16.0)))
        fail_msg("%d of %d went up, not a quarter", up, N);
    round_stochastically(gpu, other, 2, 8, 1);
    assert_memory_equal(whole, other, N * sizeof *whole);
    round_stochastically(gpu, other, 1, 5, 1); /* where "vec", which takes four at a time, cannot start */
    assert_memory_equal(whole, other + 3, (N - 3) * sizeof *whole);
    round_stochastically(gpu, other, 1, 8, 2); /* independent in the next step: a sixteenth goes up in both */
    for (int i = 0; i < N; i++) both += whole[i] != bf16_from_f32(1.0f) && other[i] != bf16_from_f32(1.0f);
    if (!(fabs(both - N / 16.0) <= 4.0 * sqrt(N * 15.0 / 256.0)))
        fail_msg("%d of %d went up in both steps, not a sixteenth", both, N);
    free(whole);
    free(other);
}

/* --- recorded operations --- */

/* A sum over several blocks must start from 0 in every run of a graph, also if another context runs one in
 * between. The values are integers, so that the sums are exact. */
static void test_sumsq_recorded(void **state) {
    enum { RUNS = 3 };
    struct gpu *gpu = (struct gpu *)*state;
    int count = gpu->small ? 20001 : 1100001; /* the latter in more blocks than a block has threads */
    struct device *d = gpu->device;
    struct ctx other;
    ctx_init(&other, d, d->ops, false);
    float *host = (float *)xmalloc((size_t)count * sizeof *host), got[2];
    void *memory = d->alloc(d, (size_t)count * sizeof *host), *result = d->alloc(d, sizeof got);
    struct tensor inp = tensor_make("inp", DTYPE_F32, memory, count, 0, 0, 0);
    struct tensor out[2] = {tensor_make("out", DTYPE_F32, result, 1, 0, 0, 0),
                            tensor_make("out", DTYPE_F32, (char *)result + sizeof *got, 1, 0, 0, 0)};
    for (int i = 0; i < count; i++) host[i] = 1.0f;
    ctx_upload_f32(&gpu->ctx, &inp, host);
    sumsq(&gpu->ctx, &out[0], &inp); /* allocates the scratch, which a capture must not */
    sumsq(&other, &out[1], &inp);
    d->capture_begin(d, gpu->ctx.stream);
    sumsq(&gpu->ctx, &out[0], &inp);
    void *graph = d->capture_end(d, gpu->ctx.stream);
    for (int run = 1; run <= RUNS; run++) {
        for (int i = 0; i < count; i++) host[i] = (float)run;
        ctx_upload_f32(&gpu->ctx, &inp, host);
        fill(&gpu->ctx, &out[0], NAN);
        d->graph_launch(d, graph, gpu->ctx.stream);
        sumsq(&other, &out[1], &inp);
        ctx_download(&gpu->ctx, got, result, sizeof got);
        for (int i = 0; i < 2; i++)
            if (!(got[i] == (float)(run * run * count)))
                fail_msg("run %d: %.9g, not %d", run, (double)got[i], run * run * count);
    }
    d->graph_free(d, graph);
    d->free(d, memory);
    d->free(d, result);
    ctx_free(&other);
    free(host);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--rows") == 0) return print_rows();
#define X(op) cmocka_unit_test_setup_teardown(test_##op, open_gpu, close_gpu),
    const struct CMUnitTest tests[] = {
        LLMC_OPS(X) cmocka_unit_test_setup_teardown(test_stochastic_rounding, open_gpu, close_gpu),
        cmocka_unit_test_setup_teardown(test_sumsq_recorded, open_gpu, close_gpu)};
#undef X
    return test_main(argc, argv, tests, NULL, NULL);
}
