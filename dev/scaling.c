/* Predicts how training scales over many GPUs, from the engine's own step.
 *     build/scaling [--gpus 8,64,512,4096] [--models 124M,1558M,13B] [--zero-group 8] [--micro-step-ms X]
 *
 * The step of one rank, with zero.c's schedule of buckets, hooks and waits, runs in plan mode over a
 * communicator that records instead of sending: after how much computing each collective starts, how many
 * bytes it has, and what waits for it. The record is then played back. Computing takes the time that a
 * roofline gives (or that was measured), and a collective takes the time of the alpha-beta model of its
 * ring or tree, on a queue of its own. Order and overlap are therefore those of the code, and no formula
 * of the step is written down here.
 *
 * Collectives of n bytes over p GPUs in machines of g:
 *   ring   (p-1) steps of latency, and n (p-1)/p bytes through the slowest link of the ring: NVLink inside a
 *          machine, between machines its network cards together (one ring per card)
 *   tree   (all_reduce only) up and down a chain inside each machine and a double binary tree between them
 * all_reduce uses the faster of the two; its ring moves twice the bytes. reduce_scatter and all_gather have
 * only the ring, as in NCCL. With groups (--zero-group) reduce_scatter is one over the group, and then an
 * all_reduce of a part over the groups, in which the GPUs of a machine share its cards. See Thakur,
 * Rabenseifner, Gropp 2005 for the rings, Sanders, Speck, Traeff 2009 for the trees. */
#include "llmc/cli/commands.h"
#include "llmc/run/config.h"
#include "llmc/ranks/zero.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- options --- */

struct config {
    const char *device, *models, *gpus, *zero, *accumulate;
    double matmul_tflops, attention_forward_tflops, attention_backward_tflops, copy_tbs, micro_step_ms;
    double link_gbs, card_gbs, link_us, card_us, memory_gib;
    int64_t machine, batch_size, zero_group;
};

static const struct option_row rows[] = {
    OPT_TEXT(struct config, models, "models", "124M,1558M,13B", "LIST", "models: 124M, 1558M, 13B or presets",
             0),
    OPT_TEXT(struct config, gpus, "gpus", "8,64,512,4096", "LIST", "numbers of GPUs", 0),
    OPT_TEXT(struct config, zero, "zero", "0,1,2,3", "LIST", "ZeRO levels", 0),
    OPT_INT(struct config, zero_group, "zero-group", "0", 0, 65536, "N",
            "as in training: ZeRO divides among groups of N GPUs (0: among all)", 0),
    OPT_TEXT(struct config, accumulate, "accumulate", "1,8", "LIST", "numbers of micro-batches in a step", 0),
    OPT_INT(struct config, batch_size, "batch-size", "0", 0, 65536, "B",
            "sequences in a micro-batch (0: 64 for 124M, 16 for 1558M, 8 for 13B)", 0),
    OPT_INT(struct config, machine, "machine", "8", 1, 1024, "N", "GPUs in a machine", 0),
    OPT_REAL(
        struct config, micro_step_ms, "micro-step-ms", "0", 0, INFINITY, "X",
        "measured time of one micro-batch, forward and backward, to which all computing is scaled; 0: roofline",
        0),
    OPT_REAL(struct config, matmul_tflops, "matmul-tflops", "700", 0, INFINITY, "X", "rate of matmuls",
             OPTION_ABOVE_MIN),
    OPT_REAL(struct config, attention_forward_tflops, "attention-forward-tflops", "350", 0, INFINITY, "X",
             "rate of attention, forward", OPTION_ABOVE_MIN),
    OPT_REAL(struct config, attention_backward_tflops, "attention-backward-tflops", "300", 0, INFINITY, "X",
             "rate of attention, backward", OPTION_ABOVE_MIN),
    OPT_REAL(struct config, copy_tbs, "copy-tbs", "4.3", 0, INFINITY, "X",
             "memory bandwidth, read plus written, TB/s", OPTION_ABOVE_MIN),
    OPT_REAL(struct config, link_gbs, "link-gbs", "450", 0, INFINITY, "X",
             "bandwidth of a GPU inside its machine, GB/s in each direction", OPTION_ABOVE_MIN),
    OPT_REAL(struct config, card_gbs, "card-gbs", "50", 0, INFINITY, "X",
             "bandwidth of a network card, GB/s in each direction; each GPU has one", OPTION_ABOVE_MIN),
    OPT_REAL(struct config, link_us, "link-us", "2", 0, INFINITY, "X",
             "latency of one transfer inside a machine, us", 0),
    OPT_REAL(struct config, card_us, "card-us", "5", 0, INFINITY, "X",
             "latency of one transfer between machines, us", 0),
    OPT_REAL(struct config, memory_gib, "memory-gib", "140", 0, INFINITY, "X", "memory of a GPU, GiB", 0),
    OPT_TEXT(struct config, device, "device", "cuda", "NAME", "device whose kernels are planned", 0),
};
static const struct option_group groups[] = {{"Scaling", rows, ARRAY_LENGTH(rows)}};
static const struct option_command command = {
    "scaling [options]",
    "Predicts step times on many GPUs by playing back the engine's own schedule.",
    groups,
    1,
    NULL,
    0,
    0};

