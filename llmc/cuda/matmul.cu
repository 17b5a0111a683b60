/* Linear layers: forward, backward. Contracts in ops.h. The variants:
 *
 *   cublaslt        NVIDIA's library. Its epilogues add the bias and can compute GELU, its derivative and
 *                   the bias gradient. Each saves a pass over memory, but restricts the choice of algorithms.
 *                   Where cublaslt.cu times, the faster way is taken; elsewhere GELU is a pass, and so is a
 *                   bias gradient that is added to another. GELU's epilogue starts from the fp32 sum, a
 *                   recomputed activation from the stored one: where both must agree, GELU is a pass.
 *   cublaslt_gelu   forward with GELU in the epilogue, if there is one.
 *   fp8             the library's products of e4m3 and e5m2 copies of the operands (fp8.cuh), or of inputs that
 *                   are e4m3 already. It takes layers whose weight is marked; beside it only "naive" does.
 *   naive           a tiled kernel for any shape and alignment; the yardstick for the others. */
#include "llmc/cuda/cublaslt.cuh"
#include "llmc/cuda/fp8_gradient.cuh"
#include "llmc/cuda/activation.cuh"
#include "llmc/cuda/column_sum.cuh"
#include "llmc/cuda/operands.cuh"

/* --- the naive product --- */

/* A matrix whose element (row, col) is data[row*row_stride + col*col_stride], so that a view can be
 * transposed. */
template <class T> struct strided {
    const T *data;
    int64_t row_stride, col_stride;
    fp8_format format = FP8_NONE;    /* rounds each element as it is read */
    amax largest = {};               /* of the tensor, in fp8 */
    const uint8_t *stored = nullptr; /* in place of data: elements in `format`, times *descale */
    const float *descale = nullptr;

    __device__ float scale() const {
        uint32_t most = 0;
        for (int64_t i = 0; i < largest.count; i++) most = max(most, largest.parts[i]);
        return format == FP8_E5M2 ? fp8_scale_of<FP8_E5M2>(most) : fp8_scale_of<FP8_E4M3>(most);
    }
    __device__ float at(int64_t row, int64_t col, float scale) const {
        int64_t i = row * row_stride + col * col_stride;
        if (stored)
            return *descale * (format == FP8_E5M2 ? fp8_value_device<FP8_E5M2>(stored[i])
                                                  : fp8_value_device<FP8_E4M3>(stored[i]));
        float v = to_float(data[i]);
        return format == FP8_NONE   ? v
               : format == FP8_E4M3 ? fp8_through_device<FP8_E4M3>(v, scale)
                                    : fp8_through_device<FP8_E5M2>(v, scale);
    }
};

template <class T> struct naive_epilogue {
    T *pre;            /* = product + bias (or NULL) */
    const T *bias;     /* (cols) (or NULL) */
    const T *gelu_pre; /* multiply by gelu'(this) (or NULL) */
    bool gelu_out;     /* out = gelu of the rounded pre-activation, as act_forward computes it */
    bool accumulate;   /* out += */
};

constexpr int TILE = 32, TILE_ROWS = 8; /* a block of 32 x 8 threads computes 32 x 32 elements */

