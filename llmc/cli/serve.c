/* `train_gpt serve`: answers requests of programs that speak OpenAI's API.
 *
 * One thread does everything. Between two looks at the network it makes one token for every text that is
 * being written, all in one pass of the model; a text that comes in joins at the next pass, one that
 * ends makes room for the next. So each gets the text that it would get alone, and nobody waits for the
 * longest. */
#include "llmc/cli/commands.h"
#include "llmc/cli/serve_api.h"

#include "llmc/base/console.h"
#include "llmc/format/model_config.h"
#include "llmc/serve/http.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct serve_config {
    struct text_model_config model;
    const char *name, *address;
    enum chat_family chat_template;
    int64_t tokens, batch_size, port;
    struct sampling_config sampling;
    bool token;
};

#define C struct serve_config
static const struct option_row serve_rows[] = {
    OPT_TEXT(C, name, "name", NULL, "NAME", "name of the model for clients (default: the end of DIR)", 0),
    CHAT_TEMPLATE_OPTION(C),
    OPT_SIZE(C, tokens, "tokens", "auto", 0, 1e9, "N",
             "largest number of tokens of a text (auto: the model's context); requests for more are refused",
             0),
    OPT_INT(C, batch_size, "batch-size", "auto", 0, 4096, "N",
            "texts that are computed at the same time, others wait (auto: up to 16, as memory allows)", 0),
    SERVER_OPTIONS(C),
};
#undef C
static const struct option_group groups[] = {
    TEXT_MODEL_OPTION_GROUP(offsetof(struct serve_config, model), MODEL_ROWS_DTYPE),
    {"Server", serve_rows, ARRAY_LENGTH(serve_rows)},
    SAMPLING_OPTION_GROUP(offsetof(struct serve_config, sampling)),
};
const struct option_command serve_command = {
    "train_gpt serve --from DIR [options]",
    "Serves a model to programs that speak OpenAI's API: /v1/models, /v1/completions and "
    "/v1/chat/completions, also as streams. The options of the choice of the next token are for what a "
    "request leaves open; without a seed of its own each request has another one, the first that of --seed.",
    groups, ARRAY_LENGTH(groups)};

/* --- requests and their texts --- */

struct request;

/* A text that is written, or waits for that. */
struct choice {
    struct request *request;
    int64_t index;
    struct sampler *sampler; /* while it is written */
    struct generation generation;
    struct answer answer;
    int64_t sent, tokens_sent; /* of a stream: bytes and tokens; tokens_sent is -1 before the first event */
};

struct request {
    struct api_request q;
    struct http_later *later;
    int64_t id, begun, left; /* texts that have begun, that have not ended */
    int64_t turn;            /* the smallest is next */
    bool gone;               /* nobody waits for it */
    struct choice *choices;
    int64_t count;
    struct request *next;
};

struct serve {
    struct text_model m;
    struct chat_format chat;
    struct api api;
    struct batch *batch;
    struct request *requests; /* the oldest first */
    int64_t count, turns;     /* requests so far; see request.turn */
    int64_t seed;             /* of the next request without its own */
};

static void add_request(struct serve *s, struct api_request *q, struct http_later *later) {
    struct request *r = (struct request *)xcalloc(1, sizeof *r), **end = &s->requests;
    r->q = *q;
    r->later = later;
    r->id = ++s->count;
    r->turn = ++s->turns;
    r->left = r->count = q->prompt_count * q->n;
    r->choices = (struct choice *)xcalloc((size_t)r->count, sizeof *r->choices);
    if (!q->seeded) r->q.sampling.seed = s->seed++;
    for (int64_t i = 0; i < r->count; i++)
        r->choices[i] = (struct choice){.request = r, .index = i, .tokens_sent = -1};
    while (*end) end = &(*end)->next;
    *end = r;
}

static bool take_token(void *user, int64_t token, const float *logits) {
    struct choice *c = (struct choice *)user;
    return answer_add(&c->answer, token, logits) && !c->request->gone;
}

static void begin_choice(struct serve *s, struct choice *c) {
    const struct api_request *q = &c->request->q;
    const struct token_buffer *prompt = &q->prompts[c->index / q->n];
    struct sampler_options options = sampling_options(&q->sampling, c->index % q->n);
    c->sampler = sampler_new(&options, s->m.V);
    c->answer.o = (struct answer_options){.tokenizer = s->m.tokenizer,
                                          .model = &s->m.config,
                                          .V = s->m.V,
                                          .stop = (const char *const *)q->stop,
                                          .stop_count = q->stop_count,
                                          .end = q->end,
                                          .logprobs = q->logprobs,
                                          .top = q->top};
    c->generation =
        (struct generation){.sampler = c->sampler, .tokens = q->tokens, .each = take_token, .user = c};
    batch_add(s->batch, &c->generation, prompt->ids, prompt->count);
}

