/* AdamW and the global norm (sumsq), three steps each. Production is "vec" of either op in
 * llmc/cuda/optim.cu; contracts in ops.h.
 *
 * GPT-2 124M: 124.4M parameters. AdamW in bf16 with fp32 m, v and master weights reads 2+4+4+4 bytes an
 * element and writes 4+4+4+2: 28, so 3.5 GB and 810 us at the 4.3 TB/s of an H200's copy. The norm reads the
 * gradients once: 249 MB, 58 us.
 * Order: AdamW's arithmetic, AdamW steps, norm steps, launchers, rows. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

#include <cstring>
#include <cfloat>

constexpr int BLOCK = 256;

/* --- AdamW: what all steps share --- */

struct adamw_state {
    adamw_args args;
    float m_scale, v_scale; /* 1/(1 - beta^step) */
};

/* The factor for gradients; negative if their norm is not finite and nothing may change. */
DEVICE_INLINE float gradient_scale(const adamw_state &s, float sumsq) {
    if (!(sumsq <= FLT_MAX)) return -1.0f;
    float norm = sqrtf(sumsq);
    return s.args.max_norm > 0.0f && norm > s.args.max_norm ? s.args.max_norm / norm : 1.0f;
}
DEVICE_INLINE float next_m(const adamw_state &s, float m, float g) {
    return s.args.beta1 * m + (1.0f - s.args.beta1) * g;
}
DEVICE_INLINE float next_v(const adamw_state &s, float v, float g) {
    return s.args.beta2 * v + (1.0f - s.args.beta2) * g * g;
}
DEVICE_INLINE float next_w(const adamw_state &s, float w, float m, float v) {
    float direction = m * s.m_scale / (sqrtf(v * s.v_scale) + s.args.eps);
    return w - s.args.lr * (direction + s.args.weight_decay * w);
}

/* --- AdamW, step 1: a kernel for each line of the formula ---
 * How it looks in a framework without fusion. The bytes an element: m 2+4+4, v 2+4+4, w 4+4+4+4+2, so 38 in
 * place of 28, and three launches. Predicted: 1.36 times the 810 us, and more for 2- and 4-byte loads.
 * Measured: not yet measured. */

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

/* --- AdamW, step 2: one kernel ---
 * Against step 1: m, v and the gradient stay in registers between the lines: 28 bytes an element. Predicted:
 * close to the 810 us; five loads in flight a thread hide much of the latency. Measured: not yet measured. */

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

/* --- AdamW, step 3: four elements a thread ---
 * Against step 2: 16-byte accesses to m, v and master weights, a quarter of the instructions for addresses,
 * four times the bytes in flight a thread. A lane's four elements are neighbours, so the warp still reads
 * whole sectors. Predicted: 95 % of the copy rate, 850 us. Measured: not yet measured.
 * Production handles the last n % 4 elements and rounds stochastically, too. */

template <class T>
__global__ void adamw_3_kernel(T *param, float *master, float *m, float *v, const T *grad, const float *sumsq,
                               int64_t n, adamw_state s) {
    int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * 4;
    float scale = gradient_scale(s, sumsq[0]);
    if (i >= n || scale < 0.0f) return;
    vec<float> m4 = vec<float>::load(m + i), v4 = vec<float>::load(v + i), w4;
    T g[4], p[4];
    for (int k = 0; k < 4; k++)
        g[k] = grad[i + k]; /* the compiler cannot merge these: 2 bytes each in bf16 */
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

/* --- norm: the sum of a block, in thread 0, in a fixed order --- */

DEVICE_INLINE double sum_of_block(double x, double *scratch) {
    scratch[threadIdx.x] = x;
    for (int width = BLOCK / 2; width > 0; width /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < width) scratch[threadIdx.x] += scratch[threadIdx.x + width];
    }
    return scratch[0];
}

/* --- norm, step 1: one block ---
 * 256 threads walk everything. fp64 keeps the error independent of n. One SM of 132 works, and with four
 * loads in flight a thread it reads 256 * 4 * 2 bytes in 600 ns, 3.4 GB/s. Predicted: a thousand times the 58
 * us. Measured: not yet measured. */

/* --- norm, step 2: many blocks, and a second kernel for their sums ---
 * Against step 1: all SMs, 8 blocks each, a fixed number, so that the order of the sum does not depend on the
 * GPU. (Atomics would save the second kernel and lose that.) Predicted: 270,000 loads of 2 bytes in flight,
 * 540 KB in 600 ns: 0.9 TB/s, 280 us. Measured: not yet measured. */

constexpr int BLOCKS = 8 * 132;

