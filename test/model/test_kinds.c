/* Every combination of the parts that a network can be made of, small, on the CPU: gradients against
 * difference quotients of the loss, and the ways to compute the same thing against each other.
 *
 * The gradient of a tensor is checked along its own direction: with g the gradient of the loss L(p), the
 * slope of L(p + e g/|g|) at e = 0 is |g|. Two central differences, at e and e/2, are combined so that the
 * error is of order e^4 (Richardson). fp32 noise in the loss then decides: a few 1e-4 of the slope. */
#include "test/test.h"
#include "test/model/model.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/model/generate.h"
#include "llmc/model/gpt.h"

enum { B = 2, T = 7, TOKENS = B * T, V = 40, RULES = 5 * 5 * 2, KINDS = 4 * 2 * 4 * 24 };

static void random_tokens(int32_t *out, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) out[i] = (int32_t)(rng_uniform(seed, RNG_TEST, (uint64_t)i) * V);
}

/* Norms and biases start from ones and zeros, at which mistakes can hide. */
static void disturb(struct gpt *g) {
    struct tensor vectors = gpt_param_range(g, g->layout.matrices, g->layout.total - g->layout.matrices);
    for (int64_t i = 0; i < tensor_count(&vectors); i++)
        f32(&vectors)[i] += 0.3f * (float)(rng_uniform(9, RNG_TEST, (uint64_t)i) - 0.5);
}

/* The weights depend on nothing but the configuration: options that change how it is computed change
 * nothing else. */
static void step(struct model *m, const struct gpt_config *config, struct gpt_options options,
                 int64_t batches) {
    int32_t tokens[TOKENS], targets[TOKENS];
    random_tokens(tokens, TOKENS, 1);
    random_tokens(targets, TOKENS, 2);
    options.T = T;
    options.B = B / batches;
    options.train = true;
    options.init_std = 0.2f;
    model_open(m, config, options, 7);
    disturb(&m->gpt);
    gpt_set_loss_scale(&m->gpt, 1.0f / TOKENS);
    int32_t numbers[B] = {100, 101};
    gpt_set_samples(&m->gpt, numbers);
    gpt_set_batch(&m->gpt, targets, tokens); /* what a step leaves must not reach the next */
    gpt_forward_backward(&m->gpt, true);
    for (int b = 0; config->mask == MASK_PREFIX && b < B; b++) /* sources of 3 and 4 tokens */
        for (int t = 0; t < 2 + b; t++) targets[b * T + t] = -1;
    for (int64_t i = 0; i < batches; i++) {
        for (int64_t b = 0; b < options.B; b++) numbers[b] = (int32_t)(5 + i * options.B + b);
        gpt_set_samples(&m->gpt, numbers);
        gpt_set_batch(&m->gpt, tokens + i * options.B * T, targets + i * options.B * T);
        gpt_forward_backward(&m->gpt, i == 0);
    }
}

/* --- gradients --- */

static double loss_at(struct gpt *g, const struct tensor *p, const float *start, const float *direction,
                      double e) {
    for (int64_t i = 0; i < tensor_count(p); i++)
        f32(p)[i] = (float)((double)start[i] + e * (double)direction[i]);
    g->drops = g->options.dropout > 0.0f; /* the same numbers as in the step */
    gpt_forward(g, 0, T);
    g->drops = false;
    gpt_loss(g);
    struct tensor losses = gpt_act(g, A_LOSSES, 0);
    double loss = 0.0;
    for (int i = 0; i < TOKENS; i++) loss += (double)f32(&losses)[i];
    return loss / TOKENS;
}

