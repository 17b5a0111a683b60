/* What checkpoint.c and checkpoint_save.c share: the files of a checkpoint and its manifest. */
#ifndef LLMC_CHECKPOINT_IMPL_H
#define LLMC_CHECKPOINT_IMPL_H

#include "llmc/format/checkpoint.h"

/* A file beside trainer.json. */
struct checkpoint_file {
    char name[64];
    int64_t size;
    uint64_t hash; /* XXH3 */
};

/* Size and, `with_hash`, checksum of DIR/file->name. */
bool checkpoint_digest(struct checkpoint_file *file, const char *dir, bool with_hash, struct error *err);

/* DIR/trainer.json. */
bool checkpoint_write_manifest(const char *dir, const struct train_state *state,
                               const struct checkpoint_file *files, int64_t count, struct error *err);

#endif
