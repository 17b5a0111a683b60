/* norm_forward, residual_norm_forward, norm_backward. Shapes: {N, C}. */
#include "test/ops/op_harness.h"

#include <stdlib.h>

enum {
    OFFSET = OP_FLAG(0),
    IN_PLACE = OP_FLAG(1),
    NO_RESIDUAL = OP_FLAG(2),
    OVER_DOUT = OP_FLAG(3),
    RMS = OP_FLAG(4),     /* RMSNorm: no mean */
    NO_BIAS = OP_FLAG(5), /* and no dbias */
    LARGE_EPS = OP_FLAG(6),
    NO_WEIGHT = OP_FLAG(7), /* and no dweight and dbias */
    FROZEN = OP_FLAG(8)     /* a weight, but no dweight and dbias */
};

static float eps_of(const struct op_case *c) { return c->flags & LARGE_EPS ? 0.5f : 1e-5f; }

/* OFFSET: rows with a mean far above their deviation, where a one-pass variance has no correct digit. */
static void fill_rows(struct op_instance *x, struct operand *o) {
    if (x->c->flags & OFFSET)
        op_fill_normal(x, o, 1000.0, 1.0);
    else
        op_fill(x, o, x->c->input == INPUT_LARGE ? 1e4 : 1.0);
}

static void add_weights(struct op_instance *x) {
    if (!(x->c->flags & NO_WEIGHT))
        op_fill_normal(x, op_add(x, ROLE_IN, x->dtype, "weight", x->c->d[1], 0, 0), 1.0, 0.5);
    if (!(x->c->flags & NO_BIAS))
        op_fill_normal(x, op_add(x, ROLE_IN, x->dtype, "bias", x->c->d[1], 0, 0), 0.0, 0.5);
}

static void add_results(struct op_instance *x) {
    op_add_fp8(x, ROLE_OUT, DTYPE_E4M3, "out", "out.descale", x->c->d[0], x->c->d[1]);
    if (!(x->c->flags & RMS)) op_add(x, ROLE_OUT, DTYPE_F32, "mean", x->c->d[0], 0, 0);
    op_add(x, ROLE_OUT, DTYPE_F32, "rstd", x->c->d[0], 0, 0);
}

/* The sizes of the weights, or 1 (C). The caller frees. */
static double *weight_sizes(struct op_instance *x) {
    int64_t C = x->c->d[1];
    double *w = (double *)xmalloc((size_t)C * sizeof *w);
    const float *weight = op_find(x, "weight") ? op_initial(x, "weight") : NULL;
    for (int64_t c = 0; c < C; c++) w[c] = weight ? fabs((double)weight[c]) : 1.0;
    return w;
}

/* With e the error of a sum of C terms and A = mean |x|: the mean and a deviation are off by e A, the
 * variance by e of itself and by (e A)^2, because the first-order effect of a shifted mean cancels. In
 * RMSNorm the mean is exactly 0. */
static void rows_bound(struct op_instance *x, const float *rows) {
    int64_t N = x->c->d[0], C = x->c->d[1];
    bool centred = op_find(x, "mean"), biased = op_find(x, "bias");
    const float *bias = biased ? op_initial(x, "bias") : NULL;
    const float *mean = centred ? op_expected(x, "mean") : NULL, *rstd = op_expected(x, "rstd");
    double *out = op_allowed(x, "out"), e = op_sum_error((double)C), *weight = weight_sizes(x);
    for (int64_t n = 0; n < N; n++) {
        double average = 0.0, m = centred ? (double)mean[n] : 0.0, r = (double)rstd[n];
        for (int64_t c = 0; c < C; c++) average += fabs((double)rows[n * C + c]) / (double)C;
        double shift = centred ? e * average : 0.0, relative = e + (shift * r) * (shift * r);
        if (centred) op_allowed(x, "mean")[n] += shift;
        op_allowed(x, "rstd")[n] += r * relative;
        for (int64_t c = 0; c < C; c++) {
            double deviation = fabs((double)rows[n * C + c] - m);
            out[n * C + c] += weight[c] * r * (shift + deviation * (relative + 4.0 * UNIT_F32)) +
                              (biased ? 2.0 * UNIT_F32 * fabs((double)bias[c]) : 0.0);
        }
    }
    double most = 0.0; /* |xhat| is at most sqrt(C) */
    for (int64_t c = 0; c < C; c++)
        most = fmax(most, sqrt((double)C) * weight[c] + (biased ? fabs((double)bias[c]) : 0.0));
    op_allow_fp8(x, "out", most);
    free(weight);
}

