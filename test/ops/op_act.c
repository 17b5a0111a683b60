/* act_forward, act_backward, glu_forward, glu_backward, dropout. Shapes: {N, C}, for glu {N, F}, for dropout
 * {B, T, C}. A case without a
 * flag has GELU. */
#include "test/ops/op_harness.h"

#include <float.h>

enum { IN_PLACE = OP_FLAG(0), SILU = OP_FLAG(1), RELU2 = OP_FLAG(2) };

static enum activation activation_of(const struct op_case *c) {
    return c->flags & SILU ? ACT_SILU : c->flags & RELU2 ? ACT_RELU2 : ACT_GELU;
}

/* Fills columns [0, cols) of rows of `width` columns. INPUT_EQUAL runs from the tails, where 1+tanh
 * cancels, x^3 overflows and e^x is no normal number, through the bend around 0. For max(x,0)^2, squares
 * stay finite, and random numbers stay away from the kink in its slope, across which finite differences are
 * wrong. */
static void fill_curve(struct op_instance *x, struct operand *o, int64_t cols, int64_t width) {
    static const float far[] = {0.0f,  -0.0f,  1e-30f, -1e-30f, 20.0f, -20.0f, 86.9f, -86.9f,
                                87.4f, -87.4f, 89.0f,  -89.0f,  1e4f,  -1e4f,  1e13f, -1e13f,
                                1e18f, -1e18f, 1e20f,  -1e20f,  1e30f, -1e30f};
    int64_t rows = o->count / width, count = rows * cols, first = ARRAY_LENGTH(far);
    int64_t usable = x->c->flags & RELU2 ? first - 4 : first;
    op_fill(x, o, x->c->input == INPUT_LARGE ? 50.0 : 2.0);
    if (x->c->input == INPUT_EQUAL)
        for (int64_t i = 0; i < count; i++)
            o->initial[i / cols * width + i % cols] =
                i < usable ? far[i] : -10.0f + 20.0f * (float)i / (float)count;
    else if (x->c->flags & RELU2 && x->c->input == INPUT_RANDOM)
        for (int64_t i = 0; i < o->count; i++) o->initial[i] += copysignf(0.125f, o->initial[i]);
    op_round(o, o->initial);
}

/* Twice the fp32 errors of an activation and of its derivative at x. In SiLU, rounding the exponent changes
 * e^-x by |x| u of itself, and an exponential below the normal numbers may be flushed. */
static double act_error(const struct op_case *c, double x) {
    double silu = fabs(x) / (1.0 + exp(-x));
    switch (activation_of(c)) {
    case ACT_GELU:
        return op_gelu_error(x);
    case ACT_SILU:
        return 2.0 * UNIT_F32 * (4.0 + fmin(fabs(x), 90.0)) * silu + 128.0 * (double)FLT_MIN;
    default:
        return 0.0;
    }
}
static double derivative_error(const struct op_case *c, double x) {
    double s = 1.0 / (1.0 + exp(-x)), a = fmin(fabs(x), 90.0);
    switch (activation_of(c)) {
    case ACT_GELU:
        return op_gelu_derivative_error(x);
    case ACT_SILU:
        return 2.0 * UNIT_F32 * (6.0 + a) * s * (1.0 + a * (1.0 - s)) + 128.0 * (double)FLT_MIN;
    default:
        return 0.0;
    }
}

#define ACT_CASES                                                                                            \
    {"odd", INPUT_RANDOM, {5, 37}, 0, SIZE_SMALL}, {"vectors", INPUT_RANDOM, {16, 64}, 0, SIZE_SMALL},       \
        {"one", INPUT_RANDOM, {1, 1}, 0, SIZE_SMALL}, {"curve", INPUT_EQUAL, {3, 101}, 0, SIZE_SMALL},       \
        {"large", INPUT_LARGE, {7, 16}, 0, SIZE_SMALL}, {"tiny", INPUT_TINY, {7, 16}, 0, SIZE_SMALL},        \
        {"unaligned", INPUT_RANDOM, {4, 24}, UNALIGNED, SIZE_SMALL},                                         \
        {"silu, odd", INPUT_RANDOM, {5, 37}, SILU, SIZE_SMALL},                                              \
        {"silu, vectors", INPUT_RANDOM, {16, 64}, SILU, SIZE_SMALL},                                         \
        {"silu, curve", INPUT_EQUAL, {3, 104}, SILU, SIZE_SMALL},                                            \
        {"silu, large", INPUT_LARGE, {7, 16}, SILU, SIZE_SMALL},                                             \
        {"silu, tiny", INPUT_TINY, {7, 16}, SILU, SIZE_SMALL},                                               \
        {"relu2, odd", INPUT_RANDOM, {5, 37}, RELU2, SIZE_SMALL},                                            \
        {"relu2, vectors", INPUT_RANDOM, {16, 64}, RELU2, SIZE_SMALL},                                       \
        {"relu2, curve", INPUT_EQUAL, {3, 104}, RELU2, SIZE_SMALL},                                          \
        {"relu2, tiny", INPUT_TINY, {7, 16}, RELU2, SIZE_SMALL}, {                                           \
        "gpt2", INPUT_RANDOM, {4096, 3072}, 0, SIZE_LARGE                                                    \
    }

