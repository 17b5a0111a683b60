/* Chapter 10. Attention tile by tile: r is what one query has so far, and n further keys arrive, with their
 * scores and their values (value s begins at v + s*stride and has HS numbers). Afterwards
 *     r->max     is the largest score of all keys so far,
 *     r->sum     is the sum of exp(score - r->max) over them,
 *     r->out[i]  is the sum of exp(score - r->max) * value[i].
 * When the maximum grows, what was summed before has to shrink by exp(old maximum - new maximum). */
#include "dev/learn/learn.h"

static void take_tile(struct online *r, const float *score, const float *v, int64_t stride, int64_t n,
                      int64_t HS) {
    /* your lines */
}

const struct exercise exercise = {
    .chapter = 10,
    .done = false, /* set this to true when the function is written */
    .take_tile = take_tile,
};
