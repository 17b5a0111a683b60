/* Trains byte-level BPE: counts the distinct words of a text in parallel, then merges the most frequent
 * pair of neighbours again and again.
 *
 * The merges equal those of Hugging Face's BpeTrainer with min_frequency 2, down to ties and repeated
 * tokens. The work differs: a merge visits only the places where its pair stands, not the words that hold
 * it, so one word of 100 MB costs no more than the same bytes in short words. */
#include "llmc/text/bpe_train.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/text/bpe_words.h"
#include "llmc/text/tokenizer_tables.h"

/* --- counting --- */

enum {
    SHARDS = 64,
    LOCAL_WORDS = 1 << 16,  /* a thread counts this many words alone before it adds them to the shards */
    LOCAL_BYTES = 8 << 20,  /* or this many bytes */
    PIECE = 1 << 20,        /* bytes of text a thread takes at a time */
    LONGEST_WORD = 1 << 30, /* as in encoding */
    MIN_COUNT = 2           /* a pair that occurs less often is not merged */
};

struct bpe_trainer {
    struct pretokenizer pre;
    struct {
        omp_lock_t lock;
        struct word_table words;
    } shard[SHARDS];
};

struct counter {
    struct bpe_trainer *trainer;
    struct word_table local;
};

static void flush_counter(struct counter *c) {
    for (const struct word *w = NULL; (w = word_table_next(&c->local, w));) {
        uint64_t hash = XXH3_64bits(w->bytes, w->size);
        int shard = (int)(hash >> 58);
        omp_set_lock(&c->trainer->shard[shard].lock);
        word_table_add(&c->trainer->shard[shard].words, w->bytes, w->size, (uint32_t)hash, w->count);
        omp_unset_lock(&c->trainer->shard[shard].lock);
    }
    word_table_free(&c->local);
}

static void count_word(void *arg, const uint8_t *word, int64_t size) {
    struct counter *c = (struct counter *)arg;
    for (int64_t n; size > 0; word += n, size -= n) {
        n = min_i64(size, LONGEST_WORD);
        word_table_add(&c->local, word, (uint32_t)n, (uint32_t)XXH3_64bits(word, (size_t)n), 1);
    }
    if (c->local.count >= LOCAL_WORDS || c->local.used >= LOCAL_BYTES) flush_counter(c);
}

/* The documents that are still to be counted. */
struct cursor {
    const struct pretokenizer *pre;
    const struct text_span *docs;
    int64_t count, doc, offset; /* the next byte is docs[doc].data[offset] */
};
/* docs[doc] from `begin` to `end`, or all of docs[doc] to docs[last - 1]. */
struct piece {
    int64_t doc, last, begin, end;
};

static bool take_piece(struct cursor *c, struct piece *p) {
    if (c->doc == c->count) return false;
    int64_t size = c->docs[c->doc].size;
    *p = (struct piece){.doc = c->doc, .last = c->doc + 1, .begin = c->offset, .end = size};
    if (size - c->offset > 2 * PIECE)
        p->end = pretokenize_safe_cut(c->pre, c->docs[c->doc].data, size, c->offset + PIECE);
    if (p->end < size) {
        c->offset = p->end;
        return true;
    }
    int64_t total = size - c->offset;
    if (c->offset == 0)
        while (p->last < c->count && (total += c->docs[p->last].size) <= PIECE) p->last++;
    c->doc = p->last;
    c->offset = 0;
    return true;
}

static void count_piece(struct counter *c, const struct cursor *cursor, const struct piece *p) {
    const struct pretokenizer *pre = &c->trainer->pre;
    for (int64_t doc = p->doc; doc < p->last; doc++) {
        const struct text_span *s = &cursor->docs[doc];
        int64_t begin = doc == p->doc ? p->begin : 0, end = doc == p->doc ? p->end : s->size;
        pretokenize(pre, (const uint8_t *)s->data + begin, end - begin, count_word, c);
    }
}

/* --- pair counts --- */

struct pair_count {
    uint64_t pair; /* left << 32 | right; UINT64_MAX when empty */
    int64_t count;
};
struct pair_table {
    struct pair_count *slots;
    uint64_t mask; /* 0 before the first pair */
    int64_t used;
};

