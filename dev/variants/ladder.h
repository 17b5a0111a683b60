/* The teaching ladders as an op table. A context whose `ops` is &ladder_ops runs the steps of a ladder
 * where production's kernels would run; an op without a ladder keeps production's rows. The name of a step
 * begins with its number. README.md in this folder explains ladders. */
#ifndef LLMC_LADDER_H
#define LLMC_LADDER_H

#include "llmc/ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ops ladder_ops;

/* dev/variants/<stem>.cu and <stem>_backward.cu. As in every op table, the fastest row stands first. */
extern const struct norm_forward_variant ladder_norm_forward[];
extern const struct act_forward_variant ladder_act_forward[];
extern const struct matmul_forward_variant ladder_matmul_forward[];
extern const struct matmul_backward_variant ladder_matmul_backward[]; /* the bias gradient */
extern const struct attn_forward_variant ladder_attn_forward[];
extern const struct attn_backward_variant ladder_attn_backward[];
extern const struct loss_forward_variant ladder_loss_forward[];
extern const struct adamw_variant ladder_adamw[];

#ifdef __cplusplus
}
#endif
#endif
