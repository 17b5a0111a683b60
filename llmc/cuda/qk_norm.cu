/* RMSNorm of the heads of queries and keys: forward, backward. Contracts in ops.h.
 *
 * A head is 64 to 256 columns, at most 32 vectors of 16 bytes, so LANES neighbouring lanes of a warp take
 * one, a vector each. They hold it in registers: the sum of squares, the second sum of backward and the
 * result need one pass over memory. A thread has a vector of HEADS heads in flight.
 *
 * In backward a thread meets the same columns in every head, so that it sums what both weights' gradients get
 * in registers. A block adds these up in a fixed order and leaves them in scratch; a second kernel adds the
 * blocks' sums. The number of blocks depends on the operands alone, so that the bits do not depend on the
 * device.
 *
 * Predicted on an H200: the rate of a copy, 4 bytes per bf16 element forward, 6 backward. */
#include "llmc/cuda/norm.cuh"
#include "llmc/cuda/operands.cuh"

/* --- naive: a thread per head --- */

template <class T> DEVICE_INLINE float head_rstd(const T *x, int64_t HS, float eps) {
    float squares = 0.0f;
    for (int64_t i = 0; i < HS; i++) squares = fmaf(to_float(x[i]), to_float(x[i]), squares);
    return 1.0f / sqrtf(squares / (float)HS + eps);
}

template <class T>
__global__ void qk_norm_forward_naive_kernel(T *out, const T *inp, const T *q_weight, const T *k_weight,
                                             float eps, int64_t count, int NH, int NKV, int64_t HS) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, h = i % (NH + 2 * NKV);
    if (i >= count) return;
    const T *x = inp + i * HS, *w = h < NH ? q_weight : k_weight;
    bool value = h >= NH + NKV;
    float r = value ? 1.0f : head_rstd(x, HS, eps);
    for (int64_t c = 0; c < HS; c++)
        out[i * HS + c] = value ? x[c] : from_float<T>(to_float(x[c]) * r * weight_at(w, c));
}

/* rstd (heads of all rows); entries of values are not used. */
template <class T>
__global__ void qk_norm_rstd_naive_kernel(float *rstd, const T *inp, float eps, int64_t count, int64_t HS) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) rstd[i] = head_rstd(inp + i * HS, HS, eps);
}

/* A thread per column of one weight, over its heads in all rows. */
template <class T>
__global__ void qk_norm_backward_weights_naive_kernel(T *dq_weight, T *dk_weight, const T *dout, const T *inp,
                                                      const float *rstd, int64_t count, int NH, int NKV,
                                                      int64_t HS) {
    int64_t column = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, c = column % HS;
    if (column >= 2 * HS) return;
    bool keys = column >= HS;
    float sum = 0.0f;
    for (int64_t row = 0; row < count; row += NH + 2 * NKV)
        for (int64_t h = row + (keys ? NH : 0); h < row + NH + (keys ? NKV : 0); h++)
            sum += to_float(dout[h * HS + c]) * (to_float(inp[h * HS + c]) * rstd[h]);
    T *d = (keys ? dk_weight : dq_weight) + c;
    *d = from_float<T>(to_float(*d) + sum);
}

template <class T>
__global__ void qk_norm_backward_heads_naive_kernel(T *dinp, const T *dout, const T *inp, const T *q_weight,
                                                    const T *k_weight, const float *rstd, int64_t count,
                                                    int NH, int NKV, int64_t HS) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, h = i % (NH + 2 * NKV);
    if (i >= count) return;
    const T *x = inp + i * HS, *d = dout + i * HS, *w = h < NH ? q_weight : k_weight;
    bool value = h >= NH + NKV;
    float r = rstd[i], sum = 0.0f;
    for (int64_t c = 0; !value && c < HS; c++)
        sum = fmaf(to_float(d[c]) * weight_at(w, c), to_float(x[c]) * r, sum);
    for (int64_t c = 0; c < HS; c++) {
        float dx = r * (to_float(d[c]) * weight_at(w, c) - to_float(x[c]) * r * (sum / (float)HS));
        dinp[i * HS + c] = value ? d[c] : from_float<T>(dx);
    }
}

/* --- vec: LANES lanes per head --- */

constexpr int BLOCK = 256;
constexpr int HEADS = 4; /* of a thread at a time */

/* The sum over the LANES lanes that share a head. */
template <int LANES> DEVICE_INLINE float head_sum(float v) {
#pragma unroll
    for (int i = LANES / 2; i > 0; i /= 2) v += __shfl_xor_sync(ALL_LANES, v, i);
    return v;
}