static struct pair_count *find_pair(const struct pair_table *t, uint64_t pair) {
    for (uint64_t i = mix64(pair) >> 7;; i++) {
        struct pair_count *s = &t->slots[i & t->mask];
        if (s->pair == pair || s->pair == UINT64_MAX) return s;
    }
}

/* Makes room for `more` further pairs. Pairs whose count fell to zero are dropped; should one return, it
 * starts from zero again. */
static void reserve_pairs(struct pair_table *t, int64_t more) {
    if (t->mask && t->used + more <= (int64_t)(t->mask / 4 * 3)) return;
    int64_t live = 0;
    for (uint64_t i = 0; t->mask && i <= t->mask; i++)
        live += t->slots[i].pair != UINT64_MAX && t->slots[i].count != 0;
    uint64_t slots = 1024;
    while ((int64_t)(slots / 2) < live + more) slots *= 2;
    struct pair_table fresh = {(struct pair_count *)xmalloc(slots * sizeof *fresh.slots), slots - 1, live};
    memset(fresh.slots, 0xff, slots * sizeof *fresh.slots);
    for (uint64_t i = 0; t->mask && i <= t->mask; i++) {
        const struct pair_count *s = &t->slots[i];
        if (s->pair != UINT64_MAX && s->count != 0) *find_pair(&fresh, s->pair) = *s;
    }
    free(t->slots);
    *t = fresh;
}

/* reserve_pairs must have been called. */
static void add_to_pair(struct pair_table *t, uint64_t pair, int64_t change) {
    struct pair_count *s = find_pair(t, pair);
    if (s->pair == UINT64_MAX) {
        *s = (struct pair_count){pair, 0};
        t->used++;
    }
    s->count += change;
}

static int64_t count_of_pair(const struct pair_table *t, uint64_t pair) {
    const struct pair_count *s = find_pair(t, pair);
    return s->pair == pair ? s->count : 0;
}

static uint64_t make_pair(uint32_t left, uint32_t right) { return (uint64_t)left << 32 | right; }

/* --- candidates: a heap of pairs with the places where they stood when they came up --- */

struct candidate {
    int64_t count; /* may be out of date, then too large */
    uint64_t pair;
    uint32_t *at; /* (n) ascending, owned */
    uint32_t n;
};
struct candidates {
    struct candidate *c;
    int64_t count, capacity;
};

static bool comes_before(const struct candidate *a, const struct candidate *b) {
    return a->count != b->count ? a->count > b->count : a->pair < b->pair;
}

static void sink_top(struct candidates *h) {
    struct candidate top = h->c[0];
    int64_t i = 0, child;
    while ((child = 2 * i + 1) < h->count) {
        if (child + 1 < h->count && comes_before(&h->c[child + 1], &h->c[child])) child++;
        if (!comes_before(&h->c[child], &top)) break;
        h->c[i] = h->c[child];
        i = child;
    }
    h->c[i] = top;
}

static void push_candidate(struct candidates *h, struct candidate c) {
    if (h->count == h->capacity) {
        h->capacity = h->capacity + h->capacity / 2 + 1024;
        h->c = (struct candidate *)xrealloc(h->c, (size_t)h->capacity * sizeof *h->c);
    }
    int64_t i = h->count++;
    for (; i > 0 && comes_before(&c, &h->c[(i - 1) / 2]); i = (i - 1) / 2) h->c[i] = h->c[(i - 1) / 2];
    h->c[i] = c;
}

/* The pair to merge next, which the caller then owns; false if none occurs MIN_COUNT times. */
static bool pop_candidate(struct candidates *h, const struct pair_table *pairs, struct candidate *best) {
    while (h->count > 0) {
        struct candidate *top = &h->c[0];
        int64_t count = count_of_pair(pairs, top->pair);
        bool current = count == top->count;
        if (!current && count >= MIN_COUNT) {
            top->count = count;
            sink_top(h);
            continue;
        }
        *best = *top;
        h->c[0] = h->c[--h->count];
        if (h->count > 0) sink_top(h);
        if (current) return true;
        free(best->at);
    }
    return false;
}

/* --- one merge --- */

#define END_CELL 0x80000000u /* last byte of a token of several bytes: END_CELL | id */
#define INNER    UINT32_MAX  /* neither first nor last byte of a token */

/* One byte of a distinct word. The first and the last cell of a token hold its id, the last one marked, so
 * that both neighbours are found from the lengths of the tokens. */
