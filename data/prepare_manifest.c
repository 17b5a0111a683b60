/* The manifest describes the shards, and an interrupted run resumes from it. Nothing in it depends on time,
 * machine or number of threads, so that the same sources and options give the same bytes. */
#include "data/prepare.h"

#include "llmc/base/file.h"
#include "llmc/base/json_file.h"
#include "llmc/corpus/shard.h"
#include "llmc/corpus/shard_manifest.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MANIFEST_VERSION = 1 };
static const char manifest_format[] = SHARD_MANIFEST_FORMAT;

static char *manifest_path(const char *out, bool complete) {
    return xasprintf("%s/manifest.json%s", out, complete ? "" : ".partial");
}

/* --- writing --- */

static json_t *hex(uint64_t hash) { return json_sprintf("%016" PRIx64, hash); }

/* A path may be any bytes, JSON only holds Unicode. */
static json_t *text_of(const char *path) {
    json_t *value = json_string(path);
    if (value) return value;
    char *copy = xstrdup(path);
    for (char *c = copy; *c; c++)
        if (*c & 0x80) *c = '?';
    value = json_string(copy);
    free(copy);
    return value;
}

/* Everything that decides what the shards hold. */
static json_t *describe_options(const struct prepare_options *o) {
    static const char *const formats[] = {"auto", "text", "jsonl"};
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:f, s:I, s:I}", "tokenizer", o->tokenizer, "name", o->name,
                     "format", formats[o->format], "field", o->field ? o->field : "text", "shard-tokens",
                     (json_int_t)o->shard_tokens, "validation-fraction", o->validation_fraction, "batch-size",
                     (json_int_t)o->batch_bytes, "tokenizer-text", (json_int_t)o->tokenizer_text);
}

static json_t *describe_tokenizer(const struct tokenizer *t) {
    return json_pack("{s:s, s:o, s:i, s:i}", "file", "tokenizer.json", "hash", hex(tokenizer_hash(t)),
                     "vocab_size", tokenizer_vocab_size(t), "end_of_text", tokenizer_end_of_text(t));
}

static const char *const remark_keys[TEXT_REMARKS] = {[REMARK_MALFORMED] = "malformed_lines",
                                                      [REMARK_NO_FIELD] = "lines_without_field",
                                                      [REMARK_INVALID_UTF8] = "documents_not_utf8",
                                                      [REMARK_NUL] = "documents_with_nul",
                                                      [REMARK_SEPARATORS] = "separators_in_lines"};

static json_t *describe_source(const struct text_source *s, const struct source_counts *c) {
    json_t *out = json_pack("{s:o, s:I, s:I, s:I}", "path", text_of(s->path), "bytes",
                            (json_int_t)(s->size >= 0 || !c->done ? s->size : c->raw_bytes), "documents",
                            (json_int_t)c->documents, "text_bytes", (json_int_t)c->text_bytes);
    if (c->left_out) json_object_set_new(out, "left_out", json_string(c->left_out));
    if (c->done && !c->left_out) {
        json_object_set_new(out, "format", json_string(c->json ? "jsonl" : "text"));
        json_object_set_new(out, "xxh3", hex(c->hash));
    }
    for (int k = 0; k < TEXT_REMARKS; k++)
        if (c->remarks[k]) json_object_set_new(out, remark_keys[k], json_integer((json_int_t)c->remarks[k]));
    return out;
}

static json_t *describe_side(const struct prepare *p, int side, bool complete) {
    json_t *out = json_pack("{s:I, s:I}", "documents", (json_int_t)p->documents[side], "text_bytes",
                            (json_int_t)p->text_bytes[side]);
    json_t *shards = shard_set_describe(&p->side[side], complete);
    json_object_update(out, shards);
    json_decref(shards);
    return out;
}

