/* GPT-2, forward and backward, as a list of operations. Sections: views of a span of positions, forward, head
 * and loss, backward. The shapes are in gpt_params.c, the mathematics of every operation in ops.h. */
#include "llmc/model/gpt.h"

#include <inttypes.h>

/* --- views --- */

/* The positions that a forward pass computes. Whole sequences, or, with one sequence, any span that continues
 * what has been computed before (generation). */
struct span {
    int64_t t0, count;
    bool whole;
};

static struct tensor act_span(const struct gpt *g, enum act_id id, int64_t l, const struct span *s) {
    struct tensor t = gpt_act(g, id, l);
    if (s->whole) return t;
    if (t.rank == 2) { /* (1,T) */
        char *data = t.data ? (char *)t.data + s->t0 * (int64_t)dtype_size(t.dtype) : NULL;
        return tensor_make(t.name, t.dtype, data, 1, s->count, 0, 0);
    }
    return tensor_slice_rows(&t, s->t0, s->count);
}

/* The same tensor cut to the first `T` positions; one sequence, so it stays contiguous. */
static struct tensor act_prefix(const struct gpt *g, enum act_id id, int64_t l, int64_t T,
                                const struct span *s) {
    struct tensor t = gpt_act(g, id, l);
    if (!s->whole) t.dim[id == A_LSE ? 2 : 1] = T;
    return t;
}

/* What layer l reads: the embedding, or the layer before. */
static enum act_id residual_in(int64_t l) { return l == 0 ? A_EMBED : A_RESID_OUT; }
static int64_t layer_before(int64_t l) { return l == 0 ? 0 : l - 1; }

/* --- forward --- */

/* ln_1(x) -> x + attention, and ln_2 of that. */
static void attn_half_forward(struct gpt *g, int64_t l, const struct span *s) {
    struct tensor ln1 = act_span(g, A_LN1, l, s);                        /* (B,T,C) */
    struct tensor qkv = act_span(g, A_QKV, l, s);                        /* (B,T,3C) */
    struct tensor attn = act_span(g, A_ATTN, l, s);                      /* (B,T,C) */
    struct tensor branch = act_span(g, A_BRANCH, 0, s);                  /* (B,T,C) */
    struct tensor inp = act_span(g, residual_in(l), layer_before(l), s); /* (B,T,C) */
    struct tensor mid = act_span(g, A_RESID_MID, l, s), ln2 = act_span(g, A_LN2, l, s);
    struct tensor mean = act_span(g, A_LN2_MEAN, l, s), rstd = act_span(g, A_LN2_RSTD, l, s);
    struct tensor qkv_w = gpt_param(g, P_QKV_W, l), qkv_b = gpt_param(g, P_QKV_B, l);
    struct tensor proj_w = gpt_param(g, P_PROJ_W, l), proj_b = gpt_param(g, P_PROJ_B, l);
    struct tensor ln2_w = gpt_param(g, P_LN2_W, l), ln2_b = gpt_param(g, P_LN2_B, l);

    int64_t T = s->t0 + s->count; /* attention sees everything up to here */
    struct tensor attn_T = act_prefix(g, A_ATTN, l, T, s), lse_T = act_prefix(g, A_LSE, l, T, s);
    struct tensor qkv_T = act_prefix(g, A_QKV, l, T, s);

    matmul_forward(g->ctx, &qkv, NULL, &ln1, &qkv_w, &qkv_b, ACT_NONE);
    attn_forward(g->ctx, &attn_T, &lse_T, &qkv_T, (int)g->config.heads, (int)s->t0);
    matmul_forward(g->ctx, &branch, NULL, &attn, &proj_w, &proj_b, ACT_NONE);
    residual_norm_forward(g->ctx, &mid, &ln2, &mean, &rstd, &inp, &branch, &ln2_w, &ln2_b);
}

