/* Compares the bytes that each operation's production kernels move on the simulated device with the
 * operation's contract: each operand once. Without a GPU this finds a kernel that reads a row twice, writes
 * too much, or makes a pass over memory that could have been fused. It also finds a front door that counts
 * other bytes than the kernels move.
 *
 * The kernels come from the ThreadSanitizer build, without its library: the compiler has put a call before
 * every memory access, and this file defines these calls and counts. The simulated runtime reports what it
 * moves for a kernel (cp.async, TMA), and what cuBLASLt touches, each matrix once.
 *
 *     build/sim/test_traffic --print     shows the figures
 *
 * Every operand has two counts: bytes requested, and distinct bytes. The distinct bytes are what must move
 * even with perfect caches; their sum must equal the front door's count. The requested bytes of an operand
 * too large for the caches must be one pass, or as many as `exceptions` allows, with the reason. Exceptions
 * are needed because caches are not simulated: what a block reads twice may come from its cache. */
#include "test/test.h"

#include "test/ops/op_harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- counting --- */

enum { READ, WRITE };

struct range {
    const char *start;
    int64_t bytes;
    double asked[2];     /* READ, WRITE */
    unsigned char *seen; /* a byte each: bit 0 read, bit 1 written */
};

static struct range ranges[OP_MAX_OPERANDS + 1]; /* the operands, then scratch */
static int range_count;

static void count(const void *p, size_t bytes, bool write) {
    for (int k = 0; k < range_count; k++) {
        struct range *r = &ranges[k];
        int64_t at = (const char *)p - r->start;
        if (at < 0 || at >= r->bytes) continue;
        r->asked[write] += (double)bytes;
        for (size_t i = 0; i < bytes && at + (int64_t)i < r->bytes; i++)
            r->seen[at + (int64_t)i] |= 1u << write;
        return;
    }
}

static double different(const struct range *r, int kind) {
    int64_t n = 0;
    for (int64_t i = 0; i < r->bytes; i++) n += r->seen[i] >> kind & 1;
    return (double)n;
}

/* --- the compiler's calls --- */

void sim_count_accesses(void (*on_access)(const void *p, size_t bytes, bool write));

#define HOOK(name, ...)                                                                                      \
    void name(__VA_ARGS__);                                                                                  \
    void name(__VA_ARGS__)
