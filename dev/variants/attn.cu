/* Causal attention forward, in three steps; backward is in attn_backward.cu. The step after them, tensor
 * cores, is production: "flash" in llmc/cuda/attn_flash.cu. Contract in ops.h.
 *
 * GPT-2 124M, 64 sequences of T = 1024, 12 heads of HS = 64: two products of T*T/2 by HS, 4 * T*T/2 * HS *
 * 768 heads = 103 GFLOP a layer. At the 57 TFLOP/s that an H200 has without tensor cores: 1.8 ms; at the 350
 * that production aims at: 0.29 ms. Storing the scores would write and read 0.8 GB a layer in bf16 twice,
 * 0.75 ms for nothing: all steps keep a running maximum and sum instead (Milakov & Gimelshein 2018, arXiv
 * 1805.02867). Order: steps 1 and 2, step 3, launchers, rows. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

constexpr int MAX_HS = 128, BLOCK = 256;

/* --- steps 1 and 2: a thread a query, a warp a query ---
 * The same kernel for a team of LANES threads that share a query's columns.
 * Step 1: one thread. Its sums, HS floats, do not fit registers when HS is only known at run time: they live
 * in local memory and are read and written for every key. The lanes of a warp are at the same key (a
 * broadcast) but at 32 queries, 4608 bytes apart. Predicted: for each column of each key a load of q from 32
 * sectors (8 clocks of L1), a load and a store of the sum, for 2 multiply-adds of 0.25 clocks: 3 % of 57
 * TFLOP/s, 60 ms. Step 2, against step 1: 32 lanes a query. Neighbouring lanes read neighbouring columns, the
 * sums are 4 registers a lane, and a score costs five exchanges between lanes. Predicted: per key 2 + 2
 * loads, 10 instructions of exchange and about 10 of softmax for 2 * 2 multiply-adds a lane: 8 % of 57
 * TFLOP/s, 23 ms. Measured: not yet measured, either. */

template <int LANES> DEVICE_INLINE float team_sum(float v) { return LANES == 1 ? v : warp_sum(v); }

template <class T, int LANES>
__global__ void __launch_bounds__(BLOCK)
    attn_forward_12_kernel(T *out, float *lse, const T *qkv, int64_t length, int NH, int HS, int64_t t0) {
    constexpr int EACH = MAX_HS / LANES; /* columns a lane */
    int lane = (int)threadIdx.x % LANES, h = (int)blockIdx.y % NH;
    int64_t b = blockIdx.y / NH, t = t0 + (int64_t)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES;
    if (t >= length) return; /* the whole team */
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
        /* what has been summed so far was relative to the old maximum; exp(-inf) = 0 at the first key */
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
 * Against step 2: 8 warps, 8 neighbouring queries, take 32 keys at a time from shared memory. A lane makes
 * the score of one key by itself, so that maximum and sum of 32 scores take one butterfly each in place of
 * 32, and a key comes from memory once for 8 queries. Rows have one float more than columns, so that 32 lanes
 * at 32 rows use 32 banks. Predicted: two loads from shared memory a multiply-add for the scores (the query's
 * is a broadcast), one for the values: about 1/6 of 57 TFLOP/s, 11 ms. Measured: not yet measured. What
 * follows is what attn_flash.cu does: 64 queries a tile, both products on tensor cores with the probabilities
 * staying in registers between them, tiles on their way while others are in use. */

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
        if (first <= t) { /* the whole warp */
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
        __syncthreads(); /* before the next tile overwrites this one */
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

static int64_t need(struct tensor *out, struct tensor *lse, const struct tensor *qkv, int NH, int t0) {
    bool takes = same_float_dtype(out, qkv) && out->dim[2] / NH <= MAX_HS && out->dim[0] * NH < 65536;
    return takes ? 0 : OP_UNSUPPORTED;
}

template <int STEP>
static void forward(const struct op_env *env, struct tensor *out, struct tensor *lse,
                    const struct tensor *qkv, int NH, int t0) {
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

/* --- rows --- */

extern "C" const struct attn_forward_variant ladder_attn_forward[] = {
    {"3_shared_tile", forward<3>, need},
    {"2_warp_per_query", forward<2>, need},
    {"1_thread_per_query", forward<1>, need},
    {}};
