/* `train_gpt compare`: the same training steps on the CPU reference and on another device, tensor by
 * tensor.
 *
 * Both models start from the same weights, rounded to the storage type of the device so that only the
 * computation differs, and get the same random tokens. Tensors are compared in the order in which a step
 * computes them: activations, gradients, updated parameters. The first one that differs by more than
 * rounding names the operation at fault. */
#include "llmc/base/rng.h"
#include "llmc/cli/commands.h"
#include "llmc/format/checkpoint.h"
#include "llmc/run/config.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- options --- */

struct compare_config {
    struct run_config run;
    bool json, all;
};

#define C struct compare_config
static const struct option_row rows[] = {
    OPT_TEXT(C, run.model, "model", NULL, "NAME|DIR",
             "preset or directory with weights (default: " RUN_DEFAULT_MODEL ")", 0),
    OPT_INT(C, run.batch_size, "batch-size", "2", 1, 1 << 20, "B", "sequences", 0),
    OPT_INT(C, run.seq_len, "seq-len", "64", 1, 1 << 24, "T", "tokens in a sequence", 0),
    OPT_SIZE(C, run.steps, "steps", "1", 1, 1e6, "N", "training steps", 0),
    OPT_REAL(C, run.learning_rate, "learning-rate", "1e-3", 0, 100, "X", "learning rate of every step", 0),
    OPT_WORD(C, run.recompute, "recompute", "none", "none|act|norm|block", NULL,
             "what the device recomputes in backward", 0),
    OPT_INT(C, run.head_chunks, "head-chunks", "1", 1, 1 << 20, "N", "compute the logits in N parts", 0),
    OPT_INT(C, run.seed, "seed", "1", 0, INFINITY, "N", "seed of weights and tokens", 0),
    OPT_TEXT(C, run.device, "device", "auto", "NAME", "the device to compare: cuda, cuda:N, cpu or auto", 0),
    OPT_WORD(C, run.dtype, "dtype", "auto", "auto|fp32|bf16", NULL, "its type of weights and activations", 0),
    OPT_WORD(C, run.matmul, "matmul", "bf16", "bf16|fp8", NULL,
             "fp8: both multiply the matrices of the blocks in fp8", 0),
    OPT_FLAG(C, run.master_weights, "master-weights", "true",
             "keep fp32 copies of bf16 weights for the update", 0),
    OPT_FLAG(C, run.tf32, "tf32", "false", "on a GPU, multiply fp32 matrices in TF32", 0),
    OPT_FLAG(C, json, "json", "false", "print a JSON object per tensor instead of a table", 0),
    OPT_FLAG(C, all, "all", "false", "continue after the first tensor that differs", 0),
};
#undef C
static const struct option_group groups[] = {
    {"Comparison", rows, ARRAY_LENGTH(rows)},
    GPT_OPTION_GROUP("Shape of the model", offsetof(struct compare_config, run.shape)),
};
const struct option_command compare_command = {
    "train_gpt compare [options]",
    "Runs training steps on the CPU reference and on another device, and compares every tensor.", groups,
    ARRAY_LENGTH(groups)};

/* --- the tolerance --- */

struct side {
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer optimizer;
};

struct comparison {
    struct side cpu, other;
    bool json, all;
    double rounding; /* relative error of one operation */
    double stored;   /* and of storing its result, which is all that an update adds */
    int64_t step, compared, failed;
};

/* The relative error (2-norm of the difference over 2-norm of the reference) that rounding explains.
 *
 * Each operation rounds its result to the storage type with a relative error of at most u: 2^-9 in bf16. In
 * fp32 the sums inside the operation dominate: 2^-24 times the square root of their length, taken as 2^-21.
 * Independent errors add up as the square root of their number, here `depth`, the roundings between the
 * input and the tensor. From the second step on the weights are rounded too, which adds half as many.
 * Rounding errors are not quite independent, so the bound is 2 u sqrt(depth).
 *
 * In fp8 both sides round the operands of a matmul, so an operand matters only if the sides round it to
 * different fp8 numbers. Operands that differ by a fraction d are rounded apart with probability d / s,
 * where s is the spacing of fp8 numbers, and then differ by s: a mean square of d s. With d = 2^-9 from
 * bf16 and s = 2^-3 of e4m3, a matmul adds sqrt(2^-9 2^-3) = 2^-6. */
