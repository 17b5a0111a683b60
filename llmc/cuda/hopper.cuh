/* What only Hopper has: mbarriers with transaction counts, TMA tile loads, wgmma. For kernels of sm_90a; in
 * builds for other architectures they compile, and trap when called, so need() must not offer them there.
 *
 * Names and layouts follow the PTX ISA ("mbarrier", "cp.async.bulk.tensor", "Asynchronous warpgroup level
 * matrix instructions"). Sections: descriptions of memory (host and device), then instructions. */
#ifndef LLMC_CUDA_HOPPER_CUH
#define LLMC_CUDA_HOPPER_CUH

#include "kernel.cuh"

#include <cuda.h>

/* How 16-byte chunks of a tile's rows are permuted in shared memory, so that columns can be read without bank
 * conflicts; the value is that of wgmma's descriptors. SWIZZLE_128 wants tiles aligned to 1024 bytes. */
enum swizzle { SWIZZLE_NONE = 0, SWIZZLE_128 = 1, SWIZZLE_64 = 2, SWIZZLE_32 = 3 };

/* A bf16 matrix (rows, cols) in global memory, loaded in boxes of (box_rows, box_cols); parts of a box that
 * lie outside read as zero. Host side; passed to kernels as `const __grid_constant__ CUtensorMap`. Rows start
 * on multiples of 16 bytes; a box row fits its swizzle. */
static inline CUtensorMap tensor_map_2d(const void *data, int64_t rows, int64_t cols, int box_rows,
                                        int box_cols, enum swizzle mode) {
    using encode_fn = decltype(&cuTensorMapEncodeTiled);
    void *entry = nullptr; /* the driver's library is not linked */
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    cuda_check(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
#else
    cuda_check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found));
#endif
    check(entry, "the NVIDIA driver is too old for tensor maps (CUDA 12 has them)");
    static const CUtensorMapSwizzle modes[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                               CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_32B};
    cuuint64_t size[2] = {(cuuint64_t)cols, (cuuint64_t)rows}, pitch[1] = {(cuuint64_t)cols * sizeof(bf16)};
    cuuint32_t box[2] = {(cuuint32_t)box_cols, (cuuint32_t)box_rows}, step[2] = {1, 1};
    CUtensorMap map;
    CUresult r = ((encode_fn)entry)(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)data, size, pitch, box,
                                    step, CU_TENSOR_MAP_INTERLEAVE_NONE, modes[mode],
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    check(r == CUDA_SUCCESS, "a tensor map of (%lld,%lld) in boxes of (%d,%d) cannot be made: error %d",
          (long long)rows, (long long)cols, box_rows, box_cols, (int)r);
    return map;
}

/* Describes an operand tile in shared memory to wgmma. For bf16 tiles of 64 columns with SWIZZLE_128:
 *   K-major (rows of K):   leading ignored, stride = 1024 (8 rows of 128 bytes); the next 16 of K are 32
 * bytes on MN-major (rows of MN): leading = bytes to the next 64 of MN, stride = 1024 */
DEVICE_INLINE uint64_t wgmma_descriptor(const void *tile, uint32_t leading_bytes, uint32_t stride_bytes,
                                        enum swizzle mode) {
    return (uint64_t)(shared_address(tile) >> 4 & 0x3fff) | (uint64_t)(leading_bytes >> 4) << 16 |
           (uint64_t)(stride_bytes >> 4) << 32 | (uint64_t)mode << 62;
}

/* A barrier in shared memory. A phase ends when `count` threads have arrived and all expected bytes are
 * there. */
struct alignas(8) mbarrier {
    uint64_t state;
};

#ifdef CUDA_SIM
#include "test/sim/hopper.h"
#else

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HOPPER_PTX(...) asm volatile(__VA_ARGS__)
#else
#define HOPPER_PTX(...) __trap()
#endif

/* --- mbarrier: by one thread; others may use it after mbarrier_fence_init() and a block barrier --- */

DEVICE_INLINE void mbarrier_init(mbarrier *b, int count) {
    HOPPER_PTX("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
DEVICE_INLINE void mbarrier_fence_init() { HOPPER_PTX("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE_INLINE void mbarrier_arrive(mbarrier *b) {
    HOPPER_PTX("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
/* Arrives and announces `bytes` that TMA will bring. */
DEVICE_INLINE void mbarrier_expect(mbarrier *b, int bytes) {
    HOPPER_PTX("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}
/* Waits for the end of the phase with this parity: 0 for the first, then 1, 0, ... A new barrier counts as
 * being past a phase of parity 1. */
DEVICE_INLINE void mbarrier_wait(mbarrier *b, int parity) {
    HOPPER_PTX("{\n.reg .pred done;\nretry:\n"
               "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
               "@!done bra retry;\n}" ::"r"(shared_address(b)),
               "r"(parity)
               : "memory");
}

/* --- TMA --- */

/* Starts loading the box whose first element is (row, col); mbarrier b gets its bytes. By one thread. */
DEVICE_INLINE void tma_load_2d(void *shared, const CUtensorMap *map, int row, int col, mbarrier *b) {
    HOPPER_PTX("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(shared)),
               "l"(map), "r"(col), "r"(row), "r"(shared_address(b))
               : "memory");
}
/* Between a thread's own writes to shared memory and wgmma or TMA that read them. */
DEVICE_INLINE void fence_async_proxy() { HOPPER_PTX("fence.proxy.async;" ::: "memory"); }

/* --- wgmma: by the 128 threads of a warpgroup together --- */

DEVICE_INLINE void wgmma_fence() { HOPPER_PTX("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE_INLINE void wgmma_commit() { HOPPER_PTX("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Until at most `pending` groups are under way; before that neither registers nor tiles may be touched. */
template <int pending> DEVICE_INLINE void wgmma_wait() {
    HOPPER_PTX("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/* d (64x64 fp32) = or += a (64x16) @ b (16x64), bf16 tiles in shared memory. Thread t of the warpgroup holds,
 * with lane l of warp w: d[4j+h] = row 16w + l/4 + 8(h/2), column 8j + 2(l%4) + h%2. The flags say which
 * operand is MN-major. */
template <bool a_mn_major, bool b_mn_major>
DEVICE_INLINE void wgmma_m64n64k16(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    HOPPER_PTX("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
               "%32, %33, p, 1, 1, %35, %36;\n}"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
                 "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
                 "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
                 "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
                 "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
               : "l"(a), "l"(b), "r"((int)accumulate), "n"((int)a_mn_major), "n"((int)b_mn_major));
}

#undef HOPPER_PTX
#endif /* CUDA_SIM */

#endif
