/* `train_gpt sample`: what a prompt becomes, and what --from may name. */
#include "test/program.h"

#include "llmc/base/console.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MODEL  "--layers 1 --channels 16 --heads 2 --context 32 --threads 1 --device cpu --batch-size 2 "
#define SAMPLE "$T sample --from run --tokens 8 --threads 1 --device cpu --no-stats "

/* Texts longer than the context. */
#define LONG "$T sample --from run --tokens 60 --past-end --threads 1 --device cpu --no-stats "

static int make_run(void **state) {
    if (make_scratch(state) != 0) return -1;
    expect_command(0, "", "$T --stories 100 " MODEL "--steps 2 --out runs/run && ln -s runs/run run");
    return 0;
}

static char *said(const char *command) {
    struct ran r = run_command("%s", command);
    if (r.status != 0) fail_msg("%s: %s", command, r.err);
    return xstrdup(r.out);
}

/* What follows the prompt is the same, however the prompt came. */
static void prompts(void **state) {
    char *plain = said(SAMPLE "--prompt Once"), *piped = said("echo Once | " SAMPLE "--prompt -"),
         *begun = said(SAMPLE "--prompt '<|endoftext|>Once'"),
         *two = said("printf 'Once\\n\\n' | " SAMPLE "--prompt -");
    assert_string_equal(piped, plain);
    assert_string_equal(begun + strlen("<|endoftext|>"), plain);
    assert_true(strncmp(two, "Once\n", 5) == 0);
    assert_string_not_equal(two, plain);
    expect_command(0, "the model sees the last 32 of them", SAMPLE "--prompt \"$(seq 40)\" 2>&1");
    struct ran r = run_command(SAMPLE "--prompt Once");
    if (strstr(r.err, "warning")) fail_msg("%s", r.err);
    free(plain);
    free(piped);
    free(begun);
    free(two);
}

/* Each text of a batch is the one that it is alone, to the last bit of its probabilities: of greedy
 * choice and drawn, of prompts of several lengths, beyond the context, with more texts than are computed
 * at a time. */
static void several_prompts(void **state) {
    put_text("prompts", "Once\n\nTom and Anna went to the big old park\r\nA\n{Bob} said: hi\nOnce upon\n");
    put_text("prompts.jsonl",
             "{\"prompt\": \"Once\"}\n{\"prompt\": \"Tom and Anna went to the big old park\"}\n"
             "{\"prompt\": \"A\", \"id\": 3}\n{\"prompt\": \"{Bob} said: hi\"}\n"
             "{\"prompt\": \"Once upon\"}\n");
    for (int greedy = 0; greedy < 2; greedy++) {
        const char *how = greedy ? "--temperature 0" : "--seed 4";
        expect_command(0, "",
                       LONG "--json %s --prompt-file prompts >together && " LONG
                            "--json %s --prompt-file prompts.jsonl --batch-size 2 >two",
                       how, how);
        expect_command(
            0, "",
            "for p in Once 'Tom and Anna went to the big old park' A '{Bob} said: hi' 'Once upon'; "
            "do " LONG "--json %s --prompt \"$p\" || exit 1; done >alone",
            how);
        expect_command(0, "", "test $(wc -l <alone) = 5 && cmp together alone && cmp two alone");
    }
    expect_command(0, "--- prompt 2, seed 8", SAMPLE "--prompt-file prompts --count 2 --seed 7");
    expect_command(1, "--prompt-file none: No such file", SAMPLE "--prompt-file none");
    expect_command(1, "line 2: no JSON object with a string \"prompt\"",
                   "printf '{\"prompt\": \"a\"}\\nb\\n' | " SAMPLE "--prompt-file -");
    expect_command(1, "there is no prompt in it", "printf '\\n \\n' >empty && " SAMPLE "--prompt-file empty");
    expect_command(1, "there is a byte 0 in it", "printf 'a\\0b' >zero && " SAMPLE "--prompt-file zero");
    expect_command(1, "exclude", SAMPLE "--prompt-file prompts --prompt Once");
}

