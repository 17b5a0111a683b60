/* Activations, gated linear units and dropout. Contracts in ops.h.
 *
 * Activations only move bytes: act 4 per bf16 element forward and 6 backward, glu 6 and 10 per element of
 * its output. An H200 SM gets about 19 bytes a clock from memory, so an element may cost at most 27 (act
 * forward) to 67 (glu backward) of the SM's 128 instructions a clock before arithmetic shows. Predicted:
 * activation.cuh takes about 12 for GELU and 20 for its derivative, less for the others, and all kernels
 * run at the rate of a copy. Blocks of the production variants take the end of the tensors first, which the
 * matmul before left in L2. */
#include "llmc/cuda/activation.cuh"
#include "llmc/cuda/fp8.cuh"
#include "llmc/cuda/operands.cuh"

constexpr int BLOCK = 256;

/* --- act: one element, or 16 bytes, a thread --- */

template <class T, enum activation ACT>
__global__ void act_forward_naive_kernel(T *out, const T *inp, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<T>(activation_of<ACT>(to_float(inp[i])));
}

template <class T, enum activation ACT>
__global__ void act_backward_naive_kernel(T *dinp, const T *dout, const T *inp, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dinp[i] = from_float<T>(to_float(dout[i]) * activation_derivative<ACT>(to_float(inp[i])));
}

/* The output is the next matmul's input, so it is stored for reuse; the input is next needed in backward. */
template <class T, enum activation ACT>
__global__ void act_forward_vec_kernel(T *out, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)block_from_end() * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load_streaming(inp + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) x[k] = from_float<T>(activation_of<ACT>(to_float(x[k])));
    x.store(out + i * vec<T>::size);
}

/* dinp may be dout: a thread reads its 16 bytes before it writes them. */
template <class T, enum activation ACT>
__global__ void act_backward_vec_kernel(T *dinp, const T *dout, const T *inp, int64_t vectors) {
    int64_t i = (int64_t)block_from_end() * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x = vec<T>::load_streaming(inp + i * vec<T>::size);
    vec<T> d = vec<T>::load_streaming(dout + i * vec<T>::size);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++)
        d[k] = from_float<T>(to_float(d[k]) * activation_derivative<ACT>(to_float(x[k])));
    d.store(dinp + i * vec<T>::size);
}

/* --- glu: a row of inp is gate and up, F columns each --- */

template <class T, enum activation ACT>
__global__ void glu_forward_naive_kernel(T *out, const T *inp, int64_t n, int64_t F) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const T *gate = inp + i / F * 2 * F + i % F;
    out[i] = from_float<T>(activation_of<ACT>(to_float(gate[0])) * to_float(gate[F]));
}

template <class T, enum activation ACT>
__global__ void glu_backward_naive_kernel(T *dinp, const T *dout, const T *inp, int64_t n, int64_t F) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int64_t at = i / F * 2 * F + i % F;
    float gate = to_float(inp[at]), d = to_float(dout[i]);
    dinp[at] = from_float<T>(d * to_float(inp[at + F]) * activation_derivative<ACT>(gate));
    dinp[at + F] = from_float<T>(d * activation_of<ACT>(gate));
}

/* Grid: vectors of out, of which a row has `vectors_a_row`; 32-bit, since a 64-bit division would take half
 * of the instructions. */
template <class T, enum activation ACT>
__global__ void glu_forward_vec_kernel(T *out, const T *inp, unsigned vectors, unsigned vectors_a_row) {
    constexpr int size = vec<T>::size;
    unsigned i = block_from_end() * blockDim.x + threadIdx.x, row = i / vectors_a_row;
    if (i >= vectors) return;
    int64_t F = (int64_t)vectors_a_row * size;
    const T *from =
        inp + ((int64_t)i + (int64_t)row * vectors_a_row) * size; /* row * 2F + i % vectors_a_row */
    vec<T> gate = vec<T>::load_streaming(from), up = vec<T>::load_streaming(from + F);
#pragma unroll
    for (int k = 0; k < size; k++)
        gate[k] = from_float<T>(activation_of<ACT>(to_float(gate[k])) * to_float(up[k]));
    gate.store(out + (int64_t)i * size);
}