/* Of the forward ops. */
#define ACT_FP8_CASES                                                                                        \
    {"fp8", INPUT_RANDOM, {16, 64}, OP_FP8, SIZE_SMALL},                                                     \
        {"fp8, several parts", INPUT_RANDOM, {33, 1056}, OP_FP8, SIZE_SMALL},                                \
        {"fp8, large", INPUT_LARGE, {7, 16}, OP_FP8, SIZE_SMALL},                                            \
        {"fp8, tiny", INPUT_TINY, {7, 16}, OP_FP8, SIZE_SMALL},                                              \
        {"fp8, silu", INPUT_RANDOM, {5, 48}, OP_FP8 | SILU, SIZE_SMALL}, {                                   \
        "fp8, relu2", INPUT_RANDOM, {5, 48}, OP_FP8 | RELU2, SIZE_SMALL                                      \
    }

/* --- act --- */

static int act_forward_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B * m->T, 4 * m->C}, 0, SIZE_LARGE};
    out[1] = (struct op_case){"model, fp8", INPUT_RANDOM, {m->B * m->T, 4 * m->C}, OP_FP8, SIZE_LARGE};
    return 2;
}

static int act_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B * m->T, 4 * m->C}, 0, SIZE_LARGE};
    return 1;
}

static void act_forward_make(struct op_instance *x) {
    int64_t N = x->c->d[0], C = x->c->d[1];
    fill_curve(x, op_add(x, ROLE_IN, x->dtype, "inp", N, C, 0), C, C);
    op_add_fp8(x, ROLE_OUT, DTYPE_E4M3, "out", "out.descale", N, C);
}

/* The scale of `out` in fp8 is that of its largest magnitude. */
static void allow_fp8_output(struct op_instance *x) {
    struct operand *out = op_find(x, "out");
    op_allow_fp8(x, "out", op_largest(out->expected, out->count));
}

static void act_forward_bound(struct op_instance *x) {
    const float *inp = op_initial(x, "inp");
    double *allow = op_allowed(x, "out");
    for (int64_t i = 0; i < op_find(x, "out")->count; i++) allow[i] += act_error(x->c, (double)inp[i]);
    allow_fp8_output(x);
}

static const struct op_case act_forward_cases[] = {ACT_CASES, ACT_FP8_CASES};
OP_TEST(act_forward, (.bound = act_forward_bound, .model_cases = act_forward_model_cases), A("out"), A("inp"),
        activation_of(x->c));

static void act_backward_make(struct op_instance *x) {
    int64_t N = x->c->d[0], C = x->c->d[1];
    fill_curve(x, op_add(x, ROLE_IN, x->dtype, "inp", N, C, 0), C, C);
    op_fill_normal(x, op_add(x, ROLE_IN, x->dtype, "dout", N, C, 0), 0.0, 1.0);
    op_add(x, ROLE_OUT, x->dtype, "dinp", N, C, 0);
    if (x->c->flags & IN_PLACE) op_alias(x, "dinp", "dout");
}

static void act_backward_bound(struct op_instance *x) {
    const float *inp = op_initial(x, "inp"), *dout = op_initial(x, "dout");
    double *allow = op_allowed(x, "dinp");
    for (int64_t i = 0; i < op_find(x, "dinp")->count; i++)
        allow[i] += derivative_error(x->c, (double)inp[i]) * fabs((double)dout[i]);
}

static const struct op_case act_backward_cases[] = {
    ACT_CASES,
    {"in place", INPUT_RANDOM, {5, 37}, IN_PLACE, SIZE_SMALL},
    {"in place, vectors", INPUT_RANDOM, {8, 64}, IN_PLACE, SIZE_SMALL},
};
OP_TEST(act_backward, (.bound = act_backward_bound, .model_cases = act_model_cases), A("dinp"), A("dout"),
        A("inp"), activation_of(x->c));

/* --- glu --- */

/* Llama's width: two thirds of 4C, in multiples of 256. */
static int glu_model_cases(const struct op_model *m, struct op_case *out) {
    int64_t F = round_up(8 * m->C / 3, 256);
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B * m->T, F}, SILU, SIZE_LARGE};
    return 1;
}

static void add_gate_and_up(struct op_instance *x) {
    int64_t N = x->c->d[0], F = x->c->d[1];
    struct operand *inp = op_add(x, ROLE_IN, x->dtype, "inp", N, 2 * F, 0);
    fill_curve(x, inp, F, 2 * F);
}

