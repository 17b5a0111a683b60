/* `train_gpt view`: one pass of a model over a prompt, opened: attention, queries, keys and values, the
 * residual stream and the next token, as a page for a browser or as JSON. inspect.h has the numbers. */
#include "llmc/cli/commands.h"
#include "llmc/cli/prompt.h"

#include "llmc/base/file.h"
#include "llmc/format/checkpoint.h"
#include "llmc/format/model_config.h"
#include "llmc/model/inspect.h"
#include "llmc/report/json_text.h"
#include "llmc/report/view_page.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct view_config {
    const char *from, *tokenizer, *device, *prompt, *html, *json;
    int64_t threads, tokens;
    bool overwrite;
    struct sampling_config sampling;
};

#define C struct view_config
static const struct option_row model_rows[] = {
    OPT_TEXT(C, from, "from", NULL, "DIR", "a run, a checkpoint or a Hugging Face directory",
             OPTION_REQUIRED),
    OPT_TEXT(C, tokenizer, "tokenizer", NULL, "PATH",
             "tokenizer.json or a directory with one (default: the tokenizer in DIR)", 0),
    OPT_TEXT(C, device, "device", "auto", "NAME", "cpu, cuda, cuda:N, or auto", 0),
    OPT_INT(C, threads, "threads", "0", 0, 4096, "N", "CPU threads (0: all cores)", 0),
};
static const struct option_row text_rows[] = {
    OPT_TEXT(C, prompt, "prompt", "", "TEXT", "the text to look at; - reads it from standard input",
             OPTION_MAY_BE_EMPTY),
    OPT_SIZE(C, tokens, "tokens", "0", 0, 1e9, "N",
             "first continue the prompt by up to N tokens, as sample does", 0),
};
static const struct option_row output_rows[] = {
    OPT_TEXT(C, html, "html", NULL, "FILE", "write a page for a browser, complete in one file", 0),
    OPT_TEXT(C, json, "json", NULL, "FILE", "write every number as JSON; - writes it to standard output", 0),
    OPT_FLAG(C, overwrite, "overwrite", "false", "replace FILE if it exists", 0),
};
#undef C
static const struct option_group groups[] = {
    {"Model", model_rows, ARRAY_LENGTH(model_rows)},
    {"Text", text_rows, ARRAY_LENGTH(text_rows)},
    SAMPLING_OPTION_GROUP(offsetof(struct view_config, sampling)),
    {"Output", output_rows, ARRAY_LENGTH(output_rows)},
};
const struct option_command view_command = {
    "train_gpt view --from DIR --prompt TEXT --html FILE [options]",
    "Shows how a model reads a text: which token attends to which, what queries, keys and values do, and what "
    "every part adds to the prediction of the next token. The page's sliders start from the sampling options.",
    groups, ARRAY_LENGTH(groups)};

/* --- tokens as text --- */

static json_t *token_text(const struct tokenizer *t, int64_t id) {
    int size = 0;
    const char *bytes = t ? tokenizer_token_bytes(t, id, &size) : NULL;
    if (!bytes) return json_string(temp_printf("#%" PRId64, id));
    return json_text(bytes, size);
}

/* --- facts --- */

static json_t *model_facts(const struct gpt *g) {
    json_t *model =
        json_pack("{s:s, s:I}", "name", g->config.name, "parameters", (json_int_t)g->layout.count);
    for (int i = 0; i < GPT_FIELD_COUNT; i++) {
        const struct gpt_field *f = &gpt_fields[i];
        double value = gpt_field_get(&g->config, f);
        json_object_set_new(model, f->option.name,
                            f->option.type == OPTION_WORD   ? json_string(gpt_field_text(&g->config, f))
                            : f->option.type == OPTION_REAL ? json_real(value)
                                                            : json_integer((json_int_t)value));
    }
    return model;
}

static json_t *make_facts(const struct view_config *c, const struct gpt *g, const struct inspection *x,
                          const struct tokenizer *tokenizer, int64_t prompt_count) {
    json_t *tokens = json_array(), *vocabulary = json_array(), *temperatures = json_array();
    for (int64_t t = 0; t < x->T; t++) json_array_append_new(tokens, json_integer(x->tokens[t]));
    for (int64_t v = 0; v < g->config.vocab_size; v++)
        json_array_append_new(vocabulary, token_text(tokenizer, v));
    for (int64_t i = 0; i < x->temperature_count; i++)
        json_array_append_new(temperatures, json_real(x->temperature[i]));
    const struct sampling_config *s = &c->sampling;
    json_t *facts =
        json_pack("{s:s, s:o, s:o, s:I, s:o, s:o, s:{s:f, s:I, s:f, s:I}}", "format", "llmc view 1", "model",
                  model_facts(g), "tokens", tokens, "prompt_tokens", (json_int_t)prompt_count, "vocabulary",
                  vocabulary, "temperatures", temperatures, "sampling", "temperature", s->temperature,
                  "top_k", (json_int_t)s->top_k, "top_p", s->top_p, "seed", (json_int_t)s->seed);
    check(facts != NULL, "out of memory for the facts of the page");
    return facts;
}

