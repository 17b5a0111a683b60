/* Export: GGUF files read back by a reader written for this test from the format's description, tensor by
 * tensor and key by key; Hugging Face directories loaded again; what cannot be exported; full disks; the
 * command. */
#include "test/format/gguf.h"
#include "test/scratch.h"

#include "llmc/format/checkpoint.h"
#include "llmc/cli/commands.h"
#include "llmc/format/export.h"
#include "llmc/format/model_config.h"
#include "llmc/format/model_file.h"
#include "llmc/text/bpe_train.h"

#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* --- fixture: a checkpoint with a tokenizer trained on a few words --- */

static const struct gpt_config config = GPT2_CONFIG("exported", 7, 300, 2, 2, 32);
static const char corpus[] =
    "the cat sat on the mat. the cat ate the rat, and the rat sat on the hat. caf\xc3\xa9 caf\xc3\xa9 ";

struct fixture {
    const char *checkpoint; /* the newest */
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer opt;
    struct tokenizer *tokenizer;
};

static void save(struct fixture *s, const struct tokenizer *t, int64_t step) {
    struct error err;
    struct train_state state = {.step = step, .best_val_loss = NAN};
    struct zero zero = {.gpt = &s->gpt, .optimizer = &s->opt};
    if (!checkpoint_save(scratch_directory(), &zero, t, &state, &err)) fail_msg("%s", err.message);
    s->checkpoint = in_scratch("step-%08d", (int)step);
}

static void make_model(struct fixture *s, const struct gpt_config *c) {
    ctx_init(&s->ctx, s->device, cpu_ops(), false);
    struct gpt_options options = {.B = 1, .T = 2};
    gpt_create(&s->gpt, &s->ctx, c, &options);
    optimizer_create(&s->opt, &s->gpt, (struct optimizer_options){0});
    gpt_init_weights(&s->gpt, 3);
    for (int id = P_LN1_W; id < PARAM_ROWS; id++) /* biases too, and nothing symmetric */
        for (int64_t l = 0; l < gpt_param_copies(c, (enum param_id)id); l++) {
            struct tensor t = gpt_param(&s->gpt, (enum param_id)id, l);
            for (int64_t i = 0; i < t.dim[0]; i++) f32(&t)[i] += 0.01f * (float)((i * 7 + id + l) % 97);
        }
}

static int make_fixture(void **state) {
    struct fixture *s = calloc(1, sizeof *s);
    struct error err;
    if (make_scratch(state) != 0) return -1;
    s->device = device_open_cpu();
    make_model(s, &config);
    struct text_span text = {corpus, sizeof corpus - 1};
    s->tokenizer = tokenizer_train(&text, 1, 290, 1, &err);
    if (!s->tokenizer) return -1;
    save(s, s->tokenizer, 1);
    *state = s;
    return 0;
}

static int remove_fixture(void **state) {
    struct fixture *s = *state;
    tokenizer_free(s->tokenizer);
    ctx_free(&s->ctx);
    s->device->close(s->device);
    free(s);
    return remove_scratch(state);
}

static const struct {
    enum param_id id;
    const char *name; /* of layer 1 where there are layers */
} names[] = {{P_WTE, "token_embd.weight"},         {P_WTE, "output.weight"},
             {P_WPE, "position_embd.weight"},      {P_LNF_W, "output_norm.weight"},
             {P_LNF_B, "output_norm.bias"},        {P_LN1_W, "blk.1.attn_norm.weight"},
             {P_LN1_B, "blk.1.attn_norm.bias"},    {P_QKV_W, "blk.1.attn_qkv.weight"},
             {P_QKV_B, "blk.1.attn_qkv.bias"},     {P_PROJ_W, "blk.1.attn_output.weight"},
             {P_PROJ_B, "blk.1.attn_output.bias"}, {P_LN2_W, "blk.1.ffn_norm.weight"},
             {P_LN2_B, "blk.1.ffn_norm.bias"},     {P_FC_W, "blk.1.ffn_up.weight"},
             {P_FC_B, "blk.1.ffn_up.bias"},        {P_FCPROJ_W, "blk.1.ffn_down.weight"},
             {P_FCPROJ_B, "blk.1.ffn_down.bias"}};

