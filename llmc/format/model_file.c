/* Tensors of a model on disk: finding and checking them, reading rows, writing all of them.
 *
 * Order: sizes; tables; opening a directory; reading with transposition; 16-bit values; writing. */
#include "llmc/format/model_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECE = 1 << 21,    /* elements that are converted and written at a time: 8 MiB of fp32 */
    PARALLEL = 1 << 16, /* elements from which on threads pay */
    TILE_COLS = 112,    /* not a power of two: a column of the tile would lie in few sets of the cache */
    TILE = 32 /* rows of one tile of a transposition: whole cache lines on the side that is written */
};

/* --- sizes --- */

int64_t weights_rows(const struct gpt_config *c, enum param_id id) {
    return id == P_WTE ? c->vocab_size : gpt_dim_size(c, gpt_param_rows[id].rows);
}

int64_t weights_cols(const struct gpt_config *c, enum param_id id) {
    return gpt_dim_size(c, gpt_param_rows[id].cols);
}

static int64_t layers_of(const struct gpt_config *c, enum param_id id) {
    return gpt_param_rows[id].per_layer ? c->layers : 1;
}

static bool is_vector(enum param_id id) { return gpt_param_rows[id].cols == DIM_NONE; }

/* Shape in the file; returns the rank. */
static int stored_shape(int64_t dim[2], const struct gpt_config *c, enum param_id id, bool conv1d) {
    bool swap = conv1d && gpt_param_rows[id].conv1d;
    dim[swap] = weights_rows(c, id);
    dim[!swap] = weights_cols(c, id);
    return is_vector(id) ? 1 : 2;
}

/* --- tables --- */

static bool check_view(const struct st_view *v, const struct gpt_config *c, enum param_id id,
                       struct error *err) {
    int64_t dim[2];
    int rank = stored_shape(dim, c, id, true);
    if (v->dtype != ST_F32 && v->dtype != ST_F16 && v->dtype != ST_BF16 && v->dtype != ST_F64)
        return fail(err, "%s: tensor %s: expected F32, F16, BF16 or F64 values", v->path, st_view_text(v));
    if (v->rank == rank && v->dim[0] == dim[0] && (rank == 1 || v->dim[1] == dim[1])) return true;
    char expected[64];
    if (rank == 1)
        snprintf(expected, sizeof expected, "(%" PRId64 ")", dim[0]);
    else
        snprintf(expected, sizeof expected, "(%" PRId64 ",%" PRId64 ")", dim[0], dim[1]);
    return fail(err,
                "%s: tensor %s does not fit the configuration, which asks for %s (vocab_size %" PRId64
                ", n_positions %" PRId64 ", n_embd %" PRId64 ", n_layer %" PRId64 ")",
                v->path, st_view_text(v), expected, c->vocab_size, c->context, c->channels, c->layers);
}

bool weights_find(struct weights *w, const struct gpt_config *config, const struct safetensors *st,
                  const char *prefix, struct error *err) {
    *w = (struct weights){.config = *config, .conv1d = true};
    /* A configuration may claim thousands of layers that the file does not have. */
    if (st->count < config->layers)
        return fail(err, "%s: %" PRId64 " tensors are too few for a model of %" PRId64 " layers",
                    st->count ? st->tensors[0].path : "empty safetensors file", st->count, config->layers);
    w->view =
        (const struct st_view **)xcalloc((size_t)(PARAM_ROWS * config->layers), sizeof(struct st_view *));
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < layers_of(config, (enum param_id)id); l++) {
            char name[128];
            snprintf(name, sizeof name, "%s%s", prefix, gpt_param_name((enum param_id)id, l));
            const struct st_view *v = safetensors_find(st, name);
            if (v && check_view(v, config, (enum param_id)id, err)) {
                w->view[id * config->layers + l] = v;
                continue;
            }
            if (!v)
                fail(err, "%s: tensor \"%s\" is missing", st->count ? st->tensors[0].path : "no file", name);
            weights_free(w);
            return false;
        }
    return true;
}

void weights_free(struct weights *w) {
    free(w->view);
    memset(w, 0, sizeof *w);
}

/* --- opening --- */

/* Constants that old files carry beside the parameters: "h.0.attn.bias" (the causal mask) and
 * "h.0.attn.masked_bias". */
