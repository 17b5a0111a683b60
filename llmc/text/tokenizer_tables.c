/* Builds the tables of a tokenizer: a hash table from the bytes of a token to its id, one from a pair of
 * tokens to their merge, and for each token whether encoding its own bytes gives just this token. Words
 * that are such tokens need no merging. */
#include "llmc/text/tokenizer_tables.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/text/bpe_merge.h"
#include "llmc/base/utf8.h"

/* --- names of tokens --- */

/* The printable characters of Latin-1 stand for themselves; the other bytes become the code points from
 * U+0100 on. */
static bool byte_is_itself(int b) { return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae; }

uint32_t byte_to_code_point(uint8_t byte) {
    if (byte_is_itself(byte)) return byte;
    uint32_t code = 256;
    for (int b = 0; b < byte; b++) code += !byte_is_itself(b);
    return code;
}

int code_point_to_byte(uint32_t code) {
    if (code < 256) return byte_is_itself((int)code) ? (int)code : -1;
    uint32_t n = code - 256; /* among the bytes 0 to 32, 127 to 160, and 173 */
    return n < 33 ? (int)n : n < 67 ? (int)n - 33 + 127 : n == 67 ? 173 : -1;
}

char *printable_name(const struct tokenizer *t, uint32_t id) {
    char *name = (char *)xmalloc(2 * (size_t)token_size(t, id) + 1), *to = name;
    for (int64_t i = t->token_start[id]; i < t->token_start[id + 1]; i++)
        to += utf8_encode((uint8_t *)to, byte_to_code_point((uint8_t)t->token_data[i]));
    *to = 0;
    return name;
}

int64_t name_to_bytes(const char *name, char *out) {
    int64_t size = 0;
    for (const uint8_t *p = (const uint8_t *)name; *p;) {
        uint32_t code = *p++;
        if (code >= 0xe0) return -1; /* three bytes or more: beyond all code points in use */
        if (code >= 0x80) code = (code & 0x1f) << 6 | (*p++ & 0x3f);
        int byte = code_point_to_byte(code);
        if (byte < 0) return -1;
        out[size++] = (char)byte;
    }
    return size;
}

/* --- making one --- */

struct tokenizer *tokenizer_alloc(int vocab_size, int64_t token_bytes, int merge_count) {
    struct tokenizer *t = (struct tokenizer *)xcalloc(1, sizeof *t);
    size_t v = (size_t)vocab_size, m = (size_t)merge_count;
    t->vocab_size = vocab_size;
    t->token_start = (int64_t *)xcalloc(v + 1, sizeof *t->token_start);
    t->token_data = (char *)xcalloc(1, (size_t)token_bytes + 1);
    t->in_model = (uint8_t *)xcalloc(v, 1);
    t->whole = (uint8_t *)xcalloc(v, 1);
    t->merge_count = merge_count;
    t->merge_pair = (uint32_t *)xcalloc(2 * m + 1, sizeof *t->merge_pair);
    t->merge_id = (uint32_t *)xcalloc(m + 1, sizeof *t->merge_id);
    return t;
}

void tokenizer_add_special(struct tokenizer *t, const char *content, uint32_t id) {
    t->added = (struct added_token *)xrealloc(t->added, (size_t)(t->added_count + 1) * sizeof *t->added);
    t->added[t->added_count++] = (struct added_token){
        .content = xstrdup(content), .size = (int)strlen(content), .id = id, .special = true};
}

/* Slots of a hash table for n entries: a power of two, at most half of them used. */
static uint64_t table_slots(int64_t n) {
    uint64_t slots = 16;
    while (slots < 2 * (uint64_t)n) slots *= 2;
    return slots;
}

uint32_t tokenizer_find(const struct tokenizer *t, const uint8_t *bytes, int64_t size) {
    for (uint64_t i = XXH3_64bits(bytes, (size_t)size);; i++) {
        uint32_t id = t->token_slots[i & t->token_mask];
        if (id == NO_TOKEN) return NO_TOKEN;
        if (token_size(t, id) == size && !memcmp(t->token_data + t->token_start[id], bytes, (size_t)size))
            return id;
    }
}

