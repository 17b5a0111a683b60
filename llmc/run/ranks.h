/* The processes of a training run: starting them, what they do together before they train, what each of them
 * writes. Groups are in group.h, the launcher in launch.h, the comparison of options in rank_facts.h. */
#ifndef LLMC_RUN_RANKS_H
#define LLMC_RUN_RANKS_H

#include "llmc/process/group.h"
#include "llmc/run/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For --gpus, --ranks and --restart: starts the processes and returns the exit status when they have ended.
 * -1: this process is to train. `argv` are the arguments behind the program's name. */
int run_launch(const struct run_config *c, int argc, char **argv);

/* Opens the group that the environment describes, and sees to it that the terminal gets every message
 * once. */
struct group *run_open_group(const struct run_config *c);
/* From here on every rank speaks for itself; `log` (rank_log_open) receives its messages, too. */
void run_speak(struct group *g, int log);
/* All ranks, or none: returns if `ok` on every rank. Else rank 0 prints the first reason and all exit. */
void run_agree(struct group *g, bool ok, struct error *err);
/* Rank 0's text (or NULL) to all others. On those, *text must be NULL; the caller frees. */
void run_share_text(struct group *g, char **text);
/* Whether every rank sees the directory that rank 0 has made; tries for some seconds, as network file systems
 * take their time. All ranks call it, all get the answer. */
bool run_see_directory(struct group *g, const char *directory, struct error *err);

/* Opens this rank's device. Ranks of one machine get a GPU each, or divide the cores. Dies with the reason if
 * there are too few GPUs. */
struct device *run_open_rank_device(const struct run_config *c, const struct group *g);

/* DIR/rank-N.log, continued if it is there, which also receives this process's errors and warnings. The line
 * gets a time in front and a newline behind. Nothing happens with a descriptor of 0. */
int rank_log_open(const char *directory, const struct group *g, struct error *err);
void rank_log_put(int fd, const char *fmt, ...) LLMC_PRINTF(2, 3);

/* While a process works for long (tokenizing, reading weights, saving): tells the others that it goes on, as
 * long as it uses its processor or its disk and does not wait for them; for 20 timeouts at most. */
struct rank_busy;
struct rank_busy *rank_busy_begin(struct group *g, const char *what, int64_t step);
void rank_busy_end(struct rank_busy *b);

#ifdef __cplusplus
}
#endif
#endif
