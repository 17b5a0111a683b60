/* Encodes text and decodes tokens. Three things make encoding fast: hand-written scanners cut the text into
 * words (pretokenize.c), a cache in the caller's buffer remembers the tokens of words seen before, and a
 * word that is itself a token needs no merging. */
#include "llmc/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/text/bpe_merge.h"
#include "llmc/text/normalize.h"
#include "llmc/text/tokenizer_tables.h"

/* --- making one --- */

struct tokenizer *tokenizer_bytes(void) {
    static const char end[] = "<|endoftext|>";
    struct tokenizer *t = tokenizer_alloc(257, 256 + (int64_t)strlen(end), 0);
    for (int b = 0; b < 256; b++) {
        t->token_start[b] = b;
        t->token_data[b] = (char)b;
        t->in_model[b] = 1;
    }
    t->token_start[256] = 256;
    t->token_start[257] = 256 + (int64_t)strlen(end);
    memcpy(t->token_data + 256, end, strlen(end));
    t->in_model[256] = 1;
    tokenizer_add_special(t, end, 256);
    struct error err;
    check(pretokenizer_add(&t->pre, PRETOK_GPT2, &err) && tokenizer_finish(t, &err), "tokenizer_bytes: %s",
          err.message);
    return t;
}

struct tokenizer *tokenizer_open(const char *name, struct error *err) {
    return strcmp(name, "bytes") == 0 ? tokenizer_bytes() : tokenizer_load(name, err);
}

void tokenizer_free(struct tokenizer *t) {
    if (!t) return;
    for (int i = 0; i < t->added_count; i++) free(t->added[i].content);
    free(t->added);
    free(t->token_start);
    free(t->token_data);
    free(t->in_model);
    free(t->whole);
    free(t->merge_pair);
    free(t->merge_id);
    free(t->merge_slots);
    free(t->token_slots);
    free(t->json_normalizer);
    free(t->json_pre_tokenizer);
    free(t->json_post_processor);
    free(t->json_decoder);
    free(t->chat_template);
    pretokenizer_free(&t->pre);
    free(t);
}

/* --- the cache of frequent words --- */

enum {
    SHORT_BYTES = 15, /* words up to this size, with up to SHORT_IDS tokens, have fixed slots */
    SHORT_IDS = 4,
    SHORT_SLOTS = 1 << 15, /* 1 MiB, about the second-level cache of a core */
    LONG_BYTES = 512,      /* longer words are not kept */
    LONG_SLOTS = 1 << 14,
    LONG_WORDS = 1 << 19 /* 2 MiB of keys and tokens; emptied when full */
};

struct short_slot {
    uint64_t low, high;      /* the bytes of the word, zero-filled; the last one is the length */
    uint32_t ids[SHORT_IDS]; /* the unused ones are NO_TOKEN */
};
struct long_slot {
    uint64_t hash;
    uint32_t size, count, offset; /* in the pool: count ids, then the bytes; size 0: empty */
};
struct token_cache {
    uint64_t owner; /* tokenizer_hash() of the tokenizer that filled it */
    struct short_slot short_slots[SHORT_SLOTS];
    struct long_slot long_slots[LONG_SLOTS];
    int long_count;
    uint32_t pool_count;
    uint32_t pool[LONG_WORDS];
    struct merge_scratch *scratch;
};

static void clear_long(struct token_cache *c) {
    memset(c->long_slots, 0, sizeof c->long_slots);
    c->long_count = 0;
    c->pool_count = 0;
}

static struct token_cache *cache_for(const struct tokenizer *t, struct token_buffer *out) {
    if (!out->cache) {
        out->cache = (struct token_cache *)xcalloc(1, sizeof *out->cache);
        out->cache->owner = t->hash;
    }
    if (out->cache->owner != t->hash) {
        memset(out->cache->short_slots, 0, sizeof out->cache->short_slots);
        clear_long(out->cache);
        out->cache->owner = t->hash;
    }
    return out->cache;
}

void token_buffer_reserve(struct token_buffer *b, int64_t more) {
    if (b->count + more <= b->capacity) return;
    b->capacity = max_i64(b->count + more, b->capacity + b->capacity / 2 + 256);
    b->ids = (uint32_t *)xrealloc(b->ids, (size_t)b->capacity * sizeof *b->ids);
}

