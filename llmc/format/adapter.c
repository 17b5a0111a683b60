/* Reads and writes adapters. Names and layers come from the family of Hugging Face models that the base
 * belongs to; what no family can say gets the engine's own names, which PEFT does not read. */
#include "llmc/format/adapter.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/json_file.h"
#include "llmc/format/checkpoint.h"
#include "llmc/format/model_file.h"

enum { A, B };
static const char *const moments[] = {"exp_avg.", "exp_avg_sq."};

/* --- files and names --- */

static bool has_file(const char *dir, const char *name) {
    char *path = xasprintf("%s/%s", dir, name);
    bool there = path_exists(path);
    free(path);
    return there;
}

bool adapter_is_one(const char *dir) { return has_file(dir, "adapter_config.json"); }

char *adapter_find(const char *path, struct error *err) {
    if (adapter_is_one(path) && !has_file(path, "trainer.json")) return xstrdup(path);
    char *found = checkpoint_find(path, err);
    if (!found || adapter_is_one(found)) return found;
    fail(err, "%s: holds a model, not an adapter (adapter_config.json and adapter_model.safetensors)", found);
    free(found);
    return NULL;
}

const char *adapter_tokenizer_directory(const char *adapter, const char *model) {
    return adapter && has_file(adapter, "tokenizer.json") ? adapter : model;
}

/* The layer in the file's names: "transformer.h.3.attn.c_attn", by temp_printf. A layer that is only a part
 * of a tensor there has the word of its target behind it. */
static const char *layer_name(const struct gpt_config *c, const struct lora_part *p, int64_t layer) {
    struct piece piece[MOST_PIECES];
    int pieces = format_pieces(piece, format_for_directory(c), c, p->id), k = 0;
    while (k + 1 < pieces && piece[k + 1].first <= p->first) k++;
    const char *name = piece_name(&piece[k], layer);
    bool whole = piece[k].first == p->first && piece[k].rows == p->rows;
    int length = (int)(strlen(name) - strlen(".weight"));
    return temp_printf("%.*s%s%s", length, name, whole ? "" : ".", whole ? "" : lora_word(p->target));
}

/* By temp_printf. */
static const char *tensor_name(const struct gpt_config *c, const char *prefix, const struct lora_part *p,
                               int64_t layer, int which) {
    return temp_printf("%sbase_model.model.%s.lora_%c.weight", prefix, layer_name(c, p, layer), 'A' + which);
}

static void shape_of(int64_t dim[2], const struct lora_part *p, int64_t rank, int which) {
    dim[0] = which == A ? rank : p->rows;
    dim[1] = which == A ? p->cols : rank;
}

/* (rows,cols) -> (cols,rows) */
static void transpose(float *out, const float *in, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < cols; k++) out[k * rows + i] = in[i * cols + k];
}

/* --- reading --- */

struct adapter {
    struct lora_layout layout; /* of all layers that the model has */
    int64_t rank;
    float scale;
    float **pair; /* (L, parts, 2) A (r,cols) and B (rows,r); NULL: the layer has no adapter */
};

static float **pair_at(const struct adapter *a, int64_t layer, int part) {
    return &a->pair[(layer * a->layout.parts + part) * 2];
}

static bool is_nothing(const json_t *v) {
    return !v || json_is_null(v) || json_is_false(v) || (json_is_object(v) && json_object_size(v) == 0) ||
           (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_string(v) && strcmp(json_string_value(v), "none") == 0);
}

static bool parse_config(struct adapter *a, const json_t *root, const char *path, struct error *err) {
    static const char *const others[] = {"use_dora",      "bias",      "modules_to_save",   "rank_pattern",
                                         "alpha_pattern", "lora_bias", "layer_replication", "use_qalora"};
    const char *type = json_string_value(json_object_get(root, "peft_type"));
    const json_t *alpha = json_object_get(root, "lora_alpha");
    json_int_t rank = json_integer_value(json_object_get(root, "r"));
    if (!type || strcmp(type, "LORA") != 0)
        return fail(err, "%s: \"peft_type\" is \"%.40s\", expected LORA", path, type ? type : "");
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++)
        if (!is_nothing(json_object_get(root, others[i])))
            return fail(err, "%s: has \"%s\", which is not supported: only A and B of one rank are", path,
                        others[i]);
    if (rank < 1 || rank > 4096 || !json_is_number(alpha))
        return fail(err, "%s: expected \"r\", 1 to 4096, and a number \"lora_alpha\"", path);
    bool by_root = json_is_true(json_object_get(root, "use_rslora"));
    a->rank = rank;
    a->scale = (float)(json_number_value(alpha) / (by_root ? sqrt((double)rank) : (double)rank));
    return true;
}

