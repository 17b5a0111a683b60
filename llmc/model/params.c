/* The table of parameters, and their layout in one buffer: groups of tensors that are updated alike lie
 * together, and what a loop over rows does not find in the model's configuration takes no place. */
#include "llmc/model/params.h"

#include <inttypes.h>
#include <string.h>

/* --- the table --- */

static bool learned_positions(const struct gpt_config *c) { return c->positions == POSITIONS_LEARNED; }
static bool biases(const struct gpt_config *c) { return c->bias == SWITCH_ON; }
static bool qkv_biases(const struct gpt_config *c) { return c->qkv_bias == SWITCH_ON; }
static bool norm_weights(const struct gpt_config *c) { return c->norm_weights == SWITCH_ON; }
static bool norm_biases(const struct gpt_config *c) {
    return norm_weights(c) && c->bias == SWITCH_ON && c->norm == NORM_LAYER;
}
static bool qk_norm(const struct gpt_config *c) { return norm_weights(c) && c->qk_norm == SWITCH_ON; }
static bool embed_norm(const struct gpt_config *c) {
    return norm_weights(c) && c->embedding_norm == SWITCH_ON;
}
static bool embed_norm_bias(const struct gpt_config *c) {
    return norm_biases(c) && c->embedding_norm == SWITCH_ON;
}
static bool own_head(const struct gpt_config *c) { return c->tied == SWITCH_OFF; }

const struct param_row gpt_param_rows[PARAM_ROWS] = {
    [P_WTE] = {"wte.weight", false, DIM_VP, DIM_C, INIT_NORMAL, false, NULL},
    [P_WPE] = {"wpe.weight", false, DIM_CONTEXT, DIM_C, INIT_NORMAL_POSITION, false, learned_positions},
    [P_QKV_W] = {"h.%d.attn.c_attn.weight", true, DIM_QKV, DIM_C, INIT_NORMAL, true, NULL},
    [P_PROJ_W] = {"h.%d.attn.c_proj.weight", true, DIM_C, DIM_Q, INIT_NORMAL_RESIDUAL, true, NULL},
    [P_FC_W] = {"h.%d.mlp.c_fc.weight", true, DIM_FC, DIM_C, INIT_NORMAL, true, NULL},
    [P_FCPROJ_W] = {"h.%d.mlp.c_proj.weight", true, DIM_C, DIM_FF, INIT_NORMAL_RESIDUAL, true, NULL},
    [P_LN1_W] = {"h.%d.ln_1.weight", true, DIM_C, DIM_NONE, INIT_ONE, false, norm_weights},
    [P_LN1_B] = {"h.%d.ln_1.bias", true, DIM_C, DIM_NONE, INIT_ZERO, false, norm_biases},
    [P_QKV_B] = {"h.%d.attn.c_attn.bias", true, DIM_QKV, DIM_NONE, INIT_ZERO, false, qkv_biases},
    [P_PROJ_B] = {"h.%d.attn.c_proj.bias", true, DIM_C, DIM_NONE, INIT_ZERO, false, biases},
    [P_LN2_W] = {"h.%d.ln_2.weight", true, DIM_C, DIM_NONE, INIT_ONE, false, norm_weights},
    [P_LN2_B] = {"h.%d.ln_2.bias", true, DIM_C, DIM_NONE, INIT_ZERO, false, norm_biases},
    [P_FC_B] = {"h.%d.mlp.c_fc.bias", true, DIM_FC, DIM_NONE, INIT_ZERO, false, biases},
    [P_FCPROJ_B] = {"h.%d.mlp.c_proj.bias", true, DIM_C, DIM_NONE, INIT_ZERO, false, biases},
    [P_LNF_W] = {"ln_f.weight", false, DIM_C, DIM_NONE, INIT_ONE, false, norm_weights},
    [P_LNF_B] = {"ln_f.bias", false, DIM_C, DIM_NONE, INIT_ZERO, false, norm_biases},
    [P_LM_HEAD] = {"lm_head.weight", false, DIM_VP, DIM_C, INIT_NORMAL, false, own_head},
    [P_Q_NORM_W] = {"h.%d.attn.q_norm.weight", true, DIM_HS, DIM_NONE, INIT_ONE, false, qk_norm},
    [P_K_NORM_W] = {"h.%d.attn.k_norm.weight", true, DIM_HS, DIM_NONE, INIT_ONE, false, qk_norm},
    [P_EMBED_NORM_W] = {"ln_embed.weight", false, DIM_C, DIM_NONE, INIT_ONE, false, embed_norm},
    [P_EMBED_NORM_B] = {"ln_embed.bias", false, DIM_C, DIM_NONE, INIT_ZERO, false, embed_norm_bias},
};

