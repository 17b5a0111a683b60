/* Writing a checkpoint. Every rank writes a share of the tensors; rank 0 then writes the manifest and
 * renames the directory.
 *
 * Buckets of the parameter buffer (zero.h) are dealt out to the ranks in turn. All ranks gather a bucket,
 * and the one that writes it keeps a copy. Once every rank holds a bucket, all write at the same time. One
 * rank alone writes one file of each kind, straight from the device. */
#include "llmc/format/checkpoint_manifest.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/json_file.h"
#include "llmc/format/adapter.h"
#include "llmc/format/model_config.h"
#include "llmc/format/model_file.h"

/* What is stored of every parameter: its value, and the two moments. */
enum { VALUE, MOMENT_1, MOMENT_2, KINDS };
static const char *const prefixes[KINDS] = {"", "exp_avg.", "exp_avg_sq."};

/* --- values of a bucket --- */

struct bucket_values {
    struct gpt *gpt;
    int64_t first;        /* element of the parameter buffer that `buffer` begins with */
    struct tensor buffer; /* on the device, ... */
    float *host;          /* ... or a copy, if not NULL */
};

static bool read_values(float *out, const void *source, enum param_id id, int64_t layer, int64_t first,
                        int64_t count, struct error *err) {
    const struct bucket_values *v = (const struct bucket_values *)source;
    const struct gpt *g = v->gpt;
    int64_t cols = weights_cols(&g->config, id), n = count * cols;
    int64_t at = g->layout.offset[id] + layer * g->layout.stride[id] + first * cols - v->first;
    if (v->host) {
        memcpy(out, v->host + at, (size_t)n * sizeof *out);
        return true;
    }
    struct tensor part = tensor_range(&v->buffer, at, n);
    ctx_download_f32(g->ctx, out, &part);
    return true;
}

/* --- the share of a rank --- */

struct share {
    struct zero *zero;
    int64_t rank, world, buckets;
    int64_t files;                            /* of each kind: ranks beyond have nothing to write */
    struct safetensors_writer model, moments; /* open only if rank < files */
    bool open;
    struct bucket_values held[KINDS]; /* of one bucket */
};

static enum zero_what what(const struct share *s, int kind) {
    return kind == MOMENT_1                 ? ZERO_M
           : kind == MOMENT_2               ? ZERO_V
           : s->zero->optimizer->has_master ? ZERO_MASTER
                                            : ZERO_PARAMS;
}

static bool keeps(const struct share *s, int kind, int64_t i) {
    return zero_keeps(s->zero, what(s, kind), i);
}

static enum st_dtype stored_dtype(const struct share *s, int kind) {
    bool narrow = kind == VALUE && what(s, kind) == ZERO_PARAMS && s->zero->gpt->params.dtype == DTYPE_BF16;
    return narrow ? ST_BF16 : ST_F32;
}

static struct zero_bucket bucket(const struct share *s, int64_t i) {
    return zero_bucket(&s->zero->gpt->layout, &s->zero->gpt->config, i);
}

/* "model.safetensors", or "model-00001-of-00004.safetensors" as Hugging Face numbers them. */
static void file_name(char *name, size_t size, const struct share *s, const char *stem, int64_t file) {
    if (s->files == 1)
        snprintf(name, size, "%s.safetensors", stem);
    else
        snprintf(name, size, "%s-%05" PRId64 "-of-%05" PRId64 ".safetensors", stem, file + 1, s->files);
}

/* Declares the tensors of this rank's file, bucket by bucket, and opens it. */
static bool open_file(struct safetensors_writer *w, const struct share *s, const char *dir, const char *stem,
                      int first_kind, int end_kind, struct error *err) {
    char name[64];
    file_name(name, sizeof name, s, stem, s->rank);
    safetensors_writer_init(w);
    safetensors_writer_metadata(w, "format", "pt"); /* transformers insists */
    for (int64_t i = s->rank; i < s->buckets; i += s->files)
        for (int kind = first_kind; kind < end_kind; kind++)
            if (keeps(s, kind, i))
                weights_declare(w, &s->zero->gpt->config, prefixes[kind], stored_dtype(s, kind),
                                bucket(s, i).first, bucket(s, i).end);
    char *path = xasprintf("%s/%s", dir, name);
    bool ok = safetensors_writer_open(w, path, err);
    free(path);
    return ok;
}

