/* The HTTP interface of OpenAI's API, as far as `serve` speaks it: requests for completions and chat
 * completions, checked, and their answers as JSON.
 *
 * See platform.openai.com/docs/api-reference/{models,completions,chat}. Keys that would change the
 * answer and are not known here are refused; others are ignored, as servers of this kind do. min_p,
 * top_k and repetition_penalty are keys of our own. */
#ifndef LLMC_SERVE_API_H
#define LLMC_SERVE_API_H

#include "llmc/cli/answer.h"
#include "llmc/cli/prompt.h"
#include "llmc/cli/text_model.h"
#include "llmc/text/chat.h"

struct json_t;

enum { API_STOPS = 16, API_CHOICES = 64, API_TOP = 20 };

/* What requests are checked against. */
struct api {
    const struct text_model *m;
    const struct chat_format *chat;         /* NULL: the model is for no conversations */
    const char *name;                       /* of the model */
    const struct sampling_config *sampling; /* of what a request leaves open; its seed is not used */
    int64_t most_tokens;                    /* of an answer */
    int64_t created;                        /* seconds since 1970: when the model was loaded */
};

struct api_request {
    bool chat, stream, usage; /* usage: at the end of a stream, too */
    bool logprobs;
    int64_t top;    /* most probable tokens at each place */
    int64_t tokens; /* at most, of each text */
    int64_t n;      /* texts from each prompt */
    bool seeded;    /* the request has a seed */
    struct sampling_config sampling;
    struct token_buffer *prompts; /* (prompt_count) */
    int64_t prompt_count;
    char *stop[API_STOPS];
    int64_t stop_count;
    int64_t end; /* the token that ends an answer; -1: those of the model */
};

/* What is wrong with a request. */
struct api_error {
    const char *param; /* the key, or NULL */
    const char *code;  /* "context_length_exceeded", or NULL */
    struct error err;
};

/* Reads the body of a request. Start from {0}; freed also after a failure. */
bool api_take(struct api_request *q, const struct api *api, bool chat, const char *body, size_t size,
              struct api_error *e);
void api_request_free(struct api_request *q);

/* {"error": ...} in OpenAI's shape. The caller frees, as with the texts below. */
char *api_error_text(int status, const char *message, const char *param, const char *code);
/* The list of models, or with an id the model, NULL if it is another one. */
char *api_models_text(const struct api *api, const char *id);

/* The text from byte `from` on as JSON. What is no UTF-8 becomes U+FFFD. Unless `all`, a character that
 * is not complete yet is left out; *used receives the bytes that were taken. */
struct json_t *api_text(const struct answer *a, int64_t from, int64_t to, bool all, int64_t *used);

/* One choice of an answer, or of an event of a stream, whose text goes from byte `from` to `to`, and whose
 * tokens are those from `token` on. */
struct api_piece {
    const struct answer *answer;
    int64_t index, from, to, token;
    bool ended, stream, first;
};
struct json_t *api_choice(const struct api *api, const struct api_request *q, const struct api_piece *p,
                          int64_t *used);
/* A whole answer, or an event of a stream, with these choices (a reference that is taken over). `usage` in
 * tokens: of the prompts, of the answers; NULL: none. */
char *api_answer_text(const struct api *api, const struct api_request *q, int64_t id, bool stream,
                      struct json_t *choices, const int64_t usage[2]);

#endif
