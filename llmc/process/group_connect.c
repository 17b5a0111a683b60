/* How the processes of a run connect. Rank 0 listens until every other rank has connected twice, then
 * sends GROUP_START. The others try to connect until rank 0 answers, because it may start later.
 *
 * A connection starts with a struct group_hello; rank 0 answers with a struct group_reply. It closes
 * what is no hello (a port scanner, a browser). The token separates runs; it does not protect against
 * attackers. */
#include "llmc/process/group_impl.h"

#include "llmc/base/file.h"
#include "llmc/process/net.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

static const char MAGIC[8] = "llmc-g1\n";

/* --- hello --- */

/* Identifies the build. 0 if there is no /proc. */
static uint64_t program_hash(void) {
    struct mapped_file program;
    if (!file_map(&program, "/proc/self/exe", NULL)) return 0;
    uint64_t hash = XXH3_64bits(program.data, (size_t)program.size);
    file_unmap(&program);
    return hash;
}

static void make_hello(struct group_hello *h, const struct group_state *s, enum group_channel channel) {
    memset(h, 0, sizeof *h);
    memcpy(h->magic, MAGIC, sizeof MAGIC);
    h->version = s->version;
    memcpy(h->token, s->token, sizeof h->token);
    h->rank = s->group->rank;
    h->world = s->group->world;
    h->channel = channel;
    h->pid = (int32_t)getpid();
    snprintf(h->host, sizeof h->host, "%s", s->group->host);
}

static bool send_reply(int fd, enum group_answer answer, const char *reason) {
    struct group_reply reply;
    memset(&reply, 0, sizeof reply);
    memcpy(reply.magic, MAGIC, sizeof MAGIC);
    reply.answer = answer;
    snprintf(reply.reason, sizeof reply.reason, "%s", reason);
    /* does not block: it fits into the buffer of a new connection */
    return net_send(fd, &reply, sizeof reply, now_seconds() + 1.0) == NET_OK;
}

/* After CLOSED, connecting is tried again. */
enum outcome { ACCEPTED, REFUSED, CLOSED, SILENT };

static enum outcome receive_reply(int fd, enum group_answer expected, double deadline, struct error *err) {
    struct group_reply reply;
    enum net_result result = net_receive(fd, &reply, sizeof reply.magic, deadline);
    if (result == NET_OK && memcmp(reply.magic, MAGIC, sizeof MAGIC) != 0) {
        fail(err, "another program answers there, not rank 0 of a run");
        return REFUSED;
    }
    if (result == NET_OK)
        result =
            net_receive(fd, (char *)&reply + sizeof reply.magic, sizeof reply - sizeof reply.magic, deadline);
    if (result != NET_OK) {
        fail(err, result == NET_CLOSED ? "the connection was closed" : "no answer");
        return result == NET_CLOSED ? CLOSED : SILENT;
    }
    if (reply.answer == (int64_t)expected) return ACCEPTED;
    reply.reason[sizeof reply.reason - 1] = 0;
    fail(err, "%s%s", reply.answer == GROUP_REFUSED ? "refused: " : "", reply.reason);
    return REFUSED;
}

/* --- rank 0 --- */

enum { PENDING_MAX = 256 };
#define HELLO_SECONDS 10.0 /* for a hello to arrive */

/* A connection whose hello is incomplete. */
struct pending {
    int fd;
    double since;
    size_t got;
    struct group_hello hello;
};

struct reception {
    struct group_state *s;
    int listener;
    int64_t missing; /* connections */
    struct pending pending[PENDING_MAX];
    int pending_count;
    struct pollfd *polled; /* the listener, pending connections, then those of the ranks */
};

static void drop(struct reception *in, int i) { in->pending[i] = in->pending[--in->pending_count]; }

