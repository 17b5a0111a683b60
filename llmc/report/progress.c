/* Formats the progress line. Each number has a fixed width, so that columns keep their places from line to
 * line. A narrow terminal drops columns in the order of their importance; the bar takes the space that is
 * left. */
#include "llmc/report/progress.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* --- numbers --- */

const char *progress_count(double n) {
    const char *prefix = " kMGTPE";
    if (!isfinite(n) || n < 0) return "    -";
    while (n >= 999.5 && prefix[1]) {
        n /= 1000;
        prefix++;
    }
    if (n >= 999.5) return temp_printf("%5.0e", n);
    if (*prefix == ' ') return temp_printf("%5.*f", n < 99.95 ? 1 : 0, n);
    return temp_printf("%4.*f%c", n < 9.995 ? 2 : n < 99.95 ? 1 : 0, n, *prefix);
}

const char *progress_duration(double seconds) {
    if (!(seconds >= 0 && seconds < 1e9)) return "-";
    int64_t s = (int64_t)(seconds + 0.5);
    if (s < 60) return temp_printf("%" PRId64 "s", s);
    if (s < 3600) return temp_printf("%" PRId64 "m%02" PRId64 "s", s / 60, s % 60);
    if (s < 86400) return temp_printf("%" PRId64 "h%02" PRId64 "m", s / 3600, s / 60 % 60);
    return temp_printf("%" PRId64 "d%02" PRId64 "h", s / 86400, s / 3600 % 24);
}

/* Any number in seven characters, with four decimals where they fit. */
static const char *number(double v) {
    if (isnan(v)) return "    nan";
    double a = fabs(v);
    if (isinf(v)) return v > 0 ? "    inf" : "   -inf";
    if (a < 99.99995) return temp_printf("%7.4f", v);
    if (a < 99999.95) return temp_printf("%7.1f", v);
    return temp_printf("%7.*e", v < 0 || a >= 9.95e99 ? 0 : 1, v);
}

/* --- columns --- */

enum { BAR, STEP, EPOCH, LOSS, VALIDATION, FLOOR, RATE, NORM, SKIPPED, TOKENS, FLOPS, ETA, COLUMNS };

/* The columns, most important first: a narrow terminal drops from the end. */
static const int by_importance[] = {STEP,  LOSS, ETA,  VALIDATION, TOKENS, SKIPPED,
                                    FLOPS, RATE, NORM, EPOCH,      FLOOR};

static int digits_of(int64_t n) { return snprintf(NULL, 0, "%" PRId64, n); }

static void fill_columns(char text[COLUMNS][80], const struct progress *p) {
    memset(text, 0, COLUMNS * sizeof text[0]);
    snprintf(text[STEP], 80, "step %*" PRId64 "/%" PRId64, digits_of(p->steps), p->step, p->steps);
    snprintf(text[EPOCH], 80, "epoch %6.2f", p->epoch);
    snprintf(text[LOSS], 80, "loss %s", number(p->loss));
    if (!isnan(p->val_loss)) snprintf(text[VALIDATION], 80, "val %s", number(p->val_loss));
    if (!isnan(p->floor_loss)) snprintf(text[FLOOR], 80, "floor %.4f", p->floor_loss);
    snprintf(text[RATE], 80, "lr %.2e", p->lr);
    snprintf(text[NORM], 80, "norm %s", number(p->grad_norm));
    if (p->skipped) snprintf(text[SKIPPED], 80, "skipped %" PRId64, p->skipped);
    snprintf(text[TOKENS], 80, "%s tok/s", progress_count(p->tokens_per_second));
    const char *flops = progress_count(p->flops_per_second);
    bool prefixed = isalpha((unsigned char)flops[4]); /* "15.4G" is read better as "15.4 GFLOP/s" */
    int n = snprintf(text[FLOPS], 80, "%.*s %sFLOP/s", prefixed ? 4 : 5, flops, prefixed ? flops + 4 : "");
    if (p->peak_flops > 0)
        snprintf(text[FLOPS] + n, 80 - (size_t)n, " %3.0f%% of peak",
                 100 * p->flops_per_second / p->peak_flops);
    if (!isnan(p->eta)) snprintf(text[ETA], 80, "eta %6s", progress_duration(p->eta));
}

/* --- fitting, and the bar --- */

static void draw_bar(char *out, int width, double share) {
    int inside = width - 2, full = (int)(share * inside);
    out[0] = '[';
    for (int i = 0; i < inside; i++) out[1 + i] = i < full ? '=' : i == full ? '>' : ' ';
    out[width - 1] = ']';
    out[width] = 0;
}

int progress_line(char out[PROGRESS_MAX], const struct progress *p, int columns) {
    enum { GAP = 2, BAR_MIN = 8, BAR_MAX = 40 };
    char text[COLUMNS][80];
    bool shown[COLUMNS] = {false};
    fill_columns(text, p);
    int room = columns ? (int)min_i64(columns - 1, PROGRESS_MAX - 1) : PROGRESS_MAX - 1, used = -GAP;
    for (size_t i = 0; i < ARRAY_LENGTH(by_importance); i++) {
        int c = by_importance[i], width = (int)strlen(text[c]);
        if (!width) continue;
        /* Does not try smaller columns after one that did not fit: columns would come and go as their
         * neighbours change. */
        if (used + GAP + width > room) break;
        used += GAP + width;
        shown[c] = true;
    }
    int bar = (int)min_i64(room - used - GAP, BAR_MAX);
    if (columns && bar >= BAR_MIN && shown[STEP]) {
        draw_bar(text[BAR], bar, p->steps > 0 ? fmin(1, (double)p->step / (double)p->steps) : 0);
        shown[BAR] = true;
    }
    int n = 0;
    out[0] = 0;
    if (!shown[STEP]) { /* a terminal this narrow gets the bare number, or nothing */
        if (digits_of(p->step) <= room) n = snprintf(out, PROGRESS_MAX, "%" PRId64, p->step);
        return n;
    }
    for (int c = 0; c < COLUMNS; c++)
        if (shown[c]) n += snprintf(out + n, (size_t)(PROGRESS_MAX - n), "%s%s", n ? "  " : "", text[c]);
    return n;
}