void token_buffer_free(struct token_buffer *b) {
    if (b->cache) merge_scratch_free(b->cache->scratch);
    free(b->cache);
    free(b->ids);
    memset(b, 0, sizeof *b);
}

/* --- encoding --- */

struct encoder {
    const struct tokenizer *t;
    struct token_buffer *out;
    struct token_cache *cache;
    const uint8_t *limit; /* end of the readable text */
    bool special;
};

/* Appends the tokens of a word that is in no cache. */
static void encode_word_afresh(struct encoder *e, const uint8_t *word, int64_t size) {
    const struct tokenizer *t = e->t;
    uint32_t id = tokenizer_find(t, word, size);
    if (id != NO_TOKEN && (t->ignore_merges || t->whole[id])) {
        token_buffer_reserve(e->out, 1);
        e->out->ids[e->out->count++] = id;
    } else if (size <= SMALL_WORD) {
        token_buffer_reserve(e->out, size);
        e->out->count += bpe_merge_small(t, word, (int)size, e->out->ids + e->out->count);
    } else {
        /* Positions have 31 bits, so a longer word is cut, always at the same places. */
        for (const int64_t most = (int64_t)1 << 30; size > 0; word += most, size -= most)
            bpe_merge_large(t, word, min_i64(size, most), e->out, &e->cache->scratch);
    }
}

static void encode_long_word(struct encoder *e, const uint8_t *word, int64_t size) {
    struct token_cache *c = e->cache;
    if (size > LONG_BYTES) {
        encode_word_afresh(e, word, size);
        return;
    }
    uint64_t hash = XXH3_64bits(word, (size_t)size), i = hash;
    struct long_slot *s;
    for (;; i++) {
        s = &c->long_slots[i % LONG_SLOTS];
        if (s->size == 0) break;
        if (s->hash == hash && s->size == size &&
            !memcmp(c->pool + s->offset + s->count, word, (size_t)size)) {
            token_buffer_reserve(e->out, s->count);
            memcpy(e->out->ids + e->out->count, c->pool + s->offset, s->count * sizeof(uint32_t));
            e->out->count += s->count;
            return;
        }
    }
    int64_t before = e->out->count;
    encode_word_afresh(e, word, size);
    uint32_t count = (uint32_t)(e->out->count - before), words = count + (uint32_t)ceil_div(size, 4);
    if (c->long_count >= LONG_SLOTS / 2 || c->pool_count + words > LONG_WORDS) {
        clear_long(c);
        s = &c->long_slots[hash % LONG_SLOTS];
    }
    *s = (struct long_slot){hash, (uint32_t)size, count, c->pool_count};
    memcpy(c->pool + c->pool_count, e->out->ids + before, count * sizeof(uint32_t));
    memcpy(c->pool + c->pool_count + count, word, (size_t)size);
    c->pool_count += words;
    c->long_count++;
}

static void encode_word(void *arg, const uint8_t *word, int64_t size) {
    struct encoder *e = (struct encoder *)arg;
    if (size > SHORT_BYTES) {
        encode_long_word(e, word, size);
        return;
    }
    uint64_t low, high;
    if (e->limit - word >= 16) {
        memcpy(&low, word, 8);
        memcpy(&high, word + 8, 8);
        if (size < 8) {
            low &= ((uint64_t)1 << 8 * size) - 1;
            high = 0;
        } else {
            high &= ((uint64_t)1 << 8 * (size - 8)) - 1;
        }
    } else {
        uint64_t copy[2] = {0, 0};
        memcpy(copy, word, (size_t)size);
        low = copy[0];
        high = copy[1];
    }
    high |= (uint64_t)size << 56;
    uint64_t hash = mix64(mix64(low) + high);
    struct short_slot *s = &e->cache->short_slots[hash >> 20 & (SHORT_SLOTS - 1)];
    token_buffer_reserve(e->out, SHORT_IDS);
    if (s->low == low && s->high == high) {
        memcpy(e->out->ids + e->out->count, s->ids, sizeof s->ids);
        e->out->count += 1 + (s->ids[1] != NO_TOKEN) + (s->ids[2] != NO_TOKEN) + (s->ids[3] != NO_TOKEN);
        return;
    }
    int64_t before = e->out->count;
    encode_word_afresh(e, word, size);
    int64_t count = e->out->count - before;
    if (count > SHORT_IDS) return;
    s->low = low;
    s->high = high;
    for (int64_t i = 0; i < SHORT_IDS; i++) s->ids[i] = i < count ? e->out->ids[before + i] : NO_TOKEN;
}

