/* A GPU, or the simulated one, as a device: memory, copies, streams, graphs, rates, and tuning of matmuls.
 * On the simulated one also every message that says why no GPU can be used. */
#include "test/test.h"

#include "llmc/ops/ctx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct device *open_with(const struct device_options *options) {
    struct error err;
    struct device *d = device_open_cuda(0, options, &err);
    check(d, "these tests need a GPU, or the simulated one (make sim): %s", err.message);
    return d;
}
static struct device *open_device(void) { return open_with(NULL); }
static bool simulated(const struct device *d) { return strcmp(d->name, "simulated device") == 0; }

static void test_memory_and_copies(void **state) {
    enum { N = 1000 };
    struct device *d = open_device();
    assert_string_equal(d->backend, "cuda");
    assert_string_equal(d->short_name, "cuda:0");
    assert_false(d->unified);
    assert_int_equal(d->dtype, DTYPE_BF16);
    int64_t before, after, total;
    d->memory_info(d, &before, &total);
    assert_true(before > 0 && before <= total);
    size_t bytes = (size_t)64 << 20;
    char *a = (char *)d->alloc(d, bytes), *b = (char *)d->alloc(d, bytes);
    assert_true((uintptr_t)a % 256 == 0 && (uintptr_t)b % 256 == 0);
    d->memory_info(d, &after, &total);
    assert_true(after < before);
    char *host = (char *)d->alloc_host(d, N), pageable[N];
    for (int i = 0; i < N; i++) pageable[i] = (char)i;
    d->upload(d, a, pageable, N, d->stream);
    memset(pageable, 0, N); /* allowed at once, because it is not from alloc_host() */
    d->copy(d, b + 5, a, N, d->stream);
    d->download(d, host, b + 5, N, d->stream);
    d->synchronize(d, d->stream);
    for (int i = 0; i < N; i++) assert_int_equal(host[i], (char)i);
    d->free_host(d, host);
    d->free(d, a);
    d->free(d, b);
    /* more than there is gives NULL and does not disturb the device */
    assert_null(d->alloc(d, (size_t)1 << 50));
    a = (char *)d->alloc(d, 1);
    assert_non_null(a);
    d->free(d, a);
    d->close(d);
}

static void test_events_and_graphs(void **state) {
    struct device *d = open_device();
    float *x = (float *)d->alloc(d, 8), got[2];
    float *host = (float *)d->alloc_host(d, 8);
    void *first = d->event_new(d), *last = d->event_new(d);
    host[0] = 1;
    host[1] = 2;
    d->event_record(d, first, d->stream);
    d->capture_begin(d, d->stream);
    d->upload(d, x, host, 8, d->stream);
    d->copy(d, x + 1, x, 4, d->stream);
    void *graph = d->capture_end(d, d->stream);
    for (int i = 0; i < 3; i++) { /* a graph reads its inputs when it runs */
        host[0] = (float)(10 + i);
        d->graph_launch(d, graph, d->stream);
        d->event_record(d, last, d->stream);
        d->event_wait(d, last);
        d->download(d, got, x, 8, d->stream);
        d->synchronize(d, d->stream);
        assert_true(got[0] == (float)(10 + i) && got[1] == (float)(10 + i));
    }
    assert_true(d->event_seconds(d, first, last) >= 0.0);
    d->event_free(d, first);
    d->event_free(d, last);
    d->graph_free(d, graph);
    d->free_host(d, host);
    d->free(d, x);
    d->close(d);
}

static void test_rates(void **state) {
    struct device *d = open_device();
    double flops, bytes, least = 1e8;
    int64_t before, after, total;
    d->memory_info(d, &before, &total);
    d->measure(d, &flops, &bytes);
    assert_true(flops > least && flops < 1e17);
    assert_true(bytes > least && bytes < 1e15);
    d->memory_info(d, &after, &total);
    if (simulated(d)) assert_true(after == before); /* a GPU may keep pages for itself */
    d->close(d);
}

