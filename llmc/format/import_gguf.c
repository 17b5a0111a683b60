/* Keys become a configuration by the table of its fields, and a tokenizer by way of the tokenizer.json that
 * Hugging Face would have written, so that the checks of both formats are those of one. */
#include "llmc/format/import_gguf.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/options_value.h"
#include "llmc/format/names.h"
#include "llmc/model/gpt.h"
#include "llmc/text/pretokenize.h"

static bool is_text(const struct gguf_value *v, const char *text) {
    struct gguf_text t = v ? gguf_text(v) : (struct gguf_text){"", -1};
    return t.size == (int64_t)strlen(text) && memcmp(t.data, text, (size_t)t.size) == 0;
}

/* For messages; by temp_printf. */
static const char *text_of(const struct gguf_value *v) {
    struct gguf_text t = gguf_text(v);
    return t.size < 0
               ? temp_printf("%g", gguf_number(v))
               : temp_printf("%s", option_show(temp_printf("%.*s", (int)min_i64(t.size, 80), t.data)).text);
}

/* --- the configuration --- */

static const struct gguf_value *find_of_model(const struct gguf_file *g, enum gpt_format format,
                                              const char *key) {
    return gguf_find(g, temp_printf("%s.%s", gguf_architecture(format), key));
}

static bool find_architecture(enum gpt_format *format, const struct gguf_file *g, struct error *err) {
    const struct gguf_value *v = gguf_find(g, "general.architecture");
    char *known = xstrdup("");
    for (int f = 0; f < GPT_FORMATS; f++) {
        const char *name = gguf_architecture((enum gpt_format)f);
        if (!name) continue;
        char *longer = xasprintf("%s%s%s", known, *known ? ", " : "", name);
        free(known);
        known = longer;
        if (!is_text(v, name)) continue;
        *format = (enum gpt_format)f;
        free(known);
        return true;
    }
    if (v)
        fail(err, "%s: holds a model of the architecture %s, this engine knows %s", g->file.path, text_of(v),
             known);
    else
        fail(err, "%s: has no key general.architecture", g->file.path);
    free(known);
    return false;
}

/* Stored in fp32: the shortest decimal number is what was meant, 1e-5 and not 9.99999975e-6. */
static double as_written(double stored) { return strtod(temp_printf("%.7g", stored), NULL); }

static bool read_field(struct gpt_config *c, const struct gpt_field *f, enum gpt_format format,
                       const struct gguf_file *g, struct error *err) {
    const struct gpt_format_key *k = &f->in[format];
    const struct gguf_value *v = k->key && *k->key ? find_of_model(g, format, k->key) : NULL;
    gpt_field_set(c, f, k->otherwise);
    if (!v && !k->required) return true;
    if (!v) return fail(err, "%s: has no key %s.%s", g->file.path, gguf_architecture(format), k->key);
    double value = gguf_number(v), least = f->option.type == OPTION_REAL ? 0.0 : 1.0;
    if (f->option.type == OPTION_REAL) value = as_written(value);
    if (!(value >= least && value <= f->option.max))
        return fail(err, "%s: %s: the %s is %s, must be between %g and %.0f", g->file.path, v->key, f->what,
                    text_of(v), least, f->option.max);
    gpt_field_set(c, f, value);
    return true;
}

static const struct st_view *find_tensor(const struct gguf_file *g, const char *name) {
    for (int64_t i = 0; i < g->tensor_count; i++)
        if (strcmp(g->tensors[i].name, name) == 0) return &g->tensors[i];
    return NULL;
}

/* Some writers store the head of a tied GPT-2 once more. */
static bool is_tied(const struct gguf_file *g, enum gpt_format format, const struct st_view *embedding) {
    const struct st_view *head = find_tensor(g, "output.weight");
    return !head ||
           (format == FORMAT_GGUF_GPT2 && head->dtype == embedding->dtype &&
            head->bytes == embedding->bytes && memcmp(head->data, embedding->data, (size_t)head->bytes) == 0);
}

