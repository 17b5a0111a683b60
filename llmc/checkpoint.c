/* Checkpoint directories: writing one, the manifest trainer.json, finding, deleting. The tensors' way between
 * device and file is checkpoint_load.c's and model_file.c's.
 *
 * Order: trainer.json: checksums, writing, reading; saving; the checkpoints of a run: listing, verifying,
 * finding, deleting. */
#include "llmc/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "llmc/model_file.h"

enum { FORMAT = 1, LARGE = 1 << 20 };

/* Every file that can stand in a checkpoint beside trainer.json, in the order they are written. */
static const char *const file_names[] = {"config.json", "generation_config.json", "model.safetensors",
                                         "optimizer.safetensors", "tokenizer.json"};

void train_state_free(struct train_state *s) {
    json_decref(s->options);
    json_decref(s->extra);
    memset(s, 0, sizeof *s);
}

/* --- trainer.json --- */

struct digest {
    int64_t size;
    uint64_t hash;
};

/* In pieces whose pages are given back, so that a checkpoint does not count as memory of the run for as long
 * as it is checked. */
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

static bool digest_file(struct digest *d, const char *dir, const char *name, bool with_hash,
                        struct error *err) {
    char *path = xasprintf("%s/%s", dir, name);
    struct mapped_file f;
    bool ok = file_map(&f, path, err);
    if (ok) {
        d->size = f.size;
        d->hash = with_hash ? hash_mapped(&f) : 0;
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
    char data[32];
    snprintf(data, sizeof data, "%016" PRIx64, s->data);
    json_t *best = isfinite(s->best_val_loss) ? json_real(s->best_val_loss) : json_null();
    json_t *none = json_null();
    json_t *root = json_pack("{s:i, s:I, s:I, s:I, s:s, s:o, s:O, s:O}", "format", FORMAT, "step",
                             (json_int_t)s->step, "sample", (json_int_t)s->sample, "tokens",
                             (json_int_t)s->tokens, "data", data, "best_val_loss", best, "options",
                             s->options ? s->options : none, "extra", s->extra ? s->extra : none);
    check(root != NULL, "the state of the training cannot be written as JSON");
    json_decref(none);
    return root;
}

/* `large`: the files are worth a thread each. */
static bool write_trainer(const char *dir, const struct train_state *s, bool large, struct error *err) {
    struct digest digest[ARRAY_LENGTH(file_names)];
    struct error errors[ARRAY_LENGTH(file_names)];
    bool there[ARRAY_LENGTH(file_names)], good[ARRAY_LENGTH(file_names)];
#pragma omp parallel for schedule(dynamic, 1) if (large)
    for (size_t i = 0; i < ARRAY_LENGTH(file_names); i++) {
        char *path = xasprintf("%s/%s", dir, file_names[i]);
        there[i] = path_exists(path);
        good[i] = !there[i] || digest_file(&digest[i], dir, file_names[i], true, &errors[i]);
        free(path);
    }
    json_t *root = state_to_json(s), *files = json_object();
    json_object_set_new(root, "files", files);
    for (size_t i = 0; i < ARRAY_LENGTH(file_names); i++) {
        if (!good[i]) {
            json_decref(root);
            return fail(err, "%s", errors[i].message);
        }
        if (!there[i]) continue;
        char hash[32];
        snprintf(hash, sizeof hash, "%016" PRIx64, digest[i].hash);
        json_object_set_new(files, file_names[i],
                            json_pack("{s:I, s:s}", "bytes", (json_int_t)digest[i].size, "xxh3", hash));
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

static json_t *object_or_null(const json_t *root, const char *key) {
    json_t *field = json_object_get(root, key);
    return json_is_object(field) ? json_incref(field) : NULL;
}

bool checkpoint_load_state(struct train_state *s, const char *dir, struct error *err) {
    memset(s, 0, sizeof *s);
    json_t *root = load_trainer(dir, err);
    bool ok = root && get_count(&s->step, root, "step", dir, err) &&
              get_count(&s->sample, root, "sample", dir, err) &&
              get_count(&s->tokens, root, "tokens", dir, err) && get_hex(&s->data, root, "data", dir, err);
    if (ok) {
        const json_t *best = json_object_get(root, "best_val_loss");
        s->best_val_loss = json_is_number(best) ? json_number_value(best) : (double)NAN;
        s->options = object_or_null(root, "options");
        s->extra = object_or_null(root, "extra");
    }
    json_decref(root);
    return ok;
}

/* --- saving --- */

/* A buffer laid out like the parameters (they themselves, a moment, the master weights) as a source of rows.
 */
struct device_buffer {
    struct gpt *gpt;
    const struct tensor *buffer;
};

static bool read_device(float *out, const void *source, enum param_id id, int64_t layer, int64_t first,
                        int64_t count, struct error *err) {
    const struct device_buffer *d = (const struct device_buffer *)source;
    struct gpt *g = d->gpt;
    const struct tensor *b = d->buffer;
    int64_t cols = weights_cols(&g->config, id);
    int64_t at = g->layout.offset[id] + layer * g->layout.stride[id] + first * cols;
    void *from = (char *)b->data + at * (int64_t)dtype_size(b->dtype);
    struct tensor part = tensor_make(b->name, b->dtype, from, count * cols, 0, 0, 0);
    ctx_download_f32(g->ctx, out, &part);
    return true;
}

static enum st_dtype stored_dtype(const struct tensor *buffer) {
    return buffer->dtype == DTYPE_BF16 ? ST_BF16 : ST_F32;
}

/* `buffers` one after the other, each under its prefix. */
static bool write_tensors(const char *dir, const char *name, struct gpt *g, int count,
                          const struct tensor *const *buffers, const char *const *prefixes,
                          struct error *err) {
    char *path = xasprintf("%s/%s", dir, name);
    struct safetensors_writer w;
    safetensors_writer_init(&w);
    safetensors_writer_metadata(&w, "format", "pt"); /* transformers insists */
    for (int i = 0; i < count; i++) weights_declare(&w, &g->config, prefixes[i], stored_dtype(buffers[i]));
    bool ok = safetensors_writer_open(&w, path, err);
    if (ok) {
        for (int i = 0; i < count; i++) {
            struct device_buffer source = {g, buffers[i]};
            weights_put(&w, &g->config, prefixes[i], stored_dtype(buffers[i]), read_device, &source);
        }
        ok = safetensors_writer_close(&w, err);
    }
    free(path);
    return ok;
}

static bool write_contents(const char *dir, struct gpt *g, struct optimizer *opt, const struct tokenizer *tok,
                           const struct train_state *state, struct error *err) {
    const struct tensor *model[] = {opt->has_master ? &opt->master : &g->params};
    const struct tensor *moments[] = {&opt->m, &opt->v};
    int64_t end_of_text = tok                             ? tokenizer_end_of_text(tok)
                          : g->config.vocab_size == 50257 ? 50256 /* GPT-2's, trained from token shards */
                                                          : -1;
    if (!model_config_write(dir, &g->config, stored_dtype(model[0]), end_of_text, err) ||
        !write_tensors(dir, file_names[2], g, 1, model, (const char *const[]){HF_PREFIX}, err) ||
        !write_tensors(dir, file_names[3], g, 2, moments,
                       (const char *const[]){"exp_avg." HF_PREFIX, "exp_avg_sq." HF_PREFIX}, err))
        return false;
    char *path = xasprintf("%s/%s", dir, file_names[4]);
    bool ok = !tok || tokenizer_save(tok, path, err);
    free(path);
    return ok && write_trainer(dir, state, g->layout.total >= LARGE, err) && sync_path(dir, err);
}

/* Gives the finished directory its name. An older checkpoint of the same step changes places with it in one
 * atomic step where the file system can do that, and is then removed. */
static bool put_in_place(const char *temporary, const char *final, const char *run, struct error *err) {
    if (!path_exists(final)) return rename_synced(temporary, final, err);
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, final, RENAME_EXCHANGE) == 0)
        return sync_path(run, err) && remove_tree(temporary, err);
    if (errno != EINVAL && errno != ENOSYS)
        return fail(err, "%s: cannot be replaced by %s: %s", final, temporary, strerror(errno));
    char *old = xasprintf("%s.old.tmp", final);
    bool ok = remove_tree(old, err) && rename_synced(final, old, err);
    if (ok && !rename_synced(temporary, final, err)) {
        ok = false;
        (void)rename_synced(old, final, NULL);
    }
    if (ok) ok = remove_tree(old, err);
    free(old);
    return ok;
}

bool checkpoint_save(const char *run, struct gpt *g, struct optimizer *opt, const struct tokenizer *tokenizer,
                     const struct train_state *state, struct error *err) {
    check(!g->ctx->plan, "checkpoint_save in plan mode");
    char *final = xasprintf("%s/step-%08" PRId64, run, state->step);
    char *temporary = xasprintf("%s.tmp", final);
    bool ok = make_directories(run, err) && remove_tree(temporary, err) && make_directories(temporary, err);
    if (ok) {
        ok = write_contents(temporary, g, opt, tokenizer, state, err) &&
             put_in_place(temporary, final, run, err);
        if (!ok) (void)remove_tree(temporary, NULL);
    }
    free(temporary);
    free(final);
    return ok;
}

/* --- the checkpoints of a run --- */

static bool verify_file(const char *dir, const char *name, const json_t *entry, bool checksums,
                        struct error *err) {
    int64_t size = (int64_t)json_integer_value(json_object_get(entry, "bytes"));
    uint64_t hash = 0;
    struct digest found;
    if (!get_hex(&hash, entry, "xxh3", dir, err) || !digest_file(&found, dir, name, checksums, err))
        return false;
    if (found.size != size)
        return fail(err, "%s/%s: is %" PRId64 " bytes long, trainer.json says %" PRId64 ": %s", dir, name,
                    found.size, size, found.size < size ? "truncated" : "over-long");
    return !checksums || found.hash == hash ||
           fail(err, "%s/%s: checksum (XXH3) is %016" PRIx64 ", trainer.json says %016" PRIx64 ": damaged",
                dir, name, found.hash, hash);
}

/* Whether a directory is complete, and with `checksums` also undamaged. */
static bool verify(const char *dir, bool checksums, struct error *err) {
    json_t *root = load_trainer(dir, err);
    if (!root) return false;
    const json_t *files = json_object_get(root, "files");
    int count = 0, bad = -1;
    json_int_t bytes = 0;
    const char *names[ARRAY_LENGTH(file_names)];
    const json_t *entries[ARRAY_LENGTH(file_names)];
    struct error errors[ARRAY_LENGTH(file_names)];
    for (size_t i = 0; i < ARRAY_LENGTH(file_names); i++) {
        const json_t *entry = json_object_get(files, file_names[i]);
        if (!entry) continue;
        bytes += json_integer_value(json_object_get(entry, "bytes"));
        names[count] = file_names[i];
        entries[count++] = entry;
    }
#pragma omp parallel for schedule(dynamic, 1) if (checksums && bytes >= LARGE)
    for (int i = 0; i < count; i++)
        if (!verify_file(dir, names[i], entries[i], checksums, &errors[i])) {
#pragma omp critical
            bad = i;
        }
    json_decref(root);
    return bad < 0 || fail(err, "%s", errors[bad].message);
}

struct step_list {
    int64_t *step; /* newest first */
    int64_t count;
};

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* The step of a checkpoint's name as checkpoint_save makes it, or -1. */
static int64_t step_of_name(const char *name) {
    char again[64];
    if (strncmp(name, "step-", 5) != 0 || strspn(name + 5, "0123456789") != strlen(name + 5)) return -1;
    int64_t step = strtoll(name + 5, NULL, 10);
    snprintf(again, sizeof again, "step-%08" PRId64, step);
    return strcmp(again, name) == 0 ? step : -1;
}

static bool is_unfinished(const char *name) {
    size_t n = strlen(name);
    return strncmp(name, "step-", 5) == 0 && n > 9 && strcmp(name + n - 4, ".tmp") == 0;
}

/* The checkpoints of `run` by name, undamaged or not. With `clean`, removes unfinished ones on the way. */
static bool list_steps(struct step_list *list, const char *run, bool clean, struct error *err) {
    memset(list, 0, sizeof *list);
    DIR *dir = opendir(run);
    if (!dir) return fail(err, "%s: cannot list directory: %s", run, strerror(errno));
    int64_t capacity = 0;
    bool ok = true;
    struct dirent *e;
    while (ok && (e = readdir(dir)) != NULL) {
        int64_t step = step_of_name(e->d_name);
        if (clean && is_unfinished(e->d_name)) {
            char *path = xasprintf("%s/%s", run, e->d_name);
            ok = remove_tree(path, err);
            free(path);
        }
        if (step < 0) continue;
        if (list->count == capacity) {
            capacity = 2 * capacity + 16;
            list->step = (int64_t *)xrealloc(list->step, (size_t)capacity * sizeof *list->step);
        }
        list->step[list->count++] = step;
    }
    closedir(dir);
    if (list->count) qsort(list->step, (size_t)list->count, sizeof *list->step, newest_first);
    return ok;
}

/* `path` holds a model itself. Without trainer.json it is somebody else's and there is nothing to verify. */
static char *find_itself(const char *path, struct error *err) {
    char *trainer = xasprintf("%s/trainer.json", path);
    bool good = !path_exists(trainer) || verify(path, true, err);
    free(trainer);
    return good ? xstrdup(path) : NULL;
}

static char *find_newest(const char *run, struct error *err) {
    struct step_list list;
    char *found = NULL;
    if (!list_steps(&list, run, false, err)) return NULL;
    for (int64_t i = 0; !found && i < list.count; i++) {
        struct error why;
        found = xasprintf("%s/step-%08" PRId64, run, list.step[i]);
        if (verify(found, true, &why)) break;
        warn("%s: the checkpoint is passed over", why.message);
        free(found);
        found = NULL;
    }
    if (!found && list.count)
        fail(err, "%s: none of its %" PRId64 " checkpoints is complete and undamaged", run, list.count);
    else if (!found)
        fail(err, "%s: has no checkpoint (no directory named like step-00001000) and is no model directory",
             run);
    free(list.step);
    return found;
}

char *checkpoint_find(const char *path, struct error *err) {
    if (!path_exists(path)) {
        fail(err, "%s: has no checkpoint: no such file or directory", path);
        return NULL;
    }
    if (!path_is_directory(path)) return xstrdup(path);
    char *config = xasprintf("%s/config.json", path), *trainer = xasprintf("%s/trainer.json", path);
    bool is_model = path_exists(config) || path_exists(trainer);
    free(config);
    free(trainer);
    return is_model ? find_itself(path, err) : find_newest(path, err);
}

/* The name goes first: a directory that is only half deleted must not look like a checkpoint. */
static bool delete_checkpoint(const char *path, struct error *err) {
    char *temporary = xasprintf("%s.tmp", path);
    bool ok =
        remove_tree(temporary, err) && rename_synced(path, temporary, err) && remove_tree(temporary, err);
    free(temporary);
    return ok;
}

bool checkpoint_prune(const char *run, int64_t keep, struct error *err) {
    check(keep >= 1, "checkpoint_prune: keep %" PRId64 " checkpoints, at least 1", keep);
    struct step_list list;
    bool ok = list_steps(&list, run, true, err);
    for (int64_t i = 0; ok && i < list.count; i++) {
        char *path = xasprintf("%s/step-%08" PRId64, run, list.step[i]);
        if (verify(path, false, NULL) && keep-- <= 0) ok = delete_checkpoint(path, err);
        free(path);
    }
    free(list.step);
    return ok;
}
