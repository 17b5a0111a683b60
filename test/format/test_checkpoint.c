/* Checkpoints: exact round trips between devices and precisions, the Hugging Face layout, training across a
 * checkpoint. Order as in main(). */
#include "test/format/checkpoint.h"

#include <inttypes.h>
#include <xxhash.h>

/* --- round trips --- */

static void round_trip_is_exact(void **state) {
    struct model *painted = *state;
    const char *run = in_scratch("new/run");
    save(run, painted, 12345);
    assert_int_equal(count_entries(run), 1);
    const char *dir = in_scratch("new/run/step-00012345");
    assert_int_equal(count_entries(dir), 5);
    assert_loads_as(dir, painted);
    struct gpt_config config;
    struct error err;
    ASSERT_OK(checkpoint_config(&config, dir, &err), err);
    assert_null(gpt_config_difference(&config, &small));
}

static void state_round_trip(void **state) {
    struct model *painted = *state;
    struct error err;
    const double bests[] = {2.718281828459045, 1e-300, -0.1, NAN, INFINITY};
    for (size_t i = 0; i < ARRAY_LENGTH(bests); i++) {
        struct train_state in = state_at(100 + (int64_t)i), out;
        in.best_val_loss = bests[i];
        in.data = i == 0 ? UINT64_MAX : i;
        in.contents = in.data + 1;
        in.validation = in.data + 2;
        in.epoch_samples = (int64_t)i << 40;
        if (i == 1) in.extra = json_pack("{s:[f, f]}", "window", 0.1, 1e-20);
        if (i == 2) {
            json_decref(in.options);
            in.options = NULL;
        }
        ASSERT_OK(checkpoint_save(scratch_directory(), &painted->zero, NULL, &in, &err), err);
        ASSERT_OK(checkpoint_load_state(&out, in_scratch("step-%08" PRId64, in.step), &err), err);
        assert_int_equal(out.step, in.step);
        assert_int_equal(out.sample, in.sample);
        assert_int_equal(out.tokens, in.tokens);
        assert_true(out.data == in.data && out.contents == in.contents && out.validation == in.validation);
        assert_int_equal(out.epoch_samples, in.epoch_samples);
        if (isfinite(bests[i]))
            assert_memory_equal(&out.best_val_loss, &bests[i], sizeof bests[i]);
        else
            assert_true(isnan(out.best_val_loss));
        assert_true(in.options ? json_equal(in.options, out.options) : out.options == NULL);
        assert_true(in.extra ? json_equal(in.extra, out.extra) : out.extra == NULL);
        train_state_free(&in);
        train_state_free(&out);
    }
}

/* Sizes around the piece of a million elements that loading works in, and a wide model. */
/* A checkpoint from before a key existed can be resumed, but the key must be right if it is there. */
static void state_of_an_older_version(void **state) {
    static const struct {
        const char *keys;
        bool good;
    } cases[] = {{"", true},
                 {", \"contents\": \"00000000000000ff\", \"epoch_samples\": 3", true},
                 {", \"contents\": 255", false},
                 {", \"validation\": \"ff\"", false},
                 {", \"epoch_samples\": -1", false}};
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        char *body = xasprintf("{\"format\": 1, \"step\": 3, \"sample\": 24, \"tokens\": 96, \"data\": "
                               "\"00000000000000aa\"%s",
                               cases[i].keys);
        char *text = xasprintf("%s,\n  \"xxh3\": \"%016" PRIx64 "\"\n}\n", body,
                               (uint64_t)XXH3_64bits(body, strlen(body)));
        struct train_state st;
        struct error err = {""};
        put_text("trainer.json", text);
        bool ok = checkpoint_load_state(&st, scratch_directory(), &err);
        if (ok != cases[i].good) fail_msg("%s: %s", text, err.message);
        if (ok) {
            assert_int_equal(st.sample, 24);
            assert_true(st.contents == (i ? 255 : 0) && st.validation == 0);
            assert_int_equal(st.epoch_samples, i ? 3 : 0);
        }
        train_state_free(&st);
        free(text);
        free(body);
    }
}

