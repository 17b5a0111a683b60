/* Grades an arbitrary text as a reader who knows the grammar would.
 *
 * The reader does not know which row a register holds, only which rows it may hold: a set, as a bit mask.
 * It keeps two sets. `here` holds what the sentence alone says: if it becomes empty ("Anna lost his hat"),
 * the grammar cannot produce the sentence anywhere. `story` holds what the story so far says: a reference
 * that contradicts it is wrong, and one to a register of which nothing is known is not counted. */
#include "llmc/stories/stories_grammar.h"

#include <stdlib.h>
#include <string.h>

#define UNKNOWN 0xffffffffu

/* A place in the story, and what is known there. */
struct view {
    int beat;
    uint32_t story[STORY_REGISTERS];
};
struct views {
    struct view *v;
    int count, capacity;
};
/* More than a few views arise only if the text makes no sense for long; the first ones then suffice. */
#define MAX_VIEWS 64

static bool same_view(const struct view *a, const struct view *b) {
    return a->beat == b->beat && memcmp(a->story, b->story, sizeof a->story) == 0;
}

static void add_view(struct views *s, const struct view *v) {
    for (int i = 0; i < s->count; i++)
        if (same_view(&s->v[i], v)) return;
    if (s->count == MAX_VIEWS) return;
    if (s->count == s->capacity)
        s->v = xrealloc(s->v, (size_t)(s->capacity = 2 * s->capacity + 8) * sizeof *v);
    s->v[s->count++] = *v;
}

/* --- sentences --- */

static const char marker[] = "<|endoftext|>";

static bool at_marker(const char *p, const char *end) {
    return *p == '<' && end - p >= (int64_t)sizeof marker - 1 && memcmp(p, marker, sizeof marker - 1) == 0;
}

static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

/* A sentence ends with . ! or ? before white space, the marker or the end of the text. Returns its end.
 * *complete is false if the text breaks off, at the marker or at its end. */
static const char *sentence_end(const char *p, const char *end, bool *complete) {
    *complete = false;
    for (; p < end; p++) {
        if (at_marker(p, end)) return p;
        if (*p != '.' && *p != '!' && *p != '?') continue;
        if (p + 1 < end && !is_space(p[1]) && !at_marker(p + 1, end)) continue;
        *complete = true;
        return p + 1;
    }
    return end;
}

/* --- matching one sentence against a line --- */

struct match {
    struct view view; /* after the sentence */
    uint32_t here[STORY_REGISTERS];
    const char *at;
    int references, wrong;
};
struct matcher {
    const struct story_grammar *g;
    const char *end;    /* of the sentence */
    struct views *best; /* views after the matches with the fewest wrong references */
    int references, wrong;
};
struct rest {
    const char *line;
    const struct rest *outer;
};

static bool single(uint32_t set) { return set != 0 && (set & (set - 1)) == 0; }

static void add_match(struct matcher *m, const struct match *match) {
    if (match->at != m->end) return;
    if (m->best->count > 0 && match->wrong > m->wrong) return;
    if (m->best->count == 0 || match->wrong < m->wrong) {
        m->best->count = 0;
        m->wrong = match->wrong;
        m->references = match->references;
    }
    add_view(m->best, &match->view);
}

/* The reference says that the register holds one of `rows`. False if the sentence contradicts itself. */
static bool refer(struct match *m, int reg, uint32_t rows) {
    if (!(m->here[reg] &= rows)) return false;
    uint32_t *story = &m->view.story[reg];
    if (*story == UNKNOWN) {
        *story = rows;
        return true;
    }
    m->references++;
    if (*story & rows)
        *story &= rows;
    else
        m->wrong++;
    return true;
}

/* {n-m}: right if the difference is the number of this row, as far as both are known. */
static bool refer_difference(struct match *m, const struct story_item *item, int row) {
    const uint32_t *here = m->here, *story = m->view.story;
    int a = item->reg, b = item->other;
    if (single(here[a]) && single(here[b]))
        if (__builtin_ctz(here[a]) - __builtin_ctz(here[b]) - 1 != row) return false;
    if (single(story[a]) && single(story[b])) {
        m->references++;
        m->wrong += __builtin_ctz(story[a]) - __builtin_ctz(story[b]) - 1 != row;
    }
    return true;
}

/* An entry that the grammar excludes here repeats something where the story needs something new. */
static bool choose(struct match *m, const struct story_item *item, int row) {
    int reg;
    for (const char *e = item->exclude; story_excludes_next(&e, &reg);) {
        uint32_t set = UINT32_C(1) << row;
        if (m->here[reg] == set) return false;
        if (m->view.story[reg] != set) continue;
        m->references++;
        m->wrong++;
    }
    if (item->reg >= 0) m->here[item->reg] = m->view.story[item->reg] = UINT32_C(1) << row;
    return true;
}

static void match_line(struct matcher *m, const char *line, const struct rest *outer, struct match now);

/* Finds all rows that the text can mean here; different spellings continue separately. */
static void match_cells(struct matcher *m, const struct story_item *item, const char *line,
                        const struct rest *outer, const struct match *now) {
    bool chosen = item->kind == ITEM_CHOOSE;
    int first = chosen ? item->first : 0, last = chosen ? item->first + item->count : item->table->count;
    uint32_t done = 0;
    for (int row = first; row < last; row++) {
        int size = story_cell_matches(item, row, now->at, m->end);
        if (size < 0 || (done >> row & 1)) continue;
        struct match next = *now;
        next.at += size;
        if (chosen) {
            if (choose(&next, item, row)) match_line(m, line, outer, next);
        } else if (item->kind == ITEM_MINUS) {
            if (refer_difference(&next, item, row)) match_line(m, line, outer, next);
        } else {
            uint32_t rows = 0;
            for (int other = row; other < last; other++)
                if (story_cell_matches(item, other, now->at, m->end) == size) rows |= UINT32_C(1) << other;
            done |= rows;
            if (refer(&next, item->reg, rows)) match_line(m, line, outer, next);
        }
    }
}

