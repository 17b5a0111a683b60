/* Shards of one side while they are written. Their files have a name with .partial until they are full and
 * a commit has recorded them, so that a run that is killed at any moment leaves either whole shards or
 * files that are recognisably unfinished. */
#include "data/shard_set.h"
#include "llmc/base/file.h"
#include "llmc/corpus/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- names and files --- */

void shard_set_init(struct shard_set *s, const char *dir, const char *name, int token_bytes, int64_t most) {
    *s = (struct shard_set){
        .dir = xstrdup(dir), .name = xstrdup(name), .token_bytes = token_bytes, .most = most, .fd = -1};
    s->hash = XXH3_createState();
    check(s->hash, "out of host memory");
}

void shard_set_free(struct shard_set *s) {
    if (s->fd >= 0) close(s->fd);
    XXH3_freeState(s->hash);
    free(s->shards);
    free(s->dir);
    free(s->name);
    *s = (struct shard_set){.fd = -1};
}

char *shard_set_path(const struct shard_set *s, int64_t index) {
    return xasprintf("%s/%s_%06lld.bin", s->dir, s->name, (long long)index);
}

static char *partial_path(const struct shard_set *s, int64_t index) {
    return xasprintf("%s/%s_%06lld.bin.partial", s->dir, s->name, (long long)index);
}

static bool write_at(const struct shard_set *s, const void *data, int64_t size, int64_t offset,
                     struct error *err) {
    for (int64_t done = 0; done < size;) {
        ssize_t n = pwrite(s->fd, (const char *)data + done, (size_t)(size - done), (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return fail(err, "%s/%s_%06lld.bin.partial: cannot write at byte %lld: %s", s->dir, s->name,
                        (long long)s->count, (long long)(offset + done), strerror(errno));
        done += n;
    }
    return true;
}

/* Opens shard number `count`. Its header stays zero until it is full, so no reader takes it for a shard. */
static bool open_partial(struct shard_set *s, bool anew, struct error *err) {
    char *path = partial_path(s, s->count);
    s->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | (anew ? O_TRUNC : 0), 0666);
    bool ok = s->fd >= 0 || fail(err, "%s: cannot open for writing: %s", path, strerror(errno));
    free(path);
    s->open_tokens = 0;
    XXH3_64bits_reset(s->hash);
    return ok;
}

/* Reads bytes [from, to) of a file into a hash. */
static bool hash_range(XXH3_state_t *hash, const char *path, int fd, int64_t from, int64_t to,
                       struct error *err) {
    enum { PIECE = 1 << 20 };
    char *piece = (char *)xmalloc(PIECE);
    bool ok = true;
    while (ok && from < to) {
        ssize_t n = pread(fd, piece, (size_t)min_i64(PIECE, to - from), (off_t)from);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            ok = fail(err, "%s: cannot read at byte %lld: %s", path, (long long)from,
                      n < 0 ? strerror(errno) : "the file ends there");
            break;
        }
        XXH3_64bits_update(hash, piece, (size_t)n);
        from += n;
    }
    free(piece);
    return ok;
}

/* --- appending --- */

static bool finish_shard(struct shard_set *s, struct error *err);

bool shard_set_append(struct shard_set *s, const uint32_t *tokens, int64_t count, struct error *err) {
    enum { PIECE = 1 << 16 };
    uint16_t narrow[PIECE];
    while (count > 0) {
        if (s->fd < 0 && !open_partial(s, true, err)) return false;
        int64_t n = min_i64(min_i64(count, PIECE), s->most - s->open_tokens);
        const void *data = tokens;
        if (s->token_bytes == 2) {
            for (int64_t i = 0; i < n; i++) narrow[i] = (uint16_t)tokens[i];
            data = narrow;
        }
        if (!write_at(s, data, n * s->token_bytes, SHARD_HEADER_BYTES + s->open_tokens * s->token_bytes, err))
            return false;
        XXH3_64bits_update(s->hash, data, (size_t)(n * s->token_bytes));
        s->open_tokens += n;
        s->total_tokens += n;
        tokens += n;
        count -= n;
        if (s->open_tokens == s->most && !finish_shard(s, err)) return false;
    }
    return true;
}

/* --- finishing --- */

static void add_finished(struct shard_set *s, struct finished_shard shard) {
    if (s->count == s->capacity) {
        s->capacity = 2 * s->capacity + 16;
        s->shards = (struct finished_shard *)xrealloc(s->shards, (size_t)s->capacity * sizeof *s->shards);
    }
    s->shards[s->count++] = shard;
}

static bool finish_shard(struct shard_set *s, struct error *err) {
    uint8_t header[SHARD_HEADER_BYTES];
    shard_header(header, s->token_bytes, s->open_tokens);
    struct finished_shard shard = {.tokens = s->open_tokens,
                                   .bytes = SHARD_HEADER_BYTES + s->open_tokens * s->token_bytes};
    char *path = partial_path(s, s->count);
    XXH3_64bits_reset(s->hash);
    bool ok =
        write_at(s, header, sizeof header, 0, err) && hash_range(s->hash, path, s->fd, 0, shard.bytes, err);
    if (ok && fsync(s->fd) != 0) ok = fail(err, "%s: cannot flush to disk: %s", path, strerror(errno));
    shard.hash = XXH3_64bits_digest(s->hash);
    if (close(s->fd) != 0 && ok) ok = fail(err, "%s: cannot close: %s", path, strerror(errno));
    s->fd = -1;
    s->open_tokens = 0;
    free(path);
    if (ok) add_finished(s, shard);
    return ok;
}

bool shard_set_finish(struct shard_set *s, struct error *err) { return s->fd < 0 || finish_shard(s, err); }

