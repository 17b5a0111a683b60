/* The logger: rows, files of interrupted and resumed runs, full disks, the terminal. A
 * full disk is a limit on file sizes with SIGXFSZ ignored; the terminal is a pseudo-terminal whose output a
 * small emulator turns back into a screen. */
#include "test/scratch.h"

#include "llmc/base/file.h"
#include "llmc/report/log_file.h"
#include "llmc/report/logger.h"
#include "llmc/report/progress.h"
#include "llmc/base/rng.h"

#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int count_of(const char *text, const char *part) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, part)); p += strlen(part)) n++;
    return n;
}

/* Redirects descriptor `fd` (at most a pipe's 64 KiB) into a pipe until capture_end, which returns the
 * text. Not into a file, because some tests limit file sizes. */
struct capture {
    int fd, saved, pipe;
};

static void capture_begin(struct capture *c, int fd) {
    int ends[2];
    fflush(NULL);
    assert_int_equal(pipe(ends), 0);
    *c = (struct capture){fd, dup(fd), ends[0]};
    dup2(ends[1], fd);
    close(ends[1]);
}

static char *capture_end(struct capture *c) {
    fflush(NULL);
    dup2(c->saved, c->fd);
    close(c->saved);
    char *text = xcalloc(1, 1 << 17);
    size_t size = 0;
    for (ssize_t n; (n = read(c->pipe, text + size, (1 << 17) - 1 - size)) > 0;) size += (size_t)n;
    close(c->pipe);
    return text;
}

/* --- rows --- */

static void assert_same_double(double a, double b) {
    if (memcmp(&a, &b, sizeof a) != 0) fail_msg("%.17g became %.17g", a, b);
}

static void rows_read_back_exactly(void **state) {
    const double special[] = {0,       -0.0,     1,       -1,           0.1,  1.0 / 3,
                              DBL_MAX, -DBL_MAX, DBL_MIN, DBL_TRUE_MIN, 1e22, 3e-4};
    for (uint64_t i = 0; i < 20000; i++) {
        double v[4];
        for (uint64_t k = 0; k < 4; k++) {
            struct rng4 r = rng_philox(7, RNG_TEST, 4 * i + k);
            uint64_t bits = (uint64_t)r.v[0] << 32 | r.v[1];
            memcpy(&v[k], &bits, sizeof bits);
            if (i < 12) v[k] = special[(i + k) % 12];
            if (!isfinite(v[k])) v[k] = 0.5;
        }
        struct log_row row = {false, (int64_t)(i * i * i), v[0], v[1], v[2], v[3], i % 2}, back;
        char line[LOG_LINE_MAX];
        int n = log_row_print(line, &row);
        assert_int_equal(n, strlen(line));
        assert_int_equal(line[n - 1], '\n');
        if (!log_row_parse(&back, line, n - 1)) fail_msg("not read: %s", line);
        assert_false(back.validation);
        assert_int_equal(back.step, row.step);
        assert_int_equal(back.skipped, row.skipped);
        assert_same_double(back.epoch, v[0]);
        assert_same_double(back.loss, v[1]);
        assert_same_double(back.lr, v[2]);
        assert_same_double(back.grad_norm, v[3]);
        row = (struct log_row){.validation = true, .step = 5, .loss = v[0]};
        n = log_row_print(line, &row);
        assert_true(log_row_parse(&back, line, n - 1) && back.validation);
        assert_same_double(back.loss, v[0]);
    }
}

static void the_form_of_rows(void **state) {
    char line[LOG_LINE_MAX];
    log_row_print(line, &(struct log_row){false, 12, 0.5, 2.25, 3e-4, NAN, true});
    assert_string_equal(
        line,
        "{\"step\":12,\"epoch\":0.5,\"loss\":2.25,\"lr\":0.0003,\"grad_norm\":null,\"skipped\":true}\n");
    log_row_print(line, &(struct log_row){false, 12, 0.5, INFINITY, 3e-4, -INFINITY, false});
    assert_string_equal(
        line,
        "{\"step\":12,\"epoch\":0.5,\"loss\":null,\"lr\":0.0003,\"grad_norm\":null,\"skipped\":false}\n");
    log_row_print(line, &(struct log_row){.validation = true, .step = 100, .loss = 0.1});
    assert_string_equal(line, "{\"step\":100,\"val_loss\":0.1}\n");
    struct log_row row;
    assert_true(log_row_parse(&row, "{\"step\":3,\"val_loss\":null}", 26) && isnan(row.loss));
}