/* Copies on two streams, ordered by events. SIM_LAZY=1 notices a wait that does nothing. */
static void test_streams(void **state) {
    enum { ROUNDS = 20 };
    struct device *d = open_device();
    void *other = d->stream_new(d), *here = d->event_new(d), *there = d->event_new(d);
    assert_non_null(other);
    assert_ptr_not_equal(other, d->stream);
    int *a = (int *)d->alloc(d, 4), *b = (int *)d->alloc(d, 4), *c = (int *)d->alloc(d, 4);
    int *host = (int *)d->alloc_host(d, 2 * ROUNDS * sizeof *host);
    for (int i = 0; i < ROUNDS; i++) {
        host[i] = 100 + i;
        d->upload(d, a, host + i, 4, d->stream);
        d->event_record(d, here, d->stream);
        d->stream_wait_event(d, other, here);
        d->copy(d, b, a, 4, other);
        d->event_record(d, there, other);
        d->stream_wait_event(d, d->stream, there);
        d->copy(d, c, b, 4, d->stream);
        d->download(d, host + ROUNDS + i, c, 4, d->stream);
    }
    d->synchronize(d, d->stream);
    for (int i = 0; i < ROUNDS; i++) assert_int_equal(host[ROUNDS + i], 100 + i);
    d->event_free(d, here);
    d->event_free(d, there);
    d->stream_free(d, other);
    d->free_host(d, host);
    d->free(d, a);
    d->free(d, b);
    d->free(d, c);
    d->close(d);
}

/* --- matmul: tuning, and a library without fused epilogues --- */

/* The first element of inp (8,C) @ weight (OC,C)^T, all ones and all `w`: C * w. */
static float product_on(struct device *d, int64_t C, int64_t OC, float w) {
    struct ctx ctx;
    ctx_init(&ctx, d, d->ops, false);
    struct tensor inp = tensor_make("inp", DTYPE_F32, d->alloc(d, (size_t)(8 * C) * 4), 8, C, 0, 0);
    struct tensor weight = tensor_make("weight", DTYPE_F32, d->alloc(d, (size_t)(OC * C) * 4), OC, C, 0, 0);
    struct tensor out = tensor_make("out", DTYPE_F32, d->alloc(d, (size_t)(8 * OC) * 4), 8, OC, 0, 0);
    fill(&ctx, &inp, 1.0f);
    fill(&ctx, &weight, w);
    matmul_forward(&ctx, &out, NULL, &inp, &weight, NULL, ACT_NONE);
    assert_string_equal(ctx.variant_in_use[OP_matmul_forward], "cublaslt");
    float result;
    ctx_download(&ctx, &result, out.data, 4);
    d->free(d, inp.data);
    d->free(d, weight.data);
    d->free(d, out.data);
    ctx_free(&ctx);
    return result;
}
static float product(const struct device_options *options, int64_t C, int64_t OC, float w) {
    struct device *d = open_with(options);
    float result = product_on(d, C, OC, w);
    d->close(d);
    return result;
}

static int lines_of(const char *path) {
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    int lines = 0;
    for (int c; (c = getc(f)) != EOF;) lines += c == '\n';
    fclose(f);
    return lines;
}

static void test_tuning_is_remembered(void **state) {
    char directory[] = "/tmp/test_cuda_device.XXXXXX";
    assert_non_null(mkdtemp(directory));
    char *path = xasprintf("%s/tune", directory);
    struct device_options tuned = {.tune_file = path};
    assert_true(product(&tuned, 32, 16, 1.0f) == 32.0f);
    assert_int_equal(lines_of(path), 1);
    assert_true(product(&tuned, 32, 16, 1.0f) == 32.0f); /* known */
    assert_int_equal(lines_of(path), 1);
    assert_true(product(&tuned, 64, 16, 1.0f) == 64.0f); /* another shape */
    assert_int_equal(lines_of(path), 2);
    FILE *f = fopen(path, "w"); /* damage: the choice is made again */
    fputs("not a line of a tuning file\nkey zz\n", f);
    fclose(f);
    assert_true(product(&tuned, 32, 16, 1.0f) == 32.0f);
    assert_int_equal(lines_of(path), 3);
    unlink(path);
    rmdir(directory);
    free(path);
}

