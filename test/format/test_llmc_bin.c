/* llm.c's model files: loading both versions, and every header field and size that is not as it should
 * be. */
#include "test/scratch.h"

#include "llmc/format/checkpoint.h"
#include "llmc/format/model_file.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* maxT, V, L, NH, C; padded to 40 in the file, to 128 in the engine. */
static const struct gpt_config config = GPT2_CONFIG("llm.c", 6, 37, 3, 2, 8);
enum { PADDED = 40, HEADER = 1024 };

struct fixture {
    const char *path;
    uint8_t *file; /* a good one in fp32 */
    size_t size;
};

/* Element i of tensor `id` in layer l; the padding of the vocabulary gets values of its own. */
static float element(int id, int64_t l, int64_t i) { return (float)(id * 64 + l * 16) + (float)i / 512.0f; }

/* The file as its documentation has it, written down independently of the reader: name by name. */
static uint8_t *make_file(size_t *size, int version) {
    const int64_t V = PADDED, T = 6, L = 3, C = 8;
    const struct {
        enum param_id id;
        int64_t layers, n;
    } order[] = {{P_WTE, 1, V * C},
                 {P_WPE, 1, T * C},
                 {P_LN1_W, L, C},
                 {P_LN1_B, L, C},
                 {P_QKV_W, L, 3 * C * C},
                 {P_QKV_B, L, 3 * C},
                 {P_PROJ_W, L, C * C},
                 {P_PROJ_B, L, C},
                 {P_LN2_W, L, C},
                 {P_LN2_B, L, C},
                 {P_FC_W, L, 4 * C * C},
                 {P_FC_B, L, 4 * C},
                 {P_FCPROJ_W, L, C * 4 * C},
                 {P_FCPROJ_B, L, C},
                 {P_LNF_W, 1, C},
                 {P_LNF_B, 1, C}};
    uint8_t *file = calloc(1, 1 << 20);
    const int32_t header[] = {20240326, version, 6, 37, 3, 2, 8, PADDED};
    memcpy(file, header, sizeof header);
    size_t at = HEADER;
    for (size_t k = 0; k < ARRAY_LENGTH(order); k++)
        for (int64_t l = 0; l < order[k].layers; l++)
            for (int64_t i = 0; i < order[k].n; i++) {
                float x = element((int)order[k].id, l, i);
                uint16_t h = bf16_from_f32(x);
                memcpy(file + at, version == 3 ? (void *)&x : (void *)&h, version == 3 ? 4 : 2);
                at += version == 3 ? 4 : 2;
            }
    *size = at;
    return file;
}

static int make_fixture(void **state) {
    struct fixture *s = calloc(1, sizeof *s);
    if (make_scratch(state) != 0) return -1;
    s->path = in_scratch("gpt2.bin");
    s->file = make_file(&s->size, 3);
    *state = s;
    return 0;
}

static int remove_fixture(void **state) {
    struct fixture *s = *state;
    free(s->file);
    free(s);
    return remove_scratch(state);
}

static void assert_refused(struct fixture *s, const char *says) {
    struct gpt_config c;
    struct error err = {""};
    assert_false(checkpoint_config(&c, s->path, &err));
    assert_mentions(err.message, s->path);
    assert_mentions(err.message, says);
}

