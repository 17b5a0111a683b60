/* Text to train on: finding files, documents, UTF-8, the validation split, encoding, the built-in
 * stories. */
#include "test/scratch.h"

#include "llmc/stories/stories.h"
#include "llmc/base/rng.h"
#include "llmc/corpus/corpus.h"
#include "llmc/corpus/encode.h"
#include "llmc/text/bpe_train.h"

#include <limits.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- helpers --- */

/* Words, sentences and paragraphs; about `size` bytes, different for each seed. The caller frees. */
static char *prose(uint64_t seed, int64_t size, const char *paragraph) {
    static const char *const words[] = {
        "the", "a",   "cat", "house",        "of",   "it's", "12", "running", "\xc3\xa9t\xc3\xa9",
        "and", "Ohm", "by",  "\xe6\x97\xa5", "I'll", "end",  "x"};
    char *text = malloc((size_t)size + 64);
    int64_t n = 0;
    for (uint64_t i = 0; n < size; i++) {
        struct rng4 r = rng_philox(seed, RNG_TEST, i);
        n += sprintf(text + n, "%s%s", words[r.v[0] % 16],
                     r.v[1] % 90 == 0   ? paragraph
                     : r.v[1] % 11 == 0 ? ". "
                                        : " ");
    }
    text[size] = 0;
    return text;
}

static struct corpus open_corpus(const char *path, double fraction) {
    struct corpus c;
    struct error err = {""};
    if (!corpus_open(&c, path, NULL, fraction, &err)) fail_msg("%s", err.message);
    int64_t bytes = 0, kept = 0;
    for (int64_t i = 0; i < c.count; i++) {
        bytes += c.docs[i].size;
        if (c.validation[i]) kept += c.docs[i].size;
        assert_true(c.docs[i].size > 0);
    }
    assert_int_equal(bytes, c.bytes);
    assert_int_equal(kept, c.validation_bytes);
    assert_true(kept > 0 && kept < bytes);
    return c;
}

/* The i-th remark begins so; NULL: there is none. */
static void assert_remark(const struct corpus *c, int i, const char *begin) {
    char *remark = text_remark(&c->remarks, i);
    if (!remark != !begin || (begin && strncmp(remark, begin, strlen(begin)) != 0))
        fail_msg("remark %d is \"%s\" instead of \"%s\"", i, remark ? remark : "", begin ? begin : "");
    free(remark);
}

static bool is_doc(const struct corpus *c, int64_t i, const char *text) {
    return c->docs[i].size == (int64_t)strlen(text) && !memcmp(c->docs[i].data, text, strlen(text));
}

/* --- files --- */

static void directories_are_read_in_order(void **state) {
    put_text("d/b.txt", "bb");
    put_text("d/a.txt", "aa");
    put_text("d/B.txt", "BB");
    put_text("d/sub/deep/c", "cc");
    put_text("d/sub/a", "sa");
    put_text("d/.hidden", "no");
    put_text("d/.dir/x", "no");
    put_text("d/empty", "");
    put_file("d/picture.png", "\x89PNG\0\0", 6);
    put_text("outside/o", "no");
    assert_int_equal(symlink("../outside", in_scratch("d/link_to_directory")), 0);
    assert_int_equal(symlink("..", in_scratch("d/loop")), 0);
    assert_int_equal(symlink("nowhere", in_scratch("d/dangling")), 0);
    put_text("outside/t", "linked");
    assert_int_equal(symlink("../outside/t", in_scratch("d/z_link")), 0);
    assert_int_equal(mkfifo(in_scratch("d/fifo"), 0600), 0);
    static const char *const expected[] = {"BB", "aa", "bb", "sa", "cc", "linked"};
    for (int slash = 0; slash < 2; slash++) {
        struct corpus c = open_corpus(in_scratch("%s", slash ? "d/" : "d"), 0.3);
        assert_int_equal(c.count, 6);
        for (int i = 0; i < 6; i++)
            if (!is_doc(&c, i, expected[i])) fail_msg("document %d is not \"%s\"", i, expected[i]);
        assert_remark(&c, 0, "1 of 8 files is no text and is left out: PNG picture (1)");
        assert_remark(&c, 1, NULL);
        corpus_free(&c);
    }
}

