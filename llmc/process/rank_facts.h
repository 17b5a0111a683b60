/* Facts that must be equal on all ranks: options, data, model. Every rank lists its facts and compares them
 * with rank 0's list. The first difference becomes the error message: "rank 2 (node7): --learning-rate is
 * 0.001, rank 0 has 0.0003". */
#ifndef LLMC_RANK_FACTS_H
#define LLMC_RANK_FACTS_H

#include "llmc/process/group.h"
#include "llmc/base/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Start from {0}. The facts are stored as text: name, NUL, value, NUL, ... */
struct rank_facts {
    char *facts;
    int64_t size;
};
void rank_facts_add(struct rank_facts *a, const char *name, const char *fmt, ...) LLMC_PRINTF(3, 4);
/* The current value of every option, except those in `but` ("a|b|c"). */
void rank_facts_add_options(struct rank_facts *a, const struct options *o, const char *but);
void rank_facts_free(struct rank_facts *a);

/* Whether this rank's facts equal rank 0's; if not, err holds the first difference. All ranks call it, then
 * group_agree(), which adds the rank to the message. */
bool rank_facts_equal_rank_0(const struct rank_facts *a, struct group *g, struct error *err);

/* Compares two lists; `zero` is rank 0's. */
bool rank_facts_compare(const struct rank_facts *mine, const struct rank_facts *zero, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