/* --- GGUF --- */

static void tensors_in_every_type(void **state) {
    struct fixture *s = *state;
    static const uint32_t types[] = {
        [EXPORT_F32] = 0, [EXPORT_F16] = 1, [EXPORT_BF16] = 30, [EXPORT_Q8_0] = 8};
    static const uint32_t file_types[] = {
        [EXPORT_F32] = 0, [EXPORT_F16] = 1, [EXPORT_BF16] = 32, [EXPORT_Q8_0] = 7};
    for (int type = EXPORT_F32; type <= EXPORT_Q8_0; type++) {
        struct error err;
        struct gguf g;
        const char *path = in_scratch("model.gguf"); /* replaced each time */
        if (!export_gguf(s->checkpoint, NULL, path, (enum export_type)type, &err))
            fail_msg("%s", err.message);
        gguf_read(&g, path);
        assert_int_equal(g.tensors, 5 + 12 * config.layers);
        assert_u32(&g, "general.file_type", file_types[type]);
        for (size_t k = 0; k < ARRAY_LENGTH(names); k++) {
            int t = find_tensor(&g, names[k].name);
            struct tensor p = gpt_param(&s->gpt, names[k].id, 1);
            int64_t rows = names[k].id == P_WTE ? config.vocab_size : p.dim[0],
                    cols = p.rank > 1 ? p.dim[1] : 1;
            bool narrow = p.rank > 1 && names[k].id != P_WPE;
            assert_int_equal(g.tensor[t].rank, p.rank);
            assert_int_equal(g.tensor[t].dim[p.rank - 1], rows);
            if (p.rank > 1) assert_int_equal(g.tensor[t].dim[0], cols);
            assert_int_equal(g.tensor[t].type, narrow ? types[type] : 0);
            int64_t changed = 0;
            for (int64_t i = 0; i < rows * cols; i++) {
                float tolerance, x = gguf_element(&g, t, i, &tolerance), y = f32(&p)[i];
                if (!(fabsf(x - y) <= tolerance))
                    fail_msg("%s in %s: element %d is %.9g instead of %.9g", names[k].name,
                             export_type_name((enum export_type)type), (int)i, (double)x, (double)y);
                changed += x != y;
            }
            assert_true((changed > 0) == (narrow && type != EXPORT_F32)); /* it was really that type */
        }
        file_unmap(&g.file);
        assert_false(path_exists(in_scratch("model.gguf.tmp")));
    }
}

static void keys_describe_the_model(void **state) {
    struct fixture *s = *state;
    struct error err;
    struct gguf g;
    const char *path = in_scratch("model.gguf");
    if (!export_gguf(s->checkpoint, NULL, path, EXPORT_F32, &err)) fail_msg("%s", err.message);
    gguf_read(&g, path);
    assert_text(&g, "general.architecture", "gpt2");
    assert_text(&g, "general.type", "model");
    assert_text(&g, "general.name", "exported");
    assert_u32(&g, "gpt2.context_length", 7);
    assert_u32(&g, "gpt2.embedding_length", 32);
    assert_u32(&g, "gpt2.feed_forward_length", 128);
    assert_u32(&g, "gpt2.block_count", 2);
    assert_u32(&g, "gpt2.attention.head_count", 2);
    assert_f32(&g, "gpt2.attention.layer_norm_epsilon", 1e-5f);
    assert_text(&g, "tokenizer.ggml.model", "gpt2");
    assert_text(&g, "tokenizer.ggml.pre", "gpt-2");
    uint32_t end = (uint32_t)tokenizer_end_of_text(s->tokenizer);
    assert_u32(&g, "tokenizer.ggml.eos_token_id", end);
    assert_u32(&g, "tokenizer.ggml.bos_token_id", end);
    assert_int_equal(seek_key(&g, "tokenizer.ggml.add_bos_token"), 7);
    assert_int_equal(take(&g, 1), 1); /* as `sample` does */
    file_unmap(&g.file);
}