struct cell {
    uint32_t token, word; /* word: index into word_count; cells of different words are no neighbours */
};
struct place {
    uint32_t id, at;
};
/* Pairs that a merge made or broke on one side of the new token, by the id of the neighbour. */
struct side {
    struct neighbour {
        int64_t sum; /* occurrences in the text */
        uint32_t n, filled;
        uint32_t *at;
    } * of; /* (vocab_size) all zero between merges */
    struct place *places;
    uint32_t *touched;
    int64_t place_count, touched_count, capacity;
};
struct merging {
    struct cell *cell; /* (bytes + 2) one of padding at both ends */
    int64_t *word_count;
    uint32_t *token_bytes; /* (vocab_size) */
    struct pair_table pairs;
    struct candidates heap;
    struct side left, right;
};

static void note(struct side *s, uint32_t id, int64_t at, int64_t count) {
    struct neighbour *x = &s->of[id];
    if (x->n++ == 0) s->touched[s->touched_count++] = id;
    x->sum += count;
    s->places[s->place_count++] = (struct place){id, (uint32_t)at};
}

static void side_reserve(struct side *s, int64_t n) {
    if (n <= s->capacity) return;
    s->capacity = n + n / 2;
    s->places = (struct place *)xrealloc(s->places, (size_t)s->capacity * sizeof *s->places);
    s->touched = (uint32_t *)xrealloc(s->touched, (size_t)s->capacity * sizeof *s->touched);
}

/* Replaces the pair by `merged` wherever it still stands, and records the neighbours. */
static void replace_pair(struct merging *m, const struct candidate *c, uint32_t merged) {
    const uint32_t l = (uint32_t)(c->pair >> 32), r = (uint32_t)c->pair;
    const uint32_t l_bytes = m->token_bytes[l], r_bytes = m->token_bytes[r];
    struct cell *cell = m->cell;
    for (uint32_t k = 0; k < c->n; k++) {
        enum { AHEAD = 12 };
        if (k + AHEAD < c->n) __builtin_prefetch(&cell[c->at[k + AHEAD]], 1);
        int64_t at = c->at[k], middle = at + l_bytes, end = middle + r_bytes;
        if (cell[at].token != l) continue;
        uint32_t word = cell[at].word;
        if (cell[middle].word != word || cell[middle].token != r) continue;
        if (middle - 1 > at) cell[middle - 1].token = INNER;
        if (middle < end - 1) cell[middle].token = INNER;
        cell[at].token = merged;
        cell[end - 1].token = merged | END_CELL;
        int64_t count = m->word_count[word];
        if (cell[at - 1].word == word) {
            uint32_t before = cell[at - 1].token & ~END_CELL;
            note(&m->left, before, at - m->token_bytes[before], count);
        }
        if (cell[end].word == word) note(&m->right, cell[end].token, at, count);
    }
}

/* Makes candidates of the new pairs of one side. */
static void push_new_pairs(struct merging *m, struct side *s, uint32_t merged, bool is_left) {
    for (int64_t i = 0; i < s->touched_count; i++) {
        uint32_t id = s->touched[i];
        struct neighbour *x = &s->of[id];
        if (count_of_pair(&m->pairs, is_left ? make_pair(id, merged) : make_pair(merged, id)) >= MIN_COUNT)
            x->at = (uint32_t *)xmalloc(x->n * sizeof *x->at);
    }
    for (int64_t i = 0; i < s->place_count; i++) {
        struct neighbour *x = &s->of[s->places[i].id];
        if (x->at) x->at[x->filled++] = s->places[i].at;
    }
    for (int64_t i = 0; i < s->touched_count; i++) {
        uint32_t id = s->touched[i];
        struct neighbour *x = &s->of[id];
        uint64_t pair = is_left ? make_pair(id, merged) : make_pair(merged, id);
        if (x->at)
            push_candidate(&m->heap, (struct candidate){count_of_pair(&m->pairs, pair), pair, x->at, x->n});
        memset(x, 0, sizeof *x);
    }
    s->place_count = s->touched_count = 0;
}

