/* Best-fit packing: the rule against a search through all rows, and the samples of a loader that packs. */
#include "test/corpus/loader.h"

#include "llmc/base/rng.h"
#include "llmc/corpus/packing.h"

enum { EOT = 99 };

/* --- the rule --- */

static int64_t length_at(uint64_t trial, int64_t i, int64_t longest) {
    struct rng4 r = rng_philox(trial, RNG_TEST, (uint64_t)i);
    return 1 + (int64_t)((uint64_t)r.v[0] * (r.v[1] % 4 ? (uint64_t)longest / 3 : (uint64_t)longest) >> 32);
}

/* Rows of T that the lengths need, and the space that each keeps: the longest first into the row with the
 * least space that holds them, or in their order into the first row that holds them. */
static int64_t rows_by_search(int64_t *space, const int64_t *length, int64_t count, int64_t T, bool best) {
    int64_t rows = 0;
    bool *placed = calloc((size_t)count, sizeof *placed);
    for (int64_t n = 0; n < count; n++) {
        int64_t i = n, row = -1;
        for (int64_t k = 0; best && k < count; k++)
            if (!placed[k] && (placed[i] || length[k] > length[i])) i = k;
        placed[i] = true;
        for (int64_t r = 0; r < rows; r++)
            if (space[r] >= length[i] && (row < 0 || (best && space[r] < space[row]))) row = r;
        if (row < 0) space[row = rows++] = T;
        space[row] -= length[i];
    }
    free(placed);
    return rows;
}

/* Of equal lengths, and of rows with the same space, any may be the next: the spaces that are kept are the
 * same. */
static int by_space(const void *a, const void *b) {
    int64_t d = *(const int64_t *)a - *(const int64_t *)b;
    return (d > 0) - (d < 0);
}

/* The rows and spaces that the search finds, and no more rows than by first-fit; every piece in one row,
 * no row overfull. */
static void packs_by_the_rule(void **state) {
    enum { MOST = 300 };
    for (uint64_t trial = 0; trial < 80; trial++) {
        int64_t T = 1 + (int64_t)(trial * trial % 70), count = 1 + (int64_t)(trial * 37 % MOST), first = 5;
        int64_t length[MOST], pieces = 0, pairs = 0, piece[MOST * 3], space[MOST * 3], kept[MOST * 3];
        struct packing p;
        packing_init(&p, T);
        for (int64_t i = 0; i < count; i++) {
            length[i] = length_at(trial, i, trial % 3 ? T : 3 * T);
            for (int64_t left = length[i]; left > 0; left -= T) {
                piece[pieces] = min_i64(left, T);
                pairs += piece[pieces] * piece[pieces];
                pieces++;
            }
            packing_add(&p, first, length[i]);
            first += length[i];
        }
        packing_finish(&p);
        assert_int_equal(p.documents, count);
        assert_int_equal(p.tokens, first - 5);
        assert_int_equal(p.count, pieces);
        assert_int_equal(p.pairs, pairs);
        assert_true(p.row_count <= rows_by_search(space, piece, pieces, T, false));
        assert_int_equal(p.row_count, rows_by_search(space, piece, pieces, T, true));
        bool *seen = calloc((size_t)pieces, sizeof *seen);
        for (int64_t r = 0; r < p.row_count; r++) {
            int64_t filled = 0;
            for (int64_t i = p.rows[r]; i >= 0; i = p.pieces[i].next) {
                assert_false(seen[i]);
                seen[i] = true;
                assert_int_equal(p.pieces[i].length, piece[i]);
                filled += p.pieces[i].length;
            }
            assert_in_range(filled, 1, T);
            kept[r] = T - filled;
        }
        qsort(space, (size_t)p.row_count, sizeof *space, by_space);
        qsort(kept, (size_t)p.row_count, sizeof *kept, by_space);
        assert_memory_equal(kept, space, (size_t)p.row_count * sizeof *kept);
        for (int64_t i = 0; i < pieces; i++) assert_true(seen[i]);
        free(seen);
        packing_free(&p);
    }
}

/* --- samples --- */

/* Copies of the next n batches: for each row its tokens, targets, and where their documents begin. */
static int32_t *take_rows(struct dataloader *l, int64_t n, int64_t B, int64_t T) {
    int32_t *out = malloc((size_t)(n * B * 3 * T) * sizeof *out);
    for (int64_t row = 0; row < n * B; row++) {
        static const int32_t *part[3];
        static int64_t valid;
        if (row % B == 0) {
            dataloader_next(l, &part[0], &part[1], &valid);
            part[2] = dataloader_first_of_document(l);
            for (int64_t i = 0; i < B * T; i++) valid -= part[1][i] >= 0;
            assert_int_equal(valid, 0);
        }
        for (int k = 0; k < 3; k++)
            memcpy(out + (row * 3 + k) * T, part[k] + row % B * T, (size_t)T * sizeof *out);
    }
    return out;
}

