/* The page of `train_gpt profile`: the step as a stacked bar, a roofline picture, and the table. Each
 * family of operations has a colour and its members shades of it, so that pages can be compared. The
 * pictures are SVG, with coordinates in pixels of a page 1000 wide. */
#include "llmc/report/profile_page.h"

#include "llmc/report/page.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* --- text and colours --- */

/* Model names can be paths: markup in them is escaped. */
static void put_text(struct writer *w, const char *text) {
    for (const char *s = text; *s; s++)
        if (*s == '&' || *s == '<' || *s == '>')
            writer_printf(w, "&#%d;", *s);
        else
            writer_put(w, s, 1);
}

static const char *colour_of(const struct profile_row *r) {
    switch (r->op) {
    case OP_matmul_forward:
        return "#5b8dd6";
    case OP_matmul_backward:
        return "#1f4e9c";
    case OP_attn_forward:
        return "#f0746a";
    case OP_attn_backward:
        return "#b3261e";
    case OP_norm_forward:
    case OP_residual_norm_forward:
        return "#6bbf6b";
    case OP_norm_backward:
        return "#2b7a33";
    case OP_act_forward:
    case OP_act_backward:
        return "#7a5ac8";
    case OP_loss_forward:
        return "#d18a00";
    case OP_adamw:
    case OP_lion:
    case OP_muon_momentum:
    case OP_normalize:
    case OP_ns_factor:
    case OP_muon_update:
        return "#a04bb0";
    case OP_sumsq:
        return "#cf8fd8";
    case OP_embed_forward:
    case OP_embed_backward:
        return "#0f8a8a";
    default:
        return "#8a8f98";
    }
}

static bool is_matmul(const struct profile_row *r) {
    return r->op == OP_matmul_forward || r->op == OP_matmul_backward;
}

/* The label in a picture: "bwd 768→3072" for a matmul, the name of any other operation. */
static void short_name(char out[64], const struct profile_row *r) {
    if (is_matmul(r))
        snprintf(out, 64, "%s %" PRId64 "\u2192%" PRId64, r->op == OP_matmul_forward ? "fwd" : "bwd",
                 r->shape[1], r->shape[2]);
    else
        snprintf(out, 64, "%s", r->name);
}

/* Rough width of a text in a sans-serif font. */
static double text_width(const char *text, double size) {
    double characters = 0;
    for (const char *s = text; *s; s++) characters += (*s & 0xC0) != 0x80; /* UTF-8 */
    return 0.6 * size * characters;
}

/* --- the bar --- */

enum { PAGE = 1000, BAR_HEIGHT = 44, LABEL_SIZE = 12 };

/* Draws the rows, widest first, as one bar for `total` seconds. The part of each row that the roofline
 * explains has its full colour, the gap is pale. Labels are below, where there is room. */
