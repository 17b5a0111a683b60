/* `train_gpt plan`: the memory and the work of a training step, computed without allocating anything (see
 * plan mode in ctx.h). A plan takes milliseconds, so the largest batch that fits is found by trying. */
#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/cli/commands.h"
#include "llmc/report/json_text.h"
#include "llmc/report/page.h"
#include "llmc/run/batch.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct plan_config {
    struct run_config run;
    const char *html;
};

/* In addition to the options of training, whose rows work on the first member. */
static const struct option_row rows[] = {
    OPT_TEXT(struct plan_config, html, "html", NULL, "FILE",
             "write the results as a page with pictures; --overwrite replaces FILE", 0),
};

struct option_command plan_command(struct option_group groups[RUN_OPTION_GROUPS + 1]) {
    memcpy(groups, run_option_groups, RUN_OPTION_GROUPS * sizeof *groups);
    groups[RUN_OPTION_GROUPS] = (struct option_group){"Plan", rows, ARRAY_LENGTH(rows)};
    return (struct option_command){
        "train_gpt plan [options of training] [--html FILE]",
        "Prints the memory that a training run with these options needs, by category, the largest "
        "--batch-size that fits, and the FLOPs of a step. With --gpus N or --ranks N it prints the memory "
        "of each process, for every level of --zero. It runs the real step in a mode that neither "
        "allocates nor computes, so that plan and run cannot differ. The options of a run can be given as "
        "they are: those that change neither memory nor work, such as --out, do nothing. Exits with 1 if "
        "the memory does not suffice.",
        groups, RUN_OPTION_GROUPS + 1};
}

enum { LEVELS = ZERO_PARAMETERS + 1 };

/* What is planned, and on what. */
struct planned {
    const struct run_config *run;
    const struct gpt_config *model;
    struct device *device;
    bool seq_len_said;
    int64_t world;
    int64_t sharing;               /* processes that share one memory; each GPU has its own */
    int64_t free_bytes, all_bytes; /* of that memory */
    int levels;                    /* of ZeRO; with one process all are the same, and only the first counts */
    int chosen;
    struct ctx step[LEVELS]; /* the step at each level */
    double update[LEVELS];   /* FLOPs of the optimizer */
    int64_t largest[LEVELS]; /* --batch-size that fits, or 0 */
};

/* A step in plan mode; returns the FLOPs of the update. */
static double plan_step(const struct planned *p, struct ctx *ctx, int level) {
    struct run_config c = *p->run;
    c.zero = (enum zero_level)level;
    struct gpt_options options = run_gpt_options(&c, p->device);
    ctx_init(ctx, p->device, p->device->ops, true);
    return run_plan_step(ctx, p->model, &options, run_optimizer_options(&c, &options), &c);
}

static int64_t bytes_with(const struct planned *p, int level, int64_t batch_size) {
    struct run_config c = *p->run;
    c.zero = (enum zero_level)level;
    return run_planned_bytes(&c, p->model, p->device, batch_size);
}

/* What one process may use. */
static int64_t available(const struct planned *p) { return p->free_bytes / p->sharing; }

static bool plan_fits(const struct planned *p, int level) {
    return ctx_memory_total(&p->step[level]) <= available(p);
}

/* Memory grows with the batch: the largest that fits, by bisection. */
static int64_t largest_batch(const struct planned *p, int level) {
    int64_t fits = 0, fails = run_batch_limit(p->model, p->device) + 1;
    for (int64_t b = 1; b < fails; b *= 2)
        if (bytes_with(p, level, b) <= available(p))
            fits = b;
        else
            fails = b;
    while (fails - fits > 1) {
        int64_t middle = fits + (fails - fits) / 2;
        if (bytes_with(p, level, middle) <= available(p))
            fits = middle;
        else
            fails = middle;
    }
    return fits;
}

static void make_plans(struct planned *p) {
    p->world = max_i64(1, p->run->world);
    p->sharing = p->device->unified ? p->world : 1;
    p->levels = p->world > 1 ? LEVELS : 1;
    p->chosen = p->levels > 1 ? (int)p->run->zero : 0;
    p->device->memory_info(p->device, &p->free_bytes, &p->all_bytes);
    for (int level = 0; level < p->levels; level++) {
        p->update[level] = plan_step(p, &p->step[level], level);
        p->largest[level] = largest_batch(p, level);
    }
}

/* --- what it says; the caller frees --- */

static char *say_model(const struct planned *p) {
    struct gpt_params layout;
    gpt_params_layout(&layout, p->model);
    const struct gpt_config *m = p->model;
    const char *adapters = "";
    if (p->run->lora.rank) {
        struct lora_layout l;
        lora_make_layout(&l, m, &p->run->lora);
        adapters = temp_printf("; adapters of rank %" PRId64 ": %sparameters, which alone are trained",
                               p->run->lora.rank, human_count((double)l.count));
    }
    return xasprintf("model %s: %sparameters (%" PRId64 " layers, %" PRId64 " heads, %" PRId64
                     " channels, vocabulary %" PRId64 ", context %" PRId64 ")%s",
                     m->name, human_count((double)layout.count), m->layers, m->heads, m->channels,
                     m->vocab_size, m->context, adapters);
}

