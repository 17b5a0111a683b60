/* Writes GGUF (gguf.h): version 3, architectures "gpt2", "llama", "qwen2" and "qwen3".
 *
 * The number of keys stands before the keys, so they are written twice: first into the void, to count
 * them. */
#include "llmc/format/export.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/format/checkpoint.h"
#include "llmc/format/gguf.h"
#include "llmc/format/model_config.h"
#include "llmc/format/model_file.h"
#include "llmc/text/tokenizer.h"

enum { PIECE = 1 << 20 };

/* --- q8_0 --- */

bool q8_0_block(uint8_t *out, const float *values) {
    float largest = 0.0f, sum = 0.0f;
    for (int i = 0; i < Q8_0_VALUES; i++) {
        largest = fmaxf(largest, fabsf(values[i]));
        sum += values[i] * 0.0f; /* NaN if any value is NaN or infinite */
    }
    float d = largest / 127.0f;
    uint16_t scale = f16_from_f32(d);
    if (!(sum == 0.0f) || (scale & 0x7c00u) == 0x7c00u) return false;
    float inverse = scale ? 1.0f / d : 0.0f; /* where fp16 has only 0 for the scale all values become 0 */
    memcpy(out, &scale, sizeof scale);
    for (int i = 0; i < Q8_0_VALUES; i++) out[2 + i] = (uint8_t)(int8_t)roundf(values[i] * inverse);
    return true;
}

/* --- keys --- */

struct output {
    struct writer w;
    int64_t keys;
};

static void put_u32(struct output *g, uint32_t x) { writer_put(&g->w, &x, sizeof x); }
static void put_u64(struct output *g, uint64_t x) { writer_put(&g->w, &x, sizeof x); }
static void put_string(struct output *g, const char *text, size_t size) {
    put_u64(g, size);
    writer_put(&g->w, text, size);
}

static void put_key(struct output *g, const char *key, enum gguf_type type) {
    put_string(g, key, strlen(key));
    put_u32(g, type);
    g->keys++;
}
static void key_u32(struct output *g, const char *key, int64_t value) {
    put_key(g, key, GGUF_U32);
    put_u32(g, (uint32_t)value);
}
static void key_f32(struct output *g, const char *key, float value) {
    put_key(g, key, GGUF_F32);
    writer_put(&g->w, &value, sizeof value);
}
static void key_bool(struct output *g, const char *key, bool value) {
    put_key(g, key, GGUF_BOOL);
    uint8_t byte = value;
    writer_put(&g->w, &byte, 1);
}
static void key_string(struct output *g, const char *key, const char *text) {
    put_key(g, key, GGUF_STRING);
    put_string(g, text, strlen(text));
}
static void key_array(struct output *g, const char *key, enum gguf_type of, int64_t count) {
    put_key(g, key, GGUF_ARRAY);
    put_u32(g, of);
    put_u64(g, (uint64_t)count);
}

static void put_model_keys(struct output *g, const struct gpt_config *c, enum gpt_format format,
                           enum export_type type) {
    static const uint32_t file_types[] = {
        [EXPORT_F32] = 0, [EXPORT_F16] = 1, [EXPORT_Q8_0] = 7, [EXPORT_BF16] = 32};
    const char *arch = gguf_architecture(format);
    key_string(g, "general.architecture", arch);
    key_string(g, "general.type", "model");
    key_string(g, "general.name", c->name);
    key_u32(g, "general.file_type", file_types[type]);
    key_u32(g, "general.quantization_version", 2);
    key_u32(g, "general.alignment", GGUF_ALIGNMENT);
    for (int i = 0; i < GPT_FIELD_COUNT; i++) {
        const char *key = gpt_fields[i].in[format].key;
        if (!key || !*key) continue;
        char *name = xasprintf("%s.%s", arch, key);
        double value = gpt_field_get(c, &gpt_fields[i]);
        if (gpt_fields[i].option.type == OPTION_REAL)
            key_f32(g, name, (float)value);
        else
            key_u32(g, name, (int64_t)value);
        free(name);
    }
    if (c->rope_scaling == ROPE_SCALING_LINEAR) {
        key_string(g, temp_printf("%s.rope.scaling.type", arch), "linear");
        key_f32(g, temp_printf("%s.rope.scaling.factor", arch), (float)c->rope_factor);
    }
    if (c->rope_scaling == ROPE_SCALING_LLAMA3) /* with rope_freqs.weight */
        key_u32(g, temp_printf("%s.rope.scaling.original_context_length", arch), c->rope_original);
    if (format == FORMAT_GGUF_LLAMA) key_u32(g, "llama.rope.dimension_count", c->head_size);
    if (format == FORMAT_GGUF_QWEN3) key_u32(g, "qwen3.attention.value_length", c->head_size);
}

