/* The parameters of a model: one row of a table for each tensor, and where the tensors lie in one buffer.
 *
 * Count, offsets, initialisation, weight decay, names in files and memory reports are loops over the rows.
 * A row belongs to the models that its `present` accepts; a loop `for (l = 0; l < gpt_param_copies(config,
 * id); l++)` visits the tensors that a model has and passes over the others. */
#ifndef LLMC_MODEL_PARAMS_H
#define LLMC_MODEL_PARAMS_H

#include "llmc/model/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The order decides where a tensor lies, and the number which random numbers it starts from. */
enum param_id {
    P_WTE,    /* (Vp,C) */
    P_WPE,    /* (maxT,C): learned positions */
    P_QKV_W,  /* per layer: matrices (outputs,inputs); queries, keys, values below each other */
    P_PROJ_W, /* of the attention's output */
    P_FC_W,   /* gated: the gate, below it what is gated */
    P_FCPROJ_W,
    P_LN1_W, /* per layer: vectors */
    P_LN1_B,
    P_QKV_B,
    P_PROJ_B,
    P_LN2_W,
    P_LN2_B,
    P_FC_B,
    P_FCPROJ_B,
    P_LNF_W,
    P_LNF_B,
    P_LM_HEAD,  /* (Vp,C): the output head, where it is not the token embedding */
    P_Q_NORM_W, /* per layer, (HS): of the norm of every head of queries, and of keys */
    P_K_NORM_W,
    P_EMBED_NORM_W, /* of the norm of the embedding */
    P_EMBED_NORM_B,
    PARAM_ROWS
};
enum param_init { INIT_NORMAL, INIT_NORMAL_POSITION, INIT_NORMAL_RESIDUAL, INIT_ZERO, INIT_ONE };
enum gpt_dim {
    DIM_NONE,
    DIM_C,
    DIM_Q,   /* NH HS */
    DIM_KV,  /* NKV HS */
    DIM_QKV, /* queries, keys and values of a position */
    DIM_FF,
    DIM_FC, /* what the first half of the MLP computes: F, or 2F where it is gated */
    DIM_VP,
    DIM_CONTEXT,
    DIM_HS
};

struct param_row {
    const char *name; /* Hugging Face GPT-2's, below "transformer."; "%d" is the layer */
    bool per_layer;
    enum gpt_dim rows, cols; /* cols is DIM_NONE for vectors */
    enum param_init init;
    bool conv1d; /* stored transposed, (inputs,outputs), in Hugging Face's GPT-2 */
    bool (*present)(const struct gpt_config *config); /* NULL: in every model */
};
extern const struct param_row gpt_param_rows[PARAM_ROWS];

/* How many of these tensors the model has: one a layer, one, or none. */
int64_t gpt_param_copies(const struct gpt_config *config, enum param_id id);
int64_t gpt_dim_size(const struct gpt_config *config, enum gpt_dim dim);
/* Whether these are matrices of the blocks. */
static inline bool gpt_param_in_blocks(enum param_id id) {
    return gpt_param_rows[id].per_layer && gpt_param_rows[id].cols != DIM_NONE;
}
/* A tensor may hold several matrices below each other, each with a meaning of its own: queries, keys and
 * values, or a gate and what it gates. Their rows; returns how many there are. */
enum { GPT_MOST_STACKED = 3 };
int gpt_param_stacked(const struct gpt_config *config, enum param_id id, int64_t rows[GPT_MOST_STACKED]);
/* "h.3.attn.c_attn.weight", by temp_printf. */
const char *gpt_param_name(enum param_id id, int64_t layer);
/* The pattern with the layer in place of "%d", by temp_printf. */
const char *gpt_layer_name(const char *pattern, int64_t layer);

/* The embeddings and the head come first in the buffer, then the blocks' matrices, then vectors, so that the
 * optimizer needs three calls and a gradient reduction gets each layer's matrices in one piece. Tensors start
 * at multiples of 128 elements; the gaps are zero and stay zero. */
struct gpt_params {
    int64_t offset[PARAM_ROWS]; /* of layer 0, in elements; -1: the model has no such tensor */
    int64_t stride[PARAM_ROWS]; /* from one layer to the next */
    int64_t blocks, block;      /* where the blocks' matrices begin, and how much one block has */
    int64_t matrices;           /* elements [0, matrices) decay, [matrices, total) do not */
    int64_t total;              /* with gaps */
    int64_t count;              /* without gaps and without padded vocabulary: what papers quote */
};
void gpt_params_layout(struct gpt_params *p, const struct gpt_config *config);

/* A buffer with slots stores the matrices of that many blocks only, block l in slot l % slots; embeddings
 * and vectors are always whole. 0: every block has its own place. Elements such a buffer has, and where in
 * it element `at` of the layout lies. */
int64_t gpt_stored_total(const struct gpt_params *p, int64_t slots);
int64_t gpt_stored_at(const struct gpt_params *p, int64_t slots, int64_t at);

/* FLOPs of training on one token, by the convention of the literature: 6N + 6 L NH HS T (Kaplan et al.
 * 2020, attention causal), N without position embedding's and norms' negligible share left in. */
double gpt_flops_per_token(const struct gpt_config *config, double T);

#ifdef __cplusplus
}
#endif
#endif
