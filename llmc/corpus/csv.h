/* CSV (RFC 4180): records of fields, fields quoted where they hold commas, quotes ("" for one) or line
 * breaks. */
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

/* `data` must outlive the reader; a UTF-8 byte order mark at its start is passed over. */
void csv_open(struct csv_reader *r, const char *data, int64_t size, const char *path);
void csv_close(struct csv_reader *r);

/* The next record; 0 at the end, -1 with the reason (file, line) for a quote that is not closed, text after a
 * closing quote, a quote inside an unquoted field, or more than CSV_MAX_FIELDS. Lines end with LF or CRLF;
 * empty ones are passed over. */
int csv_next(struct csv_reader *r, struct error *err);
/* Field `i` of the record, NUL-terminated; it may hold NULs itself. Valid until the next call. */
const char *csv_field(const struct csv_reader *r, int i);

#ifdef __cplusplus
}
#endif
#endif
