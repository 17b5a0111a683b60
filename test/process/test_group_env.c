/* The rank of a process from the variables of every launcher, complete, incomplete and contradictory. */
#include "test/test.h"

#include "llmc/process/group_env.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct env_case {
    const char *set; /* "NAME=value NAME=value" */
    const char *expected, *error;
};

/* expected: source rank/world local_rank/local_world address */
static const struct env_case env_cases[] = {
    {"", "none 0/1 -1/1 ", NULL},
    {"RANK=1 WORLD_SIZE=4", "RANK and WORLD_SIZE 1/4 -1/-1 127.0.0.1:29500", NULL},
    {"RANK=0 WORLD_SIZE=1", "RANK and WORLD_SIZE 0/1 -1/1 ", NULL},
    {"RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=node0 MASTER_PORT=1234",
     "RANK and WORLD_SIZE 5/8 1/4 node0:1234", NULL},
    {"RANK=5 WORLD_SIZE=8 LOCAL_RANK=5 LOCAL_WORLD_SIZE=8 MASTER_PORT=1234",
     "RANK and WORLD_SIZE 5/8 5/8 127.0.0.1:1234", NULL},
    {"RANK=4", NULL, "RANK=4 without WORLD_SIZE"},
    {"WORLD_SIZE=4", NULL, "WORLD_SIZE=4 without RANK"},
    {"RANK=4 WORLD_SIZE=4", NULL, "RANK=4, but WORLD_SIZE=4: ranks are counted from 0 to 3"},
    {"RANK=-1 WORLD_SIZE=4", NULL, "RANK=-1 is not between 0 and"},
    {"RANK=one WORLD_SIZE=4", NULL, "RANK=one is not a number"},
    {"RANK=1 WORLD_SIZE=4x", NULL, "WORLD_SIZE=4x is not a number"},
    {"RANK=0 WORLD_SIZE=0", NULL, "WORLD_SIZE=0 is not between 1 and"},
    {"RANK=0 WORLD_SIZE=99999999999999999999", NULL, "WORLD_SIZE=99999999999999999999 is not between"},
    {"RANK=0 WORLD_SIZE=4 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", NULL, "LOCAL_RANK=2 is not between 0 and 1"},
    {"RANK=0 WORLD_SIZE=4 LOCAL_WORLD_SIZE=5", NULL, "LOCAL_WORLD_SIZE=5 is not between 1 and 4"},
    {"RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=1", NULL, "set MASTER_ADDR"},
    {"RANK=0 WORLD_SIZE=2 MASTER_PORT=65536", NULL, "MASTER_PORT=65536 is not between 1 and 65535"},
    {"RANK=0 WORLD_SIZE=2 MASTER_PORT=http", NULL, "MASTER_PORT=http is not a number"},
    {"OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=3 "
     "OMPI_COMM_WORLD_LOCAL_SIZE=4 MASTER_PORT=9",
     "Open MPI 3/4 3/4 127.0.0.1:9", NULL},
    {"OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 "
     "OMPI_COMM_WORLD_LOCAL_SIZE=2",
     NULL, "mpirun -x MASTER_ADDR=HOST"},
    {"OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 "
     "OMPI_COMM_WORLD_LOCAL_SIZE=2 MASTER_ADDR=10.0.0.7 MASTER_PORT=9",
     "Open MPI 3/4 1/2 10.0.0.7:9", NULL},
    {"OMPI_COMM_WORLD_RANK=4 OMPI_COMM_WORLD_SIZE=4", NULL,
     "OMPI_COMM_WORLD_RANK=4, but OMPI_COMM_WORLD_SIZE=4"},
    {"RANK=0 WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4",
     "RANK and WORLD_SIZE 0/2 -1/-1 127.0.0.1:29500", NULL},
    {"PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2 MASTER_PORT=9", "MPICH 1/2 1/2 127.0.0.1:9",
     NULL},
    {"PMI_RANK=1 PMI_SIZE=2", NULL, "MPICH: 2 processes on several machines"},
    {"PMI_RANK=0 PMI_SIZE=1", "MPICH 0/1 -1/1 ", NULL},
    {"SLURM_JOB_ID=17 SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_PROCID=2 SLURM_LOCALID=0 SLURM_NNODES=2 "
     "MASTER_PORT=9 SLURM_JOB_NODELIST=gpu[07-08]",
     "Slurm 2/4 0/-1 gpu07:9", NULL},
    {"SLURM_JOB_ID=17 SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_PROCID=2 SLURM_LOCALID=0 MASTER_PORT=9 "
     "SLURM_JOB_NODELIST=gpu[07-08] SLURM_STEP_NODELIST=gpu08",
     "Slurm 2/4 0/-1 gpu08:9", NULL},
    {"SLURM_JOB_ID=17 SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_PROCID=2 SLURM_LOCALID=2 SLURM_NNODES=1 "
     "MASTER_PORT=9",
     "Slurm 2/4 2/4 127.0.0.1:9", NULL},
    {"SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_JOB_NODELIST=gpu[", NULL, "gpu[; set MASTER_ADDR"},
    /* mpirun inside of an allocation; srun --mpi=pmi2; MPICH's mpiexec, whose helpers srun has started */
    {"OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_SIZE=2 "
     "SLURM_JOB_NODELIST=gpu[07-08] SLURM_STEP_ID=0 SLURM_STEP_NODELIST=gpu08 SLURM_NTASKS=1 SLURM_PROCID=0 "
     "MASTER_PORT=9",
     "Open MPI 3/4 -1/2 gpu07:9", NULL},
    {"PMI_RANK=2 PMI_SIZE=4 SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_PROCID=2 SLURM_LOCALID=0 SLURM_NNODES=2 "
     "MASTER_PORT=9 SLURM_JOB_NODELIST=gpu[07-08]",
     "Slurm 2/4 0/-1 gpu07:9", NULL},
    {"PMI_RANK=3 PMI_SIZE=4 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2 SLURM_STEP_ID=0 SLURM_NTASKS=2 "
     "SLURM_PROCID=1 MASTER_PORT=9 SLURM_JOB_NODELIST=gpu[07-08]",
     "MPICH 3/4 1/2 gpu07:9", NULL},
    /* a shell of salloc, a batch script, an interactive step: single processes */
    {"SLURM_JOB_ID=17 SLURM_NTASKS=4 SLURM_PROCID=0", "none 0/1 -1/1 ", NULL},
    {"SLURM_JOB_ID=17 SLURM_STEP_ID=4294967290 SLURM_NTASKS=4 SLURM_PROCID=0", "none 0/1 -1/1 ", NULL},
    {"SLURM_JOB_ID=17 SLURM_STEP_ID=0 SLURM_NTASKS=1 SLURM_PROCID=0", "none 0/1 -1/1 ", NULL},
    {"SLURM_JOB_ID=17 SLURM_STEP_ID=3 SLURM_NTASKS=4 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0", "none 0/1 -1/1 ",
     NULL},
};

