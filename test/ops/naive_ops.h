/* A third back end, for tests only: every operation as the plainest loop over its contract, with fp32
 * arithmetic in the order of the indices and every stored value rounded to the storage dtype. It is the naive
 * same-dtype version by which tolerances are measured, and it can be told to make one of the mistakes listed
 * here, all of which the op tests must notice. */
#ifndef LLMC_TEST_NAIVE_OPS_H
#define LLMC_TEST_NAIVE_OPS_H

#include "llmc/ops/ops.h"

/* op, name, what is done wrong */
#define NAIVE_BUGS(X)                                                                                        \
    X(embed_forward, IGNORES_T0, "positions start at 0 whatever t0 says")                                    \
    X(embed_forward, POSITION_BY_ROW, "the position is the row of the batch, not t")                         \
    X(embed_backward, LAST_TOKEN_WINS, "a token's gradient replaces that of the same token before it")       \
    X(embed_backward, FIRST_BATCH_ONLY, "dwpe sees the first sequence only")                                 \
    X(embed_backward, STORES_EACH_SUM, "dwte is rounded to the storage dtype after every addition")          \
    X(norm_forward, ONE_PASS_VARIANCE, "variance as E[x^2] - E[x]^2")                                        \
    X(norm_forward, NO_EPS, "no epsilon under the root")                                                     \
    X(norm_forward, SAMPLE_VARIANCE, "divides by C-1")                                                       \
    X(norm_forward, SKIPS_TAIL, "statistics ignore the last C % 4 columns")                                  \
    X(norm_forward, NO_BIAS, "the bias is forgotten")                                                        \
    X(residual_norm_forward, NO_DELTA, "the branch is not added")                                            \
    X(residual_norm_forward, NORM_OF_INP, "normalises inp instead of the sum")                               \
    X(residual_norm_forward, TWO_ADDITIONS, "delta is added to the norm's input twice")                      \
    X(norm_backward, NO_RESIDUAL, "dresidual is ignored")                                                    \
    X(norm_backward, NO_MEAN_TERM, "without the mean of g")                                                  \
    X(norm_backward, NO_XHAT_TERM, "without the projection on xhat")                                         \
    X(norm_backward, WEIGHT_OVERWRITTEN, "dweight = instead of +=")                                          \
    X(norm_backward, LAST_ROW_MISSING, "parameter gradients miss the last row")                              \
    X(norm_backward, DINP_BEFORE_DWEIGHT, "dinp is written before dout is read for dweight")                 \
    X(matmul_forward, NO_BIAS, "the bias is forgotten")                                                      \
    X(matmul_forward, SKIPS_TAIL, "the sum ignores the last C % 4 columns")                                  \
    X(matmul_forward, PRE_IS_OUT, "pre receives the activated value")                                        \
    X(matmul_forward, ERF_GELU, "the erf form of GELU")                                                      \
    X(matmul_forward, BF16_SUMS, "the sum is kept in bf16")                                                  \
    X(matmul_forward, FP8_IGNORED, "a weight marked for fp8 multiplies in the storage dtype")                \
    X(matmul_forward, FP8_TRUNCATES, "rounds to fp8 towards zero")                                           \
    X(matmul_forward, FP8_E5M2, "activations in the format of gradients")                                    \
    X(matmul_backward, NEVER_ACCUMULATES, "gradients are overwritten")                                       \
    X(matmul_backward, ALWAYS_ACCUMULATES, "gradients are added to what was there")                          \
    X(matmul_backward, NO_GELU, "the derivative of the activation is forgotten")                             \
    X(matmul_backward, GELU_OF_INP, "the derivative is taken at inp instead of pre")                         \
    X(matmul_backward, BIAS_LAST_ROW_MISSING, "dbias misses the last row")                                   \
    X(matmul_backward, FP8_IGNORED, "a weight marked for fp8 multiplies in the storage dtype")               \
    X(matmul_backward, FP8_GRADIENT_E4M3, "gradients in the format of activations")                          \
    X(matmul_backward, FP8_BIAS, "dbias sums gradients that were rounded")                                   \
    X(act_forward, ERF_GELU, "the erf form")                                                                 \
    X(act_forward, SIGMOID_GELU, "x * sigmoid(1.702 x)")                                                     \
    X(act_backward, NO_SECOND_TERM, "only 0.5 (1 + tanh)")                                                   \
    X(act_backward, NAN_FAR_OUT, "0 * inf where x^2 overflows")                                              \
    X(attn_forward, SEES_NEXT, "a position sees the one after it")                                           \
    X(attn_forward, NOT_ITSELF, "a position does not see itself")                                            \
    X(attn_forward, NO_SCALE, "scores are not scaled")                                                       \
    X(attn_forward, NO_MAXIMUM, "exp without the maximum")                                                   \
    X(attn_forward, MAXIMUM_FROM_ZERO, "the maximum starts at 0: small scores vanish")                       \
    X(attn_forward, IGNORES_T0, "all rows are written")                                                      \
    X(attn_forward, KEYS_FROM_T0, "keys before t0 are not seen")                                             \
    X(attn_forward, LSE_WITHOUT_MAXIMUM, "lse is the log of the shifted sum")                                \
    X(attn_forward, ONE_HEAD, "every head reads the first head's keys")                                      \
    X(attn_backward, NO_D, "dS without D")                                                                   \
    X(attn_backward, DK_UNSCALED, "dk without the scale")                                                    \
    X(attn_backward, SEES_NEXT, "a position sees the one after it")                                          \
    X(attn_backward, ACCUMULATES, "dqkv += instead of =")                                                    \
    X(attn_backward, LAST_QUERY_MISSING, "dk and dv miss the last query")                                    \
    X(rope, FROM_T0, "positions start at t0")                                                                \
    X(rope, NEVER_BACK, "gradients are turned forward")                                                      \
    X(loss_forward, IGNORED_IS_ZERO, "target -1 is taken as token 0")                                        \
    X(loss_forward, IGNORED_KEEPS_LOGITS, "rows of ignored targets keep their logits")                       \
    X(loss_forward, COUNTS_PADDING, "the sum runs over the padding, too")                                    \
    X(loss_forward, KEEPS_PADDING, "padding columns of dlogits are not zeroed")                              \
    X(loss_forward, NO_DLOSS, "dlogits are not scaled")                                                      \
    X(loss_forward, NO_MAXIMUM, "exp without the maximum")                                                   \
    X(loss_forward, ALWAYS_WRITES, "dlogits are written when they should not be")                            \
    X(loss_forward, LAST_COLUMN_MISSING, "the sum misses column V-1")                                        \
    X(adamw, NO_CORRECTION, "no bias correction")                                                            \
    X(adamw, L2, "the decay is part of the gradient")                                                        \
    X(adamw, NO_CLIP, "the gradient is not clipped")                                                         \
    X(adamw, CLIPS_UPWARDS, "the gradient is scaled to max_norm even if it is smaller")                      \
    X(adamw, NAN_IS_APPLIED, "a NaN norm does not stop the update")                                          \
    X(adamw, INFINITY_IS_APPLIED, "an infinite norm does not stop the update")                               \
    X(adamw, EPS_IN_ROOT, "sqrt(v + eps)")                                                                   \
    X(adamw, IGNORES_MASTER, "the update starts from the rounded parameter")                                 \
    X(adamw, PARAM_NOT_WRITTEN, "with master weights, param is left as it was")                              \
    X(sumsq, FP32_SUM, "one fp32 accumulator")                                                               \
    X(sumsq, SKIPS_TAIL, "ignores the last n % 4 elements")                                                  \
    X(sumsq, ROOT, "the norm instead of its square")                                                         \
    X(sum, FP32_SUM, "one fp32 accumulator")                                                                 \
    X(sum, NEVER_ACCUMULATES, "out is overwritten")                                                          \
    X(sum, NO_SCALE, "scale is ignored")                                                                     \
    X(cast, TRUNCATES, "bf16 by cutting bits off")                                                           \
    X(cast, NAN_BECOMES_INFINITY, "rounding carries a NaN's fraction away")                                  \
    X(fill, SKIPS_TAIL, "the last n % 4 elements are not written")                                           \
    X(randn, NEXT_INDEX, "element i is that of i+1")                                                         \
    X(randn, SAME_BLOCK, "the upper half of the index is ignored: every 4 numbers repeat")                   \
    X(randn, NO_STD, "the deviation is 1")

enum naive_bug {
    NAIVE_CORRECT,
#define X(op, name, text) BUG_##op##_##name,
    NAIVE_BUGS(X)
#undef X
        NAIVE_BUG_COUNT
};

/* Rows named "naive" that take fp32 and bf16. env->state is NULL or points to the enum naive_bug to make. */
extern const struct ops naive_ops;

#endif
