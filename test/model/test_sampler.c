/* Choosing tokens and generating text: against a plain implementation of top-k and top-p, the distribution
 * that comes out, and the loop with its cache and its full context. */
#include "test/test.h"

#include "llmc/base/rng.h"
#include "llmc/model/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- choosing a token --- */

struct pair {
    double logit;
    int token;
};

static int by_logit(const void *a, const void *b) {
    const struct pair *x = (const struct pair *)a, *y = (const struct pair *)b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token - y->token;
}

/* Probabilities by the definition: sort, cut to k, renormalise, cut to p, renormalise. */
static void expected(double *p, const float *logits, int V, const struct sampler_options *o) {
    struct pair *sorted = (struct pair *)xmalloc((size_t)V * sizeof *sorted);
    for (int v = 0; v < V; v++) sorted[v] = (struct pair){(double)logits[v], v};
    qsort(sorted, (size_t)V, sizeof *sorted, by_logit);
    int n = o->top_k > 0 && o->top_k < V ? (int)o->top_k : V, kept = 0;
    double total = 0.0, sum = 0.0;
    for (int i = 0; i < n; i++) total += exp((sorted[i].logit - sorted[0].logit) / o->temperature);
    while (kept < n && (kept == 0 || (sum < o->top_p * total)))
        sum += exp((sorted[kept++].logit - sorted[0].logit) / o->temperature);
    for (int v = 0; v < V; v++) p[v] = 0.0;
    for (int i = 0; i < kept; i++)
        p[sorted[i].token] = exp((sorted[i].logit - sorted[0].logit) / o->temperature) / sum;
    free(sorted);
}

static void test_distribution(void **state) {
    enum { V = 300, DRAWS = 40000 };
    static const struct sampler_options cases[] = {
        {1.0, 0, 1.0, 1}, {0.5, 0, 1.0, 2},  {1.0, 5, 1.0, 3}, {1.0, 0, 0.5, 4},  {2.0, 50, 0.9, 5},
        {1.0, 1, 1.0, 6}, {0.3, 0, 0.99, 7}, {1.0, V, 1.0, 8}, {1.0, 0, 1e-9, 9}, {5.0, 299, 1.0, 10}};
    float logits[V];
    double p[V];
    for (int v = 0; v < V; v++) logits[v] = (float)(12.0 * rng_uniform(1, RNG_TEST, (uint64_t)v) - 6.0);
    logits[7] = logits[9] = 6.5f; /* a tie at the top */
    for (size_t c = 0; c < ARRAY_LENGTH(cases); c++) {
        int counts[V] = {0};
        struct sampler *s = sampler_new(&cases[c], V);
        for (int i = 0; i < DRAWS; i++) counts[sampler_pick(s, logits, (uint64_t)i)]++;
        expected(p, logits, V, &cases[c]);
        for (int v = 0; v < V; v++) {
            /* five standard deviations; never a token that is cut off */
            double mean = p[v] * DRAWS, bound = 5.0 * sqrt(mean * (1.0 - p[v])) + 1e-6;
            if (!(fabs((double)counts[v] - mean) <= bound + (p[v] > 0.0 && mean < 1.0 ? 5.0 : 0.0)))
                fail_msg("case %zu, token %d: drawn %d times, expected %.1f", c, v, counts[v], mean);
        }
        sampler_free(s);
    }
}

static void test_greedy_and_seeds(void **state) {
    float logits[50];
    for (int v = 0; v < 50; v++) logits[v] = sinf((float)v);
    struct sampler_options greedy = {0.0, 0, 1.0, 1}, one = {1.0, 0, 1.0, 1}, two = {1.0, 0, 1.0, 2};
    struct sampler *g = sampler_new(&greedy, 50), *a = sampler_new(&one, 50), *b = sampler_new(&one, 50),
                   *c = sampler_new(&two, 50);
    int same = 0;
    for (uint64_t i = 0; i < 200; i++) {
        assert_int_equal(sampler_pick(g, logits, i), 33); /* sin(33) = 0.9999 is the largest */
        int64_t x = sampler_pick(a, logits, i);
        assert_int_equal(x, sampler_pick(b, logits, i));
        same += x == sampler_pick(c, logits, i);
    }
    assert_true(same < 100);
    sampler_free(g);
    sampler_free(a);
    sampler_free(b);
    sampler_free(c);
}

/* Logits so far apart that every probability but one underflows, and a huge vocabulary of equal ones. */
static void test_extreme_logits(void **state) {
    enum { V = 60000 };
    float *logits = (float *)xmalloc(V * sizeof *logits);
    for (int v = 0; v < V; v++) logits[v] = v == 4321 ? 1e4f : -1e4f;
    struct sampler_options top_p = {1.0, 0, 0.9, 1}, top_k = {1.0, 40, 1.0, 1};
    struct sampler *p = sampler_new(&top_p, V), *k = sampler_new(&top_k, V);
    assert_int_equal(sampler_pick(p, logits, 0), 4321);
    assert_int_equal(sampler_pick(k, logits, 0), 4321);
    for (int v = 0; v < V; v++) logits[v] = 3.0f;
    for (uint64_t i = 0; i < 20; i++) {
        assert_true(sampler_pick(k, logits, i) < 40); /* of equal ones the first */
        assert_true(sampler_pick(p, logits, i) < V * 9 / 10 + 1);
    }
    sampler_free(p);
    sampler_free(k);
    free(logits);
}

/* --- generating --- */

