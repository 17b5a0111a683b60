#include "llmc/cli/serve_api.h"

#include "llmc/base/utf8.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- requests --- */

void api_request_free(struct api_request *q) {
    for (int64_t i = 0; i < q->prompt_count; i++) token_buffer_free(&q->prompts[i]);
    for (int64_t i = 0; i < q->stop_count; i++) free(q->stop[i]);
    free(q->prompts);
    *q = (struct api_request){0};
}

static bool wrong(struct api_error *e, const char *param, const char *fmt, ...) LLMC_PRINTF(3, 4);
static bool wrong(struct api_error *e, const char *param, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *text = xvasprintf(fmt, ap);
    va_end(ap);
    e->param = param;
    fail(&e->err, "%s", text);
    free(text);
    return false;
}

/* A value that is given: null is as if it were not. */
static const json_t *given(const json_t *root, const char *key) {
    const json_t *v = json_object_get(root, key);
    return json_is_null(v) ? NULL : v;
}

static bool take_integer(const json_t *root, const char *key, int64_t least, int64_t most, int64_t *out,
                         struct api_error *e) {
    const json_t *v = given(root, key);
    if (!v) return true;
    if (!json_is_integer(v) || json_integer_value(v) < least || json_integer_value(v) > most)
        return wrong(e, key, "%s must be an integer from %" PRId64 " to %" PRId64, key, least, most);
    *out = json_integer_value(v);
    return true;
}

static bool take_number(const json_t *root, const char *key, double least, double most, double *out,
                        struct api_error *e) {
    const json_t *v = given(root, key);
    if (!v) return true;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= least && x <= most))
        return wrong(e, key, "%s must be a number from %g to %g", key, least, most);
    *out = x;
    return true;
}

static bool take_flag(const json_t *root, const char *key, bool *out, struct api_error *e) {
    const json_t *v = given(root, key);
    if (!v) return true;
    if (!json_is_boolean(v)) return wrong(e, key, "%s must be true or false", key);
    *out = json_is_true(v);
    return true;
}

/* The text of a string without the character 0, else NULL. */
static const char *text_of(const json_t *v) {
    const char *text = json_string_value(v);
    return text && strlen(text) == json_string_length(v) ? text : NULL;
}

static bool add_stop(struct api_request *q, const json_t *v, struct api_error *e) {
    const char *text = text_of(v);
    if (!text || !text[0] || q->stop_count == API_STOPS)
        return wrong(e, "stop", "stop must be a text or a list of at most %d texts, none of them empty",
                     API_STOPS);
    q->stop[q->stop_count++] = xstrdup(text);
    return true;
}

static bool take_stops(struct api_request *q, const json_t *root, struct api_error *e) {
    const json_t *stop = given(root, "stop"), *item;
    size_t i;
    if (!stop) return true;
    if (!json_is_array(stop)) return add_stop(q, stop, e);
    json_array_foreach(stop, i, item) if (!add_stop(q, item, e)) return false;
    return true;
}

/* Keys that ask for what is not done here, unless they have this value. */
static bool take_refusals(const json_t *root, struct api_error *e) {
    static const char *const keys[] = {"suffix",
                                       "echo",
                                       "best_of",
                                       "frequency_penalty",
                                       "logit_bias",
                                       "tools",
                                       "presence_penalty",
                                       "functions",
                                       "function_call",
                                       "audio",
                                       "response_format",
                                       "prediction",
                                       "web_search_options"};
    for (size_t i = 0; i < ARRAY_LENGTH(keys); i++) {
        const json_t *v = given(root, keys[i]);
        bool nothing = !v || json_is_false(v) || (json_is_number(v) && json_number_value(v) == 0.0) ||
                       (json_is_object(v) && json_object_size(v) == 0) ||
                       (json_is_array(v) && json_array_size(v) == 0) ||
                       (json_is_string(v) && json_string_length(v) == 0) ||
                       (strcmp(keys[i], "best_of") == 0 && json_integer_value(v) == 1);
        const char *format = json_string_value(json_object_get(v, "type"));
        if (!nothing && !(format && strcmp(format, "text") == 0))
            return wrong(e, keys[i], "%s is not supported by this server", keys[i]);
    }
    return true;
}

