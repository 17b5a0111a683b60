/* Whether a run's files fit on its disk: a forecast at the start, and a warning before it is full. */
#ifndef LLMC_RUN_DISK_H
#define LLMC_RUN_DISK_H

#include "llmc/run/run.h"

struct disk_need {
    int64_t checkpoint; /* bytes of one */
    int64_t saves;      /* checkpoints that are still to be written */
    int64_t kept;       /* of them at a time, and one more while it is written */
    int64_t logs;       /* bytes that they will grow by */
};
enum disk_verdict {
    DISK_ENOUGH,
    DISK_WARN,  /* the run can save, but not keep everything */
    DISK_REFUSE /* a second checkpoint, or the only one, does not fit */
};

/* Bytes at the most that the run has on the disk at a time. */
int64_t disk_need_bytes(const struct disk_need *n);
/* `bytes`: free ones, and those of the checkpoints that the run replaces. */
enum disk_verdict disk_forecast(const struct disk_need *n, int64_t bytes);

/* On rank 0, before anything is written. DISK_WARN is a warning; false with the reason for DISK_REFUSE. */
bool run_check_disk(const struct run *r, struct error *err);
/* After a checkpoint: warns once when less than two more fit. */
void run_watch_disk(struct run *r);

#endif
