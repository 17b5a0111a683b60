/* `train_gpt profile` as a user runs it: the table lists every operation of a step once (matmuls once per
 * shape), sorted by the possible gain, and its figures are consistent. A browser shows the same figures,
 * and on invented ones every point lies where its figures say. No test depends on speed. */
#include "test/browser.h"

#include "llmc/base/file.h"
#include "llmc/report/profile_page.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- invented figures: a GPU of 800 TFLOP/s and 4 TB/s --- */

static void add_row(struct profile *p, enum op_id op, int64_t in, int64_t out, double ms, double tflop,
                    double gb) {
    struct profile_row *r = &p->row[p->count++];
    *r = (struct profile_row){.op = op, .shape = {in ? 65536 : 0, in, out}, .variant = "test", .calls = 12};
    if (in)
        snprintf(r->name, sizeof r->name, "%s %d->%d", op_name(op), (int)in, (int)out);
    else
        snprintf(r->name, sizeof r->name, "%s", op_name(op));
    r->seconds = ms * 1e-3;
    r->flops = tflop * 1e12;
    r->bytes = gb * 1e9;
    r->ideal = fmax(r->flops / p->matmul_rate, r->bytes / p->copy_rate);
    p->in_ops += r->seconds;
    p->ideal += r->ideal;
}

static struct profile *invented(void) {
    struct profile *p = (struct profile *)xcalloc(1, sizeof *p);
    p->matmul_rate = 800e12;
    p->copy_rate = 4e12;
    p->tokens = 65536;
    p->model_flops = 52.66e12;
    p->step = 0.1;
    p->spread = 0.0005;
    p->repeats = 7;
    snprintf(p->title, sizeof p->title, "a<b & c>d, B=64, T=1024, bf16");
    p->note = "noted <here>";
    snprintf(p->where, sizeof p->where, "INVENTED FIGURES: a test of the page");
    add_row(p, OP_matmul_backward, 768, 50304, 15.0, 10.1, 20.1);
    add_row(p, OP_matmul_backward, 768, 3072, 12.5, 7.4, 17.2);
    add_row(p, OP_matmul_backward, 3072, 768, 11.5, 7.4, 20.0);
    add_row(p, OP_attn_backward, 0, 0, 11.0, 3.09, 9.7);
    add_row(p, OP_matmul_backward, 768, 2304, 9.0, 5.6, 12.8);
    add_row(p, OP_matmul_forward, 768, 50304, 7.5, 5.07, 6.8);
    add_row(p, OP_matmul_forward, 768, 3072, 5.6, 3.7, 10.9);
    add_row(p, OP_matmul_forward, 3072, 768, 5.2, 3.7, 6.1);
    add_row(p, OP_attn_forward, 0, 0, 4.4, 1.24, 4.8);
    add_row(p, OP_matmul_forward, 768, 2304, 4.2, 2.8, 4.9);
    add_row(p, OP_matmul_backward, 768, 768, 3.5, 1.86, 6.1);
    add_row(p, OP_loss_forward, 0, 0, 3.6, 0.0165, 13.2);
    add_row(p, OP_norm_backward, 0, 0, 3.1, 0.0163, 9.9);
    add_row(p, OP_residual_norm_forward, 0, 0, 2.7, 0.011, 9.7);
    add_row(p, OP_matmul_forward, 768, 768, 1.6, 0.93, 2.4);
    add_row(p, OP_adamw, 0, 0, 0.95, 0.002, 3.5);
    add_row(p, OP_embed_backward, 0, 0, 0.2, 0.0001, 0.26);
    add_row(p, OP_embed_forward, 0, 0, 0.1, 0.00005, 0.18);
    add_row(p, OP_sumsq, 0, 0, 0.09, 0.00025, 0.25);
    add_row(p, OP_fill, 0, 0, 0.01, 0, 0.002);
    return p;
}

/* --- the page, in a browser --- */

