/* What the two files of attention share: attn.cu owns the op's rows, attn_flash.cu the tensor-core kernels.
 */
#ifndef LLMC_CUDA_ATTN_CUH
#define LLMC_CUDA_ATTN_CUH

#include "kernel.cuh"

/* D[b,h,t] = out[b,t] . dout[b,t] over the columns of head h; D is (B,NH,T). */
void attn_backward_dots(const struct op_env *env, float *D, const struct tensor *dout,
                        const struct tensor *out, int NH);

/* The "flash" rows. */
extern "C" {
attn_forward_fn attn_forward_flash;
attn_forward_need_fn attn_forward_flash_need;
attn_backward_fn attn_backward_flash;
attn_backward_need_fn attn_backward_flash_need;
}

#endif
