/* `train_gpt eval --show` and --html as a user runs them: both show the same tokens on the same scale, and
 * the losses of the tokens give the loss that is printed. */
#include "test/browser.h"
#include "test/program.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes are tokens, so every character that is not ASCII is cut. */
static const char text[] =
    "the cat ran to Z\xc3\xbcrich \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x99\x82\n</script><b> & so on";

static int set_up(void **state) {
    if (make_scratch(state) != 0) return -1;
    char known[2000] = "";
    for (int i = 0; i < 100; i++) strcat(known, "the cat ran. ");
    put_text("known.txt", known);
    put_text("text.txt", text);
    expect_command(
        0, "weights",
        "$T --text known.txt --tokenizer bytes --layers 1 --channels 16 --heads 2 --context 64 --seq-len 32 "
        "--batch-size 2 --threads 1 --device cpu --steps 30 --learning-rate 1e-2 --out run");
    return 0;
}

static int close_browser(void **state) {
    browser_close();
    return 0;
}

static void evaluate(const char *options) {
    expect_command(0, "", "$T eval --from run --text text.txt %s >out", options);
}

/* The losses of single tokens, as the page has them, give the loss that is printed; and each has the level
 * that --show prints. */
static void the_page_and_the_terminal_agree(void **state) {
    NEED_BROWSER();
    put_text("text.txt", "the cat ran. the dog ran.\n");
    evaluate("--show --html page.html --overwrite");
    put_text("text.txt", text);
    char *out = get_text("out"), levels[64] = "";
    browser_go(temp_printf("file://%s", in_scratch("page.html")));
    double mean = browser_number("pieces.reduce((sum, p) => sum + p.loss, 0) / pieces.length"), printed;
    assert_int_equal((int)browser_number("pieces.length"), 27); /* and the end */
    const char *loss = strstr(out, "text.txt: loss ");
    assert_non_null(loss);
    assert_int_equal(sscanf(loss, "text.txt: loss %lf", &printed), 1);
    assert_float_equal(mean, printed, 1e-4);
    char *expected = browser_text("pieces.map(p => levelOf(p.loss) || '.').join('')");
    char *line = strchr(out, '\n') + 1; /* below the text */
    size_t n = strcspn(line, "\n");
    memcpy(levels, line, n);
    line = strstr(line, "<|endoftext|>\n") + strlen("<|endoftext|>\n");
    levels[n] = *line;
    assert_string_equal(levels, expected);
    free(expected);
    free(out);
}

static void a_token_says_its_loss(void **state) {
    NEED_BROWSER();
    evaluate("--html page.html --overwrite");
    browser_view(900, 900, false);
    browser_go(temp_printf("file://%s", in_scratch("page.html")));
    char *shown = browser_text("$('tokens').textContent");
    assert_mentions(
        shown,
        "the cat ran to Z\xc3\xbcrich \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x99\x82\xe2\x8f\x8e\n</script><b> & so on");
    free(shown);
    assert_int_equal((int)browser_number("pieces.find(p => p.text === '\\u00fc').tokens"), 2);
    browser_click("'#tokens [data-token=\"3\"]'");
    json_decref(browser_value("$('tokens').focus()"));
    browser_key("ArrowRight");
    char *said = browser_text("$('reading').textContent + ' ' + fixed(pieces[4].loss, 3)");
    const char *value = strrchr(said, ' ') + 1;
    assert_mentions(said, temp_printf("\xe2\x80\x9c"
                                      "c\xe2\x80\x9dloss %s nats, probability ",
                                      value));
    free(said);
    browser_key("Home");
    assert_int_equal((int)browser_number("chosen"), 0);
    /* the shades are those of the scale: level 0 has none, the last one is --high */
    char *colours = browser_text(
        "[...document.querySelectorAll('#scale .token')].map(e => e.style.background).join('|')");
    assert_true(*colours == '|');
    assert_mentions(colours, "|rgb(10, 44, 104)");
    free(colours);
    assert_true(
        browser_number(
            "pieces.every((p, i) => $('tokens').querySelector(`[data-token=\"${i}\"]`).style.background === "
            "document.querySelectorAll('#scale .token')[levelOf(p.loss)].style.background) ? 1 : 0") > 0);
    browser_expect_no_errors(NULL);
}

/* Nothing is cut off on a narrow screen. With LLMC_SCREENSHOTS=DIR, pictures of the page. */
static void the_page_on_screens(void **state) {
    static const int widths[] = {360, 900, 1600};
    NEED_BROWSER();
    evaluate("--html page.html --overwrite");
    for (size_t i = 0; i < ARRAY_LENGTH(widths); i++)
        for (int dark = 0; dark < 2; dark++) {
            browser_view(widths[i], 900, dark);
            browser_go(temp_printf("file://%s", in_scratch("page.html")));
            json_decref(browser_value("$('tokens').focus()"));
            browser_key("ArrowRight");
            browser_picture("eval");
            browser_expect_width(widths[i]);
            browser_expect_no_errors(NULL);
        }
}

static void what_cannot_be_shown_is_refused(void **state) {
    put_text("page.html", "mine");
    expect_command(1, "--html page.html", "$T eval --from run --text text.txt --html page.html");
    put_text("one.jsonl", "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\n");
    expect_command(0, "--show has no effect: it goes with --data and --text",
                   "$T eval --from run --tasks one.jsonl --show");
}

int main(int argc, char **argv) {
#define PAGE_TEST(f) cmocka_unit_test_setup_teardown(f, NULL, close_browser)
    const struct CMUnitTest tests[] = {
        PAGE_TEST(the_page_and_the_terminal_agree),
        PAGE_TEST(a_token_says_its_loss),
        PAGE_TEST(the_page_on_screens),
        cmocka_unit_test(what_cannot_be_shown_is_refused),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}
