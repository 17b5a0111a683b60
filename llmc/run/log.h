/* What a run tells the user: options.json, run.json, log.jsonl, timing.jsonl and the plot in the run
 * directory, and on the terminal what the run consists of, its progress, and its result. Rank 0 alone
 * prints and writes; the others may keep a rank-N.log. */
#ifndef LLMC_RUN_LOG_H
#define LLMC_RUN_LOG_H

#include "llmc/run/run.h"

/* Opens the log, writes options.json, run.json and the stories, and prints the introduction. Measures the
 * matmul rate of the device first, which progress is compared with. */
bool run_log_open(struct run *r, struct error *err);
/* On rank 0: makes anew what is gone of the files that run_log_open() and run_open_result_logs() have made,
 * the logs with their rows. */
bool run_log_restore(struct run *r, struct error *err);

/* Cuts the files back to r->state.step, and goes on with them: the run has gone back to a checkpoint. */
bool run_log_rewind(struct run *r, struct error *err);

void run_log_step(struct run *r, const struct log_step *step);
/* The compute time of each rank since the last call, if there is enough of it or this is the `last` call;
 * with a warning about a rank that is slow. */
void run_log_ranks(struct run *r, bool last);

/* Draws RUN/loss.svg. */
void run_log_plot(struct run *r);
void run_log_close(struct run *r);
/* After run_log_close(): what came out and where it is, or how to continue a run that was stopped. */
void run_print_result(const struct run *r);

#endif
