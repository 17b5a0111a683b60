/* Pairs of a source and a target, for models that learn to write the target: translation, summaries, answers.
 * A line is
 *
 *     SOURCE<tab>TARGET
 *     {"source": "...", "target": "..."}
 *
 * also compressed. The first line that is not blank decides: JSON if it begins with "{". As tokens a pair is
 * <|endoftext|> source <|endoftext|> target <|endoftext|>, of which the target and the last one are
 * learned. */
#ifndef LLMC_PAIR_FILE_H
#define LLMC_PAIR_FILE_H

#include "llmc/corpus/sample_file.h"

#ifdef __cplusplus
extern "C" {
#endif

struct pair {
    char *source, *target;
    int64_t line; /* in the file, from 1 */
};
struct pair_file {
    char *path;
    struct pair *pairs;
    int64_t count, capacity;
    bool json;
};

/* Messages name file and line. After a failure `f` is empty. "-" is the standard input. */
bool pair_file_read(struct pair_file *f, const char *path, struct error *err);
void pair_file_free(struct pair_file *f);
/* As split_samples() has it, by source and target. */
bool *pair_file_split(const struct pair_file *f, double fraction, struct error *err);
/* As encode_samples() has it. The tokenizer must have an <|endoftext|>. */
struct dataset *pair_file_encode(const struct pair_file *f, const bool *flags, bool flag,
                                 const struct tokenizer *t, int64_t *longest, struct error *err);
/* The tokens that a target follows. False if the source cannot be encoded. */
bool encode_source(const struct tokenizer *t, const char *source, struct token_buffer *ids,
                   struct error *err);

#ifdef __cplusplus
}
#endif
#endif
