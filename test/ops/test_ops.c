/* The CPU operations, which are the reference for every other back end: against float64 goldens
 * (dev/reference/op_float64.py says what is in them), and their contracts: all cases of op_<stem>.c with
 * guards and poison, `+=` and `=`, spans of attention, the fused residual norm, independence of the number
 * of threads, and the refusal of operands that do not fit. */
#include "test/test.h"

#include "llmc/base/rng.h"
#include "llmc/format/safetensors.h"
#include "test/ops/cpu_ctx.h"
#include "test/ops/op_harness.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- all cases --- */

static void test_every_case(void **state) {
    int failed = 0;
    for (int id = 0; id < OP_COUNT; id++) {
        int passed = 0;
        for (size_t i = 0; i < op_tests[id]->case_count; i++) {
            const struct op_case *c = &op_tests[id]->cases[i];
            if (c->size == SIZE_LARGE) continue;
            for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
                struct error err;
                double worst = 0.0;
                struct op_target target = {.ctx = ctx_of(state)};
                enum op_verdict verdict = op_check(op_tests[id], c, (enum dtype)dtype, &target, &worst, &err);
                if (verdict == OP_FAILED) print_error("%s\n", err.message);
                failed += verdict == OP_FAILED;
                passed += verdict == OP_PASSED;
            }
        }
        assert_true(passed > 0);
    }
    assert_int_equal(failed, 0);
}

/* --- float64 goldens --- */

struct golden {
    struct safetensors file;
    char prefix[64];
    struct tensor kept[32];
    int count;
};

static const struct st_view *golden_view(struct golden *g, const char *name) {
    char key[128];
    snprintf(key, sizeof key, "%s%s", g->prefix, name);
    const struct st_view *v = safetensors_find(&g->file, key);
    if (!v) fail_msg("the golden has no %s", key);
    return v;
}

static struct tensor *golden_keep(struct golden *g, const struct st_view *v, const char *name,
                                  enum dtype dtype) {
    assert_true(g->count < (int)ARRAY_LENGTH(g->kept));
    struct tensor *t = &g->kept[g->count++];
    *t = tensor_make(name, dtype, xmalloc((size_t)v->count * 4), v->dim[0], v->rank > 1 ? v->dim[1] : 0,
                     v->rank > 2 ? v->dim[2] : 0, 0);
    return t;
}

/* An input, copied from the file. */
static struct tensor *golden_input(struct golden *g, const char *name) {
    const struct st_view *v = golden_view(g, name);
    struct tensor *t = golden_keep(g, v, name, v->dtype == ST_I32 ? DTYPE_I32 : DTYPE_F32);
    assert_true(v->dtype == ST_I32 || v->dtype == ST_F32);
    memcpy(t->data, v->data, (size_t)v->count * 4);
    return t;
}

/* A result of the file's shape, filled with `value`: NaN if the op overwrites it, 0 if it adds. */
static struct tensor *golden_result(struct golden *g, const char *name, float value) {
    struct tensor *t = golden_keep(g, golden_view(g, name), name, DTYPE_F32);
    for (int64_t i = 0; i < tensor_count(t); i++) f32(t)[i] = value;
    return t;
}

/* Every element may be off by `tolerance` times the largest. */
static void golden_compare(struct golden *g, const struct tensor *t, double tolerance) {
    const struct st_view *v = golden_view(g, t->name);
    assert_int_equal(v->dtype, ST_F64);
    double worst = 0.0, scale = 0.0;
    for (int64_t i = 0; i < v->count; i++) {
        double want;
        memcpy(&want, (const char *)v->data + i * 8, 8);
        double error = fabs((double)f32(t)[i] - want);
        if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
        scale = fmax(scale, fabs(want));
    }
    if (!(worst <= tolerance * scale + 1e-30))
        fail_msg("%s%s is off by %.3g of its largest element %.3g; %.0e of it is allowed", g->prefix, t->name,
                 worst, scale, tolerance);
}

