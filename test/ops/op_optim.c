/* The optimizers: adamw, lion, Muon's operations. Shapes: {n, step}; normalize {n}; ns_factor {side}. */
#include "test/ops/op_harness.h"

enum {
    CLIP = OP_FLAG(0),       /* the gradient's norm is above max_norm */
    DECAY = OP_FLAG(1),      /* weight decay */
    MASTER = OP_FLAG(2),     /* fp32 master weights; param is their rounded copy */
    NOT_FINITE = OP_FLAG(3), /* sumsq is NaN: nothing may change */
    INFINITE = OP_FLAG(4),   /* sumsq is infinite: the same */
    STOCHASTIC = OP_FLAG(5), /* stochastic rounding of param */
    FAST = OP_FLAG(6),       /* a step moves every parameter by more than bf16's rounding */
    ALIASED = OP_FLAG(7)     /* ns_factor: out is gram2 */
};

/* --- adamw --- */

static struct update_args update_args_of(const struct op_case *c) {
    return (struct update_args){.lr = c->flags & FAST ? 0.3f : 3e-3f,
                                .beta1 = 0.9f,
                                .beta2 = 0.95f,
                                .eps = 1e-8f,
                                .weight_decay = c->flags & DECAY ? 0.1f : 0.0f,
                                .max_norm = c->flags & CLIP ? 1.0f : 1e9f,
                                .step = c->d[1],
                                .seed = 42,
                                .offset = 1000003,
                                .stochastic = (c->flags & STOCHASTIC) != 0,
                                .momentum = 0.9f,
                                .muon_lr = c->flags & FAST ? 0.25f : 5e-3f};
}

static float sumsq_of(const struct op_case *c) {
    return c->flags & NOT_FINITE ? NAN : c->flags & INFINITE ? INFINITY : 49.0f;
}

static void adamw_make(struct op_instance *x) {
    int64_t n = x->c->d[0];
    bool frozen = x->c->flags & (NOT_FINITE | INFINITE);
    double gradient = x->c->input == INPUT_LARGE ? 1e4 : 0.1;
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "grad", n, 0, 0), gradient);
    op_add(x, ROLE_IN, DTYPE_F32, "sumsq", 1, 0, 0)->initial[0] = sumsq_of(x->c);
    struct operand *param = op_add(x, ROLE_UPDATE, x->dtype, "param", n, 0, 0);
    op_fill_normal(x, param, 0.0, 0.3);
    if (x->c->flags & MASTER) {
        struct operand *master = op_add(x, ROLE_UPDATE, DTYPE_F32, "master", n, 0, 0);
        op_fill_normal(x, master, 0.0, 0.3);
        for (int64_t i = 0; i < n; i++) param->initial[i] = master->initial[i];
        op_round(param, param->initial);
        master->exact = frozen;
    }
    struct operand *m = op_add(x, ROLE_UPDATE, DTYPE_F32, "m", n, 0, 0);
    struct operand *v = op_add(x, ROLE_UPDATE, DTYPE_F32, "v", n, 0, 0);
    op_fill(x, m, 0.1 * gradient);
    for (int64_t i = 0; i < n; i++) {
        m->initial[i] *= x->c->d[1] > 1 ? 1.0f : 0.0f;
        v->initial[i] = x->c->d[1] > 1 ? 0.3f * x->operand[0].initial[i] * x->operand[0].initial[i] : 0.0f;
    }
    param->exact = m->exact = v->exact = frozen;
}

/* Magnitudes in double, from the initial values; every product and sum of the formula is rounded a few
 * times. Stochastic rounding may take either neighbour, 2 u away. */
