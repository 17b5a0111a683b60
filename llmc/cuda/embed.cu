/* Token and position embedding: forward, backward. Contracts in ops.h.
 *
 * Backward must add all rows of dout that share a token to one row of dwte, in a fixed order and without
 * atomics. It sorts the positions by token, with a stable radix sort of 8 bits per pass, and then sums runs
 * of equal tokens. A block takes RUN sorted positions and adds the runs that lie inside to dwte at once. A
 * run that crosses blocks leaves pieces in scratch, which the block where it starts adds up in order. So a
 * token that makes up a third of the batch costs no more than any other. */
#include "llmc/cuda/operands.cuh"

/* --- forward --- */

template <class T>
__global__ void embed_forward_naive_kernel(T *out, const int *tokens, const T *wte, const T *wpe, int64_t n,
                                           int length, int64_t C, int t0) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int64_t row = i / C, c = i % C;
    float token = to_float(wte[tokens[row] * C + c]);
    out[i] = from_float<T>(wpe ? token + to_float(wpe[(t0 + row % length) * C + c]) : token);
}

/* One warp per row. Without POSITIONS, rows are copied. */
template <class T, bool POSITIONS>
__global__ void embed_forward_vec_kernel(T *out, const int *tokens, const T *wte, const T *wpe, int64_t rows,
                                         int length, int64_t C, int t0) {
    int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const T *token = wte + tokens[row] * C;
    const T *position = POSITIONS ? wpe + (t0 + row % length) * C : nullptr;
#pragma unroll 4
    for (int64_t c = (int64_t)threadIdx.x * vec<T>::size; c < C; c += WARP_SIZE * vec<T>::size) {
        vec<T> a = vec<T>::load(token + c);
        if constexpr (POSITIONS) {
            vec<T> b = vec<T>::load(position + c);
#pragma unroll
            for (int k = 0; k < vec<T>::size; k++) a[k] = from_float<T>(to_float(a[k]) + to_float(b[k]));
        }
        a.store(out + row * C + c);
    }
}

/* --- backward, naive --- */

/* A block per row of dout. The block of a token's first occurrence sums all rows of that token. */
template <class T>
__global__ void embed_backward_naive_kernel(T *dwte, const T *dout, const int *tokens, int64_t rows,
                                            int64_t C) {
    int64_t first = blockIdx.x;
    int token = tokens[first];
    for (int64_t row = 0; row < first; row++)
        if (tokens[row] == token) return;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
        float total = 0.0f;
        for (int64_t row = first; row < rows; row++)
            if (tokens[row] == token) total += to_float(dout[row * C + c]);
        T *d = dwte + token * C + c;
        *d = from_float<T>(to_float(*d) + total);
    }
}

/* dwpe: a block per position sums over the batch. */
template <class T>
__global__ void embed_backward_position_naive_kernel(T *dwpe, const T *dout, int batch, int length,
                                                     int64_t C) {
    int64_t t = blockIdx.x;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
        float total = 0.0f;
        for (int64_t b = 0; b < batch; b++) total += to_float(dout[(b * length + t) * C + c]);
        T *d = dwpe + t * C + c;
        *d = from_float<T>(to_float(*d) + total);
    }
}

/* --- sort: stable, 8 bits per pass, one block per tile of SORT_TILE positions --- */

constexpr int SORT_WARPS = 8, SORT_BLOCK = SORT_WARPS * WARP_SIZE; /* a thread per digit */
constexpr int SORT_ROUNDS = 4, SORT_TILE = SORT_BLOCK * SORT_ROUNDS;
constexpr int DIGITS = 256;
static_assert(SORT_BLOCK == DIGITS, "thread d owns digit d");

/* counts[tile][digit]: how often each digit occurs in the tile. */
__global__ void embed_sort_count_kernel(int *counts, const int *keys, int n, int shift) {
    SHARED(int, count, [DIGITS]);
    int tid = (int)threadIdx.x, first = (int)blockIdx.x * SORT_TILE;
    count[tid] = 0;
    __syncthreads();
    for (int i = first + tid; i < n && i < first + SORT_TILE; i += SORT_BLOCK)
        atomicAdd(&count[(keys[i] >> shift) % DIGITS], 1);
    __syncthreads();
    counts[(int64_t)blockIdx.x * DIGITS + tid] = count[tid];
}

