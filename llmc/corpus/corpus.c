/* The text that a run trains on, or is evaluated on: the documents of a path, or the built-in stories,
 * copied one behind the other into one block of memory. */
#include "llmc/corpus/corpus.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/corpus/encode.h"
#include "llmc/stories/stories.h"

/* --- collecting --- */

/* Where each document begins, since the text moves when it grows. */
struct collection {
    char *text;
    int64_t size, capacity;
    int64_t *begin; /* (count) */
    int64_t count, begin_capacity;
};

static void collect(struct collection *l, const char *text, int64_t size) {
    if (size == 0) return;
    if (l->count == l->begin_capacity) {
        l->begin_capacity = 2 * l->begin_capacity + 64;
        l->begin = (int64_t *)xrealloc(l->begin, (size_t)l->begin_capacity * sizeof *l->begin);
    }
    if (l->size + size > l->capacity) {
        l->capacity = max_i64(l->size + size, l->capacity + l->capacity / 2);
        l->text = (char *)xrealloc(l->text, (size_t)l->capacity);
    }
    memcpy(l->text + l->size, text, (size_t)size);
    l->begin[l->count++] = l->size;
    l->size += size;
}

/* The caller frees. */
static struct text_span *spans_of(const struct collection *l) {
    struct text_span *docs = (struct text_span *)xmalloc((size_t)(l->count + 1) * sizeof *docs);
    for (int64_t i = 0; i < l->count; i++)
        docs[i] = (struct text_span){l->text + l->begin[i],
                                     (i + 1 < l->count ? l->begin[i + 1] : l->size) - l->begin[i]};
    return docs;
}

static void count_bytes(struct corpus *c) {
    for (int64_t i = 0; i < c->count; i++) {
        c->bytes += c->docs[i].size;
        if (c->validation[i]) c->validation_bytes += c->docs[i].size;
    }
}

/* --- reading --- */

static bool read_sources(struct collection *l, struct text_remarks *remarks,
                         const struct source_list *sources, struct error *err) {
    struct text_reader *r = text_reader_new(sources, NULL, INT64_MAX);
    struct text_batch b = {0};
    bool ok = true;
    do {
        struct text_documents d;
        ok = text_reader_next(r, &b, BATCH_BYTES, err);
        if (!ok) break;
        text_documents_open(&d, sources, &b);
        for (int64_t i = 0; i < d.count; i++)
            if (d.docs[i].status == LINE_OK) collect(l, d.docs[i].text.data, d.docs[i].text.size);
        text_remarks_add(remarks, sources, &b, &d);
        text_documents_close(&d);
    } while (!b.last);
    text_batch_free(&b);
    text_reader_free(r);
    return ok;
}

static bool no_text(const char *path, const struct text_remarks *remarks, struct error *err) {
    char *why = text_remark(remarks, 0);
    bool directory = path_is_directory(path);
    fail(err, "%s: %s%s%s", path, directory ? "no text in this directory" : "is empty, expected text",
         why ? ": " : "", why ? why : "");
    free(why);
    return false;
}

static bool read_text(struct collection *l, struct text_remarks *remarks, const char *path,
                      const struct text_options *options, struct error *err) {
    struct source_list sources = {.count = 0};
    if (options) sources.options = *options;
    bool ok = source_list_add(&sources, path, err);
    if (ok && sources.count == 0)
        ok = fail(err, "%s: no file in this directory (hidden ones do not count)", path);
    ok = ok && read_sources(l, remarks, &sources, err) && (l->count > 0 || no_text(path, remarks, err));
    source_list_free(&sources);
    return ok;
}

bool corpus_open(struct corpus *c, const char *path, const struct text_options *options,
                 double validation_fraction, struct error *err) {
    struct collection l = {0};
    struct document_split split = {0};
    memset(c, 0, sizeof *c);
    bool ok = read_text(&l, &c->remarks, path, options, err);
    c->text = l.text;
    if (ok) {
        struct text_span *docs = spans_of(&l);
        ok = split_documents(&split, docs, l.count, validation_fraction, true);
        free(docs);
        c->docs = split.docs;
        c->validation = split.validation;
        c->count = split.count;
        count_bytes(c);
        if (!ok)
            fail(err,
                 "%s: %lld bytes of text are too small to keep a part for validation: expected at least 512 "
                 "bytes, or two documents",
                 path, (long long)c->bytes);
    }
    free(l.begin);
    if (!ok) corpus_free(c);
    return ok;
}

void corpus_warn(const struct corpus *c, const char *path, const char *field) {
    char *remark;
    text_remarks_check_field(&c->remarks, field);
    for (int i = 0; (remark = text_remark(&c->remarks, i)) != NULL; free(remark), i++)
        warn("%s: %s", path, remark);
}

/* --- the built-in stories --- */

void corpus_stories(struct corpus *c, uint64_t seed, int64_t count, double validation_fraction) {
    check(count >= 2, "%lld stories, expected at least 2: one for training and one for validation",
          (long long)count);
    memset(c, 0, sizeof *c);
    char **story = (char **)xcalloc((size_t)count, sizeof *story);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) story[i] = story_make(seed, (uint64_t)i);
    struct collection l = {0};
    for (int64_t i = 0; i < count; i++) {
        collect(&l, story[i], (int64_t)strlen(story[i]));
        free(story[i]);
    }
    free(story);
    c->text = l.text;
    c->docs = spans_of(&l);
    c->count = l.count;
    c->validation = (bool *)xcalloc((size_t)count, sizeof *c->validation);
    free(l.begin);
    /* Evenly spread. Their number is the rounded share, but unless that is 0 at least one on each side. */
    int64_t kept = max_i64(1, min_i64(count - 1, llround((double)count * validation_fraction)));
    if (validation_fraction == 0) kept = 0;
    for (int64_t k = 0; k < kept; k++) c->validation[(2 * k + 1) * count / (2 * kept)] = true;
    count_bytes(c);
}

void corpus_free(struct corpus *c) {
    text_remarks_free(&c->remarks);
    free(c->text);
    free(c->docs);
    free(c->validation);
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
