/* Counts distinct words in a hash table with open addressing over one growing pool of records. Memory
 * limits how much text a tokenizer can be trained on, so a slot takes 8 bytes and a record 12 more than its
 * word. */
#include "llmc/text/bpe_words.h"

#include <stdlib.h>
#include <string.h>

static int64_t word_stride(int64_t size) { return round_up((int64_t)offsetof(struct word, bytes) + size, 8); }

static void grow_slots(struct word_table *t) {
    uint64_t slots = t->mask ? 2 * (t->mask + 1) : 1024;
    struct word_slot *old = t->slots;
    t->slots = (struct word_slot *)xcalloc(slots, sizeof *t->slots);
    for (uint64_t i = 0; t->mask && i <= t->mask; i++) {
        uint64_t k = old[i].hash;
        if (!old[i].at) continue;
        while (t->slots[k & (slots - 1)].at) k++;
        t->slots[k & (slots - 1)] = old[i];
    }
    t->mask = slots - 1;
    free(old);
}

void word_table_add(struct word_table *t, const uint8_t *word, uint32_t size, uint32_t hash, int64_t count) {
    if (2 * (uint64_t)t->count >= t->mask) grow_slots(t);
    uint64_t i = hash;
    for (; t->slots[i & t->mask].at; i++) {
        const struct word_slot *s = &t->slots[i & t->mask];
        if (s->hash != hash) continue;
        struct word *w = (struct word *)(t->pool + 8 * (int64_t)s->at);
        if (w->size == size && !memcmp(w->bytes, word, size)) {
            w->count += count;
            return;
        }
    }
    int64_t at = t->used ? t->used : 8, end = at + word_stride(size);
    check(at / 8 < UINT32_MAX,
          "training a tokenizer: more than 32 GiB of distinct words in one table; use less text");
    if (end > t->capacity) {
        t->capacity = max_i64(end, t->capacity + t->capacity / 2 + 4096);
        t->pool = (uint8_t *)xrealloc(t->pool, (size_t)t->capacity);
    }
    struct word *w = (struct word *)(t->pool + at);
    w->count = count;
    w->size = size;
    memcpy(w->bytes, word, size);
    t->slots[i & t->mask] = (struct word_slot){hash, (uint32_t)(at / 8)};
    t->used = end;
    t->count++;
}

const struct word *word_table_next(const struct word_table *t, const struct word *w) {
    if (t->used == 0) return NULL;
    const uint8_t *p = w ? (const uint8_t *)w + word_stride(w->size) : t->pool + 8;
    return p < t->pool + t->used ? (const struct word *)p : NULL;
}

void word_table_free(struct word_table *t) {
    free(t->slots);
    free(t->pool);
    memset(t, 0, sizeof *t);
}
