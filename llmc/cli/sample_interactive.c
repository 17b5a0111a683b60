/* `sample --interactive`: a conversation, or one continuation after another. Model and cache stay
 * loaded: of a conversation only what is new is read, since it begins as the one before. */
#include "llmc/cli/sample.h"

#include "llmc/cli/line_input.h"
#include "llmc/format/model_config.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t interrupted;
static void on_interrupt(int number) { interrupted = number; }

/* An answer while it is written. */
struct spoken {
    const struct sample *s;
    struct answer *answer;
    int64_t shown; /* bytes */
};

static void show(struct spoken *w, int64_t size) {
    if (size > w->shown) sample_put(w->s, w->answer->text + w->shown, size - w->shown);
    w->shown = max_i64(w->shown, size);
    fflush(stdout);
}

static bool speak(void *user, int64_t token, const float *logits) {
    struct spoken *w = (struct spoken *)user;
    bool more = answer_add(w->answer, token, logits);
    show(w, w->answer->sure);
    return more && !interrupted && !ferror(stdout);
}

/* Everything that was said; the texts are owned. */
struct conversation {
    struct chat_message *messages;
    int64_t count;
};

static void say_in(struct conversation *c, enum chat_role role, const char *text) {
    size_t bytes = (size_t)(c->count + 1) * sizeof *c->messages;
    c->messages = (struct chat_message *)xrealloc(c->messages, bytes);
    c->messages[c->count++] = (struct chat_message){role, xstrdup(text), (int64_t)strlen(text)};
}

static void forget(struct conversation *c) {
    for (int64_t i = 0; i < c->count; i++) free((char *)(uintptr_t)c->messages[i].text);
    c->count = 0;
}

/* Writes what follows the tokens. */
static void answer_to(struct sample *s, struct batch *b, const struct token_buffer *ids, int64_t turn,
                      struct answer *a) {
    struct sampler_options sampling = sampling_options(&s->c->sampling, turn);
    struct spoken w = {s, a, 0};
    struct generation g = {
        .sampler = sampler_new(&sampling, s->m.V), .tokens = s->c->tokens, .each = speak, .user = &w};
    a->o = s->answer;
    batch_add(b, &g, ids->ids, ids->count);
    while (batch_step(b)) s->steps++;
    show(&w, a->size);
    putchar('\n');
    s->made += g.made;
    s->slid |= g.slid;
    sampler_free(g.sampler);
    check(!ferror(stdout), "cannot write the text to standard output");
}

/* Answers a line; false: it cannot be encoded, which was said. */
static bool take_line(struct sample *s, struct batch *b, const struct chat_format *format,
                      struct conversation *said, const char *line, int64_t turn) {
    struct chat_tokens tokens = {0};
    struct answer answer = {.o = s->answer};
    struct error err;
    if (format) say_in(said, CHAT_USER, line);
    bool ok = format ? chat_render(format, said->messages, said->count, true, &tokens, &err)
                     : try_encode_prompt(&tokens.ids, s->m.tokenizer, &s->m.config, line, &err);
    if (ok) {
        warn_about_length(&tokens.ids, &s->m.config);
        answer_to(s, b, &tokens.ids, turn, &answer);
    } else {
        report_error("%s", err.message);
    }
    if (format && ok) say_in(said, CHAT_ASSISTANT, answer.text ? answer.text : "");
    if (format && !ok) free((char *)(uintptr_t)said->messages[--said->count].text);
    answer_free(&answer);
    chat_tokens_free(&tokens);
    return ok;
}

static void begin(const struct sample *s, struct conversation *said) {
    forget(said);
    if (s->c->system) say_in(said, CHAT_SYSTEM, s->c->system);
}

void sample_interactive(struct sample *s) {
    struct chat_format format;
    struct error err;
    bool chat = s->c->chat != NULL;
    if (chat) {
        check(model_chat_open(&format, s->c->chat_template, s->m.tokenizer, &s->m.config, &err), "%s",
              err.message);
        s->answer.end = format.end_of_turn;
    }
    /* only a conversation goes on: other texts are those of `sample` to the last bit */
    struct batch *b = batch_new(&s->m.gpt, chat);
    struct sigaction action = {.sa_handler = on_interrupt}, before;
    sigaction(SIGINT, &action, &before);
    struct line_input *in = line_input_open();
    struct conversation said = {0};
    begin(s, &said);
    if (s->terminal)
        printf("%s Ctrl-C stops a text, Ctrl-D ends.%s\n",
               chat ? "Say something." : "Each line is a prompt, which the model continues.",
               chat ? " /new begins a new conversation." : "");
    for (int64_t turn = 0;;) {
        bool stopped;
        const char *line = line_input_read(in, &stopped);
        if (stopped) putchar('\n');
        if (!line && !stopped) break;
        interrupted = 0;
        if (!line || !line[0]) continue;
        if (chat && strcmp(line, "/new") == 0)
            begin(s, &said);
        else if (take_line(s, b, chat ? &format : NULL, &said, line, turn))
            turn++;
    }
    if (s->terminal) putchar('\n');
    line_input_close(in);
    sigaction(SIGINT, &before, NULL);
    forget(&said);
    free(said.messages);
    if (chat) chat_close(&format);
    batch_free(b);
}
