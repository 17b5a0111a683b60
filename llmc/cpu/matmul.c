/* Linear layers: forward, backward, and both in fp8. Contracts in ops.h.
 *
 * A product is cut into blocks (product.h). A thread takes one block at a time: it multiplies, and then adds
 * the bias and applies the activation while the block is in its cache.
 *
 * fp8 rounds copies of the operands and multiplies these in fp32: it defines the result, and shows without a
 * GPU what fp8 does to a model. */
#include "llmc/cpu/product.h"
#include "llmc/cpu/tile.h"

#include <string.h>

/* out = or += the sums of `count` columns of x (N,C). Rows are added in order. */
static void column_sum(float *out, const float *x, int64_t N, int64_t C, int64_t count, bool accumulate) {
    enum { WIDTH = 64 };
    for (int64_t first = 0; first < count; first += WIDTH) {
        int64_t width = min_i64(WIDTH, count - first);
        float total[WIDTH] = {0};
        for (int64_t n = 0; n < N; n++)
            for (int64_t c = 0; c < width; c++) total[c] += x[n * C + first + c];
        for (int64_t c = 0; c < width; c++)
            out[first + c] = accumulate ? out[first + c] + total[c] : total[c];
    }
}

/* --- forward and backward --- */

/* With few rows reading the weights takes all the time. Dot products read them once; a blocked GEMM would
 * first copy them into its own layout. Weights in bf16 halve the bytes: two of them are read as one word, of
 * which a shift makes the even one and a mask the odd one, and split_pairs() brings the rows into this order.
 *
 * A tile of rows and columns is computed at a time, so that a weight that was read serves several rows.
 * Each element has one accumulator of LANES partial sums whatever its tile is: the rows beside it change
 * no bit. */
enum { FEW_ROWS = 4, FEW_COLS = 64 };

enum { TILE_ROWS = LANES == 16 ? 8 : 4, TILE_COLS = 2 };
typedef float fours __attribute__((vector_size(4 * sizeof(float))));
typedef uint32_t pairs
    __attribute__((vector_size(LANES * sizeof(uint32_t)), aligned(sizeof(uint16_t)), may_alias));

/* Whether rows are multiplied by dot products. Rows (N,1,C) continue different sequences in text
 * generation, and each gets the bits that it gets alone. */
static bool by_dot_products(const struct tensor *inp) {
    return tensor_rows(inp) <= FEW_ROWS || (inp->rank == 3 && inp->dim[1] == 1);
}

/* Rows of K numbers: of each 2*LANES, first those with even index and then the others. A rest stays. */
static void split_pairs(float *to, const float *x, int64_t rows, int64_t K) {
    for (int64_t i = 0; i < rows; i++, to += K, x += K) {
        int64_t whole = K - K % (2 * LANES);
        for (int64_t k = 0; k < whole; k += 2 * LANES)
            for (int l = 0; l < LANES; l++) to[k + l] = x[k + 2 * l], to[k + LANES + l] = x[k + 2 * l + 1];
        for (int64_t k = whole; k < K; k++) to[k] = x[k];
    }
}

static inline float load_one(bool bf16, const void *w, int64_t at) {
    return bf16 ? f32_from_bf16(((const uint16_t *)w)[at]) : ((const float *)w)[at];
}

static inline float sum_lanes(lanes v) {
    fours x[LANES / 4];
    memcpy(x, &v, sizeof x);
    for (int n = LANES / 8; n > 0; n /= 2)
        for (int i = 0; i < n; i++) x[i] += x[i + n];
    return (x[0][0] + x[0][2]) + (x[0][1] + x[0][3]);
}

/* out (rows,cols) = x (rows,K) @ w (cols,K)^T, rows of out ldo floats apart. The columns after these come
 * nearer meanwhile, because reading weights and computing with them overlap only so: each of `tiles` tiles
 * fetches its share of them, from `ahead` on. With `only`, it is the only one, which is 5 % faster to know.
 * Inlined with constant rows, cols, bf16 and `only`, so that the compiler keeps `sum` in registers. No branch
 * stands in the loop: across one, clang does not make multiply-adds, and tiles would round differently. */
