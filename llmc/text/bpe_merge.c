/* Merges the bytes of one word into tokens: the adjacent pair with the lowest rank becomes one token, of
 * equal ranks the leftmost, until no two neighbours are in the list of merges.
 *
 * A small word is scanned for the best pair after each merge, in O(n^2). A large one (a line of base64, 100
 * MB of "a") keeps its pairs in queues and takes O(n log n): see bpe_merge_large. */
#include "llmc/text/bpe_merge.h"

#include <stdlib.h>
#include <string.h>

static inline uint32_t rank_of(const struct tokenizer *t, uint32_t left, uint32_t right) {
    const struct merge_slot *s = find_merge(t, left, right);
    return s ? s->rank : NO_TOKEN;
}

int bpe_merge_small(const struct tokenizer *t, const uint8_t *word, int size, uint32_t *ids) {
    uint32_t rank[SMALL_WORD]; /* rank[i] of the pair (ids[i], ids[i+1]) */
    check(size <= SMALL_WORD, "bpe_merge_small: %d bytes", size);
    int n = size;
    for (int i = 0; i < n; i++) ids[i] = t->byte_id[word[i]];
    for (int i = 0; i + 1 < n; i++) rank[i] = rank_of(t, ids[i], ids[i + 1]);
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == NO_TOKEN) break;
        ids[best] = t->merge_id[rank[best]];
        for (int i = best + 1; i + 1 < n; i++) ids[i] = ids[i + 1];
        for (int i = best + 1; i + 2 < n; i++) rank[i] = rank[i + 1];
        n--;
        if (best + 1 < n) rank[best] = rank_of(t, ids[best], ids[best + 1]);
        if (best > 0) rank[best - 1] = rank_of(t, ids[best - 1], ids[best]);
    }
    return n;
}

/* --- queues: pairs waiting to be merged, taken out by (rank, position) --- */

/* Positions of one rank. Those that arrive in ascending order are appended; a sweep over the word at one
 * rank makes nearly all of its new pairs in that order, and for them the queue costs O(1). */
struct fifo {
    uint32_t rank, head, count, capacity;
    uint32_t *position;
};
struct heap {
    uint64_t *key;
    int64_t count, capacity;
};
struct merge_scratch {
    uint32_t *cell;
    int64_t cell_capacity;
    int rank_capacity;
    uint32_t *fifo_of_rank; /* (rank_capacity) index + 1; 0: none, as for every rank between words */
    struct fifo *fifo;
    uint32_t fifo_count, fifo_capacity;
    struct heap ranks; /* rank << 32 | fifo: the non-empty fifos */
    struct heap late;  /* rank << 32 | position: pairs that arrived out of order */
};

static void heap_push(struct heap *h, uint64_t key) {
    if (h->count == h->capacity) {
        h->capacity = h->capacity ? 2 * h->capacity : 64;
        h->key = (uint64_t *)xrealloc(h->key, (size_t)h->capacity * sizeof *h->key);
    }
    int64_t i = h->count++;
    for (; i > 0 && h->key[(i - 1) / 2] > key; i = (i - 1) / 2) h->key[i] = h->key[(i - 1) / 2];
    h->key[i] = key;
}

static void heap_pop(struct heap *h) {
    uint64_t last = h->key[--h->count];
    int64_t i = 0, child;
    while ((child = 2 * i + 1) < h->count) {
        if (child + 1 < h->count && h->key[child + 1] < h->key[child]) child++;
        if (h->key[child] >= last) break;
        h->key[i] = h->key[child];
        i = child;
    }
    h->key[i] = last;
}

static void queue_push_slowly(struct merge_scratch *s, uint32_t rank, uint32_t position) {
    uint32_t index = s->fifo_of_rank[rank];
    if (!index) {
        if (s->fifo_count == s->fifo_capacity) {
            s->fifo_capacity = s->fifo_capacity ? 2 * s->fifo_capacity : 64;
            s->fifo = (struct fifo *)xrealloc(s->fifo, s->fifo_capacity * sizeof *s->fifo);
            memset(s->fifo + s->fifo_count, 0, (s->fifo_capacity - s->fifo_count) * sizeof *s->fifo);
        }
        struct fifo *f = &s->fifo[s->fifo_count];
        f->rank = rank;
        f->head = f->count = 0;
        index = s->fifo_of_rank[rank] = ++s->fifo_count;
    }
    struct fifo *f = &s->fifo[index - 1];
    if (f->head == f->count) {
        f->head = f->count = 0;
        heap_push(&s->ranks, (uint64_t)rank << 32 | (index - 1));
    } else if (f->position[f->count - 1] > position) {
        heap_push(&s->late, (uint64_t)rank << 32 | position);
        return;
    }
    if (f->count == f->capacity) {
        f->capacity = f->capacity ? 2 * f->capacity : 16;
        f->position = (uint32_t *)xrealloc(f->position, (size_t)f->capacity * sizeof *f->position);
    }
    f->position[f->count++] = position;
}