static void clear_environment(void) {
    static const char *const names[] = {"RANK",
                                        "WORLD_SIZE",
                                        "LOCAL_RANK",
                                        "LOCAL_WORLD_SIZE",
                                        "MASTER_ADDR",
                                        "MASTER_PORT",
                                        "LLMC_TOKEN",
                                        "LLMC_LISTEN_FD",
                                        "TORCHELASTIC_RUN_ID",
                                        "TORCHELASTIC_RESTART_COUNT",
                                        "OMPI_COMM_WORLD_RANK",
                                        "OMPI_COMM_WORLD_SIZE",
                                        "OMPI_COMM_WORLD_LOCAL_RANK",
                                        "OMPI_COMM_WORLD_LOCAL_SIZE",
                                        "OMPI_MCA_ess_base_jobid",
                                        "PMIX_NAMESPACE",
                                        "PMI_RANK",
                                        "PMI_SIZE",
                                        "PMI_JOBID",
                                        "MPI_LOCALRANKID",
                                        "MPI_LOCALNRANKS",
                                        "SLURM_JOB_ID",
                                        "SLURM_STEP_ID",
                                        "SLURM_PROCID",
                                        "SLURM_NTASKS",
                                        "SLURM_LOCALID",
                                        "SLURM_NNODES",
                                        "SLURM_STEP_NUM_TASKS",
                                        "SLURM_STEP_NUM_NODES",
                                        "SLURM_STEP_NODELIST",
                                        "SLURM_JOB_NODELIST"};
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) unsetenv(names[i]);
}

