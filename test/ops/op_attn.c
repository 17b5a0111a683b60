/* attn_forward, attn_backward. Shapes: {B, T, NH, HS, t0, NKV}; NKV = 0 stands for NH. */
#include "test/ops/op_harness.h"

#include <stdlib.h>

enum { RISING = OP_FLAG(0), LOW = OP_FLAG(1), FALLING = OP_FLAG(2) };

static int64_t kv_heads(const struct op_case *c) { return c->d[5] ? c->d[5] : c->d[2]; }
static int64_t width_of(const struct op_case *c) { return (c->d[2] + 2 * kv_heads(c)) * c->d[3]; }

/* With INPUT_LARGE, scores reach about 200, where exp without the maximum overflows. LOW: all scores are
 * near -150, where a maximum that starts at 0 makes every exp 0. RISING: keys grow along the sequence, so
 * that a running maximum changes with every tile; FALLING is the same for kernels that start at its end. */
static void fill_qkv(struct op_instance *x, struct operand *o) {
    int64_t T = x->c->d[1], HS = x->c->d[3], C = x->c->d[2] * HS, width = width_of(x->c);
    float low = sqrtf(150.0f / sqrtf((float)HS));
    op_fill(x, o, x->c->input == INPUT_LARGE ? 8.0 : 1.0);
    for (int64_t i = 0; x->c->flags & (RISING | LOW | FALLING) && i < o->count; i++) {
        int64_t t = i / width % T, column = i % width;
        if (column >= width - kv_heads(x->c) * HS) continue; /* values */
        bool query = column < C;
        if (x->c->flags & LOW)
            o->initial[i] = (query ? low : -low) + 0.1f * o->initial[i];
        else
            o->initial[i] =
                query ? 1.0f + 0.25f * o->initial[i]
                      : (float)(x->c->flags & FALLING ? T / 2 - t : t - T / 2) / (float)T * 60.0f / (float)HS;
    }
    op_round(o, o->initial);
}

/* One (batch, query head): scores, probabilities and their errors, in double. */
struct rows {
    int64_t T, HS, width;
    int64_t q_at, k_at, v_at; /* of the first elements in qkv */
    const float *q, *k, *v;   /* rows `width` apart */
    double scale;
};

static struct rows rows_of(struct op_instance *x, int64_t bh) {
    int64_t T = x->c->d[1], NH = x->c->d[2], HS = x->c->d[3], NKV = kv_heads(x->c), width = width_of(x->c);
    int64_t q = bh / NH * T * width + bh % NH * HS,
            k = bh / NH * T * width + (NH + bh % NH / (NH / NKV)) * HS;
    const float *qkv = op_initial(x, "qkv");
    return (struct rows){
        T, HS, width, q, k, k + NKV * HS, qkv + q, qkv + k, qkv + k + NKV * HS, 1.0 / sqrt((double)HS)};
}

static double dot(const float *a, const float *b, int64_t n, double *magnitude) {
    double sum = 0.0, m = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double product = (double)a[i] * (double)b[i];
        sum += product;
        m += fabs(product);
    }
    *magnitude = m;
    return sum;
}

/* Computes P[t,0..t]; returns the largest fp32 error of a score in row t, that of the sum and a rounding. */
static double probabilities(const struct rows *r, int64_t t, double *P, double *lse) {
    double max = -INFINITY, total = 0.0, error = 0.0, m;
    for (int64_t s = 0; s <= t; s++) {
        P[s] = r->scale * dot(r->q + t * r->width, r->k + s * r->width, r->HS, &m);
        max = fmax(max, P[s]);
        error = fmax(error, op_sum_error((double)r->HS) * r->scale * m);
    }
    for (int64_t s = 0; s <= t; s++) total += P[s] = exp(P[s] - max);
    for (int64_t s = 0; s <= t; s++) P[s] /= total;
    *lse = max + log(total);
    return error;
}

/* --- attn_forward --- */

static void attn_forward_make(struct op_instance *x) {
    int64_t B = x->c->d[0], T = x->c->d[1], NH = x->c->d[2], C = NH * x->c->d[3];
    enum operand_role role = x->c->d[4] > 0 ? ROLE_UPDATE : ROLE_OUT; /* rows before t0 stay as they are */
    fill_qkv(x, op_add(x, ROLE_IN, x->dtype, "qkv", B, T, width_of(x->c)));
    op_add(x, role, x->dtype, "out", B, T, C);
    op_add(x, role, DTYPE_F32, "lse", B, NH, T);
}

