/* matmul_forward, matmul_backward, both also in fp8. Shapes: {N, C, OC}. */
#include "llmc/ops/fp8.h"
#include "test/ops/op_harness.h"

#include <string.h>

enum {
    BIAS = OP_FLAG(0),
    GELU = OP_FLAG(1),
    KEEP_PRE = OP_FLAG(2),
    NO_DINP = OP_FLAG(3),
    ACCUMULATE = OP_FLAG(4),
    NO_DWEIGHT = OP_FLAG(5),
    FP8_INP = OP_FLAG(6), /* inp is stored as fp8, as norms and activations leave it */
    FP8_OUT = OP_FLAG(7), /* and so is out; backward: dinp */
    FP8_DOUT = OP_FLAG(8)
};
#define FP8 OP_FP8

/* The four linear layers of a block and the lm_head, with the flags that the model calls them with. */
static int model_shapes(const struct op_model *m, struct op_case *out) {
    int64_t N = m->B * m->T, C = m->C;
    const struct op_case shapes[] = {
        {"qkv", INPUT_RANDOM, {N, C, 3 * C}, BIAS, SIZE_LARGE},
        {"proj", INPUT_RANDOM, {N, C, C}, BIAS, SIZE_LARGE},
        {"fc", INPUT_RANDOM, {N, C, 4 * C}, BIAS, SIZE_LARGE},
        {"fcproj", INPUT_RANDOM, {N, 4 * C, C}, BIAS, SIZE_LARGE},
        {"lm_head", INPUT_RANDOM, {N, C, m->Vp}, 0, SIZE_LARGE},
        {"qkv, fp8", INPUT_RANDOM, {N, C, 3 * C}, BIAS | FP8 | FP8_INP, SIZE_LARGE},
        {"proj, fp8", INPUT_RANDOM, {N, C, C}, BIAS | FP8, SIZE_LARGE},
        {"fc, fp8", INPUT_RANDOM, {N, C, 4 * C}, BIAS | FP8 | FP8_INP, SIZE_LARGE},
        {"fcproj, fp8", INPUT_RANDOM, {N, 4 * C, C}, BIAS | FP8 | FP8_INP, SIZE_LARGE},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(shapes); i++) out[i] = shapes[i];
    return (int)ARRAY_LENGTH(shapes);
}

/* An operand of a product. In fp8 each has its own magnitude, as in a model, and its last element is the
 * largest, so that the scale of another tensor or of a part is far off. Integers stay exact. */
static struct operand *add_factor(struct op_instance *x, const char *name, int64_t rows, int64_t cols,
                                  double scale, double fp8_scale) {
    struct operand *o = x->c->flags & FP8_INP && strcmp(name, "inp") == 0
                            ? op_add_fp8(x, ROLE_IN, DTYPE_E4M3, name, "inp.descale", rows, cols)
                        : x->c->flags & FP8_DOUT && strcmp(name, "dout") == 0
                            ? op_add_fp8(x, ROLE_IN, DTYPE_E5M2, name, "dout.descale", rows, cols)
                            : op_add(x, ROLE_IN, x->dtype, name, rows, cols, 0);
    bool fp8 = x->c->flags & FP8, outlier = x->c->input == INPUT_RANDOM || x->c->input == INPUT_INTEGER;
    op_fill(x, o, fp8 ? scale * fp8_scale : scale);
    if (fp8 && outlier) o->initial[o->count - 1] = (float)(16.0 * scale * fp8_scale);
    return o;
}

/* The weight, in fp8 marked as the model marks it. */
static void add_weight(struct op_instance *x, double scale) {
    struct operand *weight = add_factor(x, "weight", x->c->d[2], x->c->d[1], scale, 0x1p-6);
    weight->target.fp8 = weight->reference.fp8 = (x->c->flags & FP8) != 0;
}

/* The allowed error of a sum of n products, as a share of the sum of their magnitudes. In fp8 the reference
 * multiplies the same rounded operands, so rounding them is no error; but tensor cores add fp8 products
 * with only 14 bits or more (DeepSeek-AI 2024, arXiv 2412.19437, section 3.3.2). */
