/* The benchmark: every operation and variant at a model's shapes, and the whole training step.
 *     build/bench [--op matmul_forward] [--variant all] [--shape gpt2] [--json FILE]
 *     build/bench --compare OLD.json NEW.json
 * The cases, inputs and checks are those of the tests (test/op_<stem>.c); bytes and FLOPs come from the front
 * doors' counters. A result is checked before and after it is timed. Before every call, memory of twice the
 * size of the caches is read, so that an op finds nothing there that it would not find in a model.
 *
 * Order: options, timing, one row, all ops, the training step, JSON, comparison, main. */
#include "dev/variants/ladder.h"
#include "llmc/cli/commands.h"
#include "llmc/model/optimizer.h"
#include "llmc/base/rng.h"
#include "test/ops/op_harness.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Programs without the CUDA back end have no ladders. */
#pragma weak ladder_ops

/* --- options --- */

struct config {
    const char *op, *variant, *shape, *device, *json, *autotune;
    int64_t batch_size, seq_len;
    double seconds;
    int dtype;
    bool compare, ladder, tf32;
};
enum { WORD_AUTO, WORD_FP32, WORD_BF16 };

static const struct option_row rows[] = {
    OPT_TEXT(struct config, op, "op", "all", "NAME",
             "operation, its first letters (attn), step (the training step of a model), or all", 0),
    OPT_TEXT(struct config, variant, "variant", "best", "NAME",
             "row to run: best (the one that production takes), all, or a name", 0),
    OPT_TEXT(struct config, shape, "shape", "gpt2", "MODEL",
             "a model (gpt2, gpt2-xl, d12), or B,T,C,NH,V in numbers", 0),
    OPT_INT(struct config, batch_size, "batch-size", "0", 0, 65536, "B",
            "sequences for a model shape; 0: 4, and on a GPU 8", 0),
    OPT_INT(struct config, seq_len, "seq-len", "0", 0, 1048576, "T",
            "tokens in each; 0: 64, and on a GPU 1024", 0),
    OPT_WORD(struct config, dtype, "dtype", "auto", "auto|fp32|bf16", NULL,
             "storage; auto: fp32 on the CPU, bf16 on a GPU", 0),
    OPT_TEXT(struct config, device, "device", "auto", "NAME", "auto, cpu, cuda or cuda:N", 0),
    OPT_FLAG(struct config, tf32, "tf32", "false", "on a GPU, multiply fp32 matrices in TF32", 0),
    OPT_TEXT(struct config, autotune, "autotune", NULL, "FILE",
             "on a GPU, time the matmul algorithms for each shape once and keep the fastest in FILE", 0),
    OPT_REAL(struct config, seconds, "seconds", "0.5", 0.001, 3600, "S", "to measure each row for", 0),
    OPT_TEXT(struct config, json, "json", NULL, "FILE", "write the results for --compare", 0),
    OPT_FLAG(struct config, ladder, "ladder", "false",
             "run the teaching ladders of dev/variants (on a GPU) in place of production", 0),
    OPT_FLAG(struct config, compare, "compare", "false", "compare the results in two files, OLD and NEW", 0),
};
static const struct option_group groups[] = {{"Benchmark", rows, ARRAY_LENGTH(rows)}};
static const struct option_command command = {
    "bench [options]",
    "Times operations and the training step against what the device can do.",
    groups,
    1,
    "OLD.json NEW.json",
    0,
    2};

/* --- timing --- */

enum { SAMPLES_LEAST = 7, SAMPLES_MOST = 1000 };

struct timing {
    double median, min, spread; /* seconds a call; spread: half the interquartile range over the median */
    int samples;
};

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct timing summarize(double *seconds, int samples) {
    qsort(seconds, (size_t)samples, sizeof *seconds, compare_doubles);
    double median = seconds[samples / 2];
    return (struct timing){median, seconds[0],
                           (seconds[samples * 3 / 4] - seconds[samples / 4]) / 2.0 / median, samples};
}

/* What is to be timed, and what comes before and after each time, untimed (or NULL). */
struct work {
    struct ctx *ctx;
    void (*call)(void *user);
    void *user;
    const struct tensor *flush; /* memory larger than the caches, or NULL */
    struct tensor flush_sum;
    void (*after)(void *user, double seconds);
};

