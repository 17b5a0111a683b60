/* Times each operation alone, at the shapes of a model, and compares it with what the device can do.
 *     build/bench [--op matmul_forward] [--variant all] [--shape gpt2] [--json FILE]
 *     build/bench --compare OLD.json NEW.json
 *
 * Cases, inputs and checks are those of the tests (test/ops/op_<stem>.c); front doors count bytes and
 * FLOPs. A result is checked before and after it is timed. Before every timed call the benchmark reads
 * memory of twice the caches' size, so that an operation finds its operands in memory, as it does in a large
 * model; with --caches warm it finds what fits in the caches, as in a small one. Operations as they run
 * inside a training step are timed by `train_gpt profile`. */
#include "dev/variants/ladder.h"
#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/cli/commands.h"
#include "llmc/model/gpt.h"
#include "test/ops/op_harness.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Programs without the CUDA back end have no ladders. */
#pragma weak ladder_ops

/* --- options --- */

struct config {
    const char *op, *variant, *shape, *device, *json, *autotune;
    int64_t batch_size, seq_len;
    double seconds;
    int dtype, caches;
    bool compare, ladder, overwrite, tf32;
};
enum { WORD_AUTO, WORD_FP32, WORD_BF16 };
enum { CACHES_COLD, CACHES_WARM };

static const struct option_row rows[] = {
    OPT_TEXT(struct config, op, "op", "all", "NAME",
             "operations to time: all, one (attn_forward), or those that begin with NAME (attn)", 0),
    OPT_TEXT(struct config, variant, "variant", "best", "NAME",
             "variant to time: best (the one that training uses), all, or one by its name", 0),
    OPT_TEXT(struct config, shape, "shape", "gpt2", "MODEL",
             "model whose shapes are used: a name (gpt2, gpt2-xl, d12), or numbers B,T,C,NH,V", 0),
    OPT_INT(struct config, batch_size, "batch-size", "0", 0, 65536, "B",
            "sequences, if --shape is a name; 0: 8 on a GPU, 4 on a CPU", 0),
    OPT_INT(struct config, seq_len, "seq-len", "0", 0, 1048576, "T",
            "tokens in a sequence, if --shape is a name; 0: 1024 on a GPU, 64 on a CPU", 0),
    OPT_WORD(struct config, dtype, "dtype", "auto", "auto|fp32|bf16", NULL,
             "type of the operands; auto: bf16 on a GPU, fp32 on a CPU", 0),
    OPT_WORD(struct config, caches, "caches", "cold", "cold|warm", NULL,
             "where an operation finds its operands. cold: in memory. warm: where the call before left them",
             0),
    OPT_TEXT(struct config, device, "device", "auto", "NAME", "auto, cpu, cuda or cuda:N", 0),
    OPT_FLAG(struct config, tf32, "tf32", "false", "on a GPU, multiply fp32 matrices in TF32", 0),
    OPT_TEXT(struct config, autotune, "autotune", NULL, "FILE",
             "on a GPU, time the matmul algorithms for each shape once and keep the fastest in FILE", 0),
    OPT_REAL(struct config, seconds, "seconds", "0.5", 0.001, 3600, "S",
             "time to spend on measuring each variant", 0),
    OPT_TEXT(struct config, json, "json", NULL, "FILE", "write the results to FILE, for --compare", 0),
    OPT_FLAG(struct config, overwrite, "overwrite", "false", "replace the FILE of --json", OPTION_THIS_RUN),
    OPT_FLAG(struct config, ladder, "ladder", "false",
             "time the teaching ladders (dev/variants/README.md) instead; needs a GPU", 0),
    OPT_FLAG(struct config, compare, "compare", "false",
             "compare two files that --json wrote, OLD.json and NEW.json", 0),
};
static const struct option_group groups[] = {{"Benchmark", rows, ARRAY_LENGTH(rows)}};
static const struct option_command command = {"bench [options]",
                                              "Times operations against what the device can do.",
                                              groups,
                                              1,
                                              "OLD.json NEW.json",
                                              0,
                                              2};

