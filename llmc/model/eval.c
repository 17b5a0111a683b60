/* Evaluation: the loss on a dataset, and questions.
 *
 * A question is answered by the choice that the model finds most probable after the context: as a whole,
 * per token, and per character, which gives three accuracies. So every choice becomes one row of a batch,
 * with targets only in its own tokens, and rows of many questions share forward passes. A question with one
 * choice is right if each of these targets is the most probable token at its place. */
#include "llmc/model/eval.h"

#include "llmc/base/file.h"
#include "llmc/base/rng.h"
#include "llmc/corpus/task_file.h"

#include <glob.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void report(const struct eval_progress *p, int64_t done, int64_t all) {
    if (p && p->call) p->call(p->user, (double)done / (double)all);
}

/* --- losses of a batch --- */

/* (B,T) tokens, targets and, unless NULL, the first tokens of their documents, on the host; the loss of each
 * target and, unless NULL, A_HITS. */
static void losses_of_batch(struct gpt *gpt, const int32_t *tokens, const int32_t *targets,
                            const int32_t *first, float *losses, float *hits) {
    gpt_set_batch(gpt, tokens, targets);
    if (first) gpt_set_documents(gpt, first, NULL);
    gpt_forward(gpt, 0, gpt->options.T);
    struct tensor loss = gpt_act(gpt, A_LOSSES, 0), hit = gpt_act(gpt, A_HITS, 0);
    if (hits)
        gpt_loss_and_hits(gpt);
    else
        gpt_loss(gpt);
    ctx_download(gpt->ctx, losses, loss.data, tensor_bytes(&loss));
    if (hits) ctx_download(gpt->ctx, hits, hit.data, tensor_bytes(&hit));
}

/* --- loss on data --- */

struct eval_loss eval_loss(struct gpt *gpt, struct dataloader *loader, int64_t batches,
                           const struct tokenizer *t, const struct eval_tokens *each,
                           const struct eval_progress *progress) {
    int64_t n = gpt->options.B * gpt->options.T;
    float *losses = (float *)xmalloc((size_t)n * sizeof *losses); /* (B,T) */
    struct eval_loss r = {0};
    double sum = 0;
    int end_of_text = t ? tokenizer_end_of_text(t) : -1;
    for (int64_t i = 0; i < batches; i++) {
        const int32_t *tokens, *targets;
        dataloader_next(loader, &tokens, &targets, NULL);
        losses_of_batch(gpt, tokens, targets, dataloader_first_of_document(loader), losses, NULL);
        if (i == 0 && each && tokens[0] != end_of_text) each->call(each->user, tokens[0], NAN);
        for (int64_t k = 0; k < n; k++) {
            if (targets[k] < 0) continue;
            if (each) each->call(each->user, targets[k], (double)losses[k]);
            sum += (double)losses[k];
            r.bytes += t ? tokenizer_text_bytes(t, targets[k]) : 0;
            r.targets++;
        }
        report(progress, i + 1, batches);
    }
    free(losses);
    r.loss = r.targets ? sum / (double)r.targets : NAN;
    r.perplexity = exp(r.loss);
    r.bits_per_byte = r.bytes ? sum / log(2.0) / (double)r.bytes : NAN;
    return r;
}

/* --- questions as tokens --- */

/* One choice after its context: tokens[first, first + count), of which the last `scored` are the
 * choice's. */
struct task_row {
    int64_t first;
    int32_t count, scored, characters;
};

struct task_question {
    int64_t first_row;
    int count, answer;
};

struct eval_task {
    char *name;
    struct token_buffer tokens; /* of all rows */
    struct task_row *rows;
    struct task_question *questions;
    int64_t row_count, question_count, cut, longest;
    bool completions; /* each question has one choice */
};

/* The space that joins a choice to its context is not counted; at least 1. */
static int32_t count_characters(const char *text) {
    int32_t n = 0;
    for (const char *p = text + (*text == ' '); *p; p++) n += (*p & 0xC0) != 0x80;
    return n > 0 ? n : 1;
}

