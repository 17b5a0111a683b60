/* The op table of the ladders, in the order of LLMC_OPS. */
#include "dev/variants/ladder.h"

extern "C" const struct ops ladder_ops = {"ladder",
                                          cuda_embed_forward_variants,
                                          cuda_embed_backward_variants,
                                          ladder_norm_forward,
                                          cuda_residual_norm_forward_variants,
                                          cuda_norm_backward_variants,
                                          ladder_matmul_forward,
                                          ladder_matmul_backward,
                                          ladder_act_forward,
                                          cuda_act_backward_variants,
                                          ladder_attn_forward,
                                          ladder_attn_backward,
                                          ladder_loss_forward,
                                          ladder_adamw,
                                          cuda_sumsq_variants,
                                          cuda_sum_variants,
                                          cuda_cast_variants,
                                          cuda_fill_variants,
                                          cuda_randn_variants};
