/* Helpers of the CPU operations. These are the reference, in fp32, that every other back end is tested
 * against, so each file reads as the definition of its ops. They also train models, so loops are threaded
 * with OpenMP over independent rows or columns and written so that the compiler vectorises them. The number
 * of threads changes no bit of a result.
 *
 * Each file is compiled once per instruction set (LLMC_CPU_ISAS in ops.h). CPU_ISA is the one of this
 * compilation, and CPU_NAME() makes the names of what other files see. */
#ifndef LLMC_CPU_H
#define LLMC_CPU_H

#include "llmc/ops/fp8.h"
#include "llmc/ops/ops.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#ifndef CPU_ISA /* in an editor */
#define CPU_ISA plain
#endif
#define CPU_JOIN_(a, b)  a##_##b
#define CPU_JOIN(a, b)   CPU_JOIN_(a, b)
#define CPU_STRING_(a)   #a
#define CPU_STRING(a)    CPU_STRING_(a)
#define CPU_NAME(name)   CPU_JOIN(name, CPU_ISA)
#define CPU_VARIANT_NAME CPU_STRING(CPU_ISA)

/* The stretch of n elements that a thread takes in a loop over all of them: a long one, because after every
 * jump the hardware starts to prefetch anew. In w*a - u*b either product may be fused with the subtraction,
 * and gcc decides differently in a vector loop and in the scalar loop after it. With whole vectors in every
 * stretch but the last, the number of threads does not decide which of them an element is in. */
static inline int64_t cpu_share(int64_t n) {
    enum { WHOLE = 4096 };
    return max_i64(WHOLE, round_up(ceil_div(n, omp_get_max_threads()), WHOLE));
}

/* e^x to 2 ulp for -87.33 < x < 88.72. It is inlined and has no branch, so that loops over it vectorise;
 * libm's expf does not without -ffast-math. x = n*ln2 + r with |r| <= ln2/2; e^r is its Taylor series to
 * degree 7 (remainder 5e-9), and adding n to the exponent field multiplies by 2^n. NaN stays NaN. */
static inline float cpu_expf_bounded(float x) {
    const float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const float shift = 12582912.0f;
    union {
        float f;
        uint32_t u;
    } k, y;
    k.f = x * log2e + shift; /* adding 1.5*2^23 rounds to an integer and puts it into the low bits */
    float n = k.f - shift, r = x - n * ln2_high - n * ln2_low;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    y.f = p * r + 1.0f;
    y.u += k.u << 23;
    return y.f;
}

/* For x < 88.72, as in a softmax. Results below the normal numbers are 0. */
static inline float cpu_expf(float x) {
    const float low = -87.33654f;
    float y = cpu_expf_bounded(x < low ? low : x); /* false for NaN, which passes through */
    return x < low ? 0.0f : y;
}

/* x between -most and most; NaN stays. Two comparisons of x would do, but gcc makes paths of them, computes
 * each for all lanes and blends: with AVX2 an activation then takes up to six times as long. */
static inline float cpu_clamp(float x, float most) {
    float m = fabsf(x);
    return copysignf(m > most ? most : m, x);
}

/* GELU, tanh form, and its derivative. With z = sqrt(2/pi) (x + 0.044715 x^3) and the logistic function s =
 * 1/(1 + e^-2z), 1 + tanh z = 2 s. So gelu = x s, which does not cancel in the negative tail as 1 + tanh
 * does. The derivative is s + x s (1-s) 2z', with 1-s = e^-2z s. */
#define GELU_SCALE 0.7978845608028654f /* sqrt(2/pi) */
static inline float cpu_gelu(float x) {
    float c = cpu_clamp(x, 10.0f), low = x > c ? x : c; /* beyond, s is 0 or 1 to the last bit */
    return low / (1.0f + cpu_expf_bounded(-2.0f * GELU_SCALE * (c + 0.044715f * c * c * c)));
}
/* Beyond |x| = 10 it is 0 or 1 to the last bit; the clamp keeps x^3 and e^-2z, at most e^87.31, finite. */
static inline float cpu_gelu_derivative(float x) {
    x = cpu_clamp(x, 10.0f);
    float e = cpu_expf_bounded(-2.0f * GELU_SCALE * (x + 0.044715f * x * x * x)), s = 1.0f / (1.0f + e);
    return s + x * s * (e * s) * (2.0f * GELU_SCALE) * (1.0f + 3.0f * 0.044715f * x * x);
}

/* SiLU is x s with s = 1/(1 + e^-x); its derivative is s + x s (1-s), with 1-s = e^-x s. Below -87, where
 * e^-x could overflow, both are within 128 FLT_MIN of 0. */
