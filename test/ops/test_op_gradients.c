/* Every forward/backward pair of the CPU operations against finite differences. */
#include "test/test.h"

#include "llmc/ops/ctx.h"
#include "llmc/base/rng.h"
#include "test/ops/cpu_ctx.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- finite differences --- */

/* A small fp32 tensor of normal numbers, multiples of 2^-12, so that a step of 2^-5 is exact. */
struct field {
    float data[512];
    struct tensor t;
};
static void field_make(struct field *f, uint64_t stream, int64_t d0, int64_t d1, int64_t d2) {
    f->t = tensor_make("field", DTYPE_F32, f->data, d0, d1, d2, 0);
    assert_true(tensor_count(&f->t) <= (int64_t)ARRAY_LENGTH(f->data));
    for (int64_t i = 0; i < tensor_count(&f->t); i++) {
        double u = rng_uniform(stream, RNG_TEST, 2 * (uint64_t)i),
               v = rng_uniform(stream, RNG_TEST, 2 * (uint64_t)i + 1);
        f->data[i] = (float)(round(4096.0 * sqrt(-2.0 * log(1.0 - u)) * cos(6.283185307179586 * v)) / 4096.0);
    }
}
static void field_zero(struct field *f, const struct field *like) {
    f->t = like->t;
    f->t.data = f->data;
    memset(f->data, 0, sizeof f->data);
}
static double field_dot(const struct field *a, const struct field *b) {
    double sum = 0.0;
    for (int64_t i = 0; i < tensor_count(&a->t); i++) sum += (double)a->data[i] * (double)b->data[i];
    return sum;
}

/* Every element of `gradient` against the five-point difference of `value`, a scalar function of x.
 * h = 2^-5: the truncation error is h^4/30 = 3e-8 times the fifth derivative (some tens here, at most), the
 * rounding error 1.5/h = 48 times that of `value`, whose terms (up to a few hundred of size 1, each rounded
 * to 2^-24 of itself, and independent) make 1e-6 at most: 1e-4 of the larger of 1 and the largest element. */
static void check_gradient(const char *what, struct field *x, const struct field *gradient,
                           double (*value)(void *), void *user) {
    const float h = 1.0f / 32.0f;
    double largest = 1.0;
    for (int64_t i = 0; i < tensor_count(&x->t); i++)
        largest = fmax(largest, fabs((double)gradient->data[i]));
    for (int64_t i = 0; i < tensor_count(&x->t); i++) {
        float at = x->data[i];
        double v[4];
        for (int k = 0; k < 4; k++) {
            x->data[i] = at + h * (float)(k < 2 ? k - 2 : k - 1); /* -2h -h h 2h */
            v[k] = value(user);
        }
        x->data[i] = at;
        double slope = (8.0 * (v[2] - v[1]) - (v[3] - v[0])) / (12.0 * (double)h);
        if (!(fabs(slope - (double)gradient->data[i]) <= 1e-4 * largest))
            fail_msg("%s[%lld]: gradient %.7g, finite difference %.7g", what, (long long)i,
                     (double)gradient->data[i], slope);
    }
}

/* Everything a pair needs; `value` is the sum of out * dout (+ residual * dresidual). */
struct pair {
    struct ctx *ctx;
    struct field inp, delta, weight, bias, out, dout, residual, dresidual, mean, rstd, dinp, dweight, dbias,
        pre;
    struct tensor tokens;
    int32_t token[16];
};

static double norm_value(void *user) {
    struct pair *p = (struct pair *)user;
    residual_norm_forward(p->ctx, &p->residual.t, &p->out.t, &p->mean.t, &p->rstd.t, &p->inp.t, &p->delta.t,
                          &p->weight.t, &p->bias.t);
    return field_dot(&p->out, &p->dout) + field_dot(&p->residual, &p->dresidual);
}

