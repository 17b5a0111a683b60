/* When training goes wrong. A single update from a gradient that is not finite, or from an outlier of
 * --skip-outliers, is skipped, and does no harm. After 20 such steps in a row, or with --rollback 20 whose
 * loss stays far above what it was (6 standard deviations, guard.h), the run has diverged. Then --rollback N
 * goes back to the newest checkpoint from before that row, at most N times; the data goes on behind the
 * steps that went wrong, so they are not repeated. Else the run ends. */
#ifndef LLMC_RUN_DIVERGENCE_H
#define LLMC_RUN_DIVERGENCE_H

#include "llmc/run/guard.h"
#include "llmc/run/run.h"

/* Whether the run looks out for outliers. */
bool run_guards(const struct run *r);
/* The limits of the next step, for the update's arguments. */
struct guard_limits run_guard_limits(struct run *r);
/* For each step that has been read. Ends the run on all ranks when it has diverged and cannot go back. */
void run_check_divergence(struct run *r, const struct log_step *step, const struct guard_limits *limits);
/* Whether the run is to go back: then run_roll_back(), when nothing is in flight. All ranks. */
bool run_has_diverged(const struct run *r);
void run_roll_back(struct run *r);

#endif
