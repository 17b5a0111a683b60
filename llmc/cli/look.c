/* Opens a model and looks at a text: see look.h. */
#include "llmc/cli/look.h"

#include "llmc/format/checkpoint.h"
#include "llmc/format/model_config.h"
#include "llmc/model/generate.h"
#include "llmc/report/json_text.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the model --- */

/* The sliders' temperatures: 0.05 apart up to 2, and that of the options. */
static int64_t make_temperatures(double *list, double wanted) {
    int64_t n = 0;
    for (int i = 1; i <= 40; i++) {
        double step = i / 20.0;
        if (wanted > 0.0 && wanted < step - 1e-9 && (n == 0 || list[n - 1] < wanted - 1e-9))
            list[n++] = wanted;
        list[n++] = step;
    }
    if (wanted > 2.0) list[n++] = wanted;
    return n;
}

/* Those of the run `named`, or the one that is no run's. */
static void find_checkpoints(struct look_model *m, const char *named, const char *found) {
    struct checkpoint_list list = {0};
    char *from = xstrdup(named);
    for (size_t n = strlen(from); n > 1 && from[n - 1] == '/'; n--) from[n - 1] = 0;
    const char *slash = strrchr(found, '/');
    int64_t own = checkpoint_step(slash ? slash + 1 : found), at = 0;
    if (strcmp(found, from) != 0) checkpoint_list(&list, from, NULL);
    while (at < list.count && list.step[at] != own) at++;
    bool in_run = at < list.count;
    m->count = in_run ? list.count : 1;
    m->loaded = in_run ? list.count - 1 - at : 0;
    m->checkpoint = (char **)xcalloc((size_t)m->count, sizeof *m->checkpoint);
    m->step = (int64_t *)xcalloc((size_t)m->count, sizeof *m->step);
    for (int64_t i = 0; i < m->count; i++) {
        m->step[i] = in_run ? list.step[list.count - 1 - i] : own;
        m->checkpoint[i] = in_run ? xasprintf("%s/step-%08" PRId64, from, m->step[i]) : xstrdup(found);
    }
    free(list.step);
    free(from);
}

void look_open(struct look_model *m, const struct look_options *o) {
    *m = (struct look_model){.o = *o};
    text_model_find(&m->model, &o->model, o->prompt);
    text_model_load(&m->model, &o->model, 0, 0);
    find_checkpoints(m, o->model.from, m->model.directory);
    m->temperatures = make_temperatures(m->temperature, o->sampling.temperature);
}

void look_close(struct look_model *m) {
    for (int64_t i = 0; i < m->count; i++) free(m->checkpoint[i]);
    free(m->checkpoint);
    free(m->step);
    text_model_close(&m->model);
}

static bool same_shape(const struct gpt_config *a, const struct gpt_config *b) {
    bool same = true;
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        same = same && gpt_field_get(a, &gpt_fields[i]) == gpt_field_get(b, &gpt_fields[i]);
    return same;
}

bool look_load(struct look_model *m, int64_t checkpoint, struct error *err) {
    struct gpt_config model;
    if (checkpoint == m->loaded) return true;
    if (checkpoint < 0 || checkpoint >= m->count) return fail(err, "there is no such checkpoint");
    const char *directory = m->checkpoint[checkpoint];
    if (!checkpoint_config(&model, directory, err)) return false;
    if (!same_shape(&model, &m->model.gpt.config))
        return fail(err, "%s: its model has another shape", directory);
    m->loaded = -1;
    if (!checkpoint_load_weights(&m->model.gpt, directory, err)) return false;
    m->loaded = checkpoint;
    return true;
}

/* --- tokens as text --- */

static json_t *token_text(const struct tokenizer *t, int64_t id) {
    int size = 0;
    const char *bytes = t ? tokenizer_token_bytes(t, id, &size) : NULL;
    if (!bytes) return json_string(temp_printf("#%" PRId64, id));
    return json_text(bytes, size);
}

/* --- facts --- */

static json_t *model_facts(const struct gpt *g) {
    json_t *model =
        json_pack("{s:s, s:I}", "name", g->config.name, "parameters", (json_int_t)g->layout.count);
    for (int i = 0; i < GPT_FIELD_COUNT; i++) {
        const struct gpt_field *f = &gpt_fields[i];
        double value = gpt_field_get(&g->config, f);
        json_object_set_new(model, f->option.name,
                            f->option.type == OPTION_WORD   ? json_string(gpt_field_text(&g->config, f))
                            : f->option.type == OPTION_REAL ? json_real(value)
                                                            : json_integer((json_int_t)value));
    }
    return model;
}

