#include "llmc/corpus/sample_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/corpus/byte_stream.h"

/* --- lines --- */

const char *json_kind(const json_t *v) {
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    return v ? names[json_typeof(v)] : "missing";
}

bool is_blank(const char *text, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        if (text[i] != ' ' && (text[i] < '\t' || text[i] > '\r')) return false;
    return true;
}

json_t *line_json(const char *line, int64_t size, const struct line_place *at, struct error *err) {
    json_error_t why;
    json_t *object = json_loadb(line, (size_t)size, JSON_REJECT_DUPLICATES, &why);
    if (!object)
        fail(err, "%s:%" PRId64 ": not JSON, at byte %d of the line: %s", at->path, at->line, why.position,
             why.text);
    return object;
}

/* NULL with the reason; the caller frees. */
static char *read_all(const char *path, int64_t *size, struct error *err) {
    struct byte_stream *s = byte_stream_open(path, err);
    char *text = NULL;
    int64_t capacity = 0, n = s ? 1 : -1;
    for (*size = 0; n > 0; *size += n) {
        if (capacity - *size < 1 << 16) {
            capacity = 2 * capacity + (1 << 20);
            text = (char *)xrealloc(text, (size_t)capacity);
        }
        n = byte_stream_read(s, text + *size, capacity - *size, err);
        if (n <= 0) break;
    }
    byte_stream_close(s);
    if (n == 0) return text;
    free(text);
    return NULL;
}

bool read_lines(const char *path, read_line_fn *read, void *user, struct error *err) {
    int64_t size = 0;
    char *text = read_all(path, &size, err);
    bool ok = text != NULL;
    struct line_place at = {path, 0};
    int64_t begin = ok && size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    for (int64_t next; ok && begin < size; begin = next) {
        const char *newline = (const char *)memchr(text + begin, '\n', (size_t)(size - begin));
        int64_t end = newline ? newline - text : size;
        next = end + 1;
        at.line++;
        if (end > begin && text[end - 1] == '\r') end--;
        if (!is_blank(text + begin, end - begin)) ok = read(user, text + begin, end - begin, &at, err);
    }
    free(text);
    return ok;
}

/* --- validation --- */

bool *split_samples(const uint64_t *hash, int64_t count, double fraction, const char *path, const char *what,
                    struct error *err) {
    bool *flags = (bool *)xcalloc((size_t)count + 1, sizeof *flags);
    if (fraction == 0) return flags;
    int64_t kept = 0, least = 0, most = 0;
    for (int64_t i = 0; i < count; i++) {
        flags[i] = (double)(hash[i] >> 11) * 0x1p-53 < fraction;
        kept += flags[i];
        if (hash[i] < hash[least]) least = i;
        if (hash[i] > hash[most]) most = i;
    }
    if (hash[least] == hash[most]) {
        fail(err,
             "%s: holds one %s, of which no part can be kept for validation: add others, or give "
             "--validation-fraction 0",
             path, what);
        free(flags);
        return NULL;
    }
    /* those that are equal stay together */
    for (int64_t i = 0; i < count; i++) {
        if (kept == 0 && hash[i] == hash[least]) flags[i] = true;
        if (kept == count && hash[i] == hash[most]) flags[i] = false;
    }
    return flags;
}

/* --- tokens --- */

struct encoded {
    uint32_t *ids;
    uint8_t *marks;
    int64_t count, at; /* where they go */
};

static bool encode_one(struct encoded *e, const struct sample_set *s, int64_t i, struct chat_tokens *t,
                       struct error *err) {
    if (!s->encode(s->user, i, t, err)) return false;
    e->count = t->ids.count;
    e->ids = (uint32_t *)xmalloc((size_t)e->count * sizeof *e->ids);
    e->marks = (uint8_t *)xmalloc((size_t)e->count);
    memcpy(e->ids, t->ids.ids, (size_t)e->count * sizeof *e->ids);
    for (int64_t k = 0; k < e->count; k++) e->marks[k] = t->learned[k] ? 0 : MARK_GIVEN;
    e->marks[0] |= MARK_BEGINS;
    return true;
}

/* False, with the first sample that cannot be encoded. */
static bool encode_all(struct encoded *parts, const struct sample_set *s, struct error *err) {
    int64_t bad = INT64_MAX;
#pragma omp parallel
    {
        struct chat_tokens t = {0};
#pragma omp for schedule(dynamic, 16)
        for (int64_t i = 0; i < s->count; i++) {
            struct error why;
            if (s->flags && s->flags[i] != s->flag) continue;
            if (encode_one(&parts[i], s, i, &t, &why)) continue;
#pragma omp critical
            if (i < bad) {
                bad = i;
                fail(err, "%s", why.message);
            }
        }
        chat_tokens_free(&t);
    }
    return bad == INT64_MAX;
}

struct dataset *encode_samples(const struct sample_set *s, int64_t *longest, struct error *err) {
    struct encoded *parts = (struct encoded *)xcalloc((size_t)s->count, sizeof *parts);
    struct dataset *d = NULL;
    int64_t total = 0;
    bool ok = encode_all(parts, s, err);
    for (int64_t i = 0; i < s->count; i++) {
        parts[i].at = total;
        total += parts[i].count;
        *longest = max_i64(*longest, parts[i].count);
    }
    if (ok) {
        uint32_t *tokens = (uint32_t *)xmalloc((size_t)(total + 1) * sizeof *tokens);
        uint8_t *marks = (uint8_t *)xmalloc((size_t)total + 1);
        for (int64_t i = 0; i < s->count; i++) {
            if (!parts[i].count) continue;
            memcpy(tokens + parts[i].at, parts[i].ids, (size_t)parts[i].count * sizeof *tokens);
            memcpy(marks + parts[i].at, parts[i].marks, (size_t)parts[i].count);
        }
        d = dataset_from_marked_tokens(s->path, tokens, marks, total, s->vocab_size);
    }
    for (int64_t i = 0; i < s->count; i++) {
        free(parts[i].ids);
        free(parts[i].marks);
    }
    free(parts);
    return d;
}
