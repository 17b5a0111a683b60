/* What a data set consists of: for dataset.c, which opens it, and dataloader.c, which reads it. */
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

#endif
