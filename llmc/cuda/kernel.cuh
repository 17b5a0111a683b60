/* The header that every kernel includes. It serves two devices:
 *   nvcc   a GPU, with PTX inside small wrapper functions (kernel_ptx.cuh)
 *   g++    a device simulated in host code (test/sim), whose build names its own wrappers instead
 * On both it offers launch(), shared memory, 16-byte vectors, conversions, reductions, tensor cores and
 * asynchronous copies. Kernels may use everything that sm_80 has; hopper.cuh adds what only Hopper has.
 *
 * Rules that keep the sources portable between the two:
 *   - Launch kernels with launch(), never <<<>>>. Name the instance: launch({grid, block}, kernel<T>, ...).
 *   - Declare shared memory with SHARED, SHARED_ALIGNED and DYNAMIC_SHARED: the simulation poisons it and
 *     watches accesses to it.
 *   - Write PTX only in wrappers, and no `#if __CUDA_ARCH__` around logic.
 *   - Pass nullptr, not NULL, to a kernel. */
#ifndef LLMC_CUDA_KERNEL_CUH
#define LLMC_CUDA_KERNEL_CUH

#define CUDA_NO_HALF /* keeps cuda_fp16.h from taking the name `half` */
#include <cuda_runtime.h>
#include <cuda_bf16.h>

#include "llmc/base/base.h"
#include "llmc/ops/ops.h"
#include "llmc/base/rng.h"

#include <cstdint>
#include <cstring>
#include <utility>

#define DEVICE_INLINE static __device__ __forceinline__

constexpr int WARP_SIZE = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

/* --- host side --- */

/* Ends the program if a call of the runtime fails: cuda_check(cudaEventRecord(e, s)). */
#define cuda_check(call) cuda_check_at(call, #call, __FILE__, __LINE__)
static inline void cuda_check_at(cudaError_t e, const char *call, const char *file, int line) {
    if (e == cudaSuccess) return;
    die_at(file, line, "CUDA error %d (%s) at %s:%d in %s: %s", (int)e, cudaGetErrorName(e), file, line, call,
           cudaGetErrorString(e));
}

/* Grid, block, dynamic shared memory and stream of a launch, and the source line of the call. */
struct launch_config {
    dim3 grid, block;
    size_t smem;
    cudaStream_t stream;
    const char *file;
    int line;
    launch_config(dim3 grid_, dim3 block_, size_t smem_ = 0, void *stream_ = nullptr,
                  const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE())
        : grid(grid_), block(block_), smem(smem_), stream((cudaStream_t)stream_), file(file_), line(line_) {}
};

/* A grid's x: ceil(n / per_block), checked against its limit of 2^31-1. */
static inline unsigned grid_size(int64_t n, int64_t per_block) {
    int64_t blocks = ceil_div(n, per_block);
    check(blocks > 0 && blocks < (1ll << 31), "a grid of %lld blocks cannot be launched", (long long)blocks);
    return (unsigned)blocks;
}

/* --- the device's instructions --- */

#ifndef KERNEL_WRAPPERS
#define KERNEL_WRAPPERS "llmc/cuda/kernel_ptx.cuh"
#endif
#include KERNEL_WRAPPERS

/* --- dtypes --- */

using bf16 = __nv_bfloat16;

DEVICE_INLINE float to_float(float v) { return v; }
DEVICE_INLINE float to_float(bf16 v) { return __bfloat162float(v); }
/* from_float<T>(v): rounds to nearest even. */
template <class T> DEVICE_INLINE T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) { return __float2bfloat16(v); }

/* Two bf16 in a 32-bit register, as mma and ldmatrix take them: `lo` in the lower half. */
DEVICE_INLINE uint32_t pack_bf16(float lo, float hi) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

/* Host side: calls f with a value of the C++ type of a dtype. A launcher reads
 *     with_dtype(out->dtype, [&](auto tag) { using T = decltype(tag); launch({...}, kernel<T>, ...); }); */
template <class F> void with_dtype(enum dtype dtype, F f) {
    check(dtype == DTYPE_F32 || dtype == DTYPE_BF16, "no kernel takes %s", dtype_name(dtype));
    if (dtype == DTYPE_F32)
        f(float());
    else
        f(bf16());
}
template <class T> T *data_of(const struct tensor *t) { return t ? static_cast<T *>(t->data) : nullptr; }

/* Host side: cuts scratch memory into pieces, one after another. Without memory it only counts their
 * bytes. */
struct scratch_pieces {
    void *memory;
    int64_t bytes;
    template <class T> T *take(int64_t count) {
        T *piece = (T *)((uintptr_t)memory + (uintptr_t)bytes);
        bytes += round_up(count * (int64_t)sizeof(T), 256);
        return piece;
    }
};

