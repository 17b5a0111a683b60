/* Data sets: which shards a pattern names, fingerprints, and shards beyond 4 GiB. */
#include "test/corpus/loader.h"

#include <sys/stat.h>

static void missing_empty_and_short_files(void **state) {
    static const struct {
        int64_t size;
        const char *found;
    } cases[] = {{0, "is empty (0 bytes)"}, {1, "(1 bytes)"}, {1023, "(1023 bytes)"}, {1024, "1044"}};
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        put_shard(in_scratch("a.bin"), 0, 10, VOCAB);
        assert_int_equal(truncate(in_scratch("a.bin"), cases[i].size), 0);
        struct error err = {""};
        assert_null(dataset_open(in_scratch("a.bin"), VOCAB, &err));
        assert_mentions(err.message, in_scratch("a.bin"));
        assert_mentions(err.message, cases[i].found);
        assert_mentions(err.message, "1024");
    }
    struct error err = {""};
    assert_null(dataset_open(in_scratch("none-*.bin"), VOCAB, &err));
    assert_mentions(err.message, "none-*.bin");
    assert_mentions(err.message, "matches none");
    assert_null(dataset_open(scratch_directory(), VOCAB, &err));
    assert_mentions(err.message, "is a directory");
    assert_int_equal(mkfifo(in_scratch("fifo"), 0600), 0);
    assert_null(dataset_open(in_scratch("fifo"), VOCAB, &err)); /* and does not wait */
    assert_mentions(err.message, "regular file");
    /* One bad shard among good ones. */
    put_shard(in_scratch("s0.bin"), 0, 10, VOCAB);
    put_shard(in_scratch("s1.bin"), 0, 10, VOCAB);
    assert_int_equal(truncate(in_scratch("s1.bin"), 1040), 0);
    assert_null(dataset_open(in_scratch("s?.bin"), VOCAB, &err));
    assert_mentions(err.message, "s1.bin");
}

static void patterns_find_shards_in_order(void **state) {
    put_shard(in_scratch("t_10.bin"), 300, 5, VOCAB);
    put_shard(in_scratch("t_02.bin"), 200, 4, VOCAB);
    put_shard(in_scratch("t_B.bin"), 400, 4, VOCAB);
    put_shard(in_scratch("t_a.bin"), 500, 4, VOCAB); /* B before a: not the order of a language */
    put_shard(in_scratch("odd[1]*.bin"), 1, 7, VOCAB);
    put_shard(in_scratch("v.bin"), 2, 6, VOCAB);
    struct dataset *d = open_data(in_scratch("t_*.bin"), VOCAB);
    assert_int_equal(dataset_shards(d), 4);
    assert_int_equal(dataset_tokens(d), 17);
    struct dataloader *l = open_loader(d, (struct loader_options){.B = 1, .T = 3, .order = SAMPLES_IN_ORDER});
    assert_int_equal(dataloader_samples(l), 4);
    int32_t *got = take(l, 4, 1, 3);
    for (int i = 0; i < 4; i++) assert_int_equal(got[6 * i], 200 + 100 * i);
    free(got);
    dataloader_close(l);
    dataset_free(d);
    d = open_data(in_scratch("odd[1]*.bin"), VOCAB); /* a path that exists is not a pattern */
    assert_int_equal(dataset_tokens(d), 7);
    dataset_free(d);
    d = open_data(in_scratch("{v,t_10}.bin"), VOCAB);
    assert_int_equal(dataset_tokens(d), 11);
    dataset_free(d);
}

static void fingerprint_tells_data_apart(void **state) {
    assert_int_equal(mkdir(in_scratch("sub"), 0700), 0);
    put_shard(in_scratch("a.bin"), 0, 10, VOCAB);
    put_shard(in_scratch("b.bin"), 0, 10, VOCAB);
    put_shard(in_scratch("sub/a.bin"), 0, 10, VOCAB);
    put_shard(in_scratch("sub/b.bin"), 0, 11, VOCAB);
    static const char *const patterns[] = {"a.bin", "b.bin", "?.bin", "sub/?.bin", "sub/a.bin"};
    uint64_t prints[5];
    for (int i = 0; i < 5; i++) {
        struct dataset *d = open_data(in_scratch("%s", patterns[i]), VOCAB);
        prints[i] = dataset_fingerprint(d);
        dataset_free(d);
        for (int k = 0; k < i; k++) {
            if (i == 4 && k == 0)
                assert_true(prints[i] == prints[k]); /* moved to another directory */
            else
                assert_true(prints[i] != prints[k]);
        }
    }
    struct dataset *x = numbered(100), *y = numbered(100), *z = numbered(101);
    assert_true(dataset_fingerprint(x) == dataset_fingerprint(y));
    assert_true(dataset_fingerprint(x) != dataset_fingerprint(z));
    dataset_free(x);
    dataset_free(y);
    dataset_free(z);
}

