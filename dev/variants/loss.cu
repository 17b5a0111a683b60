/* The classifier: softmax cross-entropy and its gradient, which overwrites the logits, in four steps. In
 * production it is the variant "shared" of llmc/cuda/loss.cu; the contract is in llmc/ops/ops.h.
 *
 * Memory bounds it. GPT-2 124M has 65,536 rows of Vp = 50,304 logits in bf16, 6.6 GB. They must be read and
 * their gradients written: 13.2 GB, 3.07 ms at the 4.3 TB/s that an H200 copies. A row of 100 KB does not
 * fit into registers, so the question is how often it comes from memory. */
#include "dev/variants/ladder.h"
#include "llmc/cuda/operands.cuh"

#include <cfloat>

constexpr int BLOCK = 256;

/* dloss * (softmax - one-hot), and 0 in the padding. */
DEVICE_INLINE float gradient(float logit, float max, float sum, int64_t v, int V, int target, float dloss) {
    if (v >= V) return 0.0f;
    return expf(logit - max) / sum * dloss - (v == target ? dloss : 0.0f);
}

/* --- step 1: one thread per row ---
 * Three loops: the maximum, without which exponentials overflow; the sum; the gradients. The lanes of a
 * warp are 100,608 bytes apart, so every load touches 32 sectors and uses 2 bytes of each. 65,536 rows are
 * under way at once, so L2 keeps nothing of a row until the next loop: 3 reads and a write, 26 GB, or 16
 * times as much where L1 evicts a sector before its next use. 6 to 100 ms. */

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

/* --- step 2: one block per row ---
 * Neighbouring threads read neighbouring logits, so the loads coalesce; maximum and sum end with a
 * reduction over the block. At most 8 blocks per multiprocessor are under way, 1056 rows of 100 KB. That is
 * twice the 50 MB of L2, so the second and the third reading still come from memory about half of the time:
 * up to 26 GB, 4.5 to 6.1 ms. */

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

/* --- step 3: online softmax ---
 * One loop finds maximum and sum together. Where a larger logit appears, the sum so far is multiplied by
 * exp(old maximum - new maximum) (Milakov & Gimelshein 2018, arXiv 1805.02867). The row is read twice in
 * place of three times, for a comparison per logit and now and then an exponential: at most 19.8 GB, 4.6
 * ms. */

/* --- step 4: vectors ---
 * A thread loads 16 bytes and updates the maximum once for 8 logits, so it issues an eighth of the loads
 * and of the rescalings and memory alone decides: 3.5 to 4.6 ms, depending on what the second reading finds
 * in L2. Production keeps the row in shared memory and reads it once, which reaches the bound. */

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

/* No step takes what may be added to the cross-entropy. */
template <int STEP>
static int64_t need(struct tensor *losses, struct tensor *logits, const struct tensor *targets,
                    const struct tensor *dloss, int V, const struct loss_terms *terms) {
    bool takes = !terms && (STEP < 4 || rows_of_vectors(logits));
    return takes ? 0 : OP_UNSUPPORTED;
}

template <int STEP>
static void run(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                const struct tensor *targets, const struct tensor *dloss, int V,
                const struct loss_terms *terms) {
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

/* --- variants --- */

extern "C" const struct loss_forward_variant ladder_loss_forward[] = {{"4_vectors", run<4>, need<4>},
                                                                      {"3_online", run<3>, need<3>},
                                                                      {"2_block_per_row", run<2>, need<2>},
                                                                      {"1_thread_per_row", run<1>, need<1>},
                                                                      {}};
