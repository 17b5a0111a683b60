/* Grades the exercises: puts a function in the place where the engine computes the same, runs the engine's
 * tests of that operation, and counts. The loops around a function are written here, so that an exercise is
 * only the part that its chapter explains. */
#include "dev/learn/learn.h"

#include "llmc/stories/stories.h"
#include "llmc/text/bpe_train.h"
#include "test/ops/op_harness.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct exercise *yours(const struct op_env *env) { return (const struct exercise *)env->state; }

/* --- chapters 3, 4, 5 and 10: attention --- */

float softmax(float *p, int64_t n) {
    float max = -INFINITY, sum = 0.0f;
    for (int64_t i = 0; i < n; i++) max = fmaxf(max, p[i]);
    for (int64_t i = 0; i < n; i++) sum += p[i] = expf(p[i] - max);
    for (int64_t i = 0; i < n; i++) p[i] /= sum;
    return max + logf(sum);
}

static struct head head_of(const struct exercise *e, int64_t h, int64_t NH, int64_t NKV, int64_t HS) {
    if (e->find_head) return e->find_head(h, NH, NKV, HS);
    int64_t kv = h / (NH / NKV);
    return (struct head){h * HS, (NH + kv) * HS, (NH + NKV + kv) * HS};
}

/* One query: row t of head h. */
struct query {
    const float *q, *k, *v; /* (HS); (T,HS) with rows `stride` apart; the same */
    int64_t T, HS, stride;
    struct attn_range keys; /* that it sees */
    float *out;             /* (HS) */
};

static void scores_of(float *score, const struct query *r, int64_t n) {
    float scale = 1.0f / sqrtf((float)r->HS);
    for (int64_t s = 0; s < n; s++) {
        score[s] = 0.0f;
        for (int64_t i = 0; i < r->HS; i++) score[s] += r->q[i] * r->k[s * r->stride + i];
        score[s] *= scale;
    }
}

static void mix(float *out, const struct query *r, const float *p, int64_t n) {
    for (int64_t i = 0; i < r->HS; i++) out[i] = 0.0f;
    for (int64_t s = 0; s < n; s++)
        for (int64_t i = 0; i < r->HS; i++) out[i] += p[s] * r->v[s * r->stride + i];
}

static float with_mask(const struct exercise *e, const struct query *r, float *score, float *p) {
    bool *seen = (bool *)xmalloc((size_t)r->T);
    for (int64_t s = 0; s < r->T; s++) seen[s] = s >= r->keys.first && s < r->keys.end;
    scores_of(score, r, r->T);
    float lse = e->masked_softmax(p, score, seen, r->T);
    mix(r->out, r, p, r->T);
    free(seen);
    return lse;
}

static float in_tiles(const struct exercise *e, const struct query *r, float *score) {
    enum { TILE = 16 };
    struct online row = {-INFINITY, 0.0f, r->out};
    int64_t n = r->keys.end;
    for (int64_t i = 0; i < r->HS; i++) r->out[i] = 0.0f;
    scores_of(score, r, n);
    for (int64_t s = 0; s < n; s += TILE)
        e->take_tile(&row, score + s, r->v + s * r->stride, r->stride, min_i64(TILE, n - s), r->HS);
    for (int64_t i = 0; i < r->HS; i++) r->out[i] /= row.sum;
    return row.max + logf(row.sum);
}

static float attend_yours(const struct exercise *e, const struct query *r, float *score, float *p) {
    int64_t n = r->keys.end;
    if (e->attend) return e->attend(r->out, p, r->q, r->k, r->v, r->stride, n, r->HS);
    if (e->masked_softmax) return with_mask(e, r, score, p);
    if (e->take_tile) return in_tiles(e, r, score);
    scores_of(p, r, n);
    float lse = softmax(p, n);
    mix(r->out, r, p, n);
    return lse;
}

