/* The whole network: against float64 automatic differentiation (goldens written by
 * dev/reference/gpt2_float64.py, adamw_float64.py and muon_float64.py), and against itself: recomputation,
 * head chunks, gradient accumulation, the generation cache, overfitting one batch, and the plan. */

#include "test/test.h"

#include "llmc/model/optimizer.h"
#include "llmc/base/rng.h"
#include "llmc/format/safetensors.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- fixtures --- */

struct model {
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer opt;
};

static void model_open_for(struct model *m, const struct gpt_config *config, struct gpt_options options,
                           enum optimizer_kind kind) {
    m->device = device_open_cpu();
    ctx_init(&m->ctx, m->device, cpu_ops(), false);
    gpt_create(&m->gpt, &m->ctx, config, &options);
    if (options.train) optimizer_create(&m->opt, &m->gpt, (struct optimizer_options){.kind = kind});
}

static void model_open(struct model *m, const struct gpt_config *config, struct gpt_options options) {
    model_open_for(m, config, options, OPTIMIZER_ADAMW);
}

static void model_close(struct model *m) {
    ctx_free(&m->ctx);
    m->device->close(m->device);
}

static int64_t meta_int(const struct safetensors *st, const char *key) {
    const char *text = safetensors_metadata(st, key);
    assert_non_null(text);
    return atoll(text);
}

static void golden_open(struct safetensors *st, const char *name) {
    char *path = xasprintf("test/golden/%s.safetensors", name);
    struct error err;
    if (!safetensors_open(st, path, &err)) fail_msg("%s", err.message);
    free(path);
}

static struct gpt_config golden_config(const struct safetensors *st) {
    int64_t heads = meta_int(st, "n_head"), channels = meta_int(st, "n_embd");
    return (struct gpt_config)GPT2_CONFIG("golden", meta_int(st, "n_positions"), meta_int(st, "vocab_size"),
                                          meta_int(st, "n_layer"), heads, channels);
}

static double view_at(const struct st_view *v, int64_t i) {
    double d;
    float f;
    if (v->dtype == ST_F64) {
        memcpy(&d, (const char *)v->data + i * 8, 8);
        return d;
    }
    assert_int_equal(v->dtype, ST_F32);
    memcpy(&f, (const char *)v->data + i * 4, 4);
    return (double)f;
}

static const struct st_view *golden(const struct safetensors *st, const char *prefix, const char *name) {
    char key[128];
    snprintf(key, sizeof key, "%s%s", prefix, name);
    const struct st_view *v = safetensors_find(st, key);
    if (!v) fail_msg("golden has no tensor %s", key);
    return v;
}

/* Where element (row, col) of our (OC,C) matrix lies in the file's tensor. */
static int64_t file_index(const struct param_row *row, const struct tensor *t, int64_t i) {
    if (!row->conv1d) return i;
    int64_t C = t->dim[1], OC = t->dim[0];
    return i % C * OC + i / C;
}

static void load_params(struct gpt *g, const struct safetensors *st) {
    fill(g->ctx, &g->params, 0.0f);
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(&g->config, (enum param_id)id); l++) {
            struct tensor t = gpt_param(g, (enum param_id)id, l);
            const struct st_view *v = golden(st, "param.transformer.", gpt_param_name((enum param_id)id, l));
            for (int64_t i = 0; i < v->count; i++)
                f32(&t)[i] = (float)view_at(v, file_index(&gpt_param_rows[id], &t, i));
        }
}

/* Largest error relative to the largest element (never less than `floor`); NaN counts as infinite. */
struct deviation {
    double worst, scale;
};
static void deviation_add(struct deviation *d, double got, double want) {
    double e = fabs(got - want);
    if (!(e <= d->worst)) d->worst = isnan(e) ? INFINITY : e;
    if (fabs(want) > d->scale) d->scale = fabs(want);
}

