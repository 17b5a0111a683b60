/* --resume with other options than the run had: every option of training is changed once, and must be
 * applied, refused or warned about, as its row in llmc/run/resume.c says; what is recorded is what
 * happened. */
#include "test/program.h"

#include "llmc/base/json_file.h"
#include "llmc/corpus/dataloader.h"
#include "llmc/run/resume.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL                                                                                                \
    "--layers 1 --channels 16 --heads 2 --context 32 --vocab-size 300 --batch-size 2 --threads 1 "           \
    "--device cpu "
#define TEXT "$T --text text.txt " MODEL "--steps 4 --seed 5 --out text "
#define SHARDS                                                                                               \
    "$T --data 'shards/train_*.bin' --val shards/val.bin " MODEL "--steps 4 --seed 5 --out shards_run "
#define RESUME "rm -rf run; cp -r %s run; $T --resume --out run "

static void put_words(const char *path, int count, int from) {
    static const char *const words[] = {"the", "cat", "saw", "a", "dog", "and", "ran", "home"};
    FILE *f = fopen(in_scratch("%s", path), "w");
    for (int i = from; i < from + count; i++)
        fprintf(f, "%s%s", words[(i * i + i / 7) % 8], i % 12 == 11 ? ".\n" : " ");
    fclose(f);
}

static void put_tokens(const char *path, int64_t count, uint32_t first) {
    uint32_t *tokens = (uint32_t *)xmalloc((size_t)count * sizeof *tokens);
    struct error err;
    for (int64_t i = 0; i < count; i++) tokens[i] = (uint32_t)((first + i * i) % 300);
    if (!shard_write(in_scratch("%s", path), tokens, count, 300, &err)) fail_msg("%s", err.message);
    free(tokens);
}

/* `text` and `shards_run`: finished runs of 4 steps, on a text and on shards */
static int set_up(void **state) {
    struct error err;
    if (make_scratch(state) != 0) return -1;
    put_words("text.txt", 4000, 0);
    put_words("copy.txt", 4000, 0);
    put_text("questions.jsonl",
             "{\"context\": \"the cat\", \"choices\": [\"saw\", \"ran\"], \"answer\": 0}\n");
    if (!make_directories(in_scratch("shards"), &err)) fail_msg("%s", err.message);
    if (!make_directories(in_scratch("moved"), &err)) fail_msg("%s", err.message);
    put_tokens("shards/train_0.bin", 3000, 1);
    put_tokens("shards/train_1.bin", 2000, 7);
    put_tokens("shards/val.bin", 500, 3);
    put_tokens("other.bin", 500, 4);
    expect_command(0, "weights", TEXT);
    expect_command(0, "weights", SHARDS);
    expect_command(0, "weights", "$T --text text.txt " MODEL "--optimizer muon --steps 4 --out muon_run");
    return 0;
}

/* --- the table --- */

/* The value of an option in RUN/options.json, as on the command line. The caller frees. */
static char *recorded(const char *run, const char *option) {
    struct error err;
    json_t *all = json_file_load(in_scratch("%s/options.json", run), &err), *v = json_object_get(all, option);
    if (!all) fail_msg("%s", err.message);
    char *text = json_is_string(v) ? xstrdup(json_string_value(v)) : json_dumps(v, JSON_ENCODE_ANY);
    json_decref(all);
    return text ? text : xstrdup("(not recorded)");
}