/* Text without added tokens. */
static bool encode_plain(struct encoder *e, const uint8_t *p, const uint8_t *end) {
    const struct tokenizer *t = e->t;
    if (p == end) return true;
    if (t->merge_count == 0 && !t->ignore_merges && !t->prefix_space) {
        token_buffer_reserve(e->out, end - p);
        for (; p < end; p++) e->out->ids[e->out->count++] = t->byte_id[*p];
        return true;
    }
    e->limit = end;
    if (!t->prefix_space || *p == ' ') return pretokenize(&t->pre, p, end - p, encode_word, e);
    uint8_t *copy = (uint8_t *)xmalloc((size_t)(end - p) + 1);
    copy[0] = ' ';
    memcpy(copy + 1, p, (size_t)(end - p));
    e->limit = copy + (end - p) + 1;
    bool ok = pretokenize(&t->pre, copy, end - p + 1, encode_word, e);
    free(copy);
    return ok;
}

/* The longest added token of this pass that starts at p. A special token is found even where it is not
 * wanted: as in Hugging Face, it still occupies its text, so that no shorter token is found inside. */
static const struct added_token *added_at(const struct tokenizer *t, const uint8_t *p, const uint8_t *end,
                                          bool normalized) {
    const struct added_token *best = NULL;
    if (!t->added_first[*p]) return NULL;
    for (int i = 0; i < t->added_count; i++) {
        const struct added_token *a = &t->added[i];
        if (a->normalized == normalized && a->size <= end - p && !memcmp(a->content, p, (size_t)a->size) &&
            (!best || a->size > best->size))
            best = a;
    }
    return best;
}

static bool encode_pass(struct encoder *e, int pass, const uint8_t *p, const uint8_t *end);

/* Pass 1 gets the normalized text. */
static bool encode_normalized(struct encoder *e, const uint8_t *p, const uint8_t *end) {
    int64_t size = 0;
    uint8_t *normalized = e->t->nfc ? normalize_nfc(p, end - p, &size) : NULL;
    if (!normalized) return encode_pass(e, 1, p, end);
    bool ok = encode_pass(e, 1, normalized, normalized + size);
    free(normalized);
    return ok;
}

/* Cuts added tokens out of the text: pass 0 those that are matched in the text as given, pass 1 those that
 * are matched after normalization. */
static bool encode_pass(struct encoder *e, int pass, const uint8_t *p, const uint8_t *end) {
    bool (*rest)(struct encoder *, const uint8_t *, const uint8_t *) =
        pass == 0 ? encode_normalized : encode_plain;
    const uint8_t *done = p;
    while (p < end) {
        const struct added_token *a = added_at(e->t, p, end, pass == 1);
        if (!a) {
            p++;
            continue;
        }
        const uint8_t *first = p, *last = p += a->size;
        if (a->special && !e->special) continue;
        if (a->lstrip) first = pretokenize_space_before(done, first);
        if (a->rstrip) p = last = pretokenize_space_after(last, end);
        if (!rest(e, done, first)) return false;
        token_buffer_reserve(e->out, 1);
        e->out->ids[e->out->count++] = a->id;
        done = last;
    }
    return rest(e, done, end);
}

static int64_t encode(const struct tokenizer *t, const char *text, int64_t size, struct token_buffer *out,
                      bool special) {
    struct encoder e = {.t = t, .out = out, .cache = cache_for(t, out), .special = special};
    bool search = special;
    for (int i = 0; i < t->added_count; i++) search |= !t->added[i].special;
    int64_t before = out->count;
    const uint8_t *p = (const uint8_t *)text;
    if (size <= 0 || (search || t->nfc ? encode_pass(&e, 0, p, p + size) : encode_plain(&e, p, p + size)))
        return out->count - before;
    out->count = before;
    return -1;
}

int64_t tokenizer_encode(const struct tokenizer *t, const char *text, int64_t size,
                         struct token_buffer *out) {
    return encode(t, text, size, out, false);
}
int64_t tokenizer_encode_special(const struct tokenizer *t, const char *text, int64_t size,
                                 struct token_buffer *out) {
    return encode(t, text, size, out, true);
}

/* The words may be cut here, unless NFC, a prefixed space or an added token across the cut changes the text
 * before it is cut into words. */