static void merge(struct merging *m, const struct candidate *c, uint32_t merged) {
    uint32_t l = (uint32_t)(c->pair >> 32), r = (uint32_t)c->pair;
    side_reserve(&m->left, c->n);
    side_reserve(&m->right, c->n);
    replace_pair(m, c, merged);
    reserve_pairs(&m->pairs, 2 * (m->left.touched_count + m->right.touched_count));
    for (int64_t i = 0; i < m->left.touched_count; i++) {
        uint32_t id = m->left.touched[i];
        add_to_pair(&m->pairs, make_pair(id, merged), m->left.of[id].sum);
        add_to_pair(&m->pairs, make_pair(id, l), -m->left.of[id].sum);
    }
    for (int64_t i = 0; i < m->right.touched_count; i++) {
        uint32_t id = m->right.touched[i];
        add_to_pair(&m->pairs, make_pair(merged, id), m->right.of[id].sum);
        add_to_pair(&m->pairs, make_pair(r, id), -m->right.of[id].sum);
    }
    push_new_pairs(m, &m->left, merged, true);
    push_new_pairs(m, &m->right, merged, false);
}

/* --- all merges --- */

/* The tokens made so far. */
struct vocabulary {
    int count, merge_count, merge_capacity;
    int64_t *start; /* (vocab_size + 1) */
    char *bytes;
    int64_t capacity;
    uint32_t *slots; /* hash of the bytes -> id */
    uint64_t mask;
    uint64_t *merge_pair;
    uint32_t *merge_id;
};

/* The id of left + right: a new one, unless another pair has made the same bytes already. */
static uint32_t add_token(struct vocabulary *v, uint64_t pair) {
    uint32_t l = (uint32_t)(pair >> 32), r = (uint32_t)pair;
    int64_t l_size = v->start[l + 1] - v->start[l], r_size = v->start[r + 1] - v->start[r];
    int64_t at = v->start[v->count], size = l_size + r_size;
    if (at + size > v->capacity) {
        v->capacity = at + size + v->capacity / 2;
        v->bytes = (char *)xrealloc(v->bytes, (size_t)v->capacity);
    }
    memcpy(v->bytes + at, v->bytes + v->start[l], (size_t)l_size);
    memcpy(v->bytes + at + l_size, v->bytes + v->start[r], (size_t)r_size);
    if (v->merge_count == v->merge_capacity) {
        v->merge_capacity = 2 * v->merge_capacity + 256;
        v->merge_pair =
            (uint64_t *)xrealloc(v->merge_pair, (size_t)v->merge_capacity * sizeof *v->merge_pair);
        v->merge_id = (uint32_t *)xrealloc(v->merge_id, (size_t)v->merge_capacity * sizeof *v->merge_id);
    }
    uint64_t i = XXH3_64bits(v->bytes + at, (size_t)size);
    uint32_t id;
    for (; (id = v->slots[i & v->mask]) != NO_TOKEN; i++)
        if (v->start[id + 1] - v->start[id] == size &&
            !memcmp(v->bytes + v->start[id], v->bytes + at, (size_t)size))
            break;
    if (id == NO_TOKEN) {
        id = v->slots[i & v->mask] = (uint32_t)v->count++;
        v->start[v->count] = at + size;
    }
    v->merge_pair[v->merge_count] = pair;
    v->merge_id[v->merge_count++] = id;
    return id;
}

static void vocabulary_init(struct vocabulary *v, int vocab_size, uint32_t byte_id[256]) {
    uint64_t slots = 1024;
    while (slots < 2 * (uint64_t)vocab_size) slots *= 2;
    *v = (struct vocabulary){.capacity = 1 << 16, .mask = slots - 1};
    v->start = (int64_t *)xcalloc((size_t)vocab_size + 1, sizeof *v->start);
    v->bytes = (char *)xmalloc((size_t)v->capacity);
    v->slots = (uint32_t *)xmalloc(slots * sizeof *v->slots);
    memset(v->slots, 0xff, slots * sizeof *v->slots);
    for (uint32_t code = 0; v->count < 256;
         code++) { /* GPT-2's order: by the character that stands for the byte */
        int byte = code_point_to_byte(code);
        if (byte < 0) continue;
        byte_id[byte] = (uint32_t)v->count;
        v->bytes[v->count++] = (char)byte;
        v->start[v->count] = v->count;
    }
}

static void vocabulary_free(struct vocabulary *v) {
    free(v->start);
    free(v->bytes);
    free(v->slots);
    free(v->merge_pair);
    free(v->merge_id);
}

