/* What a run tells the user: see log.h. */
#include "llmc/run/log.h"

#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/report/json_text.h"
#include "llmc/run/eval.h"
#include "llmc/run/stop.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the start --- */

/* JSON with as many digits as its numbers need: 0.1, not 0.10000000000000001. The caller frees. */
static char *exact_json(const json_t *values) {
    for (size_t digits = 15;; digits++) {
        char *text = json_dumps(values, JSON_INDENT(2) | JSON_REAL_PRECISION(digits));
        json_t *again = text ? json_loads(text, 0, NULL) : NULL;
        bool same = again && json_equal(again, values);
        json_decref(again);
        if (same || digits == 17) return text;
        free(text);
    }
}

static double peak_flops(const struct run *r) { return r->matmul_rate * (double)r->group->world; }

/* Where a token sees only its own document, the places of a row pair as in sequences of pairs/places. */
static double flops_per_token(const struct run *r) {
    double length = (double)r->config.seq_len;
    if (run_masks_documents(&r->config)) {
        struct packed_counts n = dataloader_packed(r->train);
        length = (double)n.pairs / ((double)n.rows * length);
    }
    return gpt_flops_per_token(&r->model, length);
}

static bool write_json(const struct run *r, const char *name, const json_t *values, struct error *err) {
    char *path = xasprintf("%s/%s", r->out, name), *text = exact_json(values);
    check(text != NULL, "out of memory for %s", path);
    bool ok = write_file_atomic(path, text, strlen(text), err);
    free(text);
    free(path);
    return ok;
}

/* What a reader of the log cannot find in the options. A new reference. */
static json_t *facts_of(const struct run *r) {
    const char *device = r->device->name;
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:o, s:o, s:o}", "format", "llmc run 1", "steps",
                     (json_int_t)r->config.steps, "tokens_per_step", (json_int_t)r->config.tokens_per_step,
                     "parameters", (json_int_t)r->gpt.layout.count, "processes", (json_int_t)r->group->world,
                     "flops_per_token", flops_per_token(r), "peak_flops", peak_flops(r), "floor_loss",
                     isfinite(r->data.floor_loss) ? json_real(r->data.floor_loss) : json_null(), "device",
                     json_text(device, (int64_t)strlen(device)), "data",
                     json_text(r->data.summary, (int64_t)strlen(r->data.summary)));
}

/* What the run directory has beside logs and checkpoints. Where run.json is, the others are, too. */
static bool write_files(const struct run *r, struct error *err) {
    char *stories = xasprintf("%s/stories.txt", r->out);
    json_t *stored = options_export(&r->options), *facts = facts_of(r);
    json_object_set(facts, "explicit", json_object_get(stored, "explicit")); /* as a checkpoint stores it */
    if (r->data.stories && !path_exists(stories)) run_data_write_stories(&r->config, stories);
    bool ok = write_json(r, "options.json", json_object_get(stored, "values"), err) &&
              write_json(r, "run.json", facts, err);
    json_decref(facts);
    json_decref(stored);
    free(stories);
    return ok;
}

/* The parts of a mixture in the first `samples` samples. */
static void print_mixture(const struct run *r, int64_t samples, const char *takes) {
    for (int64_t k = 0; k < dataset_parts(r->data.train); k++) {
        double share;
        const char *part = dataset_part(r->data.train, k, &share);
        int64_t taken = dataloader_part_taken(r->train, k, samples);
        say("mixture   %.4g %%: %s, %s %" PRId64 " samples of it (%.4g %%), %.3g epochs\n", 100.0 * share,
            part, takes, taken, 100.0 * (double)taken / (double)max_i64(1, samples),
            (double)taken / (double)dataloader_part_samples(r->train, k));
    }
}

/* What packing loses. Rows that only fill up the epoch do not count. */
static void print_packing(const struct run *r) {
    struct packed_counts n = dataloader_packed(r->train);
    double places = (double)n.rows * (double)r->config.seq_len;
    if (!n.rows) return;
    say("packed    %" PRId64 " %s in %" PRId64 " rows, %.2g %% of the places empty; %s\n", n.documents,
        r->config.chat    ? "conversations"
        : r->config.pairs ? "pairs"
                          : "documents",
        n.rows, 100.0 * (places - (double)n.tokens) / places,
        r->config.document_mask ? "a token sees only its own" : "a token sees all before it in its row");
}