static void test_gradient_norm(void **state) {
    struct pair *p = (struct pair *)xcalloc(1, sizeof *p);
    p->ctx = ctx_of(state);
    field_make(&p->inp, 1, 4, 11, 0);
    field_make(&p->delta, 2, 4, 11, 0);
    field_make(&p->dout, 3, 4, 11, 0);
    field_make(&p->dresidual, 4, 4, 11, 0);
    field_make(&p->weight, 5, 11, 0, 0);
    field_make(&p->bias, 6, 11, 0, 0);
    field_make(&p->mean, 7, 4, 0, 0);
    field_zero(&p->rstd, &p->mean);
    field_zero(&p->out, &p->inp);
    field_zero(&p->residual, &p->inp);
    field_zero(&p->dinp, &p->inp);
    field_zero(&p->dweight, &p->weight);
    field_zero(&p->dbias, &p->bias);
    norm_value(p);
    norm_backward(p->ctx, &p->dinp.t, &p->dweight.t, &p->dbias.t, &p->dresidual.t, &p->dout.t, &p->residual.t,
                  &p->mean.t, &p->rstd.t, &p->weight.t);
    check_gradient("norm inp", &p->inp, &p->dinp, norm_value, p);
    check_gradient("norm delta", &p->delta, &p->dinp, norm_value, p);
    check_gradient("norm weight", &p->weight, &p->dweight, norm_value, p);
    check_gradient("norm bias", &p->bias, &p->dbias, norm_value, p);
    free(p);
}

/* gelu, then a linear layer: the order in which the model fuses the derivative into matmul_backward. */
static double matmul_value(void *user) {
    struct pair *p = (struct pair *)user;
    act_forward(p->ctx, &p->inp.t, &p->pre.t);
    matmul_forward(p->ctx, &p->out.t, NULL, &p->inp.t, &p->weight.t, &p->bias.t, ACT_NONE);
    return field_dot(&p->out, &p->dout);
}

static void test_gradient_matmul(void **state) {
    struct pair *p = (struct pair *)xcalloc(1, sizeof *p);
    p->ctx = ctx_of(state);
    field_make(&p->pre, 1, 6, 5, 0);
    field_make(&p->weight, 2, 7, 5, 0);
    field_make(&p->bias, 3, 7, 0, 0);
    field_make(&p->dout, 4, 6, 7, 0);
    field_zero(&p->inp, &p->pre);
    field_zero(&p->out, &p->dout);
    field_zero(&p->dinp, &p->pre);
    field_zero(&p->dweight, &p->weight);
    field_zero(&p->dbias, &p->bias);
    matmul_value(p);
    matmul_backward(p->ctx, &p->dinp.t, &p->dweight.t, &p->dbias.t, &p->dout.t, &p->inp.t, &p->weight.t,
                    &p->pre.t, false);
    check_gradient("matmul pre", &p->pre, &p->dinp, matmul_value, p);
    check_gradient("matmul weight", &p->weight, &p->dweight, matmul_value, p);
    check_gradient("matmul bias", &p->bias, &p->dbias, matmul_value, p);
    free(p);
}

/* A linear layer, then the fused gelu, whose derivative is act_backward. */
static double matmul_gelu_value(void *user) {
    struct pair *p = (struct pair *)user;
    matmul_forward(p->ctx, &p->out.t, &p->pre.t, &p->inp.t, &p->weight.t, &p->bias.t, ACT_GELU);
    return field_dot(&p->out, &p->dout);
}

static void test_gradient_matmul_gelu(void **state) {
    struct pair *p = (struct pair *)xcalloc(1, sizeof *p);
    p->ctx = ctx_of(state);
    field_make(&p->inp, 1, 6, 3, 0);
    field_make(&p->weight, 2, 5, 3, 0);
    field_make(&p->bias, 3, 5, 0, 0);
    field_make(&p->dout, 4, 6, 5, 0);
    field_zero(&p->pre, &p->dout);
    field_zero(&p->out, &p->dout);
    field_zero(&p->residual, &p->dout); /* the gradient of pre */
    field_zero(&p->dinp, &p->inp);
    field_zero(&p->dweight, &p->weight);
    field_zero(&p->dbias, &p->bias);
    matmul_gelu_value(p);
    act_backward(p->ctx, &p->residual.t, &p->dout.t, &p->pre.t);
    matmul_backward(p->ctx, &p->dinp.t, &p->dweight.t, &p->dbias.t, &p->residual.t, &p->inp.t, &p->weight.t,
                    NULL, false);
    check_gradient("matmul+gelu inp", &p->inp, &p->dinp, matmul_gelu_value, p);
    check_gradient("matmul+gelu weight", &p->weight, &p->dweight, matmul_gelu_value, p);
    check_gradient("matmul+gelu bias", &p->bias, &p->dbias, matmul_gelu_value, p);
    free(p);
}

