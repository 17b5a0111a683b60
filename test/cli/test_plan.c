/* `train_gpt plan --html` as a user runs it: the page shows what is printed, what it says of the largest
 * batch is so, and its curves are plans of their own. */
#include "test/browser.h"
#include "test/program.h"

#include "llmc/base/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int end(void **state) {
    browser_close();
    return remove_scratch(state);
}
#define PAGE_TEST(f) cmocka_unit_test_setup_teardown(f, make_scratch, end)

/* The facts in a page; the caller releases them. */
static json_t *facts_of(const char *page) {
    static const char mark[] = " id=\"facts\">";
    char *text = get_text(page);
    const char *from = strstr(text, mark);
    assert_non_null(from);
    json_error_t why;
    json_t *facts = json_loads(from + strlen(mark), JSON_DISABLE_EOF_CHECK, &why);
    if (!facts) fail_msg("%s: %s", page, why.text);
    free(text);
    return facts;
}

static json_t *level_of(json_t *facts, size_t i) {
    return json_array_get(json_object_get(facts, "levels"), i);
}

static int64_t number(const json_t *object, const char *name) {
    assert_true(json_is_integer(json_object_get(object, name)));
    return json_integer_value(json_object_get(object, name));
}

static json_t *plan(const char *arguments, int64_t batch_size) {
    struct ran r = run_command("$T plan --device cpu --html page.html --overwrite --batch-size %lld %s",
                               (long long)batch_size, arguments);
    if (r.status > 1) fail_msg("status %d: %s", r.status, r.err);
    return facts_of("page.html");
}

/* With one sequence more than is said to fit, a process needs more than there is. */
static void test_largest_batch(void **state) {
    static const char *const cases[] = {"--model gpt2 --seq-len 1024", "--model gpt2 --ranks 3 --zero 2"};
    for (size_t k = 0; k < ARRAY_LENGTH(cases); k++) {
        json_t *facts = plan(cases[k], 1);
        int64_t available = number(facts, "available");
        size_t level = (size_t)number(facts, "chosen");
        int64_t largest = number(level_of(facts, level), "largest");
        assert_true(largest >= 1);
        for (int64_t more = 0; more < 2; more++) {
            json_t *with = plan(cases[k], largest + more);
            int64_t total = number(level_of(with, level), "total");
            if ((total <= available) != (more == 0))
                fail_msg("%s: --batch-size %lld of %lld needs %lld of %lld bytes", cases[k],
                         (long long)(largest + more), (long long)largest, (long long)total,
                         (long long)available);
            json_decref(with);
        }
        json_decref(facts);
    }
    expect_command(1, "none fits", "$T plan --device cpu --model gpt2-xl --ranks 64");
}

/* A row of the picture is a plan; ZeRO never needs more; parts add up. */
static void test_numbers(void **state) {
    json_t *facts = plan("--model gpt2 --ranks 4 --zero 1", 8), *part, *size;
    json_t *batches = json_object_get(facts, "batches");
    assert_int_equal(json_array_size(json_object_get(facts, "levels")), 4);
    for (size_t level = 0, i; level < 4; level++) {
        int64_t sum = 0, total = number(level_of(facts, level), "total");
        json_array_foreach(json_object_get(level_of(facts, level), "parts"), i, part) sum +=
            json_integer_value(part);
        assert_true(sum == total);
        bool found = false;
        json_array_foreach(json_object_get(batches, "sizes"), i, size) {
            if (json_integer_value(size) != 8) continue;
            json_t *bytes = json_array_get(json_object_get(batches, "bytes"), level);
            assert_true(json_integer_value(json_array_get(bytes, i)) == total);
            found = true;
        }
        assert_true(found);
        if (level > 0) assert_true(total < number(level_of(facts, level - 1), "total"));
    }
    json_decref(facts);
}

/* The words of a line, separated by single spaces; the caller frees. */
static char *words(const char *line) {
    char *out = (char *)xcalloc(1, strlen(line) + 2), *end = out;
    for (; *line && *line != '\n'; line++)
        if (*line != ' ')
            *end++ = *line;
        else if (end > out && end[-1] != ' ')
            *end++ = ' ';
    while (end > out && end[-1] == ' ') *--end = 0;
    return out;
}

/* Every line that is printed stands on the page. */
static void test_page_shows_what_is_printed(void **state) {
    NEED_BROWSER();
    static const char *const cases[] = {"--ranks 4 --zero 1", ""};
    for (size_t k = 0; k < ARRAY_LENGTH(cases); k++) {
        struct ran r =
            run_command("$T plan --device cpu --batch-size 8 %s --html page.html --overwrite", cases[k]);
        assert_int_equal(r.status, 0);
        browser_go(temp_printf("file://%s", in_scratch("page.html")));
        browser_wait(10, "document.querySelectorAll('.curves .line').length === %d", k == 0 ? 4 : 1);
        char *shown =
            browser_text("[...document.querySelectorAll('p, tr')].map(e => e.cells ? [...e.cells].map(c => "
                         "c.textContent).join(' ') : e.textContent).join('\\n').replace(/ +/g, ' ')");
        int lines = 0;
        for (const char *line = r.out; *line; line += strcspn(line, "\n") + 1) {
            char *printed = words(line);
            char *semicolon = strchr(printed, ';'); /* the formula has a line of its own */
            if (semicolon && strstr(printed, "formula")) *semicolon = 0;
            if (strncmp(printed, "page written", 12) != 0 && *printed) assert_mentions(shown, printed);
            lines++;
            free(printed);
        }
        assert_true(lines > 12);
        free(shown);
        /* a key reads the values of a batch size */
        json_decref(browser_value("chart.picture.focus()"));
        browser_key("Home");
        char *reading = browser_text("document.querySelector('#batches .reading').innerText");
        assert_mentions(reading, "--batch-size 1");
        free(reading);
        browser_expect_no_errors(NULL);
    }
}

/* Nothing is cut off on a narrow screen. With LLMC_SCREENSHOTS=DIR, pictures of the page. */
static void test_page_on_screens(void **state) {
    static const int widths[] = {360, 900, 1600};
    NEED_BROWSER();
    json_decref(plan("--model gpt2 --ranks 4 --zero 1", 8));
    for (size_t i = 0; i < ARRAY_LENGTH(widths); i++)
        for (int dark = 0; dark < 2; dark++) {
            browser_view(widths[i], 900, dark);
            browser_go(temp_printf("file://%s", in_scratch("page.html")));
            browser_picture("plan");
            browser_expect_width(widths[i]);
            browser_expect_no_errors(NULL);
        }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        PAGE_TEST(test_largest_batch),
        PAGE_TEST(test_numbers),
        PAGE_TEST(test_page_shows_what_is_printed),
        PAGE_TEST(test_page_on_screens),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
