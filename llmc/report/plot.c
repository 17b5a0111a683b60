/* loss.svg: training and validation loss over the steps, and the floor.
 *
 * A run may have a million steps, the picture has 761 columns of pixels. Each column shows the mean of its
 * steps as a line, and their least and greatest value as a pale band: noise is smoothed, no spike is lost.
 * The y axis ends where the bulk of the losses does; what exceeds it is drawn at the edge. */
#include "llmc/report/plot.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/file.h"
#include "llmc/base/utf8.h"
#include "llmc/report/log_file.h"

enum { LEFT = 64, RIGHT = 824, TOP = 80, BOTTOM = 484 };
enum { TRAIN, VALIDATION, FLOOR, CURVES };
static const char *const names[CURVES] = {"train", "validation", "floor"};
static const char *const colours[CURVES] = {"#1259b3", "#d2500a", "#2c7a4b"}, *const grey = "#59636e";

struct column {
    double least, most, mean; /* of its finite losses */
    int64_t count;
    bool bad; /* a loss that is not finite, or an update that was skipped */
};
struct axis {
    double lo, hi, tick, at_lo, at_hi; /* ticks are multiples of `tick`; at_lo, at_hi: pixels */
};
struct plot {
    struct log_row *rows;
    int64_t count, count_of[2]; /* all; TRAIN, VALIDATION */
    struct axis x, y;
    struct column column[2][RIGHT - LEFT + 1]; /* TRAIN, VALIDATION */
    double last[CURVES];                       /* finite values, or NAN */
};

static bool read_rows(struct plot *p, const char *log, struct error *err) {
    struct mapped_file m;
    if (!file_map(&m, log, err)) return false;
    const char *line = m.data ? (const char *)m.data : "", *end = line + m.size, *newline;
    for (; line < end; line = newline + 1) {
        newline = (const char *)memchr(line, '\n', (size_t)(end - line));
        if (!newline) newline = end;
        if (p->count % 4096 == 0)
            p->rows = (struct log_row *)xrealloc(p->rows, (size_t)(p->count + 4096) * sizeof *p->rows);
        p->count += log_row_parse(&p->rows[p->count], line, newline - line);
    }
    file_unmap(&m);
    return true;
}

/* About eight ticks, at multiples of 1, 2 or 5 times a power of ten. A constant gets room around it. */
static struct axis axis_make(double lo, double hi, double at_lo, double at_hi) {
    double size = fmax(fabs(lo), fabs(hi)),
           room = hi - lo > fmax(1e-6 * size, 1e-300) ? 0 : fmax(0.1 * size, 1e-3);
    lo -= room, hi += room;
    double power = pow(10, floor(log10((hi - lo) / 8))), m = (hi - lo) / 8 / power;
    return (struct axis){lo, hi, power * (m < 1.5 ? 1 : m < 3.5 ? 2 : m < 7.5 ? 5 : 10), at_lo, at_hi};
}

static double axis_at(const struct axis *a, double v) {
    return a->at_lo + fmax(0, fmin(1, (v - a->lo) / (a->hi - a->lo))) * (a->at_hi - a->at_lo);
}

static int by_value(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* The y axis leaves out what exceeds the 95th percentile by five times the range from the 5th to it. */
static void make_axes(struct plot *p) {
    double *v = (double *)xcalloc((size_t)p->count + 1, sizeof *v), first = INFINITY, step = 0, lo = 0,
           hi = 1;
    int64_t n = 0;
    for (int64_t i = 0; i < p->count; i++) {
        first = fmin(first, (double)p->rows[i].step);
        step = fmax(step, (double)p->rows[i].step);
        p->count_of[p->rows[i].validation]++;
        if (fabs(p->rows[i].loss) < 1e300) v[n++] = p->rows[i].loss;
    }
    qsort(v, (size_t)n, sizeof *v, by_value);
    if (n) {
        double low = v[n / 20], high = v[n - 1 - n / 20];
        while (n > 1 && v[n - 1] - high > 5 * fmax(high - low, 0.02 * fabs(high))) n--;
        lo = v[0], hi = v[n - 1];
    }
    if (fabs(p->last[FLOOR]) < 1e300) lo = fmin(lo, p->last[FLOOR]), hi = fmax(hi, p->last[FLOOR]);
    p->y = axis_make(lo - 0.04 * (hi - lo), hi + 0.04 * (hi - lo), BOTTOM, TOP);
    p->x = axis_make(fmin(first, step), step, LEFT, RIGHT);
    p->x.tick = fmax(p->x.tick, 1);
    free(v);
}

static void fill_columns(struct plot *p) {
    for (int64_t i = 0; i < p->count; i++) {
        const struct log_row *row = &p->rows[i];
        struct column *c = &p->column[row->validation][(int)axis_at(&p->x, (double)row->step) - LEFT];
        c->bad |= row->skipped || !isfinite(row->loss);
        if (!isfinite(row->loss)) continue;
        double loss = fmax(p->y.lo, fmin(row->loss, p->y.hi)); /* a spike counts as the edge in the mean */
        c->least = c->count ? fmin(c->least, loss) : loss;
        c->most = c->count ? fmax(c->most, loss) : loss;
        c->mean += (loss - c->mean) / (double)++c->count;
        p->last[row->validation] = row->validation ? row->loss : c->mean;
    }
}

/* In XML text, markup is escaped; what is not UTF-8, or not allowed there, becomes a question mark. */
static void label(FILE *f, double x, double y, const char *anchor, const char *colour, const char *text) {
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\">", x, y, anchor, colour);
    const uint8_t *s = (const uint8_t *)text, *end = s + strlen(text);
    for (int n; s < end; s += n ? n : 1) {
        uint32_t c = 0;
        n = utf8_decode(s, end, &c);
        bool allowed = n && c >= ' ' && c != 0x7f && (c & 0xfffe) != 0xfffe;
        fprintf(f, !allowed ? "?" : c < 0x7f && !strchr("&<>\"", (int)c) ? "%c" : "&#%u;", c);
    }
    fputs("</text>\n", f);
}

