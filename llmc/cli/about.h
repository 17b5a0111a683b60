/* What a program says of itself: its version, and the files that `make install` puts beside it, a manual
 * page and completions for shells. These are written from the option tables that parse the command line. */
#ifndef LLMC_ABOUT_H
#define LLMC_ABOUT_H

#include "llmc/base/options.h"

struct about_command {
    const char *name; /* NULL: the program has no commands, and this is what it does */
    const struct option_command *options;
    const char *help; /* what it does, in a phrase that begins with a verb */
};

struct about {
    const char *purpose; /* of the program, a phrase like `help` */
    const struct about_command *commands;
    size_t count; /* the first is the default if no command is named */
};

/* Answers `PROGRAM --version` and `PROGRAM --page man|bash|zsh`. Returns the exit status, or -1 if the
 * arguments are others. */
int about_program(const struct about *about, int argc, char **argv);

/* Writes a page of a form that --page names. */
void about_man(const struct about *about, const char *program);
void about_bash(const struct about *about, const char *program);
void about_zsh(const struct about *about, const char *program);

#endif
