/* The results of `train_gpt profile`, one training step measured operation by operation, and their page. */
#ifndef LLMC_PROFILE_PAGE_H
#define LLMC_PROFILE_PAGE_H

#include "llmc/ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An operation, or one shape of a matmul. Values are per step; seconds are medians over steps. */
struct profile_row {
    enum op_id op;
    int64_t shape[3]; /* of a matmul: rows, columns in, columns out; else 0 */
    char name[64];    /* "attn_backward", "matmul_forward 768->3072" */
    const char *variant;
    double calls, flops, bytes;
    double seconds;
    double ideal; /* the larger of bytes / copy rate and FLOPs / matmul rate, at most `seconds` */
};

enum { PROFILE_ROWS = 64 };

struct profile {
    struct profile_row row[PROFILE_ROWS]; /* largest possible gain first */
    int count;
    double step, spread;  /* median wall time of a step without profiling; half its interquartile range */
    double in_ops, ideal; /* sums over the rows */
    double matmul_rate, copy_rate, tokens, model_flops;
    int64_t repeats;
    const char *note; /* a further remark for the page, or NULL */
    char title[256];  /* "gpt2, B=4, T=64, fp32" */
    char where[256];  /* "CPU, AMD EPYC, 2 threads": what was measured on */
};

/* Writes a page for a browser: the step as a bar, the table, a roofline picture. */
bool profile_write_page(const struct profile *p, const char *path, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
