/* Cuts text into words, as a tokenizer's regular expressions do. The patterns of GPT-2, Llama-3 and Qwen2
 * are scanners written by hand, which are much faster than a regular expression: their alternatives start
 * with different classes of characters, so the first one or two characters decide, and only white space has
 * to look beyond its own run. Any other pattern runs in PCRE2. */
#include "llmc/text/pretokenize.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "llmc/base/utf8.h"
#include "llmc/text/code_set.h"
#include "llmc/text/pcre2_class.h"
#include "llmc/text/split_pattern.h"

/* --- character classes --- */

enum char_class { OTHER, LETTER, NUMBER, SPACE, WIDE /* not ASCII: decode first */ };

static const uint8_t byte_class[256] = {
    ['\t' ... '\r'] = SPACE, [' '] = SPACE,          ['0' ... '9'] = NUMBER,
    ['A' ... 'Z'] = LETTER,  ['a' ... 'z'] = LETTER, [0x80 ... 0xff] = WIDE,
};

static uint64_t class_bits[CODE_POINTS / 32]; /* two bits a code point */

static void fill_class_bits(void) {
    static const char *const names[] = {[LETTER] = "letter", [NUMBER] = "number", [SPACE] = "space"};
    for (uint64_t c = LETTER; c <= SPACE; c++) {
        struct code_set s = {0};
        code_set_add_named(&s, names[c], false);
        for (int i = 0; i < s.count; i += 2)
            for (uint32_t code = s.bound[i]; code < s.bound[i + 1]; code++)
                class_bits[code / 32] |= c << (2 * (code % 32));
        code_set_free(&s);
    }
}

/* The functions of the header that look at characters call it first. */
static void know_classes(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_class_bits);
}

static enum char_class wide_class(const uint8_t *p, const uint8_t *end, int *length) {
    uint32_t code = 0;
    *length = utf8_decode(p, end, &code);
    if (*length == 0) {
        *length = 1;
        return OTHER;
    }
    return (enum char_class)(class_bits[code / 32] >> (2 * (code % 32)) & 3);
}

static inline enum char_class class_at(const uint8_t *p, const uint8_t *end, int *length) {
    enum char_class c = (enum char_class)byte_class[*p];
    *length = 1;
    return c == WIDE ? wide_class(p, end, length) : c;
}

static inline const uint8_t *skip_class(const uint8_t *p, const uint8_t *end, enum char_class want) {
    while (p < end) {
        int length;
        if (class_at(p, end, &length) != want) break;
        p += length;
    }
    return p;
}

/* --- the three scanners --- */

/* Length of 's 't 'm 'd 're 've 'll at p, or 0. Unicode folds U+017F (long s) to s, so it counts when case
 * is ignored. */
