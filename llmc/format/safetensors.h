/* safetensors: the Hugging Face container for named tensors, read and written.
 *
 * The format (https://huggingface.co/docs/safetensors):
 *     8 bytes, little-endian: the length N of the header
 *     N bytes of JSON:        {"name": {"dtype": "F32", "shape": [2,3], "data_offsets": [begin, end]}, ...,
 *                              "__metadata__": {"key": "text"}}
 *     the data:               row-major, without gaps; offsets count from the end of the header */
#ifndef LLMC_SAFETENSORS_H
#define LLMC_SAFETENSORS_H

#include "llmc/base/file.h"

#ifdef __cplusplus
extern "C" {
#endif

enum st_dtype {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_F8_E5M2,
    ST_F8_E4M3,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_F64,
    ST_I64,
    ST_U64,
    ST_DTYPE_COUNT,
    /* Of GGUF files only: blocks of 32 values, an fp16 scale and 32 int8 that it multiplies. */
    ST_Q8_0 = ST_DTYPE_COUNT
};
enum { Q8_0_VALUES = 32, Q8_0_BYTES = 34 };
const char *st_dtype_name(enum st_dtype dtype); /* as written in the file: "F32" */
int64_t st_dtype_size(enum st_dtype dtype);     /* bytes per element; not of ST_Q8_0 */
int64_t st_dtype_bytes(enum st_dtype dtype, int64_t count); /* of Q8_0: whole blocks */

#define ST_MAX_RANK         8
#define ST_MAX_HEADER_BYTES 100000000 /* the limit of the reference implementation */

/* One tensor in a mapped file. Everything is owned by the struct safetensors it came from. `data` need not
 * be aligned to the element: read it through safetensors_to_f32 or memcpy. */
struct st_view {
    const char *name;
    const char *path; /* the file that holds it, for messages */
    enum st_dtype dtype;
    int rank; /* 0 is a scalar: one element */
    int64_t dim[ST_MAX_RANK];
    int64_t count; /* elements */
    int64_t bytes;
    const void *data;
};

/* One file, or the files of a sharded model as if they were one. */
struct safetensors {
    int64_t count;
    struct st_view *tensors; /* in the order of the data in the file(s): iterate over 0..count-1 */
    struct st_view **by_name;
    struct st_file *files;
    int file_count; /* 0: safetensors_index() */
};

/* Maps the file and validates the whole header before anything is used: length, UTF-8, JSON, duplicate
 * names, dtypes, shapes (overflow), offsets (range, size, overlap, holes, data that belongs to no tensor).
 * Fields of a tensor that the format does not define are ignored. On failure `st` is empty and err names
 * file, tensor, field, and what was expected and found. The file must not shrink while it is open: reading
 * beyond its new end would raise SIGBUS, which is not handled. */
bool safetensors_open(struct safetensors *st, const char *path, struct error *err);

/* DIRECTORY/STEM.safetensors ("model" in a Hugging Face directory), or else the files that
 * STEM.safetensors.index.json names. Of several files exactly the tensors of the index's "weight_map" are
 * visible, each taken from the file given there. */
bool safetensors_open_directory(struct safetensors *st, const char *directory, const char *stem,
                                struct error *err);

/* Makes views that somebody else owns findable by their names, which all differ. */
void safetensors_index(struct safetensors *st, struct st_view *views, int64_t count);

void safetensors_close(struct safetensors *st); /* harmless after a failed open */

const struct st_view *safetensors_find(const struct safetensors *st, const char *name); /* NULL if absent */
/* The text under `key` in __metadata__ (of the first file that has it), or NULL. */
const char *safetensors_metadata(const struct safetensors *st, const char *key);
/* "wte.weight BF16 (50257,768)" by temp_printf. */
const char *st_view_text(const struct st_view *v);

/* Elements [first, first+count) of `v` as fp32, on all cores: F32, BF16, F16, F64 (rounded to nearest; too
 * large becomes infinity) and Q8_0 (whole blocks). Other dtypes are an error; a range outside the tensor is
 * a programming error. */
bool safetensors_to_f32(float *out, const struct st_view *v, int64_t first, int64_t count, struct error *err);

/* Writing: declare everything, open, put the data of all tensors in the declared order, close. Equal input
 * gives equal bytes. Declaring twice, a wrong order or a wrong size are programming errors. */
struct safetensors_writer {
    struct writer file;
    void *header;               /* JSON object under construction */
    struct st_declared *tensor; /* name and bytes, in order */
    int64_t count, capacity, current;
    int64_t current_bytes; /* of tensor[current], already put */
    int64_t data_bytes;    /* of all declared tensors */
};
void safetensors_writer_init(struct safetensors_writer *w);
void safetensors_writer_metadata(struct safetensors_writer *w, const char *key, const char *value);
void safetensors_declare(struct safetensors_writer *w, const char *name, enum st_dtype dtype, int rank,
                         const int64_t *dim);
/* Size of the complete file; valid once everything is declared. */
int64_t safetensors_writer_size(const struct safetensors_writer *w);
/* Opens `path` itself (not a temporary name) and writes the header. On failure `w` is released. */
bool safetensors_writer_open(struct safetensors_writer *w, const char *path, struct error *err);
/* The next `bytes` of tensor `name`; a tensor may come in several pieces. Write errors appear in close. */
void safetensors_put(struct safetensors_writer *w, const char *name, const void *data, int64_t bytes);
/* Flushes, fsyncs, closes, releases `w`. On failure the file is removed. */
bool safetensors_writer_close(struct safetensors_writer *w, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
