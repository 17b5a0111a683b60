/* Files: mapping, directories, the writer and its failures, atomic replacement.
 *
 * Full disks come from /dev/full (ENOSPC) and from a limit on file sizes with SIGXFSZ ignored (EFBIG). */
#include "test/scratch.h"

#include "llmc/base/file.h"

#include <signal.h>

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static void assert_content(const char *path, const char *text) {
    struct mapped_file f;
    struct error err = {""};
    if (!file_map(&f, path, &err)) fail_msg("%s", err.message);
    assert_int_equal(f.size, strlen(text));
    assert_string_equal(f.path, path);
    if (f.size) assert_memory_equal(f.data, text, strlen(text));
    file_unmap(&f);
    assert_null(f.data);
    assert_null(f.path);
}

static void map_reads_what_was_written(void **state) {
    put_text("a", "some text");
    assert_content(in_scratch("a"), "some text");
    put_text("empty", "");
    assert_content(in_scratch("empty"), "");
    put_text("a", "shorter"); /* an open truncates */
    assert_content(in_scratch("a"), "shorter");
}

static void map_refuses_what_is_not_a_file(void **state) {
    struct mapped_file f;
    struct error err;
    assert_false(file_map(&f, in_scratch("missing"), &err));
    assert_mentions(err.message, in_scratch("missing"));
    assert_mentions(err.message, "No such file or directory");
    assert_false(file_map(&f, scratch_directory(), &err));
    assert_mentions(err.message, "is a directory");
    assert_int_equal(mkfifo(in_scratch("fifo"), 0600), 0);
    assert_false(file_map(&f, in_scratch("fifo"), &err)); /* and does not wait for a writer */
    assert_mentions(err.message, "not a regular file");
    assert_false(file_map(&f, "/dev/full", &err));
    file_unmap(&f); /* after a failure: harmless */
}

static void map_has_64_bit_size(void **state) {
    const int64_t size = (int64_t)5 << 30;
    int fd = open(in_scratch("big"), O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    if (ftruncate(fd, size) != 0 || pwrite(fd, "end", 3, size - 3) != 3) {
        close(fd);
        skip();
    }
    close(fd);
    struct mapped_file f;
    struct error err = {""};
    if (!file_map(&f, in_scratch("big"), &err)) fail_msg("%s", err.message);
    assert_int_equal(f.size, size);
    assert_memory_equal(f.data + size - 3, "end", 3);
    file_unmap(&f);
}

static void directories_are_made(void **state) {
    struct error err = {""};
    assert_true(make_directories(in_scratch("a//b/c/"), &err));
    assert_true(path_is_directory(in_scratch("a/b/c")));
    assert_true(make_directories(in_scratch("a/b/c"), &err)); /* again */
    put_text("a/b/c/file", "x");
    put_text("a/b/.hidden", "x");
    assert_false(make_directories(in_scratch("a/b/c/file/d"), &err));
    assert_mentions(err.message, "a/b/c/file");
    assert_false(make_directories("", &err));

    assert_int_equal(symlink("nowhere", in_scratch("a/dangling")), 0);
    assert_true(path_exists(in_scratch("a/dangling")));
    assert_false(path_is_directory(in_scratch("a/dangling")));
}

static void what_a_failed_start_made_is_removed(void **state) {
    struct error err = {""};
    const char *kept = in_scratch("kept"), *deep = in_scratch("kept/a/b/c/");
    assert_true(make_directories(kept, &err));
    size_t existing = path_existing(deep);
    assert_int_equal(existing, strlen(kept));
    assert_true(make_directories(deep, &err));
    remove_empty_directories(deep, existing);
    assert_true(path_is_directory(kept) && !path_exists(in_scratch("kept/a")));
    /* What is not empty stays, and so does what was there before. */
    assert_true(make_directories(deep, &err));
    put_text("kept/a/note", "x");
    remove_empty_directories(deep, existing);
    assert_false(path_exists(in_scratch("kept/a/b")));
    assert_content(in_scratch("kept/a/note"), "x");
    existing = path_existing(in_scratch("kept/a"));
    remove_empty_directories(in_scratch("kept/a"), existing);
    assert_true(path_is_directory(in_scratch("kept/a")));
    assert_int_equal(path_existing("no/such/path"), 0);
    assert_int_equal(path_existing("/no/such/path"), 1);
}

static void assert_parent(const char *path, const char *parent) {
    char *found = path_parent(path);
    assert_string_equal(found, parent);
    free(found);
}

static void parents_of_paths(void **state) {
    assert_parent("a", ".");
    assert_parent("a/b", "a");
    assert_parent("a//b/", "a");
    assert_parent("/a", "/");
    assert_parent("/", "/");
}

static void directories_of_a_pattern_stand_for_themselves(void **state) {
    static const char *const cases[][2] = {
        {"plain/*.bin", "plain/*.bin"},
        {"[v1]/a*.bin", "\\[v1\\]/a*.bin"},
        {"[v1]/{x}/[ab].bin", "\\[v1\\]/\\{x\\}/[ab].bin"},
        {"[v1]*/x.bin", "[v1]*/x.bin"},
        {"[v1]/*/x.bin", "\\[v1\\]/*/x.bin"},
        {"*.bin", "*.bin"},
    };
    struct error err;
    char here[4096];
    assert_non_null(getcwd(here, sizeof here));
    const char *deep = in_scratch("[v1]/{x}");
    assert_true(make_directories(deep, &err));
    assert_int_equal(chdir(scratch_directory()), 0);
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        char *pattern = path_pattern(cases[i][0]);
        assert_string_equal(pattern, cases[i][1]);
        free(pattern);
    }
    assert_int_equal(chdir(here), 0);
}

