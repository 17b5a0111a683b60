/* Streams between ranks. Order: connecting; shared memory; sending and receiving; waiting; opening and
 * closing.
 *
 * All pairs have a TCP connection, also those that share memory: it wakes a sleeper, and its end says that a
 * process is gone. So that one poll() waits for everything. */
#include "llmc/ranks/comm_mesh.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

/* Enough for the two sides to work at the same time, little enough to stay in cache. All rings of a machine
 * together take at most RINGS_TOTAL. */
enum { RING_MIN = 16 << 10, RING_MAX = 512 << 10, RINGS_TOTAL = 64 << 20 };
/* How much is copied before the other side is shown it. */
enum { PIECE = 64 << 10 };
#define SPIN_SECONDS 20e-6 /* before sleeping: waking takes about as long */

struct sleeper {
    _Alignas(64) _Atomic uint32_t waiting;
};

/* --- connecting --- */

struct contact {
    struct net_address at;
    int64_t share; /* LLMC_SHARED_MEMORY is not 0 */
};

static int open_listener(struct group *g, struct contact *mine, struct error *err) {
    const struct group_state *s = g->state;
    bool alone = true;
    for (int64_t r = 0; r < g->world; r++) alone &= s->peers[r].host_id == s->peers[g->rank].host_id;
    /* the interface over which rank 0 is reached; rank 0 may be reached over several */
    struct net_address near = net_local(s->peers[g->rank == 0 ? 1 : 0].calls);
    bool any = !alone && (g->rank == 0 || net_is_loopback(&near));
    int fd = net_listen_near(&near, any, err);
    if (fd < 0) return -1;
    struct net_address at = net_local(fd);
    mine->at = near;
    net_set_port(&mine->at, net_port(&at));
    return fd;
}

/* Rank 0 is reached as it was before. So is a rank on the machine of rank 0 that reached it over loopback,
 * seen from another machine. */
static struct net_address address_of(struct group *g, const struct contact *contacts, int64_t rank) {
    const struct group_peer *peers = g->state->peers;
    struct net_address at = contacts[rank].at;
    if (rank == 0 || (net_is_loopback(&at) && peers[rank].host_id != peers[g->rank].host_id)) {
        at = net_remote(peers[0].calls);
        net_set_port(&at, net_port(&contacts[rank].at));
    }
    return at;
}

/* One connection of a higher rank; what is not one is dropped. */
static bool accept_one(struct mesh *m, int listener, double deadline, struct error *err) {
    struct group *g = m->group;
    const struct group_state *s = g->state;
    for (;;) {
        struct pollfd p = {listener, POLLIN, 0};
        double left = deadline - now_seconds();
        if (left <= 0) break;
        if (poll(&p, 1, (int)(1000.0 * fmin(left, 1000.0)) + 1) <= 0) continue;
        int fd = net_accept(listener);
        if (fd < 0) continue;
        struct group_hello hello, expected;
        group_hello_make(&expected, s, GROUP_COLLECTIVES);
        if (net_receive(fd, &hello, sizeof hello, fmin(deadline, now_seconds() + 5.0)) == NET_OK &&
            memcmp(hello.magic, expected.magic, sizeof hello.magic) == 0 &&
            memcmp(hello.token, expected.token, sizeof hello.token) == 0 &&
            hello.version == expected.version && hello.world == g->world &&
            hello.channel == GROUP_COLLECTIVES && hello.rank > g->rank && hello.rank < g->world &&
            m->channels[hello.rank].fd < 0 && group_send_reply(fd, GROUP_WELCOME, "")) {
            m->channels[hello.rank].fd = fd;
            group_beat(g);
            return true;
        }
        close(fd);
    }
    int64_t r = g->rank + 1;
    while (m->channels[r].fd >= 0) r++;
    return fail(err, "%s did not connect to %s within %.0f s for collectives", group_rank_text(s, r),
                group_rank_text(s, g->rank), s->timeout);
}

static bool connect_all(struct mesh *m, int listener, const struct contact *contacts, struct error *err) {
    struct group *g = m->group;
    double deadline = now_seconds() + g->state->timeout;
    struct error why;
    struct group_hello hello;
    group_hello_make(&hello, g->state, GROUP_COLLECTIVES);
    /* Connecting needs nobody's attention on the other side, so all can do this at the same time. */
    for (int64_t r = 0; r < g->rank; r++) {
        struct net_address at = address_of(g, contacts, r);
        int fd = m->channels[r].fd = net_connect(&at, deadline, &why);
        if (fd < 0 || net_send(fd, &hello, sizeof hello, deadline) != NET_OK)
            return fail(err, "cannot connect to %s for collectives: %s", group_rank_text(g->state, r),
                        fd < 0 ? why.message : "closed");
    }
    for (int64_t n = g->world - 1 - g->rank; n > 0; n--)
        if (!accept_one(m, listener, deadline, err)) return false;
    for (int64_t r = 0; r < g->rank; r++) {
        if (!group_receive_reply(m->channels[r].fd, GROUP_WELCOME, deadline, &why))
            return fail(err, "cannot connect to %s for collectives: %s", group_rank_text(g->state, r),
                        why.message);
        group_beat(g);
    }
    return true;
}

