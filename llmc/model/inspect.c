/* Takes a forward pass apart. The model computes; what is copied from its activations is arranged by head,
 * and projected on the one direction of the residual stream that raises the logit in question. All of that
 * is linear, so it takes a few matrix products on the host. */
#include "llmc/model/inspect.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- copies of what the model has --- */

static float *floats(int64_t count) { return (float *)xcalloc((size_t)count, sizeof(float)); }
static int32_t *integers(int64_t count) { return (int32_t *)xcalloc((size_t)count, sizeof(int32_t)); }

static float *param_copy(struct gpt *g, enum param_id id, int64_t l) {
    return gpt_param_copies(&g->config, id) ? ctx_host_copy(g->ctx, gpt_param(g, id, l)) : NULL;
}

static void param_row_copy(struct gpt *g, float *to, enum param_id id, int64_t row) {
    struct tensor t = gpt_param(g, id, 0), one = tensor_slice_rows(&t, row, 1);
    ctx_download_f32(g->ctx, to, &one);
}

static void allocate(struct inspection *x) {
    int64_t T = x->T, L = x->L, lenses = (L + 1) * T;
    x->tokens = integers(T);
    x->target = integers(T);
    x->q = floats(L * T * x->NH * x->HS);
    x->k = floats(L * T * x->NKV * x->HS);
    x->v = floats(L * T * x->NKV * x->HS);
    x->lse = floats(L * x->NH * T);
    x->write = floats(L * T * x->NH * x->HS);
    x->value_norm = floats(L * x->NH * T);
    x->norms = floats(L * T * INSPECT_NORMS);
    x->head_effect = floats(L * T * x->NH);
    x->bias_effect = floats(L * T);
    x->mlp_effect = floats(L * T);
    x->token_effect = floats(T);
    x->position_effect = floats(T);
    x->constant_effect = floats(T);
    x->target_logit = floats(T);
    x->lens_token = integers(lenses * INSPECT_TOP);
    x->lens_p = floats(lenses * INSPECT_TOP);
    x->lens_target_p = floats(lenses);
    x->lens_rank = integers(lenses);
    x->lens_entropy = floats(lenses);
    x->next_token = integers(T * x->next_count);
    x->next_logit = floats(T * x->next_count);
    x->next_rest = floats(T * x->temperature_count);
}

void inspection_free(struct inspection *x) {
    void *const owned[] = {x->tokens,
                           x->target,
                           x->q,
                           x->k,
                           x->v,
                           x->lse,
                           x->write,
                           x->value_norm,
                           x->norms,
                           x->head_effect,
                           x->bias_effect,
                           x->mlp_effect,
                           x->rstd,
                           x->token_effect,
                           x->position_effect,
                           x->constant_effect,
                           x->target_logit,
                           x->lens_token,
                           x->lens_p,
                           x->lens_target_p,
                           x->lens_rank,
                           x->lens_entropy,
                           x->next_token,
                           x->next_logit,
                           x->temperature,
                           x->next_rest};
    for (size_t i = 0; i < ARRAY_LENGTH(owned); i++) free(owned[i]);
    memset(x, 0, sizeof *x);
}

/* --- the prediction, and the read-offs --- */

struct candidate {
    float logit;
    int32_t token;
};

