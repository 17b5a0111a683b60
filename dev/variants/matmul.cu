/* Matrix product, out = inp @ weight^T + bias, in four steps. Production calls cuBLASLt
 * (llmc/cuda/matmul.cu); the contract is in llmc/ops/ops.h.
 *
 * inp is (N,K), weight (M,K), out (N,M), all row-major. Arithmetic bounds it. The largest layer of GPT-2
 * 124M has K = 768 and M = 3072, which for N = 65,536 tokens makes 2NMK = 309 GFLOP. An H200 without its
 * tensor cores does 132 multiprocessors * 128 multiply-adds * 1.7 GHz = 57 TFLOP/s: 5.4 ms. With them
 * cuBLAS reaches 790 TFLOP/s: 0.39 ms. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/activation.cuh"
#include "llmc/cuda/operands.cuh"

/* --- bias and activation of one element --- */

template <class T> struct output {
    T *out, *pre;       /* (N,M) */
    const T *bias;      /* (M) or NULL */
    int64_t N, M, gelu; /* gelu is 0 or 1; a bool would leave uninitialised padding in a kernel argument */
    __device__ void store(int64_t n, int64_t m, float sum) const {
        if (n >= N || m >= M) return;
        T v = from_float<T>(sum + (bias ? to_float(bias[m]) : 0.0f));
        if (pre) pre[n * M + m] = v;
        out[n * M + m] = gelu ? from_float<T>(::gelu(to_float(v))) : v;
    }
};

/* --- step 1: one thread per element ---
 * The definition. Each multiply-add needs two loads. The lanes of a warp share one row of inp, which is a
 * broadcast, but read 32 rows of weight that are 1536 bytes apart: 32 sectors per load, of which 2 bytes
 * each are used at once. L1 delivers 4 sectors per clock, so 32 multiply-adds take 8 clocks for loads where
 * the arithmetic takes a quarter of one: 3 % of 57 TFLOP/s, about 170 ms. */

constexpr int TILE = 32; /* blocks of 32 x 8 threads in step 1, of 32 x 32 in step 2 */

template <class T> __global__ void matmul_1_kernel(output<T> y, const T *inp, const T *weight, int64_t K) {
    int64_t n = (int64_t)blockIdx.x * 8 + threadIdx.y, m = (int64_t)blockIdx.y * TILE + threadIdx.x;
    if (n >= y.N || m >= y.M) return;
    float sum = 0.0f;
    for (int64_t k = 0; k < K; k++) sum = fmaf(to_float(inp[n * K + k]), to_float(weight[m * K + k]), sum);
    y.store(n, m, sum);
}

/* --- step 2: tiles in shared memory ---
 * A block computes 32 x 32 elements. It copies 32 x 32 pieces of both operands into shared memory with
 * coalesced loads, so each value that comes from memory is used 32 times in place of once. A row of the
 * tile has 33 floats, so that the 32 values of a column lie in 32 different banks. Each multiply-add still
 * needs two loads, now from shared memory, which serves 32 lanes per clock, a quarter of the arithmetic
 * rate: 1/8 of 57 TFLOP/s, 44 ms. */

template <class T>
__global__ void __launch_bounds__(TILE *TILE)
    matmul_2_kernel(output<T> y, const T *inp, const T *weight, int64_t K) {
    SHARED(float, a, [TILE][TILE + 1]);
    SHARED(float, b, [TILE][TILE + 1]);
    int tx = (int)threadIdx.x, ty = (int)threadIdx.y;
    int64_t n0 = (int64_t)blockIdx.x * TILE, m0 = (int64_t)blockIdx.y * TILE;
    float sum = 0.0f;
    for (int64_t k0 = 0; k0 < K; k0 += TILE) {
        bool inside = k0 + tx < K;
        a[ty][tx] = inside && n0 + ty < y.N ? to_float(inp[(n0 + ty) * K + k0 + tx]) : 0.0f;
        b[ty][tx] = inside && m0 + ty < y.M ? to_float(weight[(m0 + ty) * K + k0 + tx]) : 0.0f;
        __syncthreads();
        for (int k = 0; k < TILE; k++) sum = fmaf(a[ty][k], b[tx][k], sum);
        __syncthreads(); /* all threads are done before the next tile overwrites this one */
    }
    y.store(n0 + ty, m0 + tx, sum);
}

/* --- step 3: a tile in registers ---
 * 16 x 16 threads compute 64 x 64 elements, 4 x 4 per thread. For 16 multiply-adds a thread loads 4 + 4
 * values into registers, half a load per multiply-add in place of two. Shared memory was the limit, so this
 * is 4 times faster: 28 TFLOP/s, 11 ms. 8 x 8 elements per thread would come nearer to 57 TFLOP/s. */

constexpr int SIDE = 64, DEPTH = 16, EACH = 4; /* tiles (SIDE,DEPTH); EACH x EACH elements per thread */

template <class T>
__global__ void __launch_bounds__(256)
    matmul_3_kernel(output<T> y, const T *inp, const T *weight, int64_t K) {
    SHARED(float, a, [SIDE][DEPTH + 1]);
    SHARED(float, b, [SIDE][DEPTH + 1]);
    int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;
    int64_t n0 = (int64_t)blockIdx.x * SIDE, m0 = (int64_t)blockIdx.y * SIDE;
    float sum[EACH][EACH] = {};
    for (int64_t k0 = 0; k0 < K; k0 += DEPTH) {
        bool inside = k0 + tx < K;
        for (int i = ty; i < SIDE; i += 16) {
            a[i][tx] = inside && n0 + i < y.N ? to_float(inp[(n0 + i) * K + k0 + tx]) : 0.0f;
            b[i][tx] = inside && m0 + i < y.M ? to_float(weight[(m0 + i) * K + k0 + tx]) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < DEPTH; k++) {
            float left[EACH], right[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) left[i] = a[ty + 16 * i][k], right[i] = b[tx + 16 * i][k];
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
        }
        __syncthreads();
    }
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) y.store(n0 + ty + 16 * i, m0 + tx + 16 * j, sum[i][j]);
}

