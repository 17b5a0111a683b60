/* The network as a list of operations. Forward walks the layers up, backward walks them down; each half of
 * a layer, attention and MLP, is one function per direction. The two directions of a part stand below each
 * other, so that one can be checked against the other. ops.h has the mathematics of every operation.
 *
 * x is the residual stream. A half-layer ends by adding its branch to x and normalising the sum for what
 * comes next, in one operation: so the norm of the first layer is computed on its own, and the last layer
 * ends with ln_f. */
#include "llmc/model/gpt.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* --- views --- */

/* The positions that a forward pass computes: all of every sequence, or, with one sequence, a span that
 * continues what has been computed before (generation), or one position of each of `count` sequences. */
struct span {
    int64_t t0, count;
    bool whole;
    const struct gpt_next *next; /* (count), or NULL */
};

/* The first n rows of an activation (1,T,width), each of another sequence. */
static struct tensor next_rows(struct tensor t, int64_t n) {
    t.dim[0] = n;
    t.dim[1] = 1;
    return t;
}

static struct tensor act_span(const struct gpt *g, enum act_id id, int64_t l, const struct span *s) {
    struct tensor t = gpt_act(g, id, l);
    if (s->whole) return t;
    if (s->next) return next_rows(t, s->count);
    int64_t position = tensor_count(&t) / t.dim[1]; /* elements; B is 1 */
    if (t.data) t.data = (char *)t.data + s->t0 * position * (int64_t)dtype_size(t.dtype);
    t.dim[1] = s->count;
    return t;
}

/* The same tensor cut to the first `T` positions; one sequence, so it stays contiguous. */
static struct tensor act_prefix(const struct gpt *g, enum act_id id, int64_t l, int64_t T,
                                const struct span *s) {
    struct tensor t = gpt_act(g, id, l);
    if (!s->whole) t.dim[id == A_LSE ? 2 : 1] = T;
    return t;
}

/* Parameters that a kind of model does not have are NULL for the operations, and so are gradients of those
 * that are not trained (lora.h). */
static struct tensor *param_or_null(const struct gpt *g, enum param_id id, int64_t l, struct tensor *t) {
    if (!gpt_param_copies(&g->config, id)) return NULL;
    *t = gpt_param(g, id, l);
    return t;
}
static struct tensor *grad_or_null(const struct gpt *g, enum param_id id, int64_t l, struct tensor *t) {
    if (!gpt_param_copies(&g->config, id) || (g->options.lora.rank && !lora_adapts(g, id))) return NULL;
    *t = gpt_grad(g, id, l);
    return t;
}

/* What is added to the tokens' embeddings; NULL: nothing. */
static struct tensor *positions_or_null(const struct gpt *g, struct tensor *t) {
    if (!gpt_has_act(g, A_POSITIONS)) return param_or_null(g, P_WPE, 0, t);
    *t = gpt_act(g, A_POSITIONS, 0);
    return t;
}

/* What layer l reads: the embedding, or the layer before. */
static struct tensor residual_in(const struct gpt *g, int64_t l, const struct span *s) {
    return l == 0 ? act_span(g, A_EMBED, 0, s) : act_span(g, A_RESID_OUT, l - 1, s);
}

/* --- parts --- */

/* A linear layer with its bias, if it has one. */
static void linear_forward(struct gpt *g, struct tensor *out, struct tensor *pre, const struct tensor *inp,
                           enum param_id w, enum param_id b, int64_t l, enum activation act) {
    struct tensor weight = gpt_param(g, w, l), bias;
    matmul_forward(g->ctx, out, pre, inp, &weight, param_or_null(g, b, l, &bias), act);
}

static void linear_backward(struct gpt *g, struct tensor *dinp, const struct tensor *dout,
                            const struct tensor *inp, enum param_id w, enum param_id b, int64_t l,
                            const struct tensor *pre, bool accumulate) {
    struct tensor weight = gpt_param(g, w, l), dweight, dbias;
    matmul_backward(g->ctx, dinp, grad_or_null(g, w, l, &dweight), grad_or_null(g, b, l, &dbias), dout, inp,
                    &weight, pre, accumulate);
}

