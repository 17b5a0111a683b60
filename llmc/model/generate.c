/* The model keeps keys and values of all positions it has computed in its activations, for each text of
 * a batch in a cache of its own. A text that was just added, or whose context was full, has its tokens
 * read in a pass by itself; after that it has one new token a step, which goes through the model
 * together with those of the other texts. */
#include "llmc/model/generate.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void generator_create(struct gpt *gpt, struct ctx *ctx, const struct gpt_config *config, enum dtype dtype,
                      const struct gpt *trained, int64_t caches, int64_t T) {
    bool mixed = dtype == DTYPE_BF16 && !ctx->ops->bf16;
    struct gpt_options options = {.B = 1,
                                  .T = T ? T : config->context,
                                  .caches = caches,
                                  .dtype = mixed ? DTYPE_F32 : dtype,
                                  .bf16_weights = mixed};
    if (trained) {
        options.params = &trained->params;
        options.param_slots = trained->options.param_slots;
    }
    gpt_create(gpt, ctx, config, &options);
    if (trained) {
        gpt->hooks = trained->hooks;
        gpt->lora = trained->lora; /* its buffers */
        gpt->options.lora = trained->options.lora;
    }
}

int64_t generator_cache_bytes(const struct gpt_config *config, int64_t T) {
    return config->layers * T * gpt_dim_size(config, DIM_QKV) * (int64_t)sizeof(float);
}

/* --- a batch --- */

/* The text in a cache. */
struct place {
    struct generation *text; /* NULL: none */
    int32_t *ids;            /* (T): the tokens in the context */
    int64_t known, computed; /* of them; whose keys and values the cache holds */
    int32_t prefix;          /* what is left of the prompt among them: the prefix of a model with that mask */
    int64_t position;        /* of the next token in the whole text */
    float *logits;           /* (Vp) of the last token known */
};

struct batch {
    struct gpt *gpt;
    bool reuse;
    int64_t places;
    struct place *place;
    struct gpt_next *next; /* (places): of the texts with one new token */
    float *logits;         /* (places,Vp), row i of next[i] */
    float *first;          /* (places,Vp), row p of the text in place p whose tokens were read */
    int64_t *chosen;       /* (places) */
};

struct batch *batch_new(struct gpt *gpt, bool reuse) {
    struct batch *b = (struct batch *)xcalloc(1, sizeof *b);
    size_t n = (size_t)max_i64(1, gpt->options.caches), Vp = (size_t)gpt_padded_vocab(&gpt->config);
    b->gpt = gpt;
    b->reuse = reuse && !gpt_has_act(gpt, A_PREFIX); /* where tokens of the prompt see those after them */
    b->places = (int64_t)n;
    b->place = (struct place *)xcalloc(n, sizeof *b->place);
    b->next = (struct gpt_next *)xcalloc(n, sizeof *b->next);
    b->logits = (float *)xmalloc(n * Vp * sizeof *b->logits);
    b->first = (float *)xmalloc(n * Vp * sizeof *b->first);
    b->chosen = (int64_t *)xcalloc(n, sizeof *b->chosen);
    for (size_t i = 0; i < n; i++)
        b->place[i].ids = (int32_t *)xcalloc((size_t)gpt->options.T, sizeof *b->place[i].ids);
    return b;
}

void batch_free(struct batch *b) {
    if (!b) return;
    for (int64_t i = 0; i < b->places; i++) free(b->place[i].ids);
    free(b->place);
    free(b->next);
    free(b->logits);
    free(b->first);
    free(b->chosen);
    free(b);
}

int64_t batch_room(const struct batch *b) {
    int64_t room = 0;
    for (int64_t i = 0; i < b->places; i++) room += !b->place[i].text;
    return room;
}

/* How many of the tokens the cache of this place holds from its last text. */
static int64_t in_common(const struct place *p, const uint32_t *prompt, int64_t count) {
    int64_t n = 0;
    while (n < count && n < p->computed && (uint32_t)p->ids[n] == prompt[n]) n++;
    return n;
}

/* The place for a text: a free one, with `reuse` the one that knows most of it. */
static struct place *find_place(const struct batch *b, const uint32_t *prompt, int64_t count,
                                int64_t *common) {
    struct place *best = NULL;
    *common = 0;
    for (struct place *p = b->place; p < b->place + b->places; p++) {
        int64_t n = b->reuse && !p->text && count <= b->gpt->options.T ? in_common(p, prompt, count) : 0;
        if (p->text || (best && n <= *common)) continue;
        best = p;
        *common = n;
    }
    return best;
}

void batch_add(struct batch *b, struct generation *g, const uint32_t *prompt, int64_t count) {
    int64_t T = b->gpt->options.T, V = b->gpt->config.vocab_size, common;
    check(count >= 1, "generate: an empty prompt");
    struct place *p = find_place(b, prompt, count, &common);
    check(p, "generate: all %" PRId64 " places are taken", b->places);
    g->made = 0;
    g->slid = false;
    g->ended = g->tokens < 1;
    if (g->ended) return;
    *p = (struct place){.text = g,
                        .ids = p->ids,
                        .prefix = (int32_t)min_i64(count, T),
                        .position = count,
                        .computed = min_i64(common, count - 1)};
    for (int64_t i = max_i64(0, count - T); i < count; i++) {
        check(prompt[i] < (uint64_t)V,
              "generate: token %" PRIu32 " is not in the model's vocabulary of %" PRId64, prompt[i], V);
        p->ids[p->known++] = (int32_t)prompt[i];
    }
    for (int64_t i = 0; i < count; i++) sampler_see(g->sampler, prompt[i]);
}

