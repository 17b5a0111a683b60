/* Files: mapped for reading; written through a stream that remembers its first error, or replaced
 * atomically. Offsets have 64 bits. */
#ifndef LLMC_FILE_H
#define LLMC_FILE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mapped_file {
    const uint8_t *data; /* NULL when size is 0 */
    int64_t size;
    char *path;
};
bool file_map(struct mapped_file *f, const char *path, struct error *err);
void file_unmap(struct mapped_file *f);

bool path_exists(const char *path);
bool path_is_directory(const char *path);
/* Whether the name has this ending, ".gz". */
bool path_ends_with(const char *path, const char *end);
/* The bytes of the files that lie in a directory itself; 0 if it cannot be read. */
int64_t directory_bytes(const char *path);
/* mkdir -p */
bool make_directories(const char *path, struct error *err);
/* The directory that the path lies in: "." for a plain name. The caller frees. */
char *path_parent(const char *path);

/* A pattern for glob() in which the directories that exist as they are written stand for themselves, whatever
 * brackets are in their names. The caller frees. */
char *path_pattern(const char *pattern);

/* For directories that are to go again if a start fails: path_existing() is the length of the longest
 * leading part of the path that exists, and remove_empty_directories() removes the path and its parents
 * down to that length, as far as they are empty. */
size_t path_existing(const char *path);
void remove_empty_directories(const char *path, size_t keep);

/* Whether a command may write its result to `path`: the place exists, and a file there is replaced only
 * with `overwrite`. Devices and pipes hold nothing that could be lost. Changes nothing; asked before the
 * work begins. */
bool may_write_file(const char *path, bool overwrite, struct error *err);
/* Flushes a file's or directory's data to the disk. */
bool sync_path(const char *path, struct error *err);

/* A buffered output file that remembers its first error. It writes to `path` itself: where readers must
 * never see a part of a file, write under a temporary name and rename (see write_file_atomic). */
struct writer {
    void *stream; /* private to file.c */
    char *path;
    int64_t written;
    bool failed;
    struct error error;
};
bool writer_open(struct writer *w, const char *path, struct error *err);
void writer_put(struct writer *w, const void *data, size_t bytes); /* no-op after the first error */
void writer_printf(struct writer *w, const char *fmt, ...) LLMC_PRINTF(2, 3);
/* Flushes, fsyncs and closes. On failure the file is removed and err says why ("...: No space left on
 * device"). */
bool writer_close(struct writer *w, struct error *err);

/* Renames, replacing a file at `to`, and flushes the directory, so that the new name survives a power
 * cut. */
bool rename_synced(const char *from, const char *to, struct error *err);

/* Writes path.tmp, fsyncs, renames over path, fsyncs the directory. The old file survives any failure. */
bool write_file_atomic(const char *path, const void *data, size_t bytes, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