#define NORM_CASES                                                                                           \
    {"odd", INPUT_RANDOM, {5, 13}, 0, SIZE_SMALL}, {"vectors", INPUT_RANDOM, {9, 64}, 0, SIZE_SMALL},        \
        {"gpt2 row", INPUT_RANDOM, {3, 768}, 0, SIZE_SMALL},                                                 \
        {"long row", INPUT_RANDOM, {2, 2056}, 0, SIZE_SMALL}, {"one", INPUT_RANDOM, {1, 1}, 0, SIZE_SMALL},  \
        {"column", INPUT_RANDOM, {6, 1}, 0, SIZE_SMALL},                                                     \
        {"many rows", INPUT_RANDOM, {131, 40}, 0, SIZE_SMALL},                                               \
        {"offset", INPUT_RANDOM, {4, 96}, OFFSET, SIZE_SMALL},                                               \
        {"large", INPUT_LARGE, {4, 40}, 0, SIZE_SMALL}, {"tiny", INPUT_TINY, {4, 40}, 0, SIZE_SMALL},        \
        {"flat rows", INPUT_FLAT, {4, 40}, 0, SIZE_SMALL},                                                   \
        {"equal rows", INPUT_EQUAL, {4, 40}, 0, SIZE_SMALL},                                                 \
        {"one-hot rows", INPUT_ONE_HOT, {4, 40}, 0, SIZE_SMALL},                                             \
        {"eps", INPUT_RANDOM, {4, 40}, LARGE_EPS, SIZE_SMALL},                                               \
        {"no bias", INPUT_RANDOM, {5, 13}, NO_BIAS, SIZE_SMALL},                                             \
        {"no bias, vectors", INPUT_RANDOM, {9, 64}, NO_BIAS, SIZE_SMALL},                                    \
        {"rms", INPUT_RANDOM, {5, 13}, RMS | NO_BIAS, SIZE_SMALL},                                           \
        {"rms, vectors", INPUT_RANDOM, {9, 64}, RMS | NO_BIAS, SIZE_SMALL},                                  \
        {"rms, bias", INPUT_RANDOM, {3, 72}, RMS | LARGE_EPS, SIZE_SMALL},                                   \
        {"rms, long row", INPUT_RANDOM, {2, 2056}, RMS | NO_BIAS, SIZE_SMALL},                               \
        {"rms, offset", INPUT_RANDOM, {4, 96}, RMS | NO_BIAS | OFFSET, SIZE_SMALL},                          \
        {"rms, large", INPUT_LARGE, {4, 40}, RMS | NO_BIAS, SIZE_SMALL},                                     \
        {"rms, tiny", INPUT_TINY, {4, 40}, RMS | NO_BIAS, SIZE_SMALL},                                       \
        {"rms, flat rows", INPUT_FLAT, {4, 40}, RMS | NO_BIAS, SIZE_SMALL},                                  \
        {"no weight", INPUT_RANDOM, {5, 13}, RMS | NO_WEIGHT | NO_BIAS, SIZE_SMALL},                         \
        {"no weight, vectors", INPUT_RANDOM, {9, 64}, RMS | NO_WEIGHT | NO_BIAS, SIZE_SMALL},                \
        {"no weight, long row", INPUT_RANDOM, {2, 2056}, NO_WEIGHT | NO_BIAS, SIZE_SMALL},                   \
        {"unaligned", INPUT_RANDOM, {4, 40}, UNALIGNED, SIZE_SMALL}, {                                       \
        "gpt2", INPUT_RANDOM, {4096, 768}, 0, SIZE_LARGE                                                     \
    }

#define NORM_FP8_CASES                                                                                       \
    {"fp8", INPUT_RANDOM, {9, 64}, OP_FP8, SIZE_SMALL},                                                      \
        {"fp8, gpt2-xl row", INPUT_RANDOM, {3, 1600}, OP_FP8, SIZE_SMALL},                                   \
        {"fp8, long row", INPUT_RANDOM, {2, 2064}, OP_FP8, SIZE_SMALL},                                      \
        {"fp8, offset", INPUT_RANDOM, {4, 96}, OP_FP8 | OFFSET, SIZE_SMALL},                                 \
        {"fp8, no weight", INPUT_RANDOM, {5, 80}, OP_FP8 | RMS | NO_BIAS | NO_WEIGHT, SIZE_SMALL},           \
        {"fp8, one-hot rows", INPUT_ONE_HOT, {5, 48}, OP_FP8, SIZE_SMALL}, /* reaches the bound */           \
    {                                                                                                        \
        "fp8, rms", INPUT_RANDOM, {5, 80}, OP_FP8 | RMS | NO_BIAS, SIZE_SMALL                                \
    }

