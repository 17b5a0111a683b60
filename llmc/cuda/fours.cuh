/* Elementwise kernels whose buffers may have different dtypes: a thread takes N elements, one or four.
 *
 * Four are 16 bytes of fp32 or 8 of bf16, so that a warp's accesses are contiguous in every dtype, and one
 * Philox block gives a thread its random numbers. The last thread takes the n % 4 remaining elements; their
 * buffers must start on a vector (operands.cuh). */
#ifndef LLMC_CUDA_FOURS_CUH
#define LLMC_CUDA_FOURS_CUH

#include "llmc/cuda/kernel.cuh"

#include <type_traits>

constexpr int FOUR = 4;

template <class T> using bits_of_four = std::conditional_t<sizeof(T) == 4, int4, unsigned long long>;

/* The first element of this thread. */
template <int N> DEVICE_INLINE int64_t first_of() {
    return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
}

/* x[k] = p[i + k], or 0 from element n on; one element needs i < n. */
template <class T> DEVICE_INLINE void load(float (&x)[1], const T *p, int64_t i, int64_t n) {
    x[0] = to_float(p[i]);
}
template <class T> DEVICE_INLINE void load(float (&x)[FOUR], const T *p, int64_t i, int64_t n) {
    if (i + FOUR <= n) {
        bits_of_four<T> bits = __ldcs(reinterpret_cast<const bits_of_four<T> *>(p + i));
        T y[FOUR];
        memcpy((void *)y, &bits, sizeof bits);
#pragma unroll
        for (int k = 0; k < FOUR; k++) x[k] = to_float(y[k]);
        return;
    }
#pragma unroll
    for (int k = 0; k < FOUR; k++) x[k] = i + k < n ? to_float(p[i + k]) : 0.0f;
}

/* p[i + k] = x[k], below element n. */
template <class T> DEVICE_INLINE void store_exact(T *p, const T (&x)[1], int64_t i, int64_t n) {
    p[i] = x[0];
}
template <class T> DEVICE_INLINE void store_exact(T *p, const T (&x)[FOUR], int64_t i, int64_t n) {
    if (i + FOUR <= n) {
        bits_of_four<T> bits;
        memcpy(&bits, x, sizeof bits);
        __stcs(reinterpret_cast<bits_of_four<T> *>(p + i), bits);
        return;
    }
#pragma unroll
    for (int k = 0; k < FOUR; k++)
        if (i + k < n) p[i + k] = x[k];
}
/* The same, rounded to nearest. */
template <int N, class T> DEVICE_INLINE void store(T *p, const float (&x)[N], int64_t i, int64_t n) {
    T y[N];
#pragma unroll
    for (int k = 0; k < N; k++) y[k] = from_float<T>(x[k]);
    store_exact(p, y, i, n);
}

#endif
