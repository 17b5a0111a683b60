/* What every command of train_gpt does with its arguments. */
#include "llmc/cli/commands.h"

#include <stdio.h>
#include <stdlib.h>

int command_options(struct options *o, const struct option_command *command, void *config, int argc,
                    char **argv) {
    struct error err;
    options_init(o, command, config);
    if (!options_parse(o, argc, argv, &err)) {
        fprintf(stderr, "error: %s\n", err.message);
        options_free(o);
        return 2;
    }
    if (!o->help) return -1;
    char *text = options_help(o);
    fputs(text, stdout);
    free(text);
    options_free(o);
    return 0;
}
