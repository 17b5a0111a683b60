/* Lines that a person types. On a terminal they can be edited, and the arrow keys bring back earlier
 * ones, if libedit is there: it is loaded with dlopen, so that the program builds and runs without it. */
#ifndef LLMC_LINE_INPUT_H
#define LLMC_LINE_INPUT_H

#include "llmc/base/base.h"

struct line_input;
struct line_input *line_input_open(void);
/* The next line, without its line feed, valid until the next call. NULL at the end (Ctrl-D), or, with
 * *interrupted, after a signal. On a terminal it asks with "> ". */
const char *line_input_read(struct line_input *in, bool *interrupted);
void line_input_close(struct line_input *in);

#endif
