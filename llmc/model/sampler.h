/* Choosing a token from logits. */
#ifndef LLMC_SAMPLER_H
#define LLMC_SAMPLER_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sampler_options {
    double temperature; /* 0: always the most probable token */
    int64_t top_k;      /* only among the k most probable; 0: all */
    double
        top_p; /* only among the most probable whose probabilities reach p (Holtzman et al. 2019); 1: all */
    uint64_t seed;
    double min_p; /* only tokens at least this share as probable as the most probable one (Nguyen et al. 2024,
                     arXiv 2407.01082); 0: all */
    double repetition_penalty; /* positive logits of tokens that were seen are divided by it, negative ones
                                  multiplied, before all else (Keskar et al. 2019, arXiv 1909.05858); 0 or 1:
                                  none */
};

/* The token for position `index` of a text: a pure function of the options, the tokens that the sampler has
 * seen, and the arguments (RNG_SAMPLE). `logits` (V). */
struct sampler;
struct sampler *sampler_new(const struct sampler_options *options, int64_t V);
int64_t sampler_pick(struct sampler *s, const float *logits, uint64_t index);
/* Shows it a token of the text, of the prompt or one that was picked. */
void sampler_see(struct sampler *s, int64_t token);
void sampler_free(struct sampler *s);

/* log(sum of exp(logits)) over the V tokens: a token's log-probability is its logit less this. In double
 * precision, relative to the largest logit, so that nothing overflows. */
double log_sum_exp(const float *logits, int64_t V);

#ifdef __cplusplus
}
#endif
#endif
