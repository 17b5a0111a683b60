/* A --config file for the options of train_gpt, and the options stored in a checkpoint. */
#include "test/fuzz/fuzz.h"

#include "llmc/run/config.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct option_command command = {"fuzz", NULL, run_option_groups, RUN_OPTION_GROUPS, NULL, 0, 0};

FUZZ_TARGET(options) {
    struct error err;
    struct run_config config;
    struct options o;
    options_init(&o, &command, &config);
    if (options_load(&o, fuzz_file("options.json", data, size), &err)) {
        free(options_text(&o, true));
        json_decref(options_export(&o));
        fuzz_accept();
    }
    options_free(&o);

    json_t *stored = json_loadb((const char *)data, size, 0, NULL);
    options_init(&o, &command, &config);
    if (options_import(&o, stored, "fuzz", &err)) free(options_text(&o, true));
    options_free(&o);
    json_decref(stored);
    return 0;
}

FUZZ_SEEDS(options) {
    static const char *const texts[] = {
        "{\"batch-size\": 8, \"tokens-per-step\": \"64k\", \"learning-rate\": 3e-4, \"schedule\": \"wsd\", "
        "\"graph\": false, \"out\": \"runs/a\", \"model\": \"d12\"}",
        "{\"values\": {\"batch-size\": 8, \"steps\": 100, \"text\": null}, \"explicit\": [\"batch-size\"]}"};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) add(user, texts[i], strlen(texts[i]));
}
