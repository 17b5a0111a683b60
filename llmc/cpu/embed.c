/* Embedding: forward, backward. Contracts in ops.h.
 *
 * In backward several tokens may add to one row of dwte. Threads therefore divide the columns, not the
 * tokens, and each adds the rows in the order of the tokens. */
#include "llmc/cpu/cpu.h"

/* o (C) = or += a row of a table in fp32 or bf16. */
static void load_row(float *o, const struct tensor *table, int64_t row, bool add) {
    int64_t C = tensor_cols(table);
    if (table->dtype == DTYPE_BF16) {
        const uint16_t *x = (const uint16_t *)table->data + row * C;
        for (int64_t c = 0; c < C; c++) o[c] = (add ? o[c] : 0.0f) + f32_from_bf16(x[c]);
    } else {
        const float *x = f32(table) + row * C;
        for (int64_t c = 0; c < C; c++) o[c] = add ? o[c] + x[c] : x[c];
    }
}

static void embed_forward_run(const struct op_env *env, struct tensor *out, const struct tensor *tokens,
                              const struct tensor *wte, const struct tensor *wpe, int t0) {
    int64_t N = tensor_count(tokens), T = tokens->dim[1], C = tensor_cols(wte);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        float *o = f32(out) + n * C;
        load_row(o, wte, i32(tokens)[n], false);
        if (wpe) load_row(o, wpe, t0 + n % T, true);
    }
}

static void embed_backward_run(const struct op_env *env, struct tensor *dwte, struct tensor *dwpe,
                               const struct tensor *dout, const struct tensor *tokens) {
    enum { BLOCK = 64 };
    int64_t N = tensor_count(tokens), T = tokens->dim[1], C = tensor_cols(dwte);
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < C; first += BLOCK) {
        int64_t last = min_i64(first + BLOCK, C);
        for (int64_t n = 0; n < N; n++) {
            const float *d = f32(dout) + n * C;
            float *token = f32(dwte) + (int64_t)i32(tokens)[n] * C;
            for (int64_t c = first; c < last; c++) token[c] += d[c];
            if (!dwpe) continue;
            float *position = f32(dwpe) + (n % T) * C;
            for (int64_t c = first; c < last; c++) position[c] += d[c];
        }
    }
}

CPU_VARIANT(embed_forward, NULL);
CPU_VARIANT(embed_backward, NULL);