/* A norm and the statistics that it leaves for backward. */
enum norm { LN_EMBED, LN1, LN2, LNF };
static const struct {
    enum param_id weight, bias;
    enum act_id out, mean, rstd;
} norms[] = {
    [LN_EMBED] = {P_EMBED_NORM_W, P_EMBED_NORM_B, A_EMBED, A_EMBED_MEAN, A_EMBED_RSTD},
    [LN1] = {P_LN1_W, P_LN1_B, A_LN1, A_LN1_MEAN, A_LN1_RSTD},
    [LN2] = {P_LN2_W, P_LN2_B, A_LN2, A_LN2_MEAN, A_LN2_RSTD},
    [LNF] = {P_LNF_W, P_LNF_B, A_LNF, A_LNF_MEAN, A_LNF_RSTD},
};

/* norm(inp), or with `sum` and `delta`: sum = inp + delta, norm(sum). */
static void norm(struct gpt *g, enum norm n, int64_t l, const struct tensor *inp, struct tensor *sum,
                 const struct tensor *delta, const struct span *s) {
    struct tensor out = act_span(g, norms[n].out, l, s), mean, rstd = act_span(g, norms[n].rstd, l, s);
    struct tensor weight, *w = param_or_null(g, norms[n].weight, l, &weight);
    struct tensor bias, *b = param_or_null(g, norms[n].bias, l, &bias), *m = NULL;
    float eps = (float)g->config.norm_eps;
    if (gpt_has_act(g, norms[n].mean)) *(m = &mean) = act_span(g, norms[n].mean, l, s);
    if (sum)
        residual_norm_forward(g->ctx, sum, &out, m, &rstd, inp, delta, w, b, eps);
    else
        norm_forward(g->ctx, &out, m, &rstd, inp, w, b, eps);
}

/* dresid = (dresid or 0) + gradient of the norm's input `inp`, from dout. */
static void norm_back(struct gpt *g, enum norm n, int64_t l, bool first, const struct tensor *dout,
                      const struct tensor *inp) {
    struct tensor dresid = gpt_act(g, A_DRESID, 0), mean, rstd = gpt_act(g, norms[n].rstd, l), *m = NULL;
    struct tensor weight, *w = param_or_null(g, norms[n].weight, l, &weight), dweight, dbias;
    if (gpt_has_act(g, norms[n].mean)) *(m = &mean) = gpt_act(g, norms[n].mean, l);
    norm_backward(g->ctx, &dresid, grad_or_null(g, norms[n].weight, l, &dweight),
                  grad_or_null(g, norms[n].bias, l, &dbias), first ? NULL : &dresid, dout, inp, m, &rstd, w);
}

static bool has_qk_norm(const struct gpt *g) { return g->config.qk_norm == SWITCH_ON; }

/* qkv = inp, the heads of queries and keys normalised. */
static void norm_heads(struct gpt *g, int64_t l, struct tensor *qkv, const struct tensor *inp) {
    struct tensor q, k;
    const struct gpt_config *c = &g->config;
    qk_norm_forward(g->ctx, qkv, inp, param_or_null(g, P_Q_NORM_W, l, &q),
                    param_or_null(g, P_K_NORM_W, l, &k), (int)c->heads, (int)c->kv_heads, (float)c->norm_eps);
}

/* dqkv: gradient of the normalised heads -> of those before. */
static void norm_heads_back(struct gpt *g, int64_t l, struct tensor *dqkv) {
    struct tensor q, k, dq, dk, inp = gpt_act(g, A_QKV_RAW, l);
    const struct gpt_config *c = &g->config;
    qk_norm_backward(g->ctx, dqkv, grad_or_null(g, P_Q_NORM_W, l, &dq), grad_or_null(g, P_K_NORM_W, l, &dk),
                     dqkv, &inp, param_or_null(g, P_Q_NORM_W, l, &q), param_or_null(g, P_K_NORM_W, l, &k),
                     (int)c->heads, (int)c->kv_heads, (float)c->norm_eps);
}

/* Rotates queries and keys by their positions, or their gradients back. */
static void rotate(struct gpt *g, struct tensor *qkv, int64_t t0, bool backward) {
    const struct gpt_config *c = &g->config;
    struct rope_rule rule = gpt_rope_rule(c);
    bool reverse = c->rope_reverse == SWITCH_ON;
    if (c->positions == POSITIONS_ROPE)
        rope(g->ctx, qkv, (int)c->heads, (int)c->kv_heads, (int)t0, &rule, backward != reverse);
}

