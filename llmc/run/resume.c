/* Resuming: the table of what each option does, and the checks that follow from it (resume.h). */
#include "llmc/run/resume.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- the table --- */

/* Every option of training but those of the model's shape, which are RESUME_MODEL. */
static const struct resume_row {
    const char *option;
    enum resume_rule rule;
} rows[] = {
    {"model", RESUME_MODEL},
    {"init-std", RESUME_MODEL},
    /* data */
    {"text", RESUME_DATA},
    {"format", RESUME_DATA},
    {"field", RESUME_DATA},
    {"data", RESUME_DATA},
    {"val", RESUME_WARNED},
    {"chat", RESUME_DATA},
    {"chat-template", RESUME_DATA},
    {"pairs", RESUME_DATA},
    {"tokenizer", RESUME_DATA},
    {"stories", RESUME_DATA},
    {"validation-fraction", RESUME_DATA},
    {"samples", RESUME_ORDER},
    {"shuffle", RESUME_ORDER},
    {"document-mask", RESUME_FREE},
    /* batch and length */
    {"batch-size", RESUME_FREE},
    {"seq-len", RESUME_ORDER},
    {"tokens-per-step", RESUME_WARNED},
    {"steps", RESUME_PLAN},
    {"epochs", RESUME_PLAN},
    /* optimizer */
    {"optimizer", RESUME_STATE},
    {"learning-rate", RESUME_PLAN},
    {"schedule", RESUME_PLAN},
    {"warmup", RESUME_PLAN},
    {"final-lr-fraction", RESUME_PLAN},
    {"decay-fraction", RESUME_PLAN},
    {"weight-decay", RESUME_FREE},
    {"momentum", RESUME_FREE},
    {"muon-lr-factor", RESUME_FREE},
    {"embedding-lr-factor", RESUME_FREE},
    {"embedding-decay", RESUME_FREE},
    {"beta1", RESUME_FREE},
    {"beta2", RESUME_FREE},
    {"eps", RESUME_FREE},
    {"label-smoothing", RESUME_FREE},
    {"z-loss", RESUME_FREE},
    {"dropout", RESUME_FREE},
    {"grad-clip", RESUME_FREE},
    {"skip-outliers", RESUME_FREE},
    /* adapters */
    {"lora", RESUME_MODEL},
    {"lora-alpha", RESUME_MODEL},
    {"lora-targets", RESUME_MODEL},
    /* evaluation */
    {"val-every", RESUME_FREE},
    {"val-batches", RESUME_FREE},
    {"eval-tasks", RESUME_FREE},
    {"eval-every", RESUME_FREE},
    {"sample-every", RESUME_FREE},
    /* run */
    {"out", RESUME_COMMAND},
    {"resume", RESUME_COMMAND},
    {"overwrite", RESUME_COMMAND},
    {"max-time", RESUME_COMMAND},
    {"requeue", RESUME_COMMAND},
    {"notify", RESUME_COMMAND},
    {"save-every", RESUME_FREE},
    {"keep", RESUME_FREE},
    {"rollback", RESUME_FREE},
    {"keep-best", RESUME_FREE},
    {"early-stop", RESUME_FREE},
    {"tensorboard", RESUME_FREE},
    {"verbose", RESUME_COMMAND},
    {"seed", RESUME_ORDER},
    /* several processes */
    {"gpus", RESUME_COMMAND},
    {"ranks", RESUME_COMMAND},
    {"zero", RESUME_FREE},
    {"zero-group", RESUME_FREE},
    {"restart", RESUME_COMMAND},
    {"comm-timeout", RESUME_COMMAND},
    {"bind", RESUME_COMMAND},
    {"rank-logs", RESUME_COMMAND},
    /* device and memory */
    {"device", RESUME_FREE},
    {"dtype", RESUME_FREE},
    {"matmul", RESUME_FREE},
    {"recompute", RESUME_FREE},
    {"head-chunks", RESUME_FREE},
    {"master-weights", RESUME_FREE},
    {"stochastic-rounding", RESUME_FREE},
    {"tf32", RESUME_FREE},
    {"autotune", RESUME_FREE},
    {"graph", RESUME_FREE},
    {"threads", RESUME_FREE},
};

static const struct gpt_field *shape_field(const char *option) {
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        if (strcmp(gpt_fields[i].option.name, option) == 0) return &gpt_fields[i];
    return NULL;
}

bool resume_rule(const char *option, enum resume_rule *rule) {
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
        if (strcmp(rows[i].option, option) == 0) {
            *rule = rows[i].rule;
            return true;
        }
    *rule = shape_field(option) ? RESUME_MODEL : RESUME_FREE;
    return *rule == RESUME_MODEL;
}

/* --- the table as text --- */

static char *append(char *text, const char *more) {
    char *longer = xasprintf("%s%s", text, more);
    free(text);
    return longer;
}