static void explicit_binary_is_used_if_asked_for(void **state) {
    char bytes[2000];
    struct corpus c;
    struct error err = {""};
    for (int i = 0; i < 2000; i++) bytes[i] = (char)(i * 7);
    put_file("x.dat", bytes, sizeof bytes);
    assert_false(corpus_open(&c, in_scratch("x.dat"), NULL, 0.1, &err));
    assert_mentions(err.message, "x.dat: is not text (binary data); --format text takes it as it is");
    struct text_options as_text = {.format = FORMAT_TEXT};
    if (!corpus_open(&c, in_scratch("x.dat"), &as_text, 0.1, &err)) fail_msg("%s", err.message);
    assert_int_equal(c.bytes, 2000);
    char *first =
        xasprintf("1 document is not UTF-8; its bytes are used as they are (%s:1)", in_scratch("x.dat"));
    assert_remark(&c, 0, first);
    assert_remark(&c, 1, "1 document holds NUL bytes");
    free(first);
    corpus_free(&c);
}

static void errors_name_the_path(void **state) {
    struct corpus c;
    struct error err = {""};
    assert_false(corpus_open(&c, in_scratch("missing"), NULL, 0.1, &err));
    assert_mentions(err.message, in_scratch("missing"));
    assert_mentions(err.message, "No such file");
    put_text("empty", "");
    assert_false(corpus_open(&c, in_scratch("empty"), NULL, 0.1, &err));
    assert_mentions(err.message, "is empty");
    put_text("separators", "<|endoftext|>\n<|endoftext|>");
    assert_false(corpus_open(&c, in_scratch("separators"), NULL, 0.1, &err));
    assert_mentions(err.message, "is empty");
    assert_int_equal(mkdir(in_scratch("dir"), 0700), 0);
    assert_false(corpus_open(&c, in_scratch("dir"), NULL, 0.1, &err));
    assert_mentions(err.message, "no file in this directory");
    put_file("dir/binary", "\0", 1);
    put_file("dir/other", "\0a", 2);
    put_file("dir/zero", "", 0);
    assert_false(corpus_open(&c, in_scratch("dir"), NULL, 0.1, &err));
    assert_mentions(err.message, "no text in this directory: 2 of 3 files are no text and are left out: "
                                 "binary data (2)");
    put_text("small", "Too small to divide.");
    assert_false(corpus_open(&c, in_scratch("small"), NULL, 0.1, &err));
    assert_mentions(err.message, "20 bytes");
    assert_mentions(err.message, "512");
    assert_int_equal(mkfifo(in_scratch("fifo"), 0600), 0);
    assert_false(corpus_open(&c, in_scratch("fifo"), NULL, 0.1, &err));
    if (geteuid() == 0) return; /* root reads everything */
    put_text("d/ok", "text");
    put_text("d/secret", "text");
    assert_int_equal(chmod(in_scratch("d/secret"), 0), 0);
    assert_false(corpus_open(&c, in_scratch("d"), NULL, 0.1, &err));
    assert_mentions(err.message, "d/secret");
    assert_mentions(err.message, "Permission denied");
}

static void many_files_are_fine(void **state) {
    for (int i = 0; i < 1500; i++) {
        char name[32], text[32];
        snprintf(name, sizeof name, "m/%02d/%04d", i % 37, i);
        snprintf(text, sizeof text, "text number %d", i);
        put_text(name, text);
    }
    struct corpus c = open_corpus(in_scratch("m"), 0.1);
    assert_int_equal(c.count, 1500);
    assert_int_equal(c.remarks.files, 1500);
    corpus_free(&c);
}

/* --- documents --- */

