/* LayerNorm and RMSNorm: forward, forward of a sum, backward. Contracts in ops.h.
 *
 * RMSNorm is computed as LayerNorm with the mean 0. LayerNorm computes the mean first and then the squared
 * deviations from it; the one-pass form E[x^2] - E[x]^2 cancels when |mean| is far above the deviation. */
#include "llmc/cpu/cpu.h"

/* Element n, or 0 if there is no operand: the mean of RMSNorm. */
static float number_of(const struct tensor *t, int64_t n) { return t ? f32(t)[n] : 0.0f; }

static float mean_of(const float *x, int64_t C) {
    float s = 0.0f;
#pragma omp simd reduction(+ : s)
    for (int64_t c = 0; c < C; c++) s += x[c];
    return s / (float)C;
}

/* Weight and bias in fp32; the bias may be NULL. `fp8`: the scale of an output that is marked, else 0. */
struct scale {
    const float *weight, *bias;
    float fp8;
};

static struct scale scale_of(const struct op_env *env, const struct tensor *out, const struct tensor *weight,
                             const struct tensor *bias) {
    float *memory = (float *)env->scratch;
    int64_t C = tensor_cols(out);
    const float *w = cpu_scale(weight, C, &memory), *b = bias ? cpu_weight(bias, &memory) : NULL;
    struct scale s = {w, b, 0.0f};
    if (!out->fp8) return s;
    float root = sqrtf((float)C), bound = 0.0f;
    for (int64_t c = 0; c < C && !isnan(bound); c++) { /* NaN is the largest */
        float most = fp8_norm_bound(w[c], b ? b[c] : 0.0f, root);
        bound = most <= bound ? bound : most;
    }
    s.fp8 = fp8_scale(FP8_E4M3, bound);
    return s;
}

static void norm_row(struct tensor *out, struct tensor *mean, struct tensor *rstd, const float *x,
                     const struct scale *s, float eps, int64_t n) {
    int64_t C = tensor_cols(out);
    float *o = f32(out) + n * C, m = mean ? mean_of(x, C) : 0.0f, v = 0.0f;
    const float *w = s->weight, *b = s->bias;
#pragma omp simd reduction(+ : v)
    for (int64_t c = 0; c < C; c++) v += (x[c] - m) * (x[c] - m);
    float r = 1.0f / sqrtf(v / (float)C + eps);
    if (b) {
        for (int64_t c = 0; c < C; c++) o[c] = (x[c] - m) * r * w[c] + b[c];
    } else {
        for (int64_t c = 0; c < C; c++) o[c] = (x[c] - m) * r * w[c];
    }
    if (out->fp8)
        for (int64_t c = 0; c < C; c++) o[c] = fp8_through(FP8_E4M3, o[c], s->fp8);
    if (mean) f32(mean)[n] = m;
    f32(rstd)[n] = r;
}

static int64_t norm_forward_need(struct tensor *out, struct tensor *mean, struct tensor *rstd,
                                 const struct tensor *inp, const struct tensor *weight,
                                 const struct tensor *bias, float eps) {
    return cpu_scale_bytes(weight, tensor_cols(inp)) + cpu_copy_bytes(bias);
}

static void norm_forward_run(const struct op_env *env, struct tensor *out, struct tensor *mean,
                             struct tensor *rstd, const struct tensor *inp, const struct tensor *weight,
                             const struct tensor *bias, float eps) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp);
    struct scale s = scale_of(env, out, weight, bias);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) norm_row(out, mean, rstd, f32(inp) + n * C, &s, eps, n);
}

static int64_t residual_norm_forward_need(struct tensor *residual, struct tensor *out, struct tensor *mean,
                                          struct tensor *rstd, const struct tensor *inp,
                                          const struct tensor *delta, const struct tensor *weight,
                                          const struct tensor *bias, float eps) {
    return cpu_scale_bytes(weight, tensor_cols(inp)) + cpu_copy_bytes(bias);
}

