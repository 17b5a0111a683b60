/* The history of a run, read from its logs: the points that stand for many rows, and rows that are taken back. */
#include "test/scratch.h"

#include "test/report/logged_run.h"

#include "llmc/report/history.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Every stretch, at every number of points: a second computation of what a point stands for. */
static void points_stand_for_their_rows(void **state) {
    struct history h;
    make_run("a", 173, "1e-3");
    history_open(&h, in_scratch("a"));
    history_update(&h);
    for (int64_t wanted = 1; wanted < 200; wanted += 13)
        for (int64_t from = 0; from < 173; from += 31) {
            struct history_points p;
            int64_t row = max_i64(1, from - 1), last = min_i64(173, from + 41);
            history_points(&p, &h, HISTORY_LOSS, (double)from, (double)from + 40, wanted);
            assert_true(p.count <= wanted);
            for (int64_t i = 0; i < p.count; i++) {
                double low = INFINITY, high = -INFINITY, sum = 0.0;
                assert_int_equal(p.step[i], row + p.rows[i] - 1);
                for (int64_t k = 0; k < p.rows[i]; k++, row++) {
                    low = fmin(low, loss_at(row));
                    high = fmax(high, loss_at(row));
                    sum += loss_at(row);
                }
                assert_true(fabs(p.min[i] - low) < 1e-8 && fabs(p.max[i] - high) < 1e-8);
                assert_true(fabs(p.mean[i] - sum / (double)p.rows[i]) < 1e-8);
            }
            assert_int_equal(row, last + 1);
            history_points_free(&p);
        }
    FILE *timing = open_log("a", "timing.jsonl", "a"); /* 2 steps of 1000 tokens in 4 s and 0.1 s */
    fputs(
        "{\"step\":174,\"seconds\":4,\"tokens_per_second\":250}\n{\"step\":175,\"seconds\":0.1,\"tokens_per_second\":10000}\n",
        timing);
    fclose(timing);
    history_update(&h);
    struct history_points rate;
    history_points(&rate, &h, HISTORY_TOKENS_PER_SECOND, 175, 175, 1);
    assert_int_equal(rate.count, 1);
    assert_true(fabs(rate.mean[0] - 2000.0 / 4.1) < 1e-9);
    history_points_free(&rate);
    assert_true(fabs(history_time(&h, 100.5) - 50.25) < 1e-9);
    assert_true(history_step_at(&h, 50.0) == 100.0);
    history_close(&h);
}

/* Resumed: the file is cut and goes on with other rows, between two looks at it. And a row of an earlier
 * step, which no run writes, takes the place of what came after it. */
static void rows_that_are_taken_back(void **state) {
    struct history h;
    make_run("a", 50, "1e-3");
    history_open(&h, in_scratch("a"));
    history_update(&h);
    assert_int_equal(history_last_step(&h), 50);
    char *text = get_text(in_scratch("a/log.jsonl"));
    assert_int_equal(truncate(in_scratch("a/log.jsonl"), strstr(text, "{\"step\":31,") - text), 0);
    free(text);
    FILE *log = open_log("a", "log.jsonl", "a");
    for (int s = 31; s <= 80; s++)
        fprintf(log, "{\"step\":%d,\"epoch\":1,\"loss\":7,\"lr\":1,\"grad_norm\":1,\"skipped\":false}\n", s);
    fclose(log);
    history_update(&h);
    struct history_points p;
    history_points(&p, &h, HISTORY_LOSS, 0, INFINITY, 1000);
    assert_int_equal(p.count, 80);
    for (int s = 1; s <= 80; s++) {
        assert_int_equal(p.step[s - 1], s);
        assert_true(fabs(p.mean[s - 1] - (s <= 30 ? loss_at(s) : 7.0)) < 1e-8);
    }
    history_points_free(&p);
    log = open_log("a", "log.jsonl", "a");
    fputs("{\"step\":60,\"loss\":8}\n{\"step\":61,\"loss\":}\n{\"step\":62,\"loss\":-}\n", log);
    fclose(log);
    history_update(&h);
    assert_int_equal(history_last_step(&h), 60);
    assert_true(history_last(&h, HISTORY_LOSS) == 8.0);
    assert_int_equal(h.unreadable, 2);
    history_points(&p, &h, HISTORY_LOSS, 0, INFINITY, 1000);
    assert_int_equal(p.count, 60);
    history_points_free(&p);
    history_close(&h);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(points_stand_for_their_rows),
        SCRATCH_TEST(rows_that_are_taken_back),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
