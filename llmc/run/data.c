/* The data of a run: see data.h. */
#include "llmc/run/data.h"

#include "llmc/corpus/corpus.h"
#include "llmc/format/checkpoint.h"
#include "llmc/format/model_config.h"
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

/* --tokenizer against the one that the weights were trained with. A resumed run cannot change it; a new run
 * may, and learns its embeddings anew. */
static bool check_given_tokenizer(const struct run_data *d, const struct run_config *c,
                                  const struct run_weights *w, struct error *err) {
    const char *checkpoint = w->checkpoint;
    if (!checkpoint || checkpoint_tokenizer_is(checkpoint, d->tokenizer)) return true;
    if (w->resumed)
        return fail(
            err,
            "--tokenizer %s: is not the tokenizer of %s; leave the option out at --resume, or start a "
            "new run from these weights: --model %s",
            c->tokenizer, checkpoint, checkpoint);
    warn("--tokenizer %s is not the tokenizer of %s: the same numbers are other tokens, and the model has to "
         "learn them anew",
         c->tokenizer, checkpoint);
    return true;
}

static struct tokenizer *new_tokenizer(const struct run_data *d, const struct run_config *c,
                                       const struct corpus *corpus, struct error *err) {
    int64_t asked = c->shape.vocab_size, vocab = asked ? asked : d->stories ? STORIES_VOCAB : TEXT_VOCAB;
    if (vocab < 257) {
        fail(err, "--vocab-size %" PRId64 ": a byte-level tokenizer has at least 257 tokens", vocab);
        return NULL;
    }
    struct tokenizer *t = train_tokenizer(corpus, vocab, err);
    if (t && tokenizer_vocab_size(t) < asked)
        warn("--vocab-size %" PRId64 ": the text is too small for more than %d different tokens", asked,
             tokenizer_vocab_size(t));
    return t;
}

/* A tokenizer that was there before decides how many tokens there are; --vocab-size can only add rows to the
 * model. */
static bool choose_vocabulary(struct run_data *d, const struct run_config *c, struct error *err) {
    int64_t tokens = d->tokenizer ? tokenizer_vocab_size(d->tokenizer) : 0, asked = c->shape.vocab_size;
    d->vocab_size = max_i64(tokens, asked);
    return !asked || asked >= tokens ||
           fail(err,
                "--vocab-size %" PRId64 ": the tokenizer has %" PRId64
                " tokens, and each needs a row of the model; leave the option out, or give at least as many",
                asked, tokens);
}

