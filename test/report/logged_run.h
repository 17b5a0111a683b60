/* The directory of a run, as it would have been logged. */
#ifndef LLMC_TEST_LOGGED_RUN_H
#define LLMC_TEST_LOGGED_RUN_H

#include <stdint.h>
#include <stdio.h>

/* Stands in the options and the samples; no page may run it. */
static const char nasty[] = "</script><script>alert(1)</script><img src=x onerror=alert(2)>";

double loss_at(int64_t step);
/* A run of `steps` steps; learning_rate is JSON. */
void make_run(const char *name, int64_t steps, const char *learning_rate);
/* Rows of steps (from, to], with a validation every 10 steps. */
void write_rows(const char *run, int64_t from, int64_t to);
FILE *open_log(const char *run, const char *name, const char *mode);

#endif
