/* Adapters: which layers have them, where they lie, and the products with them. See lora.h. */
#include "llmc/model/lora.h"

#include <math.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/model/memory.h"

/* --- targets --- */

static const char *const words[LORA_TARGETS] = {"qkv", "q", "k", "v", "attn", "gate", "up", "down"};

const char *lora_word(enum lora_target target) { return words[target]; }

/* All layers of a block that can have adapters, without places. Returns how many. */
static int all_parts(struct lora_part part[LORA_MOST_PARTS], const struct gpt_config *c) {
    static const enum param_id ids[] = {P_QKV_W, P_PROJ_W, P_FC_W, P_FCPROJ_W};
    static const enum lora_target qkv[] = {LORA_Q, LORA_K, LORA_V}, fc[] = {LORA_GATE, LORA_UP};
    bool one_layer = gpt_format_can_say(FORMAT_HF_GPT2, c, NULL);
    int count = 0;
    for (size_t i = 0; i < ARRAY_LENGTH(ids); i++) {
        int64_t rows[GPT_MOST_STACKED], first = 0, cols = gpt_dim_size(c, gpt_param_rows[ids[i]].cols);
        int stacked = gpt_param_stacked(c, ids[i], rows);
        if (ids[i] == P_QKV_W && one_layer) {
            rows[0] += rows[1] + rows[2];
            stacked = 1;
        }
        for (int k = 0; k < stacked; first += rows[k++]) {
            enum lora_target target = ids[i] == P_QKV_W    ? stacked == 1 ? LORA_QKV : qkv[k]
                                         : ids[i] == P_PROJ_W ? LORA_ATTN
                                      : ids[i] == P_FC_W   ? stacked == 1 ? LORA_UP : fc[k]
                                                           : LORA_DOWN;
            part[count++] = (struct lora_part){
                .target = target, .id = ids[i], .first = first, .rows = rows[k], .cols = cols};
        }
    }
    return count;
}

/* The layers that a word means; 0: none. */
static unsigned meaning(const char *word, size_t size, unsigned there) {
    static const unsigned q_k_v = 1u << LORA_Q | 1u << LORA_K | 1u << LORA_V;
    if (size == 3 && memcmp(word, "all", 3) == 0) return there;
    for (int i = 0; i < LORA_TARGETS; i++)
        if (strlen(words[i]) == size && memcmp(words[i], word, size) == 0)
            return there & (1u << i | (i == LORA_QKV ? q_k_v : 0));
    return 0;
}

bool lora_targets_parse(unsigned *targets, const char *text, const struct gpt_config *c, struct error *err) {
    struct lora_part part[LORA_MOST_PARTS];
    unsigned there = 0;
    char known[64] = "all";
    for (int i = all_parts(part, c) - 1; i >= 0; i--) there |= 1u << part[i].target;
    for (int i = 0; i < LORA_TARGETS; i++)
        if (there >> i & 1) {
            strcat(known, ", ");
            strcat(known, words[i]);
        }
    *targets = 0;
    for (const char *word = text;; word++) {
        size_t size = strcspn(word, ",");
        unsigned more = meaning(word, size, there);
        if (!more)
            return fail(err, "--lora-targets %s: \"%.*s\" is no linear layer of this model; expected %s",
                        text, (int)size, word, known);
        *targets |= more;
        word += size;
        if (!*word) return true;
    }
}

void lora_make_layout(struct lora_layout *l, const struct gpt_config *c, const struct lora_options *o) {
    enum { ALIGN = 128 };
    struct lora_part all[LORA_MOST_PARTS];
    int count = all_parts(all, c);
    memset(l, 0, sizeof *l);
    for (int i = 0; i < count; i++) {
        if (!(o->targets >> all[i].target & 1)) continue;
        struct lora_part *p = &l->part[l->parts++];
        *p = all[i];
        p->a = l->block;
        p->b = round_up(p->a + p->cols * o->rank, ALIGN);
        l->block = round_up(p->b + p->rows * o->rank, ALIGN);
        l->count += (p->rows + p->cols) * o->rank * c->layers;
    }
    l->total = l->block * c->layers;
}

