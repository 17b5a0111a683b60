/* ZeRO: every level, number of ranks and accumulation against one process that sees the same tokens,
 * with the communicator of poison_comm.h, which makes a missing wait() visible, and with the CPU's
 * communicator itself. */
#include "test/test.h"

#include "test/ranks/zero_run.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* --- results --- */

static const char *text(const struct zero_run *r) {
    static char buffer[128];
    snprintf(buffer, sizeof buffer, "%s, %" PRId64 " ranks, level %d, accumulation %" PRId64, r->config->name,
             r->world, (int)r->level, r->accumulation);
    return buffer;
}

static void same_bits(const struct zero_run *r, const struct zero_result *a, const struct zero_result *b) {
    struct gpt_params layout;
    gpt_params_layout(&layout, r->config);
    size_t bytes = (size_t)layout.total * sizeof(float);
    if (memcmp(a->loss, b->loss, sizeof a->loss) != 0) fail_msg("%s: other losses", text(r));
    if (memcmp(a->norm, b->norm, sizeof a->norm) != 0) fail_msg("%s: other norms", text(r));
    if (memcmp(&a->validation, &b->validation, sizeof a->validation) != 0)
        fail_msg("%s: validation %.9g and %.9g", text(r), (double)a->validation, (double)b->validation);
    if (memcmp(a->generated, b->generated, sizeof a->generated) != 0) fail_msg("%s: other tokens", text(r));
    if (memcmp(a->params, b->params, bytes) != 0) fail_msg("%s: other parameters", text(r));
    if (memcmp(a->m, b->m, bytes) != 0 || memcmp(a->v, b->v, bytes) != 0)
        fail_msg("%s: other moments", text(r));
}

static void near(const struct zero_run *r, const char *what, double got, double want, double scale) {
    /* Muon lifts small singular values, and the rounding in them, by up to 3.4445^5 = 485. */
    double error = r->optimizer == OPTIMIZER_MUON ? 1e-5 : 1e-6;
    if (!(fabs(got - want) <= error * scale)) fail_msg("%s: %s is %.9g, not %.9g", text(r), what, got, want);
}

/* The same but for rounding: of a number; in a tensor, of its largest element and of as far as the updates
 * could move it, because those of AdamW are a quotient of gradients, whose rounding does not shrink with a
 * small parameter. */
static void same_values(const struct zero_run *r, const struct zero_result *a, const struct zero_result *b) {
    struct gpt_params layout;
    gpt_params_layout(&layout, r->config);
    double moved = (double)ZERO_LEARNING_RATE * (double)(r->first_step + r->steps);
    for (int64_t i = r->first_step; i < r->first_step + r->steps; i++) {
        near(r, "a loss", (double)a->loss[i], (double)b->loss[i], (double)b->loss[i]);
        near(r, "a norm", (double)a->norm[i], (double)b->norm[i], (double)b->norm[i]);
    }
    for (int id = 0; id < PARAM_ROWS; id++) {
        const struct param_row *row = &gpt_param_rows[id];
        int64_t n = gpt_dim_size(r->config, row->rows) * gpt_dim_size(r->config, row->cols);
        for (int64_t l = 0; l < gpt_param_copies(r->config, (enum param_id)id); l++) {
            const float *x = a->params + layout.offset[id] + l * layout.stride[id];
            const float *y = b->params + layout.offset[id] + l * layout.stride[id];
            double most = 0;
            for (int64_t i = 0; i < n; i++) most = max_f64(most, fabs((double)y[i]));
            for (int64_t i = 0; i < n; i++)
                near(r, gpt_param_name((enum param_id)id, l), (double)x[i], (double)y[i], most + moved);
        }
    }
    for (int64_t i = 0; i < layout.total; i++) assert_true(isfinite(a->params[i])); /* the gaps, too */
}

/* --- the tests --- */

enum { MOST_RANKS = 4 };

/* Channels that leave gaps between the tensors, a vocabulary that nothing divides, T below the context. */
static const struct gpt_config odd = GPT2_CONFIG("odd", 13, 131, 3, 2, 10);
/* One block, so one slot; of 512 elements, of which the last of three ranks has none. */
static const struct gpt_config least = GPT2_CONFIG("least", 4, 37, 1, 1, 4);
static const struct gpt_config even = GPT2_CONFIG("even", 8, 128, 4, 2, 16);

