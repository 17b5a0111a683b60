/* The teaching ladders as an op table. A context whose `ops` is &ladder_ops runs the steps of a ladder
 * where production's kernels would run; an op without a ladder keeps production's variants. The name of a
 * step begins with its number. README.md in this folder explains ladders. */
#ifndef LLMC_LADDER_H
#define LLMC_LADDER_H

#include "llmc/ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct ops ladder_ops;

/* The ops that have a ladder, ladder_<op>, in dev/variants/<stem>.cu and <stem>_backward.cu. As in every op
 * table, the fastest variant stands first. The ladder of matmul_backward is the bias gradient's. */
#define LADDERS(X)                                                                                           \
    X(norm_forward)                                                                                          \
    X(act_forward)                                                                                           \
    X(matmul_forward)                                                                                        \
    X(matmul_backward)                                                                                       \
    X(attn_forward)                                                                                          \
    X(attn_backward)                                                                                         \
    X(loss_forward)                                                                                          \
    X(adamw)

#define X(op) extern const struct op##_variant ladder_##op[];
LADDERS(X)
#undef X

#ifdef __cplusplus
}
#endif
#endif
