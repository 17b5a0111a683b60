/* A model on disk: a Hugging Face GPT-2 directory or one of llm.c's model files, opened, compared with its
 * configuration down to the last tensor, and read row by row as if all of them were stored the way the engine
 * stores them. And the other direction: the files of a Hugging Face directory. checkpoint.c and export.c
 * build on this.
 *
 * Order: config.json; tables of stored tensors; opening a model; reading; writing. */
#ifndef LLMC_MODEL_FILE_H
#define LLMC_MODEL_FILE_H

#include "llmc/model/gpt.h"
#include "llmc/format/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- config.json (model_config.c) --- */

/* Reads DIR/config.json. Refuses what this engine would compute differently: another model_type, another
 * activation, another epsilon, an untied head, ... */
bool model_config_read(struct gpt_config *config, const char *dir, struct error *err);

/* Writes DIR/config.json and DIR/generation_config.json for transformers' GPT2LMHeadModel. `end_of_text` is
 * the token that begins and ends a text, -1 if there is none. */
bool model_config_write(const char *dir, const struct gpt_config *config, enum st_dtype dtype,
                        int64_t end_of_text, struct error *err);

/* --- tables of stored tensors --- */

/* Where each parameter lies, all of them found and of the right shape. Token embeddings are stored without
 * the padding of the vocabulary: (V,C). */
struct weights {
    struct gpt_config config;
    const struct st_view **view; /* (PARAM_ROWS, L); rows that are not per layer use layer 0 */
    bool conv1d; /* matrices with param_row.conv1d are stored transposed, (C,OC), as Hugging Face does */
};
/* Fills the table with PREFIX + gpt_param_name() of `st`. */
bool weights_find(struct weights *w, const struct gpt_config *config, const struct safetensors *st,
                  const char *prefix, struct error *err);
void weights_free(struct weights *w);

/* Stored rows and columns of a parameter in the engine's orientation: (V,C) for wte, (n,1) for vectors. */
int64_t weights_rows(const struct gpt_config *config, enum param_id id);
int64_t weights_cols(const struct gpt_config *config, enum param_id id);

/* Rows [first, first+count) of a parameter as fp32, in the engine's orientation (OC,C), on all cores. */
bool weights_read(float *out, const struct weights *w, enum param_id id, int64_t layer, int64_t first,
                  int64_t count, struct error *err);

/* --- a model --- */

struct model_file {
    struct weights weights;
    struct safetensors st;  /* of a directory */
    struct mapped_file bin; /* of an llm.c file */
    struct st_view *bin_views;
};
/* `path` is a directory or an llm.c file. Nothing of the tensors' values is read, except that of a separate
 * lm_head.weight, which must equal wte. On failure `m` is empty. */
bool model_file_open(struct model_file *m, const char *path, struct error *err);
void model_file_close(struct model_file *m); /* harmless after a failed open */

/* llmc_bin.c: the same for an llm.c model file (magic 20240326, version 3 fp32 or 5 bf16). */
bool llmc_bin_open(struct model_file *m, const char *path, struct error *err);

/* --- writing --- */

/* Gives rows [first, first+count) of a parameter as weights_read does. */
typedef bool weights_source(float *out, const void *source, enum param_id id, int64_t layer, int64_t first,
                            int64_t count, struct error *err);

/* Declares, respectively puts, in Hugging Face's layout under PREFIX + gpt_param_name(), the parameters that
 * begin at elements [first, end) of the parameter buffer (WEIGHTS_ALL: all of them). `dtype` is ST_F32,
 * ST_F16 or ST_BF16. Takes host memory for the largest transposed matrix of one layer, twice. A failure (of
 * the source, or a value that fp16 cannot hold) appears when the writer is closed. */
#define WEIGHTS_ALL 0, INT64_MAX
void weights_declare(struct safetensors_writer *w, const struct gpt_config *config, const char *prefix,
                     enum st_dtype dtype, int64_t first, int64_t end);
void weights_put(struct safetensors_writer *w, const struct gpt_config *config, const char *prefix,
                 enum st_dtype dtype, int64_t first, int64_t end, weights_source *read, const void *source);
/* Calls visit(arg, id, layer) for those parameters, in that order. */
void weights_each(const struct gpt_config *config, int64_t first, int64_t end,
                  void (*visit)(void *arg, enum param_id id, int64_t layer), void *arg);

/* fp32 to nearest fp16, ties to even; too large becomes infinity, NaN stays NaN. */
uint16_t f16_from_f32(float x);
/* To ST_BF16 or ST_F16. False if fp16 cannot hold a finite value. */
bool narrow_values(uint16_t *out, const float *values, int64_t n, enum st_dtype dtype);

#define HF_PREFIX "transformer." /* of every parameter of a GPT2LMHeadModel */

#ifdef __cplusplus
}
#endif
#endif
