/* Tables: presets, parameter rows, activation rows; and the loops over them: layout, allocation,
 * initialisation. */
#include "llmc/model/gpt.h"
#include "llmc/base/rng.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- presets --- */

/* Radford et al. 2019 (gpt2*), Brown et al. 2020 table 2.1 (gpt3*; 1.3B with heads of 128, since its 24 heads
 * do not divide 2048), and the default of `make train`. */
static const struct gpt_config presets[] = {
    {"tiny", 128, 1024, 2, 4, 128},
    {"gpt2", 1024, 50257, 12, 12, 768},
    {"gpt2-medium", 1024, 50257, 24, 16, 1024},
    {"gpt2-large", 1024, 50257, 36, 20, 1280},
    {"gpt2-xl", 1024, 50257, 48, 25, 1600},
    {"gpt3-125m", 2048, 50257, 12, 12, 768},
    {"gpt3-350m", 2048, 50257, 24, 16, 1024},
    {"gpt3-760m", 2048, 50257, 24, 16, 1536},
    {"gpt3-1.3b", 2048, 50257, 24, 16, 2048},
};

const char *gpt_preset_names(void) {
    return "tiny, gpt2, gpt2-medium, gpt2-large, gpt2-xl, gpt3-125m, gpt3-350m, gpt3-760m, gpt3-1.3b, dN (N "
           "layers)";
}

/* Width of a model of N layers: through the published (depth, width) pairs, linear between them, in steps of
 * 64 with heads of 64. d12 is gpt2, d24 gpt2-medium, d36 gpt2-large, d48 gpt2-xl. */
static int64_t channels_of_depth(int64_t depth) {
    static const int64_t known[][2] = {{0, 0}, {12, 768}, {24, 1024}, {36, 1280}, {48, 1600}, {96, 3200}};
    size_t i = 1;
    while (i + 1 < ARRAY_LENGTH(known) && depth > known[i][0]) i++;
    int64_t d0 = known[i - 1][0], c0 = known[i - 1][1], d1 = known[i][0], c1 = known[i][1];
    int64_t channels = c0 + (c1 - c0) * (depth - d0) / (d1 - d0);
    return max_i64(64, (channels + 32) / 64 * 64);
}

bool gpt_config_from_name(struct gpt_config *config, const char *name, struct error *err) {
    for (size_t i = 0; i < ARRAY_LENGTH(presets); i++)
        if (strcmp(presets[i].name, name) == 0) {
            *config = presets[i];
            return true;
        }
    char *end = NULL;
    long depth = name[0] == 'd' ? strtol(name + 1, &end, 10) : 0;
    if (depth < 1 || depth > 96 || *end)
        return fail(err, "--model %s: neither a directory nor a preset. Presets: %s with 1 <= N <= 96", name,
                    gpt_preset_names());
    int64_t C = channels_of_depth(depth);
    *config = (struct gpt_config){
        .context = 1024, .vocab_size = 50257, .layers = depth, .heads = C / 64, .channels = C};
    snprintf(config->name, sizeof config->name, "d%ld", depth);
    return true;
}

bool gpt_config_check(const struct gpt_config *c, struct error *err) {
    const struct {
        const char *what;
        int64_t value, max;
    } limits[] = {{"context length", c->context, 1 << 24},
                  {"vocabulary size", c->vocab_size, INT32_MAX / 2},
                  {"number of layers", c->layers, 10000},
                  {"number of heads", c->heads, 65536},
                  {"number of channels", c->channels, 1 << 20}};
    for (size_t i = 0; i < ARRAY_LENGTH(limits); i++)
        if (limits[i].value < 1 || limits[i].value > limits[i].max)
            return fail(err, "model %s: %s is %" PRId64 ", must be between 1 and %" PRId64, c->name,
                        limits[i].what, limits[i].value, limits[i].max);
    if (c->channels % c->heads)
        return fail(err, "model %s: %" PRId64 " heads do not divide %" PRId64 " channels", c->name, c->heads,
                    c->channels);
    double total =
        (double)c->channels * ((double)c->layers * 12 * (double)c->channels + (double)c->vocab_size);
    if (total > 1e13)
        return fail(err, "model %s: %.3g parameters are more than this engine addresses", c->name, total);
    return true;
}