/* Contents are told apart wherever they differ: in a shard of up to 1 MiB every token is seen, in a larger
 * one some from its first to its last. */
static void contents_tell_data_apart(void **state) {
    static const int64_t places[] = {0, 1, 255, 399998, 399999};
    uint64_t prints[6];
    put_shard(in_scratch("s0.bin"), 0, 10, VOCAB);
    for (size_t i = 0; i < ARRAY_LENGTH(prints); i++) {
        const uint16_t other = 50000;
        put_shard(in_scratch("s1.bin"), 0, 400000, 400000);
        put_shard(in_scratch("s2.bin"), 0, 60000, 60000); /* 200,000 bytes: hashed as a whole */
        if (i < 5) patch(in_scratch("s1.bin"), 1024 + 4 * places[i], &other, 2);
        struct dataset *d = open_data(in_scratch("s?.bin"), 400000);
        prints[i] = dataset_contents(d);
        dataset_free(d);
        for (size_t k = 0; k < i; k++) assert_true(prints[i] != prints[k]);
    }
    for (int64_t at = 59999; at > 0; at -= 7001) {
        const uint16_t other = (uint16_t)(at + 1);
        put_shard(in_scratch("s2.bin"), 0, 60000, 60000);
        patch(in_scratch("s2.bin"), 1024 + 2 * at, &other, 2);
        struct dataset *d = open_data(in_scratch("s?.bin"), 400000);
        assert_true(dataset_contents(d) != prints[5]);
        dataset_free(d);
    }
    struct dataset *x = numbered(100), *y = numbered(100), *z = numbered(101);
    assert_true(dataset_contents(x) == dataset_contents(y) && dataset_contents(x) != dataset_contents(z));
    const char *a = NULL, *b = NULL;
    assert_false(dataset_overlap(x, z, &a, &b));
    assert_true(dataset_overlap(x, y, &a, &b));
    assert_string_equal(a, "numbers");
    put_shard(in_scratch("v.bin"), 0, 10, VOCAB);
    struct dataset *train = open_data(in_scratch("s?.bin"), 400000),
                   *val = open_data(in_scratch("v.bin"), VOCAB);
    assert_true(dataset_overlap(train, val, &a, &b));
    assert_string_equal(a, in_scratch("s0.bin"));
    assert_string_equal(b, in_scratch("v.bin"));
    dataset_free(train);
    dataset_free(val);
    dataset_free(x);
    dataset_free(y);
    dataset_free(z);
}

static void offsets_have_64_bits(void **state) {
    const int64_t count = 1200000007; /* 4.8 GB, sparse */
    uint8_t header[SHARD_HEADER_BYTES];
    shard_header(header, 4, count);
    int fd = open(in_scratch("big.bin"), O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    const uint32_t last[] = {70001, 70002, 70003, 70004, 70005};
    bool made = ftruncate(fd, SHARD_HEADER_BYTES + 4 * count) == 0 &&
                pwrite(fd, header, sizeof header, 0) == sizeof header &&
                pwrite(fd, last, sizeof last, SHARD_HEADER_BYTES + 4 * (count - 7)) == sizeof last;
    close(fd);
    if (!made) skip();
    struct dataset *d = open_data(in_scratch("big.bin"), 100000);
    assert_int_equal(dataset_tokens(d), count);
    const int64_t n = (count - 1) / 3;
    struct dataloader *l = open_loader(
        d, (struct loader_options){.B = 1, .T = 3, .order = SAMPLES_IN_ORDER, .first_sample = n - 2});
    assert_int_equal(dataloader_samples(l), n);
    int32_t *got = take(l, 2, 1, 3); /* count - 1 is a multiple of 3, so these are the last 7 tokens */
    const int32_t expected[] = {70001, 70002, 70003, 70002, 70003, 70004, 70004, 70005, 0, 70005, 0, 0};
    assert_memory_equal(got, expected, sizeof expected);
    free(got);
    dataloader_close(l);
    dataset_free(d);
    d = open_data(in_scratch("big.bin"), 70003);
    struct shard sh;
    struct error err = {""};
    fd = shard_open(&sh, in_scratch("big.bin"), &err);
    uint32_t token;
    assert_false(shard_read(&sh, fd, count - 5, 1, 70003, &token, &err));
    assert_mentions(err.message, "token 1200000002 (at byte 4800001032) is 70003");
    close(fd);
    shard_free(&sh);
    dataset_free(d);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(missing_empty_and_short_files), SCRATCH_TEST(patterns_find_shards_in_order),
        SCRATCH_TEST(fingerprint_tells_data_apart),  SCRATCH_TEST(contents_tell_data_apart),
        SCRATCH_TEST(offsets_have_64_bits),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
