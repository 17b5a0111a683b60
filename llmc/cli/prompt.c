#include "llmc/cli/prompt.h"

#include "llmc/format/checkpoint.h"
#include "llmc/format/model_config.h"

#include <inttypes.h>
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
    OPT_INT(C, seed, "seed", "1", 0, INFINITY, "N", "the same seed gives the same text", 0),
};
#undef C

struct sampler_options sampling_options(const struct sampling_config *c, int64_t index) {
    return (struct sampler_options){c->temperature, c->top_k, c->top_p, (uint64_t)(c->seed + index)};
}

char *read_prompt(const char *prompt) {
    if (strcmp(prompt, "-") != 0) return xstrdup(prompt);
    size_t size = 0, capacity = 4096;
    char *text = (char *)xmalloc(capacity);
    for (size_t n; (n = fread(text + size, 1, capacity - size - 1, stdin)) > 0;) {
        size += n;
        if (size + 1 == capacity) text = (char *)xrealloc(text, capacity *= 2);
    }
    if (size && text[size - 1] == '\n')
        size--; /* the end of the line that `echo` writes is no part of the text */
    text[size] = '\0';
    return text;
}

struct tokenizer *open_prompt_tokenizer(const char *path, const char *directory, const char *prompt,
                                        int64_t V) {
    struct error err = {""};
    struct tokenizer *t = path ? tokenizer_open(path, &err) : checkpoint_load_tokenizer(directory, &err);
    check(t || !err.message[0], "%s", err.message);
    if (path && !checkpoint_tokenizer_is(directory, t))
        warn("--tokenizer %s is not the tokenizer of %s: the same numbers are other tokens to the model",
             path, directory);
    if (!t) {
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