/* --- parameters --- */

const struct param_row gpt_param_rows[PARAM_ROWS] = {
    [P_WTE] = {"wte.weight", false, DIM_VP, DIM_C, INIT_NORMAL, false},
    [P_WPE] = {"wpe.weight", false, DIM_CONTEXT, DIM_C, INIT_NORMAL_POSITION, false},
    [P_QKV_W] = {"h.%d.attn.c_attn.weight", true, DIM_3C, DIM_C, INIT_NORMAL, true},
    [P_PROJ_W] = {"h.%d.attn.c_proj.weight", true, DIM_C, DIM_C, INIT_NORMAL_RESIDUAL, true},
    [P_FC_W] = {"h.%d.mlp.c_fc.weight", true, DIM_4C, DIM_C, INIT_NORMAL, true},
    [P_FCPROJ_W] = {"h.%d.mlp.c_proj.weight", true, DIM_C, DIM_4C, INIT_NORMAL_RESIDUAL, true},
    [P_LN1_W] = {"h.%d.ln_1.weight", true, DIM_C, DIM_NONE, INIT_ONE, false},
    [P_LN1_B] = {"h.%d.ln_1.bias", true, DIM_C, DIM_NONE, INIT_ZERO, false},
    [P_QKV_B] = {"h.%d.attn.c_attn.bias", true, DIM_3C, DIM_NONE, INIT_ZERO, false},
    [P_PROJ_B] = {"h.%d.attn.c_proj.bias", true, DIM_C, DIM_NONE, INIT_ZERO, false},
    [P_LN2_W] = {"h.%d.ln_2.weight", true, DIM_C, DIM_NONE, INIT_ONE, false},
    [P_LN2_B] = {"h.%d.ln_2.bias", true, DIM_C, DIM_NONE, INIT_ZERO, false},
    [P_FC_B] = {"h.%d.mlp.c_fc.bias", true, DIM_4C, DIM_NONE, INIT_ZERO, false},
    [P_FCPROJ_B] = {"h.%d.mlp.c_proj.bias", true, DIM_C, DIM_NONE, INIT_ZERO, false},
    [P_LNF_W] = {"ln_f.weight", false, DIM_C, DIM_NONE, INIT_ONE, false},
    [P_LNF_B] = {"ln_f.bias", false, DIM_C, DIM_NONE, INIT_ZERO, false},
};

int64_t gpt_dim_size(const struct gpt_config *c, enum gpt_dim dim) {
    switch (dim) {
    case DIM_NONE:
        return 1;
    case DIM_C:
        return c->channels;
    case DIM_3C:
        return 3 * c->channels;
    case DIM_4C:
        return 4 * c->channels;
    case DIM_VP:
        return gpt_padded_vocab(c);
    case DIM_CONTEXT:
        return c->context;
    }
    die("gpt_dim_size: no dimension %d", (int)dim);
}

static int64_t row_elements(const struct gpt_config *config, const struct param_row *row) {
    return gpt_dim_size(config, row->rows) * gpt_dim_size(config, row->cols);
}

/* Rows that are not per layer first, then layer by layer; returns the end. */
static int64_t place_group(struct gpt_params *p, const struct gpt_config *config, bool matrices, int64_t at) {
    enum { ALIGN = 128 };
    int64_t start_of_layer = 0, layer = 0;
    for (int per_layer = 0; per_layer < 2; per_layer++) {
        start_of_layer = at;
        for (int id = 0; id < PARAM_ROWS; id++) {
            const struct param_row *row = &gpt_param_rows[id];
            if (row->per_layer != per_layer || (row->cols != DIM_NONE) != matrices) continue;
            p->offset[id] = at;
            at = round_up(at + row_elements(config, row), ALIGN);
        }
        layer = at - start_of_layer;
        if (!per_layer) continue;
        for (int id = 0; id < PARAM_ROWS; id++)
            if (gpt_param_rows[id].per_layer && (gpt_param_rows[id].cols != DIM_NONE) == matrices)
                p->stride[id] = layer;
        at = start_of_layer + layer * config->layers;
    }
    return at;
}