static void test_small_products_are_not_timed(void **state) {
    char directory[] = "/tmp/test_cuda_device.XXXXXX";
    assert_non_null(mkdtemp(directory));
    char *path = xasprintf("%s/new/tune", directory), *parent = xasprintf("%s/new", directory);
    struct device_options options = {.tune_file = path, .tune_flops = 2.0 * 8 * 16 * 64};
    assert_true(product(&options, 32, 16, 1.0f) == 32.0f);
    assert_int_equal(access(path, F_OK), -1);
    assert_true(product(&options, 64, 16, 1.0f) == 64.0f);
    assert_int_equal(lines_of(path), 1);
    unlink(path);
    rmdir(parent);
    rmdir(directory);
    free(path);
    free(parent);
}

/* Two processes may start with the same empty file. */
static void test_first_choice_holds_for_all(void **state) {
    char path[] = "/tmp/test_cuda_device.XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && close(fd) == 0);
    struct device_options options = {.tune_file = path};
    struct device *first = open_with(&options), *second = open_with(&options);
    assert_true(product_on(first, 32, 16, 1.0f) == 32.0f);
    assert_true(product_on(second, 32, 16, 1.0f) == 32.0f);
    assert_int_equal(lines_of(path), 1);
    first->close(first);
    second->close(second);
    unlink(path);
}

/* --- epilogues: in the product, or as a pass --- */

enum { ROWS = 16, COLUMNS = 64, OUT_COLUMNS = 32 };

/* One layer with GELU: forward, and its gradients, dweight and dbias added to the numbers 3. */
struct layer {
    float out[ROWS * OUT_COLUMNS], dinp[ROWS * COLUMNS], dbias[OUT_COLUMNS], dweight[OUT_COLUMNS * COLUMNS];
};
static void run_layer(const struct device_options *options, bool recomputes, struct layer *result) {
    struct device *d = open_with(options);
    struct ctx ctx;
    ctx_init(&ctx, d, d->ops, false);
    ctx.recomputes = recomputes;
    struct tensor t[8];
    static const int64_t shapes[8][2] = {{ROWS, COLUMNS},     {OUT_COLUMNS, COLUMNS}, {ROWS, OUT_COLUMNS},
                                         {ROWS, OUT_COLUMNS}, {ROWS, COLUMNS},        {OUT_COLUMNS, COLUMNS},
                                         {ROWS, OUT_COLUMNS}, {1, OUT_COLUMNS}};
    for (int i = 0; i < 8; i++) {
        int64_t rows = shapes[i][0], cols = shapes[i][1];
        void *memory = ctx_alloc(&ctx, MEM_ACTIVATIONS, rows * cols * 2, "a tensor");
        t[i] = i == 7 ? tensor_make("dbias", DTYPE_BF16, memory, cols, 0, 0, 0)
                      : tensor_make("t", DTYPE_BF16, memory, rows, cols, 0, 0);
        randn(&ctx, &t[i], 0.0f, 1.0f, 5, (uint64_t)i);
    }
    struct tensor *inp = &t[0], *weight = &t[1], *out = &t[2], *pre = &t[3], *dinp = &t[4], *dweight = &t[5],
                  *dout = &t[6], *dbias = &t[7];
    matmul_forward(&ctx, out, pre, inp, weight, NULL, ACT_GELU);
    ctx_download_f32(&ctx, result->out, out);
    fill(&ctx, dweight, 3.0f);
    fill(&ctx, dbias, 3.0f);
    fill(&ctx, dout, 1.0f);
    matmul_backward(&ctx, dinp, dweight, dbias, dout, inp, weight, inp, true);
    ctx_download_f32(&ctx, result->dinp, dinp);
    ctx_download_f32(&ctx, result->dweight, dweight);
    ctx_download_f32(&ctx, result->dbias, dbias);
    ctx_free(&ctx);
    d->close(d);
}

