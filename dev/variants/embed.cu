/* Embedding backward, in three steps. Production is "sort", by token, in
 * llmc/cuda/embed.cu; contract in ops.h.
 *
 * The hard part is dwte[token] += dout[b,t]: which rows meet is known at run time only, and atomics would add
 * them in a different order, and to different bits, in every run. The necessary bytes at GPT-2 124M, 65,536
 * positions of C = 768 in bf16: read dout once (101 MB), read and write the rows of dwte that occur (at most
 * 154 MB): at most 59 us at the 4.3 TB/s of an H200's copy. dwpe is a plain sum over the batch.
 * Order: dwpe, steps 1 to 3, launchers, rows. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

constexpr int BLOCK = 256;

/* dwpe[t,c] += sum over b of dout[b,t,c]: a thread an element, coalesced. The same in all steps. */
template <class T>
__global__ void embed_positions_kernel(T *dwpe, const T *dout, int64_t B, int64_t per_sequence) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; /* t*C + c */
    if (i >= per_sequence) return;
    float sum = to_float(dwpe[i]);
    for (int64_t b = 0; b < B; b++) sum += to_float(dout[b * per_sequence + i]);
    dwpe[i] = from_float<T>(sum);
}

/* --- step 1: a thread a weight ---
 * Thread (v,c) of the whole table looks at every token and adds where it is its own. Deterministic and
 * simple: nobody else writes the weight. 38.6M threads compare 65,536 tokens each. Predicted: 2.5e12
 * comparisons, 3 instructions each, at 128 a clock on 132 SMs of 1.7 GHz: 0.26 s. Measured: not yet
 * measured. */

template <class T>
__global__ void embed_1_kernel(T *dwte, const T *dout, const int *tokens, int64_t N, int64_t C, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; /* v*C + c */
    if (i >= n) return;
    float sum = 0.0f;
    for (int64_t k = 0; k < N; k++)
        if (tokens[k] == i / C) sum += to_float(dout[k * C + i % C]);
    dwte[i] = from_float<T>(to_float(dwte[i]) + sum);
}

/* --- step 2: a warp a position, if it is the first of its token ---
 * Against step 1: work starts from the tokens that occur. A warp returns where an earlier position has the
 * same token; the first one goes over all later positions, 32 tokens a load, and adds the rows that are equal
 * in their order. Frequent tokens end their search early, rare ones search everything. Predicted: at most N^2
 * = 4.3e9 comparisons in place of 2.5e12, by 32 lanes: 1.3e8 steps of about 10 instructions a warp on 528
 * schedulers of 1.7 GHz: 1.5 ms. Then the most frequent token is one warp's work: 4 % of the rows, 2,600,
 * each a wait of 600 ns for 24 chunks of columns: 37 ms. Measured: not yet measured. */

/* The columns c = lane, lane + 32, ... of the chunk [first, first + 32*OWNED) of row `token`. */
template <class T>
DEVICE_INLINE void add_rows_of_token(T *dwte, const T *dout, const int *tokens, int64_t N, int64_t C,
                                     int64_t from, int64_t column, int lane) {
    int token = tokens[from];
    float sum = 0.0f;
    for (int64_t first = from / WARP_SIZE * WARP_SIZE; first < N; first += WARP_SIZE) {
        int64_t k = first + lane;
        unsigned equal = __ballot_sync(ALL_LANES, k >= from && k < N && tokens[k] == token);
        for (; equal; equal &= equal - 1) { /* the positions in their order */
            int64_t position = first + __ffs((int)equal) - 1;
            if (column < C) sum += to_float(dout[position * C + column]);
        }
    }
    T *w = dwte + token * C + column;
    if (column < C) *w = from_float<T>(to_float(*w) + sum);
}

/* Does the token of position n occur before it? The whole warp gets the answer. */
DEVICE_INLINE bool occurs_before(const int *tokens, int64_t n, int lane) {
    for (int64_t first = 0; first < n; first += WARP_SIZE)
        if (__ballot_sync(ALL_LANES, first + lane < n && tokens[first + lane] == tokens[n])) return true;
    return false;
}

template <class T>
__global__ void embed_2_kernel(T *dwte, const T *dout, const int *tokens, int64_t N, int64_t C) {
    int lane = (int)threadIdx.x;
    if (occurs_before(tokens, blockIdx.x, lane)) return;
    for (int64_t first = 0; first < C; first += WARP_SIZE) /* all lanes, for the votes */
        add_rows_of_token(dwte, dout, tokens, N, C, blockIdx.x, first + lane, lane);
}

/* --- step 3: a warp a position and 32 columns ---
 * Against step 2: the chunks of columns go to different blocks (grid y), so a frequent token has 24 warps on
 * it. They repeat the search, which is cheap beside the waiting.
 * Predicted: the longest chain falls from 37 ms to 1.6 ms, while the searches add up to 24 * 1.5 ms if all
 * tokens are rare: a few ms on text. Measured: not yet measured. Production sorts instead of searching: each
 * position is looked at a fixed number of times, and frequent tokens are split over blocks. */

template <class T>
__global__ void embed_3_kernel(T *dwte, const T *dout, const int *tokens, int64_t N, int64_t C) {
    int lane = (int)threadIdx.x;
    if (occurs_before(tokens, blockIdx.x, lane)) return;
    int64_t c = (int64_t)blockIdx.y * WARP_SIZE + lane;
    add_rows_of_token(dwte, dout, tokens, N, C, blockIdx.x, c, lane);
}

/* --- launchers --- */

static int64_t need(struct tensor *dwte, struct tensor *dwpe, const struct tensor *dout,
                    const struct tensor *tokens) {
    bool takes = same_float_dtype(dwte, dwpe, dout) && tensor_cols(dout) < 65535 * WARP_SIZE;
    return takes ? 0 : OP_UNSUPPORTED;
}

template <int STEP>
static void run(const struct op_env *env, struct tensor *dwte, struct tensor *dwpe, const struct tensor *dout,
                const struct tensor *tokens) {
    int64_t N = tensor_count(tokens), C = tensor_cols(dout), n = tensor_count(dwte);
    int64_t per_sequence = dout->dim[1] * C;
    with_dtype(dout->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(per_sequence, BLOCK), BLOCK, 0, env->stream}, embed_positions_kernel<T>,
               data_of<T>(dwpe), data_of<T>(dout), dout->dim[0], per_sequence);
        if (STEP == 1)
            launch({grid_size(n, BLOCK), BLOCK, 0, env->stream}, embed_1_kernel<T>, data_of<T>(dwte),
                   data_of<T>(dout), i32(tokens), N, C, n);
        else
            launch({{grid_size(N, 1), STEP == 2 ? 1 : grid_size(C, WARP_SIZE)}, WARP_SIZE, 0, env->stream},
                   STEP == 2 ? embed_2_kernel<T> : embed_3_kernel<T>, data_of<T>(dwte), data_of<T>(dout),
                   i32(tokens), N, C);
    });
}

/* --- rows --- */

extern "C" const struct embed_backward_variant ladder_embed_backward[] = {
    {"3_columns_apart", run<3>, need},
    {"2_first_occurrence", run<2>, need},
    {"1_thread_per_weight", run<1>, need},
    {}};