static void compare_param_like(const struct gpt *g, const struct safetensors *st, const char *prefix,
                               bool grads, double tolerance, double floor) {
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(&g->config, (enum param_id)id); l++) {
            const char *name = gpt_param_name((enum param_id)id, l);
            struct tensor t = grads ? gpt_grad(g, (enum param_id)id, l) : gpt_param(g, (enum param_id)id, l);
            const struct st_view *v = golden(st, prefix, name);
            struct deviation d = {0, floor};
            for (int64_t i = 0; i < v->count; i++) {
                /* The gradient of a key's bias is zero but for rounding, which Adam divides by its own
                 * size. */
                if (!grads && id == P_QKV_B && i / g->config.channels == 1) continue;
                deviation_add(&d, (double)f32(&t)[i], view_at(v, file_index(&gpt_param_rows[id], &t, i)));
            }
            for (int64_t i = v->count; i < tensor_count(&t); i++) deviation_add(&d, (double)f32(&t)[i], 0.0);
            if (!(d.worst <= tolerance * d.scale))
                fail_msg("%s%s: error %.3g of a largest element %.3g exceeds %.1g", prefix, name, d.worst,
                         d.scale, tolerance);
        }
}

/* --- against float64 autodiff --- */

static void check_golden(const char *name) {
    struct safetensors st;
    golden_open(&st, name);
    struct gpt_config config = golden_config(&st);
    int64_t B = meta_int(&st, "B"), T = meta_int(&st, "T"), V = config.vocab_size;
    struct model m;
    model_open(&m, &config, (struct gpt_options){.B = B, .T = T, .train = true});
    load_params(&m.gpt, &st);
    const int32_t *tokens = (const int32_t *)golden(&st, "", "tokens")->data;
    const int32_t *targets = (const int32_t *)golden(&st, "", "targets")->data;
    int64_t valid = 0;
    for (int64_t i = 0; i < B * T; i++) valid += targets[i] >= 0;
    gpt_set_batch(&m.gpt, tokens, targets);

    gpt_forward(&m.gpt, 0, T);
    gpt_all_logits(&m.gpt);
    struct tensor logits = gpt_act(&m.gpt, A_LOGITS, 0);
    const struct st_view *want = golden(&st, "", "logits");
    struct deviation d = {0, 0};
    for (int64_t i = 0; i < want->count; i++)
        deviation_add(&d, (double)f32(&logits)[i / V * tensor_cols(&logits) + i % V], view_at(want, i));
    if (!(d.worst <= 1e-5 * d.scale)) fail_msg("%s: logits are off by %.3g of %.3g", name, d.worst, d.scale);

    /* junk in every buffer that a first micro-batch must overwrite */
    fill(&m.ctx, &m.gpt.grads, NAN);
    fill(&m.ctx, &m.gpt.numbers, NAN);
    gpt_set_loss_scale(&m.gpt, 1.0f / (float)valid);
    gpt_forward_backward(&m.gpt, true);
    double loss = (double)f32(&m.gpt.numbers)[STEP_LOSS], want_loss = view_at(golden(&st, "", "loss"), 0);
    if (!(fabs(loss - want_loss) <= 1e-5 * want_loss))
        fail_msg("%s: loss %.9g, not %.9g", name, loss, want_loss);
    compare_param_like(&m.gpt, &st, "grad.transformer.", true, 1e-5, 1e-3);
    safetensors_close(&st);
    model_close(&m);
}

static void test_goldens(void **state) {
    static const char *const names[] = {"gpt_minimal",   "gpt_three_heads",     "gpt_short_context",
                                        "gpt_one_token", "gpt_ignored_targets", "gpt_wide_vocab"};
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) check_golden(names[i]);
}

