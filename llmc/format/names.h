/* What the formats call the parameters, and how they store them.
 *
 * A format may store one parameter of the engine as several tensors: Llama has queries, keys and values
 * apart, which are rows of one matrix here. Such a tensor is a piece. Reading, writing and checking a file
 * are loops over the pieces of the parameters that the model has. */
#ifndef LLMC_FORMAT_NAMES_H
#define LLMC_FORMAT_NAMES_H

#include "llmc/model/params.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MOST_PIECES = 3 };

struct piece {
    const char *prefix, *pattern; /* of the name; "%d" is the layer */
    int64_t first, rows,
        cols; /* rows of the engine's matrix, without those that pad the vocabulary; a vector: 1 column */
    bool vector;
    bool transposed; /* stored (cols,rows) */
    bool
        interleaved; /* rows i and i + HS/2 of a head, which rotate together, are stored next to each other */
};

/* The pieces of a parameter, in the order of their rows; returns how many: 0 if the model has no such
 * parameter. */
int format_pieces(struct piece piece[MOST_PIECES], enum gpt_format format, const struct gpt_config *config,
                  enum param_id id);
/* All tensors of the model. */
int64_t format_tensor_count(enum gpt_format format, const struct gpt_config *config);
/* "model.layers.3.self_attn.q_proj.weight", by temp_printf. */
const char *piece_name(const struct piece *piece, int64_t layer);

/* The family of Hugging Face models that the configuration belongs to, FORMAT_OWN if none can say it. */
enum gpt_format format_for_directory(const struct gpt_config *config);
/* What general.architecture calls a format of GGUF; NULL for the others. */
const char *gguf_architecture(enum gpt_format format);
/* The architecture of GGUF, or GPT_FORMATS with the reason. */
enum gpt_format format_for_gguf(const struct gpt_config *config, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
