/* Scores are computed on the host from the queries and keys that a forward pass leaves. Only those of the
 * sources are needed, and of these only which is the largest, so there is no softmax. */
#include "llmc/model/heads.h"

#include "llmc/stories/story_links.h"

#include <stdlib.h>
#include <string.h>

void head_texts_free(struct head_texts *d) {
    free(d->tokens);
    free(d->targets);
    free(d->link);
    free(d->source);
    memset(d, 0, sizeof *d);
}

/* --- stories --- */

/* The tokens [*first, *end) that have bytes of the span. `byte` (count + 1): where each token begins. */
static bool tokens_of(const int64_t *byte, int64_t count, struct story_span span, int64_t *first,
                      int64_t *end) {
    *first = 0;
    while (*first < count && byte[*first + 1] <= span.at) ++*first;
    *end = *first;
    while (*end < count && byte[*end] < span.at + span.size) ++*end;
    return *end > *first;
}

static void add_link(struct head_texts *d, const struct story_links *l, const struct story_link *link,
                     int64_t text, const int64_t *byte, int64_t count) {
    int64_t first, end, from, right = 0;
    if (!tokens_of(byte, count, link->pronoun, &from, &end) || end > d->T) return;
    struct head_link *to = &d->link[d->links];
    *to = (struct head_link){text, from - 1, d->sources, 0};
    for (int i = 0; i < link->nouns_before; i++) {
        if (!tokens_of(byte, count, l->noun[i].span, &first, &end)) continue;
        for (; first < end && first < to->from; first++) {
            d->source =
                (struct head_source *)xrealloc(d->source, (size_t)(d->sources + 1) * sizeof *d->source);
            bool is = l->noun[i].what == link->what;
            d->source[d->sources++] = (struct head_source){(int32_t)first, is};
            to->count++;
            right += is;
        }
    }
    if (right > 0 && right < to->count)
        d->links++;
    else
        d->sources = to->first;
}

/* A story behind the token that begins texts. */
static bool add_story(struct head_texts *d, const struct tokenizer *t, const struct story_links *l,
                      int64_t text, bool persons, struct token_buffer *ids, struct error *err) {
    int32_t *tokens = d->tokens + text * d->T, *targets = d->targets + text * d->T;
    ids->count = 0;
    token_buffer_reserve(ids, 1);
    ids->ids[ids->count++] = (uint32_t)tokenizer_end_of_text(t);
    if (tokenizer_encode(t, l->text, (int64_t)strlen(l->text), ids) < 0)
        return fail(err, "cannot encode a story");
    int64_t *byte = (int64_t *)xcalloc((size_t)ids->count + 1, sizeof *byte);
    for (int64_t i = 0; i < ids->count; i++) {
        int size = 0;
        if (i > 0) tokenizer_token_bytes(t, ids->ids[i], &size);
        byte[i + 1] = byte[i] + size;
    }
    for (int64_t i = 0; i < d->T; i++) {
        tokens[i] = (int32_t)ids->ids[i < ids->count ? i : 0];
        targets[i] = i + 1 < ids->count ? (int32_t)ids->ids[i + 1] : -1;
    }
    for (int i = 0; i < l->count; i++)
        if (l->link[i].thing != persons) add_link(d, l, &l->link[i], text, byte, ids->count);
    free(byte);
    return true;
}

bool head_texts_of_stories(struct head_texts *d, const struct tokenizer *t, int64_t stories, int64_t T,
                           bool persons, struct error *err) {
    enum { SEED = 0x6865616473 }; /* another corpus than any --seed of a run is likely to be */
    struct token_buffer ids = {0};
    bool ok = true;
    memset(d, 0, sizeof *d);
    if (tokenizer_end_of_text(t) < 0) return fail(err, "the tokenizer has no token that begins a text");
    *d = (struct head_texts){.texts = stories, .T = T};
    d->tokens = (int32_t *)xcalloc((size_t)(stories * T), sizeof *d->tokens);
    d->targets = (int32_t *)xcalloc((size_t)(stories * T), sizeof *d->targets);
    d->link = (struct head_link *)xcalloc((size_t)(stories * STORY_LINKS), sizeof *d->link);
    struct story_links *l = (struct story_links *)xmalloc(sizeof *l);
    for (int64_t i = 0; i < stories && ok; i++) {
        story_links_make(l, SEED, (uint64_t)i);
        ok = add_story(d, t, l, i, persons, &ids, err);
        story_links_free(l);
    }
    free(l);
    token_buffer_free(&ids);
    if (!ok) head_texts_free(d);
    return ok;
}

