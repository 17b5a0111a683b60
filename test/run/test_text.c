/* What is handed over as text is text: one table of inputs for every program that reads text. Each input
 * is given by name, and in a directory beside a text. train_gpt --text, eval --text and prepare must all
 * take it, all refuse it, or all leave it out and say so. */
#include "test/program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#define MODEL                                                                                                \
    "--layers 1 --channels 16 --heads 2 --context 32 --batch-size 2 --threads 1 --device cpu "               \
    "--tokenizer bytes "

/* --- inputs --- */

static char prose[8192];

static void put_gzip(const char *name, const char *text) {
    gzFile f = gzopen(in_scratch("%s", name), "wb");
    assert_non_null(f);
    assert_int_equal(gzwrite(f, text, (unsigned)strlen(text)), (int)strlen(text));
    gzclose(f);
}

static void put_zstd(const char *name, const char *text) {
    char packed[16384];
    size_t n = ZSTD_compress(packed, sizeof packed, text, strlen(text), 3);
    assert_false(ZSTD_isError(n));
    put_file(name, packed, n);
}

/* The prose as one line of JSON. */
static char *as_json(const char *field) {
    char *out = (char *)xmalloc(2 * sizeof prose), *to = out + sprintf(out, "{\"%s\": \"", field);
    for (const char *p = prose; *p; p++) to += *p == '\n' ? sprintf(to, "\\n") : sprintf(to, "%c", *p);
    strcpy(to, "\"}\n");
    return out;
}

static void make_inputs(void) {
    char bytes[4096], *json = as_json("text"), *story = as_json("story");
    for (int i = 0; i < (int)sizeof prose - 64;)
        i += sprintf(prose + i, "Line %d of a quiet story.\n", i % 97);
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char)(i * 193 + i / 7);
    free(json);
    free(story);
    json = as_json("text");
    story = as_json("story");
    put_text("plain", prose);
    put_gzip("packed.gz", prose);
    put_zstd("packed.zst", prose);
    put_gzip("gzip_without_a_name", prose);
    put_text("lines.jsonl", json);
    put_gzip("lines.ndjson.gz", json);
    char *marked = xasprintf("\xef\xbb\xbf%s", prose);
    put_text("marked", marked);
    put_text("json_lines.txt", json);
    put_text("story_lines.txt", story);
    put_text("story.jsonl", story);
    char *array = xasprintf("[%.*s]\n", (int)strlen(json) - 1, json);
    put_text("array.json", array);
    put_text("page.html", "<!DOCTYPE html><html><body><p>One.</p></body></html>\n");
    put_gzip("page.gz", "<?xml version=\"1.0\"?><a><b>One.</b></a>\n");
    static const struct {
        const char *name, *signature;
        size_t size;
    } binary[] = {{"x.parquet", "PAR1", 4},
                  {"x.bz2", "BZh91AY&SY", 10},
                  {"x.xz", "\xfd\x37zXZ", 6},
                  {"x.zip", "PK\3\4", 4},
                  {"x.png", "\x89PNG", 4},
                  {"x.jpg", "\xff\xd8\xff", 3},
                  {"x.pdf", "%PDF-1.7", 8},
                  {"bytes", "", 0},
                  {"utf16", "\xff\xfeO\0n\0", 6},
                  {"x.bin", "\x88\xd7\x34\x01", 4},
                  {"tail", "a\0", 2}};
    for (size_t i = 0; i < ARRAY_LENGTH(binary); i++) {
        memset(bytes, 'a', 16);
        bytes[0] = 0;
        memcpy(bytes, binary[i].signature, binary[i].size);
        put_file(binary[i].name, bytes, sizeof bytes);
    }
    free(array);
    free(marked);
    free(json);
    free(story);
}

static int set_up(void **state) {
    if (make_scratch(state) != 0) return -1;
    make_inputs();
    expect_command(0, "weights", "$T " MODEL "--text plain --steps 2 --out model");
    return 0;
}

/* --- the rule --- */

