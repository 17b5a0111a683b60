/* Layer normalisation forward, in four steps; backward is in norm_backward.cu. Production is "vec" in
 * llmc/cuda/norm.cu; contract in ops.h.
 *
 * GPT-2 124M, 65,536 rows of C = 768 in bf16: a pass over an (N,C) tensor is 101 MB, 23 us at the 4.3 TB/s of
 * an H200's copy. Forward needs two: 47 us.
 * Order: steps 1, 2, 3 and 4, launchers, rows. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

constexpr float EPS = 1e-5f;
constexpr int BLOCK = 256, WARPS = BLOCK / WARP_SIZE;

/* --- step 1: a thread a row ---
 * Three loops over the row, as the formulas say. The 32 lanes of a warp are 1536 bytes apart, so each load
 * instruction touches 32 sectors of 32 bytes and uses 2 bytes of each; 65,536 threads fill a quarter of the
 * 270,000 that an H200 holds.
 * Predicted: each sector is wanted 16 times in a row, but 512 warps' rows do not stay in L1 between, so up to
 * 16 times the traffic from L2: 10 to 30 times the 47 us. Measured: not yet measured. */

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

/* --- step 2: a warp a row ---
 * Against step 1: neighbouring lanes read neighbouring columns, so that every byte of a sector is used, and
 * the sums end with a butterfly over the lanes. 32 times as many threads.
 * Predicted: memory traffic of the two necessary passes; the second and third reading of 1.5 KB hit L1. Loads
 * of 2 bytes a lane: 3 x 24 loads and 24 stores a row, about 2 times the 47 us. Measured: not yet
 * measured. */

template <class T>
__global__ void norm_forward_2_kernel(T *out, float *mean, float *rstd, const T *inp, const T *weight,
                                      const T *bias, int64_t N, int C) {
    int lane = (int)threadIdx.x % WARP_SIZE;
    int64_t n = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP_SIZE;
    if (n >= N) return; /* the whole warp */
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

/* --- steps 3 and 4: vectors, and the row in registers ---
 * Step 3, against step 2: 16 bytes a lane. A row of 768 bf16 is 96 vectors, 3 a lane: 3 x 3 loads and 3
 * stores in place of 96 accesses. Predicted: 1.2 to 1.4 times the 47 us, what remains is waiting for L1
 * twice. Step 4, against step 3: the row is loaded once into up to 8 vectors (32 registers) a lane and the
 * three loops run there; all loads of a row are in flight before the first use. Predicted: 95 % of the copy
 * rate, 49 us. Measured: not yet measured, either. Production makes the number of vectors a compile-time
 * constant and spreads long rows over several warps. */

constexpr int MAX_VECTORS = 8; /* a lane, in step 4 */

template <class T, bool IN_REGISTERS>
__global__ void norm_forward_34_kernel(T *out, float *mean, float *rstd, const T *inp, const T *weight,
                                       const T *bias, int64_t N, int C) {
    constexpr int size = vec<T>::size, step = WARP_SIZE * size;
    int first = (int)threadIdx.x % WARP_SIZE * size;
    int64_t n = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP_SIZE;
    if (n >= N) return;
    const T *x = inp + n * C;
    vec<T> kept[IN_REGISTERS ? MAX_VECTORS : 1];
    /* f(vector, column) for all of this lane's vectors, from memory or from registers */
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
                            const struct tensor *inp, const struct tensor *weight,
                            const struct tensor *bias) {
    int64_t vectors = ceil_div(tensor_cols(inp) * (int64_t)dtype_size(inp->dtype), 16);
    bool takes = same_float_dtype(out, inp, weight, bias) && tensor_cols(inp) < (1 << 30);
    if (STEP >= 3) takes = takes && rows_of_vectors(out, inp, weight, bias);
    if (STEP == 4) takes = takes && vectors <= WARP_SIZE * MAX_VECTORS;
    return takes ? 0 : OP_UNSUPPORTED;
}

template <int STEP>
static void forward(const struct op_env *env, struct tensor *out, struct tensor *mean, struct tensor *rstd,
                    const struct tensor *inp, const struct tensor *weight, const struct tensor *bias) {
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

/* --- rows --- */

extern "C" const struct norm_forward_variant ladder_norm_forward[] = {
    {"4_row_in_registers", forward<4>, forward_need<4>},
    {"3_vectors", forward<3>, forward_need<3>},
    {"2_warp_per_row", forward<2>, forward_need<2>},
    {"1_thread_per_row", forward<1>, forward_need<1>},
    {}};