static bool take_sampling(struct api_request *q, const struct api *api, const json_t *root,
                          struct api_error *e) {
    struct sampling_config *s = &q->sampling;
    const json_t *options = given(root, "stream_options"), *seed = given(root, "seed");
    if (options && !json_is_object(options))
        return wrong(e, "stream_options", "stream_options must be an object");
    *s = *api->sampling;
    q->seeded = seed != NULL;
    if (seed && !json_is_integer(seed)) return wrong(e, "seed", "seed must be an integer");
    s->seed = json_integer_value(seed);
    return take_number(root, "temperature", 0, 100, &s->temperature, e) &&
           take_number(root, "top_p", 1e-9, 1, &s->top_p, e) &&
           take_number(root, "min_p", 0, 1, &s->min_p, e) &&
           take_number(root, "repetition_penalty", 1e-9, 100, &s->repetition_penalty, e) &&
           take_integer(root, "top_k", 0, 1 << 30, &s->top_k, e) &&
           take_integer(root, "n", 1, API_CHOICES, &q->n, e) && take_flag(root, "stream", &q->stream, e) &&
           take_flag(options, "include_usage", &q->usage, e) && take_stops(q, root, e) &&
           take_refusals(root, e);
}

/* How many tokens at most, and which probabilities: keys in which the two interfaces differ. */
static bool take_length(struct api_request *q, const struct api *api, const json_t *root,
                        struct api_error *e) {
    int64_t most = api->most_tokens;
    q->tokens = q->chat ? most : min_i64(16, most); /* OpenAI's */
    if (!take_integer(root, "max_tokens", 1, most, &q->tokens, e)) return false;
    if (q->chat)
        return take_integer(root, "max_completion_tokens", 1, most, &q->tokens, e) &&
               take_flag(root, "logprobs", &q->logprobs, e) &&
               take_integer(root, "top_logprobs", 0, API_TOP, &q->top, e);
    q->top = -1;
    if (!take_integer(root, "logprobs", 0, API_TOP, &q->top, e)) return false;
    q->logprobs = q->top >= 0;
    q->top = max_i64(0, q->top);
    return true;
}

/* --- prompts --- */

static struct token_buffer *new_prompt(struct api_request *q) {
    q->prompts =
        (struct token_buffer *)xrealloc(q->prompts, (size_t)(q->prompt_count + 1) * sizeof *q->prompts);
    q->prompts[q->prompt_count] = (struct token_buffer){0};
    return &q->prompts[q->prompt_count++];
}

static bool fits(const struct api *api, const struct token_buffer *ids, const char *param,
                 struct api_error *e) {
    int64_t context = api->m->config.context;
    if (ids->count < context) return true;
    e->code = "context_length_exceeded";
    return wrong(e, param,
                 "the model's context has %" PRId64 " tokens; %s has %" PRId64
                 ", and leaves no room for an answer",
                 context, param, ids->count);
}

static bool take_text(struct api_request *q, const struct api *api, const json_t *v, struct api_error *e) {
    struct error err;
    if (q->prompt_count == API_CHOICES)
        return wrong(e, "prompt", "at most %d prompts at a time", API_CHOICES);
    const char *text = text_of(v);
    if (!text)
        return wrong(e, "prompt",
                     "prompt must be a text without the character 0, a list of token ids, or a list of such");
    if (!api->m->tokenizer)
        return wrong(e, "prompt", "the model has no tokenizer: prompt must be a list of token ids");
    struct token_buffer *ids = new_prompt(q);
    if (!try_encode_prompt(ids, api->m->tokenizer, &api->m->config, text, &err))
        return wrong(e, "prompt", "%s", err.message);
    return fits(api, ids, "prompt", e);
}

