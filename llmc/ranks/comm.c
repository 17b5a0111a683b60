/* Chooses the communicator for the device and the number of ranks. The one for a single process is here:
 * its collectives have nothing to do. */
#include "llmc/ranks/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t idle_collective(struct comm *c, struct tensor *t, void *stream) { return 0; }
static int64_t idle_from_root(struct comm *c, struct tensor *t, int64_t root, void *stream) { return 0; }
static void idle_wait(struct comm *c, int64_t ticket, void *stream) {}
static void idle_close(struct comm *c) { free(c); }

static struct comm *comm_open_idle(struct group *g, int64_t world, int64_t parts, const char *kind) {
    struct comm *c = (struct comm *)xcalloc(1, sizeof *c);
    *c = (struct comm){.group = g,
                       .world = world,
                       .parts = parts ? parts : world,
                       .kind = kind,
                       .all_reduce = idle_collective,
                       .reduce_scatter = idle_collective,
                       .all_gather = idle_collective,
                       .broadcast = idle_from_root,
                       .gather = idle_from_root,
                       .scatter = idle_from_root,
                       .wait = idle_wait,
                       .close = idle_close};
    return c;
}

struct comm *comm_open_local(struct group *g) {
    return comm_open_idle(g, 1, 1, "one process");
}
struct comm *comm_open_plan(int64_t world, int64_t parts) {
    return comm_open_idle(NULL, world, parts, "plan");
}

/* Ranks whose memory is the host's and ranks with GPUs would open different communicators and wait for each
 * other for ever: --device auto may have found no GPU on one of them. */
static bool same_memory(struct group *g, const struct device *device, struct error *err) {
    struct {
        bool unified;
        char device[24], host[64];
    } mine = {device->unified, "", ""}, *all = xcalloc((size_t)g->world, sizeof mine);
    snprintf(mine.device, sizeof mine.device, "%s", device->backend);
    snprintf(mine.host, sizeof mine.host, "%s", g->host);
    group_exchange(g, all, &mine, sizeof mine);
    int64_t r = 1;
    while (r < g->world && all[r].unified == all[0].unified) r++;
    bool ok =
        r == g->world ||
        fail(err,
             "rank 0 (%s) uses the device %s, rank %lld (%s) %s: give all of them --device %s or --device %s",
             all[0].host, all[0].device, (long long)r, all[r].host, all[r].device, all[0].device,
             all[r].device);
    free(all);
    return ok;
}

struct comm *comm_open(struct group *g, struct device *device, int64_t parts, struct error *err) {
    if (!g || g->world == 1) return comm_open_local(g);
    if (parts == 0) parts = g->world;
    check(parts > 0 && g->world % parts == 0, "comm_open: %lld ranks in teams of %lld", (long long)g->world,
          (long long)parts);
    if (!same_memory(g, device, err)) return NULL;
    if (device->unified) return comm_open_shm(g, parts, err);
    return comm_open_nccl(g, device, parts, err);
}
