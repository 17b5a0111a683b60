/* fp8 on the device, beyond what the op tests check: conversions of every number, scales, copies against
 * plain loops, operands that are not finite, the rules of cuBLASLt, and ten steps of training.
 *     test_cuda_fp8 [NAME]                    only the tests whose name matches ("training")
 *     LLMC_TEST_SIZE=small test_cuda_fp8      one step, for a race checker */
#include "test/cuda/test_cuda.h"

#include "llmc/cuda/fp8.cuh"
#include "llmc/model/optimizer.h"

#include <cublasLt.h>
#include <cstdlib>

/* --- conversions --- */

/* codes (n/2): pairs of x in fp8; back (n): x rounded to fp8 with this scale. */
template <fp8_format F>
static __global__ void convert_kernel(uint16_t *codes, float *back, const float *x, int n, float scale) {
    int i = 2 * (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    codes[i / 2] = (uint16_t)fp8_pair<F>(x[i] * scale, x[i + 1] * scale);
    for (int k = 0; k < 2; k++) back[i + k] = fp8_through_device<F>(x[i + k], scale);
}

static bool same_number(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

template <fp8_format F> static void check_conversions() {
    const int n = 1 << 16;
    buffer<float> x(n), back(n);
    buffer<uint16_t> codes(n / 2);
    for (int i = 0; i < n; i++) x.host[(size_t)i] = f32_from_bf16((uint16_t)i);
    x.upload();
    for (float scale : {1.0f, 0x1p-20f, 0x1p7f, 1.0f / 3.0f}) {
        launch({n / 512, 256}, convert_kernel<F>, codes.device, back.device, x.device, n, scale);
        codes.download();
        back.download();
        for (int i = 0; i < n; i++) {
            float v = x.host[(size_t)i], want = fp8_round(F, v * scale);
            uint8_t code = (uint8_t)(codes.host[(size_t)i / 2] >> i % 2 * 8);
            float got = fp8_value(F, code);
            if (!same_number(got, want))
                fail_msg("%.9g becomes %.9g (code %02x), not %.9g", (double)(v * scale), (double)got, code,
                         (double)want);
            if (!same_number(back.host[(size_t)i], fp8_through(F, v, scale)))
                fail_msg("%.9g comes back as %.9g", (double)v, (double)back.host[(size_t)i]);
        }
    }
}

/* Every bf16 number, including those beyond the range and NaN, in both formats. */
static void test_conversions(void **) {
    check_conversions<FP8_E4M3>();
    check_conversions<FP8_E5M2>();
}

static __global__ void scale_kernel(float *scale_e4m3, float *scale_e5m2, const float *amax, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    scale_e4m3[i] = fp8_scale_of<FP8_E4M3>(magnitude_bits(amax[i]));
    scale_e5m2[i] = fp8_scale_of<FP8_E5M2>(magnitude_bits(amax[i]));
}

static void test_scales(void **) {
    const int n = 1 << 15; /* every magnitude in bf16 */
    buffer<float> amax(n), scale_e4m3(n), scale_e5m2(n);
    for (int i = 0; i < n; i++) amax.host[(size_t)i] = f32_from_bf16((uint16_t)i);
    amax.upload();
    launch({n / 256, 256}, scale_kernel, scale_e4m3.device, scale_e5m2.device, amax.device, n);
    scale_e4m3.download();
    scale_e5m2.download();
    for (size_t i = 0; i < (size_t)n; i++) {
        if (!same_number(scale_e4m3.host[i], fp8_scale(FP8_E4M3, amax.host[i])) ||
            !same_number(scale_e5m2.host[i], fp8_scale(FP8_E5M2, amax.host[i])))
            fail_msg("magnitude %.9g: scales %.9g, %.9g", (double)amax.host[i], (double)scale_e4m3.host[i],
                     (double)scale_e5m2.host[i]);
    }
}

/* --- copies --- */

/* Each element is in its place in both copies, to the bit, and nothing is written beside them. */
static void check_copies(fp8_format format, int64_t N, int64_t C, bool as_is, bool transposed) {
    enum { GUARD = 64 };
    int64_t n = N * C;
    buffer<bf16> x(n);
    buffer<uint8_t> rows(n + GUARD), columns(n + GUARD);
    buffer<uint32_t> parts(AMAX_MOST);
    buffer<float> descale(1);
    float largest = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float v = (float)(rng_uniform(5, RNG_TEST, (uint64_t)i) - 0.5) * (i % 97 == 3 ? 1e-3f : 1.0f);
        x.host[(size_t)i] = from_float_host<bf16>(v);
        largest = fmaxf(largest, fabsf(to_float_host(x.host[(size_t)i])));
    }
    x.upload();
    amax a = {parts.device, 0};
    find_amax(nullptr, &a, x.device, n);
    fp8_copies out = {as_is ? rows.device : nullptr, transposed ? columns.device : nullptr, descale.device};
    fp8_copy(nullptr, format, out, x.device, a, N, C);
    rows.download();
    columns.download();
    descale.download();
    float scale = fp8_scale(format, largest);
    assert_true(descale.host[0] == 1.0f / scale);
    for (int64_t i = 0; i < n + GUARD; i++) {
        bool inside = i < n;
        float v = inside ? to_float_host(x.host[(size_t)i]) : 0.0f, want = fp8_round(format, v * scale);
        int64_t t = inside ? i % C * N + i / C : i;
        if (inside && as_is && fp8_value(format, rows.host[(size_t)i]) != want)
            fail_msg("(%d,%d) of %dx%d is wrong", (int)(i / C), (int)(i % C), (int)N, (int)C);
        if (inside && transposed && fp8_value(format, columns.host[(size_t)t]) != want)
            fail_msg("(%d,%d) of %dx%d, transposed, is wrong", (int)(i / C), (int)(i % C), (int)N, (int)C);
        if ((!inside || !as_is) && rows.host[(size_t)i] != 0xff) fail_msg("rows: %d was written", (int)i);
        if ((!inside || !transposed) && columns.host[(size_t)t] != 0xff)
            fail_msg("columns: %d was written", (int)t);
    }
}

static void test_copies(void **) {
    for (fp8_format format : {FP8_E4M3, FP8_E5M2}) {
        check_copies(format, 16, 16, true, true);
        check_copies(format, 144, 272, true, true);
        check_copies(format, 256, 128, false, true);
        check_copies(format, 48, 144, true, false);
    }
}

/* --- not finite --- */

struct gpu {
    struct device *device;
    struct ctx ctx;
};
static void gpu_open(gpu *g) {
    struct error err;
    g->device = device_open_cuda(0, NULL, &err);
    check(g->device, "%s", err.message);
    ctx_init(&g->ctx, g->device, g->device->ops, false);
}
static void gpu_close(gpu *g) {
    ctx_free(&g->ctx);
    g->device->close(g->device);
}

/* With one NaN or infinity anywhere in an operand, everything computed from it is NaN, so that the step is
 * skipped, as without fp8. */
static void test_not_finite(void **) {
    const int N = 32, C = 48, OC = 16;
    gpu g;
    gpu_open(&g);
    buffer<bf16> inp(N * C), weight(OC * C), out(N * OC), dout(N * OC), dinp(N * C), dweight(OC * C);
    struct tensor x = tensor_make("inp", DTYPE_BF16, inp.device, N, C, 0, 0);
    struct tensor w = tensor_make("weight", DTYPE_BF16, weight.device, OC, C, 0, 0);
    struct tensor y = tensor_make("out", DTYPE_BF16, out.device, N, OC, 0, 0);
    struct tensor dy = tensor_make("dout", DTYPE_BF16, dout.device, N, OC, 0, 0);
    struct tensor dx = tensor_make("dinp", DTYPE_BF16, dinp.device, N, C, 0, 0);
    struct tensor dw = tensor_make("dweight", DTYPE_BF16, dweight.device, OC, C, 0, 0);
    w.fp8 = true;
    buffer<uint8_t> stored(N * C);
    buffer<float> descale(1);
    struct tensor dx8 = tensor_make("dinp", DTYPE_E5M2, stored.device, N, C, 0, 0);
    dx8.fp8 = true, dx8.descale = descale.device;
    for (float bad : {NAN, INFINITY, -INFINITY})
        for (int where = 0; where < 3; where++) {
            for (auto *b : {&inp, &weight, &dout})
                for (size_t i = 0; i < b->host.size(); i++)
                    b->host[i] = from_float_host<bf16>((float)(i % 7) - 3.0f);
            (where == 0   ? inp
             : where == 1 ? weight
                          : dout)
                .host[where == 0 ? N * C - 1 : 5] = from_float_host<bf16>(bad);
            for (auto *b : {&inp, &weight, &dout}) b->upload();
            matmul_forward(&g.ctx, &y, nullptr, &x, &w, nullptr, ACT_NONE);
            assert_string_equal(g.ctx.variant_in_use[OP_matmul_forward], "fp8");
            matmul_backward(&g.ctx, &dx, &dw, nullptr, &dy, &x, &w, nullptr, false);
            assert_string_equal(g.ctx.variant_in_use[OP_matmul_backward], "fp8");
            matmul_backward(&g.ctx, &dx8, nullptr, nullptr, &dy, &x, &w, &dx,
                            false); /* dx as pre-activation */
            g.device->synchronize(g.device, g.ctx.stream);
            stored.download();
            for (uint8_t code : stored.host)
                assert_true(std::isnan(fp8_value(FP8_E5M2, code)) == (where != 0));
            for (auto *b : {&out, &dinp, &dweight}) b->download();
            for (bf16 v : out.host) assert_true(std::isnan(to_float_host(v)) == (where != 2));
            for (bf16 v : dinp.host) assert_true(std::isnan(to_float_host(v)) == (where != 0));
            for (bf16 v : dweight.host) assert_true(std::isnan(to_float_host(v)) == (where != 1));
        }
    gpu_close(&g);
}

/* On a GPU without fp8 tensor cores, which the simulated one imitates, the library has no algorithm. The
 * naive kernel then computes the same, and bias gradients are added once. */
static void test_without_tensor_cores(void **) {
    const int N = 32, C = 48, OC = 16;
    cudaDeviceProp p;
    setenv("SIM_ARCH", "86", 1);
    cuda_check(cudaGetDeviceProperties(&p, 0));
    if (p.major != 8 || p.minor != 6) {
        unsetenv("SIM_ARCH");
        skip();
    }
    gpu g;
    gpu_open(&g);
    buffer<bf16> inp(N * C), weight(OC * C), out(N * OC), dout(N * OC), dinp(N * C), dweight(OC * C),
        dbias(OC);
    struct tensor x = tensor_make("inp", DTYPE_BF16, inp.device, N, C, 0, 0);
    struct tensor w = tensor_make("weight", DTYPE_BF16, weight.device, OC, C, 0, 0);
    struct tensor y = tensor_make("out", DTYPE_BF16, out.device, N, OC, 0, 0);
    struct tensor dy = tensor_make("dout", DTYPE_BF16, dout.device, N, OC, 0, 0);
    struct tensor dx = tensor_make("dinp", DTYPE_BF16, dinp.device, N, C, 0, 0);
    struct tensor dw = tensor_make("dweight", DTYPE_BF16, dweight.device, OC, C, 0, 0);
    struct tensor db = tensor_make("dbias", DTYPE_BF16, dbias.device, OC, 0, 0, 0);
    w.fp8 = true;
    for (auto *b : {&inp, &weight, &dout, &dweight, &dbias}) { /* integers, so that sums are exact */
        for (size_t i = 0; i < b->host.size(); i++)
            b->host[i] = from_float_host<bf16>((float)(i * 5 % 7) - 3.0f);
        b->upload();
    }
    auto at = [](const buffer<bf16> &b, int i) { return to_float_host(b.host[(size_t)i]); };
    std::vector<float> want_out(N * OC), want_dweight(OC * C), want_dbias(OC);
    for (int o = 0; o < OC; o++) {
        want_dbias[(size_t)o] = at(dbias, o);
        for (int n = 0; n < N; n++) want_dbias[(size_t)o] += at(dout, n * OC + o);
        for (int c = 0; c < C; c++) {
            float *sum = &want_dweight[(size_t)(o * C + c)];
            *sum = at(dweight, o * C + c);
            for (int n = 0; n < N; n++) *sum += at(dout, n * OC + o) * at(inp, n * C + c);
        }
        for (int n = 0; n < N; n++)
            for (int c = 0; c < C; c++)
                want_out[(size_t)(n * OC + o)] += at(inp, n * C + c) * at(weight, o * C + c);
    }
    matmul_forward(&g.ctx, &y, nullptr, &x, &w, nullptr, ACT_NONE);
    matmul_backward(&g.ctx, &dx, &dw, &db, &dy, &x, &w, nullptr, true);
    assert_string_equal(g.ctx.variant_in_use[OP_matmul_backward], "fp8");
    g.device->synchronize(g.device, g.ctx.stream);
    for (auto *b : {&out, &dweight, &dbias}) b->download();
    auto stored = [](float v) { return to_float_host(from_float_host<bf16>(v)); };
    for (int i = 0; i < N * OC; i++) assert_true(at(out, i) == stored(want_out[(size_t)i]));
    for (int i = 0; i < OC * C; i++) assert_true(at(dweight, i) == stored(want_dweight[(size_t)i]));
    for (int i = 0; i < OC; i++) assert_true(at(dbias, i) == stored(want_dbias[(size_t)i]));
    gpu_close(&g);
    unsetenv("SIM_ARCH");
}

/* --- cuBLASLt --- */

/* Is there an algorithm for d (m,n) = op(a) @ op(b), column-major, of these types? */
static bool possible(cudaDataType_t type_a, cudaDataType_t type_b, bool transpose_a, bool transpose_b, int m,
                     int n, int k) {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t result;
    size_t workspace = 1 << 20;
    int found = 0;
    cublasOperation_t ta = transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                      tb = transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    assert_int_equal(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
    cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb);
    int rows_a = transpose_a ? k : m, rows_b = transpose_b ? n : k;
    cublasLtMatrixLayoutCreate(&a, type_a, (uint64_t)rows_a, (uint64_t)(m + k - rows_a), rows_a);
    cublasLtMatrixLayoutCreate(&b, type_b, (uint64_t)rows_b, (uint64_t)(n + k - rows_b), rows_b);
    cublasLtMatrixLayoutCreate(&d, CUDA_R_16BF, (uint64_t)m, (uint64_t)n, m);
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                         sizeof workspace);
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, d, d, preference, 1, &result, &found);
    assert_true(status == CUBLAS_STATUS_SUCCESS || status == CUBLAS_STATUS_NOT_SUPPORTED);
    cublasLtMatmulPreferenceDestroy(preference);
    for (cublasLtMatrixLayout_t l : {a, b, d}) cublasLtMatrixLayoutDestroy(l);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
    return status == CUBLAS_STATUS_SUCCESS && found == 1;
}

