/* Causal attention backward, in three steps; attn.cu has forward. The next step, tensor cores, is
 * production: "flash" in llmc/cuda/attn_flash.cu. The contract is in llmc/ops/ops.h.
 *
 * Of the softmax only lse was saved. Probabilities are computed again as exp(score - lse), and D = out .
 * dout replaces the sum in the softmax's derivative: dS = P (dP - D), with dP = dout v^T.
 *
 * dq sums over keys; dk and dv sum over queries. To add without atomics, dq has a kernel whose threads own
 * queries, dk and dv have one whose threads own keys, and both compute scores and dP. That makes 3 + 4
 * products where 5 would do, each of 103/2 GFLOP for GPT-2 124M (see attn.cu): 360 GFLOP per layer, 6.3 ms
 * at 57 TFLOP/s. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

constexpr int MAX_HS = 128, BLOCK = 256;

/* --- common to all steps --- */

template <int LANES> DEVICE_INLINE float team_sum(float v) { return LANES == 1 ? v : warp_sum(v); }

template <class T> struct operands {
    T *dqkv;             /* (B,T,3C) */
    const T *dout, *out; /* (B,T,C) */
    const float *lse;    /* (B,NH,T) */
    float *D;            /* (B,NH,T) */
    const T *qkv;        /* (B,T,3C) */
    int64_t length;      /* T */
    int NH, HS;

    /* Row t of head bh: of q, k or v (part 0, 1, 2), and of dout. */
    __device__ int64_t at(int64_t bh, int64_t t, int part) const {
        return ((bh / NH * length + t) * 3 + part) * NH * HS + bh % NH * HS;
    }
    __device__ int64_t at_out(int64_t bh, int64_t t) const {
        return (bh / NH * length + t) * NH * HS + bh % NH * HS;
    }
};

/* D = out . dout, one thread per row in every step: it is 1/300 of the work. */
template <class T> __global__ void __launch_bounds__(BLOCK) attn_backward_dots_kernel(operands<T> x) {
    int64_t t = (int64_t)blockIdx.x * BLOCK + threadIdx.x, bh = blockIdx.y;
    if (t >= x.length) return;
    const T *a = x.out + x.at_out(bh, t), *b = x.dout + x.at_out(bh, t);
    float sum = 0.0f;
    for (int c = 0; c < x.HS; c++) sum = fmaf(to_float(a[c]), to_float(b[c]), sum);
    x.D[bh * x.length + t] = sum;
}

/* --- step 1: one thread per row ---
 * A thread owns a query and walks the keys up to it, or owns a key and walks the queries from it on; the
 * second has two accumulators of HS columns. It is slow for the reasons of step 1 in attn.cu: accumulators
 * in local memory, loads from 32 sectors. 3 % of 57 TFLOP/s: 210 ms. */

/* --- step 2: one warp per row ---
 * The same kernels with a team of 32 lanes, as in step 2 of attn.cu: coalesced loads and accumulators in
 * registers, for a butterfly per score and per dP. 8 % of 57 TFLOP/s: 80 ms. */

template <class T, int LANES>
__global__ void __launch_bounds__(BLOCK) attn_backward_query_12_kernel(operands<T> x) {
    constexpr int EACH = MAX_HS / LANES;
    int lane = (int)threadIdx.x % LANES;
    int64_t t = (int64_t)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES, bh = blockIdx.y;
    if (t >= x.length) return;
    const T *q = x.qkv + x.at(bh, t, 0), *d = x.dout + x.at_out(bh, t);
    float scale = 1.0f / sqrtf((float)x.HS), lse = x.lse[bh * x.length + t], D = x.D[bh * x.length + t];
    float dq[EACH] = {};
    for (int64_t s = 0; s <= t; s++) {
        const T *key = x.qkv + x.at(bh, s, 1), *value = x.qkv + x.at(bh, s, 2);
        float score = 0.0f, dp = 0.0f;
        for (int k = 0; k < EACH; k++) {
            int c = lane + k * LANES;
            if (c >= x.HS) continue;
            score = fmaf(to_float(q[c]), to_float(key[c]), score);
            dp = fmaf(to_float(d[c]), to_float(value[c]), dp);
        }
        float ds = expf(scale * team_sum<LANES>(score) - lse) * (team_sum<LANES>(dp) - D);
        for (int k = 0; k < EACH; k++) {
            int c = lane + k * LANES;
            if (c < x.HS) dq[k] = fmaf(ds, to_float(key[c]), dq[k]);
        }
    }
    for (int k = 0; k < EACH; k++) {
        int c = lane + k * LANES;
        if (c < x.HS) x.dqkv[x.at(bh, t, 0) + c] = from_float<T>(dq[k] * scale);
    }
}