static void test_ten_adamw_steps(void **state) {
    struct safetensors st;
    golden_open(&st, "adamw_10_steps");
    struct gpt_config config = golden_config(&st);
    int64_t B = meta_int(&st, "B"), T = meta_int(&st, "T"), steps = meta_int(&st, "steps");
    struct model m;
    model_open(&m, &config, (struct gpt_options){.B = B, .T = T, .train = true});
    load_params(&m.gpt, &st);
    double lr_max = atof(safetensors_metadata(&st, "lr_max")),
           lr_min = atof(safetensors_metadata(&st, "lr_min"));
    /* the golden's cosine would end one step later: at step 10 of 0..9 */
    struct schedule schedule = {SCHEDULE_COSINE, lr_max,          meta_int(&st, "warmup"),
                                steps + 1,       lr_min / lr_max, 0};
    struct update_args args = {
        .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f, .max_norm = 1.0f};
    const struct st_view *tokens = golden(&st, "", "tokens"), *targets = golden(&st, "", "targets");
    for (int64_t step = 0; step < steps; step++) {
        int64_t at = tokens->rank == 3 ? step * B * T : 0;
        gpt_set_batch(&m.gpt, (const int32_t *)tokens->data + at, (const int32_t *)targets->data + at);
        int64_t valid = 0;
        for (int64_t i = 0; i < B * T; i++) valid += ((const int32_t *)targets->data)[at + i] >= 0;
        gpt_set_loss_scale(&m.gpt, 1.0f / (float)valid);
        gpt_forward_backward(&m.gpt, true);
        args.lr = (float)schedule_lr(&schedule, step);
        args.step = step + 1;
        optimizer_step(&m.opt, &m.gpt, &args);
        double loss = (double)f32(&m.gpt.numbers)[STEP_LOSS],
               norm = sqrt((double)f32(&m.gpt.numbers)[STEP_SUMSQ]);
        double want_lr = view_at(golden(&st, "", "lrs"), step),
               want_loss = view_at(golden(&st, "", "losses"), step);
        double want_norm = view_at(golden(&st, "", "grad_norms"), step);
        if (!(fabs((double)args.lr - want_lr) <= 1e-6 * want_lr))
            fail_msg("step %" PRId64 ": lr %g not %g", step, (double)args.lr, want_lr);
        if (!(fabs(loss - want_loss) <= 3e-5 * want_loss))
            fail_msg("step %" PRId64 ": loss %.9g not %.9g", step, loss, want_loss);
        if (!(fabs(norm - want_norm) <= 1e-4 * want_norm))
            fail_msg("step %" PRId64 ": norm %.9g not %.9g", step, norm, want_norm);
    }
    /* AdamW divides by sqrt(v): rounding in a tiny gradient becomes a visible part of lr, hence the wider
     * bound */
    compare_param_like(&m.gpt, &st, "final.transformer.", false, 2e-4, 1.0);
    safetensors_close(&st);
    model_close(&m);
}

/* --- Muon and Lion against float64 --- */

static void golden_values(struct gpt *g, const struct safetensors *st, const char *prefix, bool grads) {
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(&g->config, (enum param_id)id); l++) {
            struct tensor t = grads ? gpt_grad(g, (enum param_id)id, l) : gpt_param(g, (enum param_id)id, l);
            const struct st_view *v = golden(st, prefix, gpt_param_name((enum param_id)id, l));
            for (int64_t i = 0; i < v->count; i++) f32(&t)[i] = (float)view_at(v, i);
        }
}

static void compare_values(const struct model *m, const struct safetensors *st, const char *prefix,
                           const struct tensor *buffer, bool blocks_only) {
    const struct gpt *g = &m->gpt;
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(&g->config, (enum param_id)id); l++) {
            if (blocks_only && !gpt_param_in_blocks((enum param_id)id)) continue;
            const char *name = gpt_param_name((enum param_id)id, l);
            const struct st_view *v = golden(st, prefix, name);
            const float *x = f32(buffer) + g->layout.offset[id] + l * g->layout.stride[id];
            struct deviation d = {0, 0};
            for (int64_t i = 0; i < v->count; i++) deviation_add(&d, (double)x[i], view_at(v, i));
            if (!(d.worst <= 2e-5 * d.scale))
                fail_msg("%s%s: error %.3g of a largest element %.3g", prefix, name, d.worst, d.scale);
        }
}

static double meta_real(const struct safetensors *st, const char *key) {
    const char *value = safetensors_metadata(st, key);
    assert_non_null(value);
    return atof(value);
}

