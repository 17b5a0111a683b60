/* Rotary position embedding. Contract in ops.h.
 *
 * The op moves 4 bytes per bf16 element of queries and keys, so it should run at the rate of a copy. What
 * could cost more is the angle: 131071 radians in fp32 would be off by 1/256. Angles are therefore counted
 * in turns, as 64-bit fractions: one turn is 2^64, so that the product of position and frequency drops
 * whole turns by itself and exactly. The host computes the frequencies in double.
 *
 * In the production variant a thread takes 16 bytes of one half of a head and the 16 bytes that they are
 * paired with, in HEADS heads of a row, which have the same angles: 4 sincospif serve 32 elements. */
#include "llmc/cuda/operands.cuh"

/* --- naive: a thread a pair, angles in double --- */

template <class T>
__global__ void rope_naive_kernel(T *qkv, int64_t pairs, int64_t length, int heads, int HS, int64_t width,
                                  int t0, rope_rule rule, bool backward) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, half = HS / 2, rows = length - t0;
    if (i >= pairs) return;
    int64_t pair = i % half, h = i / half % heads, row = i / half / heads, t = t0 + row % rows;
    double angle = (double)t * rope_frequency(rule, pair, HS);
    float c = (float)cos(angle), s = (float)sin(backward ? -angle : angle);
    T *x = qkv + (row / rows * length + t) * width + h * HS + pair, *y = x + half;
    float xi = to_float(*x), yi = to_float(*y);
    *x = from_float<T>(xi * c - yi * s);
    *y = from_float<T>(yi * c + xi * s);
}

/* --- vec --- */

constexpr int BLOCK = 256;
constexpr int HEADS = 4;        /* of a thread: 8 loads of 16 bytes in flight */
constexpr int MOST_PAIRS = 128; /* of a head */

/* What a position adds to each pair's angle, in turns, at least 0 and below 1. */
struct rope_frequencies {
    double turns[MOST_PAIRS];
};

/* Cosine and sine of t * turns; fp32 keeps that angle to 2^-26 of a turn. */
DEVICE_INLINE void cos_sin_at(int t, double turns, float *c, float *s) {
    uint64_t angle = (uint64_t)t * (uint64_t)(turns * 0x1p64);
    float half_turns = (float)(int32_t)(angle >> 32) * 0x1p-31f; /* -1 .. 1 */
    sincospif(half_turns, s, c);
}

/* Grid: (row, vector of half a head), groups of HEADS heads. */
template <class T>
__global__ void __launch_bounds__(BLOCK)
    rope_vec_kernel(T *qkv, const rope_frequencies frequencies, int64_t rows, int length, int heads, int HS,
                    int64_t width, int t0, float sign) {
    constexpr int size = vec<T>::size;
    int half = HS / 2, vectors = half / size, rows_of_b = length - t0, first = (int)blockIdx.y * HEADS;
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row = i / vectors;
    int pair = (int)(i % vectors) * size, t = t0 + (int)(row % rows_of_b);
    if (row >= rows) return;
    T *x = qkv + (row / rows_of_b * length + t) * width + (int64_t)first * HS + pair;
    vec<T> lo[HEADS], hi[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        if (first + h >= heads) continue;
        lo[h] = vec<T>::load(x + h * HS);
        hi[h] = vec<T>::load(x + h * HS + half);
    }
#pragma unroll
    for (int k = 0; k < size; k++) {
        float c, s;
        cos_sin_at(t, frequencies.turns[pair + k], &c, &s);
        s *= sign;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float xi = to_float(lo[h][k]), yi = to_float(hi[h][k]);
            lo[h][k] = from_float<T>(xi * c - yi * s);
            hi[h][k] = from_float<T>(yi * c + xi * s);
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        if (first + h >= heads) continue;
        lo[h].store(x + h * HS);
        hi[h].store(x + h * HS + half);
    }
}

/* --- launchers --- */

static void rope_naive(const struct op_env *env, struct tensor *qkv, int NH, int NKV, int t0,
                       const struct rope_rule *rule, bool backward) {
    int64_t B = qkv->dim[0], T = qkv->dim[1], width = qkv->dim[2];
    int HS = (int)(width / (NH + 2 * NKV)), heads = NH + NKV;
    int64_t pairs = B * (T - t0) * heads * (HS / 2);
    with_dtype(qkv->dtype, [&](auto tag) {
        using E = decltype(tag);
        launch({grid_size(pairs, BLOCK), BLOCK, 0, env->stream}, rope_naive_kernel<E>, data_of<E>(qkv), pairs,
               T, heads, HS, width, t0, *rule, backward);
    });
}

static int64_t rope_vec_need(struct tensor *qkv, int NH, int NKV, int t0, const struct rope_rule *rule,
                             bool backward) {
    int64_t half = qkv->dim[2] / (NH + 2 * NKV) / 2;
    bool whole = half * (int64_t)dtype_size(qkv->dtype) % 16 == 0;
    return whole && half <= MOST_PAIRS && rows_of_vectors(qkv) && qkv->dim[1] < (1ll << 31) ? 0
                                                                                            : OP_UNSUPPORTED;
}

static rope_frequencies frequencies_of(int HS, rope_rule rule) {
    constexpr double two_pi = 6.283185307179586;
    rope_frequencies f = {};
    for (int i = 0; i < HS / 2; i++) {
        double turns = rope_frequency(rule, i, HS) / two_pi;
        f.turns[i] = turns - floor(turns);
    }
    return f;
}

static void rope_vec(const struct op_env *env, struct tensor *qkv, int NH, int NKV, int t0,
                     const struct rope_rule *rule, bool backward) {
    int64_t rows = qkv->dim[0] * (qkv->dim[1] - t0), width = qkv->dim[2];
    int HS = (int)(width / (NH + 2 * NKV)), heads = NH + NKV;
    with_dtype(qkv->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({{grid_size(rows * (HS / 2 / vec<T>::size), BLOCK), grid_size(heads, HEADS)},
                BLOCK,
                0,
                env->stream},
               rope_vec_kernel<T>, data_of<T>(qkv), frequencies_of(HS, *rule), rows, (int)qkv->dim[1], heads,
               HS, width, t0, backward ? -1.0f : 1.0f);
    });
}

/* --- variants --- */

extern "C" {
const struct rope_variant cuda_rope_variants[] = {
    {"vec", rope_vec, rope_vec_need}, {"naive", rope_naive}, {}};
}
