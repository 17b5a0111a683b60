/* The tokenizer of token shards. `prepare` leaves a manifest.json and the tokenizer.json beside the shards
 * that it writes; the manifest lists the shards and has the tokenizer's hash. Shards of other programs have
 * no manifest, and nothing is known of their tokenizer. */
#ifndef LLMC_SHARD_MANIFEST_H
#define LLMC_SHARD_MANIFEST_H

#include "llmc/corpus/dataloader.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHARD_MANIFEST_FORMAT "llmc token shards" /* its "format" */

struct shard_tokenizer {
    bool known;
    uint64_t hash;   /* tokenizer_hash() */
    char *directory; /* where tokenizer.json is; NULL: not known */
};

/* Looks beside every shard. Fails if two manifests name different tokenizers. */
bool shard_tokenizer_find(struct shard_tokenizer *s, const struct dataset *d, struct error *err);
void shard_tokenizer_free(struct shard_tokenizer *s);
/* The tokenizer itself; NULL with err->message "" if the file is not there or nothing is known, or NULL with
 * the reason, also if it is not the one that the manifest means. */
struct tokenizer *shard_tokenizer_load(const struct shard_tokenizer *s, struct error *err);
/* Whether tokens of these shards mean to `t` what they meant when the shards were written, as far as that is
 * known. `shards` and `whose` are for the message: "--val val.bin", "--tokenizer bytes". */
bool shard_tokenizer_is(const struct shard_tokenizer *s, const struct tokenizer *t, const char *shards,
                        const char *whose, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