static void files_are_replaced_only_when_asked(void **state) {
    struct error err = {""};
    const char *file = in_scratch("file"), *link = in_scratch("link"), *nowhere = in_scratch("none/file");
    put_text("file", "precious");
    assert_int_equal(symlink(file, link), 0);
    assert_true(may_write_file(in_scratch("new"), false, &err));
    for (int i = 0; i < 2; i++) {
        assert_false(may_write_file(i ? link : file, false, &err));
        assert_mentions(err.message, "--overwrite");
        assert_true(may_write_file(i ? link : file, true, &err));
        assert_false(may_write_file(nowhere, i, &err));
        assert_mentions(err.message, "there is no directory");
        assert_false(may_write_file(scratch_directory(), i, &err));
        assert_mentions(err.message, "is a directory");
    }
    assert_true(may_write_file("/dev/null", false, &err));
    assert_false(path_exists(in_scratch("new")));
    assert_content(file, "precious");
}

static void sync_reports_a_missing_path(void **state) {
    struct error err = {""};
    put_text("a", "x");
    assert_true(sync_path(in_scratch("a"), &err));
    assert_true(sync_path(scratch_directory(), &err));
    assert_false(sync_path(in_scratch("missing"), &err));
    assert_mentions(err.message, in_scratch("missing"));
}

static void writer_counts_and_formats(void **state) {
    struct writer w;
    struct error err;
    assert_true(writer_open(&w, in_scratch("a"), &err));
    writer_printf(&w, "%d-%s;", 42, "x");
    writer_put(&w, "", 0);
    writer_put(&w, "abc", 3);
    assert_int_equal(w.written, 8);
    assert_false(w.failed);
    assert_true(writer_close(&w, &err));
    assert_content(in_scratch("a"), "42-x;abc");
}

static void writer_cannot_open(void **state) {
    struct writer w;
    struct error err;
    assert_false(writer_open(&w, in_scratch("no/such/directory"), &err));
    assert_mentions(err.message, in_scratch("no/such/directory"));
    assert_mentions(err.message, "No such file or directory");
    assert_false(writer_open(&w, scratch_directory(), &err));
    assert_mentions(err.message, "Is a directory");
}

/* Small data stays in the buffer until close, large data fails inside writer_put: both must be reported. */
static void full_device_is_reported(void **state) {
    (void)state;
    static char block[1 << 16];
    for (int blocks = 1; blocks <= 64; blocks += 63) {
        struct writer w;
        struct error err;
        assert_true(writer_open(&w, "/dev/full", &err));
        for (int i = 0; i < blocks; i++) writer_put(&w, block, sizeof block);
        assert_int_equal(w.failed, blocks > 1);
        assert_false(writer_close(&w, &err));
        assert_mentions(err.message, "/dev/full");
        assert_mentions(err.message, "No space left on device");
    }
    assert_true(path_exists("/dev/full")); /* a device is not removed like a half-written file */
}

