/* The parent of a run of several processes, from their start to their end. Order: what they say; signals;
 * ends; the loop. */
#include "llmc/process/launch_impl.h"

#include "llmc/process/group.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

/* Seconds: for the others to say what they know after one has failed; for which a line that several ranks say
 * is shown once. */
static const double GRACE = 3.0, SAME_LINE = 10.0;

/* --- what they say --- */

/* The line without "rank 2: " or "rank 2 (node7): " in front. */
static const char *without_rank(const char *line) {
    if (strncmp(line, "rank ", 5) != 0) return line;
    const char *p = line + 5 + strspn(line + 5, "0123456789");
    if (strncmp(p, " (", 2) == 0 && strchr(p, ')')) p = strchr(p, ')') + 1;
    return p > line + 5 && strncmp(p, ": ", 2) == 0 ? p + 2 : line;
}

/* Whether another rank has just said the same. */
static bool said_already(struct launch *l, int64_t rank, const char *text) {
    const int64_t room = (int64_t)ARRAY_LENGTH(l->said);
    double now = now_seconds();
    for (int64_t i = max_i64(0, l->said_count - room); i < l->said_count; i++) {
        const struct launch_said *s = &l->said[i % room];
        if (s->rank != rank && now - s->when < SAME_LINE && strncmp(s->text, text, sizeof s->text - 1) == 0)
            return true;
    }
    struct launch_said *s = &l->said[l->said_count++ % room];
    s->rank = rank;
    s->when = now;
    snprintf(s->text, sizeof s->text, "%.255s", text);
    return false;
}

static void show_line(struct launch *l, int64_t rank) {
    struct launch_child *c = &l->child[rank];
    c->line[c->length] = '\0';
    c->length = 0;
    const char *text = without_rank(c->line), *error = strstr(text, "error: ");
    if (error == text) snprintf(c->complaint, sizeof c->complaint, "%s", text + strlen("error: "));
    if (said_already(l, rank, text)) return;
    char prefix[32] = "";
    if (rank != 0 && text == c->line) snprintf(prefix, sizeof prefix, "rank %" PRId64 ": ", rank);
    fprintf(stderr, "%s%s%s\n", isatty(STDERR_FILENO) ? "\r\033[K" : "", prefix, c->line);
}

static void take_output(struct launch *l, int64_t rank) {
    struct launch_child *c = &l->child[rank];
    char bytes[4096];
    ssize_t n;
    while ((n = read(c->output, bytes, sizeof bytes)) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            if (bytes[i] != '\n') c->line[c->length++] = bytes[i];
            if (bytes[i] == '\n' || c->length == sizeof c->line - 1) show_line(l, rank);
        }
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (c->length) show_line(l, rank);
    close(c->output);
    c->output = -1;
}

