/* rope. Shapes: {B, T, NH, NKV, HS, t0}. */
#include "test/ops/op_harness.h"

enum { BACKWARD = OP_FLAG(0), THETA_500000 = OP_FLAG(1), LINEAR = OP_FLAG(2), LLAMA3 = OP_FLAG(3) };

static struct rope_rule rule_of(const struct op_case *c) {
    struct rope_rule r = {.theta = c->flags & THETA_500000 ? 500000.0f : 10000.0f};
    if (c->flags & (LINEAR | LLAMA3)) r.factor = c->flags & LINEAR ? 2.5f : 32.0f;
    if (c->flags & LLAMA3) r.original = 256.0f, r.low = 1.0f, r.high = 4.0f;
    return r;
}

static void rope_make(struct op_instance *x) {
    const int64_t *d = x->c->d;
    op_add(x, ROLE_UPDATE, x->dtype, "qkv", d[0], d[1], (d[2] + 2 * d[3]) * d[4]);
}

/* Radians a token, in the three cases of transformers' _compute_llama3_parameters(). */
static double frequency(struct rope_rule r, int64_t i, int64_t HS) {
    double f = exp(-2.0 * (double)i / (double)HS * log((double)r.theta)), wave = 2.0 * acos(-1.0) / f;
    if (r.factor == 0.0f) return f;
    if (r.original > 0.0f && wave < (double)(r.original / r.high)) return f;
    if (r.original == 0.0f || wave > (double)(r.original / r.low)) return f / (double)r.factor;
    double smooth = ((double)r.original / wave - (double)r.low) / (double)(r.high - r.low);
    return (1.0 - smooth) * f / (double)r.factor + smooth * f;
}

/* Calls f for every rotated pair, with the index of its first element and its angle in double. */
static void each_pair(struct op_instance *x, void (*f)(struct op_instance *, int64_t, int64_t, double)) {
    const int64_t *d = x->c->d, T = d[1], heads = d[2] + d[3], HS = d[4], width = (heads + d[3]) * HS;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < d[0]; b++)
        for (int64_t t = d[5]; t < T; t++)
            for (int64_t h = 0; h < heads; h++)
                for (int64_t i = 0; i < HS / 2; i++)
                    f(x, (b * T + t) * width + h * HS + i, HS / 2,
                      (double)t * frequency(rule_of(x->c), i, HS));
}

static void rotate(struct op_instance *x, int64_t at, int64_t half, double angle) {
    float *q = f32(A("qkv"));
    double a = (double)q[at], b = (double)q[at + half], s = x->c->flags & BACKWARD ? -sin(angle) : sin(angle);
    q[at] = (float)(a * cos(angle) - b * s);
    q[at + half] = (float)(b * cos(angle) + a * s);
}
static void rope_reference(struct ctx *cpu, struct op_instance *x) { each_pair(x, rotate); }

/* In fp32 cosine and sine are off by 3 u at most: by their rounding, and by that of an angle kept to 2^-26
 * of a turn. Each product is rounded once more. Twice these 4 u are allowed. */
static void allow(struct op_instance *x, int64_t at, int64_t half, double angle) {
    const float *q = op_initial(x, "qkv");
    double more = 8.0 * UNIT_F32 * (fabs((double)q[at]) + fabs((double)q[at + half]));
    double *allowed = op_allowed(x, "qkv");
    allowed[at] += 2.0 * x->unit * fabs((double)op_expected(x, "qkv")[at]) + more;
    allowed[at + half] += 2.0 * x->unit * fabs((double)op_expected(x, "qkv")[at + half]) + more;
}

/* Values, and rows before t0, must not change a bit. */
static void rope_bound(struct op_instance *x) {
    for (int64_t i = 0; i < op_find(x, "qkv")->count; i++) op_allowed(x, "qkv")[i] = 0.0;
    each_pair(x, allow);
}

static int rope_model_cases(const struct op_model *m, struct op_case *out) {
    int64_t HS = m->C / m->NH;
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B, m->T, m->NH, m->NH, HS}, 0, SIZE_LARGE};
    return 1;
}

static const struct op_case rope_cases[] = {
    {"odd", INPUT_RANDOM, {2, 5, 3, 1, 6}, 0, SIZE_SMALL},
    {"backward, odd", INPUT_RANDOM, {2, 5, 3, 3, 6}, BACKWARD, SIZE_SMALL},
    {"one pair", INPUT_RANDOM, {1, 3, 1, 1, 2}, 0, SIZE_SMALL},
    {"head 64", INPUT_RANDOM, {2, 19, 4, 4, 64}, 0, SIZE_SMALL},
    {"head 64, grouped", INPUT_RANDOM, {1, 40, 6, 2, 64}, BACKWARD, SIZE_SMALL},
    {"head 80", INPUT_RANDOM, {1, 35, 5, 1, 80}, THETA_500000, SIZE_SMALL},
    {"head 128", INPUT_RANDOM, {1, 9, 3, 1, 128}, THETA_500000, SIZE_SMALL},
    {"head 256", INPUT_RANDOM, {1, 5, 2, 1, 256}, 0, SIZE_SMALL},
    {"head 300", INPUT_RANDOM, {1, 5, 2, 1, 300}, 0, SIZE_SMALL},
    {"from the cache", INPUT_RANDOM, {2, 21, 2, 1, 16, 20}, 0, SIZE_SMALL},
    {"span from the cache", INPUT_RANDOM, {2, 70, 2, 2, 32, 37}, BACKWARD, SIZE_SMALL},
    {"linear", INPUT_RANDOM, {1, 33, 2, 1, 16}, LINEAR, SIZE_SMALL},
    {"linear, head 6", INPUT_RANDOM, {2, 5, 3, 1, 6}, LINEAR | BACKWARD, SIZE_SMALL},
    {"llama3", INPUT_RANDOM, {1, 300, 2, 1, 64, 250}, LLAMA3, SIZE_SMALL},
    {"llama3, backward", INPUT_RANDOM, {2, 19, 4, 2, 64}, LLAMA3 | THETA_500000 | BACKWARD, SIZE_SMALL},
    {"llama3, head 20", INPUT_RANDOM, {1, 19, 2, 2, 20}, LLAMA3, SIZE_SMALL},
    {"position 131071", INPUT_ONE_HOT, {1, 131072, 1, 1, 8, 131040}, 0, SIZE_SMALL},
    {"large", INPUT_LARGE, {1, 9, 2, 1, 16}, 0, SIZE_SMALL},
    {"tiny", INPUT_TINY, {1, 9, 2, 1, 16}, 0, SIZE_SMALL},
    {"equal positions", INPUT_EQUAL, {2, 33, 2, 2, 16}, 0, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {1, 9, 2, 1, 16}, UNALIGNED, SIZE_SMALL},
    {"gpt2", INPUT_RANDOM, {4, 1024, 12, 12, 64}, 0, SIZE_LARGE},
    {"llama", INPUT_RANDOM, {1, 8192, 32, 8, 128}, THETA_500000 | BACKWARD, SIZE_LARGE},
};
OP_TEST(rope, (.bound = rope_bound, .model_cases = rope_model_cases, .reference = rope_reference), A("qkv"),
        (int)x->c->d[2], (int)x->c->d[3], (int)x->c->d[5], (struct rope_rule[1]){rule_of(x->c)},
        (x->c->flags & BACKWARD) != 0);
