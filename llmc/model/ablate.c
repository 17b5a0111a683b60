/* Changes a layer's attention on the host: few rows of it, or one head's columns. */
#include "llmc/model/ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Whether token `to` misses an edge in this head. */
static bool cut_is_at(const struct ablation_cut *c, int64_t layer, int64_t head, int64_t to) {
    return c->to == to && (c->layer < 0 || c->layer == layer) && (c->head < 0 || c->head == head);
}

bool ablation_cuts(const struct ablation *a, int64_t layer, int64_t head, int64_t to, int64_t from) {
    for (int64_t i = 0; a && i < a->cuts; i++)
        if (a->cut[i].from == from && cut_is_at(&a->cut[i], layer, head, to)) return true;
    return false;
}

bool ablation_off(const struct ablation *a, const struct gpt_config *config, int64_t layer, int64_t head) {
    return a && a->off && a->off[layer * config->heads + head];
}

static bool has_cut(const struct ablation *a, int64_t layer, int64_t head, int64_t to) {
    for (int64_t i = 0; i < a->cuts; i++)
        if (cut_is_at(&a->cut[i], layer, head, to)) return true;
    return false;
}

double attention_score(const struct attn_rule *rule, const float *q, const float *k, int64_t HS) {
    double qk = 0.0, qq = 0.0, kk = 0.0, root = sqrt((double)HS), score;
    for (int64_t i = 0; i < HS; i++) qk += (double)q[i] * (double)k[i];
    for (int64_t i = 0; i < HS && attn_needs_norms(rule->score); i++) {
        qq += (double)q[i] * (double)q[i];
        kk += (double)k[i] * (double)k[i];
    }
    switch (rule->score) {
    case ATTN_DOT:
        score = qk;
        break;
    case ATTN_COSINE:
        score = root * qk / sqrt((qq + 1e-6) * (kk + 1e-6));
        break;
    case ATTN_L2:
        score = (2.0 * qk - qq - kk) / root;
        break;
    case ATTN_DOT2:
        score = qk * qk / (double)HS;
        break;
    default:
        score = qk / root;
    }
    double cap = (double)rule->softcap;
    return cap > 0.0 ? cap * tanh(score / cap) : score;
}

/* Attention of token t in head h, without the edges that are cut: out (HS), and the softmax's denominator. */
static void attend(const struct ablation *a, const struct gpt_config *c, const float *qkv, int64_t T,
                   int64_t l, int64_t h, int64_t t, float *out, float *lse) {
    struct attn_rule rule = gpt_attn_rule(c);
    struct attn_range keys = attn_keys(rule, 0, T, t);
    int64_t HS = c->head_size, Q = c->heads * HS, KV = c->kv_heads * HS, row = Q + 2 * KV;
    const float *q = qkv + t * row + h * HS, *k = qkv + Q + h * c->kv_heads / c->heads * HS, *v = k + KV;
    double *score = (double *)xmalloc((size_t)T * sizeof *score), max = -INFINITY, sum = 0.0;
    for (int64_t s = keys.first; s < keys.end; s++) {
        bool cut = ablation_cuts(a, l, h, t, s);
        score[s] = cut ? -INFINITY : attention_score(&rule, q, k + s * row, HS);
        max = fmax(max, score[s]);
    }
    for (int64_t s = keys.first; s < keys.end && max > -INFINITY; s++) sum += exp(score[s] - max);
    for (int64_t i = 0; i < HS; i++) {
        double x = 0.0;
        for (int64_t s = keys.first; s < keys.end && sum > 0.0; s++)
            x += exp(score[s] - max) / sum * (double)v[s * row + i];
        out[i] = (float)x;
    }
    *lse = sum > 0.0 ? (float)(max + log(sum)) : ABLATED_LSE;
    free(score);
}

static void cut_edges(struct gpt *g, const struct ablation *a, int64_t l, float *attn) {
    struct tensor t_qkv = gpt_act(g, A_QKV, l), t_lse = gpt_act(g, A_LSE, l);
    float *qkv = ctx_host_copy(g->ctx, t_qkv), *lse = ctx_host_copy(g->ctx, t_lse);
    int64_t T = g->options.T, NH = g->config.heads, HS = g->config.head_size;
    check(g->options.B == 1, "an edge is cut in a batch of %lld, not of one", (long long)g->options.B);
    for (int64_t h = 0; h < NH; h++)
        for (int64_t t = 0; t < T; t++)
            if (has_cut(a, l, h, t))
                attend(a, &g->config, qkv, T, l, h, t, attn + (t * NH + h) * HS, lse + h * T + t);
    ctx_upload_f32(g->ctx, &t_lse, lse);
    free(qkv);
    free(lse);
}

static void switch_off(struct gpt *g, const struct ablation *a, int64_t l, float *attn) {
    int64_t rows = g->options.B * g->options.T, NH = g->config.heads, HS = g->config.head_size;
    for (int64_t h = 0; h < NH; h++)
        for (int64_t r = 0; ablation_off(a, &g->config, l, h) && r < rows; r++)
            memset(attn + (r * NH + h) * HS, 0, (size_t)HS * sizeof *attn);
}

static bool changes_layer(const struct gpt *g, const struct ablation *a, int64_t l) {
    bool changes = false;
    for (int64_t h = 0; h < g->config.heads; h++) changes |= ablation_off(a, &g->config, l, h);
    for (int64_t i = 0; i < a->cuts; i++) changes |= a->cut[i].layer < 0 || a->cut[i].layer == l;
    return changes;
}

static void change_attention(void *arg, struct gpt *g, int64_t l) {
    const struct ablation *a = (const struct ablation *)arg;
    if (!changes_layer(g, a, l)) return;
    struct tensor t = gpt_act(g, A_ATTN, l);
    float *attn = ctx_host_copy(g->ctx, t);
    if (a->cuts) cut_edges(g, a, l, attn);
    switch_off(g, a, l, attn);
    ctx_upload_f32(g->ctx, &t, attn);
    free(attn);
}

void ablate(struct gpt *gpt, const struct ablation *a) {
    gpt->hooks.attention_arg = (void *)(uintptr_t)a;
    gpt->hooks.attention_done = a ? change_attention : NULL;
}
