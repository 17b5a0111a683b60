/* Operations on whole buffers: sumsq, sum, cast, add_scaled, fill, randn. Contracts in ops.h.
 *
 * sumsq sums in fp64 in two steps of fixed shape, so that the order depends on n alone. The block that is
 * last to finish the first step does the second. */
#include "llmc/cuda/fours.cuh"
#include "llmc/cuda/operands.cuh"

#include <cmath>

constexpr int BLOCK = 256;

/* --- sums --- */

constexpr int SUM_BLOCK = 256;
constexpr int64_t SUM_ELEMENTS = 4096;  /* per block, at least */
constexpr int64_t SUM_BLOCKS = 8 * 132; /* at most: what an H200 runs at a time; the same on every device */

/* The sum over the block, in thread 0. */
DEVICE_INLINE double block_sum_double(double v, double *scratch) {
    int tid = (int)threadIdx.x;
    scratch[tid] = v;
    __syncthreads();
    for (int width = SUM_BLOCK / 2; width > 0; width /= 2) {
        if (tid < width) scratch[tid] += scratch[tid + width];
        __syncthreads();
    }
    return scratch[0];
}

template <class T> __global__ void sumsq_naive_kernel(float *out, const T *inp, int64_t n) {
    SHARED(double, scratch, [SUM_BLOCK]);
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += SUM_BLOCK) {
        double x = (double)to_float(inp[i]);
        sum += x * x;
    }
    sum = block_sum_double(sum, scratch);
    if (threadIdx.x == 0) out[0] = (float)sum;
}

/* An element takes a conversion to fp64 and a multiply-add. Predicted: an SM of an H200 reads 9.5 bf16 per
 * clock and converts up to 16, so reading is the limit. */
template <class T>
__global__ void __launch_bounds__(SUM_BLOCK)
    sumsq_vec_kernel(float *out, double *partials, unsigned *done, const T *inp, int64_t n) {
    constexpr int size = vec<T>::size;
    SHARED(double, scratch, [SUM_BLOCK]);
    int64_t vectors = n / size, thread = (int64_t)blockIdx.x * SUM_BLOCK + threadIdx.x;
    double sum = 0.0;
#pragma unroll 4
    for (int64_t i = thread; i < vectors; i += (int64_t)gridDim.x * SUM_BLOCK) {
        vec<T> x = vec<T>::load_streaming(inp + i * size);
#pragma unroll
        for (int k = 0; k < size; k++) sum = fma((double)to_float(x[k]), (double)to_float(x[k]), sum);
    }
    if (thread < n % size) {
        double x = (double)to_float(inp[vectors * size + thread]);
        sum = fma(x, x, sum);
    }
    sum = block_sum_double(sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
    if (!last_to_arrive(done, gridDim.x)) return;
    sum = 0.0;
    for (unsigned b = threadIdx.x; b < gridDim.x; b += SUM_BLOCK) sum += partials[b];
    sum = block_sum_double(sum, scratch);
    if (threadIdx.x == 0) out[0] = (float)sum;
}

/* One block suffices for the losses of a batch, a few hundred KiB. */
__global__ void sum_kernel(float *out, const float *inp, int64_t n, const float *scale, bool accumulate) {
    SHARED(double, scratch, [SUM_BLOCK]);
    double sum = 0.0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += SUM_BLOCK) sum += (double)inp[i];
    sum = block_sum_double(sum, scratch);
    if (threadIdx.x > 0) return;
    if (scale) sum *= (double)*scale;
    out[0] = (float)sum + (accumulate ? out[0] : 0.0f);
}

/* --- cast, add_scaled, fill, randn --- */

template <int N, class Out, class In> __global__ void cast_kernel(Out *out, const In *inp, int64_t n) {
    int64_t i = first_of<N>();
    if (i >= n) return;
    float x[N];
    load(x, inp, i, n);
    store(out, x, i, n);
}

template <int N, class T>
__global__ void add_scaled_kernel(T *out, const T *base, const T *inp, float scale, int64_t n) {
    int64_t i = first_of<N>();
    if (i >= n) return;
    float x[N], from[N] = {};
    load(x, inp, i, n);
    if (base) load(from, base, i, n);
#pragma unroll
    for (int k = 0; k < N; k++) x[k] = from[k] + scale * x[k];
    store(out, x, i, n);
}

template <class T> __global__ void fill_naive_kernel(T *out, float value, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<T>(value);
}

template <class T> __global__ void fill_vec_kernel(T *out, float value, int64_t vectors) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    vec<T> x;
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) x[k] = from_float<T>(value);
    x.store_streaming(out + i * vec<T>::size);
}

