/* fp8 on the device: conversion, the largest magnitude of a tensor, and fp8 copies of it, as it is and
 * transposed. llmc/ops/fp8.h has the definitions.
 *
 * A tensor's scale comes from its own largest magnitude ("current" scaling), which takes a pass over it. A
 * scale from earlier steps ("delayed" scaling) would save that pass, but it is state: checkpoints must save
 * it, processes must agree on it, a recomputed layer must use the same one, and values that grow faster
 * saturate. What saves more is that most tensors are never stored in bf16 and then cast: norms, whose scale
 * follows from their weights, and activations write e4m3 at once, and the backward pass transposes bytes.
 * profiling/README.md has the bytes of every operand before and after, and what is left. */
#ifndef LLMC_CUDA_FP8_CUH
#define LLMC_CUDA_FP8_CUH

#include "llmc/cuda/kernel.cuh"
#include "llmc/ops/fp8.h"

#include <cuda_fp8.h>

/* --- conversion --- */

template <fp8_format F> constexpr __nv_fp8_interpretation_t fp8_code = F == FP8_E4M3 ? __NV_E4M3 : __NV_E5M2;

/* fp8_round() of two numbers, `lo` in the lower byte. One instruction from sm_89 on, else NVIDIA's
 * emulation. */
template <fp8_format F> DEVICE_INLINE uint32_t fp8_pair(float lo, float hi) {
    return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, fp8_code<F>);
}

/* Eight numbers times `scale`. */
template <fp8_format F> DEVICE_INLINE uint2 fp8_eight(const float (&x)[8], float scale) {
    uint32_t pair[4];
#pragma unroll
    for (int k = 0; k < 4; k++) pair[k] = fp8_pair<F>(x[2 * k] * scale, x[2 * k + 1] * scale);
    return make_uint2(pair[0] | pair[1] << 16, pair[2] | pair[3] << 16);
}
/* fp8_round() of one number, and fp8_value() of a byte. */
template <fp8_format F> DEVICE_INLINE uint8_t fp8_byte(float x) {
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, fp8_code<F>);
}
template <fp8_format F> DEVICE_INLINE float fp8_value_device(uint8_t code) {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, fp8_code<F>)));
}
/* fp8_through(). */
template <fp8_format F> DEVICE_INLINE float fp8_through_device(float x, float scale) {
    return fp8_value_device<F>(fp8_byte<F>(x * scale)) / scale;
}

/* An element of fp8 storage. */
template <fp8_format F> struct fp8_element { uint8_t code; };
using e4m3 = fp8_element<FP8_E4M3>;
using e5m2 = fp8_element<FP8_E5M2>;
/* A vector of an output, or one element, as it is stored: in fp8 multiplied by `scale` first. */
template <class T> DEVICE_INLINE void store_scaled(T *out, const float (&x)[vec<T>::size], float) {
    vec<T> v;
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) v[k] = from_float<T>(x[k]);
    v.store(out);
}
template <class T> DEVICE_INLINE void store_scaled(T *out, float x, float) { *out = from_float<T>(x); }
template <fp8_format F>
DEVICE_INLINE void store_scaled(fp8_element<F> *out, const float (&x)[8], float scale) {
    *reinterpret_cast<uint2 *>(out) = fp8_eight<F>(x, scale);
}
template <fp8_format F> DEVICE_INLINE void store_scaled(fp8_element<F> *out, float x, float scale) {
    out->code = fp8_byte<F>(x * scale);
}

/* --- largest magnitude --- */

/* Magnitudes are compared as bits: then NaN is the largest, and the maximum does not depend on the order in
 * which it is taken. */
DEVICE_INLINE uint32_t magnitude_bits(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits & 0x7fffffffu;
}