static void large_tensors(void **state) {
    static const struct gpt_config configs[] = {
        GPT2_CONFIG("many tokens", 3, 70001, 1, 1, 33),
        GPT2_CONFIG("wide", 2, 5, 1, 1, 771),
    };
    for (size_t i = 0; i < ARRAY_LENGTH(configs); i++) {
        struct model m;
        model_make(&m, &configs[i], DTYPE_F32, false);
        paint_model(&m, 5);
        save(scratch_directory(), &m, (int64_t)i);
        assert_loads_as(in_scratch("step-%08d", (int)i), &m);
        model_free(&m);
    }
}

static void master_weights_are_the_model_file(void **state) {
    struct model m;
    struct error err;
    model_make(&m, &small, DTYPE_BF16, true);
    paint_model(&m, 77);
    save(scratch_directory(), &m, 1);
    const char *dir = in_scratch("step-00000001");
    assert_loads_as(dir, &m); /* bf16 parameters and fp32 masters, bit for bit */

    /* The same checkpoint in an fp32 model: its parameters are the masters. */
    struct model fp32;
    model_make(&fp32, &small, DTYPE_F32, false);
    ASSERT_OK(checkpoint_load_weights(&fp32.gpt, dir, &err), err);
    ASSERT_OK(checkpoint_load_moments(&fp32.zero, dir, &err), err);
    assert_same(&fp32.gpt.params, &m.opt.master);
    assert_same(&fp32.opt.v, &m.opt.v);

    /* ... and a checkpoint of that goes back to bf16 with masters, also without the optimizer's file. */
    save(scratch_directory(), &fp32, 2);
    assert_loads_as(in_scratch("step-00000002"), &m);
    struct model tuned;
    model_make(&tuned, &small, DTYPE_BF16, true);
    dir = in_scratch("step-00000002");
    ASSERT_OK(checkpoint_load_parameters(&tuned.zero, dir, &err), err);
    assert_same(&tuned.opt.master, &m.opt.master);
    assert_same(&tuned.gpt.params, &m.gpt.params);
    model_free(&tuned);
    model_free(&fp32);
    model_free(&m);
}

static void bf16_without_masters(void **state) {
    struct model m, fp32;
    struct error err;
    struct safetensors st;
    model_make(&m, &small, DTYPE_BF16, false);
    paint_model(&m, 78);
    save(scratch_directory(), &m, 1);
    const char *dir = in_scratch("step-00000001");
    assert_loads_as(dir, &m);
    ASSERT_OK(safetensors_open_directory(&st, dir, "model", &err), err);
    for (int64_t i = 0; i < st.count; i++) assert_int_equal(st.tensors[i].dtype, ST_BF16);
    safetensors_close(&st);
    model_make(&fp32, &small, DTYPE_F32, false);
    ASSERT_OK(checkpoint_load_weights(&fp32.gpt, dir, &err), err);
    for (int64_t i = 0; i < m.gpt.layout.total; i++)
        assert_true(f32(&fp32.gpt.params)[i] == f32_from_bf16(((uint16_t *)m.gpt.params.data)[i]));
    model_free(&fp32);
    model_free(&m);
}

