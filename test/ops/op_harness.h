/* Each operation has one description, which serves as its test and as its benchmark on every back end.
 *
 * test/ops/op_<stem>.c describes the ops of a stem: named cases (a shape and a kind of input), the
 * operands, the call, and the error that each output may have. The harness runs a case on a target context
 * (any device, op table and variant) and compares every output with the CPU op in fp32 on the same inputs,
 * rounded to the storage dtype. Every buffer lies between guard bands, `=` outputs and scratch are poisoned
 * with NaN, inputs must not change, and a second run must give the same bits.
 *
 * Tolerance. With u(t) the unit roundoff of a dtype (2^-24 fp32, 2^-8 bf16), an element may be off by the
 * sum of (e4m3 has u = 2^-4, e5m2 2^-3, and below normal numbers errors up to 2^-10 and 2^-17 times 1/scale)
 *   2 u(output) |reference|      twice the error of storing a result in this dtype
 *   what the op's bound() adds   twice the rounding errors of a naive loop in fp32, and twice the effect of
 *                                the intermediates that a naive version in this dtype stores
 *   FLT_MIN                      because denormals may be flushed
 * A loop that adds n terms has an error of sqrt(n) u(fp32) times the sum of their absolute values (Higham,
 * Mary 2019, "A new approach to probabilistic rounding error analysis"); op_sum_error(n) is twice that.
 * Operands marked exact (integer inputs, single roundings) must equal the rounded reference. */
#ifndef LLMC_TEST_OP_HARNESS_H
#define LLMC_TEST_OP_HARNESS_H

#include "llmc/ops/ctx.h"

#include <math.h>

/* --- cases --- */

enum op_input {
    INPUT_RANDOM,  /* normal */
    INPUT_LARGE,   /* normal, scaled up as far as the op stays well conditioned */
    INPUT_TINY,    /* normal times 1e-12 */
    INPUT_EQUAL,   /* all rows the same; multiples of 1/8 */
    INPUT_FLAT,    /* each row one value, a multiple of 1/8 */
    INPUT_ONE_HOT, /* one element of each row is not zero */
    INPUT_INTEGER  /* -3 .. 3: sums and products are exact, so linear ops must be, too */
};

/* Medium cases are too much work for ThreadSanitizer; LLMC_TEST_SIZE=small leaves them out. Large ones are too
 * much for a simulated device; LLMC_TEST_SIZE=large runs them. */
enum op_size { SIZE_SMALL, SIZE_MEDIUM, SIZE_LARGE };

/* Flags common to all ops; op-specific ones start at OP_FLAG(0). */
enum {
    UNALIGNED = 1, /* every buffer starts one element after an aligned address */
    OP_FP8 = 2,    /* weights and outputs are marked as the model marks them for fp8 */
    EVERYWHERE = 4 /* of the cases for one variant: run under ThreadSanitizer, too (LLMC_TEST_SIZE=small) */
};
#define OP_FLAG(n) (8u << (n))

struct op_case {
    const char *name;
    enum op_input input;
    int64_t d[6]; /* the shape; the op's file says what each number is */
    unsigned flags;
    enum op_size size;
    const char *only; /* the CUDA variant, in bf16, whose tiles the shape is about; NULL: all variants */
};

/* A model whose ops are to be benchmarked. */
struct op_model {
    int64_t B, T, C, NH, V, Vp;
};

/* --- operands --- */

enum operand_role {
    ROLE_IN,    /* must come back unchanged */
    ROLE_OUT,   /* `=`: poisoned with NaN before the call */
    ROLE_ADD,   /* `+=`: what is added must not depend on what was there */
    ROLE_UPDATE /* read and overwritten in place, or partly overwritten */
};

