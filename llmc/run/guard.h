/* What is an outlier among the steps of a run: a loss or a gradient norm that lies many standard deviations
 * above the mean of the last 128 steps. An outlier never enters the mean, so a row of them stays one.
 *
 * The device decides whether it skips a step's update, by limits that come with the step. When step s is
 * issued, the host has read the numbers of step s - 2 at the latest (pipeline.h), so the limits come from
 * the steps up to s - 2, on every device: also on one that has finished step s - 1 already. Checkpoints
 * store the window and the step that waits to enter it. */
#ifndef LLMC_RUN_GUARD_H
#define LLMC_RUN_GUARD_H

#include "llmc/base/base.h"

struct json_t;

enum { GUARD_WINDOW = 128, GUARD_LAG = 2 };

struct guard {
    double loss[GUARD_WINDOW], norm[GUARD_WINDOW]; /* of the last good steps; the oldest is at `oldest` */
    int64_t count, oldest;
    struct guard_step {
        int64_t step; /* 1 is the first */
        double loss, norm;
    } waiting[GUARD_LAG];
    int64_t waiting_count;
    int64_t bad;       /* steps in a row that were not good; the caller counts them */
    int64_t rollbacks; /* so far */
};

struct guard_limits {
    double mean_loss, std_loss, mean_norm, std_norm;
    float max_loss, max_norm; /* INFINITY while the window is not full: no limit */
};

/* The limits of this step: `z` standard deviations above the means. */
struct guard_limits guard_limits_of(struct guard *g, int64_t step, double z);
/* Takes in the numbers of a good step that has been read, in order. */
void guard_add(struct guard *g, int64_t step, double loss, double norm);

/* A new reference. */
struct json_t *guard_to_json(const struct guard *g);
/* False if the object is not what guard_to_json() makes. NULL is an empty window. */
bool guard_from_json(struct guard *g, const struct json_t *json);

#endif
