/* What is printed and logged is true, and the commands among it can be pasted into a shell. */
#include "test/program.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL "--layers 1 --channels 16 --heads 2 --context 8 --threads 1 --device cpu "

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A validation and a checkpoint in between are no part of the steps, and take nothing from
 * them. The CPU computes a step before the host asks for its numbers. */
static void every_step_has_its_own_time(void **state) {
    enum { STEPS = 24 };
    /* steps that take far longer than what is between them */
    expect_command(
        0, "",
        "$T --stories 300 --layers 2 --channels 64 --heads 2 --context 64 --threads 1 --device cpu "
        "--batch-size 16 --steps 24 --val-every 2 --val-batches 1 --save-every 5 --out run");
    char *text = get_text("run/timing.jsonl"), *line = strtok(text, "\n");
    double seconds[STEPS];
    int n = 0;
    for (; line; line = strtok(NULL, "\n")) {
        json_error_t why;
        json_t *row = json_loads(line, 0, &why);
        if (!row) fail_msg("%s: %s", line, why.text);
        if (json_object_get(row, "seconds")) {
            assert_true(n < STEPS);
            seconds[n++] = json_number_value(json_object_get(row, "seconds"));
            double share = json_number_value(json_object_get(row, "flops_share"));
            if (!(share > 0 && share <= 1)) fail_msg("%s: a share of what the machine can do", line);
        }
        json_decref(row);
    }
    free(text);
    assert_int_equal(n, STEPS);
    qsort(seconds, STEPS, sizeof *seconds, by_value);
    if (seconds[0] < seconds[STEPS / 2] / 10)
        fail_msg("the shortest step takes %g s, the median %g s", seconds[0], seconds[STEPS / 2]);
}

/* The rest of the line of `text` that begins with `begin`. */
static char *command_after(const char *text, const char *begin) {
    const char *at = strstr(text, begin);
    if (!at) fail_msg("no line \"%s\" in: %s", begin, text);
    at += strlen(begin);
    return xasprintf("%.*s", (int)strcspn(at, "\n"), at);
}

/* Relative programs, and directories with blanks, quotes and other letters. */
static void commands_can_be_pasted(void **state) {
    struct ran r =
        run_command("mkdir -p 'a b' && ln -s \"$T\" 'a b/train it' && ln -s \"$P\" 'a b/prepare' && "
                    "ln -s \"$T\" 'a b/train_gpt' && \"./a b/train it\" --stories 100 " MODEL
                    "--steps 2 --out \"it's \xC3\xBC \\$HOME\"");
    assert_int_equal(r.status, 0);
    char *command = command_after(r.out, "sample    ");
    expect_command(0, "tokens", "%s --tokens 3", command);
    free(command);
    expect_command(0, "", "printf 'one two three\\nfour\\n' >t.txt");
    r = run_command("'a b/prepare' --tokenizer bytes --validation-fraction 0 --out '[s h]' t.txt");
    assert_int_equal(r.status, 0);
    command = command_after(r.out, "train on them with\n  ");
    expect_command(0, "", "%s " MODEL "--steps 1 --batch-size 1 --out fromshards", command);
    free(command);
    r = run_command("\"./a b/train it\" --stories 100 " MODEL
                    "--steps 1000000 --save-every 1000000 --out 'x y' >said & "
                    "until [ -s 'x y/log.jsonl' ]; do sleep 0.02; done; kill -TERM $!; wait $!; cat said");
    command = command_after(r.out, "continue  ");
    expect_command(0, "weights   x y/", "%s --steps $(($(grep -c epoch 'x y/log.jsonl') + 2))", command);
    free(command);
}

/* Nothing is faster than the hardware, and nothing gains less than nothing. */
static void a_profile_has_no_impossible_rates(void **state) {
    struct ran r =
        run_command("$T profile --layers 2 --channels 32 --heads 2 --context 32 --vocab-size 300 --threads 1 "
                    "--device cpu --batch-size 1 --repeats 3");
    assert_int_equal(r.status, 0);
    char *line = strtok(r.out, "\n");
    int rows = 0;
    for (; line; line = strtok(NULL, "\n")) {
        double share, gain;
        char *last = strrchr(line, ' ');
        if (!last || strstr(line, "operation  ") || !strstr(line, ".") || line[0] == '\n') continue;
        char *before = last;
        while (before > line && before[-1] == ' ') before--;
        char *number = before;
        while (number > line && number[-1] != ' ') number--;
        char *end;
        gain = strtod(last, &end);
        if (*end) continue;
        share = strtod(number, NULL);
        rows++;
        if (!(share <= 100.05) || !(gain >= 0)) fail_msg("%s", line);
    }
    assert_true(rows > 10);
}

/* With bytes as tokens a loss in bits is one per byte, but for the token that ends the text. */
static void losses_on_text_come_in_bits_per_byte(void **state) {
    char text[4000] = "";
    for (int i = 0; i < 200; i++) strcat(text, i % 7 ? "the cat ran " : "a dog sat ");
    put_text("text.txt", text);
    struct ran r =
        run_command("$T --text text.txt --tokenizer bytes --batch-size 2 --steps 20 --val-every 10 "
                    "--validation-fraction 0.4 --out run " MODEL);
    const char *step = strstr(r.out, "step 20  validation loss "), *end = strstr(r.out, "loss      ");
    double loss = 0, bits = 0, last_loss = 0, last_bits = 0;
    assert_true(step && end);
    assert_int_equal(sscanf(step, "step 20  validation loss %lf, %lf bits per byte", &loss, &bits), 2);
    assert_int_equal(sscanf(end, "loss      %lf nats per token on the validation set, %lf bits per byte",
                            &last_loss, &last_bits),
                     2);
    assert_true(loss == last_loss && bits == last_bits);
    assert_true(fabs(bits / (loss / log(2.0)) - 1.0) < 0.01);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(every_step_has_its_own_time),
        SCRATCH_TEST(commands_can_be_pasted),
        SCRATCH_TEST(losses_on_text_come_in_bits_per_byte),
        SCRATCH_TEST(a_profile_has_no_impossible_rates),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
