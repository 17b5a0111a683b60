/* llm.c's model files (gpt2_124M.bin, gpt2_124M_bf16.bin) as a start for training and for export.
 *
 * 256 little-endian int32: magic 20240326; version 3 (fp32) or 5 (bf16); maxT, V, L, NH, C, Vp; the rest 0.
 * Then the parameters, each tensor with all its layers, matrices (OC,C) as the engine has them, token
 * embeddings with the vocabulary padded to Vp. */
#include "llmc/format/llmc_bin.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAGIC = 20240326, HEADER_INTS = 256, HEADER_BYTES = 4 * HEADER_INTS };

static const enum param_id file_order[] = {
    P_WTE,   P_WPE,   P_LN1_W, P_LN1_B, P_QKV_W,    P_QKV_B,    P_PROJ_W, P_PROJ_B,
    P_LN2_W, P_LN2_B, P_FC_W,  P_FC_B,  P_FCPROJ_W, P_FCPROJ_B, P_LNF_W,  P_LNF_B,
};

static bool parse_header(struct gpt_config *c, enum st_dtype *dtype, int64_t *padded,
                         const struct mapped_file *f, struct error *err) {
    if (f->size < HEADER_BYTES)
        return fail(err, "%s: is %" PRId64 " bytes long, the header of an llm.c model file has %d", f->path,
                    f->size, HEADER_BYTES);
    int32_t h[HEADER_INTS];
    memcpy(h, f->data, sizeof h);
    if (h[0] != MAGIC)
        return fail(err, "%s: magic number (bytes 0..3) is %d, that of an llm.c model file is %d", f->path,
                    h[0], MAGIC);
    if (h[1] != 3 && h[1] != 5)
        return fail(err, "%s: version (bytes 4..7) is %d, known are 3 (fp32) and 5 (bf16)", f->path, h[1]);
    *dtype = h[1] == 3 ? ST_F32 : ST_BF16;
    *c = (struct gpt_config){.name = "llm.c",
                             .context = h[2],
                             .vocab_size = h[3],
                             .layers = h[4],
                             .heads = h[5],
                             .channels = h[6]};
    gpt_config_complete(c);
    *padded = h[7];
    struct error why;
    if (!gpt_config_check(c, &why)) return fail(err, "%s: header: %s", f->path, why.message);
    if (*padded < c->vocab_size || *padded > INT32_MAX / 2)
        return fail(err,
                    "%s: header: padded vocabulary (bytes 28..31) is %" PRId64 ", the vocabulary %" PRId64,
                    f->path, *padded, c->vocab_size);
    for (int i = 8; i < HEADER_INTS; i++)
        if (h[i] != 0)
            return fail(err, "%s: header: bytes %d..%d are %d, expected 0", f->path, 4 * i, 4 * i + 3, h[i]);
    return true;
}

bool llmc_bin_is_one(const char *path) {
    struct mapped_file f;
    int32_t magic = 0;
    if (!file_map(&f, path, NULL)) return false;
    if (f.size >= (int64_t)sizeof magic) memcpy(&magic, f.data, sizeof magic);
    file_unmap(&f);
    return magic == MAGIC;
}

/* Elements of a tensor in the file, all layers. No overflow: gpt_config_check bounds the model. */
static int64_t stored_elements(const struct gpt_config *c, int64_t padded, enum param_id id) {
    int64_t rows = id == P_WTE ? padded : weights_rows(c, id);
    return rows * weights_cols(c, id) * gpt_param_copies(c, id);
}

static bool check_size(const struct gpt_config *c, enum st_dtype dtype, int64_t padded,
                       const struct mapped_file *f, struct error *err) {
    int64_t elements = 0;
    for (size_t i = 0; i < ARRAY_LENGTH(file_order); i++)
        elements += stored_elements(c, padded, file_order[i]);
    int64_t expected = HEADER_BYTES + elements * st_dtype_size(dtype);
    return f->size == expected ||
           fail(err,
                "%s: is %" PRId64 " bytes long, its header (maxT %" PRId64 ", V %" PRId64
                " padded to %" PRId64 ", L %" PRId64 ", NH %" PRId64 ", C %" PRId64 ", %s) asks for %" PRId64
                ": %s",
                f->path, f->size, c->context, c->vocab_size, padded, c->layers, c->heads, c->channels,
                st_dtype_name(dtype), expected, f->size < expected ? "truncated?" : "over-long");
}

static void place_views(struct model_file *m, const struct gpt_config *c, enum st_dtype dtype,
                        int64_t padded) {
    int64_t L = c->layers, size = st_dtype_size(dtype);
    m->weights = (struct weights){.config = *c, .format = FORMAT_OWN};
    m->weights.view =
        (const struct st_view **)xcalloc((size_t)(PARAM_ROWS * MOST_PIECES * L), sizeof(struct st_view *));
    m->bin_views = (struct st_view *)xcalloc((size_t)(PARAM_ROWS * L), sizeof *m->bin_views);
    const uint8_t *at = m->bin.data + HEADER_BYTES;
    for (size_t i = 0; i < ARRAY_LENGTH(file_order); i++) {
        enum param_id id = file_order[i];
        int64_t layers = gpt_param_copies(c, id);
        int64_t bytes = stored_elements(c, padded, id) * size, rows = weights_rows(c, id);
        int64_t cols = weights_cols(c, id);
        for (int64_t l = 0; l < layers; l++) {
            struct st_view *v = &m->bin_views[id * L + l];
            *v = (struct st_view){.name = gpt_param_rows[id].name,
                                  .path = m->bin.path,
                                  .dtype = dtype,
                                  .rank = gpt_param_rows[id].cols == DIM_NONE ? 1 : 2,
                                  .dim = {rows, cols},
                                  .count = rows * cols,
                                  .bytes = rows * cols * size,
                                  .data = at + l * (bytes / layers)};
            *weights_view(&m->weights, id, 0, l) = v;
        }
        at += bytes;
    }
}

bool llmc_bin_open(struct model_file *m, const char *path, struct error *err) {
    struct gpt_config config;
    enum st_dtype dtype = ST_F32;
    int64_t padded = 0;
    memset(m, 0, sizeof *m);
    if (!file_map(&m->bin, path, err) || !parse_header(&config, &dtype, &padded, &m->bin, err) ||
        !check_size(&config, dtype, padded, &m->bin, err)) {
        model_file_close(m);
        return false;
    }
    place_views(m, &config, dtype, padded);
    return true;
}
