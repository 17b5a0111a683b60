/* attn_forward, attn_backward. Shapes: {B, T, NH, HS, t0, NKV}; NKV = 0 stands for NH. */
#include "test/ops/op_harness.h"

#include <stdlib.h>

enum { RISING = OP_FLAG(0), LOW = OP_FLAG(1), FALLING = OP_FLAG(2), SOFTCAP = OP_FLAG(3), DROP = OP_FLAG(4) };

/* The rule of a case stands in its flags. Documents have random lengths, or n tokens each. */
#define SCORE(score)       ((unsigned)(score) << 8)
#define MASK(mask)         ((unsigned)(mask) << 11)
#define DOCUMENTS          (1u << 14)
#define WINDOW(n)          (MASK(ATTN_WINDOW) | (unsigned)(n) << 16)
#define EQUAL_DOCUMENTS(n) (DOCUMENTS | (unsigned)(n) << 24)

static int64_t kv_heads(const struct op_case *c) { return c->d[5] ? c->d[5] : c->d[2]; }

static struct attn_rule rule_of(const struct op_case *c) {
    return (struct attn_rule){(int)c->d[2],
                              (int)kv_heads(c),
                              (enum attn_score)(c->flags >> 8 & 7),
                              (enum attn_mask)(c->flags >> 11 & 7),
                              (int)(c->flags >> 16 & 255),
                              c->flags & SOFTCAP ? 1.5f : 0.0f};
}

/* With the tensors of the running side, or NULL. */
static const struct attn_rule *rule_with(const struct op_case *c, const struct tensor *samples,
                                         const struct tensor *first, struct attn_rule *rule,
                                         struct dropout_rule *d) {
    *rule = rule_of(c);
    *d = (struct dropout_rule){0.3f, 17, 5, samples};
    if (samples) rule->dropout = d;
    rule->first = first;
    return rule;
}
#define RULE                                                                                                 \
    rule_with(x->c, A("samples"), A("first"), (struct attn_rule[1]){{0}}, (struct dropout_rule[1]){{0}})

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

/* Documents of random lengths, some of a single token, about three in a sequence; or of equal lengths, of
 * which the first one of each further sequence lacks a token more. */
static void fill_documents(struct op_instance *x, struct operand *o) {
    int64_t T = x->c->d[1], equal = x->c->flags >> 24;
    op_fill_index(x, o, 0, T / 3 + 1);
    for (int64_t i = 0; i < o->count; i++) {
        bool begins = i % T == 0 || (equal ? (i % T + i / T) % equal == 0 : o->initial[i] == 0.0f);
        o->initial[i] = begins ? (float)(i % T) : o->initial[i - 1];
    }
}

/* Some prefixes end beyond the sequence. */
static void add_indices(struct op_instance *x) {
    if (x->c->flags & DOCUMENTS)
        fill_documents(x, op_add(x, ROLE_IN, DTYPE_I32, "first", x->c->d[0], x->c->d[1], 0));
    if (x->c->flags & DROP)
        op_fill_index(x, op_add(x, ROLE_IN, DTYPE_I32, "samples", x->c->d[0], 0, 0), 0, 1000);
    if (rule_of(x->c).mask != ATTN_PREFIX) return;
    op_fill_index(x, op_add(x, ROLE_IN, DTYPE_I32, "prefix", x->c->d[0], 0, 0), 0, x->c->d[1] + 3);
}

/* One (batch, query head): scores, probabilities and their errors, in double. */
struct rows {
    struct attn_rule rule;
    int64_t T, HS, width, prefix;
    int64_t q_at, k_at, v_at; /* of the first elements in qkv */
    const float *q, *k, *v;   /* rows `width` apart */
    double scale;
    bool drops;
    int64_t head;
    struct dropout_key key;
    const float *first; /* (T), or NULL */
};

