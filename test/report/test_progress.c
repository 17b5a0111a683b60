/* The progress line: it fits every width, drops the least important first, and keeps its columns. */
#include "test/scratch.h"

#include "llmc/report/progress.h"

#include <math.h>
#include <string.h>

static struct progress an_example(void) {
    return (struct progress){.step = 42,
                             .steps = 5000,
                             .epoch = 0.42,
                             .loss = 3.14159,
                             .val_loss = 3.2,
                             .floor_loss = 1.25,
                             .lr = 3e-4,
                             .grad_norm = 0.7,
                             .tokens_per_second = 12345,
                             .flops_per_second = 3.2e11,
                             .peak_flops = 4.5e11,
                             .eta = 754};
}

static void the_line_fits_every_width(void **state) {
    struct progress p = an_example();
    char line[PROGRESS_MAX];
    for (int bad = 0; bad < 2; bad++) {
        for (int columns = 1; columns <= 600; columns++) {
            int n = progress_line(line, &p, columns);
            assert_int_equal(n, strlen(line));
            if (n >= columns) fail_msg("%d characters in %d columns: %s", n, columns, line);
            for (int i = 0; i < n; i++) assert_true(line[i] >= ' ' && line[i] <= '~');
            if (columns > (bad ? 46 : 14))
                assert_mentions(line, bad ? "/9223372036854775807" : "step   42/5000");
        }
        /* The longest that values can become. */
        p = (struct progress){INT64_MIN + 1, INT64_MAX, -1e300, -1e300, -1e300, -1e300, -1e-300,
                              1e300,         INT64_MAX, 1e300,  1e300,  1,      1e8};
        if (bad == 0) p.step = INT64_MAX;
    }
}

static void the_line_says_everything_when_there_is_room(void **state) {
    struct progress p = an_example();
    char line[PROGRESS_MAX];
    progress_line(line, &p, 0);
    assert_string_equal(
        line,
        "step   42/5000  epoch   0.42  loss  3.1416  val  3.2000  floor 1.2500  lr 3.00e-04  norm  0.7000  "
        "12.3k tok/s   320 GFLOP/s  71% of peak  eta 12m34s");
    progress_line(line, &p, 250);
    assert_true(line[0] == '[');
    assert_mentions(line, "]  step   42/5000  epoch   0.42  loss  3.1416");
    /* A narrow one keeps what matters. */
    progress_line(line, &p, 45);
    assert_string_equal(line, "step   42/5000  loss  3.1416  eta 12m34s");
    p.loss = NAN, p.skipped = 3;
    progress_line(line, &p, 0);
    assert_mentions(line, "loss     nan");
    assert_mentions(line, "skipped 3");
    p.step = 5000;
    progress_line(line, &p, 26);
    assert_string_equal(line, "[=======]  step 5000/5000");
}

static void columns_keep_their_places(void **state) {
    struct progress p = an_example();
    static const double losses[] = {3.5, 10.25, 0.0001, 99.9999, 123.456, 54321.5, 1e9, 1e300, NAN, INFINITY};
    static const double rates[] = {1,     99.94, 99.96,  999.4,  999.6, 1234,
                                   99949, 99951, 999499, 999501, 1e7,   1e15};
    char line[PROGRESS_MAX];
    int expected = progress_line(line, &p, 0);
    for (size_t i = 0; i < ARRAY_LENGTH(losses); i++) {
        p.loss = p.grad_norm = losses[i];
        p.val_loss = isnan(losses[i]) ? 1 : losses[i]; /* NAN: not known */
        assert_int_equal(progress_line(line, &p, 0), expected);
    }
    for (size_t i = 0; i < ARRAY_LENGTH(rates); i++) {
        p.tokens_per_second = rates[i];
        if (strlen(progress_count(rates[i])) != 5)
            fail_msg("%g is \"%s\"", rates[i], progress_count(rates[i]));
        assert_int_equal(progress_line(line, &p, 0), expected);
    }
    assert_string_equal(progress_duration(59.6), "1m00s");
    assert_string_equal(progress_duration(3600 * 3 + 61), "3h01m");
    assert_string_equal(progress_duration(86400 * 2 + 3600 * 3), "2d03h");
    assert_string_equal(progress_duration(NAN), "-");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_line_fits_every_width),
        cmocka_unit_test(the_line_says_everything_when_there_is_room),
        cmocka_unit_test(columns_keep_their_places),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
