/* Bias gradient, dbias (OC) = or += sum over the rows of dout (N,OC), in four steps. It is part of
 * matmul_backward, whose products are left to production here: `bench --ladder --op matmul_backward` times
 * both, and the first row, which takes no bias, tells how much of it the products are. Production has the sum
 * in cuBLASLt's epilogue, or does step 4 in chunks (llmc/cuda/matmul.cu). Contract in ops.h.
 *
 * The widest layer of GPT-2 124M, N = 65,536 rows of OC = 3072 in bf16: 403 MB to read, 94 us at 4.3 TB/s.
 * Order: steps 1 to 4, launchers, rows. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

/* --- step 1: a thread a column ---
 * Neighbouring threads read neighbouring columns, so all bytes of a sector are used. But there are only 3072
 * threads, 23 a multiprocessor, each with one load of 2 bytes under way at a time (or the few that the
 * compiler unrolls). Predicted: 65,536 loads one after the other at some 600 ns, 4 at a time: 10 ms, 1 % of
 * the copy rate. Measured: not yet measured. */

template <class T>
__global__ void bias_gradient_1_kernel(T *dbias, const T *dout, int64_t N, int64_t C, int accumulate) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float sum = accumulate ? to_float(dbias[c]) : 0.0f;
    for (int64_t n = 0; n < N; n++) sum += to_float(dout[n * C + c]);
    dbias[c] = from_float<T>(sum);
}

/* --- step 2: 32 rows at a time ---
 * Against step 1: a block has 32 threads for each of its 32 columns, which take every 32nd row and add up in
 * shared memory. 32 times the threads. Predicted: 96 blocks of 1024 threads fill 96 of 132 multiprocessors,
 * each with 1024 loads of 2 bytes (64 a warp, 2 sectors) under way: 2 KB at 600 ns a multiprocessor, 0.3
 * TB/s: 1.2 ms. Measured: not yet measured. */

constexpr int COLS = 32, ROWS = 32;

/* The block's sums of columns, in thread row 0. */
DEVICE_INLINE float sum_of_rows(float sum, float (&all)[ROWS][COLS]) {
    all[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    float total = 0.0f;
    if (threadIdx.y == 0)
        for (int y = 0; y < ROWS; y++) total += all[y][threadIdx.x];
    __syncthreads();
    return total;
}

template <class T>
__global__ void __launch_bounds__(COLS *ROWS)
    bias_gradient_2_kernel(T *dbias, const T *dout, int64_t N, int64_t C, int accumulate) {
    SHARED(float, all, [ROWS][COLS]);
    int64_t c = (int64_t)blockIdx.x * COLS + threadIdx.x;
    float sum = 0.0f;
    if (c < C)
        for (int64_t n = threadIdx.y; n < N; n += ROWS) sum += to_float(dout[n * C + c]);
    sum = sum_of_rows(sum, all);
    if (threadIdx.y == 0 && c < C) dbias[c] = from_float<T>(sum + (accumulate ? to_float(dbias[c]) : 0.0f));
}

/* --- steps 3 and 4: chunks of rows, and vectors ---
 * Step 3, against step 2: the rows are divided among blocks, too, which leave partial sums for a second
 * kernel; adding them up in a fixed order keeps the result the same in every run, which atomics would not.
 * Predicted: with 32 chunks every multiprocessor has its 2048 threads, 4 KB under way each, 0.9 TB/s: 0.45
 * ms. Step 4, against step 3: a thread reads 16 bytes, 8 columns in bf16. Predicted: 32 KB under way a
 * multiprocessor, more than the 20 KB that 4.3 TB/s at 600 ns ask for: 95 % of the copy rate, 100 us.
 * Measured: not yet measured, either. */

constexpr int CHUNKS = 32;

template <class T, int W>
__global__ void __launch_bounds__(COLS *ROWS)
    bias_gradient_34_kernel(float *partial, const T *dout, int64_t N, int64_t C) {
    SHARED(float, all, [ROWS][COLS]);
    int64_t c = ((int64_t)blockIdx.x * COLS + threadIdx.x) * W;
    float sum[W] = {};
    if (c < C)
        for (int64_t n = (int64_t)blockIdx.y * ROWS + threadIdx.y; n < N; n += CHUNKS * ROWS) {
            if constexpr (W == 1) {
                sum[0] += to_float(dout[n * C + c]);
            } else {
                vec<T> v = vec<T>::load(dout + n * C + c);
#pragma unroll
                for (int i = 0; i < W; i++) sum[i] += to_float(v[i]);
            }
        }
#pragma unroll
    for (int i = 0; i < W; i++) {
        float total = sum_of_rows(sum[i], all);
        if (threadIdx.y == 0 && c < C) partial[blockIdx.y * C + c + i] = total;
    }
}

template <class T>
__global__ void bias_gradient_finish_kernel(T *dbias, const float *partial, int64_t C, int accumulate) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float sum = accumulate ? to_float(dbias[c]) : 0.0f;
    for (int i = 0; i < CHUNKS; i++) sum += partial[i * C + c];
    dbias[c] = from_float<T>(sum);
}

