/* Text generation. The model computes one position at a time, and keeps keys and values of all before it in
 * its activations. Candidates are narrowed by top-k, then top-p, and drawn with a random number that
 * depends on nothing but seed and position: so the same seed gives the same text on any number of
 * threads. */
#include "llmc/model/sampler.h"

#include "llmc/base/rng.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- choosing a token --- */

struct candidate {
    float logit;
    int32_t token;
};

struct sampler {
    struct sampler_options options;
    int64_t V;
    struct candidate *candidates; /* (V) */
};

struct sampler *sampler_new(const struct sampler_options *options, int64_t V) {
    struct sampler *s = (struct sampler *)xmalloc(sizeof *s);
    *s = (struct sampler){*options, V, (struct candidate *)xmalloc((size_t)V * sizeof(struct candidate))};
    return s;
}

void sampler_free(struct sampler *s) {
    if (!s) return;
    free(s->candidates);
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

int64_t sampler_pick(struct sampler *s, const float *logits, uint64_t index) {
    int64_t best = most_probable(logits, s->V);
    float max = logits[best];
    check(isfinite(max), "sampling: the model's logits are not finite; its weights are damaged");
    if (s->options.temperature <= 0.0) return best;
    int64_t n = narrow(s, logits, max);
    double point = rng_uniform(s->options.seed, RNG_SAMPLE, index) * weight_of(s, n, max);
    for (int64_t i = 0; i < n; i++) {
        point -= weight(s, s->candidates[i].logit, max);
        if (point < 0.0) return s->candidates[i].token;
    }
    return s->candidates[n - 1].token; /* only by rounding */
}

/* --- the loop --- */

void generator_create(struct gpt *gpt, struct ctx *ctx, const struct gpt_config *config, enum dtype dtype,
                      const struct gpt *trained) {
    bool mixed = dtype == DTYPE_BF16 && !ctx->ops->bf16;
    struct gpt_options options = {
        .B = 1, .T = config->context, .dtype = mixed ? DTYPE_F32 : dtype, .bf16_weights = mixed};
    if (trained) {
        options.params = &trained->params;
        options.param_slots = trained->options.param_slots;
    }
    gpt_create(gpt, ctx, config, &options);
    if (trained) gpt->hooks = trained->hooks;
}

/* Threads wait for each other after every operation, so a thread needs weights of some size to pay: to read
 * 4 MiB takes it as long as all that waiting. The model of the built-in stories is three times as fast with
 * one thread. */
static int64_t threads_for(const struct gpt *gpt, int64_t positions, int64_t all) {
    double bytes = (double)gpt->layout.count * (double)dtype_size(gpt->params.dtype);
    return max_i64(1, (int64_t)fmin((double)all, bytes * (double)positions / (4 << 20)));
}

int64_t generate(struct gpt *gpt, struct sampler *s, const uint32_t *prompt, int64_t count, int64_t tokens,
                 generate_fn *each, void *user) {
    int64_t T = gpt->options.T, V = gpt->config.vocab_size, made = 0, known = 0, computed = 0;
    int32_t prefix = (int32_t)min_i64(count, T); /* what is left of the prompt in the context */
    check(count >= 1, "generate: an empty prompt");
    int32_t *text = (int32_t *)xcalloc((size_t)T, sizeof *text); /* the tokens in the context */
    float *logits = (float *)xmalloc((size_t)gpt_padded_vocab(&gpt->config) * sizeof *logits);
    for (int64_t i = max_i64(0, count - T); i < count; i++) {
        check(prompt[i] < (uint64_t)V,
              "generate: token %" PRIu32 " is not in the model's vocabulary of %" PRId64, prompt[i], V);
        text[known++] = (int32_t)prompt[i];
    }
    struct device *d = gpt->ctx->device;
    int64_t threads = d->use_threads ? d->use_threads(d, 0) : 0;
    while (made < tokens) {
        if (computed < known) {
            if (threads) d->use_threads(d, threads_for(gpt, known - computed, threads));
            gpt_set_batch(gpt, text, NULL);
            gpt_set_prefix(gpt, &prefix);
            gpt_forward(gpt, computed, known - computed);
            computed = known;
        }
        gpt_logits(gpt, known - 1, logits);
        int64_t token = sampler_pick(s, logits, (uint64_t)(count + made));
        made++;
        if (!each(user, token)) break;
        if (known == T) { /* full: go on from its later half */
            known = T / 2;
            prefix = (int32_t)max_i64(0, prefix - (T - known));
            memmove(text, text + T - known, (size_t)known * sizeof *text);
            computed = 0;
        }
        text[known++] = (int32_t)token;
    }
    if (threads) d->use_threads(d, threads);
    free(text);
    free(logits);
    return made;
}

/* --- whole texts --- */

struct collected {
    const struct tokenizer *t;
    int64_t end;
    char *text;
    int64_t size, capacity;
};

static bool add_token(void *user, int64_t token) {
    struct collected *c = (struct collected *)user;
    if (token == tokenizer_end_of_text(c->t) || token == c->end) return false;
    int size;
    const char *bytes = tokenizer_token_bytes(c->t, token, &size);
    if (c->size + size + 1 > c->capacity) {
        c->capacity = 2 * (c->size + size + 1);
        c->text = (char *)xrealloc(c->text, (size_t)c->capacity);
    }
    memcpy(c->text + c->size, bytes, (size_t)size);
    c->size += size;
    return true;
}

char *generate_answer(struct gpt *gpt, const struct tokenizer *t, const struct sampler_options *options,
                      const uint32_t *prompt, int64_t count, int64_t tokens, int64_t end) {
    struct collected c = {t, end, (char *)xcalloc(1, 256), 0, 256};
    struct sampler *s = sampler_new(options, min_i64(gpt->config.vocab_size, tokenizer_vocab_size(t)));
    generate(gpt, s, prompt, count, tokens, add_token, &c);
    c.text[c.size] = '\0';
    sampler_free(s);
    return c.text;
}

char *generate_text(struct gpt *gpt, const struct tokenizer *t, const struct sampler_options *options,
                    const char *prompt, int64_t tokens) {
    struct token_buffer ids = {0};
    int64_t start = tokenizer_end_of_text(t);
    token_buffer_reserve(&ids, 1);
    if (start >= 0) ids.ids[ids.count++] = (uint32_t)start;
    if (prompt && *prompt) tokenizer_encode(t, prompt, (int64_t)strlen(prompt), &ids);
    char *text = generate_answer(gpt, t, options, ids.ids, ids.count, tokens, -1);
    token_buffer_free(&ids);
    return text;
}
