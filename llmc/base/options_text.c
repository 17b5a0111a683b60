/* Prints the option table: as --help, and as the list of values in effect. Both are columns whose widths
 * follow from the longest entries, within a page of 100 columns; help texts wrap inside theirs. */
#include "llmc/base/options_value.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_WIDTH        100
#define NAME_WIDTH_MAX    28 /* longer names put their help on the next line */
#define INITIAL_WIDTH_MAX 16 /* longer defaults follow the help text */

/* --- values as text --- */

static char *current_text(const struct options *o, const struct option_state *state) {
    union option_value v;
    option_value_load(state->row, (const char *)o->config + state->offset, &v);
    return option_value_to_text(state->row, &v);
}

/* The default, spelled as current_text spells values, so that "3e-4" equals 0.0003. */
static char *initial_text(const struct option_row *row) {
    union option_value v = {0};
    struct error err;
    if (row->initial)
        check(option_value_from_text(row, row->initial, &v, row->name, &err), "%s", err.message);
    return option_value_to_text(row, &v);
}

/* --- help --- */

/* Takes as many words from *text as fit into `width` columns, and breaks a single longer word. Returns
 * their length. */
static int take_words(const char **text, int width) {
    const char *s = *text;
    int length = (int)strlen(s), taken = length;
    if (length > width) {
        taken = width;
        while (taken > 0 && s[taken] != ' ') taken--;
        if (taken == 0) taken = width;
    }
    const char *rest = s + taken;
    while (*rest == ' ') rest++;
    *text = rest;
    return taken;
}

/* One entry: name | help, wrapped | default at the right edge of the page. */
static void print_entry(FILE *out, int name_width, int initial_width, const char *name, const char *help,
                        const char *initial) {
    int help_column = 2 + name_width + 2, help_width = PAGE_WIDTH - help_column - 2 - initial_width;
    int column = fprintf(out, "  %s", name);
    bool first = true;
    if (column + 2 > help_column) {
        fputc('\n', out);
        column = 0;
    }
    while (*help || first) {
        const char *line = help;
        int n = take_words(&help, help_width);
        fprintf(out, "%*s%.*s", help_column - column, "", n, line);
        if (first && *initial) fprintf(out, "%*s", PAGE_WIDTH - help_column - n, initial);
        fputc('\n', out);
        column = 0;
        first = false;
    }
}

static char *entry_name(const struct option_row *row) {
    if (option_negatable(row)) return xasprintf("--[no-]%s", row->name);
    return xasprintf("--%s %s", row->name, row->placeholder ? row->placeholder : row->words);
}

static int bounded_length(const char *s, int limit, int least) {
    int n = (int)strlen(s);
    return n <= limit && n > least ? n : least;
}

static void print_wrapped(FILE *out, const char *text) {
    while (*text) {
        const char *line = text;
        int n = take_words(&text, PAGE_WIDTH);
        fprintf(out, "%.*s\n", n, line);
    }
}

char *options_help(const struct options *o) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    check(out, "out of host memory while formatting the help");
    int name_width = (int)strlen("--config FILE"), initial_width = 0;
    for (int i = 0; i < o->count; i++) {
        const struct option_row *row = o->state[i].row;
        char *name = entry_name(row);
        name_width = bounded_length(name, NAME_WIDTH_MAX, name_width);
        if (row->initial) initial_width = bounded_length(row->initial, INITIAL_WIDTH_MAX - 2, initial_width);
        free(name);
    }
    initial_width += 2; /* brackets */
    fprintf(out, "usage: %s\n", o->command->usage);
    if (o->command->intro) print_wrapped(out, o->command->intro);
    int i = 0;
    for (size_t g = 0; g < o->command->group_count; g++) {
        const struct option_group *group = &o->command->groups[g];
        fprintf(out, "\n%s\n", group->heading);
        for (size_t r = 0; r < group->count; r++, i++) {
            const struct option_row *row = o->state[i].row;
            char *initial = NULL, *name = entry_name(row), *help;
            bool shown = row->initial && row->initial[0],
                 fits = shown && (int)strlen(row->initial) + 2 <= initial_width;
            if (fits) initial = xasprintf("[%s]", row->initial);
            if (shown && !fits)
                help = xasprintf("%s [%s]", row->help, row->initial);
            else
                help = xasprintf("%s%s", row->help, row->flags & OPTION_REQUIRED ? " (required)" : "");
            print_entry(out, name_width, initial_width, name, help, initial ? initial : "");
            free(initial);
            free(help);
            free(name);
        }
    }
    fprintf(out, "\nGeneral\n");
    print_entry(out, name_width, initial_width, "--config FILE",
                "JSON object with these names, e.g. {\"some-option\": 8}; the command line wins", "");
    print_entry(out, name_width, initial_width, "--help, -h", "this text", "");
    check(fclose(out) == 0, "out of host memory while formatting the help");
    return text;
}

/* --- effective configuration --- */

char *options_text(const struct options *o) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    check(out, "out of host memory while formatting the configuration");
    int name_width = 0;
    for (int i = 0; i < o->count; i++) name_width = bounded_length(o->state[i].row->name, 99, name_width);
    int i = 0;
    for (size_t g = 0; g < o->command->group_count; g++) {
        fprintf(out, "%s\n", o->command->groups[g].heading);
        for (size_t r = 0; r < o->command->groups[g].count; r++, i++) {
            static const char *const origin[] = {"", ", from the stored run", ", from the configuration file",
                                                 ""};
            const struct option_state *state = &o->state[i];
            char *value = current_text(o, state), *initial = initial_text(state->row);
            bool differs = strcmp(value, initial) != 0;
            fprintf(out, "%c %-*s  ", differs ? '*' : ' ', name_width, state->row->name);
            if (differs)
                fprintf(out, "%-20s  (default %s%s)\n", value, initial, origin[state->source]);
            else
                fprintf(out, "%s\n", value);
            free(value);
            free(initial);
        }
    }
    check(fclose(out) == 0, "out of host memory while formatting the configuration");
    return text;
}
