#include "test/program.h"

#include "llmc/base/file.h"

#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

/* --- commands --- */

static void set_programs(void) {
    static const char *const names[][2] = {
        {"T", "train_gpt"}, {"P", "prepare"}, {"S", "stories"}, {"B", "bench"}};
    const char *build = getenv("BUILD");
    char here[PATH_MAX];
    if (getenv("T")) return;
    assert_non_null(getcwd(here, sizeof here));
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
        char *path = xasprintf("%s/%s/%s", here, build && *build ? build : "build", names[i][1]);
        if (access(path, X_OK) != 0) fail_msg("%s: cannot be run; make it first", path);
        setenv(names[i][0], path, 1);
        free(path);
    }
}

static char *contents(FILE *f) {
    long size;
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    size = ftell(f);
    rewind(f);
    char *text = (char *)xcalloc((size_t)size + 1, 1);
    assert_int_equal(fread(text, 1, (size_t)size, f), size);
    fclose(f);
    return text;
}

static struct ran run_text(const char *command) {
    static struct ran last;
    FILE *out = tmpfile(), *err = tmpfile();
    assert_true(out && err);
    set_programs();
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (!freopen("/dev/null", "r", stdin) || chdir(scratch_directory()) != 0) _exit(126);
        dup2(fileno(out), 1);
        dup2(fileno(err), 2);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    free(last.out);
    free(last.err);
    last = (struct ran){WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), contents(out),
                        contents(err)};
    return last;
}

struct ran run_command(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *command = xvasprintf(fmt, ap);
    va_end(ap);
    struct ran r = run_text(command);
    free(command);
    return r;
}

void expect_command(int status, const char *said, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *command = xvasprintf(fmt, ap);
    va_end(ap);
    struct ran r = run_text(command);
    if (r.status != status || (!strstr(r.out, said) && !strstr(r.err, said)))
        fail_msg("%s\n  exit status %d, wanted %d; wanted to read: %s\n%.3000s%.3000s", command, r.status,
                 status, said, r.out, r.err);
    free(command);
}

/* --- directories --- */

static FILE *listing;
static size_t skipped; /* bytes of the path that are not shown */

static int list_entry(const char *path, const struct stat *st, int type, struct FTW *at) {
    char target[PATH_MAX] = "";
    struct mapped_file f;
    uint64_t hash = 0;
    if (type == FTW_SL && readlink(path, target, sizeof target - 1) < 0) return -1;
    if (type == FTW_F && S_ISREG(st->st_mode) && file_map(&f, path, NULL)) {
        hash = XXH3_64bits(f.data, (size_t)f.size);
        file_unmap(&f);
    }
    fprintf(listing, "%s %d %llx %s\n", path + skipped, type, (unsigned long long)hash, target);
    return 0;
}

static int by_line(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

char *snapshot(const char *directory) {
    char *text = NULL, *sorted, *path = xasprintf("%s/%s", scratch_directory(), directory);
    size_t size = 0, count = 0;
    listing = open_memstream(&text, &size);
    skipped = strlen(scratch_directory()) + 1;
    assert_int_equal(nftw(path, list_entry, 16, FTW_PHYS), 0);
    fclose(listing);
    char **lines = (char **)xcalloc(size + 1, sizeof *lines);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) lines[count++] = line;
    qsort(lines, count, sizeof *lines, by_line);
    sorted = xstrdup("");
    for (size_t i = 0; i < count; i++) {
        char *more = xasprintf("%s%s\n", sorted, lines[i]);
        free(sorted);
        sorted = more;
    }
    free(lines);
    free(text);
    free(path);
    return sorted;
}

void assert_unchanged(const char *directory, char *before, const char *what) {
    char *after = snapshot(directory);
    if (strcmp(before, after) != 0)
        fail_msg("%s\n  changed %s. Before:\n%s  After:\n%s", what, directory, before, after);
    free(before);
    free(after);
}
