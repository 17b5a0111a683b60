/* One or several runs as a page: what their directories hold, as JSON, and the page that draws it, served or
 * as one file. Only files are read, never the process that trains, so watching costs a training nothing. */
#ifndef LLMC_WATCH_H
#define LLMC_WATCH_H

#include "llmc/report/history.h"
#include "llmc/serve/http.h"

struct json_t;

enum { WATCH_RUNS_MAX = 16 };

/* A file that is read again when it has changed. */
struct watch_file {
    double modified; /* seconds since 1970 */
    int64_t size;    /* -1: not there */
};

struct watched_run {
    struct history history;
    char *path, *name; /* the name is the last part of the path, or all of it where two are the same */
    struct watch_file options_file, facts_file, samples_file;
    struct json_t *options;     /* of options.json; NULL: none */
    struct json_t *facts;       /* of run.json; NULL: a run of an older version */
    struct json_t *samples;     /* [{"step", "text"}], the newest last, at most WATCH_SAMPLES */
    struct json_t *checkpoints; /* [{"step", "bytes", "written"}] */
};

struct watch {
    struct watched_run run[WATCH_RUNS_MAX];
    int count;
    double updated; /* now_seconds() */
};

/* The runs in these directories; without one, all under runs/. Fails if a directory is not there, or if
 * there are none or too many. */
bool watch_open(struct watch *w, const char *const *directories, int count, struct error *err);
void watch_close(struct watch *w);

/* Reads what is new; at most every 0.2 s. */
void watch_update(struct watch *w);
/* {"format", "now", "runs": [{"name", "there", "step", "steps", "eta", "last", "options", ...}]} */
struct json_t *watch_state(const struct watch *w);
/* The curves of all runs over a stretch of an axis: "step", "tokens" or "time", with about `points` points
 * each. */
struct json_t *watch_series(const struct watch *w, const char *axis, double from, double to, int64_t points);

/* Answers /state and /series. */
void watch_handle(void *watch, const struct http_request *request, struct http_answer *answer);

/* The page with the state and the curves in it, complete in one file. */
bool watch_write_page(struct watch *w, const char *path, struct error *err);

#endif
