/* The data of a run: see data.h. */
#include "llmc/run/data.h"

#include "llmc/corpus/corpus.h"
#include "llmc/format/checkpoint.h"
#include "llmc/run/owner.h"
#include "llmc/stories/stories.h"
#include "llmc/text/bpe_train.h"

#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { STORIES_SEED = 1, STORIES_VOCAB = 1024, TEXT_VOCAB = 4096 };

/* --- tokenizer --- */

/* From the training documents only: nothing of the validation set may influence the model. */
static struct tokenizer *train_tokenizer(const struct corpus *c, int64_t vocab_size, struct error *err) {
    struct text_span *docs = (struct text_span *)xmalloc((size_t)c->count * sizeof *docs);
    int64_t count = 0;
    for (int64_t i = 0; i < c->count; i++)
        if (!c->validation[i]) docs[count++] = c->docs[i];
    struct tokenizer *t = tokenizer_train(docs, count, (int)vocab_size, omp_get_max_threads(), err);
    free(docs);
    return t;
}

static bool choose_tokenizer(struct run_data *d, const struct run_config *c, const char *from,
                             const struct corpus *corpus, struct error *err) {
    if (c->tokenizer) {
        d->tokenizer =
            strcmp(c->tokenizer, "bytes") == 0 ? tokenizer_bytes() : tokenizer_load(c->tokenizer, err);
    } else if (from) {
        d->tokenizer = checkpoint_load_tokenizer(from, err);
        if (!d->tokenizer && err->message[0]) return false;
        if (!d->tokenizer && corpus)
            return fail(err,
                        "%s has no tokenizer.json; --tokenizer must name the tokenizer it was trained with",
                        from);
    } else if (corpus) {
        int64_t vocab = c->shape.vocab_size ? c->shape.vocab_size : d->stories ? STORIES_VOCAB : TEXT_VOCAB;
        if (vocab < 257)
            return fail(err, "--vocab-size %" PRId64 ": a byte-level tokenizer has at least 257 tokens",
                        vocab);
        d->tokenizer = train_tokenizer(corpus, vocab, err);
    }
    if (!d->tokenizer) return !corpus && !c->tokenizer;
    d->vocab_size = tokenizer_vocab_size(d->tokenizer);
    if (corpus && tokenizer_end_of_text(d->tokenizer) < 0)
        return fail(err, "the tokenizer has no <|endoftext|> token to separate documents with");
    return true;
}

/* --- text and stories --- */

/* The entropy of the validation stories in nats per target: minus the log of each story's probability under
 * the grammar, over the tokens that the loss is averaged over. */
static double stories_floor(const struct corpus *c, int64_t targets) {
    double total = 0.0;
#pragma omp parallel for reduction(+ : total) schedule(static)
    for (int64_t i = 0; i < c->count; i++)
        if (c->validation[i]) total -= story_log_probability(c->docs[i].data, c->docs[i].size);
    return total / (double)targets;
}

static bool reads_once(const char *path) {
    struct stat st;
    return strcmp(path, "-") == 0 || (stat(path, &st) == 0 && S_ISFIFO(st.st_mode));
}

static bool open_corpus(struct run_data *d, const struct run_config *c, struct corpus *corpus,
                        struct error *err) {
    if (!c->text) {
        d->stories = true;
        corpus_stories(corpus, STORIES_SEED, c->stories, c->validation_fraction);
        return true;
    }
    struct text_options options = {.format = c->format, .field = c->field, .leave_out = run_wrote};
    if (reads_once(c->text) && c->world > 1)
        return fail(err, "--text %s: each of the %" PRId64 " processes reads the text: put it into a file",
                    c->text, c->world);
    if (!corpus_open(corpus, c->text, &options, c->validation_fraction, err)) return false;
    corpus_warn(corpus, c->text);
    return true;
}

static bool encode(struct run_data *d, const struct run_config *c, const struct corpus *corpus,
                   struct error *err) {
    uint32_t *train = NULL, *val = NULL;
    int64_t train_count, val_count;
    if (!corpus_encode(corpus, false, d->tokenizer, &train, &train_count, err)) return false;
    if (!corpus_encode(corpus, true, d->tokenizer, &val, &val_count, err)) {
        free(train);
        return false;
    }
    const char *name = c->text ? c->text : "the built-in stories";
    d->train = dataset_from_tokens(name, train, train_count, d->vocab_size);
    d->val = dataset_from_tokens(name, val, val_count, d->vocab_size);
    d->val_order = SAMPLES_DOCUMENTS;
    d->val_bytes = corpus->validation_bytes;
    if (d->stories) d->floor_loss = stories_floor(corpus, val_count - 1);
    snprintf(d->summary, sizeof d->summary,
             "%s: %" PRId64 " documents, %s, %stokens (%.2f bytes a token); %stokens for validation", name,
             corpus->count, human_bytes((double)corpus->bytes), human_count((double)train_count),
             (double)(corpus->bytes - corpus->validation_bytes) / (double)train_count,
             human_count((double)val_count));
    return true;
}

/* --- opening --- */

bool run_data_open(struct run_data *d, const struct run_config *c, const char *tokenizer_from,
                   struct error *err) {
    memset(d, 0, sizeof *d);
    d->floor_loss = NAN;
    if (c->text && c->data) return fail(err, "--text and --data exclude each other: give one of them");
    if (c->val && !c->data)
        return fail(err, "--val is for --data; of a text, --validation-fraction is held out");
    if (c->data) return choose_tokenizer(d, c, tokenizer_from, NULL, err);
    struct corpus corpus;
    if (!open_corpus(d, c, &corpus, err)) return false;
    bool ok = choose_tokenizer(d, c, tokenizer_from, &corpus, err) && encode(d, c, &corpus, err);
    corpus_free(&corpus);
    return ok;
}

bool run_data_open_shards(struct run_data *d, const struct run_config *c, int64_t model_vocab,
                          struct error *err) {
    if (!c->data) return true;
    d->train = dataset_open(c->data, model_vocab, err);
    if (!d->train) return false;
    if (c->val && !(d->val = dataset_open(c->val, model_vocab, err))) return false;
    d->val_order = SAMPLES_IN_ORDER;
    snprintf(d->summary, sizeof d->summary, "%.160s: %" PRId64 " shards, %stokens%s", c->data,
             dataset_shards(d->train), human_count((double)dataset_tokens(d->train)),
             d->val ? "" : "; no --val: nothing to validate on");
    return true;
}

void run_data_write_stories(const struct run_config *c, const char *path) {
    struct corpus corpus;
    struct writer w;
    struct error err;
    corpus_stories(&corpus, STORIES_SEED, c->stories, c->validation_fraction);
    bool ok = writer_open(&w, path, &err);
    for (int64_t i = 0; ok && i < corpus.count; i++) {
        writer_put(&w, corpus.docs[i].data, (size_t)corpus.docs[i].size);
        writer_printf(&w, "\n<|endoftext|>\n");
    }
    if (!ok || !writer_close(&w, &err)) warn("%s", err.message);
    corpus_free(&corpus);
}

void run_data_close(struct run_data *d) {
    if (d->train) dataset_free(d->train);
    if (d->val) dataset_free(d->val);
    if (d->tokenizer) tokenizer_free(d->tokenizer);
    memset(d, 0, sizeof *d);
}
