/* `train_gpt view`: one pass of a model over a prompt, opened: attention, queries, keys and values, the
 * residual stream and the next token, as a page for a browser, served or in a file, or as JSON. inspect.h has
 * the numbers, look.h what becomes of them. */
#include "llmc/cli/commands.h"
#include "llmc/cli/look.h"

#include "llmc/base/file.h"
#include "llmc/format/model_config.h"
#include "llmc/model/generate.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct view_config {
    struct text_model_config model;
    const char *prompt, *without, *html, *json, *address;
    int64_t tokens, port;
    bool overwrite, serve, token;
    struct sampling_config sampling;
};

#define C struct view_config
static const struct option_row text_rows[] = {
    OPT_TEXT(C, prompt, "prompt", "", "TEXT", "the text to look at; - reads it from standard input",
             OPTION_MAY_BE_EMPTY),
    OPT_SIZE(C, tokens, "tokens", "0", 0, 1e9, "N",
             "first continue the prompt by up to N tokens, as sample does", 0),
    OPT_TEXT(
        C, without, "without", NULL, "JSON",
        "read the text without some heads or links of attention: {\"off\": [[layer, head], ...], \"cut\": "
        "[[token, seen token, layer, head], ...]}, all from 0; -1: all layers or heads. For --html and "
        "--json; with --serve the page asks what if",
        0),
};
static const struct option_row output_rows[] = {
    OPT_FLAG(
        C, serve, "serve", "false",
        "serve the page; it then also answers what-if questions, and has a slider over the run's checkpoints",
        0),
    SERVER_OPTIONS(C),
    OPT_TEXT(C, html, "html", NULL, "FILE", "write a page for a browser, complete in one file", 0),
    OPT_TEXT(C, json, "json", NULL, "FILE", "write every number as JSON; - writes it to standard output", 0),
    OPT_FLAG(C, overwrite, "overwrite", "false", "replace FILE if it exists", 0),
};
#undef C
static const struct option_group groups[] = {
    TEXT_MODEL_OPTION_GROUP(offsetof(struct view_config, model), MODEL_ROWS),
    {"Text", text_rows, ARRAY_LENGTH(text_rows)},
    SAMPLING_OPTION_GROUP(offsetof(struct view_config, sampling)),
    {"Output", output_rows, ARRAY_LENGTH(output_rows)},
};
const struct option_command view_command = {
    "train_gpt view --from DIR --prompt TEXT --serve [options]",
    "Shows how a model reads a text: which token attends to which, what queries, keys and values do, and "
    "what every part adds to the prediction of the next token. The page's sliders start from the sampling "
    "options.",
    groups, ARRAY_LENGTH(groups)};

/* --- the text --- */

static bool append_token(void *user, int64_t token, const float *logits) {
    struct token_buffer *ids = (struct token_buffer *)user;
    token_buffer_reserve(ids, 1);
    ids->ids[ids->count++] = (uint32_t)token;
    return true;
}

/* The prompt and what the model makes of it, up to <|endoftext|>. */
static void continue_text(const struct view_config *c, struct gpt *g, const struct tokenizer *t, int64_t V,
                          struct token_buffer *ids) {
    if (c->tokens == 0) return;
    check(!gpt_looks_ahead(&g->config),
          "--tokens: tokens of this model see those after them, so it cannot write");
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

/* --- the command --- */

static const char *wrong_options(const struct view_config *c, struct error *err) {
    if (!c->html && !c->json && !c->serve)
        return "nothing to show it in: give --serve, --html FILE or --json FILE";
    if (c->without && !c->html && !c->json) return "--without is for --html and --json";
    if (c->html && c->json && strcmp(c->html, c->json) == 0) return "--html and --json name the same file";
    const char *file[] = {c->html, c->json};
    for (int i = 0; i < 2; i++)
        if (file[i] && strcmp(file[i], "-") != 0 && !may_write_file(file[i], c->overwrite, err))
            return err->message;
    return NULL;
}

static bool take_without(struct look_without *w, const char *text, const struct look_model *m, int64_t T,
                         struct error *err) {
    json_error_t why;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    bool ok = json_is_object(root)
                  ? look_take_without(w, root, &m->model.gpt.config, T, err)
                  : fail(err, "it is no JSON object%s%s", root ? "" : ": ", root ? "" : why.text);
    json_decref(root);
    return ok || fail(err, "--without: %s", temp_printf("%s", err->message));
}

static bool write_files(const struct view_config *c, struct look_model *m, const struct token_buffer *ids,
                        int64_t prompt_count, struct error *err) {
    struct look l;
    struct look_without without = {0};
    if (!c->html && !c->json) return true;
    if (c->without && !take_without(&without, c->without, m, ids->count, err)) return false;
    look(&l, m, ids, prompt_count, NULL, c->without ? &without.ablation : NULL, true, c->json != NULL);
    bool ok = (!c->json || view_write_json(strcmp(c->json, "-") ? c->json : "/dev/stdout", l.facts, l.array,
                                           l.count, err)) &&
              (!c->html || view_write_page(c->html, l.facts, l.array, l.count, err));
    if (ok && c->html) fprintf(stderr, "%s: open it in a browser\n", c->html);
    look_free(&l);
    look_without_free(&without);
    return ok;
}

int cmd_view(int argc, char **argv) {
    struct options options;
    struct view_config c = {0};
    struct look_model m;
    struct error err;
    int status = command_options(&options, &view_command, &c, argc, argv);
    if (status >= 0) return status;
    const char *wrong = wrong_options(&c, &err);
    if (wrong) {
        report_error("%s", wrong);
        options_free(&options);
        return 2;
    }
    struct look_options o = {c.model, c.prompt, c.sampling};
    look_open(&m, &o);
    char *prompt = read_prompt(c.prompt);
    struct token_buffer ids = encode_prompt(m.model.tokenizer, &m.model.gpt.config, prompt);
    int64_t prompt_count = ids.count, context = m.model.gpt.config.context;
    check(ids.count + c.tokens <= context,
          "the prompt has %" PRId64 " tokens%s, but the model's context only %" PRId64 ": shorten the text",
          ids.count, c.tokens ? temp_printf(", and --tokens adds %" PRId64, c.tokens) : "", context);
    continue_text(&c, &m.model.gpt, m.model.tokenizer, m.model.V, &ids);
    check(write_files(&c, &m, &ids, prompt_count, &err), "%s", err.message);
    check(!c.serve || look_serve(&m, &ids, prompt_count, c.address, c.port, c.token, &err), "%s",
          err.message);
    token_buffer_free(&ids);
    free(prompt);
    look_close(&m);
    options_free(&options);
    return 0;
}