/* gelu(fc(ln_2(x))), the wide half of the MLP: what backward needs of it. */
static void mlp_wide_forward(struct gpt *g, int64_t l, const struct span *s) {
    struct tensor ln2 = act_span(g, A_LN2, l, s);                                       /* (B,T,C) */
    struct tensor fc = act_span(g, A_FC, l, s), fc_gelu = act_span(g, A_FC_GELU, l, s); /* (B,T,4C) */
    struct tensor fc_w = gpt_param(g, P_FC_W, l), fc_b = gpt_param(g, P_FC_B, l);
    matmul_forward(g->ctx, &fc_gelu, &fc, &ln2, &fc_w, &fc_b, ACT_GELU);
}

/* x + MLP, and the norm that comes next: ln_1 of the following layer, or ln_f. */
static void mlp_half_forward(struct gpt *g, int64_t l, const struct span *s) {
    bool last = l + 1 == g->config.layers;
    int64_t next = last ? 0 : l + 1;
    struct tensor fc_gelu = act_span(g, A_FC_GELU, l, s);                                     /* (B,T,4C) */
    struct tensor branch = act_span(g, A_BRANCH, 0, s), mid = act_span(g, A_RESID_MID, l, s); /* (B,T,C) */
    struct tensor out = act_span(g, A_RESID_OUT, l, s);                                       /* (B,T,C) */
    struct tensor ln = act_span(g, last ? A_LNF : A_LN1, next, s);                            /* (B,T,C) */
    struct tensor mean = act_span(g, last ? A_LNF_MEAN : A_LN1_MEAN, next, s);                /* (B,T) */
    struct tensor rstd = act_span(g, last ? A_LNF_RSTD : A_LN1_RSTD, next, s);                /* (B,T) */
    struct tensor ln_w = gpt_param(g, last ? P_LNF_W : P_LN1_W, next),
                  ln_b = gpt_param(g, last ? P_LNF_B : P_LN1_B, next);
    struct tensor fcproj_w = gpt_param(g, P_FCPROJ_W, l), fcproj_b = gpt_param(g, P_FCPROJ_B, l);

    mlp_wide_forward(g, l, s);
    matmul_forward(g->ctx, &branch, NULL, &fc_gelu, &fcproj_w, &fcproj_b, ACT_NONE);
    residual_norm_forward(g->ctx, &out, &ln, &mean, &rstd, &mid, &branch, &ln_w, &ln_b);
}

/* ln_1 of layer l from the residual stream: for layer 0, and where backward recomputes it. */
static void ln1_forward(struct gpt *g, int64_t l, const struct span *s) {
    struct tensor inp = act_span(g, residual_in(l), layer_before(l), s), ln1 = act_span(g, A_LN1, l, s);
    struct tensor mean = act_span(g, A_LN1_MEAN, l, s), rstd = act_span(g, A_LN1_RSTD, l, s);
    struct tensor w = gpt_param(g, P_LN1_W, l), b = gpt_param(g, P_LN1_B, l);
    norm_forward(g->ctx, &ln1, &mean, &rstd, &inp, &w, &b);
}

static void layer_needed(const struct gpt *g, int64_t l, int64_t next) {
    if (g->hooks.layer_needed) g->hooks.layer_needed(g->hooks.arg, l, next);
}

void gpt_set_batch(struct gpt *g, const int32_t *tokens, const int32_t *targets) {
    struct tensor t = gpt_act(g, A_TOKENS, 0), y = gpt_act(g, A_TARGETS, 0);
    ctx_upload(g->ctx, t.data, tokens, tensor_bytes(&t));
    if (targets) ctx_upload(g->ctx, y.data, targets, tensor_bytes(&y));
}

