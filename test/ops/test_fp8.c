/* fp8: the conversions of llmc/ops/fp8.h against the tables of the OCP specification and against searches
 * through all codes; what a product in fp8 rounds; who may ask for fp8, and where a model uses it. */
#include "test/test.h"

#include "llmc/ops/fp8.h"
#include "llmc/base/rng.h"
#include "llmc/run/config.h"
#include "test/ops/cpu_ctx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Tables 1 and 2 of the specification: infinity, NaN, the largest and the smallest normal number, the
 * largest and the smallest subnormal. */
static void test_the_specification(void **state) {
    assert_true(fp8_value(FP8_E4M3, 0x7e) == 448.0f && fp8_value(FP8_E4M3, 0x08) == 0x1p-6f);
    assert_true(fp8_value(FP8_E4M3, 0x07) == 0.875f * 0x1p-6f && fp8_value(FP8_E4M3, 0x01) == 0x1p-9f);
    assert_true(isnan(fp8_value(FP8_E4M3, 0x7f)) && isnan(fp8_value(FP8_E4M3, 0xff)));
    assert_true(fp8_value(FP8_E5M2, 0x7b) == 57344.0f && fp8_value(FP8_E5M2, 0x04) == 0x1p-14f);
    assert_true(fp8_value(FP8_E5M2, 0x03) == 0.75f * 0x1p-14f && fp8_value(FP8_E5M2, 0x01) == 0x1p-16f);
    assert_true(fp8_value(FP8_E5M2, 0x7c) == INFINITY && fp8_value(FP8_E5M2, 0xfc) == -INFINITY);
    for (int code = 0x7d; code <= 0x7f; code++) assert_true(isnan(fp8_value(FP8_E5M2, (uint8_t)code)));
    assert_true(fp8_value(FP8_E4M3, 0x38) == 1.0f && fp8_value(FP8_E5M2, 0xbc) == -1.0f);
}

/* Every finite number rounds to itself. A number between two neighbours rounds to the nearer one, and
 * halfway to the one with the even code. */
static void test_rounding(void **state) {
    for (int f = FP8_E4M3; f <= FP8_E5M2; f++) {
        enum fp8_format format = (enum fp8_format)f;
        int last = format == FP8_E4M3 ? 0x7e : 0x7b;
        for (int code = 0; code <= last; code++) {
            float v = fp8_value(format, (uint8_t)code);
            assert_true(fp8_round(format, v) == v && fp8_round(format, -v) == -v);
            if (code == last) break;
            float next = fp8_value(format, (uint8_t)(code + 1)), middle = 0.5f * (v + next);
            assert_true(next > v);
            assert_true(fp8_round(format, middle) == (code % 2 ? next : v));
            assert_true(fp8_round(format, nextafterf(middle, 0.0f)) == v);
            assert_true(fp8_round(format, nextafterf(middle, next)) == next);
            assert_true(fp8_round(format, -nextafterf(middle, next)) == -next);
        }
        float largest = fp8_largest(format);
        assert_true(fp8_value(format, (uint8_t)last) == largest);
        for (float x = largest; x < 1e38f; x *= 1.01f) assert_true(fp8_round(format, -x) == -largest);
        assert_true(fp8_round(format, INFINITY) == largest && isnan(fp8_round(format, NAN)));
        assert_true(fp8_round(format, 1e-30f) == 0.0f && fp8_round(format, 0.0f) == 0.0f);
    }
}

