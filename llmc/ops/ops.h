/* The seam between the model and the back ends.
 *
 * LLMC_OP states an operation's signature, and nothing else does. It declares:
 *   <op>           the front door that the model calls: op(ctx, operands...), defined in ops.c or ops_update.c
 *   <op>_fn        the type of an implementation: run(env, operands...)
 *   <op>_need_fn   the type of need(operands...): the bytes of scratch that an implementation wants, or
 *                  OP_UNSUPPORTED if it cannot take these operands
 *   <op>_variant   one implementation: {name, run, need, arch}
 * A back end has an array of variants for each operation, the preferred one first, ended by {0}. The list
 * LLMC_OPS makes the table `struct ops` of these arrays and the numbers `enum op_id`. A wrong signature
 * does not compile, a missing operation does not link.
 *
 * A front door checks the operands, counts FLOPs and bytes, chooses the first variant that takes the
 * operands, provides its scratch and, except in plan mode, runs it (dispatch.h).
 *
 * Contracts. Shapes stand in trailing comments; N is the number of rows (B*T), every tensor is row-major.
 * `=` overwrites the output, whatever it held; `+=` adds to it. Every reduction has a fixed order: the same
 * call on the same device gives the same bits. An operand marked "(or NULL)" may be absent. An output
 * shares memory with an input only where its comment says "may be". Operands of an operation have one dtype,
 * unless the comment names another; where the back end has `bf16_weights`, weight, bias, wte and wpe of the
 * forward pass may be bf16 beside fp32 activations. */
#ifndef LLMC_OPS_H
#define LLMC_OPS_H

#include "llmc/ops/attn_rule.h"
#include "llmc/ops/rope_rule.h"
#include "llmc/ops/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ctx;

/* What an implementation gets besides its operands. */
struct op_env {
    void *stream;  /* CUDA stream; NULL on the CPU */
    void *scratch; /* the bytes that need() asked for, 256-byte aligned; contents undefined */
    void *zeros;   /* if it asked for any: OP_ZEROS bytes that are 0, and must be 0 again at the end */
    void *state;   /* back-end private (cuBLASLt handle and plans) */
    /* act_forward will compute activations again from `pre` of matmul_forward, with the same bits */
    bool recomputes;
};

#define OP_UNSUPPORTED (-1)
#define OP_ZEROS       256

#define LLMC_OP(op, ...)                                                                                     \
    typedef void op##_fn(const struct op_env *env, __VA_ARGS__);                                             \
    typedef int64_t op##_need_fn(__VA_ARGS__);                                                               \
    struct op##_variant {                                                                                    \
        const char *name;                                                                                    \
        op##_fn *run;                                                                                        \
        op##_need_fn *need; /* NULL: takes whatever the front door lets through, without scratch */          \
        int arch;           /* the only compute capability that it is made for (90: sm_90a); 0: any */       \
    };                                                                                                       \
    void op(struct ctx *ctx, __VA_ARGS__)

/* Bytes of scratch that a variant wants for these operands, or OP_UNSUPPORTED. Whoever walks variants asks
 * op_runs_on() and then this. */
#define OP_NEED(variant, ...) ((variant)->need ? (variant)->need(__VA_ARGS__) : 0)

enum activation {
    ACT_NONE,
    ACT_GELU, /* tanh form: 0.5*x*(1 + tanh(sqrt(2/pi)*(x + 0.044715*x^3))) (Hendrycks, Gimpel 2016) */
    ACT_SILU, /* x/(1 + e^-x) (the same, arXiv 1606.08415) */
    ACT_RELU2 /* max(x,0)^2 (So et al. 2021, arXiv 2109.08668) */
};

/* --- embed: token plus position embedding --- */

/* out[b,t,:] = wte[tokens[b,t],:] + wpe[t0+t,:]; without the second term where positions are not learned. */
LLMC_OP(embed_forward, struct tensor *out, /* (B,T,C) = */
        const struct tensor *tokens,       /* (B,T) int32, each in [0,Vp) */
        const struct tensor *wte,          /* (Vp,C) */
        const struct tensor *wpe,          /* (maxT,C) (or NULL) */
        int t0);                           /* position of the first column: its row of wpe; t0 + T <= maxT */

