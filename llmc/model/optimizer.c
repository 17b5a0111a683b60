/* The optimizers over pieces of the parameter buffer, each of one group: embeddings, blocks and vectors may
 * differ in learning rate and weight decay. An update by AdamW or Lion is one call of the operation a piece.
 * Muon goes from block to block: momentum of the block, each of its matrices made orthogonal, update. */
#include "llmc/model/optimizer.h"

#include <math.h>

const char *optimizer_name(enum optimizer_kind kind) {
    static const char *const names[] = {"adamw", "muon", "lion"};
    return names[kind];
}

static bool by_muon(const struct optimizer *opt, bool block) { return opt->kind == OPTIMIZER_MUON && block; }

bool optimizer_has_v(const struct optimizer *opt, bool block) {
    return opt->kind != OPTIMIZER_LION && !by_muon(opt, block);
}

struct tensor optimizer_state(const struct optimizer *opt, const struct tensor *state, int64_t first,
                              int64_t count) {
    const struct optimizer_piece *piece = optimizer_pieces(opt);
    if (count == 0) return tensor_range(state, 0, 0);
    while (first < piece->first || first >= piece->first + piece->count) piece++;
    return tensor_range(state, first - piece->first + (state == &opt->v ? piece->at_v : piece->at), count);
}

/* --- creation --- */

static struct tensor new_state(struct gpt *g, const char *name, enum dtype dtype, int64_t n,
                               const char *what) {
    void *p = ctx_alloc(g->ctx, MEM_OPTIMIZER, n * (int64_t)dtype_size(dtype), what);
    return tensor_make(name, dtype, p, n, 0, 0, 0);
}

/* A matrix that Muon makes orthogonal by itself. */
struct block_matrix {
    int64_t at, rows, cols; /* its first element in the block */
};
enum { MOST_MATRICES = PARAM_ROWS * GPT_MOST_STACKED };

/* Of a block of what is trained: the matrices of the model, or A^T and B of each adapter. Returns how many. */
static int block_matrices(struct block_matrix m[MOST_MATRICES], const struct gpt *g) {
    const struct lora_layout *l = &g->lora.layout;
    int count = 0;
    for (int i = 0; i < l->parts; i++) {
        const struct lora_part *p = &l->part[i];
        m[count++] = (struct block_matrix){p->a, p->cols, g->options.lora.rank};
        m[count++] = (struct block_matrix){p->b, p->rows, g->options.lora.rank};
    }
    for (int id = 0; id < PARAM_ROWS && l->parts == 0; id++) {
        if (!gpt_param_in_blocks((enum param_id)id)) continue;
        int64_t rows[GPT_MOST_STACKED], cols = gpt_dim_size(&g->config, gpt_param_rows[id].cols);
        int stacked = gpt_param_stacked(&g->config, (enum param_id)id, rows);
        int64_t at = g->layout.offset[id] - g->layout.blocks;
        for (int i = 0; i < stacked; at += rows[i++] * cols)
            m[count++] = (struct block_matrix){at, rows[i], cols};
    }
    return count;
}

/* Elements of such a block. */
static int64_t block_elements(const struct gpt *g) {
    return g->options.lora.rank ? g->lora.layout.block : g->layout.block;
}

/* For the largest matrix of a block, and squares of its short side. */
static void create_muon(struct optimizer *opt, struct gpt *g) {
    struct block_matrix m[MOST_MATRICES];
    int64_t largest = 0, side = 0;
    for (int i = block_matrices(m, g) - 1; i >= 0; i--) {
        largest = max_i64(largest, m[i].rows * m[i].cols);
        side = max_i64(side, min_i64(m[i].rows, m[i].cols));
    }
    enum dtype dtype = g->options.dtype;
    opt->block = new_state(g, "update", dtype, block_elements(g), "Muon's updates");
    opt->other = new_state(g, "iterate", dtype, largest, "Muon's iterates");
    opt->gram = new_state(g, "gram", dtype, side * side, "Muon's products");
    opt->factor = new_state(g, "factor", dtype, side * side, "Muon's factors");
    opt->norm = new_state(g, "norm", DTYPE_F32, 1, "a norm");
}

static void create_state(struct optimizer *opt, struct gpt *g, int64_t n, bool master_weights) {
    int64_t second = 0;
    struct optimizer_piece *pieces = opt->pieces ? opt->pieces : opt->whole;
    for (int64_t i = 0; i < opt->count; i++) {
        pieces[i].at_v = second;
        if (optimizer_has_v(opt, pieces[i].group == GROUP_BLOCKS)) second += pieces[i].count;
    }
    opt->has_master = master_weights;
    opt->m = new_state(g, "exp_avg", DTYPE_F32, n, "the optimizer's first moment");
    fill(g->ctx, &opt->m, 0.0f);
    if (opt->kind != OPTIMIZER_LION) {
        opt->v = new_state(g, "exp_avg_sq", DTYPE_F32, max_i64(1, second), "the optimizer's second moment");
        fill(g->ctx, &opt->v, 0.0f);
    }
    if (master_weights) opt->master = new_state(g, "master", DTYPE_F32, n, "master weights");
    if (opt->kind == OPTIMIZER_MUON) create_muon(opt, g);
    optimizer_copy_master(opt, g);
}

