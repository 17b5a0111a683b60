/* Opening a training run. Sections: starting or resuming, several processes, the model, what is written,
 * opening and closing. */
#include "llmc/run/run.h"

#include "llmc/process/rank_facts.h"
#include "llmc/ranks/comm.h"
#include "llmc/base/file.h"
#include "llmc/process/launch.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- starting or resuming --- */

/* runs/stories, runs/stories-2, ...: the first one that is free, or the last one that exists (to resume). */
static char *default_out(const struct run_config *c, bool existing, struct error *err) {
    const char *name = c->text || c->data ? "train" : "stories";
    char *last = NULL;
    for (int i = 1;; i++) {
        char *path = i == 1 ? xasprintf("runs/%s", name) : xasprintf("runs/%s-%d", name, i);
        bool there = path_exists(path);
        if (there && existing) {
            free(last);
            last = path;
            continue;
        }
        if (!there && existing) {
            free(path);
            if (!last) fail(err, "--resume: there is no run under runs/ yet; --out DIR names one elsewhere");
            return last;
        }
        if (!there) return path;
        free(path);
    }
}

/* On rank 0: decides where the run lives, and which checkpoint it goes on from. */
static bool choose_run(struct run *r, struct error *err) {
    const struct run_config *c = &r->config;
    r->out = c->out ? xstrdup(c->out) : default_out(c, c->resume, err);
    if (!r->out) return false;
    if (c->resume) return (r->start = checkpoint_find(r->out, err)) != NULL;
    char *log = xasprintf("%s/log.jsonl", r->out);
    bool taken = path_exists(log) && !c->overwrite;
    free(log);
    if (taken)
        return fail(
            err,
            "%s already holds a run: --resume continues it, --overwrite starts again, --out DIR chooses "
            "another place",
            r->out);
    return (!c->overwrite || remove_tree(r->out, err)) && make_directories(r->out, err);
}

/* On --resume reads the newest checkpoint and takes over its options. */
static void open_run(struct run *r) {
    struct error err;
    struct rank_busy *busy = rank_busy_begin(r->group, "choosing the run", -1);
    bool ok = r->group->rank != 0 || choose_run(r, &err);
    rank_busy_end(busy);
    run_agree(r->group, ok, &err);
    run_share_text(r->group, &r->out);
    run_share_text(r->group, &r->start);
    launch_tell_run(r->out);
    ok = run_see_directory(r->group, r->out, &err);
    if (ok && r->config.rank_logs) ok = (r->rank_log = rank_log_open(r->out, r->group, &err)) > 0;
    r->resumed = r->config.resume;
    if (ok && r->resumed)
        ok = checkpoint_load_state(&r->state, r->start, &err) &&
             options_import(&r->options, r->state.options, r->start, &err);
    run_agree(r->group, ok, &err);
}

static bool open_data_and_model(struct run *r, struct error *err) {
    struct run_config *c = &r->config;
    char *directory = NULL, *corpus = xasprintf("%s/stories.txt", r->out);
    bool look = !r->start && path_exists(c->model); /* for weights to start from */
    if (look && !(r->start = checkpoint_find(c->model, err))) return false;
    if (!run_data_open(&r->data, c, r->start, r->resumed || r->group->rank != 0 ? NULL : corpus, err))
        return false;
    int64_t vocab = r->data.vocab_size ? r->data.vocab_size : c->shape.vocab_size;
    bool known = r->resumed ? checkpoint_config(&r->model, r->start, err)
                            : run_model_config(&r->model, &directory, c, vocab, err);
    if (!known || !run_data_open_shards(&r->data, c, r->model.vocab_size, err) ||
        !run_config_complete(c, &r->model, dataset_tokens(r->data.train), err))
        return false;
    if (r->resumed && r->state.data != dataset_fingerprint(r->data.train))
        return fail(
            err,
            "%s: the training data is not what the run was started on; the same --text, --data or --stories "
            "is needed to resume (to go on with other data, start a new run with --model %s)",
            r->start, r->start);
    r->state.data = dataset_fingerprint(r->data.train);
    struct loader_options loading = {.B = c->batch_size,
                                     .T = c->seq_len,
                                     .order = c->samples == SAMPLES_CHOICE_DOCUMENTS ? SAMPLES_DOCUMENTS
                                              : c->shuffle                           ? SAMPLES_SHUFFLED
                                                                                     : SAMPLES_IN_ORDER,
                                     .end_of_text =
                                         r->data.tokenizer ? tokenizer_end_of_text(r->data.tokenizer) : -1,
                                     .seed = (uint64_t)c->seed,
                                     .first_sample = r->state.sample,
                                     .step_samples = c->tokens_per_step / c->seq_len,
                                     .rank = r->group->rank,
                                     .world = r->group->world};
    r->train = dataloader_open(r->data.train, &loading, err);
    free(directory);
    free(corpus);
    return r->train != NULL;
}