/* Values that cannot be derived from the row, and the run that is resumed if it is not `text`. */
static const struct {
    const char *option, *value, *run;
} special[] = {
    {"model", "gpt2"},
    {"text", "copy.txt"}, /* the same text: moved */
    {"data", "shards/*n_?.bin", "shards_run"},
    {"val", "other.bin", "shards_run"},
    {"chat", "questions.jsonl"},
    {"pairs", "questions.jsonl"},
    {"lora-targets", "up"},
    {"field", "story"},
    {"tokenizer", "bytes"},
    {"positions", "rope"},
    {"rope-scaling", "linear"},
    {"norm", "rms"},
    {"norm-weights", "off"},
    {"mlp", "relu2"},
    {"bias", "off"},
    {"qkv-bias", "off"},
    {"tied", "off"},
    {"score", "dot"},
    {"mask", "full"},
    {"batch-size", "1"},
    {"tokens-per-step", "128"},
    {"steps", "6"},
    {"epochs", "0.2"},
    {"eval-tasks", "questions.jsonl"},
    {"autotune", "tune"},
    {"device", "auto"},
    {"momentum", "0.9", "muon_run"},
    {"muon-lr-factor", "0.5", "muon_run"},
    {"ranks", "1"},
    {"gpus", "1"},
    {"notify", "true"},
};

/* Another value than `was` that the row's range admits. The caller frees. */
static char *other_value(const struct option_row *row, const char *was, const char **run) {
    *run = "text";
    for (size_t i = 0; i < ARRAY_LENGTH(special); i++)
        if (strcmp(special[i].option, row->name) == 0) {
            if (special[i].run) *run = special[i].run;
            return xstrdup(special[i].value);
        }
    switch (row->type) {
    case OPTION_INT:
    case OPTION_SIZE:
        return xasprintf("%lld", atoll(was) + 1);
    case OPTION_REAL:
        return xasprintf("%g", fmax(row->min, atof(was) == 0.25 ? 0.125 : 0.25));
    case OPTION_TIME:
        return xstrdup("2d");
    case OPTION_FLAG:
        return xstrdup(strcmp(was, "true") == 0 ? "false" : "true");
    case OPTION_WORD: /* "auto" leaves the choice open */
        for (const char *word = row->words; *word; word += strcspn(word, "|"), word += *word == '|') {
            char *other = xasprintf("%.*s", (int)strcspn(word, "|"), word);
            if (strcmp(other, was) != 0 && strcmp(other, "auto") != 0) return other;
            free(other);
        }
        break;
    case OPTION_TEXT:
        break;
    }
    fail_msg("--%s: this test needs a value to change it to: a line in `special`", row->name);
    return NULL;
}

static bool same_value(const char *a, const char *b) {
    char *end_a, *end_b;
    double x = strtod(a, &end_a), y = strtod(b, &end_b);
    return strcmp(a, b) == 0 || (end_a != a && !*end_a && end_b != b && !*end_b && x == y);
}

static void change_one(const struct option_row *row) {
    enum resume_rule rule;
    const char *run;
    if (!resume_rule(row->name, &rule))
        fail_msg("--%s has no row in llmc/run/resume.c: what does --resume do with it?", row->name);
    if (strcmp(row->name, "resume") == 0 || strcmp(row->name, "out") == 0) return;
    char *was = recorded("text", row->name), *value = other_value(row, was, &run);
    char *option = xasprintf("--%s", row->name);
    struct ran r = run_command(RESUME "--%s='%s'", run, row->name, value);
    char *now = recorded("run", row->name), *before = recorded(run, row->name);
    bool refused = r.status == 1 && strstr(r.err, "error: ") && strstr(r.err, option);
    bool applied = r.status == 0 && same_value(now, value);
    bool warned = strstr(r.err, "warning: ") != NULL;
    bool right = rule == RESUME_MODEL || rule == RESUME_STATE || rule == RESUME_ORDER ? refused
                 : rule == RESUME_DATA                                                ? refused || applied
                 : rule == RESUME_COMMAND ? refused || r.status == 0
                 : rule == RESUME_WARNED  ? applied && warned
                                          : applied;
    if (!right)
        fail_msg("--resume %s %s (was %s): status %d, recorded %s\n%s", option, value, was, r.status, now,
                 r.err);
    if (refused && strcmp(now, before) != 0)
        fail_msg("%s %s: refused, but recorded as %s instead of %s", option, value, now, before);
    free(was);
    free(before);
    free(value);
    free(option);
    free(now);
}

