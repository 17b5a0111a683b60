/* Options from a configuration file and from a stored run, and what comes before what. */
#include "test/scratch.h"

#include "test/base/tool.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- configuration files --- */

/* A text that may be given several times, in a file as a list. What the command line gives replaces what the
 * file gives. */
struct texts {
    const char *stop;
};
static const char *stops_of(struct options *o, int argc, const char *const *args, struct error *err) {
    static const struct option_row rows[] = {
        OPT_TEXT(struct texts, stop, "stop", NULL, "TEXT", "where to end", OPTION_REPEATED)};
    static const struct option_group groups_of[] = {{"Text", rows, ARRAY_LENGTH(rows)}};
    static const struct option_command cmd = {.usage = "x", .groups = groups_of, .group_count = 1};
    static struct texts c;
    options_init(o, &cmd, &c);
    assert_null(c.stop);
    return options_parse(o, argc, (char **)(uintptr_t)args, err) ? c.stop : NULL;
}

static void test_repeated(void **state) {
    struct options o;
    struct error err;
    assert_string_equal(stops_of(&o, 3, ARGS("--stop", "x", "--stop=y z"), &err), "x\x1ey z");
    options_free(&o);
    const char *path = put_text("c.json", "{\"stop\": [\"a\", \"b, c\"]}");
    assert_string_equal(stops_of(&o, 2, ARGS("--config", path), &err), "a\x1e"
                                                                       "b, c");
    options_free(&o);
    assert_string_equal(stops_of(&o, 4, ARGS("--stop", "x", "--config", path), &err), "x");
    options_free(&o);
    assert_null(stops_of(&o, 2, ARGS("--config", put_text("c.json", "{\"stop\": [\"a\", 1]}")), &err));
    assert_mentions(err.message, "must be a string, found an integer");
    options_free(&o);
}

static void test_config(void **state) {
    struct options o;
    struct config c;
    (void)state;
    const char *path = put_text(
        "c.json", "{\"batch-size\": 8, \"seed\": 5, \"tokens-per-step\": \"2k\", \"graph\": false, "
                  "\"out\": \"file\", \"learning-rate\": 1, \"schedule\": \"linear\", \"prompt\": null}");
    /* The command line wins wherever it stands. */
    for (int first = 0; first < 2; first++) {
        if (first)
            expect_ok(&o, &c, ARGS("--config", path, "--batch-size", "2", "--out", "line"));
        else
            expect_ok(&o, &c, ARGS("--batch-size", "2", "--out", "line", "--config", path));
        assert_true(c.batch == 2 && c.seed == 5 && c.tokens == 2048 && !c.graph && c.lr == 1);
        assert_int_equal(c.shape, SHAPE_LINEAR);
        assert_string_equal(c.out, "line");
        assert_null(c.prompt);
        assert_int_equal(options_source(&o, "seed"), OPTION_FROM_FILE);
        assert_int_equal(options_source(&o, "batch-size"), OPTION_FROM_COMMAND);
        assert_true(options_given(&o, "seed") && !options_given(&o, "beta2"));
        options_free(&o);
    }
}

static void expect_config_error(const char *text, const char *message) {
    const char *path = put_text("c.json", text);
    char full[600];
    snprintf(full, sizeof full, "%s%s", path, message);
    expect_error(full, ARGS("--config", path));
}

static void test_config_errors(void **state) {
    char message[600];
    (void)state;
    expect_config_error("{\"batchsize\": 8}", ": batchsize: unknown option; did you mean batch-size?");
    expect_config_error("{\"batch-size\": 0}", ": batch-size 0: must be between 1 and 65536");
    expect_config_error("{\"batch-size\": \"8\"}", ": batch-size \"8\": must be an integer, found a string");
    expect_config_error("{\"batch-size\": 1.5}", ": batch-size 1.5: must be an integer, found a real number");
    expect_config_error(
        "{\"tokens-per-step\": \"2x\"}",
        ": tokens-per-step \"2x\": not a size such as 4096, 64k or 1M (\"x\" after the number)");
    expect_config_error("{\"learning-rate\": \"1\"}",
                        ": learning-rate \"1\": must be a number, found a string");
    expect_config_error("{\"graph\": 1}", ": graph 1: must be true or false, found an integer");
    expect_config_error("{\"out\": [1]}", ": out [1]: must be a string, found an array");
    expect_config_error("{\"schedule\": null}", ": schedule null: must be a string, found null");
    expect_config_error("{\"seed\": 1, \"seed\": 2}",
                        ":1:18: not JSON: duplicate object key near '\"seed\"'");
    expect_config_error("[1]", ": expected a JSON object such as {\"batch-size\": 8}, found an array");
    expect_config_error("{", ":1:1: not JSON: string or '}' expected near end of file");
    /* Checked even where the command line wins. */
    snprintf(message, sizeof message, "%s/c.json: seed true: must be an integer, found a truth value",
             scratch_directory());
    expect_error(message, ARGS("--seed", "3", "--config", put_text("c.json", "{\"seed\": true}")));
    snprintf(message, sizeof message, "%s/none.json: No such file or directory", scratch_directory());
    expect_error(message, ARGS("--config", in_scratch("none.json")));
    snprintf(message, sizeof message, "%s: is a directory; expected a JSON file with options",
             scratch_directory());
    expect_error(message, ARGS("--config", scratch_directory()));
}

