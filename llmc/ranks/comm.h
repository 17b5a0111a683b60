/* Collectives on tensors between the processes of a run: NCCL between GPUs, shared memory between CPU ranks of
 * one machine, nothing to do for a single process.
 *
 * A collective starts after everything that is on `stream` when it is called, runs on the communicator's own
 * queue, in the order of the calls (the same on all ranks), and returns a ticket at once. wait(ticket,
 * stream) lets what is put on `stream` afterwards run after that collective; nothing else may touch the
 * tensor until then. On the CPU, where streams do nothing, the collective runs inside wait(): all ranks must
 * call wait() and the functions of group.h in the same order.
 *
 * Parts. reduce_scatter and all_gather divide a tensor of n elements among the ranks: rank r's part is
 * comm_part(n, world, r), whole multiples of 128 elements except for the last one that is not empty.
 *
 * Sums are taken in an order that depends on nothing but the world size, and every rank receives the same
 * bits. The CPU adds the ranks' values in fp32 in the order of ranks, for bf16 too, rounding once.
 *
 * A rank that is gone or does not take part for the group's timeout ends the process (see group.h). */
#ifndef LLMC_COMM_H
#define LLMC_COMM_H

#include "llmc/ops/ctx.h"
#include "llmc/process/group.h"

#ifdef __cplusplus
extern "C" {
#endif

struct comm {
    struct group *group;
    int64_t rank, world;
    const char *kind; /* "one process", "shared memory", "NCCL 2.21.5": for people */
    void *state;      /* back-end private */

    int64_t (*all_reduce)(struct comm *c, struct tensor *t, void *stream);
    /* Own part: the sum over all ranks. The other parts are then undefined. */
    int64_t (*reduce_scatter)(struct comm *c, struct tensor *t, void *stream);
    /* Everyone's own part to all. */
    int64_t (*all_gather)(struct comm *c, struct tensor *t, void *stream);
    int64_t (*broadcast)(struct comm *c, struct tensor *t, int64_t root, void *stream);
    void (*wait)(struct comm *c, int64_t ticket, void *stream);
    void (*close)(struct comm *c);
};

/* What fits the device and the world: nothing to do for one process, NCCL for GPUs, shared memory for CPUs. NULL
 * with the reason (NCCL cannot be loaded, several processes on one GPU, ...). The group must outlive it. */
struct comm *comm_open(struct group *g, struct device *device, struct error *err);
struct comm *comm_open_local(struct group *g);
/* For contexts in plan mode: rank 0 (which has the largest parts) of so many; its collectives do nothing. */
struct comm *comm_open_plan(int64_t world);
struct comm *comm_open_shm(struct group *g, struct error *err);
struct comm *comm_open_nccl(struct group *g, struct device *device, struct error *err);

struct comm_part {
    int64_t first, count; /* in elements; count may be 0 */
};
static inline struct comm_part comm_part(int64_t n, int64_t world, int64_t rank) {
    int64_t size = round_up(ceil_div(n, world), 128), first = min_i64(n, rank * size);
    struct comm_part part = {first, min_i64(n - first, size)};
    return part;
}

#ifdef __cplusplus
}
#endif
#endif