/* A thread takes a Philox block, which gives two Box-Muller pairs, by the same formulas as on the CPU. */
template <class T>
__global__ void randn_kernel(T *out, float mean, float std, uint64_t seed, uint64_t purpose, int64_t n) {
    int64_t i = first_of<FOUR>();
    if (i >= n) return;
    struct rng4 bits = rng_philox(seed, purpose, (uint64_t)i / FOUR);
    float normal[FOUR];
#pragma unroll
    for (int k = 0; k < FOUR; k += 2) {
        float radius = sqrtf(-2.0f * logf(1.0f - rng_unit_float(bits.v[k])));
        float angle = 6.283185307f * rng_unit_float(bits.v[k + 1]);
        normal[k] = radius * cosf(angle);
        normal[k + 1] = radius * sinf(angle);
    }
#pragma unroll
    for (int k = 0; k < FOUR; k++)
        if (i + k < n) out[i + k] = from_float<T>(fmaf(std, normal[k], mean));
}

/* --- launchers --- */

static void sumsq_naive(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({1, SUM_BLOCK, 0, env->stream}, sumsq_naive_kernel<T>, f32(out), data_of<T>(inp),
               tensor_count(inp));
    });
}

static int64_t sumsq_blocks(const struct tensor *inp) {
    return min_i64(SUM_BLOCKS, ceil_div(tensor_count(inp), SUM_ELEMENTS));
}

static int64_t sumsq_vec_need(struct tensor *out, const struct tensor *inp) {
    bool can = starts_on_vector(inp);
    return can ? sumsq_blocks(inp) * (int64_t)sizeof(double) : OP_UNSUPPORTED;
}

static void sumsq_vec(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(sumsq_blocks(inp), 1), SUM_BLOCK, 0, env->stream}, sumsq_vec_kernel<T>, f32(out),
               (double *)env->scratch, (unsigned *)env->zeros, data_of<T>(inp), tensor_count(inp));
    });
}

static void sum_run(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                    const struct tensor *scale, bool accumulate) {
    launch({1, SUM_BLOCK, 0, env->stream}, sum_kernel, f32(out), f32(inp), tensor_count(inp),
           data_of<float>(scale), accumulate);
}

template <int N>
static void cast_run(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    int64_t n = tensor_count(inp);
    with_dtype(out->dtype, [&](auto out_tag) {
        with_dtype(inp->dtype, [&](auto inp_tag) {
            using Out = decltype(out_tag);
            using In = decltype(inp_tag);
            launch({grid_size(n, BLOCK * N), BLOCK, 0, env->stream}, cast_kernel<N, Out, In>,
                   data_of<Out>(out), data_of<In>(inp), n);
        });
    });
}
static int64_t cast_vec_need(struct tensor *out, const struct tensor *inp) {
    return starts_on_vector(out, inp) ? 0 : OP_UNSUPPORTED;
}

template <int N>
static void add_scaled_run(const struct op_env *env, struct tensor *out, const struct tensor *base,
                           const struct tensor *inp, float scale) {
    int64_t n = tensor_count(out);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK * N), BLOCK, 0, env->stream}, add_scaled_kernel<N, T>, data_of<T>(out),
               data_of<T>(base), data_of<T>(inp), scale, n);
    });
}
static int64_t add_scaled_vec_need(struct tensor *out, const struct tensor *base, const struct tensor *inp,
                                   float scale) {
    return starts_on_vector(out, base, inp) ? 0 : OP_UNSUPPORTED;
}

static void fill_naive(const struct op_env *env, struct tensor *out, float value) {
    int64_t n = tensor_count(out);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream}, fill_naive_kernel<T>, data_of<T>(out), value, n);
    });
}

static int64_t fill_vec_need(struct tensor *out, float value) { return vectors_in(out) ? 0 : OP_UNSUPPORTED; }

static void fill_vec(const struct op_env *env, struct tensor *out, float value) {
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t vectors = tensor_count(out) / vec<T>::size;
        launch({grid_size(vectors, BLOCK), BLOCK, 0, env->stream}, fill_vec_kernel<T>, data_of<T>(out), value,
               vectors);
    });
}

static void randn_run(const struct op_env *env, struct tensor *out, float mean, float std, uint64_t seed,
                      uint64_t purpose) {
    int64_t n = tensor_count(out);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK * FOUR), BLOCK, 0, env->stream}, randn_kernel<T>, data_of<T>(out), mean,
               std, seed, purpose, n);
    });
}

/* --- variants --- */

extern "C" {
const struct sumsq_variant cuda_sumsq_variants[] = {
    {"vec", sumsq_vec, sumsq_vec_need}, {"naive", sumsq_naive}, {}};
const struct sum_variant cuda_sum_variants[] = {{"naive", sum_run}, {}};
const struct cast_variant cuda_cast_variants[] = {
    {"vec", cast_run<FOUR>, cast_vec_need}, {"naive", cast_run<1>}, {}};
const struct add_scaled_variant cuda_add_scaled_variants[] = {
    {"vec", add_scaled_run<FOUR>, add_scaled_vec_need}, {"naive", add_scaled_run<1>}, {}};
const struct fill_variant cuda_fill_variants[] = {
    {"vec", fill_vec, fill_vec_need}, {"naive", fill_naive}, {}};
const struct randn_variant cuda_randn_variants[] = {{"naive", randn_run}, {}};
}
