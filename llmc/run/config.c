/* What follows from the options of a training run: the model they name, the values of those that are left
 * open, and the structures of other modules. The options themselves are in config_options.c. */
#include "llmc/run/config.h"

#include "llmc/format/checkpoint.h"
#include "llmc/base/file.h"
#include "llmc/model/generate.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the model --- */

bool run_starts_from_weights(const struct run_config *c) {
    return c->model &&
           (gpt_preset_exists(c->model) ? checkpoint_holds_model(c->model) : path_exists(c->model));
}

bool run_on_stories(const struct run_config *c) { return !c->text && !c->data && !run_samples_file(c); }

static const char *model_name(const struct run_config *c) {
    return c->model ? c->model : run_on_stories(c) ? RUN_STORIES_MODEL : RUN_DEFAULT_MODEL;
}

bool run_model_config(struct gpt_config *model, char **directory, const struct run_config *c,
                      int64_t vocab_size, struct error *err) {
    *directory = NULL;
    struct gpt_config changes = c->shape;
    changes.vocab_size = vocab_size;
    if (!run_starts_from_weights(c)) {
        const char *name = model_name(c);
        if (strchr(name, '/')) return fail(err, "--model %s: no such directory", name);
        return gpt_config_from_name(model, name, &changes, err);
    }
    changes.vocab_size = 0;
    const struct gpt_field *said = gpt_config_said(&changes);
    if (said)
        return fail(
            err,
            "--model %s has a shape of its own; --%s and its like are for models that start from nothing",
            c->model, said->option.name);
    *directory = checkpoint_find(c->model, err);
    if (!*directory || !checkpoint_config(model, *directory, err)) return false;
    if (c->shape.vocab_size && c->shape.vocab_size != model->vocab_size)
        return fail(err, "--vocab-size %" PRId64 ": --model %s has a vocabulary of %" PRId64 " tokens",
                    c->shape.vocab_size, c->model, model->vocab_size);
    /* A model may have more rows than its tokenizer has tokens. */
    if (vocab_size > model->vocab_size)
        return fail(err, "--model %s has a vocabulary of %" PRId64 " tokens, the data one of %" PRId64,
                    c->model, model->vocab_size, vocab_size);
    return true;
}

/* --- values that were left open --- */

/* Brown et al. 2020, table 2.1. Narrower models take larger rates, in inverse proportion to the width. */
static double rate_for_width(int64_t channels) {
    if (channels < 768) return fmin(4e-3, 6e-4 * 768.0 / (double)channels);
    return channels < 1024 ? 6e-4 : channels < 1536 ? 3e-4 : channels < 2048 ? 2.5e-4 : 2e-4;
}

/* For the stories this and the learning rate are tuned (profiling/results/muon-stories.txt, stories.txt):
 * larger embeddings keep the words of a class apart, and a model must tell them apart to repeat the right one.
 * Else 0.02 as in GPT-2, from 768 channels on; with fewer inputs to a sum, larger weights keep its variance. */
static double choose_init_std(bool stories, int64_t channels) {
    return stories ? 0.1 : 0.02 * sqrt(fmax(1.0, 768.0 / (double)channels));
}

/* Weights that are trained already get a tenth: there their own training has ended (--final-lr-fraction), and
 * the full rate would undo what the last part of it has learned. GPT was fine-tuned with 6.25e-5 after 2.5e-4
 * (Radford et al. 2018), BERT with 2e-5 to 5e-5 after 1e-4. Lion's updates are larger: Chen et al. 2023 take
 * 0.1 to 0.3 of AdamW's rate. Muon bears a larger rate, and so do the embeddings and norms beside it:
 * profiling/results/muon-stories.txt.
 *
 * Adapters are new, so they get the full rate, ten times that of the weights. Hu et al. 2021 trained those of
 * GPT-2 with 2e-4; Schulman et al. 2025 ("LoRA Without Regret") find the best rate at ten times that of full
 * fine-tuning, whatever the rank. */
static double choose_learning_rate(const struct run_config *c, int64_t channels, bool from_weights) {
    bool lion = c->optimizer == OPTIMIZER_CHOICE_LION, muon = c->optimizer == OPTIMIZER_CHOICE_MUON;
    double rate = run_on_stories(c) && !lion ? 4e-3 : rate_for_width(channels);
    rate *= lion ? 0.3 : muon ? 2.0 : 1.0;
    return from_weights && !c->lora_rank ? 0.1 * rate : rate;
}