static double tolerance(const struct comparison *c, double rounding, double depth) {
    return 2.0 * rounding * sqrt(c->step > 1 ? 1.5 * depth : depth);
}

/* --- one tensor --- */

static void report(struct comparison *c, const char *name, const char *op, double relative, double limit,
                   double largest, int64_t at, int64_t nans, bool ok) {
    if (c->json) {
        json_t *row =
            json_pack("{s:I, s:s, s:s, s:f, s:f, s:f, s:I, s:I, s:b}", "step", (json_int_t)c->step, "tensor",
                      name, "op", op, "relative_error", isfinite(relative) ? relative : 1e300, "tolerance",
                      limit, "largest_error", isfinite(largest) ? largest : 1e300, "at", (json_int_t)at,
                      "nans", (json_int_t)nans, "ok", ok);
        char *text = json_dumps(row, JSON_COMPACT);
        printf("%s\n", text);
        free(text);
        json_decref(row);
        return;
    }
    printf("%-36s %10.2e %10.2e %12.3e %10" PRId64 " %5" PRId64 "  %s%s\n", name, relative, limit, largest,
           at, nans, ok ? "ok" : "DIFFERS: see ", ok ? "" : op);
}

/* Returns whether to continue. */
static bool compare(struct comparison *c, const char *name, const char *op, const struct tensor *want,
                    const struct tensor *got, double limit) {
    int64_t n = tensor_count(want), at = 0, nans = 0;
    float *a = (float *)xmalloc((size_t)n * sizeof *a), *b = (float *)xmalloc((size_t)n * sizeof *b);
    ctx_download_f32(&c->cpu.ctx, a, want);
    ctx_download_f32(&c->other.ctx, b, got);
    double error = 0.0, norm = 0.0, largest = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs((double)b[i] - (double)a[i]);
        if (!isfinite(b[i])) nans++;
        if (!(e <= largest)) {
            largest = isnan(e) ? INFINITY : e;
            at = i;
        }
        error += e * e;
        norm += (double)a[i] * (double)a[i];
    }
    free(a);
    free(b);
    double relative = norm > 0.0 ? sqrt(error / norm) : error > 0.0 ? INFINITY : 0.0;
    if (isnan(relative)) relative = INFINITY;
    bool ok = nans == 0 && relative <= limit;
    report(c, name, op, relative, limit, largest, at, nans, ok);
    c->compared++;
    c->failed += !ok;
    return ok || c->all;
}

/* --- the network --- */

/* Activations in the order in which they are made, with the operation that makes them. */
static const struct {
    enum act_id id;
    const char *op;
    int depth; /* roundings since the input of the layer */
} layer_order[] = {{A_LN1, "norm_forward, residual_norm_forward", 1},
                   {A_QKV_RAW, "matmul_forward", 2},
                   {A_QKV, "matmul_forward, qk_norm_forward, rope", 2},
                   {A_LSE, "attn_forward", 3},
                   {A_ATTN, "attn_forward", 4},
                   {A_RESID_MID, "matmul_forward, residual_norm_forward", 6},
                   {A_LN2, "residual_norm_forward", 7},
                   {A_FC, "matmul_forward", 8},
                   {A_MLP_ACT, "matmul_forward, act_forward", 9},
                   {A_RESID_OUT, "matmul_forward, residual_norm_forward", 11}};
enum { ROUNDINGS_A_LAYER = 11 };

static bool compare_act(struct comparison *c, enum act_id id, int64_t l, const char *op, double depth) {
    const struct gpt *a = &c->cpu.gpt, *b = &c->other.gpt;
    if (!gpt_has_act(a, id)) return true;
    if (a->act_stride[id] != 0 && b->act_stride[id] == 0 && a->config.layers > 1)
        return true; /* overwritten: backward recomputes it */
    struct tensor want = gpt_act(a, id, l), got = gpt_act(b, id, l);
    char name[96];
    if (a->act_stride[id])
        snprintf(name, sizeof name, "h.%" PRId64 ".%s", l, gpt_act_name(id));
    else
        snprintf(name, sizeof name, "%s", gpt_act_name(id));
    return compare(c, name, op, &want, &got, tolerance(c, c->rounding, depth));
}

