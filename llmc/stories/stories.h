/* The default corpus: small English stories from a probabilistic grammar.
 *
 * Since the grammar is known, so is the probability of every story. The corpus has an exact entropy, which
 * no model can beat and a correct one approaches, and the text that a model writes can be graded. Sentences
 * have several forms; names, pronouns and objects agree across sentences; some references only attention
 * can resolve. The grammar is data (stories_grammar.c); stories.c interprets it and stories_grade.c grades
 * with it. */
#ifndef LLMC_STORIES_H
#define LLMC_STORIES_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Story number `index` of the corpus with this seed, without a final newline. Depends on (seed, index)
 * alone. The caller frees. */
char *story_make(uint64_t seed, uint64_t index);

/* The natural logarithm of the probability that story_make gives exactly this text; -INFINITY if it never
 * does. The probabilities of several derivations of one text add up. */
double story_log_probability(const char *text, int64_t size);

/* The expected value of -story_log_probability over all stories, in nats per story, computed from the
 * grammar. No model's loss on a whole story, its end included, can be lower. */
double story_entropy(void);

/* What a reader who knows the grammar finds in a text. The text may be anything: broken off, several
 * stories with <|endoftext|> between them, or no story at all. After a part that the grammar cannot
 * produce, the reader continues with the next sentence and remembers what it knew; a reference to something
 * that was introduced in an unreadable part is not counted. A single wrong word thus costs only its
 * sentence or its reference. */
struct story_grade {
    int sentences;     /* complete sentences (the part after the last full stop is not counted) */
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
