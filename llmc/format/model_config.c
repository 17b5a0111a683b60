/* config.json, read and written by the table of configuration fields.
 *
 * A field that has a key is one entry. Beside these stand constants: values that transformers wants to see,
 * or that change what the network computes in a way that this engine does not implement. A constant with a
 * meaning is checked when it is read. */
#include "llmc/format/model_config.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/json_file.h"
#include "llmc/format/adapter.h"
#include "llmc/format/names.h"

/* --- families --- */

static const struct {
    enum gpt_format format;
    const char *model_type, *architecture; /* NULL: transformers has none */
} families[] = {
    {FORMAT_HF_GPT2, "gpt2", "GPT2LMHeadModel"},
    {FORMAT_HF_LLAMA, "llama", "LlamaForCausalLM"},
    {FORMAT_HF_QWEN2, "qwen2", "Qwen2ForCausalLM"},
    {FORMAT_HF_QWEN3, "qwen3", "Qwen3ForCausalLM"},
    {FORMAT_HF_NANOCHAT, "nanochat", "NanoChatForCausalLM"},
    {FORMAT_OWN, "llmc", NULL},
};

#define GPT2     (1u << FORMAT_HF_GPT2)
#define LLAMA    (1u << FORMAT_HF_LLAMA)
#define QWEN2    (1u << FORMAT_HF_QWEN2)
#define QWEN3    (1u << FORMAT_HF_QWEN3)
#define NANOCHAT (1u << FORMAT_HF_NANOCHAT)
#define ROTARY   (LLAMA | QWEN2 | QWEN3 | NANOCHAT)
static const struct constant {
    unsigned formats;        /* a bit for each family */
    const char *key, *value; /* as JSON */
    bool written;
    const char *meaning; /* of another value; NULL: it makes no difference here */
} constants[] = {
    /* the engine trains without dropout */
    {GPT2, "attn_pdrop", "0.0", true, NULL},
    {GPT2, "embd_pdrop", "0.0", true, NULL},
    {GPT2, "resid_pdrop", "0.0", true, NULL},
    {GPT2, "initializer_range", "0.02", true, NULL},
    {GPT2, "use_cache", "true", true, NULL},
    {GPT2, "scale_attn_weights", "true", true, "attention without the division by sqrt(head size)"},
    {GPT2, "scale_attn_by_inverse_layer_idx", "false", true, "attention scaled by 1/(layer + 1)"},
    {GPT2, "add_cross_attention", "false", false, "cross-attention"},
    {ROTARY, "attention_dropout", "0.0", true, NULL},
    {ROTARY, "initializer_range", "0.02", true, NULL},
    {ROTARY, "use_cache", "true", true, NULL},
    {LLAMA | QWEN3 | NANOCHAT, "attention_bias", "false", true, "attention with biases"},
    {LLAMA, "mlp_bias", "false", true, "an MLP with biases"},
    {ROTARY, "rope_scaling", "null", true, NULL}, /* of models without; the fields read it */
    {QWEN2 | QWEN3, "use_sliding_window", "false", true, "a sliding window of attention"},
    {NANOCHAT, "pad_token_id", "null", true, NULL}, /* else it is token 1 */
};
#undef GPT2
#undef LLAMA
#undef QWEN2
#undef QWEN3
#undef NANOCHAT
#undef ROTARY

/* --- reading --- */

/* The configuration's name is for messages: what the writer called it, else the directory. */
static void set_name(struct gpt_config *c, const json_t *root, const char *dir) {
    const char *name = json_string_value(json_object_get(root, "_name_or_path"));
    size_t end = strlen(dir);
    while (end > 1 && dir[end - 1] == '/') end--;
    size_t start = end;
    while (start > 0 && dir[start - 1] != '/') start--;
    if (name && *name && strlen(name) < sizeof c->name)
        snprintf(c->name, sizeof c->name, "%s", name);
    else
        snprintf(c->name, sizeof c->name, "%.*s", (int)min_i64((int64_t)(end - start), 60), dir + start);
}

