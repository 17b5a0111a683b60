/* Collectives among the CPU ranks of one machine, through shared memory.
 *
 * Rank 0 creates the memory as a memfd, and the others open it through /proc. It has no name, so nothing
 * is left behind, not even after kill -9.
 *
 * Every rank owns a window of that memory. A collective is a series of rounds. In a round each rank
 * copies a piece of its tensor into its window, increments its round counter and waits until all
 * counters have reached that value; then it reads the windows of the others. Windows have two halves
 * that alternate: a rank that has counted round k + 1 has finished reading round k, so round k + 2 may
 * overwrite that half.
 *
 *   reduce_scatter   each rank gives a piece of every part; the part's owner in each team adds them in the
 *                    order of ranks, so that teams change no bit
 *   all_gather       each rank gives a piece of its own part to its team
 *   all_reduce       both rounds for each piece
 *   broadcast        the root gives a piece of its tensor to all
 *   gather           each rank gives a piece of its own part to the root of its team
 *   scatter          the root of a team gives a piece of every part
 *
 * A collective runs inside wait(). A thread that ran it earlier, beside the caller's computation, would
 * gain nothing, because the ranks' own threads use all cores: 2 ranks on 2 cores took 34.5 ms a step
 * without and 33.9 ms with such a thread, and 84.9 and 86.2 ms for a model with large gradients (Xeon,
 * AMX). */
#include "llmc/ranks/comm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, GATHER, SCATTER };
static const char *const kind_names[] = {"all_reduce", "reduce_scatter", "all_gather",
                                         "broadcast",  "gather",         "scatter"};

enum {
    PIECE = 256 << 10,      /* bytes: the windows of a few ranks stay in cache */
    WINDOWS_MAX = 64 << 20, /* bytes of all windows: the pieces of many ranks are smaller */
    PIECE_MIN = 4 << 10,
    ADD_BLOCK = 1024 /* elements added at a time: the sums stay in the first-level cache */
};
#define SPIN_SECONDS 20e-6 /* before sleeping; waking up takes about as long */

/* Describes the collective of a round. Ranks compare it before they use each other's data. */
struct header {
    int64_t number, count;
    int32_t kind, dtype, root;
    char name[40]; /* for the message only: views of the same memory may be named differently */
};
struct window {
    _Alignas(64) _Atomic uint32_t round; /* a futex: the last round whose piece is in the window */
    _Alignas(64) _Atomic uint32_t sleepers;
    struct header head[2]; /* by half */
    _Alignas(4096) uint8_t data[];
};

struct job {
    struct tensor tensor;
    struct header head;
};

struct shm {
    struct comm comm;
    uint8_t *map;
    size_t window_bytes, map_bytes;
    int64_t piece; /* bytes */
    uint32_t round;
    struct job *jobs; /* of the tickets first + 1 ... issued */
    int64_t capacity, first, issued, finished;
};

static struct window *window_of(const struct shm *s, int64_t rank) {
    return (struct window *)(s->map + (size_t)rank * s->window_bytes);
}
/* Room for a piece in the current round's half; each half has such a slot for every part. */
static uint8_t *slot_of(const struct shm *s, int64_t rank, int64_t slot) {
    return window_of(s, rank)->data + ((s->round & 1) * s->comm.parts + slot) * s->piece;
}
/* The rank of this rank's team that owns the part. */
static int64_t owner_of(const struct shm *s, int64_t part) { return s->comm.rank - s->comm.part + part; }

/* --- rounds --- */

static const char *header_text(const struct header *h) {
    return temp_printf(
        "%s%s of %.39s, %" PRId64 " elements of %s, number %" PRId64, kind_names[h->kind],
        h->kind >= BROADCAST ? temp_printf(" %s rank %d", h->kind == GATHER ? "to" : "from", h->root) : "",
        h->name, h->count, dtype_name((enum dtype)h->dtype), h->number);
}

static void compare_header(const struct shm *s, int64_t rank, const struct header *ours) {
    const struct header *theirs = &window_of(s, rank)->head[s->round & 1];
    check(memcmp(theirs, ours, offsetof(struct header, name)) == 0,
          "the ranks call different collectives: %s calls %s, rank %" PRId64 " calls %s. A defect of the "
          "program, or options that differ between the ranks",
          group_rank_text(s->comm.group, rank), header_text(theirs), s->comm.rank, header_text(ours));
}