static void end_choice(struct choice *c) {
    sampler_free(c->sampler);
    c->sampler = NULL;
    c->request->left--;
}

/* --- answers --- */

static void send_event(struct request *r, char *text) {
    char *event = xasprintf("data: %s\n\n", text);
    http_stream(r->later, event);
    free(event);
    free(text);
}

/* What a text has more than was sent. */
static void send_more(struct serve *s, struct choice *c) {
    struct request *r = c->request;
    const struct answer *a = &c->answer;
    int64_t to = c->generation.ended ? a->size : a->sure, used;
    struct api_piece piece = {.answer = a,
                              .index = c->index,
                              .from = c->sent,
                              .to = to,
                              .token = max_i64(0, c->tokens_sent),
                              .ended = c->generation.ended,
                              .stream = true,
                              .first = c->tokens_sent < 0};
    json_t *choice = api_choice(&s->api, &r->q, &piece, &used);
    if (used == 0 && !piece.ended) { /* a part of a character, or of a stop text */
        json_decref(choice);
        return;
    }
    c->sent += used;
    c->tokens_sent = a->ids.count;
    send_event(r, api_answer_text(&s->api, &r->q, r->id, true, json_pack("[o]", choice), NULL));
}

static void finish(struct serve *s, struct request *r) {
    int64_t usage[2] = {0, 0};
    json_t *choices = json_array();
    for (int64_t i = 0; i < r->q.prompt_count; i++) usage[0] += r->q.prompts[i].count;
    for (int64_t i = 0; i < r->count; i++) {
        struct choice *c = &r->choices[i];
        struct api_piece piece = {.answer = &c->answer, .index = i, .to = c->answer.size, .ended = true};
        usage[1] += c->generation.made;
        if (!r->q.stream && !r->gone)
            json_array_append_new(choices, api_choice(&s->api, &r->q, &piece, NULL));
    }
    if (r->q.stream || r->gone) {
        if (r->q.usage && r->q.stream)
            send_event(r, api_answer_text(&s->api, &r->q, r->id, true, json_incref(choices), usage));
        if (r->q.stream) http_stream(r->later, "data: [DONE]\n\n");
        http_stream_end(r->later);
    } else {
        struct http_answer answer;
        http_answer_json(&answer, api_answer_text(&s->api, &r->q, r->id, false, json_incref(choices), usage));
        http_finish(r->later, &answer);
    }
    json_decref(choices);
}

static void free_request(struct request *r) {
    for (int64_t i = 0; i < r->count; i++) answer_free(&r->choices[i].answer);
    free(r->choices);
    api_request_free(&r->q);
    free(r);
}

/* --- the work between requests --- */

/* Texts of clients that have gone end at their next token; those of them that wait never begin. */
static void drop_gone(struct request *r) {
    r->gone = r->gone || http_gone(r->later);
    for (; r->gone && r->begun < r->count; r->begun++) r->left--;
}

/* Gives the free places to the texts that wait, one of each request in turn: many texts of one client leave
 * room for others. */
static void begin_choices(struct serve *s) {
    for (struct request *r = s->requests; r; r = r->next) drop_gone(r);
    while (batch_room(s->batch) > 0) {
        struct request *first = NULL;
        for (struct request *r = s->requests; r; r = r->next)
            if (r->begun < r->count && (!first || r->turn < first->turn)) first = r;
        if (!first) return;
        first->turn = ++s->turns;
        begin_choice(s, &first->choices[first->begun++]);
    }
}

static bool work(void *user) {
    struct serve *s = (struct serve *)user;
    begin_choices(s);
    batch_step(s->batch);
    for (struct request **at = &s->requests, *r; (r = *at);) {
        for (int64_t i = 0; i < r->count; i++) {
            struct choice *c = &r->choices[i];
            if (!c->sampler) continue;
            if (r->q.stream && !r->gone) send_more(s, c);
            if (c->generation.ended) end_choice(c);
        }
        if (r->left > 0) {
            at = &r->next;
            continue;
        }
        *at = r->next;
        finish(s, r);
        free_request(r);
    }
    return s->requests != NULL;
}

