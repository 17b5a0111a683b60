/* Unicode normalization, which the tokenizers of Qwen need. */
#ifndef LLMC_NORMALIZE_H
#define LLMC_NORMALIZE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Normalization Form C (Unicode Standard Annex 15) of text..text+size, as Hugging Face's normalizer
 * computes it. Returns memory that the caller frees, and its size; NULL if the text is in this form
 * already. Bytes that are not valid UTF-8 stay as they are, and nothing composes across them. Linear time
 * for any text. */
uint8_t *normalize_nfc(const uint8_t *text, int64_t size, int64_t *out_size);

#ifdef __cplusplus
}
#endif
#endif