/* out (M,N) = a (M,K) @ b (K,N), row-major out, fp32 accumulation in the order of k. */
template <class T>
static __global__ void __launch_bounds__(TILE *TILE_ROWS)
    matmul_naive_kernel(T *out, strided<T> a, strided<T> b, int64_t M, int64_t N, int64_t K,
                        naive_epilogue<T> e) {
    SHARED(float, tile_a, [TILE][TILE + 1]);
    SHARED(float, tile_b, [TILE][TILE + 1]);
    int x = (int)threadIdx.x, y = (int)threadIdx.y;
    int64_t row0 = (int64_t)blockIdx.x * TILE, col0 = (int64_t)blockIdx.y * TILE;
    float sum[TILE / TILE_ROWS] = {}, scale_a = a.scale(), scale_b = b.scale();
    for (int64_t k0 = 0; k0 < K; k0 += TILE) {
        for (int i = y; i < TILE; i += TILE_ROWS) {
            /* x runs along the contiguous dimension of each operand */
            int ra = a.col_stride == 1 ? i : x, ka = a.col_stride == 1 ? x : i;
            int kb = b.col_stride == 1 ? i : x, cb = b.col_stride == 1 ? x : i;
            tile_a[ra][ka] = row0 + ra < M && k0 + ka < K ? a.at(row0 + ra, k0 + ka, scale_a) : 0.0f;
            tile_b[kb][cb] = k0 + kb < K && col0 + cb < N ? b.at(k0 + kb, col0 + cb, scale_b) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < TILE; k++)
            for (int i = 0; i < TILE / TILE_ROWS; i++) sum[i] += tile_a[y + i * TILE_ROWS][k] * tile_b[k][x];
        __syncthreads();
    }
    int64_t col = col0 + x;
    for (int i = 0; i < TILE / TILE_ROWS; i++) {
        int64_t row = row0 + y + i * TILE_ROWS, at = row * N + col;
        if (row >= M || col >= N) continue;
        float v = sum[i];
        if (e.bias) v += to_float(e.bias[col]);
        if (e.pre) e.pre[at] = from_float<T>(v);
        if (e.gelu_out) v = gelu(to_float(from_float<T>(v)));
        if (e.gelu_pre) v *= gelu_derivative(to_float(e.gelu_pre[at]));
        if (e.accumulate) v += to_float(out[at]);
        out[at] = from_float<T>(v);
    }
}

template <class T>
static void naive_product(cudaStream_t stream, T *out, strided<T> a, strided<T> b, int64_t M, int64_t N,
                          int64_t K, naive_epilogue<T> e) {
    launch({dim3(grid_size(M, TILE), grid_size(N, TILE)), dim3(TILE, TILE_ROWS), 0, stream},
           matmul_naive_kernel<T>, out, a, b, M, N, K, e);
}

/* Scratch for the largest magnitudes of three operands, in fp8. */
constexpr int64_t NAIVE_AMAX_BYTES = 3 * AMAX_MOST * (int64_t)sizeof(uint32_t);

/* An operand, read in fp8 or as it is. `slot` is the place of its largest magnitude in the scratch. */
template <class T>
static strided<T> naive_operand(const struct op_env *env, const struct tensor *t, int64_t row_stride,
                                int64_t col_stride, fp8_format format, int slot) {
    strided<T> operand = {data_of<T>(t), row_stride, col_stride, format};
    if (dtype_is_fp8(t->dtype)) operand.stored = data_of<uint8_t>(t), operand.descale = t->descale;
    if (format == FP8_NONE || operand.stored) return operand;
    operand.largest.parts = (uint32_t *)env->scratch + slot * AMAX_MOST;
    find_amax((cudaStream_t)env->stream, &operand.largest, operand.data, tensor_count(t));
    return operand;
}

/* --- what both directions share --- */

/* GELU by the fastest variant of act.cu that takes these operands. An e4m3 output takes E4M3_OUTPUT_BYTES of
 * the scratch. */
static void gelu_pass(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    const struct act_forward_variant *variant = cuda_act_forward_variants;
    while (OP_NEED(variant, out, inp, ACT_GELU) < 0) variant++; /* the last takes anything */
    variant->run(env, out, inp, ACT_GELU);
}
static void gelu_backward_pass(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                               const struct tensor *inp) {
    const struct act_backward_variant *variant = cuda_act_backward_variants;
    while (OP_NEED(variant, dinp, dout, inp, ACT_GELU) != 0) variant++;
    variant->run(env, dinp, dout, inp, ACT_GELU);
}

