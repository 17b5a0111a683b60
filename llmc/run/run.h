/* A training run: everything that train_gpt.cu's loop works on, how it is opened (run_open.c), and what looks
 * at the model on the way (run_eval.c). */
#ifndef LLMC_RUN_H
#define LLMC_RUN_H

#include "llmc/format/checkpoint.h"
#include "llmc/model/eval.h"
#include "llmc/report/log_file.h"
#include "llmc/report/logger.h"
#include "llmc/report/nvml.h"
#include "llmc/ranks/rank_timing.h"
#include "llmc/run/data.h"
#include "llmc/run/ranks.h"
#include "llmc/model/sampler.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { IN_FLIGHT = 2 };

struct run {
    struct options options;
    struct run_config config;
    char *out;   /* run directory */
    char *start; /* checkpoint directory the weights come from; NULL: initialised */
    bool resumed;
    struct train_state state; /* step, data position: what a checkpoint stores */
    struct run_data data;
    struct group *group;
    struct device *device;
    struct comm *comm;
    struct rank_timing timing;
    int rank_log; /* descriptor; 0: none */
    int stop;     /* the signal that all ranks agreed to stop for; 0: none */
    struct ctx ctx;
    struct gpt_config model;
    struct gpt gpt, generator; /* the generator reads gpt's parameters */
    struct optimizer optimizer;
    struct zero zero;
    struct dataloader *train;
    struct logger *log;
    struct nvml *nvml; /* NULL: the CPU, or a driver without it */
    double val_loss;
    struct eval_tasks tasks;
    struct log_file task_log;
    bool saved;         /* the last checkpoint that was due is on disk */
    int64_t saved_step; /* its step, also if it failed */

    /* the pipeline of steps */
    struct flight {
        void *done;     /* event after the step */
        float *numbers; /* (STEP_NUMBERS) on the host, valid after `done` */
        double lr, epoch;
    } flight[IN_FLIGHT];
    int32_t *staging; /* (IN_FLIGHT, micro_steps, 2, B, T): tokens and targets on their way to the device */
    int64_t micro_steps, collected, micro_calls[2];
    void *graph[2]; /* recorded micro-steps: later ones, the first one of a step */
    double clock;   /* when the last step ended */
    int skipped;    /* updates skipped in a row */
};

/* Only rank 0 prints and writes. */
static inline bool run_speaks(const struct run *r) { return r->group->rank == 0; }

/* From options to a model that is ready for its first step: group, run directory, device, data, model, log.
 * Ends the process, on all ranks with one message, if something does not fit. `r` holds the options, all else
 * is zero. */
void run_open(struct run *r);
void run_close(struct run *r);

/* Mean loss over the validation set (or its first --val-batches), the same batches every time; the ranks have
 * turns. */
double run_validate(struct run *r);
/* Multiple-choice questions of --eval-tasks: to the terminal and to RUN/tasks.jsonl. */
void run_answer_tasks(struct run *r);
void run_print_sample(struct run *r);
/* What the grammar of the stories says about a number of samples. */
void run_print_grade(struct run *r);

#ifdef __cplusplus
}
#endif
#endif
