/* Optimizers and whole-buffer operations: adamw, lion, Muon's, sumsq, sum, cast, fill, randn. Contracts in
 * ops.h.
 *
 * In elementwise ops a thread takes four elements, 16 bytes of fp32 or 8 of bf16, so that a warp's accesses
 * are contiguous in every dtype and one Philox block gives a thread its random numbers. The last thread
 * takes the n % 4 remaining elements. Naive variants take one element per thread.
 *
 * sumsq sums in fp64 in two steps of fixed shape, so that the order depends on n alone. The block that is
 * last to finish the first step does the second. */
#include "llmc/cuda/operands.cuh"

#include <cfloat>
#include <cmath>

constexpr int BLOCK = 256;

/* --- fours: elements i..i+3, as far as they are below n --- */

constexpr int FOUR = 4;

DEVICE_INLINE void load_four(float (&x)[FOUR], const float *p, int64_t i, int64_t n) {
    if (i + FOUR <= n) {
        int4 bits = __ldcs(reinterpret_cast<const int4 *>(p + i));
        memcpy(x, &bits, sizeof bits);
        return;
    }
#pragma unroll
    for (int k = 0; k < FOUR; k++) x[k] = i + k < n ? p[i + k] : 0.0f;
}
DEVICE_INLINE void load_four(float (&x)[FOUR], const bf16 *p, int64_t i, int64_t n) {
    if (i + FOUR <= n) {
        int2 bits = __ldcs(reinterpret_cast<const int2 *>(p + i));
        bf16 h[FOUR];
        memcpy((void *)h, &bits, sizeof bits);
#pragma unroll
        for (int k = 0; k < FOUR; k++) x[k] = to_float(h[k]);
        return;
    }
#pragma unroll
    for (int k = 0; k < FOUR; k++) x[k] = i + k < n ? to_float(p[i + k]) : 0.0f;
}
DEVICE_INLINE void store_four(float *p, const float (&x)[FOUR], int64_t i, int64_t n) {
    if (i + FOUR <= n) {
        int4 bits;
        memcpy(&bits, x, sizeof bits);
        __stcs(reinterpret_cast<int4 *>(p + i), bits);
        return;
    }
#pragma unroll
    for (int k = 0; k < FOUR; k++)
        if (i + k < n) p[i + k] = x[k];
}
DEVICE_INLINE void store_four(bf16 *p, const bf16 (&x)[FOUR], int64_t i, int64_t n) {
    if (i + FOUR <= n) {
        int2 bits;
        memcpy(&bits, x, sizeof bits);
        __stcs(reinterpret_cast<int2 *>(p + i), bits);
        return;
    }
#pragma unroll
    for (int k = 0; k < FOUR; k++)
        if (i + k < n) p[i + k] = x[k];
}

DEVICE_INLINE int64_t first_of_four() { return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * FOUR; }

/* --- adamw --- */

/* What does not depend on the element; the host computes it. */
struct update_scalars {
    float lr, beta1, beta2, eps, momentum, max_norm;
    float step_size; /* lr / (1 - beta1^step) */
    float v_scale;   /* 1 / (1 - beta2^step) */
    float keep;      /* 1 - lr*weight_decay */
    uint64_t seed, purpose;
    int64_t offset;
    bool stochastic;
};

/* min(1, max_norm/norm), or -1 if the gradient is not finite. */
DEVICE_INLINE float clip_scale(const update_scalars &s, float sumsq) {
    float norm = sqrtf(sumsq);
    if (!(norm <= FLT_MAX)) return -1.0f; /* infinity, NaN */
    return s.max_norm > 0.0f && norm > s.max_norm ? s.max_norm / norm : 1.0f;
}

DEVICE_INLINE float adamw_update(const update_scalars &s, float w, float &m, float &v, float g) {
    m = s.beta1 * m + (1.0f - s.beta1) * g;
    v = s.beta2 * v + (1.0f - s.beta2) * g * g;
    return w * s.keep - s.step_size * m / (sqrtf(v * s.v_scale) + s.eps);
}

/* Stochastic rounding, right in the mean: adds 16 random bits to those that are cut off. Element i of the
 * whole buffer uses word i%4 of Philox block i/4, however threads or ranks divide the buffer. */
