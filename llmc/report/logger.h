/* What a run tells about itself: the terminal, log.jsonl, timing.jsonl and the plot loss.svg.
 *
 * log.jsonl holds only what the computation determines: an interrupted and resumed run leaves the same bytes
 * as an uninterrupted one. What the clock determines is in timing.jsonl. Not for use by several threads at
 * once. The files are described in log_file.h, the line in progress.h, the plot in plot.h. */
#ifndef LLMC_LOGGER_H
#define LLMC_LOGGER_H

#include "llmc/report/nvml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct log_options {
    const char *out;      /* run directory; NULL: terminal only */
    int64_t steps;        /* of the whole run, for progress and ETA */
    int64_t resumed_step; /* steps already done: rows of later steps are cut from the files. 0: new files */
    int64_t tokens_per_step;
    double flops_per_token;
    double peak_flops; /* the matmul rate measured on this machine; 0: unknown */
    double floor_loss; /* entropy of the data, drawn as a line and shown beside the validation loss; NAN:
                          unknown */
    bool quiet;        /* no terminal output */
};

struct log_step {
    int64_t step; /* 1 is the first */
    double epoch, loss, lr, grad_norm;
    bool skipped;   /* the update was skipped: the gradient was not finite */
    double seconds; /* wall time of the step */
};

struct logger;
struct logger *logger_open(const struct log_options *options, struct error *err);

/* On a terminal one line, redrawn in place with a bar, as wide as the terminal allows; otherwise a plain line
 * every few seconds (every minute in a long run), and always for the first and last step: step, epoch, loss,
 * last validation loss, learning rate, gradient norm, tokens/s, FLOP/s and its share of peak_flops, ETA. Rows
 * go to the files as they come. A full disk is reported once and does not stop the training: rows wait in
 * memory until there is space. */
void logger_step(struct logger *l, const struct log_step *row);
/* What each process computed, in seconds a step, since the last such row of timing.jsonl. */
void logger_ranks(struct logger *l, int64_t step, const double *seconds, int64_t world);
/* What the GPU says, as a row of timing.jsonl; what is not known is null. */
void logger_gpu(struct logger *l, int64_t step, const struct nvml_reading *r);
/* Step 0: before training. A resumed run may repeat the validation of the step it starts from: it is shown,
 * but log.jsonl keeps one row. */
void logger_validation(struct logger *l, int64_t step, double loss);
/* A line of text that does not break the progress line. */
void logger_say(struct logger *l, const char *fmt, ...) LLMC_PRINTF(2, 3);
/* Flushes to disk; call before a checkpoint is written, so that no checkpoint is ahead of its log. */
void logger_sync(struct logger *l);
/* Writes RUN/loss.svg (see plot.h), atomically. Reads the rows from log.jsonl, so that a resumed run draws the whole
 * curve. */
bool logger_plot(struct logger *l, struct error *err);
void logger_close(struct logger *l);

/* Over the steps logged by this process; NAN before the first. The median tokens/s, and the wall time since
 * logger_open in seconds. */
double logger_tokens_per_second(const struct logger *l);
double logger_seconds(const struct logger *l);

#ifdef __cplusplus
}
#endif
#endif
