/* Command-line options as data: a table has one row per option, and parsing, help, configuration files, the
 * printed effective configuration and the stored one are loops over its rows.
 *
 *     struct config {
 *         int64_t batch_size;
 *         enum schedule schedule;
 *     };
 *     static const struct option_row training[] = {
 *         OPT_INT(struct config, batch_size, "batch-size", "4", 1, 65536, "B", "rows per micro-batch", 0),
 *         OPT_WORD(struct config, schedule, "schedule", "cosine", "cosine|linear", NULL, "learning rate", 0),
 *     };
 *     static const struct option_group groups[] = {{"Training", training, ARRAY_LENGTH(training)}};
 *     static const struct option_command train = {"train_gpt [options]", "Trains.", groups, 1, NULL, 0, 0};
 *
 *     options_init(&o, &train, &config);
 *     if (!options_parse(&o, argc - 1, argv + 1, &err)) ... print err.message, exit with 2
 *     if (o.help) ... print options_help(&o, terminal_width()), exit with 0
 *
 * A row names its field by offset, not by address, so that tables are constants at file scope and several
 * commands can share groups. The OPT_ macros refuse a field of the wrong type at compile time. */
#ifndef LLMC_OPTIONS_H
#define LLMC_OPTIONS_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

enum option_type {
    OPTION_INT,  /* int64_t */
    OPTION_SIZE, /* int64_t; on the command line also 64k, 1M, 2G, 1T (powers of 1024), 1.5k, 1e6 */
    OPTION_REAL, /* double, finite */
    OPTION_TIME, /* double, seconds: 90s, 90m, 7h, 2d, 1h30m; 0 when there is no value */
    OPTION_FLAG, /* bool: --name, --no-name, --name=true, --name=false */
    OPTION_TEXT, /* const char *, owned by struct options; NULL when there is no value */
    OPTION_WORD  /* an int or enum: the index of one of `words` */
};

#define OPTION_SEPARATOR '\x1e' /* the record separator of ASCII */
enum option_flags {
    OPTION_ABOVE_MIN = 1, /* the range excludes min */
    OPTION_BELOW_MAX = 2, /* the range excludes max */
    OPTION_REQUIRED = 4,  /* must be given on the command line or in the file; a text also without its name */
    OPTION_MAY_BE_EMPTY = 8, /* OPTION_TEXT: "" is a value */
    OPTION_THIS_RUN = 16,    /* about this invocation only (--resume); not stored, not taken from a run */
    OPTION_SWITCH = 32,      /* OPTION_WORD, words "auto|on|off": --name, --no-name; JSON: true, false */
    OPTION_BARE = 64,        /* OPTION_TEXT: may be given without a value, which is then "" */
    OPTION_REPEATED = 128    /* OPTION_TEXT: may be given several times; JSON: also a list. OPTION_SEPARATOR
                            stands between the texts */
};

struct option_row {
    const char *name; /* without dashes: lower case letters, digits, '-' */
    enum option_type type;
    size_t offset; /* of the field in the configuration structure */
    /* The default as a user would type it, checked like input; NULL: no text. "auto" for a number: the
     * program chooses, and the field is 0, or -1 if the range begins there because 0 has a meaning. The
     * command line takes the number and the word. */
    const char *initial;
    double min, max;         /* inclusive unless flagged; INFINITY: no limit; integers below 2^53 */
    const char *words;       /* "cosine|linear" */
    const char *placeholder; /* for help: "N", "FILE". NULL for flags, and for words to show them all */
    const char *help;        /* a phrase without a full stop; wrapped as needed */
    unsigned flags;
};

#define OPTION_OFFSET(T, S, field) (offsetof(S, field) + 0 * sizeof((T *)0 == &((S *)0)->field))
#define OPTION_OFFSET_INT_SIZED(S, field)                                                                    \
    (offsetof(S, field) + 0 * sizeof(char[sizeof(((S *)0)->field) == sizeof(int) ? 1 : -1]))
#define OPT_INT(S, field, name, initial, min, max, placeholder, help, flags)                                 \
    { name, OPTION_INT, OPTION_OFFSET(int64_t, S, field), initial, min, max, NULL, placeholder, help, flags }
#define OPT_SIZE(S, field, name, initial, min, max, placeholder, help, flags)                                \
    { name, OPTION_SIZE, OPTION_OFFSET(int64_t, S, field), initial, min, max, NULL, placeholder, help, flags }
#define OPT_REAL(S, field, name, initial, min, max, placeholder, help, flags)                                \
    { name, OPTION_REAL, OPTION_OFFSET(double, S, field), initial, min, max, NULL, placeholder, help, flags }
#define OPT_TIME(S, field, name, placeholder, help, flags)                                                   \
    { name, OPTION_TIME, OPTION_OFFSET(double, S, field), NULL, 0, 0, NULL, placeholder, help, flags }