static void take_report(struct launch *l) {
    ssize_t n;
    char *end;
    while ((n = read(l->report, l->report_line + l->report_length,
                     sizeof l->report_line - 1 - l->report_length)) > 0) {
        l->report_length += (size_t)n;
        l->report_line[l->report_length] = '\0';
        while ((end = strchr(l->report_line, '\n')) != NULL) {
            *end = '\0';
            if (strcmp(l->report_line, "training") == 0) l->training = true;
            if (strncmp(l->report_line, "run ", 4) == 0) {
                free(l->directory);
                l->directory = xstrdup(l->report_line + 4);
            }
            l->report_length -= (size_t)(end + 1 - l->report_line);
            memmove(l->report_line, end + 1, l->report_length + 1);
        }
        if (l->report_length == sizeof l->report_line - 1) l->report_length = 0; /* no word of ours */
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    close(l->report);
    l->report = -1;
}

/* --- signals --- */

/* Ctrl-Z stops them, too: processes that went on alone would soon fill their pipes and stand still. */
static void pause_all(const struct launch *l) {
    kill(-l->group, SIGSTOP);
    kill(getpid(), SIGSTOP);
    kill(-l->group, SIGCONT);
}

static void take_signals(struct launch *l) {
    struct signalfd_siginfo s;
    while (read(l->signals, &s, sizeof s) == (ssize_t)sizeof s) {
        int number = (int)s.ssi_signo;
        if (number == SIGCHLD) continue;
        if (number == SIGTSTP) {
            pause_all(l);
        } else if (!l->stop) {
            l->stop = number;
            if (l->group) kill(-l->group, number);
        } else {
            l->kill_at = now_seconds();
        }
    }
}

bool launch_pause(struct launch *l, double seconds) {
    double end = now_seconds() + seconds, left;
    l->group = 0; /* nobody is left to hand signals on to */
    while (!l->stop && (left = end - now_seconds()) > 0) {
        struct pollfd p = {.fd = l->signals, .events = POLLIN};
        poll(&p, 1, (int)ceil(1e3 * left));
        take_signals(l);
    }
    return !l->stop;
}

/* --- ends --- */

char *launch_end_text(int status) {
    if (!WIFSIGNALED(status)) return xasprintf("ended with status %d", WEXITSTATUS(status));
    int number = WTERMSIG(status);
    return xasprintf("was killed by signal %d (%s)%s", number, strsignal(number),
                     number == SIGKILL ? ", perhaps because memory ran out" : "");
}

/* Killed by the signal that was handed on, or saved and ended because of it. */
static bool is_stopped(const struct launch *l, int status) {
    if (!l->stop) return false;
    return WIFSIGNALED(status) ? WTERMSIG(status) == l->stop : WEXITSTATUS(status) == 128 + l->stop;
}

/* A process that ends because of another one has this status; the other one is the first that failed, even if
 * its end becomes known later. */
static bool is_consequence(int status) {
    return WIFEXITED(status) && WEXITSTATUS(status) == GROUP_EXIT_STATUS;
}

static void note_end(struct launch *l, int64_t rank, int status) {
    l->child[rank].ended = true;
    l->child[rank].status = status;
    bool killed_here = now_seconds() >= l->kill_at && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    if ((WIFEXITED(status) && WEXITSTATUS(status) == 0) || is_stopped(l, status) || killed_here) return;
    if (l->failed < 0) {
        l->failed = rank;
        l->kill_at = fmin(l->kill_at, now_seconds() + GRACE);
    } else if (is_consequence(l->child[l->failed].status) && !is_consequence(status)) {
        l->failed = rank;
    }
}

/* Where all end for the same reason, one of them speaks for all. */
static void prefer_who_complained(struct launch *l) {
    if (l->failed < 0 || l->child[l->failed].complaint[0] || WIFSIGNALED(l->child[l->failed].status)) return;
    for (int64_t rank = l->ranks - 1; rank >= 0; rank--)
        if (l->child[rank].complaint[0] && l->child[rank].status == l->child[l->failed].status)
            l->failed = rank;
}

static int64_t reap(struct launch *l) {
    int64_t alive = 0;
    for (int64_t rank = 0; rank < l->ranks; rank++) {
        struct launch_child *c = &l->child[rank];
        int status;
        if (!c->ended && waitpid(c->pid, &status, WNOHANG) == c->pid) note_end(l, rank, status);
        alive += !c->ended;
    }
    return alive;
}

/* --- the loop --- */

static void wait_for_news(struct launch *l, struct pollfd *p) {
    for (int64_t rank = 0; rank < l->ranks; rank++)
        p[rank] = (struct pollfd){.fd = l->child[rank].output, .events = POLLIN};
    p[l->ranks] = (struct pollfd){.fd = l->signals, .events = POLLIN};
    p[l->ranks + 1] = (struct pollfd){.fd = l->report, .events = POLLIN};
    double left = l->kill_at - now_seconds();
    poll(p, (nfds_t)l->ranks + 2, isfinite(left) ? (int)ceil(1e3 * fmax(0.0, left)) : -1);
}

void launch_watch(struct launch *l) {
    struct pollfd *p = (struct pollfd *)xcalloc((size_t)l->ranks + 2, sizeof *p);
    bool killed = false;
    for (int64_t alive = l->ranks; alive;) {
        wait_for_news(l, p);
        take_signals(l);
        if (l->report >= 0) take_report(l);
        for (int64_t rank = 0; rank < l->ranks; rank++)
            if (l->child[rank].output >= 0) take_output(l, rank);
        alive = reap(l);
        if (alive && !killed && now_seconds() >= l->kill_at) {
            kill(-l->group, SIGKILL);
            killed = true;
            l->kill_at = now_seconds();
        }
        if (killed && alive) usleep(1000);
    }
    /* what they said last; a process of theirs that holds the pipe open does not matter */
    for (int64_t rank = 0; rank < l->ranks; rank++) {
        if (l->child[rank].output < 0) continue;
        take_output(l, rank);
        if (l->child[rank].output >= 0) close(l->child[rank].output);
    }
    if (l->report >= 0) take_report(l);
    if (l->report >= 0) close(l->report);
    prefer_who_complained(l);
    free(p);
}
