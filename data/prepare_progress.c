/* How far preparing is. */
#include "data/prepare_progress.h"
#include "llmc/report/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

void prepare_progress_start(struct prepare_progress *p, const char *what, int64_t total, int64_t done) {
    *p = (struct prepare_progress){.what = what, .total = total, .first = done, .start = now_seconds()};
    p->last = p->start;
    p->terminal = isatty(2);
}

static int columns(void) {
    struct winsize w;
    return ioctl(2, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

void prepare_progress_show(struct prepare_progress *p, int64_t done, int64_t text, int64_t tokens) {
    double now = now_seconds(), seconds = now - p->start;
    if (now - p->last < (p->terminal ? 0.2 : 10)) return;
    p->last = now;
    char numbers[160], count[32] = "", left[48] = "";
    if (tokens >= 0) snprintf(count, sizeof count, "  %s tokens", progress_count((double)tokens));
    double share = p->total > 0 ? fmin(1, (double)done / (double)p->total) : 0;
    if (p->total > 0 && done > p->first)
        snprintf(left, sizeof left, "  eta %6s",
                 progress_duration(seconds * (double)(p->total - done) / (double)(done - p->first)));
    snprintf(numbers, sizeof numbers, "%s MB/s%s%s",
             progress_count(seconds > 0 ? (double)text / seconds / 1e6 : 0), count, left);
    if (!p->terminal || p->total <= 0) {
        fprintf(stderr, "%s%s: ", p->terminal ? "\r" : "", p->what);
        if (p->total > 0) fprintf(stderr, "%5.1f%%  ", 100 * share);
        fprintf(stderr, "%s of text  %s%s", human_bytes((double)text), numbers,
                p->terminal ? "\033[K" : "\n");
    } else {
        int width = (int)min_i64(40, columns() - 1 - (int64_t)(strlen(p->what) + strlen(numbers)) - 12);
        char bar[48] = "";
        for (int i = 0; i < width; i++) bar[i] = i < share * width ? '=' : ' ';
        fprintf(stderr, "\r%s %3.0f%% ", p->what, floor(100 * share));
        if (width >= 8) fprintf(stderr, "[%s] ", bar);
        fprintf(stderr, "%s\033[K", numbers);
    }
    p->line_open = p->terminal;
    fflush(stderr);
}

void prepare_progress_end(struct prepare_progress *p) {
    if (p->line_open) fprintf(stderr, "\r\033[K");
    p->line_open = false;
}
