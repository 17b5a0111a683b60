/* The part of cuBLASLt that the engine uses, on the host: products with the epilogues BIAS,
 * GELU(_AUX)(_BIAS), DGELU and BGRADB, in fp32, TF32 and bf16 with fp32 accumulation; and products of fp8
 * with the epilogue BIAS, by the rules of its documentation ("To use FP8 kernels, ..."). The product itself
 * is the host's sgemm.
 *
 * Checked as on hardware: that shapes fit, that pointers and rows are as aligned as the algorithm was
 * promised, that the workspace is large enough, and that all operands lie in live device memory. cuBLASLt's
 * own order of sums and rounding are not reproduced. */
#include "test/sim/runtime.h"

#include <cublasLt.h>

#include "llmc/ops/fp8.h"

#include <cblas.h>
#include <vector>

namespace sim {

enum { WORKSPACE = 64 << 10 }; /* that every algorithm asks for, filled with NaN when it runs */

struct matmul_desc {
    cublasComputeType_t compute;
    cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    void *bias = nullptr, *aux = nullptr;
    int64_t aux_ld = 0;
    const float *scale_a = nullptr, *scale_b = nullptr; /* on the device; without one it is 1 */
    int8_t fast_accumulation = 0;
};
struct matrix_layout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
};
struct preference {
    size_t workspace = 0;
    uint32_t alignment[4] = {256, 256, 256, 256}; /* A, B, C, D */
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
};
struct algorithm { /* inside the opaque 64 bytes */
    uint32_t magic, alignment;
    uint64_t workspace;
    uint32_t rounds_halves; /* sums both halves of k apart, and rounds each to the output's type */
};
static_assert(sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t));
enum : uint32_t { ALGORITHM_MAGIC = 0x51a1607 };

/* --- elements --- */

static bool is_fp8(cudaDataType_t type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2; }
static size_t size_of(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : is_fp8(type) ? 1 : 2; }

static float load(const void *p, int64_t i, cudaDataType_t type) {
    if (type == CUDA_R_32F) return ((const float *)p)[i];
    if (is_fp8(type)) return fp8_value(type == CUDA_R_8F_E4M3 ? FP8_E4M3 : FP8_E5M2, ((const uint8_t *)p)[i]);
    return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
}
static void store(void *p, int64_t i, cudaDataType_t type, float v) {
    if (type == CUDA_R_32F)
        ((float *)p)[i] = v;
    else
        ((__nv_bfloat16 *)p)[i] = __float2bfloat16(v);
}

/* Ten bits of mantissa, to nearest even. */
static float round_to_tf32(float v) {
    uint32_t bits = bit_cast<uint32_t>(v);
    if ((bits & 0x7f800000u) == 0x7f800000u) return v;
    bits += 0xfffu + (bits >> 13 & 1u);
    return bit_cast<float>(bits & ~0x1fffu);
}

static float gelu(float x) { return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))); }
static float gelu_derivative(float x) {
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
}

/* --- the product --- */

struct product {
    matmul_desc desc;
    matrix_layout a, b, c, d;
    const void *pa, *pb, *pc;
    void *pd, *workspace;
    float alpha, beta;
    int64_t m, n, k;
    bool rounds_halves;
};

/* A column-major matrix as fp32, with its own leading dimension `rows`. */
static std::vector<float> to_fp32(const matrix_layout &l, const void *p, bool tf32) {
    std::vector<float> out((size_t)(l.rows * l.cols));
    for (int64_t c = 0; c < (int64_t)l.cols; c++)
        for (int64_t r = 0; r < (int64_t)l.rows; r++) {
            float v = load(p, c * l.ld + r, l.type);
            out[(size_t)(c * (int64_t)l.rows + r)] = tf32 ? round_to_tf32(v) : v;
        }
    return out;
}

