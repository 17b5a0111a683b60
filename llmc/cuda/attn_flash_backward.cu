/* Attention backward on tensor cores: scaled dot products, also with a soft cap, under any mask and
 * within documents, for bf16 and head sizes that are a multiple of 16, up to 128. Contract in ops.h;
 * attn_flash.cuh explains the tiles.
 *
 * There are two kernels. For dq a block takes a tile of queries and walks the tiles of keys that some of them
 * see. For dk and dv it takes a tile of keys and walks the tiles of queries that see some of them, with the
 * scores transposed (keys are rows), so that P^T and dS^T leave one mma in the registers where the next
 * one takes them. P = exp(S - lse) is computed twice, so a pair of tiles takes 7 products where 5 would do.
 * In return every sum stays in the registers of one warp, in a fixed order: there are no atomics, and every
 * run gives the same bits. */
#include "llmc/cuda/attn_flash.cuh"

/* --- tiles --- */

/* Rows of a block are WARPS warps of M tiles of 16 rows; STEP is how many rows of the other side a step
 * takes. Registers, 255 per thread, limit both: M*HS/2 for each accumulator, M*STEP/2 for each score.
 * RESIDENT keeps the fragments of the block's own rows in registers. */
template <int HS> struct dq_tile {
    static constexpr int M = 1, ROWS = WARPS * 16 * M, STEP = HS <= 64 ? 64 : 32;
    static constexpr bool RESIDENT = false;
};
template <int HS> struct dkv_tile {
    static constexpr int M = 1, ROWS = WARPS * 16 * M, STEP = HS <= 64 ? 64 : 32;
    static constexpr bool RESIDENT = HS <= 64;
};

/* --- dq, and D for the kernel after it --- */

/* D = sum over the columns of out*dout, for the thread's rows. dout comes from its tile in shared memory,
 * out from global memory. */
template <int HS, int M>
DEVICE_INLINE void dot_rows(float (&D)[M][2], const bf16 *dout_tile, const bf16 *out, int64_t stride,
                            int first, int limit, int warp_row) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = row_of(m, h);
            float sum = 0.0f;
            if (first + r < limit)
#pragma unroll
                for (int n = 0; n < HS / 8; n++) {
                    const bf16 *out_row = out + (first + r) * stride;
                    const bf16 *dout_row = dout_tile + (warp_row + r) * PITCH<HS>;
                    __nv_bfloat162 o = *reinterpret_cast<const __nv_bfloat162 *>(out_row + column_of(n, 0));
                    __nv_bfloat162 d = *reinterpret_cast<const __nv_bfloat162 *>(dout_row + column_of(n, 0));
                    sum = fmaf(to_float(o.x), to_float(d.x), fmaf(to_float(o.y), to_float(d.y), sum));
                }
            D[m][h] = quad_sum(sum);
        }
}

