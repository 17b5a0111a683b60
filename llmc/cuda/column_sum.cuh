/* Sums of a matrix's columns, the gradients of biases, in two steps: blocks sum chunks of rows, and then the
 * chunks are added. Both have a fixed order, which does not depend on the GPU. */
#ifndef LLMC_CUDA_COLUMN_SUM_CUH
#define LLMC_CUDA_COLUMN_SUM_CUH

#include "llmc/cuda/fp8.cuh"

constexpr int SUM_COLS = 32, SUM_ROWS = 8; /* threads of a block along columns and rows */

/* Blocks along the rows: enough to fill a GPU, and the same number on every GPU. */
static int64_t column_sum_chunks(int64_t N) { return min_i64(max_i64(N / 64, 1), 128); }

/* partial (chunks,C): sums over the rows of a chunk; a thread owns W columns. maxima (chunks,gridDim.x) (or
 * NULL): the largest magnitude in each block, as bits. Four rows are under way in each thread: with one, 384
 * blocks (C = 768) would have 12 KB under way on each multiprocessor, of the 32 KB that memory needs. */
template <class T, int W>
static __global__ void __launch_bounds__(SUM_COLS *SUM_ROWS)
    column_sum_kernel(float *partial, uint32_t *maxima, const T *x, int64_t N, int64_t C) {
    SHARED(float, rows, [SUM_ROWS][SUM_COLS * W]);
    SHARED(uint32_t, scratch, [SUM_ROWS]);
    uint32_t largest = 0;
    int64_t col = ((int64_t)blockIdx.x * SUM_COLS + threadIdx.x) * W;
    float sum[W] = {};
    if (col < C) {
        int64_t n = (int64_t)blockIdx.y * SUM_ROWS + threadIdx.y, step = (int64_t)gridDim.y * SUM_ROWS;
        if constexpr (W == 1) {
            for (; n < N; n += step) sum[0] += to_float(x[n * C + col]);
        } else {
            constexpr int BATCH = 4;
            auto add = [&](const vec<T> &v) {
                float values[W];
                to_floats(values, v);
#pragma unroll
                for (int i = 0; i < W; i++) {
                    sum[i] += values[i];
                    largest = max(largest, magnitude_bits(values[i]));
                }
            };
            for (; n + (BATCH - 1) * step < N; n += BATCH * step) {
                vec<T> v[BATCH];
#pragma unroll
                for (int i = 0; i < BATCH; i++) v[i] = vec<T>::load_streaming(x + (n + i * step) * C + col);
#pragma unroll
                for (int i = 0; i < BATCH; i++) add(v[i]);
            }
            for (; n < N; n += step) add(vec<T>::load_streaming(x + n * C + col));
        }
    }
    for (int i = 0; i < W; i++) rows[threadIdx.y][i * SUM_COLS + threadIdx.x] = sum[i];
    __syncthreads();
    for (int i = (int)threadIdx.y; i < W; i += SUM_ROWS) {
        float total = 0;
        for (int y = 0; y < SUM_ROWS; y++) total += rows[y][i * SUM_COLS + threadIdx.x];
        if (col < C) partial[blockIdx.y * C + col + i] = total;
    }
    if (!maxima) return;
    largest = block_max_bits(largest, (int)threadIdx.y, (int)threadIdx.x, SUM_ROWS, scratch);
    if (threadIdx.x == 0 && threadIdx.y == 0) maxima[blockIdx.y * gridDim.x + blockIdx.x] = largest;
}

/* out (C) = or += the sum of the chunks; a thread adds every eighth one of a column. maxima (chunks,blocks)
 * and parts (blocks) (or NULL): those of the kernel before, and the largest of each column of them. `factor`
 * (or NULL): multiplies the sums. */
