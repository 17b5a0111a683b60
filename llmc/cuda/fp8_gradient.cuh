/* The gradient of GELU's input in e5m2, which the next layer's backward pass reads: (dout @ weight) * gelu'(pre).
 *
 * A bound gives the scale before the gradient exists (fp8_gradient_bound()), so that one pass reads the product
 * and `pre` and writes bytes. In bf16 the result would be read twice more, for its maximum and for its copies.
 * The bound takes the sums of the weight's columns, which the pass that copies the weight adds up. */
#ifndef LLMC_CUDA_FP8_GRADIENT_CUH
#define LLMC_CUDA_FP8_GRADIENT_CUH

#include "llmc/cuda/activation.cuh"
#include "llmc/cuda/fp8.cuh"

struct gradient_scratch {
    bf16 *product;   /* (N,C) */
    float *sums;     /* fp8_copies.sums of the weight */
    uint32_t *parts; /* the largest sums of columns */
};

static gradient_scratch take_gradient(scratch_pieces *s, const struct tensor *dinp,
                                      const struct tensor *weight) {
    return {s->take<bf16>(tensor_count(dinp)),
            s->take<float>(fp8_sums(tensor_rows(weight), tensor_cols(weight))), s->take<uint32_t>(AMAX_MOST)};
}

/* parts (gridDim.x): the largest sum of a column in each block, as bits. sums (tiles,C) are in units of
 * *descale. */
static __global__ void __launch_bounds__(AMAX_THREADS)
    column_amax_kernel(uint32_t *parts, const float *sums, const float *descale, int64_t tiles, int64_t C) {
    SHARED(uint32_t, scratch, [AMAX_THREADS / WARP_SIZE]);
    int warp = (int)threadIdx.x / WARP_SIZE, lane = (int)threadIdx.x % WARP_SIZE;
    uint32_t largest = 0;
    for (int64_t c = (int64_t)blockIdx.x * AMAX_THREADS + threadIdx.x; c < C; c += gridDim.x * AMAX_THREADS) {
        float sum = 0.0f;
#pragma unroll 4
        for (int64_t i = 0; i < tiles; i++) sum += sums[i * C + c];
        largest = max(largest, magnitude_bits(sum * *descale));
    }
    largest = block_max_bits(largest, warp, lane, AMAX_THREADS / WARP_SIZE, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = largest;
}

DEVICE_INLINE float float_of_bits(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* *descale of the gradient, from the largest |dout| and the largest sum of a column of |weight|. One block. */
static __global__ void __launch_bounds__(AMAX_THREADS)
    gradient_descale_kernel(float *descale, amax dout, amax weight) {
    SHARED(uint32_t, scratch, [2][AMAX_THREADS / WARP_SIZE]);
    int warp = (int)threadIdx.x / WARP_SIZE, lane = (int)threadIdx.x % WARP_SIZE;
    float d = float_of_bits(amax_of(dout, warp, lane, scratch[0]));
    float w = float_of_bits(amax_of(weight, warp, lane, scratch[1]));
    if (threadIdx.x == 0) *descale = fp8_descale_of<FP8_E5M2>(magnitude_bits(1.5f * d * w));
}

constexpr int GRADIENT_THREADS = 256;
static __global__ void __launch_bounds__(GRADIENT_THREADS)
    gelu_gradient_kernel(e5m2 *dinp, const float *descale, const bf16 *product, const bf16 *pre,
                         int64_t vectors) {
    int64_t i = (int64_t)block_from_end() * GRADIENT_THREADS + threadIdx.x;
    if (i >= vectors) return;
    float x[8], d[8];
    to_floats(x, vec<bf16>::load_streaming(pre + i * 8));
    to_floats(d, vec<bf16>::load_streaming(product + i * 8));
#pragma unroll
    for (int k = 0; k < 8; k++) d[k] *= gelu_derivative(x[k]);
    store_scaled(dinp + i * 8, d, 1.0f / *descale);
}

/* dinp = g.product * gelu'(pre). `dout`: the largest magnitude of dout; g.sums are those of the weight, whose
 * copy has this *weight_descale. */
static inline void store_gradient(cudaStream_t stream, struct tensor *dinp, const gradient_scratch &g,
                                  const amax &dout, const struct tensor *weight, const float *weight_descale,
                                  const struct tensor *pre) {
    int64_t C = tensor_cols(weight), vectors = tensor_count(dinp) / 8;
    amax columns = {g.parts, min_i64(ceil_div(C, AMAX_THREADS), AMAX_MOST)};
    launch({(unsigned)columns.count, AMAX_THREADS, 0, stream}, column_amax_kernel, g.parts, g.sums,
           weight_descale, fp8_sums(tensor_rows(weight), 1), C);
    launch({1, AMAX_THREADS, 0, stream}, gradient_descale_kernel, dinp->descale, dout, columns);
    launch({grid_size(vectors, GRADIENT_THREADS), GRADIENT_THREADS, 0, stream}, gelu_gradient_kernel,
           data_of<e5m2>(dinp), dinp->descale, g.product, data_of<bf16>(pre), vectors);
}

#endif
