/* Each launcher describes a process by environment variables of its own. group_env_read() takes the
 * first complete description in this order: torchrun's variables, which any script can set; Open MPI;
 * MPICH; Slurm. Then it looks for the address of rank 0. */
#include "llmc/process/group_env.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* --- variables --- */

static const char *text_of(const char *name) {
    const char *text = getenv(name);
    return text && *text ? text : NULL;
}

/* False if the variable is set, but is no number in this range. If it is not set, *v keeps its value. */
static bool integer_of(const char *name, int64_t low, int64_t high, int64_t *v, struct error *err) {
    const char *text = text_of(name);
    if (!text) return true;
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (*end || end == text || text[0] == '+' || text[0] == ' ')
        return fail(err, "environment: %s=%s is not a number", name, text);
    if (errno || n < low || n > high)
        return fail(err, "environment: %s=%s is not between %lld and %lld", name, text, (long long)low,
                    (long long)high);
    *v = n;
    return true;
}

enum { WORLD_MAX = 1 << 16 };

/* Reads rank and size. Either both are set, or neither; then env->world does not change. */
static bool read_rank(struct group_env *env, const char *rank, const char *size, const char *local_rank,
                      const char *local_size, struct error *err) {
    int64_t world = 0, r = -1;
    if (!integer_of(size, 1, WORLD_MAX, &world, err) || !integer_of(rank, 0, WORLD_MAX, &r, err))
        return false;
    if (world == 0 && r < 0) return true;
    if (world == 0)
        return fail(err, "environment: %s=%s without %s: set both, or neither for a run of one process", rank,
                    text_of(rank), size);
    if (r < 0)
        return fail(err, "environment: %s=%s without %s: set both, or neither for a run of one process", size,
                    text_of(size), rank);
    if (r >= world)
        return fail(err, "environment: %s=%lld, but %s=%lld: ranks are counted from 0 to %lld", rank,
                    (long long)r, size, (long long)world, (long long)world - 1);
    if (local_size && !integer_of(local_size, 1, world, &env->local_world, err)) return false;
    int64_t local_max = (env->local_world > 0 ? env->local_world : world) - 1;
    if (local_rank && !integer_of(local_rank, 0, local_max, &env->local_rank, err)) return false;
    env->rank = r;
    env->world = world;
    return true;
}

static void set_token(struct group_env *env, const char *kind, const char *a, const char *b) {
    if (!env->token[0] && a) snprintf(env->token, sizeof env->token, "%s %s %s", kind, a, b ? b : "");
}

/* --- launchers --- */

