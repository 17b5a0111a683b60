/* Loading a model or a checkpoint into the buffers of a device: parameters, moments, master weights.
 *
 * A buffer is filled range by range: some rows of one tensor are read, converted to fp32 and stored. On the
 * CPU the ranges go straight to their places, on all threads. With ZeRO, a rank reads only the ranges that
 * it keeps. Padding and gaps are zeroed, so that nothing has to initialise the buffer before. */
#include "llmc/format/checkpoint.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/format/import_gguf.h"
#include "llmc/format/model_config.h"
#include "llmc/format/model_file.h"

/* --- one buffer --- */

enum { PIECE = 1 << 20 }; /* elements at a time: bounds the host memory, and is work for one thread */

/* Where values go: into a whole buffer laid out like the parameters, or to what this rank keeps of one. */
struct loader {
    struct gpt *gpt;
    const struct tensor *buffer;
    struct zero *zero; /* NULL: `buffer` is whole */
    enum zero_what what;
    bool direct;   /* the host can write device memory */
    float *values; /* host memory for a piece, where not direct */
};

/* Rows [first, first+count) of one parameter. */
struct row_range {
    enum param_id id;
    int64_t layer, first, count;
};

static bool next_stored(const struct loader *l, int64_t first, int64_t count, int64_t *next,
                        struct zero_range *range) {
    if (l->zero) return zero_stored(l->zero, l->what, first, count, next, range);
    if (*next >= first + count) return false;
    *range = (struct zero_range){first, count, tensor_range(l->buffer, first, count)};
    *next = first + count;
    return true;
}

/* The part of `values`, which begin at element `first` of the whole buffer, that belongs into `range`. */
static void store(const struct loader *l, struct zero_range *range, const float *values, int64_t first) {
    const float *from = values + (range->first - first);
    if (l->direct)
        memcpy(f32(&range->here), from, (size_t)range->count * sizeof *from);
    else
        ctx_upload_f32(l->gpt->ctx, &range->here, from);
}

/* From the last stored element of a tensor to the next tensor: padded vocabulary and alignment. */
static void put_zeros(const struct loader *l, int64_t at, int64_t n) {
    struct zero_range range;
    float *zeros = (float *)xcalloc((size_t)min_i64(n, PIECE), sizeof *zeros);
    for (int64_t done = 0; done < n; done += PIECE)
        for (int64_t first = at + done, next = first;
             next_stored(l, first, min_i64(PIECE, n - done), &next, &range);)
            store(l, &range, zeros, range.first);
    free(zeros);
}

static int64_t count_not_finite(const float *values, int64_t n) {
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bad += (bits & 0x7f800000u) == 0x7f800000u;
    }
    return bad;
}

/* Returns how many values are not finite, -1 on failure. What this rank does not keep is not read. */
static int64_t load_range(const struct loader *l, const struct weights *w, const struct row_range *p,
                          struct error *err) {
    const struct gpt *g = l->gpt;
    int64_t rows = weights_rows(&g->config, p->id), cols = weights_cols(&g->config, p->id);
    int64_t start = g->layout.offset[p->id] + p->layer * g->layout.stride[p->id];
    int64_t at = start + p->first * cols, n = p->count * cols, next = at, bad = 0;
    struct zero_range range;
    if (next_stored(l, at, n, &next, &range)) {
        bool straight = l->direct && range.count == n;
        float *own = l->direct && !straight ? (float *)xmalloc((size_t)n * sizeof *own) : NULL;
        float *values = straight ? f32(&range.here) : own ? own : l->values;
        bool ok = weights_read(values, w, p->id, p->layer, p->first, p->count, err);
        bad = ok ? count_not_finite(values, n) : -1;
        if (ok && !straight) {
            do store(l, &range, values, at);
            while (next_stored(l, at, n, &next, &range));
        }
        free(own);
    }
    if (bad >= 0 && p->first + p->count == rows) {
        int64_t held = round_up(gpt_dim_size(&g->config, gpt_param_rows[p->id].rows) * cols, 128);
        put_zeros(l, start + rows * cols, held - rows * cols);
    }
    return bad;
}

static struct row_range *list_ranges(int64_t *count, const struct gpt_config *c) {
    struct row_range *list = NULL;
    int64_t n = 0, capacity = 0;
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(c, (enum param_id)id); l++) {
            int64_t rows = weights_rows(c, (enum param_id)id);
            int64_t step = max_i64(1, PIECE / weights_cols(c, (enum param_id)id));
            for (int64_t first = 0; first < rows; first += step) {
                if (n == capacity) {
                    capacity = 2 * capacity + 64;
                    list = (struct row_range *)xrealloc(list, (size_t)capacity * sizeof *list);
                }
                list[n++] = (struct row_range){(enum param_id)id, l, first, min_i64(step, rows - first)};
            }
        }
    *count = n;
    return list;
}

