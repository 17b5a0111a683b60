/* `train_gpt eval`: the loss of a checkpoint on tokens or text, and its answers to questions. Loss and tasks
 * need different sequence lengths, so each creates the model anew. */
#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/cli/commands.h"
#include "llmc/cli/eval_pairs.h"
#include "llmc/cli/prompt.h"
#include "llmc/corpus/chat_file.h"
#include "llmc/corpus/corpus.h"
#include "llmc/corpus/shard_manifest.h"
#include "llmc/format/checkpoint.h"
#include "llmc/format/model_config.h"
#include "llmc/model/eval.h"
#include "llmc/report/json_text.h"
#include "llmc/report/loss_text.h"
#include "llmc/run/owner.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct eval_config {
    struct text_model_config model;
    const char *data, *text, *chat, *field, *tasks, *pairs, *details, *examples, *json, *html;
    enum text_format format;
    enum chat_family chat_template;
    int64_t batch_size, seq_len, batches, shots, seed, beams;
    int shot_order; /* enum shot_order */
    int samples;    /* enum eval_samples */
    bool show, overwrite;
};
enum eval_samples { EVAL_SAMPLES_AUTO, EVAL_SAMPLES_PACKED };

#define C struct eval_config
static const struct option_row what_rows[] = {
    OPT_TEXT(C, data, "data", NULL, "GLOB", "measure the loss on these token shards, in windows of T tokens",
             0),
    OPT_TEXT(
        C, text, "text", NULL, "PATH",
        "measure the loss on this text, each document from its start: a file, also compressed (.gz, .zst), "
        "JSON lines, a directory of such files, or - for the standard input",
        0),
    TEXT_FORMAT_OPTIONS(C, "of --text; "),
    OPT_TEXT(C, chat, "chat", NULL, "FILE",
             "measure the loss on what the assistant says in these conversations, JSON lines as training's "
             "--chat takes them, and on the tokens that end its turns",
             0),
    CHAT_TEMPLATE_OPTION(C),
    OPT_TEXT(C, tasks, "tasks", NULL, "LIST",
             "answer questions: files or patterns, separated by commas, of HellaSwag (.jsonl), MMLU (.csv or "
             ".jsonl), ARC, PIQA, WinoGrande and LAMBADA (.jsonl), or lines {\"context\": ..., \"choices\": "
             "[...], \"answer\": 0}",
             0),
    OPT_INT(C, shots, "shots", "0", 0, 1000, "N",
            "put N answered questions of --examples before each question", 0),
    OPT_TEXT(C, examples, "examples", NULL, "LIST",
             "files of answered questions for --shots, of the same form as those of --tasks", 0),
    OPT_WORD(
        C, shot_order, "shot-order", "first", "first|random", NULL,
        "which of --examples: the first N, the same before each question, or N drawn at random for each. "
        "lm-evaluation-harness draws at random, too, but by Python's generator, which gives others",
        0),
    OPT_INT(C, seed, "seed", "1", 0, INFINITY, "N", "seed of --shot-order random", 0),
    OPT_TEXT(
        C, pairs, "pairs", NULL, "FILE",
        "write the targets of these sources (lines of SOURCE<tab>TARGET, or JSON), the most probable token "
        "at each place, and compare them with the targets there: BLEU, as sacrebleu has it",
        0),
    OPT_INT(C, beams, "beams", "1", 1, 256, "N",
            "with --pairs: find each target by a beam search of this width", 0),
};
static const struct option_row output_rows[] = {
    OPT_FLAG(
        C, show, "show", "false",
        "print the text of --text or --data with each token shaded by its loss; without colours (a file, "
        "a pipe, NO_COLOR) a digit under each token is its level",
        0),
    OPT_TEXT(C, html, "html", NULL, "FILE", "write the same as a page for a browser, complete in one file",
             0),
    OPT_TEXT(C, json, "json", NULL, "FILE", "write a summary of all results to FILE, as one JSON object", 0),
    OPT_TEXT(
        C, details, "details", NULL, "FILE",
        "write the scores of every question of --tasks, or the targets of --pairs, to FILE, as JSON lines",
        0),
    OPT_FLAG(C, overwrite, "overwrite", "false", "replace the FILE of --details, --html and --json",
             OPTION_THIS_RUN),
};
static const struct option_row batch_rows[] = {
    OPT_INT(C, batch_size, "batch-size", "auto", 0, 1 << 20, "B",
            "sequences computed at a time (auto: as many as have 4096 tokens)", 0),
    OPT_INT(C, seq_len, "seq-len", "auto", 0, 1 << 24, "T",
            "tokens in a sequence (auto: the model's context)", 0),
    OPT_WORD(C, samples, "samples", "auto", "auto|packed", NULL,
             "packed: the documents of --data and --text are packed, and a token sees only its own, as in "
             "training with --samples packed (auto: a token sees all before it in its sequence)",
             0),
    OPT_INT(C, batches, "batches", "0", 0, INFINITY, "N",
            "only the first N batches of --data, --text or --chat (0: all)", 0),
};
#undef C
static const struct option_group groups[] = {
    TEXT_MODEL_OPTION_GROUP(offsetof(struct eval_config, model), MODEL_ROWS_ADAPTER),
    {"What", what_rows, ARRAY_LENGTH(what_rows)},
    {"Batch", batch_rows, ARRAY_LENGTH(batch_rows)},
    {"Output", output_rows, ARRAY_LENGTH(output_rows)},
};
const struct option_command eval_command = {
    "train_gpt eval --from DIR [--data GLOB | --text PATH | --chat FILE] [--tasks LIST] [--pairs FILE] "
    "[options]",
    "Measures a checkpoint: loss, perplexity and bits per byte on tokens, text or conversations, and the share "
    "of questions that it answers correctly; or BLEU of the targets that it writes.",
    groups, ARRAY_LENGTH(groups)};

