/* What single heads do, over many texts in which the right answer is known: how often the strongest link of a
 * head, from a given token, leads to a right one; and how much the loss rises when the head is off. */
#ifndef LLMC_HEADS_H
#define LLMC_HEADS_H

#include "llmc/model/ablate.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* From token `from` of a text, a link to one of `right[first ... first + count)` is right. */
struct head_link {
    int64_t text, from;
    int64_t first, count;
};
struct head_texts {
    int64_t texts, T;          /* T tokens each, with padding behind */
    int32_t *tokens, *targets; /* (texts,T); targets are -1 in the padding */
    struct head_link *link;
    int64_t links;
    int32_t *right;
    int64_t rights;
};
void head_texts_free(struct head_texts *d);

/* Stories of the built-in grammar that no training has seen, of T tokens at most each, and their pronouns for
 * things (it, they, them), or with `persons` those for persons, each with what it stands for. */
bool head_texts_of_stories(struct head_texts *d, const struct tokenizer *t, int64_t stories, int64_t T,
                           bool persons, struct error *err);

/* The model for both: any batch size, d->T tokens, forward only. */

/* For every head (L,NH), the number of links in d whose strongest source is right. Sources are the tokens
 * before the one that looks, but for the first of the text, on which heads rest. */
void head_hits(int64_t *hits, const struct head_texts *d, struct gpt *gpt);
/* The mean loss over all targets, without what `ablation` takes away (NULL: nothing). */
double head_loss(const struct head_texts *d, struct gpt *gpt, const struct ablation *ablation);

/* The head with the most hits: its index in (L,NH). */
int64_t head_best(const int64_t *hits, const struct gpt_config *config);

#ifdef __cplusplus
}
#endif
#endif
