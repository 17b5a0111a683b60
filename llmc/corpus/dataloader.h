/* Batches of tokens from shards on disk (shard.h) or from memory: the tokens are divided into samples,
 * shuffled without state, and read ahead by a thread. */
#ifndef LLMC_DATALOADER_H
#define LLMC_DATALOADER_H

#include "llmc/corpus/shard.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- tokens --- */

struct dataset; /* immutable; shared by loaders and threads */

/* Opens every shard that the glob pattern or plain path names, in the order of their names; lengths may
 * differ. Headers and sizes are checked now, token ids (< vocab_size) when they are read: a bad one ends
 * the process with shard, offset and value, because data and model do not belong together. */
struct dataset *dataset_open(const char *pattern, int64_t vocab_size, struct error *err);
/* The same for a mixture (mixture.h); each part must have shards. Text that is no mixture is a pattern. */
struct dataset *dataset_open_mixture(const char *text, int64_t vocab_size, struct error *err);
/* Of a mixture; else 0. The pattern of a part, and its share of the samples. */
int64_t dataset_parts(const struct dataset *d);
const char *dataset_part(const struct dataset *d, int64_t part, double *share);
/* Takes over `tokens` (malloc). `name` is for messages. */
struct dataset *dataset_from_tokens(const char *name, uint32_t *tokens, int64_t count, int64_t vocab_size);
/* Of a token in a set of samples that stay apart, such as conversations. */
enum token_mark {
    MARK_BEGINS = 1, /* a sample begins with it */
    MARK_GIVEN = 2   /* it is read, but no target: nobody learns to write it */
};
/* The same with (count) `marks`, the first one MARK_BEGINS, which are taken over, too. For the orders
 * SAMPLES_DOCUMENTS and SAMPLES_APART. */
struct dataset *dataset_from_marked_tokens(const char *name, uint32_t *tokens, uint8_t *marks, int64_t count,
                                           int64_t vocab_size);
void dataset_free(struct dataset *d);
/* Before the first loader: another limit of the token ids. */
void dataset_set_vocabulary(struct dataset *d, int64_t vocab_size);
/* The path of a shard, and its tokens. */
const char *dataset_shard(const struct dataset *d, int64_t shard, int64_t *tokens);
int64_t dataset_tokens(const struct dataset *d);
int64_t dataset_shards(const struct dataset *d);
/* Depends on names (without directories), sizes and headers of the shards, or on the tokens in memory, and on
 * the shares of a mixture. A
 * resumed run compares it to see whether the data is the same. */
uint64_t dataset_fingerprint(const struct dataset *d);
/* A hash of the tokens: of all in memory, of each shard as shard_hash() says. */
uint64_t dataset_contents(const struct dataset *d);
/* Two shards with the same hash, one of each data set: their paths. False if there are none. */
bool dataset_overlap(const struct dataset *a, const struct dataset *b, const char **in_a, const char **in_b);

/* --- batches --- */

enum sample_order {
    SAMPLES_SHUFFLED, /* each epoch a permutation of all samples, a pure function of (seed, epoch, index) */
    SAMPLES_IN_ORDER, /* first to last, then again */
    /* The orders by rows. In order, for validation: a row starts at a document and holds as many whole
     * documents as fit; the rest of it is ignored (target -1). A document longer than a row is cut into rows.
     * So every target is predicted from its whole document so far, up to T tokens. An epoch is a whole number
     * of steps, filled with ignored rows: each token but the first of a shard is a target exactly once. Of
     * marked tokens, a sample longer than a row loses its end. */
    SAMPLES_DOCUMENTS,
    SAMPLES_APART, /* the same, with one sample of marked tokens a row */
    /* The same with the documents, or samples of marked tokens, in the rows of packing.h: not in order,
     * but none is divided unless it is longer than a row. */
    SAMPLES_PACKED
};

struct loader_options {
    int64_t B, T; /* rows, tokens a row */
    enum sample_order order;
    bool shuffle_rows; /* of orders by rows: as SAMPLES_SHUFFLED does it, with ignored rows at the end */
    uint64_t seed;
    int64_t first_sample; /* where to start: epoch * dataloader_samples + index */
    int64_t rank, world;  /* of each B * world samples this loader reads its B; 0, 1 for one process */
    /* Samples in a step, a multiple of B * world; 0: B * world. With it the samples of a step do not depend
     * on B and world, the orders by rows included. */
    int64_t step_samples;
    int64_t end_of_text; /* token that precedes each document, for orders by rows; -1: there is none */
};

/* Starts the reading thread. Fails, with all sizes in the message, if the data does not hold one sample (T
 * + 1 tokens), or with SAMPLES_SHUFFLED not the B * world samples of one batch. SAMPLES_DOCUMENTS needs
 * only two tokens. */
struct dataloader;
struct dataloader *dataloader_open(const struct dataset *d, const struct loader_options *options,
                                   struct error *err);
void dataloader_close(struct dataloader *l); /* NULL is fine */

/* Samples in one epoch. Sample i of a shard is tokens [iT, iT+T]; the last is only a target. Shards that are
 * too short for a sample are joined to the shard before them, as if they were its end. Tokens after the last
 * whole sample of such a stretch are not used. The parts of a mixture have their own epochs, and begin each
 * with another permutation; an epoch of the whole is as many samples as all parts have together. */
int64_t dataloader_samples(const struct dataloader *l);
/* Samples in one epoch of a part of a mixture, and how many of the first `samples` samples came from it. */
int64_t dataloader_part_samples(const struct dataloader *l, int64_t part);
int64_t dataloader_part_taken(const struct dataloader *l, int64_t part, int64_t samples);
/* Tokens that are in no sample. */
int64_t dataloader_unused(const struct dataloader *l);
/* Samples of marked tokens that are longer than a row; those of them whose first T + 1 tokens have no target,
 * and which are left out. */
int64_t dataloader_cut(const struct dataloader *l);
int64_t dataloader_left_out(const struct dataloader *l);
/* Of SAMPLES_PACKED: documents, rows, the tokens in these, of T places each, and how many pairs of places
 * belong to one document; of a mixture, of all parts. */
struct packed_counts {
    int64_t documents, rows, tokens, pairs;
};
struct packed_counts dataloader_packed(const struct dataloader *l);

/* The next batch: (B,T) each, valid until the next call. Targets are the following tokens, or -1 where
 * ignored. `valid_targets` (or NULL) receives the number of targets that are not ignored. Ends the process
 * with the reading thread's message if the batch could not be read. */
void dataloader_next(struct dataloader *l, const int32_t **tokens, const int32_t **targets,
                     int64_t *valid_targets);

/* Of the last batch with SAMPLES_PACKED: where the document of each token begins in its row (B,T). A place
 * without a token begins at itself. NULL with other orders. */
const int32_t *dataloader_first_of_document(const struct dataloader *l);

/* The first sample of the next batch over all ranks, which a checkpoint stores. */
int64_t dataloader_position(const struct dataloader *l);
/* The first sample of this rank's next batch. The batch has this one and the B - 1 after it. */
int64_t dataloader_first_sample(const struct dataloader *l);
/* Restarts at `sample`. Batches returned before are no longer valid. */
void dataloader_seek(struct dataloader *l, int64_t sample);
/* The same; samples from `end` on are ignored rows. */
void dataloader_seek_range(struct dataloader *l, int64_t sample, int64_t end);

/* The permutation of SAMPLES_SHUFFLED: the position of `index` (0 <= index < count) in this epoch. */
int64_t shuffle_index(uint64_t seed, int64_t epoch, int64_t index, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
