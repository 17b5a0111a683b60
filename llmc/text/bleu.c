/* BLEU: see bleu.h. The words are found by four substitutions, one after the other, as mteval-v13a's regular
 * expressions make them; each goes from left to right, and what it has used it does not look at again. Only
 * ASCII characters matter to them, so bytes will do. An n-gram is a stretch of the text of words. */
#include "llmc/text/bleu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/utf8.h"

/* --- words --- */

struct out {
    char *text;
    size_t size;
};

static void put(struct out *o, const char *text, size_t size) {
    memcpy(o->text + o->size, text, size);
    o->size += size;
    o->text[o->size] = 0;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_stop(char c) { return c == '.' || c == ','; }

/* [{-~[-` -&(-+:-@/] */
static bool is_mark(char c) {
    return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
           (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
}

/* Each gives a text of at most three times the size, and a few. */
static struct out new_out(size_t size) { return (struct out){(char *)xcalloc(3 * size + 8, 1), 0}; }

static char *clean(const char *text) {
    static const char *const words[][2] = {{"<skipped>", ""}, {"-\n", ""},   {"\n", " "},  {"&quot;", "\""},
                                           {"&amp;", "&"},    {"&lt;", "<"}, {"&gt;", ">"}};
    size_t length = strlen(text);
    while (length && (text[length - 1] == ' ' || (text[length - 1] >= 9 && text[length - 1] <= 13))) length--;
    char *now = xasprintf("%.*s", (int)length, text);
    for (size_t i = 0; i < ARRAY_LENGTH(words); i++) {
        struct out o = new_out(strlen(now));
        size_t size = strlen(words[i][0]);
        for (const char *p = now; *p;)
            if (strncmp(p, words[i][0], size) == 0) {
                put(&o, words[i][1], strlen(words[i][1]));
                p += size;
            } else {
                put(&o, p++, 1);
            }
        free(now);
        now = o.text;
    }
    char *padded = xasprintf(" %s ", now);
    free(now);
    return padded;
}

/* ([marks]) -> " \1 " */
static char *part_marks(const char *text) {
    struct out o = new_out(strlen(text));
    for (const char *p = text; *p; p++) {
        char apart[3] = {' ', *p, ' '};
        put(&o, is_mark(*p) ? apart : p, is_mark(*p) ? 3 : 1);
    }
    return o.text;
}

/* Of two neighbours that fit, the second gets a space before and behind it (kind 0: ([^0-9])([.,]), kind 2:
 * ([0-9])(-)), or the first does (kind 1: ([.,])([^0-9])). */
static char *part_pairs(const char *text, int kind) {
    struct out o = new_out(strlen(text));
    for (const char *p = text; *p;) {
        bool fits = kind == 0   ? !is_digit(p[0]) && is_stop(p[1])
                    : kind == 1 ? is_stop(p[0]) && p[1] && !is_digit(p[1])
                                : is_digit(p[0]) && p[1] == '-';
        char first[] = {' ', p[0], ' ', p[1]}, second[] = {p[0], ' ', p[1], ' '};
        if (fits)
            put(&o, kind == 1 ? first : second, 4);
        else
            put(&o, p, 1);
        p += fits ? 2 : 1;
    }
    return o.text;
}

/* Bytes of the white space that a text begins with, by Python's str.split(); 0: none. */
static int space_at(const char *p, const char *end) {
    uint32_t c;
    int n = utf8_decode((const uint8_t *)p, (const uint8_t *)end, &c);
    bool space = n > 0 && ((c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
                           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
                           c == 0x202f || c == 0x205f || c == 0x3000);
    return space ? n : 0;
}

static char *one_space(const char *text) {
    struct out o = new_out(strlen(text));
    const char *end = text + strlen(text);
    bool due = false;
    for (const char *p = text; p < end;) {
        int n = space_at(p, end);
        if (n) {
            due = true;
        } else {
            if (due && o.size) put(&o, " ", 1);
            due = false;
            put(&o, p, 1);
        }
        p += n ? n : 1;
    }
    return o.text;
}

char *bleu_words(const char *text) {
    char *now = clean(text), *next = part_marks(now);
    for (int kind = 0; kind < 3; kind++) {
        free(now);
        now = next;
        next = part_pairs(now, kind);
    }
    free(now);
    now = one_space(next);
    free(next);
    return now;
}

/* --- n-grams --- */

struct ngram {
    const char *text;
    size_t size;
};

static int by_text(const void *a, const void *b) {
    const struct ngram *x = (const struct ngram *)a, *y = (const struct ngram *)b;
    int order = memcmp(x->text, y->text, x->size < y->size ? x->size : y->size);
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

/* Those of n words, sorted; the caller frees. */
static struct ngram *list_ngrams(const char *words, int n, int64_t *count) {
    struct ngram *list = (struct ngram *)xcalloc(strlen(words) + 1, sizeof *list);
    *count = 0;
    for (const char *first = words; *first;) {
        const char *end = first;
        int k = 0;
        for (; k < n && *end; k++) {
            if (k) end++;
            end += strcspn(end, " ");
        }
        if (k == n) list[(*count)++] = (struct ngram){first, (size_t)(end - first)};
        first += strcspn(first, " ");
        if (*first) first++;
    }
    qsort(list, (size_t)*count, sizeof *list, by_text);
    return list;
}

/* How many of `a` find one of their own in `b`. */
static int64_t count_common(const struct ngram *a, int64_t a_count, const struct ngram *b, int64_t b_count) {
    int64_t common = 0;
    for (int64_t i = 0, k = 0; i < a_count && k < b_count;) {
        int order = by_text(&a[i], &b[k]);
        common += order == 0;
        i += order <= 0;
        k += order >= 0;
    }
    return common;
}

void bleu_add(struct bleu *b, const char *translation, const char *reference) {
    char *a = bleu_words(translation), *r = bleu_words(reference);
    for (int n = 1; n <= BLEU_ORDER; n++) {
        int64_t count, expected;
        struct ngram *made = list_ngrams(a, n, &count), *wanted = list_ngrams(r, n, &expected);
        b->correct[n - 1] += count_common(made, count, wanted, expected);
        b->total[n - 1] += count;
        if (n == 1) b->words += count;
        if (n == 1) b->reference_words += expected;
        free(made);
        free(wanted);
    }
    free(a);
    free(r);
}

double bleu_score(const struct bleu *b, double *brevity, double *precision) {
    double penalty = 1.0, sum = 0.0, smooth = 1.0;
    bool any = false, all = true;
    if (b->words < b->reference_words)
        penalty = b->words ? exp(1.0 - (double)b->reference_words / (double)b->words) : 0.0;
    for (int n = 0; n < BLEU_ORDER; n++) any |= b->correct[n] > 0;
    for (int n = 0; n < BLEU_ORDER; n++) {
        double p = 0.0;
        all = all && b->total[n] > 0;
        if (all && any) {
            if (b->correct[n] == 0) smooth *= 2.0;
            p = 100.0 * (b->correct[n] ? (double)b->correct[n] : 1.0 / smooth) / (double)b->total[n];
        }
        if (precision) precision[n] = p;
        sum += p > 0.0 ? log(p) : 0.0;
    }
    if (brevity) *brevity = penalty;
    return any && all ? penalty * exp(sum / BLEU_ORDER) : 0.0;
}