/* --- the model --- */

struct evaluation {
    struct eval_config c;
    struct text_model m;
    struct json_t *summary; /* for --json */
};

/* Conversations stay apart in any case. */
static bool packs(const struct evaluation *e) {
    return e->c.samples == EVAL_SAMPLES_PACKED && (e->c.data || e->c.text);
}

static void open_evaluation(struct evaluation *e) {
    text_model_find(&e->m, &e->c.model, e->c.text ? e->c.text : e->c.chat ? e->c.chat : e->c.tasks);
    int64_t context = e->m.config.context;
    if (!e->c.seq_len) e->c.seq_len = context;
    check(e->c.seq_len <= context, "--seq-len %" PRId64 " is longer than the model's context of %" PRId64,
          e->c.seq_len, context);
    check(
        !packs(e) || e->m.config.mask == MASK_CAUSAL || e->m.config.mask == MASK_WINDOW,
        "--samples packed: a token sees only its own document under --mask causal and --mask window; %s has "
        "another mask",
        e->m.directory);
}

/* A model for at least two sequences of T tokens. One alone would make it a model for generation, which has
 * room for the logits of one position only, and the loss would be slow. Ends with ctx_free(). */
static void make_model(struct evaluation *e, int64_t T, bool documents) {
    enum { BATCH_TOKENS = 4096, HEAD_ROWS = 512 };
    struct error err;
    struct text_model *m = &e->m;
    int64_t B = e->c.batch_size ? e->c.batch_size : max_i64(2, BATCH_TOKENS / T);
    struct gpt_options options = {.B = B,
                                  .T = T,
                                  .head_chunks = ceil_div(B * T, HEAD_ROWS),
                                  .dtype = DTYPE_F32,
                                  .documents = documents};
    ctx_init(&m->ctx, m->device, m->device->ops, false);
    gpt_create(&m->gpt, &m->ctx, &m->config, &options);
    check(checkpoint_load_adapted(&m->gpt, m->directory, m->adapter, &err), "%s", err.message);
}

static void show_progress(void *user, double done) {
    fprintf(stderr, "\r%s  %3.0f %%\033[K", (const char *)user, 100 * done);
}

/* On a terminal, a percentage that progress_done() erases. */
static struct eval_progress progress_named(const char *name) {
    union {
        const char *in;
        void *out;
    } user = {name};
    return (struct eval_progress){isatty(STDERR_FILENO) ? show_progress : NULL, user.out};
}

static void progress_done(const struct eval_progress *p) {
    if (p->call) fputs("\r\033[K", stderr);
}

/* --- loss --- */

