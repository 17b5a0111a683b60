/* loss_forward: softmax cross-entropy and its gradient; top1. Shapes: {N, V, Vp}. */
#include "test/ops/op_harness.h"

#include <stdlib.h>

enum {
    KEEP_LOGITS = OP_FLAG(0),
    IGNORED = OP_FLAG(1),
    ALL_IGNORED = OP_FLAG(2),
    SPIKE = OP_FLAG(3),
    SMOOTH = OP_FLAG(4),
    Z_LOSS = OP_FLAG(5),
    SOFTCAP = OP_FLAG(6)
};

static struct loss_terms terms_of(const struct op_case *c) {
    return (struct loss_terms){c->flags & SMOOTH ? 0.1f : 0.0f, c->flags & Z_LOSS ? 1e-2f : 0.0f,
                               c->flags & SOFTCAP ? 15.0f : 0.0f};
}

static void loss_forward_make(struct op_instance *x) {
    int64_t N = x->c->d[0], V = x->c->d[1], Vp = x->c->d[2];
    struct operand *targets = op_add(x, ROLE_IN, DTYPE_I32, "targets", N, 0, 0);
    op_fill_index(x, targets, 0, V);
    for (int64_t n = 0; n < N; n++)
        if (x->c->flags & ALL_IGNORED || (x->c->flags & IGNORED && n % 3 == 1)) targets->initial[n] = -1.0f;
    if (N > 1) targets->initial[N - 1] = (float)(V - 1);
    if (x->c->flags & ALL_IGNORED) targets->initial[N - 1] = -1.0f;
    if (!(x->c->flags & KEEP_LOGITS))
        op_add(x, ROLE_IN, DTYPE_F32, "dloss", 1, 0, 0)->initial[0] = 1.0f / (float)N;
    struct operand *logits =
        op_add(x, x->c->flags & KEEP_LOGITS ? ROLE_IN : ROLE_UPDATE, x->dtype, "logits", N, Vp, 0);
    op_fill(x, logits, x->c->input == INPUT_LARGE ? 1000.0 : 3.0);
    for (int64_t n = 0; n < N; n++) {
        /* one logit dwarfs the others, up to e^200; in some rows it is the target's */
        if (x->c->flags & SPIKE) {
            int64_t at = n % 2 && targets->initial[n] >= 0.0f ? (int64_t)targets->initial[n] : (7 * n) % V;
            logits->initial[n * Vp + at] = n % 4 < 2 ? 200.0f : 30.0f;
        }
        for (int64_t v = V; v < Vp; v++) logits->initial[n * Vp + v] = 30000.0f; /* padding must not count */
    }
    op_round(logits, logits->initial);
    op_add(x, ROLE_OUT, DTYPE_F32, "losses", N, 0, 0);
}

/* Each part of max + log sum exp(x - max) - x[target] is rounded to fp32. A probability has the error of
 * the sum and that of its exponent, 2 u |x - max|. The sum of the logits has that of a loop; the z-loss and
 * its gradient multiply the error of lse by 2 z lse and by 2 z. A soft cap X adds 2^-21 X to the error of
 * each logit, and 2^-20 to its slope. */
