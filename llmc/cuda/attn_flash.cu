/* Attention forward on tensor cores: scaled dot products, also with a soft cap, under any mask and
 * within documents, for bf16 and head sizes that are a multiple of 16, up to 128. Contract in ops.h;
 * attn_flash.cuh explains the tiles. Backward is in attn_flash_backward.cu.
 *
 * A block takes a tile of queries and walks the tiles of keys and values that some of them see, with an
 * online softmax. Scores and probabilities stay in registers. */
#include "llmc/cuda/attn_flash.cuh"

/* --- tiles --- */

/* Rows of a block are WARPS warps of M tiles of 16 rows; STEP is how many rows of the other side a step
 * takes. Registers, 255 per thread, limit both: M*HS/2 for each accumulator, M*STEP/2 for each score. With
 * M = 2 an ldmatrix of the other side feeds twice as many mma: an ldmatrix of 512 bytes takes shared memory
 * 4 clocks and feeds 2*M mma of 1.6 clocks each. RESIDENT keeps the fragments of the queries in registers. */
template <int HS> struct forward_tile {
    static constexpr int M = 2, ROWS = WARPS * 16 * M, STEP = HS <= 64 ? 64 : 32;
    static constexpr bool RESIDENT = HS <= 64;
};

/* --- softmax: online, base 2 --- */

/* A thread's 2*M rows. The maximum is that of the whole row, the sum that of the thread's own columns. */
template <int M> struct row_softmax { float max[M][2], sum[M][2]; };

/* The maximum over the four lanes that share a row. */
DEVICE_INLINE float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 1));
    return fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 2));
}

/* Turns scores into probabilities relative to the new maximum, and rescales `acc` and the sums to it.
 * `scale` includes log2(e). Under a causal mask every query sees key 0, so after the first step no maximum is
 * -infinity; under another one a query may see none of a tile's keys. */
template <flash_kind KIND, int HS, int M, int STEP>
DEVICE_INLINE void softmax_step(row_softmax<M> &state, accumulator<M, STEP> &s, accumulator<M, HS> &acc,
                                float scale) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float max = state.max[m][h];
#pragma unroll
            for (int n = 0; n < STEP / 8; n++) max = fmaxf(max, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            max = quad_max(max);
            float finite = KIND != PLAIN && max == -INFINITY ? 0.0f : max;
            float shrink = fast_exp2((state.max[m][h] - finite) * scale), base = finite * scale, sum = 0.0f;
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++)
                    sum += s[m][n][i] = fast_exp2(fmaf(s[m][n][i], scale, -base));
            state.max[m][h] = max;
            state.sum[m][h] = state.sum[m][h] * shrink + sum;
#pragma unroll
            for (int n = 0; n < HS / 8; n++) acc[m][n][2 * h] *= shrink, acc[m][n][2 * h + 1] *= shrink;
        }
}

/* Caps the products q.k. */
template <int M, int STEP> DEVICE_INLINE void bend_all(accumulator<M, STEP> &s, float cap) {
    float inverse_cap = 1.0f / cap;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) bend(s[m][n][i], cap, inverse_cap);
}

/* --- forward --- */

/* Grid: tiles of queries, from the end, which under a causal mask puts those with the most keys first; heads
 * of all sequences. */
