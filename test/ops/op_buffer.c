/* Operations on whole buffers: sumsq, sum, cast, add_scaled, fill, randn. Shapes: {n}. */
#include "test/ops/op_harness.h"

enum {
    ACCUMULATE = OP_FLAG(0),
    NO_SCALE = OP_FLAG(1), /* sum: without a scale */
    TENTHS = OP_FLAG(2),   /* sums: every element is 0.1, whose sum in fp32 drifts */
    DUST = OP_FLAG(3), /* sums: 256 ones, then terms of half an ulp of 1, which vanish one by one in fp32 */
    FROM_F32 = OP_FLAG(4), /* cast: fp32 -> dtype; otherwise dtype -> fp32 */
    SPECIAL = OP_FLAG(5),  /* cast: NaN, infinities, ties, overflow */
    NO_BASE = OP_FLAG(6),  /* add_scaled: nothing to add to */
    IN_PLACE = OP_FLAG(7)  /* add_scaled: out is base */
};

/* --- sumsq, sum --- */

static int whole_buffer_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"a layer", INPUT_RANDOM, {12 * m->C * m->C, 1}, 0, SIZE_LARGE};
    return 1;
}

/* Of sums in fp64 or pairwise: the error grows at most like log2(n). */
static double pairwise_error(int64_t n) { return 2.0 * (log2((double)n) + 2.0) * UNIT_F32; }

static void add_terms(struct op_instance *x, enum dtype dtype, float dust) {
    struct operand *inp = op_add(x, ROLE_IN, dtype, "inp", x->c->d[0], 0, 0);
    op_fill(x, inp, x->c->input == INPUT_LARGE ? 1e10 : 1.0);
    for (int64_t i = 0; x->c->flags & TENTHS && i < inp->count; i++) inp->initial[i] = 0.1f;
    for (int64_t i = 0; x->c->flags & DUST && i < inp->count; i++) inp->initial[i] = i < 256 ? 1.0f : dust;
    op_round(inp, inp->initial);
}

static void sumsq_make(struct op_instance *x) {
    add_terms(x, x->dtype, 0x1p-12f); /* squared: 2^-24 */
    op_add(x, ROLE_OUT, DTYPE_F32, "out", 1, 0, 0)->exact = x->c->input == INPUT_INTEGER;
}
static void sumsq_bound(struct op_instance *x) {
    if (op_find(x, "out")->exact) return;
    op_allowed(x, "out")[0] += pairwise_error(x->c->d[0]) * (double)op_expected(x, "out")[0];
}

#define SUM_CASES                                                                                            \
    {"odd", INPUT_RANDOM, {37}, 0, SIZE_SMALL}, {"one", INPUT_RANDOM, {1}, 0, SIZE_SMALL},                   \
        {"blocks", INPUT_RANDOM, {4096}, 0, SIZE_SMALL}, {"long", INPUT_RANDOM, {70001}, 0, SIZE_SMALL},     \
        {"large", INPUT_LARGE, {1000}, 0, SIZE_SMALL}, {"tiny", INPUT_TINY, {1000}, 0, SIZE_SMALL},          \
        {"integer", INPUT_INTEGER, {10007}, 0, SIZE_SMALL},                                                  \
        {"one-hot", INPUT_ONE_HOT, {999}, 0, SIZE_SMALL},                                                    \
        {"tenths", INPUT_RANDOM, {50000}, TENTHS, SIZE_SMALL},                                               \
        {"dust", INPUT_RANDOM, {50000}, DUST, SIZE_SMALL},                                                   \
        {"unaligned", INPUT_RANDOM, {1001}, UNALIGNED, SIZE_SMALL}, {                                        \
        "gpt2 layer", INPUT_RANDOM, {7077888}, 0, SIZE_LARGE                                                 \
    }

static const struct op_case sumsq_cases[] = {SUM_CASES};
OP_TEST(sumsq, (.bound = sumsq_bound, .model_cases = whole_buffer_cases), A("out"), A("inp"));

