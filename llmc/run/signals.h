/* SIGINT, SIGTERM, SIGHUP (the terminal or the connection is gone; not under nohup) and SIGUSR1 (a batch
 * system announces the end) stop a run after the current step, with a checkpoint. Further ones change
 * nothing: what the first has begun is finished. SIGQUIT ends the process at once. Several ranks must stop
 * after the same step, so each tells the others of a signal before it acts on it. */
#ifndef LLMC_RUN_SIGNALS_H
#define LLMC_RUN_SIGNALS_H

#include "llmc/run/run.h"

/* SIGPIPE and SIGXFSZ: what cannot be written is reported where it is written, and ends no run. Processes
 * that are started inherit this. */
void run_ignore_signals(void);
void run_catch_signals(void);
/* Between two steps, on all ranks. Most calls do nothing: ranks exchange signals, and how long each
 * computes, about twice a second. */
void run_exchange_signals(struct run *r);
/* The number of the signal that the run is to stop for, the same on all ranks; 0: none. */
int run_stop_signal(const struct run *r);

#endif
