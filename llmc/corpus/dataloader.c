/* Batches of tokens. The tokens of a batch are a pure function of (data, options, sample number), so the
 * only state to save is the number of the next sample: shuffling is a permutation that is computed, not
 * stored. A second thread reads batch i + 1 while the caller works on batch i. */
#include "llmc/corpus/dataset_impl.h"

#include "llmc/base/rng.h"
#include "llmc/corpus/packing.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* --- the permutation --- */

/* A Feistel network on the smallest power of two >= count, with Philox as its round function. An index that
 * lands outside goes through it again until it lands inside ("cycle walking"), after less than two passes
 * on average. The two halves take turns instead of being swapped, so they may have different widths. Eight
 * rounds, because the halves of a small data set have only one or two bits. */
int64_t shuffle_index(uint64_t seed, int64_t epoch, int64_t index, int64_t count) {
    enum { ROUNDS = 8 };
    int bits = 1;
    while (bits < 62 && (int64_t)1 << bits < count) bits++;
    int low_bits = bits / 2;
    uint64_t low_mask = ((uint64_t)1 << low_bits) - 1, high_mask = ((uint64_t)1 << (bits - low_bits)) - 1;
    uint64_t purpose = RNG_SHUFFLE | (uint64_t)epoch << 8, x = (uint64_t)index;
    do {
        uint64_t high = x >> low_bits, low = x & low_mask;
        for (uint64_t round = 0; round < ROUNDS; round += 2) {
            high ^= rng_philox(seed, purpose, round << 32 | low).v[0] & high_mask;
            low ^= rng_philox(seed, purpose, (round + 1) << 32 | high).v[0] & low_mask;
        }
        x = high << low_bits | low;
    } while (x >= (uint64_t)count);
    return (int64_t)x;
}

/* --- samples --- */

struct row {
    int64_t shard, first, length; /* inputs [first, first + length), targets one further */
};

/* Shards that are cut into samples as one: the first, and those behind it that are too short for a sample. */
struct stretch {
    int64_t first_sample, first_token; /* counted from the beginning of the data */
};

/* The tokens of a sample: a row, and with SAMPLES_PACKED those of more pieces behind it. */
struct sample {
    const struct dataloader *l; /* of a mixture: that of the part */
    int64_t first_shard;        /* of the part */
    struct row row;             /* of length 0: an ignored one */
    int64_t piece;              /* the next one, or -1 */
};

struct slot {
    int32_t *tokens, *targets; /* (B,T) */
    int32_t *first;            /* (B,T) of SAMPLES_PACKED */
    int64_t valid_targets;
};

struct dataloader {
    const struct dataset *d;
    struct loader_options o;
    int64_t samples, unused;   /* in an epoch; tokens in no sample */
    int64_t *first_token;      /* (shards) tokens in the shards before */
    struct stretch *stretches; /* (stretch_count) not for orders by rows */
    int64_t stretch_count;
    struct row *rows; /* (row_count) for orders by rows; samples after them are ignored rows */
    int64_t row_count, row_capacity;
    struct packing packing;   /* in place of `rows`, for SAMPLES_PACKED */
    int64_t cut, left_out;    /* samples of marked tokens */
    struct dataloader **part; /* of a mixture: where the samples of each part are; no threads of their own */
    int64_t *first_shard;     /* of each part */

    /* The reading thread's own. */
    struct reader reader;
    struct sample *batch; /* (B) */
    uint32_t *scratch;    /* (T + 1) */

    /* Shared between the threads under the lock. Batches are counted from the last start; batch i is in
     * slot i % 2. */
    struct slot slots[2];
    pthread_mutex_t lock;
    pthread_cond_t may_fill, may_take;
    int64_t filled, released;
    bool quit, failed;
    struct error error;

    /* The caller's own. */
    pthread_t thread;
    int64_t start, taken; /* sample of batch 0; batches handed out */
    int64_t end;          /* samples from here on are ignored rows; fixed while the thread runs */
};

