/* Adapters against a model whose weights are W + scale * B A: the same loss, and gradients that follow from
 * those of its weights, worked out here in double precision. What is frozen stays, and takes no memory. */
#include "test/test.h"
#include "test/model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/model/optimizer.h"
#include "llmc/model/generate.h"

enum { B = 2, T = 7, TOKENS = B * T, V = 40, RANK = 3 };
static const float SCALE = 1.7f;

static struct gpt_config kind_of(bool llama) {
    struct gpt_config c = {
        .name = "kind", .context = T, .vocab_size = V, .layers = 2, .heads = 4, .channels = 24};
    if (llama) {
        c.positions = POSITIONS_ROPE;
        c.norm = NORM_RMS;
        c.mlp = MLP_SWIGLU;
        c.bias = SWITCH_OFF;
        c.tied = SWITCH_OFF;
        c.kv_heads = 2;
        c.qk_norm = SWITCH_ON;
    }
    gpt_config_complete(&c);
    return c;
}

static unsigned targets_of(const struct gpt_config *c, const char *words) {
    unsigned targets;
    struct error err;
    if (!lora_targets_parse(&targets, words, c, &err)) fail_msg("%s", err.message);
    return targets;
}

static void open_model(struct model *m, const struct gpt_config *c, struct gpt_options options) {
    options.B = B;
    options.T = T;
    options.train = true;
    options.init_std = 0.2f;
    model_open(m, c, options, 7);
    struct tensor vectors =
        gpt_param_range(&m->gpt, m->gpt.layout.matrices, m->gpt.layout.total - m->gpt.layout.matrices);
    for (int64_t i = 0; i < tensor_count(&vectors); i++)
        f32(&vectors)[i] += 0.3f * (float)(rng_uniform(9, RNG_TEST, (uint64_t)i) - 0.5);
}

/* With random A and B. */
static void open_adapted(struct model *m, const struct gpt_config *c, const char *words,
                         struct gpt_options options) {
    options.lora = (struct lora_options){RANK, SCALE, targets_of(c, words)};
    open_model(m, c, options);
    struct lora *l = &m->gpt.lora;
    for (int64_t layer = 0; layer < c->layers; layer++)
        for (int i = 0; i < l->layout.parts; i++) {
            const struct lora_part *p = &l->layout.part[i];
            struct tensor pair[] = {lora_a(&m->gpt, &l->params, p, layer),
                                    lora_b(&m->gpt, &l->params, p, layer)};
            for (int k = 0; k < 2; k++)
                for (int64_t j = 0; j < tensor_count(&pair[k]); j++)
                    f32(&pair[k])[j] = 0.3f * (float)(rng_uniform((uint64_t)(10 * layer + 100 * i + k),
                                                                  RNG_TEST, (uint64_t)j) -
                                                      0.5);
        }
}

static void step(struct model *m, int batches) {
    gpt_set_loss_scale(&m->gpt, 1.0f / (float)(batches * TOKENS));
    for (int k = 0; k < batches; k++) {
        int32_t tokens[TOKENS], targets[TOKENS];
        for (int i = 0; i < TOKENS; i++) {
            tokens[i] = (int32_t)(rng_uniform(1, RNG_TEST, (uint64_t)(k * TOKENS + i)) * V);
            targets[i] = (int32_t)(rng_uniform(2, RNG_TEST, (uint64_t)(k * TOKENS + i)) * V);
        }
        gpt_set_batch(&m->gpt, tokens, targets);
        gpt_forward_backward(&m->gpt, k == 0);
    }
}

static float loss_of(const struct model *m) { return f32(&m->gpt.numbers)[STEP_LOSS]; }

static void near(double is, double expected, double size, const char *what) {
    if (!(fabs(is - expected) <= 2e-5 * size + 1e-7)) fail_msg("%s: %.9g, expected %.9g", what, is, expected);
}

/* The rows of W (or dW) that a part adapts, as they lie in the buffer of a whole model. */
static float *part_of(const struct gpt *g, const struct tensor *buffer, const struct lora_part *p,
                      int64_t layer) {
    return f32(buffer) + g->layout.offset[p->id] + layer * g->layout.stride[p->id] + p->first * p->cols;
}