struct operand {
    const char *name;
    enum operand_role role;
    bool exact; /* must equal the reference rounded to the dtype */
    int64_t count;
    float *initial; /* (count) before the call, representable in the dtype; int32 operands too (below 2^24) */
    float *expected; /* (count) after the reference call, fp32 */
    double *allowed; /* (count) largest error */
    int alias;       /* index of the operand whose memory this one shares on the target, or -1 */
    int descale;     /* fp8: index of the operand that holds 1/scale, else -1 */
    enum dtype fp8;  /* what it is rounded to, if it is marked */
    struct tensor reference, target;
    void *memory; /* the target's allocation with its guards; NULL where aliased */
};

enum { OP_MAX_OPERANDS = 12 };
struct op_instance {
    const struct op_test *op;
    const struct op_case *c;
    enum dtype dtype; /* storage dtype under test */
    double unit;      /* its unit roundoff */
    struct operand operand[OP_MAX_OPERANDS];
    int count;
    struct ctx *ctx; /* target */
    struct device *cpu;
    struct ctx reference;
    bool on_target; /* the side whose tensors op_arg() returns */
    void *temporary[16];
    int temporary_count;
};

/* --- descriptions --- */

struct op_test {
    enum op_id id;
    const struct op_case *cases;
    size_t case_count;
    void (*make)(struct op_instance *x);  /* adds the operands */
    void (*bound)(struct op_instance *x); /* adds to operand.allowed; NULL: single roundings only */
    /* The cases that one training step of `model` runs; returns how many of at most 12. NULL: none. */
    int (*model_cases)(const struct op_model *model, struct op_case *out);
    /* Computes the reference, if it is not the CPU op in fp32 (NULL). */
    void (*reference)(struct ctx *cpu, struct op_instance *x);
    void (*call)(struct ctx *ctx, struct op_instance *x);
    bool converts; /* takes any dtypes, even in a back end that computes only in fp32 */
    int64_t (*need)(const struct ops *ops, int variant,
                    struct op_instance *x);                     /* through op_instance_need() */
    const char *(*variant)(const struct ops *ops, int variant); /* NULL after the last */
    int (*arch)(const struct ops *ops, int variant);
};

/* Defines op_test_<op> from op##_cases, op##_make and the arguments, written as for the front door. The
 * other members follow as designated initialisers in parentheses. */
#define OP_TEST(op, members, ...)                                                                            \
    static void op##_call(struct ctx *ctx, struct op_instance *x) { op(ctx, __VA_ARGS__); }                  \
    static int64_t op##_need(const struct ops *ops, int variant, struct op_instance *x) {                    \
        return OP_NEED(&ops->op[variant], __VA_ARGS__);                                                      \
    }                                                                                                        \
    static const char *op##_name(const struct ops *ops, int variant) { return ops->op[variant].name; }       \
    static int op##_arch(const struct ops *ops, int variant) { return ops->op[variant].arch; }               \
    const struct op_test op_test_##op = {.id = OP_##op,                                                      \
                                         .cases = op##_cases,                                                \
                                         .case_count = ARRAY_LENGTH(op##_cases),                             \
                                         .make = op##_make,                                                  \
                                         .call = op##_call,                                                  \
                                         .need = op##_need,                                                  \
                                         .variant = op##_name,                                               \
                                         .arch = op##_arch,                                                  \
                                         OP_MEMBERS members}
#define OP_MEMBERS(...) __VA_ARGS__
#define A(name)         op_arg(x, name)

/* Every op, from LLMC_OPS: an op without a description does not link. */
extern const struct op_test *const op_tests[OP_COUNT];

/* --- what a description uses --- */

/* Adds an operand, filled by the case's kind of input, or with NaN for ROLE_OUT. */
struct operand *op_add(struct op_instance *x, enum operand_role role, enum dtype dtype, const char *name,
                       int64_t d0, int64_t d1, int64_t d2);
/* The same of one that is marked fp8 where the case is: this format in bf16, and then `descale` is an operand,
 * too; fp32 on a CPU. On a GPU in fp32 it is not marked. Its reference is never rounded. */