static int end(void **state) {
    browser_close();
    return remove_scratch(state);
}
#define PAGE_TEST(f) cmocka_unit_test_setup_teardown(f, make_scratch, end)

/* Opens the page, and checks its roofline: every point stands where its FLOPs, bytes and seconds belong on
 * the axes, and inside them, and no name covers another. */
static void check_page(const char *path, int points) {
    browser_go(temp_printf("file://%s", path));
    browser_wait(10, "document.querySelectorAll('.point').length === %d", points);
    assert_true(browser_number("shown.length") == points);
    double furthest = browser_number(
        "Math.max(...shown.map((row, i) => { const dot = "
        "document.querySelector(`[data-point='${i}'].point`), place = (v, [low, high], from, size) => from "
        "+ size * Math.log(v / low) / Math.log(high / low), x = place(row.flops / row.bytes, "
        "[chart.x.from, chart.x.to], chart.left, chart.wide), y = place(row.flops / row.seconds, "
        "[chart.range[1], chart.range[0]], chart.top, chart.high); return "
        "Math.hypot(dot.getAttribute('cx') - x, dot.getAttribute('cy') - y); }))");
    if (!(furthest <= 0.1)) fail_msg("a point is %g pixels off", furthest);
    assert_true(
        browser_number("[...document.querySelectorAll('.point')].filter(dot => "
                       "!(dot.getAttribute('cx') > chart.left && dot.getAttribute('cy') > chart.top && "
                       "dot.getAttribute('cx') < chart.left + chart.wide && "
                       "dot.getAttribute('cy') < chart.top + chart.high)).length") == 0);
    assert_true(browser_number(
                    "(() => { const names = [...document.querySelectorAll('.name')].map(n => n.getBBox()); "
                    "return names.filter((a, i) => names.some((b, k) => k > i && a.x < b.x + b.width - 2 && "
                    "b.x < a.x + a.width - 2 && a.y + 3 < b.y + b.height - 3 && "
                    "b.y + 3 < a.y + a.height - 3)).length; })()") == 0);
    browser_expect_no_errors(NULL);
}

static void test_page(void **state) {
    NEED_BROWSER();
    struct error err;
    struct profile *p = invented();
    const char *path = in_scratch("page.html");
    assert_true(profile_write_page(p, path, &err));
    assert_false(profile_write_page(p, "/no/such/directory/page.html", &err));
    check_page(path, p->count - 1); /* fill computes nothing */
    char *text = browser_text("document.title + '|' + $('where').textContent + '|' + $('note').textContent");
    assert_string_equal(text,
                        "a<b & c>d, B=64, T=1024, bf16|INVENTED FIGURES: a test of the page|noted <here>");
    free(text);
    /* what the lines meet at: the ridge, where copying feeds the matmuls */
    assert_true(fabs(browser_number("chart.lines[0].x[1]") - 200.0) < 1e-6);
    assert_true(fabs(browser_number("chart.lines[0].y[1] / chart.lines[1].y[0]") - 1.0) < 1e-9);
    assert_true(fabs(browser_number("chart.lines[0].y[0] / chart.lines[0].x[0]") - 4e12) < 1.0);
    text = browser_text("$('rows').tBodies[0].rows[0].innerText");
    assert_mentions(text, "attn_backward"); /* 11 ms, 3.09 TFLOP at 800 TFLOP/s */
    assert_mentions(text, "7.138");
    free(text);
    text = browser_text("$('families').innerText");
    assert_mentions(text, "matmul 75.600 ms, 74.3 %");
    assert_mentions(text, "attention 15.400 ms, 15.1 %");
    assert_mentions(text, "optimizer 1.040 ms, 1.0 %");
    free(text);
    /* sorted by name */
    json_decref(browser_value("$('sort').value = 'name', $('sort').onchange()"));
    text = browser_text("$('rows').tBodies[0].rows[0].innerText");
    assert_mentions(text, "adamw");
    free(text);
    /* a click chooses a point, keys go through them, and the row of the table goes along */
    browser_click("'[data-point=\"0\"].point'");
    text = browser_text("document.querySelector('tr.chosen').innerText");
    assert_mentions(text, "50304");
    free(text);
    static const char *const keys[] = {"Home", "ArrowRight"}, *const names[] = {"embed_forward",
                                                                                "embed_backward"};
    json_decref(browser_value("chart.picture.focus()"));
    for (int i = 0; i < 2; i++) {
        browser_key(keys[i]);
        text = browser_text("document.querySelector('tr.chosen').innerText + "
                            "document.querySelector('#roofline .reading b').innerText");
        assert_mentions(text, names[i]);
        assert_mentions(strstr(text, names[i]) + 1, names[i]);
        free(text);
    }
    free(p);
}

