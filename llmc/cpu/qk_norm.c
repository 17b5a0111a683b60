/* RMSNorm of the heads of queries and keys: forward, backward. Contracts in ops.h. */
#include "llmc/cpu/cpu.h"

static int64_t head_size(const struct tensor *inp, int NH, int NKV) {
    return tensor_cols(inp) / (NH + 2 * NKV);
}

/* 1 / root mean square of a head. */
static float rstd_of(const float *x, int64_t HS, float eps) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < HS; i++) squares += x[i] * x[i];
    return 1.0f / sqrtf(squares / (float)HS + eps);
}

static int64_t qk_norm_forward_need(struct tensor *out, const struct tensor *inp,
                                    const struct tensor *q_weight, const struct tensor *k_weight, int NH,
                                    int NKV, float eps) {
    int64_t HS = head_size(inp, NH, NKV);
    return cpu_scale_bytes(q_weight, HS) + cpu_scale_bytes(k_weight, HS);
}

static void qk_norm_forward_run(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                                const struct tensor *q_weight, const struct tensor *k_weight, int NH, int NKV,
                                float eps) {
    int64_t N = tensor_rows(inp), width = tensor_cols(inp), HS = head_size(inp, NH, NKV), QK = NH + NKV;
    float *memory = (float *)env->scratch;
    const float *q = cpu_scale(q_weight, HS, &memory), *k = cpu_scale(k_weight, HS, &memory);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const float *x = f32(inp) + n * width;
        float *o = f32(out) + n * width;
        for (int64_t h = 0; h < QK; h++, x += HS, o += HS) {
            const float *w = h < NH ? q : k;
            float r = rstd_of(x, HS, eps);
            for (int64_t i = 0; i < HS; i++) o[i] = x[i] * r * w[i];
        }
        for (int64_t i = 0; i < NKV * HS; i++) o[i] = x[i];
    }
}

/* Rows per partial sum of the weights' gradients. It depends on N alone, so that the number of threads
 * changes no bit. */
static int64_t rows_of_part(int64_t N) { return ceil_div(N, 64); }

static int64_t qk_norm_backward_need(struct tensor *dinp, struct tensor *dq_weight, struct tensor *dk_weight,
                                     const struct tensor *dout, const struct tensor *inp,
                                     const struct tensor *q_weight, const struct tensor *k_weight, int NH,
                                     int NKV, float eps) {
    int64_t N = tensor_rows(inp), HS = head_size(inp, NH, NKV);
    return ceil_div(N, rows_of_part(N)) * 2 * HS * (int64_t)sizeof(float) + cpu_scale_bytes(q_weight, HS) +
           cpu_scale_bytes(k_weight, HS);
}

/* One head: dinp, which may be d, and its contribution to dw. */
static void head_backward(float *dinp, float *dw, const float *d, const float *x, const float *w, int64_t HS,
                          float eps) {
    float r = rstd_of(x, HS, eps), sum_gx = 0.0f;
#pragma omp simd reduction(+ : sum_gx)
    for (int64_t i = 0; i < HS; i++) {
        float xhat = x[i] * r;
        sum_gx += d[i] * w[i] * xhat;
        dw[i] += d[i] * xhat;
    }
    float mean_gx = sum_gx / (float)HS;
#pragma omp simd
    for (int64_t i = 0; i < HS; i++) dinp[i] = r * (d[i] * w[i] - x[i] * r * mean_gx);
}

static void qk_norm_backward_run(const struct op_env *env, struct tensor *dinp, struct tensor *dq_weight,
                                 struct tensor *dk_weight, const struct tensor *dout,
                                 const struct tensor *inp, const struct tensor *q_weight,
                                 const struct tensor *k_weight, int NH, int NKV, float eps) {
    int64_t N = tensor_rows(inp), width = tensor_cols(inp), HS = head_size(inp, NH, NKV), QK = NH + NKV;
    int64_t part_rows = rows_of_part(N), parts = ceil_div(N, part_rows);
    float *partial = (float *)env->scratch; /* (parts, 2, HS): what each part adds to the two weights */
    float *memory = partial + parts * 2 * HS;
    const float *q = cpu_scale(q_weight, HS, &memory), *k = cpu_scale(k_weight, HS, &memory);
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        float *dq = partial + part * 2 * HS, *dk = dq + HS;
        for (int64_t i = 0; i < 2 * HS; i++) dq[i] = 0.0f;
        for (int64_t n = part * part_rows; n < min_i64((part + 1) * part_rows, N); n++) {
            const float *d = f32(dout) + n * width, *x = f32(inp) + n * width;
            float *to = f32(dinp) + n * width;
            for (int64_t h = 0; h < QK; h++, d += HS, x += HS, to += HS)
                head_backward(to, h < NH ? dq : dk, d, x, h < NH ? q : k, HS, eps);
            for (int64_t i = 0; i < NKV * HS; i++) to[i] = d[i];
        }
    }
    for (int64_t part = 0; dq_weight && part < parts; part++)
        for (int64_t i = 0; i < HS; i++) {
            f32(dq_weight)[i] += partial[part * 2 * HS + i];
            f32(dk_weight)[i] += partial[part * 2 * HS + HS + i];
        }
}

CPU_VARIANT(qk_norm_forward, qk_norm_forward_need);
CPU_VARIANT(qk_norm_backward, qk_norm_backward_need);
