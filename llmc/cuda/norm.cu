/* LayerNorm and RMSNorm: forward, forward of a sum, backward. Contracts in ops.h.
 *
 * RMSNorm (no operand `mean`) is computed as LayerNorm with the mean 0, a norm without weights with ones; all
 * threads take the same side of the branches on that.
 *
 * Forward reads a row into registers and passes over it three times there: mean, squared deviations from
 * the mean (the one-pass E[x^2] - mean^2 cancels when |mean| is far above the deviation), output.
 * residual_norm_forward is the same kernel with an addition in front, rounded to the storage type before it
 * is normalised, so that it gives the bits of the two separate ops. An output in e4m3 is rounded from fp32 and
 * takes one pass, because its scale comes from the weights. Blocks take the last rows first, which
 * the matmul before left in L2, and leave the first rows there for the next matmul.
 *
 * In backward a thread owns one vector of columns for all rows of its block, so that the sums over rows for
 * dweight and dbias stay in its registers. The two sums over the columns of a row go through shared memory,
 * for several rows at a time. Blocks leave their sums in scratch, and a second kernel adds them in order.
 *
 * Predicted for C = 768 in bf16 on an H200: forward moves 4 bytes per element (of a sum 8), backward 8 and
 * another 1 % for the blocks' sums, both at the rate of a copy. */
#include "llmc/cuda/fp8.cuh"
#include "llmc/cuda/norm.cuh"
#include "llmc/cuda/operands.cuh"

/* --- forward in fp8: the scale --- */

/* *descale of an e4m3 output: from fp8_norm_bound() of all channels. One block. */
static __global__ void __launch_bounds__(AMAX_THREADS)
    norm_descale_kernel(float *descale, const bf16 *weight, const bf16 *bias, int C) {
    SHARED(uint32_t, scratch, [AMAX_THREADS / WARP_SIZE]);
    int warp = (int)threadIdx.x / WARP_SIZE, lane = (int)threadIdx.x % WARP_SIZE;
    float root = sqrtf((float)C);
    uint32_t bound = 0;
    for (int c = (int)threadIdx.x; c < C; c += AMAX_THREADS) {
        float b = bias ? fabsf(to_float(bias[c])) : 0.0f;
        bound = max(bound, magnitude_bits(fmaf(root, fabsf(weight_at(weight, c)), b)));
    }
    bound = block_max_bits(bound, warp, lane, AMAX_THREADS / WARP_SIZE, scratch);
    if (threadIdx.x == 0) *descale = fp8_descale_of<FP8_E4M3>(bound);
}

DEVICE_INLINE float scale_of(const float *descale) { return descale ? 1.0f / *descale : 1.0f; }

/* --- forward, naive: a block per row, three passes over memory --- */

template <class O, class T>
DEVICE_INLINE void norm_row_naive(O *out, float scale, float *mean, float *rstd, const T *x, const T *weight,
                                  const T *bias, float eps, int64_t C, float *scratch) {
    float sum = 0.0f, squares = 0.0f, m = 0.0f;
    if (mean) {
        for (int64_t c = threadIdx.x; c < C; c += blockDim.x) sum += to_float(x[c]);
        m = block_sum(sum, scratch) / (float)C;
    }
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
        float d = to_float(x[c]) - m;
        squares = fmaf(d, d, squares);
    }
    float r = 1.0f / sqrtf(block_sum(squares, scratch) / (float)C + eps);
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
        store_scaled(out + c,
                     fmaf((to_float(x[c]) - m) * r, weight_at(weight, c), bias ? to_float(bias[c]) : 0.0f),
                     scale);
    if (threadIdx.x > 0) return;
    if (mean) *mean = m;
    *rstd = r;
}

/* With `delta`, x is inp + delta and stored in `residual`, which may be inp. */
template <class T, class O>
__global__ void norm_forward_naive_kernel(T *residual, O *out, const float *descale, float *mean, float *rstd,
                                          const T *inp, const T *delta, const T *weight, const T *bias,
                                          float eps, int64_t C) {
    SHARED(float, scratch, [32]);
    int64_t row = blockIdx.x;
    const T *x = inp + row * C;
    if (delta) {
        for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
            residual[row * C + c] = from_float<T>(to_float(x[c]) + to_float(delta[row * C + c]));
        x = residual + row * C; /* a thread reads back its own writes */
    }
    norm_row_naive(out + row * C, scale_of(descale), mean ? mean + row : nullptr, rstd + row, x, weight, bias,
                   eps, C, scratch);
}

