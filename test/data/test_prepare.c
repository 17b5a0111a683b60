/* build/prepare: inputs of every kind, shards and manifest, and a result that depends on text and options
 * only. test_prepare_resume.c interrupts it, test_prepare_refused.c has bad input. */
#include "test/data/prepare.h"

/* --- inputs of every kind --- */

enum { PER_SOURCE = 60, SOURCES = 8, DOCS = PER_SOURCE * SOURCES };
static char *docs[DOCS];

/* Documents [first, first + PER_SOURCE) as a text or as JSON lines. */
static char *as_text(int first) {
    char *out = calloc(1, PER_SOURCE * 700);
    for (int i = first; i < first + PER_SOURCE; i++)
        sprintf(out + strlen(out), "%s%s\n", i > first ? "<|endoftext|>\n" : "", docs[i]);
    out[strlen(out) - 1] =
        0; /* without a line break at the end of the file, which would belong to the document */
    return out;
}

static char *as_json_lines(int first) {
    char *out = calloc(1, PER_SOURCE * 2000);
    for (int i = first; i < first + PER_SOURCE; i++) {
        json_t *line = json_pack("{s:i, s:s, s:{s:n}}", "id", i, "text", docs[i], "meta", "x");
        char *text = json_dumps(line, i % 2 ? JSON_ENSURE_ASCII : 0);
        sprintf(out + strlen(out), "%s%s\n", i % 7 == 0 ? "\n  \r\n" : "", text);
        free(text);
        json_decref(line);
    }
    return out;
}

static void make_inputs(void) {
    for (int i = 0; i < DOCS; i++) docs[i] = prose((uint64_t)i, 20 + i % 500);
    char *text[SOURCES];
    for (int k = 0; k < SOURCES; k++)
        text[k] = k == 1 || k == 3 || k == 5 ? as_json_lines(k * PER_SOURCE) : as_text(k * PER_SOURCE);
    put_text("in/a.txt", text[0]);
    put_text("in/b.jsonl", text[1]);
    put_compressed("in/c.txt.gz", text[2], false, 3);
    put_compressed("in/d.jsonl.gz", text[3], false, 1);
    put_compressed("in/e.txt.zst", text[4], true, 3);
    put_compressed("in/sub/f.jsonl.zst", text[5], true, 1);
    put_compressed("in/sub/g", text[6], true, 1); /* told by its first bytes */
    put_text("h.txt", text[7]);
    put_file("in/sub/binary.bin", "a\0b", 3);
    put_text("in/.hidden", "not to be read");
    put_text("in/empty", "");
    for (int k = 0; k < SOURCES; k++) free(text[k]);
}

static void free_inputs(void) {
    for (int i = 0; i < DOCS; i++) free(docs[i]);
}

static void every_kind_of_input(void **state) {
    make_inputs();
    expect((struct how){.input = in_scratch("h.txt")}, 0,
           "--tokenizer bytes --validation-fraction 0.2 --shard-tokens 10000 --out @/out @/in -", "binary");
    assert_documents("out", docs, DOCS, NULL);
    assert_manifest_is_true("out", 10000);
    json_t *m = manifest("out");
    const json_t *sources = json_object_get(m, "sources");
    assert_int_equal(json_array_size(sources), 10);
    for (size_t i = 0; i < 10; i++) {
        const json_t *s = json_array_get(sources, i);
        const char *path = json_string_value(json_object_get(s, "path"));
        bool binary = strstr(path, "binary.bin"), empty = strstr(path, "empty");
        assert_int_equal(number(s, "documents"), binary || empty ? 0 : PER_SOURCE);
        if (binary) {
            assert_string_equal(json_string_value(json_object_get(s, "left_out")), "binary data");
            continue;
        }
        struct mapped_file f;
        struct error err;
        assert_true(file_map(&f, strcmp(path, "-") ? path : in_scratch("h.txt"), &err));
        char hash[32];
        snprintf(hash, sizeof hash, "%016" PRIx64, XXH3_64bits(f.data, (size_t)f.size));
        assert_string_equal(hash, json_string_value(json_object_get(s, "xxh3")));
        assert_int_equal(f.size, number(s, "bytes"));
        file_unmap(&f);
    }
    json_decref(m);
    free_inputs();
}

