#include "llmc/cli/eval_pairs.h"

#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/cli/answer.h"
#include "llmc/corpus/pair_file.h"
#include "llmc/report/json_text.h"
#include "llmc/text/bleu.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A target that is being written. */
struct written {
    struct sampler *sampler;
    struct generation generation;
    struct answer answer;
};

struct writing {
    struct text_model m;
    struct pair_file pairs;
    struct written *all; /* (pairs.count) */
};

static struct token_buffer source_of(const struct writing *w, int64_t i) {
    struct token_buffer ids = {0};
    struct error err;
    const struct pair *p = &w->pairs.pairs[i];
    check(encode_source(w->m.tokenizer, p->source, &ids, &err), "%s:%" PRId64 ": %s", w->pairs.path, p->line,
          err.message);
    check(ids.count < w->m.config.context,
          "%s:%" PRId64 ": the source has %" PRId64 " tokens, the model's context is of %" PRId64,
          w->pairs.path, p->line, ids.count, w->m.config.context);
    return ids;
}

static void begin(struct writing *w, struct batch *b, int64_t i) {
    struct written *t = &w->all[i];
    struct token_buffer ids = source_of(w, i);
    struct sampler_options greedy = {.temperature = 0.0, .top_p = 1.0, .seed = 1};
    t->sampler = sampler_new(&greedy, w->m.V);
    t->answer.o = (struct answer_options){.tokenizer = w->m.tokenizer,
                                          .model = &w->m.config,
                                          .V = w->m.V,
                                          .end = tokenizer_end_of_text(w->m.tokenizer)};
    t->generation = (struct generation){.sampler = t->sampler,
                                        .tokens = w->m.config.context - ids.count,
                                        .each = answer_add,
                                        .user = &t->answer};
    batch_add(b, &t->generation, ids.ids, ids.count);
    token_buffer_free(&ids);
}

static void write_all(struct writing *w) {
    struct batch *b = batch_new(&w->m.gpt, false);
    int64_t begun = 0, count = w->pairs.count;
    do {
        while (begun < count && batch_room(b) > 0) begin(w, b, begun++);
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\r%s  %3.0f %%\033[K", w->pairs.path, 100.0 * (double)begun / (double)count);
    } while (batch_step(b) || begun < count);
    if (isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
    batch_free(b);
}

static void search_all(struct writing *w, int64_t beams) {
    int64_t end = tokenizer_end_of_text(w->m.tokenizer), made = 0;
    for (int64_t i = 0; i < w->pairs.count; i++) {
        struct token_buffer ids = source_of(w, i);
        struct answer *a = &w->all[i].answer;
        a->text =
            beam_text(&w->m, end, beams, 1.0, ids.ids, ids.count, w->m.config.context - ids.count, &made);
        token_buffer_free(&ids);
    }
}

static const char *text_of(const struct written *t) { return t->answer.text ? t->answer.text : ""; }

static bool write_details(const struct writing *w, const char *path, struct error *err) {
    struct writer out;
    if (!writer_open(&out, path, err)) return false;
    for (int64_t i = 0; i < w->pairs.count; i++) {
        const struct pair *p = &w->pairs.pairs[i];
        const char *text = text_of(&w->all[i]);
        json_t *row = json_pack("{s:o, s:o, s:o}", "source", json_text(p->source, (int64_t)strlen(p->source)),
                                "target", json_text(p->target, (int64_t)strlen(p->target)), "written",
                                json_text(text, (int64_t)strlen(text)));
        char *line = row ? json_dumps(row, JSON_COMPACT) : NULL;
        check(line, "out of memory for a target as JSON");
        writer_printf(&out, "%s\n", line);
        free(line);
        json_decref(row);
    }
    return writer_close(&out, err);
}

static void print_scores(const struct writing *w) {
    struct bleu b = {{0}, {0}, 0, 0};
    double brevity, precision[BLEU_ORDER];
    int64_t right = 0;
    for (int64_t i = 0; i < w->pairs.count; i++) {
        bleu_add(&b, text_of(&w->all[i]), w->pairs.pairs[i].target);
        right += strcmp(text_of(&w->all[i]), w->pairs.pairs[i].target) == 0;
    }
    double score = bleu_score(&b, &brevity, precision);
    say("%s: BLEU %.2f over %" PRId64
        " pairs (n-grams of 1 to 4 words %.1f / %.1f / %.1f / %.1f %%, brevity penalty %.3f), %.2f %% right to "
        "the last character\n",
        w->pairs.path, score, w->pairs.count, precision[0], precision[1], precision[2], precision[3], brevity,
        100.0 * (double)right / (double)w->pairs.count);
}

void evaluate_pairs(const struct text_model_config *model, const char *path, const char *details,
                    int64_t beams) {
    struct writing w = {.all = NULL};
    struct error err;
    text_model_find(&w.m, model, path);
    text_model_check_writes(&w.m);
    check(tokenizer_end_of_text(w.m.tokenizer) >= 0,
          "--pairs %s: the tokenizer has no <|endoftext|>, which ends a source and a target", path);
    check(pair_file_read(&w.pairs, path, &err), "--pairs %s", err.message);
    w.all = (struct written *)xcalloc((size_t)w.pairs.count, sizeof *w.all);
    int64_t T = w.m.config.context;
    check(beams <= T, "--beams %" PRId64 ": more than the model's context of %" PRId64, beams, T);
    text_model_load(&w.m, model, beams > 1 ? beams : text_model_batch(&w.m, 0, w.pairs.count, T), T);
    if (beams > 1)
        search_all(&w, beams);
    else
        write_all(&w);
    print_scores(&w);
    check(!details || write_details(&w, details, &err), "--details %s", err.message);
    for (int64_t i = 0; i < w.pairs.count; i++) {
        sampler_free(w.all[i].sampler);
        answer_free(&w.all[i].answer);
    }
    free(w.all);
    pair_file_free(&w.pairs);
    text_model_close(&w.m);
}
