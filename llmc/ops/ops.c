/* The front doors: one function per operation, for all back ends; those of optimizers and whole buffers are
 * in ops_update.c. A front door checks ranks, shapes and dtypes, where the message names the op and the tensor
 * that is wrong, and says how many FLOPs the operation takes and how many bytes must move. DISPATCH() does the
 * rest, and returns before the variant runs in plan mode. Variants rely on the checks: need() does not repeat
 * them. */
#include "llmc/ops/want.h"

#include <float.h>

/* --- embed --- */

void embed_forward(struct ctx *ctx, struct tensor *out, const struct tensor *tokens, const struct tensor *wte,
                   const struct tensor *wpe, int t0) {
    int64_t C = tensor_cols(wte), N = tensor_count(tokens);
    check(tokens->rank == 2, "embed_forward: tokens %s should be (B,T)", tensor_text(tokens));
    want("embed_forward", out, N, C);
    want_dtype("embed_forward", tokens, DTYPE_I32);
    want_weights(ctx, "embed_forward", out, wte, wpe);
    if (wpe) {
        want("embed_forward", wpe, tensor_rows(wpe), C);
        check(t0 >= 0 && t0 + tokens->dim[1] <= tensor_rows(wpe),
              "embed_forward: positions %d..%" PRId64 " are beyond the model's context of %" PRId64, t0,
              t0 + tokens->dim[1], tensor_rows(wpe));
    }
    DISPATCH(ctx, embed_forward, wpe ? N * C : 0,
             BYTES(out, tokens) + bytes_of_rows(wte, N) + bytes_of_rows(wpe, tokens->dim[1]), out, tokens,
             wte, wpe, t0);
}

void embed_backward(struct ctx *ctx, struct tensor *dwte, struct tensor *dwpe, const struct tensor *dout,
                    const struct tensor *tokens) {
    int64_t C = tensor_cols(dwte), N = tensor_count(tokens);
    check(tokens->rank == 2, "embed_backward: tokens %s should be (B,T)", tensor_text(tokens));
    want("embed_backward", dout, N, C);
    if (dwpe) want("embed_backward", dwpe, tensor_rows(dwpe), C);
    want_dtype("embed_backward", tokens, DTYPE_I32);
    WANT_ALIKE(ctx, "embed_backward", dout, dwte, dwpe);
    check(!dwpe || tokens->dim[1] <= tensor_rows(dwpe), "embed_backward: %s has more positions than %s",
          tensor_text(tokens), tensor_text(dwpe));
    double added = bytes_of_rows(dwte, N) + bytes_of_rows(dwpe, tokens->dim[1]);
    DISPATCH(ctx, embed_backward, (dwpe ? 2 : 1) * N * C, BYTES(dout, tokens) + 2 * added, dwte, dwpe, dout,
             tokens);
}

/* --- norm --- */

static void want_norm(const char *op, const struct tensor *x, const struct tensor *mean,
                      const struct tensor *rstd, const struct tensor *weight) {
    int64_t N = tensor_rows(x), C = tensor_cols(x);
    if (mean) want_count(op, mean, N);
    if (mean) want_dtype(op, mean, DTYPE_F32);
    want_count(op, rstd, N);
    want_dtype(op, rstd, DTYPE_F32);
    if (weight) want_count(op, weight, C);
}

void norm_forward(struct ctx *ctx, struct tensor *out, struct tensor *mean, struct tensor *rstd,
                  const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                  float eps) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp);
    want("norm_forward", out, N, C);
    want_norm("norm_forward", inp, mean, rstd, weight);
    if (bias) want_count("norm_forward", bias, C);
    check(eps > 0.0f, "norm_forward: eps is %g, should be above 0", (double)eps);
    want_alike_or(ctx, DTYPE_E4M3, "norm_forward", inp, out);
    want_weights(ctx, "norm_forward", inp, weight, bias);
    DISPATCH(ctx, norm_forward, (3 + (weight ? 1 : 0) + (mean ? 3 : 0) + (bias ? 1 : 0)) * N * C,
             BYTES(out, mean, rstd, inp, weight, bias), out, mean, rstd, inp, weight, bias, eps);
}