template <class T, enum activation ACT>
__global__ void glu_backward_vec_kernel(T *dinp, const T *dout, const T *inp, unsigned vectors,
                                        unsigned vectors_a_row) {
    constexpr int size = vec<T>::size;
    unsigned i = block_from_end() * blockDim.x + threadIdx.x, row = i / vectors_a_row;
    if (i >= vectors) return;
    int64_t F = (int64_t)vectors_a_row * size, at = ((int64_t)i + (int64_t)row * vectors_a_row) * size;
    vec<T> gate = vec<T>::load_streaming(inp + at), up = vec<T>::load_streaming(inp + at + F);
    vec<T> d = vec<T>::load_streaming(dout + (int64_t)i * size);
#pragma unroll
    for (int k = 0; k < size; k++) {
        float g = to_float(gate[k]), dk = to_float(d[k]);
        gate[k] = from_float<T>(dk * to_float(up[k]) * activation_derivative<ACT>(g));
        up[k] = from_float<T>(dk * activation_of<ACT>(g));
    }
    gate.store(dinp + at);
    up.store(dinp + at + F);
}

/* --- outputs in e4m3 ---
 *
 * The scale depends on the largest magnitude of the output, so the output is computed twice: a pass finds
 * the maximum, another stores. Each element is read twice, 4 bytes in all, and takes one byte instead of the
 * 2 that would be stored and then read twice by a cast. */

/* Where eight elements of act's output come from, and of glu's, whose vectors are counted as above. */
template <enum activation ACT> struct act_source {
    const bf16 *inp;
    __device__ __forceinline__ void eight(float (&y)[8], int64_t i) const {
        to_floats(y, vec<bf16>::load_streaming(inp + i * 8));
#pragma unroll
        for (int k = 0; k < 8; k++) y[k] = activation_of<ACT>(y[k]);
    }
};
template <enum activation ACT> struct glu_source {
    const bf16 *inp;
    unsigned vectors_a_row;
    __device__ __forceinline__ void eight(float (&y)[8], int64_t i) const {
        unsigned row = (unsigned)i / vectors_a_row;
        const bf16 *gate = inp + (i + (int64_t)row * vectors_a_row) * 8;
        float up[8];
        to_floats(y, vec<bf16>::load_streaming(gate));
        to_floats(up, vec<bf16>::load_streaming(gate + (int64_t)vectors_a_row * 8));
#pragma unroll
        for (int k = 0; k < 8; k++) y[k] = activation_of<ACT>(y[k]) * up[k];
    }
};

/* parts (gridDim.x): the largest magnitude in each block, as bits. */
template <class S>
static __global__ void __launch_bounds__(AMAX_THREADS)
    output_amax_kernel(uint32_t *parts, S source, int64_t vectors) {
    SHARED(uint32_t, scratch, [AMAX_THREADS / WARP_SIZE]);
    uint32_t largest = 0;
    int64_t step = (int64_t)gridDim.x * AMAX_THREADS;
#pragma unroll 4
    for (int64_t i = (int64_t)blockIdx.x * AMAX_THREADS + threadIdx.x; i < vectors; i += step) {
        float y[8];
        source.eight(y, i);
#pragma unroll
        for (int k = 0; k < 8; k++) largest = max(largest, magnitude_bits(y[k]));
    }
    int warp = (int)threadIdx.x / WARP_SIZE, lane = (int)threadIdx.x % WARP_SIZE;
    largest = block_max_bits(largest, warp, lane, AMAX_THREADS / WARP_SIZE, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = largest;
}

/* Takes the end first, which the pass for the maximum left in L2. */
template <class S>
static __global__ void output_e4m3_kernel(e4m3 *out, const float *descale, S source, int64_t vectors) {
    int64_t i = (int64_t)block_from_end() * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    float y[8];
    source.eight(y, i);
    store_scaled(out + i * 8, y, 1.0f / *descale);
}

template <class S> static void store_e4m3(const struct op_env *env, struct tensor *out, S source) {
    int64_t vectors = tensor_count(out) / 8;
    amax largest = {(uint32_t *)env->scratch, amax_parts(tensor_count(out))};
    launch({(unsigned)largest.count, AMAX_THREADS, 0, env->stream}, output_amax_kernel<S>, largest.parts,
           source, vectors);
    launch({1, AMAX_THREADS, 0, env->stream}, descale_kernel<FP8_E4M3>, out->descale, largest);
    launch({grid_size(vectors, BLOCK), BLOCK, 0, env->stream}, output_e4m3_kernel<S>, data_of<e4m3>(out),
           out->descale, source, vectors);
}

/* --- launchers --- */

/* Calls f with a value of the storage type and the activation as compile-time constants. */
template <class F> static void with_instance(const struct tensor *t, enum activation act, F f) {
    with_dtype(t->dtype,
               [&](auto tag) { with_activation(act, [&](auto activation) { f(tag, activation); }); });
}

static void act_forward_e4m3(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                             enum activation act) {
    with_activation(act, [&](auto activation) {
        store_e4m3(env, out, act_source<decltype(activation)::value>{data_of<bf16>(inp)});
    });
}

/* Also of glu_forward. e4m3 tensors are whole vectors, so one way to store them serves all variants. */
static int64_t act_forward_naive_need(struct tensor *out, const struct tensor *inp, enum activation act) {
    return out->dtype == DTYPE_E4M3 ? E4M3_OUTPUT_BYTES : 0;
}

static void act_forward_naive(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                              enum activation act) {
    int64_t n = tensor_count(inp);
    if (out->dtype == DTYPE_E4M3) return act_forward_e4m3(env, out, inp, act);
    with_instance(inp, act, [&](auto tag, auto activation) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream},
               act_forward_naive_kernel<T, decltype(activation)::value>, data_of<T>(out), data_of<T>(inp), n);
    });
}

