/* The one header that kernels include. It is written for two devices:
 *   nvcc                real CUDA, with PTX inside small wrapper functions
 *   g++ -DCUDA_SIM      the simulated device of test/sim, where the same sources run as host code
 * and offers on both: launch(), shared memory, 16-byte vectors, conversions, reductions, tensor cores,
 * asynchronous copies. Everything an sm_80 has may be used; what needs Hopper is in hopper.cuh.
 *
 * Rules that keep the sources portable between the two:
 *   - launch kernels with launch(), never <<<>>>; name the instance: launch({grid, block}, kernel<T>, ...)
 *   - declare shared memory with SHARED, SHARED_ALIGNED and DYNAMIC_SHARED, so that it is poisoned and
 * watched
 *   - PTX only in wrappers like the ones below; no `#if __CUDA_ARCH__` around logic
 *   - nullptr, not NULL, as a kernel's argument
 *
 * Sections: host side, launch, shared memory, warp operations, tensor cores, asynchronous copies, fast
 * mathematics (each: real, then the include that replaces it); then what is the same on both: dtypes,
 * vectors, block reductions, the last block. */
#ifndef LLMC_CUDA_KERNEL_CUH
#define LLMC_CUDA_KERNEL_CUH

#ifdef CUDA_SIM
#include "test/sim/sim.h"
#else
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#endif

#include "llmc/base.h"
#include "llmc/ops.h"
#include "llmc/rng.h"

#include <cstdint>
#include <cstring>
#include <utility>

#define DEVICE_INLINE static __device__ __forceinline__

constexpr int WARP_SIZE = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

/* --- host side --- */

/* For calls that only fail when something is badly wrong: cuda_check(cudaEventRecord(e, s)). */
#define cuda_check(call) cuda_check_at(call, #call, __FILE__, __LINE__)
static inline void cuda_check_at(cudaError_t e, const char *call, const char *file, int line) {
    if (e == cudaSuccess) return;
    die_at(file, line, "CUDA error %d (%s) at %s:%d in %s: %s", (int)e, cudaGetErrorName(e), file, line, call,
           cudaGetErrorString(e));
}

/* Grid, block, dynamic shared memory and stream of a launch, and the source line it stands on. */
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

/* A grid dimension: ceil(n / per_block), checked against the 2^31-1 that a grid's x can hold. */
static inline unsigned grid_size(int64_t n, int64_t per_block) {
    int64_t blocks = ceil_div(n, per_block);
    check(blocks > 0 && blocks < (1ll << 31), "a grid of %lld blocks cannot be launched", (long long)blocks);
    return (unsigned)blocks;
}

#ifndef CUDA_SIM

/* Launches kernel(args...) and dies with the caller's file and line if that fails. Arguments are converted to
 * the kernel's parameter types. Dynamic shared memory beyond 48 KiB is requested here. */
template <class... Params, class... Args>
void launch(const launch_config &config, void (*kernel)(Params...), Args &&...args) {
    static_assert(sizeof...(Params) == sizeof...(Args), "launch: wrong number of kernel arguments");
    cudaError_t e = cudaSuccess;
    if (config.smem > 48 * 1024)
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)config.smem);
    cudaLaunchConfig_t c = {};
    c.gridDim = config.grid;
    c.blockDim = config.block;
    c.dynamicSmemBytes = config.smem;
    c.stream = config.stream;
    if (e == cudaSuccess) e = cudaLaunchKernelEx(&c, kernel, std::forward<Args>(args)...);
    if (e != cudaSuccess)
        die_at(config.file, config.line,
               "launch at %s:%d with grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of shared memory: %s",
               config.file, config.line, config.grid.x, config.grid.y, config.grid.z, config.block.x,
               config.block.y, config.block.z, config.smem, cudaGetErrorString(e));
}

/* --- shared memory --- */

/* SHARED(float, tile, [32][33]); declares `float tile[32][33]`. Contents are undefined (NaN when simulated).
 */
#define SHARED(type, name, dims) __shared__ type name dims
#define SHARED_ALIGNED(type, name, dims, alignment)                                                          \
    __shared__ __align__(alignment)                                                                          \
    type name dims
/* DYNAMIC_SHARED(float, p); declares `float *p`, the launch's dynamic shared memory, 1024-byte aligned. */
#define DYNAMIC_SHARED(type, name)                                                                           \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory_[];                                \
    type *name = reinterpret_cast<type *>(dynamic_shared_memory_)

/* The address that PTX instructions on shared memory take. */
DEVICE_INLINE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* --- warp operations --- */

/* Sum and maximum over the 32 lanes, in all lanes; every lane must call. The order is a butterfly, the same
 * in every run. */