void residual_norm_forward(struct ctx *ctx, struct tensor *residual, struct tensor *out, struct tensor *mean,
                           struct tensor *rstd, const struct tensor *inp, const struct tensor *delta,
                           const struct tensor *weight, const struct tensor *bias, float eps) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp);
    want("residual_norm_forward", residual, N, C);
    want("residual_norm_forward", out, N, C);
    want("residual_norm_forward", delta, N, C);
    want_norm("residual_norm_forward", inp, mean, rstd, weight);
    if (bias) want_count("residual_norm_forward", bias, C);
    check(eps > 0.0f, "residual_norm_forward: eps is %g, should be above 0", (double)eps);
    WANT_ALIKE(ctx, "residual_norm_forward", inp, delta, residual);
    want_alike_or(ctx, DTYPE_E4M3, "residual_norm_forward", inp, out);
    want_weights(ctx, "residual_norm_forward", inp, weight, bias);
    DISPATCH(ctx, residual_norm_forward, (4 + (weight ? 1 : 0) + (mean ? 3 : 0) + (bias ? 1 : 0)) * N * C,
             BYTES(residual, out, mean, rstd, inp, delta, weight, bias), residual, out, mean, rstd, inp,
             delta, weight, bias, eps);
}

void norm_backward(struct ctx *ctx, struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                   const struct tensor *dresidual, const struct tensor *dout, const struct tensor *inp,
                   const struct tensor *mean, const struct tensor *rstd, const struct tensor *weight) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp);
    want("norm_backward", dinp, N, C);
    want("norm_backward", dout, N, C);
    if (dresidual) want("norm_backward", dresidual, N, C);
    if (dweight) want_count("norm_backward", dweight, C);
    check(dweight || !dbias, "norm_backward: dbias without dweight");
    if (dbias) want_count("norm_backward", dbias, C);
    want_norm("norm_backward", inp, mean, rstd, weight);
    WANT_ALIKE(ctx, "norm_backward", inp, dout, dinp, weight, dresidual, dweight, dbias);
    DISPATCH(ctx, norm_backward,
             (6 + (weight ? 1 : 0) + (dweight ? 2 : 0) + (mean ? 3 : 0) + (dbias ? 1 : 0)) * N * C,
             BYTES(dinp, dout, inp, dresidual, mean, rstd, weight) + 2 * BYTES(dweight, dbias), dinp, dweight,
             dbias, dresidual, dout, inp, mean, rstd, weight);
}

/* --- qk_norm --- */

/* Returns the width of a head. */
static int64_t want_qk_norm(const char *op, const struct tensor *inp, const struct tensor *q_weight,
                            const struct tensor *k_weight, int NH, int NKV, float eps) {
    int64_t heads = (int64_t)NH + 2 * (int64_t)NKV;
    check(NH > 0 && NKV > 0 && tensor_cols(inp) % heads == 0,
          "%s: %s does not hold %d heads of queries and %d of keys and values", op, tensor_text(inp), NH,
          NKV);
    int64_t HS = tensor_cols(inp) / heads;
    check(!q_weight == !k_weight, "%s: a weight of queries or of keys alone", op);
    if (q_weight) want_count(op, q_weight, HS);
    if (k_weight) want_count(op, k_weight, HS);
    check(eps > 0.0f, "%s: eps is %g, should be above 0", op, (double)eps);
    return HS;
}