/* The scale is the largest power of two that fits, for magnitudes of every size. */
static void test_scale(void **state) {
    for (int f = FP8_E4M3; f <= FP8_E5M2; f++) {
        enum fp8_format format = (enum fp8_format)f;
        double largest = (double)fp8_largest(format);
        for (int i = 0; i < 20000; i++) {
            double u = rng_uniform(1, RNG_TEST, (uint64_t)i);
            float amax = ldexpf((float)(1.0 + u), i % 220 - 110), scale = fp8_scale(format, amax);
            int exponent;
            assert_true(frexpf(scale, &exponent) == 0.5f);
            assert_true((double)amax * (double)scale <= largest &&
                        2.0 * (double)amax * (double)scale > largest);
            double error = fabs((double)fp8_through(format, amax, scale) - (double)amax);
            assert_true(error <= (format == FP8_E4M3 ? 0x1p-4 : 0x1p-3) * (double)amax);
        }
        assert_true(fp8_scale(format, (float)largest) == 1.0f);
        assert_true(fp8_scale(format, nextafterf((float)largest, INFINITY)) == 0.5f);
        assert_true(fp8_scale(format, 0.0f) == 1.0f);
        assert_true(fp8_scale(format, 0x1p-149f) == 0x1p126f && isfinite(fp8_scale(format, 3e38f)));
        assert_true(isnan(fp8_scale(format, INFINITY)) && isnan(fp8_scale(format, NAN)));
        /* small integers are exact with every scale */
        for (int amax = 1; amax <= (format == FP8_E4M3 ? 16 : 8); amax++)
            for (int i = -amax; i <= amax; i++)
                assert_true(fp8_through(format, (float)i, fp8_scale(format, (float)amax)) == (float)i);
    }
}

/* --- products --- */

enum { N = 16, C = 32, OC = 48 };

/* The largest element is the last; a scale that misses it differs. */
static struct tensor random_matrix(uint64_t stream, int64_t rows, int64_t cols) {
    struct tensor t = tensor_make("matrix", DTYPE_F32, xmalloc((size_t)(rows * cols) * 4), rows, cols, 0, 0);
    for (int64_t i = 0; i < rows * cols; i++)
        f32(&t)[i] = (float)(2.0 * rng_uniform(stream, RNG_TEST, (uint64_t)i) - 1.0);
    f32(&t)[rows * cols - 1] = 3.0f;
    return t;
}

static struct tensor rounded(enum fp8_format format, const struct tensor *t) {
    struct tensor copy = *t;
    copy.data = xmalloc((size_t)tensor_bytes(t));
    for (int64_t i = 0; i < tensor_count(t); i++)
        f32(&copy)[i] = fp8_through(format, f32(t)[i], fp8_scale(format, 3.0f));
    return copy;
}

static void assert_equal(const struct tensor *a, const struct tensor *b) {
    assert_memory_equal(a->data, b->data, (size_t)tensor_bytes(a));
}

/* A product in fp8 is the product of rounded operands: activations and weights in e4m3, gradients in e5m2.
 * Bias gradients are sums of unrounded gradients. */
static void test_products(void **state) {
    struct ctx *ctx = ctx_of(state);
    struct tensor inp = random_matrix(1, N, C), weight = random_matrix(2, OC, C),
                  dout = random_matrix(3, N, OC);
    struct tensor inp8 = rounded(FP8_E4M3, &inp), weight8 = rounded(FP8_E4M3, &weight),
                  dout8 = rounded(FP8_E5M2, &dout);
    struct tensor out[2], dinp[2], dweight[2], dbias[2], unused = random_matrix(8, OC, C);
    for (int k = 0; k < 2; k++) {
        out[k] = random_matrix(4, N, OC);
        dinp[k] = random_matrix(5, N, C);
        dweight[k] = random_matrix(6, OC, C);
        dbias[k] = tensor_make("dbias", DTYPE_F32, xcalloc(OC, sizeof(float)), OC, 0, 0, 0);
    }
    weight.fp8 = true;
    matmul_forward(ctx, &out[0], NULL, &inp, &weight, NULL, ACT_NONE);
    matmul_backward(ctx, &dinp[0], &dweight[0], &dbias[0], &dout, &inp, &weight, NULL, true);
    matmul_forward(ctx, &out[1], NULL, &inp8, &weight8, NULL, ACT_NONE);
    matmul_backward(ctx, &dinp[1], &dweight[1], NULL, &dout8, &inp8, &weight8, NULL, true);
    weight.fp8 = false;
    matmul_backward(ctx, NULL, &unused, &dbias[1], &dout, &inp, &weight, NULL, true);
    assert_equal(&out[0], &out[1]);
    assert_equal(&dinp[0], &dinp[1]);
    assert_equal(&dweight[0], &dweight[1]);
    assert_equal(&dbias[0], &dbias[1]);
    const struct tensor *const all[] = {&inp,     &weight,     &dout,       &inp8,     &weight8,
                                        &dout8,   &unused,     &out[0],     &out[1],   &dinp[0],
                                        &dinp[1], &dweight[0], &dweight[1], &dbias[0], &dbias[1]};
    for (size_t i = 0; i < ARRAY_LENGTH(all); i++) free(all[i]->data);
}