static void separators_divide_files(void **state) {
    static const struct {
        const char *text;
        const char *docs[5];
    } cases[] = {
        {"one", {"one"}},
        {"one\n", {"one\n"}},
        {"one\n<|endoftext|>\ntwo", {"one", "two"}},
        {"one\n\n<|endoftext|>\n\ntwo\n", {"one\n", "\ntwo\n"}},
        {"<|endoftext|>\none\n<|endoftext|>\n<|endoftext|>\n\n<|endoftext|>\ntwo\n<|endoftext|>",
         {"one", "two"}},
        {"one\r\n<|endoftext|>\r\ntwo\r\n", {"one", "two\r\n"}},
        {"one <|endoftext|>\ntwo\n<|endoftext|> three\n<|endoftext|",
         {"one <|endoftext|>\ntwo\n<|endoftext|> three\n<|endoftext|"}},
        {"\n", {"\n"}},
        {"", {NULL}},
    };
    (void)state;
    for (size_t k = 0; k < ARRAY_LENGTH(cases); k++) {
        int64_t size = (int64_t)strlen(cases[k].text), at = 0;
        char *exact = malloc((size_t)size + 1); /* so that the sanitizer sees a read beyond the end */
        memcpy(exact, cases[k].text, (size_t)size);
        struct text_span doc;
        int n = 0;
        for (; document_next(&doc, exact, size, &at); n++) {
            if (!cases[k].docs[n]) fail_msg("case %zu: too many documents", k);
            if (doc.size != (int64_t)strlen(cases[k].docs[n]) ||
                memcmp(doc.data, cases[k].docs[n], (size_t)doc.size) != 0)
                fail_msg("case %zu, document %d: \"%.*s\"", k, n, (int)doc.size, doc.data);
        }
        assert_null(cases[k].docs[n]);
        free(exact);
    }
}

static void utf8_follows_the_standard(void **state) {
    static const struct {
        const char *text;
        int at;
    } cases[] = {
        {"", -1},
        {"plain ASCII, longer than eight bytes\x7f", -1},
        {"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
         -1},
        {"12345678\x80", 8},
        {"1234567\xc3\xa9 8\xff", 11},
        {"\xc0\x80", 0},
        {"\xc1\xbf", 0},
        {"\xe0\x9f\xbf", 0},
        {"\xed\xa0\x80", 0}, /* a surrogate */
        {"\xf0\x8f\xbf\xbf", 0},
        {"\xf4\x90\x80\x80", 0}, /* beyond U+10FFFF */
        {"\xf5\x80\x80\x80", 0},
        {"a\xc3", 1}, /* cut off */
        {"a\xe6\x97", 1},
        {"a\xf0\x9f\x98", 1},
        {"\xc3(", 0},
        {"\xe6\x97(", 0},
    };
    (void)state;
    for (size_t k = 0; k < ARRAY_LENGTH(cases); k++)
        if (utf8_invalid_at(cases[k].text, (int64_t)strlen(cases[k].text)) != cases[k].at)
            fail_msg("case %zu: %d", k, (int)utf8_invalid_at(cases[k].text, (int64_t)strlen(cases[k].text)));
}

static void files_that_are_not_utf8_are_counted(void **state) {
    put_text("d/a", "fine \xc3\xa9");
    put_text("d/b", "Latin-1 \xe9t\xe9");
    put_text("d/c", "\xff\xfd");
    struct corpus c = open_corpus(in_scratch("d"), 0.3);
    assert_int_equal(c.count, 3);
    char *first = xasprintf("2 documents are not UTF-8; their bytes are used as they are (the first: %s:1)",
                            in_scratch("d/b"));
    assert_remark(&c, 0, first);
    free(first);
    corpus_free(&c);
}

