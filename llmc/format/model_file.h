/* A model on disk: a Hugging Face directory, a GGUF file or one of llm.c's model files, opened, compared with
 * its configuration down to the last tensor, and read row by row as if all of them were stored the way the
 * engine stores them. And the other direction: the tensors of a Hugging Face directory. checkpoint.c and
 * export.c build on this. */
#ifndef LLMC_FORMAT_MODEL_FILE_H
#define LLMC_FORMAT_MODEL_FILE_H

#include "llmc/format/adapter.h"
#include "llmc/format/names.h"
#include "llmc/format/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- tables of stored tensors --- */

/* Where each piece of each parameter lies, all of them found and of the right shape. Token embeddings are
 * stored without the padding of the vocabulary: (V,C). */
struct weights {
    struct gpt_config config;
    enum gpt_format format;      /* whose names and layout these are; FORMAT_OWN for an llm.c file */
    const struct st_view **view; /* (PARAM_ROWS, MOST_PIECES, L); NULL where there is none */
    struct adapter *adapter;     /* weights_read() adds it; or NULL */
};
const struct st_view **weights_view(const struct weights *w, enum param_id id, int piece, int64_t layer);
/* Fills the table with the tensors PREFIX + piece_name() of `st`. `skip` is a beginning of the names that
 * `st` leaves out, as the published GPT-2 leaves out "transformer."; or "". Without `blocks`, `st` has none
 * of the blocks' matrices. */
bool weights_find(struct weights *w, const struct gpt_config *config, enum gpt_format format,
                  const struct safetensors *st, const char *prefix, const char *skip, bool blocks,
                  struct error *err);
void weights_free(struct weights *w);

/* Stored rows and columns of a parameter in the engine's orientation: (V,C) for wte, (n,1) for vectors. */
int64_t weights_rows(const struct gpt_config *config, enum param_id id);
int64_t weights_cols(const struct gpt_config *config, enum param_id id);

/* Rows [first, first+count) of a parameter as fp32, in the engine's orientation (OC,C), on all cores. */
bool weights_read(float *out, const struct weights *w, enum param_id id, int64_t layer, int64_t first,
                  int64_t count, struct error *err);

/* Of some rows of every parameter, as they are without an adapter: two models that were trained apart differ
 * in them. The values count, not the format. */
bool weights_hash(const struct weights *w, uint64_t *hash, struct error *err);

/* --- a model --- */

struct model_file {
    struct weights weights;
    struct safetensors st;  /* of a directory; the tensors of a GGUF file */
    struct gguf_file *gguf; /* or NULL */
    struct mapped_file bin; /* of an llm.c file */
    struct st_view *bin_views;
};
/* `path` is a directory, a GGUF file or an llm.c file. Nothing of the tensors' values is read, except that
 * of a separate head of a tied model, which must equal wte. On failure `m` is empty. */
bool model_file_open(struct model_file *m, const char *path, struct error *err);
/* The same with the adapter in a directory (adapter_find()), or without one (NULL). */
bool model_file_open_adapted(struct model_file *m, const char *path, const char *adapter, struct error *err);
void model_file_close(struct model_file *m); /* harmless after a failed open */

/* --- writing --- */

/* Gives rows [first, first+count) of a parameter as weights_read does. */
typedef bool weights_source(float *out, const void *source, enum param_id id, int64_t layer, int64_t first,
                            int64_t count, struct error *err);

/* Declares, respectively puts, under PREFIX + piece_name() of the family of directories that the
 * configuration belongs to, the parameters that begin at elements [first, end) of the parameter buffer
 * (WEIGHTS_ALL: all of them). `dtype` is ST_F32, ST_F16 or ST_BF16. Takes host memory for the largest
 * transposed matrix of one layer, twice. A failure (of the source, or a value that fp16 cannot hold)
 * appears when the writer is closed. */
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

#ifdef __cplusplus
}
#endif
#endif