/* --- several processes --- */

static void open_data(struct run *r) {
    struct error err;
    struct rank_busy *busy = rank_busy_begin(r->group, "reading the data", -1);
    bool ok = open_data_and_model(r, &err);
    rank_busy_end(busy);
    run_agree(r->group, ok, &err);
}

/* What must be the same on all ranks: at first what they were told, later what they made of it. */
static void compare_options(struct run *r) {
    struct rank_facts facts = {0};
    struct error err;
    rank_facts_add_options(&facts, &r->options, "threads");
    bool same = rank_facts_equal_rank_0(&facts, r->group, &err);
    rank_facts_free(&facts);
    run_agree(r->group, same, &err);
}

static void compare_state(struct run *r) {
    struct rank_facts facts = {0};
    struct error err;
    struct gpt_options options = run_gpt_options(&r->config, r->device);
    rank_facts_add_options(&facts, &r->options, "threads");
    rank_facts_add(&facts, "the fingerprint of the training data", "%016" PRIx64, r->state.data);
    rank_facts_add(&facts, "the fingerprint of the validation data", "%016" PRIx64,
                   r->data.val ? dataset_fingerprint(r->data.val) : 0);
    rank_facts_add(&facts, "the fingerprint of the tokenizer", "%016" PRIx64,
                   r->data.tokenizer ? tokenizer_hash(r->data.tokenizer) : 0);
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        rank_facts_add(&facts, temp_printf("the %s of the model", gpt_fields[i].what), "%s",
                       gpt_field_text(&r->model, &gpt_fields[i]));
    rank_facts_add(&facts, "the kind of device", "%s", r->device->backend);
    rank_facts_add(&facts, "the type of the weights", "%s", dtype_name(options.dtype));
    rank_facts_add(&facts, "the step to go on from", "%" PRId64, r->state.step);
    rank_facts_add(&facts, "the sample to go on from", "%" PRId64, r->state.sample);
    bool same = rank_facts_equal_rank_0(&facts, r->group, &err);
    rank_facts_free(&facts);
    run_agree(r->group, same, &err);
}

/* From here on warnings are those of this rank alone. */
static void speak_for_oneself(const struct run *r) {
    run_speak(r->group, r->rank_log);
    rank_log_put(r->rank_log,
                 "rank %" PRId64 " of %" PRId64 ", %s, process %d, %s (%s), %s after step %" PRId64,
                 r->group->rank, r->group->world, r->group->host, (int)getpid(), r->device->name,
                 r->device->short_name, r->comm->kind, r->state.step);
}

/* The communicator, wrapped so that each rank's waiting is timed. */
static void open_comm(struct run *r) {
    struct error err;
    struct comm *comm = comm_open(r->group, r->device, &err);
    check(comm, "%s", err.message);
    rank_timing_open(&r->timing, r->group, comm, r->device, r->device->short_name);
    r->comm = &r->timing.comm;
}

/* --- the model --- */

/* Allocates what the plan of a step says, then fills it. */
static void create_model(struct run *r) {
    struct error err;
    struct gpt_options options = run_gpt_options(&r->config, r->device);
    struct ctx plan;
    ctx_init(&plan, r->device, r->device->ops, true);
    bool master = run_master_weights(&r->config, &options);
    run_plan_step(&plan, &r->model, &options, master, r->config.zero, r->comm->world);
    int64_t sharing = r->device->unified ? r->group->local_world : 1;
    int64_t free_bytes, total_bytes, needed = sharing * ctx_memory_total(&plan);
    r->device->memory_info(r->device, &free_bytes, &total_bytes);
    check(needed <= free_bytes,
          "this run needs %s, and %s of %s is free on %s. %s; `train_gpt plan` shows how much",
          human_bytes((double)needed), human_bytes((double)free_bytes), human_bytes((double)total_bytes),
          r->device->name, ctx_memory_advice(&plan, free_bytes / sharing));
    ctx_init(&r->ctx, r->device, r->device->ops, false);
    gpt_create(&r->gpt, &r->ctx, &r->model, &options);
    zero_create(&r->zero, &r->gpt, &r->optimizer, r->comm, r->config.zero, master);
    ctx_reserve_scratch(&r->ctx, plan.memory[MEM_SCRATCH]);
    generator_create(&r->generator, &r->ctx, &r->model, options.dtype, &r->gpt);
    check(ctx_memory_total(&r->ctx) <= ctx_memory_total(&plan),
          "the run took more memory, %s, than was planned, %s",
          human_bytes((double)ctx_memory_total(&r->ctx)), human_bytes((double)ctx_memory_total(&plan)));
    if (!r->start) {
        gpt_init_weights(&r->gpt, (uint64_t)r->config.seed);
        zero_parameters_changed(&r->zero);
        optimizer_copy_master(&r->optimizer, &r->gpt);
    } else {
        check(checkpoint_load_parameters(&r->zero, r->start, &err), "%s", err.message);
        if (r->resumed) check(checkpoint_load_moments(&r->zero, r->start, &err), "%s", err.message);
    }
    ctx_free(&plan);
}

