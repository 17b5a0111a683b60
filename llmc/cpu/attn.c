/* Causal attention: forward, backward. Contracts in ops.h.
 *
 * A thread takes one head of one sequence and walks its queries in tiles of TILE. The scores of a tile are
 * stored as (keys, TILE), queries side by side, so that maxima, sums and exponentials of all its queries
 * are vector operations. Only keys up to the diagonal are computed, and a thread needs T*TILE floats of
 * scratch instead of T*T. All products go through one function that keeps a piece of the result in
 * registers; BLAS would also compute the half above the diagonal. Sums have a fixed order, so the number of
 * threads changes no bit. */
#include "llmc/cpu/cpu.h"

#include <math.h>
#include <omp.h>

enum { TILE = 16 }; /* queries */

/* A piece of a product, ROWS by COLS vectors of LANES floats, has to fit the processor's registers: a
 * vector type that is wider than they are is taken apart through memory, and accumulators beyond them are
 * spilled (on AVX2 the pieces for AVX-512 made backward 14 times slower). Eight accumulators cover the
 * latency of a multiply-add. */
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8, COLS = 2 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 4, COLS = 2 };
#elif defined(__aarch64__)
enum { LANES = 4, ROWS = 4, COLS = 4 };
#else
enum { LANES = 4, ROWS = 4, COLS = 2 };
#endif

/* --- the product --- */

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

/* A matrix whose element (i,j) is at i*row + j*col. */
struct matrix {
    const float *at;
    int64_t row, col;
};

/* out (m, LANES*cols) = or += a (m,k) @ b (k,n); the rows of b are contiguous. Inlined with constant m and
 * cols, so that the compiler keeps `sum` in registers. */
static inline void multiply_tile(int m, int cols, float *out, int64_t ldo, struct matrix a, const float *b,
                                 int64_t ldb, int64_t k, bool add) {
    lanes sum[ROWS][COLS];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < cols; j++) sum[i][j] = (lanes){0};
    for (int64_t l = 0; l < k; l++)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < cols; j++)
                sum[i][j] += a.at[i * a.row + l * a.col] * *(const lanes *)(b + l * ldb + j * LANES);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < cols; j++) {
            lanes *o = (lanes *)(out + i * ldo + j * LANES);
            if (add)
                *o += sum[i][j];
            else
                *o = sum[i][j];
        }
}

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
    const float *q, *k, *v; /* (T,HS) each, rows `stride` floats apart: parts of qkv */
    int64_t stride, HS;
    float scale;
};

/* Query head h of sequence b, with its keys and values, which other query heads may share. */
static struct head head_of(const struct tensor *qkv, int64_t b, int64_t h, int NH, int NKV) {
    int64_t T = qkv->dim[1], width = qkv->dim[2], HS = width / (NH + 2 * NKV), shared = h / (NH / NKV);
    const float *base = f32(qkv) + b * T * width, *keys = base + NH * HS, *values = keys + NKV * HS;
    return (struct head){base + h * HS,          keys + shared * HS, values + shared * HS, width, HS,
                         1.0f / sqrtf((float)HS)};
}

/* Floats of scratch per thread for `n` tiles of scores (T,TILE) and as many of transposed rows (HS,TILE). */
static int64_t scratch_floats(const struct tensor *out, int NH, int n) {
    return n * TILE * (out->dim[1] + out->dim[2] / NH);
}
static int64_t scratch_bytes(const struct tensor *out, int NH, int n) {
    return omp_get_max_threads() * scratch_floats(out, NH, n) * (int64_t)sizeof(float);
}

/* to (HS,TILE) = scale * rows (count,HS) transposed; missing rows, up to TILE, are zeros. */
static void transpose(float *to, const float *rows, int64_t stride, int64_t count, int64_t HS, float scale) {
    for (int64_t c = 0; c < HS; c++)
        for (int64_t i = 0; i < TILE; i++) to[c * TILE + i] = i < count ? scale * rows[i * stride + c] : 0.0f;
}