static double golden_number(struct golden *g, const char *name) {
    char key[128];
    snprintf(key, sizeof key, "%s%s", g->prefix, name);
    const char *text = safetensors_metadata(&g->file, key);
    if (!text) fail_msg("the golden has no number %s", key);
    return atof(text);
}

static void golden_open(struct golden *g) {
    struct error err;
    memset(g, 0, sizeof *g);
    if (!safetensors_open(&g->file, "test/golden/ops.safetensors", &err)) fail_msg("%s", err.message);
}
static void golden_next(struct golden *g, const char *prefix) {
    while (g->count > 0) free(g->kept[--g->count].data);
    snprintf(g->prefix, sizeof g->prefix, "%s", prefix);
}
static void golden_close(struct golden *g) {
    golden_next(g, "");
    safetensors_close(&g->file);
}

static void test_golden_norm(void **state) {
    static const char *const cases[] = {"norm.random.", "norm.offset.", "norm.flat.", "norm.narrow.",
                                        "norm.large."};
    struct golden g;
    golden_open(&g);
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        golden_next(&g, cases[i]);
        struct tensor *inp = golden_input(&g, "inp"), *weight = golden_input(&g, "weight"),
                      *bias = golden_input(&g, "bias");
        struct tensor *out = golden_result(&g, "out", NAN), *mean = golden_result(&g, "mean", NAN),
                      *rstd = golden_result(&g, "rstd", NAN);
        struct tensor *dout = golden_input(&g, "dout"), *past = golden_input(&g, "dresidual");
        struct tensor *dinp = golden_result(&g, "dinp", NAN), *dweight = golden_result(&g, "dweight", 0.0f),
                      *dbias = golden_result(&g, "dbias", 0.0f);
        norm_forward(ctx_of(state), out, mean, rstd, inp, weight, bias, 1e-5f);
        norm_backward(ctx_of(state), dinp, dweight, dbias, past, dout, inp, mean, rstd, weight);
        const struct tensor *results[] = {out, mean, rstd, dinp, dweight, dbias};
        /* with one column, dinp - dresidual is rstd * (g - g): rstd = 316 times the rounding of g may
         * remain */
        double tolerance = strcmp(cases[i], "norm.narrow.") == 0 ? 1e-5 + 316.0 * UNIT_F32 : 1e-5;
        for (size_t k = 0; k < ARRAY_LENGTH(results); k++) golden_compare(&g, results[k], tolerance);
    }
    golden_close(&g);
}

static void test_golden_loss(void **state) {
    static const char *const cases[] = {"loss.random.", "loss.extreme.", "loss.single."};
    struct golden g;
    golden_open(&g);
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        golden_next(&g, cases[i]);
        struct tensor *logits = golden_input(&g, "logits"), *targets = golden_input(&g, "targets");
        struct tensor *losses = golden_result(&g, "losses", NAN);
        float value = (float)golden_number(&g, "dloss");
        struct tensor dloss = tensor_make("dloss", DTYPE_F32, &value, 1, 0, 0, 0);
        loss_forward(ctx_of(state), losses, logits, targets, &dloss, (int)golden_number(&g, "V"), NULL);
        struct tensor dlogits = *logits;
        dlogits.name = "dlogits";
        golden_compare(&g, losses, 1e-5);
        golden_compare(&g, &dlogits, 1e-5);
    }
    golden_close(&g);
}

static void test_golden_attn(void **state) {
    static const char *const cases[] = {"attn.random.", "attn.equal.", "attn.one_hot.", "attn.negative.",
                                        "attn.one."};
    struct golden g;
    golden_open(&g);
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        golden_next(&g, cases[i]);
        struct tensor *qkv = golden_input(&g, "qkv"), *dout = golden_input(&g, "dout");
        struct tensor *out = golden_result(&g, "out", NAN), *lse = golden_result(&g, "lse", NAN),
                      *dqkv = golden_result(&g, "dqkv", NAN);
        int NH = (int)golden_number(&g, "NH");
        struct attn_rule rule = {.heads = NH, .kv_heads = NH};
        attn_forward(ctx_of(state), out, lse, qkv, NULL, &rule, 0);
        attn_backward(ctx_of(state), dqkv, dout, out, lse, qkv, NULL, &rule);
        golden_compare(&g, out, 1e-5);
        golden_compare(&g, lse, 1e-5);
        /* one_hot: dk is q = 2000 times dP - D, which should be 0 but has the rounding of dP, half an ulp
         * of 4; negative: lse has a rounding of half an ulp of 12000 */
        bool one_hot = strcmp(cases[i], "attn.one_hot.") == 0,
             negative = strcmp(cases[i], "attn.negative.") == 0;
        golden_compare(&g, dqkv, one_hot ? 3e-4 : negative ? 1e-3 : 1e-5);
    }
    golden_close(&g);
}

