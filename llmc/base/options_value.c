/* One option's value, converted between text, JSON and the field of the configuration structure. Numbers
 * follow rules of their own rather than strtod's, so that "0x10", "inf" and " 5" are errors and a message
 * can say which characters are wrong. The distance between words is for "did you mean". */
#include "llmc/base/options_value.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- word distance --- */

int word_distance(const char *a, const char *b) {
    int n = (int)strnlen(a, WORD_MAX), m = (int)strnlen(b, WORD_MAX);
    int rows[3][WORD_MAX + 1];
    int *before = rows[0], *last = rows[1], *now = rows[2];
    for (int j = 0; j <= m; j++) last[j] = j;
    for (int i = 1; i <= n; i++) {
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && before[j - 2] + 1 < best) best = before[j - 2] + 1;
            now[j] = best;
        }
        int *free_row = before;
        before = last;
        last = now;
        now = free_row;
    }
    return last[m];
}

int nearest_word(const char *given, const char *const *words, int count) {
    int best = -1, best_distance = 1 + (int)strnlen(given, WORD_MAX) / 4;
    int begun = -1, begun_count = 0;
    size_t length = strlen(given);
    for (int i = 0; i < count; i++) {
        int distance = word_distance(given, words[i]);
        /* A distance of the whole length means nothing: any word of that length has it. */
        bool near = distance < (int)strlen(words[i]);
        if (near && (distance < best_distance || (best < 0 && distance == best_distance))) {
            best = i;
            best_distance = distance;
        }
        if (length > 0 && strncmp(words[i], given, length) == 0) {
            begun = i;
            begun_count++;
        }
    }
    return best >= 0 ? best : begun_count == 1 ? begun : -1;
}

struct option_shown option_show(const char *s) {
    struct option_shown out;
    size_t n = 0;
    for (; s[n] && n < sizeof out.text - 4; n++) {
        unsigned char c = (unsigned char)s[n];
        out.text[n] = c < 0x20 || c == 0x7f ? '?' : s[n];
    }
    memcpy(out.text + n, s[n] ? "..." : "", s[n] ? 4 : 1);
    return out;
}

/* --- reading values --- */

static bool is_integer_type(enum option_type t) { return t == OPTION_INT || t == OPTION_SIZE; }

static const char *word_at(const char *words, int index, size_t *length) {
    for (;; index--) {
        *length = strcspn(words, "|");
        if (index == 0) return words;
        if (words[*length] == '\0') return NULL;
        words += *length + 1;
    }
}

static void describe_bound(char *out, size_t size, const struct option_row *row, double bound) {
    if (is_integer_type(row->type))
        snprintf(out, size, "%.0f", bound);
    else
        snprintf(out, size, "%.15g", bound);
}

static bool check_range(const struct option_row *row, double v, const char *label, struct error *err) {
    bool above = row->flags & OPTION_ABOVE_MIN, below = row->flags & OPTION_BELOW_MAX;
    if ((above ? v > row->min : v >= row->min) && (below ? v < row->max : v <= row->max)) return true;
    char min[40], max[40];
    describe_bound(min, sizeof min, row, row->min);
    describe_bound(max, sizeof max, row, row->max);
    if (row->min > -INFINITY && row->max < INFINITY) {
        if (!above && !below) return fail(err, "%s: must be between %s and %s", label, min, max);
        return fail(err, "%s: must be %s %s and %s %s", label, above ? "above" : "at least", min,
                    below ? "below" : "at most", max);
    }
    if (row->min > -INFINITY) return fail(err, "%s: must be %s %s", label, above ? "above" : "at least", min);
    return fail(err, "%s: must be %s %s", label, below ? "below" : "at most", max);
}

/* A number that overflows its type is reported as out of range, since the range tells what to do. */
static bool fail_overflow(const struct option_row *row, bool negative, const char *label, struct error *err) {
    return check_range(row, negative ? -INFINITY : INFINITY, label, err) &&
           fail(err, "%s: too large for a %s", label, row->type == OPTION_REAL ? "double" : "64-bit integer");
}

/* The longest prefix of s that is a decimal number; a real one may have a fraction and an exponent. Not
 * strtod, which also accepts spaces, hexadecimal, "inf" and "nan". */
