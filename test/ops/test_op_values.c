/* CPU operations that have no float64 golden, against values computed here in double: norms, activations,
 * both paths of a matrix product, grouped-query attention, long sums, conversions, random numbers. */
#include "test/test.h"

#include "llmc/base/rng.h"
#include "test/ops/cpu_ctx.h"
#include "test/ops/op_harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* matmul_forward has one path for a few rows, and for those of different sequences, and one for many: both
 * against sums in double, with weights in fp32 and bf16. A row of a sequence has the bits that it has alone,
 * and nothing is written behind the last one. */
static void test_matmul_of_few_and_many_rows(void **state) {
    enum { N = 19, C = 75, OC = 5 };
    float inp[N * C], weight[OC * C], out[(N + 1) * OC], alone[OC];
    uint16_t halves[OC * C];
    for (int i = 0; i < N * C; i++) inp[i] = (float)(2.0 * rng_uniform(1, RNG_TEST, (uint64_t)i) - 1.0);
    for (int i = 0; i < OC * C; i++) {
        halves[i] = bf16_from_f32((float)(2.0 * rng_uniform(2, RNG_TEST, (uint64_t)i) - 1.0));
        weight[i] = f32_from_bf16(halves[i]);
    }
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (int rows = 1; rows <= N; rows++)
            for (int sequences = 0; sequences < 2; sequences++) {
                struct tensor w = tensor_make("weight", bf16 ? DTYPE_BF16 : DTYPE_F32,
                                              bf16 ? (void *)halves : (void *)weight, OC, C, 0, 0);
                struct tensor x = sequences ? tensor_make("inp", DTYPE_F32, inp, rows, 1, C, 0)
                                            : tensor_make("inp", DTYPE_F32, inp, rows, C, 0, 0);
                struct tensor y = tensor_make("out", DTYPE_F32, out, rows, OC, 0, 0);
                for (int i = 0; i < (N + 1) * OC; i++) out[i] = NAN;
                matmul_forward(ctx_of(state), &y, NULL, &x, &w, NULL, ACT_NONE);
                for (int i = 0; i < rows * OC; i++) {
                    double sum = 0.0;
                    for (int c = 0; c < C; c++)
                        sum += (double)inp[i / OC * C + c] * (double)weight[i % OC * C + c];
                    if (!(fabs((double)out[i] - sum) <= 1e-5)) fail_msg("%d rows: out[%d]", rows, i);
                }
                for (int i = rows * OC; i < (N + 1) * OC; i++) assert_true(isnan(out[i]));
                struct tensor last = tensor_make("inp", DTYPE_F32, inp + (rows - 1) * C, 1, C, 0, 0);
                y = tensor_make("out", DTYPE_F32, alone, 1, OC, 0, 0);
                matmul_forward(ctx_of(state), &y, NULL, &last, &w, NULL, ACT_NONE);
                if (sequences) assert_memory_equal(alone, out + (rows - 1) * OC, sizeof alone);
            }
}

/* Products that are cut into blocks in every direction, with an odd rest in each. Small integers are exact,
 * so that a term that is missing or counted twice shows. */
static float small_integer(int seed, int64_t i) {
    return (float)(rng_philox((uint64_t)seed, RNG_TEST, (uint64_t)i).v[0] % 9) - 4.0f;
}

/* An element of a product, whose terms are `stride` apart in each operand. */
static float exact_sum(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t count) {
    float sum = 0.0f;
    for (int64_t k = 0; k < count; k++) sum += a[k * a_stride] * b[k * b_stride];
    return sum;
}

