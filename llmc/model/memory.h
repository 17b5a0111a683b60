/* A model in memory: parameters and gradients in one buffer each (params.h), activations as rows of a
 * table. Nothing here computes; gpt.h does. */
#ifndef LLMC_MODEL_MEMORY_H
#define LLMC_MODEL_MEMORY_H

#include "llmc/model/lora.h"
#include "llmc/ops/ctx.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What backward recomputes instead of keeping, cumulative. Every level gives the same bits, except that with
 * NONE a GPU may apply GELU to a matmul's sums before they are rounded (device_options.tune_file). */
enum recompute { RECOMPUTE_NONE, RECOMPUTE_ACT, RECOMPUTE_NORM, RECOMPUTE_BLOCK };

enum act_id {
    A_TOKENS,
    A_TARGETS,
    A_PREFIX,       /* of MASK_PREFIX */
    A_POSITIONS,    /* of POSITIONS_SINUSOIDAL: (T,C), written once */
    A_SAMPLES,      /* with dropout */
    A_FIRST,        /* with options.documents: gpt_set_documents() */
    A_POSITION_IDS, /* the same, if positions are added to embeddings: the position in the document */
    A_EMBED_RAW,    /* before the norm of the embedding, if there is one */
    A_EMBED,        /* what the first layer reads */
    A_EMBED_MEAN,
    A_EMBED_RSTD,
    A_DESCALES, /* per layer, up to A_RESID_OUT; with fp8 in bf16: of what is stored in fp8 */
    A_LN1,
    A_LN1_MEAN,
    A_LN1_RSTD,
    A_QKV_RAW, /* before the norm of queries and keys, if there is one */
    A_QKV,
    A_ATTN,
    A_LSE,
    A_RESID_MID,
    A_LN2,
    A_LN2_MEAN,
    A_LN2_RSTD,
    A_FC,
    A_MLP_ACT,
    A_RESID_OUT,
    A_QKV_NEXT, /* once: see gpt_forward_next() */
    A_LNF,
    A_LNF_MEAN,
    A_LNF_RSTD,
    A_BRANCH,
    A_LOGITS,
    A_LOSSES,
    A_HITS,   /* of gpt_loss_and_hits() */
    A_DRESID, /* gradients, shared by all layers */
    A_DBRANCH,
    A_DATTN,
    A_DQKV,
    A_DMLP_ACT,
    A_DFC,
    ACT_ROWS
};

struct gpt_options {
    int64_t B, T;   /* micro-batch: sequences, tokens in each */
    bool train;     /* false: forward only; only A_QKV is kept per layer (the generation cache) */
    int64_t caches; /* forward only, B = 1: sequences whose A_QKV is kept, at most T; 0 means 1 */
    enum recompute recompute;
    int64_t head_chunks;    /* logits are made for B*T/head_chunks rows at a time; 0 means 1 */
    enum dtype dtype;       /* of parameters, gradients and activations */
    bool bf16_weights;      /* forward only: the parameters are in bf16 all the same (ops.bf16_weights) */
    bool fp8;               /* multiply the blocks' matrices in fp8; their widths and B*T multiples of 16 */
    float init_std;         /* of gpt_init_weights; 0 means GPT-2's 0.02 */
    struct loss_terms loss; /* of training; gpt_loss() is plain cross-entropy */
    float dropout; /* of training: of the embedding, attention's weights and the half-layers' branches */
    uint64_t dropout_seed;
    bool documents; /* sequences hold several documents, which gpt_set_documents() divides */
    const struct tensor *params; /* use this buffer (another model's) instead of allocating one; or NULL */
    struct lora_options lora; /* train adapters in place of the model; it then has no gradients of its own */
    int64_t param_slots, grad_slots; /* of the two buffers, see gpt_stored_total; they need hooks */
};

/* Told by forward and backward what is needed next and what is complete, for those who move it about
 * (zero.h). Each may be NULL. */
struct gpt;
struct gpt_hooks {
    void *arg;
    /* Block `layer` is about to read its matrices, and block `next` will be the one after it; -1: none. */
    void (*layer_needed)(void *arg, int64_t layer, int64_t next);
    /* Backward is about to write, or add to, the gradients of the block's matrices; they are complete. */
    void (*layer_grads_needed)(void *arg, int64_t layer);
    void (*layer_ready)(void *arg, int64_t layer);
    /* gpt_init_weights has written the block's matrices. */
    void (*layer_written)(void *arg, int64_t layer);
    /* Forward has computed the layer's A_ATTN and A_LSE, and projects A_ATTN next: see ablate.h. */
    void *attention_arg;
    void (*attention_done)(void *attention_arg, struct gpt *gpt, int64_t layer);
};

/* Numbers of a step on the device: two that it leaves for the host to read (with several ranks, of all of
 * them), and what its losses are scaled by. */
/* STEP_SEEN: STEP_SUMSQ as it was, after skip_outlier(). */
enum { STEP_LOSS, STEP_SUMSQ, STEP_SCALE, STEP_SEEN, STEP_NUMBERS };

struct gpt {
    struct ctx *ctx;
    struct gpt_config config; /* complete */
    struct gpt_options options;
    struct gpt_params layout;
    struct gpt_hooks hooks;
    struct tensor params;  /* (layout.total), fewer with slots */
    struct tensor grads;   /* (layout.total), fewer with slots; only with options.train, without adapters */
    struct tensor numbers; /* (STEP_NUMBERS) fp32 */
    bool drops;            /* a pass of training with dropout is running */
    bool divided;          /* the batch is divided into documents */
    struct lora lora;      /* with options.lora, and of a generator whose model trains with it */
    char *act_data[ACT_ROWS];
    int64_t act_stride[ACT_ROWS]; /* bytes from one layer to the next; 0 where layers share */
    int64_t cache;                /* the sequence that A_QKV shows and gpt_forward() continues */
};

/* Allocates parameters and activations in ctx (which owns them). Dies if options do not fit the
 * configuration. */
void gpt_create(struct gpt *gpt, struct ctx *ctx, const struct gpt_config *config,
                const struct gpt_options *options);

/* N(0,std) for matrices, residual projections scaled by 1/sqrt(2L), N(0,std/2) for positions, ones and
 * zeros. */
void gpt_init_weights(struct gpt *gpt, uint64_t seed);

/* Views. Layer is ignored for rows that are not per layer. Asking for one that the model does not have ends
 * the process. */
struct tensor gpt_param(const struct gpt *gpt, enum param_id id, int64_t layer); /* with its adapters */
struct tensor gpt_grad(const struct gpt *gpt, enum param_id id, int64_t layer);
struct tensor gpt_act(const struct gpt *gpt, enum act_id id, int64_t layer);
bool gpt_has_act(const struct gpt *gpt, enum act_id id);
/* Elements [first, first + count) of the layout, as a vector: within the embeddings, one block's matrices,
 * or the vectors. */
struct tensor gpt_param_range(const struct gpt *gpt, int64_t first, int64_t count);
struct tensor gpt_grad_range(const struct gpt *gpt, int64_t first, int64_t count);
const char *gpt_act_name(enum act_id id);

#ifdef __cplusplus
}
#endif
#endif
