/* What the front doors ask of operands: ranks, shapes and dtypes; and how many bytes these have. */
#ifndef LLMC_WANT_H
#define LLMC_WANT_H

#include "llmc/ops/dispatch.h"

#include <inttypes.h>

/* Folded shape: `rows` rows of `cols` columns; a vector is one row. */
static inline void want(const char *op, const struct tensor *t, int64_t rows, int64_t cols) {
    check(tensor_rows(t) == rows && tensor_cols(t) == cols,
          "%s: %s should have %" PRId64 " rows of %" PRId64 " columns", op, tensor_text(t), rows, cols);
}
static inline void want_count(const char *op, const struct tensor *t, int64_t count) {
    check(tensor_count(t) == count, "%s: %s should have %" PRId64 " elements", op, tensor_text(t), count);
}
static inline void want_dtype(const char *op, const struct tensor *t, enum dtype dtype) {
    check(t->dtype == dtype, "%s: %s should be %s", op, tensor_text(t), dtype_name(dtype));
}
static inline void want_number(const char *op, const struct tensor *t) {
    want_count(op, t, 1);
    want_dtype(op, t, DTYPE_F32);
}
/* All given operands must share one dtype, in which the back end can compute; NULL is skipped. */
#define WANT_ALIKE(ctx, op, ...)                                                                             \
    want_alike(ctx, op, (const struct tensor *const[]){__VA_ARGS__},                                         \
               sizeof((const struct tensor *const[]){__VA_ARGS__}) / sizeof(struct tensor *))
static inline void want_alike(const struct ctx *ctx, const char *op, const struct tensor *const *t,
                              size_t count) {
    bool bf16 = ctx->ops->bf16;
    check(t[0]->dtype == DTYPE_F32 || (t[0]->dtype == DTYPE_BF16 && bf16),
          "%s: the %s back end computes in fp32%s, and %s is not", op, ctx->ops->backend,
          bf16 ? " and bf16" : "", tensor_text(t[0]));
    for (size_t i = 1; i < count; i++)
        check(!t[i] || t[i]->dtype == t[0]->dtype, "%s: %s should be %s, as is %s", op, tensor_text(t[i]),
              dtype_name(t[0]->dtype), tensor_text(t[0]));
}
/* x and another operand, which may be in this fp8 format beside bf16. Of a tensor that is marked fp8, back ends
 * with bf16 keep no other form. */
static inline void want_alike_or(const struct ctx *ctx, enum dtype fp8, const char *op,
                                 const struct tensor *x, const struct tensor *other) {
    if (other->dtype != fp8) {
        WANT_ALIKE(ctx, op, x, other);
        check(!other->fp8 || !ctx->ops->bf16, "%s: %s is marked fp8, and should be %s", op,
              tensor_text(other), dtype_name(fp8));
        return;
    }
    WANT_ALIKE(ctx, op, x);
    check(x->dtype == DTYPE_BF16, "%s: %s should be bf16 beside %s", op, tensor_text(x), tensor_text(other));
    check(tensor_cols(other) % 16 == 0 && (uintptr_t)other->data % 16 == 0 && (uintptr_t)x->data % 16 == 0,
          "%s: %s should start on 16 bytes, and so should %s, with a multiple of 16 columns", op,
          tensor_text(x), tensor_text(other));
}
/* Of an operation of the forward pass: x and at most two weights, each of which may be NULL. */
static inline void want_weights(const struct ctx *ctx, const char *op, const struct tensor *x,
                                const struct tensor *weight, const struct tensor *other) {
    bool mixed = ctx->ops->bf16_weights && x->dtype == DTYPE_F32;
    const struct tensor *const weights[] = {weight, other};
    for (int i = 0; i < 2; i++)
        if (!weights[i] || !mixed || weights[i]->dtype != DTYPE_BF16) WANT_ALIKE(ctx, op, x, weights[i]);
}
/* Bytes of operands, each counted once; an operand that is read and written is counted twice by its caller.
 * NULL is skipped. */
static inline double bytes_of(const struct tensor *t) {
    return t ? (double)tensor_bytes(t) + (dtype_is_fp8(t->dtype) ? sizeof *t->descale : 0.0) : 0.0;
}
#define BYTES(...)                                                                                           \
    bytes_of_all((const struct tensor *const[]){__VA_ARGS__},                                                \
                 sizeof((const struct tensor *const[]){__VA_ARGS__}) / sizeof(struct tensor *))
static inline double bytes_of_all(const struct tensor *const *t, size_t count) {
    double total = 0.0;
    for (size_t i = 0; i < count; i++) total += bytes_of(t[i]);
    return total;
}
/* Bytes of the rows that N indices into a table touch at most; a row need not move twice. NULL has none. */
static inline double bytes_of_rows(const struct tensor *table, int64_t N) {
    if (!table) return 0.0;
    return (double)(min_i64(N, tensor_rows(table)) * tensor_cols(table)) * (double)dtype_size(table->dtype);
}

#endif
