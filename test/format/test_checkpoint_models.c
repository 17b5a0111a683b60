/* Models that others wrote: published directories in all their forms, and everything that has to be refused
 * with a reason: tensors, configurations, other containers, other models, edited state. Order as in
 * main(). */
#include "test/format/checkpoint.h"

/* --- foreign models --- */

/* What a Hugging Face directory written by somebody else may look like. */
struct foreign {
    enum st_dtype dtype;
    const char *prefix;
    bool masks, head, head_differs, sharded;
    /* faults */
    const char *without; /* a parameter that is missing */
    const char *misshaped, *integers, *extra;
};

static void write_one(const char *path, const struct foreign *f, const struct gpt *g, int part, int parts) {
    struct safetensors_writer w;
    struct error err;
    safetensors_writer_init(&w);
    struct {
        char name[96];
        float *values;
        int64_t n;
        int64_t bytes;
    } put[80];
    int count = 0, index = 0;
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(&g->config, (enum param_id)id); l++) {
            const char *name = gpt_param_name((enum param_id)id, l);
            if (index++ % parts != part || (f->without && strcmp(f->without, name) == 0)) continue;
            struct tensor t = gpt_param(g, (enum param_id)id, l);
            int64_t rows = weights_rows(&g->config, id), cols = weights_cols(&g->config, id);
            bool turn = gpt_param_rows[id].conv1d;
            int64_t dim[2] = {turn ? cols : rows, turn ? rows : cols};
            int rank = gpt_param_rows[id].cols == DIM_NONE ? 1 : 2;
            if (f->misshaped && strcmp(f->misshaped, name) == 0) {
                dim[0] = turn ? rows : cols;
                dim[1] = turn ? cols : rows;
            }
            bool integers = f->integers && strcmp(f->integers, name) == 0;
            enum st_dtype dtype = integers ? ST_I32 : f->dtype;
            put[count].values = malloc((size_t)(rows * cols) * sizeof(float));
            put[count].n = rows * cols;
            put[count].bytes = rows * cols * st_dtype_size(dtype);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++)
                    put[count].values[turn ? c * rows + r : r * cols + c] = f32(&t)[r * cols + c];
            snprintf(put[count].name, sizeof put[count].name, "%s%s", f->prefix, name);
            safetensors_declare(&w, put[count++].name, dtype, rank, dim);
        }
    int64_t V = g->config.vocab_size, C = g->config.channels, T = g->config.context;
    int64_t mask_shape[] = {1, 1, T, T}, head_shape[] = {V, C}, one[] = {1};
    static const uint8_t mask[10000];
    for (int64_t l = 0; f->masks && l < g->config.layers; l++) {
        char name[96];
        snprintf(name, sizeof name, "%sh.%d.attn.bias", f->prefix, (int)l);
        safetensors_declare(&w, name, ST_U8, 4, mask_shape);
        snprintf(name, sizeof name, "%sh.%d.attn.masked_bias", f->prefix, (int)l);
        safetensors_declare(&w, name, ST_F32, 0, NULL);
    }
    if (f->extra) safetensors_declare(&w, f->extra, ST_F32, 1, one);
    if (f->head || f->head_differs) safetensors_declare(&w, "lm_head.weight", ST_F32, 2, head_shape);
    ASSERT_OK(safetensors_writer_open(&w, path, &err), err);
    for (int i = 0; i < count; i++) {
        uint16_t *narrow = malloc((size_t)put[i].n * 2);
        for (int64_t k = 0; k < put[i].n; k++)
            narrow[k] = f->dtype == ST_F16 ? f16_from_f32(put[i].values[k]) : bf16_from_f32(put[i].values[k]);
        safetensors_put(&w, put[i].name, put[i].bytes == put[i].n * 2 ? (void *)narrow : put[i].values,
                        put[i].bytes);
        free(narrow);
        free(put[i].values);
    }
    for (int64_t l = 0; f->masks && l < g->config.layers; l++) {
        char name[96];
        snprintf(name, sizeof name, "%sh.%d.attn.bias", f->prefix, (int)l);
        safetensors_put(&w, name, mask, T * T);
        snprintf(name, sizeof name, "%sh.%d.attn.masked_bias", f->prefix, (int)l);
        safetensors_put(&w, name, mask, 4);
    }
    if (f->extra) safetensors_put(&w, f->extra, mask, 4);
    if (f->head || f->head_differs) {
        struct tensor t = gpt_param(g, P_WTE, 0);
        float *head = malloc((size_t)(V * C) * sizeof *head);
        memcpy(head, t.data, (size_t)(V * C) * sizeof *head);
        if (f->head_differs) head[V * C - 1] += 0.25f;
        safetensors_put(&w, "lm_head.weight", head, V * C * 4);
        free(head);
    }
    ASSERT_OK(safetensors_writer_close(&w, &err), err);
}

