/* Ranges of tokens of a data set, from files or memory. Files stay open from one range to the next, and
 * are opened again when there are too many of them. */
#include "llmc/corpus/dataset_impl.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OPEN_SHARDS = 256 }; /* far below the usual limit of 1024 files per process */

void reader_open(struct reader *r, const struct dataset *d) {
    *r = (struct reader){.d = d, .fd = (int *)xmalloc((size_t)d->count * sizeof *r->fd)};
    for (int64_t i = 0; i < d->count; i++) r->fd[i] = -1;
}

static void reader_close_files(struct reader *r) {
    for (int64_t i = 0; i < r->d->count; i++) {
        if (r->fd[i] >= 0) close(r->fd[i]);
        r->fd[i] = -1;
    }
    r->open = 0;
}

void reader_free(struct reader *r) {
    if (!r->fd) return;
    reader_close_files(r);
    free(r->fd);
    r->fd = NULL;
}

bool reader_prepare(struct reader *r, int64_t shard, int64_t first, int64_t count, struct error *err) {
    const struct shard *s = &r->d->shards[shard];
    if (r->d->memory) return true;
    if (r->fd[shard] < 0) {
        if (r->open >= OPEN_SHARDS) reader_close_files(r);
        struct shard now;
        int fd = shard_open(&now, s->path, err);
        bool same = fd >= 0 && now.tokens == s->tokens && now.token_bytes == s->token_bytes;
        if (fd >= 0 && !same)
            fail(err, "%s: has %lld tokens of %d bytes, but had %lld of %d bytes when the run started",
                 s->path, (long long)now.tokens, now.token_bytes, (long long)s->tokens, s->token_bytes);
        shard_free(&now);
        if (!same) {
            if (fd >= 0) close(fd);
            return false;
        }
        r->fd[shard] = fd;
        r->open++;
    }
    (void)posix_fadvise(r->fd[shard], SHARD_HEADER_BYTES + first * s->token_bytes, count * s->token_bytes,
                        POSIX_FADV_WILLNEED);
    return true;
}

bool reader_read(struct reader *r, int64_t shard, int64_t first, int64_t count, uint32_t *out,
                 struct error *err) {
    const struct shard *s = &r->d->shards[shard];
    if (!r->d->memory)
        return reader_prepare(r, shard, first, count, err) &&
               shard_read(s, r->fd[shard], first, count, r->d->vocab_size, out, err);
    memcpy(out, r->d->memory + first, (size_t)count * sizeof *out);
    for (int64_t i = 0; i < count; i++)
        if (out[i] >= r->d->vocab_size)
            return token_id_fail(s->path, first + i, -1, out[i], r->d->vocab_size, err);
    return true;
}

bool reader_read_on(struct reader *r, int64_t shard, int64_t first, int64_t count, uint32_t *out,
                    struct error *err) {
    for (; count > 0; shard++, first = 0) {
        int64_t n = min_i64(count, r->d->shards[shard].tokens - first);
        if (!reader_read(r, shard, first, n, out, err)) return false;
        out += n;
        count -= n;
    }
    return true;
}