DEVICE_INLINE float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(ALL_LANES, v, offset);
    return v;
}
DEVICE_INLINE float warp_max(float v) {
    for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, offset));
    return v;
}

/* --- tensor cores --- */

/* d += a @ b for one warp: a is 16x16 row-major, b 16x8, both bf16 pairs in 32-bit registers, d 16x8 fp32.
 * With g = lane/4, t = lane%4 (PTX ISA, "mma.m16n8k16"):
 *   a[0] row g, columns 2t,2t+1     a[1] row g+8, same columns    a[2], a[3] the same, columns + 8
 *   b0   rows 2t,2t+1, column g     b1   rows + 8
 *   d[0], d[1] row g, columns 2t,2t+1;   d[2], d[3] row g+8 */
DEVICE_INLINE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Loads four 8x8 matrices of 16-bit elements from shared memory. Lanes 8m..8m+7 pass the addresses of the 8
 * rows (16 bytes each, 16-byte aligned) of matrix m; r[m] holds, in lane 4g+t, elements 2t,2t+1 of its row g;
 * with _trans elements g of its rows 2t,2t+1. */
DEVICE_INLINE void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* --- asynchronous copies --- */

/* Starts copying 16 bytes from global to shared memory, both 16-byte aligned; with !valid it writes zeros and
 * reads nothing. The bytes are there for this thread after cp_async_wait, for the block after a barrier too.
 */
DEVICE_INLINE void cp_async16(void *shared, const void *global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
DEVICE_INLINE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits until at most `pending` of this thread's newest committed groups are still under way. */
template <int pending> DEVICE_INLINE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* --- fast mathematics: hardware approximations, relative error about 2^-22 (tanh: absolute 2^-11) --- */

DEVICE_INLINE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE_INLINE float fast_tanh(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else
#include "test/sim/wrappers.h"
#endif /* CUDA_SIM */

/* --- dtypes --- */

using bf16 = __nv_bfloat16;

DEVICE_INLINE float to_float(float v) { return v; }
DEVICE_INLINE float to_float(bf16 v) { return __bfloat162float(v); }
/* from_float<T>(v): rounds to nearest even. */
template <class T> DEVICE_INLINE T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) { return __float2bfloat16(v); }

/* Two bf16 in the 32-bit register form of mma and ldmatrix: `lo` in the lower half. */
DEVICE_INLINE uint32_t pack_bf16(float lo, float hi) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

/* Host side: calls f with a value of the C++ type that belongs to a dtype tag, so that a launcher reads
 *     with_dtype(out->dtype, [&](auto tag) { using T = decltype(tag); launch({...}, kernel<T>, ...); }); */
template <class F> void with_dtype(enum dtype dtype, F f) {
    check(dtype == DTYPE_F32 || dtype == DTYPE_BF16, "no kernel takes %s", dtype_name(dtype));
    if (dtype == DTYPE_F32)
        f(float());
    else
        f(bf16());
}
template <class T> T *data_of(const struct tensor *t) { return t ? static_cast<T *>(t->data) : nullptr; }

/* --- vectors: 16 bytes, the widest access of a thread --- */

template <class T> struct alignas(16) vec {
    static constexpr int size = (int)(16 / sizeof(T));
    T v[size];

    __device__ __forceinline__ T &operator[](int i) { return v[i]; }
    __device__ __forceinline__ const T &operator[](int i) const { return v[i]; }

    /* p must be 16-byte aligned. "streaming": the line is not needed again soon, evict it first. */
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

/* Host side: can rows of `cols` elements that start at p be read as vectors? */
template <class T> bool vec_aligned(const T *p, int64_t cols) {
    return (uintptr_t)p % 16 == 0 && cols % vec<T>::size == 0;
}

/* --- block reductions --- */

/* Over all threads of a one-dimensional block of whole warps; every thread gets the result, the order is
 * fixed. `scratch` is 32 floats of shared memory, free for reuse on return. Every thread must call. */
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

/* Is this block the last of `count` to get here? If so it sees what the others wrote before. They are counted
 * in `done`, one of the numbers of op_env.zeros, which is 0 again when the last one has come: for the next
 * launch, or the next run of a recorded one. Every thread of a one-dimensional block must call. */
DEVICE_INLINE bool last_to_arrive(unsigned *done, unsigned count) {
    SHARED(unsigned, before, [1]);
    __syncthreads(); /* what this block's threads wrote */
    if (threadIdx.x == 0) {
        __threadfence(); /* ... comes before its arrival */
        before[0] = atomicInc(done, count - 1);
        __threadfence(); /* and the others' arrivals before what they wrote is read */
    }
    __syncthreads();
    return before[0] == count - 1;
}

#endif