/* --- the tokenizer --- */

/* llama.cpp knows pre-tokenizers by name. NULL if it has none that cuts text as this tokenizer does. */
static const char *pre_tokenizer_name(const struct tokenizer *t) {
    bool ignores_merges = tokenizer_ignores_merges(t);
    switch (tokenizer_word_pattern(t)) {
    case WORDS_GPT2:
        return ignores_merges ? NULL : "gpt-2";
    case WORDS_LLAMA3:
        return ignores_merges ? "llama-bpe" : "dbrx"; /* the same pattern */
    case WORDS_QWEN2:
        return ignores_merges ? NULL : "qwen2";
    default:
        return NULL;
    }
}

static void put_owned(struct output *g, char *text) {
    put_string(g, text, strlen(text));
    free(text);
}

/* The model's vocabulary may be larger than the tokenizer's: the rest is padding. */
static void put_tokens(struct output *g, const struct tokenizer *t, int64_t vocab_size) {
    static const enum gguf_token types[] = {[TOKEN_KIND_NONE] = GGUF_TOKEN_UNUSED,
                                            [TOKEN_KIND_MODEL] = GGUF_TOKEN_NORMAL,
                                            [TOKEN_KIND_ADDED] = GGUF_TOKEN_USER,
                                            [TOKEN_KIND_SPECIAL] = GGUF_TOKEN_CONTROL};
    key_array(g, "tokenizer.ggml.tokens", GGUF_STRING, vocab_size);
    for (int64_t i = 0; i < vocab_size; i++)
        put_owned(g, i < tokenizer_vocab_size(t) ? tokenizer_token_name(t, i)
                                                 : xasprintf("[PAD%" PRId64 "]", i));
    key_array(g, "tokenizer.ggml.token_type", GGUF_I32, vocab_size);
    for (int64_t i = 0; i < vocab_size; i++) put_u32(g, types[tokenizer_token_kind(t, i)]);
}

static void put_tokenizer_keys(struct output *g, const struct tokenizer *t, const struct gpt_config *c) {
    int64_t begin = model_begin_of_text(c, t), end = c->eos.count ? c->eos.id[0] : tokenizer_end_of_text(t);
    key_string(g, "tokenizer.ggml.model", "gpt2");
    key_string(g, "tokenizer.ggml.pre", pre_tokenizer_name(t));
    put_tokens(g, t, c->vocab_size);
    key_array(g, "tokenizer.ggml.merges", GGUF_STRING, tokenizer_merge_count(t));
    for (int i = 0; i < tokenizer_merge_count(t); i++) put_owned(g, tokenizer_merge_name(t, i));
    if (begin >= 0) key_u32(g, "tokenizer.ggml.bos_token_id", begin);
    if (end >= 0) key_u32(g, "tokenizer.ggml.eos_token_id", end);
    /* `sample` puts it before a prompt, too: the same prompt has to give the same tokens. */
    key_bool(g, "tokenizer.ggml.add_bos_token", begin >= 0);
    key_bool(g, "tokenizer.ggml.add_eos_token", false);
    if (tokenizer_chat_template(t)) key_string(g, "tokenizer.chat_template", tokenizer_chat_template(t));
}

/* --- tensors --- */

