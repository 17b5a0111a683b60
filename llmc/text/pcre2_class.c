/* PCRE2 tests a general category by a table, and a list of ranges one by one: a class of all letters as a
 * list is 30 times slower. But every version of PCRE2 has its own version of Unicode. So a set is written
 * as the categories that come near it in the PCRE2 that is linked, with the few characters that these lack
 * or have too much. PCRE2 10.42 goes through these for every character that is not in the class, the space
 * behind each word for example, which halves the speed; so there is a form without them, for texts that
 * have none of these characters. */
#include "llmc/text/pcre2_class.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "llmc/base/utf8.h"

enum { FEW = 32 }; /* bounds of a list that is as good as categories */

/* No text has them, and no pattern may. */
static const struct code_set surrogates = {2, (uint32_t[]){0xd800, 0xe000}};

/* What the linked PCRE2 knows about Unicode. */
static struct {
    struct code_set category[32]; /* in the order of code_set_category_name() */
    struct code_set difference;
} unicode;

/* Asks PCRE2 for the category of every code point: one capturing group for each category, and a text of all
 * code points. */
static void ask_pcre2(void) {
    int n = code_set_categories(), code;
    check(n <= (int)ARRAY_LENGTH(unicode.category), "%d categories", n);
    char pattern[1024] = "";
    for (int k = 0; k < n; k++)
        sprintf(pattern + strlen(pattern), "%s(\\p{%s}+)", k ? "|" : "", code_set_category_name(k));
    PCRE2_SIZE offset;
    pcre2_code *regex = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                      &code, &offset, NULL);
    pcre2_match_data *match = regex ? pcre2_match_data_create_from_pattern(regex, NULL) : NULL;
    check(match, "PCRE2 knows no Unicode, error %d", code);
    pcre2_jit_compile(regex, PCRE2_JIT_COMPLETE);
    uint8_t *text = (uint8_t *)xmalloc(4 * CODE_POINTS);
    size_t size = 0, at = 0;
    for (uint32_t c = 0; c < CODE_POINTS; c++)
        if (c < 0xd800 || c > 0xdfff) size += (size_t)utf8_encode(text + size, c);
    while (at < size) {
        int rc = pcre2_match(regex, text, size, at, PCRE2_NO_UTF_CHECK | PCRE2_ANCHORED, match, NULL);
        check(rc >= 2, "PCRE2 has no category for a character, error %d", rc);
        const uint8_t *end = text + pcre2_get_ovector_pointer(match)[1], *last = end - 1;
        while (utf8_is_continuation(*last)) last--;
        uint32_t first_code = 0, last_code = 0;
        utf8_decode(text + at, end, &first_code);
        utf8_decode(last, end, &last_code);
        code_set_add(&unicode.category[rc - 2], first_code, last_code);
        at = (size_t)(end - text);
    }
    free(text);
    pcre2_match_data_free(match);
    pcre2_code_free(regex);
    for (int k = 0; k < n; k++) {
        struct code_set other = {0};
        code_set_add_named(&other, code_set_category_name(k), false);
        code_set_combine(&other, &unicode.category[k], CODE_SET_XOR);
        code_set_combine(&unicode.difference, &other, CODE_SET_UNION);
        code_set_free(&other);
    }
    code_set_combine(&unicode.difference, &surrogates, CODE_SET_DIFFERENCE);
}

static void know_unicode(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, ask_pcre2);
}

const struct code_set *pcre2_unicode_difference(void) {
    know_unicode();
    return &unicode.difference;
}

/* A set as PCRE2's categories, what they lack, and what they have too much. */
struct spelling {
    uint32_t mask;
    struct code_set lacks, excess;
    int cost;
};