/* The sum of `value` over the threads before this one, in a block of DIGITS threads. */
DEVICE_INLINE int exclusive_scan(int value, int *sums) {
    int tid = (int)threadIdx.x, total = value;
    sums[tid] = value;
    __syncthreads();
    for (int offset = 1; offset < DIGITS; offset *= 2) {
        int before = tid >= offset ? sums[tid - offset] : 0;
        __syncthreads();
        sums[tid] = total += before;
        __syncthreads();
    }
    return total - value;
}

/* The active lanes of the warp that hold the same digit. */
DEVICE_INLINE unsigned same_digit(int digit, bool active) {
    unsigned lanes = __ballot_sync(ALL_LANES, active);
    for (int bit = 0; bit < 8; bit++) {
        unsigned set = __ballot_sync(ALL_LANES, digit >> bit & 1);
        lanes &= digit >> bit & 1 ? set : ~set;
    }
    return lanes;
}

/* Moves (key, position) pairs to their sorted places. With positions_in = nullptr the positions are 0, 1,
 * 2, ... first[w][d] is the place of the next element of digit d in warp w. Each warp of a tile owns
 * consecutive elements, which keeps the order within a digit. */
__global__ void embed_sort_scatter_kernel(int *keys_out, int *positions_out, const int *keys_in,
                                          const int *positions_in, const int *counts, int n, int shift) {
    SHARED(int, first, [SORT_WARPS][DIGITS]);
    SHARED(int, sums, [DIGITS]);
    int tid = (int)threadIdx.x, lane = tid % WARP_SIZE, warp = tid / WARP_SIZE, tile = (int)blockIdx.x;
    int warp_start = tile * SORT_TILE + warp * SORT_ROUNDS * WARP_SIZE;

    /* how often digit `tid` occurs in all tiles, and in those before this one */
    int total = 0, earlier = 0;
#pragma unroll 8
    for (int t = 0; t < (int)gridDim.x; t++) {
        int count = counts[(int64_t)t * DIGITS + tid];
        total += count;
        earlier += t < tile ? count : 0;
    }
    int start = exclusive_scan(total, sums) + earlier;

    for (int w = 0; w < SORT_WARPS; w++) first[w][tid] = 0;
    __syncthreads();
    int key[SORT_ROUNDS];
#pragma unroll
    for (int r = 0; r < SORT_ROUNDS; r++) {
        int i = warp_start + r * WARP_SIZE + lane;
        key[r] = i < n ? keys_in[i] : 0;
        if (i < n) atomicAdd(&first[warp][(key[r] >> shift) % DIGITS], 1);
    }
    __syncthreads();
    for (int w = 0; w < SORT_WARPS; w++) {
        int count = first[w][tid];
        first[w][tid] = start;
        start += count;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < SORT_ROUNDS; r++) {
        int i = warp_start + r * WARP_SIZE + lane, digit = (key[r] >> shift) % DIGITS;
        unsigned peers = same_digit(digit, i < n);
        int rank = __popc(peers & ((1u << lane) - 1)), at = first[warp][digit] + rank;
        __syncwarp();
        if (i < n) {
            keys_out[at] = key[r];
            positions_out[at] = positions_in ? positions_in[i] : i;
            if (rank == 0) first[warp][digit] += __popc(peers);
        }
        __syncwarp();
    }
}

/* --- backward --- */

constexpr int RUN = 32;  /* sorted positions per block */
constexpr int AHEAD = 8; /* rows of dout that a thread loads ahead */

template <class T> DEVICE_INLINE void add_to(T *d, const float *sum) {
    vec<T> old = vec<T>::load(d);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) old[k] = from_float<T>(to_float(old[k]) + sum[k]);
    old.store(d);
}

/* Sums the runs of a block's positions. A run that crosses blocks leaves pieces: pieces[b][0] is the sum of
 * the rows of block b whose run began in an earlier block, pieces[b][1] of those whose run begins here and
 * continues. */
template <class T>
__global__ void embed_backward_run_kernel(T *dwte, float *pieces, const T *dout, const int *keys,
                                          const int *positions, int n, int64_t C) {
    int64_t c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * vec<T>::size;
    if (c >= C) return;
    int first = (int)blockIdx.x * RUN, last = min(first + RUN, n);
    bool from_before = first > 0 && keys[first - 1] == keys[first];
    float sum[vec<T>::size] = {};
    for (int start = first; start < last; start += AHEAD) {
        vec<T> row[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (start + k < last) row[k] = vec<T>::load(dout + positions[start + k] * C + c);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            int i = start + k;
            if (i >= last) break;
#pragma unroll
            for (int e = 0; e < vec<T>::size; e++) sum[e] += to_float(row[k][e]);
            bool ends = i + 1 == n || keys[i + 1] != keys[i];
            if (!ends && i + 1 < last) continue;
            if (ends && !from_before) {
                add_to(dwte + keys[i] * C + c, sum);
            } else {
                float *piece = pieces + ((int64_t)blockIdx.x * 2 + (from_before ? 0 : 1)) * C + c;
#pragma unroll
                for (int e = 0; e < vec<T>::size; e++) piece[e] = sum[e];
            }
#pragma unroll
            for (int e = 0; e < vec<T>::size; e++) sum[e] = 0.0f;
            from_before = false;
        }
    }
}