static struct rows rows_of(struct op_instance *x, int64_t bh) {
    int64_t T = x->c->d[1], NH = x->c->d[2], HS = x->c->d[3], NKV = kv_heads(x->c), width = width_of(x->c);
    int64_t q = bh / NH * T * width + bh % NH * HS,
            k = bh / NH * T * width + (NH + bh % NH / (NH / NKV)) * HS;
    const float *qkv = op_initial(x, "qkv");
    struct attn_rule rule = rule_of(x->c);
    return (struct rows){rule,
                         T,
                         HS,
                         width,
                         rule.mask == ATTN_PREFIX ? (int64_t)op_initial(x, "prefix")[bh / NH] : 0,
                         q,
                         k,
                         k + NKV * HS,
                         qkv + q,
                         qkv + k,
                         qkv + k + NKV * HS,
                         1.0 / sqrt((double)HS),
                         x->c->flags & DROP,
                         bh % NH,
                         x->c->flags & DROP
                             ? dropout_key_of(0.3f, 17, 5, (int32_t)op_initial(x, "samples")[bh / NH])
                             : (struct dropout_key){0},
                         x->c->flags & DOCUMENTS ? op_initial(x, "first") + bh / NH * T : NULL};
}

/* What the weight of query t and key s is multiplied with. */
static double factor_of(const struct rows *r, int64_t t, int64_t s) {
    return r->drops ? (double)dropout_factor(r->key, (r->head * r->T + t) * r->T + s) : 1.0;
}

static struct attn_range keys_of(const struct rows *r, int64_t t) {
    struct attn_range keys = attn_keys(r->rule, r->prefix, r->T, t);
    if (r->first) keys.first = max_i64(keys.first, (int64_t)r->first[t]);
    return keys;
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

/* A query and a key: a value, and its error in fp32. The score's gradient is slope * k + own_q * q for q, and
 * slope * q + own_k * k for k. */
struct number {
    double value, error;
};
struct pair {
    double P;
    struct number score, slope, own_q, own_k;
};

static struct pair pair_of(const struct rows *r, const float *q, const float *k) {
    double m, qq, kk, x = dot(q, k, r->HS, &m), e = op_sum_error((double)r->HS), scale = r->scale;
    (void)dot(q, q, r->HS, &qq);
    (void)dot(k, k, r->HS, &kk);
    double a = qq + 1e-6, b = kk + 1e-6, cosine = 1.0 / (sqrt(a * b) * scale), s = scale * x;
    switch (r->rule.score) {
    case ATTN_DOT:
        return (struct pair){0.0, {x, e * m}, {1.0, 0.0}, {0}, {0}};
    case ATTN_COSINE:
        return (struct pair){0.0,
                             {x * cosine, e * (m + 2.0 * fabs(x)) * cosine},
                             {cosine, 2.0 * e * cosine},
                             {-x * cosine / a, e * (m + 4.0 * fabs(x)) * cosine / a},
                             {-x * cosine / b, e * (m + 4.0 * fabs(x)) * cosine / b}};
    case ATTN_L2:
        return (struct pair){0.0,
                             {scale * (2.0 * x - qq - kk), e * scale * (2.0 * m + qq + kk)},
                             {2.0 * scale, 0.0},
                             {-2.0 * scale, 0.0},
                             {-2.0 * scale, 0.0}};
    case ATTN_DOT2:
        return (struct pair){0.0,
                             {s * s, 2.0 * e * scale * m * (fabs(s) + e * scale * m)},
                             {2.0 * scale * s, 2.0 * e * scale * scale * m},
                             {0},
                             {0}};
    default:
        return (struct pair){0.0, {s, e * scale * m}, {scale, 0.0}, {0}, {0}};
    }
}

/* The score is bent, and everything in its gradient is multiplied by the slope of that. */
static void bend(struct pair *p, double cap) {
    double y = tanh(p->score.value / cap), slope = 1.0 - y * y;
    double error = 2.0 / cap * p->score.error + 16.0 * UNIT_F32;
    struct number *gradient[] = {&p->slope, &p->own_q, &p->own_k};
    p->score.value = cap * y;
    p->score.error += 16.0 * UNIT_F32 * cap;
    for (int i = 0; i < 3; i++) {
        gradient[i]->error = slope * gradient[i]->error + error * fabs(gradient[i]->value);
        gradient[i]->value *= slope;
    }
}

/* Fills the pairs of query t with the keys that it sees; returns the largest fp32 error of a score, that of
 * the sum and a rounding. */
static double probabilities(const struct rows *r, int64_t t, struct pair *pairs, double *lse) {
    double max = -INFINITY, total = 0.0, error = 0.0;
    struct attn_range keys = keys_of(r, t);
    for (int64_t s = keys.first; s < keys.end; s++) {
        pairs[s] = pair_of(r, r->q + t * r->width, r->k + s * r->width);
        if (r->rule.softcap > 0.0f) bend(&pairs[s], (double)r->rule.softcap);
        max = fmax(max, pairs[s].score.value);
        error = fmax(error, pairs[s].score.error);
    }
    for (int64_t s = keys.first; s < keys.end; s++) total += pairs[s].P = exp(pairs[s].score.value - max);
    for (int64_t s = keys.first; s < keys.end; s++) pairs[s].P /= total;
    *lse = max + log(total);
    return error;
}

/* --- attn_forward --- */

static void attn_forward_make(struct op_instance *x) {
    int64_t B = x->c->d[0], T = x->c->d[1], NH = x->c->d[2], C = NH * x->c->d[3];
    enum operand_role role = x->c->d[4] > 0 ? ROLE_UPDATE : ROLE_OUT; /* rows before t0 stay as they are */
    fill_qkv(x, op_add(x, ROLE_IN, x->dtype, "qkv", B, T, width_of(x->c)));
    add_indices(x);
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
        struct pair *pairs = (struct pair *)xmalloc((size_t)T * sizeof *pairs);
        for (int64_t t = 0; t < T; t++) {
            double lse, *o = out + (bh / NH * T + t) * C + bh % NH * HS;
            if (t < t0) { /* unchanged, to the bit */
                for (int64_t c = 0; c < HS; c++) o[c] = 0.0;
                lse_allowed[bh * T + t] = 0.0;
                continue;
            }
            struct attn_range keys = keys_of(&r, t);
            double score = probabilities(&r, t, pairs, &lse);
            double e = op_sum_error((double)(keys.end - keys.first));
            lse_allowed[bh * T + t] += 2.0 * score + e + 4.0 * UNIT_F32 * fabs(lse);
            for (int64_t s = keys.first; s < keys.end; s++) {
                double P = pairs[s].P,
                       share = factor_of(&r, t, s) * P *
                               (2.0 * score + e + 4.0 * UNIT_F32 * fabs(log(P + 1e-300)) + 2.0 * x->unit);
                for (int64_t c = 0; c < HS; c++) o[c] += share * fabs((double)r.v[s * r.width + c]);
            }
        }
        free(pairs);
    }
}

