/* What is handed over as text is text: this is the rule, for everything that reads text (train_gpt
 * --text, eval --text, prepare). A content is recognised by its first bytes, never by its name. */
#ifndef LLMC_CONTENT_H
#define LLMC_CONTENT_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum content_class {
    CONTENT_TEXT,
    CONTENT_JSON_LINES, /* the first line is a JSON object */
    CONTENT_STRUCTURED, /* letters, but a structure rather than prose: JSON, HTML, XML, RTF, ... */
    CONTENT_BINARY      /* pictures, archives, tables, UTF-16, anything with NUL bytes */
};
struct content {
    enum content_class class;
    const char *name;   /* "PNG picture"; NULL for text */
    const char *advice; /* what to do about it, for messages; may be NULL */
    int mark;           /* bytes of a UTF-8 byte order mark, which is no part of the text: 0 or 3 */
};

enum { CONTENT_HEAD = 1 << 16 }; /* bytes that decide */

/* `head`: the first CONTENT_HEAD bytes, uncompressed, or all there are if `whole`. Binary is what has a
 * known signature, a NUL byte, or, where it is not UTF-8, more than one control character in 50 bytes.
 * Latin-1 and the like are text. */
struct content content_of(const void *head, int64_t size, bool whole);

#ifdef __cplusplus
}
#endif
#endif