/* Most probable first, equal ones by token, as the sampler sorts. */
static int by_logit(const void *a, const void *b) {
    const struct candidate *x = (const struct candidate *)a, *y = (const struct candidate *)b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

/* Most probable first; of equal ones the smaller token, as the sampler sorts. */
static void keep_top(int32_t *top, int64_t *kept, const float *logits, int32_t token) {
    int64_t at = *kept;
    while (at > 0 && logits[token] > logits[top[at - 1]]) at--;
    if (at == INSPECT_TOP) return;
    *kept = min_i64(INSPECT_TOP, *kept + 1);
    for (int64_t i = *kept - 1; i > at; i--) top[i] = top[i - 1];
    top[at] = token;
}

static void read_lens(struct inspection *x, int64_t depth, int64_t t, const float *logits) {
    int64_t at = depth * x->T + t, kept = 0;
    int32_t *top = x->lens_token + at * INSPECT_TOP, target = x->target[t], ahead = 0;
    double sum = 0.0, mean = 0.0, max = -INFINITY;
    for (int32_t v = 0; v < x->V; v++) {
        keep_top(top, &kept, logits, v);
        max = fmax(max, (double)logits[v]);
        ahead += logits[v] > logits[target] || (logits[v] == logits[target] && v < target);
    }
    for (int64_t v = 0; v < x->V; v++) {
        double weight = exp((double)logits[v] - max);
        sum += weight;
        mean += weight * ((double)logits[v] - max);
    }
    x->lens_rank[at] = ahead + 1;
    x->lens_target_p[at] = (float)(exp((double)logits[target] - max) / sum);
    x->lens_entropy[at] = (float)(log(sum) - mean / sum);
    for (int64_t i = 0; i < kept; i++)
        x->lens_p[at * INSPECT_TOP + i] = (float)(exp((double)logits[top[i]] - max) / sum);
}

/* Of the model's own output, before its soft cap. */
static void read_target(struct inspection *x, int64_t t, const float *logits) {
    int32_t best = 0;
    for (int32_t v = 1; v < x->V; v++)
        if (logits[v] > logits[best]) best = v;
    x->target[t] = t + 1 < x->T ? x->tokens[t + 1] : best;
    x->target_logit[t] = logits[x->target[t]];
}

/* Of the model's own output alone. */
static void read_next(struct inspection *x, int64_t t, const float *logits) {
    struct candidate *sorted = (struct candidate *)xmalloc((size_t)x->V * sizeof *sorted);
    for (int64_t v = 0; v < x->V; v++) sorted[v] = (struct candidate){logits[v], (int32_t)v};
    qsort(sorted, (size_t)x->V, sizeof *sorted, by_logit);
    for (int64_t i = 0; i < x->next_count; i++) {
        x->next_token[t * x->next_count + i] = sorted[i].token;
        x->next_logit[t * x->next_count + i] = sorted[i].logit;
    }
    for (int64_t k = 0; k < x->temperature_count; k++) {
        double rest = 0.0;
        for (int64_t i = x->V - 1; i >= x->next_count; i--)
            rest += exp(((double)sorted[i].logit - (double)sorted[0].logit) / x->temperature[k]);
        x->next_rest[t * x->temperature_count + k] = (float)rest;
    }
    free(sorted);
}

/* Reads A_LOGITS as the lens after `depth` layers. */
static void read_logits(struct inspection *x, struct gpt *g, int64_t depth) {
    float *logits = ctx_host_copy(g->ctx, gpt_act(g, A_LOGITS, 0));
    int64_t Vp = gpt_padded_vocab(&g->config);
    for (int64_t t = 0; depth == x->L && t < x->T; t++) read_target(x, t, logits + t * Vp);
    gpt_cap_logits(&g->config, logits, x->T * Vp);
#pragma omp parallel for schedule(dynamic)
    for (int64_t t = 0; t < x->T; t++) {
        if (depth == x->L) read_next(x, t, logits + t * Vp);
        read_lens(x, depth, t, logits + t * Vp);
    }
    free(logits);
}

static void read_lenses(struct inspection *x, struct gpt *g) {
    gpt_all_logits(g);
    read_logits(x, g, x->L); /* first: it says which token the others look for */
    for (int64_t depth = 0; depth < x->L; depth++) {
        struct tensor resid = depth == 0 ? gpt_act(g, A_EMBED, 0) : gpt_act(g, A_RESID_OUT, depth - 1);
        gpt_read_off(g, &resid);
        read_logits(x, g, depth);
    }
}

/* --- what reaches a logit --- */

/* A direction behind a norm, d (C), becomes that of the norm's input with the same effect. */
static void through_norm(const struct gpt *g, float *d, const float *gain, float rstd) {
    int64_t C = g->config.channels;
    double mean = 0.0;
    for (int64_t c = 0; c < C; c++) {
        if (gain) d[c] *= gain[c];
        mean += (double)d[c] / (double)C;
    }
    for (int64_t c = 0; c < C && g->config.norm == NORM_LAYER; c++) d[c] -= (float)mean;
    for (int64_t c = 0; c < C; c++) d[c] *= rstd;
}

/* (T,C): the direction d of each position's target, times rstd; and the part of the logit that no summand
 * has. */
static float *logit_directions(struct inspection *x, struct gpt *g) {
    int64_t C = x->C;
    float *direction = floats(x->T * C), *gain = param_copy(g, P_LNF_W, 0), *bias = param_copy(g, P_LNF_B, 0);
    enum param_id head = g->config.tied == SWITCH_ON ? P_WTE : P_LM_HEAD;
    for (int64_t t = 0; t < x->T; t++) {
        float *d = direction + t * C;
        double constant = 0.0;
        param_row_copy(g, d, head, x->target[t]);
        for (int64_t c = 0; c < C && bias; c++) constant += (double)bias[c] * (double)d[c];
        x->constant_effect[t] = (float)constant;
        through_norm(g, d, gain, x->rstd[t]);
    }
    free(gain);
    free(bias);
    return direction;
}

static float dot(const float *a, const float *b, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

/* The norm of a - b, or of a. */
static float distance(const float *a, const float *b, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double e = (double)a[i] - (b ? (double)b[i] : 0.0);
        sum += e * e;
    }
    return (float)sqrt(sum);
}

/* A summand of the stream that is known as the difference of two states. */
static float effect_of_step(const float *after, const float *before, const float *direction, int64_t C) {
    double sum = 0.0;
    for (int64_t c = 0; c < C; c++) sum += ((double)after[c] - (double)before[c]) * (double)direction[c];
    return (float)sum;
}

/* With a norm of the embedding, token and position have the effects that its statistics leave them. */
static void embedding_effects(struct inspection *x, struct gpt *g, const float *direction) {
    float *row = floats(x->C), *d = floats(x->C), *table = NULL, *rstd = NULL;
    float *gain = param_copy(g, P_EMBED_NORM_W, 0), *bias = param_copy(g, P_EMBED_NORM_B, 0);
    if (gpt_has_act(g, A_EMBED_RSTD)) rstd = ctx_host_copy(g->ctx, gpt_act(g, A_EMBED_RSTD, 0));
    if (gpt_has_act(g, A_POSITIONS)) table = ctx_host_copy(g->ctx, gpt_act(g, A_POSITIONS, 0));
    for (int64_t t = 0; t < x->T; t++) {
        memcpy(d, direction + t * x->C, (size_t)x->C * sizeof *d);
        if (bias) x->constant_effect[t] += dot(bias, d, x->C);
        if (rstd) through_norm(g, d, gain, rstd[t]);
        param_row_copy(g, row, P_WTE, x->tokens[t]);
        x->token_effect[t] = dot(row, d, x->C);
        if (g->config.positions == POSITIONS_LEARNED) param_row_copy(g, row, P_WPE, t);
        const float *position = table                                      ? table + t * x->C
                                : g->config.positions == POSITIONS_LEARNED ? row
                                                                           : NULL;
        if (position) x->position_effect[t] = dot(position, d, x->C);
    }
    free(gain);
    free(bias);
    free(rstd);
    free(table);
    free(row);
    free(d);
}

/* --- layers --- */

/* Queries, keys and values stand side by side in a row of A_QKV. */
static void split_heads(struct inspection *x, struct gpt *g, int64_t l) {
    float *qkv = ctx_host_copy(g->ctx, gpt_act(g, A_QKV, l)),
          *lse = ctx_host_copy(g->ctx, gpt_act(g, A_LSE, l));
    int64_t Q = x->NH * x->HS, KV = x->NKV * x->HS;
    for (int64_t t = 0; t < x->T; t++) {
        const float *row = qkv + t * (Q + 2 * KV);
        memcpy(x->q + (l * x->T + t) * Q, row, (size_t)Q * sizeof *row);
        memcpy(x->k + (l * x->T + t) * KV, row + Q, (size_t)KV * sizeof *row);
        memcpy(x->v + (l * x->T + t) * KV, row + Q + KV, (size_t)KV * sizeof *row);
    }
    memcpy(x->lse + l * x->NH * x->T, lse, (size_t)(x->NH * x->T) * sizeof *lse);
    free(qkv);
    free(lse);
}

/* `proj` (C,NH*HS): the columns of head h are W_O^h. */
static void head_outputs(struct inspection *x, int64_t l, const float *proj, const float *direction) {
    int64_t C = x->C, HS = x->HS, Q = x->NH * HS;
#pragma omp parallel for schedule(dynamic)
    for (int64_t t = 0; t < x->T; t++) {
        float *write = x->write + (l * x->T + t) * Q;
        double *square = (double *)xcalloc((size_t)x->NH, sizeof *square);
        for (int64_t c = 0; c < C; c++) {
            const float *row = proj + c * Q;
            float d = direction[t * C + c] / x->rstd[t];
            for (int64_t i = 0; i < Q; i++) write[i] += d * row[i];
            for (int64_t h = 0; h < x->NH; h++) {
                const float *v = x->v + ((l * x->T + t) * x->NKV + h * x->NKV / x->NH) * HS;
                float sum = 0.0f;
                for (int64_t i = 0; i < HS; i++) sum += row[h * HS + i] * v[i];
                square[h] += (double)sum * (double)sum;
            }
        }
        for (int64_t h = 0; h < x->NH; h++)
            x->value_norm[(l * x->NH + h) * x->T + t] = (float)sqrt(square[h]);
        free(square);
    }
}

/* Heads that are off hand nothing over. */
static void forget_heads_off(struct inspection *x, const struct gpt *g, int64_t l) {
    for (int64_t h = 0; h < x->NH; h++) {
        if (!ablation_off(x->ablation, &g->config, l, h)) continue;
        memset(x->value_norm + (l * x->NH + h) * x->T, 0, (size_t)x->T * sizeof *x->value_norm);
        for (int64_t t = 0; t < x->T; t++)
            memset(x->write + ((l * x->T + t) * x->NH + h) * x->HS, 0, (size_t)x->HS * sizeof *x->write);
    }
}

static void layer_effects(struct inspection *x, struct gpt *g, int64_t l, const float *proj_bias,
                          const float *direction) {
    int64_t C = x->C, HS = x->HS;
    float *in = ctx_host_copy(g->ctx, l ? gpt_act(g, A_RESID_OUT, l - 1) : gpt_act(g, A_EMBED, 0));
    float *mid = ctx_host_copy(g->ctx, gpt_act(g, A_RESID_MID, l)),
          *out = ctx_host_copy(g->ctx, gpt_act(g, A_RESID_OUT, l));
    float *attn = ctx_host_copy(g->ctx, gpt_act(g, A_ATTN, l));
    for (int64_t t = 0; t < x->T; t++) {
        int64_t at = l * x->T + t, row = t * C;
        const float *d = direction + row;
        float *norms = x->norms + at * INSPECT_NORMS;
        norms[0] = distance(in + row, NULL, C);
        norms[1] = distance(mid + row, in + row, C);
        norms[2] = distance(mid + row, NULL, C);
        norms[3] = distance(out + row, mid + row, C);
        norms[4] = distance(out + row, NULL, C);
        x->bias_effect[at] = proj_bias ? dot(proj_bias, d, C) : 0.0f;
        x->mlp_effect[at] = effect_of_step(out + row, mid + row, d, C);
        for (int64_t h = 0; h < x->NH; h++)
            x->head_effect[at * x->NH + h] =
                x->rstd[t] * dot(attn + (t * x->NH + h) * HS, x->write + (at * x->NH + h) * HS, HS);
    }
    free(in);
    free(mid);
    free(out);
    free(attn);
}

static void read_layer(struct inspection *x, struct gpt *g, int64_t l, const float *direction) {
    float *proj = param_copy(g, P_PROJ_W, l), *bias = param_copy(g, P_PROJ_B, l);
    split_heads(x, g, l);
    head_outputs(x, l, proj, direction);
    forget_heads_off(x, g, l);
    layer_effects(x, g, l, bias, direction);
    free(proj);
    free(bias);
}

/* --- the whole --- */

void inspect_create(struct gpt *gpt, struct ctx *ctx, const struct gpt *from, const struct gpt_config *config,
                    int64_t T) {
    /* Only training keeps the activations of every layer. */
    struct gpt_options options = {.B = 1, .T = T, .train = true, .dtype = DTYPE_F32, .params = &from->params};
    gpt_create(gpt, ctx, config ? config : &from->config, &options);
}

void inspect(struct inspection *x, struct gpt *g, const int32_t *tokens, int64_t V, const double *temperature,
             int64_t count, const struct ablation *ablation) {
    const struct gpt_config *c = &g->config;
    *x = (struct inspection){.T = g->options.T,
                             .L = c->layers,
                             .NH = c->heads,
                             .NKV = c->kv_heads,
                             .HS = c->head_size,
                             .C = c->channels,
                             .V = V,
                             .next_count = min_i64(INSPECT_NEXT, V),
                             .temperature_count = count,
                             .rule = gpt_attn_rule(c),
                             .ablation = ablation};
    check(V >= 1 && V <= c->vocab_size, "inspect: %lld tokens of %lld", (long long)V,
          (long long)c->vocab_size);
    allocate(x);
    memcpy(x->tokens, tokens, (size_t)x->T * sizeof *tokens);
    x->temperature = (double *)xmalloc((size_t)count * sizeof *temperature);
    memcpy(x->temperature, temperature, (size_t)count * sizeof *temperature);

    gpt_set_batch(g, tokens, NULL);
    ablate(g, ablation);
    gpt_forward(g, 0, x->T);
    x->rstd = ctx_host_copy(g->ctx, gpt_act(g, A_LNF_RSTD, 0));
    read_lenses(x, g);
    float *direction = logit_directions(x, g);
    embedding_effects(x, g, direction);
    for (int64_t l = 0; l < x->L; l++) read_layer(x, g, l, direction);
    free(direction);
}

void inspect_attention(const struct inspection *x, int64_t l, int64_t h, float *P) {
    int64_t T = x->T, HS = x->HS, kv = h * x->NKV / x->NH;
    memset(P, 0, (size_t)(T * T) * sizeof *P);
    for (int64_t t = 0; t < T; t++) {
        struct attn_range keys = attn_keys(x->rule, 0, T, t);
        const float *q = x->q + ((l * T + t) * x->NH + h) * HS;
        for (int64_t s = keys.first; s < keys.end; s++) {
            if (ablation_cuts(x->ablation, l, h, t, s)) continue;
            double score = attention_score(&x->rule, q, x->k + ((l * T + s) * x->NKV + kv) * HS, HS);
            P[t * T + s] = (float)exp(score - (double)x->lse[(l * x->NH + h) * T + t]);
        }
    }
}