/* Before Blackwell the library takes only the forms for which fp8_copy() makes transposed copies and that
 * need() lets through. */
static void test_what_the_library_takes(void **) {
    cudaDeviceProp p;
    cuda_check(cudaGetDeviceProperties(&p, 0));
    int arch = 10 * p.major + p.minor;
    if (arch < 89 || arch > 90) skip();
    const cudaDataType_t E4M3 = CUDA_R_8F_E4M3, E5M2 = CUDA_R_8F_E5M2;
    assert_true(possible(E4M3, E4M3, true, false, 64, 64, 64));
    assert_true(possible(E4M3, E5M2, true, false, 64, 64, 64));
    assert_false(possible(E5M2, E5M2, true, false, 64, 64, 64));
    assert_false(possible(E4M3, E4M3, false, false, 64, 64, 64));
    assert_false(possible(E4M3, E4M3, true, true, 64, 64, 64));
    assert_false(possible(E4M3, E4M3, false, true, 64, 64, 64));
    assert_false(possible(E4M3, E4M3, true, false, 64, 64, 72));
    assert_false(possible(E4M3, CUDA_R_16BF, true, false, 64, 64, 64));
}

/* --- training --- */

static const struct gpt_config small = GPT2_CONFIG("small", 16, 70, 2, 2, 32);
enum { B = 2, T = 16, STEPS = 10, MICRO = 2 };

