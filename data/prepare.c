/* Turns sources of text into token shards. A thread reads a batch of text while the batch before is parsed,
 * divided into training and validation and encoded on all cores. The output depends only on sources and
 * options: batches, shards and the split follow from the text, and results are joined in its order. */
#include "data/prepare.h"

#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/corpus/encode.h"
#include "llmc/corpus/shard.h"
#include "llmc/run/owner.h"
#include "llmc/text/bpe_train.h"
#include "data/prepare_progress.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* --- documents of a batch --- */

struct work {
    struct prepare *p;
    struct prepare_progress progress;
    int64_t complaints; /* lines that were reported */
    bool first;         /* no batch has been seen */
    /* of the batch at hand */
    struct text_documents documents;
    struct document_split split;
};

static void clear_documents(struct work *w) {
    text_documents_close(&w->documents);
    document_split_free(&w->split);
}

/* Reports a line that gives no document. */
static bool complain(struct work *w, const struct text_record *r, const struct text_document *line,
                     bool report, struct error *err) {
    enum { SHOWN = 10 };
    const char *path = w->p->sources.sources[r->source].path;
    if (w->p->o->strict)
        return fail(err, "%s:%lld: %s; without --strict such lines are skipped", path, (long long)r->line,
                    line->reason);
    if (!report || ++w->complaints > SHOWN) return true;
    prepare_progress_end(&w->progress);
    warn("%s:%lld: skipped: %s%s", path, (long long)r->line, line->reason,
         w->complaints == SHOWN ? " (further lines are only counted)" : "");
    return true;
}

/* Divides a batch into w->split. The counts are those of the last pass over the text. */
static bool make_documents(struct work *w, const struct text_batch *b, bool report, struct error *err) {
    text_documents_open(&w->documents, &w->p->sources, b);
    struct text_span *docs = (struct text_span *)xmalloc((size_t)(b->count + 1) * sizeof *docs);
    int64_t count = 0;
    bool ok = true;
    for (int64_t i = 0; ok && i < b->count; i++) {
        struct source_counts *c = &w->p->counts[b->records[i].source];
        const struct text_document *doc = &w->documents.docs[i];
        int64_t remarks[TEXT_REMARKS];
        text_document_counts(doc, remarks);
        for (int k = 0; k < TEXT_REMARKS; k++) c->remarks[k] += remarks[k];
        if (doc->status != LINE_OK) {
            ok = complain(w, &b->records[i], doc, report, err);
        } else if (doc->text.size > 0) {
            docs[count++] = doc->text;
            c->documents++;
            c->text_bytes += doc->text.size;
        }
    }
    bool complete = w->first && b->last;
    w->first = false;
    if (ok && count > 0) {
        /* A single document too small to divide is for training. */
        if (!split_documents(&w->split, docs, count, w->p->o->validation_fraction, complete))
            memset(w->split.validation, 0, (size_t)w->split.count * sizeof *w->split.validation);
    }
    free(docs);
    return ok;
}

static void end_sources(struct prepare *p, const struct text_batch *b) {
    for (int64_t i = 0; i < b->end_count; i++) {
        struct source_counts *c = &p->counts[b->ends[i].source];
        c->done = true;
        c->raw_bytes = b->ends[i].raw_bytes;
        c->hash = b->ends[i].hash;
        c->json = b->ends[i].json;
        if (b->ends[i].left_out) c->left_out = xstrdup(b->ends[i].left_out);
    }
}

/* --- reading ahead --- */

struct ahead {
    struct text_reader *reader;
    int64_t batch_bytes;
    struct text_batch batch[2];
    int next; /* of `batch`: being read */
    pthread_t thread;
    bool running, ok;
    struct error error;
};

static void *read_batch(void *arg) {
    struct ahead *a = (struct ahead *)arg;
    a->ok = text_reader_next(a->reader, &a->batch[a->next], a->batch_bytes, &a->error);
    return NULL;
}

static void start_reading(struct ahead *a) {
    thread_start(&a->thread, read_batch, a, "reads text");
    a->running = true;
}

static void ahead_begin(struct ahead *a, const struct prepare *p, const struct source_cursor *from) {
    *a = (struct ahead){.reader = text_reader_new(&p->sources, from, MOST_DOCUMENT),
                        .batch_bytes = p->o->batch_bytes};
    start_reading(a);
}

