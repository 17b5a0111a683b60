/* Text generation: the loop around a model with its key-value cache, for one text or for several at
 * once. */
#ifndef LLMC_GENERATE_H
#define LLMC_GENERATE_H

#include "llmc/model/gpt.h"
#include "llmc/model/sampler.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A model for generation, forward only: `caches` sequences of T tokens, which is at most the model's
 * context; 0: one of the whole context. With `trained` it reads the parameters of a model in training (same
 * context, same device, its hooks); otherwise it has its own. bf16 weights serve fp32 activations where the
 * device does not compute in bf16. */
void generator_create(struct gpt *gpt, struct ctx *ctx, const struct gpt_config *config, enum dtype dtype,
                      const struct gpt *trained, int64_t caches, int64_t T);

/* The memory of one cache in fp32. */
int64_t generator_cache_bytes(const struct gpt_config *config, int64_t T);

/* Called for every new token, with the logits (V) that it was chosen from; returning false ends the
 * text. */
typedef bool generate_fn(void *user, int64_t token, const float *logits);

/* A text that is continued. The caller sets the first part. */
struct generation {
    struct sampler *sampler;
    int64_t tokens; /* how many to make */
    generate_fn *each;
    void *user;

    int64_t made; /* of them */
    bool slid;    /* the context was full, and only its later half was kept */
    bool ended;   /* `tokens` were made, or each() has returned false; the batch has forgotten the text */
};

/* Several texts, continued together: a pass over the model makes a token for each, whatever their lengths.
 * Every text becomes what it would be alone: see gpt_forward_next(). When the context of one is full, the
 * later half of it is kept and read again. */
struct batch;
/* With `reuse`, what a new text has in common with the beginning of one that has ended is not computed
 * again: its keys and values come from other passes than those of the text alone, and are equal to
 * rounding. */
struct batch *batch_new(struct gpt *gpt, bool reuse);
void batch_free(struct batch *b);
/* How many texts can be added now. */
int64_t batch_room(const struct batch *b);
/* Adds a text, which must stay where it is until it has ended. The prompt (count >= 1 tokens) is copied; of
 * a longer one than the context, the end counts. It is the prefix of a model with that mask. */
void batch_add(struct batch *b, struct generation *g, const uint32_t *prompt, int64_t count);
/* Makes one token for each text; false if there is none. */
bool batch_step(struct batch *b);

/* Continues `prompt` by up to `tokens`, in a batch of one. Returns how many tokens were made. */
int64_t generate(struct gpt *gpt, struct sampler *s, const uint32_t *prompt, int64_t count, int64_t tokens,
                 generate_fn *each, void *user);

/* The text that follows `prompt` (count >= 1 tokens): up to `tokens` tokens, or until <|endoftext|> or
 * `end` (-1: no other token). NUL-terminated; the caller frees. */
char *generate_answer(struct gpt *gpt, const struct tokenizer *t, const struct sampler_options *options,
                      const uint32_t *prompt, int64_t count, int64_t tokens, int64_t end);

/* One text: <|endoftext|>, the prompt, then up to `tokens` tokens or until <|endoftext|>. NUL-terminated,
 * the prompt not included; the caller frees. */
char *generate_text(struct gpt *gpt, const struct tokenizer *t, const struct sampler_options *options,
                    const char *prompt, int64_t tokens);

#ifdef __cplusplus
}
#endif
#endif
