/* Every operation as the plainest loop; see naive_ops.h. Written from the contracts in ops.h, not from
 * llmc/cpu. `bug(op, NAME)` is true when that mistake has been asked for. Order: values, then the ops in the
 * order of ops.h, then the table. */
#include "test/ops/naive_ops.h"

#include "llmc/base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- values --- */

#define bug(op, name) (env->state && *(const enum naive_bug *)env->state == BUG_##op##_##name)

static float get(const struct tensor *t, int64_t i) {
    return t->dtype == DTYPE_BF16 ? f32_from_bf16(((const uint16_t *)t->data)[i]) : f32(t)[i];
}
static void put(struct tensor *t, int64_t i, float v) {
    if (t->dtype == DTYPE_BF16)
        ((uint16_t *)t->data)[i] = bf16_from_f32(v);
    else
        f32(t)[i] = v;
}
/* v as it would be after a store to, and a load from, memory like t. */
static float stored(const struct tensor *t, float v) {
    return t->dtype == DTYPE_BF16 ? f32_from_bf16(bf16_from_f32(v)) : v;
}
static float *row_of_zeros(int64_t n) { return (float *)xcalloc((size_t)n, sizeof(float)); }

static float gelu(float x) { return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))); }
static float gelu_slope(float x, bool far_out) {
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    if (fabsf(x) > 20.0f && !far_out) return x > 0.0f ? 1.0f : 0.0f;
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 0.134145f * x * x);
}
static float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

/* --- embed --- */

static void embed_forward_run(const struct op_env *env, struct tensor *out, const struct tensor *tokens,
                              const struct tensor *wte, const struct tensor *wpe, int t0) {
    int64_t T = tokens->dim[1], C = tensor_cols(wte);
    for (int64_t n = 0; n < tensor_count(tokens); n++) {
        int64_t position = bug(embed_forward, IGNORES_T0)        ? n % T
                           : bug(embed_forward, POSITION_BY_ROW) ? t0 + n / T
                                                                 : t0 + n % T;
        for (int64_t c = 0; c < C; c++)
            put(out, n * C + c, get(wte, i32(tokens)[n] * C + c) + get(wpe, position * C + c));
    }
}

static void embed_backward_run(const struct op_env *env, struct tensor *dwte, struct tensor *dwpe,
                               const struct tensor *dout, const struct tensor *tokens) {
    int64_t N = tensor_count(tokens), T = tokens->dim[1], C = tensor_cols(dwte);
    for (int64_t v = 0; v < tensor_rows(dwte); v++)
        for (int64_t c = 0; c < C; c++) {
            float before = get(dwte, v * C + c), sum = before;
            for (int64_t n = 0; n < N; n++) {
                if (i32(tokens)[n] != v) continue;
                sum = (bug(embed_backward, LAST_TOKEN_WINS) ? before : sum) + get(dout, n * C + c);
                if (bug(embed_backward, STORES_EACH_SUM)) sum = f32_from_bf16(bf16_from_f32(sum));
            }
            put(dwte, v * C + c, sum);
        }
    int64_t seen = bug(embed_backward, FIRST_BATCH_ONLY) ? T : N;
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < C; c++) {
            float sum = get(dwpe, t * C + c);
            for (int64_t n = t; n < seen; n += T) sum += get(dout, n * C + c);
            put(dwpe, t * C + c, sum);
        }
}

/* --- norm --- */

static void norm_row(const struct op_env *env, struct tensor *out, struct tensor *mean, struct tensor *rstd,
                     const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                     int64_t n) {
    int64_t C = tensor_cols(inp), used = bug(norm_forward, SKIPS_TAIL) ? C / 4 * 4 : C;
    float sum = 0.0f, squares = 0.0f, variance = 0.0f;
    for (int64_t c = 0; c < used; c++) sum += get(inp, n * C + c);
    float m = sum / (float)C;
    for (int64_t c = 0; c < used; c++) {
        float x = get(inp, n * C + c);
        squares += x * x;
        variance += (x - m) * (x - m);
    }
    variance /= (float)(bug(norm_forward, SAMPLE_VARIANCE) && C > 1 ? C - 1 : C);
    if (bug(norm_forward, ONE_PASS_VARIANCE)) variance = fmaxf(squares / (float)C - m * m, 0.0f);
    float r = 1.0f / sqrtf(variance + (bug(norm_forward, NO_EPS) ? 0.0f : 1e-5f));
    for (int64_t c = 0; c < C; c++)
        put(out, n * C + c,
            (get(inp, n * C + c) - m) * r * get(weight, c) +
                (bug(norm_forward, NO_BIAS) ? 0.0f : get(bias, c)));
    f32(mean)[n] = m;
    f32(rstd)[n] = r;
}

