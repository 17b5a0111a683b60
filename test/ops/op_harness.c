/* Implements op_harness.h: makes operands and reference results, uploads them between guard bands, calls
 * the op and compares. */
#include "test/ops/op_harness.h"

#include "llmc/base/rng.h"
#include "llmc/ops/fp8.h"

#include <float.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the list of ops --- */

#define X(op) extern const struct op_test op_test_##op;
LLMC_OPS(X)
#undef X
#define X(op) &op_test_##op,
const struct op_test *const op_tests[OP_COUNT] = {LLMC_OPS(X)};
#undef X

static const char *input_name(enum op_input input) {
    static const char *const names[] = {"random", "large", "tiny", "equal", "flat", "one-hot", "integer"};
    return names[input];
}

const char *op_case_text(const struct op_test *op, const struct op_case *c, enum dtype dtype,
                         const char *variant) {
    const char *dims = "";
    for (int i = 0; i < 6 && (i == 0 || c->d[i]); i++)
        dims = temp_printf("%s%s%" PRId64, dims, i ? "," : "", c->d[i]);
    return temp_printf("%s:%s %s '%s' %s (%s)", op_name(op->id), variant ? variant : "default",
                       dtype_name(dtype), c->name, input_name(c->input), dims);
}

/* --- operands --- */

static double unit_of(enum dtype dtype) {
    return dtype == DTYPE_BF16   ? 1.0 / 256.0
           : dtype == DTYPE_E4M3 ? 1.0 / 16.0
           : dtype == DTYPE_E5M2 ? 1.0 / 8.0
                                 : UNIT_F32;
}

double op_largest(const float *values, int64_t count) {
    float largest = 0.0f;
    for (int64_t i = 0; i < count; i++) largest = fmaxf(largest, fabsf(values[i]));
    return (double)largest;
}

void op_round(struct operand *o, float *values) {
    if (o->target.dtype == DTYPE_BF16)
        for (int64_t i = 0; i < o->count; i++) values[i] = f32_from_bf16(bf16_from_f32(values[i]));
    enum fp8_format format = fp8_format_of(o->target.dtype);
    if (format == FP8_NONE) return;
    float scale = fp8_scale(format, (float)op_largest(values, o->count));
    for (int64_t i = 0; i < o->count; i++) values[i] = fp8_through(format, values[i], scale);
}

struct operand *op_find(struct op_instance *x, const char *name) {
    for (int i = 0; i < x->count; i++)
        if (strcmp(x->operand[i].name, name) == 0) return &x->operand[i];
    return NULL;
}

static struct operand *op_need_operand(struct op_instance *x, const char *name) {
    struct operand *o = op_find(x, name);
    check(o, "%s: the description has no operand %s", op_name(x->op->id), name);
    return o;
}

struct tensor *op_arg(struct op_instance *x, const char *name) {
    struct operand *o = op_find(x, name);
    return !o ? NULL : x->on_target ? &o->target : &o->reference;
}

const float *op_initial(struct op_instance *x, const char *name) { return op_need_operand(x, name)->initial; }
const float *op_expected(struct op_instance *x, const char *name) {
    return op_need_operand(x, name)->expected;
}
double *op_allowed(struct op_instance *x, const char *name) { return op_need_operand(x, name)->allowed; }

/* Number i of the operand's own random stream; no two operands share numbers. */
static double uniform_at(const struct op_instance *x, const struct operand *o, int64_t i) {
    return rng_uniform(1 + (uint64_t)(o - x->operand), RNG_TEST, (uint64_t)i);
}
static double normal_at(const struct op_instance *x, const struct operand *o, int64_t i) {
    double u = uniform_at(x, o, 2 * i), v = uniform_at(x, o, 2 * i + 1);
    return sqrt(-2.0 * log(1.0 - u)) * cos(6.283185307179586 * v);
}

void op_fill_normal(struct op_instance *x, struct operand *o, double mean, double std) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < o->count; i++) o->initial[i] = (float)(mean + std * normal_at(x, o, i));
    op_round(o, o->initial);
}

