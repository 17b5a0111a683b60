/* Tensors of a model on disk. A table says where each piece of each parameter lies in the mapped files; it
 * is filled, and every shape checked, when the model is opened, so that reading needs no checks.
 * Conversion, transposition and writing go through buffers of bounded size. */
#include "llmc/format/model_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/format/import_gguf.h"
#include "llmc/format/llmc_bin.h"
#include "llmc/format/model_config.h"
#include "llmc/ops/tensor.h"

enum {
    PIECE = 1 << 21,    /* elements that are converted and written at a time: 8 MiB of fp32 */
    PARALLEL = 1 << 16, /* elements from which on threads pay */
    TILE_COLS = 112,    /* not a power of two: a column of the tile would lie in few sets of the cache */
    TILE = 32 /* rows of one tile of a transposition: whole cache lines on the side that is written */
};

/* --- tables --- */

const struct st_view **weights_view(const struct weights *w, enum param_id id, int piece, int64_t layer) {
    return &w->view[((int64_t)id * MOST_PIECES + piece) * w->config.layers + layer];
}

int64_t weights_rows(const struct gpt_config *c, enum param_id id) {
    const struct param_row *row = &gpt_param_rows[id];
    return row->rows == DIM_VP ? c->vocab_size : gpt_dim_size(c, row->rows);
}

int64_t weights_cols(const struct gpt_config *c, enum param_id id) {
    return gpt_dim_size(c, gpt_param_rows[id].cols);
}

/* Shape in the file; returns the rank. */
static int stored_shape(int64_t dim[2], const struct piece *p) {
    dim[p->transposed] = p->rows;
    dim[!p->transposed] = p->cols;
    return p->vector ? 1 : 2;
}

static bool check_view(const struct st_view *v, const struct gpt_config *c, const struct piece *p,
                       struct error *err) {
    int64_t dim[2];
    int rank = stored_shape(dim, p);
    if (v->dtype != ST_F32 && v->dtype != ST_F16 && v->dtype != ST_BF16 && v->dtype != ST_F64 &&
        v->dtype != ST_Q8_0)
        return fail(err, "%s: tensor %s: expected F32, F16, BF16 or F64 values", v->path, st_view_text(v));
    if (v->rank == rank && v->dim[0] == dim[0] && (rank == 1 || v->dim[1] == dim[1])) return true;
    const char *expected = rank == 1 ? temp_printf("(%" PRId64 ")", dim[0])
                                     : temp_printf("(%" PRId64 ",%" PRId64 ")", dim[0], dim[1]);
    return fail(err,
                "%s: tensor %s does not fit the configuration, which asks for %s (a vocabulary of %" PRId64
                ", a context of %" PRId64 ", %" PRId64 " channels, %" PRId64 " layers)",
                v->path, st_view_text(v), expected, c->vocab_size, c->context, c->channels, c->layers);
}

bool weights_find(struct weights *w, const struct gpt_config *config, enum gpt_format format,
                  const struct safetensors *st, const char *prefix, const char *skip, bool blocks,
                  struct error *err) {
    *w = (struct weights){.config = *config, .format = format};
    const char *path = st->count ? st->tensors[0].path : "empty safetensors file";
    /* A configuration may claim thousands of layers that the file does not have. */
    if (st->count < config->layers)
        return fail(err, "%s: %" PRId64 " tensors are too few for a model of %" PRId64 " layers", path,
                    st->count, config->layers);
    w->view = (const struct st_view **)xcalloc((size_t)(PARAM_ROWS * MOST_PIECES * config->layers),
                                               sizeof(struct st_view *));
    for (int i = 0; i < PARAM_ROWS; i++) {
        enum param_id id = (enum param_id)i;
        struct piece piece[MOST_PIECES];
        int pieces = format_pieces(piece, format, config, id);
        if (!blocks && gpt_param_in_blocks(id)) continue;
        for (int64_t l = 0; l < gpt_param_copies(config, id); l++)
            for (int k = 0; k < pieces; k++) {
                const char *name = piece_name(&piece[k], l);
                if (strncmp(name, skip, strlen(skip)) == 0) name += strlen(skip);
                name = temp_printf("%s%s", prefix, name);
                const struct st_view *v = safetensors_find(st, name);
                if (!v) fail(err, "%s: tensor \"%s\" is missing", path, name);
                if (!v || !check_view(v, config, &piece[k], err)) {
                    weights_free(w);
                    return false;
                }
                *weights_view(w, id, k, l) = v;
            }
    }
    return true;
}