/* The printable character of GPT-2 for a byte, by its definition: the printable Latin-1 characters stand
 * for themselves, the other bytes for U+0100, U+0101, ... in order. */
static void printable(char *out, const char *bytes, int size) {
    for (int i = 0; i < size; i++) {
        int b = (uint8_t)bytes[i], code = 256;
        bool plain = false;
        for (int k = 0; k <= b; k++) {
            plain = (k >= 33 && k <= 126) || (k >= 161 && k <= 172) || k >= 174;
            if (!plain && k < b) code++;
        }
        if (plain) code = b;
        if (code >= 128) {
            *out++ = (char)(0xc0 | code >> 6);
            *out++ = (char)(0x80 | (code & 63));
        } else {
            *out++ = (char)code;
        }
    }
    *out = 0;
}

static void tokenizer_goes_along(void **state) {
    struct fixture *s = *state;
    struct error err;
    struct gguf g;
    const char *path = in_scratch("model.gguf");
    if (!export_gguf(s->checkpoint, NULL, path, EXPORT_F32, &err)) fail_msg("%s", err.message);
    gguf_read(&g, path);
    int V = tokenizer_vocab_size(s->tokenizer), end = tokenizer_end_of_text(s->tokenizer);
    assert_true(V > 257 && V < config.vocab_size);
    assert_int_equal(seek_array(&g, "tokenizer.ggml.tokens", 8), config.vocab_size);
    for (int i = 0; i < config.vocab_size; i++) {
        char text[512], expected[512];
        take_string(&g, text, sizeof text);
        int size;
        const char *bytes = i < V ? tokenizer_token_bytes(s->tokenizer, i, &size) : NULL;
        if (i == end)
            snprintf(expected, sizeof expected, "<|endoftext|>");
        else if (bytes)
            printable(expected, bytes, size);
        else
            snprintf(expected, sizeof expected, "[PAD%d]", i);
        assert_string_equal(text, expected);
    }
    assert_int_equal(seek_array(&g, "tokenizer.ggml.token_type", 5), config.vocab_size);
    for (int i = 0; i < config.vocab_size; i++) assert_int_equal(take(&g, 4), i == end ? 3 : i < V ? 1 : 5);
    /* Merge k makes token 256 + k: its two parts joined are that token's name. */
    int64_t merges = seek_array(&g, "tokenizer.ggml.merges", 8);
    assert_int_equal(merges, V - 257);
    for (int64_t k = 0; k < merges; k++) {
        char text[512], expected[512];
        int size;
        take_string(&g, text, sizeof text);
        char *space = strchr(text, ' ');
        assert_non_null(space);
        assert_null(strchr(space + 1, ' '));
        memmove(space, space + 1, strlen(space));
        const char *bytes = tokenizer_token_bytes(s->tokenizer, 256 + k, &size);
        printable(expected, bytes, size);
        assert_string_equal(text, expected);
    }
    file_unmap(&g.file);
}

/* tokenizer.json of the checkpoint with one piece of text replaced. */
static void edit_tokenizer(struct fixture *s, const char *from, const char *to) {
    char *path = xasprintf("%s/tokenizer.json", s->checkpoint), *text = get_text(path),
         *at = strstr(text, from);
    if (!at) fail_msg("no %s in tokenizer.json", from);
    char *edited = xasprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    put_text(path, edited);
    free(edited);
    free(text);
    free(path);
}

