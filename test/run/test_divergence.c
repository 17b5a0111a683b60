/* Outliers and divergence: which updates are skipped is worked out a second time from log.jsonl, a run that
 * meets bad data goes back and past it, and all of it is the same after a kill. */
#include "test/program.h"

#include "llmc/corpus/shard.h"
#include "llmc/report/log_file.h"
#include "llmc/run/guard.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Shards in their order: words, with noise in between from the 200th step on. */
enum { STEP_TOKENS = 64, STEPS = 320, NOISE = 200 };
#define MODEL                                                                                                \
    "--data 'noisy_?.bin' --layers 1 --channels 16 --heads 2 --context 32 --vocab-size 300 "                 \
    "--threads 1 --device cpu --steps 320 --save-every 25 --learning-rate 5e-3 --no-shuffle --seed 3 "
#define RUN "$T --batch-size 2 " MODEL

static void put_shard(const char *name, int64_t from, int64_t to, int noise_steps) {
    int64_t count = (to - from) * STEP_TOKENS;
    uint32_t *tokens = (uint32_t *)xmalloc((size_t)count * sizeof *tokens), random = 1;
    struct error err;
    for (int64_t i = 0; i < count; i++) {
        int64_t step = from + i / STEP_TOKENS;
        random = random * 1664525u + 1013904223u;
        bool noise = step >= NOISE && step < NOISE + noise_steps;
        tokens[i] = noise ? (random >> 8) % 300 : (uint32_t)(random >> 24) % 10 < 3 ? 7 : (uint32_t)(i % 11);
    }
    if (!shard_write(in_scratch("%s", name), tokens, count, 300, &err)) fail_msg("%s", err.message);
    free(tokens);
}

static int set_up(void **state) {
    if (make_scratch(state) != 0) return -1;
    put_shard("noisy_0.bin", 0, STEPS + 1, 12);
    return 0;
}

/* The rows of the steps in RUN/log.jsonl. The caller frees. */
static struct log_row *rows_of(const char *run, int64_t *count) {
    char *text = get_text(in_scratch("%s/log.jsonl", run));
    struct log_row *rows = (struct log_row *)xcalloc(4096, sizeof *rows);
    *count = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        assert_true(log_row_parse(&rows[*count], line, (int64_t)strlen(line)));
        if (!rows[*count].validation) ++*count;
    }
    free(text);
    return rows;
}

/* --- outliers --- */

/* By the formulas, with nothing kept from step to step. */
static bool is_outlier(const struct log_row *rows, int64_t at, double z) {
    double mean[2] = {0, 0}, var[2] = {0, 0};
    for (int pass = 0; pass < 2; pass++) {
        int64_t seen = 0;
        for (int64_t i = at - 2; i >= 0 && seen < 128; i--) {
            if (rows[i].skipped) continue;
            double v[2] = {rows[i].loss, rows[i].grad_norm};
            for (int k = 0; k < 2; k++)
                if (pass)
                    var[k] += (v[k] - mean[k]) * (v[k] - mean[k]) / 128.0;
                else
                    mean[k] += v[k] / 128.0;
            seen++;
        }
        if (seen < 128) return false;
    }
    return rows[at].loss > mean[0] + z * sqrt(var[0]) || rows[at].grad_norm > mean[1] + z * sqrt(var[1]);
}

static void outliers_are_skipped_and_kept_out(void **state) {
    static const char *const options[] = {"--batch-size 2", "--ranks 2 --batch-size 1",
                                          "--batch-size 2 --optimizer muon",
                                          "--batch-size 2 --optimizer lion"};
    for (size_t k = 0; k < ARRAY_LENGTH(options); k++) {
        expect_command(0, "standard deviations above the mean", "$T " MODEL "--skip-outliers 5 --out run %s",
                       options[k]);
        int64_t count, skipped = 0;
        struct log_row *rows = rows_of("run", &count);
        assert_int_equal(count, STEPS);
        for (int64_t i = 0; i < count; i++) {
            if (rows[i].skipped != is_outlier(rows, i, 5))
                fail_msg("step %d: skipped %d", (int)i + 1, rows[i].skipped);
            skipped += rows[i].skipped;
            if (rows[i].skipped) assert_true(isfinite(rows[i].grad_norm));
            if (i >= NOISE && i < NOISE + 12) assert_true(rows[i].skipped);
        }
        assert_true(skipped < 30);
        free(rows);
        expect_command(0, "", "rm -r run");
    }
}

/* A skipped update leaves weights and moments as they are: after it, the loss is that of before. */
static void resumed_runs_skip_the_same(void **state) {
    expect_command(0, "", RUN "--skip-outliers 5 --out whole >/dev/null 2>&1");
    expect_command(0, "",
                   RUN "--skip-outliers 5 --max-time 0.001s --out run >/dev/null 2>&1; "
                       "for n in 130 160 202 207 230; do $T --resume --out run >/dev/null 2>&1 & "
                       "until [ $(wc -l <run/log.jsonl) -gt $n ]; do kill -0 $! || break; done 2>/dev/null; "
                       "kill -TERM $!; wait $!; done; $T --resume --out run >/dev/null 2>&1");
    expect_command(0, "",
                   "cmp whole/log.jsonl run/log.jsonl && for f in model optimizer; do "
                   "cmp whole/step-00000320/$f.safetensors run/step-00000320/$f.safetensors || exit 1; done");
    expect_command(0, "", "rm -r run whole");
}

