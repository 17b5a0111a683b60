/* Shards and batches: the format and its checks, samples, the permutation, resuming, ranks, documents,
 * errors in the reading thread. Most tests number the tokens of the data set, so that a row shows its
 * origin. */
#include "test/scratch.h"

#include "llmc/corpus/dataloader.h"
#include "llmc/base/rng.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VOCAB = 50257 };

/* --- helpers --- */

/* Tokens first, first + 1, ... in a shard. */
static void put_shard(const char *path, uint32_t first, int64_t count, int64_t vocab) {
    uint32_t *tokens = malloc((size_t)count * sizeof *tokens);
    for (int64_t i = 0; i < count; i++) tokens[i] = first + (uint32_t)i;
    struct error err = {""};
    if (!shard_write(path, tokens, count, vocab, &err)) fail_msg("%s", err.message);
    free(tokens);
}

/* Overwrites bytes of a file. */
static void patch(const char *path, int64_t offset, const void *bytes, size_t size) {
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, offset), size);
    close(fd);
}

static struct dataset *open_data(const char *pattern, int64_t vocab) {
    struct error err = {""};
    struct dataset *d = dataset_open(pattern, vocab, &err);
    if (!d) fail_msg("%s", err.message);
    return d;
}

static struct dataset *numbered(int64_t count) {
    uint32_t *tokens = malloc((size_t)count * sizeof *tokens);
    for (int64_t i = 0; i < count; i++) tokens[i] = (uint32_t)i;
    return dataset_from_tokens("numbers", tokens, count, count);
}

static struct dataloader *open_loader(const struct dataset *d, struct loader_options o) {
    struct error err = {""};
    if (o.world == 0) o.world = 1;
    struct dataloader *l = dataloader_open(d, &o, &err);
    if (!l) fail_msg("%s", err.message);
    return l;
}

/* Copies of the next `batches` batches: inputs then targets. */
static int32_t *take(struct dataloader *l, int64_t batches, int64_t B, int64_t T) {
    int32_t *out = malloc((size_t)(batches * 2 * B * T) * sizeof *out);
    for (int64_t i = 0; i < batches; i++) {
        const int32_t *tokens, *targets;
        int64_t valid;
        dataloader_next(l, &tokens, &targets, &valid);
        memcpy(out + i * 2 * B * T, tokens, (size_t)(B * T) * sizeof *out);
        memcpy(out + (i * 2 + 1) * B * T, targets, (size_t)(B * T) * sizeof *out);
        int64_t counted = 0;
        for (int64_t k = 0; k < B * T; k++) counted += targets[k] >= 0;
        assert_int_equal(valid, counted);
    }
    return out;
}

/* Runs `body` in a child and returns what it wrote to stderr; it must exit with status 1. */
static char *message_of_death(void (*body)(void *), void *arg) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        alarm(20); /* a hang is a failure, not a hang */
        body(arg);
        _exit(99);
    }
    close(ends[1]);
    char *text = calloc(1, 4096);
    size_t size = 0;
    for (ssize_t n; size < 4095 && (n = read(ends[0], text + size, 4095 - size)) > 0;) size += (size_t)n;
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 1)
        fail_msg("status %#x instead of exit 1; it said: %s", (unsigned)status, text);
    return text;
}

/* --- shards --- */

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

/* --- samples --- */