static bool read_config(struct adapter *a, const char *dir, struct error *err) {
    char *path = xasprintf("%s/adapter_config.json", dir);
    json_t *root = json_file_load(path, err);
    bool ok = root && parse_config(a, root, path, err);
    json_decref(root);
    free(path);
    return ok;
}

static bool is_shaped(const struct st_view *v, const int64_t dim[2], struct error *err) {
    return (v->rank == 2 && v->dim[0] == dim[0] && v->dim[1] == dim[1]) ||
           fail(err, "%s: tensor %s, expected (%" PRId64 ",%" PRId64 ")", v->path, st_view_text(v), dim[0],
                dim[1]);
}

static bool read_pair(struct adapter *a, const struct safetensors *st, const struct gpt_config *c,
                      int64_t layer, int part, int64_t *found, struct error *err) {
    const struct lora_part *p = &a->layout.part[part];
    float **pair = pair_at(a, layer, part);
    for (int which = A; which <= B; which++) {
        const struct st_view *v = safetensors_find(st, tensor_name(c, "", p, layer, which));
        int64_t dim[2];
        shape_of(dim, p, a->rank, which);
        if (!v) continue;
        if (!is_shaped(v, dim, err)) return false;
        pair[which] = (float *)xmalloc((size_t)v->count * sizeof(float));
        if (!safetensors_to_f32(pair[which], v, 0, v->count, err)) return false;
        ++*found;
    }
    if (!pair[A] == !pair[B]) return true;
    return fail(err, "%s: %s is there, but not %s", st->tensors[0].path,
                tensor_name(c, "", p, layer, pair[A] ? A : B), tensor_name(c, "", p, layer, pair[A] ? B : A));
}

/* A tensor that is in no pair. By temp_printf. */
static const char *unknown_tensor(const struct adapter *a, const struct safetensors *st,
                                  const struct gpt_config *c) {
    for (int64_t i = 0; i < st->count; i++) {
        bool known = false;
        for (int64_t k = 0; !known && k < c->layers * a->layout.parts * 2; k++)
            known = strcmp(st->tensors[i].name, tensor_name(c, "", &a->layout.part[k / 2 % a->layout.parts],
                                                            k / 2 / a->layout.parts, (int)(k % 2))) == 0;
        if (!known) return st->tensors[i].name;
    }
    return "(none)";
}

/* "base_hash" in the file against the model. */
static bool is_for(const struct safetensors *st, uint64_t hash, const char *dir, const char *model,
                   struct error *err) {
    const char *text = safetensors_metadata(st, "base_hash");
    return !text || strtoull(text, NULL, 16) == hash ||
           fail(err, "%s: is the adapter of another model, not of %s: their weights differ", dir, model);
}

static bool read_tensors(struct adapter *a, const char *dir, const struct weights *base, struct error *err) {
    struct safetensors st;
    uint64_t hash;
    int64_t found = 0;
    const struct gpt_config *c = &base->config;
    const char *model = (*weights_view(base, P_WTE, 0, 0))->path;
    if (!safetensors_open_directory(&st, dir, "adapter_model", err)) return false;
    bool ok = weights_hash(base, &hash, err) && is_for(&st, hash, dir, model, err);
    for (int64_t l = 0; ok && l < c->layers; l++)
        for (int i = 0; ok && i < a->layout.parts; i++) ok = read_pair(a, &st, c, l, i, &found, err);
    if (ok && (found == 0 || found != st.count))
        ok = fail(err,
                  "%s: holds %" PRId64 " tensors, of which %" PRId64
                  " are adapters of layers of %s, but for example not %s",
                  dir, st.count, found, model, unknown_tensor(a, &st, c));
    safetensors_close(&st);
    return ok;
}