template <int HS, flash_kind KIND>
__global__ void __launch_bounds__(THREADS, 2)
    attn_forward_flash_kernel(bf16 *out, float *lse, const bf16 *qkv, int length, int NH, int NKV, int t0,
                              flash_rule rule) {
    using tile = forward_tile<HS>;
    constexpr int M = tile::M, STEP = tile::STEP;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared;                               /* (ROWS,HS) */
    bf16 *keys = queries + tile_elements<HS>(tile::ROWS); /* (2,STEP,HS) */
    bf16 *values = keys + 2 * tile_elements<HS>(STEP);    /* (2,STEP,HS) */
    head_place head = place_of_head((int)blockIdx.y, length, NH, NKV, HS);
    int first_query = t0 + (int)(gridDim.x - 1 - blockIdx.x) * tile::ROWS;
    int warp = (int)threadIdx.x / WARP_SIZE, first_row = first_query + warp * 16 * M; /* of this warp */
    sequence_mask<KIND> mask(rule, head.b, length);
    int first_step = mask.keys(first_query).first / STEP;
    int steps = mask.keys(min(first_query + tile::ROWS, length) - 1).last / STEP + 1;
    float scale = rule.factor;
    key_walk<HS, STEP> walk = {qkv + head.k, qkv + head.v, head.stride, length, steps, keys, values};

    copy_tile<HS, tile::ROWS>(queries, qkv + head.q, head.stride, first_query, length);
    walk.copy(first_step);

    own_rows<HS, M, tile::RESIDENT> own(queries, warp * 16 * M);
    accumulator<M, HS> acc;
    clear<M, HS>(acc);
    row_softmax<M> state;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) state.max[m][h] = -INFINITY, state.sum[m][h] = 0.0f;

    for (int step = first_step; step < steps; step++) {
        int first_key = step * STEP;
        walk.arrive(step);
        if (step == first_step) own.open();
        if (mask.hides_all(first_row, 16 * M, first_key, STEP)) continue;
        accumulator<M, STEP> s;
        multiply_transposed<HS, M, STEP>(s, own, walk.key_tile(step));
        if constexpr (KIND == CAPPED) bend_all<M, STEP>(s, rule.cap);
        if (mask.hides_some(first_row, 16 * M, first_key, STEP))
            mask_keys<M, STEP>(s, mask, first_row, first_key);
        softmax_step<KIND, HS, M, STEP>(state, s, acc, scale * LOG2_E);
        multiply_add<HS, M, STEP>(acc, s, walk.value_tile(step));
    }

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = quad_sum(state.sum[m][h]), inverse = 1.0f / sum;
#pragma unroll
            for (int n = 0; n < HS / 8; n++) acc[m][n][2 * h] *= inverse, acc[m][n][2 * h + 1] *= inverse;
            int t = first_row + row_of(m, h);
            if (threadIdx.x % 4 == 0 && t < length)
                lse[head.statistic + t] = state.max[m][h] * scale + logf(sum);
        }
    /* only this warp reads its rows of `queries` */
    store_rows<HS, M>(out + head.out, head.C, first_row, length, acc,
                      queries + tile_elements<HS>(warp * 16 * M));
}

/* --- launcher --- */

int64_t attn_forward_flash_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv,
                                const struct tensor *prefix, const struct attn_rule *rule, int t0) {
    return flash_takes(out, qkv, rule) ? 0 : OP_UNSUPPORTED;
}

void attn_forward_flash(const struct op_env *env, struct tensor *out, struct tensor *lse,
                        const struct tensor *qkv, const struct tensor *prefix, const struct attn_rule *rule,
                        int t0) {
    int NH = rule->heads, NKV = rule->kv_heads;
    int64_t length = out->dim[1];
    unsigned heads = (unsigned)(out->dim[0] * NH);
    with_kind(rule, out->dim[2] / NH, [&](auto kind, auto head_size) {
        constexpr int HS = decltype(head_size)::value;
        constexpr flash_kind KIND = decltype(kind)::value;
        using tile = forward_tile<HS>;
        size_t smem = sizeof(bf16) * (tile_elements<HS>(tile::ROWS) + 4 * tile_elements<HS>(tile::STEP));
        launch({{grid_size(length - t0, tile::ROWS), heads}, THREADS, smem, env->stream},
               attn_forward_flash_kernel<HS, KIND>, data_of<bf16>(out), f32(lse), data_of<bf16>(qkv),
               (int)length, NH, NKV, t0, flash_rule_on(out, prefix, rule));
    });
}