/* What dropout applies to. */
enum dropped { DROP_EMBEDDING, DROP_ATTENTION, DROP_ATTN_BRANCH, DROP_MLP_BRANCH };

static const struct dropout_rule *dropout_or_null(const struct gpt *g, enum dropped what, int64_t l,
                                                  struct dropout_rule *d, struct tensor *samples) {
    if (!g->drops) return NULL;
    *samples = gpt_act(g, A_SAMPLES, 0);
    *d = (struct dropout_rule){g->options.dropout, g->options.dropout_seed, (uint32_t)(l << 2) | what,
                               samples};
    return d;
}

static void drop(struct gpt *g, struct tensor *out, const struct tensor *inp, enum dropped what, int64_t l) {
    struct dropout_rule d;
    struct tensor samples;
    if (dropout_or_null(g, what, l, &d, &samples)) dropout(g->ctx, out, inp, &d);
}

/* The gradient of a branch, which is that of the stream unless some of the branch was dropped. */
static struct tensor branch_gradient(struct gpt *g, const struct tensor *dresid, enum dropped what,
                                     int64_t l) {
    struct tensor room = gpt_act(g, A_BRANCH, 0);
    if (!g->drops) return *dresid;
    drop(g, &room, dresid, what, l);
    return room;
}

static struct tensor *prefix_or_null(const struct gpt *g, struct tensor *t) {
    if (!gpt_has_act(g, A_PREFIX)) return NULL;
    *t = gpt_act(g, A_PREFIX, 0);
    return t;
}

static const struct tensor *first_or_null(const struct gpt *g, struct tensor *t) {
    if (!g->divided) return NULL;
    *t = gpt_act(g, A_FIRST, 0);
    return t;
}

/* --- half-layers --- */

/* Attention of the positions in the span, to all of their sequence up to there. Its first row becomes row
 * `row` of A_ATTN. */
static void attend(struct gpt *g, int64_t l, const struct span *s, int64_t row) {
    int64_t T = s->t0 + s->count;
    struct attn_rule rule = gpt_attn_rule(&g->config);
    struct tensor prefix, samples, first, attn = act_prefix(g, A_ATTN, l, T, s),
                                          lse = act_prefix(g, A_LSE, l, T, s);
    struct dropout_rule d;
    struct tensor qkv = act_prefix(g, A_QKV, l, T, s);
    int64_t row_bytes = attn.dim[2] * (int64_t)dtype_size(attn.dtype);
    if (attn.data)
        attn.data = (char *)attn.data + (row - s->t0) * row_bytes; /* rows before t0 stay as they are */
    rotate(g, &qkv, s->t0, false);
    rule.dropout = dropout_or_null(g, DROP_ATTENTION, l, &d, &samples);
    rule.first = first_or_null(g, &first);
    attn_forward(g->ctx, &attn, &lse, &qkv, prefix_or_null(g, &prefix), &rule, (int)s->t0);
}

/* The same for one position of each sequence, whose queries, keys and values go to their caches. */
static void attend_next(struct gpt *g, int64_t l, const struct span *s, const struct tensor *qkv) {
    for (int64_t i = 0; i < s->count; i++) {
        struct span one = {s->next[i].t0, 1, false, NULL};
        gpt_use_cache(g, s->next[i].cache);
        struct tensor from = tensor_slice_rows(qkv, i, 1), to = act_span(g, A_QKV, l, &one);
        ctx_copy(g->ctx, to.data, from.data, tensor_bytes(&from));
        attend(g, l, &one, i);
    }
}

/* ln_1(x) -> x + attention, and ln_2 of that. */
static void attn_half_forward(struct gpt *g, int64_t l, const struct span *s) {
    struct tensor ln1 = act_span(g, A_LN1, l, s);                                   /* (B,T,C) */
    struct tensor qkv = act_span(g, s->next ? A_QKV_NEXT : A_QKV, l, s);            /* (B,T,QKV) */
    struct tensor attn = act_span(g, A_ATTN, l, s);                                 /* (B,T,NH*HS) */
    struct tensor branch = act_span(g, A_BRANCH, 0, s);                             /* (B,T,C) */
    struct tensor inp = residual_in(g, l, s), mid = act_span(g, A_RESID_MID, l, s); /* (B,T,C) */

    struct tensor raw = has_qk_norm(g) ? act_span(g, A_QKV_RAW, l, s) : qkv;
    linear_forward(g, &raw, NULL, &ln1, P_QKV_W, P_QKV_B, l, ACT_NONE);
    if (has_qk_norm(g)) norm_heads(g, l, &qkv, &raw);
    if (s->next)
        attend_next(g, l, s, &qkv);
    else
        attend(g, l, s, s->t0);
    if (g->hooks.attention_done) g->hooks.attention_done(g->hooks.attention_arg, g, l);
    linear_forward(g, &branch, NULL, &attn, P_PROJ_W, P_PROJ_B, l, ACT_NONE);
    drop(g, &branch, &branch, DROP_ATTN_BRANCH, l);
    norm(g, LN2, l, &inp, &mid, &branch, s);
}