/* list becomes list, "word" of at most `length` bytes. */
static char *add_word(char *list, const char *word, int length) {
    char *longer = xasprintf("%s%s\"%.*s\"", list, *list ? ", " : "", length, word);
    free(list);
    return longer;
}

static bool find_family(enum gpt_format *format, const json_t *root, const char *path, struct error *err) {
    const json_t *field = json_object_get(root, "model_type");
    const char *type = json_string_value(field);
    for (size_t i = 0; type && i < ARRAY_LENGTH(families); i++)
        if (strcmp(type, families[i].model_type) == 0) {
            *format = families[i].format;
            return true;
        }
    char *known = xstrdup("");
    for (size_t i = 0; i < ARRAY_LENGTH(families); i++)
        if (families[i].architecture) known = add_word(known, families[i].model_type, 80);
    if (type)
        fail(err, "%s: \"model_type\" is \"%.80s\", this engine knows %s", path, type, known);
    else
        fail(err, "%s: \"model_type\" is %s, expected one of %s", path, field ? "not a string" : "missing",
             known);
    free(known);
    return false;
}

static bool check_constants(const json_t *root, enum gpt_format format, const char *path, struct error *err) {
    for (size_t i = 0; i < ARRAY_LENGTH(constants); i++) {
        const struct constant *k = &constants[i];
        const json_t *found = json_object_get(root, k->key);
        if (!(k->formats >> format & 1) || !k->meaning || !found || json_is_null(found)) continue;
        json_t *expected = json_loads(k->value, JSON_DECODE_ANY, NULL);
        bool same = json_equal(found, expected);
        char *text = json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT);
        json_decref(expected);
        if (!same)
            fail(err, "%s: \"%s\" is %.80s: %s is not implemented by this engine", path, k->key,
                 text ? text : "?", k->meaning);
        free(text);
        if (!same) return false;
    }
    if (json_is_object(json_object_get(root, "quantization_config")))
        return fail(err, "%s: has a \"quantization_config\": quantized weights are not implemented", path);
    return true;
}

/* "a.b" is b of the object a. What is said of rotary positions, newer versions of transformers keep in
 * "rope_parameters"; older ones call "rope_type" "type". */
static const json_t *find_key(const json_t *root, const char *key) {
    static const char scaling[] = "rope_scaling.";
    const json_t *parameters = json_object_get(root, "rope_parameters"), *found;
    if (strncmp(key, scaling, sizeof scaling - 1) == 0) {
        const json_t *old = json_object_get(root, "rope_scaling");
        key += sizeof scaling - 1;
        found = json_object_get(json_is_object(old) ? old : parameters, key);
        if (!found && strcmp(key, "rope_type") == 0) found = json_object_get(old, "type");
    } else {
        found = json_object_get(root, key);
        if (!found) found = json_object_get(parameters, key);
    }
    return json_is_null(found) ? NULL : found;
}

/* The counterpart, which writes "rope_scaling" as published models have it. */
static void set_key(json_t *root, const char *key, json_t *value) {
    const char *dot = strchr(key, '.');
    if (!dot) {
        json_object_set_new(root, key, value);
        return;
    }
    char *outer = xasprintf("%.*s", (int)(dot - key), key);
    if (!json_object_get(root, outer)) json_object_set_new(root, outer, json_object());
    json_object_set_new(json_object_get(root, outer), dot + 1, value);
    free(outer);
}

/* "a, b or c" of the words that the format has. The caller frees. */
static char *list_words(const struct gpt_field *f, enum gpt_format format) {
    char *list = xstrdup("");
    int length;
    const char *word;
    for (int value = 1; (word = gpt_format_word(f, format, value, &length)); value++) {
        if (!length) continue;
        list = add_word(list, word, length);
    }
    return list;
}

static bool read_word(int *value, const json_t *found, const struct gpt_field *f, enum gpt_format format,
                      const char *path, struct error *err) {
    const char *key = f->in[format].key, *text = json_string_value(found);
    if (json_is_boolean(found) && f->option.flags & OPTION_SWITCH) {
        *value = json_is_true(found) ? SWITCH_ON : SWITCH_OFF;
        return true;
    }
    if (f->option.flags & OPTION_SWITCH) return fail(err, "%s: \"%s\" is neither true nor false", path, key);
    if (!text) return fail(err, "%s: \"%s\" is not a string", path, key);
    if (gpt_format_reads_word(f, format, text, value)) return true;
    char *list = list_words(f, format);
    fail(err, "%s: \"%s\" is \"%.80s\", this engine implements %s", path, key, text, list);
    free(list);
    return false;
}

