/* Conversations from files: what is refused, which are for validation, what is learned, and how they fill
 * rows. */
#include "test/scratch.h"

#include "llmc/corpus/chat_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define U              "{\"role\": \"user\", \"content\": \"hi\"}"
#define A              "{\"role\": \"assistant\", \"content\": \"ho\"}"
#define CHAT(messages) "{\"messages\": [" messages "]}\n"

static void lines_of_another_form_are_refused_by_number(void **state) {
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "c.jsonl: holds no conversation"},
        {CHAT(U "," A) "\n{\"messages\": [", "c.jsonl:3: not JSON, at byte"},
        {CHAT(U "," A) "[1]\n", "c.jsonl:2: expected {\"messages\""},
        {"{\"text\": \"hello\"}\n", "c.jsonl:1: expected {\"messages\""},
        {CHAT(U "," A) CHAT(U ",{\"role\": \"bot\", \"content\": \"x\"}"),
         "c.jsonl:2: message 2: \"role\" is \"bot\", expected system, user or assistant"},
        {CHAT(U ",{\"role\": \"assistant\"}"),
         "c.jsonl:1: message 2: \"role\" is a string and \"content\" is"},
        {CHAT(U ",{\"role\": \"assistant\", \"content\": [\"x\"]}"), "\"content\" is an array"},
        {CHAT(U ",{\"role\": \"assistant\", \"content\": \" \\n\"}"),
         "c.jsonl:1: message 2: the assistant says nothing"},
        {CHAT(U ",{\"role\": \"system\", \"content\": \"x\"}," A), "c.jsonl:1: message 2 is the system's"},
        {CHAT(U), "c.jsonl:1: no message is the assistant's"},
        {CHAT(""), "c.jsonl:1: no message is the assistant's"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct chat_file f;
        struct error err;
        put_text("c.jsonl", cases[i].text);
        assert_false(chat_file_read(&f, in_scratch("c.jsonl"), &err));
        assert_mentions(err.message, cases[i].message);
    }
}

/* `count` conversations; the answer of number i is i % 7 + 1 letters long. */
static struct chat_file many(int count) {
    struct chat_file f;
    struct error err;
    char *text = xstrdup("\xEF\xBB\xBF\r\n");
    for (int i = 0; i < count; i++) {
        char *more = xasprintf("%s{\"messages\": [{\"role\": \"user\", \"content\": \"%d\"}, {\"role\": "
                               "\"assistant\", \"content\": \"%.*s\"}], \"id\": %d}\n",
                               text, i, i % 7 + 1, "abcdefg", i);
        free(text);
        text = more;
    }
    put_text("many.jsonl", text);
    free(text);
    if (!chat_file_read(&f, in_scratch("many.jsonl"), &err)) fail_msg("%s", err.message);
    assert_int_equal(f.count, count);
    assert_int_equal(f.conversations[0].line, 2);
    return f;
}

static int64_t count_flags(const bool *flags, int64_t count) {
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) n += flags[i];
    return n;
}

static void a_hash_decides_what_is_for_validation(void **state) {
    struct error err;
    struct chat_file less = many(500), more = many(600), two = many(2), one = many(1);
    bool *a = chat_file_split(&less, 0.1, &err), *b = chat_file_split(&more, 0.1, &err);
    assert_memory_equal(a, b, 500 * sizeof *a);
    assert_true(fabs((double)count_flags(a, 500) - 50) < 25);
    free(a);
    free(b);
    a = chat_file_split(&less, 0, &err);
    assert_int_equal(count_flags(a, 500), 0);
    free(a);
    a = chat_file_split(&two, 0.001, &err);
    assert_int_equal(count_flags(a, 2), 1);
    free(a);
    assert_null(chat_file_split(&one, 0.1, &err));
    assert_mentions(err.message, "give --validation-fraction 0");
    chat_file_free(&less);
    chat_file_free(&more);
    chat_file_free(&two);
    chat_file_free(&one);
}

static struct dataloader *open_rows(const struct dataset *d, struct loader_options o) {
    struct error err;
    if (!o.world) o.world = 1;
    struct dataloader *l = dataloader_open(d, &o, &err);
    if (!l) fail_msg("%s", err.message);
    return l;
}