static void tokenizer_travels_along(void **state) {
    struct model *painted = *state;
    struct error err = {""};
    struct tokenizer *bytes = tokenizer_bytes();
    struct model m;
    model_make(&m, &least, DTYPE_F32, false);
    paint_model(&m, 3);
    struct train_state at = state_at(8);
    ASSERT_OK(checkpoint_save(scratch_directory(), &m.zero, bytes, &at, &err), err);
    const char *dir = in_scratch("step-00000008");
    struct tokenizer *t = checkpoint_load_tokenizer(dir, &err);
    if (!t) fail_msg("%s", err.message);
    assert_int_equal(tokenizer_vocab_size(t), tokenizer_vocab_size(bytes));
    assert_true(tokenizer_hash(t) == tokenizer_hash(bytes));
    tokenizer_free(t);
    json_t *config = json_file_load(in_scratch("step-00000008/config.json"), &err);
    assert_int_equal(json_integer_value(json_object_get(config, "eos_token_id")), 256);
    assert_int_equal(json_integer_value(json_object_get(config, "bos_token_id")), 256);
    json_decref(config);
    char *text = get_text(in_scratch("step-00000008/tokenizer_config.json"));
    assert_string_equal(text, "{\n"
                              "  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n"
                              "  \"model_max_length\": 4,\n"
                              "  \"add_prefix_space\": false,\n"
                              "  \"clean_up_tokenization_spaces\": false,\n"
                              "  \"bos_token\": \"<|endoftext|>\",\n"
                              "  \"eos_token\": \"<|endoftext|>\"\n"
                              "}\n");
    free(text);

    /* A tokenizer with more tokens than the model. */
    at.step = 9;
    ASSERT_OK(checkpoint_save(scratch_directory(), &painted->zero, bytes, &at, &err), err);
    assert_null(checkpoint_load_tokenizer(in_scratch("step-00000009"), &err));
    assert_mentions(err.message, "257 tokens, its model only 37");
    put_text(in_scratch("step-00000009/tokenizer.json"), "{");
    assert_null(checkpoint_load_tokenizer(in_scratch("step-00000009"), &err));
    assert_true(err.message[0]);
    unlink(in_scratch("step-00000009/tokenizer.json"));
    assert_null(checkpoint_load_tokenizer(in_scratch("step-00000009"), &err));
    assert_string_equal(err.message, "");
    train_state_free(&at);
    tokenizer_free(bytes);
    model_free(&m);
}

/* Device memory behind addresses that the host cannot use, as on a GPU: everything must go through the
 * copies. */
#define MASK ((uintptr_t)1 << 62)

static void hide(struct tensor *t) { t->data = t->data ? (void *)((uintptr_t)t->data ^ MASK) : NULL; }

static int64_t largest_copy;

static void masked_upload(struct device *d, void *dst, const void *src, size_t bytes, void *stream) {
    assert_true((uintptr_t)dst & MASK);
    if ((int64_t)bytes > largest_copy) largest_copy = (int64_t)bytes;
    memcpy((void *)((uintptr_t)dst ^ MASK), src, bytes);
}

static void masked_download(struct device *d, void *dst, const void *src, size_t bytes, void *stream) {
    assert_true((uintptr_t)src & MASK);
    if ((int64_t)bytes > largest_copy) largest_copy = (int64_t)bytes;
    memcpy(dst, (const void *)((uintptr_t)src ^ MASK), bytes);
}

static void model_hide(struct model *m) {
    m->device->unified = false;
    m->device->upload = masked_upload;
    m->device->download = masked_download;
    hide(&m->gpt.params);
    hide(&m->opt.m);
    hide(&m->opt.v);
    hide(&m->opt.master);
}

static void device_memory_is_only_copied(void **state) {
    static const struct gpt_config tall = GPT2_CONFIG("tall", 3, 70001, 2, 1, 33);
    for (int kind = 0; kind < 3; kind++) {
        struct model m, other;
        struct error err;
        enum dtype dtype = kind ? DTYPE_BF16 : DTYPE_F32;
        model_make(&m, &tall, dtype, kind == 2);
        paint_model(&m, 4);
        model_hide(&m);
        largest_copy = 0;
        save(scratch_directory(), &m, kind);
        assert_in_range(largest_copy, 1, 16 << 20); /* in pieces */
        model_hide(&m);                             /* the other way round */
        assert_loads_as(in_scratch("step-%08d", kind), &m);
        model_make(&other, &tall, dtype, kind == 2);
        model_hide(&other);
        largest_copy = 0;
        const char *dir = in_scratch("step-%08d", kind);
        ASSERT_OK(checkpoint_load_parameters(&other.zero, dir, &err), err);
        ASSERT_OK(checkpoint_load_moments(&other.zero, dir, &err), err);
        assert_in_range(largest_copy, 1, 16 << 20);
        model_hide(&other);
        assert_same(&other.gpt.params, &m.gpt.params);
        assert_same(&other.opt.m, &m.opt.m);
        assert_same(&other.opt.v, &m.opt.v);
        if (kind == 2) assert_same(&other.opt.master, &m.opt.master);
        model_free(&other);
        model_free(&m);
    }
}