static void cuts_prefer_paragraphs(void **state) {
    static const struct {
        const char *text;
        int from, limit, at;
    } cases[] = {
        {"aaaa bb\ncc\n\ndd ee", 4, 16, 12}, /* after the blank line */
        {"aaaa bb\ncc\r\n\r\ndd ee", 4, 17, 14},
        {"aaaa\n\n\n\nb\n", 4, 9, 8},      /* after the last of several */
        {"aaaa bb\ncc dd ee", 4, 14, 8},   /* after the line */
        {"aaaabbbb cc dd ee", 4, 14, 8},   /* before the space */
        {"aaa\xe6\x97\xa5zzzz", 4, 10, 6}, /* whole characters */
        {"aaaaaaaa", 4, 8, 4},
        {"\x80\x80\x80\x80\x80\x80\x80\x80\x80", 3, 9, 6},
    };
    (void)state;
    for (size_t k = 0; k < ARRAY_LENGTH(cases); k++)
        if (text_cut(cases[k].text, cases[k].from, cases[k].limit) != cases[k].at)
            fail_msg("case %zu: %d", k, (int)text_cut(cases[k].text, cases[k].from, cases[k].limit));
}

/* --- validation --- */

static void assert_share(const struct corpus *c, double fraction, double tolerance) {
    double share = (double)c->validation_bytes / (double)c->bytes;
    if (!(share >= fraction * (1 - tolerance) && share <= fraction * (1 + tolerance)))
        fail_msg("share %g instead of %g", share, fraction);
}

/* One file: its pieces are in order and complete, near the fraction, and the training part is in few
 * pieces. */
static void one_file_is_divided(void **state) {
    static const double fractions[] = {0.02, 0.1, 0.5};
    static const char *const breaks[] = {".\n\n", ".\n", " "};
    for (size_t k = 0; k < 9; k++) {
        const int64_t size = 400000;
        double fraction = fractions[k % 3];
        char *text = prose(k, size, breaks[k / 3]);
        put_file("book.txt", text, (size_t)size);
        struct corpus c = open_corpus(in_scratch("book.txt"), fraction);
        assert_share(&c, fraction, 0.35);
        int64_t at = 0, paragraphs = 0;
        for (int64_t i = 0; i < c.count; i++) {
            assert_memory_equal(c.docs[i].data, text + at, (size_t)c.docs[i].size);
            at += c.docs[i].size;
            if (i > 0) assert_true(c.validation[i] != c.validation[i - 1]);
            if (i + 1 < c.count) assert_true(((uint8_t)text[at] & 0xc0) != 0x80);
            paragraphs += at == size || (text[at - 1] == '\n' && text[at - 2] == '\n');
        }
        assert_int_equal(at, size);
        assert_in_range(c.count, 8, 2 * 8 * 2 + 1);
        if (k == 0) assert_true(4 * paragraphs >= 3 * c.count); /* some are longer than two pieces */
        if (k == 1 || k == 2) assert_int_equal(paragraphs, c.count);
        corpus_free(&c);
        free(text);
    }
}

static void every_size_has_two_sides(void **state) {
    for (int64_t size = 512; size < 60000; size += 1 + size / 7)
        for (int f = 0; f < 3; f++) {
            double fraction = f == 0 ? 0.001 : f == 1 ? 0.05 : 0.5;
            char *text = prose((uint64_t)size, size, f == 1 ? "\n\n" : " ");
            put_file("t", text, (size_t)size);
            struct corpus c = open_corpus(in_scratch("t"), fraction);
            assert_int_equal(c.bytes, size);
            if (fraction < 0.5) assert_true(c.validation_bytes < size * 0.75);
            corpus_free(&c);
            free(text);
        }
    for (int n = 2; n < 40; n++) { /* tiny documents, which cannot be divided */
        char text[2048] = "";
        for (int i = 0; i < n; i++) sprintf(text + strlen(text), "document %d of %d\n<|endoftext|>\n", i, n);
        put_text("t", text);
        for (int f = 0; f < 2; f++) {
            struct corpus c = open_corpus(in_scratch("t"), f ? 0.5 : 0.001);
            assert_int_equal(c.count, n);
            corpus_free(&c);
        }
    }
}

/* Whether the training or the validation set contains this document as a whole. */
static int side_of(const struct corpus *c, const char *text) {
    for (int64_t i = 0; i < c->count; i++)
        if (is_doc(c, i, text)) return c->validation[i];
    return -1;
}

