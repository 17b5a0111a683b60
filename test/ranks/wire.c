/* The test communicator of wire.h: every rank puts a copy of its tensor into shared memory, and whoever waits
 * takes what it needs from there. */
#include "test/ranks/wire.h"

#include <inttypes.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_RANKS = 8, MOST_TICKETS = 4096, ARENA = 16 << 20 /* floats of one rank */ };
enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST };

struct post {
    enum kind kind;
    int64_t count, root, at; /* elements; where the rank's copy is in its arena */
};
struct wire {
    _Atomic int64_t turns;
    _Atomic int64_t posted[MOST_RANKS]; /* collectives that the rank has started */
    _Atomic int64_t failed;
    struct post post[MOST_RANKS][MOST_TICKETS];
    float arena[MOST_RANKS][ARENA];
};
struct rank_comm {
    struct wire *wire;
    int64_t used, tickets;
    struct tensor on_its_way[MOST_TICKETS]; /* data NULL: arrived */
};

void *shared_memory(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(p != MAP_FAILED, "no shared memory");
    return p;
}

void poison(const struct tensor *t) { memset(t->data, 0xff, (size_t)tensor_bytes(t)); }

static int64_t start(struct comm *c, enum kind kind, struct tensor *t, int64_t root) {
    struct rank_comm *own = (struct rank_comm *)c->state;
    int64_t ticket = own->tickets++, n = tensor_count(t);
    check(ticket < MOST_TICKETS && own->used + n <= ARENA, "the test's communicator is full");
    check(t->dtype == DTYPE_F32 && n > 0, "the test's communicator is for fp32");
    memcpy(own->wire->arena[c->rank] + own->used, t->data, (size_t)n * sizeof(float));
    own->wire->post[c->rank][ticket] = (struct post){kind, n, root, own->used};
    own->used += n;
    own->on_its_way[ticket] = *t;
    poison(t);
    atomic_store(&own->wire->posted[c->rank], own->tickets);
    return ticket;
}
static int64_t wire_all_reduce(struct comm *c, struct tensor *t, void *s) {
    return start(c, ALL_REDUCE, t, 0);
}
static int64_t wire_reduce_scatter(struct comm *c, struct tensor *t, void *s) {
    return start(c, REDUCE_SCATTER, t, 0);
}
static int64_t wire_all_gather(struct comm *c, struct tensor *t, void *s) {
    return start(c, ALL_GATHER, t, 0);
}
static int64_t wire_broadcast(struct comm *c, struct tensor *t, int64_t root, void *s) {
    return start(c, BROADCAST, t, root);
}

static const float *sent(const struct wire *w, int64_t rank, int64_t ticket) {
    return w->arena[rank] + w->post[rank][ticket].at;
}

static void wire_wait(struct comm *c, int64_t ticket, void *stream) {
    struct rank_comm *own = (struct rank_comm *)c->state;
    struct wire *w = own->wire;
    check(ticket >= 0 && ticket < own->tickets, "a ticket that was never given out");
    struct tensor *t = &own->on_its_way[ticket];
    if (!t->data) return;
    const struct post mine = w->post[c->rank][ticket];
    double limit = now_seconds() + 60;
    for (int64_t r = 0; r < c->world; r++) {
        while (atomic_load(&w->posted[r]) <= ticket) {
            if (atomic_load(&w->failed)) _exit(2);
            check(now_seconds() < limit, "rank %" PRId64 " never started collective %" PRId64, r, ticket);
            sched_yield();
        }
        const struct post *p = &w->post[r][ticket];
        check(p->kind == mine.kind && p->count == mine.count && p->root == mine.root,
              "collective %" PRId64 " is another one on rank %" PRId64, ticket, r);
    }
    float *out = f32(t);
    struct comm_part part = comm_part(mine.count, c->world, c->rank);
    bool scatter = mine.kind == REDUCE_SCATTER;
    for (int64_t r = 0; r < c->world; r++) {
        struct comm_part theirs = comm_part(mine.count, c->world, r);
        const float *in = sent(w, r, ticket);
        if (mine.kind == ALL_REDUCE || scatter)
            for (int64_t i = scatter ? part.first : 0; i < (scatter ? part.first + part.count : mine.count);
                 i++)
                out[i] = r ? out[i] + in[i] : in[i];
        if (mine.kind == ALL_GATHER)
            memcpy(out + theirs.first, in + theirs.first, (size_t)theirs.count * sizeof *out);
        if (mine.kind == BROADCAST && r == mine.root) memcpy(out, in, (size_t)mine.count * sizeof *out);
    }
    t->data = NULL;
}

static void wire_close(struct comm *c) { free(c->state); }

struct comm wire_comm(struct wire *wire, int64_t rank, int64_t world) {
    struct rank_comm *own = (struct rank_comm *)xcalloc(1, sizeof *own);
    own->wire = wire;
    return (struct comm){.rank = rank,
                         .world = world,
                         .kind = "test",
                         .state = own,
                         .all_reduce = wire_all_reduce,
                         .reduce_scatter = wire_reduce_scatter,
                         .all_gather = wire_all_gather,
                         .broadcast = wire_broadcast,
                         .wait = wire_wait,
                         .close = wire_close};
}

int64_t wire_started(const struct comm *c) { return ((const struct rank_comm *)c->state)->tickets; }
const void *wire_newest(const struct comm *c) {
    const struct rank_comm *own = (const struct rank_comm *)c->state;
    return own->tickets ? own->on_its_way[own->tickets - 1].data : NULL;
}

struct wire *wire_new(void) {
    return (struct wire *)shared_memory(sizeof(struct wire));
}
void wire_free(struct wire *w) { munmap(w, sizeof *w); }
void wire_fail(struct wire *w) { atomic_store(&w->failed, 1); }

void wire_turn(struct wire *w, int64_t rank) {
    while (atomic_load(&w->turns) != rank) {
        if (atomic_load(&w->failed)) _exit(2);
        sched_yield();
    }
}
void wire_turn_done(struct wire *w) { atomic_fetch_add(&w->turns, 1); }
