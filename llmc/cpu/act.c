/* GELU: forward, backward. Contracts in ops.h, the function itself in cpu.h. */
#include "llmc/cpu/cpu.h"

static void act_forward_run(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    int64_t n = tensor_count(inp);
    float *o = f32(out);
    const float *x = f32(inp);
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) o[i] = cpu_gelu(x[i]);
}

static void act_backward_run(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                             const struct tensor *inp) {
    int64_t n = tensor_count(inp);
    float *dx = f32(dinp);
    const float *d = f32(dout), *x = f32(inp);
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) dx[i] = d[i] * cpu_gelu_derivative(x[i]);
}

CPU_VARIANT(act_forward, NULL);
CPU_VARIANT(act_backward, NULL);
