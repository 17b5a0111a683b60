/* Collectives between GPUs: struct comm over NCCL. The library is loaded when the first communicator is
 * opened; LLMC_NCCL=PATH names it.
 *
 * Collectives run on a separate high-priority stream. Before each one, that stream waits for an event
 * recorded on the caller's stream. A ticket is an event recorded behind the collective. Nothing waits on
 * the host. Teams have a communicator of NCCL's each, and so have the owners of one part. All three use that
 * one stream: kernels of two communicators that run at once, in another order on another GPU, may wait for
 * each other for ever.
 *
 * If another process dies, NCCL's kernels never finish, and a wait for the device never returns. The
 * watch of the group ends this process then. Once a second it also asks NCCL for an asynchronous error.
 * So the communicator is a blocking one, without timeouts of its own.
 *
 * NCCL adds bf16 values in bf16, in an order that depends on topology, world size and tensor size. A run
 * on the same machines repeats its bits, and all ranks get the same; other machines may give different
 * bits. */
#include "llmc/ranks/comm.h"
#include "llmc/ranks/nccl_api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- loading --- */

const char *nccl_version_text(int version) {
    int major = version < 10000 ? 1000 : 10000;
    return temp_printf("%d.%d.%d", version / major, version % major / 100, version % 100);
}