static void loss_forward_bound(struct op_instance *x) {
    int64_t N = x->c->d[0], V = x->c->d[1], Vp = x->c->d[2];
    const float *logits = op_initial(x, "logits"), *targets = op_initial(x, "targets");
    double *losses = op_allowed(x, "losses"), e = op_sum_error((double)V);
    double *dlogits = x->c->flags & KEEP_LOGITS ? NULL : op_allowed(x, "logits");
    double dloss = dlogits ? (double)op_initial(x, "dloss")[0] : 0.0;
    double smoothing = (double)terms_of(x->c).smoothing, z = (double)terms_of(x->c).z;
    double cap = (double)terms_of(x->c).softcap, capped = 8.0 * UNIT_F32 * cap;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        if (targets[n] < 0.0f) continue; /* exactly 0 */
        double *row = (double *)xmalloc((size_t)V * sizeof *row);
        double max = -INFINITY, total = 0.0, spread = 0.0, sizes = 0.0;
        for (int64_t v = 0; v < V; v++) {
            double raw = (double)logits[n * Vp + v];
            row[v] = cap > 0.0 ? cap * tanh(raw / cap) : raw;
        }
        for (int64_t v = 0; v < V; v++) max = max_f64(max, row[v]);
        for (int64_t v = 0; v < V; v++) {
            double p = exp(row[v] - max);
            total += p;
            spread += p * (max - row[v]);
            sizes += fabs(row[v]) / (double)V;
        }
        double target = row[(int64_t)targets[n]], lse = max + log(total);
        double lse_error = e + 4.0 * UNIT_F32 * (spread / total + fabs(max) + log(total)) + capped;
        losses[n] += lse_error * (1.0 + 2.0 * z * fabs(lse)) +
                     4.0 * UNIT_F32 * (fabs(target) + z * lse * lse) +
                     smoothing * sizes * (e + 4.0 * UNIT_F32) + capped;
        for (int64_t v = 0; dlogits && v < V; v++) {
            double p = exp(row[v] - max) / total;
            double relative = e + 4.0 * UNIT_F32 * (max - row[v] + spread / total) + 2.0 * capped;
            double factor = 1.0 + 2.0 * z * fabs(lse);
            dlogits[n * Vp + v] +=
                dloss *
                (p * (relative * factor + 2.0 * z * lse_error + (z > 0.0 ? 4.0 * UNIT_F32 * factor : 0.0)) +
                 ((int64_t)targets[n] == v ? 4.0 * UNIT_F32 : 0.0) + 4.0 * UNIT_F32 * smoothing / (double)V);
            if (cap > 0.0)
                dlogits[n * Vp + v] += dloss * 16.0 * UNIT_F32 *
                                       (p * factor + ((int64_t)targets[n] == v) + smoothing / (double)V);
        }
        free(row);
    }
}

static int loss_forward_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B * m->T, m->V, m->Vp}, 0, SIZE_LARGE};
    return 1;
}

static const struct op_case loss_forward_cases[] = {
    {"odd", INPUT_RANDOM, {5, 37, 40}, 0, SIZE_SMALL},
    {"ignored", INPUT_RANDOM, {8, 37, 40}, IGNORED, SIZE_SMALL},
    {"all ignored", INPUT_RANDOM, {3, 37, 40}, ALL_IGNORED, SIZE_SMALL},
    {"no padding", INPUT_RANDOM, {4, 64, 64}, 0, SIZE_SMALL},
    {"mostly padding", INPUT_RANDOM, {4, 5, 128}, IGNORED, SIZE_SMALL},
    {"logits kept", INPUT_RANDOM, {5, 37, 40}, KEEP_LOGITS | IGNORED, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1, 1, 1}, 0, SIZE_SMALL},
    {"long rows", INPUT_RANDOM, {3, 2057, 2176}, 0, SIZE_SMALL},
    {"spike", INPUT_RANDOM, {9, 301, 384}, SPIKE, SIZE_SMALL},
    {"large", INPUT_LARGE, {5, 70, 72}, 0, SIZE_SMALL},
    {"tiny", INPUT_TINY, {5, 70, 72}, 0, SIZE_SMALL},
    {"all equal", INPUT_FLAT, {5, 70, 72}, 0, SIZE_SMALL},
    {"equal rows", INPUT_EQUAL, {5, 70, 72}, 0, SIZE_SMALL},
    {"odd columns", INPUT_RANDOM, {5, 30, 31}, IGNORED, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {5, 60, 64}, UNALIGNED, SIZE_SMALL},
    {"smoothing", INPUT_RANDOM, {5, 37, 40}, SMOOTH | IGNORED, SIZE_SMALL},
    {"smoothing, long rows", INPUT_RANDOM, {3, 2057, 2176}, SMOOTH, SIZE_SMALL},
    {"z-loss", INPUT_RANDOM, {5, 37, 40}, Z_LOSS | IGNORED, SIZE_SMALL},
    {"both", INPUT_RANDOM, {5, 70, 72}, SMOOTH | Z_LOSS, SIZE_SMALL},
    {"both, odd columns", INPUT_RANDOM, {5, 30, 31}, SMOOTH | Z_LOSS | IGNORED, SIZE_SMALL},
    {"both, logits kept", INPUT_RANDOM, {5, 37, 40}, SMOOTH | Z_LOSS | KEEP_LOGITS, SIZE_SMALL},
    {"soft cap", INPUT_RANDOM, {5, 37, 40}, SOFTCAP | IGNORED, SIZE_SMALL},
    {"soft cap, long rows", INPUT_RANDOM, {3, 2057, 2176}, SOFTCAP, SIZE_SMALL},
    {"soft cap, large", INPUT_LARGE, {5, 70, 72}, SOFTCAP, SIZE_SMALL},
    {"soft cap, spike", INPUT_RANDOM, {9, 301, 384}, SOFTCAP | SPIKE, SIZE_SMALL},
    {"soft cap, both", INPUT_RANDOM, {5, 70, 72}, SOFTCAP | SMOOTH | Z_LOSS, SIZE_SMALL},
    {"soft cap, odd columns", INPUT_RANDOM, {5, 30, 31}, SOFTCAP | SMOOTH | Z_LOSS | IGNORED, SIZE_SMALL},
    {"soft cap, logits kept", INPUT_RANDOM, {5, 37, 40}, SOFTCAP | SMOOTH | Z_LOSS | KEEP_LOGITS, SIZE_SMALL},
    {"gpt2", INPUT_RANDOM, {256, 50257, 50304}, IGNORED, SIZE_LARGE},
};
OP_TEST(loss_forward, (.bound = loss_forward_bound, .model_cases = loss_forward_model_cases), A("losses"),
        A("logits"), A("targets"), A("dloss"), (int)x->c->d[1],
        x->c->flags &(SMOOTH | Z_LOSS | SOFTCAP) ? (struct loss_terms[1]){terms_of(x->c)} : NULL);

