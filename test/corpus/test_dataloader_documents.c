/* SAMPLES_DOCUMENTS: rows that begin at a document and hold whole documents. */
#include "test/corpus/loader.h"

#include "llmc/base/rng.h"

#include <stdio.h>

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

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents_fill_rows),
        cmocka_unit_test(documents_do_not_depend_on_the_division),
        SCRATCH_TEST(documents_are_complete),
        cmocka_unit_test(documents_longer_than_a_read),
        SCRATCH_TEST(documents_with_bad_tokens_are_refused),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