static void what_cannot_be_exported(void **state) {
    struct fixture *s = *state;
    struct error err = {""};
    const char *path = in_scratch("model.gguf");
    assert_false(export_gguf(in_scratch("missing"), NULL, path, EXPORT_F32, &err));
    assert_mentions(err.message, "missing");
    assert_false(export_gguf(s->checkpoint, NULL, scratch_directory(), EXPORT_F32, &err));
    assert_mentions(err.message, "is a directory");
    assert_false(export_gguf(s->checkpoint, NULL, in_scratch("no/such/model.gguf"), EXPORT_F32, &err));
    assert_mentions(err.message, "no/such/model.gguf");

    /* Values that a type cannot hold. */
    struct tensor w = gpt_param(&s->gpt, P_FC_W, 1);
    const struct {
        float value;
        enum export_type type;
        bool good;
    } values[] = {
        {65504.0f, EXPORT_F16, true},    {65520.0f, EXPORT_F16, false}, {65520.0f, EXPORT_BF16, true},
        {1e7f, EXPORT_Q8_0, false},      {8e6f, EXPORT_Q8_0, true},     {NAN, EXPORT_Q8_0, false},
        {-INFINITY, EXPORT_Q8_0, false}, {NAN, EXPORT_F32, true},       {NAN, EXPORT_BF16, true}};
    float kept = f32(&w)[40];
    for (size_t i = 0; i < ARRAY_LENGTH(values); i++) {
        f32(&w)[40] = values[i].value;
        save(s, s->tokenizer, 2);
        unlink(path);
        bool ok = export_gguf(s->checkpoint, NULL, path, values[i].type, &err);
        if (ok != values[i].good)
            fail_msg("%g in %s: %s", (double)values[i].value, export_type_name(values[i].type),
                     ok ? "accepted" : err.message);
        if (ok) continue;
        assert_mentions(err.message, "h.1.mlp.c_fc.weight holds a value");
        assert_false(path_exists(path));
        assert_false(path_exists(in_scratch("model.gguf.tmp")));
    }
    f32(&w)[40] = 70000.0f;
    save(s, s->tokenizer, 2);
    assert_false(export_huggingface(s->checkpoint, NULL, in_scratch("hf"), EXPORT_F16, false, &err));
    assert_mentions(err.message, "65504");
    assert_false(path_exists(in_scratch("hf")));
    assert_false(path_exists(in_scratch("hf.tmp")));
    f32(&w)[40] = kept;
    assert_false(export_huggingface(s->checkpoint, NULL, in_scratch("hf"), EXPORT_Q8_0, false, &err));
    assert_mentions(err.message, "q8_0 is a type of GGUF files");

    /* Tokenizers. */
    save(s, NULL, 3);
    assert_false(export_gguf(s->checkpoint, NULL, path, EXPORT_F32, &err));
    assert_mentions(err.message, "has no tokenizer");
    save(s, s->tokenizer, 3);
    edit_tokenizer(s, "\"add_prefix_space\":false", "\"add_prefix_space\":true");
    assert_false(export_gguf(s->checkpoint, NULL, path, EXPORT_F32, &err));
    assert_mentions(err.message, "no pre-tokenizer like that");
    save(s, s->tokenizer, 3);
    edit_tokenizer(s, "\"merges\"", "\"margins\"");
    assert_false(export_gguf(s->checkpoint, NULL, path, EXPORT_F32, &err));
    assert_mentions(err.message, "tokenizer.json");
}

static void rows_that_blocks_do_not_divide(void **state) {
    struct fixture *s = *state;
    struct error err;
    struct gguf g;
    struct gpt_config odd = GPT2_CONFIG("odd", 5, 257, 1, 3, 36);
    ctx_free(&s->ctx);
    make_model(s, &odd);
    struct tokenizer *bytes = tokenizer_bytes();
    save(s, bytes, 9);
    tokenizer_free(bytes);
    const char *path = in_scratch("model.gguf");
    assert_false(export_gguf(s->checkpoint, NULL, path, EXPORT_Q8_0, &err));
    assert_mentions(err.message, "multiples of 32 long, and those of wte.weight have 36");
    if (!export_gguf(s->checkpoint, NULL, path, EXPORT_F16, &err)) fail_msg("%s", err.message);
    gguf_read(&g, path);
    assert_int_equal(seek_array(&g, "tokenizer.ggml.merges", 8), 0);
    file_unmap(&g.file);
}

