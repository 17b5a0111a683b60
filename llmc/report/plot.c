/* loss.svg. Order: the log's rows; ranges and ticks; text; lines; the parts of the picture; the whole.
 *
 * All coordinates are pixels of a 960 x 600 picture. Every line is drawn with at most two points a pixel
 * column, the least and the greatest value there, so that a million steps show every spike and the file stays
 * small. */
#include "llmc/report/plot.h"

#include "llmc/base/file.h"
#include "llmc/report/log_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDTH = 960,
    HEIGHT = 600,
    LEFT = 72, /* of both panels */
    RIGHT = 838,
    TOP = 100, /* of the loss */
    BOTTOM = 436,
    RATE_TOP = 474, /* of the learning rate */
    RATE_BOTTOM = 540
};

#define INK        "#24292f"
#define MUTED      "#59636e"
#define RAW        "#a9cbf0"
#define TRAINING   "#1259b3"
#define VALIDATION "#d2500a"
#define FLOOR      "#2c7a4b"
#define RATE       "#6b4ba3"
#define TROUBLE    "#c92a2a"

/* --- the log's rows --- */

struct series {
    double *x, *y; /* step, value; y may be NAN */
    int64_t count, capacity;
};

struct plot {
    FILE *svg;
    struct series loss, rate, validation, trouble; /* trouble: x only */
    double floor_loss;
    int64_t smoothing; /* half width of the smoothing window in steps; 0: none */
    double above;      /* the greatest value that the axis does not reach, or NAN */
    struct axis {
        double lo, hi, tick; /* ticks are multiples of `tick` */
        double at_lo, at_hi; /* pixels */
    } x, y, r;
};

static void series_add(struct series *s, int64_t step, double y) {
    if (s->count == s->capacity) {
        s->capacity = max_i64(1024, 2 * s->capacity);
        s->x = xrealloc(s->x, (size_t)s->capacity * sizeof *s->x);
        s->y = xrealloc(s->y, (size_t)s->capacity * sizeof *s->y);
    }
    s->x[s->count] = (double)step;
    s->y[s->count++] = y;
}

static void series_free(struct series *s) {
    free(s->x);
    free(s->y);
}

static bool read_rows(struct plot *p, const char *log, struct error *err) {
    struct mapped_file m;
    if (!file_map(&m, log, err)) return false;
    for (int64_t at = 0; at < m.size;) {
        const char *line = (const char *)m.data + at, *end = memchr(line, '\n', (size_t)(m.size - at));
        int64_t size = end ? end - line : m.size - at;
        struct log_row row;
        at += size + 1;
        if (!log_row_parse(&row, line, size)) continue;
        if (row.validation) {
            series_add(&p->validation, row.step, row.loss);
            continue;
        }
        series_add(&p->loss, row.step, row.loss);
        series_add(&p->rate, row.step, row.lr);
        if (row.skipped || isnan(row.loss)) series_add(&p->trouble, row.step, 0);
    }
    file_unmap(&m);
    return true;
}

/* --- ranges and ticks --- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The range of what is to be seen. A loss that explodes must not flatten the rest of the curve: values
 * further above the bulk than five times its spread stay outside. */
static void loss_range(struct plot *p, double *lo, double *hi) {
    double *v = xmalloc((size_t)(p->loss.count + p->validation.count + 1) * sizeof *v);
    int64_t n = 0;
    for (int64_t i = 0; i < p->loss.count; i++)
        if (isfinite(p->loss.y[i])) v[n++] = p->loss.y[i];
    for (int64_t i = 0; i < p->validation.count; i++)
        if (isfinite(p->validation.y[i])) v[n++] = p->validation.y[i];
    *lo = 0, *hi = 1;
    p->above = NAN;
    if (n) {
        qsort(v, (size_t)n, sizeof *v, by_value);
        double low = v[n / 20], high = v[n - 1 - n / 20];
        double limit = high + 5 * fmax(high - low, 0.02 * fabs(high));
        *lo = v[0];
        *hi = v[n - 1];
        if (!(*hi <= limit)) p->above = *hi;
        while (n > 1 && !(v[n - 1] <= limit)) n--;
        *hi = v[n - 1];
    }
    free(v);
    if (isfinite(p->floor_loss)) {
        *lo = fmin(*lo, p->floor_loss);
        *hi = fmax(*hi, p->floor_loss);
    }
}