/* S (keys,TILE) = scores of the queries [first, first + rows); -infinity for keys after the query. */
static void scores(float *S, float *qT, const struct head *h, int64_t first, int64_t rows) {
    transpose(qT, h->q + first * h->stride, h->stride, rows, h->HS, h->scale);
    multiply(first + rows, TILE, h->HS, S, TILE, (struct matrix){h->k, h->stride, 1}, qT, TILE, false);
    for (int64_t j = 1; j < rows; j++)
        for (int64_t i = 0; i < j; i++) S[(first + j) * TILE + i] = -INFINITY;
}

/* --- forward --- */

static int64_t attn_forward_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv, int NH,
                                 int NKV, int t0) {
    return scratch_bytes(out, NH, 1);
}

/* S (keys,TILE) = e^(S - max), with the maximum and the sum of each query. */
static void exponentials(float *S, int64_t keys, float *sum, float *max) {
    for (int i = 0; i < TILE; i++) max[i] = -INFINITY, sum[i] = 0.0f;
    for (int64_t j = 0; j < keys; j++)
        for (int i = 0; i < TILE; i++) max[i] = S[j * TILE + i] > max[i] ? S[j * TILE + i] : max[i];
    for (int64_t j = 0; j < keys; j++)
        for (int i = 0; i < TILE; i++) sum[i] += S[j * TILE + i] = cpu_expf(S[j * TILE + i] - max[i]);
}

/* Queries [first, first + rows), rows <= TILE. */
static void forward_tile(const struct head *h, float *S, float *qT, int64_t first, int64_t rows, float *out,
                         int64_t C, float *lse) {
    float sum[TILE], max[TILE];
    scores(S, qT, h, first, rows);
    exponentials(S, first + rows, sum, max);
    multiply(rows, h->HS, first + rows, out, C, (struct matrix){S, 1, TILE}, h->v, h->stride, false);
    for (int64_t i = 0; i < rows; i++) {
        float inverse = 1.0f / sum[i];
        for (int64_t c = 0; c < h->HS; c++) out[i * C + c] *= inverse;
        lse[i] = max[i] + logf(sum[i]);
    }
}

static void attn_forward_run(const struct op_env *env, struct tensor *out, struct tensor *lse,
                             const struct tensor *qkv, int NH, int NKV, int t0) {
    int64_t B = out->dim[0], T = out->dim[1], C = out->dim[2], HS = C / NH;
    int64_t floats = scratch_floats(out, NH, 1);
#pragma omp parallel for schedule(dynamic)
    for (int64_t bh = 0; bh < B * NH; bh++) {
        struct head head = head_of(qkv, bh / NH, bh % NH, NH, NKV);
        float *S = (float *)env->scratch + omp_get_thread_num() * floats, *qT = S + T * TILE;
        float *o = f32(out) + (bh / NH) * T * C + (bh % NH) * HS;
        for (int64_t first = t0; first < T; first += TILE)
            forward_tile(&head, S, qT, first, min_i64(TILE, T - first), o + first * C, C,
                         f32(lse) + bh * T + first);
    }
}

/* --- backward --- */

static int64_t attn_backward_need(struct tensor *dqkv, const struct tensor *dout, const struct tensor *out,
                                  const struct tensor *lse, const struct tensor *qkv, int NH, int NKV) {
    return scratch_bytes(out, NH, 2);
}

/* What a query head reads and writes besides qkv. */
struct gradients {
    const float *out, *dout, *lse; /* (T,HS) and (T,HS), rows C = NH*HS floats apart; (T) */
    int64_t C;
    float *dq, *dk, *dv; /* (T,HS), rows as far apart as those of qkv */
    bool add;            /* dk and dv hold what other query heads added to them */
};

