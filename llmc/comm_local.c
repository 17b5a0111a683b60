/* The collectives of a single process. */
#include "comm.h"

#include <stdlib.h>

static void local_identity(struct comm *c, struct ctx *ctx, struct tensor *t) {}
static void local_barrier(struct comm *c) {}
static void local_close(struct comm *c) { free(c); }

struct comm *comm_open_local(void) {
    struct comm *c = (struct comm *)xcalloc(1, sizeof *c);
    *c = (struct comm){.world = 1,
                       .all_reduce = local_identity,
                       .broadcast = local_identity,
                       .barrier = local_barrier,
                       .close = local_close};
    return c;
}
