/* Opening a training run, saving it, closing it: see run.h.
 *
 * Each rank opens its part. What rank 0 chooses (the run directory, the checkpoint) it sends to the others;
 * what each finds by itself (options, data, model) is compared with rank 0's before the first step. */
#include "llmc/run/run.h"

#include "llmc/base/file.h"
#include "llmc/base/json_file.h"
#include "llmc/corpus/mixture.h"
#include "llmc/format/adapter.h"
#include "llmc/format/model_config.h"
#include "llmc/process/launch.h"
#include "llmc/process/rank_facts.h"
#include "llmc/ranks/comm.h"
#include "llmc/run/best.h"
#include "llmc/run/disk.h"
#include "llmc/run/divergence.h"
#include "llmc/run/eval.h"
#include "llmc/run/idle.h"
#include "llmc/run/log.h"
#include "llmc/run/resume.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- starting or resuming --- */

/* Of runs/stories, runs/stories-2, ... the first that does not exist, or the last that holds a run (to
 * resume). */
static char *default_out(const struct run_config *c, bool existing, struct error *err) {
    const char *name = c->text || c->data || run_samples_file(c) ? "train" : "stories";
    char *path = xasprintf("runs/%s", name), *last = NULL;
    for (int i = 2; path_exists(path); i++) {
        if (directory_holds_run(path)) {
            free(last);
            last = xstrdup(path);
        }
        free(path);
        path = xasprintf("runs/%s-%d", name, i);
    }
    free(existing ? path : last);
    if (existing && !last) fail(err, "--resume: there is no run under runs/; --out DIR names one elsewhere");
    return existing ? last : path;
}

/* What the run reads must not lie where --overwrite deletes. */
static bool check_inputs(const struct run *r, struct error *err) {
    const struct run_config *c = &r->config;
    struct mixture m = {.count = 0};
    bool ok = !c->data || mixture_parse(&m, c->data, err);
    if (ok && m.count == 0) ok = owner_check_input(&r->owner, "data", c->data, err);
    for (int64_t k = 0; ok && k < m.count; k++) ok = owner_check_input(&r->owner, "data", m.pattern[k], err);
    mixture_free(&m);
    if (!ok) return false;
    const struct {
        const char *option, *value;
    } inputs[] = {{"text", c->text},
                  {"val", c->val},
                  {"chat", c->chat},
                  {"pairs", c->pairs},
                  {"tokenizer", c->tokenizer},
                  {"model", c->model},
                  {"eval-tasks", c->eval_tasks}};
    for (size_t i = 0; i < ARRAY_LENGTH(inputs); i++)
        if (!owner_check_input(&r->owner, inputs[i].option, inputs[i].value, err)) return false;
    return true;
}

/* On rank 0: the run directory, and the checkpoint to resume from. Nothing in the directory changes yet. */
static bool choose_run(struct run *r, struct error *err) {
    const struct run_config *c = &r->config;
    enum owner_purpose purpose = c->resume ? OWNER_RESUME : c->overwrite ? OWNER_OVERWRITE : OWNER_NEW;
    if (c->resume && c->overwrite)
        return fail(err, "--resume and --overwrite exclude each other: give one of them");
    r->out = c->out ? xstrdup(c->out) : default_out(c, c->resume, err);
    if (!r->out || !owner_open(&r->owner, r->out, purpose, err) || !check_inputs(r, err)) return false;
    if (!c->resume || r->owner.checkpoints == 0) return true; /* it has only begun: it begins again */
    return (r->start = checkpoint_find(r->out, err)) != NULL;
}

/* The options of a run that was killed before its first checkpoint. */
static bool import_first_options(struct run *r, struct error *err) {
    char *path = xasprintf("%s/options.json", r->out), *facts_path = xasprintf("%s/run.json", r->out);
    json_t *values = path_exists(path) ? json_file_load(path, err) : NULL;
    json_t *facts = path_exists(facts_path) ? json_file_load(facts_path, NULL) : NULL;
    json_t *given = json_object_get(facts, "explicit");
    bool ok = values ||
              fail(err, "%s: has neither a checkpoint nor %s: begin again with --overwrite", r->out, path);
    json_t *stored =
        ok ? json_pack("{s:o, s:o}", "values", values, "explicit", given ? json_incref(given) : json_array())
           : NULL;
    ok = ok && resume_import(&r->options, stored, path, err);
    json_decref(stored);
    json_decref(facts);
    free(facts_path);
    free(path);
    if (ok) warn("%s has no checkpoint yet: the run begins again", r->out);
    return ok;
}

