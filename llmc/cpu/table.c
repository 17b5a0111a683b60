/* The op table of one instruction set, made from LLMC_OPS: an op without variants does not link. */
#include "llmc/cpu/cpu.h"

extern const struct ops CPU_NAME(cpu_ops);
const struct ops CPU_NAME(cpu_ops) = {"cpu", false, true,
#define X(op) CPU_NAME(cpu_##op##_variants),
                                      LLMC_OPS(X)
#undef X
};
