/* A hash table from byte strings to counts, for counting the words of a text. */
#ifndef LLMC_BPE_WORDS_H
#define LLMC_BPE_WORDS_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A word in the pool, at a multiple of 8 bytes. */
struct word {
    int64_t count;
    uint32_t size;
    uint8_t bytes[]; /* (size) */
};
struct word_slot {
    uint32_t hash;
    uint32_t at; /* offset in the pool / 8; 0: empty */
};
/* Start from {0}. */
struct word_table {
    struct word_slot *slots;
    uint64_t mask; /* 0 before the first word */
    int64_t count;
    uint8_t *pool;
    int64_t used, capacity; /* of the pool; it starts with 8 unused bytes */
};

/* Adds `count` occurrences of a word; `hash` is any function of its bytes. */
void word_table_add(struct word_table *t, const uint8_t *word, uint32_t size, uint32_t hash, int64_t count);
/* Iterates over the words in order of insertion. Start from NULL; NULL at the end. */
const struct word *word_table_next(const struct word_table *t, const struct word *w);
/* Back to {0}. */
void word_table_free(struct word_table *t);

#ifdef __cplusplus
}
#endif
#endif
