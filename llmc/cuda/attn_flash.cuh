/* What both directions of attention on tensor cores share: tiles of bf16 rows in shared memory, and
 * products of them by mma.sync m16n8k16 (sm_80 and later), in the manner of FlashAttention-2 (Dao 2023,
 * arXiv 2307.08691).
 *
 * A block owns a tile of rows of one side and walks the tiles of STEP rows of the other. A warp owns 16*M
 * rows of its block's tile from start to end, so warps meet at one barrier per step: behind it the step's
 * tile has arrived, and the tile of the step before may be overwritten. The next tile is copied (cp.async)
 * during the step.
 *
 * Rows of a tile in shared memory are HS+8 elements apart. HS/8 + 1 is odd for every multiple of 16, so the
 * eight rows of an ldmatrix lie in different banks without a swizzle. */
#ifndef LLMC_CUDA_ATTN_FLASH_CUH
#define LLMC_CUDA_ATTN_FLASH_CUH

#include "llmc/cuda/attn.cuh"
#include "llmc/cuda/operands.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP_SIZE;

template <int HS> constexpr int PITCH = HS + 8; /* elements between rows of a tile in shared memory */
template <int HS> __host__ __device__ constexpr int tile_elements(int rows) { return rows * PITCH<HS>; }

constexpr float LOG2_E = 1.4426950408889634f;

/* --- rules --- */

/* What a kernel is compiled for, so that plain attention (attn_rule_is_plain) pays nothing for other rules.
 * MASKED and CAPPED have any mask, and documents if the launch has them. */
enum flash_kind { PLAIN, MASKED, CAPPED };

/* What a launch needs of the rule. */
struct flash_rule {
    attn_rule rule;
    const int32_t *prefixes; /* (B) or NULL */
    float factor;            /* attn_factor() */
    float cap;               /* of q.k, before the factor: softcap / factor */
    const int32_t *first;    /* (B,T) or NULL: attn_rule.h */
};

/* Of keys or queries; both ends belong to it. */
struct stretch {
    int first, last;
};
/* The mask of one sequence. With every mask of attn_rule.h query t sees the keys from max(t - back, 0), or
 * from where its document begins, to max(t, reach). Neither end moves back from one query to the next. So the
 * ends for the first and for the last query of a tile bound those for all. */
template <flash_kind KIND> struct sequence_mask {
    int length, back = 0, reach = 0;
    const int32_t *first = NULL; /* (T), or NULL: one document */

    __device__ __forceinline__ sequence_mask(const flash_rule &r, int b, int length_) : length(length_) {
        if constexpr (KIND != PLAIN) {
            int64_t prefix = r.prefixes ? r.prefixes[b] : 0, t = length - 1;
            int key = (int)attn_keys(r.rule, prefix, length, t).first;
            back = key == 0 ? length : (int)t - key;
            reach = (int)attn_keys(r.rule, prefix, length, 0).end - 1;
            if (r.first) first = r.first + (int64_t)b * length;
        }
    }

    /* Where the document of a query begins; queries beyond the end belong to the last one. */
    __device__ __forceinline__ int document_of(int query) const {
        return first ? first[min(query, length - 1)] : 0;
    }

    __device__ __forceinline__ stretch keys(int query) const {
        if constexpr (KIND == PLAIN) return {0, query};
        pin_register(query); /* else the ends are kept through the loop, in the accumulators' registers */
        return {max(query - back, document_of(query)), max(query, reach)};
    }
    /* The queries that see some of the keys first_key..last_key; all lanes of a warp ask together. */
    __device__ __forceinline__ stretch queries(int first_key, int last_key) const {
        if constexpr (KIND == PLAIN) return {first_key, length - 1};
        int first_query = first_key <= reach ? 0 : first_key;
        return {first_query, last_in_document(last_key, min(last_key + back, length - 1))};
    }
    /* The last query up to `last` in the document of this key. A search in 32 parts, one for each lane, takes
     * two loads one after the other in 1024 queries, where bisection would take ten. */
    __device__ __forceinline__ int last_in_document(int key, int last) const {
        if (!first) return last;
        for (int in = key, part; (part = (last - in + WARP_SIZE - 1) / WARP_SIZE) > 0;) {
            int query = in + ((int)threadIdx.x % WARP_SIZE + 1) * part;
            in += part * __popc(__ballot_sync(ALL_LANES, query <= last && first[query] <= key));
            last = min(last, in + part - 1);
        }
        return last;
    }
    __device__ __forceinline__ static bool hides(const stretch &keys, int key) {
        if constexpr (KIND == PLAIN) return key > keys.last;
        return key > keys.last || key < keys.first;
    }
    /* Of a tile of scores: does no query see any key; does some query not see some key? */
    __device__ __forceinline__ bool hides_all(int query, int queries, int key, int count) const {
        return key > keys(query + queries - 1).last || (KIND != PLAIN && key + count <= keys(query).first);
    }
    __device__ __forceinline__ bool hides_some(int query, int queries, int key, int count) const {
        return key + count - 1 > keys(query).last || (KIND != PLAIN && key < keys(query + queries - 1).first);
    }
};

