/* Unicode normalisation by utf8proc, around bytes that are not text. */
#include "normalize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Nothing below U+0300, the first combining mark, takes part in composition. */
static bool is_inert(const uint8_t *p, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        if (p[i] >= 0xcc) return false;
    return true;
}

/* Hugging Face normalises by Unicode 9: combining marks that came later (up to Unicode 15) are ordinary
 * characters to it, which neither move nor compose and separate those that do. Found by comparing every code
 * point with it. */
static const struct {
    utf8proc_int32_t first, last;
} later_marks[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},     {0xc3c, 0xc3c},
    {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
    {0xa82c, 0xa82c},   {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50},
    {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47},
    {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42},
    {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
    {0x1e4ec, 0x1e4ef},
};

static bool is_later_mark(utf8proc_int32_t code) {
    if (code < later_marks[0].first) return false;
    for (size_t i = 0; i < ARRAY_LENGTH(later_marks); i++)
        if (code >= later_marks[i].first && code <= later_marks[i].last) return true;
    return false;
}

/* Bytes from p on that are normalised together; else 0, and *other is the size of what stays as it is. */
static int64_t run_length(const uint8_t *p, int64_t size, int64_t *other) {
    int64_t n = 0;
    utf8proc_int32_t code;
    while (n < size) {
        utf8proc_ssize_t length = utf8proc_iterate(p + n, size - n, &code);
        *other = max_i64(1, length);
        if (length <= 0 || is_later_mark(code)) break;
        n += length;
    }
    return n;
}

uint8_t *normalize_nfc(const uint8_t *p, int64_t size, int64_t *normalized_size) {
    if (is_inert(p, size)) return NULL;
    uint8_t *out = NULL;
    int64_t used = 0;
    for (int64_t at = 0, bytes = 0; at < size;) {
        int64_t run = run_length(p + at, size - at, &bytes);
        utf8proc_uint8_t *composed = NULL;
        const uint8_t *piece = p + at;
        at += run > 0 ? run : bytes;
        if (run > 0) {
            bytes = utf8proc_map(piece, run, &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
            check(bytes >= 0, "normalising text to NFC: %s", utf8proc_errmsg(bytes));
            piece = composed;
        }
        out = (uint8_t *)xrealloc(out, (size_t)(used + bytes) + 1);
        memcpy(out + used, piece, (size_t)bytes);
        used += bytes;
        free(composed);
    }
    *normalized_size = used;
    return out;
}
