/* train_gpt: trains GPT-2-scale models. This file is the training run: options -> data -> model -> the loop.
 * The other commands (sample, plan, eval, export ...) are in llmc/cmd_*.c.
 *
 * Sections: the run and its parts, starting or resuming, evaluation and samples, checkpoints, one step, the
 * loop, main. Plain C11; the name ends in .cu for what it drives. */
#include "data/stories.h"
#include "llmc/agree.h"
#include "llmc/checkpoint.h"
#include "llmc/comm.h"
#include "llmc/commands.h"
#include "llmc/eval.h"
#include "llmc/file.h"
#include "llmc/launch.h"
#include "llmc/log_file.h"
#include "llmc/logger.h"
#include "llmc/pace.h"
#include "llmc/run_data.h"
#include "llmc/run_ranks.h"
#include "llmc/sampler.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- the run and its parts --- */

enum { IN_FLIGHT = 2 };

struct run {
    struct options options;
    struct run_config config;
    char *out;   /* run directory */
    char *start; /* checkpoint directory the weights come from; NULL: initialised */
    bool resumed;
    struct train_state state; /* step, data position: what a checkpoint stores */
    struct run_data data;
    struct group *group;
    struct device *device;
    struct comm *comm;
    struct pace pace;
    char device_name[32]; /* "cuda:3" */
    int rank_log;         /* descriptor; 0: none */
    int stop;             /* the signal that all ranks agreed to stop for; 0: none */
    struct ctx ctx;
    struct gpt_config model;
    struct gpt gpt, generator; /* the generator reads gpt's parameters */
    struct optimizer optimizer;
    struct zero zero;
    struct dataloader *train;
    struct logger *log;
    struct nvml *nvml; /* NULL: the CPU, or a driver without it */
    double val_loss;
    struct eval_tasks tasks;
    struct log_file task_log;
    bool saved;         /* the last checkpoint that was due is on disk */
    int64_t saved_step; /* its step, also if it failed */

    /* the pipeline of steps */
    struct flight {
        void *done;     /* event after the step */
        float *numbers; /* (STEP_NUMBERS) on the host, valid after `done` */
        double lr, epoch;
    } flight[IN_FLIGHT];
    int32_t *staging; /* (IN_FLIGHT, micro_steps, 2, B, T): tokens and targets on their way to the device */
    int64_t micro_steps, collected, micro_calls[2];
    void *graph[2]; /* recorded micro-steps: later ones, the first one of a step */
    double clock;   /* when the last step ended */
    int skipped;    /* updates skipped in a row */
};

static volatile sig_atomic_t stop_signal;

/* The first signal ends the run after the current step; a second one ends it at once. */
static void on_signal(int number) {
    stop_signal = number;
    signal(number, SIG_DFL);
}

static const struct option_command train_command = {
    "train_gpt [options]\n"
    "       train_gpt sample|plan|eval|export|compare|profile --help",
    "Trains a GPT-2 model: on the built-in stories, on --text, or on --data token shards.",
    run_option_groups,
    RUN_OPTION_GROUPS,
    NULL,
    0,
    0};

/* --- starting or resuming --- */

/* runs/stories, runs/stories-2, ...: the first one that is free, or the last one that exists (to resume). */
static char *default_out(const struct run_config *c, bool existing, struct error *err) {
    const char *name = c->text || c->data ? "train" : "stories";
    char *last = NULL;
    for (int i = 1;; i++) {
        char *path = i == 1 ? xasprintf("runs/%s", name) : xasprintf("runs/%s-%d", name, i);
        bool there = path_exists(path);
        if (there && existing) {
            free(last);
            last = path;
            continue;
        }
        if (!there && existing) {
            free(path);
            if (!last) fail(err, "--resume: there is no run under runs/ yet; --out DIR names one elsewhere");
            return last;
        }
        if (!there) return path;
        free(path);
    }
}

/* On rank 0: decides where the run lives, and which checkpoint it goes on from. */
static bool choose_run(struct run *r, struct error *err) {
    const struct run_config *c = &r->config;
    r->out = c->out ? xstrdup(c->out) : default_out(c, c->resume, err);
    if (!r->out) return false;
    if (c->resume) return (r->start = checkpoint_find(r->out, err)) != NULL;
    char *log = xasprintf("%s/log.jsonl", r->out);
    bool taken = path_exists(log) && !c->overwrite;
    free(log);
    if (taken)
        return fail(
            err,
            "%s already holds a run: --resume continues it, --overwrite starts again, --out DIR chooses "
            "another place",
            r->out);
    return (!c->overwrite || remove_tree(r->out, err)) && make_directories(r->out, err);
}