static json_t *json_said(const char *command) {
    char *text = said(command);
    json_t *root = json_loads(text, 0, NULL);
    if (!root) fail_msg("%s: no JSON: %s", command, text);
    free(text);
    return root;
}

/* The JSON says what the text says, and its probabilities are those by which greedy choice chooses. */
static void text_as_json(void **state) {
    char *plain = said(SAMPLE "--prompt Once --temperature 0 --past-end");
    json_t *root = json_said(SAMPLE "--prompt Once --temperature 0 --past-end --json --top-logprobs 3"),
           *list;
    assert_string_equal(json_string_value(json_object_get(root, "prompt")), "Once");
    char *joined = xasprintf("Once%s\n", json_string_value(json_object_get(root, "text")));
    assert_string_equal(joined, plain);
    assert_string_equal(json_string_value(json_object_get(root, "finish_reason")), "length");
    assert_int_equal(json_array_size(json_object_get(root, "tokens")), 8);
    assert_int_equal(json_array_size(json_object_get(root, "top_logprobs")), 8);
    size_t i;
    json_array_foreach(json_object_get(root, "top_logprobs"), i, list) {
        const json_t *first = json_array_get(list, 0);
        double logprob = json_real_value(json_array_get(json_object_get(root, "logprobs"), i)), last = 0.0;
        assert_int_equal(json_array_size(list), 3);
        assert_int_equal(json_integer_value(json_object_get(first, "token")),
                         json_integer_value(json_array_get(json_object_get(root, "tokens"), i)));
        assert_true(json_real_value(json_object_get(first, "logprob")) == logprob && logprob < 0.0);
        for (size_t k = 0; k < 3; k++) {
            double x = json_real_value(json_object_get(json_array_get(list, k), "logprob"));
            assert_true(x <= last);
            last = x;
        }
    }
    json_decref(root);
    free(joined);
    free(plain);
    /* of all tokens they add up to 1 */
    root = json_said(
        "$T sample --from run --tokens 1 --device cpu --no-stats --tokenizer bytes --json --top-logprobs 257");
    list = json_array_get(json_object_get(root, "top_logprobs"), 0);
    double sum = 0.0;
    assert_int_equal(json_array_size(list), 257);
    for (i = 0; i < 257; i++)
        sum += exp(json_real_value(json_object_get(json_array_get(list, i), "logprob")));
    if (!(fabs(sum - 1.0) < 1e-6)) fail_msg("the probabilities add up to %g", sum);
    json_decref(root);
}

/* A text that ends before the stop text that comes first, also where that lies across tokens. */
static void stop_texts(void **state) {
    char *plain = said(LONG "--prompt Once --temperature 0");
    const char *text = plain + strlen("Once");
    char stop[8] = "", *quoted;
    memcpy(stop, text + 40, 5);
    const char *first = strstr(text, stop);
    quoted = shell_quote(stop);
    char *command = xasprintf(LONG "--prompt Once --temperature 0 --stop never --stop %s", quoted);
    char *cut = said(command);
    assert_int_equal(strlen(cut), first - plain + 1);
    assert_memory_equal(cut, plain, (size_t)(first - plain));
    command = (char *)xrealloc(command, strlen(command) + 8);
    strcat(command, " --json");
    json_t *root = json_said(command);
    assert_string_equal(json_string_value(json_object_get(root, "finish_reason")), "stop");
    assert_null(strstr(json_string_value(json_object_get(root, "text")), stop));
    json_decref(root);
    /* what may begin a stop text is held back, and comes when it does not become one */
    stop[4] = '\1';
    free(quoted);
    quoted = shell_quote(stop);
    char *whole = xasprintf(LONG "--prompt Once --temperature 0 --stop %s", quoted);
    char *same = said(whole);
    assert_string_equal(same, plain);
    free(whole);
    free(same);
    free(command);
    free(cut);
    free(quoted);
    free(plain);
}