/* Of token shards it may stay unknown. */
static bool choose_tokenizer(struct run_data *d, const struct run_config *c, const struct run_weights *w,
                             const struct corpus *corpus, struct error *err) {
    err->message[0] = '\0';
    if (w->checkpoint && (!c->tokenizer || w->tokenizer_is_stored))
        d->tokenizer = checkpoint_load_tokenizer(w->checkpoint, err);
    if (!d->tokenizer && !err->message[0] && c->tokenizer) {
        d->tokenizer = tokenizer_open(c->tokenizer, err);
        if (!d->tokenizer || !check_given_tokenizer(d, c, w, err)) return false;
    }
    if (!d->tokenizer && !err->message[0] && !corpus) d->tokenizer = shard_tokenizer_load(&d->shards, err);
    if (!d->tokenizer && err->message[0]) return false;
    if (!d->tokenizer && corpus && w->checkpoint)
        return fail(err, "%s has no tokenizer.json; --tokenizer must name the tokenizer it was trained with",
                    w->checkpoint);
    if (d->tokenizer || !corpus) return w->resumed || choose_vocabulary(d, c, err);
    d->tokenizer = new_tokenizer(d, c, corpus, err);
    if (d->tokenizer) d->vocab_size = tokenizer_vocab_size(d->tokenizer);
    return d->tokenizer != NULL;
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

/* Several processes cannot read one stream. */
static bool check_read_once(const char *option, const char *path, int64_t world, struct error *err) {
    return world <= 1 || !reads_once(path) ||
           fail(err, "--%s %s: each of the %" PRId64 " processes reads the text: put it into a file", option,
                path, world);
}

static bool open_corpus(struct run_data *d, const struct run_config *c, struct corpus *corpus,
                        struct error *err) {
    if (!c->text) {
        d->stories = true;
        corpus_stories(corpus, STORIES_SEED, c->stories, c->validation_fraction);
        return true;
    }
    struct text_options options = {.format = c->format, .field = c->field, .leave_out = run_wrote};
    if (!check_read_once("text", c->text, c->world, err)) return false;
    if (!corpus_open(corpus, c->text, &options, c->validation_fraction, err)) return false;
    corpus_warn(corpus, c->text, c->field);
    return true;
}

static bool encode(struct run_data *d, const struct run_config *c, const struct corpus *corpus,
                   struct error *err) {
    uint32_t *train = NULL, *val = NULL;
    int64_t train_count, val_count = 0;
    if (!corpus_encode(corpus, false, d->tokenizer, &train, &train_count, err)) return false;
    if (corpus->validation_bytes && !corpus_encode(corpus, true, d->tokenizer, &val, &val_count, err)) {
        free(train);
        return false;
    }
    const char *name = c->text ? c->text : "the built-in stories";
    int64_t vocab = tokenizer_vocab_size(d->tokenizer);
    d->train = dataset_from_tokens(name, train, train_count, vocab);
    if (val) d->val = dataset_from_tokens(name, val, val_count, vocab);
    d->val_order = SAMPLES_DOCUMENTS;
    if (d->stories && val) d->floor_loss = stories_floor(corpus, val_count - 1);
    snprintf(d->summary, sizeof d->summary,
             "%s: %" PRId64 " documents, %s, %stokens (%.2f bytes a token); %stokens for validation", name,
             corpus->count, human_bytes((double)corpus->bytes), human_count((double)train_count),
             (double)(corpus->bytes - corpus->validation_bytes) / (double)train_count,
             human_count((double)val_count));
    return true;
}

/* --- conversations and pairs --- */

static bool need_tokenizer(const struct run_data *d, const struct run_config *c, struct error *err) {
    return d->tokenizer ||
           fail(err, "--%s %s: there is no tokenizer; --tokenizer names one, or --model a directory with one",
                run_samples_option(c), run_samples_file(c));
}

/* By the tokens that begin and end a text of the weights' model. */
static bool open_chat_format(struct run_data *d, const struct run_config *c, const struct run_weights *w,
                             struct error *err) {
    struct gpt_config model = {.vocab_size = 0};
    if (w->checkpoint && !checkpoint_config(&model, w->checkpoint, err)) return false;
    if (!model_chat_open(&d->chat, c->chat_template, d->tokenizer, &model, err)) return false;
    char *jinja = xstrdup(chat_jinja(&d->chat));
    tokenizer_set_chat_template(d->tokenizer, jinja);
    free(jinja);
    return true;
}

/* Samples answer the first one of the validation set, or of all. */
static int64_t first_of(const bool *validation, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (validation[i]) return i;
    return 0;
}

static bool choose_chat_prompt(struct run_data *d, const struct conversation *c, struct error *err) {
    int64_t count = 0;
    while (c->messages[count].role != CHAT_ASSISTANT) count++;
    d->prompt_text = xstrdup(count ? c->messages[count - 1].text : "");
    d->prompt_end = d->chat.end_of_turn;
    return chat_render(&d->chat, c->messages, count, true, &d->prompt, err);
}

/* Both sets are there, and `kept` of `all` samples are for validation. */
static void summarize(struct run_data *d, const struct run_config *c, const char *what, int64_t all,
                      const bool *validation) {
    int64_t kept = 0;
    for (int64_t i = 0; i < all; i++) kept += validation[i];
    d->val_order = SAMPLES_APART;
    snprintf(d->summary, sizeof d->summary, "%.120s: %" PRId64 " %s, %stokens; %" PRId64 " for validation",
             run_samples_file(c), all - kept, what, human_count((double)dataset_tokens(d->train)), kept);
}

static bool open_chat(struct run_data *d, struct run_config *c, const struct run_weights *w,
                      struct error *err) {
    struct chat_file f;
    if (!open_chat_format(d, c, w, err) || !chat_file_read(&f, c->chat, err)) return false;
    bool *validation = chat_file_split(&f, c->validation_fraction, err);
    bool ok = validation && choose_chat_prompt(d, &f.conversations[first_of(validation, f.count)], err) &&
              (d->train = chat_file_encode(&f, validation, false, &d->chat, &c->longest, err));
    if (ok && validation[first_of(validation, f.count)])
        ok = (d->val = chat_file_encode(&f, validation, true, &d->chat, &c->longest, err)) != NULL;
    if (ok)
        summarize(d, c, temp_printf("conversations by the template %s", chat_family_name(d->chat.family)),
                  f.count, validation);
    free(validation);
    chat_file_free(&f);
    return ok;
}

static bool open_pairs(struct run_data *d, struct run_config *c, struct error *err) {
    struct pair_file f;
    if (run_end_of_text(d) < 0)
        return fail(err, "--pairs %s: the tokenizer has no <|endoftext|>, which ends a source and a target",
                    c->pairs);
    if (!pair_file_read(&f, c->pairs, err)) return false;
    bool *validation = pair_file_split(&f, c->validation_fraction, err);
    bool ok =
        validation && (d->train = pair_file_encode(&f, validation, false, d->tokenizer, &c->longest, err));
    if (ok) {
        int64_t first = first_of(validation, f.count);
        d->prompt_text = xstrdup(f.pairs[first].source);
        d->prompt_end = run_end_of_text(d);
        ok = encode_source(d->tokenizer, d->prompt_text, &d->prompt.ids, err) &&
             (!validation[first] ||
              (d->val = pair_file_encode(&f, validation, true, d->tokenizer, &c->longest, err)));
    }
    if (ok) summarize(d, c, "pairs", f.count, validation);
    free(validation);
    pair_file_free(&f);
    return ok;
}

static bool open_apart(struct run_data *d, struct run_config *c, const struct run_weights *w,
                       struct error *err) {
    c->longest = 0;
    return check_read_once(run_samples_option(c), run_samples_file(c), c->world, err) &&
           choose_tokenizer(d, c, w, NULL, err) && need_tokenizer(d, c, err) &&
           (c->chat ? open_chat(d, c, w, err) : open_pairs(d, c, err));
}

/* --- opening --- */

/* Ids are limited later, by run_data_set_vocabulary(). */
static bool open_shards(struct run_data *d, const struct run_config *c, struct error *err) {
    if (!(d->train = dataset_open_mixture(c->data, INT64_MAX, err)) ||
        !shard_tokenizer_find(&d->shards, d->train, err))
        return false;
    return !c->val || ((d->val = dataset_open(c->val, INT64_MAX, err)) &&
                       shard_tokenizer_find(&d->val_shards, d->val, err));
}

/* What is known of the tokenizers of --data, --val and the model must agree. */
static bool check_tokenizers(const struct run_data *d, const struct run_config *c, const char *checkpoint,
                             struct error *err) {
    const struct shard_tokenizer *data = &d->shards, *val = &d->val_shards;
    const char *whose = c->tokenizer ? temp_printf("--tokenizer %s", c->tokenizer)
                                     : temp_printf("that of %s", checkpoint ? checkpoint : c->data);
    if (!shard_tokenizer_is(data, d->tokenizer, temp_printf("--data %s", c->data), whose, err)) return false;
    if (data->known && val->known && data->hash != val->hash)
        return fail(
            err,
            "--val %s and --data %s were made with different tokenizers, as the manifest.json in %s and "
            "in %s says",
            c->val, c->data, val->directory, data->directory);
    return shard_tokenizer_is(val, d->tokenizer, temp_printf("--val %s", c->val ? c->val : ""), whose, err);
}

static bool open_data(struct run_data *d, const struct run_config *c, const struct run_weights *w,
                      struct error *err) {
    const char *twice, *same;
    if (!open_shards(d, c, err) || !choose_tokenizer(d, c, w, NULL, err) ||
        !check_tokenizers(d, c, w->checkpoint, err))
        return false;
    if (d->val && dataset_overlap(d->train, d->val, &twice, &same))
        warn("%s of --val has the tokens of %s, which is trained on: its loss says nothing about text that "
             "the model has not seen",
             same, twice);
    d->val_order = SAMPLES_IN_ORDER;
    snprintf(d->summary, sizeof d->summary, "%.160s: %" PRId64 " shards, %stokens%s", c->data,
             dataset_shards(d->train), human_count((double)dataset_tokens(d->train)),
             d->val ? "" : "; no --val: nothing to validate on");
    return true;
}

static bool open_text(struct run_data *d, const struct run_config *c, const struct run_weights *w,
                      struct error *err) {
    struct corpus corpus;
    if (!open_corpus(d, c, &corpus, err)) return false;
    bool ok = choose_tokenizer(d, c, w, &corpus, err) && encode(d, c, &corpus, err);
    corpus_free(&corpus);
    return ok;
}

bool run_data_open(struct run_data *d, struct run_config *c, const struct run_weights *w, struct error *err) {
    memset(d, 0, sizeof *d);
    d->floor_loss = NAN;
    if (c->text && c->data) return fail(err, "--text and --data exclude each other: give one of them");
    if (run_samples_file(c) && (c->text || c->data))
        return fail(err, "--%s and --%s exclude each other: give one of them", run_samples_option(c),
                    c->text ? "text" : "data");
    if (c->chat && c->pairs) return fail(err, "--chat and --pairs exclude each other: give one of them");
    if (c->val && !c->data)
        return fail(err, "--val is for --data; of a text, --validation-fraction is held out");
    return run_samples_file(c) ? open_apart(d, c, w, err)
           : c->data           ? open_data(d, c, w, err)
                               : open_text(d, c, w, err);
}

bool run_data_set_vocabulary(struct run_data *d, int64_t model_vocab, struct error *err) {
    int64_t vocab = d->tokenizer ? tokenizer_vocab_size(d->tokenizer) : model_vocab;
    if (vocab > model_vocab)
        return fail(err, "the tokenizer has %" PRId64 " tokens, the model only %" PRId64, vocab, model_vocab);
    dataset_set_vocabulary(d->train, vocab);
    if (d->val) dataset_set_vocabulary(d->val, vocab);
    return true;
}

bool run_data_check_samples(const struct run_data *d, const struct run_config *c, struct error *err) {
    bool packed = c->samples == SAMPLES_CHOICE_PACKED,
         whole = packed || c->samples == SAMPLES_CHOICE_DOCUMENTS;
    return !whole || run_samples_file(c) || run_end_of_text(d) >= 0 ||
           fail(err, "--samples %s: %s; --samples windows needs no documents",
                packed ? "packed" : "documents",
                d->tokenizer ? "the tokenizer has no <|endoftext|> token that begins one"
                             : "where a document of --data begins is not known: --tokenizer must name the "
                               "tokenizer that the shards were made with");
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
    chat_close(&d->chat);
    chat_tokens_free(&d->prompt);
    free(d->prompt_text);
    shard_tokenizer_free(&d->shards);
    shard_tokenizer_free(&d->val_shards);
    memset(d, 0, sizeof *d);
}