struct outcome {
    int steps;
    double loss[STEPS];
    std::vector<float> params;
};

/* 3x+1 modulo the vocabulary, from random starts. */
static void batch_of(int32_t *tokens, int32_t *targets, int number) {
    for (int b = 0; b < B; b++) {
        int32_t x =
            (int32_t)(rng_uniform(3, RNG_TEST, (uint64_t)(number * B + b)) * (double)small.vocab_size);
        for (int i = 0; i < T; i++) {
            tokens[b * T + i] = x;
            targets[b * T + i] = x = (3 * x + 1) % (int32_t)small.vocab_size;
        }
    }
}

static void micro_step(struct gpt *model, struct device *d, void **graph, bool record, bool first) {
    void *stream = model->ctx->stream;
    if (record && !*graph) {
        d->capture_begin(d, stream);
        gpt_forward_backward(model, first);
        *graph = d->capture_end(d, stream);
    }
    if (record)
        d->graph_launch(d, *graph, stream);
    else
        gpt_forward_backward(model, first);
}

/* `record`: micro-steps after the first step are recorded once and then replayed. */
static outcome train(bool cuda, bool fp8, enum recompute recompute, bool record, int steps) {
    gpu g;
    struct gpt model;
    struct optimizer optimizer;
    outcome o = {};
    void *graphs[MICRO] = {};
    o.steps = steps;
    if (cuda) {
        gpu_open(&g);
    } else {
        g.device = device_open_cpu();
        ctx_init(&g.ctx, g.device, g.device->ops, false);
    }
    struct gpt_options options = {};
    options.B = B;
    options.T = T;
    options.train = true;
    options.recompute = recompute;
    options.dtype = cuda ? DTYPE_BF16 : DTYPE_F32;
    options.fp8 = fp8;
    gpt_create(&model, &g.ctx, &small, &options);
    optimizer_create(&optimizer, &model, {OPTIMIZER_ADAMW, cuda});
    gpt_init_weights(&model, 7);
    gpt_set_loss_scale(&model, 1.0f / (float)(MICRO * B * T));
    if (optimizer.has_master) cast(&g.ctx, &optimizer.master, &model.params);
    for (int i = 0; i < o.steps; i++) {
        for (int k = 0; k < MICRO; k++) {
            int32_t tokens[B * T], targets[B * T];
            batch_of(tokens, targets, i * MICRO + k);
            gpt_set_batch(&model, tokens, targets);
            g.device->synchronize(g.device, g.ctx.stream);
            micro_step(&model, g.device, &graphs[k], record && i > 0, k == 0);
        }
        struct update_args args = {3e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1.0f, i + 1, 5, 0, false, 0.0f};
        optimizer_step(&optimizer, &model, &args);
        float loss;
        ctx_download(&g.ctx, &loss, f32(&model.numbers) + STEP_LOSS, sizeof loss);
        o.loss[i] = (double)loss;
    }
    if (cuda) {
        const char *head = g.ctx.variant_in_use[OP_matmul_forward],
                   *blocks = g.ctx.variant_in_use[OP_matmul_backward];
        if (recompute == RECOMPUTE_NONE) assert_string_equal(head, "cublaslt");
        assert_string_equal(blocks, fp8 ? "fp8" : "cublaslt");
    }
    o.params.resize((size_t)tensor_count(&model.params));
    ctx_download_f32(&g.ctx, o.params.data(), &model.params);
    for (void *graph : graphs)
        if (graph) g.device->graph_free(g.device, graph);
    gpu_close(&g);
    return o;
}

