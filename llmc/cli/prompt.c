#include "llmc/cli/prompt.h"

#include "llmc/format/adapter.h"
#include "llmc/format/checkpoint.h"
#include "llmc/format/model_config.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define C struct sampling_config
const struct option_row sampling_rows[SAMPLING_ROWS] = {
    OPT_REAL(C, temperature, "temperature", "0.8", 0, 100, "X",
             "randomness of the choice; 0: always the most probable token", 0),
    OPT_SIZE(C, top_k, "top-k", "0", 0, 1e9, "K", "choose among the K most probable tokens only (0: all)", 0),
    OPT_REAL(C, top_p, "top-p", "1", 0, 1, "P",
             "choose among the most probable tokens whose probabilities add up to P", OPTION_ABOVE_MIN),
    OPT_REAL(C, min_p, "min-p", "0", 0, 1, "P",
             "choose among tokens at least P times as probable as the most probable one", 0),
    OPT_REAL(C, repetition_penalty, "repetition-penalty", "1", 0, 100, "X",
             "make tokens that are already in the text, the prompt included, less probable: their logits are "
             "divided by X, negative ones multiplied (1: no change)",
             OPTION_ABOVE_MIN),
    OPT_INT(C, seed, "seed", "1", 0, INFINITY, "N", "the same seed gives the same text", 0),
};
#undef C

struct sampler_options sampling_options(const struct sampling_config *c, int64_t index) {
    return (struct sampler_options){.temperature = c->temperature,
                                    .top_k = c->top_k,
                                    .top_p = c->top_p,
                                    .min_p = c->min_p,
                                    .repetition_penalty = c->repetition_penalty,
                                    .seed = (uint64_t)c->seed + (uint64_t)index};
}

static char *read_all(FILE *f, size_t *length) {
    size_t size = 0, capacity = 4096;
    char *text = (char *)xmalloc(capacity);
    for (size_t n; (n = fread(text + size, 1, capacity - size - 1, f)) > 0;) {
        size += n;
        if (size + 1 == capacity) text = (char *)xrealloc(text, capacity *= 2);
    }
    text[size] = '\0';
    *length = size;
    return text;
}

char *open_adapter(const char *path) {
    struct error err;
    char *found = path ? adapter_find(path, &err) : NULL;
    check(found || !path, "--adapter %s", err.message);
    return found;
}

char *read_prompt(const char *prompt) {
    if (strcmp(prompt, "-") != 0) return xstrdup(prompt);
    size_t size;
    char *text = read_all(stdin, &size);
    if (size && text[size - 1] == '\n')
        size--; /* the end of the line that `echo` writes is no part of the text */
    text[size] = '\0';
    return text;
}

/* The "prompt" of a JSON object; NULL if the line is none with such a text. */
static char *prompt_of_json(const char *line) {
    json_t *root = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
    const char *prompt = json_string_value(json_object_get(root, "prompt"));
    char *text = prompt ? xstrdup(prompt) : NULL;
    json_decref(root);
    return text;
}

char **read_prompts(const char *path, int64_t *count) {
    bool input = strcmp(path, "-") == 0;
    FILE *f = input ? stdin : fopen(path, "rb");
    check(f, "--prompt-file %s: %s", path, strerror(errno));
    size_t size;
    char *text = read_all(f, &size), **prompts = NULL;
    check(!ferror(f), "--prompt-file %s: %s", path, strerror(errno));
    if (!input) fclose(f);
    check(strlen(text) == size, "--prompt-file %s: there is a byte 0 in it: it is no text", path);
    int64_t number = 1;
    bool json = false;
    *count = 0;
    for (char *line = text, *next; line; line = next, number++) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        size_t length = strlen(line);
        if (length && line[length - 1] == '\r') line[--length] = 0;
        if (strspn(line, " \t") == length) continue;
        char *prompt = json || *count == 0 ? prompt_of_json(line) : NULL;
        if (*count == 0) json = prompt != NULL;
        check(prompt || !json, "--prompt-file %s, line %" PRId64 ": no JSON object with a string \"prompt\"",
              path, number);
        prompts = (char **)xrealloc(prompts, (size_t)(*count + 1) * sizeof *prompts);
        prompts[(*count)++] = prompt ? prompt : xstrdup(line);
    }
    check(*count > 0, "--prompt-file %s: there is no prompt in it", path);
    free(text);
    return prompts;
}

struct tokenizer *open_prompt_tokenizer(const char *path, const char *directory, const char *prompt,
                                        int64_t V) {
    struct error err = {""};
    struct tokenizer *t = path ? tokenizer_open(path, &err) : checkpoint_load_tokenizer(directory, &err);
    check(t || !err.message[0], "%s", err.message);
    if (path && !checkpoint_tokenizer_is(directory, t))
        warn("--tokenizer %s is not the tokenizer of %s: the same numbers are other tokens to the model",
             path, directory);
    if (!t && prompt) {
        check(!prompt[0], "%s has no tokenizer.json: --tokenizer must name one for the text", directory);
        warn("%s has no tokenizer.json: token ids stand for text (--tokenizer PATH names one)", directory);
    }
    check(!t || tokenizer_vocab_size(t) <= V, "the tokenizer has %d tokens, the model only %" PRId64,
          t ? tokenizer_vocab_size(t) : 0, V);
    return t;
}

bool try_encode_prompt(struct token_buffer *ids, const struct tokenizer *tokenizer,
                       const struct gpt_config *model, const char *prompt, struct error *err) {
    int64_t begin = model_begin_of_text(model, tokenizer);
    *ids = (struct token_buffer){0};
    if (begin < 0 && !tokenizer) {
        begin = model->vocab_size - 1;
        warn("no bos_token_id in config.json: the text begins after token %" PRId64
             ", the last of the vocabulary",
             begin);
    }
    if (begin >= 0) {
        token_buffer_reserve(ids, 1);
        ids->ids[ids->count++] = (uint32_t)begin;
    }
    if (prompt[0] && tokenizer_encode_special(tokenizer, prompt, (int64_t)strlen(prompt), ids) < 0)
        return fail(err, "cannot encode the prompt");
    /* a prompt may itself begin with it */
    if (ids->count > 1 && begin >= 0 && ids->ids[1] == (uint32_t)begin)
        memmove(ids->ids, ids->ids + 1, (size_t)--ids->count * sizeof *ids->ids);
    if (ids->count == 0)
        return fail(err, "the tokenizer has no <|endoftext|> token to start from: give a --prompt");
    return true;
}

void warn_about_length(const struct token_buffer *ids, const struct gpt_config *model) {
    if (ids->count > model->context)
        warn("the prompt has %" PRId64 " tokens: the model sees the last %" PRId64 " of them, its context",
             ids->count, model->context);
}

struct token_buffer encode_prompt(const struct tokenizer *tokenizer, const struct gpt_config *model,
                                  const char *prompt) {
    struct token_buffer ids;
    struct error err;
    check(try_encode_prompt(&ids, tokenizer, model, prompt, &err), "%s", err.message);
    warn_about_length(&ids, model);
    return ids;
}
