/* Options that change nothing in this run, because of what it trains on or runs on. They are no mistake that
 * must stop a run, but whoever gives one should know. */
#ifndef LLMC_RUN_IDLE_H
#define LLMC_RUN_IDLE_H

#include "llmc/run/run.h"

/* Warns about each that stands on the command line. (A --config file may be the options.json of another run,
 * which has a value for every option.) When data and device are open. */
void run_warn_idle_options(const struct run *r);

#endif