static bool take_ids(struct api_request *q, const struct api *api, const json_t *list, struct api_error *e) {
    const json_t *v;
    size_t i;
    if (q->prompt_count == API_CHOICES)
        return wrong(e, "prompt", "at most %d prompts at a time", API_CHOICES);
    struct token_buffer *ids = new_prompt(q);
    token_buffer_reserve(ids, (int64_t)json_array_size(list));
    json_array_foreach(list, i, v) {
        if (!json_is_integer(v) || json_integer_value(v) < 0 ||
            json_integer_value(v) >= api->m->config.vocab_size)
            return wrong(e, "prompt", "token ids must be integers from 0 to %" PRId64,
                         api->m->config.vocab_size - 1);
        ids->ids[ids->count++] = (uint32_t)json_integer_value(v);
    }
    if (ids->count == 0) return wrong(e, "prompt", "an empty list of token ids is no prompt");
    return fits(api, ids, "prompt", e);
}

static bool take_prompts(struct api_request *q, const struct api *api, const json_t *root,
                         struct api_error *e) {
    const json_t *prompt = given(root, "prompt"), *item, *empty = NULL;
    json_t *none = json_string("");
    size_t i;
    bool ok = true;
    if (!prompt) prompt = empty = none; /* the beginning of a text */
    if (!json_is_array(prompt)) {
        ok = take_text(q, api, prompt, e);
    } else if (json_is_integer(json_array_get(prompt, 0))) {
        ok = take_ids(q, api, prompt, e);
    } else {
        json_array_foreach(prompt, i, item) {
            ok = json_is_array(item) ? take_ids(q, api, item, e) : take_text(q, api, item, e);
            if (!ok) break;
        }
        if (ok && q->prompt_count == 0) ok = wrong(e, "prompt", "an empty list has no prompt");
    }
    json_decref(none);
    if (ok && q->prompt_count * q->n > API_CHOICES)
        return wrong(e, "n", "at most %d texts at a time: %" PRId64 " prompts, %" PRId64 " texts each",
                     API_CHOICES, q->prompt_count, q->n);
    return ok;
}

/* A message's text: a string, or parts {"type": "text", "text": ...}. The caller frees; NULL: it is
 * neither. */
static char *content_of(const json_t *content) {
    const json_t *part;
    size_t i;
    if (!json_is_array(content)) return text_of(content) ? xstrdup(text_of(content)) : NULL;
    char *text = xstrdup("");
    json_array_foreach(content, i, part) {
        const char *type = json_string_value(json_object_get(part, "type"));
        const char *more = text_of(json_object_get(part, "text"));
        if (!type || strcmp(type, "text") != 0 || !more) {
            free(text);
            return NULL;
        }
        char *joined = xasprintf("%s%s", text, more);
        free(text);
        text = joined;
    }
    return text;
}

static bool take_messages(struct api_request *q, const struct api *api, const json_t *root,
                          struct api_error *e) {
    const json_t *messages = given(root, "messages"), *item;
    size_t i, count = json_array_size(messages), taken = 0;
    if (!api->chat)
        return wrong(e, NULL, "the model has no tokenizer for conversations: use /v1/completions");
    if (!json_is_array(messages) || count == 0)
        return wrong(e, "messages", "messages must be a list with a message");
    struct chat_message *m = (struct chat_message *)xcalloc(count, sizeof *m);
    bool ok = true;
    json_array_foreach(messages, i, item) {
        const char *role = json_string_value(json_object_get(item, "role"));
        char *text = content_of(json_object_get(item, "content"));
        enum chat_role as = role && strcmp(role, "developer") == 0 ? CHAT_SYSTEM
                            : role                                 ? chat_role(role)
                                                                   : CHAT_ROLES;
        if (as == CHAT_ROLES)
            ok = wrong(e, "messages", "messages[%zu]: role must be system, user or assistant", i);
        else if (!text)
            ok = wrong(e, "messages", "messages[%zu]: content must be text without the character 0", i);
        if (!ok) {
            free(text);
            break;
        }
        m[taken++] = (struct chat_message){as, text, (int64_t)strlen(text)};
    }
    struct chat_tokens tokens = {0};
    if (ok && !chat_render(api->chat, m, (int64_t)count, true, &tokens, &e->err))
        ok = false, e->param = "messages";
    if (ok) ok = fits(api, &tokens.ids, "messages", e);
    if (ok) *new_prompt(q) = tokens.ids, tokens.ids = (struct token_buffer){0};
    chat_tokens_free(&tokens);
    for (i = 0; i < taken; i++) free((char *)(uintptr_t)m[i].text);
    free(m);
    q->end = api->chat->end_of_turn;
    return ok;
}

