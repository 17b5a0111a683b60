/* The page of `view --serve`: it asks "what if" and gets the same numbers of another pass.
 *
 *   GET /model    what there is: {"checkpoints": [steps], "loaded": index, "stories", "vocabulary": [texts]}
 *   POST /look    one pass; all keys may be missing
 *     {"text": "...", "checkpoint": index, "off": [[layer, head]], "cut": [[to, from, layer, head]],
 *      "attention": {"score": "l2", "mask": "window", "window": 8, "softcap": 5}}
 *     -> {"facts": {...}, "arrays": {name: {"kind", "parts": [base64]}}, "milliseconds"}
 *
 *   GET /heads?checkpoint=index    what each head does with pronouns: see look_heads()
 *
 * Without "text" it is the text that the command was given, token for token. */
#include "llmc/cli/look.h"

#include "llmc/base/console.h"
#include "llmc/serve/http.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct look_server {
    struct look_model *m;
    const struct token_buffer *ids;
    int64_t prompt_count;
};

/* --- a question --- */

/* What a request asks for, checked. */
struct question {
    struct token_buffer ids; /* of its text; count 0: the command's */
    int64_t checkpoint;
    struct gpt_config config;
    struct look_without without;
};

/* The model with another rule of attention: words and numbers as its options have them. */
static bool take_attention(struct gpt_config *c, const json_t *rule, struct error *err) {
    static const char *const names[] = {"score", "mask", "window", "softcap"};
    if (rule && !json_is_object(rule)) return fail(err, "\"attention\" must be an object");
    if (json_object_get(rule, "mask")) c->window = 0;
    for (size_t k = 0; k < ARRAY_LENGTH(names); k++) {
        const json_t *v = json_object_get(rule, names[k]);
        for (int i = 0; v && i < GPT_FIELD_COUNT; i++) {
            const struct gpt_field *f = &gpt_fields[i];
            int word;
            if (strcmp(f->option.name, names[k]) != 0) continue;
            double value = json_number_value(v);
            if (f->option.type == OPTION_WORD) {
                if (!json_is_string(v) || !gpt_format_reads_word(f, FORMAT_OWN, json_string_value(v), &word))
                    return fail(err, "there is no such %s", f->what);
                value = word;
            } else if (!json_is_number(v) || !(value >= f->option.min && value <= f->option.max)) {
                return fail(err, "the %s must be a number from %g to %g", f->what, f->option.min,
                            f->option.max);
            }
            gpt_field_set(c, f, value);
        }
    }
    return gpt_config_check(c, err);
}

static bool take_question(struct question *q, const struct look_server *s, const json_t *root,
                          struct error *err) {
    const struct look_model *m = s->m;
    const json_t *text = json_object_get(root, "text"), *checkpoint = json_object_get(root, "checkpoint");
    if (!json_is_object(root)) return fail(err, "the question is no JSON object");
    q->checkpoint = json_is_integer(checkpoint) ? json_integer_value(checkpoint)
                    : checkpoint                ? -1
                                                : m->loaded;
    if (json_is_string(text)) {
        if (!m->model.tokenizer) return fail(err, "the model has no tokenizer: its text cannot be changed");
        if (!try_encode_prompt(&q->ids, m->model.tokenizer, &m->model.gpt.config, json_string_value(text),
                               err))
            return false;
        if (q->ids.count > m->model.gpt.config.context)
            return fail(err, "the text has %" PRId64 " tokens, the model's context only %" PRId64,
                        q->ids.count, m->model.gpt.config.context);
    }
    q->config = m->model.gpt.config;
    return take_attention(&q->config, json_object_get(root, "attention"), err) &&
           look_take_without(&q->without, root, &m->model.gpt.config,
                             q->ids.count ? q->ids.count : s->ids->count, err);
}

static char *answer_question(struct look_server *s, const json_t *root, struct error *err) {
    struct question q = {0};
    char *answer = NULL;
    double start = now_seconds();
    if (take_question(&q, s, root, err) && look_load(s->m, q.checkpoint, err)) {
        struct look l;
        bool own = q.ids.count > 0;
        look(&l, s->m, own ? &q.ids : s->ids, own ? q.ids.count : s->prompt_count, &q.config,
             &q.without.ablation, false, false);
        answer = view_answer(l.facts, l.array, l.count, 1e3 * (now_seconds() - start), err);
        look_free(&l);
    }
    token_buffer_free(&q.ids);
    look_without_free(&q.without);
    return answer;
}

/* --- requests --- */

static char *heads_text(struct look_model *m, double checkpoint, struct error *err) {
    if (!(checkpoint >= 0 && checkpoint < (double)m->count))
        return fail(err, "there is no such checkpoint"), NULL;
    json_t *heads = look_heads(m, (int64_t)checkpoint, err);
    char *text = heads ? json_dumps(heads, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(heads);
    return text;
}

static void answer_or_say(struct http_answer *a, char *text, const struct error *err) {
    if (text)
        http_answer_json(a, text);
    else
        http_answer_wrong(a, 400, "%s\n", err->message);
}

static char *model_text(const struct look_model *m) {
    json_t *steps = json_array();
    for (int64_t i = 0; i < m->count; i++) json_array_append_new(steps, json_integer(m->step[i]));
    json_t *root = json_pack("{s:o, s:I, s:b, s:o}", "checkpoints", steps, "loaded", (json_int_t)m->loaded,
                             "stories", look_knows_stories(m), "vocabulary", look_vocabulary(m));
    char *text = json_dumps(root, JSON_COMPACT);
    check(text != NULL, "out of memory for the vocabulary");
    json_decref(root);
    return text;
}

static void handle(void *user, const struct http_request *q, struct http_answer *a) {
    struct look_server *s = (struct look_server *)user;
    struct error err;
    if (!q->post && strcmp(q->path, "/model") == 0) http_answer_json(a, model_text(s->m));
    if (!q->post && strcmp(q->path, "/heads") == 0)
        answer_or_say(a, heads_text(s->m, http_number(q, "checkpoint", -1), &err), &err);
    if (!q->post || strcmp(q->path, "/look") != 0) return;
    json_t *root = json_loadb(q->body, q->body_size, JSON_REJECT_DUPLICATES, NULL);
    answer_or_say(a, answer_question(s, root, &err), &err);
    json_decref(root);
}

bool look_serve(struct look_model *m, const struct token_buffer *ids, int64_t prompt_count,
                const char *address, int64_t port, bool token, struct error *err) {
    struct look_server s = {m, ids, prompt_count};
    struct http *http = http_open(&(struct http_options){address, port, token, "view.html", handle, &s}, err);
    if (!http) return false;
    say("open      %s\nCtrl-C ends it\n", http_url(http));
    http_serve(http);
    http_close(http);
    return true;
}