static void attn_yours(const struct op_env *env, struct tensor *out, struct tensor *lse,
                       const struct tensor *qkv, const struct tensor *prefix, const struct attn_rule *rule,
                       int t0) {
    const struct exercise *e = yours(env);
    int64_t B = qkv->dim[0], T = qkv->dim[1], stride = qkv->dim[2], NH = rule->heads, NKV = rule->kv_heads,
            HS = stride / (NH + 2 * NKV), last = stride - HS;
    float *score = (float *)xmalloc((size_t)T * 4), *p = (float *)xmalloc((size_t)T * 4);
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < NH; h++) {
            struct head at = head_of(e, h, NH, NKV, HS); /* a wrong answer reads no other memory */
            const float *rows = f32(qkv) + b * T * stride, *q = rows + min_i64(max_i64(at.q, 0), last),
                        *k = rows + min_i64(max_i64(at.k, 0), last),
                        *v = rows + min_i64(max_i64(at.v, 0), last);
            for (int64_t t = t0; t < T; t++) {
                struct attn_range keys = attn_keys(*rule, prefix ? i32(prefix)[b] : 0, T, t);
                struct query r = {
                    q + t * stride, k, v, T, HS, stride, keys, f32(out) + ((b * T + t) * NH + h) * HS};
                f32(lse)[(b * NH + h) * T + t] = attend_yours(e, &r, score, p);
            }
        }
    free(score);
    free(p);
}

/* Every exercise takes plain attention; chapter 4 takes the other masks, too. */
static int64_t attn_plain_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv,
                               const struct tensor *prefix, const struct attn_rule *rule, int t0) {
    return attn_rule_is_plain(rule) ? 0 : OP_UNSUPPORTED;
}
static int64_t attn_mask_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv,
                              const struct tensor *prefix, const struct attn_rule *rule, int t0) {
    return rule->score == ATTN_SCALED_DOT && rule->softcap == 0.0f && !rule->dropout && !rule->first
               ? 0
               : OP_UNSUPPORTED;
}

/* --- chapter 2 --- */

static int64_t rope_need(struct tensor *qkv, int NH, int NKV, int t0, const struct rope_rule *rule,
                         bool backward) {
    return rule->factor == 0.0f ? 0 : OP_UNSUPPORTED;
}

static void rope_yours(const struct op_env *env, struct tensor *qkv, int NH, int NKV, int t0,
                       const struct rope_rule *rule, bool backward) {
    int64_t B = qkv->dim[0], T = qkv->dim[1], HS = qkv->dim[2] / (NH + 2 * NKV);
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = t0; t < T; t++)
            for (int64_t h = 0; h < NH + NKV; h++)
                yours(env)->rotate(f32(qkv) + (b * T + t) * qkv->dim[2] + h * HS, HS, t, rule->theta,
                                   backward);
}

/* --- chapter 6 --- */

static int64_t layer_norm_need(struct tensor *out, struct tensor *mean, struct tensor *rstd,
                               const struct tensor *inp, const struct tensor *weight,
                               const struct tensor *bias, float eps) {
    return mean && weight ? 0 : OP_UNSUPPORTED; /* without a mean, it is RMSNorm */
}

static void norm_yours(const struct op_env *env, struct tensor *out, struct tensor *mean, struct tensor *rstd,
                       const struct tensor *inp, const struct tensor *weight, const struct tensor *bias,
                       float eps) {
    int64_t C = tensor_cols(inp);
    float *zeros = (float *)xcalloc((size_t)C, 4);
    for (int64_t n = 0; n < tensor_rows(inp); n++)
        yours(env)->layer_norm(f32(out) + n * C, f32(mean) + n, f32(rstd) + n, f32(inp) + n * C, f32(weight),
                               bias ? f32(bias) : zeros, C, eps);
    free(zeros);
}

/* --- chapter 7 --- */

static int64_t gelu_need(struct tensor *dinp, const struct tensor *dout, const struct tensor *inp,
                         enum activation act) {
    return act == ACT_GELU ? 0 : OP_UNSUPPORTED;
}

static void act_yours(const struct op_env *env, struct tensor *dinp, const struct tensor *dout,
                      const struct tensor *inp, enum activation act) {
    for (int64_t i = 0; i < tensor_count(inp); i++)
        f32(dinp)[i] = f32(dout)[i] * yours(env)->gelu_slope(f32(inp)[i]);
}

/* --- chapter 8 --- */

static int64_t plain_loss_need(struct tensor *losses, struct tensor *logits, const struct tensor *targets,
                               const struct tensor *dloss, int V, const struct loss_terms *terms) {
    return terms && (terms->smoothing != 0.0f || terms->z != 0.0f || terms->softcap != 0.0f) ? OP_UNSUPPORTED
                                                                                             : 0;
}