/* --resume takes over the options of the newest checkpoint. */
static void choose(struct run *r) {
    struct error err;
    struct rank_busy *busy = rank_busy_begin(r->group, "choosing the run", -1);
    bool ok = r->group->rank != 0 || choose_run(r, &err);
    rank_busy_end(busy);
    check_all_ranks(r->group, ok, &err);
    char *existing = ok && is_rank_0(r) ? owner_existing(&r->owner) : NULL;
    broadcast_text(r->group, &r->out);
    broadcast_text(r->group, &r->start);
    broadcast_text(r->group, &existing);
    launch_tell_run(r->out);
    if (!check_shared_directory(r->group, existing, r->out, &err)) exit_all_ranks(r->group, &err);
    free(existing);
    r->resumed = r->config.resume && r->start;
    if (!r->config.resume) return;
    ok = r->resumed ? checkpoint_load_state(&r->state, r->start, &err) &&
                          resume_import(&r->options, r->state.options, r->start, &err)
                    : import_first_options(r, &err);
    check_all_ranks(r->group, ok, &err);
}

/* Says once what samples that do not fit lose. */
static void warn_about_cut(const struct run *r, const struct dataloader *l, const char *what) {
    const struct run_config *c = &r->config;
    if (!dataloader_cut(l)) return;
    warn("--%s %s: %" PRId64 " %ss for %s are longer than --seq-len %" PRId64 " and lose their ends; %" PRId64
         " of them lose all that %s, and are left out",
         run_samples_option(c), run_samples_file(c), dataloader_cut(l), c->chat ? "conversation" : "pair",
         what, c->seq_len, dataloader_left_out(l), c->chat ? "the assistant says" : "is to be learned");
}

static struct dataloader *open_loader(const struct run *r, struct error *err) {
    static const enum sample_order orders[] = {[SAMPLES_CHOICE_DOCUMENTS] = SAMPLES_DOCUMENTS,
                                               [SAMPLES_CHOICE_APART] = SAMPLES_APART,
                                               [SAMPLES_CHOICE_PACKED] = SAMPLES_PACKED};
    const struct run_config *c = &r->config;
    bool orders_rows = run_samples_file(c) || c->samples == SAMPLES_CHOICE_PACKED;
    struct loader_options loading = {.B = c->batch_size,
                                     .T = c->seq_len,
                                     .order = c->samples != SAMPLES_CHOICE_WINDOWS ? orders[c->samples]
                                              : c->shuffle                         ? SAMPLES_SHUFFLED
                                                                                   : SAMPLES_IN_ORDER,
                                     .shuffle_rows = orders_rows && c->shuffle,
                                     .end_of_text = run_end_of_text(&r->data),
                                     .seed = (uint64_t)c->seed,
                                     .step_samples = c->tokens_per_step / c->seq_len,
                                     .rank = r->group->rank,
                                     .world = r->group->world};
    struct dataloader *l = dataloader_open(r->data.train, &loading, err);
    if (l) warn_about_cut(r, l, "training");
    return l;
}

/* Goes on where the checkpoint was, if the data is the same; else from the first sample. Then the number of
 * steps is known. */
static bool find_position(struct run *r, const struct resume *was, struct error *err) {
    struct run_config *c = &r->config;
    struct train_state found = {.data = dataset_fingerprint(r->data.train),
                                .contents = dataset_contents(r->data.train),
                                .validation = r->data.val ? dataset_contents(r->data.val) : 0,
                                .epoch_samples = dataloader_samples(r->train)};
    if (!guard_from_json(&r->guard, json_object_get(r->state.extra, "guard")))
        return fail(err, "%s/trainer.json: \"guard\" is not the state of a run", r->start);
    if (r->resumed) {
        if (!resume_check_data(was, &r->options, &r->state, &found, err)) return false;
        r->state.sample = resume_sample(&r->state, found.epoch_samples);
        dataloader_seek(r->train, r->state.sample);
    }
    run_best_load(r, r->resumed && r->state.validation == found.validation);
    r->state.data = found.data;
    r->state.contents = found.contents;
    r->state.validation = found.validation;
    r->state.epoch_samples = found.epoch_samples;
    if (!run_config_plan(c, &r->options, found.epoch_samples, r->state.step, r->state.sample, err))
        return false;
    if (r->resumed) resume_warn(was, &r->options, c, r->state.step);
    return true;
}

