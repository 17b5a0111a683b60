/* Files that no run made are never touched: every command that writes, against directories with other
 * people's files, plain files, symbolic links, a run in progress and places that cannot be written. */
#include "test/program.h"

#include "llmc/ops/device.h"

#include "llmc/base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MODEL                                                                                                \
    "--layers 1 --channels 16 --heads 2 --context 32 --vocab-size 300 --threads 1 --device cpu "             \
    "--batch-size 2 "
#define TRAIN "$T --text text.txt " MODEL "--steps 6 --save-every 3 "

/* text.txt; run/, a finished run with the checkpoints of steps 3 and 6; questions.jsonl */
static int set_up(void **state) {
    static const char *const words[] = {"the", "cat", "saw", "a", "dog", "and", "ran", "home"};
    if (make_scratch(state) != 0) return -1;
    FILE *f = fopen(in_scratch("text.txt"), "w");
    for (int i = 0; i < 4000; i++) fprintf(f, "%s%s", words[(i * i + i / 7) % 8], i % 12 == 11 ? ".\n" : " ");
    fclose(f);
    put_text("questions.jsonl",
             "{\"context\": \"the cat\", \"choices\": [\"saw\", \"ran\"], \"answer\": 0}\n");
    expect_command(0, "run/log.jsonl", TRAIN "--out run");
    return 0;
}

/* A directory of somebody's, with what a run, an export or prepare could want to replace. */
static void put_foreign(const char *directory) {
    static const char *const files[] = {
        "thesis/chapter1.tex", "notes.txt", ".git/config", "steps/1.txt", "step-7/x", "data.bin", "log.txt",
        "step-0000001/y"};
    for (size_t i = 0; i < ARRAY_LENGTH(files); i++) {
        char *path = xasprintf("%s/%s", directory, files[i]), *text = xasprintf("precious %zu", i);
        put_text(path, text);
        free(path);
        free(text);
    }
    char *read_only = xasprintf("%s/notes.txt", directory);
    assert_int_equal(chmod(in_scratch("%s", read_only), 0444), 0);
    free(read_only);
}

/* Commands that write into a directory that is named at their end. */
static const char *const directory_commands[] = {
    TRAIN "--out",
    TRAIN "--overwrite --out",
    "$T --resume --out",
    "$T --resume --steps 9 --out",
    "$T --stories 200 " MODEL "--steps 1 --overwrite --out",
    "$T --model run --text text.txt --steps 1 --overwrite --out",
    "$P --tokenizer bytes text.txt --out",
    "$P --tokenizer bytes text.txt --overwrite --out",
    "$P --tokenizer bytes text.txt --resume --out",
    "$T export --from run --to",
    "$T export --from run --overwrite --to",
};
/* Commands that write a file that is named at their end; --overwrite goes between the two parts. */
static const char *const file_commands[][2] = {
    {"$T export --from run", "--to"},
    {"$T profile " MODEL "--repeats 1", "--html"},
    {"$T plan " MODEL, "--html"},
    {"$T eval --from run --tasks questions.jsonl", "--details"},
    {"$T eval --from run --tasks questions.jsonl", "--json"},
    {"$T eval --from run --text text.txt", "--html"},
    {"$T view --from run --prompt the", "--html"},
    {"$T view --from run --prompt the", "--json"},
    {"$T watch run", "--html"},
    {"$B --device cpu --op act --seconds 0.001 --shape 2,8,16,2,30", "--json"},
};

static void other_files_stay(void **state) {
    for (size_t i = 0; i < ARRAY_LENGTH(directory_commands); i++) {
        put_foreign("other/mine");
        char *before = snapshot("other/mine"), *copy = xstrdup(before);
        (void)run_command("%s other/mine", directory_commands[i]);
        /* a command may add its own: every line from before is still there */
        char *after = snapshot("other/mine");
        for (char *line = strtok(copy, "\n"); line; line = strtok(NULL, "\n"))
            if (!strstr(after, line))
                fail_msg("%s: changed or removed %s. After:\n%s", directory_commands[i], line, after);
        free(after);
        free(copy);
        free(before);
        assert_true(remove_tree(in_scratch("other")));
    }
}

/* What is refused changes nothing at all. */
static void assert_refused(const char *command, const char *target, const char *where) {
    char *whole = xasprintf("%s %s", command, target), *before = snapshot(where);
    struct ran r = run_command("%s", whole);
    if (r.status != 1 && r.status != 2) fail_msg("%s\n  exit status %d\n%s%s", whole, r.status, r.out, r.err);
    assert_mentions(r.err, "error: ");
    assert_unchanged(where, before, whole);
    free(whole);
}