/* Each conversation is a row that begins with <|endoftext|>; its targets are the answer and <|endoftext|>. */
static void a_row_is_a_conversation_and_its_targets_the_answer(void **state) {
    enum { COUNT = 40, T = 48 };
    struct chat_file f = many(COUNT);
    struct tokenizer *t = tokenizer_bytes();
    struct chat_format format;
    struct error err;
    int64_t longest = 0;
    assert_true(chat_open(&format, CHAT_PLAIN, t, -1, -1, &err));
    struct dataset *d = chat_file_encode(&f, NULL, true, &format, &longest, &err);
    assert_int_equal(longest, strlen("xUser:\n10\n\nAssistant:\nabcdefgx"));
    struct dataloader *l = open_rows(d, (struct loader_options){.B = 1, .T = T, .order = SAMPLES_APART});
    assert_int_equal(dataloader_samples(l), COUNT);
    for (int i = 0; i < COUNT; i++) {
        const int32_t *tokens, *targets;
        int64_t valid, given = (int64_t)strlen(temp_printf("User:\n%d\n\nAssistant:\n", i)), n = i % 7 + 1;
        dataloader_next(l, &tokens, &targets, &valid);
        assert_int_equal(tokens[0], 256);
        assert_int_equal(valid, n + 1);
        for (int64_t k = 0; k < T; k++) {
            int64_t answer = k - given;
            int32_t expected = answer < 0 || answer > n ? -1 : answer == n ? 256 : (int32_t)('a' + answer);
            assert_int_equal(targets[k], expected);
        }
    }
    dataloader_close(l);
    dataset_free(d);
    chat_close(&format);
    tokenizer_free(t);
    chat_file_free(&f);
}

/* --- rows of marked tokens --- */

/* Samples of these lengths, numbered tokens; the first `given` of each are no targets. */
static struct dataset *samples(const int *length, int count, int given) {
    uint32_t *tokens = (uint32_t *)xmalloc(4096 * sizeof *tokens);
    uint8_t *marks = (uint8_t *)xmalloc(4096);
    int64_t n = 0;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < length[i]; k++, n++) {
            tokens[n] = (uint32_t)n;
            marks[n] = (uint8_t)((k == 0 ? MARK_BEGINS : 0) | (k < given ? MARK_GIVEN : 0));
        }
    return dataset_from_marked_tokens("samples", tokens, marks, n, 4096);
}

/* "0-4 5-11": the inputs of each row of an epoch; the caller frees. */
static char *rows(struct dataloader *l, int64_t T, int64_t count) {
    char *text = xstrdup("");
    for (int64_t i = 0; i < count; i++) {
        const int32_t *tokens, *targets;
        int64_t last = T - 1;
        dataloader_next(l, &tokens, &targets, NULL);
        while (last >= 0 && targets[last] < 0) last--;
        for (int64_t k = 0; k <= last; k++) assert_true(targets[k] == tokens[k] + 1 || targets[k] == -1);
        char *more =
            last < 0 ? xasprintf("%s- ", text) : xasprintf("%s%d-%d ", text, tokens[0], tokens[last]);
        free(text);
        text = more;
    }
    return text;
}

static void expect_rows(enum sample_order order, int64_t T, const char *expected, int64_t cut, int64_t out) {
    static const int lengths[] = {5, 6, 9, 2, 3, 20, 4, 4};
    struct dataset *d = samples(lengths, ARRAY_LENGTH(lengths), 3);
    struct dataloader *l =
        open_rows(d, (struct loader_options){.B = 1, .T = T, .order = order, .step_samples = 2});
    char *is = rows(l, T, dataloader_samples(l));
    assert_string_equal(is, expected);
    assert_int_equal(dataloader_cut(l), cut);
    assert_int_equal(dataloader_left_out(l), out);
    free(is);
    dataloader_close(l);
    dataset_free(d);
}

/* Lengths 5, 6, 9, 2, 3, 20, 4, 4 begin at 0, 5, 11, 20, 22, 25, 45, 49; those of 2 and 3 have no target. */
static void samples_fill_rows_whole(void **state) {
    expect_rows(SAMPLES_APART, 32, "0-3 5-9 11-18 25-43 45-47 49-51 ", 0, 2);
    expect_rows(SAMPLES_DOCUMENTS, 32, "0-18 25-51 ", 0, 2);
    expect_rows(SAMPLES_DOCUMENTS, 10, "0-9 11-18 25-34 45-51 ", 1, 2);
    expect_rows(SAMPLES_DOCUMENTS, 9, "0-3 5-9 11-18 25-33 45-51 - ", 1, 2);
    expect_rows(SAMPLES_APART, 3, "0-2 5-7 11-13 25-27 45-47 49-51 ", 4, 2);
}

