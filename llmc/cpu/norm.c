/* Layer normalisation: forward, with residual, backward. Contracts in ops.h. */
#include "cpu.h"

#include <math.h>

#define NORM_EPS 1e-5f

/* Mean first, then the squared deviations from it: the one-pass form cancels when |mean| >> deviation. */
static void norm_row(float *out, float *mean, float *rstd, const float *x, const float *weight,
                     const float *bias, int64_t C) {
    float s = 0.0f, v = 0.0f;
#pragma omp simd reduction(+ : s)
    for (int64_t c = 0; c < C; c++) s += x[c];
    float m = s / (float)C;
#pragma omp simd reduction(+ : v)
    for (int64_t c = 0; c < C; c++) v += (x[c] - m) * (x[c] - m);
    float r = 1.0f / sqrtf(v / (float)C + NORM_EPS);
    for (int64_t c = 0; c < C; c++) out[c] = (x[c] - m) * r * weight[c] + bias[c];
    *mean = m;
    *rstd = r;
}

static int64_t norm_forward_need(struct tensor *out, struct tensor *mean, struct tensor *rstd,
                                 const struct tensor *inp, const struct tensor *weight,
                                 const struct tensor *bias) {
    return cpu_needs(inp, 0);
}

static void norm_forward_run(const struct op_env *env, struct tensor *out, struct tensor *mean,
                             struct tensor *rstd, const struct tensor *inp, const struct tensor *weight,
                             const struct tensor *bias) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++)
        norm_row(f32(out) + n * C, f32(mean) + n, f32(rstd) + n, f32(inp) + n * C, f32(weight), f32(bias), C);
}

static int64_t residual_norm_forward_need(struct tensor *residual, struct tensor *out, struct tensor *mean,
                                          struct tensor *rstd, const struct tensor *inp,
                                          const struct tensor *delta, const struct tensor *weight,
                                          const struct tensor *bias) {
    return cpu_needs(inp, 0);
}

static void residual_norm_forward_run(const struct op_env *env, struct tensor *residual, struct tensor *out,
                                      struct tensor *mean, struct tensor *rstd, const struct tensor *inp,
                                      const struct tensor *delta, const struct tensor *weight,
                                      const struct tensor *bias) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        float *x = f32(residual) + n * C;
        const float *a = f32(inp) + n * C, *b = f32(delta) + n * C;
        for (int64_t c = 0; c < C; c++) x[c] = a[c] + b[c];
        norm_row(f32(out) + n * C, f32(mean) + n, f32(rstd) + n, x, f32(weight), f32(bias), C);
    }
}

static int64_t norm_backward_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                  const struct tensor *dresidual, const struct tensor *dout,
                                  const struct tensor *inp, const struct tensor *mean,
                                  const struct tensor *rstd, const struct tensor *weight) {
    return cpu_needs(inp, 0);
}

static void norm_backward_run(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                              struct tensor *dbias, const struct tensor *dresidual, const struct tensor *dout,
                              const struct tensor *inp, const struct tensor *mean, const struct tensor *rstd,
                              const struct tensor *weight) {
    enum { BLOCK = 64 };
    int64_t N = tensor_rows(inp), C = tensor_cols(inp);
    /* parameter gradients first: dinp may overwrite dout */
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < C; first += BLOCK) {
        int64_t count = min_i64(BLOCK, C - first);
        float dw[BLOCK] = {0}, db[BLOCK] = {0};
        for (int64_t n = 0; n < N; n++) {
            const float *d = f32(dout) + n * C + first, *x = f32(inp) + n * C + first;
            float m = f32(mean)[n], r = f32(rstd)[n];
            for (int64_t c = 0; c < count; c++) {
                dw[c] += d[c] * ((x[c] - m) * r);
                db[c] += d[c];
            }
        }
        for (int64_t c = 0; c < count; c++) {
            f32(dweight)[first + c] += dw[c];
            f32(dbias)[first + c] += db[c];
        }
    }
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const float *d = f32(dout) + n * C, *x = f32(inp) + n * C, *w = f32(weight);
        const float *past = dresidual ? f32(dresidual) + n * C : NULL;
        float *o = f32(dinp) + n * C;
        float m = f32(mean)[n], r = f32(rstd)[n], sum_g = 0.0f, sum_gx = 0.0f;
#pragma omp simd reduction(+ : sum_g, sum_gx)
        for (int64_t c = 0; c < C; c++) {
            float g = d[c] * w[c];
            sum_g += g;
            sum_gx += g * ((x[c] - m) * r);
        }
        float mean_g = sum_g / (float)C, mean_gx = sum_gx / (float)C;
        for (int64_t c = 0; c < C; c++) {
            float dx = r * (d[c] * w[c] - mean_g - (x[c] - m) * r * mean_gx);
            o[c] = past ? past[c] + dx : dx;
        }
    }
}

CPU_ROW(norm_forward, norm_forward_need);
CPU_ROW(residual_norm_forward, residual_norm_forward_need);
CPU_ROW(norm_backward, norm_backward_need);
