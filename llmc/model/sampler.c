/* Candidates are narrowed by top-k, then top-p, then min-p, as in transformers, and drawn with a random
 * number that depends on nothing but seed and position: so the same seed gives the same text on any
 * number of threads and beside any other texts. */
#include "llmc/model/sampler.h"

#include "llmc/base/rng.h"

#include <math.h>
#include <stdlib.h>

struct candidate {
    float logit;
    int32_t token;
};

struct sampler {
    struct sampler_options options;
    int64_t V;
    struct candidate *candidates; /* (V) */
    bool *seen;                   /* (V), and */
    float *penalised;             /* (V) the logits with the penalty; NULL without one */
};

struct sampler *sampler_new(const struct sampler_options *options, int64_t V) {
    struct sampler *s = (struct sampler *)xmalloc(sizeof *s);
    *s = (struct sampler){*options, V, (struct candidate *)xmalloc((size_t)V * sizeof(struct candidate))};
    if (options->repetition_penalty > 0.0 && options->repetition_penalty != 1.0) {
        s->seen = (bool *)xcalloc((size_t)V, sizeof *s->seen);
        s->penalised = (float *)xmalloc((size_t)V * sizeof *s->penalised);
    }
    return s;
}

void sampler_free(struct sampler *s) {
    if (!s) return;
    free(s->candidates);
    free(s->seen);
    free(s->penalised);
    free(s);
}

/* Most probable first; equal ones by token, so that the order is complete. */
static int by_logit(const void *a, const void *b) {
    const struct candidate *x = (const struct candidate *)a, *y = (const struct candidate *)b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

static int64_t most_probable(const float *logits, int64_t V) {
    int64_t best = 0;
    for (int64_t v = 1; v < V; v++)
        if (logits[v] > logits[best]) best = v;
    return best;
}

double log_sum_exp(const float *logits, int64_t V) {
    double max = (double)logits[most_probable(logits, V)], sum = 0.0;
    for (int64_t v = 0; v < V; v++) sum += exp((double)logits[v] - max);
    return max + log(sum);
}

/* Tokens with a logit of at least `least`, unsorted. */
static int64_t collect(struct sampler *s, const float *logits, float least) {
    int64_t n = 0;
    for (int64_t v = 0; v < s->V; v++)
        if (logits[v] >= least) s->candidates[n++] = (struct candidate){logits[v], (int32_t)v};
    return n;
}

/* exp((logit - max) / temperature): a probability, up to their common sum. */
static double weight(const struct sampler *s, float logit, float max) {
    return exp(((double)logit - (double)max) / s->options.temperature);
}

static double weight_of(const struct sampler *s, int64_t n, float max) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += weight(s, s->candidates[i].logit, max);
    return sum;
}

/* The candidates that top-k and then top-p leave, sorted unless all are left. Sorting a whole vocabulary
 * would cost more than a small model's forward pass, so ever lower thresholds are tried until enough lies
 * above one. */
static int64_t narrow(struct sampler *s, const float *logits, float max) {
    const struct sampler_options *o = &s->options;
    bool by_k = o->top_k > 0 && o->top_k < s->V, by_p = o->top_p < 1.0;
    if (!by_k && !by_p) return collect(s, logits, -INFINITY);
    double total = 0.0;
    for (int64_t v = 0; v < s->V && by_p && !by_k; v++) total += weight(s, logits[v], max);
    for (double depth = 4.0 * o->temperature;; depth *= 2.0) {
        int64_t n = collect(s, logits, (float)((double)max - depth));
        bool all = n == s->V || !isfinite(depth);
        if (by_k && n < o->top_k && !all) continue;
        qsort(s->candidates, (size_t)n, sizeof *s->candidates, by_logit);
        if (by_k) n = min_i64(n, o->top_k);
        if (!by_p) return n;
        double wanted = o->top_p * (by_k ? weight_of(s, n, max) : total), sum = 0.0;
        int64_t i = 0;
        while (i < n && (i == 0 || sum < wanted)) sum += weight(s, s->candidates[i++].logit, max);
        if (sum >= wanted || by_k || all) return i;
    }
}

void sampler_see(struct sampler *s, int64_t token) {
    if (s->seen && token >= 0 && token < s->V) s->seen[token] = true;
}

static const float *penalise(struct sampler *s, const float *logits) {
    float penalty = (float)s->options.repetition_penalty;
    if (!s->seen) return logits;
    for (int64_t v = 0; v < s->V; v++) {
        float x = logits[v];
        s->penalised[v] = !s->seen[v] ? x : x > 0.0f ? x / penalty : x * penalty;
    }
    return s->penalised;
}

/* Of the candidates those that min-p leaves, in their order. */
static int64_t probable_enough(struct sampler *s, int64_t n, float max) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (weight(s, s->candidates[i].logit, max) >= s->options.min_p)
            s->candidates[kept++] = s->candidates[i];
    return kept;
}

int64_t sampler_pick(struct sampler *s, const float *model_logits, uint64_t index) {
    const float *logits = penalise(s, model_logits);
    int64_t best = most_probable(logits, s->V);
    float max = logits[best];
    check(isfinite(max), "sampling: the model's logits are not finite; its weights are damaged");
    if (s->options.temperature <= 0.0) return best;
    int64_t n = narrow(s, logits, max);
    if (s->options.min_p > 0.0) n = probable_enough(s, n, max);
    double point = rng_uniform(s->options.seed, RNG_SAMPLE, index) * weight_of(s, n, max);
    for (int64_t i = 0; i < n; i++) {
        point -= weight(s, s->candidates[i].logit, max);
        if (point < 0.0) return s->candidates[i].token;
    }
    return s->candidates[n - 1].token; /* only by rounding */
}
