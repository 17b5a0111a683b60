/* Questions in the forms in which data sets publish them: multiple choice in the JSON lines of HellaSwag,
 * ARC, PIQA and WinoGrande, MMLU's CSV, and plain JSON lines for questions of one's own; and the last words
 * of LAMBADA. */
#ifndef LLMC_TASK_FILE_H
#define LLMC_TASK_FILE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TASK_MAX_CHOICES 64

struct question {
    const char *form; /* "ARC"; constant */
    char *context;    /* what the model reads first; may be empty */
    char **contexts;  /* (count) one for each choice instead; NULL: `context` is before all of them */
    int64_t heading; /* bytes of `context` that say what all questions are about; examples come behind them */
    char **choices;  /* (count) possible continuations, with the space before them; not empty */
    int count, answer; /* a count of 1: the model must write the continuation itself */
    int64_t line;      /* in the file, from 1 */
};

struct task_file {
    struct question *questions;
    int64_t count, capacity;
};

/* Either all have several choices, or all have one, which is `answer`.
 *
 * A file whose name ends in .csv has MMLU's columns: question, A, B, C, D, answer. With a header line they
 * can be in any order and number: question, answer, subject, and choice0, choice1, ... or one column of all
 * choices as Python writes a list. The answer is a letter, or a number from 0. The context is what
 * Hendrycks et al. 2021 give to a model without examples,
 *
 *     The following are multiple choice questions (with answers) about SUBJECT.\n\n
 *     QUESTION\nA. ...\nB. ...\nC. ...\nD. ...\nAnswer:
 *
 * with SUBJECT from a name like world_religions_test.csv if no column has it, and the choices are
 * " A" to " D".
 *
 * Any other file has one JSON object per line, in one of these forms:
 *
 *     {"ctx": "...", "endings": ["...", ...], "label": 3}        HellaSwag (Zellers et al. 2019); also "3"
 *     {"question": "...", "choices": ["...", ...], "answer": 3}  MMLU, as above; also with "subject"
 *     {"question": "...", "choices": {"text": ["...", ...], "label": ["A", ...]}, "answerKey": "B"}
 *                                                                ARC (Clark et al. 2018)
 *     {"goal": "...", "sol1": "...", "sol2": "...", "label": 0}  PIQA (Bisk et al. 2020)
 *     {"sentence": "... _ ...", "option1": "...", "option2": "...", "answer": "1"}
 *                                                                WinoGrande (Sakaguchi et al. 2020)
 *     {"context": "...", "choices": ["...", ...], "answer": 3}   answer: an index from 0, or a choice's text
 *     {"text": "..."}                                            LAMBADA (Paperno et al. 2016) of OpenAI
 *
 * ARC and PIQA become "Question: ...\nAnswer:". Of WinoGrande each choice is read in place of the blank, and
 * the rest of the sentence counts, which is the same for both. LAMBADA's last word is to be written, with the
 * white space before it; the context is what comes before. These are the forms of EleutherAI's evaluation
 * harness, so accuracy is its acc, and accuracy by character its acc_norm.
 *
 * A space is put between context and choice; in the last form only if neither has white space there
 * already and the context is not empty.
 *
 * A file without questions, or with a line of another form, is an error that names file, line, what was
 * expected and what was found. On failure `f` is empty. */
bool task_file_read(struct task_file *f, const char *path, struct error *err);
void task_file_free(struct task_file *f);

#ifdef __cplusplus
}
#endif
#endif