/* --- shared memory --- */

/* A memory file of the machine's lowest rank, which the others open through /proc: it has no name that could
 * be left behind. */
struct shared_head {
    uint64_t nonce; /* to know the right file by */
};
struct offer {
    int64_t pid, fd;
    uint64_t nonce;
};

static size_t shared_layout(int64_t n, uint64_t capacity, size_t *asleep, size_t *rings, size_t *data) {
    *asleep = 64;
    *rings = *asleep + (size_t)n * sizeof(struct sleeper);
    *data = (*rings + (size_t)(n * n) * sizeof(struct ring) + 4095) / 4096 * 4096;
    return *data + (size_t)(n * n) * capacity;
}

static bool map_shared(struct mesh *m, const struct offer *offer, bool leader, size_t size, int *kept) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%lld/fd/%lld", (long long)offer->pid, (long long)offer->fd);
    int fd = leader ? (int)offer->fd : open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return false;
    void *map = lseek(fd, 0, SEEK_END) == (off_t)size
                    ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                    : MAP_FAILED;
    if (leader)
        *kept = fd;
    else
        close(fd);
    if (map == MAP_FAILED) return false;
    m->map = map;
    m->map_size = size;
    struct shared_head *head = (struct shared_head *)map;
    if (leader) head->nonce = offer->nonce;
    return head->nonce == offer->nonce;
}

/* Sets up the channels to the ranks of this machine, if all of them can. */
static void share(struct mesh *m, const struct contact *contacts) {
    struct group *g = m->group;
    const struct group_peer *peers = g->state->peers, *own = &peers[g->rank];
    int64_t n = 0, leader = -1;
    for (int64_t r = 0; r < g->world; r++) {
        m->local[r] = -1;
        if (peers[r].host_id != own->host_id || !contacts[r].share || !contacts[g->rank].share) continue;
        if (leader < 0) leader = r;
        m->local[r] = n++;
    }
    uint64_t capacity = RING_MAX;
    while (n > 1 && capacity > RING_MIN && capacity * (uint64_t)(n * n) > RINGS_TOTAL) capacity /= 2;
    size_t asleep, rings, data, size = shared_layout(max_i64(n, 1), capacity, &asleep, &rings, &data);
    struct offer mine = {.pid = getpid(), .fd = -1};
    if (leader == g->rank && n > 1) {
        mine.fd = memfd_create("llmc", MFD_CLOEXEC);
        mine.nonce = (uint64_t)(1e9 * now_seconds()) ^ ((uint64_t)getpid() << 40) ^ g->state->token[0];
        if (mine.fd >= 0 && ftruncate((int)mine.fd, (off_t)size) != 0) {
            close((int)mine.fd);
            mine.fd = -1;
        }
    }
    struct offer *offers = (struct offer *)xcalloc((size_t)g->world, sizeof *offers);
    group_exchange(g, offers, &mine, sizeof mine);
    int fd = -1;
    /* the leader writes the nonce before anyone looks for it */
    uint8_t ok = n > 1 && offers[leader].fd >= 0 && leader == g->rank &&
                 map_shared(m, &offers[leader], true, size, &fd);
    group_barrier(g);
    if (n > 1 && leader != g->rank && offers[leader].fd >= 0)
        ok = map_shared(m, &offers[leader], false, size, &fd);
    uint8_t *all = (uint8_t *)xcalloc((size_t)g->world, 1);
    group_exchange(g, all, &ok, 1);
    for (int64_t r = 0; r < g->world; r++) ok &= m->local[r] < 0 || all[r];
    if (fd >= 0) close(fd);
    if (n > 1 && !ok && g->rank == leader)
        warn("the ranks on %s cannot share memory, and use TCP among themselves", g->host);
    for (int64_t r = 0; r < g->world && ok; r++) {
        if (r == g->rank || m->local[r] < 0) continue;
        struct channel *c = &m->channels[r];
        int64_t in = m->local[r] * n + m->local[g->rank], out = m->local[g->rank] * n + m->local[r];
        uint8_t *base = (uint8_t *)m->map;
        c->shared = true;
        c->in = (struct ring *)(base + rings) + in;
        c->out = (struct ring *)(base + rings) + out;
        c->in_data = base + data + (uint64_t)in * capacity;
        c->out_data = base + data + (uint64_t)out * capacity;
        m->shared++;
    }
    if (ok) m->asleep = (struct sleeper *)((uint8_t *)m->map + asleep);
    m->capacity = m->shared ? capacity : RING_MAX;
    free(offers);
    free(all);
}