static int attn_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B, m->T, m->NH, m->C / m->NH, 0}, 0, SIZE_LARGE};
    return 1;
}

/* Lengths around the 64 rows of a warpgroup and the 128 of a tile, several tiles per block, rings that wrap
 * around. Windows and documents around the same; with documents of 192, the keys of one warpgroup are seen
 * three steps longer than those of the other. */
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
        HOPPER_CASE("falling, head 128", FALLING | EVERYWHERE, 1, 257, 1, 128),                              \
        HOPPER_CASE("window of 1", WINDOW(1), 1, 200, 1, 64),                                                \
        HOPPER_CASE("window of 63", WINDOW(63) | EVERYWHERE, 2, 300, 1, 64),                                 \
        HOPPER_CASE("window of 65", WINDOW(65), 1, 270, 1, 128),                                             \
        HOPPER_CASE("window of 128", WINDOW(128), 1, 400, 2, 64),                                            \
        HOPPER_CASE("window of 130", WINDOW(130), 1, 400, 1, 128),                                           \
        HOPPER_CASE("window of the sequence", WINDOW(131), 1, 131, 1, 64),                                   \
        HOPPER_CASE("window of 100, falling", WINDOW(100) | FALLING, 1, 300, 1, 64),                         \
        HOPPER_CASE("documents of 128", EQUAL_DOCUMENTS(128), 2, 400, 1, 64),                                \
        HOPPER_CASE("documents of 64", EQUAL_DOCUMENTS(64), 2, 270, 1, 128),                                 \
        HOPPER_CASE("documents of 65", EQUAL_DOCUMENTS(65) | EVERYWHERE, 1, 270, 2, 64),                     \
        HOPPER_CASE("documents of 192", EQUAL_DOCUMENTS(192), 1, 384, 1, 128),                               \
        HOPPER_CASE("documents of 1", EQUAL_DOCUMENTS(1), 1, 130, 1, 128),                                   \
        HOPPER_CASE("documents of any length", DOCUMENTS, 3, 300, 2, 64),                                    \
        HOPPER_CASE("documents of 150, window of 90", EQUAL_DOCUMENTS(150) | WINDOW(90), 2, 400, 1, 128),    \
        HOPPER_CASE("grouped by 2", 0, 2, 200, 4, 64, 0, 2),                                                 \
        HOPPER_CASE("grouped by 3, head 128", 0, 2, 130, 6, 128, 0, 2),                                      \
        HOPPER_CASE("one head of keys, falling", FALLING, 1, 300, 3, 64, 0, 1),                              \
        HOPPER_CASE("grouped, a row short", EVERYWHERE, 3, 63, 4, 128, 0, 2),                                \
        HOPPER_CASE("grouped, window of 65", WINDOW(65), 1, 270, 4, 64, 0, 2),                               \
        HOPPER_CASE("grouped, window of 130", WINDOW(130), 1, 400, 2, 128, 0, 1),                            \
        HOPPER_CASE("grouped, documents of 64", EQUAL_DOCUMENTS(64), 2, 270, 2, 128, 0, 1),                  \
        HOPPER_CASE("grouped, documents, window of 90", DOCUMENTS | WINDOW(90), 3, 300, 4, 64, 0, 2)