/* --- who may ask for it --- */

struct request {
    enum dtype of_device;
    int arch;
    enum dtype_choice dtype;
    int64_t channels, tokens;
};

/* What run_gpt_options() and gpt_create() make of --matmul fp8: in a child, whose last words are returned. */
static const char *answer(const struct request *r, char *text, size_t size) {
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        struct device device = {.dtype = r->of_device, .arch = r->arch, .name = "that GPU"};
        struct run_config config = {
            .matmul = MATMUL_CHOICE_FP8, .dtype = r->dtype, .batch_size = 1, .seq_len = r->tokens};
        struct gpt_config model = GPT2_CONFIG("model", 64, 300, 1, 1, r->channels);
        struct ctx ctx;
        struct gpt gpt;
        struct gpt_options options = run_gpt_options(&config, &device);
        options.dtype = DTYPE_F32; /* the CPU's variants stand in for the GPU's */
        ctx_init(&ctx, &device, cpu_ops(), true);
        gpt_create(&gpt, &ctx, &model, &options);
        /* marked: the blocks' matrices; not the weight of the lm_head, vectors or gradients */
        bool marked = options.fp8 && gpt_param(&gpt, P_QKV_W, 0).fp8 && gpt_param(&gpt, P_PROJ_W, 0).fp8 &&
                      gpt_param(&gpt, P_FC_W, 0).fp8 && gpt_param(&gpt, P_FCPROJ_W, 0).fp8;
        bool others = gpt_param(&gpt, P_WTE, 0).fp8 || gpt_param(&gpt, P_WPE, 0).fp8 ||
                      gpt_param(&gpt, P_QKV_B, 0).fp8 || gpt_grad(&gpt, P_QKV_W, 0).fp8;
        dprintf(STDERR_FILENO, marked && !others ? "fine" : "wrong marks");
        _exit(0);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t n; used + 1 < size && (n = read(ends[0], text + used, size - 1 - used)) > 0;)
        used += (size_t)n;
    text[used] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && (WEXITSTATUS(status) != 0) == (strncmp(text, "error: ", 7) == 0));
    return text;
}

/* An output that is marked is the rounded unmarked one, with the scale that ops.h says. A bound of the norms'
 * outputs is sqrt(C) |weight| + |bias| in the channel where that is largest. */
static void test_marked_outputs(void **state) {
    struct ctx *ctx = ctx_of(state);
    struct tensor inp = random_matrix(1, N, 2 * C), weight = random_matrix(2, OC, C),
                  sum = random_matrix(4, N, C);
    struct tensor x = random_matrix(1, N, C), w = random_matrix(5, 1, C), b = random_matrix(6, 1, C), out[2],
                  pre = random_matrix(7, N, OC),
                  rstd = tensor_make("rstd", DTYPE_F32, xcalloc(N, 4), N, 0, 0, 0);
    f32(&w)[C - 1] = -0.5f, f32(&w)[3] = 5.0f, f32(&b)[C - 1] = 30.0f, f32(&b)[3] = -40.0f;
    weight.fp8 = true;
    for (int op = 0; op < 5; op++) {
        for (int marked = 0; marked < 2; marked++) {
            out[marked] = random_matrix(3, N, op == 4 ? OC : C);
            out[marked].fp8 = marked;
            if (op == 0) norm_forward(ctx, &out[marked], NULL, &rstd, &x, &w, &b, 1e-5f);
            if (op == 1) residual_norm_forward(ctx, &sum, &out[marked], NULL, &rstd, &x, &x, &w, &b, 1e-5f);
            if (op == 2) act_forward(ctx, &out[marked], &x, ACT_GELU);
            if (op == 3) glu_forward(ctx, &out[marked], &inp, ACT_SILU);
            if (op == 4) matmul_forward(ctx, &out[marked], &pre, &x, &weight, NULL, ACT_GELU);
        }
        float bound = 0.0f;
        for (int64_t i = 0; op > 1 && i < tensor_count(&out[0]); i++)
            bound = fmaxf(bound, fabsf(f32(&out[0])[i]));
        float scale = fp8_scale(FP8_E4M3, op > 1 ? bound : sqrtf((float)C) * 5.0f + 40.0f);
        for (int64_t i = 0; i < tensor_count(&out[0]); i++)
            assert_true(f32(&out[1])[i] == fp8_through(FP8_E4M3, f32(&out[0])[i], scale));
        for (int k = 0; k < 2; k++) free(out[k].data);
    }
    struct tensor *all[] = {&inp, &weight, &sum, &x, &w, &b, &pre, &rstd};
    for (size_t i = 0; i < ARRAY_LENGTH(all); i++) free(all[i]->data);
}

