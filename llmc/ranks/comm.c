/* Chooses the communicator for the device and the number of ranks. The one for a single process is here: its
 * collectives have nothing to do. */
#include "llmc/ranks/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t idle_collective(struct comm *c, struct tensor *t, void *stream) { return 0; }
static int64_t idle_broadcast(struct comm *c, struct tensor *t, int64_t root, void *stream) { return 0; }
static void idle_wait(struct comm *c, int64_t ticket, void *stream) {}
static void idle_close(struct comm *c) { free(c); }

static struct comm *comm_open_idle(struct group *g, int64_t world, const char *kind) {
    struct comm *c = (struct comm *)xcalloc(1, sizeof *c);
    *c = (struct comm){.group = g,
                       .world = world,
                       .kind = kind,
                       .all_reduce = idle_collective,
                       .reduce_scatter = idle_collective,
                       .all_gather = idle_collective,
                       .broadcast = idle_broadcast,
                       .wait = idle_wait,
                       .close = idle_close};
    return c;
}

struct comm *comm_open_local(struct group *g) {
    return comm_open_idle(g, 1, "one process");
}
struct comm *comm_open_plan(int64_t world) {
    return comm_open_idle(NULL, world, "plan");
}

/* If --device auto finds no GPU on one rank, that rank would use a different communicator and deadlock. */
static bool same_backend(struct group *g, const struct device *device, struct error *err) {
    struct {
        char backend[16], host[64];
    } mine = {"", ""}, *all = xcalloc((size_t)g->world, sizeof mine);
    snprintf(mine.backend, sizeof mine.backend, "%s", device->backend);
    snprintf(mine.host, sizeof mine.host, "%s", g->host);
    group_exchange(g, all, &mine, sizeof mine);
    int64_t r = 1;
    while (r < g->world && strcmp(all[r].backend, all[0].backend) == 0) r++;
    bool ok = r == g->world ||
              fail(err,
                   "rank 0 (%s) uses the device %s, rank %lld (%s) %s: give all of them --device %s or "
                   "--device %s",
                   all[0].host, all[0].backend, (long long)r, all[r].host, all[r].backend, all[0].backend,
                   all[r].backend);
    free(all);
    return ok;
}

struct comm *comm_open(struct group *g, struct device *device, struct error *err) {
    if (!g || g->world == 1) return comm_open_local(g);
    if (!same_backend(g, device, err)) return NULL;
    if (device->unified) return comm_open_shm(g, err);
    return comm_open_nccl(g, device, err);
}
