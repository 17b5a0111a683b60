/* What the CPU operations share. They are the reference: each file reads as the definition of its ops, in
 * fp32, and every other back end is checked against it. They are also meant to be used, so the loops are
 * threaded with OpenMP over independent rows or columns and written so that the compiler vectorises them. No
 * result depends on the number of threads, except through BLAS. */
#ifndef LLMC_CPU_H
#define LLMC_CPU_H

#include "../ops.h"

/* e^x to 2 ulp, inlined and branch-free so that loops over it vectorise (libm's expf does not without
 * -ffast-math). x = n*ln2 + r with |r| <= ln2/2; e^r by its Taylor series to degree 7 (remainder 5e-9); 2^n
 * by building the exponent. Saturates: 0 below e^-104, infinity above e^89; NaN stays NaN. */
static inline float cpu_expf(float x) {
    const float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, shift = 12582912.0f;
    float clamped = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x; /* false for NaN: it passes through r */
    float n = (clamped * log2e + shift) - shift;                   /* adding 1.5*2^23 rounds to an integer */
    float r = clamped - n * ln2_high - n * ln2_low;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    /* 2^n in two factors, so that n = 128 and n = -149 are reached without an exponent outside its field */
    int32_t half = (int32_t)(n == n ? n : 0.0f) / 2, rest = (int32_t)(n == n ? n : 0.0f) - half;
    union {
        int32_t i;
        float f;
    } a = {(half + 127) << 23}, b = {(rest + 127) << 23};
    return p * a.f * b.f;
}

/* tanh through e^2x; absolute error below 1e-7, which is what 1 + tanh needs. */
static inline float cpu_tanhf(float x) { return 1.0f - 2.0f / (cpu_expf(2.0f * x) + 1.0f); }

/* GELU and its derivative, tanh form. */
#define GELU_SCALE 0.7978845608028654f /* sqrt(2/pi) */
static inline float cpu_gelu(float x) {
    return 0.5f * x * (1.0f + cpu_tanhf(GELU_SCALE * (x + 0.044715f * x * x * x)));
}
/* Beyond |x| = 10 the tail is 0 or 1 exactly; clamping keeps x^2 finite, whose product with 0 would be NaN.
 */
static inline float cpu_gelu_derivative(float x) {
    x = x < -10.0f ? -10.0f : x > 10.0f ? 10.0f : x;
    float t = cpu_tanhf(GELU_SCALE * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * GELU_SCALE * (1.0f + 3.0f * 0.044715f * x * x);
}

/* sum over rows of x (N,C), added to or stored in `out` (C): a thread owns a block of columns and walks all
 * rows, so the order of summation is fixed. */
void cpu_column_sum(float *out, const float *x, int64_t N, int64_t C, bool accumulate);

/* What a row that needs no scratch asks for: the front door has seen to it that all operands are alike. */
static inline int64_t cpu_needs(const struct tensor *t, int64_t scratch) {
    return t->dtype == DTYPE_F32 ? scratch : OP_UNSUPPORTED;
}

/* The single row of an op. */
#define CPU_ROW(op, need_function)                                                                           \
    const struct op##_variant cpu_##op##_variants[] = {{"cpu", op##_run, need_function}, {0}}

#endif
