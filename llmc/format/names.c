/* What each format calls a parameter: one table per format, one line per parameter. A format without a
 * table uses the engine's own names, which are those of Hugging Face's GPT-2 below "transformer.". */
#include "llmc/format/names.h"

#include <string.h>

struct part {
    const char *pattern;
    enum gpt_dim rows;
    bool rotated; /* by rotary positions */
};
typedef const struct part parts[MOST_PIECES];

/* Llama and its relatives, whose tensors have the same names. */
static parts llama_parts[PARAM_ROWS] = {
    [P_WTE] = {{"model.embed_tokens.weight", DIM_VP}},
    [P_QKV_W] = {{"model.layers.%d.self_attn.q_proj.weight", DIM_Q},
                 {"model.layers.%d.self_attn.k_proj.weight", DIM_KV},
                 {"model.layers.%d.self_attn.v_proj.weight", DIM_KV}},
    [P_Q_NORM_W] = {{"model.layers.%d.self_attn.q_norm.weight", DIM_HS}},
    [P_K_NORM_W] = {{"model.layers.%d.self_attn.k_norm.weight", DIM_HS}},
    [P_QKV_B] = {{"model.layers.%d.self_attn.q_proj.bias", DIM_Q},
                 {"model.layers.%d.self_attn.k_proj.bias", DIM_KV},
                 {"model.layers.%d.self_attn.v_proj.bias", DIM_KV}},
    [P_PROJ_W] = {{"model.layers.%d.self_attn.o_proj.weight", DIM_C}},
    [P_FC_W] = {{"model.layers.%d.mlp.gate_proj.weight", DIM_FF},
                {"model.layers.%d.mlp.up_proj.weight", DIM_FF}},
    [P_FCPROJ_W] = {{"model.layers.%d.mlp.down_proj.weight", DIM_C}},
    [P_LN1_W] = {{"model.layers.%d.input_layernorm.weight", DIM_C}},
    [P_LN2_W] = {{"model.layers.%d.post_attention_layernorm.weight", DIM_C}},
    [P_LNF_W] = {{"model.norm.weight", DIM_C}},
    [P_LM_HEAD] = {{"lm_head.weight", DIM_VP}},
};
static parts nanochat_parts[PARAM_ROWS] = {
    [P_WTE] = {{"model.embed_tokens.weight", DIM_VP}},
    [P_QKV_W] = {{"model.layers.%d.self_attn.q_proj.weight", DIM_Q},
                 {"model.layers.%d.self_attn.k_proj.weight", DIM_KV},
                 {"model.layers.%d.self_attn.v_proj.weight", DIM_KV}},
    [P_PROJ_W] = {{"model.layers.%d.self_attn.o_proj.weight", DIM_C}},
    [P_FC_W] = {{"model.layers.%d.mlp.fc1.weight", DIM_FC}},
    [P_FCPROJ_W] = {{"model.layers.%d.mlp.fc2.weight", DIM_C}},
    [P_LM_HEAD] = {{"lm_head.weight", DIM_VP}},
};
static parts gguf_gpt2_parts[PARAM_ROWS] = {
    [P_WTE] = {{"token_embd.weight", DIM_VP}},           [P_WPE] = {{"position_embd.weight", DIM_CONTEXT}},
    [P_QKV_W] = {{"blk.%d.attn_qkv.weight", DIM_QKV}},   [P_QKV_B] = {{"blk.%d.attn_qkv.bias", DIM_QKV}},
    [P_PROJ_W] = {{"blk.%d.attn_output.weight", DIM_C}}, [P_PROJ_B] = {{"blk.%d.attn_output.bias", DIM_C}},
    [P_FC_W] = {{"blk.%d.ffn_up.weight", DIM_FF}},       [P_FC_B] = {{"blk.%d.ffn_up.bias", DIM_FF}},
    [P_FCPROJ_W] = {{"blk.%d.ffn_down.weight", DIM_C}},  [P_FCPROJ_B] = {{"blk.%d.ffn_down.bias", DIM_C}},
    [P_LN1_W] = {{"blk.%d.attn_norm.weight", DIM_C}},    [P_LN1_B] = {{"blk.%d.attn_norm.bias", DIM_C}},
    [P_LN2_W] = {{"blk.%d.ffn_norm.weight", DIM_C}},     [P_LN2_B] = {{"blk.%d.ffn_norm.bias", DIM_C}},
    [P_LNF_W] = {{"output_norm.weight", DIM_C}},         [P_LNF_B] = {{"output_norm.bias", DIM_C}},
    [P_LM_HEAD] = {{"output.weight", DIM_VP}},
};
static parts gguf_llama_parts[PARAM_ROWS] = {
    [P_WTE] = {{"token_embd.weight", DIM_VP}},
    [P_QKV_W] = {{"blk.%d.attn_q.weight", DIM_Q, true},
                 {"blk.%d.attn_k.weight", DIM_KV, true},
                 {"blk.%d.attn_v.weight", DIM_KV}},
    [P_Q_NORM_W] = {{"blk.%d.attn_q_norm.weight", DIM_HS}},
    [P_K_NORM_W] = {{"blk.%d.attn_k_norm.weight", DIM_HS}},
    [P_QKV_B] = {{"blk.%d.attn_q.bias", DIM_Q, true},
                 {"blk.%d.attn_k.bias", DIM_KV, true},
                 {"blk.%d.attn_v.bias", DIM_KV}},
    [P_PROJ_W] = {{"blk.%d.attn_output.weight", DIM_C}},
    [P_FC_W] = {{"blk.%d.ffn_gate.weight", DIM_FF}, {"blk.%d.ffn_up.weight", DIM_FF}},
    [P_FCPROJ_W] = {{"blk.%d.ffn_down.weight", DIM_C}},
    [P_LN1_W] = {{"blk.%d.attn_norm.weight", DIM_C}},
    [P_LN2_W] = {{"blk.%d.ffn_norm.weight", DIM_C}},
    [P_LNF_W] = {{"output_norm.weight", DIM_C}},
    [P_LM_HEAD] = {{"output.weight", DIM_VP}},
};
static parts *const tables[GPT_FORMATS] = {
    [FORMAT_HF_LLAMA] = llama_parts,        [FORMAT_HF_QWEN2] = llama_parts,
    [FORMAT_GGUF_GPT2] = gguf_gpt2_parts,   [FORMAT_GGUF_LLAMA] = gguf_llama_parts,
    [FORMAT_GGUF_QWEN2] = gguf_llama_parts, [FORMAT_HF_QWEN3] = llama_parts,
    [FORMAT_GGUF_QWEN3] = gguf_llama_parts, [FORMAT_HF_NANOCHAT] = nanochat_parts,
};

