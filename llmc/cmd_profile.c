/* `train_gpt profile`: one training step, operation by operation: time, what the hardware could do, what
 * there is to gain. Prints a table, and with --html writes a page with a roofline picture and the step as one
 * bar.
 *
 * Order: measuring, the table, the page, the command. */
#include "commands.h"
#include "file.h"
#include "rng.h"
#include "run_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct profile_config {
    struct run_config run;
    const char *html;
    int64_t repeats;
};

/* The options of training, with the structure they live in first in ours, and two more. */
static const struct option_row rows[] = {
    OPT_TEXT(struct profile_config, html, "html", NULL, "FILE", "write a page with pictures", 0),
    OPT_INT(struct profile_config, repeats, "repeats", "7", 1, 1000, "N",
            "steps to measure; medians are shown", 0),
};

/* --- measuring --- */

struct op_row {
    enum op_id op;
    const char *variant;
    double calls, flops, bytes; /* a step */
    double seconds;             /* median over steps */
    double ideal;               /* the longer of: bytes at the copy rate, FLOPs at the matmul rate */
};

struct profile {
    struct op_row rows[OP_COUNT]; /* by what there is to gain */
    int count;
    double step;   /* median wall time of a step, unprofiled */
    double in_ops; /* sum of the rows' seconds */
    double matmul_rate, copy_rate, tokens, model_flops;
    const char *device;
};

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *values, int64_t n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

static int by_gain(const void *a, const void *b) {
    const struct op_row *x = (const struct op_row *)a, *y = (const struct op_row *)b;
    double gx = x->seconds - x->ideal, gy = y->seconds - y->ideal;
    return (gx < gy) - (gx > gy);
}

static void run_step(struct gpt *g, struct optimizer *opt, const struct run_config *c) {
    int64_t micro_steps = c->tokens_per_step / (c->batch_size * c->seq_len);
    for (int64_t i = 0; i < micro_steps; i++)
        gpt_forward_backward(g, 1.0f / (float)c->tokens_per_step, i == 0);
    struct adamw_args args = run_adamw_args(c);
    args.step = 1;
    optimizer_step(opt, g, &args);
}

static void measure(struct profile *p, struct gpt *g, struct optimizer *opt, const struct profile_config *c) {
    struct ctx *ctx = g->ctx;
    struct device *d = ctx->device;
    int64_t n = c->repeats;
    double *wall = (double *)xmalloc((size_t)n * sizeof *wall);
    double *times = (double *)xmalloc((size_t)(n * OP_COUNT) * sizeof *times); /* (OP_COUNT, n) */
    for (int i = 0; i < 2; i++) run_step(g, opt, &c->run);
    d->synchronize(d, ctx->stream);
    for (int64_t i = 0; i < n; i++) {
        double started = now_seconds();
        run_step(g, opt, &c->run);
        d->synchronize(d, ctx->stream);
        wall[i] = now_seconds() - started;
    }
    ctx->profile = true;
    for (int64_t i = 0; i < n; i++) {
        ctx_reset_stats(ctx);
        run_step(g, opt, &c->run);
        ctx_collect_profile(ctx);
        for (int op = 0; op < OP_COUNT; op++) times[op * n + i] = ctx->stats[op].seconds;
    }
    p->step = median(wall, n);
    for (int op = 0; op < OP_COUNT; op++) {
        const struct op_stats *s = &ctx->stats[op];
        if (!s->calls) continue;
        struct op_row *row = &p->rows[p->count++];
        *row = (struct op_row){(enum op_id)op,
                               ctx->variant_in_use[op],
                               (double)s->calls,
                               s->flops,
                               s->bytes,
                               median(times + op * n, n),
                               0.0};
        row->ideal = fmax(s->bytes / p->copy_rate, s->flops / p->matmul_rate);
        p->in_ops += row->seconds;
    }
    qsort(p->rows, (size_t)p->count, sizeof *p->rows, by_gain);
    free(wall);
    free(times);
}

/* --- the table --- */