static void norm_forward_run(const struct op_env *env, struct tensor *out, struct tensor *mean,
                             struct tensor *rstd, const struct tensor *inp, const struct tensor *weight,
                             const struct tensor *bias) {
    for (int64_t n = 0; n < tensor_rows(inp); n++) norm_row(env, out, mean, rstd, inp, weight, bias, n);
}

static void residual_norm_forward_run(const struct op_env *env, struct tensor *residual, struct tensor *out,
                                      struct tensor *mean, struct tensor *rstd, const struct tensor *inp,
                                      const struct tensor *delta, const struct tensor *weight,
                                      const struct tensor *bias) {
    int64_t C = tensor_cols(inp);
    for (int64_t n = 0; n < tensor_rows(inp); n++) {
        if (bug(residual_norm_forward, NORM_OF_INP)) norm_row(env, out, mean, rstd, inp, weight, bias, n);
        for (int64_t i = n * C; i < (n + 1) * C; i++)
            put(residual, i, get(inp, i) + (bug(residual_norm_forward, NO_DELTA) ? 0.0f : get(delta, i)));
        if (bug(residual_norm_forward, TWO_ADDITIONS))
            for (int64_t i = n * C; i < (n + 1) * C; i++) put(residual, i, get(residual, i) + get(delta, i));
        if (!bug(residual_norm_forward, NORM_OF_INP))
            norm_row(env, out, mean, rstd, residual, weight, bias, n);
    }
}

static void norm_backward_params(const struct op_env *env, struct tensor *dweight, struct tensor *dbias,
                                 const struct tensor *dout, const struct tensor *inp,
                                 const struct tensor *mean, const struct tensor *rstd) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp);
    if (bug(norm_backward, LAST_ROW_MISSING)) N--;
    for (int64_t c = 0; c < C; c++) {
        float dw = bug(norm_backward, WEIGHT_OVERWRITTEN) ? 0.0f : get(dweight, c), db = get(dbias, c);
        for (int64_t n = 0; n < N; n++) {
            dw += get(dout, n * C + c) * (get(inp, n * C + c) - f32(mean)[n]) * f32(rstd)[n];
            db += get(dout, n * C + c);
        }
        put(dweight, c, dw);
        put(dbias, c, db);
    }
}

static void norm_backward_run(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                              struct tensor *dbias, const struct tensor *dresidual, const struct tensor *dout,
                              const struct tensor *inp, const struct tensor *mean, const struct tensor *rstd,
                              const struct tensor *weight) {
    int64_t C = tensor_cols(inp);
    bool late = bug(norm_backward, DINP_BEFORE_DWEIGHT);
    if (!late) norm_backward_params(env, dweight, dbias, dout, inp, mean, rstd);
    for (int64_t n = 0; n < tensor_rows(inp); n++) {
        float sum_g = 0.0f, sum_gx = 0.0f, r = f32(rstd)[n];
        for (int64_t c = 0; c < C; c++) {
            float g = get(dout, n * C + c) * get(weight, c), xhat = (get(inp, n * C + c) - f32(mean)[n]) * r;
            sum_g += g / (float)C;
            sum_gx += g * xhat / (float)C;
        }
        if (bug(norm_backward, NO_MEAN_TERM)) sum_g = 0.0f;
        if (bug(norm_backward, NO_XHAT_TERM)) sum_gx = 0.0f;
        for (int64_t c = 0; c < C; c++) {
            int64_t i = n * C + c;
            float past = dresidual && !bug(norm_backward, NO_RESIDUAL) ? get(dresidual, i) : 0.0f;
            float xhat = (get(inp, i) - f32(mean)[n]) * r;
            put(dinp, i, past + r * (get(dout, i) * get(weight, c) - sum_g - xhat * sum_gx));
        }
    }
    if (late) norm_backward_params(env, dweight, dbias, dout, inp, mean, rstd);
}