static void check_blocks(struct ctx *ctx, int64_t N, int64_t C, int64_t OC) {
    float *inp = (float *)xmalloc((size_t)(N * C) * sizeof *inp),
          *dinp = (float *)xcalloc((size_t)(N * C), 4);
    float *weight = (float *)xmalloc((size_t)(OC * C) * sizeof *weight),
          *bias = (float *)xmalloc((size_t)OC * 4);
    float *dweight = (float *)xmalloc((size_t)(OC * C) * sizeof *dweight),
          *dbias = (float *)xcalloc((size_t)OC, 4);
    float *out = (float *)xcalloc((size_t)(N * OC), 4),
          *dout = (float *)xmalloc((size_t)(N * OC) * sizeof *dout);
    for (int64_t i = 0; i < N * C; i++) inp[i] = small_integer(1, i);
    for (int64_t i = 0; i < OC * C; i++) weight[i] = small_integer(2, i), dweight[i] = 1.0f;
    for (int64_t i = 0; i < N * OC; i++) dout[i] = small_integer(3, i);
    for (int64_t i = 0; i < OC; i++) bias[i] = small_integer(4, i);
    struct tensor x = tensor_make("inp", DTYPE_F32, inp, N, C, 0, 0),
                  b = tensor_make("b", DTYPE_F32, bias, OC, 0, 0, 0);
    struct tensor w = tensor_make("weight", DTYPE_F32, weight, OC, C, 0, 0);
    struct tensor y = tensor_make("out", DTYPE_F32, out, N, OC, 0, 0),
                  dx = tensor_make("dinp", DTYPE_F32, dinp, N, C, 0, 0);
    struct tensor dy = tensor_make("dout", DTYPE_F32, dout, N, OC, 0, 0);
    struct tensor dw = tensor_make("dweight", DTYPE_F32, dweight, OC, C, 0, 0);
    struct tensor db = tensor_make("dbias", DTYPE_F32, dbias, OC, 0, 0, 0);
    matmul_forward(ctx, &y, NULL, &x, &w, &b, ACT_NONE);
    matmul_backward(ctx, &dx, &dw, &db, &dy, &x, &w, NULL, true);
    for (int64_t i = 0; i < N * OC; i++)
        if (out[i] != bias[i % OC] + exact_sum(inp + i / OC * C, 1, weight + i % OC * C, 1, C))
            fail_msg("out[%d]", (int)i);
    for (int64_t i = 0; i < N * C; i++)
        if (dinp[i] != exact_sum(dout + i / C * OC, 1, weight + i % C, C, OC)) fail_msg("dinp[%d]", (int)i);
    for (int64_t i = 0; i < OC * C; i++)
        if (dweight[i] != 1.0f + exact_sum(dout + i / C, OC, inp + i % C, C, N))
            fail_msg("dweight[%d]", (int)i);
    free(inp), free(dinp), free(weight), free(bias), free(dweight), free(dbias), free(out), free(dout);
}

static void test_matmul_of_many_blocks(void **state) {
    check_blocks(ctx_of(state), 301, 271, 267);
    check_blocks(ctx_of(state), 9, 37, 2203); /* few rows: the columns are cut into strips */
}

/* --- weights in bf16 beside fp32 activations --- */

enum { INPUTS = 40, OUTPUTS = 70 };

struct mixed {
    float wide[OUTPUTS * INPUTS], tall[OUTPUTS];        /* weights and biases, rounded to bf16 */
    uint16_t wide16[OUTPUTS * INPUTS], tall16[OUTPUTS]; /* the same in bf16 */
    float x[8 * INPUTS], out[2][8 * OUTPUTS], more[2][8 * OUTPUTS], rstd[8];
};

static struct tensor table(struct mixed *m, bool bf16, int64_t rows, int64_t cols) {
    return tensor_make("weight", bf16 ? DTYPE_BF16 : DTYPE_F32, bf16 ? (void *)m->wide16 : m->wide, rows,
                       cols, 0, 0);
}
static struct tensor vector(struct mixed *m, bool bf16, int64_t n) {
    return tensor_make("bias", bf16 ? DTYPE_BF16 : DTYPE_F32, bf16 ? (void *)m->tall16 : m->tall, n, 0, 0, 0);
}

/* Runs every operation that takes such weights, with `rows` rows, into out and more. */
static void run_mixed(struct ctx *ctx, struct mixed *m, bool bf16, int64_t rows) {
    int32_t ids[8] = {3, 0, 69, 1, 2, 3, 68, 5};
    struct tensor x = tensor_make("x", DTYPE_F32, m->x, 1, rows, INPUTS, 0);
    struct tensor y = tensor_make("y", DTYPE_F32, m->out[bf16], 1, rows, OUTPUTS, 0);
    struct tensor w = table(m, bf16, OUTPUTS, INPUTS), b = vector(m, bf16, OUTPUTS);
    matmul_forward(ctx, &y, NULL, &x, &w, &b, ACT_GELU);
    struct tensor tokens = tensor_make("tokens", DTYPE_I32, ids, 1, rows, 0, 0);
    struct tensor z = tensor_make("z", DTYPE_F32, m->more[bf16], 1, rows, INPUTS, 0);
    struct tensor positions = table(m, bf16, 20, INPUTS);
    embed_forward(ctx, &z, &tokens, &w, &positions, 7);
    struct tensor r = tensor_make("r", DTYPE_F32, m->out[bf16] + 4 * OUTPUTS, 1, min_i64(rows, 4), INPUTS, 0);
    if (rows > 4) return; /* half of the space is out's */
    struct tensor rstd = tensor_make("rstd", DTYPE_F32, m->rstd, rows, 0, 0, 0);
    struct tensor scale = vector(m, bf16, INPUTS), shift = vector(m, bf16, INPUTS);
    norm_forward(ctx, &r, NULL, &rstd, &x, &scale, &shift, 1e-5f);
    struct tensor sum = tensor_make("sum", DTYPE_F32, m->more[bf16] + 4 * OUTPUTS, 1, rows, INPUTS, 0);
    residual_norm_forward(ctx, &sum, &r, NULL, &rstd, &x, &r, &scale, &shift, 1e-5f);
}