static void loss_yours(const struct op_env *env, struct tensor *losses, struct tensor *logits,
                       const struct tensor *targets, const struct tensor *dloss, int V,
                       const struct loss_terms *terms) {
    int64_t Vp = tensor_cols(logits);
    float *d = (float *)xmalloc((size_t)V * 4);
    for (int64_t n = 0; n < tensor_rows(logits); n++) {
        int32_t target = ((const int32_t *)targets->data)[n];
        float *logit = f32(logits) + n * Vp;
        for (int v = 0; v < V; v++) d[v] = 0.0f;
        f32(losses)[n] = target < 0 ? 0.0f : yours(env)->cross_entropy(d, logit, V, target);
        for (int64_t v = 0; dloss && v < Vp; v++) logit[v] = v < V ? d[v] * f32(dloss)[0] : 0.0f;
    }
    free(d);
}

/* --- chapter 9 --- */

static void adamw_yours(const struct op_env *env, struct tensor *param, struct tensor *master,
                        struct tensor *m, struct tensor *v, const struct tensor *grad,
                        const struct tensor *sumsq, const struct update_args *args) {
    float square = f32(sumsq)[0], clip = 1.0f;
    if (!isfinite(square)) return;
    if (args->max_norm > 0.0f) clip = fminf(1.0f, args->max_norm / sqrtf(square));
    for (int64_t i = 0; i < tensor_count(param); i++) {
        float *w = master ? f32(master) + i : f32(param) + i;
        yours(env)->adamw_step(w, f32(m) + i, f32(v) + i, f32(grad)[i] * clip, args);
        f32(param)[i] = *w;
    }
}

/* --- the engine's tests of an operation --- */

#define YOURS(array, op, function, takes)                                                                    \
    static const struct op##_variant array[] = {{.name = "yours", .run = function, .need = takes}, {0}};
YOURS(your_attention, attn_forward, attn_yours, attn_plain_need)
YOURS(your_mask, attn_forward, attn_yours, attn_mask_need)
YOURS(your_rope, rope, rope_yours, rope_need)
YOURS(your_norm, norm_forward, norm_yours, layer_norm_need)
YOURS(your_act, act_backward, act_yours, gelu_need)
YOURS(your_loss, loss_forward, loss_yours, plain_loss_need)
YOURS(your_adamw, adamw, adamw_yours, NULL)

static void grade_op(struct grade *g, const struct exercise *e, enum op_id id) {
    struct ops ops = *cpu_ops();
    ops.attn_forward = e->masked_softmax ? your_mask : your_attention;
    ops.rope = your_rope;
    ops.norm_forward = your_norm;
    ops.act_backward = your_act;
    ops.loss_forward = your_loss;
    ops.adamw = your_adamw;
    struct device *device = device_open_cpu();
    struct ctx ctx;
    device->state = (void *)e;
    ctx_init(&ctx, device, &ops, false);
    struct op_target target = {.ctx = &ctx, .variant = "yours", .once = true};
    for (size_t i = 0; i < op_tests[id]->case_count && !*g->wrong; i++) {
        struct error err;
        const struct op_case *c = &op_tests[id]->cases[i];
        if (c->size == SIZE_LARGE || c->only) continue; /* `only`: about the tiles of a kernel */
        enum op_verdict verdict = op_check(op_tests[id], c, DTYPE_F32, &target, &g->worst, &err);
        if (verdict == OP_SKIPPED) continue;
        if (verdict == OP_PASSED)
            g->right++;
        else
            snprintf(g->wrong, sizeof g->wrong, "%s", err.message);
    }
    ctx_free(&ctx);
    device->state = NULL;
    device->close(device);
}

/* --- chapter 1: the engine's tokenizer --- */

enum { STORIES = 300, VOCABULARY = 600, BYTES = 256 };

static struct tokenizer *train_tokenizer(void) {
    struct text_span docs[STORIES];
    struct error err;
    for (int i = 0; i < STORIES; i++) {
        char *story = story_make(1, (uint64_t)i);
        docs[i] = (struct text_span){story, (int64_t)strlen(story)};
    }
    struct tokenizer *t = tokenizer_train(docs, STORIES, VOCABULARY, 1, &err);
    check(t != NULL, "%s", err.message);
    for (int i = 0; i < STORIES; i++) free((char *)docs[i].data);
    return t;
}

