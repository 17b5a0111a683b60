/* Conversations as tokens.
 *
 * A chat model continues a text in which marks say who speaks. Which marks is a convention of the model, its
 * template. Hugging Face keeps it as a Jinja program in tokenizer_config.json ("chat_template") or in
 * chat_template.jinja. These families are known; BOS and EOS are the model's tokens, TEXT is a message:
 *
 *   plain    BOS, System:\nTEXT\n\n  User:\nTEXT\n\n  Assistant:\nTEXT EOS: for tokenizers without marks
 *   chatml   <|im_start|>ROLE\nTEXT<|im_end|>\n: ChatML, as Qwen and SmolLM have it
 *   llama3   BOS, <|start_header_id|>ROLE<|end_header_id|>\n\nTEXT<|eot_id|>: Llama 3
 *   zephyr   <|ROLE|>\nTEXT EOS\n: Zephyr, TinyLlama
 *
 * A Jinja text is recognised by what is in it, never run. What would write other tokens (marks for
 * reasoning, today's date) is refused. */
#ifndef LLMC_TEXT_CHAT_H
#define LLMC_TEXT_CHAT_H

#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum chat_family { CHAT_AUTO, CHAT_PLAIN, CHAT_CHATML, CHAT_LLAMA3, CHAT_ZEPHYR, CHAT_FAMILIES };
/* The row of --chat-template, with a field `chat_template` of enum chat_family. */
#define CHAT_TEMPLATE_OPTION(S)                                                                              \
    OPT_WORD(S, chat_template, "chat-template", "auto", "auto|plain|chatml|llama3|zephyr", NULL,             \
             "how a conversation is written (auto: as the tokenizer's own template says, if it is of these " \
             "families; without one chatml where the tokenizer has <|im_start|>, else plain)",               \
             0)

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_ROLES };
/* CHAT_ROLES for any other word. */
enum chat_role chat_role(const char *word);

struct chat_message {
    enum chat_role role;
    const char *text;
    int64_t size;
};

struct chat_format {
    enum chat_family family;           /* not CHAT_AUTO */
    const struct tokenizer *tokenizer; /* not owned */
    int64_t bos, eos;                  /* -1: none */
    int64_t end_of_turn;               /* the token that ends what the assistant says */
    char *system;                      /* the message of conversations that begin without one; NULL: none */
};

/* `bos` and `eos` begin and end a text of this model; -1: <|endoftext|>. Fails if the tokenizer's own
 * template is of no known family, or the tokenizer has no token for a mark. */
bool chat_open(struct chat_format *f, enum chat_family family, const struct tokenizer *t, int64_t bos,
               int64_t eos, struct error *err);
void chat_close(struct chat_format *f);
const char *chat_family_name(enum chat_family family);

/* The Jinja text of the format: the tokenizer's own if it is what was recognised. */
const char *chat_jinja(const struct chat_format *f);
/* The family that a Jinja text is of, CHAT_AUTO if it is of none. *system receives the message that it puts
 * before conversations without one, or NULL; the caller frees. */
enum chat_family chat_recognise(const char *jinja, char **system);

/* Start from {0}. */
struct chat_tokens {
    struct token_buffer ids;
    uint8_t *learned; /* (ids.count) 1: the assistant's words, and the token that ends its turn */
    int64_t capacity;
};
void chat_tokens_free(struct chat_tokens *out);
/* Sets `learned` for the tokens from `from` on. */
void chat_mark_learned(struct chat_tokens *out, int64_t from, bool learned);

/* The tokens of a conversation replace what is in *out. With `answer` they end where the assistant is to
 * speak. Marks are single tokens. A mark inside a message is ordinary text, so nobody can speak as somebody
 * else. The ids are those of Hugging Face's apply_chat_template, unless the assistant's text begins with
 * white space: it is encoded apart from the line before it, as a model that answers writes it. */
bool chat_render(const struct chat_format *f, const struct chat_message *messages, int64_t count, bool answer,
                 struct chat_tokens *out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