static bool open_model_config(struct run *r, struct error *err) {
    char *directory = NULL;
    bool ok = r->resumed || run_model_config(&r->model, &directory, &r->config, r->data.vocab_size, err);
    free(directory);
    if (ok && r->config.chat) model_add_end_of_text(&r->model, r->data.tokenizer, r->data.chat.end_of_turn);
    return ok && run_data_set_vocabulary(&r->data, r->model.vocab_size, err);
}

/* Whatever validation needs is found missing before the first step. */
static bool check_validation(const struct run *r, struct error *err) {
    if (!r->data.val) return true;
    struct dataloader *l = run_open_validation(r, err);
    if (l) warn_about_cut(r, l, "validation");
    dataloader_close(l);
    return l != NULL;
}

static bool open_data_and_model(struct run *r, const struct resume *was, struct error *err) {
    struct run_config *c = &r->config;
    /* what the program has chosen for the run so far (batch.h) */
    if (c->resume && !options_given(&r->options, "batch-size")) {
        r->batch.size = c->batch_size;
        c->batch_size = 0;
    }
    if (r->resumed && adapter_is_one(r->start)) {
        r->adapter = r->start;
        r->start = NULL;
    }
    if (c->lora_rank && !run_starts_from_weights(c))
        return fail(err, "--lora %" PRId64 ": adapters need a model to adapt: --model DIR%s%s", c->lora_rank,
                    c->model ? "; there is none at " : "", c->model ? c->model : "");
    bool fine_tunes = !r->start && run_starts_from_weights(c);
    if (fine_tunes && !(r->start = checkpoint_find(c->model, err))) return false;
    if (r->resumed && !(checkpoint_config(&r->model, r->start, err) &&
                        resume_check_fixed(was, &r->options, &r->model, err)))
        return false;
    struct run_weights weights = {
        r->start, r->resumed, r->resumed && options_source(&r->options, "tokenizer") == OPTION_FROM_STORED};
    return run_data_open(&r->data, c, &weights, err) && open_model_config(r, err) &&
           run_config_complete(c, &r->model, err) && run_data_check_samples(&r->data, c, err);
}

static bool open_loaders(struct run *r, const struct resume *was, struct error *err) {
    return (r->train = open_loader(r, err)) && find_position(r, was, err) && check_validation(r, err);
}

/* --- several processes --- */

/* No batch has a sample twice. */
static void choose_batch(struct run *r) {
    struct run_config *c = &r->config;
    if (c->batch_size) return;
    int64_t world = c->world, shards = dataset_shards(r->data.train);
    int64_t samples = dataset_tokens(r->data.train) / c->seq_len - shards; /* or more */
    int64_t most = max_i64(1, samples / world);
    struct batch_choice own = run_choose_batch(c, &r->model, r->device, r->batch.size, most);
    struct batch_choice *all = (struct batch_choice *)xmalloc((size_t)world * sizeof *all);
    group_exchange(r->group, all, &own, sizeof own);
    r->batch = all[0];
    for (int64_t i = 1; i < world; i++)
        if (all[i].size < r->batch.size) r->batch = all[i];
    free(all);
    c->batch_size = r->batch.size;
}

static void open_data(struct run *r) {
    struct error err;
    struct resume was = {.checkpoint = NULL};
    struct rank_busy *busy = rank_busy_begin(r->group, "reading the data", -1);
    bool ok = (!r->resumed || resume_open(&was, &r->options, r->state.options, r->start, &err)) &&
              open_data_and_model(r, &was, &err);
    rank_busy_end(busy);
    check_all_ranks(r->group, ok, &err);
    choose_batch(r);
    busy = rank_busy_begin(r->group, "reading the data", -1);
    ok = open_loaders(r, &was, &err);
    rank_busy_end(busy);
    check_all_ranks(r->group, ok, &err);
    if (r->resumed) resume_close(&was);
}

/* All ranks must have the same options, and must have derived the same data, model and position from them. */
static void compare_options(struct run *r) {
    struct rank_facts facts = {0};
    struct error err;
    rank_facts_add_options(&facts, &r->options, "threads");
    bool same = rank_facts_equal_rank_0(&facts, r->group, &err);
    rank_facts_free(&facts);
    check_all_ranks(r->group, same, &err);
}