/* The next number of a list separated by commas; false at its end. */
static bool next_number(int64_t *value, const char **list) {
    if (!**list) return false;
    char *end;
    *value = strtoll(*list, &end, 10);
    check(end != *list && *value >= 0 && (*end == ',' || !*end), "%s: not a list of numbers like 8,64",
          *list);
    *list = *end ? end + 1 : end;
    return true;
}

/* --- the recording communicator --- */

enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, WAIT };

struct event {
    enum kind kind;
    double bytes, compute; /* seconds of computing before it */
    int64_t ticket;
};

struct recorder {
    struct comm comm;
    const struct config *config;
    struct ctx *ctx;
    struct event *event;
    int64_t count, capacity, tickets;
};

/* --- computing time --- */

static double rate_of(const struct config *c, int op) {
    return 1e12 * (op == OP_attn_forward    ? c->attention_forward_tflops
                   : op == OP_attn_backward ? c->attention_backward_tflops
                                            : c->matmul_tflops);
}

/* The time of all operations that the context has counted so far, each bound by its arithmetic or by
 * memory. */
static double computed(const struct recorder *r) {
    double seconds = 0;
    for (int op = 0; op < OP_COUNT; op++) {
        const struct op_stats *s = &r->ctx->stats[op];
        seconds += fmax(s->flops / rate_of(r->config, op), s->bytes / (1e12 * r->config->copy_tbs));
    }
    return seconds;
}

static int64_t record(struct comm *c, enum kind kind, double bytes, int64_t ticket) {
    struct recorder *r = (struct recorder *)c->state;
    if (r->count == r->capacity) {
        r->capacity = 2 * r->capacity + 64;
        r->event = (struct event *)xrealloc(r->event, (size_t)r->capacity * sizeof *r->event);
    }
    r->event[r->count++] = (struct event){kind, bytes, computed(r), ticket};
    return ticket;
}

static int64_t record_all_reduce(struct comm *c, struct tensor *t, void *stream) {
    return record(c, ALL_REDUCE, (double)tensor_bytes(t), ++((struct recorder *)c->state)->tickets);
}
static int64_t record_reduce_scatter(struct comm *c, struct tensor *t, void *stream) {
    return record(c, REDUCE_SCATTER, (double)tensor_bytes(t), ++((struct recorder *)c->state)->tickets);
}
static int64_t record_all_gather(struct comm *c, struct tensor *t, void *stream) {
    return record(c, ALL_GATHER, (double)tensor_bytes(t), ++((struct recorder *)c->state)->tickets);
}
static int64_t record_broadcast(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return record(c, BROADCAST, (double)tensor_bytes(t), ++((struct recorder *)c->state)->tickets);
}
static void record_wait(struct comm *c, int64_t ticket, void *stream) { record(c, WAIT, 0, ticket); }
static void record_close(struct comm *c) {}