static bool is_mask(const char *name) {
    size_t n = strlen(name);
    const char *const ends[] = {".attn.bias", ".attn.masked_bias"};
    for (size_t i = 0; i < ARRAY_LENGTH(ends); i++) {
        size_t m = strlen(ends[i]);
        if (n >= m && strcmp(name + n - m, ends[i]) == 0) return true;
    }
    return false;
}

/* A head of its own is accepted when it is a copy of the token embedding. */
static bool check_head(const struct st_view *head, const struct weights *w, struct error *err) {
    const struct st_view *wte = w->view[P_WTE * w->config.layers];
    if (!check_view(head, &w->config, P_WTE, err)) return false;
    float *a = (float *)xmalloc(2 * PIECE * sizeof *a), *b = a + PIECE;
    bool ok = true;
    for (int64_t at = 0; ok && at < wte->count; at += PIECE) {
        int64_t n = min_i64(PIECE, wte->count - at);
        ok = safetensors_to_f32(a, wte, at, n, err) && safetensors_to_f32(b, head, at, n, err);
        if (!ok || memcmp(a, b, (size_t)n * sizeof *a) == 0) continue;
        int64_t i = 0;
        while (memcmp(&a[i], &b[i], sizeof *a) == 0) i++;
        ok = fail(err,
                  "%s: tensor \"%s\" differs from \"%s\" (element %" PRId64
                  ": %g and %g): an output head of its own is not implemented by this engine",
                  head->path, head->name, wte->name, at + i, (double)b[i], (double)a[i]);
    }
    free(a);
    return ok;
}

/* Every tensor that is not a parameter must be one that can be left out. */
static bool check_others(const struct model_file *m, const char *prefix, struct error *err) {
    const struct weights *w = &m->weights;
    int64_t parameters = 0;
    for (int id = 0; id < PARAM_ROWS; id++) parameters += layers_of(&w->config, (enum param_id)id);
    if (m->st.count == parameters) return true;
    for (int64_t i = 0; i < m->st.count; i++) {
        const struct st_view *v = &m->st.tensors[i];
        if (strcmp(v->name, "lm_head.weight") == 0) {
            if (!check_head(v, w, err)) return false;
        } else if (!is_mask(v->name)) {
            bool known = false;
            for (int64_t k = 0; !known && k < PARAM_ROWS * w->config.layers; k++) known = w->view[k] == v;
            if (!known)
                return fail(err,
                            "%s: tensor %s is not part of a GPT-2 of %" PRId64
                            " layers (parameters are expected to be named %s%s and so on)",
                            v->path, st_view_text(v), w->config.layers, prefix, gpt_param_name(P_QKV_W, 0));
        }
    }
    return true;
}

static bool open_directory(struct model_file *m, const char *dir, struct error *err) {
    struct gpt_config config;
    if (!model_config_read(&config, dir, err)) return false;
    if (!safetensors_open_directory(&m->st, dir, "model", err)) {
        char *pickle = xasprintf("%s/pytorch_model.bin", dir), *st = xasprintf("%s/model.safetensors", dir);
        if (path_exists(pickle) && !path_exists(st))
            fail(err,
                 "%s: holds its weights only as pytorch_model.bin; this engine reads safetensors "
                 "(transformers' save_pretrained writes them)",
                 dir);
        free(pickle);
        free(st);
        return false;
    }
    /* A GPT2LMHeadModel as transformers writes it has the prefix, the published GPT-2 weights do not. */
    const char *prefix = safetensors_find(&m->st, HF_PREFIX "wte.weight") ? HF_PREFIX : "";
    return weights_find(&m->weights, &config, &m->st, prefix, err) && check_others(m, prefix, err);
}

bool model_file_open(struct model_file *m, const char *path, struct error *err) {
    memset(m, 0, sizeof *m);
    bool ok;
    if (!path_exists(path))
        ok = fail(err, "%s: no such file or directory", path);
    else
        ok = path_is_directory(path) ? open_directory(m, path, err) : llmc_bin_open(m, path, err);
    if (!ok) model_file_close(m);
    return ok;
}

void model_file_close(struct model_file *m) {
    weights_free(&m->weights);
    safetensors_close(&m->st);
    file_unmap(&m->bin);
    free(m->bin_views);
    memset(m, 0, sizeof *m);
}