/* --- sending and receiving --- */

static uint64_t load(_Atomic uint64_t *v) { return atomic_load_explicit(v, memory_order_acquire); }
static void store(_Atomic uint64_t *v, uint64_t x) { atomic_store_explicit(v, x, memory_order_release); }

static void lost(struct mesh *m, int64_t rank) { group_lost(m->group, rank, m->where); }

static size_t ring_write(struct mesh *m, struct channel *c, const void *data, size_t bytes) {
    uint64_t head = atomic_load_explicit(&c->out->head, memory_order_relaxed);
    uint64_t space = m->capacity - (head - load(&c->out->tail)), at = head & (m->capacity - 1);
    if (bytes > space) bytes = space;
    if (bytes > PIECE) bytes = PIECE;
    if (bytes > m->capacity - at) bytes = m->capacity - at;
    if (bytes == 0) return 0;
    memcpy(c->out_data + at, data, bytes);
    store(&c->out->head, head + bytes);
    c->touched = true;
    return bytes;
}

size_t mesh_send(struct mesh *m, int64_t to, const void *data, size_t bytes) {
    struct channel *c = &m->channels[to];
    if (bytes == 0) return 0;
    if (c->shared) {
        bytes = ring_write(m, c, data, bytes);
        c->sent += bytes;
        return bytes;
    }
    ssize_t n = send(c->fd, data, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    c->blocked = n < (ssize_t)bytes;
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR) lost(m, to);
        return 0;
    }
    c->sent += (uint64_t)n;
    return (size_t)n;
}

/* TCP: what has come goes into the ring, as far as it fits. */
static void fill(struct mesh *m, int64_t from) {
    struct channel *c = &m->channels[from];
    uint64_t head = c->in->head, space = m->capacity - (head - c->in->tail), at = head & (m->capacity - 1);
    if (space == 0) return;
    uint64_t first = space < m->capacity - at ? space : m->capacity - at;
    struct iovec parts[2] = {{c->in_data + at, first}, {c->in_data, space - first}};
    ssize_t n = readv(c->fd, parts, space > first ? 2 : 1);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) lost(m, from);
    if (n > 0) store(&c->in->head, head + (uint64_t)n);
}

size_t mesh_peek(struct mesh *m, int64_t from, const uint8_t **data, size_t bytes) {
    struct channel *c = &m->channels[from];
    uint64_t tail = atomic_load_explicit(&c->in->tail, memory_order_relaxed);
    if (!c->shared && load(&c->in->head) - tail < bytes) fill(m, from);
    uint64_t have = load(&c->in->head) - tail, at = tail & (m->capacity - 1);
    if (have > m->capacity - at) have = m->capacity - at;
    *data = c->in_data + at;
    return have < bytes ? have : bytes;
}

void mesh_take(struct mesh *m, int64_t from, size_t bytes) {
    struct channel *c = &m->channels[from];
    store(&c->in->tail, atomic_load_explicit(&c->in->tail, memory_order_relaxed) + bytes);
    c->touched |= bytes > 0;
}

size_t mesh_receive(struct mesh *m, int64_t from, void *data, size_t bytes) {
    struct channel *c = &m->channels[from];
    if (bytes == 0) return 0;
    if (!c->shared && bytes >= PIECE && load(&c->in->head) == load(&c->in->tail)) { /* past the ring */
        ssize_t n = recv(c->fd, data, bytes, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) lost(m, from);
        if (n <= 0) return 0;
        /* as if it had been there: the place in the ring is that in the stream, modulo its size */
        store(&c->in->head, c->in->head + (uint64_t)n);
        store(&c->in->tail, c->in->tail + (uint64_t)n);
        return (size_t)n;
    }
    const uint8_t *p;
    size_t n = mesh_peek(m, from, &p, bytes < PIECE ? bytes : PIECE);
    memcpy(data, p, n);
    mesh_take(m, from, n);
    return n;
}

uint64_t mesh_received(const struct mesh *m, int64_t from) { return m->channels[from].in->tail; }
uint64_t mesh_sent(const struct mesh *m, int64_t to) { return m->channels[to].sent; }

/* --- waiting --- */

void mesh_mark(struct mesh *m) {
    if (!m->shared) return;
    for (int64_t r = 0; r < m->group->world; r++) {
        struct channel *c = &m->channels[r];
        if (!c->shared) continue;
        c->seen_head = load(&c->in->head);
        c->seen_tail = load(&c->out->tail);
    }
}

