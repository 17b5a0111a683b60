/* Training on the CUDA back end, on a GPU or on the simulated one: ten steps against the CPU reference, the
 * same bits twice and at every recomputation level, a recorded graph against plain calls, checkpoints
 * between devices. Generation of several texts at once.
 *
 *     LLMC_TEST_SIZE=small test_cuda_train     only one step against the CPU, for a race checker */
#include "test/scratch.h"

#include "llmc/format/checkpoint.h"
#include "llmc/base/file.h"
#include "llmc/base/rng.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- running steps --- */

/* Heads of 16 columns, which attention's tensor-core variants take in bf16; odd sizes otherwise. */
static const struct gpt_config small = GPT2_CONFIG("small", 20, 70, 2, 2, 32);
enum { B = 3, T = 19, STEPS = 10, MICRO = 2 };

struct trainer {
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer optimizer;
};

/* Of the trainers that are opened next. */
static enum optimizer_kind kind = OPTIMIZER_ADAMW;
static struct lora_options adapters; /* rank 0: the model itself is trained */
static bool documents;               /* several in a sequence */
static const struct gpt_config *model = &small;

static void trainer_open(struct trainer *t, bool cuda, enum dtype dtype, enum recompute recompute) {
    struct error err;
    t->device = cuda ? device_open_cuda(0, NULL, &err) : device_open_cpu();
    check(t->device, "%s", err.message);
    ctx_init(&t->ctx, t->device, t->device->ops, false);
    struct gpt_options options = {
        .B = B, .T = T, .train = true, .recompute = recompute, .dtype = dtype, .lora = adapters};
    options.documents = documents;
    gpt_create(&t->gpt, &t->ctx, model, &options);
    optimizer_create(&t->optimizer, &t->gpt,
                     (struct optimizer_options){.kind = kind, .master_weights = dtype != DTYPE_F32});
    gpt_init_weights(&t->gpt, 7);
    if (adapters.rank) lora_init_weights(&t->gpt, 7);
    optimizer_copy_master(&t->optimizer, &t->gpt);
}

static void trainer_close(struct trainer *t) {
    ctx_free(&t->ctx);
    t->device->close(t->device);
}

/* A batch of the sequence 3x+1 modulo the vocabulary, from random starts. Some targets are ignored, a
 * different number in each batch. Returns the number of targets. */
static int batch_of(int32_t *tokens, int32_t *targets, int64_t number) {
    int valid = 0;
    for (int b = 0; b < B; b++) {
        int32_t x =
            (int32_t)(rng_uniform(3, RNG_TEST, (uint64_t)(number * B + b)) * (double)small.vocab_size);
        for (int i = 0; i < T; i++) {
            tokens[b * T + i] = x;
            x = (3 * x + 1) % (int32_t)small.vocab_size;
            targets[b * T + i] = i < number % 5 ? -1 : x;
            valid += targets[b * T + i] >= 0;
        }
    }
    return valid;
}

/* One step of MICRO micro-batches. Returns its loss. With `graphs`, micro-steps are recorded once and
 * replayed, although the scale of the losses differs between steps. */
static double step(struct trainer *t, int64_t number, void **graphs) {
    int32_t tokens[MICRO][B * T], targets[MICRO][B * T];
    int32_t first[B * T];
    int valid = 0;
    for (int i = 0; i < B * T; i++) { /* of 1 to 7 tokens, others in each step */
        int begins = i % T == 0 || (i * i + number) % 7 == 0;
        first[i] = begins ? i % T : first[i - 1];
    }
    for (int i = 0; i < MICRO; i++) valid += batch_of(tokens[i], targets[i], number * MICRO + i);
    gpt_set_loss_scale(&t->gpt, 1.0f / (float)valid);
    for (int i = 0; i < MICRO; i++) {
        gpt_set_batch(&t->gpt, tokens[i], targets[i]);
        gpt_set_documents(&t->gpt, first, NULL);
        t->device->synchronize(t->device, t->ctx.stream); /* the batch is on the stack */
        if (!graphs || number == 0) {
            gpt_forward_backward(&t->gpt, i == 0);
            continue;
        }
        if (!graphs[i]) {
            t->device->capture_begin(t->device, t->ctx.stream);
            gpt_forward_backward(&t->gpt, i == 0);
            graphs[i] = t->device->capture_end(t->device, t->ctx.stream);
        }
        t->device->graph_launch(t->device, graphs[i], t->ctx.stream);
    }
    struct update_args args = {.lr = 3e-3f,
                               .beta1 = 0.9f,
                               .beta2 = 0.95f,
                               .eps = 1e-8f,
                               .weight_decay = 0.1f,
                               .max_norm = 1.0f,
                               .step = number + 1,
                               .seed = 5,
                               .momentum = 0.9f,
                               .muon_lr = 1e-2f,
                               .embedding_lr = 6e-3f};
    optimizer_step(&t->optimizer, &t->gpt, &args);
    float loss;
    ctx_download(&t->ctx, &loss, f32(&t->gpt.numbers) + STEP_LOSS, sizeof loss);
    return (double)loss;
}

