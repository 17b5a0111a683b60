/* Stopping a run: see signals.h. */
#include "llmc/run/signals.h"

#include "llmc/run/log.h"

#include <signal.h>

static volatile sig_atomic_t received;

static void on_signal(int number) {
    received = number;
    signal(number, SIG_DFL);
}

void run_catch_signals(void) {
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
}

void run_exchange_signals(struct run *r) {
    bool last = r->state.step == r->config.steps;
    if (r->group->world == 1 || !(last || rank_timing_due(&r->timing, r->state.step))) return;
    r->stop_signal = rank_timing_exchange(&r->timing, r->state.step, received);
    run_log_ranks(r, last || r->stop_signal);
}

int run_stop_signal(const struct run *r) { return r->group->world > 1 ? r->stop_signal : received; }
