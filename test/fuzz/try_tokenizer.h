/* A tokenizer from an untrusted file must handle any text. */
#ifndef LLMC_FUZZ_TRY_TOKENIZER_H
#define LLMC_FUZZ_TRY_TOKENIZER_H

#include "llmc/text/tokenizer.h"

static inline void try_tokenizer(const struct tokenizer *t) {
    static const char text[] =
        "The cat's 1234 hats\n\n  abababa zz <|e|>\t\xC3\xA9t\xC3\xA9 \xFF\xC3 \xF0\x9F\x99\x82 zzz ab";
    struct token_buffer b = {0};
    char out[4096];
    for (int special = 0; special < 2; special++) {
        b.count = 0;
        int64_t n = special ? tokenizer_encode_special(t, text, sizeof text - 1, &b)
                            : tokenizer_encode(t, text, sizeof text - 1, &b);
        for (int64_t i = 0; i < b.count; i++) {
            int size;
            check(tokenizer_token_bytes(t, b.ids[i], &size),
                  "a token that the tokenizer made is unknown to it");
        }
        if (n >= 0)
            check(tokenizer_decode(t, b.ids, b.count, out, sizeof out) >= 0,
                  "its own tokens cannot be decoded");
    }
    token_buffer_free(&b);
}

#endif