json_t *look_vocabulary(const struct look_model *m) {
    json_t *vocabulary = json_array();
    for (int64_t v = 0; v < m->model.gpt.config.vocab_size; v++)
        json_array_append_new(vocabulary, token_text(m->model.tokenizer, v));
    return vocabulary;
}

static json_t *ablation_facts(const struct ablation *a, const struct gpt_config *c) {
    json_t *off = json_array(), *cut = json_array();
    for (int64_t i = 0; i < c->layers * c->heads; i++)
        if (ablation_off(a, c, i / c->heads, i % c->heads))
            json_array_append_new(
                off, json_pack("[I, I]", (json_int_t)(i / c->heads), (json_int_t)(i % c->heads)));
    for (int64_t i = 0; a && i < a->cuts; i++)
        json_array_append_new(cut,
                              json_pack("[I, I, I, I]", (json_int_t)a->cut[i].to, (json_int_t)a->cut[i].from,
                                        (json_int_t)a->cut[i].layer, (json_int_t)a->cut[i].head));
    return json_pack("{s:o, s:o}", "off", off, "cut", cut);
}

static json_t *make_facts(const struct look_model *m, const struct look *l, int64_t prompt_count,
                          bool vocabulary) {
    const struct inspection *x = &l->x;
    json_t *tokens = json_array(), *temperatures = json_array();
    int64_t bytes = 0; /* of what is predicted */
    for (int64_t t = 0; t < x->T; t++) {
        json_array_append_new(tokens, json_integer(x->tokens[t]));
        if (t && m->model.tokenizer) bytes += tokenizer_text_bytes(m->model.tokenizer, x->tokens[t]);
    }
    for (int64_t i = 0; i < x->temperature_count; i++)
        json_array_append_new(temperatures, json_real(x->temperature[i]));
    const struct sampling_config *s = &m->o.sampling;
    json_t *facts = json_pack("{s:s, s:o, s:o, s:I, s:I, s:o, s:o, s:{s:f, s:I, s:f, s:I}}", "format",
                              "llmc view 1", "model", model_facts(&l->gpt), "tokens", tokens, "prompt_tokens",
                              (json_int_t)prompt_count, "step", (json_int_t)m->step[m->loaded], "without",
                              ablation_facts(x->ablation, &l->gpt.config), "temperatures", temperatures,
                              "sampling", "temperature", s->temperature, "top_k", (json_int_t)s->top_k,
                              "top_p", s->top_p, "seed", (json_int_t)s->seed);
    check(facts != NULL, "out of memory for the facts of the page");
    json_object_set_new(facts, "target_bytes", json_integer((json_int_t)bytes));
    if (vocabulary) json_object_set_new(facts, "vocabulary", look_vocabulary(m));
    return facts;
}

/* --- arrays --- */

static float *all_attention(const struct inspection *x) {
    float *P = (float *)xcalloc((size_t)(x->L * x->NH * x->T * x->T), sizeof *P);
    for (int64_t i = 0; i < x->L * x->NH; i++)
        inspect_attention(x, i / x->NH, i % x->NH, P + i * x->T * x->T);
    return P;
}