struct outcome {
    int steps;
    double loss[STEPS];
    float *params; /* as fp32 */
    int64_t count;
};

static struct outcome train(bool cuda, enum dtype dtype, enum recompute recompute, bool graph) {
    struct trainer t;
    struct outcome o = {0};
    void *graphs[MICRO] = {NULL, NULL};
    trainer_open(&t, cuda, dtype, recompute);
    const char *size = getenv("LLMC_TEST_SIZE");
    o.steps = size && strcmp(size, "small") == 0 ? 1 : STEPS;
    for (int i = 0; i < o.steps; i++) o.loss[i] = step(&t, i, graph ? graphs : NULL);
    const struct tensor *params = adapters.rank ? &t.gpt.lora.params : &t.gpt.params;
    o.count = tensor_count(params);
    o.params = (float *)xmalloc((size_t)o.count * sizeof *o.params);
    ctx_download_f32(&t.ctx, o.params, params);
    for (int i = 0; i < MICRO; i++)
        if (graphs[i]) t.device->graph_free(t.device, graphs[i]);
    trainer_close(&t);
    return o;
}

static void assert_identical(const struct outcome *a, const struct outcome *b, const char *what) {
    if (memcmp(a->loss, b->loss, (size_t)a->steps * sizeof *a->loss)) fail_msg("%s: losses differ", what);
    if (memcmp(a->params, b->params, (size_t)a->count * sizeof *a->params))
        fail_msg("%s: parameters differ", what);
}

/* --- against the CPU --- */

static void test_fp32_equals_the_cpu(void **state) {
    struct outcome cpu = train(false, DTYPE_F32, RECOMPUTE_NONE, false),
                   gpu = train(true, DTYPE_F32, RECOMPUTE_NONE, false);
    for (int i = 0; i < gpu.steps; i++)
        if (!(fabs(gpu.loss[i] - cpu.loss[i]) <= 1e-5 * cpu.loss[i]))
            fail_msg("step %d: loss %.9g, on the CPU %.9g", i + 1, gpu.loss[i], cpu.loss[i]);
    assert_true(cpu.steps == 1 ||
                cpu.loss[STEPS - 1] < cpu.loss[0] - (adapters.rank ? 0.01 : 0.1)); /* it learns */
    free(cpu.params);
    free(gpu.params);
}

/* A loss is the mean of B*T*MICRO = 114 values, each with the error of its logits: about 2^-9 of a logit
 * times the square root of the roundings on its way (about 25). That is 2^-9 * 5 / sqrt(114) of a typical
 * logit, which is below 1 here, or 1e-3 of the loss. Differences of weights add to that over the steps, so
 * twice that is allowed at the end. */
static void test_bf16_follows_the_cpu(void **state) {
    struct outcome cpu = train(false, DTYPE_F32, RECOMPUTE_NONE, false),
                   gpu = train(true, DTYPE_BF16, RECOMPUTE_NONE, false);
    for (int i = 0; i < gpu.steps; i++)
        if (!(fabs(gpu.loss[i] - cpu.loss[i]) <= 1e-3 * (1.0 + (double)i / STEPS) * cpu.loss[i]))
            fail_msg("step %d: loss %.9g, on the CPU %.9g", i + 1, gpu.loss[i], cpu.loss[i]);
    free(cpu.params);
    free(gpu.params);
}

static void test_muon_and_lion_equal_the_cpu(void **state) {
    for (kind = OPTIMIZER_MUON; kind <= OPTIMIZER_LION; kind++) test_fp32_equals_the_cpu(state);
    kind = OPTIMIZER_ADAMW;
}
/* An update that is rounded to bf16 at each of its steps is off by about 1 % in random directions, of which
 * the loss sees little. */
