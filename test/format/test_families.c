/* Models that are not GPT-2: which family of Hugging Face directories each is written as, that it comes
 * back exactly, and that no format takes a model that it cannot say. */
#include "test/format/checkpoint.h"
#include "test/format/gguf.h"

#include "llmc/format/export.h"
#include "llmc/format/names.h"
#include "llmc/format/safetensors.h"
#include "llmc/model/gpt.h"

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

static struct gpt_config linear(struct gpt_config c) {
    c.rope_scaling = ROPE_SCALING_LINEAR;
    c.rope_factor = 2.5;
    return c;
}

static struct gpt_config llama3(struct gpt_config c) {
    c.rope_scaling = ROPE_SCALING_LLAMA3;
    c.rope_factor = 32;
    c.rope_original = 512;
    c.rope_low = 1.5;
    c.rope_high = 20;
    return c;
}

static struct gpt_config gpt2(void) { return small; }

/* As Qwen2 0.5B: grouped heads, a tied head. */
static struct gpt_config qwen2(void) {
    struct gpt_config c = llama();
    snprintf(c.name, sizeof c.name, "qwen2");
    c.qkv_bias = SWITCH_ON;
    c.tied = SWITCH_ON;
    c.kv_heads = 2;
    return c;
}

/* As Qwen3 0.6B: the heads together are wider than the model. */
static struct gpt_config qwen3(void) {
    struct gpt_config c = llama();
    snprintf(c.name, sizeof c.name, "qwen3");
    c.qk_norm = SWITCH_ON;
    c.tied = SWITCH_ON;
    c.kv_heads = 2;
    c.head_size = 8;
    return c;
}

/* As the preset nanochat-dN, with fewer heads of keys and values. */
static struct gpt_config nanochat(void) {
    struct gpt_config c,
        shape = {.context = 9, .vocab_size = 37, .heads = 4, .kv_heads = 2, .channels = 16, .ff = 40};
    struct error err;
    ASSERT_OK(gpt_config_from_name(&c, "nanochat-d2", &shape, &err), err);
    return c;
}

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
        {linear(llama()), "llama", "model.norm.weight"},
        {llama3(llama()), "llama", "model.norm.weight"},
        {linear(qwen3()), "qwen3", "model.layers.1.self_attn.k_norm.weight"},
        {llama3(qwen2()), "qwen2", "model.layers.2.self_attn.v_proj.bias"},
        {with(llama3(llama()), "norm", NORM_LAYER), "llmc", "h.0.attn.c_attn.weight"},
        {qwen2(), "qwen2", "model.layers.2.self_attn.v_proj.bias"},
        {with(qwen2(), "tied", SWITCH_OFF), "qwen2", "lm_head.weight"},
        {with(qwen2(), "head-dim", 6), "qwen2", "model.layers.0.self_attn.k_proj.bias"},
        {qwen3(), "qwen3", "model.layers.1.self_attn.k_norm.weight"},
        {with(qwen3(), "tied", SWITCH_OFF), "qwen3", "lm_head.weight"},
        {with(llama(), "norm", NORM_LAYER), "llmc", "h.0.attn.c_attn.weight"},
        {with(gpt2(), "qk-norm", SWITCH_ON), "llmc", "h.2.attn.q_norm.weight"},
        {with(qwen2(), "qk-norm", SWITCH_ON), "llmc", "h.2.attn.k_norm.weight"},
        {with(qwen3(), "positions", POSITIONS_NONE), "llmc", "h.0.attn.q_norm.weight"},
        {with(gpt2(), "qkv-bias", SWITCH_OFF), "llmc", "h.2.attn.c_proj.bias"},
        {with(qwen2(), "norm", NORM_LAYER), "llmc", "h.1.attn.c_attn.bias"},
        {with(gpt2(), "positions", POSITIONS_NONE), "llmc", "h.0.mlp.c_fc.bias"},
        {with(gpt2(), "positions", POSITIONS_SINUSOIDAL), "llmc", "h.1.attn.c_proj.bias"},
        {with(gpt2(), "bias", SWITCH_OFF), "llmc", "wpe.weight"},
        {with(llama(), "score", SCORE_L2), "llmc", "ln_f.weight"},
        {with(gpt2(), "mask", MASK_PREFIX), "llmc", "wpe.weight"},
        {with(with(gpt2(), "mask", MASK_WINDOW), "window", 4), "llmc", "wpe.weight"},
        {with(llama(), "softcap", 20.5), "llmc", "ln_f.weight"},
        {with(llama(), "logit-softcap", 15), "llmc", "ln_f.weight"},
        {nanochat(), "nanochat", "model.layers.1.mlp.fc2.weight"},
        {with(nanochat(), "logit-softcap", 0), "nanochat", "lm_head.weight"},
        {with(nanochat(), "tied", SWITCH_ON), "nanochat", "model.layers.0.self_attn.k_proj.weight"},
        {with(nanochat(), "mlp", MLP_SWIGLU), "llmc", "h.1.mlp.c_fc.weight"},
        {with(nanochat(), "rope-reverse", SWITCH_OFF), "llmc", "h.1.mlp.c_fc.weight"},
        {with(nanochat(), "norm-weights", SWITCH_ON), "llmc", "ln_embed.weight"},
        {with(gpt2(), "embedding-norm", SWITCH_ON), "llmc", "ln_embed.bias"},
        {with(llama(), "norm-weights", SWITCH_OFF), "llmc", "h.0.attn.c_attn.weight"},
        {with(with(llama(), "norm-weights", SWITCH_OFF), "embedding-norm", SWITCH_ON), "llmc", "wte.weight"},
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

