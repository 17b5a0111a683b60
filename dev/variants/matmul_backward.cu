/* The bias gradient, dbias (OC) = or += the sum over the rows of dout (N,OC), in four steps. It is the part
 * of matmul_backward that is not a matrix product; the products are left to production's variants
 * (llmc/cuda/matmul.cu). Production sums the bias in cuBLASLt's epilogue, or as step 4 does. The contract
 * is in llmc/ops/ops.h.
 *
 * `bench --ladder --op matmul_backward` times the whole operation. The variant "0_no_bias", which takes no
 * bias, shows the share of the products.
 *
 * Memory bounds the sum. The widest layer of GPT-2 124M has N = 65,536 rows of OC = 3072 in bf16: 403 MB,
 * 94 us at the 4.3 TB/s that an H200 copies. To keep that rate while a load takes 600 ns, each
 * multiprocessor must have 20 KB of loads under way at any time. That is what the steps are about. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

/* --- step 1: one thread per column ---
 * Neighbouring threads read neighbouring columns, so every byte of a sector is used. But there are only
 * 3072 threads, 23 per multiprocessor. A thread adds 65,536 values one after the other; if the compiler
 * keeps 4 loads of 2 bytes under way, at 600 ns each, that takes 10 ms: 1 % of the copy rate. */

template <class T>
__global__ void bias_gradient_1_kernel(T *dbias, const T *dout, int64_t N, int64_t C, int accumulate) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float sum = accumulate ? to_float(dbias[c]) : 0.0f;
    for (int64_t n = 0; n < N; n++) sum += to_float(dout[n * C + c]);
    dbias[c] = from_float<T>(sum);
}

/* --- step 2: rows in parallel ---
 * A block has 32 x 32 threads for 32 columns: 32 threads share a column, each adds every 32nd row, and
 * their sums are added in shared memory. With 32 times the threads, 96 blocks of 1024, a multiprocessor has
 * 2 KB under way in place of 60 bytes or so: 0.3 TB/s, 1.2 ms. 36 of the 132 multiprocessors have no
 * block. */

constexpr int COLS = 32, ROWS = 32;

/* Adds the partial sums of the block's 32 thread rows; the threads of row 0 return the totals. */
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

/* --- step 3: chunks of rows ---
 * The rows are divided among blocks as well, in 32 chunks. Each block leaves its sums in scratch memory and
 * a second, small kernel adds them. Now every multiprocessor holds 2048 threads, 4 KB under way: 0.9 TB/s,
 * 0.45 ms. The second kernel adds the chunks in a fixed order, so the result has the same bits in every
 * run; atomic additions would save that kernel and lose this property. */

/* --- step 4: vectors ---
 * A thread reads 16 bytes, 8 columns in bf16, so a multiprocessor has 32 KB under way, more than the 20 KB
 * that it needs: 95 % of the copy rate, 100 us. */

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

/* The production variant that computes the products, called without a bias. */
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
    if ((STEP == 0) != !dbias) return OP_UNSUPPORTED;
    if (STEP == 4 && !rows_of_vectors(dout)) return OP_UNSUPPORTED;
    return max_i64(bytes, STEP >= 3 ? CHUNKS * tensor_cols(dout) * (int64_t)sizeof(float) : 0);
}

template <int STEP>
static void backward(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                     struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                     const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    int64_t N = tensor_rows(dout), C = tensor_cols(dout), unused;
    float *partial = (float *)env->scratch; /* (CHUNKS,C); the products use the same memory afterwards */
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

/* --- variants --- */

extern "C" const struct matmul_backward_variant ladder_matmul_backward[] = {
    {"4_vectors", backward<4>, need<4>},          {"3_chunks_of_rows", backward<3>, need<3>},
    {"2_rows_in_parallel", backward<2>, need<2>}, {"1_thread_per_column", backward<1>, need<1>},
    {"0_no_bias", backward<0>, need<0>},          {}};