static inline void queue_push(struct merge_scratch *s, uint32_t rank, uint32_t position) {
    uint32_t index = s->fifo_of_rank[rank];
    struct fifo *f = index ? &s->fifo[index - 1] : NULL;
    if (f && f->head < f->count && f->count < f->capacity && f->position[f->count - 1] <= position)
        f->position[f->count++] = position;
    else
        queue_push_slowly(s, rank, position);
}

static void prepare_scratch(const struct tokenizer *t, struct merge_scratch *s, int64_t size) {
    if (s->rank_capacity < t->merge_count) {
        free(s->fifo_of_rank);
        s->fifo_of_rank = (uint32_t *)xcalloc((size_t)t->merge_count, sizeof *s->fifo_of_rank);
        s->rank_capacity = t->merge_count;
    }
    if (s->cell_capacity < size) {
        free(s->cell);
        s->cell_capacity = size;
        s->cell = (uint32_t *)xmalloc((size_t)size * sizeof *s->cell);
    }
}

/* Empties the queues for the next word and frees memory of unusual size. */
static void reset_scratch(struct merge_scratch *s) {
    enum { KEEP = 1 << 16 };
    for (uint32_t i = 0; i < s->fifo_count; i++) {
        s->fifo_of_rank[s->fifo[i].rank] = 0;
        if (s->fifo[i].capacity > KEEP) {
            free(s->fifo[i].position);
            s->fifo[i].position = NULL;
            s->fifo[i].capacity = 0;
        }
    }
    s->fifo_count = 0;
    if (s->cell_capacity > KEEP) {
        free(s->cell);
        s->cell = NULL;
        s->cell_capacity = 0;
    }
}

/* --- large words --- */

#define END_CELL 0x80000000u /* last byte of a token of several bytes: END_CELL | id */
#define INNER    UINT32_MAX  /* neither first nor last byte of a token */

/* The word is an array with one cell per byte. The first and the last cell of a token hold its id, the last
 * one marked, so that a neighbour is found from the length of a token, without links. A merge leaves stale
 * entries in the queues: an entry is valid only if its pair still stands at its position when it is taken
 * out. */
struct large_word {
    const struct tokenizer *t;
    struct merge_scratch *s;
    uint32_t *cell; /* (size) */
    int64_t size;
};

/* One entry of the list of merges. It caches the last neighbours and their merges, because in runs they
 * repeat. */
struct rule {
    uint32_t rank, left, right, merged;
    int64_t left_bytes, right_bytes;
    uint32_t before, after; /* NO_TOKEN: none yet */
    const struct merge_slot *before_slot, *after_slot;
};

static struct rule rule_of(const struct tokenizer *t, uint32_t rank) {
    uint32_t left = t->merge_pair[2 * rank], right = t->merge_pair[2 * rank + 1];
    return (struct rule){.rank = rank,
                         .left = left,
                         .right = right,
                         .merged = t->merge_id[rank],
                         .left_bytes = token_size(t, left),
                         .right_bytes = token_size(t, right),
                         .before = NO_TOKEN,
                         .after = NO_TOKEN};
}

static inline bool stands_at(const struct large_word *w, const struct rule *r, int64_t at) {
    return w->cell[at] == r->left && at + r->left_bytes < w->size && w->cell[at + r->left_bytes] == r->right;
}

/* Merges the pair at `at`, which must stand there. `next_at` is the position that this rule merges next
 * unless a lower rank comes up, or -1. */