/* --- going back --- */

static void diverged_runs_go_back_and_past_it(void **state) {
    put_shard("noisy_0.bin", 0, STEPS + 60, 26);
    struct ran r = run_command(RUN "--rollback 2 --keep 3 --out run");
    if (r.status) fail_msg("%s%s", r.out, r.err);
    assert_mentions(r.out, "warning: 20 steps in a row went wrong, up to step 220: training goes on from "
                           "run/step-00000200, with the data behind that step (rollback 1 of 2)");
    int64_t count;
    struct log_row *rows = rows_of("run", &count);
    assert_int_equal(count, STEPS);
    /* six more steps of noise, and then the words behind it */
    for (int64_t i = 0; i < count; i++) {
        assert_int_equal(rows[i].step, i + 1);
        if (i > 150) assert_true((rows[i].loss > 3.0) == (i >= 200 && i < 206));
    }
    free(rows);
    /* the same, killed after it has gone back, before and after the next checkpoint */
    expect_command(0, "",
                   RUN
                   "--rollback 2 --keep 3 --max-time 0.001s --out again >/dev/null 2>&1; "
                   "for n in 210 204 240; do $T --resume --out again >said 2>&1 & "
                   "until [ $(wc -l <again/log.jsonl) -gt $n ]; do kill -0 $! || break; done 2>/dev/null; "
                   "kill -KILL $!; wait $!; done; $T --resume --out again >/dev/null 2>&1");
    expect_command(0, "",
                   "cmp run/log.jsonl again/log.jsonl && for f in model optimizer; do "
                   "cmp run/step-00000320/$f.safetensors again/step-00000320/$f.safetensors || exit 1; done");
    expect_command(0, "", "rm -r run again");
}

static void rollbacks_are_counted(void **state) {
    put_shard("noisy_0.bin", 0, STEPS + 60, 200);
    struct ran r = run_command("$T --ranks 2 --batch-size 1 " MODEL "--rollback 2 --out run");
    assert_int_equal(r.status, 1);
    assert_mentions(r.out, "(rollback 2 of 2)");
    assert_mentions(r.err, "20 steps in a row, the last of them step 220");
    assert_mentions(r.err, "after 2 rollbacks (--rollback); the last checkpoint is run/step-00000200");
    expect_command(0, "", "! ls -d run/step-0000022* && rm -r run");
    /* without --rollback a loss that is far above ends no run */
    expect_command(0, "", RUN "--out run && ! grep -q true run/log.jsonl && rm -r run");
    /* with nothing to go back to */
    expect_command(1, "has no checkpoint from before the steps that went wrong",
                   "$T --data noisy_0.bin --layers 1 --channels 16 --heads 2 --context 32 --vocab-size 300 "
                   "--batch-size 2 --threads 1 --device cpu --steps 400 --learning-rate 100 --warmup 0 "
                   "--weight-decay 100 --rollback 3 --save-every 1000 --out run");
    expect_command(0, "", "rm -r run");
    put_shard("noisy_0.bin", 0, STEPS + 1, 12);
}

/* --- the window --- */

static void the_window_survives_a_checkpoint(void **state) {
    struct guard a = {.count = 0}, b;
    for (int64_t step = 1; step <= 300; step++) {
        struct guard_limits x = guard_limits_of(&a, step, 3);
        assert_true(isfinite(x.max_loss) == (step > 129));
        guard_add(&a, step, 3.0 + 0.1 * (double)(step * 7 % 11), 1.0 / (double)(1 + step % 5));
        if (step % 37) continue;
        json_t *stored = guard_to_json(&a);
        assert_true(guard_from_json(&b, stored));
        for (int64_t later = step + 1; later < step + 3; later++) {
            struct guard copy = a;
            x = guard_limits_of(&copy, later, 3);
            struct guard_limits y = guard_limits_of(&b, later, 3);
            assert_memory_equal(&x, &y, sizeof x);
        }
        json_object_set_new(stored, "norm", json_array());
        assert_int_equal(guard_from_json(&b, stored), step < 3);
        json_decref(stored);
    }
    /* values that are all the same have no limit */
    a = (struct guard){.count = 0};
    for (int64_t step = 1; step <= 200; step++) {
        assert_true(isinf(guard_limits_of(&a, step, 3).max_loss));
        guard_add(&a, step, 2.0, 1.0);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outliers_are_skipped_and_kept_out), cmocka_unit_test(resumed_runs_skip_the_same),
        cmocka_unit_test(diverged_runs_go_back_and_past_it), cmocka_unit_test(rollbacks_are_counted),
        cmocka_unit_test(the_window_survives_a_checkpoint),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}