static void compare_state(struct run *r) {
    struct rank_facts facts = {0};
    struct error err;
    struct gpt_options options = run_gpt_options(&r->config, r->device);
    rank_facts_add_options(&facts, &r->options, "threads");
    rank_facts_add(&facts, "the fingerprint of the training data", "%016" PRIx64, r->state.data);
    rank_facts_add(&facts, "the contents of the training data", "%016" PRIx64, r->state.contents);
    rank_facts_add(&facts, "the contents of the validation data", "%016" PRIx64, r->state.validation);
    rank_facts_add(&facts, "the fingerprint of the tokenizer", "%016" PRIx64,
                   r->data.tokenizer ? tokenizer_hash(r->data.tokenizer) : 0);
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        rank_facts_add(&facts, temp_printf("the %s of the model", gpt_fields[i].what), "%s",
                       gpt_field_text(&r->model, &gpt_fields[i]));
    rank_facts_add(&facts, "the kind of device", "%s", r->device->backend);
    rank_facts_add(&facts, "the type of the weights", "%s", dtype_name(options.dtype));
    rank_facts_add(&facts, "the step to continue from", "%" PRId64, r->state.step);
    rank_facts_add(&facts, "the sample to continue from", "%" PRId64, r->state.sample);
    bool same = rank_facts_equal_rank_0(&facts, r->group, &err);
    rank_facts_free(&facts);
    check_all_ranks(r->group, same, &err);
}

/* The communicator, wrapped so that each rank's waiting is timed. */
static void open_comm(struct run *r) {
    struct error err;
    struct comm *comm = comm_open(r->group, r->device, r->config.zero_group, &err);
    check(comm, "%s", err.message);
    rank_timing_open(&r->timing, r->group, comm, r->device, r->device->short_name);
    r->comm = &r->timing.comm;
}

/* --- the model --- */

/* For the model that has just been loaded. */
static void load_adapters(struct run *r) {
    struct error err;
    struct lora *l = &r->gpt.lora;
    l->base = r->start;
    check(checkpoint_hash(&l->base_hash, r->start, &err), "%s", err.message);
    if (r->adapter) {
        check(adapter_load(&r->gpt, &r->optimizer, r->adapter, &err), "%s", err.message);
    } else {
        lora_init_weights(&r->gpt, (uint64_t)r->config.seed);
        optimizer_copy_master(&r->optimizer, &r->gpt);
    }
    r->generator.lora = *l;
}

/* Plans a step, checks that it fits, allocates, and sets or loads the weights. */
static void create_model(struct run *r) {
    struct error err;
    struct gpt_options options = run_gpt_options(&r->config, r->device);
    struct ctx plan;
    ctx_init(&plan, r->device, r->device->ops, true);
    struct optimizer_options kept = run_optimizer_options(&r->config, &options);
    run_plan_step(&plan, &r->model, &options, kept, &r->config);
    int64_t sharing = r->device->unified ? r->group->local_world : 1;
    int64_t free_bytes, total_bytes, needed = sharing * ctx_memory_total(&plan);
    r->device->memory_info(r->device, &free_bytes, &total_bytes);
    check(needed <= free_bytes,
          "this run needs %s, but %s of %s is free on %s. %s; `train_gpt plan` shows what each option needs",
          human_bytes((double)needed), human_bytes((double)free_bytes), human_bytes((double)total_bytes),
          r->device->name, ctx_memory_advice(&plan, free_bytes / sharing, r->config.batch_size == 1));
    ctx_init(&r->ctx, r->device, r->device->ops, false);
    gpt_create(&r->gpt, &r->ctx, &r->model, &options);
    zero_create(&r->zero, &r->gpt, &r->optimizer, r->comm, r->config.zero, kept);
    ctx_reserve_scratch(&r->ctx, plan.memory[MEM_SCRATCH]);
    generator_create(&r->generator, &r->ctx, &r->model, options.dtype, &r->gpt, 0, 0);
    check(ctx_memory_total(&r->ctx) <= ctx_memory_total(&plan),
          "the run allocated more memory than planned: %s instead of %s",
          human_bytes((double)ctx_memory_total(&r->ctx)), human_bytes((double)ctx_memory_total(&plan)));
    if (!r->start) {
        gpt_init_weights(&r->gpt, (uint64_t)r->config.seed);
        zero_parameters_changed(&r->zero);
        optimizer_copy_master(&r->optimizer, &r->gpt);
    } else {
        check(checkpoint_load_parameters(&r->zero, r->start, &err), "%s", err.message);
        if (r->config.lora_rank)
            load_adapters(r);
        else if (r->resumed)
            check(checkpoint_load_moments(&r->zero, r->start, &err), "%s", err.message);
    }
    r->save_seconds = (double)checkpoint_size(&r->zero) / 100e6; /* a slow disk, until it is measured */
    ctx_free(&plan);
}

