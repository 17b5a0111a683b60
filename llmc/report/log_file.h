/* The JSON-lines files of a run: the form of a row, and a file of rows that survives full disks and resumed
 * runs.
 *
 * A row is one line, and the file holds only whole lines. A row for which the disk has no room waits in
 * memory and is written when there is space again. A line that a crash tore off is cut when the run is
 * resumed. */
#ifndef LLMC_LOG_FILE_H
#define LLMC_LOG_FILE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- rows --- */

/* A row of log.jsonl: {"step":1,"epoch":0.01,"loss":2.5,"lr":0.0003,"grad_norm":1.5,"skipped":false}, or
 * with `validation` {"step":100,"val_loss":2.25}. Doubles read back exactly; a number that is not finite is
 * written as null and read as NAN. */
struct log_row {
    bool validation; /* only step and loss count */
    int64_t step;
    double epoch, loss, lr, grad_norm;
    bool skipped;
};

#define LOG_LINE_MAX 512 /* bytes of any row with its '\n', and one for a NUL */

/* Writes the line with its '\n' and a NUL into out[LOG_LINE_MAX] and returns its length. */
int log_row_print(char *out, const struct log_row *row);
/* Reads a line without its '\n'. False for anything that log_row_print does not write. */
bool log_row_parse(struct log_row *row, const char *line, int64_t size);
/* The shortest decimal that reads back as `v`, or "null", by temp_printf. */
const char *log_double(double v);

/* --- files --- */

struct log_file {
    int fd; /* -1: not open */
    char *path;
    int64_t size;  /* bytes of whole lines in the file */
    char *waiting; /* whole lines that could not be written yet */
    int64_t waiting_size, waiting_capacity;
    int64_t lost; /* rows dropped because too much was waiting */
    bool failing, reported;
};

/* Opens the file: a new one if resumed_step is 0. Otherwise keeps the rows {"step":N,... with N <=
 * resumed_step up to the first row that is later, damaged or torn, and cuts the rest. Holds a lock while
 * the file is open, so that two processes cannot write into one run. */
bool log_file_open(struct log_file *f, const char *path, int64_t resumed_step, struct error *err);
/* If the file was deleted or moved away, makes a new one with the same rows. Harmless when not open. */
bool log_file_restore(struct log_file *f, struct error *err);
/* Appends one line, which ends with '\n'. The first failure to write is a warning, and so is the
 * recovery. */
void log_file_put(struct log_file *f, const char *line, int64_t size);
/* Tries to write the waiting rows, and flushes the file to the disk. */
void log_file_sync(struct log_file *f);
/* The same, and closes. Harmless when not open. */
void log_file_close(struct log_file *f);

#ifdef __cplusplus
}
#endif
#endif