static bool encode(struct token_buffer *out, const struct tokenizer *t, const char *text, const char *path,
                   int64_t line, struct error *err) {
    return tokenizer_encode(t, text, (int64_t)strlen(text), out) >= 0 ||
           fail(err, "%s:%" PRId64 ": the tokenizer's pattern cannot match this text (too long)", path, line);
}

/* Room for `more` tokens at the end, and where that is. */
static uint32_t *room_for(struct token_buffer *b, int64_t more) {
    if (b->count + more > b->capacity) {
        b->capacity = 2 * (b->count + more);
        b->ids = (uint32_t *)xrealloc(b->ids, (size_t)b->capacity * sizeof *b->ids);
    }
    b->count += more;
    return b->ids + b->count - more;
}

/* Drops what lies too far left for T inputs: a row of T + 1 tokens has T of them. */
static bool cut_row(struct eval_task *task, struct task_row *row, int64_t T) {
    int64_t excess = row->count - (T + 1);
    if (excess <= 0) return false;
    row->first += excess;
    row->count -= (int32_t)excess;
    row->scored = (int32_t)min_i64(row->scored, T);
    return true;
}

/* An empty context is <|endoftext|>. */
static bool encode_context(struct token_buffer *b, const struct tokenizer *t, const char *text,
                           const char *path, int64_t line, struct error *err) {
    int64_t before = b->count;
    if (!encode(b, t, text, path, line, err)) return false;
    if (b->count > before) return true;
    if (tokenizer_end_of_text(t) < 0)
        return fail(
            err, "%s:%" PRId64 ": the context is empty, and the tokenizer has no <|endoftext|> to begin with",
            path, line);
    *room_for(b, 1) = (uint32_t)tokenizer_end_of_text(t);
    return true;
}

static const char *context_of(const struct question *q, int choice) {
    return q->contexts ? q->contexts[choice] : q->context;
}

static bool is_example_for(const struct question *e, const struct question *q) {
    return strcmp(e->form, q->form) == 0 && e->heading == q->heading &&
           memcmp(e->context, q->context, (size_t)q->heading) == 0 &&
           strcmp(context_of(e, 0), context_of(q, 0)) != 0;
}

/* A random number below n. What is left of 2^64 / n makes some of them likelier by n / 2^64. */
static int64_t random_below(int64_t n, uint64_t seed, uint64_t purpose, int64_t index) {
    struct rng4 r = rng_philox(seed, purpose, (uint64_t)index);
    return (int64_t)(((uint64_t)r.v[0] << 32 | r.v[1]) % (uint64_t)n);
}

/* The examples for question number `index` of a file, s->count of them; NULL if there are too few. The caller
 * frees. */
static const struct question **examples_for(const struct eval_shots *s, const struct question *q,
                                            int64_t index, const char *path, struct error *err) {
    int64_t found = 0, all = s->examples.count;
    const struct question **e = (const struct question **)xmalloc((size_t)(all + 1) * sizeof *e);
    for (int64_t i = 0; i < all && (s->order == SHOTS_RANDOM || found < s->count); i++)
        if (is_example_for(&s->examples.questions[i], q)) e[found++] = &s->examples.questions[i];
    if (found < s->count) {
        fail(err,
             "%s:%" PRId64 ": --shots %" PRId64 ": --examples has only %" PRId64
             " questions like this one (%s%s%.*s)",
             path, q->line, s->count, found, q->form, q->heading ? ": " : "", (int)max_i64(0, q->heading - 2),
             q->context);
        free(e);
        return NULL;
    }
    for (int64_t i = 0; s->order == SHOTS_RANDOM && i < s->count; i++) { /* the first part of a shuffle */
        int64_t other = i + random_below(found - i, s->seed, RNG_SHOTS | (uint64_t)index << 8, i);
        const struct question *drawn = e[other];
        e[other] = e[i];
        e[i] = drawn;
    }
    return e;
}