__attribute__((always_inline)) static inline void dot_tile(int rows, int cols, bool bf16, float *out,
                                                           int64_t ldo, const float *x, const char *w,
                                                           int64_t K, bool only, const char *ahead,
                                                           int64_t tiles) {
    lanes sum[TILE_ROWS][TILE_COLS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) sum[i][j] = (lanes){0};
    int64_t size = bf16 ? 2 : 4, column = K * size, step = bf16 ? 2 * LANES : LANES, whole = K - K % step,
            pace = step * size / tiles;
#pragma GCC unroll 2
    for (int64_t k = 0; k < whole; k += step) {
        lanes even[TILE_COLS], odd[TILE_COLS];
        for (int j = 0; j < cols; j++) {
            const char *at = w + j * column + k * size;
            __builtin_prefetch(only ? at + (ahead - w) : ahead + j * column);
            if (bf16) {
                pairs two = *(const pairs *)at;
                even[j] = (lanes)(two << 16), odd[j] = (lanes)(two & 0xffff0000u);
            } else {
                even[j] = *(const lanes *)at;
            }
        }
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < cols; j++) {
                sum[i][j] += *(const lanes *)(x + i * K + k) * even[j];
                if (bf16) sum[i][j] += *(const lanes *)(x + i * K + k + LANES) * odd[j];
            }
        if (!only) ahead += pace;
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            float s = sum_lanes(sum[i][j]);
            for (int64_t k = whole; k < K; k++) s += x[i * K + k] * load_one(bf16, w, j * K + k);
            out[i * ldo + j] = s;
        }
}

/* All rows times `cols` columns. */
__attribute__((always_inline)) static inline void dot_columns(int cols, bool bf16, const struct product *p,
                                                              int64_t first, const char *w) {
    int64_t column = p->K * (bf16 ? 2 : 4), tiles = p->M / TILE_ROWS + p->M % TILE_ROWS,
            share = column / tiles;
    const char *ahead = first + 2 * cols <= p->N ? w + cols * column : w;
    float *out = p->c + first;
    if (p->M == 1) dot_tile(1, cols, bf16, out, p->N, p->a, w, p->K, true, ahead, 1);
    for (int64_t n = 0; p->M > 1 && n < p->M;) {
        bool whole = n + TILE_ROWS <= p->M;
        const float *x = p->a + n * p->K;
        if (whole)
            dot_tile(TILE_ROWS, cols, bf16, out + n * p->N, p->N, x, w, p->K, false, ahead, tiles);
        else
            dot_tile(1, cols, bf16, out + n * p->N, p->N, x, w, p->K, false, ahead, tiles);
        n += whole ? TILE_ROWS : 1;
        ahead += share;
    }
}

__attribute__((always_inline)) static inline void dot_block(bool bf16, const struct product *p,
                                                            struct block k, const void *weight) {
    int64_t column = p->K * (bf16 ? 2 : 4), j = k.col, end = k.col + k.cols;
    for (; j + TILE_COLS <= end; j += TILE_COLS)
        dot_columns(TILE_COLS, bf16, p, j, (const char *)weight + j * column);
    for (; j < end; j++) dot_columns(1, bf16, p, j, (const char *)weight + j * column);
}

/* Up to this many multiply-adds, waking another thread takes longer than it saves. */
static bool worth_threads(const struct product *p) { return p->M * p->N * p->K > 1 << 18; }

static int64_t matmul_forward_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                                   const struct tensor *weight, const struct tensor *bias,
                                   enum activation act) {
    if (matmul_in_fp8(inp, weight)) return OP_UNSUPPORTED;
    int64_t bytes = cpu_copy_bytes(bias);
    if (!by_dot_products(inp)) return bytes + cpu_copy_bytes(weight) + product_scratch_bytes();
    return bytes + (weight->dtype == DTYPE_BF16 ? tensor_bytes(inp) : 0);
}

