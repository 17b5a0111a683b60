/* Batches: samples, the permutation, resuming, ranks, errors in the reading thread.
 * test_dataloader_documents.c has rows of whole documents. */
#include "test/corpus/loader.h"

#include "llmc/base/rng.h"

#include <limits.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>

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
    dataloader_seek_range(l, 1, 4); /* samples 1 and 2, 3 and none */
    for (int batch = 0; batch < 2; batch++) {
        const int32_t *tokens, *targets;
        int64_t valid;
        dataloader_next(l, &tokens, &targets, &valid);
        assert_int_equal(tokens[0], (1 + 2 * batch) * 3);
        assert_int_equal(targets[3], batch ? -1 : 7);
        assert_int_equal(valid, batch ? 3 : 6);
    }
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
        cmocka_unit_test(too_little_data_names_all_sizes),
        SCRATCH_TEST(bad_tokens_end_the_process),
        SCRATCH_TEST(shard_cut_short_while_running),
        cmocka_unit_test(loaders_close_at_any_moment),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
