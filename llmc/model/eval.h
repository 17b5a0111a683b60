/* Evaluation of a model: its loss on tokens, its answers to multiple-choice questions, and whether it writes
 * the end of a text. `train_gpt eval` and training use it.
 *
 * Both run forward passes of a struct gpt that the caller made, with its B and T, and overwrite its batch,
 * activations and STEP_LOSS; parameters and gradients stay as they are. */
#ifndef LLMC_EVAL_H
#define LLMC_EVAL_H

#include "llmc/corpus/dataloader.h"
#include "llmc/corpus/task_file.h"
#include "llmc/model/gpt.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Called now and then with how much of the work is done, 0 to 1. NULL: nobody is interested. */
typedef void eval_progress_fn(void *user, double done);
struct eval_progress {
    eval_progress_fn *call;
    void *user;
};

/* --- loss --- */

struct eval_loss {
    int64_t targets;                  /* tokens predicted */
    double loss;                      /* nats per token; NAN if there were none */
    int64_t bytes;                    /* of text behind the targets; 0: unknown (no tokenizer) */
    double perplexity, bits_per_byte; /* of the loss; NAN: unknown */
};

/* Called for each target in order, and first of all for the first input, whose loss is NAN, unless it is
 * <|endoftext|>. */
typedef void eval_token_fn(void *user, int32_t token, double loss);
struct eval_tokens {
    eval_token_fn *call;
    void *user;
};

/* The next `batches` of the loader (whose B and T must be the model's). Special tokens have no bytes. `each`
 * may be NULL. */
struct eval_loss eval_loss(struct gpt *gpt, struct dataloader *loader, int64_t batches,
                           const struct tokenizer *t, const struct eval_tokens *each,
                           const struct eval_progress *progress);

/* --- questions --- */

/* Answered questions that a model reads before each one, of the same form, and for MMLU of the same subject,
 * but not the question itself: the first `count`, or as many drawn without replacement, others for each
 * question. A blank line stands between them. */
enum shot_order { SHOTS_FIRST, SHOTS_RANDOM };
struct eval_shots {
    int64_t count;
    enum shot_order order;
    uint64_t seed; /* of SHOTS_RANDOM */
    struct task_file examples;
};
/* Reads s->examples; the other members are the caller's. `list` is one as for eval_tasks_open(). */
bool eval_shots_open(struct eval_shots *s, const char *list, struct error *err);
void eval_shots_free(struct eval_shots *s);

/* The questions of one file, as tokens. Context and choice are encoded separately and the probability of
 * the choice's tokens after the context is what counts; nothing is put before the context, but if it is
 * empty, <|endoftext|> stands in its place. `shots` may be NULL: none. Contexts that do not fit into T tokens
 * are cut from the left. */
struct eval_task;
struct eval_task *eval_task_open(const char *path, const struct tokenizer *t, int64_t T,
                                 const struct eval_shots *shots, struct error *err);
void eval_task_free(struct eval_task *task);

const char *eval_task_name(const struct eval_task *task); /* the path without its folders */
int64_t eval_task_questions(const struct eval_task *task);
bool eval_task_completes(const struct eval_task *task);  /* each question has one choice */
int64_t eval_task_cut(const struct eval_task *task);     /* questions of which something was cut */
int64_t eval_task_longest(const struct eval_task *task); /* inputs of the longest row: what T must hold */

/* All files that a list names: files and glob patterns, separated by commas. */
struct eval_tasks {
    struct eval_task **task;
    int64_t count;
    int64_t longest, cut, questions; /* of all */
};
bool eval_tasks_open(struct eval_tasks *tasks, const char *list, const struct tokenizer *t, int64_t T,
                     const struct eval_shots *shots, struct error *err);
void eval_tasks_free(struct eval_tasks *tasks);

/* Of multiple choice, the share of the questions whose right choice has the highest score. Equal scores: the
 * first one counts; NaN never wins. Of completions (questions with one choice), the share of which greedy
 * decoding would write every token; the other shares are 0. */
struct eval_result {
    int64_t questions;
    bool completions;
    double perplexity;    /* of completions: exp(-mean log-probability of a whole one) */
    double accuracy;      /* score: log-probability of the choice */
    double per_token;     /* divided by its tokens, as llm.c reports HellaSwag */
    double per_character; /* divided by its characters, the space before it not counted: acc_norm of
                             EleutherAI's evaluation harness */
    double chance;        /* what guessing gives */
};

/* What became of one question. */
struct eval_answer {
    int64_t question;
    int count, answer;
    const double *score;   /* (count): log-probability of each choice */
    const int32_t *tokens; /* (count): of each choice */
    bool completion, right;
};
typedef void eval_answer_fn(void *user, const struct eval_answer *a);
struct eval_answers {
    eval_answer_fn *call;
    void *user;
};

/* gpt->options.T must be at least eval_task_longest(). `answers` and `progress` may be NULL. */
struct eval_result eval_task_run(const struct eval_task *task, struct gpt *gpt,
                                 const struct eval_answers *answers, const struct eval_progress *progress);

#ifdef __cplusplus
}
#endif
#endif