/* --- launchers --- */

/* Production's row for the products alone. */
static const struct matmul_backward_variant *products(struct tensor *dinp, struct tensor *dweight,
                                                      const struct tensor *dout, const struct tensor *inp,
                                                      const struct tensor *weight, const struct tensor *pre,
                                                      bool accumulate, int64_t *need) {
    const struct matmul_backward_variant *row = cuda_matmul_backward_variants;
    while (row->name &&
           (row->arch || (*need = row->need(dinp, dweight, nullptr, dout, inp, weight, pre, accumulate)) < 0))
        row++;
    return row;
}

template <int STEP>
static int64_t need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                    const struct tensor *dout, const struct tensor *inp, const struct tensor *weight,
                    const struct tensor *pre, bool accumulate) {
    int64_t bytes = 0;
    if (!products(dinp, dweight, dout, inp, weight, pre, accumulate, &bytes)->name) return OP_UNSUPPORTED;
    if ((STEP == 0) != !dbias || !same_float_dtype(dout, dbias)) return OP_UNSUPPORTED;
    if (STEP == 4 && !rows_of_vectors(dout)) return OP_UNSUPPORTED;
    return max_i64(bytes, STEP >= 3 ? CHUNKS * tensor_cols(dout) * (int64_t)sizeof(float) : 0);
}

template <int STEP>
static void backward(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                     struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                     const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    int64_t N = tensor_rows(dout), C = tensor_cols(dout), unused;
    float *partial = (float *)env->scratch; /* (CHUNKS,C); the products come later and use the same */
    if (dbias)
        with_dtype(dout->dtype, [&](auto tag) {
            using T = decltype(tag);
            constexpr int W = STEP == 4 ? vec<T>::size : 1;
            T *out = data_of<T>(dbias);
            const T *x = data_of<T>(dout);
            if (STEP == 1)
                launch({grid_size(C, 32), 32, 0, env->stream}, bias_gradient_1_kernel<T>, out, x, N, C,
                       accumulate);
            if (STEP == 2)
                launch({grid_size(C, COLS), {COLS, ROWS}, 0, env->stream}, bias_gradient_2_kernel<T>, out, x,
                       N, C, accumulate);
            if (STEP < 3) return;
            launch({{grid_size(C, COLS * W), CHUNKS}, {COLS, ROWS}, 0, env->stream},
                   bias_gradient_34_kernel<T, W>, partial, x, N, C);
            launch({grid_size(C, 256), 256, 0, env->stream}, bias_gradient_finish_kernel<T>, out, partial, C,
                   accumulate);
        });
    products(dinp, dweight, dout, inp, weight, pre, accumulate, &unused)
        ->run(env, dinp, dweight, nullptr, dout, inp, weight, pre, accumulate);
}

/* --- rows --- */

extern "C" const struct matmul_backward_variant ladder_matmul_backward[] = {
    {"4_vectors", backward<4>, need<4>},          {"3_chunks_of_rows", backward<3>, need<3>},
    {"2_rows_in_parallel", backward<2>, need<2>}, {"1_thread_per_column", backward<1>, need<1>},
    {"0_no_bias", backward<0>, need<0>},          {}};
