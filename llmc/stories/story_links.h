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
/* A pronoun, and the places before it that name what it stands for: noun[first ... first + count), at least
 * one. */
struct story_link {
    struct story_span pronoun;
    bool thing; /* it, they, them; else he, she, him, her, his */
    int first, count;
};
enum { STORY_LINKS = 64, STORY_NOUNS = 1024 };
struct story_links {
    char *text; /* of the story */
    struct story_link link[STORY_LINKS];
    struct story_span noun[STORY_NOUNS];
    int count, nouns;
};
/* Of story_make(seed, index). */
void story_links_make(struct story_links *l, uint64_t seed, uint64_t index);
void story_links_free(struct story_links *l);

#ifdef __cplusplus
}
#endif
#endif
