/* inspect() against the engine: what it says that a model did is worked out a second time, in double
 * precision, from the model's parameters and activations, for every kind of model. */
#include "test/test.h"

#include "llmc/model/inspect.h"
#include "llmc/model/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- a model of a kind, with no parameter left at 0 or 1 --- */

enum { T = 11 };

struct opened {
    struct device *device;
    struct ctx ctx;
    struct gpt model, open; /* as `sample` has it; as inspect() has it */
    struct inspection x;
    int32_t tokens[T];
};

static const double temperatures[] = {0.5, 1.0, 100.0};

static void open_model(struct opened *o, const struct gpt_config *config) {
    o->device = device_open_cpu();
    ctx_init(&o->ctx, o->device, cpu_ops(), false);
    generator_create(&o->model, &o->ctx, config, DTYPE_F32, NULL, 0, 0);
    gpt_init_weights(&o->model, 3);
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(&o->model.config, (enum param_id)id); l++) {
            struct tensor t = gpt_param(&o->model, (enum param_id)id, l);
            if (gpt_param_rows[id].rows == DIM_VP) t = tensor_slice_rows(&t, 0, config->vocab_size);
            randn(&o->ctx, &t, gpt_param_rows[id].init == INIT_ONE ? 1.0f : 0.0f, 0.3f, 5,
                  (uint64_t)(100 * id + l));
        }
    for (int t = 0; t < T; t++) o->tokens[t] = (int32_t)(t * t * 37 % config->vocab_size);
    inspect_create(&o->open, &o->ctx, &o->model, NULL, T);
    inspect(&o->x, &o->open, o->tokens, config->vocab_size - 3, temperatures, ARRAY_LENGTH(temperatures),
            NULL);
}

static void close_model(struct opened *o) {
    inspection_free(&o->x);
    ctx_free(&o->ctx);
    o->device->close(o->device);
}

static void assert_near(double got, double want, double tolerance, const char *what) {
    if (!(fabs(got - want) <= tolerance)) fail_msg("%s: %.9g, not %.9g", what, got, want);
}

static const float *vector(const struct gpt *g, enum param_id id, int64_t l) {
    if (!gpt_param_copies(&g->config, id)) return NULL;
    struct tensor t = gpt_param(g, id, l);
    return f32(&t);
}

/* --- the second computation --- */

static float *activation(const struct gpt *g, enum act_id id, int64_t l) {
    struct tensor t = gpt_act(g, id, l);
    return f32(&t);
}

/* What head h of layer l writes for source s at full attention, (C). */
static void head_write(const struct opened *o, int64_t l, int64_t h, int64_t s, double *out) {
    const struct gpt_config *c = &o->open.config;
    int64_t Q = c->heads * c->head_size, KV = c->kv_heads * c->head_size;
    const float *proj = vector(&o->open, P_PROJ_W, l);
    const float *v = activation(&o->open, A_QKV, l) + s * (Q + 2 * KV) + Q + KV +
                     h / (c->heads / c->kv_heads) * c->head_size;
    for (int64_t i = 0; i < c->channels; i++) {
        out[i] = 0.0;
        for (int64_t d = 0; d < c->head_size; d++)
            out[i] += (double)proj[i * Q + h * c->head_size + d] * (double)v[d];
    }
}

/* The direction of the target's logit, by its definition; and b . u. */
static double direction(const struct opened *o, int64_t t, double *d) {
    const struct gpt_config *c = &o->open.config;
    const float *gain = vector(&o->open, P_LNF_W, 0), *bias = vector(&o->open, P_LNF_B, 0);
    const float *u =
        vector(&o->open, c->tied == SWITCH_ON ? P_WTE : P_LM_HEAD, 0) + o->x.target[t] * c->channels;
    double mean = 0.0, constant = 0.0;
    for (int64_t i = 0; i < c->channels; i++) {
        d[i] = (gain ? (double)gain[i] : 1.0) * (double)u[i];
        mean += d[i] / (double)c->channels;
        constant += bias ? (double)bias[i] * (double)u[i] : 0.0;
    }
    for (int64_t i = 0; i < c->channels && c->norm == NORM_LAYER; i++) d[i] -= mean;
    return constant;
}

static bool may_see(const struct gpt_config *c, int64_t t, int64_t s) {
    if (c->mask == MASK_ANTI_CAUSAL) return s >= t;
    return c->mask == MASK_FULL || (s <= t && (c->mask != MASK_WINDOW || s > t - c->window));
}