static void match_line(struct matcher *m, const char *line, const struct rest *outer, struct match now) {
    for (;;) {
        struct story_item item = story_item_next(m->g, &line);
        switch (item.kind) {
        case ITEM_END:
            if (!outer) {
                add_match(m, &now);
                return;
            }
            line = outer->line;
            outer = outer->outer;
            break;
        case ITEM_TEXT:
            if (item.size > m->end - now.at || memcmp(item.text, now.at, (size_t)item.size) != 0) return;
            now.at += item.size;
            break;
        case ITEM_PHRASE:;
            struct rest rest = {line, outer};
            for (int i = 0; i < item.phrase->count; i++)
                match_line(m, item.phrase->lines[i].text, &rest, now);
            return;
        case ITEM_COPY:
            now.here[item.reg] = now.here[item.other];
            now.view.story[item.reg] = now.view.story[item.other];
            break;
        default:
            match_cells(m, &item, line, outer, &now);
            return;
        }
    }
}

/* --- candidates --- */

/* Matches the sentence against the lines of a beat, and of the beats that can be reached without text. */
static void match_beat(struct matcher *m, int beat, const struct view *view, const char *sentence) {
    if (beat == STORY_END) return;
    const struct story_choice *choice = &m->g->beats[beat];
    for (int i = 0; i < choice->count; i++) {
        const struct story_line *line = &choice->lines[i];
        if (*line->text == '\0') {
            match_beat(m, line->next, view, sentence);
            continue;
        }
        struct match now = {.view = *view, .at = sentence};
        now.view.beat = line->next;
        memset(now.here, 0xff, sizeof now.here);
        match_line(m, line->text, NULL, now);
    }
}

/* What a line sets is unknown when it could not be read. */
static void forget_line(const struct story_grammar *g, const char *line, struct view *view) {
    for (;;) {
        struct story_item item = story_item_next(g, &line);
        if (item.kind == ITEM_END) return;
        if ((item.kind == ITEM_CHOOSE && item.reg >= 0) || item.kind == ITEM_COPY)
            view->story[item.reg] = UNKNOWN;
        for (int i = 0; item.kind == ITEM_PHRASE && i < item.phrase->count; i++)
            forget_line(g, item.phrase->lines[i].text, view);
    }
}

/* After an unreadable sentence the story may be past any line of the beat, or still before them. */
static void skip_beat(struct views *after, const struct story_grammar *g, int beat, const struct view *view) {
    if (beat == STORY_END) return;
    for (int i = 0; i < g->beats[beat].count; i++) {
        const struct story_line *line = &g->beats[beat].lines[i];
        if (*line->text == '\0') {
            skip_beat(after, g, line->next, view);
            continue;
        }
        struct view next = *view;
        next.beat = line->next;
        forget_line(g, line->text, &next);
        add_view(after, &next);
    }
}

/* --- reading on --- */

static void first_view(struct views *s) {
    struct view v = {.beat = STORY_START};
    memset(v.story, 0xff, sizeof v.story);
    s->count = 0;
    add_view(s, &v);
}

/* Judges one sentence and replaces *now by the views after it. *after is memory for them. */
static void read_sentence(struct story_grade *grade, const struct story_grammar *g, struct views *now,
                          struct views *after, const char *p, const char *end) {
    struct matcher m = {.g = g, .end = end, .best = after};
    after->count = 0;
    grade->sentences++;
    for (int i = 0; i < now->count; i++) match_beat(&m, now->v[i].beat, &now->v[i], p);
    bool in_place = after->count > 0;
    for (int i = 0; i < now->count && !in_place; i++) {
        for (int beat = 0; beat < g->beat_count; beat++) match_beat(&m, beat, &now->v[i], p);
        if (after->count == 0) break; /* what one view cannot read anywhere, no view can */
    }
    if (after->count > 0) {
        grade->grammatical++;
        grade->in_place += in_place;
        grade->references += m.references;
        grade->references_ok += m.references - m.wrong;
    } else {
        for (int i = 0; i < now->count; i++) skip_beat(after, g, now->v[i].beat, &now->v[i]);
        for (int i = 0; i < now->count; i++) add_view(after, &now->v[i]);
    }
}

struct story_grade story_grammar_grade(const struct story_grammar *g, const char *text, int64_t size) {
    struct story_grade grade = {0};
    struct views now = {0}, after = {0};
    const char *p = text, *end = text + size;
    first_view(&now);
    while (p < end) {
        if (is_space(*p)) {
            p++;
            continue;
        }
        if (at_marker(p, end)) {
            p += sizeof marker - 1;
            first_view(&now);
            continue;
        }
        bool complete;
        const char *stop = sentence_end(p, end, &complete);
        if (complete) {
            read_sentence(&grade, g, &now, &after, p, stop);
            struct views swap = now;
            now = after;
            after = swap;
        }
        p = stop;
    }
    free(now.v);
    free(after.v);
    return grade;
}

struct story_grade story_grade(const char *text, int64_t size) {
    return story_grammar_grade(&story_grammar, text, size);
}
