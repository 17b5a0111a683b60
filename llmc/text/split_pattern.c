/* A tokenizer.json has regular expressions for Oniguruma; PCRE2 runs them here. The two differ silently:
 * \h is a hexadecimal digit for one and a blank for the other, a{2}+ is (a{2})+ or possessive, [[:punct:]]
 * and \w have other characters, and every version of PCRE2 has its own version of Unicode. A different
 * word boundary gives other tokens than those a model was trained on.
 *
 * So no part of a pattern is handed through. It is parsed with Oniguruma's syntax and written anew, and
 * whatever is not known to mean the same is refused. Every class becomes the set of its code points
 * (code_set.h), which is written for the PCRE2 that is linked (pcre2_class.h). */
#include "llmc/text/split_pattern.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/base/utf8.h"
#include "llmc/text/code_set.h"
#include "llmc/text/pcre2_class.h"

enum {
    MAX_DEPTH = 100, /* of groups and brackets */
    MAX_SETS = 1000
};

struct translation {
    const char *pattern, *p; /* the whole pattern, and what is left to read */
    char *out;
    size_t size, space;
    int depth, sets;
    bool common, ignore_case;
    uint32_t last_letter; /* the literal before, if case is ignored and no other item came between */
    struct error *err;
};

static bool refuse(const struct translation *t, const char *what) {
    return fail(t->err, "pre_tokenizer: Split pattern not understood at character %td: %s: %.200s",
                t->p - t->pattern, what, t->pattern);
}

static void put(struct translation *t, const char *text) {
    size_t n = strlen(text);
    if (t->size + n + 1 > t->space) t->out = (char *)xrealloc(t->out, t->space = 2 * (t->size + n + 1));
    memcpy(t->out + t->size, text, n + 1);
    t->size += n;
}

/* Puts "(?:" before what was written from `start` on, and ")" behind it. */
static void put_group(struct translation *t, size_t start) {
    put(t, "(?:)");
    memmove(t->out + start + 3, t->out + start, t->size - 4 - start);
    memcpy(t->out + start, "(?:", 3);
    t->out[t->size - 1] = ')';
}

static void put_code(struct translation *t, uint32_t code) { put(t, temp_printf("\\x{%x}", (unsigned)code)); }

/* --- sets --- */

/* One item that matches the characters of a set. */
static void put_set(struct translation *t, const struct code_set *s) {
    if (++t->sets > MAX_SETS) return; /* refused at the end */
    char *item = pcre2_class(s, t->common);
    put(t, item);
    free(item);
}

static void put_named(struct translation *t, const char *name, bool inverted) {
    struct code_set s = {0};
    check(code_set_add_named(&s, name, false), "no set %s", name);
    if (inverted) code_set_invert(&s);
    put_set(t, &s);
    code_set_free(&s);
}

/* --- case --- */

/* Whether nothing but ASCII letters in the set has a second case. */
static bool case_is_simple(const struct code_set *s) {
    struct code_set rest = {0}, caseless = {0};
    uint32_t bound[2] = {0x80, CODE_POINTS};
    code_set_combine(&rest, s, CODE_SET_UNION);
    code_set_combine(&rest, &(struct code_set){2, bound}, CODE_SET_INTERSECTION);
    static const char *const names[] = {"P", "Z", "Nd", "Cc", "Sm", "Sc"};
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) code_set_add_named(&caseless, names[i], true);
    code_set_combine(&rest, &caseless, CODE_SET_DIFFERENCE);
    bool simple = rest.count == 0;
    code_set_free(&rest);
    code_set_free(&caseless);
    return simple;
}

/* Adds the other cases of the ASCII letters. The long s and the Kelvin sign are cases of s and k. */
static void add_cases(struct code_set *s) {
    struct code_set more = {0};
    for (uint32_t c = 'a'; c <= 'z'; c++) {
        if (!code_set_has(s, c) && !code_set_has(s, c - 32)) continue;
        code_set_add(&more, c, c);
        code_set_add(&more, c - 32, c - 32);
        if (c == 's') code_set_add(&more, 0x17f, 0x17f);
        if (c == 'k') code_set_add(&more, 0x212a, 0x212a);
    }
    code_set_combine(s, &more, CODE_SET_UNION);
    code_set_free(&more);
}