bool manifest_write(const struct prepare *p, bool complete, struct error *err) {
    json_t *sources = json_array();
    for (int64_t i = 0; i < p->sources.count; i++)
        json_array_append_new(sources, describe_source(&p->sources.sources[i], &p->counts[i]));
    json_t *root = json_pack("{s:s, s:i, s:o, s:o, s:i, s:o, s:o, s:o}", "format", manifest_format, "version",
                             MANIFEST_VERSION, "options", describe_options(p->o), "tokenizer",
                             describe_tokenizer(p->tokenizer), "bytes_per_token", p->side[TRAIN].token_bytes,
                             "train", describe_side(p, TRAIN, complete), "validation",
                             describe_side(p, VALIDATION, complete), "sources", sources);
    if (!complete)
        json_object_set_new(root, "next",
                            json_pack("{s:I, s:I, s:I, s:b}", "source", (json_int_t)p->next.source, "offset",
                                      (json_int_t)p->next.offset, "line", (json_int_t)p->next.line,
                                      "finished", p->finished));
    char *text = json_dumps(root, JSON_INDENT(1));
    json_decref(root);
    check(text, "manifest: cannot be written as JSON");
    char *path = manifest_path(p->o->out, complete);
    bool ok = write_file_atomic(path, text, strlen(text), err);
    free(path);
    free(text);
    return ok;
}

/* --- reading --- */

json_t *manifest_read(const char *out, bool *complete, struct error *err) {
    err->message[0] = 0;
    for (int partial = 1; partial >= 0; partial--) {
        char *path = manifest_path(out, !partial);
        json_t *root = NULL;
        bool there = path_exists(path);
        if (there) {
            root = json_file_load(path, err);
            json_int_t version = json_integer_value(json_object_get(root, "version"));
            const char *format = json_string_value(json_object_get(root, "format"));
            if (root && (!format || strcmp(format, manifest_format) != 0)) {
                fail(err, "%s: was not written by prepare: give another --out", path);
                json_decref(root);
                root = NULL;
            }
            if (root && version != MANIFEST_VERSION) {
                fail(err, "%s: version %lld, expected %d", path, (long long)version, MANIFEST_VERSION);
                json_decref(root);
                root = NULL;
            }
            *complete = !partial;
        }
        free(path);
        if (there) return root;
    }
    return NULL;
}

/* --- comparing --- */

/* `what` precedes the name of each member that differs ("--", "tokenizer "). */
static bool same_members(const json_t *before, json_t *now, const char *what, struct error *err) {
    const char *key;
    json_t *value;
    bool same = true;
    json_object_foreach(now, key, value) {
        json_t *old = json_object_get(before, key);
        if (!same || json_equal(old, value)) continue;
        char *a = old ? json_dumps(old, JSON_ENCODE_ANY) : NULL, *b = json_dumps(value, JSON_ENCODE_ANY);
        same = fail(err,
                    "--resume: %s%s is %s now, but was %s in the interrupted run: give the same, or "
                    "--overwrite to start over",
                    what, key, b, a ? a : "not given");
        free(a);
        free(b);
    }
    json_decref(now);
    return same;
}

static bool same_sources(const struct prepare *p, const json_t *list, struct error *err) {
    if (json_array_size(list) != (size_t)p->sources.count)
        return fail(err, "--resume: there are %lld input files now, but were %zu in the interrupted run",
                    (long long)p->sources.count, json_array_size(list));
    for (int64_t i = 0; i < p->sources.count; i++) {
        const struct text_source *s = &p->sources.sources[i];
        const json_t *entry = json_array_get(list, (size_t)i);
        json_t *path = text_of(s->path);
        json_int_t bytes = json_integer_value(json_object_get(entry, "bytes"));
        bool same = json_equal(path, json_object_get(entry, "path"));
        json_decref(path);
        if (!same)
            return fail(err, "--resume: input file %lld is %s now, but was %s in the interrupted run",
                        (long long)i + 1, s->path, json_string_value(json_object_get(entry, "path")));
        if (s->size >= 0 && bytes != s->size)
            return fail(err, "--resume: %s has %lld bytes now, but had %lld in the interrupted run", s->path,
                        (long long)s->size, (long long)bytes);
    }
    return true;
}

/* --- restoring --- */

static int64_t integer(const json_t *object, const char *key) {
    return (int64_t)json_integer_value(json_object_get(object, key));
}

static void restore_source(struct source_counts *c, const json_t *entry) {
    const char *hash = json_string_value(json_object_get(entry, "xxh3")),
               *left_out = json_string_value(json_object_get(entry, "left_out")),
               *format = json_string_value(json_object_get(entry, "format"));
    c->documents = integer(entry, "documents");
    c->text_bytes = integer(entry, "text_bytes");
    for (int k = 0; k < TEXT_REMARKS; k++) c->remarks[k] = integer(entry, remark_keys[k]);
    c->raw_bytes = integer(entry, "bytes");
    c->left_out = left_out ? xstrdup(left_out) : NULL;
    c->json = format && strcmp(format, "jsonl") == 0;
    c->done = left_out || (hash && sscanf(hash, "%16" SCNx64, &c->hash) == 1);
}