/* The size of the groups that --zero divides among. */
static bool check_zero_group(const struct run_config *c, struct error *err) {
    int64_t world = max_i64(1, c->world), group = c->zero_group;
    if (group == 0 || world == 1) return true;
    if (c->zero == ZERO_NONE)
        return fail(err, "--zero-group %" PRId64 ": --zero 0 divides nothing; choose --zero 1, 2 or 3",
                    group);
    if (world % group == 0) return true;
    int64_t below = min_i64(group, world);
    while (world % below) below--;
    return fail(err,
                "--zero-group %" PRId64 ": %" PRId64 " processes are no whole number of such groups; "
                "the next smaller size that fits is %" PRId64,
                group, world, below);
}

static bool choose_tokens_per_step(struct run_config *c, struct error *err) {
    int64_t world = max_i64(1, c->world), micro = max_i64(1, c->batch_size) * c->seq_len * world;
    if (!c->tokens_per_step) c->tokens_per_step = c->usual_batch * c->seq_len * world;
    if (c->tokens_per_step % micro == 0) return true;
    const char *batch = c->batch_size ? temp_printf("--batch-size %" PRId64 " times ", c->batch_size) : "";
    char processes[64] = "";
    if (world > 1) snprintf(processes, sizeof processes, " times %" PRId64 " processes", world);
    char nearest[64];
    int64_t below = c->tokens_per_step / micro * micro;
    if (below)
        snprintf(nearest, sizeof nearest, "the nearest are %" PRId64 " and %" PRId64, below, below + micro);
    else
        snprintf(nearest, sizeof nearest, "the smallest is %" PRId64, micro);
    return fail(
        err, "--tokens-per-step %" PRId64 " is not a multiple of %s--seq-len %" PRId64 "%s = %" PRId64 "; %s",
        c->tokens_per_step, batch, c->seq_len, processes, micro, nearest);
}

/* Options of one optimizer are refused with another. */
static bool complete_optimizer(struct run_config *c, struct error *err) {
    if (c->optimizer == OPTIMIZER_CHOICE_AUTO) c->optimizer = OPTIMIZER_CHOICE_ADAMW;
    bool muon = c->optimizer == OPTIMIZER_CHOICE_MUON, lion = c->optimizer == OPTIMIZER_CHOICE_LION;
    const char *name = run_optimizer_name(c);
    if (c->momentum < 0.0 && c->momentum != -1.0)
        return fail(err, "--momentum %g: must be 0 or more, and below 1", c->momentum);
    if (c->beta2 < 0.0 && c->beta2 != -1.0)
        return fail(err, "--beta2 %g: must be 0 or more, and below 1", c->beta2);
    if (c->embedding_lr_factor <= 0.0)
        return fail(err, "--embedding-lr-factor %g: must be above 0", c->embedding_lr_factor);
    if (!muon && c->momentum >= 0.0)
        return fail(err, "--momentum is Muon's, and --optimizer is %s, which has --beta1 and --beta2", name);
    if (!muon && c->muon_lr_factor > 0.0)
        return fail(err, "--muon-lr-factor is Muon's, and --optimizer is %s, which has --learning-rate",
                    name);
    if (lion && c->eps > 0.0)
        return fail(err, "--eps is AdamW's, and --optimizer is lion, which divides by nothing");
    if (muon && c->momentum < 0.0) c->momentum = 0.95;
    if (muon && c->muon_lr_factor <= 0.0) c->muon_lr_factor = 1.0;
    if (c->embedding_decay == SWITCH_AUTO) c->embedding_decay = muon ? SWITCH_OFF : SWITCH_ON;
    if (c->beta2 < 0.0) c->beta2 = lion ? 0.99 : 0.95;
    if (!lion && c->eps <= 0.0) c->eps = 1e-8;
    return true;
}

/* Of the built-in stories hardly one has more tokens than STORY_TOKENS (1 of 40,000), and hardly two fit into
 * so many. Packed in rows of STORIES_ROW they leave 4 % of the places empty, in rows of half the length 10 %.
 * A step has at most STORIES_TOKENS: larger batches learn less from the same tokens. */
enum { STORY_TOKENS = 116, STORIES_ROW = 4 * STORY_TOKENS, STORIES_TOKENS = 1024 };