static void overwrite_needs_a_run(void **state) {
    put_foreign("place/mine");
    put_text("place/file", "a plain file");
    assert_int_equal(symlink("mine", in_scratch("place/link")), 0);
    assert_int_equal(symlink("file", in_scratch("place/filelink")), 0);
    assert_int_equal(symlink("nowhere", in_scratch("place/dangling")), 0);
    static const char *const targets[] = {"place/mine", "place/mine/",    "place/file",
                                          "place/link", "place/filelink", "place/dangling"};
    for (size_t t = 0; t < ARRAY_LENGTH(targets); t++) {
        assert_refused(TRAIN "--overwrite --out", targets[t], "place");
        assert_refused("$T --resume --out", targets[t], "place");
        assert_refused("$T export --from run --to", targets[t], "place");
        assert_refused("$T export --from run --overwrite --to", targets[t], "place");
        if (strstr(targets[t], "file") || strstr(targets[t], "dangling")) {
            assert_refused(TRAIN "--out", targets[t], "place");
            assert_refused("$P --tokenizer bytes text.txt --out", targets[t], "place");
            assert_refused("$P --tokenizer bytes text.txt --overwrite --out", targets[t], "place");
        }
    }
    assert_refused("cd place/mine && $T --stories 200 " MODEL "--steps 1 --overwrite --out", ".", "place");
    assert_refused("cd run && $T --stories 200 " MODEL "--steps 1 --overwrite --out", ".", "run");
    assert_refused("cd run/step-00000003 && $T --stories 200 " MODEL "--steps 1 --overwrite --out", "..",
                   "run/..");
    assert_refused("$T --text place/mine/notes.txt " MODEL "--steps 1 --overwrite --out", "place/mine",
                   "place");
    assert_true(remove_tree(in_scratch("place")));
}

/* Names of a run's that no run gave. */
static void what_looks_like_a_run_and_is_none(void **state) {
    static const struct {
        const char *file, *text;
    } foreign[] = {
        {"log.jsonl", "{\"time\": \"12:00\", \"event\": \"a log of something else\"}\n"},
        {"options.json", "{\"my\": \"options\"}"},
        {"loss.svg", "<svg/>"},
        {"stories.txt", "my stories"},
        {"step-00000007/config.json", "{}"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(foreign); i++) {
        char *path = xasprintf("same/%s", foreign[i].file);
        put_text(path, foreign[i].text);
        assert_refused(TRAIN "--out", "same", "same");
        assert_refused(TRAIN "--overwrite --out", "same", "same");
        assert_refused("$T --resume --out", "same", "same");
        free(path);
        assert_true(remove_tree(in_scratch("same")));
    }
    /* a link where the run would write follows nobody home */
    put_text("precious.txt", "precious");
    expect_command(0, "", "cp -r run linked && ln -sf ../precious.txt linked/log.jsonl");
    assert_refused(TRAIN "--overwrite --out", "linked", ".");
    assert_true(remove_tree(in_scratch("linked")));
    /* manifests and tokenizers that prepare did not write */
    put_text("web/manifest.json", "{\"name\": \"my web application\"}");
    assert_refused("$P --tokenizer bytes text.txt --overwrite --out", "web", "web");
    assert_true(remove_tree(in_scratch("web")));
    expect_command(0, "", "mkdir web && cp run/step-00000006/tokenizer.json web");
    assert_refused("$P --tokenizer bytes text.txt --overwrite --out", "web", "web");
    assert_refused("$P --tokenizer bytes text.txt --out", "web", "web");
    expect_command(0, "train on them",
                   "$P --tokenizer web/tokenizer.json text.txt --out web && cmp "
                   "web/tokenizer.json run/step-00000006/tokenizer.json");
    put_text("web2/data_train_000000.bin", "this is no shard");
    assert_refused("$P --tokenizer bytes text.txt --overwrite --out", "web2", "web2");
    assert_true(remove_tree(in_scratch("web")) && remove_tree(in_scratch("web2")));
}

static void files_are_replaced_only_with_overwrite(void **state) {
    for (size_t i = 0; i < ARRAY_LENGTH(file_commands); i++) {
        char *plain = xasprintf("%s %s", file_commands[i][0], file_commands[i][1]);
        char *over = xasprintf("%s --overwrite %s", file_commands[i][0], file_commands[i][1]);
        put_text("files/x.gguf", "precious");
        assert_int_equal(symlink("x.gguf", in_scratch("files/link.gguf")), 0);
        assert_refused(plain, "files/x.gguf", "files");
        assert_refused(plain, "files/link.gguf", "files");
        assert_refused(over, "files/no/such/x.gguf", "files");
        put_text("files/d.gguf/precious", "precious");
        assert_refused(over, "files/d.gguf", "files");
        expect_command(0, "", "%s files/new.gguf && test -s files/new.gguf", plain);
        expect_command(0, "", "%s files/x.gguf && ! grep -q precious files/x.gguf", over);
        free(plain);
        free(over);
        assert_true(remove_tree(in_scratch("files")));
    }
    assert_refused("$T export --from run --to", "m.safetensors", "run");
    assert_refused("$T export --from run --overwrite --to", "run/step-00000006", "run");
    expect_command(0, "hf", "$T export --from run --to hf");
    assert_refused("$T export --from run --to", "hf", "hf");
    assert_refused("$T export --from hf --type f32 --overwrite --to", "hf", "hf");
    expect_command(0, "(f32", "$T export --from run --type f32 --overwrite --to hf");
    put_text("hf/README.md", "a model card");
    assert_refused("$T export --from run --overwrite --to", "hf", "hf");
    assert_true(remove_tree(in_scratch("hf")));
}

/* The file of matmul choices grows: another file must not. */
static void tuning_appends_to_nothing_else(void **state) {
    static const struct {
        const char *name, *text;
        bool own;
    } cases[] = {{"own", "NVIDIA_H200|130000|bf16,TN,768,8,768,0,0 0102ff 12.00\n", true},
                 {"empty", "", true},
                 {"thesis.txt", "It was a dark and stormy night", false},
                 {"table.txt", "a|b c|d", false},
                 {"log.jsonl", "{\"step\":1}\n", false},
                 {"word", "word", false}};
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        put_text(cases[i].name, cases[i].text);
        const char *path = in_scratch("%s", cases[i].name);
        struct device_options options = {.tune_file = path};
        struct error err;
        struct device *d = device_open("cpu", &options, &err);
        if ((d != NULL) != cases[i].own) fail_msg("%s", cases[i].name);
        if (d) d->close(d);
        if (!d) assert_mentions(err.message, path);
        assert_int_equal(unlink(path), 0);
    }
}