/* SAMPLES_LEAST calls, then until `budget` seconds are used, or eight times that with what comes before. */
static struct timing measure(struct work *w, double budget) {
    struct device *d = w->ctx->device;
    void *first = d->event_new(d), *last = d->event_new(d);
    double seconds[SAMPLES_MOST], total = 0.0, started = now_seconds();
    int samples = 0;
    while (samples < SAMPLES_LEAST ||
           (samples < SAMPLES_MOST && total < budget && now_seconds() < started + 8.0 * budget)) {
        if (w->flush)
            sumsq(w->ctx, &w->flush_sum, w->flush); /* only reads: leaves no dirty lines to write back */
        d->event_record(d, first, w->ctx->stream);
        w->call(w->user);
        d->event_record(d, last, w->ctx->stream);
        d->synchronize(d, w->ctx->stream);
        seconds[samples] = d->event_seconds(d, first, last);
        if (w->after) w->after(w->user, seconds[samples]);
        total += seconds[samples++];
    }
    d->event_free(d, first);
    d->event_free(d, last);
    return summarize(seconds, samples);
}

/* --- one row --- */

struct bench {
    const struct config *config;
    struct ctx ctx;
    enum dtype dtype;
    double matmul_rate, copy_rate; /* FLOP/s, bytes/s: the best of the measurements so far */
    struct tensor flush, flush_sum;
    json_t *results;
    int measured, errors; /* rows */
};

/* Rates are measured again and again: the best is what the device can do, whoever else uses it now. */
static void measure_rates(struct bench *b) {
    double matmul, copy;
    b->ctx.device->measure(b->ctx.device, &matmul, &copy);
    b->matmul_rate = fmax(b->matmul_rate, matmul);
    b->copy_rate = fmax(b->copy_rate, copy);
}

static void call_instance(void *user) { op_instance_call((struct op_instance *)user); }

/* A CPU reads a line before it writes it, which the copy rate does not count: reading alone may be half as
 * fast again. 5 % for the noise of the measured rates. */
static bool too_fast(const struct bench *b, const char *variant, double seconds, double bytes, double flops) {
    double limit = (b->ctx.device->unified ? 1.5 : 1.0) * 1.05;
    return bytes / seconds > limit * b->copy_rate ||
           flops / seconds > 1.05 * op_matmul_rate(&b->ctx, variant, b->matmul_rate);
}

static void report(struct bench *b, const struct op_instance *x, const char *variant, const struct timing *t,
                   double bytes, double flops) {
    const struct op_case *c = x->c;
    for (int i = 0; i < 5 && too_fast(b, variant, t->min, bytes, flops); i++)
        measure_rates(b); /* were they too low? */
    bool fast = too_fast(b, variant, t->min, bytes, flops),
         fits = bytes < (double)tensor_bytes(&b->flush) / 2.0;
    bool impossible = fast && !fits;
    double gb = bytes / t->median, tf = flops / t->median;
    double peak = op_matmul_rate(&b->ctx, variant, b->matmul_rate);
    double share = fmax(bytes / b->copy_rate, flops / peak) / t->median;
    printf("%-22s %-8s %-7s %-14s %10.1f %10.1f %5.1f%% %8.1f %9.4f %6.1f%%%s\n", op_name(x->op->id), variant,
           dtype_name(b->dtype), c->name, t->median * 1e6, t->min * 1e6, t->spread * 100, gb / 1e9, tf / 1e12,
           share * 100,
           impossible ? "  ERROR: faster than this device"
           : fast     ? "  what it writes stays in the caches"
                      : "");
    fflush(stdout);
    b->errors += impossible;
    b->measured++;
    json_t *shape = json_array();
    for (int i = 0; i < 6; i++) json_array_append_new(shape, json_integer(c->d[i]));
    json_array_append_new(b->results,
                          json_pack("{s:s, s:s, s:s, s:s, s:o, s:f, s:f, s:f, s:i, s:f, s:f, s:f, s:b}", "op",
                                    op_name(x->op->id), "variant", variant, "dtype", dtype_name(b->dtype),
                                    "case", c->name, "shape", shape, "median", t->median, "min", t->min,
                                    "spread", t->spread, "samples", t->samples, "bytes", bytes, "flops",
                                    flops, "share", share, "ok", !impossible));
}