static bool lt_call(const struct op_env *env, const lt_product &product, const lt_operands &operands) {
    return lt_run((struct cublaslt *)env->state, product, operands, env->scratch, (cudaStream_t)env->stream);
}
/* lt_fuses() of `fused` and the product with `epilogue` in its place. */
template <class F>
static bool fuses(const struct op_env *env, const lt_product &fused, const lt_operands &fused_operands,
                  cublasLtEpilogue_t epilogue, const lt_operands &operands, bool otherwise, F pass) {
    lt_product plain = fused;
    plain.epilogue = epilogue;
    return lt_fuses((struct cublaslt *)env->state, fused, fused_operands, plain, operands, pass, otherwise,
                    env->scratch, (cudaStream_t)env->stream);
}

/* --- forward --- */

static int64_t forward_naive_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                                  const struct tensor *weight, const struct tensor *bias,
                                  enum activation act) {
    return matmul_in_fp8(inp, weight) ? NAIVE_AMAX_BYTES : 0;
}

static void forward_naive(const struct op_env *env, struct tensor *out, struct tensor *pre,
                          const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                          enum activation act) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp), OC = tensor_rows(weight);
    with_dtype((pre ? pre : out)->dtype, [&](auto tag) {
        using T = decltype(tag);
        naive_epilogue<T> e = {};
        bool fp8_out = out->dtype == DTYPE_E4M3; /* from `pre`, in passes of its own */
        e.pre = fp8_out ? nullptr : data_of<T>(pre);
        e.bias = data_of<T>(bias);
        e.gelu_out = act == ACT_GELU && !fp8_out;
        fp8_format format = matmul_in_fp8(inp, weight) ? FP8_E4M3 : FP8_NONE;
        naive_product<T>((cudaStream_t)env->stream, data_of<T>(fp8_out ? pre : out),
                         naive_operand<T>(env, inp, C, 1, format, 0),
                         naive_operand<T>(env, weight, 1, C, format, 1), N, OC, C, e);
        if (fp8_out) gelu_pass(env, out, pre);
    });
}

static int64_t forward_lt_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                               const struct tensor *weight, const struct tensor *bias, enum activation act) {
    bool fits = rows_of_vectors(out, pre, inp, weight, bias) && !matmul_in_fp8(inp, weight);
    return fits ? lt_workspace(tensor_rows(weight), tensor_rows(inp)) : OP_UNSUPPORTED;
}

/* out^T (OC,N) = weight (OC,C) @ inp^T (C,N) */
static lt_product forward_product(const struct tensor *inp, const struct tensor *weight,
                                  cublasLtEpilogue_t epilogue) {
    return {weight->dtype,    true,     false, tensor_rows(weight), tensor_rows(inp),
            tensor_cols(inp), epilogue, false};
}

/* A way to compute something. */
struct lt_form {
    lt_product product;
    lt_operands operands;
};
/* The product with the bias, and the one with GELU, too. */
static lt_form plain_forward(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                             const struct tensor *weight, const struct tensor *bias) {
    return {forward_product(inp, weight, bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT),
            {(pre ? pre : out)->data, weight->data, inp->data, bias ? bias->data : nullptr, nullptr}};
}
static lt_form gelu_forward(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                            const struct tensor *weight, const struct tensor *bias) {
    cublasLtEpilogue_t epilogue = pre    ? bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX
                                  : bias ? CUBLASLT_EPILOGUE_GELU_BIAS
                                         : CUBLASLT_EPILOGUE_GELU;
    return {forward_product(inp, weight, epilogue),
            {out->data, weight->data, inp->data, bias ? bias->data : nullptr, pre ? pre->data : nullptr}};
}

static void forward_lt(const struct op_env *env, struct tensor *out, struct tensor *pre,
                       const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                       enum activation act) {
    lt_form plain = plain_forward(out, pre, inp, weight, bias);
    if (act == ACT_GELU && !env->recomputes) {
        lt_form gelu = gelu_forward(out, pre, inp, weight, bias);
        if (fuses(env, gelu.product, gelu.operands, plain.product.epilogue, plain.operands, false,
                  [&] { gelu_pass(env, out, pre ? pre : out); }) &&
            lt_call(env, gelu.product, gelu.operands))
            return;
    }
    if (!lt_call(env, plain.product, plain.operands)) {
        forward_naive(env, out, pre, inp, weight, bias, act);
        return;
    }
    if (act == ACT_GELU) gelu_pass(env, out, pre ? pre : out);
}

