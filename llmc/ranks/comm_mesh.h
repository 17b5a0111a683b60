/* Streams of bytes between any two ranks, for collectives on the CPU: through shared memory where both are on
 * one machine, else through TCP. Nothing blocks but mesh_wait(). One thread at a time uses a mesh. */
#ifndef LLMC_COMM_MESH_H
#define LLMC_COMM_MESH_H

#include "llmc/process/group_impl.h"

/* What waits to be read, in memory that the writer fills: the other process, or recv(). */
struct ring {
    _Alignas(64) _Atomic uint64_t head; /* bytes written since the beginning */
    _Alignas(64) _Atomic uint64_t tail; /* bytes read */
};

struct channel {
    int fd; /* carries the data, or, with shared memory, single bytes that wake a sleeping reader or writer */
    bool shared;
    struct ring *in, *out; /* out: only with shared memory */
    uint8_t *in_data, *out_data;
    uint64_t sent; /* since the beginning */
    bool blocked;  /* TCP: the system takes no more now */
    bool touched;  /* the other side may want to know */
    uint64_t seen_head, seen_tail;
};

struct mesh {
    struct group *group;
    struct channel *channels; /* by rank; the own one is unused */
    uint64_t capacity;        /* of each ring, a power of two */
    void *map;                /* the shared memory; NULL: none */
    size_t map_size;
    int64_t shared;         /* how many channels are */
    struct sleeper *asleep; /* in shared memory, by local index */
    int64_t *local;         /* by rank: the index among the ranks of this machine, or -1 */
    struct pollfd *polled;
    const char *where; /* for the message when a connection breaks */
};

/* Every rank calls it. NULL on all ranks, with the reason, if it fails on one. */
struct mesh *mesh_open(struct group *g, struct error *err);
/* Every rank calls it, with nothing under way. */
void mesh_close(struct mesh *m);

/* Takes up to `bytes`, and returns how many. */
size_t mesh_send(struct mesh *m, int64_t to, const void *data, size_t bytes);
/* What has come and lies at *data, in one piece; `bytes` or less. */
size_t mesh_peek(struct mesh *m, int64_t from, const uint8_t **data, size_t bytes);
/* Gives back what was peeked at. */
void mesh_take(struct mesh *m, int64_t from, size_t bytes);
/* Peek, copy, take. */
size_t mesh_receive(struct mesh *m, int64_t from, void *data, size_t bytes);

/* Bytes since the beginning. */
uint64_t mesh_received(const struct mesh *m, int64_t from);
uint64_t mesh_sent(const struct mesh *m, int64_t to);

/* To be called before a round of the calls above; mesh_wait() then returns when, since then, anything has
 * changed that they depend on, or after a second. */
void mesh_mark(struct mesh *m);
/* Wakes those who sleep for what was sent or taken. */
void mesh_notify(struct mesh *m);
void mesh_wait(struct mesh *m);

#endif