/* --- forward: WARPS warps take a row, VECS vectors per thread --- */

constexpr int ROWS_A_BLOCK = 4; /* where a warp takes a row */

template <int WARPS> DEVICE_INLINE float row_sum(float v, float *scratch) {
    if constexpr (WARPS == 1)
        return warp_sum(v);
    else
        return block_sum(v, scratch);
}

template <class T, class O, int VECS, int WARPS>
__global__ void __launch_bounds__(WARPS == 1 ? ROWS_A_BLOCK * WARP_SIZE : WARPS * WARP_SIZE)
    norm_forward_kernel(T *residual, O *out, const float *descale, float *mean, float *rstd, const T *inp,
                        const T *delta, const T *weight, const T *bias, float eps, int64_t rows, int C) {
    constexpr int size = vec<T>::size, threads = WARPS * WARP_SIZE;
    SHARED(float, scratch, [32]);
    int tid = (int)threadIdx.x % threads;
    int64_t row =
        rows - 1 - (WARPS == 1 ? (int64_t)blockIdx.x * ROWS_A_BLOCK + threadIdx.x / WARP_SIZE : blockIdx.x);
    if (row < 0) return; /* whole warps; with WARPS > 1 there is no such row */

    vec<T> x[VECS];
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int c = (i * threads + tid) * size;
        if (c < C) x[i] = vec<T>::load_streaming(inp + row * C + c);
    }
    if (delta) {
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            int c = (i * threads + tid) * size;
            if (c >= C) continue;
            vec<T> d = vec<T>::load_streaming(delta + row * C + c);
#pragma unroll
            for (int k = 0; k < size; k++) x[i][k] = from_float<T>(to_float(x[i][k]) + to_float(d[k]));
            x[i].store_streaming(residual + row * C + c);
        }
    }

    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < VECS; i++)
        if ((i * threads + tid) * size < C)
#pragma unroll
            for (int k = 0; k < size; k++) sum += to_float(x[i][k]);
    float m = row_sum<WARPS>(sum, scratch) / (float)C;
    /* RMSNorm does not need the sum, but memory takes longer, and a branch around the sum costs registers */
    m = mean ? m : 0.0f;
#pragma unroll
    for (int i = 0; i < VECS; i++)
        if ((i * threads + tid) * size < C)
#pragma unroll
            for (int k = 0; k < size; k++) {
                float d = to_float(x[i][k]) - m;
                squares = fmaf(d, d, squares);
            }
    float r = 1.0f / sqrtf(row_sum<WARPS>(squares, scratch) / (float)C + eps), scale = scale_of(descale);
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int c = (i * threads + tid) * size;
        if (c >= C) continue;
        vec<T> w = weights_at(weight, c), b = {};
        if (bias) b = vec<T>::load(bias + c);
        float y[size];
#pragma unroll
        for (int k = 0; k < size; k++)
            y[k] = fmaf((to_float(x[i][k]) - m) * r, to_float(w[k]), to_float(b[k]));
        store_scaled(out + row * C + c, y, scale);
    }
    if (tid == 0 && mean) mean[row] = m;
    if (tid == 0) rstd[row] = r;
}

/* --- backward, naive --- */

/* A thread per column, over all rows. */
template <class T>
__global__ void norm_backward_columns_naive_kernel(T *dweight, T *dbias, const T *dout, const T *inp,
                                                   const float *mean, const float *rstd, int64_t rows,
                                                   int64_t C) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float dw = 0.0f, db = 0.0f;
    for (int64_t row = 0; row < rows; row++) {
        float d = to_float(dout[row * C + c]);
        dw += d * ((to_float(inp[row * C + c]) - (mean ? mean[row] : 0.0f)) * rstd[row]);
        db += d;
    }
    dweight[c] = from_float<T>(to_float(dweight[c]) + dw);
    if (dbias) dbias[c] = from_float<T>(to_float(dbias[c]) + db);
}

