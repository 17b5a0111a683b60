/* The log of a run, read for a picture while it is being written: log.jsonl and timing.jsonl as columns of
 * numbers, and any stretch of them as few points.
 *
 * Reading takes up where it ended last time. A line without its end waits for the rest; a line that is no
 * row is counted and left out; a key that is not known, as of another version, is skipped. When a file
 * becomes shorter or another one, as after --resume or --overwrite, it is read anew. Nothing is ever locked
 * or written. */
#ifndef LLMC_HISTORY_H
#define LLMC_HISTORY_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum history_series {
    HISTORY_LOSS,
    HISTORY_VAL_LOSS,
    HISTORY_LR,
    HISTORY_GRAD_NORM,
    HISTORY_TOKENS_PER_SECOND,
    HISTORY_FLOPS_SHARE,
    HISTORY_GPU_WATTS,
    HISTORY_GPU_CELSIUS,
    HISTORY_GPU_MHZ,
    HISTORY_GPU_UTILISATION,
    HISTORY_SERIES
};
extern const char *const history_keys[HISTORY_SERIES]; /* as in the files: "loss", "val_loss", ... */

/* Rows of one kind, by increasing step. A row whose step is not above the last one's replaces all rows from
 * its step on, as a resumed run does. */
struct history_table {
    int64_t *step;
    double *column[4];
    int64_t count, capacity;
};
enum { HISTORY_STEPS, HISTORY_VALIDATIONS, HISTORY_TIMES, HISTORY_GPU, HISTORY_TABLES };
enum { HISTORY_ROWS_MAX = 1 << 23 }; /* of a table; later rows are left out */

struct history_file {
    int fd;         /* -1: not open */
    int64_t offset; /* of the first byte that has not been read as part of a row */
    uint64_t device, inode;
    char tail[64]; /* the bytes before `offset`, to see that they are still the same */
    int64_t unreadable, left_out;
    int64_t skipping; /* of a line that is too long: bytes of it that have been passed over */
};
struct history {
    char *directory;
    struct history_file file[2]; /* log.jsonl, timing.jsonl */
    struct history_table table[HISTORY_TABLES];
    int64_t unreadable; /* lines that are no rows */
    int64_t left_out;   /* rows beyond HISTORY_ROWS_MAX */
    int64_t version;    /* increases with every change */
    bool there;         /* log.jsonl exists */
    double modified;    /* when log.jsonl was last written, in seconds since 1970; NAN: not there */
};

void history_open(struct history *h, const char *directory);
/* Reads what is new. */
void history_update(struct history *h);
void history_close(struct history *h);

/* Last step of log.jsonl, 0 without one, and the last value of a series, NAN without one. */
int64_t history_last_step(const struct history *h);
double history_last(const struct history *h, enum history_series s);
bool history_has(const struct history *h, enum history_series s); /* a number at any step */
/* Seconds that the steps up to `step` took, between two rows by interpolation; NAN without timing.jsonl. */
double history_time(const struct history *h, double step);
/* The step at that time: its inverse. */
double history_step_at(const struct history *h, double seconds);

/* A stretch of a series as at most about `wanted` points. A point stands for `rows` rows that follow each
 * other; its step is that of the last. The mean of a rate (tokens/s, MFU) is all the work over all the time,
 * the harmonic mean. NAN where no row has a number. */
struct history_points {
    int64_t count;
    int64_t *step, *rows;
    double *min, *max, *mean;
};
/* Of the steps from `from` to `to`, and the row before and behind them. */
void history_points(struct history_points *p, const struct history *h, enum history_series s, double from,
                    double to, int64_t wanted);
void history_points_free(struct history_points *p);

#ifdef __cplusplus
}
#endif
#endif
