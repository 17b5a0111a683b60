/* The regular expressions of a tokenizer.json, which are written for Oniguruma, as patterns for PCRE2. */
#ifndef LLMC_SPLIT_PATTERN_H
#define LLMC_SPLIT_PATTERN_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The pattern for PCRE2 (with PCRE2_UTF and PCRE2_UCP) that matches what `pattern` matches in Oniguruma, as
 * Hugging Face's tokenizers use it. The caller frees. NULL with the reason if it has something that cannot be
 * said in PCRE2, or that is not known to mean the same there. `common`: a faster one, for texts without
 * the characters of pcre2_unicode_difference(); the same if there is no faster one. */
char *split_pattern_for_pcre2(const char *pattern, bool common, struct error *err);

/* The pattern of a text that stands for itself. The caller frees. */
char *split_pattern_of_text(const char *text);

#ifdef __cplusplus
}
#endif
#endif
