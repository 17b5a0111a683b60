/* Softmax cross-entropy with its gradient in place. Contract in ops.h.
 *
 * A block takes a row. Variant "shared" copies the logits to shared memory, finds maximum and sum in one
 * online pass over them there, and writes the gradients from there, so that memory is read and written
 * once. 50304 bf16 take 98.25 KiB, so that two blocks share an SM of an H100 or H200 and one loads while
 * the other computes. Rows that do not fit are read twice (variant "online"), the second time from L2.
 * Blocks take the last row first, because the matmul before left the end of the logits in L2. */
#include "llmc/cuda/operands.cuh"

#include <cfloat>

/* --- pieces --- */

constexpr float LOG2_E = 1.4426950408889634f;

/* Running maximum and sum of e^(x - max). The maximum starts at -FLT_MAX: -infinity could not be subtracted
 * from a logit of -infinity. */
struct softmax_sum {
    float max = -FLT_MAX, sum = 0.0f;
};

/* Adds the vector that begins at column v; columns from V on are padding. */
template <class T> DEVICE_INLINE void softmax_add(softmax_sum &s, const vec<T> &x, int v, int V) {
    float max = s.max;
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++)
        if (v + k < V) max = fmaxf(max, to_float(x[k]));
    float sum = s.sum * fast_exp2((s.max - max) * LOG2_E);
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++)
        if (v + k < V) sum += fast_exp2((to_float(x[k]) - max) * LOG2_E);
    s.max = max;
    s.sum = sum;
}

/* The sum of the logits in the vector that begins at column v. */
template <class T> DEVICE_INLINE float vector_sum(const vec<T> &x, int v, int V) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++)
        if (v + k < V) sum += to_float(x[k]);
    return sum;
}

DEVICE_INLINE softmax_sum softmax_join(softmax_sum s, float *scratch) {
    softmax_sum all;
    all.max = block_max(s.max, scratch);
    all.sum = block_sum(s.sum * fast_exp2((s.max - all.max) * LOG2_E), scratch);
    return all;
}

/* What a row's gradients have in common. */
struct loss_gradient {
    float scale, of_target, each; /* exp(x-max)*scale - of_target at the target - each */
};

/* The loss of a row, by thread 0, and its gradient's factors, by all. `sum`: of e^(x - max); `logits`: of x,
 * if there is label smoothing. */
DEVICE_INLINE loss_gradient finish_row(float *loss, float max, float sum, float logits, float at_target,
                                       int V, float dloss, loss_terms terms) {
    float lse = logf(sum) + max;
    if (threadIdx.x == 0) {
        float l = lse - (1.0f - terms.smoothing) * at_target;
        if (terms.smoothing > 0.0f) l -= terms.smoothing * (logits / (float)V);
        if (terms.z > 0.0f) l += terms.z * lse * lse;
        *loss = l;
    }
    float factor = terms.z > 0.0f ? 1.0f + 2.0f * terms.z * lse : 1.0f;
    return {dloss / sum * factor, dloss * (1.0f - terms.smoothing), dloss * terms.smoothing / (float)V};
}

/* The gradient of the vector that begins at column v. */
template <class T>
DEVICE_INLINE vec<T> softmax_gradient(vec<T> x, const softmax_sum &s, int v, int V, int target,
                                      const loss_gradient &g) {
#pragma unroll
    for (int k = 0; k < vec<T>::size; k++) {
        float d = fast_exp2((to_float(x[k]) - s.max) * LOG2_E) * g.scale - g.each;
        if (v + k == target) d -= g.of_target;
        x[k] = from_float<T>(v + k < V ? d : 0.0f);
    }
    return x;
}

/* The gradient of a row whose target is ignored. */
template <class T> DEVICE_INLINE void zero_row(T *row, int64_t Vp) {
    for (int64_t v = threadIdx.x; v < Vp; v += blockDim.x) row[v] = from_float<T>(0.0f);
}

DEVICE_INLINE int64_t row_of_block() { return (int64_t)gridDim.x - 1 - blockIdx.x; }

/* --- kernels --- */