/* Sleeps a second at a time. If the rank has died or hangs, the group's watch ends this process. */
static void wait_for_round(const struct shm *s, int64_t rank) {
    static const struct timespec second = {.tv_sec = 1};
    struct window *w = window_of(s, rank);
    uint32_t seen = atomic_load(&w->round);
    if ((int32_t)(seen - s->round) >= 0) return;
    for (double until = now_seconds() + SPIN_SECONDS; now_seconds() < until; sched_yield())
        if ((int32_t)(atomic_load(&w->round) - s->round) >= 0) return;
    group_waits_for(s->comm.group, rank);
    atomic_fetch_add(&w->sleepers, 1);
    while ((int32_t)((seen = atomic_load(&w->round)) - s->round) < 0)
        syscall(SYS_futex, &w->round, FUTEX_WAIT, seen, &second, NULL, 0);
    atomic_fetch_sub(&w->sleepers, 1);
}

/* Called when this rank's pieces are in its window; returns when those of all ranks are. */
static void meet(const struct shm *s, const struct header *head) {
    struct window *own = window_of(s, s->comm.rank);
    own->head[s->round & 1] = *head;
    atomic_store(&own->round, s->round);
    if (atomic_load(&own->sleepers)) syscall(SYS_futex, &own->round, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    group_beat(s->comm.group);
    for (int64_t i = 1; i < s->comm.world; i++) {
        int64_t r = (s->comm.rank + i) % s->comm.world;
        wait_for_round(s, r);
        compare_header(s, r, head);
    }
}

/* --- collectives --- */

/* In bytes: the piece of the part that begins `at` bytes into it. */
static struct comm_part piece_of(const struct shm *s, const struct job *j, int64_t part, int64_t at) {
    int64_t size = (int64_t)dtype_size(j->tensor.dtype);
    struct comm_part p = comm_part(j->head.count, s->comm.parts, part);
    int64_t begin = min_i64(at, p.count * size);
    return (struct comm_part){p.first * size + begin, min_i64(s->piece, p.count * size - begin)};
}

/* Adds n elements of all ranks in the order of ranks, in fp32, and rounds once. `own` holds this rank's and
 * receives the sums; the others' are in their windows. */
static void add(const struct shm *s, enum dtype dtype, void *own, int64_t n) {
    float sum[ADD_BLOCK], wide[ADD_BLOCK];
    for (int64_t at = 0, count; at < n; at += count) {
        count = min_i64(ADD_BLOCK, n - at);
        for (int64_t r = 0; r < s->comm.world; r++) {
            const void *values = r == s->comm.rank ? own : slot_of(s, r, s->comm.part);
            const float *x = (const float *)values + at;
            if (dtype == DTYPE_BF16) {
                for (int64_t i = 0; i < count; i++)
                    wide[i] = f32_from_bf16(((const uint16_t *)values)[at + i]);
                x = wide;
            }
            if (r == 0)
                memcpy(sum, x, (size_t)count * sizeof *sum);
            else
                for (int64_t i = 0; i < count; i++) sum[i] += x[i];
        }
        if (dtype == DTYPE_BF16)
            for (int64_t i = 0; i < count; i++) ((uint16_t *)own)[at + i] = bf16_from_f32(sum[i]);
        else
            memcpy((float *)own + at, sum, (size_t)count * sizeof *sum);
    }
}

static void reduce_round(struct shm *s, const struct job *j, int64_t at) {
    uint8_t *data = (uint8_t *)j->tensor.data;
    enum dtype dtype = j->tensor.dtype;
    bool needed = s->comm.parts < s->comm.world; /* the own part, by its owners in other teams */
    s->round++;
    for (int64_t p = 0; p < s->comm.parts; p++) {
        struct comm_part theirs = piece_of(s, j, p, at);
        if (p != s->comm.part || needed)
            memcpy(slot_of(s, s->comm.rank, p), data + theirs.first, (size_t)theirs.count);
    }
    meet(s, &j->head);
    struct comm_part own = piece_of(s, j, s->comm.part, at);
    add(s, dtype, data + own.first, own.count / (int64_t)dtype_size(dtype));
}

static void gather_round(struct shm *s, const struct job *j, int64_t at) {
    uint8_t *data = (uint8_t *)j->tensor.data;
    struct comm_part own = piece_of(s, j, s->comm.part, at);
    s->round++;
    memcpy(slot_of(s, s->comm.rank, 0), data + own.first, (size_t)own.count);
    meet(s, &j->head);
    if (j->head.kind == GATHER && s->comm.part != j->head.root) return;
    for (int64_t p = 0; p < s->comm.parts; p++) {
        struct comm_part theirs = piece_of(s, j, p, at);
        if (p != s->comm.part)
            memcpy(data + theirs.first, slot_of(s, owner_of(s, p), 0), (size_t)theirs.count);
    }
}

static void broadcast_round(struct shm *s, const struct job *j, int64_t at) {
    uint8_t *here = (uint8_t *)j->tensor.data + at;
    size_t count = (size_t)min_i64(s->piece, tensor_bytes(&j->tensor) - at);
    bool root = s->comm.rank == j->head.root;
    s->round++;
    if (root) memcpy(slot_of(s, s->comm.rank, 0), here, count);
    meet(s, &j->head);
    if (!root) memcpy(here, slot_of(s, j->head.root, 0), count);
}

static void scatter_round(struct shm *s, const struct job *j, int64_t at) {
    uint8_t *data = (uint8_t *)j->tensor.data;
    bool root = s->comm.part == j->head.root;
    struct comm_part own = piece_of(s, j, s->comm.part, at);
    s->round++;
    for (int64_t p = 0; root && p < s->comm.parts; p++) {
        struct comm_part theirs = piece_of(s, j, p, at);
        if (p != s->comm.part) memcpy(slot_of(s, s->comm.rank, p), data + theirs.first, (size_t)theirs.count);
    }
    meet(s, &j->head);
    if (!root)
        memcpy(data + own.first, slot_of(s, owner_of(s, j->head.root), s->comm.part), (size_t)own.count);
}

static void run_job(struct shm *s, const struct job *j) {
    int kind = j->head.kind;
    int64_t largest = kind == BROADCAST ? j->head.count : comm_part(j->head.count, s->comm.parts, 0).count;
    int64_t bytes = largest * (int64_t)dtype_size(j->tensor.dtype);
    for (int64_t at = 0; at < bytes; at += s->piece) {
        if (kind == ALL_REDUCE || kind == REDUCE_SCATTER) reduce_round(s, j, at);
        if (kind == ALL_REDUCE || kind == ALL_GATHER || kind == GATHER) gather_round(s, j, at);
        if (kind == BROADCAST) broadcast_round(s, j, at);
        if (kind == SCATTER) scatter_round(s, j, at);
    }
}

/* --- the interface --- */

static struct shm *shm_of(struct comm *c) { return (struct shm *)c->state; }

static int64_t issue(struct comm *c, enum kind kind, const struct tensor *t, int64_t root) {
    struct shm *s = shm_of(c);
    check(t->dtype == DTYPE_F32 || t->dtype == DTYPE_BF16 || kind >= ALL_GATHER,
          "%s: %s is for fp32 and bf16", tensor_text(t), kind_names[kind]);
    int64_t roots = kind == BROADCAST ? c->world : c->parts;
    check(root >= 0 && root < roots, "%s: %s with root %" PRId64 " of %" PRId64, tensor_text(t),
          kind_names[kind], root, roots);
    if (s->issued - s->first == s->capacity) {
        s->capacity = max_i64(64, 2 * s->capacity);
        s->jobs = (struct job *)xrealloc(s->jobs, (size_t)s->capacity * sizeof *s->jobs);
    }
    struct job *j = &s->jobs[s->issued++ - s->first];
    *j = (struct job){*t, {s->issued, tensor_count(t), kind, t->dtype, (int32_t)root, ""}};
    snprintf(j->head.name, sizeof j->head.name, "%s", t->name ? t->name : "");
    return s->issued;
}

static int64_t shm_all_reduce(struct comm *c, struct tensor *t, void *stream) {
    return issue(c, ALL_REDUCE, t, 0);
}
static int64_t shm_reduce_scatter(struct comm *c, struct tensor *t, void *stream) {
    return issue(c, REDUCE_SCATTER, t, 0);
}
static int64_t shm_all_gather(struct comm *c, struct tensor *t, void *stream) {
    return issue(c, ALL_GATHER, t, 0);
}
static int64_t shm_broadcast(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return issue(c, BROADCAST, t, root);
}

static int64_t shm_gather(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return issue(c, GATHER, t, root);
}
static int64_t shm_scatter(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return issue(c, SCATTER, t, root);
}

static void shm_wait(struct comm *c, int64_t ticket, void *stream) {
    struct shm *s = shm_of(c);
    check(ticket <= s->issued, "comm: ticket %" PRId64 " was not given out yet", ticket);
    while (s->finished < ticket) {
        struct job *j = &s->jobs[s->finished++ - s->first];
        struct group_wait before = group_wait_begin(c->group, kind_names[j->head.kind], j->head.number);
        run_job(s, j);
        group_wait_end(c->group, before);
    }
    if (s->finished == s->issued) s->first = s->issued;
}

static void shm_close(struct comm *c) {
    struct shm *s = shm_of(c);
    shm_wait(c, s->issued, NULL);
    munmap(s->map, s->map_bytes);
    free(s->jobs);
    free(s);
}

/* --- opening --- */

/* How the other ranks find rank 0's memory. */
struct offer {
    int64_t pid, fd;
    uint64_t nonce; /* stored in the memory, because a PID may mean another process in another container */
};

static bool create_memory(struct shm *s, struct offer *offer, struct error *err) {
    int fd = memfd_create("llmc", MFD_CLOEXEC);
    void *map = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)s->map_bytes) == 0)
        map = mmap(NULL, s->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    *offer = (struct offer){getpid(), fd, (uint64_t)(1e9 * now_seconds()) ^ (uint64_t)getpid() << 40};
    if (map == MAP_FAILED)
        return fail(err, "cannot create shared memory of %s: %s", human_bytes((double)s->map_bytes),
                    strerror(errno));
    s->map = (uint8_t *)map;
    window_of(s, 0)->head[0].number = (int64_t)offer->nonce;
    return true;
}