static void presets_belong_to_their_families(void **state) {
    static const struct {
        const char *name;
        enum gpt_format format;
    } known[] = {{"gpt2-xl", FORMAT_HF_GPT2},         {"smollm2-360m", FORMAT_HF_LLAMA},
                 {"tinyllama-1.1b", FORMAT_HF_LLAMA}, {"llama-3.2-1b", FORMAT_HF_LLAMA},
                 {"llama-3.2-3b", FORMAT_HF_LLAMA},   {"qwen2.5-0.5b", FORMAT_HF_QWEN2},
                 {"qwen3-0.6b", FORMAT_HF_QWEN3},     {"nanochat-d12", FORMAT_HF_NANOCHAT}};
    for (size_t i = 0; i < ARRAY_LENGTH(known); i++) {
        struct gpt_config c;
        struct error err;
        ASSERT_OK(gpt_config_from_name(&c, known[i].name, NULL, &err), err);
        assert_int_equal(format_for_directory(&c), known[i].format);
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
    static struct gpt_config (*const bases[GPT_FORMATS])(void) = {
        [FORMAT_HF_GPT2] = gpt2,   [FORMAT_HF_LLAMA] = llama,   [FORMAT_HF_QWEN2] = qwen2,
        [FORMAT_GGUF_GPT2] = gpt2, [FORMAT_GGUF_LLAMA] = llama, [FORMAT_GGUF_QWEN2] = qwen2,
        [FORMAT_HF_QWEN3] = qwen3, [FORMAT_GGUF_QWEN3] = qwen3, [FORMAT_HF_NANOCHAT] = nanochat,
    };
    int refused = 0;
    for (int k = 0; k < GPT_FORMATS; k++) {
        if (k == FORMAT_OWN) continue;
        enum gpt_format format = (enum gpt_format)k;
        struct gpt_config base = bases[k]();
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
    mixed = with(qwen2(), "head-dim", 6);
    assert_int_equal(format_for_gguf(&mixed, &err), GPT_FORMATS);
    assert_mentions(err.message, "qwen2");
    assert_mentions(err.message, "--head-dim");
}

/* --- loss and gradients of transformers in float64 (dev/reference/families_float64.py) --- */

/* Fills a buffer of the model's layout with the tensors PREFIX + name. */
static void read_golden(float *out, const struct gpt *g, const struct safetensors *st, enum gpt_format format,
                        const char *prefix) {
    struct weights w;
    struct error err;
    ASSERT_OK(weights_find(&w, &g->config, format, st, prefix, "", true, &err), err);
    memset(out, 0, (size_t)g->layout.total * sizeof *out);
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(&g->config, (enum param_id)id); l++) {
            float *to = out + g->layout.offset[id] + l * g->layout.stride[id];
            ASSERT_OK(weights_read(to, &w, (enum param_id)id, l, 0,
                                   weights_rows(&g->config, (enum param_id)id), &err),
                      err);
        }
    weights_free(&w);
}

/* As a share of the largest expected value. */
static void assert_values(const float *found, const float *expected, int64_t n, const char *family,
                          const char *what) {
    double worst = 0.0, largest = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double off = fabs((double)found[i] - (double)expected[i]);
        if (!(off <= worst)) worst = isnan(off) ? INFINITY : off;
        largest = fmax(largest, fabs((double)expected[i]));
    }
    if (!(largest > 0.0 && worst <= 1e-5 * largest))
        fail_msg("%s: %s is off by %.3g, the largest is %.3g", family, what, worst, largest);
}

