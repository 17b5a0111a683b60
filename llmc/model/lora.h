/* Low-rank adapters (LoRA; Hu et al. 2021, arXiv 2106.09685). The model stays as it is. A matrix W of the
 * blocks that is a target gets two narrow matrices, which alone are trained:
 *
 *   W' = W + scale * B A,   B (rows,r), A (r,cols),   scale = alpha / r
 *
 * B starts at zero, so that training starts from the model itself.
 *
 * W' is made for one block at a time, just before the block runs, forward and backward, and the gradients
 * come from that of W':  dB = scale * dW' A^T,  dA = scale * B^T dW'. Every operation and back end takes
 * part as it is: fused activations, stacked matrices, fp8, recomputation. The other way, two narrow products
 * beside each linear layer, saves dW', a third of the matrix work of a step, but each of these would need a
 * second form. In bf16, W' is rounded as the weights of a full training are that keeps fp32 copies.
 *
 * Memory beside the model's: one block of W', one of dW', and the adapters with their gradients and optimizer
 * state. Frozen tensors have neither.
 *
 * A is kept transposed, (cols,r): then W' - W is the linear layer with the inputs B and the weight A^T, and
 * its backward pass gives both gradients. */
#ifndef LLMC_MODEL_LORA_H
#define LLMC_MODEL_LORA_H

#include "llmc/model/params.h"
#include "llmc/ops/ctx.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A GPT-2 has queries, keys and values in one linear layer, and so one adapter for them; other models have
 * three. A gated MLP has a gate beside the layer that goes up. */
enum lora_target { LORA_QKV, LORA_Q, LORA_K, LORA_V, LORA_ATTN, LORA_GATE, LORA_UP, LORA_DOWN, LORA_TARGETS };

struct lora_options {
    int64_t rank;     /* r; 0: no adapters */
    float scale;      /* alpha / r */
    unsigned targets; /* 1 << enum lora_target */
};
const char *lora_word(enum lora_target target); /* "qkv" */
/* "qkv,attn" as a set; "all", or words of enum lora_target. qkv also means q, k and v. The message names a
 * word that this model has no layer for. */
bool lora_targets_parse(unsigned *targets, const char *text, const struct gpt_config *config,
                        struct error *err);

/* A linear layer that is a target, in each block: rows of one of the engine's matrices. */
struct lora_part {
    enum lora_target target;
    enum param_id id;
    int64_t first, rows, cols;
    int64_t a, b; /* where A^T (cols,r) and B (rows,r) begin among the adapters of a block */
};
enum { LORA_MOST_PARTS = 7 };
struct lora_layout {
    struct lora_part part[LORA_MOST_PARTS];
    int parts;
    int64_t block, total; /* elements of the adapters of a block, and of all, with gaps */
    int64_t count;        /* of all, without gaps */
};
void lora_make_layout(struct lora_layout *l, const struct gpt_config *config,
                      const struct lora_options *options);

struct lora {
    struct lora_layout layout;
    struct tensor params, grads;     /* (layout.total) */
    struct tensor weights, dweights; /* (a block) W' and its gradient, laid out as the blocks' matrices */
    struct tensor product, dparts;   /* (largest part) B A; (A and B of a part) gradients of a micro-batch */
    bool first;                      /* the micro-batch begins a step: gradients are overwritten */
    /* Which model it is that they adapt, for files; set by whoever has loaded it. */
    const char *base;
    uint64_t base_hash;
};

struct gpt;
/* Called by gpt_create(), with options.lora. */
void lora_create(struct gpt *gpt);
/* A: N(0, 1/(3 cols)), the variance that the PEFT library gives it; B: 0. */
void lora_init_weights(struct gpt *gpt, uint64_t seed);

/* A^T or B of one part, of `buffer`: params, grads, or an optimizer's state. */
struct tensor lora_a(const struct gpt *gpt, const struct tensor *buffer, const struct lora_part *p,
                     int64_t layer);
struct tensor lora_b(const struct gpt *gpt, const struct tensor *buffer, const struct lora_part *p,
                     int64_t layer);

/* Whether the blocks have W' in the place of this parameter, and the place. */
bool lora_adapts(const struct gpt *gpt, enum param_id id);
struct tensor lora_weight(const struct gpt *gpt, enum param_id id);
struct tensor lora_dweight(const struct gpt *gpt, enum param_id id);

/* W' of a block; the gradients of its adapters from dW'. */
void lora_merge(struct gpt *gpt, int64_t layer);
void lora_backward(struct gpt *gpt, int64_t layer);

#ifdef __cplusplus
}
#endif
#endif
