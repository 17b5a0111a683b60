/* Buffers and views of a model. Parameters of all layers lie in one buffer. Activations come in one
 * allocation, so that what does not fit fails before anything has run; which of them layers share follows
 * from the level of recomputation. */
#include "llmc/model/memory.h"
#include "llmc/base/rng.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- views of parameters --- */

static struct tensor range_view(const struct gpt *g, const struct tensor *buffer, int64_t slots,
                                int64_t first, int64_t count) {
    int64_t at = gpt_stored_at(&g->layout, slots, first);
    return tensor_range(buffer, at, count);
}

struct tensor gpt_param_range(const struct gpt *g, int64_t first, int64_t count) {
    return range_view(g, &g->params, g->options.param_slots, first, count);
}
struct tensor gpt_grad_range(const struct gpt *g, int64_t first, int64_t count) {
    return range_view(g, &g->grads, g->options.grad_slots, first, count);
}

static struct tensor param_view(const struct gpt *g, const struct tensor *buffer, int64_t slots,
                                enum param_id id, int64_t layer) {
    const struct param_row *row = &gpt_param_rows[id];
    check(g->layout.offset[id] >= 0, "model %s has no parameter %s", g->config.name, row->name);
    int64_t at = g->layout.offset[id] + (row->per_layer ? layer : 0) * g->layout.stride[id];
    int64_t rows = gpt_dim_size(&g->config, row->rows);
    struct tensor t = range_view(g, buffer, slots, at, rows);
    return tensor_make(row->name, t.dtype, t.data, rows,
                       row->cols == DIM_NONE ? 0 : gpt_dim_size(&g->config, row->cols), 0, 0);
}

/* fp8 is for the blocks' matrices; the output head stays out of it. */
struct tensor gpt_param(const struct gpt *g, enum param_id id, int64_t layer) {
    struct tensor t = lora_adapts(g, id) ? lora_weight(g, id)
                                         : param_view(g, &g->params, g->options.param_slots, id, layer);
    t.fp8 = g->options.fp8 && gpt_param_in_blocks(id);
    return t;
}
struct tensor gpt_grad(const struct gpt *g, enum param_id id, int64_t layer) {
    if (lora_adapts(g, id)) return lora_dweight(g, id);
    check(!g->options.lora.rank, "with adapters, %s has no gradient", gpt_param_rows[id].name);
    return param_view(g, &g->grads, g->options.grad_slots, id, layer);
}

static void init_param(struct gpt *g, enum param_id id, int64_t l, uint64_t seed) {
    const struct param_row *row = &gpt_param_rows[id];
    struct tensor t = param_view(g, &g->params, g->options.param_slots, id, l);
    if (row->rows == DIM_VP) t = tensor_slice_rows(&t, 0, g->config.vocab_size); /* the padding stays zero */
    uint64_t purpose = RNG_INIT | (uint64_t)id << 8 | (uint64_t)l << 16;
    float std = g->options.init_std > 0.0f ? g->options.init_std : 0.02f;
    if (row->init == INIT_NORMAL_RESIDUAL) std /= sqrtf(2.0f * (float)g->config.layers);
    if (row->init == INIT_NORMAL_POSITION) std *= 0.5f;
    if (row->init == INIT_ONE)
        fill(g->ctx, &t, 1.0f);
    else if (row->init != INIT_ZERO)
        randn(g->ctx, &t, 0.0f, std, seed, purpose);
}

/* The copies of all rows in layer l; -1: the rows that are not per layer. */
static void init_layer(struct gpt *g, int64_t l, uint64_t seed) {
    for (int id = 0; id < PARAM_ROWS; id++)
        if (gpt_param_rows[id].per_layer == (l >= 0) && gpt_param_copies(&g->config, (enum param_id)id))
            init_param(g, (enum param_id)id, max_i64(0, l), seed);
}

void gpt_init_weights(struct gpt *g, uint64_t seed) {
    fill(g->ctx, &g->params, 0.0f);
    init_layer(g, -1, seed);
    for (int64_t l = 0; l < g->config.layers; l++) {
        init_layer(g, l, seed);
        if (g->hooks.layer_written) g->hooks.layer_written(g->hooks.arg, l);
    }
}