static struct dataset *open_text(const struct evaluation *e, struct error *err) {
    struct text_options options = {.format = e->c.format, .field = e->c.field, .leave_out = run_wrote};
    struct corpus corpus;
    uint32_t *ids;
    int64_t count;
    if (!corpus_open(&corpus, e->c.text, &options, 0.0, err)) return NULL;
    corpus_warn(&corpus, e->c.text, e->c.field);
    bool ok = corpus_encode(&corpus, false, e->m.tokenizer, &ids, &count, err);
    corpus_free(&corpus);
    return ok ? dataset_from_tokens(e->c.text, ids, count, e->m.config.vocab_size) : NULL;
}

static struct dataset *open_shards(const struct evaluation *e, struct error *err) {
    struct dataset *d = dataset_open(e->c.data, e->m.config.vocab_size, err);
    struct shard_tokenizer made_with;
    if (!d) return NULL;
    bool ok = shard_tokenizer_find(&made_with, d, err) &&
              shard_tokenizer_is(&made_with, e->m.tokenizer, temp_printf("--data %s", e->c.data),
                                 e->c.model.tokenizer ? temp_printf("--tokenizer %s", e->c.model.tokenizer)
                                                      : temp_printf("that of %s", e->m.directory),
                                 err);
    shard_tokenizer_free(&made_with);
    if (ok) return d;
    dataset_free(d);
    return NULL;
}

/* What the assistant does not say is no target, as in training. */
static struct dataset *open_chats(struct evaluation *e, struct error *err) {
    struct chat_format format;
    struct chat_file f;
    struct dataset *d = NULL;
    int64_t longest = 1;
    if (!e->m.tokenizer) {
        fail(err, "--chat %s: %s has no tokenizer: give --tokenizer", e->c.chat, e->m.directory);
        return NULL;
    }
    if (!model_chat_open(&format, e->c.chat_template, e->m.tokenizer, &e->m.config, err)) return NULL;
    if (chat_file_read(&f, e->c.chat, err)) {
        d = chat_file_encode(&f, NULL, false, &format, &longest, err);
        if (d)
            say("%s: %" PRId64 " conversation%s by the template %s\n", e->c.chat, f.count,
                f.count == 1 ? "" : "s", chat_family_name(format.family));
        chat_file_free(&f);
    }
    chat_close(&format);
    e->c.seq_len = min_i64(e->c.seq_len, max_i64(1, longest - 1));
    return d;
}

static void warn_about_cut(const struct evaluation *e, const struct dataloader *l) {
    if (dataloader_cut(l))
        warn("--chat %s: %" PRId64 " conversations are longer than %" PRId64
             " tokens and lose their ends; %" PRId64
             " of them lose all that the assistant says, and are left out",
             e->c.chat, dataloader_cut(l), e->c.seq_len, dataloader_left_out(l));
}

static void print_loss(const struct eval_loss *r, const char *name) {
    say("%s: loss %.4f nats per token over %" PRId64 " tokens, perplexity %.2f", name, r->loss, r->targets,
        r->perplexity);
    if (r->bytes) say(", %.4f bits per byte", r->bits_per_byte);
    say("\n");
}

/* JSON has no NaN. */
static json_t *number(double v) { return isfinite(v) ? json_real(v) : json_null(); }

static json_t *loss_to_json(const struct eval_loss *r, const char *name) {
    return json_pack("{s:o, s:I, s:o, s:o, s:o}", "data", json_text(name, (int64_t)strlen(name)), "tokens",
                     (json_int_t)r->targets, "loss", number(r->loss), "perplexity", number(r->perplexity),
                     "bits_per_byte", number(r->bits_per_byte));
}

/* --- the text, shaded --- */

struct shading {
    struct loss_text text;
    const struct tokenizer *t;
};

static void add_token(void *user, int32_t token, double loss) {
    struct shading *s = (struct shading *)user;
    int size;
    const char *bytes = tokenizer_token_bytes(s->t, token, &size);
    loss_text_add(&s->text, bytes, size, loss, token == tokenizer_end_of_text(s->t));
}