/* In `dir`, from the fp32 parameters of `g`. */
static void write_foreign(const char *name, const struct foreign *f, const struct gpt *g) {
    struct error err;
    ASSERT_OK(make_directories(in_scratch("%s", name), &err), err);
    ASSERT_OK(model_config_write(in_scratch("%s", name), &g->config, f->dtype, NULL, &err), err);
    if (!f->sharded) {
        write_one(in_scratch("%s/model.safetensors", name), f, g, 0, 1);
        return;
    }
    json_t *map = json_object();
    for (int part = 0, index = 0; part < 3; part++, index = 0) {
        char file[64];
        snprintf(file, sizeof file, "model-%05d-of-00003.safetensors", part + 1);
        write_one(in_scratch("%s/%s", name, file), f, g, part, 3);
        for (int id = 0; id < PARAM_ROWS; id++)
            for (int64_t l = 0; l < gpt_param_copies(&g->config, (enum param_id)id); l++) {
                char tensor[96];
                snprintf(tensor, sizeof tensor, "%s%s", f->prefix, gpt_param_name((enum param_id)id, l));
                if (index++ % 3 == part) json_object_set_new(map, tensor, json_string(file));
            }
    }
    json_t *root = json_pack("{s:o}", "weight_map", map);
    assert_int_equal(json_dump_file(root, in_scratch("%s/model.safetensors.index.json", name), 0), 0);
    json_decref(root);
}

/* The values of `g` as they are after storing them in `dtype`. */
static float rounded(float x, enum st_dtype dtype) {
    float out = x;
    uint16_t half = f16_from_f32(x);
    struct st_view v = {.name = "x", .path = "x", .dtype = ST_F16, .count = 1, .bytes = 2, .data = &half};
    if (dtype == ST_F16) assert_true(safetensors_to_f32(&out, &v, 0, 1, NULL));
    return dtype == ST_BF16 ? f32_from_bf16(bf16_from_f32(x)) : out;
}

static void published_directories_load(void **state) {
    struct model *painted = *state;
    static const struct foreign kinds[] = {
        {.dtype = ST_F32, .prefix = ""},
        {.dtype = ST_F32, .prefix = "", .masks = true},
        {.dtype = ST_F32, .prefix = "transformer.", .masks = true, .head = true},
        {.dtype = ST_F16, .prefix = "transformer."},
        {.dtype = ST_BF16, .prefix = ""},
        {.dtype = ST_F16, .prefix = "transformer.", .sharded = true},
        {.dtype = ST_F32, .prefix = "", .sharded = true},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++) {
        struct error err = {""};
        char name[32];
        snprintf(name, sizeof name, "hf%zu", i);
        write_foreign(name, &kinds[i], &painted->gpt);
        const char *dir = in_scratch("%s", name);
        struct model m;
        struct gpt_config config;
        ASSERT_OK(checkpoint_config(&config, dir, &err), err);
        model_make(&m, &config, DTYPE_F32, false);
        ASSERT_OK(checkpoint_load_weights(&m.gpt, dir, &err), err);
        for (int64_t k = 0; k < m.gpt.layout.total; k++) {
            float x = f32(&m.gpt.params)[k], y = rounded(f32(&painted->gpt.params)[k], kinds[i].dtype);
            if (!(x == y))
                fail_msg("kind %zu, element %" PRId64 ": %g instead of %g", i, k, (double)x, (double)y);
        }
        char *found = checkpoint_find(dir, &err); /* something to start from ... */
        assert_non_null(found);
        assert_string_equal(found, dir);
        free(found);
        struct train_state st; /* ... but not to resume */
        assert_false(checkpoint_load_state(&st, dir, &err));
        assert_mentions(err.message, "has no trainer.json");
        assert_false(checkpoint_load_moments(&m.zero, dir, &err));
        assert_mentions(err.message, "has no optimizer.safetensors");
        model_free(&m);
    }
}

