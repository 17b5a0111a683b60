/* The processes of a run: who they are, how they find each other, small host data between them, and the watch
 * that ends all of them when one is gone. Nothing here knows of tensors; collectives on those are in comm.h.
 *
 * A process learns its place from its environment (group_env.c): torchrun's RANK, WORLD_SIZE, LOCAL_RANK,
 * MASTER_ADDR and MASTER_PORT (also what our own launcher sets), Open MPI's, MPICH's or Slurm's variables.
 * Without any of them it is alone, and opens no socket.
 *
 * Rank 0 listens; every other rank connects twice: once for the calls below, once for the watch. A connection
 * begins with a hello (protocol, version of the engine, token of the run, rank, world size), so that a stale
 * process, another run, another version or a rank that is started twice is refused with the reason. The token
 * is LLMC_TOKEN, else the job's identity (TORCHELASTIC_RUN_ID, Slurm's job and step, Open MPI's job).
 *
 * The watch is a thread. Each process sends its state once a second, and what it is doing. If a process ends
 * without a goodbye, stays silent, or makes no progress for `timeout` seconds, all others print which one,
 * where it was and why, as far as known, and exit with GROUP_EXIT_STATUS. No call here can hang. */
#ifndef LLMC_GROUP_H
#define LLMC_GROUP_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GROUP_EXIT_STATUS = 75 }; /* another process failed: run again with --resume (EX_TEMPFAIL) */

struct group {
    int64_t rank, world;
    int64_t local_rank, local_world; /* among the processes of this machine */
    char host[64];
    struct group_state *state; /* NULL when alone */
};

struct group_options {
    double timeout; /* seconds without a sign of life or progress; also for finding each other */
};

/* Returns when all processes are there. NULL with the reason: contradictory environment, rank 0 not reachable
 * at its address, port in use, refused (with rank 0's reason), fewer than all within the timeout (with the
 * ranks that are missing). */
struct group *group_open(const struct group_options *options, struct error *err);
/* Returns when all ranks have called it, so that nobody mistakes the end of one for a failure. A rank may
 * come late without being called stuck. NULL is allowed. */
void group_close(struct group *g);

/* Every rank gives `bytes` (the same number on all), and receives those of all in the order of ranks: `all`
 * has world * bytes. */
void group_exchange(struct group *g, void *all, const void *mine, size_t bytes);
/* The bytes of `root` to all. */
void group_broadcast(struct group *g, void *data, size_t bytes, int64_t root);
void group_barrier(struct group *g);
/* True on every rank if `ok` is true on every rank; else the message of the lowest rank that failed, with its
 * rank in front, is in everyone's err. */
bool group_agree(struct group *g, bool ok, struct error *err);

/* "I am alive, and this is what I do now": resets the watch's clock. `what` must be a string constant, shown
 * with `step` behind it unless that is negative: "step 17", "writing the checkpoint". Cheap: a few stores.
 * The calls above and the collectives do it by themselves. */
void group_progress(struct group *g, const char *what, int64_t step);
/* The same, and until the next group_progress() this process does nothing but wait for the others. If nobody
 * makes progress for the timeout, and one at least is known to wait, then those that do not wait are
 * stuck. */
void group_waiting(struct group *g, const char *what, int64_t step);
/* Called about once a second by the watch's thread. On false, err is the reason this process ends all for (an
 * asynchronous error of a communication library). NULL: none. */
void group_poll(struct group *g, bool (*poll)(void *arg, struct error *err), void *arg);

#ifdef __cplusplus
}
#endif
#endif