static void samples_cover_shards_of_different_lengths(void **state) {
    /* With T = 4: b is too short for a sample and joined to a, where one goes on into it; c holds exactly
     * one, d three and 3 tokens that are in none. */
    put_shard(in_scratch("a.bin"), 1000, 9, VOCAB);
    put_shard(in_scratch("b.bin"), 2000, 4, VOCAB);
    put_shard(in_scratch("c.bin"), 3000, 5, VOCAB);
    put_shard(in_scratch("d.bin"), 4000, 16, VOCAB);
    static const int32_t samples[][5] = {{1000, 1001, 1002, 1003, 1004}, {1004, 1005, 1006, 1007, 1008},
                                         {1008, 2000, 2001, 2002, 2003}, {3000, 3001, 3002, 3003, 3004},
                                         {4000, 4001, 4002, 4003, 4004}, {4004, 4005, 4006, 4007, 4008},
                                         {4008, 4009, 4010, 4011, 4012}};
    enum { SAMPLES = ARRAY_LENGTH(samples) };
    struct dataset *d = open_data(in_scratch("?.bin"), VOCAB);
    for (int shuffled = 0; shuffled < 2; shuffled++) {
        struct dataloader *l = open_loader(
            d, (struct loader_options){
                   .B = 1, .T = 4, .order = shuffled ? SAMPLES_SHUFFLED : SAMPLES_IN_ORDER, .seed = 3});
        assert_int_equal(dataloader_samples(l), SAMPLES);
        assert_int_equal(dataloader_unused(l), 3);
        for (int epoch = 0; epoch < 3; epoch++) {
            int seen[SAMPLES] = {0};
            int32_t *got = take(l, SAMPLES, 1, 4);
            for (int r = 0; r < SAMPLES; r++) {
                const int32_t *inp = got + r * 8, *target = inp + 4;
                int which = -1;
                for (int k = 0; k < SAMPLES; k++)
                    if (samples[k][0] == inp[0]) which = k;
                if (which < 0) fail_msg("a row starts with %d", inp[0]);
                if (!shuffled) assert_int_equal(which, r);
                seen[which]++;
                assert_memory_equal(inp, samples[which], 16);
                assert_memory_equal(target, samples[which] + 1, 16);
            }
            for (int k = 0; k < SAMPLES; k++) assert_int_equal(seen[k], 1);
            free(got);
        }
        dataloader_close(l);
    }
    dataset_free(d);
}

/* Random shards against the rule, told anew: cut into stretches, and every stretch into samples. Where no
 * shard is short, the samples of each shard are by themselves. */
static void short_shards_are_joined(void **state) {
    enum { MOST_SHARDS = 9, MOST = 40 };
    for (uint64_t trial = 0; trial < 80; trial++) {
        struct rng4 r = rng_philox(trial, RNG_TEST, 0);
        int shards = 1 + (int)(r.v[0] % MOST_SHARDS);
        int64_t T = 1 + r.v[1] % 12, used = 0, total = 0;
        uint32_t stretch[MOST_SHARDS * MOST], n = 0;
        int32_t expected[MOST_SHARDS * MOST];
        int64_t samples = 0, in_stretch = 0;
        for (int k = 0; k <= shards; k++) {
            uint32_t count = k < shards ? 1 + rng_philox(trial, RNG_TEST, (uint64_t)k + 1).v[0] % MOST : 0;
            if (k == shards || count > T) { /* the next stretch begins */
                for (int64_t at = 0; at + T < in_stretch; at += T) expected[samples++] = (int32_t)stretch[at];
                used += in_stretch > T ? (in_stretch - 1) / T * T + 1 : 0;
                in_stretch = 0;
            }
            if (k == shards) break;
            put_shard(in_scratch("j%d.bin", k), n, count, VOCAB);
            for (uint32_t i = 0; i < count; i++) stretch[in_stretch++] = n++;
            total += count;
        }
        struct dataset *d = open_data(in_scratch("j*.bin"), VOCAB);
        struct loader_options o = {.B = 1, .T = T, .order = SAMPLES_IN_ORDER, .world = 1};
        struct error err = {""};
        struct dataloader *l = dataloader_open(d, &o, &err);
        if (samples == 0) assert_mentions(err.message, "one is needed");
        assert_true((l != NULL) == (samples > 0));
        if (l) {
            assert_int_equal(dataloader_samples(l), samples);
            assert_int_equal(dataloader_unused(l), total - used);
            int32_t *got = take(l, samples, 1, T);
            for (int64_t s = 0; s < samples; s++)
                for (int64_t t = 0; t < T; t++) {
                    assert_int_equal(got[2 * s * T + t], expected[s] + t);
                    assert_int_equal(got[(2 * s + 1) * T + t], expected[s] + t + 1);
                }
            free(got);
        }
        dataloader_close(l);
        dataset_free(d);
        for (int k = 0; k < shards; k++) unlink(in_scratch("j%d.bin", k));
    }
}

static void batches_cross_epochs(void **state) {
    struct dataset *d = numbered(5 * 3 + 1);
    struct dataloader *l = open_loader(d, (struct loader_options){.B = 2, .T = 3, .order = SAMPLES_IN_ORDER});
    int32_t *got = take(l, 5, 2, 3);
    for (int r = 0; r < 10; r++) assert_int_equal(got[r / 2 * 12 + r % 2 * 3], r % 5 * 3);
    free(got);
    dataloader_close(l);
    dataset_free(d);
}