/* dwte[tokens[b,t],:] += dout[b,t,:];  dwpe[t,:] += sum_b dout[b,t,:].
 * Deterministic: rows of dwte are summed in the order of (b,t). */
LLMC_OP(embed_backward, struct tensor *dwte, /* (Vp,C) += */
        struct tensor *dwpe,                 /* (maxT,C) += (or NULL) */
        const struct tensor *dout,           /* (B,T,C) */
        const struct tensor *tokens);        /* (B,T) int32 */

/* --- norm: LayerNorm and RMSNorm --- */

/* LayerNorm (Ba, Kiros, Hinton 2016, arXiv 1607.06450) and RMSNorm (Zhang, Sennrich 2019, arXiv 1910.07467).
 * Per row x: mean = sum(x)/C, rstd = 1/sqrt(sum((x-mean)^2)/C + eps), out = (x-mean)*rstd*weight + bias.
 * Without `mean` it is RMSNorm: no mean is subtracted, so that 1/rstd is the root mean square. Without
 * weight, here and below, 1 stands for it. */
LLMC_OP(norm_forward, struct tensor *out, /* (N,C) =, or e4m3 (matmul below) */
        struct tensor *mean,              /* (N) fp32 = (or NULL) */
        struct tensor *rstd,              /* (N) fp32 = */
        const struct tensor *inp,         /* (N,C) */
        const struct tensor *weight,      /* (C) (or NULL) */
        const struct tensor *bias,        /* (C) (or NULL) */
        float eps);                       /* > 0 */

/* residual = inp + delta;  (out, mean, rstd) = norm_forward(residual). The bits are those of the two
 * steps. */
LLMC_OP(residual_norm_forward, struct tensor *residual, /* (N,C) = ; may be inp */
        struct tensor *out,                             /* (N,C) =, or e4m3 */
        struct tensor *mean,                            /* (N) fp32 = (or NULL) */
        struct tensor *rstd,                            /* (N) fp32 = */
        const struct tensor *inp,                       /* (N,C) */
        const struct tensor *delta,                     /* (N,C) */
        const struct tensor *weight,                    /* (C) (or NULL) */
        const struct tensor *bias,                      /* (C) (or NULL) */
        float eps);                                     /* > 0 */

/* With xhat = (x-mean)*rstd and g = dout*weight, per row:
 *   dinp = dresidual + rstd * (g - sum(g)/C - xhat*sum(g*xhat)/C), without the term sum(g)/C in RMSNorm
 *   dweight += sum over rows of dout*xhat;   dbias += sum over rows of dout */
LLMC_OP(norm_backward, struct tensor *dinp, /* (N,C) = ; may be dresidual or dout */
        struct tensor *dweight,             /* (C) += (or NULL: the weight is absent, or not trained) */
        struct tensor *dbias,               /* (C) += (or NULL, as it must be without dweight) */
        const struct tensor *dresidual,     /* (N,C) (or NULL): gradient that reaches inp past the norm */
        const struct tensor *dout,          /* (N,C) */
        const struct tensor *inp,           /* (N,C) */
        const struct tensor *mean,          /* (N) fp32 (or NULL): as norm_forward got it */
        const struct tensor *rstd,          /* (N) fp32 */
        const struct tensor *weight);       /* (C) (or NULL) */

/* --- qk_norm: RMSNorm of every head of queries and keys --- */

/* As in Qwen3 (arXiv 2505.09388); Dehghani et al. 2023 (arXiv 2302.05442) have it against attention that
 * grows without bound. A row of inp is NH heads of queries, NKV of keys and NKV of values, of HS columns
 * each. A head x of queries or keys becomes x * rstd * weight, rstd = 1/sqrt(sum(x^2)/HS + eps), with one
 * weight for all heads of queries and one for those of keys, or with none. Values are copied. rstd is not
 * kept, because a head is so short that backward computes it again while it reads x. */
LLMC_OP(qk_norm_forward, struct tensor *out, /* (N,(NH+2*NKV)*HS) = */
        const struct tensor *inp,            /* (N,(NH+2*NKV)*HS) */
        const struct tensor *q_weight,       /* (HS) (or NULL) */
        const struct tensor *k_weight,       /* (HS) (or NULL, as q_weight) */
        int NH, int NKV, float eps);         /* > 0 */

