/* Softmax cross-entropy with its gradient in place, and top-1 hits. Contracts in ops.h.
 *
 * A block takes a row. Variant "shared" copies the logits to shared memory, finds maximum and sum in one
 * online pass over them there, and writes the gradients from there, so that memory is read and written
 * once. 50304 bf16 take 98.25 KiB, so that two blocks share an SM of an H100 or H200 and one loads while
 * the other computes. Rows that do not fit are read twice (variant "online"), the second time from L2.
 * Blocks take the last rows first, which the matmul before left in L2. */
#include "llmc/cuda/operands.cuh"

#include <cfloat>

/* --- pieces --- */

constexpr float LOG2_E = 1.4426950408889634f;

/* __fmul_rn: no compiler fuses this product with a subtraction, so equal maxima have a difference of 0. */
DEVICE_INLINE float base_of(float max) { return __fmul_rn(max, LOG2_E); }

/* Running maximum and sum of 2^(x*LOG2_E - base), base being the maximum times LOG2_E, rounded: one fused
 * multiply-add and one exponential a logit. The maximum starts low enough for every logit, but with a finite
 * base: infinity could not be subtracted from a logit of -infinity. */
struct softmax_sum {
    float max = -0x1p127f, base = base_of(max), sum = 0.0f;
};

template <int size> DEVICE_INLINE void softmax_add(softmax_sum &s, const float (&x)[size]) {
    float max = s.max;
#pragma unroll
    for (int k = 0; k < size; k++) max = fmaxf(max, x[k]);
    float base = base_of(max), sum = s.sum * fast_exp2(s.base - base);
#pragma unroll
    for (int k = 0; k < size; k++) sum += fast_exp2(fmaf(x[k], LOG2_E, -base));
    s.max = max, s.base = base, s.sum = sum;
}

DEVICE_INLINE softmax_sum softmax_join(softmax_sum s, float *scratch) {
    softmax_sum all;
    all.max = block_max(s.max, scratch);
    all.base = base_of(all.max);
    all.sum = block_sum(s.sum * fast_exp2(s.base - all.base), scratch);
    return all;
}

/* The columns from V on of the vector that begins at column v, which are padding, become `value`. */
template <int size> DEVICE_INLINE void fill_padding(float (&x)[size], int v, int V, float value) {
#pragma unroll
    for (int k = 0; k < size; k++)
        if (v + k >= V) x[k] = value;
}

/* Calls f(v, x, partial) for this thread's vectors of logits, x, which begin at columns v. Loads four of them
 * at once. Only the last vector of a row can be partial, that is have padding; no other one pays for a
 * comparison with V. */
template <class T, class F> DEVICE_INLINE void for_logits(const T *row, int V, F f) {
    constexpr int size = vec<T>::size, BATCH = 4;
    int v = (int)threadIdx.x * size, step = (int)blockDim.x * size, whole = V / size * size;
    float x[size];
    for (; v + (BATCH - 1) * step < whole; v += BATCH * step) {
        vec<T> batch[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) batch[i] = vec<T>::load(row + v + i * step);
#pragma unroll
        for (int i = 0; i < BATCH; i++) to_floats(x, batch[i]), f(v + i * step, x, false);
    }
    for (; v < V; v += step) to_floats(x, vec<T>::load(row + v)), f(v, x, v >= whole);
}

/* Zeros the vectors from column v on: the padding, or a row whose target is ignored. */
template <class T> DEVICE_INLINE void zero_columns(T *row, int v, int Vp) {
    constexpr int size = vec<T>::size;
    vec<T> zero;
#pragma unroll
    for (int k = 0; k < size; k++) zero[k] = from_float<T>(0.0f);
    for (v += (int)threadIdx.x * size; v < Vp; v += (int)blockDim.x * size) zero.store_streaming(row + v);
}

/* What a row's gradients have in common. */
struct loss_gradient {
    float scale, of_target, each; /* exp(x-max)*scale - of_target at the target - each */
};