static void introduce(const struct run *r) {
    char *options = options_text(&r->options, r->config.verbose);
    say("%s\n", options);
    free(options);
    say("device    %s, %sFLOP/s in matmul\n", r->device->name, human_count(r->matmul_rate));
    if (r->group->world > 1)
        say("ranks     %" PRId64 " processes, %" PRId64 " of them on this machine; %s\n", r->group->world,
            r->group->local_world, r->comm->kind);
    say("data      %s\n", r->data.summary);
    say("epoch     %" PRId64 " samples of %" PRId64 " tokens", r->state.epoch_samples, r->config.seq_len);
    if (dataloader_unused(r->train))
        say("; %" PRId64 " tokens that fill no sample are not used", dataloader_unused(r->train));
    say("\n");
    print_packing(r);
    print_mixture(r, r->config.steps * r->config.tokens_per_step / r->config.seq_len, "the run takes");
    say("model     %s: %sparameters, %s of memory\n", r->model.name, human_count((double)r->gpt.layout.count),
        human_bytes((double)ctx_memory_total(&r->ctx)));
    if (r->batch.size && r->device->arch) say("batch     %s\n", run_batch_text(&r->batch));
    if (r->config.lora_rank)
        say("adapters  rank %" PRId64 ", alpha %g, on %s: %sparameters are trained, %.3g %% of the model's\n",
            r->config.lora_rank, r->config.lora_alpha, r->config.lora_targets,
            human_count((double)r->gpt.lora.layout.count),
            100.0 * (double)r->gpt.lora.layout.count / (double)r->gpt.layout.count);
    say("run       %s, %" PRId64 " step%s of %" PRId64 " tokens%s%s\n", r->out, r->config.steps,
        r->config.steps == 1 ? "" : "s", r->config.tokens_per_step,
        r->resumed ? ", resumed from "
        : r->start ? ", starting from "
                   : "",
        r->adapter ? r->adapter
        : r->start ? r->start
                   : "");
    char *program = program_name(NULL), *out = shell_quote(r->out);
    say("watch     %s watch %s\n\n", program, out);
    free(program);
    free(out);
}

static bool open_logger(struct run *r, struct error *err) {
    bool writes = is_rank_0(r);
    struct log_options options = {.out = writes ? r->out : NULL,
                                  .quiet = !writes,
                                  .steps = r->config.steps,
                                  .resumed_step = r->state.step,
                                  .tokens_per_step = r->config.tokens_per_step,
                                  .flops_per_token = flops_per_token(r),
                                  .peak_flops = peak_flops(r),
                                  .floor_loss = r->data.floor_loss,
                                  .tensorboard = writes && r->config.tensorboard};
    return (r->log = logger_open(&options, err)) != NULL;
}

bool run_log_rewind(struct run *r, struct error *err) {
    logger_close(r->log);
    log_file_close(&r->task_log);
    log_file_close(&r->sample_log);
    return open_logger(r, err) && run_open_result_logs(r, err);
}

/* log.jsonl comes first: it marks the directory as that of a run. */
bool run_log_open(struct run *r, struct error *err) {
    double copy_rate;
    bool writes = is_rank_0(r);
    if (writes) {
        owner_release_log(&r->owner);
        r->device->measure(r->device, &r->matmul_rate, &copy_rate);
    }
    if (!open_logger(r, err)) return false;
    if (!writes) return true;
    if (!write_files(r, err)) return false;
    introduce(r);
    if (r->device->id[0]) r->nvml = nvml_open(r->device->id);
    return true;
}

bool run_log_restore(struct run *r, struct error *err) {
    char *facts = xasprintf("%s/run.json", r->out);
    bool ok = logger_restore(r->log, err) && log_file_restore(&r->task_log, err) &&
              log_file_restore(&r->sample_log, err) && (path_exists(facts) || write_files(r, err));
    free(facts);
    return ok;
}

/* --- steps --- */

/* Once a second, because a reading can keep the driver busy for a millisecond. */
static void log_gpu(struct run *r, int64_t step) {
    struct nvml_reading reading;
    if (!nvml_read(r->nvml, 1.0, &reading)) return;
    logger_gpu(r->log, step, &reading);
    if (reading.slowed_first)
        logger_say(r->log,
                   "warning: the GPU lowers its clock because of %s: %.0f MHz at %.0f W and %.0f degrees C; "
                   "%s/timing.jsonl records what follows",
                   reading.slowed, reading.sm_mhz, reading.watts, reading.celsius, r->out);
}