/* A block per row. dinp may be dout or dresidual, since a thread touches only its own elements. */
template <class T>
__global__ void norm_backward_rows_naive_kernel(T *dinp, const T *dresidual, const T *dout, const T *inp,
                                                const float *mean, const float *rstd, const T *weight,
                                                int64_t C) {
    SHARED(float, scratch, [32]);
    int64_t row = blockIdx.x, at = row * C;
    float m = mean ? mean[row] : 0.0f, r = rstd[row], sum_g = 0.0f, sum_gx = 0.0f;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
        float g = to_float(dout[at + c]) * weight_at(weight, c);
        sum_g += g;
        sum_gx += g * ((to_float(inp[at + c]) - m) * r);
    }
    float mean_g = mean ? block_sum(sum_g, scratch) / (float)C : 0.0f;
    float mean_gx = block_sum(sum_gx, scratch) / (float)C;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
        float g = to_float(dout[at + c]) * weight_at(weight, c);
        float dx = r * (g - mean_g - (to_float(inp[at + c]) - m) * r * mean_gx);
        dinp[at + c] = from_float<T>(dresidual ? to_float(dresidual[at + c]) + dx : dx);
    }
}

/* --- backward: one pass over the rows --- */

/* What a thread's vector of a row adds to the row's two sums, and to the columns' sums over rows. */
template <class T, int size>
DEVICE_INLINE void norm_backward_add(const vec<T> &d, const vec<T> &x, float m, float r,
                                     const float (&w)[size], float (&dw)[size], float (&db)[size],
                                     float &sum_g, float &sum_gx) {
    float ds[size], xs[size];
    to_floats(ds, d), to_floats(xs, x);
#pragma unroll
    for (int e = 0; e < size; e++) {
        float xhat = (xs[e] - m) * r, g = ds[e] * w[e];
        sum_g += g;
        sum_gx = fmaf(g, xhat, sum_gx);
        dw[e] = fmaf(ds[e], xhat, dw[e]);
        db[e] += ds[e];
    }
}

/* d becomes the vector's gradient, added to `past` if there is a gradient of the residual. */
template <class T, int size>
DEVICE_INLINE void norm_input_gradient(vec<T> &d, const vec<T> &x, const vec<T> &past, bool residual, float m,
                                       float r, const float (&w)[size], float mean_g, float mean_gx) {
    float ds[size], xs[size], ps[size];
    to_floats(ds, d), to_floats(xs, x), to_floats(ps, past);
#pragma unroll
    for (int e = 0; e < size; e++) {
        float xhat = (xs[e] - m) * r;
        float dx = r * (ds[e] * w[e] - mean_g - xhat * mean_gx);
        d[e] = from_float<T>(residual ? ps[e] + dx : dx);
    }
}

/* partials: (blocks, 2, C), what each block adds to dweight and dbias; NULL: they are not wanted. A block
 * takes ROWS rows at a time, so that a thread has 3*ROWS independent 16-byte loads in flight and one barrier
 * serves 2*ROWS sums. Sums alternate between two buffers, so that no warp overwrites what a slower one still
 * reads. dinp may be dout or dresidual, since a thread touches only its own elements and reads them first. A
 * block has WARPS warps: as a constant it makes the sums over warps a few instructions. */
