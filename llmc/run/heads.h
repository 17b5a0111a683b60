/* After a training on the built-in stories: which head knows what a pronoun stands for. */
#ifndef LLMC_RUN_HEADS_H
#define LLMC_RUN_HEADS_H

#include "llmc/run/run.h"

/* Prints which head attends to the right noun most often where a pronoun is to be written, and the command
 * that shows the model at work. All ranks call it, because the parameters may be divided among them. */
void run_print_heads(struct run *r);

#endif
