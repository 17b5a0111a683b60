/* Data sets: token shards that a pattern names, the parts of a mixture, or tokens in memory. They are
 * declared in dataloader.h. */
#include "llmc/corpus/dataset_impl.h"

#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Sorted by strcmp, since an order by locale would differ between machines. */
static bool find_shards(const char *pattern, glob_t *found, struct error *err) {
    char *escaped = path_pattern(pattern);
    int rc = glob(escaped, GLOB_NOSORT | GLOB_BRACE | GLOB_TILDE, NULL, found);
    free(escaped);
    if (rc == GLOB_NOMATCH)
        return fail(err,
                    "%s: no such file, and as a pattern it matches none; expected token shards "
                    "(build/prepare makes them from text)",
                    pattern);
    if (rc != 0)
        return fail(err, "%s: cannot search for shards: %s", pattern,
                    rc == GLOB_NOSPACE ? "out of memory" : strerror(errno));
    qsort(found->gl_pathv, found->gl_pathc, sizeof *found->gl_pathv, by_name);
    return true;
}

static bool open_shards(struct dataset *d, char *const *paths, size_t count, struct error *err) {
    d->shards = (struct shard *)xcalloc(count, sizeof *d->shards);
    d->hashes = (uint64_t *)xcalloc(count, sizeof *d->hashes);
    for (size_t i = 0; i < count; i++) {
        int fd = shard_open(&d->shards[d->count++], paths[i], err);
        if (fd < 0) return false;
        bool ok = shard_hash(&d->hashes[i], &d->shards[i], fd, err);
        close(fd);
        if (!ok) return false;
        d->tokens += d->shards[i].tokens;
    }
    return true;
}

struct dataset *dataset_open(const char *pattern, int64_t vocab_size, struct error *err) {
    struct dataset *d = (struct dataset *)xcalloc(1, sizeof *d);
    d->name = xstrdup(pattern);
    d->vocab_size = vocab_size;
    bool ok;
    if (path_exists(pattern)) { /* also when it contains '[' or '*' */
        char *const path[] = {d->name};
        ok = open_shards(d, path, 1, err);
    } else {
        glob_t found = {0};
        ok = find_shards(pattern, &found, err) && open_shards(d, found.gl_pathv, found.gl_pathc, err);
        globfree(&found);
    }
    if (ok) return d;
    dataset_free(d);
    return NULL;
}

/* The shards of all parts, one part behind the other, as one data set. */
static void join_parts(struct dataset *d) {
    for (int64_t k = 0; k < d->mixture.count; k++) d->count += d->part[k]->count;
    d->shards = (struct shard *)xcalloc((size_t)d->count, sizeof *d->shards);
    d->hashes = (uint64_t *)xcalloc((size_t)d->count, sizeof *d->hashes);
    int64_t at = 0;
    for (int64_t k = 0; k < d->mixture.count; k++) {
        struct dataset *part = d->part[k];
        memcpy(d->shards + at, part->shards, (size_t)part->count * sizeof *d->shards);
        memcpy(d->hashes + at, part->hashes, (size_t)part->count * sizeof *d->hashes);
        free(part->shards);
        free(part->hashes);
        part->shards = d->shards + at;
        part->hashes = NULL;
        at += part->count;
        d->tokens += part->tokens;
    }
}

struct dataset *dataset_open_mixture(const char *text, int64_t vocab_size, struct error *err) {
    struct mixture m;
    if (!mixture_parse(&m, text, err)) return NULL;
    if (m.count == 0) return dataset_open(text, vocab_size, err);
    struct dataset *d = (struct dataset *)xcalloc(1, sizeof *d);
    *d = (struct dataset){.name = xstrdup(text), .vocab_size = vocab_size, .mixture = m};
    d->part = (struct dataset **)xcalloc((size_t)m.count, sizeof *d->part);
    bool ok = true;
    for (int64_t k = 0; ok && k < m.count; k++)
        ok = (d->part[k] = dataset_open(m.pattern[k], vocab_size, err)) != NULL;
    if (ok) {
        join_parts(d);
        return d;
    }
    dataset_free(d);
    return NULL;
}

int64_t dataset_parts(const struct dataset *d) { return d->mixture.count; }