static void every_option_is_applied_refused_or_warned_about(void **state) {
    for (int g = 0; g < RUN_OPTION_GROUPS; g++) {
        const struct option_group *group = &run_option_groups[g];
        size_t stride = group->stride ? group->stride : sizeof *group->rows;
        for (size_t i = 0; i < group->count; i++)
            change_one((const struct option_row *)(const void *)((const char *)group->rows + i * stride));
    }
    enum resume_rule rule;
    assert_false(resume_rule("no-such-option", &rule));
}

static void the_rules_are_in_the_help(void **state) {
    expect_command(0, "Fixed by the place in the data: --samples --shuffle --seq-len --seed", "$T --help");
}

/* The whole first command again is no change, and neither are values that leave the choice open. */
static void the_same_options_again(void **state) {
    static const char *const same[] = {"--text text.txt " MODEL "--steps 4 --seed 5",
                                       "--config run/options.json",
                                       "--layers 0 --seq-len 0 --samples auto --positions auto",
                                       "--positions learned --kv-heads 2 --no-resume --resume"};
    for (size_t i = 0; i + 1 < ARRAY_LENGTH(same); i++) {
        struct ran r = run_command(RESUME "%s", "text", same[i]);
        if (r.status != 0 || *r.err) fail_msg("%s: status %d\n%s", same[i], r.status, r.err);
        expect_command(0, "", "diff text/options.json run/options.json | grep -c '^[<>]' | grep -qx 2");
    }
    /* what the model is, although the run was not told */
    expect_command(0, "", RESUME "--positions learned --kv-heads 2 --ff 64 --model tiny", "text");
    expect_command(0, "",
                   "$T --config run/options.json --out again && cd again/step-* && "
                   "cmp model.safetensors ../../text/step-00000004/model.safetensors");
}

/* --- data --- */

static void other_data_under_the_same_names_is_noticed(void **state) {
    const char *refusal = "the same names and sizes, but other tokens";
    put_tokens("moved/train_0.bin", 3000, 1);
    put_tokens("moved/train_1.bin", 2000, 7);
    expect_command(0, "", RESUME "--data 'moved/train_*.bin'", "shards_run");
    put_tokens("moved/train_1.bin", 2000, 8);
    expect_command(1, "--data moved/train_*.bin instead of", RESUME "--data 'moved/train_*.bin'",
                   "shards_run");
    expect_command(0, "cannot be compared", RESUME "--val other.bin", "shards_run");
    expect_command(0, "", RESUME "--steps 5 2>&1 | grep -c 'cannot be compared' | grep -qx 0", "shards_run");
    /* in place: one token of a shard, a word of a text */
    expect_command(0, "", "cp -r shards kept && cp text.txt kept.txt");
    put_tokens("shards/val.bin", 500, 5);
    expect_command(0, "cannot be compared", RESUME, "shards_run");
    expect_command(0, "", "printf '\\1' | dd of=shards/train_0.bin bs=1 seek=5000 conv=notrunc 2>/dev/null");
    expect_command(1, refusal, RESUME, "shards_run");
    expect_command(0, "", "sed -i '9s/the/cat/' text.txt");
    expect_command(1, "not what the run was started on (the files have changed)", RESUME, "text");
    expect_command(0, "", "rm -r shards text.txt && mv kept shards && mv kept.txt text.txt");
}

#define MIXTURE "--data 'shards/train_0.bin:0.7,shards/train_1.bin:0.3' "

