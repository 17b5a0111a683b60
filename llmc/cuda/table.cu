/* The CUDA back end's op table, made from LLMC_OPS: an op without variants does not link. */
#include "llmc/cuda/kernel.cuh"

extern "C" const struct ops cuda_ops = {"cuda", true, false,
#define X(op) cuda_##op##_variants,
                                        LLMC_OPS(X)
#undef X
};
