/* The op table of the ladders, made from the list of all ops: what has no ladder keeps its production
 * variants. */
#include "dev/variants/ladder.h"

template <class V> static constexpr const V *ladder_or(const V *production) { return production; }
#define X(op)                                                                                                \
    static constexpr const struct op##_variant *ladder_or(const struct op##_variant *) { return ladder_##op; }
LADDERS(X)
#undef X

extern "C" const struct ops ladder_ops = {"ladder", true, false,
#define X(op) ladder_or(cuda_##op##_variants),
                                          LLMC_OPS(X)
#undef X
};
