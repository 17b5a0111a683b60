/* Resuming: what becomes of every option that a resumed run is given again.
 *
 * A resumed run takes over the options of the checkpoint. An option that the command (or its --config file)
 * gives again with another value is applied, refused, or applied with a warning, as its row in the table of
 * resume.c says. What is then in effect is what options.json records. */
#ifndef LLMC_RUN_RESUME_H
#define LLMC_RUN_RESUME_H

#include "llmc/format/checkpoint.h"
#include "llmc/run/config.h"

enum resume_rule {
    RESUME_COMMAND, /* about one command: a run neither stores it nor takes it over */
    RESUME_MODEL,   /* refused: the weights were made with it */
    RESUME_STATE,   /* refused: the optimizer's state is of its kind */
    RESUME_ORDER,   /* refused: it decides which samples come next */
    RESUME_DATA,    /* may say otherwise where the data is, but the training data must be the same */
    RESUME_WARNED,  /* applied, with a warning that says what follows */
    RESUME_PLAN,    /* applied, with a warning if the learning rate jumps */
    RESUME_FREE     /* applied */
};

/* False, and RESUME_FREE, for an option that has no row, which is a mistake that a test finds. */
bool resume_rule(const char *option, enum resume_rule *rule);
/* For --help: the options under each rule. The caller frees. */
char *resume_notes(void);

/* The options of the run as it was. */
struct resume {
    struct options options;
    struct run_config config;
    const char *checkpoint; /* its path */
};

/* Takes over what `stored`, from options_export(), says, for every option that `now` was not given. `where`
 * opens the messages. */
bool resume_import(struct options *now, const struct json_t *stored, const char *where, struct error *err);
/* Fills *r from a checkpoint; `now` is of the same command. */
bool resume_open(struct resume *r, const struct options *now, const struct json_t *stored,
                 const char *checkpoint, struct error *err);
void resume_close(struct resume *r);

/* RESUME_MODEL, RESUME_STATE and RESUME_ORDER; `model` is the checkpoint's. Values like 0 and auto, which
 * leave the choice open, become those of the run. */
bool resume_check_fixed(const struct resume *r, struct options *now, const struct gpt_config *model,
                        struct error *err);
/* RESUME_DATA, and the warning about validation data: `then` is what the checkpoint says, `found` what has
 * been opened now. */
bool resume_check_data(const struct resume *r, const struct options *now, const struct train_state *then,
                       const struct train_state *found, struct error *err);
/* Where the data goes on: the same token, also if an epoch now has another number of samples, because whole
 * documents fill it up to another number of tokens in a step. */
int64_t resume_sample(const struct train_state *then, int64_t epoch_samples);
/* RESUME_WARNED and RESUME_PLAN, when all values have been chosen. */
void resume_warn(const struct resume *r, const struct options *now, const struct run_config *c, int64_t step);

#endif