static void standard_input_in_json_lines(void **state) {
    char *lines[] = {"{\"body\": \"one\"}", "{\"body\": \"two\\u0000\\n\\ud83d\\ude00\"}", "{\"body\": \"\"}",
                     "{\"n\": 123456789012345678901234567890, \"body\": \"three\"}"};
    char text[512] = "\xef\xbb\xbf"; /* a byte order mark */
    for (int i = 0; i < 4; i++) sprintf(text + strlen(text), "%s\r\n", lines[i]);
    text[strlen(text) - 1] = 0; /* and no line break at the end */
    put_text("x", text);
    expect((struct how){.input = in_scratch("x")}, 0,
           "--tokenizer bytes --format jsonl --field body --out @/out --validation-fraction 0 -", NULL);
    int64_t n;
    char *back = read_back("out/data_train_*.bin", 257, &n);
    const char expected[] = "one\0two\0\n\xf0\x9f\x98\x80\0three";
    assert_int_equal(n, 3); /* the NUL in the second is a byte, not an end */
    assert_memory_equal(back, expected, sizeof expected);
    free(back);
    assert_int_equal(count_final_shards("out"), 1);
}

/* Separators, and lines that only begin like one, at every place around the borders of the blocks that are
 * read; a document longer than a batch. */
static void borders_do_not_matter(void **state) {
    enum { READ = 1 << 17, COUNT = 40 };
    FILE *f = fopen(in_scratch("t"), "wb");
    char *expected[COUNT + 1];
    int64_t at = 0;
    for (int i = 0; i < COUNT; i++) {
        int64_t border = (int64_t)READ * (i + 1) - i % 20; /* where the separator begins */
        const char *more = i < 20 ? "" : " is not the end";
        expected[i] = prose((uint64_t)i, border - at - 1);
        expected[i][border - at - 1] = 0;
        at += fprintf(f, "%s\n<|endoftext|>%s\n", expected[i], more);
    }
    expected[COUNT] = prose(77, 3500000);
    fprintf(f, "<|endoftext|>\r\n%s\r\n<|endoftext|>", expected[COUNT]);
    fclose(f);
    prepare("--tokenizer bytes --validation-fraction 0 --batch-size 4096 --shard-tokens 1e6 --out @/out @/t");
    int64_t n;
    char *back = read_back("out/data_train_*.bin", 257, &n), *p = back;
    assert_int_equal(n, 22);
    for (int i = 0; i < COUNT; i++) {
        size_t size = strlen(expected[i]);
        assert_memory_equal(p, expected[i], size);
        p += size;
        static const char joint[] = "\n<|endoftext|> is not the end\n";
        if (i < 20) assert_int_equal(*p++, 0);
        if (i >= 20 && i < COUNT - 1) assert_memory_equal(p, joint, sizeof joint - 1);
        if (i >= 20) p += sizeof joint - 1;
        free(expected[i]);
    }
    assert_string_equal(p, expected[COUNT]);
    assert_manifest_is_true("out", 1000000);
    free(back);
    free(expected[COUNT]);
}

/* --- the result depends on text and options only --- */

