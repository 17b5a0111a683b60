/* What becomes of a prompt, token by token: its text, where that ends, and how probable each token was. */
#ifndef LLMC_ANSWER_H
#define LLMC_ANSWER_H

#include "llmc/model/config.h"
#include "llmc/text/tokenizer.h"

struct answer_options {
    const struct tokenizer *tokenizer; /* NULL: the ids stand for text */
    const struct gpt_config *model;
    int64_t V; /* tokens that can be chosen */
    const char *const *stop;
    int64_t stop_count; /* texts that end the answer and are no part of it; none is empty */
    int64_t end;        /* a token that ends it, beside the model's own; -1: none */
    bool past_end;      /* the model's own do not end it */
    bool logprobs;      /* keep log-probabilities */
    int64_t top;        /* and those of this many most probable tokens for each place */
};

struct token_logprob {
    int64_t token;
    double logprob; /* of the model, whatever the sampling options */
};

/* Starts from {.o = options}. */
struct answer {
    struct answer_options o;
    char *text; /* NUL-terminated; NULL: nothing yet */
    int64_t size, capacity;
    int64_t sure;              /* bytes of text that stay, even if what follows completes a stop text */
    struct token_buffer ids;   /* without the token that ended the answer */
    int64_t *place;            /* (ids.count) where in the text each token begins */
    double *logprob;           /* (ids.count) */
    struct token_logprob *top; /* (ids.count, o.top), the most probable first */
    int64_t room;              /* of the three arrays */
    bool stopped;              /* by a token that ends texts or by a stop text; else by the length */
};

/* Takes a token and the logits (V) that it was chosen from; false: it ends the answer. A generate_fn. */
bool answer_add(void *answer, int64_t token, const float *logits);
void answer_free(struct answer *a);

#endif
