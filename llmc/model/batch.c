/* What the network reads besides its weights: the tokens of a batch, and what is said of them. Declared in
 * gpt.h. */
#include "llmc/model/gpt.h"

#include <stdlib.h>

void gpt_set_prefix(struct gpt *g, const int32_t *lengths) {
    if (!gpt_has_act(g, A_PREFIX)) return;
    struct tensor t = gpt_act(g, A_PREFIX, 0);
    ctx_upload(g->ctx, t.data, lengths, tensor_bytes(&t));
}

void gpt_set_samples(struct gpt *g, const int32_t *numbers) {
    if (!gpt_has_act(g, A_SAMPLES)) return;
    struct tensor t = gpt_act(g, A_SAMPLES, 0);
    ctx_upload(g->ctx, t.data, numbers, tensor_bytes(&t));
}

/* The first target is the token after the prefix. */
static void set_prefix_before_targets(struct gpt *g, const int32_t *targets) {
    if (!gpt_has_act(g, A_PREFIX)) return;
    int64_t B = g->options.B, T = g->options.T;
    int32_t *lengths = (int32_t *)xcalloc((size_t)B, sizeof *lengths);
    for (int64_t b = 0; targets && b < B; b++) {
        int64_t t = 0;
        while (t < T && targets[b * T + t] < 0) t++;
        lengths[b] = (int32_t)min_i64(t + 1, T);
    }
    gpt_set_prefix(g, lengths);
    free(lengths);
}

void gpt_set_batch(struct gpt *g, const int32_t *tokens, const int32_t *targets) {
    struct tensor t = gpt_act(g, A_TOKENS, 0), y = gpt_act(g, A_TARGETS, 0);
    ctx_upload(g->ctx, t.data, tokens, tensor_bytes(&t));
    if (targets) ctx_upload(g->ctx, y.data, targets, tensor_bytes(&y));
    set_prefix_before_targets(g, targets);
    g->divided = false;
}

void gpt_position_ids(int32_t *ids, const int32_t *first, int64_t n, int64_t T) {
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(i % T) - first[i];
}

void gpt_set_documents(struct gpt *g, const int32_t *first, const int32_t *position_ids) {
    if (!gpt_has_act(g, A_FIRST)) return;
    struct tensor t = gpt_act(g, A_FIRST, 0);
    int64_t n = tensor_count(&t);
    bool given = first && position_ids;
    int32_t *own = given ? NULL : (int32_t *)xcalloc((size_t)(2 * n), sizeof *own);
    if (!first) first = own;
    ctx_upload(g->ctx, t.data, first, tensor_bytes(&t));
    if (gpt_has_act(g, A_POSITION_IDS)) {
        t = gpt_act(g, A_POSITION_IDS, 0);
        if (!position_ids) gpt_position_ids(own + n, first, n, g->options.T);
        ctx_upload(g->ctx, t.data, position_ids ? position_ids : own + n, tensor_bytes(&t));
    }
    free(own);
    g->divided = true;
}
