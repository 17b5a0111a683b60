/* Layer normalisation backward, in four steps. Production is "vec" in llmc/cuda/norm.cu; contract in ops.h.
 *
 * GPT-2 124M, 65,536 rows of C = 768 in bf16: a pass over an (N,C) tensor is 101 MB, 23 us at the 4.3 TB/s of
 * an H200's copy. Backward needs three, to read dout and inp and to write dinp: 70 us.
 * Order: steps 1 to 4, launchers, rows. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

constexpr int BLOCK = 256;

/* --- step 1: a thread a column, then a thread a row ---
 * Two kernels, because the two kinds of sum run in different directions: dweight and dbias over the rows, the
 * two sums of dinp over the columns. The columns come first: dinp may overwrite dout.
 * Predicted: the column kernel has 768 threads, 3 blocks on 132 SMs, each a chain of 65,536 loads that wait
 * about 600 ns, some 16 in flight: 2.5 ms. The row kernel suffers as the thread a row of norm.cu. Measured:
 * not yet measured. */

template <class T>
__global__ void norm_backward_columns_kernel(T *dweight, T *dbias, const T *dout, const T *inp,
                                             const float *mean, const float *rstd, int64_t N, int C) {
    int c = (int)(blockIdx.x * BLOCK + threadIdx.x);
    if (c >= C) return;
    float dw = 0.0f, db = 0.0f;
    for (int64_t n = 0; n < N; n++) {
        float d = to_float(dout[n * C + c]);
        dw += d * (to_float(inp[n * C + c]) - mean[n]) * rstd[n];
        db += d;
    }
    dweight[c] = from_float<T>(to_float(dweight[c]) + dw);
    dbias[c] = from_float<T>(to_float(dbias[c]) + db);
}

/* LANES = 1 is step 1, a thread a row; LANES = 32 are steps 2 and 3, a warp a row. */
template <class T, int LANES>
__global__ void norm_backward_rows_kernel(T *dinp, const T *dresidual, const T *dout, const T *inp,
                                          const float *mean, const float *rstd, const T *weight, int64_t N,
                                          int C) {
    int lane = (int)threadIdx.x % LANES;
    int64_t n = (int64_t)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES;
    if (n >= N) return;
    float m = mean[n], r = rstd[n], sum_g = 0.0f, sum_gx = 0.0f;
    for (int c = lane; c < C; c += LANES) {
        float g = to_float(dout[n * C + c]) * to_float(weight[c]);
        sum_g += g;
        sum_gx += g * (to_float(inp[n * C + c]) - m) * r;
    }
    if (LANES == WARP_SIZE) sum_g = warp_sum(sum_g), sum_gx = warp_sum(sum_gx);
    for (int c = lane; c < C; c += LANES) {
        float xhat = (to_float(inp[n * C + c]) - m) * r;
        float g = to_float(dout[n * C + c]) * to_float(weight[c]);
        float dx = r * (g - sum_g / (float)C - xhat * sum_gx / (float)C);
        dinp[n * C + c] = from_float<T>(dresidual ? to_float(dresidual[n * C + c]) + dx : dx);
    }
}

/* --- step 2: a warp a row ---
 * Against step 1: the row kernel with LANES = 32, coalesced. Predicted: rows about 1.5 times the 70 us; the
 * column kernel unchanged, and now nearly all of the time. Measured: not yet measured. */

/* --- step 3: columns in chunks of rows ---
 * Against step 2: the rows are cut into pieces, each with its own sums in scratch, and a second kernel
 * adds the pieces in their order (atomics would add them in any order, and differently in every run).
 * Predicted: 3 x 396 blocks, so the columns cost their bytes, two passes or 47 us, and the two kernels
 * together read five tensors in place of three: 2 to 2.5 times the 70 us. Measured: not yet measured. */

/* Three blocks for each SM of an H200, and no more than there are rows. */
static int64_t chunks_of(int64_t N) { return min_i64(N, 3 * 132); }

template <class T>
__global__ void norm_backward_3_kernel(float *partials, const T *dout, const T *inp, const float *mean,
                                       const float *rstd, int64_t N, int C) {
    int c = (int)(blockIdx.x * BLOCK + threadIdx.x);
    if (c >= C) return;
    float dw = 0.0f, db = 0.0f;
    for (int64_t n = blockIdx.y; n < N; n += gridDim.y) {
        float d = to_float(dout[n * C + c]);
        dw += d * (to_float(inp[n * C + c]) - mean[n]) * rstd[n];
        db += d;
    }
    partials[(int64_t)blockIdx.y * 2 * C + c] = dw; /* partials (chunks,2,C) */
    partials[(int64_t)blockIdx.y * 2 * C + C + c] = db;
}

template <class T>
__global__ void norm_backward_3_finish_kernel(T *dweight, T *dbias, const float *partials, int chunks,
                                              int C) {
    int c = (int)(blockIdx.x * BLOCK + threadIdx.x);
    if (c >= C) return;
    float dw = to_float(dweight[c]), db = to_float(dbias[c]);
    for (int i = 0; i < chunks; i++) {
        dw += partials[(int64_t)i * 2 * C + c];
        db += partials[(int64_t)i * 2 * C + C + c];
    }
    dweight[c] = from_float<T>(dw);
    dbias[c] = from_float<T>(db);
}

