/* The parts of `train_gpt sample`. */
#ifndef LLMC_SAMPLE_H
#define LLMC_SAMPLE_H

#include "llmc/cli/answer.h"
#include "llmc/cli/prompt.h"
#include "llmc/cli/text_model.h"
#include "llmc/text/chat.h"

struct sample_config {
    struct text_model_config model;
    const char *prompt, *prompt_file, *chat, *system, *source, *stop;
    enum chat_family chat_template;
    int64_t tokens, count, batch_size, top, beams;
    double length_penalty;
    struct sampling_config sampling;
    bool past_end, json, interactive, stats;
};

struct prompt {
    char *text;
    struct token_buffer ids;
};

/* What one prompt becomes with one seed. */
struct text {
    const struct prompt *prompt;
    struct sampler_options sampling;
    struct sampler *sampler; /* while it is made */
    struct generation generation;
    struct answer answer;
};

struct sample {
    const struct sample_config *c;
    struct text_model m;
    struct prompt *prompts;
    int64_t prompt_count;
    struct text *texts;
    int64_t text_count, made, steps;
    struct answer_options answer;
    bool slid;     /* a text was longer than the context */
    bool terminal; /* on which control characters must not act; elsewhere the bytes are what is wanted */
};

/* Prints bytes of a text. */
void sample_put(const struct sample *s, const char *bytes, int64_t size);

/* --interactive: answers what is typed, line by line, until the input ends. */
void sample_interactive(struct sample *s);

#endif