static bool has_bias(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_BIAS ||
           e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
static bool has_gelu(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU || e == CUBLASLT_EPILOGUE_GELU_BIAS ||
           e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
static bool keeps_aux(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}

/* sum (m,n) column-major = op(a) @ op(b). The host's sgemm wakes threads, which costs more than a small
 * product takes. */
static void multiply_fp32(std::vector<float> &sum, const product &x, const std::vector<float> &a,
                          const std::vector<float> &b) {
    bool ta = x.desc.transpose_a != CUBLAS_OP_N, tb = x.desc.transpose_b != CUBLAS_OP_N;
    if (x.m * x.n * x.k > 4000000) {
        cblas_sgemm(CblasColMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)x.m,
                    (int)x.n, (int)x.k, 1.0f, a.data(), (int)x.a.rows, b.data(), (int)x.b.rows, 0.0f,
                    sum.data(), (int)x.m);
        return;
    }
    std::vector<float> columns; /* a with m contiguous */
    if (ta) {
        columns.resize(a.size());
        for (int64_t i = 0; i < x.m; i++)
            for (int64_t l = 0; l < x.k; l++) columns[(size_t)(l * x.m + i)] = a[(size_t)(i * x.k + l)];
    }
    const float *from = ta ? columns.data() : a.data();
    for (int64_t j = 0; j < x.n; j++)
        for (int64_t l = 0; l < x.k; l++) {
            float scale = b[(size_t)(tb ? l * x.n + j : j * x.k + l)], *to = &sum[(size_t)(j * x.m)];
            for (int64_t i = 0; i < x.m; i++) to[i] += from[l * x.m + i] * scale;
        }
}

/* sum (m,n), as an algorithm computes it that splits k and adds partial sums in the output's type. */
static void round_halves(std::vector<float> &sum, const product &x, std::vector<float> a,
                         const std::vector<float> &b) {
    bool ta = x.desc.transpose_a != CUBLAS_OP_N;
    std::vector<float> first(sum.size());
    for (int64_t i = 0; i < x.m; i++)
        for (int64_t l = x.k / 2; l < x.k; l++) a[(size_t)(ta ? i * x.k + l : l * x.m + i)] = 0.0f;
    multiply_fp32(first, x, a, b);
    for (size_t i = 0; i < sum.size(); i++)
        sum[i] = __bfloat162float(__float2bfloat16(first[i])) +
                 __bfloat162float(__float2bfloat16(sum[i] - first[i]));
}

/* For test_traffic.c: reports every operand once, column by column. */
static void count_matrix(const void *p, const matrix_layout &l, bool write) {
    for (uint64_t j = 0; j < l.cols; j++)
        count_access((const char *)p + j * (uint64_t)l.ld * size_of(l.type), l.rows * size_of(l.type), write);
}
static void count_product(const product &x) {
    if (!on_access) return;
    cublasLtEpilogue_t e = x.desc.epilogue;
    count_matrix(x.pa, x.a, false);
    count_matrix(x.pb, x.b, false);
    for (const float *scale : {x.desc.scale_a, x.desc.scale_b})
        if (scale) count_access(scale, sizeof *scale, false);
    if (x.beta != 0.0f) count_matrix(x.pc, x.c, false);
    count_matrix(x.pd, x.d, true);
    matrix_layout aux = x.d;
    aux.ld = x.desc.aux_ld;
    if (keeps_aux(e) || e == CUBLASLT_EPILOGUE_DGELU) count_matrix(x.desc.aux, aux, keeps_aux(e));
    if (has_bias(e)) count_access(x.desc.bias, (size_t)x.m * size_of(x.d.type), false);
    if (e == CUBLASLT_EPILOGUE_BGRADB) count_access(x.desc.bias, (size_t)x.n * size_of(x.d.type), true);
}

static void multiply(const product &x) {
    count_product(x);
    cublasLtEpilogue_t e = x.desc.epilogue;
    bool tf32 = x.desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    std::vector<float> a = to_fp32(x.a, x.pa, tf32), b = to_fp32(x.b, x.pb, tf32);
    std::vector<float> sum((size_t)(x.m * x.n));
    multiply_fp32(sum, x, a, b);
    if (x.rounds_halves) round_halves(sum, x, a, b);
    float alpha =
        x.alpha * (x.desc.scale_a ? *x.desc.scale_a : 1.0f) * (x.desc.scale_b ? *x.desc.scale_b : 1.0f);
    for (int64_t j = 0; j < x.n; j++)
        for (int64_t i = 0; i < x.m; i++) {
            float v = alpha * sum[(size_t)(j * x.m + i)];
            if (x.beta != 0.0f) v += x.beta * load(x.pc, j * x.c.ld + i, x.c.type);
            if (has_bias(e)) v += load(x.desc.bias, i, x.d.type);
            if (keeps_aux(e)) store(x.desc.aux, j * x.desc.aux_ld + i, x.d.type, v);
            if (has_gelu(e)) v = gelu(v);
            if (e == CUBLASLT_EPILOGUE_DGELU)
                v *= gelu_derivative(load(x.desc.aux, j * x.desc.aux_ld + i, x.d.type));
            store(x.pd, j * x.d.ld + i, x.d.type, v);
        }
    if (e == CUBLASLT_EPILOGUE_BGRADB)
        for (int64_t j = 0; j < x.n; j++) {
            float total = 0.0f;
            for (int64_t l = 0; l < x.k; l++)
                total +=
                    x.desc.transpose_b == CUBLAS_OP_N ? b[(size_t)(j * x.k + l)] : b[(size_t)(l * x.n + j)];
            store(x.desc.bias, j, x.d.type, total);
        }
    if (x.workspace) memset(x.workspace, 0xff, WORKSPACE);
}

/* --- checks --- */

static void check_matrix(const char *name, const matrix_layout &l, const void *p, uint32_t alignment) {
    if ((uintptr_t)p % alignment || (size_t)l.ld * size_of(l.type) % alignment)
        bug("cublasLtMatmul: %s at %p with %lld elements a column is not %u-byte aligned, as promised when "
            "the algorithm was chosen",
            name, p, (long long)l.ld, alignment);
    if (l.ld < (int64_t)l.rows) bug("cublasLtMatmul: leading dimension of %s is too small", name);
    check_device_range(p, (size_t)(l.ld * (int64_t)l.cols) * size_of(l.type), name);
}

static void check_product(const product &x, const algorithm &algo, size_t workspace_bytes) {
    bool ta = x.desc.transpose_a != CUBLAS_OP_N, tb = x.desc.transpose_b != CUBLAS_OP_N;
    if (algo.magic != ALGORITHM_MAGIC) bug("cublasLtMatmul: not an algorithm that the heuristic returned");
    if ((int64_t)(ta ? x.a.cols : x.a.rows) != x.m || (int64_t)(tb ? x.b.rows : x.b.cols) != x.n ||
        (int64_t)(tb ? x.b.cols : x.b.rows) != x.k || x.c.rows != x.d.rows || x.c.cols != x.d.cols)
        bug("cublasLtMatmul: the shapes do not fit");
    check_matrix("A", x.a, x.pa, algo.alignment);
    check_matrix("B", x.b, x.pb, algo.alignment);
    check_matrix("C", x.c, x.pc, algo.alignment);
    check_matrix("D", x.d, x.pd, algo.alignment);
    if (workspace_bytes < algo.workspace) bug("cublasLtMatmul: the workspace is too small");
    if (algo.workspace) check_device_range(x.workspace, algo.workspace, "cublasLtMatmul: workspace");
    for (const float *scale : {x.desc.scale_a, x.desc.scale_b})
        if (scale) check_device_range(scale, sizeof *scale, "cublasLtMatmul: scale");
    if (has_bias(x.desc.epilogue))
        check_device_range(x.desc.bias, (size_t)x.m * size_of(x.d.type), "cublasLtMatmul: bias");
    if (x.desc.epilogue == CUBLASLT_EPILOGUE_BGRADB)
        check_device_range(x.desc.bias, (size_t)x.n * size_of(x.d.type), "cublasLtMatmul: bias gradient");
    if (keeps_aux(x.desc.epilogue) || x.desc.epilogue == CUBLASLT_EPILOGUE_DGELU)
        check_matrix("aux", {x.d.type, x.d.rows, x.d.cols, x.desc.aux_ld}, x.desc.aux, 16);
}

}  // namespace sim

