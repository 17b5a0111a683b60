/* Reads CSV. The fields of a record are copied into one buffer, without their quotes and each with a NUL
 * behind it, so that a field can be used as a string. */
#include "llmc/corpus/csv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void csv_open(struct csv_reader *r, const char *data, int64_t size, const char *path) {
    *r = (struct csv_reader){.data = data, .path = path, .size = size, .line = 1};
    if (size >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0) r->at = 3;
}

void csv_close(struct csv_reader *r) {
    free(r->text);
    free(r->begin);
    free(r->length);
    memset(r, 0, sizeof *r);
}

const char *csv_field(const struct csv_reader *r, int i) { return r->text + r->begin[i]; }

/* --- fields --- */

/* `used`: bytes of text that are taken. */
static void put(struct csv_reader *r, int64_t *used, char c) {
    if (*used == r->capacity) {
        r->capacity = max_i64(256, 2 * r->capacity);
        r->text = (char *)xrealloc(r->text, (size_t)r->capacity);
    }
    r->text[(*used)++] = c;
}

static bool at_line_end(const struct csv_reader *r) {
    return r->data[r->at] == '\n' ||
           (r->data[r->at] == '\r' && r->at + 1 < r->size && r->data[r->at + 1] == '\n');
}

static bool unquoted(struct csv_reader *r, int64_t *used) {
    for (; r->at < r->size && r->data[r->at] != ',' && !at_line_end(r); r->at++) put(r, used, r->data[r->at]);
    return true;
}

static bool quoted(struct csv_reader *r, int64_t *used, struct error *err) {
    int64_t opened = r->line;
    for (r->at++; r->at < r->size; r->at++) {
        char c = r->data[r->at];
        if (c == '"') {
            r->at++;
            if (r->at == r->size || r->data[r->at] == ',' || at_line_end(r)) return true;
            if (r->data[r->at] != '"') return unquoted(r, used);
        }
        r->line += c == '\n';
        put(r, used, c);
    }
    return fail(err, "%s:%" PRId64 ": the quote that opens here is not closed", r->path, opened);
}

/* --- records --- */

static void begin_field(struct csv_reader *r, int64_t at) {
    if (r->count == r->fields_capacity) {
        r->fields_capacity = r->fields_capacity ? 2 * r->fields_capacity : 16;
        r->begin = (int64_t *)xrealloc(r->begin, (size_t)r->fields_capacity * sizeof *r->begin);
        r->length = (int64_t *)xrealloc(r->length, (size_t)r->fields_capacity * sizeof *r->length);
    }
    r->begin[r->count++] = at;
}

static void pass_line_end(struct csv_reader *r) {
    r->at += r->data[r->at] == '\r' ? 2 : 1;
    r->line++;
}

int csv_next(struct csv_reader *r, struct error *err) {
    while (r->at < r->size && at_line_end(r)) pass_line_end(r);
    if (r->at >= r->size) return 0;
    int64_t used = 0;
    r->count = 0;
    r->record_line = r->line;
    for (;;) {
        if (r->count == CSV_MAX_FIELDS) {
            fail(err, "%s:%" PRId64 ": more than %d fields in one record", r->path, r->line, CSV_MAX_FIELDS);
            return -1;
        }
        begin_field(r, used);
        bool in_quotes = r->at < r->size && r->data[r->at] == '"';
        if (!(in_quotes ? quoted(r, &used, err) : unquoted(r, &used))) return -1;
        r->length[r->count - 1] = used - r->begin[r->count - 1];
        put(r, &used, '\0');
        if (r->at >= r->size) return 1;
        if (r->data[r->at] != ',') break;
        r->at++;
    }
    pass_line_end(r);
    return 1;
}
