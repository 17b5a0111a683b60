/* A model without some of its parts: what changes if a head is switched off, or if one token may not see
 * another. The forward pass is the model's own; between a layer's attention and the projection of its output,
 * what the heads have computed is changed:
 *
 *   head off   its output is 0, as if its columns of the output projection were 0
 *   edge cut   the softmax of token `to` leaves token `from` out, so the shares of the others grow; a token
 *              that may see nothing gets 0
 *
 * Another score or mask is another configuration of the same weights: a model of its own (look.h). */
#ifndef LLMC_ABLATE_H
#define LLMC_ABLATE_H

#include "llmc/model/gpt.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ablation_cut {
    int64_t layer, head; /* -1: all */
    int64_t to, from;
};
struct ablation {
    const bool *off;                /* (L,NH); NULL: no head is off */
    const struct ablation_cut *cut; /* (cuts); they need a batch of one */
    int64_t cuts;
};

/* From now on, forward passes of the model are without these parts; NULL: with all of them again. *a must
 * outlive it. Takes the model's hook `attention_done`. */
void ablate(struct gpt *gpt, const struct ablation *a);

bool ablation_cuts(const struct ablation *a, int64_t layer, int64_t head, int64_t to, int64_t from);
bool ablation_off(const struct ablation *a, const struct gpt_config *config, int64_t layer, int64_t head);

/* The score of a query and a key of HS numbers, computed in double. */
double attention_score(const struct attn_rule *rule, const float *q, const float *k, int64_t HS);

/* The logarithm of a softmax's denominator where all edges are cut: exp(score - this) is 0. */
#define ABLATED_LSE 1e30f

#ifdef __cplusplus
}
#endif
#endif
