/* The notation of a grammar, and the functions that work on any grammar. Internal to llmc/stories and its
 * tests.
 *
 * A story is a path through beats. A beat has weighted lines. A line is one sentence, or none, and the beat
 * that follows. While a line is written, choices are stored in registers, which are named by letters; later
 * lines refer to them. So what may follow depends only on the beat and the registers, and the probability
 * of a text is a product of the weights of the choices that spell it.
 *
 * In a line, letters outside braces stand for themselves. Braces mean:
 *
 *   {happy}        a phrase, one of several with weights, or an entry of a list, each equally likely
 *   {h=person}     an entry of a list, stored in h; its first column is written
 *   {t=toy.play}   the same, but another column is written
 *   {f=person!h}   the same, but not the entry in h; "!ab" excludes two; also {person!h}
 *   {h}            the entry in h: its first column
 *   {h.him}        another column of it
 *   {h.He}         a column with a capital letter: the column "he", first letter capitalised
 *   {n-m}          the number that is the difference of two (row i of their table is the number i + 1)
 *   {w:h}          writes nothing; copies h to w
 *
 * {h}, {h.him}, {h.He} and {n-m} are what a grade counts as references. A line of a beat ends in . ! or ?,
 * and has none of these before a space. */
#ifndef LLMC_STORIES_GRAMMAR_H
#define LLMC_STORIES_GRAMMAR_H

#include "llmc/stories/stories.h"

#ifdef __cplusplus
extern "C" {
#endif

#define STORY_REGISTERS 26
#define STORY_MAX_ROWS  32 /* a set of rows is a bit mask */
#define STORY_START     0  /* the first beat */
#define STORY_END       (-1)

struct story_table {
    const char *columns;     /* "name|he|him" */
    const char *const *rows; /* "Anna|she|her" */
    int count;
};
/* Rows [first, first + count) of a table. */
struct story_list {
    const char *name;
    int table, first, count;
};
struct story_line {
    int weight;
    const char *text;
    int next; /* beat; unused in phrases */
};
struct story_choice { /* a beat or a phrase */
    const char *name;
    const struct story_line *lines;
    int count;
};
struct story_grammar {
    const struct story_table *tables;
    const struct story_list *lists;
    int list_count;
    const struct story_choice *phrases;
    int phrase_count;
    const struct story_choice *beats;
    int beat_count;
    const int8_t
        *register_table; /* (STORY_REGISTERS) 1 + table of each register, by letter; 0: there is none */
};
extern const struct story_grammar story_grammar;

/* --- items of a line --- */

enum story_item_kind { ITEM_END, ITEM_TEXT, ITEM_PHRASE, ITEM_CHOOSE, ITEM_REFER, ITEM_MINUS, ITEM_COPY };

struct story_item {
    enum story_item_kind kind;
    int reg;                           /* CHOOSE (-1: not remembered), REFER, MINUS, COPY: register, 0 = a */
    int other;                         /* MINUS, COPY: the second register */
    const char *text;                  /* TEXT */
    int size;                          /* TEXT */
    const struct story_choice *phrase; /* PHRASE */
    const struct story_table *table;   /* CHOOSE, REFER, MINUS */
    int first, count;                  /* CHOOSE: rows of the table */
    int column;                        /* CHOOSE, REFER */
    bool capital;                      /* CHOOSE, REFER */
    const char *exclude;               /* CHOOSE: register letters, ends at '}' or '.' */
};
/* Reads the item at *at and moves *at behind it. A faulty grammar ends the process. */
struct story_item story_item_next(const struct story_grammar *g, const char **at);
static inline bool story_excludes_next(const char **exclude, int *reg) {
    if (**exclude < 'a' || **exclude > 'z') return false;
    *reg = *(*exclude)++ - 'a';
    return true;
}
int story_total_weight(const struct story_choice *choice);

/* This column of this row, as it stands in the table (item->capital is the caller's to apply). */
const char *story_cell(const struct story_item *item, int row, int *size);
/* Whether the text at p, which ends at `end`, begins with this column of this row; its length, or -1. */
int story_cell_matches(const struct story_item *item, int row, const char *p, const char *end);

/* --- functions over a grammar --- */

/* Where choices come from: an integer in [0, total). */
struct story_source {
    uint32_t (*below)(struct story_source *source, uint32_t total);
};
struct story_trace {
    double log_probability; /* of the choices made */
    int sentences, references;
    /* Called, if not NULL, for each line taken, each reference, and each entry of a list that is chosen;
     * `offset` is the byte where the latter two begin. */
    void (*line)(void *context, const struct story_line *line);
    void (*reference)(void *context, int64_t offset, const struct story_item *item, int row);
    void (*choice)(void *context, int64_t offset, const struct story_item *item, int row);
    void *context;
};
/* A story by the choices of `source`. `trace` may be NULL. The caller frees. */
char *story_generate(const struct story_grammar *g, struct story_source *source, struct story_trace *trace);
/* story_make, with the record of its choices. */
char *story_make_traced(uint64_t seed, uint64_t index, struct story_trace *trace);

double story_grammar_log_probability(const struct story_grammar *g, const char *text, int64_t size);
double story_grammar_entropy(const struct story_grammar *g);
struct story_grade story_grammar_grade(const struct story_grammar *g, const char *text, int64_t size);

#ifdef __cplusplus
}
#endif
#endif