template <class T, int ROWS, int WARPS>
__global__ void __launch_bounds__(WARPS *WARP_SIZE, WARPS <= 3    ? 6
                                                    : WARPS <= 16 ? 16 / WARPS
                                                                  : 1)
    norm_backward_kernel(T *dinp, float *partials, const T *dresidual, const T *dout, const T *inp,
                         const float *mean, const float *rstd, const T *weight, int64_t rows, int C) {
    constexpr int size = vec<T>::size;
    SHARED(float, sums, [2][ROWS * 2][WARPS]);
    int tid = (int)threadIdx.x, lane = tid % WARP_SIZE, warp = tid / WARP_SIZE, c = tid * size, buffer = 0;
    bool active = c < C;
    float w[size] = {};
    if (active) to_floats(w, weights_at(weight, c));
    float dw[size] = {}, db[size] = {}, inverse_C = 1.0f / (float)C;

    for (int64_t first = (int64_t)blockIdx.x * ROWS; first < rows; first += (int64_t)gridDim.x * ROWS) {
        vec<T> d[ROWS], x[ROWS], past[ROWS];
        float m[ROWS], r[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            int64_t row = first + k < rows ? first + k : rows - 1, at = row * C + c;
            m[k] = mean ? mean[row] : 0.0f;
            r[k] = rstd[row];
            if (first + k >= rows || !active) continue;
            d[k] = vec<T>::load_streaming(dout + at);
            x[k] = vec<T>::load_streaming(inp + at);
            if (dresidual) past[k] = vec<T>::load_streaming(dresidual + at);
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            float sum_g = 0.0f, sum_gx = 0.0f;
            if (first + k < rows && active)
                norm_backward_add(d[k], x[k], m[k], r[k], w, dw, db, sum_g, sum_gx);
            sum_g = warp_sum(sum_g);
            sum_gx = warp_sum(sum_gx);
            if (lane == 0) sums[buffer][2 * k][warp] = sum_g, sums[buffer][2 * k + 1][warp] = sum_gx;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            if (first + k >= rows || !active) continue;
            float mean_g = 0.0f, mean_gx = 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                mean_g += sums[buffer][2 * k][i];
                mean_gx += sums[buffer][2 * k + 1][i];
            }
            mean_g = mean ? mean_g * inverse_C : 0.0f;
            norm_input_gradient(d[k], x[k], past[k], dresidual, m[k], r[k], w, mean_g, mean_gx * inverse_C);
            d[k].store(dinp + (first + k) * C + c);
        }
        buffer ^= 1;
    }
    if (!active || !partials) return;
    float *mine = partials + (int64_t)blockIdx.x * 2 * C + c;
#pragma unroll
    for (int e = 0; e < size; e++) mine[e] = dw[e], mine[C + e] = db[e];
}

/* --- launchers --- */

constexpr int NAIVE_BLOCK = 128;
constexpr int WIDE_WARPS = 8; /* for a row that is too long for one warp */
constexpr int MAX_VECS = 8;   /* of a row, in a thread's registers */

/* Calls f with a value of the dtype of inp and with the output's data, after the scale of an e4m3 output has
 * been found. */
template <class F>
static void with_output(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                        const struct tensor *weight, const struct tensor *bias, F f) {
    if (out->dtype == DTYPE_E4M3) {
        launch({1, AMAX_THREADS, 0, env->stream}, norm_descale_kernel, out->descale, data_of<bf16>(weight),
               data_of<bf16>(bias), (int)tensor_cols(inp));
        f(bf16(), data_of<e4m3>(out));
        return;
    }
    with_dtype(inp->dtype, [&](auto tag) { f(tag, data_of<decltype(tag)>(out)); });
}

static void residual_norm_forward_naive(const struct op_env *env, struct tensor *residual, struct tensor *out,
                                        struct tensor *mean, struct tensor *rstd, const struct tensor *inp,
                                        const struct tensor *delta, const struct tensor *weight,
                                        const struct tensor *bias, float eps) {
    with_output(env, out, inp, weight, bias, [&](auto tag, auto *y) {
        using T = decltype(tag);
        launch({grid_size(tensor_rows(inp), 1), NAIVE_BLOCK, 0, env->stream},
               norm_forward_naive_kernel<T, std::remove_pointer_t<decltype(y)>>, data_of<T>(residual), y,
               out->descale, data_of<float>(mean), f32(rstd), data_of<T>(inp), data_of<T>(delta),
               data_of<T>(weight), data_of<T>(bias), eps, tensor_cols(inp));
    });
}

static int64_t residual_norm_forward_vec_need(struct tensor *residual, struct tensor *out,
                                              struct tensor *mean, struct tensor *rstd,
                                              const struct tensor *inp, const struct tensor *delta,
                                              const struct tensor *weight, const struct tensor *bias,
                                              float eps) {
    int64_t row_bytes = tensor_cols(inp) * (int64_t)dtype_size(inp->dtype);
    return rows_of_vectors(out, residual, inp, delta, weight, bias) &&
                   row_bytes <= WIDE_WARPS * WARP_SIZE * MAX_VECS * 16
               ? 0
               : OP_UNSUPPORTED;
}

