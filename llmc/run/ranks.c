/* The processes of a training run: see ranks.h. */
#include "llmc/run/ranks.h"

#include "llmc/base/file.h"
#include "llmc/ops/processors.h"
#include "llmc/process/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* --- starting them --- */

static void check_gpus(const struct run_config *c) {
    struct error err;
    check(strcmp(c->device, "auto") == 0 || strcmp(c->device, "cuda") == 0,
          "--gpus %" PRId64 " with --device %s: --ranks %" PRId64 " starts processes for any device", c->gpus,
          c->device, c->gpus);
    int count = device_count_cuda(&err);
    check(count > 0, "--gpus %" PRId64 ": %s", c->gpus, err.message);
    check(c->gpus <= count, "--gpus %" PRId64 ": this machine has %d", c->gpus, count);
}

int run_launch(const struct run_config *c, int argc, char **argv) {
    const char *option = c->gpus ? "gpus" : "ranks";
    if (launch_is_child() || (c->gpus == 0 && c->ranks == 0 && c->restart == 0 && !c->notify)) return -1;
    int64_t ranks = max_i64(1, max_i64(c->gpus, c->ranks));
    char *foreign = launch_foreign(), *again = xstrdup("");
    check(!foreign || !c->notify,
          "--notify: %s has started the processes of this run; let the script that calls it notify you",
          foreign);
    check(!foreign,
          "--%s %" PRId64 ": %s has already started the processes of this run; leave out --gpus, --ranks and "
          "--restart, which start processes on one machine without a launcher",
          c->gpus || c->ranks ? option : "restart", c->gpus || c->ranks ? ranks : c->restart, foreign);
    check(!c->gpus || !c->ranks || c->gpus == c->ranks,
          "--gpus %" PRId64 " --ranks %" PRId64 ": give one of them; --ranks is for any device", c->gpus,
          c->ranks);
    if (c->gpus) check_gpus(c);
    if (c->gpus || c->ranks) {
        free(again);
        again = xasprintf("--%s %" PRId64 " ", option, ranks);
    }
    char **whole = (char **)xcalloc((size_t)argc + 2, sizeof *whole);
    whole[0] = program_invocation_name;
    for (int i = 0; i < argc; i++) whole[1 + i] = argv[i];
    struct launch_options o = {.ranks = ranks,
                               .restarts = c->restart,
                               .threads = c->threads,
                               .bind = c->bind,
                               .usr1_stops = c->requeue,
                               .notify = c->notify,
                               .option = again};
    int status = launch_run(&o, argc + 1, whole);
    free(whole);
    free(again);
    return status;
}

/* --- agreeing --- */

static void name_rank(char prefix[96], const struct group *g) {
    if (g->local_world == g->world)
        snprintf(prefix, 96, "rank %" PRId64 ": ", g->rank);
    else
        snprintf(prefix, 96, "rank %" PRId64 " (%s): ", g->rank, g->host);
}

struct group *run_open_group(const struct run_config *c) {
    struct error err;
    struct group_options options = {.timeout = c->comm_timeout};
    struct group *g = group_open(&options, &err);
    check(g, "%s", err.message);
    struct message_options quiet = {.no_warnings = g->rank != 0};
    if (g->rank != 0) name_rank(quiet.prefix, g);
    set_message_options(&quiet);
    return g;
}

void run_prefix_messages(struct group *g, int log) {
    struct message_options options = {.copy = log};
    if (g->world > 1) name_rank(options.prefix, g);
    set_message_options(&options);
}

void check_all_ranks(struct group *g, bool ok, struct error *err) {
    if (!group_agree(g, ok, err)) exit_all_ranks(g, err);
}

void exit_all_ranks(struct group *g, const struct error *err) {
    bool prints = g->rank == 0;
    group_close(g); /* first, so that the watch does not report this exit as the failure of a rank */
    check(!prints, "%s", err->message);
    exit(EXIT_FAILURE);
}

void broadcast_text(struct group *g, char **text) {
    int64_t size = *text ? (int64_t)strlen(*text) : -1;
    group_broadcast(g, &size, sizeof size, 0);
    if (size < 0) return;
    if (g->rank != 0) *text = (char *)xcalloc((size_t)size + 1, 1);
    group_broadcast(g, *text, (size_t)size, 0);
}

bool check_shared_directory(struct group *g, const char *directory, const char *run, struct error *err) {
    enum { TRIES = 40, PAUSE = 250000 };
    if (g->world == 1) return true;
    bool ok = true;
    /* tells the file from one in another directory of the same name, and from that of another run */
    uint64_t mark = (uint64_t)time(NULL) << 32 | (uint64_t)getpid(), found = 0;
    group_broadcast(g, &mark, sizeof mark, 0);
    char *path = xasprintf("%s/%s-%016" PRIx64, directory, SHARED_MARK, mark);
    if (g->rank == 0) ok = write_file_atomic(path, &mark, sizeof mark, err);
    if (!group_agree(g, ok, err)) {
        free(path);
        return false;
    }
    for (int i = 0; i < TRIES && found != mark; i++) {
        struct mapped_file f;
        if (i) usleep(PAUSE);
        if (!file_map(&f, path, NULL)) continue;
        if (f.size == (int64_t)sizeof found) memcpy(&found, f.data, sizeof found);
        file_unmap(&f);
    }
    ok = found == mark;
    if (!ok)
        fail(
            err,
            "this rank does not see %s, the run directory of rank 0: --out must be on a file system that all "
            "machines share, and all processes must start in the same directory",
            run);
    ok = group_agree(g, ok, err);
    if (g->rank == 0) unlink(path);
    free(path);
    return ok;
}