static int contraction(const uint8_t *p, const uint8_t *end, bool ignore_case) {
    if (*p != '\'' || end - p < 2) return 0;
    uint8_t a = p[1], b = end - p > 2 ? p[2] : 0;
    if (ignore_case) {
        if (a == 0xc5 && b == 0xbf) return 3;
        if (a >= 'A' && a <= 'Z') a |= 0x20;
        if (b >= 'A' && b <= 'Z') b |= 0x20;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return 0;
}

/* \s+(?!\S)|\s+ : a run of several white-space characters leaves the last one to the word that follows.
 * `next` is past the first character. The last alternative of all patterns. */
static const uint8_t *space_run(const uint8_t *p, const uint8_t *next, const uint8_t *end) {
    const uint8_t *last = p;
    int length;
    while (next < end && class_at(next, end, &length) == SPACE) {
        last = next;
        next += length;
    }
    return next == end || last == p ? next : last;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static inline const uint8_t *scan_gpt2(const uint8_t *p, const uint8_t *end) {
    int length, short_form = contraction(p, end, false);
    if (short_form) return p + short_form;
    enum char_class c = class_at(p, end, &length);
    const uint8_t *next = p + length;
    if (c != SPACE) return skip_class(next, end, c);
    if (*p == ' ' && next < end) {
        enum char_class d = class_at(next, end, &length);
        if (d != SPACE) return skip_class(next + length, end, d);
    }
    return space_run(p, next, end);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}| ?[^\s\p{L}\p{N}]+[\r\n]*
 * |\s*[\r\n]+|\s+(?!\S)|\s+ */
static inline const uint8_t *scan_llama(const uint8_t *p, const uint8_t *end, int max_digits) {
    int length, short_form = contraction(p, end, true);
    if (short_form) return p + short_form;
    enum char_class c = class_at(p, end, &length);
    const uint8_t *next = p + length;
    if (c == LETTER) return skip_class(next, end, LETTER);
    if (c == NUMBER) {
        for (int i = 1; i < max_digits && next < end && class_at(next, end, &length) == NUMBER; i++)
            next += length;
        return next;
    }
    bool newline = *p == '\r' || *p == '\n';
    enum char_class d = next < end ? class_at(next, end, &length) : SPACE;
    if (d == LETTER && !newline) return skip_class(next + length, end, LETTER);
    if (c == OTHER || (*p == ' ' && d == OTHER)) {
        next = skip_class(next, end, OTHER);
        while (next < end && (*next == '\r' || *next == '\n')) next++;
        return next;
    }
    const uint8_t *run_end = skip_class(next, end, SPACE), *q = run_end;
    while (q > p && q[-1] != '\r' && q[-1] != '\n') q--;
    return q > p ? q : space_run(p, next, end);
}

static inline const uint8_t *scan_digits(const uint8_t *p, const uint8_t *end, bool single) {
    int length;
    enum char_class c = class_at(p, end, &length);
    p += length;
    if (c == NUMBER) return single ? p : skip_class(p, end, NUMBER);
    while (p < end && class_at(p, end, &length) != NUMBER) p += length;
    return p;
}

static inline const uint8_t *scan(enum pretok_kind kind, const uint8_t *p, const uint8_t *end) {
    switch (kind) {
    case PRETOK_GPT2:
        return scan_gpt2(p, end);
    case PRETOK_LLAMA3:
        return scan_llama(p, end, 3);
    case PRETOK_QWEN2:
        return scan_llama(p, end, 1);
    case PRETOK_DIGIT:
        return scan_digits(p, end, true);
    case PRETOK_DIGITS:
        return scan_digits(p, end, false);
    case PRETOK_REGEX:
        break;
    }
    die("pretokenize: no scanner for kind %d", (int)kind);
}

/* Cuts before a space that follows a visible ASCII character. No published pattern continues a word with
 * such a space, and the part before does not end in white space, so no look-ahead crosses the cut. */
int64_t pretokenize_safe_cut(const struct pretokenizer *pre, const char *text, int64_t size, int64_t from) {
    if (pre->stages != 1 || pre->stage[0].kind > PRETOK_QWEN2) return size;
    for (int64_t i = max_i64(from, 1); i < size; i++)
        if (text[i] == ' ' && text[i - 1] > ' ' && text[i - 1] < 0x7f) return i;
    return size;
}

const uint8_t *pretokenize_space_after(const uint8_t *p, const uint8_t *end) {
    know_classes();
    return skip_class(p, end, SPACE);
}

const uint8_t *pretokenize_space_before(const uint8_t *begin, const uint8_t *p) {
    know_classes();
    while (p > begin) {
        const uint8_t *q = p - 1;
        while (q > begin && p - q < 4 && utf8_is_continuation(*q)) q--;
        int length;
        if (class_at(q, p, &length) != SPACE || q + length != p) break;
        p = q;
    }
    return p;
}

/* --- the PCRE2 stage --- */

struct run {
    const struct pretokenizer *pre;
    pretok_each *each;
    void *arg;
};
static bool run_stage(const struct run *r, int stage, const uint8_t *p, const uint8_t *end);

/* p..end is valid UTF-8. `regex` is that of the stage, or its common one. */
static bool run_regex(const struct run *r, int stage, const pcre2_code *regex, const uint8_t *p,
                      const uint8_t *end) {
    const struct pretok_stage *s = &r->pre->stage[stage];
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    check(match, "out of host memory");
    const PCRE2_SIZE size = (PCRE2_SIZE)(end - p), *at = pcre2_get_ovector_pointer(match);
    PCRE2_SIZE done = 0, from = 0; /* the end of the last match, and where the next search begins */
    uint32_t options = PCRE2_NO_UTF_CHECK;
    bool ok = true, found = false;
    while (ok && done < size) {
        int rc = pcre2_match(regex, p, size, from, options, match, NULL);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !(options & PCRE2_NO_JIT)) {
            options |= PCRE2_NO_JIT;
            continue;
        }
        ok = rc >= 0 || rc == PCRE2_ERROR_NOMATCH;
        PCRE2_SIZE first = rc >= 0 ? at[0] : size, last = rc >= 0 ? at[1] : size;
        if (rc >= 0 && first == last && found && last == done) {
            /* An empty match at the end of the last one does not count. Elsewhere it cuts the text. */
            for (from++; from < size && utf8_is_continuation(p[from]);) from++;
            continue;
        }
        if (ok && first > done && !s->drop_gaps) ok = run_stage(r, stage + 1, p + done, p + first);
        if (ok && last > first) ok = run_stage(r, stage + 1, p + first, p + last);
        found = true;
        done = from = last;
    }
    pcre2_match_data_free(match);
    return ok;
}

/* PCRE2 gets only valid UTF-8: an invalid byte ends the text for it, and becomes a word of its own or is
 * dropped. */
static bool run_regex_on_bytes(const struct run *r, int stage, const uint8_t *p, const uint8_t *end) {
    const struct pretok_stage *s = &r->pre->stage[stage];
    const struct code_set *uncommon = s->common ? pcre2_unicode_difference() : NULL;
    while (p < end) {
        const uint8_t *q = p;
        uint32_t code = 0;
        bool common = uncommon != NULL;
        for (int n = 1; q < end && n; q += n) {
            n = utf8_decode(q, end, &code);
            if (common && n > 1 && code_set_has(uncommon, code)) common = false;
        }
        const pcre2_code *regex = (const pcre2_code *)(common ? s->common : s->regex);
        if (q > p && !run_regex(r, stage, regex, p, q)) return false;
        if (q < end && !s->drop_invalid && !run_stage(r, stage + 1, q, q + 1)) return false;
        p = q < end ? q + 1 : q;
    }
    return true;
}

/* --- running stages --- */

static bool run_stage(const struct run *r, int stage, const uint8_t *p, const uint8_t *end) {
    if (stage == r->pre->stages) {
        r->each(r->arg, p, end - p);
        return true;
    }
    enum pretok_kind kind = r->pre->stage[stage].kind;
    if (kind == PRETOK_REGEX) return run_regex_on_bytes(r, stage, p, end);
    if (kind == PRETOK_GPT2 && stage + 1 == r->pre->stages) { /* the common case, as one tight loop */
        while (p < end) {
            const uint8_t *next = scan_gpt2(p, end);
            r->each(r->arg, p, next - p);
            p = next;
        }
        return true;
    }
    while (p < end) {
        const uint8_t *next = scan(kind, p, end);
        if (!run_stage(r, stage + 1, p, next)) return false;
        p = next;
    }
    return true;
}

bool pretokenize(const struct pretokenizer *pre, const uint8_t *text, int64_t size, pretok_each *each,
                 void *arg) {
    struct run r = {pre, each, arg};
    know_classes();
    return size <= 0 || run_stage(&r, 0, text, text + size);
}

/* --- setting up --- */

const char *pretok_pattern(enum pretok_kind kind) {
    switch (kind) {
    case PRETOK_GPT2:
        return "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    case PRETOK_LLAMA3:
        return "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
               "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    case PRETOK_QWEN2:
        return "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
               "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    default:
        return NULL;
    }
}

bool pretokenizer_add(struct pretokenizer *pre, enum pretok_kind kind, struct error *err) {
    if (pre->stages == PRETOK_MAX_STAGES)
        return fail(err, "pre_tokenizer: more than %d stages in a Sequence", PRETOK_MAX_STAGES);
    pre->stage[pre->stages++] = (struct pretok_stage){.kind = kind};
    return true;
}

/* Whether a pattern matches a character that is no letter, number or space. A byte that is not UTF-8 counts
 * as such a character; a private-use one stands for it here. */
static bool matches_other(const pcre2_code *regex) {
    static const char other[] = "\xee\x82\x80"; /* U+E080 */
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    check(match, "out of host memory");
    int rc = pcre2_match(regex, (PCRE2_SPTR)other, 3, 0, PCRE2_NOTEMPTY, match, NULL);
    pcre2_match_data_free(match);
    return rc >= 0;
}

static pcre2_code *compile(const char *translated, const char *pattern, struct error *err) {
    int code;
    PCRE2_SIZE offset;
    pcre2_code *regex = pcre2_compile((PCRE2_SPTR)translated, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                      &code, &offset, NULL);
    if (regex) {
        pcre2_jit_compile(regex, PCRE2_JIT_COMPLETE);
    } else {
        PCRE2_UCHAR reason[256];
        pcre2_get_error_message(code, reason, sizeof reason);
        fail(err, "pre_tokenizer: Split pattern not understood: %s: %.200s", (const char *)reason, pattern);
    }
    return regex;
}

bool pretokenizer_add_pattern(struct pretokenizer *pre, const char *pattern, bool drop_gaps,
                              struct error *err) {
    /* How GPT-4 spells the Llama-3 pattern: possessive quantifiers change the speed, not the matches. */
    static const char cl100k[] =
        "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*"
        "|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+";
    for (int kind = PRETOK_GPT2; kind <= PRETOK_QWEN2; kind++)
        if (!strcmp(pattern, pretok_pattern((enum pretok_kind)kind)))
            return pretokenizer_add(pre, (enum pretok_kind)kind, err);
    if (!strcmp(pattern, cl100k)) return pretokenizer_add(pre, PRETOK_LLAMA3, err);

    if (!pretokenizer_add(pre, PRETOK_REGEX, err)) return false;
    struct pretok_stage *s = &pre->stage[pre->stages - 1];
    s->drop_gaps = drop_gaps;
    s->pattern = xstrdup(pattern);
    char *exact = split_pattern_for_pcre2(pattern, false, err);
    if (!exact || !(s->regex = compile(exact, pattern, err))) return free(exact), false;
    char *common = split_pattern_for_pcre2(pattern, true, err);
    bool ok = !strcmp(common, exact) || (s->common = compile(common, pattern, err));
    free(common);
    free(exact);
    s->drop_invalid = drop_gaps && !matches_other((const pcre2_code *)s->regex);
    return ok;
}

void pretokenizer_free(struct pretokenizer *pre) {
    for (int i = 0; i < pre->stages; i++) {
        pcre2_code_free((pcre2_code *)pre->stage[i].regex); /* which may be NULL */
        pcre2_code_free((pcre2_code *)pre->stage[i].common);
        free(pre->stage[i].pattern);
    }
    pre->stages = 0;
}
