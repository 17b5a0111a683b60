/* What the fuzz targets share: see fuzz.h. */
#include "test/fuzz/fuzz.h"

#include "llmc/base/file.h"

#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- scratch files --- */

static char directory[PATH_MAX / 2];

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    return remove(path);
}
static void remove_directory(void) { nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

const char *fuzz_path(const char *name) {
    static char paths[8][PATH_MAX];
    static unsigned next;
    if (!directory[0]) {
        /* In memory if possible: on a disk, replacing a file flushes it. */
        const char *base = getenv("TMPDIR"), *memory = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
        snprintf(directory, sizeof directory, "%s/llmc_fuzz_XXXXXX", base && *base ? base : memory);
        check(mkdtemp(directory) != NULL, "%s: cannot make a scratch directory", directory);
        atexit(remove_directory);
    }
    char *path = paths[next++ % 8];
    snprintf(path, PATH_MAX, "%s%s%s", directory, *name ? "/" : "", name);
    return path;
}

const char *fuzz_file(const char *name, const void *data, size_t size) {
    const char *path = fuzz_path(name);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    check(fd >= 0, "%s: cannot write", path);
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)data + done, size - done);
        check(n > 0, "%s: cannot write", path);
        done += (size_t)n;
    }
    close(fd);
    return path;
}

void fuzz_seed_file(fuzz_seed_fn *add, void *user, const char *name) {
    struct mapped_file f;
    struct error err;
    check(file_map(&f, fuzz_path(name), &err), "%s", err.message);
    add(user, f.data ? (const void *)f.data : "", (size_t)f.size);
    file_unmap(&f);
}

static int64_t accepted;
void fuzz_accept(void) { accepted++; }
int64_t fuzz_accepted(void) { return accepted; }

/* --- mapped files as memory --- */

bool __real_file_map(struct mapped_file *f, const char *path, struct error *err);
void __real_file_unmap(struct mapped_file *f);
bool __wrap_file_map(struct mapped_file *f, const char *path, struct error *err);
void __wrap_file_unmap(struct mapped_file *f);

bool __wrap_file_map(struct mapped_file *f, const char *path, struct error *err) {
    struct mapped_file m;
    memset(f, 0, sizeof *f);
    if (!__real_file_map(&m, path, err)) return false;
    uint8_t *copy = m.size ? xmalloc((size_t)m.size) : NULL;
    if (m.size) memcpy(copy, m.data, (size_t)m.size);
    *f = (struct mapped_file){copy, m.size, xstrdup(m.path)};
    __real_file_unmap(&m);
    return true;
}

void __wrap_file_unmap(struct mapped_file *f) {
    free((void *)(uintptr_t)f->data);
    free(f->path);
    memset(f, 0, sizeof *f);
}

/* --- the disk --- */

/* Nothing here has to survive a crash, and waiting for the disk would take most of the time. */
int fsync(int fd) { return 0; }
int fdatasync(int fd) { return 0; }