static void hold(struct share *s, int kind, const struct zero_bucket *b, const struct tensor *t) {
    struct bucket_values *v = &s->held[kind];
    v->gpt = s->zero->gpt;
    v->first = b->first;
    v->buffer = *t;
    if (s->world == 1) return;
    /* the next collective overwrites what this one gathered */
    v->host = (float *)xrealloc(v->host, (size_t)(b->end - b->first) * sizeof *v->host);
    ctx_download_f32(s->zero->gpt->ctx, v->host, t);
}

static void put_held(struct share *s, int64_t i) {
    const struct gpt_config *c = &s->zero->gpt->config;
    struct zero_bucket b = bucket(s, i);
    for (int kind = 0; kind < KINDS; kind++)
        if (keeps(s, kind, i))
            weights_put(kind == VALUE ? &s->model : &s->moments, c, prefixes[kind], stored_dtype(s, kind),
                        b.first, b.end, read_values, &s->held[kind]);
}

/* Every rank goes through all collectives, also one that cannot write. */
static bool write_share(struct share *s, const char *dir, struct error *err) {
    bool writes = s->rank < s->files;
    if (writes) {
        s->open = open_file(&s->model, s, dir, "model", VALUE, MOMENT_1, err);
        if (s->open && !open_file(&s->moments, s, dir, "optimizer", MOMENT_1, KINDS, err)) {
            s->open = false;
            (void)safetensors_writer_close(&s->model, NULL);
        }
    }
    for (int64_t i = 0, mine = -1; i < s->buckets; i++) {
        struct zero_bucket b = bucket(s, i);
        if (s->zero->comm && s->zero->comm->group)
            group_progress(s->zero->comm->group, "writing a checkpoint", i);
        for (int kind = 0; kind < KINDS; kind++) {
            if (!keeps(s, kind, i)) continue;
            struct tensor t = zero_whole(s->zero, what(s, kind), i);
            if (i % s->files == s->rank && s->open) hold(s, kind, &b, &t);
        }
        if (i % s->files == s->rank) mine = i;
        bool round_over = (i + 1) % s->files == 0 || i + 1 == s->buckets;
        if (!round_over || mine < 0) continue;
        if (s->open) put_held(s, mine);
        mine = -1;
    }
    for (int kind = 0; kind < KINDS; kind++) free(s->held[kind].host);
    if (!s->open) return !writes;
    bool model_ok = safetensors_writer_close(&s->model, err);
    return safetensors_writer_close(&s->moments, model_ok ? err : NULL) && model_ok;
}

/* --- the files of rank 0 --- */

struct index_entry {
    json_t *map;
    const struct gpt_config *config;
    const char *prefix, *file;
};

static void add_to_index(void *arg, enum param_id id, int64_t layer) {
    const struct index_entry *e = (const struct index_entry *)arg;
    struct piece piece[MOST_PIECES];
    int pieces = format_pieces(piece, format_for_directory(e->config), e->config, id);
    for (int k = 0; k < pieces; k++)
        json_object_set_new(e->map, temp_printf("%s%s", e->prefix, piece_name(&piece[k], layer)),
                            json_string(e->file));
}

