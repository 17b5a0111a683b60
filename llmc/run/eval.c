/* Validation, tasks and samples during a run: see eval.h. */
#include "llmc/run/eval.h"

#include "llmc/base/console.h"
#include "llmc/report/json_text.h"
#include "llmc/run/best.h"
#include "llmc/run/stop.h"
#include "llmc/stories/stories.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- validation --- */

/* For the watch, which ends the run if a rank makes no progress. */
static void report_progress(void *run, double done) {
    const struct run *r = (const struct run *)run;
    group_progress(r->group, "evaluating", r->state.step);
}

/* Loss and bytes of a target, on average over those of all ranks. */
static void set_validation(struct run *r, const struct eval_loss *loss) {
    struct part {
        double sum;
        int64_t targets, bytes;
    } mine = {loss->targets ? loss->loss * (double)loss->targets : 0.0, loss->targets, loss->bytes},
      all = {0.0, 0, 0};
    int64_t world = r->group->world;
    struct part *of_rank = (struct part *)xmalloc((size_t)world * sizeof *of_rank);
    group_exchange(r->group, of_rank, &mine, sizeof mine);
    for (int64_t i = 0; i < world; i++) {
        all.sum += of_rank[i].sum;
        all.targets += of_rank[i].targets;
        all.bytes += of_rank[i].bytes;
    }
    free(of_rank);
    r->val_loss = world == 1 ? loss->loss : all.targets ? all.sum / (double)all.targets : (double)NAN;
    r->val_bytes = all.targets ? (double)all.bytes / (double)all.targets : 0.0;
}

/* Where training keeps documents apart, validation does, too. The longest come first in packed rows, so
 * the first batches of a permutation are taken. */
struct dataloader *run_open_validation(const struct run *r, struct error *err) {
    bool masked = run_masks_documents(&r->config);
    struct loader_options loading = {.B = r->config.batch_size,
                                     .T = r->config.seq_len,
                                     .order = masked ? SAMPLES_PACKED : r->data.val_order,
                                     .shuffle_rows = masked,
                                     .seed = (uint64_t)r->config.seed,
                                     .rank = r->group->rank,
                                     .world = r->group->world,
                                     .end_of_text = run_end_of_text(&r->data)};
    return dataloader_open(r->data.val, &loading, err);
}

void run_validate(struct run *r) {
    int64_t rank = r->group->rank, world = r->group->world;
    struct error err;
    struct dataloader *loader = run_open_validation(r, &err);
    check(loader, "%s", err.message);
    /* in batches of the usual size, so that the samples do not depend on the one that was chosen */
    int64_t usual = r->config.usual_batch, all = ceil_div(dataloader_samples(loader), usual);
    int64_t batches = r->config.val_batches ? r->config.val_batches : r->config.data ? 20 : all;
    struct eval_progress progress = {report_progress, r};
    int64_t samples = min_i64(batches, all) * usual;
    dataloader_seek_range(loader, 0, samples);
    batches = ceil_div(samples, r->config.batch_size);
    int64_t own = batches / world + (rank < batches % world);
    struct eval_loss loss = eval_loss(&r->gpt, loader, own, r->data.tokenizer, NULL, &progress);
    /* a rank without a batch in the last round computes one for nothing: gathering parameters needs all
     * ranks */
    if (own < ceil_div(batches, world)) eval_loss(&r->gpt, loader, 1, NULL, NULL, NULL);
    dataloader_close(loader);
    set_validation(r, &loss);
    logger_validation(r->log, r->state.step, r->val_loss, r->val_bytes);
    run_best_update(r);
}

/* --- tasks --- */

void run_open_tasks(struct run *r) {
    struct error err;
    if (!r->config.eval_tasks) return;
    check(r->data.tokenizer,
          "--eval-tasks: with token shards, --tokenizer must say how the questions become tokens");
    check(eval_tasks_open(&r->tasks, r->config.eval_tasks, r->data.tokenizer, r->config.seq_len, NULL, &err),
          "--eval-tasks: %s", err.message);
    if (is_rank_0(r) && r->tasks.cut)
        warn("%" PRId64 " of %" PRId64 " questions are longer than %" PRId64
             " tokens: their beginnings are left out",
             r->tasks.cut, r->tasks.questions, r->config.seq_len);
}

/* A resumed run repeats what was due at its first step. */
static bool open_result_log(const struct run *r, struct log_file *f, const char *name, struct error *err) {
    char *path = xasprintf("%s/%s", r->out, name);
    bool ok = log_file_open(f, path, max_i64(0, r->state.step - 1), err);
    free(path);
    return ok;
}

bool run_open_result_logs(struct run *r, struct error *err) {
    return !is_rank_0(r) ||
           ((!r->tasks.count || open_result_log(r, &r->task_log, "tasks.jsonl", err)) &&
            (!r->data.tokenizer || open_result_log(r, &r->sample_log, "samples.jsonl", err)));
}

