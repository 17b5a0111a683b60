/* The shards of one side (training or validation) while they are written, and after an interruption.
 *
 * Tokens go to DIR/NAME_000000.bin.partial and so on. The caller commits in three steps: shard_set_sync
 * brings everything to the disk; the caller stores what shard_set_describe returns; shard_set_publish
 * renames the full shards. After a crash, shard_set_restore finds files that match the last description or
 * continue it, and cuts what continues it. A name without .partial is a whole shard. */
#ifndef LLMC_SHARD_SET_H
#define LLMC_SHARD_SET_H

#include "llmc/base/base.h"

#include <xxhash.h>

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

struct finished_shard {
    int64_t tokens, bytes;
    uint64_t hash; /* XXH3 of the file */
    bool published;
};
struct shard_set {
    char *dir, *name;
    int token_bytes;
    int64_t most; /* tokens per shard */
    struct finished_shard *shards;
    int64_t count, capacity;
    int fd;               /* of shard number `count`, or -1 */
    int64_t open_tokens;  /* in it */
    XXH3_state_t *hash;   /* of these tokens */
    int64_t total_tokens; /* in all shards */
};

void shard_set_init(struct shard_set *s, const char *dir, const char *name, int token_bytes, int64_t most);
void shard_set_free(struct shard_set *s); /* what is not published stays under its .partial name */

bool shard_set_append(struct shard_set *s, const uint32_t *tokens, int64_t count, struct error *err);
/* Ends the last shard. */
bool shard_set_finish(struct shard_set *s, struct error *err);

bool shard_set_sync(struct shard_set *s, struct error *err);
bool shard_set_publish(struct shard_set *s, struct error *err);
/* The path of shard `index`; the caller frees. */
char *shard_set_path(const struct shard_set *s, int64_t index);

/* {"tokens": N, "shards": [{"file", "tokens", "bytes", "xxh3"}, ...]}, with "open": {"tokens", "xxh3"}
 * unless `complete`. A new reference. */
struct json_t *shard_set_describe(const struct shard_set *s, bool complete);
/* Restores from such an object (s is fresh from shard_set_init) and compares every file with it. */
bool shard_set_restore(struct shard_set *s, const struct json_t *described, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
