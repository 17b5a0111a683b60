/* Reads files that may be compressed with gzip or Zstandard, told by their first bytes. A file may hold
 * several compressed members; one that ends inside a member is an error, since a silently shortened text
 * would be trained on. */
#include "llmc/corpus/byte_stream.h"

#include "llmc/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

enum kind { PLAIN, GZIP, ZSTD };

struct byte_stream {
    const char *name; /* owned */
    int fd;
    enum kind kind;
    uint8_t in[1 << 17];
    int64_t in_at, in_size; /* unread part of `in` */
    bool raw_end;
    int64_t raw_bytes;
    XXH3_state_t *hash;
    z_stream z;
    ZSTD_DStream *zstd;
    bool inside; /* a compressed member has begun and not ended */
};

/* --- raw bytes --- */

/* Refills `in` if it is empty. False on an error. At the end of the file sets raw_end. */
static bool fill(struct byte_stream *s, struct error *err) {
    while (s->in_at == s->in_size && !s->raw_end) {
        ssize_t n = read(s->fd, s->in, sizeof s->in);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return fail(err, "%s: cannot read at byte %lld: %s", s->name, (long long)s->raw_bytes,
                        strerror(errno));
        s->raw_end = n == 0;
        s->in_at = 0;
        s->in_size = n;
        s->raw_bytes += n;
        XXH3_64bits_update(s->hash, s->in, (size_t)n);
    }
    return true;
}

/* Compressed bytes consumed: where an error is. */
static long long position(const struct byte_stream *s) {
    return (long long)(s->raw_bytes - (s->in_size - s->in_at));
}

static int64_t read_plain(struct byte_stream *s, uint8_t *out, int64_t capacity) {
    int64_t n = min_i64(capacity, s->in_size - s->in_at);
    memcpy(out, s->in + s->in_at, (size_t)n);
    s->in_at += n;
    return n;
}

/* --- gzip --- */

/* Between members zeros are padding, as in archives from tapes; anything else must be a member. */
static bool begin_member(struct byte_stream *s, struct error *err) {
    while (s->in_at < s->in_size && s->in[s->in_at] == 0) s->in_at++;
    if (s->in_at == s->in_size) return true;
    if (s->in[s->in_at] != 0x1f)
        return fail(err, "%s: byte %lld is 0x%02x, expected the end of the file or another gzip member",
                    s->name, position(s), s->in[s->in_at]);
    check(inflateReset(&s->z) == Z_OK, "zlib: cannot start again");
    s->inside = true;
    return true;
}

static int64_t read_gzip(struct byte_stream *s, uint8_t *out, int64_t capacity, struct error *err) {
    int64_t got = 0;
    while (got == 0) {
        if (!fill(s, err)) return -1;
        if (s->raw_end && !s->inside) return 0;
        if (s->raw_end) {
            fail(err, "%s: the gzip data is truncated: the file ends at byte %lld inside a member", s->name,
                 (long long)s->raw_bytes);
            return -1;
        }
        if (!s->inside) {
            if (!begin_member(s, err)) return -1;
            continue;
        }
        s->z.next_in = s->in + s->in_at;
        s->z.avail_in = (uInt)(s->in_size - s->in_at);
        s->z.next_out = out;
        s->z.avail_out = (uInt)min_i64(capacity, 1 << 30);
        uInt room = s->z.avail_out;
        int rc = inflate(&s->z, Z_NO_FLUSH);
        s->in_at = s->in_size - s->z.avail_in;
        got = room - s->z.avail_out;
        if (rc == Z_STREAM_END) s->inside = false;
        if (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR) {
            fail(err, "%s: the gzip data is damaged near byte %lld: %s", s->name, position(s),
                 s->z.msg ? s->z.msg : zError(rc));
            return -1;
        }
    }
    return got;
}

/* --- Zstandard --- */