/* Every score, every mask, and pairs of them; more than one tile of any kernel, and heads that share. Small
 * ones are for finite differences. */
#define RULE_CASE(name, rule, ...)                                                                           \
    { name, INPUT_RANDOM, {__VA_ARGS__}, rule, SIZE_SMALL }
#define SMALL_RULE(name, rule)                                                                               \
    RULE_CASE(name ", small", rule, 1, 5, 4, 3, 0, 2), RULE_CASE(name ", long", rule, 1, 22, 1, 3),          \
        RULE_CASE(name ", grouped", rule, 3, 37, 4, 8, 0, 2),                                                \
        RULE_CASE(name ", head 64", rule, 2, 70, 2, 64)
#define RULE_CASES                                                                                           \
    SMALL_RULE("dot", SCORE(ATTN_DOT)), SMALL_RULE("cosine", SCORE(ATTN_COSINE)),                            \
        SMALL_RULE("l2", SCORE(ATTN_L2)), SMALL_RULE("dot2", SCORE(ATTN_DOT2)),                              \
        SMALL_RULE("anti-causal", MASK(ATTN_ANTI_CAUSAL)), SMALL_RULE("full", MASK(ATTN_FULL)),              \
        SMALL_RULE("window", WINDOW(4)), SMALL_RULE("prefix", MASK(ATTN_PREFIX)),                            \
        SMALL_RULE("softcap", SOFTCAP), SMALL_RULE("l2, softcap", SOFTCAP | SCORE(ATTN_L2)),                 \
        SMALL_RULE("cosine, window, softcap", SOFTCAP | SCORE(ATTN_COSINE) | WINDOW(3)),                     \
        SMALL_RULE("dot2, full, softcap", SOFTCAP | SCORE(ATTN_DOT2) | MASK(ATTN_FULL)),                     \
        SMALL_RULE("documents", DOCUMENTS),                                                                  \
        SMALL_RULE("documents, l2, window, softcap", DOCUMENTS | SCORE(ATTN_L2) | WINDOW(6) | SOFTCAP),      \
        {"documents, many tiles", INPUT_RANDOM, {2, 200, 2, 64}, DOCUMENTS, SIZE_MEDIUM},                    \
        RULE_CASE("documents, cosine, dropout", DOCUMENTS | SCORE(ATTN_COSINE) | DROP, 2, 60, 4, 16, 0, 2),  \
        SMALL_RULE("dropout", DROP), SMALL_RULE("dropout, l2, window", DROP | SCORE(ATTN_L2) | WINDOW(5)),   \
        RULE_CASE("window of one", WINDOW(1), 1, 40, 2, 16),                                                 \
        RULE_CASE("wide window", WINDOW(50), 1, 40, 2, 16),                                                  \
        RULE_CASE("window, many tiles", WINDOW(37), 1, 150, 1, 64),                                          \
        RULE_CASE("l2, anti-causal", SCORE(ATTN_L2) | MASK(ATTN_ANTI_CAUSAL), 1, 40, 2, 16),                 \
        RULE_CASE("cosine, prefix", SCORE(ATTN_COSINE) | MASK(ATTN_PREFIX), 3, 40, 2, 16),                   \
        RULE_CASE("cosine, head 300", SCORE(ATTN_COSINE), 1, 9, 2, 300, 0, 1),                               \
        {"full, low", INPUT_RANDOM, {1, 40, 2, 16}, LOW | MASK(ATTN_FULL), SIZE_SMALL}, {                    \
        "softcap, large", INPUT_LARGE, {1, 40, 2, 16}, SOFTCAP, SIZE_SMALL                                   \
    }