/* How far the gradient of one tensor is from the slope, as a share of it. */
static double gradient_error(struct gpt *g, const struct tensor *p, const struct tensor *grad) {
    int64_t n = tensor_count(p);
    float *start = (float *)xmalloc((size_t)n * sizeof *start),
          *direction = (float *)xmalloc((size_t)n * sizeof(float));
    double norm = 0.0, slope[2];
    for (int64_t i = 0; i < n; i++) norm += (double)f32(grad)[i] * (double)f32(grad)[i];
    norm = sqrt(norm);
    memcpy(start, p->data, (size_t)n * sizeof *start);
    for (int64_t i = 0; i < n; i++) direction[i] = (float)((double)f32(grad)[i] / (norm > 0.0 ? norm : 1.0));
    for (int k = 0; k < 2; k++) {
        /* the curvature of a squared ReLU jumps, so that the error is of first order in e; a head is so short
         * that its norm bends the loss much */
        bool bent = g->config.mlp == MLP_RELU2 || g->config.qk_norm == SWITCH_ON;
        double e = (bent ? 0.01 : 0.02) / (1 << k);
        slope[k] = (loss_at(g, p, start, direction, e) - loss_at(g, p, start, direction, -e)) / (2.0 * e);
    }
    memcpy(p->data, start, (size_t)n * sizeof *start);
    free(start);
    free(direction);
    /* a bias of the keys has no effect, and a gradient that is noise: compared with the slopes of other
     * tensors */
    return fabs((4.0 * slope[1] - slope[0]) / 3.0 - norm) / fmax(norm, 2e-2);
}

static void check_gradients_with(const struct gpt_config *config, float dropout) {
    struct model m;
    step(&m, config, (struct gpt_options){.recompute = RECOMPUTE_NONE, .dropout = dropout}, 1);
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(config, (enum param_id)id); l++) {
            struct tensor p = gpt_param(&m.gpt, (enum param_id)id, l),
                          d = gpt_grad(&m.gpt, (enum param_id)id, l);
            double off = gradient_error(&m.gpt, &p, &d), size = 0.0;
            for (int64_t i = 0; i < tensor_count(&d); i++) size = max_f64(size, fabs((double)f32(&d)[i]));
            if (size == 0.0)
                fail_msg("%s: %s has no gradient", config->name, gpt_param_name((enum param_id)id, l));
            if (!(off < 0.01))
                fail_msg("%s: the gradient of %s is off by %.2g of the slope", config->name,
                         gpt_param_name((enum param_id)id, l), off);
        }
    model_close(&m);
}

/* --- several ways to the same numbers --- */

static void check_recomputation_with(const struct gpt_config *config, float dropout) {
    struct model base, other;
    step(&base, config, (struct gpt_options){.recompute = RECOMPUTE_NONE, .dropout = dropout}, 1);
    for (int level = RECOMPUTE_ACT; level <= RECOMPUTE_BLOCK; level++) {
        step(&other, config, (struct gpt_options){.recompute = (enum recompute)level, .dropout = dropout}, 1);
        if (memcmp(base.gpt.grads.data, other.gpt.grads.data, (size_t)tensor_bytes(&base.gpt.grads)) != 0)
            fail_msg("%s: recomputation at level %d changes the gradients", config->name, level);
        model_close(&other);
    }
    model_close(&base);
}

static void assert_near(const float *a, const float *b, int64_t n, double tolerance, const char *name,
                        const char *what) {
    double worst = 0.0, size = 0.0;
    for (int64_t i = 0; i < n; i++) {
        worst = max_f64(worst, fabs((double)a[i] - (double)b[i]));
        size = max_f64(size, fabs((double)b[i]));
    }
    if (!(worst <= tolerance * size)) fail_msg("%s: %s is off by %.3g of %.3g", name, what, worst, size);
}

static void check_accumulation_with(const struct gpt_config *config, float dropout) {
    struct model base, other;
    step(&base, config, (struct gpt_options){.head_chunks = 1, .dropout = dropout}, 1);
    step(&other, config, (struct gpt_options){.head_chunks = 3, .dropout = dropout}, B);
    assert_near(f32(&other.gpt.grads), f32(&base.gpt.grads), base.gpt.layout.total, 2e-5, config->name,
                "the gradient added up over micro-batches");
    model_close(&other);
    model_close(&base);
}