void op_fill_index(struct op_instance *x, struct operand *o, int64_t low, int64_t high) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < o->count; i++)
        o->initial[i] = (float)(low + (int64_t)(uniform_at(x, o, i) * (double)(high - low)));
}

void op_fill(struct op_instance *x, struct operand *o, double scale) {
    int64_t cols = tensor_cols(&o->target);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < o->count; i++) {
        int64_t row = i / cols, col = i % cols;
        double value = 0.0;
        switch (x->c->input) {
        case INPUT_RANDOM:
        case INPUT_LARGE:
            value = normal_at(x, o, i);
            break;
        case INPUT_TINY:
            value = 1e-12 * normal_at(x, o, i);
            break;
        case INPUT_EQUAL:
            value = floor(32.0 * uniform_at(x, o, col) - 16.0) / 8.0;
            break;
        case INPUT_FLAT:
            value = floor(32.0 * uniform_at(x, o, row) - 16.0) / 8.0;
            break;
        case INPUT_ONE_HOT:
            value = (int64_t)(uniform_at(x, o, row) * (double)cols) == col ? 1.0 : 0.0;
            break;
        case INPUT_INTEGER:
            value = floor(7.0 * uniform_at(x, o, i)) - 3.0;
            break;
        }
        o->initial[i] = (float)(value * scale);
    }
    op_round(o, o->initial);
}

struct operand *op_add(struct op_instance *x, enum operand_role role, enum dtype dtype, const char *name,
                       int64_t d0, int64_t d1, int64_t d2) {
    check(x->count < (int)ARRAY_LENGTH(x->operand), "%s: too many operands", op_name(x->op->id));
    struct operand *o = &x->operand[x->count++];
    *o = (struct operand){.name = name, .role = role, .alias = -1, .descale = -1};
    o->target = tensor_make(name, dtype, NULL, d0, d1, d2, 0);
    o->reference = tensor_make(name, dtype == DTYPE_I32 ? DTYPE_I32 : DTYPE_F32, NULL, d0, d1, d2, 0);
    o->count = tensor_count(&o->target);
    o->initial = (float *)xmalloc((size_t)o->count * sizeof *o->initial);
    if (role == ROLE_OUT)
        for (int64_t i = 0; i < o->count; i++) o->initial[i] = NAN;
    else
        op_fill(x, o, 1.0);
    return o;
}

struct operand *op_add_fp8(struct op_instance *x, enum operand_role role, enum dtype fp8, const char *name,
                           const char *descale, int64_t d0, int64_t d1) {
    bool stored = x->dtype == DTYPE_BF16, marked = x->c->flags & OP_FP8 && (stored || !x->ctx->ops->bf16);
    struct operand *o = op_add(x, role, marked && stored ? fp8 : x->dtype, name, d0, d1, 0);
    o->target.fp8 = marked;
    o->fp8 = fp8;
    if (o->target.dtype != fp8) return o;
    o->descale = x->count;
    op_add(x, role, DTYPE_F32, descale, 1, 0, 0)->exact = true;
    return o;
}

void op_allow_fp8(struct op_instance *x, const char *name, double bound) {
    struct operand *o = op_need_operand(x, name);
    if (!o->target.fp8) return;
    float descale = 1.0f / fp8_scale(fp8_format_of(o->fp8), (float)bound);
    double unit = unit_of(o->fp8) - unit_of(o->target.dtype), least = o->fp8 == DTYPE_E4M3 ? 0x1p-9 : 0x1p-16;
    for (int64_t i = 0; i < o->count; i++)
        o->allowed[i] += 2.0 * unit * fabs((double)o->expected[i]) + least * (double)descale;
    if (o->descale >= 0) x->operand[o->descale].expected[0] = descale;
}

/* An fp8 input has the scale of its largest magnitude. */
static void set_descales(struct op_instance *x) {
    for (int k = 0; k < x->count; k++) {
        struct operand *o = &x->operand[k];
        if (o->descale < 0 || o->role != ROLE_IN) continue;
        op_round(o, o->initial);
        x->operand[o->descale].initial[0] =
            1.0f / fp8_scale(fp8_format_of(o->fp8), (float)op_largest(o->initial, o->count));
    }
}

