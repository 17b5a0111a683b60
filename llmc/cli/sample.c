/* `train_gpt sample`: continues prompts with a trained model, token by token. Several texts are made at the
 * same time and printed one after another. */
#include "llmc/cli/sample.h"

#include "llmc/cli/commands.h"
#include "llmc/corpus/pair_file.h"
#include "llmc/format/model_config.h"
#include "llmc/report/json_text.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define C struct sample_config
static const struct option_row text_rows[] = {
    OPT_TEXT(C, prompt, "prompt", "", "TEXT",
             "the beginning of the text; - reads it from standard input, without the newline at its end",
             OPTION_MAY_BE_EMPTY),
    OPT_FLAG(C, interactive, "interactive", "false",
             "continue, or with --chat answer, each line that is typed; Ctrl-C stops a text, Ctrl-D ends", 0),
    OPT_TEXT(
        C, prompt_file, "prompt-file", NULL, "FILE",
        "prompts, one a line, or JSON lines with \"prompt\"; - is standard input. All are continued at the "
        "same time, and each becomes the text that it would become alone",
        0),
    OPT_TEXT(
        C, chat, "chat", NULL, "TEXT",
        "in place of --prompt: what the user says to a chat model, which answers; - reads it from standard "
        "input. With --interactive without TEXT",
        OPTION_BARE),
    OPT_TEXT(C, system, "system", NULL, "TEXT", "with --chat: the system message before it", 0),
    CHAT_TEMPLATE_OPTION(C),
    OPT_TEXT(
        C, source, "source", NULL, "TEXT",
        "in place of --prompt: the source of a pair, for a model that was trained with --pairs, which writes "
        "the target",
        0),
    OPT_SIZE(C, tokens, "tokens", "200", 1, 1e9, "N", "largest number of tokens to generate", 0),
    OPT_INT(C, count, "count", "1", 1, 1e6, "N",
            "texts to generate from each prompt, with the seeds SEED, SEED+1, ...", 0),
    OPT_INT(C, batch_size, "batch-size", "auto", 0, 4096, "N",
            "texts that are computed at the same time (auto: up to 16, as memory allows)", 0),
    OPT_INT(
        C, beams, "beams", "1", 1, 256, "N",
        "search for the most probable text: keep the N best beginnings at every length (1: choose token by "
        "token)",
        0),
    OPT_REAL(C, length_penalty, "length-penalty", "1", 0, 10, "A",
             "with --beams: log-probabilities are divided by ((5 + length) / 6) to the power of A", 0),
    OPT_TEXT(C, stop, "stop", NULL, "TEXT", "end a text before it says TEXT; may be given several times",
             OPTION_REPEATED),
    OPT_FLAG(C, past_end, "past-end", "false", "continue after <|endoftext|>", 0),
    OPT_FLAG(
        C, json, "json", "false",
        "write a JSON object a line for each text: prompt, seed, text, tokens, log-probabilities, why it "
        "ended",
        0),
    OPT_INT(C, top, "top-logprobs", "5", 0, 1000, "N",
            "with --json: the N most probable tokens at each place", 0),
    OPT_FLAG(C, stats, "stats", "true", "print the speed on standard error", 0),
};
#undef C
static const struct option_group groups[] = {
    TEXT_MODEL_OPTION_GROUP(offsetof(struct sample_config, model), MODEL_ROWS_DTYPE),
    {"Text", text_rows, ARRAY_LENGTH(text_rows)},
    SAMPLING_OPTION_GROUP(offsetof(struct sample_config, sampling)),
};
const struct option_command sample_command = {"train_gpt sample --from DIR [options]",
                                              "Continues a prompt with a trained model, or answers with one "
                                              "that was trained on conversations.",
                                              groups, ARRAY_LENGTH(groups)};

/* --- prompts and texts --- */

/* The tokens that --chat ends with the assistant's turn; *end is the one that ends its answer. */
static struct token_buffer encode_chat(const struct sample_config *c, const struct tokenizer *t,
                                       const struct gpt_config *model, const char *text, int64_t *end) {
    struct chat_message m[2] = {{CHAT_SYSTEM, c->system, c->system ? (int64_t)strlen(c->system) : 0},
                                {CHAT_USER, text, (int64_t)strlen(text)}};
    struct chat_format format;
    struct chat_tokens tokens = {0};
    struct error err;
    check(model_chat_open(&format, c->chat_template, t, model, &err), "%s", err.message);
    check(chat_render(&format, c->system ? m : m + 1, c->system ? 2 : 1, true, &tokens, &err), "%s",
          err.message);
    warn_about_length(&tokens.ids, model);
    *end = format.end_of_turn;
    chat_close(&format);
    free(tokens.learned);
    return tokens.ids;
}