/* Shorter rows compute less, and multiples of 16 suit the hardware. The last token is only a target. */
static int64_t choose_seq_len(const struct run_config *c, const struct gpt_config *model) {
    int64_t row = 1024;
    if (run_samples_file(c)) row = min_i64(row, round_up(max_i64(1, c->longest - 1), 16));
    if (run_on_stories(c)) row = c->samples == SAMPLES_CHOICE_PACKED ? STORIES_ROW : STORY_TOKENS;
    return min_i64(row, model->context);
}

static bool can_mask_documents(const struct gpt_config *model) {
    return model->mask == MASK_CAUSAL || model->mask == MASK_WINDOW;
}

static bool choose_samples(struct run_config *c, const struct gpt_config *model, struct error *err) {
    const char *apart = run_samples_file(c);
    bool packs_stories = model->context >= STORIES_ROW && can_mask_documents(model);
    if (c->samples == SAMPLES_CHOICE_AUTO)
        c->samples = apart                ? SAMPLES_CHOICE_APART
                     : c->text || c->data ? SAMPLES_CHOICE_WINDOWS
                     : packs_stories      ? SAMPLES_CHOICE_PACKED
                                          : SAMPLES_CHOICE_DOCUMENTS;
    if (c->samples == SAMPLES_CHOICE_APART && !apart)
        return fail(err, "--samples apart: only --chat and --pairs have samples that are kept apart");
    return c->samples != SAMPLES_CHOICE_WINDOWS || !apart ||
           fail(err, "--samples windows: samples of --%s are not cut; give apart, documents or packed",
                run_samples_option(c));
}

static bool check_document_mask(const struct run_config *c, const struct gpt_config *model,
                                struct error *err) {
    static const char *const masks[] = {
        [MASK_ANTI_CAUSAL] = "anti-causal", [MASK_FULL] = "full", [MASK_PREFIX] = "prefix"};
    return !run_masks_documents(c) || can_mask_documents(model) ||
           fail(err,
                "--samples packed: a token sees only its own document under --mask causal and --mask window, "
                "not under --mask %s; --no-document-mask lets it see the others in its row",
                masks[model->mask]);
}

static bool complete_adapters(struct run_config *c, const struct gpt_config *model, struct error *err) {
    if (!c->lora_rank) return true;
    if (c->lora_alpha <= 0) c->lora_alpha = 2.0 * (double)c->lora_rank;
    if (c->zero < ZERO_PARAMETERS) c->zero = ZERO_NONE; /* as it is (zero.h) */
    c->lora.rank = c->lora_rank;
    c->lora.scale = (float)(c->lora_alpha / (double)c->lora_rank);
    return lora_targets_parse(&c->lora.targets, c->lora_targets, model, err);
}

bool run_config_complete(struct run_config *c, const struct gpt_config *model, struct error *err) {
    bool small = model->channels < 512, from_weights = run_starts_from_weights(c);
    bool stories = run_on_stories(c);
    if (!choose_samples(c, model, err)) return false;
    if (!c->seq_len) c->seq_len = choose_seq_len(c, model);
    if (c->seq_len > model->context)
        return fail(err,
                    "--seq-len %" PRId64 " is longer than the context of model %s (%" PRId64 " positions)%s",
                    c->seq_len, model->name, model->context,
                    from_weights ? "" : "; --context gives a new model a longer one");
    c->usual_batch = c->batch_size ? c->batch_size
                     : stories     ? min_i64(8, max_i64(1, STORIES_TOKENS / c->seq_len))
                     : small       ? 8
                                   : 4;
    c->model = model_name(c);
    if (!check_zero_group(c, err) || !choose_tokens_per_step(c, err)) return false;
    if (!check_document_mask(c, model, err) || !complete_optimizer(c, err) ||
        !complete_adapters(c, model, err))
        return false;
    if (c->init_std <= 0 && !from_weights) c->init_std = choose_init_std(stories, model->channels);
    if (c->learning_rate <= 0) c->learning_rate = choose_learning_rate(c, model->channels, from_weights);
    if (c->final_lr_fraction < 0) c->final_lr_fraction = stories ? 0.0 : 0.1;
    return true;
}

/* The step at which --epochs are over. */
static int64_t steps_of_epochs(const struct run_config *c, int64_t epoch_samples, int64_t step,
                               int64_t sample) {
    double left = c->epochs * (double)epoch_samples - (double)sample;
    return step + llround(left * (double)c->seq_len / (double)c->tokens_per_step);
}

