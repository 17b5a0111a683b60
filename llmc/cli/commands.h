/* The commands of train_gpt; commands.c lists them. Each gets the arguments behind its name, prints its own
 * help and errors, and returns the exit status: 0, 1 (failed) or 2 (wrong arguments). */
#ifndef LLMC_COMMANDS_H
#define LLMC_COMMANDS_H

#include "llmc/base/options.h"

int cmd_sample(int argc, char **argv);
int cmd_view(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_profile(int argc, char **argv);
int cmd_compare(int argc, char **argv);

/* What main() does: runs the command that argv[1] names, or `train` if that is an option, "train" or
 * missing. */
int dispatch_command(int argc, char **argv, int (*train)(int argc, char **argv));

/* How a command begins: parses the arguments, and prints the help or the error. Returns the exit status
 * then, or -1 if the command is to run. */
int command_options(struct options *o, const struct option_command *command, void *config, int argc,
                    char **argv);
/* The usage of training, which lists all commands. The caller frees. */
char *train_usage(void);

#endif
