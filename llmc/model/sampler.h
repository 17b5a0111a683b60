/* Text generation: choosing a token from logits, and the loop around the model with its key-value cache. */
#ifndef LLMC_SAMPLER_H
#define LLMC_SAMPLER_H

#include "llmc/model/gpt.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sampler_options {
    double temperature; /* 0: always the most probable token */
    int64_t top_k;      /* only among the k most probable; 0: all */
    double
        top_p; /* only among the most probable whose probabilities reach p (Holtzman et al. 2019); 1: all */
    uint64_t seed;
};

/* The token for position `index` of a text: a pure function of the arguments (RNG_SAMPLE). `logits` (V). */
struct sampler;
struct sampler *sampler_new(const struct sampler_options *options, int64_t V);
int64_t sampler_pick(struct sampler *s, const float *logits, uint64_t index);
void sampler_free(struct sampler *s);

/* A model for generation: one sequence of the model's whole context, forward only. With `trained` it reads
 * the parameters of a model in training (same context, same device, its hooks); otherwise it has its own.
 * bf16 weights serve fp32 activations where the device does not compute in bf16. */
void generator_create(struct gpt *gpt, struct ctx *ctx, const struct gpt_config *config, enum dtype dtype,
                      const struct gpt *trained);

/* Called for every new token; returning false ends the generation. */
typedef bool generate_fn(void *user, int64_t token);

/* Continues `prompt` (count >= 1 tokens), which is the prefix of a model with that mask, by up to `tokens`. When the context is full, the later half of it
 * is kept and read again. Returns how many tokens were made. */
int64_t generate(struct gpt *gpt, struct sampler *s, const uint32_t *prompt, int64_t count, int64_t tokens,
                 generate_fn *each, void *user);

/* The text that follows `prompt` (count >= 1 tokens): up to `tokens` tokens, or until <|endoftext|> or `end`
 * (-1: no other token). NUL-terminated; the caller frees. */
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
