/* Attention: forward, backward. Contracts in ops.h; forward_row() computes a single query, and reads as the
 * definition of all rules.
 *
 * A thread takes one head of one sequence and walks its queries in tiles of TILE. The scores of a tile are
 * stored as (keys, TILE), queries side by side, so that maxima, sums and exponentials of all its queries
 * are vector operations. Only the stretch of keys that a query of the tile sees is computed, under the causal
 * mask those up to the diagonal, and a thread needs T*TILE floats of scratch instead of T*T. All products go
 * through one function that keeps a piece of the result in registers; BLAS would also compute the half above
 * the diagonal. Sums have a fixed order, so the number of threads changes no bit. */
#include "llmc/cpu/tile.h"

#include <math.h>
#include <omp.h>
#include <string.h>

enum { TILE = 16 }; /* queries */

/* A tile of a product has to fit the processor's registers: accumulators beyond them are spilled (on AVX2
 * the tiles for AVX-512 made backward 14 times slower). Eight accumulators cover the latency of a
 * multiply-add. */
#if defined(__AVX512F__)
enum { ROWS = 8, COLS = 2 };
#elif defined(__aarch64__)
enum { ROWS = 4, COLS = 4 };
#else
enum { ROWS = 4, COLS = 2 };
#endif

/* --- the product --- */

/* Columns that do not fill a vector, where LANES does not divide the head size. */
static void multiply_rest(int64_t m, int64_t n, int64_t k, float *out, int64_t ldo, struct matrix a,
                          const float *b, int64_t ldb, bool add) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float s = add ? out[i * ldo + j] : 0.0f;
            for (int64_t l = 0; l < k; l++) s += a.at[i * a.row + l * a.col] * b[l * ldb + j];
            out[i * ldo + j] = s;
        }
}

/* The same for any m and n. */
static void multiply(int64_t m, int64_t n, int64_t k, float *out, int64_t ldo, struct matrix a,
                     const float *b, int64_t ldb, bool add) {
    int64_t whole = n - n % LANES;
    for (; m >= ROWS; m -= ROWS, out += ROWS * ldo, a.at += ROWS * a.row) {
        int64_t j = 0;
        for (; j + COLS * LANES <= n; j += COLS * LANES)
            multiply_tile(ROWS, COLS, out + j, ldo, a, b + j, ldb, k, add);
        for (; j < whole; j += LANES) multiply_tile(ROWS, 1, out + j, ldo, a, b + j, ldb, k, add);
        multiply_rest(ROWS, n - whole, k, out + whole, ldo, a, b + whole, ldb, add);
    }
    for (; m > 0; m--, out += ldo, a.at += a.row) {
        for (int64_t j = 0; j < whole; j += LANES) multiply_tile(1, 1, out + j, ldo, a, b + j, ldb, k, add);
        multiply_rest(1, n - whole, k, out + whole, ldo, a, b + whole, ldb, add);
    }
}

/* --- a tile of queries --- */

struct head {
    const float *q, *k,
        *v; /* (T,HS) each: rows of q are `stride` floats apart, those of k and v `kv_stride` */
    int64_t stride, kv_stride, HS, T, prefix;
    struct attn_rule rule;
    float factor, scale;    /* of the queries; of scores (attn_rule.h) */
    float *norms;           /* (T) of the keys; NULL unless the rule needs them */
    int64_t number;         /* of the query head */
    struct dropout_key key; /* with rule.dropout */
    const int32_t *first;   /* (T), or NULL: attn_rule.h */
};

/* Query head h of sequence b, with its keys and values, which other query heads may share; parts of qkv. */
static struct head head_of(const struct tensor *qkv, const struct tensor *prefix,
                           const struct attn_rule *rule, int64_t b, int64_t h) {
    int64_t NH = rule->heads, NKV = rule->kv_heads, T = qkv->dim[1], width = qkv->dim[2];
    int64_t HS = width / (NH + 2 * NKV), shared = h / (NH / NKV);
    const float *base = f32(qkv) + b * T * width, *keys = base + NH * HS, *values = keys + NKV * HS;
    const struct dropout_rule *d = rule->dropout;
    float scale = 1.0f / sqrtf((float)HS);
    return (struct head){base + h * HS,
                         keys + shared * HS,
                         values + shared * HS,
                         width,
                         width,
                         HS,
                         T,
                         prefix ? i32(prefix)[b] : 0,
                         *rule,
                         attn_factor(rule->score, scale),
                         scale,
                         NULL,
                         h,
                         d ? dropout_key_of(d->p, d->seed, d->place, i32(d->samples)[b])
                           : (struct dropout_key){0},
                         rule->first ? i32(rule->first) + b * T : NULL};
}

