/* A model as the commands that read or write text open it: its options, and what belongs to it. */
#ifndef LLMC_TEXT_MODEL_H
#define LLMC_TEXT_MODEL_H

#include "llmc/base/options.h"
#include "llmc/model/generate.h"

struct text_model_config {
    const char *from, *tokenizer, *device;
    int64_t threads;
    const char *adapter;
    int dtype; /* 1: bf16 */
};
/* How many rows a command takes: all need the first ones; then --adapter, and --dtype for those that
 * write. */
enum { MODEL_ROWS = 4, MODEL_ROWS_ADAPTER, MODEL_ROWS_DTYPE };
extern const struct option_row text_model_rows[MODEL_ROWS_DTYPE];
/* The options of a struct text_model_config at `offset` in the command's configuration. The fields whose rows
 * are left out must be 0. */
#define TEXT_MODEL_OPTION_GROUP(offset, count)                                                               \
    { "Model", text_model_rows, count, 0, offset }

struct text_model {
    char *directory, *adapter; /* `adapter`: NULL without one */
    struct gpt_config config;
    struct tokenizer *tokenizer; /* NULL: there is none, and ids stand for text */
    int64_t V;                   /* tokens that can be chosen */
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
};

/* Finds the model, its tokenizer and the device; dies if that fails. `text` as in open_prompt_tokenizer(). */
void text_model_find(struct text_model *m, const struct text_model_config *c, const char *text);
/* Dies if the model cannot write, because its tokens see those after them. */
void text_model_check_writes(const struct text_model *m);
/* How many of `texts` texts of T tokens to compute at the same time: `wanted`, or if that is 0 up to 16, as
 * memory allows. */
int64_t text_model_batch(const struct text_model *m, int64_t wanted, int64_t texts, int64_t T);
/* Loads the weights for generation (generator_create()): of `caches` texts of T tokens. */
void text_model_load(struct text_model *m, const struct text_model_config *c, int64_t caches, int64_t T);
/* The most probable continuation that a beam search of this width finds (model/beam.h), until a token that
 * ends texts of this model, <|endoftext|> or `end` (-1: none). Adds its tokens to *made. The caller frees. */
char *beam_text(struct text_model *m, int64_t end, int64_t width, double length_penalty,
                const uint32_t *prompt, int64_t count, int64_t tokens, int64_t *made);
void text_model_close(struct text_model *m);

#endif
