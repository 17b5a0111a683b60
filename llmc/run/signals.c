/* Stopping a run: see signals.h. */
#include "llmc/run/signals.h"

#include "llmc/run/log.h"

#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t received;

static void on_signal(int number) {
    static const char text[] = "\nsaving, then leaving; Ctrl-\\ (SIGQUIT) ends at once without saving\n";
    if (!received)
        received = number;
    else if (number == SIGINT && write(STDERR_FILENO, text, sizeof text - 1) < 0)
        return; /* the user is told, or cannot be */
}

void run_ignore_signals(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

void run_catch_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};
    signal(SIGQUIT, SIG_DFL); /* shells ignore it for what runs in the background */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++) {
        bool ignored = sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler == SIG_IGN;
        if (numbers[i] != SIGHUP || !ignored) sigaction(numbers[i], &action, NULL);
    }
}

void run_exchange_signals(struct run *r) {
    bool last = r->state.step == r->config.steps;
    if (r->group->world == 1 || !(last || rank_timing_due(&r->timing, r->state.step))) return;
    r->stop_signal = rank_timing_exchange(&r->timing, r->state.step, received);
    run_log_ranks(r, last || r->stop_signal);
}

int run_stop_signal(const struct run *r) { return r->group->world > 1 ? r->stop_signal : received; }