static void draw_ticks(FILE *f, const struct axis *a, bool is_y) {
    for (double k = ceil(a->lo / a->tick) + 0.0; k * a->tick <= a->hi; k++) { /* + 0.0: no -0 */
        double at = axis_at(a, k * a->tick), x = is_y ? LEFT : at, y = is_y ? at : BOTTOM;
        const char *text = temp_printf(a->hi < 1e4 ? "%g" : "%gk", k * a->tick / (a->hi < 1e4 ? 1 : 1e3));
        fprintf(f, "<path stroke=\"#ddd\" d=\"M%g %g%c%d\"/>\n", x, y, "VH"[is_y], is_y ? RIGHT : TOP);
        label(f, is_y ? x - 8 : x, y + (is_y ? 4 : 18), is_y ? "end" : "middle", grey, text);
    }
}

/* The means as a line, interrupted at columns with only bad losses; with `dots`, as dots. */
static void draw_means(FILE *f, const struct plot *p, int curve, bool dots) {
    bool down = false;
    fprintf(f, "<path stroke-linecap=\"round\" stroke=\"%s\" stroke-width=\"%g\" d=\"", colours[curve],
            dots ? 6 : 1.8);
    for (int x = LEFT; x <= RIGHT; x++) {
        const struct column *c = &p->column[curve][x - LEFT];
        if (c->count) fprintf(f, down && !dots ? "L%d %.1f" : "M%d %.1fh0", x, axis_at(&p->y, c->mean));
        down = c->count || (down && !c->bad);
    }
    fputs("\"/>\n", f);
}

/* The last values, right of the curves, a line apart. The floor is usually the lowest. */
static void draw_end_labels(FILE *f, const struct plot *p) {
    int low = p->last[TRAIN] < p->last[VALIDATION] ? TRAIN : VALIDATION, order[] = {FLOOR, low, !low};
    double at = BOTTOM + 20;
    for (int i = 0; i < CURVES; i++) {
        double v = p->last[order[i]];
        if (!isfinite(v)) continue;
        at = fmin(axis_at(&p->y, v) + 4, at - 16);
        const char *text = temp_printf(fabs(v) < 1e4 ? "%s %.4f" : "%s %.3e", names[order[i]], v);
        label(f, RIGHT + 8, at, "start", colours[order[i]], text);
    }
}

static void draw(FILE *f, const struct plot *p, const char *title) {
    fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"960\" height=\"540\" fill=\"none\" "
               "font-size=\"13\" font-family=\"sans-serif\">\n"
               "<rect width=\"960\" height=\"540\" fill=\"#fff\"/>\n");
    label(f, (LEFT + RIGHT) / 2, 36, "middle", "#24292f", title);
    label(f, LEFT, TOP - 14, "start", grey, "loss (nats per token)");
    label(f, (LEFT + RIGHT) / 2, BOTTOM + 42, "middle", grey, "optimizer step");
    draw_ticks(f, &p->x, false);
    draw_ticks(f, &p->y, true);
    for (int x = LEFT; x <= RIGHT; x++) {
        const struct column *c = &p->column[TRAIN][x - LEFT];
        double most = axis_at(&p->y, c->most), least = axis_at(&p->y, c->least);
        if (c->count > 1) fprintf(f, "<path stroke=\"#a9cbf0\" d=\"M%d %.1fV%.1f\"/>\n", x, least, most);
        if (c->bad) fprintf(f, "<path stroke=\"#c92a2a\" d=\"M%d %dv-9\"/>\n", x, BOTTOM);
    }
    if (isfinite(p->last[FLOOR]))
        fprintf(f, "<path stroke=\"%s\" stroke-dasharray=\"6 4\" d=\"M%d %.1fH%d\"/>\n", colours[FLOOR], LEFT,
                axis_at(&p->y, p->last[FLOOR]), RIGHT);
    for (int curve = TRAIN; curve <= VALIDATION; curve++) {
        draw_means(f, p, curve, false);
        if (p->count_of[curve] <= 40) draw_means(f, p, curve, true);
    }
    draw_end_labels(f, p);
    fputs("</svg>\n", f);
}

bool plot_log(const char *svg, const char *log, const char *title, double floor_loss, struct error *err) {
    struct plot *p = (struct plot *)xcalloc(1, sizeof *p);
    char *text = NULL;
    size_t size = 0;
    memcpy(p->last, (double[]){NAN, NAN, floor_loss}, sizeof p->last);
    bool ok = read_rows(p, log, err);
    if (ok) {
        make_axes(p);
        fill_columns(p);
        FILE *f = open_memstream(&text, &size);
        if (f) draw(f, p, title);
        check(f && fclose(f) == 0, "out of host memory while drawing %s", svg);
        ok = write_file_atomic(svg, text, size, err);
    }
    free(text);
    free(p->rows);
    free(p);
    return ok;
}
