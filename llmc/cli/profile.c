/* `train_gpt profile`: where the time of a training step goes. For each operation, and each shape of a
 * matmul, it measures the time with device events and compares it with the roofline: the time for moving
 * its bytes at the rate of memory, or for its FLOPs at the matmul rate if that is longer, both measured on
 * this device. The difference is what a better kernel could gain. Prints a table, and with --html writes a
 * page (profile_page.c). */
#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/base/rng.h"
#include "llmc/cli/commands.h"
#include "llmc/report/profile_page.h"
#include "llmc/run/batch.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct profile_config {
    struct run_config run;
    const char *html, *note;
    int64_t repeats;
};

/* In addition to the options of training, whose rows work on the first member. */
static const struct option_row rows[] = {
    OPT_TEXT(struct profile_config, html, "html", NULL, "FILE",
             "write the results as a page with pictures; --overwrite replaces FILE", 0),
    OPT_TEXT(struct profile_config, note, "note", NULL, "TEXT", "a note that the page shows", 0),
    OPT_INT(struct profile_config, repeats, "repeats", "7", 1, 1000, "N",
            "steps to measure; the result is their median", 0),
};

/* --- the rows --- */

static struct profile_row *row_of(struct profile *p, const struct op_mark *mark) {
    for (int i = 0; i < p->count; i++)
        if (p->row[i].op == mark->op && memcmp(p->row[i].shape, mark->shape, sizeof mark->shape) == 0)
            return &p->row[i];
    check(p->count < PROFILE_ROWS, "profile: more than %d operations and shapes", PROFILE_ROWS);
    struct profile_row *r = &p->row[p->count++];
    r->op = mark->op;
    memcpy(r->shape, mark->shape, sizeof r->shape);
    if (r->shape[0])
        snprintf(r->name, sizeof r->name, "%s %" PRId64 "->%" PRId64, op_name(r->op), r->shape[1],
                 r->shape[2]);
    else
        snprintf(r->name, sizeof r->name, "%s", op_name(r->op));
    return r;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
/* Sorts. */
static double median(double *values, int64_t n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

static int by_gain(const void *a, const void *b) {
    const struct profile_row *x = (const struct profile_row *)a, *y = (const struct profile_row *)b;
    double gx = x->seconds - x->ideal, gy = y->seconds - y->ideal;
    return (gx < gy) - (gx > gy);
}

/* --- measuring --- */

static void run_step(struct gpt *g, struct optimizer *opt, const struct run_config *c) {
    int64_t micro_steps = c->tokens_per_step / (c->batch_size * c->seq_len);
    ctx_range_push(g->ctx, "step");
    gpt_set_loss_scale(g, 1.0f / (float)c->tokens_per_step);
    for (int64_t i = 0; i < micro_steps; i++) {
        ctx_range_push(g->ctx, "micro-step");
        gpt_forward_backward(g, i == 0);
        ctx_range_pop(g->ctx);
    }
    struct update_args args = run_update_args(c, 0.0, 0, NULL);
    optimizer_step(opt, g, &args);
    ctx_range_pop(g->ctx);
}

/* Called several times: the highest rate counts, because other load can only lower it. */
static void measure_rates(struct profile *p, struct device *d) {
    double matmul, copy;
    d->measure(d, &matmul, &copy);
    p->matmul_rate = fmax(p->matmul_rate, matmul);
    p->copy_rate = fmax(p->copy_rate, copy);
}

static void measure_wall(struct profile *p, struct gpt *g, struct optimizer *opt,
                         const struct run_config *c) {
    struct device *d = g->ctx->device;
    int64_t n = p->repeats;
    double *wall = (double *)xmalloc((size_t)n * sizeof *wall);
    for (int64_t i = 0; i < n; i++) {
        double started = now_seconds();
        run_step(g, opt, c);
        d->synchronize(d, g->ctx->stream);
        wall[i] = now_seconds() - started;
    }
    p->step = median(wall, n);
    p->spread = 0.5 * (wall[n * 3 / 4] - wall[n / 4]);
    free(wall);
}

/* Device events around every operation; a row gets the median over the steps. */
static void measure_rows(struct profile *p, struct gpt *g, struct optimizer *opt,
                         const struct run_config *c) {
    struct ctx *ctx = g->ctx;
    struct device *d = ctx->device;
    int64_t n = p->repeats;
    double *times = (double *)xcalloc((size_t)n * PROFILE_ROWS, sizeof *times); /* (PROFILE_ROWS, n) */
    ctx->profile = true;
    for (int64_t i = 0; i < n; i++) {
        run_step(g, opt, c);
        d->synchronize(d, ctx->stream);
        for (int64_t k = 0; k < ctx->mark_count; k++) {
            const struct op_mark *mark = &ctx->marks[k];
            struct profile_row *r = row_of(p, mark);
            times[(r - p->row) * n + i] += d->event_seconds(d, mark->first, mark->last);
            r->variant = mark->variant;
            if (i > 0) continue;
            r->calls++;
            r->flops += mark->flops;
            r->bytes += mark->bytes;
        }
        ctx_collect_profile(ctx);
    }
    ctx->profile = false;
    for (int i = 0; i < p->count; i++) p->row[i].seconds = median(times + i * n, n);
    free(times);
}

static void measure(struct profile *p, struct gpt *g, struct optimizer *opt, const struct run_config *c) {
    struct device *d = g->ctx->device;
    for (int i = 0; i < 2; i++) run_step(g, opt, c);
    d->synchronize(d, g->ctx->stream);
    measure_rates(p, d);
    measure_wall(p, g, opt, c);
    measure_rates(p, d);
    measure_rows(p, g, opt, c);
    measure_rates(p, d);
    /* What was reached shows that other load had slowed the measurement of the rate down. */
    p->matmul_rate = fmax(p->matmul_rate, p->model_flops / p->step);
    for (int i = 0; i < p->count; i++) {
        const struct profile_row *r = &p->row[i];
        if (r->shape[0])
            p->matmul_rate =
                fmax(p->matmul_rate, r->flops / r->seconds / op_matmul_rate(g->ctx, r->variant, 1.0));
    }
    for (int i = 0; i < p->count; i++) {
        struct profile_row *r = &p->row[i];
        r->ideal =
            fmax(r->bytes / p->copy_rate, r->flops / op_matmul_rate(g->ctx, r->variant, p->matmul_rate));
        /* Faster than memory: its data lay in a cache. There is nothing to gain then. */
        r->ideal = fmin(r->ideal, r->seconds);
        p->in_ops += r->seconds;
        p->ideal += r->ideal;
    }
    p->ideal = fmin(p->ideal, p->step);
    qsort(p->row, (size_t)p->count, sizeof *p->row, by_gain);
}

/* --- the table --- */

static void print_table(const struct profile *p) {
    printf("\n%-28s %-10s %6s %10s %7s %9s %9s %10s %10s\n", "operation", "variant", "calls", "ms", "% step",
           "GB/s", "GFLOP/s", "% roofline", "to gain ms");
    int cached = 0;
    for (int i = 0; i < p->count; i++) {
        const struct profile_row *r = &p->row[i];
        cached += r->ideal == r->seconds;
        printf("%-28s %-10s %6.0f %10.3f %7.1f %9.1f %9.1f %10.1f %10.3f\n", r->name, r->variant, r->calls,
               1e3 * r->seconds, 100.0 * r->seconds / p->in_ops, r->bytes / r->seconds * 1e-9,
               r->flops / r->seconds * 1e-9, 100.0 * r->ideal / r->seconds, 1e3 * (r->seconds - r->ideal));
    }
    printf("%-28s %-10s %6s %10.3f %7.1f %9s %9s %10.1f %10.3f\n", "all operations", "", "", 1e3 * p->in_ops,
           100.0, "", "", 100.0 * p->ideal / p->in_ops, 1e3 * (p->in_ops - p->ideal));
    if (cached)
        printf("%d of them had their data in a cache and were faster than memory: they count as 100 %%\n",
               cached);
    printf("\nstep %.3f ms (median of %" PRId64
           ", +- %.1f %%; at its roofline %.3f ms), %.0f tokens/s, %sFLOP/s = %.1f %% of the %sFLOP/s of "
           "matmul measured here; copy rate %sB/s\n",
           1e3 * p->step, p->repeats, 100.0 * p->spread / p->step, 1e3 * p->ideal, p->tokens / p->step,
           human_count(p->model_flops / p->step), 100.0 * p->model_flops / p->step / p->matmul_rate,
           human_count(p->matmul_rate), human_count(p->copy_rate));
}

/* The first line of the page: what the measurement is of, so that nobody takes it for a GPU's. */
static void say_where(struct profile *p, const struct device *d) {
    bool cpu = d->arch == 0, simulated = strcmp(d->name, "simulated device") == 0;
    snprintf(p->where, sizeof p->where, "%s%s",
             simulated ? "SIMULATED GPU, timings mean nothing: "
             : cpu     ? "CPU, not a GPU: "
                       : "GPU: ",
             d->name);
}

/* --- the command --- */

struct option_command profile_command(struct option_group groups[RUN_OPTION_GROUPS + 1]) {
    memcpy(groups, run_option_groups, RUN_OPTION_GROUPS * sizeof *groups);
    groups[RUN_OPTION_GROUPS] = (struct option_group){"Profile", rows, ARRAY_LENGTH(rows)};
    return (struct option_command){
        "train_gpt profile [options of training] [--html FILE]",
        "Times one training step of a single process, operation by operation, on random tokens. The options "
        "of a run can be given as they are: those that do not change that step, such as --out, do nothing.",
        groups, RUN_OPTION_GROUPS + 1};
}

int cmd_profile(int argc, char **argv) {
    struct option_group groups[RUN_OPTION_GROUPS + 1];
    struct option_command command = profile_command(groups);
    struct options options;
    struct profile_config c = {0};
    int status = command_options(&options, &command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    check(!c.html || may_write_file(c.html, c.run.overwrite, &err), "--html %s", err.message);
    struct gpt_config model;
    char *directory;
    check(run_model_config(&model, &directory, &c.run, c.run.shape.vocab_size, &err), "%s", err.message);
    check(run_config_complete(&c.run, &model, &err), "%s", err.message);
    struct device *device = run_open_device(&c.run);
    if (!c.run.batch_size) c.run.batch_size = run_choose_batch(&c.run, &model, device, 0, INT64_MAX).size;
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer optimizer;
    struct gpt_options gpt_options = run_gpt_options(&c.run, device);
    ctx_init(&ctx, device, device->ops, false);
    gpt_create(&gpt, &ctx, &model, &gpt_options);
    optimizer_create(&optimizer, &gpt, run_optimizer_options(&c.run, &gpt_options));
    gpt_init_weights(&gpt, 1);
    int64_t n = c.run.batch_size * c.run.seq_len;
    int32_t *tokens = (int32_t *)xmalloc((size_t)(n + 1) * sizeof *tokens);
    for (int64_t i = 0; i <= n; i++)
        tokens[i] = (int32_t)(rng_uniform(1, RNG_TEST, (uint64_t)i) * (double)model.vocab_size);
    gpt_set_batch(&gpt, tokens, tokens + 1);
    gpt_set_documents(&gpt, NULL, NULL);

    struct profile *p = (struct profile *)xcalloc(1, sizeof *p);
    p->tokens = (double)c.run.tokens_per_step;
    p->model_flops = gpt_flops_per_token(&model, c.run.seq_len) * p->tokens;
    p->repeats = c.repeats;
    snprintf(p->title, sizeof p->title, "%s, B=%" PRId64 ", T=%" PRId64 ", %" PRId64 " tokens a step, %s",
             model.name, c.run.batch_size, c.run.seq_len, c.run.tokens_per_step,
             dtype_name(gpt_options.dtype));
    p->note = c.note;
    say_where(p, device);
    measure(p, &gpt, &optimizer, &c.run);
    say("%s\n%s\n", p->where, p->title);
    print_table(p);
    if (c.html) {
        check(profile_write_page(p, c.html, &err), "%s", err.message);
        printf("page written to %s\n", c.html);
    }
    free(p);
    free(tokens);
    free(directory);
    ctx_free(&ctx);
    device->close(device);
    options_free(&options);
    return 0;
}