/* On --resume reads the newest checkpoint and takes over its options. */
static void open_run(struct run *r) {
    struct error err;
    struct rank_busy *busy = rank_busy_begin(r->group, "choosing the run", -1);
    bool ok = r->group->rank != 0 || choose_run(r, &err);
    rank_busy_end(busy);
    run_agree(r->group, ok, &err);
    run_share_text(r->group, &r->out);
    run_share_text(r->group, &r->start);
    launch_tell_run(r->out);
    ok = run_see_directory(r->group, r->out, &err);
    if (ok && r->config.rank_logs) ok = (r->rank_log = rank_log_open(r->out, r->group, &err)) > 0;
    r->resumed = r->config.resume;
    if (ok && r->resumed)
        ok = checkpoint_load_state(&r->state, r->start, &err) &&
             options_import(&r->options, r->state.options, r->start, &err);
    run_agree(r->group, ok, &err);
}

static bool open_data_and_model(struct run *r, struct error *err) {
    struct run_config *c = &r->config;
    char *directory = NULL, *corpus = xasprintf("%s/stories.txt", r->out);
    bool look = !r->start && path_exists(c->model); /* for weights to start from */
    if (look && !(r->start = checkpoint_find(c->model, err))) return false;
    if (!run_data_open(&r->data, c, r->start, r->resumed || r->group->rank != 0 ? NULL : corpus, err))
        return false;
    int64_t vocab = r->data.vocab_size ? r->data.vocab_size : c->vocab_size;
    bool known = r->resumed ? checkpoint_config(&r->model, r->start, err)
                            : run_model_config(&r->model, &directory, c, vocab, err);
    if (!known || !run_data_open_shards(&r->data, c, r->model.vocab_size, err) ||
        !run_config_complete(c, &r->model, dataset_tokens(r->data.train), err))
        return false;
    if (r->resumed && r->state.data != dataset_fingerprint(r->data.train))
        return fail(
            err,
            "%s: the training data is not what the run was started on; the same --text, --data or "
            "--stories is needed to resume (to go on with other data, start a new run with --model %s)",
            r->start, r->start);
    r->state.data = dataset_fingerprint(r->data.train);
    struct loader_options loading = {.B = c->batch_size,
                                     .T = c->seq_len,
                                     .order = c->samples == SAMPLES_CHOICE_DOCUMENTS ? SAMPLES_DOCUMENTS
                                              : c->shuffle                           ? SAMPLES_SHUFFLED
                                                                                     : SAMPLES_IN_ORDER,
                                     .end_of_text =
                                         r->data.tokenizer ? tokenizer_end_of_text(r->data.tokenizer) : -1,
                                     .seed = (uint64_t)c->seed,
                                     .first_sample = r->state.sample,
                                     .step_samples = c->tokens_per_step / c->seq_len,
                                     .rank = r->group->rank,
                                     .world = r->group->world};
    r->train = dataloader_open(r->data.train, &loading, err);
    free(directory);
    free(corpus);
    return r->train != NULL;
}

/* --- several processes --- */

static void open_data(struct run *r) {
    struct error err;
    struct rank_busy *busy = rank_busy_begin(r->group, "reading the data", -1);
    bool ok = open_data_and_model(r, &err);
    rank_busy_end(busy);
    run_agree(r->group, ok, &err);
}

/* What must be the same on all ranks: at first what they were told, later what they made of it. */
static void compare_options(struct run *r) {
    struct agree facts = {0};
    struct error err;
    agree_add_options(&facts, &r->options, "threads");
    bool same = agree_with_rank_0(&facts, r->group, &err);
    agree_free(&facts);
    run_agree(r->group, same, &err);
}

static void compare_state(struct run *r) {
    struct agree facts = {0};
    struct error err;
    const struct gpt_config *m = &r->model;
    struct gpt_options options = run_gpt_options(&r->config, r->device);
    agree_add_options(&facts, &r->options, "threads");
    agree_add(&facts, "the fingerprint of the training data", "%016" PRIx64, r->state.data);
    agree_add(&facts, "the fingerprint of the validation data", "%016" PRIx64,
              r->data.val ? dataset_fingerprint(r->data.val) : 0);
    agree_add(&facts, "the fingerprint of the tokenizer", "%016" PRIx64,
              r->data.tokenizer ? tokenizer_hash(r->data.tokenizer) : 0);
    agree_add(&facts, "the model",
              "%" PRId64 " layers, %" PRId64 " heads, %" PRId64 " channels, %" PRId64 " positions, %" PRId64
              " tokens",
              m->layers, m->heads, m->channels, m->context, m->vocab_size);
    agree_add(&facts, "the kind of device", "%s", r->device->backend);
    agree_add(&facts, "the type of the weights", "%s", dtype_name(options.dtype));
    agree_add(&facts, "the step to go on from", "%" PRId64, r->state.step);
    agree_add(&facts, "the sample to go on from", "%" PRId64, r->state.sample);
    bool same = agree_with_rank_0(&facts, r->group, &err);
    agree_free(&facts);
    run_agree(r->group, same, &err);
}

