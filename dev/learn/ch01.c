/* Chapter 1. The tokens of one word, by byte-pair merging (Sennrich et al. 2016, arXiv 1508.07909). At
 * first `ids` has the n bytes of the word as tokens. As long as any two neighbours are the pair of a merge:
 * take the merge that stands first in the list, replace its leftmost pair in `ids` by its id, and close the
 * gap. Returns how many tokens are left. */
#include "dev/learn/learn.h"

static int64_t merge_word(uint32_t *ids, int64_t n, const struct merge *merge, int64_t merges) {
    /* your lines */
    return n;
}

const struct exercise exercise = {
    .chapter = 1,
    .done = false, /* set this to true when the function is written */
    .merge_word = merge_word,
};
