/* A training run: what train_gpt.cu's loop works on, from the command line to the last checkpoint. */
#ifndef LLMC_RUN_H
#define LLMC_RUN_H

#include "llmc/format/checkpoint.h"
#include "llmc/model/eval.h"
#include "llmc/model/generate.h"
#include "llmc/ranks/rank_timing.h"
#include "llmc/report/log_file.h"
#include "llmc/report/logger.h"
#include "llmc/report/nvml.h"
#include "llmc/run/batch.h"
#include "llmc/run/data.h"
#include "llmc/run/guard.h"
#include "llmc/run/owner.h"
#include "llmc/run/ranks.h"

struct run {
    /* what the user asked for, and where the run stands */
    struct options options; /* the options as given, with the source of each value */
    struct run_config config;
    struct owner owner; /* of the run directory; on rank 0 */
    char *out;          /* its path */
    char *start;        /* the checkpoint that the weights come from; NULL: they are initialised */
    char *adapter; /* with --lora, resumed: the checkpoint of the adapters; then `start` is what they adapt */
    bool resumed;
    struct train_state state; /* step, data position and what else a checkpoint stores */

    /* what it runs on */
    struct group *group; /* the ranks */
    struct device *device;
    double matmul_rate; /* of the device, in FLOP/s, as measured at the start; on rank 0 */
    struct comm *comm;  /* collectives between them; &timing.comm */
    struct rank_timing timing;
    double started;            /* now_seconds() at which --max-time begins */
    double step_seconds;       /* what the longest step, ... */
    double save_seconds;       /* ... checkpoint and */
    double evaluation_seconds; /* ... round of evaluations have taken so far */
    int stop;                  /* the signal or STOP_TIME that all ranks have agreed to stop for; 0: none */
    bool save_asked;           /* all ranks have agreed to save on SIGUSR1 */

    /* what it trains */
    struct run_data data;
    struct dataloader *train;
    struct batch_choice batch; /* if --batch-size leaves it open */
    struct gpt_config model;
    struct ctx ctx;
    struct gpt gpt, generator; /* the generator, for samples, reads gpt's parameters */
    struct optimizer optimizer;
    struct zero zero;

    /* what it records */
    struct logger *log;
    struct nvml *nvml;  /* NULL: the CPU, or a driver without it */
    int rank_log;       /* descriptor of rank-N.log; 0: none */
    struct guard guard; /* against outliers */
    int64_t diverged;   /* the step at which the run has diverged, until it goes back; 0: it has not */
    double val_loss;    /* of the last validation; the lowest one is state.best_val_loss, ... */
    double val_bytes;   /* of text behind a target of it, on average; 0: unknown */
    struct run_best {
        int64_t step;      /* ... after this step; -1: none yet */
        int64_t kept;      /* the step that RUN/best is a link to; -1: none */
        int64_t validated; /* the last step that was validated */
        int64_t since;     /* validations since the lowest loss */
    } best;
    struct eval_tasks tasks;
    struct log_file task_log, sample_log; /* of rank 0; else not open */
    bool disk_low;                        /* and the user has been told */
    bool saved;                           /* the last checkpoint that was due is on disk */
    int64_t saved_step;                   /* its step, also if it failed */
    int64_t kept_step;                    /* of the last one that did not fail; -1: none */
};

/* Rank 0 prints and writes for all. */
static inline bool is_rank_0(const struct run *r) { return r->group->rank == 0; }

/* From options to a model that is ready for its next step: ranks, run directory, device, data, model, log.
 * If something does not fit, all ranks exit, with one message. Only `options` and `config` are set before. */
void run_open(struct run *r);
/* Writes a checkpoint; sets `saved`. A failure, such as a full disk, is reported and does not end the run:
 * older checkpoints are untouched, and the next one may succeed. */
void run_save(struct run *r);
void run_close(struct run *r);

#endif
