/* Reports a run on the terminal, in log.jsonl and timing.jsonl, and as the plot loss.svg.
 *
 * log.jsonl holds only what the computation determines, so an interrupted and resumed run leaves the same
 * bytes as an uninterrupted one. Everything that the clock determines is in timing.jsonl. One thread at a
 * time. log_file.h describes the files, progress.h the progress line, plot.h the plot. */
#ifndef LLMC_LOGGER_H
#define LLMC_LOGGER_H

#include "llmc/report/nvml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct log_options {
    const char *out;      /* run directory; NULL: terminal only */
    int64_t steps;        /* of the whole run, for progress and ETA */
    int64_t resumed_step; /* steps that are done: later rows are cut from the files. 0: new files */
    int64_t tokens_per_step;
    double flops_per_token;
    double peak_flops; /* the matmul rate measured on this machine; 0: unknown */
    double floor_loss; /* entropy of the data, drawn as a line and shown beside the validation loss; NAN:
                          unknown */
    bool quiet;        /* no terminal output */
    bool tensorboard;  /* also write event files (event_file.h) into the run directory */
};

struct log_step {
    int64_t step; /* 1 is the first */
    double epoch, loss, lr, grad_norm;
    bool skipped;   /* the update was skipped: the gradient was not finite, or an outlier */
    double seconds; /* wall time of the step */
};

struct logger;
struct logger *logger_open(const struct log_options *options, struct error *err);

/* Reports a step: step, epoch, loss, last validation loss, learning rate, gradient norm, tokens/s, FLOP/s
 * and its share of peak_flops, ETA. On a terminal one line with a bar is redrawn in place, as wide as the
 * terminal allows. Elsewhere plain lines appear every few seconds (every minute in a long run), and always
 * for the first and last step. Each step's row goes to the files. A full disk is reported once and does not
 * stop the training: rows wait in memory until there is space. */
void logger_step(struct logger *l, const struct log_step *row);
/* Adds a row to timing.jsonl: the seconds per step that each process computed since the last such row. */
void logger_ranks(struct logger *l, int64_t step, const double *seconds, int64_t world);
/* Adds a row to timing.jsonl: the state of the GPU; unknown values are null. */
void logger_gpu(struct logger *l, int64_t step, const struct nvml_reading *r);
/* Reports a validation; step 0 is before training. A resumed run may repeat the validation of its first
 * step: it is shown, but log.jsonl keeps one row. `bytes` of text are behind a target, on average; 0:
 * unknown. */
void logger_validation(struct logger *l, int64_t step, double loss, double bytes);
/* Adds a text to the event file, if there is one: as it is, not as Markdown. */
void logger_text(struct logger *l, int64_t step, const char *tag, const char *text);
/* Prints a line of text without breaking the progress line. */
void logger_say(struct logger *l, const char *fmt, ...) LLMC_PRINTF(2, 3);
/* Leaves the progress line where it is: what is printed from now on stands below it. */
void logger_end_line(struct logger *l);
/* Makes the files anew if they are gone: see log_file_restore(). */
bool logger_restore(struct logger *l, struct error *err);
/* Flushes to the disk. Call it before a checkpoint is written, so that no checkpoint is ahead of its
 * log. */
void logger_sync(struct logger *l);
/* Writes RUN/loss.svg atomically (see plot.h). Reads the rows from log.jsonl, so that a resumed run draws
 * the whole curve. */
bool logger_plot(struct logger *l, struct error *err);
void logger_close(struct logger *l);

/* Over the steps that this process logged: the median tokens/s, and the wall time since logger_open in
 * seconds. NAN before the first step. */
double logger_tokens_per_second(const struct logger *l);
double logger_seconds(const struct logger *l);

#ifdef __cplusplus
}
#endif
#endif