static void q8_0_blocks(void **state) {
    (void)state;
    float x[32] = {127.0f, -127.0f, 0.5f, -0.5f, 1.5f, 2.5f, 0.49f, -63.0f};
    uint8_t out[Q8_0_BYTES];
    static const int8_t expected[] = {127, -127, 1, -1, 2, 3, 0, -63}; /* scale 1: halves away from zero */
    assert_true(q8_0_block(out, x));
    assert_int_equal(out[0] | out[1] << 8, 0x3c00);
    for (int i = 0; i < 32; i++) assert_int_equal((int8_t)out[2 + i], i < 8 ? expected[i] : 0);
    memset(x, 0, sizeof x);
    assert_true(q8_0_block(out, x));
    for (int i = 0; i < Q8_0_BYTES; i++) assert_int_equal(out[i], 0);
    x[31] = 1e-42f; /* a scale that even fp32 hardly holds */
    assert_true(q8_0_block(out, x));
    for (int i = 0; i < Q8_0_BYTES; i++) assert_int_equal(out[i], 0);
    x[31] = NAN;
    assert_false(q8_0_block(out, x));
    x[31] = INFINITY;
    assert_false(q8_0_block(out, x));
}

static void a_full_disk_leaves_nothing(void **state) {
    struct fixture *s = *state;
    struct rlimit unlimited;
    getrlimit(RLIMIT_FSIZE, &unlimited);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    const char *gguf = in_scratch("model.gguf"), *hf = in_scratch("hf");
    int failures = 0;
    for (rlim_t limit = 0; limit < 120000; limit += 3001) {
        struct rlimit small = {limit, unlimited.rlim_max};
        struct error err = {""};
        setrlimit(RLIMIT_FSIZE, &small);
        bool a = export_gguf(s->checkpoint, NULL, gguf, EXPORT_F32, &err);
        bool b = export_huggingface(s->checkpoint, NULL, hf, EXPORT_F32, false, &err);
        setrlimit(RLIMIT_FSIZE, &unlimited);
        assert_false(a && limit < 100000);
        assert_true(path_exists(gguf) == a && path_exists(hf) == b);
        assert_false(path_exists(in_scratch("model.gguf.tmp")));
        assert_false(path_exists(in_scratch("hf.tmp")));
        if (!b) assert_mentions(err.message, "File too large");
        failures += !a + !b;
        unlink(gguf);
        remove_tree(hf);
    }
    signal(SIGXFSZ, handler);
    assert_true(failures > 60);
}

/* --- Hugging Face directories --- */

