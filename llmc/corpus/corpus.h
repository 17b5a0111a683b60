/* Text to train on: documents from files, from directories or from the built-in stories, divided into
 * training and validation, and encoded. */
#ifndef LLMC_CORPUS_H
#define LLMC_CORPUS_H

#include "llmc/corpus/text_source.h"

#ifdef __cplusplus
extern "C" {
#endif

struct corpus {
    struct text_span *docs; /* in a fixed order: by path, then by position */
    bool *validation;       /* docs[i] belongs to the validation set */
    int64_t count;
    int64_t bytes, validation_bytes; /* of all documents; of those in the validation set */
    struct text_remarks remarks;     /* what was left out, or is odd */
    char *text;                      /* what docs points into */
};

/* Reads all of a file, of a directory, searched recursively (hidden entries are skipped, symbolic links
 * to directories not followed), or of the standard input ("-"), by the rules of text_source.h. A text
 * file is one document, or several with lines of only <|endoftext|> between them; a line of JSON is one
 * document. A hash of its text decides whether a document is for validation, so that further files move
 * none; if there are too few documents to choose from, long ones are cut at paragraph ends (see
 * split_documents). About `validation_fraction` of the bytes are for validation: neither side is empty
 * then, and a text too small for that is an error; 0: none. Options of NULL are the defaults. After a
 * failure there is nothing to free. */
bool corpus_open(struct corpus *c, const char *path, const struct text_options *options,
                 double validation_fraction, struct error *err);

/* Prints the remarks as warnings. `field` is that of the options, or NULL. */
void corpus_warn(const struct corpus *c, const char *path, const char *field);

/* `count` >= 2 stories of llmc/stories/stories.h. Every 1/fraction-th is for validation. */
void corpus_stories(struct corpus *c, uint64_t seed, int64_t count, double validation_fraction);
void corpus_free(struct corpus *c);

/* The tokens of one side: <|endoftext|>, document, <|endoftext|>, document, ..., <|endoftext|>. Uses all
 * cores; their number does not change the result. The caller frees *tokens. */
bool corpus_encode(const struct corpus *c, bool validation, const struct tokenizer *t, uint32_t **tokens,
                   int64_t *count, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
