/* safetensors, read and written; the header file describes the format.
 *
 * A file is untrusted: every value of its header is compared with the size of the file before it is used.
 * Files are mapped, so that opening a model reads only headers, and a tensor is read when its rows are
 * converted. */
#include "llmc/format/safetensors.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "llmc/base/json_file.h"
#include "llmc/ops/tensor.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the data of a safetensors file is little-endian");

/* A file and its parsed header, which owns the names. */
struct st_file {
    struct mapped_file map;
    json_t *header;
};

struct st_declared {
    const char *name; /* owned by the header object */
    int64_t bytes;
};

/* --- dtypes --- */

static const struct {
    const char *name;
    int64_t size;
} dtypes[ST_DTYPE_COUNT + 1] = {
    [ST_BOOL] = {"BOOL", 1}, [ST_U8] = {"U8", 1},           [ST_I8] = {"I8", 1},
    [ST_I16] = {"I16", 2},   [ST_F8_E5M2] = {"F8_E5M2", 1}, [ST_F8_E4M3] = {"F8_E4M3", 1},
    [ST_U16] = {"U16", 2},   [ST_F16] = {"F16", 2},         [ST_BF16] = {"BF16", 2},
    [ST_I32] = {"I32", 4},   [ST_U32] = {"U32", 4},         [ST_F32] = {"F32", 4},
    [ST_F64] = {"F64", 8},   [ST_I64] = {"I64", 8},         [ST_U64] = {"U64", 8},
    [ST_Q8_0] = {"Q8_0", 0},
};

const char *st_dtype_name(enum st_dtype dtype) { return dtypes[dtype].name; }
int64_t st_dtype_size(enum st_dtype dtype) { return dtypes[dtype].size; }
int64_t st_dtype_bytes(enum st_dtype dtype, int64_t count) {
    return dtype == ST_Q8_0 ? count / Q8_0_VALUES * Q8_0_BYTES : count * dtypes[dtype].size;
}

const char *st_view_text(const struct st_view *v) {
    const char *dims = "";
    for (int i = 0; i < v->rank; i++) dims = temp_printf("%s%s%" PRId64, dims, i ? "," : "", v->dim[i]);
    return temp_printf("%.80s %s (%s)", v->name, st_dtype_name(v->dtype), dims);
}

/* --- the header of one file --- */

static bool parse_header(struct st_file *f, int64_t *data_start, struct error *err) {
    const char *path = f->map.path;
    if (f->map.size < 8)
        return fail(err,
                    "%s: is %" PRId64 " bytes long, a safetensors file has at least 8 (the header length)",
                    path, f->map.size);
    uint64_t length;
    memcpy(&length, f->map.data, 8);
    if (length > ST_MAX_HEADER_BYTES)
        return fail(err,
                    "%s: header length (bytes 0..7) is %" PRIu64
                    ", expected at most %d: not a safetensors file?",
                    path, length, ST_MAX_HEADER_BYTES);
    if ((int64_t)length > f->map.size - 8)
        return fail(err,
                    "%s: truncated: header length (bytes 0..7) is %" PRIu64 ", but only %" PRId64
                    " bytes follow",
                    path, length, f->map.size - 8);
    const char *text = (const char *)f->map.data + 8;
    if (length == 0 || text[0] != '{')
        return fail(err, "%s: header does not start with '{' at byte 8: not a safetensors file", path);
    json_error_t why;
    f->header = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &why);
    if (!f->header)
        return fail(err, "%s: header is not valid JSON near byte %d: %s", path, why.position + 8, why.text);
    *data_start = 8 + (int64_t)length;
    return true;
}

static bool parse_metadata(json_t *metadata, const char *path, struct error *err) {
    if (json_is_null(metadata)) return true;
    if (!json_is_object(metadata)) return fail(err, "%s: __metadata__ is not an object", path);
    const char *key;
    json_t *value;
    json_object_foreach(metadata, key, value) {
        if (json_is_string(value)) continue;
        return fail(err, "%s: __metadata__: the value of \"%.200s\" is not a string", path, key);
    }
    return true;
}

