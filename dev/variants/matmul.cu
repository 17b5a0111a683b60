/* Matrix product, out = inp @ weight^T + bias, in four steps. Production calls cuBLASLt
 * (llmc/cuda/matmul.cu); contract in ops.h.
 *
 * inp (N,K), weight (M,K), out (N,M), all row-major. The largest layer of GPT-2 124M with 65,536 tokens: K =
 * 768, M = 3072, so 2NMK = 309 GFLOP. At the 790 TFLOP/s that cuBLAS reaches on an H200: 0.39 ms. Without
 * tensor cores the bound is 132 SMs * 128 multiply-adds * 1.7 GHz = 57 TFLOP/s: 5.4 ms. Order: the end of an
 * element, steps 1 to 4, launchers, rows. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/gelu.cuh"
#include "llmc/cuda/operands.cuh"

/* --- what follows the product, for one element --- */

template <class T> struct output {
    T *out, *pre;       /* (N,M) */
    const T *bias;      /* (M) or NULL */
    int64_t N, M, gelu; /* gelu: 0 or 1; a bool would leave padding, which nobody sets */
    __device__ void store(int64_t n, int64_t m, float sum) const {
        if (n >= N || m >= M) return;
        T v = from_float<T>(sum + (bias ? to_float(bias[m]) : 0.0f));
        if (pre) pre[n * M + m] = v;
        out[n * M + m] = gelu ? from_float<T>(::gelu(to_float(v))) : v;
    }
};

/* --- step 1: a thread an element ---
 * Each multiply-add needs two loads. The lanes of a warp share one row of inp (a broadcast) and read 32 rows
 * of weight, 1536 bytes apart: 32 sectors a load, of which 2 bytes each are used at once, the rest from L1 if
 * it is still there. Predicted: 32 sectors a warp and step at 4 sectors a clock from L1: 8 clocks for 32
 * multiply-adds, where the arithmetic takes 0.25: below 3 % of 57 TFLOP/s, some 1.8 TFLOP/s, 170 ms.
 * Measured: not yet measured. */

constexpr int TILE = 32; /* step 1: block of 32 x 8; step 2: 32 x 32 */

template <class T> __global__ void matmul_1_kernel(output<T> y, const T *inp, const T *weight, int64_t K) {
    int64_t n = (int64_t)blockIdx.x * 8 + threadIdx.y, m = (int64_t)blockIdx.y * TILE + threadIdx.x;
    if (n >= y.N || m >= y.M) return;
    float sum = 0.0f;
    for (int64_t k = 0; k < K; k++) sum = fmaf(to_float(inp[n * K + k]), to_float(weight[m * K + k]), sum);
    y.store(n, m, sum);
}

/* --- step 2: tiles in shared memory ---
 * Against step 1: a block makes 32 x 32 elements and brings 32 x 32 pieces of both operands into shared
 * memory, coalesced; each element loaded from memory is used 32 times. A row has 33 floats, so that a column
 * of the tile falls into 32 different banks. Predicted: two loads from shared memory a multiply-add, 32 lanes
 * a clock: a quarter of the issue rate for arithmetic each, so 1/8 of 57 TFLOP/s, 7 TFLOP/s, 44 ms. Measured:
 * not yet measured. */

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
        __syncthreads(); /* before the next tile overwrites this one */
    }
    y.store(n0 + ty, m0 + tx, sum);
}

/* --- step 3: 4 x 4 elements a thread ---
 * Against step 2: 16 x 16 threads make 64 x 64 elements. A thread loads 4 + 4 values from shared memory for
 * 16 multiply-adds, 0.5 a multiply-add in place of 2. Predicted: four times step 2, 28 TFLOP/s, 11 ms; 8 x 8
 * a thread would come nearer to the 57. Measured: not yet measured. */

constexpr int SIDE = 64, DEPTH = 16, EACH = 4; /* tile of (SIDE,DEPTH); EACH x EACH elements a thread */

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
 * Against step 3: a warp multiplies 16 x 16 by 16 x 8 in one instruction (mma_m16n8k16 in kernel.cuh tells
 * which lane holds what). A block of 4 warps makes 64 x 64 elements, a warp 16 rows of it; tiles come by
 * 16-byte asynchronous copies, without passing through registers. A row has 8 elements more than 32, so that
 * the 8 rows that ldmatrix reads at a time fall into different banks. Predicted: mma.sync reaches at most 63
 * % of the tensor cores' rate on Hopper, 620 TFLOP/s. Here 3 ldmatrix feed 4 mma at the least, nothing is
 * loaded while the tensor cores work, and 64 x 64 tiles read each operand 1024 times less than step 1 but 2
 * to 4 times more often than a library's: 100 to 200 TFLOP/s, 1.5 to 3 ms. Measured: not yet measured. What
 * follows: several stages of copies, larger tiles, and on Hopper TMA with wgmma. */

constexpr int MMA_DEPTH = 32, MMA_ROW = MMA_DEPTH + 8;

__global__ static void __launch_bounds__(128)
    matmul_4_kernel(output<bf16> y, const bf16 *inp, const bf16 *weight, int64_t K) {
    SHARED_ALIGNED(bf16, a, [SIDE][MMA_ROW], 16);
    SHARED_ALIGNED(bf16, b, [SIDE][MMA_ROW], 16);
    int lane = (int)threadIdx.x % WARP_SIZE, warp = (int)threadIdx.x / WARP_SIZE;
    int64_t n0 = (int64_t)blockIdx.x * SIDE, m0 = (int64_t)blockIdx.y * SIDE;
    float sum[8][4] = {}; /* 16 x 64 elements a warp, 8 columns at a time */
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
            /* matrices: rows 0-7 and 8-15 of columns k..k+7, then of k+8..k+15 */
            ldmatrix_x4(left, &a[warp * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                /* a row of weight is a column of the product: columns 8j.. with k, k+8, then columns
                 * 8j+8.. */
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
    bool takes = same_float_dtype(out, pre, inp, weight, bias) && tensor_cols(out) < 65535 * TILE &&
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

/* --- rows --- */

extern "C" const struct matmul_forward_variant ladder_matmul_forward[] = {
    {"4_tensor_cores", run<4>, need<4>},
    {"3_register_tile", run<3>, need<3>},
    {"2_shared_tile", run<2>, need<2>},
    {"1_thread_per_element", run<1>, need<1>},
    {}};