/* --- layout --- */

static void layout_is_hugging_faces(void **state) {
    struct model *painted = *state;
    struct error err;
    struct safetensors st;
    save(scratch_directory(), painted, 1);
    const char *dir = in_scratch("step-00000001");
    ASSERT_OK(safetensors_open_directory(&st, dir, "model", &err), err);
    assert_int_equal(st.count, 2 + 12 * small.layers + 2);
    assert_string_equal(safetensors_metadata(&st, "format"), "pt");
    assert_null(safetensors_find(&st, "lm_head.weight"));
    const struct st_view *v = safetensors_find(&st, "transformer.wte.weight");
    assert_non_null(v);
    assert_int_equal(v->dtype, ST_F32);
    assert_int_equal(v->dim[0], small.vocab_size); /* not padded */
    assert_int_equal(v->dim[1], small.channels);
    struct tensor wte = gpt_param(&painted->gpt, P_WTE, 0);
    assert_memory_equal(v->data, wte.data, (size_t)v->bytes);
    v = safetensors_find(&st, "transformer.h.2.mlp.c_proj.weight"); /* Conv1D: (in,out) */
    assert_non_null(v);
    assert_int_equal(v->dim[0], 4 * small.channels);
    assert_int_equal(v->dim[1], small.channels);
    struct tensor w = gpt_param(&painted->gpt, P_FCPROJ_W, 2); /* (C,4C) */
    const float *stored = v->data;
    for (int64_t o = 0; o < small.channels; o++)
        for (int64_t i = 0; i < 4 * small.channels; i++)
            assert_true(stored[i * small.channels + o] == f32(&w)[o * 4 * small.channels + i]);
    safetensors_close(&st);

    ASSERT_OK(safetensors_open(&st, in_scratch("step-00000001/optimizer.safetensors"), &err), err);
    v = safetensors_find(&st, "exp_avg_sq.transformer.h.1.attn.c_attn.weight");
    assert_non_null(v);
    assert_int_equal(v->dim[0], small.channels);
    assert_int_equal(v->dim[1], 3 * small.channels);
    int64_t at = painted->gpt.layout.offset[P_QKV_W] + painted->gpt.layout.stride[P_QKV_W];
    stored = v->data;
    assert_true(stored[1] == f32(&painted->opt.v)[at + small.channels]); /* row 0, column 1 */
    safetensors_close(&st);

    json_t *config = json_file_load(in_scratch("step-00000001/config.json"), &err);
    if (!config) fail_msg("%s", err.message);
    assert_string_equal(json_string_value(json_object_get(config, "model_type")), "gpt2");
    assert_true(json_is_true(json_object_get(config, "tie_word_embeddings")));
    assert_true(json_is_null(json_object_get(config, "eos_token_id"))); /* no tokenizer, not GPT-2's size */
    assert_int_equal(json_integer_value(json_object_get(config, "n_positions")), small.context);
    assert_true(json_real_value(json_object_get(config, "layer_norm_epsilon")) == 1e-5);
    json_decref(config);
}

/* --- training across a checkpoint --- */

