/* Options on the command line: values, times and words, and every error by its message. */
#include "test/scratch.h"

#include "test/base/tool.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- values --- */

static void test_defaults(void **state) {
    struct options o;
    struct config c;
    (void)state;
    expect_ok(&o, &c, (const char *const[]){NULL});
    assert_int_equal(c.batch, 4);
    assert_int_equal(c.tokens, 65536);
    assert_true(c.lr == 3e-4 && c.beta == 0.95 && c.decay == 0.1);
    assert_true(c.graph && !c.resume && c.shape == SHAPE_COSINE);
    assert_string_equal(c.out, "runs/with/a/rather/long/default");
    assert_null(c.prompt);
    assert_false(options_given(&o, "out"));
    assert_int_equal(options_source(&o, "out"), OPTION_FROM_DEFAULT);
    assert_false(o.help);
    options_free(&o);
}

static void test_values(void **state) {
    struct options o;
    struct config c;
    (void)state;
    expect_ok(&o, &c,
              ARGS("--batch-size", "65536", "--seed=-9223372036854775808", "--tokens-per-step", "1.5k",
                   "--learning-rate=1E-3", "--beta2", ".5", "--no-graph", "--resume", "--out=a=b", "--prompt",
                   "", "--schedule", "constant", "--weight-decay", "+2."));
    assert_int_equal(c.batch, 65536);
    assert_true(c.seed == INT64_MIN);
    assert_int_equal(c.tokens, 1536);
    assert_true(c.lr == 1e-3 && c.beta == 0.5 && c.decay == 2.0);
    assert_true(!c.graph && c.resume && c.shape == SHAPE_CONSTANT);
    assert_string_equal(c.out, "a=b");
    assert_string_equal(c.prompt, "");
    assert_true(options_given(&o, "graph") && options_source(&o, "graph") == OPTION_FROM_COMMAND);
    options_free(&o);
    const struct {
        const char *text;
        int64_t value;
    } sizes[] = {{"0", 0},         {"64k", 65536},     {"64K", 65536},
                 {"1M", 1 << 20},  {"2G", 2147483648}, {"1T", 1099511627776},
                 {"1e6", 1000000}, {"0.5k", 512},      {"9007199254740993", 9007199254740993}};
    for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) {
        expect_ok(&o, &c, ARGS("--tokens-per-step", sizes[i].text));
        assert_true(c.tokens == sizes[i].value);
        options_free(&o);
    }
    expect_ok(&o, &c, ARGS("--graph=false", "--resume=true", "--seed", "-5", "--out", "-", "--beta2", "0"));
    assert_true(!c.graph && c.resume && c.seed == -5 && c.beta == 0);
    assert_string_equal(c.out, "-");
    options_free(&o);
    expect_ok(&o, &c, ARGS("--out", "x", "--help", "--nonsense"));
    assert_true(o.help);
    options_free(&o);
    expect_ok(&o, &c, ARGS("-h"));
    assert_true(o.help);
    options_free(&o);
}

static void test_positional(void **state) {
    struct options o;
    struct config c;
    struct error err;
    (void)state;
    assert_true(tool_parse(&o, &c, &err, &tool_files, ARGS("a", "--batch-size", "2", "--", "--b")));
    assert_int_equal(o.positional_count, 2);
    assert_string_equal(o.positional[0], "a");
    assert_string_equal(o.positional[1], "--b");
    options_free(&o);
    assert_false(tool_parse(&o, &c, &err, &tool_files, ARGS("--batch-size", "2")));
    assert_string_equal(err.message, "INPUT: at least 1 expected, found 0");
    options_free(&o);
    assert_false(tool_parse(&o, &c, &err, &tool_files, ARGS("a", "b", "c")));
    assert_string_equal(err.message, "c: unexpected argument; at most 2 INPUT");
    options_free(&o);
    expect_error("a: unexpected argument", ARGS("a"));
    expect_error("seed: unexpected argument; did you mean --seed?", ARGS("seed", "3"));
}

/* --- errors --- */

