/* Options as text: the columns of the help at every width, and the list of the values in effect. */
#include "test/scratch.h"

#include "test/base/tool.h"

#include <stdlib.h>
#include <string.h>

/* --- printing --- */

static char *two_paragraphs(void) {
    return xstrdup("One paragraph.\nAnother, which is long enough to be wrapped, because a page has a width "
                   "of no more than 100 columns here.\n");
}

static void test_help(void **state) {
    struct options o;
    struct config c;
    (void)state;
    expect_ok(&o, &c, ARGS("--batch-size", "8"));
    char *help = options_help(&o, 100);
    static const char expected[] =
        "usage: tool [options]\n"
        "Trains a model.\n"
        "\n"
        "Training\n"
        "  --batch-size B       sequences in one micro-batch                                              "
        "[4]\n"
        "  --seed N             seed of every random number                                               "
        "[1]\n"
        "  --tokens-per-step N  tokens in one optimizer step                                            "
        "[64k]\n"
        "  --learning-rate X    peak learning rate                                                     "
        "[3e-4]\n"
        "  --beta2 X            decay of the second moment                                             "
        "[0.95]\n"
        "  --weight-decay X     decoupled weight decay, applied to matrices only and never to           "
        "[0.1]\n"
        "                       biases or to the gains of a layernorm\n"
        "  --schedule cosine|linear|constant\n"
        "                       shape of the learning rate                                           "
        "[cosine]\n"
        "\n"
        "Run\n"
        "  --[no-]graph         capture a step in a graph                                              "
        "[true]\n"
        "  --[no-]resume        go on with a run                                                      "
        "[false]\n"
        "  --out DIR            where the run is stored [runs/with/a/rather/long/default]\n"
        "  --prompt TEXT        what samples begin with\n"
        "\n"
        "General\n"
        "  --config FILE        JSON object with these names, e.g. {\"some-option\": 8}; the command\n"
        "                       line wins\n"
        "  --help, -h           this text\n";
    assert_string_equal(help, expected);
    for (const char *line = help; *line; line += strcspn(line, "\n") + 1) {
        size_t n = strcspn(line, "\n");
        assert_true(n <= 100);
        if (n && line[n - 1] == ']' && line[2] == '-' && !memmem(line, n, "long", 4))
            assert_int_equal(n, 100);
    }
    free(help);
    struct option_command with_notes = *o.command;
    with_notes.notes = two_paragraphs;
    o.command = &with_notes;
    help = options_help(&o, 100);
    assert_non_null(strstr(help, "this text\n\nOne paragraph.\nAnother, which is long"));
    assert_non_null(strstr(help, "no more than 100 columns\n    here.\n"));
    free(help);
    options_free(&o);
}

static int longest_line(const char *text) {
    int longest = 0;
    for (; *text; text += strcspn(text, "\n") + 1) {
        int n = (int)strcspn(text, "\n");
        if (n > longest) longest = n;
    }
    return longest;
}

/* Every width holds, and no word is lost: the help without its spaces is the same but for the brackets. */
static void test_help_width(void **state) {
    struct options o;
    struct config c;
    (void)state;
    expect_ok(&o, &c, (const char *const[]){NULL});
    for (int width = 40; width <= 100; width++) {
        char *help = options_help(&o, width);
        if (longest_line(help) > width) fail_msg("width %d: a line of %d", width, longest_line(help));
        assert_non_null(strstr(help, "--tokens-per-step N"));
        assert_non_null(strstr(help, "layernorm"));
        assert_non_null(strstr(help, "[3e-4]"));
        free(help);
    }
    char *narrow = options_help(&o, 48);
    assert_non_null(strstr(narrow, "\n  --batch-size B\n      sequences in one micro-batch [4]\n"));
    free(narrow);
    options_free(&o);
}

/* What other trainers call an option, with '_' or '-', is answered with our name, if there is one. */
static void test_synonyms(void **state) {
    (void)state;
    expect_error("--lr: unknown option; did you mean --learning-rate?", ARGS("--lr", "1"));
    expect_error("--learning_rate: unknown option; did you mean --learning-rate?", ARGS("--learning_rate=1"));
    expect_error("--out_dir: unknown option; did you mean --out?", ARGS("--out_dir", "x"));
    expect_error("--per_device_train_batch_size: unknown option; did you mean --batch-size?",
                 ARGS("--per_device_train_batch_size", "8"));
    expect_error("--gradient-accumulation-steps: unknown option; did you mean --tokens-per-step?",
                 ARGS("--gradient-accumulation-steps=8"));
    /* This table has no --layers to suggest. */
    expect_error("--n_layer: unknown option; --help lists all", ARGS("--n_layer", "2"));
}

static void test_text(void **state) {
    struct options o;
    struct config c;
    (void)state;
    /* 0.0003 is the default in another spelling. */
    expect_ok(&o, &c,
              ARGS("--batch-size", "8", "--learning-rate", "0.0003", "--schedule", "linear", "--config",
                   put_text("c.json", "{\"beta2\": 0.99}")));
    c.tokens = 3 << 20;
    char *text = options_text(&o, true);
    assert_string_equal(
        text, "Training\n"
              "* batch-size       8                     (default 4)\n"
              "  seed             1\n"
              "* tokens-per-step  3M                    (default 64k, chosen by the program)\n"
              "  learning-rate    0.0003\n"
              "* beta2            0.99                  (default 0.95, from the configuration file)\n"
              "  weight-decay     0.1\n"
              "* schedule         linear                (default cosine)\n"
              "Run\n"
              "  graph            true\n"
              "  resume           false\n"
              "  out              runs/with/a/rather/long/default\n"
              "  prompt           (none)\n");
    free(text);
    text = options_text(&o, false); /* no heading of a group without a line */
    assert_string_equal(
        text, "Training\n"
              "* batch-size       8                     (default 4)\n"
              "* tokens-per-step  3M                    (default 64k, chosen by the program)\n"
              "* beta2            0.99                  (default 0.95, from the configuration file)\n"
              "* schedule         linear                (default cosine)\n");
    free(text);
    options_free(&o);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_help_width),
        cmocka_unit_test(test_synonyms),
        cmocka_unit_test(test_text),
    };
    return test_main(argc, argv, tests, make_scratch, remove_scratch);
}