/* Two letters in a row that one character stands for when case is ignored: sharp s, and the ligatures. */
static bool is_ligature(uint32_t a, uint32_t b) {
    return ((a | 32) == 's' && ((b | 32) == 's' || (b | 32) == 't')) ||
           ((a | 32) == 'f' && ((b | 32) == 'f' || (b | 32) == 'i' || (b | 32) == 'l'));
}

static bool put_literal(struct translation *t, uint32_t code) {
    uint32_t before = t->last_letter;
    t->last_letter = 0;
    if (!t->ignore_case) return put_code(t, code), true;
    struct code_set s = {0};
    code_set_add(&s, code, code);
    bool ok = case_is_simple(&s) || refuse(t, "a letter beyond ASCII where case is ignored");
    if (ok && is_ligature(before, code))
        ok = refuse(t, "two letters that one character stands for where case is ignored");
    add_cases(&s);
    if (ok && s.count == 2 && s.bound[1] == s.bound[0] + 1)
        put_code(t, code);
    else if (ok)
        put_set(t, &s);
    code_set_free(&s);
    t->last_letter = code;
    return ok;
}

/* --- characters and escapes --- */

static uint32_t read_char(struct translation *t) {
    uint32_t code = 0;
    int n = utf8_decode((const uint8_t *)t->p, (const uint8_t *)t->p + strlen(t->p), &code);
    t->p += n ? n : 1;
    return code;
}

/* Hexadecimal digits: exactly `digits`, or if that is 0, one to eight and a brace. */
static bool read_hex(struct translation *t, int digits, uint32_t *code) {
    int n = 0;
    *code = 0;
    for (; n < (digits ? digits : 8) && *t->p && strchr("0123456789abcdefABCDEF", *t->p); n++, t->p++)
        *code = *code << 4 | (uint32_t)(*t->p <= '9' ? *t->p - '0' : (*t->p | 32) - 'a' + 10);
    if (digits ? n != digits : (n == 0 || *t->p++ != '}')) return refuse(t, "a damaged hexadecimal number");
    if (*code >= CODE_POINTS || (*code >= 0xd800 && *code <= 0xdfff))
        return refuse(t, "a number that is no character");
    return true;
}

/* A literal, after its backslash. */
static bool read_escaped(struct translation *t, uint32_t *code) {
    static const char letter[] = "tnrfaev", means[] = "\t\n\r\f\a\x1b\v";
    char c = *t->p;
    const char *known = c ? strchr(letter, c) : NULL;
    if (known) {
        *code = (uint32_t)means[known - letter];
        t->p++;
        return true;
    }
    if (c == 'x' && t->p[1] == '{') return t->p += 2, read_hex(t, 0, code);
    if (c == 'x') {
        t->p++;
        return read_hex(t, 2, code) &&
               (*code < 0x80 || refuse(t, "\\x of a byte beyond ASCII; write \\x{...}"));
    }
    if (c == 'u') return t->p++, read_hex(t, 4, code);
    if (!c) return refuse(t, "a backslash at the end");
    if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'))
        return refuse(t, temp_printf("\\%c is not supported", c));
    *code = read_char(t);
    return true;
}

/* A set, after its backslash: \s, \p{L}. *is_set is false if there is none. */
static bool read_escaped_set(struct translation *t, bool in_class, struct code_set *s, bool *is_set) {
    static const char letter[] = "dDwWsShH";
    static const char *const names[] = {"digit", "word", "space", "xdigit"};
    char c = *t->p, name[24] = "";
    const char *known = c ? strchr(letter, c) : NULL;
    *is_set = known || ((c == 'p' || c == 'P') && t->p[1] == '{');
    if (!*is_set) return true;
    bool inverted = known ? (known - letter) & 1 : c == 'P';
    if (known) {
        strcpy(name, names[(known - letter) / 2]);
        t->p++;
    } else {
        const char *from = t->p + 2, *end = strchr(from, '}');
        if (*from == '^') inverted = !inverted, from++;
        if (!end || end - from >= (ptrdiff_t)sizeof name) return refuse(t, "a property that is not known");
        memcpy(name, from, (size_t)(end - from));
        name[end - from] = 0;
        if (!*name || *name == '[' || !code_set_add_named(s, name, in_class))
            return refuse(t, temp_printf("\\p{%s} is not known", name));
        code_set_free(s);
        t->p = end + 1;
    }
    check(code_set_add_named(s, name, in_class), "no set %s", name);
    if (inverted) code_set_invert(s);
    return true;
}