/* --- matmul --- */

/* The numbers of an fp8 format with this many bits of mantissa, ascending from 0; returns how many. */
static int fp8_numbers(float number[128], int mantissa) {
    int bias = mantissa == 3 ? 7 : 15, count = mantissa == 3 ? 127 : 124;
    for (int code = 0; code < count; code++) {
        int exponent = code >> mantissa, fraction = code & ((1 << mantissa) - 1);
        number[code] = exponent ? ldexpf((float)(fraction + (1 << mantissa)), exponent - bias - mantissa)
                                : ldexpf((float)fraction, 1 - bias - mantissa);
    }
    return count;
}

/* The elements that a product is taken of: those of `t`, in fp8 each replaced by the nearest number. */
static float *factors(const struct tensor *t, bool fp8, int mantissa, bool towards_zero) {
    float number[128], amax = 0.0f, scale = 1.0f, *out = row_of_zeros(tensor_count(t));
    int count = fp8_numbers(number, mantissa);
    for (int64_t i = 0; i < tensor_count(t); i++) {
        out[i] = get(t, i);
        amax = fmaxf(amax, fabsf(out[i]));
    }
    if (!fp8 || amax == 0.0f) return out;
    while (amax * scale > number[count - 1]) scale *= 0.5f;
    while (amax * scale * 2.0f <= number[count - 1]) scale *= 2.0f;
    for (int64_t i = 0; i < tensor_count(t); i++) {
        float x = fabsf(out[i]) * scale;
        int k = 0;
        while (k + 1 < count && number[k + 1] <= x) k++;
        if (k + 1 < count && !towards_zero) {
            float below = x - number[k], above = number[k + 1] - x;
            if (above < below || (above == below && k % 2)) k++;
        }
        out[i] = copysignf(number[k] / scale, out[i]);
    }
    return out;
}

static void matmul_forward_run(const struct op_env *env, struct tensor *out, struct tensor *pre,
                               const struct tensor *inp, const struct tensor *weight,
                               const struct tensor *bias, enum activation act) {
    int64_t C = tensor_cols(inp), OC = tensor_rows(weight);
    int64_t used = bug(matmul_forward, SKIPS_TAIL) ? C / 4 * 4 : C;
    bool fp8 = matmul_in_fp8(inp, weight) && !bug(matmul_forward, FP8_IGNORED);
    bool truncate = bug(matmul_forward, FP8_TRUNCATES);
    float *x = factors(inp, fp8, bug(matmul_forward, FP8_E5M2) ? 2 : 3, truncate);
    float *w = factors(weight, fp8, 3, truncate);
    for (int64_t n = 0; n < tensor_rows(inp); n++)
        for (int64_t o = 0; o < OC; o++) {
            float sum = 0.0f;
            for (int64_t c = 0; c < used; c++) {
                sum += x[n * C + c] * w[o * C + c];
                if (bug(matmul_forward, BF16_SUMS)) sum = f32_from_bf16(bf16_from_f32(sum));
            }
            if (bias && !bug(matmul_forward, NO_BIAS)) sum += get(bias, o);
            float value = act == ACT_NONE                 ? sum
                          : bug(matmul_forward, ERF_GELU) ? gelu_erf(stored(out, sum))
                                                          : gelu(stored(out, sum));
            if (pre) put(pre, n * OC + o, bug(matmul_forward, PRE_IS_OUT) ? value : sum);
            put(out, n * OC + o, value);
        }
    free(x);
    free(w);
}

