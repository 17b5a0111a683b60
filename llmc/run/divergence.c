/* When training goes wrong: see divergence.h. */
#include "llmc/run/divergence.h"

#include "llmc/format/adapter.h"
#include "llmc/run/best.h"
#include "llmc/run/log.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATIENCE = 20 }; /* bad steps in a row */
/* Without --skip-outliers. A loss like the last 128 is above this once in a billion steps. */
static const double far_above = 6.0;

bool run_guards(const struct run *r) { return r->config.skip_outliers > 0.0 || r->config.rollback > 0; }

struct guard_limits run_guard_limits(struct run *r) {
    struct guard_limits none = {.max_loss = INFINITY, .max_norm = INFINITY};
    double z = r->config.skip_outliers > 0.0 ? r->config.skip_outliers : far_above;
    return run_guards(r) ? guard_limits_of(&r->guard, r->state.step + 1, z) : none;
}

/* --- what is bad --- */

/* "loss 7.2, 8.1 standard deviations above the mean 3.1" */
static const char *above_mean(const char *what, double value, double mean, double std) {
    return temp_printf("%s %.4g, %.1f standard deviations above the mean %.4g of the last %d steps", what,
                       value, (value - mean) / std, mean, GUARD_WINDOW);
}

static const char *reason_of(const struct log_step *step, const struct guard_limits *l) {
    if (!isfinite(step->loss) || !isfinite(step->grad_norm))
        return temp_printf("the gradient is not finite (loss %g)", step->loss);
    return step->loss > (double)l->max_loss
               ? above_mean("loss", step->loss, l->mean_loss, l->std_loss)
               : above_mean("gradient norm", step->grad_norm, l->mean_norm, l->std_norm);
}

static char *what_is_kept(const struct run *r) {
    return r->kept_step < 0 ? xstrdup("no checkpoint was saved")
                            : xasprintf("the last checkpoint is %s/step-%08" PRId64, r->out, r->kept_step);
}

LLMC_NORETURN static void give_up(struct run *r, const char *why) {
    struct error err;
    char *kept = what_is_kept(r);
    fail(&err,
         "%d steps in a row, the last of them step %" PRId64
         ", had a gradient that is not finite or an outlier%s; %s. A lower --learning-rate, a longer "
         "--warmup or a smaller --grad-clip may help",
         PATIENCE, r->diverged, why, kept);
    free(kept);
    exit_all_ranks(r->group, &err);
}

void run_check_divergence(struct run *r, const struct log_step *step, const struct guard_limits *limits) {
    bool outlier = step->loss > (double)limits->max_loss;
    bool bad = step->skipped || !isfinite(step->loss) || outlier;
    if (r->diverged) return;
    r->guard.bad = bad ? r->guard.bad + 1 : 0;
    if (!bad && run_guards(r)) guard_add(&r->guard, step->step, step->loss, step->grad_norm);
    if (bad && (r->guard.bad == 1 || (step->skipped && isfinite(step->grad_norm))))
        logger_say(r->log, "warning: step %" PRId64 ": %s%s", step->step, reason_of(step, limits),
                   step->skipped ? "; update skipped" : "");
    if (r->guard.bad < PATIENCE) return;
    r->diverged = step->step;
    if (r->config.rollback == 0) give_up(r, "");
    if (r->guard.rollbacks >= r->config.rollback)
        give_up(r, temp_printf(", after %" PRId64 " rollback%s (--rollback)", r->guard.rollbacks,
                               r->guard.rollbacks == 1 ? "" : "s"));
}

bool run_has_diverged(const struct run *r) { return r->diverged > 0; }

/* --- going back --- */

/* The newest intact checkpoint from before the bad steps; those after it are deleted, because --resume would
 * take them. On rank 0. NULL: there is none. The caller frees. */
static char *go_back_on_disk(const struct run *r, struct error *err) {
    struct checkpoint_list list;
    char *found = NULL;
    if (!checkpoint_list(&list, r->out, err)) return NULL;
    bool ok = true;
    for (int64_t i = 0; ok && !found && i < list.count; i++) {
        char *path = xasprintf("%s/step-%08" PRId64, r->out, list.step[i]), *intact = NULL;
        struct train_state state = {.step = 0};
        struct guard guard;
        if (list.step[i] <= r->state.step && (intact = checkpoint_find(path, NULL)) &&
            checkpoint_load_state(&state, path, NULL) &&
            guard_from_json(&guard, json_object_get(state.extra, "guard")) && guard.bad == 0)
            found = xstrdup(path);
        else
            ok = checkpoint_remove(path, err);
        train_state_free(&state);
        free(intact);
        free(path);
    }
    if (ok && !found) fail(err, "%s: has no checkpoint from before the steps that went wrong", r->out);
    free(list.step);
    return found;
}

/* The samples behind the last bad step come next, also where the device was a step ahead of it. */
static void load(struct run *r, const char *checkpoint, struct error *err) {
    int64_t step_samples = r->config.tokens_per_step / r->config.seq_len;
    int64_t sample = dataloader_position(r->train) - (r->state.step - r->diverged) * step_samples;
    int64_t rollbacks = r->guard.rollbacks + 1;
    train_state_free(&r->state);
    bool ok = checkpoint_load_state(&r->state, checkpoint, err) &&
              (guard_from_json(&r->guard, json_object_get(r->state.extra, "guard")) ||
               fail(err, "%s/trainer.json: \"guard\" is not the state of a run", checkpoint)) &&
              (r->config.lora_rank ? adapter_load(&r->gpt, &r->optimizer, checkpoint, err)
                                   : checkpoint_load_parameters(&r->zero, checkpoint, err) &&
                                         checkpoint_load_moments(&r->zero, checkpoint, err));
    check_all_ranks(r->group, ok, err);
    run_best_load(r, true);
    r->guard.rollbacks = rollbacks;
    r->state.sample = sample;
    dataloader_seek(r->train, sample);
    r->kept_step = r->saved_step = r->state.step;
    r->timing.next = r->state.step + 1;
}

void run_roll_back(struct run *r) {
    struct error err;
    int64_t diverged = r->diverged;
    struct rank_busy *busy = rank_busy_begin(r->group, "going back", r->state.step);
    char *checkpoint = is_rank_0(r) ? go_back_on_disk(r, &err) : NULL;
    check_all_ranks(r->group, !is_rank_0(r) || checkpoint, &err);
    broadcast_text(r->group, &checkpoint);
    load(r, checkpoint, &err);
    rank_busy_end(busy);
    check_all_ranks(r->group, run_log_rewind(r, &err), &err);
    r->diverged = 0;
    logger_say(r->log,
               "warning: %d steps in a row went wrong, up to step %" PRId64
               ": training goes on from %s, with the data behind that step (rollback %" PRId64 " of %" PRId64
               ")",
               PATIENCE, diverged, checkpoint, r->guard.rollbacks, r->config.rollback);
    free(checkpoint);
}