static size_t number_length(const char *s, bool real) {
    const char *digits = "0123456789";
    size_t sign = s[0] == '-' || s[0] == '+';
    size_t whole = strspn(s + sign, digits), end = sign + whole, fraction = 0;
    if (real && s[end] == '.') {
        fraction = strspn(s + end + 1, digits);
        if (whole + fraction > 0) end += 1 + fraction;
    }
    if (whole + fraction == 0) return 0;
    if (real && (s[end] == 'e' || s[end] == 'E')) {
        size_t exponent_sign = s[end + 1] == '-' || s[end + 1] == '+';
        size_t exponent = strspn(s + end + 1 + exponent_sign, digits);
        if (exponent > 0) end += 1 + exponent_sign + exponent;
    }
    return end;
}

static bool fail_number(const char *kind, const char *text, size_t length, const char *label,
                        struct error *err) {
    if (text[0] == '\0') return fail(err, "%s: empty value; expected %s", label, kind);
    if (length == 0) return fail(err, "%s: not %s", label, kind);
    return fail(err, "%s: not %s (\"%s\" after the number)", label, kind, option_show(text + length).text);
}

static bool read_integer(const struct option_row *row, const char *text, int64_t *out, const char *label,
                         struct error *err) {
    bool size = row->type == OPTION_SIZE;
    const char *kind = size ? "a size such as 4096, 64k or 1M" : "an integer";
    size_t length = number_length(text, size), plain = number_length(text, false);
    int64_t unit = 1;
    size_t suffix = 0;
    if (size && length > 0 && text[length]) {
        const char *const units = "kKmMgGtT";
        const char *found = strchr(units, text[length]);
        if (found) unit = (int64_t)1 << (10 * ((found - units) / 2 + 1));
        suffix = found != NULL;
    }
    if (length == 0 || text[length + suffix]) return fail_number(kind, text, length + suffix, label, err);
    if (length != plain) { /* 1.5k, 1e6 */
        double v = strtod(text, NULL) * (double)unit;
        if (!(fabs(v) <= 9007199254740992.0)) return fail_overflow(row, v < 0, label, err);
        if (v != floor(v)) return fail(err, "%s: not a whole number", label);
        *out = (int64_t)v;
        return true;
    }
    errno = 0;
    long long v = strtoll(text, NULL, 10);
    int64_t scaled;
    if (errno == ERANGE || __builtin_mul_overflow((int64_t)v, unit, &scaled))
        return fail_overflow(row, text[0] == '-', label, err);
    *out = scaled;
    return true;
}

static bool read_real(const struct option_row *row, const char *text, double *out, const char *label,
                      struct error *err) {
    size_t length = number_length(text, true);
    if (length == 0 || text[length]) return fail_number("a number", text, length, label, err);
    errno = 0;
    double v = strtod(text, NULL);
    if (isinf(v)) return fail_overflow(row, v < 0, label, err);
    if (errno == ERANGE) return fail(err, "%s: too close to zero for a double", label);
    *out = v;
    return true;
}