static struct attn_range keys_of(const struct head *h, int64_t t) {
    return attn_keys_in_document(attn_keys(h->rule, h->prefix, h->T, t), h->first, t);
}

/* The number of a query or key that its scores need besides dot products. */
static float norm_of(const struct head *h, const float *x) {
    float squares = 0.0f;
    if (!attn_needs_norms(h->rule.score)) return 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < h->HS; c++) squares += x[c] * x[c];
    return attn_norm(h->rule.score, squares);
}

static void key_norms(struct head *h, float *to) {
    if (!attn_needs_norms(h->rule.score)) return;
    for (int64_t t = 0; t < h->T; t++) to[t] = norm_of(h, h->k + t * h->kv_stride);
    h->norms = to;
}

/* Copies keys and values into `to` (2,T,HS). In qkv the rows of a head are so far apart, often by a multiple
 * of 1 KiB, that most of them compete for the same few sets of the first cache. */
static void pack(struct head *h, float *to, int64_t T) {
    for (int64_t t = 0; t < T; t++) {
        memcpy(to + t * h->HS, h->k + t * h->kv_stride, (size_t)h->HS * sizeof *to);
        memcpy(to + (T + t) * h->HS, h->v + t * h->kv_stride, (size_t)h->HS * sizeof *to);
    }
    h->k = to, h->v = to + T * h->HS, h->kv_stride = h->HS;
}

/* Floats of scratch per thread: `tiles` tiles of scores (T,TILE), as many of transposed rows (HS,TILE),
 * `copies` of (T,HS), and as many numbers per key as there are tiles, for scores that need norms. */
static int64_t scratch_floats(const struct tensor *out, const struct attn_rule *rule, int tiles, int copies) {
    int64_t T = out->dim[1], HS = out->dim[2] / rule->heads;
    return tiles * TILE * (T + HS) + copies * T * HS + (attn_needs_norms(rule->score) ? tiles * T : 0);
}
static int64_t scratch_bytes(const struct tensor *out, const struct attn_rule *rule, int tiles, int copies) {
    return omp_get_max_threads() * scratch_floats(out, rule, tiles, copies) * (int64_t)sizeof(float);
}

/* to (HS,TILE) = scale * rows (count,HS) transposed; missing rows, up to TILE, are zeros. */
static void transpose(float *to, const float *rows, int64_t stride, int64_t count, int64_t HS, float scale) {
    int64_t whole_rows = count - count % 4, whole_columns = HS - HS % 4;
    for (int64_t i = 0; i < whole_rows; i += 4)
        for (int64_t c = 0; c < whole_columns; c += 4)
            transpose_4x4(to + c * TILE + i, TILE, rows + i * stride + c, stride, scale);
    for (int64_t c = 0; c < HS; c++)
        for (int64_t i = c < whole_columns ? whole_rows : 0; i < TILE; i++)
            to[c * TILE + i] = i < count ? scale * rows[i * stride + c] : 0.0f;
}

/* The keys that a tile of queries sees, each of them some: a stretch, because a query sees itself and each
 * one's stretch therefore reaches or touches the next one's. */
static struct attn_range keys_of_tile(const struct head *h, int64_t first, int64_t rows) {
    return (struct attn_range){keys_of(h, first).first, keys_of(h, first + rows - 1).end};
}

/* S (keys,TILE) = dot products of these keys with the queries [first, first + rows), times the factor. */
static void dots(float *S, float *qT, const struct head *h, int64_t first, int64_t rows,
                 struct attn_range keys) {
    transpose(qT, h->q + first * h->stride, h->stride, rows, h->HS, h->factor);
    multiply(keys.end - keys.first, TILE, h->HS, S, TILE,
             (struct matrix){h->k + keys.first * h->kv_stride, h->kv_stride, 1}, qT, TILE, false);
}