/* Returns the batch that was read and starts reading the next. NULL on an error. */
static const struct text_batch *ahead_next(struct ahead *a, struct error *err) {
    pthread_join(a->thread, NULL);
    a->running = false;
    if (!a->ok) {
        *err = a->error;
        return NULL;
    }
    const struct text_batch *b = &a->batch[a->next];
    a->next = !a->next;
    if (!b->last) start_reading(a);
    return b;
}

static void ahead_end(struct ahead *a) {
    if (a->running) pthread_join(a->thread, NULL);
    text_reader_free(a->reader);
    text_batch_free(&a->batch[0]);
    text_batch_free(&a->batch[1]);
}

/* --- training a tokenizer --- */

/* The documents of one side, in their order. The caller frees. */
static struct text_span *side_documents(const struct document_split *s, int side, int64_t *count,
                                        int64_t *bytes) {
    struct text_span *docs = (struct text_span *)xmalloc((size_t)(s->count + 1) * sizeof *docs);
    *count = *bytes = 0;
    for (int64_t i = 0; i < s->count; i++)
        if (s->validation[i] == (side == VALIDATION)) {
            docs[(*count)++] = s->docs[i];
            *bytes += s->docs[i].size;
        }
    return docs;
}

static bool train_on_batches(struct work *w, struct ahead *a, struct bpe_trainer *trainer,
                             struct error *err) {
    int64_t text = 0, most = w->p->o->tokenizer_text;
    for (const struct text_batch *b; (b = ahead_next(a, err)) != NULL;) {
        if (!make_documents(w, b, true, err)) return false;
        int64_t count, bytes;
        struct text_span *docs = side_documents(&w->split, TRAIN, &count, &bytes);
        bpe_trainer_add(trainer, docs, count, omp_get_max_threads());
        free(docs);
        clear_documents(w);
        text += bytes;
        prepare_progress_show(&w->progress, b->raw_bytes, text, -1);
        if (b->last || (most > 0 && text >= most)) return true;
    }
    return false;
}

/* Trains only on the training side, since the validation set must stay unseen. Reads the sources once. */
static struct tokenizer *train_tokenizer(struct prepare *p, int vocab_size, struct error *err) {
    for (int64_t i = 0; i < p->sources.count; i++)
        if (p->sources.sources[i].size < 0) {
            fail(err,
                 "%s can be read only once, but --tokenizer train:%d reads the text twice: put it into a "
                 "file, or train the tokenizer before",
                 p->sources.sources[i].path, vocab_size);
            return NULL;
        }
    struct work w = {.p = p, .first = true};
    struct ahead a;
    struct bpe_trainer *trainer = bpe_trainer_new();
    prepare_progress_start(&w.progress, "counting words", p->sources.total_size, 0);
    ahead_begin(&a, p, NULL);
    bool ok = train_on_batches(&w, &a, trainer, err);
    clear_documents(&w);
    ahead_end(&a);
    prepare_progress_end(&w.progress);
    struct tokenizer *t = ok ? bpe_trainer_finish(trainer, vocab_size, err) : NULL;
    bpe_trainer_free(trainer);
    for (int64_t i = 0; i < p->sources.count; i++) free(p->counts[i].left_out);
    memset(p->counts, 0, (size_t)p->sources.count * sizeof *p->counts); /* the next pass counts again */
    return t;
}

/* --- choosing a tokenizer --- */

/* N of "train:N", 0 for any other text, -1 if N is invalid. */
static int64_t trained_size(const char *spec) {
    if (strncmp(spec, "train:", 6) != 0) return 0;
    char *end;
    errno = 0;
    long long n = strtoll(spec + 6, &end, 10);
    return errno || end == spec + 6 || *end || n < 257 || n > 1000000 ? -1 : n;
}

/* `continued`: an interrupted run left its trained tokenizer, which is used again. */
static struct tokenizer *choose_tokenizer(struct prepare *p, bool continued, struct error *err) {
    static const char gpt2[] = "data/gpt2";
    const char *spec = p->o->tokenizer;
    int64_t train = trained_size(spec);
    if (train < 0) {
        fail(err, "--tokenizer %s: expected train:N with N from 257 to 1000000", spec);
        return NULL;
    }
    if (train > 0 && !continued) return train_tokenizer(p, (int)train, err);
    if (train > 0) {
        char *path = xasprintf("%s/tokenizer.json", p->o->out);
        struct tokenizer *t = tokenizer_load(path, err);
        free(path);
        return t;
    }
    if (strcmp(spec, "bytes") == 0) return tokenizer_bytes();
    if (strcmp(spec, "gpt2") != 0) return tokenizer_load(spec, err);
    if (path_is_directory(gpt2)) return tokenizer_load(gpt2, err);
    fail(err,
         "--tokenizer gpt2: GPT-2's published files are not in %s; run data/download.sh gpt2, or give the "
         "directory that holds them (vocab.bpe and encoder.json, or tokenizer.json)",
         gpt2);
    return NULL;
}