template <class T, int LANES>
__global__ void __launch_bounds__(BLOCK) attn_backward_key_12_kernel(operands<T> x) {
    constexpr int EACH = MAX_HS / LANES;
    int lane = (int)threadIdx.x % LANES;
    int64_t s = (int64_t)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES, bh = blockIdx.y;
    if (s >= x.length) return;
    const T *key = x.qkv + x.at(bh, s, 1), *value = x.qkv + x.at(bh, s, 2);
    float scale = 1.0f / sqrtf((float)x.HS), dk[EACH] = {}, dv[EACH] = {};
    for (int64_t t = s; t < x.length; t++) {
        const T *q = x.qkv + x.at(bh, t, 0), *d = x.dout + x.at_out(bh, t);
        float score = 0.0f, dp = 0.0f;
        for (int k = 0; k < EACH; k++) {
            int c = lane + k * LANES;
            if (c >= x.HS) continue;
            score = fmaf(to_float(q[c]), to_float(key[c]), score);
            dp = fmaf(to_float(d[c]), to_float(value[c]), dp);
        }
        float probability = expf(scale * team_sum<LANES>(score) - x.lse[bh * x.length + t]);
        float ds = probability * (team_sum<LANES>(dp) - x.D[bh * x.length + t]);
        for (int k = 0; k < EACH; k++) {
            int c = lane + k * LANES;
            if (c >= x.HS) continue;
            dk[k] = fmaf(ds, to_float(q[c]), dk[k]);
            dv[k] = fmaf(probability, to_float(d[c]), dv[k]);
        }
    }
    for (int k = 0; k < EACH; k++) {
        int c = lane + k * LANES;
        if (c >= x.HS) continue;
        x.dqkv[x.at(bh, s, 1) + c] = from_float<T>(dk[k] * scale);
        x.dqkv[x.at(bh, s, 2) + c] = from_float<T>(dv[k]);
    }
}

/* --- step 3: tiles in shared memory ---
 * A block owns 8 rows, one per warp, and copies 32 rows of the other side at a time into shared memory, so
 * these come from memory once for 8 rows. A lane computes the whole score and dP of one of them, which
 * leaves no butterfly at all. As forward, 1/6 of 57 TFLOP/s: 38 ms. */

constexpr int ROWS = 8, TILE = WARP_SIZE, EACH_3 = MAX_HS / WARP_SIZE;

/* sum[k] += sum over j of weight[j] * tile[j][column k of this lane]. Rows beyond the end are zeros. */
DEVICE_INLINE void add_weighted(float (&sum)[EACH_3], const float *weight, const float (*tile)[MAX_HS + 1],
                                int lane, int HS) {
#pragma unroll
    for (int k = 0; k < EACH_3; k++) {
        int c = lane + k * WARP_SIZE;
        if (c >= HS) continue;
        for (int j = 0; j < TILE; j++) sum[k] = fmaf(weight[j], tile[j][c], sum[k]);
    }
}

