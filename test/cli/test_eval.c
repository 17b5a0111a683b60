/* `train_gpt eval` with examples before the questions: the scores are those of a file in which the whole
 * text is written out; and the summary of --json. */
#include "test/program.h"

#include "llmc/base/json_file.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

static int set_up(void **state) {
    if (make_scratch(state) != 0) return -1;
    char text[4000] = "";
    for (int i = 0; i < 100; i++)
        strcat(text, i % 3 ? "Question: the cat ran. Answer: so " : "a dog was too big ");
    put_text("text.txt", text);
    expect_command(
        0, "weights",
        "$T --text text.txt --tokenizer bytes --layers 1 --channels 16 --heads 2 --context 512 --seq-len 64 "
        "--batch-size 2 --threads 1 --device cpu --steps 20 --learning-rate 1e-2 --out run");
    return 0;
}

#define ARC(question, a, b, key)                                                                             \
    "{\"question\": \"" question "\", \"choices\": {\"text\": [\"" a "\", \"" b                              \
    "\"], \"label\": [\"A\", \"B\"]}, \"answerKey\": \"" key "\"}\n"
/* The scores alone, one question a line. */
#define SCORES(tasks, options, out)                                                                          \
    "$T eval --from run --tasks " tasks " " options " --overwrite --details d >/dev/null && "                \
    "sed 's/.*\"scores\":\\[\\([^]]*\\)].*/\\1/' d >" out " && test -s " out

static void examples_stand_before_each_question(void **state) {
    put_text("arc.jsonl", ARC("who?", "cat", "dog", "B") ARC("why?", "so", "big", "A"));
    put_text("train.jsonl",
             ARC("why?", "so", "big", "A") ARC("one?", "x", "yes", "B") ARC("two?", "no", "y", "A"));
    /* the first two that are not the question itself */
    put_text("whole.jsonl",
             "{\"context\": \"Question: why?\\nAnswer: so\\n\\nQuestion: one?\\nAnswer: yes\\n\\nQuestion: "
             "who?\\nAnswer:\", \"choices\": [\" cat\", \" dog\"], \"answer\": 1}\n"
             "{\"context\": \"Question: one?\\nAnswer: yes\\n\\nQuestion: two?\\nAnswer: no\\n\\nQuestion: "
             "why?\\nAnswer:\", \"choices\": [\" so\", \" big\"], \"answer\": 0}\n");
    expect_command(0, "", SCORES("arc.jsonl", "--shots 2 --examples train.jsonl", "a"));
    expect_command(0, "", SCORES("whole.jsonl", "", "b"));
    expect_command(0, "", "cmp a b");
    expect_command(0, "", SCORES("arc.jsonl", "", "b") " && ! cmp -s a b");
    expect_command(1, "arc.jsonl:2: --shots 3: --examples has only 2 questions like this one (ARC)",
                   "$T eval --from run --tasks arc.jsonl --shots 3 --examples train.jsonl");
    expect_command(2, "--shots needs --examples", "$T eval --from run --tasks arc.jsonl --shots 3");
    expect_command(1, "--examples: no file is named no.jsonl",
                   "$T eval --from run --tasks arc.jsonl --shots 3 --examples no.jsonl");
    expect_command(0, "--examples has no effect",
                   "$T eval --from run --tasks arc.jsonl --examples train.jsonl");
}

static void the_order_of_examples_can_be_random(void **state) {
    put_text("arc.jsonl", ARC("who?", "cat", "dog", "B") ARC("why?", "so", "big", "A"));
    put_text("train.jsonl",
             ARC("one?", "x", "yes", "B") ARC("two?", "no", "y", "A") ARC("three?", "z", "yes", "A"));
#define DRAWN "--shots 3 --examples train.jsonl --shot-order random "
    expect_command(0, "", SCORES("arc.jsonl", DRAWN, "a"));
    expect_command(0, "", SCORES("arc.jsonl", DRAWN "--seed 1 --json s.json", "b"));
    expect_command(0, "", "cmp a b && grep -q '\"seed\": 1' s.json");
    expect_command(0, "", SCORES("arc.jsonl", DRAWN "--seed 2", "b"));
    expect_command(0, "", "! cmp -s a b");
    expect_command(0, "--seed has no effect: it goes with --shot-order random",
                   "$T eval --from run --tasks arc.jsonl --shots 1 --examples train.jsonl --seed 2 --json "
                   "f.json && ! grep -q seed f.json");
    expect_command(0, "--shot-order has no effect: it goes with --tasks and --shots",
                   "$T eval --from run --tasks arc.jsonl --shot-order random");
    expect_command(
        1, "has only 3 questions like this one",
        "$T eval --from run --tasks arc.jsonl --shots 4 --examples train.jsonl --shot-order random");
}