/* --- opening, saving, closing --- */

/* All that a start needs is there: now the directory is made, or the old run deleted. After a failure it is
 * as before, if it was new. */
static void take_directory(struct run *r) {
    struct error err;
    bool ok = group_agree(r->group, !is_rank_0(r) || (run_check_disk(r, &err) && owner_take(&r->owner, &err)),
                          &err);
    if (ok && r->config.rank_logs)
        ok = group_agree(r->group, (r->rank_log = rank_log_open(r->out, r->group, &err)) > 0, &err);
    if (ok) ok = group_agree(r->group, run_log_open(r, &err) && run_open_result_logs(r, &err), &err);
    if (!ok) {
        if (is_rank_0(r)) owner_give_up(&r->owner);
        exit_all_ranks(r->group, &err);
    }
    run_prefix_messages(r->group, r->rank_log);
    rank_log_put(r->rank_log,
                 "rank %" PRId64 " of %" PRId64 ", %s, process %d, %s (%s), %s after step %" PRId64,
                 r->group->rank, r->group->world, r->group->host, (int)getpid(), r->device->name,
                 r->device->short_name, r->comm->kind, r->state.step);
}

void run_open(struct run *r) {
    r->group = run_open_group(&r->config);
    r->saved = true; /* nothing is lost yet */
    r->task_log.fd = r->sample_log.fd = -1;
    r->config.world = r->group->world;
    compare_options(r);
    choose(r);
    r->kept_step = r->resumed ? r->state.step : -1;
    r->device = run_open_rank_device(&r->config, r->group);
    open_data(r);
    compare_state(r);
    open_comm(r);
    run_warn_idle_options(r);
    /* up to here all ranks have the same errors, and rank 0 reports them; now each reports its own */
    run_prefix_messages(r->group, 0);
    struct rank_busy *busy = rank_busy_begin(r->group, "creating the model", -1);
    create_model(r);
    run_open_tasks(r);
    rank_busy_end(busy);
    take_directory(r);
}

/* What somebody has deleted or moved away is made anew: the directory, and the logs with their rows. */
static bool find_directory(struct run *r, struct error *err) {
    bool there = owner_is_there(&r->owner);
    bool ok = (there || owner_take_again(&r->owner, err)) && run_log_restore(r, err);
    if (ok && !there)
        warn("%s was deleted or moved away during the run: it is made anew, with the log so far", r->out);
    return ok;
}

void run_save(struct run *r) {
    struct error err;
    struct rank_busy *busy = rank_busy_begin(r->group, "saving", r->state.step);
    bool ok = true;
    r->saved_step = r->state.step;
    r->state.sample = dataloader_position(r->train);
    if (is_rank_0(r)) {
        logger_sync(r->log);
        json_decref(r->state.options);
        r->state.options = options_export(&r->options);
        json_decref(r->state.extra);
        r->state.extra = json_pack("{s:o}", "best", run_best_json(r));
        if (run_guards(r)) json_object_set_new(r->state.extra, "guard", guard_to_json(&r->guard));
        ok = find_directory(r, &err); /* last, so that little time is left for it to go away again */
    }
    ok = group_agree(r->group, ok, &err) &&
         checkpoint_save(r->out, &r->zero, r->data.tokenizer, &r->state, &err);
    if (ok && is_rank_0(r)) ok = checkpoint_prune(r->out, r->config.keep, r->best.kept, &err);
    rank_busy_end(busy);
    if (!ok && is_rank_0(r)) warn("checkpoint of step %" PRId64 " not saved: %s", r->state.step, err.message);
    group_broadcast(r->group, &ok, sizeof ok, 0);
    r->saved = ok;
    if (ok && is_rank_0(r)) run_watch_disk(r);
    if (ok) r->kept_step = r->state.step;
}

void run_close(struct run *r) {
    log_file_close(&r->task_log);
    log_file_close(&r->sample_log);
    eval_tasks_free(&r->tasks);
    dataloader_close(r->train);
    run_data_close(&r->data);
    zero_free(&r->zero);
    ctx_free(&r->ctx);
    rank_timing_close(&r->timing);
    r->comm->close(r->comm);
    r->device->close(r->device);
    if (is_rank_0(r)) owner_close(&r->owner);
    group_close(r->group);
    if (r->rank_log) close(r->rank_log);
    train_state_free(&r->state);
    options_free(&r->options);
    free(r->out);
    free(r->start);
    free(r->adapter);
}
