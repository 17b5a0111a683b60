/* config.json and generation_config.json of a Hugging Face GPT-2 directory.
 *
 * Order: fields of an untrusted JSON object; what this engine computes; reading; writing. */
#include "llmc/format/model_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/json_file.h"

/* --- what this engine computes --- */

/* Values that change the result of the network and of which the engine implements one. A field that is absent
 * or null has the value `otherwise`, which is transformers' default. */
static const struct {
    const char *key;
    const char *accepted[3];
    bool absent_is_fine;
} words[] = {
    {"model_type", {"gpt2", NULL, NULL}, false},
    {"activation_function", {"gelu_new", "gelu_pytorch_tanh", NULL}, true}, /* two names of one function */
};
static const struct {
    const char *key;
    bool accepted;
    const char *meaning; /* of the other value */
} flags[] = {
    {"scale_attn_weights", true, "attention without the division by sqrt(head size)"},
    {"scale_attn_by_inverse_layer_idx", false, "attention scaled by 1/(layer + 1)"},
    {"tie_word_embeddings", true, "an output head of its own"},
    {"add_cross_attention", false, "cross-attention"},
};
static const double layer_norm_epsilon = 1e-5;

static bool check_words(const json_t *root, const char *path, struct error *err) {
    for (size_t i = 0; i < ARRAY_LENGTH(words); i++) {
        const json_t *field = json_object_get(root, words[i].key);
        if (!field && words[i].absent_is_fine) continue;
        const char *text = json_string_value(field);
        if (!text)
            return fail(err, "%s: \"%s\" is %s, expected \"%s\"", path, words[i].key,
                        field ? "not a string" : "missing", words[i].accepted[0]);
        bool known = false;
        for (int k = 0; words[i].accepted[k]; k++) known |= strcmp(words[i].accepted[k], text) == 0;
        if (!known)
            return fail(err, "%s: \"%s\" is \"%.80s\", this engine implements only \"%s\"", path,
                        words[i].key, text, words[i].accepted[0]);
    }
    return true;
}

static bool check_values(const json_t *root, int64_t channels, const char *path, struct error *err) {
    for (size_t i = 0; i < ARRAY_LENGTH(flags); i++) {
        const json_t *field = json_object_get(root, flags[i].key);
        if (!field || json_is_null(field)) continue;
        if (!json_is_boolean(field))
            return fail(err, "%s: \"%s\" is neither true nor false", path, flags[i].key);
        if (json_is_true(field) != flags[i].accepted)
            return fail(err, "%s: \"%s\" is %s: %s is not implemented by this engine", path, flags[i].key,
                        json_is_true(field) ? "true" : "false", flags[i].meaning);
    }
    const json_t *eps = json_object_get(root, "layer_norm_epsilon");
    if (eps && !(fabs(json_number_value(eps) - layer_norm_epsilon) <= 1e-9))
        return fail(err, "%s: \"layer_norm_epsilon\" is %g, this engine implements only %g", path,
                    json_number_value(eps), layer_norm_epsilon);
    const json_t *inner = json_object_get(root, "n_inner");
    if (inner && !json_is_null(inner) && json_integer_value(inner) != 4 * channels)
        return fail(err,
                    "%s: \"n_inner\" is %" JSON_INTEGER_FORMAT
                    ", this engine implements only 4 * n_embd (%" PRId64 ")",
                    path, json_integer_value(inner), 4 * channels);
    if (json_is_object(json_object_get(root, "quantization_config")))
        return fail(err, "%s: has a \"quantization_config\": quantized weights are not implemented", path);
    return true;
}

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

static bool parse_config(struct gpt_config *c, const json_t *root, const char *path, const char *dir,
                         struct error *err) {
    if (!json_is_object(root)) return fail(err, "%s: is not a JSON object", path);
    memset(c, 0, sizeof *c);
    set_name(c, root, dir);
    if (!check_words(root, path, err)) return false;
    const struct {
        const char *key;
        int64_t *value;
    } sizes[] = {{"n_positions", &c->context},
                 {"vocab_size", &c->vocab_size},
                 {"n_layer", &c->layers},
                 {"n_head", &c->heads},
                 {"n_embd", &c->channels}};
    for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) {
        const json_t *field = json_object_get(root, sizes[i].key);
        if (!json_is_integer(field))
            return fail(err, "%s: \"%s\" is %s, expected an integer", path, sizes[i].key,
                        field ? "not an integer" : "missing");
        *sizes[i].value = (int64_t)json_integer_value(field);
    }
    struct error why;
    if (!gpt_config_check(c, &why)) return fail(err, "%s: %s", path, why.message);
    return check_values(root, c->channels, path, err);
}

bool model_config_read(struct gpt_config *config, const char *dir, struct error *err) {
    char *path = xasprintf("%s/config.json", dir);
    json_t *root = NULL;
    bool ok = false;
    if (!path_exists(path))
        fail(err, "%s: has no config.json: not a Hugging Face model directory", dir);
    else
        root = json_file_load(path, err);
    if (root) ok = parse_config(config, root, path, dir, err);
    json_decref(root);
    free(path);
    return ok;
}

/* --- writing --- */

static bool write_json(const char *dir, const char *name, json_t *root, struct error *err) {
    char *path = xasprintf("%s/%s", dir, name);
    bool ok = json_file_write(path, root, err);
    free(path);
    return ok;
}

bool model_config_write(const char *dir, const struct gpt_config *c, enum st_dtype dtype, int64_t end_of_text,
                        struct error *err) {
    const char *type = dtype == ST_BF16 ? "bfloat16" : dtype == ST_F16 ? "float16" : "float32";
    json_t *end = end_of_text < 0 ? json_null() : json_integer(end_of_text);
    /* The engine trains without dropout. */
    json_t *root = json_pack(
        "{s:s, s:s, s:[s], s:f, s:O, s:f, s:O, s:f, s:f, s:s, s:I, s:I, s:n, s:I, s:I, s:f, s:b, s:b, s:b, "
        "s:s, s:b, s:I}",
        "_name_or_path", c->name, "activation_function", "gelu_new", "architectures", "GPT2LMHeadModel",
        "attn_pdrop", 0.0, "bos_token_id", end, "embd_pdrop", 0.0, "eos_token_id", end, "initializer_range",
        0.02, "layer_norm_epsilon", layer_norm_epsilon, "model_type", "gpt2", "n_embd",
        (json_int_t)c->channels, "n_head", (json_int_t)c->heads, "n_inner", "n_layer", (json_int_t)c->layers,
        "n_positions", (json_int_t)c->context, "resid_pdrop", 0.0, "scale_attn_by_inverse_layer_idx", 0,
        "scale_attn_weights", 1, "tie_word_embeddings", 1, "torch_dtype", type, "use_cache", 1, "vocab_size",
        (json_int_t)c->vocab_size);
    json_t *generation =
        json_pack("{s:b, s:O, s:O}", "_from_model_config", 1, "bos_token_id", end, "eos_token_id", end);
    json_decref(end);
    check(root && generation, "model %s: its configuration cannot be written as JSON", c->name);
    bool ok = write_json(dir, "config.json", root, err);
    if (!ok)
        json_decref(generation);
    else
        ok = write_json(dir, "generation_config.json", generation, err);
    return ok;
}