const char *dataset_part(const struct dataset *d, int64_t part, double *share) {
    *share = (double)d->mixture.share[part] / (double)d->mixture.period;
    return d->mixture.pattern[part];
}

struct dataset *dataset_from_tokens(const char *name, uint32_t *tokens, int64_t count, int64_t vocab_size) {
    struct dataset *d = (struct dataset *)xcalloc(1, sizeof *d);
    d->name = xstrdup(name);
    d->shards = (struct shard *)xcalloc(1, sizeof *d->shards);
    d->shards[0] = (struct shard){.path = xstrdup(name), .tokens = count, .token_bytes = 4};
    d->count = 1;
    d->hashes = (uint64_t *)xmalloc(sizeof *d->hashes);
    d->hashes[0] = XXH3_64bits(tokens, (size_t)count * sizeof *tokens);
    d->memory = tokens;
    d->vocab_size = vocab_size;
    d->tokens = count;
    return d;
}

struct dataset *dataset_from_marked_tokens(const char *name, uint32_t *tokens, uint8_t *marks, int64_t count,
                                           int64_t vocab_size) {
    struct dataset *d = dataset_from_tokens(name, tokens, count, vocab_size);
    d->marks = marks;
    d->hashes[0] = XXH3_64bits_withSeed(marks, (size_t)count, d->hashes[0]);
    return d;
}

void dataset_free(struct dataset *d) {
    if (!d) return;
    for (int64_t k = 0; k < d->mixture.count; k++) {
        struct dataset *part = d->part[k];
        if (part && d->shards) { /* its shards are a part of these */
            part->shards = NULL;
            part->count = 0;
        }
        dataset_free(part);
    }
    free(d->part);
    mixture_free(&d->mixture);
    for (int64_t i = 0; i < d->count; i++) shard_free(&d->shards[i]);
    free(d->shards);
    free(d->hashes);
    free(d->memory);
    free(d->marks);
    free(d->name);
    free(d);
}

void dataset_set_vocabulary(struct dataset *d, int64_t vocab_size) {
    d->vocab_size = vocab_size;
    for (int64_t k = 0; k < d->mixture.count; k++) d->part[k]->vocab_size = vocab_size;
}

const char *dataset_shard(const struct dataset *d, int64_t shard, int64_t *tokens) {
    *tokens = d->shards[shard].tokens;
    return d->shards[shard].path;
}

int64_t dataset_tokens(const struct dataset *d) { return d->tokens; }
int64_t dataset_shards(const struct dataset *d) { return d->count; }

uint64_t dataset_fingerprint(const struct dataset *d) {
    XXH3_state_t *h = XXH3_createState();
    check(h, "out of host memory");
    XXH3_64bits_reset(h);
    for (int64_t i = 0; i < d->count; i++) {
        const struct shard *s = &d->shards[i];
        const int64_t numbers[] = {s->tokens, s->token_bytes};
        const char *slash = strrchr(s->path, '/'), *base = slash ? slash + 1 : s->path;
        if (!d->memory) XXH3_64bits_update(h, base, strlen(base) + 1);
        XXH3_64bits_update(h, numbers, sizeof numbers);
    }
    XXH3_64bits_update(h, d->mixture.share, (size_t)d->mixture.count * sizeof *d->mixture.share);
    if (d->memory) XXH3_64bits_update(h, d->memory, (size_t)d->tokens * sizeof *d->memory);
    if (d->marks) XXH3_64bits_update(h, d->marks, (size_t)d->tokens);
    uint64_t hash = XXH3_64bits_digest(h);
    XXH3_freeState(h);
    return hash;
}

uint64_t dataset_contents(const struct dataset *d) {
    return XXH3_64bits(d->hashes, (size_t)d->count * sizeof *d->hashes);
}

bool dataset_overlap(const struct dataset *a, const struct dataset *b, const char **in_a, const char **in_b) {
    for (int64_t i = 0; i < a->count; i++)
        for (int64_t k = 0; k < b->count; k++)
            if (a->hashes[i] == b->hashes[k]) {
                *in_a = a->shards[i].path;
                *in_b = b->shards[k].path;
                return true;
            }
    return false;
}