/* Keys beside those of the table. */
static bool check_key(const struct gguf_value *v, const char *key, const struct gpt_config *c,
                      enum gpt_format format, const struct gguf_file *g, struct error *err) {
    static const char *const sizes[] = {"rope.dimension_count", "attention.key_length",
                                        "attention.value_length"};
    static const char *const scaling[] = {
        "rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned",
        "rope.scaling.original_context_length"}; /* of read_rope_scaling() */
    double expected = strcmp(key, "vocab_size") == 0 ? (double)c->vocab_size : 0.0;
    for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++)
        if (strcmp(key, sizes[i]) == 0) expected = (double)c->head_size;
    if (expected > 0.0)
        return gguf_number(v) == expected ||
               fail(err, "%s: %s is %s, expected %.0f", g->file.path, v->key, text_of(v), expected);
    for (size_t i = 0; i < ARRAY_LENGTH(scaling); i++)
        if (strcmp(key, scaling[i]) == 0) return true;
    for (int i = 0; i < GPT_FIELD_COUNT; i++) {
        const char *known = gpt_fields[i].in[format].key;
        if (known && strcmp(key, known) == 0) return true;
    }
    return fail(err, "%s: %s is %s, which this engine does not implement", g->file.path, v->key, text_of(v));
}

static bool check_keys(const struct gpt_config *c, enum gpt_format format, const struct gguf_file *g,
                       struct error *err) {
    const char *name = gguf_architecture(format);
    size_t n = strlen(name);
    for (int64_t i = 0; i < g->value_count; i++) {
        const struct gguf_value *v = &g->values[i];
        if (strncmp(v->key, name, n) != 0 || v->key[n] != '.') continue;
        if (!check_key(v, v->key + n + 1, c, format, g, err)) return false;
    }
    return true;
}

/* --- scaling of rotary positions --- */

/* llama.cpp's files do not say the two limits of Llama 3.1's rule, only what comes of it: the divisor of each
 * pair's frequency. Between the limits, which are numbers of turns, 1/divisor is a linear function of the
 * turns, so that two pairs there give both limits. Where there are not two, the limits are those of all
 * published models, 1 and 4. */
static void find_limits(struct gpt_config *c, const float *divisor) {
    double turns[2] = {0}, kept[2] = {0};
    int found = 0;
    for (int64_t i = 0; i < c->head_size / 2; i++) {
        double share = (1.0 / (double)divisor[i] - 1.0 / c->rope_factor) / (1.0 - 1.0 / c->rope_factor);
        if (!(share > 1e-3 && share < 1.0 - 1e-3)) continue;
        int k = found++ > 0;
        kept[k] = share;
        turns[k] = (double)c->rope_original / 6.283185307179586 *
                   rope_frequency((struct rope_rule){.theta = (float)c->rope_theta}, i, c->head_size);
    }
    double width = found > 1 ? (turns[0] - turns[1]) / (kept[0] - kept[1]) : 3.0;
    double low = found > 1 ? turns[0] - kept[0] * width : 1.0;
    c->rope_low = strtod(temp_printf("%.5g", low), NULL);
    c->rope_high = strtod(temp_printf("%.5g", low + width), NULL);
}

/* Whether the rule gives these divisors, as exactly as converters compute them in fp32. */
static bool rule_gives(struct rope_rule r, const float *divisor, int64_t HS) {
    for (int64_t i = 0; i < HS / 2; i++) {
        double f = rope_frequency((struct rope_rule){.theta = r.theta}, i, HS) / rope_frequency(r, i, HS);
        if (!(fabs(f / (double)divisor[i] - 1.0) <= 1e-4)) return false;
    }
    return true;
}