/* Those that are left when the server ends. */
static void drop_requests(struct serve *s) {
    for (struct request *r = s->requests; r; r = r->next) r->gone = true;
    while (work(s)) {}
}

static void answer_error(struct http_answer *a, int status, const char *message, const char *param,
                         const char *code) {
    http_answer_json(a, api_error_text(status, message, param, code));
    a->status = status;
}

static void refuse(struct http_answer *a, int status, const char *sentence) {
    const char *key = "The API key is not the one that the server has printed.";
    answer_error(a, status, status == 401 ? key : sentence, NULL, status == 401 ? "invalid_api_key" : NULL);
}

static void handle(void *user, const struct http_request *request, struct http_answer *a) {
    struct serve *s = (struct serve *)user;
    const char *models = "/v1/models", *path = request->path;
    bool chat = strcmp(path, "/v1/chat/completions") == 0, text = strcmp(path, "/v1/completions") == 0;
    size_t length = strlen(models);
    if (!request->post && strncmp(path, models, length) == 0 && (!path[length] || path[length] == '/')) {
        char *found = api_models_text(&s->api, path[length] ? path + length + 1 : NULL);
        if (found)
            http_answer_json(a, found);
        else
            answer_error(a, 404, "There is no such model.", "model", "model_not_found");
    } else if ((chat || text) && !request->post) {
        answer_error(a, 405, "This address takes POST.", NULL, NULL);
    } else if (chat || text) {
        struct api_request q = {0};
        struct api_error e = {0};
        if (api_take(&q, &s->api, chat, request->body, request->body_size, &e)) {
            add_request(s, &q, http_answer_later(request));
        } else {
            answer_error(a, 400, e.err.message, e.param, e.code);
            api_request_free(&q);
        }
    }
}

/* --- the command --- */

/* "runs/gpt2/" -> "gpt2" */
static char *name_of(const char *path) {
    size_t end = strlen(path), begin;
    while (end > 1 && path[end - 1] == '/') end--;
    begin = end;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    return xasprintf("%.*s", (int)(end - begin), path + begin);
}

static void print_address(const struct http *http, const struct serve *s) {
    const char *url = http_url(http), *token = strstr(url, "#token=");
    say("model     %s%s, %d texts at a time\n", s->api.name,
        s->api.chat ? temp_printf(" (%s conversations)", chat_family_name(s->chat.family)) : "",
        (int)batch_room(s->batch));
    say("base URL  %.*sv1   API key %s\nCtrl-C ends it\n", (int)strcspn(url, "#"), url,
        token ? token + strlen("#token=") : "any");
}

int cmd_serve(int argc, char **argv) {
    struct options options;
    struct serve_config c;
    int status = command_options(&options, &serve_command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    struct serve s = {.seed = c.sampling.seed};
    text_model_find(&s.m, &c.model, "");
    text_model_check_writes(&s.m);
    bool chat = s.m.tokenizer && model_chat_open(&s.chat, c.chat_template, s.m.tokenizer, &s.m.config, &err);
    check(chat || !s.m.tokenizer || c.chat_template == CHAT_AUTO, "%s", err.message);
    if (!chat && s.m.tokenizer) warn("/v1/chat/completions is not served: %s", err.message);
    int64_t T = s.m.config.context;
    text_model_load(&s.m, &c.model, text_model_batch(&s.m, c.batch_size, 4096, T), T);
    s.batch = batch_new(&s.m.gpt, false);
    char *name = c.name ? xstrdup(c.name) : name_of(c.model.from);
    s.api = (struct api){.m = &s.m,
                         .chat = chat ? &s.chat : NULL,
                         .name = name,
                         .sampling = &c.sampling,
                         .most_tokens = c.tokens ? c.tokens : T,
                         .created = (int64_t)time(NULL)};
    struct http_options server = {.address = c.address,
                                  .port = c.port,
                                  .token = c.token,
                                  .handle = handle,
                                  .user = &s,
                                  .body_max = 1 << 20,
                                  .work = work,
                                  .refuse = refuse};
    struct http *http = http_open(&server, &err);
    check(http, "%s", err.message);
    print_address(http, &s);
    http_serve(http);
    drop_requests(&s);
    http_close(http);
    batch_free(s.batch);
    if (chat) chat_close(&s.chat);
    free(name);
    text_model_close(&s.m);
    options_free(&options);
    return 0;
}