static const struct st_view *golden_tensor(const struct safetensors *st, const char *name) {
    const struct st_view *v = safetensors_find(st, name);
    if (!v) fail_msg("the golden has no %s", name);
    return v;
}

/* Of the first sequence, as sampling gets them. */
static void check_logits(const struct gpt *trained, const struct safetensors *st, const int32_t *tokens,
                         const char *family) {
    const struct st_view *v = golden_tensor(st, "logits");
    int64_t T = v->dim[1], V = v->dim[2], Vp = gpt_padded_vocab(&trained->config);
    float *logits = (float *)xmalloc((size_t)Vp * sizeof *logits),
          *expected = (float *)xmalloc((size_t)V * sizeof *expected);
    struct error err;
    struct ctx ctx;
    struct gpt g;
    ctx_init(&ctx, trained->ctx->device, cpu_ops(), false);
    gpt_create(&g, &ctx, &trained->config,
               &(struct gpt_options){.B = 1, .T = T, .dtype = DTYPE_F32, .params = &trained->params});
    gpt_set_batch(&g, tokens, NULL);
    gpt_forward(&g, 0, T);
    for (int64_t t = 0; t < T; t++) {
        gpt_logits(&g, t, logits);
        ASSERT_OK(safetensors_to_f32(expected, v, t * V, V, &err), err);
        assert_values(logits, expected, V, family, "a row of logits");
    }
    ctx_free(&ctx);
    free(logits);
    free(expected);
}