/* 1, 2 or 5 times a power of ten, so that about `wanted` of them make the range. */
static double nice_tick(double range, int wanted) {
    double rough = range / wanted, power = pow(10, floor(log10(rough))), m = rough / power;
    return power * (m < 1.5 ? 1 : m < 3.5 ? 2 : m < 7.5 ? 5 : 10);
}

/* `margin`: share of the range to leave free at both ends. */
static struct axis axis_make(double lo, double hi, double margin, int ticks, double at_lo, double at_hi) {
    lo = fmax(-1e300, fmin(1e300, lo)), hi = fmax(-1e300, fmin(1e300, hi));
    /* A constant, or nearly one: room around it, so that rounding noise does not fill the panel. */
    double least = fmax(1e-6 * fmax(fabs(lo), fabs(hi)), 1e-300);
    if (!(hi - lo >= least)) {
        double room = fmax(fabs(lo), fabs(hi)) * 0.1;
        if (!(room > 1e-250)) room = 1;
        lo -= room, hi += room;
    }
    double range = hi - lo;
    lo -= margin * range, hi += margin * range;
    return (struct axis){lo, hi, nice_tick(hi - lo, ticks), at_lo, at_hi};
}

/* Clamped well outside the panel: renderers compute in single precision. */
static double axis_at(const struct axis *a, double v) {
    double share = (v - a->lo) / (a->hi - a->lo);
    return a->at_lo + fmax(-1, fmin(2, share)) * (a->at_hi - a->at_lo);
}

static void make_axes(struct plot *p) {
    double first = INFINITY, last = 0, lo, hi, rate = 0;
    const struct series *all[] = {&p->loss, &p->validation};
    for (size_t k = 0; k < ARRAY_LENGTH(all); k++)
        for (int64_t i = 0; i < all[k]->count; i++) {
            first = fmin(first, all[k]->x[i]);
            last = fmax(last, all[k]->x[i]);
        }
    for (int64_t i = 0; i < p->rate.count; i++)
        if (p->rate.y[i] > rate) rate = p->rate.y[i];
    /* From zero, unless the log begins late. */
    if (!(first > 0.2 * last && first > 100 && first <= last)) first = 0;
    if (!(last > first)) last = first + 1;
    p->x = axis_make(first, last, 0, 8, LEFT, RIGHT);
    p->x.tick = fmax(1, p->x.tick);
    loss_range(p, &lo, &hi);
    p->y = axis_make(lo, hi, 0.04, 6, BOTTOM, TOP);
    p->r = axis_make(0, rate > 0 ? 1.08 * rate : 1, 0, 3, RATE_BOTTOM, RATE_TOP);
}

/* --- text --- */

/* A tick's value: with as many digits as tell it from the next one, and no more. */
static void format_tick(char out[32], double v, double tick) {
    if (fabs(v) < 0.5 * tick) v = 0;
    double size = fmax(fabs(v), tick);
    int decimals = (int)fmax(0, ceil(-log10(tick) - 1e-9));
    if (size < 1e5 && decimals <= 3) {
        snprintf(out, 32, "%.*f", decimals, v);
    } else if (v == 0) {
        snprintf(out, 32, "0");
    } else {
        int exponent = (int)floor(log10(fabs(v)) + 1e-9);
        int digits = (int)fmax(0, exponent - floor(log10(tick) + 1e-9));
        snprintf(out, 32, "%.*fe%d", (int)fmin(digits, 12), v / pow(10, exponent), exponent);
    }
}

static void format_step(char out[32], double v, double last) {
    if (v < 0.5) v = 0; /* not -0 */
    if (last >= 1e6 && v > 0)
        snprintf(out, 32, "%gM", v / 1e6);
    else if (last >= 1e4 && v > 0)
        snprintf(out, 32, "%gk", v / 1e3);
    else
        snprintf(out, 32, "%.0f", v);
}

