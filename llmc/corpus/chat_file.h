/* Conversations to learn from: JSON lines, one conversation each,
 *
 *     {"messages": [{"role": "system|user|assistant", "content": "..."}, ...]}
 *
 * also compressed (gzip, Zstandard). Other members of the objects are ignored. A system message can only be
 * the first one, and the assistant must say something. A line of any other form is an error, because what is
 * left out in silence is not learned. */
#ifndef LLMC_CHAT_FILE_H
#define LLMC_CHAT_FILE_H

#include "llmc/corpus/dataloader.h"
#include "llmc/text/chat.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

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

/* Which conversations are for validation, about `fraction` (at most 0.5) of them: a hash of its text decides
 * for each, so that further ones move none. Neither side is empty. (count) flags, which the caller frees;
 * NULL with the reason if there are too few. */
bool *chat_file_split(const struct chat_file *f, double fraction, struct error *err);

/* The conversations with this flag (NULL: all) as a data set: what the assistant does not say is
 * MARK_GIVEN. Uses all cores. *longest receives the tokens of the longest conversation, unless it is more
 * already. */
struct dataset *chat_file_encode(const struct chat_file *f, const bool *flags, bool flag,
                                 const struct chat_format *format, int64_t *longest, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