/* Logits of every position: from one forward pass, and from spans that continue the cache. */
static void check_cache(const struct gpt_config *config) {
    static const int64_t spans[] = {1, 3, 1, 2}, after_prefix[] = {3, 1, 1, 2}; /* add up to T */
    const int32_t prefix = 3;
    if (gpt_looks_ahead(config)) return;
    struct model whole, parts;
    int32_t tokens[T];
    float expected[T][V], logits[128];
    random_tokens(tokens, T, 5);
    struct gpt_options options = {.B = 1, .T = T, .init_std = 0.2f};
    model_open(&whole, config, options, 7);
    model_open(&parts, config, options, 7);
    disturb(&whole.gpt);
    disturb(&parts.gpt);
    gpt_set_batch(&whole.gpt, tokens, NULL);
    gpt_set_batch(&parts.gpt, tokens, NULL);
    gpt_set_prefix(&whole.gpt, &prefix);
    gpt_set_prefix(&parts.gpt, &prefix);
    gpt_forward(&whole.gpt, 0, T);
    for (int64_t t = 0; t < T; t++) {
        gpt_logits(&whole.gpt, t, logits);
        memcpy(expected[t], logits, sizeof expected[t]);
    }
    int64_t t = 0;
    const int64_t *span = config->mask == MASK_PREFIX ? after_prefix : spans;
    for (size_t i = 0; i < ARRAY_LENGTH(spans); t += span[i++]) {
        gpt_forward(&parts.gpt, t, span[i]);
        for (int64_t k = 0; k < span[i]; k++) {
            gpt_logits(&parts.gpt, t + k, logits);
            assert_near(logits, expected[t + k], V, 1e-5, config->name, "a logit from the cache");
        }
    }
    model_close(&parts);
    model_close(&whole);
}

/* Sequences of different lengths that go through the model together: the bits are those of each alone. */
static void check_next(const struct gpt_config *config) {
    enum { SEQUENCES = 3 };
    if (gpt_looks_ahead(config)) return;
    struct model together, alone[SEQUENCES];
    int32_t tokens[SEQUENCES][T];
    float logits[SEQUENCES][128], expected[128];
    model_open(&together, config, (struct gpt_options){.B = 1, .T = T, .caches = SEQUENCES, .init_std = 0.2f},
               7);
    disturb(&together.gpt);
    for (int64_t i = 0; i < SEQUENCES; i++) {
        model_open(&alone[i], config, (struct gpt_options){.B = 1, .T = T, .init_std = 0.2f}, 7);
        disturb(&alone[i].gpt);
        random_tokens(tokens[i], T, (uint64_t)i);
        gpt_use_cache(&together.gpt, i);
        gpt_set_batch(&together.gpt, tokens[i], NULL);
        gpt_set_batch(&alone[i].gpt, tokens[i], NULL);
        if (i == 0) continue; /* sequence i has i tokens at first */
        const int32_t prefix = (int32_t)i;
        gpt_set_prefix(&together.gpt, &prefix);
        gpt_set_prefix(&alone[i].gpt, &prefix);
        gpt_forward(&together.gpt, 0, i);
        gpt_forward(&alone[i].gpt, 0, i);
    }
    for (int64_t step = 0; step + SEQUENCES <= T; step++) {
        struct gpt_next next[SEQUENCES];
        int64_t n = 0;
        for (int64_t i = SEQUENCES - 1; i >= 0; i--) {
            if (i == 1 && step >= 2) continue; /* which ends earlier */
            next[n++] = (struct gpt_next){i, i + step, tokens[i][i + step]};
        }
        gpt_forward_next(&together.gpt, next, n);
        gpt_next_logits(&together.gpt, n, logits[0]);
        for (int64_t k = 0; k < n; k++) {
            struct gpt *one = &alone[next[k].cache].gpt;
            gpt_forward(one, next[k].t0, 1);
            gpt_logits(one, next[k].t0, expected);
            if (memcmp(logits[k], expected, V * sizeof *expected) != 0)
                fail_msg("%s: step %d, sequence %d: not the bits that it has alone", config->name, (int)step,
                         (int)next[k].cache);
        }
    }
    for (int64_t i = 0; i < SEQUENCES; i++) model_close(&alone[i]);
    model_close(&together);
}

/* --- dropout --- */

static void check_gradients(const struct gpt_config *config) { check_gradients_with(config, 0.0f); }
static void check_recomputation(const struct gpt_config *config) { check_recomputation_with(config, 0.0f); }
static void check_accumulation(const struct gpt_config *config) { check_accumulation_with(config, 0.0f); }

