/* `train_gpt sample`: continues a prompt with a trained model, token by token. */
#include "llmc/cli/commands.h"
#include "llmc/cli/prompt.h"
#include "llmc/format/checkpoint.h"
#include "llmc/format/model_config.h"
#include "llmc/model/generate.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct sample_config {
    const char *from, *prompt, *chat, *system, *tokenizer, *device;
    enum chat_family chat_template;
    int64_t tokens, count, threads;
    int dtype; /* 1: bf16 */
    struct sampling_config sampling;
    bool past_end, stats;
};

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
    OPT_TEXT(
        C, chat, "chat", NULL, "TEXT",
        "in place of --prompt: what the user says to a chat model, which answers; - reads it from standard "
        "input",
        0),
    OPT_TEXT(C, system, "system", NULL, "TEXT", "with --chat: the system message before it", 0),
    CHAT_TEMPLATE_OPTION(C),
    OPT_SIZE(C, tokens, "tokens", "200", 1, 1e9, "N", "largest number of tokens to generate", 0),
    OPT_INT(C, count, "count", "1", 1, 1e6, "N", "texts to generate, with the seeds SEED, SEED+1, ...", 0),
    OPT_FLAG(C, past_end, "past-end", "false", "continue after <|endoftext|>", 0),
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

struct stream {
    const struct tokenizer *tokenizer;
    const struct gpt_config *model;
    bool past_end;
    int64_t end;   /* the token that ends an answer; -1: none */
    bool terminal; /* on which control characters must not act; elsewhere the bytes are what is wanted */
};

static void put_text(const struct stream *s, const char *bytes, int64_t size) {
    for (int64_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)bytes[i];
        bool control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
        putchar(s->terminal && control ? '?' : c);
    }
}

static bool print_token(void *user, int64_t token, const float *logits) {
    struct stream *s = (struct stream *)user;
    if (!s->tokenizer) {
        printf("%" PRId64 " ", token);
    } else {
        if (token == s->end || (!s->past_end && model_ends_text(s->model, s->tokenizer, token))) return false;
        int size;
        const char *bytes = tokenizer_token_bytes(s->tokenizer, token, &size);
        put_text(s, bytes, size);
    }
    fflush(stdout);
    return !ferror(stdout);
}

/* Generating a token reads every weight at least once, so the copy rate bounds the speed. */
static void print_stats(const struct gpt *gpt, struct device *device, int64_t made, double seconds) {
    double matmul_rate, copy_rate, bytes = (double)gpt->layout.count * (double)dtype_size(gpt->params.dtype);
    double rate = bytes * (double)made / seconds;
    device->measure(device, &matmul_rate, &copy_rate);
    fprintf(stderr, "%" PRId64 " token%s in %.3g s: %.1f tokens/s; weights read at %sB/s, %s\n", made,
            made == 1 ? "" : "s", seconds, (double)made / seconds, human_count(rate),
            rate > copy_rate ? "from a cache"
                             : temp_printf("%.0f %% of the %sB/s measured here", 100.0 * rate / copy_rate,
                                           human_count(copy_rate)));
}

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

static void check_texts(const struct sample_config *c) {
    check(!c->chat || !c->prompt[0], "--chat and --prompt exclude each other: give one of them");
    check(c->chat || !c->system, "--system is for --chat, which is not given");
    check(c->chat || c->chat_template == CHAT_AUTO, "--chat-template is for --chat, which is not given");
}

int cmd_sample(int argc, char **argv) {
    struct options options;
    struct sample_config c;
    int status = command_options(&options, &sample_command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    check_texts(&c);
    char *directory = checkpoint_find(c.from, &err);
    check(directory, "%s", err.message);
    struct gpt_config model;
    check(checkpoint_config(&model, directory, &err), "%s", err.message);
    check(
        !gpt_looks_ahead(&model),
        "%s: tokens of this model see those after them (its mask is anti-causal or full), so it cannot write",
        directory);
    struct tokenizer *tokenizer =
        open_prompt_tokenizer(c.tokenizer, directory, c.chat ? c.chat : c.prompt, model.vocab_size);
    struct device_options device_options = {.threads = c.threads};
    struct device *device = device_open(c.device, &device_options, &err);
    check(device, "%s", err.message);
    struct ctx ctx;
    struct gpt gpt;
    ctx_init(&ctx, device, device->ops, false);
    generator_create(&gpt, &ctx, &model, c.dtype ? DTYPE_BF16 : DTYPE_F32, NULL, 0, 0);
    check(checkpoint_load_weights(&gpt, directory, &err), "%s", err.message);

    char *prompt = read_prompt(c.chat ? c.chat : c.prompt);
    struct stream stream = {tokenizer, &model, c.past_end, -1, isatty(STDOUT_FILENO)};
    struct token_buffer ids = c.chat ? encode_chat(&c, tokenizer, &model, prompt, &stream.end)
                                     : encode_prompt(tokenizer, &model, prompt);
    int64_t made = 0;
    double started = now_seconds();
    for (int64_t i = 0; i < c.count; i++) {
        struct sampler_options sampling = sampling_options(&c.sampling, i);
        struct sampler *s =
            sampler_new(&sampling, tokenizer ? tokenizer_vocab_size(tokenizer) : model.vocab_size);
        if (c.count > 1) printf("--- seed %" PRIu64 "\n", sampling.seed);
        if (!c.chat) put_text(&stream, prompt, (int64_t)strlen(prompt));
        made += generate(&gpt, s, ids.ids, ids.count, c.tokens, print_token, &stream);
        putchar('\n');
        sampler_free(s);
    }
    double seconds = now_seconds() - started;
    fflush(stdout); /* before what standard error says */
    if (c.stats) print_stats(&gpt, device, made, seconds);
    check(fflush(stdout) == 0 && !ferror(stdout), "cannot write the text to standard output");

    free(prompt);
    token_buffer_free(&ids);
    tokenizer_free(tokenizer);
    ctx_free(&ctx);
    device->close(device);
    free(directory);
    options_free(&options);
    return 0;
}
