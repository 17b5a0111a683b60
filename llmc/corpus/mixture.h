/* Weighted mixtures of data: 'web/ *.bin:0.7,code/ *.bin:0.3' (without the blanks) takes 7 of 10 samples from
 * the first part.
 *
 * Weights are decimals; divided by their sum and written as fractions they have a common denominator, the
 * period: 7/10 and 3/10 have 10. Each period of samples has exactly its share of every part, spread out by
 * error diffusion: a sample goes to the part that is furthest behind. So which part sample i comes from, and
 * which of the part's samples it is, follows from i alone, and a resumed run, or one with other batches, has
 * the same samples. */
#ifndef LLMC_MIXTURE_H
#define LLMC_MIXTURE_H

#include "llmc/base/base.h"

enum { MIXTURE_PARTS = 256, MIXTURE_PERIOD = 4000000 };

struct mixture {
    int64_t count; /* 0: no mixture */
    char **pattern;
    int64_t *share; /* samples of a period, without a common divisor */
    int64_t period; /* their sum */
    uint8_t *part;  /* (period) of a period's samples */
    int32_t *nth;   /* (period) its number among those of its part */
};

/* Text without a weight at the end of a part, and the path of a file, is no mixture. Fails if a part has no
 * weight, or one that is none, or if the period is too long. Commas in braces divide no parts. */
bool mixture_parse(struct mixture *m, const char *text, struct error *err);
void mixture_free(struct mixture *m);

/* The part that sample `i` comes from; *of_part (or NULL) is how many samples before it come from there. */
int64_t mixture_part(const struct mixture *m, int64_t i, int64_t *of_part);
/* Of the first `samples` samples, those of a part. */
int64_t mixture_taken(const struct mixture *m, int64_t part, int64_t samples);

#endif