void qk_norm_forward(struct ctx *ctx, struct tensor *out, const struct tensor *inp,
                     const struct tensor *q_weight, const struct tensor *k_weight, int NH, int NKV,
                     float eps) {
    int64_t HS = want_qk_norm("qk_norm_forward", inp, q_weight, k_weight, NH, NKV, eps);
    want("qk_norm_forward", out, tensor_rows(inp), tensor_cols(inp));
    WANT_ALIKE(ctx, "qk_norm_forward", inp, out);
    want_weights(ctx, "qk_norm_forward", inp, q_weight, k_weight);
    DISPATCH(ctx, qk_norm_forward, (q_weight ? 4 : 3) * tensor_rows(inp) * (NH + NKV) * HS,
             BYTES(out, inp, q_weight, k_weight), out, inp, q_weight, k_weight, NH, NKV, eps);
}

void qk_norm_backward(struct ctx *ctx, struct tensor *dinp, struct tensor *dq_weight,
                      struct tensor *dk_weight, const struct tensor *dout, const struct tensor *inp,
                      const struct tensor *q_weight, const struct tensor *k_weight, int NH, int NKV,
                      float eps) {
    int64_t HS = want_qk_norm("qk_norm_backward", inp, q_weight, k_weight, NH, NKV, eps);
    want("qk_norm_backward", dinp, tensor_rows(inp), tensor_cols(inp));
    want("qk_norm_backward", dout, tensor_rows(inp), tensor_cols(inp));
    check(!dq_weight == !dk_weight, "qk_norm_backward: a gradient of queries' weight or of keys' alone");
    if (dq_weight) want_count("qk_norm_backward", dq_weight, HS);
    if (dk_weight) want_count("qk_norm_backward", dk_weight, HS);
    WANT_ALIKE(ctx, "qk_norm_backward", inp, dout, dinp, q_weight, k_weight, dq_weight, dk_weight);
    int64_t normed = tensor_rows(inp) * (NH + NKV) * HS, size = (int64_t)dtype_size(inp->dtype);
    double gradients = dinp->data == dout->data ? (double)(2 * normed * size) : BYTES(dinp, dout);
    DISPATCH(ctx, qk_norm_backward, (8 + (q_weight ? 1 : 0) + (dq_weight ? 2 : 0)) * normed,
             gradients + (double)(normed * size) + BYTES(q_weight, k_weight) +
                 2 * BYTES(dq_weight, dk_weight),
             dinp, dq_weight, dk_weight, dout, inp, q_weight, k_weight, NH, NKV, eps);
}

/* --- matmul --- */

static void note_shape(struct ctx *ctx, int64_t N, int64_t C, int64_t OC) {
    ctx->matmul_shape[0] = N;
    ctx->matmul_shape[1] = C;
    ctx->matmul_shape[2] = OC;
}

void matmul_forward(struct ctx *ctx, struct tensor *out, struct tensor *pre, const struct tensor *inp,
                    const struct tensor *weight, const struct tensor *bias, enum activation act) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp), OC = tensor_rows(weight);
    want("matmul_forward", weight, OC, C);
    want("matmul_forward", out, N, OC);
    if (bias) want_count("matmul_forward", bias, OC);
    if (pre) want("matmul_forward", pre, N, OC);
    const struct tensor *stored = pre ? pre : out;
    want_alike_or(ctx, DTYPE_E4M3, "matmul_forward", stored, inp);
    want_alike_or(ctx, DTYPE_E4M3, "matmul_forward", stored, out);
    want_weights(ctx, "matmul_forward", stored, weight, bias);
    check((inp->dtype != DTYPE_E4M3 && out->dtype != DTYPE_E4M3) || matmul_in_fp8(inp, weight),
          "matmul_forward: %s does not multiply in fp8, and cannot take e4m3", tensor_text(weight));
    check(act == ACT_NONE || act == ACT_GELU, "matmul_forward: activation %d is not fused", (int)act);
    check(!pre || act != ACT_NONE, "matmul_forward: %s would equal the output: no activation is applied",
          tensor_text(pre));
    note_shape(ctx, N, C, OC);
    DISPATCH(ctx, matmul_forward, 2 * N * C * OC, BYTES(out, pre, inp, weight, bias), out, pre, inp, weight,
             bias, act);
}