/* Threads write pieces straight into memory that the host can touch. For other memory one piece after the
 * other goes through a host buffer, and the threads share the work inside a piece. `what` is for the
 * warning. */
static bool load_buffer(struct loader l, const struct weights *w, const char *what, struct error *err) {
    struct gpt *g = l.gpt;
    l.direct = g->ctx->device->unified && l.buffer->dtype == DTYPE_F32;
    if (!l.direct)
        l.values = (float *)xmalloc((size_t)max_i64(PIECE, max_i64(g->config.ff, g->config.channels)) *
                                    sizeof *l.values);
    int64_t count, not_finite = 0, failed = -1, first_bad = INT64_MAX;
    struct row_range *list = list_ranges(&count, &g->config);
    /* what a model without vectors has in their place is no padding of a tensor */
    put_zeros(&l, g->layout.matrices, g->layout.total - g->layout.matrices);
#pragma omp parallel for schedule(dynamic, 1) if (l.direct && g->layout.total > PIECE)
    for (int64_t i = 0; i < count; i++) {
        struct error why;
        int64_t bad = load_range(&l, w, &list[i], &why);
        if (bad == 0) continue;
#pragma omp critical
        {
            if (bad < 0 && failed < 0) {
                failed = i;
                fail(err, "%s", why.message);
            }
            not_finite += bad;
            first_bad = min_i64(first_bad, i);
        }
    }
    if (failed < 0 && not_finite)
        warn("%s: %" PRId64 " of the %s are NaN or infinite, the first in %s: training on cannot succeed",
             (*weights_view(w, P_WTE, 0, 0))->path, not_finite, what,
             gpt_param_name(list[first_bad].id, list[first_bad].layer));
    free(list);
    free(l.values);
    return failed < 0;
}

/* --- configuration and weights --- */

bool checkpoint_config(struct gpt_config *config, const char *dir, struct error *err) {
    struct model_file m;
    if (!model_file_open(&m, dir, err)) return false;
    *config = m.weights.config;
    model_file_close(&m);
    return true;
}

static bool same_config(const struct gpt_config *found, const struct gpt_config *expected, const char *dir,
                        struct error *err) {
    const struct gpt_field *f = gpt_config_difference(found, expected);
    return !f || fail(err, "%s: the %s of this model is %s, expected %s (model %s)", dir, f->what,
                      gpt_field_text(found, f), gpt_field_text(expected, f), expected->name);
}

static bool load_model(struct loader l, const char *dir, const char *adapter, struct error *err) {
    struct model_file m;
    check(!l.gpt->ctx->plan, "loading %s in plan mode", dir);
    if (!model_file_open_adapted(&m, dir, adapter, err)) return false;
    bool ok = same_config(&m.weights.config, &l.gpt->config, dir, err) &&
              load_buffer(l, &m.weights, "weights", err);
    model_file_close(&m);
    return ok;
}

bool checkpoint_load_weights(struct gpt *g, const char *dir, struct error *err) {
    return checkpoint_load_adapted(g, dir, NULL, err);
}

bool checkpoint_load_adapted(struct gpt *g, const char *dir, const char *adapter, struct error *err) {
    return load_model((struct loader){.gpt = g, .buffer = &g->params}, dir, adapter, err);
}

bool checkpoint_hash(uint64_t *hash, const char *dir, struct error *err) {
    struct model_file m;
    if (!model_file_open(&m, dir, err)) return false;
    bool ok = weights_hash(&m.weights, hash, err);
    model_file_close(&m);
    return ok;
}

static struct loader loader_of(struct zero *z, enum zero_what what) {
    const struct optimizer *o = z->optimizer;
    const struct tensor *buffer = what == ZERO_PARAMS ? &z->gpt->params
                                  : what == ZERO_M    ? &o->m
                                  : what == ZERO_V    ? &o->v
                                                      : &o->master;
    return (struct loader){.gpt = z->gpt, .buffer = buffer, .zero = z, .what = what};
}

bool checkpoint_load_parameters(struct zero *z, const char *dir, struct error *err) {
    bool adapters = z->gpt->options.lora.rank > 0; /* whose master weights are not the model's */
    bool ok =
        load_model(loader_of(z, ZERO_PARAMS), dir, NULL, err) &&
        (!z->optimizer->has_master || adapters || load_model(loader_of(z, ZERO_MASTER), dir, NULL, err));
    if (ok) zero_parameters_changed(z);
    return ok;
}

/* --- optimizer --- */

/* Which optimizer's state it is shows in the second moments: AdamW keeps one of every parameter, Muon none of
 * the blocks' matrices, Lion none at all. */
