/* What a content is, by its first bytes. The first byte of an input says whether the rest is whole. */
#include "test/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/corpus/content.h"

FUZZ_TARGET(content) {
    if (!size) return 0;
    size_t n = size - 1;
    char *exact = (char *)xmalloc(n);
    memcpy(exact, data + 1, n);
    struct content c = content_of(exact, (int64_t)n, data[0] & 1);
    bool text = c.class == CONTENT_TEXT || c.class == CONTENT_JSON_LINES;
    check(text || c.name, "what is no text has no name");
    check(c.mark == 0 || (c.mark == 3 && n >= 3), "a mark of %d bytes in %zu", c.mark, n);
    /* a NUL byte makes it binary, wherever it is */
    check(!text || n == 0 || !memchr(exact, 0, n), "text with a NUL byte");
    if (text) fuzz_accept();
    free(exact);
    return 0;
}

FUZZ_SEEDS(content) {
    static const char *const seeds[] = {
        "\1A line.\nAnother \xC3\xA9.\n",    "\1{\"text\": \"one\"}\n{\"text\": \"two\"}\n",
        "\1{\n  \"a\": [1, 2]\n}\n",         "\1<!DOCTYPE html>\n<html><body>x</body></html>",
        "\1\x89PNG\r\n\x1a\nIHDR",           "\1\xEF\xBB\xBF{\\rtf1",
        "\0Latin-1: \xE9\xE8 and \x07 bells"};
    for (size_t i = 0; i < ARRAY_LENGTH(seeds); i++) add(user, seeds[i], 1 + strlen(seeds[i] + 1));
}