static bool choose_steps(struct run_config *c, const struct options *o, int64_t epoch_samples, int64_t step,
                         int64_t sample, struct error *err) {
    enum { STORIES_STEPS = 2600, FEWEST_STEPS = 500 };
    enum option_source steps = options_source(o, "steps"), epochs = options_source(o, "epochs");
    int64_t epoch_steps = epoch_samples * c->seq_len / c->tokens_per_step;
    if (c->epochs > 0 && (!c->steps || epochs > steps)) {
        c->steps = max_i64(1, steps_of_epochs(c, epoch_samples, step, sample));
        return c->steps >= step ||
               fail(err, "--epochs %g: the run has made %.3g epochs in its %" PRId64 " steps; give more",
                    c->epochs, (double)sample / (double)epoch_samples, step);
    }
    if (c->epochs > 0 && epochs == steps && epochs >= OPTION_FROM_FILE &&
        steps_of_epochs(c, epoch_samples, step, sample) != c->steps) {
        warn("--epochs %g has no effect, because --steps %" PRId64 " is given, too", c->epochs, c->steps);
        c->epochs = 0;
    }
    if (steps > epochs) c->epochs = 0; /* that was another plan */
    if (!c->steps)
        c->steps = run_on_stories(c)     ? STORIES_STEPS
                   : run_samples_file(c) ? max_i64(1, 3 * epoch_samples * c->seq_len / c->tokens_per_step)
                                         : max_i64(FEWEST_STEPS, epoch_steps);
    return c->steps >= step || fail(err,
                                    "--steps %" PRId64 ": the run has already made %" PRId64
                                    " steps; give more, or leave the option out",
                                    c->steps, step);
}

bool run_config_plan(struct run_config *c, const struct options *o, int64_t epoch_samples, int64_t step,
                     int64_t sample, struct error *err) {
    if (!choose_steps(c, o, epoch_samples, step, sample, err)) return false;
    if (c->warmup < 0) c->warmup = min_i64(700, c->steps / 20);
    if (c->warmup > c->steps)
        warn("--warmup %" PRId64 " lasts longer than the run of %" PRId64
             " steps: the learning rate reaches %.3g at the end, not its peak of %.3g",
             c->warmup, c->steps, run_learning_rate(c, c->steps - 1), c->learning_rate);
    if (!c->val_every) c->val_every = max_i64(20, c->steps / 10);
    if (!c->eval_every) c->eval_every = c->val_every;
    if (!c->save_every) c->save_every = max_i64(50, c->steps / 10);
    return true;
}

/* --- structures of other modules --- */

/* A file for what is kept between the runs of a user on a machine (XDG Base Directory Specification); NULL
 * without a home. The caller frees. */
static char *cache_file(const char *name) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache == '/') return xasprintf("%s/llmc/%s", cache, name);
    return home && *home == '/' ? xasprintf("%s/.cache/llmc/%s", home, name) : NULL;
}

struct device *run_open_device(const struct run_config *c) {
    enum { WORTH_TIMING = 1000000000 }; /* FLOPs: a few microseconds, beside which a launch counts */
    struct error err;
    struct device_options options = {.threads = c->threads, .tf32 = c->tf32};
    const char *tune = c->autotune ? c->autotune : "auto"; /* NULL: a run from before there was a default */
    bool automatic = strcmp(tune, "auto") == 0;
    char *cached = automatic ? cache_file("matmul.tune") : NULL;
    if (automatic) options.tune_flops = WORTH_TIMING;
    if (strcmp(tune, "off") != 0) options.tune_file = automatic ? cached : tune;
    struct device *device = device_open(c->device, &options, &err);
    check(device, "%s", err.message);
    free(cached);
    return device;
}

/* Before the choice is made: AdamW. */
static enum optimizer_kind chosen_optimizer(const struct run_config *c) {
    static const enum optimizer_kind kinds[] = {[OPTIMIZER_CHOICE_AUTO] = OPTIMIZER_ADAMW,
                                                [OPTIMIZER_CHOICE_ADAMW] = OPTIMIZER_ADAMW,
                                                [OPTIMIZER_CHOICE_MUON] = OPTIMIZER_MUON,
                                                [OPTIMIZER_CHOICE_LION] = OPTIMIZER_LION};
    return kinds[c->optimizer];
}

const char *run_optimizer_name(const struct run_config *c) { return optimizer_name(chosen_optimizer(c)); }