/* --- activations --- */

enum act_shape {
    SHAPE_B,
    SHAPE_BT,
    SHAPE_TC,
    SHAPE_C,
    SHAPE_Q,
    SHAPE_QKV,
    SHAPE_FF,
    SHAPE_FC,
    SHAPE_LSE,
    SHAPE_LOGITS,
    SHAPE_DESCALES
};
/* KIND_FP8: as KIND_DATA, but rounded to fp8 if the blocks multiply in it. Nothing else reads these. */
enum act_kind { KIND_DATA, KIND_FP8, KIND_FP32, KIND_INT32 };
enum act_use { ALWAYS, TRAINING, CACHES }; /* CACHES: only with several of them */

static bool centred(const struct gpt *g) { return g->config.norm == NORM_LAYER; }
static bool qk_norm(const struct gpt *g) { return g->config.qk_norm == SWITCH_ON; }
static bool embed_norm(const struct gpt *g) { return g->config.embedding_norm == SWITCH_ON; }
static bool embed_centred(const struct gpt *g) { return embed_norm(g) && centred(g); }
static bool gated(const struct gpt *g) { return gpt_mlp_gated(&g->config); }
static bool sinusoidal(const struct gpt *g) { return g->config.positions == POSITIONS_SINUSOIDAL; }
static bool prefixed(const struct gpt *g) { return g->config.mask == MASK_PREFIX; }
static bool drops(const struct gpt *g) { return g->options.dropout > 0.0f; }
static bool documents(const struct gpt *g) { return g->options.documents; }
static bool counts_positions(const struct gpt *g) {
    return documents(g) && (sinusoidal(g) || g->config.positions == POSITIONS_LEARNED);
}
static bool stores_fp8(const struct gpt *g) { return g->options.fp8 && g->options.dtype == DTYPE_BF16; }
/* Where the heads together are as wide as the model, gradients of both fit one buffer. */
static bool other_width(const struct gpt *g) { return gpt_dim_size(&g->config, DIM_Q) != g->config.channels; }

struct act_row {
    const char *name;
    bool per_layer;
    enum act_shape shape; /* (B), (B,T), (T,C), (B,T,width), (B,NH,T), (rows of a head chunk, Vp) */
    enum act_kind kind;
    enum recompute shared_from; /* layers share one copy from this recompute level on; NONE: never */
    enum act_use use;
    bool (*present)(const struct gpt *gpt); /* NULL: in every model */
};

