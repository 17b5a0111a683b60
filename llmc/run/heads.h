/* After a training on the built-in stories: which head knows what "it" stands for. */
#ifndef LLMC_RUN_HEADS_H
#define LLMC_RUN_HEADS_H

#include "llmc/run/run.h"

/* Prints the head whose strongest link leads from "it", "they" and "them" to the right noun most often, and the
 * command that shows it. All ranks call it, because the parameters may be divided among them. */
void run_print_heads(struct run *r);

#endif