static double product_error(const struct op_instance *x, double n) {
    return op_sum_error(n) + (x->c->flags & FP8 ? 0x1p-13 : 0.0);
}

/* --- matmul_forward --- */

static void matmul_forward_make(struct op_instance *x) {
    int64_t N = x->c->d[0], C = x->c->d[1], OC = x->c->d[2];
    bool exact = x->c->input == INPUT_INTEGER && !(x->c->flags & GELU);
    double scale = x->c->input == INPUT_LARGE ? 1e4 : 1.0;
    add_factor(x, "inp", N, C, scale, 1.0);
    add_weight(x, scale);
    if (x->c->flags & BIAS) op_fill(x, op_add(x, ROLE_IN, x->dtype, "bias", OC, 0, 0), scale);
    if (x->c->flags & KEEP_PRE) op_add(x, ROLE_OUT, x->dtype, "pre", N, OC, 0);
    if (x->c->flags & FP8_OUT)
        op_add_fp8(x, ROLE_OUT, DTYPE_E4M3, "out", "out.descale", N, OC);
    else
        op_add(x, ROLE_OUT, x->dtype, "out", N, OC, 0)->exact = exact;
}

/* The product's error is relative to |inp| @ |weight|^T + |bias|. GELU multiplies it by its slope, at most
 * 1.13, and may start from the stored, rounded pre-activation. */
static void matmul_forward_bound(struct op_instance *x) {
    int64_t N = x->c->d[0], C = x->c->d[1], OC = x->c->d[2];
    struct operand *out = op_find(x, "out"), *kept = op_find(x, "pre");
    if (out->exact) return;
    struct tensor magnitude = op_temporary(x, N, OC, 0), pre = op_temporary(x, N, OC, 0), bias;
    struct tensor inp = op_absolute(x, "inp"), weight = op_absolute(x, "weight");
    if (x->c->flags & BIAS) bias = op_absolute(x, "bias");
    matmul_forward(&x->reference, &magnitude, NULL, &inp, &weight, x->c->flags & BIAS ? &bias : NULL,
                   ACT_NONE);
    matmul_forward(&x->reference, &pre, NULL, A("inp"), A("weight"), A("bias"), ACT_NONE);
    double error = product_error(x, (double)C);
    for (int64_t i = 0; i < out->count; i++) {
        double product = error * (double)f32(&magnitude)[i], p = (double)f32(&pre)[i];
        if (kept) kept->allowed[i] += product;
        out->allowed[i] +=
            !(x->c->flags & GELU) ? product : 1.13 * (product + 2.0 * x->unit * fabs(p)) + op_gelu_error(p);
    }
    if (x->c->flags & FP8_OUT) op_allow_fp8(x, "out", op_largest(out->expected, out->count));
}

static int matmul_forward_model_cases(const struct op_model *m, struct op_case *out) {
    int n = model_shapes(m, out);
    out[2].flags |= GELU | KEEP_PRE;
    out[7].flags |= GELU | KEEP_PRE | FP8_OUT;
    return n;
}

