/* Softmax cross-entropy and its gradient, in four steps: this is also the ladder of softmax. Production is
 * "shared" in llmc/cuda/loss.cu; contract in ops.h.
 *
 * GPT-2 124M, 65,536 rows of Vp = 50304 logits in bf16: 6.6 GB, read once and overwritten once by their
 * gradients: 13.2 GB, 3.07 ms at the 4.3 TB/s of an H200's copy.
 * Order: steps 1 to 4, launchers, rows. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

#include <cfloat>

constexpr int BLOCK = 256;

/* dloss * (softmax - one-hot); 0 in the padding. */
DEVICE_INLINE float gradient(float logit, float max, float sum, int64_t v, int V, int target, float dloss) {
    if (v >= V) return 0.0f;
    return expf(logit - max) / sum * dloss - (v == target ? dloss : 0.0f);
}

/* --- step 1: a thread a row ---
 * The maximum, so that no exponential overflows; the sum; the loss; the gradients. The lanes of a warp are
 * 100,608 bytes apart: every load touches 32 sectors of 32 bytes for 2 useful bytes each. The row is read
 * three times, and 65,536 rows under way at once leave nothing of it in L2: 3 reads and a write. Predicted:
 * 26 GB, and if L1 keeps no sector until its next use 16 times that: 6 to 100 ms. Measured: not yet
 * measured. */

template <class T>
__global__ void loss_1_kernel(float *losses, T *logits, const int *targets, int64_t N, int V, int64_t Vp,
                              const float *dloss) {
    int64_t n = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (n >= N) return;
    T *x = logits + n * Vp;
    int target = targets[n];
    float max = -FLT_MAX, sum = 0.0f;
    for (int v = 0; v < V; v++) max = fmaxf(max, to_float(x[v]));
    for (int v = 0; v < V; v++) sum += expf(to_float(x[v]) - max);
    losses[n] = target < 0 ? 0.0f : logf(sum) + max - to_float(x[target]);
    if (!dloss) return;
    for (int64_t v = 0; v < Vp; v++)
        x[v] = from_float<T>(target < 0 ? 0.0f : gradient(to_float(x[v]), max, sum, v, V, target, *dloss));
}

/* --- step 2: a block a row ---
 * Against step 1: neighbouring threads read neighbouring logits, and maximum and sum end in a reduction over
 * the block. At most 8 blocks on each of 132 SMs are under way: 1056 rows of 100 KB, 106 MB, about twice the
 * 50 MB of L2, so the second and third reading still come from memory half of the time or more.
 * Predicted: up to 26 GB, 4.5 to 6.1 ms; loads of 2 bytes a lane. Measured: not yet measured. */

template <class T>
__global__ void loss_2_kernel(float *losses, T *logits, const int *targets, int64_t N, int V, int64_t Vp,
                              const float *dloss) {
    SHARED(float, scratch, [32]);
    T *x = logits + blockIdx.x * Vp;
    int target = targets[blockIdx.x];
    float max = -FLT_MAX, sum = 0.0f;
    for (int v = (int)threadIdx.x; v < V; v += BLOCK) max = fmaxf(max, to_float(x[v]));
    max = block_max(max, scratch);
    for (int v = (int)threadIdx.x; v < V; v += BLOCK) sum += expf(to_float(x[v]) - max);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = target < 0 ? 0.0f : logf(sum) + max - to_float(x[target]);
    if (!dloss) return;
    __syncthreads(); /* thread 0 has read x[target], which another thread overwrites now */
    for (int64_t v = threadIdx.x; v < Vp; v += BLOCK)
        x[v] = from_float<T>(target < 0 ? 0.0f : gradient(to_float(x[v]), max, sum, v, V, target, *dloss));
}

