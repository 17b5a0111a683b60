/* What the processes of a run tell each other while they train: that a signal asks for the end, and how long
 * each of them computes, so that a slow one is found.
 *
 * In synchronous training all steps take equally long on all ranks; a slow rank is the one that waits least.
 * A rank's own time is therefore the time of a step less what it waited for collectives, measured around
 * wait() of the communicator: pace_open puts itself between the run and the communicator for that.
 *
 * The exchange is a round trip of a few bytes about twice a second, after the same step on all ranks, or
 * after every step where those take longer. */
#ifndef LLMC_PACE_H
#define LLMC_PACE_H

#include "llmc/ranks/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PACE_SLOTS = 2, PACE_NAME = 96 };

struct pace {
    struct comm comm; /* what the run uses in place of `inner` */
    struct comm *inner;
    struct group *group;
    struct device *device;
    struct pace_slot {
        void **mark; /* events: before and after each wait */
        int64_t count, capacity;
    } slot[PACE_SLOTS];
    int current;             /* the slot that waits belong to; -1: none */
    bool begun;              /* the first step is over */
    int64_t steps, next;     /* steps since the last exchange; when the next one is due */
    double computed, waited; /* seconds in them */
    char (*name)[PACE_NAME]; /* (world) "rank 3 (node1, cuda:3)" */
    double *recent, *total;  /* (world) seconds of own work: since the last report, of the whole run */
    double recent_waited, total_waited; /* of all ranks */
    int64_t recent_steps, total_steps;
    double reported; /* when; now_seconds() */
    int64_t suspect; /* the rank that was slow in the last report; -1: none */
    int suspicions;  /* reports in a row */
};

/* All ranks call it. `device_name` is this rank's: "cuda:3", "cpu". `inner` must outlive it. */
void pace_open(struct pace *p, struct group *g, struct comm *inner, struct device *device,
               const char *device_name);
void pace_close(struct pace *p);

/* What is waited for from here on belongs to the step with this slot; later, when the device has done the
 * step, its whole time. */
void pace_step(struct pace *p, int slot);
void pace_step_done(struct pace *p, int slot, double seconds);

/* Whether all ranks exchange after this step. */
bool pace_due(const struct pace *p, int64_t step);
/* Returns the signal that any rank has got, the highest number, or 0. All ranks call it. */
int pace_exchange(struct pace *p, int64_t step, int signal);

/* Which rank computes longest, and how much longer than the median (of two, the faster one), 0.14 for 14
 * %. */
struct pace_slowest {
    int64_t rank;
    double excess, median; /* seconds */
    bool slow; /* by more than a tenth, and more than a twentieth of the step: others wait for it */
};
/* seconds: (world), of so many steps; `step` the seconds of all of those together. */
struct pace_slowest pace_slowest(const double *seconds, int64_t world, double step);

/* On rank 0, now and then (a few seconds of training, enough steps): true if it is time to report, with the
 * seconds a step that each rank computed since the last time. *warning is a text if the same rank has been
 * more than a tenth slower than the median three times in a row, once; else NULL. The caller frees both. */
bool pace_report(struct pace *p, bool last, double **seconds, char **warning);
/* One line on the whole run, or NULL before there is anything to say. The caller frees. */
char *pace_summary(const struct pace *p);

#ifdef __cplusplus
}
#endif
#endif