/* The merges as pairs of ids; a token that was merged has the id 256 + its rank. */
static struct merge *merges_of(const struct tokenizer *t) {
    int merges = tokenizer_merge_count(t);
    struct merge *list = (struct merge *)xcalloc((size_t)merges, sizeof *list);
    for (int r = 0; r < merges; r++) {
        char *pair = tokenizer_merge_name(t, r), *right = strchr(pair, ' ');
        *right++ = 0;
        list[r].id = (uint32_t)(BYTES + r);
        for (int id = 0; id < BYTES + r; id++) {
            char *name = tokenizer_token_name(t, id);
            if (strcmp(name, pair) == 0) list[r].left = (uint32_t)id;
            if (strcmp(name, right) == 0) list[r].right = (uint32_t)id;
            free(name);
        }
        free(pair);
    }
    return list;
}

static void grade_word(struct grade *g, const struct exercise *e, const struct tokenizer *t,
                       const struct merge *list, const char *word) {
    struct token_buffer want = {0}, byte = {0};
    int64_t n = 0, size = (int64_t)strlen(word);
    uint32_t *ids = (uint32_t *)xcalloc((size_t)size, sizeof *ids);
    for (; n < size; n++) {
        byte.count = 0;
        tokenizer_encode(t, word + n, 1, &byte);
        ids[n] = byte.ids[0];
    }
    tokenizer_encode(t, word, size, &want);
    n = e->merge_word(ids, n, list, tokenizer_merge_count(t));
    if (n == want.count && memcmp(ids, want.ids, (size_t)n * sizeof *ids) == 0)
        g->right++;
    else if (!*g->wrong)
        snprintf(g->wrong, sizeof g->wrong,
                 "the word \"%s\" has %" PRId64 " tokens in the engine, and yours are %" PRId64 "%s", word,
                 want.count, n, n == want.count ? " others" : "");
    token_buffer_free(&want);
    token_buffer_free(&byte);
    free(ids);
}

static void grade_words(struct grade *g, const struct exercise *e) {
    static const char *const words[] = {"a",         " the",         " pizza",    " oven",
                                        "aaaaaaaaa", " mississippi", "tasted",    " garden",
                                        "xylophon",  " banana",      " ttthhheee"};
    struct tokenizer *t = train_tokenizer();
    struct merge *list = merges_of(t);
    for (size_t i = 0; i < ARRAY_LENGTH(words); i++) grade_word(g, e, t, list, words[i]);
    for (char c = 'a'; c <= 'z'; c++)
        grade_word(g, e, t, list, temp_printf("%c%c%c", c, c, c)); /* overlapping pairs */
    for (int id = BYTES; id < VOCABULARY - 1; id += 7) {           /* tokens themselves, if they are words */
        int size;
        const char *bytes = tokenizer_token_bytes(t, id, &size);
        char *word = xasprintf("%.*s", size, bytes);
        if (word[strspn(word + (*word == ' '), "abcdefghijklmnopqrstuvwxyz") + (*word == ' ')] == 0 &&
            word[1])
            grade_word(g, e, t, list, word);
        free(word);
    }
    free(list);
    tokenizer_free(t);
}

/* --- all --- */

static const struct {
    const char *function;
    enum op_id op;
} chapters[CHAPTERS + 1] = {
    [1] = {"merge_word", OP_COUNT},        [2] = {"rotate", OP_rope},
    [3] = {"attend", OP_attn_forward},     [4] = {"masked_softmax", OP_attn_forward},
    [5] = {"find_head", OP_attn_forward},  [6] = {"layer_norm", OP_norm_forward},
    [7] = {"gelu_slope", OP_act_backward}, [8] = {"cross_entropy", OP_loss_forward},
    [9] = {"adamw_step", OP_adamw},        [10] = {"take_tile", OP_attn_forward},
};

const char *exercise_name(int chapter) { return chapters[chapter].function; }

void exercise_grade(struct grade *grade, const struct exercise *e) {
    check(e->chapter >= 1 && e->chapter <= CHAPTERS, "there is no chapter %d", e->chapter);
    *grade = (struct grade){0};
    if (chapters[e->chapter].op == OP_COUNT)
        grade_words(grade, e);
    else
        grade_op(grade, e, chapters[e->chapter].op);
}