template <class T> DEVICE_INLINE T round_stochastic(float x, uint32_t random);
template <> __device__ __forceinline__ float round_stochastic<float>(float x, uint32_t random) { return x; }
template <> __device__ __forceinline__ bf16 round_stochastic<bf16>(float x, uint32_t random) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return from_float<bf16>(x); /* infinity, NaN */
    return from_float<bf16>(__uint_as_float((bits + (random & 0xffffu)) & 0xffff0000u));
}

/* Stores updated parameters: one, or the four from i on. */
template <class T>
DEVICE_INLINE void store_params(T *param, const float (&w)[1], int64_t i, int64_t n,
                                const update_scalars &s) {
    if (s.stochastic) {
        uint64_t index = (uint64_t)(s.offset + i);
        param[i] = round_stochastic<T>(w[0], rng_philox(s.seed, s.purpose, index / 4).v[index % 4]);
    } else {
        param[i] = from_float<T>(w[0]);
    }
}
/* Stochastic rounding needs offset % 4 == 0. */
template <class T>
DEVICE_INLINE void store_params(T *param, const float (&w)[FOUR], int64_t i, int64_t n,
                                const update_scalars &s) {
    T p[FOUR];
    if (s.stochastic) {
        struct rng4 random = rng_philox(s.seed, s.purpose, (uint64_t)(s.offset + i) / 4);
#pragma unroll
        for (int k = 0; k < FOUR; k++) p[k] = round_stochastic<T>(w[k], random.v[k]);
    } else {
#pragma unroll
        for (int k = 0; k < FOUR; k++) p[k] = from_float<T>(w[k]);
    }
    store_four(param, p, i, n);
}

template <class T>
__global__ void adamw_naive_kernel(T *param, float *master, float *m, float *v, const T *grad,
                                   const float *sumsq, int64_t n, update_scalars s) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    float clip = clip_scale(s, sumsq[0]);
    if (i >= n || clip < 0.0f) return;
    float w[1] = {
        adamw_update(s, master ? master[i] : to_float(param[i]), m[i], v[i], to_float(grad[i]) * clip)};
    if (master) master[i] = w[0];
    store_params(param, w, i, n, s);
}

/* Moves 28 bytes per element with bf16 storage and master weights, 22 without. */
template <class T>
__global__ void __launch_bounds__(BLOCK)
    adamw_vec_kernel(T *param, float *master, float *m, float *v, const T *grad, const float *sumsq,
                     int64_t n, update_scalars s) {
    int64_t i = first_of_four();
    if (i >= n) return;
    float w[FOUR], g[FOUR], mm[FOUR], vv[FOUR];
    load_four(g, grad, i, n);
    load_four(mm, m, i, n);
    load_four(vv, v, i, n);
    if (master)
        load_four(w, master, i, n);
    else
        load_four(w, param, i, n);
    float clip = clip_scale(s, sumsq[0]);
    if (clip < 0.0f) return;
#pragma unroll
    for (int k = 0; k < FOUR; k++) w[k] = adamw_update(s, w[k], mm[k], vv[k], g[k] * clip);
    store_four(m, mm, i, n);
    store_four(v, vv, i, n);
    if (master) store_four(master, w, i, n);
    store_params(param, w, i, n, s);
}

/* --- lion and Muon: kernels for one element or four of a thread --- */

template <int N> DEVICE_INLINE int64_t first_of() {
    return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
}
template <class T> DEVICE_INLINE void load(float (&x)[1], const T *p, int64_t i, int64_t n) {
    x[0] = to_float(p[i]);
}
template <class T> DEVICE_INLINE void load(float (&x)[FOUR], const T *p, int64_t i, int64_t n) {
    load_four(x, p, i, n);
}
template <class T> DEVICE_INLINE void store(T *p, const float (&x)[1], int64_t i, int64_t n) {
    p[i] = from_float<T>(x[0]);
}
template <class T> DEVICE_INLINE void store(T *p, const float (&x)[FOUR], int64_t i, int64_t n) {
    T y[FOUR];
#pragma unroll
    for (int k = 0; k < FOUR; k++) y[k] = from_float<T>(x[k]);
    store_four(p, y, i, n);
}