static void adding_files_moves_no_document(void **state) {
    enum { FILES = 600 };
    static char *texts[FILES];
    for (int i = 0; i < FILES; i++) texts[i] = prose(1000 + (uint64_t)i, 300 + i, " ");
    int side[FILES];
    for (int n = 300; n <= FILES; n += 300) {
        for (int i = n - 300; i < n; i++) {
            char name[32];
            snprintf(name, sizeof name, "d/%d.txt", i * 7919 % 1000); /* not in the order of their paths */
            put_text(name, texts[i]);
        }
        struct corpus c = open_corpus(in_scratch("d"), 0.1);
        assert_int_equal(c.count, n);
        assert_share(&c, 0.1, 0.5);
        for (int i = 0; i < n; i++) {
            int now = side_of(&c, texts[i]);
            assert_true(now >= 0);
            if (i < n - 300) assert_int_equal(now, side[i]);
            side[i] = now;
        }
        corpus_free(&c);
    }
    for (int i = 0; i < FILES; i++) free(texts[i]);
}

/* A document over 1 MiB is cut at the same places alone, among others, and by a caller that sees only a
 * part. */
static void long_documents_are_cut_alike(void **state) {
    (void)state;
    const int64_t size = 1500000;
    char *text = prose(5, size, ".\n\n"), *small = prose(6, 400, " ");
    struct text_span alone = {text, size}, mixed[] = {{small, 400}, {text, size}, {small, 300}};
    struct document_split a = {0}, b = {0};
    assert_true(split_documents(&a, &alone, 1, 0.02, true));
    assert_true(split_documents(&b, mixed, 3, 0.02, false));
    assert_int_equal(b.count, a.count + 2);
    int64_t kept = 0;
    for (int64_t i = 0; i < a.count; i++) {
        assert_ptr_equal(a.docs[i].data, b.docs[i + 1].data);
        assert_int_equal(a.docs[i].size, b.docs[i + 1].size);
        assert_int_equal(a.validation[i], b.validation[i + 1]);
        if (a.validation[i]) kept += a.docs[i].size;
    }
    assert_in_range(kept, size * 0.012, size * 0.03);
    document_split_free(&a);
    document_split_free(&b);
    free(text);
    free(small);
}

/* --- encoding --- */

/* A trained tokenizer and documents long enough to be cut, compared with whole documents on one thread. */
static void encoding_does_not_depend_on_threads(void **state) {
    (void)state;
    enum { DOCS = 60 };
    static char *texts[DOCS];
    struct text_span docs[DOCS];
    for (int i = 0; i < DOCS; i++) {
        int64_t size = i == 7 ? 3000000 : i == 30 ? 900000 : 50 + i * 400;
        texts[i] = prose((uint64_t)i, size, i % 2 ? ".\n\n" : " ");
        if (i == 30) memset(texts[i] + 1000, 'q', 600000); /* no place to cut */
        docs[i] = (struct text_span){texts[i], size};
    }
    struct error err = {""};
    struct tokenizer *trained = tokenizer_train(docs, DOCS, 400, 1, &err), *bytes = tokenizer_bytes();
    if (!trained) fail_msg("%s", err.message);
    for (int k = 0; k < 2; k++) {
        const struct tokenizer *t = k ? trained : bytes;
        struct token_buffer expected = {0}, one = {0};
        for (int i = 0; i < DOCS; i++) {
            one.count = 0;
            assert_true(tokenizer_encode(t, docs[i].data, docs[i].size, &one) >= 0);
            expected.ids = realloc(expected.ids, (size_t)(expected.count + one.count + 1) * sizeof(uint32_t));
            expected.ids[expected.count++] = (uint32_t)tokenizer_end_of_text(t);
            memcpy(expected.ids + expected.count, one.ids, (size_t)one.count * sizeof(uint32_t));
            expected.count += one.count;
        }
        int before = omp_get_max_threads();
        for (int threads = 1; threads <= 4; threads++) {
            omp_set_num_threads(threads);
            struct token_buffer out = {0};
            for (int twice = 0; twice < 2; twice++) { /* it appends */
                assert_true(encode_documents(&out, t, docs, DOCS, &err));
                assert_int_equal(out.count, (1 + twice) * expected.count);
                assert_memory_equal(out.ids + twice * expected.count, expected.ids,
                                    (size_t)expected.count * sizeof(uint32_t));
            }
            token_buffer_free(&out);
        }
        omp_set_num_threads(before);
        free(expected.ids);
        token_buffer_free(&one);
    }
    tokenizer_free(trained);
    tokenizer_free(bytes);
    for (int i = 0; i < DOCS; i++) free(texts[i]);
}

