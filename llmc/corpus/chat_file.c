/* Reads conversations, and makes a data set of them: see chat_file.h. */
#include "llmc/corpus/chat_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "llmc/base/options_value.h"

/* --- one line --- */

static bool read_message(struct chat_message *m, const json_t *v, size_t i, const struct line_place *at,
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

static bool read_messages(struct conversation *c, const json_t *list, const struct line_place *at,
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

static bool add_line(void *user, const char *line, int64_t size, const struct line_place *at,
                     struct error *err) {
    struct chat_file *f = (struct chat_file *)user;
    json_t *object = line_json(line, size, at, err);
    if (!object) return false;
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

bool chat_file_read(struct chat_file *f, const char *path, struct error *err) {
    *f = (struct chat_file){.path = xstrdup(path)};
    bool ok = read_lines(path, add_line, f, err);
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

bool *chat_file_split(const struct chat_file *f, double fraction, struct error *err) {
    uint64_t *hash = (uint64_t *)xmalloc((size_t)f->count * sizeof *hash);
    for (int64_t i = 0; i < f->count; i++) hash[i] = f->conversations[i].hash;
    bool *flags = split_samples(hash, f->count, fraction, f->path, "conversation", err);
    free(hash);
    return flags;
}

/* --- tokens --- */

struct chats_as {
    const struct chat_file *f;
    const struct chat_format *format;
};

static bool encode_chat(const void *user, int64_t i, struct chat_tokens *out, struct error *err) {
    const struct chats_as *as = (const struct chats_as *)user;
    const struct conversation *c = &as->f->conversations[i];
    struct error why;
    return chat_render(as->format, c->messages, c->count, false, out, &why) ||
           fail(err, "%s:%" PRId64 ": %s", as->f->path, c->line, why.message);
}

struct dataset *chat_file_encode(const struct chat_file *f, const bool *flags, bool flag,
                                 const struct chat_format *format, int64_t *longest, struct error *err) {
    struct chats_as as = {f, format};
    struct sample_set s = {.path = f->path,
                           .count = f->count,
                           .flags = flags,
                           .flag = flag,
                           .encode = encode_chat,
                           .user = &as,
                           .vocab_size = tokenizer_vocab_size(format->tokenizer)};
    return encode_samples(&s, longest, err);
}