/* Grouped heads and a gated MLP: matrices that are stored below each other are made orthogonal apart. */
static void steps_of(enum optimizer_kind kind) {
    struct safetensors st;
    golden_open(&st, "muon_steps");
    struct gpt_config config =
        GPT2_CONFIG("golden", meta_int(&st, "context"), meta_int(&st, "vocab_size"), meta_int(&st, "layers"),
                    meta_int(&st, "heads"), meta_int(&st, "channels"));
    config.kv_heads = meta_int(&st, "kv_heads");
    config.ff = meta_int(&st, "ff");
    config.mlp = MLP_SWIGLU;
    config.norm = NORM_RMS;
    config.bias = config.qkv_bias = config.tied = SWITCH_OFF;
    struct model m;
    model_open_for(&m, &config, (struct gpt_options){.B = 1, .T = 4, .train = true}, kind);
    fill(&m.ctx, &m.gpt.params, 0.0f);
    golden_values(&m.gpt, &st, "param.", false);
    struct update_args args = {.lr = (float)meta_real(&st, "lr"),
                               .beta1 = (float)meta_real(&st, "beta1"),
                               .beta2 = (float)meta_real(&st, "beta2"),
                               .eps = (float)meta_real(&st, "eps"),
                               .weight_decay = (float)meta_real(&st, "weight_decay"),
                               .max_norm = (float)meta_real(&st, "clip"),
                               .momentum = (float)meta_real(&st, "momentum")};
    args.muon_lr = args.lr * (float)meta_real(&st, "muon_lr_factor");
    args.no_embedding_decay = kind == OPTIMIZER_MUON;
    args.embedding_lr = args.lr * (float)meta_real(&st, "embedding_lr_factor");
    for (args.step = 1; args.step <= meta_int(&st, "steps"); args.step++) {
        golden_values(&m.gpt, &st, temp_printf("grad.%" PRId64 ".", args.step), true);
        optimizer_step(&m.opt, &m.gpt, &args);
        assert_true(f32(&m.gpt.numbers)[STEP_SUMSQ] > args.max_norm * args.max_norm); /* it is clipped */
    }
    compare_values(&m, &st, kind == OPTIMIZER_MUON ? "muon." : "lion.", &m.gpt.params, false);
    if (kind == OPTIMIZER_MUON) compare_values(&m, &st, "muon.m.", &m.opt.m, true);
    safetensors_close(&st);
    model_close(&m);
}

static void test_three_muon_steps(void **state) { steps_of(OPTIMIZER_MUON); }
static void test_three_lion_steps(void **state) { steps_of(OPTIMIZER_LION); }

/* --- against itself --- */

static const struct gpt_config small = GPT2_CONFIG("small", 24, 50, 3, 2, 16);

static void random_tokens(int32_t *out, int64_t n, int64_t vocab, uint64_t seed) {
    for (int64_t i = 0; i < n; i++)
        out[i] = (int32_t)(rng_uniform(seed, RNG_TEST, (uint64_t)i) * (double)vocab);
}

/* One gradient, in a buffer the caller frees. */
static float *gradient_of(struct gpt_options options, const int32_t *tokens, const int32_t *targets,
                          float *loss) {
    struct model m;
    model_open(&m, &small, options);
    gpt_init_weights(&m.gpt, 7);
    gpt_set_batch(&m.gpt, tokens, targets);
    gpt_set_loss_scale(&m.gpt, 1.0f / (float)(options.B * options.T));
    gpt_forward_backward(&m.gpt, true);
    *loss = f32(&m.gpt.numbers)[STEP_LOSS];
    size_t bytes = (size_t)tensor_bytes(&m.gpt.grads);
    float *copy = (float *)xmalloc(bytes);
    memcpy(copy, m.gpt.grads.data, bytes);
    model_close(&m);
    return copy;
}

static void test_recompute_levels_are_bit_identical(void **state) {
    enum { B = 3, T = 20 };
    int32_t tokens[B * T], targets[B * T];
    random_tokens(tokens, B * T, small.vocab_size, 1);
    random_tokens(targets, B * T, small.vocab_size, 2);
    struct gpt_params layout;
    gpt_params_layout(&layout, &small);
    float loss, other_loss;
    struct gpt_options options = {.B = B, .T = T, .train = true};
    float *base = gradient_of(options, tokens, targets, &loss);
    for (int level = RECOMPUTE_ACT; level <= RECOMPUTE_BLOCK; level++) {
        options.recompute = (enum recompute)level;
        float *other = gradient_of(options, tokens, targets, &other_loss);
        assert_memory_equal(&loss, &other_loss, sizeof loss);
        assert_memory_equal(base, other, (size_t)layout.total * sizeof *base);
        free(other);
    }
    free(base);
}

static void assert_close(const float *a, const float *b, int64_t n, double tolerance, const char *what) {
    struct deviation d = {0, 0};
    for (int64_t i = 0; i < n; i++) deviation_add(&d, (double)b[i], (double)a[i]);
    assert_true(d.scale > 0);
    if (!(d.worst <= tolerance * d.scale)) fail_msg("%s: error %.3g of %.3g", what, d.worst, d.scale);
}