/* The results are those of fp32 weights that have the rounded values, but for the order of sums. */
static void test_weights_in_bf16(void **state) {
    struct mixed *m = (struct mixed *)xcalloc(1, sizeof *m);
    for (int i = 0; i < OUTPUTS * INPUTS; i++) {
        m->wide16[i] = bf16_from_f32((float)(2.0 * rng_uniform(1, RNG_TEST, (uint64_t)i) - 1.0));
        m->wide[i] = f32_from_bf16(m->wide16[i]);
    }
    for (int i = 0; i < OUTPUTS; i++) {
        m->tall16[i] = bf16_from_f32((float)rng_uniform(2, RNG_TEST, (uint64_t)i));
        m->tall[i] = f32_from_bf16(m->tall16[i]);
    }
    for (int i = 0; i < 8 * INPUTS; i++) m->x[i] = (float)rng_uniform(3, RNG_TEST, (uint64_t)i);
    static const int64_t rows[] = {1, 4, 8};
    for (size_t k = 0; k < ARRAY_LENGTH(rows); k++) {
        for (int bf16 = 0; bf16 < 2; bf16++) run_mixed(ctx_of(state), m, bf16, rows[k]);
        for (int i = 0; i < 8 * OUTPUTS; i++) {
            if (!(fabsf(m->out[0][i] - m->out[1][i]) <= 1e-5f * (1.0f + fabsf(m->out[0][i]))))
                fail_msg("%d rows: out[%d] is %g with bf16 weights, %g without", (int)rows[k], i,
                         (double)m->out[1][i], (double)m->out[0][i]);
            assert_true(m->more[0][i] == m->more[1][i]); /* no sums */
        }
    }
    free(m);
}

/* LayerNorm and RMSNorm on every case of norm_forward, by their formulas. */
static void test_norm_by_definition(void **state) {
    const struct op_test *op = op_tests[OP_norm_forward];
    for (size_t i = 0; i < op->case_count; i++) {
        struct op_instance x;
        if (op->cases[i].size == SIZE_LARGE) continue;
        op_instance_create(&x, op, &op->cases[i], DTYPE_F32, ctx_of(state));
        struct operand *out = op_find(&x, "out"), *mean = op_find(&x, "mean");
        struct operand *weight = op_find(&x, "weight"), *bias = op_find(&x, "bias");
        int64_t C = tensor_cols(&out->reference);
        double eps = strstr(x.c->name, "eps") || strcmp(x.c->name, "rms, bias") == 0 ? 0.5 : 1e-5;
        for (int64_t n = 0; n < tensor_rows(&out->reference); n++) {
            const float *row = op_initial(&x, "inp") + n * C;
            double m = 0.0, v = 0.0;
            for (int64_t c = 0; mean && c < C; c++) m += (double)row[c] / (double)C;
            for (int64_t c = 0; c < C; c++) v += ((double)row[c] - m) * ((double)row[c] - m) / (double)C;
            for (int64_t c = 0; c < C; c++) {
                double want =
                    ((double)row[c] - m) / sqrt(v + eps) * (weight ? (double)weight->initial[c] : 1.0) +
                    (bias ? (double)bias->initial[c] : 0.0);
                if (!(fabs((double)out->expected[n * C + c] - want) <= out->allowed[n * C + c]))
                    fail_msg("%s: out[%d,%d] is %.9g, not %.9g", op_case_text(op, x.c, DTYPE_F32, NULL),
                             (int)n, (int)c, (double)out->expected[n * C + c], want);
            }
        }
        op_instance_free(&x);
    }
}

/* Each activation, alone and in a gated unit, by its formula. */
static double activation_by_formula(enum activation act, double x) {
    double cubic = sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
    return act == ACT_SILU    ? x / (1.0 + exp(-x))
           : act == ACT_RELU2 ? fmax(x, 0.0) * fmax(x, 0.0)
                              : 0.5 * x * (1.0 + tanh(cubic));
}

