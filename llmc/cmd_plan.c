/* `train_gpt plan`: memory and work of a training step, before anything is allocated. */
#include "commands.h"
#include "run_config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static const struct option_command command = {
    "train_gpt plan [options of training]",
    "Prints the memory that a training run with these options would take, by category, and the FLOPs of a "
    "step. It runs "
    "the real step in a mode that allocates and computes nothing, so plan and run cannot differ.",
    run_option_groups,
    RUN_OPTION_GROUPS,
    NULL,
    0,
    0};

static void print_memory(const struct ctx *ctx) {
    for (int kind = 0; kind < MEM_KINDS; kind++)
        printf("  %-12s %12s\n", memory_kind_name((enum memory_kind)kind),
               human_bytes((double)ctx->memory[kind]));
    printf("  %-12s %12s\n", "total", human_bytes((double)ctx_memory_total(ctx)));
}

static void print_work(const struct ctx *ctx, const struct run_config *c, const struct gpt_config *model) {
    double micro_steps = (double)(c->tokens_per_step / (c->batch_size * c->seq_len));
    double matmul = ctx->stats[OP_matmul_forward].flops + ctx->stats[OP_matmul_backward].flops;
    double attention = ctx->stats[OP_attn_forward].flops + ctx->stats[OP_attn_backward].flops;
    double update = ctx->stats[OP_adamw].flops + ctx->stats[OP_sumsq].flops;
    double step = (ctx_flops(ctx) - update) * micro_steps + update;
    printf("work of a step (%" PRId64 " tokens in %.0f micro-batch%s of %" PRId64 " x %" PRId64 ")\n",
           c->tokens_per_step, micro_steps, micro_steps > 1 ? "es" : "", c->batch_size, c->seq_len);
    printf("  %-12s %12sFLOP\n", "matmul", human_count(matmul * micro_steps));
    printf("  %-12s %12sFLOP\n", "attention", human_count(attention * micro_steps));
    printf("  %-12s %12sFLOP\n", "the rest", human_count(step - (matmul + attention) * micro_steps));
    printf("  %-12s %12sFLOP; by the convention of papers, 6N + 6LCT a token: %sFLOP\n", "total",
           human_count(step),
           human_count(gpt_flops_per_token(model, c->seq_len) * (double)c->tokens_per_step));
}

int cmd_plan(int argc, char **argv) {
    struct options options;
    struct run_config c = {0};
    int status = command_options(&options, &command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    struct gpt_config model;
    char *directory;
    check(run_model_config(&model, &directory, &c, c.vocab_size, &err), "%s", err.message);
    check(run_config_complete(&c, &model, 0, &err), "%s", err.message);
    struct device *device = run_open_device(&c);
    struct gpt_options gpt_options = run_gpt_options(&c, device);
    struct ctx ctx;
    ctx_init(&ctx, device, device->ops, true);
    run_plan_step(&ctx, &model, &gpt_options, run_master_weights(&c, &gpt_options));

    struct gpt_params layout;
    gpt_params_layout(&layout, &model);
    printf("model %s: %sparameters (%" PRId64 " layers, %" PRId64 " heads, %" PRId64
           " channels, vocabulary %" PRId64 ", context %" PRId64 ")\n",
           model.name, human_count((double)layout.count), model.layers, model.heads, model.channels,
           model.vocab_size, model.context);
    int64_t free_bytes, total_bytes;
    device->memory_info(device, &free_bytes, &total_bytes);
    printf("memory on %s (%s of %s free), %s\n", device->name, human_bytes((double)free_bytes),
           human_bytes((double)total_bytes), dtype_name(gpt_options.dtype));
    print_memory(&ctx);
    bool fits = ctx_memory_total(&ctx) <= free_bytes;
    printf("%s\n",
           fits ? "This fits."
                : "This does NOT fit. A smaller --batch-size (with the same --tokens-per-step), a shorter "
                  "--seq-len, --recompute block or --head-chunks 4 need less.");
    print_work(&ctx, &c, &model);
    ctx_free(&ctx);
    device->close(device);
    free(directory);
    options_free(&options);
    return fits ? 0 : 1;
}
