/* Unicode normalisation, which Qwen's tokenizers ask for. */
#ifndef LLMC_NORMALIZE_H
#define LLMC_NORMALIZE_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Normalisation Form C (Unicode Standard Annex 15) of p..p+size: memory that the caller frees, and its size;
 * NULL when it is the text itself. Bytes that are not valid UTF-8 stay as they are. */
uint8_t *normalize_nfc(const uint8_t *p, int64_t size, int64_t *normalized_size);

#ifdef __cplusplus
}
#endif
#endif
