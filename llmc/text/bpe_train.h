/* Training a tokenizer on text. */
#ifndef LLMC_BPE_TRAIN_H
#define LLMC_BPE_TRAIN_H

#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Trains on documents with the GPT-2 pre-tokenizer. Ids: 0..255 the bytes in GPT-2's order, then one per
 * merge, then <|endoftext|> as the last. Each step merges the most frequent pair, of equally frequent ones
 * that with the smallest left id, then the smallest right id (so the merges are those of Hugging Face's
 * trainer with min_frequency 2). No pair that occurs only once is merged: with little text
 * tokenizer_vocab_size() may be less than asked. vocab_size counts <|endoftext|> and must be at least 257.
 * The result does not depend on `threads`. */
struct tokenizer *tokenizer_train(const struct text_span *docs, int64_t count, int vocab_size, int threads,
                                  struct error *err);

/* The same in parts, for text that does not fit in memory: memory grows with the distinct words only. */
struct bpe_trainer;
struct bpe_trainer *bpe_trainer_new(void);
void bpe_trainer_add(struct bpe_trainer *b, const struct text_span *docs, int64_t count, int threads);
struct tokenizer *bpe_trainer_finish(struct bpe_trainer *b, int vocab_size, struct error *err);
void bpe_trainer_free(struct bpe_trainer *b);

#ifdef __cplusplus
}
#endif
#endif
