/* The context of operations. Contracts in ctx.h.
 *
 * Operations run one after another on one stream, so all of them share one block of scratch, which grows to
 * the largest request. bf16 tensors are converted on the host, a piece at a time. */
#include "llmc/ops/ctx.h"
#include "llmc/ops/fp8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *memory_kind_name(enum memory_kind kind) {
    static const char *const names[MEM_KINDS] = {"parameters", "gradients", "optimizer", "activations",
                                                 "scratch"};
    return names[kind];
}

/* LLMC_VARIANT. Every part must name an operation, or "cpu" with an instruction set (cpu_ops() obeys that);
 * a misspelt name would otherwise have no effect. */
static const char *forced_variants(void) {
    const char *forced = getenv("LLMC_VARIANT");
    for (const char *p = forced; p && *p;) {
        int length = (int)strcspn(p, ",:"), id = 0;
        while (id < OP_COUNT && !(strlen(op_name((enum op_id)id)) == (size_t)length &&
                                  strncmp(op_name((enum op_id)id), p, (size_t)length) == 0))
            id++;
        bool cpu = length == 3 && strncmp(p, "cpu", 3) == 0;
        check((id < OP_COUNT || cpu) && p[length] == ':',
              "LLMC_VARIANT=%s: \"%.*s\" should be OPERATION:VARIANT, for example attn_forward:naive, or "
              "cpu:INSTRUCTION_SET",
              forced, (int)strcspn(p, ","), p);
        p += strcspn(p, ",");
        p += *p == ',';
    }
    return forced;
}

void ctx_init(struct ctx *ctx, struct device *device, const struct ops *ops, bool plan) {
    memset(ctx, 0, sizeof *ctx);
    ctx->device = device;
    ctx->ops = ops;
    ctx->stream = device ? device->stream : NULL;
    ctx->plan = plan;
    ctx->forced = forced_variants();
}

void ctx_free(struct ctx *ctx) {
    for (int i = 0; i < ctx->owned_count; i++) ctx->device->free(ctx->device, ctx->owned[i]);
    if (ctx->scratch) ctx->device->free(ctx->device, ctx->scratch);
    for (int64_t i = 0; i < ctx->mark_capacity; i++) {
        ctx->device->event_free(ctx->device, ctx->marks[i].first);
        ctx->device->event_free(ctx->device, ctx->marks[i].last);
    }
    free(ctx->marks);
    free(ctx->owned);
    memset(ctx, 0, sizeof *ctx);
}

const char *ctx_memory_advice(const struct ctx *ctx, int64_t available, bool one_sequence) {
    int64_t model = ctx->memory[MEM_PARAMETERS] + ctx->memory[MEM_GRADIENTS] + ctx->memory[MEM_OPTIMIZER];
    if (model > available)
        return temp_printf(
            "Parameters, gradients and optimizer take %s, whatever the batch: a smaller --model, "
            "--no-master-weights or, on several GPUs, a higher --zero level need less",
            human_bytes((double)model));
    return temp_printf(
        "%s --seq-len, --recompute block, --head-chunks 4 or, on several GPUs, a higher --zero level need less",
        one_sequence ? "One sequence alone does not fit: a shorter"
                     : "A smaller --batch-size (with the same --tokens-per-step), a shorter");
}

/* The caller has already added `bytes` to the context's accounts. */
static void *alloc_or_explain(struct ctx *ctx, int64_t bytes, const char *what) {
    void *p = ctx->device->alloc(ctx->device, (size_t)bytes);
    if (p) return p;
    int64_t free_bytes = 0, total_bytes = 0, used = max_i64(0, ctx_memory_total(ctx) - bytes);
    ctx->device->memory_info(ctx->device, &free_bytes, &total_bytes);
    die("out of memory on %s: %s need%s %s, %s of %s is free, and %s is in use by this run. %s; `train_gpt "
        "plan` with the same options shows how much",
        ctx->device->name, what, what[strlen(what) - 1] == 's' ? "" : "s", human_bytes((double)bytes),
        human_bytes((double)free_bytes), human_bytes((double)total_bytes), human_bytes((double)used),
        ctx_memory_advice(ctx, free_bytes + used, false));
}

/* ctx_free() will free p. */
static void *own(struct ctx *ctx, void *p) {
    if (ctx->owned_count == ctx->owned_capacity) {
        ctx->owned_capacity = ctx->owned_capacity ? 2 * ctx->owned_capacity : 16;
        ctx->owned = (void **)xrealloc(ctx->owned, (size_t)ctx->owned_capacity * sizeof *ctx->owned);
    }
    return ctx->owned[ctx->owned_count++] = p;
}

void *ctx_alloc(struct ctx *ctx, enum memory_kind kind, int64_t bytes, const char *what) {
    check(bytes > 0, "%s: asked for %lld bytes of device memory", what, (long long)bytes);
    ctx->memory[kind] += bytes;
    if (ctx->plan) return NULL;
    return own(ctx, alloc_or_explain(ctx, bytes, what));
}