static int64_t act_forward_vec_need(struct tensor *out, const struct tensor *inp, enum activation act) {
    return vectors_in(out, inp) ? act_forward_naive_need(out, inp, act) : OP_UNSUPPORTED;
}

static void act_forward_vec(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                            enum activation act) {
    if (out->dtype == DTYPE_E4M3) return act_forward_e4m3(env, out, inp, act);
    with_instance(inp, act, [&](auto tag, auto activation) {
        using T = decltype(tag);
        int64_t vectors = tensor_count(inp) / vec<T>::size;
        launch({grid_size(vectors, BLOCK), BLOCK, 0, env->stream},
               act_forward_vec_kernel<T, decltype(activation)::value>, data_of<T>(out), data_of<T>(inp),
               vectors);
    });
}

static void act_backward_naive(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                               const struct tensor *inp, enum activation act) {
    int64_t n = tensor_count(inp);
    with_instance(inp, act, [&](auto tag, auto activation) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream},
               act_backward_naive_kernel<T, decltype(activation)::value>, data_of<T>(dinp), data_of<T>(dout),
               data_of<T>(inp), n);
    });
}

static int64_t act_backward_vec_need(struct tensor *dinp, const struct tensor *dout, const struct tensor *inp,
                                     enum activation act) {
    return vectors_in(dinp, dout, inp) ? 0 : OP_UNSUPPORTED;
}

static void act_backward_vec(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                             const struct tensor *inp, enum activation act) {
    with_instance(inp, act, [&](auto tag, auto activation) {
        using T = decltype(tag);
        int64_t vectors = tensor_count(inp) / vec<T>::size;
        launch({grid_size(vectors, BLOCK), BLOCK, 0, env->stream},
               act_backward_vec_kernel<T, decltype(activation)::value>, data_of<T>(dinp), data_of<T>(dout),
               data_of<T>(inp), vectors);
    });
}

static void glu_forward_e4m3(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                             enum activation act) {
    with_activation(act, [&](auto activation) {
        store_e4m3(
            env, out,
            glu_source<decltype(activation)::value>{data_of<bf16>(inp), (unsigned)(tensor_cols(out) / 8)});
    });
}

static void glu_forward_naive(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                              enum activation act) {
    int64_t n = tensor_count(out);
    if (out->dtype == DTYPE_E4M3) return glu_forward_e4m3(env, out, inp, act);
    with_instance(inp, act, [&](auto tag, auto activation) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream},
               glu_forward_naive_kernel<T, decltype(activation)::value>, data_of<T>(out), data_of<T>(inp), n,
               tensor_cols(out));
    });
}

static void glu_backward_naive(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                               const struct tensor *inp, enum activation act) {
    int64_t n = tensor_count(dout);
    with_instance(inp, act, [&](auto tag, auto activation) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream},
               glu_backward_naive_kernel<T, decltype(activation)::value>, data_of<T>(dinp), data_of<T>(dout),
               data_of<T>(inp), n, tensor_cols(dout));
    });
}

