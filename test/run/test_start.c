/* What a run is given at its start does what it says, or is refused, or is warned about: vocabulary,
 * samples, warmup, validation data, epochs, names of models, tokenizers, learning rate, and options that
 * have no effect. */
#include "test/program.h"

#include "llmc/base/file.h"
#include "llmc/base/json_file.h"
#include "llmc/corpus/shard.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SHAPE "--layers 1 --channels 16 --heads 2 --context 32 --threads 1 --device cpu --batch-size 2 "
#define TRAIN "rm -rf run; $T --out run --steps 2 " SHAPE

static void put_shard(const char *path, int64_t count, uint32_t seed) {
    uint32_t *tokens = (uint32_t *)xmalloc((size_t)count * sizeof *tokens);
    struct error err;
    for (int64_t i = 0; i < count; i++) tokens[i] = (uint32_t)((i * i + seed * (i / 3)) % 256);
    if (!shard_write(in_scratch("%s", path), tokens, count, 300, &err)) fail_msg("%s", err.message);
    free(tokens);
}

/* text.txt; unknown.bin, a shard of unknown tokens; prepared/, shards of the text by bytes; bpe/, by a
 * trained tokenizer */
static int set_up(void **state) {
    static const char *const words[] = {"the", "cat", "saw", "a", "dog", "and", "ran", "home"};
    if (make_scratch(state) != 0) return -1;
    FILE *f = fopen(in_scratch("text.txt"), "w");
    for (int i = 0; i < 4000; i++)
        fprintf(f, "%s%s", words[(i * i + i / 7) % 8], i % 12 == 11 ? ".\n<|endoftext|>\n" : " ");
    fclose(f);
    put_shard("unknown.bin", 3000, 1);
    expect_command(0, "", "$P --tokenizer bytes --validation-fraction 0.1 --out prepared text.txt");
    expect_command(0, "", "$P --tokenizer train:300 --validation-fraction 0.1 --out bpe text.txt");
    return 0;
}

#define PREPARED "--data 'prepared/*_train_*.bin' --val 'prepared/*_val_*.bin' "

/* The value of a key in a JSON file. */
static double number_in(const char *path, const char *key) {
    struct error err;
    json_t *root = json_file_load(in_scratch("%s", path), &err);
    if (!root) fail_msg("%s", err.message);
    double value = json_number_value(json_object_get(root, key));
    json_decref(root);
    return value;
}

static void expect_no_warning(const char *command) {
    struct ran r = run_command("%s", command);
    if (r.status != 0 || strstr(r.err, "warning")) fail_msg("%s\n%s", command, r.err);
}

/* --- the vocabulary --- */

static void vocab_size_is_honoured_or_refused(void **state) {
    static const char *const known[] = {"--text text.txt --tokenizer bytes",
                                        "--data 'prepared/*_train_*.bin' --tokenizer bytes", PREPARED};
    for (size_t i = 0; i < ARRAY_LENGTH(known); i++) {
        expect_command(1, "--vocab-size 256: the tokenizer has 257 tokens", TRAIN "--vocab-size 256 %s",
                       known[i]);
        expect_command(0, "weights", TRAIN "--vocab-size 320 %s", known[i]);
        assert_true(number_in("run/step-00000002/config.json", "vocab_size") == 320);
        expect_command(0, "", "$T sample --from run --prompt the --tokens 4 --no-stats");
        expect_command(0, "weights", TRAIN "%s", known[i]);
        assert_true(number_in("run/step-00000002/config.json", "vocab_size") == 257);
    }
    expect_command(0, "--vocab-size 4000: the text is too small", TRAIN "--vocab-size 4000 --text text.txt");
    expect_command(0, "weights", TRAIN "--vocab-size 260 --text text.txt");
    assert_true(number_in("run/step-00000002/config.json", "vocab_size") == 260);
}

/* --- samples and steps --- */

