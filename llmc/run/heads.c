/* Which head resolves a pronoun: see heads.h. */
#include "llmc/run/heads.h"

#include "llmc/base/console.h"
#include "llmc/model/heads.h"
#include "llmc/stories/story_links.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The beginning of a story up to the sentence with its first "it"; the caller frees. */
static char *example(void) {
    struct story_links *l = (struct story_links *)xmalloc(sizeof *l);
    char *text = NULL;
    for (uint64_t i = 0; !text; i++) {
        story_links_make(l, 1, i);
        for (int k = 0; k < l->count && !text; k++) {
            const struct story_span *p = &l->link[k].pronoun;
            if (!l->link[k].thing || strncmp(l->text + p->at, "it", 2) != 0) continue;
            size_t end = (size_t)(p->at + p->size);
            text = xasprintf("%.*s", (int)(end + strcspn(l->text + end, ".!?") + 1), l->text);
        }
        story_links_free(l);
    }
    free(l);
    return text;
}

/* The best head for one kind of pronoun. */
static void print_best(struct run *r, bool persons, const char *finds) {
    enum { STORIES = 100 };
    struct head_texts d;
    struct error err;
    const struct gpt_config *c = &r->model;
    check(head_texts_of_stories(&d, r->data.tokenizer, STORIES, r->generator.options.T, persons, &err), "%s",
          err.message);
    int64_t *hits = (int64_t *)xcalloc((size_t)(c->layers * c->heads), sizeof *hits);
    struct rank_busy *busy = rank_busy_begin(r->group, "looking at the heads", r->state.step);
    head_hits(hits, &d, &r->generator);
    rank_busy_end(busy);
    int64_t best = head_best(hits, c);
    if (is_rank_0(r) && d.links)
        say("heads     layer %" PRId64 ", head %" PRId64 " finds %s: %.0f %% of %" PRId64
            " pronouns (%.0f %% by chance)\n",
            best / c->heads, best % c->heads, finds, 100.0 * (double)hits[best] / (double)d.links, d.links,
            100.0 * head_chance(&d) / (double)d.links);
    head_texts_free(&d);
    free(hits);
}

void run_print_heads(struct run *r) {
    if (r->config.lora_rank) return; /* `view` shows models, not adapters */
    if (!r->data.tokenizer) return;
    print_best(r, true, "who \"he\" and \"she\" are");
    print_best(r, false, "what \"it\" is");
    if (!is_rank_0(r) || !r->saved) return;
    char *program = program_name(NULL), *out = shell_quote(r->out), *text = example(),
         *prompt = shell_quote(text);
    say("see it    %s view --serve --from %s --prompt %s\n", program, out, prompt);
    free(program);
    free(out);
    free(text);
    free(prompt);
}
