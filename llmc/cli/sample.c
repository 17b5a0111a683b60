/* `train_gpt sample`: continues a prompt with a trained model, token by token. */
#include "llmc/cli/commands.h"
#include "llmc/format/checkpoint.h"
#include "llmc/model/sampler.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sample_config {
    const char *from, *prompt, *tokenizer, *device;
    int64_t tokens, count, top_k, seed, threads;
    double temperature, top_p;
    bool past_end, stats;
};

#define C struct sample_config
static const struct option_row model_rows[] = {
    OPT_TEXT(C, from, "from", NULL, "DIR", "a run, a checkpoint or a Hugging Face GPT-2 directory",
             OPTION_REQUIRED),
    OPT_TEXT(C, tokenizer, "tokenizer", NULL, "PATH",
             "tokenizer.json or a directory with one (default: the tokenizer in DIR)", 0),
    OPT_TEXT(C, device, "device", "auto", "NAME", "cpu, cuda, cuda:N, or auto", 0),
    OPT_INT(C, threads, "threads", "0", 0, 4096, "N", "CPU threads (0: all cores)", 0),
};
static const struct option_row text_rows[] = {
    OPT_TEXT(C, prompt, "prompt", "", "TEXT", "the beginning of the text; - reads it from standard input",
             OPTION_MAY_BE_EMPTY),
    OPT_SIZE(C, tokens, "tokens", "200", 1, 1e9, "N", "largest number of tokens to generate", 0),
    OPT_INT(C, count, "count", "1", 1, 1e6, "N", "texts to generate, with the seeds SEED, SEED+1, ...", 0),
    OPT_REAL(C, temperature, "temperature", "0.8", 0, 100, "X",
             "randomness of the choice; 0: always the most probable token", 0),
    OPT_SIZE(C, top_k, "top-k", "0", 0, 1e9, "K", "choose among the K most probable tokens only (0: all)", 0),
    OPT_REAL(C, top_p, "top-p", "1", 0, 1, "P",
             "choose among the most probable tokens whose probabilities add up to P", OPTION_ABOVE_MIN),
    OPT_INT(C, seed, "seed", "1", 0, INFINITY, "N", "the same seed gives the same text", 0),
    OPT_FLAG(C, past_end, "past-end", "false", "continue after <|endoftext|>", 0),
    OPT_FLAG(C, stats, "stats", "true", "print the speed on standard error", 0),
};
#undef C
static const struct option_group groups[] = {{"Model", model_rows, ARRAY_LENGTH(model_rows)},
                                             {"Text", text_rows, ARRAY_LENGTH(text_rows)}};
static const struct option_command command = {"train_gpt sample --from DIR [options]",
                                              "Continues a prompt with a trained model.", groups,
                                              ARRAY_LENGTH(groups)};

struct stream {
    const struct tokenizer *tokenizer;
    bool past_end;
};

static bool print_token(void *user, int64_t token) {
    struct stream *s = (struct stream *)user;
    if (!s->tokenizer) {
        printf("%" PRId64 " ", token);
    } else {
        if (token == tokenizer_end_of_text(s->tokenizer) && !s->past_end) return false;
        int size;
        const char *bytes = tokenizer_token_bytes(s->tokenizer, token, &size);
        fwrite(bytes, 1, (size_t)size, stdout);
    }
    fflush(stdout);
    return !ferror(stdout);
}

static char *read_prompt(const char *prompt) {
    if (strcmp(prompt, "-") != 0) return xstrdup(prompt);
    size_t size = 0, capacity = 4096;
    char *text = (char *)xmalloc(capacity);
    for (size_t n; (n = fread(text + size, 1, capacity - size - 1, stdin)) > 0;) {
        size += n;
        if (size + 1 == capacity) text = (char *)xrealloc(text, capacity *= 2);
    }
    text[size] = '\0';
    return text;
}

