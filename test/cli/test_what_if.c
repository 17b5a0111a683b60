/* `train_gpt view --serve` as a user meets it: what the server answers to "what if", and what a real browser
 * shows of it, on a model that was trained for a few steps. */
#include "test/browser.h"
#include "test/program.h"
#include "test/server.h"

#include "llmc/base/json_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char prompt[] = "Once upon a time, Anna lost her ball. She was sad.";

static int make_model(void **state) {
    if (make_scratch(state)) return -1;
    expect_command(
        0, "weights",
        "$T --device cpu --stories 200 --steps 8 --save-every 2 --keep 9 --layers 2 --heads 4 --channels 32 "
        "--context 64 --vocab-size 400 --batch-size 2 --seq-len 32 --tokens-per-step 64 --learning-rate 1e-2 "
        "--out run");
    return 0;
}

static void serve(void) {
    start_server(temp_printf("view --serve --port 0 --device cpu --from '%s' --prompt '%s'",
                             in_scratch("run"), prompt));
}

static int end(void **state) {
    kill_server();
    browser_close();
    return 0;
}
#define SERVED_TEST(f) cmocka_unit_test_teardown(f, end)

/* --- what a training leaves for watch --- */

static void test_facts_of_a_run(void **state) {
    start_server(temp_printf("watch --port 0 '%s'", in_scratch("run")));
    json_t *s = get("/state"), *run = json_array_get(json_object_get(s, "runs"), 0);
    assert_int_equal(json_integer_value(json_object_get(run, "step")), 8);
    assert_true(json_number_value(json_object_get(run, "steps")) == 8.0);
    assert_true(json_number_value(json_object_get(run, "tokens_per_step")) == 64.0);
    double floor = json_number_value(json_object_get(run, "floor"));
    assert_true(floor > 0.1 && floor < 2.0);
    assert_true(json_number_value(json_object_get(run, "share")) > 0.0);
    json_t *samples = json_object_get(run, "samples");
    assert_int_equal(json_array_size(samples), 1);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(samples, 0), "step")), 8);
    assert_int_equal(json_array_size(json_object_get(run, "checkpoints")), 4);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(run, "options"), "save-every")), 2);
    json_decref(s);
    stop_server();
}

/* --- answers --- */

static json_t *array_of(json_t *answer, const char *name) {
    return json_object_get(json_object_get(json_object_get(answer, "arrays"), name), "parts");
}

static bool same_array(json_t *a, json_t *b, const char *name) {
    return json_equal(array_of(a, name), array_of(b, name));
}

static void test_answers(void **state) {
    serve();
    json_t *model = get("/model"), *plain = post("/look", "{}", NULL), *again;
    json_t *steps = json_object_get(model, "checkpoints");
    assert_int_equal(json_array_size(steps), 4);
    assert_int_equal(json_integer_value(json_array_get(steps, 1)), 4);
    assert_int_equal(json_integer_value(json_object_get(model, "loaded")), 3);
    assert_int_equal(json_array_size(json_object_get(model, "vocabulary")), 400);
    again = post("/look", temp_printf("{\"text\": \"%s\"}", prompt), NULL);
    assert_true(same_array(plain, again, "next_logit"));
    json_decref(again);
    again = post("/look", "{\"off\": [[1, 2]]}", NULL);
    assert_false(same_array(plain, again, "next_logit"));
    json_decref(again);
    again = post("/look", "{\"cut\": [[5, 2, -1, -1]]}", NULL);
    assert_false(same_array(plain, again, "next_logit"));
    json_decref(again);
    again = post("/look",
                 "{\"attention\": {\"score\": \"scaled-dot\", \"mask\": \"causal\", \"softcap\": 0}}", NULL);
    assert_true(same_array(plain, again, "next_logit"));
    json_decref(again);
    static const char *const rules[] = {"{\"score\": \"l2\"}", "{\"mask\": \"full\"}",
                                        "{\"mask\": \"window\", \"window\": 2}", "{\"softcap\": 0.05}"};
    for (size_t i = 0; i < ARRAY_LENGTH(rules); i++) {
        again = post("/look", temp_printf("{\"attention\": %s}", rules[i]), NULL);
        if (same_array(plain, again, "next_logit")) fail_msg("%s changes nothing", rules[i]);
        json_decref(again);
    }
    again = post("/look", "{\"checkpoint\": 0}", NULL);
    assert_false(same_array(plain, again, "next_logit"));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(again, "facts"), "step")), 2);
    json_decref(again);
    again = post("/look", "{\"checkpoint\": 3, \"off\": []}", NULL);
    assert_true(same_array(plain, again, "next_logit"));
    json_decref(again);
    json_decref(model);
    json_decref(plain);
    stop_server();
}