/* Takes over the reference to `row`. */
static void put_result(struct log_file *f, json_t *row) {
    char *text = row ? json_dumps(row, JSON_COMPACT) : NULL;
    check(text != NULL, "%s: a row cannot be written as JSON", f->path);
    char *line = xasprintf("%s\n", text);
    log_file_put(f, line, (int64_t)strlen(line));
    free(line);
    free(text);
    json_decref(row);
}

void run_answer_tasks(struct run *r) {
    struct eval_progress progress = {report_progress, r};
    for (int64_t i = 0; i < r->tasks.count; i++) {
        struct eval_result a = eval_task_run(r->tasks.task[i], &r->gpt, NULL, &progress);
        if (!is_rank_0(r)) continue;
        const char *name = eval_task_name(r->tasks.task[i]);
        const char *other = a.completions ? temp_printf("perplexity %.2f", a.perplexity)
                                          : temp_printf("by mean per token %.2f %%, by guessing %.2f %%",
                                                        100.0 * a.per_token, 100.0 * a.chance);
        logger_say(r->log, "step %" PRId64 "  %s: %.2f %% of %" PRId64 " correct (%s)", r->state.step, name,
                   100.0 * a.accuracy, a.questions, other);
        json_t *row = json_pack("{s:I, s:s, s:f}", "step", (json_int_t)r->state.step, "task", name,
                                "accuracy", a.accuracy);
        if (a.completions)
            json_object_set_new(row, "perplexity",
                                isfinite(a.perplexity) ? json_real(a.perplexity) : json_null());
        else
            json_object_update_new(
                row, json_pack("{s:f, s:f}", "per_token", a.per_token, "per_character", a.per_character));
        put_result(&r->task_log, row);
    }
}

/* --- samples --- */

/* A model that does not end its text goes on until here. No story of 5000 is longer, even in bytes. */
enum { STORY_TOKENS = 512 };

static char *sample_text(struct run *r, uint64_t seed) {
    struct sampler_options sampling = {
        .temperature = r->data.stories ? 1.0 : 0.8, .top_p = 1.0, .seed = seed};
    struct rank_busy *busy = rank_busy_begin(r->group, "writing a sample", r->state.step);
    int64_t tokens = r->data.stories ? min_i64(r->model.context - 1, STORY_TOKENS) : 200;
    char *text;
    if (run_samples_file(&r->config)) {
        const struct token_buffer *prompt = &r->data.prompt.ids;
        char *answer = generate_answer(&r->generator, r->data.tokenizer, &sampling, prompt->ids,
                                       prompt->count, tokens, r->data.prompt_end);
        text = xasprintf("%s\n-> %s", r->data.prompt_text, answer);
        free(answer);
    } else {
        text = generate_text(&r->generator, r->data.tokenizer, &sampling, "", tokens);
    }
    rank_busy_end(busy);
    return text;
}

/* Whether all ranks go on, as rank 0 decides. */
static bool in_time(const struct run *r, double started, double limit) {
    bool go_on = now_seconds() - started < limit;
    group_broadcast(r->group, &go_on, sizeof go_on, 0);
    return go_on;
}

void run_print_grade(struct run *r) {
    enum { GRADED = 40 };
    const double limit = 20.0; /* seconds, for a large model on a slow device */
    if (gpt_looks_ahead(&r->model)) return;
    struct story_grade total = {0};
    double started = now_seconds();
    int n = 0;
    for (; n < GRADED && (n == 0 || in_time(r, started, limit)); n++) {
        if (is_rank_0(r)) say_progress("grade     writing story %d of %d", n + 1, GRADED);
        char *text = sample_text(r, (uint64_t)(1000 + n));
        struct story_grade g = story_grade(text, (int64_t)strlen(text));
        total.sentences += g.sentences;
        total.grammatical += g.grammatical;
        total.references += g.references;
        total.references_ok += g.references_ok;
        free(text);
    }
    if (!is_rank_0(r)) return;
    say_progress("%s", "");
    say("grade     in %d such stor%s %.1f %% of %d sentences are grammatical, and %.1f %% of %d references "
        "to what was said before are right\n",
        n, n == 1 ? "y" : "ies", 100.0 * total.grammatical / fmax(1, total.sentences), total.sentences,
        100.0 * total.references_ok / fmax(1, total.references), total.references);
}

void run_print_sample(struct run *r) {
    if (!r->data.tokenizer) return;
    if (run_is_complete(r)) logger_end_line(r->log);
    if (gpt_looks_ahead(&r->model)) {
        logger_say(r->log, "sample    none: tokens of this model see those after them, so it cannot write\n");
        return;
    }
    char *text = sample_text(r, (uint64_t)r->state.step);
    logger_say(r->log, "\nsample at step %" PRId64 ":\n%s\n", r->state.step, text);
    logger_text(r->log, r->state.step, "sample", text);
    if (is_rank_0(r))
        put_result(&r->sample_log, json_pack("{s:I, s:o}", "step", (json_int_t)r->state.step, "text",
                                             json_text(text, (int64_t)strlen(text))));
    free(text);
}
