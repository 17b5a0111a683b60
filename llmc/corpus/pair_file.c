#include "llmc/corpus/pair_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* --- reading --- */

static void add_pair(struct pair_file *f, char *source, char *target, int64_t line) {
    if (f->count == f->capacity) {
        f->capacity = 2 * f->capacity + 256;
        f->pairs = (struct pair *)xrealloc(f->pairs, (size_t)f->capacity * sizeof *f->pairs);
    }
    f->pairs[f->count++] = (struct pair){source, target, line};
}

static bool add_json(struct pair_file *f, const char *line, int64_t size, const struct line_place *at,
                     struct error *err) {
    json_t *object = line_json(line, size, at, err);
    if (!object) return false;
    const json_t *source = json_object_get(object, "source"), *target = json_object_get(object, "target");
    bool ok = json_is_string(source) && json_is_string(target);
    if (ok)
        add_pair(f, xstrdup(json_string_value(source)), xstrdup(json_string_value(target)), at->line);
    else
        fail(err,
             "%s:%" PRId64
             ": expected {\"source\": TEXT, \"target\": TEXT}; found %s whose \"source\" is %s and "
             "\"target\" is %s",
             at->path, at->line, json_kind(object), json_kind(source), json_kind(target));
    json_decref(object);
    return ok;
}

static bool add_columns(struct pair_file *f, const char *line, int64_t size, const struct line_place *at,
                        struct error *err) {
    int64_t tabs = 0, tab = 0;
    for (int64_t i = 0; i < size; i++)
        if (line[i] == '\t') {
            tabs++;
            tab = i;
        }
    if (tabs != 1 || memchr(line, 0, (size_t)size))
        return fail(err, "%s:%" PRId64 ": expected a source, a tab and a target; found %" PRId64 " tabs%s",
                    at->path, at->line, tabs, tabs == 1 ? " and a NUL byte" : "");
    add_pair(f, xasprintf("%.*s", (int)tab, line), xasprintf("%.*s", (int)(size - tab - 1), line + tab + 1),
             at->line);
    return true;
}

static bool read_line(void *user, const char *line, int64_t size, const struct line_place *at,
                      struct error *err) {
    struct pair_file *f = (struct pair_file *)user;
    if (f->count == 0) f->json = line[strspn(line, " \t")] == '{';
    bool ok = f->json ? add_json(f, line, size, at, err) : add_columns(f, line, size, at, err);
    const struct pair *p = ok ? &f->pairs[f->count - 1] : NULL;
    return ok &&
           (!is_blank(p->target, (int64_t)strlen(p->target)) ||
            fail(err, "%s:%" PRId64 ": the target is empty: there is nothing to learn", at->path, at->line));
}

bool pair_file_read(struct pair_file *f, const char *path, struct error *err) {
    *f = (struct pair_file){.path = xstrdup(path)};
    bool ok = read_lines(path, read_line, f, err);
    if (ok && f->count == 0) ok = fail(err, "%s: holds no pair", path);
    if (!ok) pair_file_free(f);
    return ok;
}

void pair_file_free(struct pair_file *f) {
    for (int64_t i = 0; i < f->count; i++) {
        free(f->pairs[i].source);
        free(f->pairs[i].target);
    }
    free(f->pairs);
    free(f->path);
    *f = (struct pair_file){0};
}

bool *pair_file_split(const struct pair_file *f, double fraction, struct error *err) {
    uint64_t *hash = (uint64_t *)xmalloc((size_t)f->count * sizeof *hash);
    for (int64_t i = 0; i < f->count; i++)
        hash[i] = XXH3_64bits_withSeed(f->pairs[i].source, strlen(f->pairs[i].source),
                                       XXH3_64bits(f->pairs[i].target, strlen(f->pairs[i].target)));
    bool *flags = split_samples(hash, f->count, fraction, f->path, "pair", err);
    free(hash);
    return flags;
}

/* --- tokens --- */

static void put_end(const struct tokenizer *t, struct token_buffer *ids) {
    token_buffer_reserve(ids, 1);
    ids->ids[ids->count++] = (uint32_t)tokenizer_end_of_text(t);
}

bool encode_source(const struct tokenizer *t, const char *source, struct token_buffer *ids,
                   struct error *err) {
    check(tokenizer_end_of_text(t) >= 0, "pairs need a tokenizer with <|endoftext|>");
    ids->count = 0;
    put_end(t, ids);
    if (tokenizer_encode(t, source, (int64_t)strlen(source), ids) < 0)
        return fail(err, "a source cannot be encoded: the tokenizer's Split pattern exceeds PCRE2's matching "
                         "limit on it");
    put_end(t, ids);
    return true;
}

struct pairs_as {
    const struct pair_file *f;
    const struct tokenizer *t;
};

static bool encode_pair(const void *user, int64_t i, struct chat_tokens *out, struct error *err) {
    const struct pairs_as *as = (const struct pairs_as *)user;
    const struct pair *p = &as->f->pairs[i];
    struct error why;
    bool ok = encode_source(as->t, p->source, &out->ids, &why);
    int64_t given = out->ids.count;
    ok = ok && (tokenizer_encode(as->t, p->target, (int64_t)strlen(p->target), &out->ids) >= 0 ||
                fail(&why, "the target cannot be encoded"));
    if (!ok) return fail(err, "%s:%" PRId64 ": %s", as->f->path, p->line, why.message);
    put_end(as->t, &out->ids);
    chat_mark_learned(out, 0, false);
    chat_mark_learned(out, given, true);
    return true;
}

struct dataset *pair_file_encode(const struct pair_file *f, const bool *flags, bool flag,
                                 const struct tokenizer *t, int64_t *longest, struct error *err) {
    struct pairs_as as = {f, t};
    struct sample_set s = {f->path, f->count, flags, flag, encode_pair, &as, tokenizer_vocab_size(t)};
    return encode_samples(&s, longest, err);
}