/* Every finite fp16 survives fp16 -> fp32 -> fp16; halfway cases go to even. */
static void fp16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint16_t half = (uint16_t)h;
        struct st_view v = {.name = "x", .path = "x", .dtype = ST_F16, .count = 1, .bytes = 2, .data = &half};
        float x, above;
        assert_true(safetensors_to_f32(&x, &v, 0, 1, NULL));
        if (isnan(x)) {
            assert_true((f16_from_f32(x) & 0x7fff) > 0x7c00);
            continue;
        }
        if (f16_from_f32(x) != half) fail_msg("%g becomes %04x, not %04x", (double)x, f16_from_f32(x), half);
        if ((half & 0x7fff) >= 0x7bff) continue;
        half++;
        assert_true(safetensors_to_f32(&above, &v, 0, 1, NULL));
        float middle = 0.5f * x + 0.5f * above; /* exact in fp32 */
        uint16_t even = h & 1 ? half : (uint16_t)h;
        if (f16_from_f32(middle) != even)
            fail_msg("%.9g becomes %04x, not %04x", (double)middle, f16_from_f32(middle), even);
        assert_int_equal(f16_from_f32(nextafterf(middle, x)), h);
        assert_int_equal(f16_from_f32(nextafterf(middle, above)), half);
    }
    assert_int_equal(f16_from_f32(65519.996f), 0x7bff);
    assert_int_equal(f16_from_f32(65520.0f), 0x7c00);
    assert_int_equal(f16_from_f32(-1e30f), 0xfc00);
}

static void weights_that_are_not_finite(void **state) {
    struct model *painted = *state;
    struct error err;
    struct tensor t = gpt_param(&painted->gpt, P_FC_W, 1);
    f32(&t)[5] = NAN;
    f32(&t)[6] = -INFINITY;
    save(scratch_directory(), painted, 1);
    struct model m;
    model_make(&m, &small, DTYPE_F32, false);
    capture_start();
    bool ok = checkpoint_load_weights(&m.gpt, in_scratch("step-00000001"), &err);
    const char *text = capture_end();
    ASSERT_OK(ok, err);
    assert_same(&m.gpt.params, &painted->gpt.params);
    assert_non_null(strstr(text, "warning"));
    assert_non_null(strstr(text, "2 of the weights are NaN or infinite"));
    assert_non_null(strstr(text, "h.1.mlp.c_fc.weight"));
    model_free(&m);
}

/* --- refusals --- */

static void faulty_tensors_are_named(void **state) {
    struct model *painted = *state;
    static const struct {
        struct foreign kind;
        const char *says[3];
    } faults[] = {
        {{.prefix = "transformer.", .without = "h.2.ln_2.bias"},
         {"model.safetensors", "\"transformer.h.2.ln_2.bias\" is missing", ""}},
        {{.prefix = "", .without = "wte.weight"}, {"\"wte.weight\" is missing", "", ""}},
        {{.prefix = "", .misshaped = "h.1.attn.c_attn.weight"},
         {"h.1.attn.c_attn.weight F32 (36,12)", "asks for (12,36)", "12 channels"}},
        {{.prefix = "", .misshaped = "wpe.weight"}, {"wpe.weight F32 (12,9)", "asks for (9,12)", ""}},
        {{.prefix = "", .integers = "h.0.ln_1.weight"}, {"h.0.ln_1.weight I32 (12)", "expected F32", ""}},
        {{.prefix = "transformer.", .extra = "transformer.h.3.ln_1.weight"},
         {"transformer.h.3.ln_1.weight F32 (1)", "not part of a Hugging Face GPT-2 of 3 layers", ""}},
        {{.prefix = "", .extra = "score.weight"}, {"score.weight", "not part of", ""}},
        {{.prefix = "transformer.", .head_differs = true},
         {"lm_head.weight", "differs from \"transformer.wte.weight\" (element 443", "tie_word_embeddings"}},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(faults); i++) {
        struct error err;
        struct gpt_config config;
        char name[32];
        snprintf(name, sizeof name, "bad%zu", i);
        struct foreign kind = faults[i].kind;
        kind.dtype = ST_F32;
        write_foreign(name, &kind, &painted->gpt);
        assert_false(checkpoint_config(&config, in_scratch("%s", name), &err));
        for (int k = 0; k < 3; k++) assert_mentions(err.message, faults[i].says[k]);
        assert_false(checkpoint_load_weights(&painted->gpt, in_scratch("%s", name), &err));
        for (int k = 0; k < 3; k++) assert_mentions(err.message, faults[i].says[k]);
    }
}

