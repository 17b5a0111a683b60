/* A run of several processes that a test forks. Each gets a launcher's environment, and its stderr goes
 * to a file. Several runs can be active at once. */
#ifndef LLMC_TEST_RANKS_H
#define LLMC_TEST_RANKS_H

#include "llmc/process/group.h"

#include <sys/types.h>

enum { RANKS_MAX = 8 };

struct ranks {
    int64_t world;
    double timeout; /* of the group */
    char address[64];
    int port; /* of `listener`, which rank 0 inherits; or set by the test */
    char token[32];
    const void *arg; /* passed to the body */

    int listener; /* -1: none */
    struct rank_process {
        pid_t pid;  /* 0: not started, or ended */
        int status; /* as from waitpid */
        bool left;  /* it had to be killed */
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
/* Waits for all processes, kills those that are left after so many seconds, and reads their stderr. */
void ranks_finish(struct ranks *r, double seconds);
void ranks_free(struct ranks *r);

/* In a rank: opens the group, or says why not and exits with status 3. */
struct group *ranks_open(const struct ranks *r);

/* Exit status; 128 + signal; -1 for one that had to be killed. */
int rank_exit(const struct ranks *r, int64_t rank);
/* Fails the test unless the rank ended with this status and its stderr contains `text` (NULL: is empty). */
void rank_expect(const struct ranks *r, int64_t rank, int status, const char *text);
void ranks_expect_all(const struct ranks *r, int status, const char *text);

#endif
