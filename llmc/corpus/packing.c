/* Best-fit packing: see packing.h.
 *
 * Pieces of one length are a list, and so are rows with the same space, because neither differ in anything
 * that the rule asks for. A binary tree over the spaces 0..T says where there are rows, so that the least
 * space of at least n is found in O(log T) steps. */
#include "llmc/corpus/packing.h"

#include <stdlib.h>

/* --- pieces --- */

void packing_init(struct packing *p, int64_t T) {
    *p = (struct packing){.T = T, .of_length = (int32_t *)xmalloc((size_t)(T + 1) * sizeof *p->of_length)};
    for (int64_t n = 0; n <= T; n++) p->of_length[n] = -1;
}

static void add_piece(struct packing *p, int64_t first, int64_t length) {
    if (p->count == p->capacity) {
        check(p->count < INT32_MAX / 2,
              "--samples packed: the data has more than %d documents; give --samples windows, or less data",
              INT32_MAX / 2);
        p->capacity = 2 * p->capacity + 64;
        p->pieces = (struct piece *)xrealloc(p->pieces, (size_t)p->capacity * sizeof *p->pieces);
    }
    p->pairs += length * length;
    p->pieces[p->count] = (struct piece){first, (int32_t)length, p->of_length[length]};
    p->of_length[length] = (int32_t)p->count++;
}

void packing_add(struct packing *p, int64_t first, int64_t length) {
    p->documents++;
    p->tokens += length;
    for (int64_t at = 0; at < length; at += p->T) add_piece(p, first + at, min_i64(p->T, length - at));
}

/* --- rows by their space --- */

struct spaces {
    int64_t leaves;   /* a power of two above T */
    bool *any;        /* (2*leaves) node i has children 2i and 2i+1: rows with one of the spaces below it */
    int32_t *row;     /* (T+1) a row with this space, or -1 */
    int32_t *another; /* (rows) with the same space, or -1 */
    int64_t capacity;
};

static void spaces_open(struct spaces *s, int64_t T) {
    *s = (struct spaces){.leaves = 1};
    while (s->leaves <= T) s->leaves *= 2;
    s->any = (bool *)xcalloc((size_t)(2 * s->leaves), sizeof *s->any);
    s->row = (int32_t *)xmalloc((size_t)(T + 1) * sizeof *s->row);
    for (int64_t n = 0; n <= T; n++) s->row[n] = -1;
}

static void spaces_close(struct spaces *s) {
    free(s->any);
    free(s->row);
    free(s->another);
}

static void mark(struct spaces *s, int64_t space) {
    int64_t node = s->leaves + space;
    s->any[node] = s->row[space] >= 0;
    while ((node /= 2) > 0) s->any[node] = s->any[2 * node] || s->any[2 * node + 1];
}

static void put(struct spaces *s, int64_t space, int32_t row) {
    s->another[row] = s->row[space];
    s->row[space] = row;
    if (s->another[row] < 0) mark(s, space);
}

static int32_t take(struct spaces *s, int64_t space) {
    int32_t row = s->row[space];
    s->row[space] = s->another[row];
    if (s->row[space] < 0) mark(s, space);
    return row;
}

/* The least space of at least n that a row has, or -1: up to the first node with rows on its right, and down
 * there. */
static int64_t least_space(const struct spaces *s, int64_t n) {
    int64_t node = s->leaves + n;
    if (s->any[node]) return n;
    while (node > 1 && (node % 2 || !s->any[node + 1])) node /= 2;
    if (node == 1) return -1;
    for (node++; node < s->leaves;) node = 2 * node + !s->any[2 * node];
    return node - s->leaves;
}

/* --- packing --- */

/* An empty row. */
static int32_t add_row(struct packing *p, struct spaces *s) {
    if (p->row_count == s->capacity) {
        s->capacity = 2 * s->capacity + 64;
        p->rows = (int32_t *)xrealloc(p->rows, (size_t)s->capacity * sizeof *p->rows);
        s->another = (int32_t *)xrealloc(s->another, (size_t)s->capacity * sizeof *s->another);
    }
    p->rows[p->row_count] = -1;
    return (int32_t)p->row_count++;
}

void packing_finish(struct packing *p) {
    struct spaces s;
    spaces_open(&s, p->T);
    for (int64_t length = p->T; length > 0; length--)
        for (int32_t i = p->of_length[length], after; i >= 0; i = after) {
            int64_t space = least_space(&s, length);
            int32_t row = space < 0 ? add_row(p, &s) : take(&s, space);
            after = p->pieces[i].next;
            p->pieces[i].next = p->rows[row];
            p->rows[row] = i;
            put(&s, (space < 0 ? p->T : space) - length, row);
        }
    spaces_close(&s);
    free(p->of_length);
    p->of_length = NULL;
}

void packing_free(struct packing *p) {
    free(p->pieces);
    free(p->rows);
    free(p->of_length);
    *p = (struct packing){.T = 0};
}
