/* The gradients of the CPU operations against finite differences. The test finds every pair <stem>_forward,
 * <stem>_backward by its names and checks it on the small cases of its description. Fused activations, and
 * ops that compute their gradients in place, have separate tests. */
#include "test/test.h"

#include "llmc/base/rng.h"
#include "test/ops/cpu_ctx.h"
#include "test/ops/op_harness.h"

#include <math.h>
#include <stdio.h>
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

/* Compares every element of `gradient` with the five-point difference of `value`, a scalar function of x.
 * For h = 2^-5, the truncation error is h^4/30 = 3e-8 times the fifth derivative (here some tens at most),
 * and the rounding error is 1.5/h = 48 times that of `value`. Its terms, up to a few hundred of size 1 that
 * are each rounded to 2^-24, make 1e-6 at most. So 1e-4 of the larger of 1 and the largest element is
 * allowed. */
static void check_elements(const char *what, float *x, const float *gradient, int64_t count,
                           double (*value)(void *), void *user) {
    const float h = 1.0f / 32.0f;
    double largest = 1.0;
    for (int64_t i = 0; i < count; i++) largest = max_f64(largest, fabs((double)gradient[i]));
    for (int64_t i = 0; i < count; i++) {
        float at = x[i];
        double v[4];
        for (int k = 0; k < 4; k++) {
            x[i] = at + h * (float)(k < 2 ? k - 2 : k - 1); /* -2h -h h 2h */
            v[k] = value(user);
        }
        x[i] = at;
        double slope = (8.0 * (v[2] - v[1]) - (v[3] - v[0])) / (12.0 * (double)h);
        if (!(fabs(slope - (double)gradient[i]) <= 1e-4 * largest))
            fail_msg("%s[%lld]: gradient %.7g, finite difference %.7g", what, (long long)i,
                     (double)gradient[i], slope);
    }
}
static void check_gradient(const char *what, struct field *x, const struct field *gradient,
                           double (*value)(void *), void *user) {
    check_elements(what, x->data, gradient->data, tensor_count(&x->t), value, user);
}

/* --- pairs of operations --- */

/* A case of a backward op, and the forward op on the same operands. */
struct gradient_case {
    struct ctx *ctx;
    struct op_instance forward, backward;
};

static double dot(const struct operand *a, const struct operand *b) {
    double sum = 0.0;
    for (int64_t i = 0; i < a->count; i++) sum += (double)f32(&a->reference)[i] * (double)b->initial[i];
    return sum;
}

/* The backward op's operand that is the gradient of `o`: its name has a "d" in front. */
static struct operand *gradient_of(struct gradient_case *g, const struct operand *o) {
    char name[64];
    snprintf(name, sizeof name, "d%s", o->name);
    return op_find(&g->backward, name);
}

/* The function whose gradient the backward op computes: the sum of out * dout over all outputs.
 * norm_backward adds dresidual, the gradient that reaches the input past the norm. */
static double forward_value(void *user) {
    struct gradient_case *g = (struct gradient_case *)user;
    double sum = 0.0;
    g->forward.op->call(g->ctx, &g->forward);
    for (int k = 0; k < g->forward.count; k++) {
        struct operand *o = &g->forward.operand[k], *d = gradient_of(g, o);
        if (o->role == ROLE_OUT && d) sum += dot(o, d);
    }
    struct operand *past = op_find(&g->backward, "dresidual");
    return past ? sum + dot(op_find(&g->forward, "inp"), past) : sum;
}

/* The forward op reads what the backward op read. */
static void share_inputs(struct gradient_case *g) {
    g->forward.on_target = false;
    for (int k = 0; k < g->forward.count; k++) {
        struct operand *o = &g->forward.operand[k], *same = op_find(&g->backward, o->name);
        if (same && o->role == ROLE_IN) {
            assert_int_equal(o->count, same->count);
            memcpy(o->reference.data, same->reference.data, (size_t)o->count * sizeof(float));
        }
    }
}