static void show_tokens(const struct evaluation *e, const struct loss_text *text, const struct eval_loss *r,
                        const char *name) {
    struct error err;
    if (e->c.show) {
        loss_text_print(text, stdout, loss_text_form(), terminal_width());
        printf("\n");
    }
    if (!e->c.html) return;
    json_t *facts = loss_to_json(r, name);
    json_object_set_new(facts, "model", json_text(e->m.directory, (int64_t)strlen(e->m.directory)));
    check(loss_text_write_page(text, facts, e->c.html, &err), "--html %s", err.message);
    fprintf(stderr, "%s: open it in a browser\n", e->c.html);
    json_decref(facts);
}

/* Every order takes every token once and pads the last batch. Shards are cut into windows regardless of
 * documents (no token ends one), as published losses are measured, unless they are packed. Packed rows are
 * shuffled, because the first ones have the longest documents, and --batches may leave out the others. */
static struct dataloader *open_loader(const struct evaluation *e, const struct dataset *d,
                                      struct error *err) {
    bool packed = packs(e), windows = e->c.data && !packed;
    int end_of_text = e->m.tokenizer && !windows ? tokenizer_end_of_text(e->m.tokenizer) : -1;
    if (packed && end_of_text < 0) {
        fail(err, "--samples packed: no token of %s says where a document begins: give --tokenizer",
             e->m.directory);
        return NULL;
    }
    struct loader_options o = {.B = e->m.gpt.options.B,
                               .T = e->m.gpt.options.T,
                               .order = packed      ? SAMPLES_PACKED
                                        : e->c.chat ? SAMPLES_APART
                                                    : SAMPLES_DOCUMENTS,
                               .shuffle_rows = packed,
                               .world = 1,
                               .end_of_text = end_of_text};
    return dataloader_open(d, &o, err);
}

static void evaluate_loss(struct evaluation *e) {
    struct error err;
    struct gpt *gpt = &e->m.gpt;
    const char *name = e->c.data ? e->c.data : e->c.chat ? e->c.chat : e->c.text;
    struct dataset *d = e->c.data   ? open_shards(e, &err)
                        : e->c.chat ? open_chats(e, &err)
                                    : open_text(e, &err);
    check(d, "%s", err.message);
    make_model(e, e->c.seq_len, packs(e));
    struct dataloader *l = open_loader(e, d, &err);
    check(l, "%s", err.message);
    warn_about_cut(e, l);
    int64_t batches = dataloader_samples(l) / gpt->options.B;
    if (e->c.batches) batches = min_i64(batches, e->c.batches);
    struct eval_progress progress = progress_named(name);
    struct shading shading = {.t = e->m.tokenizer};
    struct eval_tokens each = {add_token, &shading};
    bool shaded = !e->c.chat && (e->c.show || e->c.html);
    check(!shaded || shading.t, "--show and --html need a tokenizer: %s has none, give --tokenizer",
          e->m.directory);
    struct eval_loss r = eval_loss(gpt, l, batches, e->m.tokenizer, shaded ? &each : NULL, &progress);
    progress_done(&progress);
    if (shaded) show_tokens(e, &shading.text, &r, name);
    loss_text_free(&shading.text);
    print_loss(&r, name);
    json_object_set_new(e->summary, "loss", loss_to_json(&r, name));
    dataloader_close(l);
    dataset_free(d);
    ctx_free(&e->m.ctx);
}

/* --- tasks --- */

struct details {
    struct writer w;
    const char *task;
};

static void write_answer(void *user, const struct eval_answer *a) {
    struct details *d = (struct details *)user;
    writer_printf(&d->w, "{\"task\":\"");
    for (const char *p = d->task; *p; p++)
        writer_printf(&d->w, (unsigned char)*p < ' ' || *p == '"' || *p == '\\' ? "\\u%04x" : "%c",
                      (unsigned char)*p);
    writer_printf(&d->w, "\",\"question\":%" PRId64 ",\"answer\":%d,\"scores\":[", a->question, a->answer);
    for (int k = 0; k < a->count; k++)
        writer_printf(&d->w, isfinite(a->score[k]) ? "%s%.9g" : "%snull", k ? "," : "", a->score[k]);
    writer_printf(&d->w, "],\"tokens\":[");
    for (int k = 0; k < a->count; k++) writer_printf(&d->w, "%s%d", k ? "," : "", a->tokens[k]);
    writer_printf(&d->w, a->completion ? "],\"greedy\":%s}\n" : "]}\n", a->right ? "true" : "false");
}