struct adapter *adapter_open(const char *dir, const struct weights *base, struct error *err) {
    struct adapter *a = (struct adapter *)xcalloc(1, sizeof *a);
    bool ok = read_config(a, dir, err);
    if (ok) {
        struct lora_options all = {a->rank, a->scale, ~0u};
        lora_make_layout(&a->layout, &base->config, &all);
        a->pair = (float **)xcalloc((size_t)(base->config.layers * a->layout.parts * 2), sizeof *a->pair);
        a->layout.total = base->config.layers;
        ok = read_tensors(a, dir, base, err);
    }
    if (ok) return a;
    adapter_close(a);
    return NULL;
}

void adapter_close(struct adapter *a) {
    if (!a) return;
    for (int64_t i = 0; a->pair && i < a->layout.total * a->layout.parts * 2; i++) free(a->pair[i]);
    free(a->pair);
    free(a);
}

void adapter_add(const struct adapter *a, float *rows, enum param_id id, int64_t layer, int64_t first,
                 int64_t count) {
    for (int i = 0; i < a->layout.parts; i++) {
        const struct lora_part *p = &a->layout.part[i];
        float *const *pair = pair_at(a, layer, i);
        int64_t from = max_i64(first, p->first), end = min_i64(first + count, p->first + p->rows);
        if (p->id != id || !pair[A]) continue;
#pragma omp parallel for schedule(static) if ((end - from) * p->cols > 1 << 16)
        for (int64_t row = from; row < end; row++) {
            const float *b = pair[B] + (row - p->first) * a->rank;
            float *out = rows + (row - first) * p->cols;
            for (int64_t k = 0; k < a->rank; k++) {
                float factor = a->scale * b[k];
                const float *from_a = pair[A] + k * p->cols;
                for (int64_t c = 0; c < p->cols; c++) out[c] += factor * from_a[c];
            }
        }
    }
}

/* --- writing --- */

static json_t *config_json(const struct gpt *g) {
    const struct gpt_config *c = &g->config;
    const struct lora_options *o = &g->options.lora;
    json_t *targets = json_array();
    for (int i = 0; i < g->lora.layout.parts; i++) {
        const char *name = layer_name(c, &g->lora.layout.part[i], 0), *mark = strstr(name, ".0.");
        json_array_append_new(targets, json_string(mark ? mark + 3 : name));
    }
    return json_pack("{s:s, s:s, s:s, s:i, s:f, s:f, s:s, s:b, s:b, s:b, s:o}", "peft_type", "LORA",
                     "task_type", "CAUSAL_LM", "base_model_name_or_path", g->lora.base ? g->lora.base : "",
                     "r", (int)o->rank, "lora_alpha", (double)o->scale * (double)o->rank, "lora_dropout", 0.0,
                     "bias", "none", "fan_in_fan_out", format_for_directory(c) == FORMAT_HF_GPT2,
                     "inference_mode", 1, "use_rslora", 0, "target_modules", targets);
}

/* One file with A and B of all layers, from each buffer with its prefix. */
static bool write_tensors(const char *path, struct gpt *g, const struct tensor *const *buffers,
                          const char *const *prefixes, int count, struct error *err) {
    const struct lora_layout *l = &g->lora.layout;
    struct safetensors_writer w;
    int64_t rank = g->options.lora.rank, most = 0, L = g->config.layers;
    safetensors_writer_init(&w);
    safetensors_writer_metadata(&w, "format", "pt");
    safetensors_writer_metadata(&w, "base_hash", temp_printf("%016" PRIx64, g->lora.base_hash));
    for (int64_t k = 0; k < count * L * l->parts * 2; k++) {
        const struct lora_part *p = &l->part[k / 2 % l->parts];
        int64_t dim[2];
        shape_of(dim, p, rank, (int)(k % 2));
        safetensors_declare(
            &w,
            tensor_name(&g->config, prefixes[k / (L * l->parts * 2)], p, k / 2 / l->parts % L, (int)(k % 2)),
            ST_F32, 2, dim);
        most = max_i64(most, dim[0] * dim[1]);
    }
    if (!safetensors_writer_open(&w, path, err)) return false;
    float *values = (float *)xmalloc((size_t)most * sizeof *values),
          *turned = (float *)xmalloc((size_t)most * sizeof *turned);
    for (int64_t k = 0; k < count * L * l->parts * 2; k++) {
        const struct lora_part *p = &l->part[k / 2 % l->parts];
        int64_t buffer = k / (L * l->parts * 2), layer = k / 2 / l->parts % L;
        bool is_a = k % 2 == A;
        struct tensor t = is_a ? lora_a(g, buffers[buffer], p, layer) : lora_b(g, buffers[buffer], p, layer);
        ctx_download_f32(g->ctx, values, &t);
        if (is_a) transpose(turned, values, p->cols, rank);
        safetensors_put(&w, tensor_name(&g->config, prefixes[buffer], p, layer, (int)(k % 2)),
                        is_a ? turned : values, tensor_count(&t) * (int64_t)sizeof(float));
    }
    free(values);
    free(turned);
    return safetensors_writer_close(&w, err);
}

