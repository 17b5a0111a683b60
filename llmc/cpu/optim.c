/* The optimizers: adamw, lion and Muon's operations. Contracts in ops.h. */
#include "llmc/cpu/cpu.h"

#include <math.h>
#include <string.h>

/* What scales the gradient, min(1, max_norm/norm); -1 if the norm is not finite. */
static float clip_scale(const struct tensor *sumsq_of_grad, const struct update_args *args) {
    float norm = sqrtf(f32(sumsq_of_grad)[0]);
    if (!isfinite(norm)) return -1.0f;
    return args->max_norm > 0.0f && norm > args->max_norm ? args->max_norm / norm : 1.0f;
}

static void adamw_run(const struct op_env *env, struct tensor *param, struct tensor *master, struct tensor *m,
                      struct tensor *v, const struct tensor *grad, const struct tensor *sumsq_of_grad,
                      const struct update_args *args) {
    float clip = clip_scale(sumsq_of_grad, args);
    if (clip < 0.0f) return;
    float beta1 = args->beta1, beta2 = args->beta2, eps = args->eps;
    /* in double, because 1 - beta^step loses digits in fp32 */
    float step_size = (float)((double)args->lr / (1.0 - pow((double)beta1, (double)args->step)));
    float v_scale = (float)(1.0 / (1.0 - pow((double)beta2, (double)args->step)));
    float keep = 1.0f - args->lr * args->weight_decay;
    int64_t n = tensor_count(param);
    float *p = f32(param), *w = master ? f32(master) : p, *mm = f32(m), *vv = f32(v);
    const float *g = f32(grad);
#pragma omp parallel for simd schedule(static, cpu_share(n))
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i] * clip;
        float mi = mm[i] = beta1 * mm[i] + (1.0f - beta1) * gi;
        float vi = vv[i] = beta2 * vv[i] + (1.0f - beta2) * gi * gi;
        p[i] = w[i] = w[i] * keep - step_size * mi / (sqrtf(vi * v_scale) + eps);
    }
}

static void lion_run(const struct op_env *env, struct tensor *param, struct tensor *master, struct tensor *m,
                     const struct tensor *grad, const struct tensor *sumsq_of_grad,
                     const struct update_args *args) {
    float clip = clip_scale(sumsq_of_grad, args);
    if (clip < 0.0f) return;
    float beta1 = args->beta1, beta2 = args->beta2, lr = args->lr, keep = 1.0f - lr * args->weight_decay;
    int64_t n = tensor_count(param);
    float *p = f32(param), *w = master ? f32(master) : p, *mm = f32(m);
    const float *g = f32(grad);
#pragma omp parallel for simd schedule(static, cpu_share(n))
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i] * clip, direction = beta1 * mm[i] + (1.0f - beta1) * gi;
        mm[i] = beta2 * mm[i] + (1.0f - beta2) * gi;
        p[i] = w[i] = w[i] * keep - (direction > 0.0f ? lr : direction < 0.0f ? -lr : 0.0f);
    }
}

/* --- Muon --- */

static void muon_momentum_run(const struct op_env *env, struct tensor *out, struct tensor *m,
                              const struct tensor *grad, const struct tensor *sumsq_of_grad,
                              const struct update_args *args) {
    float clip = clip_scale(sumsq_of_grad, args), mu = args->momentum;
    int64_t n = tensor_count(out);
    float *o = f32(out), *mm = f32(m);
    const float *g = f32(grad);
    if (clip < 0.0f) {
        memset(o, 0, (size_t)n * sizeof *o);
        return;
    }
#pragma omp parallel for simd schedule(static, cpu_share(n))
    for (int64_t i = 0; i < n; i++) {
        float gi = (1.0f - mu) * (g[i] * clip), mi = mm[i] = mu * mm[i] + gi;
        o[i] = mu * mi + gi;
    }
}

static void normalize_run(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                          const struct tensor *sumsq_of_inp, float eps) {
    float scale = 1.0f / (sqrtf(f32(sumsq_of_inp)[0]) + eps), *o = f32(out);
    int64_t n = tensor_count(out);
    const float *x = f32(inp);
#pragma omp parallel for simd schedule(static, cpu_share(n))
    for (int64_t i = 0; i < n; i++) o[i] = x[i] * scale;
}

static void ns_factor_run(const struct op_env *env, struct tensor *out, const struct tensor *gram,
                          const struct tensor *gram2, float a, float b, float c) {
    int64_t n = tensor_cols(out);
    float *o = f32(out);
    const float *g = f32(gram), *g2 = f32(gram2);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n; row++) {
        for (int64_t i = row * n; i < (row + 1) * n; i++) o[i] = b * g[i] + c * g2[i];
        o[row * n + row] += a;
    }
}

static void muon_update_run(const struct op_env *env, struct tensor *param, struct tensor *master,
                            const struct tensor *update, const struct tensor *sumsq_of_grad,
                            const struct update_args *args) {
    if (clip_scale(sumsq_of_grad, args) < 0.0f) return;
    float lr = args->muon_lr, keep = 1.0f - lr * args->weight_decay;
    int64_t n = tensor_count(param);
    float *p = f32(param), *w = master ? f32(master) : p;
    const float *u = f32(update);
#pragma omp parallel for simd schedule(static, cpu_share(n))
    for (int64_t i = 0; i < n; i++) p[i] = w[i] = w[i] * keep - lr * u[i];
}

/* --- outliers --- */

static void skip_outlier_run(const struct op_env *env, struct tensor *sumsq_of_grad, struct tensor *seen,
                             const struct tensor *loss, float max_loss, float max_sumsq) {
    float *norm = f32(sumsq_of_grad);
    f32(seen)[0] = norm[0];
    if (!(f32(loss)[0] <= max_loss && norm[0] <= max_sumsq)) norm[0] = INFINITY;
}

CPU_VARIANT(adamw, NULL);
CPU_VARIANT(lion, NULL);
CPU_VARIANT(muon_momentum, NULL);
CPU_VARIANT(normalize, NULL);
CPU_VARIANT(ns_factor, NULL);
CPU_VARIANT(muon_update, NULL);
CPU_VARIANT(skip_outlier, NULL);
