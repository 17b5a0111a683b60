/* Loading: from a model or a checkpoint on disk to the device.
 *
 * Order: one buffer (parameters, a moment, master weights) tensor by tensor; configuration; weights;
 * optimizer state; tokenizer. */
#include "llmc/checkpoint.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/model_file.h"

/* --- one buffer --- */

enum { PIECE = 1 << 20 }; /* elements at a time: bounds the host memory, and is work for one thread */

struct loader {
    struct gpt *gpt;
    const struct tensor *buffer; /* laid out like the parameters */
    float *values;               /* host memory for a piece; NULL where `buffer` itself can be written */
};

/* Rows [first, first+count) of one parameter. */
struct piece {
    enum param_id id;
    int64_t layer, first, count;
};

static void upload(const struct loader *l, int64_t at, const float *values, int64_t n) {
    const struct tensor *b = l->buffer;
    void *to = (char *)b->data + at * (int64_t)dtype_size(b->dtype);
    struct tensor part = tensor_make(b->name, b->dtype, to, n, 0, 0, 0);
    ctx_upload_f32(l->gpt->ctx, &part, values);
}

/* From the last stored element of a tensor to the next tensor: padded vocabulary and alignment. */
static void put_zeros(const struct loader *l, int64_t at, int64_t n) {
    if (!l->values) {
        memset(f32(l->buffer) + at, 0, (size_t)n * sizeof(float));
        return;
    }
    memset(l->values, 0, (size_t)min_i64(n, PIECE) * sizeof *l->values);
    for (int64_t done = 0; done < n; done += PIECE) upload(l, at + done, l->values, min_i64(PIECE, n - done));
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

/* Returns how many values are not finite, -1 on failure. */
static int64_t load_piece(const struct loader *l, const struct weights *w, const struct piece *p,
                          struct error *err) {
    const struct gpt *g = l->gpt;
    int64_t rows = weights_rows(&g->config, p->id), cols = weights_cols(&g->config, p->id);
    int64_t start = g->layout.offset[p->id] + p->layer * g->layout.stride[p->id];
    int64_t at = start + p->first * cols, n = p->count * cols;
    float *values = l->values ? l->values : f32(l->buffer) + at;
    if (!weights_read(values, w, p->id, p->layer, p->first, p->count, err)) return -1;
    int64_t bad = count_not_finite(values, n);
    if (l->values) upload(l, at, values, n);
    if (p->first + p->count == rows) {
        int64_t held = round_up(gpt_dim_size(&g->config, gpt_param_rows[p->id].rows) * cols, 128);
        put_zeros(l, start + rows * cols, held - rows * cols);
    }
    return bad;
}

static struct piece *list_pieces(int64_t *count, const struct gpt_config *c) {
    struct piece *list = NULL;
    int64_t n = 0, capacity = 0;
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < (gpt_param_rows[id].per_layer ? c->layers : 1); l++) {
            int64_t rows = weights_rows(c, (enum param_id)id);
            int64_t step = max_i64(1, PIECE / weights_cols(c, (enum param_id)id));
            for (int64_t first = 0; first < rows; first += step) {
                if (n == capacity) {
                    capacity = 2 * capacity + 64;
                    list = (struct piece *)xrealloc(list, (size_t)capacity * sizeof *list);
                }
                list[n++] = (struct piece){(enum param_id)id, l, first, min_i64(step, rows - first)};
            }
        }
    *count = n;
    return list;
}

/* On the CPU pieces go to their places on all threads; elsewhere one after the other through host memory (and
 * threads share the work inside a piece). `what` is for the warning. */
