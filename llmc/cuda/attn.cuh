/* What the two files of attention share: attn.cu owns the op's rows, attn_flash.cu the tensor-core kernels.
 */
#ifndef LLMC_CUDA_ATTN_CUH
#define LLMC_CUDA_ATTN_CUH

#include "kernel.cuh"

/* The "flash" rows. */
extern "C" {
attn_forward_fn attn_forward_flash;
attn_forward_need_fn attn_forward_flash_need;
attn_backward_fn attn_backward_flash;
attn_backward_need_fn attn_backward_flash_need;
}

#endif