static bool read_torchrun(struct group_env *env, struct error *err) {
    env->source = "RANK and WORLD_SIZE";
    /* after a restart the run id is the same, but the count differs */
    set_token(env, "torchrun", text_of("TORCHELASTIC_RUN_ID"), text_of("TORCHELASTIC_RESTART_COUNT"));
    return read_rank(env, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", err);
}

static bool read_open_mpi(struct group_env *env, struct error *err) {
    env->source = "Open MPI";
    const char *job = text_of("PMIX_NAMESPACE");
    set_token(env, "Open MPI", job ? job : text_of("OMPI_MCA_ess_base_jobid"), NULL);
    return read_rank(env, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                     "OMPI_COMM_WORLD_LOCAL_SIZE", err);
}

static bool read_mpich(struct group_env *env, struct error *err) {
    env->source = "MPICH";
    const char *job = text_of("PMI_JOBID");
    set_token(env, "MPICH", job ? job : text_of("SLURM_JOB_ID"), text_of("SLURM_STEP_ID"));
    return read_rank(env, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", err);
}

static bool read_slurm(struct group_env *env, struct error *err) {
    env->source = "Slurm";
    set_token(env, "Slurm", text_of("SLURM_JOB_ID"), text_of("SLURM_STEP_ID"));
    const char *size = text_of("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
    if (!read_rank(env, "SLURM_PROCID", size, "SLURM_LOCALID", NULL, err)) return false;
    int64_t nodes = 0;
    const char *name = text_of("SLURM_STEP_NUM_NODES") ? "SLURM_STEP_NUM_NODES" : "SLURM_NNODES";
    if (!integer_of(name, 1, WORLD_MAX, &nodes, err)) return false;
    if (nodes == 1) env->local_world = env->world;
    return true;
}

/* salloc's shell and a batch script are steps, too, and have SLURM_NTASKS, but are a single process.
 * Such steps use reserved SLURM_STEP_IDs near 2^32. */
static bool started_by_srun(void) {
    const char *step = text_of("SLURM_STEP_ID"), *size = text_of("SLURM_STEP_NUM_TASKS");
    if (!step || strtoull(step, NULL, 10) >= 0xfffffff0u) return false;
    if (!size) size = text_of("SLURM_NTASKS");
    return size && strtoll(size, NULL, 10) > 1 && text_of("SLURM_PROCID");
}

/* With --mpi=pmi2 as its default, srun sets PMI_RANK and PMI_SIZE as well. MPICH's mpiexec, too, may use
 * srun, for one helper on each machine; then the numbers differ. */
static bool same_as_srun(void) {
    const char *size = text_of("SLURM_STEP_NUM_TASKS"), *pmi_size = text_of("PMI_SIZE"),
               *rank = text_of("PMI_RANK");
    if (!size) size = text_of("SLURM_NTASKS");
    return started_by_srun() && pmi_size && rank && !strcmp(size, pmi_size) &&
           !strcmp(text_of("SLURM_PROCID"), rank);
}

/* --- where rank 0 is --- */

bool group_slurm_first_host(char *out, size_t size, const char *list) {
    size_t prefix = strcspn(list, "[,");
    int n;
    if (list[prefix] != '[') {
        n = snprintf(out, size, "%.*s", (int)prefix, list);
    } else {
        const char *first = list + prefix + 1, *close = strchr(first, ']');
        size_t digits = strspn(first, "0123456789");
        if (!close || digits == 0 || !strchr("-,]", first[digits])) return false;
        /* the name may go on behind the bracket: "rack[1-2]-a" */
        size_t suffix = strcspn(close + 1, ",");
        if (memchr(close + 1, '[', suffix)) return false;
        n = snprintf(out, size, "%.*s%.*s%.*s", (int)prefix, list, (int)digits, first, (int)suffix,
                     close + 1);
    }
    return n > 0 && (size_t)n < size;
}

static bool find_address(struct group_env *env, struct error *err) {
    const char *address = text_of("MASTER_ADDR");
    bool slurm = env->source && strcmp(env->source, "Slurm") == 0;
    env->one_host = env->local_world == env->world;
    if (address) {
        if (strlen(address) >= sizeof env->address)
            return fail(err, "environment: MASTER_ADDR is longer than a host name can be");
        strcpy(env->address, address);
        /* other machines cannot reach these */
        if (!strcmp(address, "localhost") || !strncmp(address, "127.", 4) || !strcmp(address, "::1"))
            env->one_host = true;
        return true;
    }
    if (env->one_host || (env->local_world < 0 && !slurm && strncmp(env->source, "RANK", 4) == 0)) {
        env->one_host = true;
        strcpy(env->address, "127.0.0.1");
        return true;
    }
    /* mpirun in a Slurm allocation starts rank 0 on the allocation's first host, which its own srun step
     * may not contain. */
    const char *list = slurm ? text_of("SLURM_STEP_NODELIST") : NULL;
    if (!list && strncmp(env->source, "RANK", 4) != 0) list = text_of("SLURM_JOB_NODELIST");
    if (list) {
        if (group_slurm_first_host(env->address, sizeof env->address, list)) return true;
        return fail(err,
                    "environment: cannot read the first host of Slurm's list %s; set MASTER_ADDR to the host "
                    "of rank 0",
                    list);
    }
    if (strcmp(env->source, "Open MPI") == 0)
        return fail(
            err,
            "Open MPI started %lld processes, %lld of them on this machine, and does not tell the host of "
            "rank 0: use mpirun -x MASTER_ADDR=HOST ... with the name or address of that host, the first "
            "of the host file",
            (long long)env->world, (long long)env->local_world);
    return fail(
        err,
        "%s: %lld processes on several machines, and the host of rank 0 is not known: set MASTER_ADDR to its "
        "name or address",
        env->source, (long long)env->world);
}

/* --- the environment --- */

bool group_env_read(struct group_env *env, struct error *err) {
    memset(env, 0, sizeof *env);
    env->world = 1;
    env->local_rank = env->local_world = env->listen_fd = -1;
    const char *token = text_of("LLMC_TOKEN");
    if (token) snprintf(env->token, sizeof env->token, "%s", token);
    bool ok = true;
    if (text_of("RANK") || text_of("WORLD_SIZE"))
        ok = read_torchrun(env, err);
    else if (text_of("OMPI_COMM_WORLD_SIZE") || text_of("OMPI_COMM_WORLD_RANK"))
        ok = read_open_mpi(env, err);
    else if ((text_of("PMI_SIZE") || text_of("PMI_RANK")) && !same_as_srun())
        ok = read_mpich(env, err);
    else if (started_by_srun())
        ok = read_slurm(env, err);
    if (!ok) return false;
    if (env->world == 1) {
        env->local_world = 1;
        return true;
    }
    if (!find_address(env, err)) return false;
    /* All processes of a job compute the same port from the token; two jobs rarely share one. The range
     * lies below the ports that systems assign automatically. */
    enum { PORT_FIRST = 20000, PORTS = 10000, PORT_DEFAULT = 29500 };
    int64_t port = env->token[0] ? PORT_FIRST + (int64_t)(XXH3_64bits(env->token, strlen(env->token)) % PORTS)
                                 : PORT_DEFAULT;
    if (!integer_of("MASTER_PORT", 1, 65535, &port, err)) return false;
    env->port = (int)port;
    int64_t fd = -1;
    if (!integer_of("LLMC_LISTEN_FD", 0, 1 << 20, &fd, err)) return false;
    if (env->rank == 0) env->listen_fd = (int)fd;
    return true;
}
