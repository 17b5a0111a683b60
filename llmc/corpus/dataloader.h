/* Batches of tokens: shards on disk or tokens in memory, cut into samples, shuffled without state, read
 * ahead. The format of shards is in shard.h. */
#ifndef LLMC_DATALOADER_H
#define LLMC_DATALOADER_H

#include "llmc/corpus/shard.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- tokens --- */

struct dataset; /* immutable; shared by loaders and threads */

/* Every shard that the glob pattern (or plain path) names, in the order of their names; lengths may differ.
 * Validates headers and sizes now, token ids (< vocab_size) as they are read: a bad one ends the process,
 * naming shard, offset and value, because it means that data and model do not belong together. */
struct dataset *dataset_open(const char *pattern, int64_t vocab_size, struct error *err);
/* Takes over `tokens` (malloc). `name` is for messages. */
struct dataset *dataset_from_tokens(const char *name, uint32_t *tokens, int64_t count, int64_t vocab_size);
void dataset_free(struct dataset *d);
int64_t dataset_tokens(const struct dataset *d);
int64_t dataset_shards(const struct dataset *d);
/* Depends on names (without directories), sizes and headers of the shards, or on the tokens in memory: tells
 * a resumed run whether it continues on the same data. */
uint64_t dataset_fingerprint(const struct dataset *d);

/* --- batches --- */

enum sample_order {
    SAMPLES_SHUFFLED,  /* each epoch a permutation of all samples, a pure function of (seed, epoch, index) */
    SAMPLES_IN_ORDER,  /* first to last, then again */
    SAMPLES_DOCUMENTS, /* in order; a row starts at a document and holds as many whole documents as fit, the
                          rest of it is ignored (target -1); a document longer than a row is cut into rows.
                          Every target is predicted from its whole document so far, up to T tokens: what a
                          validation loss should say. An epoch is a whole number of steps, filled up with
                          ignored rows: each token but the first of a shard is a target exactly once in it */
};

struct loader_options {
    int64_t B, T; /* rows, tokens a row */
    enum sample_order order;
    uint64_t seed;
    int64_t first_sample; /* where to start: epoch * dataloader_samples + index */
    int64_t rank,
        world; /* of each group of B * world samples this loader reads its B; 0, 1 for one process */
    int64_t step_samples; /* in a step, a multiple of B * world; 0: one such group. With it the samples of a
                             step do not depend on B and world, SAMPLES_DOCUMENTS included */
    int64_t end_of_text;  /* token that precedes each document, for SAMPLES_DOCUMENTS; -1: there is none */
};

/* Starts reading ahead on a thread of its own. Fails, with all sizes in the message, if the data does not
 * hold one sample (T + 1 tokens of one shard), or for SAMPLES_SHUFFLED not the B * world samples of one
 * batch; SAMPLES_DOCUMENTS needs only two tokens. */
struct dataloader;
struct dataloader *dataloader_open(const struct dataset *d, const struct loader_options *options,
                                   struct error *err);
void dataloader_close(struct dataloader *l); /* NULL is fine */

/* Samples in one epoch. Sample i of a shard is tokens [iT, iT+T] (the last is only a target); the tokens
 * after the last whole sample of a shard are not used. */
int64_t dataloader_samples(const struct dataloader *l);

/* The next batch: (B,T) each, valid until the next call; targets are the tokens one further, -1 where
 * ignored. `valid_targets` (or NULL) receives how many are not ignored. Ends the process, with the message of
 * the reading thread, if this batch could not be read. */
void dataloader_next(struct dataloader *l, const int32_t **tokens, const int32_t **targets,
                     int64_t *valid_targets);

/* The sample that the next batch (over all ranks) starts with: what a checkpoint stores. */
int64_t dataloader_position(const struct dataloader *l);
/* Starts again at `sample`. Batches handed out before are no longer valid. */
void dataloader_seek(struct dataloader *l, int64_t sample);

/* The permutation behind SAMPLES_SHUFFLED: where `index` (0 <= index < count) of this epoch goes. */
int64_t shuffle_index(uint64_t seed, int64_t epoch, int64_t index, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