/* dresid: gradient of the stream between the halves -> gradient of the layer's input. */
static void attn_half_backward(struct gpt *g, int64_t l, const struct span *s, bool accumulate) {
    struct tensor dresid = gpt_act(g, A_DRESID, 0), dbranch = gpt_act(g, A_DBRANCH, 0); /* (B,T,C) */
    struct tensor dattn = gpt_act(g, gpt_has_act(g, A_DATTN) ? A_DATTN : A_DBRANCH, 0); /* (B,T,NH*HS) */
    struct tensor dqkv = gpt_act(g, A_DQKV, 0), qkv = gpt_act(g, A_QKV, l);             /* (B,T,QKV) */
    struct tensor attn = gpt_act(g, A_ATTN, l), lse = gpt_act(g, A_LSE, l), ln1 = gpt_act(g, A_LN1, l);
    struct tensor inp = residual_in(g, l, s); /* (B,T,C) */

    struct tensor dout = branch_gradient(g, &dresid, DROP_ATTN_BRANCH, l);
    linear_backward(g, &dattn, &dout, &attn, P_PROJ_W, P_PROJ_B, l, NULL, accumulate);
    struct attn_rule rule = gpt_attn_rule(&g->config);
    struct tensor prefix, samples, first;
    struct dropout_rule d;
    rule.dropout = dropout_or_null(g, DROP_ATTENTION, l, &d, &samples);
    rule.first = first_or_null(g, &first);
    attn_backward(g->ctx, &dqkv, &dattn, &attn, &lse, &qkv, prefix_or_null(g, &prefix), &rule);
    rotate(g, &dqkv, 0, true);
    if (has_qk_norm(g)) norm_heads_back(g, l, &dqkv);
    linear_backward(g, &dbranch, &dqkv, &ln1, P_QKV_W, P_QKV_B, l, NULL, accumulate);
    norm_back(g, LN1, l, false, &dbranch, &inp);
}

/* The activation function of the MLP, which a gated MLP applies to the gate. */
static enum activation mlp_function(const struct gpt *g) {
    static const enum activation functions[] = {
        [MLP_GELU] = ACT_GELU, [MLP_RELU2] = ACT_RELU2, [MLP_SWIGLU] = ACT_SILU, [MLP_GEGLU] = ACT_GELU};
    return functions[g->config.mlp];
}

static void activate(struct gpt *g, struct tensor *act, const struct tensor *fc) {
    if (gpt_mlp_gated(&g->config))
        glu_forward(g->ctx, act, fc, mlp_function(g));
    else
        act_forward(g->ctx, act, fc, mlp_function(g));
}

/* The wide half of the MLP: what backward needs of it. The matmul can apply GELU itself. */
static void mlp_wide_forward(struct gpt *g, int64_t l, const struct span *s) {
    struct tensor ln2 = act_span(g, A_LN2, l, s);                                   /* (B,T,C) */
    struct tensor fc = act_span(g, A_FC, l, s), act = act_span(g, A_MLP_ACT, l, s); /* (B,T,FC), (B,T,F) */
    if (g->config.mlp == MLP_GELU) {
        linear_forward(g, &act, &fc, &ln2, P_FC_W, P_FC_B, l, ACT_GELU);
    } else {
        linear_forward(g, &fc, NULL, &ln2, P_FC_W, P_FC_B, l, ACT_NONE);
        activate(g, &act, &fc);
    }
}