static void test_activations_by_definition(void **state) {
    static const enum activation acts[] = {ACT_GELU, ACT_SILU, ACT_RELU2};
    enum { F = 4001 };
    float *data = (float *)xmalloc(5 * F * sizeof *data);
    struct tensor inp = tensor_make("inp", DTYPE_F32, data, 1, 2 * F, 0, 0),
                  gate = tensor_make("gate", DTYPE_F32, data, 1, F, 0, 0),
                  act = tensor_make("act", DTYPE_F32, data + 3 * F, 1, F, 0, 0),
                  glu = tensor_make("glu", DTYPE_F32, data + 4 * F, 1, F, 0, 0);
    for (int i = 0; i < F; i++) {
        data[i] = (float)(i - F / 2) / 64.0f; /* -31.25 .. 31.25 */
        data[F + i] = (float)(i % 7) - 3.0f;
    }
    for (size_t k = 0; k < ARRAY_LENGTH(acts); k++) {
        act_forward(ctx_of(state), &act, &gate, acts[k]);
        glu_forward(ctx_of(state), &glu, &inp, acts[k]);
        for (int i = 0; i < F; i++) {
            double want = activation_by_formula(acts[k], (double)data[i]), up = (double)data[F + i];
            double allow = 4.0 * UNIT_F32 * (fabs(want) + fabs((double)data[i]) * (acts[k] == ACT_GELU));
            if (!(fabs((double)f32(&act)[i] - want) <= allow) ||
                !(fabs((double)f32(&glu)[i] - want * up) <= (allow + UNIT_F32 * fabs(want)) * fabs(up)))
                fail_msg("activation %d of %g is %.9g, times %g %.9g, and should be %.9g", (int)acts[k],
                         (double)data[i], (double)f32(&act)[i], up, (double)f32(&glu)[i], want);
        }
    }
    free(data);
}

/* A NaN must reach the loss, where it is noticed: no bound on an activation's argument makes a number of
 * it. */
static void test_activations_keep_nan(void **state) {
    static const enum activation acts[] = {ACT_GELU, ACT_SILU};
    enum { N = 37 };
    float x[N], ones[N], y[N], dx[N];
    struct tensor inp = tensor_make("inp", DTYPE_F32, x, 1, N, 0, 0);
    struct tensor out = tensor_make("out", DTYPE_F32, y, 1, N, 0, 0);
    struct tensor dout = tensor_make("dout", DTYPE_F32, ones, 1, N, 0, 0);
    struct tensor dinp = tensor_make("dinp", DTYPE_F32, dx, 1, N, 0, 0);
    for (int i = 0; i < N; i++) x[i] = i % 3 ? (float)i : NAN, ones[i] = 1.0f;
    for (size_t k = 0; k < ARRAY_LENGTH(acts); k++) {
        act_forward(ctx_of(state), &out, &inp, acts[k]);
        act_backward(ctx_of(state), &dinp, &dout, &inp, acts[k]);
        for (int i = 0; i < N; i++) {
            assert_int_equal(isnan(y[i]) != 0, i % 3 == 0);
            assert_int_equal(isnan(dx[i]) != 0, i % 3 == 0);
        }
    }
}

/* Query heads that share keys and values compute the bits of heads with copies of these. The gradient of
 * what they share is the sum of the gradients of the copies. */
