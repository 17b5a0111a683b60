/* Linear layers on BLAS: forward, backward, and both in fp8. Contracts in ops.h.
 *
 * Bias and activation are another pass over the output, which is still in cache for the shapes of a
 * training step. fp8 rounds copies of the operands and multiplies these in fp32: it defines the result, and
 * shows without a GPU what fp8 does to a model. */
#include "llmc/ops/fp8.h"
#include "llmc/cpu/cpu.h"

#include <cblas.h>
#include <string.h>

void cpu_column_sum(float *out, const float *x, int64_t N, int64_t C, bool accumulate) {
    enum { BLOCK = 64 };
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < C; first += BLOCK) {
        int64_t count = min_i64(BLOCK, C - first);
        float total[BLOCK] = {0};
        for (int64_t n = 0; n < N; n++)
            for (int64_t c = 0; c < count; c++) total[c] += x[n * C + first + c];
        for (int64_t c = 0; c < count; c++)
            out[first + c] = accumulate ? out[first + c] + total[c] : total[c];
    }
}

/* With few rows, as in text generation, reading the weights takes all the time. Dot products read them
 * once; a blocked GEMM would first copy them into its own layout. */
enum { FEW_ROWS = 4 };

static void matmul_few_rows(float *out, const float *inp, const float *weight, int64_t N, int64_t C,
                            int64_t OC) {
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < OC; o++) {
        const float *w = weight + o * C;
        for (int64_t n = 0; n < N; n++) {
            const float *x = inp + n * C;
            float s = 0.0f;
#pragma omp simd reduction(+ : s)
            for (int64_t c = 0; c < C; c++) s += x[c] * w[c];
            out[n * OC + o] = s;
        }
    }
}

static int64_t matmul_forward_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                                   const struct tensor *weight, const struct tensor *bias,
                                   enum activation act) {
    return matmul_in_fp8(inp, weight) ? OP_UNSUPPORTED : 0;
}

static void matmul_forward_run(const struct op_env *env, struct tensor *out, struct tensor *pre,
                               const struct tensor *inp, const struct tensor *weight,
                               const struct tensor *bias, enum activation act) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp), OC = tensor_rows(weight);
    float *product = pre ? f32(pre) : f32(out);
    if (N <= FEW_ROWS)
        matmul_few_rows(product, f32(inp), f32(weight), N, C, OC);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)N, (int)OC, (int)C, 1.0f, f32(inp), (int)C,
                    f32(weight), (int)C, 0.0f, product, (int)OC);
    if (!bias && act == ACT_NONE) return;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        float *p = product + n * OC, *o = f32(out) + n * OC;
        if (bias) {
            const float *b = f32(bias);
            for (int64_t c = 0; c < OC; c++) p[c] += b[c];
        }
        if (act == ACT_GELU)
            for (int64_t c = 0; c < OC; c++) o[c] = cpu_gelu(p[c]);
    }
}

static int64_t matmul_backward_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                    const struct tensor *dout, const struct tensor *inp,
                                    const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    return matmul_in_fp8(inp, weight) ? OP_UNSUPPORTED : 0;
}

static void matmul_backward_run(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                                struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                                const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    int64_t N = tensor_rows(dout), C = tensor_cols(inp), OC = tensor_cols(dout);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)OC, (int)C, (int)N, 1.0f, f32(dout), (int)OC,
                f32(inp), (int)C, accumulate ? 1.0f : 0.0f, f32(dweight), (int)C);
    if (dbias) cpu_column_sum(f32(dbias), f32(dout), N, OC, accumulate);
    if (!dinp) return;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)N, (int)C, (int)OC, 1.0f, f32(dout), (int)OC,
                f32(weight), (int)C, 0.0f, f32(dinp), (int)C);
    if (!pre) return;
    float *dx = f32(dinp);
    const float *x = f32(pre);
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < N * C; i++) dx[i] *= cpu_gelu_derivative(x[i]);
}

/* --- fp8 --- */

/* The largest magnitude, or NaN if there is one. Compared as bits, numbers without a sign are in order, and
 * NaN is the largest. */
static float largest_magnitude(const float *x, int64_t n) {
    uint32_t most = 0;
#pragma omp parallel for simd schedule(static) reduction(max : most)
    for (int64_t i = 0; i < n; i++) {
        union {
            float f;
            uint32_t u;
        } v = {x[i]};
        uint32_t bits = v.u & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    float amax;
    memcpy(&amax, &most, sizeof amax);
    return amax;
}

/* A copy of `t` in `memory`, each element rounded to fp8 with the scale of the tensor. */
static struct tensor through_fp8(const struct tensor *t, enum fp8_format format, float *memory) {
    struct tensor copy = *t;
    const float *x = f32(t);
    int64_t n = tensor_count(t);
    float scale = fp8_scale(format, largest_magnitude(x, n));
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) memory[i] = fp8_through(format, x[i], scale);
    copy.data = memory;
    copy.fp8 = false;
    return copy;
}

static int64_t matmul_forward_fp8_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                                       const struct tensor *weight, const struct tensor *bias,
                                       enum activation act) {
    return matmul_in_fp8(inp, weight) ? tensor_bytes(inp) + tensor_bytes(weight) : OP_UNSUPPORTED;
}

static void matmul_forward_fp8(const struct op_env *env, struct tensor *out, struct tensor *pre,
                               const struct tensor *inp, const struct tensor *weight,
                               const struct tensor *bias, enum activation act) {
    float *memory = (float *)env->scratch;
    struct tensor inp8 = through_fp8(inp, FP8_E4M3, memory);
    struct tensor weight8 = through_fp8(weight, FP8_E4M3, memory + tensor_count(inp));
    matmul_forward_run(env, out, pre, &inp8, &weight8, bias, act);
}

static int64_t matmul_backward_fp8_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                        const struct tensor *dout, const struct tensor *inp,
                                        const struct tensor *weight, const struct tensor *pre,
                                        bool accumulate) {
    return matmul_in_fp8(inp, weight) ? tensor_bytes(dout) + tensor_bytes(inp) + tensor_bytes(weight)
                                      : OP_UNSUPPORTED;
}

static void matmul_backward_fp8(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                                struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                                const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    float *memory = (float *)env->scratch;
    struct tensor dout8 = through_fp8(dout, FP8_E5M2, memory);
    struct tensor inp8 = through_fp8(inp, FP8_E4M3, memory += tensor_count(dout));
    struct tensor weight8 = through_fp8(weight, FP8_E4M3, memory + tensor_count(inp));
    matmul_backward_run(env, dinp, dweight, NULL, &dout8, &inp8, &weight8, pre, accumulate);
    if (dbias) cpu_column_sum(f32(dbias), f32(dout), tensor_rows(dout), tensor_cols(dout), accumulate);
}

const struct matmul_forward_variant cpu_matmul_forward_variants[] = {
    {"fp8", matmul_forward_fp8, matmul_forward_fp8_need},
    {"cpu", matmul_forward_run, matmul_forward_need},
    {0}};
const struct matmul_backward_variant cpu_matmul_backward_variants[] = {
    {"fp8", matmul_backward_fp8, matmul_backward_fp8_need},
    {"cpu", matmul_backward_run, matmul_backward_need},
    {0}};
