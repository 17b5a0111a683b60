/* Reports a run: the progress line, the log files and the plot.
 *
 * On a terminal the progress line is drawn without a newline, and the cursor stays visible behind it:
 * however the process ends, the terminal needs no repair. Messages (warn, die, logger_say) clear that line
 * first. */
#include "llmc/report/logger.h"

#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/report/event_file.h"
#include "llmc/report/log_file.h"
#include "llmc/report/plot.h"
#include "llmc/report/progress.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Tokens/s on the line are those of the last RECENT steps. */
enum { RECENT = 16 };

struct logger {
    struct log_options o;
    char *out;
    struct log_file log, timing;
    struct event_file *events; /* NULL: none */
    bool terminal;             /* redraw in place */
    bool line_standing;        /* the cursor is behind a progress line */
    char line[PROGRESS_MAX];
    struct progress shown;
    double opened, first_step_end, last_line; /* now_seconds() */
    float *seconds;                           /* of every step of this process */
    int64_t count, capacity;
    int64_t last_validation; /* step of the last validation row in log.jsonl; -1: none */
};

/* --- the terminal --- */

static int terminal_columns(void) {
    struct winsize w;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

static void draw(struct logger *l) {
    progress_line(l->line, &l->shown, terminal_columns());
    printf("\r%s\033[K", l->line);
    flush_stdout();
    l->line_standing = true;
}

static void clear(struct logger *l) {
    if (l->line_standing) fputs("\r\033[K", stdout);
    l->line_standing = false;
}

static void say_text(struct logger *l, const char *text) {
    if (l->o.quiet) return;
    bool redraw = l->line_standing;
    clear(l);
    printf("%s\n", text);
    flush_stdout();
    if (redraw) draw(l);
}

void logger_say(struct logger *l, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *text = xvasprintf(fmt, ap);
    va_end(ap);
    make_printable(text);
    say_text(l, text);
    free(text);
}

/* A line that is redrawn is due ten times a second; plain lines every 2 seconds at first, later every
 * minute. */
static bool line_is_due(const struct logger *l, double now) {
    if (l->count == 1 || l->shown.step == l->o.steps) return true;
    double interval = l->terminal ? 0.1 : fmin(60, fmax(2, 0.02 * (now - l->opened)));
    return now - l->last_line >= interval;
}

static void show(struct logger *l) {
    double now = now_seconds();
    if (l->o.quiet || !line_is_due(l, now)) return;
    l->last_line = now;
    if (l->terminal) {
        draw(l);
    } else {
        progress_line(l->line, &l->shown, 0);
        printf("%s\n", l->line);
        flush_stdout();
    }
}

/* --- opening and closing --- */

/* After the file was cut for a resumed run: finds the last validation, and whether rows of earlier steps
 * are missing. */
static bool read_kept_rows(struct logger *l, struct error *err) {
    struct mapped_file m;
    if (!file_map(&m, l->log.path, err)) return false;
    int64_t last_step = 0;
    for (int64_t at = 0; at < m.size;) {
        const char *line = (const char *)m.data + at, *end = memchr(line, '\n', (size_t)(m.size - at));
        int64_t size = end ? end - line : m.size - at;
        struct log_row row;
        if (log_row_parse(&row, line, size)) {
            if (row.validation) {
                l->last_validation = row.step;
                l->shown.val_loss = row.loss;
            } else {
                last_step = row.step;
                l->shown.skipped += row.skipped;
            }
        }
        at += size + 1;
    }
    if (last_step < l->o.resumed_step)
        warn("%s: holds the steps up to %" PRId64 ", but training goes on after step %" PRId64
             ": the rows between are missing",
             l->log.path, last_step, l->o.resumed_step);
    file_unmap(&m);
    return true;
}

static bool open_files(struct logger *l, struct error *err) {
    if (!make_directories(l->out, err)) return false;
    char *log = xasprintf("%s/log.jsonl", l->out), *timing = xasprintf("%s/timing.jsonl", l->out);
    bool ok = log_file_open(&l->log, log, l->o.resumed_step, err) &&
              log_file_open(&l->timing, timing, l->o.resumed_step, err) &&
              (l->o.resumed_step == 0 || read_kept_rows(l, err)) &&
              (!l->o.tensorboard || (l->events = event_file_open(l->out, l->o.resumed_step, err)) != NULL);
    free(log);
    free(timing);
    return ok;
}

static void logger_free(struct logger *l) {
    log_file_close(&l->log);
    log_file_close(&l->timing);
    event_file_close(l->events);
    free(l->out);
    free(l->seconds);
    free(l);
}

struct logger *logger_open(const struct log_options *options, struct error *err) {
    struct logger *l = xcalloc(1, sizeof *l);
    l->o = *options;
    l->out = options->out ? xstrdup(options->out) : NULL;
    l->o.out = l->out;
    l->log.fd = l->timing.fd = -1;
    l->terminal = isatty(STDOUT_FILENO);
    l->opened = now_seconds();
    l->last_validation = -1;
    l->shown = (struct progress){.steps = l->o.steps,
                                 .val_loss = NAN,
                                 .floor_loss = l->o.floor_loss,
                                 .peak_flops = l->o.peak_flops,
                                 .eta = NAN};
    if (l->out && !open_files(l, err)) {
        logger_free(l);
        return NULL;
    }
    return l;
}

void logger_end_line(struct logger *l) {
    if (!l->line_standing) return;
    draw(l); /* the last step may not have been due */
    fputc('\n', stdout);
    flush_stdout();
    l->line_standing = false;
}

void logger_close(struct logger *l) {
    if (!l) return;
    logger_end_line(l);
    logger_free(l);
}

bool logger_restore(struct logger *l, struct error *err) {
    if (!log_file_restore(&l->log, err) || !log_file_restore(&l->timing, err)) return false;
    if (!l->events || event_file_is_there(l->events)) return true;
    event_file_close(l->events); /* its events are gone; the log has the same numbers */
    return (l->events = event_file_open(l->out, 0, err)) != NULL;
}

void logger_sync(struct logger *l) {
    log_file_sync(&l->log);
    log_file_sync(&l->timing);
    event_file_flush(l->events);
}

/* --- rows --- */

static void put_row(struct logger *l, const struct log_row *row) {
    char line[LOG_LINE_MAX];
    log_file_put(&l->log, line, log_row_print(line, row));
}

/* With the digits that a measurement has; null if it is not finite. */
static const char *measured(double v) { return isfinite(v) ? temp_printf("%.6g", v) : "null"; }

static void put_timing(struct logger *l, const struct log_step *row) {
    double rate = (double)l->o.tokens_per_step / row->seconds, flops = rate * l->o.flops_per_token;
    /* what was reached shows that other load had slowed the measurement down */
    if (l->o.peak_flops > 0) l->o.peak_flops = l->shown.peak_flops = fmax(l->o.peak_flops, flops);
    char line[LOG_LINE_MAX];
    int n = snprintf(line, sizeof line,
                     "{\"step\":%" PRId64
                     ",\"seconds\":%s,\"tokens_per_second\":%s,\"flops_per_second\":%s,\"flops_share\":%s}\n",
                     row->step, measured(row->seconds), measured(rate), measured(flops),
                     measured(l->o.peak_flops > 0 ? flops / l->o.peak_flops : NAN));
    log_file_put(&l->timing, line, n);
}

static void put_events(struct logger *l, const struct log_step *row) {
    event_scalar(l->events, row->step, "loss/train", row->loss);
    event_scalar(l->events, row->step, "learning_rate", row->lr);
    event_scalar(l->events, row->step, "gradient_norm", row->grad_norm);
    event_scalar(l->events, row->step, "tokens_per_second", (double)l->o.tokens_per_step / row->seconds);
}

void logger_text(struct logger *l, int64_t step, const char *tag, const char *text) {
    if (!l->events) return;
    /* four spaces before each line: Markdown for text that is none */
    char *plain = (char *)xmalloc(5 * strlen(text) + 5), *to = plain;
    for (const char *p = text; *p; p++) {
        if (p == text || p[-1] == '\n') to = (char *)memcpy(to, "    ", 4) + 4;
        *to++ = *p;
    }
    *to = 0;
    event_text(l->events, step, tag, plain);
    free(plain);
}

static void remember_seconds(struct logger *l, double seconds) {
    if (l->count == l->capacity) {
        l->capacity = max_i64(1024, 2 * l->capacity);
        l->seconds = xrealloc(l->seconds, (size_t)l->capacity * sizeof *l->seconds);
    }
    l->seconds[l->count++] = (float)seconds;
}

static double recent_seconds_per_step(const struct logger *l) {
    int64_t n = min_i64(l->count, RECENT);
    double sum = 0;
    for (int64_t i = l->count - n; i < l->count; i++) sum += l->seconds[i];
    return sum / (double)n;
}

/* From the wall clock, so that validation and checkpoints count, but without the first step, which warms
 * up. */
static double time_left(struct logger *l) {
    double now = now_seconds(), per_step;
    if (l->count == 1) l->first_step_end = now;
    per_step = l->count > 1 ? (now - l->first_step_end) / (double)(l->count - 1) : recent_seconds_per_step(l);
    return per_step * (double)max_i64(0, l->o.steps - l->shown.step);
}

void logger_step(struct logger *l, const struct log_step *row) {
    put_row(
        l, &(struct log_row){false, row->step, row->epoch, row->loss, row->lr, row->grad_norm, row->skipped});
    put_timing(l, row);
    put_events(l, row);
    remember_seconds(l, row->seconds);
    struct progress *p = &l->shown;
    p->step = row->step;
    p->epoch = row->epoch;
    p->loss = row->loss;
    p->lr = row->lr;
    p->grad_norm = row->grad_norm;
    p->skipped += row->skipped;
    p->tokens_per_second = (double)l->o.tokens_per_step / recent_seconds_per_step(l);
    p->flops_per_second = p->tokens_per_second * l->o.flops_per_token;
    p->eta = time_left(l);
    show(l);
}

void logger_gpu(struct logger *l, int64_t step, const struct nvml_reading *r) {
    char line[LOG_LINE_MAX];
    int n = snprintf(line, sizeof line,
                     "{\"step\":%" PRId64 ",\"gpu_watts\":%s,\"gpu_celsius\":%s,\"gpu_sm_mhz\":%s,\"gpu_"
                     "utilisation\":%s,\"gpu_slowed\":%s%s%s}\n",
                     step, log_double(r->watts), log_double(r->celsius), log_double(r->sm_mhz),
                     log_double(r->utilisation), r->slowed ? "\"" : "", r->slowed ? r->slowed : "null",
                     r->slowed ? "\"" : "");
    log_file_put(&l->timing, line, n);
    if (!isnan(r->watts)) event_scalar(l->events, step, "gpu/watts", r->watts);
    if (!isnan(r->celsius)) event_scalar(l->events, step, "gpu/celsius", r->celsius);
}

void logger_ranks(struct logger *l, int64_t step, const double *seconds, int64_t world) {
    char *line = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&line, &size);
    check(out, "out of host memory while formatting a row");
    fprintf(out, "{\"step\":%" PRId64 ",\"rank_seconds\":[", step);
    for (int64_t r = 0; r < world; r++) fprintf(out, "%s%.6g", r ? "," : "", seconds[r]);
    fputs("]}\n", out);
    check(fclose(out) == 0, "out of host memory while formatting a row");
    log_file_put(&l->timing, line, (int64_t)size);
    free(line);
}