/* Cases that are small enough for a few calls per element, whose inputs a step of 2^-5 changes little and
 * with an error below 2^-20, and that neither round nor fuse. */
static bool fits_differences(struct op_instance *x) {
    if (x->c->flags & OP_FP8 || op_find(x, "pre")) return false;
    for (int k = 0; k < x->count; k++) {
        const struct operand *o = &x->operand[k];
        if (o->target.dtype == DTYPE_I32) continue;
        if (o->role == ROLE_IN && o->count > 200) return false;
        for (int64_t i = 0; o->role == ROLE_IN && i < o->count; i++)
            if (!(fabsf(o->initial[i]) < 16.0f)) return false;
    }
    return true;
}

/* Checks one case; returns how many gradients it has. */
static int check_case(struct gradient_case *g) {
    int checked = 0;
    share_inputs(g);
    for (int k = 0; k < g->forward.count; k++) {
        struct operand *o = &g->forward.operand[k], *d = gradient_of(g, o);
        if (o->role != ROLE_IN || !d || d->role == ROLE_IN) continue;
        if (d->role == ROLE_ADD)
            for (int64_t i = 0; i < d->count; i++) d->expected[i] -= d->initial[i];
        const char *what = op_case_text(g->backward.op, g->backward.c, DTYPE_F32, d->name);
        check_elements(what, f32(&o->reference), d->expected, o->count, forward_value, g);
        checked++;
    }
    return checked;
}

static enum op_id forward_of(enum op_id backward) {
    const char *name = op_name(backward);
    size_t stem = strlen(name) - strlen("backward");
    for (int id = 0; id < OP_COUNT; id++)
        if (strncmp(op_name((enum op_id)id), name, stem) == 0 &&
            strcmp(op_name((enum op_id)id) + stem, "forward") == 0)
            return (enum op_id)id;
    fail_msg("%s belongs to no forward op", name);
    return OP_COUNT;
}

static void test_every_pair(void **state) {
    int pairs = 0;
    for (int id = 0; id < OP_COUNT; id++) {
        const char *name = op_name((enum op_id)id);
        if (strlen(name) < 9 || strcmp(name + strlen(name) - 9, "_backward") != 0) continue;
        int gradients = 0;
        for (size_t i = 0; i < op_tests[id]->case_count; i++) {
            const struct op_case *c = &op_tests[id]->cases[i];
            if (c->size == SIZE_LARGE || c->input != INPUT_RANDOM) continue;
            struct gradient_case *g = (struct gradient_case *)xcalloc(1, sizeof *g);
            g->ctx = ctx_of(state);
            op_instance_create(&g->backward, op_tests[id], c, DTYPE_F32, g->ctx);
            if (fits_differences(&g->backward)) {
                op_instance_create(&g->forward, op_tests[forward_of((enum op_id)id)], c, DTYPE_F32, g->ctx);
                gradients += check_case(g);
                op_instance_free(&g->forward);
            }
            op_instance_free(&g->backward);
            free(g);
        }
        print_message("# %s: %d gradients\n", name, gradients);
        assert_true(gradients > 2);
        pairs++;
    }
    assert_true(pairs > 4);
}

/* --- fused and in place --- */

/* Everything that a test needs; `value` is the sum of out * dout. */
struct pair {
    const struct loss_terms *terms;
    struct ctx *ctx;
    struct field inp, weight, bias, out, dout, dpre, mean, dinp, dweight, dbias, pre;
    struct tensor tokens;
    int32_t token[16];
};