/* A tokenizer.json that no manifest says to be of prepare stays as it is: it must be the same one. */
static bool check_saved_tokenizer(const struct prepare *p, const char *path, struct error *err) {
    struct tokenizer *there = tokenizer_load(path, err);
    bool same = there && tokenizer_hash(there) == tokenizer_hash(p->tokenizer);
    tokenizer_free(there);
    return same ||
           fail(err,
                "%s: is there, and is not the tokenizer of these shards; no manifest.json says that prepare "
                "wrote it: give another --out",
                path);
}

static bool save_tokenizer(struct prepare *p, bool may_replace, struct error *err) {
    char *path = xasprintf("%s/tokenizer.json", p->o->out);
    bool there = path_exists(path);
    bool ok =
        there && !may_replace ? check_saved_tokenizer(p, path, err) : tokenizer_save(p->tokenizer, path, err);
    p->made_tokenizer = ok && !there;
    free(path);
    return ok;
}

/* --- encoding --- */

static bool encode_side(struct work *w, int side, struct token_buffer *tokens, struct error *err) {
    struct prepare *p = w->p;
    int64_t count, bytes;
    struct text_span *docs = side_documents(&w->split, side, &count, &bytes);
    tokens->count = 0;
    bool ok = encode_documents(tokens, p->tokenizer, docs, count, err) &&
              shard_set_append(&p->side[side], tokens->ids, tokens->count, err);
    free(docs);
    p->documents[side] += count;
    p->text_bytes[side] += bytes;
    return ok;
}

/* Ends the last document of each side, unless that would need a further shard. */
static bool finish_sides(struct prepare *p, struct error *err) {
    uint32_t end = (uint32_t)tokenizer_end_of_text(p->tokenizer);
    for (int side = 0; side < SIDES; side++) {
        struct shard_set *s = &p->side[side];
        if (s->fd >= 0 && !shard_set_append(s, &end, 1, err)) return false;
        if (!shard_set_finish(s, err)) return false;
    }
    return true;
}

/* --- committing --- */

static bool commit(struct prepare *p, struct error *err) {
    for (int side = 0; side < SIDES; side++)
        if (!shard_set_sync(&p->side[side], err)) return false;
    if (!manifest_write(p, false, err)) return false;
    for (int side = 0; side < SIDES; side++)
        if (!shard_set_publish(&p->side[side], err)) return false;
    return true;
}

/* After every finished shard, and every few seconds. */
static bool commit_is_due(const struct prepare *p, double last) {
    for (int side = 0; side < SIDES; side++) {
        const struct shard_set *s = &p->side[side];
        if (s->count > 0 && !s->shards[s->count - 1].published) return true;
    }
    return now_seconds() - last > 5;
}

static bool encode_batches(struct work *w, struct ahead *a, struct error *err) {
    struct prepare *p = w->p;
    struct token_buffer tokens = {0};
    double last_commit = now_seconds();
    int64_t first_text = p->text_bytes[TRAIN] + p->text_bytes[VALIDATION];
    bool ok = true, more = true, report = trained_size(p->o->tokenizer) == 0;
    while (ok && more) {
        const struct text_batch *b = ahead_next(a, err);
        ok = b && make_documents(w, b, report, err) && encode_side(w, TRAIN, &tokens, err) &&
             encode_side(w, VALIDATION, &tokens, err);
        clear_documents(w);
        if (!ok) break;
        end_sources(p, b);
        p->next = b->next;
        more = !b->last;
        if (!more) {
            ok = finish_sides(p, err);
            p->finished = true;
        }
        if (ok && (!more || commit_is_due(p, last_commit))) {
            ok = commit(p, err);
            last_commit = now_seconds();
        }
        prepare_progress_show(&w->progress, b->raw_bytes,
                              p->text_bytes[TRAIN] + p->text_bytes[VALIDATION] - first_text,
                              p->side[TRAIN].total_tokens + p->side[VALIDATION].total_tokens);
    }
    token_buffer_free(&tokens);
    return ok;
}

