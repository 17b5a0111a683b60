/* Causal attention on tensor cores, in the manner of FlashAttention-2 (Dao 2023, arXiv 2307.08691): bf16,
 * head sizes that are a multiple of 16 up to 128, mma.sync m16n8k16 (sm_80 and later).
 *
 * Three kernels. Forward and dq: a block takes a tile of query rows and walks the tiles of keys up to the
 * diagonal. dk and dv: a block takes a tile of keys and walks the tiles of queries from the diagonal on, with
 * the scores transposed (keys are rows), so that P^T and dS^T come out of one mma in the registers where the
 * next one wants them. Backward recomputes P = exp(S - lse) twice, 7 products where 5 would do, and in return
 * every sum stays in registers of one warp, in a fixed order: no atomics, the same bits in every run.
 *
 * A warp owns 16*M rows of its block's tile from start to end, so warps only meet at one barrier a step: it
 * says that the step's tile has arrived and that the previous one may be overwritten. Copies of the next tile
 * (cp.async) run during the step.
 *
 * Rows of a tile in shared memory are HS+8 elements apart: HS/8 + 1 is odd for every multiple of 16, so the
 * eight rows of an ldmatrix fall into different banks, without a swizzle to compute.
 *
 * Sections: tile table, fragments, tile copies, mask, softmax, forward, backward pieces, dq, dk and dv,
 * launchers. */
#include "llmc/cuda/attn.cuh"
#include "llmc/cuda/operands.cuh"

/* --- tile table --- */

/* Rows of a block are WARPS warps of M 16-row tiles; STEP is how many rows of the other side a step takes.
 * Sizes are set by registers (255 a thread): accumulators M*HS/2 each, scores M*STEP/2 each. With M = 2 an
 * ldmatrix of the other side feeds twice as many mma: one of 512 bytes takes shared memory 4 clocks and feeds
 * 2*M mma of 1.6 clocks each. RESIDENT keeps the warp's own fragments in registers instead of loading them
 * again. */
constexpr int WARPS = 4, THREADS = WARPS * WARP_SIZE;

template <int HS> struct forward_tile {
    static constexpr int M = 2, ROWS = WARPS * 16 * M, STEP = HS <= 64 ? 64 : 32;
    static constexpr bool RESIDENT = HS <= 64;
};
template <int HS> struct dq_tile {
    static constexpr int M = 1, ROWS = WARPS * 16 * M, STEP = HS <= 64 ? 64 : 32;
    static constexpr bool RESIDENT = false;
};
template <int HS> struct dkv_tile {
    static constexpr int M = 1, ROWS = WARPS * 16 * M, STEP = HS <= 64 ? 64 : 32;
    static constexpr bool RESIDENT = HS <= 64;
};

template <int HS> constexpr int PITCH = HS + 8; /* elements between rows of a tile in shared memory */
template <int HS> __host__ __device__ constexpr int tile_elements(int rows) { return rows * PITCH<HS>; }

constexpr float LOG2_E = 1.4426950408889634f;

/* --- fragments: how 16x16 blocks of a tile get into the registers of mma (kernel.cuh) --- */

/* a: rows r..r+15, columns k..k+15. */
template <int HS> DEVICE_INLINE void load_a(uint32_t (&a)[4], const bf16 *tile, int r, int k) {
    int lane = (int)threadIdx.x % WARP_SIZE;
    ldmatrix_x4(a, tile + (r + lane % 16) * PITCH<HS> + k + lane / 16 * 8);
}
/* b for a @ tile^T: 16 rows r.. of the tile become columns, its columns k..k+15 the inner dimension. b[0],
 * b[1] belong to the first eight rows, b[2], b[3] to the others. */
template <int HS> DEVICE_INLINE void load_b_transposed(uint32_t (&b)[4], const bf16 *tile, int r, int k) {
    int lane = (int)threadIdx.x % WARP_SIZE;
    ldmatrix_x4(b, tile + (r + lane % 8 + lane / 16 * 8) * PITCH<HS> + k + lane / 8 % 2 * 8);
}
/* b for a @ tile: rows k..k+15 are the inner dimension, columns c..c+15. b[0], b[1] belong to the first eight
 * columns. */
