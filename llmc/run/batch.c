/* The batch size, tried from the largest divisor of a step down. A plan takes milliseconds (plan mode in
 * ctx.h). */
#include "llmc/run/batch.h"

#include <inttypes.h>

int64_t run_planned_bytes(const struct run_config *c, const struct gpt_config *model, struct device *device,
                          int64_t batch_size) {
    struct run_config with = *c;
    with.batch_size = batch_size;
    struct gpt_options options = run_gpt_options(&with, device);
    struct ctx ctx;
    ctx_init(&ctx, device, device->ops, true);
    run_plan_step(&ctx, model, &options, run_optimizer_options(&with, &options), &with);
    int64_t bytes = ctx_memory_total(&ctx);
    ctx_free(&ctx);
    return bytes;
}

int64_t run_batch_limit(const struct gpt_config *model, const struct device *device) {
    enum { LIMIT = (1 << 16) - 1 };
    return device->arch ? LIMIT / model->heads : LIMIT;
}

/* fp8 matmuls need multiples of 16 tokens. */
static bool can_be(const struct run_config *c, int64_t sequences, int64_t batch_size) {
    return sequences % batch_size == 0 &&
           (c->matmul != MATMUL_CHOICE_FP8 || batch_size * c->seq_len % 16 == 0);
}

struct batch_choice run_choose_batch(const struct run_config *c, const struct gpt_config *model,
                                     struct device *device, int64_t before, int64_t most) {
    /* With 2^16 rows the smallest matmul of GPT-2 124M, 768 wide, has 1536 tiles of 128 x 256 for the 132
     * multiprocessors of an H100, and its last, partly filled round is one of twelve. */
    enum { BUSY = 1 << 16 };
    bool gpu = device->arch != 0;
    int64_t free_bytes, all_bytes, sequences = c->tokens_per_step / (c->seq_len * max_i64(1, c->world));
    device->memory_info(device, &free_bytes, &all_bytes);
    struct batch_choice choice = {.sequences = sequences, .available = free_bytes / 10 * 9};
    if (before && can_be(c, sequences, before) &&
        (!gpu || run_planned_bytes(c, model, device, before) <= free_bytes)) {
        choice.size = before;
        choice.kept = true;
        return choice;
    }
    int64_t limit = gpu ? max_i64(1, BUSY / c->seq_len) : c->usual_batch;
    most = min_i64(min_i64(most, limit), min_i64(sequences, run_batch_limit(model, device)));
    for (int64_t size = most; size >= 1; size--) {
        if (!can_be(c, sequences, size)) continue;
        choice.size = size;
        int64_t bytes = gpu ? run_planned_bytes(c, model, device, size) : 0;
        if (bytes <= choice.available) break;
        choice.too_large = size;
        choice.needed = bytes;
    }
    if (!choice.size) choice.size = 1;
    return choice;
}

const char *run_batch_text(const struct batch_choice *b) {
    const char *at_a_time =
        b->size == b->sequences
            ? temp_printf("all %" PRId64 " sequences of a step at a time", b->size)
            : temp_printf("%" PRId64 " of a step's %" PRId64 " sequences at a time", b->size, b->sequences);
    if (b->kept) return temp_printf("%s, as before", at_a_time);
    if (b->too_large > b->size)
        return temp_printf("%s: the largest batch that fits (%" PRId64 " need %s, and %s may be used)",
                           at_a_time, b->too_large, human_bytes((double)b->needed),
                           human_bytes((double)b->available));
    return at_a_time;
}