static void write_bar(struct writer *w, const struct profile *p, bool matmuls, double total) {
    int order[PROFILE_ROWS], line[PROFILE_ROWS], count = 0;
    for (int i = 0; i < p->count; i++) {
        if (is_matmul(&p->row[i]) && !matmuls) continue;
        int k = count++;
        for (; k > 0 && p->row[order[k - 1]].seconds < p->row[i].seconds; k--) order[k] = order[k - 1];
        order[k] = i;
    }
    writer_printf(w, "<svg viewBox='0 0 %d %d' width='100%%' role='img' class='halo'>\n", PAGE,
                  BAR_HEIGHT + 40);
    double x = 0.0, free_from[2] = {0.0, 0.0};
    for (int i = 0; i < count; i++) {
        const struct profile_row *r = &p->row[order[i]];
        double width = PAGE * r->seconds / total, ideal = fmin(width, PAGE * r->ideal / total);
        const char *colour = colour_of(r);
        char name[64];
        short_name(name, r);
        writer_printf(w, "<g><title>");
        put_text(w, r->name);
        writer_printf(w, ": %.3f ms, of which %.3f ms at the roofline</title>", 1e3 * r->seconds,
                      1e3 * r->ideal);
        writer_printf(w, "<rect x='%.2f' y='0' width='%.2f' height='%d' fill='%s'/>", x, ideal, BAR_HEIGHT,
                      colour);
        writer_printf(w, "<rect x='%.2f' y='0' width='%.2f' height='%d' fill='%s' opacity='0.3'/>", x + ideal,
                      width - ideal, BAR_HEIGHT, colour);
        writer_printf(w, "<path d='M%.2f 0V%d' stroke='#fff'/>", x + width, BAR_HEIGHT);
        line[i] = -1;
        for (int k = 0; k < 2 && line[i] < 0; k++) { /* two lines of labels take more of them than one */
            double need = text_width(name, LABEL_SIZE);
            if (x < free_from[k] || width < 6.0 || x + need > PAGE) continue;
            writer_printf(w, "<path d='M%.1f %dv%d' stroke='%s'/>", x + 0.5, BAR_HEIGHT, 6 + 16 * k, colour);
            free_from[k] = x + need + 8.0;
            line[i] = k;
        }
        writer_printf(w, "</g>\n");
        x += width;
    }
    x = 0.0;
    for (int i = 0; i < count; i++) { /* over the marks, which may cross them */
        char name[64];
        short_name(name, &p->row[order[i]]);
        if (line[i] >= 0) {
            writer_printf(w, "<text x='%.1f' y='%d' font-size='%d'>", x, BAR_HEIGHT + 18 + 16 * line[i],
                          LABEL_SIZE);
            put_text(w, name);
            writer_printf(w, "</text>\n");
        }
        x += PAGE * p->row[order[i]].seconds / total;
    }
    writer_printf(w, "</svg>\n");
}

/* --- the roofline: both axes logarithmic, FLOPs a byte and FLOP/s --- */

enum { HEIGHT = 520, LEFT = 96, RIGHT = 24, TOP = 16, BOTTOM = 56, DOT_LABEL = 11 };

struct box {
    double x0, y0, x1, y1;
};

struct roofline {
    struct writer *w;
    const struct profile *p;
    double x0, x1, y0, y1;                    /* decades */
    struct box taken[2 * PROFILE_ROWS + 128]; /* dots, their labels, the line */
    int taken_count;
};