bool nccl_load(struct nccl_api *api, int *version, struct error *err) {
    const char *path = getenv("LLMC_NCCL");
    void *library = RTLD_DEFAULT;
    if (path || !dlsym(RTLD_DEFAULT, "ncclGetUniqueId")) {
        library = dlopen(path ? path : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
        if (!library)
            return fail(
                err,
                "several GPUs need NCCL, which cannot be loaded: %s. Install it (package libnccl2), or give "
                "its path: LLMC_NCCL=/path/to/libnccl.so.2",
                dlerror());
    }
#define NCCL_FIND(member, name, required, result, parameters)                                                \
    *(void **)&api->member = dlsym(library, #name);                                                          \
    if (required && !api->member)                                                                            \
        return fail(err, "%s is not NCCL, or not a version that fits: it has no function %s",                \
                    path ? path : "libnccl.so.2", #name);
    NCCL_FUNCTIONS(NCCL_FIND)
#undef NCCL_FIND
    int result = api->get_version(version);
    if (result != NCCL_SUCCESS) return fail(err, "NCCL does not start: %s", api->get_error_string(result));
    if (*version < NCCL_OLDEST)
        return fail(err, "NCCL %s is too old: bf16 needs %s. Update it, or name another with LLMC_NCCL=PATH",
                    nccl_version_text(*version), nccl_version_text(NCCL_OLDEST));
    return true;
}

/* --- errors --- */

enum { TICKETS = 64 };

struct nccl_comm {
    struct nccl_api api;
    struct device *device;
    void *comm; /* NCCL's communicator of all ranks */
    void *team,
        *peers; /* of this rank's team; of the owners of this rank's part; NULL if there is one team */
    void *stream;
    void *ready;           /* event: the caller's stream has reached the collective */
    void *passed[TICKETS]; /* events: collectives i, i + TICKETS, ... are done */
    int64_t last;          /* the newest ticket; the first is 1 */
    bool error_seen;       /* the watch has seen an error once */
    char kind[48];
};

static struct nccl_comm *state_of(const struct comm *c) { return (struct nccl_comm *)c->state; }

/* NCCL's own words on what went wrong, by temp_printf. */
static const char *nccl_error_text(const struct nccl_comm *s, int result) {
    const char *last = s->api.get_last_error ? s->api.get_last_error(s->comm) : NULL;
    bool more = last && *last;
    int length = more ? (int)strcspn(last, "\n") : 0;
    return temp_printf("%s%s%.*s. NCCL_DEBUG=INFO shows more", s->api.get_error_string(result),
                       more ? ": " : "", length, more ? last : "");
}

/* NCCL may notice a dead process before the watch does, but only the watch knows which one it was and why.
 * So wait for the watch to print that and to end this process. */
static void nccl_check(struct comm *c, int result, const char *what, const struct tensor *t) {
    if (result == NCCL_SUCCESS) return;
    struct nccl_comm *s = state_of(c);
    char *text = xstrdup(nccl_error_text(s, result));
    if (c->world > 1 && (result == NCCL_REMOTE_ERROR || result == NCCL_SYSTEM_ERROR)) sleep(3);
    group_set_poll(c->group, NULL, NULL);
    void *const comms[] = {s->comm, s->team, s->peers};
    for (size_t i = 0; i < ARRAY_LENGTH(comms); i++) /* their kernels may still wait for other ranks */
        if (comms[i]) s->api.comm_abort(comms[i]);
    die("rank %lld: NCCL's %s of %s failed: %s", (long long)c->rank, what, tensor_text(t), text);
}

/* On the watch's thread. Reports an error when it is seen for the second time, for the reason given at
 * nccl_check(). Does not abort the communicator, because another thread may be in an NCCL call; the end
 * of the process frees the GPU. */
static bool nccl_poll(void *arg, struct error *err) {
    struct comm *c = (struct comm *)arg;
    struct nccl_comm *s = state_of(c);
    void *const comms[] = {s->comm, s->team, s->peers};
    int error = NCCL_SUCCESS;
    for (size_t i = 0; i < ARRAY_LENGTH(comms) && (error == NCCL_SUCCESS || error == NCCL_IN_PROGRESS); i++) {
        int result = comms[i] ? s->api.comm_get_async_error(comms[i], &error) : NCCL_SUCCESS;
        if (result != NCCL_SUCCESS) error = result;
    }
    if (error == NCCL_SUCCESS || error == NCCL_IN_PROGRESS) return true;
    if (!s->error_seen) {
        s->error_seen = true;
        return true;
    }
    return fail(err, "rank %lld: NCCL lost its connection to the other GPUs: %s", (long long)c->rank,
                nccl_error_text(s, error));
}

/* --- collectives --- */

static int nccl_type_of(const struct tensor *t) {
    check(t->dtype == DTYPE_F32 || t->dtype == DTYPE_BF16, "%s: collectives take fp32 and bf16",
          tensor_text(t));
    return t->dtype == DTYPE_F32 ? NCCL_FLOAT32 : NCCL_BFLOAT16;
}

/* Makes the stream of collectives wait for the caller's stream. */
static void begin(struct nccl_comm *s, void *stream) {
    s->device->event_record(s->device, s->ready, stream);
    s->device->stream_wait_event(s->device, s->stream, s->ready);
}
static int64_t end(struct comm *c) {
    struct nccl_comm *s = state_of(c);
    int64_t ticket = ++s->last;
    group_beat(c->group);
    s->device->event_record(s->device, s->passed[ticket % TICKETS], s->stream);
    return ticket;
}

static int64_t nccl_all_reduce(struct comm *c, struct tensor *t, void *stream) {
    struct nccl_comm *s = state_of(c);
    begin(s, stream);
    nccl_check(c,
               s->api.all_reduce(t->data, t->data, (size_t)tensor_count(t), nccl_type_of(t), NCCL_SUM,
                                 s->comm, s->stream),
               "all_reduce", t);
    return end(c);
}

static int64_t nccl_broadcast(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    struct nccl_comm *s = state_of(c);
    begin(s, stream);
    nccl_check(c,
               s->api.broadcast(t->data, t->data, (size_t)tensor_count(t), nccl_type_of(t), (int)root,
                                s->comm, s->stream),
               "broadcast", t);
    return end(c);
}

static char *part_address(const struct tensor *t, struct comm_part part) {
    return (char *)t->data + (size_t)part.first * dtype_size(t->dtype);
}

/* NCCL's reduce_scatter and all_gather need parts of equal size. Otherwise each part is a reduce or
 * broadcast of its own, between ncclGroupStart and ncclGroupEnd: the same bytes, but `parts` steps. This
 * is rare: the large buckets divide evenly among the usual numbers of GPUs. */
static void nccl_in_parts(struct comm *c, struct tensor *t, bool reduce) {
    struct nccl_comm *s = state_of(c);
    void *team = s->team ? s->team : s->comm;
    int64_t n = tensor_count(t);
    int type = nccl_type_of(t), result = NCCL_SUCCESS;
    struct comm_part own = comm_part(n, c->parts, c->part);
    const char *what = reduce ? "reduce_scatter" : "all_gather";
    if (comm_part(n, c->parts, 0).count * c->parts == n) {
        char *mine = part_address(t, own);
        size_t count = (size_t)own.count;
        result = reduce ? s->api.reduce_scatter(t->data, mine, count, type, NCCL_SUM, team, s->stream)
                        : s->api.all_gather(mine, t->data, count, type, team, s->stream);
        nccl_check(c, result, what, t);
        return;
    }
    nccl_check(c, s->api.group_start(), what, t);
    for (int root = 0; root < c->parts && result == NCCL_SUCCESS; root++) {
        struct comm_part part = comm_part(n, c->parts, root);
        char *p = part_address(t, part);
        size_t count = (size_t)part.count;
        if (count == 0) break;
        result = reduce ? s->api.reduce(p, p, count, type, NCCL_SUM, root, team, s->stream)
                        : s->api.broadcast(p, p, count, type, root, team, s->stream);
    }
    nccl_check(c, result, what, t);
    nccl_check(c, s->api.group_end(), what, t);
}

/* First within each team, then each part over all teams. */
static int64_t nccl_reduce_scatter(struct comm *c, struct tensor *t, void *stream) {
    struct nccl_comm *s = state_of(c);
    struct comm_part own = comm_part(tensor_count(t), c->parts, c->part);
    begin(s, stream);
    nccl_in_parts(c, t, true);
    if (s->peers && own.count) {
        char *mine = part_address(t, own);
        nccl_check(
            c,
            s->api.all_reduce(mine, mine, (size_t)own.count, nccl_type_of(t), NCCL_SUM, s->peers, s->stream),
            "all_reduce over the teams", t);
    }
    return end(c);
}
static int64_t nccl_all_gather(struct comm *c, struct tensor *t, void *stream) {
    begin(state_of(c), stream);
    nccl_in_parts(c, t, false);
    return end(c);
}

/* Each part travels between its rank and the root, all of them between ncclGroupStart and ncclGroupEnd.
 * Parts without elements take part, so that every rank calls NCCL equally often. */
static int64_t nccl_with_root(struct comm *c, struct tensor *t, int64_t root, void *stream, bool gather) {
    struct nccl_comm *s = state_of(c);
    int64_t n = tensor_count(t);
    int type = nccl_type_of(t), result = NCCL_SUCCESS;
    const char *what = gather ? "gather" : "scatter";
    void *team = s->team ? s->team : s->comm;
    begin(s, stream);
    nccl_check(c, s->api.group_start(), what, t);
    for (int r = 0; r < c->parts && result == NCCL_SUCCESS; r++) {
        struct comm_part part = comm_part(n, c->parts, r);
        bool mine = r == c->part, to_root = c->part == root;
        if (r == root || !(mine || to_root)) continue;
        char *p = part_address(t, part);
        size_t count = (size_t)part.count;
        int peer = to_root ? r : (int)root;
        result = gather == to_root ? s->api.receive(p, count, type, peer, team, s->stream)
                                   : s->api.send(p, count, type, peer, team, s->stream);
    }
    nccl_check(c, result, what, t);
    nccl_check(c, s->api.group_end(), what, t);
    return end(c);
}
static int64_t nccl_gather(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return nccl_with_root(c, t, root, stream, true);
}
static int64_t nccl_scatter(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return nccl_with_root(c, t, root, stream, false);
}

/* The event of an old ticket may have been recorded again behind a later collective; then this waits longer
 * than necessary. */
static void nccl_wait(struct comm *c, int64_t ticket, void *stream) {
    struct nccl_comm *s = state_of(c);
    check(ticket >= 0 && ticket <= s->last, "ticket %lld: the last one given out is %lld", (long long)ticket,
          (long long)s->last);
    if (ticket > 0) s->device->stream_wait_event(s->device, stream, s->passed[ticket % TICKETS]);
}

/* --- opening --- */

static void nccl_free(struct comm *c) {
    struct nccl_comm *s = state_of(c);
    struct device *d = s->device;
    for (int i = 0; i < TICKETS; i++) d->event_free(d, s->passed[i]);
    d->event_free(d, s->ready);
    d->stream_free(d, s->stream);
    free(s);
    free(c);
}

static void nccl_close(struct comm *c) {
    struct nccl_comm *s = state_of(c);
    group_set_poll(c->group, NULL, NULL);
    s->device->synchronize(s->device, s->stream);
    void *const comms[] = {s->peers, s->team, s->comm};
    for (size_t i = 0; i < ARRAY_LENGTH(comms); i++) {
        int result = comms[i] ? s->api.comm_destroy(comms[i]) : NCCL_SUCCESS;
        if (result != NCCL_SUCCESS) warn("closing NCCL: %s", s->api.get_error_string(result));
    }
    nccl_free(c);
}

/* What the ranks exchange before NCCL starts. */
struct nccl_peer {
    int32_t version;
    int64_t local_rank, local_world;
    char gpu[48], host[64];
};

/* Computed from the same data on every rank, so that all refuse with the same message. */
static bool fits_together(const struct nccl_peer *peers, int64_t world, struct error *err) {
    for (int64_t r = 1; r < world; r++)
        if (peers[r].version != peers[0].version)
            return fail(err,
                        "NCCL differs: rank 0 (%s) has %s, rank %lld (%s) has %s. Install the same one "
                        "everywhere, or name it with LLMC_NCCL=PATH",
                        peers[0].host, nccl_version_text(peers[0].version), (long long)r, peers[r].host,
                        nccl_version_text(peers[r].version));
    for (int64_t r = 1; r < world; r++)
        for (int64_t q = 0; q < r; q++)
            if (strcmp(peers[q].gpu, peers[r].gpu) == 0)
                return fail(
                    err,
                    "ranks %lld (%s, local rank %lld) and %lld (%s, local rank %lld) use one GPU, "
                    "%s: NCCL needs a GPU for each process. Start as many processes on a machine as it "
                    "has GPUs, with --device cuda; CUDA_VISIBLE_DEVICES must show each all GPUs or only "
                    "its own",
                    (long long)q, peers[q].host, (long long)peers[q].local_rank, (long long)r, peers[r].host,
                    (long long)peers[r].local_rank, peers[r].gpu);
    return true;
}

static bool nccl_agree(struct group *g, struct device *device, int version, struct error *err) {
    struct nccl_peer mine = {version, g->local_rank, g->local_world, "", ""};
    snprintf(mine.gpu, sizeof mine.gpu, "%s", device->id);
    snprintf(mine.host, sizeof mine.host, "%s", g->host);
    struct nccl_peer *peers = (struct nccl_peer *)xcalloc((size_t)g->world, sizeof *peers);
    group_exchange(g, peers, &mine, sizeof mine);
    bool ok = fits_together(peers, g->world, err);
    free(peers);
    return ok;
}

/* Connects ranks first, first + stride, ..., of which this is number `index` of `count`. The first one's id
 * is theirs. If NCCL fails on one rank, the others would wait for it: that process exits, and the watch tells
 * them. */
static bool nccl_connect(struct comm *c, void **comm, int64_t first, int64_t index, int64_t count,
                         struct error *err) {
    struct nccl_comm *s = state_of(c);
    struct nccl_id mine = {""};
    int result = index == 0 ? s->api.get_unique_id(&mine) : NCCL_SUCCESS;
    bool ok = result == NCCL_SUCCESS || fail(err, "NCCL does not start: %s", nccl_error_text(s, result));
    if (!group_agree(c->group, ok, err)) return false;
    struct nccl_id *ids = (struct nccl_id *)xcalloc((size_t)c->world, sizeof *ids);
    group_exchange(c->group, ids, &mine, sizeof mine);
    struct nccl_id id = ids[first];
    free(ids);
    group_progress(c->group, "connecting the GPUs (NCCL)", -1);
    s->device->synchronize(s->device,
                           s->device->stream); /* NCCL takes the GPU that is current in this thread */
    result = s->api.comm_init_rank(comm, (int)count, id, (int)index);
    if (result == NCCL_SUCCESS) return true;
    return fail(err, "rank %lld (%s): NCCL cannot connect the GPUs: %s", (long long)c->rank, c->group->host,
                nccl_error_text(s, result));
}

static bool nccl_init(struct comm *c, struct error *err) {
    struct nccl_comm *s = state_of(c);
    int64_t team = c->rank / c->parts, teams = c->world / c->parts;
    if (!nccl_connect(c, &s->comm, 0, c->rank, c->world, err)) return false;
    if (teams == 1) return true;
    return nccl_connect(c, &s->team, team * c->parts, c->part, c->parts, err) &&
           nccl_connect(c, &s->peers, c->part, team, teams, err);
}

struct comm *comm_open_nccl(struct group *g, struct device *device, int64_t parts, struct error *err) {
    struct comm *c = (struct comm *)xcalloc(1, sizeof *c);
    struct nccl_comm *s = (struct nccl_comm *)xcalloc(1, sizeof *s);
    int version = 0;
    bool ok = device->arch
                  ? nccl_load(&s->api, &version, err)
                  : fail(err, "NCCL connects GPUs, and this process runs on the %s", device->short_name);
    if (!group_agree(g, ok, err) || !nccl_agree(g, device, version, err)) {
        free(s);
        free(c);
        return NULL;
    }
    snprintf(s->kind, sizeof s->kind, "NCCL %s", nccl_version_text(version));
    *c = (struct comm){.group = g,
                       .rank = g->rank,
                       .world = g->world,
                       .part = g->rank % parts,
                       .parts = parts,
                       .kind = s->kind,
                       .state = s,
                       .all_reduce = nccl_all_reduce,
                       .reduce_scatter = nccl_reduce_scatter,
                       .all_gather = nccl_all_gather,
                       .broadcast = nccl_broadcast,
                       .gather = nccl_gather,
                       .scatter = nccl_scatter,
                       .wait = nccl_wait,
                       .close = nccl_close};
    s->device = device;
    s->stream = device->stream_new(device);
    s->ready = device->event_new(device);
    for (int i = 0; i < TICKETS; i++) s->passed[i] = device->event_new(device);
    if (!nccl_init(c, err)) {
        nccl_free(c);
        return NULL;
    }
    group_set_poll(g, nccl_poll, c);
    return c;
}