/* STEM.safetensors.index.json: which tensor is in which file. */
static bool write_index(const struct share *s, const char *dir, const char *stem, int first_kind,
                        int end_kind, int64_t total_size, struct error *err) {
    json_t *root = json_pack("{s:{s:I}}", "metadata", "total_size", (json_int_t)total_size);
    json_t *map = json_object();
    json_object_set_new(root, "weight_map", map);
    for (int64_t i = 0; i < s->buckets; i++) {
        char file[64];
        file_name(file, sizeof file, s, stem, i % s->files);
        for (int kind = first_kind; kind < end_kind; kind++) {
            const struct gpt_config *c = &s->zero->gpt->config;
            if (!keeps(s, kind, i)) continue;
            struct index_entry e = {map, c, prefixes[kind], file};
            weights_each(c, bucket(s, i).first, bucket(s, i).end, add_to_index, &e);
        }
    }
    char *path = xasprintf("%s/%s.safetensors.index.json", dir, stem);
    bool ok = json_file_write(path, root, err);
    free(path);
    return ok;
}

struct elements {
    const struct gpt_config *config;
    int64_t count;
};

static void add_elements(void *arg, enum param_id id, int64_t layer) {
    struct elements *e = (struct elements *)arg;
    e->count += weights_rows(e->config, id) * weights_cols(e->config, id);
}

/* Of all tensors: what the index of a sharded model states. */
static int64_t stored_bytes(const struct share *s, int kind) {
    struct elements e = {.config = &s->zero->gpt->config};
    for (int64_t i = 0; i < s->buckets; i++)
        if (keeps(s, kind, i)) weights_each(e.config, bucket(s, i).first, bucket(s, i).end, add_elements, &e);
    return e.count * (stored_dtype(s, kind) == ST_BF16 ? 2 : 4);
}

static bool write_small_files(const struct share *s, const char *dir, const struct tokenizer *tok,
                              struct error *err) {
    if (!model_config_write(dir, &s->zero->gpt->config, stored_dtype(s, VALUE), tok, err)) return false;
    return s->files == 1 || (write_index(s, dir, "model", VALUE, MOMENT_1, stored_bytes(s, VALUE), err) &&
                             write_index(s, dir, "optimizer", MOMENT_1, KINDS,
                                         stored_bytes(s, MOMENT_1) + stored_bytes(s, MOMENT_2), err));
}

/* --- saving --- */

static bool agree(const struct share *s, bool ok, struct error *err) {
    return s->world == 1 ? ok : group_agree(s->zero->comm->group, ok, err);
}

enum { SHARE_FILES = 2, MOST_FILES = 8 };

/* Checksums of the files that this rank has written. `file` has names; with enough data each has a
 * thread. */
static bool digest_all(struct checkpoint_file *file, int64_t count, const char *dir, bool large,
                       struct error *err) {
    int64_t bad = -1;
    struct error errors[MOST_FILES];
#pragma omp parallel for schedule(dynamic, 1) if (large)
    for (int64_t i = 0; i < count; i++)
        if (!checkpoint_digest(&file[i], dir, true, &errors[i])) {
#pragma omp critical
            bad = i;
        }
    return bad < 0 || fail(err, "%s", errors[bad].message);
}

/* Names of rank 0's small files that are there. */
static int64_t small_files(struct checkpoint_file *file, const char *dir) {
    static const char *const names[] = {"config.json",
                                        "generation_config.json",
                                        "model.safetensors.index.json",
                                        "optimizer.safetensors.index.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json"};
    int64_t count = 0;
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
        char *path = xasprintf("%s/%s", dir, names[i]);
        if (path_exists(path)) snprintf(file[count++].name, sizeof file->name, "%s", names[i]);
        free(path);
    }
    return count;
}

/* Of adapters, which every rank stores whole. */
static bool write_adapter(struct share *s, const char *dir, const struct tokenizer *tok,
                          const struct train_state *state, struct error *err) {
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors",
                                        "optimizer.safetensors", "tokenizer.json", "tokenizer_config.json"};
    struct gpt *g = s->zero->gpt;
    struct checkpoint_file files[ARRAY_LENGTH(names)];
    memset(files, 0, sizeof files);
    int64_t count = 0;
    bool ok = true;
    if (s->rank == 0) {
        ok = adapter_save(dir, g, s->zero->optimizer, err) &&
             (!tok || model_tokenizer_write(dir, &g->config, tok, err));
        for (size_t i = 0; i < ARRAY_LENGTH(names) - (tok ? 0 : 2); i++)
            snprintf(files[count++].name, sizeof files->name, "%s", names[i]);
        ok = ok && digest_all(files, count, dir, false, err) &&
             checkpoint_write_manifest(dir, state, files, count, err) && sync_path(dir, err);
    }
    return agree(s, ok, err);
}

