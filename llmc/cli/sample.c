/* `train_gpt sample`: continues prompts with a trained model, token by token. Several texts are made at the
 * same time and printed one after another. */
#include "llmc/cli/sample.h"

#include "llmc/cli/commands.h"
#include "llmc/format/checkpoint.h"
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
static const struct option_row model_rows[] = {
    OPT_TEXT(C, from, "from", NULL, "DIR", "a run, a checkpoint, a Hugging Face directory or a GGUF file",
             OPTION_REQUIRED),
    OPT_TEXT(C, tokenizer, "tokenizer", NULL, "PATH|bytes",
             "tokenizer.json, a directory with one, or the word bytes (default: the tokenizer in DIR)", 0),
    OPT_TEXT(C, device, "device", "auto", "NAME", "cpu, cuda, cuda:N, or auto", 0),
    OPT_WORD(
        C, dtype, "dtype", "fp32", "fp32|bf16", NULL,
        "type of the weights: in bf16 they take half the memory, and a token takes less time; on a CPU the "
        "computation stays in fp32",
        0),
    OPT_INT(C, threads, "threads", "auto", 0, 4096, "N", "CPU threads (auto: the cores it may use)", 0),
};
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
    OPT_SIZE(C, tokens, "tokens", "200", 1, 1e9, "N", "largest number of tokens to generate", 0),
    OPT_INT(C, count, "count", "1", 1, 1e6, "N",
            "texts to generate from each prompt, with the seeds SEED, SEED+1, ...", 0),
    OPT_INT(C, batch_size, "batch-size", "auto", 0, 4096, "N",
            "texts that are computed at the same time (auto: up to 16, as memory allows)", 0),
    OPT_TEXT(C, stop, "stop", NULL, "TEXT", "end a text before it says TEXT; may be given several times",
             OPTION_REPEATED),
    OPT_FLAG(C, past_end, "past-end", "false", "continue after <|endoftext|>", 0),
    OPT_FLAG(
        C, json, "json", "false",
        "write a JSON object a line for each text: prompt, seed, text, tokens, log-probabilities, why it ended",
        0),
    OPT_INT(C, top, "top-logprobs", "5", 0, 1000, "N",
            "with --json: the N most probable tokens at each place", 0),
    OPT_FLAG(C, stats, "stats", "true", "print the speed on standard error", 0),
};
#undef C
static const struct option_group groups[] = {{"Model", model_rows, ARRAY_LENGTH(model_rows)},
                                             {"Text", text_rows, ARRAY_LENGTH(text_rows)},
                                             SAMPLING_OPTION_GROUP(offsetof(struct sample_config, sampling))};
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