/* --- step 4: one pass ---
 * Against step 3: a block walks its rows once and makes both kinds of sum from the same loads. A thread owns
 * the same COLUMNS columns of every row, so dw and db stay in its registers; the row's sums go through
 * shared memory.
 * Predicted: three tensors moved, as necessary; loads of 2 bytes and two block reductions a row leave it at
 * 1.3 to 2 times the 70 us. Measured: not yet measured. Production takes vectors and several rows per
 * barrier. */

constexpr int COLUMNS = 4; /* a thread: rows of up to 4 * 256 columns */

template <class T>
__global__ void norm_backward_4_kernel(T *dinp, float *partials, const T *dresidual, const T *dout,
                                       const T *inp, const float *mean, const float *rstd, const T *weight,
                                       int64_t N, int C) {
    SHARED(float, scratch, [32]);
    float dw[COLUMNS] = {}, db[COLUMNS] = {};
    for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
        float m = mean[n], r = rstd[n], sum_g = 0.0f, sum_gx = 0.0f, g[COLUMNS] = {}, xhat[COLUMNS] = {};
#pragma unroll
        for (int k = 0; k < COLUMNS; k++) {
            int c = (int)threadIdx.x + k * BLOCK;
            if (c >= C) continue;
            float d = to_float(dout[n * C + c]);
            xhat[k] = (to_float(inp[n * C + c]) - m) * r;
            g[k] = d * to_float(weight[c]);
            dw[k] += d * xhat[k];
            db[k] += d;
            sum_g += g[k];
            sum_gx += g[k] * xhat[k];
        }
        sum_g = block_sum(sum_g, scratch) / (float)C;
        sum_gx = block_sum(sum_gx, scratch) / (float)C;
#pragma unroll
        for (int k = 0; k < COLUMNS; k++) {
            int c = (int)threadIdx.x + k * BLOCK;
            if (c >= C) continue;
            float dx = r * (g[k] - sum_g - xhat[k] * sum_gx);
            dinp[n * C + c] = from_float<T>(dresidual ? to_float(dresidual[n * C + c]) + dx : dx);
        }
    }
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) {
        int c = (int)threadIdx.x + k * BLOCK;
        if (c >= C) continue;
        partials[(int64_t)blockIdx.x * 2 * C + c] = dw[k];
        partials[(int64_t)blockIdx.x * 2 * C + C + c] = db[k];
    }
}

/* --- launchers --- */

template <int STEP>
static int64_t backward_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                             const struct tensor *dresidual, const struct tensor *dout,
                             const struct tensor *inp, const struct tensor *mean, const struct tensor *rstd,
                             const struct tensor *weight) {
    int64_t C = tensor_cols(inp);
    if (!same_float_dtype(dinp, dweight, dbias, dresidual, dout, inp, weight)) return OP_UNSUPPORTED;
    if (C > (STEP == 4 ? COLUMNS * BLOCK : 1 << 30)) return OP_UNSUPPORTED;
    return STEP >= 3 ? chunks_of(tensor_rows(inp)) * 2 * C * (int64_t)sizeof(float) : 0;
}

template <int STEP>
static void backward(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                     struct tensor *dbias, const struct tensor *dresidual, const struct tensor *dout,
                     const struct tensor *inp, const struct tensor *mean, const struct tensor *rstd,
                     const struct tensor *weight) {
    int64_t N = tensor_rows(inp), chunks = chunks_of(N);
    int C = (int)tensor_cols(inp);
    unsigned columns = grid_size(C, BLOCK);
    float *partials = (float *)env->scratch;
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        T *dw = data_of<T>(dweight), *db = data_of<T>(dbias), *dx = data_of<T>(dinp);
        const T *d = data_of<T>(dout), *x = data_of<T>(inp), *w = data_of<T>(weight),
                *past = data_of<T>(dresidual);
        constexpr int lanes = STEP == 1 ? 1 : WARP_SIZE;
        if (STEP <= 2)
            launch({columns, BLOCK, 0, env->stream}, norm_backward_columns_kernel<T>, dw, db, d, x, f32(mean),
                   f32(rstd), N, C);
        if (STEP == 3)
            launch({{columns, (unsigned)chunks}, BLOCK, 0, env->stream}, norm_backward_3_kernel<T>, partials,
                   d, x, f32(mean), f32(rstd), N, C);
        if (STEP <= 3)
            launch({grid_size(N, BLOCK / lanes), BLOCK, 0, env->stream}, norm_backward_rows_kernel<T, lanes>,
                   dx, past, d, x, f32(mean), f32(rstd), w, N, C);
        if (STEP == 4)
            launch({(unsigned)chunks, BLOCK, 0, env->stream}, norm_backward_4_kernel<T>, dx, partials, past,
                   d, x, f32(mean), f32(rstd), w, N, C);
        if (STEP >= 3)
            launch({columns, BLOCK, 0, env->stream}, norm_backward_3_finish_kernel<T>, dw, db, partials,
                   (int)chunks, C);
    });
}

/* --- rows --- */

extern "C" const struct norm_backward_variant ladder_norm_backward[] = {
    {"4_one_pass", backward<4>, backward_need<4>},
    {"3_column_chunks", backward<3>, backward_need<3>},
    {"2_warp_per_row", backward<2>, backward_need<2>},
    {"1_thread_per_row", backward<1>, backward_need<1>},
    {}};
