/* The inner loop of matrix products on the CPU: a tile of the result that stays in registers. */
#ifndef LLMC_CPU_TILE_H
#define LLMC_CPU_TILE_H

#include "llmc/cpu/cpu.h"

/* Floats in a vector. A vector type that is wider than the processor's registers is taken apart through
 * memory. */
#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

/* A matrix whose element (i,j) is at i*row + j*col. */
struct matrix {
    const float *at;
    int64_t row, col;
};

/* out (m,LANES*cols) = or += a (m,k) @ b (k,n); the rows of b are contiguous. Inlined with constant m and
 * cols, so that the compiler keeps `sum` in registers; m*cols accumulators and cols more have to fit. */
enum { TILE_MOST_ROWS = 12, TILE_MOST_COLS = 4 };
__attribute__((always_inline)) static inline void multiply_tile(int m, int cols, float *out, int64_t ldo,
                                                                struct matrix a, const float *b, int64_t ldb,
                                                                int64_t k, bool add) {
    lanes sum[TILE_MOST_ROWS][TILE_MOST_COLS];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < cols; j++) sum[i][j] = (lanes){0};
    for (int64_t l = 0; l < k; l++)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < cols; j++)
                sum[i][j] += a.at[i * a.row + l * a.col] * *(const lanes *)(b + l * ldb + j * LANES);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < cols; j++) {
            lanes *o = (lanes *)(out + i * ldo + j * LANES);
            if (add)
                *o += sum[i][j];
            else
                *o = sum[i][j];
        }
}

typedef float quad __attribute__((vector_size(16), aligned(sizeof(float)), may_alias));

/* Four columns of four rows become four rows of `to`, which are ldt floats apart, times scale. */
static inline void transpose_4x4(float *to, int64_t ldt, const float *rows, int64_t stride, float scale) {
    quad a = *(const quad *)rows, b = *(const quad *)(rows + stride);
    quad c = *(const quad *)(rows + 2 * stride), d = *(const quad *)(rows + 3 * stride);
    quad ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    quad cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(quad *)to = scale * __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5);
    *(quad *)(to + ldt) = scale * __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7);
    *(quad *)(to + 2 * ldt) = scale * __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5);
    *(quad *)(to + 3 * ldt) = scale * __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7);
}

#endif