/* With xhat = x*rstd and g = dout*weight, per head of queries or keys:
 *   dinp = rstd * (g - xhat*sum(g*xhat)/HS);   dweight += sum over rows and heads of dout*xhat
 * and dinp = dout in the columns of the values. */
LLMC_OP(qk_norm_backward, struct tensor *dinp, /* (N,(NH+2*NKV)*HS) = ; may be dout */
        struct tensor *dq_weight,              /* (HS) += (or NULL) */
        struct tensor *dk_weight,              /* (HS) += (or NULL, as dq_weight) */
        const struct tensor *dout,             /* (N,(NH+2*NKV)*HS) */
        const struct tensor *inp,              /* (N,(NH+2*NKV)*HS) */
        const struct tensor *q_weight,         /* (HS) (or NULL) */
        const struct tensor *k_weight,         /* (HS) (or NULL, as q_weight) */
        int NH, int NKV, float eps);           /* > 0 */

/* --- matmul: linear layers --- */

/* A weight marked fp8 makes its layer multiply rounded operands: x becomes round(x*s)/s, with round() to
 * e4m3 for inp and weight and to e5m2 for dout, and s a power of two for the whole tensor (fp8.h). Sums,
 * bias, activation, dbias and stored values do not change. The mark has no effect unless N, C and OC are
 * multiples of 16, which tensor cores need.
 *
 * Where such layers alone read an output of norm_forward, residual_norm_forward, act_forward, glu_forward or
 * matmul_forward, it can be marked, too: then it is rounded where it is made. A back end with bf16 stores it
 * as e4m3, a byte for an element, beside bf16 operands: round(x*s), and 1/s in *descale. In fp32 it holds
 * the rounded numbers, which a matmul rounds to themselves. s = fp8_scale() of
 *   norms        the largest fp8_norm_bound() of its channels, which depends on the weights alone
 *   the others   the largest magnitude of the output
 * So can dinp of matmul_backward with `pre`, which only another such layer reads, as its dout: in e5m2, with the
 * scale of fp8_gradient_bound(). The bias gradient then adds rounded numbers. An fp8 tensor starts on 16 bytes
 * and has a multiple of 16 columns. */
static inline bool matmul_in_fp8(const struct tensor *inp, const struct tensor *weight) {
    return weight->fp8 && tensor_rows(inp) % 16 == 0 && tensor_cols(inp) % 16 == 0 &&
           tensor_rows(weight) % 16 == 0;
}

/* pre = inp @ weight^T + bias;  out = act(pre). `pre` is kept for the backward pass when an activation is
 * fused. */
LLMC_OP(matmul_forward, struct tensor *out, /* (N,OC) = ; e4m3 with `pre` only */
        struct tensor *pre,                 /* (N,OC) = (or NULL: not kept) ; must be NULL for ACT_NONE */
        const struct tensor *inp,           /* (N,C), or e4m3 */
        const struct tensor *weight,        /* (OC,C) */
        const struct tensor *bias,          /* (OC) (or NULL) */
        enum activation act);               /* ACT_NONE or ACT_GELU */

/* dinp = dout @ weight, times gelu'(pre) if `pre` is given: backward through the activation that made inp.
 * dweight (+)= dout^T @ inp;  dbias (+)= sum over rows of dout; added with `accumulate`. One of dinp and
 * dweight at least. */
LLMC_OP(matmul_backward, struct tensor *dinp, /* (N,C) = (or NULL) ; with `pre` also e5m2 */
        struct tensor *dweight,               /* (OC,C) = or += (or NULL: the weight is not trained) */
        struct tensor *dbias,                 /* (OC) = or += (or NULL, as it must be without dweight) */
        const struct tensor *dout,            /* (N,OC), or e5m2, but not both of it and dinp */
        const struct tensor *inp,             /* (N,C), or e4m3 */
        const struct tensor *weight,          /* (OC,C) */
        const struct tensor *pre,             /* (N,C) (or NULL): pre-activation of inp, GELU */
        bool accumulate);