static bool parse_dtype(struct st_view *v, const json_t *entry, struct error *err) {
    const json_t *field = json_object_get(entry, "dtype");
    if (!json_is_string(field))
        return fail(err, "%s: tensor \"%.200s\": dtype is missing or not a string", v->path, v->name);
    for (int i = 0; i < ST_DTYPE_COUNT; i++) {
        if (strcmp(dtypes[i].name, json_string_value(field)) != 0) continue;
        v->dtype = (enum st_dtype)i;
        return true;
    }
    return fail(err,
                "%s: tensor \"%.200s\": dtype \"%.40s\" is unknown (F32, BF16, F16, F64, I64, ... are known)",
                v->path, v->name, json_string_value(field));
}

/* Sets rank, dim, count and bytes. */
static bool parse_shape(struct st_view *v, const json_t *entry, struct error *err) {
    const json_t *field = json_object_get(entry, "shape");
    if (!json_is_array(field))
        return fail(err, "%s: tensor \"%.200s\": shape is missing or not an array", v->path, v->name);
    if (json_array_size(field) > ST_MAX_RANK)
        return fail(err, "%s: tensor \"%.200s\": shape has %zu dimensions, at most %d are supported", v->path,
                    v->name, json_array_size(field), ST_MAX_RANK);
    v->rank = (int)json_array_size(field);
    v->count = 1;
    bool overflow = false;
    for (int i = 0; i < v->rank; i++) {
        const json_t *d = json_array_get(field, (size_t)i);
        if (!json_is_integer(d))
            return fail(err, "%s: tensor \"%.200s\": shape[%d] is not an integer", v->path, v->name, i);
        v->dim[i] = (int64_t)json_integer_value(d);
        if (v->dim[i] < 0)
            return fail(err, "%s: tensor \"%.200s\": shape[%d] is %" PRId64 ", expected 0 or more", v->path,
                        v->name, i, v->dim[i]);
        overflow |= __builtin_mul_overflow(v->count, v->dim[i], &v->count);
    }
    overflow |= __builtin_mul_overflow(v->count, st_dtype_size(v->dtype), &v->bytes);
    return !overflow || fail(err, "%s: tensor \"%.200s\": shape has more elements than 64 bits can count",
                             v->path, v->name);
}

