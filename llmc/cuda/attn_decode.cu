/* Attention of one query over a cache of keys and values: a step of generation. Contract in ops.h.
 *
 * With a block per head, 12 heads leave most of a GPU idle while each block reads the whole cache of its
 * head. So the keys are cut into pieces, a block takes each, and the last block to finish joins the pieces
 * in their order (Dao, Haziza, Massa, Sizov 2023, "Flash-Decoding for long-context inference"). The cuts
 * depend on the length alone, so the same call gives the same bits. In a block, the lanes that together
 * hold the columns of a head, 16 bytes each, form a group. The groups take the keys of the piece in turn,
 * each with its own online softmax. A block reads its part of the cache once; query heads that share keys
 * read them from L2. */
#include "llmc/cuda/attn.cuh"
#include "llmc/cuda/operands.cuh"

#include <cfloat>

constexpr int THREADS = 128;
constexpr int64_t PIECE = 64; /* keys, at least: 4 per group at a head size of 64 in bf16 */

/* --- the kernel --- */

/* softmax(scores) @ values over some of the keys: the largest score, and both sums relative to it. */
template <class T> struct softmax_rows {
    float max = -FLT_MAX, total = 0.0f, sum[vec<T>::size] = {};
};

template <class T> DEVICE_INLINE void add_row(softmax_rows<T> &r, float score, const vec<T> &value) {
    float max = fmaxf(r.max, score), shrink = expf(r.max - max), p = expf(score - max);
    r.max = max;
    r.total = r.total * shrink + p;
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) r.sum[k] = r.sum[k] * shrink + p * to_float(value[k]);
}

/* The sum over `lanes` neighbouring lanes, a power of two. */
DEVICE_INLINE float group_sum(float v, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(ALL_LANES, v, offset);
    return v;
}

/* Grid: pieces of `keys` keys; (sequence, head). parts: (B*NH, pieces, HS+2), of each piece the weighted
 * values, the maximum, the total. */
template <class T>
__global__ void __launch_bounds__(THREADS)
    attn_forward_decode_kernel(T *out, float *lse, const T *qkv, float *parts, unsigned *done, int64_t length,
                               int NH, int NKV, int HS, int64_t keys) {
    constexpr int size = vec<T>::size;
    SHARED(float, shared, [THREADS * size]);
    SHARED(float, scratch, [32]);
    int tid = (int)threadIdx.x, lanes = HS / size, groups = THREADS / lanes, pieces = (int)gridDim.x;
    int b = (int)blockIdx.y / NH, h = (int)blockIdx.y % NH, C = NH * HS, stride = C + 2 * NKV * HS;
    const T *sequence = qkv + b * length * stride + tid % lanes * size; /* this lane's columns */
    const T *k = sequence + C + h / (NH / NKV) * HS, *v = k + NKV * HS;
    vec<T> q = vec<T>::load(sequence + (length - 1) * stride + h * HS);
    int64_t first = blockIdx.x * keys, end = min(first + keys, length);
    float scale = 1.0f / sqrtf((float)HS);
    softmax_rows<T> r;
    for (; first < end; first += groups) {
        int64_t s = first + tid / lanes;
        float score = 0.0f;
        if (s < end) {
            vec<T> key = vec<T>::load(k + s * stride);
#pragma unroll
            for (int i = 0; i < size; i++) score = fmaf(to_float(q[i]), to_float(key[i]), score);
        }
        score = scale * group_sum(score, lanes);
        if (s < end) add_row(r, score, vec<T>::load(v + s * stride));
    }

    /* join the groups, in their order */
    float max = block_max(r.max, scratch), weight = expf(r.max - max); /* 0 for a group without keys */
    float total = block_sum(tid % lanes == 0 ? weight * r.total : 0.0f, scratch);
#pragma unroll
    for (int i = 0; i < size; i++) shared[tid * size + i] = weight * r.sum[i]; /* (groups, HS) */
    __syncthreads();
    float *head = parts + (int64_t)blockIdx.y * pieces * (HS + 2), *mine = head + blockIdx.x * (HS + 2);
    for (int c = tid; c < HS; c += THREADS) {
        float sum = 0.0f;
        for (int g = 0; g < groups; g++) sum += shared[g * HS + c];
        mine[c] = sum;
    }
    if (tid == 0) mine[HS] = max, mine[HS + 1] = total;
    if (!last_to_arrive(done + blockIdx.y, gridDim.x)) return;

    /* join the pieces, in their order; a thread computes the weight of one */
    const float *piece = head + tid * (HS + 2);
    float piece_max = tid < pieces ? piece[HS] : -FLT_MAX;
    max = block_max(piece_max, scratch);
    weight = expf(piece_max - max);
    total = block_sum(tid < pieces ? weight * piece[HS + 1] : 0.0f, scratch);
    shared[tid] = weight;
    __syncthreads();
    int64_t row = b * length + length - 1;
    for (int c = tid; c < HS; c += THREADS) {
        float sum = 0.0f;
        for (int p = 0; p < pieces; p++) sum = fmaf(shared[p], head[p * (HS + 2) + c], sum);
        out[row * C + h * HS + c] = from_float<T>(sum / total);
    }
    if (tid == 0) lse[blockIdx.y * length + length - 1] = max + logf(total);
}

/* --- launcher --- */

/* At most THREADS pieces, so that there is a thread for each. */
static int64_t keys_of_piece(int64_t length) { return max_i64(PIECE, ceil_div(length, THREADS)); }

extern "C" {

int64_t attn_forward_decode_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv,
                                 const struct tensor *prefix, const struct attn_rule *rule, int t0) {
    int64_t NH = rule->heads, heads = out->dim[0] * NH, length = out->dim[1], HS = out->dim[2] / NH;
    int64_t lanes = HS * (int64_t)dtype_size(out->dtype) / 16;
    bool groups = lanes * 16 == HS * (int64_t)dtype_size(out->dtype) && lanes <= WARP_SIZE &&
                  (lanes & (lanes - 1)) == 0;
    /* more heads than counters are blocks enough without pieces */
    bool can = attn_rule_is_plain(rule) && length - t0 == 1 &&
               heads <= OP_ZEROS / (int64_t)sizeof(unsigned) && groups && rows_of_vectors(qkv);
    return can ? heads * ceil_div(length, keys_of_piece(length)) * (HS + 2) * (int64_t)sizeof(float)
               : OP_UNSUPPORTED;
}

void attn_forward_decode(const struct op_env *env, struct tensor *out, struct tensor *lse,
                         const struct tensor *qkv, const struct tensor *prefix, const struct attn_rule *rule,
                         int t0) {
    int NH = rule->heads, NKV = rule->kv_heads;
    int64_t length = out->dim[1], keys = keys_of_piece(length);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({{grid_size(length, keys), (unsigned)(out->dim[0] * NH)}, THREADS, 0, env->stream},
               attn_forward_decode_kernel<T>, data_of<T>(out), f32(lse), data_of<T>(qkv),
               (float *)env->scratch, (unsigned *)env->zeros, length, NH, NKV, (int)(out->dim[2] / NH), keys);
    });
}
}
