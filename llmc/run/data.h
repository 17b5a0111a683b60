/* The data of a run: tokenizer, training set and validation set, from --text, --data, or the built-in
 * stories. */
#ifndef LLMC_RUN_DATA_H
#define LLMC_RUN_DATA_H

#include "llmc/corpus/dataloader.h"
#include "llmc/run/config.h"
#include "llmc/text/tokenizer.h"

struct run_data {
    struct tokenizer *tokenizer; /* NULL: token shards, and no --tokenizer */
    int64_t vocab_size;          /* 0: the model's own (token shards) */
    struct dataset *train, *val; /* val may be NULL: no validation */
    enum sample_order val_order;
    int64_t val_bytes; /* of the validation text; 0: unknown */
    double floor_loss; /* exact entropy of the validation set, nats per target; NAN: unknown */
    bool stories;      /* the built-in corpus, whose samples can be graded */
    char summary[256]; /* one line for the user */
};

/* Opens the tokenizer, and the datasets of text and stories. The tokenizer is the one of --tokenizer, else
 * that of `tokenizer_from` (a checkpoint directory, or NULL), else it is trained on the text. */
bool run_data_open(struct run_data *d, const struct run_config *c, const char *tokenizer_from,
                   struct error *err);
/* Opens the token shards of --data and --val; does nothing without --data. Shards come last because their
 * tokens must be below `model_vocab`, which may depend on the tokenizer. */
bool run_data_open_shards(struct run_data *d, const struct run_config *c, int64_t model_vocab,
                          struct error *err);
/* Writes the built-in stories for the user to read. A failure is only a warning: the run does not need the
 * file. */
void run_data_write_stories(const struct run_config *c, const char *path);
void run_data_close(struct run_data *d);

/* The token between documents; -1: there is none. */
static inline int64_t run_end_of_text(const struct run_data *d) {
    return d->tokenizer ? tokenizer_end_of_text(d->tokenizer) : -1;
}

#endif
