/* AdamW, in three steps. In production it is the variant "vec" of llmc/cuda/optim.cu; the contract is in
 * llmc/ops/ops.h.
 *
 * Memory bounds it. With parameters and gradients in bf16 and moments and master weights in fp32, an
 * element takes 2+4+4+4 bytes to read (gradient, m, v, master) and 4+4+4+2 to write (m, v, master,
 * parameter): 28 bytes. The 124.4M parameters of GPT-2 124M make 3.5 GB, 810 us at the 4.3 TB/s that an
 * H200 copies. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

#include <cfloat>

constexpr int BLOCK = 256;

/* --- common to all steps --- */

struct adamw_state {
    float lr, beta1, beta2, eps, weight_decay, max_norm;
    float m_scale, v_scale; /* 1/(1 - beta^step) */
};

/* The factor that clips the gradient; -1 if its norm is not finite, which must leave everything
 * unchanged. */
DEVICE_INLINE float gradient_scale(const adamw_state &s, float sumsq) {
    if (!(sumsq <= FLT_MAX)) return -1.0f;
    float norm = sqrtf(sumsq);
    return s.max_norm > 0.0f && norm > s.max_norm ? s.max_norm / norm : 1.0f;
}
DEVICE_INLINE float next_m(const adamw_state &s, float m, float g) {
    return s.beta1 * m + (1.0f - s.beta1) * g;
}
DEVICE_INLINE float next_v(const adamw_state &s, float v, float g) {
    return s.beta2 * v + (1.0f - s.beta2) * g * g;
}
DEVICE_INLINE float next_w(const adamw_state &s, float w, float m, float v) {
    float direction = m * s.m_scale / (sqrtf(v * s.v_scale) + s.eps);
    return w - s.lr * (direction + s.weight_decay * w);
}

/* --- step 1: one kernel per line of the formula ---
 * What a framework does without fusion: m, v and w are updated by one kernel each, so the gradient is read
 * twice, and m and v are read again for w. An element moves 10 bytes for m, 10 for v and 18 for w, 38 in
 * place of 28: 1.36 times the bound. */

template <class T>
__global__ void adamw_1_m_kernel(float *m, const T *grad, const float *sumsq, int64_t n, adamw_state s) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    float scale = gradient_scale(s, sumsq[0]);
    if (i < n && scale >= 0.0f) m[i] = next_m(s, m[i], to_float(grad[i]) * scale);
}
template <class T>
__global__ void adamw_1_v_kernel(float *v, const T *grad, const float *sumsq, int64_t n, adamw_state s) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    float scale = gradient_scale(s, sumsq[0]);
    if (i < n && scale >= 0.0f) v[i] = next_v(s, v[i], to_float(grad[i]) * scale);
}
template <class T>
__global__ void adamw_1_w_kernel(T *param, float *master, const float *m, const float *v, const float *sumsq,
                                 int64_t n, adamw_state s) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= n || gradient_scale(s, sumsq[0]) < 0.0f) return;
    float w = next_w(s, master ? master[i] : to_float(param[i]), m[i], v[i]);
    if (master) master[i] = w;
    param[i] = from_float<T>(w);
}

/* --- step 2: one fused kernel ---
 * Gradient, m and v stay in registers from one line of the formula to the next, so an element moves the 28
 * bytes that it must. Each thread has up to four loads under way at once, which also hides more of their
 * latency: close to the bound. */

template <class T>
__global__ void adamw_2_kernel(T *param, float *master, float *m, float *v, const T *grad, const float *sumsq,
                               int64_t n, adamw_state s) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    float scale = gradient_scale(s, sumsq[0]);
    if (i >= n || scale < 0.0f) return;
    float g = to_float(grad[i]) * scale, w = master ? master[i] : to_float(param[i]);
    m[i] = next_m(s, m[i], g);
    v[i] = next_v(s, v[i], g);
    w = next_w(s, w, m[i], v[i]);
    if (master) master[i] = w;
    param[i] = from_float<T>(w);
}