/* What the questions are about is said once, and the examples are of the same subject. */
static void mmlu_has_one_heading(void **state) {
    put_text("cats_test.csv", "Q?,a,b,c,d,C\n");
    put_text("dogs_dev.csv", "D?,a,b,c,d,A\n");
    put_text("cats_dev.csv", "E?,e,f,g,h,B\nF?,i,j,k,l,D\n");
    put_text("mmlu.jsonl",
             "{\"context\": \"The following are multiple choice questions (with answers) about "
             "cats.\\n\\nE?\\nA. e\\nB. f\\nC. g\\nD. h\\nAnswer: B\\n\\nQ?\\nA. a\\nB. b\\nC. c\\nD. "
             "d\\nAnswer:\", \"choices\": [\" A\", \" "
             "B\", \" C\", \" D\"], \"answer\": 2}\n");
    expect_command(0, "", SCORES("cats_test.csv", "--shots 1 --examples '*_dev.csv'", "a"));
    expect_command(0, "", SCORES("mmlu.jsonl", "", "b"));
    expect_command(0, "", "cmp a b");
    expect_command(
        1,
        "only 2 questions like this one (MMLU: The following are multiple choice questions (with answers) "
        "about cats.)",
        "$T eval --from run --tasks cats_test.csv --shots 3 --examples '*_dev.csv'");
}

/* The score is that of the rest of the sentence after each option. */
static void winogrande_scores_the_rest(void **state) {
    put_text("w.jsonl",
             "{\"sentence\": \"the _ was too big\", \"option1\": \"cat\", \"option2\": \"dog\", \"answer\": "
             "\"2\"}\n");
    put_text("each.jsonl",
             "{\"context\": \"the cat\", \"choices\": [\" was too big\", \"x\"], \"answer\": 0}\n"
             "{\"context\": \"the dog\", \"choices\": [\" was too big\", \"x\"], \"answer\": 0}\n");
    expect_command(0, "", SCORES("w.jsonl", "", "a"));
    expect_command(0, "", SCORES("each.jsonl", "", "b"));
    expect_command(0, "", "cut -d , -f 1 b | paste -s -d , | cmp - a");
}

static void the_summary_says_what_was_printed(void **state) {
    struct error err;
    put_text("arc.jsonl", ARC("who?", "cat", "dog", "B") ARC("why?", "so", "big", "A"));
    struct ran r =
        run_command("$T eval --from run --text text.txt --tasks arc.jsonl,arc.jsonl --json all.json");
    assert_int_equal(r.status, 0);
    json_t *all = json_file_load(in_scratch("all.json"), &err),
           *task = json_array_get(json_object_get(all, "tasks"), 1);
    assert_non_null(all);
    assert_int_equal(json_array_size(json_object_get(all, "tasks")), 2);
    assert_string_equal(json_string_value(json_object_get(task, "task")), "arc.jsonl");
    assert_int_equal(json_integer_value(json_object_get(task, "questions")), 2);
    assert_true(json_real_value(json_object_get(task, "chance")) == 0.5);
    char printed[64];
    json_t *loss = json_object_get(all, "loss");
    snprintf(printed, sizeof printed, "%.4f bits per byte",
             json_real_value(json_object_get(loss, "bits_per_byte")));
    assert_mentions(r.out, printed);
    snprintf(printed, sizeof printed, "%.2f %% +-", 100 * json_real_value(json_object_get(task, "acc")));
    assert_mentions(r.out, printed);
    json_decref(all);
    expect_command(1, "--json all.json", "$T eval --from run --text text.txt --json all.json");
    expect_command(
        0, "",
        "$T eval --from run --text - --json all.json --overwrite <text.txt && grep -q bits_per_byte all.json");
}

