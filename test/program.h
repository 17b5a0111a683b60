/* Running the programs as a user does, and comparing directories before and after. */
#ifndef LLMC_TEST_PROGRAM_H
#define LLMC_TEST_PROGRAM_H

#include "test/scratch.h"

struct ran {
    int status; /* exit status, or 128 + signal */
    char *out, *err;
};

/* A shell command in the scratch directory. $T is train_gpt, $P prepare, $S stories, $B bench, each with its
 * absolute path. Nothing is left in the scratch directory but what the command leaves. The result is valid
 * until the next call. */
struct ran run_command(const char *fmt, ...) LLMC_PRINTF(1, 2);
/* Fails the test unless the command ends with this status and says `said` on standard output or standard
 * error. */
void expect_command(int status, const char *said, const char *fmt, ...) LLMC_PRINTF(3, 4);

/* Everything below a directory of the scratch directory as text, a line for each entry: its path, kind, and
 * a hash of what is in it. The caller frees. */
char *snapshot(const char *directory);
/* Fails the test unless the directory is as it was; frees `before`. `what` is for the message. */
void assert_unchanged(const char *directory, char *before, const char *what);

#endif