static void test_head_chunks(void **state) {
    enum { B = 3, T = 20 };
    int32_t tokens[B * T], targets[B * T];
    random_tokens(tokens, B * T, small.vocab_size, 1);
    random_tokens(targets, B * T, small.vocab_size, 2);
    targets[3] = -1;
    struct gpt_params layout;
    gpt_params_layout(&layout, &small);
    float loss, other_loss;
    struct gpt_options options = {.B = B, .T = T, .train = true};
    float *base = gradient_of(options, tokens, targets, &loss);
    for (int chunks = 2; chunks <= 61;
         chunks = 3 * chunks - 1) { /* 2, 5, 14, 41: 60 rows, last chunk smaller */
        options.head_chunks = chunks;
        float *other = gradient_of(options, tokens, targets, &other_loss);
        assert_close(&loss, &other_loss, 1, 1e-6, "loss");
        assert_close(base, other, layout.total, 1e-5, "gradients");
        free(other);
    }
    free(base);
}

static void test_accumulation_equals_one_batch(void **state) {
    enum { B = 4, T = 9 };
    int32_t tokens[B * T], targets[B * T];
    random_tokens(tokens, B * T, small.vocab_size, 3);
    random_tokens(targets, B * T, small.vocab_size, 4);
    struct gpt_params layout;
    gpt_params_layout(&layout, &small);
    float loss;
    float *base = gradient_of((struct gpt_options){.B = B, .T = T, .train = true}, tokens, targets, &loss);
    struct model m;
    model_open(&m, &small, (struct gpt_options){.B = 1, .T = T, .train = true});
    gpt_init_weights(&m.gpt, 7);
    for (int b = 0; b < B; b++) {
        gpt_set_batch(&m.gpt, tokens + b * T, targets + b * T);
        gpt_set_loss_scale(&m.gpt, 1.0f / (B * T));
        gpt_forward_backward(&m.gpt, b == 0);
    }
    assert_close(base, f32(&m.gpt.grads), layout.total, 1e-5, "gradients");
    assert_close(&loss, f32(&m.gpt.numbers) + STEP_LOSS, 1, 1e-6, "loss");
    model_close(&m);
    free(base);
}

/* Logits of each position, computed span by span from the cache, equal those of one pass. */
static void test_generation_cache(void **state) {
    enum { T = 24 };
    int32_t tokens[T], targets[T];
    random_tokens(tokens, T, small.vocab_size, 5);
    memset(targets, 0, sizeof targets);
    struct model whole, parts;
    model_open(&whole, &small, (struct gpt_options){.B = 1, .T = T, .train = true});
    model_open(&parts, &small, (struct gpt_options){.B = 1, .T = T});
    gpt_init_weights(&whole.gpt, 9);
    gpt_init_weights(&parts.gpt, 9);
    gpt_set_batch(&whole.gpt, tokens, targets);
    gpt_set_batch(&parts.gpt, tokens, NULL);
    gpt_forward(&whole.gpt, 0, T);
    gpt_all_logits(&whole.gpt);
    struct tensor logits = gpt_act(&whole.gpt, A_LOGITS, 0);
    int64_t Vp = tensor_cols(&logits);
    float *one = (float *)xmalloc((size_t)Vp * sizeof *one);
    static const int64_t spans[] = {7, 1, 1, 5, 1, 9};
    for (size_t i = 0, at = 0; i < ARRAY_LENGTH(spans); at += (size_t)spans[i], i++) {
        gpt_forward(&parts.gpt, (int64_t)at, spans[i]);
        int64_t position = (int64_t)at + spans[i] - 1;
        gpt_logits(&parts.gpt, position, one);
        assert_close(f32(&logits) + position * Vp, one, small.vocab_size, 1e-5, "logits");
    }
    free(one);
    model_close(&whole);
    model_close(&parts);
}