/* --- reading --- */

/* Columns [first, first+count) of the stored (C,OC) matrix become rows (count,C). Tiles of 32 stored rows are
 * converted to fp32, then written as whole cache lines. */
static bool read_transposed(float *out, const struct st_view *v, int64_t first, int64_t count,
                            struct error *err) {
    int64_t C = v->dim[0], OC = v->dim[1];
    bool ok = true;
#pragma omp parallel for schedule(static) if (C * count >= PARALLEL)
    for (int64_t c0 = 0; c0 < C; c0 += TILE) {
        float tile[TILE][TILE_COLS];
        int64_t n = min_i64(TILE, C - c0);
        for (int64_t r0 = 0; r0 < count; r0 += TILE_COLS) {
            int64_t m = min_i64(TILE_COLS, count - r0);
            for (int64_t c = 0; c < n; c++)
                if (!safetensors_to_f32(tile[c], v, (c0 + c) * OC + first + r0, m, NULL)) ok = false;
            for (int64_t r = 0; r < m; r++)
                for (int64_t c = 0; c < n; c++) out[(r0 + r) * C + c0 + c] = tile[c][r];
        }
    }
    return ok || fail(err, "%s: cannot read tensor %s", v->path, st_view_text(v));
}

bool weights_read(float *out, const struct weights *w, enum param_id id, int64_t layer, int64_t first,
                  int64_t count, struct error *err) {
    const struct st_view *v = w->view[id * w->config.layers + layer];
    int64_t cols = weights_cols(&w->config, id);
    if (w->conv1d && gpt_param_rows[id].conv1d) return read_transposed(out, v, first, count, err);
    return safetensors_to_f32(out, v, first * cols, count * cols, err);
}

/* --- 16-bit values --- */

uint16_t f16_from_f32(float x) {
    union {
        float f;
        uint32_t u;
    } b;
    b.f = x;
    uint32_t sign = b.u >> 16 & 0x8000u, magnitude = b.u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);  /* NaN */
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (magnitude >= 0x38800000u) { /* normal: rebias the exponent, round to even at bit 13 */
        magnitude -= (uint32_t)(127 - 15) << 23;
        return (uint16_t)(sign | (magnitude + 0x0fffu + (magnitude >> 13 & 1u)) >> 13);
    }
    /* Subnormal: adding 0.5 aligns the last place of fp16 (2^-24) with the last place of fp32. */
    b.u = magnitude;
    b.f += 0.5f;
    return (uint16_t)(sign | (b.u - 0x3f000000u));
}

bool narrow_values(uint16_t *out, const float *values, int64_t n, enum st_dtype dtype) {
    int64_t lost = 0;
    if (dtype == ST_BF16) {
        for (int64_t i = 0; i < n; i++) out[i] = bf16_from_f32(values[i]);
    } else {
        for (int64_t i = 0; i < n; i++) {
            out[i] = f16_from_f32(values[i]);
            lost += (out[i] & 0x7fffu) == 0x7c00u && isfinite(values[i]);
        }
    }
    return lost == 0;
}

/* --- writing --- */

void weights_each(const struct gpt_config *c, int64_t first, int64_t end,
                  void (*visit)(void *arg, enum param_id id, int64_t layer), void *arg) {
    struct gpt_params p;
    gpt_params_layout(&p, c);
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < layers_of(c, (enum param_id)id); l++) {
            int64_t at = p.offset[id] + l * p.stride[id];
            if (at >= first && at < end) visit(arg, (enum param_id)id, l);
        }
}

struct put {
    struct safetensors_writer *w;
    const struct gpt_config *config;
    const char *prefix;
    enum st_dtype dtype;
    weights_source *read;
    const void *source;
    struct put_buffers *buffers;
};

static void declare_parameter(void *arg, enum param_id id, int64_t layer) {
    const struct put *p = (const struct put *)arg;
    char name[128];
    snprintf(name, sizeof name, "%s%s", p->prefix, gpt_param_name(id, layer));
    int64_t dim[2];
    int rank = stored_shape(dim, p->config, id, true);
    safetensors_declare(p->w, name, p->dtype, rank, dim);
}

void weights_declare(struct safetensors_writer *w, const struct gpt_config *c, const char *prefix,
                     enum st_dtype dtype, int64_t first, int64_t end) {
    struct put p = {.w = w, .config = c, .prefix = prefix, .dtype = dtype};
    weights_each(c, first, end, declare_parameter, &p);
}