/* --- top1 --- */

static void top1_make(struct op_instance *x) {
    int64_t N = x->c->d[0], V = x->c->d[1], Vp = x->c->d[2];
    struct operand *targets = op_add(x, ROLE_IN, DTYPE_I32, "targets", N, 0, 0);
    op_fill_index(x, targets, 0, V);
    struct operand *logits = op_add(x, ROLE_IN, x->dtype, "logits", N, Vp, 0);
    for (int64_t n = 0; n < N; n++) {
        float *row = logits->initial + n * Vp;
        int64_t at = 0;
        for (int64_t v = V; v < Vp; v++) row[v] = 30000.0f; /* padding must not count */
        for (int64_t v = 1; v < V; v++) at = row[v] > row[at] ? v : at;
        if (n % 2) targets->initial[n] = (float)at;          /* a hit */
        if (n % 4 == 3 && at + 1 < V) row[at + 1] = row[at]; /* also before a later one that is equal */
        if (n % 8 == 6 && at + 1 < V) {                      /* but not after one */
            row[at + 1] = row[at];
            targets->initial[n] = (float)(at + 1);
        }
        if (x->c->flags & SPIKE && n % 3 == 0) row[(int64_t)targets->initial[n]] = NAN;
        if (x->c->flags & IGNORED && n % 3 == 1) targets->initial[n] = -1.0f;
    }
    op_add(x, ROLE_OUT, DTYPE_F32, "hits", N, 0, 0)->exact = true;
}

static const struct op_case top1_cases[] = {
    {"odd", INPUT_RANDOM, {9, 37, 40}, 0, SIZE_SMALL},
    {"ignored", INPUT_RANDOM, {8, 37, 40}, IGNORED, SIZE_SMALL},
    {"no padding", INPUT_RANDOM, {16, 64, 64}, 0, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1, 1, 1}, 0, SIZE_SMALL},
    {"long rows", INPUT_RANDOM, {8, 2057, 2176}, 0, SIZE_SMALL},
    {"many equal", INPUT_INTEGER, {24, 70, 72}, 0, SIZE_SMALL},
    {"all equal", INPUT_FLAT, {24, 7, 8}, 0, SIZE_SMALL},
    {"not a number", INPUT_RANDOM, {12, 37, 40}, SPIKE, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {9, 60, 64}, UNALIGNED, SIZE_SMALL},
    {"gpt2", INPUT_RANDOM, {64, 50257, 50304}, IGNORED, SIZE_LARGE},
};
OP_TEST(top1, (.bound = NULL), A("hits"), A("logits"), A("targets"), (int)x->c->d[1]);