template <class T>
__global__ void loss_forward_naive_kernel(float *losses, T *logits, const int *targets, int V, int64_t Vp,
                                          const float *dloss, loss_terms terms) {
    SHARED(float, scratch, [32]);
    int64_t row = blockIdx.x;
    T *x = logits + row * Vp;
    int target = targets[row];
    if (target < 0) {
        if (threadIdx.x == 0) losses[row] = 0.0f;
        if (dloss) zero_row(x, Vp);
        return;
    }
    float d_of_loss = dloss ? *dloss : 0.0f, max = -FLT_MAX, sum = 0.0f;
    for (int v = (int)threadIdx.x; v < V; v += (int)blockDim.x) max = fmaxf(max, to_float(x[v]));
    max = block_max(max, scratch);
    for (int v = (int)threadIdx.x; v < V; v += (int)blockDim.x) sum += expf(to_float(x[v]) - max);
    sum = block_sum(sum, scratch);
    float logits_sum = 0.0f;
    if (terms.smoothing > 0.0f) {
        for (int v = (int)threadIdx.x; v < V; v += (int)blockDim.x) logits_sum += to_float(x[v]);
        logits_sum = block_sum(logits_sum, scratch);
    }
    loss_gradient g =
        finish_row(losses + row, max, sum, logits_sum, to_float(x[target]), V, d_of_loss, terms);
    if (!dloss) return;
    __syncthreads(); /* all threads have read x[target]; now its owner may overwrite it */
    for (int64_t v = threadIdx.x; v < Vp; v += blockDim.x) {
        float d = v < V ? expf(to_float(x[v]) - max) * g.scale - g.each : 0.0f;
        x[v] = from_float<T>(v == target ? d - g.of_target : d);
    }
}

/* A thread copies, reads and writes only its own vectors; the barrier in softmax_join orders the copies
 * before thread 0's read of x[target]. */
template <class T>
__global__ void __launch_bounds__(512, 2)
    loss_forward_shared_kernel(float *losses, T *logits, const int *targets, int V, int Vp,
                               const float *dloss, loss_terms terms) {
    constexpr int size = vec<T>::size;
    DYNAMIC_SHARED(T,
                   x); /* (Vp), then 32 floats for the sums: a static array would cost 1 KiB of alignment */
    float *scratch = reinterpret_cast<float *>(x + Vp);
    int64_t row = row_of_block();
    T *global = logits + row * Vp;
    int target = targets[row], first = (int)threadIdx.x * size, step = (int)blockDim.x * size;
    float d_of_loss = dloss ? *dloss : 0.0f;
    if (target < 0) {
        if (threadIdx.x == 0) losses[row] = 0.0f;
        if (dloss) zero_row(global, Vp);
        return;
    }
    for (int v = first; v < Vp; v += step) cp_async16(x + v, global + v);
    cp_async_commit();
    cp_async_wait<0>();
    softmax_sum s;
    for (int v = first; v < V; v += step) softmax_add(s, vec<T>::load(x + v), v, V);
    s = softmax_join(s, scratch);
    float logits_sum = 0.0f;
    if (terms.smoothing > 0.0f) {
        for (int v = first; v < V; v += step) logits_sum += vector_sum(vec<T>::load(x + v), v, V);
        logits_sum = block_sum(logits_sum, scratch);
    }
    loss_gradient g =
        finish_row(losses + row, s.max, s.sum, logits_sum, to_float(x[target]), V, d_of_loss, terms);
    if (!dloss) return;
    for (int v = first; v < Vp; v += step)
        softmax_gradient(vec<T>::load(x + v), s, v, V, target, g).store_streaming(global + v);
}