static void spell(const struct code_set *s, bool as_list, bool common, struct spelling *out) {
    *out = (struct spelling){0};
    struct code_set rest = {0};
    code_set_combine(&rest, s, CODE_SET_UNION);
    code_set_combine(&rest, &surrogates, CODE_SET_DIFFERENCE);
    for (int k = 0; !as_list && k < code_set_categories(); k++) {
        struct code_set in = {0}, missing = {0};
        code_set_combine(&in, &unicode.category[k], CODE_SET_UNION);
        code_set_combine(&missing, &unicode.category[k], CODE_SET_UNION);
        code_set_combine(&in, s, CODE_SET_INTERSECTION);
        code_set_combine(&missing, s, CODE_SET_DIFFERENCE);
        /* What is too much needs a look-ahead for every character. */
        if (8 * missing.count < in.count) {
            out->mask |= 1u << k;
            code_set_combine(&rest, &in, CODE_SET_DIFFERENCE);
            code_set_combine(&out->excess, &missing, CODE_SET_UNION);
        }
        code_set_free(&in);
        code_set_free(&missing);
    }
    if (!as_list && common) {
        code_set_combine(&rest, &unicode.difference, CODE_SET_DIFFERENCE);
        code_set_combine(&out->excess, &unicode.difference, CODE_SET_DIFFERENCE);
    }
    /* Listed, too, if they are in a category: for them PCRE2 has a bitmap. */
    uint32_t bound[2] = {0, 0x80};
    struct code_set ascii = {0};
    code_set_combine(&ascii, &(struct code_set){2, bound}, CODE_SET_UNION);
    code_set_combine(&ascii, s, CODE_SET_INTERSECTION);
    code_set_combine(&rest, &ascii, CODE_SET_UNION);
    code_set_free(&ascii);
    out->lacks = rest;
    out->cost = rest.count + 8 * out->excess.count;
}

static void put_ranges(FILE *out, const struct code_set *s) {
    for (int i = 0; i < s->count; i += 2) {
        fprintf(out, "\\x{%x}", (unsigned)s->bound[i]);
        if (s->bound[i + 1] - s->bound[i] > 1) fprintf(out, "-\\x{%x}", (unsigned)s->bound[i + 1] - 1);
    }
}

static void put_categories(FILE *out, uint32_t mask) {
    for (int k = 0, n = 0; k < code_set_categories(); k += n) {
        const char *name = code_set_category_name(k);
        uint32_t group = 0;
        for (n = 0; k + n < code_set_categories() && code_set_category_name(k + n)[0] == name[0]; n++)
            group |= 1u << (k + n);
        if ((mask & group) == group) {
            fprintf(out, "\\p{%c}", name[0]);
            continue;
        }
        for (int i = k; i < k + n; i++)
            if (mask >> i & 1) fprintf(out, "\\p{%s}", code_set_category_name(i));
    }
}

char *pcre2_class(const struct code_set *s, bool common) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    check(out, "out of host memory");
    struct code_set others = {0};
    code_set_combine(&others, s, CODE_SET_UNION);
    code_set_invert(&others);
    struct spelling both[2];
    bool few = min_i64(s->count, others.count) <= FEW;
    if (!few) know_unicode();
    spell(s, few, common, &both[0]);
    spell(&others, few, common, &both[1]);
    bool negated = both[1].cost < both[0].cost;
    const struct spelling *best = &both[negated];
    if (!best->mask && !best->lacks.count) {
        fputs(negated ? "[\\x{0}-\\x{10ffff}]" : "(?!)", out);
    } else {
        if (best->excess.count) {
            fputs(negated ? "(?:[" : "(?:(?![", out);
            put_ranges(out, &best->excess);
            fputs(negated ? "]|" : "])", out);
        }
        fputs(negated ? "[^" : "[", out);
        put_categories(out, best->mask);
        put_ranges(out, &best->lacks);
        fputs(best->excess.count ? "])" : "]", out);
    }
    fclose(out);
    for (int i = 0; i < 2; i++) {
        code_set_free(&both[i].lacks);
        code_set_free(&both[i].excess);
    }
    code_set_free(&others);
    return text;
}
