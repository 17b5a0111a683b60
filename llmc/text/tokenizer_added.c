/* What a Hugging Face directory keeps outside of tokenizer.json: added tokens and the chat template.
 * tokenizer_config.json lists added tokens by id in "added_tokens_decoder", with all their properties. Older
 * directories have added_tokens.json, which maps text to id; such a token is special if
 * special_tokens_map.json or tokenizer_config.json gives it a role. The chat template is a file of its own,
 * or a member of tokenizer_config.json: a text, or a list of texts with names. */
#include "llmc/text/tokenizer_tables.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/file.h"
#include "llmc/base/json_file.h"

/* DIR/NAME; an empty object if there is none, NULL with the reason if it is no object. */
static json_t *load_object(const char *dir, const char *name, struct error *err) {
    char *path = xasprintf("%s/%s", dir, name);
    json_t *root = path_exists(path) ? json_file_load(path, err) : json_object();
    if (root && !json_is_object(root)) {
        fail(err, "%s: expected a JSON object", path);
        json_decref(root);
        root = NULL;
    }
    free(path);
    return root;
}

/* "eos_token": "</s>" or {"content": "</s>", ...}; "additional_special_tokens": [...] */
static bool has_role(const json_t *value, const char *text) {
    const json_t *v;
    size_t i;
    json_array_foreach(value, i, v) {
        if (has_role(v, text)) return true;
    }
    const char *content =
        json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    return content && !strcmp(content, text);
}

static bool is_special(json_t *object, const char *text) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        size_t n = strlen(key);
        bool role = (n > 6 && !strcmp(key + n - 6, "_token")) || !strcmp(key, "additional_special_tokens");
        if (role && has_role(value, text)) return true;
    }
    return false;
}

static bool lists(const json_t *list, const char *content) {
    const json_t *v;
    size_t i;
    json_array_foreach(list, i, v) {
        const char *listed = json_string_value(json_object_get(v, "content"));
        if (listed && !strcmp(listed, content)) return true;
    }
    return false;
}

static bool add_decoder(json_t *list, json_t *config, const char *dir, struct error *err) {
    const char *key;
    json_t *value;
    json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, value) {
        char *end;
        long long id = strtoll(key, &end, 10);
        const char *content = json_string_value(json_object_get(value, "content"));
        if (!*key || *end || !content)
            return fail(err,
                        "%s/tokenizer_config.json: added_tokens_decoder: \"%.40s\": expected an id, and an "
                        "object with a \"content\"",
                        dir, key);
        if (lists(list, content)) continue;
        json_t *copy = json_copy(value);
        json_object_set_new(copy, "id", json_integer(id));
        json_array_append_new(list, copy);
    }
    return true;
}

static bool add_pairs(json_t *list, json_t *pairs, json_t *roles, json_t *config, const char *dir,
                      struct error *err) {
    const char *text;
    json_t *id;
    json_object_foreach(pairs, text, id) {
        if (!*text || !json_is_integer(id))
            return fail(err, "%s/added_tokens.json: \"%.40s\": expected text: id", dir, text);
        if (lists(list, text)) continue;
        bool special = is_special(roles, text) || is_special(config, text);
        json_array_append_new(list,
                              json_pack("{s:s, s:O, s:b}", "content", text, "id", id, "special", special));
    }
    return true;
}

json_t *tokenizer_added_beside(const char *dir, const json_t *listed, struct error *err) {
    json_t *list = listed ? json_copy((json_t *)(uintptr_t)listed) : json_array();
    json_t *config = load_object(dir, "tokenizer_config.json", err);
    json_t *roles = config ? load_object(dir, "special_tokens_map.json", err) : NULL;
    json_t *pairs = roles ? load_object(dir, "added_tokens.json", err) : NULL;
    bool ok = pairs && add_decoder(list, config, dir, err) && add_pairs(list, pairs, roles, config, dir, err);
    json_decref(config);
    json_decref(roles);
    json_decref(pairs);
    if (ok) return list;
    json_decref(list);
    return NULL;
}

/* --- the chat template --- */

static const char *template_in(json_t *config) {
    json_t *value = json_object_get(config, "chat_template"), *v;
    size_t i;
    json_array_foreach(value, i, v) {
        const char *name = json_string_value(json_object_get(v, "name"));
        if (name && strcmp(name, "default") == 0) value = json_object_get(v, "template");
    }
    return json_string_value(value);
}

bool tokenizer_chat_template_beside(struct tokenizer *t, const char *dir, struct error *err) {
    char *path = xasprintf("%s/chat_template.jinja", dir);
    bool ok = true;
    if (path_exists(path)) {
        struct mapped_file f;
        if ((ok = file_map(&f, path, err))) {
            t->chat_template = xasprintf("%.*s", (int)f.size, f.size ? (const char *)f.data : "");
            file_unmap(&f);
        }
    } else {
        json_t *config = load_object(dir, "tokenizer_config.json", err);
        if ((ok = config != NULL)) tokenizer_set_chat_template(t, template_in(config));
        json_decref(config);
    }
    free(path);
    return ok;
}