static void a_run_is_overwritten_and_nothing_else(void **state) {
    static const char *const mine[] = {"notes.txt",           "src/main.c", "step-00000003/README.md",
                                       "step-00000006/sub/x", "loss.png",   "log.jsonl.gz",
                                       "step-7.txt",          "rank-0.logs"};
    expect_command(0, "",
                   "cp -r run used && mkdir -p used/step-00000004.tmp used/step-00000003.tmp && "
                   "touch used/step-00000004.tmp/model.safetensors used/rank-0.log");
    for (size_t i = 0; i < ARRAY_LENGTH(mine); i++) {
        char *path = xasprintf("used/%s", mine[i]);
        put_text(path, mine[i]);
        free(path);
    }
    expect_command(0, "used/log.jsonl", "$T --text text.txt " MODEL "--steps 2 --overwrite --out used");
    for (size_t i = 0; i < ARRAY_LENGTH(mine); i++) {
        char *path = xasprintf("used/%s", mine[i]), *text = get_text(path);
        assert_string_equal(text, mine[i]);
        free(path);
        free(text);
    }
    expect_command(0, "2\n",
                   "grep -c epoch used/log.jsonl && ! ls used/step-*.tmp used/rank-0.log 2>/dev/null");
    assert_false(path_exists(in_scratch("used/step-00000006/model.safetensors")));
    assert_false(path_exists(in_scratch("used/step-00000006/trainer.json")));
    /* through a link: the run it points to, and the link stays */
    expect_command(0, "", "cp -r run target && ln -s target link");
    expect_command(0, "link/log.jsonl", "$T --text text.txt " MODEL "--steps 2 --overwrite --out link");
    expect_command(0, "2\n", "test -L link && grep -c epoch target/log.jsonl");
    expect_command(0, "", "rm -r used target link");
}

/* One mistake must not cost a finished run. */
static void a_failed_start_costs_nothing(void **state) {
    /* the first only because of --overwrite */
    enum { INPUTS = 4 };
    static const char *const mistakes[] = {
        "--text text.txt --model run",
        "--text text.txt --model run/step-00000003",
        "--text run/log.jsonl",
        "--text text.txt --tokenizer run/step-00000003",
        "--text text.txt --model typo",
        "--text missing.txt",
        "--data 'nothing*.bin'",
        "--text text.txt --channels 100 --heads 3",
        "--text text.txt --eval-tasks missing.jsonl",
        "--text text.txt --device cuda:9",
        "--text text.txt --seq-len 4096",
        "--text text.txt --model gpt2-xl --batch-size 100000",
        "--text text.txt --tokens-per-step 1001",
        "--text text.txt --resume",
        "--text text.txt --batch-size 0x",
    };
    for (size_t i = 0; i < ARRAY_LENGTH(mistakes); i++) {
        char *overwrite = xasprintf("$T --overwrite %s --out", mistakes[i]);
        char *anew = xasprintf("$T %s --out", mistakes[i]);
        assert_refused(overwrite, "run", "run");
        if (i >= INPUTS) {
            assert_refused(anew, "a/b/c", ".");
            assert_refused(anew, "run/new", "run");
        }
        free(overwrite);
        free(anew);
    }
    static const char *const preparations[] = {
        "--tokenizer train:99 text.txt", "--tokenizer bytes missing.txt", "--tokenizer missing.json text.txt",
        "--tokenizer bytes /dev/null", "--tokenizer bytes --strict --format jsonl text.txt"};
    expect_command(0, "train on them", "$P --tokenizer bytes text.txt --out shards");
    for (size_t i = 0; i < ARRAY_LENGTH(preparations); i++) {
        char *anew = xasprintf("$P %s --out", preparations[i]);
        char *overwrite = xasprintf("$P %s --overwrite --out", preparations[i]);
        assert_refused(anew, "a/b/c", ".");
        if (i < 3) assert_refused(overwrite, "shards", "shards");
        free(anew);
        free(overwrite);
    }
    assert_refused("$T --text text.txt --steps 1 --out", "/proc/nowhere/run", ".");
    assert_refused("$P --tokenizer bytes text.txt --out", "/proc/nowhere/run", ".");
    assert_refused("$T export --from run --to", "/proc/nowhere/x", ".");
    assert_refused("$T export --from run --to", "/proc/nowhere.gguf", ".");
    assert_true(remove_tree(in_scratch("shards")));
}