template <class T, int LANES>
__global__ void __launch_bounds__(BLOCK)
    qk_norm_forward_vec_kernel(T *out, const T *inp, const T *q_weight, const T *k_weight, float eps,
                               unsigned count, unsigned NH, unsigned NKV, int HS) {
    constexpr int size = vec<T>::size, groups = BLOCK / LANES;
    unsigned first = blockIdx.x * (groups * HEADS) + threadIdx.x / LANES, all = NH + 2 * NKV;
    int c = (int)(threadIdx.x % LANES) * size;
    vec<T> x[HEADS];
    float r[HEADS];
#pragma unroll
    for (int k = 0; k < HEADS; k++) {
        unsigned i = first + k * groups;
        if (i < count && c < HS) x[k] = vec<T>::load_streaming(inp + (int64_t)i * HS + c);
    }
#pragma unroll
    for (int k = 0; k < HEADS; k++) {
        float squares = 0.0f;
        if (first + k * groups < count && c < HS)
#pragma unroll
            for (int e = 0; e < size; e++) squares = fmaf(to_float(x[k][e]), to_float(x[k][e]), squares);
        r[k] = 1.0f / sqrtf(head_sum<LANES>(squares) / (float)HS + eps);
    }
#pragma unroll
    for (int k = 0; k < HEADS; k++) {
        unsigned i = first + k * groups, h = i % all;
        if (i >= count || c >= HS) continue;
        if (h < NH + NKV) {
            vec<T> w = weights_at(h < NH ? q_weight : k_weight, c);
#pragma unroll
            for (int e = 0; e < size; e++) x[k][e] = from_float<T>(to_float(x[k][e]) * r[k] * to_float(w[e]));
        }
        x[k].store(out + (int64_t)i * HS + c);
    }
}

/* What a block adds to the two weights: dw[0] and dw[1] of all its threads, by columns, in a fixed order. */
template <int LANES, int SIZE> DEVICE_INLINE void put_block_sums(float *partials, float dw[2][SIZE], int HS) {
    constexpr int warps = BLOCK / WARP_SIZE, columns = LANES * SIZE;
    SHARED(float, sums, [warps][2][columns]);
    int tid = (int)threadIdx.x, lane = tid % WARP_SIZE;
#pragma unroll
    for (int which = 0; which < 2; which++)
#pragma unroll
        for (int e = 0; e < SIZE; e++) {
            float v = dw[which][e];
#pragma unroll
            for (int i = LANES; i < WARP_SIZE; i *= 2) v += __shfl_xor_sync(ALL_LANES, v, i);
            if (lane < LANES) sums[tid / WARP_SIZE][which][lane * SIZE + e] = v;
        }
    __syncthreads();
    for (int i = tid; i < 2 * HS; i += BLOCK) {
        float sum = 0.0f;
        for (int w = 0; w < warps; w++) sum += sums[w][i / HS][i % HS];
        partials[(int64_t)blockIdx.x * 2 * HS + i] = sum;
    }
}

/* Heads are counted within those of a row that change: all, or without values where dinp is dout. Without
 * `partials` the weights' gradients are not wanted. */
template <class T, int LANES>
__global__ void __launch_bounds__(BLOCK)
    qk_norm_backward_vec_kernel(T *dinp, float *partials, const T *dout, const T *inp, const T *q_weight,
                                const T *k_weight, float eps, unsigned count, unsigned changed, unsigned NH,
                                unsigned NKV, int HS) {
    constexpr int size = vec<T>::size, groups = BLOCK / LANES;
    int c = (int)(threadIdx.x % LANES) * size;
    float dw[2][size] = {};
    vec<T> weight[2] = {};
    if (c < HS) weight[0] = weights_at(q_weight, c), weight[1] = weights_at(k_weight, c);

    for (unsigned block = blockIdx.x * (groups * HEADS); block < count;
         block += gridDim.x * (groups * HEADS)) {
        vec<T> d[HEADS] = {}, x[HEADS] = {};
        int64_t at[HEADS];
        unsigned h[HEADS];
#pragma unroll
        for (int k = 0; k < HEADS; k++) {
            unsigned i = block + threadIdx.x / LANES + k * groups;
            h[k] = i % changed;
            at[k] = (int64_t)(i / changed * (NH + 2 * NKV) + h[k]) * HS + c;
            if (i >= count || c >= HS) at[k] = -1;
            if (at[k] < 0) continue;
            d[k] = vec<T>::load_streaming(dout + at[k]);
            if (h[k] < NH + NKV) x[k] = vec<T>::load_streaming(inp + at[k]);
        }
#pragma unroll
        for (int k = 0; k < HEADS; k++) {
            float squares = 0.0f, sum = 0.0f;
            bool keys = h[k] >= NH;
#pragma unroll
            for (int e = 0; e < size; e++) {
                float xe = to_float(x[k][e]), w = to_float(keys ? weight[1][e] : weight[0][e]);
                squares = fmaf(xe, xe, squares);
                sum = fmaf(to_float(d[k][e]) * w, xe, sum);
            }
            float r = 1.0f / sqrtf(head_sum<LANES>(squares) / (float)HS + eps);
            float mean_gx = head_sum<LANES>(sum) * r / (float)HS;
            if (at[k] < 0) continue;
            if (h[k] < NH + NKV)
#pragma unroll
                for (int e = 0; e < size; e++) {
                    float de = to_float(d[k][e]), xhat = to_float(x[k][e]) * r;
                    dw[0][e] = fmaf(keys ? 0.0f : de, xhat, dw[0][e]);
                    dw[1][e] = fmaf(keys ? de : 0.0f, xhat, dw[1][e]);
                    float w = to_float(keys ? weight[1][e] : weight[0][e]);
                    d[k][e] = from_float<T>(r * (de * w - xhat * mean_gx));
                }
            d[k].store(dinp + at[k]);
        }
    }
    if (partials) put_block_sums<LANES>(partials, dw, HS);
}

