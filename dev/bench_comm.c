/* Measures the collectives between CPU ranks of this machine.
 *     build/bench_comm RANKS [MIB]     starts RANKS processes; tensors of 4 KiB to MIB (64)
 *     mpirun -np 4 build/bench_comm    under a launcher
 * GB/s is the size of the tensor divided by the best time. "bus GB/s" counts what each rank must send, as
 * nccl-tests does: 2 (p-1)/p of the tensor for all_reduce, (p-1)/p for reduce_scatter and all_gather. */
#include "llmc/ranks/comm.h"
#include "llmc/process/launch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KINDS = 4 };
static const char *const names[KINDS] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast"};

static void run_once(struct comm *c, int kind, struct tensor *t) {
    int64_t ticket = kind == 0   ? c->all_reduce(c, t, NULL)
                     : kind == 1 ? c->reduce_scatter(c, t, NULL)
                     : kind == 2 ? c->all_gather(c, t, NULL)
                                 : c->broadcast(c, t, 0, NULL);
    c->wait(c, ticket, NULL);
}

/* The best time of each rank, in seconds; returns that of the slowest rank. */
static double measure(struct comm *c, int kind, struct tensor *t) {
    enum { FEWEST = 5, MOST = 2000 };
    double best = INFINITY, started = now_seconds(), *all = (double *)xcalloc((size_t)c->world, sizeof *all);
    int32_t go_on = 1;
    for (int64_t i = 0; go_on; i++) {
        double before = now_seconds();
        run_once(c, kind, t);
        best = fmin(best, now_seconds() - before);
        if (i % FEWEST != FEWEST - 1) continue;
        go_on = i < MOST && now_seconds() - started < 0.3;
        group_broadcast(c->group, &go_on, sizeof go_on, 0);
    }
    group_exchange(c->group, all, &best, sizeof best);
    for (int64_t r = 0; r < c->world; r++) best = fmax(best, all[r]);
    free(all);
    return best;
}

static void bench(struct comm *c, double most) {
    double share = (double)(c->world - 1) / (double)c->world;
    if (c->rank == 0)
        printf("%lld ranks, %s\n%15s %12s %10s %9s %9s\n", (long long)c->world, c->kind, "", "bytes", "us",
               "GB/s", "bus GB/s");
    struct tensor t =
        tensor_make("bench", DTYPE_F32, xcalloc((size_t)most / 4, 4), (int64_t)(most / 4), 0, 0, 0);
    for (int kind = 0; kind < KINDS; kind++)
        for (double bytes = 4096; bytes <= most; bytes *= 4) {
            t.dim[0] = (int64_t)(bytes / 4);
            double seconds = measure(c, kind, &t), bus = bytes * (kind == 0   ? 2.0 * share
                                                                  : kind == 3 ? 1.0
                                                                              : share);
            if (c->rank == 0)
                printf("%15s %12.0f %10.1f %9.3f %9.3f\n", names[kind], bytes, 1e6 * seconds,
                       1e-9 * bytes / seconds, 1e-9 * bus / seconds);
        }
    free(t.data);
}

int main(int argc, char **argv) {
    int64_t ranks = argc > 1 ? atoll(argv[1]) : 0;
    double most = (argc > 2 ? atof(argv[2]) : 64.0) * 1048576.0;
    check(ranks >= 0 && most >= 4096, "usage: build/bench_comm RANKS [MIB]");
    if (ranks > 1 && !launch_is_child()) {
        struct launch_options launch = {.ranks = ranks, .bind = true, .option = ""};
        return launch_run(&launch, argc, argv);
    }
    struct group_options options = {.timeout = 30.0};
    struct error err;
    struct group *g = group_open(&options, &err);
    check(g, "%s", err.message);
    check(g->world > 1, "one process has nothing to exchange: build/bench_comm RANKS, or start it by mpirun");
    struct comm *c = comm_open_shm(g, g->world, &err);
    check(c, "%s", err.message);
    bench(c, most);
    c->close(c);
    group_close(g);
    return 0;
}