static void both_versions_load(void **state) {
    struct fixture *s = *state;
    for (int version = 3; version <= 5; version += 2) {
        size_t size;
        uint8_t *file = make_file(&size, version);
        put_file(s->path, file, size);
        free(file);
        struct gpt_config c;
        struct error err = {""};
        if (!checkpoint_config(&c, s->path, &err)) fail_msg("%s", err.message);
        assert_null(gpt_config_difference(&c, &config));
        struct device *device = device_open_cpu();
        struct ctx ctx;
        struct gpt g;
        ctx_init(&ctx, device, cpu_ops(), false);
        struct gpt_options options = {.B = 1, .T = 2};
        gpt_create(&g, &ctx, &c, &options);
        memset(g.params.data, 0x7f, (size_t)tensor_bytes(&g.params));
        if (!checkpoint_load_weights(&g, s->path, &err)) fail_msg("%s", err.message);
        int64_t nonzero = 0;
        for (int id = 0; id < PARAM_ROWS; id++)
            for (int64_t l = 0; l < gpt_param_copies(&c, (enum param_id)id); l++) {
                struct tensor t = gpt_param(&g, (enum param_id)id, l);
                int64_t n = id == P_WTE ? c.vocab_size * c.channels : tensor_count(&t);
                for (int64_t i = 0; i < n; i++) {
                    float x = element(id, l, i);
                    if (version == 5) x = f32_from_bf16(bf16_from_f32(x));
                    assert_true(f32(&t)[i] == x);
                    nonzero += x != 0.0f;
                }
            }
        for (int64_t i = 0; i < g.layout.total; i++) nonzero -= f32(&g.params)[i] != 0.0f;
        assert_int_equal(nonzero, 0); /* padding and gaps are zero */
        char *found = checkpoint_find(s->path, &err);
        assert_string_equal(found, s->path);
        free(found);
        assert_null(checkpoint_load_tokenizer(s->path, &err));
        assert_string_equal(err.message, "");
        struct train_state st;
        assert_false(checkpoint_load_state(&st, s->path, &err));
        ctx_free(&ctx);
        device->close(device);
    }
}

static void sizes_are_exact(void **state) {
    struct fixture *s = *state;
    for (size_t size = 0; size < s->size; size += size < 1100 ? 93 : s->size / 13) {
        put_file(s->path, s->file, size);
        assert_refused(s, size < HEADER ? "the header of an llm.c model file has 1024" : "truncated?");
    }
    put_file(s->path, s->file, s->size - 1);
    assert_refused(s, "truncated?");
    put_file(s->path, s->file, s->size + 1);
    assert_refused(s, "over-long");
}

static void header_fields_are_checked(void **state) {
    struct fixture *s = *state;
    static const struct {
        int field;
        int32_t value;
        const char *says;
    } edits[] = {
        {0, 20240520, "magic number (bytes 0..3) is 20240520"},
        {1, 1, "version (bytes 4..7) is 1"},
        {1, 4, "known are 3 (fp32) and 5 (bf16)"},
        {1, 5, "over-long"},
        {2, 0, "context length is 0"},
        {2, -6, "context length is -6"},
        {2, 7, "truncated?"},
        {2, INT32_MAX, "context length is 2147483647"},
        {3, 41, "padded vocabulary (bytes 28..31) is 40, the vocabulary 41"},
        {3, 0, "vocabulary size is 0"},
        {4, 0, "number of layers is 0"},
        {4, 2, "over-long"},
        {4, INT32_MIN, "number of layers is -2147483648"},
        {4, 10000, "truncated?"},
        {5, 3, "3 heads do not divide 8 channels"},
        {5, 0, "number of heads is 0"},
        {6, 16, "truncated?"},
        {6, 1 << 20, "more than this engine addresses"},
        {6, INT32_MAX, "number of channels is 2147483647"},
        {7, 37, "over-long"},
        {7, -1, "padded vocabulary"},
        {7, INT32_MAX, "padded vocabulary"},
        {8, 1, "bytes 32..35 are 1, expected 0"},
        {255, -1, "bytes 1020..1023 are -1, expected 0"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(edits); i++) {
        int32_t kept;
        memcpy(&kept, s->file + 4 * edits[i].field, 4);
        memcpy(s->file + 4 * edits[i].field, &edits[i].value, 4);
        put_file(s->path, s->file, s->size);
        assert_refused(s, edits[i].says);
        memcpy(s->file + 4 * edits[i].field, &kept, 4);
    }
    struct gpt_config c;
    struct error err;
    put_file(s->path, s->file, s->size);
    assert_true(checkpoint_config(&c, s->path, &err));
    unlink(s->path);
    assert_refused(s, "no such file or directory");
}

#define FIXTURE_TEST(f) cmocka_unit_test_setup_teardown(f, make_fixture, remove_fixture)

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(both_versions_load),
        FIXTURE_TEST(sizes_are_exact),
        FIXTURE_TEST(header_fields_are_checked),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}