/* The last stretch that begins at or before the sample, and the last shard that begins at or before the
 * token. */
static const struct stretch *stretch_of(const struct dataloader *l, int64_t sample) {
    int64_t low = 0, high = l->stretch_count;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        *(l->stretches[middle].first_sample <= sample ? &low : &high) = middle;
    }
    return &l->stretches[low];
}

static int64_t shard_of(const struct dataloader *l, int64_t token) {
    int64_t low = 0, high = l->d->count;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        *(l->first_token[middle] <= token ? &low : &high) = middle;
    }
    return low;
}

static bool by_rows(const struct loader_options *o) { return o->order >= SAMPLES_DOCUMENTS; }

/* Tokens [token, token + length), counted from the beginning of the data, and the one behind them. */
static struct row row_at(const struct dataloader *l, int64_t token, int64_t length) {
    int64_t shard = shard_of(l, token);
    return (struct row){shard, token - l->first_token[shard], length};
}

/* Goes on to the next piece of a row. False at its end. */
static bool next_piece(struct sample *s) {
    if (s->piece < 0) return false;
    const struct piece *p = &s->l->packing.pieces[s->piece];
    s->row = row_at(s->l, p->first, p->length);
    s->row.shard += s->first_shard;
    s->piece = p->next;
    return true;
}

static struct sample locate(const struct dataloader *l, int64_t sample);

static struct sample locate_in_part(const struct dataloader *l, int64_t sample) {
    int64_t of_part, part = mixture_part(&l->d->mixture, sample, &of_part);
    struct sample s = locate(l->part[part], of_part);
    s.first_shard = l->first_shard[part];
    s.row.shard += s.first_shard;
    return s;
}

static struct sample locate(const struct dataloader *l, int64_t sample) {
    if (l->part && sample < l->end) return locate_in_part(l, sample);
    int64_t index = sample % l->samples, count = by_rows(&l->o) ? l->row_count : l->samples;
    struct sample s = {.l = l, .piece = -1};
    if (index >= count || sample >= l->end) return s;
    if (by_rows(&l->o) ? l->o.shuffle_rows : l->o.order == SAMPLES_SHUFFLED)
        index = shuffle_index(l->o.seed, sample / l->samples, index, count);
    if (l->o.order == SAMPLES_PACKED) {
        s.piece = l->packing.rows[index];
        (void)next_piece(&s);
    } else if (by_rows(&l->o)) {
        s.row = l->rows[index];
    } else {
        const struct stretch *stretch = stretch_of(l, index);
        s.row = row_at(l, stretch->first_token + (index - stretch->first_sample) * l->o.T, l->o.T);
    }
    return s;
}

/* Lets the kernel read a sample ahead. */
static bool prepare_sample(struct dataloader *l, struct sample s, struct error *err) {
    do {
        int64_t here = min_i64(s.row.length + 1, l->d->shards[s.row.shard].tokens - s.row.first);
        if (s.row.length > 0 && !reader_prepare(&l->reader, s.row.shard, s.row.first, here, err))
            return false;
    } while (next_piece(&s));
    return true;
}

/* Row b of a batch. */
static bool fill_row(struct dataloader *l, struct slot *out, int64_t b, struct sample s, struct error *err) {
    int64_t T = l->o.T, at = 0;
    int32_t *tokens = out->tokens + b * T, *targets = out->targets + b * T,
            *first = out->first ? out->first + b * T : NULL; /* (T) */
    do {
        const struct row *r = &s.row;
        if (r->length > 0 && !reader_read_on(&l->reader, r->shard, r->first, r->length + 1, l->scratch, err))
            return false;
        const uint8_t *marks = l->d->marks && r->length ? l->d->marks + r->first : NULL;
        for (int64_t t = 0; t < r->length; t++) {
            bool given = marks && (marks[t + 1] & MARK_GIVEN);
            tokens[at + t] = (int32_t)l->scratch[t];
            targets[at + t] = given ? -1 : (int32_t)l->scratch[t + 1];
            if (first) first[at + t] = (int32_t)at;
            out->valid_targets += !given;
        }
        at += r->length;
    } while (next_piece(&s));
    for (; at < T; at++) {
        tokens[at] = (int32_t)max_i64(l->o.end_of_text, 0);
        targets[at] = -1;
        if (first) first[at] = (int32_t)at;
    }
    return true;
}