/* `whole` becomes the model that `m` is with its adapters. */
static void merge(struct model *whole, const struct model *m) {
    const struct lora *l = &m->gpt.lora;
    memcpy(whole->gpt.params.data, m->gpt.params.data, (size_t)tensor_bytes(&m->gpt.params));
    for (int64_t layer = 0; layer < m->gpt.config.layers; layer++)
        for (int i = 0; i < l->layout.parts; i++) {
            const struct lora_part *p = &l->layout.part[i];
            struct tensor a = lora_a(&m->gpt, &l->params, p, layer),
                          b = lora_b(&m->gpt, &l->params, p, layer);
            float *w = part_of(&whole->gpt, &whole->gpt.params, p, layer);
            for (int64_t r = 0; r < p->rows; r++)
                for (int64_t c = 0; c < p->cols; c++) {
                    double sum = 0.0;
                    for (int k = 0; k < RANK; k++)
                        sum += (double)f32(&b)[r * RANK + k] * (double)f32(&a)[c * RANK + k];
                    w[r * p->cols + c] = (float)((double)w[r * p->cols + c] + (double)SCALE * sum);
                }
        }
}

static void check_part(const struct model *m, const struct model *whole, const struct lora_part *p,
                       int64_t layer) {
    const struct gpt *g = &m->gpt;
    const float *dw = part_of(&whole->gpt, &whole->gpt.grads, p, layer);
    struct tensor a = lora_a(g, &g->lora.params, p, layer), b = lora_b(g, &g->lora.params, p, layer);
    struct tensor da = lora_a(g, &g->lora.grads, p, layer), db = lora_b(g, &g->lora.grads, p, layer);
    for (int k = 0; k < RANK; k++) {
        for (int64_t r = 0; r < p->rows; r++) {
            double sum = 0.0, size = 0.0;
            for (int64_t c = 0; c < p->cols; c++) {
                double term = (double)SCALE * (double)dw[r * p->cols + c] * (double)f32(&a)[c * RANK + k];
                sum += term;
                size += fabs(term);
            }
            near((double)f32(&db)[r * RANK + k], sum, 20 * size, lora_word(p->target));
        }
        for (int64_t c = 0; c < p->cols; c++) {
            double sum = 0.0, size = 0.0;
            for (int64_t r = 0; r < p->rows; r++) {
                double term = (double)SCALE * (double)dw[r * p->cols + c] * (double)f32(&b)[r * RANK + k];
                sum += term;
                size += fabs(term);
            }
            near((double)f32(&da)[c * RANK + k], sum, 20 * size, lora_word(p->target));
        }
    }
}

static void check_kind(const struct gpt_config *c, const char *words, struct gpt_options options) {
    struct model m, whole;
    open_adapted(&m, c, words, options);
    open_model(&whole, c, (struct gpt_options){.recompute = RECOMPUTE_NONE});
    merge(&whole, &m);
    step(&m, 1); /* what a step leaves must not reach the next */
    for (int batches = 1; batches <= 2; batches++) {
        step(&m, batches);
        step(&whole, batches);
        near((double)loss_of(&m), (double)loss_of(&whole), 1.0, words);
        for (int64_t layer = 0; layer < c->layers; layer++)
            for (int i = 0; i < m.gpt.lora.layout.parts; i++)
                check_part(&m, &whole, &m.gpt.lora.layout.part[i], layer);
    }
    model_close(&m);
    model_close(&whole);
}

static void loss_and_gradients_are_those_of_the_merged_model(void **state) {
    static const char *const words[2][4] = {{"all", "qkv", "attn,down", "up"},
                                            {"all", "qkv,gate", "q,v", "k,up,down"}};
    for (int llama = 0; llama < 2; llama++)
        for (size_t i = 0; i < ARRAY_LENGTH(words[0]); i++) {
            struct gpt_config c = kind_of(llama);
            check_kind(&c, words[llama][i], (struct gpt_options){.recompute = RECOMPUTE_NONE});
            check_kind(&c, words[llama][i],
                       (struct gpt_options){.recompute = RECOMPUTE_BLOCK, .head_chunks = 3});
        }
}

/* A GPT-2 has one layer for queries, keys and values, a Llama three. */
static void targets_are_the_layers_of_the_model(void **state) {
    static const struct {
        bool llama;
        const char *words, *refused;
        int parts;
    } cases[] = {
        {false, "all", NULL, 4},       {true, "all", NULL, 7},          {true, "qkv", NULL, 3},
        {false, "qkv,down", NULL, 2},  {false, "q", "\"q\"", 0},        {false, "gate", "\"gate\"", 0},
        {true, "up,,down", "\"\"", 0}, {true, "qkv,mlp", "\"mlp\"", 0},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct gpt_config c = kind_of(cases[i].llama);
        unsigned targets;
        struct error err;
        bool ok = lora_targets_parse(&targets, cases[i].words, &c, &err);
        assert_int_equal(ok, !cases[i].refused);
        if (!ok) {
            assert_non_null(strstr(err.message, cases[i].refused));
            assert_non_null(strstr(err.message, cases[i].llama ? "all, q, k, v, attn, gate, up, down"
                                                               : "all, qkv, attn, up, down"));
            continue;
        }
        struct lora_options options = {RANK, 1.0f, targets};
        struct lora_layout l;
        lora_make_layout(&l, &c, &options);
        assert_int_equal(l.parts, cases[i].parts);
    }
}

