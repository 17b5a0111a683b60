/* Conversations as JSON lines, and their tokens. */
#include "test/fuzz/fuzz.h"

#include "llmc/corpus/chat_file.h"

#include <string.h>

FUZZ_TARGET(chat_file) {
    struct error err;
    struct chat_file f;
    struct chat_format format;
    struct tokenizer *t = tokenizer_bytes();
    check(chat_open(&format, CHAT_PLAIN, t, -1, -1, &err), "%s", err.message);
    if (chat_file_read(&f, fuzz_file("chat.jsonl", data, size), &err)) {
        int64_t longest = 0;
        struct dataset *d = chat_file_encode(&f, NULL, true, &format, &longest, &err);
        check(d && longest > 0 && longest <= dataset_tokens(d), "conversations without tokens");
        dataset_free(d);
        chat_file_free(&f);
        fuzz_accept();
    }
    chat_close(&format);
    tokenizer_free(t);
    return 0;
}

FUZZ_SEEDS(chat_file) {
    static const char *const texts[] = {
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": "
        "\"\\u00e9\"}]}\n",
        "{\"messages\": [{\"role\": \"system\", \"content\": \"\"}, {\"role\": \"assistant\", \"content\": "
        "\"b\"}], \"id\": 1}\n\n{\"messages\": [{\"role\": \"assistant\", \"content\": \"c\"}]}"};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) add(user, texts[i], strlen(texts[i]));
}
