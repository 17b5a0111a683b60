/* What `view` shows, before it becomes a page, JSON or an answer of the server: a model with its checkpoints,
 * and one pass of it over a text, as facts and arrays. */
#ifndef LLMC_LOOK_H
#define LLMC_LOOK_H

#include "llmc/cli/prompt.h"
#include "llmc/cli/text_model.h"
#include "llmc/model/inspect.h"
#include "llmc/report/view_page.h"

struct json_t;

enum { LOOK_TEMPERATURES = 64, LOOK_ARRAYS = 32 };

struct look_options {
    struct text_model_config model;
    const char *prompt;
    struct sampling_config sampling;
};

struct look_model {
    struct look_options o;
    struct text_model model; /* the parameters of checkpoint `loaded` */
    char **checkpoint;       /* directories by increasing step; one if `from` is no run */
    int64_t *step;           /* of each; -1: unknown */
    int64_t count, loaded;
    double temperature[LOOK_TEMPERATURES]; /* of the page's slider */
    int64_t temperatures;
};
/* Ends the process if the model cannot be opened, as all commands do. */
void look_open(struct look_model *m, const struct look_options *options);
void look_close(struct look_model *m);
/* Loads the weights of a checkpoint, which must have the shape of the model. */
bool look_load(struct look_model *m, int64_t checkpoint, struct error *err);

/* What a pass over T tokens leaves out: heads, and links of attention from one token to another. It is
 * given as {"off": [[layer, head], ...], "cut": [[to, from, layer, head], ...]}, where -1 for the layer or
 * head of a cut stands for all. */
enum { LOOK_CUTS = 256 };
struct look_without {
    struct ablation ablation; /* points to the others */
    bool *off;                /* (L,NH) */
    struct ablation_cut cut[LOOK_CUTS];
};
bool look_take_without(struct look_without *w, const struct json_t *root, const struct gpt_config *c,
                       int64_t T, struct error *err);
void look_without_free(struct look_without *w);

/* One pass. The arrays point into it. */
struct look {
    struct ctx ctx;
    struct gpt gpt;
    struct inspection x;
    struct json_t *facts;
    float *attention; /* (L,NH,T,T); NULL unless wanted */
    struct view_array array[LOOK_ARRAYS];
    int count;
};
/* Over these tokens, the first `prompt_count` of which are the user's, as `config` says (NULL: as the model
 * is; inspect_create()), without what `ablation` takes away (NULL: nothing; it must outlive the look).
 * `vocabulary`: the facts hold the text of all tokens. */
void look(struct look *l, struct look_model *m, const struct token_buffer *ids, int64_t prompt_count,
          const struct gpt_config *config, const struct ablation *ablation, bool vocabulary, bool attention);
void look_free(struct look *l);

/* The text of all tokens, a list. */
struct json_t *look_vocabulary(const struct look_model *m);

/* Whether the model was trained on the built-in stories. */
bool look_knows_stories(const struct look_model *m);
/* {"step", "things" and "persons": {"links", "chance", "hits"}, "loss": {"whole", "without"}}: over stories,
 * for each head (L,NH), for how many pronouns it attends to the right noun most (model/heads.h), and the loss
 * without it. NULL if the checkpoint cannot be loaded. */
struct json_t *look_heads(struct look_model *m, int64_t checkpoint, struct error *err);

/* Serves the page of this text until a signal; see look_server.c. */
bool look_serve(struct look_model *m, const struct token_buffer *ids, int64_t prompt_count,
                const char *address, int64_t port, bool token, struct error *err);

#endif