static bool read_field(struct gpt_config *c, const struct gpt_field *f, const json_t *root,
                       enum gpt_format format, const char *path, struct error *err) {
    const struct gpt_format_key *k = &f->in[format];
    const json_t *found = k->key ? find_key(root, k->key) : NULL;
    int word;
    if (!found) {
        bool null = k->key && k->null_if_usual && json_is_null(json_object_get(root, k->key));
        gpt_field_set(c, f, null ? 0.0 : k->otherwise);
        if (!k->required) return true;
        const char *kind = f->option.type == OPTION_REAL ? "a number" : "an integer";
        return json_object_get(root, k->key)
                   ? fail(err, "%s: \"%s\" is not %s", path, k->key, kind)
                   : fail(err, "%s: \"%s\" is missing, expected %s", path, k->key, kind);
    }
    if (f->option.type == OPTION_WORD) {
        if (!read_word(&word, found, f, format, path, err)) return false;
        gpt_field_set(c, f, word);
        return true;
    }
    if (f->option.type == OPTION_REAL) {
        gpt_field_set(c, f, json_number_value(found));
        return json_is_number(found) || fail(err, "%s: \"%s\" is not a number", path, k->key);
    }
    if (!json_is_integer(found)) return fail(err, "%s: \"%s\" is not an integer", path, k->key);
    json_int_t value = json_integer_value(found);
    if (value < 1 || (double)value > f->option.max)
        return fail(err, "%s: \"%s\": the %s is %" JSON_INTEGER_FORMAT ", must be between 1 and %.0f", path,
                    k->key, f->what, value, f->option.max);
    gpt_field_set(c, f, (double)value);
    return true;
}

/* An id or a list of ids. Those that are no tokens of the model say nothing: GPT2Config writes 50256 for
 * any vocabulary. */
static void read_ids(struct gpt_token_ids *ids, const json_t *found, int64_t vocab_size) {
    size_t n = json_is_array(found) ? json_array_size(found) : 1;
    *ids = (struct gpt_token_ids){0};
    for (size_t i = 0; i < n && i < GPT_MOST_IDS; i++) {
        const json_t *id = json_is_array(found) ? json_array_get(found, i) : found;
        json_int_t value = json_integer_value(id);
        if (json_is_integer(id) && value >= 0 && value < vocab_size) ids->id[ids->count++] = (int32_t)value;
    }
}

static bool parse_config(struct gpt_config *c, enum gpt_format *format, const json_t *root, const char *path,
                         const char *dir, struct error *err) {
    if (!json_is_object(root)) return fail(err, "%s: is not a JSON object", path);
    memset(c, 0, sizeof *c);
    set_name(c, root, dir);
    if (!find_family(format, root, path, err)) return false;
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        if (!read_field(c, &gpt_fields[i], root, *format, path, err)) return false;
    if (c->positions && c->positions != POSITIONS_ROPE) c->rope_theta = 0.0;
    gpt_config_complete(c);
    struct error why;
    if (!gpt_config_check(c, &why)) return fail(err, "%s: %s", path, why.message);
    read_ids(&c->bos, json_object_get(root, "bos_token_id"), c->vocab_size);
    read_ids(&c->eos, json_object_get(root, "eos_token_id"), c->vocab_size);
    return check_constants(root, *format, path, err);
}

bool model_config_read(struct gpt_config *config, enum gpt_format *format, const char *dir,
                       struct error *err) {
    char *path = xasprintf("%s/config.json", dir);
    json_t *root = NULL;
    bool ok = false;
    if (!path_exists(path))
        fail(err,
             adapter_is_one(dir) ? "%s: is an adapter, not a model; give the model that it adapts (--from, "
                                   "--model), and this directory as --adapter"
                                 : "%s: has no config.json: not a Hugging Face model directory",
             dir);
    else
        root = json_file_load(path, err);
    if (root) ok = parse_config(config, format, root, path, dir, err);
    json_decref(root);
    free(path);
    return ok;
}