static void beyond_the_context(void **state) {
    struct ran r = run_command(LONG "--prompt Once 2>&1 >/dev/null");
    const char *note = strstr(r.out, "longer than the model's context of 32 tokens");
    if (!note || strstr(note + 1, "longer than")) fail_msg("said once: %s", r.out);
    r = run_command(SAMPLE "--prompt Once 2>&1");
    if (strstr(r.out, "longer than")) fail_msg("%s", r.out);
}

/* What is typed becomes what `sample` makes of it; a signal ends an answer and not the program. */
static void interactive(void **state) {
    expect_command(0, "",
                   "printf 'Once\\n\\nTom and\\n' | " LONG "--interactive --seed 5 >typed && { " LONG
                   "--prompt Once --seed 5 | tail -c +5; " LONG
                   "--prompt 'Tom and' --seed 6 | tail -c +8; } >alone && test -s alone && cmp typed alone");
    expect_command(0, "",
                   "echo 'Hello there' | " LONG "--interactive --chat --system 'Be kind.' >typed && " LONG
                   "--chat 'Hello there' --system 'Be kind.' >alone && test -s alone && cmp typed alone");
    expect_command(0, "",
                   "printf 'Hello\\nAnd you?\\n/new\\nHello\\n' | " SAMPLE
                   "--interactive --chat --temperature 0 >turns && test $(wc -l <turns) -ge 3");
    expect_command(
        0, "",
        "mkfifo in; >out; (exec $T sample --from run --tokens 1e6 --past-end --threads 1 --device cpu "
        "--interactive <in >out) & p=$!; exec 3>in; echo Once >&3; "
        "while test $(wc -c <out) -lt 2000; do sleep 0.05; done; kill -INT $p; sleep 0.3; "
        "a=$(wc -c <out); sleep 0.3; b=$(wc -c <out); echo Tom >&3; "
        "while test $(wc -c <out) -lt $((b + 2000)); do sleep 0.05; done; kill -INT $p; "
        "exec 3>&-; wait $p && test $a = $b");
    expect_command(1, "--interactive reads what is typed", SAMPLE "--interactive --prompt Once");
    expect_command(1, "--chat: give it what the user says", SAMPLE "--chat");
}

static void the_speed_follows_the_text(void **state) {
    expect_command(
        0, "",
        "$T sample --from run --tokens 4 --device cpu >both 2>&1 && tail -n 1 both | grep -q '^4 tokens in '");
}

static void what_from_may_name(void **state) {
    expect_command(0, "", "$T sample run --tokens 2");
    expect_command(0, "", "$T sample run/step-00000002 --tokens 2");
    expect_command(0, "", SAMPLE "--tokenizer bytes --prompt hi");
    expect_command(2, "--from: given more than once", "$T sample run --from run");
    expect_command(2, "unexpected argument", "$T sample run run");
    expect_command(1, "the newest run in it is runs/run", "$T sample --from runs");
    expect_command(1, "give its directory, run/step-00000002",
                   "$T sample --from run/step-00000002/model.safetensors");
    expect_command(1, "give its directory, .", "cd run/step-00000002 && $T sample --from config.json");
    expect_command(
        0, "",
        "$T export --from run --to m.gguf --type f32 && $T sample --from m.gguf --prompt Once >a && "
        "$T sample --from run --prompt Once >b && cmp a b && $T --model m.gguf --out tuned --steps 1");
    expect_command(1, "magic number", "head -c 2000 /dev/zero >zeros && $T sample --from zeros");
    expect_command(1, "save_pretrained", "printf 'PK\\3\\4xxxx' >m.pt && $T sample --from m.pt");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts),
        cmocka_unit_test(several_prompts),
        cmocka_unit_test(text_as_json),
        cmocka_unit_test(stop_texts),
        cmocka_unit_test(beyond_the_context),
        cmocka_unit_test(interactive),
        cmocka_unit_test(the_speed_follows_the_text),
        cmocka_unit_test(what_from_may_name),
    };
    return test_main(argc, argv, tests, make_run, remove_scratch);
}
