/* Multiple-choice questions as their data sets publish them: HellaSwag's JSON lines, MMLU's CSV, and plain
 * JSON lines for one's own. */
#ifndef LLMC_TASK_FILE_H
#define LLMC_TASK_FILE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TASK_MAX_CHOICES 64

struct question {
    char *context;  /* what the model reads first; may be empty */
    char **choices; /* (count) how it may go on, the space between included where there is one; not empty */
    int count, answer;
    int64_t line; /* in the file, from 1 */
};

struct task_file {
    struct question *questions;
    int64_t count, capacity;
};

/* A file whose name ends in .csv holds MMLU's columns: question, A, B, C, D, answer (a letter), with or
 * without a header line. The context is what Hendrycks et al. 2021 give to a model without examples:
 *
 *     The following are multiple choice questions (with answers) about SUBJECT.\n\nQUESTION\nA. ...\nB.
 * ...\nC. ...\n D. ...\nAnswer:
 *
 * (SUBJECT from a name like world_religions_test.csv), the choices are " A" to " D".
 *
 * Any other file holds one JSON object a line, in one of two forms that its members tell apart:
 *     {"ctx": "...", "endings": ["...", ...], "label": 3}           HellaSwag (Zellers et al. 2019); label
 * may be "3"
 *     {"context": "...", "choices": ["...", ...], "answer": 3}      answer: an index from 0, or the text of a
 * choice Choices follow the context after a space; in the second form only if neither has white space there
 * already and the context is not empty.
 *
 * A file without a question, or with anything that is not as above, is an error that names file, line, what
 * was expected and what was found. On failure `f` is empty. */
bool task_file_read(struct task_file *f, const char *path, struct error *err);
void task_file_free(struct task_file *f);

#ifdef __cplusplus
}
#endif
#endif