static void test_wrong_questions(void **state) {
    static const char *const wrong[] = {
        "",
        "x",
        "[]",
        "{\"off\": [[2, 0]]}",
        "{\"off\": [[0, 4]]}",
        "{\"off\": [[-1, 0]]}",
        "{\"off\": [[0]]}",
        "{\"off\": [[0.5, 0]]}",
        "{\"cut\": [[99, 0, 0, 0]]}",
        "{\"cut\": [[1, 0, 2, 0]]}",
        "{\"cut\": [[1, 0, -2, 0]]}",
        "{\"cut\": [1]}",
        "{\"attention\": 1}",
        "{\"attention\": {\"score\": \"l3\"}}",
        "{\"attention\": {\"score\": 1}}",
        "{\"attention\": {\"mask\": \"window\"}}",
        "{\"attention\": {\"window\": 3}}",
        "{\"attention\": {\"softcap\": -1}}",
        "{\"attention\": {\"softcap\": \"1\"}}",
        "{\"checkpoint\": 4}",
        "{\"checkpoint\": -1}",
        "{\"checkpoint\": 1e30}",
        "{\"text\": \"a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a "
        "a a a a a a a a a a "
        "a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a\"}"};
    serve();
    for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
        int status;
        json_decref(post("/look", wrong[i], &status));
        if (status != 400) fail_msg("%s: %d", wrong[i], status);
    }
    assert_int_equal(status_of("GET /look", "localhost", ""), 404);
    assert_int_equal(status_of("POST /look", "evil.example", "Content-Length: 2\r\n"), 403);
    assert_true(remove_tree(in_scratch("run/step-00000002")));
    int status;
    json_decref(post("/look", "{\"checkpoint\": 0}", &status));
    assert_int_equal(status, 400);
    json_decref(post("/look", "{\"checkpoint\": 1}", NULL)); /* the others are as good as before */
    stop_server();
}

/* --- in a browser --- */

static void open_page(void) {
    serve();
    browser_go(server.url);
    browser_wait(20,
                 "whatIf && whatIf.before && chips.length > 5 && !document.getElementById('what-if').hidden");
}

/* What the page computes of the arrays it got is what JSON of the same text says. */
static void test_page_equals_json(void **state) {
    struct error err;
    NEED_BROWSER();
    open_page();
    expect_command(0, "", "$T view --device cpu --from run --prompt '%s' --json numbers.json --overwrite",
                   prompt);
    json_t *root = json_file_load(in_scratch("numbers.json"), &err),
           *arrays = json_object_get(root, "arrays");
    assert_non_null(root);
    json_t *attention = json_object_get(json_object_get(arrays, "attention"), "data");
    int64_t T = (int64_t)json_array_size(json_object_get(root, "tokens"));
    assert_true(browser_number("T") == (double)T);
    for (int64_t at = 0; at < 2 * 4 * T * T; at += 97) {
        int64_t s = at % T, t = at / T % T, h = at / T / T % 4, l = at / T / T / 4;
        double got = browser_number("share(%d, %d, %d, %d)", (int)l, (int)h, (int)t, (int)s);
        assert_true(fabs(got - json_number_value(json_array_get(attention, (size_t)at))) < 1e-6);
    }
    json_t *p = json_object_get(json_object_get(arrays, "next_logit"), "data");
    double shown = browser_number("parseFloat($('next').children[2].textContent)"), best = 0.0, sum = 0.0;
    json_t *sampling = json_object_get(root, "sampling");
    double temperature = json_number_value(json_object_get(sampling, "temperature"));
    for (size_t i = (size_t)(T - 1) * 400; i < (size_t)T * 400; i++) {
        double x = exp((json_number_value(json_array_get(p, i)) -
                        json_number_value(json_array_get(p, (size_t)(T - 1) * 400))) /
                       temperature);
        best = fmax(best, x);
        sum += x;
    }
    if (fabs(shown - 100.0 * best / sum) > 0.051)
        fail_msg("%g %% on the screen, %g %% by the JSON", shown, 100.0 * best / sum);
    json_decref(root);
    browser_expect_no_errors(server.url);
    stop_server();
}

