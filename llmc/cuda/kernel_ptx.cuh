/* Launches, shared memory, and small wrappers around PTX for the instructions that CUDA C++ has no
 * functions for. Only kernel.cuh includes this file. */
#ifndef LLMC_CUDA_KERNEL_PTX_CUH
#define LLMC_CUDA_KERNEL_PTX_CUH

/* Launches kernel(args...). If that fails, the program ends with the caller's file and line. Arguments are
 * converted to the kernel's parameter types. Requests dynamic shared memory beyond 48 KiB for the kernel. */
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

/* SHARED(float, tile, [32][33]); declares `float tile[32][33]`. Contents are undefined (NaN when
 * simulated). */
#define SHARED(type, name, dims) __shared__ type name dims
#define SHARED_ALIGNED(type, name, dims, alignment)                                                          \
    __shared__ __align__(alignment)                                                                          \
    type name dims
/* DYNAMIC_SHARED(float, p); declares `float *p`, the launch's dynamic shared memory, 1024-byte aligned. */
#define DYNAMIC_SHARED(type, name)                                                                           \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory_[];                                \
    type *name = reinterpret_cast<type *>(dynamic_shared_memory_)

/* A shared-memory address as PTX instructions take it. */
DEVICE_INLINE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* --- warp operations --- */

/* Sum and maximum over the 32 lanes, in butterfly order. Every lane must call, and gets the result. */
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
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Loads four 8x8 matrices of 16-bit elements from shared memory. Lanes 8m..8m+7 pass the addresses of the 8
 * rows (16 bytes each, 16-byte aligned) of matrix m; r[m] holds, in lane 4g+t, elements 2t,2t+1 of its row
 * g; with _trans elements g of its rows 2t,2t+1. */
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

/* Starts copying 16 bytes from global to shared memory, both 16-byte aligned; with !valid it writes zeros
 * and reads nothing. This thread sees the bytes after cp_async_wait, the block after a barrier behind
 * that. */
DEVICE_INLINE void cp_async16(void *shared, const void *global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
DEVICE_INLINE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits for all of this thread's committed groups but the newest `pending`. */
template <int pending> DEVICE_INLINE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* --- registers --- */

/* Keeps the compiler from computing ahead of this line what depends on x. */
DEVICE_INLINE void pin_register(int &x) { asm volatile("" : "+r"(x)); }

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

#endif