void op_alias(struct op_instance *x, const char *out, const char *in) {
    struct operand *o = op_need_operand(x, out), *i = op_need_operand(x, in);
    check(i < o, "%s: %s must be added before %s to lend it its memory", op_name(x->op->id), in, out);
    o->alias = (int)(i - x->operand);
}

/* --- temporaries --- */

struct tensor op_temporary(struct op_instance *x, int64_t d0, int64_t d1, int64_t d2) {
    check(x->temporary_count < (int)ARRAY_LENGTH(x->temporary), "%s: too many temporaries",
          op_name(x->op->id));
    struct tensor t = tensor_make("temporary", DTYPE_F32, NULL, d0, d1, d2, 0);
    t.data = x->temporary[x->temporary_count++] = xcalloc((size_t)tensor_count(&t), sizeof(float));
    return t;
}

struct tensor op_absolute(struct op_instance *x, const char *name) {
    struct operand *o = op_need_operand(x, name);
    struct tensor t = op_temporary(x, o->target.dim[0], o->target.dim[1], o->target.dim[2]);
    for (int64_t i = 0; i < o->count; i++) f32(&t)[i] = fabsf(o->initial[i]);
    return t;
}

static void free_temporaries(struct op_instance *x) {
    while (x->temporary_count > 0) free(x->temporary[--x->temporary_count]);
}

/* --- instances --- */

/* Guards are NaN in fp32 and bf16 and far out of range as an index, so that reading them shows, too. */
enum { GUARD_BYTES = 4096 };
static void fill_guard(unsigned char *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i++) p[i] = i % 2 ? 0xff : 0xa5;
}

static int64_t data_offset(const struct op_instance *x, const struct operand *o) {
    return GUARD_BYTES + (x->c->flags & UNALIGNED ? (int64_t)dtype_size(o->target.dtype) : 0);
}
static int64_t memory_bytes(const struct op_instance *x, const struct operand *o) {
    return data_offset(x, o) + tensor_bytes(&o->target) + GUARD_BYTES;
}

/* The byte of a number that is in the format. */
static uint8_t code_of(enum fp8_format format, float x) {
    uint8_t code = 0;
    while (code < 0x7f && !(fp8_value(format, code) >= fabsf(x))) code++;
    return signbit(x) ? code | 0x80 : code;
}

/* The expected contents of the whole allocation: guards around the values in the operand's dtype. */
static unsigned char *image_of(const struct op_instance *x, const struct operand *o, const float *values) {
    unsigned char *image = (unsigned char *)xmalloc((size_t)memory_bytes(x, o));
    int64_t offset = data_offset(x, o), end = offset + tensor_bytes(&o->target);
    fill_guard(image, offset);
    fill_guard(image + end, memory_bytes(x, o) - end);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < o->count; i++) {
        unsigned char *at = image + offset + i * (int64_t)dtype_size(o->target.dtype);
        uint16_t half = bf16_from_f32(values[i]);
        int32_t integer = o->target.dtype == DTYPE_I32 ? (int32_t)values[i] : 0;
        switch (o->target.dtype) {
        case DTYPE_E4M3:
        case DTYPE_E5M2:
            *at = code_of(fp8_format_of(o->fp8), values[i] / x->operand[o->descale].initial[0]);
            break;
        case DTYPE_BF16:
            memcpy(at, &half, 2);
            break;
        case DTYPE_I32:
            memcpy(at, &integer, 4);
            break;
        default:
            memcpy(at, &values[i], 4);
            break;
        }
    }
    return image;
}

static unsigned char *read_back(struct op_instance *x, struct operand *o) {
    unsigned char *image = (unsigned char *)xmalloc((size_t)memory_bytes(x, o));
    ctx_download(x->ctx, image, o->memory, memory_bytes(x, o));
    return image;
}

static float value_in(const struct op_instance *x, const struct operand *o, const unsigned char *image,
                      int64_t i, float descale) {
    const unsigned char *at = image + data_offset(x, o) + i * (int64_t)dtype_size(o->target.dtype);
    uint16_t half;
    float single;
    if (dtype_is_fp8(o->target.dtype)) return fp8_value(fp8_format_of(o->fp8), *at) * descale;
    if (o->target.dtype == DTYPE_BF16) {
        memcpy(&half, at, 2);
        return f32_from_bf16(half);
    }
    memcpy(&single, at, 4);
    return single;
}