static void documents_need_a_token_that_begins_them(void **state) {
    expect_command(1, "--samples documents: where a document of --data begins is not known",
                   TRAIN "--vocab-size 300 --samples documents --data unknown.bin");
    expect_no_warning(TRAIN "--samples documents --data unknown.bin --tokenizer bytes");
    expect_no_warning(TRAIN "--samples documents " PREPARED);
    expect_command(1, "--samples packed: where a document of --data begins is not known",
                   TRAIN "--vocab-size 300 --samples packed --data unknown.bin");
}

/* What is said, and which masks go with it. */
static void packed_rows_are_counted_and_masked(void **state) {
    expect_command(0, "% of the places empty; a token sees only its own", TRAIN "--samples packed " PREPARED);
    expect_command(0, "% of the places empty; a token sees all before it in its row",
                   TRAIN "--samples packed --no-document-mask " PREPARED);
    expect_command(1, "under --mask causal and --mask window, not under --mask full",
                   TRAIN "--samples packed --mask full " PREPARED);
    expect_no_warning(TRAIN "--samples packed --mask full --no-document-mask " PREPARED);
    expect_no_warning(TRAIN "--samples packed --mask window --window 9 " PREPARED);
    expect_command(0, "% of the places empty",
                   TRAIN "--samples packed --tokenizer prepared "
                         "--data 'prepared/*_train_*.bin:0.7,prepared/*_val_*.bin:0.3'");
}

static void a_warmup_longer_than_the_run_is_said(void **state) {
    expect_command(0, "--warmup 700 lasts longer than the run of 2 steps",
                   TRAIN "--warmup 700 --text text.txt");
    expect_no_warning(TRAIN "--warmup 2 --text text.txt");
}

/* One long shard, a hundred that are shorter than a sample, and both. */
static void an_epoch_is_an_epoch(void **state) {
    enum { T = 32, LONG = 641 };
    struct error err;
    int64_t joined = 0;
    if (!make_directories(in_scratch("short"), &err)) fail_msg("%s", err.message);
    put_shard("short/a.bin", LONG, 1);
    for (int i = 100; i < 200; i++) {
        put_shard(temp_printf("short/b%d.bin", i), 20 + i % 9, (uint32_t)i);
        joined += 20 + i % 9;
    }
    const struct {
        const char *data;
        int64_t tokens;
    } cases[] = {{"short/a.bin", LONG}, {"short/b*.bin", joined}, {"short/*.bin", LONG + joined}};
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        int64_t samples = (cases[i].tokens - 1) / T, unused = cases[i].tokens - 1 - samples * T;
        struct ran r = run_command(
            "rm -rf run; $T --out run --epochs 2 --vocab-size 300 " SHAPE "--data '%s'", cases[i].data);
        assert_int_equal(r.status, 0);
        assert_mentions(r.out, temp_printf("\nepoch     %d samples of 32 tokens", (int)samples));
        if (unused)
            assert_mentions(r.out, temp_printf("; %d tokens that fill no sample are not used", (int)unused));
        char *log = get_text("run/log.jsonl"), *last = strstr(log, "\"epoch\":");
        for (char *next; (next = strstr(last + 1, "\"epoch\":"));) last = next;
        if (fabs(atof(last + 8) - 2.0) > 1.0 / (double)samples)
            fail_msg("%s: 2 epochs end at %.30s", cases[i].data, last);
        free(log);
    }
}

/* --- validation data --- */

static void validation_data_is_looked_at_first(void **state) {
    put_shard("train.bin", 4000, 1);
    put_shard("val32.bin", 32, 2);
    put_shard("val33.bin", 33, 2);
    struct ran r = run_command("rm -rf run; $T --out run --steps 1000 " SHAPE
                               "--vocab-size 300 --data train.bin --val val32.bin");
    assert_int_equal(r.status, 1);
    assert_mentions(r.err, "val32.bin: 32 tokens");
    assert_mentions(r.err, "one is needed");
    assert_false(path_exists(in_scratch("run")));
    expect_command(
        0, "nats per token on the validation set",
        "rm -rf run; $T --out run --steps 2 --layers 1 --channels 16 --heads 2 --context 32 --device cpu "
        "--batch-size 4 --vocab-size 300 --data train.bin --val val33.bin");
}

