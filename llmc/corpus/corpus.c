/* Reads the text that a run trains on: the files of a path, or the built-in stories. Small files are copied
 * and large ones mapped, because the system limits the number of mappings; documents are then spans of that
 * memory. */
#include "llmc/corpus/corpus.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/corpus/encode.h"
#include "llmc/stories/stories.h"

/* --- reading the files --- */

enum { COPY_BELOW = 1 << 16 };

/* Maps the file and sets *text to its content. A file to be skipped gives an empty text. */
static bool open_text(struct corpus *c, const char *path, bool in_directory, struct text_span *text,
                      struct error *err) {
    struct corpus_file *f = &c->files[c->file_count];
    *f = (struct corpus_file){.copy = NULL};
    if (!file_map(&f->map, path, err)) return false;
    *text = (struct text_span){(const char *)f->map.data, f->map.size};
    if (in_directory && text->size > 0 && memchr(text->data, 0, (size_t)text->size)) {
        c->skipped_binary++;
        text->size = 0;
    }
    if (text->size == 0) {
        file_unmap(&f->map);
        return true;
    }
    c->file_count++;
    if (utf8_invalid_at(text->data, text->size) >= 0 && c->invalid_utf8_files++ == 0)
        c->first_invalid = xstrdup(path);
    if (text->size < COPY_BELOW) {
        f->copy = (char *)xmalloc((size_t)text->size);
        memcpy(f->copy, text->data, (size_t)text->size);
        file_unmap(&f->map);
        text->data = f->copy;
    }
    return true;
}

struct span_list {
    struct text_span *docs;
    int64_t count, capacity;
};

static void add_documents(struct span_list *l, const struct text_span *text) {
    struct text_span doc;
    for (int64_t at = 0; document_next(&doc, text->data, text->size, &at);) {
        if (l->count == l->capacity) {
            l->capacity = 2 * l->capacity + 64;
            l->docs = (struct text_span *)xrealloc(l->docs, (size_t)l->capacity * sizeof *l->docs);
        }
        l->docs[l->count++] = doc;
    }
}

static bool read_files(struct corpus *c, struct span_list *docs, const char *path, struct error *err) {
    struct file_list list = {0};
    bool directory = path_is_directory(path), ok = file_list_add(&list, path, err);
    if (ok && list.count == 0)
        ok = fail(err, "%s: no file in this directory (hidden ones do not count)", path);
    c->files = (struct corpus_file *)xcalloc((size_t)list.count + 1, sizeof *c->files);
    for (int64_t i = 0; ok && i < list.count; i++) {
        struct text_span text;
        ok = open_text(c, list.paths[i], directory, &text, err);
        if (ok && text.size > 0) add_documents(docs, &text);
    }
    if (ok && docs->count == 0) {
        if (!directory)
            ok = fail(err, "%s: is empty, expected text", path);
        else
            ok = fail(
                err,
                "%s: no text in this directory: of %lld files %lld are binary (contain NUL bytes) and the "
                "others are empty",
                path, (long long)list.count, (long long)c->skipped_binary);
    }
    file_list_free(&list);
    return ok;
}

/* --- splitting --- */

bool corpus_open(struct corpus *c, const char *path, double validation_fraction, struct error *err) {
    memset(c, 0, sizeof *c);
    struct span_list docs = {0};
    struct document_split split = {0};
    bool ok = read_files(c, &docs, path, err);
    if (ok) {
        ok = split_documents(&split, docs.docs, docs.count, validation_fraction, true);
        c->docs = split.docs;
        c->validation = split.validation;
        c->count = split.count;
        for (int64_t i = 0; i < c->count; i++) {
            c->bytes += c->docs[i].size;
            if (c->validation[i]) c->validation_bytes += c->docs[i].size;
        }
        if (!ok)
            fail(err,
                 "%s: %lld bytes of text are too small to keep a part for validation: expected at least 512 "
                 "bytes, or two documents",
                 path, (long long)c->bytes);
    }
    free(docs.docs);
    if (!ok) corpus_free(c);
    return ok;
}

/* --- the built-in stories --- */

void corpus_stories(struct corpus *c, uint64_t seed, int64_t count, double validation_fraction) {
    check(count >= 2, "%lld stories, expected at least 2: one for training and one for validation",
          (long long)count);
    memset(c, 0, sizeof *c);
    c->docs = (struct text_span *)xcalloc((size_t)count, sizeof *c->docs);
    c->validation = (bool *)xcalloc((size_t)count, sizeof *c->validation);
    c->files = (struct corpus_file *)xcalloc((size_t)count, sizeof *c->files);
    c->count = c->file_count = count;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        c->files[i].copy = story_make(seed, (uint64_t)i);
        c->docs[i] = (struct text_span){c->files[i].copy, (int64_t)strlen(c->files[i].copy)};
    }
    /* Evenly spread. Their number is the rounded share, but at least one on each side. */
    int64_t kept = max_i64(1, min_i64(count - 1, llround((double)count * validation_fraction)));
    for (int64_t k = 0; k < kept; k++) c->validation[(2 * k + 1) * count / (2 * kept)] = true;
    for (int64_t i = 0; i < count; i++) {
        c->bytes += c->docs[i].size;
        if (c->validation[i]) c->validation_bytes += c->docs[i].size;
    }
}

void corpus_free(struct corpus *c) {
    for (int64_t i = 0; i < c->file_count; i++) {
        file_unmap(&c->files[i].map);
        free(c->files[i].copy);
    }
    free(c->files);
    free(c->docs);
    free(c->validation);
    free(c->first_invalid);
    memset(c, 0, sizeof *c);
}

/* --- encoding --- */

bool corpus_encode(const struct corpus *c, bool validation, const struct tokenizer *t, uint32_t **tokens,
                   int64_t *count, struct error *err) {
    struct text_span *docs = (struct text_span *)xmalloc((size_t)c->count * sizeof *docs);
    int64_t n = 0;
    for (int64_t i = 0; i < c->count; i++)
        if (c->validation[i] == validation) docs[n++] = c->docs[i];
    struct token_buffer out = {0};
    bool ok = encode_documents(&out, t, docs, n, err);
    free(docs);
    if (!ok) {
        token_buffer_free(&out);
        return false;
    }
    *tokens = (uint32_t *)xrealloc(out.ids, (size_t)(out.count + 1) * sizeof **tokens);
    (*tokens)[out.count] = (uint32_t)tokenizer_end_of_text(t);
    *count = out.count + 1;
    return true;
}