/* Rows as they are stored: the vocabulary without its padding. */
static int64_t stored_size(const struct gpt_config *c, enum gpt_dim dim) {
    return dim == DIM_VP ? c->vocab_size : gpt_dim_size(c, dim);
}

int format_pieces(struct piece piece[MOST_PIECES], enum gpt_format format, const struct gpt_config *c,
                  enum param_id id) {
    const struct param_row *row = &gpt_param_rows[id];
    const struct part own[MOST_PIECES] = {{row->name, row->rows}};
    const struct part *part = tables[format] ? tables[format][id] : own;
    bool gpt2 = format == FORMAT_HF_GPT2;
    int count = 0;
    int64_t first = 0;
    if (!gpt_param_copies(c, id)) return 0;
    check(part->pattern, "%s has no name for %s", gpt_format_name(format), row->name);
    for (; count < MOST_PIECES && part[count].pattern; count++) {
        piece[count] = (struct piece){
            .prefix = gpt2 && id != P_LM_HEAD ? "transformer." : "", /* the head is beside the transformer */
            .pattern = part[count].pattern,
            .first = first,
            .rows = stored_size(c, part[count].rows),
            .cols = gpt_dim_size(c, row->cols),
            .vector = row->cols == DIM_NONE,
            .transposed = gpt2 && row->conv1d,
            .interleaved = part[count].rotated && format == FORMAT_GGUF_LLAMA};
        first += piece[count].rows;
    }
    check(first == stored_size(c, row->rows), "%s: the pieces of %s have %lld rows, the engine's matrix %lld",
          gpt_format_name(format), row->name, (long long)first, (long long)stored_size(c, row->rows));
    return count;
}

int64_t format_tensor_count(enum gpt_format format, const struct gpt_config *c) {
    struct piece piece[MOST_PIECES];
    int64_t count = 0;
    for (int id = 0; id < PARAM_ROWS; id++)
        count += format_pieces(piece, format, c, (enum param_id)id) * gpt_param_copies(c, (enum param_id)id);
    return count;
}

const char *piece_name(const struct piece *p, int64_t layer) {
    return temp_printf("%s%s", p->prefix, gpt_layer_name(p->pattern, layer));
}

enum gpt_format format_for_directory(const struct gpt_config *c) {
    static const enum gpt_format families[] = {FORMAT_HF_GPT2, FORMAT_HF_LLAMA, FORMAT_HF_QWEN2,
                                               FORMAT_HF_QWEN3, FORMAT_HF_NANOCHAT};
    for (size_t i = 0; i < ARRAY_LENGTH(families); i++)
        if (gpt_format_can_say(families[i], c, NULL)) return families[i];
    return FORMAT_OWN;
}

const char *gguf_architecture(enum gpt_format format) {
    static const char *const names[GPT_FORMATS] = {[FORMAT_GGUF_GPT2] = "gpt2",
                                                   [FORMAT_GGUF_LLAMA] = "llama",
                                                   [FORMAT_GGUF_QWEN2] = "qwen2",
                                                   [FORMAT_GGUF_QWEN3] = "qwen3"};
    return names[format];
}

enum gpt_format format_for_gguf(const struct gpt_config *c, struct error *err) {
    enum gpt_format nearest = c->positions == POSITIONS_LEARNED ? FORMAT_GGUF_GPT2
                              : c->qk_norm == SWITCH_ON         ? FORMAT_GGUF_QWEN3
                              : c->qkv_bias == SWITCH_ON        ? FORMAT_GGUF_QWEN2
                                                                : FORMAT_GGUF_LLAMA;
    return gpt_format_can_say(nearest, c, err) ? nearest : GPT_FORMATS;
}