/* The context of a choice with the examples in it. The caller frees. */
static char *context_with(const struct question *const *examples, int64_t count, const struct question *q,
                          int choice) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    check(out, "out of host memory");
    fwrite(q->context, 1, (size_t)q->heading, out);
    for (int64_t i = 0; i < count; i++) {
        const struct question *e = examples[i];
        fprintf(out, "%s%s\n\n", context_of(e, e->answer) + e->heading, e->choices[e->answer]);
    }
    fputs(context_of(q, choice) + q->heading, out);
    fclose(out);
    return text;
}

static bool add_question(struct eval_task *task, const struct question *q, const struct tokenizer *t,
                         int64_t T, const struct eval_shots *shots, const char *path, struct error *err) {
    struct token_buffer *b = &task->tokens;
    bool cut = false, ok = true;
    const struct question **examples = NULL;
    if (shots && shots->count) {
        examples = examples_for(shots, q, task->question_count, path, err);
        if (!examples) return false;
    }
    task->questions[task->question_count++] = (struct task_question){task->row_count, q->count, q->answer};
    for (int k = 0; ok && k < q->count; k++) {
        int64_t first = b->count, before;
        char *context = context_with(examples, examples ? shots->count : 0, q, k);
        ok = encode_context(b, t, context, path, q->line, err);
        free(context);
        before = b->count;
        ok = ok && encode(b, t, q->choices[k], path, q->line, err) &&
             (b->count - first <= INT32_MAX ||
              fail(err, "%s:%" PRId64 ": the text is too long", path, q->line));
        if (!ok) break;
        struct task_row *row = &task->rows[task->row_count++];
        *row = (struct task_row){first, (int32_t)(b->count - first), (int32_t)(b->count - before),
                                 count_characters(q->choices[k])};
        cut |= cut_row(task, row, T);
        task->longest = max_i64(task->longest, row->count - 1);
    }
    task->cut += cut;
    free(examples);
    return ok;
}

struct eval_task *eval_task_open(const char *path, const struct tokenizer *t, int64_t T,
                                 const struct eval_shots *shots, struct error *err) {
    struct task_file f;
    if (!task_file_read(&f, path, err)) return NULL;
    struct eval_task *task = (struct eval_task *)xcalloc(1, sizeof *task);
    const char *slash = strrchr(path, '/');
    int64_t rows = 0;
    for (int64_t i = 0; i < f.count; i++) rows += f.questions[i].count;
    task->completions = f.questions[0].count == 1;
    task->name = xstrdup(slash ? slash + 1 : path);
    task->rows = (struct task_row *)xcalloc((size_t)rows, sizeof *task->rows);
    task->questions = (struct task_question *)xcalloc((size_t)f.count, sizeof *task->questions);
    bool ok = true;
    for (int64_t i = 0; ok && i < f.count; i++)
        ok = add_question(task, &f.questions[i], t, T, shots, path, err);
    task_file_free(&f);
    if (ok) return task;
    eval_task_free(task);
    return NULL;
}

void eval_task_free(struct eval_task *task) {
    if (!task) return;
    token_buffer_free(&task->tokens);
    free(task->name);
    free(task->rows);
    free(task->questions);
    free(task);
}

const char *eval_task_name(const struct eval_task *task) { return task->name; }
int64_t eval_task_questions(const struct eval_task *task) { return task->question_count; }
bool eval_task_completes(const struct eval_task *task) { return task->completions; }
int64_t eval_task_cut(const struct eval_task *task) { return task->cut; }
int64_t eval_task_longest(const struct eval_task *task) { return task->longest; }

/* --- running them --- */

/* Token i of a row is predicted from those before it: input i - 1, target i. Only the choice's are
 * targets. */
