/* build/prepare and what is wrong with input, tokenizers and options: what it refuses, what it only reports,
 * and the bar on a terminal. */
#include "test/data/prepare.h"

static void bad_lines_are_counted_and_named(void **state) {
    static const char text[] = "{\"text\": \"good\"}\n"
                               "{\"text\": \"cut off\n"
                               "\n"
                               "[1, 2]\n"
                               "{\"text\": 7}\n"
                               "{\"content\": \"other\", \"id\": 1}\n"
                               "{\"text\": \"bad \xff utf-8\"}\n"
                               "{\"text\": \"also good\"}\n";
    put_text("x.jsonl", text);
    struct result r =
        run_how((struct how){0}, "--tokenizer bytes --validation-fraction 0 --out @/out @/x.jsonl");
    assert_int_equal(r.status, 0);
    static const char *const parts[] = {"x.jsonl:2: skipped: not JSON", "x.jsonl:4: skipped: is an array",
                                        "x.jsonl:5: skipped: field \"text\" is a number",
                                        "x.jsonl:6: skipped: no field \"text\"; there are: content, id",
                                        "x.jsonl:7: skipped: not JSON"};
    for (size_t i = 0; i < ARRAY_LENGTH(parts); i++) assert_mentions(r.err, parts[i]);
    assert_mentions(r.out, "3 lines were skipped because they are not JSON");
    assert_mentions(r.out, "2 lines were skipped because they have no text");
    if (strchr(r.err, '\r') || strchr(r.err, '\033')) fail_msg("control characters in a file: %s", r.err);
    close_result(&r);
    int64_t n;
    char *back = read_back("out/data_train_*.bin", 257, &n);
    assert_int_equal(n, 2);
    assert_string_equal(back, "good");
    assert_string_equal(back + 5, "also good");
    free(back);
    json_t *m = manifest("out");
    const json_t *s = json_array_get(json_object_get(m, "sources"), 0);
    assert_int_equal(number(s, "malformed_lines"), 3);
    assert_int_equal(number(s, "lines_without_field"), 2);
    json_decref(m);
    refuses("--strict --tokenizer bytes --out @/strict @/x.jsonl", "x.jsonl:2: not JSON");
    assert_int_equal(count_final_shards("strict"), 0);
    refuses("--tokenizer bytes --field body --out @/body @/x.jsonl", "no text was found");
    assert_int_equal(count_final_shards("body"), 0);
    char many[4096] = "";
    for (int i = 0; i < 100; i++) strcat(many, "{}\n");
    strcat(many, "{\"text\":\"x\"}");
    put_text("many.jsonl", many);
    r = run_how((struct how){0}, "--tokenizer train:257 --validation-fraction 0 --out @/many @/many.jsonl");
    int reports = 0;
    for (const char *p = r.err; (p = strstr(p, "warning:")) != NULL; p++) reports++;
    assert_int_equal(reports, 10); /* once, though the text is read twice */
    assert_mentions(r.out, "100 lines");
    close_result(&r);
}

static void damaged_compression_is_an_error(void **state) {
    char *text = prose(1, 300000);
    size_t n[2];
    uint8_t *packed[2] = {gzip(text, strlen(text), &n[0]), zstd(text, strlen(text), &n[1])};
    static const char *const ends[] = {"gz", "zst"};
    char name[32], arguments[256];
    for (int k = 0; k < 2; k++) {
        snprintf(name, sizeof name, "t.txt.%s", ends[k]);
        snprintf(arguments, sizeof arguments,
                 "--overwrite --tokenizer bytes --batch-size 4k --shard-tokens 1e5 --out @/out @/%s", name);
        const size_t sizes[] = {n[k] - 1, n[k] / 2, 12, 3, 0};
        for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) {
            put_file(name, packed[k], sizes[i]);
            struct result r = run_how((struct how){0}, arguments);
            if (!WIFEXITED(r.status) || WEXITSTATUS(r.status) != 1)
                fail_msg("%zu bytes of %s: status %#x", sizes[i], name, (unsigned)r.status);
            assert_mentions(r.err, name);
            assert_mentions(r.err, sizes[i] > 10             ? "truncated"
                                   : sizes[i] == 3 && k == 0 ? "truncated"
                                                             : "begin like");
            close_result(&r);
            assert_false(exists("out/manifest.json"));
            assert_true(remove_tree(in_scratch("out")));
        }
        uint8_t *copy = malloc(n[k] + 8);
        memcpy(copy, packed[k], n[k]);
        memset(copy + n[k] / 2, 0x5a, 64);
        put_file(name, copy, n[k]);
        refuses(arguments, "damaged near byte");
        memcpy(copy, packed[k], n[k]);
        memcpy(copy + n[k], "garbage!", 8);
        put_file(name, copy, n[k] + 8);
        refuses("--overwrite --tokenizer bytes --out @/out @/t.txt.gz",
                k == 0 ? "another gzip member" : NULL);
        if (k == 1) refuses("--overwrite --tokenizer bytes --out @/out @/t.txt.zst", "damaged near byte");
        if (k == 0) { /* zeros are padding */
            memset(copy + n[k], 0, 8);
            put_file("padded.gz", copy, n[k] + 8);
            prepare("--overwrite --tokenizer bytes --out @/out @/padded.gz");
        }
        free(copy);
        free(packed[k]);
    }
    put_text("fake.gz", "this is text");
    refuses("--overwrite --tokenizer bytes --out @/out @/fake.gz", "does not begin like gzip");
    free(text);
}

