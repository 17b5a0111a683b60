/* Checkpoints: Hugging Face model directories, with what training needs beside the weights.
 *
 *   RUN/step-00001000/config.json  model.safetensors  tokenizer.json  generation_config.json     what
 * transformers reads optimizer.safetensors   trainer.json          moments, master weights; step, data
 * position, options
 *
 * A directory is written under a temporary name, every file flushed, then renamed: a name without ".tmp" is
 * complete. trainer.json, written last, holds size and checksum (XXH3) of every other file, and is what tells
 * a checkpoint that training can continue from. Old directories go only after the new one is there. */
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include "gpt.h"
#include "optimizer.h"
#include "tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

/* What a run needs to go on exactly where it was. */
struct train_state {
    int64_t step;           /* optimizer steps done */
    int64_t sample;         /* dataloader position */
    int64_t tokens;         /* trained on so far */
    uint64_t data;          /* dataset_fingerprint of the training data */
    double best_val_loss;   /* NAN if none yet */
    struct json_t *options; /* options_export(); owned */
    struct json_t *extra;   /* further state by name (outlier windows, ...), or NULL; owned */
};
void train_state_free(struct train_state *s);

/* Writes RUN/step-NNNNNNNN. `tokenizer` may be NULL. On failure nothing of it remains (nor is anything else
 * touched). */
bool checkpoint_save(const char *run, struct gpt *gpt, struct optimizer *opt,
                     const struct tokenizer *tokenizer, const struct train_state *state, struct error *err);

/* Deletes all but the newest `keep` complete checkpoints of a run, and unfinished ones. */
bool checkpoint_prune(const char *run, int64_t keep, struct error *err);

/* The directory to load: `path` itself if it holds a model, else its newest checkpoint that is complete and
 * whose checksums match; damaged ones are named in a warning and passed over. NULL if there is none. The
 * caller frees. */
char *checkpoint_find(const char *path, struct error *err);

/* The parts of a checkpoint directory. Weights may also be a published Hugging Face GPT-2 (fp32, fp16, bf16;
 * one file or sharded; names with or without "transformer."). Everything is checked against config.json and
 * the model's rows. */
bool checkpoint_config(struct gpt_config *config, const char *dir, struct error *err);
bool checkpoint_load_weights(struct gpt *gpt, const char *dir, struct error *err);
bool checkpoint_load_optimizer(struct optimizer *opt, struct gpt *gpt, const char *dir, struct error *err);
bool checkpoint_load_state(struct train_state *state, const char *dir, struct error *err);
/* The tokenizer in the directory, or NULL with err->message "" if it has none, or NULL with the reason. */
struct tokenizer *checkpoint_load_tokenizer(const char *dir, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