static bool read_rope_freqs(struct gpt_config *c, enum gpt_format format, const struct gguf_file *g,
                            const struct st_view *v, struct error *err) {
    const struct gguf_value *original = find_of_model(g, format, "rope.scaling.original_context_length");
    int64_t pairs = c->head_size / 2;
    if (v->rank != 1 || v->dtype != ST_F32 || v->dim[0] != pairs || pairs < 1)
        return fail(err, "%s: rope_freqs.weight should be %" PRId64 " numbers in F32", g->file.path, pairs);
    float *divisor = (float *)xmalloc((size_t)pairs * sizeof *divisor);
    memcpy(divisor, v->data, (size_t)pairs * sizeof *divisor);
    c->rope_factor = as_written((double)divisor[pairs - 1]);
    double length = original ? gguf_number(original) : 8192.0;
    bool good = format == FORMAT_GGUF_LLAMA && c->rope_scaling == ROPE_SCALING_NONE &&
                c->rope_factor >= 1.0 && c->rope_factor <= 1e6 && length >= 1.0 && length <= 1 << 24;
    if (good && c->rope_factor > 1.0) {
        c->rope_scaling = ROPE_SCALING_LLAMA3;
        c->rope_original = (int64_t)length;
        find_limits(c, divisor);
    } else {
        c->rope_factor = 0.0;
    }
    good = good && (c->rope_factor == 0.0 || (c->rope_low > 0.0 && c->rope_low < c->rope_high)) &&
           rule_gives(gpt_rope_rule(c), divisor, c->head_size);
    free(divisor);
    return good ||
           fail(err,
                "%s: rope_freqs.weight is not what Llama 3.1's scaling gives, and other scaling of rotary "
                "positions by pairs is not implemented by this engine",
                g->file.path);
}

/* Without a type, llama.cpp takes a factor for a linear one. */
static bool read_rope_scaling(struct gpt_config *c, enum gpt_format format, const struct gguf_file *g,
                              struct error *err) {
    const struct gguf_value *type = find_of_model(g, format, "rope.scaling.type"),
                            *factor = find_of_model(g, format, "rope.scaling.factor");
    const struct st_view *freqs = find_tensor(g, "rope_freqs.weight");
    double value = factor ? as_written(gguf_number(factor)) : 1.0;
    if (type && !is_text(type, "none") && !is_text(type, "linear"))
        return fail(err, "%s: %s is %s, this engine implements none and linear", g->file.path, type->key,
                    text_of(type));
    if (!is_text(type, "none") && value != 1.0) {
        c->rope_scaling = ROPE_SCALING_LINEAR;
        c->rope_factor = value;
    }
    return !freqs || read_rope_freqs(c, format, g, freqs, err);
}

/* For messages: what the writer called the model, else the file. */
static void set_name(struct gpt_config *c, const struct gguf_file *g) {
    const struct gguf_value *v = gguf_find(g, "general.name");
    struct gguf_text t = v ? gguf_text(v) : (struct gguf_text){"", -1};
    const char *slash = strrchr(g->file.path, '/');
    if (t.size > 0 && t.size < (int64_t)sizeof c->name && !memchr(t.data, 0, (size_t)t.size))
        snprintf(c->name, sizeof c->name, "%.*s", (int)t.size, t.data);
    else
        snprintf(c->name, sizeof c->name, "%.60s", slash ? slash + 1 : g->file.path);
}

static void add_id(struct gpt_token_ids *ids, const struct gguf_file *g, const char *key,
                   int64_t vocab_size) {
    const struct gguf_value *v = gguf_find(g, key);
    double id = v ? gguf_number(v) : -1.0;
    if (!(id >= 0.0 && id < (double)vocab_size)) return;
    for (int i = 0; i < ids->count; i++)
        if (ids->id[i] == (int32_t)id) return;
    ids->id[ids->count++] = (int32_t)id;
}

