/* Messages between all ranks go through rank 0, which receives from every rank, then answers every rank.
 * They are small (an id, a hash, a text) and rare. Each starts with a header that the receiver compares
 * with its own, so that ranks that make different calls end with an error. */
#include "llmc/process/group_impl.h"

#include "llmc/process/net.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <xxhash.h>

/* --- opening and closing --- */

/* Equal for processes of one machine: a hash of host name, boot id and network namespace. Containers may
 * have namespaces of their own. */
static uint64_t find_host_id(const char *host) {
    char text[512] = "", boot[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f) {
        if (!fgets(boot, sizeof boot, f)) boot[0] = 0;
        fclose(f);
    }
    char network[64] = "";
    ssize_t n = readlink("/proc/self/ns/net", network, sizeof network - 1);
    network[max_i64(n, 0)] = 0;
    snprintf(text, sizeof text, "%s|%s|%s", host, boot, network);
    return XXH3_64bits(text, strlen(text));
}

struct introduction {
    char host[64];
    uint64_t host_id;
    int64_t pid;
};

static void introduce(struct group *g) {
    struct group_state *s = g->state;
    struct introduction mine, *all = (struct introduction *)xcalloc((size_t)g->world, sizeof *all);
    memset(&mine, 0, sizeof mine);
    memcpy(mine.host, g->host, sizeof mine.host);
    mine.host_id = find_host_id(g->host);
    mine.pid = getpid();
    group_exchange(g, all, &mine, sizeof mine);
    int64_t before = 0, here = 0;
    for (int64_t r = 0; r < g->world; r++) {
        memcpy(s->peers[r].host, all[r].host, sizeof all[r].host);
        s->peers[r].host_id = all[r].host_id;
        s->peers[r].pid = (int32_t)all[r].pid;
        if (all[r].host_id != mine.host_id) continue;
        here++;
        before += r < g->rank;
    }
    g->local_rank = s->env.local_rank >= 0 ? s->env.local_rank : before;
    g->local_world = s->env.local_world >= 0 ? s->env.local_world : here;
    free(all);
}

