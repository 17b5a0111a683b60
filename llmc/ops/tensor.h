/* A tensor is a typed view of memory on one device: pointer, dtype and up to four dimensions, row-major
 * without strides. It owns nothing. It carries what an op needs to check it, and its name for the message. */
#ifndef LLMC_TENSOR_H
#define LLMC_TENSOR_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_I32, DTYPE_E4M3, DTYPE_E5M2, DTYPE_COUNT };

static inline bool dtype_is_fp8(enum dtype t) { return t == DTYPE_E4M3 || t == DTYPE_E5M2; }
static inline size_t dtype_size(enum dtype t) { return dtype_is_fp8(t) ? 1 : t == DTYPE_BF16 ? 2 : 4; }
static inline const char *dtype_name(enum dtype t) {
    static const char *const names[DTYPE_COUNT] = {"fp32", "bf16", "int32", "e4m3", "e5m2"};
    return names[t];
}

/* bf16 is the upper half of an fp32. Rounds to nearest, ties to even; NaN stays NaN. */
static inline uint16_t bf16_from_f32(float x) {
    union {
        float f;
        uint32_t u;
    } b;
    b.f = x;
    if ((b.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((b.u >> 16) | 0x40u);
    return (uint16_t)((b.u + 0x7fffu + ((b.u >> 16) & 1u)) >> 16);
}
static inline float f32_from_bf16(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } b;
    b.u = (uint32_t)h << 16;
    return b.f;
}

#define TENSOR_MAX_RANK 4
struct tensor {
    void *data;
    const char *name; /* for messages; not owned */
    enum dtype dtype;
    int rank;
    int64_t dim[TENSOR_MAX_RANK];
    bool fp8; /* a weight whose linear layer multiplies in fp8, or what such a layer reads: ops.h, matmul */
    float *descale; /* fp8: on the device; an element is the stored number times this */
};

static inline int64_t tensor_count(const struct tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= t->dim[i];
    return n;
}
static inline int64_t tensor_bytes(const struct tensor *t) {
    return tensor_count(t) * (int64_t)dtype_size(t->dtype);
}

/* All leading dimensions folded into rows: (B,T,C) has B*T rows of C columns. */
static inline int64_t tensor_cols(const struct tensor *t) { return t->dim[t->rank - 1]; }
static inline int64_t tensor_rows(const struct tensor *t) { return tensor_count(t) / tensor_cols(t); }

static inline float *f32(const struct tensor *t) { return (float *)t->data; }
static inline int32_t *i32(const struct tensor *t) { return (int32_t *)t->data; }

/* Makes a view. Unused dimensions are 0: tensor_make("bias", DTYPE_F32, p, C, 0, 0, 0) has rank 1. */
struct tensor tensor_make(const char *name, enum dtype dtype, void *data, int64_t d0, int64_t d1, int64_t d2,
                          int64_t d3);

/* Rows [first, first+count) of the folded (rows, cols) form, as a rank-2 view. */
struct tensor tensor_slice_rows(const struct tensor *t, int64_t first, int64_t count);

/* Elements [first, first+count) in row-major order, as a rank-1 view. `count` may be 0, since a rank may
 * own no element of a small buffer. A range of an absent tensor (rank 0) is absent, too. */
struct tensor tensor_range(const struct tensor *t, int64_t first, int64_t count);

/* "name (4,64,768) fp32" by temp_printf. */
const char *tensor_text(const struct tensor *t);

bool tensor_same_shape(const struct tensor *a, const struct tensor *b);

#ifdef __cplusplus
}
#endif
#endif