/* --- act: activations, and gated linear units with them --- */

/* out = act(inp), element by element. act is not ACT_NONE. */
LLMC_OP(act_forward, struct tensor *out, /* (N,C) =, or e4m3 */
        const struct tensor *inp,        /* (N,C) */
        enum activation act);

/* dinp = dout * act'(inp) */
LLMC_OP(act_backward, struct tensor *dinp, /* (N,C) = ; may be dout */
        const struct tensor *dout,         /* (N,C) */
        const struct tensor *inp,          /* (N,C) */
        enum activation act);

/* out = act(gate) * up, where a row of inp is gate, then up (Shazeer 2020, arXiv 2002.05202): SwiGLU with
 * ACT_SILU, GeGLU with ACT_GELU. */
LLMC_OP(glu_forward, struct tensor *out, /* (N,F) =, or e4m3 */
        const struct tensor *inp,        /* (N,2F) */
        enum activation act);

/* dgate = dout * up * act'(gate);  dup = dout * act(gate); a row of dinp is dgate, then dup. */
LLMC_OP(glu_backward, struct tensor *dinp, /* (N,2F) = */
        const struct tensor *dout,         /* (N,F) */
        const struct tensor *inp,          /* (N,2F) */
        enum activation act);

/* out = inp, of which some numbers become 0 and the others larger: dropout.h. The gradient of inp is the same
 * of that of out. */
LLMC_OP(dropout, struct tensor *out, /* (B,...) = ; may be inp */
        const struct tensor *inp,    /* as out */
        const struct dropout_rule *how);

/* --- attn: attention with several heads --- */

/* A row of qkv is NH heads of queries, NKV of keys and NKV of values, of HS columns each; out has NH heads.
 * Query head h reads the keys and values of head h/(NH/NKV): with NKV < NH this is grouped-query attention
 * (Ainslie et al. 2023, arXiv 2305.13245). `rule` says what a score S is and which keys s a query t sees
 * (attn_rule.h); by default S[t,s] = q[t].k[s]/sqrt(HS) for s <= t. Per sequence and query head, over those
 * s:
 *   P = softmax of each row of S;  out[t] = sum_s P[t,s] v[s]
 *   lse[t] = log sum_s exp(S[t,s]), all that backward needs of the softmax (Dao 2022, arXiv 2205.14135)
 * With dropout, P is multiplied by its factors F before it meets v. With rule->first, a query sees only keys
 * of its own document.
 * Only rows t in [t0, T) are computed. Keys and values come from all rows, so that qkv serves as the cache of
 * a generation step; training has t0 = 0. */
LLMC_OP(attn_forward, struct tensor *out, /* (B,T,NH*HS) =, rows t >= t0 */
        struct tensor *lse,               /* (B,NH,T) fp32 =, rows t >= t0 */
        const struct tensor *qkv,         /* (B,T,(NH+2*NKV)*HS) */
        const struct tensor *prefix,      /* (B) int32, >= 0 (or NULL: without ATTN_PREFIX) */
        const struct attn_rule *rule, int t0);

/* With D[t] = out[t].dout[t], P = exp(S - lse), and scaled dot products, scale = 1/sqrt(HS):
 *   dv[s] = sum_t P[t,s] dout[t];  dS = P * (dout v^T - D);  dq = scale * dS k;  dk = scale * dS^T q
 * where dk and dv are also sums over the query heads that share the head. With dropout, F*P stands for P in
 * dv, and F * (dout v^T) for dout v^T. For other scores, dq and dk follow from dS by the chain rule. */
LLMC_OP(attn_backward, struct tensor *dqkv, /* (B,T,(NH+2*NKV)*HS) = */
        const struct tensor *dout,          /* (B,T,NH*HS) */
        const struct tensor *out,           /* (B,T,NH*HS) */
        const struct tensor *lse,           /* (B,NH,T) fp32 */
        const struct tensor *qkv,           /* (B,T,(NH+2*NKV)*HS) */
        const struct tensor *prefix,        /* as attn_forward got it */
        const struct attn_rule *rule);

/* --- rope: rotary position embedding (Su et al. 2021, arXiv 2104.09864) --- */