/* --- step 3: four elements per thread ---
 * Accesses to m, v and the master weights are 16 bytes wide, so there is a quarter of the instructions for
 * addresses and four times as many bytes under way per thread: 95 % of the copy rate, 850 us. Production
 * also takes the last n % 4 elements and rounds stochastically. */

template <class T>
__global__ void adamw_3_kernel(T *param, float *master, float *m, float *v, const T *grad, const float *sumsq,
                               int64_t n, adamw_state s) {
    int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * 4;
    float scale = gradient_scale(s, sumsq[0]);
    if (i >= n || scale < 0.0f) return;
    vec<float> m4 = vec<float>::load(m + i), v4 = vec<float>::load(v + i), w4;
    T g[4], p[4];
    for (int k = 0; k < 4; k++)
        g[k] = grad[i + k]; /* not merged by the compiler: four loads of 2 bytes in bf16 */
    if (master)
        w4 = vec<float>::load(master + i);
    else
        for (int k = 0; k < 4; k++) w4[k] = to_float(param[i + k]);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float grad_k = to_float(g[k]) * scale;
        m4[k] = next_m(s, m4[k], grad_k);
        v4[k] = next_v(s, v4[k], grad_k);
        w4[k] = next_w(s, w4[k], m4[k], v4[k]);
        p[k] = from_float<T>(w4[k]);
    }
    m4.store(m + i);
    v4.store(v + i);
    if (master) w4.store(master + i);
    for (int k = 0; k < 4; k++) param[i + k] = p[k];
}

/* --- launchers --- */

/* No step rounds stochastically. */
template <int STEP>
static int64_t need(struct tensor *param, struct tensor *master, struct tensor *m, struct tensor *v,
                    const struct tensor *grad, const struct tensor *sumsq, const struct update_args *args) {
    if (args->stochastic) return OP_UNSUPPORTED;
    if (STEP == 3 && (!starts_on_vector(master, m, v) || tensor_count(param) % 4)) return OP_UNSUPPORTED;
    return 0;
}

template <int STEP>
static void run(const struct op_env *env, struct tensor *param, struct tensor *master, struct tensor *m,
                struct tensor *v, const struct tensor *grad, const struct tensor *sumsq,
                const struct update_args *args) {
    int64_t n = tensor_count(param);
    adamw_state s = {args->lr,
                     args->beta1,
                     args->beta2,
                     args->eps,
                     args->weight_decay,
                     args->max_norm,
                     (float)(1.0 / (1.0 - pow((double)args->beta1, (double)args->step))),
                     (float)(1.0 / (1.0 - pow((double)args->beta2, (double)args->step)))};
    float *master_data = data_of<float>(master), *norm = f32(sumsq);
    launch_config config = {grid_size(n, STEP == 3 ? 4 * BLOCK : BLOCK), BLOCK, 0, env->stream};
    with_dtype(param->dtype, [&](auto tag) {
        using T = decltype(tag);
        T *p = data_of<T>(param), *g = data_of<T>(grad);
        if (STEP == 1) {
            launch(config, adamw_1_m_kernel<T>, f32(m), g, norm, n, s);
            launch(config, adamw_1_v_kernel<T>, f32(v), g, norm, n, s);
            launch(config, adamw_1_w_kernel<T>, p, master_data, f32(m), f32(v), norm, n, s);
        } else
            launch(config, STEP == 2 ? adamw_2_kernel<T> : adamw_3_kernel<T>, p, master_data, f32(m), f32(v),
                   g, norm, n, s);
    });
}

/* --- variants --- */

extern "C" const struct adamw_variant ladder_adamw[] = {{"3_four_elements", run<3>, need<3>},
                                                        {"2_fused", run<2>, need<2>},
                                                        {"1_kernel_per_line", run<1>, need<1>},
                                                        {}};
