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

enum { PIECE = 1 << 20 }; /* elements on the host at a time: small enough for the caches */

struct loader {
    struct gpt *gpt;
    const struct tensor *buffer; /* laid out like the parameters */
    float *values;
    int64_t not_finite; /* elements seen so far */
    char first_bad[64]; /* the tensor of the first */
};

static void upload(struct loader *l, int64_t at, const float *values, int64_t n) {
    const struct tensor *b = l->buffer;
    void *to = (char *)b->data + at * (int64_t)dtype_size(b->dtype);
    struct tensor part = tensor_make(b->name, b->dtype, to, n, 0, 0, 0);
    ctx_upload_f32(l->gpt->ctx, &part, values);
}

/* From the last stored element of a tensor to the next tensor: padded vocabulary and alignment. */
static void upload_zeros(struct loader *l, int64_t at, int64_t n) {
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

static bool load_parameter(struct loader *l, const struct weights *w, enum param_id id, int64_t layer,
                           struct error *err) {
    const struct gpt *g = l->gpt;
    int64_t rows = weights_rows(&g->config, id), cols = weights_cols(&g->config, id);
    int64_t at = g->layout.offset[id] + layer * g->layout.stride[id];
    int64_t step = max_i64(1, PIECE / cols);
    for (int64_t first = 0; first < rows; first += step) {
        int64_t n = min_i64(step, rows - first) * cols;
        if (!weights_read(l->values, w, id, layer, first, n / cols, err)) return false;
        int64_t bad = count_not_finite(l->values, n);
        if (bad && !l->not_finite) strncpy(l->first_bad, gpt_param_name(id, layer), sizeof l->first_bad - 1);
        l->not_finite += bad;
        upload(l, at + first * cols, l->values, n);
    }
    int64_t held = round_up(gpt_dim_size(&g->config, gpt_param_rows[id].rows) * cols, 128);
    upload_zeros(l, at + rows * cols, held - rows * cols);
    return true;
}

/* `what` is for the warning. */
static bool load_buffer(struct gpt *g, const struct tensor *buffer, const struct weights *w, const char *what,
                        struct error *err) {
    int64_t widest = max_i64(PIECE, 4 * g->config.channels);
    struct loader l = {.gpt = g, .buffer = buffer};
    l.values = (float *)xmalloc((size_t)widest * sizeof *l.values);
    bool ok = true;
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t k = 0; ok && k < (gpt_param_rows[id].per_layer ? g->config.layers : 1); k++)
            ok = load_parameter(&l, w, (enum param_id)id, k, err);
    if (ok && l.not_finite)
        warn("%s: %" PRId64 " of the %s are NaN or infinite, the first in %s: training on cannot succeed",
             w->view[0]->path, l.not_finite, what, l.first_bad);
    free(l.values);
    return ok;
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
