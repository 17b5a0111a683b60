/* Training on pairs of a source and a target, from the command line to a target. */
#include "test/program.h"

#include "llmc/corpus/pair_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHAPE                                                                                                \
    "--layers 1 --channels 48 --heads 2 --positions rope --threads 1 --device cpu --tokenizer bytes "

static const char *const words[][2] = {{"cat", "katze"}, {"dog", "hund"}, {"one", "eins"}, {"red", "rot"}};

/* pairs.tsv, and the same as pairs.jsonl */
static int set_up(void **state) {
    if (make_scratch(state) != 0) return -1;
    FILE *tsv = fopen(in_scratch("pairs.tsv"), "w"), *json = fopen(in_scratch("pairs.jsonl"), "w");
    for (int i = 0; i < 64; i++) {
        const char *const *a = words[i % 4], *const *b = words[i / 4 % 4];
        fprintf(tsv, "%s %s\t%s %s\r\n", a[0], b[0], a[1], b[1]);
        fprintf(json, "{\"source\": \"%s %s\", \"target\": \"%s %s\"}\n", a[0], b[0], a[1], b[1]);
    }
    fclose(tsv);
    fclose(json);
    return 0;
}

static void a_model_learns_to_write_targets(void **state) {
    static const char *const masks[] = {"causal", "prefix"};
    for (size_t i = 0; i < ARRAY_LENGTH(masks); i++) {
        expect_command(0, " pairs, ",
                       "rm -rf run; $T --out run --pairs pairs.tsv " SHAPE
                       "--mask %s --steps 200 --learning-rate 5e-3",
                       masks[i]);
        expect_command(0, "", "$T sample --from run --source 'dog red' --temperature 0 --no-stats >target");
        expect_command(0, "", "$T sample --from run --source 'dog red' --beams 3 >found && cmp found target");
        char *target = get_text("target");
        assert_string_equal(target, "hund rot\n");
        free(target);
    }
    expect_command(0, "pairs.tsv: BLEU ", "$T eval --from run --pairs pairs.tsv --details written.jsonl");
    expect_command(0, "100.00 % right to the last character",
                   "head -3 pairs.tsv >three.tsv; "
                   "$T eval --from run --pairs three.tsv && "
                   "$T eval --from run --pairs three.tsv --beams 2 | grep -q '100.00 %% right'");
    expect_command(0, "",
                   "test $(wc -l <written.jsonl) = 64 && head -1 written.jsonl | grep -qx "
                   "'{\"source\":\"cat cat\",\"target\":\"katze katze\",\"written\":\"katze katze\"}'");
    expect_command(0, " 0.00 % right",
                   "printf 'cat\tHUND\n' >wrong.tsv; $T eval --from run --pairs wrong.tsv");
    expect_command(1, "--pairs bad:1: expected a source", "echo no tab >bad; $T eval --from run --pairs bad");
    expect_command(1, "--beams 200: more than the model's context of 128",
                   "$T sample --from run --source x --beams 200");
    /* the command that is printed at the end */
    expect_command(0, "",
                   "$T --resume --out run | sed -n 's/^sample  *//p' | grep -e --source >hint && sh hint");
}

/* A sentence of each story, and a target that awk makes of it, too. */
static void pairs_are_made_of_stories(void **state) {
    expect_command(0, "",
                   "$S --pairs reversed --count 300 >made && test $(wc -l <made) = 300 && "
                   "awk -F'\t' '{ n = split($1, w, \" \"); r = w[n]; "
                   "while (--n) r = r \" \" w[n]; print $1 \"\t\" r }' made | cmp - made");
    expect_command(
        0, "",
        "$S --pairs sorted --count 300 >made && cut -f1 made | while read -r s; do "
        "printf '%%s\n' $s | LC_ALL=C sort | paste -sd' '; done >sorted; cut -f2 made | cmp - sorted");
    /* the sentences are those of the stories */
    expect_command(0, "",
                   "$S --count 300 | grep -v endoftext >stories; $S --pairs reversed --count 300 | cut -f1 | "
                   "paste -d'\t' - stories | awk -F'\t' '!index($2, $1) { exit 1 }'");
    expect_command(0, " pairs, ",
                   "$S --pairs reversed --first 7 --count 40 >few; $T --out few-run --pairs few " SHAPE
                   "--context 256 --steps 1");
}

