/* What a training step must move and compute, worked out a second time, operation by operation, from the
 * shapes of GPT-2 and the contracts of ops.h (every operand once), and compared with what the front doors
 * count for the real step in plan mode at B=64, T=1024 in bf16. Then both against a table made by hand from
 * the architecture, the roofline of one H200: an operation that claims more than its contract, or a step that
 * calls one too often, shows here without a GPU. test/sim/test_traffic.c counts what kernels really move. */
#include "test/test.h"

#include "llmc/model/optimizer.h"

#include <math.h>
#include <string.h>

/* --- variants that take bf16, which the CPU has none of; in plan mode no variant runs --- */

#define X(op) static const struct op##_variant op##_plan[] = {{.name = "plan"}, {0}};
LLMC_OPS(X)
#undef X
#define X(op) .op = op##_plan,
static const struct ops plan_ops = {.backend = "plan", .bf16 = true, LLMC_OPS(X)};
#undef X

/* --- the step in plan mode --- */

struct count {
    double calls, flops, bytes;
};

static void plan_step(struct count *counts, const struct gpt_config *config, int64_t B, int64_t T,
                      enum recompute recompute, int micro_steps) {
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer optimizer;
    struct gpt_options options = {.B = B, .T = T, .train = true, .dtype = DTYPE_BF16, .recompute = recompute};
    struct update_args args = {.lr = 1e-3f, .step = 1};
    ctx_init(&ctx, NULL, &plan_ops, true);
    ctx.forced = NULL;
    gpt_create(&gpt, &ctx, config, &options);
    optimizer_create(&optimizer, &gpt, (struct optimizer_options){.master_weights = true});
    ctx_reset_stats(&ctx);
    gpt_set_loss_scale(&gpt, 1.0f);
    for (int i = 0; i < micro_steps; i++) gpt_forward_backward(&gpt, i == 0);
    optimizer_step(&optimizer, &gpt, &args);
    for (int id = 0; id < OP_COUNT; id++)
        counts[id] = (struct count){(double)ctx.stats[id].calls, ctx.stats[id].flops, ctx.stats[id].bytes};
    ctx_free(&ctx);
}

/* --- the second count --- */

static void add(struct count *c, double calls, double flops, double bytes) {
    c->calls += calls;
    c->flops += calls * flops;
    c->bytes += calls * bytes;
}

/* A linear layer (N,C) -> (N,OC), `layers` times: forward, and both products of backward, the weight's
 * gradient overwritten (first micro-step) or added to (the others). `kept`: GELU is fused, and the
 * pre-activation kept, in forward on the output's side, in backward on the input's. */
static void linear(struct count *counts, double layers, double N, double C, double OC, bool bias,
                   bool kept_out, bool kept_in, bool first) {
    double b = bias ? OC : 0.0, products = 2.0 * N * C * OC;
    add(&counts[OP_matmul_forward], layers, products,
        2.0 * (N * C + OC * C + b + N * OC * (kept_out ? 2.0 : 1.0)));
    add(&counts[OP_matmul_backward], layers, 2.0 * products,
        2.0 * (N * OC + N * C + (first ? 1.0 : 2.0) * (OC * C + b)) +   /* dweight, dbias */
            2.0 * (N * OC + OC * C + N * C + (kept_in ? N * C : 0.0))); /* dinp */
}

/* Tensors start at multiples of 128 elements. */
static double gap(double elements) { return ceil(elements / 128.0) * 128.0; }

