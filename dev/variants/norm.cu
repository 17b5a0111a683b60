/* Layer normalisation forward, in four steps. In production it is the variant "vec" of llmc/cuda/norm.cu;
 * the contract is in llmc/ops/ops.h.
 *
 * Memory bounds it: the kernel must read inp and write out, and computes little between. GPT-2 124M has
 * 65,536 rows of C = 768 in bf16. One pass over such a tensor moves 101 MB and takes 23 us at the 4.3 TB/s
 * that an H200 copies; two passes take 47 us. No kernel can be faster than that. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

constexpr float EPS = 1e-5f;
constexpr int BLOCK = 256, WARPS = BLOCK / WARP_SIZE;

/* --- step 1: one thread per row ---
 * The formula as it is written, in three loops over the row. It is slow because the 32 lanes of a warp read
 * addresses 1536 bytes apart: each load touches 32 sectors of 32 bytes and uses 2 bytes of each. The other
 * 30 bytes are needed by the next loads of the same lane, but by then L1 has evicted them. The sectors may
 * come from L2 up to 16 times, so the estimate is 10 to 30 times the bound of 47 us. */

template <class T>
__global__ void norm_forward_1_kernel(T *out, float *mean, float *rstd, const T *inp, const T *weight,
                                      const T *bias, int64_t N, int C) {
    int64_t n = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (n >= N) return;
    const T *x = inp + n * C;
    float sum = 0.0f, squares = 0.0f;
    for (int c = 0; c < C; c++) sum += to_float(x[c]);
    float m = sum / (float)C;
    for (int c = 0; c < C; c++) squares += (to_float(x[c]) - m) * (to_float(x[c]) - m);
    float r = 1.0f / sqrtf(squares / (float)C + EPS);
    for (int c = 0; c < C; c++)
        out[n * C + c] = from_float<T>((to_float(x[c]) - m) * r * to_float(weight[c]) + to_float(bias[c]));
    mean[n] = m;
    rstd[n] = r;
}

/* --- step 2: one warp per row ---
 * Neighbouring lanes now read neighbouring columns, so a warp uses every byte of the sectors that it loads
 * (coalescing), and there are 32 times as many threads to hide latency. The price is a reduction: each lane
 * sums its own columns, then a butterfly of shuffles adds the 32 partial sums. The second and third loop
 * read the row of 1.5 KB from L1. Each lane still loads 2 bytes at a time, 24 times per loop, so
 * instructions and requests limit it: about 2 times the bound. */

template <class T>
__global__ void norm_forward_2_kernel(T *out, float *mean, float *rstd, const T *inp, const T *weight,
                                      const T *bias, int64_t N, int C) {
    int lane = (int)threadIdx.x % WARP_SIZE;
    int64_t n = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP_SIZE;
    if (n >= N) return; /* all lanes of the warp have the same n */
    const T *x = inp + n * C;
    float sum = 0.0f, squares = 0.0f;
    for (int c = lane; c < C; c += WARP_SIZE) sum += to_float(x[c]);
    float m = warp_sum(sum) / (float)C;
    for (int c = lane; c < C; c += WARP_SIZE) squares += (to_float(x[c]) - m) * (to_float(x[c]) - m);
    float r = 1.0f / sqrtf(warp_sum(squares) / (float)C + EPS);
    for (int c = lane; c < C; c += WARP_SIZE)
        out[n * C + c] = from_float<T>((to_float(x[c]) - m) * r * to_float(weight[c]) + to_float(bias[c]));
    if (lane == 0) mean[n] = m, rstd[n] = r;
}

/* --- step 3: vectors ---
 * A lane loads and stores 16 bytes at a time. A row of 768 bf16 then takes 3 loads per lane and loop in
 * place of 24, and every request brings 8 times as many bytes. What remains are three waits per row: for
 * memory, and twice for L1. The estimate is 1.2 to 1.4 times the bound. */

/* --- step 4: the row in registers ---
 * The row is loaded once, into at most 8 vectors (32 registers) per lane, and all three loops run over the
 * registers. All loads of a row are under way before the first value is used, so only one wait remains:
 * about 95 % of the copy rate, 49 us. Production also makes the number of vectors a compile-time constant
 * and spreads long rows over several warps. */