static void check_against_transformers(const char *family) {
    struct safetensors st;
    struct gpt_config config;
    enum gpt_format format;
    struct error err;
    struct ctx ctx;
    struct gpt g;
    ASSERT_OK(safetensors_open(&st, temp_printf("test/golden/family_%s.safetensors", family), &err), err);
    put_text("config.json", safetensors_metadata(&st, "config"));
    ASSERT_OK(model_config_read(&config, &format, scratch_directory(), &err), err);
    const struct st_view *tokens = golden_tensor(&st, "tokens"), *targets = golden_tensor(&st, "targets");
    int64_t B = tokens->dim[0], T = tokens->dim[1], counted = 0;
    for (int64_t i = 0; i < B * T; i++) counted += ((const int32_t *)targets->data)[i] >= 0;
    struct device *device = device_open_cpu();
    ctx_init(&ctx, device, cpu_ops(), false);
    gpt_create(&g, &ctx, &config, &(struct gpt_options){.B = B, .T = T, .train = true, .dtype = DTYPE_F32});
    read_golden(f32(&g.params), &g, &st, format, "param.");
    gpt_set_loss_scale(&g, 1.0f / (float)counted);
    gpt_set_batch(&g, (const int32_t *)tokens->data, (const int32_t *)targets->data);
    gpt_forward_backward(&g, true);

    float *expected = (float *)xmalloc((size_t)g.layout.total * sizeof *expected);
    struct tensor losses = gpt_act(&g, A_LOSSES, 0);
    ASSERT_OK(safetensors_to_f32(expected, golden_tensor(&st, "losses"), 0, B * T, &err), err);
    assert_values(f32(&losses), expected, B * T, family, "the loss of each token");
    ASSERT_OK(safetensors_to_f32(expected, golden_tensor(&st, "loss"), 0, 1, &err), err);
    assert_values(&f32(&g.numbers)[STEP_LOSS], expected, 1, family, "the loss");
    read_golden(expected, &g, &st, format, "grad.");
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(&config, (enum param_id)id); l++) {
            struct tensor grad = gpt_grad(&g, (enum param_id)id, l);
            int64_t at = g.layout.offset[id] + l * g.layout.stride[id];
            assert_values(f32(&grad), expected + at, tensor_count(&grad), family,
                          gpt_param_name((enum param_id)id, l));
        }
    check_logits(&g, &st, (const int32_t *)tokens->data, family);
    free(expected);
    ctx_free(&ctx);
    device->close(device);
    safetensors_close(&st);
}

static void gradients_are_those_of_transformers(void **state) {
    static const char *const families[] = {"llama", "qwen2", "qwen3", "llama3", "linear", "nanochat"};
    for (size_t i = 0; i < ARRAY_LENGTH(families); i++) check_against_transformers(families[i]);
}

/* --- GGUF --- */

/* What llama.cpp calls the parts of layer 1, and where their rows begin in the engine's tensor. */
struct gguf_part {
    const char *name;
    enum param_id id;
    enum gpt_dim rows, after[2]; /* after[]: what stands above it */
    bool rotated;
};
static const struct gguf_part gguf_parts[] = {
    {"token_embd.weight", P_WTE, DIM_VP, {DIM_NONE}, false},
    {"output.weight", P_LM_HEAD, DIM_VP, {DIM_NONE}, false},
    {"output_norm.weight", P_LNF_W, DIM_C, {DIM_NONE}, false},
    {"blk.1.attn_norm.weight", P_LN1_W, DIM_C, {DIM_NONE}, false},
    {"blk.1.attn_q.weight", P_QKV_W, DIM_Q, {DIM_NONE}, true},
    {"blk.1.attn_k.weight", P_QKV_W, DIM_KV, {DIM_Q}, true},
    {"blk.1.attn_v.weight", P_QKV_W, DIM_KV, {DIM_Q, DIM_KV}, false},
    {"blk.1.attn_q.bias", P_QKV_B, DIM_Q, {DIM_NONE}, true},
    {"blk.1.attn_k.bias", P_QKV_B, DIM_KV, {DIM_Q}, true},
    {"blk.1.attn_v.bias", P_QKV_B, DIM_KV, {DIM_Q, DIM_KV}, false},
    {"blk.1.attn_q_norm.weight", P_Q_NORM_W, DIM_HS, {DIM_NONE}, false},
    {"blk.1.attn_k_norm.weight", P_K_NORM_W, DIM_HS, {DIM_NONE}, false},
    {"blk.1.attn_output.weight", P_PROJ_W, DIM_C, {DIM_NONE}, false},
    {"blk.1.ffn_norm.weight", P_LN2_W, DIM_C, {DIM_NONE}, false},
    {"blk.1.ffn_gate.weight", P_FC_W, DIM_FF, {DIM_NONE}, false},
    {"blk.1.ffn_up.weight", P_FC_W, DIM_FF, {DIM_FF}, false},
    {"blk.1.ffn_down.weight", P_FCPROJ_W, DIM_C, {DIM_NONE}, false},
};