static void test_golden_gelu(void **state) {
    static const char *const cases[] = {"gelu.", "gelu_far."};
    struct golden g;
    golden_open(&g);
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        golden_next(&g, cases[i]);
        struct tensor *inp = golden_input(&g, "inp"), *dout = golden_input(&g, "dout");
        struct tensor *out = golden_result(&g, "out", NAN), *dinp = golden_result(&g, "dinp", NAN);
        act_forward(ctx_of(state), out, inp, ACT_GELU);
        act_backward(ctx_of(state), dinp, dout, inp, ACT_GELU);
        for (int64_t k = 0; k < tensor_count(inp); k++) {
            double want[2], x = (double)f32(inp)[k];
            memcpy(&want[0], (const char *)golden_view(&g, "out")->data + k * 8, 8);
            memcpy(&want[1], (const char *)golden_view(&g, "dinp")->data + k * 8, 8);
            /* half of what the harness allows other back ends */
            double allow_out = op_gelu_error(x) / 2 + UNIT_F32 * fabs(want[0]) + 1e-40;
            double allow_dinp =
                op_gelu_derivative_error(x) / 2 * fabs((double)f32(dout)[k]) + UNIT_F32 * fabs(want[1]);
            if (!(fabs((double)f32(out)[k] - want[0]) <= allow_out))
                fail_msg("gelu(%g) is %.9g, not %.9g", x, (double)f32(out)[k], want[0]);
            if (!(fabs((double)f32(dinp)[k] - want[1]) <= allow_dinp))
                fail_msg("gelu'(%g) dout is %.9g, not %.9g", x, (double)f32(dinp)[k], want[1]);
        }
    }
    golden_close(&g);
}

static void test_golden_embed(void **state) {
    struct golden g;
    golden_open(&g);
    golden_next(&g, "embed.");
    struct tensor *tokens = golden_input(&g, "tokens"), *dout = golden_input(&g, "dout");
    struct tensor *wte = golden_input(&g, "wte"), *wpe = golden_input(&g, "wpe");
    struct tensor *out = golden_result(&g, "out", NAN), *dwte = golden_result(&g, "dwte", 0.0f),
                  *dwpe = golden_result(&g, "dwpe", 0.0f);
    embed_forward(ctx_of(state), out, tokens, wte, wpe, 0);
    embed_backward(ctx_of(state), dwte, dwpe, dout, tokens);
    golden_compare(&g, out, 1e-7);
    golden_compare(&g, dwte, 1e-6);
    golden_compare(&g, dwpe, 1e-6);
    golden_close(&g);
}

/* --- contracts --- */

/* What an op adds must not depend on what it adds to: op(initial) - op(0) = initial. */
static void test_additive_outputs(void **state) {
    int seen = 0;
    for (int id = 0; id < OP_COUNT; id++) {
        for (size_t i = 0; i < op_tests[id]->case_count; i++) {
            const struct op_case *c = &op_tests[id]->cases[i];
            if (c->size == SIZE_LARGE) continue;
            struct op_instance x;
            op_instance_create(&x, op_tests[id], c, DTYPE_F32, ctx_of(state));
            op_instance_upload(&x);
            for (int k = 0; k < x.count; k++)
                if (x.operand[k].role == ROLE_ADD)
                    memset(x.operand[k].target.data, 0, (size_t)x.operand[k].count * 4);
            op_instance_call(&x);
            for (int k = 0; k < x.count; k++) {
                const struct operand *o = &x.operand[k];
                if (o->role != ROLE_ADD) continue;
                seen++;
                for (int64_t e = 0; e < o->count; e++) {
                    double added = (double)f32(&o->target)[e], sum = (double)o->expected[e],
                           before = (double)o->initial[e];
                    if (!(fabs(sum - added - before) <=
                          2.0 * o->allowed[e] + 4.0 * UNIT_F32 * (fabs(sum) + fabs(added) + fabs(before))))
                        fail_msg("%s: %s[%lld] was %g, became %g, and from 0 %g",
                                 op_case_text(op_tests[id], c, DTYPE_F32, NULL), o->name, (long long)e,
                                 before, sum, added);
                }
            }
            op_instance_free(&x);
        }
    }
    assert_true(seen > 40);
}

