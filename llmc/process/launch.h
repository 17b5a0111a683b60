/* Starts the processes of a run on this machine: --gpus N, --ranks N, --restart N.
 *
 * The launcher starts N copies of the program with the same arguments and torchrun's variables (RANK,
 * WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT). It also sets a random LLMC_TOKEN,
 * and rank 0 inherits a socket that already listens at MASTER_PORT (LLMC_LISTEN_FD), so that no other
 * program can take the port. The processes share the cores. The kernel kills them if the launcher dies.
 *
 * Their stderr, and the stdout of ranks other than 0, pass through the launcher, which puts the rank in
 * front of each line. After the first line "error: ..." it drops those of other ranks, which follow from
 * the first.
 *
 * The first SIGINT, SIGTERM or SIGHUP is forwarded: the processes save after the current step and exit.
 * Further ones change nothing; SIGQUIT kills them. SIGUSR1 is forwarded each time, unless it stops the run.
 * When a process fails, the others get three seconds to exit; then they are killed. The last line says which
 * rank failed first, why, and how to go on. The launcher exits with the status of that rank. */
#ifndef LLMC_LAUNCH_H
#define LLMC_LAUNCH_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A run that has saved and ended before its last step, as it was told to: --resume goes on. The status by
 * which programs tell HTCondor that they have saved and want to be started again. */
enum { LAUNCH_RESUME_STATUS = 85 };

/* The command `notify` gets facts in its environment:
 *   LLMC_EVENT    finished; stopped, by a signal or because its time was over; failed
 *   LLMC_STATUS   the exit status
 *   LLMC_RUN      the run's directory; empty if none was chosen yet
 *   LLMC_STEP     the step of the last checkpoint; empty if there is none
 *   LLMC_MESSAGE  of a failure: the error
 * The launcher waits for it for ten seconds at most, and warns if it fails. */
struct launch_options {
    int64_t ranks;
    int64_t restarts;   /* how often to start again after a failure that may not recur */
    int64_t threads;    /* of each process; 0: a share of the cores, or of OMP_NUM_THREADS */
    bool bind;          /* to its share of the cores */
    bool usr1_stops;    /* SIGUSR1 stops a run as SIGTERM does */
    const char *option; /* "--gpus 8 " or "": shown in the command that resumes the run */
    const char *notify; /* for the shell, when all has ended; NULL: none */
};

/* "mpirun (OMPI_COMM_WORLD_SIZE=4)" if such a launcher has started this process as one of several; then it
 * must not start processes itself. Else NULL. The caller frees. */
char *launch_foreign(void);

/* Starts the program again with these arguments (argv[0] is its name), once for each rank. Returns the exit
 * status when all processes have ended. */
int launch_run(const struct launch_options *options, int argc, char **argv);

/* Whether launch_run() started this process. */
bool launch_is_child(void);
/* When the run began, by now_seconds(): now, or when the launcher did. */
double launch_begun(void);
/* Rank 0 tells the launcher the run directory, and that start-up has succeeded. No effect without a
 * launcher. */
void launch_tell_run(const char *directory);
void launch_tell_training(void);

/* Part `part` of `parts` equal parts of the CPUs that this process may use; hardware threads of one core
 * stay together. Fills `cpus` (room for CPU_SETSIZE) and returns their number; 0 if there are fewer than
 * `parts`. */
int launch_cpus(int *cpus, int64_t part, int64_t parts);

#ifdef __cplusplus
}
#endif
#endif