/* --- steps 3 and 4: online softmax, then vectors ---
 * Step 3, against step 2: one loop finds maximum and sum. Where a larger logit appears, the sum so far is
 * scaled by exp(old max - new max) (Milakov & Gimelshein 2018, arXiv 1805.02867). Two readings in place of
 * three, at the price of a comparison and now and then an exponential.
 * Predicted: at most 19.8 GB, 4.6 ms. Measured: not yet measured.
 * Step 4, against step 3: 16 bytes a load, the maximum updated once for 8 logits: an eighth of the load
 * instructions and of the rescalings. Predicted: 3.5 to 4.6 ms, all of it memory; what the second reading
 * finds in L2 decides. Measured: not yet measured. Production keeps the row in shared memory: one
 * reading, 3.07 ms. */

template <class T, int WIDTH>
__global__ void loss_34_kernel(float *losses, T *logits, const int *targets, int64_t N, int V, int64_t Vp,
                               const float *dloss) {
    SHARED(float, scratch, [32]);
    T *x = logits + blockIdx.x * Vp;
    int target = targets[blockIdx.x];
    float max = -FLT_MAX, sum = 0.0f;
    auto load = [&](int64_t v) {
        vec<T> r;
        if constexpr (WIDTH == 1)
            r[0] = x[v];
        else
            r = vec<T>::load(x + v);
        return r;
    };
    for (int64_t v = threadIdx.x * WIDTH; v < V; v += BLOCK * WIDTH) {
        vec<T> r = load(v);
        float old = max;
#pragma unroll
        for (int k = 0; k < WIDTH; k++)
            if (v + k < V) max = fmaxf(max, to_float(r[k]));
        if (max > old) sum *= expf(old - max);
#pragma unroll
        for (int k = 0; k < WIDTH; k++)
            if (v + k < V) sum += expf(to_float(r[k]) - max);
    }
    float all = block_max(max, scratch); /* each thread has scaled its sum to its own maximum */
    sum = block_sum(sum * expf(max - all), scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = target < 0 ? 0.0f : logf(sum) + all - to_float(x[target]);
    if (!dloss) return;
    __syncthreads();
    for (int64_t v = threadIdx.x * WIDTH; v < Vp; v += BLOCK * WIDTH) {
        vec<T> r = load(v);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            float d = target < 0 ? 0.0f : gradient(to_float(r[k]), all, sum, v + k, V, target, *dloss);
            r[k] = from_float<T>(d);
        }
        if constexpr (WIDTH == 1)
            x[v] = r[0];
        else
            r.store(x + v);
    }
}

/* --- launchers --- */

template <int STEP>
static int64_t need(struct tensor *losses, struct tensor *logits, const struct tensor *targets,
                    const struct tensor *dloss, int V) {
    bool takes = same_float_dtype(logits) && (STEP < 4 || rows_of_vectors(logits));
    return takes ? 0 : OP_UNSUPPORTED;
}

template <int STEP>
static void run(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                const struct tensor *targets, const struct tensor *dloss, int V) {
    int64_t N = tensor_rows(logits);
    with_dtype(logits->dtype, [&](auto tag) {
        using T = decltype(tag);
        auto kernel = STEP == 1   ? loss_1_kernel<T>
                      : STEP == 2 ? loss_2_kernel<T>
                      : STEP == 3 ? loss_34_kernel<T, 1>
                                  : loss_34_kernel<T, vec<T>::size>;
        launch({grid_size(N, STEP == 1 ? BLOCK : 1), BLOCK, 0, env->stream}, kernel, f32(losses),
               data_of<T>(logits), i32(targets), N, V, tensor_cols(logits), data_of<float>(dloss));
    });
}

/* --- rows --- */

extern "C" const struct loss_forward_variant ladder_loss_forward[] = {{"4_vectors", run<4>, need<4>},
                                                                      {"3_online", run<3>, need<3>},
                                                                      {"2_block_per_row", run<2>, need<2>},
                                                                      {"1_thread_per_row", run<1>, need<1>},
                                                                      {}};
