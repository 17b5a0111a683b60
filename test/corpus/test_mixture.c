/* Weighted mixtures: which texts are one, exact shares, and batches that hold the samples that the definition
 * says, whatever the batch, the processes and the place where a run resumes. */
#include "test/scratch.h"

#include "llmc/corpus/dataloader.h"
#include "llmc/corpus/mixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- the text --- */

static void texts_that_are_mixtures(void **state) {
    static const struct {
        const char *text;
        int64_t count, period, share[3];
        const char *last;
    } cases[] = {{"a/*.bin:0.7,b/*.bin:0.3", 2, 10, {7, 3}, "b/*.bin"},
                 {"a:2,b:1", 2, 3, {2, 1}, "b"},
                 {"a:0.7,b:0.7", 2, 2, {1, 1}, "b"},
                 {"a:50,b:30,c:20", 3, 10, {5, 3, 2}, "c"},
                 {"a:0.333333,b:0.666667", 2, 1000000, {333333, 666667}, "b"},
                 {"{a,b}/x_*.bin:.25,c:0.75", 2, 4, {1, 3}, "c"},
                 {"dir:1/x.bin:1", 1, 1, {1}, "dir:1/x.bin"},
                 {"a/*.bin", 0},
                 {"{a,b}/*.bin", 0},
                 {"a,b", 0},
                 {"shard:1*.bin", 0},
                 {"a:b", 0}};
    struct error err;
    struct mixture m;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        if (!mixture_parse(&m, cases[i].text, &err)) fail_msg("%s: %s", cases[i].text, err.message);
        assert_int_equal(m.count, cases[i].count);
        assert_int_equal(m.period, cases[i].period);
        for (int64_t k = 0; k < m.count; k++) assert_int_equal(m.share[k], cases[i].share[k]);
        if (m.count) assert_string_equal(m.pattern[m.count - 1], cases[i].last);
        mixture_free(&m);
    }
    /* a file of that name is a file */
    put_text("a.bin:0.5", "");
    assert_true(mixture_parse(&m, in_scratch("a.bin:0.5"), &err) && m.count == 0);
}

static void texts_that_are_none(void **state) {
    static const char *const cases[][2] = {
        {"a:0.7,b", "b: has no weight; every part of a mixture needs one: b:0.3"},
        {"a:0.7,x:1/b", "x:1/b: has no weight"},
        {"a:0.7,b:x", "b:x: \"x\" is no weight"},
        {"a:0.7,b:", "b:: \"\" is no weight"},
        {"a:0.7,b:0", "b:0: a weight must be above 0"},
        {"a:-1,b:0.5", "a:-1: \"-1\" is no weight"},
        {"a:1e3,b:0.5", "is no weight"},
        {"a:0.1234567,b:1", "at most 6 digits"},
        {"a:1.,b:1", "is no weight"},
        {"a:99999999999999999999,b:1", "is no weight"},
        {"a:1,,b:1", ": has no weight"},
        {":1,b:1", "has no files"},
        {"a:1000000,b:0.000001", "repeat after 1000000000001 samples only"},
    };
    struct mixture m;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct error err;
        if (mixture_parse(&m, cases[i][0], &err)) fail_msg("%s was taken", cases[i][0]);
        assert_mentions(err.message, cases[i][1]);
    }
}

/* Never further from its share than one sample for each other part, and exact after every period. */
static void shares_are_exact(void **state) {
    static const char *const texts[] = {"a:0.7,b:0.3", "a:1,b:2,c:4", "a:0.05,b:0.9,c:0.05", "a:1,b:1,c:1"};
    struct error err;
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
        struct mixture m;
        assert_true(mixture_parse(&m, texts[i], &err));
        int64_t taken[3] = {0};
        for (int64_t s = 0; s < 5 * m.period; s++) {
            int64_t of_part, part = mixture_part(&m, s, &of_part);
            assert_int_equal(of_part, taken[part]);
            taken[part]++;
            for (int64_t k = 0; k < m.count; k++) {
                double share = (double)m.share[k] / (double)m.period;
                assert_true(fabs((double)taken[k] - share * (double)(s + 1)) < (double)m.count - 1.0 + 1e-9);
                assert_int_equal(mixture_taken(&m, k, s + 1), taken[k]);
                if ((s + 1) % m.period == 0) assert_int_equal(taken[k] * m.period, m.share[k] * (s + 1));
            }
        }
        mixture_free(&m);
    }
}

/* --- batches --- */

enum { T = 4, VOCAB = 10000, SAMPLES = 200 };

/* Token i of shard n is 1000 n + i: a sample says where it is from. */
static void put_numbers(const char *name, int shard, int64_t count) {
    uint32_t tokens[1000];
    struct error err;
    for (int64_t i = 0; i < count; i++) tokens[i] = (uint32_t)(1000 * shard + i);
    if (!shard_write(in_scratch("%s", name), tokens, count, VOCAB, &err)) fail_msg("%s", err.message);
}

