/* The fixture of tests of the CPU operations: *state is a context of the CPU device. */
#ifndef LLMC_TEST_CPU_CTX_H
#define LLMC_TEST_CPU_CTX_H

#include "llmc/ops/ctx.h"

int open_cpu(void **state);
int close_cpu(void **state);
static inline struct ctx *ctx_of(void **state) { return (struct ctx *)*state; }

#endif