/* "2, 5-7 and 9": ranks that have not connected. */
static void missing_ranks(char *out, size_t size, const struct group_state *s) {
    size_t at = 0;
    int64_t world = s->group->world;
    out[0] = 0;
    for (int64_t r = 1; r < world; r++) {
        int64_t last = r;
        if (s->peers[r].watch >= 0) continue;
        while (last + 1 < world && s->peers[last + 1].watch < 0) last++;
        int n = last > r ? snprintf(out + at, size - at, "%s%lld-%lld", at ? ", " : "", (long long)r,
                                    (long long)last)
                         : snprintf(out + at, size - at, "%s%lld", at ? ", " : "", (long long)r);
        if (n < 0 || (size_t)n >= size - at) return;
        at += (size_t)n;
        r = last;
    }
}

/* Closes a connection and tells both sides why. */
static void refuse(int fd, const struct group_hello *h, const char *reason) {
    struct net_address from = net_remote(fd);
    send_reply(fd, GROUP_REFUSED, reason);
    warn("a process at %s (%s, process %d) that calls itself rank %lld was refused: %s", net_text(&from),
         h->host, h->pid, (long long)h->rank, reason);
    close(fd);
}

/* Accepts or refuses a complete hello. False if the run cannot start. */
static bool admit(struct reception *in, int fd, struct group_hello *h, struct error *err) {
    struct group_state *s = in->s;
    h->host[sizeof h->host - 1] = 0;
    char reason[512];
    if (memcmp(h->token, s->token, sizeof h->token) != 0) {
        refuse(fd, h,
               "its token (LLMC_TOKEN, or the launcher's job) is another one: it belongs to another run");
        return true;
    }
    if (h->version != s->version || h->world != s->group->world) {
        if (h->version != s->version)
            snprintf(reason, sizeof reason,
                     "it runs another build of the program (%016llx) than rank 0 on %s (%016llx): copy one "
                     "build to all machines",
                     (unsigned long long)h->version, s->group->host, (unsigned long long)s->version);
        else
            snprintf(reason, sizeof reason, "it was started for %lld ranks, rank 0 for %lld",
                     (long long)h->world, (long long)s->group->world);
        refuse(fd, h, reason);
        return fail(err, "rank %lld (%s): %s", (long long)h->rank, h->host, reason);
    }
    bool valid =
        h->rank > 0 && h->rank < h->world && (h->channel == GROUP_CALLS || h->channel == GROUP_WATCH);
    struct group_peer *p = valid ? &s->peers[h->rank] : NULL;
    int *place = !valid ? NULL : h->channel == GROUP_CALLS ? &p->calls : &p->watch;
    bool other = valid && p->calls >= 0 && (p->pid != h->pid || strcmp(p->host, h->host) != 0);
    if (!valid || *place >= 0 || other) {
        snprintf(reason, sizeof reason,
                 valid ? "rank %lld is already connected (%s, process %d): it was started twice"
                       : "this run expects no rank %lld",
                 (long long)h->rank, valid ? p->host : "", valid ? p->pid : 0);
        refuse(fd, h, reason);
        return true;
    }
    if (!send_reply(fd, GROUP_WELCOME, "")) {
        close(fd); /* already gone; it may connect again */
        return true;
    }
    *place = fd;
    p->pid = h->pid;
    memcpy(p->host, h->host, sizeof p->host);
    in->missing--;
    return true;
}

/* Reads more of a hello. */
static bool read_hello(struct reception *in, int i, struct error *err) {
    struct pending *k = &in->pending[i];
    ssize_t n = recv(k->fd, (char *)&k->hello + k->got, sizeof k->hello - k->got, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n > 0) k->got += (size_t)n;
    size_t known = k->got < sizeof MAGIC ? k->got : sizeof MAGIC;
    if (n <= 0 || memcmp(k->hello.magic, MAGIC, known) != 0) {
        close(k->fd);
        drop(in, i);
        return true;
    }
    if (k->got < sizeof k->hello) return true;
    struct pending complete = *k;
    drop(in, i);
    return admit(in, complete.fd, &complete.hello, err);
}

