/* What the pronouns of a story stand for: the grammar that wrote it knows. */
#ifndef LLMC_STORY_LINKS_H
#define LLMC_STORY_LINKS_H

#include "llmc/stories/stories.h"

#ifdef __cplusplus
extern "C" {
#endif

struct story_span {
    int64_t at, size; /* bytes of the text */
};
/* A place that names something: a person, a thing, a place, a number, a colour. Places with the same `what`
 * name the same. */
struct story_noun {
    struct story_span span;
    int what;
};
/* A pronoun, and what it stands for, which one of the nouns before it names at least. */
struct story_link {
    struct story_span pronoun;
    bool thing; /* it, they, them; else he, she, him, her, his */
    int what;
    int nouns_before; /* the first so many nouns are before it */
};
enum { STORY_LINKS = 64, STORY_NOUNS = 256 };
struct story_links {
    char *text; /* of the story */
    struct story_link link[STORY_LINKS];
    struct story_noun noun[STORY_NOUNS]; /* in the order of the text */
    int count, nouns;
};
/* Of story_make(seed, index). */
void story_links_make(struct story_links *l, uint64_t seed, uint64_t index);
void story_links_free(struct story_links *l);

#ifdef __cplusplus
}
#endif
#endif