/* config.json with one field replaced by JSON text; NULL removes it. */
static void edit_config(const char *name, const char *key, const char *value) {
    struct error err;
    json_t *root = json_file_load(in_scratch("%s/config.json", name), &err);
    assert_non_null(root);
    if (value) {
        json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
        assert_non_null(v);
        json_object_set_new(root, key, v);
    } else {
        json_object_del(root, key);
    }
    assert_int_equal(json_dump_file(root, in_scratch("%s/config.json", name), 0), 0);
    json_decref(root);
}

static void configurations_are_checked(void **state) {
    struct model *painted = *state;
    static const struct {
        const char *key, *value; /* value NULL: removed */
        const char *says;        /* NULL: accepted */
    } edits[] = {
        {"model_type", "\"gpt_neo\"", "\"model_type\" is \"gpt_neo\""},
        {"model_type", NULL, "\"model_type\" is missing"},
        {"model_type", "2", "not a string"},
        {"activation_function", "\"relu\"", "\"activation_function\" is \"relu\""},
        {"activation_function", "\"gelu\"", "implements \"gelu_new\", \"relu2\""}, /* the erf form */
        {"activation_function", "\"gelu_pytorch_tanh\"", NULL},
        {"activation_function", NULL, NULL},
        {"scale_attn_by_inverse_layer_idx", "true", "1/(layer + 1) is not implemented"},
        {"scale_attn_weights", "false", "\"scale_attn_weights\" is false"},
        {"scale_attn_weights", "1", "\"scale_attn_weights\" is 1"},
        {"scale_attn_weights", "null", NULL},
        {"tie_word_embeddings", "false", "tensor \"lm_head.weight\" is missing"},
        {"tie_word_embeddings", "1", "neither true nor false"},
        {"tie_word_embeddings", NULL, NULL},
        {"add_cross_attention", "true", "cross-attention"},
        {"layer_norm_epsilon", "1e-6", NULL},
        {"layer_norm_epsilon", "2", "epsilon of the norms is 2"},
        {"layer_norm_epsilon", "\"x\"", "layer_norm_epsilon"},
        {"layer_norm_epsilon", "0.00001", NULL},
        {"n_inner", "48", NULL},
        {"n_inner", "32", "does not fit the configuration"},
        {"n_inner", "0", "width of the MLP is 0"},
        {"quantization_config", "{\"bits\": 4}", "quantized"},
        {"n_layer", "2", "tensor h.2."}, /* the weights have one more */
        {"n_layer", "4", "\"h.3."},      /* one less */
        {"n_layer", "\"3\"", "\"n_layer\" is not an integer"},
        {"n_layer", "3.0", "not an integer"},
        {"n_layer", "0", "number of layers is 0"},
        {"n_layer", "-1", "number of layers is -1"},
        {"n_layer", "10000", "40 tensors are too few for a model of 10000 layers"},
        {"n_head", "5", "5 heads do not divide 12 channels"},
        {"n_head", "0", "number of heads is 0"},
        {"n_embd", "9223372036854775807", "number of channels is 9223372036854775807"},
        {"n_embd", "1048575", "more than this engine addresses"},
        {"n_embd", "300000", "asks for (37,300000)"},
        {"n_embd", "24", "asks for (37,24)"},
        {"vocab_size", "38", "wte.weight F32 (37,12)"},
        {"vocab_size", "1073741823", "asks for (1073741823,12)"},
        {"vocab_size", NULL, "\"vocab_size\" is missing"},
        {"n_positions", "1024", "wpe.weight F32 (9,12)"},
        {"n_positions", "null", "\"n_positions\" is not an integer"},
    };
    struct error err;
    struct gpt_config config;
    struct foreign kind = {.dtype = ST_F32, .prefix = ""};
    for (size_t i = 0; i < ARRAY_LENGTH(edits); i++) {
        write_foreign("hf", &kind, &painted->gpt);
        edit_config("hf", edits[i].key, edits[i].value);
        bool ok = checkpoint_config(&config, in_scratch("hf"), &err);
        if (!edits[i].says) {
            if (!ok) fail_msg("%s: %s", edits[i].key, err.message);
            continue;
        }
        if (ok)
            fail_msg("\"%s\": %s is accepted", edits[i].key, edits[i].value ? edits[i].value : "(removed)");
        assert_mentions(err.message, edits[i].says);
    }
    static const char *const texts[] = {"",
                                        "{",
                                        "[]",
                                        "null",
                                        "{\"model_type\": \"gpt2\xff\"}",
                                        "{\"model_type\": \"gpt2\", \"model_type\": \"gpt2\"}",
                                        "\xff\xfe{}",
                                        "{\"n_layer\": 99999999999999999999999}"};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
        put_text(in_scratch("hf/config.json"), texts[i]);
        assert_false(checkpoint_config(&config, in_scratch("hf"), &err));
        assert_mentions(err.message, "config.json");
    }
    unlink(in_scratch("hf/config.json"));
    assert_false(checkpoint_config(&config, in_scratch("hf"), &err));
    assert_mentions(err.message, "has no config.json");
    assert_false(checkpoint_config(&config, in_scratch("nowhere"), &err));
    assert_mentions(err.message, "nowhere");
}