static const struct act_row act_rows[ACT_ROWS] = {
    [A_TOKENS] = {"tokens", false, SHAPE_BT, KIND_INT32, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_TARGETS] = {"targets", false, SHAPE_BT, KIND_INT32, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_PREFIX] = {"prefix", false, SHAPE_B, KIND_INT32, RECOMPUTE_NONE, ALWAYS, prefixed},
    [A_POSITIONS] = {"positions", false, SHAPE_TC, KIND_DATA, RECOMPUTE_NONE, ALWAYS, sinusoidal},
    [A_SAMPLES] = {"samples", false, SHAPE_B, KIND_INT32, RECOMPUTE_NONE, TRAINING, drops},
    [A_FIRST] = {"first", false, SHAPE_BT, KIND_INT32, RECOMPUTE_NONE, ALWAYS, documents},
    [A_POSITION_IDS] = {"position_ids", false, SHAPE_BT, KIND_INT32, RECOMPUTE_NONE, ALWAYS,
                        counts_positions},
    [A_EMBED_RAW] = {"embed_raw", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, ALWAYS, embed_norm},
    [A_EMBED] = {"embed", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_EMBED_MEAN] = {"embed.mean", false, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, ALWAYS, embed_centred},
    [A_EMBED_RSTD] = {"embed.rstd", false, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, ALWAYS, embed_norm},
    [A_DESCALES] = {"descales", true, SHAPE_DESCALES, KIND_FP32, RECOMPUTE_NONE, ALWAYS, stores_fp8},
    [A_LN1] = {"ln_1", true, SHAPE_C, KIND_FP8, RECOMPUTE_NORM, ALWAYS, NULL},
    [A_LN1_MEAN] = {"ln_1.mean", true, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, ALWAYS, centred},
    [A_LN1_RSTD] = {"ln_1.rstd", true, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_QKV_RAW] = {"qkv_raw", true, SHAPE_QKV, KIND_DATA, RECOMPUTE_BLOCK, ALWAYS, qk_norm},
    [A_QKV] = {"qkv", true, SHAPE_QKV, KIND_DATA, RECOMPUTE_BLOCK, ALWAYS, NULL},
    [A_ATTN] = {"attn", true, SHAPE_Q, KIND_DATA, RECOMPUTE_BLOCK, ALWAYS, NULL},
    [A_LSE] = {"attn.lse", true, SHAPE_LSE, KIND_FP32, RECOMPUTE_BLOCK, ALWAYS, NULL},
    [A_RESID_MID] = {"residual_mid", true, SHAPE_C, KIND_DATA, RECOMPUTE_BLOCK, ALWAYS, NULL},
    [A_LN2] = {"ln_2", true, SHAPE_C, KIND_FP8, RECOMPUTE_NORM, ALWAYS, NULL},
    [A_LN2_MEAN] = {"ln_2.mean", true, SHAPE_BT, KIND_FP32, RECOMPUTE_BLOCK, ALWAYS, centred},
    [A_LN2_RSTD] = {"ln_2.rstd", true, SHAPE_BT, KIND_FP32, RECOMPUTE_BLOCK, ALWAYS, NULL},
    [A_FC] = {"fc", true, SHAPE_FC, KIND_DATA, RECOMPUTE_BLOCK, ALWAYS, NULL},
    [A_MLP_ACT] = {"mlp_act", true, SHAPE_FF, KIND_FP8, RECOMPUTE_ACT, ALWAYS, NULL},
    [A_RESID_OUT] = {"residual_out", true, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_QKV_NEXT] = {"qkv.next", false, SHAPE_QKV, KIND_DATA, RECOMPUTE_NONE, CACHES, NULL},
    [A_LNF] = {"ln_f", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_LNF_MEAN] = {"ln_f.mean", false, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, ALWAYS, centred},
    [A_LNF_RSTD] = {"ln_f.rstd", false, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_BRANCH] = {"branch", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_LOGITS] = {"logits", false, SHAPE_LOGITS, KIND_DATA, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_LOSSES] = {"losses", false, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_HITS] = {"hits", false, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, ALWAYS, NULL},
    [A_DRESID] = {"dresidual", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, TRAINING, NULL},
    [A_DBRANCH] = {"dbranch", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, TRAINING, NULL},
    [A_DATTN] = {"dattn", false, SHAPE_Q, KIND_DATA, RECOMPUTE_NONE, TRAINING, other_width},
    [A_DQKV] = {"dqkv", false, SHAPE_QKV, KIND_DATA, RECOMPUTE_NONE, TRAINING, NULL},
    [A_DMLP_ACT] = {"dmlp_act", false, SHAPE_FF, KIND_DATA, RECOMPUTE_NONE, TRAINING, gated},
    [A_DFC] = {"dfc", false, SHAPE_FC, KIND_FP8, RECOMPUTE_NONE, TRAINING, NULL},
};

const char *gpt_act_name(enum act_id id) { return act_rows[id].name; }

bool gpt_has_act(const struct gpt *g, enum act_id id) {
    const struct act_row *row = &act_rows[id];
    bool used = row->use == ALWAYS || (row->use == TRAINING ? g->options.train : g->options.caches > 1);
    return used && (!row->present || row->present(g));
}

static bool act_shared(const struct gpt *g, const struct act_row *row, enum act_id id) {
    if (!row->per_layer) return true;
    if (!g->options.train) return id != A_QKV;
    return row->shared_from != RECOMPUTE_NONE && g->options.recompute >= row->shared_from;
}

static int64_t head_chunk_rows(const struct gpt *g) {
    bool all = g->options.train || g->options.B > 1;
    int64_t rows = all ? g->options.B * g->options.T : max_i64(1, g->options.caches);
    return ceil_div(rows, max_i64(1, g->options.head_chunks));
}

