/* qk_norm_forward, qk_norm_backward. Shapes: {N, NH, NKV, HS}. */
#include "test/ops/op_harness.h"

#include <string.h>

enum { LARGE_EPS = OP_FLAG(0), OVER_DOUT = OP_FLAG(1), NO_WEIGHT = OP_FLAG(2), FROZEN = OP_FLAG(3) };

static float eps_of(const struct op_case *c) { return c->flags & LARGE_EPS ? 0.5f : 1e-5f; }
static int heads_of(const struct op_case *c) { return (int)c->d[1]; }
static int kv_heads_of(const struct op_case *c) { return (int)c->d[2]; }

static struct operand *add_heads(struct op_instance *x, enum operand_role role, const char *name) {
    const int64_t *d = x->c->d;
    return op_add(x, role, x->dtype, name, d[0], (d[1] + 2 * d[2]) * d[3], 0);
}

static void add_operands(struct op_instance *x) {
    int64_t HS = x->c->d[3];
    op_fill(x, add_heads(x, ROLE_IN, "inp"), x->c->input == INPUT_LARGE ? 1e4 : 1.0);
    if (x->c->flags & NO_WEIGHT) return;
    op_fill_normal(x, op_add(x, ROLE_IN, x->dtype, "q_weight", HS, 0, 0), 1.0, 0.5);
    op_fill_normal(x, op_add(x, ROLE_IN, x->dtype, "k_weight", HS, 0, 0), 0.5, 0.5);
}

/* Element i of a weight, 1 if it is absent. */
static double weight_at(struct op_instance *x, const char *weight, int64_t i) {
    return op_find(x, weight) ? (double)op_initial(x, weight)[i] : 1.0;
}

/* Calls f for every head that is normalised: with its first element, and its weight's name. */
static void each_head(struct op_instance *x,
                      void (*f)(struct op_instance *x, int64_t at, const char *weight)) {
    const int64_t *d = x->c->d, QK = d[1] + d[2], all = QK + d[2];
    for (int64_t n = 0; n < d[0]; n++)
        for (int64_t h = 0; h < QK; h++) f(x, (n * all + h) * d[3], h < d[1] ? "q_weight" : "k_weight");
}

static double rstd_at(struct op_instance *x, int64_t at) {
    int64_t HS = x->c->d[3];
    const float *inp = op_initial(x, "inp") + at;
    double squares = 0.0;
    for (int64_t i = 0; i < HS; i++) squares += (double)inp[i] * (double)inp[i];
    return 1.0 / sqrt(squares / (double)HS + (double)eps_of(x->c));
}

/* rstd of every head in double: the reference is not the CPU's operation, whose forward and backward pass
 * share a function, so that a mistake in it would be in both. */
static struct tensor all_rstd(struct op_instance *x) {
    const int64_t *d = x->c->d, HS = d[3], heads = d[0] * (d[1] + 2 * d[2]);
    struct tensor t = op_temporary(x, heads, 0, 0);
    for (int64_t h = 0; h < heads; h++) f32(&t)[h] = (float)rstd_at(x, h * HS);
    return t;
}

/* Values must come through bit by bit. */
static void exact_values(struct op_instance *x, const char *name) {
    const int64_t *d = x->c->d, QK = d[1] + d[2], all = QK + d[2];
    for (int64_t n = 0; n < d[0]; n++)
        for (int64_t i = QK * d[3]; i < all * d[3]; i++) op_allowed(x, name)[n * all * d[3] + i] = 0.0;
}

