/* Each rank brackets every wait() with two device events, so that timing costs no synchronisation. When a
 * step is done, the time between the pairs is its waiting time. */
#include "llmc/ranks/rank_timing.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the wrapped communicator --- */

static struct rank_timing *of(struct comm *c) { return (struct rank_timing *)c->state; }

static int64_t pass_all_reduce(struct comm *c, struct tensor *t, void *stream) {
    return of(c)->inner->all_reduce(of(c)->inner, t, stream);
}
static int64_t pass_reduce_scatter(struct comm *c, struct tensor *t, void *stream) {
    return of(c)->inner->reduce_scatter(of(c)->inner, t, stream);
}
static int64_t pass_all_gather(struct comm *c, struct tensor *t, void *stream) {
    return of(c)->inner->all_gather(of(c)->inner, t, stream);
}
static int64_t pass_broadcast(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return of(c)->inner->broadcast(of(c)->inner, t, root, stream);
}
static int64_t pass_gather(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return of(c)->inner->gather(of(c)->inner, t, root, stream);
}
static int64_t pass_scatter(struct comm *c, struct tensor *t, int64_t root, void *stream) {
    return of(c)->inner->scatter(of(c)->inner, t, root, stream);
}
static void pass_close(struct comm *c) { of(c)->inner->close(of(c)->inner); }

static void *mark(struct rank_timing *p, void *stream) {
    struct rank_timing_slot *s = &p->slot[p->current];
    if (s->count == s->capacity) {
        s->mark = (void **)xrealloc(s->mark, (size_t)(s->capacity + 1) * sizeof *s->mark);
        s->mark[s->capacity++] = p->device->event_new(p->device);
    }
    p->device->event_record(p->device, s->mark[s->count], stream);
    return s->mark[s->count++];
}

static void timed_wait(struct comm *c, int64_t ticket, void *stream) {
    struct rank_timing *p = of(c);
    if (p->current >= 0) mark(p, stream);
    p->inner->wait(p->inner, ticket, stream);
    if (p->current >= 0) mark(p, stream);
}

void rank_timing_open(struct rank_timing *p, struct group *g, struct comm *inner, struct device *device,
                      const char *device_name) {
    *p = (struct rank_timing){.inner = inner, .group = g, .device = device, .current = -1, .suspect = -1};
    p->comm = (struct comm){.group = g,
                            .rank = inner->rank,
                            .world = inner->world,
                            .part = inner->part,
                            .parts = inner->parts,
                            .kind = inner->kind,
                            .state = p,
                            .all_reduce = pass_all_reduce,
                            .reduce_scatter = pass_reduce_scatter,
                            .all_gather = pass_all_gather,
                            .broadcast = pass_broadcast,
                            .gather = pass_gather,
                            .scatter = pass_scatter,
                            .wait = timed_wait,
                            .close = pass_close};
    char own[RANK_TIMING_NAME];
    snprintf(own, sizeof own, "rank %" PRId64 " (%.48s, %.16s)", g->rank, g->host, device_name);
    p->name = (char(*)[RANK_TIMING_NAME])xcalloc((size_t)g->world, sizeof *p->name);
    p->recent = (double *)xcalloc((size_t)g->world, sizeof *p->recent);
    p->total = (double *)xcalloc((size_t)g->world, sizeof *p->total);
    group_exchange(g, p->name, own, sizeof own);
    p->reported = now_seconds();
}

void rank_timing_close(struct rank_timing *p) {
    for (int i = 0; i < RANK_TIMING_SLOTS; i++) {
        for (int64_t k = 0; k < p->slot[i].capacity; k++)
            p->device->event_free(p->device, p->slot[i].mark[k]);
        free(p->slot[i].mark);
    }
    free(p->name);
    free(p->recent);
    free(p->total);
}

/* --- steps --- */

void rank_timing_step(struct rank_timing *p, int slot) {
    p->slot[slot].count = 0;
    p->current = p->group->world > 1 ? slot : -1;
}

void rank_timing_step_done(struct rank_timing *p, int slot, double seconds) {
    struct rank_timing_slot *s = &p->slot[slot];
    double waited = 0.0;
    for (int64_t i = 0; i + 1 < s->count; i += 2)
        waited += p->device->event_seconds(p->device, s->mark[i], s->mark[i + 1]);
    s->count = 0;
    waited = fmin(waited, seconds);
    if (!p->begun) { /* the first step includes the start-up of libraries, and late ranks */
        p->begun = true;
        return;
    }
    p->steps++;
    p->computed += seconds - waited;
    p->waited += waited;
}

/* --- the exchange --- */

struct measured {
    int64_t signal, steps;
    double computed, waited;
};

bool rank_timing_due(const struct rank_timing *p, int64_t step) { return step >= p->next; }

