/* Collectives between processes on CPUs, over the streams of comm_mesh.h. Order: the plan of a collective;
 * headers; moving bytes and adding; the thread; the interface.
 *
 * Everyone sends everyone their part directly: the fewest bytes that are possible, in the fewest steps, and
 * the owner of a part has the values of all ranks side by side and adds them in the order of ranks.
 *
 *   reduce_scatter   I send part j to rank j, and add up what comes for my part
 *   all_gather       I send my part to everyone
 *   all_reduce       both, the second following the first piece by piece
 *   broadcast        the root sends part j to rank j and its own part to everyone; everyone passes theirs on
 *
 * So all are two segments to each rank and two from each, the second limited by what is ready of the own
 * part. In front goes a header that the receiver compares with its own. */
#include "llmc/ranks/comm.h"
#include "llmc/ranks/comm_mesh.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST };
static const char *const kind_names[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast"};

/* Elements added at a time: the sums stay in the first-level cache. */
enum { ADD_BLOCK = 1024 };

struct job {
    enum kind kind;
    struct tensor tensor;
    int64_t count, root, number;
};

struct header {
    uint64_t number;
    int64_t count;
    uint16_t kind, dtype;
    int32_t root;
    char name[40]; /* for the message only: views of the same memory may be named differently */
};

/* One other rank's share in the collective under way. */
struct lane {
    struct header head; /* as it comes */
    size_t head_sent, head_got;
    int64_t send_bytes[2], sent[2];
    const uint8_t *send_from[2];
    int64_t receive_bytes[2], received[2];
    uint8_t *receive_to[2]; /* [0] is NULL where what comes is added */
};

struct sockets {
    struct comm comm;
    struct mesh *mesh;
    char kind[64];

    pthread_t thread;
    pthread_mutex_t lock; /* for the rest of this group */
    pthread_cond_t work, done;
    struct job *jobs; /* by number modulo capacity */
    int64_t capacity, issued, finished;
    bool stop;

    /* the collective under way */
    struct job job;
    struct header head;
    struct lane *lanes; /* by rank */
    struct comm_part own;
    bool adds;
    int64_t ready; /* bytes of the own part that may be sent to everyone */
    const uint8_t **operands;
    char where[128];
};

/* --- the plan --- */

static struct comm_part byte_part(const struct sockets *s, int64_t rank) {
    struct comm_part part = comm_part(s->job.count, s->comm.world, rank);
    int64_t size = (int64_t)dtype_size(s->job.tensor.dtype);
    return (struct comm_part){part.first * size, part.count * size};
}

static void plan(struct sockets *s) {
    enum kind kind = s->job.kind;
    int64_t me = s->comm.rank, world = s->comm.world, root = s->job.root;
    uint8_t *data = (uint8_t *)s->job.tensor.data;
    struct comm_part own = s->own = byte_part(s, me);
    bool spreads = kind == BROADCAST && me == root, learns = kind == BROADCAST && me != root;
    s->adds = kind == ALL_REDUCE || kind == REDUCE_SCATTER;
    s->ready = kind == ALL_GATHER || spreads ? own.count : 0;
    for (int64_t r = 0; r < world; r++) {
        struct lane *l = &s->lanes[r];
        struct comm_part part = byte_part(s, r);
        memset(l, 0, sizeof *l);
        l->send_from[0] = data + part.first;
        l->send_bytes[0] = s->adds || spreads ? part.count : 0;
        l->send_from[1] = data + own.first;
        l->send_bytes[1] = kind == REDUCE_SCATTER || (learns && r == root) ? 0 : own.count;
        l->receive_to[0] = s->adds ? NULL : data + own.first;
        l->receive_bytes[0] = s->adds || (learns && r == root) ? own.count : 0;
        l->receive_to[1] = data + part.first;
        l->receive_bytes[1] = kind == REDUCE_SCATTER || spreads ? 0 : part.count;
    }
    memset(&s->head, 0, sizeof s->head);
    s->head.number = (uint64_t)s->job.number;
    s->head.count = s->job.count;
    s->head.kind = (uint16_t)kind;
    s->head.dtype = (uint16_t)s->job.tensor.dtype;
    s->head.root = (int32_t)root;
    snprintf(s->head.name, sizeof s->head.name, "%s", s->job.tensor.name ? s->job.tensor.name : "");
    snprintf(s->where, sizeof s->where, "%s %lld of %.39s", kind_names[kind], (long long)s->job.number,
             s->head.name);
}

/* --- headers --- */

static const char *header_text(const struct header *h) {
    const char *root = h->kind == BROADCAST ? temp_printf(" from rank %d", h->root) : "";
    return temp_printf("%s%s of %.*s, %lld elements of %s, as number %llu",
                       h->kind <= BROADCAST ? kind_names[h->kind] : "?", root, (int)sizeof h->name, h->name,
                       (long long)h->count, h->dtype < DTYPE_COUNT ? dtype_name((enum dtype)h->dtype) : "?",
                       (unsigned long long)h->number);
}

static void compare_header(struct sockets *s, int64_t rank) {
    const struct header *theirs = &s->lanes[rank].head, *ours = &s->head;
    check(theirs->number == ours->number && theirs->count == ours->count && theirs->kind == ours->kind &&
              theirs->dtype == ours->dtype && theirs->root == ours->root,
          "the ranks have lost step: %s does %s, but rank %lld does %s. A defect of the program, or options "
          "that differ between the ranks",
          group_rank_text(s->comm.group->state, rank), header_text(theirs), (long long)s->comm.rank,
          header_text(ours));
}

/* Sent and received at a multiple of 4 bytes, so that no element of what follows lies at the end and the
 * beginning of a ring. */
static bool send_header(struct sockets *s, int64_t to) {
    static const char zeros[4] = {0};
    struct lane *l = &s->lanes[to];
    for (uint64_t odd; l->head_sent == 0 && (odd = mesh_sent(s->mesh, to) % 4) != 0;)
        if (mesh_send(s->mesh, to, zeros, 4 - odd) == 0) return false;
    size_t n = mesh_send(s->mesh, to, (const char *)&s->head + l->head_sent, sizeof s->head - l->head_sent);
    l->head_sent += n;
    return n > 0;
}

static bool receive_header(struct sockets *s, int64_t from) {
    char zeros[4];
    struct lane *l = &s->lanes[from];
    for (uint64_t odd; l->head_got == 0 && (odd = mesh_received(s->mesh, from) % 4) != 0;)
        if (mesh_receive(s->mesh, from, zeros, 4 - odd) == 0) return false;
    size_t n = mesh_receive(s->mesh, from, (char *)&l->head + l->head_got, sizeof l->head - l->head_got);
    l->head_got += n;
    if (n > 0 && l->head_got == sizeof l->head) compare_header(s, from);
    return n > 0;
}

/* --- moving bytes and adding --- */

static bool send_some(struct sockets *s, int64_t to) {
    struct lane *l = &s->lanes[to];
    if (l->head_sent < sizeof s->head) return send_header(s, to);
    int i = l->sent[0] < l->send_bytes[0] ? 0 : 1;
    int64_t limit = i == 0 ? l->send_bytes[0] : min_i64(l->send_bytes[1], s->ready);
    if (l->sent[i] >= limit) return false;
    size_t n = mesh_send(s->mesh, to, l->send_from[i] + l->sent[i], (size_t)(limit - l->sent[i]));
    l->sent[i] += (int64_t)n;
    return n > 0;
}

static bool receive_some(struct sockets *s, int64_t from) {
    struct lane *l = &s->lanes[from];
    if (l->head_got < sizeof l->head) return receive_header(s, from);
    int i = l->received[0] < l->receive_bytes[0] ? 0 : 1;
    if ((i == 0 && s->adds) || l->received[i] >= l->receive_bytes[i]) return false;
    size_t n = mesh_receive(s->mesh, from, l->receive_to[i] + l->received[i],
                            (size_t)(l->receive_bytes[i] - l->received[i]));
    l->received[i] += (int64_t)n;
    if (i == 0) s->ready += (int64_t)n;
    return n > 0;
}

static void add_f32(float *out, const uint8_t **operands, int64_t world, int64_t n) {
    float sum[ADD_BLOCK];
    for (int64_t at = 0; at < n; at += ADD_BLOCK) {
        int64_t count = min_i64(ADD_BLOCK, n - at);
        memcpy(sum, (const float *)operands[0] + at, (size_t)count * sizeof *sum);
        for (int64_t r = 1; r < world; r++) {
            const float *x = (const float *)operands[r] + at;
            for (int64_t i = 0; i < count; i++) sum[i] += x[i];
        }
        memcpy(out + at, sum, (size_t)count * sizeof *sum);
    }
}

static void add_bf16(uint16_t *out, const uint8_t **operands, int64_t world, int64_t n) {
    float sum[ADD_BLOCK];
    for (int64_t at = 0; at < n; at += ADD_BLOCK) {
        int64_t count = min_i64(ADD_BLOCK, n - at);
        for (int64_t r = 0; r < world; r++) {
            const uint16_t *x = (const uint16_t *)operands[r] + at;
            if (r == 0)
                for (int64_t i = 0; i < count; i++) sum[i] = f32_from_bf16(x[i]);
            else
                for (int64_t i = 0; i < count; i++) sum[i] += f32_from_bf16(x[i]);
        }
        for (int64_t i = 0; i < count; i++) out[at + i] = bf16_from_f32(sum[i]);
    }
}

/* What has come from all ranks for the own part. */
static bool add_some(struct sockets *s) {
    int64_t size = (int64_t)dtype_size(s->job.tensor.dtype), world = s->comm.world;
    int64_t bytes = s->adds ? s->own.count - s->ready : 0;
    uint8_t *own = (uint8_t *)s->job.tensor.data + s->own.first + s->ready;
    for (int64_t r = 0; r < world && bytes > 0; r++) {
        if (r == s->comm.rank)
            s->operands[r] = own;
        else if (s->lanes[r].head_got < sizeof s->head)
            bytes = 0;
        else
            bytes = (int64_t)mesh_peek(s->mesh, r, &s->operands[r], (size_t)bytes);
    }
    bytes -= bytes % size;
    if (bytes <= 0) return false;
    if (s->job.tensor.dtype == DTYPE_F32)
        add_f32((float *)own, s->operands, world, bytes / size);
    else
        add_bf16((uint16_t *)own, s->operands, world, bytes / size);
    for (int64_t r = 0; r < world; r++) {
        if (r == s->comm.rank) continue;
        mesh_take(s->mesh, r, (size_t)bytes);
        s->lanes[r].received[0] += bytes;
    }
    s->ready += bytes;
    return true;
}

static bool complete(const struct sockets *s, int64_t rank) {
    const struct lane *l = &s->lanes[rank];
    bool headers = l->head_sent == sizeof l->head && l->head_got == sizeof l->head;
    return headers && l->sent[0] == l->send_bytes[0] && l->sent[1] == l->send_bytes[1] &&
           l->received[0] == l->receive_bytes[0] && l->received[1] == l->receive_bytes[1];
}

static void run_job(struct sockets *s) {
    plan(s);
    s->mesh->where = s->where;
    int64_t me = s->comm.rank, world = s->comm.world;
    for (;;) {
        mesh_mark(s->mesh);
        bool moved = false;
        int64_t missing = -1;
        /* beginning with the next rank: not all send to rank 0 first */
        for (int64_t i = 1; i < world; i++) {
            int64_t r = (me + i) % world;
            moved |= send_some(s, r);
            moved |= receive_some(s, r);
        }
        moved |= add_some(s);
        mesh_notify(s->mesh);
        for (int64_t r = 0; r < world && missing < 0; r++)
            if (r != me && !complete(s, r)) missing = r;
        if (missing < 0) return;
        if (moved) {
            group_beat(s->comm.group);
            continue;
        }
        group_waits_for(s->comm.group, missing);
        mesh_wait(s->mesh);
    }
}

/* --- the thread --- */

static void *sockets_main(void *arg) {
    struct sockets *s = (struct sockets *)arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (s->finished == s->issued && !s->stop) pthread_cond_wait(&s->work, &s->lock);
        if (s->finished == s->issued) break;
        s->job = s->jobs[(s->finished + 1) % s->capacity];
        pthread_mutex_unlock(&s->lock);
        run_job(s);
        pthread_mutex_lock(&s->lock);
        s->finished++;
        pthread_cond_broadcast(&s->done);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* --- the interface --- */

static struct sockets *sockets_of(struct comm *c) { return (struct sockets *)c->state; }

static int64_t issue(struct comm *c, enum kind kind, const struct tensor *t, int64_t root) {
    struct sockets *s = sockets_of(c);
    check(t->dtype == DTYPE_F32 || t->dtype == DTYPE_BF16 || kind == ALL_GATHER || kind == BROADCAST,
          "%s: %s is for fp32 and bf16", tensor_text(t), kind_names[kind]);
    check(root >= 0 && root < c->world, "%s: %s from rank %lld of %lld", tensor_text(t), kind_names[kind],
          (long long)root, (long long)c->world);
    pthread_mutex_lock(&s->lock);
    if (s->issued - s->finished == s->capacity) {
        int64_t capacity = 2 * s->capacity;
        struct job *jobs = (struct job *)xcalloc((size_t)capacity, sizeof *jobs);
        for (int64_t i = s->finished + 1; i <= s->issued; i++) jobs[i % capacity] = s->jobs[i % s->capacity];
        free(s->jobs);
        s->jobs = jobs;
        s->capacity = capacity;
    }
    int64_t ticket = ++s->issued;
    s->jobs[ticket % s->capacity] = (struct job){kind, *t, tensor_count(t), root, ticket};
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    return ticket;
}

static int64_t sockets_all_reduce(struct comm *c, struct tensor *t, void *stream) {
    return issue(c, ALL_REDUCE, t, 0);
}
static int64_t sockets_reduce_scatter(struct comm *c, struct tensor *t, void *stream) {
    return issue(c, REDUCE_SCATTER, t, 0);
}
static int64_t sockets_all_gather(struct comm *c, struct tensor *t, void *stream) {
    return issue(c, ALL_GATHER, t, 0);
}
static int64_t sockets_broadcast(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return issue(c, BROADCAST, t, root);
}

static void sockets_wait(struct comm *c, int64_t ticket, void *stream) {
    struct sockets *s = sockets_of(c);
    pthread_mutex_lock(&s->lock);
    check(ticket <= s->issued, "comm: ticket %lld was not given out yet", (long long)ticket);
    if (ticket > s->finished) {
        struct group_wait before =
            group_wait_begin(c->group, kind_names[s->jobs[ticket % s->capacity].kind], ticket);
        while (s->finished < ticket) pthread_cond_wait(&s->done, &s->lock);
        group_wait_end(c->group, before);
    }
    pthread_mutex_unlock(&s->lock);
}

static void sockets_close(struct comm *c) {
    struct sockets *s = sockets_of(c);
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    mesh_close(s->mesh);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->done);
    free(s->jobs);
    free(s->lanes);
    free(s->operands);
    free(s);
}

struct comm *comm_open_sockets(struct group *g, struct error *err) {
    check(g->state, "collectives between processes in a run of one process");
    struct mesh *mesh = mesh_open(g, err);
    if (!mesh) return NULL;
    struct sockets *s = (struct sockets *)xcalloc(1, sizeof *s);
    s->mesh = mesh;
    s->lanes = (struct lane *)xcalloc((size_t)g->world, sizeof *s->lanes);
    s->operands = (const uint8_t **)xcalloc((size_t)g->world, sizeof *s->operands);
    s->capacity = 64;
    s->jobs = (struct job *)xcalloc((size_t)s->capacity, sizeof *s->jobs);
    snprintf(s->kind, sizeof s->kind, "%s",
             mesh->shared == 0              ? "TCP"
             : mesh->shared == g->world - 1 ? "shared memory"
                                            : "shared memory and TCP");
    s->comm = (struct comm){.group = g,
                            .rank = g->rank,
                            .world = g->world,
                            .kind = s->kind,
                            .state = s,
                            .all_reduce = sockets_all_reduce,
                            .reduce_scatter = sockets_reduce_scatter,
                            .all_gather = sockets_all_gather,
                            .broadcast = sockets_broadcast,
                            .wait = sockets_wait,
                            .close = sockets_close};
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    pthread_cond_init(&s->done, NULL);
    sigset_t all, before; /* signals are the business of the main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int status = pthread_create(&s->thread, NULL, sockets_main, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    check(status == 0, "cannot start the thread of the collectives: %s", strerror(status));
    return &s->comm;
}
