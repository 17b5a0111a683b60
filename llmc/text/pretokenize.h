/* Pre-tokenization: cutting text into the words inside which BPE merges. Several stages may follow each
 * other; each cuts the words of the stage before. */
#ifndef LLMC_PRETOKENIZE_H
#define LLMC_PRETOKENIZE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum pretok_kind {
    PRETOK_GPT2,
    PRETOK_LLAMA3, /* also GPT-4's cl100k: up to three digits */
    PRETOK_QWEN2,  /* the same with single digits */
    PRETOK_DIGIT,  /* every number character alone */
    PRETOK_DIGITS, /* runs of number characters */
    PRETOK_REGEX
};

#define PRETOK_MAX_STAGES 8
struct pretok_stage {
    enum pretok_kind kind;
    bool drop_gaps;    /* PRETOK_REGEX: text between matches is dropped; otherwise it is a word */
    void *regex;       /* PRETOK_REGEX: pcre2_code, owned */
    void *common;      /* the same for a text without characters of pcre2_unicode_difference(), or NULL */
    bool drop_invalid; /* PRETOK_REGEX: with drop_gaps, whether a byte that is not UTF-8 is dropped too */
    char *pattern;     /* PRETOK_REGEX: its source, owned */
};
struct pretokenizer {
    int stages; /* 0: the whole text is one word */
    struct pretok_stage stage[PRETOK_MAX_STAGES];
};

/* Calls each(arg, word, size) for the words of the text in order. False if PCRE2 gives up (matching
 * limit). */
typedef void pretok_each(void *arg, const uint8_t *word, int64_t size);
bool pretokenize(const struct pretokenizer *pre, const uint8_t *text, int64_t size, pretok_each *each,
                 void *arg);

bool pretokenizer_add(struct pretokenizer *pre, enum pretok_kind kind, struct error *err);
/* Appends a stage for a Split pattern: a scanner if the pattern is a known one, else PCRE2. If it fails,
 * `pre` is good for nothing but pretokenizer_free(). */
bool pretokenizer_add_pattern(struct pretokenizer *pre, const char *pattern, bool drop_gaps,
                              struct error *err);
void pretokenizer_free(struct pretokenizer *pre);

/* The first position >= from where a cut leaves the words of both parts as they are in the whole; size if
 * there is none, or none is known for these stages. */
int64_t pretokenize_safe_cut(const struct pretokenizer *pre, const char *text, int64_t size, int64_t from);

/* The start of the white space that ends at p (not before `begin`), and the end of the white space that
 * starts at p. */
const uint8_t *pretokenize_space_before(const uint8_t *begin, const uint8_t *p);
const uint8_t *pretokenize_space_after(const uint8_t *p, const uint8_t *end);

/* The source of the three known patterns, for PRETOK_GPT2 .. PRETOK_QWEN2. */
const char *pretok_pattern(enum pretok_kind kind);

#ifdef __cplusplus
}
#endif
#endif