/* out = act(product + bias) in a block, where the product is in `p->c`. */
static void finish_block(const struct product *p, struct block k, float *out, const float *bias,
                         enum activation act) {
    for (int64_t n = k.row; n < k.row + k.rows; n++) {
        float *x = p->c + n * p->N + k.col, *o = out + n * p->N + k.col;
        if (bias)
            for (int64_t c = 0; c < k.cols; c++) x[c] += bias[k.col + c];
        if (act == ACT_GELU)
            for (int64_t c = 0; c < k.cols; c++) o[c] = cpu_gelu(x[c]);
    }
}

static void matmul_forward_run(const struct op_env *env, struct tensor *out, struct tensor *pre,
                               const struct tensor *inp, const struct tensor *weight,
                               const struct tensor *bias, enum activation act) {
    int64_t N = tensor_rows(inp), C = tensor_cols(inp), OC = tensor_rows(weight);
    float *memory = (float *)env->scratch;
    bool few = by_dot_products(inp), bf16 = weight->dtype == DTYPE_BF16;
    const float *b = bias ? cpu_weight(bias, &memory) : NULL;
    struct product p = product_cut((struct product){.M = N,
                                                    .N = OC,
                                                    .K = C,
                                                    .a = f32(inp),
                                                    .b = few ? NULL : cpu_weight(weight, &memory),
                                                    .b_transposed = true,
                                                    .c = f32(pre ? pre : out)});
    if (few) p.rows = N, p.cols = FEW_COLS;
    if (few && bf16) split_pairs(memory, p.a, N, C), p.a = memory;
#pragma omp parallel for schedule(dynamic) if (worth_threads(&p))
    for (int64_t i = 0; i < product_blocks(&p); i++) {
        struct block k = product_block(&p, i);
        if (few && bf16)
            dot_block(true, &p, k, weight->data);
        else if (few)
            dot_block(false, &p, k, weight->data);
        else
            product_multiply_block(&p, k, memory);
        finish_block(&p, k, f32(out), b, act);
    }
}

static int64_t matmul_backward_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                    const struct tensor *dout, const struct tensor *inp,
                                    const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    return matmul_in_fp8(inp, weight) ? OP_UNSUPPORTED : product_scratch_bytes();
}

/* The gradient in a block, times the derivative of the activation at x. The next row of x, which comes from
 * memory, is fetched meanwhile. */
static void multiply_by_derivative(const struct product *p, struct block k, const float *x) {
    for (int64_t n = k.row; n < k.row + k.rows; n++) {
        float *d = p->c + n * p->N + k.col;
        const float *at = x + n * p->N + k.col;
        for (int64_t c = 0; n + 1 < p->M && c < k.cols; c += 16) __builtin_prefetch(at + p->N + c);
#pragma omp simd
        for (int64_t c = 0; c < k.cols; c++) d[c] *= cpu_gelu_derivative(at[c]);
    }
}

static void matmul_backward_run(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                                struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                                const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    int64_t N = tensor_rows(dout), C = tensor_cols(inp), OC = tensor_cols(dout);
    struct product dw = {0}, dx = {0};
    if (dweight)
        dw = product_cut((struct product){.M = OC,
                                          .N = C,
                                          .K = N,
                                          .a = f32(dout),
                                          .a_transposed = true,
                                          .b = f32(inp),
                                          .c = f32(dweight),
                                          .add = accumulate});
    if (dinp)
        dx = product_cut(
            (struct product){.M = N, .N = C, .K = OC, .a = f32(dout), .b = f32(weight), .c = f32(dinp)});
#pragma omp parallel if (worth_threads(dweight ? &dw : &dx))
    {
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < (dweight ? product_blocks(&dw) : 0); i++) {
            struct block k = product_block(&dw, i);
            product_multiply_block(&dw, k, env->scratch);
            if (dbias && k.col == 0) column_sum(f32(dbias) + k.row, dw.a + k.row, N, OC, k.rows, accumulate);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < (dinp ? product_blocks(&dx) : 0); i++) {
            struct block k = product_block(&dx, i);
            product_multiply_block(&dx, k, env->scratch);
            if (pre) multiply_by_derivative(&dx, k, f32(pre));
        }
    }
}

/* --- fp8 --- */

/* A copy of `t`, each element rounded to fp8 with the scale of the tensor. It takes the beginning of the
 * scratch, which then points behind it. */