/* --- timing --- */

enum { SAMPLES_LEAST = 7, SAMPLES_MOST = 1000 };

struct timing {
    double median, min; /* seconds per call */
    double spread;      /* half the interquartile range, as a share of the median */
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

struct bench {
    const struct config *config;
    struct ctx ctx;
    enum dtype dtype;
    double matmul_rate, copy_rate;           /* FLOP/s, bytes/s: the best of the measurements so far */
    struct tensor flush, flush_sum, meeting; /* the last is a small part of the first */
    json_t *results;
    int measured, errors; /* variants of a case */
};

/* Calls it SAMPLES_LEAST times, and then until `budget` seconds have been measured. What happens between
 * the calls may take seven times as long. */
static struct timing measure(struct bench *b, struct op_instance *x, double budget) {
    struct device *d = b->ctx.device;
    void *first = d->event_new(d), *last = d->event_new(d);
    double seconds[SAMPLES_MOST], total = 0.0, started = now_seconds();
    int samples = 0;
    while (samples < SAMPLES_LEAST ||
           (samples < SAMPLES_MOST && total < budget && now_seconds() < started + 8.0 * budget)) {
        /* reads only: leaves no dirty lines to write back */
        if (b->config->caches == CACHES_COLD) sumsq(&b->ctx, &b->flush_sum, &b->flush);
        /* The thread that ended this sum first may sleep by now. In a model all are awake, as one operation
         * follows the other. */
        sumsq(&b->ctx, &b->flush_sum, &b->meeting);
        d->event_record(d, first, b->ctx.stream);
        op_instance_call(x);
        d->event_record(d, last, b->ctx.stream);
        d->synchronize(d, b->ctx.stream);
        seconds[samples] = d->event_seconds(d, first, last);
        total += seconds[samples++];
    }
    d->event_free(d, first);
    d->event_free(d, last);
    return summarize(seconds, samples);
}

/* Keeps the best of all measurements: what the device can do, however busy others keep it now. */
static void measure_rates(struct bench *b) {
    double matmul, copy;
    b->ctx.device->measure(b->ctx.device, &matmul, &copy);
    b->matmul_rate = fmax(b->matmul_rate, matmul);
    b->copy_rate = fmax(b->copy_rate, copy);
}

/* Is the time shorter than the device allows? 5 % are granted for noise in the measured rates. On a CPU
 * memory may be half as fast again as the copy rate says: copying reads a line before it writes it, and
 * that read is not counted. */
static bool too_fast(const struct bench *b, const char *variant, double seconds, double bytes, double flops) {
    double limit = (b->ctx.device->unified ? 1.5 : 1.0) * 1.05;
    return bytes / seconds > limit * b->copy_rate ||
           flops / seconds > 1.05 * op_matmul_rate(&b->ctx, variant, b->matmul_rate);
}

/* --- one variant of a case --- */

static void report(struct bench *b, const struct op_instance *x, const char *variant, const struct timing *t,
                   double bytes, double flops) {
    const struct op_case *c = x->c;
    bool warm = b->config->caches == CACHES_WARM, fits = bytes < (double)tensor_bytes(&b->flush) / 2.0;
    char *name = xasprintf("%s%s", c->name, warm ? ", warm" : ""); /* --compare keeps warm and cold apart */
    for (int i = 0; i < 5 && !(warm && fits) && too_fast(b, variant, t->min, bytes, flops); i++)
        measure_rates(b); /* perhaps these were too low */
    bool fast = too_fast(b, variant, t->min, bytes, flops);
    bool impossible = fast && !fits;
    double gb = bytes / t->median, tf = flops / t->median;
    double peak = op_matmul_rate(&b->ctx, variant, b->matmul_rate);
    double share = fmax(bytes / b->copy_rate, flops / peak) / t->median;
    printf("%-22s %-8s %-7s %-14s %10.1f %10.1f %5.1f%% %8.1f %9.4f %6.1f%%%s\n", op_name(x->op->id), variant,
           dtype_name(b->dtype), name, t->median * 1e6, t->min * 1e6, t->spread * 100, gb / 1e9, tf / 1e12,
           share * 100,
           impossible ? "  ERROR: faster than this device"
           : fast     ? "  faster than memory: in the caches"
                      : "");
    fflush(stdout);
    b->errors += impossible;
    b->measured++;
    json_t *shape = json_array();
    for (int i = 0; i < 6; i++) json_array_append_new(shape, json_integer(c->d[i]));
    json_array_append_new(b->results,
                          json_pack("{s:s, s:s, s:s, s:s, s:o, s:f, s:f, s:f, s:i, s:f, s:f, s:f, s:b}", "op",
                                    op_name(x->op->id), "variant", variant, "dtype", dtype_name(b->dtype),
                                    "case", name, "shape", shape, "median", t->median, "min", t->min,
                                    "spread", t->spread, "samples", t->samples, "bytes", bytes, "flops",
                                    flops, "share", share, "ok", !impossible));
    free(name);
}

/* Checks the result, times the variant, checks again. */
static void bench_variant(struct bench *b, struct op_instance *x, const char *variant) {
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
        struct timing t = measure(b, x, b->config->seconds);
        op_instance_upload(x);
        op_instance_call(x);
        good = op_instance_compare(x, &worst, &err);
        if (good) report(b, x, variant, &t, bytes, flops);
    }
    if (!good) {
        printf("%-22s %-8s WRONG RESULT: %s\n", op_name(x->op->id), variant, err.message);
        b->errors++;
    }
    b->ctx.forced = NULL;
    free(forced);
}

