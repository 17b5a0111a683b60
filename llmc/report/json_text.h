/* Bytes from files as JSON strings. */
#ifndef LLMC_JSON_TEXT_H
#define LLMC_JSON_TEXT_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

/* The bytes as a string of valid UTF-8: a byte that is not part of a character becomes [e2], and 0, which
 * many readers of JSON refuse, [00]. */
struct json_t *json_text(const char *bytes, int64_t size);

/* JSON as text that may stand in a script element of a page: "<" is escaped, so no string in it can end the
 * element. Numbers with `digits` digits. The caller frees. */
char *json_for_page(struct json_t *value, int digits);

#ifdef __cplusplus
}
#endif
#endif