void matmul_backward(struct ctx *ctx, struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                     const struct tensor *dout, const struct tensor *inp, const struct tensor *weight,
                     const struct tensor *pre, bool accumulate) {
    int64_t N = tensor_rows(dout), OC = tensor_cols(dout), C = tensor_cols(inp);
    want("matmul_backward", inp, N, C);
    want("matmul_backward", weight, OC, C);
    if (dweight) want("matmul_backward", dweight, OC, C);
    if (dinp) want("matmul_backward", dinp, N, C);
    if (dbias) want_count("matmul_backward", dbias, OC);
    if (pre) want("matmul_backward", pre, N, C);
    WANT_ALIKE(ctx, "matmul_backward", weight, dweight, dbias, pre);
    want_alike_or(ctx, DTYPE_E4M3, "matmul_backward", weight, inp);
    want_alike_or(ctx, DTYPE_E5M2, "matmul_backward", weight, dout);
    if (dinp && pre)
        want_alike_or(ctx, DTYPE_E5M2, "matmul_backward", weight, dinp);
    else
        WANT_ALIKE(ctx, "matmul_backward", weight, dinp);
    bool gradient8 = dinp && dinp->dtype == DTYPE_E5M2, any8 = gradient8 || dtype_is_fp8(dout->dtype);
    check((!any8 && inp->dtype != DTYPE_E4M3) || matmul_in_fp8(inp, weight),
          "matmul_backward: %s does not multiply in fp8, and cannot take it", tensor_text(weight));
    check(!gradient8 || dout->dtype != DTYPE_E5M2, "matmul_backward: %s and %s cannot both be e5m2",
          tensor_text(dinp), tensor_text(dout));
    check(!pre || dinp, "matmul_backward: pre-activation given, but no input gradient to apply it to");
    check(dweight || (dinp && !dbias), "matmul_backward: no weight gradient, and %s",
          dbias ? "a bias gradient" : "no input gradient");
    /* each of the two products reads dout */
    double bytes = (accumulate ? 2 : 1) * BYTES(dweight, dbias);
    if (dweight) bytes += BYTES(dout, inp);
    if (dinp) bytes += BYTES(dout, weight, dinp, pre);
    note_shape(ctx, N, C, OC);
    DISPATCH(ctx, matmul_backward, (dinp && dweight ? 4 : 2) * N * C * OC, bytes, dinp, dweight, dbias, dout,
             inp, weight, pre, accumulate);
}

/* --- act --- */

/* FLOPs per element of an activation and of its derivative. An exponential or hyperbolic tangent counts as
 * one. */
static const struct {
    int forward, backward;
} act_flops[] = {[ACT_NONE] = {0, 0}, [ACT_GELU] = {10, 20}, [ACT_SILU] = {4, 8}, [ACT_RELU2] = {2, 2}};

static void want_act(const char *op, enum activation act) {
    check(act == ACT_GELU || act == ACT_SILU || act == ACT_RELU2, "%s: there is no activation %d", op,
          (int)act);
}

void act_forward(struct ctx *ctx, struct tensor *out, const struct tensor *inp, enum activation act) {
    want_act("act_forward", act);
    want("act_forward", out, tensor_rows(inp), tensor_cols(inp));
    want_alike_or(ctx, DTYPE_E4M3, "act_forward", inp, out);
    DISPATCH(ctx, act_forward, act_flops[act].forward * tensor_count(inp), BYTES(out, inp), out, inp, act);
}