static void set_environment(const char *set) {
    char text[512], *rest = text;
    clear_environment();
    snprintf(text, sizeof text, "%s", set);
    for (char *word; (word = strsep(&rest, " "));) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        setenv(word, value, 1);
    }
}

static void test_environment(void **state) {
    for (size_t i = 0; i < ARRAY_LENGTH(env_cases); i++) {
        const struct env_case *c = &env_cases[i];
        struct group_env env;
        struct error err;
        set_environment(c->set);
        bool ok = group_env_read(&env, &err);
        if (c->error) {
            if (ok || !strstr(err.message, c->error))
                fail_msg("%s: %s, expected \"%s\"", c->set, ok ? "accepted" : err.message, c->error);
            continue;
        }
        if (!ok) fail_msg("%s: refused: %s", c->set, err.message);
        char got[512], port[16] = "";
        if (env.port) snprintf(port, sizeof port, ":%d", env.port);
        snprintf(got, sizeof got, "%s %d/%d %d/%d %s%s", env.source ? env.source : "none", (int)env.rank,
                 (int)env.world, (int)env.local_rank, (int)env.local_world, env.address, port);
        if (strcmp(got, c->expected) != 0) fail_msg("%s: %s, expected %s", c->set, got, c->expected);
    }
    clear_environment();
}

/* The processes of a run compute the same token and the same port before they connect. */
static void test_identity(void **state) {
    static const char *const jobs[] = {
        "RANK=0 WORLD_SIZE=2 TORCHELASTIC_RUN_ID=a TORCHELASTIC_RESTART_COUNT=0",
        "RANK=0 WORLD_SIZE=2 TORCHELASTIC_RUN_ID=a TORCHELASTIC_RESTART_COUNT=1",
        "RANK=0 WORLD_SIZE=2 TORCHELASTIC_RUN_ID=b TORCHELASTIC_RESTART_COUNT=0",
        "RANK=0 WORLD_SIZE=2 LLMC_TOKEN=x TORCHELASTIC_RUN_ID=b",
        "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_NAMESPACE=17",
        "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_NAMESPACE=18",
        "SLURM_JOB_ID=17 SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_PROCID=0 SLURM_NNODES=1",
        "SLURM_JOB_ID=17 SLURM_STEP_ID=1 SLURM_NTASKS=2 SLURM_PROCID=0 SLURM_NNODES=1",
    };
    struct group_env env[ARRAY_LENGTH(jobs)], again;
    struct error err;
    for (size_t i = 0; i < ARRAY_LENGTH(jobs); i++) {
        set_environment(jobs[i]);
        assert_true(group_env_read(&env[i], &err));
        assert_true(group_env_read(&again, &err));
        assert_int_equal(env[i].port, again.port);
        assert_in_range(env[i].port, 20000, 29999);
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(env[i].token, env[j].token);
            assert_int_not_equal(env[i].port, env[j].port);
        }
    }
    clear_environment();
}

static void test_slurm_lists(void **state) {
    static const char *const lists[][2] = {
        {"node1", "node1"},
        {"node1,node2", "node1"},
        {"node[01-04,7]", "node01"},
        {"node[7,9-12],other[1-2]", "node7"},
        {"rack[1-2]-a,b", "rack1-a"},
        {"a,b[1-2]", "a"},
        {"node[", NULL},
        {"node[]", NULL},
        {"node[x-y]", NULL},
        {"node[1-2", NULL},
        {"r[1-2]n[3-4]", NULL},
        {"", NULL},
    };
    char out[16];
    for (size_t i = 0; i < ARRAY_LENGTH(lists); i++) {
        bool ok = group_slurm_first_host(out, sizeof out, lists[i][0]);
        if (ok != (lists[i][1] != NULL) || (ok && strcmp(out, lists[i][1]) != 0))
            fail_msg("%s: %s, expected %s", lists[i][0], ok ? out : "refused",
                     lists[i][1] ? lists[i][1] : "refused");
    }
    assert_false(group_slurm_first_host(out, sizeof out, "a-name-that-is-too-long-for-the-buffer"));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_slurm_lists),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