static bool fill_slot(struct dataloader *l, struct slot *out, int64_t sample, struct error *err) {
    for (int64_t b = 0; b < l->o.B; b++) {
        l->batch[b] = locate(l, sample + b);
        if (!prepare_sample(l, l->batch[b], err)) return false;
    }
    out->valid_targets = 0;
    for (int64_t b = 0; b < l->o.B; b++)
        if (!fill_row(l, out, b, l->batch[b], err)) return false;
    return true;
}

static void add_row(struct dataloader *l, int64_t shard, int64_t first, int64_t length) {
    if (l->row_count == l->row_capacity) {
        l->row_capacity = l->row_capacity * 2 + 64;
        l->rows = (struct row *)xrealloc(l->rows, (size_t)l->row_capacity * sizeof *l->rows);
    }
    l->rows[l->row_count++] = (struct row){shard, first, length};
}

/* A document, inputs [first, end) of a shard. Of SAMPLES_DOCUMENTS it goes to the row of those before it,
 * as long as they fit, or is cut into rows. */
static void add_document(struct dataloader *l, int64_t shard, int64_t first, int64_t end) {
    struct row *last = l->row_count ? &l->rows[l->row_count - 1] : NULL;
    if (l->o.order == SAMPLES_PACKED)
        packing_add(&l->packing, l->first_token[shard] + first, end - first);
    else if (last && last->shard == shard && last->first + last->length == first &&
             end - last->first <= l->o.T)
        last->length = end - last->first;
    else
        for (; first < end; first += l->o.T) add_row(l, shard, first, min_i64(l->o.T, end - first));
}

/* The first token of a document is the last target of the one before. */
static bool find_documents(struct dataloader *l, int64_t shard, struct error *err) {
    enum { CHUNK = 1 << 16 };
    int64_t n = l->d->shards[shard].tokens, document = 0;
    uint32_t *chunk = (uint32_t *)xmalloc(CHUNK * sizeof *chunk);
    bool ok = true;
    for (int64_t first = 0; ok && first < n; first += CHUNK) {
        int64_t count = min_i64(CHUNK, n - first);
        ok = reader_read(&l->reader, shard, first, count, chunk, err);
        for (int64_t i = 0; ok && i < count; i++) {
            int64_t at = first + i;
            if (at == document || (chunk[i] != (uint32_t)l->o.end_of_text && at < n - 1)) continue;
            add_document(l, shard, document, at);
            document = at;
        }
    }
    free(chunk);
    return ok;
}

static bool has_target(const uint8_t *marks, int64_t first, int64_t count) {
    for (int64_t i = first + 1; i < first + count; i++)
        if (!(marks[i] & MARK_GIVEN)) return true;
    return false;
}

/* The rows of marked tokens: T inputs and one target more. Samples that lie behind each other share a row, if
 * they may and as long as they fit. */
static void add_marked_rows(struct dataloader *l) {
    const uint8_t *marks = l->d->marks;
    for (int64_t first = 0, end; first < l->d->tokens; first = end) {
        for (end = first + 1; end < l->d->tokens && !(marks[end] & MARK_BEGINS);) end++;
        int64_t count = min_i64(end - first, l->o.T + 1);
        struct row *last = l->row_count ? &l->rows[l->row_count - 1] : NULL;
        bool joins = l->o.order == SAMPLES_DOCUMENTS && last && last->first + last->length + 1 == first &&
                     end - 1 - last->first <= l->o.T;
        l->cut += count < end - first;
        if (!has_target(marks, first, count))
            l->left_out++;
        else if (l->o.order == SAMPLES_PACKED)
            packing_add(&l->packing, first, count - 1);
        else if (joins)
            last->length = end - 1 - last->first;
        else
            add_row(l, 0, first, count - 1);
    }
}

