/* GGUF, the file format of ggml and llama.cpp, as a container: keys with values, and named tensors.
 *
 * The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), everything little-endian: "GGUF",
 * u32 version, u64 tensors, u64 keys; the keys {string name, u32 type, value}; per tensor {string name, u32
 * rank, u64 dimensions with the contiguous one first, u32 type, u64 offset}; zeros up to a multiple of the
 * alignment (32, or what the key general.alignment says); the data, each tensor at such a multiple. A string
 * is a u64 length and that many bytes; an array is the u32 type of its elements, their u64 number, and the
 * elements. */
#ifndef LLMC_GGUF_H
#define LLMC_GGUF_H

#include "llmc/format/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GGUF_VERSION = 3, GGUF_ALIGNMENT = 32 };

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
};
/* Of a tensor's values; the others are quantized in ways that are not read. */
enum ggml_type { GGML_F32 = 0, GGML_F16 = 1, GGML_Q8_0 = 8, GGML_F64 = 28, GGML_BF16 = 30 };

/* What kind a token is: tokenizer.ggml.token_type. */
enum gguf_token { GGUF_TOKEN_NORMAL = 1, GGUF_TOKEN_CONTROL = 3, GGUF_TOKEN_USER = 4, GGUF_TOKEN_UNUSED = 5 };

struct gguf_value {
    char *key;
    enum gguf_type type;
    enum gguf_type of; /* of an array: the type of its elements, which are no arrays */
    int64_t count;     /* elements of an array; else 1 */
    const uint8_t *at; /* the first one */
};

struct gguf_file {
    struct mapped_file file;
    struct gguf_value *values;
    int64_t value_count;
    struct st_view *tensors; /* in the order of the file; dimensions as safetensors has them */
    int64_t tensor_count;
};

/* Whether the file begins like one. */
bool gguf_is_one(const char *path);
/* Maps the file and checks everything but the meaning: lengths, types, names that occur twice, places of the
 * tensors. On failure `g` is empty, and err names the file, and the key or tensor. */
bool gguf_open(struct gguf_file *g, const char *path, struct error *err);
void gguf_close(struct gguf_file *g); /* harmless after a failed open */

const struct gguf_value *gguf_find(const struct gguf_file *g, const char *key); /* NULL if absent */
/* As a number, whatever its type of number; NAN if it is none. */
double gguf_number(const struct gguf_value *v);
/* A string, or element `i` of an array of strings: not NUL-terminated. *next of 0 is the first element;
 * it then is where the next one lies. */
struct gguf_text {
    const char *data;
    int64_t size;
};
struct gguf_text gguf_text(const struct gguf_value *v); /* size -1: it is no string */
struct gguf_text gguf_next_text(const struct gguf_value *v, int64_t *next);
/* Element `i` of an array of int32. */
int32_t gguf_element(const struct gguf_value *v, int64_t i);

#ifdef __cplusplus
}
#endif
#endif
