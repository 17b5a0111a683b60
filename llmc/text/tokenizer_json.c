/* Loads tokenizer files: Hugging Face's tokenizer.json, or GPT-2's pair of a vocabulary (JSON) and a list
 * of merges (text). The files are untrusted. Anything that would make tokens differ from Hugging Face's is
 * refused, not ignored. Messages give the reason; tokenizer_load puts the path in front. */
#include "llmc/text/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/file.h"
#include "llmc/base/json_file.h"
#include "llmc/text/normalize.h"
#include "llmc/text/split_pattern.h"
#include "llmc/text/tokenizer_tables.h"

/* The contents of a file before they are checked. The strings belong to the JSON documents. */
struct source {
    json_t *vocab;          /* object: name -> id */
    const json_t *added;    /* array of objects, or NULL */
    const json_t *merges;   /* array of "left right" or ["left", "right"]; or NULL: */
    char *lines;            /* the same as text: lines, each ended by NUL */
    int64_t lines_size;     /* including the last NUL */
    const char *merges_key; /* for messages */
};

static bool is_null(const json_t *v) { return !v || json_is_null(v); }

/* A boolean that may be missing. */
static bool read_flag(bool *out, const json_t *object, const char *key, bool missing, struct error *err) {
    const json_t *v = json_object_get(object, key);
    *out = v ? json_is_true(v) : missing;
    return !v || json_is_boolean(v) || fail(err, "\"%s\" must be true or false", key);
}