constexpr int MAX_VECTORS = 8; /* per lane in step 4 */

template <class T, bool IN_REGISTERS>
__global__ void norm_forward_34_kernel(T *out, float *mean, float *rstd, const T *inp, const T *weight,
                                       const T *bias, int64_t N, int C) {
    constexpr int size = vec<T>::size, step = WARP_SIZE * size;
    int first = (int)threadIdx.x % WARP_SIZE * size;
    int64_t n = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP_SIZE;
    if (n >= N) return;
    const T *x = inp + n * C;
    vec<T> kept[IN_REGISTERS ? MAX_VECTORS : 1];
    /* Calls f(vector, column) for each vector of this lane, from memory or from registers. */
    auto each = [&](auto f) {
        if constexpr (IN_REGISTERS) {
#pragma unroll
            for (int k = 0; k < MAX_VECTORS; k++)
                if (first + k * step < C) f(kept[k], first + k * step);
        } else
            for (int c = first; c < C; c += step) f(vec<T>::load(x + c), c);
    };
    if constexpr (IN_REGISTERS) {
#pragma unroll
        for (int k = 0; k < MAX_VECTORS; k++)
            if (first + k * step < C) kept[k] = vec<T>::load(x + first + k * step);
    }
    float sum = 0.0f, squares = 0.0f;
    each([&](const vec<T> &v, int) {
        for (int e = 0; e < size; e++) sum += to_float(v[e]);
    });
    float m = warp_sum(sum) / (float)C;
    each([&](const vec<T> &v, int) {
        for (int e = 0; e < size; e++) squares += (to_float(v[e]) - m) * (to_float(v[e]) - m);
    });
    float r = 1.0f / sqrtf(warp_sum(squares) / (float)C + EPS);
    each([&](const vec<T> &v, int c) {
        vec<T> w = vec<T>::load(weight + c), b = vec<T>::load(bias + c), y;
        for (int e = 0; e < size; e++)
            y[e] = from_float<T>((to_float(v[e]) - m) * r * to_float(w[e]) + to_float(b[e]));
        y.store(out + n * C + c);
    });
    if (first == 0) mean[n] = m, rstd[n] = r;
}

/* --- launchers --- */

template <int STEP>
static int64_t forward_need(struct tensor *out, struct tensor *mean, struct tensor *rstd,
                            const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                            float eps) {
    int64_t vectors = ceil_div(tensor_cols(inp) * (int64_t)dtype_size(inp->dtype), 16);
    bool takes =
        mean && weight && bias && eps == EPS && tensor_cols(inp) < (1 << 30) && out->dtype != DTYPE_E4M3;
    if (STEP >= 3) takes = takes && rows_of_vectors(out, inp, weight, bias);
    if (STEP == 4) takes = takes && vectors <= WARP_SIZE * MAX_VECTORS;
    return takes ? 0 : OP_UNSUPPORTED;
}

template <int STEP>
static void forward(const struct op_env *env, struct tensor *out, struct tensor *mean, struct tensor *rstd,
                    const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                    float eps) {
    int64_t N = tensor_rows(inp);
    with_dtype(inp->dtype, [&](auto tag) {
        using T = decltype(tag);
        auto kernel = STEP == 1   ? norm_forward_1_kernel<T>
                      : STEP == 2 ? norm_forward_2_kernel<T>
                                  : norm_forward_34_kernel<T, STEP == 4>;
        launch({grid_size(N, STEP == 1 ? BLOCK : WARPS), BLOCK, 0, env->stream}, kernel, data_of<T>(out),
               f32(mean), f32(rstd), data_of<T>(inp), data_of<T>(weight), data_of<T>(bias), N,
               (int)tensor_cols(inp));
    });
}

/* --- variants --- */

extern "C" const struct norm_forward_variant ladder_norm_forward[] = {
    {"4_row_in_registers", forward<4>, forward_need<4>},
    {"3_vectors", forward<3>, forward_need<3>},
    {"2_warp_per_row", forward<2>, forward_need<2>},
    {"1_thread_per_row", forward<1>, forward_need<1>},
    {}};