/* Storage takes 2 bytes, statistics, losses, moments and master weights 4. */
static void count_step(struct count *counts, const struct gpt_config *c, int64_t B_, int64_t T_,
                       int micro_steps) {
    double B = (double)B_, T = (double)T_, N = B * T, L = (double)c->layers, C = (double)c->channels;
    double V = (double)c->vocab_size, Vp = ceil(V / 128.0) * 128.0, NH = (double)c->heads,
           P = (double)c->context;
    double touched = fmin(N, Vp); /* rows of the token embedding */
    memset(counts, 0, OP_COUNT * sizeof *counts);
    for (int i = 0; i < micro_steps; i++) {
        bool first = i == 0;
        add(&counts[OP_embed_forward], 1, N * C, 2 * (N * C + touched * C + T * C) + 4 * N);
        add(&counts[OP_norm_forward], 1, 8 * N * C, 2 * (2 * N * C + 2 * C) + 8 * N);
        add(&counts[OP_residual_norm_forward], 2 * L, 9 * N * C, 2 * (4 * N * C + 2 * C) + 8 * N);
        linear(counts, L, N, C, 3 * C, true, false, false, first); /* qkv */
        linear(counts, L, N, C, C, true, false, false, first);     /* attention's projection */
        linear(counts, L, N, C, 4 * C, true, true, false, first);  /* fc, GELU after it */
        linear(counts, L, N, 4 * C, C, true, false, true, first);  /* fcproj, GELU before it */
        linear(counts, 1, N, C, Vp, false, false, false, first);   /* the lm_head */
        /* per head and query t, with t+1 keys of HS numbers, but no more than the window: a product each with
         * k and v, and five of them back */
        double seen = c->window > 0 ? fmin((double)c->window, T) : T, HS = C / NH;
        double pairs = B * NH * (seen * (seen + 1) / 2 + (T - seen) * seen);
        add(&counts[OP_attn_forward], L, pairs * HS * 2 * 2, 2 * (3 * N * C + N * C) + 4 * NH * N);
        add(&counts[OP_attn_backward], L, pairs * HS * 2 * 5, 2 * (6 * N * C + 2 * N * C) + 4 * NH * N);
        add(&counts[OP_loss_forward], 1, 5 * N * V, 2 * N * (V + Vp) + 8 * N + 4);
        add(&counts[OP_sum], 1, N, 4 * N + 4 + (first ? 4 : 8));
        double vectors = 2 * 5 * C; /* the weight, and two gradients that are added to: read and written */
        add(&counts[OP_norm_backward], 2 * L, 13 * N * C, 2 * 4 * N * C + vectors + 8 * N);
        add(&counts[OP_norm_backward], 1, 13 * N * C,
            2 * 3 * N * C + vectors + 8 * N); /* nothing past ln_f */
        add(&counts[OP_embed_backward], 1, 2 * N * C, 2 * (N * C + 2 * touched * C + 2 * T * C) + 4 * N);
    }
    /* gradients that are only ever added to start from zero: vectors and the position embedding */
    double small = L * (6 * gap(C) + gap(3 * C) + gap(4 * C)) + 2 * gap(C), positions = P * C;
    add(&counts[OP_fill], 1, 0, 2 * small);
    add(&counts[OP_fill], 1, 0, 2 * positions);
    add(&counts[OP_fill], 1, 0, 4); /* the scale of the losses */
    double total = small + positions + Vp * C + 12 * L * C * C;
    add(&counts[OP_sumsq], 1, 2 * total, 2 * total + 4);
    /* embeddings, blocks and vectors apart: gradient read, parameter written; moments and master read and written */
    counts[OP_adamw] = (struct count){3, 16 * total, (2 + 2 + 3 * 8) * total + 3 * 4};
}

static void compare_counts(const char *what, const struct count *front, const struct count *mine) {
    for (int id = 0; id < OP_COUNT; id++) {
        const struct count *a = &front[id], *b = &mine[id];
        if (a->calls != b->calls || !(fabs(a->flops - b->flops) <= 1e-12 * b->flops) ||
            !(fabs(a->bytes - b->bytes) <= 1e-12 * b->bytes))
            fail_msg(
                "%s, %s: the front door counts %.0f calls, %.0f FLOPs, %.0f bytes; its contract says %.0f, "
                "%.0f, %.0f",
                what, op_name((enum op_id)id), a->calls, a->flops, a->bytes, b->calls, b->flops, b->bytes);
    }
}

/* --- the table: one step of 65,536 tokens, bf16, by stage, in GB and TFLOP --- */

struct stage {
    const char *name;
    bool bytes; /* or FLOPs */
    enum op_id op[3];
    int ops;
    double small, large; /* 124M, 1558M */
    double tolerance;
};
/* Papers leave out statistics, the causal diagonal and what is left of C (LayerNorm's vectors): half a
 * percent. The embedding's row says that each token's row moves once; here rows that occur twice are counted
 * once, and the gradient's rows are read and written. */
static const struct stage stages[] = {
    {"matmuls", false, {OP_matmul_forward, OP_matmul_backward}, 2, 48.59, 611.5, 0.001},
    {"attention forward", false, {OP_attn_forward}, 1, 1.237, 10.31, 0.002},
    {"attention backward", false, {OP_attn_backward}, 1, 3.092, 25.77, 0.002},
    {"embedding and first norm",
     true,
     {OP_embed_forward, OP_embed_backward, OP_norm_forward},
     3,
     0.60,
     1.26,
     0.07},
    {"residual and norm", true, {OP_residual_norm_forward}, 1, 9.66, 80.5, 0.005},
    {"norm backward", true, {OP_norm_backward}, 1, 10.07, 81.4, 0.015},
    {"classifier", true, {OP_loss_forward}, 1, 13.19, 13.19, 0.001},
    {"AdamW", true, {OP_adamw}, 1, 3.49, 43.6, 0.002},
    {"gradient norm", true, {OP_sumsq}, 1, 0.25, 3.1, 0.01},
    {"zeroing and the mean loss", true, {OP_fill, OP_sum}, 2, 0.002, 0.006, 1.0},
};
/* Everything but matmul and attention, in one pass each. */
static const double level_1[2] = {37.3, 223.1};