static int norm_forward_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B * m->T, m->C}, 0, SIZE_LARGE};
    out[1] = (struct op_case){"model, fp8", INPUT_RANDOM, {m->B * m->T, m->C}, OP_FP8, SIZE_LARGE};
    return 2;
}
static int norm_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B * m->T, m->C}, 0, SIZE_LARGE};
    return 1;
}

/* --- norm_forward --- */

static void norm_forward_make(struct op_instance *x) {
    fill_rows(x, op_add(x, ROLE_IN, x->dtype, "inp", x->c->d[0], x->c->d[1], 0));
    add_weights(x);
    add_results(x);
}

static void norm_forward_bound(struct op_instance *x) { rows_bound(x, op_initial(x, "inp")); }

static const struct op_case norm_forward_cases[] = {NORM_CASES, NORM_FP8_CASES};
OP_TEST(norm_forward, (.bound = norm_forward_bound, .model_cases = norm_forward_model_cases), A("out"),
        A("mean"), A("rstd"), A("inp"), A("weight"), A("bias"), eps_of(x->c));

/* --- residual_norm_forward --- */

static void residual_norm_forward_make(struct op_instance *x) {
    fill_rows(x, op_add(x, ROLE_IN, x->dtype, "inp", x->c->d[0], x->c->d[1], 0));
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "delta", x->c->d[0], x->c->d[1], 0), 0.5);
    add_weights(x);
    op_add(x, ROLE_OUT, x->dtype, "residual", x->c->d[0], x->c->d[1], 0)->exact = true;
    if (x->c->flags & IN_PLACE) op_alias(x, "residual", "inp");
    add_results(x);
}

/* The norm is that of the stored, rounded residual. */
static void residual_norm_forward_reference(struct ctx *cpu, struct op_instance *x) {
    residual_norm_forward(cpu, A("residual"), A("out"), A("mean"), A("rstd"), A("inp"), A("delta"),
                          A("weight"), A("bias"), eps_of(x->c));
    op_round(op_find(x, "residual"), f32(A("residual")));
    norm_forward(cpu, A("out"), A("mean"), A("rstd"), A("residual"), A("weight"), A("bias"), eps_of(x->c));
}

static void residual_norm_forward_bound(struct op_instance *x) { rows_bound(x, op_expected(x, "residual")); }

static const struct op_case residual_norm_forward_cases[] = {
    NORM_CASES,
    NORM_FP8_CASES,
    {"in place", INPUT_RANDOM, {5, 13}, IN_PLACE, SIZE_SMALL},
    {"in place, vectors", INPUT_RANDOM, {3, 768}, IN_PLACE, SIZE_SMALL},
};
OP_TEST(residual_norm_forward,
        (.bound = residual_norm_forward_bound, .model_cases = norm_forward_model_cases,
         .reference = residual_norm_forward_reference),
        A("residual"), A("out"), A("mean"), A("rstd"), A("inp"), A("delta"), A("weight"), A("bias"),
        eps_of(x->c));

/* --- norm_backward --- */

static void norm_backward_make(struct op_instance *x) {
    int64_t N = x->c->d[0], C = x->c->d[1];
    struct operand *inp = op_add(x, ROLE_IN, x->dtype, "inp", N, C, 0);
    fill_rows(x, inp);
    struct operand *mean = x->c->flags & RMS ? NULL : op_add(x, ROLE_IN, DTYPE_F32, "mean", N, 0, 0);
    struct operand *rstd = op_add(x, ROLE_IN, DTYPE_F32, "rstd", N, 0, 0);
    for (int64_t n = 0; n < N; n++) {
        double m = 0.0, v = 0.0;
        for (int64_t c = 0; mean && c < C; c++) m += (double)inp->initial[n * C + c] / (double)C;
        for (int64_t c = 0; c < C; c++) v += pow((double)inp->initial[n * C + c] - m, 2.0) / (double)C;
        if (mean) mean->initial[n] = (float)m;
        rstd->initial[n] = (float)(1.0 / sqrt(v + (double)eps_of(x->c)));
    }
    if (!(x->c->flags & NO_WEIGHT))
        op_fill_normal(x, op_add(x, ROLE_IN, x->dtype, "weight", C, 0, 0), 1.0, 0.5);
    struct operand *dout = op_add(x, ROLE_IN, x->dtype, "dout", N, C, 0);
    if (x->c->input != INPUT_TINY) op_fill_normal(x, dout, 0.0, 1.0);
    if (!(x->c->flags & NO_RESIDUAL)) op_add(x, ROLE_IN, x->dtype, "dresidual", N, C, 0);
    op_add(x, ROLE_OUT, x->dtype, "dinp", N, C, 0);
    if (x->c->flags & IN_PLACE) op_alias(x, "dinp", "dresidual");
    if (x->c->flags & OVER_DOUT) op_alias(x, "dinp", "dout");
    if (x->c->flags & (NO_WEIGHT | FROZEN)) return;
    op_add(x, ROLE_ADD, x->dtype, "dweight", C, 0, 0);
    if (!(x->c->flags & NO_BIAS)) op_add(x, ROLE_ADD, x->dtype, "dbias", C, 0, 0);
}