void act_backward(struct ctx *ctx, struct tensor *dinp, const struct tensor *dout, const struct tensor *inp,
                  enum activation act) {
    want_act("act_backward", act);
    want("act_backward", dinp, tensor_rows(inp), tensor_cols(inp));
    want("act_backward", dout, tensor_rows(inp), tensor_cols(inp));
    WANT_ALIKE(ctx, "act_backward", inp, dout, dinp);
    DISPATCH(ctx, act_backward, act_flops[act].backward * tensor_count(inp), BYTES(dinp, dout, inp), dinp,
             dout, inp, act);
}

void glu_forward(struct ctx *ctx, struct tensor *out, const struct tensor *inp, enum activation act) {
    want_act("glu_forward", act);
    want("glu_forward", inp, tensor_rows(out), 2 * tensor_cols(out));
    want_alike_or(ctx, DTYPE_E4M3, "glu_forward", inp, out);
    DISPATCH(ctx, glu_forward, (act_flops[act].forward + 1) * tensor_count(out), BYTES(out, inp), out, inp,
             act);
}

void glu_backward(struct ctx *ctx, struct tensor *dinp, const struct tensor *dout, const struct tensor *inp,
                  enum activation act) {
    want_act("glu_backward", act);
    int flops = act_flops[act].forward + act_flops[act].backward + 2;
    want("glu_backward", inp, tensor_rows(dout), 2 * tensor_cols(dout));
    want("glu_backward", dinp, tensor_rows(dout), 2 * tensor_cols(dout));
    WANT_ALIKE(ctx, "glu_backward", inp, dout, dinp);
    DISPATCH(ctx, glu_backward, flops * tensor_count(dout), BYTES(dinp, dout, inp), dinp, dout, inp, act);
}

static void want_dropout(const char *op, const struct dropout_rule *d, int64_t B) {
    check(d->p >= 0.0f && d->p < 1.0f && d->place < 1u << 24,
          "%s: a probability of %g, should be in [0,1), or place %u", op, (double)d->p, (unsigned)d->place);
    want_count(op, d->samples, B);
    want_dtype(op, d->samples, DTYPE_I32);
}

void dropout(struct ctx *ctx, struct tensor *out, const struct tensor *inp, const struct dropout_rule *how) {
    want("dropout", inp, tensor_rows(out), tensor_cols(out));
    want_dropout("dropout", how, out->dim[0]);
    WANT_ALIKE(ctx, "dropout", inp, out);
    DISPATCH(ctx, dropout, tensor_count(out), BYTES(out, inp, how->samples), out, inp, how);
}

/* --- attn --- */

static void want_rule(const char *op, const struct attn_rule *r, const struct tensor *prefix, int64_t B,
                      int64_t T) {
    check(r->score < ATTN_SCORES && r->mask < ATTN_MASKS, "%s: there is no score %d or no mask %d", op,
          (int)r->score, (int)r->mask);
    check(r->mask == ATTN_WINDOW ? r->window >= 1 : r->window == 0,
          "%s: a window of %d tokens, should be at least 1 with its mask and 0 with another", op, r->window);
    check(r->softcap >= 0.0f && r->softcap <= FLT_MAX, "%s: softcap is %g, should not be negative", op,
          (double)r->softcap);
    if (r->dropout) want_dropout(op, r->dropout, B);
    if (r->first) {
        check(r->mask == ATTN_CAUSAL || r->mask == ATTN_WINDOW,
              "%s: %s is for the causal mask and the window, not for mask %d", op, tensor_text(r->first),
              (int)r->mask);
        want_count(op, r->first, B * T);
        want_dtype(op, r->first, DTYPE_I32);
    }
    check((r->mask == ATTN_PREFIX) == (prefix != NULL), "%s: %s", op,
          prefix ? temp_printf("%s is for the prefix mask", tensor_text(prefix))
                 : "the prefix mask needs the lengths of the prefixes");
    if (!prefix) return;
    want_count(op, prefix, B);
    want_dtype(op, prefix, DTYPE_I32);
}