/* Rotates queries and keys, in place, by angles that grow with the position. In each of the first NH+NKV
 * heads of row t, columns i and i+HS/2 are a pair, for i < HS/2 (as in Llama). With a = t *
 * rope_frequency(i), which is t * theta^(-2i/HS) without scaling:
 *   x[i] = x[i]*cos(a) - x[i+HS/2]*sin(a);  x[i+HS/2] = x[i+HS/2]*cos(a) + x[i]*sin(a)
 * `backward` rotates by -a: gradients of the rotated values become gradients of the values. Only rows t in
 * [t0, T) change. For t < 2^17, cos(a) and sin(a) are off by at most 3 * 2^-24. */
LLMC_OP(rope, struct tensor *qkv, /* (B,T,(NH+2*NKV)*HS), HS even: read, and = in rows t >= t0 */
        int NH,                   /* heads of queries */
        int NKV,                  /* heads of keys, and of values, which stay as they are */
        int t0, const struct rope_rule *rule, bool backward);

/* --- loss: softmax cross-entropy --- */

/* What differs from plain cross-entropy; all zero: nothing.
 *   smoothing   a share of the target's probability goes to all V tokens alike: label smoothing (Szegedy et al.
 *               2015, arXiv 1512.00567)
 *   z           times lse^2: keeps the logits from drifting away (Chowdhery et al. 2022, arXiv 2204.02311)
 *   softcap     X > 0: l = X*tanh(logits/X) stand for the logits in the loss and in what the other two add
 *               (Gemma 2, arXiv 2408.00118) */
struct loss_terms {
    float smoothing, z, softcap; /* [0,1), >= 0, >= 0 */
};
/* losses[n] = lse - (1-smoothing)*logits[n,target] - smoothing/V * sum_{v<V} logits[n,v] + z*lse^2, where
 * lse = log sum_{v<V} exp(logits[n,v]); 0 where the target is -1 (ignored).
 * With dloss, logits become their own gradients: (softmax*(1 + 2*z*lse) - (1-smoothing)*onehot(target) -
 * smoothing/V) * dloss, with a soft cap times 1 - (l/X)^2, and 0 in ignored rows and in the padding columns
 * v >= V. Without dloss, logits do not change. dloss lies on the device, so that a recorded step can run with
 * another value. */
LLMC_OP(loss_forward, struct tensor *losses, /* (N) fp32 = */
        struct tensor *logits,               /* (N,Vp): read, and = with dloss */
        const struct tensor *targets,        /* (N) int32, each -1 or in [0,V) */
        const struct tensor *dloss,          /* (1) fp32 (or NULL): gradient of each loss */
        int V, const struct loss_terms *terms /* (or NULL: plain cross-entropy) */);

/* hits[n] = 1 if the target has the largest of the logits[n,v<V], of equal ones the first, so that greedy
 * decoding would choose it; else 0, also where the target is -1 (ignored) or its logit is NaN. */
LLMC_OP(top1, struct tensor *hits,    /* (N) fp32 = */
        const struct tensor *logits,  /* (N,Vp) */
        const struct tensor *targets, /* (N) int32, each -1 or in [0,V) */
        int V);

/* --- optim --- */

/* What an update needs besides its tensors. Each optimizer takes its own of these. */
struct update_args {
    float lr, beta1, beta2, eps, weight_decay;
    float max_norm;  /* clip: gradients times min(1, max_norm/sqrt(sumsq)); <= 0: no clipping */
    int64_t step;    /* 1 for the first update: bias correction 1-beta^step */
    uint64_t seed;   /* stochastic rounding of low-precision parameters without master weights */
    int64_t offset;  /* index of element 0 in the whole parameter buffer (counter of the random numbers) */
    bool stochastic; /* round stochastically */
    float momentum;  /* Muon's, and its learning rate */
    float muon_lr;
    float embedding_lr;      /* for the optimizer: of embeddings and output head (or 0: lr), */
    bool no_embedding_decay; /* and whether they have no weight decay */
    bool skip_outliers;      /* for the optimizer: skip_outlier comes first, with these limits */
    float max_loss, max_sumsq;
};
/* In every update, g = grad*clip; w is `master` if given, and param = w rounded. If sumsq, the sum of
 * squares of the whole gradient, is not finite, nothing changes: the device skips a step with a NaN or
 * infinite gradient, and the host learns of it when it reads the norm. */

/* AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101):
 * m = beta1*m + (1-beta1)*g;  v = beta2*v + (1-beta2)*g^2;
 * w -= lr * (m/(1-beta1^step) / (sqrt(v/(1-beta2^step)) + eps) + weight_decay*w) */
LLMC_OP(adamw, struct tensor *param, /* (n): read unless there is master, and = */
        struct tensor *master,       /* (n) fp32: read, and = (or NULL) */
        struct tensor *m,            /* (n) fp32: read, and = */
        struct tensor *v,            /* (n) fp32: read, and = */
        const struct tensor *grad,   /* (n) */
        const struct tensor *sumsq,  /* (1) fp32 */
        const struct update_args *args);

/* Lion (Chen et al. 2023, arXiv 2302.06675):
 * w -= lr * (sign(beta1*m + (1-beta1)*g) + weight_decay*w), with sign(0) = 0;  m = beta2*m + (1-beta2)*g */
LLMC_OP(lion, struct tensor *param, /* (n): read unless there is master, and = */
        struct tensor *master,      /* (n) fp32: read, and = (or NULL) */
        struct tensor *m,           /* (n) fp32: read, and = */
        const struct tensor *grad,  /* (n) */
        const struct tensor *sumsq, /* (1) fp32 */
        const struct update_args *args);

/* Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) updates a matrix by its momentum made
 * orthogonal. Its first operation is Nesterov's momentum:
 *   m = momentum*m + (1-momentum)*g;  out = momentum*m + (1-momentum)*g
 * If sumsq is not finite, m stays and out = 0. Then the optimizer makes each matrix of `out` orthogonal by
 * the iteration of Newton and Schulz (optimizer.h), of products and the two operations below. */
LLMC_OP(muon_momentum, struct tensor *out, /* (n) = */
        struct tensor *m,                  /* (n) fp32: read, and = */
        const struct tensor *grad,         /* (n) */
        const struct tensor *sumsq,        /* (1) fp32 */
        const struct update_args *args);

/* out = inp / (sqrt(sumsq) + eps) */
LLMC_OP(normalize, struct tensor *out, /* (n) = */
        const struct tensor *inp,      /* (n) */
        const struct tensor *sumsq,    /* (1) fp32: of inp */
        float eps);                    /* > 0 */

/* out = a*I + b*gram + c*gram2: the factor of a step of Newton and Schulz */
LLMC_OP(ns_factor, struct tensor *out, /* (n,n) = ; may be gram2 */
        const struct tensor *gram,     /* (n,n) */
        const struct tensor *gram2,    /* (n,n) */
        float a, float b, float c);

/* w -= muon_lr * (update + weight_decay*w) */
LLMC_OP(muon_update, struct tensor *param, /* (n): read unless there is master, and = */
        struct tensor *master,             /* (n) fp32: read, and = (or NULL) */
        const struct tensor *update,       /* (n) */
        const struct tensor *sumsq,        /* (1) fp32 */
        const struct update_args *args);

/* Before the update, keeps an outlier from it: seen = sumsq, and unless loss <= max_loss and
 * sumsq <= max_sumsq, sumsq = infinity, so that nothing changes. */
LLMC_OP(skip_outlier, struct tensor *sumsq, /* (1) fp32: read, and = */
        struct tensor *seen,                /* (1) fp32 = */
        const struct tensor *loss,          /* (1) fp32 */
        float max_loss, float max_sumsq);

/* --- buffer: operations on whole buffers --- */

/* out = sum of inp^2, accumulated in a fixed order with an error independent of n (fp64 or pairwise). */
LLMC_OP(sumsq, struct tensor *out, /* (1) fp32 = */
        const struct tensor *inp); /* (n) */

/* out (+)= scale * sum of inp */
LLMC_OP(sum, struct tensor *out,    /* (1) fp32 = or += */
        const struct tensor *inp,   /* (n) fp32 */
        const struct tensor *scale, /* (1) fp32 (or NULL: 1) */
        bool accumulate);