void run_log_step(struct run *r, const struct log_step *step) {
    logger_step(r->log, step);
    log_gpu(r, step->step);
    rank_log_put(r->rank_log, "step %" PRId64 "  loss %.6f  %.4f s", step->step, step->loss, step->seconds);
}

void run_log_ranks(struct run *r, bool last) {
    double *seconds;
    char *warning;
    if (!is_rank_0(r) || !rank_timing_report(&r->timing, last, &seconds, &warning)) return;
    logger_ranks(r->log, r->state.step, seconds, r->group->world);
    if (warning) logger_say(r->log, "warning: %s", warning);
    free(seconds);
    free(warning);
}

/* --- the end --- */

void run_log_plot(struct run *r) {
    struct error err;
    if (is_rank_0(r) && !logger_plot(r->log, &err)) warn("%s", err.message);
}

void run_log_close(struct run *r) {
    logger_close(r->log);
    nvml_close(r->nvml);
}

static void print_stopped(const struct run *r) {
    const struct run_config *c = &r->config;
    char *program = program_name(NULL), *out = shell_quote(r->out), *why = run_stop_text(r), ranks[64] = "";
    if (c->gpus || c->ranks)
        snprintf(ranks, sizeof ranks, "--%s %" PRId64 " ", c->gpus ? "gpus" : "ranks", r->group->world);
    say("stopped at step %" PRId64 " of %" PRId64 " (%s); %s\n", r->state.step, c->steps, why,
        !r->saved       ? "THE LAST STATE COULD NOT BE SAVED"
        : r->state.step ? "the state is saved"
                        : "nothing is to be saved yet");
    say("continue  %s %s--resume --out %s\n", program, ranks, out);
    free(why);
    free(program);
    free(out);
}

static void print_loss(const struct run *r) {
    say("loss      %.4f nats per token on the validation set", r->val_loss);
    if (r->val_bytes > 0) say(", %.3f bits per byte", r->val_loss / log(2.0) / r->val_bytes);
    if (isfinite(r->data.floor_loss))
        say("; %.1f %% above the lower bound %.4f, the entropy of the data",
            100.0 * (r->val_loss / r->data.floor_loss - 1.0), r->data.floor_loss);
    say("\n");
}

/* Commands that work as they stand: without a tokenizer `sample` takes no prompt, and prints numbers. */
static void print_sample_command(const struct run *r) {
    if (gpt_looks_ahead(&r->model)) return;
    char *program = program_name(NULL), *out = shell_quote(r->out),
         *base = shell_quote(r->start ? r->start : "");
    char *says = shell_quote(run_samples_file(&r->config) ? r->data.prompt_text : "");
    say("sample    %s sample --from %s%s%s%s%s\n", program, r->config.lora_rank ? base : out,
        r->config.lora_rank ? " --adapter " : "", r->config.lora_rank ? out : "",
        r->data.stories   ? " --prompt Once"
        : r->config.chat  ? " --chat "
        : r->config.pairs ? " --source "
                          : "",
        run_samples_file(&r->config) ? says : "");
    free(says);
    free(base);
    free(program);
    free(out);
}

void run_print_result(const struct run *r) {
    if (!is_rank_0(r)) return;
    if (!run_is_complete(r)) {
        print_stopped(r);
        return;
    }
    if (r->data.val) print_loss(r);
    print_mixture(r, dataloader_position(r->train), "it took");
    char *timing = rank_timing_summary(&r->timing);
    if (timing) say("timing    %s\n", timing);
    free(timing);
    say("weights   %s/step-%08" PRId64 "%s\n", r->out, r->state.step, r->saved ? "" : " COULD NOT BE SAVED");
    if (r->config.keep_best && r->best.kept >= 0) {
        say("best      %s/best, after step %" PRId64 ": %.4f nats per token", r->out, r->best.kept,
            r->state.best_val_loss);
        if (r->val_bytes > 0) say(", %.3f bits per byte", r->state.best_val_loss / log(2.0) / r->val_bytes);
        say("\n");
    }
    say("log       %s/log.jsonl\nplot      %s/loss.svg\n", r->out, r->out);
    if (r->saved) print_sample_command(r);
}