/* --- classes --- */

static bool read_class(struct translation *t, struct code_set *out);

/* [:alpha:] or [:^alpha:], after the first bracket. */
static bool read_posix(struct translation *t, struct code_set *s) {
    static const char *const names[] = {"alnum", "alpha", "blank", "cntrl", "digit",  "graph", "lower",
                                        "print", "punct", "space", "upper", "xdigit", "ascii", "word"};
    const char *from = t->p + 1;
    bool inverted = *from == '^';
    from += inverted;
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
        size_t n = strlen(names[i]);
        if (strncmp(from, names[i], n) || strncmp(from + n, ":]", 2)) continue;
        code_set_add_named(s, !strcmp(names[i], "punct") ? "[punct]" : names[i], true);
        if (inverted) code_set_invert(s);
        t->p = from + n + 2;
        return true;
    }
    return refuse(t, "a POSIX bracket that is not known");
}

/* One character of a class, or one set. */
static bool read_class_item(struct translation *t, struct code_set *s, bool *is_set, uint32_t *code) {
    *is_set = true;
    if (*t->p == '[') {
        t->p++;
        return *t->p == ':' ? read_posix(t, s) : read_class(t, s);
    }
    if (*t->p == '\\') {
        t->p++;
        if (!read_escaped_set(t, true, s, is_set)) return false;
        if (*is_set) return true;
        if (*t->p != 'b') return read_escaped(t, code);
        *code = '\b';
        t->p++;
        return true;
    }
    *is_set = false;
    *code = read_char(t);
    return true;
}

/* Items up to && or the end. */
static bool read_union(struct translation *t, struct code_set *out, bool first) {
    const char *begin = t->p;
    while (*t->p != ']' && strncmp(t->p, "&&", 2) != 0) {
        if (!*t->p) return refuse(t, "a class without an end");
        struct code_set item = {0};
        uint32_t from = 0, to;
        bool is_set, ok = true, begins = t->p == begin && first, dash = *t->p == '-';
        if (dash && !begins && t->p[1] != ']')
            return refuse(t, "a hyphen that is neither first, last nor in a range");
        ok = read_class_item(t, &item, &is_set, &from);
        to = from;
        if (ok && *t->p == '-' && t->p[1] != ']') {
            bool ends_in_set = false;
            t->p++;
            if (is_set || dash)
                ok = refuse(t, "a hyphen that is neither first, last nor in a range");
            else
                ok = read_class_item(t, &item, &ends_in_set, &to);
            if (ok && ends_in_set) ok = refuse(t, "a range that ends in a set");
            if (ok && to < from) ok = refuse(t, "a range that ends before it begins");
        }
        if (ok && !is_set) code_set_add(&item, from, to);
        code_set_combine(out, &item, CODE_SET_UNION);
        code_set_free(&item);
        if (!ok) return false;
    }
    return t->p > begin || refuse(t, "an empty class");
}

/* A class, after its first bracket and to behind its last one. */
static bool read_class(struct translation *t, struct code_set *out) {
    if (++t->depth > MAX_DEPTH) return refuse(t, "too many brackets in brackets");
    bool negated = *t->p == '^';
    t->p += negated;
    bool ok = read_union(t, out, true);
    while (ok && *t->p == '&') {
        t->p += 2;
        struct code_set next = {0};
        ok = t->ignore_case ? refuse(t, "&& where case is ignored") : read_union(t, &next, true);
        code_set_combine(out, &next, CODE_SET_INTERSECTION);
        code_set_free(&next);
    }
    if (ok && t->ignore_case) {
        ok = case_is_simple(out) || refuse(t, "a class with letters beyond ASCII where case is ignored");
        add_cases(out);
    }
    if (ok && negated) code_set_invert(out);
    if (ok) t->p++;
    t->depth--;
    return ok;
}

/* --- the syntax around them --- */

static bool read_alternatives(struct translation *t);

/* (?i) and (?-i), after them: for the rest of a group. Further on in it, Oniguruma takes the alternatives
 * that follow for a group of their own. */
