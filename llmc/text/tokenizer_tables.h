/* The tables of a tokenizer, and how the loader and the trainer fill them. Internal to llmc/text: others
 * use tokenizer.h.
 *
 * To make one: tokenizer_alloc(); fill vocab_size, token_start, token_data, in_model, merge_*, added, pre
 * and the flags; tokenizer_finish(), which checks the rest and builds the hash tables. */
#ifndef LLMC_TOKENIZER_TABLES_H
#define LLMC_TOKENIZER_TABLES_H

#include "llmc/text/pretokenize.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NO_TOKEN            UINT32_MAX
#define TOKENIZER_MAX_VOCAB (1 << 24) /* ids have 31 bits; a file that comes near this is damaged */

struct merge_slot {
    uint64_t pair; /* left << 32 | right; UINT64_MAX when empty */
    uint32_t rank; /* position in the list of merges */
    uint32_t id;   /* the token that the pair becomes */
};

struct added_token {
    char *content; /* as it is matched: normalized, if the tokenizer normalizes and the token asks for it */
    int size;
    uint32_t id;
    bool special, normalized, lstrip, rstrip;
};

struct tokenizer {
    int vocab_size;
    int64_t *token_start; /* (vocab_size + 1) offsets into token_data */
    char *token_data;
    uint8_t *in_model; /* (vocab_size) 1: a BPE token; 0: only an added token */
    uint8_t *whole;    /* (vocab_size) 1: encoding the token's own bytes gives just this token */
    uint32_t byte_id[256];

    int merge_count;
    uint32_t *merge_pair; /* (merge_count, 2) */
    uint32_t *merge_id;   /* (merge_count) */
    struct merge_slot *merge_slots;
    uint64_t merge_mask;

    uint32_t *token_slots; /* hash of a model token's bytes -> id */
    uint64_t token_mask;

    struct added_token *added;
    int added_count;
    uint8_t added_first[256]; /* 1: some added token starts with this byte */

    struct pretokenizer pre;
    bool nfc, prefix_space, ignore_merges;
    int end_of_text;
    uint64_t hash;

    /* Parts of tokenizer.json that are only kept, as JSON text; NULL for the defaults of GPT-2. */
    char *json_normalizer, *json_pre_tokenizer, *json_post_processor, *json_decoder;
    char *chat_template; /* of tokenizer_config.json, or NULL */
};

struct tokenizer *tokenizer_alloc(int vocab_size, int64_t token_bytes, int merge_count);
bool tokenizer_finish(struct tokenizer *t, struct error *err);
void tokenizer_add_special(struct tokenizer *t, const char *content, uint32_t id);

/* The added tokens of a directory: those that tokenizer.json lists (or NULL) and those that are named
 * beside it, as an array like "added_tokens" there. A new reference; NULL with the reason, which names
 * the file. */
struct json_t;
struct json_t *tokenizer_added_beside(const char *dir, const struct json_t *listed, struct error *err);
/* Gives the tokenizer the chat template of a directory, if it has one. */
bool tokenizer_chat_template_beside(struct tokenizer *t, const char *dir, struct error *err);

/* GPT-2's bijection between bytes and printable characters. */
uint32_t byte_to_code_point(uint8_t byte);
int code_point_to_byte(uint32_t code); /* -1 if it stands for no byte */
/* The name of a token in vocab.json: that character for each of its bytes. The caller frees. */
char *printable_name(const struct tokenizer *t, uint32_t id);
/* The reverse: writes the bytes that a name (valid UTF-8) stands for, at most strlen(name), and returns their
 * number; -1 if one of its characters stands for no byte. */
int64_t name_to_bytes(const char *name, char *out);

static inline int token_size(const struct tokenizer *t, uint32_t id) {
    return (int)(t->token_start[id + 1] - t->token_start[id]);
}
/* The model token with these bytes, or NO_TOKEN. */
uint32_t tokenizer_find(const struct tokenizer *t, const uint8_t *bytes, int64_t size);

static inline uint64_t mix64(uint64_t x) {
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}
/* The merge of two neighbours, or NULL. */
static inline const struct merge_slot *find_merge(const struct tokenizer *t, uint32_t left, uint32_t right) {
    uint64_t pair = (uint64_t)left << 32 | right;
    for (uint64_t i = mix64(pair) >> 7;; i++) {
        const struct merge_slot *s = &t->merge_slots[i & t->merge_mask];
        if (s->pair == pair) return s;
        if (s->pair == UINT64_MAX) return NULL;
    }
}
#ifdef __cplusplus
}
#endif
#endif