template <int N, class T>
__global__ void __launch_bounds__(BLOCK) lion_kernel(T *param, float *master, float *m, const T *grad,
                                                     const float *sumsq, int64_t n, update_scalars s) {
    int64_t i = first_of<N>();
    float clip = clip_scale(s, sumsq[0]);
    if (i >= n || clip < 0.0f) return;
    float w[N], g[N], mm[N];
    load(g, grad, i, n);
    load(mm, m, i, n);
    if (master)
        load(w, master, i, n);
    else
        load(w, param, i, n);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float gk = g[k] * clip, direction = s.beta1 * mm[k] + (1.0f - s.beta1) * gk;
        mm[k] = s.beta2 * mm[k] + (1.0f - s.beta2) * gk;
        w[k] = w[k] * s.keep - (direction > 0.0f ? s.lr : direction < 0.0f ? -s.lr : 0.0f);
    }
    store(m, mm, i, n);
    if (master) store(master, w, i, n);
    store_params(param, w, i, n, s);
}

template <int N, class T>
__global__ void __launch_bounds__(BLOCK)
    muon_momentum_kernel(T *out, float *m, const T *grad, const float *sumsq, int64_t n, update_scalars s) {
    int64_t i = first_of<N>();
    float clip = clip_scale(s, sumsq[0]), o[N] = {};
    if (i >= n) return;
    if (clip >= 0.0f) {
        float g[N], mm[N];
        load(g, grad, i, n);
        load(mm, m, i, n);
#pragma unroll
        for (int k = 0; k < N; k++) {
            float gk = (1.0f - s.momentum) * (g[k] * clip);
            mm[k] = s.momentum * mm[k] + gk;
            o[k] = s.momentum * mm[k] + gk;
        }
        store(m, mm, i, n);
    }
    store(out, o, i, n);
}

template <int N, class T>
__global__ void __launch_bounds__(BLOCK)
    normalize_kernel(T *out, const T *inp, const float *sumsq, int64_t n, float eps) {
    int64_t i = first_of<N>();
    if (i >= n) return;
    float x[N], scale = 1.0f / (sqrtf(sumsq[0]) + eps);
    load(x, inp, i, n);
#pragma unroll
    for (int k = 0; k < N; k++) x[k] *= scale;
    store(out, x, i, n);
}

/* In a matrix of `side` columns the elements of the diagonal are the multiples of side + 1. */
template <int N, class T>
__global__ void __launch_bounds__(BLOCK)
    ns_factor_kernel(T *out, const T *gram, const T *gram2, int64_t side, float a, float b, float c) {
    int64_t i = first_of<N>(), n = side * side;
    if (i >= n) return;
    float g[N], g2[N];
    load(g, gram, i, n);
    load(g2, gram2, i, n);
#pragma unroll
    for (int k = 0; k < N; k++) g[k] = b * g[k] + c * g2[k] + ((i + k) % (side + 1) == 0 ? a : 0.0f);
    store(out, g, i, n);
}

template <int N, class T>
__global__ void __launch_bounds__(BLOCK) muon_update_kernel(T *param, float *master, const T *update,
                                                            const float *sumsq, int64_t n, update_scalars s) {
    int64_t i = first_of<N>();
    if (i >= n || clip_scale(s, sumsq[0]) < 0.0f) return;
    float w[N], u[N];
    load(u, update, i, n);
    if (master)
        load(w, master, i, n);
    else
        load(w, param, i, n);
#pragma unroll
    for (int k = 0; k < N; k++) w[k] = w[k] * s.keep - s.lr * u[k];
    if (master) store(master, w, i, n);
    store_params(param, w, i, n, s);
}

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

/* --- cast, fill, randn --- */

template <class Out, class In> __global__ void cast_naive_kernel(Out *out, const In *inp, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<Out>(to_float(inp[i]));
}

