/* Finds text files, divides their text into documents, and keeps a part for validation. Which part is
 * decided by hashes of text alone, so it depends neither on the order of files nor on other documents.
 * Texts of few or long documents are cut into pieces first, because chance divides only many pieces
 * well. */
#include "llmc/corpus/documents.h"
#include "llmc/base/utf8.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

/* --- files --- */

static void add_path(struct file_list *l, char *path) {
    if (l->count == l->capacity) {
        l->capacity = 2 * l->capacity + 16;
        l->paths = (char **)xrealloc(l->paths, (size_t)l->capacity * sizeof *l->paths);
    }
    l->paths[l->count++] = path;
}

struct search {
    struct file_list *list;
    leave_out_fn *leave_out;
    void *user;
};
static bool add_directory(const struct search *s, const char *path, struct error *err);

/* Takes `path` over. */
static bool add_entry(const struct search *s, char *path, struct error *err) {
    struct stat st, link;
    bool ok = true;
    if (lstat(path, &link) != 0 || stat(path, &st) != 0) {
        /* Dangling symlinks are ignored; every other stat error is reported. */
        if (errno != ENOENT) ok = fail(err, "%s: cannot read: %s", path, strerror(errno));
    } else if ((S_ISREG(st.st_mode) || S_ISDIR(link.st_mode)) && s->leave_out &&
               s->leave_out(s->user, path)) {
        ok = true;
    } else if (S_ISREG(st.st_mode)) {
        add_path(s->list, path);
        return true;
    } else if (S_ISDIR(link.st_mode)) {
        ok = add_directory(s, path, err);
    }
    free(path);
    return ok;
}

static bool add_directory(const struct search *s, const char *path, struct error *err) {
    DIR *dir = opendir(path);
    if (!dir) return fail(err, "%s: cannot list directory: %s", path, strerror(errno));
    bool ok = true;
    size_t length = strlen(path);
    const char *slash = length > 0 && path[length - 1] == '/' ? "" : "/";
    while (ok) {
        errno = 0;
        struct dirent *e = readdir(dir);
        if (!e) {
            if (errno) ok = fail(err, "%s: cannot list directory: %s", path, strerror(errno));
            break;
        }
        if (e->d_name[0] != '.') ok = add_entry(s, xasprintf("%s%s%s", path, slash, e->d_name), err);
    }
    closedir(dir);
    return ok;
}