bool gguf_config(struct gpt_config *c, enum gpt_format *format, const struct gguf_file *g,
                 struct error *err) {
    const struct st_view *embedding = find_tensor(g, "token_embd.weight");
    memset(c, 0, sizeof *c);
    set_name(c, g);
    if (!find_architecture(format, g, err)) return false;
    if (!embedding || embedding->rank != 2)
        return fail(err, "%s: has no matrix token_embd.weight", g->file.path);
    for (int i = 0; i < GPT_FIELD_COUNT; i++) {
        const struct gpt_field *f = &gpt_fields[i];
        bool of_tensors = f->option.offset == offsetof(struct gpt_config, vocab_size); /* not always a key */
        if (!of_tensors && !read_field(c, f, *format, g, err)) return false;
    }
    const struct gguf_value *head = find_of_model(g, *format, "attention.key_length");
    if (head && gguf_number(head) >= 1 && gguf_number(head) <= 1 << 20)
        c->head_size = (int64_t)gguf_number(head);
    c->vocab_size = embedding->dim[0];
    c->tied = is_tied(g, *format, embedding) ? SWITCH_ON : SWITCH_OFF;
    gpt_config_complete(c);
    if (c->positions == POSITIONS_ROPE && !read_rope_scaling(c, *format, g, err)) return false;
    struct error why;
    if (!gpt_config_check(c, &why)) return fail(err, "%s: %s", g->file.path, why.message);
    add_id(&c->bos, g, "tokenizer.ggml.bos_token_id", c->vocab_size);
    add_id(&c->eos, g, "tokenizer.ggml.eos_token_id", c->vocab_size);
    add_id(&c->eos, g, "tokenizer.ggml.eot_token_id", c->vocab_size);
    return check_keys(c, *format, g, err);
}

/* --- the tokenizer --- */

/* What llama.cpp calls the ways to cut a text into words. Those of Qwen 2 normalize the text, which GGUF does
 * not say. */
static const struct {
    const char *name;
    enum pretok_kind kind;
    bool ignores_merges, nfc;
} word_rules[] = {{"gpt-2", PRETOK_GPT2, false, false},
                  {"llama-bpe", PRETOK_LLAMA3, true, false},
                  {"llama3", PRETOK_LLAMA3, true, false},
                  {"dbrx", PRETOK_LLAMA3, false, false},
                  {"qwen2", PRETOK_QWEN2, false, true}};

static json_t *pre_tokenizer_json(enum pretok_kind kind) {
    json_t *bytes = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                              "trim_offsets", 1, "use_regex", kind == PRETOK_GPT2);
    if (kind == PRETOK_GPT2) return bytes;
    return json_pack("{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, o]}", "type", "Sequence", "pretokenizers", "type",
                     "Split", "pattern", "Regex", pretok_pattern(kind), "behavior", "Isolated", "invert", 0,
                     bytes);
}

static int32_t kind_of(const struct gguf_value *kinds, int64_t i) {
    return kinds ? gguf_element(kinds, i) : GGUF_TOKEN_NORMAL;
}

static bool is_word(const char *text) {
    while (*text > ' ' && *text <= '~') text++;
    return !*text;
}

/* Splits the tokens into those of the model and added ones, which GPT-2 lists among those of the model, too
 * (`lists_added`). Unused ones at the end are padding. */
static bool put_tokens(json_t *vocab, json_t *added, bool lists_added, const struct gguf_value *tokens,
                       const struct gguf_value *kinds, const char *path, struct error *err) {
    int64_t count = tokens->count, next = 0;
    while (count > 0 && kind_of(kinds, count - 1) == GGUF_TOKEN_UNUSED) count--;
    for (int64_t i = 0; i < count; i++) {
        struct gguf_text t = gguf_next_text(tokens, &next);
        int32_t kind = kind_of(kinds, i);
        json_t *name = json_stringn(t.data, (size_t)t.size);
        const char *text = json_string_value(name);
        if (!name || strlen(text) != (size_t)t.size || json_object_get(vocab, text)) {
            bool twice = name && strlen(text) == (size_t)t.size;
            json_decref(name);
            return fail(err, "%s: tokenizer.ggml.tokens: token %" PRId64 " is %s", path, i,
                        twice ? "there twice" : "no UTF-8 text");
        }
        bool in_added = kind == GGUF_TOKEN_CONTROL || kind == GGUF_TOKEN_USER;
        if (in_added)
            json_array_append_new(added,
                                  json_pack("{s:I, s:O, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)i,
                                            "content", name, "single_word", 0, "lstrip", 0, "rstrip", 0,
                                            "normalized", 0, "special", kind == GGUF_TOKEN_CONTROL));
        if (!in_added || (lists_added && is_word(text))) json_object_set_new(vocab, text, json_integer(i));
        json_decref(name);
    }
    return true;
}