/* Windows of a tile of keys, one less and one more; masks whose tiles are cut on both sides, or on none. */
#define FLASH_CASE(name, rule, ...)                                                                          \
    { name, INPUT_RANDOM, {__VA_ARGS__}, rule, SIZE_SMALL, "flash" }
#define FLASH_CASES                                                                                          \
    FLASH_CASE("window, itself alone", WINDOW(1), 1, 130, 1, 64),                                            \
        FLASH_CASE("window, less than a tile", WINDOW(63), 1, 200, 1, 64),                                   \
        FLASH_CASE("window, a tile", WINDOW(64), 1, 200, 1, 64),                                             \
        FLASH_CASE("window, more than a tile", WINDOW(65), 2, 200, 1, 64),                                   \
        FLASH_CASE("window, up to the last key of a tile", WINDOW(66), 1, 200, 1, 64),                       \
        FLASH_CASE("window, head 128", WINDOW(33), 1, 150, 1, 128),                                          \
        FLASH_CASE("window, head 128, several tiles", WINDOW(100), 1, 230, 1, 128),                          \
        FLASH_CASE("window, as long as the sequence", WINDOW(131), 1, 131, 1, 64),                           \
        FLASH_CASE("window, grouped, tiles", WINDOW(50), 2, 200, 4, 16, 0, 2),                               \
        FLASH_CASE("softcap, tiles", SOFTCAP, 1, 131, 2, 64),                                                \
        FLASH_CASE("softcap, window, grouped", SOFTCAP | WINDOW(66), 1, 200, 2, 128, 0, 1),                  \
        FLASH_CASE("softcap, full", SOFTCAP | MASK(ATTN_FULL), 1, 70, 2, 16),                                \
        FLASH_CASE("full, a key more than tiles", MASK(ATTN_FULL), 1, 129, 2, 64),                           \
        FLASH_CASE("full, grouped, head 128", MASK(ATTN_FULL), 1, 100, 4, 128, 0, 2),                        \
        FLASH_CASE("anti-causal, tiles", MASK(ATTN_ANTI_CAUSAL), 1, 200, 1, 64),                             \
        FLASH_CASE("prefix, tiles", MASK(ATTN_PREFIX), 4, 140, 2, 32), DOCUMENT_CASES

/* Documents that begin where a tile does (64 or 128 queries, 64 or 32 keys), before and after; single tokens;
 * with every head size. */
