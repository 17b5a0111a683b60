/* CPU operations that have no float64 golden, against values computed here in double: both paths of a matrix
 * product, long sums, conversions, random numbers. */
#include "test/test.h"

#include "llmc/base/rng.h"
#include "test/ops/cpu_ctx.h"

#include <math.h>
#include <stdlib.h>

/* matmul_forward has one path for a few rows and one for many: both against sums in double. */
static void test_matmul_of_few_and_many_rows(void **state) {
    enum { N = 6, C = 37, OC = 5 };
    float inp[N * C], weight[OC * C], out[N * OC];
    for (int i = 0; i < N * C; i++) inp[i] = (float)(2.0 * rng_uniform(1, RNG_TEST, (uint64_t)i) - 1.0);
    for (int i = 0; i < OC * C; i++) weight[i] = (float)(2.0 * rng_uniform(2, RNG_TEST, (uint64_t)i) - 1.0);
    struct tensor w = tensor_make("weight", DTYPE_F32, weight, OC, C, 0, 0);
    for (int rows = 1; rows <= N; rows++) {
        struct tensor x = tensor_make("inp", DTYPE_F32, inp, rows, C, 0, 0);
        struct tensor y = tensor_make("out", DTYPE_F32, out, rows, OC, 0, 0);
        matmul_forward(ctx_of(state), &y, NULL, &x, &w, NULL, ACT_NONE);
        for (int i = 0; i < rows * OC; i++) {
            double sum = 0.0;
            for (int c = 0; c < C; c++) sum += (double)inp[i / OC * C + c] * (double)weight[i % OC * C + c];
            if (!(fabs((double)out[i] - sum) <= 1e-5)) fail_msg("%d rows: out[%d]", rows, i);
        }
    }
}

/* Long sums, in fp32, would drift or lose small terms; these are known in double. */
static void test_long_sums(void **state) {
    enum { N = 100003 };
    struct tensor x = tensor_make("inp", DTYPE_F32, xmalloc(N * sizeof(float)), N, 0, 0, 0);
    float result = 2.0f, half = 0.5f, lost = 0.0f;
    int32_t target = 0;
    double tenth = (double)0.1f, exponentials = 0.0;
    struct tensor out = tensor_make("out", DTYPE_F32, &result, 1, 0, 0, 0);
    struct tensor scale = tensor_make("scale", DTYPE_F32, &half, 1, 0, 0, 0);
    for (int i = 0; i < N; i++) f32(&x)[i] = 0.1f;
    sum(ctx_of(state), &out, &x, &scale, true);
    assert_true(fabs((double)result - (2.0 + 0.5 * N * tenth)) <= 1e-6 * (double)result);
    sumsq(ctx_of(state), &out, &x);
    assert_true(fabs((double)result - N * tenth * tenth) <= 1e-7 * (double)result);

    for (int i = 0; i < N; i++) {
        f32(&x)[i] = (float)(8.0 * rng_uniform(3, RNG_TEST, (uint64_t)i));
        exponentials += exp((double)f32(&x)[i]);
    }
    double want = log(exponentials) - (double)f32(&x)[0];
    struct tensor logits = tensor_make("logits", DTYPE_F32, x.data, 1, N, 0, 0);
    struct tensor losses = tensor_make("losses", DTYPE_F32, &lost, 1, 0, 0, 0);
    struct tensor targets = tensor_make("targets", DTYPE_I32, &target, 1, 0, 0, 0);
    loss_forward(ctx_of(state), &losses, &logits, &targets, NULL, N);
    print_message("# loss of %d logits is off by %.2g\n", N, (double)lost - want);
    assert_true(fabs((double)lost - want) <= 1e-6);
    free(x.data);
}

/* Every element, in both directions, also those after the last whole vector. */
static void test_cast(void **state) {
    enum { N = 37 };
    float wide[N], back[N];
    uint16_t narrow[N];
    struct tensor f = tensor_make("inp", DTYPE_F32, wide, N, 0, 0, 0);
    struct tensor b = tensor_make("out", DTYPE_BF16, narrow, N, 0, 0, 0);
    struct tensor g = tensor_make("back", DTYPE_F32, back, N, 0, 0, 0);
    for (int i = 0; i < N; i++) wide[i] = (float)i / 7.0f, narrow[i] = 0xffff, back[i] = NAN;
    cast(ctx_of(state), &b, &f);
    cast(ctx_of(state), &g, &b);
    for (int i = 0; i < N; i++) {
        assert_int_equal(narrow[i], bf16_from_f32(wide[i]));
        assert_true(back[i] == f32_from_bf16(narrow[i]));
    }
}

static void test_normal_numbers(void **state) {
    enum { N = 200000 };
    struct tensor t = tensor_make("out", DTYPE_F32, xmalloc(N * sizeof(float)), N, 0, 0, 0);
    randn(ctx_of(state), &t, 2.0f, 3.0f, 42, RNG_TEST);
    double moment[4] = {0};
    for (int64_t i = 0; i < N; i++) {
        double z = ((double)f32(&t)[i] - 2.0) / 3.0;
        for (int k = 0; k < 4; k++) moment[k] += pow(z, k + 1) / N;
    }
    /* four standard errors of each moment of N(0,1): sqrt(1, 2, 15, 96)/sqrt(N) */
    static const double expected[] = {0, 1, 0, 3}, variance[] = {1, 2, 15, 96};
    for (int k = 0; k < 4; k++)
        if (!(fabs(moment[k] - expected[k]) <= 4.0 * sqrt(variance[k] / N)))
            fail_msg("moment %d of %d normal numbers is %g", k + 1, N, moment[k]);
    /* Box-Muller on two numbers of Philox block i/4 */
    for (int64_t i = 0; i < 1000; i++) {
        struct rng4 bits = rng_philox(42, RNG_TEST, (uint64_t)i / 4);
        double u = (double)rng_unit_float(bits.v[i % 4 / 2 * 2]),
               v = (double)rng_unit_float(bits.v[i % 4 / 2 * 2 + 1]);
        double radius = sqrt(-2.0 * log(1.0 - u)), angle = 6.283185307179586 * v;
        double want = 2.0 + 3.0 * radius * (i % 2 ? sin(angle) : cos(angle));
        if (!(fabs((double)f32(&t)[i] - want) <= 2e-5)) fail_msg("number %d is not %g", (int)i, want);
    }
    /* element i depends on i alone */
    struct tensor part = tensor_make("out", DTYPE_F32, xmalloc(1001 * sizeof(float)), 1001, 0, 0, 0);
    randn(ctx_of(state), &part, 2.0f, 3.0f, 42, RNG_TEST);
    assert_memory_equal(part.data, t.data, 1001 * sizeof(float));
    randn(ctx_of(state), &part, 2.0f, 3.0f, 43, RNG_TEST);
    assert_memory_not_equal(part.data, t.data, 1001 * sizeof(float));
    free(part.data);
    free(t.data);
}

int main(int argc, char **argv) {
#define CPU_TEST(f) cmocka_unit_test_setup_teardown(f, open_cpu, close_cpu)
    const struct CMUnitTest tests[] = {CPU_TEST(test_matmul_of_few_and_many_rows), CPU_TEST(test_long_sums),
                                       CPU_TEST(test_cast), CPU_TEST(test_normal_numbers)};
    return test_main(argc, argv, tests, NULL, NULL);
}