static void test_bf16_muon_follows_the_cpu(void **state) {
    kind = OPTIMIZER_MUON;
    test_bf16_follows_the_cpu(state);
    kind = OPTIMIZER_ADAMW;
}

static void test_adapters_follow_the_cpu(void **state) {
    adapters = (struct lora_options){3, 8.0f, 1u << LORA_QKV | 1u << LORA_DOWN};
    test_fp32_equals_the_cpu(state);
    test_bf16_follows_the_cpu(state);
    struct outcome base = train(true, DTYPE_BF16, RECOMPUTE_NONE, false),
                   again = train(true, DTYPE_BF16, RECOMPUTE_BLOCK, true);
    assert_identical(&base, &again, "adapters, recomputed in recorded graphs");
    free(base.params);
    free(again.params);
    kind = OPTIMIZER_MUON;
    test_fp32_equals_the_cpu(state);
    test_bf16_follows_the_cpu(state);
    kind = OPTIMIZER_ADAMW;
    adapters.rank = 0;
}

static void test_documents_follow_the_cpu(void **state) {
    documents = true;
    test_fp32_equals_the_cpu(state);
    test_bf16_follows_the_cpu(state);
    struct outcome base = train(true, DTYPE_BF16, RECOMPUTE_NONE, false),
                   again = train(true, DTYPE_BF16, RECOMPUTE_BLOCK, true);
    assert_identical(&base, &again, "documents, recomputed in recorded graphs");
    free(base.params);
    free(again.params);
    documents = false;
}

/* Norms without weights, one of the embedding, and a cap that bends the logits. */
static void test_a_nanochat_follows_the_cpu(void **state) {
    struct gpt_config nanochat,
        shape = {.context = 20, .vocab_size = 70, .heads = 2, .channels = 32, .logit_softcap = 0.5};
    struct error err;
    check(gpt_config_from_name(&nanochat, "nanochat-d2", &shape, &err), "%s", err.message);
    model = &nanochat;
    test_fp32_equals_the_cpu(state);
    test_bf16_follows_the_cpu(state);
    struct outcome base = train(true, DTYPE_BF16, RECOMPUTE_NONE, false),
                   again = train(true, DTYPE_BF16, RECOMPUTE_BLOCK, true);
    assert_identical(&base, &again, "a nanochat, recomputed in recorded graphs");
    free(base.params);
    free(again.params);
    model = &small;
}

/* --- against itself --- */

static void test_same_bits(void **state) {
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        struct outcome base = train(true, (enum dtype)dtype, RECOMPUTE_NONE, false);
        struct outcome again = train(true, (enum dtype)dtype, RECOMPUTE_NONE, true);
        assert_identical(&base, &again, "recorded graphs");
        free(again.params);
        for (int level = RECOMPUTE_ACT; level <= RECOMPUTE_BLOCK; level++) {
            struct outcome other = train(true, (enum dtype)dtype, (enum recompute)level, false);
            assert_identical(&base, &other, "recomputation");
            free(other.params);
        }
        free(base.params);
    }
}

/* --- checkpoints --- */

/* A checkpoint after five steps on one device continues on another. The remaining steps equal the
 * uninterrupted run, to the bit on the same kind of device, and to rounding across devices. */
static void resume_on(bool from_cuda, bool to_cuda, enum dtype dtype, double tolerance) {
    char directory[] = "/tmp/llmc-cuda-XXXXXX";
    struct error err;
    struct trainer a, b;
    struct train_state state = {.step = 5, .options = json_object()};
    assert_non_null(mkdtemp(directory));
    trainer_open(&a, from_cuda, from_cuda ? dtype : DTYPE_F32, RECOMPUTE_NONE);
    trainer_open(&b, to_cuda, to_cuda ? dtype : DTYPE_F32, RECOMPUTE_NONE);
    for (int i = 0; i < 5; i++) step(&a, i, NULL);
    struct zero from = {.gpt = &a.gpt, .optimizer = &a.optimizer},
                to = {.gpt = &b.gpt, .optimizer = &b.optimizer};
    if (!checkpoint_save(directory, &from, NULL, &state, &err)) fail_msg("%s", err.message);
    char *path = checkpoint_find(directory, &err);
    if (!path) fail_msg("%s", err.message);
    if (!checkpoint_load_parameters(&to, path, &err) || !checkpoint_load_moments(&to, path, &err))
        fail_msg("%s", err.message);
    for (int i = 5; i < STEPS; i++) {
        double want = step(&a, i, NULL), got = step(&b, i, NULL);
        if (!(fabs(got - want) <= tolerance * want))
            fail_msg("step %d: loss %.9g, not %.9g", i + 1, got, want);
    }
    free(path);
    train_state_free(&state);
    trainer_close(&a);
    trainer_close(&b);
    if (!remove_tree(directory)) fail_msg("%s: cannot be removed", directory);
}