static void matmul_backward_run(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                                struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                                const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    int64_t N = tensor_rows(dout), C = tensor_cols(inp), OC = tensor_cols(dout);
    if (bug(matmul_backward, NEVER_ACCUMULATES)) accumulate = false;
    if (bug(matmul_backward, ALWAYS_ACCUMULATES)) accumulate = true;
    bool fp8 = matmul_in_fp8(inp, weight) && !bug(matmul_backward, FP8_IGNORED);
    float *dy = factors(dout, fp8, bug(matmul_backward, FP8_GRADIENT_E4M3) ? 3 : 2, false);
    float *x = factors(inp, fp8, 3, false), *w = factors(weight, fp8, 3, false);
    for (int64_t o = 0; o < OC; o++) {
        for (int64_t c = 0; c < C; c++) {
            float sum = accumulate ? get(dweight, o * C + c) : 0.0f;
            for (int64_t n = 0; n < N; n++) sum += dy[n * OC + o] * x[n * C + c];
            put(dweight, o * C + c, sum);
        }
        if (!dbias) continue;
        float sum = accumulate ? get(dbias, o) : 0.0f;
        for (int64_t n = 0; n < (bug(matmul_backward, BIAS_LAST_ROW_MISSING) ? N - 1 : N); n++)
            sum += bug(matmul_backward, FP8_BIAS) ? dy[n * OC + o] : get(dout, n * OC + o);
        put(dbias, o, sum);
    }
    for (int64_t n = 0; dinp && n < N; n++)
        for (int64_t c = 0; c < C; c++) {
            float sum = 0.0f;
            for (int64_t o = 0; o < OC; o++) sum += dy[n * OC + o] * w[o * C + c];
            const struct tensor *at = bug(matmul_backward, GELU_OF_INP) ? inp : pre;
            if (pre && !bug(matmul_backward, NO_GELU))
                sum = stored(dinp, sum) * gelu_slope(get(at, n * C + c), false);
            put(dinp, n * C + c, sum);
        }
    free(dy);
    free(x);
    free(w);
}

/* --- act --- */

static void act_forward_run(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    for (int64_t i = 0; i < tensor_count(inp); i++) {
        float x = get(inp, i);
        put(out, i,
            bug(act_forward, ERF_GELU)       ? gelu_erf(x)
            : bug(act_forward, SIGMOID_GELU) ? x / (1.0f + expf(-1.702f * x))
                                             : gelu(x));
    }
}

static void act_backward_run(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                             const struct tensor *inp) {
    for (int64_t i = 0; i < tensor_count(inp); i++) {
        float x = get(inp, i), slope = gelu_slope(x, bug(act_backward, NAN_FAR_OUT));
        if (bug(act_backward, NO_SECOND_TERM))
            slope = 0.5f * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
        put(dinp, i, get(dout, i) * slope);
    }
}

/* --- attn --- */

/* Element c of head h of q, k or v (part 0, 1, 2) at position t. */
static int64_t at(const struct tensor *qkv, int NH, int64_t b, int64_t h, int part, int64_t t, int64_t c) {
    int64_t C = qkv->dim[2] / 3;
    return (b * qkv->dim[1] + t) * 3 * C + part * C + h * (C / NH) + c;
}

static float score(const struct tensor *qkv, int NH, int64_t b, int64_t h, int64_t key_head, int64_t t,
                   int64_t s, float scale) {
    int64_t HS = qkv->dim[2] / 3 / NH;
    float sum = 0.0f;
    for (int64_t c = 0; c < HS; c++)
        sum += get(qkv, at(qkv, NH, b, h, 0, t, c)) * get(qkv, at(qkv, NH, b, key_head, 1, s, c));
    return sum * scale;
}

