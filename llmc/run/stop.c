/* Stopping a run, and saving in between: see stop.h. */
#include "llmc/run/stop.h"

#include "llmc/process/launch.h"
#include "llmc/run/best.h"
#include "llmc/run/log.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- signals --- */

static volatile sig_atomic_t received, save_asked;

static void on_signal(int number) {
    static const char text[] = "\nsaving, then leaving; Ctrl-\\ (SIGQUIT) ends at once without saving\n";
    if (!received)
        received = number;
    else if (number == SIGINT && write(STDERR_FILENO, text, sizeof text - 1) < 0)
        return; /* the user is told, or cannot be */
}

static void on_save_signal(int number) {
    (void)number;
    save_asked = 1;
}

static void catch_signal(int number, void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(number, &action, NULL);
}

void run_ignore_signals(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGUSR1, SIG_IGN);
}

void run_catch_usr1(bool requeue) {
    if (requeue) catch_signal(SIGUSR1, on_signal);
}

void run_catch_signals(void) {
    struct sigaction before;
    signal(SIGQUIT, SIG_DFL); /* shells ignore it for what runs in the background */
    catch_signal(SIGINT, on_signal);
    catch_signal(SIGTERM, on_signal);
    if (sigaction(SIGHUP, NULL, &before) == 0 && before.sa_handler != SIG_IGN)
        catch_signal(SIGHUP, on_signal);
    if (sigaction(SIGUSR1, NULL, &before) == 0 && before.sa_handler != on_signal)
        catch_signal(SIGUSR1, on_save_signal);
}

/* --- time --- */

/* Whether so many seconds of work, and a checkpoint behind it, end before --max-time does. Times vary, so a
 * quarter is added, and a hundredth of the whole, but at most two seconds, for what the end itself takes. */
static bool time_for(const struct run *r, double seconds) {
    double limit = r->config.max_time, spare = fmin(2.0, 0.01 * limit);
    return limit <= 0.0 || now_seconds() + 1.25 * (seconds + r->save_seconds) + spare < r->started + limit;
}

bool run_time_for_evaluation(struct run *r) {
    if (r->config.max_time <= 0.0) return true;
    bool fits = r->evaluation_seconds <= 0.0 || time_for(r, r->evaluation_seconds);
    fits = group_agree(r->group, fits, NULL);
    if (!fits && !r->stop) r->stop = STOP_TIME;
    return fits;
}

/* --- stopping --- */

/* Ranks exchange one number, and the largest counts: 0, to save, 1 + a reason to stop. */
enum { ASK_NOTHING, ASK_SAVE };

void run_check_stop(struct run *r, double seconds) {
    bool last = r->state.step == r->config.steps;
    r->step_seconds = fmax(seconds, 0.99 * r->step_seconds); /* forgets what only the first steps take */
    if (r->group->world > 1 && !(last || rank_timing_due(&r->timing, r->state.step))) return;
    int reason = received ? received : time_for(r, 2 * r->step_seconds) ? 0 : STOP_TIME;
    int asked = reason ? 1 + reason : save_asked ? ASK_SAVE : ASK_NOTHING;
    if (r->group->world > 1) {
        asked = rank_timing_exchange(&r->timing, r->state.step, asked);
        run_log_ranks(r, last || asked > ASK_SAVE);
    }
    r->save_asked = asked == ASK_SAVE;
    r->stop = asked > ASK_SAVE ? asked - 1 : 0;
}

/* One process need not wait for the end of the step. */
int run_stop_reason(const struct run *r) { return r->stop || r->group->world > 1 ? r->stop : received; }

bool run_save_asked(const struct run *r) { return r->save_asked; }

/* A signal that another rank has received at the same time is answered, too. */
void run_save_answered(struct run *r) {
    if (r->save_asked && r->saved)
        logger_say(r->log, "saved     %s/step-%08" PRId64 ", on SIGUSR1", r->out, r->state.step);
    r->save_asked = false;
    save_asked = 0;
}

void run_check_early_stop(struct run *r) {
    if (!run_best_is_old(r) || r->state.step == r->config.steps || r->stop) return;
    r->stop = STOP_EARLY;
    logger_say(r->log,
               "early stop: %" PRId64 " validations have brought no loss below %.4f, that of step %" PRId64,
               r->best.since, r->state.best_val_loss, r->best.step);
}

/* --- afterwards --- */

bool run_is_complete(const struct run *r) {
    return r->state.step == r->config.steps || run_stop_reason(r) == STOP_EARLY;
}

int run_stop_status(const struct run *r) {
    int reason = run_stop_reason(r);
    return reason == STOP_TIME || reason == SIGUSR1 ? LAUNCH_RESUME_STATUS : 128 + reason;
}

char *run_stop_text(const struct run *r) {
    int reason = run_stop_reason(r);
    if (reason != STOP_TIME) return xasprintf("SIG%s", sigabbrev_np(reason));
    char *limit = options_value(&r->options, "max-time"), *text = xasprintf("--max-time %s", limit);
    free(limit);
    return text;
}