void ctx_reserve_scratch(struct ctx *ctx, int64_t bytes) {
    if (bytes > ctx->memory[MEM_SCRATCH]) ctx->memory[MEM_SCRATCH] = bytes;
    if (ctx->plan || bytes <= ctx->scratch_capacity) return;
    if (ctx->scratch && ctx->recorded) {
        own(ctx, ctx->scratch);
    } else if (ctx->scratch) {
        ctx->device->synchronize(ctx->device, ctx->stream); /* a queued op may still use it */
        ctx->device->free(ctx->device, ctx->scratch);
    }
    static const char zeros[OP_ZEROS] = {0};
    ctx->scratch_capacity = round_up(bytes, 256);
    ctx->scratch = alloc_or_explain(ctx, ctx->scratch_capacity + OP_ZEROS, "scratch");
    ctx_upload(ctx, (char *)ctx->scratch + ctx->scratch_capacity, zeros, OP_ZEROS);
}

int64_t ctx_memory_total(const struct ctx *ctx) {
    int64_t total = 0;
    for (int i = 0; i < MEM_KINDS; i++) total += ctx->memory[i];
    return total;
}

double ctx_flops(const struct ctx *ctx) {
    double total = 0;
    for (int i = 0; i < OP_COUNT; i++) total += ctx->stats[i].flops;
    return total;
}

void ctx_reset_stats(struct ctx *ctx) { memset(ctx->stats, 0, sizeof ctx->stats); }

void ctx_collect_profile(struct ctx *ctx) {
    struct device *d = ctx->device;
    d->synchronize(d, ctx->stream);
    for (int64_t i = 0; i < ctx->mark_count; i++)
        ctx->stats[ctx->marks[i].op].seconds += d->event_seconds(d, ctx->marks[i].first, ctx->marks[i].last);
    ctx->mark_count = 0;
}

void ctx_upload(struct ctx *ctx, void *dst, const void *src, int64_t bytes) {
    if (!ctx->plan) ctx->device->upload(ctx->device, dst, src, (size_t)bytes, ctx->stream);
}

void ctx_download(struct ctx *ctx, void *dst, const void *src, int64_t bytes) {
    if (ctx->plan) return;
    ctx->device->download(ctx->device, dst, src, (size_t)bytes, ctx->stream);
    ctx->device->synchronize(ctx->device, ctx->stream);
}

void ctx_copy(struct ctx *ctx, void *dst, const void *src, int64_t bytes) {
    if (!ctx->plan) ctx->device->copy(ctx->device, dst, src, (size_t)bytes, ctx->stream);
}

/* Elements converted at a time: few enough to stay in cache. */
enum { CONVERT = 1 << 16 };

void ctx_upload_f32(struct ctx *ctx, struct tensor *t, const float *src) {
    int64_t n = tensor_count(t);
    check(t->dtype == DTYPE_F32 || t->dtype == DTYPE_BF16, "%s: neither fp32 nor bf16", tensor_text(t));
    if (t->dtype == DTYPE_F32 || ctx->plan) {
        ctx_upload(ctx, t->data, src, n * (int64_t)sizeof *src);
        return;
    }
    uint16_t *piece = (uint16_t *)xmalloc(CONVERT * sizeof *piece);
    for (int64_t first = 0; first < n; first += CONVERT) {
        int64_t count = min_i64(CONVERT, n - first);
        for (int64_t i = 0; i < count; i++) piece[i] = bf16_from_f32(src[first + i]);
        ctx_upload(ctx, (uint16_t *)t->data + first, piece, count * (int64_t)sizeof *piece);
    }
    free(piece);
}

static void download_fp8(struct ctx *ctx, float *dst, const struct tensor *t) {
    int64_t n = tensor_count(t);
    uint8_t *codes = (uint8_t *)xmalloc((size_t)n);
    float descale;
    ctx_download(ctx, codes, t->data, n);
    ctx_download(ctx, &descale, t->descale, sizeof descale);
    for (int64_t i = 0; i < n; i++) dst[i] = fp8_value(fp8_format_of(t->dtype), codes[i]) * descale;
    free(codes);
}

void ctx_download_f32(struct ctx *ctx, float *dst, const struct tensor *t) {
    int64_t n = tensor_count(t);
    check(t->dtype != DTYPE_I32, "%s: not a floating-point tensor", tensor_text(t));
    if (t->dtype == DTYPE_F32 || ctx->plan) {
        ctx_download(ctx, dst, t->data, n * (int64_t)sizeof *dst);
        return;
    }
    if (dtype_is_fp8(t->dtype)) {
        download_fp8(ctx, dst, t);
        return;
    }
    uint16_t *piece = (uint16_t *)xmalloc(CONVERT * sizeof *piece);
    for (int64_t first = 0; first < n; first += CONVERT) {
        int64_t count = min_i64(CONVERT, n - first);
        ctx_download(ctx, piece, (const uint16_t *)t->data + first, count * (int64_t)sizeof *piece);
        for (int64_t i = 0; i < count; i++) dst[first + i] = f32_from_bf16(piece[i]);
    }
    free(piece);
}

float *ctx_host_copy(struct ctx *ctx, struct tensor t) {
    float *copy = (float *)xmalloc((size_t)tensor_count(&t) * sizeof *copy);
    ctx_download_f32(ctx, copy, &t);
    return copy;
}
