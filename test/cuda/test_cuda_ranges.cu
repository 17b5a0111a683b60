/* The ranges of a training step that NVTX reports to a profiler. A small injection library, linked into
 * this program, takes the place of Nsight: NVTX gives it a table of callbacks, and it records what is
 * pushed and popped. */
#include "test/cuda/test_cuda.h"

#include "llmc/model/gpt.h"
#include "llmc/model/optimizer.h"

#include <cstdio>
#include <cstdlib>

#define NVTX_STATIC_INJECTION_IMPL /* the library's entry is defined below, not by NVTX */
extern "C" int (*InitializeInjectionNvtx2_fnptr)(const void *(*get_table)(uint32_t id));
#include <nvtx3/nvToolsExt.h>

/* --- the injection library --- */

static char seen[1 << 14]; /* "forward{embed_forward{}norm_forward{}..." */
static size_t used;
static int depth;

static void note(const char *text) {
    size_t n = strlen(text);
    assert_true(used + n < sizeof seen);
    memcpy(seen + used, text, n + 1);
    used += n;
}
static int on_push(const char *name) {
    note(name);
    note("{");
    return depth++;
}
static int on_pop(void) {
    note("}");
    return --depth;
}

static int injected(NvtxGetExportTableFunc_t get_table) {
    const NvtxExportTableCallbacks *callbacks =
        (const NvtxExportTableCallbacks *)get_table(NVTX_ETID_CALLBACKS);
    NvtxFunctionTable table = NULL;
    unsigned int size = 0;
    if (!callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size)) return 0;
    *table[NVTX_CBID_CORE_RangePushA] = (NvtxFunctionPointer)on_push;
    *table[NVTX_CBID_CORE_RangePop] = (NvtxFunctionPointer)on_pop;
    return 1;
}
NvtxInitializeInjectionNvtxFunc_t InitializeInjectionNvtx2_fnptr = injected;

/* --- the step --- */

/* The text from the first range of this name on; `matmul_backward{` is not a range `backward{`. */
static const char *find_range(const char *where, const char *name) {
    size_t n = strlen(name);
    for (const char *p = where; (p = strstr(p, name)) != NULL; p++)
        if (p[n] == '{' && (p == where || p[-1] == '{' || p[-1] == '}')) return p;
    return NULL;
}

static int count_of(const char *where, const char *name) {
    int count = 0;
    for (const char *p = where; (p = find_range(p, name)) != NULL; p += strlen(name)) count++;
    return count;
}

/* The contents of the first range of this name; the caller frees them. */
static char *range_of(const char *name) {
    const char *start = find_range(seen, name), *end;
    if (!start) fail_msg("no range %s in %s", name, seen);
    start += strlen(name) + 1;
    int open = 1;
    for (end = start; *end; end++) {
        open += (*end == '{') - (*end == '}');
        if (open == 0) break;
    }
    assert_int_equal(open, 0);
    char *text = (char *)xcalloc((size_t)(end - start) + 1, 1);
    memcpy(text, start, (size_t)(end - start));
    return text;
}

static void test_ranges_of_a_step(void **state) {
#if NVTX_LOAD_SEQUENCE_VERSION < 2
    skip(); /* an NVTX (before CUDA 13) that cannot be given a library at link time */
#endif
    struct error err;
    struct device *device = device_open_cuda(0, NULL, &err);
    check(device, "these tests need a GPU, or the simulated one (make sim): %s", err.message);
    struct gpt_config config = GPT2_CONFIG("test", 8, 20, 2, 2, 16);
    struct gpt_options options = {};
    options.B = 1, options.T = 8, options.train = true, options.dtype = DTYPE_BF16;
    struct update_args args = {};
    args.lr = 1e-3f, args.eps = 1e-8f, args.step = 1;
    int32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer optimizer;
    ctx_init(&ctx, device, device->ops, false);
    gpt_create(&gpt, &ctx, &config, &options);
    optimizer_create(&optimizer, &gpt, {OPTIMIZER_ADAMW, true});
    gpt_init_weights(&gpt, 1);
    gpt_set_batch(&gpt, tokens, tokens + 1);
    used = 0;
    gpt_set_loss_scale(&gpt, 1.0f);
    gpt_forward_backward(&gpt, true);
    optimizer_step(&optimizer, &gpt, &args);
    device->synchronize(device, device->stream);
    assert_int_equal(depth, 0);
    const char *const parts[] = {"forward", "head", "backward", "update"};
    for (int i = 0; i < 4; i++) assert_int_equal(count_of(seen, parts[i]), 1);

    char *forward = range_of("forward"), *head = range_of("head"), *backward = range_of("backward"),
         *update = range_of("update");
    assert_int_equal(strncmp(forward, "embed_forward{}norm_forward{}matmul_forward{}attn_forward{}", 57), 0);
    assert_int_equal(count_of(forward, "residual_norm_forward"), 4);
    assert_string_equal(head, "matmul_forward{}loss_forward{}matmul_backward{}sum{}");
    assert_int_equal(count_of(backward, "attn_backward"), 2);
    assert_int_equal(count_of(backward, "attn_forward"), 0);
    assert_string_equal(backward + strlen(backward) - 16, "embed_backward{}");
    assert_string_equal(update, "sumsq{}adamw{}adamw{}adamw{}"); /* embeddings, matrices, vectors */
    free(forward);
    free(head);
    free(backward);
    free(update);

    used = 0;
    struct ctx plan;
    ctx_init(&plan, device, device->ops, true); /* nothing runs, so there is nothing to see */
    gpt_create(&gpt, &plan, &config, &options);
    gpt_set_loss_scale(&gpt, 1.0f);
    gpt_forward_backward(&gpt, true);
    assert_int_equal(used, 0);
    ctx_free(&plan);
    ctx_free(&ctx);
    device->close(device);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ranges_of_a_step)};
    return test_main(argc, argv, tests, NULL, NULL);
}
