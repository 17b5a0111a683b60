/* Canonical composition. Order: properties of characters, one stretch of text, the whole text.
 *
 * Nearly all text is in this form, so most of it is only looked at: a stretch is rewritten where a "wary"
 * character stands, one that may change, move, or combine with what is before it. It goes from the last
 * character before that is not wary up to the next one that is not: nothing outside can take part. */
#include "llmc/text/normalize.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/text/unicode_nfc.h"
#include "llmc/text/utf8.h"

/* --- Properties of characters --- */

/* Hangul syllables are arithmetic: (leading, vowel) and then an optional trailing consonant. */
enum { L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11a7, S_BASE = 0xac00 };
enum { L_COUNT = 19, V_COUNT = 21, T_COUNT = 28, S_COUNT = L_COUNT * V_COUNT * T_COUNT };

static inline bool is_wary(uint32_t code) {
    if (code < 0x300 || code >> 8 >= NFC_WARY_BLOCKS) return false;
    return nfc_wary_bits[nfc_wary_block[code >> 8] * 4 + (code >> 6 & 3)] >> (code & 63) & 1;
}

static int compare_mark(const void *key, const void *row) {
    uint32_t code = *(const uint32_t *)key;
    const uint32_t *mark = (const uint32_t *)row;
    return code < mark[0] ? -1 : code > mark[1];
}

static uint8_t combining_class(uint32_t code) {
    if (code < 0x300) return 0;
    const uint32_t *mark =
        (const uint32_t *)bsearch(&code, nfc_marks, NFC_MARKS, sizeof nfc_marks[0], compare_mark);
    return mark ? (uint8_t)mark[2] : 0;
}

static int compare_code(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static int compare_pair(const void *a, const void *b) {
    int first = compare_code(a, b);
    return first ? first : compare_code((const uint32_t *)a + 1, (const uint32_t *)b + 1);
}

/* What two characters compose to, or 0. */
static uint32_t compose(uint32_t first, uint32_t second) {
    if (first - L_BASE < L_COUNT && second - V_BASE < V_COUNT)
        return S_BASE + ((first - L_BASE) * V_COUNT + second - V_BASE) * T_COUNT;
    if (first - S_BASE < S_COUNT && (first - S_BASE) % T_COUNT == 0 && second - T_BASE - 1 < T_COUNT - 1)
        return first + second - T_BASE;
    const uint32_t key[2] = {first, second};
    const uint32_t *row =
        (const uint32_t *)bsearch(key, nfc_pairs, NFC_PAIRS, sizeof nfc_pairs[0], compare_pair);
    return row ? row[2] : 0;
}

/* --- One stretch of text --- */

struct character {
    uint32_t code;
    uint8_t class;
};
struct stretch {
    struct character *c, *sorted; /* (capacity) each */
    int64_t count, capacity;
};

static void append(struct stretch *s, uint32_t code) {
    if (s->count == s->capacity) {
        s->capacity = 2 * s->capacity + 64;
        s->c = (struct character *)xrealloc(s->c, (size_t)s->capacity * sizeof *s->c);
        s->sorted = (struct character *)xrealloc(s->sorted, (size_t)s->capacity * sizeof *s->sorted);
    }
    s->c[s->count++] = (struct character){code, combining_class(code)};
}

static void append_decomposed(struct stretch *s, uint32_t code) {
    if (code - S_BASE < S_COUNT) {
        uint32_t k = code - S_BASE;
        append(s, L_BASE + k / T_COUNT / V_COUNT);
        append(s, V_BASE + k / T_COUNT % V_COUNT);
        if (k % T_COUNT) append(s, T_BASE + k % T_COUNT);
        return;
    }
    const uint32_t *row =
        (const uint32_t *)bsearch(&code, nfc_decomposed, NFC_DECOMPOSED, sizeof code, compare_code);
    if (!row) {
        append(s, code);
        return;
    }
    for (int i = nfc_start[row - nfc_decomposed]; i < nfc_start[row - nfc_decomposed + 1]; i++)
        append(s, nfc_parts[i]);
}

/* Stable, by combining class, and linear: a text may have any number of marks in a row. */
static void sort_marks(struct stretch *s, int64_t first, int64_t last) {
    int64_t start[257] = {0};
    for (int64_t i = first; i < last; i++) start[s->c[i].class + 1]++;
    for (int k = 0; k < 256; k++) start[k + 1] += start[k];
    for (int64_t i = first; i < last; i++) s->sorted[start[s->c[i].class]++] = s->c[i];
    memcpy(s->c + first, s->sorted, (size_t)(last - first) * sizeof *s->c);
}

static void order_marks(struct stretch *s) {
    for (int64_t i = 0, last; i < s->count; i = last) {
        last = i + 1;
        if (s->c[i].class == 0) continue;
        bool in_order = true;
        for (; last < s->count && s->c[last].class; last++)
            in_order &= s->c[last - 1].class <= s->c[last].class;
        if (!in_order) sort_marks(s, i, last);
    }
}

/* A character joins the last starter unless one between them has its class, or a higher one. */
static void compose_all(struct stretch *s) {
    int64_t n = 0, starter = -1;
    for (int64_t i = 0; i < s->count; i++) {
        struct character c = s->c[i];
        int before = starter < 0 || n - 1 == starter ? -1 : s->c[n - 1].class;
        uint32_t composed = starter >= 0 && before < c.class ? compose(s->c[starter].code, c.code) : 0;
        if (composed) {
            s->c[starter].code = composed;
            continue;
        }
        if (c.class == 0) starter = n;
        s->c[n++] = c;
    }
    s->count = n;
}

/* --- The whole text --- */

/* The end of the stretch at p: past its first character, up to one that is not wary. */
static const uint8_t *stretch_end(const uint8_t *p, const uint8_t *end) {
    uint32_t code;
    for (int n; p < end && (n = utf8_decode(p, end, &code)) && is_wary(code);) p += n;
    return p;
}

uint8_t *normalize_nfc(const uint8_t *text, int64_t size, int64_t *out_size) {
    const uint8_t *p = text, *end = text + size, *done = text,
                  *calm = text; /* calm: the last calm character */
    uint8_t *out = NULL;
    int64_t used = 0, capacity = 0;
    struct stretch s = {0};
    while (p < end) {
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
            append_decomposed(&s, code);
        }
        order_marks(&s);
        compose_all(&s);
        /* Room for this stretch and for all text that may be copied unchanged after it. */
        int64_t need = used + (calm - done) + 4 * s.count + (end - last);
        if (need > capacity) {
            capacity = need + need / 4;
            out = (uint8_t *)xrealloc(out, (size_t)capacity);
        }
        memcpy(out + used, done, (size_t)(calm - done));
        used += calm - done;
        for (int64_t i = 0; i < s.count; i++) used += utf8_encode(out + used, s.c[i].code);
        p = done = calm = last;
    }
    free(s.c);
    free(s.sorted);
    *out_size = out ? used + (end - done) : size;
    if (out) memcpy(out + used, done, (size_t)(end - done));
    return out;
}