/* The loss that validation sees, and the gradient of a step. */
static double loss_without_training(struct model *m) {
    struct tensor losses = gpt_act(&m->gpt, A_LOSSES, 0);
    double loss = 0.0;
    gpt_forward(&m->gpt, 0, T);
    gpt_loss(&m->gpt);
    for (int i = 0; i < TOKENS; i++) loss += (double)f32(&losses)[i];
    return loss;
}

static void check_dropout(const struct gpt_config *config) {
    struct model with, without, other;
    const float p = 0.25f;
    check_gradients_with(config, p);
    check_recomputation_with(config, p);
    check_accumulation_with(config, p);
    step(&with, config, (struct gpt_options){.dropout = p}, 1);
    step(&without, config, (struct gpt_options){.dropout = 0.0f}, 1);
    step(&other, config, (struct gpt_options){.dropout = p, .dropout_seed = 1}, 1);
    size_t size = (size_t)tensor_bytes(&with.gpt.grads);
    assert_memory_not_equal(with.gpt.grads.data, without.gpt.grads.data, size);
    assert_memory_not_equal(with.gpt.grads.data, other.gpt.grads.data, size);
    assert_true(loss_without_training(&with) == loss_without_training(&without));
    model_close(&with);
    model_close(&without);
    model_close(&other);
}

/* --- the product of kinds --- */

static const char *text_of(const struct gpt_config *c, const char *option) {
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        if (strcmp(gpt_fields[i].option.name, option) == 0) return gpt_field_text(c, &gpt_fields[i]);
    fail_msg("no field --%s", option);
    return NULL;
}

static int64_t walk(void (*check_config)(const struct gpt_config *config)) {
    struct error err;
    int64_t count = 0;
    for (int positions = POSITIONS_LEARNED; positions <= POSITIONS_SINUSOIDAL; positions++)
        for (int norm = NORM_LAYER; norm <= NORM_RMS; norm++)
            for (int mlp = MLP_GELU; mlp <= MLP_GEGLU; mlp++)
                for (int k = 0; k < 24; k++) {
                    struct gpt_config c = {
                        .context = T, .vocab_size = V, .layers = 2, .heads = 4, .channels = 16};
                    c.positions = (enum gpt_positions)positions;
                    c.norm = (enum gpt_norm)norm;
                    c.mlp = (enum gpt_mlp)mlp;
                    c.tied = k & 1 ? SWITCH_OFF : SWITCH_ON;
                    c.kv_heads = k & 2 ? 2 : 4;
                    c.head_size = k & 2 ? 6 : 4; /* heads that together are wider than the model */
                    c.qk_norm = k & 4 ? SWITCH_ON : SWITCH_OFF;
                    c.bias = k < 8 ? SWITCH_ON : SWITCH_OFF;
                    c.qkv_bias = k < 16 ? c.bias : SWITCH_ON;
                    c.ff = 24;
                    c.logit_softcap = k % 3 ? 0.0 : 2.0;
                    c.norm_weights = k % 5 ? SWITCH_ON : SWITCH_OFF;
                    c.embedding_norm = k % 4 == 3 || k % 5 == 0 ? SWITCH_ON : SWITCH_OFF;
                    c.norm_eps = 1e-3;
                    if (positions == POSITIONS_ROPE && k & 8) c.rope_reverse = SWITCH_ON;
                    if (positions == POSITIONS_ROPE && k & 1) { /* a head's first pair is on the ramp */
                        c.rope_scaling = ROPE_SCALING_LLAMA3;
                        c.rope_factor = 4.0;
                        c.rope_original = T;
                        c.rope_low = 0.5;
                        c.rope_high = 3.0;
                    }
                    gpt_config_complete(&c);
                    snprintf(c.name, sizeof c.name, "%s/%s/%s/tied %s/%d kv/bias %s, %s/qk-norm %s",
                             text_of(&c, "positions"), text_of(&c, "norm"), text_of(&c, "mlp"),
                             text_of(&c, "tied"), (int)c.kv_heads, text_of(&c, "bias"),
                             text_of(&c, "qkv-bias"), text_of(&c, "qk-norm"));
                    if (!gpt_config_check(&c, &err)) fail_msg("%s: %s", c.name, err.message);
                    check_config(&c);
                    count++;
                }
    return count;
}