/* --- stored runs --- */

static void test_stored(void **state) {
    struct options o;
    struct config c;
    struct error err;
    (void)state;
    expect_ok(&o, &c,
              ARGS("--batch-size", "8", "--learning-rate", "0.1", "--prompt", "hi", "--schedule", "linear",
                   "--resume"));
    c.tokens = 12345; /* derived by the program: stored, though nobody gave it */
    json_t *stored = options_export(&o);
    options_free(&o);
    char *text = json_dumps(stored, JSON_COMPACT);
    assert_string_equal(
        text, "{\"values\":{\"batch-size\":8,\"seed\":1,\"tokens-per-step\":12345,\"learning-rate\":"
              "0.10000000000000001,\"beta2\":0.94999999999999996,\"weight-decay\":0.10000000000000001,"
              "\"schedule\":\"linear\",\"graph\":true,\"out\":\"runs/with/a/rather/long/default\","
              "\"prompt\":\"hi\"},\"explicit\":[\"batch-size\",\"learning-rate\",\"schedule\",\"prompt\"]}");
    free(text);
    expect_ok(&o, &c, ARGS("--batch-size", "2", "--config", put_text("c.json", "{\"prompt\": \"file\"}")));
    assert_true(options_import(&o, stored, "trainer.json", &err));
    assert_true(c.batch == 2 && c.tokens == 12345 && c.lr == 0.1 && c.shape == SHAPE_LINEAR && !c.resume);
    assert_string_equal(c.prompt, "file");
    assert_int_equal(options_source(&o, "learning-rate"), OPTION_FROM_STORED);
    assert_true(options_given(&o, "learning-rate") && !options_given(&o, "beta2"));
    json_t *again = options_export(&o);
    assert_int_equal(json_array_size(json_object_get(again, "explicit")), 4);
    json_decref(again);

    json_object_set_new(json_object_get(stored, "values"), "old-option", json_integer(1));
    assert_true(options_import(&o, stored, "trainer.json", &err));
    json_array_append_new(json_object_get(stored, "explicit"), json_string("old-option"));
    assert_false(options_import(&o, stored, "trainer.json", &err));
    assert_string_equal(
        err.message, "trainer.json: the stored run was given --old-option, which this version does not have");
    json_object_del(json_object_get(stored, "values"), "old-option");
    json_object_set_new(json_object_get(stored, "values"), "beta2", json_real(1.5));
    assert_false(options_import(&o, stored, "trainer.json", &err));
    assert_string_equal(err.message, "trainer.json: beta2 1.5: must be at least 0 and below 1");
    json_object_del(stored, "explicit");
    assert_false(options_import(&o, stored, "trainer.json", &err));
    assert_string_equal(err.message,
                        "trainer.json: expected stored options {\"values\": {...}, \"explicit\": [...]}");
    json_decref(stored);
    options_free(&o);
}

static void test_values_of_another_run(void **state) {
    struct options o, from;
    struct config c, other;
    (void)state;
    expect_ok(&o, &c, ARGS("--batch-size", "8", "--out", "here"));
    expect_ok(&from, &other, ARGS("--tokens-per-step", "2048", "--out", "there", "--schedule", "linear"));
    static const char *const rows[][2] = {{"batch-size", "4"},    {"tokens-per-step", "2k"},
                                          {"schedule", "linear"}, {"out", "there"},
                                          {"graph", "true"},      {"prompt", "(none)"}};
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
        options_copy(&o, &from, rows[i][0]);
        char *value = options_value(&o, rows[i][0]);
        assert_string_equal(value, rows[i][1]);
        free(value);
    }
    options_free(&from);
    assert_string_equal(c.out, "there");
    assert_int_equal(options_source(&o, "batch-size"), OPTION_FROM_DEFAULT);
    assert_int_equal(options_source(&o, "out"), OPTION_FROM_COMMAND);
    options_free(&o);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repeated),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_config_errors),
        cmocka_unit_test(test_stored),
        cmocka_unit_test(test_values_of_another_run),
    };
    return test_main(argc, argv, tests, make_scratch, remove_scratch);
}