/* --- step 4: tensor cores ---
 * A warp multiplies 16 x 16 by 16 x 8 in one instruction (mma_m16n8k16 in llmc/cuda/kernel_ptx.cuh says
 * which lane holds which elements). A block of 4 warps computes 64 x 64 elements, 16 rows per warp.
 * Asynchronous copies of 16 bytes bring the tiles into shared memory without passing through registers. A
 * row of a tile has 8 elements more than 32, so that the 8 rows which ldmatrix reads together lie in
 * different banks. mma.sync reaches at most 63 % of Hopper's tensor core rate, 620 TFLOP/s; this kernel
 * stays below because nothing is loaded while the tensor cores work, and because small tiles read each
 * operand 2 to 4 times as often as a library does: 100 to 200 TFLOP/s, 1.5 to 3 ms. The next steps are
 * several stages of copies, larger tiles, and on Hopper TMA and wgmma. */

constexpr int MMA_DEPTH = 32, MMA_ROW = MMA_DEPTH + 8;

__global__ static void __launch_bounds__(128)
    matmul_4_kernel(output<bf16> y, const bf16 *inp, const bf16 *weight, int64_t K) {
    SHARED_ALIGNED(bf16, a, [SIDE][MMA_ROW], 16);
    SHARED_ALIGNED(bf16, b, [SIDE][MMA_ROW], 16);
    int lane = (int)threadIdx.x % WARP_SIZE, warp = (int)threadIdx.x / WARP_SIZE;
    int64_t n0 = (int64_t)blockIdx.x * SIDE, m0 = (int64_t)blockIdx.y * SIDE;
    float sum[8][4] = {}; /* 16 x 64 elements per warp, in 8 groups of 8 columns */
    for (int64_t k0 = 0; k0 < K; k0 += MMA_DEPTH) {
        for (int i = (int)threadIdx.x; i < SIDE * MMA_DEPTH / 8; i += 128) {
            int row = i / (MMA_DEPTH / 8), k = i % (MMA_DEPTH / 8) * 8;
            bool ina = n0 + row < y.N && k0 + k < K, inb = m0 + row < y.M && k0 + k < K;
            cp_async16(&a[row][k], ina ? inp + (n0 + row) * K + k0 + k : inp, ina);
            cp_async16(&b[row][k], inb ? weight + (m0 + row) * K + k0 + k : weight, inb);
        }
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < MMA_DEPTH; k += 16) {
            uint32_t left[4], right[4];
            /* four 8 x 8 matrices: rows 0-7 and 8-15 of columns k to k+7, then of k+8 to k+15 */
            ldmatrix_x4(left, &a[warp * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                /* a row of weight is a column of out: columns 8j to 8j+7 at k and k+8, then the next 8 */
                ldmatrix_x4(right, &b[8 * j + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
                mma_m16n8k16(sum[j], left, right[0], right[1]);
                mma_m16n8k16(sum[j + 1], left, right[2], right[3]);
            }
        }
        __syncthreads();
    }
    int64_t n = n0 + warp * 16 + lane / 4, m = m0 + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) y.store(n + i / 2 * 8, m + 8 * j + i % 2, sum[j][i]);
}

/* --- launchers --- */

template <int STEP>
static int64_t need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                    const struct tensor *weight, const struct tensor *bias, enum activation act) {
    bool takes = tensor_cols(out) < 65535 * TILE &&
                 !matmul_in_fp8(inp, weight);
    if (STEP == 4) takes = takes && out->dtype == DTYPE_BF16 && rows_of_vectors(inp, weight);
    return takes ? 0 : OP_UNSUPPORTED;
}

template <int STEP>
static void run(const struct op_env *env, struct tensor *out, struct tensor *pre, const struct tensor *inp,
                const struct tensor *weight, const struct tensor *bias, enum activation act) {
    int64_t N = tensor_rows(inp), M = tensor_cols(out), K = tensor_cols(inp);
    auto go = [&](auto tag, auto kernel, int rows, int cols, dim3 block) {
        using T = decltype(tag);
        output<T> y = {data_of<T>(out), data_of<T>(pre), data_of<T>(bias), N, M, act == ACT_GELU};
        launch({{grid_size(N, rows), grid_size(M, cols)}, block, 0, env->stream}, kernel, y, data_of<T>(inp),
               data_of<T>(weight), K);
    };
    if constexpr (STEP == 4)
        go(bf16(), matmul_4_kernel, SIDE, SIDE, 128);
    else
        with_dtype(out->dtype, [&](auto tag) {
            using T = decltype(tag);
            if (STEP == 1) go(tag, matmul_1_kernel<T>, 8, TILE, {TILE, 8});
            if (STEP == 2) go(tag, matmul_2_kernel<T>, TILE, TILE, {TILE, TILE});
            if (STEP == 3) go(tag, matmul_3_kernel<T>, SIDE, SIDE, 256);
        });
}

/* --- variants --- */

extern "C" const struct matmul_forward_variant ladder_matmul_forward[] = {
    {"4_tensor_cores", run<4>, need<4>},
    {"3_register_tile", run<3>, need<3>},
    {"2_shared_tile", run<2>, need<2>},
    {"1_thread_per_element", run<1>, need<1>},
    {}};
