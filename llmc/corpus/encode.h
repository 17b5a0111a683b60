/* Encoding many documents on all cores. */
#ifndef LLMC_ENCODE_H
#define LLMC_ENCODE_H

#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Appends <|endoftext|> and its tokens for each document. Uses OpenMP's number of threads: short documents
 * share a unit of work, long ones are cut where that changes no token. */
bool encode_documents(struct token_buffer *out, const struct tokenizer *t, const struct text_span *docs,
                      int64_t count, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
