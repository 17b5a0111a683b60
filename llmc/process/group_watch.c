/* The watch: a thread that ends this process when another one has failed.
 *
 * Every rank is connected to rank 0. Each sends its state once a second; rank 0 looks for ranks that are
 * silent or stuck and sends the reason to all. The other ranks only watch rank 0. A watch waits for GRACE
 * after the first sign of a failure, because this process may be about to end by itself, by the same signal
 * or error, with a better message. */
#include "llmc/process/group_impl.h"

#include "llmc/process/net.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* in seconds */
#define TICK_MAX   1.0 /* between two messages */
#define GRACE      0.5 /* between the sign of a failure and the end */
#define DRAIN      1.0 /* for the last message to arrive */
#define LOST_GRACE 5.0 /* for the watch to find out why a connection broke */

/* Bytes of a reason: "rank 12345 (host): " and a message of die_at(). */
enum { REASON_MAX = 1200 };

struct group_watch {
    pthread_t thread;
    pthread_mutex_t send_lock, poll_lock; /* the latter: poll and arg */
    bool (*poll)(void *arg, struct error *err);
    void *arg;
    int wake;            /* an eventfd that ends the thread's poll() */
    atomic_bool closing; /* this process has called group_close */
    atomic_bool dying;   /* ... or exits with its own error */
    bool over;           /* all ranks have closed */
    double tick;         /* TICK_MAX, or less for a short timeout */
    double turned;       /* time of the loop's last round */
    double failed;       /* time when `reason` was found; 0: no failure */
    char reason[REASON_MAX];
    struct pollfd *polled;
};

/* --- messages --- */

enum watch_kind { WATCH_STATE, WATCH_LAST_WORDS, WATCH_END, WATCH_GOODBYE, WATCH_ALL_CLOSED };
struct watch_head {
    uint32_t kind, bytes; /* of the text that follows */
};
struct watch_state {
    int64_t step, waits_for;
    uint32_t beats, waiting;
    char what[GROUP_WHAT_MAX];
};