#define QK_NORM_CASES                                                                                        \
    {"odd", INPUT_RANDOM, {5, 3, 1, 6}, 0, SIZE_SMALL}, {"one", INPUT_RANDOM, {1, 1, 1, 1}, 0, SIZE_SMALL},  \
        {"head 8", INPUT_RANDOM, {70, 2, 1, 8}, 0, SIZE_SMALL},                                              \
        {"head 64", INPUT_RANDOM, {9, 4, 4, 64}, 0, SIZE_SMALL},                                             \
        {"head 64, grouped", INPUT_RANDOM, {33, 6, 2, 64}, 0, SIZE_SMALL},                                   \
        {"head 80", INPUT_RANDOM, {5, 5, 1, 80}, 0, SIZE_SMALL},                                             \
        {"head 128", INPUT_RANDOM, {7, 3, 1, 128}, LARGE_EPS, SIZE_SMALL},                                   \
        {"head 256", INPUT_RANDOM, {3, 2, 1, 256}, 0, SIZE_SMALL},                                           \
        {"head 300", INPUT_RANDOM, {3, 2, 1, 300}, 0, SIZE_SMALL},                                           \
        {"large", INPUT_LARGE, {4, 2, 1, 40}, 0, SIZE_SMALL},                                                \
        {"tiny", INPUT_TINY, {4, 2, 1, 40}, 0, SIZE_SMALL},                                                  \
        {"flat rows", INPUT_FLAT, {4, 2, 1, 40}, 0, SIZE_SMALL},                                             \
        {"one-hot rows", INPUT_ONE_HOT, {4, 2, 1, 40}, 0, SIZE_SMALL},                                       \
        {"no weights", INPUT_RANDOM, {5, 3, 1, 6}, NO_WEIGHT, SIZE_SMALL},                                   \
        {"no weights, head 64", INPUT_RANDOM, {9, 4, 2, 64}, NO_WEIGHT, SIZE_SMALL},                         \
        {"unaligned", INPUT_RANDOM, {4, 2, 1, 40}, UNALIGNED, SIZE_SMALL}, {                                 \
        "qwen3", INPUT_RANDOM, {4096, 16, 8, 128}, 0, SIZE_LARGE                                             \
    }

static int qk_norm_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] =
        (struct op_case){"model", INPUT_RANDOM, {m->B * m->T, m->NH, m->NH, m->C / m->NH}, 0, SIZE_LARGE};
    return 1;
}

/* --- qk_norm_forward --- */

static void qk_norm_forward_make(struct op_instance *x) {
    add_operands(x);
    add_heads(x, ROLE_OUT, "out");
}

static void normalise(struct op_instance *x, int64_t at, const char *weight) {
    const float *inp = op_initial(x, "inp") + at;
    double r = rstd_at(x, at);
    for (int64_t i = 0; i < x->c->d[3]; i++)
        f32(A("out"))[at + i] = (float)((double)inp[i] * r * weight_at(x, weight, i));
}

static void qk_norm_forward_reference(struct ctx *cpu, struct op_instance *x) {
    memcpy(f32(A("out")), op_initial(x, "inp"), (size_t)op_find(x, "inp")->count * sizeof(float));
    each_head(x, normalise);
}

static void allow_forward(struct op_instance *x, int64_t at, const char *weight) {
    double e = op_sum_error((double)x->c->d[3]) + 4.0 * UNIT_F32;
    for (int64_t i = 0; i < x->c->d[3]; i++)
        op_allowed(x, "out")[at + i] += e * fabs((double)op_expected(x, "out")[at + i]);
}

static void qk_norm_forward_bound(struct op_instance *x) {
    exact_values(x, "out");
    each_head(x, allow_forward);
}

static const struct op_case qk_norm_forward_cases[] = {QK_NORM_CASES};
OP_TEST(qk_norm_forward,
        (.bound = qk_norm_forward_bound, .model_cases = qk_norm_model_cases,
         .reference = qk_norm_forward_reference),
        A("out"), A("inp"), A("q_weight"), A("k_weight"), heads_of(x->c), kv_heads_of(x->c), eps_of(x->c));

/* --- qk_norm_backward --- */

static void qk_norm_backward_make(struct op_instance *x) {
    int64_t HS = x->c->d[3];
    add_operands(x);
    struct operand *dout = add_heads(x, ROLE_IN, "dout");
    if (x->c->input != INPUT_TINY) op_fill_normal(x, dout, 0.0, 1.0);
    add_heads(x, ROLE_OUT, "dinp");
    if (x->c->flags & OVER_DOUT) op_alias(x, "dinp", "dout");
    if (x->c->flags & (NO_WEIGHT | FROZEN)) return;
    op_add(x, ROLE_ADD, x->dtype, "dq_weight", HS, 0, 0);
    op_add(x, ROLE_ADD, x->dtype, "dk_weight", HS, 0, 0);
}

static void differentiate(struct op_instance *x, int64_t at, const char *weight) {
    const float *inp = op_initial(x, "inp") + at, *dout = op_initial(x, "dout") + at;
    int64_t HS = x->c->d[3];
    double r = rstd_at(x, at), sum_gx = 0.0;
    for (int64_t i = 0; i < HS; i++) sum_gx += (double)dout[i] * weight_at(x, weight, i) * (double)inp[i] * r;
    for (int64_t i = 0; i < HS; i++)
        f32(A("dinp"))[at + i] = (float)(r * ((double)dout[i] * weight_at(x, weight, i) -
                                              (double)inp[i] * r * sum_gx / (double)HS));
}