static void adamw_bound(struct op_instance *x) {
    struct update_args a = update_args_of(x->c);
    if (x->c->flags & (NOT_FINITE | INFINITE)) return;
    const float *grad = op_initial(x, "grad"), *m0 = op_initial(x, "m"), *v0 = op_initial(x, "v");
    bool master = x->c->flags & MASTER;
    const float *w0 = op_initial(x, master ? "master" : "param");
    double clip = fmin(1.0, (double)a.max_norm / sqrt((double)sumsq_of(x->c)));
    double correct1 = 1.0 - pow((double)a.beta1, (double)a.step),
           correct2 = 1.0 - pow((double)a.beta2, (double)a.step);
    for (int64_t i = 0; i < x->c->d[0]; i++) {
        double g = (double)grad[i] * clip, u = 16.0 * UNIT_F32;
        double m = (double)a.beta1 * fabs((double)m0[i]) + (1.0 - (double)a.beta1) * fabs(g);
        double v = (double)a.beta2 * (double)v0[i] + (1.0 - (double)a.beta2) * g * g;
        double w = fabs((double)w0[i]) + (double)a.lr * (m / correct1) / (sqrt(v / correct2) + (double)a.eps);
        op_allowed(x, "m")[i] += u * m;
        op_allowed(x, "v")[i] += u * v;
        if (master) op_allowed(x, "master")[i] += u * w;
        op_allowed(x, "param")[i] += u * w;
    }
}

static int adamw_model_cases(const struct op_model *m, struct op_case *out) {
    int64_t n = 12 * m->C * m->C; /* a layer's matrices */
    out[0] = (struct op_case){"a layer", INPUT_RANDOM, {n, 100}, DECAY | CLIP, SIZE_LARGE};
    return 1;
}

static const struct op_case adamw_cases[] = {
    {"first step", INPUT_RANDOM, {1000, 1}, DECAY, SIZE_SMALL},
    {"odd", INPUT_RANDOM, {131, 7}, DECAY, SIZE_SMALL},
    {"clipped", INPUT_RANDOM, {257, 3}, CLIP | DECAY, SIZE_SMALL},
    {"no decay", INPUT_RANDOM, {64, 1000}, 0, SIZE_SMALL},
    {"fast, odd", INPUT_RANDOM, {131, 7}, FAST, SIZE_SMALL},
    {"fast, one over", INPUT_RANDOM, {1025, 1}, FAST, SIZE_SMALL},
    {"fast, one short", INPUT_RANDOM, {1023, 1}, FAST, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1, 2}, DECAY, SIZE_SMALL},
    {"large gradient", INPUT_LARGE, {100, 5}, DECAY, SIZE_SMALL},
    {"tiny gradient", INPUT_TINY, {100, 5}, DECAY, SIZE_SMALL},
    {"zeros among ones", INPUT_ONE_HOT, {64, 2}, DECAY, SIZE_SMALL},
    {"NaN gradient", INPUT_RANDOM, {77, 5}, NOT_FINITE | DECAY, SIZE_SMALL},
    {"infinite gradient", INPUT_RANDOM, {77, 5}, INFINITE | CLIP | DECAY, SIZE_SMALL},
    {"master", INPUT_RANDOM, {203, 5}, MASTER | DECAY | CLIP, SIZE_SMALL},
    {"master, NaN gradient", INPUT_RANDOM, {77, 5}, MASTER | NOT_FINITE, SIZE_SMALL},
    {"stochastic", INPUT_RANDOM, {515, 5}, STOCHASTIC | DECAY, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {130, 5}, UNALIGNED | DECAY, SIZE_SMALL},
    {"gpt2 layer", INPUT_RANDOM, {7077888, 5}, DECAY | CLIP, SIZE_LARGE},
};
OP_TEST(adamw, (.bound = adamw_bound, .model_cases = adamw_model_cases), A("param"), A("master"), A("m"),
        A("v"), A("grad"), A("sumsq"), (struct update_args[1]){update_args_of(x->c)});

/* --- lion --- */

/* param, and master where the case has it. */
static void add_params(struct op_instance *x, bool frozen) {
    int64_t n = x->c->d[0];
    struct operand *param = op_add(x, ROLE_UPDATE, x->dtype, "param", n, 0, 0);
    op_fill_normal(x, param, 0.0, 0.3);
    param->exact = frozen;
    if (!(x->c->flags & MASTER)) return;
    struct operand *master = op_add(x, ROLE_UPDATE, DTYPE_F32, "master", n, 0, 0);
    op_fill_normal(x, master, 0.0, 0.3);
    for (int64_t i = 0; i < n; i++) param->initial[i] = master->initial[i];
    op_round(param, param->initial);
    master->exact = frozen;
}

static bool is_frozen(const struct op_instance *x) { return (x->c->flags & (NOT_FINITE | INFINITE)) != 0; }