/* -infinity for the keys that a query does not see. */
static void mask(float *S, const struct head *h, int64_t first, int64_t rows, struct attn_range keys) {
    for (int64_t i = 0; i < rows; i++) {
        struct attn_range seen = keys_of(h, first + i);
        for (int64_t s = keys.first; s < seen.first; s++) S[(s - keys.first) * TILE + i] = -INFINITY;
        for (int64_t s = seen.end; s < keys.end; s++) S[(s - keys.first) * TILE + i] = -INFINITY;
    }
}

static void query_norms(float *to, const struct head *h, int64_t first, int64_t rows) {
    for (int64_t i = 0; i < TILE; i++) to[i] = i < rows ? norm_of(h, h->q + (first + i) * h->stride) : 0.0f;
}

/* S (keys,TILE): dot products become scores. */
static void scores_of_dots(float *S, const struct head *h, int64_t first, int64_t rows,
                           struct attn_range keys) {
    float norms[TILE], cap = h->rule.softcap;
    query_norms(norms, h, first, rows);
    for (int64_t j = 0; j < keys.end - keys.first; j++) {
        float *s = S + j * TILE, k_norm = h->norms ? h->norms[keys.first + j] : 0.0f;
        for (int i = 0; i < TILE; i++) s[i] = attn_score_of(h->rule.score, h->scale, s[i], norms[i], k_norm);
        for (int i = 0; cap > 0.0f && i < TILE; i++) s[i] = cpu_soften(s[i], cap).value;
    }
}

/* Are the dot products the scores? */
static bool dots_are_scores(const struct head *h) {
    return (h->rule.score == ATTN_SCALED_DOT || h->rule.score == ATTN_DOT) && h->rule.softcap == 0.0f;
}

/* Multiplies weights or their gradients (keys,TILE) by the factors of dropout. */
static void drop(float *P, const struct head *h, int64_t first, int64_t rows, struct attn_range keys) {
    for (int64_t i = 0; h->rule.dropout && i < rows; i++) {
        int64_t row = (h->number * h->T + first + i) * h->T;
        struct rng4 random = dropout_block(h->key, row + keys.first);
        for (int64_t s = keys.first; s < keys.end; s++) {
            if ((row + s) % 4 == 0) random = dropout_block(h->key, row + s);
            P[(s - keys.first) * TILE + i] *= dropout_factor_in(h->key, random, row + s);
        }
    }
}

/* --- forward --- */

static int64_t attn_forward_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv,
                                 const struct tensor *prefix, const struct attn_rule *rule, int t0) {
    return scratch_bytes(out, rule, 1, 2);
}

static float score(const struct head *h, const float *q, const float *k, float q_norm) {
    float x = 0.0f;
#pragma omp simd reduction(+ : x)
    for (int64_t c = 0; c < h->HS; c++) x += q[c] * k[c];
    float s = attn_score_of(h->rule.score, h->scale, h->factor * x, q_norm, norm_of(h, k));
    return h->rule.softcap > 0.0f ? cpu_soften(s, h->rule.softcap).value : s;
}

/* A row of keys or values comes nearer. Those of a head are so far apart that the hardware fetches none
 * ahead. */
static inline void fetch_row(const float *row, int64_t HS) {
    for (int64_t c = 0; c < HS; c += 16) __builtin_prefetch(row + c);
}

/* One query, as in text generation: a tile would compute TILE of them. S (T) is scratch. */
static void forward_row(const struct head *h, float *S, int64_t t, float *out, float *lse) {
    enum { AHEAD = 8 };
    const float *q = h->q + t * h->stride;
    struct attn_range keys = keys_of(h, t);
    float max = -INFINITY, sum = 0.0f, q_norm = norm_of(h, q);
    for (int64_t j = keys.first; j < keys.end; j++) {
        fetch_row(h->k + min_i64(j + AHEAD, keys.end - 1) * h->kv_stride, h->HS);
        S[j] = score(h, q, h->k + j * h->kv_stride, q_norm);
        max = S[j] > max ? S[j] : max;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = keys.first; j < keys.end; j++) sum += S[j] = cpu_expf(S[j] - max);
    float inverse = 1.0f / sum;
    for (int64_t c = 0; c < h->HS; c++) out[c] = 0.0f;
    for (int64_t j = keys.first; j < keys.end; j++) {
        const float *v = h->v + j * h->kv_stride;
        float p = S[j] * inverse;
        fetch_row(h->v + min_i64(j + AHEAD, keys.end - 1) * h->kv_stride, h->HS);
        if (h->rule.dropout) p *= dropout_factor(h->key, (h->number * h->T + t) * h->T + j);
        for (int64_t c = 0; c < h->HS; c++) out[c] += p * v[c];
    }
    *lse = max + logf(sum);
}