static void what_is_no_row_is_refused(void **state) {
    static const char *const bad[] = {
        "",
        "{",
        "{}",
        "null",
        "{\"step\":}",
        "{\"step\":1}",
        "{\"step\":-1,\"val_loss\":1}",
        "{\"step\":1,\"val_loss\":1",
        "{\"step\":1,\"val_loss\":1} ",
        "{\"step\":1,\"val_loss\":nan}",
        "{\"step\":1,\"val_loss\":0x1p3}",
        "{\"step\":1,\"val_loss\": 1}",
        "{\"step\":1,\"val_loss\":1e999}",
        "{\"step\":99999999999999999999,\"val_loss\":1}",
        "{\"step\":1,\"val_loss\":}",
        "{\"step\":1,\"epoch\":1,\"loss\":1,\"lr\":1,\"grad_norm\":1,\"skipped\":maybe}",
        "{\"step\":1,\"epoch\":1,\"loss\":1,\"lr\":1,\"grad_norm\":1}"};
    struct log_row row;
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
        if (log_row_parse(&row, bad[i], (int64_t)strlen(bad[i]))) fail_msg("accepted: %s", bad[i]);
    assert_false(log_row_parse(&row, "{\"step\":1,\"val_loss\":1\0}", 24));
    char longest[2 * LOG_LINE_MAX];
    memset(longest, '1', sizeof longest);
    assert_false(log_row_parse(&row, longest, sizeof longest));
}

/* --- files of interrupted and resumed runs --- */

enum { STEPS = 24, VALIDATE_EVERY = 4 };

static struct log_options options_for(const char *out, int64_t resumed) {
    return (struct log_options){.out = out,
                                .steps = STEPS,
                                .resumed_step = resumed,
                                .tokens_per_step = 1000,
                                .flops_per_token = 1e6,
                                .peak_flops = 1e12,
                                .floor_loss = 1.25,
                                .quiet = true};
}

static struct logger *open_or_fail(const struct log_options *o) {
    struct error err = {""};
    struct logger *l = logger_open(o, &err);
    if (!l) fail_msg("%s", err.message);
    return l;
}

/* The row of step `s` in any run with these weights: numbers with many digits, some of them not finite. */
static void log_one_step(struct logger *l, int64_t s) {
    logger_step(l, &(struct log_step){.step = s,
                                      .epoch = (double)s / 7,
                                      .loss = s == 9 ? NAN : 1.2 + 3 / (double)s,
                                      .lr = 1e-3 / (double)s,
                                      .grad_norm = sqrt((double)s),
                                      .skipped = s == 9,
                                      .seconds = 0.25});
    if (s % VALIDATE_EVERY == 0) logger_validation(l, s, 1.3 + 2 / (double)s, 0);
}

static void log_steps(const char *out, int64_t resumed, int64_t last) {
    struct log_options o = options_for(out, resumed);
    struct logger *l = open_or_fail(&o);
    /* A driver may validate again at the step where it resumes; that must not leave a second row. */
    if (resumed && resumed % VALIDATE_EVERY == 0) logger_validation(l, resumed, 1.3 + 2 / (double)resumed, 0);
    for (int64_t s = resumed + 1; s <= last; s++) log_one_step(l, s);
    logger_sync(l);
    logger_close(l);
}

static void append(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "ab");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    fclose(f);
}

