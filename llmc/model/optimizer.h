/* The optimizers: AdamW, Lion and Muon over the parameter buffer or this process's parts of it, and the
 * learning-rate schedule.
 *
 * Muon is for the matrices of the blocks; embeddings, head, norms and biases are updated by AdamW. A matrix's
 * momentum becomes (nearly) orthogonal: its singular values become (nearly) 1, so that directions that rarely
 * show in the gradients move as far as the others. The iteration of Newton and Schulz does this with products
 * alone; see optimizer_orthogonalize(). Where adapters (lora.h) are trained, they are the matrices. */
#ifndef LLMC_OPTIMIZER_H
#define LLMC_OPTIMIZER_H

#include "llmc/model/gpt.h"

#ifdef __cplusplus
extern "C" {
#endif

enum optimizer_kind { OPTIMIZER_ADAMW, OPTIMIZER_MUON, OPTIMIZER_LION };
const char *optimizer_name(enum optimizer_kind kind);

/* Parameters that an optimizer treats alike, in the order of the buffer. */
enum optimizer_group {
    GROUP_EMBEDDINGS, /* and the output head */
    GROUP_BLOCKS,     /* the blocks' matrices, or their adapters */
    GROUP_VECTORS     /* norms and biases: no weight decay */
};

struct optimizer_options {
    enum optimizer_kind kind;
    bool master_weights; /* keep fp32 copies of low-precision parameters */
};

/* A range of the parameters that this process updates, and where its values are. */
struct optimizer_piece {
    int64_t first, count;       /* elements of the whole parameter buffer; may be none */
    int64_t at;                 /* its first element in m and master */
    int64_t at_v;               /* in v; set by optimizer_create_pieces() */
    enum optimizer_group group; /* of the blocks: a part of one of them, or all of all */
    struct tensor param, grad;  /* (count) */
};

struct optimizer {
    enum optimizer_kind kind;
    struct optimizer_piece *pieces; /* not owned; NULL: `whole` */
    int64_t count;
    struct optimizer_piece whole[3]; /* groups, of a process that updates everything */
    struct tensor m;                 /* (elements of all pieces) fp32; `whole`: laid out as parameters */
    struct tensor v;      /* (elements of the pieces that AdamW updates) fp32; data NULL if there are none */
    struct tensor master; /* (as m) fp32 copy of low-precision parameters; data NULL if there is none */
    bool has_master;
    /* Muon, in the parameters' type: a block's momentum on its way to the update, and what the iteration
     * works in. */
    struct tensor block, other, gram, factor, norm;
};

/* Allocates and zeroes the state for all parameters, or for the adapters, in gpt's context. */
void optimizer_create(struct optimizer *opt, struct gpt *gpt, struct optimizer_options options);
/* The same for some of them. `at` must continue from piece to piece; the list must outlive the
 * optimizer. */
void optimizer_create_pieces(struct optimizer *opt, struct gpt *gpt, struct optimizer_piece *pieces,
                             int64_t count, struct optimizer_options options);
static inline const struct optimizer_piece *optimizer_pieces(const struct optimizer *opt) {
    return opt->pieces ? opt->pieces : opt->whole;
}

/* Whether the optimizer keeps a second moment of the piece. */
bool optimizer_has_v(const struct optimizer *opt, bool block);
/* m, v or master of elements of the whole parameter buffer that lie in one piece. */
struct tensor optimizer_state(const struct optimizer *opt, const struct tensor *state, int64_t first,
                              int64_t count);
/* master = param, after parameters were written; nothing without master weights. */
void optimizer_copy_master(struct optimizer *opt, struct gpt *gpt);

/* With args->skip_outliers: whether the update is to change nothing, from STEP_LOSS and STEP_SUMSQ. */
void optimizer_skip_outlier(struct gpt *gpt, const struct update_args *args);
/* One update from gpt->grads, or those of the adapters; leaves the squared gradient norm in
 * gpt->numbers[STEP_SUMSQ].
 * args->weight_decay goes to matrices only, with no_embedding_decay to those of the blocks only. A gradient
 * with a NaN or Inf changes nothing. */
void optimizer_step(struct optimizer *opt, struct gpt *gpt, const struct update_args *args);
/* Its second half: from the pieces' gradients, given the squared norm of the whole one. Leaves out the
 * pieces of blocks that Muon updates, if those are parts. */
void optimizer_update(struct optimizer *opt, struct gpt *gpt, const struct update_args *args);

/* --- Muon, in steps, for those who divide blocks among ranks --- */

/* out = the momentum of a range of a piece, `at` elements from its start. */
void optimizer_momentum(struct optimizer *opt, struct gpt *gpt, const struct optimizer_piece *piece,
                        int64_t at, struct tensor *out, const struct update_args *args);
/* Makes each matrix of a block, which is laid out as in the parameter buffer or among the adapters, orthogonal
 * in place, times 0.2 sqrt(max(rows, columns)).
 *
 * From X = M/|M| (Frobenius), five times X = (a I + b G + c G^2) X, where G = X X^T or, for more rows than
 * columns, X = X (a I + b G + c G^2), where G = X^T X: always on the short side. The coefficients
 * 3.4445, -4.7750, 2.0315 are those of Jordan et al. (2024, kellerjordan.github.io/posts/muon): they grow
 * small singular values fastest and leave all of them between 0.7 and 1.2, which serves as well as 1. The
 * factor gives an update the root mean square 0.2, which AdamW's have, so that one learning rate and one
 * weight decay serve for both (Liu et al. 2025, arXiv 2502.16982).
 *
 * Queries, keys and values are made orthogonal apart, and so are the halves of a gated MLP: they are
 * different maps that are stored below each other. In one matrix the one with the largest gradient would
 * take the room of the others. A and B of an adapter are made orthogonal apart, too: each is a matrix that is
 * trained, and their product is none.
 *
 * FLOPs: an m x n matrix with m <= n takes 5 (4 m^2 n + 2 m^3). For a block of GPT-2, four matrices of
 * C x C and two of C x 4C, that is 5 (4*6 + 2*18) C^3 = 300 C^3, or 25 C for each of the 12 C^2 parameters of
 * the block, whatever the batch. A step computes about 6 FLOPs for each parameter and token. At C = 768 and
 * 0.5M tokens Muon adds 25 C / (6 * 524,288) = 0.6 % to the blocks' work and 0.4 % to the step's; at C = 128
 * and 928 tokens, as for the stories, 40 % to the step's. */
void optimizer_orthogonalize(struct optimizer *opt, struct gpt *gpt, struct tensor *block);
/* Applies a range of the result. */
void optimizer_apply(struct optimizer *opt, struct gpt *gpt, const struct optimizer_piece *piece, int64_t at,
                     const struct tensor *update, const struct update_args *args);

/* --- schedule --- */

enum schedule_kind { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_WSD, SCHEDULE_NOAM };

struct schedule {
    enum schedule_kind kind;
    double peak;           /* learning rate after warmup */
    int64_t warmup, steps; /* in optimizer steps */
    double final_fraction; /* of peak, reached at the last step; not by the constant one and Noam's */
    double decay_fraction; /* WSD: share of the steps that the final decay takes */
};
/* Learning rate of step `step` in [0, steps): linear warmup peak*(step+1)/warmup, then by kind: cosine
 * (Loshchilov & Hutter 2016), straight line, constant, or constant with a final 1-sqrt decay (Haegele et
 * al. 2024), or peak*sqrt(warmup/(step+1)) ("Noam", Vaswani et al. 2017, arXiv 1706.03762). */
double schedule_lr(const struct schedule *s, int64_t step);

#ifdef __cplusplus
}
#endif
#endif