static void fill_row(const struct eval_task *task, const struct task_row *row, int64_t T, int64_t V,
                     int32_t *tokens, int32_t *targets) {
    const uint32_t *ids = task->tokens.ids + row->first;
    for (int64_t i = 0; i < T; i++) {
        tokens[i] = 0;
        targets[i] = -1;
        if (i + 1 >= row->count) continue;
        check(ids[i] < V && ids[i + 1] < V,
              "%s: token %" PRIu32 " is not in the model's vocabulary of %" PRId64
              ": the tokenizer belongs to another model",
              task->name, ids[i] < V ? ids[i + 1] : ids[i], V);
        tokens[i] = (int32_t)ids[i];
        if (i + 1 >= row->count - row->scored) targets[i] = (int32_t)ids[i + 1];
    }
}

/* Log-probability of every row's choice, and of completions the number of tokens that greedy decoding would
 * write. B rows at a time. */
static void score_rows(const struct eval_task *task, struct gpt *gpt, double *score, int32_t *greedy,
                       const struct eval_progress *progress) {
    int64_t B = gpt->options.B, T = gpt->options.T, V = gpt->config.vocab_size;
    int32_t *tokens = (int32_t *)xmalloc((size_t)(B * T) * sizeof *tokens);                    /* (B,T) */
    int32_t *targets = (int32_t *)xmalloc((size_t)(B * T) * sizeof *targets);                  /* (B,T) */
    float *losses = (float *)xmalloc((size_t)(B * T) * sizeof *losses);                        /* (B,T) */
    float *hits = task->completions ? (float *)xmalloc((size_t)(B * T) * sizeof *hits) : NULL; /* (B,T) */
    static const struct task_row nothing = {0, 0, 0, 0};
    for (int64_t first = 0; first < task->row_count; first += B) {
        int64_t count = min_i64(B, task->row_count - first);
        for (int64_t b = 0; b < B; b++)
            fill_row(task, b < count ? &task->rows[first + b] : &nothing, T, V, tokens + b * T,
                     targets + b * T);
        losses_of_batch(gpt, tokens, targets, NULL, losses, hits);
        for (int64_t i = 0; i < count * T; i++) {
            if (targets[i] < 0) continue;
            score[first + i / T] -= (double)losses[i];
            greedy[first + i / T] += hits && hits[i] > 0.0f;
        }
        report(progress, first + count, task->row_count);
    }
    free(tokens);
    free(targets);
    free(losses);
    free(hits);
}

static bool right(const double *score, int count, int answer) {
    int best = -1;
    for (int k = 0; k < count; k++)
        if (!isnan(score[k]) && (best < 0 || score[k] > score[best])) best = k;
    return best == answer;
}

struct eval_result eval_task_run(const struct eval_task *task, struct gpt *gpt,
                                 const struct eval_answers *answers, const struct eval_progress *progress) {
    check(task->longest <= gpt->options.T, "%s: rows of %" PRId64 " tokens do not fit into %" PRId64,
          task->name, task->longest, gpt->options.T);
    double *score = (double *)xcalloc((size_t)task->row_count, sizeof *score);
    int32_t *greedy = (int32_t *)xcalloc((size_t)task->row_count, sizeof *greedy);
    score_rows(task, gpt, score, greedy, progress);
    struct eval_result r = {.questions = task->question_count, .completions = task->completions};
    double log_probability = 0.0;
    for (int64_t i = 0; i < task->question_count; i++) {
        const struct task_question *q = &task->questions[i];
        const struct task_row *rows = task->rows + q->first_row;
        double by_token[TASK_MAX_CHOICES], by_character[TASK_MAX_CHOICES];
        int32_t tokens[TASK_MAX_CHOICES];
        for (int k = 0; k < q->count; k++) {
            tokens[k] = rows[k].scored;
            by_token[k] = score[q->first_row + k] / rows[k].scored;
            by_character[k] = score[q->first_row + k] / rows[k].characters;
        }
        struct eval_answer a = {i,      q->count,          q->answer, score + q->first_row,
                                tokens, task->completions, false};
        a.right = task->completions ? greedy[q->first_row] == tokens[0] : right(a.score, q->count, q->answer);
        r.accuracy += a.right;
        if (task->completions) {
            log_probability += a.score[0];
        } else {
            r.per_token += right(by_token, q->count, q->answer);
            r.per_character += right(by_character, q->count, q->answer);
            r.chance += 1.0 / q->count;
        }
        if (answers && answers->call) answers->call(answers->user, &a);
    }
    double n = (double)task->question_count;
    r.accuracy /= n;
    r.per_token /= n;
    r.per_character /= n;
    r.chance /= n;
    r.perplexity = exp(-log_probability / n);
    free(score);
    free(greedy);
    return r;
}