static char *names_of(enum resume_rule rule) {
    char *text = xstrdup("");
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
        if (rows[i].rule == rule) text = append(text, temp_printf(" --%s", rows[i].option));
    if (rule == RESUME_MODEL) text = append(text, ", and the shape of the model");
    return text;
}

char *resume_notes(void) {
    static const struct {
        enum resume_rule rule;
        const char *what;
    } lines[] = {
        {RESUME_MODEL, "Fixed by the weights"},
        {RESUME_STATE, "Fixed by the optimizer's state"},
        {RESUME_ORDER, "Fixed by the place in the data"},
        {RESUME_DATA, "May change if the training data stays the same"},
        {RESUME_WARNED, "May change, with a warning"},
        {RESUME_PLAN, "May change, with a warning if the learning rate jumps"},
        {RESUME_FREE, "May change"},
        {RESUME_COMMAND, "Not taken over from the run"},
    };
    char *text = xstrdup("--resume takes over the options of the run. Given again, with another value:\n");
    for (size_t i = 0; i < ARRAY_LENGTH(lines); i++) {
        char *names = names_of(lines[i].rule);
        text = append(text, "  ");
        text = append(text, lines[i].what);
        text = append(text, ":");
        text = append(text, names);
        text = append(text, "\n");
        free(names);
    }
    return text;
}

/* --- the run as it was --- */

bool resume_import(struct options *now, const json_t *stored, const char *where, struct error *err) {
    json_t *copy = json_deep_copy(stored), *values = json_object_get(copy, "values");
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
        if (rows[i].rule == RESUME_COMMAND) json_object_del(values, rows[i].option);
    /* runs from before there was a choice had decay of all matrices with every optimizer */
    if (values && !json_object_get(values, "embedding-decay"))
        json_object_set_new(values, "embedding-decay", json_string("on"));
    bool ok = options_import(now, copy, where, err);
    json_decref(copy);
    return ok;
}

bool resume_open(struct resume *r, const struct options *now, const json_t *stored, const char *checkpoint,
                 struct error *err) {
    memset(r, 0, sizeof *r);
    r->checkpoint = checkpoint;
    options_init(&r->options, now->command, &r->config);
    if (!resume_import(&r->options, stored, checkpoint, err)) return false;
    /* checkpoints from before there was a choice do not name an optimizer */
    if (r->config.optimizer == OPTIMIZER_CHOICE_AUTO) r->config.optimizer = OPTIMIZER_CHOICE_ADAMW;
    return true;
}

void resume_close(struct resume *r) { options_free(&r->options); }

/* --- comparing --- */

/* Whether the option has another value than in the run; the two values as text, by temp_printf. */
static bool differs(const struct resume *r, const struct options *now, const char *option, const char **is,
                    const char **was) {
    char *new_value = options_value(now, option), *old_value = options_value(&r->options, option);
    bool other = strcmp(new_value, old_value) != 0;
    *is = temp_printf("%s", new_value);
    *was = temp_printf("%s", old_value);
    free(new_value);
    free(old_value);
    return other;
}

/* "--steps 40 instead of 20, --schedule linear instead of cosine": the options under a rule that differ;
 * empty if none does. The caller frees. */
static char *changes(const struct resume *r, const struct options *now, enum resume_rule rule) {
    char *text = xstrdup("");
    const char *is, *was;
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
        if (rows[i].rule == rule && differs(r, now, rows[i].option, &is, &was))
            text = append(text,
                          temp_printf("%s--%s %s instead of %s", *text ? ", " : "", rows[i].option, is, was));
    return text;
}

/* --- what is fixed --- */

static bool refuse(const struct resume *r, enum resume_rule rule, const char *option, const char *is,
                   const char *was, struct error *err) {
    if (rule == RESUME_MODEL)
        return fail(err,
                    "--%s %s: the model in %s was made with %s; leave the option out at --resume (a new run, "
                    "with another --out, can have it)",
                    option, is, r->checkpoint, was);
    if (rule == RESUME_STATE)
        return fail(err,
                    "--%s %s: %s holds the state of %s, which is no state of %s; leave the option out at "
                    "--resume, or start a new run from these weights: --model %s",
                    option, is, r->checkpoint, was, is, r->checkpoint);
    return fail(err,
                "--%s %s: %s is at a place in its data that only --%s %s defines; leave the option out at "
                "--resume, or start a new run from these weights: --model %s",
                option, is, r->checkpoint, option, was, r->checkpoint);
}

/* Whether the value leaves the choice open. */
static bool is_open(const struct option_row *row, const char *value) {
    return row->initial && (strcmp(row->initial, "0") == 0 || strcmp(row->initial, "auto") == 0) &&
           strcmp(value, row->initial) == 0;
}

/* Whether the option turns a run on one kind of data into one on another: that is refused whatever is in the
 * data, because two such options exclude each other. */
