/* Sets of code points, and the names that regular expressions have for them. What a name stands for comes
 * from tables that were made with Oniguruma itself, because libraries and their versions differ: in their
 * version of Unicode, in what [[:punct:]] means, and in whether \p{Han} has the characters that other
 * scripts use, too. */
#include "llmc/text/code_set.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/text/unicode_sets.h"

void code_set_free(struct code_set *s) {
    free(s->bound);
    *s = (struct code_set){0};
}

static void append(struct code_set *s, uint32_t bound) {
    if ((s->count & (s->count + 1)) == 0 || s->count < 8)
        s->bound = (uint32_t *)xrealloc(s->bound, (size_t)(2 * s->count + 8) * sizeof *s->bound);
    s->bound[s->count++] = bound;
}

static bool apply(enum code_set_operation operation, bool a, bool b) {
    switch (operation) {
    case CODE_SET_UNION:
        return a || b;
    case CODE_SET_INTERSECTION:
        return a && b;
    case CODE_SET_DIFFERENCE:
        return a && !b;
    case CODE_SET_XOR:
        return a != b;
    }
    return false;
}

void code_set_combine(struct code_set *a, const struct code_set *b, enum code_set_operation operation) {
    struct code_set out = {0};
    int i = 0, j = 0;
    while (i < a->count || j < b->count) {
        uint32_t at_a = i < a->count ? a->bound[i] : CODE_POINTS,
                 at_b = j < b->count ? b->bound[j] : CODE_POINTS;
        uint32_t at = at_a < at_b ? at_a : at_b;
        i += i < a->count && at_a == at;
        j += j < b->count && at_b == at;
        if (apply(operation, i & 1, j & 1) != (out.count & 1)) append(&out, at);
    }
    code_set_free(a);
    *a = out;
}

void code_set_add(struct code_set *s, uint32_t first, uint32_t last) {
    if (s->count == 0 || first > s->bound[s->count - 1]) {
        append(s, first);
        append(s, last + 1);
    } else {
        uint32_t bound[2] = {first, last + 1};
        code_set_combine(s, &(struct code_set){2, bound}, CODE_SET_UNION);
    }
}

void code_set_invert(struct code_set *s) {
    uint32_t bound[2] = {0, CODE_POINTS};
    code_set_combine(s, &(struct code_set){2, bound}, CODE_SET_XOR);
}

bool code_set_has(const struct code_set *s, uint32_t code) {
    int low = 0,
        high = s->count; /* bounds before low are at most the code, those from high on are beyond it */
    while (low < high) {
        int middle = (low + high) / 2;
        if (s->bound[middle] <= code)
            low = middle + 1;
        else
            high = middle;
    }
    return low & 1;
}

/* --- names --- */

int code_set_categories(void) { return UNICODE_CATEGORIES; }
const char *code_set_category_name(int category) { return unicode_category_name[category]; }

static void add_categories(struct code_set *s, uint32_t mask) {
    struct code_set all = {0};
    for (size_t i = 0; mask && i < ARRAY_LENGTH(unicode_category_runs); i++) {
        bool last = i + 1 == ARRAY_LENGTH(unicode_category_runs),
             in = mask >> (unicode_category_runs[i] & 255) & 1;
        if (in != (all.count & 1)) append(&all, unicode_category_runs[i] >> 8);
        if (last && (all.count & 1)) append(&all, CODE_POINTS);
    }
    code_set_combine(s, &all, CODE_SET_UNION);
    code_set_free(&all);
}

/* Of "L" and "Lu": all categories that begin so. */
static uint32_t category_mask(const char *name) {
    uint32_t mask = 0;
    for (int k = 0; k < UNICODE_CATEGORIES; k++) {
        const char *c = unicode_category_name[k];
        if ((name[0] | 0x20) == (c[0] | 0x20) && (!name[1] || (name[1] == c[1] && !name[2]))) mask |= 1u << k;
    }
    return mask;
}

/* Other names of a category or a set. */
static const char *const aliases[][2] = {
    {"letter", "l"},
    {"mark", "m"},
    {"number", "n"},
    {"punctuation", "p"},
    {"symbol", "s"},
    {"separator", "z"},
    {"other", "c"},
    {"uppercaseletter", "lu"},
    {"lowercaseletter", "ll"},
    {"titlecaseletter", "lt"},
    {"modifierletter", "lm"},
    {"otherletter", "lo"},
    {"nonspacingmark", "mn"},
    {"spacingmark", "mc"},
    {"enclosingmark", "me"},
    {"decimalnumber", "nd"},
    {"letternumber", "nl"},
    {"othernumber", "no"},
    {"alphabetic", "alpha"},
    {"uppercase", "upper"},
    {"lowercase", "lower"},
    {"whitespace", "space"},
};

bool code_set_add_named(struct code_set *s, const char *name, bool in_class) {
    char key[24];
    size_t n = 0;
    for (const char *p = name; *p; p++) {
        if (*p == ' ' || *p == '_' || *p == '-') continue;
        if (n + 1 == sizeof key) return false;
        key[n++] = (char)(*p >= 'A' && *p <= 'Z' ? *p | 0x20 : *p);
    }
    key[n] = 0;
    for (size_t i = 0; i < ARRAY_LENGTH(aliases); i++)
        if (!strcmp(key, aliases[i][0])) strcpy(key, aliases[i][1]);
    if (!strcmp(key, "alnum"))
        return code_set_add_named(s, "alpha", in_class) && code_set_add_named(s, "digit", in_class);
    uint32_t mask = !strcmp(key, "lc") ? category_mask("lu") | category_mask("ll") | category_mask("lt")
                    : !strcmp(key, "assigned") ? ((1u << UNICODE_CATEGORIES) - 1) & ~category_mask("cn")
                                               : category_mask(key);
    if (*key && mask) return add_categories(s, mask), true;
    if (in_class && !strcmp(key, "word")) strcpy(key, "[word]");
    for (size_t i = 0; i < ARRAY_LENGTH(unicode_sets); i++) {
        const struct unicode_set *u = &unicode_sets[i];
        if (strcmp(key, u->name)) continue;
        struct code_set set = {0}, list = {0};
        add_categories(&set, u->mask);
        for (int k = 0; k < u->count; k++) append(&list, unicode_set_bounds[u->first + k]);
        code_set_combine(&set, &list, CODE_SET_XOR);
        code_set_combine(s, &set, CODE_SET_UNION);
        code_set_free(&list);
        code_set_free(&set);
        return true;
    }
    return false;
}