static int64_t forward_lt_gelu_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                                    const struct tensor *weight, const struct tensor *bias,
                                    enum activation act) {
    return act == ACT_GELU ? forward_lt_need(out, pre, inp, weight, bias, act) : OP_UNSUPPORTED;
}

static void forward_lt_gelu(const struct op_env *env, struct tensor *out, struct tensor *pre,
                            const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                            enum activation act) {
    lt_form gelu = gelu_forward(out, pre, inp, weight, bias);
    if (!lt_call(env, gelu.product, gelu.operands)) forward_lt(env, out, pre, inp, weight, bias, act);
}

/* --- backward --- */

/* After the largest magnitudes of operands in fp8: partial sums for dbias, and what an e5m2 dinp takes. */
struct backward_naive_scratch {
    float *sums;
    gradient_scratch gradient;
    float *weight_descale;
    int64_t bytes;
};
static backward_naive_scratch take_backward_naive(void *memory, const struct tensor *dinp,
                                                  const struct tensor *dbias, const struct tensor *dout,
                                                  const struct tensor *inp, const struct tensor *weight) {
    scratch_pieces s = {memory, matmul_in_fp8(inp, weight) ? NAIVE_AMAX_BYTES : 0};
    int64_t N = tensor_rows(dout), OC = tensor_cols(dout);
    backward_naive_scratch b = {};
    if (dbias)
        b.sums = s.take<float>(dout->dtype == DTYPE_E5M2 ? fp8_sums(N, OC) : column_sum_chunks(N) * OC);
    if (dinp && dinp->dtype == DTYPE_E5M2) {
        b.gradient = take_gradient(&s, dinp, weight);
        b.weight_descale = s.take<float>(1);
    }
    b.bytes = s.bytes;
    return b;
}

static int64_t backward_naive_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                   const struct tensor *dout, const struct tensor *inp,
                                   const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    return take_backward_naive(nullptr, dinp, dbias, dout, inp, weight).bytes;
}

/* dbias of an e5m2 dout, whose tiles have left their sums. */
static void bias_of_tiles(cudaStream_t stream, struct tensor *dbias, const struct tensor *dout,
                          const float *sums, bool accumulate) {
    column_sum_finish(stream, data_of<bf16>(dbias), sums, fp8_sums(tensor_rows(dout), 1), tensor_cols(dout),
                      accumulate, dout->descale);
}

static void backward_naive(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                           struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                           const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    int64_t N = tensor_rows(dout), C = tensor_cols(inp), OC = tensor_cols(dout);
    cudaStream_t stream = (cudaStream_t)env->stream;
    backward_naive_scratch s = take_backward_naive(env->scratch, dinp, dbias, dout, inp, weight);
    with_dtype(weight->dtype, [&](auto tag) {
        using T = decltype(tag);
        naive_epilogue<T> e = {};
        e.accumulate = accumulate;
        bool fp8 = matmul_in_fp8(inp, weight);
        fp8_format gradient = fp8 ? FP8_E5M2 : FP8_NONE, other = fp8 ? FP8_E4M3 : FP8_NONE;
        strided<T> dout_rows = naive_operand<T>(env, dout, OC, 1, gradient, 0), dout_columns = dout_rows;
        std::swap(dout_columns.row_stride, dout_columns.col_stride);
        if (dweight)
            naive_product<T>(stream, data_of<T>(dweight), dout_columns,
                             naive_operand<T>(env, inp, C, 1, other, 1), OC, C, N, e);
        if (dbias && dout->dtype == DTYPE_E5M2) {
            fp8_transpose(stream, FP8_E5M2, {nullptr, nullptr, nullptr, s.sums}, dout->data, N, OC);
            bias_of_tiles(stream, dbias, dout, s.sums, accumulate);
        } else if (dbias) {
            column_sum(stream, data_of<T>(dbias), data_of<T>(dout), N, OC, accumulate, s.sums);
        }
        if (!dinp) return;
        strided<T> weight_rows = naive_operand<T>(env, weight, C, 1, other, 2);
        bool stored = dinp->dtype == DTYPE_E5M2;
        e = {};
        e.gelu_pre = stored ? nullptr : data_of<T>(pre);
        naive_product<T>(stream, stored ? (T *)s.gradient.product : data_of<T>(dinp), dout_rows, weight_rows,
                         N, C, OC, e);
        if (!stored) return;
        fp8_copy(stream, FP8_E4M3, {nullptr, nullptr, s.weight_descale, s.gradient.sums},
                 data_of<bf16>(weight), weight_rows.largest, OC, C);
        store_gradient(stream, dinp, s.gradient, dout_rows.largest, weight, s.weight_descale, pre);
    });
}