static enum export_type tensor_type(enum param_id id, enum export_type type) {
    return gpt_param_rows[id].cols == DIM_NONE || id == P_WPE ? EXPORT_F32 : type;
}

static int64_t tensor_bytes_as(enum export_type type, int64_t elements) {
    if (type == EXPORT_Q8_0) return elements / Q8_0_VALUES * Q8_0_BYTES;
    return elements * (type == EXPORT_F32 ? 4 : 2);
}

/* Readers before 2025 know no tied head in the architecture "gpt2": the token embedding is stored a
 * second time. */
static bool doubles_head(enum gpt_format format, const struct gpt_config *c) {
    return format == FORMAT_GGUF_GPT2 && c->tied == SWITCH_ON;
}

static bool has_rope_freqs(const struct gpt_config *c) { return c->rope_scaling == ROPE_SCALING_LLAMA3; }

/* Calls visit() for every parameter, in the order of the file. */
struct tensor_visit {
    struct output *g;
    const struct weights *w;
    enum export_type type;
    int64_t offset;
    float *values, *turned; /* a piece of a matrix, whole heads of it */
    uint8_t *narrow;
    struct error *err;
};
static bool each_tensor(struct tensor_visit *v, enum gpt_format format,
                        bool (*visit)(struct tensor_visit *v, enum param_id id, const struct piece *p,
                                      int64_t layer)) {
    for (int k = 0; k < PARAM_ROWS; k++) {
        struct piece piece[MOST_PIECES];
        int pieces = format_pieces(piece, format, &v->w->config, (enum param_id)k);
        for (int64_t l = 0; l < gpt_param_copies(&v->w->config, (enum param_id)k); l++)
            for (int i = 0; i < pieces; i++)
                if (!visit(v, (enum param_id)k, &piece[i], l)) return false;
    }
    if (!doubles_head(format, &v->w->config)) return true;
    struct piece head[MOST_PIECES];
    format_pieces(head, format, &v->w->config, P_WTE);
    head[0].pattern = "output.weight";
    return visit(v, P_WTE, &head[0], 0);
}

/* cols 0: a vector */
static void put_shape(struct tensor_visit *v, const char *name, int64_t rows, int64_t cols,
                      enum export_type type) {
    static const enum ggml_type ggml_types[] = {[EXPORT_F32] = GGML_F32,
                                                [EXPORT_F16] = GGML_F16,
                                                [EXPORT_Q8_0] = GGML_Q8_0,
                                                [EXPORT_BF16] = GGML_BF16};
    put_string(v->g, name, strlen(name));
    put_u32(v->g, cols ? 2 : 1);
    if (cols) put_u64(v->g, (uint64_t)cols);
    put_u64(v->g, (uint64_t)rows);
    put_u32(v->g, ggml_types[type]);
    put_u64(v->g, (uint64_t)v->offset);
    v->offset = round_up(v->offset + tensor_bytes_as(type, rows * max_i64(1, cols)), GGUF_ALIGNMENT);
}

static bool put_info(struct tensor_visit *v, enum param_id id, const struct piece *p, int64_t layer) {
    put_shape(v, piece_name(p, layer), p->rows, p->vector ? 0 : p->cols, tensor_type(id, v->type));
    return true;
}

static void put_padding(struct output *g) {
    static const uint8_t zeros[GGUF_ALIGNMENT];
    writer_put(&g->w, zeros, (size_t)(round_up(g->w.written, GGUF_ALIGNMENT) - g->w.written));
}

/* `n` values in the type of the tensor; false if it cannot hold one. */
static bool put_values(struct output *g, const float *values, int64_t n, enum export_type type,
                       uint8_t *narrow) {
    bool good = true;
    if (type == EXPORT_F32) {
        writer_put(&g->w, values, (size_t)n * sizeof *values);
        return true;
    }
    if (type == EXPORT_Q8_0) {
#pragma omp parallel for schedule(static) reduction(&& : good) if (n >= 1 << 16)
        for (int64_t i = 0; i < n / Q8_0_VALUES; i++)
            good = q8_0_block(narrow + i * Q8_0_BYTES, values + i * Q8_0_VALUES) && good;
    } else {
        good = narrow_values((uint16_t *)(void *)narrow, values, n, type == EXPORT_BF16 ? ST_BF16 : ST_F16);
    }
    writer_put(&g->w, narrow, (size_t)tensor_bytes_as(type, n));
    return good;
}