/* The standard error of a proportion by Agresti and Coull, with two right and two wrong answers more: two
 * right answers of two do not make it 0. */
static double standard_error(const struct eval_result *r) {
    double n = (double)r->questions + 4, p = (r->accuracy * (double)r->questions + 2) / n;
    return sqrt(p * (1 - p) / n);
}

/* acc, acc_norm and perplexity are the names of EleutherAI's evaluation harness. */
static json_t *result_to_json(const struct evaluation *e, const char *name, const struct eval_result *r) {
    json_t *row = json_pack("{s:o, s:I, s:I, s:f, s:f}", "task", json_text(name, (int64_t)strlen(name)),
                            "questions", (json_int_t)r->questions, "shots", (json_int_t)e->c.shots, "acc",
                            r->accuracy, "acc_stderr", standard_error(r));
    if (e->c.shots && e->c.shot_order == SHOTS_RANDOM)
        json_object_set_new(row, "seed", json_integer(e->c.seed));
    if (r->completions)
        json_object_set_new(row, "perplexity", number(r->perplexity));
    else
        json_object_update_new(row, json_pack("{s:f, s:f, s:f}", "acc_norm", r->per_character,
                                              "acc_per_token", r->per_token, "chance", r->chance));
    return row;
}

static void print_result(const char *name, int width, const struct eval_result *r) {
    say("%-*s %9" PRId64 "  %6.2f %% +- %4.2f", width, name, r->questions, 100 * r->accuracy,
        100 * standard_error(r));
    if (r->completions)
        say("  perplexity %.2f\n", r->perplexity);
    else
        say("  %6.2f %%  %10.2f %%  %6.2f %%\n", 100 * r->per_token, 100 * r->per_character, 100 * r->chance);
}

static void add_result(struct eval_result *sum, const struct eval_result *r) {
    double n = (double)sum->questions, m = (double)r->questions, all = n + m;
    sum->accuracy = (sum->accuracy * n + r->accuracy * m) / all;
    sum->per_token = (sum->per_token * n + r->per_token * m) / all;
    sum->per_character = (sum->per_character * n + r->per_character * m) / all;
    sum->chance = (sum->chance * n + r->chance * m) / all;
    sum->questions += r->questions;
}

static void run_tasks(struct evaluation *e, const struct eval_tasks *l, struct details *details) {
    int width = (int)strlen("all questions");
    int64_t of_choices = 0;
    for (int64_t i = 0; i < l->count; i++) {
        width = (int)max_i64(width, (int64_t)strlen(eval_task_name(l->task[i])));
        of_choices += !eval_task_completes(l->task[i]);
    }
    printf("%-*s %9s  %17s", width, "", "questions", "accuracy");
    printf(of_choices ? "  %8s  %12s  %8s\n" : "\n", "by token", "by character", "guessing");
    struct eval_result sum = {0};
    for (int64_t i = 0; i < l->count; i++) {
        const char *name = eval_task_name(l->task[i]);
        struct eval_progress progress = progress_named(name);
        struct eval_answers answers = {e->c.details ? write_answer : NULL, details};
        details->task = name;
        struct eval_result r = eval_task_run(l->task[i], &e->m.gpt, &answers, &progress);
        progress_done(&progress);
        print_result(name, width, &r);
        json_array_append_new(json_object_get(e->summary, "tasks"), result_to_json(e, name, &r));
        if (!r.completions) add_result(&sum, &r);
    }
    if (of_choices > 1) print_result("all questions", width, &sum);
}

static void evaluate_tasks(struct evaluation *e) {
    struct error err;
    struct details details = {0};
    struct eval_tasks l;
    struct eval_shots shots = {
        .count = e->c.shots, .order = (enum shot_order)e->c.shot_order, .seed = (uint64_t)e->c.seed};
    check(!e->c.shots || eval_shots_open(&shots, e->c.examples, &err), "--examples: %s", err.message);
    check(eval_tasks_open(&l, e->c.tasks, e->m.tokenizer, e->c.seq_len, &shots, &err), "--tasks: %s",
          err.message);
    eval_shots_free(&shots);
    if (l.cut)
        warn("%" PRId64 " of %" PRId64 " questions are longer than %" PRId64
             " tokens: their beginnings are left out",
             l.cut, l.questions, e->c.seq_len);
    check(!e->c.details || writer_open(&details.w, e->c.details, &err), "%s", err.message);
    make_model(e, l.longest, false);
    run_tasks(e, &l, &details);
    check(!e->c.details || writer_close(&details.w, &err), "%s", err.message);
    eval_tasks_free(&l);
    ctx_free(&e->m.ctx);
}

