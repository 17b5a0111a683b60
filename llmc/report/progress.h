/* The progress line of a training run, for a terminal of any width or for a file. Only text: logger.c
 * prints it. */
#ifndef LLMC_PROGRESS_H
#define LLMC_PROGRESS_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct progress {
    int64_t step, steps;
    double epoch, loss, val_loss, floor_loss; /* NAN for the last two: not known */
    double lr, grad_norm;
    int64_t skipped; /* updates so far that were skipped */
    double tokens_per_second, flops_per_second;
    double peak_flops; /* 0: unknown */
    double eta;        /* seconds; NAN: not known */
};

/* Writes the line, without a newline, and returns its length. With a bar it has at most columns-1
 * characters, and what does not fit is dropped, the least important first. columns 0: everything, without a
 * bar. Columns keep their places from line to line. */
#define PROGRESS_MAX 512
int progress_line(char out[PROGRESS_MAX], const struct progress *p, int columns);

/* "1.23k", "12.3k", " 123k": three digits and a prefix, 5 characters wide, by temp_printf. */
const char *progress_count(double n);
/* "42s", "12m34s", "3h05m", "2d03h", by temp_printf. */
const char *progress_duration(double seconds);

#ifdef __cplusplus
}
#endif
#endif
