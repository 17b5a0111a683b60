/* A short training at some level of ZeRO, in forked processes, because OpenMP does not survive a fork. Each
 * rank checks, while it trains, what its level promises: which collectives are started and when, which blocks
 * are there, that it takes the memory of the plan and keeps its part of the tensors, and that all ranks have
 * the same values. */
#ifndef LLMC_TEST_ZERO_RUN_H
#define LLMC_TEST_ZERO_RUN_H

#include "llmc/model/optimizer.h"
#include "llmc/ranks/zero.h"

enum { ZERO_STEPS = 6, ZERO_TOKENS = 12 };
static const float ZERO_LEARNING_RATE = 3e-3f;

struct zero_result {
    float loss[ZERO_STEPS], norm[ZERO_STEPS], validation;
    int64_t generated[ZERO_TOKENS];
    float *params, *m, *v; /* (layout.total) at the end */
    int *owners;           /* (layout.total) ranks that store an element's moments */
};

struct zero_run {
    const struct gpt_config *config;
    int64_t B, T, world, accumulation;
    int64_t team; /* ranks of a team; 0: all */
    enum zero_level level;
    enum recompute recompute;
    enum optimizer_kind optimizer;
    int64_t first_step, steps;      /* of ZERO_STEPS */
    int64_t nan_step, nan_rank;     /* a gradient of this rank is NaN in this step; 0: never */
    bool look;                      /* validate and generate in the middle */
    bool direct;                    /* without poison_comm.h */
    bool documents;                 /* two in each sequence */
    const struct zero_result *from; /* goes on from these values; NULL: initialised */
};

/* Trains; fails the test if a rank fails. */
struct zero_result *zero_run(const struct zero_run *r);
void zero_run_free(struct zero_result *r, const struct gpt_config *config);

#endif