/* The first tokens of samples [from, to), by loaders of B rows on `world` processes. */
static void read_samples(int64_t *out, const struct dataset *d, enum sample_order order, int64_t B,
                         int64_t world, int64_t from, int64_t to) {
    struct error err;
    for (int64_t rank = 0; rank < world; rank++) {
        struct loader_options o = {
            .B = B, .T = T, .order = order, .seed = 5, .first_sample = from, .rank = rank, .world = world};
        struct dataloader *l = dataloader_open(d, &o, &err);
        if (!l) fail_msg("%s", err.message);
        for (int64_t s = from; s < to; s += B * world) {
            const int32_t *tokens, *targets;
            dataloader_next(l, &tokens, &targets, NULL);
            for (int64_t b = 0; b < B; b++) {
                out[s - from + rank * B + b] = tokens[b * T];
                for (int64_t t = 0; t < T; t++) assert_int_equal(targets[b * T + t], tokens[b * T] + t + 1);
            }
        }
        dataloader_close(l);
    }
}

static void batches_hold_the_shares(void **state) {
    /* 5 + 2 samples, and 25: the first part begins again every 7 of its samples */
    put_numbers("a_0.bin", 1, 21);
    put_numbers("a_1.bin", 2, 9);
    put_numbers("b.bin", 3, 101);
    struct error err;
    char *text = xasprintf("%s:0.7,%s:0.3", in_scratch("a_*.bin"), in_scratch("b.bin"));
    struct dataset *d = dataset_open_mixture(text, VOCAB, &err);
    if (!d) fail_msg("%s", err.message);
    for (int order = SAMPLES_SHUFFLED; order <= SAMPLES_IN_ORDER; order++) {
        int64_t all[SAMPLES], some[SAMPLES], seen[4000] = {0}, from_a = 0;
        read_samples(all, d, (enum sample_order)order, 1, 1, 0, SAMPLES);
        for (int64_t s = 0; s < SAMPLES; s++) {
            from_a += all[s] < 3000;
            seen[all[s]]++;
            if ((s + 1) % 10 == 0) assert_int_equal(from_a, (s + 1) / 10 * 7);
            /* each sample of a part once in an epoch of the part */
            if (all[s] < 3000 && from_a % 7 == 0)
                for (int k = 0; k < 7; k++)
                    assert_int_equal(seen[k < 5 ? 1000 + 4 * k : 2000 + 4 * (k - 5)], from_a / 7);
        }
        read_samples(some, d, (enum sample_order)order, 5, 2, 0, SAMPLES);
        assert_memory_equal(some, all, sizeof all);
        read_samples(some, d, (enum sample_order)order, 2, 1, 37, SAMPLES - 1);
        assert_memory_equal(some, all + 37, (SAMPLES - 38) * sizeof *all);
    }
    /* other shares are other data */
    char *other = xasprintf("%s:0.6,%s:0.4", in_scratch("a_*.bin"), in_scratch("b.bin"));
    char *same = xasprintf("%s:7,%s:3", in_scratch("a_?.bin"), in_scratch("b.bin"));
    struct dataset *e = dataset_open_mixture(other, VOCAB, &err),
                   *f = dataset_open_mixture(same, VOCAB, &err);
    assert_true(dataset_fingerprint(e) != dataset_fingerprint(d));
    assert_true(dataset_fingerprint(f) == dataset_fingerprint(d));
    dataset_free(d);
    dataset_free(e);
    dataset_free(f);
    free(text);
    free(other);
    free(same);
}

static void parts_without_data_are_named(void **state) {
    struct error err;
    put_numbers("a.bin", 1, 50);
    put_numbers("short.bin", 2, 3);
    char *missing = xasprintf("%s:1,%s:1", in_scratch("a.bin"), in_scratch("no-*.bin"));
    assert_null(dataset_open_mixture(missing, VOCAB, &err));
    assert_mentions(err.message, "no-*.bin: no such file");
    char *empty = xasprintf("%s:1,%s:1", in_scratch("a.bin"), in_scratch("short.bin"));
    struct dataset *d = dataset_open_mixture(empty, VOCAB, &err);
    struct loader_options o = {.B = 1, .T = T, .order = SAMPLES_SHUFFLED, .world = 1};
    assert_null(dataloader_open(d, &o, &err));
    assert_mentions(err.message, "short.bin: 3 tokens in 1 shards hold 0 samples");
    dataset_free(d);
    free(missing);
    free(empty);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(texts_that_are_mixtures),      SCRATCH_TEST(texts_that_are_none),
        cmocka_unit_test(shares_are_exact),         SCRATCH_TEST(batches_hold_the_shares),
        SCRATCH_TEST(parts_without_data_are_named),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
