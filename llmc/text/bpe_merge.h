/* Merging the bytes of one word into tokens. Internal to llmc/text. */
#ifndef LLMC_BPE_MERGE_H
#define LLMC_BPE_MERGE_H

#include "llmc/text/tokenizer_tables.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SMALL_WORD 48 /* bytes; up to this size scanning all pairs is faster than keeping queues */

/* The tokens of a word of 1 to SMALL_WORD bytes, written to `ids` (room for `size`). Returns their
 * number. */
int bpe_merge_small(const struct tokenizer *t, const uint8_t *word, int size, uint32_t *ids);

/* The same tokens for a word of any size below 2^31, appended to `out`, in O(n log n). *scratch is NULL at
 * first and is kept for the next word. */
struct merge_scratch;
int64_t bpe_merge_large(const struct tokenizer *t, const uint8_t *word, int64_t size,
                        struct token_buffer *out, struct merge_scratch **scratch);
void merge_scratch_free(struct merge_scratch *s);

#ifdef __cplusplus
}
#endif
#endif