/* Checks, times, checks again. */
static void bench_row(struct bench *b, struct op_instance *x, const char *variant) {
    struct error err;
    double worst = 0.0;
    char *forced = xasprintf("%s:%s", op_name(x->op->id), variant);
    b->ctx.forced = forced;
    op_instance_upload(x);
    struct op_stats before = b->ctx.stats[x->op->id];
    op_instance_call(x);
    double bytes = b->ctx.stats[x->op->id].bytes - before.bytes;
    double flops = b->ctx.stats[x->op->id].flops - before.flops;
    bool good = op_instance_compare(x, &worst, &err);
    if (good) {
        struct work work = {&b->ctx, call_instance, x, &b->flush, b->flush_sum, NULL};
        struct timing t = measure(&work, b->config->seconds);
        op_instance_upload(x);
        op_instance_call(x);
        good = op_instance_compare(x, &worst, &err);
        if (good) report(b, x, variant, &t, bytes, flops);
    }
    if (!good) {
        printf("%-22s %-8s WRONG: %s\n", op_name(x->op->id), variant, err.message);
        b->errors++;
    }
    b->ctx.forced = NULL;
    free(forced);
}

/* The rows that --variant asks for and that take the case. */
static void bench_case(struct bench *b, const struct op_test *op, const struct op_case *c) {
    struct op_instance x;
    const char *want = b->config->variant, *row;
    bool best = strcmp(want, "best") == 0, all = strcmp(want, "all") == 0;
    int count = 0;
    op_instance_create(&x, op, c, b->dtype, &b->ctx);
    for (int i = 0; (row = op->variant(b->ctx.ops, i)) && !(best && count > 0); i++)
        if ((best || all || strcmp(row, want) == 0) && op_instance_need(&x, b->ctx.ops, i) >= 0) {
            bench_row(b, &x, row);
            count++;
        }
    op_instance_free(&x);
    if (count == 0)
        printf("%-22s %-8s %-7s %-14s not taken\n", op_name(op->id), best || all ? "" : want,
               dtype_name(b->dtype), c->name);
}

/* --- all ops --- */

static bool wanted(const char *want, const char *name) {
    return strcmp(want, "all") == 0 || strncmp(name, want, strlen(want)) == 0;
}

static void bench_ops(struct bench *b, const struct op_model *model) {
    bool titled = false;
    for (int id = 0; id < OP_COUNT; id++) {
        struct op_case cases[12];
        if (!wanted(b->config->op, op_name((enum op_id)id)) || !op_tests[id]->model_cases) continue;
        int n = op_tests[id]->model_cases(model, cases);
        if (!titled)
            printf("\n%-22s %-8s %-7s %-14s %10s %10s %6s %8s %9s %7s\n", "operation", "variant", "dtype",
                   "case", "median us", "min us", "spread", "GB/s", "TFLOP/s", "of peak");
        titled = true;
        for (int i = 0; i < n; i++)
            if (!(cases[i].flags & OP_FP8) || b->dtype == DTYPE_BF16) /* in fp32 it is only emulated */
                bench_case(b, op_tests[id], &cases[i]);
    }
}

/* --- the training step --- */

struct step {
    struct gpt gpt;
    struct optimizer optimizer;
    struct adamw_args adamw;
    struct bench *bench;
    double flops, share[SAMPLES_MOST]; /* of the matmul rate, each measured right after a step */
    int shares;
};

static void step_create(struct step *s, struct ctx *ctx, const struct gpt_config *config,
                        const struct gpt_options *options) {
    gpt_create(&s->gpt, ctx, config, options);
    optimizer_create(&s->optimizer, &s->gpt, false);
    s->adamw = (struct adamw_args){
        .lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f, .max_norm = 1.0f};
    gpt_set_loss_scale(&s->gpt, 1.0f / (float)(options->B * options->T));
}

static void step_run(void *user) {
    struct step *s = (struct step *)user;
    s->adamw.step++;
    gpt_forward_backward(&s->gpt, true);
    optimizer_step(&s->optimizer, &s->gpt, &s->adamw);
}

/* On a machine that others use, too, only what is measured at the same time can be compared. */
static void step_share(void *user, double seconds) {
    struct step *s = (struct step *)user;
    double matmul, copy;
    s->bench->ctx.device->measure(s->bench->ctx.device, &matmul, &copy);
    s->bench->matmul_rate = fmax(s->bench->matmul_rate, matmul);
    s->share[s->shares++] = s->flops / seconds / matmul;
}

static double resident_bytes(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return 1024.0 * (double)usage.ru_maxrss;
}

