/* The data of a run: tokenizer, training set and validation set, from --text, --data, or the built-in
 * stories. */
#ifndef LLMC_RUN_DATA_H
#define LLMC_RUN_DATA_H

#include "llmc/corpus/chat_file.h"
#include "llmc/corpus/pair_file.h"
#include "llmc/corpus/shard_manifest.h"
#include "llmc/run/config.h"
#include "llmc/text/tokenizer.h"

struct run_data {
    struct tokenizer *tokenizer; /* NULL: token shards, and no --tokenizer */
    int64_t vocab_size;          /* of a new model: the tokenizer's tokens, or more if --vocab-size says so;
                                    without a tokenizer that of --vocab-size; 0: the preset's */
    struct shard_tokenizer shards, val_shards; /* what the manifests beside --data and --val say */
    struct dataset *train, *val;               /* val may be NULL: no validation */
    enum sample_order val_order;
    double floor_loss;       /* exact entropy of the validation set, nats per target; NAN: unknown */
    bool stories;            /* the built-in corpus, whose samples can be graded */
    struct chat_format chat; /* of --chat */
    /* Of --chat and --pairs, what samples answer: a conversation up to its first answer, or a source. */
    struct chat_tokens prompt;
    char *prompt_text;  /* the user's last words in it, or the source */
    int64_t prompt_end; /* the token that ends an answer */
    char summary[256];  /* one line for the user */
};

/* The weights that the run starts from. */
struct run_weights {
    const char *checkpoint;   /* a directory; NULL: there are none */
    bool resumed;             /* by --resume, which goes on with their tokenizer */
    bool tokenizer_is_stored; /* --tokenizer is of the run that goes on: the checkpoint has that tokenizer */
};

/* Opens the datasets and the tokenizer: the one of --tokenizer, else that of the weights, else the one beside
 * the shards (shard_manifest.h), else it is trained on the text. Refuses shards that were made with another
 * one, as far as their manifests say. Sets c->longest. */
bool run_data_open(struct run_data *d, struct run_config *c, const struct run_weights *w, struct error *err);
/* Token ids are checked against the tokenizer, without one against the model, which is known last. Fails if
 * the tokenizer has more tokens than the model. */
bool run_data_set_vocabulary(struct run_data *d, int64_t model_vocab, struct error *err);
/* Whether --samples can be had: documents need a token that ends them. After run_config_complete(). */
bool run_data_check_samples(const struct run_data *d, const struct run_config *c, struct error *err);
/* Writes the built-in stories for the user to read. A failure is only a warning: the run does not need the
 * file. */
void run_data_write_stories(const struct run_config *c, const char *path);
void run_data_close(struct run_data *d);

/* The token between documents; -1: there is none. */
static inline int64_t run_end_of_text(const struct run_data *d) {
    return d->tokenizer ? tokenizer_end_of_text(d->tokenizer) : -1;
}

#endif