/* The gradient of GELU's input is rounded with the scale of 1.5 times the largest |dout| times the largest sum
 * of a column of |weight|, rounded: here that of the last column, 3 + 47 * 0.5. */
static void test_marked_gradient(void **state) {
    struct ctx *ctx = ctx_of(state);
    struct tensor inp = random_matrix(1, N, C), weight = random_matrix(2, OC, C),
                  dout = random_matrix(3, N, OC);
    struct tensor pre = random_matrix(4, N, C), dinp[2];
    for (int o = 0; o < OC - 1; o++)
        for (int c = 0; c < C; c++) f32(&weight)[o * C + c] *= c == C - 1 ? 0.0f : 0.4f;
    for (int o = 0; o < OC - 1; o++) f32(&weight)[o * C + C - 1] = o % 2 ? 0.5f : -0.5f;
    weight.fp8 = true;
    for (int marked = 0; marked < 2; marked++) {
        dinp[marked] = random_matrix(5, N, C);
        dinp[marked].fp8 = marked;
        matmul_backward(ctx, &dinp[marked], NULL, NULL, &dout, &inp, &weight, &pre, false);
    }
    float scale = fp8_scale(FP8_E5M2, 1.5f * 3.0f * (3.0f + 0.5f * (OC - 1)));
    for (int64_t i = 0; i < N * C; i++)
        assert_true(f32(&dinp[1])[i] == fp8_through(FP8_E5M2, f32(&dinp[0])[i], scale));
    struct tensor *all[] = {&inp, &weight, &dout, &pre, &dinp[0], &dinp[1]};
    for (size_t i = 0; i < ARRAY_LENGTH(all); i++) free(all[i]->data);
}

static void test_who_may_ask(void **state) {
    static const struct {
        struct request request;
        const char *answer;
    } cases[] = {
        {{DTYPE_BF16, 90, DTYPE_CHOICE_AUTO, 32, 32}, "fine"},
        {{DTYPE_BF16, 89, DTYPE_CHOICE_BF16, 32, 48}, "fine"},
        {{DTYPE_F32, 0, DTYPE_CHOICE_AUTO, 32, 32}, "fine"},
        {{DTYPE_BF16, 86, DTYPE_CHOICE_AUTO, 32, 32}, "that GPU has compute capability 8.6"},
        {{DTYPE_BF16, 90, DTYPE_CHOICE_FP32, 32, 32}, "use --dtype bf16"},
        {{DTYPE_BF16, 90, DTYPE_CHOICE_AUTO, 40, 32}, "the channels (40) and"},
        {{DTYPE_BF16, 90, DTYPE_CHOICE_AUTO, 32, 40}, "(40 tokens) must be multiples of 16"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        char text[1024];
        if (!strstr(answer(&cases[i].request, text, sizeof text), cases[i].answer))
            fail_msg("case %zu: '%s' does not say '%s'", i, text, cases[i].answer);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_specification),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_scale),
        cmocka_unit_test_setup_teardown(test_products, open_cpu, close_cpu),
        cmocka_unit_test_setup_teardown(test_marked_outputs, open_cpu, close_cpu),
        cmocka_unit_test_setup_teardown(test_marked_gradient, open_cpu, close_cpu),
        cmocka_unit_test(test_who_may_ask)};
    return test_main(argc, argv, tests, NULL, NULL);
}
