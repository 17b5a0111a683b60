/* The progress of preparing: a line with a bar, redrawn on a terminal; elsewhere a plain line every 10
 * seconds. */
#ifndef LLMC_PREPARE_PROGRESS_H
#define LLMC_PREPARE_PROGRESS_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct prepare_progress {
    const char *what;   /* "encoding" */
    int64_t total;      /* bytes of all files; -1: not known */
    int64_t first;      /* bytes that an earlier run has done */
    double start, last; /* time of the start, of the last line */
    bool terminal, line_open;
};
void prepare_progress_start(struct prepare_progress *p, const char *what, int64_t total, int64_t done);
/* Shows the progress since the start: `done` of the files' bytes, `text` bytes of documents, `tokens` (< 0:
 * not shown). */
void prepare_progress_show(struct prepare_progress *p, int64_t done, int64_t text, int64_t tokens);
/* Ends an open line. Call it before printing anything else. */
void prepare_progress_end(struct prepare_progress *p);

#ifdef __cplusplus
}
#endif
#endif
