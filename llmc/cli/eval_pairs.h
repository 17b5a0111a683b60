/* The part of `train_gpt eval` that has a model write targets, and compares them with the right ones. */
#ifndef LLMC_EVAL_PAIRS_H
#define LLMC_EVAL_PAIRS_H

#include "llmc/cli/text_model.h"

/* Has the model write a target for each source in the file at `path`: the most probable token at each
 * place, or with `beams` > 1 the text that a beam search finds. Prints BLEU and the share of targets that
 * are right to the last character, and writes the targets to `details` as JSON lines, if it is not NULL.
 * Dies with the reason if it cannot. */
void evaluate_pairs(const struct text_model_config *model, const char *path, const char *details,
                    int64_t beams);

#endif