static bool parse_offsets(struct st_view *v, const json_t *entry, const uint8_t *data, int64_t data_bytes,
                          struct error *err) {
    const json_t *field = json_object_get(entry, "data_offsets");
    const json_t *b = json_array_get(field, 0), *e = json_array_get(field, 1);
    if (json_array_size(field) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return fail(err, "%s: tensor \"%.200s\": data_offsets is not an array of two integers", v->path,
                    v->name);
    int64_t begin = (int64_t)json_integer_value(b), end = (int64_t)json_integer_value(e);
    if (begin < 0 || end < begin || end > data_bytes)
        return fail(err,
                    "%s: tensor \"%.200s\": data_offsets [%" PRId64 ", %" PRId64
                    "] are not a range inside the "
                    "%" PRId64 " data bytes of the file (damaged, or truncated?)",
                    v->path, v->name, begin, end, data_bytes);
    if (end - begin != v->bytes)
        return fail(err,
                    "%s: tensor \"%.200s\": data_offsets [%" PRId64 ", %" PRId64 "] hold %" PRId64
                    " bytes, but its shape and dtype (%s) need %" PRId64,
                    v->path, v->name, begin, end, end - begin, st_view_text(v), v->bytes);
    v->data = data + begin;
    return true;
}

/* By position in the file; an empty tensor before the one that starts at the same place. */
static int compare_position(const void *a, const void *b) {
    const struct st_view *x = (const struct st_view *)a, *y = (const struct st_view *)b;
    uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;
    return p != q ? (p > q) - (p < q) : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* `tensors` is sorted by position: the data must follow each other exactly and end where the file ends. */
static bool check_layout(const struct st_view *tensors, int64_t count, const uint8_t *data,
                         int64_t data_bytes, const char *path, struct error *err) {
    int64_t end = 0;
    for (int64_t i = 0; i < count; i++) {
        const struct st_view *v = &tensors[i];
        int64_t begin = (const uint8_t *)v->data - data;
        if (begin < end)
            return fail(err,
                        "%s: tensor \"%.200s\" starts at data byte %" PRId64
                        " and overlaps \"%.200s\", which ends at %" PRId64,
                        path, v->name, begin, v[-1].name, end);
        if (begin > end)
            return fail(
                err, "%s: data bytes %" PRId64 "..%" PRId64 " before tensor \"%.200s\" belong to no tensor",
                path, end, begin, v->name);
        end = begin + v->bytes;
    }
    return end == data_bytes || fail(err,
                                     "%s: over-long: the tensors end at data byte %" PRId64
                                     ", the file has %" PRId64 " data bytes",
                                     path, end, data_bytes);
}

/* Maps and checks one file and appends its tensors to `st`. On failure `f` still has to be released. */
static bool load_file(struct safetensors *st, struct st_file *f, const char *path, struct error *err) {
    int64_t data_start;
    if (!file_map(&f->map, path, err) || !parse_header(f, &data_start, err)) return false;
    const uint8_t *data = f->map.data + data_start;
    int64_t data_bytes = f->map.size - data_start;
    size_t room = (size_t)st->count + json_object_size(f->header);
    st->tensors = (struct st_view *)xrealloc(st->tensors, (room + 1) * sizeof *st->tensors);
    struct st_view *first = st->tensors + st->count;
    int64_t count = 0;
    const char *name;
    json_t *entry;
    json_object_foreach(f->header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            if (!parse_metadata(entry, f->map.path, err)) return false;
            continue;
        }
        struct st_view *v = &first[count++];
        memset(v, 0, sizeof *v);
        v->name = name;
        v->path = f->map.path;
        if (!json_is_object(entry)) return fail(err, "%s: tensor \"%.200s\" is not an object", path, name);
        if (!parse_dtype(v, entry, err) || !parse_shape(v, entry, err) ||
            !parse_offsets(v, entry, data, data_bytes, err))
            return false;
    }
    if (count) qsort(first, (size_t)count, sizeof *first, compare_position);
    if (!check_layout(first, count, data, data_bytes, f->map.path, err)) return false;
    st->count += count;
    return true;
}

/* --- one file, or a sharded model --- */

static int compare_name(const void *a, const void *b) {
    return strcmp((*(struct st_view *const *)a)->name, (*(struct st_view *const *)b)->name);
}

static void build_index(struct safetensors *st) {
    st->by_name = (struct st_view **)xmalloc((size_t)(st->count + 1) * sizeof *st->by_name);
    for (int64_t i = 0; i < st->count; i++) st->by_name[i] = &st->tensors[i];
    if (st->count) qsort(st->by_name, (size_t)st->count, sizeof *st->by_name, compare_name);
}

void safetensors_index(struct safetensors *st, struct st_view *views, int64_t count) {
    *st = (struct safetensors){.count = count, .tensors = views};
    build_index(st);
}

static void reserve_files(struct safetensors *st, size_t count) {
    memset(st, 0, sizeof *st);
    st->files = (struct st_file *)xcalloc(count + 1, sizeof *st->files);
}

bool safetensors_open(struct safetensors *st, const char *path, struct error *err) {
    reserve_files(st, 1);
    st->file_count = 1;
    bool ok = load_file(st, &st->files[0], path, err);
    if (ok)
        build_index(st);
    else
        safetensors_close(st);
    return ok;
}

/* A name in an index comes from the network: it must not reach outside the model's directory. */
static bool plain_file_name(const char *name) { return *name && *name != '.' && !strchr(name, '/'); }

/* Loads each file of the weight map once. */
static bool load_shards(struct safetensors *st, json_t *map, const char *index, const char *directory,
                        struct error *err) {
    json_t *seen = json_object();
    const char *name;
    json_t *value;
    bool ok = true;
    json_object_foreach(map, name, value) {
        const char *file = json_string_value(value);
        if (!file || !plain_file_name(file)) {
            ok = fail(
                err,
                "%s: weight_map: the value of \"%.200s\" is not the name of a file in the same directory",
                index, name);
        } else if (!json_object_get(seen, file)) {
            json_object_set_new(seen, file, json_true());
            char *path = xasprintf("%s/%s", directory, file);
            ok = load_file(st, &st->files[st->file_count++], path, err);
            free(path);
        }
        if (!ok) break;
    }
    json_decref(seen);
    return ok;
}

/* Drops tensors that the map does not list, or lists in another file; every listed one must then be
 * there. */
static bool apply_weight_map(struct safetensors *st, json_t *map, const char *index, struct error *err) {
    int64_t kept = 0;
    for (int64_t i = 0; i < st->count; i++) {
        const struct st_view *v = &st->tensors[i];
        const char *file = json_string_value(json_object_get(map, v->name));
        if (file && strcmp(file, strrchr(v->path, '/') + 1) == 0) st->tensors[kept++] = *v;
    }
    st->count = kept;
    build_index(st);
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value) {
        if (safetensors_find(st, name)) continue;
        return fail(err, "%s: weight_map: tensor \"%.200s\" is not in %.200s", index, name,
                    json_string_value(value));
    }
    return true;
}