void gpt_params_layout(struct gpt_params *p, const struct gpt_config *config) {
    memset(p, 0, sizeof *p);
    p->matrices = place_group(p, config, true, 0);
    p->total = place_group(p, config, false, p->matrices);
    p->blocks = p->offset[P_QKV_W];
    p->block = p->stride[P_QKV_W];
    for (int id = 0; id < PARAM_ROWS; id++)
        p->count +=
            row_elements(config, &gpt_param_rows[id]) * (gpt_param_rows[id].per_layer ? config->layers : 1);
    p->count -= (gpt_padded_vocab(config) - config->vocab_size) * config->channels;
}

static int64_t blocks_not_stored(const struct gpt_params *p, int64_t slots) {
    return slots ? max_i64(0, (p->matrices - p->blocks) / p->block - slots) : 0;
}

int64_t gpt_stored_total(const struct gpt_params *p, int64_t slots) {
    return p->total - blocks_not_stored(p, slots) * p->block;
}

int64_t gpt_stored_at(const struct gpt_params *p, int64_t slots, int64_t at) {
    if (!slots || at < p->blocks) return at;
    if (at >= p->matrices) return at - blocks_not_stored(p, slots) * p->block;
    int64_t layer = (at - p->blocks) / p->block;
    return at - (layer - layer % slots) * p->block;
}

const char *gpt_param_name(enum param_id id, int64_t layer) {
    const char *name = gpt_param_rows[id].name, *mark = strstr(name, "%d");
    return mark ? temp_printf("%.*s%" PRId64 "%s", (int)(mark - name), name, layer, mark + 2) : name;
}

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
    int64_t at = g->layout.offset[id] + (row->per_layer ? layer : 0) * g->layout.stride[id];
    int64_t rows = gpt_dim_size(&g->config, row->rows);
    struct tensor t = range_view(g, buffer, slots, at, rows);
    return tensor_make(row->name, t.dtype, t.data, rows,
                       row->cols == DIM_NONE ? 0 : gpt_dim_size(&g->config, row->cols), 0, 0);
}

/* fp8 is for the blocks' matrices; the head, a layer whose weight is the embedding, stays out of it. */
struct tensor gpt_param(const struct gpt *g, enum param_id id, int64_t layer) {
    struct tensor t = param_view(g, &g->params, g->options.param_slots, id, layer);
    t.fp8 = g->options.fp8 && gpt_param_rows[id].per_layer && gpt_param_rows[id].cols != DIM_NONE;
    return t;
}
struct tensor gpt_grad(const struct gpt *g, enum param_id id, int64_t layer) {
    return param_view(g, &g->grads, g->options.grad_slots, id, layer);
}

static void init_param(struct gpt *g, enum param_id id, int64_t l, uint64_t seed) {
    const struct param_row *row = &gpt_param_rows[id];
    struct tensor t = gpt_param(g, id, l);
    if (id == P_WTE) t = tensor_slice_rows(&t, 0, g->config.vocab_size); /* the padding stays zero */
    uint64_t purpose = RNG_INIT | (uint64_t)id << 8 | (uint64_t)l << 16;
    float std = g->options.init_std > 0.0f ? g->options.init_std : 0.02f;
    if (row->init == INIT_NORMAL_RESIDUAL) std /= sqrtf(2.0f * (float)g->config.layers);
    if (row->init == INIT_NORMAL_POSITION) std *= 0.5f;
    if (row->init == INIT_ONE)
        fill(g->ctx, &t, 1.0f);
    else if (row->init != INIT_ZERO)
        randn(g->ctx, &t, 0.0f, std, seed, purpose);
}

void gpt_init_weights(struct gpt *g, uint64_t seed) {
    fill(g->ctx, &g->params, 0.0f);
    for (int id = 0; id < PARAM_ROWS; id++)
        if (!gpt_param_rows[id].per_layer) init_param(g, (enum param_id)id, 0, seed);
    for (int64_t l = 0; l < g->config.layers; l++) {
        for (int id = 0; id < PARAM_ROWS; id++)
            if (gpt_param_rows[id].per_layer) init_param(g, (enum param_id)id, l, seed);
        if (g->hooks.layer_written) g->hooks.layer_written(g->hooks.arg, l);
    }
}

/* --- activations --- */