template <int HS, flash_kind KIND>
__global__ void __launch_bounds__(THREADS, 2)
    attn_backward_dq_flash_kernel(bf16 *dqkv, float *D_out, const bf16 *dout, const bf16 *out,
                                  const float *lse, const bf16 *qkv, int length, int NH, int NKV,
                                  flash_rule rule) {
    using tile = dq_tile<HS>;
    constexpr int M = tile::M, STEP = tile::STEP;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared;                                /* (ROWS,HS) */
    bf16 *douts = queries + tile_elements<HS>(tile::ROWS); /* (ROWS,HS) */
    bf16 *keys = douts + tile_elements<HS>(tile::ROWS);    /* (2,STEP,HS) */
    bf16 *values = keys + 2 * tile_elements<HS>(STEP);     /* (2,STEP,HS) */
    head_place head = place_of_head((int)blockIdx.y, length, NH, NKV, HS);
    int first_query = (int)(gridDim.x - 1 - blockIdx.x) * tile::ROWS;
    int warp = (int)threadIdx.x / WARP_SIZE, first_row = first_query + warp * 16 * M; /* of this warp */
    sequence_mask<KIND> mask(rule, head.b, length);
    int first_step = mask.keys(first_query).first / STEP;
    int steps = mask.keys(min(first_query + tile::ROWS, length) - 1).last / STEP + 1;
    float scale = rule.factor, inverse_cap = 1.0f / rule.cap;
    key_walk<HS, STEP> walk = {qkv + head.k, qkv + head.v, head.stride, length, steps, keys, values};

    copy_tile<HS, tile::ROWS>(queries, qkv + head.q, head.stride, first_query, length);
    copy_tile<HS, tile::ROWS>(douts, dout + head.out, head.C, first_query, length);
    walk.copy(first_step);

    own_rows<HS, M, tile::RESIDENT> own_query(queries, warp * 16 * M), own_dout(douts, warp * 16 * M);
    accumulator<M, HS> dq;
    clear<M, HS>(dq);
    float base[M][2], D[M][2]; /* base: lse in units of log2 */
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int t = first_row + row_of(m, h);
            base[m][h] = t < length ? lse[head.statistic + t] * LOG2_E : 0.0f;
        }

    for (int step = first_step; step < steps; step++) {
        int first_key = step * STEP;
        walk.arrive(step);
        if (step == first_step) {
            own_query.open();
            own_dout.open();
            dot_rows<HS, M>(D, douts, out + head.out, head.C, first_row, length, warp * 16 * M);
        }
        if (mask.hides_all(first_row, 16 * M, first_key, STEP)) continue;
        accumulator<M, STEP> s, dp;
        multiply_transposed<HS, M, STEP>(s, own_query, walk.key_tile(step));
        if (mask.hides_some(first_row, 16 * M, first_key, STEP)) /* a hidden key bends to slope 0 */
            mask_keys<M, STEP>(s, mask, first_row, first_key);
        multiply_transposed<HS, M, STEP>(dp, own_dout, walk.value_tile(step));
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float slope = KIND == CAPPED ? bend(s[m][n][i], rule.cap, inverse_cap) : 1.0f;
                    float p = fast_exp2(fmaf(s[m][n][i], scale * LOG2_E, -base[m][i / 2]));
                    s[m][n][i] = p * (dp[m][n][i] - D[m][i / 2]) * slope;
                }
        multiply_add<HS, M, STEP>(dq, s, walk.key_tile(step));
    }

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int t = first_row + row_of(m, h);
            if (threadIdx.x % 4 == 0 && t < length) D_out[head.statistic + t] = D[m][h];
        }
    scale_by<M, HS>(dq, scale);
    store_rows<HS, M>(dqkv + head.q, head.stride, first_row, length, dq,
                      queries + tile_elements<HS>(warp * 16 * M));
}

/* --- dk and dv --- */

/* Of a query: lse in units of log2, D, and the keys that it sees. Queries beyond the end have zeros for q and
 * dout, which add nothing whatever P is. */
struct plain_statistic {
    float base, D;
    __device__ __forceinline__ void set_keys(const stretch &) {}
    __device__ __forceinline__ stretch keys(int query) const { return {0, query}; }
};
struct masked_statistic {
    float base, D;
    stretch seen;
    __device__ __forceinline__ void set_keys(const stretch &keys) { seen = keys; }
    __device__ __forceinline__ stretch keys(int) const { return seen; }
};
template <flash_kind KIND>
using query_statistic = std::conditional_t<KIND == PLAIN, plain_statistic, masked_statistic>;

template <flash_kind KIND>
DEVICE_INLINE query_statistic<KIND> load_statistic(const float *lse, const float *D, int t,
                                                   const sequence_mask<KIND> &mask) {
    query_statistic<KIND> s = {};
    if (t < mask.length) s.base = lse[t] * LOG2_E, s.D = D[t];
    s.set_keys(mask.keys(t));
    return s;
}

/* Grid: tiles of keys, in their order, which under a causal mask puts those with the most queries first;
 * heads of keys of all sequences. A block walks the tiles of queries of one query head after another, in one
 * sequence of turns. */
