/* Files are read through mmap and written through a buffered stream that remembers its first error, so that
 * callers check once, when they close. A file that must never be seen half written gets a temporary name,
 * is flushed to the disk, and is then renamed.
 *
 * Every error message has the path, the operation and the system's reason. */
#include "llmc/base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- mapping --- */

static bool map_descriptor(struct mapped_file *f, int fd, const char *path, struct error *err) {
    struct stat st;
    if (fstat(fd, &st) != 0) return fail(err, "%s: cannot read its size: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode)) return fail(err, "%s: is a directory, expected a file", path);
    if (!S_ISREG(st.st_mode)) return fail(err, "%s: is not a regular file and cannot be mapped", path);
    if ((uint64_t)st.st_size > (uint64_t)SIZE_MAX)
        return fail(err, "%s: %lld bytes do not fit this machine's address space", path,
                    (long long)st.st_size);
    f->size = (int64_t)st.st_size;
    f->data = NULL;
    if (f->size == 0) return true;
    void *p = mmap(NULL, (size_t)f->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return fail(err, "%s: cannot map %lld bytes: %s", path, (long long)f->size, strerror(errno));
    f->data = (const uint8_t *)p;
    return true;
}

bool file_map(struct mapped_file *f, const char *path, struct error *err) {
    memset(f, 0, sizeof *f);
    /* O_NONBLOCK: opening a FIFO returns at once and fails the S_ISREG test, instead of waiting for a
     * writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail(err, "%s: cannot open for reading: %s", path, strerror(errno));
    bool ok = map_descriptor(f, fd, path, err);
    close(fd);
    if (ok) f->path = xstrdup(path);
    return ok;
}

void file_unmap(struct mapped_file *f) {
    if (f->data) munmap((void *)(uintptr_t)f->data, (size_t)f->size);
    free(f->path);
    memset(f, 0, sizeof *f);
}

/* --- paths --- */

bool path_exists(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

bool path_is_directory(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool path_ends_with(const char *path, const char *end) {
    size_t n = strlen(path), m = strlen(end);
    return n >= m && strcmp(path + n - m, end) == 0;
}

int64_t directory_bytes(const char *path) {
    DIR *dir = opendir(path);
    int64_t bytes = 0;
    struct stat st;
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;)
        if (fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
            bytes += st.st_size;
    if (dir) closedir(dir);
    return bytes;
}

char *path_pattern(const char *pattern) {
    size_t length = strlen(pattern), literal = length;
    char *out = (char *)xmalloc(2 * length + 1), *to = out;
    for (;; literal--) { /* until what stands before a slash is a directory */
        while (literal > 0 && pattern[literal - 1] != '/') literal--;
        memcpy(out, pattern, literal);
        out[literal] = '\0';
        if (literal == 0 || path_is_directory(out)) break;
    }
    for (size_t i = 0; i < length; i++) {
        if (i < literal && strchr("*?[]{}\\~", pattern[i])) *to++ = '\\';
        *to++ = pattern[i];
    }
    *to = '\0';
    return out;
}

/* Like mkdir, but an existing directory is no error, even if another process makes it at the same
 * moment. */
static bool make_one_directory(const char *path, struct error *err) {
    if (mkdir(path, 0777) == 0) return true;
    int reason = errno;
    if (path_is_directory(path)) return true;
    return fail(err, "%s: cannot create directory: %s", path, strerror(reason));
}

bool make_directories(const char *path, struct error *err) {
    if (!*path) return fail(err, "cannot create a directory with an empty name");
    char *prefix = xstrdup(path);
    bool ok = true;
    for (char *p = prefix + 1; ok && *p; p++) {
        if (*p != '/' || p[-1] == '/') continue;
        *p = 0;
        ok = make_one_directory(prefix, err);
        *p = '/';
    }
    if (ok) ok = make_one_directory(prefix, err);
    free(prefix);
    return ok;
}

/* Without slashes at the end, which lstat() would take for "follow the link". */
static size_t path_length(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    return length;
}

/* Of the first `length` bytes of a path: how many name the directory it lies in; 0 for a plain name. */
static size_t parent_length(const char *path, size_t length) {
    while (length > 0 && path[length - 1] != '/') length--;
    while (length > 1 && path[length - 1] == '/') length--;
    return length;
}

char *path_parent(const char *path) {
    size_t length = parent_length(path, path_length(path));
    return length ? xasprintf("%.*s", (int)length, path) : xstrdup(".");
}

size_t path_existing(const char *path) {
    size_t length = path_length(path);
    for (bool there = false; length > 0; length = parent_length(path, length)) {
        char *prefix = xasprintf("%.*s", (int)length, path);
        there = path_exists(prefix);
        free(prefix);
        if (there) break;
    }
    return length;
}

void remove_empty_directories(const char *path, size_t keep) {
    char *prefix = xasprintf("%.*s", (int)path_length(path), path);
    for (size_t length = strlen(prefix); length > keep && rmdir(prefix) == 0;) {
        length = parent_length(prefix, length);
        prefix[length] = 0;
    }
    free(prefix);
}

bool may_write_file(const char *path, bool overwrite, struct error *err) {
    struct stat st;
    if (lstat(path, &st) == 0) {
        if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
            return fail(err, "%s: is a directory, expected the name of a file", path);
        if (!overwrite && !(S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)))
            return fail(err, "%s: exists already: --overwrite replaces it", path);
        return access(path, W_OK) == 0 || fail(err, "%s: cannot be replaced: %s", path, strerror(errno));
    }
    char *parent = path_parent(path);
    bool ok = path_is_directory(parent) || fail(err, "%s: there is no directory %s", path, parent);
    if (ok && access(parent, W_OK) != 0) ok = fail(err, "%s: cannot be written: %s", path, strerror(errno));
    free(parent);
    return ok;
}

/* --- flushing --- */

bool sync_path(const char *path, struct error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail(err, "%s: cannot open for flushing to disk: %s", path, strerror(errno));
    /* EINVAL and EROFS: some file systems cannot flush this kind of file, and there is nothing to flush. */
    bool ok = fsync(fd) == 0 || errno == EINVAL || errno == EROFS;
    int reason = errno;
    close(fd);
    return ok || fail(err, "%s: cannot flush to disk: %s", path, strerror(reason));
}

/* --- struct writer --- */

/* Behind struct writer.stream. glibc uses a larger buffer than its own 4 KiB only if setvbuf gets the
 * memory too. */
struct output {
    FILE *file;
    char buffer[1 << 20];
};

bool writer_open(struct writer *w, const char *path, struct error *err) {
    memset(w, 0, sizeof *w);
    FILE *file = fopen(path, "wbe");
    if (!file) return fail(err, "%s: cannot open for writing: %s", path, strerror(errno));
    struct output *out = (struct output *)xmalloc(sizeof *out);
    out->file = file;
    /* Without the large buffer it is only slower. */
    (void)setvbuf(file, out->buffer, _IOFBF, sizeof out->buffer);
    w->stream = out;
    w->path = xstrdup(path);
    return true;
}

static void writer_fail(struct writer *w, int reason) {
    w->failed = true;
    fail(&w->error, "%s: cannot write at byte %lld: %s", w->path, (long long)w->written, strerror(reason));
}

void writer_put(struct writer *w, const void *data, size_t bytes) {
    check(w->stream != NULL, "writer_put on a writer that is not open");
    if (w->failed || bytes == 0) return;
    errno = 0;
    if (fwrite(data, 1, bytes, ((struct output *)w->stream)->file) != bytes) {
        writer_fail(w, errno ? errno : EIO);
        return;
    }
    w->written += (int64_t)bytes;
}

void writer_printf(struct writer *w, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *text = xvasprintf(fmt, ap);
    va_end(ap);
    writer_put(w, text, strlen(text));
    free(text);
}

bool writer_close(struct writer *w, struct error *err) {
    check(w->stream != NULL, "writer_close on a writer that is not open");
    struct output *out = (struct output *)w->stream;
    FILE *stream = out->file;
    if (!w->failed && fflush(stream) != 0) writer_fail(w, errno);
    /* Pipes and character devices cannot be flushed to a disk, which is no failure. */
    if (!w->failed && fsync(fileno(stream)) != 0 && errno != EINVAL && errno != EROFS) writer_fail(w, errno);
    struct stat st;
    bool regular = fstat(fileno(stream), &st) == 0 && S_ISREG(st.st_mode);
    if (fclose(stream) != 0 && !w->failed) writer_fail(w, errno);
    bool ok = !w->failed;
    if (!ok) {
        if (regular) unlink(w->path);
        fail(err, "%s", w->error.message);
    }
    free(out);
    free(w->path);
    w->stream = NULL;
    w->path = NULL;
    return ok;
}

/* --- atomic replacement --- */

bool rename_synced(const char *from, const char *to, struct error *err) {
    if (rename(from, to) != 0) return fail(err, "%s: cannot rename to %s: %s", from, to, strerror(errno));
    char *parent = path_parent(to);
    bool ok = sync_path(parent, err);
    free(parent);
    return ok;
}

bool write_file_atomic(const char *path, const void *data, size_t bytes, struct error *err) {
    char *temporary = xasprintf("%s.tmp", path);
    struct writer w;
    bool ok = writer_open(&w, temporary, err);
    if (ok) {
        writer_put(&w, data, bytes);
        ok = writer_close(&w, err) && rename_synced(temporary, path, err);
        if (!ok) unlink(temporary);
    }
    free(temporary);
    return ok;
}
