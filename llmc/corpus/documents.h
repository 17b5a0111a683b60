/* Text files, the documents in them, and which of these are for validation. Training on text and preparing
 * shards share this. The result is the same in the same order on every machine, whatever the number of
 * threads. */
#ifndef LLMC_DOCUMENTS_H
#define LLMC_DOCUMENTS_H

#include "llmc/base/file.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- files --- */

struct file_list {
    char **paths;
    int64_t count, capacity;
};
/* Adds the file, or every regular file below the directory, sorted by strcmp. Hidden entries (a leading
 * '.') are skipped; symbolic links to files are followed, to directories not. Files and directories below
 * `path` for which leave_out(user, entry) is true are left out (NULL: none is). Start from {0}. */
typedef bool leave_out_fn(void *user, const char *path);
bool file_list_add(struct file_list *l, const char *path, leave_out_fn *leave_out, void *user,
                   struct error *err);
void file_list_free(struct file_list *l);

/* --- documents --- */

/* The next document of a text from *at, which is advanced. Documents are separated by lines of only
 * <|endoftext|>; the line breaks around such a line belong to neither. Empty documents are skipped. False
 * at the end. */
bool document_next(struct text_span *doc, const char *text, int64_t size, int64_t *at);
/* Whether the line at text[at] is such a separator; *after is then the start of the next line. */
bool is_document_separator(const char *text, int64_t size, int64_t at, int64_t *after);

/* The first byte that is not part of valid UTF-8, or -1. */
int64_t utf8_invalid_at(const char *text, int64_t size);

/* Where to cut text between `from` and `limit` (0 < from < limit <= size): after the first blank line, else
 * after the first line break, else before the first space, else at the first whole character. */
int64_t text_cut(const char *text, int64_t from, int64_t limit);

/* --- validation --- */

struct document_split {
    struct text_span *docs; /* (count) parts of the documents given, in their order */
    bool *validation;       /* (count) */
    int64_t count, capacity;
};
/* Assigns documents to training or validation by a hash of their text alone, so that further documents move
 * none. About `fraction` (at most 0.5) of the bytes are for validation; 0: none. A document longer than 1
 * MiB is cut at paragraph ends into pieces, of which one in 1 / fraction is for validation; neighbouring
 * training pieces stay together. `complete` says that there are no other documents: if they are too few to
 * come near the fraction, all long ones are cut, and neither side stays empty. Appends to *out. False if
 * one side of a complete set must stay empty: a single document of less than 512 bytes. */
bool split_documents(struct document_split *out, const struct text_span *docs, int64_t count, double fraction,
                     bool complete);
void document_split_free(struct document_split *s);

#ifdef __cplusplus
}
#endif
#endif
