/* Everything an operation's caller carries around: the device, its op table, memory accounts, scratch,
 * counters. Nothing in the engine is global; two contexts (CPU and GPU, or plan and run) live side by side in
 * one process.
 *
 * Plan mode. A context with `plan` set allocates nothing and runs nothing, but takes the same path:
 * ctx_alloc() counts bytes, front doors check shapes, count FLOPs and ask for scratch. Running the real step
 * once in plan mode gives the peak memory and the work of a step, so the plan cannot drift from the run. */
#ifndef LLMC_CTX_H
#define LLMC_CTX_H

#include "llmc/ops/device.h"
#include "llmc/ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum memory_kind { MEM_PARAMETERS, MEM_GRADIENTS, MEM_OPTIMIZER, MEM_ACTIVATIONS, MEM_SCRATCH, MEM_KINDS };
const char *memory_kind_name(enum memory_kind kind);

struct op_stats {
    int64_t calls;
    double flops;
    double bytes;   /* the fewest that must move: each operand once */
    double seconds; /* with ctx.profile, up to the last ctx_collect_profile */
};

struct ctx {
    struct device *device;
    const struct ops *ops;
    void *stream;
    bool plan;
    bool profile; /* time every op: device events around each */

    int64_t memory[MEM_KINDS]; /* bytes held now; for MEM_SCRATCH the largest request so far */
    void *scratch;             /* OP_ZEROS bytes more than the capacity: op_env.zeros */
    int64_t scratch_capacity;

    struct op_stats stats[OP_COUNT];
    const char *variant_in_use[OP_COUNT]; /* name of the variant that ran last; NULL: none yet */
    const char *forced;                   /* LLMC_VARIANT: "attn_forward:naive,act_forward:..." or NULL */

    int64_t matmul_shape[3]; /* rows, columns in, columns out of the matmul that comes next, for its mark */
    struct op_mark {
        enum op_id op;
        const char *variant;
        int64_t shape[3]; /* 0: no matmul */
        double flops, bytes;
        void *first, *last; /* device events */
    } * marks;              /* of ops run since the last ctx_collect_profile; the events are used again */
    int64_t mark_count, mark_capacity;

    void **owned; /* allocations to free at the end */
    int owned_count, owned_capacity;
};

/* Chooses the op table that belongs to the device. The context does not own the device. */
void ctx_init(struct ctx *ctx, struct device *device, const struct ops *ops, bool plan);
void ctx_free(struct ctx *ctx);

/* Device memory for `bytes` (256-byte aligned), or NULL in plan mode. Dies with advice if there is not
 * enough. */
void *ctx_alloc(struct ctx *ctx, enum memory_kind kind, int64_t bytes, const char *what);

/* Makes sure that scratch of `bytes` is there; called with a plan's peak before the first step. */
void ctx_reserve_scratch(struct ctx *ctx, int64_t bytes);

int64_t ctx_memory_total(const struct ctx *ctx);
/* What would need less memory than this context, where `available` bytes are not enough: a sentence. */
const char *ctx_memory_advice(const struct ctx *ctx, int64_t available);
double ctx_flops(const struct ctx *ctx); /* sum over ops since the last ctx_reset_stats */
void ctx_reset_stats(struct ctx *ctx);
/* Waits for the device and adds the times of all ops since the last call to their stats. */
void ctx_collect_profile(struct ctx *ctx);

/* Names what runs between the two for a profiler that listens; nested. The front doors do so for every op. */
static inline void ctx_range_push(const struct ctx *ctx, const char *name) {
    if (!ctx->plan && ctx->device->range_push) ctx->device->range_push(ctx->device, name);
}
static inline void ctx_range_pop(const struct ctx *ctx) {
    if (!ctx->plan && ctx->device->range_pop) ctx->device->range_pop(ctx->device);
}

/* Copies between host and device that respect plan mode. download() returns when the bytes are there. */
void ctx_upload(struct ctx *ctx, void *dst, const void *src, int64_t bytes);
void ctx_download(struct ctx *ctx, void *dst, const void *src, int64_t bytes);

/* The same for fp32 on the host and an fp32 or bf16 tensor on the device: converted on the host. */
void ctx_upload_f32(struct ctx *ctx, struct tensor *t, const float *src);
void ctx_download_f32(struct ctx *ctx, float *dst, const struct tensor *t);

#ifdef __cplusplus
}
#endif
#endif