static void print_table(const struct profile *p) {
    printf("\n%-22s %-12s %6s %10s %7s %9s %9s %10s %10s\n", "operation", "variant", "calls", "ms", "% step",
           "GB/s", "GFLOP/s", "% roofline", "gap ms");
    for (int i = 0; i < p->count; i++) {
        const struct op_row *r = &p->rows[i];
        printf("%-22s %-12s %6.0f %10.3f %7.1f %9.1f %9.1f %10.1f %10.3f\n", op_name(r->op), r->variant,
               r->calls, 1e3 * r->seconds, 100.0 * r->seconds / p->in_ops, r->bytes / r->seconds * 1e-9,
               r->flops / r->seconds * 1e-9, 100.0 * r->ideal / r->seconds, 1e3 * (r->seconds - r->ideal));
    }
    printf("\nstep %.3f ms (operations %.3f ms), %.0f tokens/s, %sFLOP/s = %.1f %% of the %sFLOP/s of matmul "
           "measured here;"
           " copy rate %sB/s\n",
           1e3 * p->step, 1e3 * p->in_ops, p->tokens / p->step, human_count(p->model_flops / p->step),
           100.0 * p->model_flops / p->step / p->matmul_rate, human_count(p->matmul_rate),
           human_count(p->copy_rate));
}

/* --- the page --- */

static const char *const colours[] = {"#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377",
                                      "#bbbbbb", "#994455", "#6699cc", "#997700", "#004488", "#eecc66"};

/* The step as one bar; an operation's part that the roofline explains is dark, the gap light. */
static void write_bar(struct writer *w, const struct profile *p) {
    enum { WIDTH = 1000, HEIGHT = 70 };
    double x = 0.0;
    writer_printf(w, "<svg viewBox='0 0 %d %d' width='100%%'>\n", WIDTH, HEIGHT);
    for (int i = 0; i < p->count; i++) {
        const struct op_row *r = &p->rows[i];
        double width = WIDTH * r->seconds / p->in_ops, ideal = fmin(width, WIDTH * r->ideal / p->in_ops);
        const char *colour = colours[i % (int)ARRAY_LENGTH(colours)];
        writer_printf(w, "<g><title>%s: %.3f ms, of which %.3f ms at the roofline</title>", op_name(r->op),
                      1e3 * r->seconds, 1e3 * r->ideal);
        writer_printf(w, "<rect x='%.2f' y='0' width='%.2f' height='40' fill='%s'/>", x, ideal, colour);
        writer_printf(w, "<rect x='%.2f' y='0' width='%.2f' height='40' fill='%s' opacity='0.35'/>",
                      x + ideal, width - ideal, colour);
        if (width > 75) writer_printf(w, "<text x='%.2f' y='58' font-size='12'>%s</text>", x, op_name(r->op));
        writer_printf(w, "</g>\n");
        x += width;
    }
    writer_printf(w, "</svg>\n");
}