void weights_free(struct weights *w) {
    free(w->view);
    memset(w, 0, sizeof *w);
}

/* --- opening --- */

/* Constants that old files carry beside the parameters: "h.0.attn.bias" (the causal mask),
 * "h.0.attn.masked_bias", and "model.layers.0.self_attn.rotary_emb.inv_freq". */
static bool is_constant(const char *name) {
    size_t n = strlen(name);
    const char *const ends[] = {".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"};
    for (size_t i = 0; i < ARRAY_LENGTH(ends); i++) {
        size_t m = strlen(ends[i]);
        if (n >= m && strcmp(name + n - m, ends[i]) == 0) return true;
    }
    return false;
}

/* The head of a tied model is accepted when it is a copy of the token embedding. */
static bool check_head(const struct st_view *head, const struct weights *w, struct error *err) {
    const struct st_view *wte = *weights_view(w, P_WTE, 0, 0);
    struct piece piece[MOST_PIECES];
    format_pieces(piece, w->format, &w->config, P_WTE);
    if (!check_view(head, &w->config, piece, err)) return false;
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
                  ": %g and %g), but config.json says that they are tied: set its \"tie_word_embeddings\" to "
                  "false",
                  head->path, head->name, wte->name, at + i, (double)b[i], (double)a[i]);
    }
    free(a);
    return ok;
}

static bool is_parameter(const struct weights *w, const struct st_view *v) {
    for (int64_t k = 0; k < PARAM_ROWS * MOST_PIECES * w->config.layers; k++)
        if (w->view[k] == v) return true;
    return false;
}

/* Every tensor that is not a parameter must be one that can be left out. */
static bool check_others(const struct model_file *m, const char *skip, struct error *err) {
    const struct weights *w = &m->weights;
    if (m->st.count == format_tensor_count(w->format, &w->config)) return true;
    struct piece piece[MOST_PIECES];
    format_pieces(piece, w->format, &w->config, P_QKV_W);
    for (int64_t i = 0; i < m->st.count; i++) {
        const struct st_view *v = &m->st.tensors[i];
        if (is_constant(v->name) || is_parameter(w, v)) continue;
        if (m->gguf && strcmp(v->name, "rope_freqs.weight") == 0) continue; /* gguf_config() reads it */
        if (strcmp(v->name, m->gguf ? "output.weight" : "lm_head.weight") == 0 &&
            w->config.tied == SWITCH_ON) {
            if (!check_head(v, w, err)) return false;
            continue;
        }
        return fail(err,
                    "%s: tensor %s is not part of %s of %" PRId64
                    " layers (parameters are expected to be named %s and so on)",
                    v->path, st_view_text(v), gpt_format_name(w->format), w->config.layers,
                    piece_name(piece, 0) + strlen(skip));
    }
    return true;
}

/* If the weights are there in a format that is not read, the reason says so. */
static void name_other_weights(const char *dir, struct error *err) {
    static const char *const names[] = {"pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5",
                                        "flax_model.msgpack", "consolidated.00.pth"};
    char *own = xasprintf("%s/model.safetensors", dir);
    for (size_t i = 0; i < ARRAY_LENGTH(names) && !path_exists(own); i++) {
        char *other = xasprintf("%s/%s", dir, names[i]);
        bool found = path_exists(other);
        if (found)
            fail(err,
                 "%s: holds its weights only as %s; this engine reads safetensors, which this writes to "
                 "%s-safetensors: python3 -c \"from transformers import AutoModelForCausalLM as M; "
                 "M.from_pretrained('%s').save_pretrained('%s-safetensors')\"",
                 dir, names[i], dir, dir, dir);
        free(other);
        if (found) break;
    }
    free(own);
}

static bool open_directory(struct model_file *m, const char *dir, struct error *err) {
    struct gpt_config config;
    enum gpt_format format;
    if (!model_config_read(&config, &format, dir, err)) return false;
    if (!safetensors_open_directory(&m->st, dir, "model", err)) {
        name_other_weights(dir, err);
        return false;
    }
    /* A GPT2LMHeadModel as transformers writes it has the prefix, the published GPT-2 weights do not. */
    bool bare = format == FORMAT_HF_GPT2 && !safetensors_find(&m->st, "transformer.wte.weight");
    const char *skip = bare ? "transformer." : "";
    return weights_find(&m->weights, &config, format, &m->st, "", skip, true, err) &&
           check_others(m, skip, err);
}