static const struct gpt_config small = GPT2_CONFIG("small", 16, 257, 2, 2, 16);

struct made {
    int64_t tokens[200];
    int64_t count, limit;
};
static bool collect(void *user, int64_t token) {
    struct made *m = (struct made *)user;
    m->tokens[m->count++] = token;
    return m->count < m->limit;
}

/* Each token from a fresh pass over the same context that generate() sees. */
static void test_generation_equals_recomputation(void **state) {
    struct device *device = device_open_cpu();
    struct ctx ctx;
    struct gpt gpt, again;
    ctx_init(&ctx, device, device->ops, false);
    generator_create(&gpt, &ctx, &small, DTYPE_F32, NULL);
    gpt_init_weights(&gpt, 5);
    struct tensor wte = gpt_param(&gpt, P_WTE, 0), wpe = gpt_param(&gpt, P_WPE, 0);
    /* large enough that the context decides the token */
    for (int64_t i = 0; i < tensor_count(&wte); i++) f32(&wte)[i] *= 40.0f;
    for (int64_t i = 0; i < tensor_count(&wpe); i++) f32(&wpe)[i] *= 60.0f;
    generator_create(&again, &ctx, &small, DTYPE_F32, &gpt);
    struct sampler_options options = {1.0, 0, 1.0, 1};
    struct sampler *s = sampler_new(&options, small.vocab_size);
    uint32_t prompt[] = {256, 72, 105, 33};
    struct made m = {.limit = 60};
    assert_int_equal(generate(&gpt, s, prompt, ARRAY_LENGTH(prompt), 60, collect, &m), 60);
    assert_int_equal(m.count, 60);

    int32_t text[16] = {256, 72, 105, 33};
    int64_t known = 4, T = small.context;
    float *logits = (float *)xmalloc((size_t)gpt_padded_vocab(&small) * sizeof *logits);
    for (int64_t i = 0; i < 60; i++) {
        gpt_set_batch(&again, text, NULL);
        gpt_forward(&again, 0, known);
        gpt_logits(&again, known - 1, logits);
        int64_t token = sampler_pick(s, logits, (uint64_t)(4 + i));
        if (m.tokens[i] != token)
            fail_msg("token %d: %d, recomputed %d", (int)i, (int)m.tokens[i], (int)token);
        if (known == T) {
            memmove(text, text + T / 2, (size_t)(T / 2) * sizeof *text);
            known = T / 2;
        }
        text[known++] = (int32_t)token;
    }
    free(logits);
    sampler_free(s);
    ctx_free(&ctx);
    device->close(device);
}

/* Weights in bf16 give the logits of fp32 weights with the rounded values, for a prompt and for one token. */
static void test_weights_in_bf16(void **state) {
    struct device *device = device_open_cpu();
    struct ctx ctx;
    struct gpt half, full;
    ctx_init(&ctx, device, device->ops, false);
    generator_create(&half, &ctx, &small, DTYPE_BF16, NULL);
    generator_create(&full, &ctx, &small, DTYPE_F32, NULL);
    assert_int_equal(2 * tensor_bytes(&half.params), tensor_bytes(&full.params));
    gpt_init_weights(&full, 5);
    int64_t n = tensor_count(&full.params), V = gpt_padded_vocab(&small);
    for (int64_t i = 0; i < n; i++) {
        uint16_t bits = bf16_from_f32(f32(&full.params)[i]);
        ((uint16_t *)half.params.data)[i] = bits;
        f32(&full.params)[i] = f32_from_bf16(bits);
    }
    int32_t text[16] = {256, 72, 105, 33, 1, 2, 3, 4, 5};
    float *a = (float *)xmalloc((size_t)(2 * V) * sizeof *a), *b = a + V;
    for (int64_t first = 0; first < 9; first += 8) {
        gpt_set_batch(&half, text, NULL);
        gpt_set_batch(&full, text, NULL);
        gpt_forward(&half, first, first ? 1 : 8);
        gpt_forward(&full, first, first ? 1 : 8);
        gpt_logits(&half, first ? 8 : 7, a);
        gpt_logits(&full, first ? 8 : 7, b);
        for (int64_t v = 0; v < small.vocab_size; v++)
            if (!(fabsf(a[v] - b[v]) <= 1e-5f))
                fail_msg("logit %d: %g, %g", (int)v, (double)a[v], (double)b[v]);
    }
    free(a);
    ctx_free(&ctx);
    device->close(device);
}

static void test_text(void **state) {
    struct device *device = device_open_cpu();
    struct ctx ctx;
    struct gpt gpt;
    struct tokenizer *t = tokenizer_bytes();
    ctx_init(&ctx, device, device->ops, false);
    generator_create(&gpt, &ctx, &small, DTYPE_F32, NULL);
    gpt_init_weights(&gpt, 5);
    struct sampler_options options = {1.0, 0, 1.0, 3};
    char *a = generate_text(&gpt, t, &options, "Hi", 50), *b = generate_text(&gpt, t, &options, "Hi", 50);
    char *c = generate_text(&gpt, t, &options, "", 50);
    assert_string_equal(a, b);
    assert_string_not_equal(a, c);
    free(a);
    free(b);
    free(c);
    tokenizer_free(t);
    ctx_free(&ctx);
    device->close(device);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distribution),    cmocka_unit_test(test_greedy_and_seeds),
        cmocka_unit_test(test_extreme_logits),  cmocka_unit_test(test_generation_equals_recomputation),
        cmocka_unit_test(test_weights_in_bf16), cmocka_unit_test(test_text),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