/* `neighbours`: row p HS/2 + i of a head, with p = 0 or 1, has become row 2i + p, as llama.cpp's converter
 * does for the architecture llama. */
static void check_gguf_part(const struct gguf *g, const struct gpt *gpt, const struct gguf_part *part,
                            bool neighbours) {
    const struct gpt_config *c = &gpt->config;
    int t = find_tensor(g, part->name);
    struct tensor p = gpt_param(gpt, part->id, 1);
    int64_t rows = part->rows == DIM_VP ? c->vocab_size : gpt_dim_size(c, part->rows), first = 0;
    int64_t cols = p.rank > 1 ? p.dim[1] : 1, HS = c->head_size;
    for (int i = 0; i < 2; i++) first += part->after[i] == DIM_NONE ? 0 : gpt_dim_size(c, part->after[i]);
    assert_int_equal(g->tensor[t].rank, p.rank);
    assert_int_equal(g->tensor[t].dim[p.rank - 1], rows);
    if (p.rank > 1) assert_int_equal(g->tensor[t].dim[0], cols);
    for (int64_t r = 0; r < rows; r++) {
        int64_t i = r % HS, from = neighbours && part->rotated ? r - i + i % 2 * (HS / 2) + i / 2 : r;
        for (int64_t col = 0; col < cols; col++) {
            float rounding, found = gguf_element(g, t, r * cols + col, &rounding);
            if (found != f32(&p)[(first + from) * cols + col])
                fail_msg("%s: element (%d,%d) is another one", part->name, (int)r, (int)col);
        }
    }
}

/* Everything of a model, as llama.cpp reads it. */
static void gguf_files(void **state) {
    const struct {
        struct gpt_config config;
        const char *arch;
    } models[] = {{llama(), "llama"},
                  {with(llama(), "tied", SWITCH_ON), "llama"},
                  {qwen2(), "qwen2"},
                  {with(qwen2(), "tied", SWITCH_OFF), "qwen2"},
                  {qwen3(), "qwen3"}};
    for (size_t k = 0; k < ARRAY_LENGTH(models); k++) {
        struct gpt_config c = with(models[k].config, "vocab-size", 260);
        struct tokenizer *bytes = tokenizer_bytes();
        struct model m;
        struct error err;
        struct gguf g;
        const char *arch = models[k].arch;
        model_make(&m, &c, DTYPE_F32, false);
        paint_model(&m, k);
        ASSERT_OK(
            checkpoint_save(scratch_directory(), &m.zero, bytes, &(struct train_state){.step = 1}, &err),
            err);
        ASSERT_OK(export_gguf(in_scratch("step-00000001"), NULL, in_scratch("m.gguf"), EXPORT_F32, &err),
                  err);
        gguf_read(&g, in_scratch("m.gguf"));
        assert_text(&g, "general.architecture", arch);
        assert_u32(&g, temp_printf("%s.context_length", arch), 9);
        assert_u32(&g, temp_printf("%s.embedding_length", arch), 16);
        assert_u32(&g, temp_printf("%s.feed_forward_length", arch), 40);
        assert_u32(&g, temp_printf("%s.block_count", arch), 3);
        assert_u32(&g, temp_printf("%s.vocab_size", arch), 260);
        assert_u32(&g, temp_printf("%s.attention.head_count", arch), 4);
        assert_u32(&g, temp_printf("%s.attention.head_count_kv", arch), (uint32_t)c.kv_heads);
        assert_f32(&g, temp_printf("%s.attention.layer_norm_rms_epsilon", arch), 1e-6f);
        assert_f32(&g, temp_printf("%s.rope.freq_base", arch), 10000.0f);
        if (strcmp(arch, "qwen3") == 0) {
            assert_u32(&g, "qwen3.attention.key_length", 8);
            assert_u32(&g, "qwen3.attention.value_length", 8);
        }
        size_t whole = 0, layer = 0;
        for (size_t i = 0; i < ARRAY_LENGTH(gguf_parts); i++) {
            if (!gpt_param_copies(&c, gguf_parts[i].id)) continue;
            check_gguf_part(&g, &m.gpt, &gguf_parts[i], strcmp(arch, "llama") == 0);
            *(gpt_param_rows[gguf_parts[i].id].per_layer ? &layer : &whole) += 1;
        }
        assert_int_equal(g.tensors, whole + 3 * layer); /* and no others */
        file_unmap(&g.file);
        tokenizer_free(bytes);
        model_free(&m);
        remove_tree(in_scratch("step-00000001"));
    }
}

