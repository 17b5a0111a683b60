/* train_gpt: trains GPT-2-scale models. This file is the training run:
 *
 *     options -> data -> model -> { next batch, forward, backward, update, log, save, validate, sample }
 *
 * The loop is train(). What it calls is in llmc/run/: run.c opens and saves a run, pipeline.c overlaps host
 * and device, log.c prints and records, eval.c validates and samples. The network is llmc/model/gpt.c;
 * several GPUs are handled by llmc/ranks/zero.c. The other commands (sample, eval, plan, ...) are in
 * llmc/cli/.
 *
 * Plain C11. The name ends in .cu because this is the program that drives the kernels in llmc/cuda/. */
#include "llmc/cli/commands.h"
#include "llmc/process/launch.h"
#include "llmc/run/best.h"
#include "llmc/run/divergence.h"
#include "llmc/run/eval.h"
#include "llmc/run/heads.h"
#include "llmc/run/log.h"
#include "llmc/run/pipeline.h"
#include "llmc/run/resume.h"
#include "llmc/run/run.h"
#include "llmc/run/stop.h"

#include <math.h>
#include <stdlib.h>

/* Logs the steps that the device has finished, and waits for all but the newest `in_flight` of them. */
static void log_steps(struct run *r, struct pipeline *p, int64_t in_flight) {
    struct log_step step;
    struct guard_limits limits;
    while (pipeline_read(p, in_flight, &step, &limits)) {
        run_log_step(r, &step);
        run_check_divergence(r, &step, &limits);
    }
}

/* Waits until nothing is in flight, neither steps nor parameters between ranks. */
static void finish_steps(struct run *r, struct pipeline *p) {
    log_steps(r, p, 0);
    zero_settle(&r->zero);
}

/* Every so many steps (0: never), and after the last one. */
static bool due(const struct run *r, int64_t every) {
    int64_t step = r->state.step;
    return step > 0 && (step == r->config.steps || (every > 0 && step % every == 0));
}

static void save(struct run *r, struct pipeline *p) {
    double begun = now_seconds();
    finish_steps(r, p);
    run_save(r);
    run_save_answered(r);
    pipeline_restart_clock(p);
    r->save_seconds = fmax(r->save_seconds, now_seconds() - begun);
}

/* The checkpoint of the lowest validation loss, if this step has it. */
static void keep_best(struct run *r, struct pipeline *p) {
    if (!run_best_is_here(r)) return;
    if (r->kept_step != r->state.step) save(r, p);
    if (r->kept_step == r->state.step) run_best_link(r);
}

/* Validation, tasks and a sample, each if it is due. A run that is told to stop does not begin them. */
static void evaluate(struct run *r, struct pipeline *p) {
    const struct run_config *c = &r->config;
    bool last = r->state.step == c->steps, stop = run_stop_reason(r) != 0;
    bool validate = r->data.val && due(r, c->val_every) && (last || !stop);
    bool answer = r->tasks.count && due(r, c->eval_every) && !stop;
    bool sample =
        c->sample_every && due(r, c->sample_every) && !last; /* the last one is printed by finish() */
    if (!validate && !answer && !sample) return;
    if (!last && !run_time_for_evaluation(r)) return;
    double begun = now_seconds();
    finish_steps(r, p);
    if (validate) {
        run_validate(r);
        keep_best(r, p);
        run_check_early_stop(r);
    }
    if (answer) run_answer_tasks(r);
    if (sample && !run_stop_reason(r)) run_print_sample(r);
    pipeline_restart_clock(p);
    r->evaluation_seconds = fmax(r->evaluation_seconds, now_seconds() - begun);
}

/* To a checkpoint, as if the run had been resumed from there. */
static void roll_back(struct run *r, struct pipeline *p) {
    finish_steps(r, p);
    run_roll_back(r);
    pipeline_rewind(p);
    evaluate(r, p);
}

static void train(struct run *r) {
    const struct run_config *c = &r->config;
    const int64_t first = r->state.step; /* 0, or where a resumed run continues */
    struct pipeline p;
    pipeline_open(&p, r);
    evaluate(r, &p); /* a run may have been killed between saving and validating */

    while (r->state.step < c->steps && !run_stop_reason(r)) {
        double begun = now_seconds();

        /* next batch */
        int64_t targets = pipeline_next_batch(&p);
        gpt_set_loss_scale(&r->gpt, 1.0f / (float)targets);

        /* forward and backward: the gradients of the micro-batches add up */
        for (int64_t i = 0; i < p.micro_steps; i++) pipeline_micro_step(&p, i);

        /* update */
        double lr = run_learning_rate(c, r->state.step);
        struct guard_limits limits = run_guard_limits(r);
        struct update_args args = run_update_args(c, lr, r->state.step, &limits);
        zero_update(&r->zero, &args);
        pipeline_end_step(&p, lr, &limits);
        r->state.step++;
        r->state.tokens += c->tokens_per_step;

        /* log: the numbers of the previous step, because those of this one are still being computed */
        log_steps(r, &p, STEPS_IN_FLIGHT - 1);
        if (run_has_diverged(r)) {
            roll_back(r, &p);
            continue;
        }
        run_check_stop(r, now_seconds() - begun);

        /* save first, so that nothing that fails later can cost the weights; then validate and sample */
        if (due(r, c->save_every) || run_save_asked(r)) save(r, &p);
        evaluate(r, &p);
    }

    finish_steps(r, &p);
    if (r->state.step > first && r->saved_step != r->state.step) save(r, &p); /* told to stop */
    pipeline_close(&p);
}

/* Shows what came out. Returns the exit status: 1 if the weights are not saved. */
static int finish(struct run *r) {
    bool complete = run_is_complete(r);
    run_log_plot(r);
    if (complete && r->saved) run_print_sample(r);
    run_log_close(r);
    if (complete && r->data.stories) run_print_grade(r);
    run_print_result(r);
    if (complete && r->data.stories) run_print_heads(r);
    return !r->saved ? 1 : complete ? 0 : run_stop_status(r);
}

static const struct option_command train_command = {
    .usage = "train_gpt [train] [options]",
    .intro = "Trains a GPT-2 model on the built-in stories, on --text, or on the token shards of --data.",
    .groups = run_option_groups,
    .group_count = RUN_OPTION_GROUPS,
    .notes = resume_notes};

static int cmd_train(int argc, char **argv) {
    struct run r = {.started = launch_begun()};
    run_ignore_signals();
    int status = command_options(&r.options, &train_command, &r.config, argc, argv);
    if (status < 0) {
        status =
            run_launch(&r.config, argc, argv); /* --gpus N: this process only starts and watches N others */
        if (status >= 0) options_free(&r.options);
    }
    if (status < 0) {
        run_catch_usr1(r.config.requeue);
        run_open(&r);
        run_catch_signals();
        launch_tell_training();
        train(&r);
        status = finish(&r);
        run_close(&r);
    }
    return status;
}

int main(int argc, char **argv) { return dispatch_command(argc, argv, &train_command, cmd_train); }
