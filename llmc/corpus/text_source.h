/* Documents from text and JSON-lines files, plain or compressed (gzip, Zstandard), from directories of
 * them and from the standard input, in batches. What is read, and in which order, depends on the sources
 * alone. What is no text (content.h) is left out if it was found in a directory, and an error if it was
 * named. */
#ifndef LLMC_TEXT_SOURCE_H
#define LLMC_TEXT_SOURCE_H

#include "llmc/corpus/documents.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- sources --- */

/* AUTO: JSON lines if the name ends in .jsonl or .ndjson, also before .gz or .zst, or if a field is
 * given and the first line is a JSON object; else text. TEXT: also what has the structure of JSON or
 * markup, and named files of any content. */
enum text_format { FORMAT_AUTO, FORMAT_TEXT, FORMAT_JSON_LINES };

/* The options of a command that reads text, with fields `format` and `field`. The help of --format begins
 * with `of`. */
#define TEXT_FORMAT_OPTIONS(S, of)                                                                           \
    OPT_WORD(S, format, "format", "auto", "auto|text|jsonl", NULL,                                           \
             of                                                                                              \
             "auto: files named *.jsonl or *.ndjson (also .gz or .zst) are JSON lines, with --field also "   \
             "others whose first line is a JSON object; the rest is text, and what is no text (pictures, "   \
             "tables, JSON, HTML, UTF-16, ...) is refused, or left out of a directory. text: everything is " \
             "text",                                                                                         \
             0),                                                                                             \
        OPT_TEXT(S, field, "field", NULL, "NAME", "field of JSON lines that holds the text (default: text)", \
                 0)

struct text_options {
    enum text_format format;
    const char *field;       /* of JSON lines; NULL: "text" */
    leave_out_fn *leave_out; /* of files and directories below a directory that is named; may be NULL */
    void *leave_out_user;
};

struct text_source {
    char *path;        /* "-": the standard input */
    bool in_directory; /* found in a directory: left out if it is no text */
    int64_t size;      /* of the file; -1 when it cannot be known */
};
struct source_list {
    struct text_options options;
    struct text_source *sources;
    int64_t count, capacity;
    int64_t total_size; /* -1: not known */
};
/* Adds a file, every file below a directory, or "-" for the standard input. Start from {.options = ...}. */
bool source_list_add(struct source_list *l, const char *path, struct error *err);
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
    bool json;
};
/* A source that came to its end in this batch. */
struct source_end {
    int64_t source, raw_bytes;
    uint64_t hash;        /* XXH3 of the file as it is; unknown if it is left out */
    const char *left_out; /* what it holds instead of text, "PNG picture"; NULL: it was read */
    bool json;
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
/* Starts at *from, or at the beginning (NULL). A document of more than `most_document` bytes is cut. The
 * list must not change while the reader exists. */
struct text_reader *text_reader_new(const struct source_list *l, const struct source_cursor *from,
                                    int64_t most_document);
void text_reader_free(struct text_reader *r);
/* Reads the next batch, which ends with the record that reaches `bytes`, into the memory of *b. False on an
 * error. After the last batch they are empty. */
bool text_reader_next(struct text_reader *r, struct text_batch *b, int64_t bytes, struct error *err);

/* --- the documents of a batch --- */

enum line_status { LINE_OK, LINE_MALFORMED, LINE_NO_FIELD };
/* What became of a record. */
struct text_document {
    enum line_status status;
    struct text_span text; /* LINE_OK; it may be empty */
    char reason[160];      /* else */
    bool invalid_utf8;     /* its bytes are used as they are */
    bool nul;              /* it holds a NUL byte */
    int64_t separators;    /* <|endoftext|> inside its lines, where it is ordinary text */
    void *owner;           /* private */
};
struct text_documents {
    struct text_document *docs; /* (count) one for each record of the batch */
    int64_t count;
};
/* Parses the JSON lines of a batch and looks at all texts, on all cores. The texts belong to *d or to
 * the batch. */
void text_documents_open(struct text_documents *d, const struct source_list *l, const struct text_batch *b);
void text_documents_close(struct text_documents *d);

/* --- what a user should know about a text --- */

enum text_remark {
    REMARK_MALFORMED,
    REMARK_NO_FIELD,
    REMARK_INVALID_UTF8,
    REMARK_NUL,
    REMARK_SEPARATORS,
    TEXT_REMARKS
};
/* Start from {0}. */
struct text_remarks {
    int64_t count[TEXT_REMARKS];
    char *first
        [TEXT_REMARKS]; /* the first such place, "a.jsonl:12", with the reason where there is one; or NULL */
    int64_t files, left_out, json; /* files; those left out; those of JSON lines */
    struct {
        const char *name; /* of a content, or "other"; kept, not copied */
        int64_t count;
    } kinds[8];
};
/* The remarks that a document gives reason to, in count[] (1 at most, except REMARK_SEPARATORS). */
void text_document_counts(const struct text_document *d, int64_t count[TEXT_REMARKS]);
/* Counts the documents of a batch, and the files that ended in it. */
void text_remarks_add(struct text_remarks *r, const struct source_list *l, const struct text_batch *b,
                      const struct text_documents *d);
void text_remarks_add_file(struct text_remarks *r, const char *left_out, bool json); /* NULL: it was read */
/* Warns if --field is given (not NULL), but no file is of JSON lines. */
void text_remarks_check_field(const struct text_remarks *r, const char *field);
/* The i-th sentence, from 0: "3 of 12 files are no text and are left out: PNG picture (3)". NULL after
 * the last. The caller frees. */
char *text_remark(const struct text_remarks *r, int i);
void text_remarks_free(struct text_remarks *r);

#ifdef __cplusplus
}
#endif
#endif