static bool other_source(const struct run_config *was, const char *option) {
    return (strcmp(option, "text") == 0 && !was->text) || (strcmp(option, "data") == 0 && !was->data) ||
           (strcmp(option, "chat") == 0 && !was->chat) || (strcmp(option, "pairs") == 0 && !was->pairs);
}

static bool refuse_source(const struct resume *r, const char *option, const char *is, struct error *err) {
    const struct run_config *c = &r->config;
    const char *was = c->text   ? temp_printf("--text %s", c->text)
                      : c->data ? temp_printf("--data %s", c->data)
                      : run_samples_file(c)
                          ? temp_printf("--%s %s", run_samples_option(c), run_samples_file(c))
                          : "the built-in stories";
    return fail(err, "--%s %s: %s is of a run that trains on %s; leave the option out at --resume", option,
                is, r->checkpoint, was);
}

bool resume_check_fixed(const struct resume *r, struct options *now, const struct gpt_config *model,
                        struct error *err) {
    const struct run_config *c = (const struct run_config *)now->config;
    for (int i = 0; i < now->count; i++) {
        const struct option_row *row = now->state[i].row;
        enum resume_rule rule;
        (void)resume_rule(row->name, &rule);
        const struct gpt_field *field = shape_field(row->name);
        const char *is, *was;
        if (!differs(r, now, row->name, &is, &was)) continue;
        if (other_source(&r->config, row->name)) return refuse_source(r, row->name, is, err);
        if (c->lora_rank && strcmp(row->name, "model") == 0) continue; /* the adapters know which one it is */
        if (rule != RESUME_MODEL && rule != RESUME_STATE && rule != RESUME_ORDER) continue;
        /* what the run was not told is in the model */
        if (field && gpt_field_get(&c->shape, field) == gpt_field_get(model, field)) continue;
        if (!is_open(row, is))
            return refuse(r, rule, row->name, is, field ? gpt_field_text(model, field) : was, err);
        options_copy(now, &r->options, row->name);
    }
    return true;
}

/* --- data --- */

static enum samples_choice now_samples(const struct options *now) {
    return ((const struct run_config *)now->config)->samples;
}

bool resume_check_data(const struct resume *r, const struct options *now, const struct train_state *then,
                       const struct train_state *found, struct error *err) {
    bool same_names = then->data == found->data;
    bool same_contents = !then->contents || then->contents == found->contents;
    if (!same_names || !same_contents) {
        char *options = changes(r, now, RESUME_DATA);
        fail(
            err,
            "%s: the training data is not what the run was started on (%s); --resume needs the same data (to "
            "train on other data, start a new run with --model %s)",
            r->checkpoint,
            *options     ? options
            : same_names ? "the files have the same names and sizes, but other tokens"
                         : "the files have changed",
            r->checkpoint);
        free(options);
        return false;
    }
    /* only whole documents fill up an epoch to a number of steps */
    if (then->epoch_samples && then->epoch_samples != found->epoch_samples &&
        now_samples(now) == SAMPLES_CHOICE_WINDOWS)
        return fail(err,
                    "%s: was saved by a version that divides this data into %" PRId64
                    " samples; here it is %" PRId64
                    ", and the place in the data is lost: start a new run from "
                    "these weights with --model %s",
                    r->checkpoint, then->epoch_samples, found->epoch_samples, r->checkpoint);
    if (then->validation && found->validation != then->validation)
        warn("the validation data is not what the run has had so far: its validation losses before and after "
             "step %" PRId64 " cannot be compared",
             then->step);
    return true;
}

int64_t resume_sample(const struct train_state *then, int64_t epoch_samples) {
    int64_t before = then->epoch_samples;
    if (!before || before == epoch_samples) return then->sample;
    /* rows that only fill up the epoch are the last ones, in both */
    return then->sample / before * epoch_samples + min_i64(then->sample % before, epoch_samples);
}

/* --- warnings --- */

static void warn_about_rate(const struct resume *r, const struct options *now, const struct run_config *c,
                            int64_t step) {
    double is = run_learning_rate(c, step);
    double was = run_learning_rate(&r->config, min_i64(step, max_i64(0, r->config.steps - 1)));
    if (step >= c->steps || fabs(is - was) <= 0.01 * fmax(is, was)) return;
    char *plan = changes(r, now, RESUME_PLAN);
    warn("the learning rate jumps: in step %" PRId64
         " it is %.4g, by the plan that the run has had it was %.4g"
         "%s%s%s",
         step + 1, is, was, *plan ? " (" : "", plan, *plan ? ")" : "");
    free(plan);
}

void resume_warn(const struct resume *r, const struct options *now, const struct run_config *c,
                 int64_t step) {
    const char *is, *was;
    if (differs(r, now, "tokens-per-step", &is, &was))
        warn("--tokens-per-step %s instead of %s: the run goes on at the same sample, and its remaining "
             "%" PRId64 " steps are of %s tokens each",
             is, was, c->steps - step, is);
    warn_about_rate(r, now, c, step);
}