static inline void apply_rule(struct large_word *w, struct rule *r, int64_t at, int64_t next_at) {
    uint32_t *cell = w->cell;
    int64_t middle = at + r->left_bytes, end = middle + r->right_bytes;
    if (middle - 1 > at) cell[middle - 1] = INNER;
    if (middle < end - 1) cell[middle] = INNER;
    cell[at] = r->merged;
    cell[end - 1] = r->merged | END_CELL;
    bool lower = false;
    if (at > 0) {
        uint32_t before = cell[at - 1] & ~END_CELL;
        if (before != r->before) {
            r->before = before;
            r->before_slot = find_merge(w->t, before, r->merged);
        }
        const struct merge_slot *m = r->before_slot;
        if (m) {
            queue_push(w->s, m->rank, (uint32_t)(at - token_size(w->t, before)));
            lower = m->rank < r->rank;
        }
    }
    if (end < w->size) {
        uint32_t after = cell[end];
        if (after != r->after) {
            r->after = after;
            r->after_slot = find_merge(w->t, r->merged, after);
        }
        const struct merge_slot *m = r->after_slot;
        /* Not queued if `after` is about to become part of the next token. */
        if (m && (lower || m->rank < r->rank || next_at != end || !stands_at(w, r, end)))
            queue_push(w->s, m->rank, (uint32_t)at);
    }
}

/* Merges at the positions of the lowest rank in ascending order, until they end or another entry comes
 * first. */
static void sweep(struct large_word *w) {
    struct merge_scratch *s = w->s;
    const uint32_t index = (uint32_t)s->ranks.key[0];
    struct rule r = rule_of(w->t, s->fifo[index].rank);
    do {
        struct fifo *f = &s->fifo[index];
        int64_t at = f->position[f->head];
        if (s->late.count && s->late.key[0] < ((uint64_t)r.rank << 32 | (uint64_t)at)) return;
        bool stands = stands_at(w, &r, at);
        int64_t end = stands ? at + r.left_bytes + r.right_bytes : at + 1;
        /* Positions inside the new token are stale. */
        while (f->head < f->count && f->position[f->head] < end) f->head++;
        int64_t next_at = f->head < f->count ? (int64_t)f->position[f->head] : -1;
        if (next_at < 0) heap_pop(&s->ranks);
        if (stands) apply_rule(w, &r, at, next_at);
        if (next_at < 0) return;
    } while ((uint32_t)s->ranks.key[0] == index);
}

int64_t bpe_merge_large(const struct tokenizer *t, const uint8_t *word, int64_t size,
                        struct token_buffer *out, struct merge_scratch **scratch) {
    check(size < END_CELL, "bpe_merge_large: %lld bytes in one word", (long long)size);
    if (!*scratch) *scratch = (struct merge_scratch *)xcalloc(1, sizeof **scratch);
    struct merge_scratch *s = *scratch;
    prepare_scratch(t, s, size);
    uint32_t *cell = s->cell;
    struct large_word w = {t, s, cell, size};
    cell[0] = t->byte_id[word[0]];
    const struct merge_slot *m = NULL;
    for (int64_t i = 1; i < size; i++) {
        cell[i] = t->byte_id[word[i]];
        if (i == 1 || word[i] != word[i - 1] || word[i - 1] != word[i - 2])
            m = find_merge(t, cell[i - 1], cell[i]);
        if (m) queue_push(s, m->rank, (uint32_t)(i - 1));
    }
    while (s->ranks.count || s->late.count) {
        if (s->ranks.count) sweep(&w);
        if (!s->late.count) continue;
        uint64_t late = s->late.key[0], head = UINT64_MAX;
        if (s->ranks.count) {
            const struct fifo *f = &s->fifo[(uint32_t)s->ranks.key[0]];
            head = (uint64_t)f->rank << 32 | f->position[f->head];
        }
        if (late >= head) continue;
        heap_pop(&s->late);
        struct rule r = rule_of(t, (uint32_t)(late >> 32));
        if (stands_at(&w, &r, (uint32_t)late)) apply_rule(&w, &r, (uint32_t)late, -1);
    }
    int64_t n = 0;
    for (int64_t i = 0, step; i < size; i += step) { /* packed in place: n <= i */
        step = token_size(t, cell[i]);
        cell[n++] = cell[i];
    }
    token_buffer_reserve(out, n);
    memcpy(out->ids + out->count, cell, (size_t)n * sizeof *cell);
    out->count += n;
    reset_scratch(s);
    return n;
}

void merge_scratch_free(struct merge_scratch *s) {
    if (!s) return;
    for (uint32_t i = 0; i < s->fifo_capacity; i++) free(s->fifo[i].position);
    free(s->fifo);
    free(s->fifo_of_rank);
    free(s->cell);
    free(s->ranks.key);
    free(s->late.key);
    free(s);
}
