/* What group.c, group_connect.c and group_watch.c share: the state behind struct group, and the first
 * messages of a connection. */
#ifndef LLMC_GROUP_IMPL_H
#define LLMC_GROUP_IMPL_H

#include "llmc/process/group.h"
#include "llmc/process/group_env.h"

#include <pthread.h>
#include <stdatomic.h>

/* --- connections (group_connect.c) --- */

/* Every rank has two connections to rank 0: one for the calls of group.h, one for the watch. Each opens
 * with a hello, which rank 0 answers. All ranks run the same program (its hash is compared), so structs
 * are sent as they are. */
enum group_channel { GROUP_CALLS, GROUP_WATCH };
struct group_hello {
    char magic[8];
    uint64_t version, token[2]; /* hashes of the program and of the token */
    int64_t rank, world;
    int32_t channel, pid;
    char host[64];
};
enum group_answer { GROUP_WELCOME, GROUP_START, GROUP_REFUSED, GROUP_FAILED };
struct group_reply {
    char magic[8];
    int64_t answer;
    char reason[sizeof(struct error)];
};

struct group_state;
bool group_connect(struct group_state *s, struct error *err);
void group_disconnect(struct group_state *s);

/* --- the state --- */

enum { GROUP_WHAT_MAX = 64 };

/* What this process knows about another one. */
struct group_peer {
    int calls, watch; /* connections; rank 0 has them to all ranks, the others to rank 0; -1: none */
    char host[64];
    int32_t pid;
    uint64_t host_id; /* equal on ranks of one machine */
    /* used by the watch's thread: */
    double heard, progressed; /* time of the last message, and of the last sign of progress */
    char what[GROUP_WHAT_MAX];
    int64_t step, waits_for;
    unsigned beats;
    bool waiting, closing, gone;
    uint8_t *inbox; /* an incomplete message */
    size_t inbox_size;
};

struct group_state {
    struct die_hook hook; /* must be the first member: tell_others() casts its address back */
    struct group *group;
    struct group_env env;
    uint64_t version, token[2];
    double timeout;
    struct group_peer *peers; /* (world) */
    int64_t calls;            /* number of the last exchange, broadcast or barrier */

    /* what this process does: written by any thread, read by the watch */
    _Atomic(const char *) what;
    atomic_int_least64_t step, waits_for; /* waits_for: a rank, or -1 */
    atomic_uint beats;
    atomic_bool waiting;

    struct group_watch *watch;
};

/* --- the watch (group_watch.c) --- */

void group_watch_start(struct group_state *s);
/* Returns when all ranks have called it. */
void group_watch_close(struct group_state *s);
/* Tells the other ranks why this process is about to end with an error. Any thread. */
void group_last_words(struct group_state *s, const char *message);
/* The connection to `rank` broke during the call `where`. Gives the watch time to find the reason, which
 * ends the process; else ends it itself. */
void group_lost(struct group_state *s, int64_t rank, const char *where) LLMC_NORETURN;

#endif