static void threads_change_nothing(void **state) {
    make_inputs();
    char name[32], arguments[256];
    for (int threads = 1; threads <= 5; threads += 2) {
        snprintf(
            arguments, sizeof arguments,
            "--tokenizer train:300 --batch-size 8k --shard-tokens 7k --threads %d --out @/out%d @/in @/h.txt",
            threads, threads);
        prepare(arguments);
        snprintf(name, sizeof name, "out%d", threads);
        assert_same_directories("out1", name);
    }
    assert_manifest_is_true("out1", 7168);
    /* Batches only decide the memory that is needed. */
    prepare("--tokenizer bytes --batch-size 4k --validation-fraction 0.2 --out @/a @/in");
    prepare("--tokenizer bytes --batch-size 100k --validation-fraction 0.2 --out @/b @/in");
    assert_int_equal(unlink(in_scratch("a/manifest.json")), 0);
    assert_int_equal(unlink(in_scratch("b/manifest.json")), 0);
    assert_same_directories("a", "b");
    free_inputs();
}

static void adding_files_moves_no_document(void **state) {
    make_inputs();
    bool before[DOCS], after[DOCS];
    prepare(
        "--tokenizer bytes --validation-fraction 0.2 --out @/a @/in/c.txt.gz @/in/d.jsonl.gz @/in/e.txt.zst");
    prepare("--tokenizer bytes --validation-fraction 0.2 --out @/b @/in @/h.txt");
    assert_documents("a", docs + 2 * PER_SOURCE, 3 * PER_SOURCE, before);
    assert_documents("b", docs, DOCS, after);
    assert_memory_equal(before, after + 2 * PER_SOURCE, 3 * PER_SOURCE * sizeof(bool));
    int kept = 0;
    for (int i = 0; i < DOCS; i++) kept += after[i];
    assert_in_range(kept, DOCS / 10, DOCS * 3 / 10);
    free_inputs();
}

/* A single small text is divided as train_gpt --text divides it. */
static void one_text_has_a_validation_set(void **state) {
    char *text = prose(3, 50000);
    put_text("t.txt", text);
    prepare("--tokenizer bytes --validation-fraction 0.1 --out @/out @/t.txt");
    json_t *m = manifest("out");
    assert_in_range(number(json_object_get(m, "validation"), "text_bytes"), 3000, 8000);
    json_decref(m);
    free(text);
    put_text("tiny.txt", "tiny");
    expect((struct how){0}, 0, "--tokenizer bytes --out @/tiny @/tiny.txt",
           "no document was chosen for validation");
    assert_int_equal(count_final_shards("tiny"), 1);
}

static void wide_vocabularies_give_wide_shards(void **state) {
    struct tokenizer *t = tokenizer_bytes();
    struct error err = {""};
    json_error_t e;
    assert_true(tokenizer_save(t, in_scratch("t.json"), &err));
    tokenizer_free(t);
    json_t *root = json_load_file(in_scratch("t.json"), 0, &e),
           *added = json_object_get(root, "added_tokens");
    assert_true(json_is_array(added));
    for (int id = 257; id < 65540; id++) {
        json_t *copy = json_deep_copy(json_array_get(added, 0));
        json_object_set_new(copy, "id", json_integer(id));
        json_object_set_new(copy, "content", json_sprintf("<|%d|>", id));
        json_array_append_new(added, copy);
    }
    assert_int_equal(json_dump_file(root, in_scratch("t.json"), 0), 0);
    json_decref(root);
    put_text("t.txt", "some text");
    prepare("--tokenizer @/t.json --validation-fraction 0 --out @/out @/t.txt");
    struct shard s;
    int fd = shard_open(&s, in_scratch("out/data_train_000000.bin"), &err);
    assert_true(fd >= 0);
    assert_int_equal(s.token_bytes, 4);
    close(fd);
    shard_free(&s);
    assert_manifest_is_true("out", 100000000);
}

int main(int argc, char **argv) {
    /* In memory: most of the time would go into flushing hundreds of small shards to a disk. */
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 0);
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(every_kind_of_input),
        SCRATCH_TEST(standard_input_in_json_lines),
        SCRATCH_TEST(borders_do_not_matter),
        SCRATCH_TEST(threads_change_nothing),
        SCRATCH_TEST(adding_files_moves_no_document),
        SCRATCH_TEST(one_text_has_a_validation_set),
        SCRATCH_TEST(wide_vocabularies_give_wide_shards),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