/* Ends the stretch that begins at `first_token` before token `end`. */
static void count_stretch(struct dataloader *l, int64_t end) {
    int64_t tokens = end - l->stretches[l->stretch_count - 1].first_token;
    int64_t samples = max_i64(tokens - 1, 0) / l->o.T;
    l->samples += samples;
    l->unused += tokens - (samples ? samples * l->o.T + 1 : 0);
}

static void find_stretches(struct dataloader *l) {
    const struct dataset *d = l->d;
    int64_t token = 0;
    l->stretches = (struct stretch *)xmalloc((size_t)d->count * sizeof *l->stretches);
    for (int64_t i = 0; i < d->count; i++) {
        if (i == 0 || d->shards[i].tokens > l->o.T) {
            if (i > 0) count_stretch(l, token);
            l->stretches[l->stretch_count++] = (struct stretch){l->samples, token};
        }
        token += d->shards[i].tokens;
    }
    count_stretch(l, token);
}

static struct dataloader *new_loader(const struct dataset *d, const struct loader_options *o,
                                     struct error *err);

/* Each part is cut into samples by itself, and shuffled in its own order. */
static bool find_samples_of_parts(struct dataloader *l, struct error *err) {
    int64_t count = l->d->mixture.count, shard = 0;
    l->part = (struct dataloader **)xcalloc((size_t)count, sizeof *l->part);
    l->first_shard = (int64_t *)xcalloc((size_t)count, sizeof *l->first_shard);
    for (int64_t k = 0; k < count; k++) {
        struct loader_options own = l->o;
        own.B = own.world = own.step_samples = 1;
        own.seed ^= (uint64_t)k << 32;
        if (!(l->part[k] = new_loader(l->d->part[k], &own, err))) return false;
        l->first_shard[k] = shard;
        shard += l->d->part[k]->count;
        l->samples += l->part[k]->samples;
        l->unused += l->part[k]->unused;
    }
    return true;
}

static bool find_rows(struct dataloader *l, struct error *err) {
    const struct dataset *d = l->d;
    bool packed = l->o.order == SAMPLES_PACKED;
    if (packed) packing_init(&l->packing, l->o.T);
    if (d->marks) add_marked_rows(l);
    for (int64_t i = 0; !d->marks && i < d->count; i++)
        if (!find_documents(l, i, err)) return false;
    if (packed) packing_finish(&l->packing);
    if (packed) l->row_count = l->packing.row_count;
    return true;
}

static bool find_samples(struct dataloader *l, struct error *err) {
    if (l->d->mixture.count) return find_samples_of_parts(l, err);
    const struct dataset *d = l->d;
    int64_t longest = 0, tokens = 0, group = l->o.B * l->o.world;
    l->first_token = (int64_t *)xmalloc((size_t)d->count * sizeof *l->first_token);
    for (int64_t i = 0; i < d->count; i++) {
        l->first_token[i] = tokens;
        tokens += d->shards[i].tokens;
        longest = max_i64(longest, d->shards[i].tokens);
    }
    if (by_rows(&l->o) && !find_rows(l, err)) return false;
    if (d->marks && !l->row_count)
        return fail(
            err,
            "%s: nothing that is to be learned lies within the first %lld tokens of a sample: use longer "
            "sequences",
            d->name, (long long)l->o.T + 1);
    if (by_rows(&l->o)) {
        l->samples = round_up(l->row_count, max_i64(group, l->o.step_samples));
        if (l->samples > 0) return true;
        return fail(
            err, "%s: %lld tokens in %lld shards, the longest of %lld: too few to predict one from another",
            d->name, (long long)d->tokens, (long long)d->count, (long long)longest);
    }
    find_stretches(l);
    if (l->o.order != SAMPLES_SHUFFLED) group = 1;
    if (l->samples >= group) return true;
    const char *needed =
        group == 1 ? "; one is needed: use more text or shorter sequences"
                   : temp_printf(", fewer than the %lld of one batch (batch size %lld, %lld processes): use "
                                 "more text, a smaller batch or shorter sequences",
                                 (long long)group, (long long)l->o.B, (long long)l->o.world);
    return fail(
        err,
        "%s: %lld tokens in %lld shards hold %lld samples of %lld tokens (sequence length %lld and one "
        "more)%s",
        d->name, (long long)d->tokens, (long long)d->count, (long long)l->samples, (long long)l->o.T + 1,
        (long long)l->o.T, needed);
}