static void lion_make(struct op_instance *x) {
    int64_t n = x->c->d[0];
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "grad", n, 0, 0), 0.1);
    op_add(x, ROLE_IN, DTYPE_F32, "sumsq", 1, 0, 0)->initial[0] = sumsq_of(x->c);
    add_params(x, is_frozen(x));
    struct operand *m = op_add(x, ROLE_UPDATE, DTYPE_F32, "m", n, 0, 0);
    op_fill(x, m, 0.01);
    m->exact = is_frozen(x);
}

/* The sign of a direction that is nearly 0 may be either. */
static void lion_bound(struct op_instance *x) {
    struct update_args a = update_args_of(x->c);
    if (is_frozen(x)) return;
    const float *grad = op_initial(x, "grad"), *m0 = op_initial(x, "m");
    bool master = x->c->flags & MASTER;
    const float *w0 = op_initial(x, master ? "master" : "param");
    double clip = fmin(1.0, (double)a.max_norm / sqrt((double)sumsq_of(x->c))), u = 16.0 * UNIT_F32;
    for (int64_t i = 0; i < x->c->d[0]; i++) {
        double g = (double)grad[i] * clip, m = (double)m0[i], b1 = (double)a.beta1, b2 = (double)a.beta2;
        double direction = b1 * m + (1.0 - b1) * g, size = b1 * fabs(m) + (1.0 - b1) * fabs(g);
        bool open = size > 0.0 && fabs(direction) <= u * size;
        double w = u * (fabs((double)w0[i]) + (double)a.lr) + (open ? 2.0 * (double)a.lr : 0.0);
        op_allowed(x, "m")[i] += u * (b2 * fabs(m) + (1.0 - b2) * fabs(g));
        if (master) op_allowed(x, "master")[i] += w;
        op_allowed(x, "param")[i] += w;
    }
}

static const struct op_case lion_cases[] = {
    {"odd", INPUT_RANDOM, {131, 7}, DECAY, SIZE_SMALL},
    {"clipped", INPUT_RANDOM, {257, 3}, CLIP | DECAY, SIZE_SMALL},
    {"fast, one over", INPUT_RANDOM, {1025, 1}, FAST, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1, 2}, DECAY, SIZE_SMALL},
    {"zeros among ones", INPUT_ONE_HOT, {64, 2}, FAST | DECAY, SIZE_SMALL},
    {"NaN gradient", INPUT_RANDOM, {77, 5}, NOT_FINITE | DECAY, SIZE_SMALL},
    {"infinite gradient", INPUT_RANDOM, {77, 5}, INFINITE | CLIP | DECAY, SIZE_SMALL},
    {"master", INPUT_RANDOM, {203, 5}, MASTER | DECAY | CLIP, SIZE_SMALL},
    {"stochastic", INPUT_RANDOM, {515, 5}, STOCHASTIC | DECAY, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {130, 5}, UNALIGNED | DECAY, SIZE_SMALL},
    {"gpt2 layer", INPUT_RANDOM, {7077888, 5}, DECAY | CLIP, SIZE_LARGE},
};
OP_TEST(lion, (.bound = lion_bound, .model_cases = adamw_model_cases), A("param"), A("master"), A("m"),
        A("grad"), A("sumsq"), (struct update_args[1]){update_args_of(x->c)});

/* --- Muon --- */

static void muon_momentum_make(struct op_instance *x) {
    int64_t n = x->c->d[0];
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "grad", n, 0, 0), x->c->input == INPUT_LARGE ? 1e4 : 0.1);
    op_add(x, ROLE_IN, DTYPE_F32, "sumsq", 1, 0, 0)->initial[0] = sumsq_of(x->c);
    struct operand *m = op_add(x, ROLE_UPDATE, DTYPE_F32, "m", n, 0, 0);
    op_fill(x, m, 0.1);
    op_add(x, ROLE_OUT, x->dtype, "out", n, 0, 0)->exact = is_frozen(x);
    op_find(x, "m")->exact = is_frozen(x);
}
static void muon_momentum_bound(struct op_instance *x) {
    struct update_args a = update_args_of(x->c);
    if (is_frozen(x)) return;
    double clip = fmin(1.0, (double)a.max_norm / sqrt((double)sumsq_of(x->c))), mu = (double)a.momentum;
    for (int64_t i = 0; i < x->c->d[0]; i++) {
        double g = (1.0 - mu) * clip * fabs((double)op_initial(x, "grad")[i]);
        double m = mu * fabs((double)op_initial(x, "m")[i]) + g;
        op_allowed(x, "m")[i] += 16.0 * UNIT_F32 * m;
        op_allowed(x, "out")[i] += 16.0 * UNIT_F32 * (mu * m + g);
    }
}

