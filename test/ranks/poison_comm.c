/* When a collective starts, its tensor is copied and then poisoned. wait() puts the copy back and runs the
 * collective of the inner communicator. */
#include "test/ranks/poison_comm.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, GATHER, SCATTER };

struct started {
    enum kind kind;
    struct tensor tensor;
    int64_t root;
    void *values; /* NULL: done */
};
struct poison_comm {
    struct comm comm, *inner;
    struct started *started; /* (count) by ticket */
    int64_t count;
};

static struct poison_comm *of(const struct comm *c) { return (struct poison_comm *)c->state; }

void poison(const struct tensor *t) { memset(t->data, 0xff, (size_t)tensor_bytes(t)); }

static int64_t start(struct comm *c, enum kind kind, struct tensor *t, int64_t root) {
    struct poison_comm *p = of(c);
    size_t bytes = (size_t)tensor_bytes(t);
    p->started = (struct started *)xrealloc(p->started, (size_t)(p->count + 1) * sizeof *p->started);
    p->started[p->count] = (struct started){kind, *t, root, xmalloc(bytes)};
    memcpy(p->started[p->count].values, t->data, bytes);
    poison(t);
    return p->count++;
}
static int64_t poison_all_reduce(struct comm *c, struct tensor *t, void *stream) {
    return start(c, ALL_REDUCE, t, 0);
}
static int64_t poison_reduce_scatter(struct comm *c, struct tensor *t, void *stream) {
    return start(c, REDUCE_SCATTER, t, 0);
}
static int64_t poison_all_gather(struct comm *c, struct tensor *t, void *stream) {
    return start(c, ALL_GATHER, t, 0);
}
static int64_t poison_broadcast(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return start(c, BROADCAST, t, root);
}
static int64_t poison_gather(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return start(c, GATHER, t, root);
}
static int64_t poison_scatter(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return start(c, SCATTER, t, root);
}

static int64_t run_inner(struct comm *inner, struct started *s, void *stream) {
    if (s->kind == ALL_REDUCE) return inner->all_reduce(inner, &s->tensor, stream);
    if (s->kind == REDUCE_SCATTER) return inner->reduce_scatter(inner, &s->tensor, stream);
    if (s->kind == ALL_GATHER) return inner->all_gather(inner, &s->tensor, stream);
    if (s->kind == GATHER) return inner->gather(inner, &s->tensor, s->root, stream);
    if (s->kind == SCATTER) return inner->scatter(inner, &s->tensor, s->root, stream);
    return inner->broadcast(inner, &s->tensor, s->root, stream);
}

static void poison_wait(struct comm *c, int64_t ticket, void *stream) {
    struct poison_comm *p = of(c);
    check(ticket >= 0 && ticket < p->count, "ticket %" PRId64 " was never given out", ticket);
    struct started *s = &p->started[ticket];
    if (!s->values) return;
    memcpy(s->tensor.data, s->values, (size_t)tensor_bytes(&s->tensor));
    free(s->values);
    s->values = NULL;
    p->inner->wait(p->inner, run_inner(p->inner, s, stream), stream);
    for (int64_t r = 0; s->kind == REDUCE_SCATTER && r < c->parts; r++) {
        struct comm_part part = comm_part(tensor_count(&s->tensor), c->parts, r);
        struct tensor theirs = tensor_range(&s->tensor, part.first, part.count);
        if (r != c->part) poison(&theirs);
    }
}

static void poison_close(struct comm *c) {
    struct poison_comm *p = of(c);
    for (int64_t i = 0; i < p->count; i++) free(p->started[i].values);
    p->inner->close(p->inner);
    free(p->started);
    free(p);
}

struct comm *poison_comm_open(struct comm *inner) {
    struct poison_comm *p = (struct poison_comm *)xcalloc(1, sizeof *p);
    p->inner = inner;
    p->comm = (struct comm){.group = inner->group,
                            .rank = inner->rank,
                            .world = inner->world,
                            .part = inner->part,
                            .parts = inner->parts,
                            .kind = "test",
                            .state = p,
                            .all_reduce = poison_all_reduce,
                            .reduce_scatter = poison_reduce_scatter,
                            .all_gather = poison_all_gather,
                            .broadcast = poison_broadcast,
                            .gather = poison_gather,
                            .scatter = poison_scatter,
                            .wait = poison_wait,
                            .close = poison_close};
    return &p->comm;
}

int64_t poison_comm_started(const struct comm *c) { return of(c)->count; }
const void *poison_comm_newest(const struct comm *c) {
    return of(c)->count ? of(c)->started[of(c)->count - 1].tensor.data : NULL;
}