/* S (keys,TILE) = e^(S - max), with the maximum and the sum of each query. Without `simd` gcc does not
 * vectorise the maxima, and tests for each row whether it overlaps the other operands. */
static void exponentials(float *S, int64_t keys, float *sum, float *max) {
    for (int i = 0; i < TILE; i++) max[i] = -INFINITY, sum[i] = 0.0f;
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < TILE; i++) max[i] = S[j * TILE + i] > max[i] ? S[j * TILE + i] : max[i];
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < TILE; i++) sum[i] += S[j * TILE + i] = cpu_expf(S[j * TILE + i] - max[i]);
}

/* Queries [first, first + rows), rows <= TILE. */
static void forward_tile(const struct head *h, float *S, float *qT, int64_t first, int64_t rows, float *out,
                         int64_t C, float *lse) {
    float sum[TILE], max[TILE];
    struct attn_range keys = keys_of_tile(h, first, rows);
    int64_t count = keys.end - keys.first;
    dots(S, qT, h, first, rows, keys);
    if (!dots_are_scores(h)) scores_of_dots(S, h, first, rows, keys);
    mask(S, h, first, rows, keys);
    exponentials(S, count, sum, max);
    drop(S, h, first, rows, keys);
    multiply(rows, h->HS, count, out, C, (struct matrix){S, 1, TILE}, h->v + keys.first * h->kv_stride,
             h->kv_stride, false);
    for (int64_t i = 0; i < rows; i++) {
        float inverse = 1.0f / sum[i];
        for (int64_t c = 0; c < h->HS; c++) out[i * C + c] *= inverse;
        lse[i] = max[i] + logf(sum[i]);
    }
}

static void attn_forward_run(const struct op_env *env, struct tensor *out, struct tensor *lse,
                             const struct tensor *qkv, const struct tensor *prefix,
                             const struct attn_rule *rule, int t0) {
    int64_t B = out->dim[0], T = out->dim[1], C = out->dim[2], NH = rule->heads, HS = C / NH;
    int64_t floats = scratch_floats(out, rule, 1, 2);
#pragma omp parallel for schedule(dynamic)
    for (int64_t bh = 0; bh < B * NH; bh++) {
        struct head head = head_of(qkv, prefix, rule, bh / NH, bh % NH);
        float *S = (float *)env->scratch + omp_get_thread_num() * floats, *qT = S + T * TILE;
        float *packed = qT + HS * TILE;
        float *o = f32(out) + (bh / NH) * T * C + (bh % NH) * HS, *l = f32(lse) + bh * T;
        if (t0 + 1 == T) {
            forward_row(&head, S, t0, o + t0 * C, l + t0);
            continue;
        }
        if (T - t0 > TILE) pack(&head, packed, T);
        key_norms(&head, packed + 2 * T * HS);
        for (int64_t first = t0; first < T; first += TILE)
            forward_tile(&head, S, qT, first, min_i64(TILE, T - first), o + first * C, C, l + first);
    }
}

/* --- backward --- */

static int64_t attn_backward_need(struct tensor *dqkv, const struct tensor *dout, const struct tensor *out,
                                  const struct tensor *lse, const struct tensor *qkv,
                                  const struct tensor *prefix, const struct attn_rule *rule) {
    return scratch_bytes(out, rule, 2, 4);
}

