/* Reads the container; gguf.h describes the format.
 *
 * A file is untrusted: every length is compared with what is left of the file before it is used. */
#include "llmc/format/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- bytes --- */

struct cursor {
    const struct mapped_file *file;
    int64_t at;
};

static bool truncated(const struct cursor *c, const char *what, struct error *err) {
    return fail(err, "%s: ends within %s, at byte %" PRId64 ": truncated, or no GGUF file", c->file->path,
                what, c->file->size);
}

static const uint8_t *take(struct cursor *c, uint64_t bytes) {
    if (bytes > (uint64_t)(c->file->size - c->at)) return NULL;
    const uint8_t *p = c->file->data + c->at;
    c->at += (int64_t)bytes;
    return p;
}

static bool take_u32(struct cursor *c, uint32_t *out) {
    const uint8_t *p = take(c, sizeof *out);
    if (p) memcpy(out, p, sizeof *out);
    return p != NULL;
}

static bool take_u64(struct cursor *c, uint64_t *out) {
    const uint8_t *p = take(c, sizeof *out);
    if (p) memcpy(out, p, sizeof *out);
    return p != NULL;
}

static bool take_text(struct cursor *c, struct gguf_text *out) {
    uint64_t size;
    if (!take_u64(c, &size)) return false;
    out->data = (const char *)take(c, size);
    out->size = (int64_t)size;
    return out->data != NULL;
}

/* The name of a key or tensor. The caller frees. */
static bool take_name(struct cursor *c, char **out, const char *what, struct error *err) {
    struct gguf_text text;
    enum { LONGEST = 65535 }; /* the limit of the format */
    if (!take_text(c, &text)) return truncated(c, what, err);
    if (text.size == 0 || text.size > LONGEST || memchr(text.data, 0, (size_t)text.size))
        return fail(err, "%s: %s has no name that is one, before byte %" PRId64, c->file->path, what, c->at);
    *out = xasprintf("%.*s", (int)text.size, text.data);
    return true;
}

/* --- values --- */

static const int64_t sizes[GGUF_TYPES] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8};

static bool take_value(struct cursor *c, struct gguf_value *v, struct error *err) {
    uint32_t type, of;
    uint64_t count = 1;
    const char *path = c->file->path;
    if (!take_u32(c, &type)) return truncated(c, "the keys", err);
    v->type = v->of = (enum gguf_type)type;
    if (type >= GGUF_TYPES) return fail(err, "%s: key %.200s: unknown type %u", path, v->key, type);
    if (type == GGUF_ARRAY) {
        if (!take_u32(c, &of) || !take_u64(c, &count)) return truncated(c, "the keys", err);
        v->of = (enum gguf_type)of;
        if (of >= GGUF_TYPES || of == GGUF_ARRAY)
            return fail(err, "%s: key %.200s: an array of type %u", path, v->key, of);
    }
    v->at = c->file->data + c->at;
    v->count = (int64_t)count;
    if (count > (uint64_t)(c->file->size - c->at)) return truncated(c, "the keys", err);
    if (v->of != GGUF_STRING)
        return take(c, count * (uint64_t)sizes[v->of]) != NULL || truncated(c, "the keys", err);
    struct gguf_text text;
    for (uint64_t i = 0; i < count; i++)
        if (!take_text(c, &text)) return truncated(c, "the keys", err);
    return true;
}

const struct gguf_value *gguf_find(const struct gguf_file *g, const char *key) {
    for (int64_t i = 0; i < g->value_count; i++)
        if (strcmp(g->values[i].key, key) == 0) return &g->values[i];
    return NULL;
}

static double number_at(enum gguf_type type, const uint8_t *at) {
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
        float f32;
        double f64;
    } x = {.u64 = 0};
    memcpy(&x, at, (size_t)sizes[type]);
    switch (type) {
    case GGUF_U8:
    case GGUF_BOOL:
        return x.u8;
    case GGUF_I8:
        return x.i8;
    case GGUF_U16:
        return x.u16;
    case GGUF_I16:
        return x.i16;
    case GGUF_U32:
        return x.u32;
    case GGUF_I32:
        return x.i32;
    case GGUF_U64:
        return (double)x.u64;
    case GGUF_I64:
        return (double)x.i64;
    case GGUF_F32:
        return (double)x.f32;
    case GGUF_F64:
        return x.f64;
    default:
        return NAN;
    }
}

double gguf_number(const struct gguf_value *v) {
    return v->type == GGUF_STRING || v->type == GGUF_ARRAY ? NAN : number_at(v->type, v->at);
}

