/* The data of a run: what --text, --data or neither (the built-in stories) come to. */
#ifndef LLMC_RUN_DATA_H
#define LLMC_RUN_DATA_H

#include "llmc/corpus/dataloader.h"
#include "llmc/run/config.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct run_data {
    struct tokenizer *tokenizer; /* NULL: token shards without one */
    int64_t vocab_size;          /* 0: the model's own (token shards) */
    struct dataset *train, *val; /* val is NULL when there is nothing to validate on */
    enum sample_order val_order;
    int64_t val_bytes; /* of text behind the validation tokens; 0: unknown */
    double floor_loss; /* exact entropy of the validation set, nats per target; NAN: unknown */
    bool stories;      /* the built-in corpus: samples can be graded */
    char summary[256]; /* one line for the user */
};

/* Makes the tokenizer (from `tokenizer_from`, a checkpoint directory, if that has one and --tokenizer is
 * not given; else as the options say) and, for text and stories, the datasets. `model_vocab` is the
 * vocabulary that shards must fit; pass 0 before the model is known: shards are then opened by
 * run_data_open_shards. With `corpus_path`, the stories are written there for the user to look at. */
bool run_data_open(struct run_data *d, const struct run_config *c, const char *tokenizer_from,
                   const char *corpus_path, struct error *err);
bool run_data_open_shards(struct run_data *d, const struct run_config *c, int64_t model_vocab,
                          struct error *err);
void run_data_close(struct run_data *d);

#ifdef __cplusplus
}
#endif
#endif
