/* Sets of Unicode code points, each a sorted list of bounds: the first code point inside, the first one
 * outside, and so on. All operations are one walk over such lists. */
#ifndef LLMC_CODE_SET_H
#define LLMC_CODE_SET_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CODE_POINTS 0x110000

struct code_set {
    int count;       /* even */
    uint32_t *bound; /* owned */
};

enum code_set_operation { CODE_SET_UNION, CODE_SET_INTERSECTION, CODE_SET_DIFFERENCE, CODE_SET_XOR };

void code_set_free(struct code_set *s);
/* Adds first..last. Fast if it lies after everything that is in the set. */
void code_set_add(struct code_set *s, uint32_t first, uint32_t last);
/* a = a OPERATION b */
void code_set_combine(struct code_set *a, const struct code_set *b, enum code_set_operation operation);
void code_set_invert(struct code_set *s);
bool code_set_has(const struct code_set *s, uint32_t code);

/* Adds the set that \p{name} stands for in Oniguruma, the regular expressions of Hugging Face's
 * tokenizers: a general category, a script, or a property such as Alphabetic. Upper case, blanks, '-' and
 * '_' in the name do not count. `in_class`: between brackets, where \w has six characters fewer. False if
 * the name is unknown. "[punct]" is what [[:punct:]] stands for. */
bool code_set_add_named(struct code_set *s, const char *name, bool in_class);

/* The general categories, by their short names: "Lu", "Ll", ... */
int code_set_categories(void);
const char *code_set_category_name(int category);

#ifdef __cplusplus
}
#endif
#endif
