/* Reads conversations, and makes a data set of them: see chat_file.h. */
#include "llmc/corpus/chat_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/base/options_value.h"
#include "llmc/corpus/byte_stream.h"

/* --- one line --- */

/* Where a message points: "chat.jsonl:12". */
struct place {
    const char *path;
    int64_t line;
};

static const char *json_kind(const json_t *v) {
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    return v ? names[json_typeof(v)] : "missing";
}

static bool is_blank(const char *text, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        if (text[i] != ' ' && (text[i] < '\t' || text[i] > '\r')) return false;
    return true;
}

static bool read_message(struct chat_message *m, const json_t *v, size_t i, const struct place *at,
                         struct error *err) {
    const json_t *role = json_object_get(v, "role"), *content = json_object_get(v, "content");
    const char *word = json_string_value(role);
    if (!word || !json_is_string(content))
        return fail(err,
                    "%s:%" PRId64 ": message %zu: \"role\" is %s and \"content\" is %s, expected two strings",
                    at->path, at->line, i + 1, json_kind(role), json_kind(content));
    *m = (struct chat_message){chat_role(word), json_string_value(content),
                               (int64_t)json_string_length(content)};
    if (m->role == CHAT_ROLES)
        return fail(err,
                    "%s:%" PRId64 ": message %zu: \"role\" is \"%.40s\", expected system, user or assistant",
                    at->path, at->line, i + 1, option_show(word).text);
    if (m->role == CHAT_SYSTEM && i > 0)
        return fail(err, "%s:%" PRId64 ": message %zu is the system's, which can only be the first one",
                    at->path, at->line, i + 1);
    return m->role != CHAT_ASSISTANT || !is_blank(m->text, m->size) ||
           fail(err, "%s:%" PRId64 ": message %zu: the assistant says nothing; leave the conversation out",
                at->path, at->line, i + 1);
}

static bool read_messages(struct conversation *c, const json_t *list, const struct place *at,
                          struct error *err) {
    bool answered = false;
    XXH3_state_t *hash = XXH3_createState();
    check(hash, "out of host memory");
    XXH3_64bits_reset(hash);
    size_t n = json_array_size(list);
    c->messages = (struct chat_message *)xcalloc(n + 1, sizeof *c->messages);
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        struct chat_message *m = &c->messages[i];
        ok = read_message(m, json_array_get(list, i), i, at, err);
        if (!ok) break;
        int64_t head[] = {m->role, m->size};
        XXH3_64bits_update(hash, head, sizeof head);
        XXH3_64bits_update(hash, m->text, (size_t)m->size);
        answered |= m->role == CHAT_ASSISTANT;
        c->count++;
    }
    c->hash = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    if (ok && !answered)
        ok = fail(err, "%s:%" PRId64 ": no message is the assistant's: there is nothing to learn", at->path,
                  at->line);
    return ok;
}

static bool add_line(struct chat_file *f, const char *line, int64_t size, const struct place *at,
                     struct error *err) {
    json_error_t why;
    json_t *object = json_loadb(line, (size_t)size, JSON_REJECT_DUPLICATES, &why);
    if (!object)
        return fail(err, "%s:%" PRId64 ": not JSON, at byte %d of the line: %s", at->path, at->line,
                    why.position, why.text);
    if (f->count == f->capacity) {
        f->capacity = 2 * f->capacity + 256;
        f->conversations =
            (struct conversation *)xrealloc(f->conversations, (size_t)f->capacity * sizeof *f->conversations);
    }
    struct conversation *c = &f->conversations[f->count++];
    *c = (struct conversation){.line = at->line, .owner = object};
    const json_t *list = json_object_get(object, "messages");
    if (json_is_array(list)) return read_messages(c, list, at, err);
    return fail(err,
                "%s:%" PRId64
                ": expected {\"messages\": [{\"role\": ..., \"content\": ...}, ...]}; found %s whose "
                "\"messages\" is %s",
                at->path, at->line, json_kind(object), json_kind(list));
}

/* --- the file --- */

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

bool chat_file_read(struct chat_file *f, const char *path, struct error *err) {
    int64_t size = 0;
    *f = (struct chat_file){.path = xstrdup(path)};
    char *text = read_all(path, &size, err);
    bool ok = text != NULL;
    struct place at = {path, 0};
    int64_t begin = ok && size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    for (int64_t end; ok && begin < size; begin = end + 1) {
        const char *newline = (const char *)memchr(text + begin, '\n', (size_t)(size - begin));
        end = newline ? newline - text : size;
        at.line++;
        if (!is_blank(text + begin, end - begin)) ok = add_line(f, text + begin, end - begin, &at, err);
    }
    free(text);
    if (ok && f->count == 0) ok = fail(err, "%s: holds no conversation", path);
    if (!ok) chat_file_free(f);
    return ok;
}