static void attn_row(const struct op_env *env, struct tensor *out, struct tensor *lse,
                     const struct tensor *qkv, int NH, int64_t b, int64_t h, int64_t t, int64_t first,
                     float *P) {
    int64_t T = qkv->dim[1], HS = qkv->dim[2] / 3 / NH, last = t;
    float scale = bug(attn_forward, NO_SCALE) ? 1.0f : 1.0f / sqrtf((float)HS);
    float max = bug(attn_forward, MAXIMUM_FROM_ZERO) || bug(attn_forward, NO_MAXIMUM) ? 0.0f : -INFINITY;
    if (bug(attn_forward, SEES_NEXT) && t + 1 < T) last = t + 1;
    if (bug(attn_forward, NOT_ITSELF) && t > 0) last = t - 1;
    for (int64_t s = first; s <= last; s++) {
        P[s] = score(qkv, NH, b, h, bug(attn_forward, ONE_HEAD) ? 0 : h, t, s, scale);
        if (!bug(attn_forward, NO_MAXIMUM)) max = fmaxf(max, P[s]);
    }
    float total = 0.0f;
    for (int64_t s = first; s <= last; s++) total += P[s] = expf(P[s] - max);
    for (int64_t s = first; s <= last; s++) P[s] = stored(out, P[s] / total);
    for (int64_t c = 0; c < HS; c++) {
        float sum = 0.0f;
        for (int64_t s = first; s <= last; s++) sum += P[s] * get(qkv, at(qkv, NH, b, h, 2, s, c));
        put(out, (b * T + t) * HS * NH + h * HS + c, sum);
    }
    f32(lse)[(b * NH + h) * T + t] = logf(total) + (bug(attn_forward, LSE_WITHOUT_MAXIMUM) ? 0.0f : max);
}

static void attn_forward_run(const struct op_env *env, struct tensor *out, struct tensor *lse,
                             const struct tensor *qkv, int NH, int t0) {
    int64_t B = qkv->dim[0], T = qkv->dim[1];
    float *P = row_of_zeros(T);
    for (int64_t bh = 0; bh < B * NH; bh++)
        for (int64_t t = bug(attn_forward, IGNORES_T0) ? 0 : t0; t < T; t++)
            attn_row(env, out, lse, qkv, NH, bh / NH, bh % NH, t, bug(attn_forward, KEYS_FROM_T0) ? t0 : 0,
                     P);
    free(P);
}

static void attn_backward_run(const struct op_env *env, struct tensor *dqkv, const struct tensor *dout,
                              const struct tensor *out, const struct tensor *lse, const struct tensor *qkv,
                              int NH) {
    int64_t B = qkv->dim[0], T = qkv->dim[1], C = qkv->dim[2] / 3, HS = C / NH;
    float scale = 1.0f / sqrtf((float)HS), *sums = row_of_zeros(tensor_count(qkv));
    float key_scale = bug(attn_backward, DK_UNSCALED) ? 1.0f / scale : 1.0f;
    for (int64_t bh = 0; bh < B * NH; bh++)
        for (int64_t t = 0; t < T; t++) {
            int64_t b = bh / NH, h = bh % NH, row = (b * T + t) * C + h * HS;
            int64_t last = bug(attn_backward, SEES_NEXT) && t + 1 < T ? t + 1 : t;
            float D = 0.0f;
            for (int64_t c = 0; c < HS; c++) D += get(out, row + c) * get(dout, row + c);
            if (bug(attn_backward, NO_D)) D = 0.0f;
            for (int64_t s = 0; s <= last; s++) {
                float P = expf(score(qkv, NH, b, h, h, t, s, scale) - f32(lse)[bh * T + t]), dP = 0.0f;
                for (int64_t c = 0; c < HS; c++)
                    dP += get(dout, row + c) * get(qkv, at(qkv, NH, b, h, 2, s, c));
                float dS = stored(dqkv, scale * P * (dP - D));
                P = stored(dqkv, P);
                bool skipped = bug(attn_backward, LAST_QUERY_MISSING) && t == T - 1;
                for (int64_t c = 0; c < HS; c++) {
                    sums[at(qkv, NH, b, h, 0, t, c)] += dS * get(qkv, at(qkv, NH, b, h, 1, s, c));
                    if (skipped) continue;
                    sums[at(qkv, NH, b, h, 1, s, c)] += key_scale * dS * get(qkv, at(qkv, NH, b, h, 0, t, c));
                    sums[at(qkv, NH, b, h, 2, s, c)] += P * get(dout, row + c);
                }
            }
        }
    for (int64_t i = 0; i < tensor_count(qkv); i++)
        put(dqkv, i, sums[i] + (bug(attn_backward, ACCUMULATES) ? get(dqkv, i) : 0.0f));
    free(sums);
}