#define MUON_CASES                                                                                           \
    {"odd", INPUT_RANDOM, {131, 7}, DECAY, SIZE_SMALL},                                                      \
        {"clipped, one over", INPUT_RANDOM, {1025, 3}, CLIP | DECAY, SIZE_SMALL},                            \
        {"one", INPUT_RANDOM, {1, 2}, DECAY, SIZE_SMALL},                                                    \
        {"zeros among ones", INPUT_ONE_HOT, {64, 2}, FAST | DECAY, SIZE_SMALL},                              \
        {"NaN gradient", INPUT_RANDOM, {77, 5}, NOT_FINITE | DECAY, SIZE_SMALL},                             \
        {"infinite gradient", INPUT_RANDOM, {77, 5}, INFINITE | CLIP | DECAY, SIZE_SMALL},                   \
        {"unaligned", INPUT_RANDOM, {130, 5}, UNALIGNED | DECAY, SIZE_SMALL}, {                              \
        "gpt2 layer", INPUT_RANDOM, {7077888, 5}, DECAY | CLIP, SIZE_LARGE                                   \
    }

static const struct op_case muon_momentum_cases[] = {MUON_CASES};
OP_TEST(muon_momentum, (.bound = muon_momentum_bound, .model_cases = adamw_model_cases), A("out"), A("m"),
        A("grad"), A("sumsq"), (struct update_args[1]){update_args_of(x->c)});

static void muon_update_make(struct op_instance *x) {
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "update", x->c->d[0], 0, 0), 0.2);
    op_add(x, ROLE_IN, DTYPE_F32, "sumsq", 1, 0, 0)->initial[0] = sumsq_of(x->c);
    add_params(x, is_frozen(x));
}
static void muon_update_bound(struct op_instance *x) {
    struct update_args a = update_args_of(x->c);
    bool master = x->c->flags & MASTER;
    if (is_frozen(x)) return;
    for (int64_t i = 0; i < x->c->d[0]; i++) {
        double w = fabs((double)op_initial(x, master ? "master" : "param")[i]) +
                   (double)a.muon_lr * fabs((double)op_initial(x, "update")[i]);
        if (master) op_allowed(x, "master")[i] += 8.0 * UNIT_F32 * w;
        op_allowed(x, "param")[i] += 8.0 * UNIT_F32 * w;
    }
}
static const struct op_case muon_update_cases[] = {
    MUON_CASES,
    {"fast", INPUT_RANDOM, {259, 5}, FAST | DECAY, SIZE_SMALL},
    {"master", INPUT_RANDOM, {203, 5}, MASTER | DECAY | FAST, SIZE_SMALL},
    {"stochastic", INPUT_RANDOM, {515, 5}, STOCHASTIC | DECAY, SIZE_SMALL},
};
OP_TEST(muon_update, (.bound = muon_update_bound, .model_cases = adamw_model_cases), A("param"), A("master"),
        A("update"), A("sumsq"), (struct update_args[1]){update_args_of(x->c)});

