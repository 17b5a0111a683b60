/* Linear layers: forward, backward. Contracts in ops.h.
 *
 * Rows:
 *   cublaslt        NVIDIA's library with bias, GELU's derivative and the bias gradient in epilogues. GELU
 * itself is a pass of its own: the library's epilogue applies it to the fp32 accumulator, but what backward
 * recomputes starts from the stored pre-activation, and both must give the same bits. cublaslt_gelu   forward
 * with GELU in the epilogue, too: one pass over (N,OC) less, not the same bits as a recomputed activation in
 * bf16. naive           a tiled kernel that takes any shape and alignment; the yardstick for the others.
 * Sections: the naive product, bias gradient, what both share, forward, backward. */
#include "cublaslt.cuh"
#include "gelu.cuh"
#include "operands.cuh"

/* --- the naive product --- */

/* A matrix element (row, col) at data[row*row_stride + col*col_stride]: a transposed view costs nothing. */
template <class T> struct strided {
    const T *data;
    int64_t row_stride, col_stride;
    __device__ float at(int64_t row, int64_t col) const {
        return to_float(data[row * row_stride + col * col_stride]);
    }
};

template <class T> struct naive_epilogue {
    T *pre;            /* = product + bias (or NULL) */
    const T *bias;     /* (cols) (or NULL) */
    const T *gelu_pre; /* multiply by gelu'(this) (or NULL) */
    bool gelu_out;     /* out = gelu of the rounded pre-activation, which act_forward would also start from */
    bool accumulate;   /* out += */
};

constexpr int TILE = 32, TILE_ROWS = 8; /* a block of 32 x 8 threads makes 32 x 32 elements */

/* out (M,N) = a (M,K) @ b (K,N), row-major out, fp32 accumulation in the order of k. */
template <class T>
static __global__ void __launch_bounds__(TILE *TILE_ROWS)
    matmul_naive_kernel(T *out, strided<T> a, strided<T> b, int64_t M, int64_t N, int64_t K,
                        naive_epilogue<T> e) {
    SHARED(float, tile_a, [TILE][TILE + 1]);
    SHARED(float, tile_b, [TILE][TILE + 1]);
    int x = (int)threadIdx.x, y = (int)threadIdx.y;
    int64_t row0 = (int64_t)blockIdx.x * TILE, col0 = (int64_t)blockIdx.y * TILE;
    float sum[TILE / TILE_ROWS] = {};
    for (int64_t k0 = 0; k0 < K; k0 += TILE) {
        for (int i = y; i < TILE; i += TILE_ROWS) {
            /* x runs along the contiguous dimension of either operand */
            int ra = a.col_stride == 1 ? i : x, ka = a.col_stride == 1 ? x : i;
            int kb = b.col_stride == 1 ? i : x, cb = b.col_stride == 1 ? x : i;
            tile_a[ra][ka] = row0 + ra < M && k0 + ka < K ? a.at(row0 + ra, k0 + ka) : 0.0f;
            tile_b[kb][cb] = k0 + kb < K && col0 + cb < N ? b.at(k0 + kb, col0 + cb) : 0.0f;
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

/* --- bias gradient: column sums in two steps, both in a fixed order --- */

constexpr int SUM_COLS = 32, SUM_ROWS = 8; /* threads of a block along columns and rows */

/* Blocks along the rows: enough to fill a GPU, the same number on every GPU. */
static int64_t column_sum_chunks(int64_t N) { return min_i64(max_i64(N / 64, 1), 128); }

/* partial (chunks,C): sums over the rows of a chunk. A thread owns W columns. */
template <class T, int W>
static __global__ void __launch_bounds__(SUM_COLS *SUM_ROWS)
    column_sum_kernel(float *partial, const T *x, int64_t N, int64_t C) {
    SHARED(float, rows, [SUM_ROWS][SUM_COLS * W]);
    int64_t col = ((int64_t)blockIdx.x * SUM_COLS + threadIdx.x) * W;
    float sum[W] = {};
    if (col < C)
        for (int64_t n = (int64_t)blockIdx.y * SUM_ROWS + threadIdx.y; n < N; n += gridDim.y * SUM_ROWS) {
            if constexpr (W == 1) {
                sum[0] += to_float(x[n * C + col]);
            } else {
                vec<T> v = vec<T>::load_streaming(x + n * C + col);
#pragma unroll
                for (int i = 0; i < W; i++) sum[i] += to_float(v[i]);
            }
        }
    for (int i = 0; i < W; i++) rows[threadIdx.y][i * SUM_COLS + threadIdx.x] = sum[i];
    __syncthreads();
    for (int i = (int)threadIdx.y; i < W; i += SUM_ROWS) {
        float total = 0;
        for (int y = 0; y < SUM_ROWS; y++) total += rows[y][i * SUM_COLS + threadIdx.x];
        if (col < C) partial[blockIdx.y * C + col + i] = total;
    }
}

template <class T>
static __global__ void column_sum_finish_kernel(T *out, const float *partial, int64_t chunks, int64_t C,
                                                bool accumulate) {
    int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= C) return;
    float sum = accumulate ? to_float(out[col]) : 0.0f;
    for (int64_t i = 0; i < chunks; i++) sum += partial[i * C + col];
    out[col] = from_float<T>(sum);
}

/* out (C) = or += sum over the rows of x (N,C); `partial` holds column_sum_chunks(N)*C floats. */
template <class T>
static void column_sum(cudaStream_t stream, T *out, const T *x, int64_t N, int64_t C, bool accumulate,
                       float *partial) {
    int64_t chunks = column_sum_chunks(N);
    constexpr int W = vec<T>::size;
    if (vec_aligned(x, C))
        launch({dim3(grid_size(C, SUM_COLS * W), (unsigned)chunks), dim3(SUM_COLS, SUM_ROWS), 0, stream},
               column_sum_kernel<T, W>, partial, x, N, C);
    else
        launch({dim3(grid_size(C, SUM_COLS), (unsigned)chunks), dim3(SUM_COLS, SUM_ROWS), 0, stream},
               column_sum_kernel<T, 1>, partial, x, N, C);
    launch({grid_size(C, 256), 256, 0, stream}, column_sum_finish_kernel<T>, out, partial, chunks, C,
           accumulate);
}

static int64_t column_sum_bytes(const struct tensor *x) {
    return column_sum_chunks(tensor_rows(x)) * tensor_cols(x) * (int64_t)sizeof(float);
}

/* --- what both directions share --- */

/* The activation of act.cu, in the fastest row that takes these operands. */
static void gelu_pass(const struct op_env *env, struct tensor *out, const struct tensor *inp) {
    const struct act_forward_variant *row = cuda_act_forward_variants;
    while (row->need(out, inp) != 0) row++; /* the last row takes anything and needs nothing */
    row->run(env, out, inp);
}
static void gelu_backward_pass(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                               const struct tensor *inp) {
    const struct act_backward_variant *row = cuda_act_backward_variants;
    while (row->need(dinp, dout, inp) != 0) row++;
    row->run(env, dinp, dout, inp);
}

static bool lt_call(const struct op_env *env, const lt_product &product, const lt_operands &operands) {
    return lt_run((struct cublaslt *)env->state, product, operands, env->scratch, (cudaStream_t)env->stream);
}

/* --- forward --- */

static int64_t forward_naive_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                                  const struct tensor *weight, const struct tensor *bias,
                                  enum activation act) {
    return same_float_dtype(out, pre, inp, weight, bias) ? 0 : OP_UNSUPPORTED;
}

static void forward_naive(const struct op_env *env, struct tensor *out, struct tensor *pre,
                          const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                          enum activation act) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp), OC = tensor_rows(weight);
    with_dtype(out->dtype, [&](auto tag) {
        using T = decltype(tag);
        naive_epilogue<T> e = {};
        e.pre = data_of<T>(pre);
        e.bias = data_of<T>(bias);
        e.gelu_out = act == ACT_GELU;
        naive_product<T>((cudaStream_t)env->stream, data_of<T>(out), {data_of<T>(inp), C, 1},
                         {data_of<T>(weight), 1, C}, N, OC, C, e);
    });
}

