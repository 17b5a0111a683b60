/* GPT-2: the only definition of the network. Configuration, parameters and activations as data, forward,
 * backward.
 *
 * The architecture is that of Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners"):
 * learned position embeddings, pre-norm blocks, GELU (tanh form), the output head tied to the token
 * embedding.
 *
 *   x = wte[tokens] + wpe
 *   per layer:  x += proj(attention(qkv(ln_1(x))));   x += fcproj(gelu(fc(ln_2(x))))
 *   logits = ln_f(x) @ wte^T
 *
 * Parameters and activations are rows of two tables (gpt_params.c). Count, offsets, initialisation, weight
 * decay, checkpoint names and memory reports are loops over rows. */
#ifndef LLMC_GPT_H
#define LLMC_GPT_H

#include "llmc/ops/ctx.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- configuration --- */

struct gpt_config {
    char name[64];
    int64_t context;    /* maxT: longest sequence the position embedding covers */
    int64_t vocab_size; /* V: tokens that exist */
    int64_t layers;     /* L */
    int64_t heads;      /* NH */
    int64_t channels;   /* C */
};
/* V rounded up for the device (Vp); the padding rows of wte are zero, stay zero, and are never sampled. */
static inline int64_t gpt_padded_vocab(const struct gpt_config *c) { return round_up(c->vocab_size, 128); }

/* "tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "gpt3-125m" ... "gpt3-1.3b", or "dN" for N
 * layers. */
bool gpt_config_from_name(struct gpt_config *config, const char *name, struct error *err);
bool gpt_config_check(const struct gpt_config *config, struct error *err);
const char *gpt_preset_names(void); /* for help texts */

/* --- parameters --- */

enum param_id {
    P_WTE,
    P_WPE, /* (Vp,C), (maxT,C) */
    P_QKV_W,
    P_PROJ_W,
    P_FC_W,
    P_FCPROJ_W, /* per layer: matrices (OC,C) */
    P_LN1_W,
    P_LN1_B,
    P_QKV_B,
    P_PROJ_B,
    P_LN2_W,
    P_LN2_B,
    P_FC_B,
    P_FCPROJ_B, /* per layer: vectors */
    P_LNF_W,
    P_LNF_B,
    PARAM_ROWS
};
enum param_init { INIT_NORMAL, INIT_NORMAL_POSITION, INIT_NORMAL_RESIDUAL, INIT_ZERO, INIT_ONE };
enum gpt_dim { DIM_NONE, DIM_C, DIM_3C, DIM_4C, DIM_VP, DIM_CONTEXT };

struct param_row {
    const char *name; /* Hugging Face's, below "transformer."; "%d" is the layer */
    bool per_layer;
    enum gpt_dim rows, cols; /* cols is DIM_NONE for vectors */
    enum param_init init;
    bool conv1d; /* stored transposed, (C,OC), in Hugging Face files */
};
extern const struct param_row gpt_param_rows[PARAM_ROWS];

/* Matrices (weight-decayed) come first in the buffer, then vectors, so that the optimizer needs two calls and
 * a gradient reduction gets each layer's matrices in one piece. Tensors start at multiples of 128 elements;
 * the gaps are zero and stay zero. */
struct gpt_params {
    int64_t offset[PARAM_ROWS]; /* of layer 0, in elements */
    int64_t stride[PARAM_ROWS]; /* from one layer to the next */
    int64_t blocks, block;      /* where the blocks' matrices begin, and how much one block has */
    int64_t matrices;           /* elements [0, matrices) decay, [matrices, total) do not */
    int64_t total;              /* with gaps */
    int64_t count;              /* without gaps and without padded vocabulary: what papers quote */
};
void gpt_params_layout(struct gpt_params *p, const struct gpt_config *config);
int64_t gpt_dim_size(const struct gpt_config *config, enum gpt_dim dim);

/* A buffer with slots stores the matrices of that many blocks only, block l in slot l % slots; embeddings and
 * vectors are always whole. 0: every block has its own place. Elements such a buffer has, and where in it
 * element `at` of the layout lies. */
int64_t gpt_stored_total(const struct gpt_params *p, int64_t slots);
int64_t gpt_stored_at(const struct gpt_params *p, int64_t slots, int64_t at);

/* --- activations --- */

/* What backward recomputes instead of keeping, cumulative. Every level gives the same bits. */
enum recompute { RECOMPUTE_NONE, RECOMPUTE_GELU, RECOMPUTE_NORM, RECOMPUTE_BLOCK };

enum act_id {
    A_TOKENS,
    A_TARGETS,
    A_EMBED,
    A_LN1,
    A_LN1_MEAN,
    A_LN1_RSTD,
    A_QKV,
    A_ATTN,
    A_LSE,
    A_RESID_MID, /* per layer */
    A_LN2,
    A_LN2_MEAN,
    A_LN2_RSTD,
    A_FC,
    A_FC_GELU,
    A_RESID_OUT, /* per layer */
    A_LNF,
    A_LNF_MEAN,
    A_LNF_RSTD,
    A_BRANCH,
    A_LOGITS,
    A_LOSSES,
    A_DRESID,
    A_DBRANCH,
    A_DQKV,
    A_DFC,
    ACT_ROWS
};