static void test_resume(void **state) {
    resume_on(true, true, DTYPE_F32, 0.0);
    resume_on(true, true, DTYPE_BF16, 0.0);
    kind = OPTIMIZER_MUON;
    resume_on(true, true, DTYPE_BF16, 0.0);
    kind = OPTIMIZER_ADAMW;
}

static void test_checkpoints_change_devices(void **state) {
    resume_on(true, false, DTYPE_F32, 1e-5);
    resume_on(false, true, DTYPE_F32, 1e-5);
    resume_on(true, false, DTYPE_BF16, 2e-3); /* see test_bf16_follows_the_cpu */
    resume_on(false, true, DTYPE_BF16, 2e-3);
}

/* --- generation --- */

/* Sequences of 1, 2 and 3 tokens that go on together have the logits that each has alone. */
static void test_several_texts(void **state) {
    enum { TEXTS = 3, V = 70 };
    static const int32_t tokens[TEXTS][20] = {{3, 1, 4, 1, 5}, {9, 2, 6, 5, 3}, {58, 9, 7, 9, 3}};
    float expected[256], *logits = (float *)xmalloc(TEXTS * 256 * sizeof *logits);
    for (int half = 0; half < 2; half++) {
        struct error err;
        struct device *device = device_open_cuda(0, NULL, &err);
        check(device, "%s", err.message);
        struct ctx ctx;
        struct gpt gpt;
        ctx_init(&ctx, device, device->ops, false);
        struct gpt_options options = {
            .B = 1, .T = 20, .caches = 2 * TEXTS, .dtype = half ? DTYPE_BF16 : DTYPE_F32, .init_std = 0.2f};
        gpt_create(&gpt, &ctx, &small, &options);
        gpt_init_weights(&gpt, 7);
        int64_t Vp = gpt_padded_vocab(&small);
        for (int64_t i = 0; i < 2 * TEXTS;
             i++) { /* each in a cache of those together, and in one of those alone */
            gpt_use_cache(&gpt, i);
            gpt_set_batch(&gpt, tokens[i % TEXTS], NULL);
            gpt_forward(&gpt, 0, i % TEXTS + 1);
        }
        for (int64_t step = 1; step <= 2; step++) {
            struct gpt_next next[TEXTS];
            for (int64_t i = 0; i < TEXTS; i++) next[i] = (struct gpt_next){i, i + step, tokens[i][i + step]};
            gpt_forward_next(&gpt, next, TEXTS);
            gpt_next_logits(&gpt, TEXTS, logits);
            for (int64_t i = 0; i < TEXTS; i++) {
                gpt_use_cache(&gpt, TEXTS + i);
                gpt_set_batch(&gpt, tokens[i], NULL);
                gpt_forward(&gpt, i + step, 1);
                gpt_logits(&gpt, i + step, expected);
                for (int64_t v = 0; v < V; v++) {
                    float x = logits[i * Vp + v], error = fabsf(x - expected[v]);
                    if (!(error <= (half ? 0.05f : 1e-5f)))
                        fail_msg("text %d, logit %d: %g, alone %g", (int)i, (int)v, (double)x,
                                 (double)expected[v]);
                }
            }
        }
        ctx_free(&ctx);
        device->close(device);
    }
    free(logits);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp32_equals_the_cpu),
        cmocka_unit_test(test_bf16_follows_the_cpu),
        cmocka_unit_test(test_muon_and_lion_equal_the_cpu),
        cmocka_unit_test(test_bf16_muon_follows_the_cpu),
        cmocka_unit_test(test_adapters_follow_the_cpu),
        cmocka_unit_test(test_documents_follow_the_cpu),
        cmocka_unit_test(test_a_nanochat_follows_the_cpu),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_checkpoints_change_devices),
        cmocka_unit_test(test_several_texts),
    };
    const char *size = getenv("LLMC_TEST_SIZE");
    if (size && strcmp(size, "small") == 0) cmocka_set_test_filter("test_*_the_cpu");
    return test_main(argc, argv, tests, NULL, NULL);
}
