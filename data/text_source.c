/* Reads documents from text and JSON-lines files in batches. The reader keeps one buffer of bytes that are
 * not yet part of a batch, finds the end of the next record (a document, or a line) in it, and reads on
 * only if the end is not there. Batches depend on the text alone, so preparing can stop after any batch and
 * resume there. */
#include "data/text_source.h"
#include "data/byte_stream.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* --- the list of sources --- */

static bool ends_with(const char *text, size_t size, const char *end) {
    size_t n = strlen(end);
    return size >= n && memcmp(text + size - n, end, n) == 0;
}

static enum text_format format_of(const char *path) {
    size_t n = strlen(path);
    if (ends_with(path, n, ".gz"))
        n -= 3;
    else if (ends_with(path, n, ".zst"))
        n -= 4;
    return ends_with(path, n, ".jsonl") || ends_with(path, n, ".ndjson") ? FORMAT_JSON_LINES : FORMAT_TEXT;
}

/* Takes `path` over. */
static bool add_source(struct source_list *l, char *path, enum text_format format, bool in_directory,
                       struct error *err) {
    struct stat st;
    bool standard_input = strcmp(path, "-") == 0;
    if (!standard_input && stat(path, &st) != 0) {
        fail(err, "%s: cannot read: %s", path, strerror(errno));
        free(path);
        return false;
    }
    if (l->count == l->capacity) {
        l->capacity = 2 * l->capacity + 16;
        l->sources = (struct text_source *)xrealloc(l->sources, (size_t)l->capacity * sizeof *l->sources);
    }
    int64_t size = !standard_input && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
    l->total_size = size < 0 || l->total_size < 0 ? -1 : l->total_size + size;
    l->sources[l->count++] = (struct text_source){.path = path,
                                                  .format = format != FORMAT_AUTO ? format
                                                            : standard_input      ? FORMAT_TEXT
                                                                                  : format_of(path),
                                                  .in_directory = in_directory,
                                                  .size = size};
    return true;
}

static bool is_below(const char *path, const char *directory) {
    char *real = realpath(path, NULL);
    size_t n = strlen(directory);
    bool below = real && strncmp(real, directory, n) == 0 && (real[n] == '/' || real[n] == 0);
    free(real);
    return below;
}

bool source_list_add(struct source_list *l, const char *path, enum text_format format, const char *except,
                     struct error *err) {
    bool directory = strcmp(path, "-") != 0 && path_is_directory(path);
    if (!directory) return add_source(l, xstrdup(path), format, false, err);
    struct file_list files = {0};
    char *avoid = except ? realpath(except, NULL) : NULL, *real = realpath(path, NULL);
    if (avoid && real && !is_below(avoid, real)) { /* spares a look at every file */
        free(avoid);
        avoid = NULL;
    }
    free(real);
    bool ok = file_list_add(&files, path, err);
    for (int64_t i = 0; ok && i < files.count; i++)
        if (!avoid || !is_below(files.paths[i], avoid))
            ok = add_source(l, xstrdup(files.paths[i]), format, true, err);
    free(avoid);
    file_list_free(&files);
    return ok;
}

void source_list_free(struct source_list *l) {
    for (int64_t i = 0; i < l->count; i++) free(l->sources[i].path);
    free(l->sources);
    *l = (struct source_list){0};
}

/* --- batches --- */

void text_batch_free(struct text_batch *b) {
    free(b->text);
    free(b->records);
    free(b->ends);
    *b = (struct text_batch){0};
}

static void add_record(struct text_batch *b, int64_t source, int64_t line, const char *text, int64_t size) {
    if (b->count == b->record_capacity) {
        b->record_capacity = 2 * b->record_capacity + 256;
        b->records =
            (struct text_record *)xrealloc(b->records, (size_t)b->record_capacity * sizeof *b->records);
    }
    if (b->size + size > b->capacity) {
        b->capacity = max_i64(b->size + size, b->capacity + b->capacity / 2);
        b->text = (char *)xrealloc(b->text, (size_t)b->capacity);
    }
    memcpy(b->text + b->size, text, (size_t)size);
    b->records[b->count++] = (struct text_record){source, line, b->size, size};
    b->size += size;
}

static void add_end(struct text_batch *b, struct source_end end) {
    if (b->end_count == b->end_capacity) {
        b->end_capacity = 2 * b->end_capacity + 16;
        b->ends = (struct source_end *)xrealloc(b->ends, (size_t)b->end_capacity * sizeof *b->ends);
    }
    b->ends[b->end_count++] = end;
}

/* --- opening a source --- */

struct text_reader {
    const struct source_list *list;
    struct source_cursor at;    /* of data[start] */
    struct byte_stream *stream; /* of the current source, or NULL */
    char *data;                 /* [start, size) was read and is not yet part of a batch */
    int64_t start, size, capacity;
    int64_t scanned;   /* the record at start does not end before this position */
    bool end;          /* of the source */
    int64_t raw_bytes; /* of the sources before */
};

static const struct text_source *current(const struct text_reader *r) {
    return &r->list->sources[r->at.source];
}

