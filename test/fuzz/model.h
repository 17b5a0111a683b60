/* The smallest possible model, for the targets that read models. */
#ifndef LLMC_FUZZ_MODEL_H
#define LLMC_FUZZ_MODEL_H

#include "llmc/format/llmc_bin.h"
#include "llmc/format/model_config.h"

#define TINY_CONFIG GPT2_CONFIG("tiny", 2, 3, 1, 1, 2)

/* Every number of every tensor, as loading would. */
static inline bool read_all_weights(const struct model_file *m, struct error *err) {
    const struct gpt_config *c = &m->weights.config;
    for (int id = 0; id < PARAM_ROWS; id++)
        for (int64_t l = 0; l < gpt_param_copies(c, (enum param_id)id); l++) {
            int64_t rows = weights_rows(c, (enum param_id)id), cols = weights_cols(c, (enum param_id)id);
            float *values = (float *)xmalloc((size_t)(rows * cols) * sizeof *values);
            bool ok = weights_read(values, &m->weights, (enum param_id)id, l, 0, rows, err);
            free(values);
            if (!ok) return false;
        }
    return true;
}

static inline bool zeros(float *out, const void *source, enum param_id id, int64_t layer, int64_t first,
                         int64_t count, struct error *err) {
    const struct gpt_config *c = (const struct gpt_config *)source;
    memset(out, 0, (size_t)(count * weights_cols(c, id)) * sizeof *out);
    return true;
}

/* Writes the tiny model's tensors to `path`. */
static inline void write_tiny_weights(const char *path, enum st_dtype dtype) {
    struct gpt_config config = TINY_CONFIG;
    struct safetensors_writer w;
    struct error err;
    safetensors_writer_init(&w);
    weights_declare(&w, &config, "", dtype, WEIGHTS_ALL);
    check(safetensors_writer_open(&w, path, &err), "%s", err.message);
    weights_put(&w, &config, "", dtype, WEIGHTS_ALL, zeros, &config);
    check(safetensors_writer_close(&w, &err), "%s", err.message);
}

#endif