static bool open_memory(struct shm *s, const struct offer *offer, struct error *err) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%" PRId64 "/fd/%" PRId64, offer->pid, offer->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    bool right = fd >= 0 && lseek(fd, 0, SEEK_END) == (off_t)s->map_bytes;
    void *map = right ? mmap(NULL, s->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (fd >= 0) close(fd);
    if (map != MAP_FAILED) {
        s->map = (uint8_t *)map;
        if ((uint64_t)window_of(s, 0)->head[0].number == offer->nonce) return true;
    }
    return fail(err,
                "cannot open rank 0's shared memory at %s: the ranks must see each other in /proc (one "
                "container, one user)",
                path);
}

static bool share_memory(struct shm *s, struct group *g, struct error *err) {
    struct offer offer = {.fd = -1};
    bool ok = g->rank != 0 || create_memory(s, &offer, err);
    group_broadcast(g, &offer, sizeof offer, 0);
    ok = group_agree(g, g->rank == 0 ? ok : open_memory(s, &offer, err), err);
    if (g->rank == 0 && offer.fd >= 0) close((int)offer.fd); /* all ranks have opened it */
    if (!ok && s->map) munmap(s->map, s->map_bytes);
    return ok;
}

static bool same_machine(struct group *g, struct error *err) {
    for (int64_t r = 1; r < g->world; r++)
        if (!group_same_host(g, 0, r))
            return fail(err,
                        "%s and %s are on different machines: CPU ranks share the memory of one machine; "
                        "several machines are for GPUs (--device cuda, with NCCL)",
                        group_rank_text(g, 0), group_rank_text(g, r));
    return true;
}

struct comm *comm_open_shm(struct group *g, int64_t parts, struct error *err) {
    if (!same_machine(g, err)) return NULL;
    struct shm *s = (struct shm *)xcalloc(1, sizeof *s);
    int64_t piece = min_i64(PIECE, WINDOWS_MAX / (2 * g->world * parts));
    s->piece = max_i64(PIECE_MIN, piece / PIECE_MIN * PIECE_MIN);
    s->window_bytes = sizeof(struct window) + (size_t)(2 * parts * s->piece);
    s->map_bytes = (size_t)g->world * s->window_bytes;
    if (!share_memory(s, g, err)) {
        free(s);
        return NULL;
    }
    s->comm = (struct comm){.group = g,
                            .rank = g->rank,
                            .world = g->world,
                            .part = g->rank % parts,
                            .parts = parts,
                            .kind = "shared memory",
                            .state = s,
                            .all_reduce = shm_all_reduce,
                            .reduce_scatter = shm_reduce_scatter,
                            .all_gather = shm_all_gather,
                            .broadcast = shm_broadcast,
                            .gather = shm_gather,
                            .scatter = shm_scatter,
                            .wait = shm_wait,
                            .close = shm_close};
    return &s->comm;
}