static void format_loss(char out[32], double v) { snprintf(out, 32, fabs(v) < 1e4 ? "%.4f" : "%.3e", v); }

/* XML text: markup escaped, and what XML 1.0 or UTF-8 does not allow replaced. */
static void put_text(FILE *f, const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    while (*s) {
        int more = *s < 0x80                 ? 0
                   : *s >= 0xC2 && *s < 0xE0 ? 1
                   : (*s & 0xF0) == 0xE0     ? 2
                   : *s >= 0xF0 && *s < 0xF5 ? 3
                                             : -1;
        uint32_t c = more == 1 ? *s & 0x1F : more == 2 ? *s & 0x0F : more == 3 ? *s & 0x07 : *s;
        int i = 1;
        for (; i <= more && (s[i] & 0xC0) == 0x80; i++) c = c << 6 | (s[i] & 0x3F);
        bool valid = more >= 0 && i > more && c >= 0x20 && c != 0x7F && !(c >= 0xD800 && c < 0xE000) &&
                     c != 0xFFFE && c != 0xFFFF && !(more == 2 && c < 0x800) &&
                     !(more == 3 && (c < 0x10000 || c > 0x10FFFF));
        if (!valid)
            fputs("?", f), i = 1;
        else if (c == '&' || c == '<' || c == '>' || c == '"')
            fprintf(f, "&#%u;", c);
        else
            fwrite(s, 1, (size_t)i, f);
        s += i;
    }
}

/* anchor: start, middle or end. */
static void label(struct plot *p, double x, double y, const char *anchor, const char *colour,
                  const char *text) {
    fprintf(p->svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\">", x, y, anchor, colour);
    put_text(p->svg, text);
    fputs("</text>\n", p->svg);
}

/* --- lines --- */

/* Writes one path: M after a gap, L otherwise. */
struct pen {
    FILE *svg;
    bool down;
};

static void pen_to(struct pen *pen, double x, double y) {
    fprintf(pen->svg, "%c%.1f %.1f", pen->down ? 'L' : 'M', x, y);
    pen->down = true;
}

static void begin_path(struct plot *p, const char *colour, double width, const char *more) {
    fprintf(p->svg,
            "<path fill=\"none\" stroke=\"%s\" stroke-width=\"%.1f\" stroke-linejoin=\"round\" %s d=\"",
            colour, width, more);
}

/* The points [first, end) that share one pixel column. */
static int64_t column_end(const struct plot *p, const struct series *s, int64_t first) {
    int64_t end = first + 1;
    double column = floor(axis_at(&p->x, s->x[first]));
    while (end < s->count && floor(axis_at(&p->x, s->x[end])) == column) end++;
    return end;
}

static void draw_series(struct plot *p, const struct series *s, const struct axis *y, const char *colour,
                        double width) {
    struct pen pen = {p->svg, false};
    begin_path(p, colour, width, "");
    for (int64_t i = 0, end; i < s->count; i = end) {
        int64_t least = -1, most = -1;
        end = column_end(p, s, i);
        bool gap = false; /* only a column without any value breaks the line */
        for (int64_t k = i; k < end; k++) {
            if (!isfinite(s->y[k])) continue;
            if (least < 0 || s->y[k] < s->y[least]) least = k;
            if (most < 0 || s->y[k] > s->y[most]) most = k;
        }
        gap = least < 0;
        if (gap) {
            pen.down = false;
            continue;
        }
        int64_t one = least < most ? least : most, two = least < most ? most : least;
        pen_to(&pen, axis_at(&p->x, s->x[one]), axis_at(y, s->y[one]));
        if (two != one) pen_to(&pen, axis_at(&p->x, s->x[two]), axis_at(y, s->y[two]));
    }
    fputs("\"/>\n", p->svg);
}

/* The mean around row i, weighted by a triangle. At the start it shrinks, so that the curve does not lag
 * behind the steep part; at the end it is cut, so that the curve ends in a mean and not in the last row's
 * noise. Spikes count as the top of the axis. NAN where there is nothing. */