/* Threads wait for each other after every operation, so a thread needs weights of some size to pay: to read
 * 4 MiB takes it as long as all that waiting. The model of the built-in stories is three times as fast with
 * one thread. */
static void use_threads_for(const struct gpt *gpt, double positions, int64_t all) {
    struct device *d = gpt->ctx->device;
    double bytes = (double)gpt->layout.count * (double)dtype_size(gpt->params.dtype);
    if (all) d->use_threads(d, max_i64(1, (int64_t)fmin((double)all, bytes * positions / (4 << 20))));
}

/* The logits after what the text in this place has beyond its cache, in a pass by itself. */
static void read_tokens(struct batch *b, struct place *p, int64_t threads) {
    int64_t Vp = gpt_padded_vocab(&b->gpt->config);
    use_threads_for(b->gpt, (double)(p->known - p->computed), threads);
    gpt_use_cache(b->gpt, p - b->place);
    gpt_set_batch(b->gpt, p->ids, NULL);
    gpt_set_prefix(b->gpt, &p->prefix);
    gpt_forward(b->gpt, p->computed, p->known - p->computed);
    p->computed = p->known;
    p->logits = b->first + (p - b->place) * Vp;
    gpt_logits(b->gpt, p->known - 1, p->logits);
}

/* Logits for all texts. */
static void compute(struct batch *b, int64_t threads) {
    int64_t n = 0, Vp = gpt_padded_vocab(&b->gpt->config), used = b->places - batch_room(b);
    for (struct place *p = b->place; p < b->place + b->places; p++) {
        if (!p->text) continue;
        if (used == 1 || p->known - p->computed > 1) {
            read_tokens(b, p, threads);
            continue;
        }
        b->next[n] = (struct gpt_next){p - b->place, p->computed, p->ids[p->computed]};
        p->logits = b->logits + n++ * Vp;
        p->computed++;
    }
    if (n == 0) return;
    /* of the ten operations of a layer, three run for each text by itself: with more texts there is more to
     * do, and more to wait for */
    use_threads_for(b->gpt, 10.0 * (double)n / (7.0 + 3.0 * (double)n), threads);
    gpt_forward_next(b->gpt, b->next, n);
    gpt_next_logits(b->gpt, n, b->logits);
}

static void append(struct place *p, int64_t token, int64_t T) {
    p->position++;
    if (p->known == T) { /* full: go on from its later half */
        p->text->slid = true;
        p->known = T / 2;
        p->prefix = (int32_t)max_i64(0, p->prefix - (T - p->known));
        memmove(p->ids, p->ids + T - p->known, (size_t)p->known * sizeof *p->ids);
        p->computed = 0;
    }
    p->ids[p->known++] = (int32_t)token;
}

bool batch_step(struct batch *b) {
    if (batch_room(b) == b->places) return false;
    struct device *d = b->gpt->ctx->device;
    int64_t threads = d->use_threads ? d->use_threads(d, 0) : 0;
    compute(b, threads);
    if (threads) d->use_threads(d, threads);
    /* choosing takes a few nanoseconds for each token of the vocabulary, waking a thread some microseconds */
    bool long_enough = (b->places - batch_room(b)) * b->gpt->config.vocab_size > 1 << 17;
#pragma omp parallel for schedule(dynamic) if (long_enough)
    for (int64_t i = 0; i < b->places; i++) {
        struct place *p = &b->place[i];
        if (p->text) b->chosen[i] = sampler_pick(p->text->sampler, p->logits, (uint64_t)p->position);
    }
    for (int64_t i = 0; i < b->places; i++) {
        struct place *p = &b->place[i];
        struct generation *g = p->text;
        if (!g) continue;
        g->made++;
        sampler_see(g->sampler, b->chosen[i]);
        bool goes_on = g->each(g->user, b->chosen[i], p->logits) && g->made < g->tokens;
        if (goes_on) {
            append(p, b->chosen[i], b->gpt->options.T);
        } else {
            p->text = NULL;
            g->ended = true;
        }
    }
    return true;
}

int64_t generate(struct gpt *gpt, struct sampler *s, const uint32_t *prompt, int64_t count, int64_t tokens,
                 generate_fn *each, void *user) {
    struct batch *b = batch_new(gpt, false);
    struct generation g = {.sampler = s, .tokens = tokens, .each = each, .user = user};
    batch_add(b, &g, prompt, count);
    while (batch_step(b)) {}
    batch_free(b);
    return g.made;
}

/* --- whole texts --- */

struct collected {
    const struct tokenizer *t;
    int64_t end;
    char *text;
    int64_t size, capacity;
};

static bool add_token(void *user, int64_t token, const float *logits) {
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