/* The mean of the scores in --details gives the perplexity, and each score goes with what is greedy. */
static void lambada_says_accuracy_and_perplexity(void **state) {
    struct error err;
    put_text("lambada.jsonl", "{\"text\": \"a dog was too big\"}\n{\"text\": \"a dog was too bad\"}\n");
    struct ran r = run_command("$T eval --from run --tasks lambada.jsonl --json l.json --details l.jsonl");
    assert_int_equal(r.status, 0);
    json_t *all = json_file_load(in_scratch("l.json"), &err),
           *task = json_array_get(json_object_get(all, "tasks"), 0);
    assert_non_null(all);
    double perplexity = json_real_value(json_object_get(task, "perplexity")), sum = 0.0;
    assert_null(json_object_get(task, "acc_norm"));
    char printed[64], *lines = get_text("l.jsonl");
    snprintf(printed, sizeof printed, "perplexity %.2f\n", perplexity);
    assert_mentions(r.out, printed);
    snprintf(printed, sizeof printed, "%.2f %% +-", 100 * json_real_value(json_object_get(task, "acc")));
    assert_mentions(r.out, printed);
    assert_null(strstr(r.out, "guessing"));
    for (char *p = lines; (p = strstr(p, "\"scores\":[")) != NULL;) sum += strtod(p += 10, &p);
    assert_float_equal(perplexity, exp(-sum / 2), 1e-6 * perplexity);
    assert_true((strstr(lines, "\"greedy\":true") != NULL) ==
                (json_real_value(json_object_get(task, "acc")) > 0));
    free(lines);
    json_decref(all);
    put_text("arc.jsonl", ARC("who?", "cat", "dog", "B"));
    expect_command(0, "guessing", "$T eval --from run --tasks lambada.jsonl,arc.jsonl | tee both");
    expect_command(0, "", "! grep -q 'all questions' both"); /* one of each kind: nothing to add up */
}

/* The loss on a text or shards (--text FILE, --data FILES), and the number of targets. */
static double loss_of(const char *options, int64_t *targets) {
    struct error err;
    expect_command(0, "", "$T eval --from run %s --overwrite --json loss.json", options);
    json_t *all = json_file_load(in_scratch("loss.json"), &err), *loss = json_object_get(all, "loss");
    assert_non_null(all);
    double value = json_real_value(json_object_get(loss, "loss"));
    *targets = json_integer_value(json_object_get(loss, "tokens"));
    json_decref(all);
    return value;
}

/* Each document has the loss that it has alone. Without --samples packed the second one sees the first. */
static void packed_documents_stay_apart(void **state) {
    int64_t a, b, n;
    put_text("a.txt", "a dog was too big so the cat ran");
    put_text("b.txt", "the cat ran");
    put_text("both.txt", "a dog was too big so the cat ran\n<|endoftext|>\nthe cat ran");
    double loss_a = loss_of("--text a.txt", &a), loss_b = loss_of("--text b.txt", &b);
    double alone = (loss_a * (double)a + loss_b * (double)b) / (double)(a + b);
    assert_float_equal(loss_of("--text both.txt --samples packed", &n), alone, 1e-6 * alone);
    assert_int_equal(n, a + b);
    assert_true(fabs(loss_of("--text both.txt", &n) - alone) > 1e-3 * alone);
    expect_command(0, "", "$P --tokenizer run/step-* --validation-fraction 0 --out shards both.txt");
    assert_float_equal(loss_of("--data 'shards/*.bin' --samples packed", &n), alone, 1e-6 * alone);
    expect_command(0, "--samples has no effect: it goes with --data and --text",
                   "$T eval --from run --tasks arc.jsonl --samples packed");
    expect_command(2, "--show and --html need a text in its order",
                   "$T eval --from run --text both.txt --samples packed --show");
    expect_command(0, "weights",
                   "$T --text text.txt --tokenizer bytes --layers 1 --channels 16 --heads 2 --seq-len 64 "
                   "--mask full --threads 1 --device cpu --steps 1 --out full");
    expect_command(1, "under --mask causal and --mask window; full",
                   "$T eval --from full --text both.txt --samples packed");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(examples_stand_before_each_question),
        cmocka_unit_test(the_order_of_examples_can_be_random),
        cmocka_unit_test(mmlu_has_one_heading),
        cmocka_unit_test(winogrande_scores_the_rest),
        cmocka_unit_test(the_summary_says_what_was_printed),
        cmocka_unit_test(lambada_says_accuracy_and_perplexity),
        cmocka_unit_test(packed_documents_stay_apart),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}
