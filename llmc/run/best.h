/* The lowest validation loss of a run: --keep-best keeps its checkpoint beside the newest ones and lets
 * RUN/best, a symbolic link, name it; --early-stop counts the validations since. Checkpoints store both, so a
 * resumed run goes on where it was. All ranks call these. */
#ifndef LLMC_RUN_BEST_H
#define LLMC_RUN_BEST_H

#include "llmc/run/run.h"

struct json_t;

/* From r->state, if the run is resumed and validates on the same data as before. */
void run_best_load(struct run *r, bool same_validation);
/* For trainer.json. A new reference. */
struct json_t *run_best_json(const struct run *r);

/* After a validation. A resumed run repeats that of its first step, which counts once. */
void run_best_update(struct run *r);
/* Whether --keep-best wants the checkpoint of this step. */
bool run_best_is_here(const struct run *r);
/* When the checkpoint of this step is on disk: links to it, and deletes the one before it if it is old. */
void run_best_link(struct run *r);
/* Whether --early-stop ends the run. */
bool run_best_is_old(const struct run *r);

#endif