/* From here on warnings are those of this rank alone. */
static void speak_for_oneself(const struct run *r) {
    run_speak(r->group, r->rank_log);
    rank_log_put(r->rank_log,
                 "rank %" PRId64 " of %" PRId64 ", %s, process %d, %s (%s), %s after step %" PRId64,
                 r->group->rank, r->group->world, r->group->host, (int)getpid(), r->device->name,
                 r->device_name, r->comm->kind, r->state.step);
}

/* The communicator, with the pace in between. */
static void open_comm(struct run *r) {
    struct error err;
    struct comm *comm = comm_open(r->group, r->device, &err);
    check(comm, "%s", err.message);
    pace_open(&r->pace, r->group, comm, r->device, r->device_name);
    r->comm = &r->pace.comm;
}

/* Only rank 0 prints and writes. */
static bool speaks(const struct run *r) { return r->group->rank == 0; }

/* The signal that this run is to stop for: one process has its own, several agree. */
static int stopping(const struct run *r) { return r->group->world > 1 ? r->stop : stop_signal; }

static void exchange_news(struct run *r) {
    bool last = r->state.step == r->config.steps;
    if (r->group->world == 1 || !(last || pace_due(&r->pace, r->state.step))) return;
    r->stop = pace_exchange(&r->pace, r->state.step, stop_signal);
    double *seconds;
    char *warning;
    if (!speaks(r) || !pace_report(&r->pace, last || r->stop, &seconds, &warning)) return;
    logger_ranks(r->log, r->state.step, seconds, r->group->world);
    if (warning) logger_say(r->log, "warning: %s", warning);
    free(seconds);
    free(warning);
}

/* Allocates what the plan of a step says, then fills it. */
static void create_model(struct run *r) {
    struct error err;
    struct gpt_options options = run_gpt_options(&r->config, r->device);
    struct ctx plan;
    ctx_init(&plan, r->device, r->device->ops, true);
    bool master = run_master_weights(&r->config, &options);
    run_plan_step(&plan, &r->model, &options, master, r->config.zero, r->comm->world);
    /* on the CPU all processes of a machine share its memory */
    int64_t sharing = strcmp(r->device->backend, "cpu") == 0 ? r->group->local_world : 1;
    int64_t free_bytes, total_bytes, needed = sharing * ctx_memory_total(&plan);
    r->device->memory_info(r->device, &free_bytes, &total_bytes);
    check(needed <= free_bytes,
          "this run needs %s, and %s of %s is free on %s. %s; `train_gpt plan` shows how much",
          human_bytes((double)needed), human_bytes((double)free_bytes), human_bytes((double)total_bytes),
          r->device->name, ctx_memory_advice(&plan, free_bytes / sharing));
    ctx_init(&r->ctx, r->device, r->device->ops, false);
    gpt_create(&r->gpt, &r->ctx, &r->model, &options);
    zero_create(&r->zero, &r->gpt, &r->optimizer, r->comm, r->config.zero, master);
    ctx_reserve_scratch(&r->ctx, plan.memory[MEM_SCRATCH]);
    generator_create(&r->generator, &r->ctx, &r->model, options.dtype, &r->gpt);
    check(ctx_memory_total(&r->ctx) <= ctx_memory_total(&plan),
          "the run took more memory, %s, than was planned, %s",
          human_bytes((double)ctx_memory_total(&r->ctx)), human_bytes((double)ctx_memory_total(&plan)));
    if (!r->start) {
        gpt_init_weights(&r->gpt, (uint64_t)r->config.seed);
        zero_parameters_changed(&r->zero);
        optimizer_copy_master(&r->optimizer, &r->gpt);
    } else {
        check(checkpoint_load_parameters(&r->zero, r->start, &err), "%s", err.message);
        if (r->resumed) check(checkpoint_load_moments(&r->zero, r->start, &err), "%s", err.message);
    }
    ctx_free(&plan);
}

static void write_options(const struct run *r) {
    struct error err;
    if (!speaks(r)) return;
    json_t *stored = options_export(&r->options);
    char *path = xasprintf("%s/options.json", r->out);
    char *text = json_dumps(json_object_get(stored, "values"), JSON_INDENT(2));
    check(write_file_atomic(path, text, strlen(text), &err), "%s", err.message);
    free(text);
    free(path);
    json_decref(stored);
}