static int by_seconds(const void *a, const void *b) {
    double x = ((const struct op_stats *const *)a)[0]->seconds,
           y = ((const struct op_stats *const *)b)[0]->seconds;
    return (x < y) - (x > y);
}

/* Where the time of a step goes, most first. */
static void print_profile(struct bench *b, struct step *s, int steps) {
    struct ctx *ctx = &b->ctx;
    ctx_reset_stats(ctx);
    ctx->profile = true;
    double started = now_seconds();
    for (int i = 0; i < steps; i++) step_run(s);
    ctx_collect_profile(ctx);
    double total = (now_seconds() - started) / steps;
    ctx->profile = false;
    struct op_stats *order[OP_COUNT];
    int count = 0;
    for (int id = 0; id < OP_COUNT; id++)
        if (ctx->stats[id].calls) order[count++] = &ctx->stats[id];
    qsort(order, (size_t)count, sizeof order[0], by_seconds);
    printf("\n%-22s %8s %8s %7s %9s %8s %7s %9s\n", "in a step", "calls", "ms", "share", "GFLOP/s", "GB/s",
           "of peak", "to gain");
    for (int i = 0; i < count; i++) {
        double t = order[i]->seconds / steps, bytes = order[i]->bytes / steps,
               flops = order[i]->flops / steps;
        double least = fmax(bytes / b->copy_rate, flops / b->matmul_rate);
        printf("%-22s %8" PRId64 " %8.2f %6.1f%% %9.1f %8.1f %6.1f%% %6.2f ms\n",
               op_name((enum op_id)(order[i] - ctx->stats)), order[i]->calls / steps, t * 1e3,
               t / total * 100, flops / t / 1e9, bytes / t / 1e9, least / t * 100, (t - least) * 1e3);
    }
}

static void report_step(struct bench *b, struct step *s, const struct op_model *model, const struct timing *t,
                        double planned, double resident) {
    const char *name = s->gpt.config.name;
    double tokens = (double)(model->B * model->T), rate = s->flops / t->median;
    qsort(s->share, (size_t)s->shares, sizeof s->share[0], compare_doubles);
    printf("\ntraining step of %s, B=%" PRId64 " T=%" PRId64 ", %s on %s\n", name, model->B, model->T,
           dtype_name(b->dtype), b->ctx.device->name);
    printf("  %.1f tokens/s (median of %d steps of %.1f ms, spread %.1f %%, best %.1f tokens/s)\n",
           tokens / t->median, t->samples, t->median * 1e3, t->spread * 100, tokens / t->min);
    printf("  %sFLOP/s, %.3f of the matmul rate right after each step (median), %.3f of the best, %sFLOP/s\n",
           human_count(rate), s->share[s->shares / 2], rate / b->matmul_rate, human_count(b->matmul_rate));
    printf("  memory planned %s", human_bytes(planned));
    if (b->ctx.device->unified)
        printf(", process at its largest %s: %.3f of the plan", human_bytes(resident), resident / planned);
    printf("\n");
    json_array_append_new(
        b->results, json_pack("{s:s, s:s, s:s, s:s, s:[I,I], s:f, s:f, s:f, s:i, s:f, s:f, s:f, s:b}", "op",
                              "step", "variant", "best", "dtype", dtype_name(b->dtype), "case", name, "shape",
                              (json_int_t)model->B, (json_int_t)model->T, "median", t->median, "min", t->min,
                              "spread", t->spread, "samples", t->samples, "bytes", planned, "flops", s->flops,
                              "share", s->share[s->shares / 2], "ok", 1));
    b->measured++;
}

