/* The front doors (ops.c) of what happens to whole buffers of parameters and gradients: optimizers, sums,
 * copies, filling. */
#include "llmc/ops/want.h"

/* --- optim --- */

/* Operands of an update; param is only written where there is a master copy. Returns the bytes of param,
 * master and grad that move. */
static double want_update(const struct ctx *ctx, const char *op, const struct tensor *param,
                          const struct tensor *master, const struct tensor *grad,
                          const struct tensor *sumsq_of_grad) {
    int64_t n = tensor_count(param);
    want_count(op, grad, n);
    want_number(op, sumsq_of_grad);
    if (master) want_count(op, master, n);
    if (master) want_dtype(op, master, DTYPE_F32);
    WANT_ALIKE(ctx, op, param, grad);
    return BYTES(param, grad, sumsq_of_grad) + 2 * BYTES(master) + (master ? 0 : bytes_of(param));
}

static void want_moment(const char *op, const struct tensor *m, int64_t n) {
    want_count(op, m, n);
    want_dtype(op, m, DTYPE_F32);
}

void adamw(struct ctx *ctx, struct tensor *param, struct tensor *master, struct tensor *m, struct tensor *v,
           const struct tensor *grad, const struct tensor *sumsq_of_grad, const struct update_args *args) {
    int64_t n = tensor_count(param);
    double bytes = want_update(ctx, "adamw", param, master, grad, sumsq_of_grad);
    want_moment("adamw", m, n);
    want_moment("adamw", v, n);
    check(args->step >= 1, "adamw: step %" PRId64 " should be 1 for the first update", args->step);
    DISPATCH(ctx, adamw, 16 * n, bytes + 2 * BYTES(m, v), param, master, m, v, grad, sumsq_of_grad, args);
}

void lion(struct ctx *ctx, struct tensor *param, struct tensor *master, struct tensor *m,
          const struct tensor *grad, const struct tensor *sumsq_of_grad, const struct update_args *args) {
    int64_t n = tensor_count(param);
    double bytes = want_update(ctx, "lion", param, master, grad, sumsq_of_grad);
    want_moment("lion", m, n);
    DISPATCH(ctx, lion, 10 * n, bytes + 2 * BYTES(m), param, master, m, grad, sumsq_of_grad, args);
}

void muon_momentum(struct ctx *ctx, struct tensor *out, struct tensor *m, const struct tensor *grad,
                   const struct tensor *sumsq_of_grad, const struct update_args *args) {
    int64_t n = tensor_count(out);
    want_count("muon_momentum", grad, n);
    want_moment("muon_momentum", m, n);
    want_number("muon_momentum", sumsq_of_grad);
    WANT_ALIKE(ctx, "muon_momentum", out, grad);
    DISPATCH(ctx, muon_momentum, 6 * n, BYTES(out, grad, sumsq_of_grad) + 2 * BYTES(m), out, m, grad,
             sumsq_of_grad, args);
}

void normalize(struct ctx *ctx, struct tensor *out, const struct tensor *inp,
               const struct tensor *sumsq_of_inp, float eps) {
    want_count("normalize", inp, tensor_count(out));
    want_number("normalize", sumsq_of_inp);
    WANT_ALIKE(ctx, "normalize", out, inp);
    check(eps > 0.0f, "normalize: eps is %g, should be positive", (double)eps);
    DISPATCH(ctx, normalize, tensor_count(out), BYTES(out, inp, sumsq_of_inp), out, inp, sumsq_of_inp, eps);
}

void ns_factor(struct ctx *ctx, struct tensor *out, const struct tensor *gram, const struct tensor *gram2,
               float a, float b, float c) {
    int64_t n = tensor_cols(out);
    want("ns_factor", out, n, n);
    want("ns_factor", gram, n, n);
    want("ns_factor", gram2, n, n);
    WANT_ALIKE(ctx, "ns_factor", out, gram, gram2);
    DISPATCH(ctx, ns_factor, 4 * n * n, BYTES(out, gram, gram2), out, gram, gram2, a, b, c);
}

void muon_update(struct ctx *ctx, struct tensor *param, struct tensor *master, const struct tensor *update,
                 const struct tensor *sumsq_of_grad, const struct update_args *args) {
    double bytes = want_update(ctx, "muon_update", param, master, update, sumsq_of_grad);
    DISPATCH(ctx, muon_update, 3 * tensor_count(param), bytes, param, master, update, sumsq_of_grad, args);
}

void skip_outlier(struct ctx *ctx, struct tensor *sumsq_of_grad, struct tensor *seen,
                  const struct tensor *loss, float max_loss, float max_sumsq) {
    want_number("skip_outlier", sumsq_of_grad);
    want_number("skip_outlier", seen);
    want_number("skip_outlier", loss);
    DISPATCH(ctx, skip_outlier, 0, 2 * BYTES(sumsq_of_grad) + BYTES(seen, loss), sumsq_of_grad, seen, loss,
             max_loss, max_sumsq);
}

/* --- buffer --- */

void sumsq(struct ctx *ctx, struct tensor *out, const struct tensor *inp) {
    want_number("sumsq", out);
    WANT_ALIKE(ctx, "sumsq", inp);
    DISPATCH(ctx, sumsq, 2 * tensor_count(inp), BYTES(out, inp), out, inp);
}

void sum(struct ctx *ctx, struct tensor *out, const struct tensor *inp, const struct tensor *scale,
         bool accumulate) {
    want_number("sum", out);
    if (scale) want_number("sum", scale);
    want_dtype("sum", inp, DTYPE_F32);
    DISPATCH(ctx, sum, tensor_count(inp), (accumulate ? 2 : 1) * bytes_of(out) + BYTES(inp, scale), out, inp,
             scale, accumulate);
}

void cast(struct ctx *ctx, struct tensor *out, const struct tensor *inp) {
    want_count("cast", out, tensor_count(inp));
    const struct tensor *const both[] = {out, inp};
    for (int i = 0; i < 2; i++)
        check(both[i]->dtype == DTYPE_F32 || both[i]->dtype == DTYPE_BF16, "cast: %s should be fp32 or bf16",
              tensor_text(both[i]));
    DISPATCH(ctx, cast, 0, BYTES(out, inp), out, inp);
}

void add_scaled(struct ctx *ctx, struct tensor *out, const struct tensor *base, const struct tensor *inp,
                float scale) {
    int64_t n = tensor_count(inp);
    want_count("add_scaled", out, n);
    if (base) want_count("add_scaled", base, n);
    WANT_ALIKE(ctx, "add_scaled", inp, out, base);
    DISPATCH(ctx, add_scaled, (base ? 2 : 1) * n, BYTES(out, base, inp), out, base, inp, scale);
}

void fill(struct ctx *ctx, struct tensor *out, float value) {
    WANT_ALIKE(ctx, "fill", out);
    DISPATCH(ctx, fill, 0, bytes_of(out), out, value);
}

void randn(struct ctx *ctx, struct tensor *out, float mean, float std, uint64_t seed, uint64_t purpose) {
    WANT_ALIKE(ctx, "randn", out);
    DISPATCH(ctx, randn, 0, bytes_of(out), out, mean, std, seed, purpose);
}