static void validation_on_training_data_is_said(void **state) {
    put_shard("one.bin", 4000, 1);
    put_shard("two.bin", 4000, 2);
    put_shard("three.bin", 4000, 3);
    expect_command(0, "", "cp two.bin copy.bin");
    static const char *const overlapping[] = {"one.bin", "./two.bin", "copy.bin", "{three,copy}.bin"};
    for (size_t i = 0; i < ARRAY_LENGTH(overlapping); i++)
        expect_command(0, "which is trained on", TRAIN "--vocab-size 300 --data '{one,two}.bin' --val '%s'",
                       overlapping[i]);
    expect_no_warning(TRAIN "--vocab-size 300 --data '{one,two}.bin' --val three.bin");
}

/* --- models --- */

/* A directory that happens to have the name of a preset is no model. */
static void presets_are_not_shadowed(void **state) {
    expect_command(0, "",
                   "mkdir -p here/tiny here/gpt2/src here/d1 && touch here/gpt2/src/a.c here/d3 && "
                   "echo '{}' >here/d1/config.json");
#define HERE                                                                                                 \
    "cd here && rm -rf run && $T --text ../text.txt --tokenizer bytes --out run --steps 2 --batch-size 2 "   \
    "--seq-len 16 --device cpu "
    expect_command(0, "model     tiny", HERE);
    expect_command(0, "model     tiny", HERE "--model tiny");
    expect_command(0, "model     d1", HERE "--model d1 --layers 1 --channels 16 --heads 2 --context 32");
    expect_command(0, "model     d3", HERE "--model d3 --layers 1 --channels 16 --heads 2 --context 32");
    expect_command(0, "neither a directory nor a preset", HERE "--model src || true");
    /* one that holds a model is what --model says, but never what a run without --model starts from */
    expect_command(0, "",
                   HERE "--layers 1 --channels 16 --heads 2 --context 32 && rm -r tiny && cp -r run tiny");
    expect_command(0, "starting from tiny/step-00000002", HERE "--model tiny");
    struct ran r = run_command(HERE);
    assert_int_equal(r.status, 0);
    assert_null(strstr(r.out, "starting from"));
#undef HERE
}

static void trained_weights_get_a_smaller_learning_rate(void **state) {
    expect_command(0, "", TRAIN "--text text.txt --tokenizer bytes && rm -rf base && mv run base");
    double rate = number_in("base/options.json", "learning-rate");
    expect_command(0, "starting from base",
                   "rm -rf run; $T --out run --model base --text text.txt --steps 2 --device cpu");
    assert_true(fabs(number_in("run/options.json", "learning-rate") - 0.1 * rate) < 1e-12);
    assert_true(number_in("run/options.json", "init-std") == 0); /* no weight was drawn */
    expect_command(0, "", "$T --resume --out run --steps 3");
    assert_true(fabs(number_in("run/options.json", "learning-rate") - 0.1 * rate) < 1e-12);
    expect_command(
        0, "",
        "rm -rf run; $T --out run --model base --text text.txt --steps 2 --device cpu --learning-rate 0.5");
    assert_true(number_in("run/options.json", "learning-rate") == 0.5);
    expect_command(0, "", "rm -rf base");
}

/* --- tokenizers --- */

/* A model that is trained on shards has their tokenizer, and everything can be done with it. */
static void the_tokenizer_beside_the_shards(void **state) {
    expect_no_warning(TRAIN PREPARED);
    expect_command(0, "", "cmp run/step-00000002/tokenizer.json prepared/tokenizer.json");
    expect_command(0, "", "$T sample --from run --prompt the --tokens 4 --no-stats");
    expect_command(0, "bits per byte", "$T eval --from run --text text.txt --batches 1");
    expect_command(0, "bits per byte", "$T eval --from run --data 'prepared/*_val_*.bin' --batches 1");
    expect_command(0, "", "$T export --from run --to run/x.gguf");
    expect_command(0, "starting from run",
                   "rm -rf tuned; $T --out tuned --model run --text text.txt --steps 1 --device cpu");
    expect_command(0, "starting from run",
                   "rm -rf tuned; $T --out tuned --model run --steps 1 --device cpu " PREPARED);
    expect_no_warning("$T sample --from run --tokenizer bytes --prompt the --tokens 4 --no-stats");
    expect_no_warning("cd prepared && rm -rf ../run; $T --out ../run --steps 2 " SHAPE
                      "--data '*_train_*.bin' --val *_val_*.bin");
    assert_true(path_exists(in_scratch("run/step-00000002/tokenizer.json")));
    /* the command that is printed at the end */
    expect_command(0, "", TRAIN PREPARED "| sed -n 's/^sample  *//p' | grep . >hint && sh hint");
    expect_command(
        0, "",
        TRAIN "--vocab-size 300 --data unknown.bin | sed -n 's/^sample  *//p' | grep . >hint && sh hint");
}