static bool changed(struct mesh *m) {
    for (int64_t r = 0; r < m->group->world; r++) {
        struct channel *c = &m->channels[r];
        if (c->shared && (load(&c->in->head) != c->seen_head || load(&c->out->tail) != c->seen_tail))
            return true;
    }
    return false;
}

void mesh_notify(struct mesh *m) {
    if (!m->shared) return;
    /* The sleeper first says that it sleeps, then looks once more; this side first writes, then looks. */
    atomic_thread_fence(memory_order_seq_cst);
    for (int64_t r = 0; r < m->group->world; r++) {
        struct channel *c = &m->channels[r];
        if (!c->shared || !c->touched) continue;
        c->touched = false;
        _Atomic uint32_t *waiting = &m->asleep[m->local[r]].waiting;
        if (atomic_load_explicit(waiting, memory_order_relaxed) && atomic_exchange(waiting, 0) &&
            send(c->fd, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN && errno != EINTR)
            lost(m, r);
    }
}

static void take_bell(struct mesh *m, int64_t from) {
    char bells[64];
    ssize_t n = recv(m->channels[from].fd, bells, sizeof bells, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) lost(m, from);
}

void mesh_wait(struct mesh *m) {
    int64_t world = m->group->world, me = m->group->rank;
    if (m->shared)
        for (double until = now_seconds() + SPIN_SECONDS; now_seconds() < until; sched_yield())
            if (changed(m)) return;
    if (m->shared) {
        atomic_store(&m->asleep[m->local[me]].waiting, 1);
        atomic_thread_fence(memory_order_seq_cst);
    }
    for (int64_t r = 0; r < world; r++) {
        struct channel *c = &m->channels[r];
        short events = 0;
        if (r != me && (c->shared || c->in->head - c->in->tail < m->capacity)) events |= POLLIN;
        if (r != me && c->blocked) events |= POLLOUT;
        m->polled[r] = (struct pollfd){r == me ? -1 : c->fd, events, 0};
    }
    int n = m->shared && changed(m) ? 0 : poll(m->polled, (nfds_t)world, 1000);
    if (m->shared) atomic_store(&m->asleep[m->local[me]].waiting, 0);
    for (int64_t r = 0; r < world && n > 0; r++) {
        if (!(m->polled[r].revents & (POLLIN | POLLHUP | POLLERR))) continue;
        if (m->channels[r].shared)
            take_bell(m, r);
        else
            fill(m, r); /* also what is for later, or it would end every wait from now on */
    }
}

/* --- opening and closing --- */

static void destroy(struct mesh *m) {
    for (int64_t r = 0; r < m->group->world; r++) {
        struct channel *c = &m->channels[r];
        if (c->fd >= 0) close(c->fd);
        if (c->shared) continue;
        free(c->in);
        free(c->in_data);
    }
    if (m->map) munmap(m->map, m->map_size);
    free(m->channels);
    free(m->local);
    free(m->polled);
    free(m);
}

struct mesh *mesh_open(struct group *g, struct error *err) {
    struct mesh *m = (struct mesh *)xcalloc(1, sizeof *m);
    size_t world = (size_t)g->world;
    m->group = g;
    m->where = "connecting";
    m->channels = (struct channel *)xcalloc(world, sizeof *m->channels);
    m->local = (int64_t *)xcalloc(world, sizeof *m->local);
    m->polled = (struct pollfd *)xcalloc(world, sizeof *m->polled);
    for (int64_t r = 0; r < g->world; r++) m->channels[r].fd = -1;
    struct contact mine, *contacts = (struct contact *)xcalloc(world, sizeof *contacts);
    memset(&mine, 0, sizeof mine);
    const char *wanted = getenv("LLMC_SHARED_MEMORY");
    mine.share = !wanted || strcmp(wanted, "0") != 0;
    struct error why = {.message = ""};
    int listener = open_listener(g, &mine, &why);
    bool ok = group_agree(g, listener >= 0, &why);
    if (ok) {
        group_exchange(g, contacts, &mine, sizeof mine);
        ok = group_agree(g, connect_all(m, listener, contacts, &why), &why);
    }
    if (listener >= 0) close(listener);
    if (ok) share(m, contacts);
    free(contacts);
    if (!ok) {
        fail(err, "%s", why.message);
        destroy(m);
        return NULL;
    }
    for (int64_t r = 0; r < g->world; r++) {
        struct channel *c = &m->channels[r];
        if (r == g->rank || c->shared) continue;
        c->in = (struct ring *)aligned_alloc(64, sizeof *c->in);
        check(c->in, "out of host memory");
        memset(c->in, 0, sizeof *c->in);
        c->in_data = (uint8_t *)xmalloc(m->capacity);
    }
    return m;
}

void mesh_close(struct mesh *m) {
    group_barrier(m->group); /* nobody reads or writes any more, so that no end is mistaken for a failure */
    destroy(m);
}
