/* The options of a training run, and what follows from them. Four structures have similar names:
 *
 *   struct options      (base/options.h)  the command line: which options were given, and by whom
 *   struct run_config                     their values, filled in by struct options
 *   struct gpt_config   (model/gpt.h)     the architecture of the model: layers, channels, vocabulary
 *   struct gpt_options  (model/gpt.h)     how that model is computed: batch, storage type, recomputation
 *
 * Shared by training, `plan`, `profile` and `compare`. */
#ifndef LLMC_RUN_CONFIG_H
#define LLMC_RUN_CONFIG_H

#include "llmc/base/options.h"
#include "llmc/corpus/text_source.h"
#include "llmc/model/gpt.h"
#include "llmc/ranks/zero.h"
#include "llmc/run/guard.h"
#include "llmc/text/chat.h"

enum samples_choice {
    SAMPLES_CHOICE_AUTO,
    SAMPLES_CHOICE_WINDOWS,
    SAMPLES_CHOICE_DOCUMENTS,
    SAMPLES_CHOICE_APART,
    SAMPLES_CHOICE_PACKED
};
enum optimizer_choice {
    OPTIMIZER_CHOICE_AUTO,
    OPTIMIZER_CHOICE_ADAMW,
    OPTIMIZER_CHOICE_MUON,
    OPTIMIZER_CHOICE_LION
};
enum dtype_choice { DTYPE_CHOICE_AUTO, DTYPE_CHOICE_FP32, DTYPE_CHOICE_BF16 };
enum matmul_choice { MATMUL_CHOICE_BF16, MATMUL_CHOICE_FP8 };

struct run_config {
    /* model */
    const char *model;       /* preset, or a directory with weights; NULL: see RUN_STORIES_MODEL */
    struct gpt_config shape; /* what is said of it; the vocabulary also goes to a tokenizer that is trained */
    /* data */
    const char *text, *field, *data, *val, *chat, *pairs, *tokenizer;
    enum chat_family chat_template;
    enum text_format format;
    int64_t stories;
    double validation_fraction;
    bool shuffle;
    enum samples_choice samples;
    bool document_mask;
    /* batch and length */
    int64_t batch_size, seq_len, tokens_per_step, steps;
    double epochs;
    /* optimizer */
    double learning_rate, final_lr_fraction, decay_fraction, weight_decay, beta1, beta2, eps, grad_clip;
    double momentum, muon_lr_factor, embedding_lr_factor, label_smoothing, z_loss, dropout;
    enum gpt_switch embedding_decay;
    enum optimizer_choice optimizer;
    enum schedule_kind schedule;
    int64_t warmup;
    double init_std;
    /* adapters */
    int64_t lora_rank;
    double lora_alpha;
    const char *lora_targets;
    struct lora_options lora; /* not an option; run_config_complete() sets it */
    /* evaluation */
    int64_t val_every, val_batches, sample_every, eval_every;
    const char *eval_tasks;
    /* run */
    const char *out, *notify;
    bool resume, overwrite, verbose, requeue;
    double max_time; /* seconds; 0: no limit */
    int64_t save_every, keep, early_stop, seed;
    bool keep_best;
    double skip_outliers; /* standard deviations; 0: never */
    int64_t rollback;
    /* several processes */
    int64_t gpus, ranks, restart;
    double comm_timeout;
    enum zero_level zero;
    int64_t zero_group;
    bool bind, rank_logs, tensorboard;
    /* Not an option; run_config_complete() sets it: --batch-size if it is given, else what every device has
     * by default. The default of --tokens-per-step and the size of a validation follow from it. */
    int64_t usual_batch;
    int64_t world;   /* processes of the run; not an option, run_open() sets it; 0 means 1 */
    int64_t longest; /* tokens of the longest conversation or pair; not an option, run_data_open() knows it */
    /* device and memory */
    const char *device;
    enum dtype_choice dtype;
    enum matmul_choice matmul;
    enum recompute recompute;
    int64_t head_chunks, threads;
    bool graph, master_weights, stochastic_rounding, tf32;
    const char *autotune;
};

/* The file of samples that stay apart, or NULL, and the option that names it. */
static inline const char *run_samples_file(const struct run_config *c) {
    return c->chat ? c->chat : c->pairs;
}
static inline const char *run_samples_option(const struct run_config *c) {
    return c->chat ? "chat" : "pairs";
}

/* Whether a row holds documents that attention keeps apart. */
static inline bool run_masks_documents(const struct run_config *c) {
    return c->samples == SAMPLES_CHOICE_PACKED && c->document_mask;
}

extern const struct option_group run_option_groups[];
enum { RUN_OPTION_GROUPS = 10 };

/* What a run without --model trains, on data of the user and on the built-in stories. */
#define RUN_DEFAULT_MODEL "tiny"
#define RUN_STORIES_MODEL "stories"
/* Whether --model names a directory (or file) with weights. The name of a preset means the preset, unless
 * something of that name holds a model. */
bool run_starts_from_weights(const struct run_config *c);
/* Without data of the user's it trains on the built-in stories. */
bool run_on_stories(const struct run_config *c);

/* The model that the options name: a preset with overrides, or the one in a checkpoint directory, whose
 * path *directory then receives (owned by the caller; NULL for a preset). `vocab_size` overrides a preset's
 * if > 0. */
bool run_model_config(struct gpt_config *model, char **directory, const struct run_config *c,
                      int64_t vocab_size, struct error *err);

/* Chooses the values that were left open (0, -1, auto), but for those that count steps and the batch size
 * (batch.h), and checks those that depend on each other: sequence and context, batch and tokens per step. */
bool run_config_complete(struct run_config *c, const struct gpt_config *model, struct error *err);
/* Chooses the number of steps and what follows from it, when the samples in an epoch are known. A resumed
 * run has done `step` steps and `sample` samples: --epochs counts these, too. Of --steps and --epochs, the
 * one whose source is the later one decides, --steps if they are equal. Fails if the run is further than
 * that. */
bool run_config_plan(struct run_config *c, const struct options *o, int64_t epoch_samples, int64_t step,
                     int64_t sample, struct error *err);

/* Opens --device with --threads, --tf32 and --autotune. Dies with the reason if it cannot. */
struct device *run_open_device(const struct run_config *c);
/* Of a run whose choice is made. */
const char *run_optimizer_name(const struct run_config *c);
struct optimizer_options run_optimizer_options(const struct run_config *c, const struct gpt_options *options);
struct gpt_options run_gpt_options(const struct run_config *c, const struct device *device);
/* For optimizer step `step`; 0 is the first. */
double run_learning_rate(const struct run_config *c, int64_t step);
/* `limits` are those of --skip-outliers; NULL: no step is an outlier. */
struct update_args run_update_args(const struct run_config *c, double learning_rate, int64_t step,
                                   const struct guard_limits *limits);

/* One update and one micro-step in plan mode: leaves the memory of a process, one of config->world, and the
 * work of the micro-step in the context's accounts, and returns the FLOPs of the update. The memory includes
 * the generator of samples. ctx must be in plan mode, and `options` come from run_gpt_options(config). */
double run_plan_step(struct ctx *ctx, const struct gpt_config *model, const struct gpt_options *options,
                     struct optimizer_options optimizer, const struct run_config *config);

#endif