static char *say_memory(const struct planned *p) {
    return xasprintf("memory%s on %s (%s of %s free%s), %s", p->levels > 1 ? " of each process" : "",
                     p->device->name, human_bytes((double)p->free_bytes), human_bytes((double)p->all_bytes),
                     p->sharing > 1 ? ", for all together" : "",
                     dtype_name(run_gpt_options(p->run, p->device).dtype));
}

static char *say_verdict(const struct planned *p) {
    int other = 0; /* the lowest level that fits */
    while (other < p->levels && !plan_fits(p, other)) other++;
    const char *where = p->levels > 1 ? temp_printf(" with --zero %d", p->chosen) : "";
    if (plan_fits(p, p->chosen)) return xasprintf("This fits%s.", where);
    if (other < p->levels) return xasprintf("This does NOT fit%s; --zero %d does.", where, other);
    return xasprintf("This does NOT fit%s. %s.", where,
                     ctx_memory_advice(&p->step[p->chosen], p->free_bytes, p->run->batch_size == 1));
}

static char *say_work(const struct planned *p) {
    const struct run_config *c = p->run;
    int64_t micro_steps = c->tokens_per_step / (c->batch_size * c->seq_len);
    bool stories = run_on_stories(c) && !p->seq_len_said && c->seq_len < p->model->context;
    return xasprintf("work of a step (%" PRId64 " tokens in %" PRId64 " micro-batch%s of %" PRId64
                     " x %" PRId64 "%s)",
                     c->tokens_per_step, micro_steps, micro_steps > 1 ? "es" : "", c->batch_size, c->seq_len,
                     stories ? temp_printf(", as long as the built-in stories need; --seq-len %" PRId64
                                           " fills the model's context",
                                           p->model->context)
                             : "");
}

/* FLOPs of a step. */
struct work {
    double matmul, attention, other, optimizer, total, formula;
};

static struct work work_of(const struct planned *p) {
    const struct run_config *c = p->run;
    const struct ctx *ctx = &p->step[p->chosen];
    const struct op_stats *stats = ctx->stats;
    double micro_steps = (double)(c->tokens_per_step / (c->batch_size * c->seq_len));
    struct work w = {.optimizer = p->update[p->chosen]};
    w.matmul = micro_steps * (stats[OP_matmul_forward].flops + stats[OP_matmul_backward].flops);
    w.attention = micro_steps * (stats[OP_attn_forward].flops + stats[OP_attn_backward].flops);
    w.total = micro_steps * ctx_flops(ctx) + w.optimizer;
    w.other = w.total - w.matmul - w.attention - w.optimizer;
    w.formula = gpt_flops_per_token(p->model, c->seq_len) * (double)c->tokens_per_step;
    return w;
}

/* --- as text --- */

static void print_row(const struct planned *p, const char *name,
                      const char *(*cell)(const struct planned *, int level, int kind), int kind) {
    printf("  %-12s", name);
    for (int level = 0; level < p->levels; level++) printf(" %12s", cell(p, level, kind));
    printf("\n");
}

static const char *cell_kind(const struct planned *p, int level, int kind) {
    return human_bytes((double)p->step[level].memory[kind]);
}
static const char *cell_total(const struct planned *p, int level, int kind) {
    return human_bytes((double)ctx_memory_total(&p->step[level]));
}
static const char *cell_fits(const struct planned *p, int level, int kind) {
    return plan_fits(p, level) ? "yes" : "no";
}
static const char *cell_batch(const struct planned *p, int level, int kind) {
    int64_t n = p->largest[level];
    return n ? temp_printf("up to %" PRId64, n) : "none fits";
}

static void print_memory(const struct planned *p) {
    if (p->levels > 1)
        printf("  %-12s %12s %12s %12s %12s\n", "", "--zero 0", "--zero 1", "--zero 2", "--zero 3");
    for (int kind = 0; kind < MEM_KINDS; kind++)
        print_row(p, memory_kind_name((enum memory_kind)kind), cell_kind, kind);
    print_row(p, "total", cell_total, 0);
    if (p->levels > 1) print_row(p, "fits", cell_fits, 0);
    print_row(p, "--batch-size", cell_batch, 0);
}

static void print_work(struct work w) {
    printf("  %-12s %12sFLOP\n", "matmul", human_count(w.matmul));
    printf("  %-12s %12sFLOP\n", "attention", human_count(w.attention));
    printf("  %-12s %12sFLOP\n", "other", human_count(w.other));
    printf("  %-12s %12sFLOP\n", "optimizer", human_count(w.optimizer));
    printf("  %-12s %12sFLOP; by the formula of the literature, 6N + 6LCT per token: %sFLOP\n", "total",
           human_count(w.total), human_count(w.formula));
}

/* --- as a page --- */

