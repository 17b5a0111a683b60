/* Stories from a grammar: their text, the exact probability of a text, and the entropy of all stories.
 * stories_grammar.c holds the grammar, stories_grammar.h explains its notation.
 *
 * The probability of a text is computed by following all derivations at once, from left to right, and
 * adding up those that reach the same state. The entropy is one pass over the beats from the last to the
 * first. Lines are interpreted as they stand, without a compiled form, so there is nothing to set up. */
#include "llmc/stories/stories_grammar.h"

#include "llmc/base/rng.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- reading a line --- */

static bool same_word(const char *word, const char *p, size_t size) {
    return strncmp(word, p, size) == 0 && word[size] == '\0';
}

static size_t word_size(const char *p) {
    size_t n = 0;
    while (p[n] >= 'A' && p[n] != '|' && p[n] != '}') n++;
    return n;
}

static const struct story_table *register_table(const struct story_grammar *g, int reg) {
    check(reg >= 0 && reg < STORY_REGISTERS && g->register_table[reg] > 0,
          "story grammar: there is no register '%c'", reg + 'a');
    return &g->tables[g->register_table[reg] - 1];
}

/* p is at ".him" or ".Him"; anything else means the first column. Returns the end. */
static const char *read_column(struct story_item *item, const char *p) {
    item->column = 0;
    if (*p != '.') return p;
    size_t size = word_size(++p);
    item->capital = isupper((unsigned char)*p);
    int column = 0;
    for (const char *c = item->table->columns; *c != '\0'; column++) {
        size_t n = strcspn(c, "|");
        if (n == size && tolower((unsigned char)*c) == tolower((unsigned char)*p) &&
            memcmp(c + 1, p + 1, n - 1) == 0) {
            item->column = column;
            return p + size;
        }
        c += n + (c[n] == '|');
    }
    die("story grammar: no column '%.*s' among '%s'", (int)size, p, item->table->columns);
}

/* p is at the name of a phrase or of a list. Returns the end. */
static const char *read_name(struct story_item *item, const struct story_grammar *g, const char *p) {
    size_t size = word_size(p);
    for (int i = 0; i < g->list_count; i++)
        if (same_word(g->lists[i].name, p, size)) {
            item->kind = ITEM_CHOOSE;
            item->table = &g->tables[g->lists[i].table];
            item->first = g->lists[i].first;
            item->count = g->lists[i].count;
            return p + size;
        }
    for (int i = 0; i < g->phrase_count; i++)
        if (same_word(g->phrases[i].name, p, size)) {
            item->kind = ITEM_PHRASE;
            item->phrase = &g->phrases[i];
            return p + size;
        }
    die("story grammar: no phrase or list '%.*s'", (int)size, p);
}

struct story_item story_item_next(const struct story_grammar *g, const char **at) {
    const char *p = *at;
    struct story_item item = {.kind = ITEM_TEXT, .reg = -1, .text = p, .exclude = ""};
    if (*p == '\0') {
        item.kind = ITEM_END;
        return item;
    }
    if (*p != '{') {
        item.size = (int)strcspn(p, "{");
        *at = p + item.size;
        return item;
    }
    p++;
    if (word_size(p) > 1) {
        p = read_name(&item, g, p);
    } else {
        item.reg = *p++ - 'a';
        item.table = register_table(g, item.reg);
        if (*p == '=') {
            p = read_name(&item, g, p + 1);
            check(item.kind == ITEM_CHOOSE && item.table == register_table(g, item.reg),
                  "story grammar: register and list do not belong to one table in '%s'", *at);
        } else if (*p == '-' || *p == ':') {
            item.kind = *p == '-' ? ITEM_MINUS : ITEM_COPY;
            item.other = p[1] - 'a';
            check(item.table == register_table(g, item.other),
                  "story grammar: registers of two tables in '%s'", *at);
            p += 2;
        } else {
            item.kind = ITEM_REFER;
        }
    }
    if (item.kind == ITEM_CHOOSE && *p == '!') {
        item.exclude = ++p;
        p += word_size(p);
    }
    if (item.kind == ITEM_CHOOSE || item.kind == ITEM_REFER) p = read_column(&item, p);
    check(*p == '}', "story grammar: expected '}' in '%s'", *at);
    *at = p + 1;
    return item;
}

int story_total_weight(const struct story_choice *choice) {
    int total = 0;
    for (int i = 0; i < choice->count; i++) total += choice->lines[i].weight;
    return total;
}

/* --- tables --- */