static void recorder_init(struct recorder *r, const struct config *config, struct ctx *ctx, int64_t world) {
    *r = (struct recorder){.config = config, .ctx = ctx};
    int64_t group = config->zero_group;
    r->comm = (struct comm){.world = world,
                            .parts = group && group < world ? group : world,
                            .kind = "recorder",
                            .state = r,
                            .all_reduce = record_all_reduce,
                            .reduce_scatter = record_reduce_scatter,
                            .all_gather = record_all_gather,
                            .broadcast = record_broadcast,
                            .wait = record_wait,
                            .close = record_close};
}

/* --- playing back --- */

/* Among p GPUs that are `stride` apart; `stride` such collectives run at once. */
static double collective_seconds(const struct config *c, enum kind kind, double bytes, int64_t p,
                                 int64_t stride) {
    double g = (double)min_i64(max_i64(1, c->machine / stride), p);
    double machines = ceil((double)p / g), n = (double)p;
    bool far = machines > 1;
    if (p == 1) return 0;
    /* one ring per network card, so that the cards of a machine are busy that these GPUs have */
    double bandwidth = 1e9 * (far ? fmin(c->link_gbs, c->card_gbs * g) : c->link_gbs);
    /* a ring that passes through all machines crosses the network once in g steps */
    double step = 1e-6 * (far ? (c->card_us + (g - 1) * c->link_us) / g : c->link_us);
    double ring = (n - 1) * step + bytes * (n - 1) / n / bandwidth;
    if (kind != ALL_REDUCE) return ring;
    double tree =
        2e-6 * ((g - 1) * c->link_us + (far ? ceil(log2(machines)) * c->card_us : 0)) + 2 * bytes / bandwidth;
    return fmin(2 * ring, tree);
}

struct outcome {
    double step, compute, communication; /* seconds: the step, computing alone, collectives alone */
};

static struct outcome play(const struct recorder *r, double scale, double total_compute) {
    struct outcome o = {.compute = total_compute * scale};
    double *end = (double *)xcalloc((size_t)r->tickets + 1, sizeof *end);
    double waited = 0, queue_free = 0; /* how long computing has waited so far; when the queue becomes idle */
    for (int64_t i = 0; i < r->count; i++) {
        const struct event *e = &r->event[i];
        double now = e->compute * scale + waited;
        if (e->kind == WAIT) {
            waited += fmax(0, end[e->ticket] - now);
            continue;
        }
        int64_t parts = r->comm.parts, world = r->comm.world;
        bool divided = e->kind == REDUCE_SCATTER || e->kind == ALL_GATHER;
        double seconds = collective_seconds(r->config, e->kind, e->bytes, divided ? parts : world, 1);
        if (e->kind == REDUCE_SCATTER && parts < world)
            seconds +=
                collective_seconds(r->config, ALL_REDUCE, e->bytes / (double)parts, world / parts, parts);
        queue_free = end[e->ticket] = fmax(now, queue_free) + seconds;
        o.communication += seconds;
    }
    o.step = fmax(o.compute + waited, queue_free);
    free(end);
    return o;
}

/* --- the table --- */

static void choose_model(struct gpt_config *model, int64_t *batch, const struct config *c, const char *name) {
    struct error err;
    const char *preset = strcmp(name, "124M") == 0 ? "gpt2" : strcmp(name, "1558M") == 0 ? "gpt2-xl" : name;
    if (strcmp(name, "13B") == 0) /* Brown et al. 2020, table 2.1, with 128 channels a head */
        *model = (struct gpt_config)GPT2_CONFIG("13B", 2048, 50257, 40, 40, 5120);
    else
        check(gpt_config_from_name(model, preset, NULL, &err), "%s", err.message);
    *batch = c->batch_size ? c->batch_size : model->channels < 1024 ? 64 : model->channels < 2048 ? 16 : 8;
}

