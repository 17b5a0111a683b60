/* When a run stops before its last step, and when it saves in between.
 *
 * SIGINT, SIGTERM and SIGHUP (the terminal or the connection is gone; not under nohup) stop a run after the
 * current step, with a checkpoint; its exit status is 128 + the number of the signal. Further ones change
 * nothing: what the first has begun is finished. SIGQUIT ends the process at once. SIGUSR1 saves a
 * checkpoint, and the run goes on. With --requeue, where a batch system announces its time limit by it, it
 * also stops the run, with LAUNCH_RESUME_STATUS. So does --max-time: the run stops as soon as another step
 * and the checkpoint might not fit into what is left of it.
 *
 * Several ranks must stop and save after the same step, so each tells the others before it acts. */
#ifndef LLMC_RUN_STOP_H
#define LLMC_RUN_STOP_H

#include "llmc/run/run.h"

/* Reasons to stop that are no signal: larger than the number of any. */
enum { STOP_TIME = 1000, STOP_EARLY };

/* SIGPIPE and SIGXFSZ: what cannot be written is reported where it is written, and ends no run. SIGUSR1:
 * there is nothing to save yet. Processes that are started inherit this. */
void run_ignore_signals(void);
/* SIGUSR1, which --requeue gives a meaning from the beginning. */
void run_catch_usr1(bool requeue);
/* The others, when there is something to save. */
void run_catch_signals(void);

/* Between two steps, on all ranks: finds out whether to stop or to save, and after an exchange how long each
 * rank computes. Several ranks exchange this about twice a second. `seconds` is how long the step took. */
void run_check_stop(struct run *r, double seconds);
/* The signal, STOP_TIME or STOP_EARLY that the run is to stop for, the same on all ranks; 0: none. */
int run_stop_reason(const struct run *r);
/* Whether an evaluation, which takes at least as long as the longest one before it, still fits into
 * --max-time; if not, the run stops. On all ranks. */
bool run_time_for_evaluation(struct run *r);

/* Whether SIGUSR1 has asked for a checkpoint since the last one, the same on all ranks. */
bool run_save_asked(const struct run *r);
void run_save_answered(struct run *r);

/* After a validation, on all ranks: stops the run if --early-stop says so. */
void run_check_early_stop(struct run *r);

/* Whether all steps have been done, or --early-stop has ended the run. */
bool run_is_complete(const struct run *r);
/* Of a run that was told to stop: 128 + signal, or LAUNCH_RESUME_STATUS. */
int run_stop_status(const struct run *r);
/* "SIGTERM", "--max-time 7h": what the run has stopped for. The caller frees. */
char *run_stop_text(const struct run *r);

#endif