/* --- rope --- */

static void rope_run(const struct op_env *env, struct tensor *qkv, int NH, int NKV, int t0, float theta,
                     bool backward) {
    int64_t T = qkv->dim[1], width = qkv->dim[2], HS = width / (NH + 2 * NKV), half = HS / 2;
    for (int64_t row = 0; row < tensor_rows(qkv); row++)
        for (int64_t h = 0; row % T >= t0 && h < NH + NKV; h++)
            for (int64_t i = 0; i < half; i++) {
                double angle = (double)(bug(rope, FROM_T0) ? row % T - t0 : row % T) *
                               pow((double)theta, -2.0 * (double)i / (double)HS);
                float c = (float)cos(angle),
                      s = (float)sin(backward && !bug(rope, NEVER_BACK) ? -angle : angle);
                int64_t at = row * width + h * HS + i;
                float x = get(qkv, at), y = get(qkv, at + half);
                put(qkv, at, x * c - y * s);
                put(qkv, at + half, y * c + x * s);
            }
}

/* --- loss --- */

static void loss_row(const struct op_env *env, struct tensor *losses, struct tensor *logits, int32_t target,
                     int64_t n, const struct tensor *dloss, int V) {
    int64_t Vp = tensor_cols(logits), first = n * Vp;
    int64_t columns = bug(loss_forward, COUNTS_PADDING)        ? Vp
                      : bug(loss_forward, LAST_COLUMN_MISSING) ? V - 1
                                                               : V;
    float max = -INFINITY, total = 0.0f;
    for (int64_t v = 0; v < V; v++) max = fmaxf(max, get(logits, first + v));
    if (bug(loss_forward, NO_MAXIMUM)) max = 0.0f;
    for (int64_t v = 0; v < columns; v++) total += expf(get(logits, first + v) - max);
    f32(losses)[n] = logf(total) + max - get(logits, first + target);
    if (!dloss && !bug(loss_forward, ALWAYS_WRITES)) return;
    for (int64_t v = 0; v < V; v++) {
        float p = expf(get(logits, first + v) - max) / total - (v == target ? 1.0f : 0.0f);
        put(logits, first + v, p * (!dloss || bug(loss_forward, NO_DLOSS) ? 1.0f : f32(dloss)[0]));
    }
    for (int64_t v = V; v < Vp && !bug(loss_forward, KEEPS_PADDING); v++) put(logits, first + v, 0.0f);
}

static void loss_forward_run(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                             const struct tensor *targets, const struct tensor *dloss, int V) {
    int64_t Vp = tensor_cols(logits);
    for (int64_t n = 0; n < tensor_rows(logits); n++) {
        int32_t target = i32(targets)[n];
        if (target < 0 && bug(loss_forward, IGNORED_IS_ZERO)) target = 0;
        if (target >= 0) {
            loss_row(env, losses, logits, target, n, dloss, V);
            continue;
        }
        f32(losses)[n] = 0.0f;
        for (int64_t v = 0; v < Vp && dloss && !bug(loss_forward, IGNORED_KEEPS_LOGITS); v++)
            put(logits, n * Vp + v, 0.0f);
    }
}

/* --- optim --- */

