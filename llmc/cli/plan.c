/* `train_gpt plan`: the memory and the work of a training step, computed without allocating anything (see
 * plan mode in ctx.h). */
#include "llmc/base/console.h"
#include "llmc/cli/commands.h"
#include "llmc/run/config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct option_command plan_command = {
    "train_gpt plan [options of training]",
    "Prints the memory that a training run with these options needs, by category, and the FLOPs of a step. "
    "With --gpus N or --ranks N it prints the memory of each process, for every level of --zero. It runs the "
    "real step in a mode that neither allocates nor computes, so that plan and run cannot differ. The "
    "options of a run can be given as they are: those that change neither memory nor work, such as --out, do "
    "nothing. Exits with 1 if the memory does not suffice.",
    run_option_groups, RUN_OPTION_GROUPS};

enum { LEVELS = ZERO_PARAMETERS + 1 };

/* A step at each level of ZeRO: a column of the table. With one process all levels are the same. */
struct plans {
    int64_t world;
    int64_t sharing; /* processes that share one memory; each GPU has its own */
    int count;
    struct ctx ctx[LEVELS];
    double update[LEVELS]; /* FLOPs of the optimizer */
};

static void make_plans(struct plans *p, const struct run_config *c, const struct gpt_config *model,
                       struct device *device) {
    p->world = max_i64(1, c->world);
    p->sharing = device->unified ? p->world : 1;
    p->count = p->world > 1 ? LEVELS : 1;
    for (int level = 0; level < p->count; level++) {
        struct run_config at_level = *c;
        at_level.zero = (enum zero_level)level;
        struct gpt_options options = run_gpt_options(&at_level, device);
        ctx_init(&p->ctx[level], device, device->ops, true);
        p->update[level] = run_plan_step(&p->ctx[level], model, &options, run_optimizer_options(c, &options),
                                         at_level.zero, p->world);
    }
}

static bool plan_fits(const struct plans *p, int level, int64_t free_bytes) {
    return p->sharing * ctx_memory_total(&p->ctx[level]) <= free_bytes;
}

static void print_row(const struct plans *p, const char *name, int64_t (*bytes)(const struct ctx *, int),
                      int kind) {
    printf("  %-12s", name);
    for (int level = 0; level < p->count; level++)
        printf(" %12s", human_bytes((double)bytes(&p->ctx[level], kind)));
    printf("\n");
}

static int64_t bytes_of_kind(const struct ctx *ctx, int kind) { return ctx->memory[kind]; }
static int64_t bytes_of_all(const struct ctx *ctx, int kind) { return ctx_memory_total(ctx); }

static void print_memory(const struct plans *p, int64_t free_bytes) {
    if (p->count > 1)
        printf("  %-12s %12s %12s %12s %12s\n", "", "--zero 0", "--zero 1", "--zero 2", "--zero 3");
    for (int kind = 0; kind < MEM_KINDS; kind++)
        print_row(p, memory_kind_name((enum memory_kind)kind), bytes_of_kind, kind);
    print_row(p, "total", bytes_of_all, 0);
    if (p->count == 1) return;
    printf("  %-12s", "fits");
    for (int level = 0; level < p->count; level++)
        printf(" %12s", plan_fits(p, level, free_bytes) ? "yes" : "no");
    printf("\n");
}

static void print_work(const struct ctx *ctx, double update, const struct run_config *c,
                       const struct gpt_config *model) {
    double micro_steps = (double)(c->tokens_per_step / (c->batch_size * c->seq_len));
    double matmul = ctx->stats[OP_matmul_forward].flops + ctx->stats[OP_matmul_backward].flops;
    double attention = ctx->stats[OP_attn_forward].flops + ctx->stats[OP_attn_backward].flops;
    double step = ctx_flops(ctx) * micro_steps + update;
    printf("work of a step (%" PRId64 " tokens in %.0f micro-batch%s of %" PRId64 " x %" PRId64 ")\n",
           c->tokens_per_step, micro_steps, micro_steps > 1 ? "es" : "", c->batch_size, c->seq_len);
    printf("  %-12s %12sFLOP\n", "matmul", human_count(matmul * micro_steps));
    printf("  %-12s %12sFLOP\n", "attention", human_count(attention * micro_steps));
    printf("  %-12s %12sFLOP\n", "other", human_count(step - (matmul + attention) * micro_steps - update));
    printf("  %-12s %12sFLOP\n", "optimizer", human_count(update));
    printf("  %-12s %12sFLOP; by the formula of the literature, 6N + 6LCT per token: %sFLOP\n", "total",
           human_count(step),
           human_count(gpt_flops_per_token(model, c->seq_len) * (double)c->tokens_per_step));
}

int cmd_plan(int argc, char **argv) {
    struct options options;
    struct run_config c = {0};
    int status = command_options(&options, &plan_command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    struct gpt_config model;
    char *directory;
    check(run_model_config(&model, &directory, &c, c.shape.vocab_size, &err), "%s", err.message);
    c.world = max_i64(c.gpus, c.ranks);
    check(run_config_complete(&c, &model, &err), "%s", err.message);
    struct device *device = run_open_device(&c);
    struct plans plans;
    make_plans(&plans, &c, &model, device);
    int chosen = plans.count > 1 ? (int)c.zero : 0;

    struct gpt_params layout;
    gpt_params_layout(&layout, &model);
    say("model %s: %sparameters (%" PRId64 " layers, %" PRId64 " heads, %" PRId64
        " channels, vocabulary %" PRId64 ", context %" PRId64 ")\n",
        model.name, human_count((double)layout.count), model.layers, model.heads, model.channels,
        model.vocab_size, model.context);
    int64_t free_bytes, total_bytes;
    device->memory_info(device, &free_bytes, &total_bytes);
    printf("memory%s on %s (%s of %s free%s), %s\n", plans.count > 1 ? " of each process" : "", device->name,
           human_bytes((double)free_bytes), human_bytes((double)total_bytes),
           plans.sharing > 1 ? ", for all together" : "", dtype_name(run_gpt_options(&c, device).dtype));
    print_memory(&plans, free_bytes);
    bool fits = plan_fits(&plans, chosen, free_bytes);
    int other = 0; /* the lowest level that fits */
    while (other < plans.count && !plan_fits(&plans, other, free_bytes)) other++;
    char *where = plans.count > 1 ? xasprintf(" with --zero %d", chosen) : xstrdup("");
    if (fits)
        printf("This fits%s.\n", where);
    else if (other < plans.count)
        printf("This does NOT fit%s; --zero %d does.\n", where, other);
    else
        printf("This does NOT fit%s. %s.\n", where, ctx_memory_advice(&plans.ctx[chosen], free_bytes));
    free(where);
    print_work(&plans.ctx[chosen], plans.update[chosen], &c, &model);
    for (int level = 0; level < plans.count; level++) ctx_free(&plans.ctx[level]);
    device->close(device);
    free(directory);
    options_free(&options);
    return fits ? 0 : 1;
}