/* A field of the inspection with its shape. */
#define RANK(...) (sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))
#define FLOATS(field, by_layer, about, ...)                                                                  \
    { #field, about, RANK(__VA_ARGS__), {__VA_ARGS__ }, x->field, NULL, by_layer, false }
#define INTEGERS(field, by_layer, about, ...)                                                                \
    { #field, about, RANK(__VA_ARGS__), {__VA_ARGS__ }, NULL, x->field, by_layer, false }

static void list_arrays(struct look *l) {
    const struct inspection *x = &l->x;
    int64_t T = x->T, L = x->L, NH = x->NH, NKV = x->NKV, HS = x->HS, TOP = INSPECT_TOP;
    const struct view_array arrays[] = {
        FLOATS(q, true, "query: layer, token, head, dimension", L, T, NH, HS),
        FLOATS(k, true, "key: layer, token, key head, dimension", L, T, NKV, HS),
        FLOATS(v, true, "value: layer, token, key head, dimension", L, T, NKV, HS),
        FLOATS(lse, true, "logarithm of the softmax's denominator: layer, head, token", L, NH, T),
        {"attention", "exp(score - lse): layer, head, from, to", .rank = 4, .dim = {L, NH, T, T},
         .floats = l->attention, .only_for_json = true},
        FLOATS(write, true,
               "times v, attention and rstd: effect on the target's logit: layer, token, head, dimension", L,
               T, NH, HS),
        FLOATS(value_norm, true, "length of what full attention to this token adds: layer, head, token", L,
               NH, T),
        FLOATS(norms, false,
               "lengths: layer, token, (stream before, attention, stream between, MLP, stream after)", L, T,
               INSPECT_NORMS),
        FLOATS(head_effect, false, "on the target's logit: layer, token, head", L, T, NH),
        FLOATS(bias_effect, false, "of the bias of the attention's output: layer, token", L, T),
        FLOATS(mlp_effect, false, "layer, token", L, T),
        FLOATS(token_effect, false, "of the token's embedding: token", T),
        FLOATS(position_effect, false, "of the position's embedding: token", T),
        FLOATS(constant_effect, false, "of the last norm's bias: token", T),
        FLOATS(rstd, false, "scale of the last norm: token", T),
        INTEGERS(target, false, "the token that follows; after the last one, the most probable: token", T),
        FLOATS(target_logit, false, "the sum of all effects: token", T),
        INTEGERS(lens_token, false, "most probable tokens after so many layers: depth, token, rank", L + 1, T,
                 TOP),
        FLOATS(lens_p, false, "their probabilities: depth, token, rank", L + 1, T, TOP),
        FLOATS(lens_target_p, false, "probability of the target: depth, token", L + 1, T),
        INTEGERS(lens_rank, false, "rank of the target: depth, token", L + 1, T),
        FLOATS(lens_entropy, false, "of the prediction, in nats: depth, token", L + 1, T),
        INTEGERS(next_token, false, "most probable next tokens: token, rank", T, x->next_count),
        FLOATS(next_logit, false, "their logits: token, rank", T, x->next_count),
        FLOATS(next_rest, false,
               "sum of exp((logit - largest)/temperature) over all others: token, temperature", T,
               x->temperature_count),
    };
    l->count = (int)ARRAY_LENGTH(arrays);
    check(l->count <= LOOK_ARRAYS, "%d arrays", l->count);
    memcpy(l->array, arrays, sizeof arrays);
}

/* --- a pass --- */

void look(struct look *l, struct look_model *m, const struct token_buffer *ids, int64_t prompt_count,
          const struct gpt_config *config, const struct ablation *ablation, bool vocabulary, bool attention) {
    memset(l, 0, sizeof *l);
    ctx_init(&l->ctx, m->model.device, m->model.device->ops, false);
    inspect_create(&l->gpt, &l->ctx, &m->model.gpt, config, ids->count);
    inspect(&l->x, &l->gpt, (const int32_t *)ids->ids, m->model.V, m->temperature, m->temperatures, ablation);
    l->attention = attention ? all_attention(&l->x) : NULL;
    l->facts = make_facts(m, l, prompt_count, vocabulary);
    list_arrays(l);
}

void look_free(struct look *l) {
    json_decref(l->facts);
    free(l->attention);
    inspection_free(&l->x);
    ctx_free(&l->ctx);
}

/* --- what a pass leaves out --- */

/* The numbers of a list like [1, 2], each from `low` to below `high`. */
static bool take_numbers(const json_t *list, size_t count, int64_t *out, const int64_t *low,
                         const int64_t *high) {
    if (json_array_size(list) != count) return false;
    for (size_t i = 0; i < count; i++) {
        const json_t *v = json_array_get(list, i);
        out[i] = json_integer_value(v);
        if (!json_is_integer(v) || out[i] < low[i] || out[i] >= high[i]) return false;
    }
    return true;
}

bool look_take_without(struct look_without *w, const json_t *root, const struct gpt_config *c, int64_t T,
                       struct error *err) {
    const json_t *off = json_object_get(root, "off"), *cut = json_object_get(root, "cut"), *item;
    size_t i;
    int64_t n[4];
    w->off = (bool *)xcalloc((size_t)(c->layers * c->heads), sizeof *w->off);
    json_array_foreach(off, i, item) {
        if (!take_numbers(item, 2, n, (const int64_t[]){0, 0}, (const int64_t[]){c->layers, c->heads}))
            return fail(err, "\"off\" must be pairs of a layer and a head");
        w->off[n[0] * c->heads + n[1]] = true;
    }
    if (json_array_size(cut) > LOOK_CUTS) return fail(err, "at most %d edges can be cut", LOOK_CUTS);
    json_array_foreach(cut, i, item) {
        if (!take_numbers(item, 4, n, (const int64_t[]){0, 0, -1, -1},
                          (const int64_t[]){T, T, c->layers, c->heads}))
            return fail(err, "\"cut\" must be lists of two tokens, a layer and a head");
        w->cut[i] = (struct ablation_cut){n[2], n[3], n[0], n[1]};
    }
    w->ablation = (struct ablation){w->off, w->cut, (int64_t)json_array_size(cut)};
    return true;
}

void look_without_free(struct look_without *w) { free(w->off); }
