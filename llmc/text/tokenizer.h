/* Byte-level BPE tokenizers: text to token ids and back, as GPT-2 and Hugging Face's `tokenizers` do it.
 *
 * A tokenizer never changes once it is made, and any number of threads may use it; all state of encoding is
 * in the caller's token_buffer. Text is any sequence of bytes: decode(encode(x)) == x for all of them,
 * unless a loaded file asks for NFC or for a prefixed space. A byte that is not part of valid UTF-8 counts
 * as a character that is no letter, number or space. */
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
 * (GPT-2's published names) or merges.txt + vocab.json, each with the added tokens of added_tokens.json and
 * tokenizer_config.json. Accepts byte-level BPE with the pre-tokenizer of GPT-2, Llama-3 or Qwen2, Digits,
 * or any Split pattern that split_pattern.h can translate for PCRE2; NULL with the reason in err otherwise.
 * The post-processor (which adds <bos> and the like) is kept for saving, but not applied. */
struct tokenizer *tokenizer_load(const char *path, struct error *err);
/* The same from the content of a tokenizer.json. `name` is for messages. */
struct json_t;
struct tokenizer *tokenizer_from_json(const struct json_t *root, const char *name, struct error *err);
/* As --tokenizer takes it: such a path, or the word bytes. */
struct tokenizer *tokenizer_open(const char *name, struct error *err);

/* Writes a Hugging Face tokenizer.json atomically. The same tokenizer gives the same bytes. */
bool tokenizer_save(const struct tokenizer *t, const char *path, struct error *err);
void tokenizer_free(struct tokenizer *t);

/* Output of encoding. Start from {0}. `cache` remembers the tokens of frequent words, so reuse one buffer
 * per thread for many texts and set count = 0 between them. */
struct token_cache;
struct token_buffer {
    uint32_t *ids;
    int64_t count, capacity;
    struct token_cache *cache;
};
void token_buffer_free(struct token_buffer *b);
void token_buffer_reserve(struct token_buffer *b, int64_t more); /* room for `more` further ids */

/* Appends the tokens of `text` and returns how many. Special tokens (<|endoftext|>) in the text are encoded
 * as ordinary text; added tokens that the file does not mark as special are recognised, as in Hugging Face.
 * Returns -1 and leaves out->count unchanged if a Split pattern exceeds PCRE2's matching limit. */
int64_t tokenizer_encode(const struct tokenizer *t, const char *text, int64_t size, struct token_buffer *out);
/* The same, but special tokens in the text become their ids. */
int64_t tokenizer_encode_special(const struct tokenizer *t, const char *text, int64_t size,
                                 struct token_buffer *out);

/* The first position >= from where `text` can be cut so that both parts have the tokens of the whole; size
 * if there is none, or none is known for this tokenizer. */
int64_t tokenizer_safe_cut(const struct tokenizer *t, const char *text, int64_t size, int64_t from);

/* The bytes of one token, for streaming: not NUL-terminated, possibly part of a UTF-8 character, owned by
 * the tokenizer. NULL and size 0 if the id is not in the vocabulary. */
const char *tokenizer_token_bytes(const struct tokenizer *t, int64_t id, int *size);
/* The bytes of text that a token stands for, by which bits per byte are counted: 0 of a special one. */
int tokenizer_text_bytes(const struct tokenizer *t, int64_t id);
/* Writes up to `capacity` bytes of the text of `ids` and returns its full length; -1 if an id is not in the
 * vocabulary. `out` may be NULL if capacity is 0. */
int64_t tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, int64_t count, char *out,
                         int64_t capacity);

int tokenizer_vocab_size(const struct tokenizer *t); /* including added tokens */
/* The id of <|endoftext|> or its like; -1 if there is none. */
int tokenizer_end_of_text(const struct tokenizer *t);
/* A hash of everything that decides the tokens of a text, and of nothing else; the same after saving and
 * loading. */
uint64_t tokenizer_hash(const struct tokenizer *t);

/* The Jinja text by which Hugging Face writes conversations (chat.h), or NULL. It decides no token. */
const char *tokenizer_chat_template(const struct tokenizer *t);
/* Before other threads use the tokenizer. `jinja` is copied; NULL removes it. */
void tokenizer_set_chat_template(struct tokenizer *t, const char *jinja);

/* --- for writers of other formats --- */

enum token_kind {
    TOKEN_KIND_NONE,   /* no token has this id */
    TOKEN_KIND_MODEL,  /* made by merging, or a byte */
    TOKEN_KIND_ADDED,  /* recognised as a whole in text */
    TOKEN_KIND_SPECIAL /* the same, but only by tokenizer_encode_special() */
};
enum token_kind tokenizer_token_kind(const struct tokenizer *t, int64_t id);
/* The name in vocab.json of a token below the vocabulary size: GPT-2's printable character for each byte,
 * or the text itself of an added token. The caller frees. */
char *tokenizer_token_name(const struct tokenizer *t, int64_t id);

/* Merges in the order of their ranks; a name is a line of merges.txt, "LEFT RIGHT". The caller frees. */
int tokenizer_merge_count(const struct tokenizer *t);
char *tokenizer_merge_name(const struct tokenizer *t, int rank);
bool tokenizer_uses_nfc(const struct tokenizer *t);       /* text is normalized first */
bool tokenizer_prefixes_space(const struct tokenizer *t); /* a text begins with a space */
bool tokenizer_strips_spaces(const struct tokenizer *t);  /* an added token takes spaces around it along */
/* Whether a word that is itself a token becomes that token even if merging would not reach it. */
bool tokenizer_ignores_merges(const struct tokenizer *t);

/* The published pattern that cuts text into the same words; WORDS_OTHER if there is none, or if a space is
 * put before the text. */
enum word_pattern { WORDS_OTHER, WORDS_GPT2, WORDS_LLAMA3, WORDS_QWEN2 };
enum word_pattern tokenizer_word_pattern(const struct tokenizer *t);

#ifdef __cplusplus
}
#endif
#endif
