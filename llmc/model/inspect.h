/* Looking into a model: what happens between a text and the prediction of its next token, as numbers on the
 * host.
 *
 * One forward pass with all activations kept (memory.h), and what follows from them. Two facts make a
 * transformer legible (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"):
 *
 * The residual stream is a sum. x = token + position + sum over layers of (attention branch + MLP branch),
 * and the attention branch is itself a sum over heads h and source tokens s of P[t,s] * (W_O^h v[s]), plus
 * a bias.
 *
 * Given the statistics of the last norm, a logit is linear in x. With weight g, bias b of that norm and row
 * u of the output head,
 *   logit[t] = rstd[t] * (x[t] . d) + b . u,   d = g*u - mean(g*u)   (RMSNorm subtracts no mean)
 * so every summand of x has a part of the logit: its direct effect. What a summand changes in later layers
 * is not in it. A norm of the embedding is taken the same way. A soft cap is not linear: effects are on the
 * logit before it, predictions come after it. */
#ifndef LLMC_INSPECT_H
#define LLMC_INSPECT_H

#include "llmc/model/ablate.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    INSPECT_TOP = 10,    /* tokens listed of each read-off */
    INSPECT_NEXT = 1024, /* most probable next tokens listed, at most */
    INSPECT_NORMS = 5 /* stream before a layer, attention branch, stream between, MLP branch, stream after */
};

/* Lens d is the prediction after d layers, d <= L. Of position t, the target is the token that follows in
 * the text; after the last one, the most probable token. */
struct inspection {
    int64_t T, L, NH, NKV, HS, C, V, next_count, temperature_count;
    struct attn_rule rule;
    int32_t *tokens, *target;        /* (T) */
    const struct ablation *ablation; /* what the model was without; NULL: nothing */
    /* Attention, per layer. Query head h reads key and value head h*NKV/NH. q and k are as attention reads
     * them: normalised and rotated, where the model does that. P[t,s] = exp(score(q[t], k[s]) - lse[t]) for
     * the tokens s that t sees, by `rule` with an empty prefix, and 0 where an edge is cut; of a head that
     * is off, `value_norm` and `write` are 0. */
    float *q;          /* (L,T,NH,HS) */
    float *k, *v;      /* (L,T,NKV,HS) */
    float *lse;        /* (L,NH,T) */
    float *value_norm; /* (L,NH,T): |W_O^h v[s]| */
    /* W_O^h transposed times d of target[t]. The effect of source s on that logit is
     * rstd[t] * P[t,s] * (v[s] . write[t]). */
    float *write; /* (L,T,NH,HS) */
    /* The residual stream. Effects are on the logit of target[t], and sum to it. */
    float *norms;           /* (L,T,INSPECT_NORMS) */
    float *head_effect;     /* (L,T,NH) */
    float *bias_effect;     /* (L,T): of the bias of the attention's output */
    float *mlp_effect;      /* (L,T): with its biases */
    float *token_effect;    /* (T): of the token's embedding */
    float *position_effect; /* (T): of the position's; 0 where no embedding of positions is added */
    float *constant_effect; /* (T): b . u, and that of the bias of the embedding's norm */
    float *target_logit;    /* (T): from the model's own output, before a soft cap */
    float *rstd;            /* (T): of the last norm */
    /* Lenses: the stream normalised by the last norm and multiplied with the output head (nostalgebraist
     * 2020, "interpreting GPT: the logit lens"). The last one is the model's prediction. */
    int32_t *lens_token;  /* (L+1,T,INSPECT_TOP), most probable first */
    float *lens_p;        /* (L+1,T,INSPECT_TOP) */
    float *lens_target_p; /* (L+1,T) */
    int32_t *lens_rank;   /* (L+1,T): of the target; 1 is the most probable */
    float *lens_entropy;  /* (L+1,T), in nats */
    /* The prediction in full: the most probable tokens, and at each temperature the sum of
     * exp((logit - largest logit) / temperature) over all others. */
    int32_t *next_token; /* (T,next_count), most probable first */
    float *next_logit;   /* (T,next_count) */
    double *temperature; /* (temperature_count), increasing, > 0 */
    float *next_rest;    /* (T,temperature_count) */
};

/* A model that inspect() can look into: one sequence of T tokens, in fp32, with the parameters of `from`,
 * and as `config` says (NULL: as `from`), which may differ in what no parameter depends on, such as the
 * score and the mask of attention. `ctx` owns its activations. */
void inspect_create(struct gpt *gpt, struct ctx *ctx, const struct gpt *from, const struct gpt_config *config,
                    int64_t T);

/* Runs the model on gpt->options.T tokens, without what `ablation` takes away (NULL: nothing; it must outlive
 * *x), and fills *x. Tokens at or above `V` are not predicted (sampler.h). `temperature` (count), in
 * increasing order, is copied. The caller frees. */
void inspect(struct inspection *x, struct gpt *gpt, const int32_t *tokens, int64_t V,
             const double *temperature, int64_t count, const struct ablation *ablation);
void inspection_free(struct inspection *x);

/* P (T,T) of one head: row t is what token t attends to; 0 for tokens that it does not see. */
void inspect_attention(const struct inspection *x, int64_t layer, int64_t head, float *P);

#ifdef __cplusplus
}
#endif
#endif