static void uint32_and_uint16_shards_mix(void **state) {
    put_shard(in_scratch("a.bin"), 60000, 9, 65536);
    put_shard(in_scratch("b.bin"), 65530, 9, 100000);
    struct dataset *d = open_data(in_scratch("?.bin"), 100000);
    struct dataloader *l = open_loader(d, (struct loader_options){.B = 1, .T = 8, .order = SAMPLES_IN_ORDER});
    int32_t *got = take(l, 2, 1, 8);
    for (int t = 0; t < 8; t++) {
        assert_int_equal(got[t], 60000 + t);
        assert_int_equal(got[16 + t], 65530 + t);
        assert_int_equal(got[24 + t], 65531 + t);
    }
    free(got);
    dataloader_close(l);
    dataset_free(d);
}

/* More shards than descriptors that stay open, in a process with a lower limit on descriptors. */
static void many_shards(void **state) {
    enum { SHARDS = 600 };
    for (uint32_t i = 0; i < SHARDS; i++) { put_shard(in_scratch("m_%04u.bin", i), 10 * i, 5, VOCAB); }
    struct rlimit before, small;
    getrlimit(RLIMIT_NOFILE, &before);
    small = before;
    small.rlim_cur = 300;
    setrlimit(RLIMIT_NOFILE, &small);
    struct dataset *d = open_data(in_scratch("m_*.bin"), VOCAB);
    struct dataloader *l = open_loader(d, (struct loader_options){.B = 8, .T = 4, .seed = 1});
    int32_t *got = take(l, 2 * SHARDS / 8, 8, 4);
    int64_t sum = 0;
    for (int r = 0; r < 2 * SHARDS; r++) sum += got[r / 8 * 64 + r % 8 * 4];
    assert_int_equal(sum, (int64_t)10 * SHARDS * (SHARDS - 1));
    free(got);
    dataloader_close(l);
    dataset_free(d);
    setrlimit(RLIMIT_NOFILE, &before);
}

/* --- the permutation --- */

static void shuffle_is_a_permutation(void **state) {
    static const int64_t sizes[] = {1,  2,  3,  4,  5,   6,   7,    8,    9,    10,   15,    16,    17,
                                    31, 33, 63, 64, 100, 127, 1000, 1024, 1025, 4095, 50000, 65537, 100003};
    for (size_t k = 0; k < ARRAY_LENGTH(sizes); k++) {
        int64_t n = sizes[k];
        uint8_t *seen = malloc((size_t)n);
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            memset(seen, 0, (size_t)n);
            for (int64_t i = 0; i < n; i++) {
                int64_t x = shuffle_index(7, epoch, i, n);
                assert_in_range(x, 0, n - 1);
                if (seen[x]++) fail_msg("%lld of %lld came twice", (long long)x, (long long)n);
            }
        }
        free(seen);
    }
    /* Huge data sets: a part of the permutation is in range and has no collision. */
    const int64_t huge = ((int64_t)1 << 40) + 12345;
    int64_t last = -1;
    for (int64_t i = 0; i < 1000; i++) {
        int64_t x = shuffle_index(1, 0, i, huge);
        assert_true(x >= 0 && x < huge && x != last);
        last = x;
    }
}

/* Chi-square over the positions of each element, for sizes so small that a weak network would show. The
 * 99.99 % point of chi-square with k degrees of freedom is below k + 4 sqrt(2k) + 14 here. */
static void shuffle_is_uniform(void **state) {
    static const int sizes[] = {2, 3, 5, 8, 13};
    enum { EPOCHS = 3000 };
    for (size_t k = 0; k < ARRAY_LENGTH(sizes); k++) {
        int n = sizes[k], counts[13][13] = {{0}};
        for (int e = 0; e < EPOCHS; e++)
            for (int i = 0; i < n; i++) counts[i][shuffle_index(11, e, i, n)]++;
        double chi = 0, expected = (double)EPOCHS / n, degrees = (double)((n - 1) * (n - 1));
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++)
                chi += (counts[i][j] - expected) * (counts[i][j] - expected) / expected;
        double root = 1;
        while (root * root < 2 * degrees) root += 0.1;
        if (!(chi <= degrees + 4 * root + 14)) fail_msg("n = %d: chi-square %g, %g degrees", n, chi, degrees);
    }
}