static bool open_sharded(struct safetensors *st, const char *index, const char *directory,
                         struct error *err) {
    json_t *root = json_file_load(index, err), *map = json_object_get(root, "weight_map");
    if (!root) return false;
    bool ok;
    if (!json_is_object(map) || json_object_size(map) == 0) {
        ok = fail(err, "%s: has no object \"weight_map\" that names the file of each tensor", index);
    } else {
        reserve_files(st, json_object_size(map));
        ok = load_shards(st, map, index, directory, err) && apply_weight_map(st, map, index, err);
        if (!ok) safetensors_close(st);
    }
    json_decref(root);
    return ok;
}

bool safetensors_open_directory(struct safetensors *st, const char *directory, const char *stem,
                                struct error *err) {
    memset(st, 0, sizeof *st);
    char *single = xasprintf("%s/%s.safetensors", directory, stem);
    char *index = xasprintf("%s.index.json", single);
    bool ok;
    if (path_exists(single))
        ok = safetensors_open(st, single, err);
    else if (path_exists(index))
        ok = open_sharded(st, index, directory, err);
    else
        ok = fail(err, "%s: has neither %s.safetensors nor %s.safetensors.index.json", directory, stem, stem);
    free(single);
    free(index);
    return ok;
}

void safetensors_close(struct safetensors *st) {
    for (int i = 0; i < st->file_count; i++) {
        json_decref(st->files[i].header);
        file_unmap(&st->files[i].map);
    }
    if (st->files) free(st->tensors);
    free(st->files);
    free(st->by_name);
    memset(st, 0, sizeof *st);
}