/* out (cols,rows) = inp (rows,cols) transposed. On one thread, which is several times faster than any disk,
 * and does not depend on how busy the other cores are. */
static void transpose(float *restrict out, const float *restrict inp, int64_t rows, int64_t cols) {
    for (int64_t c0 = 0; c0 < cols; c0 += TILE)
        for (int64_t r0 = 0; r0 < rows; r0 += TILE) {
            int64_t c1 = min_i64(c0 + TILE, cols), r1 = min_i64(r0 + TILE, rows);
            for (int64_t c = c0; c < c1; c++)
                for (int64_t r = r0; r < r1; r++) out[c * rows + r] = inp[r * cols + c];
        }
}

/* Host memory for one parameter, taken once: fresh pages for every matrix would cost more than the
 * copying. */
struct put_buffers {
    float *values, *turned; /* the largest matrix that is transposed, or a piece */
    uint16_t *narrow;       /* a piece; only for 16-bit values */
};

static struct put_buffers put_buffers_new(const struct gpt_config *c, enum st_dtype dtype) {
    int64_t turned = 0;
    for (int id = 0; id < PARAM_ROWS; id++)
        if (gpt_param_rows[id].conv1d)
            turned = max_i64(turned, weights_rows(c, (enum param_id)id) * weights_cols(c, (enum param_id)id));
    struct put_buffers b = {.values = (float *)xmalloc((size_t)max_i64(turned, PIECE) * sizeof(float)),
                            .turned = (float *)xmalloc((size_t)turned * sizeof(float))};
    if (dtype != ST_F32) b.narrow = (uint16_t *)xmalloc(PIECE * sizeof *b.narrow);
    return b;
}

/* Narrows `n` values if need be and puts them. */
static bool put_values(struct safetensors_writer *w, const char *name, const float *values, int64_t n,
                       enum st_dtype dtype, uint16_t *narrow, struct error *err) {
    if (dtype == ST_F32) safetensors_put(w, name, values, n * 4);
    for (int64_t at = 0; dtype != ST_F32 && at < n; at += PIECE) {
        int64_t part = min_i64(PIECE, n - at);
        if (!narrow_values(narrow, values + at, part, dtype))
            return fail(err,
                        "%s: tensor \"%s\" holds a value that fp16 cannot (more than 65504): use bf16 or f32",
                        w->file.path, name);
        safetensors_put(w, name, narrow, part * 2);
    }
    return true;
}

/* In pieces of rows, or as a whole where it has to be transposed. */
static bool put_rows(const struct put *p, const char *name, enum param_id id, int64_t layer,
                     struct error *err) {
    const struct put_buffers *b = p->buffers;
    int64_t rows = weights_rows(p->config, id), cols = weights_cols(p->config, id);
    bool turn = gpt_param_rows[id].conv1d, ok = true;
    int64_t step = turn ? rows : min_i64(rows, max_i64(1, PIECE / cols));
    for (int64_t first = 0; ok && first < rows; first += step) {
        int64_t n = min_i64(step, rows - first);
        ok = p->read(b->values, p->source, id, layer, first, n, err);
        if (ok && turn) transpose(b->turned, b->values, rows, cols);
        ok = ok && put_values(p->w, name, turn ? b->turned : b->values, n * cols, p->dtype, b->narrow, err);
    }
    return ok;
}

static void put_parameter(void *arg, enum param_id id, int64_t layer) {
    const struct put *p = (const struct put *)arg;
    char name[128];
    snprintf(name, sizeof name, "%s%s", p->prefix, gpt_param_name(id, layer));
    if (!p->w->file.failed && !put_rows(p, name, id, layer, &p->w->file.error)) p->w->file.failed = true;
}

void weights_put(struct safetensors_writer *w, const struct gpt_config *c, const char *prefix,
                 enum st_dtype dtype, int64_t first, int64_t end, weights_source *read, const void *source) {
    struct put_buffers b = put_buffers_new(c, dtype);
    struct put p = {w, c, prefix, dtype, read, source, &b};
    weights_each(c, first, end, put_parameter, &p);
    free(b.values);
    free(b.turned);
    free(b.narrow);
}