void chat_file_free(struct chat_file *f) {
    for (int64_t i = 0; i < f->count; i++) {
        free(f->conversations[i].messages);
        json_decref(f->conversations[i].owner);
    }
    free(f->conversations);
    free(f->path);
    *f = (struct chat_file){0};
}

/* --- validation --- */

bool *chat_file_split(const struct chat_file *f, double fraction, struct error *err) {
    bool *flags = (bool *)xcalloc((size_t)f->count + 1, sizeof *flags);
    if (fraction == 0) return flags;
    int64_t kept = 0, least = 0, most = 0;
    for (int64_t i = 0; i < f->count; i++) {
        uint64_t hash = f->conversations[i].hash;
        flags[i] = (double)(hash >> 11) * 0x1p-53 < fraction;
        kept += flags[i];
        if (hash < f->conversations[least].hash) least = i;
        if (hash > f->conversations[most].hash) most = i;
    }
    if (f->conversations[least].hash == f->conversations[most].hash) {
        fail(err,
             "%s: holds one conversation, of which no part can be kept for validation: add others, or give "
             "--validation-fraction 0",
             f->path);
        free(flags);
        return NULL;
    }
    /* those that are equal stay together */
    for (int64_t i = 0; i < f->count; i++) {
        uint64_t hash = f->conversations[i].hash;
        if (kept == 0 && hash == f->conversations[least].hash) flags[i] = true;
        if (kept == f->count && hash == f->conversations[most].hash) flags[i] = false;
    }
    return flags;
}

/* --- tokens --- */

struct encoded {
    uint32_t *ids;
    uint8_t *marks;
    int64_t count, at; /* where they go */
};

static bool encode_one(struct encoded *e, const struct conversation *c, const struct chat_format *format,
                       struct chat_tokens *t, struct error *err) {
    if (!chat_render(format, c->messages, c->count, false, t, err)) return false;
    e->count = t->ids.count;
    e->ids = (uint32_t *)xmalloc((size_t)e->count * sizeof *e->ids);
    e->marks = (uint8_t *)xmalloc((size_t)e->count);
    memcpy(e->ids, t->ids.ids, (size_t)e->count * sizeof *e->ids);
    for (int64_t i = 0; i < e->count; i++) e->marks[i] = t->learned[i] ? 0 : MARK_GIVEN;
    e->marks[0] |= MARK_BEGINS;
    return true;
}

/* False, with the first conversation that cannot be encoded. */
static bool encode_all(struct encoded *parts, const struct chat_file *f, const bool *flags, bool flag,
                       const struct chat_format *format, struct error *err) {
    int64_t bad = INT64_MAX;
#pragma omp parallel
    {
        struct chat_tokens t = {0};
#pragma omp for schedule(dynamic, 16)
        for (int64_t i = 0; i < f->count; i++) {
            struct error why;
            if (flags && flags[i] != flag) continue;
            if (encode_one(&parts[i], &f->conversations[i], format, &t, &why)) continue;
#pragma omp critical
            if (i < bad) {
                bad = i;
                fail(err, "%s:%" PRId64 ": %s", f->path, f->conversations[i].line, why.message);
            }
        }
        chat_tokens_free(&t);
    }
    return bad == INT64_MAX;
}

struct dataset *chat_file_encode(const struct chat_file *f, const bool *flags, bool flag,
                                 const struct chat_format *format, int64_t *longest, struct error *err) {
    struct encoded *parts = (struct encoded *)xcalloc((size_t)f->count, sizeof *parts);
    struct dataset *d = NULL;
    int64_t total = 0;
    bool ok = encode_all(parts, f, flags, flag, format, err);
    for (int64_t i = 0; i < f->count; i++) {
        parts[i].at = total;
        total += parts[i].count;
        *longest = max_i64(*longest, parts[i].count);
    }
    if (ok) {
        uint32_t *tokens = (uint32_t *)xmalloc((size_t)(total + 1) * sizeof *tokens);
        uint8_t *marks = (uint8_t *)xmalloc((size_t)total + 1);
        for (int64_t i = 0; i < f->count; i++) {
            if (!parts[i].count) continue;
            memcpy(tokens + parts[i].at, parts[i].ids, (size_t)parts[i].count * sizeof *tokens);
            memcpy(marks + parts[i].at, parts[i].marks, (size_t)parts[i].count);
        }
        d = dataset_from_marked_tokens(f->path, tokens, marks, total,
                                       tokenizer_vocab_size(format->tokenizer));
    }
    for (int64_t i = 0; i < f->count; i++) {
        free(parts[i].ids);
        free(parts[i].marks);
    }
    free(parts);
    return d;
}