/* --- the reading thread --- */

/* Leaves an error to the call that wants the batch. Exiting from this thread while the main thread computes
 * can hang, and the batches before the bad one are good. */
static void *read_ahead(void *arg) {
    struct dataloader *l = (struct dataloader *)arg;
    int64_t step = l->o.B * l->o.world, first = l->start + l->o.rank * l->o.B;
    pthread_mutex_lock(&l->lock);
    while (!l->failed) {
        while (!l->quit && l->filled - l->released >= 2) pthread_cond_wait(&l->may_fill, &l->lock);
        if (l->quit) break;
        int64_t batch = l->filled;
        pthread_mutex_unlock(&l->lock);
        bool ok = fill_slot(l, &l->slots[batch % 2], first + batch * step, &l->error);
        pthread_mutex_lock(&l->lock);
        l->filled += ok;
        l->failed = !ok;
        pthread_cond_signal(&l->may_take);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static void start_thread(struct dataloader *l, int64_t sample) {
    l->start = sample;
    l->taken = l->filled = l->released = 0;
    l->quit = l->failed = false;
    thread_start(&l->thread, read_ahead, l, "reads data ahead");
}

static void stop_thread(struct dataloader *l) {
    pthread_mutex_lock(&l->lock);
    l->quit = true;
    pthread_cond_signal(&l->may_fill);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
}

/* --- the loader --- */

static void loader_free(struct dataloader *l) {
    reader_free(&l->reader);
    for (int64_t k = 0; l->part && k < l->d->mixture.count; k++)
        if (l->part[k]) loader_free(l->part[k]);
    free(l->part);
    free(l->first_shard);
    for (int i = 0; i < 2; i++) {
        free(l->slots[i].tokens);
        free(l->slots[i].targets);
        free(l->slots[i].first);
    }
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->may_fill);
    pthread_cond_destroy(&l->may_take);
    free(l->batch);
    free(l->scratch);
    free(l->rows);
    packing_free(&l->packing);
    free(l->first_token);
    free(l->stretches);
    free(l);
}

/* Knows where the samples are; its thread is not started. */
static struct dataloader *new_loader(const struct dataset *d, const struct loader_options *o,
                                     struct error *err) {
    struct dataloader *l = (struct dataloader *)xcalloc(1, sizeof *l);
    l->d = d;
    l->o = *o;
    l->end = INT64_MAX;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->may_fill, NULL);
    pthread_cond_init(&l->may_take, NULL);
    reader_open(&l->reader, d);
    if (find_samples(l, err)) return l;
    loader_free(l);
    return NULL;
}

