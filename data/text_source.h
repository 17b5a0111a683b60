/* Documents from text and JSON-lines files, from directories of them and from the standard input, in
 * batches. What is read, and in which order, depends on the sources alone. */
#ifndef LLMC_TEXT_SOURCE_H
#define LLMC_TEXT_SOURCE_H

#include "llmc/corpus/documents.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- sources --- */

enum text_format { FORMAT_AUTO, FORMAT_TEXT, FORMAT_JSON_LINES };

struct text_source {
    char *path; /* "-": the standard input */
    enum text_format format;
    bool in_directory; /* found in a directory: skipped if it is binary */
    int64_t size;      /* of the file; -1 when it cannot be known */
};
struct source_list {
    struct text_source *sources;
    int64_t count, capacity;
    int64_t total_size; /* -1: not known */
};
/* Adds a file, every file below a directory (except those below `except`, which may be NULL), or "-" for
 * the standard input. FORMAT_AUTO: JSON lines if the name ends in .jsonl or .ndjson, also before .gz or
 * .zst; else text. */
bool source_list_add(struct source_list *l, const char *path, enum text_format format, const char *except,
                     struct error *err);
void source_list_free(struct source_list *l);

/* --- reading --- */

/* A place between two records. */
struct source_cursor {
    int64_t source, offset; /* in the uncompressed content */
    int64_t line;           /* lines before it, for messages */
};

/* A document of a text, or a line of JSON lines that is not blank. */
struct text_record {
    int64_t source, line; /* the line (from 1) where it starts */
    int64_t at, size;     /* in the text of the batch */
};
/* A source that came to its end in this batch. */
struct source_end {
    int64_t source, raw_bytes;
    uint64_t hash; /* XXH3 of the file as it is */
    bool binary;   /* skipped; it was not read, there is no hash */
};
struct text_batch {
    char *text;
    int64_t size, capacity;
    struct text_record *records;
    int64_t count, record_capacity;
    struct source_end *ends;
    int64_t end_count, end_capacity;
    struct source_cursor next; /* where the following batch starts */
    int64_t raw_bytes;         /* read of all files so far */
    bool last;
};
void text_batch_free(struct text_batch *b);

enum {
    BATCH_BYTES = 1 << 25,   /* a batch ends with the record that reaches this */
    MOST_DOCUMENT = 1 << 26, /* a longer text is cut into several documents, at a paragraph end if possible */
    MOST_LINE = 1 << 28      /* a longer line of JSON lines is an error */
};

struct text_reader;
/* Starts at *from, or at the beginning (NULL). The list must not change while the reader exists. */
struct text_reader *text_reader_new(const struct source_list *l, const struct source_cursor *from);
void text_reader_free(struct text_reader *r);
/* Reads the next batch, which ends with the record that reaches `bytes`, into the memory of *b. False on an
 * error. After the last batch they are empty. */
bool text_reader_next(struct text_reader *r, struct text_batch *b, int64_t bytes, struct error *err);

/* --- JSON lines --- */

enum line_status { LINE_OK, LINE_MALFORMED, LINE_NO_FIELD };
struct json_line {
    enum line_status status;
    struct text_span text; /* LINE_OK */
    void *owner;           /* of the text; json_line_free */
    char reason[160];      /* else */
};
/* The string in `field` of the object on this line. Thread-safe after json_lines_init. */
void json_line_parse(struct json_line *out, const char *line, int64_t size, const char *field);
void json_line_free(struct json_line *line);
void json_lines_init(void);

#ifdef __cplusplus
}
#endif
#endif