/* A token that may see nothing has no attention; the sum of what is left is 1. */
static void check_attention(const struct opened *o) {
    const struct inspection *x = &o->x;
    float P[T * T];
    for (int64_t l = 0; l < x->L; l++)
        for (int64_t h = 0; h < x->NH; h++) {
            inspect_attention(x, l, h, P);
            for (int64_t t = 0; t < T; t++) {
                double sum = 0.0;
                int64_t seen = 0;
                for (int64_t s = 0; s < T; s++) {
                    bool sees = may_see(&o->open.config, t, s) && !ablation_cuts(x->ablation, l, h, t, s);
                    assert_true(sees ? P[t * T + s] > 0.0f : P[t * T + s] == 0.0f);
                    sum += (double)P[t * T + s];
                    seen += sees;
                }
                assert_near(sum, seen ? 1.0 : 0.0, 1e-5, "sum of a row of attention");
            }
        }
}

/* What layer l does to token t, a second time: the branch of the attention, source by source, into
 * `branch`. */
static void check_heads(const struct opened *o, int64_t l, int64_t t, const double *d, double *branch) {
    const struct inspection *x = &o->x;
    const float *bias = vector(&o->open, P_PROJ_B, l);
    double *one = (double *)xcalloc((size_t)x->C, sizeof *one), rstd = (double)x->rstd[t];
    float P[T * T];
    for (int64_t i = 0; i < x->C; i++) branch[i] = bias ? (double)bias[i] : 0.0;
    for (int64_t h = 0; h < x->NH; h++) {
        double of_head = 0.0;
        bool off = ablation_off(x->ablation, &o->open.config, l, h);
        inspect_attention(x, l, h, P);
        for (int64_t s = 0; s < T; s++) {
            double norm = 0.0, p = (double)P[t * T + s], of_source = 0.0, claimed = 0.0;
            head_write(o, l, h, s, one);
            for (int64_t i = 0; i < x->C && off; i++) one[i] = 0.0;
            for (int64_t i = 0; i < x->C; i++) {
                branch[i] += p * one[i];
                of_source += rstd * p * one[i] * d[i];
                norm += one[i] * one[i];
            }
            for (int64_t i = 0; i < x->HS; i++)
                claimed += (double)x->v[((l * T + s) * x->NKV + h * x->NKV / x->NH) * x->HS + i] *
                           (double)x->write[((l * T + t) * x->NH + h) * x->HS + i];
            assert_near((double)x->value_norm[(l * x->NH + h) * T + s], sqrt(norm), 1e-4,
                        "length of a value");
            assert_near(rstd * p * claimed, of_source, 1e-4, "effect of a source");
            of_head += of_source;
        }
        assert_near((double)x->head_effect[(l * T + t) * x->NH + h], of_head, 2e-4, "effect of a head");
    }
    free(one);
}