/* The string at object[key], or NULL. */
static const char *string_at(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

/* --- the vocabulary --- */

/* Fills name_of[id] for all tokens of the model and added ones. Refuses ids that occur twice, and gaps. */
static bool list_tokens(const struct source *src, const char **name_of, int count, struct error *err) {
    const char *name;
    json_t *v;
    json_object_foreach(src->vocab, name, v) {
        if (!*name) return fail(err, "the vocabulary has a token without a name");
        if (!json_is_integer(v))
            return fail(err, "vocabulary: the id of token \"%.80s\" is no integer", name);
        json_int_t id = json_integer_value(v);
        if (id < 0 || id >= count)
            return fail(
                err,
                "vocabulary: token \"%.80s\" has the id %lld, but %d tokens must have the ids 0 to %d "
                "without holes",
                name, (long long)id, count, count - 1);
        if (name_of[id])
            return fail(err, "vocabulary: tokens \"%.80s\" and \"%.80s\" have the same id %lld", name_of[id],
                        name, (long long)id);
        name_of[id] = name;
    }
    size_t i;
    json_array_foreach(src->added, i, v) {
        json_int_t id = json_integer_value(json_object_get(v, "id"));
        name = string_at(v, "content");
        if (json_object_get(src->vocab, name)) continue;
        if (id < 0 || id >= count)
            return fail(
                err,
                "added_tokens: \"%.80s\" has the id %lld, but %d tokens must have the ids 0 to %d without "
                "holes",
                name, (long long)id, count, count - 1);
        if (name_of[id])
            return fail(err, "added_tokens: \"%.80s\" has the id %lld, which is that of token \"%.80s\"",
                        name, (long long)id, name_of[id]);
        name_of[id] = name;
    }
    return true;
}

/* Checks the form of added_tokens and counts those that the vocabulary lacks. */
static bool count_added(const struct source *src, int64_t *extra, struct error *err) {
    *extra = 0;
    json_t *seen = json_object();
    check(seen, "out of host memory");
    const json_t *v;
    size_t i;
    bool ok = true;
    json_array_foreach(src->added, i, v) {
        const char *content = string_at(v, "content");
        const json_t *id = json_object_get(v, "id");
        if (!content || !*content || !json_is_integer(id)) {
            ok = fail(err,
                      "added_tokens[%zu]: expected an object with a \"content\" that is not empty and an "
                      "integer \"id\"",
                      i);
            break;
        }
        const json_t *model_id = json_object_get(src->vocab, content);
        if (model_id && !json_equal(model_id, id)) {
            ok = fail(err, "added_tokens: \"%.80s\" has the id %lld, but %lld in model.vocab", content,
                      (long long)json_integer_value(id), (long long)json_integer_value(model_id));
            break;
        }
        if (json_object_get(seen, content)) {
            ok = fail(err, "added_tokens: \"%.80s\" is listed twice", content);
            break;
        }
        json_object_set_new(seen, content, json_true());
        *extra += !model_id;
    }
    json_decref(seen);
    return ok;
}

static bool fill_added(struct tokenizer *t, const struct source *src, struct error *err) {
    size_t n = src->added ? json_array_size(src->added) : 0, i;
    t->added = (struct added_token *)xcalloc(n + 1, sizeof *t->added);
    const json_t *v;
    json_array_foreach(src->added, i, v) {
        const char *content = string_at(v, "content");
        struct added_token *a = &t->added[t->added_count++];
        *a = (struct added_token){.content = xstrdup(content),
                                  .size = (int)strlen(content),
                                  .id = (uint32_t)json_integer_value(json_object_get(v, "id"))};
        bool single_word;
        if (!read_flag(&a->special, v, "special", false, err) ||
            !read_flag(&a->normalized, v, "normalized", !a->special, err) ||
            !read_flag(&a->lstrip, v, "lstrip", false, err) ||
            !read_flag(&a->rstrip, v, "rstrip", false, err) ||
            !read_flag(&single_word, v, "single_word", false, err))
            return false;
        if (single_word)
            return fail(err, "added_tokens: \"%.80s\" has \"single_word\": true, which is not supported",
                        content);
    }
    return true;
}

/* Stores the bytes of all tokens. An added token stands for its own text; unless its name as a token of the
 * model means the same bytes, it is no token of the model. */
static bool fill_tokens(struct tokenizer *t, const struct source *src, const char **name_of,
                        struct error *err) {
    uint8_t *is_added = (uint8_t *)xcalloc((size_t)t->vocab_size, 1);
    for (int i = 0; i < t->added_count; i++) is_added[t->added[i].id] = 1;
    int64_t at = 0;
    bool ok = true;
    for (int id = 0; ok && id < t->vocab_size; id++) {
        const char *name = name_of[id];
        char *bytes = t->token_data + at;
        int64_t length = (int64_t)strlen(name), size = name_to_bytes(name, bytes);
        t->in_model[id] = size >= 0 && json_object_get(src->vocab, name) != NULL;
        if (is_added[id]) {
            t->in_model[id] = t->in_model[id] && size == length && !memcmp(bytes, name, (size_t)size);
            memcpy(bytes, name, (size_t)(size = length));
        } else if (size < 0) {
            ok = fail(
                err,
                "not a byte-level vocabulary: token \"%.80s\" (id %d) has a character that stands for no "
                "byte in GPT-2's alphabet",
                name, id);
        }
        t->token_start[id] = at;
        at += size;
    }
    t->token_start[t->vocab_size] = at;
    free(is_added);
    return ok;
}

/* --- merges --- */

static uint32_t model_token(const struct tokenizer *t, const struct source *src, const char *name) {
    const json_t *id = json_object_get(src->vocab, name);
    return id && t->in_model[json_integer_value(id)] ? (uint32_t)json_integer_value(id) : NO_TOKEN;
}

static bool set_merge(struct tokenizer *t, const struct source *src, int rank, const char *left,
                      const char *right, struct error *err) {
    char *both = xasprintf("%s%s", left, right);
    uint32_t l = model_token(t, src, left), r = model_token(t, src, right), id = model_token(t, src, both);
    free(both);
    if (l == NO_TOKEN || r == NO_TOKEN || id == NO_TOKEN)
        return fail(err, "%s: merge %d (\"%.80s\" and \"%.80s\"): %s is not in the vocabulary",
                    src->merges_key, rank, left, right,
                    l == NO_TOKEN   ? "the first"
                    : r == NO_TOKEN ? "the second"
                                    : "their union");
    t->merge_pair[2 * rank] = l;
    t->merge_pair[2 * rank + 1] = r;
    t->merge_id[rank] = id;
    return true;
}

/* "left right" */
static bool set_merge_line(struct tokenizer *t, const struct source *src, int rank, const char *line,
                           struct error *err) {
    const char *space = strchr(line, ' ');
    if (!space || space == line || !space[1] || strchr(space + 1, ' '))
        return fail(err, "%s: merge %d is \"%.80s\", expected two tokens with one space between them",
                    src->merges_key, rank, line);
    char *left = xstrdup(line);
    left[space - line] = 0;
    bool ok = set_merge(t, src, rank, left, space + 1, err);
    free(left);
    return ok;
}

static bool is_version_line(const char *line) { return !strncmp(line, "#version", 8); }

static int64_t count_merges(const struct source *src) {
    int64_t n = 0;
    if (src->merges) {
        n = (int64_t)json_array_size(src->merges);
        if (n && json_is_string(json_array_get(src->merges, 0)))
            n -= is_version_line(json_string_value(json_array_get(src->merges, 0)));
        return n;
    }
    for (const char *p = src->lines; p < src->lines + src->lines_size; p += strlen(p) + 1)
        n += *p && !is_version_line(p);
    return n;
}

static bool fill_merges(struct tokenizer *t, const struct source *src, struct error *err) {
    int rank = 0;
    for (const char *p = src->lines; p && p < src->lines + src->lines_size; p += strlen(p) + 1)
        if (*p && !is_version_line(p) && !set_merge_line(t, src, rank++, p, err)) return false;
    const json_t *v;
    size_t i;
    json_array_foreach(src->merges, i, v) {
        const char *line = json_string_value(v), *left = json_string_value(json_array_get(v, 0)),
                   *right = json_string_value(json_array_get(v, 1));
        if (line) {
            if (i == 0 && is_version_line(line)) continue;
            if (!set_merge_line(t, src, rank++, line, err)) return false;
        } else if (left && right && json_array_size(v) == 2) {
            if (!set_merge(t, src, rank++, left, right, err)) return false;
        } else {
            return fail(err, "%s[%zu]: expected \"left right\" or [\"left\", \"right\"]", src->merges_key, i);
        }
    }
    return true;
}

/* Everything that struct source has. */
static struct tokenizer *from_source(const struct source *src, struct error *err) {
    int64_t extra, count, merges = count_merges(src);
    if (!count_added(src, &extra, err)) return NULL;
    count = (int64_t)json_object_size(src->vocab) + extra;
    if (count > TOKENIZER_MAX_VOCAB || merges > TOKENIZER_MAX_VOCAB) {
        fail(err, "%lld tokens and %lld merges, at most %d can be used", (long long)count, (long long)merges,
             TOKENIZER_MAX_VOCAB);
        return NULL;
    }
    const char **name_of = (const char **)xcalloc((size_t)count + 1, sizeof *name_of);
    struct tokenizer *t = NULL;
    if (list_tokens(src, name_of, (int)count, err)) {
        int64_t bytes = 0;
        for (int64_t id = 0; id < count; id++) bytes += (int64_t)strlen(name_of[id]);
        t = tokenizer_alloc((int)count, bytes, (int)merges);
        if (!fill_added(t, src, err) || !fill_tokens(t, src, name_of, err) || !fill_merges(t, src, err)) {
            tokenizer_free(t);
            t = NULL;
        }
    }
    free(name_of);
    return t;
}

/* --- the pre-tokenizer and the other parts of tokenizer.json --- */

static bool add_split(struct tokenizer *t, const json_t *part, struct error *err) {
    const json_t *pattern = json_object_get(part, "pattern");
    const char *regex = string_at(pattern, "Regex"), *literal = string_at(pattern, "String");
    const char *behavior = string_at(part, "behavior");
    bool invert;
    if (!regex && !literal)
        return fail(err, "pre_tokenizer: Split needs a \"pattern\" of {\"Regex\": ...} or {\"String\": ...}");
    if (!read_flag(&invert, part, "invert", false, err)) return false;
    bool isolated = behavior && !strcmp(behavior, "Isolated");
    bool drop_gaps = behavior && !strcmp(behavior, "Removed") && invert;
    if (!isolated && !drop_gaps)
        return fail(
            err,
            "pre_tokenizer: Split with behavior \"%.40s\"%s is not supported (supported: Isolated, and "
            "Removed with invert)",
            behavior ? behavior : "", invert ? " and invert" : "");
    if (regex) return pretokenizer_add_pattern(&t->pre, regex, drop_gaps, err);
    if (!*literal) return fail(err, "pre_tokenizer: Split with an empty String");
    char *quoted = split_pattern_of_text(literal);
    bool ok = pretokenizer_add_pattern(&t->pre, quoted, drop_gaps, err);
    free(quoted);
    return ok;
}

static bool add_byte_level(struct tokenizer *t, const json_t *part, struct error *err) {
    bool use_regex;
    if (!json_is_boolean(json_object_get(part, "add_prefix_space")))
        return fail(err, "pre_tokenizer: ByteLevel needs \"add_prefix_space\": true or false");
    if (!read_flag(&t->prefix_space, part, "add_prefix_space", false, err) ||
        !read_flag(&use_regex, part, "use_regex", true, err))
        return false;
    if (t->prefix_space && t->pre.stages > 0)
        return fail(err,
                    "pre_tokenizer: ByteLevel with add_prefix_space after another stage is not supported");
    return !use_regex || pretokenizer_add(&t->pre, PRETOK_GPT2, err);
}

static bool add_stage(struct tokenizer *t, const json_t *part, bool *byte_level, struct error *err) {
    const char *type = string_at(part, "type");
    if (type && !strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(part, "pretokenizers"), *v;
        size_t i;
        if (!json_is_array(list)) return fail(err, "pre_tokenizer: Sequence without \"pretokenizers\"");
        json_array_foreach(list, i, v) {
            if (!add_stage(t, v, byte_level, err)) return false;
        }
        return true;
    }
    if (*byte_level)
        return fail(err,
                    "pre_tokenizer: \"%.40s\" after ByteLevel is not supported; ByteLevel must be the last",
                    type ? type : "");
    if (type && !strcmp(type, "ByteLevel")) {
        *byte_level = true;
        return add_byte_level(t, part, err);
    }
    if (type && !strcmp(type, "Split")) return add_split(t, part, err);
    if (type && !strcmp(type, "Digits")) {
        bool single;
        return read_flag(&single, part, "individual_digits", false, err) &&
               pretokenizer_add(&t->pre, single ? PRETOK_DIGIT : PRETOK_DIGITS, err);
    }
    return fail(err,
                "pre_tokenizer of type \"%.40s\" is not supported (supported: ByteLevel, Split, Digits, and "
                "a Sequence of them)",
                type ? type : "");
}

static bool read_normalizer(struct tokenizer *t, const json_t *part, struct error *err) {
    if (is_null(part)) return true;
    const char *type = string_at(part, "type");
    if (type && !strcmp(type, "NFC")) {
        t->nfc = true;
        return true;
    }
    const json_t *list = json_object_get(part, "normalizers"), *v;
    if (type && !strcmp(type, "Sequence") && json_is_array(list)) {
        size_t i;
        json_array_foreach(list, i, v) {
            if (!read_normalizer(t, v, err)) return false;
        }
        return true;
    }
    return fail(err, "normalizer of type \"%.40s\" is not supported (supported: none, NFC)",
                type ? type : "");
}

/* Added tokens, as they appear in normalized text. */
static void normalize_added(struct tokenizer *t) {
    for (int i = 0; t->nfc && i < t->added_count; i++) {
        struct added_token *a = &t->added[i];
        int64_t size;
        uint8_t *text = a->normalized ? normalize_nfc((const uint8_t *)a->content, a->size, &size) : NULL;
        if (!text) continue;
        a->content = (char *)xrealloc(a->content, (size_t)size + 1);
        memcpy(a->content, text, (size_t)size);
        a->content[size] = 0;
        a->size = (int)size;
        free(text);
    }
}

/* Our decoding joins the bytes of tokens, so a decoder that does anything else is refused. */
static bool check_decoder(const json_t *part, struct error *err) {
    if (is_null(part)) return true;
    const char *type = string_at(part, "type");
    const json_t *list = json_object_get(part, "decoders"), *v;
    if (type && !strcmp(type, "ByteLevel")) return true;
    if (type && !strcmp(type, "Sequence") && json_is_array(list)) {
        size_t i;
        json_array_foreach(list, i, v) {
            if (!check_decoder(v, err)) return false;
        }
        return true;
    }
    return fail(err, "decoder of type \"%.40s\" is not supported (supported: ByteLevel)", type ? type : "");
}

static char *part_text(const json_t *part) {
    char *text = is_null(part) ? NULL : json_dumps(part, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!text) return xstrdup("null");
    char *copy = xstrdup(text); /* jansson has its own allocator */
    free(text);
    return copy;
}

static bool check_model(const json_t *model, struct error *err) {
    if (!json_is_object(model)) return fail(err, "no \"model\" in it: is this a tokenizer.json?");
    const char *type = string_at(model, "type"); /* GPT-2's published file has none */
    if (json_object_get(model, "type") && (!type || strcmp(type, "BPE")))
        return fail(err, "model type \"%.40s\" is not supported, only byte-level BPE", type ? type : "");
    if (!json_is_object(json_object_get(model, "vocab")))
        return fail(err, "model.vocab is missing or no object of token: id");
    if (!json_is_array(json_object_get(model, "merges")))
        return fail(err, "model.merges is missing or no array");
    const json_t *dropout = json_object_get(model, "dropout");
    if (!is_null(dropout) && json_number_value(dropout) != 0)
        return fail(err, "model.dropout is set: its tokens are random; set it to null");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < ARRAY_LENGTH(affixes); i++) {
        const json_t *v = json_object_get(model, affixes[i]);
        if (!is_null(v) && !(json_is_string(v) && json_string_length(v) == 0))
            return fail(err, "model.%s is set, which is not byte-level BPE", affixes[i]);
    }
    return true;
}