#define DOCUMENT_CASES                                                                                       \
    FLASH_CASE("documents, tiles", EQUAL_DOCUMENTS(128), 2, 300, 1, 64),                                     \
        FLASH_CASE("documents, a step", EQUAL_DOCUMENTS(64), 2, 270, 2, 64, 0, 1),                           \
        FLASH_CASE("documents, less than a step", EQUAL_DOCUMENTS(63), 1, 200, 1, 64),                       \
        FLASH_CASE("documents, more than a step", EQUAL_DOCUMENTS(65), 1, 270, 1, 16),                       \
        FLASH_CASE("documents, a step, head 128", EQUAL_DOCUMENTS(32), 2, 150, 1, 128),                      \
        FLASH_CASE("documents, single tokens", EQUAL_DOCUMENTS(1), 1, 130, 1, 64),                           \
        FLASH_CASE("documents, window", EQUAL_DOCUMENTS(100) | WINDOW(70), 2, 270, 2, 64, 0, 1),             \
        FLASH_CASE("documents, softcap", DOCUMENTS | SOFTCAP, 2, 150, 2, 64),                                \
        FLASH_CASE("documents, softcap, window", DOCUMENTS | SOFTCAP | WINDOW(40), 1, 150, 2, 96, 0, 1),     \
        FLASH_CASE("documents, grouped", DOCUMENTS, 3, 140, 6, 32, 0, 2),                                    \
        FLASH_CASE("documents, head 48", DOCUMENTS, 2, 100, 1, 48),                                          \
        FLASH_CASE("documents, head 80", DOCUMENTS, 2, 100, 1, 80),                                          \
        FLASH_CASE("documents, head 112", DOCUMENTS, 2, 100, 1, 112),                                        \
        FLASH_CASE("documents, head 128", DOCUMENTS, 2, 150, 2, 128, 0, 1)

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
        {"unaligned", INPUT_RANDOM, {1, 20, 2, 16}, UNALIGNED, SIZE_SMALL}, HOPPER_CASES, RULE_CASES,        \
        FLASH_CASES, {"gpt2", INPUT_RANDOM, {2, 1024, 12, 64}, 0, SIZE_LARGE}, {                             \
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
    {"a row, window", INPUT_RANDOM, {1, 130, 2, 64, 129}, WINDOW(50), SIZE_SMALL},
    {"a row, l2, softcap", INPUT_RANDOM, {1, 70, 4, 8, 69, 2}, SOFTCAP | SCORE(ATTN_L2), SIZE_SMALL},
    {"a row, cosine", INPUT_RANDOM, {1, 70, 2, 16, 69}, SCORE(ATTN_COSINE), SIZE_SMALL},
    {"a row, dot2", INPUT_RANDOM, {1, 70, 2, 16, 69}, SCORE(ATTN_DOT2), SIZE_SMALL},
    {"a row, anti-causal", INPUT_RANDOM, {1, 20, 2, 16, 19}, MASK(ATTN_ANTI_CAUSAL), SIZE_SMALL},
    {"a row, dropout", INPUT_RANDOM, {2, 30, 4, 8, 29, 2}, DROP, SIZE_SMALL},
    {"a row, documents", INPUT_RANDOM, {3, 50, 2, 16, 49}, DOCUMENTS, SIZE_SMALL},
    {"span, documents", INPUT_RANDOM, {2, 90, 2, 16, 37}, DOCUMENTS, SIZE_SMALL},
    {"span, documents, tiles", INPUT_RANDOM, {2, 200, 1, 64, 70}, EQUAL_DOCUMENTS(50), SIZE_SMALL, "flash"},
    {"span, window", INPUT_RANDOM, {1, 90, 2, 16, 37}, WINDOW(20), SIZE_SMALL},
    {"span, window, tiles", INPUT_RANDOM, {1, 200, 2, 64, 37}, WINDOW(70), SIZE_SMALL, "flash"},
    {"span, full, tiles", INPUT_RANDOM, {1, 150, 1, 64, 70}, MASK(ATTN_FULL), SIZE_SMALL, "flash"},
    {"span, prefix, cosine",
     INPUT_RANDOM,
     {2, 40, 2, 16, 13},
     MASK(ATTN_PREFIX) | SCORE(ATTN_COSINE),
     SIZE_SMALL},
};
OP_TEST(attn_forward, (.bound = attn_forward_bound, .model_cases = attn_model_cases), A("out"), A("lse"),
        A("qkv"), A("prefix"), RULE, (int)x->c->d[4]);

/* --- attn_backward --- */