struct gpt_options {
    int64_t B, T; /* micro-batch: sequences, tokens in each */
    bool train;   /* false: forward only; only A_QKV is kept per layer (the generation cache) */
    enum recompute recompute;
    int64_t head_chunks;         /* logits are made for B*T/head_chunks rows at a time; 0 means 1 */
    enum dtype dtype;            /* of parameters, gradients and activations */
    bool fp8;                    /* multiply the blocks' matrices in fp8; C and B*T multiples of 16 */
    float init_std;              /* of gpt_init_weights; 0 means GPT-2's 0.02 */
    const struct tensor *params; /* use this buffer (another model's) instead of allocating one; or NULL */
    int64_t param_slots, grad_slots; /* of the two buffers, see gpt_stored_total; they need hooks */
};

/* Told by forward and backward what is needed next and what is complete, for those who move it about
 * (zero.h). Each may be NULL. */
struct gpt_hooks {
    void *arg;
    /* Block `layer` is about to read its matrices, and block `next` will be the one after it; -1: none. */
    void (*layer_needed)(void *arg, int64_t layer, int64_t next);
    /* Backward is about to write, or add to, the gradients of the block's matrices; they are complete. */
    void (*layer_grads_needed)(void *arg, int64_t layer);
    void (*layer_ready)(void *arg, int64_t layer);
    /* gpt_init_weights has written the block's matrices. */
    void (*layer_written)(void *arg, int64_t layer);
};

/* Numbers of a step on the device: two that it leaves for the host to read (with several ranks, of all of
 * them), and what its losses are scaled by. */
enum { STEP_LOSS, STEP_SUMSQ, STEP_SCALE, STEP_NUMBERS };

struct gpt {
    struct ctx *ctx;
    struct gpt_config config;
    struct gpt_options options;
    struct gpt_params layout;
    struct gpt_hooks hooks;
    struct tensor params;  /* (layout.total), fewer with slots */
    struct tensor grads;   /* (layout.total), fewer with slots; only with options.train */
    struct tensor numbers; /* (STEP_NUMBERS) fp32 */
    char *act_data[ACT_ROWS];
    int64_t act_stride[ACT_ROWS]; /* bytes from one layer to the next; 0 where layers share */
};

/* Allocates parameters and activations in ctx (which owns them). Dies if options do not fit the
 * configuration. */
void gpt_create(struct gpt *gpt, struct ctx *ctx, const struct gpt_config *config,
                const struct gpt_options *options);

/* N(0,std) for matrices, residual projections scaled by 1/sqrt(2L), N(0,std/2) for positions, ones and
 * zeros. */
void gpt_init_weights(struct gpt *gpt, uint64_t seed);

/* Views. Layer is ignored for rows that are not per layer. */
struct tensor gpt_param(const struct gpt *gpt, enum param_id id, int64_t layer);
struct tensor gpt_grad(const struct gpt *gpt, enum param_id id, int64_t layer);
struct tensor gpt_act(const struct gpt *gpt, enum act_id id, int64_t layer);
/* Elements [first, first + count) of the layout, as a vector: within the embeddings, one block's matrices, or
 * the vectors. */
struct tensor gpt_param_range(const struct gpt *gpt, int64_t first, int64_t count);
struct tensor gpt_grad_range(const struct gpt *gpt, int64_t first, int64_t count);
/* "h.3.attn.c_attn.weight" by temp_printf. */
const char *gpt_param_name(enum param_id id, int64_t layer);
const char *gpt_act_name(enum act_id id);

/* --- the network --- */

/* Uploads tokens and targets (B,T). Targets may be NULL (generation); -1 is ignored. */
void gpt_set_batch(struct gpt *gpt, const int32_t *tokens, const int32_t *targets);

/* Positions [t0, t0+count) of every sequence, up to and including ln_f. t0 > 0 continues from the cache in
 * A_QKV and needs B = 1, as does count < T. */
void gpt_forward(struct gpt *gpt, int64_t t0, int64_t count);

/* After gpt_forward: A_LOSSES, and their sum in STEP_LOSS. No gradients. */
void gpt_loss(struct gpt *gpt);

/* 1 / (targets in the whole step), for the calls of gpt_forward_backward that follow. It is kept on the
 * device, so that a recorded step can run with another one. */
void gpt_set_loss_scale(struct gpt *gpt, float scale);

/* Forward and backward of one micro-batch. The first one of a step overwrites gradients and STEP_LOSS (the
 * scaled sum of losses), the others add. */
void gpt_forward_backward(struct gpt *gpt, bool first_micro_batch);

/* Logits (Vp) of one position after gpt_forward; B = 1. They lie in A_LOGITS; copied to `host` unless
 * NULL. */
void gpt_logits(struct gpt *gpt, int64_t position, float *host);

/* Logits of all positions, (B*T,Vp), left in A_LOGITS; head_chunks must be 1. */
void gpt_all_logits(struct gpt *gpt);

/* FLOPs of training on one token, by the convention of the literature: 6N + 6*L*C*T (Kaplan et al. 2020,
 * attention causal), N without position embedding's and norms' negligible share left in. */
double gpt_flops_per_token(const struct gpt_config *config, int64_t T);

#ifdef __cplusplus
}
#endif
#endif
