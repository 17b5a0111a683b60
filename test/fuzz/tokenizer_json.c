/* tokenizer.json: a tokenizer that loads must encode and decode any text, and survive being saved. */
#include "test/fuzz/fuzz.h"

#include "llmc/text/bpe_train.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/fuzz/try_tokenizer.h"

FUZZ_TARGET(tokenizer_json) {
    struct error err;
    struct tokenizer *t = tokenizer_load(fuzz_file("tokenizer.json", data, size), &err);
    if (!t) return 0;
    try_tokenizer(t);
    uint64_t hash = tokenizer_hash(t);
    if (tokenizer_save(t, fuzz_path("saved.json"), &err)) {
        struct tokenizer *again = tokenizer_load(fuzz_path("saved.json"), &err);
        check(again, "a saved tokenizer does not load: %s", err.message);
        check(tokenizer_hash(again) == hash, "a saved tokenizer is another one");
        tokenizer_free(again);
    }
    tokenizer_free(t);
    fuzz_accept();
    return 0;
}

FUZZ_SEEDS(tokenizer_json) {
    static const char text[] =
        "the cat sat on the mat and the hat, that's 42 of them; the end, the end\n\n  the";
    struct text_span doc = {text, sizeof text - 1};
    struct error err;
    struct tokenizer *t = tokenizer_train(&doc, 1, 262, 1, &err);
    check(t, "%s", err.message);
    check(tokenizer_save(t, fuzz_path("seed.json"), &err), "%s", err.message);
    tokenizer_free(t);
    fuzz_seed_file(add, user, "seed.json");
    /* Parts that our own files do not have. Byte-level, but with few bytes. */
    static const char *const others[] = {"{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_"
                                         "tokens\":[{\"id\":4,\"content\":\"<|e|>\","
                                         "\"single_word\":false,\"lstrip\":false,\"rstrip\":true,"
                                         "\"normalized\":false,\"special\":true},{\"id\":5,"
                                         "\"content\":\"zz\",\"special\":false}],\"normalizer\":{\"type\":"
                                         "\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\","
                                         "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
                                         "\"\\\\p{L}+|\\\\s+\"},\"behavior\":\"Isolated\","
                                         "\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":"
                                         "false,\"trim_offsets\":true,\"use_regex\":false}]},"
                                         "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
                                         "\"model\":{\"type\":\"BPE\",\"dropout\":null,"
                                         "\"unk_token\":null,\"continuing_subword_prefix\":\"\",\"end_of_"
                                         "word_suffix\":\"\",\"fuse_unk\":false,"
                                         "\"byte_fallback\":false,\"ignore_merges\":true,\"vocab\":{\"a\":0,"
                                         "\"b\":1,\"ab\":2,\"aba\":3},\"merges\":[\"a b\",[\"ab\",\"a\"]]}}",
                                         "{\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":{"
                                         "\"type\":\"ByteLevel\",\"add_prefix_space\":true},"
                                         "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
                                         "\"vocab\":{\"a\":0},\"merges\":[]}}"};
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++) add(user, others[i], strlen(others[i]));
}