static void the_shares_of_a_mixture_are_fixed(void **state) {
    const char *run = "$T " MIXTURE MODEL "--steps 50 --val shards/val.bin --seed 5 --save-every 20 --out ";
    struct ran r = run_command("%s mixed", run);
    assert_int_equal(r.status, 0);
    assert_mentions(
        r.out, "mixture   70 %: shards/train_0.bin, the run takes 70 samples of it (70 %), 0.753 epochs");
    assert_mentions(r.out,
                    "mixture   30 %: shards/train_1.bin, it took 30 samples of it (30 %), 0.484 epochs");
    expect_command(
        0, "",
        "%s parts --max-time 0.001s >/dev/null; for i in 1 2; do $T --resume --out parts --max-time 0.001s "
        ">/dev/null; done; $T --resume --out parts >/dev/null && cmp mixed/log.jsonl parts/log.jsonl && "
        "cmp mixed/step-00000050/model.safetensors parts/step-00000050/model.safetensors",
        run);
    expect_command(0, "", RESUME "--data 'shards/train_0.bin:7,shards/train_1.bin:3'", "mixed");
    expect_command(1, "is not what the run was started on (--data shards/train_0.bin:0.6",
                   RESUME "--data 'shards/train_0.bin:0.6,shards/train_1.bin:0.4'", "mixed");
    expect_command(1, "shards/none.bin: no such file",
                   RESUME "--data 'shards/train_0.bin:1,shards/none.bin:1'", "mixed");
    expect_command(1, "shards/train_1.bin: has no weight",
                   "$T --data 'shards/train_0.bin:1,shards/train_1.bin' --out no");
    expect_command(
        1, "lies in --out mixed",
        "cp shards/*.bin mixed && $T --overwrite --out mixed --data 'shards/train_0.bin:1,mixed/train_1.bin:1'");
    expect_command(0, "", "test -e mixed/log.jsonl && rm -r mixed parts run; ! test -e no");
}

static void another_kind_of_data(void **state) {
    expect_command(1, "trains on --text text.txt", RESUME "--data 'shards/*.bin'", "text");
    expect_command(1, "trains on --data shards/train_*.bin", RESUME "--text text.txt", "shards_run");
    expect_command(1, "--validation-fraction 0.1 instead of 0.02", RESUME "--validation-fraction 0.1",
                   "text");
    expect_command(1, "--resume and --overwrite", RESUME "--overwrite", "text");
}

/* What the run was started with counts, not what a file of that name holds now. */
static void the_tokenizer_is_the_checkpoints(void **state) {
    expect_command(0, "",
                   "$P --tokenizer train:300 --out mine text.txt && "
                   "$T --text text.txt --layers 1 --channels 16 --heads 2 --context 32 --threads 1 "
                   "--device cpu --batch-size 2 --steps 4 --out tok --tokenizer mine/tokenizer.json");
    expect_command(0, "", "$T --resume --out tok --steps 5");
    expect_command(0, "", "$P --tokenizer bytes --out bytes text.txt && cp bytes/tokenizer.json mine/");
    expect_command(0, "", "$T --resume --out tok --steps 6");
    expect_command(1, "--tokenizer mine/tokenizer.json: is not the tokenizer of tok/step-00000006",
                   "$T --resume --out tok --steps 7 --tokenizer mine/tokenizer.json");
    expect_command(0, "", "rm mine/tokenizer.json && $T --resume --out tok --steps 8");
    expect_command(0, "", "$T --resume --out tok --steps 9 --tokenizer tok/step-00000008");
}

/* --- the plan --- */

static void epochs_replace_steps_and_steps_epochs(void **state) {
    /* 93 + 62 samples of 32 tokens, 2 in a step */
    expect_command(0, "run, 155 steps", RESUME "--epochs 2", "shards_run");
    expect_command(0, "\"epoch\":2,", "tail -3 run/log.jsonl");
    expect_command(0, "157 steps", "$T --resume --out run --steps 157");
    char *epochs = recorded("run", "epochs");
    assert_true(atof(epochs) == 0);
    free(epochs);
    expect_command(1, "--epochs 1: the run has made 2.03 epochs", "$T --resume --out run --epochs 1");
    expect_command(1, "--steps 156: the run has already made 157 steps", "$T --resume --out run --steps 156");
    expect_command(0, "", "$T --resume --out run --steps 157");
    /* another size of step: the epochs that are left are counted in samples */
    expect_command(0, "run, 80 steps", RESUME "--epochs 2 --tokens-per-step 128", "shards_run");
    expect_command(0, "--epochs 3 has no effect, because --steps 4",
                   "$T --data shards/train_0.bin " MODEL "--steps 4 --epochs 3 --out both");
}