static void compare_table(const char *what, const struct count *counts, bool large) {
    double bytes = 0.0;
    for (size_t i = 0; i < ARRAY_LENGTH(stages); i++) {
        const struct stage *s = &stages[i];
        double sum = 0.0, want = large ? s->large : s->small;
        for (int k = 0; k < s->ops; k++)
            sum += s->bytes ? counts[s->op[k]].bytes * 1e-9 : counts[s->op[k]].flops * 1e-12;
        if (s->bytes) bytes += sum;
        /* half a digit for the table's rounding */
        if (!(fabs(sum - want) <= s->tolerance * want + 0.005))
            fail_msg("%s, %s: %.3f %s, the table says %.3f", what, s->name, sum, s->bytes ? "GB" : "TFLOP",
                     want);
    }
    if (!(fabs(bytes - level_1[large]) <= 0.01 * level_1[large]))
        fail_msg("%s: %.2f GB in all memory-bound stages, the table says %.1f", what, bytes, level_1[large]);
}

/* --- tests --- */

static const char *const models[] = {"gpt2", "gpt2-xl"};

static struct gpt_config model_config(const char *name) {
    struct gpt_config config;
    struct error err;
    if (!gpt_config_from_name(&config, name, NULL, &err)) fail_msg("%s", err.message);
    return config;
}

static void test_step_costs_what_its_contracts_say(void **state) {
    for (int m = 0; m < 2; m++) {
        struct gpt_config config = model_config(models[m]);
        struct count front[OP_COUNT], mine[OP_COUNT];
        plan_step(front, &config, 64, 1024, RECOMPUTE_NONE, 1);
        count_step(mine, &config, 64, 1024, 1);
        compare_counts(models[m], front, mine);
        compare_table(models[m], front, m == 1);
        compare_table(models[m], mine, m == 1);
        double papers = gpt_flops_per_token(&config, 1024) * 65536.0 * 1e-12;
        assert_true(fabs(papers - (m == 1 ? 643.4 : 52.66)) <= 0.001 * papers);
    }
}

/* Later micro-steps add to the gradients instead of overwriting them, and the update comes once. */
static void test_micro_steps(void **state) {
    struct gpt_config config = model_config("gpt2");
    struct count front[OP_COUNT], mine[OP_COUNT];
    plan_step(front, &config, 8, 1024, RECOMPUTE_NONE, 3);
    count_step(mine, &config, 8, 1024, 3);
    compare_counts("3 micro-steps of gpt2", front, mine);
}

/* Few tokens touch few rows of the embedding; a sequence shorter than the context few positions. */
static void test_small_batch(void **state) {
    struct gpt_config config = model_config("gpt2");
    struct count front[OP_COUNT], mine[OP_COUNT];
    plan_step(front, &config, 2, 100, RECOMPUTE_NONE, 1);
    count_step(mine, &config, 2, 100, 1);
    compare_counts("gpt2 at B=2, T=100", front, mine);
}

/* A window saves FLOPs of attention, and no bytes: every key is seen by some query. */
static void test_window(void **state) {
    struct gpt_config config = model_config("gpt2");
    struct count front[OP_COUNT], mine[OP_COUNT];
    config.mask = MASK_WINDOW;
    for (config.window = 1; config.window <= 4096; config.window *= 16) {
        plan_step(front, &config, 8, 1024, RECOMPUTE_NONE, 1);
        count_step(mine, &config, 8, 1024, 1);
        compare_counts("gpt2 with a window", front, mine);
    }
}

/* What recomputation adds: per layer a GELU pass (read 4C, write 4C); two norms; the block once more but for
 * the last matmul and norm of its MLP half. */
static void test_recompute(void **state) {
    struct gpt_config config = model_config("gpt2");
    struct count none[OP_COUNT], more[OP_COUNT];
    double L = 12, N = 8 * 1024.0, C = 768;
    plan_step(none, &config, 8, 1024, RECOMPUTE_NONE, 1);
    plan_step(more, &config, 8, 1024, RECOMPUTE_ACT, 1);
    assert_true(more[OP_act_forward].bytes == L * 2 * 8 * N * C);
    for (int id = 0; id < OP_COUNT; id++)
        if (id != OP_act_forward) assert_memory_equal(&none[id], &more[id], sizeof none[id]);
    plan_step(more, &config, 8, 1024, RECOMPUTE_NORM, 1);
    assert_true(more[OP_norm_forward].calls == none[OP_norm_forward].calls + 2 * L);
    plan_step(more, &config, 8, 1024, RECOMPUTE_BLOCK, 1);
    assert_true(more[OP_attn_forward].flops == 2 * none[OP_attn_forward].flops);
    double again = L * 2 * N * C * (3 + 1 + 4) * C;
    assert_true(more[OP_matmul_forward].flops == none[OP_matmul_forward].flops + again);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_costs_what_its_contracts_say),
        cmocka_unit_test(test_micro_steps),
        cmocka_unit_test(test_small_batch),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_recompute),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
