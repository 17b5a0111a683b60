/* Dropout (Srivastava et al. 2014, JMLR 15): in training, each number of a tensor becomes 0 with probability
 * p, and is divided by 1-p otherwise, so that its expectation stays.
 *
 * Which numbers these are is a function of a seed, the tensor's place in the model, the sample and the index
 * within the sample. So the backward pass, recomputation, a restart and any division of a batch among
 * processes choose the same ones, and no mask is stored. */
#ifndef LLMC_DROPOUT_H
#define LLMC_DROPOUT_H

#include "llmc/base/rng.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tensor;

struct dropout_rule {
    float p; /* [0,1) */
    uint64_t seed;
    uint32_t place; /* < 2^24 */
    const struct tensor
        *samples; /* (B) int32: for each sequence, a number that no other one of the training has */
};

/* Of one sample. */
struct dropout_key {
    uint64_t seed, purpose;
    float p, scale;
};
static inline LLMC_HD struct dropout_key dropout_key_of(float p, uint64_t seed, uint32_t place,
                                                        int32_t sample) {
    struct dropout_key k = {seed, RNG_DROPOUT | (uint64_t)place << 8 | (uint64_t)(uint32_t)sample << 32, p,
                            1.0f / (1.0f - p)};
    return k;
}

/* What number `index` of the sample is multiplied with: 0 or 1/(1-p). Four numbers share a block of random
 * bits. */
static inline LLMC_HD struct rng4 dropout_block(struct dropout_key k, int64_t index) {
    return rng_philox(k.seed, k.purpose, (uint64_t)index / 4);
}
static inline LLMC_HD float dropout_factor_in(struct dropout_key k, struct rng4 block, int64_t index) {
    return rng_unit_float(block.v[index % 4]) < k.p ? 0.0f : k.scale;
}
static inline LLMC_HD float dropout_factor(struct dropout_key k, int64_t index) {
    return dropout_factor_in(k, dropout_block(k, index), index);
}

#ifdef __cplusplus
}
#endif
#endif
