/* Checkpoints: Hugging Face model directories, with what training needs beside the weights.
 *
 *   RUN/step-00001000/ config.json, generation_config.json, model.safetensors, tokenizer.json,
 *                      tokenizer_config.json
 *                          what transformers reads; without padded vocabulary, without lm_head where it is tied
 *                      optimizer.safetensors
 *                          exp_avg.NAME and exp_avg_sq.NAME, fp32, with the shape and layout (Conv1D
 *                          matrices transposed) of tensor NAME in model.safetensors
 *                      trainer.json
 *                          step, data position, options, and size and XXH3 checksum of every other file
 *
 * Of a run that trains adapters (adapter.h), adapter_config.json and adapter_model.safetensors take the place
 * of the model's files; rank 0 writes all of it.
 *
 * Written by several ranks, model and optimizer are several files each (model-00001-of-00004.safetensors,
 * with the index that Hugging Face uses, and the same for the optimizer), of whole tensors: any number of
 * ranks reads them.
 *
 * model.safetensors holds the weights that training goes on from: the fp32 master weights if there are any
 * (low-precision parameters are those rounded to nearest, so nothing is stored twice), else the parameters
 * in their own type. A checkpoint therefore moves freely between devices, precisions and paddings.
 *
 * A directory is written under the name step-....tmp, every file and the directory flushed, trainer.json
 * last, then renamed: a name without ".tmp" is complete. trainer.json ends with a checksum of itself. Old
 * directories go only after the new one is there. A run directory belongs to one run. */
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include "llmc/text/tokenizer.h"
#include "llmc/ranks/zero.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

/* What a run needs to go on exactly where it was. */
struct train_state {
    int64_t step;   /* optimizer steps done */
    int64_t sample; /* dataloader position */
    int64_t tokens; /* trained on so far */
    uint64_t data;  /* dataset_fingerprint of the training data */
    /* Since a later version; 0 in older checkpoints: */
    uint64_t contents;      /* dataset_contents of the training data, ... */
    uint64_t validation;    /* ... and of the validation data; 0: there is none */
    int64_t epoch_samples;  /* samples in an epoch, which `sample` counts */
    double best_val_loss;   /* NAN if none yet */
    struct json_t *options; /* options_export(), or NULL; owned */
    struct json_t *extra;   /* further state by name (outlier windows, ...), or NULL; owned */
};
void train_state_free(struct train_state *s);

/* Writes RUN/step-NNNNNNNN, replacing an older one of that step. All ranks call it (RUN exists, on a file
 * system that all of them see); all succeed, or all fail with the same reason. `tokenizer` may be NULL. On
 * failure nothing of it remains (nor is anything else touched); only if the last flush of RUN itself fails,
 * the new, complete checkpoint stays in place. Takes host memory for two copies of the model's largest
 * matrix; with several ranks also for the fp32 values and moments of one bucket. */
bool checkpoint_save(const char *run, struct zero *zero, const struct tokenizer *tokenizer,
                     const struct train_state *state, struct error *err);

/* Bytes of a checkpoint, but for what is small beside weights and moments. */
int64_t checkpoint_size(const struct zero *zero);

/* Deletes all but the newest `keep` (at least 1) complete checkpoints of a run and that of step `also` (-1:
 * none), and unfinished ones. Damaged ones stay and do not count. Only sizes are looked at, not checksums. */
bool checkpoint_prune(const char *run, int64_t keep, int64_t also, struct error *err);

/* The names that checkpoint_save() gives. The step of a directory "step-00001000", or -1; whether a name is
 * that of an unfinished one; whether a file of this name in a checkpoint or an exported model is the
 * engine's own. */
int64_t checkpoint_step(const char *name);
bool checkpoint_unfinished(const char *name);
bool checkpoint_owns(const char *name);
/* Deletes the engine's own files in a directory, trainer.json first, and then the directory if nothing else
 * is in it. One that does not exist is fine, and a symbolic link stays. */
bool checkpoint_remove(const char *dir, struct error *err);
/* An empty directory for what is to be put in place, but for files of somebody's that are in it. */
bool checkpoint_begin(const char *temporary, struct error *err);
/* Gives a finished directory its name. An older one of that name changes places with it in one atomic step
 * where the file system can do that, and is then removed; what is not its own stays under the name. */
bool checkpoint_put_in_place(const char *temporary, const char *final, struct error *err);

struct checkpoint_list {
    int64_t *step; /* newest first; the caller frees */
    int64_t count;
};
/* The checkpoints in a run's directory by their names, damaged ones too. Fails, with an empty list, if there
 * is no such directory. */
bool checkpoint_list(struct checkpoint_list *list, const char *run, struct error *err);

/* The path to load from: `path` itself if it is a file or holds a model (if it also has a trainer.json,
 * only when its checksums match), else its newest checkpoint that is complete and whose checksums match;
 * damaged ones are named in a warning and passed over. NULL with the reason if there is none; `err` then
 * begins with "PATH: has no checkpoint" if there is not even a damaged one. The caller frees. */
char *checkpoint_find(const char *path, struct error *err);

/* Whether there is a model: a GGUF file, an llm.c model file, a directory with config.json and weights, or
 * one with checkpoints, whole or damaged. */
bool checkpoint_holds_model(const char *path);

/* The parts of a checkpoint directory. Configuration and weights may also be those of a published Hugging
 * Face GPT-2 (fp32, fp16, bf16; one file or sharded; names with or without "transformer."; causal masks are
 * ignored, an lm_head.weight must equal wte), or a GGUF file or an llm.c model file (gpt2_124M.bin) in place
 * of the directory. Everything is checked against config.json and the model's rows, before anything of that
 * size is allocated: checkpoint_config fails if the tensors do not fit. Weights that are not finite are
 * loaded, with a warning. */
bool checkpoint_config(struct gpt_config *config, const char *dir, struct error *err);
/* Writes every parameter, and zeros in padding and gaps: gpt_init_weights is not needed before. */
bool checkpoint_load_weights(struct gpt *gpt, const char *dir, struct error *err);
/* The same with an adapter (adapter.h) merged into the weights, or without one (NULL). */
bool checkpoint_load_adapted(struct gpt *gpt, const char *dir, const char *adapter, struct error *err);
/* Which model it is: weights_hash(). */
bool checkpoint_hash(uint64_t *hash, const char *dir, struct error *err);
/* For training: what this rank keeps of parameters and master weights (these in their full precision); all
 * ranks call it. */
bool checkpoint_load_parameters(struct zero *zero, const char *dir, struct error *err);
/* What this rank keeps of the moments. */
bool checkpoint_load_moments(struct zero *zero, const char *dir, struct error *err);
bool checkpoint_load_state(struct train_state *state, const char *dir, struct error *err);
/* The tokenizer in the directory or GGUF file, or NULL with err->message "" if it has none, or NULL with the
 * reason (also if it has more tokens than the model). */
struct tokenizer *checkpoint_load_tokenizer(const char *dir, struct error *err);
/* Whether the tokenizer in the directory is this one, or it has none. */
bool checkpoint_tokenizer_is(const char *dir, const struct tokenizer *t);

#ifdef __cplusplus
}
#endif
#endif