/* Nothing but one operation, slower or faster than it can be. */
static void test_page_of_little(void **state) {
    struct error err;
    const char *path = in_scratch("little.html");
    const double ms[] = {1e-6, 1e9};
    NEED_BROWSER();
    for (int i = 0; i < 2; i++) {
        struct profile p = {.matmul_rate = 1e12, .copy_rate = 1e11, .step = 1, .tokens = 1, .repeats = 1};
        add_row(&p, OP_act_forward, 0, 0, ms[i], 1e-3, 1e-3);
        assert_true(profile_write_page(&p, path, &err));
        check_page(path, 1);
    }
}

/* Nothing is cut off on a narrow screen. With LLMC_SCREENSHOTS=DIR, pictures of the page. */
static void test_page_on_screens(void **state) {
    static const int widths[] = {360, 900, 1600};
    NEED_BROWSER();
    struct error err;
    struct profile *p = invented();
    const char *path = in_scratch("page.html");
    assert_true(profile_write_page(p, path, &err));
    for (size_t i = 0; i < ARRAY_LENGTH(widths); i++)
        for (int dark = 0; dark < 2; dark++) {
            browser_view(widths[i], 900, dark);
            check_page(path, p->count - 1);
            browser_picture("profile");
            browser_expect_width(widths[i]);
        }
    free(p);
}

/* --- the command --- */

static char *profile(const char *arguments, int wanted_status) {
    const char *build = getenv("BUILD");
    char *command = xasprintf("%s/train_gpt profile %s 2>&1", build && *build ? build : "build", arguments);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    char *text = (char *)xcalloc(1, 1 << 16);
    size_t n = fread(text, 1, (1 << 16) - 1, f);
    text[n] = 0;
    int status = pclose(f);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != wanted_status)
        fail_msg("%s: status %d, not %d\n%s", command, WEXITSTATUS(status), wanted_status, text);
    free(command);
    return text;
}

#define SMALL                                                                                                \
    "--device cpu --model tiny --layers 2 --heads 2 --channels 32 --context 32 --vocab-size 300 "            \
    "--batch-size 2 --seq-len 16 "                                                                           \
    "--tokens-per-step 64 --repeats 3 "

struct line {
    char name[64];
    double calls, ms, share, gap;
};

/* "matmul_forward 32->96        avx2            4      0.012     1.2 ...": the name has 28 columns. */
static int parse_lines(const char *text, struct line *out) {
    enum { NAME = 28 };
    int count = 0;
    for (const char *p = text; p && *p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        struct line *l = &out[count];
        int end = NAME;
        char variant[32];
        double rates[3];
        if ((int)strcspn(p, "\n") < NAME || p[0] == ' ') continue;
        if (sscanf(p + NAME, "%31s %lf %lf %lf %lf %lf %lf %lf", variant, &l->calls, &l->ms, &l->share,
                   &rates[0], &rates[1], &rates[2], &l->gap) != 8)
            continue;
        while (end > 0 && p[end - 1] == ' ') end--;
        snprintf(l->name, sizeof l->name, "%.*s", end, p);
        count++;
    }
    return count;
}