/* The heads [first, first + count) of every row add to dweight. */
static void add_up(struct op_instance *x, const char *dweight, int64_t first, int64_t count,
                   const struct tensor *rstd) {
    const int64_t *d = x->c->d, HS = d[3], all = d[1] + 2 * d[2];
    if (!op_find(x, dweight)) return;
    const float *inp = op_initial(x, "inp"), *dout = op_initial(x, "dout");
    for (int64_t i = 0; i < HS; i++) {
        double sum = (double)op_initial(x, dweight)[i];
        for (int64_t n = 0; n < d[0]; n++)
            for (int64_t h = n * all + first; h < n * all + first + count; h++)
                sum += (double)dout[h * HS + i] * (double)inp[h * HS + i] * (double)f32(rstd)[h];
        f32(A(dweight))[i] = (float)sum;
    }
}

static void qk_norm_backward_reference(struct ctx *cpu, struct op_instance *x) {
    struct tensor rstd = all_rstd(x);
    memcpy(f32(A("dinp")), op_initial(x, "dout"), (size_t)op_find(x, "dout")->count * sizeof(float));
    each_head(x, differentiate);
    add_up(x, "dq_weight", 0, x->c->d[1], &rstd);
    add_up(x, "dk_weight", x->c->d[1], x->c->d[2], &rstd);
}

/* rstd is off by the error of a sum, here twice as much; so is each of the terms that it multiplies. */
static void allow_backward(struct op_instance *x, int64_t at, const char *weight) {
    int64_t HS = x->c->d[3], heads = x->c->d[0] * (x->c->d[1] + x->c->d[2]);
    const float *inp = op_initial(x, "inp") + at, *dout = op_initial(x, "dout") + at;
    const char *gradient = weight[0] == 'q' ? "dq_weight" : "dk_weight";
    double *dinp = op_allowed(x, "dinp") + at,
           *dweight = op_find(x, gradient) ? op_allowed(x, gradient) : NULL;
    double r = rstd_at(x, at), sum_gx = 0.0, row = 3.0 * op_sum_error((double)HS);
    double column = op_sum_error((double)heads) + row;
    for (int64_t i = 0; i < HS; i++)
        sum_gx += fabs((double)dout[i] * weight_at(x, weight, i) * (double)inp[i]) * r / (double)HS;
    for (int64_t i = 0; i < HS; i++) {
        double g = fabs((double)dout[i] * weight_at(x, weight, i)), xhat = fabs((double)inp[i]) * r;
        dinp[i] += row * r * (g + xhat * sum_gx);
        if (dweight) dweight[i] += column * fabs((double)dout[i]) * xhat;
    }
}

static void qk_norm_backward_bound(struct op_instance *x) {
    double column = op_sum_error((double)(x->c->d[0] * (x->c->d[1] + x->c->d[2])));
    exact_values(x, "dinp");
    for (int64_t i = 0; op_find(x, "dq_weight") && i < x->c->d[3]; i++) {
        op_allowed(x, "dq_weight")[i] += column * fabs((double)op_initial(x, "dq_weight")[i]);
        op_allowed(x, "dk_weight")[i] += column * fabs((double)op_initial(x, "dk_weight")[i]);
    }
    each_head(x, allow_backward);
}

static const struct op_case qk_norm_backward_cases[] = {
    QK_NORM_CASES,
    {"more heads than blocks take at once", INPUT_RANDOM, {3300, 2, 1, 128}, 0, SIZE_SMALL},
    {"frozen", INPUT_RANDOM, {9, 4, 2, 64}, FROZEN, SIZE_SMALL},
    {"over dout", INPUT_RANDOM, {7, 3, 1, 72}, OVER_DOUT, SIZE_SMALL},
    {"over dout, grouped", INPUT_RANDOM, {35, 4, 2, 64}, OVER_DOUT, SIZE_SMALL},
    {"over dout, odd", INPUT_RANDOM, {5, 3, 1, 7}, OVER_DOUT, SIZE_SMALL},
};
OP_TEST(qk_norm_backward,
        (.bound = qk_norm_backward_bound, .model_cases = qk_norm_model_cases,
         .reference = qk_norm_backward_reference),
        A("dinp"), A("dq_weight"), A("dk_weight"), A("dout"), A("inp"), A("q_weight"), A("k_weight"),
        heads_of(x->c), kv_heads_of(x->c), eps_of(x->c));