/* x + MLP, and the norm that comes next: ln_1 of the following layer, or ln_f. */
static void mlp_half_forward(struct gpt *g, int64_t l, const struct span *s) {
    struct tensor act = act_span(g, A_MLP_ACT, l, s);                                         /* (B,T,F) */
    struct tensor branch = act_span(g, A_BRANCH, 0, s), mid = act_span(g, A_RESID_MID, l, s); /* (B,T,C) */
    struct tensor out = act_span(g, A_RESID_OUT, l, s);                                       /* (B,T,C) */
    bool last = l + 1 == g->config.layers;
    mlp_wide_forward(g, l, s);
    linear_forward(g, &branch, NULL, &act, P_FCPROJ_W, P_FCPROJ_B, l, ACT_NONE);
    drop(g, &branch, &branch, DROP_MLP_BRANCH, l);
    norm(g, last ? LNF : LN1, last ? 0 : l + 1, &mid, &out, &branch, s);
}

/* dresid: gradient of the layer's output -> gradient of the stream between its halves. */
static void mlp_half_backward(struct gpt *g, int64_t l, bool accumulate) {
    struct tensor dresid = gpt_act(g, A_DRESID, 0), dbranch = gpt_act(g, A_DBRANCH, 0); /* (B,T,C) */
    struct tensor ln2 = gpt_act(g, A_LN2, l), mid = gpt_act(g, A_RESID_MID, l);         /* (B,T,C) */
    struct tensor fc = gpt_act(g, A_FC, l), dfc = gpt_act(g, A_DFC, 0);                 /* (B,T,FC) */
    struct tensor act = gpt_act(g, A_MLP_ACT, l);                                       /* (B,T,F) */
    struct tensor dout = branch_gradient(g, &dresid, DROP_MLP_BRANCH, l);
    if (g->config.mlp == MLP_GELU) {
        linear_backward(g, &dfc, &dout, &act, P_FCPROJ_W, P_FCPROJ_B, l, &fc, accumulate);
    } else if (gpt_mlp_gated(&g->config)) {
        struct tensor dact = gpt_act(g, A_DMLP_ACT, 0); /* (B,T,F) */
        linear_backward(g, &dact, &dout, &act, P_FCPROJ_W, P_FCPROJ_B, l, NULL, accumulate);
        glu_backward(g->ctx, &dfc, &dact, &fc, mlp_function(g));
    } else {
        linear_backward(g, &dfc, &dout, &act, P_FCPROJ_W, P_FCPROJ_B, l, NULL, accumulate);
        act_backward(g->ctx, &dfc, &dfc, &fc, mlp_function(g));
    }
    linear_backward(g, &dbranch, &dfc, &ln2, P_FC_W, P_FC_B, l, NULL, accumulate);
    norm_back(g, LN2, l, false, &dbranch, &mid);
}

/* --- forward --- */

static void layer_needed(struct gpt *g, int64_t l, int64_t next) {
    if (g->hooks.layer_needed) g->hooks.layer_needed(g->hooks.arg, l, next);
    if (g->lora.layout.parts) lora_merge(g, l);
}

/* The positions of documents are looked up like tokens, and added. */
static void embed_documents(struct gpt *g, struct tensor *out, const struct tensor *tokens,
                            const struct tensor *wte, const struct tensor *positions) {
    struct tensor ids = gpt_act(g, A_POSITION_IDS, 0), added = gpt_act(g, A_BRANCH, 0);
    embed_forward(g->ctx, out, tokens, wte, NULL, 0);
    embed_forward(g->ctx, &added, &ids, positions, NULL, 0);
    add_scaled(g->ctx, out, out, &added, 1.0f);
}

static void look_up(struct gpt *g, struct tensor *out, const struct span *s) {
    struct tensor tokens = act_span(g, A_TOKENS, 0, s);
    struct tensor wte = gpt_param(g, P_WTE, 0), wpe, *positions = positions_or_null(g, &wpe);
    if (g->divided && positions) {
        embed_documents(g, out, &tokens, &wte, positions);
        return;
    }
    if (!s->next) {
        embed_forward(g->ctx, out, &tokens, &wte, positions, (int)s->t0);
        return;
    }
    for (int64_t i = 0; i < s->count; i++) {
        struct tensor row = tensor_slice_rows(out, i, 1), token = tensor_slice_rows(&tokens, i, 1);
        embed_forward(g->ctx, &row, &token, &wte, positions, (int)s->next[i].t0);
    }
}

