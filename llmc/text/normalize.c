/* Canonical composition (NFC). utf8proc knows what characters decompose and compose to. This file decides
 * where to ask it: nearly all text is in normal form already, and utf8proc's own walk over it would be
 * slower than encoding.
 *
 * A "wary" character is one that may change, move, or join what precedes it. A stretch of text around each
 * is rewritten: from the last character before it that is not wary to the next one that is not. Characters
 * outside cannot take part.
 *
 * Token ids must be those of Hugging Face's normalizer, which has Unicode 9. By Unicode's stability policy
 * every later version gives the same result for the characters of Unicode 9. Characters that were assigned
 * later are never wary, so ids do not depend on the version of utf8proc. */
#include "llmc/text/normalize.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "llmc/base/utf8.h"

/* --- wary characters --- */

enum { CODE_POINTS = 0x110000 };

/* One bit each; constant once it is filled. */
static uint64_t wary_bits[CODE_POINTS / 64];

static inline bool is_wary(uint32_t code) { return code >= 0x300 && wary_bits[code >> 6] >> (code & 63) & 1; }

static void set_wary(int32_t code) { wary_bits[code >> 6] |= (uint64_t)1 << (code & 63); }

static int64_t decompose(uint32_t code, int32_t *out, int64_t room) {
    int unused = 0;
    return utf8proc_decompose_char((int32_t)code, out, room, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &unused);
}

static int64_t compose(int32_t *codes, int64_t count) {
    return utf8proc_normalize_utf32(codes, count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
}

static uint8_t combining_class(int32_t code) {
    return is_wary((uint32_t)code) ? (uint8_t)utf8proc_get_property(code)->combining_class : 0;
}

/* Ranges that hold every character of Unicode 10 to 18 that would be wary, and none of Unicode 9. */
static const int32_t later[][2] = {
    {0x5c8, 0x5c9},     {0x7fd, 0x7fd},     {0x897, 0x8d3},     {0x9fe, 0x9fe},     {0xc3c, 0xc3c},
    {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x1abf, 0x1af0},   {0x1df6, 0x1dfa},
    {0xa82c, 0xa82c},   {0x10d24, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x113b8, 0x113d0},
    {0x1145e, 0x1145e}, {0x11839, 0x11a99}, {0x11d42, 0x1612f}, {0x16d67, 0x16ff1}, {0x1d127, 0x1d128},
    {0x1d250, 0x1d281}, {0x1e08f, 0x1e6f5}};

/* utf8proc does not tell which characters may join the one before them. They are the last parts of the
 * characters that equal the composition of their own decomposition. */
static void find_wary(void) {
    for (int32_t c = 0; c < CODE_POINTS; c++) {
        int32_t parts[32];
        int64_t n = decompose((uint32_t)c, parts, ARRAY_LENGTH(parts));
        int32_t last = parts[n - 1];
        if (utf8proc_get_property(c)->combining_class) set_wary(c);
        if (n == 1 && last == c) continue;
        if (compose(parts, n) == 1 && parts[0] == c)
            set_wary(last);
        else
            set_wary(c);
    }
    for (size_t i = 0; i < ARRAY_LENGTH(later); i++)
        for (int32_t c = later[i][0]; c <= later[i][1]; c++) wary_bits[c >> 6] &= ~((uint64_t)1 << (c & 63));
}

/* --- one stretch of text --- */

struct stretch {
    int32_t *code, *sorted; /* (capacity) each */
    int64_t count, capacity;
};

static void append(struct stretch *s, uint32_t code) {
    enum { MOST_PARTS = 32 };
    if (s->capacity - s->count < MOST_PARTS) {
        s->capacity = 2 * s->capacity + MOST_PARTS;
        s->code = (int32_t *)xrealloc(s->code, (size_t)s->capacity * sizeof *s->code);
        s->sorted = (int32_t *)xrealloc(s->sorted, (size_t)s->capacity * sizeof *s->sorted);
    }
    s->count += decompose(code, s->code + s->count, s->capacity - s->count);
}

/* A stable sort by combining class. It takes linear time, because a hostile text may have millions of marks
 * in a row: utf8proc swaps neighbours and would take hours. */
static void sort_marks(struct stretch *s, int64_t first, int64_t last) {
    int64_t start[257] = {0};
    for (int64_t i = first; i < last; i++) start[combining_class(s->code[i]) + 1]++;
    for (int k = 0; k < 256; k++) start[k + 1] += start[k];
    for (int64_t i = first; i < last; i++) s->sorted[start[combining_class(s->code[i])]++] = s->code[i];
    memcpy(s->code + first, s->sorted, (size_t)(last - first) * sizeof *s->code);
}

/* Sorts the marks between two characters of class 0 by their classes. */
static void order_marks(struct stretch *s) {
    int64_t first = 0;
    uint8_t before = 0;
    bool in_order = true;
    for (int64_t i = 0; i <= s->count; i++) {
        uint8_t class = i < s->count ? combining_class(s->code[i]) : 0;
        if (class == 0) {
            if (!in_order) sort_marks(s, first, i);
            first = i + 1;
            in_order = true;
        } else {
            in_order &= before <= class;
        }
        before = class;
    }
}

/* --- the whole text --- */

static const uint8_t *ascii_end(const uint8_t *p, const uint8_t *end) {
    for (uint64_t eight; end - p >= 8; p += 8) {
        memcpy(&eight, p, 8);
        if (eight & 0x8080808080808080u) break;
    }
    while (p < end && *p < 0x80) p++;
    return p;
}

/* The end of the stretch that contains p: the next character that is not wary. */
static const uint8_t *stretch_end(const uint8_t *p, const uint8_t *end) {
    uint32_t code;
    for (int n; p < end && (n = utf8_decode(p, end, &code)) && is_wary(code);) p += n;
    return p;
}

uint8_t *normalize_nfc(const uint8_t *text, int64_t size, int64_t *out_size) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_wary);
    const uint8_t *p = text, *end = text + size, *done = text;
    const uint8_t *calm = text; /* the last character that is not wary */
    uint8_t *out = NULL;
    int64_t used = 0, capacity = 0;
    struct stretch s = {0};
    while (p < end) {
        if (*p < 0x80) {
            p = ascii_end(p + 1, end);
            calm = p - 1;
            continue;
        }
        uint32_t code;
        int n = utf8_decode(p, end, &code);
        if (n == 0 || !is_wary(code)) {
            calm = n ? p : p + 1; /* nothing composes with an invalid byte */
            p += n ? n : 1;
            continue;
        }
        const uint8_t *last = stretch_end(p, end);
        s.count = 0;
        for (const uint8_t *q = calm; q < last; q += n) {
            n = utf8_decode(q, end, &code);
            append(&s, code);
        }
        order_marks(&s);
        s.count = compose(s.code, s.count);
        /* Room for this stretch and for all text that may be copied unchanged after it. */
        int64_t need = used + (calm - done) + 4 * s.count + (end - last);
        if (need > capacity) {
            capacity = need + need / 4;
            out = (uint8_t *)xrealloc(out, (size_t)capacity);
        }
        memcpy(out + used, done, (size_t)(calm - done));
        used += calm - done;
        for (int64_t i = 0; i < s.count; i++) used += utf8_encode(out + used, (uint32_t)s.code[i]);
        p = done = calm = last;
    }
    free(s.code);
    free(s.sorted);
    *out_size = out ? used + (end - done) : size;
    if (out) memcpy(out + used, done, (size_t)(end - done));
    return out;
}