static void compute_reference(struct op_instance *x) {
    for (int k = 0; k < x->count; k++) {
        struct operand *o = &x->operand[k];
        o->expected = (float *)xmalloc((size_t)o->count * sizeof *o->expected);
        o->reference.data = o->expected;
        if (o->target.dtype == DTYPE_I32)
            for (int64_t i = 0; i < o->count; i++) i32(&o->reference)[i] = (int32_t)o->initial[i];
        else
            memcpy(o->expected, o->initial, (size_t)o->count * sizeof *o->expected);
    }
    x->on_target = false;
    (x->op->reference ? x->op->reference : x->op->call)(&x->reference, x);
    for (int k = 0; k < x->count; k++) {
        struct operand *o = &x->operand[k];
        if (o->role == ROLE_IN) continue;
        o->allowed = (double *)xmalloc((size_t)o->count * sizeof *o->allowed);
        for (int64_t i = 0; i < o->count; i++)
            o->allowed[i] =
                o->exact ? 0.0
                         : 2.0 * unit_of(o->target.dtype) * fabs((double)o->expected[i]) + (double)FLT_MIN;
    }
    if (x->op->bound) x->op->bound(x);
    free_temporaries(x);
}

void op_instance_create(struct op_instance *x, const struct op_test *op, const struct op_case *c,
                        enum dtype dtype, struct ctx *target) {
    memset(x, 0, sizeof *x);
    x->op = op;
    x->c = c;
    x->dtype = dtype;
    x->unit = unit_of(dtype);
    x->ctx = target;
    x->cpu = device_open_cpu();
    ctx_init(&x->reference, x->cpu, cpu_ops(), false);
    x->reference.forced = NULL;
    op->make(x);
    set_descales(x);
    compute_reference(x);
    for (int k = 0; k < x->count; k++) {
        struct operand *o = &x->operand[k];
        if (o->alias >= 0) continue;
        o->memory = target->device->alloc(target->device, (size_t)memory_bytes(x, o));
        check(o->memory, "%s: no memory for %s on %s", op_name(op->id), tensor_text(&o->target),
              target->device->name);
    }
    for (int k = 0; k < x->count; k++) {
        struct operand *o = &x->operand[k], *owner = o->alias >= 0 ? &x->operand[o->alias] : o;
        o->target.data = (char *)owner->memory + data_offset(x, o);
    }
    for (int k = 0; k < x->count; k++)
        if (x->operand[k].descale >= 0)
            x->operand[k].target.descale = f32(&x->operand[x->operand[k].descale].target);
    x->on_target = true;
}

void op_instance_free(struct op_instance *x) {
    for (int k = 0; k < x->count; k++) {
        struct operand *o = &x->operand[k];
        if (o->memory) x->ctx->device->free(x->ctx->device, o->memory);
        free(o->initial);
        free(o->expected);
        free(o->allowed);
    }
    free_temporaries(x);
    ctx_free(&x->reference);
    x->cpu->close(x->cpu);
}

void op_instance_upload(struct op_instance *x) {
    for (int k = 0; k < x->count; k++) {
        struct operand *o = &x->operand[k];
        if (o->alias >= 0) continue;
        unsigned char *image = image_of(x, o, o->initial);
        ctx_upload(x->ctx, o->memory, image, memory_bytes(x, o));
        x->ctx->device->synchronize(x->ctx->device, x->ctx->stream);
        free(image);
    }
}

void op_instance_call(struct op_instance *x) {
    x->on_target = true;
    x->op->call(x->ctx, x);
}

int64_t op_instance_need(struct op_instance *x, const struct ops *ops, int variant) {
    bool computes = x->dtype == DTYPE_F32 || ops->bf16 || x->op->converts;
    if (!computes || !op_runs_on(x->ctx, x->op->arch(ops, variant))) return OP_UNSUPPORTED;
    return x->op->need(ops, variant, x);
}

