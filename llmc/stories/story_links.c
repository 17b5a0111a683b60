/* While a story is written, every entry of a table that is named is noted; when a pronoun of an entry
 * follows, the notes of this entry are what it stands for. */
#include "llmc/stories/story_links.h"

#include "llmc/stories/stories_grammar.h"

#include <stdlib.h>
#include <string.h>

enum { MENTIONS = 256 };
struct writing {
    struct story_links *links;
    struct {
        const struct story_table *table;
        int row;
        struct story_span span;
    } mention[MENTIONS];
    int mentions;
};

/* The column that an item writes, by its name in the table. */
static bool writes(const struct story_item *item, const char *name) {
    const char *p = item->table->columns;
    for (int c = 0; c < item->column; c++) p += strcspn(p, "|") + 1;
    return strcspn(p, "|") == strlen(name) && strncmp(p, name, strlen(name)) == 0;
}

static bool is_pronoun(const struct story_item *item) {
    static const char *const columns[] = {"he", "him", "his", "they", "it"};
    for (size_t i = 0; i < ARRAY_LENGTH(columns); i++)
        if (writes(item, columns[i])) return true;
    return false;
}

static void note_mention(struct writing *w, int64_t offset, const struct story_item *item, int row) {
    int size;
    story_cell(item, row, &size);
    if (w->mentions == MENTIONS || !writes(item, "name")) return;
    w->mention[w->mentions].table = item->table;
    w->mention[w->mentions].row = row;
    w->mention[w->mentions++].span = (struct story_span){offset, size};
}

static void note_pronoun(struct writing *w, int64_t offset, const struct story_item *item, int row) {
    struct story_links *l = w->links;
    struct story_link *link = &l->link[l->count];
    int size;
    story_cell(item, row, &size);
    if (l->count == STORY_LINKS) return;
    *link = (struct story_link){{offset, size}, writes(item, "they") || writes(item, "it"), l->nouns, 0};
    for (int i = 0; i < w->mentions; i++)
        if (w->mention[i].table == item->table && w->mention[i].row == row && l->nouns < STORY_NOUNS) {
            l->noun[l->nouns++] = w->mention[i].span;
            link->count++;
        }
    l->count += link->count > 0;
}

static void on_choice(void *context, int64_t offset, const struct story_item *item, int row) {
    note_mention((struct writing *)context, offset, item, row);
}

static void on_reference(void *context, int64_t offset, const struct story_item *item, int row) {
    if (item->kind == ITEM_REFER && is_pronoun(item))
        note_pronoun((struct writing *)context, offset, item, row);
    else if (item->kind == ITEM_REFER)
        note_mention((struct writing *)context, offset, item, row);
}

void story_links_make(struct story_links *l, uint64_t seed, uint64_t index) {
    struct writing w = {.links = l};
    struct story_trace trace = {.reference = on_reference, .choice = on_choice, .context = &w};
    memset(l, 0, sizeof *l);
    l->text = story_make_traced(seed, index, &trace);
}

void story_links_free(struct story_links *l) {
    free(l->text);
    memset(l, 0, sizeof *l);
}