static void shuffle_depends_on_seed_and_epoch(void **state) {
    const int64_t n = 1000;
    int64_t same_seed = 0, same_epoch = 0, fixed = 0, neighbours = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t x = shuffle_index(1, 0, i, n);
        assert_int_equal(x, shuffle_index(1, 0, i, n));
        same_seed += x == shuffle_index(2, 0, i, n);
        same_epoch += x == shuffle_index(1, 1, i, n);
        fixed += x == i;
        neighbours += i + 1 < n && shuffle_index(1, 0, i + 1, n) == x + 1;
    }
    /* Each is 1 on average. */
    assert_in_range(same_seed, 0, 8);
    assert_in_range(same_epoch, 0, 8);
    assert_in_range(fixed, 0, 8);
    assert_in_range(neighbours, 0, 8);
}

static void loader_shuffles_by_seed_and_epoch(void **state) {
    struct dataset *d = numbered(50 * 4 + 1);
    int32_t *runs[3];
    for (int i = 0; i < 3; i++) {
        struct dataloader *l =
            open_loader(d, (struct loader_options){.B = 5, .T = 4, .seed = i == 2 ? 9 : 8});
        runs[i] = take(l, 20, 5, 4); /* two epochs */
        dataloader_close(l);
    }
    size_t epoch = 10 * 2 * 5 * 4, bytes = epoch * sizeof(int32_t);
    assert_memory_equal(runs[0], runs[1], 2 * bytes);
    assert_true(memcmp(runs[0], runs[2], bytes) != 0);
    assert_true(memcmp(runs[0], runs[0] + epoch, bytes) != 0);
    for (int i = 0; i < 3; i++) free(runs[i]);
    dataset_free(d);
}

/* --- position --- */

static void resumed_equals_uninterrupted(void **state) {
    static const enum sample_order orders[] = {SAMPLES_SHUFFLED, SAMPLES_IN_ORDER, SAMPLES_DOCUMENTS};
    struct dataset *d = numbered(1000);
    enum { B = 3, T = 7, N = 120 };
    for (size_t k = 0; k < ARRAY_LENGTH(orders); k++) {
        struct loader_options o = {.B = B, .T = T, .order = orders[k], .seed = 5, .end_of_text = 123};
        struct dataloader *l = open_loader(d, o);
        int32_t *whole = take(l, N, B, T);
        assert_int_equal(dataloader_position(l), N * B);
        dataloader_close(l);
        for (int64_t stop = 0; stop < N; stop += 17) {
            l = open_loader(d, o);
            free(take(l, stop, B, T));
            o.first_sample = dataloader_position(l);
            assert_int_equal(o.first_sample, stop * B);
            dataloader_close(l);
            l = open_loader(d, o);
            assert_int_equal(dataloader_position(l), stop * B);
            int32_t *rest = take(l, N - stop, B, T);
            assert_memory_equal(rest, whole + stop * 2 * B * T, (size_t)(N - stop) * 2 * B * T * 4);
            free(rest);
            dataloader_seek(l, stop * B);
            assert_int_equal(dataloader_position(l), stop * B);
            rest = take(l, 2, B, T);
            assert_memory_equal(rest, whole + stop * 2 * B * T, (stop + 2 <= N ? 2 : 1) * 2 * B * T * 4);
            free(rest);
            dataloader_close(l);
            o.first_sample = 0;
        }
        free(whole);
    }
    dataset_free(d);
}

/* The position is in samples, so another batch size continues at the same place. */
static void position_outlives_batch_size(void **state) {
    struct dataset *d = numbered(1001);
    struct loader_options o = {.B = 4, .T = 10, .seed = 5, .first_sample = 40};
    struct dataloader *l = open_loader(d, o);
    int32_t *four = take(l, 3, 4, 10);
    dataloader_close(l);
    o.B = 6;
    l = open_loader(d, o);
    int32_t *six = take(l, 2, 6, 10);
    dataloader_close(l);
    for (int r = 0; r < 12; r++)
        assert_memory_equal(four + r / 4 * 80 + r % 4 * 10, six + r / 6 * 120 + r % 6 * 10, 40);
    free(four);
    free(six);
    dataset_free(d);
}

