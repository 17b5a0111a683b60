/* Runs as JSON: see watch.h. Files come from a directory that another process writes, or somebody has
 * damaged: what cannot be read is left out, and sizes are bounded before anything is read. */
#include "llmc/serve/watch.h"

#include "llmc/base/file.h"
#include "llmc/format/checkpoint.h"
#include "llmc/report/json_text.h"
#include "llmc/report/page.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { JSON_MAX = 1 << 20, SAMPLES_MAX = 1 << 18, WATCH_SAMPLES = 50, CHECKPOINTS_MAX = 1000 };

/* --- small files --- */

/* The last `limit` bytes of a file at most, with a NUL behind them; NULL if there is no such file. */
static char *read_end(const char *path, int64_t limit, int64_t *size, int64_t *skipped) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    char *text = NULL;
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        int64_t want = min_i64(st.st_size, limit);
        text = (char *)xmalloc((size_t)want + 1);
        *skipped = st.st_size - want;
        ssize_t n = pread(fd, text, (size_t)want, *skipped);
        *size = n < 0 ? 0 : n;
        text[*size] = 0;
    }
    if (fd >= 0) close(fd);
    return text;
}

/* Whether the file is another one than last time. */
static bool has_changed(struct watch_file *f, const char *path) {
    struct stat st;
    bool there = stat(path, &st) == 0 && S_ISREG(st.st_mode);
    double modified = there ? (double)st.st_mtim.tv_sec + 1e-9 * (double)st.st_mtim.tv_nsec : -1.0;
    int64_t size = there ? st.st_size : -1;
    bool same = f->modified == modified && f->size == size;
    *f = (struct watch_file){modified, size};
    return !same;
}

/* Whether the run is there without this file: what was known of it is another run's. Of a run that has been
 * deleted, it stays. */
static bool is_missing(const struct watch_file *f, const struct watched_run *r) {
    return f->size < 0 && r->history.there;
}

/* An object from a file. If the file is damaged, what was known stays. */
static void read_object(json_t **kept, struct watch_file *f, const struct watched_run *r, const char *name) {
    char *path = xasprintf("%s/%s", r->path, name);
    if (has_changed(f, path)) {
        int64_t size, skipped;
        char *text = read_end(path, JSON_MAX, &size, &skipped);
        json_t *value =
            text && !skipped ? json_loadb(text, (size_t)size, JSON_REJECT_DUPLICATES, NULL) : NULL;
        if (json_is_object(value)) {
            json_decref(*kept);
            *kept = json_incref(value);
        }
        json_decref(value);
        free(text);
    }
    if (is_missing(f, r)) {
        json_decref(*kept);
        *kept = NULL;
    }
    free(path);
}

/* The newest rows of samples.jsonl. A last line without its end is not complete yet. */
static void read_samples(struct watched_run *r) {
    char *path = xasprintf("%s/samples.jsonl", r->path);
    int64_t size = 0, skipped = 0;
    char *text = has_changed(&r->samples_file, path) ? read_end(path, SAMPLES_MAX, &size, &skipped) : NULL;
    free(path);
    if (text || is_missing(&r->samples_file, r)) json_array_clear(r->samples);
    if (!text) return;
    char *line = text, *newline;
    if (skipped)
        line = (char *)memchr(line, '\n', (size_t)size) ? (char *)memchr(line, '\n', (size_t)size) + 1
                                                        : text + size;
    for (; (newline = (char *)memchr(line, '\n', (size_t)(text + size - line))) != NULL; line = newline + 1) {
        json_t *row = json_loadb(line, (size_t)(newline - line), JSON_REJECT_DUPLICATES, NULL);
        if (json_is_integer(json_object_get(row, "step")) && json_is_string(json_object_get(row, "text")))
            json_array_append(r->samples, row);
        json_decref(row);
        if (json_array_size(r->samples) > WATCH_SAMPLES) json_array_remove(r->samples, 0);
    }
    free(text);
}

/* The newest ones, by increasing step. */
static void read_checkpoints(struct watched_run *r) {
    struct checkpoint_list list;
    checkpoint_list(&list, r->path, NULL);
    json_array_clear(r->checkpoints);
    for (int64_t i = min_i64(list.count, CHECKPOINTS_MAX) - 1; i >= 0; i--) {
        char *path = xasprintf("%s/step-%08lld", r->path, (long long)list.step[i]);
        struct stat st;
        double written = stat(path, &st) == 0 ? (double)st.st_mtime : 0.0;
        json_array_append_new(r->checkpoints,
                              json_pack("{s:I, s:f, s:f}", "step", (json_int_t)list.step[i], "bytes",
                                        (double)directory_bytes(path), "written", written));
        free(path);
    }
    free(list.step);
}

/* --- the runs --- */