static void adamw_run(const struct op_env *env, struct tensor *param, struct tensor *master, struct tensor *m,
                      struct tensor *v, const struct tensor *grad, const struct tensor *sumsq_of_grad,
                      const struct adamw_args *a) {
    float norm = sqrtf(f32(sumsq_of_grad)[0]);
    if (isnan(norm) && !bug(adamw, NAN_IS_APPLIED)) return;
    if (isinf(norm) && !bug(adamw, INFINITY_IS_APPLIED)) return;
    float clip =
        a->max_norm > 0.0f && (norm > a->max_norm || bug(adamw, CLIPS_UPWARDS)) ? a->max_norm / norm : 1.0f;
    if (bug(adamw, NO_CLIP)) clip = 1.0f;
    float correct1 = (float)(1.0 - pow((double)a->beta1, (double)a->step));
    float correct2 = (float)(1.0 - pow((double)a->beta2, (double)a->step));
    if (bug(adamw, NO_CORRECTION)) correct1 = correct2 = 1.0f;
    for (int64_t i = 0; i < tensor_count(param); i++) {
        float w = master && !bug(adamw, IGNORES_MASTER) ? f32(master)[i] : get(param, i),
              g = get(grad, i) * clip;
        if (bug(adamw, L2)) g += a->weight_decay * w;
        float mi = f32(m)[i] = a->beta1 * f32(m)[i] + (1.0f - a->beta1) * g;
        float vi = f32(v)[i] = a->beta2 * f32(v)[i] + (1.0f - a->beta2) * g * g;
        float root = bug(adamw, EPS_IN_ROOT) ? sqrtf(vi / correct2 + a->eps) : sqrtf(vi / correct2) + a->eps;
        w -= a->lr * (mi / correct1 / root + (bug(adamw, L2) ? 0.0f : a->weight_decay * w));
        if (master) f32(master)[i] = w;
        if (!master || !bug(adamw, PARAM_NOT_WRITTEN)) put(param, i, w);
    }
}

static void sumsq_run(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    double total = 0.0;
    float single = 0.0f;
    int64_t n = tensor_count(inp);
    for (int64_t i = 0; i < (bug(sumsq, SKIPS_TAIL) ? n / 4 * 4 : n); i++) {
        total += (double)get(inp, i) * (double)get(inp, i);
        single += get(inp, i) * get(inp, i);
    }
    f32(out)[0] = bug(sumsq, FP32_SUM) ? single : bug(sumsq, ROOT) ? (float)sqrt(total) : (float)total;
}

static void sum_run(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                    const struct tensor *scale, bool accumulate) {
    double total = 0.0;
    float single = 0.0f;
    for (int64_t i = 0; i < tensor_count(inp); i++) {
        total += (double)f32(inp)[i];
        single += f32(inp)[i];
    }
    float before = accumulate && !bug(sum, NEVER_ACCUMULATES) ? f32(out)[0] : 0.0f;
    float value = bug(sum, FP32_SUM) ? single : (float)total;
    f32(out)[0] = before + value * (!scale || bug(sum, NO_SCALE) ? 1.0f : f32(scale)[0]);
}

static void cast_run(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    for (int64_t i = 0; i < tensor_count(inp); i++) {
        float x = get(inp, i);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        put(out, i, x);
        if (out->dtype == DTYPE_BF16 && bug(cast, TRUNCATES))
            ((uint16_t *)out->data)[i] = (uint16_t)(bits >> 16);
        if (isnan(x) && bug(cast, NAN_BECOMES_INFINITY)) put(out, i, INFINITY);
    }
}

static void fill_run(const struct op_env *env, struct tensor *out, float value) {
    int64_t n = tensor_count(out);
    for (int64_t i = 0; i < (bug(fill, SKIPS_TAIL) ? n / 4 * 4 : n); i++) put(out, i, value);
}

static void randn_run(const struct op_env *env, struct tensor *out, float mean, float std, uint64_t seed,
                      uint64_t purpose) {
    for (int64_t k = 0; k < tensor_count(out); k++) {
        int64_t i = bug(randn, NEXT_INDEX) ? k + 1 : bug(randn, SAME_BLOCK) ? k % 4 : k;
        struct rng4 bits = rng_philox(seed, purpose, (uint64_t)i / 4);
        float radius = sqrtf(-2.0f * logf(1.0f - rng_unit_float(bits.v[i % 4 / 2 * 2])));
        float angle = 6.283185307f * rng_unit_float(bits.v[i % 4 / 2 * 2 + 1]);
        put(out, k, mean + (bug(randn, NO_STD) ? 1.0f : std) * radius * (i % 2 ? sinf(angle) : cosf(angle)));
    }
}

/* --- the table --- */

/* Every variant takes anything and needs no scratch. */
#define X(op) static const struct op##_variant op##_variants[] = {{"naive", op##_run}, {0}};
LLMC_OPS(X)
#undef X

const struct ops naive_ops = {"naive", true,
#define X(op) op##_variants,
                              LLMC_OPS(X)
#undef X
};