static void introduce(const struct run *r, double matmul_rate) {
    if (!speaks(r)) return;
    char *options = options_text(&r->options);
    printf("%s\n", options);
    free(options);
    printf("device    %s, %sFLOP/s in matmul\n", r->device->name, human_count(matmul_rate));
    if (r->group->world > 1)
        printf("ranks     %" PRId64 " processes, %" PRId64 " of them on this machine; %s\n", r->group->world,
               r->group->local_world, r->comm->kind);
    printf("data      %s\n", r->data.summary);
    printf("model     %s: %sparameters, %s of memory\n", r->model.name,
           human_count((double)r->gpt.layout.count), human_bytes((double)ctx_memory_total(&r->ctx)));
    printf("run       %s, %" PRId64 " steps of %" PRId64 " tokens%s%s\n\n", r->out, r->config.steps,
           r->config.tokens_per_step,
           r->resumed ? ", resumed from "
           : r->start ? ", starting from "
                      : "",
           r->start ? r->start : "");
}

static void open_log(struct run *r) {
    struct error err;
    double matmul_rate = 0.0, copy_rate;
    if (speaks(r)) r->device->measure(r->device, &matmul_rate, &copy_rate);
    introduce(r, matmul_rate);
    struct log_options options = {.out = speaks(r) ? r->out : NULL,
                                  .quiet = !speaks(r),
                                  .steps = r->config.steps,
                                  .resumed_step = r->state.step,
                                  .tokens_per_step = r->config.tokens_per_step,
                                  .flops_per_token = gpt_flops_per_token(&r->model, r->config.seq_len),
                                  .peak_flops = matmul_rate * (double)r->group->world,
                                  .floor_loss = r->data.floor_loss};
    r->log = logger_open(&options, &err);
    check(r->log, "%s", err.message);
    if (speaks(r) && r->device->id[0]) r->nvml = nvml_open(r->device->id);
}

/* --- evaluation and samples --- */

static void evaluating(void *run, double done) {
    const struct run *r = (const struct run *)run;
    group_progress(r->group, "evaluating", r->state.step);
}

static double mean_of_ranks(struct run *r, const struct eval_loss *loss) {
    struct part {
        double sum;
        int64_t targets;
    } mine = {loss->targets ? loss->loss * (double)loss->targets : 0.0, loss->targets}, all = {0.0, 0};
    int64_t world = r->group->world;
    if (world == 1) return loss->loss;
    struct part *of_rank = (struct part *)xmalloc((size_t)world * sizeof *of_rank);
    group_exchange(r->group, of_rank, &mine, sizeof mine);
    for (int64_t i = 0; i < world; i++) {
        all.sum += of_rank[i].sum;
        all.targets += of_rank[i].targets;
    }
    free(of_rank);
    return all.targets ? all.sum / (double)all.targets : (double)NAN;
}

/* Mean loss over the validation set (or its first --val-batches), the same batches every time; the ranks have
 * turns. */
static double validate(struct run *r) {
    int64_t rank = r->group->rank, world = r->group->world;
    struct error err;
    struct loader_options loading = {.B = r->config.batch_size,
                                     .T = r->config.seq_len,
                                     .order = r->data.val_order,
                                     .rank = rank,
                                     .world = world,
                                     .end_of_text =
                                         r->data.tokenizer ? tokenizer_end_of_text(r->data.tokenizer) : -1};
    struct dataloader *loader = dataloader_open(r->data.val, &loading, &err);
    check(loader, "%s", err.message);
    int64_t all = ceil_div(dataloader_samples(loader), r->config.batch_size);
    int64_t batches = r->config.val_batches ? r->config.val_batches : r->data.val_bytes ? all : 20;
    struct eval_progress progress = {evaluating, r};
    batches = min_i64(batches, all);
    int64_t own = batches / world + (rank < batches % world);
    struct eval_loss loss = eval_loss(&r->gpt, loader, own, NULL, &progress);
    /* who has no turn in the last round only takes part in gathering parameters */
    if (own < ceil_div(batches, world)) eval_loss(&r->gpt, loader, 1, NULL, NULL);
    dataloader_close(loader);
    return mean_of_ranks(r, &loss);
}

/* Multiple-choice questions: to the terminal and to RUN/tasks.jsonl. */
static void open_tasks(struct run *r) {
    struct error err;
    if (!r->config.eval_tasks) return;
    check(r->data.tokenizer,
          "--eval-tasks: token shards need a --tokenizer that the questions can be encoded with");
    check(eval_tasks_open(&r->tasks, r->config.eval_tasks, r->data.tokenizer, r->config.seq_len, &err),
          "--eval-tasks: %s", err.message);
    if (!speaks(r)) return;
    if (r->tasks.cut)
        warn("%" PRId64 " of %" PRId64 " questions are longer than %" PRId64
             " tokens: their beginnings are left out",
             r->tasks.cut, r->tasks.questions, r->config.seq_len);
    char *path = xasprintf("%s/tasks.jsonl", r->out);
    /* the rows of the resumed step are written again */
    check(log_file_open(&r->task_log, path, max_i64(0, r->state.step - 1), &err), "%s", err.message);
    free(path);
}

