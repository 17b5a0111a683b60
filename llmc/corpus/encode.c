/* Encodes many documents on all cores, with a result that does not depend on the number of cores. The text
 * is divided into units of about 256 KiB, each a run of short documents or a part of a long one; units are
 * encoded in any order and joined in theirs. */
#include "llmc/corpus/encode.h"

#include <stdlib.h>
#include <string.h>

enum { UNIT_BYTES = 1 << 18 };

struct part {
    struct text_span text;
    int64_t document; /* number, for messages */
    bool first;       /* the document starts here */
};
struct unit {
    int64_t begin, end; /* parts */
    uint32_t *ids;
    int64_t count, at; /* tokens; where they go */
    int64_t failed;    /* document that cannot be encoded, or -1 */
};
struct plan {
    struct part *parts;
    struct unit *units;
    int64_t part_count, part_capacity, unit_count, unit_capacity;
};

static void add_part(struct plan *p, struct part part) {
    if (p->part_count == p->part_capacity) {
        p->part_capacity = 2 * p->part_capacity + 256;
        p->parts = (struct part *)xrealloc(p->parts, (size_t)p->part_capacity * sizeof *p->parts);
    }
    p->parts[p->part_count++] = part;
}

/* Puts the parts from `begin` on into units. */
static void add_units(struct plan *p, int64_t begin) {
    for (int64_t i = begin, bytes = 0; i < p->part_count; i++) {
        bytes += p->parts[i].text.size;
        if (bytes < UNIT_BYTES && i + 1 < p->part_count) continue;
        if (p->unit_count == p->unit_capacity) {
            p->unit_capacity = 2 * p->unit_capacity + 64;
            p->units = (struct unit *)xrealloc(p->units, (size_t)p->unit_capacity * sizeof *p->units);
        }
        p->units[p->unit_count++] = (struct unit){.begin = begin, .end = i + 1, .failed = -1};
        begin = i + 1;
        bytes = 0;
    }
}

static void make_plan(struct plan *p, const struct tokenizer *t, const struct text_span *docs,
                      int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const char *text = docs[i].data;
        int64_t size = docs[i].size, at = 0;
        do {
            int64_t end = size;
            if (size - at >= 2 * UNIT_BYTES) end = tokenizer_safe_cut(t, text, size, at + UNIT_BYTES);
            add_part(p, (struct part){{text + at, end - at}, i, at == 0});
            at = end;
        } while (at < size);
    }
    add_units(p, 0);
}

static void encode_unit(const struct plan *p, struct unit *u, const struct tokenizer *t,
                        struct token_buffer *b) {
    b->count = 0;
    for (int64_t i = u->begin; i < u->end && u->failed < 0; i++) {
        const struct part *part = &p->parts[i];
        if (part->first) {
            token_buffer_reserve(b, 1);
            b->ids[b->count++] = (uint32_t)tokenizer_end_of_text(t);
        }
        if (tokenizer_encode(t, part->text.data, part->text.size, b) < 0) u->failed = part->document;
    }
    u->count = b->count;
    u->ids = (uint32_t *)xmalloc((size_t)b->count * sizeof *u->ids);
    memcpy(u->ids, b->ids, (size_t)b->count * sizeof *u->ids);
}

bool encode_documents(struct token_buffer *out, const struct tokenizer *t, const struct text_span *docs,
                      int64_t count, struct error *err) {
    if (tokenizer_end_of_text(t) < 0)
        return fail(err, "the tokenizer has no <|endoftext|> token to separate documents with");
    struct plan p = {0};
    make_plan(&p, t, docs, count);
#pragma omp parallel
    {
        struct token_buffer b = {0};
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < p.unit_count; i++) encode_unit(&p, &p.units[i], t, &b);
        token_buffer_free(&b);
    }
    int64_t total = 0, failed = -1;
    for (int64_t i = 0; i < p.unit_count; i++) {
        p.units[i].at = out->count + total;
        total += p.units[i].count;
        if (failed < 0) failed = p.units[i].failed;
    }
    if (failed < 0) {
        token_buffer_reserve(out, total);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < p.unit_count; i++)
            memcpy(out->ids + p.units[i].at, p.units[i].ids, (size_t)p.units[i].count * sizeof *out->ids);
        out->count += total;
    }
    for (int64_t i = 0; i < p.unit_count; i++) free(p.units[i].ids);
    free(p.units);
    free(p.parts);
    if (failed < 0) return true;
    return fail(err,
                "document %lld (%lld bytes, it starts with \"%.*s\") cannot be encoded: the tokenizer's "
                "Split pattern exceeds PCRE2's matching limit on it",
                (long long)failed, (long long)docs[failed].size, (int)min_i64(docs[failed].size, 40),
                docs[failed].data);
}