static void test_grouped_attention(void **state) {
    enum { B = 2, T = 21, NH = 6, NKV = 2, HS = 5, WIDTH = (NH + 2 * NKV) * HS, WIDE = 3 * NH * HS };
    static float qkv[B * T * WIDTH], wide[B * T * WIDE], dqkv[2][B * T * WIDE], out[2][B * T * NH * HS],
        dout[B * T * NH * HS], lse[2][B * NH * T];
    for (int i = 0; i < B * T * WIDTH; i++)
        qkv[i] = (float)(4.0 * rng_uniform(6, RNG_TEST, (uint64_t)i) - 2.0);
    for (int i = 0; i < B * T * NH * HS; i++)
        dout[i] = (float)(4.0 * rng_uniform(7, RNG_TEST, (uint64_t)i) - 2.0);
    for (int row = 0; row < B * T; row++)
        for (int h = 0; h < 3 * NH; h++) { /* queries, keys, values */
            int from = h < NH ? h : NH + (h / NH - 1) * NKV + h % NH / (NH / NKV);
            memcpy(wide + row * WIDE + h * HS, qkv + row * WIDTH + from * HS, HS * sizeof *qkv);
        }
    struct tensor d = tensor_make("dout", DTYPE_F32, dout, B, T, NH * HS, 0);
    for (int k = 0; k < 2; k++) {
        int heads = k ? NH : NKV, width = k ? WIDE : WIDTH;
        struct tensor q = tensor_make("qkv", DTYPE_F32, k ? wide : qkv, B, T, width, 0);
        struct tensor o = tensor_make("out", DTYPE_F32, out[k], B, T, NH * HS, 0);
        struct tensor l = tensor_make("lse", DTYPE_F32, lse[k], B, NH, T, 0);
        struct tensor dq = tensor_make("dqkv", DTYPE_F32, dqkv[k], B, T, width, 0);
        struct attn_rule rule = {.heads = NH, .kv_heads = heads};
        attn_forward(ctx_of(state), &o, &l, &q, NULL, &rule, 0);
        attn_backward(ctx_of(state), &dq, &d, &o, &l, &q, NULL, &rule);
    }
    assert_memory_equal(out[0], out[1], sizeof out[0]);
    assert_memory_equal(lse[0], lse[1], sizeof lse[0]);
    for (int row = 0; row < B * T; row++) {
        const float *shared = dqkv[0] + row * WIDTH, *copies = dqkv[1] + row * WIDE;
        assert_memory_equal(shared, copies, NH * HS * sizeof *shared);
        for (int h = 0; h < 2 * NKV; h++)
            for (int c = 0; c < HS; c++) {
                double sum = 0.0, size = 0.0;
                for (int i = 0; i < NH / NKV; i++) {
                    double copy = (double)copies[(NH + h * (NH / NKV) + i) * HS + c];
                    sum += copy;
                    size += fabs(copy);
                }
                if (!(fabs((double)shared[(NH + h) * HS + c] - sum) <= 1e-5 * (size + 1.0)))
                    fail_msg("row %d, head %d, column %d: %g, not %g", row, h, c,
                             (double)shared[(NH + h) * HS + c], sum);
            }
    }
}

/* Attention by the words of attn_rule.h: every score under every mask, with and without a cap, dropout and
 * documents, and from every first row. */
enum { RULE_T = 37, RULE_NH = 2, RULE_HS = 5, RULE_PREFIX = 21, RULE_WINDOW = 18 };

static bool sees(enum attn_mask mask, int t, int s) {
    switch (mask) {
    case ATTN_ANTI_CAUSAL:
        return s >= t;
    case ATTN_FULL:
        return true;
    case ATTN_WINDOW:
        return s <= t && s > t - RULE_WINDOW;
    case ATTN_PREFIX:
        return s <= t || (s < RULE_PREFIX && t < RULE_PREFIX);
    default:
        return s <= t;
    }
}

/* The documents of the sequence, in letters. */
static const char documents[RULE_T + 1] = "aaaaaaaaaaaaaaaaaaaaabccddddddddddddd";

static double score_by_words(const struct attn_rule *r, const float *q, const float *k) {
    double qk = 0.0, qq = 1e-6, kk = 1e-6, distance = 0.0, root = sqrt((double)RULE_HS), score;
    for (int c = 0; c < RULE_HS; c++) {
        double a = (double)q[c], b = (double)k[c];
        qk += a * b, qq += a * a, kk += b * b, distance += (a - b) * (a - b);
    }
    score = r->score == ATTN_DOT      ? qk
            : r->score == ATTN_COSINE ? root * qk / sqrt(qq * kk)
            : r->score == ATTN_L2     ? -distance / root
            : r->score == ATTN_DOT2   ? qk / root * qk / root
                                      : qk / root;
    return r->softcap > 0.0f ? (double)r->softcap * tanh(score / (double)r->softcap) : score;
}

