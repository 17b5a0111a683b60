/* Checkpoints: exact round trips, the Hugging Face layout, foreign directories, refusals, damage, full disks,
 * kill -9 while saving, pruning.
 *
 * Order: fixture; helpers; round trips; layout; foreign models; refusals; finding and damage; failing disks;
 * killed processes (the program runs itself with "save-forever DIR"); training across a checkpoint. */
#include "test/test.h"

#include "llmc/checkpoint.h"
#include "llmc/model_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

/* --- fixture --- */

static const struct gpt_config small = {
    .name = "small", .context = 9, .vocab_size = 37, .layers = 3, .heads = 3, .channels = 12};
static const struct gpt_config least = {
    .name = "least", .context = 4, .vocab_size = 257, .layers = 1, .heads = 1, .channels = 4};

struct model {
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer opt;
};

/* Room for training needs the gradients' fill, which the CPU has for fp32 only. */
static void model_make(struct model *m, const struct gpt_config *config, enum dtype dtype, bool master) {
    m->device = device_open_cpu();
    ctx_init(&m->ctx, m->device, &cpu_ops, false);
    struct gpt_options options = {.B = 1, .T = config->context, .train = dtype == DTYPE_F32, .dtype = dtype};
    gpt_create(&m->gpt, &m->ctx, config, &options);
    memset(m->gpt.params.data, 0x7f, (size_t)tensor_bytes(&m->gpt.params)); /* a huge value, never zero */
    optimizer_create(&m->opt, &m->gpt, master);
}

static void model_free(struct model *m) {
    ctx_free(&m->ctx);
    m->device->close(m->device);
}

/* A different finite number for every stored element; zero in padding and gaps. */
static float element(uint64_t salt, int64_t at) {
    uint64_t key[2] = {salt, (uint64_t)at};
    uint64_t h = XXH3_64bits(key, sizeof key);
    return (float)((double)(h >> 11) / 9007199254740992.0 - 0.5) * 3.0f;
}

static void paint(const struct gpt *g, struct tensor *buffer, uint64_t salt) {
    memset(buffer->data, 0, (size_t)tensor_bytes(buffer));
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < (gpt_param_rows[id].per_layer ? g->config.layers : 1); l++) {
            int64_t at = g->layout.offset[id] + l * g->layout.stride[id];
            int64_t n = weights_rows(&g->config, id) * weights_cols(&g->config, id);
            for (int64_t i = at; i < at + n; i++) {
                float x = element(salt, i);
                if (buffer->dtype == DTYPE_F32)
                    f32(buffer)[i] = x;
                else
                    ((uint16_t *)buffer->data)[i] = bf16_from_f32(x);
            }
        }
}

static void paint_model(struct model *m, uint64_t salt) {
    paint(&m->gpt, &m->gpt.params, salt);
    paint(&m->gpt, &m->opt.m, salt + 1000);
    paint(&m->gpt, &m->opt.v, salt + 2000);
    if (!m->opt.has_master) return;
    paint(&m->gpt, &m->opt.master, salt);
    for (int64_t i = 0; i < m->gpt.layout.total && m->gpt.params.dtype == DTYPE_BF16; i++)
        assert_int_equal(((uint16_t *)m->gpt.params.data)[i], bf16_from_f32(f32(&m->opt.master)[i]));
}

static void assert_same(const struct tensor *a, const struct tensor *b) {
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(tensor_bytes(a), tensor_bytes(b));
    assert_memory_equal(a->data, b->data, (size_t)tensor_bytes(a));
}

struct scratch {
    char dir[PATH_MAX / 2];
    struct model m; /* "small" in fp32, painted with 1 */
};