static bool encode_all(struct prepare *p, struct error *err) {
    if (p->finished) return true;
    struct work w = {.p = p, .first = p->next.source == 0 && p->next.offset == 0};
    struct ahead a;
    int64_t done = 0;
    for (int64_t i = 0; i < p->next.source; i++) done += max_i64(p->sources.sources[i].size, 0);
    prepare_progress_start(&w.progress, "encoding", p->sources.total_size, done);
    ahead_begin(&a, p, &p->next);
    bool ok = encode_batches(&w, &a, err);
    ahead_end(&a);
    prepare_progress_end(&w.progress);
    return ok;
}

/* --- the whole --- */

/* One run per directory: the lock goes with the process. */
static bool lock_directory(const char *out, int *fd, struct error *err) {
    *fd = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0) return fail(err, "%s: cannot open directory: %s", out, strerror(errno));
    if (flock(*fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return true;
    close(*fd);
    *fd = -1;
    return fail(err, "%s: another build/prepare is writing into this directory", out);
}

static bool check_output(const struct prepare_options *o, json_t **manifest, bool *complete,
                         struct error *err) {
    *manifest = manifest_read(o->out, complete, err);
    if (!*manifest && err->message[0]) return false;
    if (!*manifest) return manifest_check_names(o->out, o->name, o->overwrite, err);
    if (o->resume || o->overwrite) return true;
    return fail(err,
                *complete
                    ? "%s: holds finished shards already: give another --out, or --overwrite to delete them"
                    : "%s: holds the shards of an interrupted run: --resume continues it, "
                      "--overwrite deletes them",
                o->out);
}

/* What this program and runs have written is no input. */
static bool is_output(void *user, const char *path) {
    const char *out = (const char *)user;
    char *real = path_is_directory(path) ? realpath(path, NULL) : NULL;
    bool ours = real && strcmp(real, out) == 0;
    free(real);
    return ours || run_wrote(NULL, path);
}

static bool find_sources(struct prepare *p, const char *const *inputs, int count, struct error *err) {
    char *out = realpath(p->o->out, NULL);
    p->sources.options = (struct text_options){.format = (enum text_format)p->o->format,
                                               .field = p->o->field,
                                               .leave_out = is_output,
                                               .leave_out_user = out};
    bool ok = true;
    for (int i = 0; ok && i < count; i++)
        ok = is_output(out, inputs[i]) || source_list_add(&p->sources, inputs[i], err);
    free(out);
    if (ok && p->sources.count == 0) ok = fail(err, "%s: no file in this directory", inputs[0]);
    p->counts = (struct source_counts *)xcalloc((size_t)p->sources.count + 1, sizeof *p->counts);
    return ok;
}

/* A command that can be pasted. */
static void say_training(const struct prepare *p) {
    static const char *const options[] = {" --data ", " --val ", " --tokenizer "};
    char *program = program_name("train_gpt");
    const char *slash = path_ends_with(p->o->out, "/") ? "" : "/";
    char *paths[] = {xasprintf("%s%s%s_train_*.bin", p->o->out, slash, p->o->name),
                     xasprintf("%s%s%s_val_*.bin", p->o->out, slash, p->o->name),
                     xasprintf("%s%stokenizer.json", p->o->out, slash)};
    say("train on them with\n  %s", program);
    for (size_t i = 0; i < ARRAY_LENGTH(paths); i++) {
        char *quoted = shell_quote(paths[i]);
        if (i != 1 || p->side[VALIDATION].count) say("%s%s", options[i], quoted);
        free(quoted);
        free(paths[i]);
    }
    say("\n");
    free(program);
}

static void say_result(const struct prepare *p) {
    struct text_remarks remarks = {0};
    for (int64_t i = 0; i < p->sources.count; i++) {
        for (int k = 0; k < TEXT_REMARKS; k++) remarks.count[k] += p->counts[i].remarks[k];
        text_remarks_add_file(&remarks, p->counts[i].left_out, p->counts[i].json);
    }
    static const char *const names[SIDES] = {"training:  ", "validation:"};
    for (int side = 0; side < SIDES; side++)
        printf("%s %lld documents, %s, %lld tokens (%.2f bytes each) in %lld shard%s\n", names[side],
               (long long)p->documents[side], human_bytes((double)p->text_bytes[side]),
               (long long)p->side[side].total_tokens,
               p->side[side].total_tokens ? (double)p->text_bytes[side] / (double)p->side[side].total_tokens
                                          : 0.0,
               (long long)p->side[side].count, p->side[side].count == 1 ? "" : "s");
    text_remarks_check_field(&remarks, p->o->field);
    char *remark;
    for (int i = 0; (remark = text_remark(&remarks, i)) != NULL; free(remark), i++) printf("%s\n", remark);
    if (p->side[VALIDATION].count == 0 && p->o->validation_fraction > 0)
        warn("no document was chosen for validation: there are too few for --validation-fraction %g",
             p->o->validation_fraction);
    say_training(p);
}

/* A run without progress leaves nothing; one with progress can be resumed. */
static void clean_up(const struct prepare *p, struct error *err) {
    char *note = xasprintf("%s/manifest.json.partial", p->o->out);
    if (p->side[TRAIN].total_tokens + p->side[VALIDATION].total_tokens == 0) unlink(note);
    if (path_exists(note)) {
        size_t n = strlen(err->message);
        snprintf(err->message + n, sizeof err->message - n,
                 "\n  finished work is kept: the same command with --resume continues it");
    } else {
        char *tokenizer = xasprintf("%s/tokenizer.json", p->o->out);
        if (p->made_tokenizer) unlink(tokenizer);
        free(tokenizer);
        manifest_clear(p->o->out, p->o->name, false, NULL);
    }
    free(note);
}

static bool run_locked(struct prepare *p, const char *const *inputs, int input_count, struct error *err) {
    json_t *manifest = NULL;
    bool complete = false, again = p->o->overwrite;
    bool ok = check_output(p->o, &manifest, &complete, err) && find_sources(p, inputs, input_count, err) &&
              (p->tokenizer = choose_tokenizer(p, manifest && !again, err)) != NULL;
    if (ok && tokenizer_end_of_text(p->tokenizer) < 0)
        ok = fail(err, "--tokenizer %s: has no <|endoftext|> token to separate documents with",
                  p->o->tokenizer);
    if (ok) {
        static const char *const sides[SIDES] = {"train", "val"};
        for (int side = 0; side < SIDES; side++) {
            char *name = xasprintf("%s_%s", p->o->name, sides[side]);
            shard_set_init(&p->side[side], p->o->out, name,
                           shard_token_bytes(tokenizer_vocab_size(p->tokenizer)), p->o->shard_tokens);
            free(name);
        }
        /* input and tokenizer are good: now the old shards can go */
        ok = manifest && !again ? manifest_restore(p, manifest, complete, err)
                                : manifest_clear(p->o->out, p->o->name, again, err) &&
                                      save_tokenizer(p, manifest != NULL, err);
        bool restored = ok;
        ok = ok && encode_all(p, err);
        if (ok && p->side[TRAIN].count == 0)
            ok =
                fail(err, "%s%s: no text was found in %lld file%s", inputs[0], input_count > 1 ? ", ..." : "",
                     (long long)p->sources.count, p->sources.count == 1 ? "" : "s");
        ok = ok && shard_set_publish(&p->side[TRAIN], err) && shard_set_publish(&p->side[VALIDATION], err) &&
             manifest_write(p, true, err);
        if (!ok && restored) clean_up(p, err);
    }
    json_decref(manifest);
    if (!ok) return false;
    char *note = xasprintf("%s/manifest.json.partial", p->o->out);
    if (unlink(note) != 0 && errno != ENOENT) ok = fail(err, "%s: cannot remove: %s", note, strerror(errno));
    free(note);
    if (ok) say_result(p);
    return ok;
}

bool prepare_run(const struct prepare_options *o, const char *const *inputs, int input_count,
                 struct error *err) {
    struct prepare p = {.o = o};
    int lock;
    if (o->threads > 0) omp_set_num_threads((int)o->threads);
    size_t existed = path_existing(o->out);
    if (!make_directories(o->out, err) || !lock_directory(o->out, &lock, err)) return false;
    bool ok = run_locked(&p, inputs, input_count, err);
    if (!ok) remove_empty_directories(o->out, existed);
    for (int side = 0; side < SIDES; side++)
        if (p.side[side].dir) shard_set_free(&p.side[side]);
    tokenizer_free(p.tokenizer);
    for (int64_t i = 0; i < p.sources.count; i++) free(p.counts[i].left_out);
    source_list_free(&p.sources);
    free(p.counts);
    close(lock);
    return ok;
}