/* The model's logit from the matmul's x: with a soft cap X, X*tanh(x/X). tanh(z) = 2/(1 + e^-2z) - 1 is off
 * by 2^-22 at most, and e^-2z = infinity gives -1. Kernels without a cap are instances of their own, so that
 * they pay nothing; in the others the compiler takes the division by the cap out of the loops. */
template <bool CAPPED> DEVICE_INLINE float logit_of(float x, float cap) {
    if constexpr (CAPPED)
        return cap * (__fdividef(2.0f, 1.0f + fast_exp2(-2.0f * LOG2_E / cap * x)) - 1.0f);
    else
        return x;
}

/* The gradient of x from that of the model's logit: times 1 - tanh(x/X)^2. */
template <bool CAPPED> DEVICE_INLINE float times_slope(float gradient, float logit, float cap) {
    float tanh_of = CAPPED ? logit * (1.0f / cap) : 0.0f;
    return CAPPED ? gradient * (1.0f - tanh_of * tanh_of) : gradient;
}

/* The gradient's factors; and the loss of the row, if this thread `writes` it. `sum`: of e^(x - max);
 * `logits`: of x, if there is label smoothing. */
DEVICE_INLINE loss_gradient finish_row(float *loss, bool writes, float max, float sum, float logits,
                                       float at_target, int V, float dloss, loss_terms terms) {
    float lse = logf(sum) + max;
    if (writes) {
        float l = lse - (1.0f - terms.smoothing) * at_target;
        if (terms.smoothing > 0.0f) l -= terms.smoothing * (logits / (float)V);
        if (terms.z > 0.0f) l += terms.z * lse * lse;
        *loss = l;
    }
    float factor = terms.z > 0.0f ? 1.0f + 2.0f * terms.z * lse : 1.0f;
    return {dloss / sum * factor, dloss * (1.0f - terms.smoothing), dloss * terms.smoothing / (float)V};
}

/* A row of V logits, x, and its gradient, out (Vp), which may be x. A thread reads and writes the same
 * vectors in each pass, and the one that has the target's also writes the loss and corrects the gradient
 * there: so no thread reads what another one has written. */
template <bool CAPPED, class T>
DEVICE_INLINE void loss_of_row(float *loss, T *out, const T *x, int V, int Vp, int target, const float *dloss,
                               const loss_terms &terms, float *scratch) {
    constexpr int size = vec<T>::size;
    bool has_target = target / size % (int)blockDim.x == (int)threadIdx.x;
    float at_target = has_target ? logit_of<CAPPED>(to_float(x[target]), terms.softcap) : 0.0f;
    float logits_sum = 0.0f;
    auto cap = [&](float(&logits)[size]) {
#pragma unroll
        for (int k = 0; k < size; k++) logits[k] = logit_of<CAPPED>(logits[k], terms.softcap);
    };
    softmax_sum s;
    for_logits(x, V, [&](int v, float(&logits)[size], bool partial) {
        cap(logits);
        if (partial) fill_padding(logits, v, V, -INFINITY);
        softmax_add(s, logits);
    });
    s = softmax_join(s, scratch);
    if (terms.smoothing > 0.0f) {
        for_logits(x, V, [&](int v, float(&logits)[size], bool partial) {
            cap(logits);
            if (partial) fill_padding(logits, v, V, 0.0f);
#pragma unroll
            for (int k = 0; k < size; k++) logits_sum += logits[k];
        });
        logits_sum = block_sum(logits_sum, scratch);
    }
    float exact = fast_exp2(-fmaf(s.max, LOG2_E, -s.base)); /* without the rounding of base */
    loss_gradient g = finish_row(loss, has_target, s.max, s.sum * exact, logits_sum, at_target, V,
                                 dloss ? *dloss : 0.0f, terms);
    if (!dloss) return;
    float scale = g.scale * exact;
    auto gradient = [&](float logit) {
        return fmaf(fast_exp2(fmaf(logit, LOG2_E, -s.base)), scale, -g.each);
    };
    for_logits(x, V, [&](int v, float(&logits)[size], bool partial) {
        vec<T> d;
        cap(logits);
#pragma unroll
        for (int k = 0; k < size; k++)
            logits[k] = times_slope<CAPPED>(gradient(logits[k]), logits[k], terms.softcap);
        if (partial) fill_padding(logits, v, V, 0.0f);
#pragma unroll
        for (int k = 0; k < size; k++) d[k] = from_float<T>(logits[k]);
        d.store_streaming(out + v);
    });
    float of_target = times_slope<CAPPED>(gradient(at_target) - g.of_target, at_target, terms.softcap);
    if (has_target) out[target] = from_float<T>(of_target);
    zero_columns(out, (V + size - 1) / size * size, Vp);
}