static void bench_step(struct bench *b, const struct gpt_config *config, const struct op_model *model) {
    struct gpt_options options = {.B = model->B, .T = model->T, .train = true, .dtype = b->dtype};
    struct ctx *ctx = &b->ctx, plan;
    struct step *s = (struct step *)xcalloc(1, sizeof *s);
    ctx_init(&plan, ctx->device, ctx->ops, true);
    step_create(s, &plan, config, &options);
    step_run(s);
    double planned = (double)ctx_memory_total(&plan);
    s->flops = ctx_flops(&plan);
    s->bench = b;
    ctx_free(&plan);

    step_create(s, ctx, config, &options);
    gpt_init_weights(&s->gpt, 1);
    int64_t n = model->B * model->T;
    int32_t *tokens = (int32_t *)xmalloc(2 * (size_t)n * sizeof *tokens);
    for (int64_t i = 0; i < 2 * n; i++)
        tokens[i] = (int32_t)(rng_uniform(1, RNG_TEST, (uint64_t)i) * (double)config->vocab_size);
    gpt_set_batch(&s->gpt, tokens, tokens + n);
    step_run(s);                        /* touches all memory */
    double resident = resident_bytes(); /* before measurements add to it */
    struct work work = {ctx, step_run, s, NULL, {0}, step_share};
    struct timing t = measure(&work, 8.0 * b->config->seconds);
    float loss;
    ctx_download(ctx, &loss, (char *)s->gpt.numbers.data + STEP_LOSS * 4, 4);
    check(isfinite(loss), "the training step's loss is %g", (double)loss);
    report_step(b, s, model, &t, planned, resident);
    print_profile(b, s, 3);
    free(tokens);
    free(s);
}

/* --- comparison --- */

static json_t *load_results(const char *path) {
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    check(root, "%s: line %d: %s", path, error.line, error.text);
    check(json_is_array(json_object_get(root, "results")),
          "%s: there is no list \"results\": not written by bench --json", path);
    return root;
}

static bool same_row(json_t *a, json_t *b) {
    static const char *const keys[] = {"op", "variant", "dtype", "case", "shape"};
    for (size_t i = 0; i < ARRAY_LENGTH(keys); i++)
        if (!json_equal(json_object_get(a, keys[i]), json_object_get(b, keys[i]))) return false;
    return true;
}

static int compare_files(const char *old_path, const char *new_path) {
    json_t *old = load_results(old_path), *new = load_results(new_path), *a, *b;
    size_t i, k;
    int matched = 0;
    printf("%-22s %-8s %-7s %-14s %10s %10s %8s\n", "operation", "variant", "dtype", "case", "old us",
           "new us", "speedup");
    json_array_foreach(json_object_get(new, "results"), i, b)
        json_array_foreach(json_object_get(old, "results"), k, a) {
        if (!same_row(a, b)) continue;
        double x = json_number_value(json_object_get(a, "median")),
               y = json_number_value(json_object_get(b, "median"));
        double spread = hypot(json_number_value(json_object_get(a, "spread")),
                              json_number_value(json_object_get(b, "spread")));
        check(x > 0.0 && y > 0.0, "%s or %s: a median that is not a time", old_path, new_path);
        printf("%-22s %-8s %-7s %-14s %10.1f %10.1f %7.3fx +- %.1f %%%s\n",
               json_string_value(json_object_get(b, "op")), json_string_value(json_object_get(b, "variant")),
               json_string_value(json_object_get(b, "dtype")), json_string_value(json_object_get(b, "case")),
               x * 1e6, y * 1e6, x / y, spread * 100,
               fabs(log(x / y)) <= 2.0 * spread ? "  no difference"
               : x > y                          ? "  faster"
                                                : "  SLOWER");
        matched++;
    }
    check(matched > 0, "%s and %s have no row in common", old_path, new_path);
    json_decref(old);
    json_decref(new);
    return 0;
}

/* --- main --- */

/* "gpt2", or "B,T,C,NH,V", which is a model of one layer. */
static void parse_shape(struct bench *b, struct gpt_config *config, struct op_model *model) {
    struct error err;
    const char *shape = b->config->shape;
    long long d[5];
    char rest;
    bool gpu = !b->ctx.device->unified;
    if (sscanf(shape, "%lld,%lld,%lld,%lld,%lld%c", &d[0], &d[1], &d[2], &d[3], &d[4], &rest) == 5) {
        *config = (struct gpt_config){
            .context = d[1], .vocab_size = d[4], .layers = 1, .heads = d[3], .channels = d[2]};
        gpt_config_complete(config);
        snprintf(config->name, sizeof config->name, "%s", shape);
        check(d[0] > 0 && d[1] > 0, "--shape %s: B and T must be at least 1", shape);
        model->B = d[0];
        model->T = d[1];
    } else {
        if (!gpt_config_from_name(config, shape, NULL, &err))
            die("--shape %s: %s (or B,T,C,NH,V in numbers)", shape, err.message);
        model->B = b->config->batch_size ? b->config->batch_size : gpu ? 8 : 4;
        model->T = b->config->seq_len ? b->config->seq_len : gpu ? 1024 : 64;
    }
    if (!gpt_config_check(config, &err)) die("--shape %s: %s", shape, err.message);
    check(model->T <= config->context, "--seq-len %" PRId64 " is beyond the context of %s, %" PRId64,
          model->T, shape, config->context);
    model->C = config->channels;
    model->NH = config->heads;
    model->V = config->vocab_size;
    model->Vp = gpt_padded_vocab(config);
}

