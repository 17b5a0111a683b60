/* GGUF files as models: what export wrote comes back, in every type and architecture, with its tokenizer;
 * files that lie are refused with the key or tensor that is wrong. test_export.c has the other direction,
 * with a reader of its own. */
#include "test/format/checkpoint.h"

#include "llmc/format/export.h"
#include "llmc/format/gguf.h"
#include "llmc/text/bpe_train.h"

static struct gpt_config gpt2(void) { return (struct gpt_config)GPT2_CONFIG("small", 9, 300, 3, 4, 32); }

static struct gpt_config llama(void) {
    struct gpt_config c = {
        .name = "small", .context = 9, .vocab_size = 300, .layers = 3, .heads = 4, .channels = 32};
    c.positions = POSITIONS_ROPE;
    c.norm = NORM_RMS;
    c.mlp = MLP_SWIGLU;
    c.bias = SWITCH_OFF;
    c.tied = SWITCH_OFF;
    c.kv_heads = 2;
    c.norm_eps = 1e-6;
    c.rope_theta = 500000;
    gpt_config_complete(&c);
    return c;
}

static struct gpt_config qwen2(void) {
    struct gpt_config c = llama();
    c.qkv_bias = SWITCH_ON;
    c.tied = SWITCH_ON;
    return c;
}

static struct gpt_config qwen3(void) {
    struct gpt_config c = llama();
    c.qk_norm = SWITCH_ON;
    c.head_size = 8;
    return c;
}

static struct gpt_config linear(struct gpt_config c) {
    c.rope_scaling = ROPE_SCALING_LINEAR;
    c.rope_factor = 2.5;
    return c;
}

/* As Llama 3.2, or with other limits. Its four pairs turn 0.16 L, 6e-3 L, 2e-4 L and 8e-6 L times in L
 * tokens. */
static struct gpt_config llama3(struct gpt_config c, int64_t L, double low, double high) {
    c.rope_scaling = ROPE_SCALING_LLAMA3;
    c.rope_factor = 32;
    c.rope_original = L;
    c.rope_low = low;
    c.rope_high = high;
    return c;
}

static struct tokenizer *trained(void) {
    static const char text[] = "the cat sat on the mat. the cat ate the rat, and the rat sat on the hat. ";
    struct text_span span = {text, sizeof text - 1};
    struct error err;
    struct tokenizer *t = tokenizer_train(&span, 1, 280, 1, &err);
    if (!t) fail_msg("%s", err.message);
    return t;
}

/* SCRATCH/m.gguf, of a painted model, which is left in *m. */
static const char *export_model(struct model *m, const struct gpt_config *c, const struct tokenizer *t,
                                enum export_type type) {
    struct error err;
    struct train_state state = {.step = 1};
    const char *path = in_scratch("m.gguf");
    model_make(m, c, DTYPE_F32, false);
    paint_model(m, 5);
    ASSERT_OK(checkpoint_save(scratch_directory(), &m->zero, t, &state, &err), err);
    ASSERT_OK(export_gguf(in_scratch("step-00000001"), NULL, path, type, &err), err);
    return path;
}

/* The same model; its values, at most 1.5, to a relative error. q8_0 rounds to 1/127 of the largest in a
 * block, and that scale to fp16. */
static void assert_weights(const char *path, const struct model *m, double allowed) {
    struct gpt_config c;
    struct error err;
    struct model found;
    ASSERT_OK(checkpoint_config(&c, path, &err), err);
    const struct gpt_field *f = gpt_config_difference(&c, &m->gpt.config);
    if (f) fail_msg("the %s is another one", f->what);
    model_make(&found, &c, DTYPE_F32, false);
    ASSERT_OK(checkpoint_load_weights(&found.gpt, path, &err), err);
    const float *a = f32(&found.gpt.params), *b = f32(&m->gpt.params);
    for (int64_t i = 0; i < m->gpt.layout.total; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= allowed * 1.5))
            fail_msg("element %" PRId64 " is %g, expected %g", i, (double)a[i], (double)b[i]);
    model_free(&found);
}