/* While it waits for the standard input, its input file grows. */
static void files_that_change_are_noticed(void **state) {
    put_text("t", "some text");
    assert_int_equal(mkfifo(in_scratch("fifo"), 0600), 0);
    pid_t child = fork();
    if (child == 0) {
        int writer = open(in_scratch("fifo"), O_WRONLY);
        for (int i = 0; i < 10000 && !exists("out/tokenizer.json"); i++) usleep(1000);
        put_text("t", "some more text");
        close(writer);
        _exit(0);
    }
    refuses("--tokenizer bytes --out @/out @/fifo @/t", "had 9 bytes and now has 14");
    waitpid(child, NULL, 0);
}

static void text_of_any_bytes(void **state) {
    put_file("t", "caf\xe9\0and more", 13);
    expect((struct how){0}, 0, "--tokenizer bytes --format text --validation-fraction 0 --out @/out @/t",
           "not UTF-8");
    int64_t n;
    char *back = read_back("out/data_train_*.bin", 257, &n);
    assert_memory_equal(back, "caf\xe9\0and more", 14);
    free(back);
    json_t *m = manifest("out");
    assert_int_equal(number(json_object_get(m, "train"), "tokens"), 15); /* with <|endoftext|> at both ends */
    json_decref(m);
    put_text("empty", "");
    refuses("--tokenizer bytes --out @/none @/empty", "no text was found");
    assert_int_equal(mkdir(in_scratch("dir"), 0700), 0);
    refuses("--tokenizer bytes --out @/none @/dir", "no file in this directory");
    refuses("--tokenizer bytes --out @/none @/missing", "missing: cannot read: No such file");
    refuses("--tokenizer bytes --out @/empty/x @/t", "cannot create directory");
}

static void tokenizers_by_name(void **state) {
    put_text("t", "The quick brown fox. The quick brown fox. The quick brown fox, again and again.");
    refuses("--tokenizer @/nothing --out @/out @/t", "nothing");
    refuses("--tokenizer train:100 --out @/out @/t", "from 257 to");
    refuses("--tokenizer train:1x --out @/out @/t", "expected train:N");
    refuses("--tokenizer train:300 --out @/out -", "can be read only once");
    if (!path_is_directory("data/gpt2")) refuses("--tokenizer gpt2 --out @/out @/t", "data/download.sh gpt2");
    prepare("--tokenizer train:280 --validation-fraction 0 --out @/one @/t");
    prepare("--tokenizer @/one/tokenizer.json --validation-fraction 0 --out @/two @/t");
    prepare("--tokenizer @/one --validation-fraction 0 --out @/three @/t"); /* a directory that holds one */
    assert_true(remove_tree(in_scratch("one/manifest.json")) &&
                remove_tree(in_scratch("two/manifest.json")) &&
                remove_tree(in_scratch("three/manifest.json")));
    assert_same_directories("one", "two");
    assert_same_directories("one", "three");
    json_t *root;
    json_error_t e;
    root = json_load_file(in_scratch("one/tokenizer.json"), 0, &e);
    json_array_clear(json_object_get(root, "added_tokens"));
    assert_int_equal(json_dump_file(root, in_scratch("none.json"), 0), 0);
    json_decref(root);
    refuses("--tokenizer @/none.json --out @/out @/t", "no <|endoftext|>");
}