const char *story_cell(const struct story_item *item, int row, int *size) {
    const char *p = item->table->rows[row];
    for (int column = item->column; column > 0; column--) {
        p += strcspn(p, "|");
        check(*p == '|', "story grammar: too few columns in '%s'", item->table->rows[row]);
        p++;
    }
    *size = (int)strcspn(p, "|");
    return p;
}

int story_cell_matches(const struct story_item *item, int row, const char *p, const char *end) {
    int size;
    const char *c = story_cell(item, row, &size);
    if (size > end - p || size == 0) return -1;
    if (item->capital ? toupper((unsigned char)*c) != *p : *c != *p) return -1;
    return memcmp(c + 1, p + 1, (size_t)size - 1) == 0 ? size : -1;
}

/* What decides how a story goes on. */
struct state {
    int16_t beat;
    int8_t reg[STORY_REGISTERS]; /* rows; -1: nothing remembered */
};

static struct state start_state(void) {
    struct state s = {.beat = STORY_START};
    memset(s.reg, -1, sizeof s.reg);
    return s;
}

static int remembered(const struct state *s, int reg) {
    check(s->reg[reg] >= 0, "story grammar: a line uses register '%c' before a line sets it", reg + 'a');
    return s->reg[reg];
}

static bool excluded(const struct story_item *item, const struct state *s, int row) {
    int reg;
    for (const char *e = item->exclude; story_excludes_next(&e, &reg);)
        if (s->reg[reg] == row) return true;
    return false;
}

/* The number of rows that a choice has. The entropy relies on each exclusion removing one row. */
static int choice_count(const struct story_item *item, const struct state *s) {
    int count = item->count, reg;
    for (const char *e = item->exclude; story_excludes_next(&e, &reg); count--) {
        int row = remembered(s, reg);
        check(row >= item->first && row < item->first + item->count,
              "story grammar: '%c' is excluded from a list that does not have its row", reg + 'a');
    }
    return count;
}

static int difference(const struct story_item *item, const struct state *s) {
    int row = remembered(s, item->reg) - remembered(s, item->other) - 1;
    check(row >= 0, "story grammar: a difference below one");
    return row;
}

/* --- writing --- */

struct story_writer {
    const struct story_grammar *g;
    struct story_source *source;
    struct story_trace *trace;
    struct state state;
    char *text;
    size_t size, capacity;
};

static void put(struct story_writer *w, const char *p, int size) {
    if (w->size + (size_t)size + 1 > w->capacity) {
        w->capacity = 2 * (w->capacity + (size_t)size);
        w->text = xrealloc(w->text, w->capacity);
    }
    memcpy(w->text + w->size, p, (size_t)size);
    w->size += (size_t)size;
}

static void put_cell(struct story_writer *w, const struct story_item *item, int row) {
    int size;
    const char *p = story_cell(item, row, &size);
    put(w, p, size);
    if (item->capital) w->text[w->size - (size_t)size] = (char)toupper((unsigned char)*p);
}

static int draw(struct story_writer *w, int total) {
    uint32_t r = w->source->below(w->source, (uint32_t)total);
    check(r < (uint32_t)total, "story source: drew %u, expected less than %d", r, total);
    return (int)r;
}

static const struct story_line *draw_line(struct story_writer *w, const struct story_choice *choice) {
    int total = story_total_weight(choice), r = draw(w, total);
    const struct story_line *line = choice->lines;
    while (r >= line->weight) r -= line++->weight;
    if (w->trace) {
        w->trace->log_probability += log((double)line->weight / total);
        if (w->trace->line) w->trace->line(w->trace->context, line);
    }
    return line;
}

static void put_reference(struct story_writer *w, const struct story_item *item, int row) {
    struct story_trace *t = w->trace;
    if (t) t->references++;
    if (t && t->reference) t->reference(t->context, (int64_t)w->size, item, row);
    put_cell(w, item, row);
}

static void put_choice(struct story_writer *w, const struct story_item *item) {
    int count = choice_count(item, &w->state), nth = draw(w, count), row = item->first;
    while (excluded(item, &w->state, row) || nth-- > 0) row++;
    if (w->trace) w->trace->log_probability -= log(count);
    if (w->trace && w->trace->choice) w->trace->choice(w->trace->context, (int64_t)w->size, item, row);
    put_cell(w, item, row);
    if (item->reg >= 0) w->state.reg[item->reg] = (int8_t)row;
}

