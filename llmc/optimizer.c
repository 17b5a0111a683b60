#include "optimizer.h"

#include <math.h>

void optimizer_create(struct optimizer *opt, struct gpt *g, bool master_weights) {
    int64_t n = g->layout.total, bytes = n * (int64_t)sizeof(float);
    *opt = (struct optimizer){.has_master = master_weights};
    opt->m = tensor_make("exp_avg", DTYPE_F32,
                         ctx_alloc(g->ctx, MEM_OPTIMIZER, bytes, "AdamW's first moment"), n, 0, 0, 0);
    opt->v = tensor_make("exp_avg_sq", DTYPE_F32,
                         ctx_alloc(g->ctx, MEM_OPTIMIZER, bytes, "AdamW's second moment"), n, 0, 0, 0);
    fill(g->ctx, &opt->m, 0.0f);
    fill(g->ctx, &opt->v, 0.0f);
    if (!master_weights) return;
    opt->master = tensor_make("master", DTYPE_F32, ctx_alloc(g->ctx, MEM_OPTIMIZER, bytes, "master weights"),
                              n, 0, 0, 0);
    cast(g->ctx, &opt->master, &g->params);
}

static struct tensor range(const struct tensor *t, int64_t first, int64_t end) {
    void *data = t->data ? (char *)t->data + first * (int64_t)dtype_size(t->dtype) : NULL;
    return tensor_make(t->name, t->dtype, data, end - first, 0, 0, 0);
}

void optimizer_step(struct optimizer *opt, struct gpt *g, const struct adamw_args *args) {
    struct tensor norm = range(&g->numbers, STEP_SUMSQ, STEP_SUMSQ + 1);
    ctx_range_push(g->ctx, "update");
    sumsq(g->ctx, &norm, &g->grads);
    const int64_t bounds[] = {0, g->layout.matrices, g->layout.total};
    for (int part = 0; part < 2; part++) {
        struct tensor w = range(&g->params, bounds[part], bounds[part + 1]);
        struct tensor dw = range(&g->grads, bounds[part], bounds[part + 1]);
        struct tensor m = range(&opt->m, bounds[part], bounds[part + 1]);
        struct tensor v = range(&opt->v, bounds[part], bounds[part + 1]);
        struct tensor master =
            opt->has_master ? range(&opt->master, bounds[part], bounds[part + 1]) : opt->master;
        struct adamw_args a = *args;
        a.offset = bounds[part];
        if (part == 1) a.weight_decay = 0.0f;
        adamw(g->ctx, &w, opt->has_master ? &master : NULL, &m, &v, &dw, &norm, &a);
    }
    ctx_range_pop(g->ctx);
}

double schedule_lr(const struct schedule *s, int64_t step) {
    if (step < s->warmup) return s->peak * (double)(step + 1) / (double)s->warmup;
    double floor_lr = s->peak * s->final_fraction;
    /* progress from the end of the warmup (0) to the last step (1) */
    double span = (double)max_i64(1, s->steps - 1 - s->warmup);
    double t = fmin(1.0, (double)(step - s->warmup) / span);
    switch (s->kind) {
    case SCHEDULE_CONSTANT:
        return s->peak;
    case SCHEDULE_LINEAR:
        return floor_lr + (s->peak - floor_lr) * (1.0 - t);
    case SCHEDULE_COSINE:
        return floor_lr + (s->peak - floor_lr) * 0.5 * (1.0 + cos(3.14159265358979323846 * t));
    case SCHEDULE_WSD: {
        double start = 1.0 - s->decay_fraction;
        if (t <= start || s->decay_fraction <= 0.0) return s->peak;
        return floor_lr + (s->peak - floor_lr) * (1.0 - sqrt((t - start) / s->decay_fraction));
    }
    }
    die("schedule_lr: no schedule %d", (int)s->kind);
}
