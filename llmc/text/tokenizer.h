/* Byte-level BPE tokenizers: text <-> token ids, the way Hugging Face `tokenizers` and GPT-2 do it.
 *
 * Order: making one, encoding, decoding, properties.
 *
 * A tokenizer is immutable once made and may be used by any number of threads; everything that encoding
 * changes lives in the caller's token_buffer. Text is any sequence of bytes: decode(encode(x)) == x for all
 * of them (unless a loaded file asks for NFC or for a prefixed space). A byte that is not part of valid UTF-8
 * counts as a character of its own that is neither letter, number nor space. */
#ifndef LLMC_TOKENIZER_H
#define LLMC_TOKENIZER_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tokenizer;

struct text_span {
    const char *data;
    int64_t size;
};

/* 256 tokens whose id is the byte's value, and <|endoftext|> = 256. */
struct tokenizer *tokenizer_bytes(void);

/* Loads a Hugging Face tokenizer.json, or a directory that holds tokenizer.json, vocab.bpe + encoder.json
 * (GPT-2's published names) or merges.txt + vocab.json. Accepts model type BPE, byte level, with the GPT-2,
 * Llama-3 or Qwen2 pre-tokenizer, Digits, or any other Split pattern that PCRE2 understands. NULL with the
 * reason in err otherwise. The post-processor (which adds <bos> and the like) is kept when saving but not
 * applied. */
struct tokenizer *tokenizer_load(const char *path, struct error *err);

/* Writes a Hugging Face tokenizer.json, atomically; the same bytes for the same tokenizer. */
bool tokenizer_save(const struct tokenizer *t, const char *path, struct error *err);
void tokenizer_free(struct tokenizer *t);

/* Output of encoding. Start from {0}; `cache` remembers the tokens of frequent words from call to call, so
 * reuse one buffer (one per thread) for many texts and set count = 0 between them. */
struct token_cache;
struct token_buffer {
    uint32_t *ids;
    int64_t count, capacity;
    struct token_cache *cache;
};
void token_buffer_free(struct token_buffer *b);
void token_buffer_reserve(struct token_buffer *b, int64_t more); /* room for `more` further ids */

/* Appends the tokens of `text` and returns how many. Special tokens (<|endoftext|>) that stand in the text
 * are encoded as ordinary text; added tokens that the file does not mark as special are recognised, as in
 * Hugging Face. Returns -1, with out->count as before, only when a foreign Split pattern exceeds PCRE2's
 * matching limit. */
int64_t tokenizer_encode(const struct tokenizer *t, const char *text, int64_t size, struct token_buffer *out);
/* The same, but special tokens in the text become their ids. */
int64_t tokenizer_encode_special(const struct tokenizer *t, const char *text, int64_t size,
                                 struct token_buffer *out);

/* The first position >= from where `text` can be cut so that both parts together have the tokens of the
 * whole; size if there is none, or none is known for this tokenizer. */
int64_t tokenizer_safe_cut(const struct tokenizer *t, const char *text, int64_t size, int64_t from);

/* The bytes of one token (not NUL-terminated; may be part of a UTF-8 character) for streaming; NULL and 0
 * when the id is not in the vocabulary. Owned by the tokenizer. */
const char *tokenizer_token_bytes(const struct tokenizer *t, int64_t id, int *size);
/* Writes up to `capacity` bytes of the text of `ids` and returns its whole length; -1 when an id is not in
 * the vocabulary. out may be NULL when capacity is 0. */
int64_t tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, int64_t count, char *out,
                         int64_t capacity);

int tokenizer_vocab_size(const struct tokenizer *t); /* including added tokens */
int tokenizer_end_of_text(
    const struct tokenizer *t); /* id of <|endoftext|> or its like; -1 if there is none */
/* Depends on all that decides the tokens of a text, and on nothing else; the same after saving and
 * loading. */
uint64_t tokenizer_hash(const struct tokenizer *t);

/* --- for writers of other formats --- */

enum token_kind {
    TOKEN_KIND_NONE,   /* no token has this id */
    TOKEN_KIND_MODEL,  /* made by merging, or a byte */
    TOKEN_KIND_ADDED,  /* recognised as a whole in text */
    TOKEN_KIND_SPECIAL /* the same, but only by tokenizer_encode_special() */
};
enum token_kind tokenizer_token_kind(const struct tokenizer *t, int64_t id);
/* The token's name in vocab.json, for an id below the vocabulary size: GPT-2's printable character for each byte of a
 * token of the model, the text itself of an added one. The caller frees. */
char *tokenizer_token_name(const struct tokenizer *t, int64_t id);

/* Merges in the order of their ranks; their names are lines of merges.txt, "LEFT RIGHT". The caller frees. */
int tokenizer_merge_count(const struct tokenizer *t);
char *tokenizer_merge_name(const struct tokenizer *t, int rank);
/* Whether a word that is a token as a whole is taken as it is, even where merging would not reach it. */
bool tokenizer_ignores_merges(const struct tokenizer *t);

/* The published pattern that cuts text into words as this tokenizer does. WORDS_OTHER if there is none, or if a space is
 * put before the text. */
enum word_pattern { WORDS_OTHER, WORDS_GPT2, WORDS_LLAMA3, WORDS_QWEN2 };
enum word_pattern tokenizer_word_pattern(const struct tokenizer *t);

#ifdef __cplusplus
}
#endif
#endif
