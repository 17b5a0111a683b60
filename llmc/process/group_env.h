/* The place of this process in the run, read from the variables that launchers set. */
#ifndef LLMC_GROUP_ENV_H
#define LLMC_GROUP_ENV_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct group_env {
    const char *source; /* "RANK and WORLD_SIZE", "Open MPI", "MPICH", "Slurm"; NULL: no launcher */
    int64_t rank, world;
    int64_t local_rank, local_world; /* among the processes of this machine; -1: the launcher does not say */
    char address[256];               /* host of rank 0 */
    int port;
    bool one_host;   /* all ranks are on this machine */
    char token[256]; /* identifies the run */
    int listen_fd;   /* rank 0: an inherited socket that already listens; -1: none */
};
/* Without a launcher: rank 0 of 1. On false, err names the variable that is missing, malformed or out of
 * range. */
bool group_env_read(struct group_env *env, struct error *err);
/* The first host of a Slurm node list: "node[01-04,7],other" -> node01. False if the list is malformed
 * or the name does not fit. */
bool group_slurm_first_host(char *out, size_t size, const char *list);

#ifdef __cplusplus
}
#endif
#endif