bool manifest_restore(struct prepare *p, const json_t *m, bool complete, struct error *err) {
    const json_t *sources = json_object_get(m, "sources");
    if (!same_members(json_object_get(m, "options"), describe_options(p->o), "--", err) ||
        !same_members(json_object_get(m, "tokenizer"), describe_tokenizer(p->tokenizer), "the tokenizer's ",
                      err) ||
        !same_sources(p, sources, err))
        return false;
    for (int64_t i = 0; i < p->sources.count; i++)
        restore_source(&p->counts[i], json_array_get(sources, (size_t)i));
    static const char *const names[SIDES] = {"train", "validation"};
    for (int side = 0; side < SIDES; side++) {
        const json_t *described = json_object_get(m, names[side]);
        p->documents[side] = integer(described, "documents");
        p->text_bytes[side] = integer(described, "text_bytes");
        if (!shard_set_restore(&p->side[side], described, err)) return false;
    }
    const json_t *next = json_object_get(m, "next");
    p->next = (struct source_cursor){integer(next, "source"), integer(next, "offset"), integer(next, "line")};
    p->finished = complete || json_is_true(json_object_get(next, "finished"));
    if (complete) p->next = (struct source_cursor){.source = p->sources.count};
    if (p->next.source < 0 || p->next.source > p->sources.count || p->next.offset < 0 || p->next.line < 0)
        return fail(err, "%s/manifest.json.partial: source %lld at byte %lld cannot be where the run was",
                    p->o->out, (long long)p->next.source, (long long)p->next.offset);
    return true;
}

/* --- removing --- */

/* NAME_train_000000.bin or NAME_val_000000.bin, also with .partial */
static bool is_shard_name(const char *file, const char *name) {
    size_t n = strlen(name);
    int used = 0;
    if (strncmp(file, name, n) != 0) return false;
    file += n;
    if (strncmp(file, "_train_", 7) == 0)
        file += 7;
    else if (strncmp(file, "_val_", 5) == 0)
        file += 5;
    else
        return false;
    sscanf(file, "%*[0-9]%n", &used);
    return used >= 6 && (strcmp(file + used, ".bin") == 0 || strcmp(file + used, ".bin.partial") == 0);
}

static bool is_partial(const char *file) {
    const char *dot = strrchr(file, '.');
    return dot && strcmp(dot, ".partial") == 0;
}

bool manifest_check_names(const char *out, const char *name, bool overwrite, struct error *err) {
    DIR *dir = opendir(out);
    if (!dir) return fail(err, "%s: cannot list directory: %s", out, strerror(errno));
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(dir)) != NULL;) {
        if (!is_shard_name(e->d_name, name) || is_partial(e->d_name)) continue;
        char *path = xasprintf("%s/%s", out, e->d_name);
        if (!overwrite)
            ok = fail(
                err,
                "%s is there already, and no manifest.json says what it belongs to: give another --out or "
                "--name, or --overwrite to delete the shards of this name",
                path);
        else if (!shard_is_one(path))
            ok = fail(err,
                      "%s is no token shard, so --overwrite does not delete it: give another --out or --name",
                      path);
        free(path);
    }
    closedir(dir);
    return ok;
}

bool manifest_clear(const char *out, const char *name, bool shards_too, struct error *err) {
    DIR *dir = opendir(out);
    if (!dir) return fail(err, "%s: cannot list directory: %s", out, strerror(errno));
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(dir)) != NULL;) {
        const char *file = e->d_name;
        bool manifest = strcmp(file, "manifest.json") == 0 || strcmp(file, "manifest.json.partial") == 0;
        bool ours = is_shard_name(file, name) ? shards_too || is_partial(file) : shards_too && manifest;
        if (ours && unlinkat(dirfd(dir), file, 0) != 0)
            ok = fail(err, "%s/%s: cannot remove: %s", out, file, strerror(errno));
    }
    closedir(dir);
    return ok;
}