static void glu_forward_make(struct op_instance *x) {
    add_gate_and_up(x);
    op_add_fp8(x, ROLE_OUT, DTYPE_E4M3, "out", "out.descale", x->c->d[0], x->c->d[1]);
}

/* Gate and up of element i of an operand (N,F). */
static double gate_of(struct op_instance *x, int64_t i) {
    int64_t F = x->c->d[1];
    return (double)op_initial(x, "inp")[i / F * 2 * F + i % F];
}
static double up_of(struct op_instance *x, int64_t i) {
    int64_t F = x->c->d[1];
    return (double)op_initial(x, "inp")[i / F * 2 * F + F + i % F];
}

static void glu_forward_bound(struct op_instance *x) {
    struct operand *out = op_find(x, "out");
    for (int64_t i = 0; i < out->count; i++)
        out->allowed[i] += fabs(up_of(x, i)) * act_error(x->c, gate_of(x, i)) +
                           2.0 * UNIT_F32 * fabs((double)out->expected[i]);
    allow_fp8_output(x);
}

static const struct op_case glu_forward_cases[] = {
    ACT_CASES,
    ACT_FP8_CASES,
    {"llama", INPUT_RANDOM, {512, 5632}, SILU, SIZE_LARGE},
};
OP_TEST(glu_forward, (.bound = glu_forward_bound, .model_cases = glu_model_cases), A("out"), A("inp"),
        activation_of(x->c));

static void glu_backward_make(struct op_instance *x) {
    add_gate_and_up(x);
    op_fill_normal(x, op_add(x, ROLE_IN, x->dtype, "dout", x->c->d[0], x->c->d[1], 0), 0.0, 1.0);
    op_add(x, ROLE_OUT, x->dtype, "dinp", x->c->d[0], 2 * x->c->d[1], 0);
}

static void glu_backward_bound(struct op_instance *x) {
    int64_t F = x->c->d[1];
    const float *dout = op_initial(x, "dout");
    struct operand *dinp = op_find(x, "dinp");
    for (int64_t i = 0; i < dinp->count / 2; i++) {
        int64_t at = i / F * 2 * F + i % F;
        double d = fabs((double)dout[i]), gate = gate_of(x, i);
        dinp->allowed[at] += d * fabs(up_of(x, i)) * derivative_error(x->c, gate) +
                             4.0 * UNIT_F32 * fabs((double)dinp->expected[at]);
        dinp->allowed[at + F] +=
            d * act_error(x->c, gate) + 2.0 * UNIT_F32 * fabs((double)dinp->expected[at + F]);
    }
}

static const struct op_case glu_backward_cases[] = {
    ACT_CASES,
    {"few", INPUT_RANDOM, {3, 9}, 0, SIZE_SMALL},
    {"silu, few", INPUT_RANDOM, {3, 9}, SILU, SIZE_SMALL},
    {"relu2, few", INPUT_RANDOM, {3, 9}, RELU2, SIZE_SMALL},
    {"llama", INPUT_RANDOM, {512, 5632}, SILU, SIZE_LARGE},
};
OP_TEST(glu_backward, (.bound = glu_backward_bound, .model_cases = glu_model_cases), A("dinp"), A("dout"),
        A("inp"), activation_of(x->c));

/* --- dropout --- */

static void dropout_make(struct op_instance *x) {
    const int64_t *d = x->c->d;
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "inp", d[0], d[1], d[2]), 1.0);
    op_fill_index(x, op_add(x, ROLE_IN, DTYPE_I32, "samples", d[0], 0, 0), 0, 1000);
    op_add(x, ROLE_OUT, x->dtype, "out", d[0], d[1], d[2]);
    if (x->c->flags & IN_PLACE) op_alias(x, "out", "inp");
}

static const struct dropout_rule *dropout_of(struct tensor *samples, struct dropout_rule *d) {
    *d = (struct dropout_rule){0.25f, 99, 1000, samples};
    return d;
}

static int dropout_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B, m->T, m->C}, 0, SIZE_LARGE};
    return 1;
}

static const struct op_case dropout_cases[] = {
    {"one", INPUT_RANDOM, {1, 1, 1}, 0, SIZE_SMALL},
    {"odd", INPUT_RANDOM, {3, 5, 7}, 0, SIZE_SMALL},
    {"in place", INPUT_RANDOM, {2, 9, 33}, IN_PLACE, SIZE_SMALL},
    {"several blocks", INPUT_RANDOM, {2, 40, 77}, 0, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {2, 3, 16}, UNALIGNED, SIZE_SMALL},
    {"large", INPUT_LARGE, {2, 4, 16}, 0, SIZE_SMALL},
    {"gpt2", INPUT_RANDOM, {4, 1024, 768}, 0, SIZE_LARGE},
};
OP_TEST(dropout, (.model_cases = dropout_model_cases), A("out"), A("inp"),
        dropout_of(A("samples"), (struct dropout_rule[1]){{0}}));