/* An operand of integers before the tensors of the reference have memory; NULL if the case has none. */
static struct tensor *initial_index(struct op_instance *x, const char *name, struct tensor *t) {
    struct operand *o = op_find(x, name);
    if (!o) return NULL;
    *t = op_temporary(x, o->count, 0, 0);
    t->dtype = DTYPE_I32;
    for (int64_t i = 0; i < o->count; i++) i32(t)[i] = (int32_t)o->initial[i];
    return t;
}

static void attn_backward_make(struct op_instance *x) {
    int64_t B = x->c->d[0], T = x->c->d[1], NH = x->c->d[2], C = NH * x->c->d[3];
    struct operand *qkv = op_add(x, ROLE_IN, x->dtype, "qkv", B, T, width_of(x->c));
    fill_qkv(x, qkv);
    add_indices(x);
    struct operand *dout = op_add(x, ROLE_IN, x->dtype, "dout", B, T, C);
    if (x->c->input != INPUT_TINY) op_fill_normal(x, dout, 0.0, 1.0);
    struct operand *out = op_add(x, ROLE_IN, x->dtype, "out", B, T, C);
    struct operand *lse = op_add(x, ROLE_IN, DTYPE_F32, "lse", B, NH, T);
    out->reference.data = out->initial;
    lse->reference.data = lse->initial;
    qkv->reference.data = qkv->initial;
    struct tensor prefix, samples, first, *p = initial_index(x, "prefix", &prefix),
                                          *s = initial_index(x, "samples", &samples),
                                          *f = initial_index(x, "first", &first);
    attn_forward(&x->reference, &out->reference, &lse->reference, &qkv->reference, p,
                 rule_with(x->c, s, f, (struct attn_rule[1]){{0}}, (struct dropout_rule[1]){{0}}), 0);
    op_round(out, out->initial);
    op_add(x, ROLE_OUT, x->dtype, "dqkv", B, T, width_of(x->c));
}

/* The error of a number times dS, whose size and error are known. */
static double of_product(struct number x, double dS, double error) {
    return fabs(x.value) * error + x.error * (dS + error);
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
            struct pair *pairs = (struct pair *)xmalloc((size_t)T * sizeof *pairs);
            for (int64_t t = 0; t < T; t++) {
                int64_t at = (bh / NH * T + t) * C + bh % NH * HS;
                const float *d = dout + at, *q = r.q + t * r.width;
                struct attn_range keys = keys_of(&r, t);
                double lse, m, m_D, score = probabilities(&r, t, pairs, &lse), D = dot(out + at, d, HS, &m_D);
                for (int64_t s = keys.first; s < keys.end; s++) {
                    const struct pair *pair = &pairs[s];
                    const float *k = r.k + s * r.width;
                    double P = pair->P,
                           relative = 2.0 * score + e + 4.0 * UNIT_F32 * (fabs(lse) + fabs(log(P + 1e-300)));
                    double factor = factor_of(&r, t, s), dP = factor * dot(d, r.v + s * r.width, HS, &m);
                    double dS = P * fabs(dP - D);
                    double error = dS * (relative + 2.0 * x->unit) + P * dots * (factor * m + m_D);
                    double p = factor * P * (relative + 2.0 * x->unit),
                           slope = of_product(pair->slope, dS, error);
                    double own_q = of_product(pair->own_q, dS, error),
                           own_k = of_product(pair->own_k, dS, error);
                    for (int64_t c = 0; c < HS; c++) {
                        double qc = fabs((double)q[c]), kc = fabs((double)k[c]);
                        dqkv[r.q_at + t * r.width + c] += slope * kc + own_q * qc;
                        dqkv[r.k_at + s * r.width + c] += slope * qc + own_k * kc;
                        dqkv[r.v_at + s * r.width + c] += p * fabs((double)d[c]);
                    }
                }
            }
            free(pairs);
        }
}

static const struct op_case attn_backward_cases[] = {ATTN_CASES};
OP_TEST(attn_backward, (.bound = attn_backward_bound, .model_cases = attn_model_cases), A("dqkv"), A("dout"),
        A("out"), A("lse"), A("qkv"), A("prefix"), RULE);
