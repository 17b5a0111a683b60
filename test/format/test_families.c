/* Models that are not GPT-2: which family of Hugging Face directories each is written as, that it comes
 * back exactly, and that no format takes a model that it cannot say. */
#include "test/format/checkpoint.h"

#include "llmc/format/names.h"
#include "llmc/format/safetensors.h"

static struct gpt_config llama(void) {
    struct gpt_config c = {
        .name = "llama", .context = 9, .vocab_size = 37, .layers = 3, .heads = 4, .channels = 16};
    c.positions = POSITIONS_ROPE;
    c.norm = NORM_RMS;
    c.mlp = MLP_SWIGLU;
    c.bias = SWITCH_OFF;
    c.tied = SWITCH_OFF;
    c.norm_eps = 1e-6;
    c.ff = 40;
    gpt_config_complete(&c);
    return c;
}

/* Sets a field of `base`, by the name of its option, and completes what follows from it. */
static struct gpt_config with(struct gpt_config base, const char *option, double value) {
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        if (strcmp(gpt_fields[i].option.name, option) == 0) gpt_field_set(&base, &gpt_fields[i], value);
    if (base.positions != POSITIONS_ROPE) base.rope_theta = 0.0;
    gpt_config_complete(&base);
    return base;
}

static struct gpt_config gpt2(void) { return small; }