static void train(struct model *m, int64_t first, int64_t count) {
    int32_t tokens[10];
    for (int64_t step = first; step < first + count; step++) {
        for (int i = 0; i < 10; i++) tokens[i] = (int32_t)((step * 11 + i * i) % small.vocab_size);
        gpt_set_batch(&m->gpt, tokens, tokens + 1);
        gpt_set_loss_scale(&m->gpt, 1.0f / 9.0f);
        gpt_forward_backward(&m->gpt, true);
        struct update_args args = {.lr = 0.01f,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.95f,
                                   .eps = 1e-8f,
                                   .weight_decay = 0.1f,
                                   .max_norm = 1.0f,
                                   .step = step + 1,
                                   .momentum = 0.9f,
                                   .muon_lr = 0.02f,
                                   .embedding_lr = 0.03f};
        optimizer_step(&m->opt, &m->gpt, &args);
    }
}

static void goes_on_bit_for_bit(enum optimizer_kind kind) {
    struct model whole, resumed;
    struct error err;
    struct optimizer_options optimizer = {.kind = kind};
    model_make_for(&whole, &small, DTYPE_F32, optimizer);
    gpt_init_weights(&whole.gpt, 1);
    train(&whole, 0, 4);
    save(scratch_directory(), &whole, 4);
    train(&whole, 4, 3);
    model_make_for(&resumed, &small, DTYPE_F32, optimizer);
    const char *dir = in_scratch("step-00000004");
    ASSERT_OK(checkpoint_load_weights(&resumed.gpt, dir, &err), err);
    ASSERT_OK(checkpoint_load_moments(&resumed.zero, dir, &err), err);
    train(&resumed, 4, 3);
    assert_same(&resumed.gpt.params, &whole.gpt.params);
    assert_same(&resumed.opt.m, &whole.opt.m);
    if (whole.opt.v.rank) assert_same(&resumed.opt.v, &whole.opt.v);
    model_free(&resumed);
    model_free(&whole);
}

static void training_goes_on_bit_for_bit(void **state) { goes_on_bit_for_bit(OPTIMIZER_ADAMW); }
static void muon_goes_on_bit_for_bit(void **state) { goes_on_bit_for_bit(OPTIMIZER_MUON); }
static void lion_goes_on_bit_for_bit(void **state) { goes_on_bit_for_bit(OPTIMIZER_LION); }

/* The state of one optimizer is refused by every other, which names both. */
static void another_optimizers_state_is_refused(void **state) {
    struct error err;
    for (int from = OPTIMIZER_ADAMW; from <= OPTIMIZER_LION; from++) {
        struct model m;
        model_make_for(&m, &small, DTYPE_F32, (struct optimizer_options){.kind = (enum optimizer_kind)from});
        gpt_init_weights(&m.gpt, 1);
        save(scratch_directory(), &m, from);
        const char *dir = in_scratch("step-%08d", from);
        for (int to = OPTIMIZER_ADAMW; to <= OPTIMIZER_LION; to++) {
            struct model other;
            model_make_for(&other, &small, DTYPE_F32,
                           (struct optimizer_options){.kind = (enum optimizer_kind)to});
            assert_int_equal(checkpoint_load_moments(&other.zero, dir, &err), from == to);
            if (from != to) {
                assert_mentions(
                    err.message,
                    temp_printf("was trained with --optimizer %s, and its state is no state of %s",
                                optimizer_name((enum optimizer_kind)from),
                                optimizer_name((enum optimizer_kind)to)));
            }
            model_free(&other);
        }
        model_free(&m);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(round_trip_is_exact),
        FIXTURE_TEST(state_round_trip),
        SCRATCH_TEST(state_of_an_older_version),
        FIXTURE_TEST(large_tensors),
        FIXTURE_TEST(master_weights_are_the_model_file),
        FIXTURE_TEST(bf16_without_masters),
        FIXTURE_TEST(device_memory_is_only_copied),
        FIXTURE_TEST(tokenizer_travels_along),
        FIXTURE_TEST(layout_is_hugging_faces),
        FIXTURE_TEST(training_goes_on_bit_for_bit),
        FIXTURE_TEST(muon_goes_on_bit_for_bit),
        FIXTURE_TEST(lion_goes_on_bit_for_bit),
        FIXTURE_TEST(another_optimizers_state_is_refused),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