static void test_unknown(void **state) {
    (void)state;
    expect_error("--batchsize: unknown option; did you mean --batch-size?", ARGS("--batchsize", "4"));
    expect_error("--batchsize: unknown option; did you mean --batch-size?", ARGS("--batchsize=4"));
    expect_error("--batch: unknown option; did you mean --batch-size?", ARGS("--batch", "4"));
    expect_error("--no-grpah: unknown option; did you mean --no-graph?", ARGS("--no-grpah"));
    expect_error("--sede: unknown option; did you mean --seed?", ARGS("--sede"));
    expect_error("--hlep: unknown option; did you mean --help?", ARGS("--hlep"));
    expect_error("--frobnicate: unknown option; --help lists all", ARGS("--frobnicate"));
    expect_error("--no-seed: unknown option; --seed takes a value and has no --no- form", ARGS("--no-seed"));
    expect_error("-seed: unknown option; options begin with two dashes: did you mean --seed?",
                 ARGS("-seed", "3"));
    expect_error("-x: unknown option; options begin with two dashes", ARGS("-x"));
    expect_error("--=3: unknown option; --help lists all", ARGS("--=3"));
}

static void test_malformed(void **state) {
    (void)state;
    expect_error("--batch-size x: not an integer", ARGS("--batch-size", "x"));
    expect_error("--batch-size 12abc: not an integer (\"abc\" after the number)",
                 ARGS("--batch-size", "12abc"));
    expect_error("--batch-size 4.5: not an integer (\".5\" after the number)", ARGS("--batch-size", "4.5"));
    expect_error("--batch-size  4: not an integer", ARGS("--batch-size", " 4"));
    expect_error("--batch-size 0x10: not an integer (\"x10\" after the number)",
                 ARGS("--batch-size", "0x10"));
    expect_error("--batch-size 4k: not an integer (\"k\" after the number)", ARGS("--batch-size", "4k"));
    expect_error("--batch-size: empty value; expected an integer", ARGS("--batch-size", ""));
    expect_error("--batch-size: empty value; expected an integer", ARGS("--batch-size="));
    expect_error("--batch-size -: not an integer", ARGS("--batch-size", "-"));
    expect_error("--tokens-per-step 64kB: not a size such as 4096, 64k or 1M (\"B\" after the number)",
                 ARGS("--tokens-per-step", "64kB"));
    expect_error("--tokens-per-step k: not a size such as 4096, 64k or 1M", ARGS("--tokens-per-step", "k"));
    expect_error("--tokens-per-step 0.3k: not a whole number", ARGS("--tokens-per-step", "0.3k"));
    expect_error("--learning-rate nan: not a number", ARGS("--learning-rate", "nan"));
    expect_error("--learning-rate inf: not a number", ARGS("--learning-rate", "inf"));
    expect_error("--learning-rate .: not a number", ARGS("--learning-rate", "."));
    expect_error("--learning-rate 1e: not a number (\"e\" after the number)", ARGS("--learning-rate", "1e"));
    expect_error("--learning-rate 1e-400: too close to zero for a double", ARGS("--learning-rate", "1e-400"));
    expect_error("--graph yes: must be true or false", ARGS("--graph=yes"));
    expect_error("--graph: must be true or false", ARGS("--graph="));
    expect_error("--no-graph: takes no value", ARGS("--no-graph=true"));
    expect_error("--schedule cosin: must be one of cosine, linear, constant; did you mean cosine?",
                 ARGS("--schedule", "cosin"));
    expect_error("--schedule wsd: must be one of cosine, linear, constant", ARGS("--schedule", "wsd"));
    expect_error("--out: empty value", ARGS("--out", ""));
    expect_error("--out: missing value", ARGS("--out"));
    expect_error("--out: missing value (--resume is the next option; --out=VALUE takes any value)",
                 ARGS("--out", "--resume"));
    expect_error("--batch-size a?b: not an integer", ARGS("--batch-size", "a\033b"));
    expect_error("--seed: given more than once", ARGS("--seed", "1", "--seed", "1"));
    expect_error("--graph: given more than once", ARGS("--graph", "--no-graph"));
    expect_error("--config: given more than once", ARGS("--config", "a", "--config", "b"));
}

