/* What the commands that begin with a prompt have in common: its tokens, and how the next token is
 * chosen. */
#ifndef LLMC_PROMPT_H
#define LLMC_PROMPT_H

#include "llmc/base/options.h"
#include "llmc/model/config.h"
#include "llmc/model/sampler.h"
#include "llmc/text/tokenizer.h"

struct sampling_config {
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k, seed;
};
enum { SAMPLING_ROWS = 6 };
extern const struct option_row sampling_rows[SAMPLING_ROWS];
/* The options of a struct sampling_config at `offset` in the command's configuration. */
#define SAMPLING_OPTION_GROUP(offset)                                                                        \
    { "Choice of the next token", sampling_rows, SAMPLING_ROWS, 0, offset }

/* Those of text `index`, whose seed is that much higher. */
struct sampler_options sampling_options(const struct sampling_config *c, int64_t index);

/* The row of --adapter, with a field `adapter`. */
#define ADAPTER_OPTION(S)                                                                                    \
    OPT_TEXT(S, adapter, "adapter", NULL, "DIR",                                                             \
             "the model with this LoRA adapter: a run of --lora, or a directory of the PEFT library", 0)
/* Where it is (adapter_find()); NULL without one. Dies with the reason. The caller frees. */
char *open_adapter(const char *path);

/* The text of a --prompt; "-" reads standard input. The caller frees. */
char *read_prompt(const char *prompt);
/* Those of a --prompt-file, at least one: its lines without empty ones, or, if the first is a JSON
 * object, the strings "prompt" of JSON lines. "-" is standard input. The caller frees each and the list. */
char **read_prompts(const char *path, int64_t *count);

/* The tokenizer at `path`, or without one that of the model in `directory`. Dies if it has more tokens than
 * the model (V). NULL if there is none, which a prompt that is not "" does not allow; of "" it is a warning
 * that ids stand for text. A prompt of NULL: no text is read or written. */
struct tokenizer *open_prompt_tokenizer(const char *path, const char *directory, const char *prompt,
                                        int64_t V);

/* The tokens that a text continues: the one that begins texts (model_begin_of_text()), and the prompt. The
 * caller frees, also after a failure. */
bool try_encode_prompt(struct token_buffer *ids, const struct tokenizer *tokenizer,
                       const struct gpt_config *model, const char *prompt, struct error *err);
/* The same; a failure ends the process. */
struct token_buffer encode_prompt(const struct tokenizer *tokenizer, const struct gpt_config *model,
                                  const char *prompt);

/* Warns about a prompt that is longer than the context. */
void warn_about_length(const struct token_buffer *ids, const struct gpt_config *model);

#endif