static const struct tensor *values_of(struct gpt *g, const struct optimizer *opt) {
    return opt->has_master ? &opt->master : &g->lora.params;
}

bool adapter_save(const char *dir, struct gpt *g, const struct optimizer *opt, struct error *err) {
    const struct tensor *values[] = {values_of(g, opt)}, *state[] = {&opt->m, &opt->v};
    static const char *const no_prefix[] = {""};
    char *config = xasprintf("%s/adapter_config.json", dir),
         *model = xasprintf("%s/adapter_model.safetensors", dir),
         *optimizer = xasprintf("%s/optimizer.safetensors", dir);
    bool ok = json_file_write(config, config_json(g), err) &&
              write_tensors(model, g, values, no_prefix, 1, err) &&
              write_tensors(optimizer, g, state, moments, optimizer_has_v(opt, true) ? 2 : 1, err);
    free(config);
    free(model);
    free(optimizer);
    return ok;
}

/* --- resuming --- */

static bool read_buffer(struct gpt *g, const struct tensor *buffer, const struct safetensors *st,
                        const char *prefix, struct error *err) {
    const struct lora_layout *l = &g->lora.layout;
    int64_t rank = g->options.lora.rank;
    bool ok = true;
    for (int64_t k = 0; ok && k < g->config.layers * l->parts * 2; k++) {
        const struct lora_part *p = &l->part[k / 2 % l->parts];
        int64_t layer = k / 2 / l->parts, dim[2];
        const char *name = tensor_name(&g->config, prefix, p, layer, (int)(k % 2));
        const struct st_view *v = safetensors_find(st, name);
        bool is_a = k % 2 == A;
        shape_of(dim, p, rank, (int)(k % 2));
        if (!v) return fail(err, "%s: has no tensor %s", st->count ? st->tensors[0].path : "adapter", name);
        if (!is_shaped(v, dim, err)) return false;
        float *values = (float *)xmalloc((size_t)v->count * sizeof *values),
              *turned = (float *)xmalloc((size_t)v->count * sizeof *turned);
        struct tensor t = is_a ? lora_a(g, buffer, p, layer) : lora_b(g, buffer, p, layer);
        ok = safetensors_to_f32(values, v, 0, v->count, err);
        if (ok && is_a) transpose(turned, values, rank, p->cols);
        if (ok) ctx_upload_f32(g->ctx, &t, is_a ? turned : values);
        free(values);
        free(turned);
    }
    return ok;
}

bool adapter_load(struct gpt *g, struct optimizer *opt, const char *dir, struct error *err) {
    struct safetensors st, state;
    if (!safetensors_open_directory(&st, dir, "adapter_model", err)) return false;
    if (!safetensors_open_directory(&state, dir, "optimizer", err)) {
        safetensors_close(&st);
        return false;
    }
    bool has_v = optimizer_has_v(opt, true);
    int64_t pairs = g->config.layers * g->lora.layout.parts;
    bool ok = is_for(&st, g->lora.base_hash, dir, g->lora.base, err) &&
              read_buffer(g, &g->lora.params, &st, "", err) &&
              (!opt->has_master || read_buffer(g, &opt->master, &st, "", err)) &&
              read_buffer(g, &opt->m, &state, moments[0], err) &&
              (!has_v || read_buffer(g, &opt->v, &state, moments[1], err));
    if (ok && (st.count != 2 * pairs || state.count != 2 * pairs * (has_v ? 2 : 1)))
        ok = fail(err,
                  "%s: holds %" PRId64 " tensors and %" PRId64 " of the optimizer, expected %" PRId64
                  " and %" PRId64 ": other layers or another optimizer",
                  dir, st.count, state.count, 2 * pairs, 2 * pairs * (has_v ? 2 : 1));
    safetensors_close(&st);
    safetensors_close(&state);
    return ok;
}