/* "dinp[3,7]" */
static const char *element_text(const struct operand *o, int64_t i) {
    int64_t index[TENSOR_MAX_RANK];
    for (int d = o->target.rank - 1; d >= 0; d--) {
        index[d] = i % o->target.dim[d];
        i /= o->target.dim[d];
    }
    const char *text = "";
    for (int d = 0; d < o->target.rank; d++) text = temp_printf("%s%s%" PRId64, text, d ? "," : "", index[d]);
    return temp_printf("%s[%s]", o->name, text);
}

static bool compare_guards(struct op_instance *x, struct operand *o, const unsigned char *image,
                           const unsigned char *wanted, struct error *err) {
    int64_t offset = data_offset(x, o), end = offset + tensor_bytes(&o->target), total = memory_bytes(x, o);
    for (int64_t i = 0; i < total; i++)
        if ((i < offset || i >= end) && image[i] != wanted[i])
            return i < offset
                       ? fail(err, "%" PRId64 " bytes before the start of %s were written", offset - i,
                              o->name)
                       : fail(err, "byte %" PRId64 " after the end of %s was written", i - end, o->name);
    return true;
}

static bool compare_values(struct op_instance *x, struct operand *o, const unsigned char *image,
                           double *worst, struct error *err) {
    float descale = 1.0f;
    if (o->descale >= 0) ctx_download(x->ctx, &descale, o->target.descale, sizeof descale);
    for (int64_t i = 0; i < o->count; i++) {
        float got = value_in(x, o, image, i, descale), want = o->expected[i];
        if (o->exact) {
            if (o->target.dtype == DTYPE_BF16) want = f32_from_bf16(bf16_from_f32(want));
            if (!(got == want || (isnan(got) && isnan(want))))
                return fail(err, "%s is %.9g and should be exactly %.9g", element_text(o, i), (double)got,
                            (double)want);
            continue;
        }
        if (!isfinite(want)) return fail(err, "the reference's %s is %g", element_text(o, i), (double)want);
        double error = fabs((double)got - (double)want);
        if (!(error <= o->allowed[i]))
            return fail(err, "%s is %.9g and should be %.9g: off by %.3g, %.3g is allowed",
                        element_text(o, i), (double)got, (double)want, error, o->allowed[i]);
        if (error / o->allowed[i] > *worst) *worst = error / o->allowed[i];
    }
    return true;
}

bool op_instance_compare(struct op_instance *x, double *worst, struct error *err) {
    bool good = true;
    for (int k = 0; good && k < x->count; k++) {
        struct operand *o = &x->operand[k], *owner = o->alias >= 0 ? &x->operand[o->alias] : o;
        bool lent = false; /* an output shares this input's memory */
        for (int j = 0; j < x->count; j++) lent = lent || x->operand[j].alias == k;
        unsigned char *image = read_back(x, owner), *wanted = image_of(x, o, o->initial);
        good = compare_guards(x, o, image, wanted, err);
        if (good && o->role == ROLE_IN && !lent && memcmp(image, wanted, (size_t)memory_bytes(x, o)) != 0)
            good = fail(err, "the input %s was changed", o->name);
        if (good && o->role != ROLE_IN) good = compare_values(x, o, image, worst, err);
        free(image);
        free(wanted);
    }
    return good;
}

/* --- one checked case --- */

/* An FNV-1a hash of all outputs, to compare the bits of two runs. */
static uint64_t output_hash(struct op_instance *x) {
    uint64_t hash = 14695981039346656037u;
    for (int k = 0; k < x->count; k++) {
        struct operand *o = &x->operand[k], *owner = o->alias >= 0 ? &x->operand[o->alias] : o;
        if (o->role == ROLE_IN) continue;
        unsigned char *image = read_back(x, owner);
        for (int64_t i = 0; i < memory_bytes(x, owner); i++) hash = (hash ^ image[i]) * 1099511628211u;
        free(image);
    }
    return hash;
}

