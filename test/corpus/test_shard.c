/* Token shards: the bytes of the format, and damaged and unfinished files. */
#include "test/corpus/loader.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static void format_is_that_of_llm_c(void **state) {
    struct mapped_file f;
    struct error err = {""};
    const uint32_t tokens[] = {1, 50256, 258, 65535};
    for (int wide = 0; wide < 2; wide++) {
        const char *path = in_scratch("a.bin");
        assert_true(shard_write(path, tokens, 4, wide ? 65537 : 65536, &err));
        assert_true(file_map(&f, path, &err));
        assert_int_equal(f.size, 1024 + 4 * (wide ? 4 : 2));
        const uint8_t narrow_head[] = {0x88, 0xd8, 0x34, 0x01, 1, 0, 0, 0, 4, 0, 0, 0}; /* 20240520 */
        const uint8_t wide_head[] = {0xa1, 0xd9, 0x34, 0x01, 7, 0, 0, 0, 4, 0, 0, 0};   /* 20240801 */
        assert_memory_equal(f.data, wide ? wide_head : narrow_head, 12);
        for (int i = 12; i < 1024; i++) assert_int_equal(f.data[i], 0);
        const uint8_t narrow[] = {1, 0, 0x50, 0xc4, 2, 1, 0xff, 0xff};
        if (wide) assert_memory_equal(f.data + 1024, tokens, sizeof tokens);
        if (!wide) assert_memory_equal(f.data + 1024, narrow, sizeof narrow);
        file_unmap(&f);
        uint32_t back[4] = {0};
        struct shard sh;
        int fd = shard_open(&sh, path, &err);
        assert_true(fd >= 0);
        assert_int_equal(sh.tokens, 4);
        assert_true(shard_read(&sh, fd, 0, 4, 65536, back, &err));
        assert_memory_equal(back, tokens, sizeof tokens);
        assert_true(shard_read(&sh, fd, 1, 2, 65536, back, &err));
        assert_memory_equal(back, tokens + 1, 8);
        close(fd);
        shard_free(&sh);
    }
}

static void writing_refuses_what_the_format_cannot_say(void **state) {
    struct error err = {""};
    const uint32_t tokens[] = {1, 300, 2};
    assert_false(shard_write(in_scratch("a"), tokens, 0, VOCAB, &err));
    assert_false(shard_write(in_scratch("a"), tokens, (int64_t)INT32_MAX + 1, VOCAB, &err));
    assert_mentions(err.message, "2147483648");
    assert_false(shard_write(in_scratch("a"), tokens, 3, 300, &err));
    assert_mentions(err.message, "token 1 is 300");
    assert_false(path_exists(in_scratch("a")));
    assert_false(path_exists(in_scratch("a.tmp")));
}

static void full_disk_leaves_no_shard(void **state) {
    struct error err = {""};
    uint32_t *tokens = calloc(100000, sizeof *tokens);
    struct rlimit before, small;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 50000;
    setrlimit(RLIMIT_FSIZE, &small);
    bool ok = shard_write(in_scratch("a.bin"), tokens, 100000, VOCAB, &err);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_false(ok);
    assert_mentions(err.message, "File too large");
    assert_false(path_exists(in_scratch("a.bin")));
    assert_false(path_exists(in_scratch("a.bin.tmp")));
    assert_int_equal(mkdir(in_scratch("a.bin"), 0700), 0); /* the final name is taken */
    assert_false(shard_write(in_scratch("a.bin"), tokens, 10, VOCAB, &err));
    assert_false(path_exists(in_scratch("a.bin.tmp")));
    free(tokens);
}

static void damaged_headers_are_refused(void **state) {
    static const struct {
        int64_t offset;
        int32_t value;
        const char *found, *expected;
    } cases[] = {
        {0, 20240521, "20240521", "20240520"},
        {0, 0, "magic number 0", "20240801"},
        {4, 2, "version 2", "expected 1"},
        {8, 0, "token count 0", "at least 1"},
        {8, -5, "token count -5", "at least 1"},
        {8, 11, "1044 bytes, expected 1046", "truncated"},
        {8, 9, "1044 bytes, expected 1042", "after its last token"},
        {8, INT32_MAX, "expected 4294968318", "truncated"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        put_shard(in_scratch("a.bin"), 0, 10, VOCAB);
        patch(in_scratch("a.bin"), cases[i].offset, &cases[i].value, 4);
        struct error err = {""};
        struct dataset *d = dataset_open(in_scratch("a.bin"), VOCAB, &err);
        if (d) fail_msg("accepted: %s", cases[i].found);
        assert_mentions(err.message, in_scratch("a.bin"));
        assert_mentions(err.message, cases[i].found);
        assert_mentions(err.message, cases[i].expected);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(format_is_that_of_llm_c),
        SCRATCH_TEST(writing_refuses_what_the_format_cannot_say),
        SCRATCH_TEST(full_disk_leaves_no_shard),
        SCRATCH_TEST(damaged_headers_are_refused),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