int32_t gguf_element(const struct gguf_value *v, int64_t i) {
    return (int32_t)number_at(v->of, v->at + i * sizes[v->of]);
}

struct gguf_text gguf_next_text(const struct gguf_value *v, int64_t *next) {
    uint64_t size;
    memcpy(&size, v->at + *next, sizeof size);
    struct gguf_text text = {(const char *)v->at + *next + sizeof size, (int64_t)size};
    *next += (int64_t)(sizeof size + size);
    return text;
}

struct gguf_text gguf_text(const struct gguf_value *v) {
    int64_t next = 0;
    if (v->type != GGUF_STRING) return (struct gguf_text){"", -1};
    return gguf_next_text(v, &next);
}

/* --- tensors --- */

static const char *ggml_type_name(uint32_t type) {
    static const char *const names[] = {"F32",  "F16",  "Q4_0", "Q4_1", NULL,   NULL,   "Q5_0", "Q5_1",
                                        "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"};
    const char *name = type < ARRAY_LENGTH(names) ? names[type] : NULL;
    return name ? name : temp_printf("%u", type);
}

static bool set_dtype(struct st_view *v, uint32_t type, struct error *err) {
    static const struct {
        enum ggml_type type;
        enum st_dtype dtype;
    } known[] = {{GGML_F32, ST_F32},
                 {GGML_F16, ST_F16},
                 {GGML_BF16, ST_BF16},
                 {GGML_F64, ST_F64},
                 {GGML_Q8_0, ST_Q8_0}};
    for (size_t i = 0; i < ARRAY_LENGTH(known); i++)
        if (known[i].type == type) {
            v->dtype = known[i].dtype;
            return true;
        }
    return fail(
        err,
        "%s: tensor %.200s is stored as %s; this engine reads F32, F16, BF16 and Q8_0: take a file of "
        "one of these",
        v->path, v->name, ggml_type_name(type));
}

/* Everything of the tensor but its place. */
static bool take_tensor(struct cursor *c, struct st_view *v, uint64_t *offset, struct error *err) {
    uint32_t rank, type;
    char *name;
    static const char what[] = "the list of tensors";
    if (!take_name(c, &name, what, err)) return false;
    v->name = name;
    v->path = c->file->path;
    if (!take_u32(c, &rank)) return truncated(c, what, err);
    if (rank < 1 || rank > 4)
        return fail(err, "%s: tensor %.200s has %u dimensions, expected 1 to 4", v->path, name, rank);
    v->rank = (int)rank;
    v->count = 1;
    for (uint32_t i = 0; i < rank; i++) {
        uint64_t dim;
        if (!take_u64(c, &dim)) return truncated(c, what, err);
        v->dim[rank - 1 - i] = (int64_t)dim;
        if (dim > INT64_MAX / 8 || __builtin_mul_overflow(v->count, (int64_t)dim, &v->count) ||
            v->count > INT64_MAX / 8)
            return fail(err, "%s: tensor %.200s: its shape overflows", v->path, name);
    }
    if (!take_u32(c, &type) || !take_u64(c, offset)) return truncated(c, what, err);
    if (!set_dtype(v, type, err)) return false;
    if (v->dtype == ST_Q8_0 && v->dim[v->rank - 1] % Q8_0_VALUES)
        return fail(err,
                    "%s: tensor %.200s is Q8_0, and its rows of %" PRId64 " values are no multiple of %d",
                    v->path, name, v->dim[v->rank - 1], Q8_0_VALUES);
    v->bytes = st_dtype_bytes(v->dtype, v->count);
    return true;
}

static bool place_tensors(struct gguf_file *g, const uint64_t *offset, int64_t data, int64_t alignment,
                          struct error *err) {
    int64_t room = g->file.size - data;
    for (int64_t i = 0; i < g->tensor_count; i++) {
        struct st_view *v = &g->tensors[i];
        if (offset[i] % (uint64_t)alignment)
            return fail(err,
                        "%s: tensor %.200s lies at byte %" PRIu64 " of the data, no multiple of %" PRId64,
                        v->path, v->name, offset[i], alignment);
        if (room < 0 || offset[i] > (uint64_t)room || v->bytes > room - (int64_t)offset[i])
            return fail(err,
                        "%s: truncated: tensor %.200s ends at byte %" PRIu64
                        " of the data, of which there are "
                        "%" PRId64,
                        v->path, v->name, offset[i] + (uint64_t)v->bytes, max_i64(0, room));
        v->data = g->file.data + data + offset[i];
    }
    return true;
}