/* Reserves the scratch that the op will ask for and guards behind it, and poisons all of it. */
static void prepare_scratch(struct ctx *ctx, int64_t need) {
    ctx->memory[MEM_SCRATCH] = 0;
    ctx_reserve_scratch(ctx, round_up(need, 256) + GUARD_BYTES);
    ctx->memory[MEM_SCRATCH] = 0;
    unsigned char *poison = (unsigned char *)xmalloc((size_t)ctx->scratch_capacity);
    fill_guard(poison, ctx->scratch_capacity);
    ctx_upload(ctx, ctx->scratch, poison, ctx->scratch_capacity);
    ctx->device->synchronize(ctx->device, ctx->stream);
    free(poison);
}

static bool compare_scratch(struct ctx *ctx, int64_t need, struct error *err) {
    unsigned char *image = (unsigned char *)xmalloc((size_t)ctx->scratch_capacity);
    ctx_download(ctx, image, ctx->scratch, ctx->scratch_capacity);
    bool good = ctx->memory[MEM_SCRATCH] == need;
    if (!good)
        fail(err, "asked for %" PRId64 " bytes of scratch, and for %" PRId64 " before",
             ctx->memory[MEM_SCRATCH], need);
    for (int64_t i = need; good && i < ctx->scratch_capacity; i++)
        if (image[i] != (i % 2 ? 0xff : 0xa5))
            good = fail(err, "byte %" PRId64 " after the end of its scratch was written", i - need);
    unsigned char zeros[OP_ZEROS];
    if (ctx->scratch_capacity)
        ctx_download(ctx, zeros, (char *)ctx->scratch + ctx->scratch_capacity, OP_ZEROS);
    for (int64_t i = 0; good && ctx->scratch_capacity && i < OP_ZEROS; i++)
        if (zeros[i]) good = fail(err, "byte %" PRId64 " of its zeros was left at %d", i, zeros[i]);
    free(image);
    return good;
}

/* Scratch of the variant that would run: the forced one, or the first that takes the operands; or
 * OP_UNSUPPORTED. */
static int64_t find_variant(struct op_instance *x, const struct op_target *target) {
    const char *name;
    for (int i = 0; (name = x->op->variant(target->ctx->ops, i)); i++) {
        if (target->variant && strcmp(name, target->variant) != 0) continue;
        int64_t need = op_instance_need(x, target->ctx->ops, i);
        if (need >= 0 || target->variant) return need;
    }
    check(!target->variant, "%s has no variant %s", op_name(x->op->id), target->variant);
    return OP_UNSUPPORTED;
}

/* One output becomes something else. */
static void spoil(struct op_instance *x) {
    for (int k = 0; k < x->count; k++)
        if (x->operand[k].role != ROLE_IN && x->operand[k].target.dtype <= DTYPE_BF16) {
            fill(x->ctx, &x->operand[k].target, 12345.0f);
            return;
        }
}

enum op_verdict op_check(const struct op_test *op, const struct op_case *c, enum dtype dtype,
                         const struct op_target *target, double *worst, struct error *err) {
    struct ctx *ctx = target->ctx;
    struct op_instance x;
    op_instance_create(&x, op, c, dtype, ctx);
    int64_t need = find_variant(&x, target);
    if (need < 0) {
        op_instance_free(&x);
        return OP_SKIPPED;
    }
    const char *forced_before = ctx->forced;
    char *forced = target->variant ? xasprintf("%s:%s", op_name(op->id), target->variant) : NULL;
    ctx->forced = forced;
    uint64_t hash[2] = {0, 0};
    struct error what = {""};
    bool good = true;
    int runs = target->once ? 1 : 2;
    for (int run = 0; good && run < runs; run++) {
        prepare_scratch(ctx, need);
        op_instance_upload(&x);
        op_instance_call(&x);
        if (target->wrong) spoil(&x);
        good = op_instance_compare(&x, worst, &what) && compare_scratch(ctx, need, &what);
        if (good) hash[run] = output_hash(&x);
    }
    if (good && runs == 2 && hash[0] != hash[1])
        good = fail(&what, "two runs on the same inputs gave different bits");
    if (!good) fail(err, "%s: %s", op_case_text(op, c, dtype, target->variant), what.message);
    ctx->forced = forced_before;
    free(forced);
    op_instance_free(&x);
    return good ? OP_PASSED : OP_FAILED;
}
