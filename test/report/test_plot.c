/* loss.svg: well-formed XML for every curve, and the picture shows the contents of the log. */
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

/* Tags closed in order, attributes quoted, no markup characters in text, no number that is not finite. */
static void assert_svg(const char *text) {
    char open[8][16], name[16];
    int depth = 0;
    for (const char *p = text; *p; p++) {
        if (*p == '&') assert_true(p[1] == '#');
        assert_true((unsigned char)*p >= ' ' || *p == '\n');
        if (*p != '<') continue;
        const char *end = p + 1 + strcspn(p + 1, "<>");
        int quotes = 0;
        for (const char *q = p; q < end; q++) quotes += *q == '"';
        assert_true(*end == '>' && quotes % 2 == 0);
        assert_int_equal(sscanf(p + 1, "%15[/a-zA-Z]", name), 1);
        if (name[0] == '/')
            assert_string_equal(open[--depth], name + 1);
        else if (end[-1] != '/')
            snprintf(open[depth++], sizeof open[0], "%s", name);
        assert_true(depth >= 0 && depth < 8);
    }
    assert_int_equal(depth, 0);
    static const char *const never[] = {"nan", "inf", "script", "\">-0<"};
    for (size_t i = 0; i < ARRAY_LENGTH(never); i++) assert_null(strstr(text, never[i]));
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
        assert_mentions(text, ">optimizer step<");
        free(text);
    }
}

static void the_picture_says_what_is_in_the_log(void **state) {
    struct curve c = {"run", 1000, with_spike, 100, 1.25};
    char *text = plot(&c, "a<b>&\"c\xC3\xA9\xFF\x01\xED\xA0\x80");
    assert_mentions(text, ">a&#60;b&#62;&#38;&#34;c&#233;?\?\?\?\?</text>");
    assert_mentions(text, ">floor 1.2500</text>");
    assert_mentions(text, ">validation 1.4200</text>"); /* 1.3 + 0.01 * (7919000 % 13 = 11) + 0.01 */
    assert_mentions(text, ">1.5</text>");
    assert_mentions(text, ">800</text>");
    assert_int_equal(count_of(text, "h0"), 1 + 1 + 10); /* both lines; a dot for each validation */
    assert_null(strstr(text, "#c92a2a"));
    free(text);
    c = (struct curve){"gaps", 300, sometimes_nan, 0, NAN};
    text = plot(&c, "run");
    assert_int_equal(count_of(text, "#c92a2a"), 90);
    assert_int_equal(count_of(text, "h0"), 30); /* the line has 30 parts */
    assert_null(strstr(text, ">floor"));
    free(text);
}

/* Where training, validation and floor nearly coincide, their labels still stand a line apart. */
static void labels_do_not_collide(void **state) {
    struct curve c = {"close", 500, constant, 100, 1.999};
    char *text = plot(&c, "close");
    static const char *const names[] = {">train", ">validation", ">floor"};
    double y[3];
    for (int i = 0; i < 3; i++) {
        const char *at = strstr(text, names[i]);
        assert_non_null(at);
        while (strncmp(at, "y=\"", 3)) at--;
        y[i] = strtod(at + 3, NULL);
    }
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < i; k++) assert_true(fabs(y[i] - y[k]) >= 15);
    free(text);
}

/* 2, and one step of 3 and one of 0.5, among 300,000. */
static double needles(int64_t s) { return s == 150001 ? 3 : s == 200001 ? 0.5 : 2; }

static void no_spike_gets_lost_in_a_long_run(void **state) {
    /* The axis would stop at 2.2 and cut the spike off; a floor above makes room for it. */
    struct curve c = {"long", 300000, needles, 100, 3.5};
    char *text = plot(&c, "long");
    assert_true(strlen(text) < 200000);
    double top = INFINITY, bottom = 0, from, to;
    int band = 0;
    for (const char *p = text; (p = strstr(p, "#a9cbf0")); p++, band++) {
        assert_int_equal(sscanf(p, "#a9cbf0\" d=\"M%*d %lfV%lf\"", &from, &to), 2);
        top = fmin(top, to);
        bottom = fmax(bottom, from);
    }
    assert_int_equal(band, 760); /* the last column has one step */
    /* The axis goes from 0.5 to 3.5 with 4 % of that around it, on 404 pixels. */
    assert_float_equal(top, 484 - 404 * (2.5 / 3 + 0.04) / 1.08, 0.1);
    assert_float_equal(bottom, 484 - 404 * 0.04 / 1.08, 0.1);
    free(text);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(every_curve_gives_a_sound_picture),
        SCRATCH_TEST(the_picture_says_what_is_in_the_log),
        SCRATCH_TEST(labels_do_not_collide),
        SCRATCH_TEST(no_spike_gets_lost_in_a_long_run),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
