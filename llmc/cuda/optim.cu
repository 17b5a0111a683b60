/* The optimizers: adamw, lion and Muon's operations. Contracts in ops.h.
 *
 * Every kernel is elementwise and moves bytes; a thread takes four elements (fours.cuh), in naive variants
 * one. What does not depend on the element is computed on the host, but for the factor that clips: the norm
 * is known on the device only. A thread reads it after its own elements, so that one wait serves for both. */
#include "llmc/cuda/fours.cuh"
#include "llmc/cuda/operands.cuh"

#include <cfloat>
#include <cmath>

constexpr int BLOCK = 256;

/* --- what the updates share --- */

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

/* Stochastic rounding, right in the mean: adds 16 random bits to those that are cut off. Element i of the
 * whole buffer uses word i%4 of Philox block i/4, however threads or ranks divide the buffer. */
template <class T> DEVICE_INLINE T round_stochastic(float x, uint32_t random);
template <> __device__ __forceinline__ float round_stochastic<float>(float x, uint32_t random) { return x; }
template <> __device__ __forceinline__ bf16 round_stochastic<bf16>(float x, uint32_t random) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return from_float<bf16>(x); /* infinity, NaN */
    return from_float<bf16>(__uint_as_float((bits + (random & 0xffffu)) & 0xffff0000u));
}

/* The parameters i..i+N-1: w is read from `master` if there is one, and written to both. Four that are
 * rounded stochastically need offset % 4 == 0. */
template <int N, class T>
DEVICE_INLINE void load_params(float (&w)[N], const T *param, const float *master, int64_t i, int64_t n) {
    if (master)
        load(w, master, i, n);
    else
        load(w, param, i, n);
}
template <int N, class T>
DEVICE_INLINE void store_params(T *param, float *master, const float (&w)[N], int64_t i, int64_t n,
                                const update_scalars &s) {
    if (master) store(master, w, i, n);
    if (!s.stochastic) {
        store(param, w, i, n);
        return;
    }
    uint64_t index = (uint64_t)(s.offset + i);
    struct rng4 random = rng_philox(s.seed, s.purpose, index / 4);
    T p[N];
#pragma unroll
    for (int k = 0; k < N; k++) p[k] = round_stochastic<T>(w[k], random.v[N == 1 ? index % 4 : k]);
    store_exact(param, p, i, n);
}

/* --- adamw --- */

DEVICE_INLINE float adamw_update(const update_scalars &s, float w, float &m, float &v, float g) {
    m = s.beta1 * m + (1.0f - s.beta1) * g;
    v = s.beta2 * v + (1.0f - s.beta2) * g * g;
    return w * s.keep - s.step_size * m / (sqrtf(v * s.v_scale) + s.eps);
}

/* Moves 28 bytes per element with bf16 storage and master weights, 22 without. */
template <int N, class T>
__global__ void __launch_bounds__(BLOCK)
    adamw_kernel(T *param, float *master, float *m, float *v, const T *grad, const float *sumsq, int64_t n,
                 update_scalars s) {
    int64_t i = first_of<N>();
    if (i >= n) return;
    float w[N], g[N], mm[N], vv[N];
    load(g, grad, i, n);
    load(mm, m, i, n);
    load(vv, v, i, n);
    load_params(w, param, master, i, n);
    float clip = clip_scale(s, sumsq[0]);
    if (clip < 0.0f) return;
#pragma unroll
    for (int k = 0; k < N; k++) w[k] = adamw_update(s, w[k], mm[k], vv[k], g[k] * clip);
    store(m, mm, i, n);
    store(v, vv, i, n);
    store_params(param, master, w, i, n, s);
}

/* --- lion --- */