int rank_timing_exchange(struct rank_timing *p, int64_t step, int signal) {
    int64_t world = p->group->world;
    struct measured mine = {signal, p->steps, p->computed, p->waited};
    struct measured *all = (struct measured *)xmalloc((size_t)world * sizeof *all);
    group_exchange(p->group, all, &mine, sizeof mine);
    int highest = 0;
    for (int64_t r = 0; r < world; r++) {
        if (all[r].signal > highest) highest = (int)all[r].signal;
        p->recent[r] += all[r].computed;
        p->recent_waited += all[r].waited;
    }
    p->recent_steps += all[0].steps;
    /* All ranks compute it from rank 0's times: about half a second from now. */
    double step_seconds = (all[0].computed + all[0].waited) / (double)max_i64(1, all[0].steps);
    double steps = step_seconds > 0.0 ? 0.5 / step_seconds : 1.0;
    p->next = step + (int64_t)fmin(1000.0, fmax(1.0, steps));
    p->steps = 0;
    p->computed = p->waited = 0.0;
    free(all);
    return highest;
}

/* --- reports --- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct slowest_rank find_slowest_rank(const double *seconds, int64_t world, double step) {
    struct slowest_rank s = {0, 0.0, 0.0, false};
    double *sorted = (double *)xmalloc((size_t)world * sizeof *sorted);
    memcpy(sorted, seconds, (size_t)world * sizeof *sorted);
    qsort(sorted, (size_t)world, sizeof *sorted, by_value);
    s.median = sorted[(world - 1) / 2];
    free(sorted);
    for (int64_t r = 1; r < world; r++)
        if (seconds[r] > seconds[s.rank]) s.rank = r;
    double more = seconds[s.rank] - s.median;
    if (s.median > 0.0) s.excess = more / s.median;
    s.slow = s.excess > 0.1 && more > 0.05 * step;
    return s;
}

/* The duration of the steps, the same on all ranks: compute time plus waiting time of the average rank. */
static double step_seconds(const double *computed, double waited, int64_t world) {
    for (int64_t r = 0; r < world; r++) waited += computed[r];
    return waited / (double)world;
}

static char *watch_slowest(struct rank_timing *p) {
    enum { PATIENCE = 3 };
    int64_t world = p->group->world;
    struct slowest_rank s =
        find_slowest_rank(p->recent, world, step_seconds(p->recent, p->recent_waited, world));
    if (!s.slow) {
        p->suspect = -1;
        p->suspicions = 0;
        return NULL;
    }
    p->suspicions = s.rank == p->suspect ? p->suspicions + 1 : 1;
    p->suspect = s.rank;
    if (p->suspicions != PATIENCE) return NULL;
    return xasprintf("%s is %.0f %% slower than the median, three times in a row: all others wait for it",
                     p->name[s.rank], 100.0 * s.excess);
}

bool rank_timing_report(struct rank_timing *p, bool last, double **seconds, char **warning) {
    enum { STEPS = 8 };
    static const double SECONDS = 5.0;
    *seconds = NULL;
    *warning = NULL;
    int64_t world = p->group->world;
    double now = now_seconds();
    bool due = p->recent_steps >= STEPS && now - p->reported >= SECONDS;
    if (world == 1 || p->recent_steps == 0 || !(due || last)) return false;
    *warning = watch_slowest(p);
    *seconds = (double *)xmalloc((size_t)world * sizeof **seconds);
    for (int64_t r = 0; r < world; r++) {
        p->total[r] += p->recent[r];
        (*seconds)[r] = p->recent[r] / (double)p->recent_steps;
        p->recent[r] = 0.0;
    }
    p->total_waited += p->recent_waited;
    p->total_steps += p->recent_steps;
    p->recent_waited = 0.0;
    p->recent_steps = 0;
    p->reported = now;
    return true;
}

char *rank_timing_summary(const struct rank_timing *p) {
    int64_t world = p->group->world;
    if (p->total_steps == 0) return NULL;
    double step = step_seconds(p->total, p->total_waited, world);
    struct slowest_rank s = find_slowest_rank(p->total, world, step);
    double waiting = 100.0 * p->total_waited / fmax(1e-9, (double)world * step);
    double median = s.median / (double)p->total_steps;
    if (s.slow)
        return xasprintf(
            "%s is %.0f %% slower than the median of %.4g s a step; the ranks wait for %.0f %% of the time",
            p->name[s.rank], 100.0 * s.excess, median, waiting);
    return xasprintf("%" PRId64
                     " ranks compute %.4g s a step, the slowest %.0f %% more; they wait for %.0f %% of the "
                     "time",
                     world, median, 100.0 * s.excess, waiting);
}