/* Lays out the words that have pairs. */
static bool fill_cells(struct merging *m, const struct bpe_trainer *b, const uint32_t byte_id[256],
                       int64_t *bytes, struct error *err) {
    int64_t words = 0, at = 1, total = 0;
    for (int i = 0; i < SHARDS; i++)
        for (const struct word *w = NULL; (w = word_table_next(&b->shard[i].words, w));)
            if (w->size > 1) {
                words++;
                total += w->size;
            }
    if (total > UINT32_MAX - 2)
        return fail(err,
                    "BPE training: the distinct words have %s together, more than 4 GiB; train on a sample",
                    human_bytes((double)total));
    m->cell = (struct cell *)xmalloc(((size_t)total + 2) * sizeof *m->cell);
    m->word_count = (int64_t *)xmalloc(((size_t)words + 1) * sizeof *m->word_count);
    m->cell[0] = m->cell[total + 1] = (struct cell){0, UINT32_MAX};
    uint32_t index = 0;
    for (int i = 0; i < SHARDS; i++)
        for (const struct word *w = NULL; (w = word_table_next(&b->shard[i].words, w));) {
            if (w->size == 1) continue;
            m->word_count[index] = w->count;
            for (uint32_t k = 0; k < w->size; k++) m->cell[at++] = (struct cell){byte_id[w->bytes[k]], index};
            index++;
        }
    *bytes = total;
    return true;
}

/* The pairs of bytes. */
static void first_candidates(struct merging *m, int64_t bytes) {
    struct neighbour *x = (struct neighbour *)xcalloc(65536, sizeof *x);
    const struct cell *cell = m->cell;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t at = 1; at < bytes; at++) {
            if (cell[at].word != cell[at + 1].word) continue;
            struct neighbour *p = &x[cell[at].token << 8 | cell[at + 1].token];
            if (pass == 0) {
                p->n++;
                p->sum += m->word_count[cell[at].word];
            } else if (p->at) {
                p->at[p->filled++] = (uint32_t)at;
            }
        }
        for (uint32_t i = 0; pass == 0 && i < 65536; i++)
            if (x[i].sum >= MIN_COUNT) x[i].at = (uint32_t *)xmalloc(x[i].n * sizeof(uint32_t));
    }
    reserve_pairs(&m->pairs, 65536);
    for (uint32_t i = 0; i < 65536; i++) {
        uint64_t pair = make_pair(i >> 8, i & 255);
        if (x[i].sum) add_to_pair(&m->pairs, pair, x[i].sum);
        if (x[i].at) push_candidate(&m->heap, (struct candidate){x[i].sum, pair, x[i].at, x[i].n});
    }
    free(x);
}

static void merging_free(struct merging *m) {
    for (int64_t i = 0; i < m->heap.count; i++) free(m->heap.c[i].at);
    free(m->heap.c);
    free(m->pairs.slots);
    free(m->cell);
    free(m->word_count);
    free(m->token_bytes);
    struct side *sides[] = {&m->left, &m->right};
    for (int i = 0; i < 2; i++) {
        free(sides[i]->of);
        free(sides[i]->places);
        free(sides[i]->touched);
    }
}

static void merge_all(struct merging *m, struct vocabulary *v, int max_tokens) {
    struct candidate c;
    for (int i = 0; i < 256; i++) m->token_bytes[i] = 1;
    while (v->count < max_tokens && pop_candidate(&m->heap, &m->pairs, &c)) {
        uint32_t id = add_token(v, c.pair);
        m->token_bytes[id] = (uint32_t)(v->start[id + 1] - v->start[id]);
        merge(m, &c, id);
        free(c.at);
    }
}

/* A pair can be merged twice if two pairs made the same token; the last place counts. */
static void drop_repeated_merges(struct vocabulary *v) {
    struct pair_table last = {0};
    reserve_pairs(&last, v->merge_count);
    for (int i = 0; i < v->merge_count; i++) {
        add_to_pair(&last, v->merge_pair[i], 0);
        find_pair(&last, v->merge_pair[i])->count = i;
    }
    int n = 0;
    for (int i = 0; i < v->merge_count; i++)
        if (count_of_pair(&last, v->merge_pair[i]) == i) {
            v->merge_pair[n] = v->merge_pair[i];
            v->merge_id[n++] = v->merge_id[i];
        }
    v->merge_count = n;
    free(last.slots);
}

