/* Which rank is slow. In synchronous training a step takes equally long on all ranks, because they wait for
 * each other; the slow rank is the one that waits least. A rank's compute time is therefore the time of the
 * step minus its waits for collectives. rank_timing_open() wraps the communicator to time its wait().
 *
 * About twice a second, after the same step on every rank, the ranks exchange these times. The same message
 * carries the signal that a rank has received, so that all ranks stop after the same step. */
#ifndef LLMC_RANK_TIMING_H
#define LLMC_RANK_TIMING_H

#include "llmc/ranks/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { RANK_TIMING_SLOTS = 2, RANK_TIMING_NAME = 96 };

struct rank_timing {
    struct comm comm; /* the wrapper; the run uses it in place of `inner` */
    struct comm *inner;
    struct group *group;
    struct device *device;
    struct rank_timing_slot {
        void **mark; /* events: before and after each wait */
        int64_t count, capacity;
    } slot[RANK_TIMING_SLOTS];
    int current;                    /* the slot that waits are charged to; -1: none */
    bool begun;                     /* the first step is over */
    int64_t steps, next;            /* steps since the last exchange; the step of the next one */
    double computed, waited;        /* seconds in them */
    char (*name)[RANK_TIMING_NAME]; /* (world) "rank 3 (node1, cuda:3)" */
    double *recent, *total;         /* (world) compute seconds since the last report, and of the whole run */
    double recent_waited, total_waited; /* of all ranks */
    int64_t recent_steps, total_steps;
    double reported; /* when; now_seconds() */
    int64_t suspect; /* the rank that was slow in the last report; -1: none */
    int suspicions;  /* reports in a row that named it */
};

/* All ranks call it. `device_name` is this rank's: "cuda:3", "cpu". `inner` must outlive it. */
void rank_timing_open(struct rank_timing *p, struct group *g, struct comm *inner, struct device *device,
                      const char *device_name);
void rank_timing_close(struct rank_timing *p);

/* From here on waits are charged to the step in this slot. When the device has finished that step,
 * rank_timing_step_done() gets its duration. */
void rank_timing_step(struct rank_timing *p, int slot);
void rank_timing_step_done(struct rank_timing *p, int slot, double seconds);

/* Whether all ranks call rank_timing_exchange() after this step. */
bool rank_timing_due(const struct rank_timing *p, int64_t step);
/* All ranks call it. Returns the highest signal number that any rank passed, or 0. */
int rank_timing_exchange(struct rank_timing *p, int64_t step, int signal);

/* The rank that computes longest, compared with the lower median of all ranks. */
struct slowest_rank {
    int64_t rank;
    double excess; /* 0.14: 14 % longer than the median */
    double median; /* seconds */
    bool slow;     /* more than 10 % above the median, and by more than 5 % of the step */
};
/* `seconds` (world): compute time of some steps; `step`: duration of the same steps. */
struct slowest_rank find_slowest_rank(const double *seconds, int64_t world, double step);

/* On rank 0: true if a report is due (after 5 s and 8 steps, or if `last`). *seconds then holds each rank's
 * compute time per step since the last report. *warning names a rank that was slow in three reports in a
 * row, once; otherwise it is NULL. The caller frees both. */
bool rank_timing_report(struct rank_timing *p, bool last, double **seconds, char **warning);
/* One line about the whole run, or NULL if nothing was measured. The caller frees. */
char *rank_timing_summary(const struct rank_timing *p);

#ifdef __cplusplus
}
#endif
#endif