static bool write_contents(struct share *s, const char *dir, const struct tokenizer *tok,
                           const struct train_state *state, struct error *err) {
    enum { LARGE = 1 << 20 };
    if (s->zero->gpt->options.lora.rank) return write_adapter(s, dir, tok, state, err);
    bool large = s->zero->gpt->layout.total >= LARGE;
    struct checkpoint_file own[SHARE_FILES];
    memset(own, 0, sizeof own);
    bool ok = s->rank != 0 || write_small_files(s, dir, tok, err);
    if (!agree(s, ok, err)) return false;
    ok = write_share(s, dir, err);
    if (ok && s->rank < s->files) {
        file_name(own[0].name, sizeof own->name, s, "model", s->rank);
        file_name(own[1].name, sizeof own->name, s, "optimizer", s->rank);
        ok = digest_all(own, SHARE_FILES, dir, large, err);
    }
    if (!agree(s, ok, err)) return false;

    /* every rank knows its own files: what is on their way through a network need not be read back */
    struct checkpoint_file *all =
        (struct checkpoint_file *)xcalloc((size_t)(s->world * SHARE_FILES + MOST_FILES), sizeof *all);
    if (s->world == 1)
        memcpy(all, own, SHARE_FILES * sizeof *all);
    else
        group_exchange(s->zero->comm->group, all, own, SHARE_FILES * sizeof *all);
    if (s->rank == 0) {
        int64_t shares = s->files * SHARE_FILES, small = small_files(all + shares, dir);
        ok = digest_all(all + shares, small, dir, false, err) &&
             checkpoint_write_manifest(dir, state, all, shares + small, err) && sync_path(dir, err);
    }
    free(all);
    return agree(s, ok, err);
}

int64_t checkpoint_size(const struct zero *z) {
    const struct gpt_params *p = &z->gpt->layout;
    const struct optimizer *o = z->optimizer;
    int64_t value = (int64_t)dtype_size(o->has_master ? DTYPE_F32 : z->gpt->options.dtype);
    int64_t f32 = (int64_t)dtype_size(DTYPE_F32), rest = p->count - (p->matrices - p->blocks);
    int64_t second = o->kind == OPTIMIZER_LION ? 0 : optimizer_has_v(o, true) ? p->count : rest;
    return p->count * value + (p->count + second) * f32;
}

bool checkpoint_save(const char *run, struct zero *z, const struct tokenizer *tokenizer,
                     const struct train_state *state, struct error *err) {
    const struct gpt *g = z->gpt;
    check(!g->ctx->plan, "checkpoint_save in plan mode");
    struct share s = {.zero = z,
                      .rank = z->comm ? z->comm->rank : 0,
                      .world = z->comm ? z->comm->world : 1,
                      .buckets = zero_bucket_count(&g->config)};
    s.files = min_i64(s.world, s.buckets);
    char *final = xasprintf("%s/step-%08" PRId64, run, state->step);
    char *temporary = xasprintf("%s.tmp", final);
    bool ok = s.rank != 0 || checkpoint_begin(temporary, err);
    ok = agree(&s, ok, err) && write_contents(&s, temporary, tokenizer, state, err);
    if (ok) ok = agree(&s, s.rank != 0 || checkpoint_put_in_place(temporary, final, err), err);
    if (!ok && s.rank == 0) (void)checkpoint_remove(temporary, NULL);
    free(temporary);
    free(final);
    return ok;
}