/* A shard whose token i is 100 + first + i, but for an EOT here and there, never two in a row. */
static void put_documents(const char *path, uint64_t trial, uint32_t first, int64_t n, uint32_t *text) {
    struct error err;
    for (int64_t i = 0; i < n; i++) {
        bool begins = rng_philox(trial, RNG_TEST, first + (uint64_t)i).v[0] % 6 == 0;
        text[i] = begins && (i == 0 || text[i - 1] != EOT) ? EOT : 100 + first + (uint32_t)i;
    }
    if (!shard_write(path, text, n, 5000, &err)) fail_msg("%s", err.message);
}

/* Checks a document in a row, `count` inputs, against the data that it is in, and counts its targets. */
static void check_document(const int32_t *tokens, const int32_t *targets, int64_t count, const uint32_t *text,
                           int64_t n, int64_t at, int64_t T, int *seen) {
    int64_t begins = at, ends = at + count;
    while (begins > 0 && text[begins] != EOT) begins--; /* the document that the first token is of */
    assert_int_equal((at - begins) % T, 0);
    assert_true(count == T || ends == n - 1 || text[ends] == EOT);
    for (int64_t i = 0; i < count; i++) {
        assert_int_equal(tokens[i], text[at + i]);
        assert_int_equal(targets[i], text[at + i + 1]);
        assert_true(i == 0 || text[at + i] != EOT);
        seen[at + i + 1]++;
    }
}

/* Each token but the first of a shard is a target once an epoch; no document goes on in another row,
 * unless it is longer than one. */
static void packed_documents_are_whole(void **state) {
    enum { SHARDS = 3, MOST = 400 };
    for (uint64_t trial = 0; trial < 40; trial++) {
        static uint32_t text[SHARDS][MOST];
        int seen[SHARDS][MOST + 1] = {{0}};
        int64_t n[SHARDS], T = 1 + (int64_t)(trial % 13), tokens = 0, filled = 0;
        for (uint32_t k = 0; k < SHARDS; k++) {
            n[k] = 1 + rng_philox(trial, RNG_TEST, 9000 + k).v[0] % (MOST - 1);
            tokens += n[k] - 1;
            put_documents(in_scratch("d%u.bin", k), trial, 1000 * (k + 1), n[k], text[k]);
        }
        struct dataset *d = open_data(in_scratch("d?.bin"), 5000);
        struct loader_options o = {.B = 1, .T = T, .order = SAMPLES_PACKED, .end_of_text = EOT};
        o.shuffle_rows = trial % 2;
        struct dataloader *l = open_loader(d, o);
        int64_t rows = dataloader_samples(l);
        int32_t *row = take_rows(l, rows, 1, T);
        for (int64_t r = 0; r < rows; r++) {
            const int32_t *inp = row + r * 3 * T, *target = inp + T, *first = target + T;
            for (int64_t at = 0, end; at < T; at = end) {
                assert_int_equal(first[at], at);
                if (target[at] < 0) assert_int_equal(inp[at], EOT);
                for (end = at + 1; end < T && first[end] == at;) end++;
                if (target[at] < 0) continue; /* an empty place */
                filled += end - at;
                /* tokens tell where they are from, if they are no EOT */
                int64_t from = inp[at] == EOT ? target[at] - 101 : inp[at] - 100, k = from / 1000 - 1;
                check_document(inp + at, target + at, end - at, text[k], n[k], from % 1000, T, seen[k]);
            }
        }
        assert_int_equal(filled, tokens);
        for (int k = 0; k < SHARDS; k++)
            for (int64_t i = 1; i < n[k]; i++) assert_int_equal(seen[k][i], 1);
        struct packed_counts counts = dataloader_packed(l);
        assert_int_equal(counts.rows, rows);
        assert_int_equal(counts.tokens, tokens);
        free(row);
        dataloader_close(l);
        dataset_free(d);
    }
}

/* Whether two lists have the same rows, in any order. */
static bool same_rows(const int32_t *a, const int32_t *b, int64_t rows, int64_t T) {
    bool *used = calloc((size_t)rows, sizeof *used), same = true;
    for (int64_t i = 0; same && i < rows; i++) {
        int64_t k = 0;
        while (k < rows && (used[k] || memcmp(a + i * 3 * T, b + k * 3 * T, (size_t)(3 * T) * 4))) k++;
        same = k < rows;
        if (same) used[k] = true;
    }
    free(used);
    return same;
}

/* A sample is a function of seed and number: other batches, processes and starts have the same, and each
 * epoch the same rows in another order. */
