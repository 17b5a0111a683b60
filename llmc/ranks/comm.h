/* Collectives on tensors between the processes of a run, through NCCL between GPUs and through shared
 * memory between CPU ranks of one machine. With a single process they have nothing to do.
 *
 * A call returns a ticket at once. The collective runs on a queue of the communicator, behind everything
 * that was on `stream` at the call. Work put on `stream` after wait(ticket, stream) runs after the
 * collective; until then nothing may touch the tensor. All ranks call the same collectives in the same
 * order. On the CPU, which has no streams, a collective runs inside wait(): all ranks must also call
 * wait() and the functions of group.h in the same order.
 *
 * reduce_scatter, all_gather, gather and scatter divide a tensor of n elements into `parts` parts: part p is
 * comm_part(n, parts, p). All parts but the last are multiples of 128 elements; parts may be empty. Ranks
 * [k*parts, (k+1)*parts) are team k, in which each rank owns one part; the teams are replicas of each other.
 * With one team, parts = world. With a team on each machine only sums travel between machines, in
 * reduce_scatter and all_reduce, and the ring of a team is short.
 *
 * Sums are reproducible: every rank receives the same bits. The CPU adds in fp32 in the order of ranks,
 * and rounds once for bf16.
 *
 * If a rank dies, or does not take part within the timeout, the group's watch ends the process
 * (group.h). */
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
    int64_t part, parts; /* this rank's part, and the ranks of a team, which divides the world */
    const char *kind;    /* "one process", "shared memory", "NCCL 2.21.5": for people */
    void *state;         /* private */

    int64_t (*all_reduce)(struct comm *c, struct tensor *t, void *stream);
    /* The own part becomes the sum over all ranks, of all teams; the other parts become undefined. */
    int64_t (*reduce_scatter)(struct comm *c, struct tensor *t, void *stream);
    /* Every rank's own part is copied to the ranks of its team. */
    int64_t (*all_gather)(struct comm *c, struct tensor *t, void *stream);
    int64_t (*broadcast)(struct comm *c, struct tensor *t, int64_t root, void *stream);
    /* Every rank's own part is copied to the rank of its team that owns part `root`; elsewhere nothing
     * changes. */
    int64_t (*gather)(struct comm *c, struct tensor *t, int64_t root, void *stream);
    /* The reverse: every rank's own part becomes what the root of its team has there; its other parts
     * stay. */
    int64_t (*scatter)(struct comm *c, struct tensor *t, int64_t root, void *stream);
    void (*wait)(struct comm *c, int64_t ticket, void *stream);
    void (*close)(struct comm *c);
};

/* The communicator for this device and world size, with teams of `parts` ranks (0: one team). The group must
 * outlive it. NULL with the reason: NCCL cannot be loaded, two processes use one GPU, CPU ranks on several
 * machines, ... */
struct comm *comm_open(struct group *g, struct device *device, int64_t parts, struct error *err);
struct comm *comm_open_local(struct group *g);
/* For plan mode: rank 0, which has the largest parts, of a world of this size. Its collectives do
 * nothing. */
struct comm *comm_open_plan(int64_t world, int64_t parts);
struct comm *comm_open_shm(struct group *g, int64_t parts, struct error *err);
struct comm *comm_open_nccl(struct group *g, struct device *device, int64_t parts, struct error *err);

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