/* Keys and values of a sequence in one layer. */
static int64_t cache_bytes(const struct gpt *g) {
    int64_t elements = g->options.B * g->options.T * gpt_dim_size(&g->config, DIM_QKV);
    return round_up(elements * (int64_t)dtype_size(g->options.dtype), 256);
}

/* Where the scale of an activation is kept that is stored in fp8. */
enum { DESCALE_LN1, DESCALE_LN2, DESCALE_MLP_ACT, DESCALE_DFC, DESCALES };

static void mark_fp8(const struct gpt *g, struct tensor *t, enum act_id id, int64_t layer) {
    if (id == A_DFC && g->config.mlp != MLP_GELU)
        return; /* an activation's backward pass writes it, in bf16 */
    t->fp8 = g->options.fp8;
    if (!stores_fp8(g)) return;
    int i = id == A_LN1   ? DESCALE_LN1
            : id == A_LN2 ? DESCALE_LN2
            : id == A_DFC ? DESCALE_DFC
                          : DESCALE_MLP_ACT;
    struct tensor descales = gpt_act(g, A_DESCALES, layer);
    t->dtype = id == A_DFC ? DTYPE_E5M2 : DTYPE_E4M3;
    t->descale = descales.data ? f32(&descales) + i : NULL;
}

struct tensor gpt_act(const struct gpt *g, enum act_id id, int64_t layer) {
    static const enum gpt_dim widths[] = {[SHAPE_C] = DIM_C,
                                          [SHAPE_Q] = DIM_Q,
                                          [SHAPE_QKV] = DIM_QKV,
                                          [SHAPE_FF] = DIM_FF,
                                          [SHAPE_FC] = DIM_FC};
    const struct act_row *row = &act_rows[id];
    check(gpt_has_act(g, id), "model %s has no activation %s", g->config.name, row->name);
    int64_t B = g->options.B, T = g->options.T;
    void *data = g->act_data[id] ? g->act_data[id] + layer * g->act_stride[id] : NULL;
    enum dtype dtype = row->kind == KIND_INT32  ? DTYPE_I32
                       : row->kind == KIND_FP32 ? DTYPE_F32
                                                : g->options.dtype;
    if (row->shape == SHAPE_B) return tensor_make(row->name, dtype, data, B, 0, 0, 0);
    if (id == A_QKV && data) data = (char *)data + g->cache * cache_bytes(g);
    if (row->shape == SHAPE_BT) return tensor_make(row->name, dtype, data, B, T, 0, 0);
    if (row->shape == SHAPE_TC) return tensor_make(row->name, dtype, data, T, g->config.channels, 0, 0);
    if (row->shape == SHAPE_DESCALES) return tensor_make(row->name, dtype, data, DESCALES, 0, 0, 0);
    if (row->shape == SHAPE_LSE) return tensor_make(row->name, dtype, data, B, g->config.heads, T, 0);
    if (row->shape == SHAPE_LOGITS)
        return tensor_make(row->name, dtype, data, head_chunk_rows(g), gpt_padded_vocab(&g->config), 0, 0);
    struct tensor t =
        tensor_make(row->name, dtype, data, B, T, gpt_dim_size(&g->config, widths[row->shape]), 0);
    if (row->kind == KIND_FP8) mark_fp8(g, &t, id, layer);
    return t;
}

/* All activations in one allocation: what does not fit fails at once. */
static void create_activations(struct gpt *g) {
    int64_t offset[ACT_ROWS], total = 0;
    for (int id = 0; id < ACT_ROWS; id++) {
        if (!gpt_has_act(g, (enum act_id)id)) continue;
        struct tensor t = gpt_act(g, (enum act_id)id, 0);
        int64_t one = round_up(tensor_bytes(&t), 256);
        if (id == A_QKV) one = cache_bytes(g) * max_i64(1, g->options.caches);
        bool shared = act_shared(g, &act_rows[id], (enum act_id)id);
        offset[id] = total;
        g->act_stride[id] = shared ? 0 : one;
        total += shared ? one : one * g->config.layers;
    }
    char *base = (char *)ctx_alloc(g->ctx, MEM_ACTIVATIONS, total, "activations");
    for (int id = 0; base && id < ACT_ROWS; id++)
        if (gpt_has_act(g, (enum act_id)id)) g->act_data[id] = base + offset[id];
}