static struct token_buffer encode_pair_source(struct sample *s, const char *text) {
    struct token_buffer ids = {0};
    struct error err;
    s->answer.end = tokenizer_end_of_text(s->m.tokenizer);
    check(s->answer.end >= 0, "--source: the tokenizer has no <|endoftext|>, which ends a source");
    check(encode_source(s->m.tokenizer, text, &ids, &err), "--source: %s", err.message);
    warn_about_length(&ids, &s->m.config);
    return ids;
}

static void read_texts(struct sample *s) {
    const struct sample_config *c = s->c;
    char **texts, *one = NULL;
    s->prompt_count = 1;
    if (c->prompt_file)
        texts = read_prompts(c->prompt_file, &s->prompt_count);
    else
        one = read_prompt(c->chat ? c->chat : c->source ? c->source : c->prompt), texts = &one;
    s->prompts = (struct prompt *)xcalloc((size_t)s->prompt_count, sizeof *s->prompts);
    s->text_count = s->prompt_count * c->count;
    s->texts = (struct text *)xcalloc((size_t)s->text_count, sizeof *s->texts);
    for (int64_t i = 0; i < s->prompt_count; i++) {
        struct prompt *p = &s->prompts[i];
        p->text = texts[i];
        p->ids = c->source ? encode_pair_source(s, p->text)
                 : c->chat ? encode_chat(c, s->m.tokenizer, &s->m.config, p->text, &s->answer.end)
                           : encode_prompt(s->m.tokenizer, &s->m.config, p->text);
    }
    if (texts != &one) free(texts);
    for (int64_t i = 0; i < s->text_count; i++) {
        s->texts[i].prompt = &s->prompts[i / c->count];
        s->texts[i].sampling = sampling_options(&c->sampling, i % c->count);
    }
}

/* The stop texts, as a list that points into a copy. */
static void read_stops(struct answer_options *o, char *stops) {
    const char **list = NULL;
    for (char *next; stops; stops = next) {
        next = strchr(stops, OPTION_SEPARATOR);
        if (next) *next++ = 0;
        list = (const char **)xrealloc(list, (size_t)(o->stop_count + 1) * sizeof *list);
        list[o->stop_count++] = stops;
    }
    o->stop = list;
}

/* --- output --- */

void sample_put(const struct sample *s, const char *bytes, int64_t size) {
    for (int64_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)bytes[i];
        bool control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
        putchar(s->terminal && control ? '?' : c);
    }
}

static json_t *token_json(const struct sample *s, int64_t token) {
    int size;
    const char *bytes = s->m.tokenizer ? tokenizer_token_bytes(s->m.tokenizer, token, &size) : NULL;
    return bytes ? json_text(bytes, size) : json_null();
}

static json_t *top_json(const struct sample *s, const struct token_logprob *top) {
    json_t *list = json_array();
    for (int64_t i = 0; i < s->answer.top && top[i].token >= 0; i++)
        json_array_append_new(list, json_pack("{s:I, s:o, s:f}", "token", (json_int_t)top[i].token, "text",
                                              token_json(s, top[i].token), "logprob", top[i].logprob));
    return list;
}

static void print_json(const struct sample *s, const struct text *t) {
    const struct answer *a = &t->answer;
    json_t *tokens = json_array(), *logprobs = json_array(), *top = json_array();
    for (int64_t i = 0; i < a->ids.count; i++) {
        json_array_append_new(tokens, json_integer(a->ids.ids[i]));
        json_array_append_new(logprobs, json_real(a->logprob[i]));
        json_array_append_new(top, top_json(s, a->top + i * s->answer.top));
    }
    const char *text = t->prompt->text;
    json_t *root = json_pack("{s:o, s:I, s:o, s:o, s:o, s:o, s:s}", "prompt",
                             json_text(text, (int64_t)strlen(text)), "seed", (json_int_t)t->sampling.seed,
                             "text", json_text(a->size ? a->text : "", a->size), "tokens", tokens, "logprobs",
                             logprobs, "top_logprobs", top, "finish_reason", a->stopped ? "stop" : "length");
    char *line = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(9));
    check(line, "out of memory for a text as JSON");
    printf("%s\n", line);
    free(line);
    json_decref(root);
}