static void embed(struct gpt *g, const struct span *s) {
    bool normed = gpt_has_act(g, A_EMBED_RAW);
    struct tensor raw = act_span(g, normed ? A_EMBED_RAW : A_EMBED, 0, s), out = act_span(g, A_EMBED, 0, s);
    look_up(g, &raw, s);
    if (normed) norm(g, LN_EMBED, 0, &raw, NULL, NULL, s);
    drop(g, &out, &out, DROP_EMBEDDING, 0);
}

/* dresid: gradient of the first layer's input -> gradients of the embeddings. */
static void embed_back(struct gpt *g) {
    struct tensor dwte = gpt_grad(g, P_WTE, 0), dwpe, dresid = gpt_act(g, A_DRESID, 0);
    struct tensor tokens = gpt_act(g, A_TOKENS, 0), *positions = grad_or_null(g, P_WPE, 0, &dwpe);
    drop(g, &dresid, &dresid, DROP_EMBEDDING, 0);
    if (gpt_has_act(g, A_EMBED_RAW)) {
        struct tensor raw = gpt_act(g, A_EMBED_RAW, 0);
        norm_back(g, LN_EMBED, 0, true, &dresid, &raw);
    }
    embed_backward(g->ctx, &dwte, g->divided ? NULL : positions, &dresid, &tokens);
    if (!g->divided || !positions) return;
    struct tensor ids = gpt_act(g, A_POSITION_IDS, 0);
    embed_backward(g->ctx, positions, NULL, &dresid, &ids);
}

static void forward(struct gpt *g, const struct span *s) {
    ctx_range_push(g->ctx, "forward");
    embed(g, s);
    struct tensor embedded = act_span(g, A_EMBED, 0, s);
    norm(g, LN1, 0, &embedded, NULL, NULL, s);
    for (int64_t l = 0; l < g->config.layers; l++) {
        layer_needed(g, l, l + 1 < g->config.layers ? l + 1 : -1);
        attn_half_forward(g, l, s);
        mlp_half_forward(g, l, s);
    }
    ctx_range_pop(g->ctx);
}

void gpt_forward(struct gpt *g, int64_t t0, int64_t count) {
    struct span s = {t0, count, t0 == 0 && count == g->options.T, NULL};
    check(s.whole || g->options.B == 1,
          "gpt_forward: a part of the sequence needs a batch of one, not %" PRId64, g->options.B);
    check(
        s.whole || !gpt_looks_ahead(&g->config),
        "gpt_forward: with --mask %s, tokens see those after them, so a part of the sequence cannot be computed",
        g->config.mask == MASK_FULL ? "full" : "anti-causal");
    check(t0 >= 0 && count > 0 && t0 + count <= g->options.T,
          "gpt_forward: positions %" PRId64 "..%" PRId64 " are beyond the %" PRId64 " allocated", t0,
          t0 + count, g->options.T);
    check(s.whole || !g->divided, "gpt_forward: documents need whole sequences");
    forward(g, &s);
}

void gpt_use_cache(struct gpt *g, int64_t cache) {
    check(cache >= 0 && cache < max_i64(1, g->options.caches), "gpt_use_cache: there is no cache %" PRId64,
          cache);
    g->cache = cache;
}

void gpt_forward_next(struct gpt *g, const struct gpt_next *next, int64_t n) {
    struct tensor tokens = gpt_act(g, A_TOKENS, 0);
    int32_t *ids = (int32_t *)xmalloc((size_t)n * sizeof *ids);
    check(n >= 1 && n <= g->options.caches, "gpt_forward_next: %" PRId64 " sequences of %" PRId64, n,
          g->options.caches);
    check(!gpt_looks_ahead(&g->config), "gpt_forward_next: tokens of this model see those after them");
    check(!g->hooks.attention_done, "gpt_forward_next: heads are ablated in one sequence at a time");
    for (int64_t i = 0; i < n; i++) {
        check(next[i].t0 >= 0 && next[i].t0 < g->options.T,
              "gpt_forward_next: position %" PRId64 " is beyond the %" PRId64 " allocated", next[i].t0,
              g->options.T);
        ids[i] = next[i].token;
    }
    ctx_upload(g->ctx, tokens.data, ids, n * (int64_t)sizeof *ids);
    free(ids);
    gpt_set_prefix(g, &(int32_t){0}); /* a token after the prefix sees all before it in any case */
    forward(g, &(struct span){0, n, false, next});
}

