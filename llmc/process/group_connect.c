/* How the processes of a run find each other. Order: the hello and its answer; rank 0, which listens, judges
 * who comes, and starts all when nobody is missing; the others, which knock until rank 0 answers.
 *
 * A connection opens with a struct group_hello, answered by a struct group_reply: both ends are the same
 * program (its hash is compared), so that structs can travel as they are. Anything else that connects (a port
 * scanner, a browser) is dropped. The token keeps runs apart; it is no protection against people who mean
 * harm. */
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

/* Which program this is. 0 where /proc is not there. */
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
    /* fits what the system buffers on a fresh connection */
    return net_send(fd, &reply, sizeof reply, now_seconds() + 1.0) == NET_OK;
}

/* What receiving a reply came to: a closed connection is worth another try. */
enum outcome { CAME, REFUSED, CLOSED, SILENT };

static enum outcome receive_reply(int fd, enum group_answer expected, double deadline, struct error *err) {
    struct group_reply reply;
    enum net_result result = net_receive(fd, &reply, sizeof reply.magic, deadline);
    if (result == NET_OK && memcmp(reply.magic, MAGIC, sizeof MAGIC) != 0) {
        fail(err, "what answers there is not rank 0 of a run, but another program");
        return REFUSED;
    }
    if (result == NET_OK)
        result =
            net_receive(fd, (char *)&reply + sizeof reply.magic, sizeof reply - sizeof reply.magic, deadline);
    if (result != NET_OK) {
        fail(err, result == NET_CLOSED ? "the connection was closed" : "no answer");
        return result == NET_CLOSED ? CLOSED : SILENT;
    }
    if (reply.answer == (int64_t)expected) return CAME;
    reply.reason[sizeof reply.reason - 1] = 0;
    fail(err, "%s%s", reply.answer == GROUP_REFUSED ? "refused: " : "", reply.reason);
    return REFUSED;
}

/* --- rank 0 --- */

enum { KNOCKING_MAX = 256 };
#define HELLO_SECONDS 10.0 /* for a hello to be complete */

struct knocking { /* connected, but has not said all of its hello */
    int fd;
    double since;
    size_t got;
    struct group_hello hello;
};

struct door {
    struct group_state *s;
    int listener;
    int64_t missing; /* connections */
    struct knocking knocking[KNOCKING_MAX];
    int knocking_count;
    struct pollfd *polled; /* listener, knocking ones, then those that are here */
};

static void drop(struct door *d, int i) { d->knocking[i] = d->knocking[--d->knocking_count]; }

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
static void refuse(struct door *d, int fd, const struct group_hello *h, const char *reason) {
    struct net_address from = net_remote(fd);
    send_reply(fd, GROUP_REFUSED, reason);
    warn("a process at %s (%s, process %d) that calls itself rank %lld was refused: %s", net_text(&from),
         h->host, h->pid, (long long)h->rank, reason);
    close(fd);
}

