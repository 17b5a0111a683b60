/* Chat templates: see chat.h. A family is a row of a table: what opens and closes a message of each role,
 * with the words {bos}, {eos}, {role} and {Role} in it. Rendering walks over these texts. A mark that the
 * tokenizer has as a token becomes that token; what lies between two such tokens is encoded in one piece. */
#include "llmc/text/chat.h"

#include <stdlib.h>
#include <string.h>

static const char *const role_names[CHAT_ROLES] = {"system", "user", "assistant"};

struct family {
    const char *name;
    const char *begin, *open; /* of a conversation; of a message */
    const char *close[CHAT_ROLES];
    const char *after;    /* every message */
    bool trims;           /* white space around a message goes */
    const char *needs[3]; /* marks that must be tokens; the last one ends a turn */
    const char *jinja;    /* the same for Hugging Face */
};
static const struct family families[CHAT_FAMILIES] = {
    [CHAT_PLAIN] = {.name = "plain",
                    .begin = "{bos}",
                    .open = "{Role}:\n",
                    .close = {"\n\n", "\n\n", "{eos}"},
                    .after = "",
                    .jinja = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
                             "{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
                             "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n\\n' }}"
                             "{% endif %}{% endfor %}"
                             "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"},
    [CHAT_CHATML] = {.name = "chatml",
                     .begin = "",
                     .open = "<|im_start|>{role}\n",
                     .close = {"<|im_end|>", "<|im_end|>", "<|im_end|>"},
                     .after = "\n",
                     .needs = {"<|im_start|>", "<|im_end|>"},
                     .jinja = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
                              "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
                              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"},
    [CHAT_LLAMA3] = {.name = "llama3",
                     .begin = "{bos}",
                     .open = "<|start_header_id|>{role}<|end_header_id|>\n\n",
                     .close = {"<|eot_id|>", "<|eot_id|>", "<|eot_id|>"},
                     .after = "",
                     .trims = true,
                     .needs = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
                     .jinja = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
                              "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
                              "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
                              "{% if add_generation_prompt %}"
                              "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"},
    [CHAT_ZEPHYR] = {.name = "zephyr",
                     .begin = "",
                     .open = "<|{role}|>\n",
                     .close = {"{eos}", "{eos}", "{eos}"},
                     .after = "\n",
                     .jinja = "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + "
                              "message['content'] + eos_token + '\\n' }}{% endfor %}"
                              "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"},
};

const char *chat_family_name(enum chat_family family) { return families[family].name; }

enum chat_role chat_role(const char *word) {
    int role = 0;
    while (role < CHAT_ROLES && strcmp(word, role_names[role]) != 0) role++;
    return (enum chat_role)role;
}

/* --- recognising --- */

static bool has_any(const char *text, const char *const *words) {
    for (; *words; words++)
        if (strstr(text, *words)) return true;
    return false;
}

static bool has_all(const char *text, const char *const *words) {
    for (; *words; words++)
        if (!strstr(text, *words)) return false;
    return true;
}

/* "<|im_start|>system\nYou are ...<|im_end|>" inside one string of the program. The caller frees. */
static char *default_system(const char *jinja) {
    static const char open[] = "<|im_start|>system\\n", close[] = "<|im_end|>";
    for (const char *at = jinja; (at = strstr(at, open)) != NULL;) {
        at += sizeof open - 1;
        const char *end = strstr(at, close);
        if (*at == '\'' || *at == '"' || !end) continue;
        char *text = (char *)xcalloc((size_t)(end - at) + 1, 1), *out = text;
        for (; at < end; at++) {
            bool escaped = *at == '\\' && at + 1 < end;
            at += escaped;
            *out++ = (char)(escaped && *at == 'n' ? '\n' : *at);
        }
        return text;
    }
    return NULL;
}

enum chat_family chat_recognise(const char *jinja, char **system) {
    static const char *const other[] = {"<think>",      "enable_thinking", "Cutting Knowledge",
                                        "strftime_now", "<|end|>",         NULL};
    static const char *const chatml[] = {"<|im_start|>", "<|im_end|>", NULL},
                             *const not_chatml[] = {"bos_token", "eos_token", "trim", "strip", NULL},
                             *const llama3[] = {"<|start_header_id|>",
                                                "<|end_header_id|>",
                                                "<|eot_id|>",
                                                "bos_token",
                                                "trim",
                                                NULL},
                             *const zephyr[] = {"<|user|>", "<|assistant|>", "eos_token", NULL},
                             *const not_zephyr[] = {"bos_token", "trim", "strip", NULL};
    *system = NULL;
    for (int i = CHAT_PLAIN; i < CHAT_FAMILIES; i++)
        if (strcmp(jinja, families[i].jinja) == 0) return (enum chat_family)i;
    if (has_any(jinja, other)) return CHAT_AUTO;
    if (has_all(jinja, llama3)) return CHAT_LLAMA3;
    if (has_all(jinja, zephyr) && !has_any(jinja, not_zephyr)) return CHAT_ZEPHYR;
    if (!has_all(jinja, chatml) || has_any(jinja, not_chatml)) return CHAT_AUTO;
    *system = default_system(jinja);
    return CHAT_CHATML;
}

/* --- the format --- */

/* The token that stands for a mark; -1: it would be several. */
static int64_t mark_token(const struct tokenizer *t, const char *mark, int64_t size) {
    struct token_buffer b = {0};
    int64_t n = tokenizer_encode_special(t, mark, size, &b), id = n == 1 ? (int64_t)b.ids[0] : -1;
    token_buffer_free(&b);
    bool whole = id >= 0 && tokenizer_token_kind(t, id) >= TOKEN_KIND_ADDED;
    return whole ? id : -1;
}

static int64_t token_of(const struct tokenizer *t, const char *mark) {
    return mark_token(t, mark, (int64_t)strlen(mark));
}

static bool choose_family(struct chat_format *f, const struct tokenizer *t, struct error *err) {
    const char *jinja = tokenizer_chat_template(t);
    if (!jinja) {
        const char *const *marks = families[CHAT_CHATML].needs;
        f->family = token_of(t, marks[0]) >= 0 && token_of(t, marks[1]) >= 0 ? CHAT_CHATML : CHAT_PLAIN;
        return true;
    }
    f->family = chat_recognise(jinja, &f->system);
    return f->family != CHAT_AUTO ||
           fail(
               err,
               "the tokenizer's chat_template is of no family that is known here (it begins with \"%.60s\"); "
               "--chat-template plain|chatml|llama3|zephyr chooses one in its place",
               jinja);
}

bool chat_open(struct chat_format *f, enum chat_family family, const struct tokenizer *t, int64_t bos,
               int64_t eos, struct error *err) {
    int64_t end = tokenizer_end_of_text(t);
    *f = (struct chat_format){.family = family,
                              .tokenizer = t,
                              .bos = bos >= 0 ? bos : end,
                              .eos = eos >= 0 ? eos : end,
                              .end_of_turn = -1};
    if (family == CHAT_AUTO && !choose_family(f, t, err)) return false;
    const struct family *row = &families[f->family];
    for (size_t i = 0; i < ARRAY_LENGTH(row->needs) && row->needs[i]; i++)
        if ((f->end_of_turn = token_of(t, row->needs[i])) < 0) {
            chat_close(f);
            return fail(err,
                        "chat template %s: the tokenizer has no token %s; --chat-template plain needs none",
                        row->name, row->needs[i]);
        }
    if (f->end_of_turn < 0) f->end_of_turn = f->eos;
    if (f->end_of_turn >= 0) return true;
    chat_close(f);
    return fail(err, "chat template %s: the tokenizer has no token that ends a text", row->name);
}

void chat_close(struct chat_format *f) {
    free(f->system);
    f->system = NULL;
}

const char *chat_jinja(const struct chat_format *f) {
    const char *own = tokenizer_chat_template(f->tokenizer);
    char *system = NULL;
    bool same = own && chat_recognise(own, &system) == f->family &&
                strcmp(system ? system : "", f->system ? f->system : "") == 0;
    free(system);
    return same ? own : families[f->family].jinja;
}

/* --- rendering --- */

struct renderer {
    const struct chat_format *f;
    struct chat_tokens *out;
    char *text; /* not yet encoded */
    int64_t size, capacity;
    bool failed;
};

void chat_mark_learned(struct chat_tokens *out, int64_t from, bool learned) {
    if (out->ids.count > out->capacity) {
        out->capacity = 2 * out->ids.count;
        out->learned = (uint8_t *)xrealloc(out->learned, (size_t)out->capacity);
    }
    if (out->ids.count > from) memset(out->learned + from, learned, (size_t)(out->ids.count - from));
}

static void encode_text(struct renderer *r, bool learned) {
    int64_t from = r->out->ids.count;
    if (r->size && tokenizer_encode(r->f->tokenizer, r->text, r->size, &r->out->ids) < 0) r->failed = true;
    r->size = 0;
    chat_mark_learned(r->out, from, learned);
}

static void put_token(struct renderer *r, int64_t id, bool learned) {
    int64_t from;
    encode_text(r, learned);
    if (id < 0) return;
    from = r->out->ids.count;
    token_buffer_reserve(&r->out->ids, 1);
    r->out->ids.ids[r->out->ids.count++] = (uint32_t)id;
    chat_mark_learned(r->out, from, learned);
}

static void put_text(struct renderer *r, const char *text, int64_t size) {
    if (r->size + size > r->capacity) {
        r->capacity = 2 * (r->size + size);
        r->text = (char *)xrealloc(r->text, (size_t)r->capacity);
    }
    if (size) memcpy(r->text + r->size, text, (size_t)size);
    r->size += size;
}

/* "<|assistant|>", with the role in its place. By temp_printf. */
static const char *fill_in_role(const char *pattern, enum chat_role role) {
    const char *name = role_names[role], *at = strstr(pattern, "{role}");
    if (at) return temp_printf("%.*s%s%s", (int)(at - pattern), pattern, name, at + 6);
    at = strstr(pattern, "{Role}");
    if (!at) return pattern;
    return temp_printf("%.*s%c%s%s", (int)(at - pattern), pattern, name[0] - 'a' + 'A', name + 1, at + 6);
}

/* Text of the template itself. */
static void put_pattern(struct renderer *r, const char *pattern, bool learned) {
    for (const char *p = pattern; *p;) {
        const char *end = strncmp(p, "<|", 2) == 0 ? strstr(p, "|>") : NULL;
        int64_t id = end ? mark_token(r->f->tokenizer, p, end + 2 - p) : -1;
        if (strncmp(p, "{bos}", 5) == 0 || strncmp(p, "{eos}", 5) == 0) {
            put_token(r, p[1] == 'b' ? r->f->bos : r->f->eos, learned);
            p += 5;
        } else if (id >= 0) {
            put_token(r, id, learned);
            p = end + 2;
        } else {
            put_text(r, p++, 1);
        }
    }
}

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static void put_message(struct renderer *r, const struct chat_message *m) {
    const struct family *row = &families[r->f->family];
    const char *text = m->text, *end = text + m->size;
    bool learned = m->role == CHAT_ASSISTANT;
    while (row->trims && text < end && is_space(*text)) text++;
    while (row->trims && text < end && is_space(end[-1])) end--;
    put_pattern(r, fill_in_role(row->open, m->role), false);
    if (learned) encode_text(r, false);
    put_text(r, text, end - text);
    put_pattern(r, row->close[m->role], learned);
    if (learned) encode_text(r, true);
    put_pattern(r, row->after, false);
}

bool chat_render(const struct chat_format *f, const struct chat_message *messages, int64_t count, bool answer,
                 struct chat_tokens *out, struct error *err) {
    const struct family *row = &families[f->family];
    struct renderer r = {.f = f, .out = out};
    out->ids.count = 0;
    put_pattern(&r, row->begin, false);
    if (f->system && (count == 0 || messages[0].role != CHAT_SYSTEM)) {
        struct chat_message system = {CHAT_SYSTEM, f->system, (int64_t)strlen(f->system)};
        put_message(&r, &system);
    }
    for (int64_t i = 0; i < count; i++) put_message(&r, &messages[i]);
    if (answer) put_pattern(&r, fill_in_role(row->open, CHAT_ASSISTANT), false);
    encode_text(&r, false);
    free(r.text);
    return !r.failed ||
           fail(err, "a message cannot be encoded: the tokenizer's Split pattern exceeds PCRE2's "
                     "matching limit on it");
}

void chat_tokens_free(struct chat_tokens *out) {
    token_buffer_free(&out->ids);
    free(out->learned);
    *out = (struct chat_tokens){0};
}