int64_t tokenizer_safe_cut(const struct tokenizer *t, const char *text, int64_t size, int64_t from) {
    bool words_only = !t->nfc && !t->prefix_space;
    for (int i = 0; i < t->added_count; i++) words_only = words_only && t->added[i].special;
    return words_only ? pretokenize_safe_cut(&t->pre, text, size, from) : size;
}

/* --- decoding and properties --- */

const char *tokenizer_token_bytes(const struct tokenizer *t, int64_t id, int *size) {
    if (id < 0 || id >= t->vocab_size) {
        *size = 0;
        return NULL;
    }
    *size = token_size(t, (uint32_t)id);
    return t->token_data + t->token_start[id];
}

int64_t tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, int64_t count, char *out,
                         int64_t capacity) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) {
        int size;
        const char *bytes = tokenizer_token_bytes(t, ids[i], &size);
        if (!bytes) return -1;
        if (total < capacity) memcpy(out + total, bytes, (size_t)min_i64(size, capacity - total));
        total += size;
    }
    return total;
}

int tokenizer_vocab_size(const struct tokenizer *t) { return t->vocab_size; }
int tokenizer_end_of_text(const struct tokenizer *t) { return t->end_of_text; }
uint64_t tokenizer_hash(const struct tokenizer *t) { return t->hash; }

/* --- for writers of other formats --- */

static const struct added_token *added_with_id(const struct tokenizer *t, int64_t id) {
    for (int i = 0; i < t->added_count; i++)
        if (t->added[i].id == id) return &t->added[i];
    return NULL;
}

enum token_kind tokenizer_token_kind(const struct tokenizer *t, int64_t id) {
    if (id < 0 || id >= t->vocab_size) return TOKEN_KIND_NONE;
    const struct added_token *a = added_with_id(t, id);
    return !a ? TOKEN_KIND_MODEL : a->special ? TOKEN_KIND_SPECIAL : TOKEN_KIND_ADDED;
}

int tokenizer_text_bytes(const struct tokenizer *t, int64_t id) {
    int size = 0;
    if (tokenizer_token_kind(t, id) != TOKEN_KIND_SPECIAL) tokenizer_token_bytes(t, id, &size);
    return size;
}

char *tokenizer_token_name(const struct tokenizer *t, int64_t id) {
    const struct added_token *a = added_with_id(t, id);
    return a ? xstrdup(a->content) : printable_name(t, (uint32_t)id);
}

int tokenizer_merge_count(const struct tokenizer *t) { return t->merge_count; }

char *tokenizer_merge_name(const struct tokenizer *t, int rank) {
    char *left = printable_name(t, t->merge_pair[2 * rank]),
         *right = printable_name(t, t->merge_pair[2 * rank + 1]);
    char *name = xasprintf("%s %s", left, right);
    free(left);
    free(right);
    return name;
}

bool tokenizer_uses_nfc(const struct tokenizer *t) { return t->nfc; }
const char *tokenizer_chat_template(const struct tokenizer *t) { return t->chat_template; }
void tokenizer_set_chat_template(struct tokenizer *t, const char *jinja) {
    char *copy = jinja ? xstrdup(jinja) : NULL; /* it may be the old one */
    free(t->chat_template);
    t->chat_template = copy;
}
bool tokenizer_prefixes_space(const struct tokenizer *t) { return t->prefix_space; }

bool tokenizer_strips_spaces(const struct tokenizer *t) {
    for (int i = 0; i < t->added_count; i++)
        if (t->added[i].lstrip || t->added[i].rstrip) return true;
    return false;
}

bool tokenizer_ignores_merges(const struct tokenizer *t) { return t->ignore_merges; }

enum word_pattern tokenizer_word_pattern(const struct tokenizer *t) {
    static const enum word_pattern patterns[] = {
        [PRETOK_GPT2] = WORDS_GPT2, [PRETOK_LLAMA3] = WORDS_LLAMA3, [PRETOK_QWEN2] = WORDS_QWEN2};
    if (t->prefix_space) return WORDS_OTHER;
    if (t->merge_count == 0 && !t->ignore_merges)
        return WORDS_GPT2; /* single bytes, however the text is cut */
    if (t->pre.stages != 1 || t->pre.stage[0].kind > PRETOK_QWEN2) return WORDS_OTHER;
    return patterns[t->pre.stage[0].kind];
}
