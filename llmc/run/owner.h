/* What a run owns in its directory. A run deletes and replaces its own files and no others:
 *
 *   step-00001000/             checkpoints: of their files those that checkpoint_owns() names
 *   step-00001000.tmp/         unfinished ones
 *   best                       a symbolic link to one of them
 *   log.jsonl timing.jsonl tasks.jsonl samples.jsonl options.json run.json loss.svg stories.txt rank-N.log
 *                              also with .tmp behind
 *   events.out.tfevents.N.llmc.N
 *
 * A directory holds a run if it has a checkpoint by name, or a log.jsonl with the rows of a run. One
 * process at a time may write into it: the directory is locked as long as the run lasts.
 *
 * owner_open() looks and locks, and changes nothing. owner_take() makes the directory, or deletes the
 * run that is to be overwritten; it is called when everything else that a start needs has been found
 * good. */
#ifndef LLMC_RUN_OWNER_H
#define LLMC_RUN_OWNER_H

#include "llmc/base/base.h"

#include <sys/types.h>

enum owner_purpose { OWNER_NEW, OWNER_RESUME, OWNER_OVERWRITE };

struct owner {
    char *path;
    enum owner_purpose purpose;
    bool holds_run;      /* there was one when it was opened, ... */
    int64_t checkpoints; /* ... with so many checkpoints by name, whole or damaged */
    bool taken;
    int lock;       /* descriptor of the directory; -1: it does not exist */
    int log_lock;   /* of its log.jsonl, for file systems that lock only files; -1: not held */
    size_t existed; /* of the path, before owner_take() */
    dev_t device;   /* of the directory */
    ino_t inode;
};

/* Whether the file or directory of this name in a run's directory is the run's. */
bool run_owns(const char *name);
bool directory_holds_run(const char *path);
/* Whether a run has written this file or directory: it has a name of the run's, and the directory around it
 * holds a run. A leave_out_fn of corpus/documents.h, which needs no user. */
bool run_wrote(void *unused, const char *path);

/* Fails if the purpose does not fit what is there: a new run where there is one or where a file has one of
 * its names; a run to resume where there is none; a run to overwrite where there is none but something
 * else, or in the working directory, or where one of its names belongs to something that no run makes.
 * Fails if another process has the lock. */
bool owner_open(struct owner *o, const char *path, enum owner_purpose purpose, struct error *err);
/* Fails if `input`, a path or pattern that the run reads, lies in the directory, whose run is to be
 * overwritten. `option` is its name. NULL is no input. */
bool owner_check_input(const struct owner *o, const char *option, const char *input, struct error *err);
/* The directory, or what of its path exists. The caller frees. */
char *owner_existing(const struct owner *o);
bool owner_take(struct owner *o, struct error *err);
/* The log takes the lock of log.jsonl itself. */
void owner_release_log(struct owner *o);
/* After a failed start: removes the directory and its parents, if owner_take() has made them, with what is
 * the run's. */
void owner_give_up(struct owner *o);
/* Whether the path still names the directory that was taken. */
bool owner_is_there(const struct owner *o);
/* After the directory was deleted or moved away: makes it anew, if nothing else is in its place now. */
bool owner_take_again(struct owner *o, struct error *err);
void owner_close(struct owner *o);

#endif