static void what_the_gpu_says(void **state) {
    const char *out = in_scratch("gpu");
    struct log_options o = options_for(out, 0);
    struct logger *l = open_or_fail(&o);
    logger_gpu(l, 3, &(struct nvml_reading){412.5, 61, 1830, 0.75, NULL, false});
    logger_gpu(l, 4, &(struct nvml_reading){NAN, NAN, 1200, NAN, "the power limit", true});
    logger_close(l);
    char *got = get_text("gpu/timing.jsonl");
    assert_string_equal(got, "{\"step\":3,\"gpu_watts\":412.5,\"gpu_celsius\":61,\"gpu_sm_mhz\":1830,"
                             "\"gpu_utilisation\":0.75,\"gpu_slowed\":null}\n"
                             "{\"step\":4,\"gpu_watts\":null,\"gpu_celsius\":null,\"gpu_sm_mhz\":1200,"
                             "\"gpu_utilisation\":null,\"gpu_slowed\":\"the power limit\"}\n");
    free(got);
}

static void a_resumed_log_equals_an_uninterrupted_one(void **state) {
    const char *whole = in_scratch("deep/er/whole"), *torn = in_scratch("torn"), *file;
    log_steps(whole, 0, STEPS);
    file = in_scratch("deep/er/whole/log.jsonl");
    char *expected = get_text(file);
    assert_int_equal(count_of(expected, "\n"), STEPS + STEPS / VALIDATE_EVERY);
    file = in_scratch("deep/er/whole/timing.jsonl");
    char *timing = get_text(file);
    assert_mentions(timing, "{\"step\":24,\"seconds\":0.25,\"tokens_per_second\":4000,\"flops_per_second\":"
                            "4e+09,\"flops_share\":0.004}\n");
    static const char tail[] = "{\"step\":14,\"epoch\":0.25,\"lo";
    for (int64_t died = 1; died < STEPS; died++) {
        int64_t saved = max_i64(1, died - died % 5); /* the checkpoint may be older than the log */
        log_steps(torn, 0, died);
        file = in_scratch("torn/log.jsonl");
        if (died % 3) append(file, tail, (size_t)(died % 27));
        if (died % 4 == 3)
            append(file, "\0\0\0\0\0\0\0\n\0\0", 10); /* blocks that were allocated, not written */
        log_steps(torn, saved, STEPS);
        char *got = get_text(file);
        assert_string_equal(got, expected);
        free(got);
        file = in_scratch("torn/timing.jsonl");
        got = get_text(file);
        assert_string_equal(got, timing);
        free(got);
    }
    free(expected);
    free(timing);
}

static void cutting_stops_at_the_first_damaged_row(void **state) {
    static const struct {
        const char *content;
        int64_t size, kept;
    } cases[] = {
        {"", 0, 0},
        {"{\"step\":1}", 10, 0}, /* no newline: torn, though it looks whole */
        {"{\"step\":1}\n", 11, 11},
        {"{\"step\":1}\n{\"step\":2,\"l\n{\"step\":3}\n", 35, 11},
        {"{\"step\":1}\n\n{\"step\":3}\n", 23, 11},
        {"{\"step\":1}\n{\"step\":6}\n{\"step\":2}\n", 33, 11},
        {"{\"step\":1}\n{\"step\":5}\n{\"stop\":5}\n", 33, 22},
        {"\0\n{\"step\":1}\n", 13, 0},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct log_file f;
        struct error err = {""};
        unlink(in_scratch("log"));
        append(in_scratch("log"), cases[i].content, (size_t)cases[i].size);
        if (!log_file_open(&f, in_scratch("log"), 5, &err)) fail_msg("%s", err.message);
        if (f.size != cases[i].kept) fail_msg("case %zu: kept %d bytes", i, (int)f.size);
        log_file_put(&f, "{\"step\":6}\n", 11);
        log_file_close(&f);
        char *text = get_text("log");
        assert_int_equal(strlen(text), cases[i].kept + 11);
        free(text);
    }
}

static void missing_rows_are_reported(void **state) {
    struct capture c;
    const char *out;
    out = in_scratch("run");
    log_steps(out, 0, 6);
    capture_begin(&c, STDERR_FILENO);
    log_steps(out, 10, 12);
    char *text = capture_end(&c);
    assert_mentions(text, "holds the steps up to 6, but training goes on after step 10");
    free(text);
}