static void test_range(void **state) {
    (void)state;
    expect_error("--batch-size 0: must be between 1 and 65536", ARGS("--batch-size", "0"));
    expect_error("--batch-size -1: must be between 1 and 65536", ARGS("--batch-size", "-1"));
    expect_error("--batch-size 65537: must be between 1 and 65536", ARGS("--batch-size", "65537"));
    expect_error("--batch-size 99999999999999999999: must be between 1 and 65536",
                 ARGS("--batch-size", "99999999999999999999"));
    expect_error("--seed 9223372036854775808: too large for a 64-bit integer",
                 ARGS("--seed", "9223372036854775808"));
    expect_error("--tokens-per-step 8388608T: too large for a 64-bit integer",
                 ARGS("--tokens-per-step", "8388608T"));
    expect_error("--tokens-per-step 1e300: too large for a 64-bit integer",
                 ARGS("--tokens-per-step", "1e300"));
    expect_error("--tokens-per-step -1: must be at least 0", ARGS("--tokens-per-step", "-1"));
    expect_error("--tokens-per-step -99999999999999999999: must be at least 0",
                 ARGS("--tokens-per-step", "-99999999999999999999"));
    expect_error("--learning-rate 0: must be above 0 and at most 1", ARGS("--learning-rate", "0"));
    expect_error("--learning-rate 1e999: must be above 0 and at most 1", ARGS("--learning-rate", "1e999"));
    expect_error("--beta2 1: must be at least 0 and below 1", ARGS("--beta2", "1"));
    expect_error("--weight-decay 1e999: too large for a double", ARGS("--weight-decay", "1e999"));
    expect_error("--weight-decay -0.1: must be at least 0", ARGS("--weight-decay", "-0.1"));
}

/* --- table check --- */

static void expect_faulty(const char *message, struct option_row a, struct option_row b) {
    struct option_row rows[] = {a, b};
    struct option_group group = {"G", rows, 2};
    struct option_command faulty = {"x", NULL, &group, 1, NULL, 0, 0};
    struct error err = {""};
    assert_false(options_check(&faulty, &err));
    assert_string_equal(err.message, message);
}

static void test_table(void **state) {
    struct option_row good = tool.groups[0].rows[0], graph = tool.groups[1].rows[0], bad;
    struct error err;
    (void)state;
    assert_true(options_check(&tool, &err));
    expect_faulty("option table: --batch-size and --batch-size clash", good, good);
    bad = good;
    bad.name = "no-graph";
    expect_faulty("option table: --graph and --no-graph clash", graph, bad);
    expect_faulty("option table: --no-graph and --graph clash", bad, graph);
    bad.name = "Batch";
    expect_faulty("option table: malformed name \"Batch\"", good, bad);
    bad.name = "config";
    expect_faulty("option table: --config is built in", good, bad);
    bad = tool.groups[0].rows[1];
    bad.max = 0;
    expect_faulty("option table: default of --seed, 1: must be at most 0", good, bad);
    bad.initial = NULL;
    expect_faulty("option table: --seed has no default", good, bad);
    bad.help = NULL;
    expect_faulty("option table: --seed has no help", good, bad);
    bad = tool.groups[0].rows[6];
    bad.initial = "wsd";
    expect_faulty("option table: default of --schedule, wsd: must be one of cosine, linear, constant", good,
                  bad);
    bad.words = NULL;
    expect_faulty("option table: --schedule has no words", good, bad);
}

