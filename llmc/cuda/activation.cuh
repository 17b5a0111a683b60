/* The activations and their derivatives (ops.h, act), for every kernel that applies one.
 *
 * GELU and SiLU are x*s with a logistic function s = 1/(1 + e^-z): z = x in SiLU, and in GELU, with u =
 * sqrt(2/pi)*(x + 0.044715x^3), z = 2u, because 0.5*(1 + tanh u) = 1/(1 + e^-2u). That takes one hardware
 * exponential and one fast division in place of tanhf(), and does not cancel at negative x. e^-z = infinity
 * gives s = 0. */
#ifndef LLMC_CUDA_ACTIVATION_CUH
#define LLMC_CUDA_ACTIVATION_CUH

#include "llmc/cuda/kernel.cuh"

constexpr float MINUS_LOG2_E = -1.4426950408889634f;
constexpr float GELU_SLOPE = 0.7978845608028654f * 2.0f; /* 2*sqrt(2/pi) */
constexpr float GELU_CUBIC = 0.044715f;

DEVICE_INLINE float logistic(float exp_minus_z) { return __fdividef(1.0f, 1.0f + exp_minus_z); }

/* e^-2u */
DEVICE_INLINE float gelu_exp(float x) {
    return fast_exp2(MINUS_LOG2_E * GELU_SLOPE * x * (1.0f + GELU_CUBIC * x * x));
}

DEVICE_INLINE float gelu(float x) { return x * logistic(gelu_exp(x)); }

/* s + x*s*(1-s)*2u', with 1-s = s*e^-2u. Beyond |x| = 10 it is 0 or 1 to fp32 and x^2 could overflow. */
DEVICE_INLINE float gelu_derivative(float x) {
    x = fminf(fmaxf(x, -10.0f), 10.0f);
    float e = gelu_exp(x), s = logistic(e);
    return s + x * s * (s * e) * GELU_SLOPE * (1.0f + 3.0f * GELU_CUBIC * x * x);
}

DEVICE_INLINE float silu(float x) { return x * logistic(fast_exp2(MINUS_LOG2_E * x)); }

/* s*(1 + x*(1-s)), with 1-s = s*e^-x. Beyond |x| = 87, where it is 0 or 1 to fp32, e^-x could be infinite. */
DEVICE_INLINE float silu_derivative(float x) {
    x = fminf(fmaxf(x, -87.0f), 87.0f);
    float e = fast_exp2(MINUS_LOG2_E * x), s = logistic(e);
    return s * (1.0f + x * (s * e));
}

template <enum activation ACT> DEVICE_INLINE float activation_of(float x) {
    if constexpr (ACT == ACT_GELU)
        return gelu(x);
    else if constexpr (ACT == ACT_SILU)
        return silu(x);
    else
        return x > 0.0f ? x * x : 0.0f;
}
template <enum activation ACT> DEVICE_INLINE float activation_derivative(float x) {
    if constexpr (ACT == ACT_GELU)
        return gelu_derivative(x);
    else if constexpr (ACT == ACT_SILU)
        return silu_derivative(x);
    else
        return x > 0.0f ? 2.0f * x : 0.0f;
}

/* Host side: calls f with the activation as a compile-time constant. */
template <class F> void with_activation(enum activation act, F f) {
    switch (act) {
    case ACT_GELU:
        return f(std::integral_constant<enum activation, ACT_GELU>());
    case ACT_SILU:
        return f(std::integral_constant<enum activation, ACT_SILU>());
    case ACT_RELU2:
        return f(std::integral_constant<enum activation, ACT_RELU2>());
    case ACT_NONE:
        break;
    }
    die("no activation to apply");
}

#endif
