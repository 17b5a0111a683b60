/* The commands of train_gpt besides training itself: `train_gpt NAME [options]`. Each gets the arguments
 * after its name, prints its own help and errors, and returns the exit status (0; 1 failed; 2 wrong
 * arguments). */
#ifndef LLMC_COMMANDS_H
#define LLMC_COMMANDS_H

#include "llmc/base/options.h"

#ifdef __cplusplus
extern "C" {
#endif

int cmd_sample(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_profile(int argc, char **argv);
int cmd_compare(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_eval(int argc, char **argv);

/* How every command begins: parses, prints the help or the error. Returns -1 to go on, else the exit
 * status. */
int command_options(struct options *o, const struct option_command *command, void *config, int argc,
                    char **argv);

#ifdef __cplusplus
}
#endif
#endif