/* A probability has the errors of its score and of the normaliser, and is rounded to the dtype before it
 * meets v. out is off by that share of P|v|. */
static void attn_forward_bound(struct op_instance *x) {
    int64_t B = x->c->d[0], T = x->c->d[1], NH = x->c->d[2], HS = x->c->d[3], C = NH * HS, t0 = x->c->d[4];
    double *out = op_allowed(x, "out"), *lse_allowed = op_allowed(x, "lse");
#pragma omp parallel for schedule(dynamic)
    for (int64_t bh = 0; bh < B * NH; bh++) {
        struct rows r = rows_of(x, bh);
        double *P = (double *)xmalloc((size_t)T * sizeof *P), lse;
        for (int64_t t = 0; t < T; t++) {
            double *o = out + (bh / NH * T + t) * C + bh % NH * HS;
            if (t < t0) { /* unchanged, to the bit */
                for (int64_t c = 0; c < HS; c++) o[c] = 0.0;
                lse_allowed[bh * T + t] = 0.0;
                continue;
            }
            double score = probabilities(&r, t, P, &lse), e = op_sum_error((double)(t + 1));
            lse_allowed[bh * T + t] += 2.0 * score + e + 4.0 * UNIT_F32 * fabs(lse);
            for (int64_t s = 0; s <= t; s++) {
                double share =
                    P[s] * (2.0 * score + e + 4.0 * UNIT_F32 * fabs(log(P[s] + 1e-300)) + 2.0 * x->unit);
                for (int64_t c = 0; c < HS; c++) o[c] += share * fabs((double)r.v[s * r.width + c]);
            }
        }
        free(P);
    }
}

static int attn_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B, m->T, m->NH, m->C / m->NH, 0}, 0, SIZE_LARGE};
    return 1;
}

/* Lengths around the 64 rows of a warpgroup and the 128 of a tile, several tiles per block, rings that wrap
 * around. */
#define HOPPER_CASE(name, flags, ...)                                                                        \
    { name, INPUT_RANDOM, {__VA_ARGS__}, flags, SIZE_SMALL, "hopper" }
#define HOPPER_CASES                                                                                         \
    HOPPER_CASE("one position", 0, 2, 1, 1, 64), HOPPER_CASE("a row short", 0, 1, 63, 1, 128),               \
        HOPPER_CASE("short, many heads", 0, 3, 40, 3, 64),                                                   \
        HOPPER_CASE("second warpgroup", 0, 2, 65, 1, 128),                                                   \
        HOPPER_CASE("a row short of a tile", 0, 1, 127, 1, 64), HOPPER_CASE("a tile", 0, 1, 128, 2, 128),    \
        HOPPER_CASE("a row more", 0, 2, 129, 1, 64), HOPPER_CASE("head 64", EVERYWHERE, 1, 200, 1, 64),      \
        HOPPER_CASE("head 128", 0, 2, 256, 1, 128), HOPPER_CASE("many tiles", 0, 2, 385, 2, 64),             \
        HOPPER_CASE("many falling tiles", FALLING, 1, 300, 2, 64),                                           \
        HOPPER_CASE("falling, head 128", FALLING | EVERYWHERE, 1, 257, 1, 128)