bool api_take(struct api_request *q, const struct api *api, bool chat, const char *body, size_t size,
              struct api_error *e) {
    json_error_t why;
    json_t *root = json_loadb(body, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    *q = (struct api_request){.chat = chat, .n = 1, .end = -1};
    bool ok = json_is_object(root);
    const json_t *model = given(root, "model");
    if (!root)
        wrong(e, NULL, "the body is no JSON: line %d, column %d: %s", why.line, why.column, why.text);
    else if (!ok)
        wrong(e, NULL, "the body must be a JSON object");
    if (ok && model && !json_is_string(model)) ok = wrong(e, "model", "model must be a text");
    ok = ok && take_sampling(q, api, root, e) && take_length(q, api, root, e) &&
         (chat ? take_messages(q, api, root, e) : take_prompts(q, api, root, e));
    json_decref(root);
    return ok;
}

/* --- answers --- */

static char *dump(json_t *root) {
    char *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(9));
    check(text, "out of memory for an answer");
    json_decref(root);
    return text;
}

char *api_error_text(int status, const char *message, const char *param, const char *code) {
    return dump(json_pack("{s:{s:s, s:s, s:s?, s:s?}}", "error", "message", message, "type",
                          status == 401   ? "authentication_error"
                          : status >= 500 ? "server_error"
                                          : "invalid_request_error",
                          "param", param, "code", code));
}

static json_t *model_json(const struct api *api) {
    return json_pack("{s:s, s:s, s:I, s:s}", "id", api->name, "object", "model", "created",
                     (json_int_t)api->created, "owned_by", "llmc");
}

char *api_models_text(const struct api *api, const char *id) {
    if (id) return strcmp(id, api->name) == 0 ? dump(model_json(api)) : NULL;
    return dump(json_pack("{s:s, s:[o]}", "object", "list", "data", model_json(api)));
}

/* Bytes from `at` on that may become a character when more follow. */
static bool unfinished(const uint8_t *p, const uint8_t *end) {
    int64_t left = end - p;
    int wants = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 1;
    if (left >= wants || p[0] > 0xf4) return false;
    for (int64_t i = 1; i < left; i++)
        if (!utf8_is_continuation(p[i])) return false;
    return true;
}

static json_t *clean_text(const uint8_t *p, const uint8_t *end, bool all, int64_t *used) {
    const uint8_t *begin = p;
    uint8_t *clean = (uint8_t *)xmalloc((size_t)(end - p) * 3 + 1);
    size_t n = 0;
    uint32_t code;
    for (int length; p < end; p += length) {
        length = utf8_decode(p, end, &code);
        if (length == 0 && !all && unfinished(p, end)) break;
        n += (size_t)utf8_encode(clean + n, length ? code : 0xfffd);
        length = length ? length : 1;
    }
    json_t *text = json_stringn((const char *)clean, n);
    free(clean);
    if (used) *used = p - begin;
    return text;
}

json_t *api_text(const struct answer *a, int64_t from, int64_t to, bool all, int64_t *used) {
    const uint8_t *text = (const uint8_t *)(a->text ? a->text : "");
    return clean_text(text + from, text + to, all, used);
}

static json_t *token_text(const struct api *api, int64_t token) {
    int size = 0;
    const char *bytes = api->m->tokenizer ? tokenizer_token_bytes(api->m->tokenizer, token, &size) : NULL;
    if (!bytes) return json_string(temp_printf("%" PRId64 " ", token));
    return clean_text((const uint8_t *)bytes, (const uint8_t *)bytes + size, true, NULL);
}

static json_t *token_bytes(const struct api *api, int64_t token) {
    int size = 0;
    const char *bytes = api->m->tokenizer ? tokenizer_token_bytes(api->m->tokenizer, token, &size) : NULL;
    if (!bytes) return json_null();
    json_t *list = json_array();
    for (int i = 0; i < size; i++) json_array_append_new(list, json_integer((unsigned char)bytes[i]));
    return list;
}