static bool put_merges(json_t *merges, const struct gguf_value *v, const char *path, struct error *err) {
    int64_t next = 0;
    for (int64_t i = 0; i < v->count; i++) {
        struct gguf_text t = gguf_next_text(v, &next);
        json_t *merge = json_stringn(t.data, (size_t)t.size);
        if (!merge)
            return fail(err, "%s: tokenizer.ggml.merges: merge %" PRId64 " is no UTF-8 text", path, i);
        json_array_append_new(merges, merge);
    }
    return true;
}

/* A tokenizer.json, or NULL. The caller frees. */
static json_t *tokenizer_json(const struct gguf_file *g, struct error *err) {
    const struct gguf_value *tokens = gguf_find(g, "tokenizer.ggml.tokens"),
                            *kinds = gguf_find(g, "tokenizer.ggml.token_type"),
                            *merges = gguf_find(g, "tokenizer.ggml.merges"),
                            *pre = gguf_find(g, "tokenizer.ggml.pre");
    const char *path = g->file.path;
    size_t rule = 0;
    if (pre) /* older files have none; they are GPT-2's */
        while (rule < ARRAY_LENGTH(word_rules) && !is_text(pre, word_rules[rule].name)) rule++;
    if (rule == ARRAY_LENGTH(word_rules)) {
        fail(err,
             "%s: tokenizer.ggml.pre is %s: how it cuts words is not known here (gpt-2, llama-bpe, dbrx and "
             "qwen2 are); --tokenizer names the tokenizer.json of the model",
             path, text_of(pre));
        return NULL;
    }
    bool lists = tokens && tokens->of == GGUF_STRING && merges && merges->of == GGUF_STRING &&
                 (!kinds || (kinds->of == GGUF_I32 && kinds->count == tokens->count));
    if (!lists) {
        fail(err, "%s: tokenizer.ggml.tokens, token_type and merges are no lists that belong together", path);
        return NULL;
    }
    json_t *vocab = json_object(), *added = json_array(), *list = json_array();
    bool ok = put_tokens(vocab, added, word_rules[rule].kind == PRETOK_GPT2, tokens, kinds, path, err) &&
              put_merges(list, merges, path, err);
    json_t *normalizer = word_rules[rule].nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
    json_t *root = json_pack(
        "{s:o, s:o, s:o, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:b, s:o, s:o}}", "added_tokens", added,
        "normalizer", normalizer, "pre_tokenizer", pre_tokenizer_json(word_rules[rule].kind), "decoder",
        "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1, "model", "type", "BPE",
        "ignore_merges", word_rules[rule].ignores_merges, "vocab", vocab, "merges", list);
    check(root, "out of host memory for a tokenizer");
    if (ok) return root;
    json_decref(root);
    return NULL;
}

struct tokenizer *gguf_tokenizer(const struct gguf_file *g, struct error *err) {
    const struct gguf_value *model = gguf_find(g, "tokenizer.ggml.model"),
                            *jinja = gguf_find(g, "tokenizer.chat_template");
    if (!model) {
        fail(err, "%s", "");
        return NULL;
    }
    if (!is_text(model, "gpt2")) {
        fail(err,
             "%s: its tokenizer is of the kind %s, this engine has byte-level BPE (gpt2); --tokenizer names "
             "another that makes the same tokens",
             g->file.path, text_of(model));
        return NULL;
    }
    json_t *root = tokenizer_json(g, err);
    struct tokenizer *t = root ? tokenizer_from_json(root, g->file.path, err) : NULL;
    json_decref(root);
    struct gguf_text text = jinja ? gguf_text(jinja) : (struct gguf_text){"", -1};
    if (t && text.size > 0) {
        char *copy = xasprintf("%.*s", (int)text.size, text.data);
        tokenizer_set_chat_template(t, copy);
        free(copy);
    }
    return t;
}
