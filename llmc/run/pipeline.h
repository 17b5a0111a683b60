/* Training steps in flight. The host issues a step while the device still computes the previous one, so
 * that the device never waits for the host. One step is:
 *
 *     targets = pipeline_next_batch(p);
 *     for (i = 0; i < p->micro_steps; i++) pipeline_micro_step(p, i);    forward and backward
 *     ... the update ...
 *     pipeline_end_step(p, lr, &limits);
 *     while (pipeline_read(p, STEPS_IN_FLIGHT - 1, &step, &limits)) ...  the numbers of the previous step
 *
 * None of these but pipeline_read() waits for the device. Each step in flight therefore has buffers of its
 * own for the batch that is copied to the device and for the numbers that come back. A step's duration is
 * the time between two events on the device, because the host reads its numbers later.
 *
 * Every micro-step puts the same few hundred operations on the stream. On a device with graphs they are
 * recorded once, and from then on a single call launches them all. */
#ifndef LLMC_RUN_PIPELINE_H
#define LLMC_RUN_PIPELINE_H

#include "llmc/report/logger.h"
#include "llmc/run/guard.h"

struct run;

enum { STEPS_IN_FLIGHT = 2 };

struct pipeline {
    struct run *run;
    int64_t micro_steps; /* of this process in a step */
    int64_t parts;       /* of a micro-batch: 4 if attention keeps documents apart, else 2 */
    int64_t first;       /* the step that this process begins with */
    int64_t read;        /* steps whose numbers pipeline_read() has returned, and those before `first` */
    void *mark[STEPS_IN_FLIGHT + 1]; /* events: [n % ...] is between step n - 1 and step n */
    struct step_in_flight {
        /* page-locked, (micro_steps, parts, B, T): tokens, targets, where documents begin, position ids */
        int32_t *batch;
        float *numbers; /* page-locked, (STEP_NUMBERS): valid behind the step's mark */
        double lr, epoch;
        struct guard_limits limits;
    } step[STEPS_IN_FLIGHT]; /* step n is in n % STEPS_IN_FLIGHT, counted from 0 */
    struct recorded {
        int64_t calls;
        void *graph; /* NULL: not recorded */
    } micro_step[2]; /* [1]: the first of a step, which overwrites gradients; [0]: those that add to them */
    int64_t *first_sample;   /* (micro_steps) of the step that is issued: dataloader_first_sample() */
    struct rank_busy *setup; /* during the first step */
};

/* For the steps after run->state.step, which the caller advances between two steps. */
void pipeline_open(struct pipeline *p, struct run *run);
void pipeline_close(struct pipeline *p);

/* Takes the micro-batches of the next step from the data loader. Returns the number of targets in the step
 * on all ranks, at least 1: the loss and its gradient are means over them. */
int64_t pipeline_next_batch(struct pipeline *p);
/* Forward and backward of micro-batch i. */
void pipeline_micro_step(struct pipeline *p, int64_t i);
/* After the update: asks the device for the numbers of the step. The limits are those of its update. */
void pipeline_end_step(struct pipeline *p, double lr, const struct guard_limits *limits);

/* Waits for the oldest step that has not been read if more than `in_flight` are, and returns its numbers. On
 * a device whose work is done when the call returns, nothing stays in flight. */
bool pipeline_read(struct pipeline *p, int64_t in_flight, struct log_step *step, struct guard_limits *limits);
/* After run->state.step has gone back, with nothing in flight. */
void pipeline_rewind(struct pipeline *p);
/* The duration of the next step counts from now: a checkpoint or a validation is no part of it. Nothing may
 * be in flight. */
void pipeline_restart_clock(struct pipeline *p);

#endif