/* --- writing --- */

/* NULL: the key is left out. */
static json_t *field_json(const struct gpt_config *c, const struct gpt_field *f, enum gpt_format format) {
    double value = gpt_field_get(c, f);
    struct gpt_config usual = *c;
    gpt_field_set(&usual, f, 0);
    gpt_config_complete(&usual);
    if (gpt_field_get(&usual, f) == value && f->in[format].null_if_usual) return json_null();
    if (gpt_field_get(&usual, f) == value && f->in[format].out_if_usual) return NULL;
    if (f->option.type == OPTION_REAL) return json_real(value);
    if (f->option.type != OPTION_WORD) return json_integer((json_int_t)value);
    if (f->option.flags & OPTION_SWITCH) return json_boolean(value == SWITCH_ON);
    int length;
    const char *word = gpt_format_word(f, format, (int)value, &length);
    return json_stringn(word, (size_t)length);
}

/* As transformers orders the keys. */
static json_t *sorted(json_t *object) {
    char *text = json_dumps(object, JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    json_t *out = text ? json_loads(text, 0, NULL) : NULL;
    free(text);
    json_decref(object);
    return out;
}

/* --- tokens that begin and end a text --- */

/* The tokenizer's end of text stands before and after every document in training. Shards have no
 * tokenizer, but those of GPT-2 are known by the size of the vocabulary, which some pad to a multiple of
 * 128. */
static int64_t end_of_text(const struct gpt_config *c, const struct tokenizer *t) {
    if (t) return tokenizer_end_of_text(t);
    return c->vocab_size == 50257 || c->vocab_size == 50304 ? 50256 : -1;
}

int64_t model_begin_of_text(const struct gpt_config *c, const struct tokenizer *t) {
    return c->bos.count ? c->bos.id[0] : c->eos.count ? c->eos.id[0] : end_of_text(c, t);
}

bool model_ends_text(const struct gpt_config *c, const struct tokenizer *t, int64_t token) {
    for (int i = 0; i < c->eos.count; i++)
        if (c->eos.id[i] == token) return true;
    return token == end_of_text(c, t);
}

void model_add_end_of_text(struct gpt_config *c, const struct tokenizer *t, int64_t token) {
    int64_t end = end_of_text(c, t);
    if (model_ends_text(c, t, token)) return;
    if (!c->eos.count && end >= 0) c->eos.id[c->eos.count++] = (int32_t)end;
    if (c->eos.count < GPT_MOST_IDS) c->eos.id[c->eos.count++] = (int32_t)token;
}

bool model_chat_open(struct chat_format *f, enum chat_family family, const struct tokenizer *t,
                     const struct gpt_config *c, struct error *err) {
    return chat_open(f, family, t, c->bos.count ? c->bos.id[0] : -1, c->eos.count ? c->eos.id[0] : -1, err);
}

void model_add_end_of_turn(struct gpt_config *c, const struct tokenizer *t) {
    struct chat_format f;
    if (!tokenizer_chat_template(t) || !model_chat_open(&f, CHAT_AUTO, t, c, NULL)) return;
    model_add_end_of_text(c, t, f.end_of_turn);
    chat_close(&f);
}

static json_t *ids_json(const struct gpt_token_ids *ids, int64_t otherwise) {
    if (!ids->count) return otherwise < 0 ? json_null() : json_integer(otherwise);
    if (ids->count == 1) return json_integer(ids->id[0]);
    json_t *list = json_array();
    for (int i = 0; i < ids->count; i++) json_array_append_new(list, json_integer(ids->id[i]));
    return list;
}

/* --- the files --- */

/* Takes over `root`. */
static bool write_json(const char *dir, const char *name, json_t *root, struct error *err) {
    char *path = xasprintf("%s/%s", dir, name);
    check(root, "%s: cannot be written as JSON", path);
    bool ok = json_file_write(path, root, err);
    free(path);
    return ok;
}

static json_t *config_json(const struct gpt_config *c, enum st_dtype dtype, json_t *bos, json_t *eos) {
    enum gpt_format format = format_for_directory(c);
    size_t family = 0;
    while (families[family].format != format) family++;
    json_t *root =
        json_pack("{s:s, s:s, s:O, s:O, s:s}", "_name_or_path", c->name, "model_type",
                  families[family].model_type, "bos_token_id", bos, "eos_token_id", eos, "torch_dtype",
                  dtype == ST_BF16  ? "bfloat16"
                  : dtype == ST_F16 ? "float16"
                                    : "float32");
    if (families[family].architecture)
        json_object_set_new(root, "architectures", json_pack("[s]", families[family].architecture));
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        if (gpt_fields[i].in[format].key) {
            json_t *value = field_json(c, &gpt_fields[i], format);
            if (value) set_key(root, gpt_fields[i].in[format].key, value);
        }
    for (size_t i = 0; i < ARRAY_LENGTH(constants); i++)
        if (constants[i].formats >> format & 1 && constants[i].written &&
            !json_object_get(root, constants[i].key))
            json_object_set_new(root, constants[i].key,
                                json_loads(constants[i].value, JSON_DECODE_ANY, NULL));
    /* llama.cpp's converter reads the context's old name */
    if (format == FORMAT_HF_GPT2) json_object_set_new(root, "n_ctx", json_integer(c->context));
    return sorted(root);
}

/* A token that tokenizer.json does not mark as special must not be named: transformers would make it
 * special, and the tokens of a text with its letters would be others. */
static void name_token(json_t *root, const char *key, const struct tokenizer *t, const json_t *id) {
    int64_t token = json_is_array(id) ? json_integer_value(json_array_get(id, 0)) : json_integer_value(id);
    if (json_is_null(id) || tokenizer_token_kind(t, token) != TOKEN_KIND_SPECIAL) return;
    int size;
    const char *text = tokenizer_token_bytes(t, token, &size);
    json_object_set_new(root, key, json_stringn(text, (size_t)size));
}

static json_t *tokenizer_json(const struct gpt_config *c, const struct tokenizer *t, const json_t *bos,
                              const json_t *eos) {
    json_t *root = json_pack("{s:s, s:I, s:b, s:b}", "tokenizer_class", "PreTrainedTokenizerFast",
                             "model_max_length", (json_int_t)c->context, "add_prefix_space",
                             tokenizer_prefixes_space(t), "clean_up_tokenization_spaces", 0);
    name_token(root, "bos_token", t, bos);
    name_token(root, "eos_token", t, eos);
    if (tokenizer_chat_template(t))
        json_object_set_new(root, "chat_template", json_string(tokenizer_chat_template(t)));
    return root;
}

bool model_tokenizer_write(const char *dir, const struct gpt_config *c, const struct tokenizer *t,
                           struct error *err) {
    int64_t end = end_of_text(c, t);
    json_t *bos = ids_json(&c->bos, end), *eos = ids_json(&c->eos, end);
    char *path = xasprintf("%s/tokenizer.json", dir);
    bool ok = tokenizer_save(t, path, err) &&
              write_json(dir, "tokenizer_config.json", tokenizer_json(c, t, bos, eos), err);
    free(path);
    json_decref(bos);
    json_decref(eos);
    return ok;
}

bool model_config_write(const char *dir, const struct gpt_config *c, enum st_dtype dtype,
                        const struct tokenizer *t, struct error *err) {
    int64_t end = end_of_text(c, t);
    json_t *bos = ids_json(&c->bos, end), *eos = ids_json(&c->eos, end);
    json_t *generation =
        json_pack("{s:b, s:O, s:O}", "_from_model_config", 1, "bos_token_id", bos, "eos_token_id", eos);
    bool ok = write_json(dir, "config.json", config_json(c, dtype, bos, eos), err);
    if (ok)
        ok = write_json(dir, "generation_config.json", generation, err);
    else
        json_decref(generation);
    json_decref(bos);
    json_decref(eos);
    return ok && (!t || model_tokenizer_write(dir, c, t, err));
}
