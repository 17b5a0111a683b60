/* What the files of a group share: place in the run (group_env.c), sockets (group_net.c), finding each other
 * (group_connect.c), the watch (group_watch.c). Also used by collectives that need connections of their
 * own. */
#ifndef LLMC_GROUP_IMPL_H
#define LLMC_GROUP_IMPL_H

#include "llmc/process/group.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

/* --- the environment --- */

struct group_env {
    const char *source; /* "RANK", "Open MPI", "MPICH", "Slurm"; NULL: none, this process is alone */
    int64_t rank, world;
    int64_t local_rank, local_world; /* -1: the environment does not say */
    char address[256];               /* where rank 0 is */
    int port;
    bool one_host;   /* all ranks are on this machine */
    char token[256]; /* what the processes of one run have in common, and other runs do not */
    int listen_fd;   /* rank 0: a socket that listens already; -1 */
};
/* On false, err names the variable that is missing, not a number or out of range. */
bool group_env_read(struct group_env *env, struct error *err);
/* The first host of a Slurm list: "node[01-04,7],other" -> node01. False: not such a list, or too long. */
bool group_slurm_first_host(char *out, size_t size, const char *list);

/* --- sockets: all are non-blocking and close-on-exec; every wait has a deadline on the clock of now_seconds
 * --- */

struct net_address {
    struct sockaddr_storage addr;
    socklen_t size;
};
enum net_result { NET_OK, NET_CLOSED, NET_TIMEOUT };

struct net_address net_local(int fd), net_remote(int fd);
void net_set_port(struct net_address *a, int port);
int net_port(const struct net_address *a);
bool net_is_loopback(const struct net_address *a);
/* "10.0.0.1:29500", "[fd00::1]:29500": by temp_printf. */
const char *net_text(const struct net_address *a);

/* Listens at host:port; with `any`, at all interfaces. -1 with the reason. */
int net_listen(const char *host, int port, bool any, struct error *err);
/* Listens at the address of `a` (`any`: at all interfaces of its family) at a free port. */
int net_listen_near(const struct net_address *a, bool any, struct error *err);
/* Makes a socket that came from elsewhere like the others. */
void net_own(int fd);
/* -1: nobody waits. */
int net_accept(int listener);
/* One attempt at one address. -1 with the reason. */
int net_connect(const struct net_address *a, double deadline, struct error *err);
/* Tries all addresses of host:port in turn until one answers. */
int net_connect_host(const char *host, int port, double deadline, struct error *err);
enum net_result net_send(int fd, const void *data, size_t bytes, double deadline);
enum net_result net_receive(int fd, void *data, size_t bytes, double deadline);

/* --- hello: opens every connection --- */

enum group_channel { GROUP_CALLS, GROUP_WATCH, GROUP_COLLECTIVES };
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
void group_hello_make(struct group_hello *h, const struct group_state *s, enum group_channel channel);
bool group_send_reply(int fd, enum group_answer answer, const char *reason);
/* False with the reason if it does not come, is none, or refuses. */
bool group_receive_reply(int fd, enum group_answer expected, double deadline, struct error *err);

/* --- the state --- */

enum { GROUP_WHAT_MAX = 64 };

/* What the watch knows of a process. */
struct group_peer {
    int calls, watch; /* on rank 0: the connections to this one; elsewhere only those to rank 0; -1: none */
    char host[64];
    int32_t pid;
    uint64_t host_id; /* equal for processes that can share memory */
    /* of the watch's thread: */
    double heard, progressed; /* when it was last heard of, and known to have got on */
    char what[GROUP_WHAT_MAX];
    int64_t step, waits_for;
    unsigned beats;
    bool waiting, closing, gone;
    uint8_t *inbox; /* an unfinished message */
    size_t inbox_size;
};

struct group_state {
    struct die_hook hook; /* the first member: a hook's owner is found by its address */
    struct group *group;
    struct group_env env;
    uint64_t version, token[2];
    double timeout;
    struct group_peer *peers; /* by rank */
    int64_t calls;            /* made so far: exchange, broadcast, barrier */

    /* written by whoever works, read by the watch */
    _Atomic(const char *) what;
    atomic_int_least64_t step, waits_for; /* waits_for: a rank, or -1 */
    atomic_uint beats;
    atomic_bool waiting;

    struct group_watch *watch;
};

bool group_connect(struct group_state *s, struct error *err);
void group_disconnect(struct group_state *s);

void group_watch_start(struct group_state *s);
/* Returns when all ranks have called it. */
void group_watch_close(struct group_state *s);
/* Of any thread, before this process ends with an error: the others learn why. */
void group_last_words(struct group_state *s, const char *message);
/* "rank 3 (node7)" by temp_printf. */
const char *group_rank_text(const struct group_state *s, int64_t rank);

/* Around a wait for others, nothing else being done: what this process is in goes to the watch. */
struct group_wait {
    const char *what;
    int64_t step;
    bool waiting;
};
struct group_wait group_wait_begin(struct group *g, const char *what, int64_t step);
void group_wait_end(struct group *g, struct group_wait before);
/* Of any thread: something moved. */
void group_beat(struct group *g);
/* Of any thread: the next thing that must come is from this rank; -1: none. */
void group_waits_for(struct group *g, int64_t rank);

/* The connection to `rank` broke in `where`. Lets the watch find out why, and ends the process. */
void group_lost(struct group *g, int64_t rank, const char *where) LLMC_NORETURN;

#endif