static double smoothed(const struct plot *p, int64_t i) {
    int64_t half = min_i64(p->smoothing, i), last = min_i64(i + half, p->loss.count - 1);
    double sum = 0, weights = 0;
    for (int64_t k = i - half; k <= last; k++) {
        if (!isfinite(p->loss.y[k])) continue;
        double weight = (double)(half + 1 - (k < i ? i - k : k - i));
        sum += weight * fmin(p->loss.y[k], p->y.hi);
        weights += weight;
    }
    return weights > 0 ? sum / weights : NAN;
}

static void draw_training(struct plot *p) {
    const struct series *s = &p->loss;
    struct pen pen = {p->svg, false};
    begin_path(p, TRAINING, 2, "stroke-linecap=\"round\"");
    for (int64_t i = 0, end; i < s->count; i = end) {
        end = p->smoothing > 0 ? column_end(p, s, i) : i + 1;
        double v = smoothed(p, (i + end - 1) / 2), x = axis_at(&p->x, s->x[(i + end - 1) / 2]);
        if (isnan(v)) {
            pen.down = false;
            continue;
        }
        pen_to(&pen, x, axis_at(&p->y, v));
    }
    fputs("\"/>\n", p->svg);
    if (s->count > 30) return;
    for (int64_t i = 0; i < s->count; i++)
        if (isfinite(s->y[i]))
            fprintf(p->svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"" TRAINING "\"/>\n",
                    axis_at(&p->x, s->x[i]), axis_at(&p->y, s->y[i]));
}

static void draw_rate(struct plot *p) {
    draw_series(p, &p->rate, &p->r, RATE, 1.6);
    if (p->rate.count == 1 && isfinite(p->rate.y[0]))
        fprintf(p->svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"" RATE "\"/>\n",
                axis_at(&p->x, p->rate.x[0]), axis_at(&p->r, p->rate.y[0]));
}

static void draw_floor(struct plot *p) {
    if (!isfinite(p->floor_loss)) return;
    begin_path(p, FLOOR, 1.5, "stroke-dasharray=\"6 4\"");
    fprintf(p->svg, "M%d %.1fH%d\"/>\n", LEFT, axis_at(&p->y, p->floor_loss), RIGHT);
}

static void draw_validation(struct plot *p) {
    const struct series *s = &p->validation;
    int64_t every = ceil_div(s->count, 40);
    draw_series(p, s, &p->y, VALIDATION, 1.6);
    for (int64_t i = 0; i < s->count; i++)
        if (isfinite(s->y[i]) && (s->count - 1 - i) % every == 0)
            fprintf(p->svg,
                    "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.4\" fill=\"" VALIDATION "\" stroke=\"#fff\"/>\n",
                    axis_at(&p->x, s->x[i]), axis_at(&p->y, s->y[i]));
}

static void draw_trouble(struct plot *p) {
    if (!p->trouble.count) return;
    begin_path(p, TROUBLE, 1.5, "");
    for (int64_t i = 0; i < p->trouble.count; i = column_end(p, &p->trouble, i))
        fprintf(p->svg, "M%.1f %dv-9", axis_at(&p->x, p->trouble.x[i]), BOTTOM);
    fputs("\"/>\n", p->svg);
}

/* --- the parts of the picture --- */

/* A panel's frame, horizontal grid and tick labels. */
static void draw_panel(struct plot *p, const struct axis *y) {
    double top = y->at_hi, bottom = y->at_lo;
    for (double k = ceil(y->lo / y->tick - 1e-9); k * y->tick <= y->hi + 1e-9 * y->tick; k++) {
        char text[32];
        double at = axis_at(y, k * y->tick);
        format_tick(text, k * y->tick, y->tick);
        fprintf(p->svg, "<path stroke=\"#e6e9ed\" d=\"M%d %.1fH%d\"/>\n", LEFT, at, RIGHT);
        label(p, LEFT - 8, at + 4, "end", MUTED, text);
    }
    for (double k = ceil(p->x.lo / p->x.tick - 1e-9); k * p->x.tick <= p->x.hi * (1 + 1e-9); k++)
        fprintf(p->svg, "<path stroke=\"#e6e9ed\" d=\"M%.1f %.1fV%.1f\"/>\n", axis_at(&p->x, k * p->x.tick),
                top, bottom);
    fprintf(p->svg, "<path fill=\"none\" stroke=\"#b6bdc6\" d=\"M%d %.1fV%.1fH%d\"/>\n", LEFT, top, bottom,
            RIGHT);
}

