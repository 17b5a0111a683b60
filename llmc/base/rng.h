/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2,
 * 3", SC'11).
 *
 * There is no generator state. A number is a pure function of (seed, purpose, index), so results do not
 * depend on how work is divided between threads, GPUs or restarts. `purpose` separates the users of one
 * seed. */
#ifndef LLMC_RNG_H
#define LLMC_RNG_H

#include <stdint.h>

#if defined(__CUDACC__)
#define LLMC_HD __host__ __device__
#else
#define LLMC_HD
#endif

enum rng_purpose {
    RNG_INIT = 1,    /* parameter initialisation; + (parameter row << 8) */
    RNG_SHUFFLE = 2, /* order of the training samples */
    RNG_SAMPLE = 3,  /* text generation */
    RNG_ROUND = 4,   /* stochastic rounding */
    RNG_STORIES = 5, /* the default corpus */
    RNG_TEST = 6,
    RNG_DROPOUT = 7, /* + (place << 8) + (sample << 32): dropout.h */
    RNG_SHOTS = 8    /* examples before a question; + (question << 8) */
};

struct rng4 {
    uint32_t v[4];
};

static inline LLMC_HD struct rng4 rng_philox(uint64_t seed, uint64_t purpose, uint64_t index) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = (uint32_t)purpose,
             c3 = (uint32_t)(purpose >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    struct rng4 r = {{c0, c1, c2, c3}};
    return r;
}

/* Uniform in [0,1), 24 bits. */
static inline LLMC_HD float rng_unit_float(uint32_t bits) {
    return (float)(bits >> 8) * (1.0f / 16777216.0f);
}

/* Uniform in [0,1), 53 bits, from (seed, purpose, index). */
static inline LLMC_HD double rng_uniform(uint64_t seed, uint64_t purpose, uint64_t index) {
    struct rng4 r = rng_philox(seed, purpose, index);
    uint64_t bits = ((uint64_t)r.v[0] << 32 | r.v[1]) >> 11;
    return (double)bits * (1.0 / 9007199254740992.0);
}

#endif
