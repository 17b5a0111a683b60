/* Bytes from files as JSON strings: see json_text.h. */
#include "llmc/report/json_text.h"

#include "llmc/base/utf8.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *json_text(const char *bytes, int64_t size) {
    const uint8_t *p = (const uint8_t *)bytes, *end = p + size;
    char *text = (char *)xmalloc(4 * (size_t)size + 1);
    size_t length = 0;
    while (p < end) {
        uint32_t code;
        int n = *p ? utf8_decode(p, end, &code) : 0;
        if (n)
            memcpy(text + length, p, (size_t)n);
        else
            snprintf(text + length, 5, "[%02x]", *p);
        length += n ? (size_t)n : 4;
        p += n ? n : 1;
    }
    json_t *string = json_stringn(text, length);
    check(string != NULL, "out of memory for a text of %zu bytes", length);
    free(text);
    return string;
}

char *json_for_page(json_t *value, int digits) {
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits));
    check(text != NULL, "the facts of a page cannot be written as JSON");
    size_t marks = 0, size = strlen(text);
    for (size_t i = 0; i < size; i++) marks += text[i] == '<';
    char *safe = (char *)xmalloc(size + 5 * marks + 1), *to = safe;
    for (size_t i = 0; i < size; i++)
        if (text[i] == '<')
            to = (char *)memcpy(to, "\\u003c", 6) + 6;
        else
            *to++ = text[i];
    *to = 0;
    free(text);
    return safe;
}
