/* Text to train on: documents from files, directories or the built-in stories, split into training and
 * validation, and turned into tokens. */
#ifndef LLMC_CORPUS_H
#define LLMC_CORPUS_H

#include "file.h"
#include "tokenizer.h"

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
    struct mapped_file *files;
    int64_t file_count;
    char *owned; /* text of stories, or NULL */
};

/* A file or a directory (searched recursively, hidden entries skipped, symbolic links to directories not
 * followed). A file is one document, or, if it contains lines with only <|endoftext|>, several. When there
 * are too few documents to choose from, long ones are cut at paragraph ends first. A document goes to
 * validation by a hash of its text, so that adding files moves none; about `validation_fraction` of the
 * bytes, and never nothing on either side. */
bool corpus_open(struct corpus *c, const char *path, double validation_fraction, struct error *err);

/* `count` stories of data/stories.h, seeded; validation stories are distinct from training stories by number.
 */
void corpus_stories(struct corpus *c, uint64_t seed, int64_t count, double validation_fraction);
void corpus_free(struct corpus *c);

/* Tokens of one side: <|endoftext|>, document, <|endoftext|>, document, ..., <|endoftext|>. On all cores; the
 * result does not depend on how many. The caller frees *tokens. */
bool corpus_encode(const struct corpus *c, bool validation, const struct tokenizer *t, uint32_t **tokens,
                   int64_t *count, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