/* Reads a further piece behind what is there. */
static bool read_more(struct text_reader *r, struct error *err) {
    enum { PIECE = 1 << 20 };
    if (r->start > 0 && r->capacity - r->size < PIECE) {
        memmove(r->data, r->data + r->start, (size_t)(r->size - r->start));
        r->size -= r->start;
        r->scanned -= r->start;
        r->start = 0;
    }
    if (r->capacity - r->size < PIECE) {
        r->capacity = max_i64(2 * r->capacity, 4 * PIECE);
        r->data = (char *)xrealloc(r->data, (size_t)r->capacity);
    }
    int64_t n = byte_stream_read(r->stream, r->data + r->size, r->capacity - r->size, err);
    if (n < 0) return false;
    r->size += n;
    r->end = n == 0;
    return true;
}

static void close_source(struct text_reader *r) {
    byte_stream_close(r->stream);
    r->stream = NULL;
    r->at = (struct source_cursor){.source = r->at.source + 1};
}

/* Opens the current source and skips what was read of it before. */
static bool open_source(struct text_reader *r, struct text_batch *b, struct error *err) {
    r->stream = byte_stream_open(current(r)->path, err);
    if (!r->stream) return false;
    r->start = r->size = r->scanned = 0;
    r->end = false;
    for (int64_t left = r->at.offset; left > 0;) {
        r->start = r->size = 0;
        if (!read_more(r, err)) return false;
        if (r->end)
            return fail(err, "%s: ends %lld bytes before the place where the interrupted run was",
                        current(r)->path, (long long)left);
        r->start = r->scanned = min_i64(left, r->size);
        left -= r->start;
    }
    if (!current(r)->in_directory || r->at.offset > 0) return true;
    while (r->size < 1 << 16 && !r->end)
        if (!read_more(r, err)) return false;
    if (r->size > 0 && memchr(r->data, 0, (size_t)min_i64(r->size, 1 << 16))) {
        r->raw_bytes += current(r)->size;
        add_end(b,
                (struct source_end){.source = r->at.source, .binary = true, .raw_bytes = current(r)->size});
        close_source(r);
    }
    return true;
}

/* Everything of the source is in batches. */
static bool finish_source(struct text_reader *r, struct text_batch *b, struct error *err) {
    int64_t size = current(r)->size, raw = byte_stream_raw_bytes(r->stream);
    if (size >= 0 && raw != size)
        return fail(err, "%s: had %lld bytes and now has %lld: it was changed while it was read",
                    current(r)->path, (long long)size, (long long)raw);
    r->raw_bytes += raw;
    add_end(b, (struct source_end){
                   .source = r->at.source, .raw_bytes = raw, .hash = byte_stream_raw_hash(r->stream)});
    close_source(r);
    return true;
}

/* --- records of text --- */

static int64_t count_lines(const char *text, int64_t size) {
    int64_t lines = 0;
    const char *end = text + size;
    for (const char *p = text; (p = (const char *)memchr(p, '\n', (size_t)(end - p))) != NULL; p++) lines++;
    return lines;
}

/* Moves the record [start, start + size) to the batch, and the reader to start + after. */
static void take(struct text_reader *r, struct text_batch *b, int64_t size, int64_t after) {
    const char *text = r->data + r->start;
    if (size > 0) add_record(b, r->at.source, r->at.line + 1, text, size);
    r->at.line += count_lines(text, after);
    r->at.offset += after;
    r->start += after;
    r->scanned = r->start;
}

/* Takes the document at start if its end is known. False: more must be read. */
static bool take_document(struct text_reader *r, struct text_batch *b) {
    static const char separator[] = "<|endoftext|>";
    enum { LENGTH = sizeof separator - 1 };
    char *text = r->data + r->start;
    int64_t size = r->size - r->start, from = r->scanned - r->start, after;
    for (;;) {
        char *found = (char *)memmem(text + from, (size_t)(size - from), separator, LENGTH);
        if (!found) break;
        int64_t at = found - text;
        bool line_start = at == 0 || text[at - 1] == '\n';
        if (line_start && size - at < LENGTH + 2 && !r->end) { /* the rest of the line is not there yet */
            r->scanned = r->start + at;
            return false;
        }
        if (line_start && is_document_separator(text, size, at, &after)) {
            struct text_span doc;
            int64_t zero = 0; /* document_next knows which line breaks to leave out */
            bool any = document_next(&doc, text, after, &zero) && doc.data == text;
            if (at > MOST_DOCUMENT) break;
            take(r, b, any ? doc.size : 0, after);
            return true;
        }
        from = at + 1;
    }
    r->scanned = r->start + max_i64(0, size - LENGTH);
    if (size > MOST_DOCUMENT) {
        int64_t cut = text_cut(text, MOST_DOCUMENT - (1 << 20), MOST_DOCUMENT);
        take(r, b, cut, cut);
        return true;
    }
    if (!r->end) return false;
    take(r, b, size, size);
    return true;
}

/* --- records of JSON lines --- */

static bool is_blank(const char *text, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r') return false;
    return true;
}