enum { ATTN_HEADS = 2 };
static double attn_value(void *user) {
    struct pair *p = (struct pair *)user;
    attn_forward(p->ctx, &p->out.t, &p->mean.t, &p->inp.t, ATTN_HEADS, 0);
    return field_dot(&p->out, &p->dout);
}

static void test_gradient_attn(void **state) {
    struct pair *p = (struct pair *)xcalloc(1, sizeof *p);
    p->ctx = ctx_of(state);
    field_make(&p->inp, 1, 2, 7, 3 * 8);
    field_make(&p->dout, 2, 2, 7, 8);
    field_make(&p->mean, 3, 2, ATTN_HEADS, 7); /* lse */
    field_zero(&p->out, &p->dout);
    field_zero(&p->dinp, &p->inp);
    attn_value(p);
    attn_backward(p->ctx, &p->dinp.t, &p->dout.t, &p->out.t, &p->mean.t, &p->inp.t, ATTN_HEADS);
    check_gradient("attn qkv", &p->inp, &p->dinp, attn_value, p);
    free(p);
}

static double embed_value(void *user) {
    struct pair *p = (struct pair *)user;
    embed_forward(p->ctx, &p->out.t, &p->tokens, &p->weight.t, &p->bias.t, 0);
    return field_dot(&p->out, &p->dout);
}

static void test_gradient_embed(void **state) {
    struct pair *p = (struct pair *)xcalloc(1, sizeof *p);
    p->ctx = ctx_of(state);
    field_make(&p->weight, 1, 5, 3, 0);
    field_make(&p->bias, 2, 7, 3, 0);
    field_make(&p->dout, 3, 2, 6, 3);
    field_zero(&p->out, &p->dout);
    field_zero(&p->dweight, &p->weight);
    field_zero(&p->dbias, &p->bias);
    p->tokens = tensor_make("tokens", DTYPE_I32, p->token, 2, 6, 0, 0);
    for (int i = 0; i < 12; i++) p->token[i] = i * i % 5;
    embed_backward(p->ctx, &p->dweight.t, &p->dbias.t, &p->dout.t, &p->tokens);
    check_gradient("embed wte", &p->weight, &p->dweight, embed_value, p);
    check_gradient("embed wpe", &p->bias, &p->dbias, embed_value, p);
    free(p);
}

enum { LOSS_V = 6 };
static const float loss_scale = 0.25f;
static double loss_value(void *user) {
    struct pair *p = (struct pair *)user;
    loss_forward(p->ctx, &p->mean.t, &p->inp.t, &p->tokens, NULL, LOSS_V);
    double sum = 0.0;
    for (int64_t i = 0; i < tensor_count(&p->mean.t); i++) sum += (double)p->mean.data[i];
    return sum * (double)loss_scale;
}

static void test_gradient_loss(void **state) {
    static const int32_t targets[] = {2, 0, -1, LOSS_V - 1, 2};
    struct pair *p = (struct pair *)xcalloc(1, sizeof *p);
    p->ctx = ctx_of(state);
    field_make(&p->inp, 1, 5, 8, 0);
    field_make(&p->mean, 2, 5, 0, 0);
    memcpy(p->token, targets, sizeof targets);
    p->tokens = tensor_make("targets", DTYPE_I32, p->token, 5, 0, 0, 0);
    p->dinp = p->inp;
    p->dinp.t.data = p->dinp.data;
    float value = loss_scale;
    struct tensor dloss = tensor_make("dloss", DTYPE_F32, &value, 1, 0, 0, 0);
    loss_forward(p->ctx, &p->mean.t, &p->dinp.t, &p->tokens, &dloss, LOSS_V);
    check_gradient("loss logits", &p->inp, &p->dinp, loss_value, p);
    free(p);
}

int main(void) {
#define CPU_TEST(f) cmocka_unit_test_setup_teardown(f, open_cpu, close_cpu)
    const struct CMUnitTest tests[] = {
        CPU_TEST(test_gradient_norm), CPU_TEST(test_gradient_matmul), CPU_TEST(test_gradient_matmul_gelu),
        CPU_TEST(test_gradient_attn), CPU_TEST(test_gradient_embed),  CPU_TEST(test_gradient_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
