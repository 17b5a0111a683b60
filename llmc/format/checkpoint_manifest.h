/* trainer.json, the manifest of a checkpoint: the state of the training, and size and checksum of every
 * other file. */
#ifndef LLMC_FORMAT_CHECKPOINT_MANIFEST_H
#define LLMC_FORMAT_CHECKPOINT_MANIFEST_H

#include "llmc/format/checkpoint.h"

/* A file beside trainer.json. */
struct checkpoint_file {
    char name[64];
    int64_t size;
    uint64_t hash; /* XXH3 */
};

/* Size and, `with_hash`, checksum of DIR/file->name. */
bool checkpoint_digest(struct checkpoint_file *file, const char *dir, bool with_hash, struct error *err);

/* Writes DIR/trainer.json. checkpoint_load_state (checkpoint.h) reads it. */
bool checkpoint_write_manifest(const char *dir, const struct train_state *state,
                               const struct checkpoint_file *files, int64_t count, struct error *err);

/* Whether the files are those that DIR/trainer.json lists: their sizes, and with `checksums` their contents
 * (large files on a thread each). */
bool checkpoint_verify(const char *dir, bool checksums, struct error *err);

#endif