/* --- kernels --- */

template <class T, bool CAPPED>
__global__ void loss_forward_naive_kernel(float *losses, T *logits, const int *targets, int V, int64_t Vp,
                                          const float *dloss, loss_terms terms) {
    SHARED(float, scratch, [32]);
    int64_t row = blockIdx.x;
    T *x = logits + row * Vp;
    int target = targets[row];
    if (target < 0) {
        if (threadIdx.x == 0) losses[row] = 0.0f;
        for (int64_t v = threadIdx.x; dloss && v < Vp; v += blockDim.x) x[v] = from_float<T>(0.0f);
        return;
    }
    auto logit = [&](int64_t v) {
        float raw = to_float(x[v]), cap = terms.softcap;
        return CAPPED ? cap * tanhf(raw / cap) : raw;
    };
    float d_of_loss = dloss ? *dloss : 0.0f, max = -FLT_MAX, sum = 0.0f;
    for (int v = (int)threadIdx.x; v < V; v += (int)blockDim.x) max = fmaxf(max, logit(v));
    max = block_max(max, scratch);
    for (int v = (int)threadIdx.x; v < V; v += (int)blockDim.x) sum += expf(logit(v) - max);
    sum = block_sum(sum, scratch);
    float logits_sum = 0.0f;
    if (terms.smoothing > 0.0f) {
        for (int v = (int)threadIdx.x; v < V; v += (int)blockDim.x) logits_sum += logit(v);
        logits_sum = block_sum(logits_sum, scratch);
    }
    loss_gradient g =
        finish_row(losses + row, threadIdx.x == 0, max, sum, logits_sum, logit(target), V, d_of_loss, terms);
    if (!dloss) return;
    __syncthreads(); /* all threads have read x[target]; now its owner may overwrite it */
    for (int64_t v = threadIdx.x; v < Vp; v += blockDim.x) {
        float y = v < V ? logit(v) : 0.0f, d = v < V ? expf(y - max) * g.scale - g.each : 0.0f;
        x[v] = from_float<T>(times_slope<CAPPED>(v == target ? d - g.of_target : d, y, terms.softcap));
    }
}

template <class T, bool CAPPED>
__global__ void __launch_bounds__(512, 2)
    loss_forward_shared_kernel(float *losses, T *logits, const int *targets, int V, int Vp,
                               const float *dloss, loss_terms terms) {
    constexpr int size = vec<T>::size;
    /* (Vp), then 32 floats for the sums: a static array would cost 1 KiB of alignment */
    DYNAMIC_SHARED(T, x);
    int64_t row = block_from_end();
    T *global = logits + row * Vp;
    int target = targets[row], step = (int)blockDim.x * size;
    if (target < 0) {
        if (threadIdx.x == 0) losses[row] = 0.0f;
        if (dloss) zero_columns(global, 0, Vp);
        return;
    }
    for (int v = (int)threadIdx.x * size; v < V; v += step) cp_async16(x + v, global + v);
    cp_async_commit();
    cp_async_wait<0>(); /* the thread's own copies, which are all that it reads */
    loss_of_row<CAPPED>(losses + row, global, x, V, Vp, target, dloss, terms,
                        reinterpret_cast<float *>(x + Vp));
}

template <class T, bool CAPPED>
__global__ void __launch_bounds__(512, 2)
    loss_forward_online_kernel(float *losses, T *logits, const int *targets, int V, int Vp,
                               const float *dloss, loss_terms terms) {
    SHARED(float, scratch, [32]);
    int64_t row = block_from_end();
    T *x = logits + row * Vp;
    int target = targets[row];
    if (target < 0) {
        if (threadIdx.x == 0) losses[row] = 0.0f;
        if (dloss) zero_columns(x, 0, Vp);
        return;
    }
    loss_of_row<CAPPED>(losses + row, x, x, V, Vp, target, dloss, terms, scratch);
}