static void test_required(void **state) {
    struct option_row row = tool.groups[1].rows[2];
    row.flags = OPTION_REQUIRED;
    row.initial = NULL;
    struct option_group group = {"G", &row, 1};
    struct option_command cmd = {"x", NULL, &group, 1, NULL, 0, 0};
    struct options o;
    struct config c;
    struct error err;
    (void)state;
    assert_false(tool_parse(&o, &c, &err, &cmd, (const char *const[]){NULL}));
    assert_string_equal(err.message, "--out: required, but not given");
    char *help = options_help(&o, 100);
    assert_non_null(strstr(help, "where the run is stored (required)"));
    free(help);
    options_free(&o);
    assert_true(tool_parse(&o, &c, &err, &cmd, ARGS("--out", "d")));
    options_free(&o);
    /* a text that must be given needs no name */
    assert_true(tool_parse(&o, &c, &err, &cmd, ARGS("d")));
    assert_string_equal(c.out, "d");
    options_free(&o);
    assert_false(tool_parse(&o, &c, &err, &cmd, ARGS("d", "e")));
    assert_string_equal(err.message, "e: unexpected argument");
    options_free(&o);
    assert_false(tool_parse(&o, &c, &err, &cmd, ARGS("d", "--out", "e")));
    assert_string_equal(err.message, "--out: given more than once");
    options_free(&o);
}

/* Numbers that the program chooses. */
static void test_automatic(void **state) {
    struct numbers {
        int64_t steps;
        double rate;
        int64_t warmup; /* may be 0 */
    } n;
    static const struct option_row rows[] = {
        OPT_SIZE(struct numbers, steps, "steps", "auto", 0, 1e6, "N", "steps (auto: many)", 0),
        OPT_REAL(struct numbers, rate, "rate", "auto", 0, 1, "X", "rate (auto: low)", OPTION_ABOVE_MIN),
        OPT_INT(struct numbers, warmup, "warmup", "auto", -1, 9, "N", "steps (auto: some)", 0)};
    static const struct option_group group = {"G", rows, ARRAY_LENGTH(rows)};
    static const struct option_command cmd = {"x", NULL, &group, 1, NULL, 0, 0};
    struct options o;
    struct error err;
    static const char *const given[][3] = {{"--steps=auto", "--rate=auto", "--warmup=auto"},
                                           {"--steps=0", "--rate=auto", "--warmup=-1"}};
    for (size_t i = 0; i < ARRAY_LENGTH(given); i++) {
        char *args[] = {(char *)(uintptr_t)given[i][0], (char *)(uintptr_t)given[i][1],
                        (char *)(uintptr_t)given[i][2]};
        n = (struct numbers){7, 7, 7};
        options_init(&o, &cmd, &n);
        assert_int_equal(n.steps, 0);
        assert_true(options_parse(&o, 3, args, &err));
        assert_true(n.steps == 0 && n.rate == 0 && n.warmup == -1);
        assert_true(!options_given(&o, "steps") && options_source(&o, "steps") == OPTION_FROM_COMMAND);
        char *text = options_text(&o, true);
        assert_non_null(strstr(text, "auto"));
        assert_null(strstr(text, "* "));
        free(text);
        options_free(&o);
    }
    char steps[] = "--steps=2k", rate[] = "--rate=0.125", warmup[] = "--warmup=0",
         wrong[] = "--steps=automatic", *args[] = {steps, rate, warmup, wrong};
    options_init(&o, &cmd, &n);
    assert_true(options_parse(&o, 3, args, &err));
    assert_true(n.steps == 2048 && n.rate == 0.125 && n.warmup == 0);
    char *text = options_text(&o, false);
    assert_string_equal(text, "G\n* steps   2k\n* rate    0.125\n* warmup  0\n");
    free(text);
    options_free(&o);
    options_init(&o, &cmd, &n);
    n.steps = 3; /* the program chose */
    text = options_text(&o, false);
    assert_string_equal(text, "G\n* steps   3                     (chosen by the program)\n");
    free(text);
    options_free(&o);
    options_init(&o, &cmd, &n);
    assert_false(options_parse(&o, 1, args + 3, &err));
    options_free(&o);
}

/* --- times --- */