static void both_forms_are_the_same_data(void **state) {
    expect_command(0, "",
                   "$T --out tsv --pairs pairs.tsv " SHAPE "--steps 3 && "
                   "$T --out json --pairs pairs.jsonl " SHAPE "--steps 3 && "
                   "cmp tsv/step-00000003/model.safetensors json/step-00000003/model.safetensors");
    expect_command(0, "", "$T --resume --out tsv --pairs pairs.jsonl --steps 4");
    expect_command(1, "the training data is not what the run was started on",
                   "sed s/rot/blau/ pairs.tsv >other.tsv; $T --resume --out tsv --pairs other.tsv --steps 5");
}

/* <|endoftext|> source <|endoftext|> target <|endoftext|>: targets are the target's, and the last one. */
static void the_target_is_learned(void **state) {
    struct pair_file f;
    struct error err;
    struct tokenizer *t = tokenizer_bytes();
    int64_t longest = 0, valid;
    put_text("one.tsv", "ab\txyz\n");
    if (!pair_file_read(&f, in_scratch("one.tsv"), &err)) fail_msg("%s", err.message);
    struct dataset *d = pair_file_encode(&f, NULL, true, t, &longest, &err);
    assert_int_equal(longest, 8);
    struct loader_options o = {.B = 1, .T = 8, .order = SAMPLES_APART, .world = 1};
    struct dataloader *l = dataloader_open(d, &o, &err);
    const int32_t *tokens, *targets;
    static const int32_t expected[2][8] = {{256, 'a', 'b', 256, 'x', 'y', 'z', 0},
                                           {-1, -1, -1, 'x', 'y', 'z', 256, -1}};
    dataloader_next(l, &tokens, &targets, &valid);
    assert_memory_equal(tokens, expected[0], 7 * sizeof *tokens);
    assert_memory_equal(targets, expected[1], 8 * sizeof *targets);
    assert_int_equal(valid, 4);
    dataloader_close(l);
    dataset_free(d);
    pair_file_free(&f);
    tokenizer_free(t);
}

static void wrong_input_is_refused(void **state) {
    static const struct {
        const char *text, *message;
    } files[] = {
        {"", "holds no pair"},
        {"a\tb\n\na b\n", "bad:3: expected a source, a tab and a target; found 0 tabs"},
        {"a\tb\tc\n", "bad:1: expected a source, a tab and a target; found 2 tabs"},
        {"a\t \n", "bad:1: the target is empty"},
        {"{\"source\": \"a\", \"target\": \"b\"}\n{\"source\": \"a\"}\n", "bad:2: expected {\"source\""},
        {"{\"source\": \"a\", \"target\": \"b\"}\na\tb\n", "bad:2: not JSON"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(files); i++) {
        struct pair_file f;
        struct error err;
        put_text("bad", files[i].text);
        assert_false(pair_file_read(&f, in_scratch("bad"), &err));
        assert_mentions(err.message, files[i].message);
        expect_command(1, files[i].message, "$T --pairs bad " SHAPE);
    }
    static const struct {
        const char *command, *message;
    } cases[] = {
        {"$T --pairs pairs.tsv --device cpu", "--pairs pairs.tsv: there is no tokenizer"},
        {"$T --pairs pairs.tsv --chat pairs.tsv " SHAPE, "--chat and --pairs exclude each other"},
        {"$T --pairs pairs.tsv --text pairs.tsv " SHAPE, "--pairs and --text exclude each other"},
        {"$T --pairs pairs.tsv --samples windows " SHAPE, "samples of --pairs are not cut"},
        {"$T --pairs pairs.tsv --seq-len 4 " SHAPE, "use longer sequences"},
        {"$T sample --from run --source x --prompt y", "--source excludes --prompt"},
        {"$T sample --from run --source x --beams 2 --json", "--beams finds one text"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        expect_command(1, cases[i].message, "%s", cases[i].command);
    expect_command(2, "--pairs excludes --data, --text, --chat and --tasks",
                   "$T eval --from run --pairs pairs.tsv --text pairs.tsv");
    expect_command(
        0, "60 pairs for training are longer than --seq-len 12",
        "sed 60q pairs.tsv | sed 's/\\t/ \\t/; s/$/ and more/' >many.tsv; "
        "rm -rf x; $T --out x --pairs many.tsv --seq-len 12 --steps 1 --validation-fraction 0 " SHAPE);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_learns_to_write_targets), cmocka_unit_test(pairs_are_made_of_stories),
        cmocka_unit_test(both_forms_are_the_same_data), cmocka_unit_test(the_target_is_learned),
        cmocka_unit_test(wrong_input_is_refused)};
    return test_main(argc, argv, tests, set_up, remove_scratch);
}