static void open_run(struct watched_run *r, const char *path) {
    *r = (struct watched_run){.path = xstrdup(path)};
    size_t n = strlen(r->path);
    while (n > 1 && r->path[n - 1] == '/') r->path[--n] = 0;
    char *real = realpath(r->path, NULL);
    const char *whole = real ? real : r->path, *slash = strrchr(whole, '/');
    r->name = xstrdup(slash && slash[1] ? slash + 1 : whole);
    free(real);
    history_open(&r->history, r->path);
    r->samples = json_array();
    r->checkpoints = json_array();
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The directories under runs/ that have a log. */
static int find_runs(char **found, int limit) {
    int count = 0;
    DIR *d = opendir("runs");
    for (struct dirent *e; d && count < limit && (e = readdir(d)) != NULL;) {
        char *log = xasprintf("runs/%s/log.jsonl", e->d_name);
        if (e->d_name[0] != '.' && path_exists(log)) found[count++] = xasprintf("runs/%s", e->d_name);
        free(log);
    }
    if (d) closedir(d);
    qsort(found, (size_t)count, sizeof *found, by_name);
    return count;
}

/* Two runs of one name are told apart by their paths. */
static void make_names_differ(struct watch *w) {
    for (int i = 0; i < w->count; i++)
        for (int k = 0; k < i; k++) {
            if (strcmp(w->run[i].name, w->run[k].name) != 0) continue;
            struct watched_run *both[] = {&w->run[i], &w->run[k]};
            for (int j = 0; j < 2; j++) {
                free(both[j]->name);
                both[j]->name = xstrdup(both[j]->path);
            }
        }
}

bool watch_open(struct watch *w, const char *const *directories, int count, struct error *err) {
    char *found[WATCH_RUNS_MAX + 1];
    int finds = count ? 0 : find_runs(found, WATCH_RUNS_MAX + 1);
    bool ok = true;
    *w = (struct watch){.updated = -INFINITY};
    if (count + finds == 0) return fail(err, "there is no run under runs/: name the directory of one");
    if (count + finds > WATCH_RUNS_MAX)
        ok = fail(err, "more than %d runs: name those that the page is to show", WATCH_RUNS_MAX);
    for (int i = 0; ok && i < count + finds; i++) {
        const char *path = count ? directories[i] : found[i];
        if (!path_is_directory(path)) ok = fail(err, "%s: there is no such directory", path);
        if (ok) open_run(&w->run[w->count++], path);
    }
    for (int i = 0; i < finds; i++) free(found[i]);
    if (!ok) watch_close(w);
    if (ok) make_names_differ(w);
    return ok;
}

void watch_close(struct watch *w) {
    for (int i = 0; i < w->count; i++) {
        struct watched_run *r = &w->run[i];
        history_close(&r->history);
        json_decref(r->options);
        json_decref(r->facts);
        json_decref(r->samples);
        json_decref(r->checkpoints);
        free(r->path);
        free(r->name);
    }
    w->count = 0;
}

void watch_update(struct watch *w) {
    if (now_seconds() - w->updated < 0.2) return;
    for (int i = 0; i < w->count; i++) {
        struct watched_run *r = &w->run[i];
        history_update(&r->history);
        read_object(&r->options, &r->options_file, r, "options.json");
        read_object(&r->facts, &r->facts_file, r, "run.json");
        read_samples(r);
        read_checkpoints(r);
    }
    w->updated = now_seconds();
}

/* --- the state as JSON --- */

static json_t *number(double v) { return isfinite(v) ? json_real(v) : json_null(); }

/* A fact of run.json, or what the options say about it; NAN: unknown. */
static double fact(const struct watched_run *r, const char *key, const char *option) {
    json_t *v = json_object_get(r->facts, key);
    if (!v && option) v = json_object_get(r->options, option);
    return json_is_number(v) ? json_number_value(v) : (double)NAN;
}

/* Seconds that a step takes, as a mean over the last ones. */
static double recent_seconds(const struct watched_run *r) {
    double step = (double)history_last_step(&r->history), before = fmax(0.0, step - fmax(20.0, 0.02 * step));
    double seconds = history_time(&r->history, step) - history_time(&r->history, before);
    return step > before && seconds > 0.0 ? seconds / (step - before) : (double)NAN;
}

static json_t *run_state(const struct watched_run *r, double now) {
    const struct history *h = &r->history;
    json_t *last = json_object(), *series = json_object();
    for (int s = 0; s < HISTORY_SERIES; s++) {
        json_object_set_new(last, history_keys[s], number(history_last(h, (enum history_series)s)));
        json_object_set_new(series, history_keys[s], json_boolean(history_has(h, (enum history_series)s)));
    }
    double steps = fact(r, "steps", "steps"), tokens = fact(r, "tokens_per_step", "tokens-per-step");
    double pace = recent_seconds(r), rate = tokens / pace;
    json_t *state = json_pack(
        "{s:o, s:o, s:b, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:O, s:O}", "name",
        json_text(r->name, (int64_t)strlen(r->name)), "path", json_text(r->path, (int64_t)strlen(r->path)),
        "there", h->there, "version", (json_int_t)h->version, "step", (json_int_t)history_last_step(h),
        "steps", number(steps), "tokens_per_step", number(tokens), "floor",
        number(fact(r, "floor_loss", NULL)), "seconds", number(history_time(h, INFINITY)), "eta",
        number((steps - (double)history_last_step(h)) * pace), "age", number(now - h->modified), "last", last,
        "unreadable", (json_int_t)h->unreadable, "left_out", (json_int_t)h->left_out, "samples", r->samples,
        "checkpoints", r->checkpoints);
    check(state != NULL, "out of memory for the state of a run");
    json_object_set_new(state, "has", series);
    json_object_set_new(state, "rate", number(rate));
    json_object_set_new(state, "share",
                        number(rate * fact(r, "flops_per_token", NULL) / fact(r, "peak_flops", NULL)));
    json_object_set(state, "options", r->options ? r->options : json_null());
    json_object_set(state, "facts", r->facts ? r->facts : json_null());
    return state;
}

json_t *watch_state(const struct watch *w) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    json_t *runs = json_array();
    for (int i = 0; i < w->count; i++) json_array_append_new(runs, run_state(&w->run[i], now));
    return json_pack("{s:s, s:f, s:o}", "format", "llmc watch 1", "now", now, "runs", runs);
}