/* Calls f with `vecs`, at most 8, as a compile-time number. */
template <class F> static void with_vecs(int64_t vecs, F f) {
    if (vecs <= 1) return f(std::integral_constant<int, 1>());
    if (vecs <= 2) return f(std::integral_constant<int, 2>());
    if (vecs <= 3) return f(std::integral_constant<int, 3>());
    if (vecs <= 4) return f(std::integral_constant<int, 4>());
    if (vecs <= 5) return f(std::integral_constant<int, 5>());
    if (vecs <= 6) return f(std::integral_constant<int, 6>());
    if (vecs <= 7) return f(std::integral_constant<int, 7>());
    f(std::integral_constant<int, MAX_VECS>());
}

static void residual_norm_forward_vec(const struct op_env *env, struct tensor *residual, struct tensor *out,
                                      struct tensor *mean, struct tensor *rstd, const struct tensor *inp,
                                      const struct tensor *delta, const struct tensor *weight,
                                      const struct tensor *bias, float eps) {
    with_output(env, out, inp, weight, bias, [&](auto tag, auto *y) {
        using T = decltype(tag);
        using O = std::remove_pointer_t<decltype(y)>;
        int64_t rows = tensor_rows(inp), C = tensor_cols(inp), vectors = C / vec<T>::size;
        auto go = [&](const launch_config &config, auto kernel) {
            launch(config, kernel, data_of<T>(residual), y, out->descale, data_of<float>(mean), f32(rstd),
                   data_of<T>(inp), data_of<T>(delta), data_of<T>(weight), data_of<T>(bias), eps, rows,
                   (int)C);
        };
        if (vectors <= WARP_SIZE * MAX_VECS)
            with_vecs(ceil_div(vectors, WARP_SIZE), [&](auto vecs) {
                go({grid_size(rows, ROWS_A_BLOCK), ROWS_A_BLOCK * WARP_SIZE, 0, env->stream},
                   norm_forward_kernel<T, O, decltype(vecs)::value, 1>);
            });
        else
            with_vecs(ceil_div(vectors, WIDE_WARPS * WARP_SIZE), [&](auto vecs) {
                go({grid_size(rows, 1), WIDE_WARPS * WARP_SIZE, 0, env->stream},
                   norm_forward_kernel<T, O, decltype(vecs)::value, WIDE_WARPS>);
            });
    });
}

/* norm_forward is residual_norm_forward without the addition. */
static void norm_forward_naive(const struct op_env *env, struct tensor *out, struct tensor *mean,
                               struct tensor *rstd, const struct tensor *inp, const struct tensor *weight,
                               const struct tensor *bias, float eps) {
    residual_norm_forward_naive(env, nullptr, out, mean, rstd, inp, nullptr, weight, bias, eps);
}

static int64_t norm_forward_vec_need(struct tensor *out, struct tensor *mean, struct tensor *rstd,
                                     const struct tensor *inp, const struct tensor *weight,
                                     const struct tensor *bias, float eps) {
    return residual_norm_forward_vec_need(nullptr, out, mean, rstd, inp, nullptr, weight, bias, eps);
}

static void norm_forward_vec(const struct op_env *env, struct tensor *out, struct tensor *mean,
                             struct tensor *rstd, const struct tensor *inp, const struct tensor *weight,
                             const struct tensor *bias, float eps) {
    residual_norm_forward_vec(env, nullptr, out, mean, rstd, inp, nullptr, weight, bias, eps);
}

static void norm_backward_naive(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                                struct tensor *dbias, const struct tensor *dresidual,
                                const struct tensor *dout, const struct tensor *inp,
                                const struct tensor *mean, const struct tensor *rstd,
                                const struct tensor *weight) {
    int64_t rows = tensor_rows(inp), C = tensor_cols(inp);
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        /* columns first, because dinp may overwrite dout */
        if (dweight)
            launch({grid_size(C, NAIVE_BLOCK), NAIVE_BLOCK, 0, env->stream},
                   norm_backward_columns_naive_kernel<T>, data_of<T>(dweight), data_of<T>(dbias),
                   data_of<T>(dout), data_of<T>(inp), data_of<float>(mean), f32(rstd), rows, C);
        launch({grid_size(rows, 1), NAIVE_BLOCK, 0, env->stream}, norm_backward_rows_naive_kernel<T>,
               data_of<T>(dinp), data_of<T>(dresidual), data_of<T>(dout), data_of<T>(inp),
               data_of<float>(mean), f32(rstd), data_of<T>(weight), C);
    });
}

