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
#include "llmc/format/names.h"

/* --- families --- */

static const struct {
    enum gpt_format format;
    const char *model_type, *architecture; /* NULL: transformers has none */
} families[] = {
    {FORMAT_HF_GPT2, "gpt2", "GPT2LMHeadModel"},
    {FORMAT_HF_LLAMA, "llama", "LlamaForCausalLM"},
    {FORMAT_OWN, "llmc", NULL},
};

static const struct constant {
    enum gpt_format format;
    const char *key, *value; /* as JSON */
    bool written;
    const char *meaning; /* of another value; NULL: it makes no difference here */
} constants[] = {
    /* the engine trains without dropout */
    {FORMAT_HF_GPT2, "attn_pdrop", "0.0", true, NULL},
    {FORMAT_HF_GPT2, "embd_pdrop", "0.0", true, NULL},
    {FORMAT_HF_GPT2, "resid_pdrop", "0.0", true, NULL},
    {FORMAT_HF_GPT2, "initializer_range", "0.02", true, NULL},
    {FORMAT_HF_GPT2, "use_cache", "true", true, NULL},
    {FORMAT_HF_GPT2, "scale_attn_weights", "true", true, "attention without the division by sqrt(head size)"},
    {FORMAT_HF_GPT2, "scale_attn_by_inverse_layer_idx", "false", true, "attention scaled by 1/(layer + 1)"},
    {FORMAT_HF_GPT2, "add_cross_attention", "false", false, "cross-attention"},
    {FORMAT_HF_LLAMA, "attention_dropout", "0.0", true, NULL},
    {FORMAT_HF_LLAMA, "initializer_range", "0.02", true, NULL},
    {FORMAT_HF_LLAMA, "use_cache", "true", true, NULL},
    {FORMAT_HF_LLAMA, "attention_bias", "false", true, "attention with biases"},
    {FORMAT_HF_LLAMA, "mlp_bias", "false", true, "an MLP with biases"},
    {FORMAT_HF_LLAMA, "rope_scaling", "null", true, "scaling of rotary positions"},
};

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

static bool find_family(enum gpt_format *format, const json_t *root, const char *path, struct error *err) {
    const json_t *field = json_object_get(root, "model_type");
    const char *type = json_string_value(field);
    for (size_t i = 0; type && i < ARRAY_LENGTH(families); i++)
        if (strcmp(type, families[i].model_type) == 0) {
            *format = families[i].format;
            return true;
        }
    if (!type)
        return fail(err, "%s: \"model_type\" is %s, expected \"gpt2\" or \"llama\"", path,
                    field ? "not a string" : "missing");
    return fail(err, "%s: \"model_type\" is \"%.80s\", this engine knows \"gpt2\" and \"llama\"", path, type);
}

static bool check_constants(const json_t *root, enum gpt_format format, const char *path, struct error *err) {
    for (size_t i = 0; i < ARRAY_LENGTH(constants); i++) {
        const struct constant *k = &constants[i];
        const json_t *found = json_object_get(root, k->key);
        if (k->format != format || !k->meaning || !found || json_is_null(found)) continue;
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

/* Newer versions of transformers keep the base of rotary positions in an object. */
static bool check_rope(const json_t *root, const char *path, struct error *err) {
    const json_t *rope = json_object_get(root, "rope_parameters");
    const char *type = json_string_value(json_object_get(rope, "rope_type"));
    return !type || strcmp(type, "default") == 0 ||
           fail(
               err,
               "%s: \"rope_type\" is \"%.80s\": scaling of rotary positions is not implemented by this engine",
               path, type);
}

static const json_t *find_key(const json_t *root, const char *key) {
    const json_t *found = json_object_get(root, key);
    if (!found) found = json_object_get(json_object_get(root, "rope_parameters"), key);
    return json_is_null(found) ? NULL : found;
}

/* "a, b or c" of the words that the format has. The caller frees. */
static char *list_words(const struct gpt_field *f, enum gpt_format format) {
    char *list = xstrdup("");
    int length;
    const char *word;
    for (int value = 1; (word = gpt_format_word(f, format, value, &length)); value++) {
        if (!length) continue;
        char *longer = xasprintf("%s%s\"%.*s\"", list, *list ? ", " : "", length, word);
        free(list);
        list = longer;
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
        gpt_field_set(c, f, k->otherwise);
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
    return check_constants(root, *format, path, err) && check_rope(root, path, err);
}

bool model_config_read(struct gpt_config *config, enum gpt_format *format, const char *dir,
                       struct error *err) {
    char *path = xasprintf("%s/config.json", dir);
    json_t *root = NULL;
    bool ok = false;
    if (!path_exists(path))
        fail(err, "%s: has no config.json: not a Hugging Face model directory", dir);
    else
        root = json_file_load(path, err);
    if (root) ok = parse_config(config, format, root, path, dir, err);
    json_decref(root);
    free(path);
    return ok;
}

/* --- writing --- */

static json_t *field_json(const struct gpt_config *c, const struct gpt_field *f, enum gpt_format format) {
    double value = gpt_field_get(c, f);
    if (f->in[format].null_if_usual) {
        struct gpt_config usual = *c;
        gpt_field_set(&usual, f, 0);
        gpt_config_complete(&usual);
        if (gpt_field_get(&usual, f) == value) return json_null();
    }
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

bool model_config_write(const char *dir, const struct gpt_config *c, enum st_dtype dtype, int64_t end_of_text,
                        struct error *err) {
    enum gpt_format format = format_for_directory(c);
    size_t family = 0;
    while (families[family].format != format) family++;
    json_t *end = end_of_text < 0 ? json_null() : json_integer(end_of_text);
    json_t *root =
        json_pack("{s:s, s:s, s:O, s:O, s:s}", "_name_or_path", c->name, "model_type",
                  families[family].model_type, "bos_token_id", end, "eos_token_id", end, "torch_dtype",
                  dtype == ST_BF16  ? "bfloat16"
                  : dtype == ST_F16 ? "float16"
                                    : "float32");
    if (families[family].architecture)
        json_object_set_new(root, "architectures", json_pack("[s]", families[family].architecture));
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        if (gpt_fields[i].in[format].key)
            json_object_set_new(root, gpt_fields[i].in[format].key, field_json(c, &gpt_fields[i], format));
    for (size_t i = 0; i < ARRAY_LENGTH(constants); i++)
        if (constants[i].format == format && constants[i].written)
            json_object_set_new(root, constants[i].key,
                                json_loads(constants[i].value, JSON_DECODE_ANY, NULL));
    json_t *generation =
        json_pack("{s:b, s:O, s:O}", "_from_model_config", 1, "bos_token_id", end, "eos_token_id", end);
    json_decref(end);
    root = sorted(root);
    check(root && generation, "model %s: its configuration cannot be written as JSON", c->name);
    char *path = xasprintf("%s/config.json", dir),
         *generation_path = xasprintf("%s/generation_config.json", dir);
    bool ok = json_file_write(path, root, err);
    if (ok)
        ok = json_file_write(generation_path, generation, err);
    else
        json_decref(generation);
    free(generation_path);
    free(path);
    return ok;
}
