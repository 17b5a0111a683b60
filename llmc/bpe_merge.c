/* Merging one word: again and again the adjacent pair with the lowest rank, of equal ones the leftmost, until
 * no pair of neighbours is in the list of merges. Order: small words, queues for large words, large words.
 *
 * Large words (a line of base64, 100 MB of "a") take O(n log n): see bpe_merge_large. */
#include "tokenizer_impl.h"

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

/* --- Queues: pairs waiting to be merged, taken out by (rank, position) --- */

/* Positions with one rank. Those that arrive in order are simply appended; a sweep over the word at one rank
 * makes nearly all of its new pairs in order, and for them the queue costs O(1). */
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
    uint32_t *fifo_of_rank; /* (rank_capacity) index + 1; 0, as always between words: none */
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

static void queue_push(struct merge_scratch *s, uint32_t rank, uint32_t position) {
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

/* The waiting pair with the lowest (rank, position), as one key. */
static bool queue_pop(struct merge_scratch *s, uint64_t *key) {
    uint64_t late = s->late.count ? s->late.key[0] : UINT64_MAX;
    if (s->ranks.count) {
        struct fifo *f = &s->fifo[(uint32_t)s->ranks.key[0]];
        uint64_t head = (uint64_t)f->rank << 32 | f->position[f->head];
        if (head <= late) {
            if (++f->head == f->count) heap_pop(&s->ranks);
            *key = head;
            return true;
        }
    } else if (late == UINT64_MAX) {
        return false;
    }
    heap_pop(&s->late);
    *key = late;
    return true;
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

/* Ready for the next word; memory of unusual size is given back. */
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

/* --- Large words --- */

#define END_CELL 0x80000000u /* last byte of a token of several bytes: END_CELL | id */
#define INNER    UINT32_MAX  /* neither first nor last byte of a token */

/* The word is an array with one cell per byte. A token's first cell holds its id, its last cell too (marked),
 * so that both neighbours are found from the lengths of the tokens without links. Queue entries are not
 * removed when a merge makes them stale; they are recognised when taken out, because the pair at their
 * position has another rank. */
int64_t bpe_merge_large(const struct tokenizer *t, const uint8_t *word, int64_t size,
                        struct token_buffer *out, struct merge_scratch **scratch) {
    check(size < END_CELL, "bpe_merge_large: %lld bytes in one word", (long long)size);
    if (!*scratch) *scratch = (struct merge_scratch *)xcalloc(1, sizeof **scratch);
    struct merge_scratch *s = *scratch;
    prepare_scratch(t, s, size);
    uint32_t *cell = s->cell;
    for (int64_t i = 0; i < size; i++) cell[i] = t->byte_id[word[i]];
    for (int64_t i = 0; i + 1 < size; i++) {
        const struct merge_slot *m = find_merge(t, cell[i], cell[i + 1]);
        if (m) queue_push(s, m->rank, (uint32_t)i);
    }
    uint64_t key;
    while (queue_pop(s, &key)) {
        int64_t at = (uint32_t)key;
        uint32_t rank = (uint32_t)(key >> 32), left = cell[at];
        if (left != t->merge_pair[2 * rank]) continue;
        int64_t middle = at + token_size(t, left);
        if (middle >= size || cell[middle] != t->merge_pair[2 * rank + 1]) continue;
        uint32_t merged = t->merge_id[rank];
        int64_t next = middle + token_size(t, cell[middle]);
        if (middle - 1 > at) cell[middle - 1] = INNER;
        if (middle < next - 1) cell[middle] = INNER;
        cell[at] = merged;
        cell[next - 1] = merged | END_CELL;
        if (at > 0) {
            uint32_t before = cell[at - 1] & ~END_CELL;
            const struct merge_slot *m = find_merge(t, before, merged);
            if (m) queue_push(s, m->rank, (uint32_t)(at - token_size(t, before)));
        }
        if (next < size) {
            const struct merge_slot *m = find_merge(t, merged, cell[next]);
            if (m) queue_push(s, m->rank, (uint32_t)at);
        }
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