static int64_t forward_lt_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                               const struct tensor *weight, const struct tensor *bias, enum activation act) {
    bool fits = same_float_dtype(out, pre, inp, weight, bias) && rows_of_vectors(out, pre, inp, weight, bias);
    return fits ? lt_workspace(tensor_rows(weight), tensor_rows(inp)) : OP_UNSUPPORTED;
}

/* out^T (OC,N) = weight (OC,C) @ inp^T (C,N) */
static lt_product forward_product(const struct tensor *inp, const struct tensor *weight,
                                  cublasLtEpilogue_t epilogue) {
    return {inp->dtype,       true,     false, tensor_rows(weight), tensor_rows(inp),
            tensor_cols(inp), epilogue, false};
}

static void forward_lt(const struct op_env *env, struct tensor *out, struct tensor *pre,
                       const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                       enum activation act) {
    struct tensor *first = pre ? pre : out;
    lt_operands operands = {first->data, weight->data, inp->data, bias ? bias->data : nullptr, nullptr};
    cublasLtEpilogue_t epilogue = bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    if (!lt_call(env, forward_product(inp, weight, epilogue), operands)) {
        forward_naive(env, out, pre, inp, weight, bias, act);
        return;
    }
    if (act == ACT_GELU) gelu_pass(env, out, first);
}

static int64_t forward_lt_gelu_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                                    const struct tensor *weight, const struct tensor *bias,
                                    enum activation act) {
    return act == ACT_GELU ? forward_lt_need(out, pre, inp, weight, bias, act) : OP_UNSUPPORTED;
}

static void forward_lt_gelu(const struct op_env *env, struct tensor *out, struct tensor *pre,
                            const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                            enum activation act) {
    lt_operands operands = {out->data, weight->data, inp->data, bias ? bias->data : nullptr,
                            pre ? pre->data : nullptr};
    cublasLtEpilogue_t epilogue = pre    ? bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX
                                  : bias ? CUBLASLT_EPILOGUE_GELU_BIAS
                                         : CUBLASLT_EPILOGUE_GELU;
    if (!lt_call(env, forward_product(inp, weight, epilogue), operands))
        forward_lt(env, out, pre, inp, weight, bias, act);
}