static void two_processes_cannot_write_one_run(void **state) {
    struct log_options o = options_for(in_scratch("run"), 0);
    struct logger *l = open_or_fail(&o);
    log_one_step(l, 1);
    struct error err = {""};
    assert_null(logger_open(&o, &err));
    assert_mentions(err.message, "log.jsonl: another process is writing");
    logger_close(l);
    char *text = get_text("run/log.jsonl");
    assert_int_equal(count_of(text, "\n"), 1); /* the refused logger has cut nothing */
    free(text);
}

static void an_unusable_directory_is_refused(void **state) {
    struct error err = {""};
    append(in_scratch("file"), "x", 1);
    struct log_options o = options_for(in_scratch("file"), 0);
    assert_null(logger_open(&o, &err));
    assert_mentions(err.message, "/file: cannot create directory");
    o = options_for(in_scratch("run"), 0);
    assert_true(make_directories(in_scratch("run"), &err));
    assert_true(make_directories(in_scratch("run/log.jsonl"), &err));
    assert_null(logger_open(&o, &err));
    assert_mentions(err.message, "log.jsonl: cannot open for writing");
}

/* --- full disk --- */

static void set_file_limit(rlim_t bytes) {
    struct rlimit r;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &r), 0);
    r.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &r), 0);
}

static void assert_whole_lines(const char *path) {
    char *text = get_text(path);
    size_t n = strlen(text);
    if (n && (text[n - 1] != '\n' || (n > 1 && text[n - 2] != '}')))
        fail_msg("torn: ...%s", text + (n > 60 ? n - 60 : 0));
    free(text);
}

static void a_full_disk_loses_nothing(void **state) {
    signal(SIGXFSZ, SIG_IGN);
    const char *out, *file;
    out = in_scratch("whole");
    log_steps(out, 0, STEPS);
    file = in_scratch("whole/log.jsonl");
    char *expected = get_text(file);
    for (rlim_t limit = 0; limit < 1700; limit += 83) {
        struct capture c;
        out = in_scratch("full");
        struct log_options o = options_for(out, 0);
        struct logger *l = open_or_fail(&o);
        file = in_scratch("full/log.jsonl");
        capture_begin(&c, STDERR_FILENO);
        set_file_limit(limit);
        for (int64_t i = 1; i <= 18; i++) {
            log_one_step(l, i);
            assert_whole_lines(file);
        }
        logger_sync(l);
        set_file_limit(RLIM_INFINITY);
        for (int64_t i = 19; i <= STEPS; i++) log_one_step(l, i);
        logger_close(l);
        char *messages = capture_end(&c), *got = get_text(file);
        assert_string_equal(got, expected);
        assert_int_equal(count_of(messages, "full/log.jsonl: cannot write"), 1);
        assert_int_equal(count_of(messages, "full/timing.jsonl: cannot write"), 1);
        assert_int_equal(count_of(messages, "log.jsonl: writing works again; nothing was lost"), 1);
        free(messages);
        free(got);
    }
    free(expected);
    signal(SIGXFSZ, SIG_DFL);
}

static void what_stays_unwritten_is_counted_at_the_end(void **state) {
    struct capture c;
    signal(SIGXFSZ, SIG_IGN);
    struct log_options o = options_for(in_scratch("run"), 0);
    struct logger *l = open_or_fail(&o);
    capture_begin(&c, STDERR_FILENO);
    set_file_limit(300);
    for (int64_t i = 1; i <= 3; i++) log_one_step(l, i);
    logger_close(l);
    set_file_limit(RLIM_INFINITY);
    char *messages = capture_end(&c), *text = get_text("run/log.jsonl");
    char lost[64];
    snprintf(lost, sizeof lost, "log.jsonl: %d rows could not be written", 3 - count_of(text, "\n"));
    assert_mentions(messages, lost);
    free(messages);
    free(text);
    signal(SIGXFSZ, SIG_DFL);
}

/* --- the terminal --- */

/* The screen of a terminal that never scrolls, and whether a line was wider than it. */
struct screen {
    char cell[64][256];
    int row, column, columns;
    bool wrapped;
};