static void norm_backward_bound(struct op_instance *x) {
    int64_t N = x->c->d[0], C = x->c->d[1];
    const float *mean = op_find(x, "mean") ? op_initial(x, "mean") : NULL;
    const float *inp = op_initial(x, "inp"), *rstd = op_initial(x, "rstd");
    const float *dout = op_initial(x, "dout");
    const float *past = op_find(x, "dresidual") ? op_initial(x, "dresidual") : NULL;
    double *dinp = op_allowed(x, "dinp"), *weight = weight_sizes(x);
    double *dweight = op_find(x, "dweight") ? op_allowed(x, "dweight") : NULL;
    double *dbias = op_find(x, "dbias") ? op_allowed(x, "dbias") : NULL;
    double row = op_sum_error((double)C), column = op_sum_error((double)N);
    for (int64_t c = 0; c < C; c++) {
        if (dweight) dweight[c] += column * fabs((double)op_initial(x, "dweight")[c]);
        if (dbias) dbias[c] += column * fabs((double)op_initial(x, "dbias")[c]);
    }
    for (int64_t n = 0; n < N; n++) {
        double sum_g = 0.0, sum_gx = 0.0, m = mean ? (double)mean[n] : 0.0, r = (double)rstd[n];
        for (int64_t c = 0; c < C; c++) {
            int64_t i = n * C + c;
            double xhat = fabs((double)inp[i] - m) * r, d = fabs((double)dout[i]), g = d * weight[c];
            sum_g += mean ? g / (double)C : 0.0;
            sum_gx += g * xhat / (double)C;
            if (dweight) dweight[c] += column * d * xhat;
            if (dbias) dbias[c] += column * d;
        }
        for (int64_t c = 0; c < C; c++) {
            int64_t i = n * C + c;
            double xhat = fabs((double)inp[i] - m) * r, g = fabs((double)dout[i]) * weight[c];
            dinp[i] +=
                row * r * (g + sum_g + xhat * sum_gx) + (past ? 2.0 * UNIT_F32 * fabs((double)past[i]) : 0.0);
        }
    }
    free(weight);
}

static const struct op_case norm_backward_cases[] = {
    NORM_CASES,
    {"no residual", INPUT_RANDOM, {5, 13}, NO_RESIDUAL, SIZE_SMALL},
    {"no residual, vectors", INPUT_RANDOM, {3, 768}, NO_RESIDUAL, SIZE_SMALL},
    {"more rows than blocks", INPUT_RANDOM, {2385, 264}, 0, SIZE_MEDIUM}, /* 792 of them take 3 each */
    {"frozen", INPUT_RANDOM, {5, 13}, FROZEN, SIZE_SMALL},
    {"frozen, vectors", INPUT_RANDOM, {9, 64}, FROZEN | RMS, SIZE_SMALL},
    {"over dresidual", INPUT_RANDOM, {7, 72}, IN_PLACE, SIZE_SMALL},
    {"over dout", INPUT_RANDOM, {7, 72}, OVER_DOUT, SIZE_SMALL},
    {"over dout, no residual", INPUT_RANDOM, {5, 13}, OVER_DOUT | NO_RESIDUAL, SIZE_SMALL},
};
OP_TEST(norm_backward, (.bound = norm_backward_bound, .model_cases = norm_model_cases), A("dinp"),
        A("dweight"), A("dbias"), A("dresidual"), A("dout"), A("inp"), A("mean"), A("rstd"), A("weight"));
