/* cuBLASLt behind one call, with descriptors and algorithms kept for each kind of product. device.cu opens
 * it, and every op gets it as env->state. */
#ifndef LLMC_CUDA_CUBLASLT_CUH
#define LLMC_CUDA_CUBLASLT_CUH

#include "llmc/cuda/kernel.cuh"
#include "llmc/ops/fp8.h"

#include <cublasLt.h>
#include <functional>

struct cublaslt;

/* A kind of product. In row-major terms:
 *     d (n,m) = or += b @ a
 * where a is (k,m), or (m,k) and transposed, and b is (n,k), or (k,n) and transposed. cuBLASLt is
 * column-major and reads the same memory as d^T = a^T @ b^T. All operands have the same dtype, except that
 * a and b may be fp8: then transpose_a && !transpose_b, the only form that tensor cores have before
 * Blackwell. */
struct lt_product {
    enum dtype dtype;
    bool transpose_a, transpose_b;
    int64_t m, n, k;
    cublasLtEpilogue_t epilogue;
    bool accumulate;
    fp8_format a = FP8_NONE, b = FP8_NONE; /* both or neither, and not both e5m2 */
};

/* The matrices, and what epilogues read and write. */
struct lt_operands {
    void *d;
    const void *a, *b;
    void *bias; /* BIAS: (m), read;  BGRADB: (n), = sum of b over k */
    void *aux;  /* GELU_AUX: (n,m), = pre-activation;  DGELU: (n,m), read */
    const float *scale_a = nullptr, *scale_b = nullptr; /* fp8: factors of a and b, on the device */
};

/* Bytes of workspace for a product with m x n outputs: eight partial sums of each, but at most the 32 MiB
 * that NVIDIA recommends for Hopper. */
static inline int64_t lt_workspace(int64_t m, int64_t n) {
    return min_i64((int64_t)32 << 20, max_i64((int64_t)64 << 10, round_up(m * n * 32, 256)));
}

/* `tf32`: fp32 products on tensor cores with 10-bit mantissas. `tune_file` (or NULL): the first call of each
 * kind of product with `tune_flops` or more times what there is to choose from, and keeps the fastest in this
 * file. */
struct cublaslt *lt_open(const char *device_name, bool tf32, const char *tune_file, double tune_flops);
void lt_close(struct cublaslt *lt);

/* Operands must start on 16 bytes and have rows of whole 16-byte vectors; in fp8, m, n and k are multiples
 * of 16. `workspace` has lt_workspace(m, n) bytes. Returns false, having done nothing, if the library has
 * no algorithm for this product with this epilogue. */
bool lt_run(struct cublaslt *lt, const lt_product &product, const lt_operands &operands, void *workspace,
            cudaStream_t stream);

/* Is `fused`, a product with an epilogue, faster than `plain`, the same one without it, and `pass` over
 * memory? False if the library has no such epilogue. The answer is found at the first call and kept like an
 * algorithm; where nothing is timed it is `otherwise`. Timing overwrites the outputs of both products, unless
 * they accumulate, and what `pass` writes. */
bool lt_fuses(struct cublaslt *lt, const lt_product &fused, const lt_operands &fused_operands,
              const lt_product &plain, const lt_operands &plain_operands, const std::function<void()> &pass,
              bool otherwise, void *workspace, cudaStream_t stream);

/* Calls `work`, which launches something on the stream, at least `runs` times and for `least` seconds in all.
 * Returns the device's seconds for the fastest run, or infinity if `work` returns false. Waits for the
 * stream. */
double fastest_run(cudaStream_t stream, int runs, double least, const std::function<bool()> &work);

#endif
