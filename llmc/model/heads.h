/* What single heads do, over many texts in which the right answer is known: how often the strongest link of a
 * head, from a given token, leads to a right one; and how much the loss rises when the head is off. */
#ifndef LLMC_HEADS_H
#define LLMC_HEADS_H

#include "llmc/model/ablate.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Token `from` of a text looks at `source[first ... first + count)`, which are before it; some are right. */
struct head_link {
    int64_t text, from;
    int64_t first, count;
};
struct head_source {
    int32_t token;
    bool right;
};
struct head_texts {
    int64_t texts, T;          /* T tokens each, with padding behind */
    int32_t *tokens, *targets; /* (texts,T); targets are -1 in the padding */
    struct head_link *link;
    int64_t links;
    struct head_source *source;
    int64_t sources;
};
void head_texts_free(struct head_texts *d);

/* Stories of the built-in grammar that no training has seen, of T tokens at most each, with their pronouns
 * for things (it, they, them), or with `persons` those for persons. A link is from the token that predicts
 * the pronoun, because there the model has to know what it stands for; its sources are the tokens of all
 * nouns before it (story_links.h), of which those that name this are right. Pronouns without a wrong noun
 * before them are left out. */
bool head_texts_of_stories(struct head_texts *d, const struct tokenizer *t, int64_t stories, int64_t T,
                           bool persons, struct error *err);

/* The model for both: any batch size, d->T tokens, forward only. */

/* For every head (L,NH), the number of links of whose sources the one with the most attention is right. */
void head_hits(int64_t *hits, const struct head_texts *d, struct gpt *gpt);
/* The mean loss over all targets, without what `ablation` takes away (NULL: nothing). */
double head_loss(const struct head_texts *d, struct gpt *gpt, const struct ablation *ablation);

/* The number of hits that choosing a source at random would have on average. */
double head_chance(const struct head_texts *d);
/* The head with the most hits: its index in (L,NH). */
int64_t head_best(const int64_t *hits, const struct gpt_config *config);

#ifdef __cplusplus
}
#endif
#endif