/* S = P = e^(S - lse) and dP = dS = P * (dP - D), both (keys,TILE), for the queries from `first` on. */
static void score_gradients(float *S, float *dP, const struct gradients *g, int64_t first, int64_t rows,
                            int64_t HS) {
    float lse[TILE], D[TILE];
    for (int64_t i = 0; i < TILE; i++) {
        const float *o = g->out + (first + i) * g->C, *d = g->dout + (first + i) * g->C;
        float s = 0.0f;
#pragma omp simd reduction(+ : s)
        for (int64_t c = 0; c < (i < rows ? HS : 0); c++) s += o[c] * d[c];
        D[i] = s;
        lse[i] = i < rows ? g->lse[first + i] : INFINITY; /* P = 0 for a missing query */
    }
    for (int64_t j = 0; j < first + rows; j++)
        for (int i = 0; i < TILE; i++) {
            float p = S[j * TILE + i] = cpu_expf(S[j * TILE + i] - lse[i]);
            dP[j * TILE + i] = p * (dP[j * TILE + i] - D[i]);
        }
}

/* Queries [first, first + rows), rows <= TILE. Earlier tiles have written dk and dv of the keys before
 * `first`; the rest is undefined unless g->add. */
static void backward_tile(const struct head *h, const struct gradients *g, float *S, float *dP, float *rowsT,
                          int64_t first, int64_t rows) {
    int64_t HS = h->HS, stride = h->stride, keys = first + rows;
    const float *d = g->dout + first * g->C;
    scores(S, rowsT, h, first, rows);
    transpose(rowsT, d, g->C, rows, HS, 1.0f);
    multiply(keys, TILE, HS, dP, TILE, (struct matrix){h->v, stride, 1}, rowsT, TILE, false);
    score_gradients(S, dP, g, first, rows, HS);
    float *dq = g->dq + first * stride;
    multiply(rows, HS, keys, dq, stride, (struct matrix){dP, 1, TILE}, h->k, stride, false);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < HS; c++) dq[i * stride + c] *= h->scale;
    for (int part = 0; part < 2; part++) { /* 0: keys that earlier tiles saw; 1: the others */
        int64_t from = part ? first : 0, count = part ? rows : first;
        struct matrix P = {S + from * TILE, TILE, 1}, dS = {dP + from * TILE, TILE, 1};
        bool add = g->add || part == 0;
        multiply(count, HS, rows, g->dv + from * stride, stride, P, d, g->C, add);
        multiply(count, HS, rows, g->dk + from * stride, stride, dS, h->q + first * stride, stride, add);
    }
}

/* A thread takes a head of keys and values, and the query heads that share it one after another. */
static void attn_backward_run(const struct op_env *env, struct tensor *dqkv, const struct tensor *dout,
                              const struct tensor *out, const struct tensor *lse, const struct tensor *qkv,
                              int NH, int NKV) {
    int64_t B = out->dim[0], T = out->dim[1], C = out->dim[2], HS = C / NH, group = NH / NKV;
    int64_t floats = scratch_floats(out, NH, 2);
#pragma omp parallel for schedule(dynamic)
    for (int64_t shared = 0; shared < B * NKV; shared++) {
        int64_t b = shared / NKV, first_head = shared % NKV * group;
        float *S = (float *)env->scratch + omp_get_thread_num() * floats, *dP = S + T * TILE;
        for (int64_t h = first_head; h < first_head + group; h++) {
            struct head head = head_of(qkv, b, h, NH, NKV), d = head_of(dqkv, b, h, NH, NKV);
            int64_t at = b * T * C + h * HS;
            struct gradients g = {
                f32(out) + at, f32(dout) + at, f32(lse) + (b * NH + h) * T, C, (float *)d.q, (float *)d.k,
                (float *)d.v,  h > first_head};
            for (int64_t first = 0; first < T; first += TILE)
                backward_tile(&head, &g, S, dP, dP + T * TILE, first, min_i64(TILE, T - first));
            for (int64_t t = 0; h == first_head + group - 1 && t < T; t++)
                for (int64_t c = 0; c < HS; c++) g.dk[t * head.stride + c] *= head.scale;
        }
    }
}

CPU_VARIANT(attn_forward, attn_forward_need);
CPU_VARIANT(attn_backward, attn_backward_need);