enum act_shape { SHAPE_BT, SHAPE_C, SHAPE_3C, SHAPE_4C, SHAPE_LSE, SHAPE_LOGITS };
enum act_kind { KIND_DATA, KIND_FP32, KIND_INT32 };

struct act_row {
    const char *name;
    bool per_layer;
    enum act_shape shape; /* (B,T), (B,T,C), (B,T,3C), (B,T,4C), (B,NH,T), (rows of a head chunk, Vp) */
    enum act_kind kind;
    enum recompute shared_from; /* layers share one copy from this recompute level on; NONE: never */
    bool train_only;
};

static const struct act_row act_rows[ACT_ROWS] = {
    [A_TOKENS] = {"tokens", false, SHAPE_BT, KIND_INT32, RECOMPUTE_NONE, false},
    [A_TARGETS] = {"targets", false, SHAPE_BT, KIND_INT32, RECOMPUTE_NONE, false},
    [A_EMBED] = {"embed", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, false},
    [A_LN1] = {"ln_1", true, SHAPE_C, KIND_DATA, RECOMPUTE_NORM, false},
    [A_LN1_MEAN] = {"ln_1.mean", true, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, false},
    [A_LN1_RSTD] = {"ln_1.rstd", true, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, false},
    [A_QKV] = {"qkv", true, SHAPE_3C, KIND_DATA, RECOMPUTE_BLOCK, false},
    [A_ATTN] = {"attn", true, SHAPE_C, KIND_DATA, RECOMPUTE_BLOCK, false},
    [A_LSE] = {"attn.lse", true, SHAPE_LSE, KIND_FP32, RECOMPUTE_BLOCK, false},
    [A_RESID_MID] = {"residual_mid", true, SHAPE_C, KIND_DATA, RECOMPUTE_BLOCK, false},
    [A_LN2] = {"ln_2", true, SHAPE_C, KIND_DATA, RECOMPUTE_NORM, false},
    [A_LN2_MEAN] = {"ln_2.mean", true, SHAPE_BT, KIND_FP32, RECOMPUTE_BLOCK, false},
    [A_LN2_RSTD] = {"ln_2.rstd", true, SHAPE_BT, KIND_FP32, RECOMPUTE_BLOCK, false},
    [A_FC] = {"fc", true, SHAPE_4C, KIND_DATA, RECOMPUTE_BLOCK, false},
    [A_FC_GELU] = {"fc_gelu", true, SHAPE_4C, KIND_DATA, RECOMPUTE_GELU, false},
    [A_RESID_OUT] = {"residual_out", true, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, false},
    [A_LNF] = {"ln_f", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, false},
    [A_LNF_MEAN] = {"ln_f.mean", false, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, false},
    [A_LNF_RSTD] = {"ln_f.rstd", false, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, false},
    [A_BRANCH] = {"branch", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, false},
    [A_LOGITS] = {"logits", false, SHAPE_LOGITS, KIND_DATA, RECOMPUTE_NONE, false},
    [A_LOSSES] = {"losses", false, SHAPE_BT, KIND_FP32, RECOMPUTE_NONE, false},
    [A_DRESID] = {"dresidual", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, true},
    [A_DBRANCH] = {"dbranch", false, SHAPE_C, KIND_DATA, RECOMPUTE_NONE, true},
    [A_DQKV] = {"dqkv", false, SHAPE_3C, KIND_DATA, RECOMPUTE_NONE, true},
    [A_DFC] = {"dfc", false, SHAPE_4C, KIND_DATA, RECOMPUTE_NONE, true},
};

const char *gpt_act_name(enum act_id id) { return act_rows[id].name; }

static bool act_shared(const struct gpt *g, const struct act_row *row, enum act_id id) {
    if (!row->per_layer) return true;
    if (!g->options.train) return id != A_QKV;
    return row->shared_from != RECOMPUTE_NONE && g->options.recompute >= row->shared_from;
}

static int64_t head_chunk_rows(const struct gpt *g) {
    int64_t rows = g->options.train || g->options.B > 1 ? g->options.B * g->options.T : 1;
    return ceil_div(rows, max_i64(1, g->options.head_chunks));
}