static bool open_gguf(struct model_file *m, const char *path, struct error *err) {
    struct gpt_config config;
    enum gpt_format format;
    m->gguf = (struct gguf_file *)xcalloc(1, sizeof *m->gguf);
    if (!gguf_open(m->gguf, path, err) || !gguf_config(&config, &format, m->gguf, err)) return false;
    safetensors_index(&m->st, m->gguf->tensors, m->gguf->tensor_count);
    return weights_find(&m->weights, &config, format, &m->st, "", "", true, err) && check_others(m, "", err);
}

bool model_file_open(struct model_file *m, const char *path, struct error *err) {
    memset(m, 0, sizeof *m);
    bool ok;
    if (!path_exists(path))
        ok = fail(err, "%s: no such file or directory", path);
    else
        ok = path_is_directory(path) ? open_directory(m, path, err)
             : gguf_is_one(path)     ? open_gguf(m, path, err)
                                     : llmc_bin_open(m, path, err);
    if (!ok) model_file_close(m);
    return ok;
}

bool model_file_open_adapted(struct model_file *m, const char *path, const char *adapter, struct error *err) {
    if (!model_file_open(m, path, err)) return false;
    if (!adapter || (m->weights.adapter = adapter_open(adapter, &m->weights, err))) return true;
    model_file_close(m);
    return false;
}

void model_file_close(struct model_file *m) {
    adapter_close(m->weights.adapter);
    weights_free(&m->weights);
    safetensors_close(&m->st);
    if (m->gguf) gguf_close(m->gguf);
    free(m->gguf);
    file_unmap(&m->bin);
    free(m->bin_views);
    memset(m, 0, sizeof *m);
}

/* --- reading --- */

/* Columns [first, first+count) of the stored (C,OC) matrix become rows (count,C). Tiles of 32 stored rows
 * are converted to fp32, then written as whole cache lines. */
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

/* Rows [first, first+count) of a piece whose heads' rows are interleaved. */
static bool read_interleaved(float *out, const struct st_view *v, int64_t cols, int64_t HS, int64_t first,
                             int64_t count) {
    bool ok = true;
#pragma omp parallel for schedule(static) if (cols * count >= PARALLEL)
    for (int64_t r = first; r < first + count; r++) {
        int64_t i = r % HS, stored = r - i + 2 * (i % (HS / 2)) + i / (HS / 2);
        if (!safetensors_to_f32(out + (r - first) * cols, v, stored * cols, cols, NULL)) ok = false;
    }
    return ok;
}

bool weights_read(float *out, const struct weights *w, enum param_id id, int64_t layer, int64_t first,
                  int64_t count, struct error *err) {
    struct piece piece[MOST_PIECES];
    int pieces = format_pieces(piece, w->format, &w->config, id);
    for (int k = 0; k < pieces; k++) {
        const struct piece *p = &piece[k];
        const struct st_view *v = *weights_view(w, id, k, layer);
        int64_t from = max_i64(first, p->first), end = min_i64(first + count, p->first + p->rows);
        if (from >= end) continue;
        float *to = out + (from - first) * p->cols;
        bool ok = true;
        if (p->interleaved)
            ok = read_interleaved(to, v, p->cols, w->config.head_size, from - p->first, end - from);
        else if (p->transposed)
            ok = read_transposed(to, v, from - p->first, end - from, err);
        else
            ok = safetensors_to_f32(to, v, (from - p->first) * p->cols, (end - from) * p->cols, err);
        if (!ok) return false;
    }
    if (w->adapter) adapter_add(w->adapter, out, id, layer, first, count);
    return true;
}

bool weights_hash(const struct weights *w, uint64_t *hash, struct error *err) {
    struct weights base = *w;
    XXH3_state_t *state = XXH3_createState();
    bool ok = true;
    check(state, "out of host memory");
    XXH3_64bits_reset(state);
    base.adapter = NULL;
    for (int id = 0; ok && id < PARAM_ROWS; id++) {
        int64_t rows = weights_rows(&w->config, (enum param_id)id),
                cols = weights_cols(&w->config, (enum param_id)id);
        float *row = (float *)xmalloc((size_t)cols * sizeof *row);
        for (int64_t l = 0; ok && l < gpt_param_copies(&w->config, (enum param_id)id); l++)
            for (int64_t k = 0; ok && k < 4; k++) {
                ok = weights_read(row, &base, (enum param_id)id, l, (rows - 1) * k / 3, 1, err);
                if (ok) XXH3_64bits_update(state, row, (size_t)cols * sizeof *row);
            }
        free(row);
    }
    *hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return ok;
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
        for (int64_t l = 0; l < gpt_param_copies(c, (enum param_id)id); l++) {
            int64_t at = p.offset[id] + l * p.stride[id];
            if (at >= first && at < end) visit(arg, (enum param_id)id, l);
        }
}