/* What a query head reads and writes besides qkv. */
struct gradients {
    const float *out, *dout, *lse; /* (T,HS) and (T,HS), rows C = NH*HS floats apart; (T) */
    int64_t C;
    float *dq;      /* (T,HS), rows as far apart as those of q */
    float *dk, *dv; /* (T,HS), rows HS floats apart */
    float *own;     /* (T): += what dk has besides, as a multiple of k; where the rule needs norms */
    bool add;       /* dk and dv hold what other query heads added to them */
    int64_t have; /* earlier tiles have written dk and dv of the keys before this one; the rest is undefined,
                       unless `add` */
};

/* Of a query: D = out . dout, and lse. P = 0 for a query that is missing in its tile. */
static void query_statistics(float *D, float *lse, const struct gradients *g, int64_t first, int64_t rows,
                             int64_t HS) {
    for (int64_t i = 0; i < TILE; i++) {
        const float *o = g->out + (first + i) * g->C, *d = g->dout + (first + i) * g->C;
        float s = 0.0f;
#pragma omp simd reduction(+ : s)
        for (int64_t c = 0; c < (i < rows ? HS : 0); c++) s += o[c] * d[c];
        D[i] = s;
        lse[i] = i < rows ? g->lse[first + i] : INFINITY;
    }
}

/* Scores S become P = e^(S - lse), and dP becomes dS = P * (dP - D), both (keys,TILE). */
static void score_gradients(float *S, float *dP, const float *D, const float *lse, int64_t keys) {
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < TILE; i++) {
            float p = S[j * TILE + i] = cpu_expf(S[j * TILE + i] - lse[i]);
            dP[j * TILE + i] = p * (dP[j * TILE + i] - D[i]);
        }
}

/* The same for dot products S, whose gradients dP becomes. What the gradient of a query or key has besides is
 * a multiple of itself: it is added to `own` (TILE) of the queries, and to g->own of the keys. */
static void dot_gradients(float *S, float *dP, const struct head *h, const struct gradients *g, int64_t first,
                          int64_t rows, struct attn_range keys, float *own) {
    float D[TILE], lse[TILE], norms[TILE], cap = h->rule.softcap;
    int32_t from[TILE], end[TILE];
    enum attn_score kind = h->rule.score;
    query_statistics(D, lse, g, first, rows, h->HS);
    query_norms(norms, h, first, rows);
    for (int64_t i = 0; i < TILE; i++) {
        struct attn_range seen = keys_of(h, min_i64(first + i, first + rows - 1));
        from[i] = (int32_t)(seen.first - keys.first), end[i] = (int32_t)(seen.end - keys.first);
    }
    for (int32_t j = 0; j < (int32_t)(keys.end - keys.first); j++) {
        float *s = S + (int64_t)j * TILE, *d = dP + (int64_t)j * TILE, own_of_key = 0.0f;
        float k_norm = h->norms ? h->norms[keys.first + j] : 0.0f;
        for (int i = 0; i < TILE; i++) {
            float x = s[i], value = attn_score_of(kind, h->scale, x, norms[i], k_norm);
            float slope = attn_slope(kind, h->scale, x, norms[i], k_norm);
            if (cap > 0.0f) {
                struct cpu_capped c = cpu_soften(value, cap);
                value = c.value, slope *= c.slope;
            }
            float p = cpu_expf(value - lse[i]);
            s[i] = j >= from[i] && j < end[i] ? p : 0.0f;
            d[i] = s[i] * (d[i] - D[i]) * slope;
            own[i] += d[i] * attn_own_slope(kind, x, norms[i]);
            own_of_key += d[i] * attn_own_slope(kind, x, k_norm);
        }
        if (g->own) g->own[keys.first + j] += own_of_key;
    }
}