static void want_attn(const struct ctx *ctx, const char *op, const struct tensor *out,
                      const struct tensor *lse, const struct tensor *qkv, const struct tensor *prefix,
                      const struct attn_rule *rule) {
    int NH = rule->heads, NKV = rule->kv_heads;
    check(out->rank == 3 && qkv->rank == 3, "%s: %s and %s should be (B,T,NH*HS) and (B,T,(NH+2*NKV)*HS)", op,
          tensor_text(out), tensor_text(qkv));
    int64_t B = out->dim[0], T = out->dim[1], width = out->dim[2];
    check(NH > 0 && width % NH == 0, "%s: %d heads do not divide %s", op, NH, tensor_text(out));
    check(NKV > 0 && NH % NKV == 0, "%s: %d heads of keys do not divide %d heads of queries", op, NKV, NH);
    check(qkv->dim[0] == B && qkv->dim[1] == T && qkv->dim[2] == width / NH * (NH + 2 * NKV),
          "%s: %s does not belong to %s with %d heads, of keys and values %d", op, tensor_text(qkv),
          tensor_text(out), NH, NKV);
    want_count(op, lse, B * NH * T);
    want_dtype(op, lse, DTYPE_F32);
    want_rule(op, rule, prefix, B, T);
    WANT_ALIKE(ctx, op, qkv, out);
}

/* Pairs of a query and a key that it sees, for one head. Exact but for prefixes, which count as causal,
 * and documents, which count as one: only the device knows them. The T^2/2 of the literature omits the
 * diagonal. */
static double visible_pairs(const struct attn_rule *rule, int64_t t0, int64_t T) {
    if (rule->mask == ATTN_CAUSAL || rule->mask == ATTN_PREFIX)
        return 0.5 * (double)(T - t0) * (double)(T + t0 + 1);
    double pairs = 0.0;
    for (int64_t t = t0; t < T; t++) {
        struct attn_range keys = attn_keys(*rule, 0, T, t);
        pairs += (double)(keys.end - keys.first);
    }
    return pairs;
}

void attn_forward(struct ctx *ctx, struct tensor *out, struct tensor *lse, const struct tensor *qkv,
                  const struct tensor *prefix, const struct attn_rule *rule, int t0) {
    want_attn(ctx, "attn_forward", out, lse, qkv, prefix, rule);
    int64_t B = out->dim[0], T = out->dim[1], width = out->dim[2];
    check(t0 >= 0 && t0 < T, "attn_forward: first row %d is outside %s", t0, tensor_text(out));
    DISPATCH(ctx, attn_forward, 4.0 * (double)(B * width) * visible_pairs(rule, t0, T),
             BYTES(out, qkv, lse, prefix, rule->first), out, lse, qkv, prefix, rule, t0);
}

void attn_backward(struct ctx *ctx, struct tensor *dqkv, const struct tensor *dout, const struct tensor *out,
                   const struct tensor *lse, const struct tensor *qkv, const struct tensor *prefix,
                   const struct attn_rule *rule) {
    want_attn(ctx, "attn_backward", out, lse, qkv, prefix, rule);
    check(tensor_same_shape(dqkv, qkv), "attn_backward: %s is unlike %s", tensor_text(dqkv),
          tensor_text(qkv));
    want("attn_backward", dout, tensor_rows(out), tensor_cols(out));
    WANT_ALIKE(ctx, "attn_backward", qkv, dout, dqkv);
    int64_t B = out->dim[0], T = out->dim[1], width = out->dim[2];
    DISPATCH(ctx, attn_backward, 10.0 * (double)(B * width) * visible_pairs(rule, 0, T),
             BYTES(dqkv, dout, out, lse, qkv, prefix, rule->first), dqkv, dout, out, lse, qkv, prefix, rule);
}

/* --- rope --- */

