/* The manual page and the completions of a program, from its option tables: see about.h. */
#include "llmc/cli/about.h"

#include "llmc/base/build.h"
#include "llmc/base/options_value.h"

#include <stdio.h>
#include <string.h>

static const struct option_row *row_of(const struct option_group *group, size_t i) {
    size_t stride = group->stride ? group->stride : sizeof(struct option_row);
    return (const struct option_row *)(const void *)((const char *)group->rows + i * stride);
}

#define FOR_EACH_ROW(row, options)                                                                           \
    for (size_t g_ = 0; g_ < (options)->group_count; g_++)                                                   \
        for (size_t r_ = 0; r_ < (options)->groups[g_].count; r_++)                                          \
            for (const struct option_row *row = row_of(&(options)->groups[g_], r_); row; row = NULL)

static bool names_files(const char *placeholder) {
    static const char *const words[] = {"FILE", "DIR", "PATH", "GLOB", "INPUT", "JSON", "LIST"};
    for (size_t i = 0; placeholder && i < ARRAY_LENGTH(words); i++)
        if (strstr(placeholder, words[i])) return true;
    return false;
}

/* --- the manual page, in the macros of man(7) --- */

static void roff(const char *text) {
    bool line_begins = true;
    for (; *text; text++) {
        if (line_begins && (*text == '.' || *text == '\'')) fputs("\\&", stdout);
        line_begins = *text == '\n';
        if (*text == '\\')
            fputs("\\e", stdout);
        else if (*text == '-')
            fputs("\\-", stdout);
        else
            putchar(*text);
    }
}

static void man_option(const struct option_row *row) {
    bool negatable = option_negatable(row);
    printf(".TP\n\\fB\\-\\-%s", negatable ? "[no\\-]" : "");
    roff(row->name);
    printf("\\fR");
    if (!negatable) {
        printf(" \\fI");
        roff(row->placeholder ? row->placeholder : row->words);
        printf("\\fR");
    }
    putchar('\n');
    roff(row->help);
    if (row->initial && row->initial[0]) {
        printf(" [");
        roff(row->initial);
        printf("]");
    }
    puts(row->flags & OPTION_REQUIRED ? " (required)" : "");
}

/* The usage without the program's name, which is the one it is called by. */
static void man_usage(const char *program, const char *usage) {
    printf(".B ");
    roff(program);
    printf("\n");
    usage += strcspn(usage, " ");
    roff(usage + strspn(usage, " "));
    printf("\n");
}

static void man_command(const char *program, const struct about_command *command) {
    const struct option_command *options = command->options;
    if (command->name) {
        printf(".SH COMMAND %s\n", command->name);
        man_usage(program, options->usage);
        printf(".PP\n");
    } else {
        printf(".SH OPTIONS\n");
    }
    if (options->intro) {
        roff(options->intro);
        putchar('\n');
    }
    for (size_t g = 0; g < options->group_count; g++) {
        printf(".SS \"%s\"\n", options->groups[g].heading);
        for (size_t r = 0; r < options->groups[g].count; r++) man_option(row_of(&options->groups[g], r));
    }
}

void about_man(const struct about *about, const char *program) {
    printf(".TH \"%s\" 1 \"\" \"%s %s\"\n.SH NAME\n", program, program, build_version);
    roff(program);
    printf(" \\- ");
    roff(about->purpose);
    printf("\n.SH SYNOPSIS\n");
    man_usage(program, about->commands[0].options->usage);
    for (size_t i = 1; i < about->count; i++) {
        printf(".br\n");
        man_usage(program, about->commands[i].options->usage);
    }
    printf(".SH DESCRIPTION\n");
    for (size_t i = 0; i < about->count && about->commands[i].name; i++) {
        printf(".TP\n.B %s\n", about->commands[i].name);
        roff(about->commands[i].help);
        putchar('\n');
    }
    printf(".PP\n%s also has\n.BR \\-\\-help ,\nand\n.B \\-\\-config\n.IR FILE :\n"
           "a JSON object with the names of options; the command line wins.\n",
           about->commands[0].name ? "Every command" : "The program");
    for (size_t i = 0; i < about->count; i++) man_command(program, &about->commands[i]);
    printf(".SH EXIT STATUS\n0: done. 1: failed. 2: wrong arguments. 128+N: ended by signal N.\n");
}

/* --- bash --- */

static void bash_patterns(const struct about_command *c, const char *action,
                          bool (*is)(const struct option_row *)) {
    bool any = false;
    FOR_EACH_ROW(row, c->options)
    if (is(row)) {
        printf("%s%s:--%s", any ? " | " : "    ", c->name ? c->name : "", row->name);
        any = true;
    }
    if (any) printf(") %s ;;\n", action);
}
static bool takes_file(const struct option_row *row) {
    return !option_negatable(row) && !row->words && names_files(row->placeholder);
}
static bool takes_other(const struct option_row *row) {
    return !option_negatable(row) && !row->words && !names_files(row->placeholder);
}

