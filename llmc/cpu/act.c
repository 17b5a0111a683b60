/* Activations, gated linear units and dropout. Contracts in ops.h, the functions in cpu.h.
 *
 * A thread takes BLOCK elements at a time. The loop over them is inlined with the activation as a constant,
 * so that the compiler vectorises it. */
#include "llmc/cpu/cpu.h"

enum { BLOCK = 1024 };

/* f(act, ...), with a constant `act` in each call. */
#define WITH_ACTIVATION(act, f, ...)                                                                         \
    ((act) == ACT_GELU   ? f(ACT_GELU, __VA_ARGS__)                                                          \
     : (act) == ACT_SILU ? f(ACT_SILU, __VA_ARGS__)                                                          \
                         : f(ACT_RELU2, __VA_ARGS__))

/* --- act --- */

static inline void forward(enum activation act, float *out, const float *x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) out[i] = cpu_act(act, x[i]);
}

static void act_forward_run(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                            enum activation act) {
    int64_t n = tensor_count(inp);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += BLOCK)
        WITH_ACTIVATION(act, forward, f32(out) + i, f32(inp) + i, min_i64(BLOCK, n - i));
    cpu_round_marked(out);
}

static inline void backward(enum activation act, float *dx, const float *d, const float *x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) dx[i] = d[i] * cpu_act_derivative(act, x[i]);
}

static void act_backward_run(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                             const struct tensor *inp, enum activation act) {
    int64_t n = tensor_count(inp);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += BLOCK)
        WITH_ACTIVATION(act, backward, f32(dinp) + i, f32(dout) + i, f32(inp) + i, min_i64(BLOCK, n - i));
}

/* --- glu --- */

static inline void gated(enum activation act, float *out, const float *gate, const float *up, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) out[i] = cpu_act(act, gate[i]) * up[i];
}

static void glu_forward_run(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                            enum activation act) {
    int64_t N = tensor_rows(out), F = tensor_cols(out);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = 0; c < F; c += BLOCK) {
            const float *gate = f32(inp) + n * 2 * F + c;
            WITH_ACTIVATION(act, gated, f32(out) + n * F + c, gate, gate + F, min_i64(BLOCK, F - c));
        }
    cpu_round_marked(out);
}

static inline void gated_backward(enum activation act, float *dgate, float *dup, const float *d,
                                  const float *gate, const float *up, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        dgate[i] = d[i] * up[i] * cpu_act_derivative(act, gate[i]);
        dup[i] = d[i] * cpu_act(act, gate[i]);
    }
}

static void glu_backward_run(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                             const struct tensor *inp, enum activation act) {
    int64_t N = tensor_rows(dout), F = tensor_cols(dout);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = 0; c < F; c += BLOCK) {
            const float *gate = f32(inp) + n * 2 * F + c;
            float *dgate = f32(dinp) + n * 2 * F + c;
            WITH_ACTIVATION(act, gated_backward, dgate, dgate + F, f32(dout) + n * F + c, gate, gate + F,
                            min_i64(BLOCK, F - c));
        }
}

/* --- dropout --- */

static void dropout_run(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                        const struct dropout_rule *how) {
    int64_t B = out->dim[0], n = tensor_count(out) / B;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < B; b++)
        for (int64_t first = 0; first < n; first += BLOCK) {
            struct dropout_key key = dropout_key_of(how->p, how->seed, how->place, i32(how->samples)[b]);
            const float *x = f32(inp) + b * n;
            float *o = f32(out) + b * n;
            for (int64_t i = first; i < min_i64(first + BLOCK, n); i += 4) {
                struct rng4 random = dropout_block(key, i);
                for (int64_t k = i; k < min_i64(i + 4, n); k++)
                    o[k] = x[k] * dropout_factor_in(key, random, k);
            }
        }
}

CPU_VARIANT(act_forward, NULL);
CPU_VARIANT(act_backward, NULL);
CPU_VARIANT(glu_forward, NULL);
CPU_VARIANT(glu_backward, NULL);
CPU_VARIANT(dropout, NULL);