static bool read_option(struct translation *t, size_t group_start, bool *is_option) {
    bool off = t->p[2] == '-';
    *is_option = t->p[2 + off] == 'i' && t->p[3 + off] == ')';
    if (!*is_option) return true;
    if (t->size != group_start) return refuse(t, "an option that does not begin a group");
    t->ignore_case = !off;
    t->p += 4 + off;
    return true;
}

/* A group at its parenthesis. */
static bool read_group(struct translation *t, bool *repeatable) {
    static const struct {
        const char *begin, *out;
        bool repeatable;
        int ignore_case; /* -1: as before */
    } kinds[] = {
        {"(?:", "(?:", true, -1},  {"(?>", "(?>", true, -1},    {"(?=", "(?=", false, -1},
        {"(?!", "(?!", false, -1}, {"(?<=", "(?<=", false, -1}, {"(?<!", "(?<!", false, -1},
        {"(?i:", "(?:", true, 1},  {"(?-i:", "(?:", true, 0},
    };
    bool before = t->ignore_case;
    size_t i = 0;
    while (i < ARRAY_LENGTH(kinds) && strncmp(t->p, kinds[i].begin, strlen(kinds[i].begin)) != 0) i++;
    if (i < ARRAY_LENGTH(kinds)) {
        put(t, kinds[i].out);
        t->p += strlen(kinds[i].begin);
        *repeatable = kinds[i].repeatable;
        if (kinds[i].ignore_case >= 0) t->ignore_case = kinds[i].ignore_case;
    } else { /* a group that captures, perhaps with a name: nothing can refer to it */
        t->p++;
        if (!strncmp(t->p, "?<", 2)) {
            size_t n = strspn(t->p + 2, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz");
            if (n && t->p[2 + n] == '>') t->p += 3 + n;
        }
        if (*t->p == '?' || *t->p == '*') return refuse(t, "a kind of group that is not supported");
        put(t, "(?:");
        *repeatable = true;
    }
    if (++t->depth > MAX_DEPTH) return refuse(t, "too many groups in groups");
    if (!read_alternatives(t)) return false;
    if (*t->p != ')') return refuse(t, "a group without an end");
    t->p++;
    t->depth--;
    t->ignore_case = before;
    put(t, ")");
    return true;
}

/* An escape outside of classes. */
static bool read_escape(struct translation *t, bool *repeatable) {
    struct code_set s = {0};
    bool is_set;
    t->p++;
    if (!read_escaped_set(t, false, &s, &is_set)) return false;
    if (is_set) {
        bool simple = !t->ignore_case || case_is_simple(&s);
        if (simple && t->ignore_case) add_cases(&s);
        if (simple) put_set(t, &s);
        code_set_free(&s);
        return simple || refuse(t, "a set with letters beyond ASCII where case is ignored");
    }
    char c = *t->p;
    *repeatable = !c || !strchr("bBAzZ", c);
    switch (c) {
    case 'b':
    case 'B':
        for (int i = 0; i < 2; i++) {
            put(t, i ? "|(?<!" : "(?:(?<=");
            put_named(t, "word", false);
            put(t, (c == 'b') == !i ? ")(?!" : ")(?=");
            put_named(t, "word", false);
            put(t, ")");
        }
        put(t, ")");
        break;
    case 'A':
        put(t, "\\A");
        break;
    case 'z':
        put(t, "\\z");
        break;
    case 'Z':
        put(t, "(?=\\x{a}?\\z)");
        break;
    case 'N':
        put(t, "[^\\x{a}]");
        break;
    case 'O':
        put(t, "[\\x{0}-\\x{10ffff}]");
        break;
    case 'R':
        put(t, "(?>\\x{d}\\x{a}|[\\x{a}-\\x{d}\\x{85}\\x{2028}\\x{2029}])");
        break;
    default: {
        uint32_t code;
        return read_escaped(t, &code) && put_literal(t, code);
    }
    }
    t->p++;
    return true;
}

/* One item without its quantifier. */
static bool read_atom(struct translation *t, bool *repeatable) {
    *repeatable = true;
    switch (*t->p) {
    case '(':
        return read_group(t, repeatable);
    case '\\':
        return read_escape(t, repeatable);
    case '[': {
        struct code_set s = {0};
        t->p++;
        bool ok = read_class(t, &s);
        if (ok) put_set(t, &s);
        code_set_free(&s);
        return ok;
    }
    case '.':
        put(t, "[^\\x{a}]");
        break;
    case '^': /* of a line */
        put(t, "(?:\\A|(?<=\\x{a})(?!\\z))");
        *repeatable = false;
        break;
    case '$':
        put(t, "(?=\\x{a}|\\z)");
        *repeatable = false;
        break;
    case '*':
    case '+':
    case '?':
    case '{':
        return refuse(t, "a quantifier with nothing before it");
    default:
        return put_literal(t, read_char(t));
    }
    t->p++;
    return true;
}

/* {n}, {n,}, {,m} or {n,m}. *least = -1 if it is none of them. */
static bool read_interval(struct translation *t, int *least, int *most) {
    const char *p = t->p + 1;
    int number[2] = {-1, -1}, parts = 1;
    for (int i = 0; i < 2; i++) {
        for (; *p >= '0' && *p <= '9' && number[i] < 10000; p++)
            number[i] = 10 * (number[i] < 0 ? 0 : number[i]) + *p - '0';
        if (i == 0 && *p == ',')
            parts = 2, p++;
        else
            break;
    }
    if (*p != '}' || (number[0] < 0 && number[1] < 0))
        return refuse(t, "a brace that is no quantifier; write \\{");
    *least = number[0] < 0 ? 0 : number[0];
    *most = parts == 2 ? number[1] : *least;
    if (*least > 1000 || *most > 1000) return refuse(t, "more than 1000 repetitions");
    if (*most >= 0 && *most < *least) return refuse(t, "a quantifier whose first number is the larger one");
    t->p = p + 1;
    return true;
}

static bool read_quantifier(struct translation *t, size_t start, bool repeatable) {
    if (!*t->p || !strchr("*+?{", *t->p)) return true;
    if (!repeatable) return refuse(t, "a quantifier after something without a width");
    t->last_letter = 0;
    if (*t->p != '{') {
        put(t, temp_printf("%c", *t->p++));
        if (*t->p == '?' || *t->p == '+') put(t, temp_printf("%c", *t->p++));
    } else {
        int least = 0, most = 0;
        bool exact = !strchr(t->p, ',') || strchr(t->p, ',') > strchr(t->p, '}');
        if (!read_interval(t, &least, &most)) return false;
        put(t, temp_printf(most < 0 ? "{%d,}" : "{%d,%d}", least, most));
        /* Here x{2,3}+ is (x{2,3})+, and x{2}? is (x{2})?. */
        if (*t->p == '+' || (*t->p == '?' && exact)) {
            put_group(t, start);
            put(t, temp_printf("%c", *t->p++));
        } else if (*t->p == '?') {
            put(t, temp_printf("%c", *t->p++));
        }
    }
    return !*t->p || !strchr("*+?{", *t->p) || refuse(t, "a quantifier after a quantifier");
}

/* Up to the parenthesis that ends the group, or the end of the pattern. */
static bool read_alternatives(struct translation *t) {
    size_t group_start = t->size;
    while (*t->p && *t->p != ')') {
        if (*t->p == '|') {
            put(t, "|");
            t->p++;
            t->last_letter = 0;
            continue;
        }
        size_t start = t->size;
        uint32_t letter = t->last_letter;
        bool repeatable = true, is_option = false;
        if (*t->p == '(' && t->p[1] == '?' && !read_option(t, group_start, &is_option)) return false;
        if (is_option) continue;
        if (!read_atom(t, &repeatable)) return false;
        if (t->last_letter == letter) t->last_letter = 0;
        if (!read_quantifier(t, start, repeatable)) return false;
    }
    return true;
}

char *split_pattern_for_pcre2(const char *pattern, bool common, struct error *err) {
    struct translation t = {.pattern = pattern, .p = pattern, .common = common, .err = err};
    put(&t, "");
    bool ok = read_alternatives(&t);
    if (ok && t.sets > MAX_SETS) ok = refuse(&t, "more than 1000 classes");
    if (ok && *t.p) ok = refuse(&t, "a parenthesis that closes nothing");
    if (ok) return t.out;
    free(t.out);
    return NULL;
}

char *split_pattern_of_text(const char *text) {
    char *out = (char *)xmalloc(2 * strlen(text) + 1), *p = out;
    for (; *text; text++) {
        if (strchr("\\^$.[]|()?*+{}#- \t\n", *text)) *p++ = '\\';
        *p++ = *text;
    }
    *p = 0;
    return out;
}