/* --- loading --- */

/* The tokenizers of other programs, by name. */
static bool check_kind(const char *path, struct error *err) {
    struct mapped_file f;
    if (!file_map(&f, path, err)) return false;
    size_t n = strlen(path), line = 0;
    bool llmc = f.size >= 4 && memcmp(f.data, "\xc8\xd7\x34\x01", 4) == 0; /* 20240328 */
    while (line < (size_t)f.size && line < 200 && f.data[line] != '\n') line++;
    bool tiktoken = (n > 9 && !strcmp(path + n - 9, ".tiktoken")) ||
                    (line > 2 && line < (size_t)f.size && f.data[0] != '{' && f.data[0] != '[' &&
                     memchr(f.data, ' ', line) && f.data[line - 1] >= '0' && f.data[line - 1] <= '9');
    file_unmap(&f);
    if (!llmc && !tiktoken) return true;
    return fail(
        err,
        "%s: %s; expected Hugging Face's tokenizer.json (AutoTokenizer.from_pretrained(NAME)"
        ".save_pretrained(DIR) writes it)",
        path,
        llmc ? "is llm.c's table of tokens, which has no merges"
             : "is tiktoken's list of tokens, which has neither special tokens nor the pattern of words");
}

static json_t *parse_json(const char *path, struct error *err) {
    json_t *root = check_kind(path, err) ? json_file_load(path, err) : NULL;
    if (!root || json_is_object(root)) return root;
    fail(err, "%s: expected a JSON object", path);
    json_decref(root);
    return NULL;
}