#define ATTN_CASES                                                                                           \
    {"odd", INPUT_RANDOM, {2, 5, 2, 3}, 0, SIZE_SMALL}, {"one", INPUT_RANDOM, {1, 1, 1, 1}, 0, SIZE_SMALL},  \
        {"one position", INPUT_RANDOM, {3, 1, 2, 8}, 0, SIZE_SMALL},                                         \
        {"head 16", INPUT_RANDOM, {2, 19, 3, 16}, 0, SIZE_SMALL},                                            \
        {"head 64, a tile", INPUT_RANDOM, {1, 64, 1, 64}, 0, SIZE_SMALL},                                    \
        {"head 64, a row over", INPUT_RANDOM, {1, 65, 2, 64}, 0, SIZE_SMALL},                                \
        {"head 64, two tiles", INPUT_RANDOM, {1, 131, 1, 64}, 0, SIZE_SMALL},                                \
        {"head 128", INPUT_RANDOM, {1, 33, 1, 128}, 0, SIZE_SMALL},                                          \
        {"head 80", INPUT_RANDOM, {1, 21, 2, 80}, 0, SIZE_SMALL},                                            \
        {"head 32", INPUT_RANDOM, {1, 40, 1, 32}, 0, SIZE_SMALL},                                            \
        {"head 48", INPUT_RANDOM, {1, 40, 1, 48}, 0, SIZE_SMALL},                                            \
        {"head 96", INPUT_RANDOM, {1, 40, 1, 96}, 0, SIZE_SMALL},                                            \
        {"head 112", INPUT_RANDOM, {1, 40, 1, 112}, 0, SIZE_SMALL},                                          \
        {"head 128, two tiles", INPUT_RANDOM, {1, 70, 1, 128}, 0, SIZE_SMALL},                               \
        {"head 300", INPUT_RANDOM, {1, 9, 1, 300}, 0, SIZE_SMALL},                                           \
        {"large", INPUT_LARGE, {1, 40, 2, 16}, 0, SIZE_SMALL},                                               \
        {"large, head 64", INPUT_LARGE, {1, 70, 1, 64}, 0, SIZE_SMALL},                                      \
        {"tiny", INPUT_TINY, {1, 40, 2, 16}, 0, SIZE_SMALL},                                                 \
        {"equal positions", INPUT_EQUAL, {1, 40, 2, 16}, 0, SIZE_SMALL},                                     \
        {"one-hot", INPUT_ONE_HOT, {1, 40, 2, 16}, 0, SIZE_SMALL},                                           \
        {"rising", INPUT_RANDOM, {1, 100, 1, 64}, RISING, SIZE_SMALL},                                       \
        {"low", INPUT_RANDOM, {1, 40, 2, 16}, LOW, SIZE_SMALL},                                              \
        {"low, head 64", INPUT_RANDOM, {1, 70, 1, 64}, LOW, SIZE_SMALL},                                     \
        {"grouped", INPUT_RANDOM, {1, 5, 4, 3, 0, 2}, 0, SIZE_SMALL},                                        \
        {"one head of keys", INPUT_RANDOM, {2, 37, 3, 16, 0, 1}, 0, SIZE_SMALL},                             \
        {"grouped, head 64", INPUT_RANDOM, {1, 131, 4, 64, 0, 2}, 0, SIZE_SMALL},                            \
        {"grouped, head 128", INPUT_RANDOM, {2, 40, 6, 128, 0, 2}, 0, SIZE_SMALL},                           \
        {"grouped, head 300", INPUT_RANDOM, {1, 9, 2, 300, 0, 1}, 0, SIZE_SMALL},                            \
        {"grouped, large", INPUT_LARGE, {1, 70, 4, 32, 0, 1}, 0, SIZE_SMALL},                                \
        {"grouped, rising", INPUT_RANDOM, {1, 100, 2, 64, 0, 1}, RISING, SIZE_SMALL},                        \
        {"unaligned", INPUT_RANDOM, {1, 20, 2, 16}, UNALIGNED, SIZE_SMALL}, HOPPER_CASES,                    \
        {"gpt2", INPUT_RANDOM, {2, 1024, 12, 64}, 0, SIZE_LARGE}, {                                          \
        "gpt2-xl", INPUT_LARGE, {1, 515, 25, 64}, 0, SIZE_LARGE                                              \
    }

static const struct op_case attn_forward_cases[] = {
    ATTN_CASES,
    {"from the cache", INPUT_RANDOM, {1, 21, 2, 16, 20}, 0, SIZE_SMALL},
    {"a row", INPUT_RANDOM, {1, 200, 2, 64, 199}, 0, SIZE_SMALL},
    {"a row, large", INPUT_LARGE, {1, 150, 1, 64, 149}, 0, SIZE_SMALL},
    {"a row, rising", INPUT_RANDOM, {1, 130, 1, 64, 129}, RISING, SIZE_SMALL},
    {"a row, low", INPUT_RANDOM, {1, 70, 1, 32, 69}, LOW, SIZE_SMALL},
    {"a row, head 128", INPUT_RANDOM, {1, 65, 1, 128, 64}, 0, SIZE_SMALL},
    {"a row of several", INPUT_RANDOM, {3, 67, 2, 8, 66}, 0, SIZE_SMALL},
    {"a row, grouped", INPUT_RANDOM, {2, 130, 6, 64, 129, 2}, 0, SIZE_SMALL},
    {"a row, one head of keys", INPUT_LARGE, {1, 90, 4, 16, 89, 1}, 0, SIZE_SMALL},
    {"span from the cache, grouped", INPUT_RANDOM, {1, 70, 4, 64, 37, 2}, 0, SIZE_SMALL},
    {"a row of many heads", INPUT_RANDOM, {1, 3, 65, 8, 2}, 0, SIZE_SMALL},
    {"a row, long", INPUT_RANDOM, {1, 8900, 1, 8, 8899}, 0, SIZE_SMALL},
    {"gpt2, a row", INPUT_RANDOM, {1, 1024, 12, 64, 1023}, 0, SIZE_LARGE},
    {"span from the cache", INPUT_RANDOM, {1, 70, 1, 64, 37}, 0, SIZE_SMALL},
    {"span from the cache, odd", INPUT_RANDOM, {2, 11, 2, 3, 4}, 0, SIZE_SMALL},
};
OP_TEST(attn_forward, (.bound = attn_forward_bound, .model_cases = attn_model_cases), A("out"), A("lse"),
        A("qkv"), (int)x->c->d[2], (int)kv_heads(x->c), (int)x->c->d[4]);