static void ranks_split_the_batch(void **state) {
    struct dataset *d = numbered(1000);
    static const enum sample_order orders[] = {SAMPLES_SHUFFLED, SAMPLES_IN_ORDER, SAMPLES_DOCUMENTS};
    enum { B = 2, T = 7, WORLD = 3, N = 60 };
    for (size_t k = 0; k < ARRAY_LENGTH(orders); k++) {
        struct loader_options o = {
            .B = B * WORLD, .T = T, .order = orders[k], .seed = 5, .first_sample = 6, .end_of_text = 400};
        struct dataloader *l = open_loader(d, o);
        int64_t samples = dataloader_samples(l);
        int32_t *one = take(l, N, B * WORLD, T);
        dataloader_close(l);
        for (int rank = 0; rank < WORLD; rank++) {
            struct loader_options part = o;
            part.B = B;
            part.rank = rank;
            part.world = WORLD;
            l = open_loader(d, part);
            assert_int_equal(dataloader_samples(l), samples);
            int32_t *mine = take(l, N, B, T);
            assert_int_equal(dataloader_position(l), 6 + N * B * WORLD);
            dataloader_close(l);
            for (int64_t i = 0; i < 2 * N; i++)
                assert_memory_equal(mine + i * B * T, one + (i * WORLD + rank) * B * T, B * T * 4);
            free(mine);
        }
        free(one);
    }
    dataset_free(d);
}

/* --- documents --- */

enum { EOT = 99 };

static void documents_fill_rows(void **state) {
    /* Documents of 3, 2, 12, 1, 0 and 4 tokens; T = 6, so the third is cut. */
    static const uint32_t text[] = {EOT, 1,  2,  3,  EOT, 4,   5,  EOT, 6,   7,  8,  9,  10, 11, 12,
                                    13,  14, 15, 16, 17,  EOT, 18, EOT, EOT, 19, 20, 21, 22, EOT};
    static const int32_t tokens[8][6] = {{EOT, 1, 2, 3, EOT, EOT},       {EOT, 4, 5, EOT, EOT, EOT},
                                         {EOT, 6, 7, 8, 9, 10},          {11, 12, 13, 14, 15, 16},
                                         {17, EOT, 18, EOT, EOT, EOT},   {EOT, 19, 20, 21, 22, EOT},
                                         {EOT, EOT, EOT, EOT, EOT, EOT}, {EOT, EOT, EOT, EOT, EOT, EOT}};
    static const int32_t targets[8][6] = {{1, 2, 3, EOT, -1, -1},      {4, 5, EOT, -1, -1, -1},
                                          {6, 7, 8, 9, 10, 11},        {12, 13, 14, 15, 16, 17},
                                          {EOT, 18, EOT, EOT, -1, -1}, {19, 20, 21, 22, EOT, -1},
                                          {-1, -1, -1, -1, -1, -1},    {-1, -1, -1, -1, -1, -1}};
    uint32_t *copy = malloc(sizeof text);
    memcpy(copy, text, sizeof text);
    struct dataset *d = dataset_from_tokens("documents", copy, ARRAY_LENGTH(text), 100);
    struct dataloader *l = open_loader(
        d, (struct loader_options){.B = 4, .T = 6, .order = SAMPLES_DOCUMENTS, .end_of_text = EOT});
    assert_int_equal(dataloader_samples(l), 8);
    for (int epoch = 0; epoch < 2; epoch++) {
        int32_t *got = take(l, 2, 4, 6);
        for (int r = 0; r < 8; r++) {
            assert_memory_equal(got + r / 4 * 48 + r % 4 * 6, tokens[r], 24);
            assert_memory_equal(got + r / 4 * 48 + 24 + r % 4 * 6, targets[r], 24);
        }
        free(got);
    }
    dataloader_close(l);
    dataset_free(d);
}

