/* BLEU (Papineni et al. 2002) of a whole set of translations, as sacrebleu computes it by default (Post 2018,
 * arXiv 1804.08771): words as mteval-v13a cuts them, one reference, n-grams of up to four words, exponential
 * smoothing. */
#ifndef LLMC_BLEU_H
#define LLMC_BLEU_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BLEU_ORDER = 4 };
/* Start from {0}. */
struct bleu {
    int64_t correct[BLEU_ORDER],
        total[BLEU_ORDER]; /* n-grams of the translations: in the reference, and all */
    int64_t words, reference_words;
};
/* Counts one translation and its reference. */
void bleu_add(struct bleu *b, const char *translation, const char *reference);
/* 0 to 100. `brevity` and `precision` (BLEU_ORDER, in percent) may be NULL. */
double bleu_score(const struct bleu *b, double *brevity, double *precision);

/* The words of a text by mteval-v13a, with a space between two. The caller frees. */
char *bleu_words(const char *text);

#ifdef __cplusplus
}
#endif
#endif