template <int HS> DEVICE_INLINE void load_b(uint32_t (&b)[4], const bf16 *tile, int k, int c) {
    int lane = (int)threadIdx.x % WARP_SIZE;
    ldmatrix_x4_trans(b, tile + (k + lane % 16) * PITCH<HS> + c + lane / 16 * 8);
}

/* The warp's own 16*M rows of a tile as a-fragments: with RESIDENT kept in registers from open() on, which
 * the tile's arrival must precede, else loaded when asked for. */
template <int HS, int M, bool RESIDENT> struct own_rows {
    const bf16 *tile;
    int row;
    uint32_t kept[RESIDENT ? M : 1][RESIDENT ? HS / 16 : 1][4];

    __device__ __forceinline__ own_rows(const bf16 *tile_, int row_) : tile(tile_), row(row_) {}
    __device__ __forceinline__ void open() {
        if constexpr (RESIDENT)
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int k = 0; k < HS / 16; k++) load_a<HS>(kept[m][k], tile, row + m * 16, k * 16);
    }
    __device__ __forceinline__ void get(uint32_t (&a)[4], int m, int k) const {
        if constexpr (RESIDENT)
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = kept[m][k][i];
        else
            load_a<HS>(a, tile, row + m * 16, k * 16);
    }
};

template <int M, int N> using accumulator = float[M][N / 8][4]; /* 16*M rows, N columns of one warp */

template <int M, int N> DEVICE_INLINE void clear(accumulator<M, N> &acc) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[m][n][i] = 0.0f;
}

