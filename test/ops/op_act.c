/* act_forward, act_backward: GELU. Shapes: {N, C}. */
#include "test/ops/op_harness.h"

/* From the tails, where 1+tanh cancels and x^3 overflows, through the bend around 0. */
static void fill_curve(struct op_instance *x, struct operand *o) {
    static const float far[] = {0.0f,  -0.0f, 1e-30f, -1e-30f, 20.0f,  -20.0f, 1e4f,
                                -1e4f, 1e13f, -1e13f, 1e20f,   -1e20f, 1e30f,  -1e30f};
    switch (x->c->input) {
    case INPUT_LARGE:
        op_fill(x, o, 50.0);
        break;
    case INPUT_EQUAL:
        for (int64_t i = 0; i < o->count; i++)
            o->initial[i] =
                i < (int64_t)ARRAY_LENGTH(far) ? far[i] : -10.0f + 20.0f * (float)i / (float)o->count;
        op_round(o, o->initial);
        break;
    default:
        op_fill(x, o, 2.0);
        break;
    }
}

#define ACT_CASES                                                                                            \
    {"odd", INPUT_RANDOM, {5, 37}, 0, SIZE_SMALL}, {"vectors", INPUT_RANDOM, {16, 64}, 0, SIZE_SMALL},       \
        {"one", INPUT_RANDOM, {1, 1}, 0, SIZE_SMALL}, {"curve", INPUT_EQUAL, {3, 101}, 0, SIZE_SMALL},       \
        {"large", INPUT_LARGE, {7, 16}, 0, SIZE_SMALL}, {"tiny", INPUT_TINY, {7, 16}, 0, SIZE_SMALL},        \
        {"unaligned", INPUT_RANDOM, {4, 24}, UNALIGNED, SIZE_SMALL}, {                                       \
        "gpt2", INPUT_RANDOM, {4096, 3072}, 0, SIZE_LARGE                                                    \
    }

static int act_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B * m->T, 4 * m->C}, 0, SIZE_LARGE};
    return 1;
}

static void act_forward_make(struct op_instance *x) {
    fill_curve(x, op_add(x, ROLE_IN, x->dtype, "inp", x->c->d[0], x->c->d[1], 0));
    op_add(x, ROLE_OUT, x->dtype, "out", x->c->d[0], x->c->d[1], 0);
}

static void act_forward_bound(struct op_instance *x) {
    const float *inp = op_initial(x, "inp");
    double *allow = op_allowed(x, "out");
    for (int64_t i = 0; i < op_find(x, "out")->count; i++) allow[i] += op_gelu_error((double)inp[i]);
}

static const struct op_case act_forward_cases[] = {ACT_CASES};
OP_TEST(act_forward, (.bound = act_forward_bound, .model_cases = act_model_cases), A("out"), A("inp"));

enum { IN_PLACE = OP_FLAG(0) };

static void act_backward_make(struct op_instance *x) {
    fill_curve(x, op_add(x, ROLE_IN, x->dtype, "inp", x->c->d[0], x->c->d[1], 0));
    op_fill_normal(x, op_add(x, ROLE_IN, x->dtype, "dout", x->c->d[0], x->c->d[1], 0), 0.0, 1.0);
    op_add(x, ROLE_OUT, x->dtype, "dinp", x->c->d[0], x->c->d[1], 0);
    if (x->c->flags & IN_PLACE) op_alias(x, "dinp", "dout");
}

static void act_backward_bound(struct op_instance *x) {
    const float *inp = op_initial(x, "inp"), *dout = op_initial(x, "dout");
    double *allow = op_allowed(x, "dinp");
    for (int64_t i = 0; i < op_find(x, "dinp")->count; i++)
        allow[i] += op_gelu_derivative_error((double)inp[i]) * fabs((double)dout[i]);
}

static const struct op_case act_backward_cases[] = {
    ACT_CASES,
    {"in place", INPUT_RANDOM, {5, 37}, IN_PLACE, SIZE_SMALL},
    {"in place, vectors", INPUT_RANDOM, {8, 64}, IN_PLACE, SIZE_SMALL},
};
OP_TEST(act_backward, (.bound = act_backward_bound, .model_cases = act_model_cases), A("dinp"), A("dout"),
        A("inp"));
