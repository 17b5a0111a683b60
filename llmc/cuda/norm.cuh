/* What the norms have in common: weights that may be absent, and the end of a backward pass, in which blocks
 * have left sums of two parameters' gradients. */
#ifndef LLMC_CUDA_NORM_CUH
#define LLMC_CUDA_NORM_CUH

#include "llmc/cuda/kernel.cuh"

/* A weight, or 1 in a norm without weights (NULL). */
template <class T> DEVICE_INLINE float weight_at(const T *weight, int64_t c) {
    return weight ? to_float(weight[c]) : 1.0f;
}
template <class T> DEVICE_INLINE vec<T> weights_at(const T *weight, int64_t c) {
    return weight ? vec<T>::load(weight + c) : vec<T>::filled(1.0f);
}

/* Adds the blocks' sums, partials (blocks, 2, C): threadIdx.x is a column of them, threadIdx.y a slice of the
 * blocks. Of the columns, C belong to dweight, and another C to dbias if it is wanted. */
constexpr int FINISH_SLICES = 8;
template <class T>
__global__ void norm_backward_finish_kernel(T *dweight, T *dbias, const float *partials, int blocks,
                                            int columns, int C) {
    SHARED(float, slice, [FINISH_SLICES][WARP_SIZE]);
    int column = (int)blockIdx.x * WARP_SIZE + (int)threadIdx.x;
    float sum = 0.0f;
    if (column < columns)
#pragma unroll 4
        for (int b = (int)threadIdx.y; b < blocks; b += FINISH_SLICES)
            sum += partials[(int64_t)b * 2 * C + column];
    slice[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || column >= columns) return;
    for (int s = 1; s < FINISH_SLICES; s++) sum += slice[s][threadIdx.x];
    T *d = column < C ? dweight + column : dbias + (column - C);
    *d = from_float<T>(to_float(*d) + sum);
}

#endif
