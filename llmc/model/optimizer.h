/* The optimizer: AdamW over the parameter buffer or this process's parts of it, and the learning-rate
 * schedule. */
#ifndef LLMC_OPTIMIZER_H
#define LLMC_OPTIMIZER_H

#include "llmc/model/gpt.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A range of the parameters that this process updates, and where its values are. */
struct optimizer_piece {
    int64_t first, count;      /* elements of the whole parameter buffer; may be none */
    int64_t at;                /* its first element in m, v and master */
    bool decay;                /* weight decay applies */
    struct tensor param, grad; /* (count) */
};

struct optimizer {
    const struct optimizer_piece *pieces; /* not owned; NULL: `whole` */
    int64_t count;
    struct optimizer_piece whole[2]; /* of a process that updates everything: matrices, vectors */
    struct tensor m, v;              /* (elements of all pieces) fp32 each; `whole`: laid out as parameters */
    struct tensor master; /* (as those) fp32 copy of low-precision parameters; data NULL if there is none */
    bool has_master;
};

/* Allocates and zeroes the state for all parameters in gpt's context. */
void optimizer_create(struct optimizer *opt, struct gpt *gpt, bool master_weights);
/* The same for some of them. `at` must continue from piece to piece; the list must outlive the
 * optimizer. */
void optimizer_create_pieces(struct optimizer *opt, struct gpt *gpt, const struct optimizer_piece *pieces,
                             int64_t count, bool master_weights);
static inline const struct optimizer_piece *optimizer_pieces(const struct optimizer *opt) {
    return opt->pieces ? opt->pieces : opt->whole;
}

/* Element range of a piece in m, v or master. */
struct tensor optimizer_state(const struct tensor *state, const struct optimizer_piece *piece);
/* master = param, after parameters were written; nothing without master weights. */
void optimizer_copy_master(struct optimizer *opt, struct gpt *gpt);

/* One update from gpt->grads; leaves the squared gradient norm in gpt->numbers[STEP_SUMSQ].
 * args->weight_decay goes to matrices only. A gradient with a NaN or Inf changes nothing. */
void optimizer_step(struct optimizer *opt, struct gpt *gpt, const struct adamw_args *args);
/* Its second half: from the pieces' gradients, given the squared norm of the whole one. */
void optimizer_update(struct optimizer *opt, struct gpt *gpt, const struct adamw_args *args);

enum schedule_kind { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_WSD };

struct schedule {
    enum schedule_kind kind;
    double peak;           /* learning rate after warmup */
    int64_t warmup, steps; /* in optimizer steps */
    double final_fraction; /* of peak, reached at the last step */
    double decay_fraction; /* WSD: share of the steps that the final decay takes */
};
/* Learning rate of step `step` in [0, steps): linear warmup peak*(step+1)/warmup, then by kind: cosine
 * (Loshchilov & Hutter 2016), straight line, constant, or constant with a final 1-sqrt decay (Haegele et
 * al. 2024). */
double schedule_lr(const struct schedule *s, int64_t step);

#ifdef __cplusplus
}
#endif
#endif