static void draw_step_axis(struct plot *p) {
    for (double k = ceil(p->x.lo / p->x.tick - 1e-9); k * p->x.tick <= p->x.hi * (1 + 1e-9); k++) {
        char text[32];
        format_step(text, k * p->x.tick, p->x.hi);
        label(p, axis_at(&p->x, k * p->x.tick), RATE_BOTTOM + 18, "middle", MUTED, text);
    }
    label(p, 0.5 * (LEFT + RIGHT), RATE_BOTTOM + 42, "middle", INK, "optimizer step");
}

struct legend {
    struct plot *p;
    double x; /* where the next item ends: items are placed from the right */
};

/* `mark` is drawn with the origin at the left of a 22 pixel wide field. */
static void legend_item(struct legend *g, const char *text, const char *mark) {
    double width = 22 + 6 + 6.7 * (double)strlen(text);
    g->x -= width;
    fprintf(g->p->svg, "<g transform=\"translate(%.1f %d)\">%s</g>\n", g->x, TOP - 16, mark);
    label(g->p, g->x + 28, TOP - 12, "start", INK, text);
    g->x -= 18;
}

static void draw_legend(struct plot *p) {
    struct legend g = {p, RIGHT};
    if (p->trouble.count)
        legend_item(&g, "update skipped",
                    "<path stroke=\"" TROUBLE "\" stroke-width=\"1.5\" d=\"M7 4v-9M11 4v-9M15 4v-9\"/>");
    if (isfinite(p->floor_loss))
        legend_item(&g, "floor",
                    "<path stroke=\"" FLOOR
                    "\" stroke-width=\"1.5\" stroke-dasharray=\"6 4\" d=\"M0 0H22\"/>");
    if (p->validation.count)
        legend_item(&g, "validation",
                    "<path stroke=\"" VALIDATION
                    "\" stroke-width=\"1.6\" d=\"M0 0H22\"/><circle cx=\"11\" r=\"3.6\" fill=\"" VALIDATION
                    "\"/>");
    legend_item(&g, p->smoothing ? "training, smoothed" : "training",
                "<path stroke=\"" TRAINING "\" stroke-width=\"2\" d=\"M0 0H22\"/>");
    if (p->smoothing)
        legend_item(&g, "training",
                    "<path stroke=\"" RAW "\" d=\"M0 2l4 -5 4 8 5 -9 5 7 4 -4\" fill=\"none\"/>");
}

/* Names and final values at the right of the curves, moved apart where they would overlap. */
static void draw_end_labels(struct plot *p) {
    enum { MOST = 3, GAP = 16 };
    struct end_label {
        double y;
        const char *colour;
        char text[64];
    } l[MOST];
    int n = 0;
    double train = p->loss.count ? smoothed(p, p->loss.count - 1) : NAN,
           val = p->validation.count ? p->validation.y[p->validation.count - 1] : NAN;
    const struct {
        const char *name, *colour;
        double value;
    } wanted[MOST] = {{"train", TRAINING, train}, {"val", VALIDATION, val}, {"floor", FLOOR, p->floor_loss}};
    for (int i = 0; i < MOST; i++) {
        if (!isfinite(wanted[i].value)) continue;
        char value[32];
        format_loss(value, wanted[i].value);
        struct end_label e = {fmax(TOP, fmin(BOTTOM, axis_at(&p->y, wanted[i].value))), wanted[i].colour, ""};
        snprintf(e.text, sizeof e.text, "%s %s", wanted[i].name, value);
        int k = n++;
        for (; k > 0 && l[k - 1].y > e.y; k--) l[k] = l[k - 1];
        l[k] = e;
    }
    for (int i = n - 2; i >= 0; i--) l[i].y = fmin(l[i].y, l[i + 1].y - GAP);
    for (int i = 0; i < n; i++) label(p, RIGHT + 10, l[i].y + 4, "start", l[i].colour, l[i].text);
    if (!isnan(p->above)) {
        char text[64];
        snprintf(text, sizeof text, "\xE2\x86\x91 up to %.3g", p->above);
        label(p, RIGHT + 10, n && l[0].y < TOP + GAP ? l[0].y - GAP + 4 : TOP + 4, "start", MUTED, text);
    }
}