static void screen_put(struct screen *s, const char *text, int64_t size) {
    for (int64_t i = 0; i < size; i++) {
        char c = text[i];
        if (c == '\r') {
            s->column = 0;
        } else if (c == '\n') {
            s->row++;
        } else if (c == '\033') {
            assert_true(i + 2 < size && text[i + 1] == '[' && text[i + 2] == 'K'); /* nothing else is used */
            memset(s->cell[s->row] + s->column, 0, 256 - (size_t)s->column);
            i += 2;
        } else {
            if (s->column >= s->columns - 1) s->wrapped = true;
            if (s->column < 255) s->cell[s->row][s->column++] = c;
        }
        assert_true(s->row < 64);
    }
}

/* Runs `body` in a child whose stdout and stderr are a terminal of that width, and returns its output. */
static char *run_on_terminal(void (*body)(const char *out), const char *out, int columns, int64_t *size,
                             int *status) {
    int master;
    struct winsize w = {.ws_row = 24, .ws_col = (unsigned short)columns};
    fflush(NULL);
    pid_t child = forkpty(&master, NULL, NULL, &w);
    assert_true(child >= 0);
    if (child == 0) {
        body(out);
        fflush(NULL);
        _exit(0);
    }
    char *text = xcalloc(1, 1 << 20);
    *size = 0;
    for (ssize_t n; (n = read(master, text + *size, (1 << 20) - 1 - (size_t)*size)) > 0;) *size += n;
    close(master);
    assert_int_equal(waitpid(child, status, 0), child);
    return text;
}

static void train_on_terminal(const char *out) {
    struct log_options o = options_for(out, 0);
    o.quiet = false;
    struct logger *l = logger_open(&o, NULL);
    if (!l) _exit(9);
    for (int64_t s = 1; s <= STEPS; s++) {
        log_one_step(l, s);
        if (s == 6) logger_say(l, "a sample\nof two lines");
        if (s == 7) warn("something odd");
        if (s == 8) {
            struct winsize w = {.ws_row = 24, .ws_col = 50};
            ioctl(STDOUT_FILENO, TIOCSWINSZ, &w);
        }
    }
    logger_close(l);
}

static void one_line_is_redrawn_on_a_terminal(void **state) {
    int64_t size;
    int status;
    char *text = run_on_terminal(train_on_terminal, in_scratch("run"), 80, &size, &status);
    assert_int_equal(status, 0);
    struct screen screen = {.columns = 80};
    screen_put(&screen, text, size);
    assert_false(screen.wrapped);
    assert_int_equal(screen.column, 0); /* a fresh line for the shell */
    static const char *const expected[] = {"step 4  validation loss 1.8000  (floor 1.2500, +44.0 %)",
                                           "a sample",
                                           "of two lines",
                                           "warning: something odd",
                                           "step 8  validation loss 1.5500  (floor 1.2500, +24.0 %)",
                                           "step 12  validation loss 1.4667  (floor 1.2500, +17.3 %)",
                                           "step 16  validation loss 1.4250  (floor 1.2500, +14.0 %)",
                                           "step 20  validation loss 1.4000  (floor 1.2500, +12.0 %)",
                                           "step 24  validation loss 1.3833  (floor 1.2500, +10.7 %)",
                                           "step 24/24  loss  1.3250  val  1.3833  eta     0s"};
    for (size_t i = 0; i < ARRAY_LENGTH(expected); i++) {
        if (i + 1 < ARRAY_LENGTH(expected))
            assert_string_equal(screen.cell[i], expected[i]);
        else
            assert_mentions(screen.cell[i], expected[i]);
    }
    assert_int_equal(screen.row, ARRAY_LENGTH(expected));
    assert_true(strlen(screen.cell[screen.row - 1]) < 50);
    free(text);
}

static void die_on_terminal(const char *out) {
    struct log_options o = options_for(out, 0);
    o.quiet = false;
    static struct logger *volatile l; /* still in use at the end, also for a leak checker */
    l = logger_open(&o, NULL);
    log_one_step(l, 1);
    die("the end");
}

static void an_error_stands_on_its_own_line(void **state) {
    int64_t size;
    int status;
    char *text = run_on_terminal(die_on_terminal, in_scratch("run"), 100, &size, &status);
    struct screen screen = {.columns = 100};
    screen_put(&screen, text, size);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_FAILURE);
    assert_string_equal(screen.cell[0], "error: the end");
    assert_int_equal(screen.row, 1);
    free(text);
}

