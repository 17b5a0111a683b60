/* How fast rotary positions turn. The operation rope (ops.h) follows such a rule; every back end takes the
 * frequencies from here.
 *
 * Pair i of a head turns by f(i) = theta^(-2i/HS) radians a token (Su et al. 2021, arXiv 2104.09864). A model
 * that was trained with L tokens reads longer texts after its frequencies are divided by a factor: all of
 * them (linear: Chen et al. 2023, arXiv 2306.15595), or only those whose turns are long beside L, with a
 * ramp between the two kinds (Llama 3.1: Grattafiori et al. 2024, arXiv 2407.21783; the formula is that of
 * its code). */
#ifndef LLMC_ROPE_RULE_H
#define LLMC_ROPE_RULE_H

#include "llmc/base/rng.h"

#include <math.h>

#ifdef __cplusplus
extern "C" {
#endif

/* All zero but theta: no scaling. */
struct rope_rule {
    float theta;     /* >= 1; 10000 in the paper */
    float factor;    /* >= 1: the frequencies are divided by it; 0: by nothing */
    float original;  /* L > 0: Llama 3.1's rule; 0: every frequency is divided */
    float low, high; /* pairs that turn at most `low` times in L tokens are divided, those that turn at least
                        `high` times are not; 0 < low < high */
};

/* Radians a token of pair i in [0, HS/2). */
static inline LLMC_HD double rope_frequency(struct rope_rule r, int64_t i, int64_t HS) {
    double f = pow((double)r.theta, -2.0 * (double)i / (double)HS);
    if (r.factor == 0.0f) return f;
    if (r.original == 0.0f) return f / (double)r.factor;
    double turns = (double)r.original * f / 6.283185307179586;
    double kept = (turns - (double)r.low) / ((double)r.high - (double)r.low);
    kept = kept < 0.0 ? 0.0 : kept > 1.0 ? 1.0 : kept;
    return f * (kept + (1.0 - kept) / (double)r.factor);
}

#ifdef __cplusplus
}
#endif
#endif