enum verdict { READ, REFUSED };
static const struct {
    const char *name, *options;
    enum verdict verdict;
    const char *said; /* by a refusal, or of a directory that leaves the file out */
} cases[] = {
    {"plain", "", READ, NULL},
    {"packed.gz", "", READ, NULL},
    {"packed.zst", "", READ, NULL},
    {"gzip_without_a_name", "", READ, NULL},
    {"lines.jsonl", "", READ, NULL},
    {"lines.ndjson.gz", "", READ, NULL},
    {"marked", "", READ, NULL},
    {"story.jsonl", "--field story", READ, NULL},
    {"story_lines.txt", "--field story", READ, NULL},
    {"json_lines.txt", "--format jsonl", READ, NULL},
    {"json_lines.txt", "", REFUSED, "JSON lines"},
    {"array.json", "", REFUSED, "JSON"},
    {"page.html", "", REFUSED, "HTML"},
    {"page.gz", "", REFUSED, "XML"},
    {"x.parquet", "", REFUSED, "Parquet table"},
    {"x.bz2", "", REFUSED, "bzip2 data"},
    {"x.xz", "", REFUSED, "xz data"},
    {"x.zip", "", REFUSED, "zip archive"},
    {"x.png", "", REFUSED, "PNG picture"},
    {"x.jpg", "", REFUSED, "JPEG picture"},
    {"x.pdf", "", REFUSED, "PDF document"},
    {"bytes", "", REFUSED, "binary data"},
    {"utf16", "", REFUSED, "UTF-16 text"},
    {"x.bin", "", REFUSED, "token shard"},
    {"tail", "", REFUSED, "binary data"},
};

static const struct {
    const char *name, *command; /* the input, its options */
} programs[] = {
    {"train", "rm -rf run; $T " MODEL "--steps 1 --out run --text %s %s"},
    {"eval", "$T eval --from model --threads 1 --batches 1 --text %s %s"},
    {"prepare", "rm -rf shards; $P --tokenizer bytes --validation-fraction 0 --out shards %s %s"},
};

/* The prose and nothing else: 8 KiB of it, however it was packed. */
static void assert_read_all(const char *program, const char *input, const struct ran *r) {
    const char *size = strcmp(program, "eval") == 0 ? "over" : human_bytes((double)strlen(prose));
    if (!strstr(r->out, size)) fail_msg("%s %s: \"%s\" does not say %s", program, input, r->out, size);
}

static void given_by_name(void **state) {
    (void)state;
    for (size_t k = 0; k < ARRAY_LENGTH(cases); k++)
        for (size_t p = 0; p < ARRAY_LENGTH(programs); p++) {
            char *command = xasprintf(programs[p].command, cases[k].name, cases[k].options);
            struct ran r = run_command("%s", command);
            free(command);
            if (r.status != (cases[k].verdict == READ ? 0 : 1))
                fail_msg("%s %s: status %d\n%s%s", programs[p].name, cases[k].name, r.status, r.out, r.err);
            if (cases[k].verdict == READ) {
                assert_read_all(programs[p].name, cases[k].name, &r);
                continue;
            }
            assert_mentions(r.err, "is not text");
            assert_mentions(r.err, cases[k].said);
            assert_mentions(r.err, "--format text");
        }
}

static void found_in_a_directory(void **state) {
    (void)state;
    for (size_t k = 0; k < ARRAY_LENGTH(cases); k++) {
        if (cases[k].verdict == READ) continue;
        char *beside = xasprintf("d/%s", cases[k].name);
        size_t size;
        void *data = get_file(cases[k].name, &size);
        put_text("d/text", prose);
        put_file(beside, data, size);
        for (size_t p = 0; p < ARRAY_LENGTH(programs); p++) {
            char *command = xasprintf(programs[p].command, "d", "");
            struct ran r = run_command("%s", command);
            free(command);
            if (r.status != 0)
                fail_msg("%s d with %s: status %d\n%s%s", programs[p].name, cases[k].name, r.status, r.out,
                         r.err);
            assert_read_all(programs[p].name, beside, &r);
            char *said = xasprintf("1 of 2 files is no text and is left out: %s (1)", cases[k].said);
            if (!strstr(r.out, said) && !strstr(r.err, said))
                fail_msg("%s d with %s does not say \"%s\"\n%s%s", programs[p].name, cases[k].name, said,
                         r.out, r.err);
            free(said);
        }
        unlink(in_scratch("%s", beside));
        free(data);
        free(beside);
    }
}