void gpt_forward(struct gpt *g, int64_t t0, int64_t count) {
    struct span s = {t0, count, t0 == 0 && count == g->options.T};
    check(s.whole || g->options.B == 1,
          "gpt_forward: a part of the sequence needs a batch of one, not %" PRId64, g->options.B);
    check(t0 >= 0 && count > 0 && t0 + count <= g->options.T,
          "gpt_forward: positions %" PRId64 "..%" PRId64 " are beyond the %" PRId64 " allocated", t0,
          t0 + count, g->options.T);
    struct tensor tokens = act_span(g, A_TOKENS, 0, &s), embed = act_span(g, A_EMBED, 0, &s);
    struct tensor wte = gpt_param(g, P_WTE, 0), wpe = gpt_param(g, P_WPE, 0);
    ctx_range_push(g->ctx, "forward");
    embed_forward(g->ctx, &embed, &tokens, &wte, &wpe, (int)t0);
    ln1_forward(g, 0, &s);
    for (int64_t l = 0; l < g->config.layers; l++) {
        layer_needed(g, l, l + 1 < g->config.layers ? l + 1 : -1);
        attn_half_forward(g, l, &s);
        mlp_half_forward(g, l, &s);
    }
    ctx_range_pop(g->ctx);
}

/* --- head and loss --- */

static void logits_of_rows(struct gpt *g, struct tensor *logits, int64_t first, int64_t rows) {
    struct tensor lnf_all = gpt_act(g, A_LNF, 0), lnf = tensor_slice_rows(&lnf_all, first, rows);
    struct tensor wte = gpt_param(g, P_WTE, 0), room = gpt_act(g, A_LOGITS, 0);
    *logits = tensor_slice_rows(&room, 0, rows);
    matmul_forward(g->ctx, logits, NULL, &lnf, &wte, NULL, ACT_NONE);
}

/* Logits, losses and, in training, the gradients of ln_f's output and of the head's weight, a chunk of rows
 * at a time, so that the logits of a chunk are all that is ever held. */
static void head(struct gpt *g, bool accumulate, bool train) {
    struct tensor room = gpt_act(g, A_LOGITS, 0), wte = gpt_param(g, P_WTE, 0), dwte = {0};
    struct tensor lnf_all = gpt_act(g, A_LNF, 0), dlnf_all = {0};
    struct tensor losses_all = gpt_act(g, A_LOSSES, 0), targets_all = gpt_act(g, A_TARGETS, 0);
    if (train) {
        dlnf_all = gpt_act(g, A_DBRANCH, 0);
        dwte = gpt_grad(g, P_WTE, 0);
    }
    struct tensor scale = tensor_range(&g->numbers, STEP_SCALE, 1);
    int64_t N = g->options.B * g->options.T, chunk = room.dim[0];
    ctx_range_push(g->ctx, "head");
    for (int64_t first = 0; first < N; first += chunk) {
        int64_t rows = min_i64(chunk, N - first);
        struct tensor logits, losses = tensor_range(&losses_all, first, rows);
        struct tensor targets = tensor_range(&targets_all, first, rows);
        logits_of_rows(g, &logits, first, rows);
        loss_forward(g->ctx, &losses, &logits, &targets, train ? &scale : NULL, (int)g->config.vocab_size);
        if (!train) continue;
        struct tensor lnf = tensor_slice_rows(&lnf_all, first, rows),
                      dlnf = tensor_slice_rows(&dlnf_all, first, rows);
        matmul_backward(g->ctx, &dlnf, &dwte, NULL, &logits, &lnf, &wte, NULL, accumulate || first > 0);
    }
    struct tensor loss = tensor_range(&g->numbers, STEP_LOSS, 1), losses = tensor_range(&losses_all, 0, N);
    sum(g->ctx, &loss, &losses, train ? &scale : NULL, accumulate);
    ctx_range_pop(g->ctx);
}

void gpt_loss(struct gpt *g) { head(g, false, false); }

/* By a kernel that takes the value along: nothing to keep on the host until a copy is done. */
void gpt_set_loss_scale(struct gpt *g, float scale) {
    struct tensor on_device = tensor_range(&g->numbers, STEP_SCALE, 1);
    fill(g->ctx, &on_device, scale);
}

void gpt_logits(struct gpt *g, int64_t position, float *host) {
    check(g->options.B == 1, "gpt_logits: needs a batch of one");
    struct tensor logits;
    logits_of_rows(g, &logits, position, 1);
    if (host) ctx_download_f32(g->ctx, host, &logits);
}

void gpt_all_logits(struct gpt *g) {
    struct tensor logits;
    logits_of_rows(g, &logits, 0, g->options.B * g->options.T);
}

