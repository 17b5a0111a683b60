/* The CPU's op table, made from LLMC_OPS: an op without variants does not link. */
#include "llmc/cpu/cpu.h"

const struct ops cpu_ops = {"cpu", false,
#define X(op) cpu_##op##_variants,
                            LLMC_OPS(X)
#undef X
};
