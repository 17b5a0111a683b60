/* Data-parallel training with ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): what each rank stores of
 * parameters, gradients and optimizer state, and when the ranks exchange parts of them. The model knows
 * nothing of this. It calls the hooks of gpt.h, which say what it needs next and what is complete.
 *
 *   level 0   every rank stores everything; gradients are summed by all_reduce
 *   level 1   optimizer state (moments, master weights) is divided among the ranks; gradients are summed by
 *             reduce_scatter, and updated parameters are collected by all_gather
 *   level 2   gradients, too: a block's gradients are in one of two slots until they are summed
 *   level 3   parameters, too: a block's matrices are gathered into one of two slots, one block ahead of
 *             their use, in forward and again in backward
 *
 * The embeddings and all vectors are used at both ends of a step, so every rank stores them whole at every
 * level; their optimizer state is divided.
 *
 * Muon needs whole matrices. From level 1 on each block has an owner, part l % parts for block l: it gathers
 * the momentum of its block, makes the matrices orthogonal, and gives every rank its part of the update. At
 * level 0 every rank does this for all blocks.
 *
 * With teams (comm.h) each team of ranks stores all parts once, and the teams are replicas. Gathers then stay
 * within a team, and only sums of gradients travel between teams.
 *
 * The parameter buffer is divided into buckets, contiguous ranges: the embeddings, each block's matrices,
 * all vectors. The reduction of a bucket starts when its gradients are complete, while backward computes
 * the next block. comm_part() divides each bucket among the ranks. At every level a rank updates the same
 * parts, and the gradient norm is the sum over the parts, so all levels give the same bits. With gradient
 * accumulation, levels 2 and 3 add in another order than 0 and 1, and are equal to rounding. */
#ifndef LLMC_ZERO_H
#define LLMC_ZERO_H

#include "llmc/ranks/comm.h"
#include "llmc/model/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum zero_level { ZERO_NONE, ZERO_OPTIMIZER, ZERO_GRADIENTS, ZERO_PARAMETERS };

struct zero_bucket {
    int64_t first, end; /* elements of the whole parameter buffer */
    int64_t layer;      /* -1: embeddings or vectors */
    enum optimizer_group group;
};
/* Bucket 0: embeddings; 1 ... L: blocks; L + 1: vectors. */
int64_t zero_bucket_count(const struct gpt_config *config);
struct zero_bucket zero_bucket(const struct gpt_params *layout, const struct gpt_config *config, int64_t i);

/* Sets the model's options that depend on the level: the slots of parameters and gradients. `options->lora`
 * is set. */
void zero_gpt_options(struct gpt_options *options, enum zero_level level, int64_t world);

enum zero_what { ZERO_PARAMS, ZERO_GRADS, ZERO_M, ZERO_V, ZERO_MASTER };

/* With adapters (lora.h) the model is frozen, and level 3 alone divides it; levels 1 and 2 are level 0. Every
 * rank stores the adapters, their gradients and their state whole, and the gradients are summed before the
 * update, so all levels give the same bits.
 * With only `gpt` and `optimizer` set and all else zero, it describes a single process. */
struct zero {
    enum zero_level level; /* 0 when the world is 1 */
    struct comm *comm;
    struct gpt *gpt;
    struct optimizer *optimizer;
    struct zero_state *state;
};

/* Allocates the optimizer and what the level needs besides the model, in the model's context, also in plan
 * mode, and installs the model's hooks. */
void zero_create(struct zero *z, struct gpt *gpt, struct optimizer *optimizer, struct comm *comm,
                 enum zero_level level, struct optimizer_options options);
void zero_free(struct zero *z);

/* Forward and backward of one micro-batch. Starts to sum the gradients over the ranks: in the last
 * micro-step at levels 0 and 1, in each at levels 2 and 3. The loss scale refers to all ranks together. */
void zero_micro_step(struct zero *z, bool first, bool last);
/* Whether the next zero_micro_step() starts or awaits collectives; such a call cannot be recorded. */
bool zero_communicates(const struct zero *z, bool last);

/* Updates the parameters from the summed gradients. gpt->numbers then holds the loss of the step and the
 * squared norm of the whole gradient, the same on all ranks. Gathers of updated parameters may still be
 * running; the model's hooks wait for them. */
void zero_update(struct zero *z, const struct update_args *args);

/* Waits, on the stream, for all running collectives. Needed before parameters are read without the model's
 * hooks. */
void zero_settle(struct zero *z);

/* --- for checkpoints and the start of a run --- */

/* Whether there is such a thing for the bucket: some optimizers keep no second moment. */
bool zero_keeps(const struct zero *z, enum zero_what what, int64_t bucket);
/* The whole bucket of `what`, on every rank. All ranks call it in the same order. The result is a view of
 * the buffer if every rank stores it whole; else it is in the context's scratch memory and valid until the
 * next call or operation. */
struct tensor zero_whole(struct zero *z, enum zero_what what, int64_t bucket);

/* Iterates over the parts of elements [first, first + count) of the whole buffer that this rank stores.
 * `*next` starts as `first`. False when there are no more. Call zero_settle() before; several threads may
 * iterate at once. */
struct zero_range {
    int64_t first, count; /* of the whole buffer */
    struct tensor here;   /* (count) */
};
bool zero_stored(struct zero *z, enum zero_what what, int64_t first, int64_t count, int64_t *next,
                 struct zero_range *range);

/* All ranks call it after parameters were written through zero_stored() or by gpt_init_weights(). Discards
 * gathered copies and broadcasts rank 0's parameters. The blocks of level 3 are not broadcast: no rank
 * stores them whole, and the ranks' parts come from the same file or initialisation. */
void zero_parameters_changed(struct zero *z);

#ifdef __cplusplus
}
#endif
#endif