/* Rows i and i + HS/2 of every head become rows 2i and 2i + 1. */
static void interleave(float *out, const float *inp, int64_t rows, int64_t cols, int64_t HS) {
    for (int64_t r = 0; r < rows; r++) {
        int64_t i = r % HS, to = r - i + 2 * (i % (HS / 2)) + i / (HS / 2);
        memcpy(out + to * cols, inp + r * cols, (size_t)cols * sizeof *out);
    }
}

static bool put_tensor(struct tensor_visit *v, enum param_id id, const struct piece *p, int64_t layer) {
    int64_t HS = v->w->config.head_size, step = max_i64(1, PIECE / p->cols);
    if (p->interleaved) step = max_i64(1, step / HS) * HS;
    put_padding(v->g);
    for (int64_t first = 0; first < p->rows; first += step) {
        int64_t n = min_i64(step, p->rows - first);
        float *values = v->values;
        if (!weights_read(values, v->w, id, layer, p->first + first, n, v->err)) return false;
        if (p->interleaved) interleave(values = v->turned, v->values, n, p->cols, HS);
        if (!put_values(v->g, values, n * p->cols, tensor_type(id, v->type), v->narrow))
            return fail(v->err,
                        "%s: %s holds a value that %s cannot (too large, or not finite): use bf16 or f32",
                        (*weights_view(v->w, P_WTE, 0, 0))->path, gpt_param_name(id, layer),
                        export_type_name(v->type));
    }
    return true;
}

/* rope_freqs.weight: what llama.cpp divides the frequency of each pair by. */
static void put_rope_freqs(struct output *g, const struct gpt_config *c) {
    struct rope_rule scaled = gpt_rope_rule(c), plain = {.theta = scaled.theta};
    put_padding(g);
    for (int64_t i = 0; i < c->head_size / 2; i++) {
        float divisor =
            (float)(rope_frequency(plain, i, c->head_size) / rope_frequency(scaled, i, c->head_size));
        writer_put(&g->w, &divisor, sizeof divisor);
    }
}

static bool put_data(struct output *g, const struct weights *w, enum gpt_format format, enum export_type type,
                     struct error *err) {
    const struct gpt_config *c = &w->config;
    int64_t widest = max_i64(max_i64(c->ff, c->channels), gpt_dim_size(c, DIM_Q));
    size_t values = (size_t)max_i64(PIECE, widest * c->head_size);
    struct tensor_visit v = {.g = g,
                             .w = w,
                             .type = type,
                             .values = (float *)xmalloc(values * sizeof(float)),
                             .turned = (float *)xmalloc(values * sizeof(float)),
                             .narrow = (uint8_t *)xmalloc(2 * values),
                             .err = err};
    bool ok = each_tensor(&v, format, put_tensor);
    if (ok && has_rope_freqs(c)) put_rope_freqs(g, c);
    put_padding(g);
    free(v.narrow);
    free(v.turned);
    free(v.values);
    return ok;
}

/* --- the file --- */

/* The number of keys stands before the keys: they are written once to count them, into the void. A file
 * that is not complete may stay behind. */
