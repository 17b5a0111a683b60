/* A text with each token shaded by its loss, on a terminal or as a page.
 *
 * The scale is one for all texts: level n begins at loss_levels[n - 1] nats, and level 0 has no colour. The
 * colours are those of page.css for a light screen. A character that several tokens make is drawn once, by
 * the largest loss of these tokens. */
#ifndef LLMC_LOSS_TEXT_H
#define LLMC_LOSS_TEXT_H

#include "llmc/base/base.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

enum { LOSS_LEVELS = 5 };
extern const double loss_levels[LOSS_LEVELS]; /* in nats, increasing */

/* One token; or several that have a character in common. */
struct loss_piece {
    int64_t first, size; /* bytes of loss_text.bytes */
    int64_t tokens;
    double loss; /* in nats; NAN: was not predicted */
    bool ends;   /* a document: a line ends behind it */
};
/* Start from {0}. */
struct loss_text {
    char *bytes;
    struct loss_piece *pieces;
    int64_t size, size_capacity, count, capacity;
};
void loss_text_add(struct loss_text *t, const char *bytes, int64_t size, double loss, bool ends);
void loss_text_free(struct loss_text *t);

/* How a terminal can show it. With LOSS_DIGITS the level of each token stands under its first character. */
enum loss_form { LOSS_DIGITS, LOSS_COLOURS_256, LOSS_COLOURS_RGB };
/* That of standard output: colours if it is a terminal that has them ($TERM, $COLORTERM) and $NO_COLOR is not
 * set. */
enum loss_form loss_text_form(void);
/* In lines of at most `width` columns, with the scale at the end. Control characters become pictures, and
 * bytes that are no UTF-8 \xNN. */
void loss_text_print(const struct loss_text *t, FILE *out, enum loss_form form, int width);

/* A page for a browser; may_write_file() is the caller's. `facts`: "model", "data", "loss", "perplexity",
 * "bits_per_byte" (or null); what the page needs besides is added to it. */
bool loss_text_write_page(const struct loss_text *t, struct json_t *facts, const char *path,
                          struct error *err);

#ifdef __cplusplus
}
#endif
#endif