/* --- memory --- */

static struct tensor new_buffer(struct gpt *g, enum memory_kind kind, int64_t n, const char *what) {
    void *p = ctx_alloc(g->ctx, kind, n * (int64_t)dtype_size(g->options.dtype), what);
    struct tensor t = tensor_make(what, g->options.dtype, p, n, 0, 0, 0);
    fill(g->ctx, &t, 0.0f); /* the gaps between tensors stay zero */
    return t;
}

void lora_create(struct gpt *g) {
    struct lora *l = &g->lora;
    int64_t rank = g->options.lora.rank, matrix = 0, both = 0;
    check(g->options.train && !g->options.grad_slots, "gpt_create: adapters are for training, and whole");
    lora_make_layout(&l->layout, &g->config, &g->options.lora);
    check(l->layout.parts > 0, "adapters without targets");
    for (int i = 0; i < l->layout.parts; i++) {
        const struct lora_part *p = &l->layout.part[i];
        matrix = max_i64(matrix, p->rows * p->cols);
        both = max_i64(both, round_up(p->cols * rank, 128) + p->rows * rank);
    }
    l->params = new_buffer(g, MEM_PARAMETERS, l->layout.total, "the adapters");
    l->weights = new_buffer(g, MEM_PARAMETERS, g->layout.block, "a block with its adapters");
    l->product = new_buffer(g, MEM_PARAMETERS, matrix, "a product of adapters");
    l->grads = new_buffer(g, MEM_GRADIENTS, l->layout.total, "the adapters' gradients");
    l->dweights = new_buffer(g, MEM_GRADIENTS, g->layout.block, "the gradients of a block");
    l->dparts = new_buffer(g, MEM_GRADIENTS, both, "the gradients of a pair of adapters");
}

/* --- views --- */

static struct tensor matrix(const struct tensor *buffer, const char *name, int64_t at, int64_t rows,
                            int64_t cols) {
    struct tensor t = tensor_range(buffer, at, rows * cols);
    return tensor_make(name, t.dtype, t.data, rows, cols, 0, 0);
}

struct tensor lora_a(const struct gpt *g, const struct tensor *buffer, const struct lora_part *p,
                     int64_t layer) {
    int64_t at = layer * g->lora.layout.block + p->a;
    return matrix(buffer, "lora_A", at, p->cols, g->options.lora.rank);
}

struct tensor lora_b(const struct gpt *g, const struct tensor *buffer, const struct lora_part *p,
                     int64_t layer) {
    int64_t at = layer * g->lora.layout.block + p->b;
    return matrix(buffer, "lora_B", at, p->rows, g->options.lora.rank);
}

bool lora_adapts(const struct gpt *g, enum param_id id) {
    for (int i = 0; i < g->lora.layout.parts; i++)
        if (g->lora.layout.part[i].id == id) return true;
    return false;
}

/* Rows of a matrix of the block, in a buffer for one block. */
static struct tensor rows_of(const struct gpt *g, const struct tensor *block, enum param_id id, int64_t first,
                             int64_t rows) {
    const struct param_row *row = &gpt_param_rows[id];
    int64_t cols = gpt_dim_size(&g->config, row->cols);
    return matrix(block, row->name, g->layout.offset[id] - g->layout.blocks + first * cols, rows, cols);
}

struct tensor lora_weight(const struct gpt *g, enum param_id id) {
    return rows_of(g, &g->lora.weights, id, 0, gpt_dim_size(&g->config, gpt_param_rows[id].rows));
}
struct tensor lora_dweight(const struct gpt *g, enum param_id id) {
    return rows_of(g, &g->lora.dweights, id, 0, gpt_dim_size(&g->config, gpt_param_rows[id].rows));
}

