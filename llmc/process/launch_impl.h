/* Between launch.c, which starts processes, and launch_watch.c, which sees them end. */
#ifndef LLMC_LAUNCH_IMPL_H
#define LLMC_LAUNCH_IMPL_H

#include "llmc/process/launch.h"

#include <sys/types.h>

enum { LAUNCH_LINE = 2048 };

struct launch_child {
    pid_t pid;
    int output; /* read end of its stderr (and stdout, except for rank 0's); -1: at its end */
    char line[LAUNCH_LINE];
    size_t length;               /* of the line that is not complete yet */
    char complaint[LAUNCH_LINE]; /* the last error message */
    bool ended;
    int status; /* as waitpid gives it */
};

struct launch_said {
    int64_t rank;
    double when;
    char text[256];
};

/* One start of all processes. */
struct launch {
    int64_t ranks;
    struct launch_child *child; /* (ranks) */
    pid_t group;                /* process group of the children */
    int signals;                /* signalfd: SIGCHLD, SIGINT, SIGTERM, SIGTSTP */
    int report;                 /* read end of what rank 0 tells; -1: at its end */
    char report_line[4096];
    size_t report_length;
    char *directory;             /* of the run; NULL: not told yet */
    bool training;               /* the start is over */
    int stop;                    /* the signal that was handed on; 0: none */
    int64_t failed;              /* the first that failed; -1: none */
    double kill_at;              /* when those that are left are killed; INFINITY: not at all */
    struct launch_said said[16]; /* the last lines shown */
    int64_t said_count;
};

/* Until all have ended. */
void launch_watch(struct launch *l);

/* Waits before the next start; false if a signal ended that. */
bool launch_pause(struct launch *l, double seconds);

/* "was killed by signal 9 (Killed)" or "ended with status 1". The caller frees. */
char *launch_end_text(int status);

#endif
