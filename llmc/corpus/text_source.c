/* Reads documents from text and JSON-lines files in batches. The reader keeps one buffer of bytes that are
 * not yet part of a batch, finds the end of the next record (a document, or a line) in it, and reads on
 * only if the end is not there. Batches depend on the text alone, so preparing can stop after any batch and
 * resume there. The first bytes of a source decide whether and how it is read. */
#include "llmc/corpus/text_source.h"
#include "llmc/corpus/byte_stream.h"
#include "llmc/corpus/content.h"

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* --- the list of sources --- */

static bool is_named_json_lines(const char *path) {
    static const char *const ends[] = {".jsonl",  ".jsonl.gz",  ".jsonl.zst",
                                       ".ndjson", ".ndjson.gz", ".ndjson.zst"};
    for (size_t i = 0; i < ARRAY_LENGTH(ends); i++)
        if (path_ends_with(path, ends[i])) return true;
    return false;
}

/* Takes `path` over. */
static bool add_source(struct source_list *l, char *path, bool in_directory, struct error *err) {
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
    l->sources[l->count++] = (struct text_source){.path = path, .in_directory = in_directory, .size = size};
    return true;
}

bool source_list_add(struct source_list *l, const char *path, struct error *err) {
    bool directory = strcmp(path, "-") != 0 && path_is_directory(path);
    if (!directory) return add_source(l, xstrdup(path), false, err);
    struct file_list files = {0};
    bool ok = file_list_add(&files, path, l->options.leave_out, l->options.leave_out_user, err);
    for (int64_t i = 0; ok && i < files.count; i++) ok = add_source(l, xstrdup(files.paths[i]), true, err);
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

static void add_record(struct text_batch *b, struct text_record record, const char *text) {
    if (b->count == b->record_capacity) {
        b->record_capacity = 2 * b->record_capacity + 256;
        b->records =
            (struct text_record *)xrealloc(b->records, (size_t)b->record_capacity * sizeof *b->records);
    }
    if (b->size + record.size > b->capacity) {
        b->capacity = max_i64(b->size + record.size, b->capacity + b->capacity / 2);
        b->text = (char *)xrealloc(b->text, (size_t)b->capacity);
    }
    memcpy(b->text + b->size, text, (size_t)record.size);
    record.at = b->size;
    b->records[b->count++] = record;
    b->size += record.size;
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
    bool json;         /* the source has JSON lines */
    int64_t raw_bytes; /* of the sources before */
    int64_t most_document;
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

/* Whether the content is one to be read, and if so, how: sets r->json, and passes a byte order mark. */
static bool choose_format(struct text_reader *r, const struct content *c) {
    const struct text_options *o = &r->list->options;
    const struct text_source *s = current(r);
    r->json = o->format == FORMAT_JSON_LINES ||
              (o->format == FORMAT_AUTO &&
               (is_named_json_lines(s->path) || (o->field && c->class == CONTENT_JSON_LINES)));
    r->start = r->scanned = c->mark;
    if (c->class == CONTENT_BINARY) return o->format == FORMAT_TEXT && !s->in_directory;
    return c->class == CONTENT_TEXT || r->json || o->format == FORMAT_TEXT;
}

static bool refuse(const struct text_source *s, const struct content *c, struct error *err) {
    return fail(err, "%s: is not text (%s)%s%s; --format text takes it as it is",
                strcmp(s->path, "-") == 0 ? "standard input" : s->path, c->name, c->advice ? ": " : "",
                c->advice ? c->advice : "");
}

/* Passes what was read of the source before. */
static bool skip_to_cursor(struct text_reader *r, struct error *err) {
    int64_t left = r->at.offset;
    if (left == 0) {
        r->at.offset = r->start; /* a byte order mark */
        return true;
    }
    for (r->start = 0; left > 0;) {
        int64_t n = min_i64(left, r->size - r->start);
        r->start = r->scanned = r->start + n;
        left -= n;
        if (left == 0) break;
        r->start = r->size = r->scanned = 0;
        if (!read_more(r, err)) return false;
        if (r->end)
            return fail(err, "%s: ends %lld bytes before the place where the interrupted run was",
                        current(r)->path, (long long)left);
    }
    return true;
}

/* Opens the current source, unless it is no text. */
static bool open_source(struct text_reader *r, struct text_batch *b, struct error *err) {
    r->stream = byte_stream_open(current(r)->path, err);
    if (!r->stream) return false;
    r->start = r->size = r->scanned = 0;
    r->end = false;
    while (r->size < CONTENT_HEAD && !r->end)
        if (!read_more(r, err)) return false;
    struct content c = content_of(r->data, min_i64(r->size, CONTENT_HEAD), r->end && r->size <= CONTENT_HEAD);
    if (choose_format(r, &c)) return skip_to_cursor(r, err);
    if (!current(r)->in_directory) return refuse(current(r), &c, err);
    r->raw_bytes += current(r)->size;
    add_end(b,
            (struct source_end){.source = r->at.source, .left_out = c.name, .raw_bytes = current(r)->size});
    close_source(r);
    return true;
}

/* Everything of the source is in batches. */
static bool finish_source(struct text_reader *r, struct text_batch *b, struct error *err) {
    int64_t size = current(r)->size, raw = byte_stream_raw_bytes(r->stream);
    if (size >= 0 && raw != size)
        return fail(err, "%s: had %lld bytes and now has %lld: it was changed while it was read",
                    current(r)->path, (long long)size, (long long)raw);
    r->raw_bytes += raw;
    add_end(b, (struct source_end){.source = r->at.source,
                                   .raw_bytes = raw,
                                   .hash = byte_stream_raw_hash(r->stream),
                                   .json = r->json});
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
    if (size > 0)
        add_record(b,
                   (struct text_record){
                       .source = r->at.source, .line = r->at.line + 1, .size = size, .json = r->json},
                   text);
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
            if (at > r->most_document) break;
            take(r, b, any ? doc.size : 0, after);
            return true;
        }
        from = at + 1;
    }
    r->scanned = r->start + max_i64(0, size - LENGTH);
    if (size > r->most_document) {
        int64_t cut = text_cut(text, r->most_document - (1 << 20), r->most_document);
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
    take(r, b, is_blank(text, length) ? 0 : length, newline ? length + 1 : length);
    return true;
}

/* --- the reader --- */

/* jansson's hash tables have a random seed, and the first to make one sets it. */
static void seed_json(void) { json_object_seed(0); }

struct text_reader *text_reader_new(const struct source_list *l, const struct source_cursor *from,
                                    int64_t most_document) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, seed_json);
    struct text_reader *r = (struct text_reader *)xcalloc(1, sizeof *r);
    r->list = l;
    r->most_document = most_document;
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
        if (r->json ? take_line(r, b, &ok, err) : take_document(r, b)) return true;
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

