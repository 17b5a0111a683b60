/* Softmax cross-entropy with its gradient in place, and top-1 hits. Contracts in ops.h.
 *
 * The sum of a row's exponentials is taken over blocks of columns. One fp32 sum of 50,257 exponentials drops
 * terms below half a unit in the last place of the running total: on random logits the loss was off by up to
 * 6e-5, and by how much depended on the width of the processor's vectors. The sum of one block loses little,
 * and the blocks are added in double. */
#include "llmc/cpu/cpu.h"

#include <math.h>
#include <omp.h>
#include <string.h>

enum { LANES = 64, BLOCK = 1024 };

/* One maximum per lane: compilers vectorise this without assuming that there are no NaNs. The lanes are those
 * of several vectors, because a maximum waits for the one before it. */
static float row_max(const float *x, int64_t n) {
    float lane[LANES], max = -INFINITY;
    for (int i = 0; i < LANES; i++) lane[i] = -INFINITY;
    int64_t v = 0;
    for (; v + LANES <= n; v += LANES)
        for (int i = 0; i < LANES; i++) lane[i] = x[v + i] > lane[i] ? x[v + i] : lane[i];
    for (int i = 0; i < LANES; i++) max = lane[i] > max ? lane[i] : max;
    for (; v < n; v++) max = x[v] > max ? x[v] : max;
    return max;
}

/* The sum of e^(x - max). With `keep`, the exponentials replace x. */
static double row_exp_sum(float *x, int64_t n, float max, bool keep) {
    double total = 0.0;
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t end = min_i64(n, first + BLOCK);
        float part = 0.0f;
#pragma omp simd reduction(+ : part)
        for (int64_t v = first; v < end; v++) {
            float e = cpu_expf(x[v] - max);
            part += e;
            if (keep) x[v] = e;
        }
        total += (double)part;
    }
    return total;
}

static double row_sum(const float *x, int64_t n) {
    double total = 0.0;
    for (int64_t v = 0; v < n; v++) total += (double)x[v];
    return total;
}

/* The model's logits of a row: those of the matmul, x, after a soft cap. */
static void cap_row(float *logits, const float *x, int64_t n, float cap) {
#pragma omp simd
    for (int64_t v = 0; v < n; v++) logits[v] = cpu_soften(x[v], cap).value;
}

/* x becomes its gradient, from that of the logits. */
static void cap_row_backward(float *x, const float *dlogits, int64_t n, float cap) {
#pragma omp simd
    for (int64_t v = 0; v < n; v++) x[v] = dlogits[v] * cpu_soften(x[v], cap).slope;
}

/* A soft cap needs a row for each thread: the gradient asks for the logits before it and after it. */
static int64_t loss_forward_need(struct tensor *losses, struct tensor *logits, const struct tensor *targets,
                                 const struct tensor *dloss, int V, const struct loss_terms *terms) {
    bool capped = terms && terms->softcap > 0.0f;
    return capped ? omp_get_max_threads() * (int64_t)V * (int64_t)sizeof(float) : 0;
}

static void loss_forward_run(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                             const struct tensor *targets, const struct tensor *dloss, int V,
                             const struct loss_terms *terms) {
    double smoothing = terms ? (double)terms->smoothing : 0.0, z = terms ? (double)terms->z : 0.0;
    float cap = terms ? terms->softcap : 0.0f;
    int64_t N = tensor_rows(logits), Vp = tensor_cols(logits);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        float *row = f32(logits) + n * Vp, *x = row;
        int32_t target = i32(targets)[n];
        if (target < 0) {
            f32(losses)[n] = 0.0f;
            if (dloss) memset(x, 0, (size_t)Vp * sizeof *x);
            continue;
        }
        if (cap > 0.0f) {
            x = (float *)env->scratch + omp_get_thread_num() * (int64_t)V;
            cap_row(x, row, V, cap);
        }
        float max = row_max(x, V), target_logit = x[target];
        double mean = smoothing > 0.0 ? row_sum(x, V) / (double)V : 0.0;
        double total = row_exp_sum(x, V, max, dloss != NULL), lse = log(total) + (double)max;
        f32(losses)[n] =
            (float)(lse - (1.0 - smoothing) * (double)target_logit - smoothing * mean + z * lse * lse);
        if (!dloss) continue;
        double d = (double)f32(dloss)[0];
        float scale = (float)(d / total * (1.0 + 2.0 * z * lse)), each = (float)(d * smoothing / (double)V);
        for (int64_t v = 0; v < V; v++) x[v] = x[v] * scale - each;
        x[target] -= (float)(d * (1.0 - smoothing));
        if (cap > 0.0f) cap_row_backward(row, x, V, cap);
        for (int64_t v = V; v < Vp; v++) row[v] = 0.0f;
    }
}

CPU_VARIANT(loss_forward, loss_forward_need);

/* --- top1 --- */

static bool is_largest(const float *x, int64_t target, int64_t n) {
    if (isnan(x[target])) return false;
    for (int64_t v = 0; v < target; v++)
        if (x[v] >= x[target]) return false;
    for (int64_t v = target + 1; v < n; v++)
        if (x[v] > x[target]) return false;
    return true;
}

static void top1_run(const struct op_env *env, struct tensor *hits, const struct tensor *logits,
                     const struct tensor *targets, int V) {
    int64_t N = tensor_rows(logits), Vp = tensor_cols(logits);
    const int32_t *target = i32(targets);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++)
        f32(hits)[n] = target[n] >= 0 && is_largest(f32(logits) + n * Vp, target[n], V) ? 1.0f : 0.0f;
}

CPU_VARIANT(top1, NULL);
