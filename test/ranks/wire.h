/* A communicator between forked processes that punishes whoever does not wait: what is on its way is NaN
 * until somebody waits for it, and so are the parts that reduce_scatter leaves undefined. fp32; sums in the
 * order of ranks, as the real one of the CPU. Ranks that start other collectives than the others fail. */
#ifndef LLMC_TEST_WIRE_H
#define LLMC_TEST_WIRE_H

#include "llmc/ranks/comm.h"

struct wire; /* shared memory, made before the fork; one per run */
struct wire *wire_new(void);
void wire_free(struct wire *w);
/* Some rank has failed: those that wait for it end, too. */
void wire_fail(struct wire *w);
/* Waits until all ranks below this one have called wire_turn_done. */
void wire_turn(struct wire *w, int64_t rank);
void wire_turn_done(struct wire *w);

struct comm wire_comm(struct wire *w, int64_t rank, int64_t world);
/* How many collectives this rank has started, and the memory of the newest one's tensor. */
int64_t wire_started(const struct comm *c);
const void *wire_newest(const struct comm *c);

/* Zeroed memory that forks share. */
void *shared_memory(size_t bytes);
/* NaN in every element. */
void poison(const struct tensor *t);

#endif