static double length(const float *x, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* Adds both branches of layer l to the stream, and compares them with the engine's. */
static void check_layer(const struct opened *o, int64_t l, int64_t t, const double *d, double *stream) {
    const struct inspection *x = &o->x;
    const struct gpt *g = &o->open;
    int64_t C = x->C, F = g->config.ff;
    const float *in = l ? activation(g, A_RESID_OUT, l - 1) : activation(g, A_EMBED, 0);
    const float *mid = activation(g, A_RESID_MID, l), *act = activation(g, A_MLP_ACT, l) + t * F;
    const float *proj = vector(g, P_FCPROJ_W, l), *bias = vector(g, P_FCPROJ_B, l);
    double *branch = (double *)xcalloc((size_t)C, sizeof *branch), added = 0.0, mlp_added = 0.0, effect = 0.0;
    check_heads(o, l, t, d, branch);
    for (int64_t i = 0; i < C; i++) {
        assert_near(branch[i], (double)mid[t * C + i] - (double)in[t * C + i], 1e-4, "attention branch");
        double mlp = bias ? (double)bias[i] : 0.0;
        for (int64_t k = 0; k < F; k++) mlp += (double)proj[i * F + k] * (double)act[k];
        added += branch[i] * branch[i];
        mlp_added += mlp * mlp;
        effect += (double)x->rstd[t] * d[i] * mlp;
        stream[i] += branch[i] + mlp;
    }
    const float *norms = x->norms + (l * T + t) * INSPECT_NORMS;
    assert_near((double)norms[0], length(in + t * C, C), 1e-4, "length before the layer");
    assert_near((double)norms[2], length(mid + t * C, C), 1e-4, "length between the branches");
    assert_near((double)norms[4], length(activation(g, A_RESID_OUT, l) + t * C, C), 1e-4, "length behind it");
    assert_near((double)norms[1], sqrt(added), 1e-3, "length of attention");
    assert_near((double)norms[3], sqrt(mlp_added), 1e-3, "length of the MLP");
    assert_near((double)x->mlp_effect[l * T + t], effect, 2e-4, "effect of the MLP");
    free(branch);
}

/* Column i of what is added to a token's embedding at position t. */
static double position_at(const struct gpt *g, int64_t t, int64_t i) {
    const struct gpt_config *c = &g->config;
    int64_t pair = i / 2;
    double angle = (double)t / pow(10000.0, 2.0 * (double)pair / (double)c->channels);
    if (c->positions == POSITIONS_LEARNED) return (double)vector(g, P_WPE, 0)[t * c->channels + i];
    if (c->positions != POSITIONS_SINUSOIDAL) return 0.0;
    return (i == 2 * pair ? sin(angle) : cos(angle)) / sqrt((double)c->channels);
}

/* What the norm of the embedding x (C) at position t does, if there is one: x becomes `scale` (x - *mean) +
 * `shift` for each column. */
static void embedding_norm(const struct opened *o, const double *x, double *mean, double *scale,
                           double *shift) {
    const struct gpt_config *c = &o->open.config;
    const float *gain = vector(&o->open, P_EMBED_NORM_W, 0), *bias = vector(&o->open, P_EMBED_NORM_B, 0);
    int64_t C = c->channels;
    double square = 0.0;
    bool normed = c->embedding_norm == SWITCH_ON;
    *mean = 0.0;
    for (int64_t i = 0; i < C && normed && c->norm == NORM_LAYER; i++) *mean += x[i] / (double)C;
    for (int64_t i = 0; i < C; i++) square += (x[i] - *mean) * (x[i] - *mean) / (double)C;
    for (int64_t i = 0; i < C; i++) {
        scale[i] = normed ? (gain ? (double)gain[i] : 1.0) / sqrt(square + c->norm_eps) : 1.0;
        shift[i] = bias ? (double)bias[i] : 0.0;
    }
}

/* Embedding and branches add up to the stream, and their effects to the logit. */
static void check_stream(const struct opened *o) {
    const struct inspection *x = &o->x;
    const struct gpt *g = &o->open;
    int64_t C = x->C;
    double *stream = (double *)xcalloc((size_t)C, sizeof *stream),
           *d = (double *)xcalloc((size_t)C, sizeof *d), *scale = (double *)xcalloc((size_t)C, sizeof *scale),
           *shift = (double *)xcalloc((size_t)C, sizeof *shift);
    const float *wte = vector(g, P_WTE, 0);
    for (int64_t t = 0; t < T; t++) {
        double constant = direction(o, t, d), token = 0.0, position = 0.0, mean, token_mean = 0.0;
        const float *row = wte + x->tokens[t] * C;
        for (int64_t i = 0; i < C; i++) stream[i] = (double)row[i] + position_at(g, t, i);
        embedding_norm(o, stream, &mean, scale, shift);
        for (int64_t i = 0; i < C && mean != 0.0; i++) token_mean += (double)row[i] / (double)C;
        for (int64_t i = 0; i < C; i++) {
            double of_logit = (double)x->rstd[t] * d[i];
            token += of_logit * scale[i] * ((double)row[i] - token_mean);
            position += of_logit * scale[i] * (position_at(g, t, i) - (mean - token_mean));
            constant += of_logit * shift[i];
            stream[i] = scale[i] * (stream[i] - mean) + shift[i];
        }
        assert_near((double)x->constant_effect[t], constant, 1e-4, "effect of the norm's bias");
        assert_near((double)x->token_effect[t], token, 1e-4, "effect of the token");
        assert_near((double)x->position_effect[t], position, 1e-4, "effect of the position");
        double logit = constant + token + position, largest = fmax(1.0, fabs(logit));
        for (int64_t l = 0; l < x->L; l++) {
            check_layer(o, l, t, d, stream);
            logit += (double)x->bias_effect[l * T + t] + (double)x->mlp_effect[l * T + t];
            for (int64_t h = 0; h < x->NH; h++) logit += (double)x->head_effect[(l * T + t) * x->NH + h];
            largest = fmax(largest, fabs(logit));
        }
        const float *last = activation(g, A_RESID_OUT, x->L - 1) + t * C;
        double size = length(last, C);
        for (int64_t i = 0; i < C; i++)
            assert_near(stream[i], (double)last[i], 1e-5 * size, "residual stream");
        assert_near(logit, (double)x->target_logit[t], 1e-5 * largest, "sum of all effects");
    }
    free(stream);
    free(d);
    free(scale);
    free(shift);
}

static double capped(const struct opened *o, double logit) {
    double cap = o->open.config.logit_softcap;
    return cap > 0.0 ? cap * tanh(logit / cap) : logit;
}

/* A read-off in double precision: the logits (V) of position t. */
static void read_off(const struct opened *o, const float *resid, double *logits) {
    const struct gpt_config *c = &o->open.config;
    const float *gain = vector(&o->open, P_LNF_W, 0), *bias = vector(&o->open, P_LNF_B, 0);
    const float *head = vector(&o->open, c->tied == SWITCH_ON ? P_WTE : P_LM_HEAD, 0);
    int64_t C = c->channels;
    double mean = 0.0, square = 0.0;
    for (int64_t i = 0; i < C && c->norm == NORM_LAYER; i++) mean += (double)resid[i] / (double)C;
    for (int64_t i = 0; i < C; i++)
        square += ((double)resid[i] - mean) * ((double)resid[i] - mean) / (double)C;
    double rstd = 1.0 / sqrt(square + c->norm_eps);
    for (int64_t v = 0; v < o->x.V; v++) {
        logits[v] = 0.0;
        for (int64_t i = 0; i < C; i++)
            logits[v] += (((double)resid[i] - mean) * rstd * (gain ? (double)gain[i] : 1.0) +
                          (bias ? (double)bias[i] : 0.0)) *
                         (double)head[v * C + i];
        logits[v] = capped(o, logits[v]);
    }
}

static void check_lenses(const struct opened *o) {
    const struct inspection *x = &o->x;
    double *logits = (double *)xcalloc((size_t)x->V, sizeof *logits);
    for (int64_t depth = 0; depth <= x->L; depth++)
        for (int64_t t = 0; t < T; t++) {
            int64_t at = depth * T + t, ahead = 0;
            double sum = 0.0, entropy = 0.0, target;
            read_off(
                o,
                (depth ? activation(&o->open, A_RESID_OUT, depth - 1) : activation(&o->open, A_EMBED, 0)) +
                    t * x->C,
                logits);
            target = logits[x->target[t]];
            for (int64_t v = 0; v < x->V; v++) sum += exp(logits[v]);
            for (int64_t v = 0; v < x->V; v++) {
                double p = exp(logits[v]) / sum;
                entropy -= p * log(p);
                ahead += logits[v] > target + 1e-4;
            }
            assert_near((double)x->lens_target_p[at], exp(target) / sum, 1e-4, "probability of the target");
            assert_near((double)x->lens_entropy[at], entropy, 1e-3, "entropy");
            assert_near((double)x->lens_rank[at], (double)ahead + 1.0, 1.0, "rank of the target");
            for (int64_t i = 0; i < INSPECT_TOP; i++) {
                int32_t token = x->lens_token[at * INSPECT_TOP + i];
                assert_in_range(token, 0, x->V - 1);
                assert_near((double)x->lens_p[at * INSPECT_TOP + i], exp(logits[token]) / sum, 1e-4, "lens");
                int64_t above = 0;
                for (int64_t v = 0; v < x->V; v++) above += logits[v] > logits[token] + 1e-4;
                assert_true(above <= i);
                for (int64_t k = 0; k < i; k++)
                    assert_int_not_equal(x->lens_token[at * INSPECT_TOP + k], token);
            }
        }
    free(logits);
}

/* The last lens and the list of next tokens are what generation computes, position by position. */
static void check_next(struct opened *o) {
    const struct inspection *x = &o->x;
    int64_t listed = x->next_count;
    float *logits = (float *)xcalloc((size_t)gpt_padded_vocab(&o->model.config), sizeof *logits);
    int32_t *all = (int32_t *)xcalloc((size_t)o->model.options.T, sizeof *all);
    memcpy(all, o->tokens, sizeof o->tokens);
    gpt_set_batch(&o->model, all, NULL);
    for (int64_t t = 0; t < T; t++) {
        gpt_forward(&o->model, t, 1);
        gpt_logits(&o->model, t, logits);
        double of_target = capped(o, (double)x->target_logit[t]);
        assert_near(of_target, (double)logits[x->target[t]], 1e-4, "logit of the target");
        assert_int_equal(x->target[t], t + 1 < T ? x->tokens[t + 1] : x->next_token[t * listed]);
        assert_int_equal(x->lens_token[(x->L * T + t) * INSPECT_TOP], x->next_token[t * listed]);
        for (int64_t i = 0; i < listed; i++) {
            int32_t token = x->next_token[t * listed + i];
            assert_near((double)x->next_logit[t * listed + i], (double)logits[token], 1e-4, "logit");
            if (i > 0) assert_true(x->next_logit[t * listed + i] <= x->next_logit[t * listed + i - 1]);
        }
        for (int64_t k = 0; k < x->temperature_count; k++) {
            double sum = (double)x->next_rest[t * x->temperature_count + k], want = 0.0;
            for (int64_t v = 0; v < x->V; v++)
                want += exp(((double)logits[v] - (double)x->next_logit[t * listed]) / temperatures[k]);
            for (int64_t i = 0; i < listed; i++)
                sum += exp(((double)x->next_logit[t * listed + i] - (double)x->next_logit[t * listed]) /
                           temperatures[k]);
            assert_near(sum, want, 2e-4 * want, "all weights");
        }
    }
    free(logits);
    free(all);
}

static void check_kind(struct gpt_config config) {
    struct opened o;
    struct error err;
    gpt_config_complete(&config);
    if (!gpt_config_check(&config, &err)) fail_msg("%s", err.message);
    open_model(&o, &config);
    check_attention(&o);
    check_stream(&o);
    if (!gpt_looks_ahead(&config)) check_next(&o);
    check_lenses(&o);
    close_model(&o);
}

/* Every combination that the engine computes. */
static void test_kinds(void **state) {
    struct error err;
    int count = 0;
    for (int i = 0; i < 4 * 2 * 4 * 2 * 2 * 3; i++) {
        struct gpt_config c = {
            .name = "small", .context = 16, .vocab_size = 140, .layers = 2, .heads = 4, .channels = 32};
        c.positions = (enum gpt_positions)(POSITIONS_LEARNED + i % 4);
        c.norm = (enum gpt_norm)(NORM_LAYER + i / 4 % 2);
        c.mlp = (enum gpt_mlp)(MLP_GELU + i / 8 % 4);
        c.bias = i / 32 % 2 ? SWITCH_OFF : SWITCH_ON;
        c.qkv_bias = i % 5 == 0 ? SWITCH_ON : c.bias;
        c.qk_norm = i % 7 < 2 ? SWITCH_ON : SWITCH_OFF;
        c.tied = i / 64 % 2 ? SWITCH_OFF : SWITCH_ON;
        c.kv_heads = 4 >> i / 128;
        c.score = (enum gpt_score)(SCORE_SCALED_DOT + i % 7 % 5);
        c.mask = (enum gpt_mask)(MASK_CAUSAL + i % 11 % 5);
        c.window = c.mask == MASK_WINDOW ? 5 : 0;
        /* scores of hundreds would be too coarse in fp32 for the tolerances here */
        bool large = c.score == SCORE_DOT || c.score == SCORE_DOT2;
        c.softcap = large || i % 13 < 4 ? 2.0 : 0.0;
        c.logit_softcap = i % 3 ? 0.0 : 1.5;
        c.norm_weights = i % 17 < 5 ? SWITCH_OFF : SWITCH_ON;
        c.embedding_norm = i % 19 < 7 ? SWITCH_ON : SWITCH_OFF;
        gpt_config_complete(&c);
        if (!gpt_config_check(&c, &err)) continue;
        check_kind(c);
        count++;
    }
    assert_in_range(count, 128, 384);
}

/* More tokens than are listed; one head; three layers. */
static void test_wide_vocabulary(void **state) {
    check_kind((struct gpt_config){.name = "wide",
                                   .context = 16,
                                   .vocab_size = INSPECT_NEXT + 500,
                                   .layers = 3,
                                   .heads = 1,
                                   .channels = 24});
}

/* --- what if --- */

static void assert_same_numbers(const float *a, const float *b, int64_t n, const char *what) {
    for (int64_t i = 0; i < n; i++) assert_near((double)a[i], (double)b[i], 1e-6, what);
}

/* The model of the next two tests, or one with another score. */
static void open_grouped(struct opened *o, enum gpt_score score, int64_t window, double softcap) {
    struct error err;
    struct gpt_config config = {.name = "small",
                                .context = 16,
                                .vocab_size = 140,
                                .layers = 2,
                                .heads = 4,
                                .kv_heads = 2,
                                .channels = 32,
                                .positions = POSITIONS_ROPE,
                                .score = score,
                                .window = window,
                                .softcap = softcap};
    gpt_config_complete(&config);
    if (!gpt_config_check(&config, &err)) fail_msg("%s", err.message);
    open_model(o, &config);
}

static void look_again(struct opened *o, const struct ablation *a) {
    inspection_free(&o->x);
    inspect(&o->x, &o->open, o->tokens, o->model.config.vocab_size - 3, temperatures,
            ARRAY_LENGTH(temperatures), a);
}

/* A head that is off is one whose columns of the output projection are 0. */
static void test_head_off(void **state) {
    struct opened o;
    open_grouped(&o, SCORE_SCALED_DOT, 0, 0.0);
    float before = o.x.target_logit[T - 2];
    bool off[8] = {[5] = true}; /* layer 1, head 1 */
    struct ablation a = {.off = off};
    look_again(&o, &a);
    check_attention(&o);
    check_stream(&o);
    struct inspection without = o.x;
    o.x = (struct inspection){0};
    struct tensor proj = gpt_param(&o.model, P_PROJ_W, 1);
    for (int64_t i = 0; i < 32; i++) memset(f32(&proj) + i * 32 + 8, 0, 8 * sizeof(float));
    look_again(&o, NULL);
    const struct inspection *x = &o.x;
    assert_same_numbers(without.next_logit, x->next_logit, T * x->next_count, "logit");
    assert_same_numbers(without.lens_target_p, x->lens_target_p, (x->L + 1) * T, "probability");
    assert_same_numbers(without.norms, x->norms, x->L * T * INSPECT_NORMS, "length");
    assert_same_numbers(without.head_effect, x->head_effect, x->L * T * x->NH, "effect");
    assert_same_numbers(without.write, x->write, x->L * T * x->NH * x->HS, "direction");
    assert_same_numbers(without.value_norm, x->value_norm, x->L * T * x->NH, "length of a value");
    assert_true(fabsf(without.target_logit[T - 2] - before) > 0.01f);
    inspection_free(&without);
    close_model(&o);
}

/* Where an edge is cut, the others share what it had; what comes of it adds up as ever. */
static void check_edges_cut(enum gpt_score score, int64_t window, double softcap) {
    struct opened o;
    float before[T * T], after[T * T];
    open_grouped(&o, score, window, softcap);
    inspect_attention(&o.x, 0, 1, before);
    const struct ablation_cut cut[] = {{0, 1, 5, 2},   {0, 1, 5, 3},   {-1, 2, 7, 7}, {1, -1, 3, 0},
                                       {-1, -1, 2, 0}, {-1, -1, 2, 1}, {-1, -1, 2, 2}};
    struct ablation a = {.cut = cut, .cuts = ARRAY_LENGTH(cut)};
    look_again(&o, &a);
    check_attention(&o);
    check_stream(&o);
    inspect_attention(&o.x, 0, 1, after);
    float left = 1.0f - before[5 * T + 2] - before[5 * T + 3];
    for (int s = 0; s < T; s++) {
        float want = s == 2 || s == 3 ? 0.0f : before[5 * T + s] / left;
        assert_near((double)after[5 * T + s], (double)want, 1e-5, "share");
        assert_near((double)after[6 * T + s], (double)before[6 * T + s], 1e-6, "share of another token");
        assert_true(after[2 * T + s] == 0.0f);
    }
    look_again(&o, NULL); /* nothing stays cut */
    inspect_attention(&o.x, 0, 1, after);
    assert_same_numbers(after, before, T * T, "share");
    close_model(&o);
}

static void test_edges_cut(void **state) {
    check_edges_cut(SCORE_SCALED_DOT, 0, 0.0);
    check_edges_cut(SCORE_DOT, 0, 3.0);
    check_edges_cut(SCORE_COSINE, 6, 0.0);
    check_edges_cut(SCORE_L2, 0, 2.0);
    check_edges_cut(SCORE_DOT2, 7, 4.0);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kinds), cmocka_unit_test(test_wide_vocabulary),
                                       cmocka_unit_test(test_head_off), cmocka_unit_test(test_edges_cut)};
    return test_main(argc, argv, tests, NULL, NULL);
}