/* A block per border between blocks of RUN: adds up the pieces of a run that begins in block b and crosses
 * its end. */
template <class T>
__global__ void embed_backward_join_kernel(T *dwte, const float *pieces, const int *keys, int n, int64_t C) {
    int64_t c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * vec<T>::size;
    int block = (int)blockIdx.x, end = (block + 1) * RUN;
    if (c >= C) return;
    int key = keys[end - 1];
    bool starts_here = block == 0 || keys[block * RUN - 1] != key;
    if (keys[end] != key || !starts_here) return;
    float sum[vec<T>::size];
    const float *piece = pieces + ((int64_t)block * 2 + 1) * C + c;
#pragma unroll
    for (int e = 0; e < vec<T>::size; e++) sum[e] = piece[e];
    for (int b = block + 1; b * RUN < n && keys[b * RUN] == key; b++) {
        piece = pieces + (int64_t)b * 2 * C + c;
#pragma unroll
        for (int e = 0; e < vec<T>::size; e++) sum[e] += piece[e];
    }
    add_to(dwte + key * C + c, sum);
}

/* dwpe, by vectors; blockIdx.x is the position. */
template <class T>
__global__ void embed_backward_position_kernel(T *dwpe, const T *dout, int batch, int length, int64_t C) {
    int64_t c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * vec<T>::size;
    if (c >= C) return;
    const T *d = dout + (int64_t)blockIdx.x * C + c;
    float sum[vec<T>::size] = {};
#pragma unroll 8
    for (int b = 0; b < batch; b++) {
        vec<T> row = vec<T>::load(d + b * length * C);
#pragma unroll
        for (int e = 0; e < vec<T>::size; e++) sum[e] += to_float(row[e]);
    }
    add_to(dwpe + (int64_t)blockIdx.x * C + c, sum);
}

/* --- launchers --- */

static void embed_forward_naive(const struct op_env *env, struct tensor *out, const struct tensor *tokens,
                                const struct tensor *wte, const struct tensor *wpe, int t0) {
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t n = tensor_count(out);
        launch({grid_size(n, 256), 256, 0, env->stream}, embed_forward_naive_kernel<T>, data_of<T>(out),
               i32(tokens), data_of<T>(wte), data_of<T>(wpe), n, (int)tokens->dim[1], tensor_cols(wte), t0);
    });
}

static int64_t embed_forward_vec_need(struct tensor *out, const struct tensor *tokens,
                                      const struct tensor *wte, const struct tensor *wpe, int t0) {
    return rows_of_vectors(out, wte, wpe) ? 0 : OP_UNSUPPORTED;
}

static void embed_forward_vec(const struct op_env *env, struct tensor *out, const struct tensor *tokens,
                              const struct tensor *wte, const struct tensor *wpe, int t0) {
    constexpr int rows_a_block = 4;
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t rows = tensor_count(tokens);
        launch({grid_size(rows, rows_a_block), {WARP_SIZE, rows_a_block}, 0, env->stream},
               wpe ? embed_forward_vec_kernel<T, true> : embed_forward_vec_kernel<T, false>, data_of<T>(out),
               i32(tokens), data_of<T>(wte), data_of<T>(wpe), rows, (int)tokens->dim[1], tensor_cols(wte),
               t0);
    });
}

static void embed_backward_naive(const struct op_env *env, struct tensor *dwte, struct tensor *dwpe,
                                 const struct tensor *dout, const struct tensor *tokens) {
    int64_t rows = tensor_count(tokens), C = tensor_cols(dwte);
    int batch = (int)tokens->dim[0], length = (int)tokens->dim[1];
    with_dtype(dout->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(rows, 1), 128, 0, env->stream}, embed_backward_naive_kernel<T>, data_of<T>(dwte),
               data_of<T>(dout), i32(tokens), rows, C);
        if (!dwpe) return;
        launch({grid_size(length, 1), 128, 0, env->stream}, embed_backward_position_naive_kernel<T>,
               data_of<T>(dwpe), data_of<T>(dout), batch, length, C);
    });
}

