/* Softmax cross-entropy with its gradient in place. Contract in ops.h. */
#include "cpu.h"

#include <math.h>
#include <string.h>

static int64_t loss_forward_need(struct tensor *losses, struct tensor *logits, const struct tensor *targets,
                                 const struct tensor *dloss, int V) {
    return cpu_needs(logits, 0);
}

static void loss_forward_run(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                             const struct tensor *targets, const struct tensor *dloss, int V) {
    int64_t N = tensor_rows(logits), Vp = tensor_cols(logits);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        float *x = f32(logits) + n * Vp, max = -INFINITY, total = 0.0f;
        int32_t target = i32(targets)[n];
        if (target < 0) {
            f32(losses)[n] = 0.0f;
            if (dloss) memset(x, 0, (size_t)Vp * sizeof *x);
            continue;
        }
#pragma omp simd reduction(max : max)
        for (int64_t v = 0; v < V; v++) max = x[v] > max ? x[v] : max;
        float target_logit = x[target];
#pragma omp simd reduction(+ : total)
        for (int64_t v = 0; v < V; v++) {
            float e = cpu_expf(x[v] - max);
            total += e;
            if (dloss) x[v] = e;
        }
        f32(losses)[n] = logf(total) + max - target_logit;
        if (!dloss) continue;
        float scale = f32(dloss)[0] / total;
        for (int64_t v = 0; v < V; v++) x[v] *= scale;
        x[target] -= f32(dloss)[0];
        for (int64_t v = V; v < Vp; v++) x[v] = 0.0f;
    }
}

CPU_ROW(loss_forward, loss_forward_need);