/* Both axes logarithmic: FLOPs a byte, FLOP/s. */
static void write_roofline(struct writer *w, const struct profile *p) {
    enum { WIDTH = 1000, HEIGHT = 460, LEFT = 90, RIGHT = 30, TOP = 20, BOTTOM = 60 };
    double ridge = p->matmul_rate / p->copy_rate, x0 = -2.0, x1 = ceil(log10(ridge)) + 1.0;
    double y1 = ceil(log10(p->matmul_rate) * 2.0) / 2.0, y0 = y1 - 5.0;
    double sx = (WIDTH - LEFT - RIGHT) / (x1 - x0), sy = (HEIGHT - TOP - BOTTOM) / (y1 - y0);
#define PX(v) (LEFT + (fmin(fmax(log10(v), x0), x1) - x0) * sx)
#define PY(v) (HEIGHT - BOTTOM - (fmin(fmax(log10(v), y0), y1) - y0) * sy)
    writer_printf(w, "<svg viewBox='0 0 %d %d' width='100%%' font-size='13'>\n", WIDTH, HEIGHT);
    for (double d = x0; d <= x1; d += 1.0)
        writer_printf(w,
                      "<line x1='%.1f' x2='%.1f' y1='%d' y2='%d' stroke='#ddd'/><text x='%.1f' y='%d' "
                      "text-anchor='middle'>%g</text>\n",
                      PX(pow(10, d)), PX(pow(10, d)), TOP, HEIGHT - BOTTOM, PX(pow(10, d)),
                      HEIGHT - BOTTOM + 18, pow(10, d));
    for (double d = ceil(y0); d <= y1; d += 1.0)
        writer_printf(w,
                      "<line x1='%d' x2='%d' y1='%.1f' y2='%.1f' stroke='#ddd'/><text x='%d' y='%.1f' "
                      "text-anchor='end'>%s</text>\n",
                      LEFT, WIDTH - RIGHT, PY(pow(10, d)), PY(pow(10, d)), LEFT - 8, PY(pow(10, d)) + 4,
                      human_count(pow(10, d)));
    writer_printf(
        w, "<polyline fill='none' stroke='#222' stroke-width='2' points='%.1f,%.1f %.1f,%.1f %.1f,%.1f'/>\n",
        PX(pow(10, x0)), PY(pow(10, x0) * p->copy_rate), PX(ridge), PY(p->matmul_rate), PX(pow(10, x1)),
        PY(p->matmul_rate));
    writer_printf(w, "<text x='%d' y='%d' text-anchor='middle'>FLOPs a byte</text>\n",
                  (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14);
    writer_printf(w, "<text x='20' y='%d' text-anchor='middle' transform='rotate(-90 20 %d)'>FLOP/s</text>\n",
                  (HEIGHT - BOTTOM + TOP) / 2, (HEIGHT - BOTTOM + TOP) / 2);
    for (int i = 0; i < p->count; i++) {
        const struct op_row *r = &p->rows[i];
        if (r->flops <= 0.0 || r->bytes <= 0.0) continue;
        writer_printf(
            w,
            "<g><title>%s: %.1f %% of the roofline</title><circle cx='%.1f' cy='%.1f' r='%.1f' fill='%s' "
            "opacity='0.8'/></g>\n",
            op_name(r->op), 100.0 * r->ideal / r->seconds, PX(r->flops / r->bytes), PY(r->flops / r->seconds),
            4.0 + 14.0 * sqrt(r->seconds / p->in_ops), colours[i % (int)ARRAY_LENGTH(colours)]);
        if (r->seconds > 0.03 * p->in_ops)
            writer_printf(w, "<text x='%.1f' y='%.1f' text-anchor='middle' font-size='11'>%s</text>\n",
                          PX(r->flops / r->bytes),
                          PY(r->flops / r->seconds) + 14.0 + 14.0 * sqrt(r->seconds / p->in_ops),
                          op_name(r->op));
    }
    writer_printf(w, "</svg>\n");
#undef PX
#undef PY
}

static bool write_page(const char *path, const struct profile *p, const char *title, struct error *err) {
    struct writer w;
    if (!writer_open(&w, path, err)) return false;
    writer_printf(
        &w,
        "<!doctype html><meta charset='utf-8'><title>%s</title>\n<style>body{font:15px system-ui,sans-serif;"
        "max-width:1040px;margin:2em auto;padding:0 1em;background:#fff;color:#222}table{border-collapse:"
        "collapse;width:100%%}td,th{padding:3px 8px;text-align:right;border-bottom:1px solid "
        "#eee}td:first-child,"
        "th:first-child{text-align:left}i{display:inline-block;width:.8em;height:.8em;margin-right:.5em}</"
        "style>\n",
        title);
    writer_printf(&w,
                  "<h1>One training step</h1>\n<p>%s on %s: %.3f ms a step, %.0f tokens/s, %sFLOP/s, which "
                  "is %.1f %% of "
                  "the matmul rate measured in the same run (%sFLOP/s; copy rate %sB/s).</p>\n",
                  title, p->device, 1e3 * p->step, p->tokens / p->step, human_count(p->model_flops / p->step),
                  100.0 * p->model_flops / p->step / p->matmul_rate, human_count(p->matmul_rate),
                  human_count(p->copy_rate));
    writer_printf(
        &w,
        "<h2>Where the time goes</h2>\n<p>Full colour: what the roofline explains. Pale: what there is to "
        "gain.</p>\n");
    write_bar(&w, p);
    writer_printf(
        &w,
        "<h2>Roofline</h2>\n<p>One dot for each operation, its area by time. The line is the most that this "
        "device can do.</p>\n");
    write_roofline(&w, p);
    writer_printf(
        &w, "<h2>Operations</h2>\n<table><tr><th>operation<th>variant<th>calls<th>ms<th>%% of step<th>GB/s"
            "<th>GFLOP/s<th>%% of roofline<th>gap, ms</tr>\n");
    for (int i = 0; i < p->count; i++) {
        const struct op_row *r = &p->rows[i];
        writer_printf(
            &w,
            "<tr><td><i style='background:%s'></i>%s<td>%s<td>%.0f<td>%.3f<td>%.1f<td>%.1f<td>%.1f<td>%.1f"
            "<td>%.3f</tr>\n",
            colours[i % (int)ARRAY_LENGTH(colours)], op_name(r->op), r->variant, r->calls, 1e3 * r->seconds,
            100.0 * r->seconds / p->in_ops, r->bytes / r->seconds * 1e-9, r->flops / r->seconds * 1e-9,
            100.0 * r->ideal / r->seconds, 1e3 * (r->seconds - r->ideal));
    }
    writer_printf(&w, "</table>\n");
    return writer_close(&w, err);
}

/* --- the command --- */

int cmd_profile(int argc, char **argv) {
    struct option_group groups[RUN_OPTION_GROUPS + 1];
    memcpy(groups, run_option_groups, RUN_OPTION_GROUPS * sizeof *groups);
    groups[RUN_OPTION_GROUPS] = (struct option_group){"Profile", rows, ARRAY_LENGTH(rows)};
    struct option_command command = {"train_gpt profile [options of training] [--html FILE]",
                                     "Times one training step, operation by operation, on random tokens.",
                                     groups,
                                     RUN_OPTION_GROUPS + 1,
                                     NULL,
                                     0,
                                     0};
    struct options options;
    struct profile_config c;
    int status = command_options(&options, &command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    struct gpt_config model;
    char *directory;
    check(run_model_config(&model, &directory, &c.run, c.run.vocab_size, &err), "%s", err.message);
    check(run_config_complete(&c.run, &model, 0, &err), "%s", err.message);
    struct device *device = run_open_device(&c.run);
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer optimizer;
    struct gpt_options gpt_options = run_gpt_options(&c.run, device);
    ctx_init(&ctx, device, device->ops, false);
    gpt_create(&gpt, &ctx, &model, &gpt_options);
    optimizer_create(&optimizer, &gpt, run_master_weights(&c.run, &gpt_options));
    gpt_init_weights(&gpt, 1);
    int64_t n = c.run.batch_size * c.run.seq_len;
    int32_t *tokens = (int32_t *)xmalloc((size_t)(n + 1) * sizeof *tokens);
    for (int64_t i = 0; i <= n; i++)
        tokens[i] = (int32_t)(rng_uniform(1, RNG_TEST, (uint64_t)i) * (double)model.vocab_size);
    gpt_set_batch(&gpt, tokens, tokens + 1);

    struct profile p = {.tokens = (double)c.run.tokens_per_step, .device = device->name};
    p.model_flops = gpt_flops_per_token(&model, c.run.seq_len) * p.tokens;
    device->measure(device, &p.matmul_rate, &p.copy_rate);
    measure(&p, &gpt, &optimizer, &c);
    char *title = xasprintf("%s, B=%" PRId64 ", T=%" PRId64 ", %s", model.name, c.run.batch_size,
                            c.run.seq_len, dtype_name(gpt_options.dtype));
    printf("%s on %s\n", title, device->name);
    print_table(&p);
    if (c.html) {
        check(write_page(c.html, &p, title, &err), "%s", err.message);
        printf("page written to %s\n", c.html);
    }
    free(title);
    free(tokens);
    free(directory);
    ctx_free(&ctx);
    device->close(device);
    options_free(&options);
    return 0;
}