const struct st_view *safetensors_find(const struct safetensors *st, const char *name) {
    int64_t low = 0, high = st->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(name, st->by_name[middle]->name);
        if (order == 0) return st->by_name[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const char *safetensors_metadata(const struct safetensors *st, const char *key) {
    for (int i = 0; i < st->file_count; i++) {
        const json_t *metadata = json_object_get(st->files[i].header, "__metadata__");
        const char *text = json_string_value(json_object_get(metadata, key));
        if (text) return text;
    }
    return NULL;
}

/* --- conversion to fp32 --- */

/* fp16 to fp32. Moving the exponent and mantissa bits into place leaves an exponent that is 112 too small;
 * the multiplication by 2^112 puts it right and at the same time normalises fp16 subnormals. */
static inline float f32_from_f16(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } scale, x;
    scale.u = (uint32_t)(127 + 112) << 23;
    x.u = (uint32_t)(h & 0x7fffu) << 13;
    x.f *= scale.f;
    uint32_t infinite_or_nan = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0;
    x.u |= infinite_or_nan | (uint32_t)(h & 0x8000u) << 16;
    return x.f;
}

/* memcpy per element because the data may be unaligned; compilers turn it into vector loads. */
static void convert(float *restrict out, const uint8_t *restrict in, int64_t n, enum st_dtype dtype) {
    if (dtype == ST_F32) {
        memcpy(out, in, (size_t)n * 4);
    } else if (dtype == ST_F64) {
        for (int64_t i = 0; i < n; i++) {
            double x;
            memcpy(&x, in + 8 * i, 8);
            out[i] = (float)x;
        }
    } else if (dtype == ST_BF16) {
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, in + 2 * i, 2);
            out[i] = f32_from_bf16(h);
        }
    } else if (dtype == ST_F16) {
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, in + 2 * i, 2);
            out[i] = f32_from_f16(h);
        }
    } else {
        for (int64_t b = 0; b < n / Q8_0_VALUES; b++) {
            uint16_t h;
            memcpy(&h, in + b * Q8_0_BYTES, 2);
            const int8_t *q = (const int8_t *)(in + b * Q8_0_BYTES + 2);
            float scale = f32_from_f16(h);
            for (int i = 0; i < Q8_0_VALUES; i++) out[b * Q8_0_VALUES + i] = scale * (float)q[i];
        }
    }
}

bool safetensors_to_f32(float *out, const struct st_view *v, int64_t first, int64_t count,
                        struct error *err) {
    check(first >= 0 && count >= 0 && count <= v->count && first <= v->count - count,
          "%s: elements [%" PRId64 ", +%" PRId64 ") are outside %s", v->path, first, count, st_view_text(v));
    check(v->dtype != ST_Q8_0 || (first % Q8_0_VALUES == 0 && count % Q8_0_VALUES == 0),
          "%s: elements [%" PRId64 ", +%" PRId64 ") of %s are no whole blocks", v->path, first, count,
          st_view_text(v));
    if (v->dtype != ST_F32 && v->dtype != ST_BF16 && v->dtype != ST_F16 && v->dtype != ST_F64 &&
        v->dtype != ST_Q8_0)
        return fail(err, "%s: tensor \"%.200s\" has dtype %s, expected F32, BF16, F16 or F64", v->path,
                    v->name, st_dtype_name(v->dtype));
    const int64_t chunk = 1 << 18;
    const uint8_t *in = (const uint8_t *)v->data + st_dtype_bytes(v->dtype, first);
    if (count <= 4 * chunk) { /* without OpenMP, for which even a team of one costs more than a short row */
        convert(out, in, count, v->dtype);
        return true;
    }
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < count; begin += chunk)
        convert(out + begin, in + st_dtype_bytes(v->dtype, begin), min_i64(chunk, count - begin), v->dtype);
    return true;
}

/* --- writing --- */

void safetensors_writer_init(struct safetensors_writer *w) {
    memset(w, 0, sizeof *w);
    w->header = json_object();
    check(w->header != NULL, "out of host memory for a safetensors header");
}

void safetensors_writer_metadata(struct safetensors_writer *w, const char *key, const char *value) {
    json_t *header = (json_t *)w->header, *metadata = json_object_get(header, "__metadata__");
    if (!metadata) {
        /* It stands first in the file, as the reference writer has it. */
        check(w->count == 0, "safetensors metadata \"%s\" comes after the first tensor", key);
        metadata = json_object();
        json_object_set_new(header, "__metadata__", metadata);
    }
    check(json_object_set_new(metadata, key, json_string(value)) == 0,
          "safetensors metadata \"%s\" is not UTF-8", key);
}