static void directories_come_back(void **state) {
    const struct {
        struct gpt_config config;
        const char *type, *tensor; /* a name that only this family has */
    } models[] = {
        {gpt2(), "gpt2", "transformer.h.2.attn.c_attn.weight"},
        {with(gpt2(), "ff", 20), "gpt2", "transformer.wpe.weight"},
        {with(gpt2(), "tied", SWITCH_OFF), "gpt2", "lm_head.weight"},
        {with(gpt2(), "mlp", MLP_RELU2), "gpt2", "transformer.ln_f.bias"},
        {with(gpt2(), "norm-eps", 1e-6), "gpt2", "transformer.ln_f.bias"},
        {llama(), "llama", "model.layers.1.self_attn.k_proj.weight"},
        {with(llama(), "tied", SWITCH_ON), "llama", "model.layers.2.mlp.up_proj.weight"},
        {with(llama(), "mlp", MLP_GEGLU), "llama", "model.norm.weight"},
        {with(llama(), "rope-theta", 500000), "llama", "lm_head.weight"},
        {with(llama(), "norm", NORM_LAYER), "llmc", "h.0.attn.c_attn.weight"},
        {with(gpt2(), "positions", POSITIONS_NONE), "llmc", "h.0.mlp.c_fc.bias"},
        {with(gpt2(), "bias", SWITCH_OFF), "llmc", "wpe.weight"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(models); i++) {
        struct model m;
        struct error err;
        struct gpt_config found;
        enum gpt_format format;
        struct safetensors st;
        model_make(&m, &models[i].config, DTYPE_F32, false);
        paint_model(&m, 10 + i);
        save(scratch_directory(), &m, (int64_t)i);
        const char *dir = in_scratch("step-%08d", (int)i);
        assert_loads_as(dir, &m);
        ASSERT_OK(model_config_read(&found, &format, dir, &err), err);
        assert_null(gpt_config_difference(&found, &models[i].config));
        json_t *root = json_file_load(in_scratch("step-%08d/config.json", (int)i), &err);
        assert_string_equal(json_string_value(json_object_get(root, "model_type")), models[i].type);
        json_decref(root);
        ASSERT_OK(safetensors_open_directory(&st, dir, "model", &err), err);
        if (!safetensors_find(&st, models[i].tensor)) fail_msg("%s: no tensor %s", dir, models[i].tensor);
        assert_int_equal(st.count, format_tensor_count(format, &found));
        safetensors_close(&st);
        model_free(&m);
    }
}

/* q, k and v are rows of one matrix here, and three tensors there. */
static void pieces_are_rows(void **state) {
    struct gpt_config c = llama();
    struct model m;
    struct error err;
    struct model_file file;
    model_make(&m, &c, DTYPE_F32, false);
    paint_model(&m, 1);
    save(scratch_directory(), &m, 1);
    ASSERT_OK(model_file_open(&file, in_scratch("step-00000001"), &err), err);
    struct tensor qkv = gpt_param(&m.gpt, P_QKV_W, 1);
    float row[3 * 16];
    static const char *const names[] = {"q", "k", "v"};
    for (int part = 0; part < 3; part++) {
        const char *name = temp_printf("model.layers.1.self_attn.%s_proj.weight", names[part]);
        const struct st_view *v = safetensors_find(&file.st, name);
        assert_non_null(v);
        assert_true(v->rank == 2 && v->dim[0] == 16 && v->dim[1] == 16);
        ASSERT_OK(safetensors_to_f32(row, v, 5 * 16, 16, &err), err);
        assert_memory_equal(row, f32(&qkv) + (part * 16 + 5) * 16, 16 * sizeof *row);
    }
    /* rows 15 .. 17: the last of q, the first of k */
    ASSERT_OK(weights_read(row, &file.weights, P_QKV_W, 1, 15, 3, &err), err);
    assert_memory_equal(row, f32(&qkv) + 15 * 16, sizeof row);
    model_file_close(&file);
    model_free(&m);
}

/* Each field that a format has no key for, set to something else, is refused by the name of its option. */
static void what_a_format_cannot_say_is_refused(void **state) {
    static const enum gpt_format formats[] = {FORMAT_HF_GPT2, FORMAT_HF_LLAMA, FORMAT_GGUF_GPT2,
                                              FORMAT_GGUF_LLAMA};
    int refused = 0;
    for (size_t k = 0; k < ARRAY_LENGTH(formats); k++) {
        enum gpt_format format = formats[k];
        struct gpt_config base = format == FORMAT_HF_GPT2 || format == FORMAT_GGUF_GPT2 ? gpt2() : llama();
        struct error err;
        ASSERT_OK(gpt_format_can_say(format, &base, &err), err);
        for (int i = 0; i < GPT_FIELD_COUNT; i++) {
            const struct gpt_field *f = &gpt_fields[i];
            struct gpt_config other = base;
            double value = gpt_field_get(&base, f);
            if (f->option.type == OPTION_WORD)
                value = value == 1.0 ? 2.0 : 1.0;
            else
                value = value == 0.0 ? 3.0 : 2.0 * value;
            gpt_field_set(&other, f, value);
            if (strcmp(f->option.name, "channels") == 0 || strcmp(f->option.name, "heads") == 0) {
                other.head_size = other.kv_heads = other.ff = 0; /* these follow */
                gpt_config_complete(&other);
            }
            bool key = f->in[format].key != NULL;
            int length = 1;
            if (key && f->option.type == OPTION_WORD) (void)gpt_format_word(f, format, (int)value, &length);
            bool sayable = key && length > 0;
            if (gpt_format_can_say(format, &other, &err) != sayable)
                fail_msg("%s, --%s: %s", gpt_format_name(format), f->option.name,
                         sayable ? err.message : "taken");
            if (!sayable) assert_mentions(err.message, temp_printf("--%s", f->option.name));
            refused += !sayable;
        }
    }
    assert_true(refused >= 20);
    struct gpt_config mixed = with(llama(), "norm", NORM_LAYER);
    struct error err;
    assert_int_equal(format_for_directory(&mixed), FORMAT_OWN);
    assert_int_equal(format_for_gguf(&mixed, &err), GPT_FORMATS);
    assert_mentions(err.message, "--norm");
}

/* Llama's config.json as transformers 5 and 4 write it, and what the engine would compute differently. */
static void llama_configurations(void **state) {
    static const char head[] =
        "{\"model_type\": \"llama\", \"hidden_size\": 16, \"intermediate_size\": 40, "
        "\"max_position_embeddings\": 9, \"num_attention_heads\": 4, \"num_hidden_layers\": 3, "
        "\"vocab_size\": 37";
    static const struct {
        const char *more, *says; /* NULL: accepted */
    } files[] = {
        {"", NULL},
        {", \"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\": \"default\"}", NULL},
        {", \"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\": \"llama3\"}", "llama3"},
        {", \"rope_theta\": 500000.0, \"rope_scaling\": null", NULL},
        {", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}", "scaling of rotary positions"},
        {", \"attention_bias\": true", "attention with biases"},
        {", \"mlp_bias\": true", "an MLP with biases"},
        {", \"hidden_act\": \"gelu\"", "\"silu\", \"gelu_pytorch_tanh\""},
        {", \"hidden_act\": 3", "not a string"},
        {", \"num_key_value_heads\": 3", "do not divide"},
        {", \"rms_norm_eps\": -1", "epsilon of the norms is -1"},
        {", \"rms_norm_eps\": \"x\"", "not a number"},
        {", \"head_dim\": 5", "even width"},
        {", \"head_dim\": 0", "between 1 and"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(files); i++) {
        struct gpt_config c;
        enum gpt_format format;
        struct error err = {""};
        char *text = xasprintf("%s%s}", head, files[i].more);
        put_text("config.json", text);
        bool ok = model_config_read(&c, &format, scratch_directory(), &err);
        if (ok != (files[i].says == NULL)) fail_msg("%s: %s", files[i].more, ok ? "accepted" : err.message);
        if (!ok) assert_mentions(err.message, files[i].says);
        if (ok) {
            assert_int_equal(format, FORMAT_HF_LLAMA);
            assert_true(c.rope_theta == (strstr(files[i].more, "500000") ? 500000.0 : 10000.0));
            assert_true(c.tied == SWITCH_OFF && c.norm_eps == 1e-6 && c.head_size == 4 && c.kv_heads == 4);
        }
        free(text);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(directories_come_back),
        SCRATCH_TEST(pieces_are_rows),
        cmocka_unit_test(what_a_format_cannot_say_is_refused),
        SCRATCH_TEST(llama_configurations),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