static bool load_buffer(struct gpt *g, const struct tensor *buffer, const struct weights *w, const char *what,
                        struct error *err) {
    struct loader l = {.gpt = g, .buffer = buffer};
    bool direct = strcmp(g->ctx->device->backend, "cpu") == 0 && buffer->dtype == DTYPE_F32;
    if (!direct)
        l.values = (float *)xmalloc((size_t)max_i64(PIECE, 4 * g->config.channels) * sizeof *l.values);
    int64_t count, not_finite = 0, failed = -1, first_bad = INT64_MAX;
    struct piece *list = list_pieces(&count, &g->config);
#pragma omp parallel for schedule(dynamic, 1) if (direct && g->layout.total > PIECE)
    for (int64_t i = 0; i < count; i++) {
        struct error why;
        int64_t bad = load_piece(&l, w, &list[i], &why);
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
             w->view[0]->path, not_finite, what, gpt_param_name(list[first_bad].id, list[first_bad].layer));
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
    const struct {
        const char *what;
        int64_t found, expected;
    } sizes[] = {{"layers", found->layers, expected->layers},
                 {"heads", found->heads, expected->heads},
                 {"channels", found->channels, expected->channels},
                 {"positions of context", found->context, expected->context},
                 {"tokens of vocabulary", found->vocab_size, expected->vocab_size}};
    for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++)
        if (sizes[i].found != sizes[i].expected)
            return fail(err, "%s: this model has %" PRId64 " %s, expected %" PRId64 " (model %s)", dir,
                        sizes[i].found, sizes[i].what, sizes[i].expected, expected->name);
    return true;
}

static bool load_model(struct gpt *g, const struct tensor *buffer, const char *dir, struct error *err) {
    struct model_file m;
    if (!model_file_open(&m, dir, err)) return false;
    bool ok = same_config(&m.weights.config, &g->config, dir, err) &&
              load_buffer(g, buffer, &m.weights, "weights", err);
    model_file_close(&m);
    return ok;
}

bool checkpoint_load_weights(struct gpt *g, const char *dir, struct error *err) {
    check(!g->ctx->plan, "checkpoint_load_weights in plan mode");
    return load_model(g, &g->params, dir, err);
}

bool checkpoint_load_master(struct optimizer *opt, struct gpt *g, const char *dir, struct error *err) {
    return !opt->has_master || load_model(g, &opt->master, dir, err);
}

/* --- optimizer --- */

bool checkpoint_load_optimizer(struct optimizer *opt, struct gpt *g, const char *dir, struct error *err) {
    check(!g->ctx->plan, "checkpoint_load_optimizer in plan mode");
    struct safetensors st;
    struct weights m = {.view = NULL}, v = {.view = NULL};
    char *path = xasprintf("%s/optimizer.safetensors", dir);
    bool ok;
    if (path_exists(path))
        ok = safetensors_open(&st, path, err);
    else
        ok = fail(err,
                  "%s: has no optimizer.safetensors: a model to start from (--model), but no checkpoint that "
                  "a training can be resumed from",
                  dir);
    if (ok) {
        ok = weights_find(&m, &g->config, &st, "exp_avg." HF_PREFIX, err) &&
             weights_find(&v, &g->config, &st, "exp_avg_sq." HF_PREFIX, err);
        int64_t expected = 0;
        for (int64_t i = 0; ok && i < PARAM_ROWS * g->config.layers; i++) expected += 2 * (m.view[i] != NULL);
        if (ok && st.count != expected)
            ok = fail(err, "%s: holds %" PRId64 " tensors, expected %" PRId64, path, st.count, expected);
        ok = ok && load_buffer(g, &opt->m, &m, "first moments", err) &&
             load_buffer(g, &opt->v, &v, "second moments", err);
        weights_free(&m);
        weights_free(&v);
        safetensors_close(&st);
    }
    free(path);
    return ok && checkpoint_load_master(opt, g, dir, err);
}

/* --- tokenizer --- */

struct tokenizer *checkpoint_load_tokenizer(const char *dir, struct error *err) {
    static const char *const names[] = {"tokenizer.json", "vocab.bpe", "merges.txt"};
    bool there = false;
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
        char *path = xasprintf("%s/%s", dir, names[i]);
        there |= path_exists(path);
        free(path);
    }
    struct gpt_config config;
    if (!there) {
        fail(err, "%s", "");
        return NULL;
    }
    if (!model_config_read(&config, dir, err)) return NULL;
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