static void a_row_has_no_sample_that_is_left_out(void **state) {
    static const int lengths[] = {5, 2, 5};
    struct dataset *d = samples(lengths, ARRAY_LENGTH(lengths), 3);
    struct dataloader *l = open_rows(d, (struct loader_options){.B = 1, .T = 32, .order = SAMPLES_DOCUMENTS});
    char *is = rows(l, 32, dataloader_samples(l));
    assert_string_equal(is, "0-3 7-10 ");
    free(is);
    dataloader_close(l);
    dataset_free(d);
}

static void nothing_to_learn_is_an_error(void **state) {
    static const int lengths[] = {9, 9};
    struct dataset *d = samples(lengths, 2, 5);
    struct loader_options o = {.B = 1, .T = 4, .order = SAMPLES_APART, .world = 1};
    struct error err;
    assert_null(dataloader_open(d, &o, &err));
    assert_mentions(err.message, "within the first 5 tokens of a sample: use longer sequences");
    dataset_free(d);
}

/* Every epoch is a permutation of its own; two processes and a restart continue the same one. */
static void rows_are_shuffled_without_state(void **state) {
    enum { N = 10, T = 4, EPOCH = 12 };
    static const int lengths[N] = {5, 5, 5, 5, 5, 5, 5, 5, 5, 5};
    int seen[2][N] = {{0}}, order[2 * EPOCH];
    struct dataset *d = samples(lengths, N, 1);
    struct loader_options o = {
        .B = 2, .T = T, .order = SAMPLES_APART, .shuffle_rows = true, .seed = 7, .step_samples = 4};
    struct dataloader *l = open_rows(d, o);
    const int32_t *tokens, *targets;
    int64_t valid;
    assert_int_equal(dataloader_samples(l), EPOCH);
    for (int i = 0; i < EPOCH; i++) {
        dataloader_next(l, &tokens, &targets, &valid);
        for (int b = 0; b < 2; b++) {
            int at = 2 * i + b, empty = targets[b * T] < 0;
            assert_int_equal(empty, at % EPOCH >= N);
            order[at] = empty ? -1 : tokens[b * T] / 5;
            if (!empty) seen[at / EPOCH][order[at]]++;
        }
    }
    for (int i = 0; i < 2 * N; i++) assert_int_equal(seen[i / N][i % N], 1);
    assert_memory_not_equal(order, order + EPOCH, N * sizeof *order);
    dataloader_close(l);
    for (int rank = 0; rank < 2; rank++) {
        struct loader_options part = o;
        part.B = 1;
        part.rank = rank;
        part.world = 2;
        part.first_sample = 4;
        l = open_rows(d, part);
        for (int at = 4 + rank; at < 2 * EPOCH; at += 2) {
            dataloader_next(l, &tokens, &targets, &valid);
            assert_int_equal(targets[0] < 0 ? -1 : tokens[0] / 5, order[at]);
        }
        dataloader_close(l);
    }
    dataset_free(d);
}

/* What is learned belongs to the contents: another choice is other data. */
static void marks_are_part_of_the_fingerprint(void **state) {
    static const int lengths[] = {9, 9};
    struct dataset *a = samples(lengths, 2, 3), *b = samples(lengths, 2, 3), *c = samples(lengths, 2, 4);
    assert_true(dataset_fingerprint(a) == dataset_fingerprint(b));
    assert_true(dataset_contents(a) == dataset_contents(b));
    assert_true(dataset_fingerprint(a) != dataset_fingerprint(c));
    assert_true(dataset_contents(a) != dataset_contents(c));
    dataset_free(a);
    dataset_free(b);
    dataset_free(c);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(lines_of_another_form_are_refused_by_number),
        SCRATCH_TEST(a_hash_decides_what_is_for_validation),
        SCRATCH_TEST(a_row_is_a_conversation_and_its_targets_the_answer),
        cmocka_unit_test(samples_fill_rows_whole),
        cmocka_unit_test(a_row_has_no_sample_that_is_left_out),
        cmocka_unit_test(nothing_to_learn_is_an_error),
        cmocka_unit_test(rows_are_shuffled_without_state),
        cmocka_unit_test(marks_are_part_of_the_fingerprint),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
