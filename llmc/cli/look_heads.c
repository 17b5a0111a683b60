/* What each head of a checkpoint does with the pronouns of the built-in stories, whose grammar knows the
 * right answers; for models that were trained on them. */
#include "llmc/cli/look.h"

#include "llmc/format/checkpoint.h"
#include "llmc/model/heads.h"

#include <jansson.h>
#include <stdlib.h>

enum { HEAD_STORIES = 96, HEAD_BATCH = 16 };

/* Whether the options that a checkpoint was made with name no other data. */
bool look_knows_stories(const struct look_model *m) {
    struct train_state state = {0};
    struct error err;
    if (!m->model.tokenizer || tokenizer_end_of_text(m->model.tokenizer) < 0 ||
        !checkpoint_load_state(&state, m->checkpoint[m->loaded], &err))
        return false;
    const json_t *values = json_object_get(state.options, "values");
    bool stories = values && json_is_null(json_object_get(values, "text")) &&
                   json_is_null(json_object_get(values, "data"));
    train_state_free(&state);
    return stories;
}

static json_t *counts(const int64_t *hits, int64_t count) {
    json_t *list = json_array();
    for (int64_t i = 0; i < count; i++) json_array_append_new(list, json_integer((json_int_t)hits[i]));
    return list;
}

/* {"links", "chance", "hits": [of every head]} */
static json_t *links_of(struct look_model *m, struct gpt *g, bool persons, struct error *err) {
    struct head_texts d;
    int64_t heads = g->config.layers * g->config.heads;
    if (!head_texts_of_stories(&d, m->model.tokenizer, HEAD_STORIES, g->options.T, persons, err)) return NULL;
    int64_t *hits = (int64_t *)xcalloc((size_t)heads, sizeof *hits);
    head_hits(hits, &d, g);
    json_t *links = json_pack("{s:I, s:f, s:o}", "links", (json_int_t)d.links, "chance", head_chance(&d),
                              "hits", counts(hits, heads));
    free(hits);
    head_texts_free(&d);
    return links;
}

/* The loss with every head, and without each. */
static json_t *losses_of(struct look_model *m, struct gpt *g, struct error *err) {
    struct head_texts d;
    int64_t heads = g->config.layers * g->config.heads;
    if (!head_texts_of_stories(&d, m->model.tokenizer, HEAD_STORIES, g->options.T, false, err)) return NULL;
    bool *off = (bool *)xcalloc((size_t)heads, sizeof *off);
    struct ablation a = {.off = off};
    json_t *without = json_array(), *loss = json_real(head_loss(&d, g, NULL));
    for (int64_t i = 0; i < heads; i++) {
        off[i] = true;
        json_array_append_new(without, json_real(head_loss(&d, g, &a)));
        off[i] = false;
    }
    free(off);
    head_texts_free(&d);
    return json_pack("{s:o, s:o}", "whole", loss, "without", without);
}

json_t *look_heads(struct look_model *m, int64_t checkpoint, struct error *err) {
    struct ctx ctx;
    struct gpt g;
    if (!look_load(m, checkpoint, err)) return NULL;
    struct gpt_options options = {.B = HEAD_BATCH,
                                  .T = m->model.gpt.config.context,
                                  .dtype = DTYPE_F32,
                                  .params = &m->model.gpt.params};
    ctx_init(&ctx, m->model.device, m->model.device->ops, false);
    gpt_create(&g, &ctx, &m->model.gpt.config, &options);
    json_t *things = links_of(m, &g, false, err), *persons = things ? links_of(m, &g, true, err) : NULL,
           *loss = persons ? losses_of(m, &g, err) : NULL;
    json_t *heads = loss ? json_pack("{s:I, s:O, s:O, s:O}", "step", (json_int_t)m->step[checkpoint],
                                     "things", things, "persons", persons, "loss", loss)
                         : NULL;
    json_decref(things);
    json_decref(persons);
    json_decref(loss);
    ctx_free(&ctx);
    return heads;
}