/* --- output head and loss --- */

static enum param_id head_weight(const struct gpt *g) {
    return g->config.tied == SWITCH_ON ? P_WTE : P_LM_HEAD;
}

static void logits_of_rows(struct gpt *g, struct tensor *logits, int64_t first, int64_t rows) {
    struct tensor lnf_all = gpt_act(g, A_LNF, 0), lnf = tensor_slice_rows(&lnf_all, first, rows);
    struct tensor weight = gpt_param(g, head_weight(g), 0), room = gpt_act(g, A_LOGITS, 0);
    *logits = tensor_slice_rows(&room, 0, rows);
    matmul_forward(g->ctx, logits, NULL, &lnf, &weight, NULL, ACT_NONE);
}

/* Logits, losses, with `hits` A_HITS, and in training the gradients of ln_f's output and of the head's
 * weight, a chunk of rows at a time, so that the logits of a chunk are all that is ever held. */
static void head(struct gpt *g, bool accumulate, bool train, bool hits) {
    struct tensor room = gpt_act(g, A_LOGITS, 0), weight = gpt_param(g, head_weight(g), 0), dweight,
                  *dw = NULL;
    struct tensor lnf_all = gpt_act(g, A_LNF, 0), dlnf_all = {0};
    struct tensor losses_all = gpt_act(g, A_LOSSES, 0), targets_all = gpt_act(g, A_TARGETS, 0);
    if (train) {
        dlnf_all = gpt_act(g, A_DBRANCH, 0);
        dw = grad_or_null(g, head_weight(g), 0, &dweight);
    }
    struct tensor scale = tensor_range(&g->numbers, STEP_SCALE, 1);
    struct loss_terms terms = train ? g->options.loss : (struct loss_terms){0};
    terms.softcap = (float)g->config.logit_softcap;
    bool plain = terms.smoothing == 0.0f && terms.z == 0.0f && terms.softcap == 0.0f;
    int64_t N = g->options.B * g->options.T, chunk = room.dim[0];
    ctx_range_push(g->ctx, "head");
    for (int64_t first = 0; first < N; first += chunk) {
        int64_t rows = min_i64(chunk, N - first);
        struct tensor logits, losses = tensor_range(&losses_all, first, rows);
        struct tensor targets = tensor_range(&targets_all, first, rows);
        logits_of_rows(g, &logits, first, rows);
        loss_forward(g->ctx, &losses, &logits, &targets, train ? &scale : NULL, (int)g->config.vocab_size,
                     plain ? NULL : &terms);
        if (hits) {
            struct tensor all = gpt_act(g, A_HITS, 0), some = tensor_range(&all, first, rows);
            top1(g->ctx, &some, &logits, &targets, (int)g->config.vocab_size);
        }
        if (!train) continue;
        struct tensor lnf = tensor_slice_rows(&lnf_all, first, rows),
                      dlnf = tensor_slice_rows(&dlnf_all, first, rows);
        matmul_backward(g->ctx, &dlnf, dw, NULL, &logits, &lnf, &weight, NULL, accumulate || first > 0);
    }
    struct tensor loss = tensor_range(&g->numbers, STEP_LOSS, 1), losses = tensor_range(&losses_all, 0, N);
    sum(g->ctx, &loss, &losses, train ? &scale : NULL, accumulate);
    ctx_range_pop(g->ctx);
}

void gpt_loss(struct gpt *g) { head(g, false, false, false); }
void gpt_loss_and_hits(struct gpt *g) { head(g, false, false, true); }

/* The scale travels as a kernel's argument, so no host buffer must outlive an asynchronous copy. */
void gpt_set_loss_scale(struct gpt *g, float scale) {
    struct tensor on_device = tensor_range(&g->numbers, STEP_SCALE, 1);
    fill(g->ctx, &on_device, scale);
}

void gpt_cap_logits(const struct gpt_config *c, float *logits, int64_t n) {
    float cap = (float)c->logit_softcap;
    if (cap == 0.0f) return;
#pragma omp parallel for schedule(static) if (n > 1 << 16)
    for (int64_t i = 0; i < n; i++) logits[i] = cap * tanhf(logits[i] / cap);
}

static void download_logits(struct gpt *g, float *host, const struct tensor *logits) {
    ctx_download_f32(g->ctx, host, logits);
    gpt_cap_logits(&g->config, host, tensor_count(logits));
}