static void residual_norm_forward_run(const struct op_env *env, struct tensor *residual, struct tensor *out,
                                      struct tensor *mean, struct tensor *rstd, const struct tensor *inp,
                                      const struct tensor *delta, const struct tensor *weight,
                                      const struct tensor *bias, float eps) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp);
    struct scale s = scale_of(env, out, weight, bias);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        float *x = f32(residual) + n * C;
        const float *a = f32(inp) + n * C, *b = f32(delta) + n * C;
        for (int64_t c = 0; c < C; c++) x[c] = a[c] + b[c];
        norm_row(out, mean, rstd, x, &s, eps, n);
    }
}

/* Rows per partial sum of the parameter gradients. It depends on N alone, so that the number of threads
 * changes no bit, and leaves up to 64 parts for threads. */
static int64_t rows_of_part(int64_t N) { return max_i64(16, ceil_div(N, 64)); }

static int64_t norm_backward_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                  const struct tensor *dresidual, const struct tensor *dout,
                                  const struct tensor *inp, const struct tensor *mean,
                                  const struct tensor *rstd, const struct tensor *weight) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp), parts = ceil_div(N, rows_of_part(N));
    return parts * 2 * C * (int64_t)sizeof(float) + cpu_scale_bytes(weight, C);
}

/* One row: dinp, and its contribution to dweight and dbias, in one pass over memory. dinp may be dout or
 * dresidual. `centred`: LayerNorm, which subtracted the mean m. */
static void norm_backward_row(float *dinp, float *dw, float *db, const float *past, const float *d,
                              const float *x, bool centred, float m, float r, const float *w, int64_t C) {
    float sum_g = 0.0f, sum_gx = 0.0f;
#pragma omp simd reduction(+ : sum_g, sum_gx)
    for (int64_t c = 0; c < C; c++) {
        float xhat = (x[c] - m) * r, g = d[c] * w[c];
        sum_g += g;
        sum_gx += g * xhat;
        dw[c] += d[c] * xhat;
        db[c] += d[c];
    }
    float mean_g = centred ? sum_g / (float)C : 0.0f, mean_gx = sum_gx / (float)C;
#pragma omp simd
    for (int64_t c = 0; c < C; c++) {
        float dx = r * (d[c] * w[c] - mean_g - (x[c] - m) * r * mean_gx);
        dinp[c] = past ? past[c] + dx : dx;
    }
}

static void norm_backward_run(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                              struct tensor *dbias, const struct tensor *dresidual, const struct tensor *dout,
                              const struct tensor *inp, const struct tensor *mean, const struct tensor *rstd,
                              const struct tensor *weight) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp), part_rows = rows_of_part(N),
            parts = ceil_div(N, part_rows);
    float *partial = (float *)env->scratch; /* (parts, 2, C): what each part adds to dweight and dbias */
    float *memory = partial + parts * 2 * C;
    const float *w = cpu_scale(weight, C, &memory);
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        float *dw = partial + part * 2 * C, *db = dw + C;
        for (int64_t c = 0; c < 2 * C; c++) dw[c] = 0.0f;
        for (int64_t n = part * part_rows; n < min_i64((part + 1) * part_rows, N); n++)
            norm_backward_row(f32(dinp) + n * C, dw, db, dresidual ? f32(dresidual) + n * C : NULL,
                              f32(dout) + n * C, f32(inp) + n * C, mean != NULL, number_of(mean, n),
                              f32(rstd)[n], w, C);
    }
    for (int64_t part = 0; dweight && part < parts; part++)
        for (int64_t c = 0; c < C; c++) {
            f32(dweight)[c] += partial[part * 2 * C + c];
            if (dbias) f32(dbias)[c] += partial[part * 2 * C + C + c];
        }
}

CPU_VARIANT(norm_forward, norm_forward_need);
CPU_VARIANT(residual_norm_forward, residual_norm_forward_need);
CPU_VARIANT(norm_backward, norm_backward_need);