static struct tokenizer *from_root(const json_t *root, const json_t *added, struct error *err) {
    const json_t *model = json_object_get(root, "model");
    if (!check_model(model, err)) return NULL;
    struct source src = {.vocab = json_object_get(model, "vocab"),
                         .added = added,
                         .merges = json_object_get(model, "merges"),
                         .merges_key = "model.merges"};
    struct tokenizer *t = from_source(&src, err);
    if (!t) return NULL;
    const json_t *normalizer = json_object_get(root, "normalizer"),
                 *pre = json_object_get(root, "pre_tokenizer"), *decoder = json_object_get(root, "decoder");
    bool byte_level = false;
    bool ok = read_flag(&t->ignore_merges, model, "ignore_merges", false, err) &&
              read_normalizer(t, normalizer, err) && check_decoder(decoder, err) &&
              (is_null(pre) || add_stage(t, pre, &byte_level, err)) &&
              (byte_level || fail(err, "pre_tokenizer without ByteLevel: only byte-level BPE is supported"));
    t->json_normalizer = part_text(normalizer);
    t->json_pre_tokenizer = part_text(pre);
    t->json_post_processor = part_text(json_object_get(root, "post_processor"));
    t->json_decoder = part_text(decoder);
    normalize_added(t);
    if (ok && tokenizer_finish(t, err)) return t;
    tokenizer_free(t);
    return NULL;
}