template <class Out, class In> __global__ void cast_vec_kernel(Out *out, const In *inp, int64_t n) {
    int64_t i = first_of_four();
    if (i >= n) return;
    float x[FOUR];
    Out y[FOUR];
    load_four(x, inp, i, n);
#pragma unroll
    for (int k = 0; k < FOUR; k++) y[k] = from_float<Out>(x[k]);
    store_four(out, y, i, n);
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
    int64_t i = first_of_four();
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

/* Whether four elements a thread may take their stochastic rounding from one Philox block. */
static bool rounds_by_fours(const struct update_args *args) {
    return !args->stochastic || args->offset % FOUR == 0;
}

static int64_t adamw_vec_need(struct tensor *param, struct tensor *master, struct tensor *m, struct tensor *v,
                              const struct tensor *grad, const struct tensor *sumsq_of_grad,
                              const struct update_args *args) {
    return starts_on_vector(param, master, m, v, grad) && rounds_by_fours(args) ? 0 : OP_UNSUPPORTED;
}

/* Stochastic rounding is for parameters without master weights; with these they are rounded to nearest. The
 * random numbers change with the step; equal ones would push a weight the same way at every step. */
static struct update_scalars update_scalars_of(const struct update_args *a, bool master) {
    struct update_scalars s = {};
    s.lr = a->lr;
    s.momentum = a->momentum;
    s.beta1 = a->beta1;
    s.beta2 = a->beta2;
    s.eps = a->eps;
    s.max_norm = a->max_norm;
    s.step_size = (float)((double)a->lr / (1.0 - std::pow((double)a->beta1, (double)a->step)));
    s.v_scale = (float)(1.0 / (1.0 - std::pow((double)a->beta2, (double)a->step)));
    s.keep = 1.0f - a->lr * a->weight_decay;
    s.seed = a->seed;
    s.purpose = RNG_ROUND + ((uint64_t)a->step << 8);
    s.offset = a->offset;
    s.stochastic = a->stochastic && !master;
    return s;
}

static void adamw_naive(const struct op_env *env, struct tensor *param, struct tensor *master,
                        struct tensor *m, struct tensor *v, const struct tensor *grad,
                        const struct tensor *sumsq_of_grad, const struct update_args *args) {
    int64_t n = tensor_count(param);
    with_dtype(param->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK), BLOCK, 0, env->stream}, adamw_naive_kernel<T>, data_of<T>(param),
               data_of<float>(master), f32(m), f32(v), data_of<T>(grad), f32(sumsq_of_grad), n,
               update_scalars_of(args, master));
    });
}

static void adamw_vec(const struct op_env *env, struct tensor *param, struct tensor *master, struct tensor *m,
                      struct tensor *v, const struct tensor *grad, const struct tensor *sumsq_of_grad,
                      const struct update_args *args) {
    int64_t n = tensor_count(param);
    with_dtype(param->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK * FOUR), BLOCK, 0, env->stream}, adamw_vec_kernel<T>, data_of<T>(param),
               data_of<float>(master), f32(m), f32(v), data_of<T>(grad), f32(sumsq_of_grad), n,
               update_scalars_of(args, master));
    });
}

template <int N>
static void lion_run(const struct op_env *env, struct tensor *param, struct tensor *master, struct tensor *m,
                     const struct tensor *grad, const struct tensor *sumsq_of_grad,
                     const struct update_args *args) {
    int64_t n = tensor_count(param);
    with_dtype(param->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK * N), BLOCK, 0, env->stream}, lion_kernel<N, T>, data_of<T>(param),
               data_of<float>(master), f32(m), data_of<T>(grad), f32(sumsq_of_grad), n,
               update_scalars_of(args, master));
    });
}
static int64_t lion_vec_need(struct tensor *param, struct tensor *master, struct tensor *m,
                             const struct tensor *grad, const struct tensor *sumsq_of_grad,
                             const struct update_args *args) {
    return starts_on_vector(param, master, m, grad) && rounds_by_fours(args) ? 0 : OP_UNSUPPORTED;
}

template <int N>
static void muon_momentum_run(const struct op_env *env, struct tensor *out, struct tensor *m,
                              const struct tensor *grad, const struct tensor *sumsq_of_grad,
                              const struct update_args *args) {
    int64_t n = tensor_count(out);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK * N), BLOCK, 0, env->stream}, muon_momentum_kernel<N, T>, data_of<T>(out),
               f32(m), data_of<T>(grad), f32(sumsq_of_grad), n, update_scalars_of(args, false));
    });
}
static int64_t muon_momentum_vec_need(struct tensor *out, struct tensor *m, const struct tensor *grad,
                                      const struct tensor *sumsq_of_grad, const struct update_args *args) {
    return starts_on_vector(out, m, grad) ? 0 : OP_UNSUPPORTED;
}

template <int N>
static void normalize_run(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                          const struct tensor *sumsq_of_inp, float eps) {
    int64_t n = tensor_count(out);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK * N), BLOCK, 0, env->stream}, normalize_kernel<N, T>, data_of<T>(out),
               data_of<T>(inp), f32(sumsq_of_inp), n, eps);
    });
}
static int64_t normalize_vec_need(struct tensor *out, const struct tensor *inp,
                                  const struct tensor *sumsq_of_inp, float eps) {
    return starts_on_vector(out, inp) ? 0 : OP_UNSUPPORTED;
}