/* The units of OPTION_TIME, the largest first. */
static const struct {
    char letter;
    double seconds;
} time_units[] = {{'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}};

/* "7h", "1.5d", "1h30m": numbers with units, which add up. */
static bool read_time(const char *text, double *out, const char *label, struct error *err) {
    static const char kind[] = "a time such as 90s, 30m, 7h, 2d or 1h30m";
    const char *p = text;
    *out = 0;
    do {
        size_t length = number_length(p, true), unit = 0;
        while (unit < ARRAY_LENGTH(time_units) && time_units[unit].letter != p[length]) unit++;
        if (!length || unit == ARRAY_LENGTH(time_units)) return fail(err, "%s: not %s", label, kind);
        *out += strtod(p, NULL) * time_units[unit].seconds;
        p += length + 1;
    } while (*p);
    return (*out > 0 && *out < 1e10) || fail(err, "%s: must be above 0, and below 300 years", label);
}

static bool read_word(const struct option_row *row, const char *text, int64_t *out, const char *label,
                      struct error *err) {
    char list[512] = "", copies[32][WORD_MAX + 1];
    const char *names[32];
    int count = 0;
    size_t used = 0, n;
    const char *w;
    for (int i = 0; (w = word_at(row->words, i, &n)); i++) {
        if (n == strlen(text) && memcmp(w, text, n) == 0) {
            *out = i;
            return true;
        }
    }
    for (; count < 32 && (w = word_at(row->words, count, &n)); count++) {
        snprintf(copies[count], sizeof copies[count], "%.*s", (int)n, w);
        names[count] = copies[count];
        if (used < sizeof list)
            used +=
                (size_t)snprintf(list + used, sizeof list - used, "%s%s", count ? ", " : "", copies[count]);
    }
    int near = nearest_word(text, names, count);
    return fail(err, "%s: must be one of %s%s%s%s", label, list, near < 0 ? "" : "; did you mean ",
                near < 0 ? "" : names[near], near < 0 ? "" : "?");
}

/* A number that the program chooses, unless it is given. */
static bool may_be_automatic(const struct option_row *row) {
    return (is_integer_type(row->type) || row->type == OPTION_REAL) && row->initial &&
           strcmp(row->initial, "auto") == 0;
}

/* What stands for "auto". */
static int automatic_number(const struct option_row *row) { return row->min < 0 ? -1 : 0; }

bool option_value_from_text(const struct option_row *row, const char *text, union option_value *out,
                            const char *label, struct error *err) {
    if (may_be_automatic(row) && strcmp(text, "auto") == 0) {
        int number = automatic_number(row);
        *out =
            row->type == OPTION_REAL ? (union option_value){.d = number} : (union option_value){.i = number};
        return true;
    }
    switch (row->type) {
    case OPTION_INT:
    case OPTION_SIZE:
        return read_integer(row, text, &out->i, label, err) && check_range(row, (double)out->i, label, err);
    case OPTION_REAL:
        return read_real(row, text, &out->d, label, err) && check_range(row, out->d, label, err);
    case OPTION_TIME:
        return read_time(text, &out->d, label, err);
    case OPTION_FLAG:
        out->b = strcmp(text, "true") == 0;
        return out->b || strcmp(text, "false") == 0 || fail(err, "%s: must be true or false", label);
    case OPTION_TEXT:
        out->s = text;
        return text[0] || (row->flags & (OPTION_MAY_BE_EMPTY | OPTION_BARE)) ||
               fail(err, "%s: empty value", label);
    case OPTION_WORD:
        return read_word(row, text, &out->i, label, err);
    }
    return fail(err, "%s: unknown option type %d", label, (int)row->type);
}

const char *option_json_kind(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a truth value";
    case JSON_NULL:
        break;
    }
    return "null";
}

bool option_value_from_json(const struct option_row *row, const json_t *v, union option_value *out,
                            const char *label, struct error *err) {
    static const char *const expected[] = {"an integer",    "an integer or a string such as \"64k\"",
                                           "a number",      "a string such as \"90m\"",
                                           "true or false", "a string",
                                           "a string"};
    double d = json_number_value(v);
    if (may_be_automatic(row) && json_is_string(v) && strcmp(json_string_value(v), "auto") == 0)
        return option_value_from_text(row, "auto", out, label, err);
    switch (row->type) {
    case OPTION_INT:
    case OPTION_SIZE:
        if (row->type == OPTION_SIZE && json_is_string(v))
            return option_value_from_text(row, json_string_value(v), out, label, err);
        if (json_is_integer(v) || (json_is_real(v) && d == floor(d) && fabs(d) <= 9007199254740992.0)) {
            out->i = json_is_integer(v) ? json_integer_value(v) : (int64_t)d;
            return check_range(row, (double)out->i, label, err);
        }
        break;
    case OPTION_REAL:
        out->d = d;
        if (json_is_number(v)) return check_range(row, d, label, err);
        break;
    case OPTION_TIME:
        out->d = 0;
        if (json_is_null(v)) return true;
        if (json_is_string(v)) return option_value_from_text(row, json_string_value(v), out, label, err);
        break;
    case OPTION_FLAG:
        out->b = json_is_true(v);
        if (json_is_boolean(v)) return true;
        break;
    case OPTION_TEXT:
        out->s = NULL;
        if (json_is_null(v)) return true;
        /* fall through */
    case OPTION_WORD:
        if (row->flags & OPTION_SWITCH && json_is_boolean(v))
            return option_value_from_text(row, json_is_true(v) ? "on" : "off", out, label, err);
        if (json_is_string(v)) return option_value_from_text(row, json_string_value(v), out, label, err);
        break;
    }
    return fail(err, "%s: must be %s, found %s", label, expected[row->type], option_json_kind(v));
}

/* --- writing values --- */

void option_value_load(const struct option_row *row, const void *field, union option_value *v) {
    int word;
    switch (row->type) {
    case OPTION_INT:
    case OPTION_SIZE:
        memcpy(&v->i, field, sizeof v->i);
        break;
    case OPTION_REAL:
    case OPTION_TIME:
        memcpy(&v->d, field, sizeof v->d);
        break;
    case OPTION_FLAG:
        memcpy(&v->b, field, sizeof v->b);
        break;
    case OPTION_TEXT:
        memcpy(&v->s, field, sizeof v->s);
        break;
    case OPTION_WORD:
        memcpy(&word, field, sizeof word);
        v->i = word;
        break;
    }
}

void option_value_store(const struct option_row *row, void *field, const union option_value *v) {
    int word;
    switch (row->type) {
    case OPTION_INT:
    case OPTION_SIZE:
        memcpy(field, &v->i, sizeof v->i);
        break;
    case OPTION_REAL:
    case OPTION_TIME:
        memcpy(field, &v->d, sizeof v->d);
        break;
    case OPTION_FLAG:
        memcpy(field, &v->b, sizeof v->b);
        break;
    case OPTION_TEXT:
        memcpy(field, &v->s, sizeof v->s);
        break;
    case OPTION_WORD:
        word = (int)v->i;
        memcpy(field, &word, sizeof word);
        break;
    }
}

/* Digits that read back as the same double. */
static char *real_text(double v) {
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    return xstrdup(text);
}

/* In the largest unit that takes a whole number. */
static char *time_text(double v) {
    size_t unit = 0;
    while (unit + 1 < ARRAY_LENGTH(time_units) && fmod(v, time_units[unit].seconds) != 0) unit++;
    char *number = real_text(v / time_units[unit].seconds);
    char *text = v > 0 ? xasprintf("%s%c", number, time_units[unit].letter) : xstrdup("(none)");
    free(number);
    return text;
}

json_t *option_value_to_json(const struct option_row *row, const union option_value *v) {
    size_t length;
    const char *word;
    char *text;
    json_t *json;
    switch (row->type) {
    case OPTION_INT:
    case OPTION_SIZE:
        return json_integer(v->i);
    case OPTION_REAL:
        return isfinite(v->d) ? json_real(v->d) : json_null();
    case OPTION_TIME:
        if (!(v->d > 0)) return json_null();
        text = time_text(v->d);
        json = json_string(text);
        free(text);
        return json;
    case OPTION_FLAG:
        return json_boolean(v->b);
    case OPTION_TEXT:
        return v->s ? json_string(v->s) : json_null();
    case OPTION_WORD:
        break;
    }
    word = v->i >= 0 ? word_at(row->words, (int)v->i, &length) : NULL;
    return word ? json_stringn(word, length) : NULL;
}

static char *size_text(int64_t v) {
    int unit = 0;
    while (v != 0 && v % 1024 == 0 && unit < 4) {
        v /= 1024;
        unit++;
    }
    const char *const suffix[] = {"", "k", "M", "G", "T"};
    return xasprintf("%lld%s", (long long)v, suffix[unit]);
}

bool option_value_is_auto(const struct option_row *row, const union option_value *v) {
    double number = row->type == OPTION_REAL ? v->d : (double)v->i;
    return may_be_automatic(row) && number == automatic_number(row);
}

char *option_value_to_text(const struct option_row *row, const union option_value *v) {
    size_t length;
    const char *word;
    if (option_value_is_auto(row, v)) return xstrdup("auto");
    switch (row->type) {
    case OPTION_INT:
        return xasprintf("%lld", (long long)v->i);
    case OPTION_SIZE:
        return size_text(v->i);
    case OPTION_REAL:
        return real_text(v->d);
    case OPTION_TIME:
        return time_text(v->d);
    case OPTION_FLAG:
        return xstrdup(v->b ? "true" : "false");
    case OPTION_TEXT:
        return xstrdup(v->s ? v->s : "(none)");
    case OPTION_WORD:
        break;
    }
    word = v->i >= 0 ? word_at(row->words, (int)v->i, &length) : NULL;
    return word ? xasprintf("%.*s", (int)length, word) : xasprintf("(word %lld)", (long long)v->i);
}