static void print_heading(const struct sample *s, int64_t i) {
    const struct text *t = &s->texts[i];
    if (s->prompt_count > 1) printf("--- prompt %" PRId64, i / s->c->count + 1);
    if (s->c->count > 1) printf("%s seed %" PRIu64, s->prompt_count > 1 ? "," : "---", t->sampling.seed);
    if (s->text_count > 1) putchar('\n');
    if (!s->c->chat && !s->c->source) sample_put(s, t->prompt->text, (int64_t)strlen(t->prompt->text));
}

/* Prints what is known of text `i` beyond the first *shown bytes (-1: nothing is shown yet). */
static void print_more(const struct sample *s, int64_t i, int64_t *shown) {
    const struct text *t = &s->texts[i];
    if (s->c->json) {
        if (t->generation.ended) print_json(s, t);
    } else {
        int64_t sure = t->generation.ended ? t->answer.size : t->answer.sure;
        if (*shown < 0) print_heading(s, i), *shown = 0;
        if (sure > *shown) sample_put(s, t->answer.text + *shown, sure - *shown), *shown = sure;
        if (t->generation.ended) putchar('\n');
    }
    fflush(stdout);
    check(!ferror(stdout), "cannot write the text to standard output");
}

/* Generating a token reads every weight at least once, so the copy rate bounds the speed. */
static void print_stats(const struct sample *s, double seconds) {
    const struct gpt *gpt = &s->m.gpt;
    double matmul_rate, copy_rate, bytes = (double)gpt->layout.count * (double)dtype_size(gpt->params.dtype);
    double rate = bytes * (double)s->steps / seconds;
    s->m.device->measure(s->m.device, &matmul_rate, &copy_rate);
    fprintf(stderr, "%" PRId64 " token%s in %.3g s: %.1f tokens/s; weights read at %sB/s, %s\n", s->made,
            s->made == 1 ? "" : "s", seconds, (double)s->made / seconds, human_count(rate),
            rate > copy_rate ? "from a cache"
                             : temp_printf("%.0f %% of the %sB/s measured here", 100.0 * rate / copy_rate,
                                           human_count(copy_rate)));
}

/* --- generating --- */

/* Positions that the longest text needs. */
static int64_t positions_needed(const struct sample *s) {
    int64_t most = 0;
    for (int64_t i = 0; i < s->prompt_count; i++)
        most = max_i64(most, s->prompts[i].ids.count + s->c->tokens);
    return min_i64(most, s->m.config.context);
}

static void begin_text(const struct sample *s, struct batch *b, struct text *t) {
    t->sampler = sampler_new(&t->sampling, s->m.V);
    t->answer.o = s->answer;
    t->generation = (struct generation){
        .sampler = t->sampler, .tokens = s->c->tokens, .each = answer_add, .user = &t->answer};
    batch_add(b, &t->generation, t->prompt->ids.ids, t->prompt->ids.count);
}

/* Makes the texts, and prints them in their order: the first that has not ended, as it grows. */
static void make_texts(struct sample *s) {
    struct batch *b = batch_new(&s->m.gpt, false);
    int64_t begun = 0, current = 0, shown = -1;
    while (current < s->text_count) {
        while (begun < s->text_count && batch_room(b) > 0) begin_text(s, b, &s->texts[begun++]);
        if (batch_step(b)) s->steps++;
        for (bool ended = true; ended && current < begun;) {
            struct text *t = &s->texts[current];
            print_more(s, current, &shown);
            ended = t->generation.ended;
            if (!ended) break;
            s->made += t->generation.made;
            s->slid |= t->generation.slid;
            sampler_free(t->sampler);
            answer_free(&t->answer);
            current++;
            shown = -1;
        }
    }
    batch_free(b);
}