static void read_texts(struct sample *s) {
    const struct sample_config *c = s->c;
    char **texts, *one = NULL;
    s->prompt_count = 1;
    if (c->prompt_file)
        texts = read_prompts(c->prompt_file, &s->prompt_count);
    else
        one = read_prompt(c->chat ? c->chat : c->prompt), texts = &one;
    s->prompts = (struct prompt *)xcalloc((size_t)s->prompt_count, sizeof *s->prompts);
    s->text_count = s->prompt_count * c->count;
    s->texts = (struct text *)xcalloc((size_t)s->text_count, sizeof *s->texts);
    for (int64_t i = 0; i < s->prompt_count; i++) {
        struct prompt *p = &s->prompts[i];
        p->text = texts[i];
        p->ids = c->chat ? encode_chat(c, s->tokenizer, &s->model, p->text, &s->answer.end)
                         : encode_prompt(s->tokenizer, &s->model, p->text);
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
    const char *bytes = s->tokenizer ? tokenizer_token_bytes(s->tokenizer, token, &size) : NULL;
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
    if (!s->c->chat) sample_put(s, t->prompt->text, (int64_t)strlen(t->prompt->text));
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
static void print_stats(const struct sample *s, const struct gpt *gpt, double seconds) {
    double matmul_rate, copy_rate, bytes = (double)gpt->layout.count * (double)dtype_size(gpt->params.dtype);
    double rate = bytes * (double)s->steps / seconds;
    gpt->ctx->device->measure(gpt->ctx->device, &matmul_rate, &copy_rate);
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
    return min_i64(most, s->model.context);
}

static int64_t batch_size(const struct sample *s, struct device *device, int64_t T) {
    int64_t free_bytes, total_bytes, size = s->c->batch_size;
    if (size == 0) {
        device->memory_info(device, &free_bytes, &total_bytes);
        struct gpt_params layout;
        gpt_params_layout(&layout, &s->model);
        double weights = (double)layout.total * sizeof(float);
        double fit = (0.9 * (double)free_bytes - weights) / (double)generator_cache_bytes(&s->model, T);
        size = (int64_t)fmax(1.0, fmin(16.0, fit));
    }
    return min_i64(min_i64(size, s->text_count), T);
}

static void begin_text(const struct sample *s, struct batch *b, struct text *t) {
    t->sampler = sampler_new(&t->sampling, s->answer.V);
    t->answer.o = s->answer;
    t->generation = (struct generation){
        .sampler = t->sampler, .tokens = s->c->tokens, .each = answer_add, .user = &t->answer};
    batch_add(b, &t->generation, t->prompt->ids.ids, t->prompt->ids.count);
}

/* Makes the texts, and prints them in their order: the first that has not ended, as it grows. */
static void make_texts(struct sample *s, struct gpt *gpt) {
    struct batch *b = batch_new(gpt, false);
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

static void check_texts(const struct sample_config *c) {
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
    tokenizer_free(s->tokenizer);
}

int cmd_sample(int argc, char **argv) {
    struct options options;
    struct sample_config c;
    int status = command_options(&options, &sample_command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    check_texts(&c);
    char *directory = checkpoint_find(c.from, &err), *stops = c.stop ? xstrdup(c.stop) : NULL;
    check(directory, "%s", err.message);
    struct sample s = {.c = &c, .terminal = isatty(STDOUT_FILENO)};
    check(checkpoint_config(&s.model, directory, &err), "%s", err.message);
    check(
        !gpt_looks_ahead(&s.model),
        "%s: tokens of this model see those after them (its mask is anti-causal or full), so it cannot write",
        directory);
    const char *needs = c.interactive   ? "what is typed"
                        : c.chat        ? c.chat
                        : c.prompt_file ? c.prompt_file
                        : c.stop        ? c.stop
                                        : c.prompt;
    s.tokenizer = open_prompt_tokenizer(c.tokenizer, directory, needs, s.model.vocab_size);
    s.answer =
        (struct answer_options){.tokenizer = s.tokenizer,
                                .model = &s.model,
                                .V = s.tokenizer ? tokenizer_vocab_size(s.tokenizer) : s.model.vocab_size,
                                .end = -1,
                                .past_end = c.past_end,
                                .logprobs = c.json,
                                .top = c.json ? c.top : 0};
    read_stops(&s.answer, stops);
    struct device_options device_options = {.threads = c.threads};
    struct device *device = device_open(c.device, &device_options, &err);
    check(device, "%s", err.message);
    if (!c.interactive) read_texts(&s);
    struct ctx ctx;
    struct gpt gpt;
    ctx_init(&ctx, device, device->ops, false);
    int64_t T = c.interactive ? s.model.context : positions_needed(&s);
    int64_t caches = c.interactive ? 1 : batch_size(&s, device, T);
    generator_create(&gpt, &ctx, &s.model, c.dtype ? DTYPE_BF16 : DTYPE_F32, NULL, caches, T);
    check(checkpoint_load_weights(&gpt, directory, &err), "%s", err.message);

    double started = now_seconds();
    if (c.interactive)
        sample_interactive(&s, &gpt);
    else
        make_texts(&s, &gpt);
    double seconds = now_seconds() - started;
    if (s.slid)
        fprintf(stderr,
                "The text is longer than the model's context of %" PRId64
                " tokens: each time it was full, the model went on from the later half of it.\n",
                s.model.context);
    if (c.stats && !c.interactive) print_stats(&s, &gpt, seconds);
    free_texts(&s);
    ctx_free(&ctx);
    device->close(device);
    free(stops);
    free(directory);
    options_free(&options);
    return 0;
}