/* --- several files --- */

static bool add_task(struct eval_tasks *l, const char *path, const struct tokenizer *t, int64_t T,
                     const struct eval_shots *shots, struct error *err) {
    struct eval_task *task = eval_task_open(path, t, T, shots, err);
    if (!task) return false;
    l->task = (struct eval_task **)xrealloc(l->task, (size_t)(l->count + 1) * sizeof(struct eval_task *));
    l->task[l->count++] = task;
    l->longest = max_i64(l->longest, eval_task_longest(task));
    l->cut += eval_task_cut(task);
    l->questions += eval_task_questions(task);
    return true;
}

/* Calls `add` for each file of a list: files and patterns, separated by commas. */
typedef bool add_file_fn(void *user, const char *path, struct error *err);
static bool for_each_file(const char *list, add_file_fn *add, void *user, struct error *err) {
    char *copy = xstrdup(list), *rest = copy;
    bool ok = true;
    int64_t count = 0;
    for (char *pattern; ok && (pattern = strsep(&rest, ",")) != NULL;) {
        glob_t found;
        if (!*pattern) continue;
        char *escaped = path_pattern(pattern);
        int rc = glob(escaped, GLOB_ERR, NULL, &found);
        free(escaped);
        if (rc != 0) {
            ok = fail(err, "no file is named %s", pattern);
            break;
        }
        for (size_t i = 0; ok && i < found.gl_pathc; i++, count++) ok = add(user, found.gl_pathv[i], err);
        globfree(&found);
    }
    free(copy);
    return ok && (count > 0 || fail(err, "\"%s\" names no file", list));
}

struct adding {
    struct eval_tasks *tasks;
    const struct tokenizer *t;
    int64_t T;
    const struct eval_shots *shots;
};
static bool add_task_file(void *user, const char *path, struct error *err) {
    const struct adding *a = (const struct adding *)user;
    return add_task(a->tasks, path, a->t, a->T, a->shots, err);
}

bool eval_tasks_open(struct eval_tasks *l, const char *list, const struct tokenizer *t, int64_t T,
                     const struct eval_shots *shots, struct error *err) {
    struct adding adding = {l, t, T, shots};
    memset(l, 0, sizeof *l);
    bool ok = for_each_file(list, add_task_file, &adding, err);
    if (!ok) eval_tasks_free(l);
    return ok;
}

static bool add_examples(void *user, const char *path, struct error *err) {
    struct task_file *all = (struct task_file *)user, f;
    if (!task_file_read(&f, path, err)) return false;
    all->questions =
        (struct question *)xrealloc(all->questions, (size_t)(all->count + f.count) * sizeof *f.questions);
    memcpy(all->questions + all->count, f.questions, (size_t)f.count * sizeof *f.questions);
    all->capacity = all->count += f.count;
    free(f.questions); /* what they consist of is in `all` now */
    return true;
}

bool eval_shots_open(struct eval_shots *s, const char *list, struct error *err) {
    memset(&s->examples, 0, sizeof s->examples);
    bool ok = for_each_file(list, add_examples, &s->examples, err);
    if (!ok) eval_shots_free(s);
    return ok;
}

void eval_shots_free(struct eval_shots *s) { task_file_free(&s->examples); }

void eval_tasks_free(struct eval_tasks *l) {
    for (int64_t i = 0; i < l->count; i++) eval_task_free(l->task[i]);
    free(l->task);
    memset(l, 0, sizeof *l);
}