static struct tokenizer *make_tokenizer(const struct vocabulary *v, struct error *err) {
    static const char end[] = "<|endoftext|>";
    int64_t bytes = v->start[v->count], end_size = (int64_t)strlen(end);
    struct tokenizer *t = tokenizer_alloc(v->count + 1, bytes + end_size, v->merge_count);
    memcpy(t->token_start, v->start, (size_t)v->count * sizeof *v->start);
    memcpy(t->token_data, v->bytes, (size_t)bytes);
    memcpy(t->token_data + bytes, end, (size_t)end_size);
    t->token_start[v->count] = bytes;
    t->token_start[v->count + 1] = bytes + end_size;
    memset(t->in_model, 1, (size_t)v->count + 1);
    for (int i = 0; i < v->merge_count; i++) {
        t->merge_pair[2 * i] = (uint32_t)(v->merge_pair[i] >> 32);
        t->merge_pair[2 * i + 1] = (uint32_t)v->merge_pair[i];
        t->merge_id[i] = v->merge_id[i];
    }
    tokenizer_add_special(t, end, (uint32_t)v->count);
    if (pretokenizer_add(&t->pre, PRETOK_GPT2, err) && tokenizer_finish(t, err)) return t;
    tokenizer_free(t);
    return NULL;
}

/* --- the public functions --- */

struct bpe_trainer *bpe_trainer_new(void) {
    struct bpe_trainer *b = (struct bpe_trainer *)xcalloc(1, sizeof *b);
    struct error err;
    check(pretokenizer_add(&b->pre, PRETOK_GPT2, &err), "bpe_trainer_new: %s", err.message);
    for (int i = 0; i < SHARDS; i++) omp_init_lock(&b->shard[i].lock);
    return b;
}

void bpe_trainer_free(struct bpe_trainer *b) {
    if (!b) return;
    for (int i = 0; i < SHARDS; i++) {
        omp_destroy_lock(&b->shard[i].lock);
        word_table_free(&b->shard[i].words);
    }
    pretokenizer_free(&b->pre);
    free(b);
}

void bpe_trainer_add(struct bpe_trainer *b, const struct text_span *docs, int64_t count, int threads) {
    struct cursor cursor = {.pre = &b->pre, .docs = docs, .count = count};
    omp_lock_t lock;
    omp_init_lock(&lock);
#pragma omp parallel num_threads(threads > 1 ? threads : 1)
    {
        struct counter c = {.trainer = b};
        for (;;) {
            struct piece p;
            omp_set_lock(&lock);
            bool more = take_piece(&cursor, &p);
            omp_unset_lock(&lock);
            if (!more) break;
            count_piece(&c, &cursor, &p);
        }
        flush_counter(&c);
    }
    omp_destroy_lock(&lock);
}

struct tokenizer *bpe_trainer_finish(struct bpe_trainer *b, int vocab_size, struct error *err) {
    if (vocab_size < 257 || vocab_size > TOKENIZER_MAX_VOCAB) {
        fail(err, "BPE training: vocabulary size %d, expected 257 (256 bytes and <|endoftext|>) to %d",
             vocab_size, TOKENIZER_MAX_VOCAB);
        return NULL;
    }
    uint32_t byte_id[256];
    struct vocabulary v;
    struct merging m = {0};
    struct tokenizer *t = NULL;
    int64_t bytes = 0;
    vocabulary_init(&v, vocab_size, byte_id);
    if (fill_cells(&m, b, byte_id, &bytes, err)) {
        m.token_bytes = (uint32_t *)xcalloc((size_t)vocab_size, sizeof *m.token_bytes);
        m.left.of = (struct neighbour *)xcalloc((size_t)vocab_size, sizeof *m.left.of);
        m.right.of = (struct neighbour *)xcalloc((size_t)vocab_size, sizeof *m.right.of);
        first_candidates(&m, bytes);
        merge_all(&m, &v, vocab_size - 1);
        drop_repeated_merges(&v);
        t = make_tokenizer(&v, err);
    }
    merging_free(&m);
    vocabulary_free(&v);
    return t;
}

struct tokenizer *tokenizer_train(const struct text_span *docs, int64_t count, int vocab_size, int threads,
                                  struct error *err) {
    struct bpe_trainer *b = bpe_trainer_new();
    bpe_trainer_add(b, docs, count, threads);
    struct tokenizer *t = bpe_trainer_finish(b, vocab_size, err);
    bpe_trainer_free(b);
    return t;
}