/* The same for a line. *ok becomes false if the line is too long. */
static bool take_line(struct text_reader *r, struct text_batch *b, bool *ok, struct error *err) {
    const char *text = r->data + r->start;
    int64_t size = r->size - r->start, from = r->scanned - r->start;
    const char *newline = (const char *)memchr(text + from, '\n', (size_t)(size - from));
    int64_t length = newline ? newline - text : size;
    if (length > MOST_LINE) {
        *ok = fail(err, "%s:%lld: this line is longer than %s: are these JSON lines?", current(r)->path,
                   (long long)r->at.line + 1, human_bytes(MOST_LINE));
        return false;
    }
    if (!newline && !r->end) {
        r->scanned = r->size;
        return false;
    }
    bool mark = r->at.offset == 0 && length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0;
    if (mark) { /* the byte order mark that some editors write is not JSON */
        take(r, b, 0, 3);
        return true;
    }
    take(r, b, is_blank(text, length) ? 0 : length, newline ? length + 1 : length);
    return true;
}

/* --- the reader --- */

struct text_reader *text_reader_new(const struct source_list *l, const struct source_cursor *from) {
    struct text_reader *r = (struct text_reader *)xcalloc(1, sizeof *r);
    r->list = l;
    if (from) r->at = *from;
    for (int64_t i = 0; i < r->at.source; i++) r->raw_bytes += max_i64(l->sources[i].size, 0);
    return r;
}

void text_reader_free(struct text_reader *r) {
    if (!r) return;
    byte_stream_close(r->stream);
    free(r->data);
    free(r);
}

/* One step: opens a source, takes a record, reads more, or closes the source. */
static bool advance(struct text_reader *r, struct text_batch *b, struct error *err) {
    if (!r->stream) return open_source(r, b, err);
    if (r->start < r->size) {
        bool ok = true;
        if (current(r)->format == FORMAT_JSON_LINES ? take_line(r, b, &ok, err) : take_document(r, b))
            return true;
        return ok && read_more(r, err);
    }
    return r->end ? finish_source(r, b, err) : read_more(r, err);
}

bool text_reader_next(struct text_reader *r, struct text_batch *b, int64_t bytes, struct error *err) {
    b->size = b->count = b->end_count = 0;
    while (b->size < bytes && r->at.source < r->list->count)
        if (!advance(r, b, err)) return false;
    /* A source that ends here is closed now, so that `last` is known. */
    while (r->stream && r->start == r->size && r->at.source < r->list->count) {
        if (!advance(r, b, err)) return false;
    }
    b->next = r->at;
    b->raw_bytes = r->raw_bytes + (r->stream ? byte_stream_raw_bytes(r->stream) : 0);
    b->last = r->at.source == r->list->count;
    return true;
}

/* --- parsing a line --- */

void json_lines_init(void) { json_object_seed(0); }

/* "id, url and 3 others" */
static void list_keys(char *out, size_t size, json_t *object) {
    size_t n = 0, listed = 0, total = json_object_size(object);
    const char *key;
    json_t *value;
    out[0] = 0;
    json_object_foreach(object, key, value) {
        if (n + strlen(key) + 24 > size) break;
        n += (size_t)snprintf(out + n, size - n, "%s%s", listed ? ", " : "", key);
        listed++;
    }
    if (listed < total)
        snprintf(out + n, size - n, "%s%zu other%s", listed ? " and " : "", total - listed,
                 total - listed > 1 ? "s" : "");
    if (total == 0) snprintf(out, size, "none");
}

void json_line_parse(struct json_line *out, const char *line, int64_t size, const char *field) {
    static const char *const names[] = {"an object", "an array", "a string", "a number",
                                        "a number",  "true",     "false",    "null"};
    json_error_t e;
    *out = (struct json_line){.status = LINE_MALFORMED};
    json_t *root =
        json_loadb(line, (size_t)size, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, &e);
    if (!root) {
        for (char *c = e.text; *c; c++) /* it quotes the line, which may hold anything */
            if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
        snprintf(out->reason, sizeof out->reason, "not JSON: %.120s (at byte %d of the line)", e.text,
                 e.position);
        return;
    }
    json_t *value = json_object_get(root, field);
    if (json_is_string(value)) {
        out->status = LINE_OK;
        out->text = (struct text_span){json_string_value(value), (int64_t)json_string_length(value)};
        out->owner = root;
        return;
    }
    if (!json_is_object(root)) {
        snprintf(out->reason, sizeof out->reason, "is %s, expected an object", names[json_typeof(root)]);
    } else if (value) {
        out->status = LINE_NO_FIELD;
        snprintf(out->reason, sizeof out->reason, "field \"%.40s\" is %s, expected a string", field,
                 names[json_typeof(value)]);
    } else {
        char keys[80];
        list_keys(keys, sizeof keys, root);
        out->status = LINE_NO_FIELD;
        snprintf(out->reason, sizeof out->reason, "no field \"%.40s\"; there are: %s", field, keys);
    }
    json_decref(root);
}

void json_line_free(struct json_line *line) {
    json_decref((json_t *)line->owner);
    line->owner = NULL;
}
