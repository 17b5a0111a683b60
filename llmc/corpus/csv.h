/* Reads CSV (RFC 4180): records of fields; a field with commas, quotes (written twice) or line breaks
 * stands in quotes. Published files have stray quotes: a quote inside a field that does not begin with one
 * is a character like others, and so is what follows the quote that closes a field, as for Python's csv. */
#ifndef LLMC_CSV_H
#define LLMC_CSV_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CSV_MAX_FIELDS 4096

struct csv_reader {
    const char *data, *path; /* path is for messages */
    int64_t size, at, line;  /* the line that is read next, from 1 */
    char *text;              /* fields of the record, each with a NUL behind it */
    int64_t capacity;
    int64_t *begin; /* (count) offsets in text */
    int64_t *length;
    int count, fields_capacity;
    int64_t record_line; /* where the record begins */
};

/* `data` must outlive the reader. A UTF-8 byte order mark at its start is skipped. */
void csv_open(struct csv_reader *r, const char *data, int64_t size, const char *path);
void csv_close(struct csv_reader *r);

/* Reads the next record: 1; 0 at the end; -1 with file, line and reason if a quote is not closed, which
 * would swallow the rest of the file, or there are more than CSV_MAX_FIELDS.
 * Lines end with LF or CRLF; empty ones are skipped. */
int csv_next(struct csv_reader *r, struct error *err);
/* Field `i` of the record, NUL-terminated; it may hold NULs itself. Valid until the next call. */
const char *csv_field(const struct csv_reader *r, int i);

#ifdef __cplusplus
}
#endif
#endif