static int64_t backward_lt_workspace(const struct tensor *dout, const struct tensor *inp) {
    int64_t N = tensor_rows(dout), C = tensor_cols(inp), OC = tensor_cols(dout);
    return max_i64(lt_workspace(C, OC), lt_workspace(C, N));
}

static int64_t backward_lt_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                const struct tensor *dout, const struct tensor *inp,
                                const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    bool fits = rows_of_vectors(dout, dinp, dweight, dbias, inp, weight, pre) && !matmul_in_fp8(inp, weight);
    if (!fits) return OP_UNSUPPORTED;
    return backward_lt_workspace(dout, inp) + (dbias ? column_sum_bytes(dout) : 0);
}

/* dweight^T (C,OC) = or += inp^T (C,N) @ dout (N,OC);  dbias (OC) = or += column sums of dout
 * The epilogue can only overwrite, so where dbias accumulates it writes to scratch, and a small kernel adds
 * that to dbias. */
template <class T>
static void backward_lt_parameters(const struct op_env *env, T *dweight, T *dbias, const struct tensor *dout,
                                   const struct tensor *inp, bool accumulate) {
    cudaStream_t stream = (cudaStream_t)env->stream;
    int64_t N = tensor_rows(dout), OC = tensor_cols(dout);
    lt_product product = {dout->dtype, false, true, tensor_cols(inp), OC, N, CUBLASLT_EPILOGUE_DEFAULT,
                          accumulate};
    lt_operands operands = {dweight, inp->data, dout->data, nullptr, nullptr};
    const T *x = data_of<T>(dout);
    float *partial = (float *)((char *)env->scratch + backward_lt_workspace(dout, inp));
    if (dbias) {
        lt_product fused = product;
        lt_operands fused_operands = operands;
        T *sums = accumulate ? (T *)partial : dbias;
        fused.epilogue = CUBLASLT_EPILOGUE_BGRADB;
        fused_operands.bias = sums;
        auto pass = [&] { column_sum(stream, (T *)env->scratch, x, N, OC, false, partial); };
        if (fuses(env, fused, fused_operands, CUBLASLT_EPILOGUE_DEFAULT, operands, !accumulate, pass) &&
            lt_call(env, fused, fused_operands)) {
            if (accumulate)
                launch({grid_size(OC, ADD_THREADS), ADD_THREADS, 0, stream}, vector_add_kernel<T>, dbias,
                       sums, OC);
            return;
        }
    }
    bool done = lt_call(env, product, operands);
    check(done, "cuBLASLt has no algorithm for a weight gradient of %lld x %lld", (long long)OC,
          (long long)tensor_cols(inp));
    if (dbias) column_sum(stream, dbias, x, N, OC, accumulate, partial);
}

