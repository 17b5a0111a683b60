/* GELU in its tanh form and its derivative (ops.h, act), for every kernel that applies it.
 *
 * With u = sqrt(2/pi)*(x + 0.044715x^3): 0.5*(1 + tanh u) = 1/(1 + e^-2u) =: s, so gelu = x*s without the
 * cancellation of 1 + tanh at negative x, and one hardware exponential and one fast division in place of
 * tanhf(). e^-2u = infinity gives s = 0. */
#ifndef LLMC_CUDA_GELU_CUH
#define LLMC_CUDA_GELU_CUH

#include "llmc/cuda/kernel.cuh"

constexpr float GELU_SLOPE = 0.7978845608028654f * 2.0f; /* 2*sqrt(2/pi) */
constexpr float GELU_CUBIC = 0.044715f;

/* e^-2u */
DEVICE_INLINE float gelu_exp(float x) {
    const float minus_log2_e = -1.4426950408889634f;
    return fast_exp2(minus_log2_e * GELU_SLOPE * x * (1.0f + GELU_CUBIC * x * x));
}

DEVICE_INLINE float gelu(float x) { return x * __fdividef(1.0f, 1.0f + gelu_exp(x)); }

/* s + x*s*(1-s)*2u', with 1-s = s*e^-2u. Beyond |x| = 10 it is 0 or 1 to fp32 and x^2 could overflow. */
DEVICE_INLINE float gelu_derivative(float x) {
    x = fminf(fmaxf(x, -10.0f), 10.0f);
    float e = gelu_exp(x), s = __fdividef(1.0f, 1.0f + e);
    return s + x * s * (s * e) * GELU_SLOPE * (1.0f + 3.0f * GELU_CUBIC * x * x);
}

#endif