static void test_page_asks_what_if(void **state) {
    NEED_BROWSER();
    open_page();
    /* a head */
    json_decref(browser_value("choose({t: 8, l: 1, h: 2})"));
    browser_click("'#head-off'");
    browser_wait(
        10, "whatIf.after && !$('compare').hidden && document.querySelectorAll('#heads .off').length === 1");
    assert_true(browser_number("headEffect(1, 2, 5)") == 0.0);
    char *text = browser_text("$('changes').innerText");
    assert_mentions(text, "layer 1, head 2 is off");
    free(text);
    /* the losses on the screen are those of the two passes */
    double before = browser_number("Number($('loss-before').textContent)"),
           after = browser_number("Number($('loss-after').textContent)");
    assert_true(fabs(before - browser_number("inPass(whatIf.before, lossOfText)")) < 1e-4);
    assert_true(fabs(after - browser_number("inPass(whatIf.after, lossOfText)")) < 1e-4);
    assert_true(before != after);
    /* a byte has its share of what all tokens after the first lose: that one is <|endoftext|> */
    double tokens = browser_number("T - 1"), bytes = (double)strlen(prompt);
    text = browser_text("$('loss-bits').textContent");
    const char *bits = strchr(text, ';');
    assert_non_null(bits);
    double each[2] = {0};
    assert_int_equal(sscanf(bits, "; %lf and %lf bits per byte", &each[0], &each[1]), 2);
    assert_true(fabs(each[0] - before * tokens / log(2) / bytes) < 1e-3);
    assert_true(fabs(each[1] - after * tokens / log(2) / bytes) < 1e-3);
    free(text);
    browser_click("'#undo'");
    browser_wait(10, "!whatIf.after && $('compare').hidden");
    /* an edge: token 8 may not see token 3, in this head */
    json_decref(browser_value("choose({t: 8, s: 3})"));
    browser_click("'#cut'");
    browser_wait(10, "whatIf.after && facts.without.cut.length === 1");
    assert_true(browser_number("share(1, 2, 8, 3)") == 0.0);
    assert_true(browser_number("share(1, 1, 8, 3)") > 0.0);
    assert_true(fabs(browser_number("row(1, 2, 8).reduce((a, b) => a + b, 0)") - 1.0) < 1e-5);
    assert_true(fabs(browser_number("attention(1, 2).slice(8 * T, 9 * T).reduce((a, b) => a + b, 0)") - 1.0) <
                1e-5);
    /* before and after, shown in turn */
    browser_click("'[name=shows][value=before]'");
    browser_wait(5, "share(1, 2, 8, 3) > 0");
    browser_click("'#undo'");
    browser_wait(10, "!whatIf.after");
    /* words: swapped, and typed */
    json_decref(browser_value(
        "whatIf.shows = 'after', choose({t: chips.findIndex((e, t) => wordAt(pass, t).word === 'ball'), "
        "s: chips.findIndex((e, t) => wordAt(pass, t).word === 'Anna')})"));
    browser_click("'#swap'");
    browser_wait(
        10,
        "whatIf.after && textOf(whatIf.after).text === 'Once upon a time, ball lost her Anna. She was sad.'");
    browser_click("'#undo'");
    browser_wait(10, "!whatIf.after");
    json_decref(browser_value("$('text').value = 'Once <b>upon</b> & a time'"));
    browser_click("'#read'");
    browser_wait(10, "whatIf.after && textOf(whatIf.after).text === 'Once <b>upon</b> & a time'");
    assert_true(browser_number("$('tokens').querySelectorAll('b').length") == 0.0);
    browser_click("'#keep'");
    browser_wait(10, "!whatIf.after && textOf(whatIf.before).text === 'Once <b>upon</b> & a time'");
    /* a text that is too long: said, and nothing lost */
    json_decref(browser_value("$('text').value = 'a b c d '.repeat(60)"));
    browser_click("'#read'");
    browser_wait(10,
                 "$('waiting').classList.contains('wrong') && $('waiting').textContent.includes('context')");
    assert_true(browser_number("textOf(pass).text.length") == (double)strlen("Once <b>upon</b> & a time"));
    stop_server();
}

