/* Choosing and running a variant, and the accounts of what ran. Contracts in dispatch.h and ops.h. */
#include "llmc/ops/dispatch.h"

#include <stdio.h>
#include <string.h>

const char *op_name(enum op_id id) {
#define X(op) #op,
    static const char *const names[OP_COUNT] = {LLMC_OPS(X)};
#undef X
    return names[id];
}

bool op_variant_allowed(const struct ctx *ctx, enum op_id id, const char *name) {
    const char *op = op_name(id);
    size_t op_length = strlen(op), name_length = strlen(name);
    for (const char *p = ctx->forced; p && *p;) {
        const char *end = p + strcspn(p, ",");
        if (strncmp(p, op, op_length) == 0 && p[op_length] == ':') {
            const char *want = p + op_length + 1;
            bool excludes = *want == '-';
            want += excludes;
            bool same = (size_t)(end - want) == name_length && strncmp(want, name, name_length) == 0;
            if (!excludes) return same;
            if (same) return false;
        }
        p = *end ? end + 1 : end;
    }
    return true;
}

bool op_runs_on(const struct ctx *ctx, int arch) {
    return arch == 0 || (ctx->device && ctx->device->arch == arch);
}

double op_matmul_rate(const struct ctx *ctx, const char *variant, double plain_rate) {
    return !ctx->device->unified && strcmp(variant, "fp8") == 0 ? 2.0 * plain_rate : plain_rate;
}

void op_begin(struct ctx *ctx, enum op_id id, const char *variant, int64_t need, double flops, double bytes,
              struct op_env *env) {
    ctx_reserve_scratch(ctx, need);
    ctx->variant_in_use[id] = variant;
    ctx->stats[id].calls++;
    ctx->stats[id].flops += flops;
    ctx->stats[id].bytes += bytes;
    env->stream = ctx->stream;
    env->scratch = ctx->scratch;
    env->zeros = ctx->scratch ? (char *)ctx->scratch + ctx->scratch_capacity : NULL;
    env->state = ctx->device ? ctx->device->state : NULL;
    env->recomputes = ctx->recomputes;
    ctx_range_push(ctx, op_name(id));
    if (!ctx->profile || ctx->plan) return;
    if (ctx->mark_count == ctx->mark_capacity) {
        int64_t more = ctx->mark_capacity ? ctx->mark_capacity : 256;
        ctx->marks =
            (struct op_mark *)xrealloc(ctx->marks, (size_t)(ctx->mark_capacity + more) * sizeof *ctx->marks);
        for (int64_t i = 0; i < more; i++, ctx->mark_capacity++) {
            ctx->marks[ctx->mark_capacity].first = ctx->device->event_new(ctx->device);
            ctx->marks[ctx->mark_capacity].last = ctx->device->event_new(ctx->device);
        }
    }
    struct op_mark *mark = &ctx->marks[ctx->mark_count];
    mark->op = id;
    mark->variant = variant;
    mark->flops = flops;
    mark->bytes = bytes;
    bool matmul = id == OP_matmul_forward || id == OP_matmul_backward;
    for (int i = 0; i < 3; i++) mark->shape[i] = matmul ? ctx->matmul_shape[i] : 0;
    ctx->device->event_record(ctx->device, mark->first, ctx->stream);
}

void op_end(struct ctx *ctx) {
    if (ctx->profile) ctx->device->event_record(ctx->device, ctx->marks[ctx->mark_count++].last, ctx->stream);
    ctx_range_pop(ctx);
}

void op_append_name(char *list, size_t size, const char *name) {
    size_t used = strlen(list);
    snprintf(list + used, size - used, "%s%s", used ? ", " : "", name);
}

_Noreturn void op_no_variant(const struct ctx *ctx, const char *op, const char *names,
                             const struct tensor *first) {
    die("%s: no %s variant%s%s takes these operands (first one: %s); its variants are %s", op,
        ctx->ops->backend, ctx->forced ? " allowed by LLMC_VARIANT=" : "", ctx->forced ? ctx->forced : "",
        tensor_text(first), names);
}