static void check_levels(const struct gpt_config *config, int64_t T, enum optimizer_kind optimizer) {
    struct zero_run one = {.config = config,
                           .optimizer = optimizer,
                           .B = 2,
                           .T = T,
                           .world = 1,
                           .steps = ZERO_STEPS,
                           .look = true};
    for (int64_t world = 1; world <= MOST_RANKS; world++)
        for (int64_t accumulation = 1; accumulation <= 3; accumulation += 2) {
            one.accumulation = world * accumulation;
            struct zero_result *want = zero_run(&one), *level[4];
            struct zero_run r = one;
            r.world = world;
            r.accumulation = accumulation;
            for (int i = 0; i < 4; i++) {
                r.level = (enum zero_level)i;
                level[i] = zero_run(&r);
                same_values(&r, level[i], want);
                /* levels 2 and 3 add the micro-steps up after the ranks, 0 and 1 before */
                same_bits(&r, level[i], level[accumulation == 1 || i < 2 ? 0 : 2]);
                for (int64_t s = 0; s < ZERO_STEPS; s++)
                    assert_true(level[i]->norm[s] > 0.1f); /* every second update is clipped */
            }
            if (world == 1) same_bits(&r, level[0], want);
            for (int i = 0; i < 4; i++) zero_run_free(level[i], config);
            zero_run_free(want, config);
        }
}

static void levels_odd(void **state) { check_levels(&odd, 7, OPTIMIZER_ADAMW); }
static void levels_least(void **state) { check_levels(&least, 4, OPTIMIZER_ADAMW); }
static void levels_even(void **state) { check_levels(&even, 8, OPTIMIZER_ADAMW); }
static void levels_of_muon(void **state) {
    check_levels(&odd, 7, OPTIMIZER_MUON); /* 3 blocks for up to 4 ranks */
    check_levels(&least, 4, OPTIMIZER_MUON);
}
static void levels_of_lion(void **state) { check_levels(&even, 8, OPTIMIZER_LION); }

/* Four ranks in two teams of two, and in four of one. The norms are added in another order, so a clipped
 * update differs by rounding; the sums of gradients have the same bits. */
static void teams(void **state) {
    struct zero_run r = {.config = &odd, .B = 2, .T = 7, .world = 4, .look = true};
    for (int kind = OPTIMIZER_ADAMW; kind <= OPTIMIZER_LION; kind++) {
        r.optimizer = (enum optimizer_kind)kind;
        for (int level = ZERO_NONE; level <= ZERO_PARAMETERS; level++) {
            r.level = (enum zero_level)level;
            r.team = 0;
            r.steps = ZERO_STEPS;
            r.accumulation = 3;
            struct zero_result *want = zero_run(&r), *two;
            r.team = 2;
            two = zero_run(&r);
            same_values(&r, two, want);
            r.team = 1;
            struct zero_result *one = zero_run(&r);
            same_values(&r, one, want);
            zero_run_free(one, &odd);
            zero_run_free(two, &odd);
            zero_run_free(want, &odd);
            r.steps = 1;                                     /* not clipped */
            r.accumulation = level < ZERO_GRADIENTS ? 3 : 1; /* else the sum so far is added elsewhere */
            r.team = 0;
            want = zero_run(&r);
            r.team = 2;
            two = zero_run(&r);
            two->norm[0] = want->norm[0];
            same_bits(&r, two, want);
            zero_run_free(two, &odd);
            zero_run_free(want, &odd);
        }
    }
}

/* Attention by other rules, and documents: no level or number of ranks changes the values. */
static void kinds_of_attention(void **state) {
    static const struct {
        enum gpt_score score;
        enum gpt_mask mask;
        int64_t window;
        double softcap;
        bool documents;
    } kinds[] = {{SCORE_DOT, MASK_CAUSAL, 0, 0, false},       {SCORE_COSINE, MASK_WINDOW, 3, 0, false},
                 {SCORE_L2, MASK_FULL, 0, 2, false},          {SCORE_DOT2, MASK_ANTI_CAUSAL, 0, 0, false},
                 {SCORE_SCALED_DOT, MASK_CAUSAL, 0, 0, true}, {SCORE_SCALED_DOT, MASK_WINDOW, 3, 2, true}};
    for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++) {
        struct gpt_config config = even;
        config.score = kinds[i].score;
        config.mask = kinds[i].mask;
        config.window = kinds[i].window;
        config.softcap = kinds[i].softcap;
        struct zero_run r = {.config = &config,
                             .B = 2,
                             .T = 8,
                             .world = 1,
                             .accumulation = 3,
                             .steps = 3,
                             .documents = kinds[i].documents};
        struct zero_result *want = zero_run(&r);
        r.world = 3;
        r.accumulation = 1;
        for (int level = ZERO_NONE; level <= ZERO_PARAMETERS; level++) {
            r.level = (enum zero_level)level;
            struct zero_result *got = zero_run(&r);
            same_values(&r, got, want);
            zero_run_free(got, &config);
        }
        zero_run_free(want, &config);
    }
}

