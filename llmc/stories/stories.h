/* The default corpus: small English stories from a probabilistic grammar that is written down here.
 *
 * Because the grammar is known, so is the probability of every story: the corpus has an exact entropy, which
 * no model can beat and a correct one comes close to, and what a model writes can be graded. Several sentence
 * forms; names, pronouns and objects agree across sentences; some references only attention can resolve.
 * The grammar is data (stories_grammar.c); stories.c interprets it and stories_grade.c grades with it. */
#ifndef LLMC_STORIES_H
#define LLMC_STORIES_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Story number `index` of the corpus with this seed (without a final newline). The caller frees. Story i
 * depends on (seed, i) alone. */
char *story_make(uint64_t seed, uint64_t index);

/* Natural logarithm of the probability that story_make gives exactly this text; -INFINITY if it never does. A
 * text that several derivations give has the sum of their probabilities. */
double story_log_probability(const char *text, int64_t size);

/* The expected value of -story_log_probability over all stories, in nats per story, computed from the
 * grammar: the floor of any model's loss on a whole story, its end included. */
double story_entropy(void);

/* What a reader who knows the grammar says about a text. It may be anything: broken off, several stories
 * separated by <|endoftext|>, or no story at all. After something that the grammar cannot produce the reader
 * goes on with the next sentence, remembering what was known; a reference to something introduced where
 * nothing could be understood is not counted. A single wrong word costs either its sentence or its reference,
 * and nothing else. */
struct story_grade {
    int sentences;     /* complete sentences found (the part after the last full stop is not counted) */
    int grammatical;   /* of these, sentences that the grammar can produce somewhere */
    int in_place;      /* of these, sentences that may stand at this point of the story */
    int references;    /* pronouns, names and objects that refer back, in grammatical sentences */
    int references_ok; /* of these, right ones: what the grammar would have put in this context */
};
struct story_grade story_grade(const char *text, int64_t size);

#ifdef __cplusplus
}
#endif
#endif
