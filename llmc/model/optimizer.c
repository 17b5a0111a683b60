/* AdamW over pieces of the parameter buffer. Weight decay applies to matrices alone, which come first in
 * the buffer, so an update is two calls of the operation for each piece at most. */
#include "llmc/model/optimizer.h"

#include <math.h>

struct tensor optimizer_state(const struct tensor *state, const struct optimizer_piece *piece) {
    return tensor_range(state, piece->at, piece->count);
}

/* --- creation --- */

static struct tensor new_state(struct gpt *g, const char *name, int64_t n, const char *what) {
    void *p = ctx_alloc(g->ctx, MEM_OPTIMIZER, n * (int64_t)sizeof(float), what);
    return tensor_make(name, DTYPE_F32, p, n, 0, 0, 0);
}

static void create_state(struct optimizer *opt, struct gpt *g, int64_t n, bool master_weights) {
    opt->has_master = master_weights;
    opt->m = new_state(g, "exp_avg", n, "AdamW's first moment");
    opt->v = new_state(g, "exp_avg_sq", n, "AdamW's second moment");
    fill(g->ctx, &opt->m, 0.0f);
    fill(g->ctx, &opt->v, 0.0f);
    if (master_weights) opt->master = new_state(g, "master", n, "master weights");
    optimizer_copy_master(opt, g);
}

void optimizer_create(struct optimizer *opt, struct gpt *g, bool master_weights) {
    const int64_t bounds[] = {0, g->layout.matrices, g->layout.total};
    *opt = (struct optimizer){.count = 2};
    for (int i = 0; i < 2; i++) {
        int64_t first = bounds[i], count = bounds[i + 1] - first;
        opt->whole[i] =
            (struct optimizer_piece){.first = first, .count = count, .at = first, .decay = i == 0};
        opt->whole[i].param = gpt_param_range(g, first, count);
        opt->whole[i].grad = gpt_grad_range(g, first, count);
    }
    create_state(opt, g, g->layout.total, master_weights);
}

void optimizer_create_pieces(struct optimizer *opt, struct gpt *g, const struct optimizer_piece *pieces,
                             int64_t count, bool master_weights) {
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) n += pieces[i].count;
    *opt = (struct optimizer){.pieces = pieces, .count = count};
    create_state(opt, g, max_i64(1, n), master_weights); /* of a small model a rank may have nothing */
}

void optimizer_copy_master(struct optimizer *opt, struct gpt *g) {
    if (!opt->has_master) return;
    for (int64_t i = 0; i < opt->count; i++) {
        const struct optimizer_piece *piece = &optimizer_pieces(opt)[i];
        if (!piece->count) continue;
        struct tensor master = optimizer_state(&opt->master, piece);
        cast(g->ctx, &master, &piece->param);
    }
}

/* --- one step --- */

void optimizer_update(struct optimizer *opt, struct gpt *g, const struct adamw_args *args) {
    struct tensor norm = tensor_range(&g->numbers, STEP_SUMSQ, 1);
    for (int64_t i = 0; i < opt->count; i++) {
        const struct optimizer_piece *piece = &optimizer_pieces(opt)[i];
        if (!piece->count) continue;
        struct tensor w = piece->param, m = optimizer_state(&opt->m, piece);
        struct tensor v = optimizer_state(&opt->v, piece), master = {0};
        if (opt->has_master) master = optimizer_state(&opt->master, piece);
        struct adamw_args a = *args;
        a.offset = piece->first; /* of the whole buffer: the same random numbers however it is divided */
        if (!piece->decay) a.weight_decay = 0.0f;
        adamw(g->ctx, &w, opt->has_master ? &master : NULL, &m, &v, &piece->grad, &norm, &a);
    }
}

void optimizer_step(struct optimizer *opt, struct gpt *g, const struct adamw_args *args) {
    struct tensor norm = tensor_range(&g->numbers, STEP_SUMSQ, 1);
    ctx_range_push(g->ctx, "update");
    sumsq(g->ctx, &norm, &g->grads);
    optimizer_update(opt, g, args);
    ctx_range_pop(g->ctx);
}

/* --- schedule --- */

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