/* --- the file --- */

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names that occur twice: `first` is that of the first of `count` structs of `stride` bytes. */
static bool all_differ(const char *path, const char *what, const void *first, size_t stride, int64_t count,
                       struct error *err) {
    const char **names = (const char **)xcalloc((size_t)count + 1, sizeof *names);
    for (int64_t i = 0; i < count; i++)
        memcpy(&names[i], (const char *)first + (size_t)i * stride, sizeof names[i]);
    qsort(names, (size_t)count, sizeof *names, by_text);
    bool ok = true;
    for (int64_t i = 1; ok && i < count; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            ok = fail(err, "%s: %s %.200s is there twice", path, what, names[i]);
    free(names);
    return ok;
}

static bool check_head(struct cursor *c, uint64_t *tensors, uint64_t *keys, struct error *err) {
    const uint8_t *magic = take(c, 4);
    const char *path = c->file->path;
    uint32_t version;
    if (!magic || memcmp(magic, "GGUF", 4) != 0) return fail(err, "%s: is no GGUF file", path);
    if (!take_u32(c, &version) || !take_u64(c, tensors) || !take_u64(c, keys))
        return truncated(c, "its head", err);
    if ((version & 0xffff) == 0) return fail(err, "%s: is a big-endian GGUF file, which is not read", path);
    if (version != 2 && version != GGUF_VERSION)
        return fail(err, "%s: is version %u of GGUF, this engine reads 2 and %d", path, version,
                    GGUF_VERSION);
    /* a tensor has at least 33 bytes, a key 14 */
    uint64_t left = (uint64_t)(c->file->size - c->at);
    return (*tensors <= left / 33 && *keys <= left / 14) ||
           fail(err,
                "%s: its head speaks of %" PRIu64 " tensors and %" PRIu64 " keys, for which it is too short",
                path, *tensors, *keys);
}

static bool read_alignment(const struct gguf_file *g, int64_t *alignment, struct error *err) {
    const struct gguf_value *v = gguf_find(g, "general.alignment");
    double value = v ? gguf_number(v) : GGUF_ALIGNMENT;
    *alignment = value >= 1 && value <= 1 << 20 ? (int64_t)value : 0;
    return *alignment > 0 ||
           fail(err, "%s: general.alignment is %g, expected 8, 16, 32, ...", g->file.path, value);
}

static bool read_all(struct gguf_file *g, uint64_t **offset, struct error *err) {
    struct cursor c = {&g->file, 0};
    uint64_t tensors = 0, keys = 0;
    int64_t alignment;
    if (!check_head(&c, &tensors, &keys, err)) return false;
    g->values = (struct gguf_value *)xcalloc((size_t)keys + 1, sizeof *g->values);
    for (; g->value_count < (int64_t)keys; g->value_count++) {
        struct gguf_value *v = &g->values[g->value_count];
        if (!take_name(&c, &v->key, "the keys", err)) return false;
        if (!take_value(&c, v, err)) {
            g->value_count++;
            return false;
        }
    }
    g->tensors = (struct st_view *)xcalloc((size_t)tensors + 1, sizeof *g->tensors);
    *offset = (uint64_t *)xcalloc((size_t)tensors + 1, sizeof **offset);
    for (; g->tensor_count < (int64_t)tensors; g->tensor_count++)
        if (!take_tensor(&c, &g->tensors[g->tensor_count], &(*offset)[g->tensor_count], err)) {
            g->tensor_count++;
            return false;
        }
    return all_differ(g->file.path, "key", &g->values[0].key, sizeof *g->values, g->value_count, err) &&
           all_differ(g->file.path, "tensor", &g->tensors[0].name, sizeof *g->tensors, g->tensor_count,
                      err) &&
           read_alignment(g, &alignment, err) &&
           place_tensors(g, *offset, round_up(c.at, alignment), alignment, err);
}

bool gguf_open(struct gguf_file *g, const char *path, struct error *err) {
    uint64_t *offset = NULL;
    memset(g, 0, sizeof *g);
    bool ok = file_map(&g->file, path, err) && read_all(g, &offset, err);
    free(offset);
    if (!ok) gguf_close(g);
    return ok;
}

void gguf_close(struct gguf_file *g) {
    for (int64_t i = 0; i < g->value_count; i++) free(g->values[i].key);
    for (int64_t i = 0; i < g->tensor_count; i++) free((char *)(uintptr_t)g->tensors[i].name);
    free(g->values);
    free(g->tensors);
    file_unmap(&g->file);
    memset(g, 0, sizeof *g);
}

bool gguf_is_one(const char *path) {
    struct mapped_file f;
    if (!file_map(&f, path, NULL)) return false;
    bool is = f.size >= 4 && memcmp(f.data, "GGUF", 4) == 0;
    file_unmap(&f);
    return is;
}