/* s (16*M, STEP) = own (16*M, HS) @ tile (STEP, HS)^T */
template <int HS, int M, int STEP, bool RESIDENT>
DEVICE_INLINE void multiply_transposed(accumulator<M, STEP> &s, const own_rows<HS, M, RESIDENT> &own,
                                       const bf16 *tile) {
    clear<M, STEP>(s);
#pragma unroll
    for (int k = 0; k < HS / 16; k++) {
        uint32_t a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++) own.get(a[m], m, k);
#pragma unroll
        for (int n = 0; n < STEP / 16; n++) {
            load_b_transposed<HS>(b, tile, n * 16, k * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16(s[m][2 * n], a[m], b[0], b[1]);
                mma_m16n8k16(s[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* acc (16*M, HS) += p (16*M, STEP), rounded to bf16, @ tile (STEP, HS). The accumulator layout of two
 * 8-column blocks is the a-fragment layout of one 16-column block, so p never leaves its registers. */
template <int HS, int M, int STEP>
DEVICE_INLINE void multiply_add(accumulator<M, HS> &acc, const accumulator<M, STEP> &p, const bf16 *tile) {
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
        uint32_t a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = pack_bf16(p[m][2 * k + i / 2][i % 2 * 2], p[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < HS / 16; n++) {
            load_b<HS>(b, tile, k * 16, n * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16(acc[m][2 * n], a[m], b[0], b[1]);
                mma_m16n8k16(acc[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* Row, within the warp's 16*M, of half h (elements 2h and 2h+1) of an accumulator block; column of element
 * i. */
DEVICE_INLINE int row_of(int m, int h) { return m * 16 + h * 8 + (int)threadIdx.x % WARP_SIZE / 4; }
DEVICE_INLINE int column_of(int n, int i) { return n * 8 + (int)threadIdx.x % 4 * 2 + i % 2; }

/* --- tile copies --- */

/* Starts copying ROWS rows of HS elements, `stride` apart, of which row 0 is number `first`; rows from
 * `limit` on become zeros. */
template <int HS, int ROWS>
DEVICE_INLINE void copy_tile(bf16 *tile, const bf16 *rows, int64_t stride, int first, int limit) {
    constexpr int chunks = HS / 8; /* of 16 bytes, in a row */
#pragma unroll 2                   /* all at once, their addresses would take the accumulators' registers */
    for (int i = (int)threadIdx.x; i < ROWS * chunks; i += THREADS) {
        int r = i / chunks, c = i % chunks * 8;
        bool valid = first + r < limit;
        cp_async16(tile + r * PITCH<HS> + c, rows + (valid ? first + r : 0) * stride + c, valid);
    }
}

/* Writes the warp's accumulated rows to rows `first`.. < limit of global memory, by way of its own part of a
 * tile (16*M rows) so that a row goes out in 16-byte pieces. */
template <int HS, int M>
DEVICE_INLINE void store_rows(bf16 *rows, int64_t stride, int first, int limit, const accumulator<M, HS> &acc,
                              bf16 *own_part) {
    int lane = (int)threadIdx.x % WARP_SIZE;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t pair = pack_bf16(acc[m][n][2 * h], acc[m][n][2 * h + 1]);
                *reinterpret_cast<uint32_t *>(own_part + row_of(m, h) * PITCH<HS> + column_of(n, 0)) = pair;
            }
    __syncwarp();
    constexpr int chunks = HS / 8;
#pragma unroll
    for (int i = lane; i < 16 * M * chunks; i += WARP_SIZE) {
        int r = i / chunks, c = i % chunks * 8;
        if (first + r < limit)
            vec<bf16>::load(own_part + r * PITCH<HS> + c).store(rows + (first + r) * stride + c);
    }
}

/* One query head of the operands, and the head of keys and values that it shares: offsets of the first elements.
 * dqkv is laid out as qkv. */
struct head_place {
    int64_t stride;    /* between rows of qkv */
    int64_t C;         /* between rows of out: NH*HS */
    int64_t q, k, v;   /* in qkv */
    int64_t out;       /* in out */
    int64_t statistic; /* the head's row of lse and D */
};
DEVICE_INLINE head_place place_of_head(int bh, int length, int NH, int NKV, int HS) {
    head_place p;
    int b = bh / NH, h = bh % NH;
    p.C = (int64_t)NH * HS;
    p.stride = p.C + 2 * (int64_t)NKV * HS;
    p.q = b * length * p.stride + h * HS;
    p.k = b * length * p.stride + p.C + h / (NH / NKV) * HS;
    p.v = p.k + (int64_t)NKV * HS;
    p.out = b * length * p.C + h * HS;
    p.statistic = (int64_t)bh * length;
    return p;
}

/* --- mask --- */

/* s[query row][key column]: a key after its query counts for nothing. */
template <int M, int STEP>
DEVICE_INLINE void mask_keys(accumulator<M, STEP> &s, int first_query, int first_key) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (first_key + column_of(n, i) > first_query + row_of(m, i / 2)) s[m][n][i] = -INFINITY;
}

/* --- softmax: online, base 2 --- */

/* A thread's share of its 2*M rows: the maximum is that of the whole row, the sum only of its own columns. */
template <int M> struct row_softmax { float max[M][2], sum[M][2]; };

/* Over the four lanes that share a row. */
DEVICE_INLINE float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 1));
    return fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 2));
}
DEVICE_INLINE float quad_sum(float v) {
    v += __shfl_xor_sync(ALL_LANES, v, 1);
    return v + __shfl_xor_sync(ALL_LANES, v, 2);
}

/* Turns scores into probabilities relative to the new maximum, and what was summed before with them. `scale`
 * carries log2(e). Key 0 is visible to every query, so after the first step no maximum is -infinity. */
template <int HS, int M, int STEP>
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
            float shrink = fast_exp2((state.max[m][h] - max) * scale), base = max * scale, sum = 0.0f;
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

/* --- forward --- */

/* Grid: tiles of queries (the longest first), heads of all batches. */
template <int HS>
__global__ void __launch_bounds__(THREADS, 2)
    attn_forward_flash_kernel(bf16 *out, float *lse, const bf16 *qkv, int length, int NH, int NKV, int t0,
                              float scale) {
    using tile = forward_tile<HS>;
    constexpr int M = tile::M, STEP = tile::STEP;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared;                               /* (ROWS,HS) */
    bf16 *keys = queries + tile_elements<HS>(tile::ROWS); /* (2,STEP,HS) */
    bf16 *values = keys + 2 * tile_elements<HS>(STEP);    /* (2,STEP,HS) */
    head_place head = place_of_head((int)blockIdx.y, length, NH, NKV, HS);
    const bf16 *q = qkv + head.q, *k = qkv + head.k, *v = qkv + head.v; /* (T,HS) each */
    int first_query = t0 + (int)(gridDim.x - 1 - blockIdx.x) * tile::ROWS;
    int warp = (int)threadIdx.x / WARP_SIZE, first_row = first_query + warp * 16 * M; /* of this warp */
    int steps = (min(first_query + tile::ROWS, length) - 1) / STEP + 1;

    copy_tile<HS, tile::ROWS>(queries, q, head.stride, first_query, length);
    copy_tile<HS, STEP>(keys, k, head.stride, 0, length);
    copy_tile<HS, STEP>(values, v, head.stride, 0, length);
    cp_async_commit();

    own_rows<HS, M, tile::RESIDENT> own(queries, warp * 16 * M);
    accumulator<M, HS> acc;
    clear<M, HS>(acc);
    row_softmax<M> state;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) state.max[m][h] = -INFINITY, state.sum[m][h] = 0.0f;

    for (int step = 0; step < steps; step++) {
        int first_key = step * STEP;
        const bf16 *key_tile = keys + step % 2 * tile_elements<HS>(STEP);
        const bf16 *value_tile = values + step % 2 * tile_elements<HS>(STEP);
        cp_async_wait<0>();
        __syncthreads(); /* this step's tiles are there, and nobody reads those of the step before */
        if (step + 1 < steps) {
            int next = (step + 1) % 2 * tile_elements<HS>(STEP);
            copy_tile<HS, STEP>(keys + next, k, head.stride, first_key + STEP, length);
            copy_tile<HS, STEP>(values + next, v, head.stride, first_key + STEP, length);
            cp_async_commit();
        }
        if (step == 0) own.open();
        if (first_key > first_row + 16 * M - 1) continue; /* all of it lies after all of the warp's queries */
        accumulator<M, STEP> s;
        multiply_transposed<HS, M, STEP>(s, own, key_tile);
        if (first_key + STEP - 1 > first_row) mask_keys<M, STEP>(s, first_row, first_key);
        softmax_step<HS, M, STEP>(state, s, acc, scale * LOG2_E);
        multiply_add<HS, M, STEP>(acc, s, value_tile);
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
    /* the warp is the only reader of its rows of `queries` */
    store_rows<HS, M>(out + head.out, head.C, first_row, length, acc,
                      queries + tile_elements<HS>(warp * 16 * M));
}

/* --- backward: dq, and D for the kernel after it --- */

/* Sum over the columns of out*dout for the thread's rows: D = dP averaged over P. dout's fragments are read
 * back from shared memory in the layout of an a-fragment, out's straight from memory, once. */
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

template <int HS>
__global__ void __launch_bounds__(THREADS, 2)
    attn_backward_dq_flash_kernel(bf16 *dqkv, float *D_out, const bf16 *dout, const bf16 *out,
                                  const float *lse, const bf16 *qkv, int length, int NH, int NKV,
                                  float scale) {
    using tile = dq_tile<HS>;
    constexpr int M = tile::M, STEP = tile::STEP;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared;                                /* (ROWS,HS) */
    bf16 *douts = queries + tile_elements<HS>(tile::ROWS); /* (ROWS,HS) */
    bf16 *keys = douts + tile_elements<HS>(tile::ROWS);    /* (2,STEP,HS) */
    bf16 *values = keys + 2 * tile_elements<HS>(STEP);     /* (2,STEP,HS) */
    head_place head = place_of_head((int)blockIdx.y, length, NH, NKV, HS);
    const bf16 *q = qkv + head.q, *k = qkv + head.k, *v = qkv + head.v; /* (T,HS) each */
    int first_query = (int)(gridDim.x - 1 - blockIdx.x) * tile::ROWS;
    int warp = (int)threadIdx.x / WARP_SIZE, first_row = first_query + warp * 16 * M; /* of this warp */
    int steps = (min(first_query + tile::ROWS, length) - 1) / STEP + 1;

    copy_tile<HS, tile::ROWS>(queries, q, head.stride, first_query, length);
    copy_tile<HS, tile::ROWS>(douts, dout + head.out, head.C, first_query, length);
    copy_tile<HS, STEP>(keys, k, head.stride, 0, length);
    copy_tile<HS, STEP>(values, v, head.stride, 0, length);
    cp_async_commit();

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

    for (int step = 0; step < steps; step++) {
        int first_key = step * STEP;
        const bf16 *key_tile = keys + step % 2 * tile_elements<HS>(STEP);
        const bf16 *value_tile = values + step % 2 * tile_elements<HS>(STEP);
        cp_async_wait<0>();
        __syncthreads(); /* this step's tiles are there, and nobody reads those of the step before */
        if (step + 1 < steps) {
            int next = (step + 1) % 2 * tile_elements<HS>(STEP);
            copy_tile<HS, STEP>(keys + next, k, head.stride, first_key + STEP, length);
            copy_tile<HS, STEP>(values + next, v, head.stride, first_key + STEP, length);
            cp_async_commit();
        }
        if (step == 0) {
            own_query.open();
            own_dout.open();
            dot_rows<HS, M>(D, douts, out + head.out, head.C, first_row, length, warp * 16 * M);
        }
        if (first_key > first_row + 16 * M - 1) continue; /* all of it lies after all of the warp's queries */
        accumulator<M, STEP> s, dp;
        multiply_transposed<HS, M, STEP>(s, own_query, key_tile);
        if (first_key + STEP - 1 > first_row) mask_keys<M, STEP>(s, first_row, first_key);
        multiply_transposed<HS, M, STEP>(dp, own_dout, value_tile);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float p = fast_exp2(fmaf(s[m][n][i], scale * LOG2_E, -base[m][i / 2]));
                    s[m][n][i] = p * (dp[m][n][i] - D[m][i / 2]);
                }
        multiply_add<HS, M, STEP>(dq, s, key_tile);
    }

#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int t = first_row + row_of(m, h);
            if (threadIdx.x % 4 == 0 && t < length) D_out[head.statistic + t] = D[m][h];
        }
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) dq[m][n][i] *= scale;
    }
    store_rows<HS, M>(dqkv + head.q, head.stride, first_row, length, dq,
                      queries + tile_elements<HS>(warp * 16 * M));
}

