/* loss.svg: sound XML for every curve, and the picture shows what is in the log. */
#include "test/scratch.h"

#include "llmc/base/file.h"
#include "llmc/report/log_file.h"
#include "llmc/report/plot.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int count_of(const char *text, const char *part) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, part)); p += strlen(part)) n++;
    return n;
}

/* Tags closed in order, attributes quoted, no markup characters in text, and every number in sight. */
static void assert_svg(const char *text) {
    char open[32][16];
    int depth = 0;
    for (const char *p = text; *p;) {
        if (*p == '&') assert_true(p[1] == '#');
        if (*p != '<') {
            assert_true((unsigned char)*p >= ' ' || *p == '\n');
            p++;
            continue;
        }
        const char *end = strchr(p, '>');
        assert_non_null(end);
        int quotes = 0;
        for (const char *q = p + 1; q < end; q++) {
            assert_true(*q != '<');
            quotes += *q == '"';
        }
        assert_int_equal(quotes % 2, 0);
        char name[16];
        assert_int_equal(sscanf(p + 1, "%15[/a-zA-Z]", name), 1);
        if (name[0] == '/') {
            assert_true(depth > 0);
            assert_string_equal(open[--depth], name + 1);
        } else if (end[-1] != '/') {
            assert_true(depth < 32);
            snprintf(open[depth++], sizeof open[0], "%s", name);
        }
        p = end + 1;
    }
    assert_int_equal(depth, 0);
    assert_true(strncmp(text, "<svg ", 5) == 0);
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    assert_null(strstr(text, "script"));
    assert_null(strstr(text, "\">-0<"));
    for (const char *p = text; (p = strstr(p, " d=\"")); p++)
        for (const char *q = p + 4; *q != '"';) {
            char *after;
            double v = strtod(q, &after);
            if (after == q) {
                q++;
                continue;
            }
            if (!(v > -1500 && v < 1500)) fail_msg("coordinate %g", v);
            q = after;
        }
}

struct curve {
    const char *name;
    int64_t steps;
    double (*loss)(int64_t step);
    int64_t validate_every;
    double floor;
};

static double falling(int64_t s) { return 1.3 + 4 * exp(-(double)s / 50) + 0.01 * (double)(s * 7919 % 13); }
static double constant(int64_t s) { return 2; }
static double zero(int64_t s) { return 0; }
static double with_spike(int64_t s) { return s == 700 ? 1e30 : falling(s); }
static double huge(int64_t s) { return 1e300 * (double)(s % 3 - 1); }
static double never_finite(int64_t s) { return NAN; }
static double sometimes_nan(int64_t s) { return s % 10 < 3 ? NAN : falling(s); }
static double far_away(int64_t s) { return s == 3 ? NAN : -1e304 / (double)s; }
static double tiny(int64_t s) { return 1e-310 * (double)s; }

static char *plot(const struct curve *c, const char *title) {
    const char *log = in_scratch("%s.jsonl", c->name), *svg = in_scratch("%s.svg", c->name);
    char line[LOG_LINE_MAX];
    FILE *f = fopen(log, "w");
    assert_non_null(f);
    for (int64_t i = 1; i <= c->steps; i++) {
        double loss = c->loss(i);
        log_row_print(line, &(struct log_row){false, i, 0, loss, 3e-4 / (double)i, 1, !isfinite(loss)});
        fputs(line, f);
        if (!c->validate_every || i % c->validate_every) continue;
        log_row_print(line, &(struct log_row){.validation = true, .step = i, .loss = c->loss(i) + 0.01});
        fputs(line, f);
    }
    fclose(f);
    struct error err = {""};
    if (!plot_log(svg, log, title, c->floor, &err)) fail_msg("%s", err.message);
    char *text = get_text(svg);
    assert_svg(text);
    return text;
}

static void every_curve_gives_a_sound_picture(void **state) {
    static const struct curve curves[] = {
        {"falling", 1000, falling, 100, 1.25},
        {"ten", 10, falling, 5, 1.25},
        {"one", 1, falling, 0, NAN},
        {"none", 0, falling, 0, 1},
        {"constant", 100, constant, 10, 2},
        {"zero", 50, zero, 5, 0},
        {"spike", 1500, with_spike, 50, 1.25},
        {"huge", 90, huge, 9, NAN},
        {"never", 40, never_finite, 4, NAN},
        {"gaps", 3000, sometimes_nan, 7, 1.2},
        {"tiny", 70, tiny, 7, NAN},
        {"floor", 100, falling, 10, 1e308},
        {"far", 20, far_away, 5, 1e-3},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(curves); i++) {
        char *text = plot(&curves[i], curves[i].name);
        assert_mentions(text, ">loss (nats per token)<");
        assert_mentions(text, ">learning rate<");
        assert_mentions(text, ">optimizer step<");
        free(text);
    }
}

static void the_picture_says_what_is_in_the_log(void **state) {
    struct curve c = {"run", 1000, with_spike, 100, 1.25};
    char *text = plot(&c, "a<b>&\"c\xC3\xA9\xFF\x01");
    assert_mentions(text, ">a&#60;b&#62;&#38;&#34;c\xC3\xA9?\?</text>");
    assert_mentions(text, ">floor 1.2500</text>");
    assert_mentions(text, ">val 1.4200</text>"); /* 1.3 + 0.01 * (7919000 % 13 = 11) + 0.01 */
    assert_mentions(text, ">validation</text>");
    assert_mentions(text, "after step 1,000");
    assert_mentions(text, "validation loss 13.6 % above the floor");
    assert_mentions(text, "up to 1e+30");
    assert_int_equal(count_of(text, "fill=\"#d2500a\" stroke"), 10); /* a marker for each validation */
    assert_null(strstr(text, "update skipped"));
    free(text);
    c = (struct curve){"gaps", 1000, sometimes_nan, 0, NAN};
    text = plot(&c, "run");
    assert_mentions(text, ">update skipped</text>");
    assert_mentions(text, "300 updates skipped");
    assert_null(strstr(text, ">floor"));
    free(text);
}

/* 2, and one step of 3 and one of 0.5, among 300,000. */
static double needles(int64_t s) { return s == 150001 ? 3 : s == 200001 ? 0.5 : 2; }

static void no_spike_gets_lost_in_a_long_run(void **state) {
    struct curve c = {"long", 300000, needles, 100, NAN};
    /* 5 % above and below are all 2: the axis would stop at 2.2 and hide the spike; a floor makes room for
     * it. */
    c.floor = 3.5;
    char *text = plot(&c, "long");
    assert_true(strlen(text) < 200000);
    double top = INFINITY, bottom = 0;
    const char *raw = strstr(text, "stroke=\"#a9cbf0\" stroke-width");
    assert_non_null(raw);
    for (const char *p = strstr(raw, " d=\"") + 4; *p != '"';) {
        double x, y;
        int n = 0;
        assert_int_equal(sscanf(p, "%*[ML]%lf %lf%n", &x, &y, &n), 2);
        top = fmin(top, y);
        bottom = fmax(bottom, y);
        p += n;
    }
    /* The range is 0.5 to 3.5 with 4 % around it: 3 lies at 83.3 %, 0.5 at 0 % of it. */
    assert_float_equal(top, 436 - (436 - 100) * (2.5 / 3 + 0.04) / 1.08, 0.1);
    assert_float_equal(bottom, 436 - (436 - 100) * 0.04 / 1.08, 0.1);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(every_curve_gives_a_sound_picture),
        SCRATCH_TEST(the_picture_says_what_is_in_the_log),
        SCRATCH_TEST(no_spike_gets_lost_in_a_long_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