static void check_rule(struct ctx *ctx, const struct attn_rule *r, const float *data, int t0, bool drops,
                       bool divided) {
    enum { C = RULE_NH * RULE_HS, WIDTH = 3 * C };
    float out_data[RULE_T * C], lse_data[RULE_NH * RULE_T];
    int32_t lengths = RULE_PREFIX;
    struct tensor qkv = tensor_make("qkv", DTYPE_F32, (void *)(uintptr_t)data, 1, RULE_T, WIDTH, 0);
    struct tensor out = tensor_make("out", DTYPE_F32, out_data, 1, RULE_T, C, 0);
    struct tensor lse = tensor_make("lse", DTYPE_F32, lse_data, 1, RULE_NH, RULE_T, 0);
    struct tensor prefix = tensor_make("prefix", DTYPE_I32, &lengths, 1, 0, 0, 0);
    int32_t sample = 12;
    struct tensor samples = tensor_make("samples", DTYPE_I32, &sample, 1, 0, 0, 0);
    struct dropout_rule d = {0.4f, 3, 2, &samples};
    struct dropout_key key = dropout_key_of(0.4f, 3, 2, sample);
    struct attn_rule rule = *r;
    if (drops) rule.dropout = &d;
    int32_t begins[RULE_T];
    for (int t = 0; t < RULE_T; t++) begins[t] = (int32_t)(strchr(documents, documents[t]) - documents);
    struct tensor first = tensor_make("first", DTYPE_I32, begins, 1, RULE_T, 0, 0);
    if (divided) rule.first = &first;
    attn_forward(ctx, &out, &lse, &qkv, r->mask == ATTN_PREFIX ? &prefix : NULL, &rule, t0);
    for (int h = 0; h < RULE_NH; h++)
        for (int t = t0; t < RULE_T; t++) {
            double sum = 0.0, want[RULE_HS] = {0};
            for (int s = 0; s < RULE_T; s++) {
                const float *row = data + s * WIDTH + h * RULE_HS;
                if (!sees(r->mask, t, s) || (divided && documents[t] != documents[s])) continue;
                double e = exp(score_by_words(r, data + t * WIDTH + h * RULE_HS, row + C));
                sum += e;
                if (drops) e *= (double)dropout_factor(key, (h * RULE_T + t) * RULE_T + s);
                for (int c = 0; c < RULE_HS; c++) want[c] += e * (double)row[2 * C + c];
            }
            if (!(fabs((double)lse_data[h * RULE_T + t] - log(sum)) <= 1e-5 * (1.0 + fabs(log(sum)))))
                fail_msg("score %d, mask %d, cap %g, from %d: lse[%d,%d] is %g, not %g", (int)r->score,
                         (int)r->mask, (double)r->softcap, t0, h, t, (double)lse_data[h * RULE_T + t],
                         log(sum));
            for (int c = 0; c < RULE_HS; c++)
                if (!(fabs((double)out_data[t * C + h * RULE_HS + c] - want[c] / sum) <= 1e-4))
                    fail_msg("score %d, mask %d, cap %g, from %d: out[%d,%d,%d] is %g, not %g", (int)r->score,
                             (int)r->mask, (double)r->softcap, t0, t, h, c,
                             (double)out_data[t * C + h * RULE_HS + c], want[c] / sum);
        }
}

static void test_attention_by_every_rule(void **state) {
    static float data[RULE_T * 3 * RULE_NH * RULE_HS];
    for (size_t i = 0; i < ARRAY_LENGTH(data); i++)
        data[i] = (float)(4.0 * rng_uniform(8, RNG_TEST, (uint64_t)i) - 2.0);
    for (int c = 0; c < RULE_HS; c++)
        data[c] = data[RULE_NH * RULE_HS + c] = 0.0f; /* a query and a key of zeros */
    for (int score = 0; score < ATTN_SCORES; score++)
        for (int mask = 0; mask < ATTN_MASKS; mask++)
            for (int cap = 0; cap < 2; cap++)
                for (int t0 = 0; t0 < RULE_T; t0 += t0 ? 7 : 1) {
                    struct attn_rule rule = {RULE_NH,
                                             RULE_NH,
                                             (enum attn_score)score,
                                             (enum attn_mask)mask,
                                             mask == ATTN_WINDOW ? RULE_WINDOW : 0,
                                             cap ? 3.0f : 0.0f,
                                             NULL,
                                             NULL};
                    for (int drops = 0; drops < 2; drops++)
                        check_rule(ctx_of(state), &rule, data, t0, drops, false);
                    if (mask == ATTN_CAUSAL || mask == ATTN_WINDOW)
                        check_rule(ctx_of(state), &rule, data, t0, t0 % 2, true);
                }
}