/* Computing rows [t0,T) alone gives the same rows as the whole, for every t0 of a short sequence. */
static void test_attention_spans(void **state) {
    enum { T = 70, NH = 2, C = 8 };
    float *qkv = (float *)xmalloc(3 * C * T * sizeof *qkv), *out[2], *lse[2];
    for (int64_t i = 0; i < 3 * C * T; i++)
        qkv[i] = (float)(4.0 * rng_uniform(5, RNG_TEST, (uint64_t)i) - 2.0);
    for (int k = 0; k < 2; k++) {
        out[k] = (float *)xcalloc(T * C, sizeof(float));
        lse[k] = (float *)xcalloc(T * NH, sizeof(float));
    }
    struct tensor q = tensor_make("qkv", DTYPE_F32, qkv, 1, T, 3 * C, 0);
    struct tensor o[2], l[2];
    for (int k = 0; k < 2; k++) {
        o[k] = tensor_make("out", DTYPE_F32, out[k], 1, T, C, 0);
        l[k] = tensor_make("lse", DTYPE_F32, lse[k], 1, NH, T, 0);
    }
    struct attn_rule rule = {.heads = NH, .kv_heads = NH};
    attn_forward(ctx_of(state), &o[0], &l[0], &q, NULL, &rule, 0);
    for (int t0 = 0; t0 < T; t0++) {
        memset(out[1], 0, T * C * sizeof(float));
        memset(lse[1], 0, T * NH * sizeof(float));
        attn_forward(ctx_of(state), &o[1], &l[1], &q, NULL, &rule, t0);
        for (int64_t i = 0; i < T * C; i++) {
            double want = i / C < t0 ? 0.0 : (double)out[0][i];
            if (!(fabs((double)out[1][i] - want) <= 1e-6))
                fail_msg("t0=%d: out[%d,%d]", t0, (int)(i / C), (int)(i % C));
        }
        for (int64_t i = 0; i < T * NH; i++) {
            double want = i % T < t0 ? 0.0 : (double)lse[0][i];
            if (!(fabs((double)lse[1][i] - want) <= 1e-6)) fail_msg("t0=%d: lse[%d]", t0, (int)i);
        }
    }
    for (int k = 0; k < 2; k++) {
        free(out[k]);
        free(lse[k]);
    }
    free(qkv);
}

static void test_fused_residual_norm_has_the_same_bits(void **state) {
    for (size_t i = 0; i < op_tests[OP_residual_norm_forward]->case_count; i++) {
        const struct op_case *c = &op_tests[OP_residual_norm_forward]->cases[i];
        if (c->size == SIZE_LARGE || c->flags & OP_FP8) continue; /* whose reference is not rounded */
        struct op_instance x;
        op_instance_create(&x, op_tests[OP_residual_norm_forward], c, DTYPE_F32, ctx_of(state));
        op_instance_upload(&x);
        op_instance_call(&x);
        static const char *const results[] = {"residual", "out", "mean",
                                              "rstd"}; /* expected: of the two ops */
        for (size_t k = 0; k < ARRAY_LENGTH(results); k++) {
            struct operand *o = op_find(&x, results[k]);
            if (o) assert_memory_equal(o->expected, o->target.data, (size_t)o->count * sizeof(float));
        }
        op_instance_free(&x);
    }
}