/* Every score and every mask, chosen on the page. What the page makes of queries and keys adds up to 1 with
 * the program's denominators only if both mean the same by a rule. */
static void test_page_asks_for_other_attention(void **state) {
    static const char *const scores[] = {"dot", "cosine", "l2", "dot2", "scaled-dot"};
    static const char *const masks[] = {"anti-causal", "full", "window", "causal", "full"};
    NEED_BROWSER();
    open_page();
    for (size_t i = 0; i < ARRAY_LENGTH(scores); i++) {
        json_decref(browser_value("$('rule-score').value = '%s', $('rule-mask').value = '%s', "
                                  "$('rule-window').value = 3, $('rule-softcap').value = %d, "
                                  "$('rule-score').onchange()",
                                  scores[i], masks[i], i % 2 ? 2 : 0));
        browser_wait(10,
                     "whatIf.after && model.score === '%s' && model.mask === '%s' && !$('compare').hidden",
                     scores[i], masks[i]);
        assert_true(
            browser_number("Math.max(...Array.from({length: T}, (_, t) => Math.abs(row(1, 2, t).reduce("
                           "(a, b) => a + b, 0) - 1)))") < 1e-4);
        assert_true(browser_number("Math.max(0, ...attention(0, 1).filter((p, i) => !sees(Math.floor(i / T), "
                                   "i %% T)))") == 0.0);
        assert_true(
            browser_number("Array.from({length: T}, (_, s) => share(1, 2, 6, s)).reduce((a, b) => a + b)") >
            0.999);
        assert_true(browser_number("inPass(whatIf.before, lossOfText)") !=
                    browser_number("inPass(whatIf.after, lossOfText)"));
    }
    char *text = browser_text("$('changes').innerText");
    assert_mentions(text, "mask: full");
    free(text);
    browser_click("'#undo'");
    browser_wait(10, "!whatIf.after && model.mask === 'causal' && $('rule-mask').value === 'causal'");
    browser_expect_no_errors(server.url);
    stop_server();
}

static void test_page_over_time(void **state) {
    NEED_BROWSER();
    open_page();
    double last = browser_number("inPass(whatIf.before, lossOfText)");
    json_decref(browser_value("$('checkpoint').value = 1, $('checkpoint').oninput()"));
    browser_wait(10, "facts.step === 4 && $('checkpoint-value').textContent === 'step 4'");
    assert_true(browser_number("inPass(whatIf.before, lossOfText)") > last);
    json_decref(browser_value("$('checkpoint').value = 3, $('checkpoint').oninput()"));
    browser_wait(10, "facts.step === 8");
    assert_true(fabs(browser_number("inPass(whatIf.before, lossOfText)") - last) < 1e-6);
    browser_expect_no_errors(server.url);
    stop_server();
}

