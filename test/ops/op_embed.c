/* embed_forward, embed_backward. Shapes: {B, T, C, Vp, maxT, t0}. */
#include "test/ops/op_harness.h"

enum { NO_POSITIONS = OP_FLAG(0) };

static void add_tokens(struct op_instance *x) {
    struct operand *o = op_add(x, ROLE_IN, DTYPE_I32, "tokens", x->c->d[0], x->c->d[1], 0);
    if (x->c->input == INPUT_EQUAL) /* every token is the last row */
        op_fill_index(x, o, x->c->d[3] - 1, x->c->d[3]);
    else
        op_fill_index(x, o, 0, x->c->d[3]);
}

static void embed_forward_make(struct op_instance *x) {
    const int64_t *d = x->c->d;
    add_tokens(x);
    op_add(x, ROLE_IN, x->dtype, "wte", d[3], d[2], 0);
    if (!(x->c->flags & NO_POSITIONS)) op_add(x, ROLE_IN, x->dtype, "wpe", d[4], d[2], 0);
    op_add(x, ROLE_OUT, x->dtype, "out", d[0], d[1], d[2])->exact = true; /* one addition in fp32 */
}

static int embed_forward_model_cases(const struct op_model *m, struct op_case *out) {
    out[0] = (struct op_case){"model", INPUT_RANDOM, {m->B, m->T, m->C, m->Vp, m->T, 0}, 0, SIZE_LARGE};
    return 1;
}

static const struct op_case embed_forward_cases[] = {
    {"odd", INPUT_RANDOM, {2, 5, 7, 11, 8, 0}, 0, SIZE_SMALL},
    {"vectors", INPUT_RANDOM, {3, 8, 64, 50, 8, 0}, 0, SIZE_SMALL},
    {"wide", INPUT_RANDOM, {1, 3, 776, 20, 4, 0}, 0, SIZE_SMALL},
    {"later position", INPUT_RANDOM, {1, 4, 12, 9, 16, 7}, 0, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1, 1, 1, 1, 1, 0}, 0, SIZE_SMALL},
    {"large", INPUT_LARGE, {2, 3, 24, 9, 3, 0}, 0, SIZE_SMALL},
    {"tiny", INPUT_TINY, {2, 3, 24, 9, 3, 0}, 0, SIZE_SMALL},
    {"integer", INPUT_INTEGER, {2, 6, 16, 9, 6, 0}, 0, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {2, 5, 16, 11, 8, 0}, UNALIGNED, SIZE_SMALL},
    {"no positions", INPUT_RANDOM, {2, 5, 7, 11, 1, 3}, NO_POSITIONS, SIZE_SMALL},
    {"no positions, vectors", INPUT_RANDOM, {3, 8, 64, 50, 1, 0}, NO_POSITIONS, SIZE_SMALL},
    {"gpt2", INPUT_RANDOM, {4, 1024, 768, 50304, 1024, 0}, 0, SIZE_LARGE},
};
OP_TEST(embed_forward, (.model_cases = embed_forward_model_cases), A("out"), A("tokens"), A("wte"), A("wpe"),
        (int)x->c->d[5]);

static void embed_backward_make(struct op_instance *x) {
    const int64_t *d = x->c->d;
    bool exact = x->c->input == INPUT_INTEGER;
    add_tokens(x);
    op_add(x, ROLE_IN, x->dtype, "dout", d[0], d[1], d[2]);
    op_add(x, ROLE_ADD, x->dtype, "dwte", d[3], d[2], 0)->exact = exact;
    if (!(x->c->flags & NO_POSITIONS)) op_add(x, ROLE_ADD, x->dtype, "dwpe", d[4], d[2], 0)->exact = exact;
}

/* The op on absolute values gives the magnitude of each sum, which has at most B*T terms. */
static void embed_backward_bound(struct op_instance *x) {
    const int64_t *d = x->c->d;
    bool positions = !(x->c->flags & NO_POSITIONS);
    struct tensor dwte = op_absolute(x, "dwte"), dout = op_absolute(x, "dout"), dwpe = {0};
    if (positions) dwpe = op_absolute(x, "dwpe");
    if (x->c->input == INPUT_INTEGER) return;
    embed_backward(&x->reference, &dwte, positions ? &dwpe : NULL, &dout, A("tokens"));
    double *allow = op_allowed(x, "dwte"), error = op_sum_error((double)(d[0] * d[1]));
    for (int64_t i = 0; i < tensor_count(&dwte); i++) allow[i] += error * (double)f32(&dwte)[i];
    if (!positions) return;
    allow = op_allowed(x, "dwpe");
    error = op_sum_error((double)d[0]);
    for (int64_t i = 0; i < tensor_count(&dwpe); i++) allow[i] += error * (double)f32(&dwpe)[i];
}

static int embed_backward_model_cases(const struct op_model *m, struct op_case *out) {
    return embed_forward_model_cases(m, out);
}

static const struct op_case embed_backward_cases[] = {
    {"collisions", INPUT_RANDOM, {3, 7, 13, 5, 9, 0}, 0, SIZE_SMALL},
    {"vectors", INPUT_RANDOM, {2, 8, 64, 50, 8, 0}, 0, SIZE_SMALL},
    {"wide", INPUT_RANDOM, {1, 5, 776, 20, 6, 0}, 0, SIZE_SMALL},
    {"wide, few", INPUT_RANDOM, {1, 2, 70, 2, 2, 0}, 0, SIZE_SMALL}, /* small enough for finite differences */
    {"one token", INPUT_EQUAL, {2, 40, 9, 17, 40, 0}, 0, SIZE_SMALL},
    {"one", INPUT_RANDOM, {1, 1, 1, 1, 1, 0}, 0, SIZE_SMALL},
    {"large", INPUT_LARGE, {2, 9, 24, 4, 9, 0}, 0, SIZE_SMALL},
    {"tiny", INPUT_TINY, {2, 9, 24, 4, 9, 0}, 0, SIZE_SMALL},
    {"integer", INPUT_INTEGER, {4, 9, 16, 6, 12, 0}, 0, SIZE_SMALL},
    {"one token, vectors", INPUT_EQUAL, {4, 40, 16, 300, 40, 0}, 0, SIZE_SMALL},
    {"long runs of tokens", INPUT_INTEGER, {4, 40, 16, 3, 40, 0}, 0, SIZE_SMALL},
    {"many tokens", INPUT_RANDOM, {2, 600, 8, 1000, 600, 0}, 0, SIZE_SMALL},
    {"unaligned", INPUT_RANDOM, {2, 5, 16, 11, 8, 0}, UNALIGNED, SIZE_SMALL},
    {"no positions", INPUT_RANDOM, {2, 5, 7, 4, 1, 0}, NO_POSITIONS, SIZE_SMALL},
    {"no positions, vectors", INPUT_RANDOM, {3, 12, 64, 5, 1, 0}, NO_POSITIONS, SIZE_SMALL},
    {"gpt2", INPUT_RANDOM, {4, 1024, 768, 50304, 1024, 0}, 0, SIZE_LARGE},
};
OP_TEST(embed_backward, (.bound = embed_backward_bound, .model_cases = embed_backward_model_cases), A("dwte"),
        A("dwpe"), A("dout"), A("tokens"));