static void test_overfits_one_batch(void **state) {
    enum { B = 2, T = 16, STEPS = 150 };
    int32_t tokens[B * T], targets[B * T];
    random_tokens(tokens, B * T, small.vocab_size, 11);
    random_tokens(targets, B * T, small.vocab_size, 12);
    struct model m;
    model_open(&m, &small, (struct gpt_options){.B = B, .T = T, .train = true});
    gpt_init_weights(&m.gpt, 3);
    gpt_set_batch(&m.gpt, tokens, targets);
    struct update_args args = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .max_norm = 1.0f};
    float first = 0;
    for (args.step = 1; args.step <= STEPS; args.step++) {
        gpt_set_loss_scale(&m.gpt, 1.0f / (B * T));
        gpt_forward_backward(&m.gpt, true);
        if (args.step == 1) first = f32(&m.gpt.numbers)[STEP_LOSS];
        optimizer_step(&m.opt, &m.gpt, &args);
    }
    float last = f32(&m.gpt.numbers)[STEP_LOSS];
    if (!(fabsf(first - logf(50.0f)) < 0.2f)) fail_msg("initial loss %g is not near ln(50)", (double)first);
    if (!(last < 0.01f)) fail_msg("loss after %d steps on one batch is %g", STEPS, (double)last);
    model_close(&m);
}

/* Label smoothing and z-loss belong to training: they change its loss and its gradients, and leave the
 * validation loss as it is. */
static void test_terms_of_the_loss(void **state) {
    enum { B = 2, T = 9 };
    int32_t tokens[B * T], targets[B * T];
    random_tokens(tokens, B * T, small.vocab_size, 11);
    random_tokens(targets, B * T, small.vocab_size, 12);
    float trained[3], validated[3], gradient[3];
    for (int i = 0; i < 3; i++) {
        struct gpt_options options = {.B = B, .T = T, .train = true, .head_chunks = 1 + i};
        options.loss = (struct loss_terms){i == 1 ? 0.1f : 0.0f, i == 2 ? 0.5f : 0.0f};
        struct model m;
        model_open(&m, &small, options);
        gpt_init_weights(&m.gpt, 3);
        gpt_set_batch(&m.gpt, tokens, targets);
        gpt_set_loss_scale(&m.gpt, 1.0f / (B * T));
        gpt_forward_backward(&m.gpt, true);
        struct tensor d = gpt_grad(&m.gpt, P_WTE, 0);
        trained[i] = f32(&m.gpt.numbers)[STEP_LOSS];
        gradient[i] = f32(&d)[tokens[0] * small.channels];
        gpt_forward(&m.gpt, 0, T);
        gpt_loss(&m.gpt);
        validated[i] = f32(&m.gpt.numbers)[STEP_LOSS] / (B * T);
        model_close(&m);
    }
    for (int i = 1; i < 3; i++) {
        assert_true(trained[i] > trained[0] || (i == 1 && trained[1] != trained[0]));
        assert_true(gradient[i] != gradient[0]);
        assert_true(fabsf(validated[i] - validated[0]) < 1e-6f * validated[0]);
    }
    assert_true(fabsf(validated[0] - trained[0]) < 1e-6f * trained[0]);
    /* z lse^2, of logits near 0: lse is near ln 50 */
    assert_true(fabsf(trained[2] - trained[0] - 0.5f * logf(50.0f) * logf(50.0f)) < 0.3f);
}

static void nan_gradient_changes_nothing(enum optimizer_kind kind) {
    struct model m;
    model_open_for(&m, &small, (struct gpt_options){.B = 1, .T = 4, .train = true}, kind);
    gpt_init_weights(&m.gpt, 3);
    size_t bytes = (size_t)tensor_bytes(&m.gpt.params);
    void *before = xmalloc(bytes);
    memcpy(before, m.gpt.params.data, bytes);
    struct tensor grad = gpt_grad(&m.gpt, P_FC_W, 1);
    f32(&grad)[5] = NAN;
    struct update_args args = {.lr = 1e-2f,
                               .beta1 = 0.9f,
                               .beta2 = 0.95f,
                               .eps = 1e-8f,
                               .max_norm = 1.0f,
                               .step = 1,
                               .momentum = 0.9f,
                               .muon_lr = 1e-2f};
    optimizer_step(&m.opt, &m.gpt, &args);
    assert_true(isnan(f32(&m.gpt.numbers)[STEP_SUMSQ]));
    assert_memory_equal(before, m.gpt.params.data, bytes);
    for (int64_t i = 0; i < tensor_count(&m.opt.m); i++) assert_true(f32(&m.opt.m)[i] == 0.0f);
    free(before);
    model_close(&m);
}

static void test_nan_gradient_changes_nothing(void **state) {
    nan_gradient_changes_nothing(OPTIMIZER_ADAMW);
    nan_gradient_changes_nothing(OPTIMIZER_MUON);
    nan_gradient_changes_nothing(OPTIMIZER_LION);
}