/* --- launchers --- */

constexpr int NAIVE_BLOCK = 128;

static int64_t head_size(const struct tensor *inp, int NH, int NKV) {
    return tensor_cols(inp) / (NH + 2 * NKV);
}

static int64_t heads_in(const struct tensor *t, int64_t HS) { return tensor_count(t) / HS; }

static void qk_norm_forward_naive(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                                  const struct tensor *q_weight, const struct tensor *k_weight, int NH,
                                  int NKV, float eps) {
    int64_t HS = head_size(inp, NH, NKV), count = heads_in(inp, HS);
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(count, NAIVE_BLOCK), NAIVE_BLOCK, 0, env->stream}, qk_norm_forward_naive_kernel<T>,
               data_of<T>(out), data_of<T>(inp), data_of<T>(q_weight), data_of<T>(k_weight), eps, count, NH,
               NKV, HS);
    });
}

static int64_t qk_norm_backward_naive_need(struct tensor *dinp, struct tensor *dq_weight,
                                           struct tensor *dk_weight, const struct tensor *dout,
                                           const struct tensor *inp, const struct tensor *q_weight,
                                           const struct tensor *k_weight, int NH, int NKV, float eps) {
    return heads_in(inp, head_size(inp, NH, NKV)) * (int64_t)sizeof(float);
}

static void qk_norm_backward_naive(const struct op_env *env, struct tensor *dinp, struct tensor *dq_weight,
                                   struct tensor *dk_weight, const struct tensor *dout,
                                   const struct tensor *inp, const struct tensor *q_weight,
                                   const struct tensor *k_weight, int NH, int NKV, float eps) {
    int64_t HS = head_size(inp, NH, NKV), count = heads_in(inp, HS);
    float *rstd = (float *)env->scratch;
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch_config by_head = {grid_size(count, NAIVE_BLOCK), NAIVE_BLOCK, 0, env->stream};
        launch(by_head, qk_norm_rstd_naive_kernel<T>, rstd, data_of<T>(inp), eps, count, HS);
        /* the weights first, because dinp may overwrite dout */
        if (dq_weight)
            launch({grid_size(2 * HS, NAIVE_BLOCK), NAIVE_BLOCK, 0, env->stream},
                   qk_norm_backward_weights_naive_kernel<T>, data_of<T>(dq_weight), data_of<T>(dk_weight),
                   data_of<T>(dout), data_of<T>(inp), rstd, count, NH, NKV, HS);
        launch(by_head, qk_norm_backward_heads_naive_kernel<T>, data_of<T>(dinp), data_of<T>(dout),
               data_of<T>(inp), data_of<T>(q_weight), data_of<T>(k_weight), rstd, count, NH, NKV, HS);
    });
}

/* Heads of whole vectors, at most one for each lane, and counts that 32 bits hold. */
static bool fits_lanes(const struct tensor *inp, int64_t HS) {
    int64_t bytes = HS * (int64_t)dtype_size(inp->dtype);
    return bytes % 16 == 0 && bytes <= 16 * WARP_SIZE && heads_in(inp, HS) < (1ll << 30);
}

static int lanes_of_head(const struct tensor *inp, int64_t HS) {
    int64_t vectors = HS * (int64_t)dtype_size(inp->dtype) / 16;
    return vectors <= 8 ? 8 : vectors <= 16 ? 16 : WARP_SIZE;
}