/* The browser's table has the numbers of the printed one, in the same order. */
static void check_shown(const char *text, const char *page, int count) {
    browser_go(temp_printf("file://%s", page));
    const char *line = strstr(text, "\noperation ");
    assert_non_null(line);
    for (int k = 0; k <= count; k++) {
        line = strchr(line + 1, '\n');
        char *wanted = xasprintf("%.*s", (int)strcspn(line + 1, "\n"), line + 1);
        char *shown = browser_text(
            "(row => [...row.cells].map(cell => cell.textContent.replace('\u2192', '->')).join(' '))"
            "([...$('rows').tBodies[0].rows, ...$('rows').tFoot.rows][%d])",
            k);
        const char *spaces = " \n", *a, *b;
        char *rest_wanted, *rest_shown, *one = wanted, *other = shown;
        while ((a = strtok_r(one, spaces, &rest_wanted)), (b = strtok_r(other, spaces, &rest_shown)),
               a || b) {
            if (!a || !b || strcmp(a, b) != 0) fail_msg("row %d: %s on the page, %s printed", k, b, a);
            one = other = NULL;
        }
        free(wanted);
        free(shown);
    }
    browser_expect_no_errors(NULL);
}

static void test_command(void **state) {
    const char *page = in_scratch("profile.html");
    char *arguments = xasprintf(SMALL "--html %s", page);
    char *text = profile(arguments, 0);
    struct line line[64];
    double share = 0.0;
    int count = parse_lines(text, line);
    /* two micro-steps of two layers: five shapes of matmul in both directions, and ten other operations */
    static const struct {
        const char *name;
        double calls;
    } wanted[] = {{"matmul_forward 32->96", 4},
                  {"matmul_forward 32->32", 4},
                  {"matmul_forward 32->128", 4},
                  {"matmul_forward 128->32", 4},
                  {"matmul_forward 32->384", 2},
                  {"matmul_backward 32->96", 4},
                  {"matmul_backward 32->32", 4},
                  {"matmul_backward 32->128", 4},
                  {"matmul_backward 128->32", 4},
                  {"matmul_backward 32->384", 2},
                  {"attn_forward", 4},
                  {"attn_backward", 4},
                  {"norm_forward", 2},
                  {"residual_norm_forward", 8},
                  {"norm_backward", 10},
                  {"embed_forward", 2},
                  {"embed_backward", 2},
                  {"loss_forward", 2},
                  {"sum", 2},
                  {"sumsq", 1},
                  {"adamw", 3}, /* embeddings, blocks, vectors */
                  {"fill", 3}};
    assert_int_equal(count, ARRAY_LENGTH(wanted));
    for (size_t i = 0; i < ARRAY_LENGTH(wanted); i++) {
        int found = 0;
        for (int k = 0; k < count; k++)
            if (strcmp(line[k].name, wanted[i].name) == 0) {
                found++;
                assert_true(line[k].calls == wanted[i].calls);
            }
        if (found != 1) fail_msg("%d rows of %s in\n%s", found, wanted[i].name, text);
    }
    for (int k = 0; k < count; k++) {
        share += line[k].share;
        assert_true(line[k].ms >= 0.0);
        assert_true(line[k].gap <= line[k].ms);
        if (k > 0) assert_true(line[k].gap <= line[k - 1].gap + 0.001); /* rounded */
    }
    assert_true(fabs(share - 100.0) < 0.05 * count + 0.1);
    assert_int_equal(strncmp(text, "CPU, not a GPU: ", 16), 0);
    assert_non_null(strstr(text, "page written to "));
    if (browser_open()) {
        check_shown(text, page, count);
        browser_close();
    }
    free(text);
    text = profile(SMALL "--html /no/such/directory/x.html", 1);
    assert_non_null(strstr(text, "/no/such/directory/x.html"));
    free(text);
    free(arguments);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        PAGE_TEST(test_page),
        PAGE_TEST(test_page_of_little),
        PAGE_TEST(test_page_on_screens),
        PAGE_TEST(test_command),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