template <int N, class T>
__global__ void __launch_bounds__(BLOCK) lion_kernel(T *param, float *master, float *m, const T *grad,
                                                     const float *sumsq, int64_t n, update_scalars s) {
    int64_t i = first_of<N>();
    if (i >= n) return;
    float w[N], g[N], mm[N];
    load(g, grad, i, n);
    load(mm, m, i, n);
    load_params(w, param, master, i, n);
    float clip = clip_scale(s, sumsq[0]);
    if (clip < 0.0f) return;
#pragma unroll
    for (int k = 0; k < N; k++) {
        float gk = g[k] * clip, direction = s.beta1 * mm[k] + (1.0f - s.beta1) * gk;
        mm[k] = s.beta2 * mm[k] + (1.0f - s.beta2) * gk;
        w[k] = w[k] * s.keep - (direction > 0.0f ? s.lr : direction < 0.0f ? -s.lr : 0.0f);
    }
    store(m, mm, i, n);
    store_params(param, master, w, i, n, s);
}

/* --- Muon --- */

template <int N, class T>
__global__ void __launch_bounds__(BLOCK)
    muon_momentum_kernel(T *out, float *m, const T *grad, const float *sumsq, int64_t n, update_scalars s) {
    int64_t i = first_of<N>();
    if (i >= n) return;
    float g[N], mm[N], o[N] = {};
    load(g, grad, i, n);
    load(mm, m, i, n);
    float clip = clip_scale(s, sumsq[0]);
    if (clip >= 0.0f) {
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
    if (i >= n) return;
    float w[N], u[N];
    load(u, update, i, n);
    load_params(w, param, master, i, n);
    if (clip_scale(s, sumsq[0]) < 0.0f) return;
#pragma unroll
    for (int k = 0; k < N; k++) w[k] = w[k] * s.keep - s.lr * u[k];
    store_params(param, master, w, i, n, s);
}

/* --- launchers --- */

/* Whether four elements a thread may take their stochastic rounding from one Philox block. */
static bool rounds_by_fours(const struct update_args *args) {
    return !args->stochastic || args->offset % FOUR == 0;
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

template <int N>
static void adamw_run(const struct op_env *env, struct tensor *param, struct tensor *master, struct tensor *m,
                      struct tensor *v, const struct tensor *grad, const struct tensor *sumsq_of_grad,
                      const struct update_args *args) {
    int64_t n = tensor_count(param);
    with_dtype(param->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(n, BLOCK * N), BLOCK, 0, env->stream}, adamw_kernel<N, T>, data_of<T>(param),
               data_of<float>(master), f32(m), f32(v), data_of<T>(grad), f32(sumsq_of_grad), n,
               update_scalars_of(args, master));
    });
}
static int64_t adamw_vec_need(struct tensor *param, struct tensor *master, struct tensor *m, struct tensor *v,
                              const struct tensor *grad, const struct tensor *sumsq_of_grad,
                              const struct update_args *args) {
    return starts_on_vector(param, master, m, v, grad) && rounds_by_fours(args) ? 0 : OP_UNSUPPORTED;
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

__global__ void skip_outlier_kernel(float *sumsq, float *seen, const float *loss, float max_loss,
                                    float max_sumsq) {
    seen[0] = sumsq[0];
    if (!(loss[0] <= max_loss && sumsq[0] <= max_sumsq)) sumsq[0] = INFINITY;
}
static void skip_outlier_run(const struct op_env *env, struct tensor *sumsq_of_grad, struct tensor *seen,
                             const struct tensor *loss, float max_loss, float max_sumsq) {
    launch({1, 1, 0, env->stream}, skip_outlier_kernel, f32(sumsq_of_grad), f32(seen), f32(loss), max_loss,
           max_sumsq);
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

/* --- variants --- */

extern "C" {
const struct adamw_variant cuda_adamw_variants[] = {
    {"vec", adamw_run<FOUR>, adamw_vec_need}, {"naive", adamw_run<1>}, {}};
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
const struct skip_outlier_variant cuda_skip_outlier_variants[] = {{"naive", skip_outlier_run}, {}};
}