static void answer_tasks(struct run *r) {
    struct eval_progress progress = {evaluating, r};
    for (int64_t i = 0; i < r->tasks.count; i++) {
        struct eval_result a = eval_task_run(r->tasks.task[i], &r->gpt, NULL, &progress);
        if (!speaks(r)) continue;
        const char *name = eval_task_name(r->tasks.task[i]);
        logger_say(
            r->log, "step %" PRId64 "  %s: %.2f %% right of %" PRId64 " (by token %.2f %%, guessing %.2f %%)",
            r->state.step, name, 100.0 * a.accuracy, a.questions, 100.0 * a.per_token, 100.0 * a.chance);
        json_t *row =
            json_pack("{s:I, s:s, s:f, s:f, s:f}", "step", (json_int_t)r->state.step, "task", name,
                      "accuracy", a.accuracy, "per_token", a.per_token, "per_character", a.per_character);
        char *text = json_dumps(row, JSON_COMPACT), *line = xasprintf("%s\n", text);
        log_file_put(&r->task_log, line, (int64_t)strlen(line));
        free(line);
        free(text);
        json_decref(row);
    }
}

static char *sample_text(struct run *r, uint64_t seed) {
    struct sampler_options sampling = {
        .temperature = r->data.stories ? 1.0 : 0.8, .top_p = 1.0, .seed = seed};
    struct rank_busy *busy = rank_busy_begin(r->group, "writing a sample", r->state.step);
    char *text = generate_text(&r->generator, r->data.tokenizer, &sampling, "",
                               r->data.stories ? r->model.context - 1 : 200);
    rank_busy_end(busy);
    return text;
}

/* A story for the reader, and what the grammar says about a number of them. */
static void print_grade(struct run *r) {
    enum { GRADED = 40 };
    struct story_grade total = {0};
    for (int i = 0; i < GRADED; i++) {
        char *text = sample_text(r, (uint64_t)(1000 + i));
        struct story_grade g = story_grade(text, (int64_t)strlen(text));
        total.sentences += g.sentences;
        total.grammatical += g.grammatical;
        total.references += g.references;
        total.references_ok += g.references_ok;
        free(text);
    }
    if (!speaks(r)) return;
    printf("grade     of %d sentences in %d such stories, %.1f %% are grammatical; of %d references, %.1f %% "
           "are right\n",
           total.sentences, GRADED, 100.0 * total.grammatical / fmax(1, total.sentences), total.references,
           100.0 * total.references_ok / fmax(1, total.references));
}

static void print_sample(struct run *r) {
    if (!r->data.tokenizer) return;
    char *text = sample_text(r, (uint64_t)r->state.step);
    logger_say(r->log, "\nsample at step %" PRId64 ":\n%s\n", r->state.step, text);
    free(text);
}

/* --- checkpoints --- */

/* A failure (a full disk) does not end the training: older checkpoints are untouched, and the next one may
 * succeed. */
static bool save(struct run *r) {
    struct error err;
    struct rank_busy *busy = rank_busy_begin(r->group, "saving", r->state.step);
    r->saved_step = r->state.step;
    if (speaks(r)) {
        logger_sync(r->log);
        json_decref(r->state.options);
        r->state.options = options_export(&r->options);
    }
    r->state.sample = dataloader_position(r->train);
    bool ok = checkpoint_save(r->out, &r->zero, r->data.tokenizer, &r->state, &err);
    if (ok && speaks(r)) ok = checkpoint_prune(r->out, r->config.keep, &err);
    rank_busy_end(busy);
    if (!ok && speaks(r))
        logger_say(r->log, "warning: checkpoint of step %" PRId64 " not saved: %s", r->state.step,
                   err.message);
    group_broadcast(r->group, &ok, sizeof ok, 0);
    return ok;
}

/* --- one step --- */

/* Steps are issued without waiting for the device: the numbers of a step are read while the next one runs. */

static void open_pipeline(struct run *r) {
    const struct run_config *c = &r->config;
    struct device *d = r->device;
    r->micro_steps = c->tokens_per_step / (c->batch_size * c->seq_len * r->comm->world);
    r->staging = (int32_t *)d->alloc_host(
        d, (size_t)(IN_FLIGHT * r->micro_steps * c->batch_size * c->seq_len * 2) * sizeof *r->staging);
    for (int i = 0; i < IN_FLIGHT; i++) {
        r->flight[i].done = d->event_new(d);
        r->flight[i].numbers = (float *)d->alloc_host(d, STEP_NUMBERS * sizeof(float));
    }
    r->collected = r->state.step;
    r->clock = now_seconds();
}

