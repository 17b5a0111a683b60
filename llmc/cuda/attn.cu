/* Attention by any rule, for any head size and dtype, and the variants of the op. Contracts in ops.h.
 * Attention by scaled dot products has faster kernels: those on tensor cores in attn_flash.cu (any mask,
 * documents, soft caps) and attn_hopper.cu (causal, window, documents), and the one for a single query in
 * attn_decode.cu (causal).
 *
 * A warp takes one query (or, for dk and dv, one key) and walks the other side in tiles of 32, one score
 * per lane, with an online softmax, so that scores stay in the warp. It accumulates CHUNK columns of the
 * output. Wider heads take one warp per chunk, each of which computes the scores again. */
#include "llmc/cuda/attn.cuh"
#include "llmc/cuda/operands.cuh"

/* --- pieces --- */

constexpr int WARPS = 4;             /* rows per block */
constexpr int CHUNK = 4 * WARP_SIZE; /* columns of a warp: 4 per lane */
constexpr float NO_SCORE = -INFINITY;

/* The row, head and columns of this warp, in sequences of `heads` heads. */
struct warp_place {
    int64_t row; /* in [0, T) */
    int64_t b, h;
    int column; /* first of the chunk */
    int lane, warp;
};
DEVICE_INLINE warp_place place_of_warp(int heads) {
    warp_place p;
    p.lane = (int)threadIdx.x;
    p.warp = (int)threadIdx.y;
    p.row = (int64_t)blockIdx.x * WARPS + p.warp;
    p.b = blockIdx.y / heads;
    p.h = blockIdx.y % heads;
    p.column = (int)blockIdx.z * CHUNK;
    return p;
}

/* A rule with what depends on the operands. */
struct rule_of_call {
    attn_rule rule;
    const int32_t *prefixes; /* (B) or NULL */
    const int32_t *first;    /* (B,T) or NULL: attn_rule.h */
    const int32_t *samples;  /* (B) or NULL: without dropout */
    float p;
    uint64_t seed;
    uint32_t place;
    float factor, scale; /* attn_rule.h */

    __device__ int64_t prefix(int64_t b) const { return prefixes ? prefixes[b] : 0; }
    /* The keys that query t sees in sequence b, and the queries that see key s. */
    __device__ attn_range keys(int64_t b, int64_t length, int64_t t) const {
        return attn_keys_in_document(attn_keys(rule, prefix(b), length, t), first_of(b, length), t);
    }
    __device__ attn_range queries(int64_t b, int64_t length, int64_t s) const {
        return attn_queries_in_document(attn_queries(rule, prefix(b), length, s), first_of(b, length), s);
    }
    __device__ const int32_t *first_of(int64_t b, int64_t length) const {
        return first ? first + b * length : NULL;
    }
    __device__ dropout_key key(int64_t b) const {
        return samples ? dropout_key_of(p, seed, place, samples[b]) : dropout_key{};
    }
    /* Of the weight of query t and key s. */
    __device__ float factor_of(dropout_key k, int64_t head, int64_t length, int64_t t, int64_t s) const {
        return samples ? dropout_factor(k, (head * length + t) * length + s) : 1.0f;
    }
    __device__ bool has_norms() const { return attn_needs_norms(rule.score); }
};

/* The score of a query and a key, and its derivative by x = factor * q.k. */
struct pair_score {
    float score, slope;
};
DEVICE_INLINE pair_score score_pair(const rule_of_call &r, float x, float q_norm, float k_norm) {
    pair_score s = {attn_score_of(r.rule.score, r.scale, x, q_norm, k_norm),
                    attn_slope(r.rule.score, r.scale, x, q_norm, k_norm)};
    if (r.rule.softcap > 0.0f) {
        float y = tanhf(s.score / r.rule.softcap);
        s.score = r.rule.softcap * y;
        s.slope *= 1.0f - y * y;
    }
    return s;
}

/* In a row of qkv: the first column of the keys of query head h; the width of the row. */
DEVICE_INLINE int64_t keys_of(int64_t h, int NH, int NKV, int HS) { return (NH + h / (NH / NKV)) * HS; }
DEVICE_INLINE int64_t width_of(int NH, int NKV, int HS) { return (int64_t)(NH + 2 * NKV) * HS; }

template <class T> DEVICE_INLINE float dot(const T *a, const T *b, int n) {
    float s = 0.0f;
    for (int i = 0; i < n; i++) s = fmaf(to_float(a[i]), to_float(b[i]), s);
    return s;
}

/* The number of a query or key that its scores need besides dot products. */
template <class T> DEVICE_INLINE float norm_of(const rule_of_call &r, const T *x, int HS) {
    return r.has_norms() ? attn_norm(r.rule.score, dot(x, x, HS)) : 0.0f;
}