/* Makes all decisions between an epilogue and a pass in the file `fused`; returns their number. */
static int decide(const char *path, bool fused) {
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    char text[16384];
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    int count = 0;
    for (char *p = text; (p = strstr(p, ",fuse 0")); count++) p += strlen(",fuse 0"), *p = fused ? '1' : '0';
    rewind(f);
    fputs(text, f);
    fclose(f);
    return count;
}

static void test_epilogues_or_passes(void **state) {
    char path[] = "/tmp/test_cuda_device.XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && close(fd) == 0);
    struct device_options options = {.tune_file = path};
    static struct layer chosen, fused, separate, recomputed, untimed;
    run_layer(&options, false, &chosen);
    int decisions = decide(path, true), lines = lines_of(path);
    struct device *d = open_device();
    if (simulated(d)) { /* a library may lack epilogues for such shapes */
        assert_int_equal(decisions, 3);
        assert_int_equal(lines, 3 + 2 * 3);
    }
    d->close(d);
    run_layer(&options, false, &fused);
    run_layer(&options, true, &recomputed);
    assert_int_equal(decide(path, false), decisions);
    run_layer(&options, false, &separate);
    run_layer(NULL, true, &untimed);
    assert_int_equal(lines_of(path), lines);
    for (int i = 0; i < OUT_COLUMNS; i++) { /* 3 + ROWS ones */
        assert_true(fused.dbias[i] == 3.0f + ROWS && separate.dbias[i] == 3.0f + ROWS);
        assert_true(chosen.dbias[i] == 3.0f + ROWS);
    }
    assert_memory_equal(fused.dweight, separate.dweight, sizeof fused.dweight);
    assert_memory_equal(recomputed.out, separate.out, sizeof fused.out);
    assert_memory_equal(untimed.out, separate.out, sizeof fused.out);
    if (decisions == 3) { /* GELU starts from the sum, or from what it is rounded to */
        assert_memory_not_equal(fused.out, separate.out, sizeof fused.out);
        assert_memory_not_equal(fused.dinp, separate.dinp, sizeof fused.dinp);
    }
    unlink(path);
}

static void test_tf32(void **state) {
    struct device_options tf32 = {.tf32 = true};
    float w = 1.0f + 0x1p-12f; /* TF32 has a 10-bit mantissa and makes it 1 */
    assert_true(product(NULL, 32, 16, w) == 32.0f * w);
    assert_true(product(&tf32, 32, 16, w) == 32.0f);
}

/* --- variants made for one architecture --- */

/* Front doors choose only variants that are made for the device's architecture. */
static void check_architecture(int arch) {
    char *text = xasprintf("%d", arch);
    setenv("SIM_ARCH", text, 1);
    struct device *d = open_device();
    unsetenv("SIM_ARCH");
    assert_int_equal(d->arch, arch);
    free(text);
    struct ctx ctx;
    ctx_init(&ctx, d, d->ops, true);
    assert_true(op_runs_on(&ctx, 0));
    assert_true(op_runs_on(&ctx, arch));
    assert_false(op_runs_on(&ctx, arch + 10));
    struct tensor qkv = tensor_make("qkv", DTYPE_BF16, NULL, 1, 100, 192, 0);
    struct tensor out = tensor_make("out", DTYPE_BF16, NULL, 1, 100, 64, 0);
    struct tensor lse = tensor_make("lse", DTYPE_F32, NULL, 1, 1, 100, 0);
    struct attn_rule rule = {.heads = 1, .kv_heads = 1};
    attn_forward(&ctx, &out, &lse, &qkv, NULL, &rule, 0);
    assert_string_equal(ctx.variant_in_use[OP_attn_forward], arch == 90 ? "hopper" : "flash");
    attn_forward(&ctx, &out, &lse, &qkv, NULL, &rule, 50); /* a span of a generation */
    assert_string_not_equal(ctx.variant_in_use[OP_attn_forward], "hopper");
    ctx_free(&ctx);
    d->close(d);
}

static void test_architecture(void **state) {
    struct device *d = open_device();
    bool simulation = simulated(d);
    assert_true(d->arch >= 80);
    d->close(d);
    if (!simulation) return;
    check_architecture(80);
    check_architecture(90);
}