/* dinp = a product, times gelu'(pre), in the epilogue or in a pass. */
static void input_gradient(const struct op_env *env, struct tensor *dinp, lt_product product,
                           lt_operands operands, const struct tensor *pre) {
    if (pre) {
        lt_product fused = product;
        lt_operands fused_operands = operands;
        fused.epilogue = CUBLASLT_EPILOGUE_DGELU;
        fused_operands.aux = pre->data;
        if (fuses(env, fused, fused_operands, CUBLASLT_EPILOGUE_DEFAULT, operands, true,
                  [&] { gelu_backward_pass(env, dinp, dinp, pre); }) &&
            lt_call(env, fused, fused_operands))
            return;
    }
    bool done = lt_call(env, product, operands);
    check(done, "cuBLASLt has no algorithm for %s", tensor_text(dinp));
    if (pre) gelu_backward_pass(env, dinp, dinp, pre);
}

/* dinp^T (C,N) = weight^T (C,OC) @ dout^T (OC,N), times gelu'(pre) */
static void backward_lt_input(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                              const struct tensor *weight, const struct tensor *pre) {
    lt_product product = {dout->dtype,
                          false,
                          false,
                          tensor_cols(weight),
                          tensor_rows(dout),
                          tensor_cols(dout),
                          CUBLASLT_EPILOGUE_DEFAULT,
                          false};
    input_gradient(env, dinp, product, {dinp->data, weight->data, dout->data, nullptr, nullptr}, pre);
}

static void backward_lt(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                        struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                        const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    if (dweight)
        with_dtype(dout->dtype, [&](auto tag) {
            using T = decltype(tag);
            backward_lt_parameters(env, data_of<T>(dweight), data_of<T>(dbias), dout, inp, accumulate);
        });
    if (dinp) backward_lt_input(env, dinp, dout, weight, pre);
}

/* --- fp8 --- */

/* An operand, its largest magnitude and its copies. An fp8 tensor is its own copy as it is. */
struct fp8_operand {
    const struct tensor *source;
    fp8_format format;
    amax largest;
    fp8_copies copies;
};

static fp8_operand take_operand(scratch_pieces *s, const struct tensor *t, fp8_format format, bool as_is,
                                bool transposed) {
    fp8_operand o = {t, format, {}, {data_of<uint8_t>(t), nullptr, t->descale}};
    if (!dtype_is_fp8(t->dtype)) {
        o.largest.parts = s->take<uint32_t>(AMAX_MOST);
        o.copies.descale = s->take<float>(1);
        o.copies.as_is = as_is ? s->take<uint8_t>(tensor_count(t)) : nullptr;
    }
    if (transposed) o.copies.transposed = s->take<uint8_t>(tensor_count(t));
    return o;
}

static void copy_operand(cudaStream_t stream, fp8_operand *o) {
    if (dtype_is_fp8(o->source->dtype)) {
        if (o->copies.transposed)
            fp8_transpose(stream, o->format, o->copies, o->source->data, tensor_rows(o->source),
                          tensor_cols(o->source));
        return;
    }
    if (!o->largest.count) find_amax(stream, &o->largest, data_of<bf16>(o->source), tensor_count(o->source));
    fp8_copy(stream, o->format, o->copies, data_of<bf16>(o->source), o->largest, tensor_rows(o->source),
             tensor_cols(o->source));
}

/* In both directions cuBLASLt's workspace is the first piece. */
struct forward_fp8_scratch {
    fp8_operand inp, weight;
    int64_t bytes;
};
static forward_fp8_scratch take_forward(void *memory, const struct tensor *inp, const struct tensor *weight) {
    scratch_pieces s = {memory, 0};
    s.take<char>(lt_workspace(tensor_rows(weight), tensor_rows(inp)));
    fp8_operand x = take_operand(&s, inp, FP8_E4M3, true, false);
    fp8_operand w = take_operand(&s, weight, FP8_E4M3, true, false);
    return {x, w, s.bytes};
}