#define ACCESS(bytes)                                                                                        \
    HOOK(__tsan_read##bytes, const void *p) { count(p, bytes, READ); }                                       \
    HOOK(__tsan_write##bytes, const void *p) { count(p, bytes, WRITE); }
#define UNALIGNED_ACCESS(bytes)                                                                              \
    HOOK(__tsan_unaligned_read##bytes, const void *p) { count(p, bytes, READ); }                             \
    HOOK(__tsan_unaligned_write##bytes, const void *p) { count(p, bytes, WRITE); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
UNALIGNED_ACCESS(2)
UNALIGNED_ACCESS(4)
UNALIGNED_ACCESS(8)
UNALIGNED_ACCESS(16)
HOOK(__tsan_read_range, const void *p, size_t bytes) { count(p, bytes, READ); }
HOOK(__tsan_write_range, const void *p, size_t bytes) { count(p, bytes, WRITE); }
HOOK(__tsan_func_entry, void *caller) {}
HOOK(__tsan_func_exit, void) {}
HOOK(__tsan_vptr_update, void **p, void *value) {}
HOOK(__tsan_init, void) {}
/* Atomics, as the compiler would have made them. */
int32_t __tsan_atomic32_load(const int32_t *p, int order);
int32_t __tsan_atomic32_load(const int32_t *p, int order) {
    count(p, 4, READ);
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_compare_exchange_strong(int32_t *p, int32_t *expected, int32_t wanted, int order,
                                            int failure);
int __tsan_atomic32_compare_exchange_strong(int32_t *p, int32_t *expected, int32_t wanted, int order,
                                            int failure) {
    count(p, 4, READ);
    count(p, 4, WRITE);
    return __atomic_compare_exchange_n(p, expected, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
HOOK(__tsan_atomic_thread_fence, int order) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* --- what is expected --- */

enum { ROWS = 96 };

struct shape {
    enum op_id op;
    const char *name;    /* the case in op_<stem>.c whose flags are taken; NULL: its first */
    int64_t d[6];        /* as they are there */
    const char *variant; /* NULL: production's */
};
static const struct shape shapes[] = {
    {OP_embed_forward, "vectors", {2, 48, 768, 500, 64, 0}, NULL},
    {OP_embed_backward, "vectors", {2, 48, 768, 500, 64, 0}, NULL},
    {OP_embed_forward, "no positions, vectors", {2, 48, 768, 500, 1, 0}, NULL},
    {OP_embed_backward, "no positions, vectors", {2, 48, 768, 500, 1, 0}, NULL},
    {OP_norm_forward, "vectors", {ROWS, 768}, NULL},
    {OP_norm_forward, "vectors", {ROWS, 1600}, NULL},
    {OP_residual_norm_forward, "vectors", {ROWS, 768}, NULL},
    {OP_residual_norm_forward, "vectors", {ROWS, 1600}, NULL},
    {OP_norm_forward, "fp8", {ROWS, 1600}, NULL},
    {OP_residual_norm_forward, "fp8", {ROWS, 1600}, NULL},
    {OP_norm_backward, "vectors", {ROWS, 768}, NULL},
    {OP_norm_backward, "vectors", {ROWS, 1600}, NULL},
    {OP_norm_backward, "no residual, vectors", {ROWS, 768}, NULL},
    {OP_norm_forward, "rms, vectors", {ROWS, 768}, NULL},
    {OP_residual_norm_forward, "rms, vectors", {ROWS, 768}, NULL},
    {OP_norm_backward, "rms, vectors", {ROWS, 768}, NULL},
    {OP_norm_backward, "no bias, vectors", {ROWS, 768}, NULL},
    {OP_qk_norm_forward, "head 64", {ROWS, 4, 2, 64}, NULL},
    {OP_qk_norm_backward, "head 64", {ROWS, 4, 2, 64}, NULL},
    {OP_matmul_forward, "vectors", {ROWS, 256, 384}, NULL},
    {OP_matmul_forward, "gelu", {ROWS, 256, 512}, NULL},
    {OP_matmul_forward, "gelu", {ROWS, 256, 512}, "cublaslt_gelu"},
    {OP_matmul_backward, "vectors", {ROWS, 256, 384}, NULL},
    {OP_matmul_backward, "no bias", {ROWS, 256, 384}, NULL},
    {OP_matmul_backward, "gelu", {ROWS, 512, 256}, NULL},
    {OP_matmul_forward, "fp8", {ROWS, 256, 384}, NULL},
    {OP_matmul_backward, "fp8", {ROWS, 256, 384}, NULL},
    {OP_matmul_backward, "fp8, no bias", {ROWS, 256, 384}, NULL},
    {OP_matmul_forward, "fp8, stored", {ROWS, 256, 384}, NULL},
    {OP_matmul_forward, "fp8, stored, gelu", {ROWS, 256, 512}, NULL},
    {OP_matmul_backward, "fp8, stored", {ROWS, 256, 384}, NULL},
    {OP_matmul_backward, "fp8, gradient to store", {ROWS, 512, 256}, NULL},
    {OP_matmul_backward, "fp8, stored gradient", {ROWS, 256, 512}, NULL},
    {OP_act_forward, "fp8", {ROWS, 512}, NULL},
    {OP_glu_forward, "fp8, silu", {ROWS, 256}, NULL},
    {OP_act_forward, "vectors", {ROWS, 512}, NULL},
    {OP_act_backward, "vectors", {ROWS, 512}, NULL},
    {OP_glu_forward, "silu, vectors", {ROWS, 256}, NULL},
    {OP_glu_backward, "silu, vectors", {ROWS, 256}, NULL},
    {OP_attn_forward, "head 64, two tiles", {1, 256, 2, 64, 0}, NULL},
    {OP_attn_backward, "head 64, two tiles", {1, 256, 2, 64, 0}, NULL},
    {OP_attn_forward, "grouped, head 64", {1, 256, 4, 64, 0, 2}, NULL},
    {OP_attn_backward, "grouped, head 64", {1, 256, 4, 64, 0, 2}, NULL},
    {OP_attn_forward, "window, a tile", {1, 512, 1, 64, 0}, "flash"},
    {OP_attn_backward, "window, a tile", {1, 512, 1, 64, 0}, "flash"},
    {OP_attn_forward, "documents, tiles", {1, 512, 1, 64, 0}, "flash"},
    {OP_attn_backward, "documents, tiles", {1, 512, 1, 64, 0}, "flash"},
    {OP_attn_forward, "documents, tiles", {1, 512, 1, 64, 0}, "hopper"},
    {OP_attn_backward, "documents, tiles", {1, 512, 1, 64, 0}, "hopper"},
    {OP_rope, "head 64", {1, 48, 4, 2, 64, 16}, NULL},
    {OP_loss_forward, "odd", {6, 50257, 50304}, NULL},
    {OP_adamw, "master", {40000, 5}, NULL},
    {OP_adamw, "odd", {40000, 5}, NULL},
    {OP_sumsq, NULL, {40000}, NULL},
    {OP_sum, NULL, {40000}, NULL},
    {OP_cast, "down", {40000}, NULL},
    {OP_cast, "up", {40000}, NULL},
    {OP_fill, NULL, {40000}, NULL},
};

/* Operands that are read, or written, in more than one pass, and why. */
static const struct exception {
    enum op_id op;
    const char *name, *operand, *variant; /* NULL: all cases; all variants */
    double passes;
    bool counted; /* the front door counts them, too */
    const char *why;
    double writes; /* passes; 0: one */
} exceptions[] = {
    {OP_loss_forward, NULL, "logits", NULL, 1, false, "the target's logit is corrected where it was written",
     1.0 + 1.0 / 50304.0},
    {OP_embed_forward, NULL, "wpe", NULL, 1.5, false,
     "48 of 64 positions, by each of two sequences: from the cache"},
    {OP_embed_backward, NULL, "dout", NULL, 2, false, "added up once by token and once by position"},
    {OP_embed_backward, "no positions, vectors", "dout", NULL, 1, false, "added up by token alone"},
    {OP_matmul_forward, "gelu", "pre", "cublaslt", 1, false,
     "GELU is a pass of its own, so that recomputed activations have the same bits"},
    {OP_matmul_backward, NULL, "dout", NULL, 2, true, "two products"},
    {OP_matmul_backward, "vectors", "dout", NULL, 3, true,
     "and the bias gradient is added to, which cuBLASLt's epilogue cannot"},
    {OP_matmul_forward, NULL, "inp", "fp8", 2, false, "its largest magnitude, its copy"},
    {OP_matmul_forward, NULL, "weight", "fp8", 2, false, "its largest magnitude, its copy"},
    {OP_matmul_forward, "fp8, stored", "inp", "fp8", 1, false, "it is fp8"},
    {OP_matmul_forward, "fp8, stored, gelu", "inp", "fp8", 1, false, "it is fp8"},
    {OP_matmul_forward, "fp8, stored, gelu", "pre", "fp8", 2, false, "the largest magnitude of out, and out"},
    {OP_matmul_forward, "fp8, stored, gelu", "out.descale", "fp8", 1, false, "the scale of out"},
    {OP_matmul_backward, NULL, "dout", "fp8", 2, true, "bias gradient and largest magnitude, both copies"},
    {OP_matmul_backward, NULL, "inp", "fp8", 2, false, "its largest magnitude, its copy"},
    {OP_matmul_backward, NULL, "weight", "fp8", 2, false, "its largest magnitude, its copy"},
    {OP_matmul_backward, "fp8, stored", "inp", "fp8", 1, false, "it is fp8, and its copy is transposed"},
    {OP_matmul_backward, "fp8, gradient to store", "inp", "fp8", 1, false, "as above"},
    {OP_matmul_backward, "fp8, gradient to store", "dinp.descale", "fp8", 1, false, "the scale of dinp"},
    {OP_matmul_backward, "fp8, stored gradient", "inp", "fp8", 1, false, "as above"},
    {OP_matmul_backward, "fp8, stored gradient", "dout", "fp8", 2, true, "a product, the transposed copy"},
    {OP_matmul_backward, "fp8, stored gradient", "dout.descale", "fp8", 2, true, "two products"},
    {OP_norm_forward, "fp8", "out.descale", NULL, 1, false, "the scale of out"},
    {OP_residual_norm_forward, "fp8", "out.descale", NULL, 1, false, "the scale of out"},
    {OP_act_forward, "fp8", "inp", NULL, 2, false, "the largest magnitude of out, and out"},
    {OP_act_forward, "fp8", "out.descale", NULL, 1, false, "the scale of out"},
    {OP_glu_forward, "fp8, silu", "inp", NULL, 2, false, "the largest magnitude of out, and out"},
    {OP_glu_forward, "fp8, silu", "out.descale", NULL, 1, false, "the scale of out"},
    {OP_attn_forward, NULL, "qkv", NULL, 4.0 / 3.0, false,
     "q once; k and v by each tile of 128 queries that sees them: 1.5 times at T=256"},
    {OP_attn_backward, NULL, "qkv", NULL, 3.5, false,
     "a pass for dk and dv and one for dq, each with the other side by tiles of 64 or 128"},
    {OP_attn_backward, NULL, "dout", NULL, 3.5, false, "as qkv"},
    {OP_attn_forward, "grouped, head 64", "qkv", NULL, 2, false,
     "and by each of two heads that share k and v"},
    {OP_attn_backward, "grouped, head 64", "qkv", NULL, 4.75, false, "and k and v by each of two heads"},
    {OP_attn_forward, "window, a tile", "qkv", NULL, 1.25, false,
     "q once; k and v by each tile of 128 queries, which sees 3 tiles of 64, the first 2"},
    {OP_attn_backward, "window, a tile", "qkv", NULL, 2.875, false,
     "a pass for dk and dv and one for dq, in each the other side by tiles of 64, which see 2, one of them 1"},
    {OP_attn_backward, "window, a tile", "dout", NULL, 2.875, false, "as qkv"},
    {OP_attn_forward, "documents, tiles", "qkv", NULL, 1, false,
     "documents of 128 tokens: each tile of 128 queries sees its own keys only"},
    {OP_attn_backward, "documents, tiles", "qkv", NULL, 2.5, false,
     "as with the window, but every second tile sees 1"},
    {OP_attn_backward, "documents, tiles", "dout", NULL, 2.5, false, "as qkv"},
    {OP_attn_backward, "documents, tiles", "qkv", "hopper", 2, false,
     "a pass for dk and dv and one for dq, by tiles of 128"},
    {OP_attn_backward, "documents, tiles", "dout", "hopper", 3, false, "as qkv, and for its statistics"},
};

static const struct exception *exception_for(const struct shape *s, const char *operand,
                                             const char *variant) {
    const struct exception *found = NULL;
    for (size_t i = 0; i < ARRAY_LENGTH(exceptions); i++) {
        const struct exception *e = &exceptions[i];
        if (e->op == s->op && strcmp(e->operand, operand) == 0 &&
            (!e->name || (s->name && strcmp(e->name, s->name) == 0)) &&
            (!e->variant || strcmp(e->variant, variant) == 0))
            found = e; /* the last one that fits is the most specific */
    }
    return found;
}

/* Weights, statistics and scalars stay in the nearest cache, however often they are read. */
enum { STAYS_IN_CACHE = 4096 };

/* --- one operation --- */

static bool print; /* --print: the figures */

static const struct op_case *case_named(const struct op_test *op, const char *name) {
    for (size_t i = 0; i < op->case_count; i++)
        if (!name || strcmp(op->cases[i].name, name) == 0) return &op->cases[i];
    fail_msg("%s has no case '%s'", op_name(op->id), name);
    return NULL;
}

static void watch(struct op_instance *x) {
    const struct ctx *ctx = x->ctx;
    range_count = 0;
    for (int k = 0; k < x->count; k++) {
        const struct tensor *t = &x->operand[k].target;
        ranges[range_count++] = (struct range){(const char *)t->data, tensor_bytes(t), {0, 0}, NULL};
    }
    if (ctx->scratch)
        ranges[range_count++] =
            (struct range){(const char *)ctx->scratch, ctx->scratch_capacity, {0, 0}, NULL};
    for (int k = 0; k < range_count; k++)
        ranges[k].seen = (unsigned char *)xcalloc((size_t)ranges[k].bytes, 1);
}

/* Checks that one operand is read and written in as many passes as the contract or an exception allows. */
static void check_operand(const struct shape *s, const struct operand *o, const struct range *r,
                          const char *what, const char *variant) {
    double size = (double)r->bytes, reads = r->asked[READ] / size, writes = r->asked[WRITE] / size;
    const struct exception *e = exception_for(s, o->name, variant);
    double allowed = e ? e->passes : o->role == ROLE_OUT ? 0.0 : 1.0;
    double allowed_writes = o->role == ROLE_IN ? 0.0 : e && e->writes > 0.0 ? e->writes : 1.0;
    if (print)
        printf("%-70s %-9s %8.0f bytes, read %7.3f, written %5.3f times%s%s\n", what, o->name, size, reads,
               writes, e ? ": " : "", e ? e->why : "");
    if (r->bytes > STAYS_IN_CACHE && !(reads <= allowed + 1e-9))
        fail_msg("%s: %s is read %.3f times, %.3f %s", what, o->name, reads, allowed,
                 e ? e->why : "is what its contract needs");
    if (!(writes <= allowed_writes + 1e-9)) fail_msg("%s: %s is written %.3f times", what, o->name, writes);
}

static void check_total(const struct shape *s, const struct op_instance *x, double counted, const char *what,
                        const char *variant) {
    double moved = 0.0;
    for (int k = 0; k < x->count; k++) {
        const struct exception *e = exception_for(s, x->operand[k].name, variant);
        moved += different(&ranges[k], READ) + different(&ranges[k], WRITE);
        /* the front door counts matmul_backward's dout twice, and GELU's input, which is in no contract */
        if (e && e->counted) moved += (double)ranges[k].bytes;
        if (e && x->operand[k].role == ROLE_OUT) moved -= (double)ranges[k].bytes;
    }
    /* the last logits of a row are read as a whole vector */
    if (s->op == OP_loss_forward) counted += (double)s->d[0] * (double)(round_up(s->d[1], 8) - s->d[1]) * 2.0;
    if (print) printf("%-70s moves %.0f bytes; the front door counts %.0f\n", what, moved, counted);
    /* the front door does not know which rows of a table are touched, and counts them as distinct */
    bool table = s->op == OP_embed_forward || s->op == OP_embed_backward;
    if (!(moved <= counted) || (!table && moved != counted) || !(moved > 0.9 * counted))
        fail_msg("%s: %.0f different bytes move, the front door counts %.0f", what, moved, counted);
}

static void check_traffic(struct ctx *ctx, const struct shape *s) {
    const struct op_test *op = op_tests[s->op];
    struct op_case c = *case_named(op, s->name);
    struct op_instance x;
    struct error err;
    double worst = 0.0;
    memcpy(c.d, s->d, sizeof c.d);
    char *forced = s->variant ? xasprintf("%s:%s", op_name(s->op), s->variant) : NULL;
    ctx->forced = forced;
    op_instance_create(&x, op, &c, DTYPE_BF16, ctx);
    op_instance_upload(&x);
    op_instance_call(&x); /* allocates scratch, and lets cuBLASLt choose */
    op_instance_upload(&x);
    watch(&x);
    double before = ctx->stats[s->op].bytes;
    sim_count_accesses(count);
    op_instance_call(&x);
    ctx->device->synchronize(ctx->device, ctx->stream);
    sim_count_accesses(NULL);
    const char *variant = ctx->variant_in_use[s->op];
    char *what = xstrdup(op_case_text(op, &c, DTYPE_BF16, variant));
    if (!op_instance_compare(&x, &worst, &err)) fail_msg("%s: %s", what, err.message);
    for (int k = 0; k < x.count; k++) check_operand(s, &x.operand[k], &ranges[k], what, variant);
    check_total(s, &x, ctx->stats[s->op].bytes - before, what, variant);
    for (int k = 0; k < range_count; k++) free(ranges[k].seen);
    range_count = 0;
    op_instance_free(&x);
    free(what);
    free(forced);
    ctx->forced = NULL;
}

/* --- the tests --- */

static void test_traffic(void **state) {
    struct error err;
    struct device *device = device_open_cuda(0, NULL, &err);
    struct ctx ctx;
    check(device, "the simulated device: %s", err.message);
    ctx_init(&ctx, device, device->ops, false);
    for (size_t i = 0; i < ARRAY_LENGTH(shapes); i++) check_traffic(&ctx, &shapes[i]);
    ctx_free(&ctx);
    device->close(device);
}

int main(int argc, char **argv) {
    setenv("SIM_WORKERS", "1", 1); /* counting is not threaded */
    print = argc > 1 && strcmp(argv[1], "--print") == 0;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_traffic)};
    return test_main(print ? 1 : argc, argv, tests, NULL, NULL);
}