/* --- backward --- */

/* Brings back what the forward pass of layer l left in memory that other layers have used since. */
static void recompute_layer(struct gpt *g, int64_t l, const struct span *s) {
    enum recompute level = g->options.recompute;
    if (level >= RECOMPUTE_NORM) ln1_forward(g, l, s);
    if (level == RECOMPUTE_BLOCK) {
        attn_half_forward(g, l, s);
        mlp_wide_forward(g, l, s);
        return;
    }
    if (level == RECOMPUTE_NORM) {
        struct tensor mid = gpt_act(g, A_RESID_MID, l), ln2 = gpt_act(g, A_LN2, l);
        struct tensor mean = gpt_act(g, A_LN2_MEAN, l), rstd = gpt_act(g, A_LN2_RSTD, l);
        struct tensor w = gpt_param(g, P_LN2_W, l), b = gpt_param(g, P_LN2_B, l);
        norm_forward(g->ctx, &ln2, &mean, &rstd, &mid, &w, &b);
    }
    if (level >= RECOMPUTE_GELU) {
        struct tensor fc = gpt_act(g, A_FC, l), fc_gelu = gpt_act(g, A_FC_GELU, l);
        act_forward(g->ctx, &fc_gelu, &fc);
    }
}

/* dresid: gradient of the layer's output -> gradient of the stream between its halves. */
static void mlp_half_backward(struct gpt *g, int64_t l, bool accumulate) {
    struct tensor dresid = gpt_act(g, A_DRESID, 0), dbranch = gpt_act(g, A_DBRANCH, 0); /* (B,T,C) */
    struct tensor dfc = gpt_act(g, A_DFC, 0);                                           /* (B,T,4C) */
    struct tensor fc = gpt_act(g, A_FC, l), fc_gelu = gpt_act(g, A_FC_GELU, l);         /* (B,T,4C) */
    struct tensor ln2 = gpt_act(g, A_LN2, l), mid = gpt_act(g, A_RESID_MID, l);         /* (B,T,C) */
    struct tensor mean = gpt_act(g, A_LN2_MEAN, l), rstd = gpt_act(g, A_LN2_RSTD, l);
    struct tensor fcproj_w = gpt_param(g, P_FCPROJ_W, l), fc_w = gpt_param(g, P_FC_W, l);
    struct tensor ln2_w = gpt_param(g, P_LN2_W, l);
    struct tensor dfcproj_w = gpt_grad(g, P_FCPROJ_W, l), dfcproj_b = gpt_grad(g, P_FCPROJ_B, l);
    struct tensor dfc_w = gpt_grad(g, P_FC_W, l), dfc_b = gpt_grad(g, P_FC_B, l);
    struct tensor dln2_w = gpt_grad(g, P_LN2_W, l), dln2_b = gpt_grad(g, P_LN2_B, l);

    matmul_backward(g->ctx, &dfc, &dfcproj_w, &dfcproj_b, &dresid, &fc_gelu, &fcproj_w, &fc, accumulate);
    matmul_backward(g->ctx, &dbranch, &dfc_w, &dfc_b, &dfc, &ln2, &fc_w, NULL, accumulate);
    norm_backward(g->ctx, &dresid, &dln2_w, &dln2_b, &dresid, &dbranch, &mid, &mean, &rstd, &ln2_w);
}

