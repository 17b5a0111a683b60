/* Whether all processes of a run want the same: every rank states facts (its options, its data, its model),
 * and the first one that differs from rank 0's is named: "rank 2 (node7): --learning-rate is 0.001, rank 0
 * has 0.0003". */
#ifndef LLMC_AGREE_H
#define LLMC_AGREE_H

#include "llmc/process/group.h"
#include "llmc/base/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Start from {0}. The facts are a text: name, NUL, value, NUL, ... */
struct agree {
    char *facts;
    int64_t size;
};
void agree_add(struct agree *a, const char *name, const char *fmt, ...) LLMC_PRINTF(3, 4);
/* Every option's value now, except those in `but` ("a|b|c"). */
void agree_add_options(struct agree *a, const struct options *o, const char *but);
void agree_free(struct agree *a);

/* Compares with rank 0's: whether this rank's are the same, else the first difference. All ranks call it, and
 * then group_agree(), which puts the rank in front. */
bool agree_with_rank_0(const struct agree *a, struct group *g, struct error *err);

/* The comparison itself: what `mine` states first that `zero`, rank 0's, states differently. */
bool agree_compare(const struct agree *mine, const struct agree *zero, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
