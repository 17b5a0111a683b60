/* Data-parallel training: what each rank keeps of parameters, gradients and optimizer state, and when
 * parts of them travel (ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054). The model knows none of this:
 * it calls the hooks of gpt.h, which say what is needed next and what is complete.
 *
 *   level 0   every rank keeps everything; gradients are summed with all_reduce
 *   level 1   optimizer state (moments, master weights) is divided; gradients are summed with reduce_scatter,
 *             updated parameters gathered with all_gather
 *   level 2   also gradients: a block's gradients live in one of two slots until they are summed
 *   level 3   also parameters: a block's matrices are gathered into one of two slots, one block ahead of
 * their use, in forward and again in backward. The embeddings and all vectors are used at both ends of a
 * step and stay whole at every level (their optimizer state does not).
 *
 * Buckets. The parameter buffer is exchanged in contiguous ranges: the embeddings, each block's
 * matrices, all vectors. A bucket goes on its way when its gradients are complete, while backward goes
 * on with the next block. comm_part() divides each bucket among the ranks; a rank updates the same parts
 * at every level, and the norm is always the sum of the parts', so that all levels give the same bits
 * (with gradient accumulation, levels 2 and 3 add in another order than 0 and 1: equal to rounding). */
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
    int64_t layer;      /* whose matrices; -1: embeddings or vectors */
    bool decay;
};
/* Bucket 0: embeddings; 1 ... L: blocks; L + 1: vectors. */
int64_t zero_bucket_count(const struct gpt_config *config);
struct zero_bucket zero_bucket(const struct gpt_params *layout, const struct gpt_config *config, int64_t i);

/* Sets what of the model's options depends on the level: the slots of parameters and gradients. */
void zero_gpt_options(struct gpt_options *options, enum zero_level level, int64_t world);

enum zero_what { ZERO_PARAMS, ZERO_GRADS, ZERO_M, ZERO_V, ZERO_MASTER };

/* Only `gpt` and `optimizer` set, all else zero: a process that is alone and keeps everything. */
struct zero {
    enum zero_level level; /* 0 when the world is 1 */
    struct comm *comm;
    struct gpt *gpt;
    struct optimizer *optimizer;
    struct zero_state *state;
};

/* Allocates the optimizer (see optimizer.h) and what the level needs besides the model, in the model's
 * context (plan mode included), and installs the model's hooks. */
void zero_create(struct zero *z, struct gpt *gpt, struct optimizer *optimizer, struct comm *comm,
                 enum zero_level level, bool master_weights);
void zero_free(struct zero *z);

/* Forward and backward of one micro-batch; sums gradients over the ranks as the level says, `last` of a
 * step or always. Nothing waits for the result. The loss scale is that of all ranks together. */
void zero_micro_step(struct zero *z, bool first, bool last);
/* Whether the next zero_micro_step starts collectives or waits for some: such a call cannot be recorded. */
bool zero_communicates(const struct zero *z, bool last);

/* One update from the summed gradients. Leaves the loss of the whole step and the squared norm of the
 * whole gradient in gpt->numbers, the same on all ranks. Updated parameters may still be on their way to
 * the others then; the model's hooks wait for them. */
void zero_update(struct zero *z, const struct adamw_args *args);

/* What was on its way is there for whatever is put on the stream now. For those who read parameters without
 * the model's hooks. */
void zero_settle(struct zero *z);

/* --- for checkpoints and the start of a run --- */

/* All of one bucket of `what`, on every rank (collective: all ranks call it in the same order). A view
 * of the buffer itself where that is whole, else in the context's scratch memory: valid until the next
 * call or operation. */
struct tensor zero_whole(struct zero *z, enum zero_what what, int64_t bucket);

/* Where element range [first, first + count) of the whole buffer lies on this rank: the parts of it that
 * are stored here, one per call, `*next` starting at `first`. False when there is no more. Nothing may
 * be on its way (zero_settle); may be called by several threads at once. */
struct zero_range {
    int64_t first, count; /* of the whole buffer */
    struct tensor here;   /* (count) */
};
bool zero_stored(struct zero *z, enum zero_what what, int64_t first, int64_t count, int64_t *next,
                 struct zero_range *range);

/* After parameters were written through zero_stored or by gpt_init_weights (collective): makes what is
 * gathered from them up to date, and the parameters of all ranks equal to those of rank 0 (but for a
 * block's at level 3, which no rank has whole: gpt_init_weights has seen to that, and files say the same
 * to all). */
void zero_parameters_changed(struct zero *z);

#ifdef __cplusplus
}
#endif
#endif