/* Training starts from the model itself, and changes the adapters alone. */
static void a_step_changes_the_adapters_alone(void **state) {
    for (int llama = 0; llama < 2; llama++) {
        struct gpt_config c = kind_of(llama);
        struct model m, whole;
        struct optimizer opt;
        struct gpt_options options = {.lora = {RANK, SCALE, targets_of(&c, "all")}};
        open_model(&m, &c, options);
        open_model(&whole, &c, (struct gpt_options){.recompute = RECOMPUTE_NONE});
        lora_init_weights(&m.gpt, 3);
        optimizer_create(&opt, &m.gpt, (struct optimizer_options){.kind = OPTIMIZER_ADAMW});
        step(&m, 1);
        step(&whole, 1);
        assert_true(loss_of(&m) == loss_of(&whole));
        struct update_args args = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .step = 1};
        float first = loss_of(&m);
        for (int i = 0; i < 20; i++, args.step++) {
            step(&m, 1);
            optimizer_step(&opt, &m.gpt, &args);
        }
        assert_memory_equal(m.gpt.params.data, whole.gpt.params.data, (size_t)tensor_bytes(&m.gpt.params));
        if (!(loss_of(&m) < 0.8f * first)) fail_msg("loss %g after %g", (double)loss_of(&m), (double)first);
        model_close(&m);
        model_close(&whole);
    }
}

/* --- Muon, in double precision --- */

/* u (n,RANK), n >= RANK, becomes its update. */
static void make_orthogonal(double *u, int64_t n) {
    double norm = 0.0;
    for (int64_t i = 0; i < n * RANK; i++) norm += u[i] * u[i];
    for (int64_t i = 0; i < n * RANK; i++) u[i] /= sqrt(norm);
    for (int pass = 0; pass < 5; pass++) {
        double gram[RANK][RANK] = {{0}}, factor[RANK][RANK];
        for (int64_t i = 0; i < n; i++)
            for (int j = 0; j < RANK; j++)
                for (int k = 0; k < RANK; k++) gram[j][k] += u[i * RANK + j] * u[i * RANK + k];
        for (int j = 0; j < RANK; j++)
            for (int k = 0; k < RANK; k++) {
                double square = 0.0;
                for (int l = 0; l < RANK; l++) square += gram[j][l] * gram[l][k];
                factor[j][k] = (j == k ? 3.4445 : 0.0) - 4.7750 * gram[j][k] + 2.0315 * square;
            }
        for (int64_t i = 0; i < n; i++) {
            double row[RANK] = {0};
            for (int j = 0; j < RANK; j++)
                for (int k = 0; k < RANK; k++) row[k] += u[i * RANK + j] * factor[j][k];
            memcpy(&u[i * RANK], row, sizeof row);
        }
    }
    for (int64_t i = 0; i < n * RANK; i++) u[i] *= 0.2 * sqrt((double)n);
}

enum { MOST = 4096 }; /* elements of a matrix and its moment */

/* What the first two steps make of A or B, given the gradients of both; none is clipped. */
static void two_steps(double *w, const float *const grads[2], int64_t n, const struct update_args *args) {
    double m[MOST] = {0}, u[MOST], mu = (double)args->momentum;
    for (int t = 0; t < 2; t++) {
        for (int64_t i = 0; i < n * RANK; i++) {
            m[i] = mu * m[i] + (1.0 - mu) * (double)grads[t][i];
            u[i] = mu * m[i] + (1.0 - mu) * (double)grads[t][i];
        }
        make_orthogonal(u, n);
        for (int64_t i = 0; i < n * RANK; i++)
            w[i] -= (double)args->muon_lr * (u[i] + (double)args->weight_decay * w[i]);
    }
}