int64_t gpt_param_copies(const struct gpt_config *c, enum param_id id) {
    const struct param_row *row = &gpt_param_rows[id];
    if (row->present && !row->present(c)) return 0;
    return row->per_layer ? c->layers : 1;
}

int64_t gpt_dim_size(const struct gpt_config *c, enum gpt_dim dim) {
    switch (dim) {
    case DIM_NONE:
        return 1;
    case DIM_C:
        return c->channels;
    case DIM_Q:
        return c->heads * c->head_size;
    case DIM_KV:
        return c->kv_heads * c->head_size;
    case DIM_QKV:
        return (c->heads + 2 * c->kv_heads) * c->head_size;
    case DIM_FF:
        return c->ff;
    case DIM_FC:
        return gpt_mlp_gated(c) ? 2 * c->ff : c->ff;
    case DIM_VP:
        return gpt_padded_vocab(c);
    case DIM_CONTEXT:
        return c->context;
    case DIM_HS:
        return c->head_size;
    }
    die("gpt_dim_size: no dimension %d", (int)dim);
}

int gpt_param_stacked(const struct gpt_config *c, enum param_id id, int64_t rows[GPT_MOST_STACKED]) {
    rows[0] = gpt_dim_size(c, gpt_param_rows[id].rows);
    if (id == P_QKV_W) {
        rows[0] = gpt_dim_size(c, DIM_Q);
        rows[1] = rows[2] = gpt_dim_size(c, DIM_KV);
        return 3;
    }
    if (id != P_FC_W || !gpt_mlp_gated(c)) return 1;
    rows[0] = rows[1] = c->ff;
    return 2;
}

const char *gpt_layer_name(const char *pattern, int64_t layer) {
    const char *mark = strstr(pattern, "%d");
    return mark ? temp_printf("%.*s%" PRId64 "%s", (int)(mark - pattern), pattern, layer, mark + 2) : pattern;
}

const char *gpt_param_name(enum param_id id, int64_t layer) {
    return gpt_layer_name(gpt_param_rows[id].name, layer);
}

/* --- layout --- */

static int64_t row_elements(const struct gpt_config *config, const struct param_row *row) {
    return gpt_dim_size(config, row->rows) * gpt_dim_size(config, row->cols);
}

enum { ALIGN = 128 };

/* The tensors that are not in layers first, then layer by layer; returns the end. */
static int64_t place_group(struct gpt_params *p, const struct gpt_config *config, bool matrices, int64_t at) {
    for (int per_layer = 0; per_layer < 2; per_layer++) {
        int64_t start = at;
        for (int id = 0; id < PARAM_ROWS; id++) {
            const struct param_row *row = &gpt_param_rows[id];
            if (row->per_layer != per_layer || (row->cols != DIM_NONE) != matrices ||
                !gpt_param_copies(config, (enum param_id)id))
                continue;
            p->offset[id] = at;
            at = round_up(at + row_elements(config, row), ALIGN);
        }
        if (!per_layer) continue;
        int64_t layer = at - start;
        for (int id = 0; id < PARAM_ROWS; id++)
            if (p->offset[id] >= start) p->stride[id] = layer;
        if (matrices) {
            p->blocks = start;
            p->block = layer;
        }
        at = start + layer * config->layers;
    }
    return at;
}

void gpt_params_layout(struct gpt_params *p, const struct gpt_config *config) {
    memset(p, 0, sizeof *p);
    for (int id = 0; id < PARAM_ROWS; id++) p->offset[id] = -1;
    p->matrices = place_group(p, config, true, 0);
    /* a model without vectors has a gap there, so that no range of the buffer is empty */
    p->total = max_i64(place_group(p, config, false, p->matrices), p->matrices + ALIGN);
    int64_t padding = (gpt_padded_vocab(config) - config->vocab_size) * config->channels;
    for (int id = 0; id < PARAM_ROWS; id++) {
        const struct param_row *row = &gpt_param_rows[id];
        int64_t elements = row_elements(config, row) - (row->rows == DIM_VP ? padding : 0);
        p->count += elements * gpt_param_copies(config, (enum param_id)id);
    }
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

double gpt_flops_per_token(const struct gpt_config *c, double T) {
    struct gpt_params p;
    gpt_params_layout(&p, c);
    return 6.0 * (double)p.count + 6.0 * (double)c->layers * (double)gpt_dim_size(c, DIM_Q) * T;
}
