/* Causal multi-head attention: forward, backward. Contracts in ops.h.
 *
 * A thread takes one (batch, head) and walks the queries in blocks of BLOCK rows. For a block it forms the
 * scores against all earlier keys with a small GEMM on the strided rows of qkv, so no copy of q, k or v is
 * made and scratch is BLOCK*T floats a thread, not T*T. BLAS called inside a parallel region runs on the
 * calling thread alone. */
#include "cpu.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>

enum { BLOCK = 64 };

/* One head's view of qkv (B,T,3C): rows are `stride` floats apart. */
struct head {
    const float *q, *k, *v; /* (T,HS) each */
    int64_t stride;         /* 3C */
    float scale;
};

static struct head head_of(const struct tensor *qkv, int64_t b, int64_t h, int64_t HS) {
    int64_t T = qkv->dim[1], C = qkv->dim[2] / 3;
    const float *base = f32(qkv) + b * T * 3 * C + h * HS;
    return (struct head){base, base + C, base + 2 * C, 3 * C, 1.0f / sqrtf((float)HS)};
}

/* out (m,n) = alpha * a (m,k) @ b, with b (n,k) transposed or (k,n) not; beta*out is added. */
static void gemm(enum CBLAS_TRANSPOSE ta, enum CBLAS_TRANSPOSE tb, int64_t m, int64_t n, int64_t k,
                 float alpha, const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                 float *out, int64_t ldo) {
    cblas_sgemm(CblasRowMajor, ta, tb, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, out,
                (int)ldo);
}

static int64_t block_scratch(const struct tensor *qkv, int blocks) {
    return (int64_t)omp_get_max_threads() * blocks * BLOCK * qkv->dim[1] * (int64_t)sizeof(float);
}

static int64_t attn_forward_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv, int NH,
                                 int t0) {
    return cpu_needs(qkv, block_scratch(qkv, 1));
}

static void attn_forward_run(const struct op_env *env, struct tensor *out, struct tensor *lse,
                             const struct tensor *qkv, int NH, int t0) {
    int64_t B = out->dim[0], T = out->dim[1], C = out->dim[2], HS = C / NH;
    int64_t blocks = ceil_div(T - t0, BLOCK);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t bh = 0; bh < B * NH; bh++)
        for (int64_t block = 0; block < blocks; block++) {
            struct head head = head_of(qkv, bh / NH, bh % NH, HS);
            float *S = (float *)env->scratch + (int64_t)omp_get_thread_num() * BLOCK * T; /* (rows, keys) */
            int64_t first = t0 + block * BLOCK, rows = min_i64(BLOCK, T - first), keys = first + rows;
            float *o = f32(out) + ((bh / NH) * T + first) * C + (bh % NH) * HS;
            gemm(CblasNoTrans, CblasTrans, rows, keys, HS, head.scale, head.q + first * head.stride,
                 head.stride, head.k, head.stride, 0.0f, S, keys);
            for (int64_t i = 0; i < rows; i++) {
                float *s = S + i * keys, max = -INFINITY, total = 0.0f;
                int64_t visible = first + i + 1;
#pragma omp simd reduction(max : max)
                for (int64_t j = 0; j < visible; j++) max = s[j] > max ? s[j] : max;
#pragma omp simd reduction(+ : total)
                for (int64_t j = 0; j < visible; j++) total += s[j] = cpu_expf(s[j] - max);
                float inverse = 1.0f / total;
                for (int64_t j = 0; j < visible; j++) s[j] *= inverse;
                for (int64_t j = visible; j < keys; j++) s[j] = 0.0f;
                f32(lse)[bh * T + first + i] = max + logf(total);
            }
            gemm(CblasNoTrans, CblasNoTrans, rows, HS, keys, 1.0f, S, keys, head.v, head.stride, 0.0f, o, C);
        }
}

static int64_t attn_backward_need(struct tensor *dqkv, const struct tensor *dout, const struct tensor *out,
                                  const struct tensor *lse, const struct tensor *qkv, int NH) {
    return cpu_needs(qkv, block_scratch(qkv, 2));
}

/* P = exp(S - lse) and dS = scale * P * (dout v^T - D), in place, for one block of queries. */
static void probabilities_and_gradients(float *P, float *dS, const float *lse, const float *D, int64_t first,
                                        int64_t rows, int64_t keys, float scale) {
    for (int64_t i = 0; i < rows; i++) {
        float *p = P + i * keys, *d = dS + i * keys;
        int64_t visible = first + i + 1;
        for (int64_t j = 0; j < visible; j++) {
            p[j] = cpu_expf(p[j] - lse[i]);
            d[j] = scale * p[j] * (d[j] - D[i]);
        }
        for (int64_t j = visible; j < keys; j++) p[j] = d[j] = 0.0f;
    }
}

static void attn_backward_run(const struct op_env *env, struct tensor *dqkv, const struct tensor *dout,
                              const struct tensor *out, const struct tensor *lse, const struct tensor *qkv,
                              int NH) {
    int64_t B = out->dim[0], T = out->dim[1], C = out->dim[2], HS = C / NH;
#pragma omp parallel for schedule(dynamic)
    for (int64_t bh = 0; bh < B * NH; bh++) {
        int64_t b = bh / NH, h = bh % NH;
        struct head head = head_of(qkv, b, h, HS);
        int64_t stride = head.stride;
        float *P = (float *)env->scratch + (int64_t)omp_get_thread_num() * 2 * BLOCK * T, *dS = P + BLOCK * T;
        float *dq = f32(dqkv) + b * T * stride + h * HS, *dk = dq + C,
              *dv = dq + 2 * C; /* (T,HS), rows 3C apart */
        float D[BLOCK];
        for (int64_t first = 0; first < T; first += BLOCK) {
            int64_t rows = min_i64(BLOCK, T - first), keys = first + rows;
            const float *q = head.q + first * stride;
            const float *o = f32(out) + (b * T + first) * C + h * HS,
                        *d = f32(dout) + (b * T + first) * C + h * HS;
            for (int64_t i = 0; i < rows; i++) {
                float s = 0.0f;
#pragma omp simd reduction(+ : s)
                for (int64_t c = 0; c < HS; c++) s += o[i * C + c] * d[i * C + c];
                D[i] = s;
                /* the rows of dk and dv that this block is the first to touch */
                for (int64_t c = 0; c < HS; c++)
                    dk[(first + i) * stride + c] = dv[(first + i) * stride + c] = 0.0f;
            }
            gemm(CblasNoTrans, CblasTrans, rows, keys, HS, head.scale, q, stride, head.k, stride, 0.0f, P,
                 keys);
            gemm(CblasNoTrans, CblasTrans, rows, keys, HS, 1.0f, d, C, head.v, stride, 0.0f, dS, keys);
            probabilities_and_gradients(P, dS, f32(lse) + bh * T + first, D, first, rows, keys, head.scale);
            gemm(CblasTrans, CblasNoTrans, keys, HS, rows, 1.0f, P, keys, d, C, 1.0f, dv, stride);
            gemm(CblasTrans, CblasNoTrans, keys, HS, rows, 1.0f, dS, keys, q, stride, 1.0f, dk, stride);
            gemm(CblasNoTrans, CblasNoTrans, rows, HS, keys, 1.0f, dS, keys, head.k, stride, 0.0f,
                 dq + first * stride, stride);
        }
    }
}

CPU_ROW(attn_forward, attn_forward_need);
CPU_ROW(attn_backward, attn_backward_need);
