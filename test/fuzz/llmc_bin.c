/* llm.c's model files. */
#include "test/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/fuzz/model.h"

FUZZ_TARGET(llmc_bin) {
    struct error err;
    struct model_file m;
    if (!llmc_bin_open(&m, fuzz_file("model.bin", data, size), &err)) return 0;
    if (read_all_weights(&m, &err)) fuzz_accept();
    model_file_close(&m);
    return 0;
}

FUZZ_SEEDS(llmc_bin) {
    const struct gpt_config config = TINY_CONFIG;
    struct gpt_config padded = config;
    padded.vocab_size = 4;
    int64_t elements = 0;
    for (int id = 0; id < PARAM_ROWS; id++)
        elements += weights_rows(&padded, (enum param_id)id) * weights_cols(&padded, (enum param_id)id) *
                    gpt_param_copies(&padded, (enum param_id)id);
    for (int32_t version = 3; version <= 5; version += 2) {
        size_t size = 1024 + (size_t)elements * (version == 3 ? 4 : 2);
        uint8_t *file = xcalloc(1, size);
        const int32_t header[] = {20240326, version, (int32_t)config.context,  (int32_t)config.vocab_size,
                                  1,        1,       (int32_t)config.channels, (int32_t)padded.vocab_size};
        memcpy(file, header, sizeof header);
        add(user, file, size);
        free(file);
    }
}
