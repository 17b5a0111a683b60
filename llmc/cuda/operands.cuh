/* Tests of operands that need() functions share. An absent operand (NULL) passes every test. */
#ifndef LLMC_CUDA_OPERANDS_CUH
#define LLMC_CUDA_OPERANDS_CUH

#include "llmc/cuda/kernel.cuh"

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
