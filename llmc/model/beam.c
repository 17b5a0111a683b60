/* Beam search: see beam.h. Every beginning has a cache of the model. When one has several successors, the
 * first goes on in its cache, and the others in copies, for which there is room: each successor too many
 * means that another beginning has none. */
#include "llmc/model/beam.h"

#include "llmc/model/sampler.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct beginning {
    uint32_t *ids; /* (tokens) */
    int64_t length, cache;
    double log_p;
};

struct candidate {
    int64_t parent, token;
    double log_p;
};

struct search {
    struct gpt *gpt;
    const struct beam_options *o;
    int64_t count; /* of the prompt */
    struct beginning *now, *next;
    int64_t alive, finished;
    struct candidate *best; /* (2 * width), the best first */
    int64_t candidates;
    float *logits; /* (width, Vp) */
    uint32_t *out;
    int64_t out_length;
    double out_score;
};

static bool ends(const struct beam_options *o, int64_t token) {
    for (int64_t i = 0; i < o->end_count; i++)
        if (o->ends[i] == token) return true;
    return false;
}

static double score_of(const struct search *s, double log_p, int64_t length) {
    return log_p / pow((5.0 + (double)length) / 6.0, s->o->length_penalty);
}

static void finish(struct search *s, const struct beginning *b, double log_p, int64_t length) {
    double score = score_of(s, log_p, length);
    if (s->finished++ && score <= s->out_score) return;
    s->out_score = score;
    s->out_length = b->length;
    if (b->length) memcpy(s->out, b->ids, (size_t)b->length * sizeof *s->out);
}

/* Equal ones stay in the order of their beginnings and tokens. */
static void consider(struct search *s, struct candidate c) {
    int64_t most = 2 * s->o->width, i = s->candidates;
    if (i == most && !(c.log_p > s->best[most - 1].log_p)) return;
    if (i == most) i--;
    for (; i > 0 && c.log_p > s->best[i - 1].log_p; i--) s->best[i] = s->best[i - 1];
    s->best[i] = c;
    s->candidates = min_i64(most, s->candidates + 1);
}

static void find_candidates(struct search *s) {
    int64_t Vp = gpt_padded_vocab(&s->gpt->config);
    s->candidates = 0;
    for (int64_t i = 0; i < s->alive; i++) {
        const float *x = s->logits + i * Vp;
        double lse = log_sum_exp(x, s->o->V);
        for (int64_t v = 0; v < s->o->V; v++)
            consider(s, (struct candidate){i, v, s->now[i].log_p + (double)x[v] - lse});
    }
}

static void copy_cache(struct search *s, int64_t to, int64_t from, int64_t positions) {
    struct gpt *g = s->gpt;
    for (int64_t l = 0; l < g->config.layers; l++) {
        gpt_use_cache(g, from);
        struct tensor a = gpt_act(g, A_QKV, l);
        gpt_use_cache(g, to);
        struct tensor b = gpt_act(g, A_QKV, l);
        size_t bytes = (size_t)(positions * tensor_cols(&a)) * dtype_size(a.dtype);
        g->ctx->device->copy(g->ctx->device, b.data, a.data, bytes, g->ctx->stream);
    }
}

/* The best candidates become the beginnings, each with a cache. */
static void choose(struct search *s) {
    int64_t width = s->o->width, n = 0, length = s->now[0].length, known = s->count + length;
    bool *used = (bool *)xcalloc((size_t)width, sizeof *used),
         *gone_on = (bool *)xcalloc((size_t)width, sizeof *gone_on);
    for (int64_t i = 0; i < s->candidates && n < width; i++) {
        const struct candidate *c = &s->best[i];
        const struct beginning *from = &s->now[c->parent];
        if (ends(s->o, c->token)) {
            if (i < width) finish(s, from, c->log_p, length + 1);
            continue;
        }
        struct beginning *b = &s->next[n++];
        if (length) memcpy(b->ids, from->ids, (size_t)length * sizeof *b->ids);
        b->ids[length] = (uint32_t)c->token;
        b->length = length + 1;
        b->log_p = c->log_p;
        b->cache = gone_on[c->parent] ? -1 : from->cache;
        gone_on[c->parent] = true;
        if (b->cache >= 0)
            used[b->cache] = true;
        else
            b->cache = -1 - from->cache;
    }
    for (int64_t i = 0, room = 0; i < n; i++) {
        if (s->next[i].cache >= 0) continue;
        while (used[room]) room++;
        copy_cache(s, room, -1 - s->next[i].cache, known);
        s->next[i].cache = room;
        used[room] = true;
    }
    struct beginning *swap = s->now;
    s->now = s->next;
    s->next = swap;
    s->alive = n;
    free(used);
    free(gone_on);
}