/* --format text is the way out for what looks like JSON, and for any bytes that are named. */
static void text_if_asked_for(void **state) {
    (void)state;
    static const char *const names[] = {"array.json", "json_lines.txt", "page.html", "bytes", "utf16"};
    for (size_t k = 0; k < ARRAY_LENGTH(names); k++)
        for (size_t p = 0; p < ARRAY_LENGTH(programs); p++) {
            if (strcmp(names[k], "page.html") == 0 && p == 0) continue; /* too short to train on */
            char *command = xasprintf(programs[p].command, names[k], "--format text");
            expect_command(0, "", "%s", command);
            free(command);
        }
}

static void standard_input_and_pipes(void **state) {
    (void)state;
    for (size_t p = 0; p < ARRAY_LENGTH(programs); p++) {
        char *command = xasprintf(programs[p].command, "-", "");
        struct ran r = run_command("gzip -dc < packed.gz | (%s)", command);
        if (r.status != 0) fail_msg("%s -: %s", programs[p].name, r.err);
        assert_read_all(programs[p].name, "-", &r);
        r = run_command("cat x.parquet | (%s)", command);
        assert_int_equal(r.status, 1);
        assert_mentions(r.err, "standard input: is not text (Parquet table)");
        free(command);
        command = xasprintf(programs[p].command, "fifo", "");
        r = run_command("rm -f fifo; mkfifo fifo; %s", command); /* nobody writes to it */
        if (r.status != 1) fail_msg("%s fifo: %s%s", programs[p].name, r.out, r.err);
        free(command);
    }
    expect_command(1, "put it into a file", "$T " MODEL "--steps 1 --out two --ranks 2 --text - < plain");
}

/* --- the run's own output --- */

static void output_is_no_input(void **state) {
    (void)state;
    put_text("own/text", prose);
    expect_command(0, human_bytes((double)strlen(prose)),
                   "cd own && $T " MODEL "--text . --steps 2 --save-every 1 --sample-every 1");
    expect_command(0, human_bytes((double)strlen(prose)),
                   "cd own && $T " MODEL "--text . --steps 4 --resume");
    /* Another run beside it, an evaluation and shards do not read it either; a text among its files is
     * read. */
    put_text("own/runs/train/mine", prose);
    struct ran r = run_command("cd own && $P --tokenizer bytes --validation-fraction 0 --out shards .");
    assert_int_equal(r.status, 0);
    assert_mentions(r.out, "2 documents");
    assert_null(strstr(r.out, "left out"));
    r = run_command("cd own && $P --tokenizer bytes --validation-fraction 0 --out shards --overwrite .");
    assert_mentions(r.out, "2 documents");
    expect_command(0, human_bytes(2.0 * (double)strlen(prose)), "cd own && $T " MODEL "--text . --steps 2");
}

/* --- <|endoftext|> inside lines --- */

static void separators_in_lines_are_counted(void **state) {
    (void)state;
    char *text = xasprintf("One.<|endoftext|>Two.\n<|endoftext|>\n<|endoftext|> \nThree.\n%s", prose);
    put_text("separators", text);
    for (size_t p = 0; p < ARRAY_LENGTH(programs); p++) {
        char *command = xasprintf(programs[p].command, "separators", "");
        expect_command(0, "2 times <|endoftext|> stands inside a line", "%s", command);
        free(command);
    }
    free(text);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(given_by_name),      cmocka_unit_test(found_in_a_directory),
        cmocka_unit_test(text_if_asked_for),  cmocka_unit_test(standard_input_and_pipes),
        cmocka_unit_test(output_is_no_input), cmocka_unit_test(separators_in_lines_are_counted),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}