/* The block owns queries (tiles of k and v) or, with KEY, keys (tiles of q and dout). */
template <class T, bool KEY>
__global__ void __launch_bounds__(ROWS *WARP_SIZE) attn_backward_3_kernel(operands<T> x) {
    SHARED(float, own_a, [ROWS][MAX_HS]);
    SHARED(float, own_b, [ROWS][MAX_HS]);
    SHARED(float, tile_a, [TILE][MAX_HS + 1]); /* k or q: with own_a it makes the score */
    SHARED(float, tile_b, [TILE][MAX_HS + 1]); /* v or dout: with own_b it makes dP */
    SHARED(float, weight, [ROWS][TILE]);
    int lane = (int)threadIdx.x % WARP_SIZE, warp = (int)threadIdx.x / WARP_SIZE;
    int64_t bh = blockIdx.y, first_row = (int64_t)blockIdx.x * ROWS, row = first_row + warp,
            length = x.length;
    auto load = [&](float *a, float *b, int64_t r, bool key) {
        for (int c = lane; c < x.HS; c += WARP_SIZE) {
            a[c] = r < length ? to_float(x.qkv[x.at(bh, r, key ? 1 : 0) + c]) : 0.0f;
            b[c] =
                r >= length ? 0.0f : to_float(key ? x.qkv[x.at(bh, r, 2) + c] : x.dout[x.at_out(bh, r) + c]);
        }
    };
    load(own_a[warp], own_b[warp], row, KEY);
    float scale = 1.0f / sqrtf((float)x.HS), da[EACH_3] = {}, db[EACH_3] = {}; /* dq, or dk and dv */
    int64_t begin = KEY ? first_row / TILE * TILE : 0, end = KEY ? length : min(first_row + ROWS, length);
    for (int64_t first = begin; first < end; first += TILE) {
        for (int i = warp; i < TILE; i += ROWS) load(tile_a[i], tile_b[i], first + i, !KEY);
        __syncthreads();
        int64_t other = first + lane, t = KEY ? other : row, s = KEY ? row : other;
        float score = 0.0f, dp = 0.0f, probability = 0.0f, ds = 0.0f;
        for (int c = 0; c < x.HS; c++) {
            score = fmaf(own_a[warp][c], tile_a[lane][c], score);
            dp = fmaf(own_b[warp][c], tile_b[lane][c], dp);
        }
        if (s <= t && t < length) {
            probability = expf(scale * score - x.lse[bh * length + t]);
            ds = probability * (dp - x.D[bh * length + t]);
        }
        weight[warp][lane] = ds;
        __syncwarp();
        add_weighted(da, weight[warp], tile_a, lane, x.HS);
        if (KEY) {
            __syncwarp(); /* all lanes have read the weights */
            weight[warp][lane] = probability;
            __syncwarp();
            add_weighted(db, weight[warp], tile_b, lane, x.HS);
        }
        __syncthreads();
    }
    if (row >= length) return;
#pragma unroll
    for (int k = 0; k < EACH_3; k++) {
        int c = lane + k * WARP_SIZE;
        if (c >= x.HS) continue;
        x.dqkv[x.at(bh, row, KEY ? 1 : 0) + c] = from_float<T>(da[k] * scale);
        if (KEY) x.dqkv[x.at(bh, row, 2) + c] = from_float<T>(db[k]);
    }
}

/* --- launchers --- */

static int64_t need(struct tensor *dqkv, const struct tensor *dout, const struct tensor *out,
                    const struct tensor *lse, const struct tensor *qkv, const struct tensor *prefix,
                    const struct attn_rule *rule) {
    int64_t NH = rule->heads;
    bool takes = attn_rule_is_plain(rule) && rule->kv_heads == NH && out->dim[2] / NH <= MAX_HS &&
                 out->dim[0] * NH < 65536;
    return takes ? tensor_count(lse) * (int64_t)sizeof(float) : OP_UNSUPPORTED;
}

template <int STEP>
static void backward(const struct op_env *env, struct tensor *dqkv, const struct tensor *dout,
                     const struct tensor *out, const struct tensor *lse, const struct tensor *qkv,
                     const struct tensor *prefix, const struct attn_rule *rule) {
    int NH = rule->heads;
    int64_t length = out->dim[1];
    unsigned heads = (unsigned)(out->dim[0] * NH);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        operands<T> x = {data_of<T>(dqkv),       data_of<T>(dout), data_of<T>(out), f32(lse),
                         (float *)env->scratch,  data_of<T>(qkv),  length,          NH,
                         (int)(out->dim[2] / NH)};
        auto query = STEP == 1   ? attn_backward_query_12_kernel<T, 1>
                     : STEP == 2 ? attn_backward_query_12_kernel<T, WARP_SIZE>
                                 : attn_backward_3_kernel<T, false>;
        auto key = STEP == 1   ? attn_backward_key_12_kernel<T, 1>
                   : STEP == 2 ? attn_backward_key_12_kernel<T, WARP_SIZE>
                               : attn_backward_3_kernel<T, true>;
        unsigned blocks = grid_size(length, STEP == 1 ? BLOCK : BLOCK / WARP_SIZE);
        launch({{grid_size(length, BLOCK), heads}, BLOCK, 0, env->stream}, attn_backward_dots_kernel<T>, x);
        launch({{blocks, heads}, BLOCK, 0, env->stream}, query, x);
        launch({{blocks, heads}, BLOCK, 0, env->stream}, key, x);
    });
}

/* --- variants --- */

extern "C" const struct attn_backward_variant ladder_attn_backward[] = {
    {"3_shared_tile", backward<3>, need},
    {"2_warp_per_row", backward<2>, need},
    {"1_thread_per_row", backward<1>, need},
    {}};
