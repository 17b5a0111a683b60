/* `train_gpt sample`: what a prompt becomes, and what --from may name. */
#include "test/program.h"

#include <stdlib.h>
#include <string.h>

#define MODEL  "--layers 1 --channels 16 --heads 2 --context 32 --threads 1 --device cpu --batch-size 2 "
#define SAMPLE "$T sample --from run --tokens 8 --threads 1 --device cpu --no-stats "

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
        cmocka_unit_test(the_speed_follows_the_text),
        cmocka_unit_test(what_from_may_name),
    };
    return test_main(argc, argv, tests, make_run, remove_scratch);
}
