/* Beam search against all texts: with room for every beginning it finds the best of them. */
#include "test/test.h"
#include "test/model/model.h"

#include "llmc/model/beam.h"
#include "llmc/model/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { V = 6, END = 2, PROMPT = 4, LENGTH = 3, T = 64 };

static void open_model(struct model *m, int64_t caches, enum gpt_mask mask, uint64_t seed) {
    struct gpt_config c = {
        .name = "beam", .context = T, .vocab_size = V, .layers = 2, .heads = 2, .channels = 16};
    c.mask = mask;
    gpt_config_complete(&c);
    model_open_empty(m);
    generator_create(&m->gpt, &m->ctx, &c, DTYPE_F32, NULL, caches, T);
    m->gpt.options.init_std = 0.4f;
    gpt_init_weights(&m->gpt, seed);
}

static const uint32_t prompt[PROMPT] = {1, 5, 0, 3};

struct best {
    double score, penalty;
    int length;
    uint32_t ids[LENGTH];
};

/* Tries every text that begins with `ids`. */
static void try_all(struct gpt *g, struct best *best, uint32_t *ids, int length, double log_p) {
    int32_t tokens[T] = {0}, prefix = PROMPT;
    float logits[128];
    double most = -INFINITY, sum = 0.0;
    for (int i = 0; i < PROMPT; i++) tokens[i] = (int32_t)prompt[i];
    for (int i = 0; i < length; i++) tokens[PROMPT + i] = (int32_t)ids[i];
    gpt_use_cache(g, 0);
    gpt_set_batch(g, tokens, NULL);
    gpt_set_prefix(g, &prefix);
    gpt_forward(g, 0, PROMPT + length);
    gpt_logits(g, PROMPT + length - 1, logits);
    for (int v = 0; v < V; v++) most = fmax(most, (double)logits[v]);
    for (int v = 0; v < V; v++) sum += exp((double)logits[v] - most);
    for (int v = 0; v < V; v++) {
        double p = log_p + (double)logits[v] - most - log(sum);
        bool ended = v == END || length + 1 == LENGTH;
        double score = p / pow((5.0 + length + 1) / 6.0, best->penalty);
        ids[length] = (uint32_t)v;
        if (ended && score > best->score) {
            best->score = score;
            best->length = length + (v != END);
            memcpy(best->ids, ids, sizeof best->ids);
        }
        if (!ended) try_all(g, best, ids, length + 1, p);
    }
}

static void with_room_for_all_the_best_is_found(void **state) {
    int longest = 0, ended = 0;
    for (int seed = 1; seed <= 12; seed++) {
        struct model m;
        struct best best = {.score = -INFINITY, .penalty = seed % 3 * 0.8};
        uint32_t ids[LENGTH], out[LENGTH];
        static const int64_t ends[] = {END};
        struct beam_options o = {36, LENGTH, V, ends, 1, best.penalty};
        double score;
        open_model(&m, 36, seed % 2 ? MASK_CAUSAL : MASK_PREFIX, (uint64_t)seed);
        try_all(&m.gpt, &best, ids, 0, 0.0);
        int64_t n = beam_search(&m.gpt, &o, prompt, PROMPT, out, &score);
        if (!(fabs(score - best.score) < 1e-5))
            fail_msg("seed %d: %g, the best is %g", seed, score, best.score);
        assert_int_equal(n, best.length);
        assert_memory_equal(out, best.ids, (size_t)n * sizeof *out);
        longest += n == LENGTH;
        ended += n < LENGTH;
        model_close(&m);
    }
    assert_true(longest > 0 && ended > 0);
}

/* The score is that of the text: its tokens' log-probabilities, read in one pass. */
static void the_score_is_the_texts(void **state) {
    enum { TOKENS = 20 };
    for (int width = 2; width <= 5; width++) {
        struct model m;
        uint32_t out[TOKENS];
        int32_t tokens[T] = {0}, prefix = PROMPT;
        static const int64_t ends[] = {END};
        struct beam_options o = {width, TOKENS, V, ends, 1, 0.0};
        float logits[128];
        double score, log_p = 0.0;
        open_model(&m, width, MASK_CAUSAL, (uint64_t)(20 + width));
        int64_t n = beam_search(&m.gpt, &o, prompt, PROMPT, out, &score);
        for (int i = 0; i < PROMPT; i++) tokens[i] = (int32_t)prompt[i];
        for (int i = 0; i < n; i++) tokens[PROMPT + i] = (int32_t)out[i];
        for (int64_t i = 0; i < n + (n < TOKENS); i++) {
            double sum = 0.0;
            gpt_use_cache(&m.gpt, 0);
            gpt_set_batch(&m.gpt, tokens, NULL);
            gpt_set_prefix(&m.gpt, &prefix);
            gpt_forward(&m.gpt, 0, PROMPT + i);
            gpt_logits(&m.gpt, PROMPT + i - 1, logits);
            for (int v = 0; v < V; v++) sum += exp((double)logits[v]);
            log_p += (double)logits[i < n ? (int)out[i] : END] - log(sum);
        }
        if (!(fabs(score - log_p) < 1e-4)) fail_msg("width %d: %g, but the text has %g", width, score, log_p);
        model_close(&m);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_room_for_all_the_best_is_found),
        cmocka_unit_test(the_score_is_the_texts),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
