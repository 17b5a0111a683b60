/* Host-side tests of operands that the need() functions of the kernels share. NULL operands (absent ones)
 * pass every test. */
#ifndef LLMC_CUDA_OPERANDS_CUH
#define LLMC_CUDA_OPERANDS_CUH

#include "llmc/cuda/kernel.cuh"

/* Do all operands have the dtype of the first, and is it one of those that kernels are instantiated for? */
template <class... Rest> bool same_float_dtype(const struct tensor *first, const Rest *...rest) {
    bool known = first->dtype == DTYPE_F32 || first->dtype == DTYPE_BF16;
    return known && (... && (!rest || rest->dtype == first->dtype));
}

/* Are all operands fp32? */
template <class... All> bool all_f32(const All *...all) { return (... && (!all || all->dtype == DTYPE_F32)); }

/* Does every operand start on 16 bytes? */
template <class... All> bool starts_on_vector(const All *...all) {
    return (... && (!all || (uintptr_t)all->data % 16 == 0));
}

/* Does every operand start on 16 bytes and hold a whole number of 16-byte vectors? */
template <class... All> bool vectors_in(const All *...all) {
    return (... && (!all || ((uintptr_t)all->data % 16 == 0 && tensor_bytes(all) % 16 == 0)));
}

/* Does every row of every operand start on 16 bytes and hold a whole number of vectors? */
template <class... All> bool rows_of_vectors(const All *...all) {
    return (... && (!all || ((uintptr_t)all->data % 16 == 0 &&
                             tensor_cols(all) * (int64_t)dtype_size(all->dtype) % 16 == 0)));
}

#endif
