/* Text generation: the cache against recomputation, weights in bf16, several texts at once. */
#include "test/test.h"

#include "llmc/model/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct gpt_config small = GPT2_CONFIG("small", 16, 257, 2, 2, 16);

struct made {
    int64_t tokens[200];
    int64_t count, limit;
};
static bool collect(void *user, int64_t token, const float *logits) {
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
    generator_create(&gpt, &ctx, &small, DTYPE_F32, NULL, 0, 0);
    gpt_init_weights(&gpt, 5);
    /* large enough that the context decides the token: not only the last one and its position, but also what
     * attention finds */
    for (int64_t i = 0; i < tensor_count(&gpt.params); i++) f32(&gpt.params)[i] *= 20.0f;
    generator_create(&again, &ctx, &small, DTYPE_F32, &gpt, 0, 0);
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

/* Weights in bf16 give the logits of fp32 weights with the rounded values, for a prompt and for one
 * token. */
static void test_weights_in_bf16(void **state) {
    struct device *device = device_open_cpu();
    struct ctx ctx;
    struct gpt half, full;
    ctx_init(&ctx, device, device->ops, false);
    generator_create(&half, &ctx, &small, DTYPE_BF16, NULL, 0, 0);
    generator_create(&full, &ctx, &small, DTYPE_F32, NULL, 0, 0);
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
    generator_create(&gpt, &ctx, &small, DTYPE_F32, NULL, 0, 0);
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

/* --- several texts --- */

enum { TEXTS = 5, MOST = 40 };

static struct generation start(struct sampler *s, int64_t tokens, struct made *m) {
    m->count = 0;
    m->limit = MOST + 1;
    return (struct generation){.sampler = s, .tokens = tokens, .each = collect, .user = m};
}

/* More texts than places: of several lengths, some of which outgrow the context, one that ends itself. Each
 * is the text that it is alone. */
static void test_batch_equals_single_texts(void **state) {
    struct device *device = device_open_cpu();
    struct ctx ctx;
    struct gpt alone, several;
    ctx_init(&ctx, device, device->ops, false);
    generator_create(&alone, &ctx, &small, DTYPE_F32, NULL, 0, 0);
    gpt_init_weights(&alone, 5);
    for (int64_t i = 0; i < tensor_count(&alone.params); i++) f32(&alone.params)[i] *= 8.0f;
    generator_create(&several, &ctx, &small, DTYPE_F32, &alone, 3, 0);
    static const uint32_t prompt[TEXTS][20] = {
        {256}, {256, 72, 105}, {65, 66, 67, 68, 69}, {256, 1, 2}, {99}};
    static const int64_t count[TEXTS] = {1, 3, 5, 20, 1}, tokens[TEXTS] = {30, 7, MOST, 25, 1};
    struct made expected[TEXTS], got[TEXTS];
    struct sampler *s[TEXTS];
    struct generation g[TEXTS];
    for (int i = 0; i < TEXTS; i++) {
        struct sampler_options options = {i % 2 ? 1.0 : 0.0, 0, 1.0, (uint64_t)i};
        s[i] = sampler_new(&options, small.vocab_size);
        g[i] = start(s[i], tokens[i], &expected[i]);
        if (i == 3) expected[i].limit = 9;
        generate(&alone, s[i], prompt[i], count[i], tokens[i], collect, &expected[i]);
        g[i] = start(s[i], tokens[i], &got[i]);
        got[i].limit = expected[i].limit;
    }
    struct batch *b = batch_new(&several, false);
    int added = 0, steps = 0;
    assert_int_equal(batch_room(b), 3);
    do {
        while (added < TEXTS && batch_room(b) > 0) {
            batch_add(b, &g[added], prompt[added], count[added]);
            added++;
        }
        steps++;
    } while (batch_step(b));
    assert_int_equal(added, TEXTS);
    assert_int_equal(steps, MOST + 1); /* the others fit beside the longest */
    for (int i = 0; i < TEXTS; i++) {
        assert_true(g[i].ended);
        assert_int_equal(g[i].made, expected[i].count);
        assert_int_equal(got[i].count, expected[i].count);
        assert_memory_equal(got[i].tokens, expected[i].tokens, (size_t)got[i].count * sizeof *got[i].tokens);
        sampler_free(s[i]);
    }
    assert_int_equal(expected[3].count, 9);
    batch_free(b);
    ctx_free(&ctx);
    device->close(device);
}

/* A text that begins as the one before it: what both have in common is not computed again, and the
 * logits are those of the text alone to rounding. */
static bool keep_logits(void *user, int64_t token, const float *logits) {
    memcpy(user, logits, (size_t)small.vocab_size * sizeof *logits);
    return true;
}

static void test_reuse(void **state) {
    enum { COMMON = 9 };
    struct device *device = device_open_cpu();
    struct ctx ctx;
    struct gpt gpt;
    ctx_init(&ctx, device, device->ops, false);
    generator_create(&gpt, &ctx, &small, DTYPE_F32, NULL, 0, 0);
    gpt_init_weights(&gpt, 5);
    for (int64_t i = 0; i < tensor_count(&gpt.params); i++) f32(&gpt.params)[i] *= 8.0f;
    uint32_t prompt[2][12] = {{256, 1, 2, 3, 4, 5, 6, 7, 8, 50}, {256, 1, 2, 3, 4, 5, 6, 7, 8, 51, 52}};
    int64_t count[2] = {10, 11};
    struct sampler_options options = {0.0, 0, 1.0, 1};
    struct sampler *s = sampler_new(&options, small.vocab_size);
    float expected[257], got[257];
    double flops[2];
    for (int reuse = 0; reuse < 2; reuse++) {
        struct batch *b = batch_new(&gpt, reuse);
        for (int i = 0; i < 2; i++) {
            float *logits = reuse ? got : expected;
            struct generation g = {.sampler = s, .tokens = 1, .each = keep_logits, .user = logits};
            batch_add(b, &g, prompt[i], count[i]);
            ctx_reset_stats(&ctx);
            while (batch_step(b)) {}
            flops[reuse] = ctx.stats[OP_matmul_forward].flops;
        }
        batch_free(b);
    }
    for (int v = 0; v < 257; v++)
        if (!(fabsf(got[v] - expected[v]) <= 1e-5f))
            fail_msg("logit %d: %g, alone %g", v, got[v], expected[v]);
    double block = 2.0 * (double)(gpt.layout.block * small.layers); /* FLOPs of a token */
    assert_true(flops[0] - flops[1] == COMMON * block);
    sampler_free(s);
    ctx_free(&ctx);
    device->close(device);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generation_equals_recomputation),
        cmocka_unit_test(test_weights_in_bf16),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_batch_equals_single_texts),
        cmocka_unit_test(test_reuse),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
