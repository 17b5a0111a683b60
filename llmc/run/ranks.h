/* The processes of a training run, called ranks: starting them, agreeing before they train, their devices
 * and log files. Built on group.h (messages between ranks) and launch.h (child processes). */
#ifndef LLMC_RUN_RANKS_H
#define LLMC_RUN_RANKS_H

#include "llmc/process/group.h"
#include "llmc/run/config.h"

/* With --gpus, --ranks or --restart: starts the processes, waits for them, and returns their exit status.
 * Otherwise, and in each process that was started, returns -1: this process is a rank. `argv` has the
 * arguments without the program. */
int run_launch(const struct run_config *c, int argc, char **argv);

/* Opens the group that the environment describes. Until run_prefix_messages() only rank 0 prints warnings:
 * those about options and files are the same on all ranks. */
struct group *run_open_group(const struct run_config *c);
/* From here on each rank prints its own messages, with its rank in front; `log` (rank_log_open) receives a
 * copy. */
void run_prefix_messages(struct group *g, int log);

/* As check(), for all ranks together: returns if `ok` on every rank. Otherwise rank 0 prints the first
 * error, and all ranks exit. */
void check_all_ranks(struct group *g, bool ok, struct error *err);
/* When all ranks know of an error, by group_agree(). */
LLMC_NORETURN void exit_all_ranks(struct group *g, const struct error *err);
/* Sends rank 0's text (or NULL) to the others, where *text must be NULL. The caller frees. */
void broadcast_text(struct group *g, char **text);
/* Whether all ranks see a directory as rank 0 does, tested with a file in it: the run directory, or the
 * part of its path that exists already. `run` is for the message. Tries for ten seconds, because network
 * file systems have caches. All ranks call it, and get the same answer. */
#define SHARED_MARK ".seen-by-all" /* the name of that file begins so */
bool check_shared_directory(struct group *g, const char *directory, const char *run, struct error *err);

/* Opens this rank's device. Ranks of one machine get a GPU each, or divide the cores. Dies with the reason
 * if there are too few GPUs. */
struct device *run_open_rank_device(const struct run_config *c, const struct group *g);

/* DIR/rank-N.log; lines are appended, each with the time in front. Putting does nothing if `fd` is 0. */
int rank_log_open(const char *directory, const struct group *g, struct error *err);
void rank_log_put(int fd, const char *fmt, ...) LLMC_PRINTF(2, 3);

/* Around long work (tokenizing, reading weights, saving), in which the watch would take this rank for
 * stuck: a thread reports progress as long as the process uses its processor or its disk, but for no more
 * than 20 timeouts. */
struct rank_busy;
struct rank_busy *rank_busy_begin(struct group *g, const char *what, int64_t step);
void rank_busy_end(struct rank_busy *b);

#endif