template <class T, class Out> __global__ void sumsq_12_kernel(Out *sums, const T *inp, int64_t n) {
    SHARED(double, scratch, [BLOCK]);
    double sum = 0.0;
    int64_t step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < n; i += step) {
        double x = (double)to_float(inp[i]);
        sum += x * x;
    }
    sum = sum_of_block(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = (Out)sum;
}
__global__ static void sumsq_2_finish_kernel(float *out, const double *sums, int count) {
    SHARED(double, scratch, [BLOCK]);
    double sum = 0.0;
    for (int i = (int)threadIdx.x; i < count; i += BLOCK) sum += sums[i];
    sum = sum_of_block(sum, scratch);
    if (threadIdx.x == 0) out[0] = (float)sum;
}

/* --- norm, step 3: vectors ---
 * Against step 2: 16 bytes a load, eight times the bytes in flight: 4.3 MB in 600 ns would be 7 TB/s, so the
 * memory is the limit. Predicted: 95 % of the copy rate, 61 us; an H200's SM does 64 fp64 multiply-adds a
 * clock and gets 10 bf16 from memory. Measured: not yet measured. Production unrolls by four, takes n % 8,
 * and adds the sums of the blocks in the same launch. */

template <class T> __global__ void sumsq_3_kernel(double *sums, const T *inp, int64_t n) {
    SHARED(double, scratch, [BLOCK]);
    double sum = 0.0;
    int64_t vectors = n / vec<T>::size, step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < vectors; i += step) {
        vec<T> x = vec<T>::load(inp + i * vec<T>::size);
#pragma unroll
        for (int k = 0; k < vec<T>::size; k++) sum += (double)to_float(x[k]) * (double)to_float(x[k]);
    }
    sum = sum_of_block(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/* --- launchers --- */

/* Only production rounds stochastically. */
template <int STEP>
static int64_t adamw_need(struct tensor *param, struct tensor *master, struct tensor *m, struct tensor *v,
                          const struct tensor *grad, const struct tensor *sumsq,
                          const struct adamw_args *args) {
    if (!same_float_dtype(param, grad) || args->stochastic) return OP_UNSUPPORTED;
    if (STEP == 3 && (!starts_on_vector(master, m, v) || tensor_count(param) % 4)) return OP_UNSUPPORTED;
    return 0;
}

template <int STEP>
static void adamw_run(const struct op_env *env, struct tensor *param, struct tensor *master, struct tensor *m,
                      struct tensor *v, const struct tensor *grad, const struct tensor *sumsq,
                      const struct adamw_args *args) {
    int64_t n = tensor_count(param);
    adamw_state s;
    memset(&s, 0, sizeof s); /* padding too: it travels to the device */
    s.args.lr = args->lr;
    s.args.beta1 = args->beta1;
    s.args.beta2 = args->beta2;
    s.args.eps = args->eps;
    s.args.weight_decay = args->weight_decay;
    s.args.max_norm = args->max_norm;
    s.args.step = args->step;
    s.args.seed = args->seed;
    s.args.offset = args->offset;
    s.args.stochastic = args->stochastic;
    s.m_scale = (float)(1.0 / (1.0 - pow((double)args->beta1, (double)args->step)));
    s.v_scale = (float)(1.0 / (1.0 - pow((double)args->beta2, (double)args->step)));
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

template <int STEP> static int64_t sumsq_need(struct tensor *out, const struct tensor *inp) {
    if (!same_float_dtype(inp) || (STEP == 3 && !vectors_in(inp))) return OP_UNSUPPORTED;
    return STEP == 1 ? 0 : BLOCKS * (int64_t)sizeof(double);
}

template <int STEP>
static void sumsq_run(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    int64_t n = tensor_count(inp);
    double *sums = (double *)env->scratch; /* (BLOCKS) */
    unsigned blocks = (unsigned)min_i64(BLOCKS, ceil_div(n, BLOCK));
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        if (STEP == 1)
            launch({1, BLOCK, 0, env->stream}, sumsq_12_kernel<T, float>, f32(out), data_of<T>(inp), n);
        else
            launch({blocks, BLOCK, 0, env->stream},
                   STEP == 2 ? sumsq_12_kernel<T, double> : sumsq_3_kernel<T>, sums, data_of<T>(inp), n);
    });
    if (STEP != 1) launch({1, BLOCK, 0, env->stream}, sumsq_2_finish_kernel, f32(out), sums, (int)blocks);
}

/* --- rows --- */

extern "C" {
const struct adamw_variant ladder_adamw[] = {{"3_four_elements", adamw_run<3>, adamw_need<3>},
                                             {"2_fused", adamw_run<2>, adamw_need<2>},
                                             {"1_kernel_per_line", adamw_run<1>, adamw_need<1>},
                                             {}};
const struct sumsq_variant ladder_sumsq[] = {{"3_vectors", sumsq_run<3>, sumsq_need<3>},
                                             {"2_many_blocks", sumsq_run<2>, sumsq_need<2>},
                                             {"1_one_block", sumsq_run<1>, sumsq_need<1>},
                                             {}};
}