/* The table of sinusoidal positions (config.h). */
static void write_positions(struct gpt *g) {
    struct tensor t = gpt_act(g, A_POSITIONS, 0);
    int64_t T = t.dim[0], C = t.dim[1];
    float *table = (float *)xmalloc((size_t)(T * C) * sizeof *table);
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < C; c++) {
        double frequency = pow(10000.0, -(double)(c - c % 2) / (double)C), scale = 1.0 / sqrt((double)C);
        for (int64_t i = 0; i < T; i++) {
            double a = (double)i * frequency;
            table[i * C + c] = (float)(scale * (c % 2 ? cos(a) : sin(a)));
        }
    }
    ctx_upload_f32(g->ctx, &t, table);
    free(table);
}

/* --- creating --- */

static void check_options(const struct gpt_config *c, const struct gpt_options *o) {
    struct error err;
    check(gpt_config_check(c, &err), "%s", err.message);
    check(o->B >= 1 && o->T >= 1, "batch of %" PRId64 " sequences of %" PRId64 " tokens", o->B, o->T);
    check(o->caches <= 1 || (!o->train && o->B == 1 && o->caches <= o->T),
          "gpt_create: %" PRId64 " caches need a batch of one and as many positions", o->caches);
    check(o->T <= c->context,
          "--seq-len %" PRId64 " is longer than the context of model %s (%" PRId64 " positions)", o->T,
          c->name, c->context);
    check(!o->documents || c->mask == MASK_CAUSAL || c->mask == MASK_WINDOW,
          "gpt_create: documents can be kept apart under the causal mask and the window only");
    for (int d = DIM_C; o->fp8 && d <= DIM_FC; d++)
        check(gpt_dim_size(c, (enum gpt_dim)d) % 16 == 0 && o->B * o->T % 16 == 0,
              "--matmul fp8: the channels (%" PRId64 ") and --batch-size times --seq-len (%" PRId64
              " tokens) must be multiples of 16, and so must be --ff and the heads' width",
              c->channels, o->B * o->T);
}

void gpt_create(struct gpt *g, struct ctx *ctx, const struct gpt_config *config,
                const struct gpt_options *options) {
    memset(g, 0, sizeof *g);
    g->ctx = ctx;
    ctx->recomputes = options->recompute != RECOMPUTE_NONE;
    g->config = *config;
    g->options = *options;
    gpt_config_complete(&g->config);
    check_options(&g->config, options);
    gpt_params_layout(&g->layout, &g->config);
    int64_t count = gpt_stored_total(&g->layout, options->param_slots);
    enum dtype dtype = options->bf16_weights ? DTYPE_BF16 : options->dtype;
    int64_t size = (int64_t)dtype_size(dtype);
    void *p = options->params ? options->params->data
                              : ctx_alloc(ctx, MEM_PARAMETERS, count * size, "the model's parameters");
    g->params = tensor_make("parameters", dtype, p, count, 0, 0, 0);
    check(!options->params || (options->params->dtype == dtype && tensor_count(options->params) == count),
          "gpt_create: %s is not the buffer of such a model", tensor_text(options->params));
    check(!options->train || !options->bf16_weights,
          "gpt_create: weights in bf16 beside activations in fp32 cannot be trained");
    if (options->lora.rank) {
        lora_create(g);
    } else if (options->train) {
        count = gpt_stored_total(&g->layout, options->grad_slots);
        p = ctx_alloc(ctx, MEM_GRADIENTS, count * size, "the gradients");
        g->grads = tensor_make("gradients", options->dtype, p, count, 0, 0, 0);
        fill(ctx, &g->grads, 0.0f); /* the gaps between tensors are never written again */
    }
    p = ctx_alloc(ctx, MEM_ACTIVATIONS, STEP_NUMBERS * (int64_t)sizeof(float), "the step's numbers");
    g->numbers = tensor_make("numbers", DTYPE_F32, p, STEP_NUMBERS, 0, 0, 0);
    fill(ctx, &g->numbers, NAN); /* a scale that was forgotten shows */
    create_activations(g);
    if (gpt_has_act(g, A_POSITIONS)) write_positions(g);
}