struct operand *op_add_fp8(struct op_instance *x, enum operand_role role, enum dtype fp8, const char *name,
                           const char *descale, int64_t d0, int64_t d1);
/* Of bound(): expects the scale for this bound, and allows what rounding with it adds. */
void op_allow_fp8(struct op_instance *x, const char *name, double bound);
double op_largest(const float *values, int64_t count);
/* Fills with the case's kind of input, times scale, and rounds to the dtype. */
void op_fill(struct op_instance *x, struct operand *o, double scale);
/* Normal numbers mean + std * N(0,1), whatever the case's kind. */
void op_fill_normal(struct op_instance *x, struct operand *o, double mean, double std);
/* int32 uniform in [low, high). */
void op_fill_index(struct op_instance *x, struct operand *o, int64_t low, int64_t high);
void op_round(struct operand *o, float *values); /* to the operand's dtype */
/* The output shares the memory of an input on the target (never in the reference). */
void op_alias(struct op_instance *x, const char *out, const char *in);

struct operand *op_find(struct op_instance *x, const char *name); /* NULL if the case does not have it */
struct tensor *op_arg(struct op_instance *x, const char *name); /* the tensor of the running side, or NULL */
const float *op_initial(struct op_instance *x, const char *name);
const float *op_expected(struct op_instance *x, const char *name);
double *op_allowed(struct op_instance *x, const char *name);

/* fp32 CPU tensors for bounds that ops compute. */
struct tensor op_temporary(struct op_instance *x, int64_t d0, int64_t d1, int64_t d2);
struct tensor op_absolute(struct op_instance *x, const char *name); /* |initial| */

#define UNIT_F32 (1.0 / 16777216.0)
static inline double op_sum_error(double n) { return 2.0 * (sqrt(n) + 4.0) * UNIT_F32; }

/* Twice the fp32 error of GELU and of its derivative at x. 1+tanh cancels in the negative tail, so the
 * error is absolute: that of tanh (2 u, and 2 u from rounding its argument) times x/2. In the derivative
 * 1-tanh^2 cancels, too; beyond |x| = 6 it is exactly 0. */
static inline double op_gelu_error(double x) { return 6.0 * UNIT_F32 * fabs(x); }
static inline double op_gelu_derivative_error(double x) {
    double a = fabs(x);
    return UNIT_F32 * (a < 6.0 ? 8.0 + 8.0 * a * (1.0 + 0.134 * a * a) : 8.0);
}

/* --- running --- */

/* Makes operands, reference result and target buffers. */
void op_instance_create(struct op_instance *x, const struct op_test *op, const struct op_case *c,
                        enum dtype dtype, struct ctx *target);
void op_instance_free(struct op_instance *x);
/* Puts the initial values and the guards into the target buffers. */
void op_instance_upload(struct op_instance *x);
/* Calls the front door on the target. */
void op_instance_call(struct op_instance *x);
/* Scratch that a variant of `ops` wants for the target's operands; OP_UNSUPPORTED if it cannot take them. */
int64_t op_instance_need(struct op_instance *x, const struct ops *ops, int variant);
/* Compares everything with the reference. Returns false with a message that names the first error. `worst`
 * becomes the largest error as a share of what is allowed. */
bool op_instance_compare(struct op_instance *x, double *worst, struct error *err);

struct op_target {
    struct ctx *ctx;
    const char *variant; /* the forced one; NULL: production's choice */
    bool once;           /* run a single time: do not compare the bits of two runs */
    bool wrong;          /* spoil the result: a test of what reports failures */
};
enum op_verdict { OP_PASSED, OP_FAILED, OP_SKIPPED /* the variant does not take these operands */ };
enum op_verdict op_check(const struct op_test *op, const struct op_case *c, enum dtype dtype,
                         const struct op_target *target, double *worst, struct error *err);

/* "norm_forward:warp bf16 odd (5,13)" by temp_printf. */
const char *op_case_text(const struct op_test *op, const struct op_case *c, enum dtype dtype,
                         const char *variant);

#endif