template <class T>
static __global__ void __launch_bounds__(SUM_COLS *SUM_ROWS)
    column_sum_finish_kernel(T *out, const float *partial, int64_t chunks, int64_t C, bool accumulate,
                             uint32_t *parts, const uint32_t *maxima, int64_t blocks, const float *factor) {
    SHARED(float, sums, [SUM_ROWS][SUM_COLS]);
    SHARED(uint32_t, scratch, [SUM_ROWS]);
    int64_t col = (int64_t)blockIdx.x * SUM_COLS + threadIdx.x;
    float sum = 0.0f;
    if (col < C)
#pragma unroll 8
        for (int64_t i = threadIdx.y; i < chunks; i += SUM_ROWS) sum += partial[i * C + col];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && col < C) {
        float total = accumulate ? to_float(out[col]) : 0.0f;
        for (int y = 0; y < SUM_ROWS; y++)
            total += factor ? *factor * sums[y][threadIdx.x] : sums[y][threadIdx.x];
        out[col] = from_float<T>(total);
    }
    if (!parts) return;
    for (int64_t b = blockIdx.x; b < blocks; b += gridDim.x) {
        uint32_t largest = 0;
        for (int64_t i = threadIdx.y * SUM_COLS + threadIdx.x; i < chunks; i += SUM_COLS * SUM_ROWS)
            largest = max(largest, maxima[i * blocks + b]);
        largest = block_max_bits(largest, (int)threadIdx.y, (int)threadIdx.x, SUM_ROWS, scratch);
        if (threadIdx.x == 0 && threadIdx.y == 0) parts[b] = largest;
        __syncthreads();
    }
}

static int64_t column_sum_bytes(const struct tensor *x) {
    return column_sum_chunks(tensor_rows(x)) * tensor_cols(x) * (int64_t)sizeof(float);
}

/* The blocks of columns of W, each of which has a maximum. */
template <int W> static unsigned column_sum_blocks(int64_t C) { return grid_size(C, SUM_COLS * W); }

/* out (C) = or += sum over the rows of x (N,C); `partial` holds column_sum_bytes(x). parts and maxima (or
 * NULL), for x of whole vectors: see the kernels. */
template <class T>
static void column_sum(cudaStream_t stream, T *out, const T *x, int64_t N, int64_t C, bool accumulate,
                       float *partial, uint32_t *parts = nullptr, uint32_t *maxima = nullptr) {
    constexpr int W = vec<T>::size;
    int64_t chunks = column_sum_chunks(N), blocks = column_sum_blocks<W>(C);
    dim3 block(SUM_COLS, SUM_ROWS);
    if (vec_aligned(x, C))
        launch({dim3((unsigned)blocks, (unsigned)chunks), block, 0, stream}, column_sum_kernel<T, W>, partial,
               maxima, x, N, C);
    else
        launch({dim3(column_sum_blocks<1>(C), (unsigned)chunks), block, 0, stream}, column_sum_kernel<T, 1>,
               partial, nullptr, x, N, C);
    launch({grid_size(C, SUM_COLS), block, 0, stream}, column_sum_finish_kernel<T>, out, partial, chunks, C,
           accumulate, parts, maxima, blocks, nullptr);
}

/* The same where another kernel has left sums of chunks, in units of *factor. */
template <class T>
static void column_sum_finish(cudaStream_t stream, T *out, const float *partial, int64_t chunks, int64_t C,
                              bool accumulate, const float *factor) {
    launch({grid_size(C, SUM_COLS), dim3(SUM_COLS, SUM_ROWS), 0, stream}, column_sum_finish_kernel<T>, out,
           partial, chunks, C, accumulate, nullptr, nullptr, 0, factor);
}

/* out (C) += x (C) */
constexpr int ADD_THREADS = 256;
template <class T> static __global__ void vector_add_kernel(T *out, const T *x, int64_t C) {
    int64_t c = (int64_t)blockIdx.x * ADD_THREADS + threadIdx.x;
    if (c < C) out[c] = from_float<T>(to_float(out[c]) + to_float(x[c]));
}

#endif