/* Vectors of a tensor; the launchers of glu count them in 32 bits. */
static int64_t vectors_of(const struct tensor *t) { return tensor_bytes(t) / 16; }

static int64_t glu_forward_vec_need(struct tensor *out, const struct tensor *inp, enum activation act) {
    bool fits = rows_of_vectors(out, inp) && vectors_of(inp) < (1ll << 32);
    return fits ? act_forward_naive_need(out, inp, act) : OP_UNSUPPORTED;
}

static void glu_forward_vec(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                            enum activation act) {
    int64_t vectors = vectors_of(out);
    if (out->dtype == DTYPE_E4M3) return glu_forward_e4m3(env, out, inp, act);
    with_instance(inp, act, [&](auto tag, auto activation) {
        using T = decltype(tag);
        launch({grid_size(vectors, BLOCK), BLOCK, 0, env->stream},
               glu_forward_vec_kernel<T, decltype(activation)::value>, data_of<T>(out), data_of<T>(inp),
               (unsigned)vectors, (unsigned)(vectors / tensor_rows(out)));
    });
}

static int64_t glu_backward_vec_need(struct tensor *dinp, const struct tensor *dout, const struct tensor *inp,
                                     enum activation act) {
    return rows_of_vectors(dinp, dout, inp) && vectors_of(dout) < (1ll << 31) ? 0 : OP_UNSUPPORTED;
}

static void glu_backward_vec(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                             const struct tensor *inp, enum activation act) {
    int64_t vectors = vectors_of(dout);
    with_instance(inp, act, [&](auto tag, auto activation) {
        using T = decltype(tag);
        launch({grid_size(vectors, BLOCK), BLOCK, 0, env->stream},
               glu_backward_vec_kernel<T, decltype(activation)::value>, data_of<T>(dinp), data_of<T>(dout),
               data_of<T>(inp), (unsigned)vectors, (unsigned)(vectors / tensor_rows(dout)));
    });
}

/* --- dropout: four numbers a thread, which share a block of random bits --- */

template <class T>
__global__ void dropout_naive_kernel(T *out, const T *inp, const int32_t *samples, int64_t per_sample,
                                     int64_t blocks, float p, uint64_t seed, uint32_t place) {
    int64_t b = blockIdx.x / blocks, first = (blockIdx.x % blocks * blockDim.x + threadIdx.x) * 4;
    if (first >= per_sample) return;
    dropout_key key = dropout_key_of(p, seed, place, samples[b]);
    rng4 random = dropout_block(key, first);
    for (int64_t i = first; i < min(first + 4, per_sample); i++)
        out[b * per_sample + i] =
            from_float<T>(to_float(inp[b * per_sample + i]) * dropout_factor_in(key, random, i));
}

static void dropout_naive(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                          const struct dropout_rule *how) {
    int64_t B = out->dim[0], per_sample = tensor_count(out) / B, blocks = grid_size(per_sample, 4 * BLOCK);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({(unsigned)(blocks * B), BLOCK, 0, env->stream}, dropout_naive_kernel<T>, data_of<T>(out),
               data_of<T>(inp), i32(how->samples), per_sample, blocks, how->p, how->seed, how->place);
    });
}

/* --- variants --- */

extern "C" {
const struct act_forward_variant cuda_act_forward_variants[] = {
    {"vec", act_forward_vec, act_forward_vec_need}, {"naive", act_forward_naive, act_forward_naive_need}, {}};
const struct act_backward_variant cuda_act_backward_variants[] = {
    {"vec", act_backward_vec, act_backward_vec_need}, {"naive", act_backward_naive}, {}};
const struct dropout_variant cuda_dropout_variants[] = {{"naive", dropout_naive}, {}};
const struct glu_forward_variant cuda_glu_forward_variants[] = {
    {"vec", glu_forward_vec, glu_forward_vec_need}, {"naive", glu_forward_naive, act_forward_naive_need}, {}};
const struct glu_backward_variant cuda_glu_backward_variants[] = {
    {"vec", glu_backward_vec, glu_backward_vec_need}, {"naive", glu_backward_naive}, {}};
}
