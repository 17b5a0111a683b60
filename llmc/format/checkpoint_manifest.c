/* trainer.json. The file lists size and XXH3 checksum of every other file of the checkpoint, and ends with
 * a checksum of itself, so that damage anywhere in the directory is found before anything is loaded. */
#include "llmc/format/checkpoint_manifest.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "llmc/base/file.h"
#include "llmc/base/json_file.h"

enum { FORMAT = 1, LARGE = 1 << 20 };

void train_state_free(struct train_state *s) {
    json_decref(s->options);
    json_decref(s->extra);
    memset(s, 0, sizeof *s);
}

/* --- trainer.json --- */

/* In pieces whose pages are given back, so that a checkpoint does not count as memory of the run for as
 * long as it is checked. */
static uint64_t hash_mapped(const struct mapped_file *f) {
    enum { PIECE = 16 << 20 }; /* a multiple of the page size */
    XXH3_state_t *state = XXH3_createState();
    check(state && XXH3_64bits_reset(state) == XXH_OK, "out of host memory");
    for (int64_t at = 0; at < f->size; at += PIECE) {
        size_t bytes = (size_t)min_i64(PIECE, f->size - at);
        XXH3_64bits_update(state, f->data + at, bytes);
        madvise((void *)(uintptr_t)(f->data + at), bytes, MADV_DONTNEED);
    }
    uint64_t hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

bool checkpoint_digest(struct checkpoint_file *file, const char *dir, bool with_hash, struct error *err) {
    char *path = xasprintf("%s/%s", dir, file->name);
    struct mapped_file f;
    bool ok = file_map(&f, path, err);
    if (ok) {
        file->size = f.size;
        file->hash = with_hash ? hash_mapped(&f) : 0;
        file_unmap(&f);
    }
    free(path);
    return ok;
}

/* The file ends with its own checksum: of all bytes before the comma in
 *     ,\n  "xxh3": "0123456789abcdef"\n}\n
 * so that it is JSON to everybody else. */
#define TAIL_FORMAT ",\n  \"xxh3\": \"%016" PRIx64 "\"\n}\n"
enum { TAIL_BYTES = 33 };

static json_t *state_to_json(const struct train_state *s) {
    char data[32], contents[32], validation[32];
    snprintf(data, sizeof data, "%016" PRIx64, s->data);
    snprintf(contents, sizeof contents, "%016" PRIx64, s->contents);
    snprintf(validation, sizeof validation, "%016" PRIx64, s->validation);
    json_t *best = isfinite(s->best_val_loss) ? json_real(s->best_val_loss) : json_null();
    json_t *none = json_null();
    json_t *root = json_pack("{s:i, s:I, s:I, s:I, s:I, s:s, s:s, s:s, s:o, s:O, s:O}", "format", FORMAT,
                             "step", (json_int_t)s->step, "sample", (json_int_t)s->sample, "epoch_samples",
                             (json_int_t)s->epoch_samples, "tokens", (json_int_t)s->tokens, "data", data,
                             "contents", contents, "validation", validation, "best_val_loss", best, "options",
                             s->options ? s->options : none, "extra", s->extra ? s->extra : none);
    check(root != NULL, "the state of the training cannot be written as JSON");
    json_decref(none);
    return root;
}

bool checkpoint_write_manifest(const char *dir, const struct train_state *s,
                               const struct checkpoint_file *file, int64_t count, struct error *err) {
    json_t *root = state_to_json(s), *files = json_object();
    json_object_set_new(root, "files", files);
    for (int64_t i = 0; i < count; i++) {
        char hash[32];
        snprintf(hash, sizeof hash, "%016" PRIx64, file[i].hash);
        json_object_set_new(files, file[i].name,
                            json_pack("{s:I, s:s}", "bytes", (json_int_t)file[i].size, "xxh3", hash));
    }
    char *text = json_dumps(root, JSON_INDENT(2)); /* reals with 17 digits: exact */
    json_decref(root);
    check(text != NULL, "%s/trainer.json: cannot be written as JSON", dir);
    size_t body = strlen(text) - 2; /* without the final "\n}" */
    char *path = xasprintf("%s/trainer.json", dir);
    struct writer w;
    bool ok = writer_open(&w, path, err);
    if (ok) {
        writer_put(&w, text, body);
        writer_printf(&w, TAIL_FORMAT, XXH3_64bits(text, body));
        ok = writer_close(&w, err);
    }
    free(path);
    free(text);
    return ok;
}

static bool check_tail(const struct mapped_file *f, struct error *err) {
    if (f->size <= TAIL_BYTES) return fail(err, "%s: is %" PRId64 " bytes long: truncated", f->path, f->size);
    size_t body = (size_t)f->size - TAIL_BYTES;
    char tail[TAIL_BYTES + 1];
    snprintf(tail, sizeof tail, TAIL_FORMAT, XXH3_64bits(f->data, body));
    return memcmp(f->data + body, tail, TAIL_BYTES) == 0 ||
           fail(err, "%s: the checksum at its end does not match: damaged, truncated or edited", f->path);
}

/* The whole of trainer.json, its own checksum verified. */
static json_t *load_trainer(const char *dir, struct error *err) {
    char *path = xasprintf("%s/trainer.json", dir);
    struct mapped_file f;
    json_t *root = NULL;
    if (!path_exists(path)) {
        fail(err,
             "%s: has no trainer.json: perhaps a model to start from (--model), but no checkpoint that a "
             "training can be resumed from",
             dir);
    } else if (file_map(&f, path, err)) {
        if (check_tail(&f, err)) root = json_file_load(path, err);
        file_unmap(&f);
    }
    json_t *format = json_object_get(root, "format");
    if (root && json_integer_value(format) != FORMAT) {
        fail(err, "%s: \"format\" is %" JSON_INTEGER_FORMAT ", this version of the engine knows only %d",
             path, json_integer_value(format), FORMAT);
        json_decref(root);
        root = NULL;
    }
    free(path);
    return root;
}

static bool get_count(int64_t *out, const json_t *root, const char *key, const char *dir, struct error *err) {
    const json_t *field = json_object_get(root, key);
    *out = (int64_t)json_integer_value(field);
    return (json_is_integer(field) && *out >= 0) ||
           fail(err, "%s/trainer.json: \"%s\" is not an integer of 0 or more", dir, key);
}

static bool get_hex(uint64_t *out, const json_t *root, const char *key, const char *dir, struct error *err) {
    const char *text = json_string_value(json_object_get(root, key));
    if (!text || strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return fail(err, "%s/trainer.json: \"%s\" is not a string of 16 hexadecimal digits", dir, key);
    *out = strtoull(text, NULL, 16);
    return true;
}

/* Of a key that older checkpoints do not have: then 0. */
static bool get_later_count(int64_t *out, const json_t *root, const char *key, const char *dir,
                            struct error *err) {
    return !json_object_get(root, key) || get_count(out, root, key, dir, err);
}

static bool get_later_hex(uint64_t *out, const json_t *root, const char *key, const char *dir,
                          struct error *err) {
    return !json_object_get(root, key) || get_hex(out, root, key, dir, err);
}

static json_t *object_or_null(const json_t *root, const char *key) {
    json_t *field = json_object_get(root, key);
    return json_is_object(field) ? json_incref(field) : NULL;
}

bool checkpoint_load_state(struct train_state *s, const char *dir, struct error *err) {
    memset(s, 0, sizeof *s);
    json_t *root = load_trainer(dir, err);
    bool ok = root && get_count(&s->step, root, "step", dir, err) &&
              get_count(&s->sample, root, "sample", dir, err) &&
              get_count(&s->tokens, root, "tokens", dir, err) && get_hex(&s->data, root, "data", dir, err) &&
              get_later_hex(&s->contents, root, "contents", dir, err) &&
              get_later_hex(&s->validation, root, "validation", dir, err) &&
              get_later_count(&s->epoch_samples, root, "epoch_samples", dir, err);
    if (ok) {
        const json_t *best = json_object_get(root, "best_val_loss");
        s->best_val_loss = json_is_number(best) ? json_number_value(best) : (double)NAN;
        s->options = object_or_null(root, "options");
        s->extra = object_or_null(root, "extra");
    }
    json_decref(root);
    return ok;
}

/* --- verifying --- */

static bool verify_file(const char *dir, const char *name, const json_t *entry, bool checksums,
                        struct error *err) {
    struct checkpoint_file found = {.size = 0};
    int64_t size = (int64_t)json_integer_value(json_object_get(entry, "bytes"));
    uint64_t hash = 0;
    if (!get_hex(&hash, entry, "xxh3", dir, err)) return false;
    if (*name == '.' || strchr(name, '/') || strlen(name) >= sizeof found.name)
        return fail(err, "%s/trainer.json: \"%.100s\" is not the name of a file of a checkpoint", dir, name);
    snprintf(found.name, sizeof found.name, "%s", name);
    if (!checkpoint_digest(&found, dir, checksums, err)) return false;
    if (found.size != size)
        return fail(err, "%s/%s: is %" PRId64 " bytes long, trainer.json says %" PRId64 ": %s", dir, name,
                    found.size, size, found.size < size ? "truncated" : "over-long");
    return !checksums || found.hash == hash ||
           fail(err, "%s/%s: checksum (XXH3) is %016" PRIx64 ", trainer.json says %016" PRIx64 ": damaged",
                dir, name, found.hash, hash);
}

/* Whether a directory is complete, and with `checksums` also undamaged; large files on a thread each. */
bool checkpoint_verify(const char *dir, bool checksums, struct error *err) {
    json_t *root = load_trainer(dir, err), *files = json_object_get(root, "files"), *entry;
    if (!root) return false;
    int64_t count = 0, bad = -1, bytes = 0, n = (int64_t)json_object_size(files);
    const char *name, **names = (const char **)xmalloc((size_t)n * sizeof *names);
    json_t **entries = (json_t **)xmalloc((size_t)n * sizeof *entries);
    json_object_foreach(files, name, entry) {
        bytes += (int64_t)json_integer_value(json_object_get(entry, "bytes"));
        names[count] = name;
        entries[count++] = entry;
    }
    struct error *errors = (struct error *)xmalloc((size_t)n * sizeof *errors);
#pragma omp parallel for schedule(dynamic, 1) if (checksums && bytes >= LARGE)
    for (int64_t i = 0; i < count; i++)
        if (!verify_file(dir, names[i], entries[i], checksums, &errors[i])) {
#pragma omp critical
            bad = i;
        }
    if (bad >= 0) fail(err, "%s", errors[bad].message);
    free(errors);
    free(entries);
    free(names);
    json_decref(root);
    return bad < 0;
}