struct size_limit {
    struct rlimit saved;
    void (*handler)(int);
};

static void limit_file_size(struct size_limit *l, rlim_t bytes) {
    l->handler = signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &l->saved);
    struct rlimit small = {bytes, l->saved.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
}

static void restore_file_size(const struct size_limit *l) {
    setrlimit(RLIMIT_FSIZE, &l->saved);
    signal(SIGXFSZ, l->handler);
}

static void failed_file_is_removed(void **state) {
    static char block[100000];
    struct size_limit limit;
    struct writer w;
    struct error err;
    for (int blocks = 1; blocks <= 64; blocks += 63) {
        limit_file_size(&limit, 65536);
        bool opened = writer_open(&w, in_scratch("a"), &err);
        for (int i = 0; opened && i < blocks; i++) writer_put(&w, block, sizeof block);
        bool closed = opened && writer_close(&w, &err);
        restore_file_size(&limit);
        assert_true(opened);
        assert_false(closed);
        assert_mentions(err.message, in_scratch("a"));
        assert_mentions(err.message, "File too large");
        assert_false(path_exists(in_scratch("a")));
    }
}

static void atomic_write_replaces(void **state) {
    struct error err = {""};
    if (!write_file_atomic(in_scratch("a"), "one", 3, &err)) fail_msg("%s", err.message);
    assert_content(in_scratch("a"), "one");
    put_text("a.tmp", "left behind by a killed process, and longer");
    if (!write_file_atomic(in_scratch("a"), "second", 6, &err)) fail_msg("%s", err.message);
    assert_content(in_scratch("a"), "second");
    assert_false(path_exists(in_scratch("a.tmp")));
}

static void atomic_write_keeps_the_old_file(void **state) {
    struct error err;
    static char block[100000];
    put_text("a", "old");
    struct size_limit limit;
    limit_file_size(&limit, 65536);
    bool ok = write_file_atomic(in_scratch("a"), block, sizeof block, &err);
    restore_file_size(&limit);
    assert_false(ok);
    assert_mentions(err.message, "File too large");
    assert_content(in_scratch("a"), "old");
    assert_false(path_exists(in_scratch("a.tmp")));

    /* A rename that fails (the target is a directory) leaves no temporary file either. */
    assert_int_equal(mkdir(in_scratch("dir"), 0700), 0);
    assert_false(write_file_atomic(in_scratch("dir"), "x", 1, &err));
    assert_mentions(err.message, "cannot rename");
    assert_false(path_exists(in_scratch("dir.tmp")));
    assert_false(write_file_atomic(in_scratch("missing/a"), "x", 1, &err));
    assert_mentions(err.message, "missing/a");
}

static void atomic_write_in_the_current_directory(void **state) {
    struct error err = {""};
    char cwd[PATH_MAX];
    assert_non_null(getcwd(cwd, sizeof cwd));
    assert_int_equal(chdir(scratch_directory()), 0);
    bool ok = write_file_atomic("plain", "x", 1, &err);
    assert_int_equal(chdir(cwd), 0);
    if (!ok) fail_msg("%s", err.message);
    assert_content(in_scratch("plain"), "x");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(map_reads_what_was_written),
        SCRATCH_TEST(map_refuses_what_is_not_a_file),
        SCRATCH_TEST(map_has_64_bit_size),
        SCRATCH_TEST(directories_are_made),
        SCRATCH_TEST(what_a_failed_start_made_is_removed),
        SCRATCH_TEST(parents_of_paths),
        SCRATCH_TEST(directories_of_a_pattern_stand_for_themselves),
        SCRATCH_TEST(files_are_replaced_only_when_asked),
        SCRATCH_TEST(sync_reports_a_missing_path),
        SCRATCH_TEST(writer_counts_and_formats),
        SCRATCH_TEST(writer_cannot_open),
        cmocka_unit_test(full_device_is_reported),
        SCRATCH_TEST(failed_file_is_removed),
        SCRATCH_TEST(atomic_write_replaces),
        SCRATCH_TEST(atomic_write_keeps_the_old_file),
        SCRATCH_TEST(atomic_write_in_the_current_directory),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