static void directories_load_again(void **state) {
    struct fixture *s = *state;
    static const char *const to[] = {"f32", "f16", "bf16/"};
    for (int type = EXPORT_F32; type <= EXPORT_BF16; type++) {
        struct error err;
        struct gpt_config c;
        const char *dir = in_scratch("%s", to[type]);
        if (!export_huggingface(s->checkpoint, NULL, dir, (enum export_type)type, false, &err))
            fail_msg("%s", err.message);
        assert_false(path_exists(in_scratch("bf16.tmp")));
        if (!checkpoint_config(&c, dir, &err)) fail_msg("%s", err.message);
        assert_null(gpt_config_difference(&c, &config));
        assert_string_equal(c.name, config.name);
        struct ctx ctx;
        struct gpt g;
        ctx_init(&ctx, s->device, cpu_ops(), false);
        struct gpt_options options = {.B = 1, .T = 2};
        gpt_create(&g, &ctx, &c, &options);
        if (!checkpoint_load_weights(&g, dir, &err)) fail_msg("%s", err.message);
        for (int64_t i = 0; i < g.layout.total; i++) {
            float x = f32(&s->gpt.params)[i];
            if (type == EXPORT_BF16) x = f32_from_bf16(bf16_from_f32(x));
            if (type == EXPORT_F16) x = half_to_float(f16_from_f32(x));
            assert_true(f32(&g.params)[i] == x);
        }
        ctx_free(&ctx);
        struct tokenizer *t = checkpoint_load_tokenizer(dir, &err);
        assert_non_null(t);
        assert_true(tokenizer_hash(t) == tokenizer_hash(s->tokenizer));
        tokenizer_free(t);
        assert_false(
            export_huggingface(s->checkpoint, NULL, dir, EXPORT_F32, false, &err)); /* not over something */
        assert_mentions(err.message, "not empty; name a new directory");
        if (!export_huggingface(s->checkpoint, NULL, dir, (enum export_type)type, true, &err))
            fail_msg("%s", err.message);
        /* A model that came from elsewhere is exported in the same way. */
        if (!export_gguf(dir, NULL, in_scratch("again.gguf"), EXPORT_F32, &err)) fail_msg("%s", err.message);
    }
    struct error err;
    assert_true(make_directories(in_scratch("empty"), &err));
    if (!export_huggingface(s->checkpoint, NULL, in_scratch("empty"), EXPORT_BF16, false, &err))
        fail_msg("%s", err.message);
    assert_false(
        export_huggingface(s->checkpoint, NULL, in_scratch("f32/config.json"), EXPORT_BF16, false, &err));
    assert_mentions(err.message, "not a directory");
}

/* --- the command --- */