/* Runs the CPU op with this many threads. Keeps its outputs in `kept`, or compares them with what is
 * there. */
static void run_with_threads(struct op_instance *x, int threads, void *kept[OP_MAX_OPERANDS]) {
    omp_set_num_threads(threads);
    op_instance_upload(x);
    op_instance_call(x);
    for (int k = 0; k < x->count; k++) {
        const struct operand *o = &x->operand[k];
        size_t bytes = (size_t)tensor_bytes(&o->target);
        if (o->role == ROLE_IN) continue;
        if (!kept[k])
            kept[k] = memcpy(xmalloc(bytes), o->target.data, bytes);
        else if (memcmp(kept[k], o->target.data, bytes) != 0)
            fail_msg("%s: %s differs between 1 and %d threads", op_case_text(x->op, x->c, DTYPE_F32, NULL),
                     o->name, threads);
    }
}

static void test_threads_change_no_bit(void **state) {
    int before = omp_get_max_threads();
    static const int threads[] = {1, 2, 3, 8};
    for (int id = 0; id < OP_COUNT; id++) {
        for (size_t i = 0; i < op_tests[id]->case_count; i++) {
            struct op_instance x;
            void *kept[OP_MAX_OPERANDS] = {NULL};
            if (op_tests[id]->cases[i].size == SIZE_LARGE) continue;
            op_instance_create(&x, op_tests[id], &op_tests[id]->cases[i], DTYPE_F32, ctx_of(state));
            for (size_t t = 0; t < ARRAY_LENGTH(threads); t++) run_with_threads(&x, threads[t], kept);
            for (int k = 0; k < OP_MAX_OPERANDS; k++) free(kept[k]);
            op_instance_free(&x);
        }
    }
    omp_set_num_threads(before);
}

/* --- variants made for one device --- */

/* For another device: must not run. */
static void fill_elsewhere(const struct op_env *env, struct tensor *out, float value) { abort(); }

static void test_variants_made_for_one_device(void **state) {
    struct ctx plan;
    struct device device = *ctx_of(state)->device;
    const struct fill_variant variants[] = {{"elsewhere", fill_elsewhere, cpu_ops()->fill[0].need, 90},
                                            {"anywhere", cpu_ops()->fill[0].run, cpu_ops()->fill[0].need},
                                            {0}};
    struct ops ops = *cpu_ops();
    float value = 0.0f;
    struct tensor out = tensor_make("out", DTYPE_F32, &value, 1, 0, 0, 0);
    ops.fill = variants;
    ctx_init(&plan, &device, &ops, true);
    for (int arch = 0; arch <= 100; arch += 10) { /* 90 alone takes the first */
        device.arch = arch;
        fill(&plan, &out, 1.0f);
        assert_string_equal(plan.variant_in_use[OP_fill], arch == 90 ? "elsewhere" : "anywhere");
    }
    ctx_free(&plan);
    struct ctx run;
    device.arch = 0;
    ctx_init(&run, &device, &ops, false);
    fill(&run, &out, 1.0f);
    assert_true(value == 1.0f);
    ctx_free(&run);
}

/* LLMC_VARIANT: OP:NAME allows one variant, OP:-NAME the others; of other ops it says nothing. */
static void test_chosen_variants(void **state) {
    struct ctx plan;
    struct device device = *ctx_of(state)->device;
    const struct fill_variant variants[] = {{"a", cpu_ops()->fill[0].run, cpu_ops()->fill[0].need},
                                            {"b", cpu_ops()->fill[0].run, cpu_ops()->fill[0].need},
                                            {"c", cpu_ops()->fill[0].run, cpu_ops()->fill[0].need},
                                            {0}};
    static const struct {
        const char *choice, *runs;
    } cases[] = {{NULL, "a"},     {"fill:b", "b"},          {"fill:-a", "b"},      {"fill:-b", "a"},
                 {"sum:-a", "a"}, {"fill:-a,fill:-b", "c"}, {"sum:x,fill:-a", "b"}};
    struct ops ops = *cpu_ops();
    float value = 0.0f;
    struct tensor out = tensor_make("out", DTYPE_F32, &value, 1, 0, 0, 0);
    ops.fill = variants;
    ctx_init(&plan, &device, &ops, true);
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        plan.forced = cases[i].choice;
        fill(&plan, &out, 1.0f);
        assert_string_equal(plan.variant_in_use[OP_fill], cases[i].runs);
    }
    ctx_free(&plan);
}