static int by_path(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

bool file_list_add(struct file_list *l, const char *path, leave_out_fn *leave_out, void *user,
                   struct error *err) {
    struct search s = {l, leave_out, user};
    struct stat st;
    if (stat(path, &st) != 0) return fail(err, "%s: cannot read: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        add_path(l, xstrdup(path));
        return true;
    }
    int64_t before = l->count;
    if (!add_directory(&s, path, err)) return false;
    if (l->count > before) qsort(l->paths + before, (size_t)(l->count - before), sizeof *l->paths, by_path);
    return true;
}

void file_list_free(struct file_list *l) {
    for (int64_t i = 0; i < l->count; i++) free(l->paths[i]);
    free(l->paths);
    *l = (struct file_list){0};
}

/* --- documents --- */

bool is_document_separator(const char *text, int64_t size, int64_t at, int64_t *after) {
    static const char separator[] = "<|endoftext|>";
    const int64_t length = (int64_t)sizeof separator - 1;
    if (size - at < length || memcmp(text + at, separator, (size_t)length) != 0) return false;
    at += length;
    if (at < size && text[at] == '\r') at++;
    if (at < size && text[at] != '\n') return false;
    *after = min_i64(at + 1, size);
    return true;
}

bool document_next(struct text_span *doc, const char *text, int64_t size, int64_t *at) {
    while (*at < size) {
        int64_t start = *at, line = start, end = size, after = size;
        while (line < size) {
            const char *newline = NULL;
            if (is_document_separator(text, size, line, &after)) {
                end = line;
                break;
            }
            after = size;
            newline = (const char *)memchr(text + line, '\n', (size_t)(size - line));
            line = newline ? newline - text + 1 : size;
        }
        *at = after;
        if (end < size) { /* without the line break before the separator */
            if (end > start && text[end - 1] == '\n') end--;
            if (end > start && text[end - 1] == '\r') end--;
        }
        *doc = (struct text_span){text + start, end - start};
        if (doc->size > 0) return true;
    }
    return false;
}

/* --- UTF-8 --- */

int64_t utf8_invalid_at(const char *text, int64_t size) {
    const uint8_t *start = (const uint8_t *)text, *p = start, *end = start + size;
    while (p < end) {
        uint64_t eight;
        uint32_t code;
        while (end - p >= 8 && (memcpy(&eight, p, 8), (eight & 0x8080808080808080u) == 0)) p += 8;
        if (p == end) break;
        int length = utf8_decode(p, end, &code);
        if (length == 0) return p - start;
        p += length;
    }
    return -1;
}

/* --- places to cut --- */

int64_t text_cut(const char *text, int64_t from, int64_t limit) {
    int64_t line = 0, space = 0;
    for (int64_t i = from; i < limit; i++) {
        bool after_line = text[i - 1] == '\n';
        bool blank = after_line && i >= 2 &&
                     (text[i - 2] == '\n' || (i >= 3 && text[i - 2] == '\r' && text[i - 3] == '\n'));
        if (blank && text[i] != '\n' && text[i] != '\r') return i;
        if (after_line && !line) line = i;
        if (text[i] == ' ' && !space) space = i;
    }
    if (line) return line;
    if (space) return space;
    int64_t at = from;
    while (at < limit - 1 && at < from + 3 && ((uint8_t)text[at] & 0xc0) == 0x80) at++;
    return at;
}

/* --- validation --- */

enum {
    ALWAYS_CUT = 1 << 20,
    LEAST_PIECE = 256,
    MOST_PIECE = 1 << 14,
    ENOUGH = 8 /* validation documents that may be left to chance */
};

static uint64_t text_hash(const char *text, int64_t size) { return XXH3_64bits(text, (size_t)size); }

static void make_room(struct document_split *s) {
    if (s->count < s->capacity) return;
    s->capacity = 2 * s->capacity + 64;
    s->docs = (struct text_span *)xrealloc(s->docs, (size_t)s->capacity * sizeof *s->docs);
    s->validation = (bool *)xrealloc(s->validation, (size_t)s->capacity * sizeof *s->validation);
}

/* Adds a part of the document whose first part is number `first`. Joins it to the part before if that is on
 * the same side. */
static void add_part(struct document_split *s, int64_t first, const char *text, int64_t size,
                     bool validation) {
    if (size == 0) return;
    if (s->count > first && s->validation[s->count - 1] == validation) {
        s->docs[s->count - 1].size += size;
        return;
    }
    make_room(s);
    s->docs[s->count] = (struct text_span){text, size};
    s->validation[s->count++] = validation;
}

/* Depends only on the document and the fraction. At least 8 groups of pieces, if the length allows. */
static int64_t piece_size(int64_t size, double fraction) {
    return max_i64(LEAST_PIECE, min_i64(MOST_PIECE, (int64_t)((double)size * fraction / ENOUGH)));
}

static int64_t piece_end(const struct text_span *doc, int64_t at, int64_t piece) {
    if (doc->size - at < 2 * piece) return doc->size;
    return text_cut(doc->data, at + piece, min_i64(at + 2 * piece, doc->size));
}

/* Chooses one piece of each group of 1 / fraction by the hash of the group's text. */
static void cut_document(struct document_split *s, const struct text_span *doc, double fraction) {
    int64_t piece = piece_size(doc->size, fraction), first_part = s->count;
    double inverse = 1.0 / fraction;
    int64_t group = inverse < 2 ? 2 : inverse > 1e9 ? 1000000000 : (int64_t)(inverse + 0.5);
    for (int64_t at = 0; at < doc->size;) {
        int64_t end = at;
        for (int64_t k = 0; k < group && end < doc->size; k++) end = piece_end(doc, end, piece);
        int64_t chosen = (int64_t)(text_hash(doc->data + at, end - at) % (uint64_t)group);
        int64_t first = at;
        for (int64_t k = 0; k < chosen && first < end; k++) first = piece_end(doc, first, piece);
        int64_t last = first < end ? piece_end(doc, first, piece) : end;
        add_part(s, first_part, doc->data + at, first - at, false);
        add_part(s, first_part, doc->data + first, last - first, true);
        add_part(s, first_part, doc->data + last, end - last, false);
        at = end;
    }
}

/* For a set with all documents on one side: moves the one with the least hash to the other side, or only
 * its end if it is long enough to be divided. */
static bool fill_empty_side(struct document_split *s, int64_t first, double fraction, bool empty_side) {
    int64_t which = -1;
    uint64_t least = 0;
    for (int64_t i = first; i < s->count; i++) {
        uint64_t hash = text_hash(s->docs[i].data, s->docs[i].size);
        if (which < 0 || hash < least) {
            which = i;
            least = hash;
        }
    }
    if (which < 0) return false;
    struct text_span doc = s->docs[which];
    if (doc.size < 2 * LEAST_PIECE) {
        s->validation[which] = empty_side;
        return s->count - first > 1;
    }
    double share = (double)doc.size * (empty_side ? fraction : 1 - fraction);
    int64_t tail = max_i64(LEAST_PIECE, (int64_t)share);
    int64_t cut = text_cut(doc.data, doc.size - tail, doc.size - tail / 2), after = s->count - which - 1;
    make_room(s);
    memmove(s->docs + which + 2, s->docs + which + 1, (size_t)after * sizeof *s->docs);
    memmove(s->validation + which + 2, s->validation + which + 1, (size_t)after * sizeof *s->validation);
    s->docs[which].size = cut;
    s->docs[which + 1] = (struct text_span){doc.data + cut, doc.size - cut};
    s->validation[which + 1] = empty_side;
    s->count++;
    return true;
}

bool split_documents(struct document_split *out, const struct text_span *docs, int64_t count, double fraction,
                     bool complete) {
    check(fraction >= 0 && fraction <= 0.5, "validation fraction %g, expected 0 to 0.5", fraction);
    /* For chance, documents of different sizes count as (sum)^2 / (sum of squares) equal ones. */
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += (double)docs[i].size;
        squares += (double)docs[i].size * (double)docs[i].size;
    }
    bool few = complete && sum * sum * fraction < ENOUGH * squares;
    int64_t first = out->count;
    for (int64_t i = 0; i < count; i++) {
        int64_t size = docs[i].size;
        if (fraction > 0 && (size > ALWAYS_CUT || (few && size >= 2 * piece_size(size, fraction)))) {
            cut_document(out, &docs[i], fraction);
        } else {
            double place = (double)(text_hash(docs[i].data, size) >> 11) * 0x1p-53; /* in [0, 1) */
            add_part(out, out->count, docs[i].data, size, place < fraction);
        }
    }
    int64_t kept = 0;
    for (int64_t i = first; i < out->count; i++) kept += out->validation[i];
    if (!complete || fraction == 0 || (kept > 0 && kept < out->count - first)) return true;
    return fill_empty_side(out, first, fraction, kept == 0);
}

void document_split_free(struct document_split *s) {
    free(s->docs);
    free(s->validation);
    *s = (struct document_split){0};
}
