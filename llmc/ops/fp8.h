/* 8-bit floating point as the OCP defines it ("OCP 8-bit Floating Point Specification (OFP8)", revision
 * 1.0, 2023), and how the engine's fp8 products round a tensor:
 *
 *   e4m3   4 bits of exponent (bias 7), 3 of mantissa; no infinity; largest 448, smallest normal 2^-6
 *   e5m2   5 bits of exponent (bias 15), 2 of mantissa; largest 57344, smallest normal 2^-14
 *
 * A tensor has one scale: the largest power of two that keeps its largest magnitude within the format.
 * Multiplying by a power of two is exact, so rounding is the only error, and small integers have none.
 * Compared with the largest possible scale this costs at most one of the 17 (e4m3) or 31 (e5m2) binades,
 * and no precision. */
#ifndef LLMC_FP8_H
#define LLMC_FP8_H

#include "llmc/ops/tensor.h"

#include <math.h>

#ifdef __cplusplus
extern "C" {
#endif

enum fp8_format { FP8_NONE, FP8_E4M3, FP8_E5M2 };

static inline float fp8_largest(enum fp8_format f) { return f == FP8_E4M3 ? 448.0f : 57344.0f; }

/* The scale for a tensor with this largest magnitude. It lies within 2^-126 .. 2^126, so that it and its
 * inverse are normal numbers; a tensor of zeros has 1. A tensor that is not finite has NaN, which makes
 * every product NaN. */
static inline float fp8_scale(enum fp8_format f, float amax) {
    if (!isfinite(amax)) return NAN;
    if (amax == 0.0f) return 1.0f;
    int e;
    float m = frexpf(amax, &e); /* amax = m 2^e, m in [0.5, 1);  the largest of a format is 0.875 2^top */
    int top = f == FP8_E4M3 ? 9 : 16, shift = top - e - (m > 0.875f);
    return ldexpf(1.0f, shift < -126 ? -126 : shift > 126 ? 126 : shift);
}

/* What no element of a norm's output exceeds by more than rounding: |xhat| <= sqrt(C), because the squares of
 * a row's xhat add up to at most C. So the output's scale is known before the output is. The largest element
 * of rows that are normally distributed is some 3 binades below, and e4m3 has 17. */
static inline float fp8_norm_bound(float weight, float bias, float root_of_C) {
    return fmaf(root_of_C, fabsf(weight), fabsf(bias));
}

/* What no element of (dout @ weight) * gelu'(pre) exceeds, given the largest |dout| and the largest sum of a
 * column of |weight|, rounded: the slope is at most 1.13, and rounding adds at most 1/8 to |dout|. Elements of
 * random signs stay some 5 binades below; e5m2 has 31. */
static inline float fp8_gradient_bound(float dout, float weight) { return 1.5f * dout * weight; }

static inline enum fp8_format fp8_format_of(enum dtype t) {
    return t == DTYPE_E4M3 ? FP8_E4M3 : t == DTYPE_E5M2 ? FP8_E5M2 : FP8_NONE;
}

/* Rounds to the nearest number of the format, ties to even, and what is beyond the largest to the largest;
 * NaN stays NaN. Adding 1.5 * 2^23 times the spacing rounds to a multiple of it; unlike frexp, this
 * vectorises. */
static inline float fp8_round(enum fp8_format f, float x) {
    float largest = fp8_largest(f), normal = f == FP8_E4M3 ? 0x1p-6f : 0x1p-14f, magnitude = fabsf(x);
    magnitude = magnitude > largest ? largest : magnitude;
    union {
        float f;
        uint32_t u;
    } power; /* the largest power of two up to the magnitude; subnormal numbers share a spacing */
    power.f = magnitude < normal ? normal : magnitude;
    power.u &= 0x7f800000u;
    float shift = power.f * (f == FP8_E4M3 ? 0x1.8p20f : 0x1.8p21f);
    return copysignf((magnitude + shift) - shift, x);
}

/* An element of a tensor with this scale, rounded to fp8 and scaled back. */
static inline float fp8_through(enum fp8_format f, float x, float scale) {
    return fp8_round(f, x * scale) / scale;
}

/* Decodes a byte. */
static inline float fp8_value(enum fp8_format f, uint8_t code) {
    int mantissa = f == FP8_E4M3 ? 3 : 2, bias = f == FP8_E4M3 ? 7 : 15, exponent = (code & 0x7f) >> mantissa;
    int fraction = code & ((1 << mantissa) - 1);
    float sign = code & 0x80 ? -1.0f : 1.0f;
    if (f == FP8_E4M3 ? (code & 0x7f) == 0x7f : exponent == 31 && fraction) return NAN;
    if (f == FP8_E5M2 && exponent == 31) return sign * INFINITY;
    float significand = (float)fraction + (exponent ? (float)(1 << mantissa) : 0.0f);
    return sign * ldexpf(significand, (exponent ? exponent : 1) - bias - mantissa);
}

#ifdef __cplusplus
}
#endif
#endif