/* --- committing --- */

bool shard_set_sync(struct shard_set *s, struct error *err) {
    if (s->fd >= 0 && fsync(s->fd) != 0)
        return fail(err, "%s/%s_%06lld.bin.partial: cannot flush to disk: %s", s->dir, s->name,
                    (long long)s->count, strerror(errno));
    return true;
}

bool shard_set_publish(struct shard_set *s, struct error *err) {
    bool ok = true;
    for (int64_t i = 0; ok && i < s->count; i++) {
        if (s->shards[i].published) continue;
        char *from = partial_path(s, i), *to = shard_set_path(s, i);
        ok = rename_synced(from, to, err);
        s->shards[i].published = ok;
        free(from);
        free(to);
    }
    return ok;
}

/* --- describing --- */

static json_t *hex(uint64_t hash) { return json_sprintf("%016" PRIx64, hash); }

json_t *shard_set_describe(const struct shard_set *s, bool complete) {
    json_t *list = json_array();
    for (int64_t i = 0; i < s->count; i++) {
        const struct finished_shard *f = &s->shards[i];
        json_array_append_new(list, json_pack("{s:o, s:I, s:I, s:o}", "file",
                                              json_sprintf("%s_%06lld.bin", s->name, (long long)i), "tokens",
                                              (json_int_t)f->tokens, "bytes", (json_int_t)f->bytes, "xxh3",
                                              hex(f->hash)));
    }
    json_t *out = json_pack("{s:I, s:o}", "tokens", (json_int_t)s->total_tokens, "shards", list);
    if (!complete && s->fd >= 0)
        json_object_set_new(out, "open",
                            json_pack("{s:I, s:o}", "tokens", (json_int_t)s->open_tokens, "xxh3",
                                      hex(XXH3_64bits_digest(s->hash))));
    return out;
}

/* --- restoring --- */

/* A finished shard has its final name, unless the run ended before renaming it. */
static bool restore_finished(struct shard_set *s, const json_t *entry, struct error *err) {
    json_int_t tokens, bytes;
    const char *hash;
    json_error_t e;
    struct finished_shard f = {.published = true};
    if (json_unpack_ex((json_t *)(uintptr_t)entry, &e, 0, "{s:I, s:I, s:s}", "tokens", &tokens, "bytes",
                       &bytes, "xxh3", &hash) != 0 ||
        sscanf(hash, "%16" SCNx64, &f.hash) != 1 || tokens <= 0 || tokens > s->most ||
        bytes != SHARD_HEADER_BYTES + tokens * s->token_bytes)
        return fail(err, "%s: the entry for shard %lld of %s is invalid", s->dir, (long long)s->count,
                    s->name);
    f.tokens = tokens;
    f.bytes = bytes;
    char *path = shard_set_path(s, s->count);
    if (!path_exists(path)) {
        free(path);
        path = partial_path(s, s->count);
        f.published = false;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    bool ok = true;
    XXH3_64bits_reset(s->hash);
    if (fd < 0 || fstat(fd, &st) != 0)
        ok = fail(err, "%s: cannot open: %s", path, strerror(errno));
    else if (st.st_size != bytes)
        ok = fail(err, "%s: has %lld bytes, but had %lld when it was finished", path, (long long)st.st_size,
                  (long long)bytes);
    else
        ok = hash_range(s->hash, path, fd, 0, bytes, err);
    if (ok && XXH3_64bits_digest(s->hash) != f.hash)
        ok = fail(err,
                  "%s: its checksum is %016" PRIx64 ", but was %016" PRIx64 " when it was finished: it was "
                  "damaged or changed",
                  path, XXH3_64bits_digest(s->hash), f.hash);
    if (fd >= 0) close(fd);
    free(path);
    if (ok) {
        add_finished(s, f);
        s->total_tokens += f.tokens;
    }
    return ok;
}

/* Restores the shard that was being written: truncates it to the recorded length. If its header was written
 * later, it will be written again with the same bytes. */
static bool restore_open(struct shard_set *s, const json_t *open, struct error *err) {
    json_int_t tokens;
    const char *hex_hash;
    uint64_t hash;
    json_error_t e;
    if (json_unpack_ex((json_t *)(uintptr_t)open, &e, 0, "{s:I, s:s}", "tokens", &tokens, "xxh3",
                       &hex_hash) != 0 ||
        sscanf(hex_hash, "%16" SCNx64, &hash) != 1 || tokens <= 0 || tokens >= s->most)
        return fail(err, "%s: the entry for the unfinished shard of %s is invalid", s->dir, s->name);
    if (!open_partial(s, false, err)) return false;
    char *path = partial_path(s, s->count);
    int64_t bytes = SHARD_HEADER_BYTES + tokens * s->token_bytes;
    bool ok = hash_range(s->hash, path, s->fd, SHARD_HEADER_BYTES, bytes, err);
    if (ok && XXH3_64bits_digest(s->hash) != hash)
        ok = fail(err, "%s: its first %lld tokens are not those that were written", path, (long long)tokens);
    if (ok && ftruncate(s->fd, (off_t)bytes) != 0)
        ok = fail(err, "%s: cannot cut: %s", path, strerror(errno));
    s->open_tokens = tokens;
    s->total_tokens += tokens;
    free(path);
    return ok;
}

bool shard_set_restore(struct shard_set *s, const json_t *described, struct error *err) {
    const json_t *list = json_object_get(described, "shards"), *open = json_object_get(described, "open");
    if (!json_is_array(list)) return fail(err, "%s: has no entry for the shards of %s", s->dir, s->name);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!restore_finished(s, json_array_get(list, i), err)) return false;
    return !open || restore_open(s, open, err);
}