using namespace sim;

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = (cublasLtHandle_t) new char;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete (char *)handle;
    return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }
const char *cublasLtGetStatusName(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_NOT_SUPPORTED";
}

/* --- descriptors --- */

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    matmul_desc *made = new matmul_desc();
    made->compute = compute;
    *desc = (cublasLtMatmulDesc_t)made;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    delete (matmul_desc *)desc;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle,
                                              cublasLtMatmulDescAttributes_t attribute, const void *value,
                                              size_t bytes) {
    matmul_desc *desc = (matmul_desc *)handle;
    auto set = [&](auto &member) {
        if (bytes != sizeof member)
            bug("cuBLASLt: attribute %d takes %zu bytes", (int)attribute, sizeof member);
        memcpy(&member, value, sizeof member);
    };
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        set(desc->transpose_a);
        break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        set(desc->transpose_b);
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        set(desc->epilogue);
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        set(desc->bias);
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
        set(desc->aux);
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
        set(desc->aux_ld);
        break;
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
        set(desc->scale_a);
        break;
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
        set(desc->scale_b);
        break;
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
        set(desc->fast_accumulation);
        break;
    default:
        bug("cublasLtMatmulDescSetAttribute: attribute %d is not simulated", (int)attribute);
    }
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
    if (type != CUDA_R_32F && type != CUDA_R_16BF && !is_fp8(type))
        bug("cuBLASLt: data type %d is not simulated", (int)type);
    *layout = (cublasLtMatrixLayout_t) new matrix_layout{type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    delete (matrix_layout *)layout;
    return CUBLAS_STATUS_SUCCESS;
}

