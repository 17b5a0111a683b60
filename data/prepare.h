/* Turns sources of text into token shards. prepare_main.c is the program; prepare_manifest.c records what
 * was done, for readers and for resuming. */
#ifndef LLMC_PREPARE_H
#define LLMC_PREPARE_H

#include "llmc/text/tokenizer.h"
#include "data/shard_set.h"
#include "llmc/corpus/text_source.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

struct prepare_options {
    const char *tokenizer, *out, *name, *field;
    int format; /* enum text_format */
    int64_t shard_tokens, batch_bytes, tokenizer_text;
    int64_t threads; /* 0: all cores */
    double validation_fraction;
    bool strict, resume, overwrite;
};

/* What came of one source. */
struct source_counts {
    int64_t documents, text_bytes;
    int64_t remarks[TEXT_REMARKS];
    int64_t raw_bytes;
    uint64_t hash;
    char *left_out; /* what it holds instead of text; NULL: it was read */
    bool done, json;
};
enum { TRAIN, VALIDATION, SIDES };
struct prepare {
    const struct prepare_options *o;
    struct source_list sources;
    struct source_counts *counts; /* one per source */
    struct tokenizer *tokenizer;
    struct shard_set side[SIDES];
    int64_t documents[SIDES], text_bytes[SIDES];
    struct source_cursor next; /* all before is in the shards */
    bool finished;             /* and there is nothing behind */
    bool made_tokenizer;       /* OUT/tokenizer.json was not there before */
};

/* Does all of it. `inputs` are files, directories and "-". */
bool prepare_run(const struct prepare_options *o, const char *const *inputs, int input_count,
                 struct error *err);

/* --- prepare_manifest.c --- */

/* OUT/manifest.json, or OUT/manifest.json.partial until it is complete. */
bool manifest_write(const struct prepare *p, bool complete, struct error *err);
/* Reads the manifest of OUT, complete or not: a new reference. NULL if there is none, or with err->message
 * set if it cannot be read. */
struct json_t *manifest_read(const char *out, bool *complete, struct error *err);
/* Checks that the manifest has the same options, tokenizer and sources, and that the shards match it; then
 * restores counts, shards and position. */
bool manifest_restore(struct prepare *p, const struct json_t *manifest, bool complete, struct error *err);
/* In a directory without a manifest: whether shards may be called `name` there. One that is there is in the
 * way; with `overwrite` only what has the name of a shard and is none. */
bool manifest_check_names(const char *out, const char *name, bool overwrite, struct error *err);
/* Removes unfinished files that have the name of a shard of `name`; with `shards_too` also the shards and
 * the manifest. */
bool manifest_clear(const char *out, const char *name, bool shards_too, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