/* sum[k] += sum over j < count of weight[j] * rows[j][column + lane + 32k]. Rows are `stride` apart;
 * `weight` is shared memory that the lanes of this warp wrote. */
template <class T>
DEVICE_INLINE void add_weighted_rows(float (&sum)[4], const float *weight, const T *rows, int64_t stride,
                                     int count, int column, int lane, int HS) {
    for (int j = 0; j < count; j++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int c = column + lane + k * WARP_SIZE;
            if (c < HS) sum[k] = fmaf(weight[j], to_float(rows[j * stride + c]), sum[k]);
        }
}

template <class T>
DEVICE_INLINE void store_chunk(T *row, const float (&sum)[4], float scale, const warp_place &p, int HS) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int c = p.column + p.lane + k * WARP_SIZE;
        if (c < HS) row[c] = from_float<T>(sum[k] * scale);
    }
}

/* --- forward: a warp per query --- */

template <class T>
__global__ void attn_forward_naive_kernel(T *out, float *lse, const T *qkv, int64_t length, int HS,
                                          int64_t t0, rule_of_call r) {
    SHARED(float, probabilities, [WARPS][WARP_SIZE]);
    int NH = r.rule.heads, NKV = r.rule.kv_heads;
    warp_place p = place_of_warp(NH);
    int64_t t = t0 + p.row, C = (int64_t)NH * HS, stride = width_of(NH, NKV, HS);
    if (t >= length) return;
    const T *q = qkv + (p.b * length + t) * stride + p.h * HS;
    const T *keys = qkv + p.b * length * stride + keys_of(p.h, NH, NKV, HS); /* (T,HS) */
    const T *values = keys + (int64_t)NKV * HS;                              /* (T,HS) */
    attn_range seen = r.keys(p.b, length, t);
    dropout_key dropped = r.key(p.b);
    float max = NO_SCORE, total = 0.0f, sum[4] = {}, q_norm = norm_of(r, q, HS);
    float *weight = probabilities[p.warp];
    for (int64_t first = seen.first; first < seen.end; first += WARP_SIZE) {
        int64_t s = first + p.lane;
        const T *key = keys + s * stride;
        float score = NO_SCORE;
        if (s < seen.end)
            score = score_pair(r, r.factor * dot(q, key, HS), q_norm, norm_of(r, key, HS)).score;
        float new_max = fmaxf(max, warp_max(score)),
              shrink = expf(max - new_max); /* lane 0 is never masked */
        float probability = expf(score - new_max);
        total = total * shrink + warp_sum(probability);
        max = new_max;
#pragma unroll
        for (int k = 0; k < 4; k++) sum[k] *= shrink;
        weight[p.lane] = probability * r.factor_of(dropped, p.h, length, t, s);
        __syncwarp();
        int count = (int)min((int64_t)WARP_SIZE, seen.end - first);
        add_weighted_rows(sum, weight, values + first * stride, stride, count, p.column, p.lane, HS);
        __syncwarp();
    }
    store_chunk(out + (p.b * length + t) * C + p.h * HS, sum, 1.0f / total, p, HS);
    if (p.column == 0 && p.lane == 0) lse[(p.b * NH + p.h) * length + t] = max + logf(total);
}

/* --- backward --- */

/* A query or key gets a multiple of itself from scores that need norms; each lane has a part of the
 * factor. */
template <class T>
DEVICE_INLINE void add_own(float (&sum)[4], float factor, const T *row, const warp_place &p, int HS) {
    factor = warp_sum(factor);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int c = p.column + p.lane + k * WARP_SIZE;
        if (c < HS) sum[k] = fmaf(factor, to_float(row[c]), sum[k]);
    }
}

/* D[b,h,t] = out[b,t] . dout[b,t] over the columns of head h; a warp per row. */
template <class T>
__global__ void attn_backward_dots_kernel(float *D, const T *dout, const T *out, int64_t length, int NH,
                                          int HS) {
    warp_place p = place_of_warp(NH);
    if (p.row >= length) return;
    int64_t at = ((p.b * length + p.row) * NH + p.h) * HS;
    float sum = 0.0f;
    for (int c = p.lane; c < HS; c += WARP_SIZE)
        sum = fmaf(to_float(out[at + c]), to_float(dout[at + c]), sum);
    sum = warp_sum(sum);
    if (p.lane == 0) D[(p.b * NH + p.h) * length + p.row] = sum;
}

