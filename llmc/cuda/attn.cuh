/* Variants of attention that attn.cu lists and other files define. */
#ifndef LLMC_CUDA_ATTN_CUH
#define LLMC_CUDA_ATTN_CUH

#include "llmc/cuda/kernel.cuh"

/* attn_decode.cu (one query), attn_flash*.cu (tensor cores) and attn_hopper*.cu. */
extern "C" {
attn_forward_fn attn_forward_decode;
attn_forward_need_fn attn_forward_decode_need;
attn_forward_fn attn_forward_flash;
attn_forward_need_fn attn_forward_flash_need;
attn_backward_fn attn_backward_flash;
attn_backward_need_fn attn_backward_flash_need;
attn_forward_fn attn_forward_hopper;
attn_forward_need_fn attn_forward_hopper_need;
attn_backward_fn attn_backward_hopper;
attn_backward_need_fn attn_backward_hopper_need;
}

#endif