static void other_containers_are_refused(void **state) {
    struct model *painted = *state;
    struct error err;
    struct gpt_config config;
    struct foreign kind = {.dtype = ST_F32, .prefix = ""};
    write_foreign("hf", &kind, &painted->gpt);
    assert_int_equal(rename(in_scratch("hf/model.safetensors"), in_scratch("hf/pytorch_model.bin")), 0);
    assert_false(checkpoint_config(&config, in_scratch("hf"), &err));
    assert_mentions(err.message, "only as pytorch_model.bin");
    assert_int_equal(
        rename(in_scratch("hf/pytorch_model.bin"), in_scratch("hf/pytorch_model.bin.index.json")), 0);
    assert_false(checkpoint_config(&config, in_scratch("hf"), &err));
    assert_mentions(err.message, "only as pytorch_model.bin.index.json");
    unlink(in_scratch("hf/pytorch_model.bin.index.json"));
    assert_false(checkpoint_config(&config, in_scratch("hf"), &err));
    assert_mentions(err.message, "model.safetensors");
    put_text(in_scratch("hf/model.safetensors"), "not a safetensors file");
    assert_false(checkpoint_config(&config, in_scratch("hf"), &err));
    assert_mentions(err.message, "not a safetensors file");

    /* Overlapping tensors: the first two shapes of equal size given one place. */
    write_foreign("hf", &kind, &painted->gpt);
    size_t size;
    char *data = get_file(in_scratch("hf/model.safetensors"), &size);
    char *end = strstr((char *)data + 8, "\"h.1.ln_1.weight\"");
    assert_non_null(end);
    char *offsets = strstr(end, "data_offsets\":[");
    assert_non_null(offsets);
    offsets += strlen("data_offsets\":[");
    char *last = strchr(offsets, ',') - 1;
    *last = *last == '8' ? '4' : '8'; /* moves the start by 4 bytes */
    put_file(in_scratch("hf/model.safetensors"), data, size);
    free(data);
    assert_false(checkpoint_config(&config, in_scratch("hf"), &err));
    assert_mentions(err.message, "h.1.ln_1.weight");
}

