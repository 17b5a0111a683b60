/* config.json and generation_config.json of a model directory. Which keys there are, and what they mean, is
 * in the table of gpt_fields (model/config.h). */
#ifndef LLMC_FORMAT_MODEL_CONFIG_H
#define LLMC_FORMAT_MODEL_CONFIG_H

#include "llmc/format/safetensors.h"
#include "llmc/model/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads DIR/config.json: a complete configuration, and the family that it is written in. Refuses what this
 * engine would compute differently: another model_type, another activation, scaled rotary positions, ... */
bool model_config_read(struct gpt_config *config, enum gpt_format *format, const char *dir,
                       struct error *err);

/* Writes DIR/config.json and DIR/generation_config.json, for transformers where a family can say what the
 * model is. `end_of_text` is the token that begins and ends a text, -1 if there is none. */
bool model_config_write(const char *dir, const struct gpt_config *config, enum st_dtype dtype,
                        int64_t end_of_text, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