static json_t *chat_logprob(const struct api *api, int64_t token, double logprob) {
    return json_pack("{s:o, s:f, s:o}", "token", token_text(api, token), "logprob", logprob, "bytes",
                     token_bytes(api, token));
}

static json_t *chat_logprobs(const struct api *api, const struct answer *a, int64_t from) {
    json_t *content = json_array();
    for (int64_t i = from; i < a->ids.count; i++) {
        json_t *one = chat_logprob(api, a->ids.ids[i], a->logprob[i]), *top = json_array();
        const struct token_logprob *t = a->top + i * a->o.top;
        for (int64_t k = 0; k < a->o.top && t[k].token >= 0; k++)
            json_array_append_new(top, chat_logprob(api, t[k].token, t[k].logprob));
        json_object_set_new(one, "top_logprobs", top);
        json_array_append_new(content, one);
    }
    return json_pack("{s:o}", "content", content);
}

static json_t *text_logprobs(const struct api *api, const struct answer *a, int64_t from) {
    json_t *tokens = json_array(), *logprobs = json_array(), *tops = json_array(), *offsets = json_array();
    for (int64_t i = from; i < a->ids.count; i++) {
        json_t *top = json_object();
        const struct token_logprob *t = a->top + i * a->o.top;
        for (int64_t k = 0; k < a->o.top && t[k].token >= 0; k++) {
            json_t *text = token_text(api, t[k].token);
            if (!json_object_get(top, json_string_value(text))) /* others look like it */
                json_object_setn_new_nocheck(top, json_string_value(text), json_string_length(text),
                                             json_real(t[k].logprob));
            json_decref(text);
        }
        json_array_append_new(tokens, token_text(api, a->ids.ids[i]));
        json_array_append_new(logprobs, json_real(a->logprob[i]));
        json_array_append_new(tops, top);
        json_array_append_new(offsets, json_integer(a->place[i]));
    }
    return json_pack("{s:o, s:o, s:o, s:o}", "tokens", tokens, "token_logprobs", logprobs, "top_logprobs",
                     tops, "text_offset", offsets);
}

json_t *api_choice(const struct api *api, const struct api_request *q, const struct api_piece *p,
                   int64_t *used) {
    const struct answer *a = p->answer;
    json_t *text = api_text(a, p->from, p->to, p->ended, used);
    json_t *logprobs = !q->logprobs ? json_null()
                       : q->chat    ? chat_logprobs(api, a, p->token)
                                    : text_logprobs(api, a, p->token);
    json_t *choice =
        json_pack("{s:I, s:o, s:s?}", "index", (json_int_t)p->index, "logprobs", logprobs, "finish_reason",
                  !p->ended    ? NULL
                  : a->stopped ? "stop"
                               : "length");
    if (!q->chat) {
        json_object_set_new(choice, "text", text);
        return choice;
    }
    json_t *message = json_object();
    if (!p->stream || p->first) json_object_set_new(message, "role", json_string("assistant"));
    if (!p->stream || p->first || json_string_length(text)) json_object_set(message, "content", text);
    json_decref(text);
    json_object_set_new(choice, p->stream ? "delta" : "message", message);
    return choice;
}

char *api_answer_text(const struct api *api, const struct api_request *q, int64_t id, bool stream,
                      json_t *choices, const int64_t usage[2]) {
    json_t *root = json_pack("{s:s, s:s, s:I, s:s, s:o}", "id",
                             temp_printf("%s-%" PRId64, q->chat ? "chatcmpl" : "cmpl", id), "object",
                             !q->chat ? "text_completion"
                             : stream ? "chat.completion.chunk"
                                      : "chat.completion",
                             "created", (json_int_t)time(NULL), "model", api->name, "choices", choices);
    if (usage)
        json_object_set_new(root, "usage",
                            json_pack("{s:I, s:I, s:I}", "prompt_tokens", (json_int_t)usage[0],
                                      "completion_tokens", (json_int_t)usage[1], "total_tokens",
                                      (json_int_t)(usage[0] + usage[1])));
    return dump(root);
}