/* --- fragments: 16x16 blocks of a tile in the registers of mma (kernel_ptx.cuh) --- */

/* a: rows r..r+15, columns k..k+15. */
template <int HS> DEVICE_INLINE void load_a(uint32_t (&a)[4], const bf16 *tile, int r, int k) {
    int lane = (int)threadIdx.x % WARP_SIZE;
    ldmatrix_x4(a, tile + (r + lane % 16) * PITCH<HS> + k + lane / 16 * 8);
}
/* b for a @ tile^T: rows r..r+15 of the tile become columns, its columns k..k+15 are the inner dimension.
 * b[0], b[1] belong to the first eight rows, b[2], b[3] to the others. */
template <int HS> DEVICE_INLINE void load_b_transposed(uint32_t (&b)[4], const bf16 *tile, int r, int k) {
    int lane = (int)threadIdx.x % WARP_SIZE;
    ldmatrix_x4(b, tile + (r + lane % 8 + lane / 16 * 8) * PITCH<HS> + k + lane / 8 % 2 * 8);
}
/* b for a @ tile: rows k..k+15 are the inner dimension, with columns c..c+15. b[0], b[1] belong to the
 * first eight columns. */
template <int HS> DEVICE_INLINE void load_b(uint32_t (&b)[4], const bf16 *tile, int k, int c) {
    int lane = (int)threadIdx.x % WARP_SIZE;
    ldmatrix_x4_trans(b, tile + (k + lane % 16) * PITCH<HS> + c + lane / 16 * 8);
}

/* The warp's own 16*M rows of a tile as a-fragments. RESIDENT ones stay in registers from open() on, which
 * comes after the tile's arrival; others are loaded at each use. */
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

template <int M, int N> DEVICE_INLINE void scale_by(accumulator<M, N> &acc, float factor) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[m][n][i] *= factor;
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

/* acc (16*M, HS) += p (16*M, STEP), rounded to bf16, @ tile (STEP, HS). Two 8-column blocks of accumulators
 * have the layout of one 16-column a-fragment, so p stays in its registers. */
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

/* Of an accumulator block: the row, among the warp's 16*M, of elements 2h and 2h+1; the column of element
 * i. */
DEVICE_INLINE int row_of(int m, int h) { return m * 16 + h * 8 + (int)threadIdx.x % WARP_SIZE / 4; }
DEVICE_INLINE int column_of(int n, int i) { return n * 8 + (int)threadIdx.x % 4 * 2 + i % 2; }

/* --- tile copies --- */

/* Starts copying rows first .. first+ROWS-1 of HS elements, `stride` apart; rows from `limit` on become
 * zeros. */
template <int HS, int ROWS>
DEVICE_INLINE void copy_tile(bf16 *tile, const bf16 *rows, int64_t stride, int first, int limit) {
    constexpr int chunks = HS / 8; /* of 16 bytes, in a row */
#pragma unroll 2                   /* unrolled fully, the addresses would need the accumulators' registers */
    for (int i = (int)threadIdx.x; i < ROWS * chunks; i += THREADS) {
        int r = i / chunks, c = i % chunks * 8;
        bool valid = first + r < limit;
        cp_async16(tile + r * PITCH<HS> + c, rows + (valid ? first + r : 0) * stride + c, valid);
    }
}

/* The walk of a block over the keys and values of its head, STEP at a time. There are two tiles of each: one
 * is read while the other is filled. */
template <int HS, int STEP> struct key_walk {
    const bf16 *k, *v; /* (T,HS) each, rows `stride` apart */
    int64_t stride;
    int length, steps;
    bf16 *keys, *values; /* (2,STEP,HS) each */

    __device__ __forceinline__ const bf16 *key_tile(int step) const {
        return keys + step % 2 * tile_elements<HS>(STEP);
    }
    __device__ __forceinline__ const bf16 *value_tile(int step) const {
        return values + step % 2 * tile_elements<HS>(STEP);
    }
    __device__ __forceinline__ void copy(int step) const {
        int tile = step % 2 * tile_elements<HS>(STEP);
        copy_tile<HS, STEP>(keys + tile, k, stride, step * STEP, length);
        copy_tile<HS, STEP>(values + tile, v, stride, step * STEP, length);
        cp_async_commit();
    }
    /* Waits for the tiles of this step, and all that was copied before, and starts to copy the next ones. */
    __device__ __forceinline__ void arrive(int step) const {
        cp_async_wait<0>();
        __syncthreads(); /* this step's tiles have arrived, and no warp reads the previous ones */
        if (step + 1 < steps) copy(step + 1);
    }
};