/* Every score under every mask, with and without a cap. */
static int64_t walk_rules(void (*check_config)(const struct gpt_config *config)) {
    struct error err;
    int64_t count = 0;
    for (int score = SCORE_SCALED_DOT; score <= SCORE_DOT2; score++)
        for (int mask = MASK_CAUSAL; mask <= MASK_PREFIX; mask++)
            for (int k = 0; k < 2; k++) {
                struct gpt_config c = {
                    .context = T, .vocab_size = V, .layers = 2, .heads = 4, .channels = 16};
                c.positions = k ? POSITIONS_ROPE : POSITIONS_LEARNED;
                c.kv_heads = k ? 2 : 4;
                c.score = (enum gpt_score)score;
                c.mask = (enum gpt_mask)mask;
                c.window = mask == MASK_WINDOW ? 3 : 0;
                c.softcap = k ? 1.5 : 0.0;
                c.qk_norm = k ? SWITCH_ON : SWITCH_OFF;
                c.norm_eps = 1e-3;
                gpt_config_complete(&c);
                snprintf(c.name, sizeof c.name, "%s/%s/softcap %s", text_of(&c, "score"), text_of(&c, "mask"),
                         text_of(&c, "softcap"));
                if (!gpt_config_check(&c, &err)) fail_msg("%s: %s", c.name, err.message);
                check_config(&c);
                count++;
            }
    return count;
}

static void test_dropout(void **state) {
    struct gpt_config gpt2 = GPT2_CONFIG("dropout", T, V, 2, 4, 16), llama = gpt2;
    check_dropout(&gpt2);
    llama.positions = POSITIONS_ROPE;
    llama.mlp = MLP_SWIGLU;
    llama.norm = NORM_RMS;
    llama.bias = llama.qkv_bias = SWITCH_OFF;
    llama.kv_heads = 2;
    llama.head_size = 6;
    llama.score = SCORE_COSINE;
    llama.rope_theta = 10000.0;
    check_dropout(&llama);
    gpt2.mlp = MLP_RELU2;
    check_dropout(&gpt2);
}

static void test_gradients_of_rules(void **state) { assert_int_equal(walk_rules(check_gradients), RULES); }
static void test_recomputation_of_rules(void **state) {
    assert_int_equal(walk_rules(check_recomputation), RULES);
}
static void test_accumulation_of_rules(void **state) {
    assert_int_equal(walk_rules(check_accumulation), RULES);
}
static void test_cache_of_rules(void **state) { assert_int_equal(walk_rules(check_cache), RULES); }
static void test_next_of_rules(void **state) { assert_int_equal(walk_rules(check_next), RULES); }

static void test_gradients(void **state) { assert_int_equal(walk(check_gradients), KINDS); }
static void test_recomputation(void **state) { assert_int_equal(walk(check_recomputation), KINDS); }
static void test_accumulation(void **state) { assert_int_equal(walk(check_accumulation), KINDS); }
static void test_cache(void **state) { assert_int_equal(walk(check_cache), KINDS); }
static void test_next(void **state) { assert_int_equal(walk(check_next), KINDS); }

int main(int argc, char **argv) {
    omp_set_num_threads(1); /* the models are so small that threads would only wait for each other */
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gradients),
                                       cmocka_unit_test(test_recomputation),
                                       cmocka_unit_test(test_accumulation),
                                       cmocka_unit_test(test_cache),
                                       cmocka_unit_test(test_dropout),
                                       cmocka_unit_test(test_gradients_of_rules),
                                       cmocka_unit_test(test_recomputation_of_rules),
                                       cmocka_unit_test(test_accumulation_of_rules),
                                       cmocka_unit_test(test_cache_of_rules),
                                       cmocka_unit_test(test_next),
                                       cmocka_unit_test(test_next_of_rules)};
    return test_main(argc, argv, tests, NULL, NULL);
}
