/* The network, forward and backward: the only definition of it.
 *
 * A pre-norm decoder. As GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask
 * Learners"):
 *
 *   x = wte[tokens] + wpe
 *   per layer:  x += proj(attention(qkv(ln_1(x))));   x += fcproj(gelu(fc(ln_2(x))))
 *   logits = ln_f(x) @ wte^T
 *
 * config.h has the kinds that may stand in the place of each part. What a model consists of is in
 * memory.h. */
#ifndef LLMC_MODEL_GPT_H
#define LLMC_MODEL_GPT_H

#include "llmc/model/memory.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Uploads tokens and targets (B,T). Targets may be NULL (generation); -1 is ignored. With the prefix mask,
 * the prefix of a sequence is what comes before its first target that is not ignored: a source text; without
 * targets it is empty. */
void gpt_set_batch(struct gpt *gpt, const int32_t *tokens, const int32_t *targets);

/* After gpt_set_batch: other prefixes (B), each the number of first tokens that see each other. A model
 * without the prefix mask has none. */
void gpt_set_prefix(struct gpt *gpt, const int32_t *lengths);

/* With options.documents, after gpt_set_batch: the batch consists of documents. first (B,T) is where the one
 * of each token begins in its sequence, as attn_rule.first; NULL: every sequence is one. A token sees only
 * its own document, and positions count from its start, so that a document has the losses and gradients
 * that it has alone. Rotary positions need not count anew, because a score depends on their distance only.
 * Without options.documents it does nothing.
 *
 * position_ids (B,T) is what gpt_position_ids() writes, in memory that outlives the copy to the device; NULL:
 * they are computed here, and a GPU may have to finish what it is doing first. */
void gpt_set_documents(struct gpt *gpt, const int32_t *first, const int32_t *position_ids);
/* The position of each of n tokens, rows of T, in its document. */
void gpt_position_ids(int32_t *ids, const int32_t *first, int64_t n, int64_t T);

/* With dropout, before gpt_forward_backward: the number of each sequence of the batch (B), by which dropout.h
 * tells them apart. Without dropout it does nothing. */
void gpt_set_samples(struct gpt *gpt, const int32_t *numbers);

/* Positions [t0, t0+count) of every sequence, up to and including ln_f. t0 > 0 continues from the cache in
 * A_QKV and needs B = 1, as does count < T; tokens must not look ahead then, and a prefix must lie in what
 * is computed first. */
void gpt_forward(struct gpt *gpt, int64_t t0, int64_t count);

/* The sequence that A_QKV shows and gpt_forward() continues, in [0, options.caches). */
void gpt_use_cache(struct gpt *gpt, int64_t cache);

/* A token that continues one of several sequences. */
struct gpt_next {
    int64_t cache, t0; /* its sequence, and its position there: those before it have been computed */
    int32_t token;
};
/* One position of each of n sequences in one pass, which reads the weights once for all of them. Row i of
 * A_LNF becomes what gpt_forward(gpt, t0, 1) makes of next[i], on a CPU to the last bit if the widths of the
 * model are multiples of 16. The caches are different ones; n <= options.caches. */
void gpt_forward_next(struct gpt *gpt, const struct gpt_next *next, int64_t n);
/* Their logits, copied to host (n,Vp). */
void gpt_next_logits(struct gpt *gpt, int64_t n, float *host);

/* After gpt_forward: A_LOSSES, and their sum in STEP_LOSS. No gradients. */
void gpt_loss(struct gpt *gpt);
/* And A_HITS: 1 where greedy decoding would choose the target (top1 in ops.h). */
void gpt_loss_and_hits(struct gpt *gpt);

/* 1 / (targets in the whole step), for the calls of gpt_forward_backward that follow. It is kept on the
 * device, so that a recorded step can run with another one. */
void gpt_set_loss_scale(struct gpt *gpt, float scale);

/* Forward and backward of one micro-batch, the only pass with dropout. The first one of a step overwrites
 * gradients and STEP_LOSS (the scaled sum of losses), the others add. */
void gpt_forward_backward(struct gpt *gpt, bool first_micro_batch);

/* Logits (Vp) of one position after gpt_forward; B = 1. Copied to `host` unless NULL. What stays in A_LOGITS
 * has not passed the soft cap of the logits, here and below. */
void gpt_logits(struct gpt *gpt, int64_t position, float *host);

/* Applies the soft cap, if the model has one, to n numbers of A_LOGITS that were copied to the host. */
void gpt_cap_logits(const struct gpt_config *config, float *logits, int64_t n);

/* Logits of all positions, (B*T,Vp), left in A_LOGITS; head_chunks must be 1. */
void gpt_all_logits(struct gpt *gpt);

/* The same for a residual stream (B,T,C) of any layer, as if the model ended there. A_LNF and its
 * statistics become those of `resid`. */
void gpt_read_off(struct gpt *gpt, const struct tensor *resid);

#ifdef __cplusplus
}
#endif
#endif