/* Times the variants that --variant asks for, those that take the case. */
static void bench_case(struct bench *b, const struct op_test *op, const struct op_case *c) {
    struct op_instance x;
    const char *want = b->config->variant, *name;
    bool best = strcmp(want, "best") == 0, all = strcmp(want, "all") == 0;
    int count = 0;
    op_instance_create(&x, op, c, b->dtype, &b->ctx);
    for (int i = 0; (name = op->variant(b->ctx.ops, i)) && !(best && count > 0); i++)
        if ((best || all || strcmp(name, want) == 0) && op_instance_need(&x, b->ctx.ops, i) >= 0) {
            bench_variant(b, &x, name);
            count++;
        }
    op_instance_free(&x);
    if (count == 0)
        printf("%-22s %-8s %-7s %-14s no such variant takes this\n", op_name(op->id), best || all ? "" : want,
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
            if (!(cases[i].flags & OP_FP8) || b->dtype == DTYPE_BF16) /* fp32 only emulates fp8 */
                bench_case(b, op_tests[id], &cases[i]);
    }
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

/* "gpt2", or "B,T,C,NH,V". */
static void parse_shape(const struct bench *b, struct op_model *model) {
    struct error err;
    struct gpt_config config;
    const char *shape = b->config->shape;
    long long d[5];
    char rest;
    bool gpu = !b->ctx.device->unified;
    if (sscanf(shape, "%lld,%lld,%lld,%lld,%lld%c", &d[0], &d[1], &d[2], &d[3], &d[4], &rest) == 5) {
        config = (struct gpt_config){
            .context = d[1], .vocab_size = d[4], .layers = 1, .heads = d[3], .channels = d[2]};
        gpt_config_complete(&config);
        check(d[0] > 0 && d[1] > 0, "--shape %s: B and T must be at least 1", shape);
        model->B = d[0];
        model->T = d[1];
    } else {
        if (!gpt_config_from_name(&config, shape, NULL, &err))
            die("--shape %s: %s (or B,T,C,NH,V in numbers)", shape, err.message);
        model->B = b->config->batch_size ? b->config->batch_size : gpu ? 8 : 4;
        model->T = b->config->seq_len ? b->config->seq_len : gpu ? 1024 : 64;
    }
    if (!gpt_config_check(&config, &err)) die("--shape %s: %s", shape, err.message);
    check(model->T <= config.context, "--seq-len %" PRId64 " is beyond the context of %s, %" PRId64, model->T,
          shape, config.context);
    model->C = config.channels;
    model->NH = config.heads;
    model->V = config.vocab_size;
    model->Vp = gpt_padded_vocab(&config);
}

static void write_json(const struct bench *b) {
    json_t *root = json_pack("{s:s, s:s, s:f, s:f, s:O}", "device", b->ctx.device->name, "backend",
                             b->ctx.device->backend, "matmul_rate", b->matmul_rate, "copy_rate", b->copy_rate,
                             "results", b->results);
    check(root && json_dump_file(root, b->config->json, JSON_INDENT(1)) == 0, "--json %s: cannot be written",
          b->config->json);
    json_decref(root);
}

/* Twice the caches of this CPU, or of any GPU. */
static void make_flush(struct bench *b) {
    int64_t bytes =
        b->ctx.device->unified ? max_i64(2 * sysconf(_SC_LEVEL3_CACHE_SIZE), 64 << 20) : 256 << 20;
    b->flush = tensor_make("flush", DTYPE_F32,
                           ctx_alloc(&b->ctx, MEM_ACTIVATIONS, bytes, "memory to flush the caches"),
                           bytes / 4, 0, 0, 0);
    b->meeting = tensor_make("part of flush", DTYPE_F32, b->flush.data, 1 << 16, 0, 0, 0);
    b->flush_sum =
        tensor_make("flush sum", DTYPE_F32, ctx_alloc(&b->ctx, MEM_ACTIVATIONS, 4, "its sum"), 1, 0, 0, 0);
    fill(&b->ctx, &b->flush, 1.0f);
}

static int run(const struct config *config) {
    struct error err;
    struct op_model model;
    struct device_options options = {.tf32 = config->tf32, .tune_file = config->autotune};
    struct device *device = device_open(config->device, &options, &err);
    if (!device) die("%s", err.message);
    check(!config->ladder || (!device->unified && &ladder_ops),
          "--ladder needs a GPU and a build with the CUDA back end (make config)");
    check(!config->json || may_write_file(config->json, config->overwrite, &err), "--json %s", err.message);
    struct bench b = {.config = config, .results = json_array()};
    ctx_init(&b.ctx, device, config->ladder ? &ladder_ops : device->ops, false);
    b.ctx.forced = NULL;
    b.dtype = config->dtype == WORD_FP32   ? DTYPE_F32
              : config->dtype == WORD_BF16 ? DTYPE_BF16
                                           : device->dtype;
    parse_shape(&b, &model);
    bool known = false;
    for (int id = 0; id < OP_COUNT; id++) known = known || wanted(config->op, op_name((enum op_id)id));
    if (!known) die("--op %s: there is no such operation", config->op);
    measure_rates(&b);
    printf("%s: matmul %sFLOP/s, copy %sB/s (read and written), measured\n", device->name,
           human_count(b.matmul_rate), human_count(b.copy_rate));
    make_flush(&b);
    bench_ops(&b, &model);
    if (b.measured + b.errors == 0)
        die("nothing was measured: no operation of --op %s has a variant %s for %s", config->op,
            config->variant, dtype_name(b.dtype));
    if (config->json) write_json(&b);
    if (b.errors) fprintf(stderr, "%d results are wrong or impossible\n", b.errors);
    json_decref(b.results);
    ctx_free(&b.ctx);
    device->close(device);
    return b.errors != 0;
}

int main(int argc, char **argv) {
    struct options o;
    struct config config;
    open_standard_files();
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
