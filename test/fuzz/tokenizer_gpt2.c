/* GPT-2's published pair of files, and the added tokens of Hugging Face beside them: each file up to the
 * next NUL byte. A file that the input has no part for does not exist. */
#include "test/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/fuzz/try_tokenizer.h"

FUZZ_TARGET(tokenizer_gpt2) {
    struct error err;
    static const char *const names[] = {"encoder.json", "vocab.bpe", "tokenizer_config.json",
                                        "added_tokens.json", "special_tokens_map.json"};
    const uint8_t *end = data + size;
    remove(fuzz_path("tokenizer.json"));
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
        remove(fuzz_path(names[i]));
        if (data > end) continue;
        const uint8_t *nul = data < end ? memchr(data, 0, (size_t)(end - data)) : NULL;
        if (!nul) nul = end;
        fuzz_file(names[i], data, (size_t)(nul - data));
        data = nul + 1;
    }
    struct tokenizer *t = tokenizer_load(fuzz_path(""), &err);
    if (!t) return 0;
    try_tokenizer(t);
    tokenizer_free(t);
    fuzz_accept();
    return 0;
}

FUZZ_SEEDS(tokenizer_gpt2) {
    /* All bytes, in GPT-2's spelling. */
    char text[8192];
    int n = 0, shifted = 256, id = 0;
    n += snprintf(text + n, sizeof text - (size_t)n, "{");
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        n += snprintf(text + n, sizeof text - (size_t)n, "\"\\u%04x\": %d, ", printable ? byte : shifted,
                      id++);
        shifted += !printable;
    }
    n += snprintf(text + n, sizeof text - (size_t)n,
                  "\"ab\": 256, \"\\u0120ab\": 257, \"<|endoftext|>\": 258}");
    text[n++] = '\0';
    n += snprintf(text + n, sizeof text - (size_t)n, "#version: 0.2\na b\n\xC4\xA0 ab\n");
    add(user, text, (size_t)n);
    text[n++] = '\0';
    n += snprintf(text + n, sizeof text - (size_t)n,
                  "{\"added_tokens_decoder\": {\"259\": {\"content\": \"<u>\", \"rstrip\": true}}, "
                  "\"eos_token\": {\"content\": \"zz\"}}");
    text[n++] = '\0';
    n += snprintf(text + n, sizeof text - (size_t)n, "{\"zz\": 260}");
    add(user, text, (size_t)n);
    text[n++] = '\0';
    n += snprintf(text + n, sizeof text - (size_t)n,
                  "{\"additional_special_tokens\": [\"zz\", {\"content\": \"y\"}]}");
    add(user, text, (size_t)n);
    static const char small[] = "{\"a\":0,\"b\":1,\"ab\":2}\0a b\n";
    add(user, small, sizeof small - 1);
}
