/* A context is what every operation needs besides its operands: the device, the back end's op table,
 * scratch, and accounts of memory and work. Nothing in the engine is global, so that several contexts (CPU
 * and GPU, plan and run) can exist in one process.
 *
 * Plan mode. A context with `plan` set allocates and runs nothing, but takes the same path: ctx_alloc()
 * counts bytes; front doors check shapes, count FLOPs and ask for scratch. Running the real step in plan
 * mode yields its peak memory and its work, so the plan cannot differ from the run. */
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
    double bytes;   /* the least that must move: each operand once */
    double seconds; /* with ctx.profile, up to the last ctx_collect_profile */
};

struct ctx {
    struct device *device;
    const struct ops *ops;
    void *stream;
    bool plan;
    bool profile;    /* time every op, with a device event before and after it */
    bool recomputes; /* op_env.recomputes */

    int64_t memory[MEM_KINDS]; /* bytes allocated; of MEM_SCRATCH the largest request */
    void *scratch;             /* of the capacity, and OP_ZEROS bytes behind it: op_env.zeros */
    int64_t scratch_capacity;
    bool recorded; /* there are graphs, which address the scratch: blocks that it outgrows are kept */

    struct op_stats stats[OP_COUNT];
    const char *variant_in_use[OP_COUNT]; /* name of the variant that ran last; NULL: none yet */
    const char *forced;                   /* LLMC_VARIANT: "attn_forward:naive,act_forward:..." or NULL */

    int64_t matmul_shape[3]; /* of the next matmul, for its mark: rows, columns in, columns out */
    struct op_mark {
        enum op_id op;
        const char *variant;
        int64_t shape[3]; /* zeros if it is no matmul */
        double flops, bytes;
        void *first, *last; /* device events */
    } * marks;              /* of the ops since the last ctx_collect_profile; events are reused */
    int64_t mark_count, mark_capacity;

    void **owned; /* allocations that ctx_free() frees */
    int owned_count, owned_capacity;
};

/* `ops` is the table of the device's back end. The context does not own the device. */
void ctx_init(struct ctx *ctx, struct device *device, const struct ops *ops, bool plan);
void ctx_free(struct ctx *ctx);

/* Device memory, 256-byte aligned; NULL in plan mode. Too little memory ends the program, with advice. */
void *ctx_alloc(struct ctx *ctx, enum memory_kind kind, int64_t bytes, const char *what);

/* Grows the scratch to `bytes`. Called with the plan's peak before the first step, so that no op grows it. */
void ctx_reserve_scratch(struct ctx *ctx, int64_t bytes);

int64_t ctx_memory_total(const struct ctx *ctx);
/* A sentence: which options need less memory than this context does, where `available` bytes are too few.
 * `one_sequence`: its batch cannot be smaller. */
const char *ctx_memory_advice(const struct ctx *ctx, int64_t available, bool one_sequence);
double ctx_flops(const struct ctx *ctx); /* sum over ops since the last ctx_reset_stats */
void ctx_reset_stats(struct ctx *ctx);
/* Waits for the device and adds the times of all ops since the last call to their stats. */
void ctx_collect_profile(struct ctx *ctx);

/* A named range for profilers around what runs between the two; ranges nest. Front doors open one for every
 * op. */
static inline void ctx_range_push(const struct ctx *ctx, const char *name) {
    if (!ctx->plan && ctx->device->range_push) ctx->device->range_push(ctx->device, name);
}
static inline void ctx_range_pop(const struct ctx *ctx) {
    if (!ctx->plan && ctx->device->range_pop) ctx->device->range_pop(ctx->device);
}

/* Copies between host and device; none in plan mode. ctx_download() returns when the bytes have arrived. */
void ctx_upload(struct ctx *ctx, void *dst, const void *src, int64_t bytes);
void ctx_download(struct ctx *ctx, void *dst, const void *src, int64_t bytes);
void ctx_copy(struct ctx *ctx, void *dst, const void *src, int64_t bytes); /* on the device */

/* The same between fp32 on the host and an fp32 or bf16 tensor, or from an fp8 one; the host converts. */
void ctx_upload_f32(struct ctx *ctx, struct tensor *t, const float *src);
void ctx_download_f32(struct ctx *ctx, float *dst, const struct tensor *t);
float *ctx_host_copy(struct ctx *ctx, struct tensor t); /* fp32; the caller frees */

#ifdef __cplusplus
}
#endif
#endif