void gpt_logits(struct gpt *g, int64_t position, float *host) {
    check(g->options.B == 1, "gpt_logits: needs a batch of one");
    struct tensor logits;
    logits_of_rows(g, &logits, position, 1);
    if (host) download_logits(g, host, &logits);
}

void gpt_next_logits(struct gpt *g, int64_t n, float *host) {
    struct tensor lnf = next_rows(gpt_act(g, A_LNF, 0), n), weight = gpt_param(g, head_weight(g), 0);
    struct tensor room = gpt_act(g, A_LOGITS, 0), logits = tensor_slice_rows(&room, 0, n);
    matmul_forward(g->ctx, &logits, NULL, &lnf, &weight, NULL, ACT_NONE);
    download_logits(g, host, &logits);
}

void gpt_all_logits(struct gpt *g) {
    struct tensor logits;
    logits_of_rows(g, &logits, 0, g->options.B * g->options.T);
}

void gpt_read_off(struct gpt *g, const struct tensor *resid) {
    struct span whole = {0, g->options.T, true, NULL};
    norm(g, LNF, 0, resid, NULL, NULL, &whole);
    gpt_all_logits(g);
}

/* --- backward --- */

/* Brings back what the forward pass of layer l left in memory that other layers have used since. */
static void recompute_layer(struct gpt *g, int64_t l, const struct span *s) {
    enum recompute level = g->options.recompute;
    struct tensor inp = residual_in(g, l, s), mid = gpt_act(g, A_RESID_MID, l);
    if (level >= RECOMPUTE_NORM) norm(g, LN1, l, &inp, NULL, NULL, s);
    if (level == RECOMPUTE_BLOCK) {
        attn_half_forward(g, l, s);
        mlp_wide_forward(g, l, s);
        return;
    }
    if (level == RECOMPUTE_NORM) norm(g, LN2, l, &mid, NULL, NULL, s);
    if (level < RECOMPUTE_ACT) return;
    struct tensor fc = gpt_act(g, A_FC, l), act = gpt_act(g, A_MLP_ACT, l);
    activate(g, &act, &fc);
}

static void zero_gradient(struct gpt *g, enum param_id id) {
    struct tensor grad;
    if (grad_or_null(g, id, 0, &grad)) fill(g->ctx, &grad, 0.0f);
}

/* Gradients that no matmul overwrites start from zero: all vectors, the positions, and the token embedding
 * unless the head, which comes first, has written it. */
static void zero_small_gradients(struct gpt *g) {
    struct tensor vectors = gpt_grad_range(g, g->layout.matrices, g->layout.total - g->layout.matrices);
    fill(g->ctx, &vectors, 0.0f);
    zero_gradient(g, P_WPE);
    if (head_weight(g) != P_WTE) zero_gradient(g, P_WTE);
}

void gpt_forward_backward(struct gpt *g, bool first_micro_batch) {
    check(g->options.train, "gpt_forward_backward: the model was created without training");
    struct span whole = {0, g->options.T, true, NULL};
    bool adapters = g->options.lora.rank > 0, accumulate = !first_micro_batch && !adapters;
    g->lora.first = first_micro_batch;
    if (first_micro_batch && !adapters) zero_small_gradients(g);
    g->drops = g->options.dropout > 0.0f;
    gpt_forward(g, 0, g->options.T);
    head(g, !first_micro_batch, true, false);

    int64_t last = g->config.layers - 1;
    struct tensor dlnf = gpt_act(g, A_DBRANCH, 0), out = gpt_act(g, A_RESID_OUT, last);
    ctx_range_push(g->ctx, "backward");
    norm_back(g, LNF, 0, true, &dlnf, &out);
    for (int64_t l = last; l >= 0; l--) {
        layer_needed(g, l, l - 1);
        recompute_layer(g, l, &whole);
        if (g->hooks.layer_grads_needed) g->hooks.layer_grads_needed(g->hooks.arg, l);
        mlp_half_backward(g, l, accumulate);
        attn_half_backward(g, l, &whole, accumulate);
        if (adapters) lora_backward(g, l);
        if (g->hooks.layer_ready) g->hooks.layer_ready(g->hooks.arg, l);
    }
    if (!adapters) embed_back(g);
    g->drops = false;
    ctx_range_pop(g->ctx);
}