/* --- arrays --- */

static float *all_attention(const struct inspection *x) {
    float *P = (float *)xcalloc((size_t)(x->L * x->NH * x->T * x->T), sizeof *P);
    for (int64_t i = 0; i < x->L * x->NH; i++)
        inspect_attention(x, i / x->NH, i % x->NH, P + i * x->T * x->T);
    return P;
}

/* A field of the inspection with its shape. */
#define RANK(...) (sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))
#define FLOATS(field, by_layer, about, ...)                                                                  \
    { #field, about, RANK(__VA_ARGS__), {__VA_ARGS__ }, x->field, NULL, by_layer, false }
#define INTEGERS(field, by_layer, about, ...)                                                                \
    { #field, about, RANK(__VA_ARGS__), {__VA_ARGS__ }, NULL, x->field, by_layer, false }

static bool write_files(const struct view_config *c, const struct inspection *x, json_t *facts,
                        struct error *err) {
    float *P = c->json ? all_attention(x) : NULL;
    int64_t T = x->T, L = x->L, NH = x->NH, NKV = x->NKV, HS = x->HS, TOP = INSPECT_TOP;
    const struct view_array arrays[] = {
        FLOATS(q, true, "query: layer, token, head, dimension", L, T, NH, HS),
        FLOATS(k, true, "key: layer, token, key head, dimension", L, T, NKV, HS),
        FLOATS(v, true, "value: layer, token, key head, dimension", L, T, NKV, HS),
        FLOATS(lse, true, "logarithm of the softmax's denominator: layer, head, token", L, NH, T),
        {"attention", "exp(q.k/sqrt(dimensions) - lse): layer, head, from, to", .rank = 4,
         .dim = {L, NH, T, T}, .floats = P, .only_for_json = true},
        FLOATS(write, true,
               "times v, attention and rstd: effect on the target's logit: layer, token, head, dimension", L,
               T, NH, HS),
        FLOATS(value_norm, true, "length of what full attention to this token adds: layer, head, token", L,
               NH, T),
        FLOATS(norms, false,
               "lengths: layer, token, (stream before, attention, stream between, MLP, stream after)", L, T,
               INSPECT_NORMS),
        FLOATS(head_effect, false, "on the target's logit: layer, token, head", L, T, NH),
        FLOATS(bias_effect, false, "of the bias of the attention's output: layer, token", L, T),
        FLOATS(mlp_effect, false, "layer, token", L, T),
        FLOATS(token_effect, false, "of the token's embedding: token", T),
        FLOATS(position_effect, false, "of the position's embedding: token", T),
        FLOATS(constant_effect, false, "of the last norm's bias: token", T),
        FLOATS(rstd, false, "scale of the last norm: token", T),
        INTEGERS(target, false, "the token that follows; after the last one, the most probable: token", T),
        FLOATS(target_logit, false, "the sum of all effects: token", T),
        INTEGERS(lens_token, false, "most probable tokens after so many layers: depth, token, rank", L + 1, T,
                 TOP),
        FLOATS(lens_p, false, "their probabilities: depth, token, rank", L + 1, T, TOP),
        FLOATS(lens_target_p, false, "probability of the target: depth, token", L + 1, T),
        INTEGERS(lens_rank, false, "rank of the target: depth, token", L + 1, T),
        FLOATS(lens_entropy, false, "of the prediction, in nats: depth, token", L + 1, T),
        INTEGERS(next_token, false, "most probable next tokens: token, rank", T, x->next_count),
        FLOATS(next_logit, false, "their logits: token, rank", T, x->next_count),
        FLOATS(next_rest, false,
               "sum of exp((logit - largest)/temperature) over all others: token, temperature", T,
               x->temperature_count),
    };
    int count = (int)ARRAY_LENGTH(arrays);
    bool ok = (!c->json ||
               view_write_json(strcmp(c->json, "-") ? c->json : "/dev/stdout", facts, arrays, count, err)) &&
              (!c->html || view_write_page(c->html, facts, arrays, count, err));
    free(P);
    return ok;
}

/* --- the text --- */

static bool append_token(void *user, int64_t token) {
    struct token_buffer *ids = (struct token_buffer *)user;
    token_buffer_reserve(ids, 1);
    ids->ids[ids->count++] = (uint32_t)token;
    return true;
}

/* The prompt and what the model makes of it, up to <|endoftext|>. */
static void continue_text(const struct view_config *c, struct gpt *g, const struct tokenizer *t, int64_t V,
                          struct token_buffer *ids) {
    if (c->tokens == 0) return;
    struct sampler_options sampling = sampling_options(&c->sampling, 0);
    struct sampler *s = sampler_new(&sampling, V);
    struct token_buffer made = {0};
    generate(g, s, ids->ids, ids->count, c->tokens, append_token, &made);
    token_buffer_reserve(ids, made.count);
    for (int64_t i = 0; i < made.count && !(t && model_ends_text(&g->config, t, made.ids[i])); i++)
        ids->ids[ids->count++] = made.ids[i];
    sampler_free(s);
    token_buffer_free(&made);
}

/* The sliders' temperatures: 0.05 apart up to 2, and that of the options. */
static int64_t make_temperatures(double *list, double wanted) {
    int64_t n = 0;
    for (int i = 1; i <= 40; i++) {
        double step = i / 20.0;
        if (wanted > 0.0 && wanted < step - 1e-9 && (n == 0 || list[n - 1] < wanted - 1e-9))
            list[n++] = wanted;
        list[n++] = step;
    }
    if (wanted > 2.0) list[n++] = wanted;
    return n;
}

/* --- the command --- */

static const char *wrong_options(const struct view_config *c, struct error *err) {
    if (!c->html && !c->json) return "nothing to write: give --html FILE or --json FILE";
    if (c->html && c->json && strcmp(c->html, c->json) == 0) return "--html and --json name the same file";
    const char *file[] = {c->html, c->json};
    for (int i = 0; i < 2; i++)
        if (file[i] && strcmp(file[i], "-") != 0 && !may_write_file(file[i], c->overwrite, err))
            return err->message;
    return NULL;
}

static void look(const struct view_config *c, struct gpt *g, const struct tokenizer *tokenizer) {
    int64_t V = tokenizer ? tokenizer_vocab_size(tokenizer) : g->config.vocab_size;
    char *prompt = read_prompt(c->prompt);
    struct token_buffer ids = encode_prompt(tokenizer, &g->config, prompt);
    int64_t prompt_count = ids.count;
    check(ids.count + c->tokens <= g->config.context,
          "the prompt has %" PRId64 " tokens%s, but the model's context only %" PRId64 ": shorten the text",
          ids.count, c->tokens ? temp_printf(", and --tokens adds %" PRId64, c->tokens) : "",
          g->config.context);
    continue_text(c, g, tokenizer, V, &ids);

    double temperature[64];
    int64_t count = make_temperatures(temperature, c->sampling.temperature);
    struct gpt open;
    struct inspection x;
    inspect_create(&open, g->ctx, g, ids.count);
    inspect(&x, &open, (const int32_t *)ids.ids, V, temperature, count, NULL);
    json_t *facts = make_facts(c, &open, &x, tokenizer, prompt_count);
    struct error err;
    check(write_files(c, &x, facts, &err), "%s", err.message);
    if (c->html) fprintf(stderr, "%s: open it in a browser\n", c->html);
    json_decref(facts);
    inspection_free(&x);
    token_buffer_free(&ids);
    free(prompt);
}

int cmd_view(int argc, char **argv) {
    struct options options;
    struct view_config c;
    int status = command_options(&options, &view_command, &c, argc, argv);
    if (status >= 0) return status;
    struct error err;
    const char *wrong = wrong_options(&c, &err);
    if (wrong) {
        report_error("%s", wrong);
        options_free(&options);
        return 2;
    }
    char *directory = checkpoint_find(c.from, &err);
    check(directory, "%s", err.message);
    struct gpt_config model;
    check(checkpoint_config(&model, directory, &err), "%s", err.message);
    struct tokenizer *tokenizer = open_prompt_tokenizer(c.tokenizer, directory, c.prompt, model.vocab_size);
    struct device_options device_options = {.threads = c.threads};
    struct device *device = device_open(c.device, &device_options, &err);
    check(device, "%s", err.message);
    struct ctx ctx;
    struct gpt gpt;
    ctx_init(&ctx, device, device->ops, false);
    generator_create(&gpt, &ctx, &model, DTYPE_F32, NULL);
    check(checkpoint_load_weights(&gpt, directory, &err), "%s", err.message);
    look(&c, &gpt, tokenizer);
    tokenizer_free(tokenizer);
    ctx_free(&ctx);
    device->close(device);
    free(directory);
    options_free(&options);
    return 0;
}