/* out = inp, converted between dtypes; to nearest even. */
LLMC_OP(cast, struct tensor *out,  /* (n) = */
        const struct tensor *inp); /* (n) */

/* out = base + scale*inp */
LLMC_OP(add_scaled, struct tensor *out, /* (n) = ; may be base or inp */
        const struct tensor *base,      /* (n) (or NULL: 0) */
        const struct tensor *inp,       /* (n) */
        float scale);

/* out = value */
LLMC_OP(fill, struct tensor *out, /* (n) = */
        float value);

/* out[i] = mean + std * normal(seed, purpose, i): Philox, Box-Muller; element i depends on i alone. */
LLMC_OP(randn, struct tensor *out, /* (n) = */
        float mean, float std, uint64_t seed, uint64_t purpose);

#define LLMC_OPS(X)                                                                                          \
    X(embed_forward)                                                                                         \
    X(embed_backward)                                                                                        \
    X(norm_forward)                                                                                          \
    X(residual_norm_forward)                                                                                 \
    X(norm_backward)                                                                                         \
    X(qk_norm_forward)                                                                                       \
    X(qk_norm_backward)                                                                                      \
    X(matmul_forward)                                                                                        \
    X(matmul_backward)                                                                                       \
    X(act_forward)                                                                                           \
    X(act_backward)                                                                                          \
    X(glu_forward)                                                                                           \
    X(glu_backward)                                                                                          \
    X(dropout)                                                                                               \
    X(attn_forward)                                                                                          \
    X(attn_backward)                                                                                         \
    X(rope)                                                                                                  \
    X(loss_forward)                                                                                          \
    X(top1)                                                                                                  \
    X(adamw)                                                                                                 \
    X(lion)                                                                                                  \
    X(muon_momentum)                                                                                         \
    X(normalize)                                                                                             \
    X(ns_factor)                                                                                             \
    X(muon_update)                                                                                           \
    X(skip_outlier)                                                                                          \
    X(sumsq)                                                                                                 \
    X(sum)                                                                                                   \
    X(cast)                                                                                                  \
    X(add_scaled)                                                                                            \
    X(fill)                                                                                                  \
    X(randn)

#define X(op) OP_##op,
enum op_id { LLMC_OPS(X) OP_COUNT };
#undef X
const char *op_name(enum op_id id);

/* Can a variant made for `arch` run on the context's device? */
bool op_runs_on(const struct ctx *ctx, int arch);

/* The FLOP/s that a variant could reach: the device's rate for plain matmuls, or twice that for fp8 on a GPU,
 * whose tensor cores multiply fp8 twice as fast as bf16 (NVIDIA's data sheets, Ada to Hopper). */
double op_matmul_rate(const struct ctx *ctx, const char *variant, double plain_rate);

/* One back end: its variants of each op, the preferred one first. */
struct ops {
    const char *backend;
    bool bf16;         /* computes in bf16, too; every back end computes in fp32 */
    bool bf16_weights; /* forward takes weights in bf16 beside fp32 activations */
#define X(op) const struct op##_variant *op;
    LLMC_OPS(X)
#undef X
};
extern const struct ops cuda_ops; /* llmc/cuda: a table for GPUs, whose variants are in llmc/cuda/<stem>.cu */
#define X(op) extern const struct op##_variant cuda_##op##_variants[];
LLMC_OPS(X)
#undef X

/* llmc/cpu, the reference in fp32, is compiled once for each of these instruction sets, the fastest first.
 * A variant is called by its instruction set. */
#if defined(__x86_64__)
#define LLMC_CPU_ISAS(X) X(avx512) X(avx2) X(plain)
#elif defined(__aarch64__)
#define LLMC_CPU_ISAS(X) X(neon)
#else
#define LLMC_CPU_ISAS(X) X(plain)
#endif

/* The CPU's table: the variants for the instruction sets that this processor has. LLMC_VARIANT=cpu:avx2
 * leaves those for one; a name that the processor does not have ends the program. */
const struct ops *cpu_ops(void);

#ifdef __cplusplus
}
#endif
#endif
