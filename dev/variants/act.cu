/* GELU, forward and backward, in three steps; production is "vec" in llmc/cuda/act.cu.
 *
 * GPT-2 124M with 65,536 tokens: 201M elements, 4 bytes each forward in bf16 (read, write), 6 backward: 805
 * MB and 1.2 GB, so 187 us and 281 us at the 4.3 TB/s of an H200's copy. Nothing can be faster; the ladder is
 * about not being slower. An SM gets 19 bytes a clock and issues 128 instructions a clock (counted by
 * thread), so a forward element may cost 27 instructions. Order: step 1, 2, 3, rows. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/gelu.cuh"
#include "llmc/cuda/operands.cuh"

constexpr int BLOCK = 256;
constexpr float SQRT_2_OVER_PI = 0.7978845608028654f;

/* The formula as it stands in ops.h. */
DEVICE_INLINE float gelu_by_formula(float x) {
    return 0.5f * x * (1.0f + tanhf(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)));
}
/* Its derivative by the product rule, with tanh' = 1 - tanh^2. */
DEVICE_INLINE float gelu_derivative_by_formula(float x) {
    if (fabsf(x) > 10.0f) return x > 0.0f ? 1.0f : 0.0f; /* to fp32; x^3 may overflow out there */
    float t = tanhf(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x));
    float slope = SQRT_2_OVER_PI * (1.0f + 3.0f * GELU_CUBIC * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope;
}

/* --- step 1: one element a thread ---
 * The definition. A warp moves 64 bytes a load in bf16, and an element costs its own index, bounds test, load
 * and store (about 10 instructions) and tanhf (about 20): above the 27 that memory leaves time for.
 * Predicted: limited by instruction issue, 1.1 to 1.5 times the 187 us. Measured: not yet measured. */

template <class T> __global__ void act_forward_1_kernel(T *out, const T *inp, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<T>(gelu_by_formula(to_float(inp[i])));
}
template <class T> __global__ void act_backward_1_kernel(T *dinp, const T *dout, const T *inp, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dinp[i] = from_float<T>(to_float(dout[i]) * gelu_derivative_by_formula(to_float(inp[i])));
}

/* --- step 2: 16 bytes a thread ---
 * Against step 1: a thread takes a whole vector, 8 bf16, so index, test, load and store are paid once for 8
 * elements: 10 instructions become about 1.3. A warp moves 512 bytes a load, which also means an eighth of
 * the requests in flight for the same bandwidth. Predicted: about 22 instructions an element, just inside the
 * budget: near the copy rate, tanhf still the largest part. Measured: not yet measured. */

template <class T> __global__ void act_forward_2_kernel(T *out, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load(inp + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) x[k] = from_float<T>(gelu_by_formula(to_float(x[k])));
    x.store(out + i * vec<T>::size);
}
template <class T>
__global__ void act_backward_2_kernel(T *dinp, const T *dout, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load(inp + i * vec<T>::size), d = vec<T>::load(dout + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++)
        d[k] = from_float<T>(to_float(d[k]) * gelu_derivative_by_formula(to_float(x[k])));
    d.store(dinp + i * vec<T>::size);
}

/* --- step 3: the logistic function instead of tanh ---
 * Against step 2: 0.5*(1 + tanh u) = 1/(1 + e^-2u) (gelu.cuh), one hardware exponential and one division:
 * about 12 instructions an element instead of 20, and no cancellation for negative x. Predicted: half of the
 * instruction budget, so the time is that of the bytes, 187 us forward and 281 us backward, whatever the
 * clock. Measured: not yet measured. Production adds hints to the caches (streaming loads). The next gain is
 * to have no kernel at all: GELU in the epilogue of the matmul before it. */

template <class T> __global__ void act_forward_3_kernel(T *out, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load(inp + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) x[k] = from_float<T>(gelu(to_float(x[k])));
    x.store(out + i * vec<T>::size);
}
template <class T>
__global__ void act_backward_3_kernel(T *dinp, const T *dout, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load(inp + i * vec<T>::size), d = vec<T>::load(dout + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++)
        d[k] = from_float<T>(to_float(d[k]) * gelu_derivative(to_float(x[k])));
    d.store(dinp + i * vec<T>::size);
}

/* --- rows --- */

static int64_t forward_any(struct tensor *out, const struct tensor *inp) {
    return same_float_dtype(out, inp) ? 0 : OP_UNSUPPORTED;
}
static int64_t forward_vectors(struct tensor *out, const struct tensor *inp) {
    return same_float_dtype(out, inp) && vectors_in(out, inp) ? 0 : OP_UNSUPPORTED;
}
static int64_t backward_any(struct tensor *dinp, const struct tensor *dout, const struct tensor *inp) {
    return same_float_dtype(dinp, dout, inp) ? 0 : OP_UNSUPPORTED;
}
static int64_t backward_vectors(struct tensor *dinp, const struct tensor *dout, const struct tensor *inp) {
    return same_float_dtype(dinp, dout, inp) && vectors_in(dinp, dout, inp) ? 0 : OP_UNSUPPORTED;
}

template <int STEP>
static void forward(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t n = STEP == 1 ? tensor_count(inp) : tensor_count(inp) / vec<T>::size; /* threads */
        auto kernel = STEP == 1   ? act_forward_1_kernel<T>
                      : STEP == 2 ? act_forward_2_kernel<T>
                                  : act_forward_3_kernel<T>;
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream}, kernel, data_of<T>(out), data_of<T>(inp), n);
    });
}

template <int STEP>
static void backward(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                     const struct tensor *inp) {
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t n = STEP == 1 ? tensor_count(inp) : tensor_count(inp) / vec<T>::size;
        auto kernel = STEP == 1   ? act_backward_1_kernel<T>
                      : STEP == 2 ? act_backward_2_kernel<T>
                                  : act_backward_3_kernel<T>;
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream}, kernel, data_of<T>(dinp), data_of<T>(dout),
               data_of<T>(inp), n);
    });
}

extern "C" {
const struct act_forward_variant ladder_act_forward[] = {{"3_logistic", forward<3>, forward_vectors},
                                                         {"2_vectors", forward<2>, forward_vectors},
                                                         {"1_element_per_thread", forward<1>, forward_any},
                                                         {}};
const struct act_backward_variant ladder_act_backward[] = {
    {"3_logistic", backward<3>, backward_vectors},
    {"2_vectors", backward<2>, backward_vectors},
    {"1_element_per_thread", backward<1>, backward_any},
    {}};
}