/* Rows of W itself. */
static struct tensor base_rows(const struct gpt *g, enum param_id id, int64_t layer, int64_t first,
                               int64_t rows) {
    int64_t cols = gpt_dim_size(&g->config, gpt_param_rows[id].cols);
    int64_t at = g->layout.offset[id] + layer * g->layout.stride[id] + first * cols;
    return gpt_param_range(g, at, rows * cols);
}

/* --- products --- */

/* Rows that have no adapter are those of W. */
static void copy_rest(struct gpt *g, enum param_id id, int64_t layer) {
    int64_t rows[GPT_MOST_STACKED], first = 0;
    int stacked = gpt_param_stacked(&g->config, id, rows);
    for (int k = 0; k < stacked; first += rows[k++]) {
        bool adapted = false;
        for (int i = 0; i < g->lora.layout.parts; i++) {
            const struct lora_part *p = &g->lora.layout.part[i];
            adapted |= p->id == id && first >= p->first && first < p->first + p->rows;
        }
        if (adapted) continue;
        struct tensor from = base_rows(g, id, layer, first, rows[k]);
        struct tensor to = rows_of(g, &g->lora.weights, id, first, rows[k]);
        add_scaled(g->ctx, &to, NULL, &from, 1.0f);
    }
}

void lora_merge(struct gpt *g, int64_t layer) {
    struct lora *l = &g->lora;
    for (int i = 0; i < l->layout.parts; i++) {
        const struct lora_part *p = &l->layout.part[i];
        struct tensor a = lora_a(g, &l->params, p, layer), b = lora_b(g, &l->params, p, layer);
        struct tensor from = base_rows(g, p->id, layer, p->first, p->rows);
        struct tensor to = rows_of(g, &l->weights, p->id, p->first, p->rows);
        struct tensor product = matrix(&l->product, "product", 0, p->rows, p->cols);
        if (i == 0 || p[-1].id != p->id) copy_rest(g, p->id, layer);
        matmul_forward(g->ctx, &product, NULL, &b, &a, NULL, ACT_NONE);
        add_scaled(g->ctx, &to, &from, &product, g->options.lora.scale);
    }
}

void lora_backward(struct gpt *g, int64_t layer) {
    struct lora *l = &g->lora;
    int64_t rank = g->options.lora.rank;
    for (int i = 0; i < l->layout.parts; i++) {
        const struct lora_part *p = &l->layout.part[i];
        struct tensor a = lora_a(g, &l->params, p, layer), b = lora_b(g, &l->params, p, layer);
        struct tensor da = matrix(&l->dparts, "dA", 0, p->cols, rank);
        struct tensor db = matrix(&l->dparts, "dB", round_up(p->cols * rank, 128), p->rows, rank);
        struct tensor sum_a = lora_a(g, &l->grads, p, layer), sum_b = lora_b(g, &l->grads, p, layer);
        struct tensor dweight = rows_of(g, &l->dweights, p->id, p->first, p->rows);
        matmul_backward(g->ctx, &db, &da, NULL, &dweight, &b, &a, NULL, false);
        add_scaled(g->ctx, &sum_a, l->first ? NULL : &sum_a, &da, g->options.lora.scale);
        add_scaled(g->ctx, &sum_b, l->first ? NULL : &sum_b, &db, g->options.lora.scale);
    }
}

void lora_init_weights(struct gpt *g, uint64_t seed) {
    struct lora *l = &g->lora;
    fill(g->ctx, &l->params, 0.0f);
    for (int64_t layer = 0; layer < g->config.layers; layer++)
        for (int i = 0; i < l->layout.parts; i++) {
            const struct lora_part *p = &l->layout.part[i];
            struct tensor a = lora_a(g, &l->params, p, layer);
            uint64_t purpose = RNG_INIT | (uint64_t)(128 + p->target) << 8 | (uint64_t)layer << 16;
            randn(g->ctx, &a, 0.0f, 1.0f / sqrtf(3.0f * (float)p->cols), seed, purpose);
        }
}