/* --- vectors: 16 bytes, the widest access of a thread --- */

template <class T> struct alignas(16) vec {
    static constexpr int size = (int)(16 / sizeof(T));
    T v[size];

    __device__ __forceinline__ T &operator[](int i) { return v[i]; }
    __device__ __forceinline__ const T &operator[](int i) const { return v[i]; }

    static __device__ __forceinline__ vec filled(float value) {
        vec r;
#pragma unroll
        for (int i = 0; i < size; i++) r.v[i] = from_float<T>(value);
        return r;
    }
    /* p must be 16-byte aligned. "streaming": the line is not reused soon, so it is evicted first. */
    static __device__ __forceinline__ vec load(const T *p) {
        return from_bits(*reinterpret_cast<const int4 *>(p));
    }
    static __device__ __forceinline__ vec load_streaming(const T *p) {
        return from_bits(__ldcs(reinterpret_cast<const int4 *>(p)));
    }
    __device__ __forceinline__ void store(T *p) const { *reinterpret_cast<int4 *>(p) = bits(); }
    __device__ __forceinline__ void store_streaming(T *p) const {
        __stcs(reinterpret_cast<int4 *>(p), bits());
    }

  private:
    static __device__ __forceinline__ vec from_bits(int4 b) {
        vec r;
        memcpy(&r, &b, sizeof r);
        return r;
    }
    __device__ __forceinline__ int4 bits() const {
        int4 b;
        memcpy(&b, this, sizeof b);
        return b;
    }
};

/* The elements of a vector in fp32. A bf16 is the upper half of an fp32, so a pair takes a shift and a mask;
 * to_float() of each element would first extract the upper one. */
DEVICE_INLINE void to_floats(float (&x)[4], const vec<float> &v) {
#pragma unroll
    for (int k = 0; k < 4; k++) x[k] = v[k];
}
DEVICE_INLINE void to_floats(float (&x)[8], const vec<bf16> &v) {
    uint32_t pair[4], bits[8];
    memcpy(pair, &v, sizeof pair);
#pragma unroll
    for (int k = 0; k < 4; k++) bits[2 * k] = pair[k] << 16, bits[2 * k + 1] = pair[k] & 0xffff0000u;
    memcpy(x, bits, sizeof x);
}

/* Host side: can rows of `cols` elements that start at p be read as vectors? */
template <class T> bool vec_aligned(const T *p, int64_t cols) {
    return (uintptr_t)p % 16 == 0 && cols % vec<T>::size == 0;
}

/* --- the order of blocks --- */

/* This block's number, counted from the end of the grid. Blocks start in the order of blockIdx, and the L2
 * cache holds less than a tensor. A kernel that takes the end first still finds there what the kernel before
 * wrote last, and leaves there what the next one begins with. */
DEVICE_INLINE unsigned block_from_end() { return gridDim.x - 1 - blockIdx.x; }

/* --- block reductions --- */

/* Sum and maximum over a one-dimensional block of whole warps, in a fixed order. Every thread must call,
 * and gets the result. `scratch` is 32 floats of shared memory, free for reuse on return. */
DEVICE_INLINE float block_sum(float v, float *scratch) {
    int lane = (int)threadIdx.x % WARP_SIZE, warp = (int)threadIdx.x / WARP_SIZE,
        warps = (int)blockDim.x / WARP_SIZE;
    v = warp_sum(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    __syncthreads();
    return v;
}
DEVICE_INLINE float block_max(float v, float *scratch) {
    int lane = (int)threadIdx.x % WARP_SIZE, warp = (int)threadIdx.x / WARP_SIZE,
        warps = (int)blockDim.x / WARP_SIZE;
    v = warp_max(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = warp_max(lane < warps ? scratch[lane] : -INFINITY);
    __syncthreads();
    return v;
}

/* --- the last block --- */

/* Is this block the last of `count` to arrive? If so, it sees what the others wrote before they arrived.
 * `done`, a number of op_env.zeros, counts arrivals; the last one resets it to 0 for the next launch. Every
 * thread of a one-dimensional block must call. */
DEVICE_INLINE bool last_to_arrive(unsigned *done, unsigned count) {
    SHARED(unsigned, before, [1]);
    __syncthreads(); /* all writes of this block ... */
    if (threadIdx.x == 0) {
        __threadfence(); /* ... come before its arrival */
        before[0] = atomicInc(done, count - 1);
        __threadfence(); /* and arrivals come before reads of what the others wrote */
    }
    __syncthreads();
    return before[0] == count - 1;
}

#endif
