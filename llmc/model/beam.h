/* Beam search: of the continuations of a prompt, the most probable that is found by keeping the `width` best
 * beginnings at every length. */
#ifndef LLMC_BEAM_H
#define LLMC_BEAM_H

#include "llmc/model/gpt.h"

#ifdef __cplusplus
extern "C" {
#endif

struct beam_options {
    int64_t width;  /* beginnings that are kept, at least 2; the model needs as many caches (generate.h) */
    int64_t tokens; /* of the longest continuation */
    int64_t V;      /* tokens that can be chosen */
    const int64_t *ends;   /* (end_count) tokens that end a text */
    int64_t end_count;     /* */
    double length_penalty; /* a: scores are log P / ((5 + length) / 6)^a (Wu et al. 2016, arXiv 1609.08144) */
};

/* Writes the continuation, without the token that ends it, to out (tokens) and returns its length; *score is
 * that of the formula, the length with that token. A text has ended if it was among the `width` best when
 * it did; the search ends when no beginning can become better than the best of these. The prompt (count >=
 * 1) and the continuation must fit the model's T. */
int64_t beam_search(struct gpt *gpt, const struct beam_options *o, const uint32_t *prompt, int64_t count,
                    uint32_t *out, double *score);

#ifdef __cplusplus
}
#endif
#endif