static void accept_new(struct reception *in) {
    for (int fd; (fd = net_accept(in->listener)) >= 0;) {
        if (in->pending_count == PENDING_MAX) { /* the oldest has been silent longest */
            close(in->pending[0].fd);
            drop(in, 0);
        }
        in->pending[in->pending_count++] = (struct pending){.fd = fd, .since = now_seconds()};
    }
}

/* Waits for events and handles them. */
static bool serve(struct reception *in, double deadline, struct error *err) {
    struct group_state *s = in->s;
    nfds_t n = 0;
    in->polled[n++] = (struct pollfd){in->listener, POLLIN, 0};
    int waiting = in->pending_count;
    for (int i = 0; i < waiting; i++) in->polled[n++] = (struct pollfd){in->pending[i].fd, POLLIN, 0};
    for (int64_t r = 1; r < s->group->world; r++) { /* poll() ignores negative descriptors */
        in->polled[n++] = (struct pollfd){s->peers[r].calls, POLLIN, 0};
        in->polled[n++] = (struct pollfd){s->peers[r].watch, POLLIN, 0};
    }
    double left = fmin(deadline - now_seconds(), 1.0);
    if (poll(in->polled, n, left > 0 ? (int)(1000.0 * left) + 1 : 0) < 0 && errno != EINTR)
        return fail(err, "poll: %s", strerror(errno));
    /* A connected rank sends nothing: if there is something to read, it is the end of the connection. */
    for (int64_t i = 0; i < 2 * (s->group->world - 1); i++)
        if (in->polled[1 + waiting + i].revents & (POLLIN | POLLHUP | POLLERR))
            return fail(err, "%s ended before all ranks were connected",
                        group_rank_text(s->group, 1 + i / 2));
    for (int i = waiting - 1; i >= 0; i--) /* backwards, because drop() moves the last one */
        if (in->polled[1 + i].revents && !read_hello(in, i, err)) return false;
    for (int i = in->pending_count - 1; i >= 0; i--)
        if (now_seconds() - in->pending[i].since > HELLO_SECONDS) {
            close(in->pending[i].fd);
            drop(in, i);
        }
    if (in->polled[0].revents) accept_new(in);
    return true;
}