static void different_tokenizers_are_refused(void **state) {
    const char *other = "the same numbers are other tokens";
    expect_command(0, "", TRAIN PREPARED "&& rm -rf base && mv run base");
    static const char *const refused[] = {
        TRAIN "--data 'prepared/*_train_*.bin' --tokenizer bpe/tokenizer.json",
        TRAIN "--data 'bpe/*_train_*.bin' --tokenizer bytes",
        TRAIN "--data unknown.bin --val 'bpe/*_val_*.bin' --tokenizer bytes",
        "rm -rf run; $T --out run --model base --data 'bpe/*_train_*.bin' --steps 2 --device cpu",
        "$T eval --from base --data 'bpe/*_val_*.bin' --batches 1",
    };
    for (size_t i = 0; i < ARRAY_LENGTH(refused); i++) expect_command(1, other, "%s", refused[i]);
    expect_command(1, "were made with different tokenizers",
                   TRAIN "--data 'prepared/*_train_*.bin' --val 'bpe/*_val_*.bin'");
    expect_command(1, "were made with different tokenizers", TRAIN "--data '{prepared,bpe}/*_train_*.bin'");
    /* a resumed run keeps its tokenizer, a new one may learn another */
    expect_command(1, "--tokenizer bpe/tokenizer.json: is not the tokenizer of base",
                   "$T --resume --out base --tokenizer bpe/tokenizer.json");
    expect_command(0, "", "$T --resume --out base --tokenizer bytes");
    expect_command(0, "",
                   TRAIN "--text text.txt --tokenizer bytes --vocab-size 300 && rm -rf wide && mv run wide");
    expect_command(
        0, "has to learn them anew",
        "rm -rf run; $T --out run --model wide --text text.txt --tokenizer bpe/tokenizer.json --steps 2 "
        "--device cpu");
    static const char *const other_text[] = {"eval --text text.txt --batches 1",
                                             "sample --prompt the --tokens 4"};
    for (size_t i = 0; i < ARRAY_LENGTH(other_text); i++)
        expect_command(0, "is not the tokenizer of wide", "$T %s --from wide --tokenizer bpe/tokenizer.json",
                       other_text[i]);
    expect_command(0, "", "rm -r base wide");
}

/* A manifest speaks for the shards that it lists, and a tokenizer.json for its own hash. */
static void manifests_are_not_trusted_blindly(void **state) {
    expect_command(0, "", "rm -rf mixed && cp -r prepared mixed && cp bpe/tokenizer.json mixed/");
    expect_command(1, "is not the tokenizer that the shards beside it were made with",
                   TRAIN "--data 'mixed/*_train_*.bin'");
    expect_command(0, "", "rm mixed/tokenizer.json");
    expect_command(0, "weights", TRAIN "--vocab-size 300 --data 'mixed/*_train_*.bin'");
    put_shard("mixed/foreign.bin", 2000, 9);
    expect_command(0, "", "cp bpe/tokenizer.json mixed/");
    expect_command(0, "weights", TRAIN "--vocab-size 300 --data 'mixed/foreign.bin'");
    assert_false(path_exists(in_scratch("run/step-00000002/tokenizer.json")));
    static const char *const manifests[] = {"", "{", "[]", "{\"format\": \"something else\"}"};
    for (size_t i = 0; i < ARRAY_LENGTH(manifests); i++) {
        put_text("mixed/manifest.json", manifests[i]);
        expect_command(0, "weights", TRAIN "--vocab-size 300 --data 'mixed/*_train_*.bin'");
    }
    put_text("mixed/manifest.json", "{\"format\": \"llmc token shards\", \"tokenizer\": {}}");
    expect_command(1, "has no \"hash\"", TRAIN "--vocab-size 300 --data 'mixed/*_train_*.bin'");
    expect_command(0, "", "rm -r mixed");
}