/* One line of numbers under the title. */
static void draw_summary(struct plot *p) {
    char text[256], step[32];
    double last = p->loss.count ? p->loss.x[p->loss.count - 1] : 0;
    double val = p->validation.count ? p->validation.y[p->validation.count - 1] : NAN;
    int digits = snprintf(step, sizeof step, "%.0f", last);
    for (int at = digits - 3; at > 0; at -= 3) {
        memmove(step + at + 1, step + at, strlen(step + at) + 1);
        step[at] = ',';
    }
    char above[80] = "", skipped[80] = "";
    double share = 100 * (val / p->floor_loss - 1);
    if (isfinite(share) && p->floor_loss > 0)
        snprintf(above, sizeof above,
                 fabs(share) < 1e6 ? "  \xC2\xB7  validation loss %.1f %% above the floor"
                                   : "  \xC2\xB7  validation loss %.1e %% above the floor",
                 share);
    if (p->trouble.count)
        snprintf(skipped, sizeof skipped, "  \xC2\xB7  %" PRId64 " update%s skipped", p->trouble.count,
                 p->trouble.count == 1 ? "" : "s");
    snprintf(text, sizeof text, "%s%s%s%s", p->loss.count ? "after step " : "no training steps yet",
             p->loss.count ? step : "", above, skipped);
    fputs("<g font-size=\"13\">", p->svg);
    label(p, 24, 56, "start", MUTED, text);
    fputs("</g>\n", p->svg);
}

/* --- the whole --- */

static void draw(struct plot *p, const char *title) {
    fprintf(p->svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
            "font-family=\"system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif\" "
            "font-size=\"12\">\n<title>",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    put_text(p->svg, title);
    fprintf(p->svg, ": loss and learning rate</title>\n<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
            WIDTH, HEIGHT);
    fputs("<g font-size=\"19\" font-weight=\"600\">", p->svg);
    label(p, 24, 34, "start", INK, title);
    fputs("</g>\n", p->svg);
    draw_summary(p);
    label(p, 24, TOP - 12, "start", INK, "loss (nats per token)");
    draw_legend(p);
    draw_panel(p, &p->y);
    fprintf(p->svg,
            "<clipPath id=\"panel\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/></clipPath>\n<g "
            "clip-path=\"url(#panel)\">\n",
            LEFT - 4, TOP - 4, RIGHT - LEFT + 8, BOTTOM - TOP + 8);
    if (p->smoothing > 0) draw_series(p, &p->loss, &p->y, RAW, 1);
    draw_floor(p);
    draw_training(p);
    draw_validation(p);
    draw_trouble(p);
    fputs("</g>\n", p->svg);
    draw_end_labels(p);
    label(p, 24, RATE_TOP - 10, "start", INK, "learning rate");
    draw_panel(p, &p->r);
    draw_rate(p);
    draw_step_axis(p);
    fputs("</svg>\n", p->svg);
}

bool plot_log(const char *svg, const char *log, const char *title, double floor_loss, struct error *err) {
    struct plot p = {.floor_loss = floor_loss};
    char *text = NULL;
    size_t size = 0;
    bool ok = read_rows(&p, log, err);
    if (ok) {
        p.smoothing = p.loss.count / 50;
        make_axes(&p);
        p.svg = open_memstream(&text, &size);
        check(p.svg != NULL, "out of host memory while drawing %s", svg);
        draw(&p, title);
        check(fclose(p.svg) == 0, "out of host memory while drawing %s", svg);
        ok = write_file_atomic(svg, text, size, err);
    }
    free(text);
    series_free(&p.loss);
    series_free(&p.rate);
    series_free(&p.validation);
    series_free(&p.trouble);
    return ok;
}