static struct tensor through_fp8(const struct tensor *t, enum fp8_format format, struct op_env *rest) {
    struct tensor copy = *t;
    float *memory = (float *)rest->scratch;
    int64_t n = tensor_count(t);
    cpu_round_to_fp8(memory, f32(t), n, format, cpu_largest_magnitude(f32(t), n));
    copy.data = memory;
    copy.fp8 = false;
    rest->scratch = memory + n;
    return copy;
}

static int64_t matmul_forward_fp8_need(struct tensor *out, struct tensor *pre, const struct tensor *inp,
                                       const struct tensor *weight, const struct tensor *bias,
                                       enum activation act) {
    if (!matmul_in_fp8(inp, weight)) return OP_UNSUPPORTED;
    return tensor_bytes(inp) + tensor_bytes(weight) + cpu_copy_bytes(bias) + product_scratch_bytes();
}

static void matmul_forward_fp8(const struct op_env *env, struct tensor *out, struct tensor *pre,
                               const struct tensor *inp, const struct tensor *weight,
                               const struct tensor *bias, enum activation act) {
    struct op_env rest = *env;
    struct tensor inp8 = through_fp8(inp, FP8_E4M3, &rest);
    struct tensor weight8 = through_fp8(weight, FP8_E4M3, &rest);
    matmul_forward_run(&rest, out, pre, &inp8, &weight8, bias, act);
    cpu_round_marked(out);
}

/* The largest sum of a column's magnitudes, or NaN. */
static float largest_column(const struct tensor *t) {
    int64_t rows = tensor_rows(t), cols = tensor_cols(t);
    float most = 0.0f;
    for (int64_t c = 0; c < cols && !isnan(most); c++) {
        float sum = 0.0f;
        for (int64_t r = 0; r < rows; r++) sum += fabsf(f32(t)[r * cols + c]);
        most = sum <= most ? most : sum;
    }
    return most;
}

static int64_t matmul_backward_fp8_need(struct tensor *dinp, struct tensor *dweight, struct tensor *dbias,
                                        const struct tensor *dout, const struct tensor *inp,
                                        const struct tensor *weight, const struct tensor *pre,
                                        bool accumulate) {
    if (!matmul_in_fp8(inp, weight)) return OP_UNSUPPORTED;
    return tensor_bytes(dout) + tensor_bytes(inp) + tensor_bytes(weight) + product_scratch_bytes();
}

static void matmul_backward_fp8(const struct op_env *env, struct tensor *dinp, struct tensor *dweight,
                                struct tensor *dbias, const struct tensor *dout, const struct tensor *inp,
                                const struct tensor *weight, const struct tensor *pre, bool accumulate) {
    struct op_env rest = *env;
    struct tensor dout8 = through_fp8(dout, FP8_E5M2, &rest);
    struct tensor inp8 = through_fp8(inp, FP8_E4M3, &rest);
    struct tensor weight8 = through_fp8(weight, FP8_E4M3, &rest);
    matmul_backward_run(&rest, dinp, dweight, NULL, &dout8, &inp8, &weight8, pre, accumulate);
    int64_t N = tensor_rows(dout), OC = tensor_cols(dout);
    if (dbias) column_sum(f32(dbias), f32(dout), N, OC, OC, accumulate);
    if (!dinp || !dinp->fp8) return;
    float bound = fp8_gradient_bound(cpu_largest_magnitude(f32(dout), N * OC), largest_column(&weight8));
    cpu_round_to_fp8(f32(dinp), f32(dinp), tensor_count(dinp), FP8_E5M2, bound);
}

const struct matmul_forward_variant CPU_NAME(cpu_matmul_forward_variants)[] = {
    {CPU_VARIANT_NAME "-fp8", matmul_forward_fp8, matmul_forward_fp8_need},
    {CPU_VARIANT_NAME, matmul_forward_run, matmul_forward_need},
    {0}};
const struct matmul_backward_variant CPU_NAME(cpu_matmul_backward_variants)[] = {
    {CPU_VARIANT_NAME "-fp8", matmul_backward_fp8, matmul_backward_fp8_need},
    {CPU_VARIANT_NAME, matmul_backward_run, matmul_backward_need},
    {0}};