/* The share of zeros, the expectation, and what the choice depends on: not on how a batch is divided. */
static void test_dropout(void **state) {
    enum { B = 4, N = 50000 };
    static float x[B * N], whole[B * N], part[B * N];
    int32_t number[B] = {7, 0, 123456, 8};
    const float p = 0.2f;
    for (int64_t i = 0; i < B * N; i++) x[i] = 1.0f + (float)(i % 3);
    struct tensor inp = tensor_make("inp", DTYPE_F32, x, B, N, 0, 0),
                  out = tensor_make("out", DTYPE_F32, whole, B, N, 0, 0),
                  samples = tensor_make("samples", DTYPE_I32, number, B, 0, 0, 0);
    struct dropout_rule d = {p, 5, 3, &samples};
    dropout(ctx_of(state), &out, &inp, &d);
    double zeros = 0.0, sum = 0.0, want = 0.0;
    for (int64_t i = 0; i < B * N; i++) {
        if (whole[i] != 0.0f && whole[i] != x[i] * (1.0f / (1.0f - p)))
            fail_msg("number %d is %g", (int)i, (double)whole[i]);
        zeros += whole[i] == 0.0f;
        sum += (double)whole[i];
        want += (double)x[i];
    }
    /* four standard errors */
    assert_true(fabs(zeros / (B * N) - 0.2) <= 4.0 * sqrt(0.16 / (B * N)));
    assert_true(fabs(sum / want - 1.0) <= 4.0 * sqrt(0.25 * 14.0 / 12.0 / (B * N)));
    for (int b = 0; b < B; b++) { /* a sequence alone */
        inp = tensor_make("inp", DTYPE_F32, x + b * N, 1, N, 0, 0);
        out = tensor_make("out", DTYPE_F32, part + b * N, 1, N, 0, 0);
        samples = tensor_make("samples", DTYPE_I32, &number[b], 1, 0, 0, 0);
        dropout(ctx_of(state), &out, &inp, &d);
    }
    assert_memory_equal(part, whole, sizeof part);
    struct dropout_rule others[] = {{p, 6, 3, &samples}, {p, 5, 4, &samples}, {p, 5, 3, &samples}};
    for (int k = 0; k < 3; k++) { /* another seed, place, sample: the same zeros by chance only */
        int same = 0;
        if (k == 2) number[B - 1] = 9;
        dropout(ctx_of(state), &out, &inp, &others[k]);
        for (int i = 0; i < N; i++) same += part[(B - 1) * N + i] == 0.0f && whole[(B - 1) * N + i] == 0.0f;
        assert_true(fabs((double)same / N - 0.04) <= 4.0 * sqrt(0.04 * 0.96 / N));
    }
}

/* Long sums, in fp32, would drift or lose small terms; these are known in double. */
static void test_long_sums(void **state) {
    enum { N = 100003 };
    struct tensor x = tensor_make("inp", DTYPE_F32, xmalloc(N * sizeof(float)), N, 0, 0, 0);
    float result = 2.0f, half = 0.5f, lost = 0.0f;
    int32_t target = 0;
    double tenth = (double)0.1f, exponentials = 0.0;
    struct tensor out = tensor_make("out", DTYPE_F32, &result, 1, 0, 0, 0);
    struct tensor scale = tensor_make("scale", DTYPE_F32, &half, 1, 0, 0, 0);
    for (int i = 0; i < N; i++) f32(&x)[i] = 0.1f;
    sum(ctx_of(state), &out, &x, &scale, true);
    assert_true(fabs((double)result - (2.0 + 0.5 * N * tenth)) <= 1e-6 * (double)result);
    sumsq(ctx_of(state), &out, &x);
    assert_true(fabs((double)result - N * tenth * tenth) <= 1e-7 * (double)result);

    for (int i = 0; i < N; i++) {
        f32(&x)[i] = (float)(8.0 * rng_uniform(3, RNG_TEST, (uint64_t)i));
        exponentials += exp((double)f32(&x)[i]);
    }
    double want = log(exponentials) - (double)f32(&x)[0];
    struct tensor logits = tensor_make("logits", DTYPE_F32, x.data, 1, N, 0, 0);
    struct tensor losses = tensor_make("losses", DTYPE_F32, &lost, 1, 0, 0, 0);
    struct tensor targets = tensor_make("targets", DTYPE_I32, &target, 1, 0, 0, 0);
    loss_forward(ctx_of(state), &losses, &logits, &targets, NULL, N, NULL);
    print_message("# loss of %d logits is off by %.2g\n", N, (double)lost - want);
    assert_true(fabs((double)lost - want) <= 1e-6);
    free(x.data);
}

static void test_top1(void **state) {
    float row[][4] = {{1, 3, 2, 9},   {1, 3, 2, 9},   {3, 3, 2, 9}, {3, 3, 2, 9},
                      {NAN, 3, 3, 9}, {1, NAN, 0, 9}, {1, 3, 2, 9}},
          hit[7];
    int32_t target[] = {1, 2, 0, 1, 1, 1, -1};
    static const float expected[] = {1, 0, 1, 0, 1, 0, 0};
    struct tensor logits = tensor_make("logits", DTYPE_F32, row, 7, 4, 0, 0);
    struct tensor targets = tensor_make("targets", DTYPE_I32, target, 7, 0, 0, 0);
    struct tensor hits = tensor_make("hits", DTYPE_F32, hit, 7, 0, 0, 0);
    top1(ctx_of(state), &hits, &logits, &targets, 3); /* the last column is padding */
    assert_memory_equal(hit, expected, sizeof hit);
}