static double at_x(const struct roofline *r, double v) {
    double share = (log10(v) - r->x0) / (r->x1 - r->x0);
    return LEFT + fmin(fmax(share, 0.0), 1.0) * (PAGE - LEFT - RIGHT);
}
static double at_y(const struct roofline *r, double v) {
    double share = (log10(v) - r->y0) / (r->y1 - r->y0);
    return HEIGHT - BOTTOM - fmin(fmax(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM);
}
static double roof(const struct profile *p, double intensity) {
    return fmin(p->matmul_rate, intensity * p->copy_rate);
}
static bool has_dot(const struct profile_row *r) {
    return r->flops > 0.0 && r->bytes > 0.0 && r->seconds > 0.0;
}

/* Half-decades around the points, at most six decades of FLOP/s. */
static void choose_range(struct roofline *r) {
    const struct profile *p = r->p;
    double ridge = log10(p->matmul_rate / p->copy_rate);
    r->x0 = ridge - 0.5, r->x1 = ridge + 0.5;
    r->y1 = log10(p->matmul_rate), r->y0 = r->y1 - 1.0;
    for (int i = 0; i < p->count; i++) {
        if (!has_dot(&p->row[i])) continue;
        double x = log10(p->row[i].flops / p->row[i].bytes), y = log10(p->row[i].flops / p->row[i].seconds);
        r->x0 = fmin(r->x0, x - 0.2), r->x1 = fmax(r->x1, x + 0.2);
        r->y0 = fmin(r->y0, y - 0.2), r->y1 = fmax(r->y1, y);
    }
    r->x0 = floor(2.0 * r->x0) / 2.0, r->x1 = ceil(2.0 * r->x1) / 2.0;
    r->y1 = ceil(2.0 * r->y1 + 0.2) / 2.0, r->y0 = fmax(floor(2.0 * r->y0) / 2.0, r->y1 - 6.0);
}

static void write_axes(struct roofline *r) {
    struct writer *w = r->w;
    for (double d = ceil(r->x0); d <= r->x1; d += 1.0)
        writer_printf(
            w,
            "<path d='M%.1f %dV%d' stroke='#e3e6ea'/><text x='%.1f' y='%d' text-anchor='middle'>%g</text>\n",
            at_x(r, pow(10, d)), TOP, HEIGHT - BOTTOM, at_x(r, pow(10, d)), HEIGHT - BOTTOM + 18, pow(10, d));
    for (double d = ceil(r->y0); d <= r->y1; d += 1.0) {
        static const char *const units[] = {"", "k", "M", "G", "T", "P", "E"};
        int unit = (int)fmin(fmax(floor(d / 3.0), 0.0), 6.0);
        writer_printf(w,
                      "<path d='M%d %.1fH%d' stroke='#e3e6ea'/><text x='%d' y='%.1f' text-anchor='end'>%g "
                      "%sFLOP/s</text>\n",
                      LEFT, at_y(r, pow(10, d)), PAGE - RIGHT, LEFT - 8, at_y(r, pow(10, d)) + 4,
                      pow(10, d - 3 * unit), units[unit]);
    }
    double ridge = r->p->matmul_rate / r->p->copy_rate, first = pow(10, r->x0);
    double start = fmax(first, pow(10, r->y0) / r->p->copy_rate); /* where the slope enters the picture */
    writer_printf(
        w,
        "<polyline fill='none' stroke='#24292f' stroke-width='2' points='%.1f,%.1f %.1f,%.1f %.1f,%.1f'/>\n",
        at_x(r, start), at_y(r, start * r->p->copy_rate), at_x(r, ridge), at_y(r, r->p->matmul_rate),
        at_x(r, pow(10, r->x1)), at_y(r, r->p->matmul_rate));
    writer_printf(w, "<text x='%.1f' y='%.1f'>matmul %sFLOP/s</text>\n", at_x(r, ridge),
                  at_y(r, r->p->matmul_rate) - 7, human_count(r->p->matmul_rate));
    r->taken[r->taken_count++] = (struct box){at_x(r, ridge), at_y(r, r->p->matmul_rate) - 20,
                                              at_x(r, ridge) + 140, at_y(r, r->p->matmul_rate)};
    double middle = pow(start, 0.75) * pow(ridge, 0.25); /* of the slope, on the logarithmic axis */
    for (int i = 0; i <= 100; i++) {                     /* labels keep off the line and its name */
        double v = pow(10, r->x0 + (r->x1 - r->x0) * i / 100.0), x = at_x(r, v), y = at_y(r, roof(r->p, v));
        double above = fabs(x - at_x(r, middle)) < 70.0 ? 24.0 : 5.0;
        r->taken[r->taken_count++] = (struct box){x - 5, y - above, x + 5, y + 5};
    }
    double dx = at_x(r, ridge) - at_x(r, start),
           dy = at_y(r, start * r->p->copy_rate) - at_y(r, r->p->matmul_rate);
    writer_printf(
        w,
        "<text transform='translate(%.1f %.1f) rotate(%.1f)' y='-7' text-anchor='middle'>copy %sB/s</text>\n",
        at_x(r, middle), at_y(r, middle * r->p->copy_rate), -atan2(dy, dx) * 180.0 / 3.14159265358979,
        human_count(r->p->copy_rate));
    writer_printf(w, "<text x='%d' y='%d' text-anchor='middle'>FLOPs a byte</text>\n",
                  (LEFT + PAGE - RIGHT) / 2, HEIGHT - 14);
}

static double dot_radius(const struct profile *p, const struct profile_row *r) {
    return 3.5 + 15.0 * sqrt(r->seconds / p->in_ops);
}

static bool is_free(const struct roofline *r, const struct box *b) {
    if (b->x0 < LEFT || b->x1 > PAGE - RIGHT + 16 || b->y0 < TOP || b->y1 > HEIGHT - BOTTOM) return false;
    for (int i = 0; i < r->taken_count; i++) {
        const struct box *t = &r->taken[i];
        if (b->x0 < t->x1 && t->x0 < b->x1 && b->y0 < t->y1 && t->y0 < b->y1) return false;
    }
    return true;
}

/* Places the label beside its dot, or further away with a line to it: at the first place where it covers
 * nothing. */
static void write_label(struct roofline *r, const struct profile_row *row, double x, double y,
                        double radius) {
    char name[64];
    short_name(name, row);
    double width = text_width(name, DOT_LABEL), height = DOT_LABEL + 2.0;
    for (int ring = 0; ring < 12; ring++)
        for (int k = 0; k < 8; k++) {
            double angle = 3.14159265358979 * ((double[]){0, 1, 1.5, 0.5, 1.8, 1.2, 0.2, 0.8})[k];
            double distance = radius + 4.0 + 11.0 * ring, cx = x + distance * cos(angle),
                   cy = y - distance * sin(angle);
            double left = cos(angle) > 0.3 ? cx : cos(angle) < -0.3 ? cx - width : cx - width / 2.0;
            double top = sin(angle) > 0.3 ? cy - height : sin(angle) < -0.3 ? cy : cy - height / 2.0;
            struct box b = {left, top, left + width, top + height};
            if (!is_free(r, &b)) continue;
            r->taken[r->taken_count++] = b;
            if (ring > 0)
                writer_printf(r->w, "<path d='M%.1f %.1fL%.1f %.1f' stroke='#9aa0a6' stroke-width='0.7'/>", x,
                              y, fmin(fmax(cx, b.x0), b.x1), fmin(fmax(cy, b.y0), b.y1));
            writer_printf(r->w, "<text x='%.1f' y='%.1f' font-size='%d'>", left, top + height - 3.0,
                          DOT_LABEL);
            put_text(r->w, name);
            writer_printf(r->w, "</text>\n");
            return;
        }
}

static void write_roofline(struct writer *w, const struct profile *p) {
    struct roofline r = {.w = w, .p = p};
    choose_range(&r);
    writer_printf(w, "<svg viewBox='0 0 %d %d' width='100%%' font-size='12' role='img' class='halo'>\n", PAGE,
                  HEIGHT);
    write_axes(&r);
    for (int i = 0; i < p->count; i++) {
        const struct profile_row *row = &p->row[i];
        if (!has_dot(row)) continue;
        double intensity = row->flops / row->bytes, x = at_x(&r, intensity),
               y = at_y(&r, row->flops / row->seconds);
        double radius = dot_radius(p, row);
        writer_printf(w, "<g><title>");
        put_text(w, row->name);
        writer_printf(w, ": %.1f %% of the roofline, %.3f ms to gain</title>",
                      100.0 * row->ideal / row->seconds, 1e3 * (row->seconds - row->ideal));
        writer_printf(w, "<path d='M%.1f %.1fV%.1f' stroke='%s' stroke-dasharray='2 3'/>", x, y,
                      at_y(&r, roof(p, intensity)), colour_of(row));
        writer_printf(
            w, "<circle cx='%.1f' cy='%.1f' r='%.1f' fill='%s' fill-opacity='0.75' stroke='#fff'/></g>\n", x,
            y, radius, colour_of(row));
        r.taken[r.taken_count++] = (struct box){x - radius, y - radius, x + radius, y + radius};
    }
    for (int i = 0; i < p->count; i++) {
        const struct profile_row *row = &p->row[i];
        if (has_dot(row))
            write_label(&r, row, at_x(&r, row->flops / row->bytes), at_y(&r, row->flops / row->seconds),
                        dot_radius(p, row));
    }
    writer_printf(w, "</svg>\n");
}

/* --- the table --- */

static void write_table(struct writer *w, const struct profile *p) {
    writer_printf(w, "<table><tr><th>operation<th>variant<th>calls<th>ms<th>%% of step<th>GB/s<th>GFLOP/s"
                     "<th>%% of roofline<th>to gain, ms</tr>\n");
    for (int i = 0; i < p->count; i++) {
        const struct profile_row *r = &p->row[i];
        writer_printf(w, "<tr><td><i style='background:%s'></i>", colour_of(r));
        put_text(w, r->name);
        writer_printf(w, "<td>%s<td>%.0f<td>%.3f<td>%.1f<td>%.1f<td>%.1f<td>%.1f<td>%.3f</tr>\n", r->variant,
                      r->calls, 1e3 * r->seconds, 100.0 * r->seconds / p->in_ops,
                      r->bytes / r->seconds * 1e-9, r->flops / r->seconds * 1e-9,
                      100.0 * r->ideal / r->seconds, 1e3 * (r->seconds - r->ideal));
    }
    writer_printf(w, "<tr><th>all operations<th><th><th>%.3f<th>100.0<th><th><th>%.1f<th>%.3f</tr></table>\n",
                  1e3 * p->in_ops, 100.0 * p->ideal / p->in_ops, 1e3 * (p->in_ops - p->ideal));
}

/* --- the page --- */

static const char style[] =
    "body{font:15px/1.45 system-ui,sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;background:#fff;"
    "color:#24292f}table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-"
    "nums}td,th{padding:3px 8px;text-align:right;border-bottom:1px solid #e3e6ea;font-weight:normal}"
    "tr:first-child th,tr:last-child th{font-weight:600}td:first-child,th:first-child,td:nth-child(2),"
    "th:nth-child(2){text-align:left}i{display:inline-block;width:.8em;height:.8em;margin-right:.5em}.halo "
    "text{paint-order:stroke;stroke:#fff;stroke-width:3px}.where{font-size:17px;font-weight:600}h2{margin:1."
    "6em 0 .3em}p{margin:.4em 0}";

bool profile_write_page(const struct profile *p, const char *path, struct error *err) {
    struct writer w;
    double matmuls = 0.0;
    char date[32];
    time_t now = time(NULL);
    strftime(date, sizeof date, "%Y-%m-%d", localtime(&now));
    for (int i = 0; i < p->count; i++)
        if (is_matmul(&p->row[i])) matmuls += p->row[i].seconds;
    if (!page_open_output(&w, path, err)) return false;
    writer_printf(&w, "<!doctype html><html lang='en'><meta charset='utf-8'><title>");
    put_text(&w, p->title);
    writer_printf(&w, "</title>\n<style>%s</style>\n<h1>One training step</h1>\n<p class='where'>", style);
    put_text(&w, p->where);
    if (p->note) {
        writer_printf(&w, "</p>\n<p>");
        put_text(&w, p->note);
    }
    writer_printf(&w, "</p>\n<p>");
    put_text(&w, p->title);
    writer_printf(
        &w,
        "; %s. %.3f ms a step (median of %d, &#177; %.1f %%), %.0f tokens/s, %sFLOP/s by the convention of "
        "papers: %.1f %% of the matmul rate measured in the same run (%sFLOP/s; copying moves %sB/s). Every "
        "operation at its roofline, the step would take %.3f ms.</p>\n",
        date, 1e3 * p->step, (int)p->repeats, 100.0 * p->spread / p->step, p->tokens / p->step,
        human_count(p->model_flops / p->step), 100.0 * p->model_flops / p->step / p->matmul_rate,
        human_count(p->matmul_rate), human_count(p->copy_rate), 1e3 * p->ideal);
    writer_printf(
        &w,
        "<h2>Where the time goes</h2>\n<p>Full colour: what the roofline explains. Pale: what there is to "
        "gain. fwd and bwd: matmuls, columns in \u2192 columns out. All operations, %.3f ms:</p>\n",
        1e3 * p->in_ops);
    write_bar(&w, p, true, p->in_ops);
    if (matmuls > 0.5 * p->in_ops && p->in_ops > matmuls) {
        writer_printf(&w, "<p>What is not a matmul, %.3f ms:</p>\n", 1e3 * (p->in_ops - matmuls));
        write_bar(&w, p, false, p->in_ops - matmuls);
    }
    writer_printf(
        &w, "<h2>Roofline</h2>\n<p>A dot for each operation and each shape of a matmul, its area by time. "
            "The line is the most that this device does; what a dot lacks is dotted.</p>\n");
    write_roofline(&w, p);
    writer_printf(&w, "<h2>By what there is to gain</h2>\n");
    write_table(&w, p);
    writer_printf(&w, "</html>\n");
    return page_close_output(&w, path, err);
}