/* fp8_scale() of a magnitude's bits. The largest number of either format is 1.75 times a power of two. */
template <fp8_format F> DEVICE_INLINE float fp8_scale_of(uint32_t amax) {
    if (amax >= 0x7f800000u) return NAN;
    if (amax == 0) return 1.0f;
    int shift = (F == FP8_E4M3 ? 8 : 15) - ((int)(amax >> 23) - 127) - ((amax & 0x7fffffu) > 0x600000u);
    uint32_t bits = (uint32_t)(min(max(shift, -126), 126) + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

/* 1 / fp8_scale(), which is exact. */
template <fp8_format F> DEVICE_INLINE float fp8_descale_of(uint32_t amax) {
    return 1.0f / fp8_scale_of<F>(amax);
}

/* The maximum over a block of whole warps, in every thread. `warp` is this thread's warp; `scratch` holds
 * one word per warp and is not free for reuse on return. */
DEVICE_INLINE uint32_t block_max_bits(uint32_t v, int warp, int lane, int warps, uint32_t *scratch) {
    v = __reduce_max_sync(ALL_LANES, v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    return __reduce_max_sync(ALL_LANES, lane < warps ? scratch[lane] : 0u);
}

constexpr int AMAX_THREADS = 256, AMAX_MOST = 256; /* parts; a thread below reads one */

/* Blocks that share the work: one per 32 KiB of bf16, up to enough for any GPU. */
static int64_t amax_parts(int64_t count) {
    return min_i64(ceil_div(count, (int64_t)AMAX_THREADS * 64), AMAX_MOST);
}

/* parts (gridDim.x): the largest magnitude in each block, as bits. A thread reads W elements at a time; W
 * divides count. */
template <class T, int W>
static __global__ void __launch_bounds__(AMAX_THREADS)
    amax_kernel(uint32_t *parts, const T *x, int64_t count) {
    SHARED(uint32_t, scratch, [AMAX_THREADS / WARP_SIZE]);
    uint32_t largest = 0;
    int64_t step = (int64_t)gridDim.x * AMAX_THREADS * W;
    int64_t i = ((int64_t)blockIdx.x * AMAX_THREADS + threadIdx.x) * W;
#pragma unroll 8
    for (; i < count; i += step) {
        if constexpr (W == 1) {
            largest = max(largest, magnitude_bits(to_float(x[i])));
        } else {
            vec<T> v = vec<T>::load(x + i);
#pragma unroll
            for (int k = 0; k < W; k++) largest = max(largest, magnitude_bits(to_float(v[k])));
        }
    }
    int warp = (int)threadIdx.x / WARP_SIZE, lane = (int)threadIdx.x % WARP_SIZE;
    largest = block_max_bits(largest, warp, lane, AMAX_THREADS / WARP_SIZE, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = largest;
}

/* Scratch of act_forward and glu_forward for an e4m3 output. */
constexpr int64_t E4M3_OUTPUT_BYTES = AMAX_MOST * (int64_t)sizeof(uint32_t);

/* A tensor's largest magnitude is the largest of `count` <= AMAX_MOST words. */
struct amax {
    uint32_t *parts;
    int64_t count;
};

/* Its bits, in every thread of a block of AMAX_THREADS. */
DEVICE_INLINE uint32_t amax_of(const amax &largest, int warp, int lane, uint32_t *scratch) {
    uint32_t part = threadIdx.x < largest.count ? largest.parts[threadIdx.x] : 0u;
    return block_max_bits(part, warp, lane, AMAX_THREADS / WARP_SIZE, scratch);
}

/* *descale of a tensor with this largest magnitude. One block. */
template <fp8_format F>
static __global__ void __launch_bounds__(AMAX_THREADS) descale_kernel(float *descale, amax largest) {
    SHARED(uint32_t, scratch, [AMAX_THREADS / WARP_SIZE]);
    int warp = (int)threadIdx.x / WARP_SIZE, lane = (int)threadIdx.x % WARP_SIZE;
    uint32_t most = amax_of(largest, warp, lane, scratch);
    if (threadIdx.x == 0) *descale = fp8_descale_of<F>(most);
}

template <class T> static void find_amax(cudaStream_t stream, amax *a, const T *x, int64_t count) {
    a->count = amax_parts(count);
    if (vec_aligned(x, count))
        launch({(unsigned)a->count, AMAX_THREADS, 0, stream}, amax_kernel<T, vec<T>::size>, a->parts, x,
               count);
    else
        launch({(unsigned)a->count, AMAX_THREADS, 0, stream}, amax_kernel<T, 1>, a->parts, x, count);
}

/* --- copies --- */

/* A tensor (N,C) in fp8: its elements are the stored numbers times *descale. */
struct fp8_copies {
    uint8_t *as_is;      /* (N,C) (or NULL: not needed) */
    uint8_t *transposed; /* (C,N) (or NULL) */
    float *descale;      /* 1 / scale, by which cuBLASLt multiplies */
    /* (ceil(N/128),C): sums of 128 rows of each column, of the stored numbers; of a bf16 tensor, of their
     * magnitudes (or NULL) */
    float *sums = nullptr;
};

constexpr int COPY_TILE = 128,
              COPY_THREADS = AMAX_THREADS; /* 128 rows of 128 columns: a row is 256 bytes read, 128 written */

/* Reads x (N,C) once and writes both copies; of fp8 the transposed one only. N and C are multiples of 16,
 * and x is aligned to 16 bytes. A thread takes 8 columns of four rows, twice; the four bytes of a column are a word of the transposed tile.
 * Four lanes share a row and eight lanes a vector of columns, so that the words of a warp lie in 32 banks:
 * word `group` of column 8v + i is in bank 8v + i + group (mod 32), with v = 0..3 and eight groups in a
 * row. Blocks take the last tile first, because the pass for the maximum left the end of the tensor in L2. */
template <fp8_format F, class S>
static __global__ void __launch_bounds__(COPY_THREADS)
    fp8_copy_kernel(fp8_copies out, const S *x, amax largest, int64_t N, int64_t C) {
    SHARED(uint32_t, tile, [COPY_TILE][COPY_TILE / 4 + 1]); /* [column][four rows] */
    SHARED(uint32_t, scratch, [COPY_THREADS / WARP_SIZE]);
    int lane = (int)threadIdx.x % WARP_SIZE, warp = (int)threadIdx.x / WARP_SIZE;
    float scale = 1.0f;
    if constexpr (std::is_same<S, bf16>::value) {
        scale = fp8_scale_of<F>(amax_of(largest, warp, lane, scratch));
        if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *out.descale = 1.0f / scale;
    }
    int64_t row0 = (int64_t)block_from_end() * COPY_TILE, col0 = (int64_t)blockIdx.y * COPY_TILE;
    int col = (lane % 4 + warp % 4 * 4) * 8;
    for (int pass = 0; pass < 2; pass++) {
        int group = lane / 4 + warp / 4 * 8 + pass * 16;
        int64_t at = (row0 + 4 * group) * C + col0 + col;
        if (row0 + 4 * group >= N || col0 + col >= C) continue;
        uint2 eight[4]; /* [row] */
        if constexpr (std::is_same<S, bf16>::value) {
            vec<bf16> v[4];
#pragma unroll
            for (int r = 0; r < 4; r++) v[r] = vec<bf16>::load_streaming(x + at + r * C);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                float values[8];
                to_floats(values, v[r]);
                eight[r] = fp8_eight<F>(values, scale);
                if (out.as_is) *reinterpret_cast<uint2 *>(out.as_is + at + r * C) = eight[r];
            }
        } else {
#pragma unroll
            for (int r = 0; r < 4; r++) eight[r] = __ldcs(reinterpret_cast<const uint2 *>(x + at + r * C));
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t word = 0;
#pragma unroll
            for (int r = 0; r < 4; r++)
                word |= ((i < 4 ? eight[r].x : eight[r].y) >> i % 4 * 8 & 0xffu) << 8 * r;
            tile[col + i][group] = word;
        }
    }
    if (!out.transposed && !out.sums) return;
    __syncthreads();
    for (int c = warp; c < COPY_TILE && col0 + c < C; c += COPY_THREADS / WARP_SIZE) {
        bool inside = row0 + 4 * lane < N;
        uint32_t word = inside ? tile[c][lane] : 0u;
        if (out.transposed && inside)
            *reinterpret_cast<uint32_t *>(out.transposed + (col0 + c) * N + row0 + 4 * lane) = word;
        if (!out.sums) continue;
        float sum = 0.0f;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float v = fp8_value_device<F>((uint8_t)(word >> 8 * r));
            sum += std::is_same<S, bf16>::value ? fabsf(v) : v;
        }
        sum = warp_sum(sum);
        if (lane == 0) out.sums[row0 / COPY_TILE * C + col0 + c] = sum;
    }
}

static launch_config copy_config(cudaStream_t stream, int64_t N, int64_t C) {
    return {dim3(grid_size(N, COPY_TILE), grid_size(C, COPY_TILE)), COPY_THREADS, 0, stream};
}

/* Makes the copies of x (N,C) in bf16, whose largest magnitude is `largest`. */
static inline void fp8_copy(cudaStream_t stream, fp8_format format, const fp8_copies &out, const bf16 *x,
                            const amax &largest, int64_t N, int64_t C) {
    if (format == FP8_E4M3)
        launch(copy_config(stream, N, C), fp8_copy_kernel<FP8_E4M3, bf16>, out, x, largest, N, C);
    else
        launch(copy_config(stream, N, C), fp8_copy_kernel<FP8_E5M2, bf16>, out, x, largest, N, C);
}

/* Transposes x (N,C), which is in fp8, or adds up its columns, or both. */
static inline void fp8_transpose(cudaStream_t stream, fp8_format format, const fp8_copies &out, const void *x,
                                 int64_t N, int64_t C) {
    if (format == FP8_E4M3)
        launch(copy_config(stream, N, C), fp8_copy_kernel<FP8_E4M3, e4m3>, out, (const e4m3 *)x, amax{}, N,
               C);
    else
        launch(copy_config(stream, N, C), fp8_copy_kernel<FP8_E5M2, e5m2>, out, (const e5m2 *)x, amax{}, N,
               C);
}
/* Numbers in fp8_copies.sums. */
static inline int64_t fp8_sums(int64_t N, int64_t C) { return ceil_div(N, COPY_TILE) * C; }

#endif