struct tokenizer *tokenizer_from_json(const json_t *root, const char *name, struct error *err) {
    const json_t *added = json_object_get(root, "added_tokens");
    struct error reason;
    struct tokenizer *t = from_root(root, is_null(added) ? NULL : added, &reason);
    if (!t) fail(err, "%s: %.900s", name, reason.message);
    return t;
}

/* `dir`: where further added tokens are named, or NULL. */
static struct tokenizer *load_json(const char *path, const char *dir, struct error *err) {
    json_t *root = parse_json(path, err), *added = json_object_get(root, "added_tokens"), *all = NULL;
    if (!root) return NULL;
    struct tokenizer *t = NULL;
    if (!is_null(added) && !json_is_array(added)) {
        fail(err, "%s: added_tokens is no array", path);
    } else if (!dir || (all = tokenizer_added_beside(dir, is_null(added) ? NULL : added, err))) {
        struct error reason;
        t = from_root(root, dir ? all : is_null(added) ? NULL : added, &reason);
        if (!t) fail(err, "%s: %.900s", path, reason.message);
    }
    json_decref(all);
    json_decref(root);
    return t;
}

/* Turns lines that end with \n or \r\n into strings that end with NUL. */
static bool read_lines(struct source *src, const char *path, struct error *err) {
    struct mapped_file f;
    if (!file_map(&f, path, err)) return false;
    bool ok = f.size == 0 || !memchr(f.data, 0, (size_t)f.size) ||
              fail(err, "%s: has a NUL byte: not a list of merges", path);
    if (ok) {
        src->lines = (char *)xcalloc(1, (size_t)f.size + 1);
        src->lines_size = f.size + 1;
        if (f.size) memcpy(src->lines, f.data, (size_t)f.size);
        for (char *p = src->lines; (p = strchr(p, '\n')); *p++ = 0)
            if (p > src->lines && p[-1] == '\r') p[-1] = 0;
    }
    file_unmap(&f);
    return ok;
}

