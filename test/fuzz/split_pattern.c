/* Split patterns: what is translated must be a pattern for PCRE2, unless it is too large, and must cut any
 * text into words that make up the text. */
#include "test/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/text/pretokenize.h"

static void add_size(void *arg, const uint8_t *word, int64_t size) {
    check(size > 0, "an empty word");
    *(int64_t *)arg += size;
}

FUZZ_TARGET(split_pattern) {
    static const char text[] =
        "The cat's 12 hats\n\n  abab \t\xC3\xA9\xC4\xB0t\xCC\x81 \xFF\xC3 \xE4\xBD\xA0 \xF0\x9F\x99\x82 'S";
    struct error err;
    struct pretokenizer pre = {0};
    char *pattern = (char *)xcalloc(size + 1, 1);
    memcpy(pattern, data, size);
    if (pretokenizer_add_pattern(&pre, pattern, false, &err)) {
        int64_t total = 0;
        if (pretokenize(&pre, (const uint8_t *)text, sizeof text - 1, add_size, &total)) {
            check(total == (int64_t)sizeof text - 1, "the words have %lld bytes", (long long)total);
            fuzz_accept();
        }
    }
    pretokenizer_free(&pre);
    free(pattern);
    return 0;
}

FUZZ_SEEDS(split_pattern) {
    static const char *const seeds[] = {
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{M}]*(?i:'s|'t|'re)?| ?[^\\s\\p{L}]+[\\r\\n/]*|\\s+(?!\\S)|\\s+",
        "[\\s\\h&&[^a-c]]+|x{2}+|(?=g)|^.$|a{,3}?b{1,2}+",
        "[[:space:][:^blank:]\\x{4e00}-\\u9fff]*?|(?<n>a|(?>b+))(?<!c)\\R|\\Z",
        "(?i)[sk]{,2}x*+|\\O\\N\\A\\z|(?-i:S)(?#c)", "((a|b)*+(?=c|\\t)\\x41[^]-]|[-_]\\.)??"};
    for (size_t i = 0; i < ARRAY_LENGTH(seeds); i++) add(user, seeds[i], strlen(seeds[i]));
}