/* --- devices --- */

static void choose_device(char name[32], const struct run_config *c, const struct group *g) {
    struct error err;
    bool any = strcmp(c->device, "auto") == 0, cuda = strcmp(c->device, "cuda") == 0;
    snprintf(name, 32, "%s", c->device);
    if (g->local_world == 1 && !(c->gpus && any)) return;
    check(strncmp(c->device, "cuda:", 5) != 0,
          "--device %s with %" PRId64
          " processes on a machine: they cannot share a GPU; --device cuda gives each its own, of those in "
          "CUDA_VISIBLE_DEVICES if it is set",
          c->device, g->local_world);
    if (!any && !cuda) return;
    int count = device_count_cuda(&err);
    if (any && count == 0 && !c->gpus) {
        strcpy(name, "cpu");
        return;
    }
    check(count > 0, "--device %s: %s", c->device, err.message);
    /* srun can restrict each task to a GPU of its own, which is then number 0 */
    bool own = count == 1 && getenv("CUDA_VISIBLE_DEVICES");
    check(own || g->local_world <= count,
          "%" PRId64 " processes on %s, which has %d GPU%s: each needs its own", g->local_world, g->host,
          count, count == 1 ? "" : "s");
    snprintf(name, 32, "cuda:%" PRId64, own ? 0 : g->local_rank);
}

/* Ranks of one machine divide its cores, unless a launcher has bound them to cores of their own. 0: no
 * choice to make. */
static int64_t choose_threads(const struct run_config *c, const struct group *g) {
    cpu_set_t mask;
    if (c->threads || g->local_world == 1 || getenv("OMP_NUM_THREADS")) return c->threads;
    bool bound =
        sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_COUNT(&mask) < sysconf(_SC_NPROCESSORS_ONLN);
    return bound ? 0 : max_i64(1, processors_allowed() / g->local_world);
}

struct device *run_open_rank_device(const struct run_config *c, const struct group *g) {
    struct run_config own = *c;
    char name[32];
    choose_device(name, c, g);
    own.device = name;
    own.threads = choose_threads(c, g);
    return run_open_device(&own);
}

/* --- logs --- */

int rank_log_open(const char *directory, const struct group *g, struct error *err) {
    char *path = xasprintf("%s/rank-%" PRId64 ".log", directory, g->rank);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) fail(err, "--rank-logs: %s: %s", path, strerror(errno));
    free(path);
    return fd;
}

void rank_log_put(int fd, const char *fmt, ...) {
    if (!fd) return;
    char text[1024], when[32];
    time_t now = time(NULL);
    struct tm parts;
    localtime_r(&now, &parts);
    strftime(when, sizeof when, "%F %T", &parts);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    dprintf(fd, "%s  %s\n", when, text);
}

/* --- long work --- */

struct rank_busy {
    struct group *group;
    const char *what;
    int64_t step;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool over;
    double until; /* no more reports after this time */
};

/* Milliseconds of CPU time, and 100 for each block read or written: grows while the process works. */
static int64_t work_done(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    int64_t milliseconds = (int64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000 +
                           (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1000;
    return milliseconds + 100 * (u.ru_inblock + u.ru_oublock);
}

static void *report_busy(void *arg) {
    enum { LEAST = 20 }; /* in a second: more than the watch itself takes */
    struct rank_busy *b = (struct rank_busy *)arg;
    int64_t before = work_done();
    pthread_mutex_lock(&b->lock);
    while (!b->over) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        pthread_cond_timedwait(&b->wake, &b->lock, &until);
        int64_t now = work_done();
        bool waits = group_is_waiting(b->group);
        if (!waits && now - before >= LEAST && now_seconds() < b->until) group_beat(b->group);
        before = now;
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

struct rank_busy *rank_busy_begin(struct group *g, const char *what, int64_t step) {
    enum { TIMEOUTS = 20 };
    if (g->world == 1) return NULL;
    struct rank_busy *b = (struct rank_busy *)xcalloc(1, sizeof *b);
    *b = (struct rank_busy){
        .group = g, .what = what, .step = step, .until = now_seconds() + TIMEOUTS * g->timeout};
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->wake, NULL);
    group_progress(g, what, step);
    thread_start(&b->thread, report_busy, b, "reports long work");
    return b;
}

void rank_busy_end(struct rank_busy *b) {
    if (!b) return;
    pthread_mutex_lock(&b->lock);
    b->over = true;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->wake);
    group_progress(b->group, b->what, b->step);
    free(b);
}
