/* UTF-8, one character at a time. */
#ifndef LLMC_UTF8_H
#define LLMC_UTF8_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

static inline bool utf8_is_continuation(uint8_t b) { return (b & 0xc0) == 0x80; }

/* Decodes the character at p < end. Returns its length, or 0 if it is not valid UTF-8: overlong, a
 * surrogate, above U+10FFFF, or cut off. */
static inline int utf8_decode(const uint8_t *p, const uint8_t *end, uint32_t *code) {
    uint8_t b = p[0];
    int64_t left = end - p;
    if (b < 0x80) {
        *code = b;
        return 1;
    }
    if (b >= 0xc2 && b <= 0xdf && left >= 2 && utf8_is_continuation(p[1])) {
        *code = (uint32_t)(b & 0x1f) << 6 | (p[1] & 0x3f);
        return 2;
    }
    if ((b & 0xf0) == 0xe0 && left >= 3 && utf8_is_continuation(p[1]) && utf8_is_continuation(p[2])) {
        *code = (uint32_t)(b & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
        return *code >= 0x800 && (*code < 0xd800 || *code > 0xdfff) ? 3 : 0;
    }
    if ((b & 0xf8) == 0xf0 && left >= 4 && utf8_is_continuation(p[1]) && utf8_is_continuation(p[2]) &&
        utf8_is_continuation(p[3])) {
        *code = (uint32_t)(b & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 |
                (p[3] & 0x3f);
        return *code >= 0x10000 && *code <= 0x10ffff ? 4 : 0;
    }
    return 0;
}

/* Writes a valid code point (up to 4 bytes) and returns its length. */
static inline int utf8_encode(uint8_t *out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, code >>= 6) out[i] = (uint8_t)(0x80 | (code & 0x3f));
    out[0] = (uint8_t)((0xf00u >> length & 0xff) | code);
    return length;
}

#ifdef __cplusplus
}
#endif
#endif
