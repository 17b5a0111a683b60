/* The optimizer: AdamW over the whole parameter buffer, and the learning-rate schedule. */
#ifndef LLMC_OPTIMIZER_H
#define LLMC_OPTIMIZER_H

#include "gpt.h"

#ifdef __cplusplus
extern "C" {
#endif

struct optimizer {
    struct tensor m, v; /* (layout.total) fp32 each, laid out as the parameters */
    struct tensor
        master; /* (layout.total) fp32 copy of low-precision parameters; data NULL if there is none */
    bool has_master;
};

/* Allocates and zeroes the state in gpt's context. */
void optimizer_create(struct optimizer *opt, struct gpt *gpt, bool master_weights);

/* One update from gpt->grads; leaves the squared gradient norm in gpt->numbers[STEP_SUMSQ].
 * args->weight_decay goes to matrices only. A gradient with a NaN or Inf changes nothing. */
void optimizer_step(struct optimizer *opt, struct gpt *gpt, const struct adamw_args *args);

enum schedule_kind { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_WSD };

struct schedule {
    enum schedule_kind kind;
    double peak;           /* learning rate after warmup */
    int64_t warmup, steps; /* in optimizer steps */
    double final_fraction; /* of peak, reached at the last step */
    double decay_fraction; /* WSD: share of the steps that the final decay takes */
};
/* Learning rate of step `step` in [0, steps): linear warmup peak*(step+1)/warmup, then by kind: cosine
 * (Loshchilov & Hutter 2016), straight line, constant, or constant with a final 1-sqrt decay (Haegele et al.
 * 2024). */
double schedule_lr(const struct schedule *s, int64_t step);

#ifdef __cplusplus
}
#endif
#endif
