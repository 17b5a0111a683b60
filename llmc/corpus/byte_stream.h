/* Reads a file or the standard input. gzip and Zstandard are recognised by their first bytes and
 * decompressed, also several members in a row. A file that ends too early is an error, never a shorter
 * text. */
#ifndef LLMC_BYTE_STREAM_H
#define LLMC_BYTE_STREAM_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct byte_stream;

/* "-" is the standard input. NULL with the reason in err. */
struct byte_stream *byte_stream_open(const char *path, struct error *err);
void byte_stream_close(struct byte_stream *s); /* NULL is fine */

/* Reads up to `capacity` bytes of the content; 0 at its end, -1 on an error (err names file and offset). */
int64_t byte_stream_read(struct byte_stream *s, void *out, int64_t capacity, struct error *err);

/* Of the raw file, as far as it was read: its bytes, and their XXH3 (as `xxhsum -H3` prints it). */
int64_t byte_stream_raw_bytes(const struct byte_stream *s);
uint64_t byte_stream_raw_hash(const struct byte_stream *s);

#ifdef __cplusplus
}
#endif
#endif