/* Two shapes of block: up to 8 warps with 3 rows in flight, or up to 32 warps (64 registers a thread) with
 * one. There are three blocks for each SM of an H200, or six of up to 3 warps, of which one computes while
 * another loads; on every device, so that the bits do not depend on it. */
constexpr int NARROW_WARPS = 8, NARROW_ROWS = 3, WIDE_BLOCK_WARPS = 32, WIDE_ROWS = 1;
static int64_t norm_backward_blocks(int64_t rows, int64_t warps) {
    return min_i64((warps <= 3 ? 6 : 3) * 132,
                   ceil_div(rows, warps <= NARROW_WARPS ? NARROW_ROWS : WIDE_ROWS));
}

static int64_t norm_backward_vec_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                      const struct tensor *dresidual, const struct tensor *dout,
                                      const struct tensor *inp, const struct tensor *mean,
                                      const struct tensor *rstd, const struct tensor *weight) {
    int64_t C = tensor_cols(inp), vectors = C * (int64_t)dtype_size(inp->dtype) / 16;
    if (!rows_of_vectors(dinp, dresidual, dout, inp, weight) || vectors > WIDE_BLOCK_WARPS * WARP_SIZE)
        return OP_UNSUPPORTED;
    if (!dweight) return 0;
    return norm_backward_blocks(tensor_rows(inp), ceil_div(vectors, WARP_SIZE)) * 2 * C *
           (int64_t)sizeof(float);
}

static void norm_backward_vec(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                              struct tensor *dbias, const struct tensor *dresidual, const struct tensor *dout,
                              const struct tensor *inp, const struct tensor *mean, const struct tensor *rstd,
                              const struct tensor *weight) {
    int64_t rows = tensor_rows(inp), C = tensor_cols(inp);
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t warps = ceil_div(C / vec<T>::size, WARP_SIZE), blocks = norm_backward_blocks(rows, warps);
        float *partials = dweight ? (float *)env->scratch : nullptr; /* (blocks, 2, C) */
        auto go = [&](auto kernel, int64_t block_warps) {
            launch({grid_size(blocks, 1), (unsigned)(block_warps * WARP_SIZE), 0, env->stream}, kernel,
                   data_of<T>(dinp), partials, data_of<T>(dresidual), data_of<T>(dout), data_of<T>(inp),
                   data_of<float>(mean), f32(rstd), data_of<T>(weight), rows, (int)C);
        };
        if (warps <= NARROW_WARPS)
            with_vecs(warps, [&](auto number) {
                constexpr int WARPS = decltype(number)::value;
                go(norm_backward_kernel<T, NARROW_ROWS, WARPS>, WARPS);
            });
        else if (warps <= WIDE_BLOCK_WARPS / 2)
            go(norm_backward_kernel<T, WIDE_ROWS, WIDE_BLOCK_WARPS / 2>, WIDE_BLOCK_WARPS / 2);
        else
            go(norm_backward_kernel<T, WIDE_ROWS, WIDE_BLOCK_WARPS>, WIDE_BLOCK_WARPS);
        if (!dweight) return;
        int columns = (int)(dbias ? 2 * C : C);
        launch({grid_size(columns, WARP_SIZE), {WARP_SIZE, FINISH_SLICES}, 0, env->stream},
               norm_backward_finish_kernel<T>, data_of<T>(dweight), data_of<T>(dbias), partials, (int)blocks,
               columns, (int)C);
    });
}

/* --- variants --- */

extern "C" {
const struct norm_forward_variant cuda_norm_forward_variants[] = {
    {"vec", norm_forward_vec, norm_forward_vec_need}, {"naive", norm_forward_naive}, {}};
const struct residual_norm_forward_variant cuda_residual_norm_forward_variants[] = {
    {"vec", residual_norm_forward_vec, residual_norm_forward_vec_need},
    {"naive", residual_norm_forward_naive},
    {}};
const struct norm_backward_variant cuda_norm_backward_variants[] = {
    {"vec", norm_backward_vec, norm_backward_vec_need}, {"naive", norm_backward_naive}, {}};
}