static void options_are_checked(void **state) {
    put_text("t", "text");
    static const struct {
        const char *arguments, *mentions;
    } cases[] = {{"@/t", "--tokenizer"},
                 {"--tokenizer bytes", "INPUT"},
                 {"--tokenizer bytes --shard-tokens 1 @/t", "--shard-tokens"},
                 {"--tokenizer bytes --shard-tokens 3e9 @/t", "--shard-tokens"},
                 {"--tokenizer bytes --validation-fraction 0.6 @/t", "--validation-fraction"},
                 {"--tokenizer bytes --name a/b @/t", "--name"},
                 {"--tokenizer bytes --resume --overwrite @/t", "exclude"},
                 {"--tokenizer bytes --treads 2 @/t", "--threads"}};
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        expect((struct how){0}, 2, cases[i].arguments, cases[i].mentions);
    expect((struct how){0}, 0, "--help", "prepare --tokenizer WHICH");
}

/* The output directory is below the input directory: its files are no input. */
static void output_is_not_input(void **state) {
    put_text("in/t", "some text");
    prepare("--tokenizer bytes --validation-fraction 0 --out @/in/shards @/in");
    prepare("--tokenizer bytes --validation-fraction 0 --out @/in/shards --overwrite @/in");
    json_t *m = manifest("in/shards");
    assert_int_equal(json_array_size(json_object_get(m, "sources")), 1);
    json_decref(m);
    prepare("--tokenizer bytes --validation-fraction 0 --out @/in/shards --resume @/in/");
}

/* On a terminal: a line that is redrawn. */
static void terminals_get_a_bar(void **state) {
    make_long_input();
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) skip();
    char *name = xstrdup(ptsname(master)), output[1 << 15];
    pid_t child = fork();
    if (child == 0) {
        int slave = open(name, O_RDWR | O_NOCTTY), ends[2], null = open("/dev/null", O_WRONLY);
        if (slave < 0 || pipe(ends) != 0) _exit(1);
        dup2(slave, 2);
        dup2(null, 1);
        if (fork() == 0) { /* a source of which more and more comes, slowly */
            for (int i = 0; i < 60; i++) {
                usleep(20000);
                if (write(ends[1], "some text\n<|endoftext|>\n", 23) != 23) _exit(1);
            }
            _exit(0);
        }
        close(ends[1]);
        dup2(ends[0], 0);
        char *argv[] = {(char *)(uintptr_t) "prepare", (char *)(uintptr_t) "--tokenizer",
                        (char *)(uintptr_t) "bytes",   (char *)(uintptr_t) "--out",
                        xstrdup(in_scratch("out")),    xstrdup(in_scratch("long.txt")),
                        (char *)(uintptr_t) "-",       (char *)(uintptr_t) "--batch-size",
                        (char *)(uintptr_t) "4096",    NULL};
        execv(program(), argv);
        _exit(127);
    }
    size_t n = 0;
    int status = -1;
    fcntl(master, F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 3000; i++) {
        ssize_t got = read(master, output + n, sizeof output - 1 - n);
        if (got > 0)
            n += (size_t)got;
        else if (waitpid(child, &status, WNOHANG) == child)
            break;
        else
            usleep(10000);
    }
    output[n] = 0;
    close(master);
    free(name);
    assert_int_equal(status, 0);
    assert_mentions(output, "\rencoding");
    assert_mentions(output, "MB/s");
    assert_mentions(output, "tokens");
    assert_mentions(output, "\033[K");
}

int main(int argc, char **argv) {
    /* In memory: most of the time would go into flushing hundreds of small shards to a disk. */
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 0);
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(bad_lines_are_counted_and_named),
        SCRATCH_TEST(damaged_compression_is_an_error),
        SCRATCH_TEST(files_that_change_are_noticed),
        SCRATCH_TEST(text_of_any_bytes),
        SCRATCH_TEST(tokenizers_by_name),
        SCRATCH_TEST(options_are_checked),
        SCRATCH_TEST(output_is_not_input),
        SCRATCH_TEST(terminals_get_a_bar),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