static json_t *text(char *text) {
    json_t *value = json_text(text, (int64_t)strlen(text));
    free(text);
    return value;
}

static json_t *level_facts(const struct planned *p, int level) {
    json_t *parts = json_array();
    for (int kind = 0; kind < MEM_KINDS; kind++)
        json_array_append_new(parts, json_integer(p->step[level].memory[kind]));
    return json_pack("{s:s, s:o, s:I, s:b, s:I, s:s}", "name",
                     p->levels > 1 ? temp_printf("--zero %d", level) : "each --zero", "parts", parts, "total",
                     (json_int_t)ctx_memory_total(&p->step[level]), "fits", plan_fits(p, level), "largest",
                     (json_int_t)p->largest[level], "batch", cell_batch(p, level, 0));
}

/* Memory over --batch-size, in powers of two up to one that fits at no level. */
static json_t *batch_facts(const struct planned *p) {
    json_t *sizes = json_array(), *bytes = json_array();
    int64_t most = p->run->batch_size;
    for (int level = 0; level < p->levels; level++) {
        most = max_i64(most, p->largest[level]);
        json_array_append_new(bytes, json_array());
    }
    for (int64_t b = 1; b < 2 * most + 2 && b <= run_batch_limit(p->model, p->device); b *= 2) {
        json_array_append_new(sizes, json_integer(b));
        for (int level = 0; level < p->levels; level++)
            json_array_append_new(json_array_get(bytes, (size_t)level),
                                  json_integer(bytes_with(p, level, b)));
    }
    return json_pack("{s:o, s:o}", "sizes", sizes, "bytes", bytes);
}

static void put_facts(struct writer *w, void *user) {
    const struct planned *p = (const struct planned *)user;
    struct work work = work_of(p);
    json_t *kinds = json_array(), *levels = json_array();
    for (int kind = 0; kind < MEM_KINDS; kind++)
        json_array_append_new(kinds, json_string(memory_kind_name((enum memory_kind)kind)));
    for (int level = 0; level < p->levels; level++) json_array_append_new(levels, level_facts(p, level));
    json_t *facts = json_pack(
        "{s:o, s:o, s:o, s:o, s:i, s:I, s:I, s:I, s:o, s:o, s:o, s:{s:f, s:f, s:f, s:f}, s:f, s:f}", "model",
        text(say_model(p)), "memory", text(say_memory(p)), "verdict", text(say_verdict(p)), "work_title",
        text(say_work(p)), "chosen", p->chosen, "available", (json_int_t)available(p), "world",
        (json_int_t)p->world, "batch_size", (json_int_t)p->run->batch_size, "kinds", kinds, "levels", levels,
        "batches", batch_facts(p), "work", "matmul", work.matmul, "attention", work.attention, "other",
        work.other, "optimizer", work.optimizer, "total", work.total, "formula", work.formula);
    check(facts != NULL, "the plan cannot be written as JSON");
    page_put_json(w, "facts", facts);
    json_decref(facts);
}

/* --- the command --- */

int cmd_plan(int argc, char **argv) {
    struct option_group groups[RUN_OPTION_GROUPS + 1];
    struct option_command command = plan_command(groups);
    struct options options;
    struct plan_config c = {0};
    int status = command_options(&options, &command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    check(!c.html || may_write_file(c.html, c.run.overwrite, &err), "--html %s", err.message);
    struct gpt_config model;
    char *directory;
    check(run_model_config(&model, &directory, &c.run, c.run.shape.vocab_size, &err), "%s", err.message);
    c.run.world = max_i64(c.run.gpus, c.run.ranks);
    check(run_config_complete(&c.run, &model, &err), "%s", err.message);
    struct planned p = {.run = &c.run,
                        .model = &model,
                        .device = run_open_device(&c.run),
                        .seq_len_said = options_given(&options, "seq-len")};
    struct batch_choice batch = {.size = c.run.batch_size};
    if (!batch.size) batch = run_choose_batch(&c.run, &model, p.device, 0, INT64_MAX);
    c.run.batch_size = batch.size;
    make_plans(&p);
    char *said[] = {say_model(&p), say_memory(&p), say_verdict(&p), say_work(&p)};
    say("%s\n", said[0]);
    printf("%s\n", said[1]);
    print_memory(&p);
    printf("%s\n", said[2]);
    if (batch.sequences && p.device->arch) printf("batch: %s\n", run_batch_text(&batch));
    printf("%s\n", said[3]);
    print_work(work_of(&p));
    if (c.html) {
        check(page_write(c.html, "plan.html", put_facts, &p, &err), "%s", err.message);
        printf("page written to %s\n", c.html);
    }
    bool fits = plan_fits(&p, p.chosen);
    for (size_t i = 0; i < ARRAY_LENGTH(said); i++) free(said[i]);
    for (int level = 0; level < p.levels; level++) ctx_free(&p.step[level]);
    p.device->close(p.device);
    free(directory);
    options_free(&options);
    return fits ? 0 : 1;
}