template <int N>
static void ns_factor_run(const struct op_env *env, struct tensor *out, const struct tensor *gram,
                          const struct tensor *gram2, float a, float b, float c) {
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(tensor_count(out), BLOCK * N), BLOCK, 0, env->stream}, ns_factor_kernel<N, T>,
               data_of<T>(out), data_of<T>(gram), data_of<T>(gram2), tensor_cols(out), a, b, c);
    });
}
static int64_t ns_factor_vec_need(struct tensor *out, const struct tensor *gram, const struct tensor *gram2,
                                  float a, float b, float c) {
    return starts_on_vector(out, gram, gram2) ? 0 : OP_UNSUPPORTED;
}

template <int N>
static void muon_update_run(const struct op_env *env, struct tensor *param, struct tensor *master,
                            const struct tensor *update, const struct tensor *sumsq_of_grad,
                            const struct update_args *args) {
    int64_t n = tensor_count(param);
    struct update_args own = *args;
    own.lr = args->muon_lr;
    struct update_scalars s = update_scalars_of(&own, master);
    with_dtype(param->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK * N), BLOCK, 0, env->stream}, muon_update_kernel<N, T>, data_of<T>(param),
               data_of<float>(master), data_of<T>(update), f32(sumsq_of_grad), n, s);
    });
}
static int64_t muon_update_vec_need(struct tensor *param, struct tensor *master, const struct tensor *update,
                                    const struct tensor *sumsq_of_grad, const struct update_args *args) {
    return starts_on_vector(param, master, update) && rounds_by_fours(args) ? 0 : OP_UNSUPPORTED;
}

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

static void cast_naive(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    int64_t n = tensor_count(inp);
    with_dtype(out->dtype, [&](auto out_tag) {
        with_dtype(inp->dtype, [&](auto inp_tag) {
            using Out = decltype(out_tag);
            using In = decltype(inp_tag);
            launch({grid_size(n, BLOCK), BLOCK, 0, env->stream}, cast_naive_kernel<Out, In>,
                   data_of<Out>(out), data_of<In>(inp), n);
        });
    });
}

static int64_t cast_vec_need(struct tensor *out, const struct tensor *inp) {
    return starts_on_vector(out, inp) ? 0 : OP_UNSUPPORTED;
}

static void cast_vec(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    int64_t n = tensor_count(inp);
    with_dtype(out->dtype, [&](auto out_tag) {
        with_dtype(inp->dtype, [&](auto inp_tag) {
            using Out = decltype(out_tag);
            using In = decltype(inp_tag);
            launch({grid_size(n, BLOCK * FOUR), BLOCK, 0, env->stream}, cast_vec_kernel<Out, In>,
                   data_of<Out>(out), data_of<In>(inp), n);
        });
    });
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
const struct adamw_variant cuda_adamw_variants[] = {
    {"vec", adamw_vec, adamw_vec_need}, {"naive", adamw_naive}, {}};
const struct lion_variant cuda_lion_variants[] = {
    {"vec", lion_run<FOUR>, lion_vec_need}, {"naive", lion_run<1>}, {}};
const struct muon_momentum_variant cuda_muon_momentum_variants[] = {
    {"vec", muon_momentum_run<FOUR>, muon_momentum_vec_need}, {"naive", muon_momentum_run<1>}, {}};
const struct normalize_variant cuda_normalize_variants[] = {
    {"vec", normalize_run<FOUR>, normalize_vec_need}, {"naive", normalize_run<1>}, {}};
const struct ns_factor_variant cuda_ns_factor_variants[] = {
    {"vec", ns_factor_run<FOUR>, ns_factor_vec_need}, {"naive", ns_factor_run<1>}, {}};
const struct muon_update_variant cuda_muon_update_variants[] = {
    {"vec", muon_update_run<FOUR>, muon_update_vec_need}, {"naive", muon_update_run<1>}, {}};
const struct sumsq_variant cuda_sumsq_variants[] = {
    {"vec", sumsq_vec, sumsq_vec_need}, {"naive", sumsq_naive}, {}};
const struct sum_variant cuda_sum_variants[] = {{"naive", sum_run}, {}};
const struct cast_variant cuda_cast_variants[] = {
    {"vec", cast_vec, cast_vec_need}, {"naive", cast_naive}, {}};
const struct fill_variant cuda_fill_variants[] = {
    {"vec", fill_vec, fill_vec_need}, {"naive", fill_naive}, {}};
const struct randn_variant cuda_randn_variants[] = {{"naive", randn_run}, {}};
}