/* --- backward: dk and dv --- */

/* Of one query: lse in units of log2, and D. Beyond the end q and dout are zeros, which add nothing whatever
 * P is. */
struct query_statistic {
    float base, D;
};
DEVICE_INLINE query_statistic load_statistic(const float *lse, const float *D, int t, int length) {
    query_statistic s = {0.0f, 0.0f};
    if (t < length) s.base = lse[t] * LOG2_E, s.D = D[t];
    return s;
}

/* Grid: tiles of keys (the first ones, which most queries see, first), heads of keys of all batches. A block walks
 * the tiles of queries of one query head, then of the next that shares the keys. */
template <int HS>
__global__ void __launch_bounds__(THREADS, 2)
    attn_backward_dkv_flash_kernel(bf16 *dqkv, const bf16 *dout, const float *lse, const float *D,
                                   const bf16 *qkv, int length, int NH, int NKV, float scale) {
    using tile = dkv_tile<HS>;
    constexpr int M = tile::M, STEP = tile::STEP;
    static_assert(STEP <= THREADS, "a thread fetches the statistic of one query");
    SHARED_ALIGNED(query_statistic, statistics, [2][STEP], 16);
    DYNAMIC_SHARED(bf16, shared);
    bf16 *keys = shared;                                    /* (ROWS,HS) */
    bf16 *values = keys + tile_elements<HS>(tile::ROWS);    /* (ROWS,HS) */
    bf16 *queries = values + tile_elements<HS>(tile::ROWS); /* (2,STEP,HS) */
    bf16 *douts = queries + 2 * tile_elements<HS>(STEP);    /* (2,STEP,HS) */
    int group = NH / NKV; /* query heads, of which blockIdx.y * group is the first */
    head_place head = place_of_head((int)blockIdx.y * group, length, NH, NKV, HS);
    const bf16 *k = qkv + head.k, *v = qkv + head.v; /* (T,HS) each */
    /* of the query head that is copied: (T,HS) each, and T statistics */
    const bf16 *q = qkv + head.q, *d = dout + head.out;
    const float *lse_head = lse + head.statistic, *D_head = D + head.statistic;
    int tid = (int)threadIdx.x, warp = tid / WARP_SIZE;
    int first_key = (int)blockIdx.x * tile::ROWS, first_row = first_key + warp * 16 * M; /* of this warp */
    int first_step = first_key / STEP, steps = (length - 1) / STEP + 1, turns = group * (steps - first_step);

    copy_tile<HS, tile::ROWS>(keys, k, head.stride, first_key, length);
    copy_tile<HS, tile::ROWS>(values, v, head.stride, first_key, length);
    copy_tile<HS, STEP>(queries, q, head.stride, first_step * STEP, length);
    copy_tile<HS, STEP>(douts, d, head.C, first_step * STEP, length);
    cp_async_commit();
    if (tid < STEP) statistics[0][tid] = load_statistic(lse_head, D_head, first_step * STEP + tid, length);

    own_rows<HS, M, tile::RESIDENT> own_key(keys, warp * 16 * M), own_value(values, warp * 16 * M);
    accumulator<M, HS> dk, dv;
    clear<M, HS>(dk);
    clear<M, HS>(dv);

    for (int turn = 0, first_query = first_step * STEP; turn < turns; turn++) {
        const bf16 *query_tile = queries + turn % 2 * tile_elements<HS>(STEP);
        const bf16 *dout_tile = douts + turn % 2 * tile_elements<HS>(STEP);
        int next_query = first_query + STEP;
        if (next_query >= length) { /* the next query head */
            next_query = first_step * STEP;
            q += HS, d += HS, lse_head += length, D_head += length;
        }
        query_statistic next_statistic = {};
        cp_async_wait<0>();
        __syncthreads(); /* this step's tiles are there, and nobody reads those of the step before */
        if (turn + 1 < turns) {
            int next = (turn + 1) % 2 * tile_elements<HS>(STEP);
            copy_tile<HS, STEP>(queries + next, q, head.stride, next_query, length);
            copy_tile<HS, STEP>(douts + next, d, head.C, next_query, length);
            cp_async_commit();
            if (tid < STEP) next_statistic = load_statistic(lse_head, D_head, next_query + tid, length);
        }
        if (turn == 0) {
            own_key.open();
            own_value.open();
        }
        if (first_query + STEP > first_row) { /* some query sees some key of this warp */
            accumulator<M, STEP> p, ds;       /* transposed: rows are keys, columns are queries */
            multiply_transposed<HS, M, STEP>(p, own_key, query_tile);
            multiply_transposed<HS, M, STEP>(ds, own_value, dout_tile);
            bool on_diagonal = first_query < first_row + 16 * M - 1;
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    query_statistic statistic = statistics[turn % 2][column_of(n, i)];
#pragma unroll
                    for (int m = 0; m < M; m++)
#pragma unroll
                        for (int h = 0; h < 2; h++) {
                            float &pe = p[m][n][2 * h + i], &de = ds[m][n][2 * h + i];
                            pe = fast_exp2(fmaf(pe, scale * LOG2_E, -statistic.base));
                            if (on_diagonal && first_query + column_of(n, i) < first_row + row_of(m, h))
                                pe = 0.0f;
                            de = pe * (de - statistic.D);
                        }
                }
            multiply_add<HS, M, STEP>(dv, p, dout_tile);
            multiply_add<HS, M, STEP>(dk, ds, query_tile);
        }
        if (turn + 1 < turns && tid < STEP) statistics[(turn + 1) % 2][tid] = next_statistic;
        first_query = next_query;
    }

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) dk[m][n][i] *= scale;
    /* the warp is the only reader of its rows of `keys` and `values` */
    store_rows<HS, M>(dqkv + head.k, head.stride, first_row, length, dk,
                      keys + tile_elements<HS>(warp * 16 * M));
    store_rows<HS, M>(dqkv + head.v, head.stride, first_row, length, dv,
                      values + tile_elements<HS>(warp * 16 * M));
}