static int make_scratch(void **state) {
    struct scratch *s = calloc(1, sizeof *s);
    const char *base = getenv("TMPDIR");
    snprintf(s->dir, sizeof s->dir, "%s/llmc_checkpoint_XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(s->dir)) return -1;
    model_make(&s->m, &small, DTYPE_F32, false);
    paint_model(&s->m, 1);
    *state = s;
    return 0;
}

static int remove_scratch(void **state) {
    struct scratch *s = *state;
    struct error err;
    model_free(&s->m);
    bool ok = remove_tree(s->dir, &err);
    if (!ok) print_error("%s\n", err.message);
    free(s);
    return ok ? 0 : -1;
}

/* --- helpers --- */

/* In one of a few rotating buffers. */
static const char *path_of(const struct scratch *s, const char *fmt, ...) LLMC_PRINTF(2, 3);
static const char *path_of(const struct scratch *s, const char *fmt, ...) {
    static char buffers[8][PATH_MAX];
    static int next;
    char *out = buffers[next++ % 8];
    int n = snprintf(out, PATH_MAX, "%s/", s->dir);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(out + n, (size_t)(PATH_MAX - n), fmt, ap);
    va_end(ap);
    return out;
}

#define ASSERT_OK(call, err)                                                                                 \
    do {                                                                                                     \
        if (!(call)) fail_msg("%s: %s", #call, (err).message);                                               \
    } while (0)

static void assert_mentions(const struct error *err, const char *part) {
    if (!strstr(err->message, part)) fail_msg("\"%s\" does not mention \"%s\"", err->message, part);
}

static void put_file(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static void put_text(const char *path, const char *text) { put_file(path, text, strlen(text)); }

static uint8_t *get_file(const char *path, size_t *size) {
    struct mapped_file f;
    struct error err;
    ASSERT_OK(file_map(&f, path, &err), err);
    uint8_t *copy = malloc((size_t)f.size + 1);
    if (f.size) memcpy(copy, f.data, (size_t)f.size);
    copy[f.size] = 0;
    *size = (size_t)f.size;
    file_unmap(&f);
    return copy;
}

static void copy_directory(const char *from, const char *to) {
    struct error err;
    ASSERT_OK(make_directories(to, &err), err);
    DIR *d = opendir(from);
    assert_non_null(d);
    struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.') continue;
        char *a = xasprintf("%s/%s", from, e->d_name), *b = xasprintf("%s/%s", to, e->d_name);
        size_t size;
        uint8_t *data = get_file(a, &size);
        put_file(b, data, size);
        free(data);
        free(a);
        free(b);
    }
    closedir(d);
}

/* Entries of a directory, without "." and "..". */
static int count_entries(const char *path) {
    DIR *d = opendir(path);
    assert_non_null(d);
    int n = 0;
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

/* What `call` writes to stderr, in a static buffer. */
static char captured[8192];
static int saved_stderr = -1;
static void capture_start(const struct scratch *s) {
    fflush(stderr);
    saved_stderr = dup(2);
    int fd = open(path_of(s, ".stderr"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    dup2(fd, 2);
    close(fd);
}
static const char *capture_end(const struct scratch *s) {
    fflush(stderr);
    dup2(saved_stderr, 2);
    close(saved_stderr);
    size_t size;
    uint8_t *text = get_file(path_of(s, ".stderr"), &size);
    snprintf(captured, sizeof captured, "%s", (const char *)text);
    free(text);
    unlink(path_of(s, ".stderr"));
    return captured;
}

static struct train_state state_at(int64_t step) {
    return (struct train_state){.step = step,
                                .sample = step * 7 + ((int64_t)1 << 40),
                                .tokens = step * 4096,
                                .data = 0xfedcba9876543210u + (uint64_t)step,
                                .best_val_loss = 1.0 / 3.0 + (double)step,
                                .options = json_pack("{s:{s:i, s:f}, s:[s]}", "values", "batch-size", 8, "lr",
                                                     0.1, "explicit", "lr")};
}

static void save(const char *run, struct model *m, int64_t step) {
    struct train_state state = state_at(step);
    struct error err;
    ASSERT_OK(checkpoint_save(run, &m->gpt, &m->opt, NULL, &state, &err), err);
    train_state_free(&state);
}

/* That `path` leads to the checkpoint of `step`; a negative step: to none. */
static void assert_finds(const char *path, int64_t step) {
    struct error err = {""};
    char *found = checkpoint_find(path, &err);
    if (step < 0) {
        assert_null(found);
        assert_true(err.message[0]);
        return;
    }
    if (!found) fail_msg("%s", err.message);
    struct train_state state;
    ASSERT_OK(checkpoint_load_state(&state, found, &err), err);
    assert_int_equal(state.step, step);
    train_state_free(&state);
    free(found);
}

/* Everything at `dir` loads into a fresh model and equals `m`, painted buffers, padding and gaps included. */
static void assert_loads_as(const char *dir, const struct model *m) {
    struct model other;
    struct error err = {""};
    struct gpt_config config;
    ASSERT_OK(checkpoint_config(&config, dir, &err), err);
    model_make(&other, &config, m->gpt.params.dtype, m->opt.has_master);
    memset(other.opt.m.data, 0x7f, (size_t)tensor_bytes(&other.opt.m));
    memset(other.opt.v.data, 0x7f, (size_t)tensor_bytes(&other.opt.v));
    ASSERT_OK(checkpoint_load_weights(&other.gpt, dir, &err), err);
    ASSERT_OK(checkpoint_load_optimizer(&other.opt, &other.gpt, dir, &err), err);
    assert_same(&other.gpt.params, &m->gpt.params);
    assert_same(&other.opt.m, &m->opt.m);
    assert_same(&other.opt.v, &m->opt.v);
    if (m->opt.has_master) assert_same(&other.opt.master, &m->opt.master);
    model_free(&other);
}

/* --- round trips --- */

static void round_trip_is_exact(void **state) {
    struct scratch *s = *state;
    const char *run = path_of(s, "new/run");
    save(run, &s->m, 12345);
    assert_int_equal(count_entries(run), 1);
    const char *dir = path_of(s, "new/run/step-00012345");
    assert_int_equal(count_entries(dir), 5);
    assert_loads_as(dir, &s->m);
    struct gpt_config config;
    struct error err;
    ASSERT_OK(checkpoint_config(&config, dir, &err), err);
    assert_memory_equal(&config, &small, sizeof config);
}

static void state_round_trip(void **state) {
    struct scratch *s = *state;
    struct error err;
    const double bests[] = {2.718281828459045, 1e-300, -0.1, NAN, INFINITY};
    for (size_t i = 0; i < ARRAY_LENGTH(bests); i++) {
        struct train_state in = state_at(100 + (int64_t)i), out;
        in.best_val_loss = bests[i];
        in.data = i == 0 ? UINT64_MAX : i;
        if (i == 1) in.extra = json_pack("{s:[f, f]}", "window", 0.1, 1e-20);
        if (i == 2) {
            json_decref(in.options);
            in.options = NULL;
        }
        ASSERT_OK(checkpoint_save(s->dir, &s->m.gpt, &s->m.opt, NULL, &in, &err), err);
        ASSERT_OK(checkpoint_load_state(&out, path_of(s, "step-%08" PRId64, in.step), &err), err);
        assert_int_equal(out.step, in.step);
        assert_int_equal(out.sample, in.sample);
        assert_int_equal(out.tokens, in.tokens);
        assert_true(out.data == in.data);
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
static void large_tensors(void **state) {
    struct scratch *s = *state;
    static const struct gpt_config configs[] = {
        {.name = "many tokens", .context = 3, .vocab_size = 70001, .layers = 1, .heads = 1, .channels = 33},
        {.name = "wide", .context = 2, .vocab_size = 5, .layers = 1, .heads = 1, .channels = 771},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(configs); i++) {
        struct model m;
        model_make(&m, &configs[i], DTYPE_F32, false);
        paint_model(&m, 5);
        save(s->dir, &m, (int64_t)i);
        assert_loads_as(path_of(s, "step-%08d", (int)i), &m);
        model_free(&m);
    }
}

static void master_weights_are_the_model_file(void **state) {
    struct scratch *s = *state;
    struct model m;
    struct error err;
    model_make(&m, &small, DTYPE_BF16, true);
    paint_model(&m, 77);
    save(s->dir, &m, 1);
    const char *dir = path_of(s, "step-00000001");
    assert_loads_as(dir, &m); /* bf16 parameters and fp32 masters, bit for bit */

    /* The same checkpoint in an fp32 model: its parameters are the masters. */
    struct model fp32;
    model_make(&fp32, &small, DTYPE_F32, false);
    ASSERT_OK(checkpoint_load_weights(&fp32.gpt, dir, &err), err);
    ASSERT_OK(checkpoint_load_optimizer(&fp32.opt, &fp32.gpt, dir, &err), err);
    assert_same(&fp32.gpt.params, &m.opt.master);
    assert_same(&fp32.opt.v, &m.opt.v);

    /* ... and a checkpoint of that goes back to bf16 with masters, also without the optimizer's file. */
    save(s->dir, &fp32, 2);
    assert_loads_as(path_of(s, "step-00000002"), &m);
    struct model tuned;
    model_make(&tuned, &small, DTYPE_BF16, true);
    dir = path_of(s, "step-00000002");
    ASSERT_OK(checkpoint_load_weights(&tuned.gpt, dir, &err), err);
    ASSERT_OK(checkpoint_load_master(&tuned.opt, &tuned.gpt, dir, &err), err);
    assert_same(&tuned.opt.master, &m.opt.master);
    assert_same(&tuned.gpt.params, &m.gpt.params);
    model_free(&tuned);
    model_free(&fp32);
    model_free(&m);
}

static void bf16_without_masters(void **state) {
    struct scratch *s = *state;
    struct model m, fp32;
    struct error err;
    struct safetensors st;
    model_make(&m, &small, DTYPE_BF16, false);
    paint_model(&m, 78);
    save(s->dir, &m, 1);
    const char *dir = path_of(s, "step-00000001");
    assert_loads_as(dir, &m);
    ASSERT_OK(safetensors_open_directory(&st, dir, &err), err);
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
    struct scratch *s = *state;
    struct error err = {""};
    struct tokenizer *bytes = tokenizer_bytes();
    struct model m;
    model_make(&m, &least, DTYPE_F32, false);
    paint_model(&m, 3);
    struct train_state at = state_at(8);
    ASSERT_OK(checkpoint_save(s->dir, &m.gpt, &m.opt, bytes, &at, &err), err);
    const char *dir = path_of(s, "step-00000008");
    struct tokenizer *t = checkpoint_load_tokenizer(dir, &err);
    if (!t) fail_msg("%s", err.message);
    assert_int_equal(tokenizer_vocab_size(t), tokenizer_vocab_size(bytes));
    assert_true(tokenizer_hash(t) == tokenizer_hash(bytes));
    tokenizer_free(t);
    json_t *config = json_file_load(path_of(s, "step-00000008/config.json"), &err);
    assert_int_equal(json_integer_value(json_object_get(config, "eos_token_id")), 256);
    assert_int_equal(json_integer_value(json_object_get(config, "bos_token_id")), 256);
    json_decref(config);

    /* A tokenizer with more tokens than the model. */
    at.step = 9;
    ASSERT_OK(checkpoint_save(s->dir, &s->m.gpt, &s->m.opt, bytes, &at, &err), err);
    assert_null(checkpoint_load_tokenizer(path_of(s, "step-00000009"), &err));
    assert_mentions(&err, "257 tokens, its model only 37");
    put_text(path_of(s, "step-00000009/tokenizer.json"), "{");
    assert_null(checkpoint_load_tokenizer(path_of(s, "step-00000009"), &err));
    assert_true(err.message[0]);
    unlink(path_of(s, "step-00000009/tokenizer.json"));
    assert_null(checkpoint_load_tokenizer(path_of(s, "step-00000009"), &err));
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
    m->device->backend = "masked";
    m->device->upload = masked_upload;
    m->device->download = masked_download;
    hide(&m->gpt.params);
    hide(&m->opt.m);
    hide(&m->opt.v);
    hide(&m->opt.master);
}

static void device_memory_is_only_copied(void **state) {
    struct scratch *s = *state;
    static const struct gpt_config tall = {
        .name = "tall", .context = 3, .vocab_size = 70001, .layers = 2, .heads = 1, .channels = 33};
    for (int kind = 0; kind < 3; kind++) {
        struct model m, other;
        struct error err;
        enum dtype dtype = kind ? DTYPE_BF16 : DTYPE_F32;
        model_make(&m, &tall, dtype, kind == 2);
        paint_model(&m, 4);
        model_hide(&m);
        largest_copy = 0;
        save(s->dir, &m, kind);
        assert_in_range(largest_copy, 1, 16 << 20); /* in pieces */
        model_hide(&m);                             /* the other way round */
        assert_loads_as(path_of(s, "step-%08d", kind), &m);
        model_make(&other, &tall, dtype, kind == 2);
        model_hide(&other);
        largest_copy = 0;
        const char *dir = path_of(s, "step-%08d", kind);
        ASSERT_OK(checkpoint_load_weights(&other.gpt, dir, &err), err);
        ASSERT_OK(checkpoint_load_optimizer(&other.opt, &other.gpt, dir, &err), err);
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
    struct scratch *s = *state;
    struct error err;
    struct safetensors st;
    save(s->dir, &s->m, 1);
    const char *dir = path_of(s, "step-00000001");
    ASSERT_OK(safetensors_open_directory(&st, dir, &err), err);
    assert_int_equal(st.count, 2 + 12 * small.layers + 2);
    assert_string_equal(safetensors_metadata(&st, "format"), "pt");
    assert_null(safetensors_find(&st, "lm_head.weight"));
    const struct st_view *v = safetensors_find(&st, "transformer.wte.weight");
    assert_non_null(v);
    assert_int_equal(v->dtype, ST_F32);
    assert_int_equal(v->dim[0], small.vocab_size); /* not padded */
    assert_int_equal(v->dim[1], small.channels);
    struct tensor wte = gpt_param(&s->m.gpt, P_WTE, 0);
    assert_memory_equal(v->data, wte.data, (size_t)v->bytes);
    v = safetensors_find(&st, "transformer.h.2.mlp.c_proj.weight"); /* Conv1D: (in,out) */
    assert_non_null(v);
    assert_int_equal(v->dim[0], 4 * small.channels);
    assert_int_equal(v->dim[1], small.channels);
    struct tensor w = gpt_param(&s->m.gpt, P_FCPROJ_W, 2); /* (C,4C) */
    const float *stored = v->data;
    for (int64_t o = 0; o < small.channels; o++)
        for (int64_t i = 0; i < 4 * small.channels; i++)
            assert_true(stored[i * small.channels + o] == f32(&w)[o * 4 * small.channels + i]);
    safetensors_close(&st);

    ASSERT_OK(safetensors_open(&st, path_of(s, "step-00000001/optimizer.safetensors"), &err), err);
    v = safetensors_find(&st, "exp_avg_sq.transformer.h.1.attn.c_attn.weight");
    assert_non_null(v);
    assert_int_equal(v->dim[0], small.channels);
    assert_int_equal(v->dim[1], 3 * small.channels);
    int64_t at = s->m.gpt.layout.offset[P_QKV_W] + s->m.gpt.layout.stride[P_QKV_W];
    stored = v->data;
    assert_true(stored[1] == f32(&s->m.opt.v)[at + small.channels]); /* row 0, column 1 */
    safetensors_close(&st);

    json_t *config = json_file_load(path_of(s, "step-00000001/config.json"), &err);
    if (!config) fail_msg("%s", err.message);
    assert_string_equal(json_string_value(json_object_get(config, "model_type")), "gpt2");
    assert_true(json_is_true(json_object_get(config, "tie_word_embeddings")));
    assert_true(json_is_null(json_object_get(config, "eos_token_id"))); /* no tokenizer, not GPT-2's size */
    assert_int_equal(json_integer_value(json_object_get(config, "n_positions")), small.context);
    assert_true(json_real_value(json_object_get(config, "layer_norm_epsilon")) == 1e-5);
    json_decref(config);
}

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
        for (int64_t l = 0; l < (gpt_param_rows[id].per_layer ? g->config.layers : 1); l++) {
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
static void write_foreign(const struct scratch *s, const char *name, const struct foreign *f,
                          const struct gpt *g) {
    struct error err;
    ASSERT_OK(make_directories(path_of(s, "%s", name), &err), err);
    ASSERT_OK(model_config_write(path_of(s, "%s", name), &g->config, f->dtype, -1, &err), err);
    if (!f->sharded) {
        write_one(path_of(s, "%s/model.safetensors", name), f, g, 0, 1);
        return;
    }
    json_t *map = json_object();
    for (int part = 0, index = 0; part < 3; part++, index = 0) {
        char file[64];
        snprintf(file, sizeof file, "model-%05d-of-00003.safetensors", part + 1);
        write_one(path_of(s, "%s/%s", name, file), f, g, part, 3);
        for (int id = 0; id < PARAM_ROWS; id++)
            for (int64_t l = 0; l < (gpt_param_rows[id].per_layer ? g->config.layers : 1); l++) {
                char tensor[96];
                snprintf(tensor, sizeof tensor, "%s%s", f->prefix, gpt_param_name((enum param_id)id, l));
                if (index++ % 3 == part) json_object_set_new(map, tensor, json_string(file));
            }
    }
    json_t *root = json_pack("{s:o}", "weight_map", map);
    assert_int_equal(json_dump_file(root, path_of(s, "%s/model.safetensors.index.json", name), 0), 0);
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
    struct scratch *s = *state;
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
        write_foreign(s, name, &kinds[i], &s->m.gpt);
        const char *dir = path_of(s, "%s", name);
        struct model m;
        struct gpt_config config;
        ASSERT_OK(checkpoint_config(&config, dir, &err), err);
        model_make(&m, &config, DTYPE_F32, false);
        ASSERT_OK(checkpoint_load_weights(&m.gpt, dir, &err), err);
        for (int64_t k = 0; k < m.gpt.layout.total; k++) {
            float x = f32(&m.gpt.params)[k], y = rounded(f32(&s->m.gpt.params)[k], kinds[i].dtype);
            if (!(x == y))
                fail_msg("kind %zu, element %" PRId64 ": %g instead of %g", i, k, (double)x, (double)y);
        }
        char *found = checkpoint_find(dir, &err); /* something to start from ... */
        assert_non_null(found);
        assert_string_equal(found, dir);
        free(found);
        struct train_state st; /* ... but not to resume */
        assert_false(checkpoint_load_state(&st, dir, &err));
        assert_mentions(&err, "has no trainer.json");
        assert_false(checkpoint_load_optimizer(&m.opt, &m.gpt, dir, &err));
        assert_mentions(&err, "has no optimizer.safetensors");
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
    struct scratch *s = *state;
    struct error err;
    struct tensor t = gpt_param(&s->m.gpt, P_FC_W, 1);
    f32(&t)[5] = NAN;
    f32(&t)[6] = -INFINITY;
    save(s->dir, &s->m, 1);
    struct model m;
    model_make(&m, &small, DTYPE_F32, false);
    capture_start(s);
    bool ok = checkpoint_load_weights(&m.gpt, path_of(s, "step-00000001"), &err);
    const char *text = capture_end(s);
    ASSERT_OK(ok, err);
    assert_same(&m.gpt.params, &s->m.gpt.params);
    assert_non_null(strstr(text, "warning"));
    assert_non_null(strstr(text, "2 of the weights are NaN or infinite"));
    assert_non_null(strstr(text, "h.1.mlp.c_fc.weight"));
    model_free(&m);
}

/* --- refusals --- */

static void faulty_tensors_are_named(void **state) {
    struct scratch *s = *state;
    static const struct {
        struct foreign kind;
        const char *says[3];
    } faults[] = {
        {{.prefix = "transformer.", .without = "h.2.ln_2.bias"},
         {"model.safetensors", "\"transformer.h.2.ln_2.bias\" is missing", ""}},
        {{.prefix = "", .without = "wte.weight"}, {"\"wte.weight\" is missing", "", ""}},
        {{.prefix = "", .misshaped = "h.1.attn.c_attn.weight"},
         {"h.1.attn.c_attn.weight F32 (36,12)", "asks for (12,36)", "n_embd 12"}},
        {{.prefix = "", .misshaped = "wpe.weight"}, {"wpe.weight F32 (12,9)", "asks for (9,12)", ""}},
        {{.prefix = "", .integers = "h.0.ln_1.weight"}, {"h.0.ln_1.weight I32 (12)", "expected F32", ""}},
        {{.prefix = "transformer.", .extra = "transformer.h.3.ln_1.weight"},
         {"transformer.h.3.ln_1.weight F32 (1)", "not part of a GPT-2 of 3 layers", ""}},
        {{.prefix = "", .extra = "score.weight"}, {"score.weight", "not part of", ""}},
        {{.prefix = "transformer.", .head_differs = true},
         {"lm_head.weight", "differs from \"transformer.wte.weight\" (element 443", "not implemented"}},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(faults); i++) {
        struct error err;
        struct gpt_config config;
        char name[32];
        snprintf(name, sizeof name, "bad%zu", i);
        struct foreign kind = faults[i].kind;
        kind.dtype = ST_F32;
        write_foreign(s, name, &kind, &s->m.gpt);
        assert_false(checkpoint_config(&config, path_of(s, "%s", name), &err));
        for (int k = 0; k < 3; k++) assert_mentions(&err, faults[i].says[k]);
        assert_false(checkpoint_load_weights(&s->m.gpt, path_of(s, "%s", name), &err));
        for (int k = 0; k < 3; k++) assert_mentions(&err, faults[i].says[k]);
    }
}

/* config.json with one field replaced by JSON text; NULL removes it. */
static void edit_config(const struct scratch *s, const char *name, const char *key, const char *value) {
    struct error err;
    json_t *root = json_file_load(path_of(s, "%s/config.json", name), &err);
    assert_non_null(root);
    if (value) {
        json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
        assert_non_null(v);
        json_object_set_new(root, key, v);
    } else {
        json_object_del(root, key);
    }
    assert_int_equal(json_dump_file(root, path_of(s, "%s/config.json", name), 0), 0);
    json_decref(root);
}

static void configurations_are_checked(void **state) {
    struct scratch *s = *state;
    static const struct {
        const char *key, *value; /* value NULL: removed */
        const char *says;        /* NULL: accepted */
    } edits[] = {
        {"model_type", "\"gpt_neo\"", "\"model_type\" is \"gpt_neo\""},
        {"model_type", NULL, "\"model_type\" is missing"},
        {"model_type", "2", "not a string"},
        {"activation_function", "\"relu\"", "\"activation_function\" is \"relu\""},
        {"activation_function", "\"gelu\"", "implements only \"gelu_new\""}, /* the erf form */
        {"activation_function", "\"gelu_pytorch_tanh\"", NULL},
        {"activation_function", NULL, NULL},
        {"scale_attn_by_inverse_layer_idx", "true", "1/(layer + 1) is not implemented"},
        {"scale_attn_weights", "false", "\"scale_attn_weights\" is false"},
        {"scale_attn_weights", "1", "neither true nor false"},
        {"scale_attn_weights", "null", NULL},
        {"tie_word_embeddings", "false", "an output head of its own is not implemented"},
        {"tie_word_embeddings", NULL, NULL},
        {"add_cross_attention", "true", "cross-attention"},
        {"layer_norm_epsilon", "1e-6", "\"layer_norm_epsilon\" is 1e-06"},
        {"layer_norm_epsilon", "\"x\"", "layer_norm_epsilon"},
        {"layer_norm_epsilon", "0.00001", NULL},
        {"n_inner", "48", NULL},
        {"n_inner", "32", "\"n_inner\" is 32"},
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
        write_foreign(s, "hf", &kind, &s->m.gpt);
        edit_config(s, "hf", edits[i].key, edits[i].value);
        bool ok = checkpoint_config(&config, path_of(s, "hf"), &err);
        if (!edits[i].says) {
            if (!ok) fail_msg("%s: %s", edits[i].key, err.message);
            continue;
        }
        if (ok)
            fail_msg("\"%s\": %s is accepted", edits[i].key, edits[i].value ? edits[i].value : "(removed)");
        assert_mentions(&err, edits[i].says);
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
        put_text(path_of(s, "hf/config.json"), texts[i]);
        assert_false(checkpoint_config(&config, path_of(s, "hf"), &err));
        assert_mentions(&err, "config.json");
    }
    unlink(path_of(s, "hf/config.json"));
    assert_false(checkpoint_config(&config, path_of(s, "hf"), &err));
    assert_mentions(&err, "has no config.json");
    assert_false(checkpoint_config(&config, path_of(s, "nowhere"), &err));
    assert_mentions(&err, "nowhere");
}

static void other_containers_are_refused(void **state) {
    struct scratch *s = *state;
    struct error err;
    struct gpt_config config;
    struct foreign kind = {.dtype = ST_F32, .prefix = ""};
    write_foreign(s, "hf", &kind, &s->m.gpt);
    assert_int_equal(rename(path_of(s, "hf/model.safetensors"), path_of(s, "hf/pytorch_model.bin")), 0);
    assert_false(checkpoint_config(&config, path_of(s, "hf"), &err));
    assert_mentions(&err, "only as pytorch_model.bin");
    unlink(path_of(s, "hf/pytorch_model.bin"));
    assert_false(checkpoint_config(&config, path_of(s, "hf"), &err));
    assert_mentions(&err, "model.safetensors");
    put_text(path_of(s, "hf/model.safetensors"), "not a safetensors file");
    assert_false(checkpoint_config(&config, path_of(s, "hf"), &err));
    assert_mentions(&err, "not a safetensors file");

    /* Overlapping tensors: the first two shapes of equal size given one place. */
    write_foreign(s, "hf", &kind, &s->m.gpt);
    size_t size;
    uint8_t *data = get_file(path_of(s, "hf/model.safetensors"), &size);
    char *end = strstr((char *)data + 8, "\"h.1.ln_1.weight\"");
    assert_non_null(end);
    char *offsets = strstr(end, "data_offsets\":[");
    assert_non_null(offsets);
    offsets += strlen("data_offsets\":[");
    char *last = strchr(offsets, ',') - 1;
    *last = *last == '8' ? '4' : '8'; /* moves the start by 4 bytes */
    put_file(path_of(s, "hf/model.safetensors"), data, size);
    free(data);
    assert_false(checkpoint_config(&config, path_of(s, "hf"), &err));
    assert_mentions(&err, "h.1.ln_1.weight");
}

static void a_checkpoint_for_another_model(void **state) {
    struct scratch *s = *state;
    static const struct {
        struct gpt_config config;
        const char *says;
    } others[] = {
        {{"other", 9, 37, 2, 3, 12}, "3 layers, expected 2"},
        {{"other", 9, 37, 3, 4, 12}, "3 heads, expected 4"}, /* the same shapes */
        {{"other", 9, 37, 3, 3, 15}, "12 channels, expected 15"},
        {{"other", 8, 37, 3, 3, 12}, "9 positions of context, expected 8"},
        {{"other", 9, 38, 3, 3, 12}, "37 tokens of vocabulary, expected 38"},
    };
    save(s->dir, &s->m, 1);
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++) {
        struct model m;
        struct error err;
        model_make(&m, &others[i].config, DTYPE_F32, false);
        assert_false(checkpoint_load_weights(&m.gpt, path_of(s, "step-00000001"), &err));
        assert_mentions(&err, others[i].says);
        model_free(&m);
    }
    struct model m;
    struct error err;
    struct gpt_config wider = {"other", 9, 37, 3, 3, 15};
    model_make(&m, &wider, DTYPE_F32, false);
    assert_false(checkpoint_load_optimizer(&m.opt, &m.gpt, path_of(s, "step-00000001"), &err));
    assert_mentions(&err, "exp_avg.transformer.wte.weight F32 (37,12)");
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
    struct scratch *s = *state;
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
        save(s->dir, &s->m, 1);
        edit_trainer(path_of(s, "step-00000001/trainer.json"), edits[i].from, edits[i].to);
        assert_false(checkpoint_load_state(&st, path_of(s, "step-00000001"), &err));
        assert_mentions(&err, "trainer.json");
        assert_mentions(&err, edits[i].says);
    }
    struct error err;
    struct train_state st;
    save(s->dir, &s->m, 1);
    put_text(path_of(s, "step-00000001/trainer.json"), "");
    assert_false(checkpoint_load_state(&st, path_of(s, "step-00000001"), &err));
    assert_mentions(&err, "truncated");
}

/* --- finding, damage, deleting --- */

static void the_newest_is_found(void **state) {
    struct scratch *s = *state;
    struct error err = {""};
    assert_finds(path_of(s, "missing"), -1);
    assert_finds(s->dir, -1);
    assert_null(checkpoint_find(s->dir, &err));
    assert_mentions(&err, "has no checkpoint");
    const int64_t steps[] = {9, 100000000, 10, 99999999, 0}; /* not the order of the names */
    for (size_t i = 0; i < ARRAY_LENGTH(steps); i++) save(s->dir, &s->m, steps[i]);
    assert_finds(s->dir, 100000000);
    assert_finds(path_of(s, "step-00000009"), 9); /* a checkpoint itself */
    char *with_slash = xasprintf("%s/", s->dir);
    assert_finds(with_slash, 100000000);
    free(with_slash);
    /* Names that are not exactly those of complete checkpoints. */
    static const char *const others[] = {
        "step-200000000.tmp",           "step-0000000300000000", "step-",          "step-4000000000x",
        "step-99999999999999999999999", "Step-500000000",        "step- 600000000"};
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++)
        copy_directory(path_of(s, "step-00000009"), path_of(s, "%s", others[i]));
    put_text(path_of(s, "step-700000000"), "a file");
    capture_start(s);
    char *found = checkpoint_find(s->dir, &err);
    capture_end(s);
    assert_string_equal(found, path_of(s, "step-100000000"));
    free(found);
    put_text(path_of(s, "weights.bin"), "x");
    found = checkpoint_find(path_of(s, "weights.bin"), &err); /* a file is for others to judge */
    assert_string_equal(found, path_of(s, "weights.bin"));
    free(found);
}

/* The damaged newest checkpoint is named and the older one taken. */
static void assert_passed_over(struct scratch *s, const char *file) {
    struct error err;
    capture_start(s);
    char *found = checkpoint_find(s->dir, &err);
    const char *text = capture_end(s);
    if (!found || strcmp(found, path_of(s, "step-00000001")) != 0)
        fail_msg("damage in %s is not noticed: found %s", file, found ? found : err.message);
    if (!strstr(text, "step-00000002") || !strstr(text, "passed over"))
        fail_msg("damage in %s: the warning is \"%s\"", file, text);
    if (!strstr(text, file)) fail_msg("damage in %s: the warning does not name it: \"%s\"", file, text);
    free(found);
    /* Asked for by name it is refused, except that without trainer.json it is a model to start from. */
    if (!path_exists(path_of(s, "step-00000002/trainer.json"))) return;
    assert_null(checkpoint_find(path_of(s, "step-00000002"), &err));
    assert_mentions(&err, file);
}

static void every_damage_is_noticed(void **state) {
    struct scratch *s = *state;
    struct tokenizer *t = tokenizer_bytes();
    struct train_state at = state_at(2);
    struct error err;
    save(s->dir, &s->m, 1);
    ASSERT_OK(checkpoint_save(s->dir, &s->m.gpt, &s->m.opt, t, &at, &err), err);
    train_state_free(&at);
    tokenizer_free(t);
    static const char *const files[] = {"config.json",       "generation_config.json",
                                        "model.safetensors", "optimizer.safetensors",
                                        "tokenizer.json",    "trainer.json"};
    assert_int_equal(count_entries(path_of(s, "step-00000002")), ARRAY_LENGTH(files));
    assert_finds(s->dir, 2);
    for (size_t f = 0; f < ARRAY_LENGTH(files); f++) {
        const char *path = path_of(s, "step-00000002/%s", files[f]);
        char kept[PATH_MAX];
        snprintf(kept, sizeof kept, "%s", path);
        size_t size;
        uint8_t *data = get_file(kept, &size);
        /* One flipped bit: everywhere in a small file, at scattered places in a large one. */
        size_t stride = size / 60 + 1;
        for (size_t i = 0; i < size; i += i + stride < size || i == size - 1 ? stride : size - 1 - i) {
            data[i] ^= (uint8_t)(1 << i % 8);
            put_file(kept, data, size);
            assert_passed_over(s, files[f]);
            data[i] ^= (uint8_t)(1 << i % 8);
        }
        const size_t lengths[] = {0, 1, size / 2, size - 1};
        for (size_t i = 0; i < ARRAY_LENGTH(lengths); i++) {
            put_file(kept, data, lengths[i]);
            assert_passed_over(s, files[f]);
        }
        data[size] = 0;
        put_file(kept, data, size + 1); /* over-long */
        assert_passed_over(s, files[f]);
        unlink(kept);
        assert_passed_over(s, files[f]);
        mkdir(kept, 0700);
        assert_passed_over(s, files[f]);
        rmdir(kept);
        put_file(kept, data, size);
        free(data);
        assert_finds(s->dir, 2); /* whole again */
    }
    unlink(path_of(s, "step-00000001/model.safetensors"));
    unlink(path_of(s, "step-00000002/config.json"));
    capture_start(s);
    char *found = checkpoint_find(s->dir, &err);
    capture_end(s);
    assert_null(found);
    assert_mentions(&err, "none of its 2 checkpoints");
}

static void old_ones_are_pruned(void **state) {
    struct scratch *s = *state;
    struct error err;
    for (int64_t step = 1; step <= 6; step++) save(s->dir, &s->m, step * 5);
    copy_directory(path_of(s, "step-00000030"), path_of(s, "step-00000040.tmp"));
    copy_directory(path_of(s, "step-00000030"), path_of(s, "mine"));
    put_text(path_of(s, "log.jsonl"), "{}");
    unlink(path_of(s, "step-00000025/model.safetensors")); /* damaged: does not count, and is not deleted */
    ASSERT_OK(checkpoint_prune(s->dir, 3, &err), err);
    assert_int_equal(count_entries(s->dir), 6);
    static const char *const left[] = {"step-00000030", "step-00000025", "step-00000020",
                                       "step-00000015", "mine",          "log.jsonl"};
    for (size_t i = 0; i < ARRAY_LENGTH(left); i++) assert_true(path_exists(path_of(s, "%s", left[i])));
    ASSERT_OK(checkpoint_prune(s->dir, 1, &err), err);
    assert_int_equal(count_entries(s->dir), 4);
    assert_finds(s->dir, 30);
    ASSERT_OK(checkpoint_prune(s->dir, 1, &err), err);
    assert_int_equal(count_entries(s->dir), 4);
    assert_false(checkpoint_prune(path_of(s, "missing"), 1, &err));
    assert_mentions(&err, "missing");
}

static void the_same_step_is_replaced(void **state) {
    struct scratch *s = *state;
    save(s->dir, &s->m, 7);
    put_text(path_of(s, "step-00000007/left over"), "x");
    /* What a killed process leaves behind is in nobody's way. */
    copy_directory(path_of(s, "step-00000007"), path_of(s, "step-00000007.tmp"));
    paint_model(&s->m, 50);
    save(s->dir, &s->m, 7);
    assert_int_equal(count_entries(s->dir), 1);
    assert_int_equal(count_entries(path_of(s, "step-00000007")), 5);
    assert_finds(s->dir, 7);
    assert_loads_as(path_of(s, "step-00000007"), &s->m);
}

/* --- failing disks --- */

/* Saving step 2 has failed: nothing is left of it, step 1 is as it was. */
static void assert_untouched(struct scratch *s, const char *run, const struct model *m,
                             const struct error *err) {
    if (count_entries(run) != 1)
        fail_msg("%d entries in %s after: %s", count_entries(run), run, err->message);
    assert_finds(run, 1);
    char *dir = xasprintf("%s/step-00000001", run);
    assert_loads_as(dir, m);
    free(dir);
}

/* A limit on the size of files makes the first write beyond it fail, in each of the files in turn. The state
 * is large enough to make trainer.json, the last file, the largest. */
static void a_file_that_cannot_grow(void **state) {
    struct scratch *s = *state;
    const char *run = path_of(s, "run");
    char kept[PATH_MAX];
    snprintf(kept, sizeof kept, "%s", run);
    struct model m;
    model_make(&m, &least, DTYPE_F32, false);
    paint_model(&m, 9);
    save(kept, &m, 1);
    struct train_state st = state_at(2);
    static char text[300000];
    memset(text, 'x', sizeof text - 1);
    json_object_set_new(st.options, "text", json_string(text));
    struct rlimit unlimited;
    getrlimit(RLIMIT_FSIZE, &unlimited);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    int failures = 0, trainer = 0, optimizer = 0, weights = 0, config = 0;
    for (rlim_t limit = 0;; limit += limit < 16384 ? 1021 : 50000) {
        struct rlimit small_files = {limit, unlimited.rlim_max};
        struct error err = {""};
        setrlimit(RLIMIT_FSIZE, &small_files);
        bool ok = checkpoint_save(kept, &m.gpt, &m.opt, NULL, &st, &err);
        setrlimit(RLIMIT_FSIZE, &unlimited);
        if (ok) break;
        failures++;
        assert_mentions(&err, "File too large");
        assert_mentions(&err, "step-00000002.tmp/");
        trainer += strstr(err.message, "trainer.json") != NULL;
        optimizer += strstr(err.message, "optimizer.safetensors") != NULL;
        weights += strstr(err.message, "model.safetensors") != NULL;
        config += strstr(err.message, "config.json") != NULL;
        assert_untouched(s, kept, &m, &err);
    }
    signal(SIGXFSZ, handler);
    assert_true(trainer > 3 && optimizer > 3 && weights > 3 && config > 0);
    assert_int_equal(failures, trainer + optimizer + weights + config);
    assert_finds(kept, 2);
    train_state_free(&st);
    model_free(&m);
}

/* A real full disk, page by page larger until the checkpoint fits. */
static void a_full_disk(void **state) {
    struct scratch *s = *state;
    char disk[PATH_MAX], run[PATH_MAX + 8];
    snprintf(disk, sizeof disk, "%s", path_of(s, "disk"));
    snprintf(run, sizeof run, "%s/run", disk);
    assert_int_equal(mkdir(disk, 0700), 0);
    if (mount("tmpfs", disk, "tmpfs", 0, "size=1m") != 0) skip(); /* needs root */
    struct model m;
    model_make(&m, &least, DTYPE_F32, false);
    paint_model(&m, 9);
    struct tokenizer *t = tokenizer_bytes();
    struct train_state one = state_at(1), two = state_at(2);
    int failures = 0, used = -1;
    bool done = false;
    for (int pages = 1; !done && pages < 200; pages++) {
        char size[64];
        snprintf(size, sizeof size, "size=%dk", pages * 4);
        umount(disk);
        if (mount("tmpfs", disk, "tmpfs", 0, size) != 0) fail_msg("cannot mount %s", size);
        struct error err = {""};
        if (!checkpoint_save(run, &m.gpt, &m.opt, t, &one, &err)) {
            assert_mentions(&err, "No space left on device");
            if (path_exists(run)) assert_int_equal(count_entries(run), 0);
            failures++;
            continue;
        }
        if (used < 0) used = pages;
        done = checkpoint_save(run, &m.gpt, &m.opt, t, &two, &err);
        if (done) continue;
        assert_mentions(&err, "No space left on device");
        assert_untouched(s, run, &m, &err);
        failures++;
    }
    assert_true(done);
    assert_finds(run, 2);
    assert_true(failures >= 16);
    umount(disk);
    train_state_free(&one);
    train_state_free(&two);
    tokenizer_free(t);
    model_free(&m);
}

static void a_directory_that_cannot_be_written(void **state) {
    struct scratch *s = *state;
    struct error err;
    struct train_state st = state_at(1);
    put_text(path_of(s, "file"), "x");
    assert_false(checkpoint_save(path_of(s, "file"), &s->m.gpt, &s->m.opt, NULL, &st, &err));
    assert_mentions(&err, "file");
    assert_false(checkpoint_save(path_of(s, "file/run"), &s->m.gpt, &s->m.opt, NULL, &st, &err));
    assert_mentions(&err, "file");
    assert_false(checkpoint_save("/proc/run", &s->m.gpt, &s->m.opt, NULL, &st, &err));
    assert_mentions(&err, "/proc/run");
    /* A file has the checkpoint's name. */
    put_text(path_of(s, "step-00000001"), "x");
    bool ok = checkpoint_save(s->dir, &s->m.gpt, &s->m.opt, NULL, &st, &err);
    if (!ok) assert_false(path_exists(path_of(s, "step-00000001.tmp")));
    train_state_free(&st);
}

/* --- killed processes --- */

static const struct gpt_config killed_config = {
    .name = "killed", .context = 16, .vocab_size = 257, .layers = 2, .heads = 2, .channels = 32};

/* Saves steps 1, 2, ..., each painted with its number, keeping two. Ends only when killed. */
static int save_forever(const char *run) {
    struct model m;
    struct error err;
    model_make(&m, &killed_config, DTYPE_F32, false);
    for (int64_t step = 1;; step++) {
        paint_model(&m, (uint64_t)step);
        struct train_state st = state_at(step);
        check(checkpoint_save(run, &m.gpt, &m.opt, NULL, &st, &err), "%s", err.message);
        check(checkpoint_prune(run, 2, &err), "%s", err.message);
        train_state_free(&st);
    }
}

static void killed_while_saving(void **state) {
    struct scratch *s = *state;
    char run[PATH_MAX];
    snprintf(run, sizeof run, "%s", path_of(s, "run"));
    int interrupted = 0;
    int64_t last = 0;
    for (int round = 0; round < 12; round++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            execl("/proc/self/exe", "test_checkpoint", "save-forever", run, (char *)NULL);
            _exit(127);
        }
        /* Until it has saved something, and then for a time that differs from round to round. */
        struct error err;
        for (int i = 0; i < 5000 && !path_exists(path_of(s, "run/step-00000001")) && !last; i++) usleep(1000);
        usleep((useconds_t)(20000 + round * 2713 % 30000));
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* and not by an error of its own */
        DIR *d = opendir(run);
        struct dirent *e;
        while (d && (e = readdir(d)) != NULL) interrupted += strstr(e->d_name, ".tmp") != NULL;
        if (d) closedir(d);
        capture_start(s);
        char *found = checkpoint_find(run, &err);
        const char *text = capture_end(s);
        if (!found) fail_msg("round %d: %s", round, err.message);
        if (text[0]) fail_msg("round %d: %s", round, text); /* no named checkpoint is ever damaged */
        struct train_state st;
        ASSERT_OK(checkpoint_load_state(&st, found, &err), err);
        struct model m;
        model_make(&m, &killed_config, DTYPE_F32, false);
        paint_model(&m, (uint64_t)st.step);
        assert_loads_as(found, &m);
        last = st.step;
        model_free(&m);
        train_state_free(&st);
        free(found);
    }
    assert_true(interrupted > 0);
    struct error err;
    ASSERT_OK(checkpoint_prune(run, 1, &err), err);
    assert_int_equal(count_entries(run), 1);
}

/* --- training across a checkpoint --- */

static void train(struct model *m, int64_t first, int64_t count) {
    int32_t tokens[10];
    for (int64_t step = first; step < first + count; step++) {
        for (int i = 0; i < 10; i++) tokens[i] = (int32_t)((step * 11 + i * i) % small.vocab_size);
        gpt_set_batch(&m->gpt, tokens, tokens + 1);
        gpt_forward_backward(&m->gpt, 1.0f / 9.0f, true);
        struct adamw_args args = {.lr = 0.01f,
                                  .beta1 = 0.9f,
                                  .beta2 = 0.95f,
                                  .eps = 1e-8f,
                                  .weight_decay = 0.1f,
                                  .max_norm = 1.0f,
                                  .step = step + 1};
        optimizer_step(&m->opt, &m->gpt, &args);
    }
}

static void training_goes_on_bit_for_bit(void **state) {
    struct scratch *s = *state;
    struct model whole, resumed;
    struct error err;
    model_make(&whole, &small, DTYPE_F32, false);
    gpt_init_weights(&whole.gpt, 1);
    train(&whole, 0, 4);
    save(s->dir, &whole, 4);
    train(&whole, 4, 3);
    model_make(&resumed, &small, DTYPE_F32, false);
    const char *dir = path_of(s, "step-00000004");
    ASSERT_OK(checkpoint_load_weights(&resumed.gpt, dir, &err), err);
    ASSERT_OK(checkpoint_load_optimizer(&resumed.opt, &resumed.gpt, dir, &err), err);
    train(&resumed, 4, 3);
    assert_same(&resumed.gpt.params, &whole.gpt.params);
    assert_same(&resumed.opt.m, &whole.opt.m);
    assert_same(&resumed.opt.v, &whole.opt.v);
    model_free(&resumed);
    model_free(&whole);
}

#define SCRATCH_TEST(f) cmocka_unit_test_setup_teardown(f, make_scratch, remove_scratch)

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "save-forever") == 0) return save_forever(argv[2]);
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(round_trip_is_exact),
        SCRATCH_TEST(state_round_trip),
        SCRATCH_TEST(large_tensors),
        SCRATCH_TEST(master_weights_are_the_model_file),
        SCRATCH_TEST(bf16_without_masters),
        SCRATCH_TEST(device_memory_is_only_copied),
        SCRATCH_TEST(tokenizer_travels_along),
        SCRATCH_TEST(layout_is_hugging_faces),
        SCRATCH_TEST(published_directories_load),
        cmocka_unit_test(fp16_rounds_to_nearest_even),
        SCRATCH_TEST(weights_that_are_not_finite),
        SCRATCH_TEST(faulty_tensors_are_named),
        SCRATCH_TEST(configurations_are_checked),
        SCRATCH_TEST(other_containers_are_refused),
        SCRATCH_TEST(a_checkpoint_for_another_model),
        SCRATCH_TEST(states_are_checked),
        SCRATCH_TEST(the_newest_is_found),
        SCRATCH_TEST(every_damage_is_noticed),
        SCRATCH_TEST(old_ones_are_pruned),
        SCRATCH_TEST(the_same_step_is_replaced),
        SCRATCH_TEST(a_file_that_cannot_grow),
        SCRATCH_TEST(a_full_disk),
        SCRATCH_TEST(a_directory_that_cannot_be_written),
        SCRATCH_TEST(killed_while_saving),
        SCRATCH_TEST(training_goes_on_bit_for_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
