/* The JSON files of a model directory: config.json, generation_config.json, and those of its tokenizer.
 * Which keys config.json has, and what they mean, is in the table of gpt_fields (model/config.h). */
#ifndef LLMC_FORMAT_MODEL_CONFIG_H
#define LLMC_FORMAT_MODEL_CONFIG_H

#include "llmc/format/safetensors.h"
#include "llmc/model/config.h"
#include "llmc/text/chat.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads DIR/config.json: a complete configuration, and the family that it is written in. Refuses what this
 * engine would compute differently: another model_type, another activation, scaled rotary positions, ... */
bool model_config_read(struct gpt_config *config, enum gpt_format *format, const char *dir,
                       struct error *err);

/* Writes DIR/config.json and DIR/generation_config.json, for transformers where a family can say what
 * the model is; with a tokenizer (or NULL) also DIR/tokenizer.json, and DIR/tokenizer_config.json,
 * without which AutoTokenizer may take another pre-tokenizer than that of tokenizer.json. */
bool model_config_write(const char *dir, const struct gpt_config *config, enum st_dtype dtype,
                        const struct tokenizer *tokenizer, struct error *err);

/* The last two alone. */
bool model_tokenizer_write(const char *dir, const struct gpt_config *config,
                           const struct tokenizer *tokenizer, struct error *err);

/* The token that begins a text: config.json's bos_token_id, else its eos_token_id, else the tokenizer's
 * end of text (NULL: none), else GPT-2's if the vocabulary has the size of GPT-2's. -1: unknown. */
int64_t model_begin_of_text(const struct gpt_config *config, const struct tokenizer *tokenizer);
/* Whether the token ends a text, by config.json or by the tokenizer (or NULL). */
bool model_ends_text(const struct gpt_config *config, const struct tokenizer *tokenizer, int64_t token);
/* The model learns to end what it says with this token, too: config.json will name it. */
void model_add_end_of_text(struct gpt_config *config, const struct tokenizer *tokenizer, int64_t token);
/* The same for the token that ends a turn by the tokenizer's chat template, if it has one that is known. */
void model_add_end_of_turn(struct gpt_config *config, const struct tokenizer *tokenizer);
/* The format of conversations with this model, see chat_open(). */
bool model_chat_open(struct chat_format *f, enum chat_family family, const struct tokenizer *tokenizer,
                     const struct gpt_config *config, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