/* The same rows in the same order in each epoch, however a step is divided. */
static void documents_do_not_depend_on_the_division(void **state) {
    enum { T = 7, STEP = 6, STEPS = 40 };
    static const int64_t divisions[][2] = {{2, 1}, {1, 2}, {1, 3}, {2, 3}}; /* B, world */
    struct dataset *d = numbered(168);
    struct loader_options o = {.B = 1, .T = T, .order = SAMPLES_DOCUMENTS, .end_of_text = 50};
    struct dataloader *l = open_loader(d, o);
    int64_t rows = dataloader_samples(l), samples = rows + STEP - rows % STEP;
    assert_true(rows % STEP == 1 && samples < STEPS * STEP / 3); /* filled up for every division */
    dataloader_close(l);
    o.B = o.step_samples = STEP;
    l = open_loader(d, o);
    assert_int_equal(dataloader_samples(l), samples);
    int32_t *whole = take(l, STEPS, STEP, T); /* (STEPS, 2, STEP, T) */
    dataloader_close(l);
    for (size_t k = 0; k < ARRAY_LENGTH(divisions); k++) {
        int64_t B = o.B = divisions[k][0], world = o.world = divisions[k][1], n = STEPS * STEP / (B * world);
        for (o.rank = 0; o.rank < world; o.rank++) {
            l = open_loader(d, o);
            assert_int_equal(dataloader_samples(l), samples);
            int32_t *mine = take(l, n, B, T); /* (n, 2, B, T) */
            for (int64_t row = 0; row < n * B; row++) {
                int64_t sample = row / B * B * world + o.rank * B + row % B;
                for (int half = 0; half < 2; half++)
                    assert_memory_equal(mine + ((row / B * 2 + half) * B + row % B) * T,
                                        whole + ((sample / STEP * 2 + half) * STEP + sample % STEP) * T,
                                        T * 4);
            }
            free(mine);
            dataloader_close(l);
        }
    }
    free(whole);
    dataset_free(d);
}

/* Random documents in several shards against the rule, applied one row at a time. */
static void documents_are_complete(void **state) {
    enum { SHARDS = 3, MOST = 400 };
    for (uint64_t trial = 0; trial < 60; trial++) {
        uint32_t text[SHARDS][MOST];
        int64_t n[SHARDS], T = 2 + (int64_t)(trial % 9), total = 0;
        for (uint32_t k = 0; k < SHARDS; k++) {
            n[k] = 1 + rng_philox(trial, RNG_TEST, k).v[0] % (MOST - 1);
            total += n[k] - 1;
            for (int64_t i = 0; i < n[k]; i++) {
                struct rng4 r = rng_philox(trial, RNG_TEST, 1000 * (k + 1) + (uint64_t)i);
                text[k][i] = r.v[0] % 5 == 0 ? EOT : 100 + r.v[1] % 1000;
            }
            struct error err;
            assert_true(shard_write(in_scratch("d%u.bin", k), text[k], n[k], 1100, &err));
        }
        struct dataset *d = open_data(in_scratch("d?.bin"), 1100);
        struct dataloader *l = open_loader(
            d, (struct loader_options){.B = 1, .T = T, .order = SAMPLES_DOCUMENTS, .end_of_text = EOT});
        int64_t rows = 0, valid_total = 0;
        for (int k = 0; k < SHARDS; k++)
            for (int64_t first = 0, end; first < n[k] - 1; first = end, rows++) {
                end = 0;
                for (int64_t p = first + 1; p < n[k] && p <= first + T; p++)
                    if (text[k][p] == EOT || p == n[k] - 1) end = p;
                if (end == 0) end = first + T;
                const int32_t *inp, *target;
                int64_t valid;
                dataloader_next(l, &inp, &target, &valid);
                assert_int_equal(valid, end - first);
                valid_total += valid;
                for (int64_t t = 0; t < T; t++) {
                    assert_int_equal(inp[t], t < valid ? text[k][first + t] : EOT);
                    assert_int_equal(target[t], t < valid ? (int64_t)text[k][first + t + 1] : -1);
                }
            }
        assert_int_equal(dataloader_samples(l), rows);
        assert_int_equal(valid_total, total);
        dataloader_close(l);
        dataset_free(d);
    }
}