/* Queries [first, first + rows), rows <= TILE. */
static void backward_tile(const struct head *h, struct gradients *g, float *S, float *dP, float *rowsT,
                          int64_t first, int64_t rows) {
    struct attn_range keys = keys_of_tile(h, first, rows);
    int64_t HS = h->HS, count = keys.end - keys.first;
    const float *d = g->dout + first * g->C, *k = h->k + keys.first * h->kv_stride;
    float own[TILE] = {0}, D[TILE], lse[TILE];
    dots(S, rowsT, h, first, rows, keys);
    transpose(rowsT, d, g->C, rows, HS, 1.0f);
    multiply(count, TILE, HS, dP, TILE, (struct matrix){h->v + keys.first * h->kv_stride, h->kv_stride, 1},
             rowsT, TILE, false);
    drop(dP, h, first, rows, keys);
    if (dots_are_scores(h)) {
        mask(S, h, first, rows, keys);
        query_statistics(D, lse, g, first, rows, HS);
        score_gradients(S, dP, D, lse, count);
    } else {
        dot_gradients(S, dP, h, g, first, rows, keys, own);
    }
    drop(S, h, first, rows, keys);
    float *dq = g->dq + first * h->stride;
    multiply(rows, HS, count, dq, h->stride, (struct matrix){dP, 1, TILE}, k, h->kv_stride, false);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < HS; c++) dq[i * h->stride + c] *= h->factor;
    for (int64_t i = 0; g->own && i < rows; i++)
        for (int64_t c = 0; c < HS; c++) dq[i * h->stride + c] += own[i] * h->q[(first + i) * h->stride + c];
    int64_t have = max_i64(keys.first, min_i64(g->have, keys.end));
    for (int part = 0; part < 2; part++) { /* 0: keys that earlier tiles saw; 1: the others */
        int64_t from = part ? have : keys.first, n = part ? keys.end - have : have - keys.first;
        int64_t at = (from - keys.first) * TILE;
        struct matrix P = {S + at, TILE, 1}, dS = {dP + at, TILE, 1};
        bool add = g->add || part == 0;
        multiply(n, HS, rows, g->dv + from * HS, HS, P, d, g->C, add);
        multiply(n, HS, rows, g->dk + from * HS, HS, dS, h->q + first * h->stride, h->stride, add);
    }
    g->have = max_i64(g->have, keys.end);
}

/* A thread takes a head of keys and values, and the query heads that share it one after another. */
static void attn_backward_run(const struct op_env *env, struct tensor *dqkv, const struct tensor *dout,
                              const struct tensor *out, const struct tensor *lse, const struct tensor *qkv,
                              const struct tensor *prefix, const struct attn_rule *rule) {
    int64_t B = out->dim[0], T = out->dim[1], C = out->dim[2], NH = rule->heads, NKV = rule->kv_heads;
    int64_t HS = C / NH, group = NH / NKV, floats = scratch_floats(out, rule, 2, 4);
#pragma omp parallel for schedule(dynamic)
    for (int64_t shared = 0; shared < B * NKV; shared++) {
        int64_t b = shared / NKV, first_head = shared % NKV * group;
        float *S = (float *)env->scratch + omp_get_thread_num() * floats, *dP = S + T * TILE;
        float *rowsT = dP + T * TILE, *packed = rowsT + HS * 2 * TILE, *dk = packed + 2 * T * HS;
        struct head head = head_of(qkv, prefix, rule, b, first_head),
                    d = head_of(dqkv, prefix, rule, b, first_head);
        pack(&head, packed, T);
        key_norms(&head, dk + 2 * T * HS);
        float *own = head.norms ? head.norms + T : NULL;
        for (int64_t t = 0; own && t < T; t++) own[t] = 0.0f;
        for (int64_t h = 0; h < group; h++) {
            int64_t at = b * T * C + (first_head + h) * HS;
            struct gradients g = {f32(out) + at,
                                  f32(dout) + at,
                                  f32(lse) + (b * NH + first_head + h) * T,
                                  C,
                                  (float *)d.q + h * HS,
                                  dk,
                                  dk + T * HS,
                                  own,
                                  h > 0,
                                  0};
            for (int64_t first = 0; first < T; first += TILE)
                backward_tile(&head, &g, S, dP, rowsT, first, min_i64(TILE, T - first));
            head.q += HS;
            head.number++;
        }
        for (int64_t t = 0; t < T; t++)
            for (int64_t c = 0; c < HS; c++) {
                ((float *)d.k)[t * d.stride + c] = dk[t * HS + c] * head.factor;
                ((float *)d.v)[t * d.stride + c] = dk[(T + t) * HS + c];
            }
        for (int64_t t = 0; own && t < T; t++)
            for (int64_t c = 0; c < HS; c++) ((float *)d.k)[t * d.stride + c] += own[t] * head.k[t * HS + c];
    }
}

CPU_VARIANT(attn_forward, attn_forward_need);
CPU_VARIANT(attn_backward, attn_backward_need);
