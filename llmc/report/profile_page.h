/* One training step, measured operation by operation: what `train_gpt profile` finds out and shows. */
#ifndef LLMC_PROFILE_PAGE_H
#define LLMC_PROFILE_PAGE_H

#include "llmc/ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An operation, or one shape of a matmul. Everything is for a step; seconds are medians over steps. */
struct profile_row {
    enum op_id op;
    int64_t shape[3]; /* of a matmul: rows, columns in, columns out; else 0 */
    char name[64];    /* "attn_backward", "matmul_forward 768->3072" */
    const char *variant;
    double calls, flops, bytes;
    double seconds;
    double ideal; /* the longer of: bytes at the copy rate, FLOPs at the matmul rate */
};

enum { PROFILE_ROWS = 64 };

struct profile {
    struct profile_row row[PROFILE_ROWS]; /* by what there is to gain, most first */
    int count;
    double step, spread;  /* median wall time of a step that is not profiled; half its interquartile range */
    double in_ops, ideal; /* sums over the rows */
    double matmul_rate, copy_rate, tokens, model_flops;
    int64_t repeats;
    const char *note; /* what else the page should say, or NULL */
    char title[256];  /* "gpt2, B=4, T=64, fp32" */
    char where[256];  /* "CPU, AMD EPYC, 2 threads": what it was measured on, unmistakably */
};

/* A page for a browser: the step as a stacked bar, a roofline picture, the table. It needs no scripts. */
bool profile_write_page(const struct profile *p, const char *path, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