static void documents_longer_than_a_read(void **state) {
    const int64_t n = 200001, T = 150000; /* the scan works in chunks of 65536 */
    uint32_t *tokens = malloc((size_t)n * sizeof *tokens);
    for (int64_t i = 0; i < n; i++) tokens[i] = 1;
    tokens[0] = tokens[70000] = tokens[n - 1] = EOT;
    struct dataset *d = dataset_from_tokens("long", tokens, n, 100);
    struct dataloader *l = open_loader(
        d, (struct loader_options){.B = 1, .T = T, .order = SAMPLES_DOCUMENTS, .end_of_text = EOT});
    assert_int_equal(dataloader_samples(l), 2);
    const int32_t *inp, *target;
    int64_t valid;
    dataloader_next(l, &inp, &target, &valid);
    assert_int_equal(valid, 70000);
    assert_int_equal(target[69999], EOT);
    dataloader_next(l, &inp, &target, &valid);
    assert_int_equal(valid, 130000);
    assert_int_equal(inp[0], EOT);
    dataloader_close(l);
    dataset_free(d);
}

/* --- errors --- */

static void too_little_data_names_all_sizes(void **state) {
    struct error err = {""};
    struct dataset *d = numbered(64);
    struct loader_options o = {.B = 1, .T = 64, .world = 1};
    assert_null(dataloader_open(d, &o, &err));
    static const char *const sizes[] = {"numbers", "64 tokens", "0 samples", "65 tokens", "one is needed"};
    for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) assert_mentions(err.message, sizes[i]);
    o = (struct loader_options){.B = 4, .T = 9, .world = 2}; /* exactly 7 samples of the 8 */
    assert_null(dataloader_open(d, &o, &err));
    static const char *const more[] = {"7 samples", "the 8 of one batch", "batch size 4", "2 processes"};
    for (size_t i = 0; i < ARRAY_LENGTH(more); i++) assert_mentions(err.message, more[i]);
    o.order = SAMPLES_IN_ORDER; /* a batch may go through a small validation set more than once */
    struct dataloader *l = dataloader_open(d, &o, &err);
    assert_non_null(l);
    int32_t *got = take(l, 1, 4, 9);
    dataloader_close(l);
    o.rank = 1;
    l = dataloader_open(d, &o, &err);
    assert_non_null(l);
    free(got);
    got = take(l, 1, 4, 9);
    assert_int_equal(got[2 * 9], 6 * 9);
    assert_int_equal(got[3 * 9], 0);
    free(got);
    dataloader_close(l);
    o.T = 64;
    assert_null(dataloader_open(d, &o, &err)); /* but one sample there must be */
    assert_mentions(err.message, "0 samples");
    o = (struct loader_options){.B = 4, .T = 7, .world = 2};
    l = dataloader_open(d, &o, &err); /* 9 samples */
    assert_non_null(l);
    dataloader_close(l);
    dataset_free(d);
    d = numbered(1);
    o.order = SAMPLES_DOCUMENTS;
    assert_null(dataloader_open(d, &o, &err));
    assert_mentions(err.message, "too few");
    dataset_free(d);
}

struct death {
    const char *pattern;
    struct dataset *memory;
    int64_t good_batches;
    bool truncate;
};

static void read_until_death(void *arg) {
    const struct death *how = arg;
    struct error err = {""};
    struct dataset *d = how->memory ? how->memory : dataset_open(how->pattern, 1000, &err);
    struct loader_options o = {.B = 2, .T = 4, .world = 1, .order = SAMPLES_IN_ORDER};
    struct dataloader *l = dataloader_open(d, &o, &err);
    if (!l) _exit(98);
    for (int64_t i = 0; i < 1000; i++) {
        const int32_t *tokens, *targets;
        dataloader_next(l, &tokens, &targets, NULL);
        if (i >= how->good_batches && !how->truncate) _exit(97);
        if (i == 0 && how->truncate && truncate(how->pattern, 2000) != 0) _exit(96);
    }
}

