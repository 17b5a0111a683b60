/* A matrix product in blocks. A thread takes a block at a time, and has it in its cache for what follows. The
 * cut depends on the shape alone, so the number of threads changes no bit. */
#ifndef LLMC_CPU_PRODUCT_H
#define LLMC_CPU_PRODUCT_H

#include "llmc/cpu/cpu.h"

/* c (M,N) = a (M,K) @ b (K,N), plus c with `add`. A transposed operand is stored as (K,M) or (N,K). */
struct product {
    int64_t M, N, K;
    const float *a, *b;
    bool a_transposed, b_transposed;
    float *c;
    bool add;
    int64_t rows, cols; /* of a block; those at the edges are smaller */
};

struct block {
    int64_t row, col, rows, cols;
};

#define product_cut            CPU_NAME(product_cut)
#define product_block          CPU_NAME(product_block)
#define product_scratch_bytes  CPU_NAME(product_scratch_bytes)
#define product_multiply_block CPU_NAME(product_multiply_block)

/* The product with rows and cols set. */
struct product product_cut(struct product p);

static inline int64_t product_blocks(const struct product *p) {
    return ceil_div(p->M, p->rows) * ceil_div(p->N, p->cols);
}
/* Neighbours in this order share columns of b. */
struct block product_block(const struct product *p, int64_t index);

/* Scratch for all threads; product_multiply_block() uses the part of the thread that calls it. */
int64_t product_scratch_bytes(void);
void product_multiply_block(const struct product *p, struct block k, void *scratch);

#endif
