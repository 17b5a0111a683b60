/* Choosing tokens: against a plain implementation of top-k and top-p, and the distribution that comes
 * out. */
#include "test/test.h"

#include "llmc/base/rng.h"
#include "llmc/model/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct pair {
    double logit;
    int token;
};

static int by_logit(const void *a, const void *b) {
    const struct pair *x = (const struct pair *)a, *y = (const struct pair *)b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token - y->token;
}

/* Tokens that a sampler with a penalty has seen. */
static const int seen[] = {7, 0, 150, 151, 299};

/* Probabilities by the definition: penalise, sort, cut to k, renormalise, cut to p, cut to min-p,
 * renormalise. */
static void expected(double *p, const float *logits, int V, const struct sampler_options *o) {
    struct pair *sorted = (struct pair *)xmalloc((size_t)V * sizeof *sorted);
    for (int v = 0; v < V; v++) sorted[v] = (struct pair){(double)logits[v], v};
    for (size_t i = 0; i < ARRAY_LENGTH(seen) && o->repetition_penalty > 0.0; i++) {
        double *x = &sorted[seen[i]].logit;
        *x = *x > 0.0 ? *x / o->repetition_penalty : *x * o->repetition_penalty;
    }
    qsort(sorted, (size_t)V, sizeof *sorted, by_logit);
    int n = o->top_k > 0 && o->top_k < V ? (int)o->top_k : V, kept = 0;
    double total = 0.0, sum = 0.0;
    for (int i = 0; i < n; i++) total += exp((sorted[i].logit - sorted[0].logit) / o->temperature);
    while (kept < n && (kept == 0 || (sum < o->top_p * total)))
        sum += exp((sorted[kept++].logit - sorted[0].logit) / o->temperature);
    while (kept > 1 && exp((sorted[kept - 1].logit - sorted[0].logit) / o->temperature) < o->min_p)
        sum -= exp((sorted[--kept].logit - sorted[0].logit) / o->temperature);
    for (int v = 0; v < V; v++) p[v] = 0.0;
    for (int i = 0; i < kept; i++)
        p[sorted[i].token] = exp((sorted[i].logit - sorted[0].logit) / o->temperature) / sum;
    free(sorted);
}

static void test_distribution(void **state) {
    enum { V = 300, DRAWS = 40000 };
    static const struct sampler_options cases[] = {{1.0, 0, 1.0, 1},
                                                   {0.5, 0, 1.0, 2},
                                                   {1.0, 5, 1.0, 3},
                                                   {1.0, 0, 0.5, 4},
                                                   {2.0, 50, 0.9, 5},
                                                   {1.0, 1, 1.0, 6},
                                                   {0.3, 0, 0.99, 7},
                                                   {1.0, V, 1.0, 8},
                                                   {1.0, 0, 1e-9, 9},
                                                   {5.0, 299, 1.0, 10},
                                                   {1.0, 0, 1.0, 11, 0.1},
                                                   {2.0, 40, 0.95, 12, 0.3},
                                                   {1.0, 0, 1.0, 13, 1.0},
                                                   {1.0, 0, 1.0, 14, 0.0, 1.3},
                                                   {1.5, 20, 1.0, 15, 0.05, 5.0},
                                                   {1.0, 0, 0.9, 16, 0.0, 0.5}};
    float logits[V];
    double p[V];
    for (int v = 0; v < V; v++) logits[v] = (float)(12.0 * rng_uniform(1, RNG_TEST, (uint64_t)v) - 6.0);
    logits[7] = logits[9] = 6.5f; /* a tie at the top */
    for (size_t c = 0; c < ARRAY_LENGTH(cases); c++) {
        int counts[V] = {0};
        struct sampler *s = sampler_new(&cases[c], V);
        for (size_t i = 0; i < ARRAY_LENGTH(seen); i++) sampler_see(s, seen[i]);
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
    struct sampler_options penalised = {0.0, 0, 1.0, 1, 0.0, 1.5};
    struct sampler *p = sampler_new(&penalised, 50);
    sampler_see(p, 33);
    assert_int_equal(sampler_pick(p, logits, 0), 14); /* sin(14) = 0.9906 is next */
    assert_int_equal(sampler_pick(p, logits, 0), 14); /* picking is not seeing */
    sampler_free(p);
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

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_greedy_and_seeds),
        cmocka_unit_test(test_extreme_logits),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