template <class T>
__global__ void top1_kernel(float *hits, const T *logits, const int *targets, int V, int64_t Vp) {
    SHARED(float, scratch, [32]);
    int64_t row = blockIdx.x;
    const T *x = logits + row * Vp;
    int target = targets[row];
    if (target < 0) {
        if (threadIdx.x == 0) hits[row] = 0.0f;
        return;
    }
    float at_target = to_float(x[target]), beaten = isnan(at_target) ? 1.0f : 0.0f;
    for (int v = (int)threadIdx.x; v < V; v += (int)blockDim.x) {
        float logit = to_float(x[v]);
        if (logit > at_target || (logit == at_target && v < target)) beaten = 1.0f;
    }
    beaten = block_max(beaten, scratch);
    if (threadIdx.x == 0) hits[row] = 1.0f - beaten;
}

/* --- launchers --- */

static struct loss_terms terms_of(const struct loss_terms *terms) {
    struct loss_terms none = {};
    return terms ? *terms : none;
}

/* Calls f with the type of the logits and whether they have a soft cap. */
template <class F> static void with_cap(enum dtype dtype, const struct loss_terms *terms, F f) {
    with_dtype(dtype, [&](auto tag) {
        if (terms && terms->softcap > 0.0f)
            f(tag, std::true_type());
        else
            f(tag, std::false_type());
    });
}

static void loss_forward_naive(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                               const struct tensor *targets, const struct tensor *dloss, int V,
                               const struct loss_terms *terms) {
    with_cap(logits->dtype, terms, [&](auto tag, auto capped) {
        using T = decltype(tag);
        constexpr bool CAPPED = decltype(capped)::value;
        launch({grid_size(tensor_rows(logits), 1), 128, 0, env->stream}, loss_forward_naive_kernel<T, CAPPED>,
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
    with_cap(logits->dtype, terms, [&](auto tag, auto capped) {
        using T = decltype(tag);
        constexpr bool CAPPED = decltype(capped)::value;
        launch({grid_size(tensor_rows(logits), 1), loss_block(logits), 0, env->stream},
               loss_forward_online_kernel<T, CAPPED>, f32(losses), data_of<T>(logits), i32(targets), V,
               (int)tensor_cols(logits), data_of<float>(dloss), terms_of(terms));
    });
}

static void loss_forward_shared(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                                const struct tensor *targets, const struct tensor *dloss, int V,
                                const struct loss_terms *terms) {
    with_cap(logits->dtype, terms, [&](auto tag, auto capped) {
        using T = decltype(tag);
        constexpr bool CAPPED = decltype(capped)::value;
        int64_t Vp = tensor_cols(logits);
        launch({grid_size(tensor_rows(logits), 1), loss_block(logits), (size_t)Vp * sizeof(T) + SCRATCH_BYTES,
                env->stream},
               loss_forward_shared_kernel<T, CAPPED>, f32(losses), data_of<T>(logits), i32(targets), V,
               (int)Vp, data_of<float>(dloss), terms_of(terms));
    });
}

static void top1_rows(const struct op_env *env, struct tensor *hits, const struct tensor *logits,
                      const struct tensor *targets, int V) {
    with_dtype(logits->dtype, [&](auto tag) {
        using T = decltype(tag);
        launch({grid_size(tensor_rows(logits), 1), 256, 0, env->stream}, top1_kernel<T>, f32(hits),
               data_of<T>(logits), i32(targets), V, tensor_cols(logits));
    });
}

/* --- variants --- */

extern "C" {
const struct loss_forward_variant cuda_loss_forward_variants[] = {
    {"shared", loss_forward_shared, loss_forward_shared_need},
    {"online", loss_forward_online, loss_forward_online_need},
    {"naive", loss_forward_naive},
    {}};
const struct top1_variant cuda_top1_variants[] = {{"rows", top1_rows}, {}};
}