/* --- operands that do not fit --- */

/* Calls the op in a child process. Returns whether it failed, and what it wrote to stderr. */
static bool dies(struct ctx *ctx, struct op_instance *x, char *message, size_t size) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], 2);
        unsetenv("LLMC_DEBUG");
        x->op->call(ctx, x);
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    ssize_t got;
    while ((got = read(ends[0], message + n, size - 1 - n)) > 0) n += (size_t)got;
    message[n] = 0;
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

static bool names_an_operand(const struct op_instance *x, const char *message) {
    char pattern[64];
    for (int k = 0; k < x->count; k++) {
        snprintf(pattern, sizeof pattern, " %s (", x->operand[k].name);
        if (strstr(message, pattern)) return true;
    }
    return false;
}

/* Is the size of this operand independent of all others? */
static bool size_is_free(int id, const char *name) {
    switch (id) {
    case OP_fill:
    case OP_randn:
        return true;
    case OP_sum:
    case OP_sumsq:
        return strcmp(name, "inp") == 0;
    case OP_loss_forward:
    case OP_top1:
        return strcmp(name, "logits") == 0; /* more padding */
    default:
        return false;
    }
}

/* May this operand have another dtype than its neighbours? */
static bool dtype_is_free(int id, const char *name) {
    switch (id) {
    case OP_cast:
        return true;
    case OP_embed_forward: /* ops.bf16_weights */
    case OP_norm_forward:
    case OP_residual_norm_forward:
    case OP_qk_norm_forward:
    case OP_matmul_forward:
        return strstr(name, "weight") || strcmp(name, "bias") == 0 || strcmp(name, "wte") == 0 ||
               strcmp(name, "wpe") == 0;
    default:
        return false;
    }
}

/* A recorded graph holds the addresses of scratch. */
static void test_recorded_scratch_is_kept(void **state) {
    struct ctx ctx;
    struct device *d = device_open_cpu();
    ctx_init(&ctx, d, d->ops, false);
    ctx_reserve_scratch(&ctx, 256);
    ctx.recorded = true;
    char *before = (char *)ctx.scratch;
    memset(before, 7, 256);
    ctx_reserve_scratch(&ctx, 1 << 20);
    assert_ptr_not_equal(ctx.scratch, before);
    memset(ctx.scratch, 8, 1 << 20);
    for (int i = 0; i < 256; i++) assert_int_equal(before[i], 7); /* AddressSanitizer sees it freed */
    assert_int_equal(ctx.owned_count, 1);
    assert_ptr_equal(ctx.owned[0], before);
    ctx_free(&ctx);
    d->close(d);
}