/* config.json of Llama and its relatives as transformers 5 and 4 write it, and what the engine would compute
 * differently. */
static void configurations(void **state) {
    static const char head[] =
        "\"hidden_size\": 16, \"intermediate_size\": 40, \"max_position_embeddings\": 9, "
        "\"num_attention_heads\": 4, \"num_hidden_layers\": 3, \"vocab_size\": 37";
#define LLAMA3(before, high)                                                                                 \
    before ": \"llama3\", \"factor\": 32.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": " high           \
           ", \"original_max_position_embeddings\": 8192}"
    static const struct {
        const char *type, *more, *says; /* NULL: accepted */
    } files[] = {
        {"llama", "", NULL},
        {"llama", ", \"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\": \"default\"}", NULL},
        {"llama", ", \"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\": \"llama3\"}",
         "llama3 needs --rope-factor"},
        {"llama", LLAMA3(", \"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\"", "4.0"), NULL},
        {"llama", LLAMA3(", \"rope_theta\": 500000.0, \"rope_scaling\": {\"rope_type\"", "4.0"), NULL},
        {"llama", LLAMA3(", \"rope_scaling\": {\"rope_type\"", "0.5"),
         "must be below --rope-high-freq-factor 0.5"},
        {"llama", ", \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 0.5}", "must be at least 1"},
        {"llama", ", \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": \"x\"}", "not a number"},
        {"llama", ", \"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2.0}",
         "is \"dynamic\", this engine implements \"default\", \"linear\", \"llama3\""},
        {"llama", ", \"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\": \"longrope\"}",
         "is \"longrope\", this engine implements \"default\", \"linear\", \"llama3\""},
        {"llama", ", \"rope_theta\": 500000.0, \"rope_scaling\": null", NULL},
        {"llama", ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}", NULL},
        {"llama", ", \"attention_bias\": true", "attention with biases"},
        {"llama", ", \"mlp_bias\": true", "an MLP with biases"},
        {"llama", ", \"hidden_act\": \"gelu\"", "\"silu\", \"gelu_pytorch_tanh\""},
        {"llama", ", \"hidden_act\": 3", "not a string"},
        {"llama", ", \"num_key_value_heads\": 3", "do not divide"},
        {"llama", ", \"rms_norm_eps\": -1", "epsilon of the norms is -1"},
        {"llama", ", \"rms_norm_eps\": \"x\"", "not a number"},
        {"llama", ", \"head_dim\": 5", "even width"},
        {"llama", ", \"head_dim\": 0", "between 1 and"},
        {"qwen2", ", \"num_key_value_heads\": 4, \"use_sliding_window\": false, \"sliding_window\": 9", NULL},
        {"qwen2", ", \"num_key_value_heads\": 4, \"use_sliding_window\": true", "sliding window"},
        {"qwen2", "", "\"num_key_value_heads\" is missing"},
        {"qwen2", ", \"num_key_value_heads\": 4, \"rope_scaling\": {\"type\": \"yarn\"}",
         "is \"yarn\", this engine implements \"default\", \"linear\", \"llama3\""},
        {"qwen3", ", \"num_key_value_heads\": 2, \"head_dim\": 8", NULL},
        {"qwen3", ", \"num_key_value_heads\": 4, \"attention_bias\": true", "attention with biases"},
        {"qwen3", ", \"num_key_value_heads\": 4, \"use_sliding_window\": true", "sliding window"},
        {"nanochat", "", NULL},
        {"nanochat", ", \"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\": \"default\"}", NULL},
        {"nanochat", ", \"final_logit_softcapping\": null", NULL},
        {"nanochat", ", \"final_logit_softcapping\": \"x\"", "not a number"},
        {"nanochat", ", \"attention_bias\": true", "attention with biases"},
        {"nanochat", ", \"hidden_act\": \"silu\"", "implements \"gelu_pytorch_tanh\", \"relu2\""},
        {"qwen3_moe", "", "\"gpt2\", \"llama\", \"qwen2\", \"qwen3\", \"nanochat\""},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(files); i++) {
        struct gpt_config c;
        enum gpt_format format;
        struct error err = {""};
        char *text = xasprintf("{\"model_type\": \"%s\", %s%s}", files[i].type, head, files[i].more);
        put_text("config.json", text);
        bool ok = model_config_read(&c, &format, scratch_directory(), &err);
        if (ok != (files[i].says == NULL)) fail_msg("%s: %s", files[i].more, ok ? "accepted" : err.message);
        if (!ok) assert_mentions(err.message, files[i].says);
        if (ok) {
            bool two = strcmp(files[i].type, "qwen2") == 0, three = strcmp(files[i].type, "qwen3") == 0;
            bool nano = strcmp(files[i].type, "nanochat") == 0;
            assert_int_equal(format, two     ? FORMAT_HF_QWEN2
                                     : three ? FORMAT_HF_QWEN3
                                     : nano  ? FORMAT_HF_NANOCHAT
                                             : FORMAT_HF_LLAMA);
            assert_true(c.logit_softcap == (nano && !strstr(files[i].more, "null") ? 15.0 : 0.0));
            assert_true(c.embedding_norm == (nano ? SWITCH_ON : SWITCH_OFF));
            assert_true(c.norm_weights == (nano ? SWITCH_OFF : SWITCH_ON));
            assert_true(c.rope_reverse == c.embedding_norm);
            assert_true(c.mlp == (nano ? MLP_RELU2 : MLP_SWIGLU));
            assert_true(c.bias == SWITCH_OFF && c.qkv_bias == (two ? SWITCH_ON : SWITCH_OFF));
            assert_true(c.qk_norm == (three || nano ? SWITCH_ON : SWITCH_OFF));
            assert_true(c.rope_theta == (strstr(files[i].more, "500000") ? 500000.0 : 10000.0));
            bool scaled = strstr(files[i].more, "llama3"), slower = strstr(files[i].more, "linear");
            assert_int_equal(c.rope_scaling, scaled   ? ROPE_SCALING_LLAMA3
                                             : slower ? ROPE_SCALING_LINEAR
                                                      : ROPE_SCALING_NONE);
            assert_true(c.rope_factor == (scaled ? 32.0 : slower ? 2.0 : 0.0));
            assert_true(c.rope_original == (scaled ? 8192 : 0) && c.rope_low == (scaled ? 1.0 : 0.0));
            assert_true(c.rope_high == (scaled ? 4.0 : 0.0));
            assert_true(c.tied == SWITCH_OFF && c.norm_eps == 1e-6);
            assert_true(c.head_size == (three ? 8 : 4) && c.kv_heads == (three ? 2 : 4));
        }
        free(text);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(directories_come_back),
        cmocka_unit_test(presets_belong_to_their_families),
        SCRATCH_TEST(pieces_are_rows),
        cmocka_unit_test(what_a_format_cannot_say_is_refused),
        SCRATCH_TEST(gradients_are_those_of_transformers),
        SCRATCH_TEST(gguf_files),
        SCRATCH_TEST(configurations),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
