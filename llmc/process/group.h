/* The processes of a run: their ranks, their connections, small messages between them, and a watch that
 * ends all of them when one fails. Collectives on tensors are in llmc/ranks/comm.h.
 *
 * A process reads its rank from the environment (group_env.h): the variables of torchrun, Open MPI,
 * MPICH or Slurm. Without them it runs alone and opens no socket.
 *
 * Rank 0 listens, and every other rank connects to it over TCP. A connection starts with a hello: the
 * hash of the program, the token of the run, rank and world size. Rank 0 refuses, with the reason, a
 * process of another run, another build, or a rank that is started twice. The token is LLMC_TOKEN, else
 * the launcher's job id (TORCHELASTIC_RUN_ID, Slurm's job and step, Open MPI's job).
 *
 * The watch is a thread. Each process reports once a second that it is alive and what it does. If a
 * process exits without group_close(), is silent, or makes no progress for `timeout` seconds, all others
 * print its rank, its host and the reason as far as known, and exit with GROUP_EXIT_STATUS. So no call
 * here can hang. */
#ifndef LLMC_GROUP_H
#define LLMC_GROUP_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GROUP_EXIT_STATUS = 75 }; /* another process failed; --resume goes on (EX_TEMPFAIL) */

struct group {
    int64_t rank, world;
    int64_t local_rank, local_world; /* among the processes of this machine */
    double timeout;
    char host[64];
    struct group_state *state; /* NULL when alone */
};

struct group_options {
    double timeout; /* seconds without progress, and for connecting */
};

/* Returns when all processes are connected. NULL with the reason: a contradictory environment, rank 0 not
 * reachable, its port in use, refused by rank 0, or the ranks that did not come within the timeout. */
struct group *group_open(const struct group_options *options, struct error *err);
/* Returns when all ranks have called it. The watch does not call a rank stuck that comes late. NULL is
 * allowed. */
void group_close(struct group *g);

/* "rank 3 (node7)" by temp_printf. */
const char *group_rank_text(const struct group *g, int64_t rank);
/* Whether two ranks run on one machine, in one network namespace. */
bool group_same_host(const struct group *g, int64_t a, int64_t b);

/* --- messages; all ranks make the same calls in the same order --- */

/* Gathers `bytes` of every rank, the same number on all: `all` (world * bytes) is in the order of ranks. */
void group_exchange(struct group *g, void *all, const void *mine, size_t bytes);
/* Copies the root's bytes to all ranks. */
void group_broadcast(struct group *g, void *data, size_t bytes, int64_t root);
void group_barrier(struct group *g);
/* True on every rank if `ok` is true on every rank. Otherwise err on all ranks is the message of the lowest
 * rank that failed, preceded by that rank. */
bool group_agree(struct group *g, bool ok, struct error *err);

/* --- what this process does, for the watch --- */

/* Progress: restarts the watch's clock. `what` must be a string constant; `step` is shown behind it unless
 * negative: "step 17". Costs a few stores. The calls above and the collectives do this, too. */
void group_progress(struct group *g, const char *what, int64_t step);
/* The same, and from now until the next group_progress() this process only waits for others. When nobody
 * makes progress for the timeout, the watch blames the ranks that do not wait. */
void group_waiting(struct group *g, const char *what, int64_t step);
bool group_is_waiting(const struct group *g);
/* Progress in the same work as before. Any thread. */
void group_beat(struct group *g);

/* Around a wait for other ranks: begin saves what this process did, end restores it. */
struct group_wait {
    const char *what;
    int64_t step;
    bool waiting;
};
struct group_wait group_wait_begin(struct group *g, const char *what, int64_t step);
void group_wait_end(struct group *g, struct group_wait before);
/* The rank whose data is needed next; -1: none. Any thread. */
void group_waits_for(struct group *g, int64_t rank);

/* The watch's thread calls `poll` about once a second (NULL: no longer). If it returns false, the run ends
 * and err is the reason: an asynchronous error of a communication library. */
void group_set_poll(struct group *g, bool (*poll)(void *arg, struct error *err), void *arg);

#ifdef __cplusplus
}
#endif
#endif
