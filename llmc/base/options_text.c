/* Prints the option table: as --help, and as the list of values in effect. Both are columns whose widths
 * follow from the longest entries; help texts wrap inside theirs. A narrow page has no room for columns:
 * there a help text stands below its option. */
#include "llmc/base/console.h"
#include "llmc/base/options_value.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NARROW            72 /* columns below which help texts stand below their options */
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

/* What the value was before, and who has changed it: "  (default 4, from the stored run)". "" if the user
 * gave a value to what has no default. */
static char *change_text(const struct option_state *state, const char *initial) {
    static const char *const origin[] = {"chosen by the program", "from the stored run",
                                         "from the configuration file", ""};
    const char *from = origin[state->source], *row_initial = state->row->initial;
    if (row_initial && strcmp(row_initial, "auto") != 0)
        return xasprintf("  (default %s%s%s)", initial, *from ? ", " : "", from);
    return *from ? xasprintf("  (%s)", from) : xstrdup("");
}

/* --- help --- */

struct page {
    FILE *out;
    int width, name_width, initial_width; /* of the page, and of its columns */
};

/* One entry: name | help, wrapped | default at the right edge of the page. */
static void print_entry(const struct page *page, const char *name, const char *help, const char *initial) {
    int help_column = 2 + page->name_width + 2;
    int help_width = page->width - help_column - (page->initial_width ? 2 + page->initial_width : 0);
    int column = fprintf(page->out, "  %s", name);
    bool first = true;
    if (column + 2 > help_column) {
        fputc('\n', page->out);
        column = 0;
    }
    while (*help || first) {
        const char *line = help;
        int n = take_words(&help, help_width);
        fprintf(page->out, "%*s%.*s", help_column - column, "", n, line);
        if (first && *initial) fprintf(page->out, "%*s", page->width - help_column - n, initial);
        fputc('\n', page->out);
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

static void print_paragraphs(const struct page *page, const char *text) {
    for (const char *end; (end = strchr(text, '\n')) != NULL; text = end + 1) {
        char *paragraph = xasprintf("%.*s", (int)(end - text), text);
        print_wrapped(page->out, page->width, 4, paragraph);
        free(paragraph);
    }
}

static void choose_widths(struct page *page, const struct options *o) {
    bool narrow = page->width < NARROW;
    page->name_width = narrow ? 2 : (int)strlen("--config FILE");
    page->initial_width = 0;
    for (int i = 0; i < o->count && !narrow; i++) {
        const struct option_row *row = o->state[i].row;
        char *name = entry_name(row);
        page->name_width = bounded_length(name, NAME_WIDTH_MAX, page->name_width);
        if (row->initial)
            page->initial_width = bounded_length(row->initial, INITIAL_WIDTH_MAX - 2, page->initial_width);
        free(name);
    }
    if (!narrow) page->initial_width += 2; /* brackets */
}

static void print_option(const struct page *page, const struct option_row *row) {
    bool shown = row->initial && row->initial[0],
         fits = shown && (int)strlen(row->initial) + 2 <= page->initial_width;
    char *initial = fits ? xasprintf("[%s]", row->initial) : xstrdup(""), *name = entry_name(row), *help;
    if (shown && !fits)
        help = xasprintf("%s [%s]", row->help, row->initial);
    else
        help = xasprintf("%s%s", row->help, row->flags & OPTION_REQUIRED ? " (required)" : "");
    print_entry(page, name, help, initial);
    free(initial);
    free(help);
    free(name);
}

char *options_help(const struct options *o, int width) {
    char *text = NULL;
    size_t size = 0;
    struct page page = {.out = open_memstream(&text, &size), .width = width};
    check(page.out, "out of host memory while formatting the help");
    choose_widths(&page, o);
    char *usage = xasprintf("usage: %s", o->command->usage);
    print_wrapped(page.out, width, 7, usage);
    free(usage);
    if (o->command->intro) print_wrapped(page.out, width, 0, o->command->intro);
    int i = 0;
    for (size_t g = 0; g < o->command->group_count; g++) {
        fprintf(page.out, "\n%s\n", o->command->groups[g].heading);
        for (size_t r = 0; r < o->command->groups[g].count; r++) print_option(&page, o->state[i++].row);
    }
    fprintf(page.out, "\nGeneral\n");
    print_entry(&page, "--config FILE",
                "JSON object with these names, e.g. {\"some-option\": 8}; the command line wins", "");
    print_entry(&page, "--help, -h", "this text", "");
    if (o->command->notes) {
        char *notes = o->command->notes();
        fputc('\n', page.out);
        print_paragraphs(&page, notes);
        free(notes);
    }
    check(fclose(page.out) == 0, "out of host memory while formatting the help");
    return text;
}

/* --- effective configuration --- */

char *options_text(const struct options *o, bool all) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    check(out, "out of host memory while formatting the configuration");
    int name_width = 0;
    for (int i = 0; i < o->count; i++) name_width = bounded_length(o->state[i].row->name, 99, name_width);
    int i = 0;
    for (size_t g = 0; g < o->command->group_count; g++) {
        bool headed = false;
        for (size_t r = 0; r < o->command->groups[g].count; r++, i++) {
            const struct option_state *state = &o->state[i];
            char *value = current_text(o, state), *initial = initial_text(state->row),
                 *change = change_text(state, initial);
            bool differs = strcmp(value, initial) != 0;
            if ((all || differs) && !headed) fprintf(out, "%s\n", o->command->groups[g].heading);
            headed = headed || all || differs;
            if (differs)
                fprintf(out, "* %-*s  %-*s%s\n", name_width, state->row->name, *change ? 20 : 0, value,
                        change);
            else if (all)
                fprintf(out, "  %-*s  %s\n", name_width, state->row->name, value);
            free(change);
            free(value);
            free(initial);
        }
    }
    check(fclose(out) == 0, "out of host memory while formatting the configuration");
    return text;
}
