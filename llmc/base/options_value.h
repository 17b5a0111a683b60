/* One option's value and its conversions. Internal to llmc/base/options*.c; users of options include
 * options.h. */
#ifndef LLMC_OPTIONS_VALUE_H
#define LLMC_OPTIONS_VALUE_H

#include "llmc/base/options.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WORD_MAX 63

union option_value {
    int64_t i; /* INT, SIZE, WORD (index) */
    double d;
    bool b;
    const char *s; /* borrowed */
};

/* Whether --no-NAME exists. */
static inline bool option_negatable(const struct option_row *row) {
    return row->type == OPTION_FLAG || row->flags & OPTION_SWITCH;
}

/* User text for a message: of bounded length, without control bytes that a terminal would obey. */
struct option_shown {
    char text[96];
};
struct option_shown option_show(const char *s);

/* Readers check type and range. `label` begins the message: "--batch-size 0". */
bool option_value_from_text(const struct option_row *row, const char *text, union option_value *out,
                            const char *label, struct error *err);
bool option_value_from_json(const struct option_row *row, const struct json_t *v, union option_value *out,
                            const char *label, struct error *err);
/* Real numbers that are not finite become null. NULL if the value has no JSON form (text that is not
 * UTF-8). */
struct json_t *option_value_to_json(const struct option_row *row, const union option_value *v);
/* Whether the value leaves the choice to the program: 0 of a row whose default is "auto". */
bool option_value_is_auto(const struct option_row *row, const union option_value *v);
/* As a user would type it; the caller frees. */
char *option_value_to_text(const struct option_row *row, const union option_value *v);

/* Copies a value from or to its field of the configuration structure. */
void option_value_load(const struct option_row *row, const void *field, union option_value *v);
void option_value_store(const struct option_row *row, void *field, const union option_value *v);

/* "a string", for messages. */
const char *option_json_kind(const struct json_t *v);

#ifdef __cplusplus
}
#endif
#endif
