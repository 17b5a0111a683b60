/* Pairs of a source and a target, and their tokens. */
#include "test/fuzz/fuzz.h"

#include "llmc/corpus/pair_file.h"

#include <string.h>

FUZZ_TARGET(pair_file) {
    struct error err;
    struct pair_file f;
    struct tokenizer *t = tokenizer_bytes();
    if (pair_file_read(&f, fuzz_file("pairs", data, size), &err)) {
        int64_t longest = 0;
        struct dataset *d = pair_file_encode(&f, NULL, true, t, &longest, &err);
        check(d && longest > 3 && longest <= dataset_tokens(d), "pairs without tokens");
        dataset_free(d);
        pair_file_free(&f);
        fuzz_accept();
    }
    tokenizer_free(t);
    return 0;
}

FUZZ_SEEDS(pair_file) {
    static const char *const texts[] = {
        "a\tb\r\n\nlong source \xc3\xa9\tand target\n",
        "{\"source\": \"\\u00e9\", \"target\": \"b\"}\n {\"target\": \"c\", \"source\": \"\", \"id\": 1}"};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) add(user, texts[i], strlen(texts[i]));
}