/* --- launchers --- */

static bool flash_takes(const struct tensor *out, const struct tensor *qkv, int NH) {
    int64_t HS = out->dim[2] / NH;
    return out->dtype == DTYPE_BF16 && HS % 16 == 0 && HS <= 128 && starts_on_vector(out, qkv) &&
           out->dim[0] * NH < 65536 && out->dim[1] < (1 << 30);
}

/* Calls f with the head size as a compile-time number. */
template <class F> static void with_head_size(int64_t HS, F f) {
    switch (HS) {
    case 16:
        return f(std::integral_constant<int, 16>());
    case 32:
        return f(std::integral_constant<int, 32>());
    case 48:
        return f(std::integral_constant<int, 48>());
    case 64:
        return f(std::integral_constant<int, 64>());
    case 80:
        return f(std::integral_constant<int, 80>());
    case 96:
        return f(std::integral_constant<int, 96>());
    case 112:
        return f(std::integral_constant<int, 112>());
    case 128:
        return f(std::integral_constant<int, 128>());
    }
    die("attention: no kernel for head size %lld", (long long)HS);
}

int64_t attn_forward_flash_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv, int NH,
                                int NKV, int t0) {
    return flash_takes(out, qkv, NH) ? 0 : OP_UNSUPPORTED;
}