static bool compare_forward(struct comparison *c) {
    int64_t L = c->cpu.gpt.config.layers;
    if (!compare_act(c, A_EMBED, 0, "embed_forward, norm_forward", 1)) return false;
    for (int64_t l = 0; l < L; l++)
        for (size_t i = 0; i < ARRAY_LENGTH(layer_order); i++)
            if (!compare_act(c, layer_order[i].id, l, layer_order[i].op,
                             1.0 + (double)(l * ROUNDINGS_A_LAYER + layer_order[i].depth)))
                return false;
    double depth = (double)(L * ROUNDINGS_A_LAYER);
    return compare_act(c, A_LNF, 0, "residual_norm_forward", depth + 2) &&
           compare_act(c, A_LOSSES, 0, "matmul_forward, loss_forward", depth + 4);
}

static bool compare_params(struct comparison *c, bool gradients) {
    int64_t L = c->cpu.gpt.config.layers;
    /* gradients: forward through all layers and back; an update: one rounding, of moments with one */
    double depth = gradients ? (double)(2 * L * ROUNDINGS_A_LAYER) + 6.0 : 2.0;
    const char *op = gradients ? "the backward pass of this tensor's operation" : "adamw";
    for (int64_t l = -1; l <= L; l++) /* -1: before the layers, L: after them */
        for (int id = 0; id < PARAM_ROWS; id++) {
            enum param_id p = (enum param_id)id;
            bool after = p >= P_LNF_W && p <= P_LM_HEAD, in_layers = l >= 0 && l < L;
            if (gpt_param_rows[id].per_layer != in_layers || (!in_layers && after != (l == L)) ||
                !gpt_param_copies(&c->cpu.gpt.config, p))
                continue;
            struct tensor want = gradients ? gpt_grad(&c->cpu.gpt, p, l) : gpt_param(&c->cpu.gpt, p, l);
            struct tensor got = gradients ? gpt_grad(&c->other.gpt, p, l) : gpt_param(&c->other.gpt, p, l);
            char *name = xasprintf("%s%s", gradients ? "d " : "", gpt_param_name(p, l));
            bool go_on =
                compare(c, name, op, &want, &got, tolerance(c, gradients ? c->rounding : c->stored, depth));
            free(name);
            if (!go_on) return false;
        }
    return true;
}

static void random_batch(struct side *s, const struct gpt_config *model, uint64_t seed, int64_t step) {
    int64_t n = s->gpt.options.B * s->gpt.options.T;
    int32_t *tokens = (int32_t *)xmalloc((size_t)(n + 1) * sizeof *tokens);
    for (int64_t i = 0; i <= n; i++)
        tokens[i] =
            (int32_t)(rng_uniform(seed, RNG_TEST, (uint64_t)((step << 40) + i)) * (double)model->vocab_size);
    gpt_set_batch(&s->gpt, tokens, tokens + 1);
    gpt_set_documents(&s->gpt, NULL, NULL);
    ctx_download(&s->ctx, tokens, gpt_act(&s->gpt, A_TOKENS, 0).data,
                 4); /* waits: `tokens` must outlive the copy */
    free(tokens);
}

static void train_one(struct side *s, const struct run_config *run, const struct gpt_config *model,
                      int64_t step) {
    random_batch(s, model, (uint64_t)run->seed, step);
    gpt_set_loss_scale(&s->gpt, 1.0f / (float)(s->gpt.options.B * s->gpt.options.T));
    gpt_forward_backward(&s->gpt, true);
}

static void update(struct side *s, const struct run_config *run, int64_t step) {
    struct update_args args = {.lr = (float)run->learning_rate,
                               .beta1 = 0.9f,
                               .beta2 = 0.95f,
                               .eps = 1e-8f,
                               .weight_decay = 0.1f,
                               .max_norm = 1.0f,
                               .step = step};
    optimizer_step(&s->optimizer, &s->gpt, &args);
}