/* --- options without effect --- */

static void options_without_effect_are_said(void **state) {
    static const struct {
        const char *data, *option;
    } cases[] = {
        {PREPARED, "--format text"},
        {PREPARED, "--field story"},
        {PREPARED, "--chat-template plain"},
        {PREPARED, "--stories 200"},
        {PREPARED, "--validation-fraction 0.1"},
        {PREPARED "--samples documents", "--shuffle"},
        {PREPARED "--samples documents", "--no-document-mask"},
        {PREPARED "--schedule constant", "--final-lr-fraction 0.2"},
        {PREPARED, "--decay-fraction 0.5"},
        {"--vocab-size 300 --data unknown.bin", "--val-every 1"},
        {"--vocab-size 300 --data unknown.bin", "--val-batches 1"},
        {"--vocab-size 300 --data unknown.bin", "--keep-best"},
        {"--vocab-size 300 --data unknown.bin", "--early-stop 2"},
        {"--vocab-size 300 --data unknown.bin", "--sample-every 1"},
        {PREPARED, "--eval-every 1"},
        {PREPARED, "--lora-alpha 4"},
        {PREPARED, "--zero 3"},
        {PREPARED, "--zero-group 2"},
        {PREPARED, "--comm-timeout 60"},
        {PREPARED, "--bind"},
        {PREPARED, "--tf32"},
        {PREPARED, "--autotune tune"},
        {PREPARED, "--no-master-weights"},
        {PREPARED, "--stochastic-rounding"},
        {PREPARED, "--epochs 7"},
        {"--text text.txt", "--field story"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        char *name = xasprintf("--%s", cases[i].option + (strncmp(cases[i].option, "--no-", 5) == 0 ? 5 : 2));
        name[strcspn(name, " ")] = '\0';
        struct ran r = run_command(TRAIN "%s %s", cases[i].data, cases[i].option);
        bool said = strstr(r.err, "has no effect") && strstr(r.err, name);
        if (r.status != 0 || !said) fail_msg("%s: status %d, %s", cases[i].option, r.status, r.err);
        free(name);
    }
    expect_command(0, "", TRAIN PREPARED "&& rm -rf base && mv run base");
    expect_command(0, "--init-std has no effect",
                   "$T --out run --model base --init-std 1 --steps 1 --device cpu " PREPARED);
    expect_command(0, "--field has no effect",
                   "$T eval --from base --field story --data 'prepared/*_val_*.bin' --batches 1");
    expect_command(0, "--field story has no effect",
                   "$T eval --from base --field story --text text.txt --batches 1");
    expect_command(0, "--field story has no effect",
                   "rm -rf run; $P --tokenizer bytes --field story --out run text.txt");
    expect_no_warning("rm -rf run; $T --config base/options.json --out run"); /* a value for every option */
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vocab_size_is_honoured_or_refused),
        cmocka_unit_test(documents_need_a_token_that_begins_them),
        cmocka_unit_test(packed_rows_are_counted_and_masked),
        cmocka_unit_test(a_warmup_longer_than_the_run_is_said),
        cmocka_unit_test(an_epoch_is_an_epoch),
        cmocka_unit_test(validation_data_is_looked_at_first),
        cmocka_unit_test(validation_on_training_data_is_said),
        cmocka_unit_test(presets_are_not_shadowed),
        cmocka_unit_test(trained_weights_get_a_smaller_learning_rate),
        cmocka_unit_test(the_tokenizer_beside_the_shards),
        cmocka_unit_test(different_tokenizers_are_refused),
        cmocka_unit_test(manifests_are_not_trusted_blindly),
        cmocka_unit_test(options_without_effect_are_said),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}