static void write_line(struct story_writer *w, const char *at) {
    for (;;) {
        struct story_item item = story_item_next(w->g, &at);
        switch (item.kind) {
        case ITEM_END:
            return;
        case ITEM_TEXT:
            put(w, item.text, item.size);
            break;
        case ITEM_PHRASE:
            write_line(w, draw_line(w, item.phrase)->text);
            break;
        case ITEM_CHOOSE:
            put_choice(w, &item);
            break;
        case ITEM_REFER:
            put_reference(w, &item, remembered(&w->state, item.reg));
            break;
        case ITEM_MINUS:
            put_reference(w, &item, difference(&item, &w->state));
            break;
        case ITEM_COPY:
            w->state.reg[item.reg] = (int8_t)remembered(&w->state, item.other);
            break;
        }
    }
}

char *story_generate(const struct story_grammar *g, struct story_source *source, struct story_trace *trace) {
    struct story_writer w = {.g = g, .source = source, .trace = trace, .state = start_state()};
    w.text = xmalloc(w.capacity = 1024);
    while (w.state.beat != STORY_END) {
        const struct story_line *line = draw_line(&w, &g->beats[w.state.beat]);
        if (*line->text != '\0') {
            if (w.size > 0) put(&w, " ", 1);
            write_line(&w, line->text);
            if (trace) trace->sentences++;
        }
        w.state.beat = (int16_t)line->next;
    }
    w.text[w.size] = '\0';
    return w.text;
}

/* --- random choices --- */

struct random_source {
    struct story_source source;
    uint64_t seed, index;
    uint32_t drawn;
    struct rng4 block;
};

/* Scaling 32 random bits favours some results by at most total / 2^32, which no test or model could
 * notice. */
static uint32_t random_below(struct story_source *source, uint32_t total) {
    struct random_source *r = (struct random_source *)source;
    uint32_t k = r->drawn++;
    if (k % 4 == 0) r->block = rng_philox(r->seed, RNG_STORIES + ((uint64_t)(k / 4) << 8), r->index);
    return (uint32_t)((uint64_t)r->block.v[k % 4] * total >> 32);
}

char *story_make_traced(uint64_t seed, uint64_t index, struct story_trace *trace) {
    struct random_source r = {.source = {random_below}, .seed = seed, .index = index};
    return story_generate(&story_grammar, &r.source, trace);
}

char *story_make(uint64_t seed, uint64_t index) { return story_make_traced(seed, index, NULL); }

/* --- probability --- */

/* A state after reading the text up to `at`, with the probability of all derivations that lead to it. */
struct reading {
    const char *at;
    double probability;
    struct state state;
};
struct parser {
    const struct story_grammar *g;
    const char *end;
    struct reading *readings;
    int count, capacity;
    double probability; /* of readings that reached the end of both text and story */
};
/* Where to go on after a phrase. */
struct rest {
    const char *line;
    const struct rest *outer;
};

static void add_reading(struct parser *p, const struct reading *r) {
    if (r->state.beat == STORY_END) {
        if (r->at == p->end) p->probability += r->probability;
        return;
    }
    struct reading next = *r;
    if (next.at == p->end || *next.at++ != ' ') return;
    for (int i = 0; i < p->count; i++) {
        struct reading *o = &p->readings[i];
        if (o->at == next.at && o->state.beat == next.state.beat &&
            memcmp(o->state.reg, next.state.reg, sizeof next.state.reg) == 0) {
            o->probability += next.probability;
            return;
        }
    }
    if (p->count == p->capacity)
        p->readings = xrealloc(p->readings, (size_t)(p->capacity = 2 * p->capacity + 8) * sizeof next);
    p->readings[p->count++] = next;
}