/* GPT-2's form. Its vocabulary lists <|endoftext|> without marking it as special. */
static struct tokenizer *from_pair(const struct source *src, struct error *err) {
    static const char end[] = "<|endoftext|>";
    struct tokenizer *t = from_source(src, err);
    if (!t) return NULL;
    uint32_t id = model_token(t, src, end);
    bool listed = false;
    for (int i = 0; i < t->added_count; i++) listed |= !strcmp(t->added[i].content, end);
    if (id != NO_TOKEN && !listed) tokenizer_add_special(t, end, id);
    if (pretokenizer_add(&t->pre, PRETOK_GPT2, err) && tokenizer_finish(t, err)) return t;
    tokenizer_free(t);
    return NULL;
}

static struct tokenizer *load_pair(const char *vocab_path, const char *merges_path, const char *dir,
                                   struct error *err) {
    struct source src = {.vocab = parse_json(vocab_path, err), .merges_key = "merges"};
    if (!src.vocab) return NULL;
    struct tokenizer *t = NULL;
    json_t *added = tokenizer_added_beside(dir, NULL, err);
    src.added = added;
    if (added && read_lines(&src, merges_path, err)) {
        struct error reason;
        t = from_pair(&src, &reason);
        if (!t) fail(err, "%s and %s: %.700s", vocab_path, merges_path, reason.message);
    }
    free(src.lines);
    json_decref(added);
    json_decref(src.vocab);
    return t;
}

struct tokenizer *tokenizer_load(const char *path, struct error *err) {
    if (!path_is_directory(path)) return load_json(path, NULL, err);
    static const char *const pairs[][2] = {{"encoder.json", "vocab.bpe"}, {"vocab.json", "merges.txt"}};
    struct tokenizer *t = NULL;
    char *json = xasprintf("%s/tokenizer.json", path);
    bool found = path_exists(json);
    if (found) t = load_json(json, path, err);
    free(json);
    for (size_t i = 0; i < ARRAY_LENGTH(pairs) && !found; i++) {
        char *vocab = xasprintf("%s/%s", path, pairs[i][0]), *merges = xasprintf("%s/%s", path, pairs[i][1]);
        found = path_exists(vocab) && path_exists(merges);
        if (found) t = load_pair(vocab, merges, path, err);
        free(vocab);
        free(merges);
    }
    if (t && !tokenizer_chat_template_beside(t, path, err)) {
        tokenizer_free(t);
        t = NULL;
    }
    if (!found)
        fail(err,
             "%s: no tokenizer in this directory: expected tokenizer.json, or encoder.json and vocab.bpe, or "
             "vocab.json and merges.txt",
             path);
    return t;
}