static void test_operands_that_do_not_fit(void **state) {
    struct device *device = device_open_cpu();
    struct ctx plan;
    ctx_init(&plan, device, cpu_ops(), true);
    for (int id = 0; id < OP_COUNT; id++) {
        /* the case with the most operands, which includes optional ones */
        struct op_instance x;
        size_t best = 0;
        int most = 0;
        for (size_t i = 0; i < op_tests[id]->case_count; i++) {
            if (op_tests[id]->cases[i].size == SIZE_LARGE) continue;
            op_instance_create(&x, op_tests[id], &op_tests[id]->cases[i], DTYPE_F32, ctx_of(state));
            if (x.count > most) {
                most = x.count;
                best = i;
            }
            op_instance_free(&x);
        }
        op_instance_create(&x, op_tests[id], &op_tests[id]->cases[best], DTYPE_F32, ctx_of(state));
        for (int k = 0; k < x.count; k++)
            for (int wrong = 0; wrong < 2; wrong++) {
                struct tensor *t = &x.operand[k].target, good = *t;
                char message[2048], pattern[64];
                if (wrong == 0)
                    t->dim[t->rank - 1]++;
                else
                    t->dtype = t->dtype == DTYPE_F32 ? DTYPE_BF16 : DTYPE_F32;
                snprintf(pattern, sizeof pattern, "%s: ", op_name((enum op_id)id));
                bool legal = wrong == 0 ? size_is_free(id, t->name) : dtype_is_free(id, t->name);
                if (!legal && !dies(&plan, &x, message, sizeof message))
                    fail_msg("%s accepts %s", op_name((enum op_id)id), tensor_text(t));
                if (!legal && !(strstr(message, pattern) && names_an_operand(&x, message)))
                    fail_msg("%s with %s does not say what is wrong: %s", op_name((enum op_id)id),
                             tensor_text(t), message);
                if (!legal && wrong == 1 && !strstr(message, t->name) && !strstr(message, "no cpu variant"))
                    fail_msg("%s with %s does not name it: %s", op_name((enum op_id)id), tensor_text(t),
                             message);
                *t = good;
            }
        op_instance_free(&x);
    }
    ctx_free(&plan);
    device->close(device);
}

/* Numbers that do not fit the operands. */
static void refuse_forward(struct ctx *ctx, int id, size_t d, int64_t value, const char *text) {
    struct op_instance x;
    struct op_case c = op_tests[id]->cases[0];
    op_instance_create(&x, op_tests[id], &c, DTYPE_F32, ctx);
    c.d[d] = value;
    char message[2048];
    if (!dies(ctx, &x, message, sizeof message))
        fail_msg("%s accepts d[%d] = %d", op_name((enum op_id)id), (int)d, (int)value);
    if (!strstr(message, text)) fail_msg("no '%s' in: %s", text, message);
    op_instance_free(&x);
}

static void test_numbers_that_do_not_fit(void **state) {
    refuse_forward(ctx_of(state), OP_embed_forward, 5, 4,
                   "positions 4..9 are beyond the model's context of 8");
    refuse_forward(ctx_of(state), OP_embed_forward, 5, -1, "positions -1..4 are beyond");
    refuse_forward(ctx_of(state), OP_attn_forward, 2, 4, "4 heads do not divide");
    refuse_forward(ctx_of(state), OP_attn_forward, 2, 0, "0 heads do not divide");
    refuse_forward(ctx_of(state), OP_attn_forward, 5, 4, "4 heads of keys do not divide 2 heads of queries");
    refuse_forward(ctx_of(state), OP_attn_forward, 4, 5, "first row 5 is outside out (2,5,6)");
    refuse_forward(ctx_of(state), OP_attn_forward, 4, -1, "first row -1 is outside");
    refuse_forward(ctx_of(state), OP_loss_forward, 1, 41, "vocabulary 41 does not fit logits (5,40)");
    refuse_forward(ctx_of(state), OP_loss_forward, 1, 0, "vocabulary 0 does not fit");
    refuse_forward(ctx_of(state), OP_adamw, 1, 0, "step 0 should be 1 for the first update");
}

int main(int argc, char **argv) {
#define CPU_TEST(f) cmocka_unit_test_setup_teardown(f, open_cpu, close_cpu)
    const struct CMUnitTest tests[] = {
        CPU_TEST(test_every_case),
        CPU_TEST(test_golden_norm),
        CPU_TEST(test_golden_loss),
        CPU_TEST(test_golden_attn),
        CPU_TEST(test_golden_gelu),
        CPU_TEST(test_golden_embed),
        CPU_TEST(test_additive_outputs),
        CPU_TEST(test_attention_spans),
        CPU_TEST(test_fused_residual_norm_has_the_same_bits),
        CPU_TEST(test_threads_change_no_bit),
        CPU_TEST(test_variants_made_for_one_device),
        CPU_TEST(test_chosen_variants),
        CPU_TEST(test_recorded_scratch_is_kept),
        CPU_TEST(test_operands_that_do_not_fit),
        CPU_TEST(test_numbers_that_do_not_fit),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