static void sides_are_encoded_apart(void **state) {
    char text[4096] = "";
    for (int i = 0; i < 100; i++) sprintf(text + strlen(text), "doc %d\n<|endoftext|>\n", i);
    put_text("t", text);
    struct corpus c = open_corpus(in_scratch("t"), 0.2);
    struct tokenizer *t = tokenizer_bytes();
    int64_t documents = 0;
    for (int side = 0; side < 2; side++) {
        uint32_t *tokens;
        int64_t count, at = 0;
        struct error err = {""};
        assert_true(corpus_encode(&c, side, t, &tokens, &count, &err));
        for (int64_t i = 0; i < c.count; i++) {
            if (c.validation[i] != side) continue;
            documents++;
            assert_int_equal(tokens[at++], 256);
            for (int64_t k = 0; k < c.docs[i].size; k++)
                assert_int_equal(tokens[at++], (uint8_t)c.docs[i].data[k]);
        }
        assert_int_equal(tokens[at++], 256);
        assert_int_equal(at, count);
        free(tokens);
    }
    assert_int_equal(documents, 100);
    tokenizer_free(t);
    corpus_free(&c);
}

/* --- stories --- */

static void stories_are_a_corpus(void **state) {
    (void)state;
    struct corpus c;
    corpus_stories(&c, 3, 500, 0.02);
    assert_int_equal(c.count, 500);
    int64_t kept = 0, bytes = 0;
    for (int64_t i = 0; i < 500; i++) {
        char *story = story_make(3, (uint64_t)i);
        if (!is_doc(&c, i, story)) fail_msg("story %d", (int)i);
        free(story);
        kept += c.validation[i];
        bytes += c.docs[i].size;
    }
    assert_int_equal(kept, 10);
    assert_int_equal(bytes, c.bytes);
    for (int64_t part = 0; part < 10; part++) { /* evenly spread */
        int64_t here = 0;
        for (int64_t i = 0; i < 50; i++) here += c.validation[50 * part + i];
        assert_int_equal(here, 1);
    }
    corpus_free(&c);
    for (int k = 0; k < 2; k++) { /* never nothing on either side */
        corpus_stories(&c, 3, 2, k ? 0.001 : 0.999);
        assert_true(c.validation[0] != c.validation[1]);
        corpus_free(&c);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(directories_are_read_in_order),
        SCRATCH_TEST(explicit_binary_is_used_if_asked_for),
        SCRATCH_TEST(errors_name_the_path),
        SCRATCH_TEST(many_files_are_fine),
        cmocka_unit_test(separators_divide_files),
        cmocka_unit_test(utf8_follows_the_standard),
        SCRATCH_TEST(files_that_are_not_utf8_are_counted),
        cmocka_unit_test(cuts_prefer_paragraphs),
        SCRATCH_TEST(one_file_is_divided),
        SCRATCH_TEST(every_size_has_two_sides),
        SCRATCH_TEST(adding_files_moves_no_document),
        cmocka_unit_test(long_documents_are_cut_alike),
        cmocka_unit_test(encoding_does_not_depend_on_threads),
        SCRATCH_TEST(sides_are_encoded_apart),
        cmocka_unit_test(stories_are_a_corpus),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