/* Judges a complete hello. False: this run cannot come about. */
static bool admit(struct door *d, int fd, struct group_hello *h, struct error *err) {
    struct group_state *s = d->s;
    h->host[sizeof h->host - 1] = 0;
    char reason[512];
    if (memcmp(h->token, s->token, sizeof h->token) != 0) {
        refuse(d, fd, h,
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
        refuse(d, fd, h, reason);
        return fail(err, "rank %lld (%s): %s", (long long)h->rank, h->host, reason);
    }
    bool valid =
        h->rank > 0 && h->rank < h->world && (h->channel == GROUP_CALLS || h->channel == GROUP_WATCH);
    struct group_peer *p = valid ? &s->peers[h->rank] : NULL;
    int *place = !valid ? NULL : h->channel == GROUP_CALLS ? &p->calls : &p->watch;
    bool other = valid && p->calls >= 0 && (p->pid != h->pid || strcmp(p->host, h->host) != 0);
    if (!valid || *place >= 0 || other) {
        snprintf(reason, sizeof reason,
                 valid ? "rank %lld is here already (%s, process %d): it was started twice"
                       : "there is no place for a second rank %lld",
                 (long long)h->rank, valid ? p->host : "", valid ? p->pid : 0);
        refuse(d, fd, h, reason);
        return true;
    }
    if (!send_reply(fd, GROUP_WELCOME, "")) {
        close(fd); /* gone already; it may come again */
        return true;
    }
    *place = fd;
    p->pid = h->pid;
    memcpy(p->host, h->host, sizeof p->host);
    d->missing--;
    return true;
}

/* Reads on at one that is knocking. */
static bool listen_to(struct door *d, int i, struct error *err) {
    struct knocking *k = &d->knocking[i];
    ssize_t n = recv(k->fd, (char *)&k->hello + k->got, sizeof k->hello - k->got, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n > 0) k->got += (size_t)n;
    size_t known = k->got < sizeof MAGIC ? k->got : sizeof MAGIC;
    if (n <= 0 || memcmp(k->hello.magic, MAGIC, known) != 0) {
        close(k->fd);
        drop(d, i);
        return true;
    }
    if (k->got < sizeof k->hello) return true;
    struct knocking complete = *k;
    drop(d, i);
    return admit(d, complete.fd, &complete.hello, err);
}

static void accept_new(struct door *d) {
    for (int fd; (fd = net_accept(d->listener)) >= 0;) {
        if (d->knocking_count == KNOCKING_MAX) { /* the first that came said nothing for longest */
            close(d->knocking[0].fd);
            drop(d, 0);
        }
        d->knocking[d->knocking_count++] = (struct knocking){.fd = fd, .since = now_seconds()};
    }
}

/* One round of waiting and answering. */
static bool attend(struct door *d, double deadline, struct error *err) {
    struct group_state *s = d->s;
    nfds_t n = 0;
    d->polled[n++] = (struct pollfd){d->listener, POLLIN, 0};
    int knocking = d->knocking_count;
    for (int i = 0; i < knocking; i++) d->polled[n++] = (struct pollfd){d->knocking[i].fd, POLLIN, 0};
    for (int64_t r = 1; r < s->group->world; r++) { /* negative ones are ignored */
        d->polled[n++] = (struct pollfd){s->peers[r].calls, POLLIN, 0};
        d->polled[n++] = (struct pollfd){s->peers[r].watch, POLLIN, 0};
    }
    double left = fmin(deadline - now_seconds(), 1.0);
    if (poll(d->polled, n, left > 0 ? (int)(1000.0 * left) + 1 : 0) < 0 && errno != EINTR)
        return fail(err, "poll: %s", strerror(errno));
    /* Those that are here wait and say nothing: what can be read is the end. */
    for (int64_t i = 0; i < 2 * (s->group->world - 1); i++)
        if (d->polled[1 + knocking + i].revents & (POLLIN | POLLHUP | POLLERR))
            return fail(err, "%s ended before all ranks were there", group_rank_text(s->group, 1 + i / 2));
    for (int i = knocking - 1; i >= 0; i--) /* from the end, since drop() moves the last one */
        if (d->polled[1 + i].revents && !listen_to(d, i, err)) return false;
    for (int i = d->knocking_count - 1; i >= 0; i--)
        if (now_seconds() - d->knocking[i].since > HELLO_SECONDS) {
            close(d->knocking[i].fd);
            drop(d, i);
        }
    if (d->polled[0].revents) accept_new(d);
    return true;
}

static bool take_listener(struct group_state *s, int *fd, struct error *err) {
    const struct group_env *env = &s->env;
    if (env->listen_fd < 0) {
        *fd = net_listen(env->address, env->port, err);
        /* MASTER_ADDR may be a name that this machine resolves to 127.0.1.1, or an address of a router. */
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

static bool gather(struct group_state *s, struct error *err) {
    int64_t world = s->group->world;
    struct door *d = (struct door *)xcalloc(1, sizeof *d);
    *d = (struct door){.s = s, .missing = 2 * (world - 1)};
    if (!take_listener(s, &d->listener, err)) {
        free(d);
        return false;
    }
    struct net_address at = net_local(d->listener);
    d->polled = (struct pollfd *)xcalloc(1 + KNOCKING_MAX + 2 * (size_t)world, sizeof *d->polled);
    double deadline = now_seconds() + s->timeout;
    bool ok = true;
    while (ok && d->missing > 0) {
        ok = attend(d, deadline, err);
        if (ok && d->missing > 0 && now_seconds() > deadline) {
            char missing[256];
            missing_ranks(missing, sizeof missing, s);
            ok = fail(
                err,
                "%lld of %lld ranks did not come within %.0f s: missing %s. Rank 0 on %s listens at %s: is "
                "it reachable from their machines (MASTER_ADDR, MASTER_PORT, firewall), and were they "
                "started?",
                (long long)(d->missing + 1) / 2, (long long)world, s->timeout, missing, s->group->host,
                net_text(&at));
        }
    }
    for (int64_t r = 1; r < world; r++)
        if (s->peers[r].calls >= 0)
            send_reply(s->peers[r].calls, ok ? GROUP_START : GROUP_FAILED, ok ? "" : err->message);
    for (int i = 0; i < d->knocking_count; i++) close(d->knocking[i].fd);
    close(d->listener);
    free(d->polled);
    free(d);
    return ok;
}

/* --- the others --- */

/* One connection, accepted by rank 0. Tries until the deadline, since rank 0 may start later. */
static bool knock(int *out, struct group_state *s, enum group_channel channel, double deadline,
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
            if (o == CAME) {
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
    if (!knock(&zero->calls, s, GROUP_CALLS, deadline, err) ||
        !knock(&zero->watch, s, GROUP_WATCH, deadline, err))
        return false;
    /* Rank 0 may have started only now, and knows who is missing when its own time is over. */
    struct error last;
    switch (receive_reply(zero->calls, GROUP_START, now_seconds() + s->timeout + 3.0, &last)) {
    case CAME:
        return true;
    case REFUSED:
        return fail(err, "%s", last.message);
    case CLOSED:
        return fail(err, "rank 0 (%s:%d) ended before all ranks were there", s->env.address, s->env.port);
    default:
        return fail(
            err,
            "rank 0 (%s:%d) has not said for %.0f s that all ranks are there: it hangs, or its machine or "
            "the network is gone",
            s->env.address, s->env.port, s->timeout + 3.0);
    }
}

bool group_connect(struct group_state *s, struct error *err) {
    XXH128_hash_t token = XXH3_128bits(s->env.token, strlen(s->env.token));
    s->token[0] = token.low64;
    s->token[1] = token.high64;
    s->version = program_hash();
    for (int64_t r = 0; r < s->group->world; r++) s->peers[r].calls = s->peers[r].watch = -1;
    if (s->group->rank == 0 ? gather(s, err) : join(s, err)) return true;
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
