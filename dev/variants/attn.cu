/* Causal attention forward, in three steps; attn_backward.cu has backward. The next step, tensor cores, is
 * production: "flash" in llmc/cuda/attn_flash.cu. The contract is in llmc/ops/ops.h.
 *
 * GPT-2 124M with 64 sequences of T = 1024 has 64 * 12 heads of HS = 64 columns. The two products, query
 * times key and probability times value, need 4 * T*T/2 * HS FLOP per head, 103 GFLOP per layer: 1.8 ms at
 * the 57 TFLOP/s that an H200 does without tensor cores.
 *
 * No step stores the (T,T) scores. Writing and reading them, and the probabilities, would move 3.2 GB per
 * layer, 0.75 ms for nothing. All steps instead keep a running maximum and sum per query ("online softmax",
 * Milakov & Gimelshein 2018, arXiv 1805.02867). */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

constexpr int MAX_HS = 128, BLOCK = 256;

/* --- step 1: one thread per query ---
 * A thread walks the keys up to its own position. Its accumulator has HS floats, too many for registers
 * when HS is known only at run time, so it lives in local memory and is read and written for every key. The
 * lanes of a warp are at the same key, which is a broadcast, but their queries are 4608 bytes apart: each
 * column of q takes a load from 32 sectors, 8 clocks of L1, for two multiply-adds of a quarter clock each.
 * 3 % of 57 TFLOP/s: 60 ms. */

/* --- step 2: one warp per query ---
 * The same kernel with a team of 32 lanes. Neighbouring lanes read neighbouring columns, so the loads
 * coalesce, and an accumulator of 4 floats per lane fits registers. A score now costs a butterfly of five
 * shuffles. Per key a lane spends 4 loads, 10 instructions on the butterfly and 10 on the softmax for 4
 * multiply-adds: 8 % of 57 TFLOP/s, 23 ms. */

template <int LANES> DEVICE_INLINE float team_sum(float v) { return LANES == 1 ? v : warp_sum(v); }

template <class T, int LANES>
__global__ void __launch_bounds__(BLOCK)
    attn_forward_12_kernel(T *out, float *lse, const T *qkv, int64_t length, int NH, int HS, int64_t t0) {
    constexpr int EACH = MAX_HS / LANES; /* columns per lane */
    int lane = (int)threadIdx.x % LANES, h = (int)blockIdx.y % NH;
    int64_t b = blockIdx.y / NH, t = t0 + (int64_t)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES;
    if (t >= length) return; /* all lanes of the team have the same t */
    int64_t C = (int64_t)NH * HS, stride = 3 * C;
    const T *q = qkv + (b * length + t) * stride + h * HS, *keys = qkv + b * length * stride + C + h * HS;
    float scale = 1.0f / sqrtf((float)HS), max = -INFINITY, total = 0.0f, sum[EACH] = {};
    for (int64_t s = 0; s <= t; s++) {
        const T *key = keys + s * stride, *value = key + C;
        float score = 0.0f;
        for (int k = 0; k < EACH; k++) {
            int c = lane + k * LANES;
            if (c < HS) score = fmaf(to_float(q[c]), to_float(key[c]), score);
        }
        score = scale * team_sum<LANES>(score);
        /* rescale what was summed relative to the old maximum; at the first key exp(-inf) is 0 */
        float new_max = fmaxf(max, score), shrink = expf(max - new_max), probability = expf(score - new_max);
        total = total * shrink + probability;
        for (int k = 0; k < EACH; k++) {
            int c = lane + k * LANES;
            if (c < HS) sum[k] = fmaf(probability, to_float(value[c]), sum[k] * shrink);
        }
        max = new_max;
    }
    for (int k = 0; k < EACH; k++) {
        int c = lane + k * LANES;
        if (c < HS) out[(b * length + t) * C + h * HS + c] = from_float<T>(sum[k] / total);
    }
    if (lane == 0) lse[(b * NH + h) * length + t] = max + logf(total);
}

/* --- step 3: tiles of keys in shared memory ---
 * A block takes 8 neighbouring queries, one per warp, and copies 32 keys and values at a time into shared
 * memory, so a key comes from memory once for 8 queries. A lane computes the whole score of one key, and
 * the maximum and the sum of 32 scores take one butterfly each in place of 32. A row of the tile has one
 * float more than HS columns, so that 32 lanes at 32 rows use 32 banks. A multiply-add needs one or two
 * loads from shared memory, which serves 32 lanes per clock: 1/6 of 57 TFLOP/s, 11 ms. Production goes on
 * from here: 64 queries per tile, both products on tensor cores, probabilities that stay in registers
 * between them, and copies of the next tile while this one is in use. */

constexpr int QUERIES = 8, KEYS = WARP_SIZE;