static int64_t forward_fp8_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                                const struct tensor *weight, const struct tensor *bias, enum activation act) {
    bool fits = weight->dtype == DTYPE_BF16 && rows_of_vectors(out, pre, inp, weight, bias) &&
                matmul_in_fp8(inp, weight);
    return fits ? max_i64(take_forward(nullptr, inp, weight).bytes, E4M3_OUTPUT_BYTES) : OP_UNSUPPORTED;
}

static void forward_fp8(const struct op_env *env, struct tensor *out, struct tensor *pre,
                        const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                        enum activation act) {
    forward_fp8_scratch s = take_forward(env->scratch, inp, weight);
    copy_operand((cudaStream_t)env->stream, &s.inp);
    copy_operand((cudaStream_t)env->stream, &s.weight);
    struct tensor *first = pre ? pre : out;
    lt_product product =
        forward_product(inp, weight, bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT);
    product.a = product.b = FP8_E4M3;
    lt_operands operands = {
        first->data, s.weight.copies.as_is,   s.inp.copies.as_is,  bias ? bias->data : nullptr,
        nullptr,     s.weight.copies.descale, s.inp.copies.descale};
    if (!lt_call(env, product, operands)) {
        forward_naive(env, out, pre, inp, weight, bias, act);
        return;
    }
    if (act == ACT_GELU) gelu_pass(env, out, first);
}

struct backward_fp8_scratch {
    fp8_operand dout, inp, weight;
    float *sums;               /* partial sums for dbias */
    uint32_t *maxima;          /* of dout in bf16, found on the way */
    gradient_scratch gradient; /* of an e5m2 dinp */
    int64_t bytes;
};
static backward_fp8_scratch take_backward(void *memory, const struct tensor *dinp,
                                          const struct tensor *dweight, const struct tensor *dbias,
                                          const struct tensor *dout, const struct tensor *inp,
                                          const struct tensor *weight) {
    scratch_pieces s = {memory, 0};
    int64_t chunks = column_sum_chunks(tensor_rows(dout)), OC = tensor_cols(dout);
    s.take<char>(backward_lt_workspace(dout, inp));
    backward_fp8_scratch b = {};
    b.dout = take_operand(&s, dout, FP8_E5M2, dinp != nullptr, dweight != nullptr);
    if (dweight) b.inp = take_operand(&s, inp, FP8_E4M3, false, true);
    if (dinp) b.weight = take_operand(&s, weight, FP8_E4M3, false, true);
    if (dbias && dout->dtype == DTYPE_E5M2) {
        b.sums = b.dout.copies.sums = s.take<float>(fp8_sums(tensor_rows(dout), OC));
    } else if (dbias) {
        b.sums = s.take<float>(chunks * OC);
        b.maxima = s.take<uint32_t>(chunks * column_sum_blocks<vec<bf16>::size>(OC));
    }
    if (dinp && dinp->dtype == DTYPE_E5M2) {
        b.gradient = take_gradient(&s, dinp, weight);
        b.weight.copies.sums = b.gradient.sums;
    }
    b.bytes = s.bytes;
    return b;
}

static int64_t backward_fp8_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                 const struct tensor *dout, const struct tensor *inp,
                                 const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    bool fits = weight->dtype == DTYPE_BF16 &&
                rows_of_vectors(dout, dinp, dweight, dbias, inp, weight, pre) && matmul_in_fp8(inp, weight) &&
                tensor_cols(dout) <= AMAX_MOST * SUM_COLS * vec<bf16>::size;
    if (!fits) return OP_UNSUPPORTED;
    return max_i64(take_backward(nullptr, dinp, dweight, dbias, dout, inp, weight).bytes,
                   take_backward_naive(nullptr, dinp, dbias, dout, inp, weight).bytes);
}

