/* Sets of code points as classes in patterns for PCRE2. */
#ifndef LLMC_PCRE2_CLASS_H
#define LLMC_PCRE2_CLASS_H

#include "llmc/text/code_set.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A pattern that matches the characters of the set. It can have a quantifier. The caller frees. `common`:
 * a faster one, which may be wrong about the characters of pcre2_unicode_difference(). */
char *pcre2_class(const struct code_set *s, bool common);

/* The characters to which the linked PCRE2 gives another general category than code_set_add_named() does,
 * because it has another version of Unicode. The first call takes about 40 ms. */
const struct code_set *pcre2_unicode_difference(void);

#ifdef __cplusplus
}
#endif
#endif