static void sum_make(struct op_instance *x) {
    add_terms(x, DTYPE_F32, 0x1p-24f);
    if (!(x->c->flags & NO_SCALE))
        op_add(x, ROLE_IN, DTYPE_F32, "scale", 1, 0, 0)->initial[0] =
            x->c->input == INPUT_INTEGER ? 2.0f : 0.37f;
    op_add(x, x->c->flags & ACCUMULATE ? ROLE_ADD : ROLE_OUT, DTYPE_F32, "out", 1, 0, 0)->exact =
        x->c->input == INPUT_INTEGER;
}
static void sum_bound(struct op_instance *x) {
    if (op_find(x, "out")->exact) return;
    double total = 0.0;
    for (int64_t i = 0; i < x->c->d[0]; i++) total += fabs((double)op_initial(x, "inp")[i]);
    if (x->c->flags & ACCUMULATE)
        op_allowed(x, "out")[0] += 2.0 * UNIT_F32 * fabs((double)op_initial(x, "out")[0]);
    op_allowed(x, "out")[0] += pairwise_error(x->c->d[0]) * total *
                               (x->c->flags & NO_SCALE ? 1.0 : (double)op_initial(x, "scale")[0]);
}

static const struct op_case sum_cases[] = {
    SUM_CASES,
    {"accumulate", INPUT_RANDOM, {300}, ACCUMULATE, SIZE_SMALL},
    {"accumulate, integer", INPUT_INTEGER, {77}, ACCUMULATE, SIZE_SMALL},
    {"no scale", INPUT_RANDOM, {300}, NO_SCALE, SIZE_SMALL},
};
OP_TEST(sum, (.bound = sum_bound), A("out"), A("inp"), A("scale"), (x->c->flags & ACCUMULATE) != 0);

/* --- cast, add_scaled, fill, randn --- */

static void cast_make(struct op_instance *x) {
    static const float special[] = {NAN,          INFINITY,   -INFINITY, 0.0f,        -0.0f,
                                    3.4e38f,      -3.4e38f,   1e-40f,    1.00390625f, 1.01171875f,
                                    -1.00390625f, 1.0039063f, 1.0117186f};
    bool down = x->c->flags & FROM_F32;
    struct operand *inp = op_add(x, ROLE_IN, down ? DTYPE_F32 : x->dtype, "inp", x->c->d[0], 0, 0);
    for (int64_t i = 0; x->c->flags & SPECIAL && i < x->c->d[0]; i++)
        inp->initial[i] = special[i % (int64_t)ARRAY_LENGTH(special)];
    op_round(inp, inp->initial);
    op_add(x, ROLE_OUT, down ? x->dtype : DTYPE_F32, "out", x->c->d[0], 0, 0)->exact = true;
}

static int cast_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"a layer", INPUT_RANDOM, {12 * m->C * m->C}, FROM_F32, SIZE_LARGE};
    return 1;
}

static const struct op_case cast_cases[] = {
    {"down", INPUT_RANDOM, {1003}, FROM_F32, SIZE_SMALL},
    {"up", INPUT_RANDOM, {1003}, 0, SIZE_SMALL},
    {"down, special", INPUT_RANDOM, {40}, FROM_F32 | SPECIAL, SIZE_SMALL},
    {"up, special", INPUT_RANDOM, {40}, SPECIAL, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1}, FROM_F32, SIZE_SMALL},
    {"vectors", INPUT_RANDOM, {2048}, FROM_F32, SIZE_SMALL},
    {"down, unaligned", INPUT_RANDOM, {200}, FROM_F32 | UNALIGNED, SIZE_SMALL},
    {"up, unaligned", INPUT_RANDOM, {200}, UNALIGNED, SIZE_SMALL},
    {"gpt2 layer", INPUT_RANDOM, {7077888}, FROM_F32, SIZE_LARGE},
};
OP_TEST(cast, (.model_cases = cast_model_cases, .converts = true), A("out"), A("inp"));

