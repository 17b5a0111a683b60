/* Conversations to learn from: JSON lines, one conversation each,
 *
 *     {"messages": [{"role": "system|user|assistant", "content": "..."}, ...]}
 *
 * also compressed (gzip, Zstandard). Other members of the objects are ignored. A system message can only be
 * the first one, and the assistant must say something. A line of any other form is an error, because what is
 * left out in silence is not learned. */
#ifndef LLMC_CHAT_FILE_H
#define LLMC_CHAT_FILE_H

#include "llmc/corpus/sample_file.h"

#ifdef __cplusplus
extern "C" {
#endif

struct conversation {
    struct chat_message *messages; /* (count) */
    int64_t count;
    int64_t line;         /* in the file, from 1 */
    uint64_t hash;        /* of roles and texts */
    struct json_t *owner; /* of the texts */
};

struct chat_file {
    char *path;
    struct conversation *conversations;
    int64_t count, capacity;
};

/* Messages name file and line, what was expected and what was found. After a failure `f` is empty. "-" is the
 * standard input. */
bool chat_file_read(struct chat_file *f, const char *path, struct error *err);
void chat_file_free(struct chat_file *f);

/* As split_samples() has it. */
bool *chat_file_split(const struct chat_file *f, double fraction, struct error *err);

/* As encode_samples() has it: the assistant's words, and the tokens that end its turns, are learned. */
struct dataset *chat_file_encode(const struct chat_file *f, const bool *flags, bool flag,
                                 const struct chat_format *format, int64_t *longest, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
