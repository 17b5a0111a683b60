/* Token shards: checks the header, reads ranges of tokens, writes whole shards.
 *
 * Tokens are read with pread rather than mapped: if a file is truncated while the process runs, the result
 * is a message instead of a bus error, and the resident memory does not grow with the data that was
 * read. */
#include "llmc/corpus/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "shards are read and written as little-endian");

/* --- header --- */

static const struct shard_format {
    int32_t magic, version;
    int token_bytes;
} formats[] = {{20240520, 1, 2}, {20240801, 7, 4}};

int shard_token_bytes(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

void shard_header(uint8_t *out, int token_bytes, int64_t tokens) {
    const struct shard_format *f = &formats[token_bytes == 4];
    const int32_t head[] = {f->magic, f->version, (int32_t)tokens};
    memset(out, 0, SHARD_HEADER_BYTES);
    memcpy(out, head, sizeof head);
}

/* `size` is the file's; `head` its first three int32. */
static bool check_header(struct shard *s, const int32_t *head, int64_t size, struct error *err) {
    const struct shard_format *f = NULL;
    for (size_t i = 0; i < ARRAY_LENGTH(formats); i++)
        if (head[0] == formats[i].magic) f = &formats[i];
    if (!f)
        return fail(err,
                    "%s: is not a token shard: magic number %d at byte 0, expected %d (uint16 tokens) or %d "
                    "(uint32 tokens); build/prepare makes shards from text",
                    s->path, head[0], formats[0].magic, formats[1].magic);
    if (head[1] != f->version)
        return fail(err, "%s: version %d at byte 4, expected %d with magic number %d", s->path, head[1],
                    f->version, f->magic);
    if (head[2] <= 0) return fail(err, "%s: token count %d at byte 8, expected at least 1", s->path, head[2]);
    s->tokens = head[2];
    s->token_bytes = f->token_bytes;
    int64_t expected = SHARD_HEADER_BYTES + s->tokens * s->token_bytes;
    if (size != expected)
        return fail(
            err,
            "%s: %lld bytes, expected %lld (a header of %d bytes and the %lld tokens of %d bytes that it "
            "announces): the file %s",
            s->path, (long long)size, (long long)expected, SHARD_HEADER_BYTES, (long long)s->tokens,
            s->token_bytes, size < expected ? "is truncated" : "has bytes after its last token");
    return true;
}

bool shard_is_one(const char *path) {
    struct mapped_file f;
    int32_t magic = 0;
    if (!file_map(&f, path, NULL)) return false;
    bool one = f.size == 0;
    if (f.size >= (int64_t)sizeof magic) memcpy(&magic, f.data, sizeof magic);
    for (size_t i = 0; i < ARRAY_LENGTH(formats); i++) one |= magic == formats[i].magic;
    file_unmap(&f);
    return one;
}

/* --- reading --- */

/* Fills all of `out` or fails: the file may have changed since its size was taken. */
static bool read_exactly(const char *path, int fd, int64_t offset, int64_t bytes, void *out,
                         struct error *err) {
    for (int64_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, (char *)out + done, (size_t)(bytes - done), (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return fail(err, "%s: cannot read %lld bytes at byte %lld: %s", path, (long long)(bytes - done),
                        (long long)(offset + done), strerror(errno));
        if (n == 0)
            return fail(err, "%s: ends at byte %lld, expected %lld more (it was longer when it was opened)",
                        path, (long long)(offset + done), (long long)(bytes - done));
        done += n;
    }
    return true;
}

static bool inspect(struct shard *s, int fd, struct error *err) {
    struct stat st;
    if (fstat(fd, &st) != 0) return fail(err, "%s: cannot read its size: %s", s->path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return fail(err,
                    "%s: is a directory, expected a token shard; a pattern like '%s/*.bin' names the shards "
                    "in it",
                    s->path, s->path);
    if (!S_ISREG(st.st_mode)) return fail(err, "%s: is not a regular file, expected a token shard", s->path);
    if (st.st_size < SHARD_HEADER_BYTES)
        return fail(err, "%s: %s (%lld bytes), expected a token shard with a header of %d bytes", s->path,
                    st.st_size ? "is too short" : "is empty", (long long)st.st_size, SHARD_HEADER_BYTES);
    int32_t head[3];
    return read_exactly(s->path, fd, 0, sizeof head, head, err) && check_header(s, head, st.st_size, err);
}

int shard_open(struct shard *s, const char *path, struct error *err) {
    *s = (struct shard){.path = xstrdup(path)};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* does not wait for the writer of a FIFO */
    if (fd < 0) {
        fail(err, "%s: cannot open: %s", path, strerror(errno));
        return -1;
    }
    if (inspect(s, fd, err)) return fd;
    close(fd);
    return -1;
}

void shard_free(struct shard *s) {
    free(s->path);
    s->path = NULL;
}

bool token_id_fail(const char *where, int64_t index, int64_t byte, uint32_t id, int64_t vocab_size,
                   struct error *err) {
    char at[48] = "";
    if (byte >= 0) snprintf(at, sizeof at, " (at byte %lld)", (long long)byte);
    return fail(
        err,
        "%s: token %lld%s is %u, but the vocabulary has the ids 0 to %lld: the data was made with another "
        "tokenizer than the model, or is damaged",
        where, (long long)index, at, id, (long long)vocab_size - 1);
}

bool shard_read(const struct shard *s, int fd, int64_t first, int64_t count, int64_t vocab_size,
                uint32_t *out, struct error *err) {
    check(first >= 0 && count >= 0 && count <= s->tokens - first,
          "%s: tokens %lld to %lld asked for, there are %lld", s->path, (long long)first,
          (long long)(first + count), (long long)s->tokens);
    int64_t offset = SHARD_HEADER_BYTES + first * s->token_bytes;
    /* uint16 tokens are read into the upper half of the output and widened in place, first to last. */
    uint8_t *raw = (uint8_t *)out + count * (4 - s->token_bytes);
    if (!read_exactly(s->path, fd, offset, count * s->token_bytes, raw, err)) return false;
    for (int64_t i = 0; i < count; i++) {
        if (s->token_bytes == 2) {
            uint16_t narrow;
            memcpy(&narrow, raw + 2 * i, 2);
            out[i] = narrow;
        }
        if (out[i] >= vocab_size)
            return token_id_fail(s->path, first + i, offset + i * s->token_bytes, out[i], vocab_size, err);
    }
    return true;
}

bool shard_hash(uint64_t *hash, const struct shard *s, int fd, struct error *err) {
    enum { BLOCK = 1 << 14, BLOCKS = 16, WHOLE = 1 << 20 };
    const int64_t numbers[] = {s->tokens, s->token_bytes};
    int64_t bytes = s->tokens * s->token_bytes;
    bool all = bytes <= WHOLE, ok = true;
    int64_t count = all ? ceil_div(bytes, BLOCK) : BLOCKS;
    uint8_t *block = (uint8_t *)xmalloc(BLOCK);
    XXH3_state_t *h = XXH3_createState();
    check(h && XXH3_64bits_reset(h) == XXH_OK, "out of host memory");
    XXH3_64bits_update(h, numbers, sizeof numbers);
    for (int64_t i = 0; ok && i < count; i++) {
        int64_t at = all ? i * BLOCK : (bytes - BLOCK) * i / (BLOCKS - 1), n = min_i64(BLOCK, bytes - at);
        ok = read_exactly(s->path, fd, SHARD_HEADER_BYTES + at, n, block, err);
        if (ok) XXH3_64bits_update(h, block, (size_t)n);
    }
    *hash = XXH3_64bits_digest(h);
    XXH3_freeState(h);
    free(block);
    return ok;
}

/* --- writing --- */

static void put_tokens(struct writer *w, const uint32_t *tokens, int64_t count, int token_bytes) {
    uint16_t narrow[4096];
    if (token_bytes == 4) {
        writer_put(w, tokens, (size_t)count * 4);
        return;
    }
    for (int64_t i = 0; i < count;) {
        int64_t n = min_i64(count - i, (int64_t)ARRAY_LENGTH(narrow));
        for (int64_t k = 0; k < n; k++) narrow[k] = (uint16_t)tokens[i + k];
        writer_put(w, narrow, (size_t)n * 2);
        i += n;
    }
}

bool shard_write(const char *path, const uint32_t *tokens, int64_t count, int64_t vocab_size,
                 struct error *err) {
    if (count <= 0 || count > INT32_MAX)
        return fail(err, "%s: cannot write a shard of %lld tokens: the format holds 1 to %d", path,
                    (long long)count, INT32_MAX);
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] >= vocab_size) return token_id_fail(path, i, -1, tokens[i], vocab_size, err);
    int token_bytes = shard_token_bytes(vocab_size);
    uint8_t header[SHARD_HEADER_BYTES];
    shard_header(header, token_bytes, count);
    char *temporary = xasprintf("%s.tmp", path);
    struct writer w;
    bool ok = writer_open(&w, temporary, err);
    if (ok) {
        writer_put(&w, header, sizeof header);
        put_tokens(&w, tokens, count, token_bytes);
        ok = writer_close(&w, err) && rename_synced(temporary, path, err);
        if (!ok) unlink(temporary);
    }
    free(temporary);
    return ok;
}