void logger_validation(struct logger *l, int64_t step, double loss, double bytes) {
    if (l->last_validation != step) {
        put_row(l, &(struct log_row){.validation = true, .step = step, .loss = loss});
        event_scalar(l->events, step, "loss/validation", loss);
        event_file_flush(l->events); /* what log.jsonl has is not repeated after a kill */
    }
    l->last_validation = step;
    l->shown.val_loss = loss;
    char above[80] = "";
    double floor = l->o.floor_loss;
    if (isfinite(floor) && floor > 0)
        snprintf(above, sizeof above, "  (floor %.4f, %+.1f %%)", floor, 100 * (loss - floor) / floor);
    char bits[48] = "";
    if (bytes > 0) snprintf(bits, sizeof bits, ", %.3f bits per byte", loss / log(2.0) / bytes);
    logger_say(l, "step %" PRId64 "  validation loss %.4f%s%s", step, loss, bits, above);
}

/* --- the plot --- */

/* The name of a run is the last part of its path. */
static void run_name(char name[NAME_MAX + 1], const char *out) {
    char *real = realpath(out, NULL);
    const char *path = real ? real : out, *slash = strrchr(path, '/');
    snprintf(name, NAME_MAX + 1, "%s", slash && slash[1] ? slash + 1 : path);
    free(real);
}

bool logger_plot(struct logger *l, struct error *err) {
    if (!l->out) return fail(err, "no run directory, so there is no log to plot: give --out DIR");
    char name[NAME_MAX + 1], *svg = xasprintf("%s/loss.svg", l->out);
    run_name(name, l->out);
    bool ok = plot_log(svg, l->log.path, name, l->o.floor_loss, err);
    free(svg);
    return ok;
}

/* --- figures --- */

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

double logger_tokens_per_second(const struct logger *l) {
    if (!l->count) return NAN;
    float *sorted = xmalloc((size_t)l->count * sizeof *sorted);
    memcpy(sorted, l->seconds, (size_t)l->count * sizeof *sorted);
    qsort(sorted, (size_t)l->count, sizeof *sorted, by_value);
    double median = 0.5 * ((double)sorted[(l->count - 1) / 2] + (double)sorted[l->count / 2]);
    free(sorted);
    return (double)l->o.tokens_per_step / median;
}

double logger_seconds(const struct logger *l) { return now_seconds() - l->opened; }
