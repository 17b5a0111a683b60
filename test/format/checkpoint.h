/* Shared by the tests of checkpoints: small models painted with numbers, a scratch directory, files, what
 * stderr received, checkpoints of a given step. */
#ifndef LLMC_TEST_CHECKPOINT_H
#define LLMC_TEST_CHECKPOINT_H

#include "test/scratch.h"

#include "llmc/base/json_file.h"
#include "llmc/format/checkpoint.h"
#include "llmc/format/llmc_bin.h"
#include "llmc/format/model_config.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define UNUSED __attribute__((unused)) /* not every test program needs everything */

/* --- fixture --- */

UNUSED static const struct gpt_config small = GPT2_CONFIG("small", 9, 37, 3, 3, 12);
UNUSED static const struct gpt_config least = GPT2_CONFIG("least", 4, 257, 1, 1, 4);

struct model {
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer opt;
    struct zero zero;
};

/* Room for training needs the gradients' fill, which the CPU has for fp32 only. */
UNUSED static void model_make_for(struct model *m, const struct gpt_config *config, enum dtype dtype,
                                  struct optimizer_options optimizer) {
    m->device = device_open_cpu();
    ctx_init(&m->ctx, m->device, cpu_ops(), false);
    struct gpt_options options = {.B = 1, .T = config->context, .train = dtype == DTYPE_F32, .dtype = dtype};
    gpt_create(&m->gpt, &m->ctx, config, &options);
    memset(m->gpt.params.data, 0x7f, (size_t)tensor_bytes(&m->gpt.params)); /* a huge value, never zero */
    optimizer_create(&m->opt, &m->gpt, optimizer);
    m->zero = (struct zero){.gpt = &m->gpt, .optimizer = &m->opt};
}

UNUSED static void model_make(struct model *m, const struct gpt_config *config, enum dtype dtype,
                              bool master) {
    model_make_for(m, config, dtype, (struct optimizer_options){.master_weights = master});
}

UNUSED static void model_free(struct model *m) {
    ctx_free(&m->ctx);
    m->device->close(m->device);
}

/* A different finite number for every stored element; zero in padding and gaps. */
UNUSED static float element(uint64_t salt, int64_t at) {
    uint64_t key[2] = {salt, (uint64_t)at};
    uint64_t h = XXH3_64bits(key, sizeof key);
    return (float)((double)(h >> 11) / 9007199254740992.0 - 0.5) * 3.0f;
}

UNUSED static void paint(const struct gpt *g, struct tensor *buffer, uint64_t salt) {
    memset(buffer->data, 0, (size_t)tensor_bytes(buffer));
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(&g->config, (enum param_id)id); l++) {
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

UNUSED static void paint_model(struct model *m, uint64_t salt) {
    paint(&m->gpt, &m->gpt.params, salt);
    paint(&m->gpt, &m->opt.m, salt + 1000);
    paint(&m->gpt, &m->opt.v, salt + 2000);
    if (!m->opt.has_master) return;
    paint(&m->gpt, &m->opt.master, salt);
    for (int64_t i = 0; i < m->gpt.layout.total && m->gpt.params.dtype == DTYPE_BF16; i++)
        assert_int_equal(((uint16_t *)m->gpt.params.data)[i], bf16_from_f32(f32(&m->opt.master)[i]));
}

UNUSED static void assert_same(const struct tensor *a, const struct tensor *b) {
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(tensor_bytes(a), tensor_bytes(b));
    assert_memory_equal(a->data, b->data, (size_t)tensor_bytes(a));
}

/* A scratch directory and "small" in fp32, painted with 1. */
UNUSED static int make_fixture(void **state) {
    struct model *m = calloc(1, sizeof *m);
    if (make_scratch(state) != 0) return -1;
    model_make(m, &small, DTYPE_F32, false);
    paint_model(m, 1);
    *state = m;
    return 0;
}

UNUSED static int remove_fixture(void **state) {
    model_free(*state);
    free(*state);
    return remove_scratch(state);
}

#define FIXTURE_TEST(f) cmocka_unit_test_setup_teardown(f, make_fixture, remove_fixture)

/* --- helpers --- */

#define ASSERT_OK(call, err)                                                                                 \
    do {                                                                                                     \
        if (!(call)) fail_msg("%s: %s", #call, (err).message);                                               \
    } while (0)

UNUSED static void copy_directory(const char *from, const char *to) {
    struct error err;
    ASSERT_OK(make_directories(to, &err), err);
    DIR *d = opendir(from);
    assert_non_null(d);
    struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.') continue;
        char *a = xasprintf("%s/%s", from, e->d_name), *b = xasprintf("%s/%s", to, e->d_name);
        size_t size;
        char *data = get_file(a, &size);
        put_file(b, data, size);
        free(data);
        free(a);
        free(b);
    }
    closedir(d);
}

/* Entries of a directory, without "." and "..". */
UNUSED static int count_entries(const char *path) {
    DIR *d = opendir(path);
    assert_non_null(d);
    int n = 0;
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

/* What `call` writes to stderr, in a static buffer. */
UNUSED static char captured[8192];
UNUSED static int saved_stderr = -1;
UNUSED static void capture_start(void) {
    fflush(stderr);
    saved_stderr = dup(2);
    int fd = open(in_scratch(".stderr"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    dup2(fd, 2);
    close(fd);
}
UNUSED static const char *capture_end(void) {
    fflush(stderr);
    dup2(saved_stderr, 2);
    close(saved_stderr);
    size_t size;
    char *text = get_file(in_scratch(".stderr"), &size);
    snprintf(captured, sizeof captured, "%s", (const char *)text);
    free(text);
    unlink(in_scratch(".stderr"));
    return captured;
}

UNUSED static struct train_state state_at(int64_t step) {
    return (struct train_state){.step = step,
                                .sample = step * 7 + ((int64_t)1 << 40),
                                .tokens = step * 4096,
                                .data = 0xfedcba9876543210u + (uint64_t)step,
                                .best_val_loss = 1.0 / 3.0 + (double)step,
                                .options = json_pack("{s:{s:i, s:f}, s:[s]}", "values", "batch-size", 8, "lr",
                                                     0.1, "explicit", "lr")};
}

UNUSED static void save(const char *run, struct model *m, int64_t step) {
    struct train_state state = state_at(step);
    struct error err;
    ASSERT_OK(make_directories(run, &err), err);
    ASSERT_OK(checkpoint_save(run, &m->zero, NULL, &state, &err), err);
    train_state_free(&state);
}

/* That `path` leads to the checkpoint of `step`; a negative step: to none. */
UNUSED static void assert_finds(const char *path, int64_t step) {
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
UNUSED static void assert_loads_as(const char *dir, const struct model *m) {
    struct model other;
    struct error err = {""};
    struct gpt_config config;
    ASSERT_OK(checkpoint_config(&config, dir, &err), err);
    model_make(&other, &config, m->gpt.params.dtype, m->opt.has_master);
    memset(other.opt.m.data, 0x7f, (size_t)tensor_bytes(&other.opt.m));
    memset(other.opt.v.data, 0x7f, (size_t)tensor_bytes(&other.opt.v));
    ASSERT_OK(checkpoint_load_parameters(&other.zero, dir, &err), err);
    ASSERT_OK(checkpoint_load_moments(&other.zero, dir, &err), err);
    assert_same(&other.gpt.params, &m->gpt.params);
    assert_same(&other.opt.m, &m->opt.m);
    assert_same(&other.opt.v, &m->opt.v);
    if (m->opt.has_master) assert_same(&other.opt.master, &m->opt.master);
    model_free(&other);
}

#endif