struct optimizer_options run_optimizer_options(const struct run_config *c,
                                               const struct gpt_options *options) {
    return (struct optimizer_options){.kind = chosen_optimizer(c),
                                      .master_weights = options->dtype == DTYPE_BF16 && c->master_weights};
}

struct gpt_options run_gpt_options(const struct run_config *c, const struct device *device) {
    enum dtype dtype = c->dtype == DTYPE_CHOICE_AUTO   ? device->dtype
                       : c->dtype == DTYPE_CHOICE_BF16 ? DTYPE_BF16
                                                       : DTYPE_F32;
    check(dtype == DTYPE_F32 || dtype == device->dtype,
          "--dtype bf16: the CPU trains in fp32 only; use --dtype fp32 or a GPU (--device cuda)");
    bool fp8 = c->matmul == MATMUL_CHOICE_FP8;
    check(
        !fp8 || device->arch == 0 || device->arch >= 89,
        "--matmul fp8: %s has compute capability %d.%d, but fp8 needs 8.9 (Ada), 9.0 (Hopper) or later; use "
        "--matmul bf16",
        device->name, device->arch / 10, device->arch % 10);
    check(!fp8 || dtype == device->dtype, "--matmul fp8 on a GPU rounds bf16 tensors: use --dtype bf16");
    struct gpt_options options = {.B = c->batch_size,
                                  .T = c->seq_len,
                                  .train = true,
                                  .recompute = c->recompute,
                                  .head_chunks = c->head_chunks,
                                  .init_std = (float)c->init_std,
                                  .fp8 = fp8,
                                  .loss = {(float)c->label_smoothing, (float)c->z_loss},
                                  .lora = c->lora,
                                  .dropout = (float)c->dropout,
                                  .dropout_seed = (uint64_t)c->seed,
                                  .documents = run_masks_documents(c),
                                  .dtype = dtype};
    zero_gpt_options(&options, c->zero, c->world);
    return options;
}

double run_learning_rate(const struct run_config *c, int64_t step) {
    struct schedule schedule = {c->schedule, c->learning_rate,     c->warmup,
                                c->steps,    c->final_lr_fraction, c->decay_fraction};
    return schedule_lr(&schedule, step);
}

struct update_args run_update_args(const struct run_config *c, double learning_rate, int64_t step,
                                   const struct guard_limits *limits) {
    return (struct update_args){.lr = (float)learning_rate,
                                .step = step + 1, /* AdamW counts from 1 */
                                .beta1 = (float)c->beta1,
                                .beta2 = (float)c->beta2,
                                .eps = (float)c->eps,
                                .momentum = (float)c->momentum,
                                .muon_lr = (float)(learning_rate * c->muon_lr_factor),
                                .embedding_lr = (float)(learning_rate * c->embedding_lr_factor),
                                .no_embedding_decay = c->embedding_decay == SWITCH_OFF,
                                .weight_decay = (float)c->weight_decay,
                                .max_norm = (float)c->grad_clip,
                                .skip_outliers = limits && c->skip_outliers > 0.0,
                                .max_loss = limits ? limits->max_loss : 0.0f,
                                .max_sumsq = limits ? limits->max_norm * limits->max_norm : 0.0f,
                                .stochastic = c->stochastic_rounding && !c->master_weights,
                                .seed = (uint64_t)c->seed};
}

double run_plan_step(struct ctx *ctx, const struct gpt_config *model, const struct gpt_options *options,
                     struct optimizer_options kept, const struct run_config *c) {
    check(ctx->plan, "run_plan_step: the context would run the step");
    struct gpt gpt, generator;
    struct optimizer optimizer;
    struct zero zero;
    struct comm *comm = comm_open_plan(max_i64(1, c->world), c->zero_group);
    gpt_create(&gpt, ctx, model, options);
    zero_create(&zero, &gpt, &optimizer, comm, c->zero, kept);
    generator_create(&generator, ctx, model, options->dtype, &gpt, 0, 0);
    gpt_init_weights(&gpt, 1);
    ctx_reset_stats(ctx);
    struct update_args args = {.lr = 1e-3f, .step = 1};
    zero_update(&zero, &args);
    double update = ctx_flops(ctx);
    ctx_reset_stats(ctx);
    gpt_set_batch(&gpt, NULL, NULL);
    gpt_set_documents(&gpt, NULL, NULL);
    gpt_set_loss_scale(&gpt, 1.0f);
    zero_micro_step(&zero, true, true);
    zero_free(&zero);
    comm->close(comm);
    return update;
}