/* Shape {loss, norm}: each 0 below its limit, 1 at it, 2 above it, 3 NaN. */
static void skip_outlier_make(struct op_instance *x) {
    static const float loss[] = {2.0f, 3.0f, 3.0000002f, NAN}, norm[] = {0.0f, 49.0f, 49.000004f, NAN};
    op_add(x, ROLE_UPDATE, DTYPE_F32, "sumsq", 1, 0, 0)->initial[0] = norm[x->c->d[1]];
    op_add(x, ROLE_IN, DTYPE_F32, "loss", 1, 0, 0)->initial[0] = loss[x->c->d[0]];
    op_add(x, ROLE_OUT, DTYPE_F32, "seen", 1, 0, 0);
    for (int i = 0; i < 3; i++) x->operand[i].exact = true;
}
static const struct op_case skip_outlier_cases[] = {
    {"below both", INPUT_RANDOM, {0, 0}, 0, SIZE_SMALL}, {"at both", INPUT_RANDOM, {1, 1}, 0, SIZE_SMALL},
    {"loss above", INPUT_RANDOM, {2, 1}, 0, SIZE_SMALL}, {"norm above", INPUT_RANDOM, {1, 2}, 0, SIZE_SMALL},
    {"NaN loss", INPUT_RANDOM, {3, 0}, 0, SIZE_SMALL},   {"NaN norm", INPUT_RANDOM, {0, 3}, 0, SIZE_SMALL},
};
OP_TEST(skip_outlier, (.bound = NULL), A("sumsq"), A("seen"), A("loss"), 3.0f, 49.0f);

/* eps is far from 0, so that it shows. */
static void normalize_make(struct op_instance *x) {
    int64_t n = x->c->d[0];
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "inp", n, 0, 0), 1.0);
    op_add(x, ROLE_IN, DTYPE_F32, "sumsq", 1, 0, 0)->initial[0] = x->c->input == INPUT_TINY ? 0.0f : 9.0f;
    op_add(x, ROLE_OUT, x->dtype, "out", n, 0, 0);
}
static void normalize_bound(struct op_instance *x) {
    for (int64_t i = 0; i < x->c->d[0]; i++)
        op_allowed(x, "out")[i] += 8.0 * UNIT_F32 * fabs((double)op_expected(x, "out")[i]);
}
static const struct op_case normalize_cases[] = {
    {"odd", INPUT_RANDOM, {131}, 0, SIZE_SMALL},
    {"one over", INPUT_RANDOM, {1025}, 0, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1}, 0, SIZE_SMALL},
    {"without a norm", INPUT_TINY, {64}, 0, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {130}, UNALIGNED, SIZE_SMALL},
    {"gpt2 layer", INPUT_RANDOM, {7077888}, 0, SIZE_LARGE},
};
static int normalize_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"a matrix of the MLP", INPUT_RANDOM, {4 * m->C * m->C}, 0, SIZE_LARGE};
    return 1;
}
OP_TEST(normalize, (.bound = normalize_bound, .model_cases = normalize_model_cases), A("out"), A("inp"),
        A("sumsq"), 0.5f);

static void ns_factor_make(struct op_instance *x) {
    int64_t side = x->c->d[0];
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "gram", side, side, 0), 1.0);
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "gram2", side, side, 0), 1.0);
    op_add(x, ROLE_OUT, x->dtype, "out", side, side, 0)->exact = x->c->input == INPUT_INTEGER;
    if (x->c->flags & ALIASED) op_alias(x, "out", "gram2");
}
static void ns_factor_bound(struct op_instance *x) {
    if (x->c->input == INPUT_INTEGER) return;
    for (int64_t i = 0; i < x->c->d[0] * x->c->d[0]; i++)
        op_allowed(x, "out")[i] += 8.0 * UNIT_F32 *
                                   (3.0 + 5.0 * fabs((double)op_initial(x, "gram")[i]) +
                                    2.0 * fabs((double)op_initial(x, "gram2")[i]));
}
static const struct op_case ns_factor_cases[] = {
    {"odd", INPUT_RANDOM, {13}, 0, SIZE_SMALL},
    {"integer", INPUT_INTEGER, {33}, 0, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1}, 0, SIZE_SMALL},
    {"two", INPUT_INTEGER, {2}, 0, SIZE_SMALL},
    {"in place", INPUT_INTEGER, {48}, ALIASED, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {21}, UNALIGNED, SIZE_SMALL},
    {"gpt2", INPUT_RANDOM, {768}, 0, SIZE_LARGE},
};
static int ns_factor_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"a matrix", INPUT_RANDOM, {m->C}, 0, SIZE_LARGE};
    return 1;
}
OP_TEST(ns_factor, (.bound = ns_factor_bound, .model_cases = ns_factor_model_cases), A("out"), A("gram"),
        A("gram2"), 3.0f, -5.0f, 2.0f);