/* dresid: gradient of the stream between the halves -> gradient of the layer's input. */
static void attn_half_backward(struct gpt *g, int64_t l, bool accumulate) {
    struct tensor dresid = gpt_act(g, A_DRESID, 0), dbranch = gpt_act(g, A_DBRANCH, 0); /* (B,T,C) */
    struct tensor dqkv = gpt_act(g, A_DQKV, 0), qkv = gpt_act(g, A_QKV, l);             /* (B,T,3C) */
    struct tensor attn = gpt_act(g, A_ATTN, l), lse = gpt_act(g, A_LSE, l), ln1 = gpt_act(g, A_LN1, l);
    struct tensor inp = gpt_act(g, residual_in(l), layer_before(l)); /* (B,T,C) */
    struct tensor mean = gpt_act(g, A_LN1_MEAN, l), rstd = gpt_act(g, A_LN1_RSTD, l);
    struct tensor proj_w = gpt_param(g, P_PROJ_W, l), qkv_w = gpt_param(g, P_QKV_W, l);
    struct tensor ln1_w = gpt_param(g, P_LN1_W, l);
    struct tensor dproj_w = gpt_grad(g, P_PROJ_W, l), dproj_b = gpt_grad(g, P_PROJ_B, l);
    struct tensor dqkv_w = gpt_grad(g, P_QKV_W, l), dqkv_b = gpt_grad(g, P_QKV_B, l);
    struct tensor dln1_w = gpt_grad(g, P_LN1_W, l), dln1_b = gpt_grad(g, P_LN1_B, l);

    matmul_backward(g->ctx, &dbranch, &dproj_w, &dproj_b, &dresid, &attn, &proj_w, NULL, accumulate);
    attn_backward(g->ctx, &dqkv, &dbranch, &attn, &lse, &qkv, (int)g->config.heads);
    matmul_backward(g->ctx, &dbranch, &dqkv_w, &dqkv_b, &dqkv, &ln1, &qkv_w, NULL, accumulate);
    norm_backward(g->ctx, &dresid, &dln1_w, &dln1_b, &dresid, &dbranch, &inp, &mean, &rstd, &ln1_w);
}

/* Gradients that no matmul overwrites start from zero: all vectors, and the position embedding. */
static void zero_small_gradients(struct gpt *g) {
    struct tensor vectors = gpt_grad_range(g, g->layout.matrices, g->layout.total - g->layout.matrices);
    struct tensor dwpe = gpt_grad(g, P_WPE, 0);
    fill(g->ctx, &vectors, 0.0f);
    fill(g->ctx, &dwpe, 0.0f);
}

void gpt_forward_backward(struct gpt *g, bool first_micro_batch) {
    check(g->options.train, "gpt_forward_backward: the model was created without training");
    struct span whole = {0, g->options.T, true};
    bool accumulate = !first_micro_batch;
    if (first_micro_batch) zero_small_gradients(g);
    gpt_forward(g, 0, g->options.T);
    head(g, accumulate, true);

    int64_t last = g->config.layers - 1;
    struct tensor dresid = gpt_act(g, A_DRESID, 0), dlnf = gpt_act(g, A_DBRANCH, 0),
                  out = gpt_act(g, A_RESID_OUT, last);
    struct tensor mean = gpt_act(g, A_LNF_MEAN, 0), rstd = gpt_act(g, A_LNF_RSTD, 0),
                  w = gpt_param(g, P_LNF_W, 0);
    struct tensor dw = gpt_grad(g, P_LNF_W, 0), db = gpt_grad(g, P_LNF_B, 0);
    ctx_range_push(g->ctx, "backward");
    norm_backward(g->ctx, &dresid, &dw, &db, NULL, &dlnf, &out, &mean, &rstd, &w);
    for (int64_t l = last; l >= 0; l--) {
        layer_needed(g, l, l - 1);
        recompute_layer(g, l, &whole);
        if (g->hooks.layer_grads_needed) g->hooks.layer_grads_needed(g->hooks.arg, l);
        mlp_half_backward(g, l, accumulate);
        attn_half_backward(g, l, accumulate);
        if (g->hooks.layer_ready) g->hooks.layer_ready(g->hooks.arg, l);
    }
    struct tensor dwte = gpt_grad(g, P_WTE, 0), dwpe = gpt_grad(g, P_WPE, 0),
                  tokens = gpt_act(g, A_TOKENS, 0);
    embed_backward(g->ctx, &dwte, &dwpe, &dresid, &tokens);
    ctx_range_pop(g->ctx);
}

double gpt_flops_per_token(const struct gpt_config *c, int64_t T) {
    struct gpt_params p;
    gpt_params_layout(&p, c);
    return 6.0 * (double)p.count + 6.0 * (double)c->layers * (double)c->channels * (double)T;
}