/* Every head, every checkpoint: what the server says is what the table shows. */
static void test_page_studies_heads(void **state) {
    NEED_BROWSER();
    open_page();
    json_t *heads = get("/heads?checkpoint=2"), *things = json_object_get(heads, "things"),
           *loss = json_object_get(heads, "loss");
    double links = json_number_value(json_object_get(things, "links"));
    assert_int_equal(json_integer_value(json_object_get(heads, "step")), 6);
    assert_true(links > 5);
    assert_int_equal(json_array_size(json_object_get(things, "hits")), 8);
    assert_int_equal(json_array_size(json_object_get(loss, "without")), 8);
    browser_click("'#study'");
    browser_wait(60, "study.results.every(r => r) && $('study').textContent === 'measured'");
    double shown = browser_number(
        "Number(document.querySelector('[data-head=\"5\"][data-checkpoint=\"2\"]').textContent)");
    double wanted = 100.0 * json_number_value(json_array_get(json_object_get(things, "hits"), 5)) / links;
    assert_true(fabs(shown - wanted) <= 0.5001);
    json_decref(browser_value("$('study-of').value = 'loss', $('study-of').onchange()"));
    shown = browser_number(
        "Number(document.querySelector('[data-head=\"3\"][data-checkpoint=\"2\"]').textContent.replace('\u2212', '-'))");
    wanted = json_number_value(json_array_get(json_object_get(loss, "without"), 3)) -
             json_number_value(json_object_get(loss, "whole"));
    assert_true(fabs(shown - wanted) <= 0.5001e-3);
    browser_click("'[data-head=\"6\"][data-checkpoint=\"1\"] button'");
    browser_wait(10, "facts.step === 4 && state.l === 1 && state.h === 2");
    json_decref(heads);
    assert_int_equal(status_of("GET /heads?checkpoint=4", "localhost", ""), 400);
    assert_int_equal(status_of("GET /heads", "localhost", ""), 400);
    browser_expect_no_errors(server.url);
    stop_server();
}

/* A page in a file says what it was read without. */
static void test_page_without_parts(void **state) {
    NEED_BROWSER();
    expect_command(0, "without.html",
                   "$T view --from run --prompt 'Once upon' --html without.html --without "
                   "'{\"off\": [[1, 2]], \"cut\": [[1, 0, 0, -1]]}'");
    browser_go(temp_printf("file://%s", in_scratch("without.html")));
    char *text = browser_text("$('shape').innerText");
    assert_mentions(text, "Here layer 1, head 2 is off.");
    assert_mentions(text, "Here token 1 does not see token 0 in layer 0.");
    assert_true(browser_number("document.querySelectorAll('#heads .off').length") == 1);
    free(text);
    browser_expect_no_errors(NULL);
}

/* Nothing is cut off on a narrow screen. With LLMC_SCREENSHOTS=DIR, pictures of the page. */
static void test_page_on_screens(void **state) {
    static const int widths[] = {360, 800, 1400};
    NEED_BROWSER();
    serve();
    for (size_t i = 0; i < ARRAY_LENGTH(widths); i++)
        for (int dark = 0; dark < 2; dark++) {
            browser_view(widths[i], 900, dark);
            browser_go(server.url);
            browser_wait(20, "whatIf && whatIf.before && chips.length > 5");
            json_decref(browser_value("measureHeads()"));
            json_decref(browser_value("askAgain({off: [[1, 2]], cut: [[8, 3, -1, -1]]})"));
            browser_wait(10, "whatIf.after && !working");
            browser_picture("view");
            browser_expect_width(widths[i]);
        }
    browser_expect_no_errors(server.url);
    stop_server();
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SERVED_TEST(test_facts_of_a_run),
        SERVED_TEST(test_answers),
        SERVED_TEST(test_page_equals_json),
        SERVED_TEST(test_page_asks_what_if),
        SERVED_TEST(test_page_asks_for_other_attention),
        SERVED_TEST(test_page_over_time),
        SERVED_TEST(test_page_studies_heads),
        SERVED_TEST(test_page_on_screens),
        SERVED_TEST(test_wrong_questions),
        SERVED_TEST(test_page_without_parts),
    };
    return test_main(argc, argv, tests, make_model, remove_scratch);
}