/* The same calls with a planning context: the same FLOPs, and the memory that a run really takes. */
static void test_plan_equals_run(void **state) {
    static const struct gpt_options variants[] = {
        {.B = 2, .T = 24, .train = true},
        {.B = 2, .T = 24, .train = true, .recompute = RECOMPUTE_BLOCK, .head_chunks = 3},
        {.B = 1, .T = 24}};
    for (size_t i = 0; i < ARRAY_LENGTH(variants); i++) {
        struct device *device = device_open_cpu();
        struct ctx ctx[2];
        int32_t tokens[48] = {0};
        for (int plan = 0; plan < 2; plan++) {
            struct gpt g;
            struct optimizer opt;
            ctx_init(&ctx[plan], device, cpu_ops(), plan);
            gpt_create(&g, &ctx[plan], &small, &variants[i]);
            gpt_init_weights(&g, 1);
            gpt_set_batch(&g, tokens, tokens);
            if (variants[i].train) {
                struct update_args args = {.lr = 1e-3f, .step = 1};
                optimizer_create(&opt, &g, (struct optimizer_options){0});
                gpt_set_loss_scale(&g, 1.0f);
                gpt_forward_backward(&g, true);
                optimizer_step(&opt, &g, &args);
            } else {
                gpt_forward(&g, 0, variants[i].T);
                gpt_logits(&g, 3, NULL);
            }
        }
        assert_memory_equal(ctx[0].memory, ctx[1].memory, sizeof ctx[0].memory);
        assert_true(ctx[1].scratch == NULL && ctx[1].owned_count == 0);
        assert_true(ctx_flops(&ctx[0]) > 0 && ctx_flops(&ctx[0]) == ctx_flops(&ctx[1]));
        ctx_free(&ctx[0]);
        ctx_free(&ctx[1]);
        device->close(device);
    }
}

static void test_schedules(void **state) {
    struct schedule s = {SCHEDULE_COSINE, 1.0, 10, 110, 0.1, 0.2};
    assert_true(fabs(schedule_lr(&s, 0) - 0.1) < 1e-12 && fabs(schedule_lr(&s, 9) - 1.0) < 1e-12);
    assert_true(fabs(schedule_lr(&s, 10) - 1.0) < 1e-12 && fabs(schedule_lr(&s, 109) - 0.1) < 1e-12);
    s.kind = SCHEDULE_LINEAR;
    assert_true(fabs(schedule_lr(&s, 109) - 0.1) < 1e-12 && fabs(schedule_lr(&s, 43) - 0.7) < 1e-12);
    s.kind = SCHEDULE_CONSTANT;
    assert_true(schedule_lr(&s, 109) == 1.0);
    s.kind = SCHEDULE_WSD;
    assert_true(schedule_lr(&s, 80) == 1.0 && fabs(schedule_lr(&s, 109) - 0.1) < 1e-9 &&
                schedule_lr(&s, 95) < 1.0);
    s.kind = SCHEDULE_NOAM;
    assert_true(fabs(schedule_lr(&s, 4) - 0.5) < 1e-12 && fabs(schedule_lr(&s, 9) - 1.0) < 1e-12 &&
                fabs(schedule_lr(&s, 10) - sqrt(10.0 / 11.0)) < 1e-12 &&
                fabs(schedule_lr(&s, 89) - 1.0 / 3.0) < 1e-12);
    s.warmup = 0;
    assert_true(schedule_lr(&s, 0) == 1.0 && fabs(schedule_lr(&s, 99) - 0.1) < 1e-12);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_ten_adamw_steps),
        cmocka_unit_test(test_three_muon_steps),
        cmocka_unit_test(test_three_lion_steps),
        cmocka_unit_test(test_recompute_levels_are_bit_identical),
        cmocka_unit_test(test_head_chunks),
        cmocka_unit_test(test_accumulation_equals_one_batch),
        cmocka_unit_test(test_generation_cache),
        cmocka_unit_test(test_overfits_one_batch),
        cmocka_unit_test(test_terms_of_the_loss),
        cmocka_unit_test(test_nan_gradient_changes_nothing),
        cmocka_unit_test(test_plan_equals_run),
        cmocka_unit_test(test_schedules),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
