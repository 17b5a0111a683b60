/* A reader of GGUF files for tests, written from the format's description. */
#ifndef LLMC_TEST_GGUF_H
#define LLMC_TEST_GGUF_H

#include "test/test.h"

#include "llmc/format/model_file.h"
#include "llmc/ops/tensor.h"

#include <math.h>
#include <string.h>

#ifndef UNUSED
#define UNUSED __attribute__((unused)) /* not every test program needs everything */
#endif

struct gguf {
    struct mapped_file file;
    const uint8_t *p; /* next byte */
    uint64_t tensors, keys;
    struct {
        char name[64];
        uint32_t type;
        const uint8_t *value; /* after the type */
    } key[64];
    struct {
        char name[64];
        uint32_t rank, type;
        uint64_t dim[2], offset;
        const uint8_t *data;
    } tensor[64];
};

UNUSED static uint64_t take(struct gguf *g, int bytes) {
    uint64_t x = 0;
    assert_true(g->p + bytes <= g->file.data + g->file.size);
    for (int i = 0; i < bytes; i++) x |= (uint64_t)g->p[i] << 8 * i;
    g->p += bytes;
    return x;
}

UNUSED static void take_string(struct gguf *g, char *out, size_t room) {
    uint64_t n = take(g, 8);
    assert_true(n <= (uint64_t)(g->file.data + g->file.size - g->p));
    assert_true(n < room);
    memcpy(out, g->p, n);
    out[n] = 0;
    g->p += n;
}

UNUSED static void skip_value(struct gguf *g, uint32_t type) {
    static const int sizes[] = {1, 1, 2, 2, 4, 4, 4, 1};
    char text[512];
    if (type < 8) {
        take(g, sizes[type]);
    } else if (type == 8) {
        take_string(g, text, sizeof text);
    } else {
        assert_int_equal(type, 9);
        uint32_t of = (uint32_t)take(g, 4);
        uint64_t n = take(g, 8);
        for (uint64_t i = 0; i < n; i++) skip_value(g, of);
    }
}

UNUSED static int64_t bytes_as(uint32_t type, int64_t n) {
    if (type == 0) return 4 * n;
    if (type == 1 || type == 30) return 2 * n;
    assert_int_equal(type, 8);
    return n / 32 * 34;
}

/* Reads everything; the tensors must follow each other at multiples of 32 and end where the file ends. */
UNUSED static void gguf_read(struct gguf *g, const char *path) {
    struct error err;
    memset(g, 0, sizeof *g);
    if (!file_map(&g->file, path, &err)) fail_msg("%s", err.message);
    g->p = g->file.data;
    assert_memory_equal(g->p, "GGUF", 4);
    g->p += 4;
    assert_int_equal(take(g, 4), 3);
    g->tensors = take(g, 8);
    g->keys = take(g, 8);
    assert_true(g->tensors < 64 && g->keys < 64);
    for (uint64_t i = 0; i < g->keys; i++) {
        take_string(g, g->key[i].name, sizeof g->key[i].name);
        g->key[i].type = (uint32_t)take(g, 4);
        g->key[i].value = g->p;
        skip_value(g, g->key[i].type);
        for (uint64_t k = 0; k < i; k++) assert_string_not_equal(g->key[k].name, g->key[i].name);
    }
    for (uint64_t i = 0; i < g->tensors; i++) {
        take_string(g, g->tensor[i].name, sizeof g->tensor[i].name);
        g->tensor[i].rank = (uint32_t)take(g, 4);
        assert_in_range(g->tensor[i].rank, 1, 2);
        g->tensor[i].dim[1] = 1;
        for (uint32_t d = 0; d < g->tensor[i].rank; d++) g->tensor[i].dim[d] = take(g, 8);
        g->tensor[i].type = (uint32_t)take(g, 4);
        g->tensor[i].offset = take(g, 8);
    }
    const uint8_t *data = g->file.data + round_up(g->p - g->file.data, 32);
    int64_t end = 0;
    for (uint64_t i = 0; i < g->tensors; i++) {
        assert_int_equal(g->tensor[i].offset, round_up(end, 32));
        end = (int64_t)g->tensor[i].offset +
              bytes_as(g->tensor[i].type, (int64_t)(g->tensor[i].dim[0] * g->tensor[i].dim[1]));
        g->tensor[i].data = data + g->tensor[i].offset;
    }
    assert_int_equal(data - g->file.data + round_up(end, 32), g->file.size);
}

UNUSED static int find_tensor(const struct gguf *g, const char *name) {
    for (uint64_t i = 0; i < g->tensors; i++)
        if (strcmp(g->tensor[i].name, name) == 0) return (int)i;
    fail_msg("there is no tensor %s", name);
    return -1;
}

/* Sets the reader to the value of a key. */
UNUSED static uint32_t seek_key(struct gguf *g, const char *name) {
    for (uint64_t i = 0; i < g->keys; i++)
        if (strcmp(g->key[i].name, name) == 0) {
            g->p = g->key[i].value;
            return g->key[i].type;
        }
    fail_msg("there is no key %s", name);
    return 0;
}

UNUSED static void assert_u32(struct gguf *g, const char *name, uint32_t value) {
    assert_int_equal(seek_key(g, name), 4);
    assert_int_equal(take(g, 4), value);
}

UNUSED static void assert_f32(struct gguf *g, const char *name, float value) {
    float found;
    assert_int_equal(seek_key(g, name), 6);
    memcpy(&found, g->p, sizeof found);
    assert_true(found == value);
}

UNUSED static void assert_text(struct gguf *g, const char *name, const char *value) {
    char text[256];
    assert_int_equal(seek_key(g, name), 8);
    take_string(g, text, sizeof text);
    assert_string_equal(text, value);
}

UNUSED static int64_t seek_array(struct gguf *g, const char *name, uint32_t of) {
    assert_int_equal(seek_key(g, name), 9);
    assert_int_equal(take(g, 4), of);
    return (int64_t)take(g, 8);
}

UNUSED static float half_to_float(uint16_t h) {
    float x;
    struct st_view v = {.name = "x", .path = "x", .dtype = ST_F16, .count = 1, .bytes = 2, .data = &h};
    assert_true(safetensors_to_f32(&x, &v, 0, 1, NULL));
    return x;
}

/* Element i of a tensor; *error is what rounding may have changed. */
UNUSED static float gguf_element(const struct gguf *g, int t, int64_t i, float *error) {
    const uint8_t *d = g->tensor[t].data;
    uint16_t h;
    float x;
    *error = 0.0f;
    switch (g->tensor[t].type) {
    case 0:
        memcpy(&x, d + 4 * i, 4);
        return x;
    case 1:
        memcpy(&h, d + 2 * i, 2);
        x = half_to_float(h);
        *error = fabsf(x) * 0x1p-11f + 0x1p-25f;
        return x;
    case 30:
        memcpy(&h, d + 2 * i, 2);
        x = f32_from_bf16(h);
        *error = fabsf(x) * 0x1p-8f;
        return x;
    default:
        memcpy(&h, d + i / 32 * 34, 2);
        x = half_to_float(h);
        *error = x * 0.5f + x * 127.0f * 0x1p-11f; /* half a step, and the rounding of the scale itself */
        return x * (float)(int8_t)d[i / 32 * 34 + 2 + i % 32];
    }
}

#endif