/* Adapters take the place of the parameters. */
static void create_for_adapters(struct optimizer *opt, struct gpt *g, struct optimizer_options options) {
    const struct lora *l = &g->lora;
    *opt = (struct optimizer){.kind = options.kind, .count = 1};
    opt->whole[0] = (struct optimizer_piece){
        .count = l->layout.total, .group = GROUP_BLOCKS, .param = l->params, .grad = l->grads};
    create_state(opt, g, l->layout.total, options.master_weights);
}

void optimizer_create(struct optimizer *opt, struct gpt *g, struct optimizer_options options) {
    if (g->options.lora.rank) {
        create_for_adapters(opt, g, options);
        return;
    }
    const struct gpt_params *p = &g->layout;
    const int64_t bounds[] = {0, p->blocks, p->matrices, p->total};
    *opt = (struct optimizer){.kind = options.kind, .count = 3};
    for (int i = 0; i < 3; i++) {
        int64_t first = bounds[i], count = bounds[i + 1] - first;
        opt->whole[i] = (struct optimizer_piece){.first = first,
                                                 .count = count,
                                                 .at = first,
                                                 .group = (enum optimizer_group)i,
                                                 .param = gpt_param_range(g, first, count),
                                                 .grad = gpt_grad_range(g, first, count)};
    }
    create_state(opt, g, p->total, options.master_weights);
}

void optimizer_create_pieces(struct optimizer *opt, struct gpt *g, struct optimizer_piece *pieces,
                             int64_t count, struct optimizer_options options) {
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) n += pieces[i].count;
    *opt = (struct optimizer){.kind = options.kind, .pieces = pieces, .count = count};
    /* of a small model a rank may have nothing */
    create_state(opt, g, max_i64(1, n), options.master_weights);
}

void optimizer_copy_master(struct optimizer *opt, struct gpt *g) {
    if (!opt->has_master) return;
    for (int64_t i = 0; i < opt->count; i++) {
        const struct optimizer_piece *piece = &optimizer_pieces(opt)[i];
        if (!piece->count) continue;
        struct tensor master = optimizer_state(opt, &opt->master, piece->first, piece->count);
        cast(g->ctx, &master, &piece->param);
    }
}

/* --- Muon --- */

static struct tensor step_sumsq(const struct gpt *g) { return tensor_range(&g->numbers, STEP_SUMSQ, 1); }

/* Of the whole buffer: the same random numbers however it is divided. */
static struct update_args args_at(const struct update_args *args, const struct optimizer_piece *piece,
                                  int64_t at) {
    struct update_args a = *args;
    a.offset = piece->first + at;
    bool embeddings = piece->group == GROUP_EMBEDDINGS;
    if (piece->group == GROUP_VECTORS || (embeddings && args->no_embedding_decay)) a.weight_decay = 0.0f;
    if (embeddings && args->embedding_lr > 0.0f) a.lr = args->embedding_lr;
    return a;
}

void optimizer_momentum(struct optimizer *opt, struct gpt *g, const struct optimizer_piece *piece, int64_t at,
                        struct tensor *out, const struct update_args *args) {
    struct tensor norm = step_sumsq(g), grad = tensor_range(&piece->grad, at, tensor_count(out));
    struct tensor m = optimizer_state(opt, &opt->m, piece->first + at, tensor_count(out));
    muon_momentum(g->ctx, out, &m, &grad, &norm, args);
}

void optimizer_apply(struct optimizer *opt, struct gpt *g, const struct optimizer_piece *piece, int64_t at,
                     const struct tensor *update, const struct update_args *args) {
    struct tensor norm = step_sumsq(g), w = tensor_range(&piece->param, at, tensor_count(update)), master;
    struct update_args a = args_at(args, piece, at);
    if (opt->has_master) master = optimizer_state(opt, &opt->master, piece->first + at, tensor_count(update));
    muon_update(g->ctx, &w, opt->has_master ? &master : NULL, update, &norm, &a);
}

static struct tensor matrix_in(const struct tensor *memory, int64_t rows, int64_t cols) {
    return tensor_make(memory->name, memory->dtype, memory->data, rows, cols, 0, 0);
}