static void compute(struct search *s) {
    struct gpt_next *next = (struct gpt_next *)xcalloc((size_t)s->alive, sizeof *next);
    for (int64_t i = 0; i < s->alive; i++) {
        const struct beginning *b = &s->now[i];
        next[i] = (struct gpt_next){b->cache, s->count + b->length - 1, (int32_t)b->ids[b->length - 1]};
    }
    gpt_forward_next(s->gpt, next, s->alive);
    gpt_next_logits(s->gpt, s->alive, s->logits);
    free(next);
}

static void read_prompt(struct search *s, const uint32_t *prompt) {
    int32_t *ids = (int32_t *)xcalloc((size_t)s->gpt->options.T, sizeof *ids), prefix = (int32_t)s->count;
    for (int64_t i = 0; i < s->count; i++) ids[i] = (int32_t)prompt[i];
    gpt_use_cache(s->gpt, 0);
    gpt_set_batch(s->gpt, ids, NULL);
    gpt_set_prefix(s->gpt, &prefix);
    gpt_forward(s->gpt, 0, s->count);
    gpt_logits(s->gpt, s->count - 1, s->logits);
    s->alive = 1; /* without a token, in cache 0 */
    free(ids);
}

static struct beginning *new_beginnings(const struct beam_options *o) {
    struct beginning *b = (struct beginning *)xcalloc((size_t)o->width, sizeof *b);
    for (int64_t i = 0; i < o->width; i++) b[i].ids = (uint32_t *)xcalloc((size_t)o->tokens, sizeof *b->ids);
    return b;
}

static void free_beginnings(struct beginning *b, int64_t width) {
    for (int64_t i = 0; i < width; i++) free(b[i].ids);
    free(b);
}

int64_t beam_search(struct gpt *gpt, const struct beam_options *o, const uint32_t *prompt, int64_t count,
                    uint32_t *out, double *score) {
    check(o->width >= 2 && o->width <= gpt->options.caches && o->tokens >= 1 && count >= 1 &&
              count + o->tokens <= gpt->options.T,
          "beam_search: width %" PRId64 " of %" PRId64 " caches, %" PRId64 " + %" PRId64
          " tokens of %" PRId64,
          o->width, gpt->options.caches, count, o->tokens, gpt->options.T);
    struct search s = {.gpt = gpt, .o = o, .count = count, .out = out};
    s.now = new_beginnings(o);
    s.next = new_beginnings(o);
    s.best = (struct candidate *)xcalloc((size_t)(2 * o->width), sizeof *s.best);
    s.logits = (float *)xmalloc((size_t)(o->width * gpt_padded_vocab(&gpt->config)) * sizeof *s.logits);
    read_prompt(&s, prompt);
    while (true) {
        find_candidates(&s);
        choose(&s);
        if (s.alive == 0 || s.now[0].length == o->tokens) break;
        /* log P only falls, and the longest text would suffer least from it */
        if (s.finished && s.out_score >= score_of(&s, s.now[0].log_p, o->tokens)) break;
        compute(&s);
    }
    for (int64_t i = 0; i < s.alive && s.now[i].length == o->tokens; i++)
        finish(&s, &s.now[i], s.now[i].log_p, s.now[i].length);
    free_beginnings(s.now, o->width);
    free_beginnings(s.next, o->width);
    free(s.best);
    free(s.logits);
    *score = s.out_score;
    return s.out_length;
}