static bool take_listener(struct group_state *s, int *fd, struct error *err) {
    const struct group_env *env = &s->env;
    if (env->listen_fd < 0) {
        *fd = net_listen(env->address, env->port, err);
        /* This machine may resolve its own name to 127.0.1.1; MASTER_ADDR may be a router's address. */
        if (*fd >= 0 && !env->one_host) {
            struct net_address a = net_local(*fd);
            if (net_is_loopback(&a)) {
                close(*fd);
                *fd = net_listen_any(env->port, err);
            }
        } else if (*fd < 0 && errno != EADDRINUSE && !env->one_host) {
            *fd = net_listen_any(env->port, err);
        }
        return *fd >= 0;
    }
    int listens = 0;
    socklen_t size = sizeof listens;
    *fd = env->listen_fd;
    if (getsockopt(*fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || !listens)
        return fail(err, "environment: LLMC_LISTEN_FD=%d is not a socket that listens", *fd);
    net_adopt(*fd);
    return true;
}

static bool accept_ranks(struct group_state *s, struct error *err) {
    int64_t world = s->group->world;
    struct reception *in = (struct reception *)xcalloc(1, sizeof *in);
    *in = (struct reception){.s = s, .missing = 2 * (world - 1)};
    if (!take_listener(s, &in->listener, err)) {
        free(in);
        return false;
    }
    struct net_address at = net_local(in->listener);
    in->polled = (struct pollfd *)xcalloc(1 + PENDING_MAX + 2 * (size_t)world, sizeof *in->polled);
    double deadline = now_seconds() + s->timeout;
    bool ok = true;
    while (ok && in->missing > 0) {
        ok = serve(in, deadline, err);
        if (ok && in->missing > 0 && now_seconds() > deadline) {
            char missing[256];
            missing_ranks(missing, sizeof missing, s);
            ok = fail(
                err,
                "%lld of %lld ranks did not connect within %.0f s: missing %s. Rank 0 on %s listens at %s: "
                "is it reachable from their machines (MASTER_ADDR, MASTER_PORT, firewall), and were they "
                "started?",
                (long long)(in->missing + 1) / 2, (long long)world, s->timeout, missing, s->group->host,
                net_text(&at));
        }
    }
    for (int64_t r = 1; r < world; r++)
        if (s->peers[r].calls >= 0)
            send_reply(s->peers[r].calls, ok ? GROUP_START : GROUP_FAILED, ok ? "" : err->message);
    for (int i = 0; i < in->pending_count; i++) close(in->pending[i].fd);
    close(in->listener);
    free(in->polled);
    free(in);
    return ok;
}

/* --- the other ranks --- */

/* Makes one connection that rank 0 accepts. Tries until the deadline, because rank 0 may start later. */
static bool connect_once(int *out, struct group_state *s, enum group_channel channel, double deadline,
                         struct error *err) {
    const struct group_env *env = &s->env;
    struct error last;
    struct group_hello hello;
    make_hello(&hello, s, channel);
    for (double pause = 0.02;; pause = fmin(2.0 * pause, 0.5)) {
        int fd = net_connect(env->address, env->port, deadline, &last);
        if (fd >= 0) {
            enum outcome o = net_send(fd, &hello, sizeof hello, deadline) == NET_OK
                                 ? receive_reply(fd, GROUP_WELCOME, deadline, &last)
                                 : CLOSED;
            if (o == ACCEPTED) {
                *out = fd;
                return true;
            }
            struct net_address at = net_remote(fd);
            close(fd);
            if (o == REFUSED)
                return fail(err, "rank %lld at %s:%d: %s", (long long)s->group->rank, env->address, env->port,
                            last.message);
            if (o == CLOSED) fail(&last, "%s closed the connection", net_text(&at));
        }
        if (now_seconds() + pause > deadline)
            return fail(
                err,
                "rank 0 did not answer at %s:%d within %.0f s (%s): was it started, and is that its machine "
                "(MASTER_ADDR), reachable from here (%s)?",
                env->address, env->port, s->timeout, last.message, s->group->host);
        usleep((useconds_t)(1e6 * pause));
    }
}

static bool join(struct group_state *s, struct error *err) {
    struct group_peer *zero = &s->peers[0];
    double deadline = now_seconds() + s->timeout;
    if (!connect_once(&zero->calls, s, GROUP_CALLS, deadline, err) ||
        !connect_once(&zero->watch, s, GROUP_WATCH, deadline, err))
        return false;
    /* Rank 0 may have started just now; at the end of its own timeout it sends which ranks are missing. */
    struct error last;
    switch (receive_reply(zero->calls, GROUP_START, now_seconds() + s->timeout + 3.0, &last)) {
    case ACCEPTED:
        return true;
    case REFUSED:
        return fail(err, "%s", last.message);
    case CLOSED:
        return fail(err, "rank 0 (%s:%d) ended before all ranks were connected", s->env.address, s->env.port);
    default:
        return fail(
            err,
            "rank 0 (%s:%d) has not answered for %.0f s: it hangs, or its machine or the network is down",
            s->env.address, s->env.port, s->timeout + 3.0);
    }
}

bool group_connect(struct group_state *s, struct error *err) {
    XXH128_hash_t token = XXH3_128bits(s->env.token, strlen(s->env.token));
    s->token[0] = token.low64;
    s->token[1] = token.high64;
    s->version = program_hash();
    for (int64_t r = 0; r < s->group->world; r++) s->peers[r].calls = s->peers[r].watch = -1;
    if (s->group->rank == 0 ? accept_ranks(s, err) : join(s, err)) return true;
    group_disconnect(s);
    return false;
}

void group_disconnect(struct group_state *s) {
    for (int64_t r = 0; r < s->group->world; r++) {
        if (s->peers[r].calls >= 0) close(s->peers[r].calls);
        if (s->peers[r].watch >= 0) close(s->peers[r].watch);
        s->peers[r].calls = s->peers[r].watch = -1;
    }
}
