/* Token shards, as llm.c and modded-nanogpt write them. Little-endian: a header of 256 int32, then the
 * tokens.
 *
 *     header[0..2]                    tokens
 *     20240520, 1, number of tokens   uint16
 *     20240801, 7, number of tokens   uint32
 *
 * Everything in a shard is checked before it is used. */
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

/* Opens the file and checks header and size. Messages name the file, what was expected and what was found.
 * Returns the descriptor, or -1; call shard_free(s) in either case. */
int shard_open(struct shard *s, const char *path, struct error *err);
void shard_free(struct shard *s);
/* Whether the file is empty or begins like a shard; it may be truncated. */
bool shard_is_one(const char *path);

/* Reads tokens [first, first + count), which must lie inside the shard. An id >= vocab_size is an error. */
bool shard_read(const struct shard *s, int fd, int64_t first, int64_t count, int64_t vocab_size,
                uint32_t *out, struct error *err);
/* A hash of the tokens as they are stored: of all of them up to 1 MiB, of a larger shard of 16 blocks of 16
 * KiB, from the first to the last, at equal distances. */
bool shard_hash(uint64_t *hash, const struct shard *s, int fd, struct error *err);
/* Fails with the message for such an id, for tokens from elsewhere. */
bool token_id_fail(const char *where, int64_t index, int64_t byte, uint32_t id, int64_t vocab_size,
                   struct error *err);

/* Bytes per token for this vocabulary: 2 if every id fits. */
int shard_token_bytes(int64_t vocab_size);
/* The first SHARD_HEADER_BYTES of a shard. */
void shard_header(uint8_t *out, int token_bytes, int64_t tokens);
/* Writes a whole shard atomically: at most INT32_MAX tokens, the limit of the header. */
bool shard_write(const char *path, const uint32_t *tokens, int64_t count, int64_t vocab_size,
                 struct error *err);

#ifdef __cplusplus
}
#endif
#endif