static void test_times(void **state) {
    struct limit {
        double time;
    } c;
    static const struct option_row rows[] = {OPT_TIME(struct limit, time, "max-time", "TIME", "a limit", 0)};
    static const struct option_group group[] = {{"Run", rows, 1}};
    static const struct option_command limited = {"tool [options]", NULL, group, 1, NULL, 0, 0, NULL};
    static const struct {
        const char *text, *shown;
        double seconds;
    } good[] = {{"90s", "90s", 90},    {"90m", "90m", 5400},     {"24h", "1d", 86400},
                {"2d", "2d", 172800},  {"1.5h", "90m", 5400},    {"1h30m", "90m", 5400},
                {"0.5s", "0.5s", 0.5}, {"1d12h", "36h", 129600}, {"1e3s", "1000s", 1000},
                {"0h7m", "7m", 420}};
    static const char *const bad[] = {"7",  "h",   "7 h",    "7hh",  "7H", "1h30",
                                      "0s", "-1h", "1e300d", "infs", ""};
    struct options o;
    struct error err;
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(good); i++) {
        char *args[] = {(char *)"--max-time", (char *)(uintptr_t)good[i].text};
        options_init(&o, &limited, &c);
        assert_true(options_check(&limited, &err) && c.time == 0);
        if (!options_parse(&o, 2, args, &err)) fail_msg("%s", err.message);
        assert_true(c.time == good[i].seconds);
        char *shown = options_value(&o, "max-time");
        assert_string_equal(shown, good[i].shown);
        json_t *stored = options_export(&o);
        free(shown);
        options_free(&o);
        options_init(&o, &limited, &c); /* through a file and back */
        assert_true(options_import(&o, stored, "stored", &err));
        assert_true(c.time == good[i].seconds);
        json_decref(stored);
        options_free(&o);
    }
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
        char *args[] = {(char *)"--max-time", (char *)(uintptr_t)bad[i]};
        options_init(&o, &limited, &c);
        if (options_parse(&o, 2, args, &err)) fail_msg("--max-time \"%s\" was taken", bad[i]);
        assert_non_null(strstr(err.message, "--max-time"));
        options_free(&o);
    }
    options_init(&o, &limited, &c);
    json_t *none = options_export(&o);
    assert_true(options_import(&o, none, "stored", &err) && c.time == 0);
    json_object_set_new(json_object_get(none, "values"), "max-time", json_integer(7));
    assert_false(options_import(&o, none, "stored", &err));
    assert_string_equal(err.message,
                        "stored: max-time 7: must be a string such as \"90m\", found an integer");
    json_decref(none);
    options_free(&o);
}

/* --- words --- */

static void test_words(void **state) {
    static const char *const words[] = {"train", "sample", "plan", "eval", "export"};
    (void)state;
    assert_int_equal(word_distance("", "abc"), 3);
    assert_int_equal(word_distance("kitten", "sitting"), 3);
    assert_int_equal(word_distance("trian", "train"), 1);
    assert_int_equal(word_distance("ca", "abc"), 3); /* no edits inside a swapped pair */
    assert_int_equal(word_distance("same", "same"), 0);
    char a[200], b[200];
    memset(a, 'a', sizeof a - 1);
    memset(b, 'b', sizeof b - 1);
    a[199] = b[199] = '\0';
    assert_int_equal(word_distance(a, b), 63);
    assert_int_equal(nearest_word("trian", words, 5), 0);
    assert_int_equal(nearest_word("sam", words, 5), 1);
    assert_int_equal(nearest_word("e", words, 5), -1);
    assert_int_equal(nearest_word("exprot", words, 5), 4);
    assert_int_equal(nearest_word("", words, 5), -1);
    assert_int_equal(nearest_word("quantize", words, 5), -1);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_values),    cmocka_unit_test(test_positional),
        cmocka_unit_test(test_unknown),  cmocka_unit_test(test_malformed), cmocka_unit_test(test_range),
        cmocka_unit_test(test_table),    cmocka_unit_test(test_required),  cmocka_unit_test(test_automatic),
        cmocka_unit_test(test_times),    cmocka_unit_test(test_words),
    };
    return test_main(argc, argv, tests, make_scratch, remove_scratch);
}