static struct tokenizer *open_tokenizer(const struct sample_config *c, const char *directory, int64_t V) {
    struct error err = {""};
    struct tokenizer *t =
        c->tokenizer ? tokenizer_load(c->tokenizer, &err) : checkpoint_load_tokenizer(directory, &err);
    check(t || !err.message[0], "%s", err.message);
    if (!t) {
        check(!c->prompt[0], "%s has no tokenizer.json: --tokenizer must name one for the --prompt",
              directory);
        warn("%s has no tokenizer.json: printing token ids instead of text (--tokenizer PATH names one)",
             directory);
    }
    check(!t || tokenizer_vocab_size(t) <= V, "the tokenizer has %d tokens, the model only %" PRId64,
          t ? tokenizer_vocab_size(t) : 0, V);
    return t;
}

/* Generating a token reads every weight at least once, so the copy rate bounds the speed. */
static void print_stats(const struct gpt *gpt, struct device *device, int64_t made, double seconds) {
    double matmul_rate, copy_rate, bytes = (double)gpt->layout.count * (double)dtype_size(gpt->params.dtype);
    device->measure(device, &matmul_rate, &copy_rate);
    fprintf(stderr,
            "%" PRId64
            " tokens in %.2f s: %.1f tokens/s; weights read at %sB/s, %.0f %% of the %sB/s measured here\n",
            made, seconds, (double)made / seconds, human_count(bytes * (double)made / seconds),
            100.0 * bytes * (double)made / seconds / copy_rate, human_count(copy_rate));
}

/* The tokens that the text continues: <|endoftext|>, which stands before every document in training, and the
 * prompt. */
static struct token_buffer encode_prompt(const struct tokenizer *tokenizer, const char *prompt,
                                         int64_t vocab_size) {
    struct token_buffer ids = {0};
    int64_t end_of_text = tokenizer ? tokenizer_end_of_text(tokenizer) : vocab_size - 1;
    if (end_of_text >= 0) {
        token_buffer_reserve(&ids, 1);
        ids.ids[ids.count++] = (uint32_t)end_of_text;
    }
    if (prompt[0])
        check(tokenizer_encode_special(tokenizer, prompt, (int64_t)strlen(prompt), &ids) >= 0,
              "cannot encode the prompt");
    check(ids.count > 0, "the tokenizer has no <|endoftext|> token to start from: give a --prompt");
    return ids;
}

int cmd_sample(int argc, char **argv) {
    struct options options;
    struct sample_config c;
    int status = command_options(&options, &command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    char *directory = checkpoint_find(c.from, &err);
    check(directory, "%s", err.message);
    struct gpt_config model;
    check(checkpoint_config(&model, directory, &err), "%s", err.message);
    struct tokenizer *tokenizer = open_tokenizer(&c, directory, model.vocab_size);
    struct device_options device_options = {.threads = c.threads};
    struct device *device = device_open(c.device, &device_options, &err);
    check(device, "%s", err.message);
    struct ctx ctx;
    struct gpt gpt;
    ctx_init(&ctx, device, device->ops, false);
    generator_create(&gpt, &ctx, &model, DTYPE_F32, NULL);
    check(checkpoint_load_weights(&gpt, directory, &err), "%s", err.message);

    char *prompt = read_prompt(c.prompt);
    struct token_buffer ids = encode_prompt(tokenizer, prompt, model.vocab_size);
    int64_t made = 0;
    struct stream stream = {tokenizer, c.past_end};
    double started = now_seconds();
    for (int64_t i = 0; i < c.count; i++) {
        struct sampler_options sampling = {c.temperature, c.top_k, c.top_p, (uint64_t)(c.seed + i)};
        struct sampler *s =
            sampler_new(&sampling, tokenizer ? tokenizer_vocab_size(tokenizer) : model.vocab_size);
        if (c.count > 1) printf("--- seed %" PRId64 "\n", c.seed + i);
        fputs(prompt, stdout);
        made += generate(&gpt, s, ids.ids, ids.count, c.tokens, print_token, &stream);
        putchar('\n');
        sampler_free(s);
    }
    double seconds = now_seconds() - started;
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