/* --- passes --- */

/* Makes texts [first, first + B) the batch; behind the last text, the last one again, without targets.
 * Returns how many there are. */
static int64_t set_batch(const struct head_texts *d, struct gpt *g, int64_t first) {
    int64_t B = g->options.B, T = d->T, n = min_i64(B, d->texts - first);
    int32_t *tokens = (int32_t *)xmalloc((size_t)(B * T) * sizeof *tokens),
            *targets = (int32_t *)xmalloc((size_t)(B * T) * sizeof *targets);
    check(g->options.T == T, "texts of %lld tokens for a model of %lld", (long long)T,
          (long long)g->options.T);
    for (int64_t b = 0; b < B; b++) {
        int64_t text = min_i64(first + b, d->texts - 1);
        memcpy(tokens + b * T, d->tokens + text * T, (size_t)T * sizeof *tokens);
        memcpy(targets + b * T, d->targets + text * T, (size_t)T * sizeof *targets);
        for (int64_t t = 0; t < T && b >= n; t++) targets[b * T + t] = -1;
    }
    gpt_set_batch(g, tokens, targets);
    free(tokens);
    free(targets);
    return n;
}

/* Whether the source with the largest score is right; `qkv`: the rows of the text. */
static bool finds(const struct head_texts *d, const struct head_link *link, const struct gpt_config *c,
                  const float *qkv, int64_t h) {
    int64_t HS = c->head_size, Q = c->heads * HS, row = Q + 2 * c->kv_heads * HS;
    const float *q = qkv + link->from * row + h * HS, *k = qkv + Q + h * c->kv_heads / c->heads * HS;
    const struct head_source *best = NULL;
    double most = 0.0;
    for (int64_t i = 0; i < link->count; i++) {
        const struct head_source *source = &d->source[link->first + i];
        double score = 0.0;
        for (int64_t x = 0; x < HS; x++) score += (double)q[x] * (double)k[source->token * row + x];
        if (best && score <= most) continue;
        best = source;
        most = score;
    }
    return best && best->right;
}

void head_hits(int64_t *hits, const struct head_texts *d, struct gpt *g) {
    const struct gpt_config *c = &g->config;
    int64_t next = 0; /* links are in the order of their texts */
    memset(hits, 0, (size_t)(c->layers * c->heads) * sizeof *hits);
    for (int64_t first = 0; first < d->texts; first += g->options.B) {
        int64_t n = set_batch(d, g, first), end = next;
        gpt_forward(g, 0, d->T);
        while (end < d->links && d->link[end].text < first + n) end++;
        for (int64_t l = 0; l < c->layers; l++) {
            struct tensor t = gpt_act(g, A_QKV, l);
            float *qkv = ctx_host_copy(g->ctx, t);
            for (int64_t i = next; i < end; i++) {
                const struct head_link *link = &d->link[i];
                const float *rows = qkv + (link->text - first) * (tensor_count(&t) / g->options.B);
                for (int64_t h = 0; h < c->heads; h++) hits[l * c->heads + h] += finds(d, link, c, rows, h);
            }
            free(qkv);
        }
        next = end;
    }
}

double head_loss(const struct head_texts *d, struct gpt *g, const struct ablation *a) {
    int64_t B = g->options.B, targets = 0;
    double sum = 0.0;
    ablate(g, a);
    for (int64_t first = 0; first < d->texts; first += B) {
        int64_t n = set_batch(d, g, first);
        gpt_forward(g, 0, d->T);
        gpt_loss(g);
        float *losses = ctx_host_copy(g->ctx, gpt_act(g, A_LOSSES, 0));
        for (int64_t i = 0; i < n * d->T; i++) {
            bool is = d->targets[first * d->T + i] >= 0;
            sum += is ? (double)losses[i] : 0.0;
            targets += is;
        }
        free(losses);
    }
    ablate(g, NULL);
    return sum / (double)max_i64(1, targets);
}

double head_chance(const struct head_texts *d) {
    double sum = 0.0;
    for (int64_t i = 0; i < d->links; i++) {
        int64_t right = 0;
        for (int64_t k = 0; k < d->link[i].count; k++) right += d->source[d->link[i].first + k].right;
        sum += (double)right / (double)d->link[i].count;
    }
    return sum;
}

int64_t head_best(const int64_t *hits, const struct gpt_config *c) {
    int64_t best = 0;
    for (int64_t i = 1; i < c->layers * c->heads; i++)
        if (hits[i] > hits[best]) best = i;
    return best;
}