/* --- choosing an algorithm --- */

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    *p = (cublasLtMatmulPreference_t) new preference();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    delete (preference *)p;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes) {
    preference *p = (preference *)handle;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        memcpy(&p->workspace, value, bytes);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        memcpy(&p->alignment[0], value, bytes);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        memcpy(&p->alignment[1], value, bytes);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        memcpy(&p->alignment[2], value, bytes);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        memcpy(&p->alignment[3], value, bytes);
        break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        memcpy(&p->schemes, value, bytes);
        break;
    default:
        bug("cublasLtMatmulPreferenceSetAttribute: attribute %d is not simulated", (int)attribute);
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* The rules for fp8 before Blackwell: both operands are fp8, and not both e5m2; A is transposed, B is not;
 * all dimensions are multiples of 16; compute capability 8.9 or more. Here also: no epilogue but BIAS. */
static bool fp8_supported(const matmul_desc &desc, const matrix_layout &a, const matrix_layout &b,
                          const matrix_layout &d) {
    cudaDeviceProp properties;
    cudaGetDeviceProperties(&properties, 0);
    bool form = desc.transpose_a == CUBLAS_OP_T && desc.transpose_b == CUBLAS_OP_N;
    bool types = is_fp8(a.type) && is_fp8(b.type) && d.type == CUDA_R_16BF &&
                 !(a.type == CUDA_R_8F_E5M2 && b.type == CUDA_R_8F_E5M2);
    bool epilogue = desc.epilogue == CUBLASLT_EPILOGUE_DEFAULT || desc.epilogue == CUBLASLT_EPILOGUE_BIAS;
    uint64_t dimensions = a.rows | a.cols | b.rows | b.cols | (uint64_t)(a.ld | b.ld | d.ld);
    return form && types && epilogue && dimensions % 16 == 0 &&
           10 * properties.major + properties.minor >= 89;
}

/* SIM_BLAS_EPILOGUES=0 simulates a library without algorithms for any fused epilogue but BIAS. */
static bool supported(const matmul_desc &desc, const matrix_layout &a, const matrix_layout &b,
                      const matrix_layout &d) {
    if (is_fp8(a.type) || is_fp8(b.type)) return fp8_supported(desc, a, b, d);
    if (desc.scale_a || desc.scale_b) return false;
    const char *wanted = getenv("SIM_BLAS_EPILOGUES");
    bool fused = desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT && desc.epilogue != CUBLASLT_EPILOGUE_BIAS;
    return !(fused && wanted && strcmp(wanted, "0") == 0);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t handle, int room,
                                              cublasLtMatmulHeuristicResult_t results[], int *found) {
    const preference *p = (const preference *)handle;
    *found = 0;
    if (!supported(*(matmul_desc *)desc, *(matrix_layout *)a, *(matrix_layout *)b, *(matrix_layout *)d))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (; *found < room && *found < 3; ++*found) { /* three that differ in their workspace only */
        cublasLtMatmulHeuristicResult_t *r = &results[*found];
        memset(r, 0, sizeof *r);
        uint32_t least =
            std::min(std::min(p->alignment[0], p->alignment[1]), std::min(p->alignment[2], p->alignment[3]));
        bool needs_space = *found != 1 && p->workspace >= WORKSPACE;
        bool rounds =
            p->schemes & CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE && ((matrix_layout *)d)->type == CUDA_R_16BF;
        algorithm algo = {ALGORITHM_MAGIC, least, needs_space ? (uint64_t)WORKSPACE : 0, rounds};
        memcpy(&r->algo, &algo, sizeof algo);
        r->workspaceSize = (size_t)algo.workspace;
    }
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                       const cublasLtMatmulAlgo_t *handle,
                                       cublasLtMatmulHeuristicResult_t *result) {
    algorithm algo;
    memcpy(&algo, handle, sizeof algo);
    result->workspaceSize = (size_t)algo.workspace;
    return algo.magic == ALGORITHM_MAGIC ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* --- running --- */

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t layout_a, const void *b, cublasLtMatrixLayout_t layout_b,
                              const void *beta, const void *c, cublasLtMatrixLayout_t layout_c, void *d,
                              cublasLtMatrixLayout_t layout_d, const cublasLtMatmulAlgo_t *handle,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream) {
    SIM_API_LOCK;
    product x = {*(matmul_desc *)desc,
                 *(matrix_layout *)layout_a,
                 *(matrix_layout *)layout_b,
                 *(matrix_layout *)layout_c,
                 *(matrix_layout *)layout_d,
                 a,
                 b,
                 c,
                 d,
                 workspace,
                 *(const float *)alpha,
                 *(const float *)beta,
                 0,
                 0,
                 0,
                 false};
    x.m = (int64_t)x.d.rows;
    x.n = (int64_t)x.d.cols;
    x.k = (int64_t)(x.desc.transpose_a == CUBLAS_OP_N ? x.a.cols : x.a.rows);
    algorithm algo;
    memcpy(&algo, handle, sizeof algo);
    if (!supported(x.desc, x.a, x.b, x.d)) return CUBLAS_STATUS_NOT_SUPPORTED;
    check_product(x, algo, workspace_bytes);
    if (!algo.workspace) x.workspace = nullptr;
    x.rounds_halves = algo.rounds_halves;
    enqueue(stream, [x] { multiply(x); });
    return CUBLAS_STATUS_SUCCESS;
}
}