void attn_forward_flash(const struct op_env *env, struct tensor *out, struct tensor *lse,
                        const struct tensor *qkv, int NH, int NKV, int t0) {
    int64_t length = out->dim[1];
    unsigned heads = (unsigned)(out->dim[0] * NH);
    with_head_size(out->dim[2] / NH, [&](auto head_size) {
        constexpr int HS = decltype(head_size)::value;
        using tile = forward_tile<HS>;
        size_t smem = sizeof(bf16) * (tile_elements<HS>(tile::ROWS) + 4 * tile_elements<HS>(tile::STEP));
        launch({{grid_size(length - t0, tile::ROWS), heads}, THREADS, smem, env->stream},
               attn_forward_flash_kernel<HS>, data_of<bf16>(out), f32(lse), data_of<bf16>(qkv), (int)length,
               NH, NKV, t0, 1.0f / sqrtf((float)HS));
    });
}

int64_t attn_backward_flash_need(struct tensor *dqkv, const struct tensor *dout, const struct tensor *out,
                                 const struct tensor *lse, const struct tensor *qkv, int NH, int NKV) {
    bool takes = flash_takes(out, qkv, NH) && starts_on_vector(dqkv, dout);
    return takes ? tensor_count(lse) * (int64_t)sizeof(float) : OP_UNSUPPORTED;
}

