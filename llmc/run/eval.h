/* What a run does with its model besides training it: validation, multiple-choice tasks, samples. All ranks
 * call these functions, because the parameters may be divided among them. */
#ifndef LLMC_RUN_EVAL_H
#define LLMC_RUN_EVAL_H

#include "llmc/run/run.h"

/* Reads --eval-tasks, if there are any. */
void run_open_tasks(struct run *r);
/* Opens tasks.jsonl and samples.jsonl in the run directory, on rank 0, as far as there will be rows. */
bool run_open_result_logs(struct run *r, struct error *err);

/* The batches of a validation, those of this rank. */
struct dataloader *run_open_validation(const struct run *r, struct error *err);
/* Logs the mean loss over the validation set or its first --val-batches, the same batches every time. */
void run_validate(struct run *r);
/* Answers the tasks; the results go to the terminal and to RUN/tasks.jsonl. */
void run_answer_tasks(struct run *r);
/* Prints a text that the model writes, and adds it to RUN/samples.jsonl. Does nothing without a tokenizer. */
void run_print_sample(struct run *r);
/* Prints how many sentences of 40 sampled stories follow the grammar of the built-in stories. */
void run_print_grade(struct run *r);

#endif