static const struct op_case matmul_forward_cases[] = {
    {"odd", INPUT_RANDOM, {5, 7, 11}, 0, SIZE_SMALL},
    {"odd, bias", INPUT_RANDOM, {13, 9, 35}, BIAS, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1, 1, 1}, BIAS, SIZE_SMALL},
    {"one row", INPUT_RANDOM, {1, 64, 40}, BIAS, SIZE_SMALL},
    {"few rows", INPUT_RANDOM, {4, 24, 17}, BIAS | GELU | KEEP_PRE, SIZE_SMALL},
    {"vectors", INPUT_RANDOM, {16, 32, 48}, BIAS, SIZE_SMALL},
    {"tiles", INPUT_RANDOM, {65, 40, 72}, BIAS, SIZE_SMALL},
    {"blocks of threads", INPUT_RANDOM, {130, 24, 140}, BIAS | GELU | KEEP_PRE, SIZE_SMALL},
    {"gelu", INPUT_RANDOM, {16, 16, 64}, BIAS | GELU | KEEP_PRE, SIZE_SMALL},
    {"gelu, odd", INPUT_RANDOM, {9, 5, 13}, GELU | KEEP_PRE, SIZE_SMALL},
    {"gelu, pre not kept", INPUT_RANDOM, {8, 16, 24}, BIAS | GELU, SIZE_SMALL},
    {"large", INPUT_LARGE, {8, 32, 16}, BIAS, SIZE_SMALL},
    {"tiny", INPUT_TINY, {8, 32, 16}, BIAS, SIZE_SMALL},
    {"equal rows", INPUT_EQUAL, {8, 32, 16}, BIAS, SIZE_SMALL},
    {"one-hot", INPUT_ONE_HOT, {8, 32, 16}, BIAS, SIZE_SMALL},
    {"integer", INPUT_INTEGER, {24, 40, 32}, BIAS, SIZE_SMALL},
    {"integer, odd", INPUT_INTEGER, {7, 19, 5}, BIAS, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {8, 16, 24}, BIAS | UNALIGNED, SIZE_SMALL},
    {"gpt2 qkv", INPUT_RANDOM, {512, 768, 2304}, BIAS, SIZE_LARGE},
    {"gpt2 fc", INPUT_RANDOM, {512, 768, 3072}, BIAS | GELU | KEEP_PRE, SIZE_LARGE},
    {"integer, gpt2 lm_head", INPUT_INTEGER, {256, 768, 50304}, 0, SIZE_LARGE},
    {"fp8", INPUT_RANDOM, {16, 32, 48}, BIAS | FP8, SIZE_SMALL},
    {"fp8, no bias", INPUT_RANDOM, {48, 16, 16}, FP8, SIZE_SMALL},
    {"fp8, tiles with tails", INPUT_RANDOM, {144, 160, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, several parts", INPUT_RANDOM, {32, 1056, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, gelu", INPUT_RANDOM, {16, 32, 64}, BIAS | GELU | KEEP_PRE | FP8, SIZE_SMALL},
    {"fp8, gelu, pre not kept", INPUT_RANDOM, {32, 16, 32}, GELU | FP8, SIZE_SMALL},
    {"fp8, shape not taken", INPUT_RANDOM, {16, 40, 24}, BIAS | FP8, SIZE_SMALL},
    {"fp8, rows not taken", INPUT_RANDOM, {24, 32, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, large", INPUT_LARGE, {16, 32, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, tiny", INPUT_TINY, {16, 32, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, equal rows", INPUT_EQUAL, {16, 32, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, one-hot", INPUT_ONE_HOT, {16, 32, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, integer", INPUT_INTEGER, {160, 48, 32}, BIAS | FP8, SIZE_SMALL},
    {"fp8, unaligned", INPUT_RANDOM, {16, 16, 32}, BIAS | FP8 | UNALIGNED, SIZE_SMALL},
    {"fp8, stored", INPUT_RANDOM, {16, 32, 48}, BIAS | FP8 | FP8_INP, SIZE_SMALL},
    {"fp8, stored, integer", INPUT_INTEGER, {160, 48, 32}, BIAS | FP8 | FP8_INP, SIZE_SMALL},
    {"fp8, stored, gelu",
     INPUT_RANDOM,
     {32, 16, 64},
     BIAS | GELU | KEEP_PRE | FP8 | FP8_INP | FP8_OUT,
     SIZE_SMALL},
    {"fp8, gelu to store", INPUT_RANDOM, {16, 48, 32}, GELU | KEEP_PRE | FP8 | FP8_OUT, SIZE_SMALL},
    {"fp8, gpt2 fc", INPUT_RANDOM, {512, 768, 3072}, BIAS | GELU | KEEP_PRE | FP8, SIZE_LARGE},
};
OP_TEST(matmul_forward, (.bound = matmul_forward_bound, .model_cases = matmul_forward_model_cases), A("out"),
        A("pre"), A("inp"), A("weight"), A("bias"), x->c->flags &GELU ? ACT_GELU : ACT_NONE);

/* --- matmul_backward --- */

/* Sums whose terms have one sign come near fp8_gradient_bound(). */
static void take_magnitudes(struct op_instance *x, const char *name) {
    struct operand *o = op_find(x, name);
    for (int64_t i = 0; i < o->count; i++) o->initial[i] = fabsf(o->initial[i]);
}

static void matmul_backward_make(struct op_instance *x) {
    int64_t N = x->c->d[0], C = x->c->d[1], OC = x->c->d[2];
    bool exact = x->c->input == INPUT_INTEGER;
    double scale = x->c->input == INPUT_LARGE ? 1e4 : 1.0;
    enum operand_role gradient = x->c->flags & ACCUMULATE ? ROLE_ADD : ROLE_OUT;
    add_factor(x, "dout", N, OC, scale, 0x1p-10);
    add_factor(x, "inp", N, C, scale, 1.0);
    add_weight(x, scale);
    if (x->c->flags & GELU) op_fill_normal(x, op_add(x, ROLE_IN, x->dtype, "pre", N, C, 0), 0.0, 2.0);
    if (x->c->input == INPUT_FLAT) take_magnitudes(x, "dout"), take_magnitudes(x, "weight");
    if (x->c->flags & FP8_OUT)
        op_add_fp8(x, ROLE_OUT, DTYPE_E5M2, "dinp", "dinp.descale", N, C);
    else if (!(x->c->flags & NO_DINP))
        op_add(x, ROLE_OUT, x->dtype, "dinp", N, C, 0)->exact = exact && !(x->c->flags & GELU);
    if (!(x->c->flags & NO_DWEIGHT)) op_add(x, gradient, x->dtype, "dweight", OC, C, 0)->exact = exact;
    if (x->c->flags & BIAS) op_add(x, gradient, x->dtype, "dbias", OC, 0, 0)->exact = exact;
}

static void allow_sum(struct op_instance *x, const char *name, const struct tensor *magnitude, double terms) {
    struct operand *o = op_find(x, name);
    if (!o || o->exact) return;
    for (int64_t i = 0; i < o->count; i++)
        o->allowed[i] +=
            product_error(x, terms) *
            ((double)f32(magnitude)[i] + (o->role == ROLE_ADD ? fabs((double)o->initial[i]) : 0.0));
}

/* What (dout @ weight) * gelu'(pre) does not exceed, with the weight as fp8 rounds it. */
static double gradient_bound(struct op_instance *x) {
    int64_t C = x->c->d[1], OC = x->c->d[2];
    const float *weight = op_initial(x, "weight");
    float scale = fp8_scale(FP8_E4M3, (float)op_largest(weight, OC * C));
    double most = 0.0;
    for (int64_t c = 0; c < C; c++) {
        double sum = 0.0;
        for (int64_t o = 0; o < OC; o++) sum += fabs((double)fp8_through(FP8_E4M3, weight[o * C + c], scale));
        most = fmax(most, sum);
    }
    return 1.5 * op_largest(op_initial(x, "dout"), op_find(x, "dout")->count) * most;
}

/* The op on absolute values gives every magnitude. With GELU the product may be stored before it is
 * multiplied by the slope, which rounds once more. */
static void matmul_backward_bound(struct op_instance *x) {
    int64_t N = x->c->d[0], C = x->c->d[1], OC = x->c->d[2];
    struct operand *dinp = op_find(x, "dinp");
    struct tensor dout = op_absolute(x, "dout"), inp = op_absolute(x, "inp"),
                  weight = op_absolute(x, "weight");
    struct tensor product = op_temporary(x, N, C, 0), dweight = op_temporary(x, OC, C, 0),
                  dbias = op_temporary(x, OC, 0, 0);
    matmul_backward(&x->reference, &product, &dweight, &dbias, &dout, &inp, &weight, NULL, false);
    allow_sum(x, "dweight", &dweight, (double)N);
    allow_sum(x, "dbias", &dbias, (double)N);
    if (dinp && !(x->c->flags & GELU)) allow_sum(x, "dinp", &product, (double)OC);
    if (!dinp || !(x->c->flags & GELU)) return;
    const float *pre = op_initial(x, "pre");
    for (int64_t i = 0; i < dinp->count; i++)
        dinp->allowed[i] += 2.0 * x->unit * fabs((double)dinp->expected[i]) +
                            (1.13 * product_error(x, (double)OC) + op_gelu_derivative_error((double)pre[i])) *
                                (double)f32(&product)[i];
    if (x->c->flags & FP8_OUT) op_allow_fp8(x, "dinp", gradient_bound(x));
}

static int matmul_backward_model_cases(const struct op_model *m, struct op_case *out) {
    int n = model_shapes(m, out);
    out[3].flags |= GELU;
    out[8].flags |= GELU | FP8_OUT;
    out[7].flags |= FP8_DOUT;
    return n;
}

static const struct op_case matmul_backward_cases[] = {
    {"odd", INPUT_RANDOM, {5, 7, 11}, BIAS, SIZE_SMALL},
    {"odd, accumulate", INPUT_RANDOM, {13, 9, 35}, BIAS | ACCUMULATE, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1, 1, 1}, BIAS | ACCUMULATE, SIZE_SMALL},
    {"one row", INPUT_RANDOM, {1, 40, 24}, BIAS, SIZE_SMALL},
    {"vectors", INPUT_RANDOM, {16, 32, 48}, BIAS | ACCUMULATE, SIZE_SMALL},
    {"no bias", INPUT_RANDOM, {16, 32, 48}, 0, SIZE_SMALL},
    {"tiles", INPUT_RANDOM, {65, 40, 72}, BIAS | ACCUMULATE, SIZE_SMALL},
    {"blocks of threads", INPUT_RANDOM, {20, 130, 140}, BIAS | GELU | ACCUMULATE, SIZE_SMALL},
    {"many rows", INPUT_RANDOM, {300, 8, 24}, BIAS | ACCUMULATE, SIZE_SMALL},
    {"gelu", INPUT_RANDOM, {16, 64, 16}, BIAS | GELU, SIZE_SMALL},
    {"gelu, odd", INPUT_RANDOM, {9, 13, 5}, BIAS | GELU | ACCUMULATE, SIZE_SMALL},
    {"no dinp", INPUT_RANDOM, {9, 16, 8}, BIAS | NO_DINP, SIZE_SMALL},
    {"no dinp, accumulate", INPUT_RANDOM, {9, 16, 8}, NO_DINP | ACCUMULATE, SIZE_SMALL},
    {"no dweight", INPUT_RANDOM, {9, 16, 8}, NO_DWEIGHT, SIZE_SMALL},
    {"no dweight, odd", INPUT_INTEGER, {7, 19, 5}, NO_DWEIGHT | ACCUMULATE, SIZE_SMALL},
    {"no dweight, gelu", INPUT_RANDOM, {16, 64, 16}, NO_DWEIGHT | GELU, SIZE_SMALL},
    {"large", INPUT_LARGE, {8, 32, 16}, BIAS, SIZE_SMALL},
    {"tiny", INPUT_TINY, {8, 32, 16}, BIAS | ACCUMULATE, SIZE_SMALL},
    {"equal rows", INPUT_EQUAL, {8, 32, 16}, BIAS, SIZE_SMALL},
    {"one-hot", INPUT_ONE_HOT, {8, 32, 16}, BIAS, SIZE_SMALL},
    {"integer", INPUT_INTEGER, {24, 40, 32}, BIAS | ACCUMULATE, SIZE_SMALL},
    {"integer, odd", INPUT_INTEGER, {7, 19, 5}, BIAS, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {8, 16, 24}, BIAS | ACCUMULATE | UNALIGNED, SIZE_SMALL},
    {"gpt2 qkv", INPUT_RANDOM, {512, 768, 2304}, BIAS | ACCUMULATE, SIZE_LARGE},
    {"gpt2 fcproj", INPUT_RANDOM, {512, 3072, 768}, BIAS | GELU, SIZE_LARGE},
    {"integer, gpt2 lm_head", INPUT_INTEGER, {256, 768, 50304}, ACCUMULATE, SIZE_LARGE},
    {"fp8", INPUT_RANDOM, {16, 32, 48}, BIAS | FP8, SIZE_SMALL},
    {"fp8, accumulate", INPUT_RANDOM, {48, 16, 32}, BIAS | ACCUMULATE | FP8, SIZE_SMALL},
    {"fp8, no bias", INPUT_RANDOM, {16, 48, 16}, FP8, SIZE_SMALL},
    {"fp8, tiles with tails", INPUT_RANDOM, {144, 16, 160}, BIAS | FP8, SIZE_SMALL},
    {"fp8, several parts", INPUT_RANDOM, {144, 16, 288}, BIAS | ACCUMULATE | FP8, SIZE_SMALL},
    {"fp8, gelu", INPUT_RANDOM, {16, 64, 32}, BIAS | GELU | FP8, SIZE_SMALL},
    {"fp8, no dweight", INPUT_RANDOM, {32, 16, 16}, NO_DWEIGHT | FP8, SIZE_SMALL},
    {"fp8, no dinp", INPUT_RANDOM, {32, 16, 16}, BIAS | NO_DINP | FP8, SIZE_SMALL},
    {"fp8, shape not taken", INPUT_RANDOM, {16, 24, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, large", INPUT_LARGE, {16, 32, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, tiny", INPUT_TINY, {16, 32, 16}, BIAS | ACCUMULATE | FP8, SIZE_SMALL},
    {"fp8, equal rows", INPUT_EQUAL, {16, 32, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, one-hot", INPUT_ONE_HOT, {16, 32, 16}, BIAS | FP8, SIZE_SMALL},
    {"fp8, integer", INPUT_INTEGER, {160, 48, 32}, BIAS | ACCUMULATE | FP8, SIZE_SMALL},
    {"fp8, unaligned", INPUT_RANDOM, {16, 16, 32}, BIAS | ACCUMULATE | FP8 | UNALIGNED, SIZE_SMALL},
    {"fp8, stored", INPUT_RANDOM, {16, 32, 48}, BIAS | FP8 | FP8_INP, SIZE_SMALL},
    {"fp8, stored, tiles with tails",
     INPUT_RANDOM,
     {144, 160, 16},
     BIAS | ACCUMULATE | FP8 | FP8_INP,
     SIZE_SMALL},
    {"fp8, stored, integer",
     INPUT_INTEGER,
     {160, 48, 32},
     BIAS | GELU | ACCUMULATE | FP8 | FP8_INP,
     SIZE_SMALL},
    {"fp8, stored, no dweight", INPUT_RANDOM, {32, 16, 16}, NO_DWEIGHT | FP8 | FP8_INP, SIZE_SMALL},
    {"fp8, gradient to store", INPUT_RANDOM, {16, 64, 32}, BIAS | GELU | FP8 | FP8_INP | FP8_OUT, SIZE_SMALL},
    {"fp8, gradient to store, tiles",
     INPUT_RANDOM,
     {144, 272, 160},
     GELU | ACCUMULATE | FP8 | FP8_OUT,
     SIZE_SMALL},
    {"fp8, gradient to store, of one sign", INPUT_FLAT, {16, 16, 512}, GELU | FP8 | FP8_OUT, SIZE_SMALL},
    {"fp8, gradient to store, no dweight",
     INPUT_RANDOM,
     {32, 16, 16},
     GELU | NO_DWEIGHT | FP8 | FP8_OUT,
     SIZE_SMALL},
    {"fp8, stored gradient", INPUT_RANDOM, {16, 32, 48}, BIAS | FP8 | FP8_INP | FP8_DOUT, SIZE_SMALL},
    {"fp8, stored gradient, integer",
     INPUT_INTEGER,
     {160, 48, 144},
     BIAS | ACCUMULATE | FP8 | FP8_DOUT,
     SIZE_SMALL},
    {"fp8, stored gradient, no dweight", INPUT_RANDOM, {32, 16, 16}, NO_DWEIGHT | FP8 | FP8_DOUT, SIZE_SMALL},
    {"fp8, gpt2 fcproj", INPUT_RANDOM, {512, 3072, 768}, BIAS | GELU | FP8, SIZE_LARGE},
};
OP_TEST(matmul_backward, (.bound = matmul_backward_bound, .model_cases = matmul_backward_model_cases),
        A("dinp"), A("dweight"), A("dbias"), A("dout"), A("inp"), A("weight"), A("pre"),
        (x->c->flags & ACCUMULATE) != 0);