static int64_t read_zstd(struct byte_stream *s, uint8_t *out, int64_t capacity, struct error *err) {
    int64_t got = 0;
    while (got == 0) {
        if (!fill(s, err)) return -1;
        if (s->raw_end && !s->inside) return 0;
        ZSTD_inBuffer in = {s->in + s->in_at, (size_t)(s->in_size - s->in_at), 0};
        ZSTD_outBuffer to = {out, (size_t)capacity, 0};
        size_t rc = ZSTD_decompressStream(s->zstd, &to, &in);
        s->in_at += (int64_t)in.pos;
        got = (int64_t)to.pos;
        if (ZSTD_isError(rc)) {
            fail(err, "%s: the Zstandard data is damaged near byte %lld: %s", s->name, position(s),
                 ZSTD_getErrorName(rc));
            return -1;
        }
        s->inside = rc != 0;
        /* After the last input the decoder may still hold output; if it does not, data is missing. */
        if (s->raw_end && got == 0 && s->inside) {
            fail(err, "%s: the Zstandard data is truncated: the file ends at byte %lld inside a frame",
                 s->name, (long long)s->raw_bytes);
            return -1;
        }
    }
    return got;
}

/* --- opening and reading --- */

static bool detect_kind(struct byte_stream *s, struct error *err) {
    if (!fill(s, err)) return false;
    uint32_t first = 0;
    memcpy(&first, s->in, (size_t)min_i64(s->in_size, 4));
    s->kind = s->in_size >= 2 && (first & 0xffff) == 0x8b1f                                           ? GZIP
              : s->in_size >= 4 && (first == ZSTD_MAGICNUMBER || (first & 0xfffffff0) == 0x184d2a50u) ? ZSTD
                                                                                                      : PLAIN;
    if (s->kind == PLAIN && (path_ends_with(s->name, ".gz") || path_ends_with(s->name, ".zst")))
        return fail(
            err,
            "%s: does not begin like %s data (its first bytes are %02x %02x %02x %02x, the file has %s%lld)",
            s->name, path_ends_with(s->name, ".gz") ? "gzip" : "Zstandard", s->in_size > 0 ? s->in[0] : 0,
            s->in_size > 1 ? s->in[1] : 0, s->in_size > 2 ? s->in[2] : 0, s->in_size > 3 ? s->in[3] : 0,
            s->in_size == (int64_t)sizeof s->in ? "at least " : "", (long long)s->in_size);
    if (s->kind == GZIP) {
        /* 16: gzip only. inflate checks the header of the member. */
        check(inflateInit2(&s->z, 15 + 16) == Z_OK, "zlib: out of memory");
        s->inside = true;
    } else if (s->kind == ZSTD) {
        s->zstd = ZSTD_createDStream();
        check(s->zstd, "zstd: out of memory");
        /* Files made with --long=31 too. */
        ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, sizeof(size_t) == 8 ? 31 : 30);
        s->inside = true;
    }
    return true;
}

struct byte_stream *byte_stream_open(const char *path, struct error *err) {
    bool standard_input = strcmp(path, "-") == 0;
    /* a pipe that nobody writes to is empty, and nothing to wait for */
    int fd = standard_input ? dup(0) : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || (!standard_input && fcntl(fd, F_SETFL, 0) != 0)) {
        fail(err, "%s: cannot open: %s", path, strerror(errno));
        if (fd >= 0) close(fd);
        return NULL;
    }
    struct byte_stream *s = (struct byte_stream *)xcalloc(1, sizeof *s);
    s->fd = fd;
    s->name = xstrdup(standard_input ? "standard input" : path);
    s->hash = XXH3_createState();
    check(s->hash, "out of host memory");
    XXH3_64bits_reset(s->hash);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    if (detect_kind(s, err)) return s;
    byte_stream_close(s);
    return NULL;
}

void byte_stream_close(struct byte_stream *s) {
    if (!s) return;
    close(s->fd);
    if (s->kind == GZIP) inflateEnd(&s->z);
    ZSTD_freeDStream(s->zstd);
    XXH3_freeState(s->hash);
    free((void *)(uintptr_t)s->name);
    free(s);
}

int64_t byte_stream_read(struct byte_stream *s, void *out, int64_t capacity, struct error *err) {
    check(capacity > 0, "byte_stream_read without room");
    if (s->kind == GZIP) return read_gzip(s, (uint8_t *)out, capacity, err);
    if (s->kind == ZSTD) return read_zstd(s, (uint8_t *)out, capacity, err);
    return fill(s, err) ? read_plain(s, (uint8_t *)out, capacity) : -1;
}

int64_t byte_stream_raw_bytes(const struct byte_stream *s) { return s->raw_bytes; }
uint64_t byte_stream_raw_hash(const struct byte_stream *s) { return XXH3_64bits_digest(s->hash); }