/* The same bits, as far as the shorter run went. */
static void assert_identical(const outcome &a, const outcome &b, const char *what) {
    int steps = a.steps < b.steps ? a.steps : b.steps;
    if (memcmp(a.loss, b.loss, (size_t)steps * sizeof *a.loss) != 0) fail_msg("%s: losses differ", what);
    if (a.steps == b.steps && a.params != b.params) fail_msg("%s: parameters differ", what);
}

/* Against the CPU, which rounds the same operands to fp8: what differs is rounding to bf16, and elements
 * that it moves across a boundary between fp8 numbers. Each matmul adds an error of 2^-6
 * (llmc/cli/compare.c). Eight matmuls lead to the logits, which are below 1 here, so a logit is off by 2^-6
 * sqrt(8), and a loss is the mean of 64. At the start that is 5.5e-3 of a nat, 1.3e-3 of the loss;
 * differences of weights double it by the end. Against bf16: fp8 rounds each of two operands with an error
 * of 2^-4 at most, 2^-4/sqrt(3) in the mean square, which is 3.3 times as much by the same count. */
static void test_training(void **) {
    const char *size = getenv("LLMC_TEST_SIZE");
    bool small_test = size && strcmp(size, "small") == 0;
    int steps = small_test ? 1 : STEPS;
    outcome fp8 = train(true, true, RECOMPUTE_NONE, false, steps);
    if (!small_test) assert_identical(fp8, train(true, true, RECOMPUTE_NONE, true, steps), "recorded graphs");
    for (int level = RECOMPUTE_ACT; !small_test && level <= RECOMPUTE_BLOCK; level++)
        assert_identical(fp8, train(true, true, (enum recompute)level, false, 3), "recomputation");
    outcome cpu = train(false, true, RECOMPUTE_NONE, false, steps);
    outcome bf16_too = train(true, false, RECOMPUTE_NONE, false, steps);
    for (int i = 0; i < fp8.steps; i++) {
        double share = 1.3e-3 * (1.0 + (double)i / STEPS);
        if (!(fabs(fp8.loss[i] - cpu.loss[i]) <= share * cpu.loss[i]))
            fail_msg("step %d: loss %.9g, on the CPU %.9g", i + 1, fp8.loss[i], cpu.loss[i]);
        if (!(fabs(fp8.loss[i] - bf16_too.loss[i]) <= 3.3 * share * cpu.loss[i]))
            fail_msg("step %d: loss %.9g, in bf16 %.9g", i + 1, fp8.loss[i], bf16_too.loss[i]);
    }
    assert_true(memcmp(fp8.loss, bf16_too.loss, sizeof fp8.loss) != 0);
    assert_true(fp8.steps < STEPS || fp8.loss[STEPS - 1] < fp8.loss[0] - 0.1); /* it learns */
}

int main(int argc, char **argv) {
    require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_without_tensor_cores),
        cmocka_unit_test(test_what_the_library_takes),
        cmocka_unit_test(test_training),
    };
    return test_main(argc, argv, tests, nullptr, nullptr);
}