/* --- the documents of a batch --- */

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

/* The string in `field` of the object on this line. */
static void parse_line(struct text_document *out, const char *line, int64_t size, const char *field) {
    static const char *const names[] = {"an object", "an array", "a string", "a number",
                                        "a number",  "true",     "false",    "null"};
    json_error_t e;
    out->status = LINE_MALFORMED;
    json_t *root =
        json_loadb(line, (size_t)size, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, &e);
    if (!root) {
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

static int64_t count_separators(const char *text, int64_t size) {
    static const char separator[] = "<|endoftext|>";
    const char *p = text, *end = text + size;
    int64_t n = 0;
    for (; (p = (const char *)memmem(p, (size_t)(end - p), separator, sizeof separator - 1)) != NULL; p++)
        n++;
    return n;
}

void text_documents_open(struct text_documents *d, const struct source_list *l, const struct text_batch *b) {
    const char *field = l->options.field ? l->options.field : "text";
    d->count = b->count;
    d->docs = (struct text_document *)xcalloc((size_t)b->count + 1, sizeof *d->docs);
#pragma omp parallel for schedule(dynamic, 16)
    for (int64_t i = 0; i < b->count; i++) {
        const struct text_record *r = &b->records[i];
        struct text_document *doc = &d->docs[i];
        doc->text = (struct text_span){b->text + r->at, r->size};
        if (r->json) parse_line(doc, doc->text.data, doc->text.size, field);
        if (doc->status != LINE_OK) { /* the reason quotes the line, which may hold anything */
            for (char *c = doc->reason; *c; c++)
                if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
            continue;
        }
        doc->invalid_utf8 = utf8_invalid_at(doc->text.data, doc->text.size) >= 0;
        doc->nul = memchr(doc->text.data, 0, (size_t)doc->text.size) != NULL;
        doc->separators = count_separators(doc->text.data, doc->text.size);
    }
}

void text_documents_close(struct text_documents *d) {
    for (int64_t i = 0; i < d->count; i++) json_decref((json_t *)d->docs[i].owner);
    free(d->docs);
    *d = (struct text_documents){0};
}

/* --- remarks --- */

void text_document_counts(const struct text_document *d, int64_t count[TEXT_REMARKS]) {
    count[REMARK_MALFORMED] = d->status == LINE_MALFORMED;
    count[REMARK_NO_FIELD] = d->status == LINE_NO_FIELD;
    count[REMARK_INVALID_UTF8] = d->invalid_utf8;
    count[REMARK_NUL] = d->nul;
    count[REMARK_SEPARATORS] = d->separators;
}

void text_remarks_check_field(const struct text_remarks *r, const char *field) {
    if (field && r->files > r->left_out && !r->json)
        warn("--field %s has no effect: nothing of the input is JSON lines", field);
}

void text_remarks_add_file(struct text_remarks *r, const char *left_out, bool json) {
    enum { KINDS = ARRAY_LENGTH(r->kinds) };
    int i = 0;
    r->files++;
    r->json += json;
    if (!left_out) return;
    r->left_out++;
    while (i < KINDS - 1 && r->kinds[i].name && strcmp(r->kinds[i].name, left_out) != 0) i++;
    if (!r->kinds[i].name) r->kinds[i].name = i < KINDS - 1 ? left_out : "other";
    r->kinds[i].count++;
}

void text_remarks_add(struct text_remarks *r, const struct source_list *l, const struct text_batch *b,
                      const struct text_documents *d) {
    for (int64_t i = 0; i < d->count; i++) {
        const struct text_document *doc = &d->docs[i];
        int64_t count[TEXT_REMARKS];
        text_document_counts(doc, count);
        for (int k = 0; k < TEXT_REMARKS; k++) {
            if (count[k] && !r->first[k])
                r->first[k] =
                    xasprintf("%s:%lld%s%s", l->sources[b->records[i].source].path,
                              (long long)b->records[i].line, doc->status == LINE_OK ? "" : ": ", doc->reason);
            r->count[k] += count[k];
        }
    }
    for (int64_t i = 0; i < b->end_count; i++) text_remarks_add_file(r, b->ends[i].left_out, b->ends[i].json);
}

/* "3 of 12 files are no text and are left out: PNG picture (2), JSON (1)" */
static char *left_out_remark(const struct text_remarks *r) {
    char *text = xasprintf("%lld of %lld file%s %s no text and %s left out:", (long long)r->left_out,
                           (long long)r->files, r->files == 1 ? "" : "s", r->left_out == 1 ? "is" : "are",
                           r->left_out == 1 ? "is" : "are");
    for (size_t i = 0; i < ARRAY_LENGTH(r->kinds) && r->kinds[i].name; i++) {
        char *longer =
            xasprintf("%s%s %s (%lld)", text, i ? "," : "", r->kinds[i].name, (long long)r->kinds[i].count);
        free(text);
        text = longer;
    }
    return text;
}

char *text_remark(const struct text_remarks *r, int i) {
    static const struct {
        const char *one, *many; /* behind the number */
    } say[TEXT_REMARKS] = {
        [REMARK_MALFORMED] = {"line was skipped because it is not a JSON object",
                              "lines were skipped because they are not JSON objects"},
        [REMARK_NO_FIELD] = {"line was skipped because it has no text in the field",
                             "lines were skipped because they have no text in the field"},
        [REMARK_INVALID_UTF8] = {"document is not UTF-8; its bytes are used as they are",
                                 "documents are not UTF-8; their bytes are used as they are"},
        [REMARK_NUL] = {"document holds NUL bytes, and is used as it is",
                        "documents hold NUL bytes, and are used as they are"},
        [REMARK_SEPARATORS] =
            {"<|endoftext|> stands inside a line, where it is ordinary text; to separate documents, put it "
             "on a line of its own",
             "times <|endoftext|> stands inside a line, where it is ordinary text; to separate documents, "
             "put it on a line of its own"},
    };
    if (r->left_out && i-- == 0) return left_out_remark(r);
    for (int k = 0; k < TEXT_REMARKS; k++)
        if (r->count[k] && i-- == 0)
            return xasprintf("%lld %s%s%s%s", (long long)r->count[k],
                             r->count[k] == 1 ? say[k].one : say[k].many,
                             r->first[k] ? r->count[k] == 1 ? " (" : " (the first: " : "",
                             r->first[k] ? r->first[k] : "", r->first[k] ? ")" : "");
    return NULL;
}

void text_remarks_free(struct text_remarks *r) {
    for (int k = 0; k < TEXT_REMARKS; k++) free(r->first[k]);
    *r = (struct text_remarks){0};
}
