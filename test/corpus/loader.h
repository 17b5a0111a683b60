/* Shared by the tests of shards, data sets and data loaders. Most tests number the tokens of the data set,
 * so that a row shows its origin. */
#ifndef LLMC_TEST_LOADER_H
#define LLMC_TEST_LOADER_H

#include "test/scratch.h"

#include "llmc/corpus/dataloader.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define UNUSED __attribute__((unused)) /* not every test program needs everything */

enum { VOCAB = 50257 };

/* Tokens first, first + 1, ... in a shard. */
UNUSED static void put_shard(const char *path, uint32_t first, int64_t count, int64_t vocab) {
    uint32_t *tokens = malloc((size_t)count * sizeof *tokens);
    for (int64_t i = 0; i < count; i++) tokens[i] = first + (uint32_t)i;
    struct error err = {""};
    if (!shard_write(path, tokens, count, vocab, &err)) fail_msg("%s", err.message);
    free(tokens);
}

/* Overwrites bytes of a file. */
UNUSED static void patch(const char *path, int64_t offset, const void *bytes, size_t size) {
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, offset), size);
    close(fd);
}

UNUSED static struct dataset *open_data(const char *pattern, int64_t vocab) {
    struct error err = {""};
    struct dataset *d = dataset_open(pattern, vocab, &err);
    if (!d) fail_msg("%s", err.message);
    return d;
}

UNUSED static struct dataset *numbered(int64_t count) {
    uint32_t *tokens = malloc((size_t)count * sizeof *tokens);
    for (int64_t i = 0; i < count; i++) tokens[i] = (uint32_t)i;
    return dataset_from_tokens("numbers", tokens, count, count);
}

UNUSED static struct dataloader *open_loader(const struct dataset *d, struct loader_options o) {
    struct error err = {""};
    if (o.world == 0) o.world = 1;
    struct dataloader *l = dataloader_open(d, &o, &err);
    if (!l) fail_msg("%s", err.message);
    return l;
}

/* Copies of the next `batches` batches: inputs then targets. */
UNUSED static int32_t *take(struct dataloader *l, int64_t batches, int64_t B, int64_t T) {
    int32_t *out = malloc((size_t)(batches * 2 * B * T) * sizeof *out);
    for (int64_t i = 0; i < batches; i++) {
        const int32_t *tokens, *targets;
        int64_t valid;
        dataloader_next(l, &tokens, &targets, &valid);
        memcpy(out + i * 2 * B * T, tokens, (size_t)(B * T) * sizeof *out);
        memcpy(out + (i * 2 + 1) * B * T, targets, (size_t)(B * T) * sizeof *out);
        int64_t counted = 0;
        for (int64_t k = 0; k < B * T; k++) counted += targets[k] >= 0;
        assert_int_equal(valid, counted);
    }
    return out;
}

#endif