struct tensor gpt_act(const struct gpt *g, enum act_id id, int64_t layer) {
    const struct act_row *row = &act_rows[id];
    int64_t B = g->options.B, T = g->options.T, C = g->config.channels;
    void *data = g->act_data[id] ? g->act_data[id] + layer * g->act_stride[id] : NULL;
    enum dtype dtype = row->kind == KIND_INT32  ? DTYPE_I32
                       : row->kind == KIND_FP32 ? DTYPE_F32
                                                : g->options.dtype;
    switch (row->shape) {
    case SHAPE_BT:
        return tensor_make(row->name, dtype, data, B, T, 0, 0);
    case SHAPE_C:
        return tensor_make(row->name, dtype, data, B, T, C, 0);
    case SHAPE_3C:
        return tensor_make(row->name, dtype, data, B, T, 3 * C, 0);
    case SHAPE_4C:
        return tensor_make(row->name, dtype, data, B, T, 4 * C, 0);
    case SHAPE_LSE:
        return tensor_make(row->name, dtype, data, B, g->config.heads, T, 0);
    case SHAPE_LOGITS:
        return tensor_make(row->name, dtype, data, head_chunk_rows(g), gpt_padded_vocab(&g->config), 0, 0);
    }
    die("gpt_act: no shape for %s", row->name);
}

void gpt_create(struct gpt *g, struct ctx *ctx, const struct gpt_config *config,
                const struct gpt_options *options) {
    struct error err;
    check(gpt_config_check(config, &err), "%s", err.message);
    check(options->B >= 1 && options->T >= 1, "batch of %" PRId64 " sequences of %" PRId64 " tokens",
          options->B, options->T);
    check(options->T <= config->context,
          "--seq-len %" PRId64 " is longer than the context of model %s (%" PRId64 " positions)", options->T,
          config->name, config->context);
    check(!options->fp8 || (config->channels % 16 == 0 && options->B * options->T % 16 == 0),
          "--matmul fp8: the channels (%" PRId64 ") and --batch-size times --seq-len (%" PRId64
          " tokens) must be multiples of 16",
          config->channels, options->B * options->T);
    memset(g, 0, sizeof *g);
    g->ctx = ctx;
    g->config = *config;
    g->options = *options;
    gpt_params_layout(&g->layout, config);
    int64_t count = gpt_stored_total(&g->layout, options->param_slots);
    int64_t size = (int64_t)dtype_size(options->dtype);
    void *p = options->params ? options->params->data
                              : ctx_alloc(ctx, MEM_PARAMETERS, count * size, "the model's parameters");
    g->params = tensor_make("parameters", options->dtype, p, count, 0, 0, 0);
    check(!options->params ||
              (options->params->dtype == options->dtype && tensor_count(options->params) == count),
          "gpt_create: %s is not the buffer of such a model", tensor_text(options->params));
    if (options->train) {
        count = gpt_stored_total(&g->layout, options->grad_slots);
        p = ctx_alloc(ctx, MEM_GRADIENTS, count * size, "the gradients");
        g->grads = tensor_make("gradients", options->dtype, p, count, 0, 0, 0);
        fill(ctx, &g->grads, 0.0f); /* the gaps between tensors are never written again */
    }
    p = ctx_alloc(ctx, MEM_ACTIVATIONS, STEP_NUMBERS * (int64_t)sizeof(float), "the step's numbers");
    g->numbers = tensor_make("numbers", DTYPE_F32, p, STEP_NUMBERS, 0, 0, 0);
    fill(ctx, &g->numbers, NAN); /* a scale that was forgotten shows */

    /* all activations in one allocation: what does not fit fails at once, before anything has run */
    int64_t offset[ACT_ROWS], total = 0;
    for (int id = 0; id < ACT_ROWS; id++) {
        if (act_rows[id].train_only && !options->train) continue;
        struct tensor t = gpt_act(g, (enum act_id)id, 0);
        int64_t one = round_up(tensor_bytes(&t), 256);
        bool shared = act_shared(g, &act_rows[id], (enum act_id)id);
        offset[id] = total;
        g->act_stride[id] = shared ? 0 : one;
        total += shared ? one : one * config->layers;
    }
    char *base = (char *)ctx_alloc(ctx, MEM_ACTIVATIONS, total, "activations");
    for (int id = 0; base && id < ACT_ROWS; id++)
        if (!act_rows[id].train_only || options->train) g->act_data[id] = base + offset[id];
}