static void a_jump_of_the_learning_rate_is_said(void **state) {
    struct ran r = run_command(RESUME "--steps 40", "text");
    assert_int_equal(r.status, 0);
    assert_mentions(r.err, "the learning rate jumps: in step 5 it is 0.00");
    assert_mentions(r.err, "it was 0.0004 (--steps 40 instead of 4)");
    expect_command(0, "learning rate jumps", RESUME "--learning-rate 1e-3 --steps 5", "text");
    expect_command(0, "", "$T --text text.txt " MODEL "--schedule constant --warmup 0 --steps 4 --out flat");
    r = run_command(RESUME "--steps 40", "flat");
    if (r.status != 0 || *r.err) fail_msg("%s", r.err);
}

/* Embeddings decayed with Muon, too, before there was --embedding-decay. */
static void a_run_from_before_an_option_keeps_its_meaning(void **state) {
    expect_command(0, "begins again",
                   "rm -rf run; cp -r muon_run run; rm -r run/step-*; "
                   "sed -i '/\"embedding-decay\"/d' run/options.json; $T --resume --out run");
    char *before = recorded("muon_run", "embedding-decay"), *now = recorded("run", "embedding-decay");
    assert_string_equal(before, "off");
    assert_string_equal(now, "on");
    free(before);
    free(now);
}

/* --- the place in the data --- */

/* Whole documents, resumed in the middle of an epoch with steps of another size: each row once. */
static void the_position_survives_another_size_of_step(void **state) {
    enum { TOKENS = 1000, T = 7, OLD = 6, NEW = 4 };
    uint32_t *tokens = (uint32_t *)xmalloc(TOKENS * sizeof *tokens);
    for (uint32_t i = 0; i < TOKENS; i++) tokens[i] = i % 11 ? i + 1 : 0;
    struct dataset *d = dataset_from_tokens("numbers", tokens, TOKENS, TOKENS + 1);
    struct loader_options o = {.B = 1, .T = T, .order = SAMPLES_DOCUMENTS, .end_of_text = 0, .world = 1};
    struct error err;
    for (int64_t stop = 0; stop < 60 * OLD; stop += 5 * OLD) {
        const int32_t *inp, *target;
        int64_t valid, seen = 0;
        o.step_samples = OLD;
        struct dataloader *l = dataloader_open(d, &o, &err);
        struct train_state then = {.epoch_samples = dataloader_samples(l)};
        for (then.sample = 0; then.sample < stop; then.sample++) {
            dataloader_next(l, &inp, &target, &valid);
            if (then.sample >= stop / then.epoch_samples * then.epoch_samples) seen += valid;
        }
        dataloader_close(l);
        o.step_samples = NEW;
        l = dataloader_open(d, &o, &err);
        int64_t epoch = dataloader_samples(l), at = resume_sample(&then, epoch);
        assert_true(epoch != then.epoch_samples);
        assert_int_equal(at / epoch, stop / then.epoch_samples);
        dataloader_seek(l, at);
        for (; at % epoch || seen == 0; at++) {
            dataloader_next(l, &inp, &target, &valid);
            seen += valid;
        }
        assert_int_equal(seen, TOKENS - 1);
        dataloader_close(l);
    }
    struct train_state older = {.sample = 123};
    assert_int_equal(resume_sample(&older, 10), 123);
    dataset_free(d);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_option_is_applied_refused_or_warned_about),
        cmocka_unit_test(the_rules_are_in_the_help),
        cmocka_unit_test(the_same_options_again),
        cmocka_unit_test(other_data_under_the_same_names_is_noticed),
        cmocka_unit_test(the_shares_of_a_mixture_are_fixed),
        cmocka_unit_test(another_kind_of_data),
        cmocka_unit_test(the_tokenizer_is_the_checkpoints),
        cmocka_unit_test(epochs_replace_steps_and_steps_epochs),
        cmocka_unit_test(a_jump_of_the_learning_rate_is_said),
        cmocka_unit_test(a_run_from_before_an_option_keeps_its_meaning),
        cmocka_unit_test(the_position_survives_another_size_of_step),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}