enum { MODELS = 8 };
static void every_model(struct gpt_config models[MODELS]) {
    const struct gpt_config all[MODELS] = {gpt2(),
                                           llama(),
                                           qwen2(),
                                           qwen3(),
                                           linear(llama()),
                                           linear(qwen2()),
                                           llama3(llama(), 8192, 1.0, 4.0),
                                           llama3(llama(), 65536, 1.5, 1000.0)};
    memcpy(models, all, sizeof all);
}

static void models_come_back(void **state) {
    struct gpt_config models[MODELS];
    every_model(models);
    static const double allowed[] = {[EXPORT_F32] = 0.0,
                                     [EXPORT_F16] = 1.0 / 2048,
                                     [EXPORT_BF16] = 1.0 / 256,
                                     [EXPORT_Q8_0] = 0.5 / 127 + 1.0 / 2048};
    struct tokenizer *t = trained();
    for (int i = 0; i < MODELS; i++)
        for (int type = EXPORT_F32; type <= EXPORT_Q8_0; type++) {
            struct model m;
            struct error err;
            const char *path = export_model(&m, &models[i], t, (enum export_type)type);
            char *itself = checkpoint_find(path, &err);
            assert_string_equal(itself, path);
            free(itself);
            assert_true(checkpoint_holds_model(path));
            assert_weights(path, &m, allowed[type]);
            struct tokenizer *found = checkpoint_load_tokenizer(path, &err);
            if (!found) fail_msg("%s", err.message);
            assert_int_equal(tokenizer_hash(found), tokenizer_hash(t));
            assert_int_equal(tokenizer_end_of_text(found), tokenizer_end_of_text(t));
            tokenizer_free(found);
            model_free(&m);
        }
    tokenizer_free(t);
}