/* GELU, then a linear layer, whose backward pass includes GELU's derivative. */
static double matmul_value(void *user) {
    struct pair *p = (struct pair *)user;
    act_forward(p->ctx, &p->inp.t, &p->pre.t, ACT_GELU);
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

/* A linear layer with fused GELU, whose derivative is act_backward. */
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
    field_zero(&p->dpre, &p->dout);
    field_zero(&p->dinp, &p->inp);
    field_zero(&p->dweight, &p->weight);
    field_zero(&p->dbias, &p->bias);
    matmul_gelu_value(p);
    act_backward(p->ctx, &p->dpre.t, &p->dout.t, &p->pre.t, ACT_GELU);
    matmul_backward(p->ctx, &p->dinp.t, &p->dweight.t, &p->dbias.t, &p->dpre.t, &p->inp.t, &p->weight.t, NULL,
                    false);
    check_gradient("matmul+gelu inp", &p->inp, &p->dinp, matmul_gelu_value, p);
    check_gradient("matmul+gelu weight", &p->weight, &p->dweight, matmul_gelu_value, p);
    check_gradient("matmul+gelu bias", &p->bias, &p->dbias, matmul_gelu_value, p);
    free(p);
}

enum { LOSS_V = 6 };
static const float loss_scale = 0.25f;
static double loss_value(void *user) {
    struct pair *p = (struct pair *)user;
    loss_forward(p->ctx, &p->mean.t, &p->inp.t, &p->tokens, NULL, LOSS_V, p->terms);
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
    float value = loss_scale;
    struct tensor dloss = tensor_make("dloss", DTYPE_F32, &value, 1, 0, 0, 0);
    static const struct loss_terms terms[] = {{0},          {.smoothing = 0.2f}, {.z = 0.3f},
                                              {0.1f, 0.2f}, {.softcap = 1.5f},   {0.1f, 0.2f, 2.0f}};
    for (size_t i = 0; i < ARRAY_LENGTH(terms); i++) {
        p->terms = i ? &terms[i] : NULL;
        p->dinp = p->inp;
        p->dinp.t.data = p->dinp.data;
        loss_forward(p->ctx, &p->mean.t, &p->dinp.t, &p->tokens, &dloss, LOSS_V, p->terms);
        check_gradient("loss logits", &p->inp, &p->dinp, loss_value, p);
    }
    free(p);
}

enum { ROPE_HEADS = 2, ROPE_KV_HEADS = 1, ROPE_T0 = 1 };
static const struct rope_rule rope_rule = {
    .theta = 100.0f, .factor = 4.0f, .original = 60.0f, .low = 1.0f, .high = 3.0f};
static double rope_value(void *user) {
    struct pair *p = (struct pair *)user;
    memcpy(p->out.data, p->inp.data, sizeof p->inp.data);
    rope(p->ctx, &p->out.t, ROPE_HEADS, ROPE_KV_HEADS, ROPE_T0, &rope_rule, false);
    return field_dot(&p->out, &p->dout);
}

static void test_gradient_rope(void **state) {
    struct pair *p = (struct pair *)xcalloc(1, sizeof *p);
    p->ctx = ctx_of(state);
    field_make(&p->inp, 1, 2, 5, 4 * 6);
    field_make(&p->dout, 2, 2, 5, 4 * 6);
    field_zero(&p->out, &p->inp);
    field_zero(&p->dinp, &p->inp);
    memcpy(p->dinp.data, p->dout.data, sizeof p->dout.data);
    rope(p->ctx, &p->dinp.t, ROPE_HEADS, ROPE_KV_HEADS, ROPE_T0, &rope_rule, true);
    check_gradient("rope qkv", &p->inp, &p->dinp, rope_value, p);
    free(p);
}

int main(int argc, char **argv) {
#define CPU_TEST(f) cmocka_unit_test_setup_teardown(f, open_cpu, close_cpu)
    const struct CMUnitTest tests[] = {
        CPU_TEST(test_every_pair),    CPU_TEST(test_gradient_matmul), CPU_TEST(test_gradient_matmul_gelu),
        CPU_TEST(test_gradient_loss), CPU_TEST(test_gradient_rope),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