static void packed_samples_do_not_depend_on_the_division(void **state) {
    enum { T = 9, STEP = 6, N = 300 };
    static const int64_t divisions[][3] = {{6, 1, 0}, {2, 1, 12}, {1, 2, 6}, {1, 3, 0}, {2, 3, 60}};
    static uint32_t text[N];
    put_documents(in_scratch("p.bin"), 7, 0, N, text);
    struct dataset *d = open_data(in_scratch("p.bin"), 5000);
    struct loader_options o = {.B = 1,
                               .T = T,
                               .order = SAMPLES_PACKED,
                               .shuffle_rows = true,
                               .seed = 3,
                               .step_samples = STEP,
                               .end_of_text = EOT};
    struct dataloader *l = open_loader(d, o);
    int64_t epoch = dataloader_samples(l), all = 2 * epoch, rows = dataloader_packed(l).rows;
    assert_true(epoch % STEP == 0 && epoch > rows && epoch > 30);
    int32_t *whole = take_rows(l, all, 1, T);
    dataloader_close(l);
    assert_true(memcmp(whole, whole + epoch * 3 * T, (size_t)(rows * 3 * T) * 4) != 0);
    assert_true(same_rows(whole, whole + epoch * 3 * T, epoch, T));
    for (size_t k = 0; k < ARRAY_LENGTH(divisions); k++) {
        int64_t B = o.B = divisions[k][0], world = o.world = divisions[k][1], start = divisions[k][2];
        for (o.rank = 0; o.rank < world; o.rank++) {
            l = open_loader(d, o);
            int64_t n = (all - start) / (B * world);
            dataloader_seek(l, start);
            int32_t *mine = take_rows(l, n, B, T);
            for (int64_t row = 0; row < n * B; row++) {
                int64_t sample = start + row / B * B * world + o.rank * B + row % B;
                assert_memory_equal(mine + row * 3 * T, whole + sample * 3 * T, 3 * T * 4);
            }
            free(mine);
            dataloader_close(l);
        }
    }
    free(whole);
    dataset_free(d);
}

/* Each part of a mixture is packed by itself. */
static void parts_of_a_mixture_are_packed(void **state) {
    enum { T = 8, N = 200 };
    static uint32_t text[N];
    struct error err;
    struct loader_options o = {.B = 1, .T = T, .order = SAMPLES_PACKED, .end_of_text = EOT};
    put_documents(in_scratch("m_1.bin"), 1, 0, N, text);
    put_documents(in_scratch("m_2.bin"), 2, N, N, text);
    char *both = xasprintf("%s:0.5,%s:0.5", in_scratch("m_1.bin"), in_scratch("m_2.bin"));
    struct dataset *d = dataset_open_mixture(both, 5000, &err);
    if (!d) fail_msg("%s", err.message);
    struct dataloader *l = open_loader(d, o);
    struct packed_counts counts = dataloader_packed(l);
    assert_int_equal(counts.tokens, 2 * (N - 1));
    int32_t *row = take_rows(l, counts.rows, 1, T);
    for (int k = 0; k < 2; k++) {
        struct dataset *one = open_data(in_scratch("m_%d.bin", k + 1), 5000);
        struct dataloader *alone = open_loader(one, o);
        int64_t rows = min_i64(dataloader_samples(alone), counts.rows / 2);
        int32_t *expected = take_rows(alone, rows, 1, T);
        for (int64_t r = 0; r < rows; r++)
            assert_memory_equal(row + (2 * r + k) * 3 * T, expected + r * 3 * T, 3 * T * 4);
        counts.documents -= dataloader_packed(alone).documents;
        free(expected);
        dataloader_close(alone);
        dataset_free(one);
    }
    assert_int_equal(counts.documents, 0);
    free(row);
    free(both);
    dataloader_close(l);
    dataset_free(d);
}

/* Samples of marked tokens share a row wherever they lie. Their last token is no input, and one that is
 * too long loses its end. */
static void marked_samples_are_packed(void **state) {
    enum { G = MARK_GIVEN, S = MARK_BEGINS };
    static const uint32_t text[] = {10, 11, 12, 13, 20, 21, 30, 31, 32, 33, 34, 35, 36, 40, 41, 42};
    static const uint8_t mark[] = {S, G, 0, 0, S, 0, S, 0, 0, 0, 0, 0, 0, S, G, 0};
    static const int32_t want[2][3][5] = {{{30, 31, 32, 33, 34}, {31, 32, 33, 34, 35}, {0, 0, 0, 0, 0}},
                                          {{40, 41, 10, 11, 12}, {-1, 42, -1, 12, 13}, {0, 0, 2, 2, 2}}};
    uint32_t *tokens = malloc(sizeof text);
    uint8_t *marks = malloc(sizeof mark);
    memcpy(tokens, text, sizeof text);
    memcpy(marks, mark, sizeof mark);
    struct dataset *d = dataset_from_marked_tokens("marked", tokens, marks, ARRAY_LENGTH(text), 50);
    struct dataloader *l =
        open_loader(d, (struct loader_options){.B = 1, .T = 5, .order = SAMPLES_PACKED, .end_of_text = EOT});
    assert_int_equal(dataloader_samples(l), 3);
    assert_int_equal(dataloader_cut(l), 1);
    int32_t *row = take_rows(l, 3, 1, 5);
    assert_memory_equal(row, want, sizeof want);
    assert_memory_equal(row + 30, ((int32_t[]){20, EOT, EOT, EOT, EOT, 21, -1, -1, -1, -1, 0, 1, 2, 3, 4}),
                        60);
    free(row);
    dataloader_close(l);
    dataset_free(d);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packs_by_the_rule),
        SCRATCH_TEST(packed_documents_are_whole),
        SCRATCH_TEST(packed_samples_do_not_depend_on_the_division),
        SCRATCH_TEST(parts_of_a_mixture_are_packed),
        cmocka_unit_test(marked_samples_are_packed),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