/* Every element, in both directions, also those after the last whole vector. */
static void test_cast(void **state) {
    enum { N = 37 };
    float wide[N], back[N];
    uint16_t narrow[N];
    struct tensor f = tensor_make("inp", DTYPE_F32, wide, N, 0, 0, 0);
    struct tensor b = tensor_make("out", DTYPE_BF16, narrow, N, 0, 0, 0);
    struct tensor g = tensor_make("back", DTYPE_F32, back, N, 0, 0, 0);
    for (int i = 0; i < N; i++) wide[i] = (float)i / 7.0f, narrow[i] = 0xffff, back[i] = NAN;
    cast(ctx_of(state), &b, &f);
    cast(ctx_of(state), &g, &b);
    for (int i = 0; i < N; i++) {
        assert_int_equal(narrow[i], bf16_from_f32(wide[i]));
        assert_true(back[i] == f32_from_bf16(narrow[i]));
    }
}

static void test_normal_numbers(void **state) {
    enum { N = 200000 };
    struct tensor t = tensor_make("out", DTYPE_F32, xmalloc(N * sizeof(float)), N, 0, 0, 0);
    randn(ctx_of(state), &t, 2.0f, 3.0f, 42, RNG_TEST);
    double moment[4] = {0};
    for (int64_t i = 0; i < N; i++) {
        double z = ((double)f32(&t)[i] - 2.0) / 3.0;
        for (int k = 0; k < 4; k++) moment[k] += pow(z, k + 1) / N;
    }
    /* four standard errors of each moment of N(0,1): sqrt(1, 2, 15, 96)/sqrt(N) */
    static const double expected[] = {0, 1, 0, 3}, variance[] = {1, 2, 15, 96};
    for (int k = 0; k < 4; k++)
        if (!(fabs(moment[k] - expected[k]) <= 4.0 * sqrt(variance[k] / N)))
            fail_msg("moment %d of %d normal numbers is %g", k + 1, N, moment[k]);
    /* Box-Muller on two numbers of Philox block i/4 */
    for (int64_t i = 0; i < 1000; i++) {
        struct rng4 bits = rng_philox(42, RNG_TEST, (uint64_t)i / 4);
        double u = (double)rng_unit_float(bits.v[i % 4 / 2 * 2]),
               v = (double)rng_unit_float(bits.v[i % 4 / 2 * 2 + 1]);
        double radius = sqrt(-2.0 * log(1.0 - u)), angle = 6.283185307179586 * v;
        double want = 2.0 + 3.0 * radius * (i % 2 ? sin(angle) : cos(angle));
        if (!(fabs((double)f32(&t)[i] - want) <= 2e-5)) fail_msg("number %d is not %g", (int)i, want);
    }
    /* element i depends on i alone */
    struct tensor part = tensor_make("out", DTYPE_F32, xmalloc(1001 * sizeof(float)), 1001, 0, 0, 0);
    randn(ctx_of(state), &part, 2.0f, 3.0f, 42, RNG_TEST);
    assert_memory_equal(part.data, t.data, 1001 * sizeof(float));
    randn(ctx_of(state), &part, 2.0f, 3.0f, 43, RNG_TEST);
    assert_memory_not_equal(part.data, t.data, 1001 * sizeof(float));
    free(part.data);
    free(t.data);
}

int main(int argc, char **argv) {
#define CPU_TEST(f) cmocka_unit_test_setup_teardown(f, open_cpu, close_cpu)
    const struct CMUnitTest tests[] = {CPU_TEST(test_norm_by_definition),
                                       CPU_TEST(test_activations_by_definition),
                                       CPU_TEST(test_activations_keep_nan),
                                       CPU_TEST(test_grouped_attention),
                                       CPU_TEST(test_attention_by_every_rule),
                                       CPU_TEST(test_dropout),
                                       CPU_TEST(test_matmul_of_few_and_many_rows),
                                       CPU_TEST(test_matmul_of_many_blocks),
                                       CPU_TEST(test_weights_in_bf16),
                                       CPU_TEST(test_long_sums),
                                       CPU_TEST(test_top1),
                                       CPU_TEST(test_cast),
                                       CPU_TEST(test_normal_numbers)};
    return test_main(argc, argv, tests, NULL, NULL);
}
