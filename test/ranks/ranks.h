/* The processes of a run, forked by a test: each gets the environment of a launcher and its own file for
 * what it says on stderr. Several runs can be under way at the same time. */
#ifndef LLMC_TEST_RANKS_H
#define LLMC_TEST_RANKS_H

#include "llmc/process/group.h"

#include <sys/types.h>

enum { RANKS_MAX = 8 };

struct ranks {
    int64_t world;
    double timeout; /* of the group */
    char address[64];
    int port; /* of a socket that listens already and is handed to rank 0; or set before ranks_start */
    char token[32];
    const void *arg; /* for the body */

    int listener; /* -1: none */
    struct rank_process {
        pid_t pid;  /* 0: not started, or ended */
        int status; /* as from waitpid */
        bool left;  /* it did not end by itself in time */
        int output; /* its stderr */
        char *said;
    } p[RANKS_MAX];
};

/* What a rank does; its exit status. check() fails the test. */
typedef int (*rank_body)(const struct ranks *r, int64_t rank);

/* On 127.0.0.1, at a free port. */
void ranks_init(struct ranks *r, int64_t world, double timeout);
void ranks_start_one(struct ranks *r, int64_t rank, rank_body body);
/* All of them. */
void ranks_start(struct ranks *r, rank_body body);
/* Waits for all, at most so many seconds, then kills; reads what they said. */
void ranks_finish(struct ranks *r, double seconds);
void ranks_free(struct ranks *r);

/* In a rank: opens the group, or says why not and exits with status 3. */
struct group *ranks_open(const struct ranks *r);

/* Exit status; 128 + signal; -1 for one that had to be killed. */
int rank_exit(const struct ranks *r, int64_t rank);
/* Fails the test unless the rank ended with this exit status and said `text` (NULL: nothing at all). */
void rank_expect(const struct ranks *r, int64_t rank, int status, const char *text);
void ranks_expect_all(const struct ranks *r, int status, const char *text);

#endif
