/* A list of facts is one string, so that a single broadcast carries it. */
#include "llmc/process/rank_facts.h"

#include "llmc/base/options_value.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void append(struct rank_facts *a, const char *text) {
    int64_t n = (int64_t)strlen(text) + 1;
    a->facts = (char *)xrealloc(a->facts, (size_t)(a->size + n));
    memcpy(a->facts + a->size, text, (size_t)n);
    a->size += n;
}

void rank_facts_add(struct rank_facts *a, const char *name, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *value = xvasprintf(fmt, ap);
    va_end(ap);
    append(a, name);
    append(a, value);
    free(value);
}

static bool in_list(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *p = list; *p; p += strcspn(p, "|"), p += *p == '|')
        if (strcspn(p, "|") == n && memcmp(p, name, n) == 0) return true;
    return false;
}

void rank_facts_add_options(struct rank_facts *a, const struct options *o, const char *but) {
    for (int i = 0; i < o->count; i++) {
        const struct option_row *row = o->state[i].row;
        if (in_list(but, row->name)) continue;
        union option_value v;
        option_value_load(row, (const char *)o->config + o->state[i].offset, &v);
        char *value = option_value_to_text(row, &v), *name = xasprintf("--%s", row->name);
        rank_facts_add(a, name, "%s", value);
        free(name);
        free(value);
    }
}

void rank_facts_free(struct rank_facts *a) {
    free(a->facts);
    *a = (struct rank_facts){0};
}

/* Moves *at behind the next text and returns it; NULL at the end. */
static const char *next_text(const struct rank_facts *a, int64_t *at) {
    if (*at >= a->size) return NULL;
    const char *text = a->facts + *at;
    *at += (int64_t)strlen(text) + 1;
    return text;
}

bool rank_facts_compare(const struct rank_facts *mine, const struct rank_facts *zero, struct error *err) {
    int64_t i = 0, k = 0;
    for (;;) {
        const char *name = next_text(mine, &i), *value = next_text(mine, &i);
        const char *name0 = next_text(zero, &k), *value0 = next_text(zero, &k);
        if (!name && !name0) return true;
        if (!name || !name0 || strcmp(name, name0) != 0)
            return fail(err, "has %s where rank 0 has %s: these are different versions of the program",
                        name ? name : "nothing", name0 ? name0 : "nothing");
        if (strcmp(value, value0) != 0)
            return fail(err, "%s is %s, rank 0 has %s", name, option_show(value).text,
                        option_show(value0).text);
    }
}

bool rank_facts_equal_rank_0(const struct rank_facts *a, struct group *g, struct error *err) {
    struct rank_facts zero = {NULL, a->size};
    group_broadcast(g, &zero.size, sizeof zero.size, 0);
    zero.facts = (char *)xmalloc((size_t)zero.size + 1);
    if (g->rank == 0) memcpy(zero.facts, a->facts, (size_t)a->size);
    group_broadcast(g, zero.facts, (size_t)zero.size, 0);
    zero.facts[zero.size] = '\0';
    bool same = rank_facts_compare(a, &zero, err);
    rank_facts_free(&zero);
    return same;
}
