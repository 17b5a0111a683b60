/* The commands of train_gpt; commands.c lists them. Each gets the arguments behind its name, prints its own
 * help and errors, and returns the exit status: 0, 1 (failed) or 2 (wrong arguments). */
#ifndef LLMC_COMMANDS_H
#define LLMC_COMMANDS_H

#include "llmc/base/options.h"
#include "llmc/run/config.h"

int cmd_sample(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_view(int argc, char **argv);
int cmd_watch(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_profile(int argc, char **argv);
int cmd_compare(int argc, char **argv);

/* The options of each. */
extern const struct option_command sample_command, serve_command, view_command, watch_command, eval_command,
    export_command, compare_command;
/* Those that are the groups of training and one more, which is written to `groups`. */
struct option_command plan_command(struct option_group groups[RUN_OPTION_GROUPS + 1]);
struct option_command profile_command(struct option_group groups[RUN_OPTION_GROUPS + 1]);

/* Of the commands that serve a page, with fields `address`, `port` and `token`. */
#define SERVER_OPTIONS(S)                                                                                    \
    OPT_TEXT(S, address, "bind", "127.0.0.1", "ADDRESS",                                                     \
             "the numeric address to serve on; with another than loopback, a token is needed, which is "     \
             "printed",                                                                                      \
             0),                                                                                             \
        OPT_INT(S, port, "port", "8100", 0, 65535, "N", "the first port to try (0: any)", 0),                \
        OPT_FLAG(S, token, "token", "false", "ask for a token on loopback, too: others use this machine", 0)

/* What main() does: runs the command that argv[1] names, or `train` if that is an option, "train" or
 * missing. */
int dispatch_command(int argc, char **argv, const struct option_command *train_command,
                     int (*train)(int argc, char **argv));

/* How a command begins: parses the arguments, and prints the help or the error. Returns the exit status
 * then, or -1 if the command is to run. */
int command_options(struct options *o, const struct option_command *command, void *config, int argc,
                    char **argv);

#endif