template <int HS, flash_kind KIND>
__global__ void __launch_bounds__(THREADS, 2)
    attn_backward_dkv_flash_kernel(bf16 *dqkv, const bf16 *dout, const float *lse, const float *D,
                                   const bf16 *qkv, int length, int NH, int NKV, flash_rule rule) {
    using tile = dkv_tile<HS>;
    constexpr int M = tile::M, STEP = tile::STEP;
    static_assert(STEP <= THREADS, "a thread fetches the statistic of one query");
    SHARED_ALIGNED(query_statistic<KIND>, statistics, [2][STEP], 16);
    DYNAMIC_SHARED(bf16, shared);
    bf16 *keys = shared;                                    /* (ROWS,HS) */
    bf16 *values = keys + tile_elements<HS>(tile::ROWS);    /* (ROWS,HS) */
    bf16 *queries = values + tile_elements<HS>(tile::ROWS); /* (2,STEP,HS) */
    bf16 *douts = queries + 2 * tile_elements<HS>(STEP);    /* (2,STEP,HS) */
    int group = NH / NKV; /* query heads, of which blockIdx.y * group is the first */
    head_place head = place_of_head((int)blockIdx.y * group, length, NH, NKV, HS);
    const bf16 *k = qkv + head.k, *v = qkv + head.v; /* (T,HS) each */
    /* of the query head whose tiles are copied: (T,HS) each, and T statistics */
    const bf16 *q = qkv + head.q, *d = dout + head.out;
    const float *lse_head = lse + head.statistic, *D_head = D + head.statistic;
    int tid = (int)threadIdx.x, warp = tid / WARP_SIZE;
    int first_key = (int)blockIdx.x * tile::ROWS, first_row = first_key + warp * 16 * M; /* of this warp */
    sequence_mask<KIND> mask(rule, head.b, length);
    stretch seen_by = mask.queries(first_key, min(first_key + tile::ROWS, length) - 1);
    int first_step = seen_by.first / STEP, steps = seen_by.last / STEP + 1;
    int turns = group * (steps - first_step);
    float scale = rule.factor, inverse_cap = 1.0f / rule.cap;

    copy_tile<HS, tile::ROWS>(keys, k, head.stride, first_key, length);
    copy_tile<HS, tile::ROWS>(values, v, head.stride, first_key, length);
    copy_tile<HS, STEP>(queries, q, head.stride, first_step * STEP, length);
    copy_tile<HS, STEP>(douts, d, head.C, first_step * STEP, length);
    cp_async_commit();
    if (tid < STEP) statistics[0][tid] = load_statistic(lse_head, D_head, first_step * STEP + tid, mask);

    own_rows<HS, M, tile::RESIDENT> own_key(keys, warp * 16 * M), own_value(values, warp * 16 * M);
    accumulator<M, HS> dk, dv;
    clear<M, HS>(dk);
    clear<M, HS>(dv);

    for (int turn = 0, first_query = first_step * STEP; turn < turns; turn++) {
        const bf16 *query_tile = queries + turn % 2 * tile_elements<HS>(STEP);
        const bf16 *dout_tile = douts + turn % 2 * tile_elements<HS>(STEP);
        int next_query = first_query + STEP;
        if (next_query >= seen_by.last + 1) { /* the next query head */
            next_query = first_step * STEP;
            q += HS, d += HS, lse_head += length, D_head += length;
        }
        query_statistic<KIND> next_statistic = {};
        cp_async_wait<0>();
        __syncthreads(); /* this step's tiles have arrived, and no warp reads the previous ones */
        if (turn + 1 < turns) {
            int next = (turn + 1) % 2 * tile_elements<HS>(STEP);
            copy_tile<HS, STEP>(queries + next, q, head.stride, next_query, length);
            copy_tile<HS, STEP>(douts + next, d, head.C, next_query, length);
            cp_async_commit();
            if (tid < STEP) next_statistic = load_statistic(lse_head, D_head, next_query + tid, mask);
        }
        if (turn == 0) {
            own_key.open();
            own_value.open();
        }
        if (!mask.hides_all(first_query, STEP, first_row, 16 * M)) {
            accumulator<M, STEP> p, ds; /* transposed: rows are keys, columns are queries */
            multiply_transposed<HS, M, STEP>(p, own_key, query_tile);
            multiply_transposed<HS, M, STEP>(ds, own_value, dout_tile);
            bool on_edge = mask.hides_some(first_query, STEP, first_row, 16 * M);
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    query_statistic<KIND> statistic = statistics[turn % 2][column_of(n, i)];
                    stretch seen = statistic.keys(first_query + column_of(n, i));
#pragma unroll
                    for (int m = 0; m < M; m++)
#pragma unroll
                        for (int h = 0; h < 2; h++) {
                            float &pe = p[m][n][2 * h + i], &de = ds[m][n][2 * h + i];
                            float slope = KIND == CAPPED ? bend(pe, rule.cap, inverse_cap) : 1.0f;
                            pe = fast_exp2(fmaf(pe, scale * LOG2_E, -statistic.base));
                            if (on_edge && mask.hides(seen, first_row + row_of(m, h))) pe = 0.0f;
                            de = pe * (de - statistic.D) * slope;
                        }
                }
            multiply_add<HS, M, STEP>(dv, p, dout_tile);
            multiply_add<HS, M, STEP>(dk, ds, query_tile);
        }
        if (turn + 1 < turns && tid < STEP) statistics[(turn + 1) % 2][tid] = next_statistic;
        first_query = next_query;
    }

    scale_by<M, HS>(dk, scale);
    /* only this warp reads its rows of `keys` and `values` */
    store_rows<HS, M>(dqkv + head.k, head.stride, first_row, length, dk,
                      keys + tile_elements<HS>(warp * 16 * M));
    store_rows<HS, M>(dqkv + head.v, head.stride, first_row, length, dv,
                      values + tile_elements<HS>(warp * 16 * M));
}