static void bash_words(const char *words) {
    for (; *words; words++) putchar(*words == '|' ? ' ' : *words);
}

void about_bash(const struct about *about, const char *program) {
    const char *first = about->commands[0].name;
    printf("# bash completion of %s %s, from its option tables\n_%s() {\n", program, build_version, program);
    printf(
        "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} words= files=\n"
        "    if [[ $current == = ]]; then current=\n"
        "    elif [[ $previous == = ]]; then previous=${COMP_WORDS[COMP_CWORD - 2]}; fi\n"
        "    local command=%s\n",
        first ? "${COMP_WORDS[1]}" : "");
    if (first) printf("    if [[ $command == -* || $COMP_CWORD -eq 1 ]]; then command=%s; fi\n", first);
    printf("    case $command:$previous in\n");
    for (size_t i = 0; i < about->count; i++) {
        const struct about_command *c = &about->commands[i];
        FOR_EACH_ROW(row, c->options)
        if (row->words && !option_negatable(row)) {
            printf("    %s:--%s) words='", c->name ? c->name : "", row->name);
            bash_words(row->words);
            printf("' ;;\n");
        }
        bash_patterns(c, "files=1", takes_file);
        bash_patterns(c, "return", takes_other);
    }
    printf(
        "    *:--config) files=1 ;;\n    esac\n    if [[ -z $words$files ]]; then\n        case $command in\n");
    for (size_t i = 0; i < about->count; i++) {
        const struct about_command *c = &about->commands[i];
        printf("        %s) words='--help --config", c->name ? c->name : "''");
        FOR_EACH_ROW(row, c->options) {
            printf(" --%s", row->name);
            if (option_negatable(row)) printf(" --no-%s", row->name);
        }
        printf("'%s ;;\n", c->options->positional ? " files=1" : "");
    }
    if (first) {
        printf("        help) words='");
        for (size_t i = 0; i < about->count; i++) printf("%s%s", i ? " " : "", about->commands[i].name);
        printf("' ;;\n");
    }
    printf("        esac\n");
    if (first) {
        printf("        if [[ $COMP_CWORD -eq 1 ]]; then words+=' help --version");
        for (size_t i = 0; i < about->count; i++) printf(" %s", about->commands[i].name);
        printf("'; fi\n");
    }
    printf("    fi\n    COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
           "    if [[ $files && $current != -* ]]; then\n"
           "        compopt -o filenames\n        COMPREPLY+=($(compgen -f -- \"$current\"))\n    fi\n}\n"
           "complete -F _%s %s\n",
           program, program);
}

/* --- zsh --- */

/* Inside '...', and inside the brackets of an option of _arguments. */
static void zsh_text(const char *text) {
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else if (strchr("[]:\\", *text))
            printf("\\%c", *text);
        else
            putchar(*text);
    }
}

static void zsh_option(const struct option_row *row) {
    bool negatable = option_negatable(row);
    printf("        '--%s%s[", row->name, negatable ? "" : "=");
    zsh_text(row->help);
    printf("]");
    if (!negatable) {
        printf(":");
        zsh_text(row->placeholder ? row->placeholder : "word");
        if (row->words) {
            printf(":(");
            bash_words(row->words);
            printf(")");
        } else {
            printf(names_files(row->placeholder) ? ":_files" : ": ");
        }
    }
    printf("'\n");
    if (negatable) printf("        '--no-%s[--%s=false]'\n", row->name, row->name);
}

void about_zsh(const struct about *about, const char *program) {
    bool commands = about->commands[0].name != NULL;
    printf("#compdef %s\n# zsh completion of %s %s, from its option tables\nlocal -a options commands\n",
           program, program, build_version);
    if (commands) {
        printf("commands=(\n");
        for (size_t i = 0; i < about->count; i++) {
            printf("    '%s:", about->commands[i].name);
            zsh_text(about->commands[i].help);
            printf("'\n");
        }
        printf("    'help:lists the options of a command'\n)\n"
               "if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then\n"
               "    _describe command commands\n    return\nfi\nlocal command=$words[2]\n"
               "if [[ $command == -* ]]; then command=%s; else shift words; (( CURRENT-- )); fi\n"
               "case $command in\n",
               about->commands[0].name);
    }
    for (size_t i = 0; i < about->count; i++) {
        const struct about_command *c = &about->commands[i];
        if (commands) printf("%s)\n", c->name);
        printf("    options=(\n");
        FOR_EACH_ROW(row, c->options) zsh_option(row);
        if (c->options->positional) printf("        '*:%s:_files'\n", c->options->positional);
        printf("    )%s\n", commands ? " ;;" : "");
    }
    if (commands) printf("help) _describe command commands; return ;;\nesac\n");
    printf(
        "_arguments $options '--config=[JSON file with options]:FILE:_files' '(- *)--help[lists the options]'\n");
}