/* The communicator without poison, with many collectives started at a time. */
static void without_poison(void **state) {
    for (int level = 0; level < 4; level++) {
        struct zero_run r = {.config = &odd,
                             .B = 2,
                             .T = 7,
                             .world = 3,
                             .accumulation = 2,
                             .steps = ZERO_STEPS,
                             .level = (enum zero_level)level,
                             .look = true};
        struct zero_result *want = zero_run(&r);
        r.direct = true;
        struct zero_result *got = zero_run(&r);
        same_bits(&r, got, want);
        zero_run_free(want, &odd);
        zero_run_free(got, &odd);
    }
}

static void recomputed(void **state) {
    struct zero_run r = {
        .config = &odd, .B = 1, .T = 7, .world = 2, .accumulation = 2, .steps = 3, .level = ZERO_PARAMETERS};
    struct zero_result *base = zero_run(&r);
    for (int i = RECOMPUTE_ACT; i <= RECOMPUTE_BLOCK; i++) {
        r.recompute = (enum recompute)i;
        struct zero_result *other = zero_run(&r);
        same_bits(&r, other, base);
        zero_run_free(other, &odd);
    }
    zero_run_free(base, &odd);
}

/* One NaN in the gradient of one rank: no rank applies that update, and the run goes on. */
static void nan_on_one_rank(void **state) {
    for (int i = 0; i < 4 * 3; i++) {
        struct zero_run r = {.config = &odd,
                             .B = 1,
                             .T = 7,
                             .world = 3,
                             .accumulation = 2,
                             .steps = 3,
                             .level = (enum zero_level)(i % 4),
                             .optimizer = (enum optimizer_kind)(i / 4)};
        struct zero_result *before = zero_run(&r);
        r.steps = 4;
        r.nan_step = 3;
        r.nan_rank = 1;
        struct zero_result *skipped = zero_run(&r);
        struct gpt_params layout;
        gpt_params_layout(&layout, &odd);
        size_t bytes = (size_t)layout.total * sizeof(float);
        assert_true(isnan(skipped->norm[3]));
        assert_memory_equal(before->params, skipped->params, bytes);
        assert_memory_equal(before->m, skipped->m, bytes);
        assert_memory_equal(before->v, skipped->v, bytes);
        r.steps = 5;
        struct zero_result *after = zero_run(&r);
        assert_true(isfinite(after->norm[4]) && isfinite(after->loss[4]));
        assert_true(memcmp(after->params, before->params, bytes) != 0);
        for (int64_t k = 0; k < layout.total; k++) assert_true(isfinite(after->params[k]));
        zero_run_free(before, &odd);
        zero_run_free(skipped, &odd);
        zero_run_free(after, &odd);
    }
}

/* Values that one run stored, read by another number of ranks at another level. */
static void goes_on_elsewhere(void **state) {
    static const struct {
        int64_t world;
        enum zero_level level;
    } kinds[] = {{1, ZERO_NONE}, {2, ZERO_PARAMETERS}, {4, ZERO_OPTIMIZER}, {4, ZERO_PARAMETERS}};
    for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++)
        for (size_t k = 0; k < ARRAY_LENGTH(kinds); k++) {
            struct zero_run r = {.config = &odd, .B = 1, .T = 7, .steps = ZERO_STEPS};
            r.optimizer = (i + k) % 2 ? OPTIMIZER_MUON : OPTIMIZER_ADAMW;
            r.world = kinds[i].world;
            r.level = kinds[i].level;
            r.accumulation = 4 / r.world;
            struct zero_result *whole = zero_run(&r);
            r.steps = 3;
            struct zero_result *half = zero_run(&r);
            r.world = kinds[k].world;
            r.level = kinds[k].level;
            r.accumulation = 4 / r.world;
            r.first_step = 3;
            r.from = half;
            struct zero_result *rest = zero_run(&r);
            same_values(&r, rest, whole);
            if (i == k) assert_memory_equal(rest->loss + 3, whole->loss + 3, 3 * sizeof(float));
            zero_run_free(whole, &odd);
            zero_run_free(half, &odd);
            zero_run_free(rest, &odd);
        }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_odd),         cmocka_unit_test(levels_least),
        cmocka_unit_test(levels_even),        cmocka_unit_test(without_poison),
        cmocka_unit_test(recomputed),         cmocka_unit_test(nan_on_one_rank),
        cmocka_unit_test(goes_on_elsewhere),  cmocka_unit_test(levels_of_muon),
        cmocka_unit_test(levels_of_lion),     cmocka_unit_test(teams),
        cmocka_unit_test(kinds_of_attention),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