/* Writes the warp's accumulated rows to rows first.. < limit of global memory. They pass through the warp's
 * own part of a tile, so that a row leaves in 16-byte pieces. */
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

/* Offsets of the first elements of a query head, and of the keys and values that it reads. */
struct head_place {
    int b;             /* the sequence */
    int64_t stride;    /* between rows of qkv */
    int64_t C;         /* between rows of out: NH*HS */
    int64_t q, k, v;   /* in qkv and dqkv */
    int64_t out;       /* in out and dout */
    int64_t statistic; /* in lse and D */
};
DEVICE_INLINE head_place place_of_head(int bh, int length, int NH, int NKV, int HS) {
    head_place p;
    int b = bh / NH, h = bh % NH;
    p.b = b;
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

/* s[query row][key column] of keys that the query does not see becomes -infinity. */
template <int M, int STEP, flash_kind KIND>
DEVICE_INLINE void mask_keys(accumulator<M, STEP> &s, const sequence_mask<KIND> &mask, int first_query,
                             int first_key) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            stretch seen = mask.keys(first_query + row_of(m, h));
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (mask.hides(seen, first_key + column_of(n, i))) s[m][n][2 * h + i] = -INFINITY;
        }
}

/* --- soft cap --- */

/* tanh x = 1 - w with w = 2/(1 + e^2x), and its derivative is w(2 - w). That takes a hardware exponential
 * and a fast division. The error of tanh is about 2^-22, absolute; e^2x = infinity gives w = 0. */
DEVICE_INLINE float one_minus_tanh(float x) { return __fdividef(2.0f, 1.0f + fast_exp2(2.0f * LOG2_E * x)); }

/* A product q.k becomes its capped value. Returns the slope there. */
DEVICE_INLINE float bend(float &product, float cap, float inverse_cap) {
    float w = one_minus_tanh(product * inverse_cap);
    product = cap - cap * w;
    return w * (2.0f - w);
}

/* The sum over the four lanes that share a row. */
DEVICE_INLINE float quad_sum(float v) {
    v += __shfl_xor_sync(ALL_LANES, v, 1);
    return v + __shfl_xor_sync(ALL_LANES, v, 2);
}

/* --- host side --- */

/* The error of a capped score is about 2^-22 of the cap. */
constexpr float LARGEST_CAP = 1000.0f;

static inline bool flash_takes(const struct tensor *out, const struct tensor *qkv,
                               const struct attn_rule *rule) {
    int64_t NH = rule->heads, HS = out->dim[2] / NH;
    return rule->score == ATTN_SCALED_DOT && rule->softcap <= LARGEST_CAP && !rule->dropout &&
           out->dtype == DTYPE_BF16 && HS % 16 == 0 && HS <= 128 && starts_on_vector(out, qkv) &&
           out->dim[0] * NH < 65536 && out->dim[1] < (1 << 30);
}

static inline flash_rule flash_rule_on(const struct tensor *out, const struct tensor *prefix,
                                       const struct attn_rule *rule) {
    float scale = 1.0f / sqrtf((float)(out->dim[2] / rule->heads));
    float factor = attn_factor(rule->score, scale);
    flash_rule r = {*rule, prefix ? i32(prefix) : NULL, factor, rule->softcap / factor,
                    rule->first ? i32(rule->first) : NULL};
    r.rule.first = NULL; /* this tensor's description lies on the host */
    return r;
}

/* Calls f with the kind of the rule and the head size as compile-time numbers. */
template <flash_kind KIND, class F> static void with_head_size(int64_t HS, F f) {
    constexpr std::integral_constant<flash_kind, KIND> kind = {};
    switch (HS) {
    case 16:
        return f(kind, std::integral_constant<int, 16>());
    case 32:
        return f(kind, std::integral_constant<int, 32>());
    case 48:
        return f(kind, std::integral_constant<int, 48>());
    case 64:
        return f(kind, std::integral_constant<int, 64>());
    case 80:
        return f(kind, std::integral_constant<int, 80>());
    case 96:
        return f(kind, std::integral_constant<int, 96>());
    case 112:
        return f(kind, std::integral_constant<int, 112>());
    case 128:
        return f(kind, std::integral_constant<int, 128>());
    }
    die("attention: no kernel for head size %lld", (long long)HS);
}
template <class F> static void with_kind(const struct attn_rule *rule, int64_t HS, F f) {
    if (attn_rule_is_plain(rule))
        with_head_size<PLAIN>(HS, f);
    else if (rule->softcap > 0.0f)
        with_head_size<CAPPED>(HS, f);
    else
        with_head_size<MASKED>(HS, f);
}

#endif