/* Calls f with `lanes` as a compile-time number. */
template <class F> static void with_lanes(int lanes, F f) {
    if (lanes == 8) return f(std::integral_constant<int, 8>());
    if (lanes == 16) return f(std::integral_constant<int, 16>());
    f(std::integral_constant<int, WARP_SIZE>());
}

static int64_t qk_norm_forward_vec_need(struct tensor *out, const struct tensor *inp,
                                        const struct tensor *q_weight, const struct tensor *k_weight, int NH,
                                        int NKV, float eps) {
    return fits_lanes(inp, head_size(inp, NH, NKV)) && starts_on_vector(out, inp, q_weight, k_weight)
               ? 0
               : OP_UNSUPPORTED;
}

static void qk_norm_forward_vec(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                                const struct tensor *q_weight, const struct tensor *k_weight, int NH, int NKV,
                                float eps) {
    int64_t HS = head_size(inp, NH, NKV), count = heads_in(inp, HS);
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        with_lanes(lanes_of_head(inp, HS), [&](auto lanes) {
            constexpr int LANES = decltype(lanes)::value;
            launch({grid_size(count, BLOCK / LANES * HEADS), BLOCK, 0, env->stream},
                   qk_norm_forward_vec_kernel<T, LANES>, data_of<T>(out), data_of<T>(inp),
                   data_of<T>(q_weight), data_of<T>(k_weight), eps, (unsigned)count, (unsigned)NH,
                   (unsigned)NKV, (int)HS);
        });
    });
}

/* Blocks of backward; at most two for each SM of an H200, which has registers for no more (120 a thread). */
static int64_t backward_blocks(const struct tensor *inp, int64_t HS) {
    return min_i64(2 * 132, ceil_div(heads_in(inp, HS), BLOCK / lanes_of_head(inp, HS) * HEADS));
}

static int64_t qk_norm_backward_vec_need(struct tensor *dinp, struct tensor *dq_weight,
                                         struct tensor *dk_weight, const struct tensor *dout,
                                         const struct tensor *inp, const struct tensor *q_weight,
                                         const struct tensor *k_weight, int NH, int NKV, float eps) {
    int64_t HS = head_size(inp, NH, NKV);
    if (!fits_lanes(inp, HS) || !starts_on_vector(dinp, dout, inp, q_weight, k_weight)) return OP_UNSUPPORTED;
    if (!dq_weight) return 0;
    return backward_blocks(inp, HS) * 2 * HS * (int64_t)sizeof(float);
}

static void qk_norm_backward_vec(const struct op_env *env, struct tensor *dinp, struct tensor *dq_weight,
                                 struct tensor *dk_weight, const struct tensor *dout,
                                 const struct tensor *inp, const struct tensor *q_weight,
                                 const struct tensor *k_weight, int NH, int NKV, float eps) {
    int64_t HS = head_size(inp, NH, NKV), blocks = backward_blocks(inp, HS);
    unsigned changed = (unsigned)(dinp->data == dout->data ? NH + NKV : NH + 2 * NKV);
    unsigned count = (unsigned)tensor_rows(inp) * changed;
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        float *partials = dq_weight ? (float *)env->scratch : nullptr; /* (blocks, 2, HS) */
        with_lanes(lanes_of_head(inp, HS), [&](auto lanes) {
            launch({(unsigned)blocks, BLOCK, 0, env->stream},
                   qk_norm_backward_vec_kernel<T, decltype(lanes)::value>, data_of<T>(dinp), partials,
                   data_of<T>(dout), data_of<T>(inp), data_of<T>(q_weight), data_of<T>(k_weight), eps, count,
                   changed, (unsigned)NH, (unsigned)NKV, (int)HS);
        });
        if (!dq_weight) return;
        launch({grid_size(2 * HS, WARP_SIZE), {WARP_SIZE, FINISH_SLICES}, 0, env->stream},
               norm_backward_finish_kernel<T>, data_of<T>(dq_weight), data_of<T>(dk_weight), partials,
               (int)blocks, (int)(2 * HS), (int)HS);
    });
}

/* --- variants --- */

extern "C" {
const struct qk_norm_forward_variant cuda_qk_norm_forward_variants[] = {
    {"vec", qk_norm_forward_vec, qk_norm_forward_vec_need}, {"naive", qk_norm_forward_naive}, {}};
const struct qk_norm_backward_variant cuda_qk_norm_backward_variants[] = {
    {"vec", qk_norm_backward_vec, qk_norm_backward_vec_need},
    {"naive", qk_norm_backward_naive, qk_norm_backward_naive_need},
    {}};
}