struct dataloader *dataloader_open(const struct dataset *d, const struct loader_options *options,
                                   struct error *err) {
    const struct loader_options *o = options;
    check(o->B > 0 && o->T > 0 && o->world > 0 && o->rank >= 0 && o->rank < o->world && o->first_sample >= 0,
          "data loader: batch size %lld, sequence length %lld, rank %lld of %lld, first sample %lld",
          (long long)o->B, (long long)o->T, (long long)o->rank, (long long)o->world,
          (long long)o->first_sample);
    check(d->marks ? by_rows(o) : o->order != SAMPLES_APART, "data loader: order %d of %s tokens",
          (int)o->order, d->marks ? "marked" : "unmarked");
    struct dataloader *l = new_loader(d, o, err);
    if (!l) return NULL;
    l->batch = (struct sample *)xcalloc((size_t)o->B, sizeof *l->batch);
    l->scratch = (uint32_t *)xcalloc((size_t)o->T + 1, sizeof *l->scratch);
    for (int i = 0; i < 2; i++) {
        l->slots[i].tokens = (int32_t *)xcalloc((size_t)(o->B * o->T), sizeof(int32_t));
        l->slots[i].targets = (int32_t *)xcalloc((size_t)(o->B * o->T), sizeof(int32_t));
        if (o->order == SAMPLES_PACKED)
            l->slots[i].first = (int32_t *)xcalloc((size_t)(o->B * o->T), sizeof(int32_t));
    }
    start_thread(l, o->first_sample);
    return l;
}

void dataloader_close(struct dataloader *l) {
    if (!l) return;
    stop_thread(l);
    loader_free(l);
}

int64_t dataloader_samples(const struct dataloader *l) { return l->samples; }
int64_t dataloader_part_samples(const struct dataloader *l, int64_t part) { return l->part[part]->samples; }
int64_t dataloader_part_taken(const struct dataloader *l, int64_t part, int64_t samples) {
    return mixture_taken(&l->d->mixture, part, samples);
}
int64_t dataloader_unused(const struct dataloader *l) { return l->unused; }
int64_t dataloader_cut(const struct dataloader *l) { return l->cut; }
int64_t dataloader_left_out(const struct dataloader *l) { return l->left_out; }

struct packed_counts dataloader_packed(const struct dataloader *l) {
    struct packed_counts sum = {l->packing.documents, l->packing.row_count, l->packing.tokens,
                                l->packing.pairs};
    for (int64_t k = 0; l->part && k < l->d->mixture.count; k++) {
        struct packed_counts part = dataloader_packed(l->part[k]);
        sum.documents += part.documents;
        sum.rows += part.rows;
        sum.tokens += part.tokens;
        sum.pairs += part.pairs;
    }
    return sum;
}

void dataloader_next(struct dataloader *l, const int32_t **tokens, const int32_t **targets,
                     int64_t *valid_targets) {
    pthread_mutex_lock(&l->lock);
    l->released = l->taken;
    pthread_cond_signal(&l->may_fill);
    while (l->filled == l->taken && !l->failed) pthread_cond_wait(&l->may_take, &l->lock);
    bool got = l->filled > l->taken;
    pthread_mutex_unlock(&l->lock);
    if (!got) {
        stop_thread(l);
        die("%s", l->error.message);
    }
    const struct slot *s = &l->slots[l->taken++ % 2];
    *tokens = s->tokens;
    *targets = s->targets;
    if (valid_targets) *valid_targets = s->valid_targets;
}

const int32_t *dataloader_first_of_document(const struct dataloader *l) {
    return l->slots[(l->taken + 1) % 2].first; /* of batch taken - 1 */
}

int64_t dataloader_position(const struct dataloader *l) { return l->start + l->taken * l->o.B * l->o.world; }

int64_t dataloader_first_sample(const struct dataloader *l) {
    return dataloader_position(l) + l->o.rank * l->o.B;
}

void dataloader_seek_range(struct dataloader *l, int64_t sample, int64_t end) {
    check(sample >= 0, "data loader: cannot start at sample %lld", (long long)sample);
    stop_thread(l);
    l->end = end;
    start_thread(l, sample);
}

void dataloader_seek(struct dataloader *l, int64_t sample) { dataloader_seek_range(l, sample, INT64_MAX); }