static void a_checkpoint_for_another_model(void **state) {
    struct model *painted = *state;
    static const struct {
        struct gpt_config config;
        const char *says;
    } others[] = {
        {GPT2_CONFIG("other", 9, 37, 2, 3, 12), "number of layers of this model is 3, expected 2"},
        {GPT2_CONFIG("other", 9, 37, 3, 4, 12),
         "number of heads of this model is 3, expected 4"}, /* the same shapes */
        {GPT2_CONFIG("other", 9, 37, 3, 3, 15), "number of channels of this model is 12, expected 15"},
        {GPT2_CONFIG("other", 8, 37, 3, 3, 12), "context length of this model is 9, expected 8"},
        {GPT2_CONFIG("other", 9, 38, 3, 3, 12), "vocabulary size of this model is 37, expected 38"},
    };
    save(scratch_directory(), painted, 1);
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++) {
        struct model m;
        struct error err;
        model_make(&m, &others[i].config, DTYPE_F32, false);
        assert_false(checkpoint_load_weights(&m.gpt, in_scratch("step-00000001"), &err));
        assert_mentions(err.message, others[i].says);
        model_free(&m);
    }
    struct model m;
    struct error err;
    struct gpt_config wider = GPT2_CONFIG("other", 9, 37, 3, 3, 15);
    model_make(&m, &wider, DTYPE_F32, false);
    assert_false(checkpoint_load_moments(&m.zero, in_scratch("step-00000001"), &err));
    assert_mentions(err.message, "exp_avg.transformer.wte.weight F32 (37,12)");
    model_free(&m);
}

/* trainer.json with `from` replaced by `to` and a checksum that is right again. */
static void edit_trainer(const char *path, const char *from, const char *to) {
    size_t size;
    char *text = (char *)get_file(path, &size), *at = strstr(text, from),
         *tail = strstr(text, ",\n  \"xxh3\"");
    assert_non_null(tail);
    *tail = 0;
    if (!at) fail_msg("%s does not contain %s", path, from);
    char *body = xasprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    char *whole = xasprintf("%s,\n  \"xxh3\": \"%016" PRIx64 "\"\n}\n", body,
                            (uint64_t)XXH3_64bits(body, strlen(body)));
    put_text(path, whole);
    free(whole);
    free(body);
    free(text);
}

static void states_are_checked(void **state) {
    struct model *painted = *state;
    static const struct {
        const char *from, *to, *says;
    } edits[] = {
        {"\"format\": 1", "\"format\": 2", "\"format\" is 2, this version of the engine knows only 1"},
        {"\"step\": 1", "\"step\": -1", "\"step\" is not an integer of 0 or more"},
        {"\"step\": 1", "\"step\": 1.5", "\"step\" is not an integer"},
        {"\"sample\":", "\"simple\":", "\"sample\" is not an integer"},
        {"\"data\": \"f", "\"data\": \"g", "\"data\" is not a string of 16 hexadecimal digits"},
        {"\"data\": \"", "\"data\": \"0", "hexadecimal"},
        {"\"tokens\"", "\"tokens", "not valid JSON"},
        {"\"tokens\"", "\"tok\xffns\"", "not valid JSON"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(edits); i++) {
        struct error err;
        struct train_state st;
        save(scratch_directory(), painted, 1);
        edit_trainer(in_scratch("step-00000001/trainer.json"), edits[i].from, edits[i].to);
        assert_false(checkpoint_load_state(&st, in_scratch("step-00000001"), &err));
        assert_mentions(err.message, "trainer.json");
        assert_mentions(err.message, edits[i].says);
    }
    struct error err;
    struct train_state st;
    save(scratch_directory(), painted, 1);
    put_text(in_scratch("step-00000001/trainer.json"), "");
    assert_false(checkpoint_load_state(&st, in_scratch("step-00000001"), &err));
    assert_mentions(err.message, "truncated");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(published_directories_load),     cmocka_unit_test(fp16_rounds_to_nearest_even),
        FIXTURE_TEST(weights_that_are_not_finite),    FIXTURE_TEST(faulty_tensors_are_named),
        FIXTURE_TEST(configurations_are_checked),     FIXTURE_TEST(other_containers_are_refused),
        FIXTURE_TEST(a_checkpoint_for_another_model), FIXTURE_TEST(states_are_checked),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