static void build_tables(struct tokenizer *t) {
    uint64_t slots = table_slots(t->vocab_size);
    t->token_mask = slots - 1;
    t->token_slots = (uint32_t *)xmalloc(slots * sizeof *t->token_slots);
    memset(t->token_slots, 0xff, slots * sizeof *t->token_slots);
    for (int id = 0; id < t->vocab_size; id++) {
        if (!t->in_model[id]) continue;
        uint64_t i = XXH3_64bits(t->token_data + t->token_start[id], (size_t)token_size(t, (uint32_t)id));
        while (t->token_slots[i & t->token_mask] != NO_TOKEN) i++;
        t->token_slots[i & t->token_mask] = (uint32_t)id;
    }
    slots = table_slots(t->merge_count);
    t->merge_mask = slots - 1;
    t->merge_slots = (struct merge_slot *)xmalloc(slots * sizeof *t->merge_slots);
    memset(t->merge_slots, 0xff, slots * sizeof *t->merge_slots);
    for (int rank = 0; rank < t->merge_count; rank++) {
        uint64_t pair = (uint64_t)t->merge_pair[2 * rank] << 32 | t->merge_pair[2 * rank + 1];
        uint64_t i = mix64(pair) >> 7;
        while (t->merge_slots[i & t->merge_mask].pair != UINT64_MAX &&
               t->merge_slots[i & t->merge_mask].pair != pair)
            i++;
        /* As in Hugging Face, a pair that is listed twice has its last rank. */
        t->merge_slots[i & t->merge_mask] = (struct merge_slot){pair, (uint32_t)rank, t->merge_id[rank]};
    }
}

/* Marks the tokens that encode to themselves. Some tokens cannot be reached by any sequence of merges. */
static void find_whole_tokens(struct tokenizer *t) {
    struct merge_scratch *scratch = NULL;
    struct token_buffer large = {0};
    for (int id = 0; id < t->vocab_size; id++) {
        int size = token_size(t, (uint32_t)id);
        if (!t->in_model[id] || size == 0) continue;
        const uint8_t *bytes = (const uint8_t *)t->token_data + t->token_start[id];
        uint32_t small[SMALL_WORD];
        if (size <= SMALL_WORD) {
            t->whole[id] = bpe_merge_small(t, bytes, size, small) == 1 && small[0] == (uint32_t)id;
        } else {
            large.count = 0;
            t->whole[id] =
                bpe_merge_large(t, bytes, size, &large, &scratch) == 1 && large.ids[0] == (uint32_t)id;
        }
    }
    token_buffer_free(&large);
    merge_scratch_free(scratch);
}

static int find_end_of_text(const struct tokenizer *t) {
    static const char *const names[] = {"<|endoftext|>", "<|end_of_text|>", "</s>",   "<eos>",
                                        "<|eos|>",       "[EOS]",           "<|bos|>"};
    for (size_t k = 0; k < ARRAY_LENGTH(names); k++)
        for (int i = 0; i < t->added_count; i++)
            if (!strcmp(t->added[i].content, names[k])) return (int)t->added[i].id;
    return -1;
}

static uint64_t hash_tokenizer(const struct tokenizer *t) {
    XXH3_state_t *h = XXH3_createState();
    check(h, "out of host memory");
    XXH3_64bits_reset(h);
    const int32_t head[] = {1,      t->vocab_size,   t->merge_count,  t->added_count, t->pre.stages,
                            t->nfc, t->prefix_space, t->ignore_merges};
    XXH3_64bits_update(h, head, sizeof head);
    XXH3_64bits_update(h, t->token_start, ((size_t)t->vocab_size + 1) * sizeof *t->token_start);
    XXH3_64bits_update(h, t->token_data, (size_t)t->token_start[t->vocab_size]);
    XXH3_64bits_update(h, t->in_model, (size_t)t->vocab_size);
    XXH3_64bits_update(h, t->merge_pair, 2 * (size_t)t->merge_count * sizeof *t->merge_pair);
    for (int i = 0; i < t->pre.stages; i++) {
        const struct pretok_stage *s = &t->pre.stage[i];
        const int32_t stage[] = {(int32_t)s->kind, s->drop_gaps};
        XXH3_64bits_update(h, stage, sizeof stage);
        if (s->pattern) XXH3_64bits_update(h, s->pattern, strlen(s->pattern) + 1);
    }
    for (int i = 0; i < t->added_count; i++) {
        const struct added_token *a = &t->added[i];
        const int32_t flags[] = {(int32_t)a->id, a->special, a->normalized, a->lstrip, a->rstrip};
        XXH3_64bits_update(h, flags, sizeof flags);
        XXH3_64bits_update(h, a->content, (size_t)a->size + 1);
    }
    uint64_t hash = XXH3_64bits_digest(h);
    XXH3_freeState(h);
    return hash;
}

bool tokenizer_finish(struct tokenizer *t, struct error *err) {
    build_tables(t);
    for (int b = 0; b < 256; b++) {
        uint8_t byte = (uint8_t)b;
        t->byte_id[b] = tokenizer_find(t, &byte, 1);
        if (t->byte_id[b] == NO_TOKEN)
            return fail(err,
                        "model.vocab has no token for byte 0x%02x (code point U+%04X in the file): text with "
                        "it could not be encoded; train the tokenizer with the full byte alphabet",
                        b, byte_to_code_point(byte));
    }
    find_whole_tokens(t);
    for (int i = 0; i < t->added_count; i++) t->added_first[(uint8_t)t->added[i].content[0]] = 1;
    t->end_of_text = find_end_of_text(t);
    t->hash = hash_tokenizer(t);
    return true;
}