void attn_backward_flash(const struct op_env *env, struct tensor *dqkv, const struct tensor *dout,
                         const struct tensor *out, const struct tensor *lse, const struct tensor *qkv, int NH,
                         int NKV) {
    int64_t length = out->dim[1];
    unsigned heads = (unsigned)(out->dim[0] * NH);
    float *D = (float *)env->scratch; /* (B,NH,T) */
    with_head_size(out->dim[2] / NH, [&](auto head_size) {
        constexpr int HS = decltype(head_size)::value;
        using dq = dq_tile<HS>;
        using dkv = dkv_tile<HS>;
        float scale = 1.0f / sqrtf((float)HS);
        size_t smem_dq = sizeof(bf16) * (2 * tile_elements<HS>(dq::ROWS) + 4 * tile_elements<HS>(dq::STEP));
        size_t smem_dkv =
            sizeof(bf16) * (2 * tile_elements<HS>(dkv::ROWS) + 4 * tile_elements<HS>(dkv::STEP));
        launch({{grid_size(length, dq::ROWS), heads}, THREADS, smem_dq, env->stream},
               attn_backward_dq_flash_kernel<HS>, data_of<bf16>(dqkv), D, data_of<bf16>(dout),
               data_of<bf16>(out), f32(lse), data_of<bf16>(qkv), (int)length, NH, NKV, scale);
        launch({{grid_size(length, dkv::ROWS), heads / (unsigned)(NH / NKV)}, THREADS, smem_dkv, env->stream},
               attn_backward_dkv_flash_kernel<HS>, data_of<bf16>(dqkv), data_of<bf16>(dout), f32(lse), D,
               data_of<bf16>(qkv), (int)length, NH, NKV, scale);
    });
}