void safetensors_declare(struct safetensors_writer *w, const char *name, enum st_dtype dtype, int rank,
                         const int64_t *dim) {
    json_t *header = (json_t *)w->header;
    check(rank >= 0 && rank <= ST_MAX_RANK, "tensor \"%s\": rank %d, at most %d", name, rank, ST_MAX_RANK);
    check(strcmp(name, "__metadata__") != 0 && !json_object_get(header, name),
          "tensor \"%s\" is declared twice", name);
    int64_t bytes = st_dtype_size(dtype);
    json_t *shape = json_array();
    for (int i = 0; i < rank; i++) {
        check(dim[i] >= 0 && !__builtin_mul_overflow(bytes, dim[i], &bytes), "tensor \"%s\": bad shape",
              name);
        json_array_append_new(shape, json_integer(dim[i]));
    }
    int64_t begin = w->data_bytes;
    check(!__builtin_add_overflow(begin, bytes, &w->data_bytes), "tensor \"%s\": the file exceeds 2^63 bytes",
          name);
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", st_dtype_name(dtype), "shape", shape,
                              "data_offsets", (json_int_t)begin, (json_int_t)w->data_bytes);
    check(entry && json_object_set_new(header, name, entry) == 0, "tensor name \"%s\" is not UTF-8", name);
    if (w->count == w->capacity) {
        w->capacity = 2 * w->capacity + 64;
        w->tensor = (struct st_declared *)xrealloc(w->tensor, (size_t)w->capacity * sizeof *w->tensor);
    }
    w->tensor[w->count].name = json_object_iter_key(json_object_iter_at(header, name));
    w->tensor[w->count++].bytes = bytes;
}

/* Padding with spaces puts the data at a multiple of 8 bytes. */
static int64_t header_bytes(const struct safetensors_writer *w) {
    size_t length = json_dumpb((const json_t *)w->header, NULL, 0, JSON_COMPACT);
    return round_up((int64_t)length, 8);
}

int64_t safetensors_writer_size(const struct safetensors_writer *w) {
    return 8 + header_bytes(w) + w->data_bytes;
}

static void release_writer(struct safetensors_writer *w) {
    json_decref((json_t *)w->header);
    free(w->tensor);
    memset(w, 0, sizeof *w);
}

bool safetensors_writer_open(struct safetensors_writer *w, const char *path, struct error *err) {
    size_t length = (size_t)header_bytes(w);
    if (length > ST_MAX_HEADER_BYTES || !writer_open(&w->file, path, err)) {
        if (length > ST_MAX_HEADER_BYTES)
            fail(err, "%s: header of %zu bytes is too long for the format", path, length);
        release_writer(w);
        return false;
    }
    char *text = (char *)xmalloc(length);
    size_t used = json_dumpb((const json_t *)w->header, text, length, JSON_COMPACT);
    memset(text + used, ' ', length - used);
    uint64_t prefix = length;
    writer_put(&w->file, &prefix, 8);
    writer_put(&w->file, text, length);
    free(text);
    return true;
}

/* Empty tensors have no data to wait for. */
static void skip_complete(struct safetensors_writer *w) {
    while (w->current < w->count && w->current_bytes == w->tensor[w->current].bytes) {
        w->current++;
        w->current_bytes = 0;
    }
}

void safetensors_put(struct safetensors_writer *w, const char *name, const void *data, int64_t bytes) {
    if (bytes == 0) return;
    skip_complete(w);
    check(w->current < w->count, "%s: data for tensor \"%s\" after the last declared one", w->file.path,
          name);
    const struct st_declared *t = &w->tensor[w->current];
    check(strcmp(t->name, name) == 0,
          "%s: data for tensor \"%s\", but \"%s\" is next (%" PRId64 " of %" PRId64 " bytes)", w->file.path,
          name, t->name, w->current_bytes, t->bytes);
    check(bytes > 0 && bytes <= t->bytes - w->current_bytes,
          "%s: tensor \"%s\" has %" PRId64 " bytes, got %" PRId64 " + %" PRId64, w->file.path, name, t->bytes,
          w->current_bytes, bytes);
    writer_put(&w->file, data, (size_t)bytes);
    w->current_bytes += bytes;
}

bool safetensors_writer_close(struct safetensors_writer *w, struct error *err) {
    skip_complete(w);
    /* After a write error the caller may have stopped early. */
    check(w->file.failed || w->current == w->count, "%s: closed before tensor \"%s\" was complete",
          w->file.path, w->tensor[w->current].name);
    bool ok = writer_close(&w->file, err);
    release_writer(w);
    return ok;
}