static void bad_tokens_end_the_process(void **state) {
    put_shard(in_scratch("p0.bin"), 0, 100, 1000);
    put_shard(in_scratch("p1.bin"), 0, 100, 1000);
    const uint16_t bad = 1000;
    patch(in_scratch("p1.bin"), 1024 + 2 * 43, &bad, 2);
    /* 24 samples in the first shard; token 43 is a target in sample 10 of the second: batch 17. */
    struct death how = {.pattern = in_scratch("p?.bin"), .good_batches = 17};
    char *message = message_of_death(read_until_death, &how);
    static const char *const parts[] = {"error: ", "p1.bin", "token 43", "at byte 1110", "1000", "0 to 999"};
    for (size_t i = 0; i < ARRAY_LENGTH(parts); i++) assert_mentions(message, parts[i]);
    free(message);
    how.memory = numbered(2000);
    struct dataset *d = how.memory;
    uint32_t *tokens = calloc(50, sizeof *tokens);
    tokens[8] = 12;
    how.memory = dataset_from_tokens("my text", tokens, 50, 12);
    how.good_batches = 0; /* token 8 is the last target of the first batch */
    message = message_of_death(read_until_death, &how);
    assert_mentions(message, "my text: token 8 is 12");
    free(message);
    dataset_free(how.memory);
    dataset_free(d);
}

static void shard_cut_short_while_running(void **state) {
    put_shard(in_scratch("t.bin"), 0, 1000, 1000);
    struct death how = {.pattern = in_scratch("t.bin"), .truncate = true};
    char *message = message_of_death(read_until_death, &how);
    assert_mentions(message, "t.bin");
    assert_mentions(message, "ends at byte 2000");
    free(message);
}

/* SAMPLES_DOCUMENTS reads everything when it is opened, so the error is an ordinary one. */
static void documents_with_bad_tokens_are_refused(void **state) {
    put_shard(in_scratch("q.bin"), 0, 100, 1000);
    struct dataset *d = open_data(in_scratch("q.bin"), 50);
    struct error err = {""};
    struct loader_options o = {.B = 2, .T = 4, .world = 1, .order = SAMPLES_DOCUMENTS, .end_of_text = 7};
    assert_null(dataloader_open(d, &o, &err));
    assert_mentions(err.message, "token 50 (at byte 1124) is 50");
    dataset_free(d);
}

static void loaders_close_at_any_moment(void **state) {
    struct dataset *d = numbered(100000);
    for (int i = 0; i < 200; i++) {
        struct dataloader *l = open_loader(d, (struct loader_options){.B = 4, .T = 64, .seed = (uint64_t)i});
        if (i % 3) free(take(l, i % 3, 4, 64));
        if (i % 5 == 0) dataloader_seek(l, i);
        if (i % 2) usleep((useconds_t)(i % 7) * 10);
        dataloader_close(l);
    }
    dataloader_close(NULL);
    dataset_free(d);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(format_is_that_of_llm_c),
        SCRATCH_TEST(writing_refuses_what_the_format_cannot_say),
        SCRATCH_TEST(full_disk_leaves_no_shard),
        SCRATCH_TEST(damaged_headers_are_refused),
        SCRATCH_TEST(missing_empty_and_short_files),
        SCRATCH_TEST(patterns_find_shards_in_order),
        SCRATCH_TEST(fingerprint_tells_data_apart),
        SCRATCH_TEST(contents_tell_data_apart),
        SCRATCH_TEST(offsets_have_64_bits),
        SCRATCH_TEST(samples_cover_shards_of_different_lengths),
        SCRATCH_TEST(short_shards_are_joined),
        cmocka_unit_test(batches_cross_epochs),
        SCRATCH_TEST(uint32_and_uint16_shards_mix),
        SCRATCH_TEST(many_shards),
        cmocka_unit_test(shuffle_is_a_permutation),
        cmocka_unit_test(shuffle_is_uniform),
        cmocka_unit_test(shuffle_depends_on_seed_and_epoch),
        cmocka_unit_test(loader_shuffles_by_seed_and_epoch),
        cmocka_unit_test(resumed_equals_uninterrupted),
        cmocka_unit_test(position_outlives_batch_size),
        cmocka_unit_test(ranks_split_the_batch),
        cmocka_unit_test(documents_fill_rows),
        cmocka_unit_test(documents_do_not_depend_on_the_division),
        SCRATCH_TEST(documents_are_complete),
        cmocka_unit_test(documents_longer_than_a_read),
        cmocka_unit_test(too_little_data_names_all_sizes),
        SCRATCH_TEST(bad_tokens_end_the_process),
        SCRATCH_TEST(shard_cut_short_while_running),
        SCRATCH_TEST(documents_with_bad_tokens_are_refused),
        cmocka_unit_test(loaders_close_at_any_moment),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