/* --- what is written --- */

static void write_options(const struct run *r) {
    struct error err;
    if (!run_speaks(r)) return;
    json_t *stored = options_export(&r->options);
    char *path = xasprintf("%s/options.json", r->out);
    char *text = json_dumps(json_object_get(stored, "values"), JSON_INDENT(2));
    check(write_file_atomic(path, text, strlen(text), &err), "%s", err.message);
    free(text);
    free(path);
    json_decref(stored);
}

static void introduce(const struct run *r, double matmul_rate) {
    if (!run_speaks(r)) return;
    char *options = options_text(&r->options);
    printf("%s\n", options);
    free(options);
    printf("device    %s, %sFLOP/s in matmul\n", r->device->name, human_count(matmul_rate));
    if (r->group->world > 1)
        printf("ranks     %" PRId64 " processes, %" PRId64 " of them on this machine; %s\n", r->group->world,
               r->group->local_world, r->comm->kind);
    printf("data      %s\n", r->data.summary);
    printf("model     %s: %sparameters, %s of memory\n", r->model.name,
           human_count((double)r->gpt.layout.count), human_bytes((double)ctx_memory_total(&r->ctx)));
    printf("run       %s, %" PRId64 " steps of %" PRId64 " tokens%s%s\n\n", r->out, r->config.steps,
           r->config.tokens_per_step,
           r->resumed ? ", resumed from "
           : r->start ? ", starting from "
                      : "",
           r->start ? r->start : "");
}

static void open_log(struct run *r) {
    struct error err;
    double matmul_rate = 0.0, copy_rate;
    if (run_speaks(r)) r->device->measure(r->device, &matmul_rate, &copy_rate);
    introduce(r, matmul_rate);
    struct log_options options = {.out = run_speaks(r) ? r->out : NULL,
                                  .quiet = !run_speaks(r),
                                  .steps = r->config.steps,
                                  .resumed_step = r->state.step,
                                  .tokens_per_step = r->config.tokens_per_step,
                                  .flops_per_token = gpt_flops_per_token(&r->model, r->config.seq_len),
                                  .peak_flops = matmul_rate * (double)r->group->world,
                                  .floor_loss = r->data.floor_loss};
    r->log = logger_open(&options, &err);
    check(r->log, "%s", err.message);
    if (run_speaks(r) && r->device->id[0]) r->nvml = nvml_open(r->device->id);
}

static void open_tasks(struct run *r) {
    struct error err;
    if (!r->config.eval_tasks) return;
    check(r->data.tokenizer,
          "--eval-tasks: token shards need a --tokenizer that the questions can be encoded with");
    check(eval_tasks_open(&r->tasks, r->config.eval_tasks, r->data.tokenizer, r->config.seq_len, &err),
          "--eval-tasks: %s", err.message);
    if (!run_speaks(r)) return;
    if (r->tasks.cut)
        warn("%" PRId64 " of %" PRId64 " questions are longer than %" PRId64
             " tokens: their beginnings are left out",
             r->tasks.cut, r->tasks.questions, r->config.seq_len);
    char *path = xasprintf("%s/tasks.jsonl", r->out);
    /* the rows of the resumed step are written again */
    check(log_file_open(&r->task_log, path, max_i64(0, r->state.step - 1), &err), "%s", err.message);
    free(path);
}

/* --- opening and closing --- */

void run_open(struct run *r) {
    r->group = run_open_group(&r->config);
    r->config.world = r->group->world;
    compare_options(r);
    open_run(r);
    r->device = run_open_rank_device(&r->config, r->group);
    open_comm(r);
    open_data(r);
    compare_state(r);
    speak_for_oneself(r);
    struct rank_busy *busy = rank_busy_begin(r->group, "making the model", -1);
    create_model(r);
    rank_busy_end(busy);
    write_options(r);
    open_log(r);
    open_tasks(r);
}

void run_close(struct run *r) {
    if (r->tasks.count && run_speaks(r)) log_file_close(&r->task_log);
    eval_tasks_free(&r->tasks);
    dataloader_close(r->train);
    run_data_close(&r->data);
    zero_free(&r->zero);
    ctx_free(&r->ctx);
    rank_timing_close(&r->timing);
    r->comm->close(r->comm);
    r->device->close(r->device);
    group_close(r->group);
    if (r->rank_log) close(r->rank_log);
    train_state_free(&r->state);
    options_free(&r->options);
    free(r->out);
    free(r->start);
}
