/* How a front door (ops.c) runs its operation: DISPATCH() chooses a variant, gives it scratch, counts its
 * FLOPs and bytes, and runs it in a range that has the operation's name, timed if the context profiles. */
#ifndef LLMC_DISPATCH_H
#define LLMC_DISPATCH_H

#include "llmc/ops/ctx.h"

/* Does LLMC_VARIANT allow this variant? OP:NAME allows only this variant of the op, OP:-NAME all others; an
 * op that is not mentioned has all of them. */
bool op_variant_allowed(const struct ctx *ctx, enum op_id id, const char *name);

/* Before an op: reserves scratch, counts, opens a range for profilers and, with ctx->profile, records the
 * first of the op's two events. op_end() closes the range and records the other one. */
void op_begin(struct ctx *ctx, enum op_id id, const char *variant, int64_t need, double flops, double bytes,
              struct op_env *env);
void op_end(struct ctx *ctx);

/* Ends the program: no variant takes the operands. op_append_name() makes the list of the variants' names. */
void op_append_name(char *list, size_t size, const char *name);
_Noreturn void op_no_variant(const struct ctx *ctx, const char *op, const char *names,
                             const struct tensor *first);

/* Runs the first variant that LLMC_VARIANT allows, that is made for this device and that takes the
 * operands. The macro's own names end in an underscore: the arguments are expressions in the caller's
 * names. */
#define DISPATCH(ctx, op, flops, bytes, ...)                                                                 \
    do {                                                                                                     \
        const struct op##_variant *variant_ = (ctx)->ops->op;                                                \
        int64_t need_ = OP_UNSUPPORTED;                                                                      \
        for (; variant_->name; variant_++)                                                                   \
            if (op_variant_allowed(ctx, OP_##op, variant_->name) && op_runs_on(ctx, variant_->arch) &&       \
                (need_ = OP_NEED(variant_, __VA_ARGS__)) >= 0)                                               \
                break;                                                                                       \
        if (!variant_->name) {                                                                               \
            char names_[256] = "";                                                                           \
            for (variant_ = (ctx)->ops->op; variant_->name; variant_++)                                      \
                op_append_name(names_, sizeof names_, variant_->name);                                       \
            op_no_variant(ctx, #op, names_, FIRST(__VA_ARGS__, 0));                                          \
        }                                                                                                    \
        struct op_env env_;                                                                                  \
        op_begin(ctx, OP_##op, variant_->name, need_, (double)(flops), (double)(bytes), &env_);              \
        if ((ctx)->plan) return;                                                                             \
        variant_->run(&env_, __VA_ARGS__);                                                                   \
        op_end(ctx);                                                                                         \
    } while (0)
#define FIRST(a, ...) (a)

#endif
