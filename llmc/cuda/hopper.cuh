/* What only Hopper has: mbarriers with transaction counts, TMA loads, wgmma, registers that move between
 * warpgroups. For kernels of sm_90a, whose variants say so (arch = 90). In builds for other architectures
 * these functions compile, and trap when called.
 *
 * Names and layouts follow the PTX ISA ("mbarrier", "cp.async.bulk.tensor", "Asynchronous warpgroup level
 * matrix instructions"). */
#ifndef LLMC_CUDA_HOPPER_CUH
#define LLMC_CUDA_HOPPER_CUH

#include "llmc/cuda/kernel.cuh"

#include <cuda.h>

/* How the 16-byte chunks of a tile's rows are permuted in shared memory, so that reading a column has no
 * bank conflicts. The values are those of wgmma's descriptors. SWIZZLE_128 needs tiles aligned to 1024
 * bytes. */
enum swizzle { SWIZZLE_NONE = 0, SWIZZLE_128 = 1, SWIZZLE_64 = 2, SWIZZLE_32 = 3 };

/* Describes `depth` bf16 matrices (rows, cols), one after another in global memory, loaded in boxes of
 * (box_rows, box_cols) of one of them; parts of a box outside its matrix read as zero. Host side; kernels
 * take it as `const __grid_constant__ CUtensorMap`. Rows start on multiples of 16 bytes, and a row of a box
 * fits its swizzle. */
static inline CUtensorMap tensor_map(int rank, const void *data, int64_t depth, int64_t rows, int64_t cols,
                                     int box_rows, int box_cols, enum swizzle mode) {
    using encode_fn = decltype(&cuTensorMapEncodeTiled);
    void *entry = nullptr; /* looked up, because the driver's library is not linked */
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
    cuuint64_t size[3] = {(cuuint64_t)cols, (cuuint64_t)rows, (cuuint64_t)depth};
    cuuint64_t pitch[2] = {size[0] * sizeof(bf16), size[0] * size[1] * sizeof(bf16)};
    cuuint32_t box[3] = {(cuuint32_t)box_cols, (cuuint32_t)box_rows, 1}, step[3] = {1, 1, 1};
    CUtensorMap map;
    CUresult r = ((encode_fn)entry)(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank, (void *)data,
                                    size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, modes[mode],
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    check(r == CUDA_SUCCESS, "a tensor map of (%lld,%lld,%lld) in boxes of (%d,%d) cannot be made: error %d",
          (long long)depth, (long long)rows, (long long)cols, box_rows, box_cols, (int)r);
    return map;
}
static inline CUtensorMap tensor_map_2d(const void *data, int64_t rows, int64_t cols, int box_rows,
                                        int box_cols, enum swizzle mode) {
    return tensor_map(2, data, 1, rows, cols, box_rows, box_cols, mode);
}
static inline CUtensorMap tensor_map_3d(const void *data, int64_t depth, int64_t rows, int64_t cols,
                                        int box_rows, int box_cols, enum swizzle mode) {
    return tensor_map(3, data, depth, rows, cols, box_rows, box_cols, mode);
}

/* Describes an operand tile in shared memory to wgmma. For bf16 tiles of 64 columns with SWIZZLE_128:
 *   K-major (rows along K)     leading is ignored, stride = 1024 (8 rows of 128 bytes); the next 16 of K are
 *                              32 bytes on
 *   MN-major (rows along MN)   leading = bytes to the next 64 of MN, stride = 1024; the next 16 of K are 2048
 *                              bytes on */
DEVICE_INLINE uint64_t wgmma_descriptor(const void *tile, uint32_t leading_bytes, uint32_t stride_bytes,
                                        enum swizzle mode) {
    return (uint64_t)(shared_address(tile) >> 4 & 0x3fff) | (uint64_t)(leading_bytes >> 4) << 16 |
           (uint64_t)(stride_bytes >> 4) << 32 | (uint64_t)mode << 62;
}

/* That of the tile which lies `bytes` further on. An addition costs one instruction, a descriptor of its own
 * half a dozen; no carry leaves the field of the address, because shared memory ends before its 256 KiB. */
DEVICE_INLINE uint64_t descriptor_after(uint64_t descriptor, uint32_t bytes) {
    uint32_t low = (uint32_t)descriptor + (bytes >> 4);
    return descriptor >> 32 << 32 | low;
}

/* A barrier in shared memory. A phase ends when `count` threads and all expected bytes have arrived. */
struct alignas(8) mbarrier {
    uint64_t state;
};

#ifndef HOPPER_WRAPPERS
#define HOPPER_WRAPPERS "llmc/cuda/hopper_ptx.cuh"
#endif
#include HOPPER_WRAPPERS

#endif
