/* A communicator that punishes whoever does not wait: from the start of a collective until wait() its
 * tensor is NaN, and so are the parts that reduce_scatter leaves undefined. Another communicator does
 * the work. */
#ifndef LLMC_TEST_POISON_COMM_H
#define LLMC_TEST_POISON_COMM_H

#include "llmc/ranks/comm.h"

/* close() closes `inner`, too. */
struct comm *poison_comm_open(struct comm *inner);
/* The number of collectives that this rank has started, and the memory of the newest one's tensor. */
int64_t poison_comm_started(const struct comm *c);
const void *poison_comm_newest(const struct comm *c);

/* Sets every element of an fp32 tensor to NaN. */
void poison(const struct tensor *t);

#endif
