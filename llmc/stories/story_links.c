/* While a story is written, every entry of a table that is named is noted, and every pronoun with the entry
 * that it stands for. */
#include "llmc/stories/story_links.h"

#include "llmc/stories/stories_grammar.h"

#include <stdlib.h>
#include <string.h>

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

/* A row of a table, as a number. */
static int what_of(const struct story_item *item, int row) {
    return (int)(item->table - story_grammar.tables) * STORY_MAX_ROWS + row;
}

static void note_noun(struct story_links *l, int64_t offset, const struct story_item *item, int row) {
    int size;
    story_cell(item, row, &size);
    if (l->nouns < STORY_NOUNS && writes(item, "name"))
        l->noun[l->nouns++] = (struct story_noun){{offset, size}, what_of(item, row)};
}

static void note_pronoun(struct story_links *l, int64_t offset, const struct story_item *item, int row) {
    int size, named = 0, what = what_of(item, row);
    story_cell(item, row, &size);
    for (int i = 0; i < l->nouns; i++) named += l->noun[i].what == what;
    if (named && l->count < STORY_LINKS)
        l->link[l->count++] =
            (struct story_link){{offset, size}, writes(item, "they") || writes(item, "it"), what, l->nouns};
}

static void on_choice(void *links, int64_t offset, const struct story_item *item, int row) {
    note_noun((struct story_links *)links, offset, item, row);
}

static void on_reference(void *links, int64_t offset, const struct story_item *item, int row) {
    if (item->kind == ITEM_REFER && is_pronoun(item))
        note_pronoun((struct story_links *)links, offset, item, row);
    else if (item->kind == ITEM_REFER)
        note_noun((struct story_links *)links, offset, item, row);
}

void story_links_make(struct story_links *l, uint64_t seed, uint64_t index) {
    struct story_trace trace = {.reference = on_reference, .choice = on_choice, .context = l};
    memset(l, 0, sizeof *l);
    l->text = story_make_traced(seed, index, &trace);
}

void story_links_free(struct story_links *l) {
    free(l->text);
    memset(l, 0, sizeof *l);
}
