/* Operations on whole buffers: sumsq, sum, cast, add_scaled, fill, randn. Contracts in ops.h.
 *
 * Sums are taken in fp64, sumsq over chunks of fixed size that are added in order, so that the number of
 * threads changes no bit. randn computes four numbers from each Philox block by their index alone. */
#include "llmc/cpu/cpu.h"
#include "llmc/base/rng.h"

#include <math.h>

enum { CHUNK = 1 << 16 };

static int64_t chunk_scratch(const struct tensor *inp) {
    return ceil_div(tensor_count(inp), CHUNK) * (int64_t)sizeof(double);
}

static int64_t sumsq_need(struct tensor *out, const struct tensor *inp) { return chunk_scratch(inp); }

static void sumsq_run(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    int64_t n = tensor_count(inp), chunks = ceil_div(n, CHUNK);
    double *partial = (double *)env->scratch, total = 0.0;
    const float *x = f32(inp);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < chunks; k++) {
        double s = 0.0;
        int64_t last = min_i64((k + 1) * CHUNK, n);
#pragma omp simd reduction(+ : s)
        for (int64_t i = k * CHUNK; i < last; i++) s += (double)x[i] * (double)x[i];
        partial[k] = s;
    }
    for (int64_t k = 0; k < chunks; k++) total += partial[k];
    f32(out)[0] = (float)total;
}

static void sum_run(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                    const struct tensor *scale, bool accumulate) {
    double total = 0.0;
    for (int64_t i = 0; i < tensor_count(inp); i++) total += (double)f32(inp)[i];
    if (scale) total *= (double)f32(scale)[0];
    f32(out)[0] = (float)total + (accumulate ? f32(out)[0] : 0.0f);
}

static void cast_run(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    int64_t n = tensor_count(inp);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float x = inp->dtype == DTYPE_F32 ? f32(inp)[i] : f32_from_bf16(((const uint16_t *)inp->data)[i]);
        if (out->dtype == DTYPE_F32)
            f32(out)[i] = x;
        else
            ((uint16_t *)out->data)[i] = bf16_from_f32(x);
    }
}

static void add_scaled_run(const struct op_env *env, struct tensor *out, const struct tensor *base,
                           const struct tensor *inp, float scale) {
    int64_t n = tensor_count(out);
    float *o = f32(out);
    const float *x = f32(inp), *from = base ? f32(base) : NULL;
#pragma omp parallel for simd schedule(static, cpu_share(n))
    for (int64_t i = 0; i < n; i++) o[i] = (from ? from[i] : 0.0f) + scale * x[i];
}

static void fill_run(const struct op_env *env, struct tensor *out, float value) {
    int64_t n = tensor_count(out);
    float *o = f32(out);
#pragma omp parallel for simd schedule(static, cpu_share(n))
    for (int64_t i = 0; i < n; i++) o[i] = value;
}

/* A Philox block gives two Box-Muller pairs. 1-u keeps the argument of the logarithm above 0. */
static void randn_run(const struct op_env *env, struct tensor *out, float mean, float std, uint64_t seed,
                      uint64_t purpose) {
    int64_t n = tensor_count(out);
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < ceil_div(n, 4); block++) {
        struct rng4 bits = rng_philox(seed, purpose, (uint64_t)block);
        float normal[4];
        for (int k = 0; k < 4; k += 2) {
            float radius = sqrtf(-2.0f * logf(1.0f - rng_unit_float(bits.v[k])));
            float angle = 6.283185307f * rng_unit_float(bits.v[k + 1]);
            normal[k] = radius * cosf(angle);
            normal[k + 1] = radius * sinf(angle);
        }
        for (int64_t i = block * 4; i < min_i64(block * 4 + 4, n); i++)
            f32(out)[i] = mean + std * normal[i % 4];
    }
}

CPU_VARIANT(sumsq, sumsq_need);
CPU_VARIANT(sum, NULL);
CPU_VARIANT(cast, NULL);
CPU_VARIANT(add_scaled, NULL);
CPU_VARIANT(fill, NULL);
CPU_VARIANT(randn, NULL);