/* Never blocks: a message fits into the socket's buffer unless the other side has not read for hours. */
static void put(struct group_state *s, int64_t to, enum watch_kind kind, const void *data, size_t bytes) {
    uint8_t message[sizeof(struct watch_head) + REASON_MAX];
    struct watch_head head = {kind, (uint32_t)bytes};
    int fd = s->peers[to].watch;
    if (fd < 0) return;
    memcpy(message, &head, sizeof head);
    if (bytes) memcpy(message + sizeof head, data, bytes);
    pthread_mutex_lock(&s->watch->send_lock);
    ssize_t n = send(fd, message, sizeof head + bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    /* After half a message the next one could not be read. */
    if (n >= 0 && (size_t)n < sizeof head + bytes) shutdown(fd, SHUT_WR);
    pthread_mutex_unlock(&s->watch->send_lock);
}

/* Rank 0: to all ranks. Others: to rank 0. */
static void put_all(struct group_state *s, enum watch_kind kind, const void *data, size_t bytes) {
    for (int64_t r = 0; r < s->group->world; r++) put(s, r, kind, data, bytes);
}

static struct watch_state own_state(struct group_state *s) {
    struct watch_state state = {.step = atomic_load_explicit(&s->step, memory_order_relaxed),
                                .waits_for = atomic_load_explicit(&s->waits_for, memory_order_relaxed),
                                .beats = atomic_load_explicit(&s->beats, memory_order_relaxed),
                                .waiting = atomic_load_explicit(&s->waiting, memory_order_relaxed)};
    snprintf(state.what, sizeof state.what, "%s", atomic_load_explicit(&s->what, memory_order_relaxed));
    return state;
}

/* --- what is known of the other ranks --- */

static void note_failure(struct group_state *s, const char *fmt, ...) LLMC_PRINTF(2, 3);
static void note_failure(struct group_state *s, const char *fmt, ...) {
    struct group_watch *w = s->watch;
    if (w->failed > 0) return; /* the first reason is the cause, later ones are effects */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(w->reason, sizeof w->reason, fmt, ap);
    va_end(ap);
    w->failed = now_seconds();
}

/* "step 17, waiting for rank 2" */
static const char *activity(const struct group_state *s, int64_t rank) {
    const struct group_peer *p = &s->peers[rank];
    if (!p->what[0]) return "start";
    const char *text = temp_printf(p->step >= 0 ? "%s %lld" : "%s", p->what, (long long)p->step);
    if (!p->waiting || p->waits_for < 0) return text;
    return temp_printf("%s, waiting for rank %lld", text, (long long)p->waits_for);
}

static void note_state(struct group_peer *p, const struct watch_state *state, unsigned *beats, double now) {
    if (state->beats != *beats || p->progressed <= 0) p->progressed = now;
    *beats = state->beats;
    memcpy(p->what, state->what, sizeof p->what);
    p->what[sizeof p->what - 1] = 0;
    p->step = state->step;
    p->waits_for = state->waits_for;
    p->waiting = state->waiting;
}

static void handle(struct group_state *s, int64_t from, enum watch_kind kind, const uint8_t *data,
                   size_t bytes) {
    struct group_peer *p = &s->peers[from];
    struct watch_state state;
    int length = (int)bytes;
    switch (kind) {
    case WATCH_STATE:
        if (bytes != sizeof state) break;
        memcpy(&state, data, sizeof state);
        note_state(p, &state, &p->beats, now_seconds());
        return;
    case WATCH_LAST_WORDS:
        note_failure(s, "%s: %.*s", group_rank_text(s->group, from), length, (const char *)data);
        return;
    case WATCH_END:
        note_failure(s, "%.*s", length, (const char *)data);
        s->watch->failed -= GRACE; /* rank 0 has already waited */
        return;
    case WATCH_GOODBYE:
        p->closing = true;
        return;
    case WATCH_ALL_CLOSED:
        s->watch->over = true;
        return;
    }
    note_failure(s, "%s sent an invalid message to the watch", group_rank_text(s->group, from));
}

static void closed(struct group_state *s, int64_t rank, int reason) {
    s->peers[rank].gone = true;
    if (s->watch->over) return;
    if (reason == 0 || reason == ECONNRESET || reason == EPIPE)
        note_failure(
            s,
            "%s ended without a message; last activity: %s. It was killed, crashed, or its machine ran out "
            "of memory",
            group_rank_text(s->group, rank), activity(s, rank));
    else
        note_failure(s,
                     "the connection to %s failed: %s; last activity: %s. Its machine or the network is down",
                     group_rank_text(s->group, rank), strerror(reason), activity(s, rank));
}

/* Reads and handles the messages of a rank. */
static void hear(struct group_state *s, int64_t rank) {
    struct group_peer *p = &s->peers[rank];
    size_t size = sizeof(struct watch_head) + REASON_MAX;
    if (!p->inbox) p->inbox = (uint8_t *)xmalloc(size);
    ssize_t n = recv(p->watch, p->inbox + p->inbox_size, size - p->inbox_size, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        closed(s, rank, n < 0 ? errno : 0);
        return;
    }
    p->heard = now_seconds();
    p->inbox_size += (size_t)n;
    size_t at = 0;
    struct watch_head head;
    while (p->inbox_size - at >= sizeof head) {
        memcpy(&head, p->inbox + at, sizeof head);
        if (head.bytes > REASON_MAX) {
            note_failure(s, "%s sent an invalid message to the watch", group_rank_text(s->group, rank));
            return;
        }
        if (p->inbox_size - at < sizeof head + head.bytes) break;
        handle(s, rank, (enum watch_kind)head.kind, p->inbox + at + sizeof head, head.bytes);
        at += sizeof head + head.bytes;
    }
    p->inbox_size -= at;
    memmove(p->inbox, p->inbox + at, p->inbox_size);
}

/* --- finding failures --- */

static bool stale(const struct group_state *s, int64_t rank, double now) {
    return now - s->peers[rank].progressed > s->timeout;
}

static void report_silence(struct group_state *s, int64_t rank, double now) {
    note_failure(
        s,
        "no message from %s for %.0f s; last activity: %s. The process is stopped, or its machine or the "
        "network is down",
        group_rank_text(s->group, rank), now - s->peers[rank].heard, activity(s, rank));
}

static void find_silent(struct group_state *s, double now) {
    for (int64_t r = 0; r < s->group->world; r++) {
        const struct group_peer *p = &s->peers[r];
        if (p->watch >= 0 && !p->gone && now - p->heard > s->timeout) report_silence(s, r, now);
    }
}

/* Rank 0, on a global stall while some rank waits: blames a silent rank, else the ranks that are not in
 * a wait. If all wait, reports for whom. */
static void find_stuck(struct group_state *s, double now) {
    int64_t world = s->group->world, waiting = 0, stuck = 0, shown = 0;
    for (int64_t r = 0; r < world; r++) {
        const struct group_peer *p = &s->peers[r];
        if (p->closing) continue;
        if (!stale(s, r, now)) return;
        waiting += p->waiting;
        stuck += !p->waiting;
    }
    if (waiting == 0) return;
    for (int64_t r = 1; r < world; r++)
        if (now - s->peers[r].heard > 3.0 * s->watch->tick) report_silence(s, r, now);
    char list[REASON_MAX - 100] = "";
    size_t at = 0;
    for (int64_t r = 0; r < world && shown < 4; r++) {
        const struct group_peer *p = &s->peers[r];
        if (p->closing || (stuck && p->waiting)) continue;
        int n = snprintf(list + at, sizeof list - at, "%s%s, last activity: %s", shown ? "; " : "",
                         group_rank_text(s->group, r), activity(s, r));
        at += (size_t)n;
        shown++;
    }
    int64_t all = stuck ? stuck : waiting;
    note_failure(s, "no progress for %.0f s%s: %s%s", s->timeout, stuck ? " while the other ranks wait" : "",
                 list, all > shown ? "; and more" : "");
}

static void tick(struct group_state *s, double now) {
    struct group_watch *w = s->watch;
    struct watch_state state = own_state(s);
    struct group_peer *own = &s->peers[s->group->rank];
    note_state(own, &state, &own->beats, now);
    own->closing = w->closing;
    put_all(s, WATCH_STATE, &state, sizeof state);
    find_silent(s, now);
    if (s->group->rank == 0) find_stuck(s, now);
    struct error err;
    pthread_mutex_lock(&w->poll_lock);
    bool ok = !w->poll || w->poll(w->arg, &err);
    pthread_mutex_unlock(&w->poll_lock);
    if (ok || w->failed > 0) return;
    note_failure(s, "%s: %s", group_rank_text(s->group, s->group->rank), err.message);
    if (s->group->rank != 0) put_all(s, WATCH_LAST_WORDS, err.message, strlen(err.message));
}

/* --- the thread --- */

/* Waits until the other ranks have read what was sent to them and closed; a reset could overtake it. */
static void drain(struct group_state *s, double seconds) {
    double deadline = now_seconds() + seconds;
    for (int64_t r = 0; r < s->group->world; r++) {
        struct group_peer *p = &s->peers[r];
        if (p->watch < 0 || p->gone) continue;
        shutdown(p->watch, SHUT_WR);
        char nothing[256];
        while (net_receive(p->watch, nothing, 1, deadline) == NET_OK) {}
    }
}

static LLMC_NORETURN void end_process(struct group_state *s) {
    signal(SIGALRM, SIG_DFL); /* in case printing blocks */
    alarm(5);
    put_all(s, WATCH_END, s->watch->reason, strlen(s->watch->reason));
    report_error("%s", s->watch->reason);
    drain(s, DRAIN);
    _exit(GROUP_EXIT_STATUS);
}

static void *watch_main(void *arg) {
    struct group_state *s = (struct group_state *)arg;
    struct group_watch *w = s->watch;
    int64_t world = s->group->world;
    double next = now_seconds();
    w->turned = next;
    for (;;) {
        double now = now_seconds(), until = w->failed > 0 ? fmin(next, w->failed + GRACE) : next;
        for (int64_t r = 0; r < world; r++)
            w->polled[r] = (struct pollfd){s->peers[r].gone ? -1 : s->peers[r].watch, POLLIN, 0};
        w->polled[world] = (struct pollfd){w->wake, POLLIN, 0};
        int n = poll(w->polled, (nfds_t)world + 1, (int)(1000.0 * fmax(until - now, 0.0)) + 1);
        now = now_seconds();
        /* This process was stopped for a while: the silence of the others is its own. */
        if (now - w->turned > 5.0 * w->tick)
            for (int64_t r = 0; r < world; r++) s->peers[r].heard = s->peers[r].progressed = now;
        w->turned = now;
        for (int64_t r = 0; r < world && n > 0; r++)
            if (w->polled[r].revents) hear(s, r);
        uint64_t count;
        if (n > 0 && w->polled[world].revents && read(w->wake, &count, sizeof count) > 0)
            next = fmin(next, now); /* closing: send it at once */
        if (now >= next) {
            tick(s, now);
            next = now + w->tick;
        }
        if (s->group->rank == 0 && w->closing && w->failed <= 0) {
            w->over = true;
            for (int64_t r = 1; r < world; r++) w->over &= s->peers[r].closing;
            if (w->over) put_all(s, WATCH_ALL_CLOSED, NULL, 0);
        }
        if (w->over) return NULL;
        if (w->failed > 0 && now >= w->failed + GRACE && !w->dying) end_process(s);
    }
}

void group_watch_start(struct group_state *s) {
    struct group_watch *w = s->watch = (struct group_watch *)xcalloc(1, sizeof *w);
    pthread_mutex_init(&w->send_lock, NULL);
    pthread_mutex_init(&w->poll_lock, NULL);
    w->tick = fmin(TICK_MAX, s->timeout / 5.0);
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    check(w->wake >= 0, "eventfd: %s", strerror(errno));
    w->polled = (struct pollfd *)xcalloc((size_t)s->group->world + 1, sizeof *w->polled);
    double now = now_seconds();
    for (int64_t r = 0; r < s->group->world; r++) s->peers[r].heard = s->peers[r].progressed = now;
    thread_start(&w->thread, watch_main, s, "watches the other ranks");
}

/* --- closing, last words, lost connections --- */

static void wake(struct group_watch *w) {
    uint64_t one = 1;
    if (write(w->wake, &one, sizeof one) < 0) return; /* already awake */
}

void group_watch_close(struct group_state *s) {
    struct group_watch *w = s->watch;
    group_waiting(s->group, "closing", -1);
    w->closing = true;
    if (s->group->rank != 0) put(s, 0, WATCH_GOODBYE, NULL, 0);
    wake(w);
    pthread_join(w->thread, NULL);
    if (s->group->rank == 0) drain(s, DRAIN);
    close(w->wake);
    for (int64_t r = 0; r < s->group->world; r++) free(s->peers[r].inbox);
    pthread_mutex_destroy(&w->send_lock);
    pthread_mutex_destroy(&w->poll_lock);
    free(w->polled);
    free(w);
    s->watch = NULL;
}

void group_last_words(struct group_state *s, const char *message) {
    struct group_watch *w = s->watch;
    if (!w || w->dying) return;
    w->dying = true;
    put_all(s, WATCH_LAST_WORDS, message, strlen(message));
    usleep(50000); /* the others must read it before the end of this process resets the connection */
}

void group_set_poll(struct group *g, bool (*poll_function)(void *arg, struct error *err), void *arg) {
    if (!g->state) return;
    struct group_watch *w = g->state->watch;
    pthread_mutex_lock(&w->poll_lock);
    w->poll = poll_function;
    w->arg = arg;
    pthread_mutex_unlock(&w->poll_lock);
}

void group_lost(struct group_state *s, int64_t rank, const char *where) {
    /* The watch's connection to that process breaks, too, and the watch then ends this process. */
    for (double until = now_seconds() + LOST_GRACE; now_seconds() < until;) usleep(20000);
    die("the connection to %s broke in %s, though both processes are alive: the network between them failed",
        group_rank_text(s->group, rank), where);
}
