/* Collectives between the processes of a run: what data-parallel training asks of NCCL, MPI, or nobody. */
#ifndef LLMC_COMM_H
#define LLMC_COMM_H

#include "ctx.h"

#ifdef __cplusplus
extern "C" {
#endif

struct comm {
    int64_t rank, world;
    void *state; /* back-end private */
    /* Sums over all ranks, in place, in an order that does not depend on timing. */
    void (*all_reduce)(struct comm *c, struct ctx *ctx, struct tensor *t);
    /* Rank 0's contents to all. */
    void (*broadcast)(struct comm *c, struct ctx *ctx, struct tensor *t);
    void (*barrier)(struct comm *c);
    void (*close)(struct comm *c);
};

/* One process: every collective is the identity. */
struct comm *comm_open_local(void);

#ifdef __cplusplus
}
#endif
#endif
