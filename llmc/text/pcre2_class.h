/* Sets of code points as classes in patterns for PCRE2. */
#ifndef LLMC_PCRE2_CLASS_H
#define LLMC_PCRE2_CLASS_H

#include "llmc/text/code_set.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the linked PCRE2 knows about Unicode. Asking it takes some milliseconds. */
struct pcre2_unicode;
void pcre2_unicode_close(struct pcre2_unicode *u); /* u may be NULL */

/* A pattern that matches the characters of the set. It can have a quantifier. The caller frees. *u is
 * opened when it is needed; it begins as NULL. */
char *pcre2_class(struct pcre2_unicode **u, const struct code_set *s);

#ifdef __cplusplus
}
#endif
#endif
