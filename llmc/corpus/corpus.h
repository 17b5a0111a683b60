/* Text to train on: documents from files, directories or the built-in stories, split into training and
 * validation, and turned into tokens. */
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
    int64_t invalid_utf8_files;      /* files that are not UTF-8: used as bytes, and worth a remark */
    char *first_invalid;             /* one of them, or NULL */
    int64_t skipped_binary;          /* files with a NUL byte in a directory: skipped */

    struct corpus_file *files; /* what docs points into; private */
    int64_t file_count;
};

/* A file or a directory (searched recursively, hidden entries skipped, symbolic links to directories not
 * followed). A file is one document, or, if it contains lines with only <|endoftext|>, several. A document
 * goes to validation by a hash of its text, so that adding files moves none; when there are too few documents
 * to choose from, long ones are cut at paragraph ends (see split_documents). About `validation_fraction` of
 * the bytes, and never nothing on either side: a text too small for that is an error. On failure there is
 * nothing to free. */
bool corpus_open(struct corpus *c, const char *path, double validation_fraction, struct error *err);

/* `count` >= 2 stories of llmc/stories/stories.h, seeded; validation stories are distinct from training stories by
 * number: every 1/fraction-th of them. */
void corpus_stories(struct corpus *c, uint64_t seed, int64_t count, double validation_fraction);
void corpus_free(struct corpus *c);

/* Tokens of one side: <|endoftext|>, document, <|endoftext|>, document, ..., <|endoftext|>. On all cores; the
 * result does not depend on how many. The caller frees *tokens. */
bool corpus_encode(const struct corpus *c, bool validation, const struct tokenizer *t, uint32_t **tokens,
                   int64_t *count, struct error *err);

/* One file, or several texts that were made: mapped, or copied when so small that a mapping each would run
 * into the system's limit on their number. */
struct corpus_file {
    struct mapped_file map;
    char *copy;
};

#ifdef __cplusplus
}
#endif
#endif