struct put {
    struct safetensors_writer *w;
    const struct gpt_config *config;
    enum gpt_format format;
    const char *prefix;
    enum st_dtype dtype;
    weights_source *read;
    const void *source;
    struct put_buffers *buffers;
};

static void declare_parameter(void *arg, enum param_id id, int64_t layer) {
    const struct put *p = (const struct put *)arg;
    struct piece piece[MOST_PIECES];
    int pieces = format_pieces(piece, p->format, p->config, id);
    for (int k = 0; k < pieces; k++) {
        int64_t dim[2];
        int rank = stored_shape(dim, &piece[k]);
        safetensors_declare(p->w, temp_printf("%s%s", p->prefix, piece_name(&piece[k], layer)), p->dtype,
                            rank, dim);
    }
}

void weights_declare(struct safetensors_writer *w, const struct gpt_config *c, const char *prefix,
                     enum st_dtype dtype, int64_t first, int64_t end) {
    struct put p = {.w = w, .config = c, .format = format_for_directory(c), .prefix = prefix, .dtype = dtype};
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

static struct put_buffers put_buffers_new(const struct put *p) {
    int64_t turned = 0;
    struct piece piece[MOST_PIECES];
    for (int id = 0; id < PARAM_ROWS; id++) {
        int pieces = format_pieces(piece, p->format, p->config, (enum param_id)id);
        for (int k = 0; k < pieces; k++)
            if (piece[k].transposed) turned = max_i64(turned, piece[k].rows * piece[k].cols);
    }
    /* a row may be longer than a piece */
    int64_t values = max_i64(max_i64(turned, PIECE), max_i64(p->config->ff, p->config->channels));
    struct put_buffers b = {.values = (float *)xmalloc((size_t)values * sizeof(float)),
                            .turned = (float *)xmalloc((size_t)turned * sizeof(float))};
    if (p->dtype != ST_F32) b.narrow = (uint16_t *)xmalloc(PIECE * sizeof *b.narrow);
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

/* Some rows at a time, or as a whole where it has to be transposed. */
static bool put_piece(const struct put *p, const struct piece *piece, enum param_id id, int64_t layer,
                      struct error *err) {
    const struct put_buffers *b = p->buffers;
    char *name = xasprintf("%s%s", p->prefix, piece_name(piece, layer));
    int64_t rows = piece->rows, cols = piece->cols;
    bool turn = piece->transposed, ok = true;
    int64_t step = turn ? rows : min_i64(rows, max_i64(1, PIECE / cols));
    for (int64_t first = 0; ok && first < rows; first += step) {
        int64_t n = min_i64(step, rows - first);
        ok = p->read(b->values, p->source, id, layer, piece->first + first, n, err);
        if (ok && turn) transpose(b->turned, b->values, rows, cols);
        ok = ok && put_values(p->w, name, turn ? b->turned : b->values, n * cols, p->dtype, b->narrow, err);
    }
    free(name);
    return ok;
}

static void put_parameter(void *arg, enum param_id id, int64_t layer) {
    const struct put *p = (const struct put *)arg;
    struct piece piece[MOST_PIECES];
    int pieces = format_pieces(piece, p->format, p->config, id);
    for (int k = 0; k < pieces; k++)
        if (!p->w->file.failed && !put_piece(p, &piece[k], id, layer, &p->w->file.error))
            p->w->file.failed = true;
}

void weights_put(struct safetensors_writer *w, const struct gpt_config *c, const char *prefix,
                 enum st_dtype dtype, int64_t first, int64_t end, weights_source *read, const void *source) {
    struct put p = {w, c, format_for_directory(c), prefix, dtype, read, source, NULL};
    struct put_buffers b = put_buffers_new(&p);
    p.buffers = &b;
    weights_each(c, first, end, put_parameter, &p);
    free(b.values);
    free(b.turned);
    free(b.narrow);
}