static bool same_optimizer(const struct zero *z, const struct safetensors *st, enum gpt_format format,
                           const char *dir, struct error *err) {
    static const enum param_id probes[] = {P_WTE, P_PROJ_W};
    bool there[ARRAY_LENGTH(probes)];
    for (size_t i = 0; i < ARRAY_LENGTH(probes); i++) {
        struct piece piece[MOST_PIECES];
        format_pieces(piece, format, &z->gpt->config, probes[i]);
        there[i] = safetensors_find(st, temp_printf("exp_avg_sq.%s", piece_name(&piece[0], 0)));
    }
    enum optimizer_kind found = there[1] ? OPTIMIZER_ADAMW : there[0] ? OPTIMIZER_MUON : OPTIMIZER_LION;
    const char *own = optimizer_name(z->optimizer->kind);
    return found == z->optimizer->kind ||
           fail(
               err,
               "%s: was trained with --optimizer %s, and its state is no state of %s: resume with --optimizer "
               "%s, or start a new run from these weights with --model %s --optimizer %s",
               dir, optimizer_name(found), own, optimizer_name(found), dir, own);
}

static int64_t kept_tensors(const struct zero *z, enum gpt_format format) {
    const struct gpt_config *c = &z->gpt->config;
    struct piece piece[MOST_PIECES];
    int64_t count = 0;
    for (int id = 0; id < PARAM_ROWS; id++) {
        int moments = optimizer_has_v(z->optimizer, gpt_param_in_blocks((enum param_id)id)) ? 2 : 1;
        count += moments * gpt_param_copies(c, (enum param_id)id) *
                 format_pieces(piece, format, c, (enum param_id)id);
    }
    return count;
}

bool checkpoint_load_moments(struct zero *z, const char *dir, struct error *err) {
    const struct gpt_config *c = &z->gpt->config;
    struct safetensors st;
    struct weights m = {.view = NULL}, v = {.view = NULL};
    if (!safetensors_open_directory(&st, dir, "optimizer", err))
        return fail(
            err,
            "%s: has no optimizer.safetensors: a model to start from (--model), but no checkpoint that a "
            "training can be resumed from",
            dir);
    enum gpt_format format = format_for_directory(c);
    bool has_v = optimizer_has_v(z->optimizer, false);
    bool ok = weights_find(&m, c, format, &st, "exp_avg.", "", true, err) &&
              same_optimizer(z, &st, format, dir, err) &&
              (!has_v ||
               weights_find(&v, c, format, &st, "exp_avg_sq.", "", optimizer_has_v(z->optimizer, true), err));
    int64_t expected = kept_tensors(z, format);
    if (ok && st.count != expected)
        ok = fail(err, "%s: its optimizer's state holds %" PRId64 " tensors, expected %" PRId64, dir,
                  st.count, expected);
    ok = ok && load_buffer(loader_of(z, ZERO_M), &m, "first moments", err) &&
         (!has_v || load_buffer(loader_of(z, ZERO_V), &v, "second moments", err));
    weights_free(&m);
    weights_free(&v);
    safetensors_close(&st);
    return ok;
}

/* --- tokenizer --- */

static struct tokenizer *load_gguf_tokenizer(const char *path, struct error *err) {
    struct gguf_file g;
    if (!gguf_open(&g, path, err)) return NULL;
    struct tokenizer *t = gguf_tokenizer(&g, err);
    gguf_close(&g);
    return t;
}

struct tokenizer *checkpoint_load_tokenizer(const char *dir, struct error *err) {
    static const char *const names[] = {"tokenizer.json", "vocab.bpe", "merges.txt"};
    if (!path_is_directory(dir) && gguf_is_one(dir)) return load_gguf_tokenizer(dir, err);
    bool there = false;
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
        char *path = xasprintf("%s/%s", dir, names[i]);
        there |= path_exists(path);
        free(path);
    }
    struct gpt_config config;
    enum gpt_format format;
    if (!there) {
        fail(err, "%s", "");
        return NULL;
    }
    if (adapter_is_one(dir)) return tokenizer_load(dir, err);
    if (!model_config_read(&config, &format, dir, err)) return NULL;
    struct tokenizer *t = tokenizer_load(dir, err);
    if (t && tokenizer_vocab_size(t) > config.vocab_size) {
        fail(err,
             "%s: its tokenizer has %d tokens, its model only %" PRId64 " (\"vocab_size\" of config.json)",
             dir, tokenizer_vocab_size(t), config.vocab_size);
        tokenizer_free(t);
        t = NULL;
    }
    return t;
}

bool checkpoint_tokenizer_is(const char *dir, const struct tokenizer *t) {
    struct error err;
    struct tokenizer *own = checkpoint_load_tokenizer(dir, &err);
    bool same = !own || tokenizer_hash(own) == tokenizer_hash(t);
    if (own) tokenizer_free(own);
    return same;
}
