/* The index of a sharded model: model.safetensors.index.json beside one file that exists and is valid. */
#include "test/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/fuzz/model.h"

FUZZ_TARGET(safetensors_index) {
    static bool prepared;
    struct error err;
    struct model_file m;
    struct gpt_config config = TINY_CONFIG;
    if (!prepared) {
        check(model_config_write(fuzz_path(""), &config, ST_F32, NULL, &err), "%s", err.message);
        write_tiny_weights(fuzz_path("a.safetensors"), ST_F32);
    }
    prepared = true;
    remove(fuzz_path("model.safetensors"));
    fuzz_file("model.safetensors.index.json", data, size);
    if (model_file_open(&m, fuzz_path(""), &err)) {
        if (read_all_weights(&m, &err)) fuzz_accept();
        model_file_close(&m);
    }
    remove(fuzz_path("model.safetensors.index.json"));
    return 0;
}

FUZZ_SEEDS(safetensors_index) {
    const struct gpt_config config = TINY_CONFIG;
    char text[4096];
    int n = snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":1000},\"weight_map\":{");
    for (int id = 0; id < PARAM_ROWS; id++)
        if (gpt_param_copies(&config, (enum param_id)id))
            n += snprintf(text + n, sizeof text - (size_t)n, "%s\"transformer.%s\":\"a.safetensors\"",
                          id ? "," : "", gpt_param_name((enum param_id)id, 0));
    n += snprintf(text + n, sizeof text - (size_t)n, "}}");
    add(user, text, (size_t)n);
}
