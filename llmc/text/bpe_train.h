/* Training a tokenizer on text. */
#ifndef LLMC_BPE_TRAIN_H
#define LLMC_BPE_TRAIN_H

#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Trains on documents with the GPT-2 pre-tokenizer. Ids: 0..255 are the bytes in GPT-2's order, then one
 * per merge, then <|endoftext|>. Each step merges the most frequent pair; ties go to the smallest left id,
 * then the smallest right id, as in Hugging Face's trainer with min_frequency 2. A pair that occurs once is
 * never merged, so a small text may give fewer tokens than asked. `vocab_size` counts <|endoftext|> and is
 * at least 257. The result does not depend on `threads`. */
struct tokenizer *tokenizer_train(const struct text_span *docs, int64_t count, int vocab_size, int threads,
                                  struct error *err);

/* The same in parts, for text that does not fit in memory: memory grows only with the distinct words. */
struct bpe_trainer;
struct bpe_trainer *bpe_trainer_new(void);
void bpe_trainer_add(struct bpe_trainer *b, const struct text_span *docs, int64_t count, int threads);
struct tokenizer *bpe_trainer_finish(struct bpe_trainer *b, int vocab_size, struct error *err);
void bpe_trainer_free(struct bpe_trainer *b);

#ifdef __cplusplus
}
#endif
#endif