/* dq: a warp per query. */
template <class T>
__global__ void attn_backward_query_naive_kernel(T *dqkv, const T *dout, const float *lse, const float *D,
                                                 const T *qkv, int64_t length, int HS, rule_of_call r) {
    SHARED(float, gradients, [WARPS][WARP_SIZE]);
    int NH = r.rule.heads, NKV = r.rule.kv_heads;
    warp_place p = place_of_warp(NH);
    int64_t t = p.row, C = (int64_t)NH * HS, stride = width_of(NH, NKV, HS);
    if (t >= length) return;
    const T *q = qkv + (p.b * length + t) * stride + p.h * HS;
    const T *keys = qkv + p.b * length * stride + keys_of(p.h, NH, NKV, HS);
    const T *values = keys + (int64_t)NKV * HS;
    const T *d = dout + (p.b * length + t) * C + p.h * HS;
    attn_range seen = r.keys(p.b, length, t);
    dropout_key dropped = r.key(p.b);
    float sum[4] = {}, own = 0.0f, q_norm = norm_of(r, q, HS);
    int64_t statistic = (p.b * NH + p.h) * length + t;
    float *weight = gradients[p.warp];
    for (int64_t first = seen.first; first < seen.end; first += WARP_SIZE) {
        int64_t s = first + p.lane;
        float ds = 0.0f;
        if (s < seen.end) {
            const T *k = keys + s * stride;
            float x = r.factor * dot(q, k, HS);
            pair_score pair = score_pair(r, x, q_norm, norm_of(r, k, HS));
            float dp = r.factor_of(dropped, p.h, length, t, s) * dot(d, values + s * stride, HS);
            ds = expf(pair.score - lse[statistic]) * (dp - D[statistic]) * pair.slope;
            own = fmaf(ds, attn_own_slope(r.rule.score, x, q_norm), own);
        }
        weight[p.lane] = ds;
        __syncwarp();
        int count = (int)min((int64_t)WARP_SIZE, seen.end - first);
        add_weighted_rows(sum, weight, keys + first * stride, stride, count, p.column, p.lane, HS);
        __syncwarp();
    }
    if (r.has_norms()) add_own(sum, own, q, p, HS);
    store_chunk(dqkv + (p.b * length + t) * stride + p.h * HS, sum, r.factor, p, HS);
}

/* dk and dv: a warp per key walks the query heads that share it, one after another. */
template <class T>
__global__ void attn_backward_key_naive_kernel(T *dqkv, const T *dout, const float *lse, const float *D,
                                               const T *qkv, int64_t length, int HS, rule_of_call r) {
    SHARED(float, probabilities, [WARPS][WARP_SIZE]);
    SHARED(float, gradients, [WARPS][WARP_SIZE]);
    int NH = r.rule.heads, NKV = r.rule.kv_heads;
    warp_place p = place_of_warp(NKV);
    int64_t s = p.row, C = (int64_t)NH * HS, stride = width_of(NH, NKV, HS), group = NH / NKV;
    if (s >= length) return;
    int64_t key_at = (p.b * length + s) * stride + C + p.h * HS, value_at = key_at + (int64_t)NKV * HS;
    const T *k = qkv + key_at, *v = qkv + value_at;
    attn_range seen_by = r.queries(p.b, length, s);
    dropout_key dropped = r.key(p.b);
    float dk[4] = {}, dv[4] = {}, own = 0.0f, k_norm = norm_of(r, k, HS);
    float *probability = probabilities[p.warp], *gradient = gradients[p.warp];
    for (int64_t h = p.h * group; h < (p.h + 1) * group; h++) {
        const T *queries = qkv + p.b * length * stride + h * HS; /* (T,HS) */
        const T *douts = dout + p.b * length * C + h * HS;       /* (T,HS), rows C apart */
        const float *lse_head = lse + (p.b * NH + h) * length, *D_head = D + (p.b * NH + h) * length;
        for (int64_t first = seen_by.first; first < seen_by.end; first += WARP_SIZE) {
            int64_t t = first + p.lane;
            float pr = 0.0f, ds = 0.0f;
            if (t < seen_by.end) {
                const T *q = queries + t * stride;
                float x = r.factor * dot(q, k, HS);
                pair_score pair = score_pair(r, x, norm_of(r, q, HS), k_norm);
                float factor = r.factor_of(dropped, h, length, t, s);
                pr = expf(pair.score - lse_head[t]);
                ds = pr * (factor * dot(douts + t * C, v, HS) - D_head[t]) * pair.slope;
                pr *= factor;
                own = fmaf(ds, attn_own_slope(r.rule.score, x, k_norm), own);
            }
            probability[p.lane] = pr;
            gradient[p.lane] = ds;
            __syncwarp();
            int count = (int)min((int64_t)WARP_SIZE, seen_by.end - first);
            add_weighted_rows(dv, probability, douts + first * C, C, count, p.column, p.lane, HS);
            add_weighted_rows(dk, gradient, queries + first * stride, stride, count, p.column, p.lane, HS);
            __syncwarp();
        }
    }
    if (r.has_norms()) add_own(dk, own, k, p, HS);
    store_chunk(dqkv + key_at, dk, r.factor, p, HS);
    store_chunk(dqkv + value_at, dv, 1.0f, p, HS);
}