static void a_run_in_progress_is_left_alone(void **state) {
    expect_command(0, "",
                   "$T --text text.txt " MODEL "--steps 100000000 --save-every 100 --keep 100000 --out live "
                   ">output 2>&1 & echo $! >pid; "
                   "while [ ! -d live/step-00000200 ] && kill -0 $(cat pid); do sleep 0.05; done");
    static const char *const starts[] = {"", "--overwrite", "--resume"};
    for (size_t i = 0; i < ARRAY_LENGTH(starts); i++)
        expect_command(1, "another process is training",
                       "$T --text text.txt " MODEL "--steps 2 --out live %s", starts[i]);
    expect_command(0, "",
                   "ls -d live/step-00000100 && kill -TERM $(cat pid); "
                   "while kill -0 $(cat pid); do sleep 0.05; done 2>/dev/null; "
                   "grep -q 'the state is saved' output");
    /* no row of the log is missing or doubled */
    expect_command(0, "",
                   "grep -o '\"step\":[0-9]*,\"epoch' live/log.jsonl | grep -o '[0-9]*' >steps && "
                   "seq $(wc -l <steps) | cmp - steps");
    assert_true(remove_tree(in_scratch("live")));
}

/* Checkpoints alone are a run, too: a new one beside them would delete them as old. */
static void checkpoints_are_a_run(void **state) {
    expect_command(0, "", "mkdir base && cp -r run/step-* base");
    assert_refused(TRAIN "--out", "base", "base");
    assert_refused("$T --model base/step-00000003 --text text.txt --steps 8 --out", "base", "base");
    assert_refused("$T --model base --text text.txt --steps 8 --overwrite --out", "base", "base");
    expect_command(0, "resumed from base/step-00000006", "$T --resume --steps 8 --out base");
    assert_true(remove_tree(in_scratch("base")));
}

static void files_in_an_old_checkpoint_stay(void **state) {
    expect_command(0, "", "cp -r run kept");
    put_text("kept/step-00000003/README.md", "the best one");
    put_text("kept/step-00000006/README.md", "a good one");
    expect_command(0, "resumed from", "$T --resume --steps 12 --save-every 3 --keep 1 --out kept");
    expect_command(0, "",
                   "cd kept && [ \"$(cat step-00000003/* step-00000006/*)\" = 'the best onea good one' ] && "
                   "test -f step-00000012/model.safetensors && test ! -e step-00000009");
    /* saved again under the same name */
    expect_command(0, "", "rm -r kept && cp -r run kept && rm kept/step-00000006/model.safetensors");
    put_text("kept/step-00000006/README.md", "a good one");
    expect_command(0, "resumed from kept/step-00000003", "$T --resume --out kept");
    expect_command(0, "a good one",
                   "cat kept/step-00000006/README.md && "
                   "cmp kept/step-00000006/model.safetensors run/step-00000006/model.safetensors");
    assert_true(remove_tree(in_scratch("kept")));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_files_stay),
        cmocka_unit_test(overwrite_needs_a_run),
        cmocka_unit_test(what_looks_like_a_run_and_is_none),
        cmocka_unit_test(files_are_replaced_only_with_overwrite),
        cmocka_unit_test(tuning_appends_to_nothing_else),
        cmocka_unit_test(a_run_is_overwritten_and_nothing_else),
        cmocka_unit_test(a_failed_start_costs_nothing),
        cmocka_unit_test(a_run_in_progress_is_left_alone),
        cmocka_unit_test(checkpoints_are_a_run),
        cmocka_unit_test(files_in_an_old_checkpoint_stay),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}