/* Makes a buffer equal on both sides: the CPU's values, rounded as the other device stores them. */
static void share(struct comparison *c, struct tensor *cpu, struct tensor *other) {
    float *values = (float *)xmalloc((size_t)tensor_count(cpu) * sizeof *values);
    ctx_download_f32(&c->cpu.ctx, values, cpu);
    ctx_upload_f32(&c->other.ctx, other, values);
    ctx_download_f32(&c->other.ctx, values, other);
    ctx_upload_f32(&c->cpu.ctx, cpu, values);
    free(values);
}

/* Both sides update from the reference's gradient. AdamW divides a gradient by its own size, so the
 * rounding noise of one that should be zero (the bias of the keys) would become a full-sized difference,
 * and not AdamW's fault. */
static bool compare_step(struct comparison *c, const struct run_config *run, const struct gpt_config *model) {
    train_one(&c->cpu, run, model, c->step);
    train_one(&c->other, run, model, c->step);
    if (!compare_forward(c) || !compare_params(c, true)) return false;
    share(c, &c->cpu.gpt.grads, &c->other.gpt.grads);
    update(&c->cpu, run, c->step);
    update(&c->other, run, c->step);
    return compare_params(c, false);
}

/* --- the command --- */

static void open_side(struct side *s, struct device *device, const struct gpt_config *model,
                      const struct gpt_options *options, struct optimizer_options kept) {
    s->device = device;
    ctx_init(&s->ctx, device, device->ops, false);
    gpt_create(&s->gpt, &s->ctx, model, options);
    optimizer_create(&s->optimizer, &s->gpt, kept);
}

static void close_side(struct side *s) {
    ctx_free(&s->ctx);
    s->device->close(s->device);
}

int cmd_compare(int argc, char **argv) {
    struct options options;
    struct compare_config config = {0};
    memset(&config, 0, sizeof config);
    int status = command_options(&options, &compare_command, &config, argc, argv);
    if (status >= 0) return status;
    struct error err;
    struct gpt_config model;
    char *directory;
    check(run_model_config(&model, &directory, &config.run, config.run.shape.vocab_size, &err), "%s",
          err.message);
    struct device *device = run_open_device(&config.run);
    struct comparison c;
    memset(&c, 0, sizeof c);
    c.json = config.json;
    c.all = config.all;
    struct gpt_options other = run_gpt_options(&config.run, device), reference = other;
    reference.dtype = DTYPE_F32;
    reference.recompute = RECOMPUTE_NONE;
    reference.head_chunks = 1;
    c.stored = other.dtype == DTYPE_BF16 ? 0x1p-9 : config.run.tf32 ? 0x1p-12 : 0x1p-21;
    c.rounding = other.fp8 && other.dtype == DTYPE_BF16 ? 0x1p-6 : c.stored;
    struct optimizer_options kept = run_optimizer_options(&config.run, &other);
    open_side(&c.cpu, device_open_cpu(), &model, &reference, (struct optimizer_options){.kind = kept.kind});
    open_side(&c.other, device, &model, &other, kept);
    if (directory)
        check(checkpoint_load_weights(&c.cpu.gpt, directory, &err), "%s", err.message);
    else
        gpt_init_weights(&c.cpu.gpt, (uint64_t)config.run.seed);
    share(&c, &c.cpu.gpt.params, &c.other.gpt.params);
    if (c.other.optimizer.has_master) cast(&c.other.ctx, &c.other.optimizer.master, &c.other.gpt.params);
    if (!c.json)
        printf("%s in fp32 (reference) against %s in %s%s\n", c.cpu.device->name, device->name,
               dtype_name(other.dtype), other.fp8 ? "; both multiply the matrices of the blocks in fp8" : "");
    bool ok = true;
    for (c.step = 1; ok && c.step <= config.run.steps; c.step++) {
        if (!c.json)
            printf("\nstep %-31" PRId64 " %10s %10s %12s %10s %5s\n", c.step, "rel. error", "allowed",
                   "largest", "at", "NaN");
        ok = compare_step(&c, &config.run, &model);
    }
    if (!c.json)
        printf("\n%" PRId64 " tensors compared, %" PRId64 " differ%s\n", c.compared, c.failed,
               ok || c.all ? "" : "; stopped at the first (--all continues)");
    status = c.failed ? 1 : 0;
    close_side(&c.cpu);
    close_side(&c.other);
    free(directory);
    options_free(&options);
    return status;
}