/* Each A and each B by itself: together, or in the wrong shape, their updates would be others. */
static void muon_makes_each_matrix_orthogonal(void **state) {
    for (int llama = 0; llama < 2; llama++) {
        struct gpt_config c = kind_of(llama);
        struct model m;
        struct optimizer opt;
        open_adapted(&m, &c, "all", (struct gpt_options){.recompute = RECOMPUTE_NONE});
        struct lora *l = &m.gpt.lora;
        size_t bytes = (size_t)tensor_bytes(&l->params);
        float *first = (float *)xmalloc(bytes), *grads[2];
        memcpy(first, l->params.data, bytes);
        optimizer_create(&opt, &m.gpt, (struct optimizer_options){.kind = OPTIMIZER_MUON});
        struct update_args args = {.lr = 9.0f, .momentum = 0.9f, .muon_lr = 0.2f, .weight_decay = 0.3f};
        for (args.step = 1; args.step <= 2; args.step++) {
            step(&m, 1);
            grads[args.step - 1] = (float *)memcpy(xmalloc(bytes), l->grads.data, bytes);
            optimizer_step(&opt, &m.gpt, &args);
        }
        for (int64_t layer = 0; layer < c.layers; layer++)
            for (int i = 0; i < 2 * l->layout.parts; i++) {
                const struct lora_part *p = &l->layout.part[i / 2];
                struct tensor t =
                    i % 2 ? lora_b(&m.gpt, &l->params, p, layer) : lora_a(&m.gpt, &l->params, p, layer);
                int64_t at = f32(&t) - f32(&l->params), n = i % 2 ? p->rows : p->cols;
                double w[MOST];
                for (int64_t k = 0; k < n * RANK; k++) w[k] = (double)first[at + k];
                two_steps(w, (const float *const[]){grads[0] + at, grads[1] + at}, n, &args);
                for (int64_t k = 0; k < n * RANK; k++)
                    near((double)f32(&t)[k], w[k], 1.0, lora_word(p->target));
            }
        free(first);
        for (int t = 0; t < 2; t++) free(grads[t]);
        model_close(&m);
    }
}

/* The generator of samples reads the model with its adapters. */
static void the_generator_has_the_adapters(void **state) {
    struct gpt_config c = kind_of(true);
    struct model m, whole;
    struct gpt generator;
    float is[128], expected[128];
    int32_t tokens[T] = {3, 1, 4, 1, 5, 9, 2}, all[TOKENS] = {3, 1, 4, 1, 5, 9, 2};
    open_adapted(&m, &c, "q,down", (struct gpt_options){.recompute = RECOMPUTE_NONE});
    generator_create(&generator, &m.ctx, &c, DTYPE_F32, &m.gpt, 1, T);
    gpt_set_batch(&generator, tokens, NULL);
    gpt_forward(&generator, 0, 4);
    gpt_forward(&generator, 4, 3);
    gpt_logits(&generator, T - 1, is);
    open_model(&whole, &c, (struct gpt_options){.recompute = RECOMPUTE_NONE});
    merge(&whole, &m);
    gpt_set_batch(&whole.gpt, all, all);
    gpt_forward(&whole.gpt, 0, T);
    gpt_all_logits(&whole.gpt);
    struct tensor logits = gpt_act(&whole.gpt, A_LOGITS, 0);
    memcpy(expected, f32(&logits) + (T - 1) * gpt_padded_vocab(&c), sizeof expected);
    for (int v = 0; v < V; v++) near((double)is[v], (double)expected[v], 1.0, "a logit");
    model_close(&m);
    model_close(&whole);
}

static int64_t planned(struct device *d, const struct gpt_config *c, struct lora_options lora,
                       enum memory_kind kind) {
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer opt;
    struct gpt_options options = {.B = 1, .T = 64, .train = true, .lora = lora};
    ctx_init(&ctx, d, d->ops, true);
    gpt_create(&gpt, &ctx, c, &options);
    optimizer_create(&opt, &gpt, (struct optimizer_options){.kind = OPTIMIZER_ADAMW});
    int64_t bytes = ctx.memory[kind];
    ctx_free(&ctx);
    return bytes;
}

/* No gradient and no moment for what is frozen: of GPT-2 124M, less than 1 % of the moments, and of the
 * gradients one block's, a twelfth of two thirds. */
static void frozen_weights_take_no_gradients_and_no_state(void **state) {
    struct device *d = device_open_cpu();
    struct gpt_config c;
    struct error err;
    assert_true(gpt_config_from_name(&c, "gpt2", NULL, &err));
    struct lora_options none = {0}, eight = {8, 2.0f, targets_of(&c, "all")};
    struct lora_layout l;
    lora_make_layout(&l, &c, &eight);
    assert_true(planned(d, &c, eight, MEM_OPTIMIZER) == 2 * 4 * l.total);
    assert_true(100 * planned(d, &c, eight, MEM_OPTIMIZER) < planned(d, &c, none, MEM_OPTIMIZER) * 2);
    assert_true(12 * planned(d, &c, eight, MEM_GRADIENTS) < planned(d, &c, none, MEM_GRADIENTS));
    assert_true(planned(d, &c, eight, MEM_PARAMETERS) < planned(d, &c, none, MEM_PARAMETERS) * 11 / 10);
    d->close(d);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_and_gradients_are_those_of_the_merged_model),
        cmocka_unit_test(targets_are_the_layers_of_the_model),
        cmocka_unit_test(a_step_changes_the_adapters_alone),
        cmocka_unit_test(muon_makes_each_matrix_orthogonal),
        cmocka_unit_test(the_generator_has_the_adapters),
        cmocka_unit_test(frozen_weights_take_no_gradients_and_no_state),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