template <class T>
__global__ void __launch_bounds__(QUERIES *WARP_SIZE)
    attn_forward_3_kernel(T *out, float *lse, const T *qkv, int64_t length, int NH, int HS, int64_t t0) {
    SHARED(float, query, [QUERIES][MAX_HS]);
    SHARED(float, key, [KEYS][MAX_HS + 1]);
    SHARED(float, value, [KEYS][MAX_HS]);
    SHARED(float, weight, [QUERIES][KEYS]);
    int lane = (int)threadIdx.x % WARP_SIZE, warp = (int)threadIdx.x / WARP_SIZE, h = (int)blockIdx.y % NH;
    int64_t b = blockIdx.y / NH, first_t = t0 + (int64_t)blockIdx.x * QUERIES, t = first_t + warp;
    int64_t C = (int64_t)NH * HS, stride = 3 * C, last_t = min(first_t + QUERIES, length) - 1;
    const T *rows = qkv + b * length * stride + h * HS;
    for (int c = lane; c < HS; c += WARP_SIZE)
        query[warp][c] = t < length ? to_float(rows[t * stride + c]) : 0.0f;
    float scale = 1.0f / sqrtf((float)HS), max = -INFINITY, total = 0.0f, sum[MAX_HS / WARP_SIZE] = {};
    for (int64_t first = 0; first <= last_t; first += KEYS) {
        for (int i = warp; i < KEYS; i += QUERIES)
            for (int c = lane; c < HS; c += WARP_SIZE) {
                const T *row = rows + (first + i) * stride + c;
                key[i][c] = first + i < length ? to_float(row[C]) : 0.0f;
                value[i][c] = first + i < length ? to_float(row[2 * C]) : 0.0f;
            }
        __syncthreads();
        if (first <= t) { /* the same for all lanes of the warp */
            float score = 0.0f;
            for (int c = 0; c < HS; c++) score = fmaf(query[warp][c], key[lane][c], score);
            score = first + lane <= t ? scale * score : -INFINITY;
            float new_max = fmaxf(max, warp_max(score)), shrink = expf(max - new_max);
            float probability = expf(score - new_max);
            total = total * shrink + warp_sum(probability);
            max = new_max;
            weight[warp][lane] = probability;
            __syncwarp();
#pragma unroll
            for (int k = 0; k < MAX_HS / WARP_SIZE; k++) {
                int c = lane + k * WARP_SIZE;
                if (c >= HS) continue;
                sum[k] *= shrink;
                for (int j = 0; j < KEYS; j++) sum[k] = fmaf(weight[warp][j], value[j][c], sum[k]);
            }
        }
        __syncthreads(); /* all warps are done before the next tile overwrites this one */
    }
    if (t >= length) return;
#pragma unroll
    for (int k = 0; k < MAX_HS / WARP_SIZE; k++) {
        int c = lane + k * WARP_SIZE;
        if (c < HS) out[(b * length + t) * C + h * HS + c] = from_float<T>(sum[k] / total);
    }
    if (lane == 0) lse[(b * NH + h) * length + t] = max + logf(total);
}

/* --- launchers --- */

static int64_t need(struct tensor *out, struct tensor *lse, const struct tensor *qkv,
                    const struct tensor *prefix, const struct attn_rule *rule, int t0) {
    int64_t NH = rule->heads;
    bool takes = attn_rule_is_plain(rule) && rule->kv_heads == NH && out->dim[2] / NH <= MAX_HS &&
                 out->dim[0] * NH < 65536;
    return takes ? 0 : OP_UNSUPPORTED;
}

template <int STEP>
static void forward(const struct op_env *env, struct tensor *out, struct tensor *lse,
                    const struct tensor *qkv, const struct tensor *prefix, const struct attn_rule *rule,
                    int t0) {
    int NH = rule->heads;
    int64_t rows = out->dim[1] - t0;
    int HS = (int)(out->dim[2] / NH), per_block = STEP == 1 ? BLOCK : QUERIES;
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        auto kernel = STEP == 1   ? attn_forward_12_kernel<T, 1>
                      : STEP == 2 ? attn_forward_12_kernel<T, WARP_SIZE>
                                  : attn_forward_3_kernel<T>;
        launch({{grid_size(rows, per_block), (unsigned)(out->dim[0] * NH)}, BLOCK, 0, env->stream}, kernel,
               data_of<T>(out), f32(lse), data_of<T>(qkv), out->dim[1], NH, HS, (int64_t)t0);
    });
}

/* --- variants --- */

extern "C" const struct attn_forward_variant ladder_attn_forward[] = {
    {"3_shared_tile", forward<3>, need},
    {"2_warp_per_query", forward<2>, need},
    {"1_thread_per_query", forward<1>, need},
    {}};