static inline float cpu_silu(float x) {
    float y = x / (1.0f + cpu_expf_bounded(-cpu_clamp(x, 87.0f)));
    return x < -87.0f ? 0.0f : y;
}
static inline float cpu_silu_derivative(float x) {
    x = cpu_clamp(x, 87.0f);
    float e = cpu_expf_bounded(-x), s = 1.0f / (1.0f + e);
    return s * (1.0f + x * (e * s));
}

/* An activation and its derivative; `act` is a constant where a loop over them is to vectorise. */
static inline float cpu_act(enum activation act, float x) {
    return act == ACT_GELU ? cpu_gelu(x) : act == ACT_SILU ? cpu_silu(x) : x > 0.0f ? x * x : 0.0f;
}
static inline float cpu_act_derivative(enum activation act, float x) {
    return act == ACT_GELU   ? cpu_gelu_derivative(x)
           : act == ACT_SILU ? cpu_silu_derivative(x)
           : x > 0.0f        ? 2.0f * x
                             : 0.0f;
}

/* x held between -cap and cap, cap*tanh(x/cap), and its derivative by x. The error is 2^-22 of the cap. */
struct cpu_capped {
    float value, slope;
};
static inline struct cpu_capped cpu_soften(float x, float cap) {
    float e = cpu_expf_bounded(fmaxf(-2.0f * fabsf(x) / cap, -80.0f));
    float tanh_of = (1.0f - e) / (1.0f + e);
    return (struct cpu_capped){copysignf(cap * tanh_of, x), 4.0f * e / ((1.0f + e) * (1.0f + e))};
}

/* The elements of a weight in fp32: its own, or of a bf16 one a copy in `*memory`, which then points behind
 * the copy. The copy takes cpu_copy_bytes() of scratch. */
static inline const float *cpu_weight(const struct tensor *t, float **memory) {
    if (t->dtype != DTYPE_BF16) return f32(t);
    const uint16_t *from = (const uint16_t *)t->data;
    float *to = *memory;
    int64_t n = tensor_count(t);
#pragma omp parallel for simd schedule(static, cpu_share(n)) if (n > 1 << 16)
    for (int64_t i = 0; i < n; i++) to[i] = f32_from_bf16(from[i]);
    *memory += n;
    return to;
}
static inline int64_t cpu_copy_bytes(const struct tensor *t) {
    return t && t->dtype == DTYPE_BF16 ? tensor_count(t) * (int64_t)sizeof(float) : 0;
}

/* The largest magnitude, or NaN if there is one. Compared as bits, numbers without a sign are in order, and
 * NaN is the largest. */
static inline float cpu_largest_magnitude(const float *x, int64_t n) {
    uint32_t most = 0;
#pragma omp parallel for simd schedule(static, cpu_share(n)) reduction(max : most)
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

/* to = x, each of n elements rounded to fp8 with the scale for this largest magnitude; may be x. */
static inline void cpu_round_to_fp8(float *to, const float *x, int64_t n, enum fp8_format format,
                                    float amax) {
    float scale = fp8_scale(format, amax);
#pragma omp parallel for simd schedule(static, cpu_share(n))
    for (int64_t i = 0; i < n; i++) to[i] = fp8_through(format, x[i], scale);
}
/* An output that may be marked fp8, except a norm's. */
static inline void cpu_round_marked(struct tensor *out) {
    int64_t n = tensor_count(out);
    if (out->fp8) cpu_round_to_fp8(f32(out), f32(out), n, FP8_E4M3, cpu_largest_magnitude(f32(out), n));
}

/* The same of a norm's weight, or n ones in `*memory` where it has none. It takes cpu_scale_bytes(). */
static inline const float *cpu_scale(const struct tensor *t, int64_t n, float **memory) {
    if (t) return cpu_weight(t, memory);
    float *ones = *memory;
    for (int64_t i = 0; i < n; i++) ones[i] = 1.0f;
    *memory += n;
    return ones;
}
static inline int64_t cpu_scale_bytes(const struct tensor *t, int64_t n) {
    return t ? cpu_copy_bytes(t) : n * (int64_t)sizeof(float);
}

/* The variants of each op, defined in the file of the op. */
#define X(op) extern const struct op##_variant CPU_NAME(cpu_##op##_variants)[];
LLMC_OPS(X)
#undef X

/* Defines the array of an op with one variant: op##_run, with op##_need or NULL as its need(). */
#define CPU_VARIANT(op, need_function)                                                                       \
    const struct op##_variant CPU_NAME(cpu_##op##_variants)[] = {                                            \
        {.name = CPU_VARIANT_NAME, .run = op##_run, .need = need_function}, {0}}

#endif