static void close_pipeline(struct run *r) {
    struct device *d = r->device;
    for (int i = 0; i < IN_FLIGHT; i++) {
        d->event_free(d, r->flight[i].done);
        d->free_host(d, r->flight[i].numbers);
    }
    for (int first = 0; first < 2; first++)
        if (r->graph[first]) d->graph_free(d, r->graph[first]);
    d->free_host(d, r->staging);
}

/* Forward and backward. The first call of its kind runs as it is, since libraries set themselves up in it;
 * the second one is recorded, and from then on the record is run. */
static void micro_step(struct run *r, bool first, bool last) {
    struct device *d = r->device;
    bool record = r->config.graph && d->capture_begin && !zero_communicates(&r->zero, last);
    if (!record || r->micro_calls[first]++ == 0) {
        zero_micro_step(&r->zero, first, last);
        return;
    }
    if (!r->graph[first]) {
        d->capture_begin(d, r->ctx.stream);
        zero_micro_step(&r->zero, first, last);
        r->graph[first] = d->capture_end(d, r->ctx.stream);
    }
    d->graph_launch(d, r->graph[first], r->ctx.stream);
}

/* The targets of a step on all ranks. Windows have equally many. */
static int64_t of_all_ranks(struct run *r, int64_t targets) {
    int64_t world = r->group->world, sum = 0;
    if (r->config.samples != SAMPLES_CHOICE_DOCUMENTS) return targets * world;
    int64_t *all = (int64_t *)xmalloc((size_t)world * sizeof *all);
    group_exchange(r->group, all, &targets, sizeof targets);
    for (int64_t i = 0; i < world; i++) sum += all[i];
    free(all);
    return sum;
}

/* Forward and backward of all micro-batches, and the update. */
static void issue_step(struct run *r) {
    const struct run_config *c = &r->config;
    struct flight *f = &r->flight[r->state.step % IN_FLIGHT];
    int64_t batch = c->batch_size * c->seq_len, targets_in_step = 0;
    group_progress(r->group, "step", r->state.step + 1);
    pace_step(&r->pace, (int)(r->state.step % IN_FLIGHT));
    /* this slot's last step has been collected, so its copies from the staging buffer are done */
    int32_t *staging = r->staging + r->state.step % IN_FLIGHT * r->micro_steps * batch * 2;
    for (int64_t i = 0; i < r->micro_steps; i++) {
        const int32_t *tokens, *targets;
        int64_t valid;
        dataloader_next(r->train, &tokens, &targets, &valid);
        memcpy(staging + 2 * i * batch, tokens, (size_t)batch * sizeof *staging);
        memcpy(staging + (2 * i + 1) * batch, targets, (size_t)batch * sizeof *staging);
        targets_in_step += valid;
    }
    gpt_set_loss_scale(&r->gpt, 1.0f / (float)max_i64(1, of_all_ranks(r, targets_in_step)));
    for (int64_t i = 0; i < r->micro_steps; i++) {
        gpt_set_batch(&r->gpt, staging + 2 * i * batch, staging + (2 * i + 1) * batch);
        ctx_range_push(&r->ctx, "micro-step");
        micro_step(r, i == 0, i == r->micro_steps - 1);
        ctx_range_pop(&r->ctx);
    }
    struct schedule schedule = run_schedule(c);
    struct adamw_args args = run_adamw_args(c);
    double lr = schedule_lr(&schedule, r->state.step);
    args.lr = (float)lr;
    args.step = ++r->state.step;
    zero_update(&r->zero, &args);
    r->device->download(r->device, f->numbers, r->gpt.numbers.data, STEP_NUMBERS * sizeof(float),
                        r->ctx.stream);
    r->device->event_record(r->device, f->done, r->ctx.stream);
    r->state.tokens += c->tokens_per_step;
    f->lr = lr;
    f->epoch = (double)dataloader_position(r->train) / (double)dataloader_samples(r->train);
}

/* A gradient that is not finite is not applied. Now and then that heals; a row of them does not. */
static void watch_skipped(struct run *r, const struct log_step *row) {
    enum { PATIENCE = 20 };
    r->skipped = row->skipped ? r->skipped + 1 : 0;
    if (r->skipped == 1)
        logger_say(r->log, "warning: step %" PRId64 ": the gradient is not finite (loss %g); update skipped",
                   row->step, row->loss);
    if (r->skipped < PATIENCE) return;
    struct error err;
    fail(&err,
         "%d updates in a row had a gradient that is not finite; the last checkpoint is in %s. A lower "
         "--learning-rate, a longer --warmup or a smaller --grad-clip may help",
         PATIENCE, r->out);
    run_agree(r->group, false, &err);
}

