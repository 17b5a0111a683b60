#include "llmc/cli/text_model.h"

#include "llmc/cli/prompt.h"
#include "llmc/format/adapter.h"
#include "llmc/format/checkpoint.h"
#include "llmc/model/beam.h"

#include <math.h>
#include <stdlib.h>

#define C struct text_model_config
const struct option_row text_model_rows[MODEL_ROWS_DTYPE] = {
    OPT_TEXT(C, from, "from", NULL, "DIR", "a run, a checkpoint, a Hugging Face directory or a GGUF file",
             OPTION_REQUIRED),
    OPT_TEXT(C, tokenizer, "tokenizer", NULL, "PATH|bytes",
             "tokenizer.json, a directory with one, or the word bytes (default: the tokenizer in DIR)", 0),
    OPT_TEXT(C, device, "device", "auto", "NAME", "cpu, cuda, cuda:N, or auto", 0),
    OPT_INT(C, threads, "threads", "auto", 0, 4096, "N", "CPU threads (auto: the cores it may use)", 0),
    ADAPTER_OPTION(C),
    OPT_WORD(
        C, dtype, "dtype", "fp32", "fp32|bf16", NULL,
        "type of the weights: in bf16 they take half the memory, and a token takes less time; on a CPU the "
        "computation stays in fp32",
        0),
};
#undef C

void text_model_find(struct text_model *m, const struct text_model_config *c, const char *text) {
    struct error err;
    *m = (struct text_model){.directory = checkpoint_find(c->from, &err)};
    check(m->directory, "%s", err.message);
    m->adapter = open_adapter(c->adapter);
    check(checkpoint_config(&m->config, m->directory, &err), "%s", err.message);
    m->tokenizer = open_prompt_tokenizer(c->tokenizer, adapter_tokenizer_directory(m->adapter, m->directory),
                                         text, m->config.vocab_size);
    m->V = m->tokenizer ? tokenizer_vocab_size(m->tokenizer) : m->config.vocab_size;
    m->device = device_open(c->device, &(struct device_options){.threads = c->threads}, &err);
    check(m->device, "%s", err.message);
}

void text_model_check_writes(const struct text_model *m) {
    check(
        !gpt_looks_ahead(&m->config),
        "%s: tokens of this model see those after them (its mask is anti-causal or full), so it cannot write",
        m->directory);
}

int64_t text_model_batch(const struct text_model *m, int64_t wanted, int64_t texts, int64_t T) {
    int64_t free_bytes, total_bytes;
    struct gpt_params layout;
    if (wanted == 0) {
        gpt_params_layout(&layout, &m->config);
        m->device->memory_info(m->device, &free_bytes, &total_bytes);
        double left = 0.9 * (double)free_bytes - (double)layout.total * sizeof(float);
        wanted = (int64_t)fmax(1.0, fmin(16.0, left / (double)generator_cache_bytes(&m->config, T)));
    }
    return min_i64(min_i64(wanted, texts), T);
}

void text_model_load(struct text_model *m, const struct text_model_config *c, int64_t caches, int64_t T) {
    struct error err;
    ctx_init(&m->ctx, m->device, m->device->ops, false);
    generator_create(&m->gpt, &m->ctx, &m->config, c->dtype ? DTYPE_BF16 : DTYPE_F32, NULL, caches, T);
    check(checkpoint_load_adapted(&m->gpt, m->directory, m->adapter, &err), "%s", err.message);
}

char *beam_text(struct text_model *m, int64_t end, int64_t width, double length_penalty,
                const uint32_t *prompt, int64_t count, int64_t tokens, int64_t *made) {
    int64_t ends[GPT_MOST_IDS + 2], end_count = 0;
    double score;
    check(m->tokenizer, "--beams: a text needs a tokenizer");
    if (end >= 0) ends[end_count++] = end;
    if (tokenizer_end_of_text(m->tokenizer) >= 0) ends[end_count++] = tokenizer_end_of_text(m->tokenizer);
    for (int i = 0; i < m->config.eos.count; i++) ends[end_count++] = m->config.eos.id[i];
    struct beam_options o = {width, tokens, m->V, ends, end_count, length_penalty};
    uint32_t *ids = (uint32_t *)xmalloc((size_t)tokens * sizeof *ids);
    int64_t n = beam_search(&m->gpt, &o, prompt, count, ids, &score);
    int64_t size = tokenizer_decode(m->tokenizer, ids, n, NULL, 0);
    char *text = (char *)xcalloc((size_t)size + 1, 1);
    tokenizer_decode(m->tokenizer, ids, n, text, size);
    *made += n;
    free(ids);
    return text;
}

void text_model_close(struct text_model *m) {
    ctx_free(&m->ctx);
    m->device->close(m->device);
    tokenizer_free(m->tokenizer);
    free(m->directory);
    free(m->adapter);
}