const struct matmul_forward_variant cuda_matmul_forward_variants[] = {
    {"cublaslt", forward_lt, forward_lt_need},
    {"cublaslt_gelu", forward_lt_gelu, forward_lt_gelu_need},
    {"naive", forward_naive, forward_naive_need},
    {}};

/* --- backward --- */

static int64_t backward_naive_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                   const struct tensor *dout, const struct tensor *inp,
                                   const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    if (!same_float_dtype(dout, dinp, dweight, dbias, inp, weight, pre)) return OP_UNSUPPORTED;
    return dbias ? column_sum_bytes(dout) : 0;
}

/* Parameter gradients come first: dinp may share memory with inp. */
static void backward_naive(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                           struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                           const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    int64_t N = tensor_rows(dout), C = tensor_cols(inp), OC = tensor_cols(dout);
    cudaStream_t stream = (cudaStream_t)env->stream;
    with_dtype(dout->dtype, [&](auto tag) {
        using T = decltype(tag);
        naive_epilogue<T> e = {};
        e.accumulate = accumulate;
        naive_product<T>(stream, data_of<T>(dweight), {data_of<T>(dout), 1, OC}, {data_of<T>(inp), C, 1}, OC,
                         C, N, e);
        if (dbias)
            column_sum(stream, data_of<T>(dbias), data_of<T>(dout), N, OC, accumulate, (float *)env->scratch);
        if (!dinp) return;
        e = {};
        e.gelu_pre = data_of<T>(pre);
        naive_product<T>(stream, data_of<T>(dinp), {data_of<T>(dout), OC, 1}, {data_of<T>(weight), C, 1}, N,
                         C, OC, e);
    });
}

static int64_t backward_lt_workspace(const struct tensor *dout, const struct tensor *inp) {
    int64_t N = tensor_rows(dout), C = tensor_cols(inp), OC = tensor_cols(dout);
    return max_i64(lt_workspace(C, OC), lt_workspace(C, N));
}

static int64_t backward_lt_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                const struct tensor *dout, const struct tensor *inp,
                                const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    bool fits = same_float_dtype(dout, dinp, dweight, dbias, inp, weight, pre) &&
                rows_of_vectors(dout, dinp, dweight, dbias, inp, weight, pre);
    if (!fits) return OP_UNSUPPORTED;
    return backward_lt_workspace(dout, inp) + (dbias ? column_sum_bytes(dout) : 0);
}

/* dweight^T (C,OC) = or += inp^T (C,N) @ dout (N,OC);  dbias (OC) = or += column sums of dout. The epilogue
 * can only overwrite dbias, so accumulation takes the sum in a pass of its own. */
static void backward_lt_parameters(const struct op_env *env, struct tensor *dweight, struct tensor *dbias,
                                   const struct tensor *dout, const struct tensor *inp, bool accumulate) {
    lt_product product = {dout->dtype,
                          false,
                          true,
                          tensor_cols(inp),
                          tensor_cols(dout),
                          tensor_rows(dout),
                          CUBLASLT_EPILOGUE_DEFAULT,
                          accumulate};
    lt_operands operands = {dweight->data, inp->data, dout->data, nullptr, nullptr};
    if (dbias && !accumulate) {
        product.epilogue = CUBLASLT_EPILOGUE_BGRADB;
        operands.bias = dbias->data;
        if (lt_call(env, product, operands)) return;
        product.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    }
    bool done = lt_call(env, product, operands);
    check(done, "cuBLASLt has no algorithm for the gradient of %s", tensor_text(dweight));
    if (!dbias) return;
    with_dtype(dout->dtype, [&](auto tag) {
        using T = decltype(tag);
        column_sum((cudaStream_t)env->stream, data_of<T>(dbias), data_of<T>(dout), tensor_rows(dout),
                   tensor_cols(dout), accumulate,
                   (float *)((char *)env->scratch + backward_lt_workspace(dout, inp)));
    });
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
    lt_operands operands = {dinp->data, weight->data, dout->data, nullptr, nullptr};
    if (pre) {
        product.epilogue = CUBLASLT_EPILOGUE_DGELU;
        operands.aux = pre->data;
        if (lt_call(env, product, operands)) return;
        product.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    }
    bool done = lt_call(env, product, operands);
    check(done, "cuBLASLt has no algorithm for %s", tensor_text(dinp));
    if (pre) gelu_backward_pass(env, dinp, dinp, pre);
}

static void backward_lt(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                        struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                        const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    backward_lt_parameters(env, dweight, dbias, dout, inp, accumulate);
    if (dinp) backward_lt_input(env, dinp, dout, weight, pre);
}

const struct matmul_backward_variant cuda_matmul_backward_variants[] = {
    {"cublaslt", backward_lt, backward_lt_need}, {"naive", backward_naive, backward_naive_need}, {}};