/* Once a second: asking takes the driver up to a millisecond. */
static void watch_gpu(struct run *r, int64_t step) {
    struct nvml_reading reading;
    if (!nvml_read(r->nvml, 1.0, &reading)) return;
    logger_gpu(r->log, step, &reading);
    if (reading.slowed_first)
        logger_say(r->log,
                   "warning: the clock of the GPU is held down by %s: %.0f MHz at %.0f W and %.0f degrees C. "
                   "What follows of it is in %s/timing.jsonl",
                   reading.slowed, reading.sm_mhz, reading.watts, reading.celsius, r->out);
}

/* Waits for the steps up to `step` and logs them. */
static void collect(struct run *r, int64_t step) {
    while (r->collected < step) {
        struct flight *f = &r->flight[r->collected % IN_FLIGHT];
        group_waiting(r->group, "step", r->collected + 1);
        r->device->event_wait(r->device, f->done);
        group_progress(r->group, "step", r->collected + 1);
        double now = now_seconds();
        struct log_step row = {.step = ++r->collected,
                               .epoch = f->epoch,
                               .loss = (double)f->numbers[STEP_LOSS],
                               .lr = f->lr,
                               .grad_norm = sqrt((double)f->numbers[STEP_SUMSQ]),
                               .skipped = !isfinite(f->numbers[STEP_SUMSQ]),
                               .seconds = now - r->clock};
        r->clock = now;
        pace_step_done(&r->pace, (int)((r->collected - 1) % IN_FLIGHT), row.seconds);
        logger_step(r->log, &row);
        watch_gpu(r, row.step);
        rank_log_put(r->rank_log, "step %" PRId64 "  loss %.6f  %.4f s", row.step, row.loss, row.seconds);
        watch_skipped(r, &row);
    }
}

/* --- the loop --- */

static bool due(const struct run *r, int64_t every) {
    int64_t step = r->state.step;
    return step > 0 && (step == r->config.steps || (every > 0 && step % every == 0));
}

/* What follows a step. Starts with a checkpoint, so that nothing that goes wrong later can cost the weights;
 * a resumed run therefore begins with the validation of its step. */
static void after_step(struct run *r, bool resumed) {
    bool save_now = !resumed && due(r, r->config.save_every);
    bool validate_now =
        r->data.val && due(r, r->config.val_every) && !(stopping(r) && r->state.step < r->config.steps);
    bool answer_now = r->tasks.count && due(r, r->config.eval_every) && !stopping(r);
    bool sample_now =
        r->config.sample_every && due(r, r->config.sample_every) && r->state.step < r->config.steps;
    if (!save_now && !validate_now && !answer_now && !sample_now) return;
    collect(r, r->state.step);
    zero_settle(&r->zero);
    if (save_now) r->saved = save(r);
    if (validate_now) {
        r->val_loss = validate(r);
        logger_validation(r->log, r->state.step, r->val_loss);
    }
    if (answer_now) answer_tasks(r);
    if (sample_now && !stopping(r)) print_sample(r);
    r->clock = now_seconds();
}

static void loop(struct run *r) {
    open_pipeline(r);
    r->saved = true;
    after_step(r, true);
    int64_t started = r->state.step;
    struct rank_busy *busy = rank_busy_begin(r->group, "the first step", started + 1); /* libraries set up */
    while (r->state.step < r->config.steps && !stopping(r)) {
        ctx_range_push(&r->ctx, "step");
        issue_step(r);
        ctx_range_pop(&r->ctx);
        rank_busy_end(busy);
        busy = NULL;
        collect(r, r->state.step - (IN_FLIGHT - 1));
        exchange_news(r);
        after_step(r, false);
    }
    rank_busy_end(busy);
    collect(r, r->state.step);
    if (r->saved_step != r->state.step && r->state.step > started) r->saved = save(r);
    close_pipeline(r);
}

static void print_stop(const struct run *r) {
    printf("stopped at step %" PRId64 " of %" PRId64 "; %s\n", r->state.step, r->config.steps,
           r->saved ? "the state is saved" : "THE LAST STATE COULD NOT BE SAVED");
    char ranks[64] = "";
    const struct run_config *c = &r->config;
    if (c->gpus || c->ranks)
        snprintf(ranks, sizeof ranks, "--%s %" PRId64 " ", c->gpus ? "gpus" : "ranks", r->group->world);
    printf("go on     %s %s--resume --out %s\n", "build/train_gpt", ranks, r->out);
}

