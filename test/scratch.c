#include "test/scratch.h"

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/file.h"

static char directory[256];
static char **paths; /* what in_scratch gave out */
static int path_count;

int make_scratch(void **state) {
    const char *base = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/llmc_test_XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    return remove(path);
}

bool remove_tree(const char *path) {
    return nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT;
}

int remove_scratch(void **state) {
    while (path_count) free(paths[--path_count]);
    free(paths);
    paths = NULL;
    if (remove_tree(directory)) return 0;
    print_error("%s: cannot be removed: %s\n", directory, strerror(errno));
    return -1;
}

const char *scratch_directory(void) { return directory; }

const char *in_scratch(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *name = xvasprintf(fmt, ap);
    va_end(ap);
    paths = xrealloc(paths, (size_t)(path_count + 1) * sizeof *paths);
    paths[path_count] = xasprintf("%s/%s", directory, name);
    free(name);
    return paths[path_count++];
}

static const char *absolute(const char *path) { return *path == '/' ? path : in_scratch("%s", path); }

void put_file(const char *path, const void *data, size_t size) {
    struct error err = {""};
    char *name = xstrdup(absolute(path)), *slash = strrchr(name, '/');
    *slash = 0;
    if (!make_directories(name, &err)) fail_msg("%s", err.message);
    *slash = '/';
    FILE *f = fopen(name, "wb");
    if (!f) fail_msg("%s: cannot be written", name);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    free(name);
}

const char *put_text(const char *path, const char *text) {
    put_file(path, text, strlen(text));
    return absolute(path);
}

char *get_file(const char *path, size_t *size) {
    struct mapped_file f;
    struct error err;
    if (!file_map(&f, absolute(path), &err)) fail_msg("%s", err.message);
    char *data = xmalloc((size_t)f.size + 1);
    if (f.size) memcpy(data, f.data, (size_t)f.size);
    data[f.size] = 0;
    if (size) *size = (size_t)f.size;
    file_unmap(&f);
    return data;
}

char *get_text(const char *path) {
    size_t size;
    char *text = get_file(path, &size);
    assert_int_equal(strlen(text), size);
    return text;
}

void assert_mentions(const char *message, const char *part) {
    if (!strstr(message, part)) fail_msg("\"%.4000s\" does not mention \"%s\"", message, part);
}
