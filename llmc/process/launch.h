/* Starting a run of several processes on this machine, and what to do when one of them ends: the parent's
 * side of --gpus N, --ranks N and --restart N.
 *
 * The parent starts N copies of the program with the same arguments and the variables that torchrun sets
 * (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT), a random LLMC_TOKEN, and for
 * rank 0 an open socket that already listens (LLMC_LISTEN_FD), so that nobody else can take the port. They
 * share its cores, and die with it. What they write to stderr passes through it, other ranks' stdout too;
 * every line is shown with its rank, and once, if several say the same.
 *
 * SIGINT and SIGTERM are handed on: the processes save after the current step and end; a second one ends them
 * at once. If a process fails, the others have a few seconds to say what they know; then they are killed. The
 * parent's last line says which rank failed first, why, and how to go on; its exit status is that rank's. */
#ifndef LLMC_LAUNCH_H
#define LLMC_LAUNCH_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct launch_options {
    int64_t ranks;
    int64_t restarts;   /* so often all of them are started again, after a failure that may not come back */
    int64_t threads;    /* of each process; 0: the cores, or OMP_NUM_THREADS, are divided */
    bool bind;          /* to cores of its own, where there are enough */
    const char *option; /* "--gpus 8 ", for the command that goes on; or "" */
};

/* The launcher around this process ("mpirun (OMPI_COMM_WORLD_SIZE=4)") if it has started more than one, or
 * NULL. Nobody must start processes there. The caller frees. */
char *launch_foreign(void);

/* Starts them with these arguments (argv[0] is the program) and returns when all have ended. */
int launch_run(const struct launch_options *options, int argc, char **argv);

/* Whether this process has been started by launch_run. */
bool launch_is_child(void);
/* What rank 0 tells the parent: where the run is, and that what can be wrong at the start was not. Nothing
 * happens in a process that has no such parent. */
void launch_tell_run(const char *directory);
void launch_tell_training(void);

/* The n-th of `parts` equal parts of the CPUs that this process may use, whole cores together: fills cpus
 * (room for CPU_SETSIZE) and returns their number; 0 if there are fewer CPUs than parts. */
int launch_cpus(int *cpus, int64_t part, int64_t parts);

#ifdef __cplusplus
}
#endif
#endif
