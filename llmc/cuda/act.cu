/* GELU, tanh form: forward, backward. Contracts in ops.h.
 *
 * Both directions only move bytes: forward 4 per bf16 element, backward 6. An H200 SM gets about 19 bytes a
 * clock from memory, so an element may cost at most 27 (forward) and 40 (backward) of the SM's 128
 * instructions a clock before arithmetic shows. Predicted: gelu.cuh takes about 12 and 20, and both
 * directions run at the rate of a copy.
 * Sections: kernels, launchers, rows. */
#include "llmc/cuda/gelu.cuh"
#include "llmc/cuda/operands.cuh"

/* --- kernels: one element, or 16 bytes, a thread --- */

template <class T> __global__ void act_forward_naive_kernel(T *out, const T *inp, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<T>(gelu(to_float(inp[i])));
}

template <class T>
__global__ void act_backward_naive_kernel(T *dinp, const T *dout, const T *inp, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dinp[i] = from_float<T>(to_float(dout[i]) * gelu_derivative(to_float(inp[i])));
}

/* The output is the next matmul's input, so it is stored for reuse; the input is next needed in backward. */
template <class T> __global__ void act_forward_vec_kernel(T *out, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load_streaming(inp + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) x[k] = from_float<T>(gelu(to_float(x[k])));
    x.store(out + i * vec<T>::size);
}

/* dinp may be dout: a thread reads its 16 bytes before it writes them. */
template <class T>
__global__ void act_backward_vec_kernel(T *dinp, const T *dout, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load_streaming(inp + i * vec<T>::size);
    vec<T> d = vec<T>::load_streaming(dout + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++)
        d[k] = from_float<T>(to_float(d[k]) * gelu_derivative(to_float(x[k])));
    d.store(dinp + i * vec<T>::size);
}

/* --- launchers --- */

constexpr int BLOCK = 256;

static void act_forward_naive(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    int64_t n = tensor_count(inp);
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream}, act_forward_naive_kernel<T>, data_of<T>(out),
               data_of<T>(inp), n);
    });
}

static int64_t act_forward_vec_need(struct tensor *out, const struct tensor *inp) {
    return vectors_in(out, inp) ? 0 : OP_UNSUPPORTED;
}

static void act_forward_vec(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t vectors = tensor_count(inp) / vec<T>::size;
        launch({grid_size(vectors, BLOCK), BLOCK, 0, env->stream}, act_forward_vec_kernel<T>, data_of<T>(out),
               data_of<T>(inp), vectors);
    });
}

static void act_backward_naive(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                               const struct tensor *inp) {
    int64_t n = tensor_count(inp);
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream}, act_backward_naive_kernel<T>, data_of<T>(dinp),
               data_of<T>(dout), data_of<T>(inp), n);
    });
}

static int64_t act_backward_vec_need(struct tensor *dinp, const struct tensor *dout,
                                     const struct tensor *inp) {
    return vectors_in(dinp, dout, inp) ? 0 : OP_UNSUPPORTED;
}

static void act_backward_vec(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                             const struct tensor *inp) {
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t vectors = tensor_count(inp) / vec<T>::size;
        launch({grid_size(vectors, BLOCK), BLOCK, 0, env->stream}, act_backward_vec_kernel<T>,
               data_of<T>(dinp), data_of<T>(dout), data_of<T>(inp), vectors);
    });
}

/* --- variants --- */

extern "C" {
const struct act_forward_variant cuda_act_forward_variants[] = {
    {"vec", act_forward_vec, act_forward_vec_need}, {"naive", act_forward_naive}, {}};
const struct act_backward_variant cuda_act_backward_variants[] = {
    {"vec", act_backward_vec, act_backward_vec_need}, {"naive", act_backward_naive}, {}};
}