/* --- why no GPU can be used --- */

static void check_refusal(const char *fault, int index, const char *reason) {
    struct error err = {""};
    if (fault) setenv("SIM_FAULT", fault, 1);
    struct device *d = device_open_cuda(index, NULL, &err);
    unsetenv("SIM_FAULT");
    assert_null(d);
    if (!strstr(err.message, reason)) fail_msg("\"%s\" does not say \"%s\"", err.message, reason);
    assert_non_null(strstr(err.message, "--device cpu works everywhere"));
    assert_null(strchr(err.message, '\n'));
}

/* How often --device auto, which takes the CPU, says that there is a GPU. */
static int warnings_of_auto(const char *fault) {
    struct error err;
    char text[2048] = "", *at = text;
    FILE *file = tmpfile();
    int kept = dup(STDERR_FILENO), count = 0;
    assert_true(file && kept >= 0 && dup2(fileno(file), STDERR_FILENO) >= 0);
    setenv("SIM_FAULT", fault, 1);
    struct device *d = device_open("auto", NULL, &err);
    unsetenv("SIM_FAULT");
    dup2(kept, STDERR_FILENO);
    close(kept);
    assert_string_equal(d->backend, "cpu");
    d->close(d);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    for (; (at = strstr(at, "there is a GPU, but the CPU is used: ")); at++) count++;
    return count;
}

static void test_refusals(void **state) {
    struct device *d = open_device();
    bool simulation = simulated(d);
    d->close(d);
    check_refusal(NULL, 977, "--device cuda:977: this machine has ");
    if (!simulation) return;
    check_refusal("no-driver", 0, "no NVIDIA driver");
    check_refusal("no-device", 0, "finds no GPU");
    check_refusal("old-driver", 0, "supports CUDA up to 11.4");
    check_refusal("old-device", 0, "compute capability 7.0 and is too old");
    check_refusal("other-device", 0, "CUDA_ARCH=90a");
    struct error err;
    setenv("SIM_FAULT", "no-device", 1);
    d = device_open("auto", NULL, &err); /* no GPU: the CPU */
    unsetenv("SIM_FAULT");
    assert_string_equal(d->backend, "cpu");
    d->close(d);
    assert_int_equal(warnings_of_auto("no-driver"), 0);
    assert_int_equal(warnings_of_auto("no-device"), 0);
    assert_int_equal(warnings_of_auto("old-driver"), 1);
    assert_int_equal(warnings_of_auto("old-device"), 1);
    assert_int_equal(warnings_of_auto("other-device"), 1);
    d = device_open("auto", NULL, &err);
    assert_string_equal(d->backend, "cuda");
    d->close(d);
}

/* --- several GPUs --- */

static void test_identity(void **state) {
    struct error err = {""};
    int gpus = device_count_cuda(&err);
    struct device *d = open_device();
    bool simulation = simulated(d);
    assert_true(gpus >= 1);
    assert_true(strncmp(d->id, "GPU-", 4) == 0 && strlen(d->id) == 40);
    if (gpus > 1) {
        struct device *e = device_open_cuda(1, NULL, &err);
        assert_int_equal(e->index, 1);
        assert_string_not_equal(d->id, e->id);
        e->close(e);
    }
    d->close(d);
    if (!simulation) return;
    assert_int_equal(gpus, 2);
    setenv("SIM_FAULT", "no-device", 1);
    assert_int_equal(device_count_cuda(&err), 0);
    unsetenv("SIM_FAULT");
    assert_non_null(strstr(err.message, "finds no GPU"));
}

int main(int argc, char **argv) {
    setenv("SIM_GPUS", "2", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_and_copies),
        cmocka_unit_test(test_events_and_graphs),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_tuning_is_remembered),
        cmocka_unit_test(test_small_products_are_not_timed),
        cmocka_unit_test(test_first_choice_holds_for_all),
        cmocka_unit_test(test_epilogues_or_passes),
        cmocka_unit_test(test_tf32),
        cmocka_unit_test(test_architecture),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_identity),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