template <class T>
__global__ void __launch_bounds__(512, 2)
    loss_forward_online_kernel(float *losses, T *logits, const int *targets, int V, int64_t Vp,
                               const float *dloss, loss_terms terms) {
    constexpr int size = vec<T>::size;
    SHARED(float, scratch, [32]);
    int64_t row = row_of_block();
    T *x = logits + row * Vp;
    int target = targets[row], first = (int)threadIdx.x * size, step = (int)blockDim.x * size;
    float d_of_loss = dloss ? *dloss : 0.0f;
    if (target < 0) {
        if (threadIdx.x == 0) losses[row] = 0.0f;
        if (dloss) zero_row(x, Vp);
        return;
    }
    softmax_sum s;
#pragma unroll 4
    for (int v = first; v < V; v += step) softmax_add(s, vec<T>::load(x + v), v, V);
    float at_target = threadIdx.x == 0 ? to_float(x[target]) : 0.0f; /* before softmax_join's barriers */
    s = softmax_join(s, scratch);
    float logits_sum = 0.0f;
    if (terms.smoothing > 0.0f) {
        for (int v = first; v < V; v += step) logits_sum += vector_sum(vec<T>::load(x + v), v, V);
        logits_sum = block_sum(logits_sum, scratch);
    }
    loss_gradient g = finish_row(losses + row, s.max, s.sum, logits_sum, at_target, V, d_of_loss, terms);
    if (!dloss) return;
#pragma unroll 4
    for (int v = first; v < Vp; v += step)
        softmax_gradient(vec<T>::load_streaming(x + v), s, v, V, target, g).store_streaming(x + v);
}

/* --- launchers --- */

static struct loss_terms terms_of(const struct loss_terms *terms) {
    struct loss_terms none = {};
    return terms ? *terms : none;
}

static void loss_forward_naive(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                               const struct tensor *targets, const struct tensor *dloss, int V,
                               const struct loss_terms *terms) {
    with_dtype(logits->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(tensor_rows(logits), 1), 128, 0, env->stream}, loss_forward_naive_kernel<T>,
               f32(losses), data_of<T>(logits), i32(targets), V, tensor_cols(logits), data_of<float>(dloss),
               terms_of(terms));
    });
}

static int64_t loss_forward_online_need(struct tensor *losses, struct tensor *logits,
                                        const struct tensor *targets, const struct tensor *dloss, int V,
                                        const struct loss_terms *terms) {
    bool fits = tensor_cols(logits) < (1 << 30);
    return fits && rows_of_vectors(logits) ? 0 : OP_UNSUPPORTED;
}

/* A block may have 99 KiB on every device since sm_80. */
constexpr int64_t SHARED_LIMIT = 99 * 1024, SCRATCH_BYTES = 32 * sizeof(float);
static int64_t loss_forward_shared_need(struct tensor *losses, struct tensor *logits,
                                        const struct tensor *targets, const struct tensor *dloss, int V,
                                        const struct loss_terms *terms) {
    if (tensor_cols(logits) * (int64_t)dtype_size(logits->dtype) + SCRATCH_BYTES > SHARED_LIMIT)
        return OP_UNSUPPORTED;
    return loss_forward_online_need(losses, logits, targets, dloss, V, terms);
}

/* Eight vectors per thread, at most 512 threads. */
static unsigned loss_block(const struct tensor *logits) {
    int64_t vectors = tensor_cols(logits) * (int64_t)dtype_size(logits->dtype) / 16;
    return (unsigned)min_i64(512, round_up(ceil_div(vectors, 8), WARP_SIZE));
}

static void loss_forward_online(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                                const struct tensor *targets, const struct tensor *dloss, int V,
                                const struct loss_terms *terms) {
    with_dtype(logits->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(tensor_rows(logits), 1), loss_block(logits), 0, env->stream},
               loss_forward_online_kernel<T>, f32(losses), data_of<T>(logits), i32(targets), V,
               tensor_cols(logits), data_of<float>(dloss), terms_of(terms));
    });
}

static void loss_forward_shared(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                                const struct tensor *targets, const struct tensor *dloss, int V,
                                const struct loss_terms *terms) {
    with_dtype(logits->dtype, [&](auto tag) {
        using T = decltype(tag);
        int64_t Vp = tensor_cols(logits);
        launch({grid_size(tensor_rows(logits), 1), loss_block(logits), (size_t)Vp * sizeof(T) + SCRATCH_BYTES,
                env->stream},
               loss_forward_shared_kernel<T>, f32(losses), data_of<T>(logits), i32(targets), V, (int)Vp,
               data_of<float>(dloss), terms_of(terms));
    });
}

/* --- variants --- */

extern "C" {
const struct loss_forward_variant cuda_loss_forward_variants[] = {
    {"shared", loss_forward_shared, loss_forward_shared_need},
    {"online", loss_forward_online, loss_forward_online_need},
    {"naive", loss_forward_naive},
    {}};
}