#define OPT_FLAG(S, field, name, initial, help, flags)                                                       \
    { name, OPTION_FLAG, OPTION_OFFSET(bool, S, field), initial, 0, 0, NULL, NULL, help, flags }
#define OPT_TEXT(S, field, name, initial, placeholder, help, flags)                                          \
    {                                                                                                        \
        name, OPTION_TEXT, OPTION_OFFSET(const char *, S, field), initial, 0, 0, NULL, placeholder, help,    \
            flags                                                                                            \
    }
#define OPT_WORD(S, field, name, initial, words, placeholder, help, flags)                                   \
    { name, OPTION_WORD, OPTION_OFFSET_INT_SIZED(S, field), initial, 0, 0, words, placeholder, help, flags }

struct option_group {
    const char *heading;
    const struct option_row *rows;
    size_t count;
    size_t stride; /* bytes from one row to the next, for rows inside larger structures; 0: sizeof *rows */
    size_t base;   /* where the structure that the rows describe lies in the command's configuration */
};

/* Every command also has --help (-h) and --config FILE. */
struct option_command {
    const char *usage; /* "train_gpt sample --from DIR [options]" */
    const char *intro; /* a paragraph for --help, or NULL */
    const struct option_group *groups;
    size_t group_count;
    const char *positional; /* what other arguments are ("INPUT"), or NULL when they are refused */
    int positional_min, positional_max;
    char *(*notes)(void); /* paragraphs for --help behind the options, each ended by a line feed, or NULL */
};

/* Where a value came from; a later one wins over an earlier one. */
enum option_source { OPTION_FROM_DEFAULT, OPTION_FROM_STORED, OPTION_FROM_FILE, OPTION_FROM_COMMAND };

struct option_state {
    const struct option_row *row;
    size_t offset; /* of the value in the command's configuration */
    enum option_source source;
    bool given;  /* by the user and not as "auto", in this run or in the stored run it continues */
    char *owned; /* memory behind an OPTION_TEXT value */
};

struct options {
    const struct option_command *command;
    void *config;
    struct option_state *state; /* one per row, in table order */
    int count;
    const char **positional; /* point into argv */
    int positional_count;
    const char *config_path; /* of --config, or NULL; points into argv */
    bool help;               /* --help was given; nothing after it was parsed */
};

/* Whether a table is sound: names well formed and unique (also against --no-<flag>, help and config),
 * defaults valid and in range, words present. The message names the row. */
bool options_check(const struct option_command *command, struct error *err);

/* Writes every default into *config. A faulty table is a programming error and ends the process. `command`
 * and `config` must outlive *o, and *o must outlive the text values in *config. */
void options_init(struct options *o, const struct option_command *command, void *config);
void options_free(struct options *o);

/* Reads arguments (argv[0] is the first argument, not the program), then the --config file for what they
 * leave open. --name value, --name=value; "--" ends the options. Never prints or exits. On failure *config
 * is unspecified. */
bool options_parse(struct options *o, int argc, char **argv, struct error *err);

/* Reads a JSON object {"batch-size": 8, ...}; values from the command line stay. Called by
 * options_parse. */
bool options_load(struct options *o, const char *path, struct error *err);

/* Where the option's value came from. An unknown name is a programming error. */
enum option_source options_source(const struct options *o, const char *name);
/* Whether a user chose the value, in this run or in the run it continues (see options_import). */
bool options_given(const struct options *o, const char *name);

/* The value in effect now, as a user would type it. An unknown name is a programming error. The caller
 * frees. */
char *options_value(const struct options *o, const char *name);
/* Gives an option the value and the source that it has in `from`, of the same command. */
void options_copy(struct options *to, const struct options *from, const char *name);

/* The text of --help, in lines of at most `width` characters, which is at least 40. The caller frees. */
char *options_help(const struct options *o, int width);
/* The values in effect now (also those changed in *config since parsing). Lines that differ from the
 * default begin with '*' and name it; the others are left out unless `all`. The caller frees. */
char *options_text(const struct options *o, bool all);

/* {"values": {name: value, ...}, "explicit": [name, ...]} of all rows except OPTION_THIS_RUN. A new
 * reference. */
struct json_t *options_export(const struct options *o);
/* Takes the values of such an object for every option that this run was not given. A stored name without a
 * row is an error if it was explicit, and skipped otherwise (a default of another version). `where` opens
 * the messages. */
bool options_import(struct options *o, const struct json_t *stored, const char *where, struct error *err);

/* Edit distance with transpositions (optimal string alignment) over at most 63 characters of each word. */
int word_distance(const char *a, const char *b);
/* The index of the word that `given` probably meant (few typing errors, or the only word it begins), or
 * -1. */
int nearest_word(const char *given, const char *const *words, int count);

#ifdef __cplusplus
}
#endif
#endif
