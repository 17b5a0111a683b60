/* Token shards, the files that llm.c and modded-nanogpt write: 256 int32 of header (magic 20240520, version
 * 1, token count: uint16 tokens; magic 20240801, version 7: uint32 tokens), little-endian, then the tokens.
 *
 * Order: reading, writing. Everything in a shard is checked before it is used. */
#ifndef LLMC_SHARD_H
#define LLMC_SHARD_H

#include "llmc/base/file.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHARD_HEADER_BYTES 1024

struct shard {
    char *path;
    int64_t tokens;
    int token_bytes; /* 2 or 4 */
};

/* Opens the file and compares header and size. Every message names the file, what was expected and what was
 * found. Returns the descriptor, or -1; *s is to be freed with shard_free in either case. */
int shard_open(struct shard *s, const char *path, struct error *err);
void shard_free(struct shard *s);

/* Reads tokens [first, first + count), which must lie inside the shard; an id >= vocab_size is an error. */
bool shard_read(const struct shard *s, int fd, int64_t first, int64_t count, int64_t vocab_size,
                uint32_t *out, struct error *err);
/* The message of that error, for tokens that come from elsewhere. */
bool token_id_fail(const char *where, int64_t index, int64_t byte, uint32_t id, int64_t vocab_size,
                   struct error *err);

/* Bytes per token in a shard for this vocabulary: 2 if every id fits. */
int shard_token_bytes(int64_t vocab_size);
/* The first SHARD_HEADER_BYTES of a shard. */
void shard_header(uint8_t *out, int token_bytes, int64_t tokens);
/* Writes a whole shard, atomically. At most INT32_MAX tokens, which is what the header can say. */
bool shard_write(const char *path, const uint32_t *tokens, int64_t count, int64_t vocab_size,
                 struct error *err);

#ifdef __cplusplus
}
#endif
#endif
