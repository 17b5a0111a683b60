/* safetensors files: the header, every tensor's conversion, and as the weights of a model. */
#include "test/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/fuzz/model.h"

static void convert_all(const struct safetensors *st) {
    struct error err;
    for (int64_t i = 0; i < st->count; i++) {
        const struct st_view *v = &st->tensors[i];
        float *values = xmalloc((size_t)v->count * sizeof *values + 1);
        safetensors_to_f32(values, v, 0, v->count, &err);
        free(values);
        check(safetensors_find(st, v->name) == v, "a tensor is not found by its name");
    }
    safetensors_metadata(st, "format");
}

FUZZ_TARGET(safetensors) {
    static bool configured;
    struct error err;
    struct safetensors st;
    struct model_file m;
    struct gpt_config config = TINY_CONFIG;
    if (!configured) check(model_config_write(fuzz_path(""), &config, ST_F32, NULL, &err), "%s", err.message);
    configured = true;
    if (safetensors_open(&st, fuzz_file("model.safetensors", data, size), &err)) {
        convert_all(&st);
        safetensors_close(&st);
    }
    if (model_file_open(&m, fuzz_path(""), &err)) {
        if (read_all_weights(&m, &err)) fuzz_accept();
        model_file_close(&m);
    }
    return 0;
}

FUZZ_SEEDS(safetensors) {
    static const enum st_dtype dtypes[] = {ST_F32, ST_F16, ST_BF16};
    for (size_t i = 0; i < ARRAY_LENGTH(dtypes); i++) {
        write_tiny_weights(fuzz_path("seed"), dtypes[i]);
        fuzz_seed_file(add, user, "seed");
    }
    static const char odd[] =
        "\x9b\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},\"s\":{\"dtype\":\"F64\",\"shape\":[],"
        "\"data_offsets\":[0,8]},\"e\":{\"dtype\":\"I8\",\"shape\":[0,5],\"data_offsets\":[8,8]}}"
        "                       12345678";
    add(user, odd, sizeof odd - 1);
}