/* --- launcher --- */

int64_t attn_backward_flash_need(struct tensor *dqkv, const struct tensor *dout, const struct tensor *out,
                                 const struct tensor *lse, const struct tensor *qkv,
                                 const struct tensor *prefix, const struct attn_rule *rule) {
    bool takes = flash_takes(out, qkv, rule) && starts_on_vector(dqkv, dout);
    return takes ? tensor_count(lse) * (int64_t)sizeof(float) : OP_UNSUPPORTED;
}

void attn_backward_flash(const struct op_env *env, struct tensor *dqkv, const struct tensor *dout,
                         const struct tensor *out, const struct tensor *lse, const struct tensor *qkv,
                         const struct tensor *prefix, const struct attn_rule *rule) {
    int NH = rule->heads, NKV = rule->kv_heads;
    int64_t length = out->dim[1];
    unsigned heads = (unsigned)(out->dim[0] * NH);
    float *D = (float *)env->scratch; /* (B,NH,T) */
    flash_rule on_device = flash_rule_on(out, prefix, rule);
    with_kind(rule, out->dim[2] / NH, [&](auto kind, auto head_size) {
        constexpr int HS = decltype(head_size)::value;
        constexpr flash_kind KIND = decltype(kind)::value;
        using dq = dq_tile<HS>;
        using dkv = dkv_tile<HS>;
        size_t smem_dq = sizeof(bf16) * (2 * tile_elements<HS>(dq::ROWS) + 4 * tile_elements<HS>(dq::STEP));
        size_t smem_dkv =
            sizeof(bf16) * (2 * tile_elements<HS>(dkv::ROWS) + 4 * tile_elements<HS>(dkv::STEP));
        launch({{grid_size(length, dq::ROWS), heads}, THREADS, smem_dq, env->stream},
               attn_backward_dq_flash_kernel<HS, KIND>, data_of<bf16>(dqkv), D, data_of<bf16>(dout),
               data_of<bf16>(out), f32(lse), data_of<bf16>(qkv), (int)length, NH, NKV, on_device);
        launch({{grid_size(length, dkv::ROWS), heads / (unsigned)(NH / NKV)}, THREADS, smem_dkv, env->stream},
               attn_backward_dkv_flash_kernel<HS, KIND>, data_of<bf16>(dqkv), data_of<bf16>(dout), f32(lse),
               D, data_of<bf16>(qkv), (int)length, NH, NKV, on_device);
    });
}