/* Follows every derivation of the line that spells the text; each success is a new reading. */
static void read_line(struct parser *p, const char *line, const struct rest *outer, struct reading r) {
    for (;;) {
        struct story_item item = story_item_next(p->g, &line);
        int size;
        switch (item.kind) {
        case ITEM_END:
            if (!outer) {
                add_reading(p, &r);
                return;
            }
            line = outer->line;
            outer = outer->outer;
            continue;
        case ITEM_TEXT:
            if (item.size > p->end - r.at || memcmp(item.text, r.at, (size_t)item.size) != 0) return;
            r.at += item.size;
            continue;
        case ITEM_PHRASE:;
            struct rest rest = {line, outer};
            int total = story_total_weight(item.phrase);
            for (int i = 0; i < item.phrase->count; i++) {
                struct reading choice = r;
                choice.probability *= (double)item.phrase->lines[i].weight / total;
                read_line(p, item.phrase->lines[i].text, &rest, choice);
            }
            return;
        case ITEM_CHOOSE:;
            int count = choice_count(&item, &r.state);
            for (int row = item.first; row < item.first + item.count; row++) {
                if ((size = story_cell_matches(&item, row, r.at, p->end)) < 0) continue;
                if (excluded(&item, &r.state, row)) continue;
                struct reading choice = r;
                choice.at += size;
                choice.probability /= count;
                if (item.reg >= 0) choice.state.reg[item.reg] = (int8_t)row;
                read_line(p, line, outer, choice);
            }
            return;
        case ITEM_REFER:
        case ITEM_MINUS:
            size = item.kind == ITEM_REFER ? remembered(&r.state, item.reg) : difference(&item, &r.state);
            if ((size = story_cell_matches(&item, size, r.at, p->end)) < 0) return;
            r.at += size;
            continue;
        case ITEM_COPY:
            r.state.reg[item.reg] = (int8_t)remembered(&r.state, item.other);
            continue;
        }
    }
}

static void read_beat(struct parser *p, int beat, const struct reading *r) {
    const struct story_choice *choice = &p->g->beats[beat];
    int total = story_total_weight(choice);
    for (int i = 0; i < choice->count; i++) {
        const struct story_line *line = &choice->lines[i];
        struct reading next = *r;
        next.probability *= (double)line->weight / total;
        next.state.beat = (int16_t)line->next;
        if (*line->text != '\0')
            read_line(p, line->text, NULL, next);
        else
            read_beat(p, line->next, &next);
    }
}

double story_grammar_log_probability(const struct story_grammar *g, const char *text, int64_t size) {
    if (size <= 0) return -INFINITY;
    struct parser p = {.g = g, .end = text + size};
    struct reading r = {.at = text, .probability = 1, .state = start_state()};
    read_beat(&p, r.state.beat, &r);
    /* Readings are continued from the left, so that all that lead to one state have been added up by
     * then. */
    while (p.count > 0) {
        int left = 0;
        for (int i = 1; i < p.count; i++)
            if (p.readings[i].at < p.readings[left].at) left = i;
        r = p.readings[left];
        p.readings[left] = p.readings[--p.count];
        read_beat(&p, r.state.beat, &r);
    }
    free(p.readings);
    return log(p.probability);
}

double story_log_probability(const char *text, int64_t size) {
    return story_grammar_log_probability(&story_grammar, text, size);
}

/* --- entropy --- */

/* Every choice has the same entropy whatever the registers hold, since an exclusion removes exactly one
 * row; so entropies add up. This is the entropy of the derivations. It equals that of the texts because no
 * text has two derivations, which a test checks. */
static double line_entropy(const struct story_grammar *g, const char *line);

static double choice_entropy(const struct story_grammar *g, const struct story_choice *choice,
                             const double *after) {
    double h = 0, total = story_total_weight(choice);
    for (int i = 0; i < choice->count; i++) {
        const struct story_line *line = &choice->lines[i];
        double p = line->weight / total;
        h += p * (line_entropy(g, line->text) - log(p));
        if (after && line->next != STORY_END) h += p * after[line->next];
    }
    return h;
}

static double line_entropy(const struct story_grammar *g, const char *line) {
    double h = 0;
    for (;;) {
        struct story_item item = story_item_next(g, &line);
        if (item.kind == ITEM_END) return h;
        if (item.kind == ITEM_PHRASE) h += choice_entropy(g, item.phrase, NULL);
        if (item.kind == ITEM_CHOOSE) {
            int count = item.count, reg;
            for (const char *e = item.exclude; story_excludes_next(&e, &reg);) count--;
            h += log(count);
        }
    }
}

double story_grammar_entropy(const struct story_grammar *g) {
    /* Only later beats follow a beat, so one pass from the last to the first is enough. */
    double *after = xcalloc((size_t)g->beat_count, sizeof *after);
    for (int beat = g->beat_count - 1; beat >= 0; beat--) {
        for (int i = 0; i < g->beats[beat].count; i++) {
            int next = g->beats[beat].lines[i].next;
            check(
                next == STORY_END ? *g->beats[beat].lines[i].text != '\0'
                                  : next > beat && next < g->beat_count,
                "story grammar: beat '%s' ends without text, or is followed by one that does not come later",
                g->beats[beat].name);
        }
        after[beat] = choice_entropy(g, &g->beats[beat], after);
    }
    double h = after[STORY_START];
    free(after);
    return h;
}

double story_entropy(void) { return story_grammar_entropy(&story_grammar); }
