/* What a program says on the terminal: text that cannot act on it, a standard output that may break,
 * commands that can be pasted into a shell. */
#ifndef LLMC_CONSOLE_H
#define LLMC_CONSOLE_H

#include "llmc/base/base.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Opens /dev/null in place of each of standard input, output and error that is closed, so that no file of
 * the program gets its number and the text that is meant for the terminal. Called first of all. */
void open_standard_files(void);

/* Replaces control characters by '?', except tab and line feed: names and texts from files must not move
 * the cursor or set the title of the window. */
void make_printable(char *text);

/* Prints to standard output, with control characters replaced, and flushes. */
void say(const char *fmt, ...) LLMC_PRINTF(1, 2);
/* Shows a line that the next one replaces, if standard output is a terminal. The text is shorter than a
 * line; "" takes it away. */
void say_progress(const char *fmt, ...) LLMC_PRINTF(1, 2);
/* If standard output cannot be written any more (its reader is gone, the disk is full), warns once, and
 * what is printed from then on goes nowhere. */
void flush_stdout(void);

/* The columns that texts for the terminal may have: those of $COLUMNS, or of the terminal that standard
 * output is, else 80; between 40 and 100. */
int terminal_width(void);

/* Takes as many words from *text as fit into `width` columns, and breaks a single longer word. Returns
 * their length. */
int take_words(const char **text, int width);
/* Prints `text` in lines of at most `width` columns; those after the first are indented. */
void print_wrapped(FILE *out, int width, int indent, const char *text);

/* The name by which the user called this program, or, with `other`, a program in the same directory. Quoted
 * for a shell; the caller frees. */
char *program_name(const char *other);
/* As one word of a shell command: 'it'\''s'. The caller frees. */
char *shell_quote(const char *text);

#ifdef __cplusplus
}
#endif
#endif