static void assert_same_file(const char *a, const char *b) {
    size_t n, k;
    char *x = get_file(a, &n), *y = get_file(b, &k);
    assert_int_equal(n, k);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

/* Exported again, as GGUF and as a directory: the same bytes. */
static void exported_again(void **state) {
    struct gpt_config models[MODELS];
    every_model(models);
    struct tokenizer *t = trained();
    for (int i = 0; i < MODELS; i++) {
        struct model m;
        struct error err;
        const char *path = export_model(&m, &models[i], t, EXPORT_BF16), *again = in_scratch("again.gguf");
        ASSERT_OK(export_gguf(path, NULL, again, EXPORT_BF16, &err), err);
        assert_same_file(path, again);
        ASSERT_OK(
            export_huggingface(in_scratch("step-00000001"), NULL, in_scratch("a"), EXPORT_BF16, true, &err),
            err);
        ASSERT_OK(export_huggingface(path, NULL, in_scratch("b"), EXPORT_BF16, true, &err), err);
        assert_same_file(in_scratch("a/model.safetensors"), in_scratch("b/model.safetensors"));
        assert_same_file(in_scratch("a/config.json"), in_scratch("b/config.json"));
        model_free(&m);
    }
    tokenizer_free(t);
}

/* --- files that lie --- */

static const char *find(const char *data, size_t size, const char *text) {
    const char *p = memmem(data, size, text, strlen(text));
    if (!p) fail_msg("there is no \"%s\" in the file", text);
    return p;
}

/* Bytes at `offset` behind a text become `to`. */
struct lie {
    const char *text;
    int64_t offset;
    const char *to;
    int bytes;
    const char *said;
};
static const struct lie lies[] = {
    {"GGUF", 0, "GGML", 4, "magic number"}, /* then it is taken for one of llm.c's files */
    {"GGUF", 4, "\1\0\0\0", 4, "is version 1 of GGUF, this engine reads 2 and 3"},
    {"GGUF", 4, "\0\0\0\3", 4, "big-endian"},
    {"GGUF", 8, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, "for which it is too short"},
    {"GGUF", 16, "\xff\xff\xff\xff\0\0\0\0", 8, "for which it is too short"},
    {"general.architecture", 20 + 12, "mamba", 5, "of the architecture mamba, this engine knows gpt2, llama"},
    {"general.architecture", 0, "general.archimandrit!", 20, "has no key general.architecture"},
    {"general.architecture", -8, "\xff\xff\xff\xff\xff\xff\xff\x7f", 8, "ends within the keys"},
    {"llama.block_count", 17 + 4, "\0\0\0\0", 4, "must be between 1 and"},
    {"llama.block_count", 17 + 4, "\x0f\x27\0\0", 4, "too few for a model of 9999 layers"},
    {"llama.block_count", 17 + 4, "\2\0\0\0", 4, "is not part of"},
    {"llama.block_count", 17, "\x63\0\0\0", 4, "llama.block_count: unknown type 99"},
    {"llama.block_count", 0, "llama.block_coUnt", 17, "has no key llama.block_count"},
    {"llama.rope.dimension_count", 26 + 4, "\4\0\0\0", 4, "llama.rope.dimension_count is 4, expected 8"},
    {"llama.rope.dimension_count", 0, "llama.attention.logit_soft", 26, "does not implement"},
    {"llama.rope.dimension_count", 0, "llama.context_length\0\0\0\0\0\0", 26, "no name that is one"},
    {"llama.vocab_size", 16 + 4, "\4\0\0\0", 4, "llama.vocab_size is 4, expected 300"},
    {"llama.feed_forward_length", 25 + 4, "\x20\0\0\0", 4, "does not fit the configuration"},
    {"blk.1.attn_q.weight", 19, "\7\0\0\0", 4, "has 7 dimensions"},
    {"blk.1.attn_q.weight", 19 + 4, "\xff\xff\xff\xff\xff\xff\xff\x0f", 8, "its shape overflows"},
    {"blk.1.attn_q.weight", 19 + 20, "\x0c\0\0\0", 4, "is stored as Q4_K; this engine reads F32, F16"},
    {"blk.1.attn_q.weight", 19 + 24, "\1\0\0\0\0\0\0\0", 8, "no multiple of 32"},
    {"blk.1.attn_q.weight", 19 + 24, "\0\0\0\1\0\0\0\0", 8, "truncated: tensor blk.1.attn_q.weight ends"},
    {"blk.1.attn_q.weight", 0, "blk.2.attn_q.weight", 19, "tensor blk.2.attn_q.weight is there twice"},
    {"blk.1.attn_q.weight", 0, "blk.9.attn_q.weight", 19, "tensor \"blk.1.attn_q.weight\" is missing"},
    {"tokenizer.ggml.merges", 0, "rope.ggml.merges.other", 21, NULL},
};

static void lies_are_refused(void **state) {
    struct gpt_config c = llama();
    struct tokenizer *t = trained();
    struct model m;
    const char *path = export_model(&m, &c, t, EXPORT_F16), *changed = in_scratch("lie.gguf");
    size_t size;
    char *data = get_file(path, &size);
    for (size_t i = 0; i < ARRAY_LENGTH(lies); i++) {
        struct error err = {""};
        struct gpt_config found;
        char *copy = xmalloc(size);
        memcpy(copy, data, size);
        memcpy(copy + (find(data, size, lies[i].text) - data) + lies[i].offset, lies[i].to,
               (size_t)lies[i].bytes);
        put_file(changed, copy, size);
        bool ok = checkpoint_config(&found, changed, &err);
        if (ok == (lies[i].said != NULL) || (lies[i].said && !strstr(err.message, lies[i].said)))
            fail_msg("%s at %d: \"%s\", expected \"%s\"", lies[i].text, (int)lies[i].offset, err.message,
                     lies[i].said);
        free(copy);
    }
    free(data);
    model_free(&m);
    tokenizer_free(t);
}

/* rope_freqs.weight stands last: four numbers, and padding. */
static void other_scaling_is_refused(void **state) {
    enum { OWN = 100 }; /* times what stands there */
    static const struct {
        float divisor[4];
        int scaling; /* 0: refused */
    } files[] = {{{1, 1, OWN, 32}, ROPE_SCALING_LLAMA3},
                 {{1, 1, 1, 1}, ROPE_SCALING_NONE},
                 {{1, 8, 1, 32}, 0},
                 {{1, 1, OWN, 0.5f}, 0},
                 {{1, 1, OWN, NAN}, 0},
                 {{1, 1, 1.001f * OWN, 32}, 0},
                 {{2, 1, OWN, 32}, 0}};
    struct gpt_config c = llama3(llama(), 8192, 1.0, 4.0), found;
    struct tokenizer *t = trained();
    struct model m;
    struct error err;
    const char *path = export_model(&m, &c, t, EXPORT_F16);
    size_t size;
    char *data = get_file(path, &size);
    float own[4];
    memcpy(own, data + size - GGUF_ALIGNMENT, sizeof own);
    assert_true(own[0] == 1.0f && own[1] == 1.0f && own[2] > 1.0f && own[2] < 32.0f && own[3] == 32.0f);
    for (size_t i = 0; i < ARRAY_LENGTH(files); i++) {
        float divisor[4];
        memcpy(divisor, files[i].divisor, sizeof divisor);
        if (divisor[2] >= OWN) divisor[2] *= own[2] / OWN;
        memcpy(data + size - GGUF_ALIGNMENT, divisor, sizeof divisor);
        put_file(path, data, size);
        bool ok = checkpoint_config(&found, path, &err);
        if (ok != (files[i].scaling > 0)) fail_msg("file %d: %s", (int)i, ok ? "taken" : err.message);
        if (ok) assert_int_equal(found.rope_scaling, files[i].scaling);
        if (!ok && !strstr(err.message, "is not what Llama 3.1's scaling gives")) fail_msg("%s", err.message);
    }
    free(data);
    model_free(&m);
    tokenizer_free(t);
}

static void every_truncation_is_refused(void **state) {
    struct gpt_config c = qwen2();
    struct tokenizer *t = trained();
    struct model m;
    const char *path = export_model(&m, &c, t, EXPORT_Q8_0), *cut = in_scratch("cut.gguf");
    size_t size;
    char *data = get_file(path, &size);
    struct error err;
    struct gpt_config found;
    for (size_t n = 4; n < size - GGUF_ALIGNMENT; n += n < 20000 ? 61 : 4099) {
        put_file(cut, data, n);
        assert_false(checkpoint_config(&found, cut, &err));
        if (!strstr(err.message, "truncated") && !strstr(err.message, "too short"))
            fail_msg("%zu bytes: %s", n, err.message);
    }
    free(data);
    model_free(&m);
    tokenizer_free(t);
}

/* A tokenizer that is not known leaves the model usable, with --tokenizer. */
static void other_tokenizers_are_named(void **state) {
    struct gpt_config c = llama();
    struct tokenizer *t = trained();
    struct model m;
    struct error err;
    const char *path = export_model(&m, &c, t, EXPORT_F16), *changed = in_scratch("other.gguf");
    static const struct lie others[] = {
        {"tokenizer.ggml.model", 20 + 12, "bert", 4, "is of the kind bert"},
        {"tokenizer.ggml.pre", 18 + 12, "jais!", 5, "tokenizer.ggml.pre is jais!: how it cuts words"},
        {"tokenizer.ggml.merges", 0, "tokenizer.ggml.Merges", 21, "no lists that belong together"},
        {"tokenizer.ggml.tokens", 21 + 4 + 4 + 8 + 8, "\xff", 1, "token 0 is no UTF-8 text"}};
    size_t size;
    char *data = get_file(path, &size);
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++) {
        struct gpt_config found;
        char *copy = xmalloc(size);
        memcpy(copy, data, size);
        memcpy(copy + (find(data, size, others[i].text) - data) + others[i].offset, others[i].to,
               (size_t)others[i].bytes);
        put_file(changed, copy, size);
        ASSERT_OK(checkpoint_config(&found, changed, &err), err);
        assert_null(checkpoint_load_tokenizer(changed, &err));
        if (!strstr(err.message, others[i].said)) fail_msg("\"%s\", not %s", err.message, others[i].said);
        free(copy);
    }
    free(data);
    model_free(&m);
    tokenizer_free(t);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {SCRATCH_TEST(models_come_back),
                                       SCRATCH_TEST(exported_again),
                                       SCRATCH_TEST(lies_are_refused),
                                       SCRATCH_TEST(other_scaling_is_refused),
                                       SCRATCH_TEST(every_truncation_is_refused),
                                       SCRATCH_TEST(other_tokenizers_are_named)};
    return test_main(argc, argv, tests, NULL, NULL);
}
