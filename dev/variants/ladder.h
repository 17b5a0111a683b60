/* The teaching ladders as an op table: context.ops = &ladder_ops runs them in place of the production
 * kernels. An op that has no ladder keeps its production rows. Names of ladder rows start with their
 * number. */
#ifndef LLMC_LADDER_H
#define LLMC_LADDER_H

#include "llmc/ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ops ladder_ops;

/* dev/variants/<stem>.cu. Rows stand in the order that every table has: the fastest first, last the one that
 * takes anything. */
extern const struct norm_forward_variant ladder_norm_forward[];
extern const struct norm_backward_variant ladder_norm_backward[];
extern const struct act_forward_variant ladder_act_forward[];
extern const struct act_backward_variant ladder_act_backward[];
extern const struct embed_backward_variant ladder_embed_backward[];
extern const struct matmul_forward_variant ladder_matmul_forward[];
extern const struct matmul_backward_variant ladder_matmul_backward[]; /* bias gradient */
extern const struct attn_forward_variant ladder_attn_forward[];
extern const struct attn_backward_variant ladder_attn_backward[];
extern const struct loss_forward_variant ladder_loss_forward[];
extern const struct adamw_variant ladder_adamw[];
extern const struct sumsq_variant ladder_sumsq[];

#ifdef __cplusplus
}
#endif
#endif