static void plain_lines_elsewhere(void **state) {
    struct capture c;
    struct log_options o = options_for(NULL, 0);
    o.quiet = false;
    capture_begin(&c, STDOUT_FILENO);
    struct logger *l = open_or_fail(&o);
    for (int64_t i = 1; i <= STEPS; i++) log_one_step(l, i);
    logger_say(l, "%s", "bye");
    logger_close(l);
    char *text = capture_end(&c);
    assert_null(strpbrk(text, "\r\033["));
    /* The first and the last step, six validations and the word; no time passes, so nothing between. */
    assert_int_equal(count_of(text, "\n"), 2 + STEPS / VALIDATE_EVERY + 1);
    assert_mentions(text, "step  1/24  epoch");
    assert_mentions(text, "step 24/24  epoch");
    assert_mentions(text, "\nbye\n");
    free(text);

    o.quiet = true;
    capture_begin(&c, STDOUT_FILENO);
    l = open_or_fail(&o);
    for (int64_t i = 1; i <= STEPS; i++) log_one_step(l, i);
    logger_say(l, "bye");
    assert_false(logger_plot(l, NULL));
    logger_close(l);
    text = capture_end(&c);
    assert_string_equal(text, "");
    free(text);
}

static void the_median_rate(void **state) {
    struct log_options o = options_for(NULL, 0);
    struct logger *l = open_or_fail(&o);
    assert_true(isnan(logger_tokens_per_second(l)));
    static const double seconds[] = {9, 0.5, 0.25, 1, 0.125};
    for (int i = 0; i < 5; i++) logger_step(l, &(struct log_step){.step = i + 1, .seconds = seconds[i]});
    assert_float_equal(logger_tokens_per_second(l), 2000, 1e-9);
    logger_step(l, &(struct log_step){.step = 6, .seconds = 0.125});
    assert_float_equal(logger_tokens_per_second(l), 1000 / 0.375, 1e-9);
    assert_true(logger_seconds(l) >= 0 && logger_seconds(l) < 60);
    logger_close(l);
}

/* --- the plot, more of which is in test_plot.c --- */

static void a_logger_draws_the_whole_run_after_a_resume(void **state) {
    struct error err = {""};
    const char *out;
    out = in_scratch("my run");
    log_steps(out, 0, 20);
    struct log_options o = options_for(out, 15);
    struct logger *l = open_or_fail(&o);
    for (int64_t i = 16; i <= STEPS; i++) log_one_step(l, i);
    if (!logger_plot(l, &err)) fail_msg("%s", err.message);
    logger_close(l);
    char *text = get_text("my run/loss.svg");
    assert_mentions(text, ">my run</text>");
    /* A dot for each step except the one with NaN, which divides the line, and for each validation; the
     * other line. */
    assert_int_equal(count_of(text, "h0"), STEPS - 1 + 2 + STEPS / VALIDATE_EVERY + 1);
    free(text);
    assert_false(path_exists(in_scratch("my run/loss.svg.tmp")));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_read_back_exactly),
        cmocka_unit_test(the_form_of_rows),
        cmocka_unit_test(what_is_no_row_is_refused),
        SCRATCH_TEST(what_the_gpu_says),
        SCRATCH_TEST(a_resumed_log_equals_an_uninterrupted_one),
        SCRATCH_TEST(cutting_stops_at_the_first_damaged_row),
        SCRATCH_TEST(missing_rows_are_reported),
        SCRATCH_TEST(two_processes_cannot_write_one_run),
        SCRATCH_TEST(an_unusable_directory_is_refused),
        SCRATCH_TEST(a_full_disk_loses_nothing),
        SCRATCH_TEST(what_stays_unwritten_is_counted_at_the_end),
        SCRATCH_TEST(one_line_is_redrawn_on_a_terminal),
        SCRATCH_TEST(an_error_stands_on_its_own_line),
        cmocka_unit_test(plain_lines_elsewhere),
        cmocka_unit_test(the_median_rate),
        SCRATCH_TEST(a_logger_draws_the_whole_run_after_a_resume),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