static void write_json(const struct bench *b) {
    json_t *root = json_pack("{s:s, s:s, s:f, s:f, s:O}", "device", b->ctx.device->name, "backend",
                             b->ctx.device->backend, "matmul_rate", b->matmul_rate, "copy_rate", b->copy_rate,
                             "results", b->results);
    check(root && json_dump_file(root, b->config->json, JSON_INDENT(1)) == 0, "--json %s: cannot be written",
          b->config->json);
    json_decref(root);
}

/* Memory that is twice as large as the caches, or as those of any GPU. */
static void make_flush(struct bench *b) {
    int64_t bytes =
        b->ctx.device->unified ? max_i64(2 * sysconf(_SC_LEVEL3_CACHE_SIZE), 64 << 20) : 256 << 20;
    b->flush = tensor_make("flush", DTYPE_F32,
                           ctx_alloc(&b->ctx, MEM_ACTIVATIONS, bytes, "memory to flush the caches"),
                           bytes / 4, 0, 0, 0);
    b->flush_sum =
        tensor_make("flush sum", DTYPE_F32, ctx_alloc(&b->ctx, MEM_ACTIVATIONS, 4, "its sum"), 1, 0, 0, 0);
    fill(&b->ctx, &b->flush, 1.0f);
}

static int run(const struct config *config) {
    struct error err;
    struct gpt_config gpt;
    struct op_model model;
    struct device_options options = {.tf32 = config->tf32, .tune_file = config->autotune};
    struct device *device = device_open(config->device, &options, &err);
    if (!device) die("%s", err.message);
    check(!config->ladder || (!device->unified && &ladder_ops),
          "--ladder needs a GPU and a build with the CUDA back end (make config)");
    if (config->json) { /* better now than after the measurements */
        FILE *f = fopen(config->json, "a");
        check(f, "--json %s: cannot be written", config->json);
        fclose(f);
    }
    struct bench b = {.config = config, .results = json_array()};
    ctx_init(&b.ctx, device, device->ops, false);
    b.ctx.forced = NULL;
    b.dtype = config->dtype == WORD_FP32   ? DTYPE_F32
              : config->dtype == WORD_BF16 ? DTYPE_BF16
                                           : device->dtype;
    parse_shape(&b, &gpt, &model);
    bool known = wanted(config->op, "step");
    for (int id = 0; id < OP_COUNT; id++) known = known || wanted(config->op, op_name((enum op_id)id));
    if (!known) die("--op %s: there is no such operation", config->op);
    measure_rates(&b);
    printf("%s: matmul %sFLOP/s, copy %sB/s (read and written), measured\n", device->name,
           human_count(b.matmul_rate), human_count(b.copy_rate));
    /* the step first: it compares the memory of the process with the plan */
    if (wanted(config->op, "step")) bench_step(&b, &gpt, &model);
    ctx_free(&b.ctx);
    ctx_init(&b.ctx, device, config->ladder ? &ladder_ops : device->ops, false);
    b.ctx.forced = NULL;
    make_flush(&b);
    bench_ops(&b, &model);
    if (b.measured + b.errors == 0)
        die("nothing was measured: no operation of --op %s has a variant %s for %s", config->op,
            config->variant, dtype_name(b.dtype));
    if (config->json) write_json(&b);
    if (b.errors) fprintf(stderr, "%d rows are wrong or impossible\n", b.errors);
    json_decref(b.results);
    ctx_free(&b.ctx);
    device->close(device);
    return b.errors != 0;
}

int main(int argc, char **argv) {
    struct options o;
    struct config config;
    int status = command_options(&o, &command, &config, argc - 1, argv + 1);
    if (status >= 0) return status;
    if (config.compare) {
        check(o.positional_count == 2, "--compare: give the two files, OLD.json and NEW.json");
        status = compare_files(o.positional[0], o.positional[1]);
    } else {
        check(o.positional_count == 0, "%s: only --compare takes files", o.positional[0]);
        status = run(&config);
    }
    options_free(&o);
    return status;
}
