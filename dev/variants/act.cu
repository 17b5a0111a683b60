/* GELU forward, in three steps. In production it is the variant "vec" of llmc/cuda/act.cu; the contract is
 * in llmc/ops/ops.h.
 *
 * Memory bounds it, if arithmetic does not get in the way. GPT-2 124M with 65,536 tokens has 201M elements;
 * reading and writing each in bf16 moves 805 MB, 187 us at the 4.3 TB/s that an H200 copies. In that time a
 * multiprocessor, which moves 19 bytes and issues 128 thread instructions per clock, can spend 27
 * instructions on an element. A kernel that spends more is bound by instructions. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/activation.cuh"
#include "llmc/cuda/operands.cuh"

constexpr int BLOCK = 256;
constexpr float SQRT_2_OVER_PI = 0.7978845608028654f;

/* The formula as it stands in ops.h. */
DEVICE_INLINE float gelu_by_formula(float x) {
    return 0.5f * x * (1.0f + tanhf(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)));
}

/* --- step 1: one element per thread ---
 * The definition. An element costs about 10 instructions for its index, bounds test, load and store, and
 * about 20 for tanhf: more than the 27 that the bound leaves. Instruction issue limits it to 1.1 to 1.5
 * times the bound of 187 us. */

template <class T> __global__ void act_forward_1_kernel(T *out, const T *inp, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<T>(gelu_by_formula(to_float(inp[i])));
}

/* --- step 2: 16 bytes per thread ---
 * A thread takes a whole vector, 8 elements in bf16. It pays for index, test, load and store once per
 * vector, so these cost 1.3 instructions per element in place of 10. A warp also requests 512 bytes per
 * load in place of 64. About 22 instructions per element remain, nearly all of them tanhf: just inside the
 * bound. */

template <class T> __global__ void act_forward_2_kernel(T *out, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load(inp + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) x[k] = from_float<T>(gelu_by_formula(to_float(x[k])));
    x.store(out + i * vec<T>::size);
}

/* --- step 3: the logistic function in place of tanh ---
 * 0.5 (1 + tanh u) = 1 / (1 + e^-2u) (llmc/cuda/activation.cuh), which needs one hardware exponential and one
 * division: about 12 instructions per element in place of 20. It also avoids the cancellation of 1 + tanh u
 * for negative u. Half of the instruction budget is free now, so memory alone decides: 187 us at any clock.
 * Production adds cache hints for streaming. The next gain is to have no kernel: GELU runs in the epilogue
 * of the matrix product before it. */

template <class T> __global__ void act_forward_3_kernel(T *out, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load(inp + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) x[k] = from_float<T>(gelu(to_float(x[k])));
    x.store(out + i * vec<T>::size);
}

/* --- variants --- */

static int64_t any_operands(struct tensor *out, const struct tensor *inp, enum activation act) {
    return act == ACT_GELU && out->dtype != DTYPE_E4M3 ? 0 : OP_UNSUPPORTED;
}
static int64_t whole_vectors(struct tensor *out, const struct tensor *inp, enum activation act) {
    return vectors_in(out, inp) ? any_operands(out, inp, act) : OP_UNSUPPORTED;
}

template <int STEP>
static void forward(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                    enum activation act) {
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t n = STEP == 1 ? tensor_count(inp) : tensor_count(inp) / vec<T>::size; /* threads */
        auto kernel = STEP == 1   ? act_forward_1_kernel<T>
                      : STEP == 2 ? act_forward_2_kernel<T>
                                  : act_forward_3_kernel<T>;
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream}, kernel, data_of<T>(out), data_of<T>(inp), n);
    });
}

extern "C" const struct act_forward_variant ladder_act_forward[] = {
    {"3_logistic", forward<3>, whole_vectors},
    {"2_vectors", forward<2>, whole_vectors},
    {"1_element_per_thread", forward<1>, any_operands},
    {}};