/* Both products that a step needs are matmuls of the layers' kinds: the gradient of a weight is x^T y. */
static void newton_schulz(struct optimizer *opt, struct gpt *g, struct tensor *x, int64_t rows,
                          int64_t cols) {
    static const float a = 3.4445f, b = -4.7750f, c = 2.0315f;
    enum { STEPS = 5 }; /* odd: ends in *x */
    struct ctx *ctx = g->ctx;
    int64_t side = min_i64(rows, cols);
    struct tensor gram = matrix_in(&opt->gram, side, side), factor = matrix_in(&opt->factor, side, side);
    struct tensor from = matrix_in(&opt->other, rows, cols), to = matrix_in(x, rows, cols);
    sumsq(ctx, &opt->norm, x);
    normalize(ctx, &from, x, &opt->norm, 1e-7f);
    for (int i = 0; i < STEPS; i++) {
        /* the last factor carries the scale of the update */
        float s = i < STEPS - 1 ? 1.0f : 0.2f * sqrtf((float)max_i64(rows, cols));
        if (rows <= cols)
            matmul_forward(ctx, &gram, NULL, &from, &from, NULL, ACT_NONE);
        else
            matmul_backward(ctx, NULL, &gram, NULL, &from, &from, &gram, NULL, false);
        matmul_forward(ctx, &factor, NULL, &gram, &gram, NULL, ACT_NONE);
        ns_factor(ctx, &factor, &gram, &factor, s * a, s * b, s * c);
        if (rows <= cols)
            matmul_backward(ctx, NULL, &to, NULL, &factor, &from, &to, NULL, false);
        else
            matmul_forward(ctx, &to, NULL, &from, &factor, NULL, ACT_NONE);
        struct tensor swap = from;
        from = to;
        to = swap;
    }
}

void optimizer_orthogonalize(struct optimizer *opt, struct gpt *g, struct tensor *block) {
    struct block_matrix m[MOST_MATRICES];
    for (int i = 0, count = block_matrices(m, g); i < count; i++) {
        struct tensor x = tensor_range(block, m[i].at, m[i].rows * m[i].cols);
        newton_schulz(opt, g, &x, m[i].rows, m[i].cols);
    }
}

static void update_blocks(struct optimizer *opt, struct gpt *g, const struct optimizer_piece *piece,
                          const struct update_args *args) {
    for (int64_t at = 0; at < piece->count; at += block_elements(g)) {
        optimizer_momentum(opt, g, piece, at, &opt->block, args);
        optimizer_orthogonalize(opt, g, &opt->block);
        optimizer_apply(opt, g, piece, at, &opt->block, args);
    }
}

/* --- one step --- */

void optimizer_update(struct optimizer *opt, struct gpt *g, const struct update_args *args) {
    struct tensor norm = step_sumsq(g);
    for (int64_t i = 0; i < opt->count; i++) {
        const struct optimizer_piece *piece = &optimizer_pieces(opt)[i];
        if (!piece->count) continue;
        if (by_muon(opt, piece->group == GROUP_BLOCKS)) {
            if (!opt->pieces) update_blocks(opt, g, piece, args);
            continue;
        }
        struct tensor w = piece->param, v, master;
        struct tensor m = optimizer_state(opt, &opt->m, piece->first, piece->count);
        struct tensor *copy = opt->has_master ? &master : NULL;
        struct update_args a = args_at(args, piece, 0);
        if (copy) master = optimizer_state(opt, &opt->master, piece->first, piece->count);
        if (opt->kind == OPTIMIZER_LION) {
            lion(g->ctx, &w, copy, &m, &piece->grad, &norm, &a);
            continue;
        }
        v = optimizer_state(opt, &opt->v, piece->first, piece->count);
        adamw(g->ctx, &w, copy, &m, &v, &piece->grad, &norm, &a);
    }
}

void optimizer_skip_outlier(struct gpt *g, const struct update_args *args) {
    struct tensor norm = step_sumsq(g), seen = tensor_range(&g->numbers, STEP_SEEN, 1);
    struct tensor loss = tensor_range(&g->numbers, STEP_LOSS, 1);
    if (args->skip_outliers) skip_outlier(g->ctx, &norm, &seen, &loss, args->max_loss, args->max_sumsq);
}

void optimizer_step(struct optimizer *opt, struct gpt *g, const struct update_args *args) {
    struct tensor norm = step_sumsq(g);
    ctx_range_push(g->ctx, "update");
    sumsq(g->ctx, &norm, g->options.lora.rank ? &g->lora.grads : &g->grads);
    optimizer_skip_outlier(g, args);
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
    case SCHEDULE_NOAM:
        return s->peak * sqrt((double)max_i64(1, s->warmup) / (double)(step + 1));
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