/* Rank 0 has two connections to every rank; NCCL opens more. */
static void allow_connections(int64_t world) {
    struct rlimit limit;
    rlim_t wanted = (rlim_t)(4 * world + 256);
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void tell_others(struct die_hook *hook, const char *message) {
    group_last_words((struct group_state *)hook, message);
}

struct group *group_open(const struct group_options *options, struct error *err) {
    struct group *g = (struct group *)xcalloc(1, sizeof *g);
    struct group_state *s = (struct group_state *)xcalloc(1, sizeof *s);
    if (!group_env_read(&s->env, err)) {
        free(s);
        free(g);
        return NULL;
    }
    g->rank = s->env.rank;
    g->world = s->env.world;
    g->local_world = 1;
    if (gethostname(g->host, sizeof g->host - 1) != 0) strcpy(g->host, "?");
    if (g->world == 1) {
        free(s);
        return g;
    }
    s->group = g;
    g->timeout = s->timeout = options->timeout;
    s->peers = (struct group_peer *)xcalloc((size_t)g->world, sizeof *s->peers);
    s->what = "start";
    s->step = s->waits_for = -1;
    memcpy(s->peers[g->rank].host, g->host, sizeof g->host);
    allow_connections(g->world);
    if (!group_connect(s, err)) {
        free(s->peers);
        free(s);
        free(g);
        return NULL;
    }
    g->state = s;
    s->hook.tell = tell_others;
    group_watch_start(s);
    set_die_hook(&s->hook);
    introduce(g);
    return g;
}

void group_close(struct group *g) {
    if (!g) return;
    struct group_state *s = g->state;
    if (s) {
        group_watch_close(s);
        set_die_hook(NULL);
        group_disconnect(s);
        free(s->peers);
        free(s);
    }
    free(g);
}

const char *group_rank_text(const struct group *g, int64_t rank) {
    const char *host = g->state ? g->state->peers[rank].host : g->host;
    return temp_printf(host[0] ? "rank %lld (%.64s)" : "rank %lld", (long long)rank, host);
}

bool group_same_host(const struct group *g, int64_t a, int64_t b) {
    return !g->state || g->state->peers[a].host_id == g->state->peers[b].host_id;
}

/* --- what this process does, for the watch --- */

void group_beat(struct group *g) {
    /* Threads may overwrite each other's increment. It suffices that the number changes. */
    struct group_state *s = g->state;
    if (!s) return;
    unsigned beats = atomic_load_explicit(&s->beats, memory_order_relaxed);
    atomic_store_explicit(&s->beats, beats + 1, memory_order_relaxed);
}

static void set_activity(struct group *g, const char *what, int64_t step, bool waiting) {
    struct group_state *s = g->state;
    if (!s) return;
    atomic_store_explicit(&s->what, what, memory_order_relaxed);
    atomic_store_explicit(&s->step, step, memory_order_relaxed);
    atomic_store_explicit(&s->waiting, waiting, memory_order_relaxed);
    group_beat(g);
}

void group_progress(struct group *g, const char *what, int64_t step) { set_activity(g, what, step, false); }
void group_waiting(struct group *g, const char *what, int64_t step) { set_activity(g, what, step, true); }
bool group_is_waiting(const struct group *g) { return g->state && atomic_load(&g->state->waiting); }

void group_waits_for(struct group *g, int64_t rank) {
    if (g->state) atomic_store_explicit(&g->state->waits_for, rank, memory_order_relaxed);
}

struct group_wait group_wait_begin(struct group *g, const char *what, int64_t step) {
    struct group_state *s = g->state;
    struct group_wait before = {
        .what = s ? s->what : "", .step = s ? s->step : -1, .waiting = s && s->waiting};
    set_activity(g, what, step, true);
    return before;
}

void group_wait_end(struct group *g, struct group_wait before) {
    set_activity(g, before.what, before.step, before.waiting);
    group_waits_for(g, -1);
}

/* --- messages --- */

enum call_kind { CALL_EXCHANGE, CALL_BROADCAST, CALL_BARRIER };
static const char *const call_names[] = {"group_exchange", "group_broadcast", "group_barrier"};

struct call {
    int64_t kind, root, number, bytes;
};

static struct call new_call(struct group *g, enum call_kind kind, int64_t root, size_t bytes) {
    return (struct call){kind, root, ++g->state->calls, (int64_t)bytes};
}

static void give(struct group *g, int64_t to, const struct call *call, const void *data, size_t bytes) {
    int fd = g->state->peers[to].calls;
    group_waits_for(g, to);
    if (net_send(fd, call, sizeof *call, INFINITY) != NET_OK || net_send(fd, data, bytes, INFINITY) != NET_OK)
        group_lost(g->state, to, call_names[call->kind]);
    group_beat(g);
}

static void take(struct group *g, int64_t from, const struct call *call, void *data, size_t bytes) {
    struct call theirs;
    int fd = g->state->peers[from].calls;
    group_waits_for(g, from);
    if (net_receive(fd, &theirs, sizeof theirs, INFINITY) != NET_OK)
        group_lost(g->state, from, call_names[call->kind]);
    check(memcmp(&theirs, call, sizeof theirs) == 0,
          "the ranks make different calls: %s makes call %lld, %s of %lld bytes from rank %lld; rank %lld "
          "makes call %lld, %s of %lld bytes from rank %lld. A defect of the program, or files that differ "
          "between the ranks",
          group_rank_text(g, from), (long long)theirs.number,
          theirs.kind >= 0 && theirs.kind <= CALL_BARRIER ? call_names[theirs.kind] : "?",
          (long long)theirs.bytes, (long long)theirs.root, (long long)g->rank, (long long)call->number,
          call_names[call->kind], (long long)call->bytes, (long long)call->root);
    if (net_receive(fd, data, bytes, INFINITY) != NET_OK) group_lost(g->state, from, call_names[call->kind]);
    group_beat(g);
}

/* Every rank's `bytes` go to rank 0, in the order of ranks; then rank 0's `all_bytes` go to every rank. */
static void through_rank_0(struct group *g, enum call_kind kind, void *all, size_t all_bytes,
                           const void *mine, size_t bytes) {
    struct call call = new_call(g, kind, 0, bytes);
    struct group_wait before = group_wait_begin(g, call_names[kind], call.number);
    if (g->rank == 0) {
        if (bytes) memmove(all, mine, bytes);
        for (int64_t r = 1; r < g->world; r++) take(g, r, &call, (char *)all + (size_t)r * bytes, bytes);
        for (int64_t r = 1; r < g->world; r++) give(g, r, &call, all, all_bytes);
    } else {
        give(g, 0, &call, mine, bytes);
        take(g, 0, &call, all, all_bytes);
    }
    group_wait_end(g, before);
}

void group_exchange(struct group *g, void *all, const void *mine, size_t bytes) {
    if (g->world > 1)
        through_rank_0(g, CALL_EXCHANGE, all, bytes * (size_t)g->world, mine, bytes);
    else if (bytes)
        memmove(all, mine, bytes);
}

void group_barrier(struct group *g) {
    char none = 0;
    if (g->world > 1) through_rank_0(g, CALL_BARRIER, &none, 0, &none, 0);
}

void group_broadcast(struct group *g, void *data, size_t bytes, int64_t root) {
    check(root >= 0 && root < g->world, "group_broadcast from rank %lld of %lld", (long long)root,
          (long long)g->world);
    if (g->world == 1) return;
    struct call call = new_call(g, CALL_BROADCAST, root, bytes);
    struct group_wait before = group_wait_begin(g, call_names[CALL_BROADCAST], call.number);
    if (g->rank == 0) {
        /* ranks other than the root send only their header, so that a different call is noticed */
        for (int64_t r = 1; r < g->world; r++) take(g, r, &call, data, r == root ? bytes : 0);
        for (int64_t r = 1; r < g->world; r++) give(g, r, &call, data, r == root ? 0 : bytes);
    } else {
        give(g, 0, &call, data, g->rank == root ? bytes : 0);
        take(g, 0, &call, data, g->rank == root ? 0 : bytes);
    }
    group_wait_end(g, before);
}

bool group_agree(struct group *g, bool ok, struct error *err) {
    if (g->world == 1) return ok;
    uint8_t mine = ok, *all = (uint8_t *)xmalloc((size_t)g->world);
    group_exchange(g, all, &mine, sizeof mine);
    int64_t first = 0;
    while (first < g->world && all[first]) first++;
    free(all);
    if (first == g->world) return true;
    struct error text = {.message = ""};
    if (g->rank == first && err) memcpy(&text, err, sizeof text);
    group_broadcast(g, &text, sizeof text, first);
    return fail(err, "%s: %s", group_rank_text(g, first), text.message);
}