/* --- attn_backward --- */

static void attn_backward_make(struct op_instance *x) {
    int64_t B = x->c->d[0], T = x->c->d[1], NH = x->c->d[2], C = NH * x->c->d[3];
    struct operand *qkv = op_add(x, ROLE_IN, x->dtype, "qkv", B, T, width_of(x->c));
    fill_qkv(x, qkv);
    struct operand *dout = op_add(x, ROLE_IN, x->dtype, "dout", B, T, C);
    if (x->c->input != INPUT_TINY) op_fill_normal(x, dout, 0.0, 1.0);
    struct operand *out = op_add(x, ROLE_IN, x->dtype, "out", B, T, C);
    struct operand *lse = op_add(x, ROLE_IN, DTYPE_F32, "lse", B, NH, T);
    out->reference.data = out->initial;
    lse->reference.data = lse->initial;
    qkv->reference.data = qkv->initial;
    attn_forward(&x->reference, &out->reference, &lse->reference, &qkv->reference, (int)NH,
                 (int)kv_heads(x->c), 0);
    op_round(out, out->initial);
    op_add(x, ROLE_OUT, x->dtype, "dqkv", B, T, width_of(x->c));
}

/* P = exp(S - lse) has the error of S and the roundings of S and lse; dP - D those of two dot products. P
 * and dS are rounded to the dtype before the last products, which are sums of up to T terms for each query
 * head that shares the head of keys. */
static void attn_backward_bound(struct op_instance *x) {
    int64_t B = x->c->d[0], T = x->c->d[1], NH = x->c->d[2], HS = x->c->d[3], C = NH * HS,
            NKV = kv_heads(x->c);
    const float *dout = op_initial(x, "dout"), *out = op_initial(x, "out");
    double *dqkv = op_allowed(x, "dqkv"), e = op_sum_error((double)(T * NH / NKV)),
           dots = op_sum_error((double)HS);
#pragma omp parallel for schedule(dynamic)
    for (int64_t shared = 0; shared < B * NKV; shared++)
        for (int64_t bh = shared * NH / NKV; bh < (shared + 1) * NH / NKV; bh++) {
            struct rows r = rows_of(x, bh);
            double *P = (double *)xmalloc((size_t)T * sizeof *P), lse, m, m_D;
            for (int64_t t = 0; t < T; t++) {
                int64_t at = (bh / NH * T + t) * C + bh % NH * HS;
                const float *d = dout + at, *q = r.q + t * r.width;
                double score = probabilities(&r, t, P, &lse), D = dot(out + at, d, HS, &m_D);
                for (int64_t s = 0; s <= t; s++) {
                    double relative =
                        2.0 * score + 4.0 * UNIT_F32 * (fabs(lse) + fabs(log(P[s] + 1e-300))) + e;
                    double dP = dot(d, r.v + s * r.width, HS, &m);
                    double dS =
                        r.scale * P[s] * (fabs(dP - D) * (relative + 2.0 * x->unit) + dots * (m + m_D));
                    double p = P[s] * (relative + 2.0 * x->unit);
                    for (int64_t c = 0; c < HS; c++) {
                        dqkv[r.q_at + t * r.width + c] += dS * fabs((double)r.k[s * r.width + c]);
                        dqkv[r.k_at + s * r.width + c] += dS * fabs((double)q[c]);
                        dqkv[r.v_at + s * r.width + c] += p * fabs((double)d[c]);
                    }
                }
            }
            free(P);
        }
}

static const struct op_case attn_backward_cases[] = {ATTN_CASES};
OP_TEST(attn_backward, (.bound = attn_backward_bound, .model_cases = attn_model_cases), A("dqkv"), A("dout"),
        A("out"), A("lse"), A("qkv"), (int)x->c->d[2], (int)kv_heads(x->c));
