/* What a data set consists of: for dataset.c, which opens it, and dataset_reader.c and dataloader.c, which
 * read it. */
#ifndef LLMC_DATASET_IMPL_H
#define LLMC_DATASET_IMPL_H

#include "llmc/corpus/dataloader.h"
#include "llmc/corpus/mixture.h"

struct dataset {
    char *name; /* as the user gave it */
    struct shard *shards;
    uint64_t *hashes; /* (shards) shard_hash() */
    int64_t count;
    uint32_t *memory; /* the tokens of the only shard, or NULL: they are in files */
    uint8_t *marks;   /* of these, enum token_mark; or NULL */
    int64_t vocab_size, tokens;
    struct mixture mixture;
    struct dataset **part; /* (mixture.count) views of the shards, one part behind the other */
};

/* Descriptors that stay open between batches. One reader per thread. */
struct reader {
    const struct dataset *d;
    int *fd; /* (shards) -1: not open */
    int open;
};
void reader_open(struct reader *r, const struct dataset *d);
void reader_free(struct reader *r);
/* Opens the shard, again if necessary, checks that it has not changed, and lets the kernel start reading the
 * range. */
bool reader_prepare(struct reader *r, int64_t shard, int64_t first, int64_t count, struct error *err);
/* Reads the range, and checks the token ids. */
bool reader_read(struct reader *r, int64_t shard, int64_t first, int64_t count, uint32_t *out,
                 struct error *err);
/* The same for a range that may go on in the shards behind. */
bool reader_read_on(struct reader *r, int64_t shard, int64_t first, int64_t count, uint32_t *out,
                    struct error *err);

#endif