static int run_command(const struct fixture *s, const char *from, const char *to, const char *type) {
    char *argv[] = {(char *)"--from", (char *)from, (char *)"--to", (char *)to, (char *)"--type",
                    (char *)type,     NULL};
    fflush(stdout);
    int out = dup(1), err = dup(2), null = open(in_scratch(".output"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(null, 1);
    dup2(null, 2);
    int status = cmd_export(6, argv);
    fflush(stdout);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    close(null);
    return status;
}

static void the_command_chooses_by_name(void **state) {
    struct fixture *s = *state;
    struct gguf g;
    assert_int_equal(run_command(s, scratch_directory(), in_scratch("a.gguf"), "q8_0"),
                     0); /* a run directory */
    gguf_read(&g, in_scratch("a.gguf"));
    assert_int_equal(g.tensor[find_tensor(&g, "token_embd.weight")].type, 8);
    file_unmap(&g.file);
    assert_int_equal(run_command(s, s->checkpoint, in_scratch("slim"), "bf16"), 0);
    assert_true(path_exists(in_scratch("slim/model.safetensors")));
    assert_false(path_exists(in_scratch("slim/optimizer.safetensors")));
    assert_int_equal(run_command(s, s->checkpoint, in_scratch("slim"), "bf16"), 1);
    assert_int_equal(run_command(s, in_scratch("missing"), in_scratch("b"), "bf16"), 1);
    assert_int_equal(run_command(s, s->checkpoint, in_scratch("b"), "int4"), 2);
    assert_false(path_exists(in_scratch("b")));
}

/* --- tokens that begin and end a text --- */

static void ids_survive(void **state) {
    struct fixture *s = *state;
    struct error err;
    struct gguf g;
    /* With a tokenizer, with tokens of config.json that are not its end of text, and without a
     * tokenizer. */
    s->gpt.config.bos = (struct gpt_token_ids){1, {257}};
    s->gpt.config.eos = (struct gpt_token_ids){2, {258, 299}};
    for (int with = 1; with >= 0; with--) {
        save(s, with ? s->tokenizer : NULL, 4 + with);
        const char *name = with ? "with" : "without", *to = in_scratch("%s", name);
        if (!export_huggingface(s->checkpoint, NULL, to, EXPORT_F32, false, &err))
            fail_msg("%s", err.message);
        char *text = get_text(in_scratch("%s/config.json", name));
        assert_mentions(text, "\"bos_token_id\": 257");
        assert_mentions(text, "\"n_ctx\": 7");
        free(text);
        text = get_text(in_scratch("%s/generation_config.json", name));
        assert_mentions(text, "\"eos_token_id\": [\n    258,\n    299\n  ]");
        free(text);
        assert_int_equal(path_exists(in_scratch("%s/tokenizer_config.json", name)), with);
    }
    if (!export_gguf(in_scratch("with"), NULL, in_scratch("model.gguf"), EXPORT_F32, &err))
        fail_msg("%s", err.message);
    gguf_read(&g, in_scratch("model.gguf"));
    assert_u32(&g, "tokenizer.ggml.bos_token_id", 257);
    assert_u32(&g, "tokenizer.ggml.eos_token_id", 258);
    file_unmap(&g.file);
    char *text = get_text(in_scratch("with/tokenizer_config.json"));
    assert_mentions(text, "\"tokenizer_class\": \"PreTrainedTokenizerFast\"");
    assert_mentions(text, "\"model_max_length\": 7");
    assert_mentions(text, "\"add_prefix_space\": false");
    assert_null(strstr(text, "bos_token")); /* 257 and 258 are no special tokens of this tokenizer */
    free(text);

    struct gpt_config c;
    if (!checkpoint_config(&c, in_scratch("without"), &err)) fail_msg("%s", err.message);
    assert_int_equal(model_begin_of_text(&c, NULL), 257);
    assert_true(model_ends_text(&c, NULL, 299) && !model_ends_text(&c, NULL, 257));
    c.bos.count = 0;
    assert_int_equal(model_begin_of_text(&c, s->tokenizer), 258);
    c.eos.count = 0;
    assert_int_equal(model_begin_of_text(&c, s->tokenizer), tokenizer_end_of_text(s->tokenizer));
    assert_int_equal(model_begin_of_text(&c, NULL), -1);
    c.vocab_size = 50304;
    assert_int_equal(model_begin_of_text(&c, NULL), 50256);
}

static void what_llama_cpp_cannot_do_is_said(void **state) {
    struct fixture *s = *state;
    static const struct {
        const char *from, *to, *said;
    } edits[] = {{"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", "NFC"},
                 {"\"lstrip\": false", "\"lstrip\": true", "lstrip"}};
    for (size_t i = 0; i < ARRAY_LENGTH(edits); i++) {
        save(s, s->tokenizer, 6);
        for (int edited = 0; edited < 2; edited++) {
            if (edited) {
                edit_tokenizer(s, edits[i].from, edits[i].to);
                unlink(in_scratch("step-00000006/trainer.json")); /* its checksums */
            }
            unlink(in_scratch("model.gguf"));
            assert_int_equal(run_command(s, s->checkpoint, in_scratch("model.gguf"), "f32"), 0);
            char *output = get_text(in_scratch(".output"));
            assert_int_equal(strstr(output, "warning") && strstr(output, edits[i].said), edited);
            free(output);
        }
    }
}

#define FIXTURE_TEST(f) cmocka_unit_test_setup_teardown(f, make_fixture, remove_fixture)

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(tensors_in_every_type),
        FIXTURE_TEST(keys_describe_the_model),
        FIXTURE_TEST(tokenizer_goes_along),
        FIXTURE_TEST(what_cannot_be_exported),
        FIXTURE_TEST(rows_that_blocks_do_not_divide),
        cmocka_unit_test(q8_0_blocks),
        FIXTURE_TEST(a_full_disk_leaves_nothing),
        FIXTURE_TEST(directories_load_again),
        FIXTURE_TEST(the_command_chooses_by_name),
        FIXTURE_TEST(ids_survive),
        FIXTURE_TEST(what_llama_cpp_cannot_do_is_said),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