/* --- the command --- */

static void write_summary(const struct evaluation *e) {
    struct error err;
    char *text = json_dumps(e->summary, JSON_INDENT(2));
    check(text, "--json: out of memory");
    check(!e->c.json || write_file_atomic(e->c.json, text, strlen(text), &err), "--json %s", err.message);
    free(text);
    json_decref(e->summary);
}

/* Options of what is not evaluated. */
static void warn_idle(const struct options *o, const struct eval_config *c) {
    const struct {
        const char *option, *goes_with;
        bool idle;
    } rows[] = {{"format", "--text", !c->text},
                {"field", "--text", !c->text},
                {"chat-template", "--chat", !c->chat},
                {"samples", "--data and --text", !c->text && !c->data},
                {"show", "--data and --text", !c->text && !c->data},
                {"html", "--data and --text", !c->text && !c->data},
                {"shots", "--tasks", !c->tasks},
                {"examples", "--tasks and --shots", !c->tasks || !c->shots},
                {"shot-order", "--tasks and --shots", !c->tasks || !c->shots},
                {"seed", "--shot-order random", !c->tasks || !c->shots || c->shot_order != SHOTS_RANDOM},
                {"beams", "--pairs", !c->pairs},
                {"batches", "--data, --text and --chat", !c->text && !c->data && !c->chat}};
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
        if (rows[i].idle && options_given(o, rows[i].option))
            warn("--%s has no effect: it goes with %s", rows[i].option, rows[i].goes_with);
}

int cmd_eval(int argc, char **argv) {
    struct options options;
    struct evaluation e = {0};
    int status = command_options(&options, &eval_command, &e.c, argc, argv);
    if (status >= 0) return status;
    int losses = (e.c.data != NULL) + (e.c.text != NULL) + (e.c.chat != NULL);
    bool others = losses || e.c.tasks;
    const char *wrong =
        !others && !e.c.pairs ? "nothing to evaluate on: give --data, --text, --chat, --tasks or --pairs"
        : others && e.c.pairs ? "--pairs excludes --data, --text, --chat and --tasks: give one of them"
        : losses > 1          ? "--data, --text and --chat exclude each other: give one of them"
        : e.c.details && !e.c.tasks && !e.c.pairs ? "--details goes with --tasks and --pairs"
        : e.c.json && !others                     ? "--json goes with --data, --text, --chat and --tasks"
        : e.c.samples == EVAL_SAMPLES_PACKED && (e.c.show || e.c.html)
            ? "--show and --html need a text in its order: leave out --samples packed"
        : e.c.shots && !e.c.examples
            ? "--shots needs --examples: files with answered questions, such as the dev set"
            : NULL;
    if (wrong) {
        report_error("%s", wrong);
        options_free(&options);
        return 2;
    }
    warn_idle(&options, &e.c);
    struct error err;
    check(!e.c.details || may_write_file(e.c.details, e.c.overwrite, &err), "--details %s", err.message);
    check(!e.c.html || may_write_file(e.c.html, e.c.overwrite, &err), "--html %s", err.message);
    check(!e.c.json || may_write_file(e.c.json, e.c.overwrite, &err), "--json %s", err.message);
    if (e.c.pairs) {
        evaluate_pairs(&e.c.model, e.c.pairs, e.c.details, e.c.beams);
        options_free(&options);
        return 0;
    }
    open_evaluation(&e);
    e.summary = json_pack("{s:o, s:n, s:[]}", "from",
                          json_text(e.m.directory, (int64_t)strlen(e.m.directory)), "loss", "tasks");
    if (losses) evaluate_loss(&e);
    if (e.c.tasks) evaluate_tasks(&e);
    check(fflush(stdout) == 0 && !ferror(stdout), "cannot write the results to standard output");
    write_summary(&e);
    text_model_close(&e.m);
    options_free(&options);
    return 0;
}