/* --- launchers --- */

/* The grid's y is (sequence, head), and its limit 65535. */
static bool attn_takes(const struct tensor *out, int NH) { return out->dim[0] * NH < 65536; }

static launch_config attn_grid(const struct op_env *env, int64_t rows, const struct tensor *out, int heads,
                               int chunks, int line = __builtin_LINE()) {
    return {{grid_size(rows, WARPS), (unsigned)(out->dim[0] * heads), (unsigned)chunks},
            {WARP_SIZE, WARPS},
            0,
            env->stream,
            __FILE__,
            line};
}

static rule_of_call rule_on(const struct tensor *out, const struct tensor *prefix,
                            const struct attn_rule *rule) {
    float scale = 1.0f / sqrtf((float)(out->dim[2] / rule->heads));
    rule_of_call r = {*rule, prefix ? i32(prefix) : NULL, rule->first ? i32(rule->first) : NULL};
    r.rule.first = NULL; /* like dropout's, this tensor's description lies on the host */
    if (rule->dropout) {
        r.samples = i32(rule->dropout->samples);
        r.p = rule->dropout->p;
        r.seed = rule->dropout->seed;
        r.place = rule->dropout->place;
        r.rule.dropout = NULL;
    }
    r.factor = attn_factor(rule->score, scale);
    r.scale = scale;
    return r;
}

static int64_t attn_forward_naive_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv,
                                       const struct tensor *prefix, const struct attn_rule *rule, int t0) {
    return attn_takes(out, rule->heads) ? 0 : OP_UNSUPPORTED;
}

static void attn_forward_naive(const struct op_env *env, struct tensor *out, struct tensor *lse,
                               const struct tensor *qkv, const struct tensor *prefix,
                               const struct attn_rule *rule, int t0) {
    int64_t length = out->dim[1];
    int HS = (int)(out->dim[2] / rule->heads), chunks = (int)ceil_div(HS, CHUNK);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch(attn_grid(env, length - t0, out, rule->heads, chunks), attn_forward_naive_kernel<T>,
               data_of<T>(out), f32(lse), data_of<T>(qkv), length, HS, (int64_t)t0,
               rule_on(out, prefix, rule));
    });
}

static void attn_backward_dots(const struct op_env *env, float *D, const struct tensor *dout,
                               const struct tensor *out, int NH) {
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch(attn_grid(env, out->dim[1], out, NH, 1), attn_backward_dots_kernel<T>, D, data_of<T>(dout),
               data_of<T>(out), out->dim[1], NH, (int)(out->dim[2] / NH));
    });
}

static int64_t attn_backward_naive_need(struct tensor *dqkv, const struct tensor *dout,
                                        const struct tensor *out, const struct tensor *lse,
                                        const struct tensor *qkv, const struct tensor *prefix,
                                        const struct attn_rule *rule) {
    if (!attn_takes(out, rule->heads)) return OP_UNSUPPORTED;
    return tensor_count(lse) * (int64_t)sizeof(float);
}

static void attn_backward_naive(const struct op_env *env, struct tensor *dqkv, const struct tensor *dout,
                                const struct tensor *out, const struct tensor *lse, const struct tensor *qkv,
                                const struct tensor *prefix, const struct attn_rule *rule) {
    int64_t length = out->dim[1];
    int HS = (int)(out->dim[2] / rule->heads), chunks = (int)ceil_div(HS, CHUNK);
    float *D = (float *)env->scratch; /* (B,NH,T) */
    attn_backward_dots(env, D, dout, out, rule->heads);
    rule_of_call r = rule_on(out, prefix, rule);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch(attn_grid(env, length, out, rule->heads, chunks), attn_backward_query_naive_kernel<T>,
               data_of<T>(dqkv), data_of<T>(dout), f32(lse), D, data_of<T>(qkv), length, HS, r);
        launch(attn_grid(env, length, out, rule->kv_heads, chunks), attn_backward_key_naive_kernel<T>,
               data_of<T>(dqkv), data_of<T>(dout), f32(lse), D, data_of<T>(qkv), length, HS, r);
    });
}

/* --- variants --- */

extern "C" {
const struct attn_forward_variant cuda_attn_forward_variants[] = {
    {"decode", attn_forward_decode, attn_forward_decode_need},
    {"hopper", attn_forward_hopper, attn_forward_hopper_need, 90},
    {"flash", attn_forward_flash, attn_forward_flash_need},
    {"naive", attn_forward_naive, attn_forward_naive_need},
    {}};
const struct attn_backward_variant cuda_attn_backward_variants[] = {
    {"hopper", attn_backward_hopper, attn_backward_hopper_need, 90},
    {"flash", attn_backward_flash, attn_backward_flash_need},
    {"naive", attn_backward_naive, attn_backward_naive_need},
    {}};
}