static void add_scaled_make(struct op_instance *x) {
    int64_t n = x->c->d[0];
    if (!(x->c->flags & NO_BASE)) op_fill(x, op_add(x, ROLE_IN, x->dtype, "base", n, 0, 0), 1.0);
    op_fill(x, op_add(x, ROLE_IN, x->dtype, "inp", n, 0, 0), 1.0);
    op_add(x, ROLE_OUT, x->dtype, "out", n, 0, 0)->exact = x->c->input == INPUT_INTEGER;
    if (x->c->flags & IN_PLACE) op_alias(x, "out", "base");
}
/* A product and a sum, which may be one operation. */
static void add_scaled_bound(struct op_instance *x) {
    if (x->c->input == INPUT_INTEGER) return;
    for (int64_t i = 0; i < x->c->d[0]; i++) {
        double base = x->c->flags & NO_BASE ? 0.0 : fabs((double)op_initial(x, "base")[i]);
        op_allowed(x, "out")[i] += 4.0 * UNIT_F32 * (base + 3.0 * fabs((double)op_initial(x, "inp")[i]));
    }
}
static const struct op_case add_scaled_cases[] = {
    {"odd", INPUT_RANDOM, {1003}, 0, SIZE_SMALL},
    {"integer", INPUT_INTEGER, {70}, 0, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1}, 0, SIZE_SMALL},
    {"no base", INPUT_RANDOM, {333}, NO_BASE, SIZE_SMALL},
    {"in place", INPUT_INTEGER, {2048}, IN_PLACE, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {130}, UNALIGNED, SIZE_SMALL},
    {"gpt2 layer", INPUT_RANDOM, {7077888}, 0, SIZE_LARGE},
};
OP_TEST(add_scaled, (.bound = add_scaled_bound, .model_cases = whole_buffer_cases), A("out"), A("base"),
        A("inp"), 3.0f);

static void fill_make(struct op_instance *x) {
    op_add(x, ROLE_OUT, x->dtype, "out", x->c->d[0], 0, 0)->exact = true;
}

static const struct op_case fill_cases[] = {
    {"odd", INPUT_RANDOM, {37}, 0, SIZE_SMALL},
    {"zero", INPUT_FLAT, {1000}, 0, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1}, 0, SIZE_SMALL},
    {"vectors", INPUT_RANDOM, {4096}, 0, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {130}, UNALIGNED, SIZE_SMALL},
    {"gpt2 layer", INPUT_FLAT, {7077888}, 0, SIZE_LARGE},
};
OP_TEST(fill, (.model_cases = whole_buffer_cases), A("out"), x->c->input == INPUT_FLAT ? 0.0f : -1.2345f);

static void randn_make(struct op_instance *x) { op_add(x, ROLE_OUT, x->dtype, "out", x->c->d[0], 0, 0); }

/* Of radius * cos(angle): the radius is at most sqrt(48 ln 2) = 5.8; the angle, up to 2 pi, is rounded to
 * fp32 in the same way on both sides; the functions are correct to a few units. */
static void randn_bound(struct op_instance *x) {
    for (int64_t i = 0; i < x->c->d[0]; i++) op_allowed(x, "out")[i] += 8.0 * UNIT_F32 * (0.5 + 5.8 * 0.02);
}

static const struct op_case randn_cases[] = {
    {"odd", INPUT_RANDOM, {1003}, 0, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1}, 0, SIZE_SMALL},
    {"three", INPUT_RANDOM, {3}, 0, SIZE_SMALL},
    {"vectors", INPUT_RANDOM, {2048}, 0, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {130}, UNALIGNED, SIZE_SMALL},
    {"gpt2 layer", INPUT_RANDOM, {7077888}, 0, SIZE_LARGE},
};
OP_TEST(randn, (.bound = randn_bound, .model_cases = whole_buffer_cases), A("out"), 0.5f, 0.02f, 42,
        7 | 3 << 8);