static bool write_file(const char *path, const struct weights *w, const struct tokenizer *t,
                       enum gpt_format format, enum export_type type, struct error *err) {
    struct output g = {.keys = 0};
    int64_t keys = 0, tensors = format_tensor_count(format, &w->config) + doubles_head(format, &w->config) +
                                has_rope_freqs(&w->config);
    for (int pass = 0; pass < 2; pass++) {
        if (!writer_open(&g.w, pass ? path : "/dev/null", err)) return false;
        g.keys = 0;
        writer_put(&g.w, "GGUF", 4);
        put_u32(&g, GGUF_VERSION);
        put_u64(&g, (uint64_t)tensors);
        put_u64(&g, (uint64_t)keys);
        put_model_keys(&g, &w->config, format, type);
        put_tokenizer_keys(&g, t, &w->config);
        keys = g.keys;
        if (!pass && !writer_close(&g.w, err)) return false;
    }
    struct tensor_visit v = {.g = &g, .w = w, .type = type};
    each_tensor(&v, format, put_info);
    if (has_rope_freqs(&w->config))
        put_shape(&v, "rope_freqs.weight", w->config.head_size / 2, 0, EXPORT_F32);
    put_padding(&g);
    struct error why = {""};
    bool good = put_data(&g, w, format, type, &why);
    bool closed = writer_close(&g.w, err);
    return closed && (good || fail(err, "%s", why.message));
}

static bool check_tokenizer(const struct tokenizer *t, const char *from, const char *reason,
                            struct error *err) {
    if (!t && reason[0]) return fail(err, "%s", reason);
    if (!t)
        return fail(
            err,
            "%s: has no tokenizer, which a GGUF file includes: put the tokenizer.json that the training data "
            "was made with into the directory",
            from);
    return pre_tokenizer_name(t) != NULL ||
           fail(err,
                "%s: llama.cpp has no pre-tokenizer like that of this tokenizer.json (GPT-2's, Llama-3's and "
                "Qwen2's without a prefixed space can be exported)",
                from);
}

/* What a text becomes there that it is not here. */
static void warn_of_tokens(const struct tokenizer *t, const char *to) {
    if (tokenizer_uses_nfc(t))
        warn(
            "%s: llama.cpp does not normalize text (NFC) as this tokenizer does: decomposed characters, such as e "
            "with a combining accent, become other tokens there",
            to);
    if (tokenizer_strips_spaces(t))
        warn(
            "%s: llama.cpp keeps the spaces around added tokens, which this tokenizer removes (lstrip, rstrip): "
            "texts with these tokens become other tokens there",
            to);
}

static bool check_q8_0(const struct gpt_config *c, const char *from, struct error *err) {
    for (int k = 0; k < PARAM_ROWS; k++) {
        int64_t cols = weights_cols(c, (enum param_id)k);
        if (gpt_param_copies(c, (enum param_id)k) &&
            tensor_type((enum param_id)k, EXPORT_Q8_0) == EXPORT_Q8_0 && cols % Q8_0_VALUES)
            return fail(err,
                        "%s: q8_0 needs rows that are multiples of %d long, and those of %s have %" PRId64
                        " elements: use f16 or bf16",
                        from, Q8_0_VALUES, gpt_param_name((enum param_id)k, 0), cols);
    }
    return true;
}

bool export_gguf(const char *from, const char *adapter, const char *to, enum export_type type,
                 struct error *err) {
    struct model_file m;
    if (path_is_directory(to)) return fail(err, "%s: is a directory, expected the name of a GGUF file", to);
    if (!model_file_open_adapted(&m, from, adapter, err)) return false;
    struct error why = {""};
    struct tokenizer *t = checkpoint_load_tokenizer(adapter_tokenizer_directory(adapter, from), &why);
    if (adapter && t) model_add_end_of_turn(&m.weights.config, t);
    enum gpt_format format = format_for_gguf(&m.weights.config, err);
    bool ok = format != GPT_FORMATS && check_tokenizer(t, from, why.message, err);
    if (ok && type == EXPORT_Q8_0) ok = check_q8_0(&m.weights.config, from, err);
    if (ok) {
        char *temporary = xasprintf("%s.tmp", to);
        ok = write_file(temporary, &m.weights, t, format, type, err) && rename_synced(temporary, to, err);
        if (ok)
            warn_of_tokens(t, to);
        else
            unlink(temporary);
        free(temporary);
    }
    tokenizer_free(t);
    model_file_close(&m);
    return ok;
}