/* The parts of the scratch. */
struct embed_scratch {
    int64_t n, tiles, borders;
    int *keys[2], *positions[2]; /* (n) each; the sort alternates between the two sets */
    int *counts;                 /* (tiles, DIGITS) */
    float *pieces;               /* (blocks of RUN, 2, C) */
    int64_t bytes;
};

static struct embed_scratch embed_scratch_cut(void *base, int64_t n, int64_t C) {
    struct embed_scratch s = {};
    scratch_pieces p = {base, 0};
    s.n = n;
    s.tiles = ceil_div(n, SORT_TILE);
    s.borders = ceil_div(n, RUN) - 1;
    for (int k = 0; k < 2; k++) s.keys[k] = p.take<int>(n), s.positions[k] = p.take<int>(n);
    s.counts = p.take<int>(s.tiles * DIGITS);
    s.pieces = p.take<float>((s.borders + 1) * 2 * C);
    s.bytes = p.bytes;
    return s;
}

static int64_t embed_backward_sort_need(struct tensor *dwte, struct tensor *dwpe, const struct tensor *dout,
                                        const struct tensor *tokens) {
    int64_t n = tensor_count(tokens);
    bool fits = n < (1ll << 30) && tensor_rows(dwte) < (1ll << 30);
    if (!fits || !rows_of_vectors(dwte, dwpe, dout)) return OP_UNSUPPORTED;
    return embed_scratch_cut(nullptr, n, tensor_cols(dwte)).bytes;
}

/* Sorts by the bits that tokens below `vocab` have. Returns which of the two sets holds the result. */
static int sort_by_token(const struct op_env *env, const struct embed_scratch *s, const int *tokens,
                         int64_t vocab) {
    int n = (int)s->n, to = 0, shift = 0;
    const int *keys = tokens, *positions = nullptr;
    do {
        launch({grid_size(s->tiles, 1), SORT_BLOCK, 0, env->stream}, embed_sort_count_kernel, s->counts, keys,
               n, shift);
        launch({grid_size(s->tiles, 1), SORT_BLOCK, 0, env->stream}, embed_sort_scatter_kernel, s->keys[to],
               s->positions[to], keys, positions, s->counts, n, shift);
        keys = s->keys[to];
        positions = s->positions[to];
        to = 1 - to;
        shift += 8;
    } while ((vocab - 1) >> shift > 0);
    return 1 - to;
}

static void embed_backward_sort(const struct op_env *env, struct tensor *dwte, struct tensor *dwpe,
                                const struct tensor *dout, const struct tensor *tokens) {
    int64_t C = tensor_cols(dwte);
    int batch = (int)tokens->dim[0], length = (int)tokens->dim[1];
    struct embed_scratch s = embed_scratch_cut(env->scratch, tensor_count(tokens), C);
    int sorted = sort_by_token(env, &s, i32(tokens), tensor_rows(dwte));
    with_dtype(dout->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t vectors = C / vec<T>::size;
        unsigned block = (unsigned)min_i64(round_up(vectors, WARP_SIZE), 128);
        unsigned columns = grid_size(vectors, block); /* blocks per row, to cover C */
        launch({{grid_size(s.borders + 1, 1), columns}, block, 0, env->stream}, embed_backward_run_kernel<T>,
               data_of<T>(dwte), s.pieces, data_of<T>(dout), s.keys[sorted], s.positions[sorted], (int)s.n,
               C);
        if (s.borders > 0)
            launch({{grid_size(s.borders, 1), columns}, block, 0, env->stream}, embed_backward_join_kernel<T>,
                   data_of<T>(dwte), s.pieces, s.keys[sorted], (int)s.n, C);
        if (!dwpe) return;
        launch({{grid_size(length, 1), columns}, block, 0, env->stream}, embed_backward_position_kernel<T>,
               data_of<T>(dwpe), data_of<T>(dout), batch, length, C);
    });
}

/* --- variants --- */

extern "C" {
const struct embed_forward_variant cuda_embed_forward_variants[] = {
    {"vec", embed_forward_vec, embed_forward_vec_need}, {"naive", embed_forward_naive}, {}};
const struct embed_backward_variant cuda_embed_backward_variants[] = {
    {"sort", embed_backward_sort, embed_backward_sort_need}, {"naive", embed_backward_naive}, {}};
}