/* --- the curves as JSON --- */

static json_t *numbers(const double *v, int64_t count) {
    json_t *list = json_array();
    for (int64_t i = 0; i < count; i++) json_array_append_new(list, number(v[i]));
    return list;
}

static json_t *integers(const int64_t *v, int64_t count) {
    json_t *list = json_array();
    for (int64_t i = 0; i < count; i++) json_array_append_new(list, json_integer((json_int_t)v[i]));
    return list;
}

/* Points that stand for one row each have no more than a mean. */
static json_t *points_json(const struct history *h, const struct history_points *p) {
    bool single = true;
    json_t *time = json_array();
    for (int64_t i = 0; i < p->count; i++) {
        single = single && p->rows[i] == 1;
        json_array_append_new(time, number(history_time(h, (double)p->step[i])));
    }
    json_t *points = json_pack("{s:o, s:o, s:o}", "step", integers(p->step, p->count), "time", time, "mean",
                               numbers(p->mean, p->count));
    if (single) return points;
    json_object_set_new(points, "rows", integers(p->rows, p->count));
    json_object_set_new(points, "min", numbers(p->min, p->count));
    json_object_set_new(points, "max", numbers(p->max, p->count));
    return points;
}

static double to_step(const struct watched_run *r, const char *axis, double x) {
    if (!isfinite(x)) return x;
    if (strcmp(axis, "time") == 0) return history_step_at(&r->history, x);
    if (strcmp(axis, "tokens") == 0) return x / fact(r, "tokens_per_step", "tokens-per-step");
    return x;
}

json_t *watch_series(const struct watch *w, const char *axis, double from, double to, int64_t points) {
    json_t *runs = json_array();
    for (int i = 0; i < w->count; i++) {
        const struct watched_run *r = &w->run[i];
        json_t *all = json_object();
        double first = to_step(r, axis, from), last = to_step(r, axis, to);
        for (int s = 0; s < HISTORY_SERIES; s++) {
            struct history_points p;
            history_points(&p, &r->history, (enum history_series)s, isnan(first) ? 0.0 : first,
                           isnan(last) ? (double)INFINITY : last, points);
            if (p.count) json_object_set_new(all, history_keys[s], points_json(&r->history, &p));
            history_points_free(&p);
        }
        json_array_append_new(
            runs, json_pack("{s:I, s:o}", "version", (json_int_t)r->history.version, "series", all));
    }
    return json_pack("{s:o}", "runs", runs);
}

/* --- the page --- */

static char *dump(json_t *value) {
    char *text = json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(9));
    check(text != NULL, "the state of a run cannot be written as JSON");
    json_decref(value);
    return text;
}

void watch_handle(void *user, const struct http_request *q, struct http_answer *a) {
    struct watch *w = (struct watch *)user;
    if (q->post) return;
    if (strcmp(q->path, "/state") == 0) {
        watch_update(w);
        http_answer_json(a, dump(watch_state(w)));
    } else if (strcmp(q->path, "/series") == 0) {
        const char *axis = http_parameter(q, "axis");
        double points = http_number(q, "points", 400);
        watch_update(w);
        http_answer_json(
            a, dump(watch_series(w, axis ? axis : "step", http_number(q, "from", 0),
                                 http_number(q, "to", INFINITY), (int64_t)fmin(4000, fmax(1, points)))));
    }
}

static void put_data(struct writer *w, void *data) { page_put_json(w, "facts", (json_t *)data); }

bool watch_write_page(struct watch *w, const char *path, struct error *err) {
    watch_update(w);
    json_t *data = json_pack("{s:o, s:o}", "state", watch_state(w), "series",
                             watch_series(w, "step", 0, INFINITY, 1500));
    bool ok = page_write(path, "watch.html", put_data, data, err);
    json_decref(data);
    return ok;
}
