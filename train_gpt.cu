/* train_gpt: trains GPT-2-scale models. This file is the training run: its steps, and the loop around them.
 * What the run consists of is llmc/run/run.h, how it is opened llmc/run/open.c; the other commands (sample, plan,
 * eval, export ...) are in llmc/cmd_*.c.
 *
 * Sections: signals and options, checkpoints, one step, the loop, main. Plain C11; the name ends in .cu for
 * what it drives. */
#include "llmc/cli/commands.h"
#include "llmc/process/launch.h"
#include "llmc/run/run.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- signals and options --- */

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

/* The signal that this run is to stop for: one process has its own, several agree. */
static int stopping(const struct run *r) { return r->group->world > 1 ? r->stop : stop_signal; }

/* Every so often: whether one of the ranks was told to stop, and how fast each of them is. */
static void exchange_news(struct run *r) {
    bool last = r->state.step == r->config.steps;
    if (r->group->world == 1 || !(last || rank_timing_due(&r->timing, r->state.step))) return;
    r->stop = rank_timing_exchange(&r->timing, r->state.step, stop_signal);
    double *seconds;
    char *warning;
    if (!run_speaks(r) || !rank_timing_report(&r->timing, last || r->stop, &seconds, &warning)) return;
    logger_ranks(r->log, r->state.step, seconds, r->group->world);
    if (warning) logger_say(r->log, "warning: %s", warning);
    free(seconds);
    free(warning);
}

/* --- checkpoints --- */

/* A failure (a full disk) does not end the training: older checkpoints are untouched, and the next one may
 * succeed. */
static bool save(struct run *r) {
    struct error err;
    struct rank_busy *busy = rank_busy_begin(r->group, "saving", r->state.step);
    r->saved_step = r->state.step;
    if (run_speaks(r)) {
        logger_sync(r->log);
        json_decref(r->state.options);
        r->state.options = options_export(&r->options);
    }
    r->state.sample = dataloader_position(r->train);
    bool ok = checkpoint_save(r->out, &r->zero, r->data.tokenizer, &r->state, &err);
    if (ok && run_speaks(r)) ok = checkpoint_prune(r->out, r->config.keep, &err);
    rank_busy_end(busy);
    if (!ok && run_speaks(r))
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
    rank_timing_step(&r->timing, (int)(r->state.step % IN_FLIGHT));
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
        rank_timing_step_done(&r->timing, (int)((r->collected - 1) % IN_FLIGHT), row.seconds);
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
        r->val_loss = run_validate(r);
        logger_validation(r->log, r->state.step, r->val_loss);
    }
    if (answer_now) run_answer_tasks(r);
    if (sample_now && !stopping(r)) run_print_sample(r);
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
    char *timing = rank_timing_summary(&r->timing);
    if (timing) printf("timing    %s\n", timing);
    free(timing);
    printf("weights   %s/step-%08" PRId64 "%s\n", r->out, r->state.step,
           r->saved ? "" : " COULD NOT BE SAVED");
    printf("log       %s/log.jsonl\nplot      %s/loss.svg\n", r->out, r->out);
    printf("sample    build/train_gpt sample --from %s --prompt \"%s\"\n", r->out,
           r->data.stories ? "Once" : "The");
}

static int finish(struct run *r) {
    bool saved = r->saved;
    struct error err;
    if (run_speaks(r) && !logger_plot(r->log, &err)) warn("%s", err.message);
    bool done = r->state.step == r->config.steps;
    if (done && r->data.tokenizer && saved) run_print_sample(r);
    logger_close(r->log);
    nvml_close(r->nvml);
    if (stopping(r) && !done) {
        if (run_speaks(r)) print_stop(r);
        return saved ? 128 + stopping(r) : 1;
    }
    if (r->data.stories) run_print_grade(r);
    if (run_speaks(r)) print_result(r);
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
    run_open(&r);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    launch_tell_training();
    loop(&r);
    status = finish(&r);

    run_close(&r);
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