/* One step of rank 0 of `world`, recorded. */
static void print_row(const struct config *c, struct device *device, const struct gpt_config *model,
                      int64_t batch, int64_t world, int64_t level, int64_t micro_steps) {
    struct ctx ctx;
    ctx_init(&ctx, device, device->ops, true);
    struct gpt gpt;
    struct optimizer optimizer;
    struct zero zero;
    struct recorder r;
    recorder_init(&r, c, &ctx, world);
    struct gpt_options options = {.B = batch,
                                  .T = min_i64(1024, model->context),
                                  .train = true,
                                  .recompute = model->channels < 2048 ? RECOMPUTE_NONE : RECOMPUTE_BLOCK,
                                  .dtype = device->dtype};
    zero_gpt_options(&options, (enum zero_level)level, world);
    gpt_create(&gpt, &ctx, model, &options);
    zero_create(&zero, &gpt, &optimizer, &r.comm, (enum zero_level)level,
                (struct optimizer_options){.master_weights = device->dtype == DTYPE_BF16});
    ctx_reset_stats(&ctx);
    r.count = 0;
    double micro = 0;
    for (int64_t i = 0; i < micro_steps; i++) {
        zero_micro_step(&zero, i == 0, i + 1 == micro_steps);
        if (i == 0) micro = computed(&r);
    }
    struct update_args args = {.lr = 1e-3f, .step = 1};
    zero_update(&zero, &args);
    double scale = c->micro_step_ms > 0 ? 1e-3 * c->micro_step_ms / micro : 1.0;
    struct outcome o = play(&r, scale, computed(&r));
    double tokens = (double)(batch * options.T * micro_steps * world), gib = 1024.0 * 1024 * 1024;
    double memory = (double)ctx_memory_total(&ctx) / gib;
    printf("| %-6s | %5" PRId64 " | %" PRId64 " | %3" PRId64
           " | %8s | %8.1f | %8.1f | %8.1f | %8.1f | %5.1f %% | %6.1f%s |\n",
           model->channels == 768    ? "124M"
           : model->channels == 1600 ? "1558M"
                                     : model->name,
           world, level, micro_steps, human_count(tokens), 1e3 * o.compute, 1e3 * o.communication,
           1e3 * (o.step - o.compute), 1e3 * o.step, 100 * o.compute / o.step, memory,
           memory > c->memory_gib ? " (!)" : "");
    zero_free(&zero);
    ctx_free(&ctx);
    free(r.event);
}

int main(int argc, char **argv) {
    struct options options;
    struct config c;
    struct error err;
    int status = command_options(&options, &command, &c, argc - 1, argv + 1);
    if (status >= 0) return status;
    struct device *device = device_open(c.device, NULL, &err);
    check(device, "%s", err.message);
    printf("| model  |  GPUs | ZeRO | micro-batches | tokens a step | computing ms | communication ms | "
           "exposed ms | step ms | efficiency | GiB a GPU "
           "|\n|---|---|---|---|---|---|---|---|---|---|---|\n");
    char *models = xstrdup(c.models), *rest = models;
    for (const char *name; (name = strsep(&rest, ",")) != NULL;) {
        struct gpt_config model;
        int64_t batch, world, level, micro_steps;
        choose_model(&model, &batch, &c, name);
        for (const char *gpus = c.gpus; next_number(&world, &gpus);)
            for (const char *zero = c.zero; next_number(&level, &zero);)
                for (const char *steps = c.accumulate; next_number(&micro_steps, &steps);)
                    print_row(&c, device, &model, batch, world, level, micro_steps);
    }
    free(models);
    device->close(device);
    options_free(&options);
    return 0;
}