/* dbias, and in the same pass the largest magnitude of dout. */
static void sum_and_amax(cudaStream_t stream, struct tensor *dbias, backward_fp8_scratch *s,
                         bool accumulate) {
    const struct tensor *dout = s->dout.source;
    int64_t OC = tensor_cols(dout);
    column_sum(stream, data_of<bf16>(dbias), data_of<bf16>(dout), tensor_rows(dout), OC, accumulate, s->sums,
               s->dout.largest.parts, s->maxima);
    s->dout.largest.count = column_sum_blocks<vec<bf16>::size>(OC);
}

/* dweight^T (C,OC) = or += inp^T (C,N) @ dout (N,OC), of transposed copies: fp8 products sum along rows. */
static bool backward_fp8_weight(const struct op_env *env, struct tensor *dweight,
                                const backward_fp8_scratch *s, bool accumulate) {
    lt_product product = {DTYPE_BF16,
                          true,
                          false,
                          tensor_cols(dweight),
                          tensor_rows(dweight),
                          tensor_rows(s->inp.source),
                          CUBLASLT_EPILOGUE_DEFAULT,
                          accumulate,
                          FP8_E4M3,
                          FP8_E5M2};
    return lt_call(env, product,
                   {dweight->data, s->inp.copies.transposed, s->dout.copies.transposed, nullptr, nullptr,
                    s->inp.copies.descale, s->dout.copies.descale});
}

/* dinp^T (C,N) = weight^T (C,OC) @ dout^T (OC,N), times gelu'(pre) */
static void backward_fp8_input(const struct op_env *env, struct tensor *dinp, const backward_fp8_scratch *s,
                               const struct tensor *pre) {
    lt_product product = {DTYPE_BF16,
                          true,
                          false,
                          tensor_cols(dinp),
                          tensor_rows(dinp),
                          tensor_cols(s->dout.source),
                          CUBLASLT_EPILOGUE_DEFAULT,
                          false,
                          FP8_E4M3,
                          FP8_E5M2};
    bool stored = dinp->dtype == DTYPE_E5M2;
    lt_operands operands = {stored ? s->gradient.product : dinp->data,
                            s->weight.copies.transposed,
                            s->dout.copies.as_is,
                            nullptr,
                            nullptr,
                            s->weight.copies.descale,
                            s->dout.copies.descale};
    input_gradient(env, dinp, product, operands, stored ? nullptr : pre);
    if (stored)
        store_gradient((cudaStream_t)env->stream, dinp, s->gradient, s->dout.largest, s->weight.source,
                       s->weight.copies.descale, pre);
}

static void backward_fp8(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                         struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                         const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    cudaStream_t stream = (cudaStream_t)env->stream;
    backward_fp8_scratch s = take_backward(env->scratch, dinp, dweight, dbias, dout, inp, weight);
    bool tiles = dout->dtype == DTYPE_E5M2;
    if (dbias && !tiles) sum_and_amax(stream, dbias, &s, accumulate);
    copy_operand(stream, &s.dout);
    if (dbias && tiles) bias_of_tiles(stream, dbias, dout, s.sums, accumulate);
    if (dweight) copy_operand(stream, &s.inp);
    if (dweight && !backward_fp8_weight(env, dweight, &s, accumulate)) {
        backward_naive(env, dinp, dweight, nullptr, dout, inp, weight, pre, accumulate);
        return;
    }
    if (!dinp) return;
    copy_operand(stream, &s.weight);
    backward_fp8_input(env, dinp, &s, pre);
}

/* --- variants --- */

const struct matmul_forward_variant cuda_matmul_forward_variants[] = {
    {"cublaslt", forward_lt, forward_lt_need},
    {"cublaslt_gelu", forward_lt_gelu, forward_lt_gelu_need},
    {"fp8", forward_fp8, forward_fp8_need},
    {"naive", forward_naive, forward_naive_need},
    {}};
const struct matmul_backward_variant cuda_matmul_backward_variants[] = {
    {"cublaslt", backward_lt, backward_lt_need},
    {"fp8", backward_fp8, backward_fp8_need},
    {"naive", backward_naive, backward_naive_need},
    {}};