/* The most probable text of each prompt that a beam search finds. */
static void search_texts(struct sample *s) {
    for (int64_t i = 0; i < s->prompt_count; i++) {
        const struct prompt *p = &s->prompts[i];
        int64_t shown = -1, room = s->m.gpt.options.T - p->ids.count;
        check(room > 0, "--beams: the prompt has %" PRId64 " tokens, the model's context is of %" PRId64,
              p->ids.count, s->m.gpt.options.T);
        char *text = beam_text(&s->m, s->answer.end, s->c->beams, s->c->length_penalty, p->ids.ids,
                               p->ids.count, min_i64(s->c->tokens, room), &s->made);
        print_more(s, i, &shown);
        sample_put(s, text, (int64_t)strlen(text));
        putchar('\n');
        free(text);
    }
}

static void check_texts(const struct sample_config *c) {
    check(c->beams == 1 || (!c->interactive && !c->json && !c->stop && !c->past_end && c->count == 1),
          "--beams finds one text: it takes no --interactive, --json, --stop, --past-end and --count");
    if (c->interactive) {
        check(
            !c->prompt[0] && !c->prompt_file && (!c->chat || !c->chat[0]),
            "--interactive reads what is typed: it takes no --prompt, no --prompt-file and --chat without TEXT");
        check(!c->json && c->count == 1, "--interactive writes one text at a time, and none as JSON");
    }
    check(c->interactive || !c->chat || c->chat[0], "--chat: give it what the user says, or --interactive");
    check(!c->chat || !c->prompt[0], "--chat and --prompt exclude each other: give one of them");
    check(!c->prompt_file || (!c->chat && !c->prompt[0]),
          "--prompt-file excludes --prompt and --chat: give one of them");
    check(!c->source || (!c->chat && !c->prompt[0] && !c->prompt_file && !c->interactive),
          "--source excludes --prompt, --prompt-file, --chat and --interactive: give one of them");
    check(c->chat || !c->system, "--system is for --chat, which is not given");
    check(c->chat || c->chat_template == CHAT_AUTO, "--chat-template is for --chat, which is not given");
}

static void free_texts(struct sample *s) {
    for (int64_t i = 0; i < s->prompt_count; i++) {
        free(s->prompts[i].text);
        token_buffer_free(&s->prompts[i].ids);
    }
    free(s->prompts);
    free(s->texts);
    free((void *)s->answer.stop);
}

int cmd_sample(int argc, char **argv) {
    struct options options;
    struct sample_config c;
    int status = command_options(&options, &sample_command, &c, argc, argv);
    if (status >= 0) return status;
    check_texts(&c);
    struct sample s = {.c = &c, .terminal = isatty(STDOUT_FILENO)};
    const char *encoded[] = {c.chat, c.source, c.prompt_file, c.stop, c.interactive ? "what is typed" : NULL};
    const char *text = c.prompt;
    for (size_t i = 0; i < ARRAY_LENGTH(encoded); i++)
        if (encoded[i]) text = encoded[i];
    text_model_find(&s.m, &c.model, text);
    text_model_check_writes(&s.m);
    s.answer = (struct answer_options){.tokenizer = s.m.tokenizer,
                                       .model = &s.m.config,
                                       .V = s.m.V,
                                       .end = -1,
                                       .past_end = c.past_end,
                                       .logprobs = c.json,
                                       .top = c.json ? c.top : 0};
    char *stops = c.stop ? xstrdup(c.stop) : NULL;
    read_stops(&s.answer, stops);
    if (!c.interactive) read_texts(&s);
    int64_t T = c.interactive ? s.m.config.context : positions_needed(&s);
    int64_t caches = text_model_batch(&s.m, c.interactive ? 1 : c.batch_size, max_i64(1, s.text_count), T);
    if (c.beams > 1) {
        check(c.beams <= s.m.config.context, "--beams %" PRId64 ": more than the model's context of %" PRId64,
              c.beams, s.m.config.context);
        caches = c.beams;
        T = max_i64(T, caches);
    }
    text_model_load(&s.m, &c.model, caches, T);

    double started = now_seconds();
    if (c.interactive)
        sample_interactive(&s);
    else if (c.beams > 1)
        search_texts(&s);
    else
        make_texts(&s);
    double seconds = now_seconds() - started;
    if (s.slid)
        fprintf(stderr,
                "The text is longer than the model's context of %" PRId64
                " tokens: each time it was full, the model went on from the later half of it.\n",
                s.m.config.context);
    if (c.stats && !c.interactive && c.beams == 1) print_stats(&s, seconds);
    free_texts(&s);
    text_model_close(&s.m);
    free(stops);
    options_free(&options);
    return 0;
}