void rope(struct ctx *ctx, struct tensor *qkv, int NH, int NKV, int t0, const struct rope_rule *rule,
          bool backward) {
    check(qkv->rank == 3, "rope: %s should be (B,T,(NH+2*NKV)*HS)", tensor_text(qkv));
    int64_t rows = qkv->dim[0] * (qkv->dim[1] - t0), heads = NH + 2 * NKV;
    check(NH > 0 && NKV > 0 && qkv->dim[2] % heads == 0 && qkv->dim[2] / heads % 2 == 0,
          "rope: %s does not hold %d heads of queries and %d of keys and values, of even size",
          tensor_text(qkv), NH, NKV);
    check(t0 >= 0 && t0 < qkv->dim[1], "rope: first row %d is outside %s", t0, tensor_text(qkv));
    check(rule->theta >= 1.0f && rule->theta <= FLT_MAX, "rope: theta is %g, should be at least 1",
          (double)rule->theta);
    check(rule->factor == 0.0f || (rule->factor >= 1.0f && rule->factor <= FLT_MAX),
          "rope: factor is %g, should be 0 or at least 1", (double)rule->factor);
    check(rule->original == 0.0f || (rule->original > 0.0f && rule->low > 0.0f && rule->low < rule->high),
          "rope: low %g and high %g, of %g tokens, should be above 0 and the first below the second",
          (double)rule->low, (double)rule->high, (double)rule->original);
    WANT_ALIKE(ctx, "rope", qkv);
    int64_t rotated = rows * (NH + NKV) * (qkv->dim[2] / heads);
    DISPATCH(ctx, rope, 3 * rotated, 2 * rotated * (int64_t)dtype_size(qkv->dtype), qkv, NH, NKV, t0, rule,
             backward);
}

/* --- loss --- */

void loss_forward(struct ctx *ctx, struct tensor *losses, struct tensor *logits, const struct tensor *targets,
                  const struct tensor *dloss, int V, const struct loss_terms *terms) {
    int64_t N = tensor_rows(logits), Vp = tensor_cols(logits);
    want_count("loss_forward", losses, N);
    want_count("loss_forward", targets, N);
    want_dtype("loss_forward", losses, DTYPE_F32);
    want_dtype("loss_forward", targets, DTYPE_I32);
    if (dloss) want_number("loss_forward", dloss);
    WANT_ALIKE(ctx, "loss_forward", logits);
    check(V > 0 && V <= Vp, "loss_forward: vocabulary %d does not fit %s", V, tensor_text(logits));
    check(!terms || (terms->smoothing >= 0.0f && terms->smoothing < 1.0f && terms->z >= 0.0f),
          "loss_forward: label smoothing %g should be in [0,1), the z-loss %g not negative",
          (double)terms->smoothing, (double)terms->z);
    check(!terms || (terms->softcap >= 0.0f && terms->softcap <= FLT_MAX),
          "loss_forward: softcap is %g, should not be negative", (double)terms->softcap);
    double bytes = (double)(N * V) * (double)dtype_size(logits->dtype); /* the padding is only written */
    if (dloss) bytes += bytes_of(logits);
    DISPATCH(ctx, loss_forward, 5 * N * V, bytes + BYTES(losses, targets, dloss), losses, logits, targets,
             dloss, V, terms);
}

void top1(struct ctx *ctx, struct tensor *hits, const struct tensor *logits, const struct tensor *targets,
          int V) {
    int64_t N = tensor_rows(logits), Vp = tensor_cols(logits);
    want_count("top1", hits, N);
    want_count("top1", targets, N);
    want_dtype("top1", hits, DTYPE_F32);
    want_dtype("top1", targets, DTYPE_I32);
    WANT_ALIKE(ctx, "top1", logits);
    check(V > 0 && V <= Vp, "top1: vocabulary %d does not fit %s", V, tensor_text(logits));
    DISPATCH(ctx, top1, N * V, (double)(N * V) * (double)dtype_size(logits->dtype) + BYTES(hits, targets),
             hits, logits, targets, V);
}