static void print_result(const struct run *r) {
    if (r->data.val) {
        printf("loss      %.4f nats a token on the validation set", r->val_loss);
        if (r->data.val_bytes)
            printf(", %.3f bits a byte", r->val_loss / log(2.0) * (double)(dataset_tokens(r->data.val) - 1) /
                                             (double)r->data.val_bytes);
        if (isfinite(r->data.floor_loss))
            printf("; no model can be below %.4f: %.1f %% above", r->data.floor_loss,
                   100.0 * (r->val_loss / r->data.floor_loss - 1.0));
        printf("\n");
    }
    char *pace = pace_summary(&r->pace);
    if (pace) printf("pace      %s\n", pace);
    free(pace);
    printf("weights   %s/step-%08" PRId64 "%s\n", r->out, r->state.step,
           r->saved ? "" : " COULD NOT BE SAVED");
    printf("log       %s/log.jsonl\nplot      %s/loss.svg\n", r->out, r->out);
    printf("sample    build/train_gpt sample --from %s --prompt \"%s\"\n", r->out,
           r->data.stories ? "Once" : "The");
}

static int finish(struct run *r) {
    bool saved = r->saved;
    struct error err;
    if (speaks(r) && !logger_plot(r->log, &err)) warn("%s", err.message);
    bool done = r->state.step == r->config.steps;
    if (done && r->data.tokenizer && saved) print_sample(r);
    logger_close(r->log);
    nvml_close(r->nvml);
    if (stopping(r) && !done) {
        if (speaks(r)) print_stop(r);
        return saved ? 128 + stopping(r) : 1;
    }
    if (r->data.stories) print_grade(r);
    if (speaks(r)) print_result(r);
    return saved ? 0 : 1;
}

static int cmd_train(int argc, char **argv) {
    struct run r;
    memset(&r, 0, sizeof r);
    int status = command_options(&r.options, &train_command, &r.config, argc, argv);
    if (status >= 0) return status;
    status = run_launch(&r.config, argc, argv);
    if (status >= 0) {
        options_free(&r.options);
        return status;
    }
    r.group = run_open_group(&r.config);
    r.config.world = r.group->world;
    compare_options(&r);
    open_run(&r);
    r.device = run_open_rank_device(&r.config, r.group, r.device_name);
    open_comm(&r);
    open_data(&r);
    compare_state(&r);
    speak_for_oneself(&r);
    struct rank_busy *busy = rank_busy_begin(r.group, "making the model", -1);
    create_model(&r);
    rank_busy_end(busy);
    write_options(&r);
    open_log(&r);
    open_tasks(&r);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    launch_tell_training();
    loop(&r);
    status = finish(&r);

    if (r.tasks.count && speaks(&r)) log_file_close(&r.task_log);
    eval_tasks_free(&r.tasks);
    dataloader_close(r.train);
    run_data_close(&r.data);
    zero_free(&r.zero);
    ctx_free(&r.ctx);
    pace_close(&r.pace);
    r.comm->close(r.comm);
    r.device->close(r.device);
    group_close(r.group);
    if (r.rank_log) close(r.rank_log);
    train_state_free(&r.state);
    options_free(&r.options);
    free(r.out);
    free(r.start);
    return status;
}

/* --- main --- */

/* OpenMP's threads wait for each other by spinning, by default long enough that on a machine which also does
 * something else a step takes three times as long (2.4 s against 0.8 s, 2 cores at a load of 5). A short spin
 * costs nothing when the machine is idle. The library reads this before main(), so the program starts itself
 * again. */
static void wait_politely(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    execv("/proc/self/exe", argv); /* if that is not possible, go on as it is */
}

int main(int argc, char **argv) {
    wait_politely(argv);
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {{"train", cmd_train},    {"sample", cmd_sample}, {"plan", cmd_plan},
                    {"eval", cmd_eval},      {"export", cmd_export}, {"compare", cmd_compare},
                    {"profile", cmd_profile}};
    if (argc < 2 || argv[1][0] == '-') return cmd_train(argc - 1, argv + 1);
    const char *names[ARRAY_LENGTH(commands)];
    for (size_t i = 0; i < ARRAY_LENGTH(commands); i++) {
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 2, argv + 2);
        names[i] = commands[i].name;
    }
    int near = nearest_word(argv[1], names, ARRAY_LENGTH(commands));
    fprintf(stderr, "error: %s: no such command; there are", argv[1]);
    for (size_t i = 0; i < ARRAY_LENGTH(commands); i++) fprintf(stderr, "%s %s", i ? "," : "", names[i]);
    fprintf(stderr, "%s%s%s\n", near < 0 ? "" : "; did you mean ", near < 0 ? "" : names[near],
            near < 0 ? "" : "?");
    return 2;
}
