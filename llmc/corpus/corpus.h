/* Text to train on: documents from files, from directories or from the built-in stories, divided into
 * training and validation, and encoded. */
#ifndef LLMC_CORPUS_H
#define LLMC_CORPUS_H

#include "llmc/corpus/documents.h"

#ifdef __cplusplus
extern "C" {
#endif

struct corpus {
    struct text_span *docs; /* in a fixed order: by path, then by position */
    bool *validation;       /* docs[i] belongs to the validation set */
    int64_t count;
    int64_t bytes, validation_bytes; /* of all documents; of those in the validation set */
    int64_t invalid_utf8_files;      /* files that are not UTF-8; their bytes are used */
    char *first_invalid;             /* one of them, or NULL */
    int64_t skipped_binary;          /* files of a directory with a NUL byte; they are skipped */

    struct corpus_file *files; /* what docs points into; private */
    int64_t file_count;
};

/* Reads a file or a directory, searched recursively: hidden entries are skipped, symbolic links to
 * directories not followed. A file is one document, or several with lines of only <|endoftext|> between
 * them. A hash of its text decides whether a document is for validation, so that further files move none;
 * if there are too few documents to choose from, long ones are cut at paragraph ends (see split_documents).
 * About `validation_fraction` of the bytes are for validation. Neither side is ever empty: a text too small
 * for that is an error. After a failure there is nothing to free. */
bool corpus_open(struct corpus *c, const char *path, double validation_fraction, struct error *err);

/* `count` >= 2 stories of llmc/stories/stories.h. Every 1/fraction-th is for validation. */
void corpus_stories(struct corpus *c, uint64_t seed, int64_t count, double validation_fraction);
void corpus_free(struct corpus *c);

/* The tokens of one side: <|endoftext|>, document, <|endoftext|>, document, ..., <|endoftext|>. Uses all
 * cores; their number does not change the result. The caller frees *tokens. */
bool corpus_encode(const struct corpus *c, bool validation, const struct tokenizer *t, uint32_t **tokens,
                   int64_t *count, struct error *err);

/* The memory behind documents: a mapped file, or a copy of a small one, since the system limits the number
 * of mappings. */
struct corpus_file {
    struct mapped_file map;
    char *copy;
};

#ifdef __cplusplus
}
#endif
#endif
