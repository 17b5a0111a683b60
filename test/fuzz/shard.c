/* Token shards: header, size, token ids. */
#include "test/fuzz/fuzz.h"

#include "llmc/corpus/dataloader.h"
#include "llmc/corpus/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VOCAB = 1000 };

FUZZ_TARGET(shard) {
    struct error err;
    const char *path = fuzz_file("shard.bin", data, size);
    struct dataset *d = dataset_open(path, VOCAB, &err);
    struct shard s;
    int fd = shard_open(&s, path, &err);
    check((d != NULL) == (fd >= 0), "dataset_open and shard_open do not agree");
    if (fd >= 0) {
        uint32_t *tokens = xmalloc((size_t)s.tokens * sizeof *tokens);
        if (shard_read(&s, fd, 0, s.tokens, VOCAB, tokens, &err)) {
            for (int64_t i = 0; i < s.tokens; i++) check(tokens[i] < VOCAB, "a token that is not checked");
            fuzz_accept();
        }
        free(tokens);
        close(fd);
    }
    shard_free(&s);
    dataset_free(d);
    return 0;
}

FUZZ_SEEDS(shard) {
    uint8_t file[SHARD_HEADER_BYTES + 40] = {0};
    for (int bytes = 2; bytes <= 4; bytes += 2) {
        shard_header(file, bytes, 10);
        for (int i = 0; i < 10; i++) file[SHARD_HEADER_BYTES + i * bytes] = (uint8_t)(20 * i);
        add(user, file, (size_t)(SHARD_HEADER_BYTES + 10 * bytes));
    }
}
