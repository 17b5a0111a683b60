/* Documents in one sequence: each has the losses and gradients that it has alone. */
#include "test/test.h"
#include "test/model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/model/gpt.h"

enum { B = 2, T = 41, V = 40, DOCUMENTS = 7 };

/* Row 0 is full; behind the documents of row 1 are empty places, each of which begins at itself. */
static const struct document {
    int b, at, length;
} documents[DOCUMENTS] = {{0, 0, 3}, {0, 3, 1}, {0, 4, 25}, {0, 29, 12}, {1, 0, 17}, {1, 17, 2}, {1, 19, 18}};

static void open_model(struct model *m, const struct gpt_config *config, struct gpt_options options) {
    options.T = T;
    options.train = true;
    options.init_std = 0.2f;
    model_open(m, config, options, 7);
    fill(&m->ctx, &m->gpt.grads, NAN);
}

struct batch {
    int32_t tokens[B * T], targets[B * T], first[B * T];
};

static struct batch packed_batch(void) {
    struct batch x;
    for (int i = 0; i < B * T; i++) {
        x.tokens[i] = (int32_t)(rng_uniform(1, RNG_TEST, (uint64_t)i) * V);
        x.targets[i] = -1;
        x.first[i] = i % T;
    }
    for (int k = 0; k < DOCUMENTS; k++)
        for (int t = 0; t < documents[k].length; t++) {
            int i = documents[k].b * T + documents[k].at + t;
            x.targets[i] = (int32_t)(rng_uniform(2, RNG_TEST, (uint64_t)i) * V);
            x.first[i] = documents[k].at;
        }
    return x;
}

/* The documents one after another, each at the start of a sequence of its own; the losses at their places. */
static void step_alone(struct model *m, const struct batch *x, float *losses) {
    for (int k = 0; k < DOCUMENTS; k++) {
        const struct document *d = &documents[k];
        int32_t tokens[T] = {0}, targets[T];
        for (int t = 0; t < T; t++) targets[t] = -1;
        memcpy(tokens, x->tokens + d->b * T + d->at, (size_t)d->length * sizeof *tokens);
        memcpy(targets, x->targets + d->b * T + d->at, (size_t)d->length * sizeof *targets);
        gpt_set_batch(&m->gpt, tokens, targets);
        gpt_forward_backward(&m->gpt, k == 0);
        struct tensor loss = gpt_act(&m->gpt, A_LOSSES, 0);
        memcpy(losses + d->b * T + d->at, loss.data, (size_t)d->length * sizeof *losses);
    }
}

static void compare(const char *what, const char *name, const float *a, const float *b, int64_t n) {
    double largest = 0.0, off = 0.0;
    for (int64_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs((double)b[i]));
        off = fmax(off, isnan(a[i]) ? INFINITY : fabs((double)a[i] - (double)b[i]));
    }
    /* a bias of the keys has no effect: its gradient is noise */
    if (!(off <= 2e-5 * fmax(largest, 1e-2)))
        fail_msg("%s: %s is off by %.2g of %.2g", what, name, off, largest);
}

static void check_model(const char *what, const struct gpt_config *config, enum recompute recompute) {
    struct model packed, alone;
    struct batch x = packed_batch();
    float losses[B * T] = {0};
    open_model(&packed, config, (struct gpt_options){.B = B, .documents = true, .recompute = recompute});
    open_model(&alone, config, (struct gpt_options){.B = 1});
    float targets = 0.0f;
    for (int i = 0; i < B * T; i++) targets += x.targets[i] >= 0;
    gpt_set_loss_scale(&packed.gpt, 1.0f / targets);
    gpt_set_loss_scale(&alone.gpt, 1.0f / targets);
    step_alone(&alone, &x, losses);
    gpt_set_batch(&packed.gpt, x.tokens, x.targets);
    gpt_set_documents(&packed.gpt, x.first, NULL);
    gpt_forward_backward(&packed.gpt, true);
    struct tensor loss = gpt_act(&packed.gpt, A_LOSSES, 0);
    compare(what, "the losses", f32(&loss), losses, B * T);
    compare(what, "the loss", f32(&packed.gpt.numbers), f32(&alone.gpt.numbers), 1);
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(config, (enum param_id)id); l++) {
            struct tensor a = gpt_grad(&packed.gpt, (enum param_id)id, l),
                          b = gpt_grad(&alone.gpt, (enum param_id)id, l);
            compare(what, gpt_param_name((enum param_id)id, l), f32(&a), f32(&b), tensor_count(&a));
        }
    model_close(&packed);
    model_close(&alone);
}

static struct gpt_config small_model(enum gpt_positions positions, enum gpt_mask mask) {
    struct gpt_config c = {.vocab_size = V,
                           .layers = 2,
                           .heads = 4,
                           .kv_heads = 2,
                           .channels = 32,
                           .context = T,
                           .positions = positions,
                           .mask = mask,
                           .window = mask == MASK_WINDOW ? 6 : 0};
    struct error err;
    gpt_config_complete(&c);
    if (!gpt_config_check(&c, &err)) fail_msg("%s", err.message);
    return c;
}

static void a_document_is_as_alone(void **state) {
    static const enum gpt_positions positions[] = {POSITIONS_LEARNED, POSITIONS_ROPE, POSITIONS_NONE,
                                                   POSITIONS_SINUSOIDAL};
    for (size_t p = 0; p < ARRAY_LENGTH(positions); p++)
        for (int window = 0; window < 2; window++) {
            struct gpt_config c = small_model(positions[p], window ? MASK_WINDOW : MASK_CAUSAL);
            for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_BLOCK; recompute++)
                check_model(temp_printf("positions %d%s, recompute %d", (int)positions[p],
                                        window ? ", window" : "", recompute),
                            &c, (enum recompute)recompute);
        }
}

/* One document a sequence is what a model without documents computes, and the next batch is divided no
 * more. */
static void documents_end_with_the_batch(void **state) {
    struct gpt_config c = small_model(POSITIONS_LEARNED, MASK_CAUSAL);
    struct model divided, plain;
    struct batch x = packed_batch();
    open_model(&divided, &c, (struct gpt_options){.B = B, .documents = true});
    open_model(&plain, &c, (struct gpt_options){.B = B});
    struct tensor a = gpt_act(&divided.gpt, A_LNF, 0), b = gpt_act(&plain.gpt, A_LNF, 0);
    gpt_set_batch(&plain.gpt, x.tokens, x.targets);
    gpt_set_documents(&plain.gpt, x.first, NULL); /* does nothing */
    gpt_forward(&plain.gpt, 0, T);
    for (int k = 0; k < 3; k++) {
        gpt_set_batch(&divided.gpt, x.tokens, x.targets);
        if (k < 2) gpt_set_documents(&divided.gpt, k ? x.first : NULL, NULL);
        gpt_forward(&divided.gpt, 0, T);
        bool same = memcmp(a.data, b.data, (size_t)tensor_bytes(&a)) == 0;
        if (same != (k != 1)) fail_msg("batch %d", k);
    }
    model_close(&divided);
    model_close(&plain);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_document_is_as_alone),
        cmocka_unit_test(documents_end_with_the_batch),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
