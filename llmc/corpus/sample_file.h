/* What files of separate samples (conversations, pairs of texts) have in common: reading them line by line,
 * dividing the samples into training and validation, and encoding them on all cores. */
#ifndef LLMC_SAMPLE_FILE_H
#define LLMC_SAMPLE_FILE_H

#include "llmc/corpus/dataloader.h"
#include "llmc/text/chat.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

/* Where a message points: "chat.jsonl:12". */
struct line_place {
    const char *path;
    int64_t line; /* from 1 */
};
/* Calls read(user, line, size, at, err) for each line that is not blank, without its end. The file may be
 * compressed; "-" is the standard input. */
typedef bool read_line_fn(void *user, const char *line, int64_t size, const struct line_place *at,
                          struct error *err);
bool read_lines(const char *path, read_line_fn *read, void *user, struct error *err);
/* A line as JSON: a new reference, or NULL with the reason. */
struct json_t *line_json(const char *line, int64_t size, const struct line_place *at, struct error *err);
/* "an object", "missing" */
const char *json_kind(const struct json_t *value);
/* Whether there is nothing but white space. */
bool is_blank(const char *text, int64_t size);

/* Which samples are for validation, about `fraction` (at most 0.5) of them: its hash decides for each, so
 * that further ones move none. Neither side is empty. (count) flags, which the caller frees; NULL with the
 * reason if there are too few. `what` is for the message: "conversation". */
bool *split_samples(const uint64_t *hash, int64_t count, double fraction, const char *path, const char *what,
                    struct error *err);

/* The samples with this flag (flags NULL: all) as a data set: what encode() does not call learned is
 * MARK_GIVEN. encode() is called for several samples at a time, each with its own `out`; it gives one token
 * at least. *longest receives the tokens of the longest sample, unless it is more already. */
typedef bool encode_sample_fn(const void *user, int64_t i, struct chat_tokens *out, struct error *err);
struct sample_set {
    const char *path;
    int64_t count;
    const bool *flags;
    bool flag;
    encode_sample_fn *encode;
    const void *user;
    int64_t vocab_size;
};
struct dataset *encode_samples(const struct sample_set *s, int64_t *longest, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
